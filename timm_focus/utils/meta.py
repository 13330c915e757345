"""Models without numbers: what shapes they give and what they count is known without computing anything."""
import copy

import torch
from torch import nn

__all__ = ['meta_twin']


def meta_twin(model: nn.Module) -> nn.Module:
    """A copy of a model on torch's meta device, in evaluation, of which nothing asks for a gradient.

    It takes no memory, whatever the size of the model, which is left alone.
    """
    # by the memo, deepcopy takes these for the tensors' copies, and none is held twice
    memo = {id(p): nn.Parameter(torch.empty_like(p, device='meta'), requires_grad=False) for p in model.parameters()}
    memo.update({id(b): torch.empty_like(b, device='meta') for b in model.buffers()})
    for module in model.modules():  # tensors that are neither
        memo.update({id(t): torch.empty_like(t, device='meta') for t in vars(module).values()
                     if torch.is_tensor(t) and id(t) not in memo})
    twin = copy.deepcopy(model, memo).eval()
    if hasattr(twin, 'set_grad_checkpointing'):
        twin.set_grad_checkpointing(False)
    return twin
