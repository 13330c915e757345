"""Checkpoints of train_focus.py: timm's, written whole or not at all, with what is needed to go on in mid-epoch."""
import argparse
import logging
import math
import numbers
import os
import re
from typing import Any, Callable, Collection, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import torch
import torch.distributed as dist
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask
from timm.utils import CheckpointSaver, load_checkpoint_metadata, unwrap_model
from torch import Tensor

from timm_focus.utils import copy_whole, open_whole
from timm_focus.utils.errors import SettingsError
from timm_focus.utils.text import brief
from timm_focus.utils.weight_files import read_weight_file

__all__ = [
    'FocusCheckpointSaver', 'Kept', 'Progress', 'check_finite', 'find_kept', 'gather_buffers', 'is_finite',
    'load', 'newest_good', 'ranking', 'read_kept', 'restore_buffers']

_logger = logging.getLogger('train')

PLATEAU_COUNTERS = ('best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch')
RECOVERIES = 2  # the newest has not proved itself yet: see `FocusCheckpointSaver.doubt`
# names of a run's checkpoints
CHECKPOINT = re.compile(r'(last|model_best|(checkpoint|milestone)-\d+|recovery-\d+-\d+)\.pth\.tar')


def _numbers(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(v, numbers.Real) for v in found.values())


def _rates(found: Any) -> bool:
    return found is None or isinstance(found, list) and all(isinstance(v, numbers.Real) for v in found)


