"""Models on the meta device: shapes and counts without any computation."""
import copy
from typing import Any, Dict, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ['ShapesAlone', 'meta_twin', 'run_on_meta']

# operations on one or two floating-point tensors; the result has the shape of the first, or is the first (with _)
ALIKE = {'add', 'gelu', 'hardsigmoid', 'hardswish', 'mul', 'relu', 'sigmoid', 'silu'}
NORMS = {'native_batch_norm', 'native_layer_norm'}


def meta_twin(model: nn.Module) -> nn.Module:
    """Copy a model to torch's meta device, in evaluation mode and without gradients.

    The copy takes no memory, whatever the size of the model; the model itself is not changed.
    """
    # deepcopy takes a tensor's copy from its memo if there is one
    memo: Dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device='meta'), requires_grad=False) for p in model.parameters()}
    memo.update({id(b): torch.empty_like(b, device='meta') for b in model.buffers()})
    for module in model.modules():  # tensors that are neither parameters nor buffers
        memo.update({id(t): torch.empty_like(t, device='meta') for t in vars(module).values()
                     if torch.is_tensor(t) and id(t) not in memo})
    twin = copy.deepcopy(model, memo).eval()
    if hasattr(twin, 'set_grad_checkpointing'):
        twin.set_grad_checkpointing(False)  # type: ignore[operator]  # of a timm model, which has it
    return twin


def run_on_meta(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Run an operation of torch.ops.aten on meta tensors, faster than torch does.

    Torch works out the shapes of most operations in Python, which makes elementwise ones as slow as convolutions. Where
    the shape is obvious, this function gives it directly.
    """
    name = func._schema.name.removeprefix('aten::')
    if name in NORMS and args[0].dtype == torch.float32:
        x, n = args[0], len(args[1] or ()) if name == 'native_layer_norm' else 0
        statistics = [*x.shape[:-n], *[1] * n] if n else [x.shape[1]]
        return torch.empty_like(x), x.new_empty(statistics), x.new_empty(statistics)
    if name.removesuffix('_') in ALIKE and not kwargs and args[0].is_floating_point():
        others = [t for t in args[1:] if isinstance(t, Tensor)]
        if all(t.dtype == args[0].dtype and (t.shape == args[0].shape or not t.ndim) for t in others):
            return args[0] if name.endswith('_') else torch.empty_like(args[0])
    return func(*args, **kwargs)


class ShapesAlone(TorchDispatchMode):
    """A mode in which operations on meta tensors go through `run_on_meta`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run_on_meta(func, args, kwargs or {})
