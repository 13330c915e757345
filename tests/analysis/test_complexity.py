"""Multiply-adds of every kind of model, counted without numbers."""
import pytest
import timm
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from timm_focus.analysis import multiply_adds

# class tokens and the like go into modules as parameters, which counting with autograd's graph does not take
ODD = ['cait_xxs24_224', 'pit_ti_224', 'tnt_s_legacy_patch16_224', 'naflexvit_base_patch16_gap']
USUAL = ['resnet10t', 'densenet121', 'test_vit', 'test_efficientnet', 'swin_tiny_patch4_window7_224', 'nfnet_l0',
         'shufflenetv2_x0_5', 'sequencer2d_s']


class Counter(TorchDispatchMode):
    """Floating-point operations of what is truly computed, without torch's counter of modules."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func not in flop_registry and func._overloadpacket not in flop_registry:
            with self:
                result = func.decompose(*args, **(kwargs or {}))
                if result is not NotImplemented:
                    return result
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        self.total += count(*args, **(kwargs or {}), out_val=result) if count else 0
        return result


@pytest.mark.parametrize('name', ['resnet10t', 'test_vit', 'pit_ti_224'])
def test_what_is_counted_is_what_is_computed(name):
    model = timm.create_model(name, num_classes=5).eval()
    size = model.pretrained_cfg['input_size']
    # the formulas do not know the attention kernel of the CPU
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Counter() as counter:
        model(torch.zeros(1, *size))
    assert multiply_adds(model, size) == counter.total // 2 > 1e7


def test_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    assert multiply_adds(model, (3, 4, 4)) == 16 * 8 * 27 + 128 * 5


@pytest.mark.slow('cait', 'tnt')
@pytest.mark.parametrize('name', ODD)
def test_models_that_torchs_counter_of_modules_refuses(name):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=5)
    size = model.pretrained_cfg['input_size']
    if not name.startswith('naflexvit'):  # of those some
        counting = FlopCounterMode(display=False)
        with pytest.raises(AttributeError, match='next_functions'), torch.inference_mode(), counting:
            model(torch.zeros(1, *size, device='meta'))
    assert 1e8 < multiply_adds(model, size) < 1e11


@pytest.mark.parametrize('name', ['resnet10t', 'test_vit'])
def test_the_model_is_left_alone(name):
    model = timm.create_model(name, num_classes=5).to(torch.bfloat16).train()
    model.set_grad_checkpointing()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    size = model.pretrained_cfg['input_size']
    count = multiply_adds(model, size)
    assert model.training and all(p.requires_grad and p.device.type == 'cpu' for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())
    assert count == multiply_adds(timm.create_model(name, num_classes=5), size)


@pytest.mark.slow
def test_every_model_of_timm_can_be_counted(request):
    names = USUAL
    if request.config.getoption('--all-models'):
        names = [n for n in timm.list_models(exclude_filters='focus_*') if timm.is_model(f'focus_{n}')]
        assert len(names) > 1300
    wrong = {}
    for name in names:
        try:
            with torch.device('meta'):
                model = timm.create_model(name)
            count = multiply_adds(model, model.pretrained_cfg['input_size'])
            parameters = sum(p.numel() for p in model.parameters())
            if not (1e7 < count < 1e13 and count > 0.2 * parameters):
                wrong[name] = count
        except Exception as e:
            wrong[name] = f'{type(e).__name__}: {str(e)[:200]}'
    assert not wrong
