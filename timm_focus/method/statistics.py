"""Chooses what BatchNorm layers do with their running statistics in a pass that is not the first."""
import contextlib
from typing import Any, Iterator, List

from torch import nn

__all__ = ['clean_statistics', 'frozen_statistics']


@contextlib.contextmanager
def clean_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers in training mode normalise by the batch and leave their running statistics alone."""
    # collected at each use, because sync-bn, split-bn and EMA replace modules
    tracking = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for m in tracking:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in tracking:
            m.track_running_stats = True


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, running statistics stay bit for bit what they are, and autograd saves the same tensors as outside."""
    # momentum 0 and not clean_statistics, under which a layer saves other tensors, which a recomputation must not
    tracking: List[Any] = [m for m in module.modules() if getattr(m, 'running_var', None) is not None]
    before = [(m, m.momentum, m._buffers.get('num_batches_tracked')) for m in tracking]
    for m, _, counter in before:
        m.momentum = 0.
        if counter is not None:
            m.num_batches_tracked = counter.clone()  # not None, which SyncBatchNorm refuses
    try:
        yield
    finally:  # a recomputation ends by an exception once it has what it needs
        for m, momentum, counter in before:
            m.momentum = momentum
            if counter is not None:
                m.num_batches_tracked = counter
