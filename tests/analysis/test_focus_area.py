"""Focus areas against the words of the paper, written out slowly."""
import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

import timm_focus
from timm_focus.analysis import coverage_ratio, focus_area, last_map, threshold_map

CONVOLUTIONAL = ['resnet10t', 'shufflenetv2_x0_5', 'convnext_atto', 'efficientnet_lite0', 'mobilenetv4_conv_small',
                 'regnety_002', 'vgg11', 'fastvit_t8']


def slow_otsu(values):
    """The value v for which parting into <= v and > v leaves the least variance within the parts."""
    def within(v):
        return sum(part.var() * len(part) for part in (values[values <= v], values[values > v]) if len(part))
    return min(sorted(set(values.tolist()))[:-1], key=within)


def test_thresholds():
    torch.manual_seed(0)
    heat = torch.randn(5, 6, 7).exp()
    for row, mean, otsu, ninety in zip(heat.numpy(), *(threshold_map(heat, r) for r in ('mean', 'otsu', 90))):
        assert np.array_equal(mean, row > row.mean())
        assert np.array_equal(ninety, row > np.percentile(row, 90))
        assert np.array_equal(otsu, row > slow_otsu(row.astype(np.float64).ravel()))
        assert ninety.sum() == 5  # of 42
    assert threshold_map(heat).dtype == torch.bool


def test_otsu_parts_two_groups():
    heat = torch.tensor([[[0., 0.1, 0.2, 5.], [5.1, 0., 0.1, 5.2]]])
    assert torch.equal(threshold_map(heat, 'otsu'), heat > 1)


@pytest.mark.parametrize('rule', ['mean', 'otsu', 50])
def test_a_flat_map_has_no_area(rule):
    for value in (0., 3.25):
        area = threshold_map(torch.full((2, 4, 4), value), rule)
        assert not area.any() and coverage_ratio(area).tolist() == [0, 0]
    assert not threshold_map(torch.ones(1, 1, 1), rule).any()


@pytest.mark.parametrize('rule', ['median', 101, -1, None])
def test_another_threshold_is_told(rule):
    with pytest.raises(ValueError, match="There is no threshold .*'otsu', or a percentile"):
        threshold_map(torch.ones(1, 2, 2), rule)


def test_coverage_is_the_share():
    area = torch.tensor([[[1, 0], [0, 0]], [[1, 1], [1, 0]]], dtype=torch.bool)
    assert coverage_ratio(area).tolist() == [0.25, 0.75]


@pytest.mark.slow('vgg11')
@pytest.mark.parametrize('name', CONVOLUTIONAL)
def test_the_map_of_a_convolutional_model_is_its_last_feature(name, photos):
    model, x = timm.create_model(name, num_classes=3), photos(2, 128)
    area = focus_area(model.train(), x)
    assert model.training
    with torch.no_grad():
        features = model.eval().forward_features(x)
    assert area.convolutional and torch.equal(area.heat, features.mean(1))
    for heat, found, coverage in zip(area.heat, area.area, area.coverage):
        assert torch.equal(found, heat > heat.mean()) and coverage == pytest.approx(found.double().mean().item())


@pytest.mark.parametrize('name, size', [
    ('vit_tiny_patch16_224', (4, 4)), ('swin_tiny_patch4_window7_224', (2, 2)), ('hiera_tiny_224', (2, 2)),
    ('deit_tiny_distilled_patch16_224', (4, 4)), ('mixer_s32_224', (2, 2))])
def test_transformers_are_told_apart(name, size, photos):
    model = timm.create_model(name, num_classes=3, img_size=64)
    area = focus_area(model, photos(2, 64))
    assert not area.convolutional and area.heat.shape == (2, *size)
    assert area.heat.flatten(1).std(1).min() > 1e-4, 'no norm has taken the mean away'


def test_of_a_focus_model_the_backbone_is_looked_at(photos):
    model, x = timm_focus.create_focus_net('resnet10t', num_classes=3), photos(2, 96)
    assert torch.equal(focus_area(model, x).heat, focus_area(model.backbone, x).heat)


@pytest.mark.slow
def test_torchvisions_models_are_timms(photos):
    """The same weights give the same map, without a word on where it is."""
    torch.manual_seed(0)
    theirs = torchvision.models.shufflenet_v2_x0_5()
    ours = timm.create_model('shufflenetv2_x0_5')
    with torch.no_grad():
        for a, b in zip(ours.parameters(), theirs.parameters()):
            assert a.shape == b.shape
            a.copy_(b)
    x = photos(2, 128)
    area = focus_area(theirs, x)
    assert area.convolutional and torch.allclose(area.heat, focus_area(ours, x).heat, atol=1e-6)
    for name in ('densenet121', 'vgg11', 'mobilenet_v3_small', 'swin_t'):
        model = getattr(torchvision.models, name)(num_classes=3)
        heat, _ = last_map(model, x)
        assert heat.ndim == 4 and heat.shape[-2:] == (4, 4)


def test_what_pools_no_map_is_told(photos):
    with pytest.raises(ValueError, match='VisionTransformer pools no feature map'):
        focus_area(torchvision.models.vit_b_32(num_classes=2, image_size=64), photos(1, 64))
    with pytest.raises(ValueError, match='Sequential pools no feature map'):
        focus_area(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2)), photos(1, 64))


def test_nothing_is_kept_between_batches(photos):
    model = timm.create_model('resnet10t', num_classes=3).eval()
    hooks = sum(len(m._forward_hooks) for m in model.modules())
    x = photos(4)
    together = focus_area(model, x)
    alone = [focus_area(model, x[i:i + 1]) for i in range(4)]
    assert torch.equal(together.area, torch.cat([a.area for a in alone]))
    assert sum(len(m._forward_hooks) for m in model.modules()) == hooks
    assert not together.heat.requires_grad
