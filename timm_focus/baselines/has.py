"""Hide-and-Seek (HaS): train on images with randomly hidden patches.

What it does
    Each training image gets a random patch size. The image is cut into a grid of that size, and each cell is
    hidden (set to the mean colour) with a fixed probability. The network cannot rely on one region, which is
    often missing, so it learns to use more of the picture. The loss is plain cross-entropy. At test time the image
    is left whole.

Hyper-parameters
    patch_sizes  (0, 16, 32, 44, 56)  cell sides in pixels for a 224-pixel image; one is drawn per image, uniformly;
                                      0 leaves the image whole. They scale with the image size.
    hide_prob    0.5                  probability of each cell to be hidden.

Cost
    One forward and one backward pass, as in plain training: no second pass, no parameters, no state. The masking is
    one pass over the input.

When not to use it
    When the evidence is one small object: if it is hidden, the image does not show its label. When other erasing
    (random erasing, CutMix, strong crops) already removes much of the input. When inputs are not normalised: zero is
    then black, and test images have no such black blocks.

Source
    K. K. Singh and Y. J. Lee, 'Hide-and-Seek: Forcing a Network to be Meticulous for Weakly-supervised Object and
    Action Localization', ICCV 2017; here as the baseline that 'See More for Scene' compares with.
"""
from typing import Optional, Sequence

import torch
from torch import Tensor, nn

__all__ = ['HideAndSeek', 'apply_hiding', 'hide_patches']

PATCH_SIZES = (0, 16, 32, 44, 56)
REFERENCE_SIDE = 224


def apply_hiding(x: Tensor, sizes: Tensor, hidden: Tensor) -> Tensor:
    """Hides given grid cells of each image; the deterministic half of `hide_patches`.

    Args:
        x: images `[B, C, H, W]`, normalised, so that 0 is the mean colour.
        sizes: integers `[B]`, side of the square grid cells of each image in its own pixels; 0 leaves the image whole.
            The grid starts at the top left corner; cells at the right and bottom edges are clipped.
        hidden: booleans `[B, R, S]`, whether the cell in row r and column s is hidden. R and S must reach the number
            of cells of the finest grid; values beyond an image's own grid are ignored.

    Returns:
        A new tensor like `x` (shape, dtype, device, memory format) with hidden cells set to 0 in all channels.
    """
    height, width = x.shape[-2:]
    # A whole image is one cell, so its indices stay inside `hidden`, and nothing is divided by zero.
    cell = torch.where(sizes > 0, sizes, max(height, width, 1))[:, None]
    rows = torch.arange(height, device=x.device) // cell
    cols = torch.arange(width, device=x.device) // cell
    image = torch.arange(len(x), device=x.device)[:, None, None]
    mask = hidden[image, rows[:, :, None], cols[:, None, :]] & (sizes > 0)[:, None, None]
    # Cloned first because the out-of-place masked_fill does not promise to keep channels_last.
    return x.clone().masked_fill_(mask[:, None], 0)


def hide_patches(
        x: Tensor,
        patch_sizes: Sequence[int] = PATCH_SIZES,
        hide_prob: float = 0.5,
        generator: Optional[torch.Generator] = None,
) -> Tensor:
    """Hides random patches of each image of a batch (Hide-and-Seek, Singh and Lee, ICCV 2017).

    Args:
        x: images `[B, C, H, W]` of a floating dtype, normalised, so that 0 is the mean colour.
        patch_sizes: cell sides in pixels for a 224-pixel image; one is drawn per image, uniformly; 0 leaves the
            image whole. They are scaled by the shorter side, `round(size * min(H, W) / 224)` and at least 1 pixel, so
            that cells are square in images of any shape.
        hide_prob: probability of each cell to be hidden, between 0 and 1.
        generator: source of the draws, for reproducible results; the default generator of the device if None. A CPU
            generator also serves images on another device and then draws the same patches there.

    Returns:
        A new tensor like `x` (shape, dtype, device, memory format); `x` is never changed.

    Raises:
        ValueError: if `x` is not a floating `[B, C, H, W]` tensor, `patch_sizes` is empty or has anything but integers
            from 0 up, or `hide_prob` lies outside [0, 1].
    """
    _check_settings(patch_sizes, hide_prob)
    if x.ndim != 4 or not x.is_floating_point():
        raise ValueError(f'x must be a floating [B, C, H, W] tensor, got {x.dtype} of shape {tuple(x.shape)}.')

    batch, _, height, width = x.shape
    shorter = min(height, width)
    sides = [max(1, round(size * shorter / REFERENCE_SIDE)) if size else 0 for size in patch_sizes]
    finest = min((side for side in sides if side), default=max(height, width, 1))
    grid = (batch, -(-height // finest), -(-width // finest))

    device = generator.device if generator is not None else x.device
    # A blocking copy of this small table would make the host wait for all queued work on the device.
    table = torch.tensor(sides).to(device, non_blocking=True)
    sizes = table[torch.randint(len(sides), (batch,), generator=generator, device=device)]
    hidden = torch.rand(grid, generator=generator, device=device) < hide_prob
    return apply_hiding(x, sizes.to(x.device, non_blocking=True), hidden.to(x.device, non_blocking=True))


class HideAndSeek(nn.Module):
    """`hide_patches` as a module: hides patches in training mode, returns its input unchanged in evaluation mode.

    Args:
        patch_sizes: cell sides in pixels for a 224-pixel image, 0 for a whole image; see `hide_patches`.
        hide_prob: probability of each cell to be hidden, between 0 and 1.

    Raises:
        ValueError: for settings that `hide_patches` does not allow.
    """

    def __init__(self, patch_sizes: Sequence[int] = PATCH_SIZES, hide_prob: float = 0.5):
        super().__init__()
        _check_settings(patch_sizes, hide_prob)
        self.patch_sizes = tuple(patch_sizes)
        self.hide_prob = hide_prob

    def forward(self, x: Tensor, generator: Optional[torch.Generator] = None) -> Tensor:
        """Images `[B, C, H, W]` in, images of the same shape out; `generator` as in `hide_patches`."""
        if not self.training:
            return x
        return hide_patches(x, self.patch_sizes, self.hide_prob, generator)

    def extra_repr(self) -> str:
        return f'patch_sizes={self.patch_sizes}, hide_prob={self.hide_prob}'


def _check_settings(patch_sizes: Sequence[int], hide_prob: float) -> None:
    sizes = tuple(patch_sizes) if isinstance(patch_sizes, Sequence) else ()
    # bool is a subclass of int, but True as a patch size is surely a mistake.
    if not sizes or any(not isinstance(size, int) or isinstance(size, bool) or size < 0 for size in sizes):
        raise ValueError(f'patch_sizes must be one or more integers from 0 up, got {patch_sizes!r}.')
    if not 0 <= hide_prob <= 1:
        raise ValueError(f'hide_prob must lie between 0 and 1, got {hide_prob!r}.')
