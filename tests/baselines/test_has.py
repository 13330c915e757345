import math

import pytest
import torch

from timm_focus.baselines import HideAndSeek, apply_hiding, has, hide_patches

REAL_SIZES = (0, 16, 32, 44, 56)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hide_slowly(x, sizes, hidden):
    out = x.clone()
    height, width = x.shape[2:]
    for b in range(len(x)):
        side = int(sizes[b])
        if side == 0:
            continue
        for r, top in enumerate(range(0, height, side)):
            for s, left in enumerate(range(0, width, side)):
                if hidden[b, r, s]:
                    out[b, :, top:top + side, left:left + side] = 0
    return out


@pytest.mark.parametrize('shape', [(6, 3, 24, 24), (6, 3, 17, 30), (6, 1, 31, 8), (6, 2, 1, 1), (6, 3, 1, 9)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_matches_a_loop_over_cells(shape, dtype):
    x = torch.randn(shape, generator=seeded()).to(dtype)
    sizes = torch.tensor([0, 1, 3, 7, 24, 100])
    hidden = torch.rand(6, shape[2], shape[3], generator=seeded(1)) < 0.5
    got = apply_hiding(x, sizes, hidden)
    assert got.dtype == dtype
    assert torch.equal(got, hide_slowly(x, sizes, hidden))


@pytest.mark.parametrize('height, width', [(224, 224), (64, 64), (96, 60), (60, 96), (5, 5), (1, 1), (1, 40)])
def test_draws_and_scaling_match_the_definition(height, width):
    x = torch.randn(16, 3, height, width, generator=seeded())
    got = hide_patches(x, generator=seeded(7))

    sides = [max(1, round(size * min(height, width) / 224)) if size else 0 for size in REAL_SIZES]
    finest = min(side for side in sides if side)
    draws = seeded(7)
    sizes = torch.tensor(sides)[torch.randint(5, (16,), generator=draws)]
    hidden = torch.rand(16, math.ceil(height / finest), math.ceil(width / finest), generator=draws) < 0.5
    assert torch.equal(got, hide_slowly(x, sizes, hidden))


@pytest.mark.slow
def test_patch_sizes_are_drawn_evenly_and_cells_by_probability(monkeypatch):
    drawn = {}
    monkeypatch.setattr(has, 'apply_hiding', lambda x, sizes, hidden: drawn.update(sizes=sizes, hidden=hidden))
    has.hide_patches(torch.ones(5000, 1, 224, 224), hide_prob=0.3, generator=seeded(3))
    for size in REAL_SIZES:
        # Five standard deviations of a share of one fifth of 5000.
        assert abs((drawn['sizes'] == size).float().mean().item() - 0.2) < 0.028
    assert drawn['hidden'].shape == (5000, 14, 14)
    assert abs(drawn['hidden'].float().mean().item() - 0.3) < 0.003
    per_cell = drawn['hidden'].float().mean(0)
    assert (per_cell - 0.3).abs().max().item() < 0.033


@pytest.mark.parametrize('hide_prob', [0.0, 0.25, 0.5, 1.0])
def test_hidden_share(hide_prob):
    out = hide_patches(torch.ones(400, 1, 64, 64), (16,), hide_prob, seeded(4))
    share = (out == 0).float().mean().item()
    # 400 images of 169 cells: three standard deviations are below 0.006, the clipped cells add little.
    assert abs(share - hide_prob) < 0.01


def test_images_and_cells_are_drawn_independently():
    out = hide_patches(torch.ones(2000, 1, 64, 64), (32,), 0.5, seeded(5))[:, 0]
    first, beside, below = out[:, 0, 0], out[:, 0, 12], out[:, 12, 0]
    for other in (beside, below, first.roll(1)):
        assert abs((first * other).mean().item() - 0.25) < 0.04


def test_all_channels_are_hidden_together():
    out = hide_patches(torch.ones(32, 3, 40, 40), generator=seeded())
    assert torch.equal(out[:, 0], out[:, 1]) and torch.equal(out[:, 0], out[:, 2])


def test_hidden_nan_becomes_zero():
    out = hide_patches(torch.full((2, 3, 32, 32), float('nan')), (16,), 1.0)
    assert torch.equal(out, torch.zeros(2, 3, 32, 32))


def test_size_zero_leaves_the_image_whole():
    x = torch.randn(4, 3, 20, 30)
    out = hide_patches(x, (0,), 1.0)
    assert torch.equal(out, x) and out.data_ptr() != x.data_ptr()


def test_never_in_place():
    x = torch.randn(8, 3, 32, 32)
    before = x.clone()
    hide_patches(x, (16,), 1.0)
    assert torch.equal(x, before)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept(dtype):
    x = torch.randn(4, 3, 32, 48).to(dtype)
    plain = hide_patches(x, generator=seeded(2))
    last = hide_patches(x.to(memory_format=torch.channels_last), generator=seeded(2))
    assert plain.dtype == last.dtype == dtype
    assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


def test_generator_reproduces_and_leaves_the_global_one_alone():
    x = torch.randn(16, 3, 32, 32)
    state = torch.get_rng_state()
    one, same, other = (hide_patches(x, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_gradient_passes_only_where_the_image_is_seen():
    x = torch.ones(4, 3, 32, 32, requires_grad=True)
    out = hide_patches(x, (56,), 0.5, seeded(1))
    out.sum().backward()
    assert torch.equal(x.grad, out.detach())


def test_empty_batch():
    assert hide_patches(torch.zeros(0, 3, 32, 32)).shape == (0, 3, 32, 32)


def test_module_hides_in_training_only():
    x = torch.randn(16, 3, 32, 32)
    module = HideAndSeek()
    assert torch.equal(module(x, seeded(6)), hide_patches(x, generator=seeded(6)))
    assert not torch.equal(module(x, seeded(6)), x)
    assert module.eval()(x) is x
    assert not list(module.state_dict())
    assert 'hide_prob=0.5' in repr(module)


def test_module_accepts_settings():
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(HideAndSeek([16], 1.0)(x), torch.zeros_like(x))


@pytest.mark.parametrize('sizes', [(), (-1,), (16.0,), (True,), ('16',), 16, None, '16'])
def test_bad_patch_sizes(sizes):
    for call in (lambda: hide_patches(torch.zeros(1, 3, 8, 8), sizes), lambda: HideAndSeek(sizes)):
        with pytest.raises(ValueError, match='patch_sizes must be one or more integers from 0 up, got'):
            call()


@pytest.mark.parametrize('prob', [-0.1, 1.1, float('nan')])
def test_bad_hide_prob(prob):
    for call in (lambda: hide_patches(torch.zeros(1, 3, 8, 8), hide_prob=prob), lambda: HideAndSeek(hide_prob=prob)):
        with pytest.raises(ValueError, match='hide_prob must lie between 0 and 1, got'):
            call()


@pytest.mark.parametrize('x', [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)])
def test_bad_images(x):
    with pytest.raises(ValueError, match=r'floating \[B, C, H, W\] tensor, got torch'):
        hide_patches(x)
