"""Receptive fields: the paper's values, arithmetic by hand, and the support of the gradient of a linear network."""
import copy
import math

import pytest
import timm
import torch
import torchvision
from torch import nn

import timm_focus
from timm_focus import receptive_field

# Table 2, with its growth over stem and stages
PAPER = {
    'shufflenetv2_x1_5': [7, 63, 303, 527], 'resnet18': [11, 43, 99, 211, 435], 'resnet34': [11, 59, 179, 547, 899],
    'resnet50': [11, 35, 91, 267, 427]}
# at the last feature of reduction 8, where it fits into an image of 320 pixels
FAMILIES = [
    'resnet18', 'resnext50_32x4d', 'densenet121', 'vgg11', 'shufflenetv2_x0_5', 'mobilenetv2_050', 'mobilenetv1_100',
    'regnetx_002', 'dla34', 'darknet53', 'cspresnet50', 'convnext_atto', 'repvgg_a0', 'efficientnet_lite0', 'dpn48b',
    'xception41', 'inception_v4', 'hgnetv2_b0', 'resnetv2_50', 'mobilenetv4_conv_small', 'lcnet_050']
# what a linear network has in place of norms and activations
LINEAR = ('norm', 'relu', 'silu', 'gelu', 'swish', 'mish', 'drop')


@pytest.mark.slow('shufflenet', 'resnet34', 'resnet50')
@pytest.mark.parametrize('name', PAPER)
def test_the_papers_growth(name):
    model = timm.create_model(name, num_classes=2)
    indices = range(len(model.feature_info))
    fields = [receptive_field(model, i).size for i in indices]
    if name == 'shufflenetv2_x1_5':  # its stem ends after the pool, its last stage before the last convolution, 1 x 1
        assert fields[-3:] + [receptive_field(model).size] == [63, 303, 527, 527]
    else:  # theirs begin with the first convolution, the paper's stem ends after the pool
        assert fields[1:] == PAPER[name][1:] and receptive_field(model, 'maxpool').size == PAPER[name][0]
    assert receptive_field(model).size == PAPER[name][-1]


@pytest.mark.slow
def test_densenet_and_torchvision():
    assert receptive_field(timm.create_model('densenet121')).size == 2071
    for name, size in (('resnet18', 435), ('resnet50', 427), ('shufflenet_v2_x1_5', 527)):
        assert receptive_field(torchvision.models.get_model(name)).size == size


def field(*layers, feature=None):
    return tuple(receptive_field(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), feature,
                                 input_size=(3, 128, 128)))[:3]


def test_by_hand():
    conv = nn.Conv2d
    assert field(conv(3, 4, 3, padding=1)) == (3, 1, -1)
    assert field(conv(3, 4, 7, 2, 3), nn.MaxPool2d(3, 2, 1), conv(4, 4, 3, padding=1)) == (19, 4, -9)
    assert field(conv(3, 4, 3, padding=4, dilation=4)) == (9, 1, -4)
    assert field(conv(3, 4, (1, 7), padding=(0, 3)), conv(4, 4, (3, 1), padding=(1, 0))) == ((3, 7), 1, (-1, -3))
    assert field(conv(3, 6, 3, 2, groups=3), nn.AvgPool2d(2), nn.ReLU(), conv(6, 4, 1)) == (5, 4, 0)


class Branches(nn.Module):
    """Two ways with kernels of different reach, joined."""

    def __init__(self, join):
        super().__init__()
        self.near, self.far = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=3, dilation=3)
        self.join = join

    def forward(self, x):
        return self.join(self.near(x), self.far(x)).mean((2, 3))


def test_where_paths_join_the_larger_counts():
    for join in (torch.add, torch.mul, torch.maximum, lambda a, b: torch.cat([a, b], 1)):
        assert receptive_field(Branches(join), input_size=(3, 64, 64))[:3] == (7, 1, -3)
    assert receptive_field(Branches(torch.add), 'near', input_size=(3, 64, 64)).size == 3


