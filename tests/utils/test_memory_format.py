"""Channels last where a model can, and a reason where it cannot."""
import pytest
import timm
import torch
from conftest import TRAIN
from torch import nn

from timm_focus.utils.memory_format import use_channels_last

X = torch.zeros(1, 3, 64, 64)


class _Views(nn.Module):
    """A model that takes the order of the numbers for granted."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x).view(x.shape[0], -1)


def last(model):
    return any(p.ndim == 4 and not p.is_contiguous() for p in model.parameters())


def test_a_model_that_can_has_its_channels_last():
    model = timm.create_model('test_resnet')
    model.bn = nn.BatchNorm2d(2).eval()  # frozen by somebody
    assert use_channels_last(model, X) == '' and last(model) and model.training and not model.bn.training


def test_a_model_that_cannot_is_as_it_was_and_says_why():
    for model, words in ((_Views(), 'view'), (timm.create_model('lambda_resnet26t', num_classes=2), 'rank 4')):
        assert words in use_channels_last(model, X) and not last(model)
        model(X.expand(2, -1, -1, -1)).sum().backward()  # nothing of the trial is left


def test_an_image_that_is_too_small_is_not_the_formats_fault():
    assert use_channels_last(timm.create_model('test_vit'), X) == ''


def test_a_layer_whose_gradient_crashes_on_a_cpu_is_trained_in_the_usual_format():
    def first(channels, kernel, stride, groups=1):
        return nn.Sequential(nn.Conv2d(channels, 4, kernel, stride, groups=groups))

    x = torch.zeros(1, 3, 32, 32)
    for model, crashes in ((first(3, 1, 2), True), (first(3, 1, 4), True), (first(3, 3, 2), False),
                           (first(3, 1, 1), False), (first(16, 1, 2), False), (first(4, 1, 2, groups=4), False)):
        images = x[:, :1].repeat(1, model[0].in_channels, 1, 1)
        why = use_channels_last(model, images)
        assert ('the layer 0 is a 1 x 1 convolution' in why) == crashes, (model, why)
        model(images).sum().backward()
    assert use_channels_last(first(3, 1, 2).eval(), x) == '', 'no gradient, no crash'


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fastvit_t8', 'mobileone_s0', 'repvgg_a0'])
def test_a_model_that_begins_with_such_a_layer_trains(fork, settings, name):
    done = fork(TRAIN, *settings('', name, model=f'focus_{name}'))
    assert done.returncode == 0, done.stderr
    assert f'focus_{name} cannot be trained with channels last, so it is trained without' in done.stderr