PLATEAU = 'plateau'
PARTS: Dict[str, Callable[[Any], bool]] = {  # optional parts of a checkpoint's progress, and checks of their values
    'totals': _numbers,
    'buffers': lambda v: isinstance(v, list) and all(isinstance(own, dict) for own in v),
    **dict.fromkeys(('focus_start', 'complex_start'), lambda v: isinstance(v, int) and v >= 0),
    PLATEAU: lambda v: (isinstance(v, dict) and _rates(v.get('restore_lr', ''))
                        and all(isinstance(v.get(name), numbers.Real) for name in PLATEAU_COUNTERS)),
}


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        epoch: Epoch to go on with.
        batch: Batch in it to go on with.
        updates: Updates made so far.
        totals: Sums of that epoch's scalars and number of its images up to that batch, over all processes.
        buffers: Buffers of each of several processes, by rank: see `gather_buffers`.
        focus_start: Epoch from which images are erased, if `--focus-start auto` has found it.
        complex_start: Epoch from which the scheme is complex, if `--scheme auto` has found it.
    """
    epoch: int
    batch: int
    updates: int
    totals: Optional[Dict[str, float]] = None
    buffers: Optional[List[Dict[str, Tensor]]] = None
    focus_start: Optional[int] = None
    complex_start: Optional[int] = None


class Kept(NamedTuple):
    """A checkpoint in the folder of a run, without its tensors.

    Attributes:
        path: Path of its file.
        run: Id of the run that wrote it; None if timm's train.py or an older version, which have no ids, wrote it.
        epoch: Epoch after which, or within which, it was written.
        progress: Where the run goes on from it.
        metric: The metric that ranks it; None if it is not ranked.
        ranked_by: Name of that metric, '' if the checkpoint does not say it.
        images: Number of training images, None if the checkpoint does not say it.
        settings: Settings of the run that wrote it.
    """
    path: str
    run: Optional[str]
    epoch: int
    progress: Progress
    metric: Optional[float]
    ranked_by: str
    images: Optional[int]
    settings: Dict[str, Any]

    @property
    def stands(self) -> Tuple[int, int]:
        """How far the run had trained, in epochs and batches."""
        return self.progress.epoch, self.progress.batch

    @property
    def is_recovery(self) -> bool:
        """Whether it is a recovery checkpoint, which the end of its epoch makes superfluous."""
        return os.path.basename(self.path).startswith('recovery-')


# reading

def load(path: str) -> Dict[str, Any]:
    """Load a checkpoint of a run; its tensors are read when they are used.

    Raises:
        ValueError: The file is missing, damaged, or no checkpoint of a run.
    """
    try:
        state = read_weight_file(path)
    except ValueError as e:
        if not os.path.isfile(path):
            raise
        raise ValueError(f'{str(e).rstrip(".")}: {newest_good(path)}') from e
    if not {'state_dict', 'epoch'} <= set(state):
        raise ValueError(f'{path} has weights but no run to resume: start from it by --initial-checkpoint.')
    return state


def read_kept(path: str, state: Optional[Dict[str, Any]] = None) -> Kept:
    """Read a checkpoint without its tensors.

    Args:
        path: Path of its file.
        state: What `load` returned for it, if it is loaded already.

    Raises:
        ValueError: The file is missing, damaged, or no checkpoint of a run.
    """
    state = load(path) if state is None else state
    saver, args, metric = state.get('saver') or {}, state.get('args'), state.get('metric')
    try:
        if not isinstance(saver, dict):
            raise ValueError(f'its saver is {brief(saver)}')
        epoch, saved = int(state['epoch']), saver.get('progress')
        progress = Progress(**saved) if saved else Progress(epoch + 1, 0, 0)
        if not all(isinstance(n, int) and n >= 0 for n in (epoch, *progress[:3])):
            raise ValueError('it names numbers below 0')
        for name, right in PARTS.items():
            found = saver.get(name) if name == PLATEAU else getattr(progress, name)
            if found is not None and not right(found):
                raise ValueError(f'its {name} is {brief(found)}')
        metric = None if metric is None or not math.isfinite(metric) else float(metric)
        images, run = saver.get('images'), saver.get('run')
        return Kept(
            path, None if run is None else str(run), epoch, progress, metric, str(saver.get('ranked_by') or ''),
            None if images is None else int(images), vars(args) if isinstance(args, argparse.Namespace) else {})
    except (OverflowError, TypeError, ValueError) as e:
        raise ValueError(f'The checkpoint {path} does not say where its run stands: {e}.') from e


def find_kept(folder: str) -> Tuple[List[Kept], List[str]]:
    """Find the checkpoints in a folder, the furthest first, and the files under such names that are damaged.

    Of checkpoints that are equally far, `last` comes first.
    """
    kept, damaged = [], []
    for name in sorted(os.listdir(folder), key=lambda n: n != 'last.pth.tar'):
        path = os.path.join(folder, name)
        if CHECKPOINT.fullmatch(name) and os.path.isfile(path):
            try:
                kept.append(read_kept(path, load_checkpoint_metadata(path)))
            except Exception:  # a damaged file may raise anything
                damaged.append(path)
    return sorted(kept, key=lambda k: k.stands, reverse=True), damaged


def newest_good(path: str) -> str:
    """Say in a sentence which checkpoint to resume in place of a damaged one."""
    folder = os.path.dirname(path) or '.'
    for other in find_kept(folder)[0]:
        try:
            if not os.path.samefile(other.path, path) and read_weight_file(other.path):
                return f'the newest good one is {other.path}.'
        except ValueError:  # its metadata was readable, but it is damaged
            continue
    return 'there is no good one beside it.'


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, (dict, list, tuple)):
        for item in state.values() if isinstance(state, dict) else state:
            yield from _tensors(item)


@torch.no_grad()
def is_finite(state: Any) -> bool:
    """Whether the tensors of a state are finite. Scalars may be infinite, as models keep bounds in them."""
    wrong: Dict[torch.device, List[Tensor]] = {}
    for tensor in _tensors(state):
        if tensor.is_floating_point() or tensor.is_complex():
            odd = tensor.isnan() if tensor.dim() == 0 else ~tensor.isfinite()
            wrong.setdefault(tensor.device, []).append(odd.any())
    return not any(bool(torch.stack(flags).any()) for flags in wrong.values())  # one wait for each device


def check_finite(task: TrainingTask, optimizer: torch.optim.Optimizer, totals: Dict[str, float], epoch: int) -> None:
    """Check that a run has not diverged, before its state is kept.

    Args:
        task: Task of the run.
        optimizer: Its optimizer.
        totals: Sums of the epoch so far, with 'loss' and 'count'.
        epoch: Number of the epoch.

    Raises:
        FloatingPointError: The mean loss, the weights or the optimizer's state are not finite.
    """
    loss, advice = totals['loss'] / totals['count'], 'lower --lr, or clip with --clip-grad'
    if not math.isfinite(loss):
        raise FloatingPointError(f'The loss of epoch {epoch} is {loss}: {advice}.')
    modules = [task.get_trainable_module(), *([task.get_trainable_module(ema=True)] if task.has_ema() else [])]
    if not is_finite([*(module.state_dict() for module in modules), optimizer.state_dict()]):
        raise FloatingPointError(f'The weights of epoch {epoch} are not finite: {advice}.')


# buffers, which differ between processes

def gather_buffers(task: TrainingTask) -> Optional[List[Dict[str, Tensor]]]:
    """Gather the buffers of all processes, by rank, on the first of them; None on the others. All must call it.

    Weights are the same in every process. BatchNorm's statistics and their running average are not, until `--dist-bn`
    averages them after an epoch. Without them a run that was interrupted within an epoch would go on differently.
    """
    if not dist.is_initialized():
        return None
    gathered: Optional[List[Any]] = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object({name: buffer.cpu() for name, buffer in _buffers(task).items()}, gathered)
    return gathered


def restore_buffers(task: TrainingTask, buffers: Optional[List[Dict[str, Tensor]]]) -> None:
    """Restore this process's buffers from those of `gather_buffers`.

    Call it after `prepare_distributed`, which makes the buffers of all processes equal.

    A running average that begins here begins with the buffers of the weights.

    Raises:
        SettingsError: They belong to another model. Each process checks those of all, so that all processes end.
    """
    if not buffers or not dist.is_initialized() or len(buffers) != dist.get_world_size():
        return
    for name, buffer in _buffers(task).items():
        kept: List[Any] = [own.get(name, own.get(name.removeprefix('ema.'))) for own in buffers]
        if not all(isinstance(one, Tensor) and one.shape == buffer.shape for one in kept):
            raise SettingsError(
                f'The checkpoint has no {name} of shape {tuple(buffer.shape)} of each of its {len(buffers)} processes: '
                'it is of another model or of another version. --initial-checkpoint begins a run from its weights.')
        buffer.copy_(kept[dist.get_rank()])


def _buffers(task: TrainingTask) -> Dict[str, Tensor]:
    """Floating-point buffers of the model, and of its running average if there is one."""
    return {
        f'{"ema." if ema else ""}{name}': buffer
        for ema in (False, True) if task.get_trainable_module(ema=ema) is not None
        for name, buffer in unwrap_model(task.get_trainable_module(ema=ema)).named_buffers()
        if buffer.is_floating_point()}


# writing

def ranking(metrics: Dict[int, Optional[float]], decreasing: bool = False) -> List[int]:
    """Rank epochs: the best first, and the earlier of equal ones. Those without a metric come last, newest first."""
    ranked = {epoch: metric for epoch, metric in metrics.items() if metric is not None}
    return [*sorted(ranked, key=lambda e: (ranked[e] if decreasing else -ranked[e], e)),
            *sorted(set(metrics) - set(ranked), reverse=True)]


class FocusCheckpointSaver(CheckpointSaver):
    """timm's saver, with the id of the run in each checkpoint, and no checkpoint half written.

    A save takes several steps, and each step is done whole or not at all. First `last` is written. It is copied under
    the name of its epoch if that is among the best, and as `model_best` if it is the best of all. Then checkpoints that
    are no longer among the best are removed. Repeating a step does no harm, and `take_up` repeats all of them. So every
    epoch is ranked, and `model_best` is the best of them, no matter when a process was killed.

    Attributes:
        progress: Where the run stands; set it before each save.
        scheduler: Learning rate scheduler of the run, or None. Only plateau has a state. The rates of all others follow
            from the progress and from the settings, which may be new after a resume.
        run: Id of the run.
        ranked_by: Name of the metric that ranks epochs.
        images: Number of training images.
        milestones: Numbers of epochs after which a checkpoint is kept for good.
    """

    progress: Optional[Progress] = None
    scheduler: Any = None
    run: Optional[str] = None
    ranked_by: str = ''
    images: Optional[int] = None
    milestones: Collection[int] = ()

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.args is not None:  # so that others can load the checkpoint without this package
            self.args = argparse.Namespace(**vars(self.args))
        self.metrics: Dict[int, Optional[float]] = {}  # metrics of the epochs whose checkpoints are kept
        self.recoveries: List[str] = []  # the oldest first

    def save_checkpoint(self, epoch: int, metric: Optional[float] = None) -> Tuple[Optional[float], Optional[int]]:
        if metric is not None and not math.isfinite(metric):
            metric = None  # it cannot be compared
        last = self._path('last')
        self._save(last, epoch, metric)
        self._settle(last, epoch, metric)
        while self.recoveries:
            _remove(self.recoveries.pop())
        return self.best_metric, self.best_epoch

    def save_recovery(self, epoch: int, batch_idx: int = 0) -> None:
        path = self._path(f'{self.recovery_prefix}-{epoch}-{batch_idx}')
        self._save(path, epoch)
        self.recoveries = [*(p for p in self.recoveries if p != path), path]
        while len(self.recoveries) > RECOVERIES:
            _remove(self.recoveries.pop(0))

    def take_up(self, kept: Iterable[Kept]) -> None:
        """Continue with the checkpoints of a run, and finish the save in which its last process was killed."""
        kept = sorted(kept, key=lambda k: k.stands)
        self.recoveries = [k.path for k in kept if k.is_recovery]
        named = {os.path.basename(k.path).removesuffix(self.extension): k for k in kept}
        if 'model_best' in named:
            self.best_metric, self.best_epoch = named['model_best'].metric, named['model_best'].epoch
        own = [k for name, k in named.items() if name == f'{self.save_prefix}-{k.epoch}']
        self.metrics = {k.epoch: k.metric for k in own}
        if 'last' in named and named['last'].epoch not in self.metrics:
            own.append(named['last'])
        for k in own:
            self._settle(k.path, k.epoch, k.metric)

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Continue with the run's checkpoints in the folder; a list of files in a checkpoint is not trusted."""
        self.take_up(k for k in find_kept(self.checkpoint_dir)[0] if k.run == state_dict.get('run'))

    def doubt(self) -> str:
        """Remove the newest recovery checkpoint after a divergence.

        It may already have begun to diverge. Earlier ones are trusted, because training went on well from them.

        Returns:
            A sentence that says what was removed, '' if there is no recovery checkpoint.
        """
        if not self.recoveries:
            return ''
        path = self.recoveries.pop()
        _remove(path)
        return f' {path} was removed, because the run diverged after it.'

    def state_dict(self, epoch: Optional[int] = None, metric: Optional[float] = None) -> Dict[str, Any]:
        state = super().state_dict(epoch, metric)
        state.update(run=self.run, ranked_by=self.ranked_by, images=self.images)
        if self.progress is not None:
            state['progress'] = dict(self.progress._asdict())
        if isinstance(self.scheduler, PlateauLRScheduler):  # timm's state dict leaves out its counters
            state['plateau'] = {
                'restore_lr': self.scheduler.restore_lr,
                **{name: getattr(self.scheduler.lr_scheduler, name) for name in PLATEAU_COUNTERS}}
        return state

    def _path(self, name: str) -> str:
        return os.path.join(self.checkpoint_dir, name + self.extension)

    def _save(self, save_path: str, epoch: int, metric: Optional[float] = None) -> None:
        with open_whole(save_path, 'wb') as f:
            try:
                super()._save(f, epoch, metric)
            except RuntimeError as e:  # torch's writer raises it if the file cannot be written
                raise _cause(e, OSError) or e  # noqa: B904  it is already the cause of this error

    def _duplicate(self, src: str, dst: str) -> None:
        copy_whole(src, dst)

    def _settle(self, source: str, epoch: int, metric: Optional[float]) -> None:
        """Copy an epoch's checkpoint under the names that it earns, and remove those that are no longer needed."""
        milestone, path = self._path(f'milestone-{epoch + 1}'), self._checkpoint_path(epoch)
        if epoch + 1 in self.milestones and not os.path.exists(milestone):
            self._duplicate(source, milestone)
        self.metrics[epoch] = metric
        ranked = ranking(self.metrics, self.decreasing)
        if epoch in ranked[:self.max_history] and path != source:
            self._duplicate(source, path)
        if metric is not None and (self.best_metric is None or self.cmp(metric, self.best_metric)):
            self._duplicate(source, self._path('model_best'))
            self.best_metric, self.best_epoch = metric, epoch
        for overtaken in ranked[self.max_history:]:
            del self.metrics[overtaken]
            _remove(self._checkpoint_path(overtaken))
        self.checkpoint_files = [(self._checkpoint_path(e), self.metrics[e]) for e in ranked[:self.max_history]]


def _remove(path: str) -> None:
    try:
        os.remove(path)
    except FileNotFoundError:
        pass
    except OSError as e:
        _logger.warning(f'{path} is not needed any more, but cannot be removed: {e.strerror}.')


def _cause(error: Optional[BaseException], kind: type) -> Optional[BaseException]:
    """Return the first exception of a kind among an error and its causes, None if there is none."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
