"""Channels last where a model can, and a reason where it cannot."""
import timm
import torch
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
