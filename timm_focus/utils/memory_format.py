"""Puts models into the channels_last memory format if they can run in it."""
from typing import Optional

import torch
from torch import Tensor, nn

from .errors import sentence
from .modes import evaluating

__all__ = ['use_channels_last']


def use_channels_last(model: nn.Module, x: Tensor) -> str:
    """Put a model into channels_last, if it can run in it; most models run faster so.

    Args:
        model: A model on the device of `x`. It stays as it was if it cannot run in channels_last, or, in training mode,
            if it cannot be trained in it.
        x: Images `[B, C, H, W]` to try it on.

    Returns:
        '' if it can, else the reason. The result is also '' if the model fails on these images in any format.
    """
    if model.training and x.device.type == 'cpu':
        name = _layer_that_crashes(model)
        if name is not None:
            return (f'the layer {name} is a 1 x 1 convolution of few channels with a stride, whose gradient torch '
                    'computes wrongly on a CPU in this format, or crashes')
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


def _layer_that_crashes(model: nn.Module) -> Optional[str]:
    """Name of the first convolution that oneDNN cannot train in channels_last, None if there is none.

    Its gradient of the weights writes past its memory (https://github.com/uxlfoundation/oneDNN/issues/6035) where a
    1 x 1 convolution has a stride and fewer input channels than a block: 8 with AVX2, 16 with AVX-512. FastViT,
    MobileOne and RepVGG begin with one.
    """
    for name, layer in model.named_modules():
        if (isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and max(layer.stride) > 1
                and 1 < layer.in_channels // layer.groups < 16):
            return name
    return None
