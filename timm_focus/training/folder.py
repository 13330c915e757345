"""The folder of a run: one run at a time writes it, none overwrites another, and its last checkpoint is found.

A run has an id, which is kept in its folder (run.json) and in its checkpoints. The id shows which files belong to the
run, even in a copy of the folder. Runs of an older version have no id, and go on without one.
"""
import argparse
import contextlib
import errno
import json
import logging
import math
import os
import re
import socket
import time
from datetime import datetime
from typing import Any, Callable, Dict, Iterator, List, NoReturn, Optional, Tuple, TypeVar
from uuid import uuid4

import torch.distributed as dist
from timm.models import safe_model_name

from timm_focus.data.dataset import DataError
from timm_focus.runs import read_summary
from timm_focus.utils import FileError, is_scratch, write_whole
from timm_focus.utils.errors import SettingsError, as_settings_error, refused

from .saver import FocusCheckpointSaver, Kept, Progress, find_kept, is_finite, load, newest_good, read_kept

__all__ = ['RunFolder', 'decide']

_logger = logging.getLogger('train')

RUN, LOCK, SUMMARY = 'run.json', '.lock', 'summary.csv'
# files that a run writes beside its checkpoints
OTHERS = re.compile(r'args\.yaml|summary\.csv|classes\.txt|train\.txt|run\.json|focus(-\d+)?\.png|train-batch-\d+\.jpg|'
                    r'events\.out\.tfevents\..+')
T = TypeVar('T')


def decide(args: argparse.Namespace, decision: Callable[[], T]) -> T:
    """Call `decision` in the first process, and return its result, or raise its error, in all of them.

    Raises:
        SettingsError, OSError: Those of the decision.
    """
    if not args.distributed:
        return decision()
    answer: List[Any] = [None, None]
    if args.rank == 0:
        try:
            answer[0] = decision()
        except (SettingsError, OSError) as e:
            answer[1] = e
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]


