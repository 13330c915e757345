"""The simple scheme's crop, and the change to the complex scheme ("See More for Scene", section 3 and appendix).

Everything else is timm's.
"""
import contextlib
from typing import Any, Callable, Dict, Iterator, Sequence

import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torchvision import transforms

__all__ = ['RESIZE_RATIO', 'ComplexLater', 'fit_channels', 'posterizing', 'use_simple_crop']

RESIZE_RATIO = 8 / 7  # 256 for 224


def simple_crop(size: Sequence[int], interpolation: str = 'bilinear') -> Callable:
    """Resize the short side to 8/7 of the input size, then crop at random (256 and 224 in the paper).

    Args:
        size: Height and width of the input.
        interpolation: Interpolation of the resizing.
    """
    height, width = size[-2:]
    resized = (round(height * RESIZE_RATIO), round(width * RESIZE_RATIO))
    return transforms.Compose([
        ResizeKeepRatio(resized, longest=0., interpolation=interpolation),
        transforms.RandomCrop((height, width)),
    ])


def use_simple_crop(transform: transforms.Compose, size: Sequence[int], interpolation: str = 'bilinear') -> None:
    """Replace the random resized crop of a timm transform by the simple scheme's crop, in place.

    Raises:
        ValueError: The transform has no random resized crop.
    """
    for i, step in enumerate(transform.transforms):
        if isinstance(step, RandomResizedCropAndInterpolation):
            transform.transforms[i] = simple_crop(size, interpolation)
            return
    raise ValueError('The transform has no random resized crop that the simple scheme could replace.')


class ComplexLater:
    """The simple scheme's transform, or the complex one's: which, is chosen for all worker processes at once.

    Args:
        complex: timm's transform of the complex scheme.
        size: Height and width of the input.
        interpolation: Interpolation of the resizing.
        jitter: Whether the simple scheme keeps the colour jitter.

    Raises:
        ValueError: The transform has no random resized crop.
    """

    def __init__(
            self,
            complex: transforms.Compose,
            size: Sequence[int],
            interpolation: str = 'bilinear',
            jitter: bool = False,
    ):
        self.complex = complex
        self.simple = transforms.Compose(list(complex.transforms) if jitter else [
            _without_jitter(step) for step in complex.transforms])
        use_simple_crop(self.simple, size, interpolation)
        self._is_complex = torch.zeros((), dtype=torch.bool).share_memory_()

    def set_complex(self, enable: bool = True) -> None:
        """Choose the complex scheme, or the simple one again."""
        self._is_complex.fill_(enable)

    def __call__(self, image: Any) -> Any:
        return (self.complex if self._is_complex else self.simple)(image)


def _without_jitter(step: Any) -> Any:
    """Return a colour jitter that changes nothing and draws as many numbers as the simple scheme's; else the step."""
    if isinstance(step, transforms.RandomApply) and isinstance(step.transforms[0], transforms.ColorJitter):
        return transforms.RandomApply([transforms.ColorJitter()], step.p)
    return transforms.ColorJitter() if isinstance(step, transforms.ColorJitter) else step


def posterize(image: Image.Image, bits_to_keep: int, **kwargs: Any) -> Image.Image:
    """timm's posterize that gives a black image for 0 bits, as before Pillow 13, which refuses them."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **kwargs)


@contextlib.contextmanager
def posterizing() -> Iterator[None]:
    """Let policies that timm makes meanwhile posterize to 0 bits, as v0 and rand-m9-mstd0.5-inc1 sometimes do."""
    ours = {name: posterize for name, op in auto_augment.NAME_TO_OP.items() if op is auto_augment.posterize}
    auto_augment.NAME_TO_OP.update(ours)
    try:
        yield
    finally:
        auto_augment.NAME_TO_OP.update(dict.fromkeys(ours, auto_augment.posterize))


def fit_channels(data_config: Dict[str, Any], channels: int) -> None:
    """Change a timm data configuration to this number of channels, in place.

    A mean or standard deviation with another number of channels is replaced by its average, as in timm's loaders.
    """
    data_config['input_size'] = (channels, *data_config['input_size'][1:])
    for key in ('mean', 'std'):
        values = data_config[key]
        if len(values) != channels:
            data_config[key] = (sum(values) / len(values),) * channels
