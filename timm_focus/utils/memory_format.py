"""channels_last, where a model can run in it."""
import torch
from torch import Tensor, nn

from .errors import sentence
from .modes import evaluating

__all__ = ['use_channels_last']


def use_channels_last(model: nn.Module, x: Tensor) -> str:
    """Put a model into channels_last, in which most models run faster, if it can run in it.

    Args:
        model: On the device of `x`. It is left as it was if it cannot run in channels_last.
        x: Images `[B, C, H, W]` to try it on.

    Returns:
        '' if it can, else why not. A model that fails on these images in any format gives '', too.
    """
    try:
        model.to(memory_format=torch.channels_last)
        _run(model, x.contiguous(memory_format=torch.channels_last))
    except Exception as e:  # whatever the layers of any library say
        model.to(memory_format=torch.contiguous_format)
        try:
            _run(model, x)
        except Exception:
            return ''
        return sentence(e, 200)
    return ''


@torch.no_grad()  # not in inference mode, whose tensors a model may keep
def _run(model: nn.Module, x: Tensor) -> None:
    with evaluating(model):
        model(x)
