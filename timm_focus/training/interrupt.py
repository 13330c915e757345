"""Ends a run that a terminal or a scheduler signals, after the step under way, the same on all processes."""
import signal
import threading
from types import FrameType
from typing import Any, Dict, Optional, Tuple

import torch
import torch.distributed as dist

from timm_focus.utils.processes import SIGNALS, end_with_parent, end_workers

__all__ = ['Interrupted', 'Interruption']


class Interrupted(Exception):
    """A signal ended the run.

    Attributes:
        signal: Its number; shells expect the exit code 128 + signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Interruption:
    """Notes SIGINT, SIGTERM, SIGHUP and SIGUSR1; after the first of them, SIGINT (Ctrl-C) has its usual effect.

    The other signals may come several times: under Slurm both the scheduler and torchrun send them. A signal that the
    process was started to ignore, for example by nohup, stays ignored.

    Use it as a context; the workers of loaders end with it. Processes that train together do not get a signal in the
    same step, and if one stopped alone, the others would wait for it. So each call of `noted` starts an all-reduce of
    the signals that were noted, and returns the result of the previous one: a signal takes effect one call later, on
    all processes. The exchange has a gloo group of its own on the CPU, so it never waits for a GPU.

    Args:
        distributed: Several processes train together. Processes of torchrun get a SIGTERM when torchrun is gone.
    """

    def __init__(self, distributed: bool = False):
        self._signal = 0
        self._group: Any = dist.new_group(backend='gloo') if distributed else None
        self._exchange: Optional[Tuple[torch.Tensor, Any]] = None
        self._previous: Dict[int, Any] = {}

    def __enter__(self) -> 'Interruption':
        if threading.current_thread() is threading.main_thread():  # only the main thread may handle signals
            self._previous = {
                number: signal.signal(number, self._note) for number in SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN}
        if dist.is_torchelastic_launched():
            end_with_parent(signal.SIGTERM)
        return self

    def __exit__(self, *exception: Any) -> None:
        try:
            # nothing after this needs workers, and some of it would wait for them
            end_workers()
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        if self._exchange is not None and (not exception[0] or issubclass(exception[0], Interrupted)):
            self._exchange[1].wait()  # the last exchange; after another exception the other processes may be gone

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self._signal = self._signal or number
        if signal.SIGINT in self._previous:
            signal.signal(signal.SIGINT, self._previous[signal.SIGINT])

    def noted(self) -> int:
        """Return the noted signal, the same on all processes, or 0. All processes must call it equally often."""
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
