import pytest
import torch
import torch.nn.functional as F

from timm_focus.method import CamHead, class_activation_map, class_weights, mean_activation_map, normalize_map


def literal_cam(head, feature, target):
    """Eq. 1 in the order it is written: convolve the whole map, then weigh its channels by the classifier."""
    convolved = F.conv2d(feature, head.conv.weight, head.conv.bias)
    side = F.linear(convolved.mean((2, 3)), head.fc.weight, head.fc.bias)
    maps = torch.einsum('kc,bchw->bkhw', head.fc.weight, convolved)
    return side, maps[torch.arange(len(target)), target]


@pytest.mark.parametrize('width', [None, 5, 40])
def test_cheap_order_equals_literal_convolution(width):
    head = CamHead(12, 7, width).double()
    feature = torch.randn(3, 12, 4, 6, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([6, 0, 3])
    side, activation = literal_cam(head, feature, target)
    torch.testing.assert_close(head(feature), side, rtol=1e-12, atol=1e-12)
    # the convolution's bias shifts a whole map, which the normalisation removes
    cheap = head.activation_map(feature, target)
    shift = (activation - cheap).flatten(1)
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(normalize_map(cheap), normalize_map(activation), rtol=1e-10, atol=1e-10)


def test_cheap_order_has_the_gradients_of_the_literal_one():
    head = CamHead(9, 5, 6).double()
    feature = torch.randn(2, 9, 3, 3, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([4, 1])
    inputs = [feature, *head.parameters()]
    literal = torch.autograd.grad(F.cross_entropy(literal_cam(head, feature, target)[0], target), inputs)
    cheap = torch.autograd.grad(F.cross_entropy(head(feature), target), inputs)
    for a, b in zip(cheap, literal):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_map_of_low_precision_features_is_float32():
    head = CamHead(8, 3).bfloat16()
    feature = torch.randn(2, 8, 4, 4).bfloat16()
    activation = head.activation_map(feature, torch.tensor([0, 2]))
    assert activation.dtype == torch.float32
    exact = class_activation_map(
        feature.double(), class_weights(head.conv.weight.double(), head.fc.weight.double(), torch.tensor([0, 2])))
    torch.testing.assert_close(activation.double(), exact, rtol=1e-5, atol=1e-5)
    assert mean_activation_map(feature).dtype == torch.float32
    assert mean_activation_map(feature.double()).dtype == torch.float64


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_map(dtype):
    """A map of 1e5, which is more than float16 holds."""
    head = CamHead(8, 3)
    feature, target = 1e4 * torch.rand(2, 8, 4, 4), torch.tensor([0, 2])
    with torch.no_grad():
        with torch.autocast('cpu', dtype):  # the pool comes first: the mean of 1e4 is no sum of 1e5
            assert head(feature.to(dtype)).isfinite().all()
        head.fc.weight.mul_(200)
        expected = head.activation_map(feature, target)
        assert expected.abs().max() > 1e5
        with torch.autocast('cpu', dtype):
            assert torch.equal(head.activation_map(feature, target), expected)
            assert mean_activation_map(feature).dtype == torch.float32
            low = head.activation_map(feature.to(dtype), target)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, head.activation_map(feature.to(dtype).float(), target), rtol=0, atol=0)


def test_normalize_map():
    maps = torch.stack([torch.full((3, 4), 2.5), torch.arange(12.).view(3, 4) * 1e-30, -torch.arange(12.).view(3, 4)])
    normal = normalize_map(maps)
    assert torch.equal(normal[0], torch.zeros(3, 4)), 'a flat map prefers nothing'
    for m in normal[1:]:
        assert m.min() == 0 and m.max() == 1
    torch.testing.assert_close(normal[1].flatten(), torch.arange(12.) / 11)
    assert normalize_map(torch.ones(2, 1, 1)).isfinite().all()
    assert torch.equal(normalize_map(torch.tensor([[[-3e38, 3e38, 1.]]])), torch.zeros(1, 1, 3)), 'an overflow'


def test_mean_map_is_the_mean_over_channels():
    feature = torch.randn(2, 5, 3, 4)
    expected = sum(feature[:, c] for c in range(5)) / 5
    torch.testing.assert_close(mean_activation_map(feature), expected)
