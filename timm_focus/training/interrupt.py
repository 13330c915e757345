"""SIGINT and SIGTERM end a run after the step under way, on all processes at the same step."""
import functools
import signal
import threading
from types import FrameType
from typing import Any, Callable, Optional, Tuple

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

__all__ = ['Interrupted', 'Interruption', 'shield_workers']

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(Exception):
    """A signal ended the run.

    Attributes:
        signal: Its number; shells expect the exit code 128 + signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interruption:
    """Takes note of a first SIGINT or SIGTERM; a second one has its usual effect.

    Use it as a context. Processes that train together are not signalled at the same step, and one that left alone
    would leave the others waiting. So they exchange what each has noted, without waiting for it: `noted` is about one
    call back. It has a process group of its own, on the CPU, so no GPU is waited for either.

    Args:
        distributed: Several processes train together.
    """

    def __init__(self, distributed: bool = False):
        self._signal = 0
        self._group = dist.new_group(backend='gloo') if distributed else None
        self._exchange: Optional[Tuple[torch.Tensor, Any]] = None
        self._previous = {}

    def __enter__(self) -> 'Interruption':
        if threading.current_thread() is threading.main_thread():  # others may not handle signals
            self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._exchange is not None and (not exception[0] or issubclass(exception[0], Interrupted)):
            self._exchange[1].wait()  # the last one; after another exception the others may be gone

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self._signal = number
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def noted(self) -> int:
        """The signal that was noted, the same on all processes, or 0. All must call it equally often."""
        if self._group is None:
            return self._signal
        agreed = 0
        if self._exchange is not None:
            value, work = self._exchange
            work.wait()
            agreed = int(value)
        value = torch.tensor(self._signal)
        self._exchange = value, dist.all_reduce(value, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def check(self) -> None:
        """Raise Interrupted if a signal was noted; this counts as a call of `noted`."""
        number = self.noted()
        if number:
            raise Interrupted(number)


def _prepare(prepare: Optional[Callable[[int], None]], worker_id: int) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if prepare is not None:
        prepare(worker_id)


def shield_workers(loader: DataLoader) -> None:
    """Keep the workers of a loader alive when a terminal or a scheduler signals all processes of a run at once."""
    loader.worker_init_fn = functools.partial(_prepare, loader.worker_init_fn)
