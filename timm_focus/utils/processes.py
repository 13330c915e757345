"""Processes that load images live as long as the run that they load for, and no longer, whatever ends it."""
import atexit
import ctypes
import functools
import importlib
import multiprocessing
import os
import signal
import threading
import weakref
from typing import TYPE_CHECKING, Any, Callable, Optional

if TYPE_CHECKING:  # torch takes seconds
    from torch.utils.data import DataLoader

__all__ = ['SIGNALS', 'end_with_parent', 'end_workers', 'shield_workers']

# what a terminal or a scheduler sends, often to all processes of a run at once (SIGUSR1: Slurm, before time is up)
SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name))
_begun: 'weakref.WeakSet[Any]' = weakref.WeakSet()  # iterators of loaders, which have workers


def shield_workers(loader: 'DataLoader') -> 'DataLoader':
    """Have the workers of a loader outlast the signals that a run answers by itself, and never the run.

    They ignore SIGNALS, or a scheduler that signals all processes of a run would take away the images of the step under
    way. Therefore their end rests on no signal that can be ignored, and on nothing that a worker does, which may be
    stuck: `end_workers` kills them, at the latest when Python exits, before it would wait for them for ever; and where
    the run itself is killed, the system kills them (on Linux; elsewhere torch's workers look every five seconds). A
    process group of their own would not do: schedulers signal cgroups, too.

    Args:
        loader: It must not have been used.

    Returns:
        The loader.
    """
    if not loader.num_workers:
        return loader
    loader.worker_init_fn = functools.partial(_prepare, loader.worker_init_fn)
    loader._get_iterator = functools.partial(_begin, loader._get_iterator)  # type: ignore[method-assign]
    atexit.unregister(end_workers)  # what is registered last is called first
    atexit.register(end_workers)
    return loader


def _begin(make: Callable[[], Any]) -> Any:
    iterator = make()
    _begun.add(iterator)
    return iterator


def _prepare(prepare: Optional[Callable[[int], None]], worker_id: int) -> None:
    for iterator in _begun:  # whose workers are this one's siblings: not its to shut down, should it free the iterator
        _let_go(iterator)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it went before
        os._exit(1)
    if prepare is not None:
        prepare(worker_id)


def end_with_parent(number: int) -> None:
    """Have the system signal this process when its parent is gone, on Linux; elsewhere nothing happens."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError, TypeError):  # of another system
        return
    prctl(1, int(number))  # PR_SET_PDEATHSIG


def end_workers() -> None:
    """Kill the workers of this process's shielded loaders, and all its daemonic children, as Python's exit would."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    handler = None
    if workers and threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's takes a worker's end for a failure
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    for iterator in list(_begun):
        _let_go(iterator)
    _begun.clear()


def _let_go(iterator: Any) -> None:
    """Have an iterator shut nothing down when it is freed: torch takes locks that a killed worker may have held."""
    iterator._shutdown = True
    if iterator._worker_pids_set:  # torch knows them by the iterator's address, which the next iterator may have
        torch_workers = importlib.import_module('torch.utils.data._utils.signal_handling')
        torch_workers._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