class RunFolder:
    """The folder of a run. The first process checks it by `plan`, and makes it or takes it over by `begin`.

    Args:
        args: Settings of the run.

    Attributes:
        name: Name of the run.
        path: The folder.
        run: Id of the run; None if an older version began it.
        kept: After `begin`, the checkpoints of the run up to where it goes on.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.name = args.experiment or f'{datetime.now():%Y%m%d-%H%M%S}-{safe_model_name(args.model)}'
        self.path = os.path.join(self._root, self.name)
        self.run: Optional[str] = uuid4().hex
        self.kept: List[Kept] = []
        self._damaged: List[str] = []
        self._looked = False  # at a folder that was there
        self._goes_on = False  # in this folder
        self._seconds, self._began = 0., time.perf_counter()  # that the run took before, and when it went on
        self._lock: Any = None

    def plan(self) -> Tuple[str, bool]:
        """Return the checkpoint to go on from ('' for a new run), and whether the run of this folder goes on.

        Nothing is changed yet, but the folder is locked.

        Raises:
            SettingsError: There is no such checkpoint, another run uses the folder, or files in it would be lost and
                `--overwrite` is not given.
        """
        resumed = self.args.resume
        if self.args.experiment and os.path.isdir(self.path):
            if not self.args.dry_run:
                self._hold()
            self._look()
            if resumed == 'auto':
                return self._find_last(), self._goes_on
            if resumed and os.path.realpath(os.path.dirname(resumed)) == os.path.realpath(self.path):
                return self._go_on(resumed), True
            self._check_free()
        if resumed in ('', 'auto'):
            return '', False
        _check_numbers(resumed)
        return resumed, False

    def begin(self, start: Progress, ranked_by: str) -> None:
        """Make the folder or take it over. Checkpoints after the one that the run goes on from are removed.

        Args:
            start: Where the run goes on.
            ranked_by: Name of the metric that ranks its checkpoints.

        Raises:
            SettingsError: It cannot be written, another run was faster, or another metric ranks its checkpoints.
        """
        if not self._looked:
            with as_settings_error(f'--output {self._root} cannot be written'):
                self._make()
            self._hold()
            self._look()
            self._check_free()
        own = [k for k in self.kept
               if self._goes_on and k.run == self.run and k.stands <= (start.epoch, start.batch)]
        other = next((k for k in own if k.ranked_by not in ('', ranked_by)), None)
        if other is not None:
            raise SettingsError(
                f'The checkpoints in {self.path} are ranked by {other.ranked_by}, and would now be by {ranked_by}: '
                'leave --eval-metric and --val-split as they were, or go on under a new --experiment.')
        gone = [k.path for k in self.kept if k not in own]
        if self.args.overwrite and not self._goes_on:
            gone += [*self._damaged, *self._files(OTHERS.fullmatch)]
        for path in [*gone, *self._files(is_scratch)]:
            os.remove(path)
        noted = self._noted() if self._goes_on else {}
        if self.run is not None:
            write_whole(os.path.join(self.path, RUN), json.dumps({**noted, 'run': self.run}) + '\n')
        seconds = noted.get('seconds')
        self._seconds = float(seconds) if isinstance(seconds, (int, float)) else 0.
        self._began = time.perf_counter()
        self.kept = own

    def note(self, images: Optional[int]) -> None:
        """Note how long the run has taken so far, in all its parts, and how many images an epoch has."""
        if self.run is not None:
            seconds = round(self._seconds + time.perf_counter() - self._began, 1)
            note = dict(run=self.run, seconds=seconds, images=images)
            with contextlib.suppress(OSError):  # a full disk: the error comes where something is lost by it
                write_whole(os.path.join(self.path, RUN), json.dumps(note) + '\n')

    @contextlib.contextmanager
    def advice(self, saver: Optional[FocusCheckpointSaver]) -> Iterator[None]:
        """Add advice on going on to an error that ends a run, and note its duration; only in the saver's process."""
        try:
            yield
        except (DataError, FileError, FloatingPointError) as e:
            if saver is None:
                raise
            doubted = saver.doubt() if isinstance(e, FloatingPointError) else ''
            room = ' Make room, then' if isinstance(e, FileError) else ' Then'
            kept = find_kept(self.path)[0] if os.path.isdir(self.path) else []
            flags = f'{f"--output {self.args.output} " if self.args.output else ""}--experiment {self.name}'
            way = f'{room} {flags} --resume auto goes on from {kept[0].path}.' if kept else ''
            raise type(e)(f'{e}{doubted}{way}') from e
        finally:
            if saver is not None:
                self.note(saver.images)

    def release(self) -> None:
        """Let another run have the folder, as the end of the process would, too."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # what is there

    @property
    def _root(self) -> str:
        return self.args.output or './output/train'

    def _files(self, is_one: Callable[[str], Any]) -> List[str]:
        paths = [os.path.join(self.path, name) for name in sorted(os.listdir(self.path)) if is_one(name)]
        return [path for path in paths if os.path.isfile(path)]

    def _look(self) -> None:
        self._looked = True
        self.kept, self._damaged = find_kept(self.path)

    def _known(self) -> Tuple[bool, Optional[str]]:
        """Return whether the folder has the id of its run, and the id."""
        noted = self._noted()
        return ('run' in noted), (str(noted['run']) if 'run' in noted else None)

    def _noted(self) -> Dict[str, Any]:
        """Return the content of run.json, {} if there is none."""
        try:
            with open(os.path.join(self.path, RUN), encoding='utf-8') as f:
                found = json.load(f)
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _find_last(self) -> str:
        known, run = self._known()
        if not known:
            runs = {k.run for k in self.kept}
            run = runs.pop() if len(runs) == 1 else None
        others = [k for k in self.kept if k.run != run]
        if others and not self.args.overwrite:
            raise SettingsError(
                f'{self.path} holds checkpoints of several runs, such as {others[0].path}: move what is of another run '
                'away, or name the one to go on from by --resume PATH, with --overwrite to lose the others.')
        own = [k for k in self.kept if k.run == run]
        for path in self._damaged:
            if not own or _stood(path) > own[0].stands:
                raise SettingsError(
                    f'The checkpoint {path} cannot be read and is damaged: {newest_good(path)} Name one by --resume '
                    'PATH, or remove what is damaged.')
        for k in own:
            if is_finite(load(k.path)):
                self.run, self._goes_on = run, True
                return k.path
            _logger.warning(f'{k.path} has numbers that are not finite, of a run that diverged: it is left out.')
        rows = len(read_summary(os.path.join(self.path, SUMMARY)))
        if rows > 1 and not self.args.overwrite:  # one is written before the first checkpoint is
            self._refuse(f'has the numbers of {rows} epochs, but no checkpoint to go on from')
        return ''

    def _go_on(self, path: str) -> str:
        _check_numbers(path)
        chosen = read_kept(path)
        start = chosen.stands if self.args.start_epoch is None else (self.args.start_epoch, 0)
        lost = [k for k in self.kept if k.run != chosen.run or (not k.is_recovery and k.stands > start)]
        if lost and not self.args.overwrite:
            epoch = max(k.stands for k in lost)[0]
            self._refuse(f'has got to epoch {epoch}, and {path} goes on with epoch {start[0]}', "'auto' for the last")
        self.run, self._goes_on = chosen.run, True
        return path

    def _check_free(self) -> None:
        """Check that a new run may begin in the folder."""
        if self.args.overwrite:
            return
        rows = len(read_summary(os.path.join(self.path, SUMMARY)))
        if self.kept or self._damaged or rows:
            epoch = max([rows, *(k.progress.epoch for k in self.kept)])
            self._refuse(f'holds a run, which has got to epoch {epoch}', '--resume auto to go on with it')
        paths = self._files(OTHERS.fullmatch)
        if paths and not self._known()[0]:
            self._refuse(f'has files under the names of a run, such as {os.path.basename(paths[0])}')

    def _refuse(self, what: str, *remedies: str) -> NoReturn:
        ways = ', '.join([*remedies, 'a new --experiment', 'or --overwrite to lose what is there'])
        raise SettingsError(f'{self.path} {what}: give {ways}.')

    # holding it

    def _make(self) -> None:
        if self.args.experiment:
            os.makedirs(self.path, exist_ok=True)
            return
        name = self.name
        for i in range(1, 1000):  # several runs may begin in one second
            try:
                os.makedirs(self.path)
                return
            except FileExistsError:
                self.name = f'{name}-{i}'
                self.path = os.path.join(self._root, self.name)

    def _hold(self) -> None:
        """Lock the folder for as long as this process lives, whatever happens to its workers."""
        try:
            import fcntl
        except ImportError:  # a system without these locks
            return
        path = os.path.join(self.path, LOCK)
        with as_settings_error(f'{self.path} cannot be written'):
            lock = open(path, 'a+', encoding='utf-8')
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, as a worker would keep that lock
        except OSError as e:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            if e.errno in (errno.EACCES, errno.EAGAIN):
                raise SettingsError(
                    f'{self.path} is in use, by {owner or "another process"}: wait for its end, or give a new '
                    '--experiment.') from None
            _logger.warning(f'The file system of {self.path} has no locks ({e.strerror}), so nothing keeps a second '
                            'run out of it: see to it that there is none.')
            return
        with contextlib.suppress(OSError):  # a full disk; only people read it
            lock.truncate(0)
            lock.write(f'process {os.getpid()} on {socket.gethostname()}\n')
            lock.flush()
        self._lock = lock


def _check_numbers(path: str) -> None:
    """Check that a run can go on from a checkpoint.

    Raises:
        SettingsError: It is missing or damaged, or has numbers that are not finite.
    """
    with refused():
        state = load(path)
        read_kept(path, state)
    if not is_finite(state):
        raise SettingsError(f'{path} has numbers that are not finite, of a run that diverged: {newest_good(path)}')


def _stood(path: str) -> Tuple[float, float]:
    """Return how far a damaged checkpoint may have trained, by its name."""
    kind, *numbers = os.path.basename(path).removesuffix('.pth.tar').split('-')
    first, second = (*map(int, numbers), 0, 0)[:2]
    return {'last': (math.inf, 0), 'model_best': (0, 0), 'checkpoint': (first + 1, 0), 'milestone': (first, 0),
            'recovery': (first, second + 1)}[kind]
