"""Checkpoints of train_focus.py: timm's, written whole or not at all, with what is needed to go on in mid-epoch."""
import os
import shutil
from typing import Any, Dict, List, NamedTuple, Optional

import torch
import torch.distributed as dist
from timm.models import clean_state_dict
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask
from timm.utils import CheckpointSaver, load_checkpoint_metadata, unwrap_model

__all__ = ['Progress', 'FocusCheckpointSaver', 'gather_buffers', 'restore_buffers', 'resume']

PLATEAU_COUNTERS = ('best', 'num_bad_epochs', 'cooldown_counter', 'last_epoch')


class Progress(NamedTuple):
    """Where a run stands.

    Attributes:
        epoch: Epoch to go on with.
        batch: Batch in it to go on with.
        updates: Updates made so far.
        totals: Sums of that epoch's scalars and number of its images up to that batch, over all processes.
        buffers: What each of several processes has of its own, by rank: see `gather_buffers`.
    """
    epoch: int
    batch: int
    updates: int
    totals: Optional[Dict[str, float]] = None
    buffers: Optional[List[Dict[str, torch.Tensor]]] = None


class FocusCheckpointSaver(CheckpointSaver):
    """timm's saver, without a moment at which `last` or `model_best` is missing or half written.

    Attributes:
        progress: Where the run stands; set it before each save.
        scheduler: Learning rate scheduler of the run, or None. Only plateau has a state; what the others give is a
            function of the progress and of the settings, which may be new ones after a resume.
    """

    progress: Optional[Progress] = None
    scheduler: Any = None

    def _save(self, save_path: str, epoch: int, metric: Optional[float] = None) -> None:
        super()._save(save_path, epoch, metric)
        with open(save_path, 'rb') as f:
            os.fsync(f.fileno())  # a name must not outlive its content in a power cut

    def _replace(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def _duplicate(self, src: str, dst: str) -> None:
        partial = f'{dst}.tmp'
        if os.path.exists(partial):
            os.unlink(partial)
        try:
            os.link(src, partial)
        except OSError:  # a file system without hard links
            shutil.copy2(src, partial)
        os.replace(partial, dst)

    def state_dict(self, epoch: Optional[int] = None, metric: Optional[float] = None) -> Dict[str, Any]:
        state = super().state_dict(epoch, metric)
        if self.progress is not None:
            state['progress'] = dict(self.progress._asdict())
        if isinstance(self.scheduler, PlateauLRScheduler):  # timm's own state dict leaves out the patience used up
            state['plateau'] = {
                'restore_lr': self.scheduler.restore_lr,
                **{name: getattr(self.scheduler.lr_scheduler, name) for name in PLATEAU_COUNTERS}}
        return state


def resume(
        task: TrainingTask,
        path: str,
        optimizer: Optional[torch.optim.Optimizer] = None,
        loss_scaler: Any = None,
        scheduler: Any = None,
) -> Progress:
    """Restore a run from a checkpoint: model, heads and running average, and what else is given of it.

    Raises:
        ValueError: The file is missing, damaged, or no checkpoint of a run.
    """
    try:
        state = load_checkpoint_metadata(path)
    except FileNotFoundError:
        raise ValueError(f'There is no checkpoint {path}.') from None
    except Exception as e:
        raise ValueError(f'The checkpoint {path} cannot be read ({type(e).__name__}), so it is damaged or no '
                         f'checkpoint: {newest_good(path)}') from e
    if not isinstance(state, dict) or not {'state_dict', 'epoch'} <= set(state):
        raise ValueError(f'{path} has weights but no run to resume: start from it by --initial-checkpoint.')
    try:
        task.load_checkpoint_state(clean_state_dict(state['state_dict']), state.get('task_state'))
        if task.has_ema():
            ema = 'state_dict_ema' in state
            task.load_checkpoint_state(
                clean_state_dict(state['state_dict_ema' if ema else 'state_dict']),
                state.get('task_state_ema' if ema else 'task_state'), ema=True)
        if optimizer is not None and 'optimizer' in state:
            optimizer.load_state_dict(state['optimizer'])
    except (RuntimeError, ValueError) as e:
        raise ValueError(f'The checkpoint {path} does not fit this run: {" ".join(str(e).split())[:500]}') from e
    if loss_scaler is not None and loss_scaler.state_dict_key in state:
        loss_scaler.load_state_dict(state[loss_scaler.state_dict_key])
    saver = state.get('saver', {})
    if isinstance(scheduler, PlateauLRScheduler) and 'plateau' in saver:
        scheduler.restore_lr = saver['plateau']['restore_lr']
        for name in PLATEAU_COUNTERS:
            setattr(scheduler.lr_scheduler, name, saver['plateau'][name])
    saved = saver.get('progress')
    return Progress(**saved) if saved else Progress(state['epoch'] + 1, 0, 0)


def gather_buffers(task: TrainingTask) -> Optional[List[Dict[str, torch.Tensor]]]:
    """What each of several processes has of its own, by rank, on the first of them; else None. All must call it.

    The weights are everywhere the same. The statistics of BatchNorm are not, until `--dist-bn` averages them after an
    epoch, nor is their running average: without these a run that was interrupted in mid-epoch would go on as another.
    """
    if not dist.is_initialized():
        return None
    gathered = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object({name: buffer.cpu() for name, buffer in _buffers(task).items()}, gathered)
    return gathered


def restore_buffers(task: TrainingTask, buffers: Optional[List[Dict[str, torch.Tensor]]]) -> None:
    """Give a process back what `gather_buffers` gathered of it, after `prepare_distributed`, which evens it out."""
    if buffers and dist.is_initialized() and len(buffers) == dist.get_world_size():
        own = buffers[dist.get_rank()]
        for name, buffer in _buffers(task).items():
            buffer.copy_(own[name])


def _buffers(task: TrainingTask) -> Dict[str, torch.Tensor]:
    """Buffers of numbers of the model and of its running average, if there is one."""
    return {
        f'{"ema." if ema else ""}{name}': buffer
        for ema in (False, True) if task.get_trainable_module(ema=ema) is not None
        for name, buffer in unwrap_model(task.get_trainable_module(ema=ema)).named_buffers()
        if buffer.is_floating_point()}


def newest_good(path: str) -> str:
    """What to resume in place of a damaged checkpoint, as a sentence."""
    folder = os.path.dirname(path) or '.'
    others = [os.path.join(folder, f) for f in os.listdir(folder) if f.endswith('.pth.tar')]
    for other in sorted(others, key=os.path.getmtime, reverse=True):
        try:
            if not os.path.samefile(other, path) and 'state_dict' in load_checkpoint_metadata(other):
                return f'the newest good one is {other}.'
        except Exception:
            continue
    return 'there is no good one beside it.'
