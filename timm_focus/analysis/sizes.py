"""Finds image sizes that a model accepts, and that give a last feature map fine enough to be useful."""
from typing import Optional, Sequence, Set, Tuple

import timm
import torch
from timm.models import get_model_args, get_model_input_config, resolve_model_input_args
from torch import Tensor, nn

from timm_focus.utils.errors import sentence
from timm_focus.utils.meta import meta_twin
from timm_focus.utils.modes import evaluating

from .focus_area import last_map, plain_model

__all__ = ['FINE', 'check_size', 'find_size']

FINE = 4  # positions along a side of a map, below which a share of them says little
# models may need image sides that are multiples of these: strides of convolutions, patches, windows of patches
STEPS = (2, 4, 7, 8, 12, 14, 16, 24, 28, 32, 48, 56, 64, 96, 112, 128, 192, 224, 256)


def check_size(
        model: nn.Module,
        input_size: Sequence[int],
        name: Optional[str] = None,
        anew: bool = True,
) -> Tensor:
    """Check that a model runs on images of this size: return its output for an image of zeros, in evaluation.

    Args:
        model: Any model, on any device.
        input_size: Channels, height and width of the images.
        name: Name of the model in messages; by default its class.
        anew: See `find_size`, which finds a nearby size.

    Raises:
        ValueError: The model cannot be run; the message gives a nearby size that works, if one is found.
    """
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    x = torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype)
    with evaluating(model), torch.no_grad():
        try:
            return plain_model(model)(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # whatever the layers of any library say
            near = find_size(model, input_size, anew=anew)
            advice = f'{near[0]} x {near[1]} works.' if near else 'Give another size, such as the one it is made for.'
            said = sentence(e, 200).rstrip('.')
            raise ValueError(f'{name or type(model).__name__} cannot be run on images of {input_size[1]} x '
                             f'{input_size[2]} ({said}): {advice}') from e


def find_size(
        model: nn.Module,
        input_size: Sequence[int],
        least: int = 1,
        anew: bool = True,
) -> Optional[Tuple[int, int]]:
    """Find the nearest height and width for which a model gives a last feature map of some size; None if none is found.

    Likely sizes are tried, the nearest first, on models on the meta device, so nothing is computed.

    Args:
        model: Any model.
        input_size: Channels, height and width.
        least: Positions that the last map should have along each side; above 1, only larger images are tried.
        anew: Whether a timm model is made anew for each size, as `img_size` would make it; else it is taken as it is.
    """
    model = plain_model(model)
    channels, *size = input_size
    for candidate in _candidates(model, size, least):
        try:
            with torch.no_grad():
                twin = _resized(model, candidate) if anew else meta_twin(model)
                x = torch.zeros(1, channels, *candidate, device='meta', dtype=next(twin.parameters()).dtype)
                twin(x)
                if least == 1 or min(last_map(twin, x)[0].shape[-2:]) >= least:
                    return candidate
        except Exception:  # layers of any library may raise anything: the size does not work
            pass
    return None


def _candidates(model: nn.Module, size: Sequence[int], least: int) -> Sequence[Tuple[int, int]]:
    """Sizes to try, the nearest first."""
    height, width = size
    found: Set[Tuple[int, int]] = {(times * height, times * width) for times in (2, 4, 8)}
    if getattr(model, 'pretrained_cfg', None):
        _, *own = get_model_input_config(model)['input_size']
        found.add((own[0], own[1]))
    for step in STEPS:
        found.add((height // step * step, width // step * step))
        for more in range(1, 2 * least):
            found.add(((height // step + more) * step, (width // step + more) * step))
    found.discard((height, width))
    fitting = [c for c in found if min(c) > 0 and (least == 1 or min(a - b for a, b in zip(c, size)) >= 0)]
    # among larger images, multiples of 32 come first: most networks divide them evenly
    return sorted(fitting, key=lambda c: (least > 1 and any(side % 32 for side in c),
                                        sum(abs(a - b) for a, b in zip(c, size)), c))


def _resized(model: nn.Module, size: Tuple[int, int]) -> nn.Module:
    """A timm model made for another size, or a copy of another library's model, on the meta device."""
    name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if not name or not timm.is_model(name):
        return meta_twin(model)
    kwargs = {k: v for k, v in get_model_args(model).items() if k != 'img_size'}
    with torch.device('meta'):
        return timm.create_model(**resolve_model_input_args(name, dict(img_size=size), **kwargs)).eval()
