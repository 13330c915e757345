"""From a map to an erased image, as pure functions of tensors ("See More for Scene", section 4, Eq. 2).

    I* = M_B * I,   M_B = (M < gamma)

The paper calls M_B the regions to erase, and multiplies the image by it. It means that high regions are erased, so here
the mask says what is kept. On an image normalised with mean and std, 0 is the mean colour of the data set.
"""
from typing import Sequence, Union

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    'erase', 'erased_share', 'keep_lowest', 'keep_mask', 'keep_mask_like', 'keep_mask_share', 'random_grid',
    'resize_image', 'resize_map']

GRID = 7  # cells along the shorter side: of 32 pixels in an image of 224


def resize_map(activation: Tensor, size: Sequence[int], interpolation: str = 'bilinear') -> Tensor:
    """Enlarge maps `[B, h, w]` to `[B, H, W]`, given `size` (H, W). `interpolation` is 'bilinear' or 'nearest'."""
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
    """Return the mask of what is kept: where the enlarged normalised map is below the threshold (Eq. 2).

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
    """Return a mask that erases the highest scores of each image: exactly as many pixels as another mask erases.

    This is the control for the class activation map: it erases other regions, and equally much.

    Args:
        score: Scores, `[B, H, W]`; the highest are erased.
        keep: The mask to match, `[B, 1, H, W]` bool.

    Returns:
        `[B, 1, H, W]` bool, True where the image is kept.
    """
    return keep_lowest(score, (~keep).flatten(1).sum(1, keepdim=True))


def keep_lowest(score: Tensor, n_erased: Union[int, Tensor]) -> Tensor:
    """Return a mask `[B, 1, H, W]` that erases the n highest scores of each image; n is a number or `[B, 1]`."""
    rank = score.flatten(1).argsort(1, descending=True).argsort(1)
    return (rank >= n_erased).view_as(score)[:, None]


def keep_mask_share(score: Tensor, share: float) -> Tensor:
    """Return a mask that erases the same share of each image, where its score is highest.

    Args:
        score: Scores, `[B, H, W]`. Of an image whose scores are all equal nothing is erased.
        share: Share of the pixels to erase.

    Returns:
        `[B, 1, H, W]` bool, True where the image is kept.
    """
    flat = score.flatten(1).amax(1) == score.flatten(1).amin(1)
    return keep_lowest(score, round(share * score[0].numel())) | flat[:, None, None, None]


def random_grid(n: int, size: Sequence[int], share: float, device: torch.device) -> Tensor:
    """Return a mask that erases random cells of a grid, equally many of each image, as MaskSub does.

    Args:
        n: Number of images.
        size: Height and width of the images; the shorter side has 7 cells.
        share: Share of the cells to erase.
        device: Device on which the mask is drawn.

    Returns:
        `[n, 1, H, W]` bool, True where the image is kept.
    """
    rows, columns = (max(1, round(GRID * side / min(size))) for side in size)
    keep = keep_lowest(torch.rand(n, rows, columns, device=device), round(share * rows * columns))
    return F.interpolate(keep.float(), tuple(size), mode='nearest-exact') > 0


def resize_image(x: Tensor, size: Sequence[int]) -> Tensor:
    """Return images `[B, C, H, W]` at a smaller size, without aliasing, or unchanged if they have that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode='bilinear', antialias=True, align_corners=False)


def erase(x: Tensor, keep: Tensor) -> Tensor:
    """Return the erased image I* = M_B * I (Eq. 2): `x` `[B, C, H, W]` where `keep` `[B, 1, H, W]`, else 0."""
    return x * keep.to(x.dtype)


def erased_share(keep: Tensor) -> Tensor:
    """Return the mean share of the pixels that a mask `[B, 1, H, W]` erases, a scalar tensor in 0 to 1."""
    return 1 - keep.float().mean()