def linearised(model):
    """The network with positive weights alone: nothing cancels, so the gradient is positive just where it may be."""
    model = copy.deepcopy(model).double().eval()

    def visit(module):
        for name, child in module.named_children():
            kind = type(child).__name__.lower()
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
            elif 'batchnormact' in kind or (any(word in kind for word in LINEAR) and not list(child.children())):
                setattr(module, name, nn.Identity())
            else:
                visit(child)

    visit(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.fill_(1 / parameter[0].numel())
            else:
                parameter.fill_(0. if name.endswith('bias') else 1.)
    return model


@pytest.mark.slow(
    'vgg11', 'resnext50', 'densenet121', 'darknet53', 'xception41', 'inception_v4', 'resnetv2_50', 'dla34',
    'cspresnet50', 'dpn', 'repvgg', 'regnet', 'lite0', 'mobilenetv1', 'hgnet')
@pytest.mark.long('vgg11', 'inception_v4', 'xception41', 'darknet53', 'resnext50', 'cspresnet50')
@pytest.mark.parametrize('name', FAMILIES)
def test_it_is_the_support_of_the_gradient(name):
    torch.set_num_threads(1)
    model = timm.create_model(name, num_classes=2)
    info = getattr(model.feature_info, 'info', model.feature_info)
    index = max(i for i, f in enumerate(info) if f['reduction'] <= 8)
    found = receptive_field(model, index)
    x = torch.ones(1, 3, 320, 320, dtype=torch.double, requires_grad=True)
    feature, = linearised(model).forward_intermediates(x, indices=[index], norm=False, intermediates_only=True)
    place = feature.shape[-1] // 2
    feature[0, :, place, place].sum().backward()
    seen = x.grad[0].sum(0) > 0
    for line in (seen.any(0), seen.any(1)):
        pixels = line.nonzero().flatten()
        assert 0 < pixels[0] and pixels[-1] < 319, 'the border would cut it off'
        assert pixels[-1] - pixels[0] + 1 == found.size
        assert pixels[0] == found.start + found.stride * place


@pytest.mark.slow('seresnet', 'efficientnet')
@pytest.mark.parametrize('name, word', [
    ('seresnet18', 'se'), ('efficientnet_b0', 'se'), ('vit_tiny_patch16_224', 'attn'), ('regnety_002', 'se')])
def test_global_operations_make_it_infinite(name, word):
    model = timm.create_model(name, num_classes=2)
    found = receptive_field(model)
    assert found.size == math.inf and word in found.through
    assert dict(model.named_modules())[found.through]
    if name == 'seresnet18':
        assert receptive_field(model, through_global=True)[:2] == (435, 32)
        assert receptive_field(model, through_global=True).size == receptive_field(timm.create_model('resnet18')).size


def test_of_a_focus_model_its_backbone_is_meant():
    model = timm_focus.create_focus_net('resnet18', num_classes=2)
    assert receptive_field(model.backbone, 'layer3').size == 211


def test_the_model_is_left_as_it_was():
    model = timm.create_model('resnet18', num_classes=2).train()
    state = copy.deepcopy(model.state_dict())
    receptive_field(model)
    assert model.training and all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_feature_that_is_not_there_is_told():
    model = timm.create_model('resnet18', num_classes=2)
    with pytest.raises(ValueError, match='layer33.*layer3'):
        receptive_field(model, 'layer33')
    with pytest.raises(ValueError, match='17'):
        receptive_field(model, 17)


def test_an_operation_that_is_not_known_is_told():
    class Sorts(nn.Module):
        def forward(self, x):
            return torch.sort(nn.functional.avg_pool2d(x, 2), dim=2).values.mean((2, 3))

    with pytest.raises(ValueError, match='sort'):
        receptive_field(Sorts(), input_size=(3, 64, 64))
