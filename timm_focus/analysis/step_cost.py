"""Counts what a training step costs, independent of any clock: operations, bytes kept for backward, peak memory.

    cost = step_cost(model, lambda: task(images, labels)['loss'])
"""
import weakref
from typing import Any, Callable, Dict, List, NamedTuple, Set

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['StepCost', 'peak_bytes', 'saved_bytes', 'step_cost', 'training_flops']


class StepCost(NamedTuple):
    """Counts of one training step, forward and backward.

    Attributes:
        flops: Floating-point operations of convolutions, linear layers and attention, as torch counts them.
        saved_bytes: Bytes that autograd keeps between forward and backward.
        peak_bytes: Most bytes of activations alive at a time.
    """
    flops: int
    saved_bytes: int
    peak_bytes: int


def step_cost(model: nn.Module, loss_fn: Callable[[], Tensor]) -> StepCost:
    """Count the cost of a training step. The step runs three times; the model's gradients are None afterwards.

    Args:
        model: The model in training.
        loss_fn: Computes the loss to call backward on, anew each time.
    """
    return StepCost(
        training_flops(model, loss_fn), saved_bytes(model, loss_fn), peak_bytes(model, loss_fn))


def training_flops(model: nn.Module, loss_fn: Callable[[], Tensor]) -> int:
    """Floating-point operations of a training step, forward and backward; see `step_cost`."""
    with FlopCounterMode(display=False) as counter:
        loss_fn().backward()
    model.zero_grad()
    return counter.get_total_flops()


def saved_bytes(model: nn.Module, loss_fn: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps for backward, each storage once, without the model's parameters and buffers.

    Tensors that activation checkpointing keeps in place of activations are not counted; `peak_bytes` counts all.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_fn()
    total = sum(kept.values())  # before anything is freed, since its address could be reused
    del loss
    return total


class _Live(TorchDispatchMode):
    """Tracks the bytes of storages that operations made and that are still alive, and their peak.

    It leaves out gradients of parameters, and tensors computed from these alone, such as the sum over two passes.
    """

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.pending = 0, 0, 0
        self.counted: Dict[int, int] = {}
        self.known: Dict[int, Any] = {}  # weak references by id: a storage lives as long as its memory
        self.gradients: Set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self._add(tensor.untyped_storage(), bool(given) and given <= self.gradients)
        return result

    def _add(self, storage: Any, is_gradient: bool) -> None:
        key = id(storage)
        if key in self.known:
            return
        self.known[key] = weakref.ref(storage, lambda _: self._freed(key))
        if is_gradient:
            self.gradients.add(key)
        else:
            self.counted[key] = storage.nbytes()
            self._change(storage.nbytes())

    def _freed(self, key: int) -> None:
        del self.known[key]
        self.gradients.discard(key)
        self._change(-self.counted.pop(key, 0))

    def _change(self, n: int) -> None:
        # the peak is updated one step late, since the last tensor may turn out to be the gradient of a parameter
        if n > 0:
            self.peak, self.pending = max(self.peak, self.pending, self.now), 0
        else:
            self.pending = max(self.pending, self.now)
        self.now += n

    def leave_out(self, tensor: Tensor) -> None:
        """Note that a tensor is the gradient of a parameter."""
        key = id(tensor.untyped_storage())
        self.gradients.add(key)
        size = self.counted.pop(key, 0)
        self.now -= size
        self.pending -= size


def peak_bytes(model: nn.Module, loss_fn: Callable[[], Tensor]) -> int:
    """Peak bytes of activations and their gradients that are alive at one time in a training step.

    Memory from before the step is not counted, nor are the gradients of parameters, which every step ends with. On CUDA
    it is the allocator's peak above what was allocated before, with the gradients of parameters.
    """
    device = next(model.parameters()).device
    model.zero_grad()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        loss_fn().backward()
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with _Live() as live:
            hooks = []  # for backward passes within loss_fn
            for p in (p for p in model.parameters() if p.requires_grad):
                hooks.append(p.register_hook(live.leave_out))
            loss = loss_fn()
            for node in _nodes(loss):
                _leave_out_gradients(node, live)
            loss.backward()
            del loss
        for hook in hooks:
            hook.remove()
        peak = max(live.peak, live.pending)
    model.zero_grad()
    return peak


def _nodes(loss: Tensor) -> List[Any]:
    """The nodes of the graph of a loss."""
    found, seen = [loss.grad_fn], {loss.grad_fn}
    for node in found:
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


def _leave_out_gradients(node: Any, live: _Live) -> None:
    """Leave out a node's gradients of leaves as soon as they are made."""
    leaves = [i for i, (child, _) in enumerate(node.next_functions) if type(child).__name__ == 'AccumulateGrad']

    def leave_out(grad_inputs: Any, grad_outputs: Any) -> None:
        for i in leaves:
            if grad_inputs[i] is not None:
                live.leave_out(grad_inputs[i])

    if leaves:
        node.register_hook(leave_out)
