"""The start of a new backbone whose images are erased.

An erased patch is exactly 0, so the first convolution gives its bias alone there. Where that is 0, as timm begins
ConvNeXt, every channel of that place is 0, and so is it for the next layers, whose own branches begin near 0
(LayerScale). A LayerNorm of equal channels divides by the root of its epsilon, 1e-3, and its gradient is 1e3 times as
large; the four of a ConvNeXt, one after another, made it 2e9 at the stem's bias, where others have 6.
"""
import math

import torch
from torch import nn

__all__ = ['break_ties']


@torch.no_grad()
def break_ties(backbone: nn.Module) -> str:
    """Draw the bias of the first convolution as torch does, where it is 0 and a LayerNorm would have nothing to divide.

    Args:
        backbone: A model with random weights, in place.

    Returns:
        The name of the convolution, '' where nothing is to be done.
    """
    if not any(isinstance(m, nn.LayerNorm) for m in backbone.modules()):
        return ''
    name, first = next(((name, m) for name, m in backbone.named_modules() if isinstance(m, nn.Conv2d)), ('', None))
    if first is None or first.bias is None or first.bias.any():
        return ''
    bound = 1 / math.sqrt(first.weight[0].numel())
    nn.init.uniform_(first.bias, -bound, bound)
    return name
