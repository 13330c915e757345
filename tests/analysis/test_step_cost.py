"""Counts of a training step: by hand on a layer, and what focus training may cost, on the paper's models and others."""
import pytest
import timm
import torch
from timm.task import ClassificationTask
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from timm_focus import FocusTask
from timm_focus.analysis import peak_bytes, saved_bytes, step_cost, training_flops

PAPER = ('shufflenetv2_x1_5', 'resnet18', 'resnet34', 'resnet50', 'densenet121')
SHORT = {  # a network of each kind
    'resnet18': {}, 'densenet121': dict(block_config=(2, 4, 8, 6)), 'vit_small_patch16_224': dict(depth=4),
    'convnext_tiny': dict(depths=(1, 1, 4, 1)), 'shufflenetv2_x1_5': dict(stages_repeats=(2, 5, 2))}


def count(name, prefix='', size=224, n=8, **kwargs):
    """Counts at 224 px and a batch of 8, with tensors that have shapes and no values."""
    with torch.device('meta'):
        model = timm.create_model(prefix + name, num_classes=365, **kwargs).train()
    with FakeTensorMode():
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                module._parameters[name] = nn.Parameter(torch.empty(p.shape))
            for name, b in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(b.shape, dtype=b.dtype)
        task = (FocusTask if prefix else ClassificationTask)(model, verbose=False)
        x, y = torch.empty(n, 3, size, size), torch.empty(n, dtype=torch.long)
        return step_cost(model, lambda: task(x, y)['loss'])


@pytest.mark.long('densenet', 'shufflenet')
@pytest.mark.parametrize('name, kwargs', [
    *(pytest.param(name, kwargs, marks=pytest.mark.slow) for name, kwargs in SHORT.items()),
    *(pytest.param(name, {}, marks=pytest.mark.long) for name in (*PAPER, 'vit_small_patch16_224', 'convnext_tiny'))])
def test_a_focus_step_counts_two_plain_steps_and_keeps_the_activations_of_two_or_of_one(name, kwargs):
    plain, focus = count(name, **kwargs), count(name, 'focus_', **kwargs)
    recomputed = count(name, 'focus_', focus_recompute=True, **kwargs)
    assert 1.999 < focus.flops / plain.flops <= 2.001
    assert 1.99 < focus.saved_bytes / plain.saved_bytes <= 2.01
    assert 2.1 < recomputed.flops / plain.flops < 2.36  # one more forward
    assert recomputed.peak_bytes <= 1.06 * plain.peak_bytes < focus.peak_bytes / 1.5


@pytest.mark.slow
def test_a_fraction_of_the_batch_counts_its_share():
    plain, half = count('resnet18'), count('resnet18', 'focus_', focus_fraction=0.5)
    assert half.flops / plain.flops == pytest.approx(1.5, abs=0.001)
    assert half.saved_bytes / plain.saved_bytes == pytest.approx(1.5, abs=0.01)


def test_a_layer_by_hand():
    """A linear layer of 4 x 6 with a ReLU behind it, on 5 rows: each product once forward, twice backward."""
    layer, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU()), torch.randn(5, 4, requires_grad=True)

    def loss():
        return layer(x).sum()

    assert training_flops(layer, loss) == 3 * 2 * 5 * 4 * 6
    assert saved_bytes(layer, loss) == 4 * (5 * 4 + 5 * 6)  # input and output; the weight is the model's
    # both outputs, the sum and its gradient, which is expanded, and that of the ReLU: parameters' are left out
    assert 4 * (5 * 6 + 5 * 6 + 1) <= peak_bytes(layer, loss) <= 4 * (3 * 5 * 6 + 5 * 4 + 2)
    assert all(p.grad is None for p in layer.parameters())


def test_counts_are_those_of_real_tensors(photos):
    model = timm.create_model('focus_resnet10t', num_classes=365).train()
    task, x, y = FocusTask(model, verbose=False), photos(2, 64), torch.arange(2)
    assert step_cost(model, lambda: task(x, y)['loss']) == count('resnet10t', 'focus_', size=64, n=2)
