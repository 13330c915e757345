"""Counts what a model costs at inference."""
from typing import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_focus.utils.meta import ShapesAlone, meta_twin

__all__ = ['multiply_adds']


@torch.no_grad()
def multiply_adds(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-adds of one image through a model in evaluation: those of convolutions, linear layers and attention.

    Half of the floating-point operations that torch counts. Nothing is computed: a copy on the meta device is run.

    Args:
        model: Any model, on any device; it is left alone.
        input_size: Channels, height and width of the image.
    """
    twin = meta_twin(model)
    dtype = next(p.dtype for p in twin.parameters() if p.is_floating_point())
    with ShapesAlone(), FlopCounterMode(display=False) as counter:
        twin(torch.zeros(1, *input_size, device='meta', dtype=dtype))
    return counter.get_total_flops() // 2
