"""Puts models into the channels_last memory format if they can run in it."""
import torch
from torch import Tensor, nn

from .errors import sentence
from .modes import evaluating

__all__ = ['use_channels_last']


def use_channels_last(model: nn.Module, x: Tensor) -> str:
    """Put a model into channels_last, if it can run in it; most models run faster so.

    Args:
        model: A model on the device of `x`. It stays as it was if it cannot run in channels_last.
        x: Images `[B, C, H, W]` to try it on.

    Returns:
        '' if it can, else the reason. The result is also '' if the model fails on these images in any format.
    """
    try:
        model.to(memory_format=torch.channels_last)
        _run(model, x.contiguous(memory_format=torch.channels_last))
    except Exception as e:  # layers of any library may raise anything
        model.to(memory_format=torch.contiguous_format)
        try:
            _run(model, x)
        except Exception:
            return ''
        return sentence(e, 200)
    return ''


@torch.no_grad()  # not inference mode: a model may keep tensors for later training
def _run(model: nn.Module, x: Tensor) -> None:
    with evaluating(model):
        model(x)
