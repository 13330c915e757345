"""Finds the modules of a model that give maps `[B, C, h, w]`, by running the model on the meta device."""
import copy
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn

__all__ = ['trace_maps']


def trace_maps(
        model: nn.Module,
        size: Optional[Sequence[int]] = None,
) -> Tuple[Tensor, Dict[str, Any], nn.Module]:
    """Run `forward_features` of a copy of a timm model on torch's meta device, which has shapes but no numbers.

    Args:
        model: A timm model; it is not changed.
        size: Channels, height and width of the image; the model's own by default.

    Returns:
        The final feature map `[1, C, h, w]`, the output of each module by its name, and the copy. The outputs have
        autograd graphs to the parameters of the copy.

    Raises:
        ValueError: The model has no such map, as with vision transformers.
    """
    # deepcopy takes a tensor's copy from its memo if there is one, so no tensor is really copied
    memo: Dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p, device='meta'), requires_grad=p.is_floating_point())
            for p in model.parameters()}
    memo.update({id(b): torch.empty_like(b, device='meta') for b in model.buffers()})
    twin = copy.deepcopy(model, memo).eval()
    if hasattr(twin, 'set_grad_checkpointing'):
        twin.set_grad_checkpointing(False)  # it calls the members of a Sequential, not the Sequential
    outputs: Dict[str, Any] = {}
    for name, module in twin.named_modules():
        module.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
    size = get_model_input_config(model)['input_size'] if size is None else size
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    with torch.enable_grad():
        final = twin.forward_features(torch.zeros(1, *size, device='meta', dtype=dtype))
    channels_first = getattr(model, 'output_fmt', 'NCHW') == 'NCHW'
    if not torch.is_tensor(final) or final.ndim != 4 or not channels_first:
        raise ValueError(
            f'{type(model).__name__} does not end in a feature map [B, C, h, w], as convolutional networks do: take '
            'one that does, such as resnet18.')
    return final, outputs, twin
