"""Which models take images of another size than their own."""
from typing import Any, Tuple

from timm.layers import to_2tuple

__all__ = ['check_other_sizes', 'patches']


def check_other_sizes(backbone: Any) -> None:
    """Check that a model takes images of other sizes.

    Raises:
        ValueError: Its size is fixed, by a position embedding or windows.
    """
    cfg = getattr(backbone, 'pretrained_cfg', None) or {}
    if getattr(getattr(backbone, 'patch_embed', None), 'strict_img_size', cfg.get('fixed_input_size', False)):
        raise ValueError(f'{type(backbone).__name__} takes images of one size, and so its erased images: leave out '
                         'focus_size, or make a model that takes any (dynamic_img_size=True, where it has that).')


def patches(backbone: Any) -> Tuple[int, int]:
    """Return the size of the units that an image consists of: patches of a transformer, else single pixels."""
    height, width = to_2tuple(getattr(getattr(backbone, 'patch_embed', None), 'patch_size', 1))
    return height, width
