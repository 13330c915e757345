"""Looking at a model leaves each of its modules in the mode that it had."""
import pytest
import timm
import torch
from torch import nn

from timm_focus import focus_area
from timm_focus.analysis import classifier_map, explain, faithfulness, multiply_adds
from timm_focus.analysis.plots import focus_sheet
from timm_focus.training.journal import tap_size
from timm_focus.utils.modes import evaluating

LOOKS = {
    'explain': lambda model, x, _: explain(model, x),
    'focus_area': lambda model, x, _: focus_area(model, x),
    'classifier_map': lambda model, x, _: classifier_map(model, x),
    'faithfulness': lambda model, x, _: faithfulness(model, [(x, torch.zeros(len(x), dtype=torch.long))], [0.5]),
    'multiply_adds': lambda model, x, _: multiply_adds(model, x.shape[1:]),
    'tap_size': lambda model, x, _: tap_size(model, x.shape[1:]),
    'focus_sheet': lambda model, x, folder: focus_sheet(model, x, folder / 'sheet.png', (0.5,) * 3, (0.2,) * 3),
}


@pytest.fixture
def half_frozen():
    """A model in training whose BatchNorm layers are frozen, as in fine-tuning, and one part is in evaluation."""
    model = timm.create_model('focus_test_resnet', num_classes=3).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model.cam_head.eval()
    return model


def modes(model):
    return {name: m.training for name, m in model.named_modules()}


@pytest.mark.parametrize('look', LOOKS)
def test_frozen_layers_stay_frozen(look, half_frozen, photos, tmp_path):
    before, statistics = modes(half_frozen), {k: v.clone() for k, v in half_frozen.state_dict().items()}
    assert set(before.values()) == {True, False} and before['']
    LOOKS[look](half_frozen, photos(2, 160), tmp_path)
    assert modes(half_frozen) == before
    assert all(torch.equal(v, statistics[k]) for k, v in half_frozen.state_dict().items())


def test_modes_come_back_after_an_error(half_frozen):
    before = modes(half_frozen)
    with pytest.raises(ZeroDivisionError), evaluating(half_frozen):
        assert not any(modes(half_frozen).values())
        1 / 0
    assert modes(half_frozen) == before
