"""What a model costs at inference."""
from typing import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['multiply_adds']


@torch.inference_mode()
def multiply_adds(model: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-adds of one image through a model in evaluation: those of convolutions, linear layers and attention.

    Counted by running it on an image of zeros. Half of what torch counts as floating-point operations.

    Args:
        model: Any model; its mode is left as it was.
        input_size: Channels, height and width of the image.
    """
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    try:
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
    return counter.get_total_flops() // 2
