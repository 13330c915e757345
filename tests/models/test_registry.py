import subprocess
import sys

import pytest
import timm
import torch
from timm.models import PretrainedCfg, load_checkpoint, resolve_model_input_args, save_for_hf
from torch import nn

import timm_focus
from timm_focus import FocusNet


def test_every_classifying_model_has_a_twin():
    plain = timm.list_models(exclude_filters='focus_*')
    twins = set(timm.list_models('focus_*'))
    assert twins == {f'focus_{n}' for n in plain if not n.endswith('_enc')}
    assert len(twins) >= 1364 + 4
    assert all(timm.is_model(f'focus_shufflenetv2_{w}') for w in ('x0_5', 'x1_0', 'x1_5', 'x2_0'))
    assert not any(n.startswith('focus_focus') for n in twins)


def test_pretrained_names_and_tags_are_those_of_the_plain_models():
    expected = {f'focus_{n}' for n in timm.list_pretrained(exclude_filters='focus_*')
                if not n.split('.')[0].endswith('_enc')}
    assert set(timm.list_pretrained('focus_*')) == expected
    cfg = timm.get_pretrained_cfg('focus_resnet34.a2_in1k')
    assert (cfg.tag, cfg.hf_hub_id) == ('a2_in1k', 'timm/resnet34.a2_in1k')
    assert timm.is_model('focus_resnet34.a1_in1k') and not timm.is_model('focus_resnet35')
    with pytest.raises(RuntimeError, match='Invalid pretrained tag'):
        timm.create_model('focus_resnet34.nonsense')


def test_registering_again_changes_nothing():
    before = len(timm.list_models())
    timm_focus.models.register_focus_models()
    assert len(timm.list_models()) == before



def test_the_backbone_never_hears_of_the_focus_name():
    resolved = resolve_model_input_args('focus_resnet10t', {})
    assert resolved['pretrained_cfg']['architecture'] == 'focus_resnet10t', 'what timm hands on'
    cfg = dict(timm.get_pretrained_cfg('focus_resnet10t').to_dict(), crop_pct=0.5)
    for kwargs in (
            dict(), resolved, dict(pretrained_cfg=cfg), dict(pretrained_cfg=PretrainedCfg(**cfg)),
            dict(pretrained_cfg_overlay=dict(architecture='focus_resnet10t', crop_pct=0.5)),
    ):
        model = timm.create_model(**{'model_name': 'focus_resnet10t', **kwargs})
        assert model.pretrained_cfg['architecture'] == 'resnet10t'
        assert model.pretrained_cfg is model.backbone.pretrained_cfg is model.default_cfg
        if 'model_name' not in kwargs and kwargs:
            assert model.pretrained_cfg['crop_pct'] == 0.5
    assert timm.create_model('focus_resnet34.a2_in1k').pretrained_cfg['tag'] == 'a2_in1k'


def test_arguments_mean_what_they_mean_in_timm():
    model = timm.create_model(
        'focus_vit_tiny_patch16_224', num_classes=7, in_chans=1, drop_rate=0.3, drop_path_rate=0.2, img_size=64)
    assert model.num_classes == 7 and model.in_chans == 1
    assert model.backbone.head_drop.p == 0.3
    assert model.backbone.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert model.backbone.patch_embed.img_size == (64, 64)
    assert model.eval()(torch.randn(1, 1, 64, 64)).shape == (1, 7)
    with pytest.raises(TypeError, match='unexpected'):
        timm.create_model('focus_resnet10t', no_such_argument=1)
    with pytest.raises(TypeError, match='no argument focus_treshold.*Did you mean focus_threshold'):
        timm.create_model('focus_resnet10t', focus_treshold=0.5)
    assert timm.create_model('focus_resnet10t', focus_stage=None, focus_width=None).stage == 3


def test_pretrained_weights_and_checkpoints(tmp_path):
    """From files, as the Hub cannot be reached: the same loading code, told by timm's own cfg where to look."""
    source = timm.create_model('resnet10t')
    torch.save(source.state_dict(), tmp_path / 'weights.pth')
    model = timm.create_model(
        'focus_resnet10t', pretrained=True, in_chans=1, num_classes=3,
        pretrained_cfg_overlay=dict(file=str(tmp_path / 'weights.pth')))
    assert torch.equal(model.backbone.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    assert model.backbone.conv1[0].weight.shape[1] == 1 and model.num_classes == 3

    plain = timm.create_model('focus_resnet10t', checkpoint_path=tmp_path / 'weights.pth')
    assert torch.equal(plain.backbone.fc.weight, source.fc.weight)
    torch.save({'state_dict': {f'module.{k}': v for k, v in model.state_dict().items()}}, tmp_path / 'own.pth.tar')
    again = timm.create_model('focus_resnet10t', in_chans=1, num_classes=3)
    load_checkpoint(again, tmp_path / 'own.pth.tar')
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))


def test_local_folder(tmp_path):
    source = timm.create_model('vit_tiny_patch16_224', num_classes=6, img_size=64, in_chans=1)
    save_for_hf(source, tmp_path, model_args=timm.models.get_model_args(source))
    model = FocusNet(timm.create_model(f'local-dir:{tmp_path}', pretrained=True), focus_stage='blocks.3')
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), model.backbone.state_dict().values()))
    model.train()
    assert model(torch.randn(2, 1, 64, 64)).erased.shape == (2, 6)
    exported = timm_focus.export_backbone(model)
    x = torch.randn(2, 1, 64, 64)
    assert torch.equal(exported(x), source.eval()(x))


def test_models_without_a_classifier_are_refused():
    class Encoder(nn.Module):
        num_classes = 0
        feature_info = forward_intermediates = forward_head = ()

    with pytest.raises(ValueError, match='Encoder has no classifier'):
        FocusNet(Encoder())


def test_crossvit_tells_its_branches_apart_by_index():
    with torch.device('meta'):
        with pytest.raises(ValueError, match="Several features are named 'blocks.1'.*by index"):
            timm.create_model('focus_crossvit_9_240', focus_stage='blocks.1')
        assert timm.create_model('focus_crossvit_9_240', focus_stage=1).stage == 1


def fresh(code):
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.mark.slow
def test_import_is_quiet_and_brings_little():
    """No warning, no network, and no package that only a feature needs; nor does timm's `import *` break."""
    assert fresh(
        "import warnings, socket; warnings.simplefilter('error')\n"
        "def refuse(*a, **k): raise OSError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "import timm, sys; before = set(sys.modules)\n"
        "import timm_focus\n"
        "print(sorted(m for m in set(sys.modules) - before if '.' not in m))\n"
        "from timm_focus.models.registry import *\n"
        "from timm_focus import *\n"
        "print(focus_resnet10t.__name__, FocusNet.__name__)") == "['timm_focus']\nfocus_resnet10t FocusNet"
