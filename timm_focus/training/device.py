"""Chooses the device of a run, and the types that it computes in."""
import argparse
import contextlib
import ctypes
import functools
import importlib
import logging
import os
from typing import Any, Callable, Iterator, Tuple

import torch
import torch.distributed as dist
from timm.layers import set_fast_norm
from timm.utils import NativeScaler, init_distributed_device

from timm_focus.utils.errors import SettingsError, as_settings_error

from .settings import Settings

__all__ = ['choose_kernels', 'cores', 'keep_freed_memory', 'set_up_device']

_logger = logging.getLogger('train')

Autocast = Callable[[], contextlib.AbstractContextManager]


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next step; other C libraries are left as they are.

    By default glibc returns the memory of large tensors to the system, which clears every page of it again in the next
    step. For the activations of two passes this took a tenth of the time of a plain step (benchmarks/README.md).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # of another library or system
        return
    mallopt(-3, 2 ** 30)  # M_MMAP_THRESHOLD: smaller blocks get no mapping of their own
    mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def _lists_no_checkpoints(record: logging.LogRecord) -> bool:
    """Drop the list of all checkpoints that timm logs after each epoch."""
    return not str(record.msg).startswith('Current checkpoints:')


def _rendezvous(url: str, **kwargs: Any) -> Iterator[Tuple[dist.Store, int, int]]:
    """torch's `env://`, with different keys for each start of torchrun.

    torchrun keeps one store over its restarts, with the addresses of processes that are gone. gloo would connect to
    these, and fail or wait for half an hour. On several machines the number of starts may differ between machines, so
    there the user has to switch this store off (docs/training.md).
    """
    for store, rank, world_size in dist.rendezvous('env://', **kwargs):
        if dist.is_torchelastic_launched() and os.environ.get('GROUP_WORLD_SIZE') == '1':
            store = dist.PrefixStore(f'start {os.environ["TORCHELASTIC_RESTART_COUNT"]}', store)
        yield store, rank, world_size


dist.register_rendezvous_handler('timmfocus', _rendezvous)


def choose_kernels() -> None:
    """Let CUDA use TF32 in products of float32 matrices, and measure which algorithm of a convolution is fastest.

    It does not measure if the user wants the same bits each time.
    """
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


def cores() -> int:
    """Return how many cores this process may use; the processes of a machine share its cores equally."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(usable // int(os.environ.get('LOCAL_WORLD_SIZE', 1)), 1)


def set_up_device(args: Settings) -> Tuple[Settings, torch.device, Autocast, Any]:
    """Choose and prepare the device.

    Returns:
        The settings, completed by the device, this process's rank, the number of processes and what follows from these;
        the device; the context of forward passes; and timm's loss scaler, which is None except for float16.

    Raises:
        SettingsError: There is no such device, or it cannot compute in the type.
    """
    for module in args.device_modules or ():
        with as_settings_error(f'--device-modules {module} cannot be imported'):
            importlib.import_module(module)
    name = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise SettingsError(f'--device is {name}, but torch finds no CUDA device: leave it out, or give cpu.')
    choose_kernels()
    if args.fast_norm:
        set_fast_norm()
    if args.sync_bn and not name.startswith('cuda'):
        raise SettingsError('--sync-bn needs GPUs: leave it out on the CPU, where --dist-bn averages the statistics.')
    with as_settings_error(f'--device is {name}, which cannot be used'):
        place = argparse.Namespace(device=name, dist_url='timmfocus://')
        device = init_distributed_device(place)  # it writes on it
    args = args.completed(
        device=place.device, distributed=place.distributed, rank=place.rank, local_rank=place.local_rank,
        world_size=place.world_size, prefetcher=not args.no_prefetcher,
        # more workers than cores would wait for each other
        workers=args.workers if 'workers' in args.given else min(args.workers, cores()),
        # --sync-bn leaves nothing to average
        dist_bn='' if place.distributed and args.sync_bn else args.dist_bn)
    if device.type == 'cpu':
        keep_freed_memory()
    logging.getLogger().setLevel(logging.INFO if args.rank == 0 else logging.WARNING)
    logging.getLogger('matplotlib').setLevel(logging.WARNING)
    logging.getLogger('timm.utils.checkpoint_saver').addFilter(_lists_no_checkpoints)
    autocast: Autocast = contextlib.nullcontext
    loss_scaler = None
    if args.amp:
        dtype = args.amp_dtype or ('float16' if device.type == 'cuda' else 'bfloat16')
        autocast = functools.partial(torch.autocast, device_type=device.type, dtype=getattr(torch, dtype))
        if dtype == 'float16':
            loss_scaler = NativeScaler(device=device.type)
    elif args.model_dtype == 'float16':
        _logger.warning('Gradients underflow in --model-dtype float16: bfloat16 or --amp is what trains.')
    return args, device, autocast, loss_scaler
