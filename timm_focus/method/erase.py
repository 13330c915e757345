"""From a map to an erased image, as pure functions of tensors ("See More for Scene", section 4, Eq. 2).

    I* = M_B * I,   M_B = (M < gamma)

The paper calls M_B the regions to erase and multiplies the image by it; what is meant is that the high regions go, so
the mask here says what is kept. On an image normalised with mean and std, 0 is the mean colour of the data set.
"""
from typing import Sequence

import torch.nn.functional as F
from torch import Tensor

__all__ = ['erase', 'erased_share', 'keep_mask', 'keep_mask_like', 'resize_map']


def resize_map(activation: Tensor, size: Sequence[int], interpolation: str = 'bilinear') -> Tensor:
    """Enlarge maps `[B, h, w]` to `size` (H, W): `[B, H, W]`. `interpolation` is 'bilinear' or 'nearest'."""
    if interpolation == 'bilinear':
        return F.interpolate(activation[:, None], size, mode='bilinear', align_corners=False)[:, 0]
    if interpolation == 'nearest':
        return F.interpolate(activation[:, None], size, mode='nearest-exact')[:, 0]
    raise ValueError(f"Unknown interpolation {interpolation!r} of the map: choose 'bilinear' or 'nearest'.")


def keep_mask(
        activation: Tensor,
        size: Sequence[int],
        threshold: float = 0.7,
        interpolation: str = 'bilinear',
) -> Tensor:
    """Mask of what stays of an image: enlarge the normalised map, then keep where it is below the threshold (Eq. 2).

    Args:
        activation: Maps in 0 to 1, `[B, h, w]`, of `normalize_map`. A flat map, all 0, keeps everything.
        size: Height and width of the image.
        threshold: gamma of Eq. 2, in (0, 1].
        interpolation: How the map is enlarged, 'bilinear' or 'nearest'.

    Returns:
        `[B, 1, H, W]` bool, True where the image is kept.
    """
    return (resize_map(activation, size, interpolation) < threshold)[:, None]


def keep_mask_like(score: Tensor, keep: Tensor) -> Tensor:
    """Mask that erases each image's highest scores, exactly as many pixels as another mask erases of it.

    The control for the class activation map: what is erased changes, how much is erased does not.

    Args:
        score: What to erase first, `[B, H, W]`.
        keep: The mask to match in share, `[B, 1, H, W]` bool.

    Returns:
        `[B, 1, H, W]` bool, True where the image is kept.
    """
    n_erased = (~keep).flatten(1).sum(1, keepdim=True)
    rank = score.flatten(1).argsort(1, descending=True).argsort(1)
    return (rank >= n_erased).view_as(keep)


def erase(x: Tensor, keep: Tensor) -> Tensor:
    """Erased image I* = M_B * I (Eq. 2): `x` `[B, C, H, W]` where `keep` `[B, 1, H, W]`, 0 elsewhere."""
    return x * keep.to(x.dtype)


def erased_share(keep: Tensor) -> Tensor:
    """Mean share of the pixels that a mask `[B, 1, H, W]` erases: a scalar tensor in 0 to 1."""
    return 1 - keep.float().mean()
