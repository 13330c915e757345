"""Makes worker processes live exactly as long as the run that they load images for, whatever ends it."""
import atexit
import ctypes
import functools
import importlib
import multiprocessing
import os
import signal
import sys
import threading
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable, Optional, Type

if TYPE_CHECKING:  # torch takes seconds
    from torch.utils.data import DataLoader

__all__ = ['SIGNALS', 'end_with_parent', 'end_workers', 'shield_workers']

# terminals and schedulers send these, often to all processes of a run at once (Slurm sends SIGUSR1 before time is up)
SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGHUP', 'SIGUSR1') if hasattr(signal, name))
_begun: 'weakref.WeakSet[Any]' = weakref.WeakSet()  # iterators of shielded loaders, which have workers


def shield_workers(loader: 'DataLoader') -> 'DataLoader':
    """Let the workers of a loader survive the signals that the run handles itself, but never the run.

    The workers ignore SIGNALS. Otherwise a scheduler that signals all processes of a run would kill the workers that
    load the images of the current step. A process group for the workers would not help: schedulers signal cgroups, too.

    A worker may be stuck, so its end must not depend on a signal that it can ignore or on its own actions.
    `end_workers` kills it, at the latest at Python's exit, before Python would wait for it forever. If the run is
    killed, Linux kills the workers; on other systems, torch's workers check for their parent every five seconds.

    Args:
        loader: A loader that has not been used yet.

    Returns:
        The loader.
    """
    if not loader.num_workers:
        return loader
    loader.worker_init_fn = functools.partial(_prepare, loader.worker_init_fn)
    # a weak reference: the garbage collector would free a loader that refers to itself, and would end the queues of an
    # iterator before the iterator tells its workers to end, and then wait for them for seconds
    loader._get_iterator = functools.partial(_begin, weakref.ref(loader))  # type: ignore[method-assign]  # on purpose
    atexit.unregister(end_workers)  # the last registered function is called first
    atexit.register(end_workers)
    return loader


def _begin(reference: Callable[[], Any]) -> Any:
    loader = reference()  # alive, since it is the caller
    iterator = type(loader)._get_iterator(loader)
    _begun.add(iterator)
    return iterator


def _prepare(prepare: Optional[Callable[[int], None]], worker_id: int) -> None:
    for iterator in _begun:  # a freed iterator would shut down its workers, which are siblings here
        _let_go(iterator)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _tell
    end_with_parent(signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # it ended before prctl
        os._exit(1)
    if prepare is not None:
        prepare(worker_id)


def _tell(kind: Type[BaseException], error: BaseException, trace: Optional[TracebackType]) -> None:
    """Python's excepthook, but silent about cut connections: the parent may end while a thread hands it a tensor."""
    if not issubclass(kind, (ConnectionError, EOFError)):
        sys.__excepthook__(kind, error, trace)


def end_with_parent(number: int) -> None:
    """Ask the system to signal this process when its parent ends. Only Linux can; elsewhere nothing happens."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError, TypeError):  # not Linux
        return
    prctl(1, int(number))  # PR_SET_PDEATHSIG


def end_workers() -> None:
    """Kill all daemonic children, such as the workers of shielded loaders; Python would end them only at its exit."""
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    handler = None
    if workers and threading.current_thread() is threading.main_thread():
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler treats a worker's end as a failure
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
    """Keep a freed iterator from shutting down workers: it may wait for a lock of a killed worker."""
    iterator._shutdown = True
    if iterator._worker_pids_set:  # torch keys them by the iterator's address, which can be reused
        torch_workers = importlib.import_module('torch.utils.data._utils.signal_handling')
        torch_workers._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
