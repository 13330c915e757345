"""Counts what a model costs at inference."""
from typing import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_focus.utils.meta import ShapesAlone, meta_twin

__all__ = ['multiply_adds']


@torch.no_grad()
def multiply_adds(model: nn.Module, input_size: Sequence[int]) -> int:
    """Count a model's multiply-adds for one image in evaluation: convolutions, linear layers and attention.

    The count is half of the floating-point operations that torch counts. A copy on the meta device is run, which
    computes nothing.

    Args:
        model: Any model, on any device; it is left alone.
        input_size: Channels, height and width of the image.
    """
    twin = meta_twin(model)
    dtype = next(p.dtype for p in twin.parameters() if p.is_floating_point())
    with ShapesAlone(), FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, *input_size, device='meta', dtype=dtype))
    return counter.get_total_flops() // 2
