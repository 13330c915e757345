import pytest
import torch

from literal import literal_bilinear
from timm_focus.method import erase, erased_share, keep_mask, keep_mask_like, normalize_map, resize_map


@pytest.mark.parametrize('size', [(16, 16), (20, 12), (7, 5)])
def test_bilinear_equals_literal(size):
    small = torch.rand(2, 4, 5, dtype=torch.float64)
    expected = torch.tensor([literal_bilinear(m.tolist(), *size) for m in small], dtype=torch.float64)
    torch.testing.assert_close(resize_map(small, size), expected, rtol=1e-12, atol=1e-12)


def test_nearest_repeats_pixels():
    small = torch.rand(1, 2, 2)
    assert torch.equal(resize_map(small, (4, 6), 'nearest'), small.repeat_interleave(2, 1).repeat_interleave(3, 2))


def test_high_regions_are_erased():
    activation = normalize_map(torch.tensor([[[0., 1.], [2., 10.]]]))
    keep = keep_mask(activation, (4, 4), 0.7, 'nearest')
    assert keep.shape == (1, 1, 4, 4) and keep.dtype == torch.bool
    assert not keep[0, 0, 2:, 2:].any() and keep.sum() == 12
    x = torch.randn(1, 3, 4, 4)
    erased = erase(x, keep)
    assert torch.equal(erased[..., 2:, 2:], torch.zeros(1, 3, 2, 2))
    assert torch.equal(erased[..., :2, :], x[..., :2, :])
    assert erased_share(keep) == 0.25


def test_threshold_is_reached_by_what_equals_it():
    activation = torch.tensor([[[0., 0.5, 0.75, 1.]]])
    assert keep_mask(activation, (1, 4), 0.75, 'nearest').flatten().tolist() == [True, True, False, False]
    assert keep_mask(activation, (1, 4), 1., 'nearest').flatten().tolist() == [True, True, True, False]


def test_flat_map_erases_nothing():
    assert keep_mask(normalize_map(torch.full((2, 3, 3), 7.)), (9, 9)).all()


def test_unknown_interpolation():
    with pytest.raises(ValueError, match="'bicubic'.*'bilinear' or 'nearest'"):
        resize_map(torch.rand(1, 2, 2), (4, 4), 'bicubic')


def test_keep_mask_like_erases_the_highest_scores_and_the_same_share():
    keep = torch.rand(4, 1, 8, 8) > torch.tensor([0., 0.3, 0.9, 1.1]).view(4, 1, 1, 1)
    score = torch.randn(4, 8, 8)
    other = keep_mask_like(score, keep)
    assert torch.equal(other.flatten(1).sum(1), keep.flatten(1).sum(1))
    for s, k in zip(score, other[:, 0]):
        if k.any() and not k.all():
            assert s[~k].min() >= s[k].max()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64])
def test_erase_keeps_type_and_memory_format(dtype):
    x = torch.randn(2, 3, 8, 8).to(dtype).to(memory_format=torch.channels_last)
    erased = erase(x, torch.rand(2, 1, 8, 8) > 0.5)
    assert erased.dtype == dtype and erased.is_contiguous(memory_format=torch.channels_last)
