"""The order of a model's numbers in memory."""
import torch
from torch import Tensor, nn

from .errors import sentence
from .modes import evaluating

__all__ = ['use_channels_last']


def use_channels_last(model: nn.Module, x: Tensor) -> str:
    """Keep a model's numbers with the channels last, which most models compute faster with, if it can be run so.

    Args:
        model: On the device of `x`; left as it was if it cannot.
        x: Images `[B, C, H, W]` to try it on.

    Returns:
        '' if it can, else why not, which a model that cannot be run on these images at all does not tell.
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
