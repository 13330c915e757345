"""Resumes a run from a checkpoint, and says what has changed in between."""
import argparse
import inspect
import os
from typing import Any, Dict, Iterable, List, Optional

import torch
from timm.models import clean_state_dict
from timm.scheduler import PlateauLRScheduler
from timm.task import TrainingTask

from timm_focus.runs.kinds import IDENTITY, ORDER
from timm_focus.utils.errors import as_settings_error
from timm_focus.utils.text import brief

from .saver import PLATEAU_COUNTERS, Kept, Progress, load, read_kept

__all__ = ['changed_settings', 'check_order', 'resume']

# what says nothing of how a run is trained
OWN = (*IDENTITY, 'output', 'dry_run', 'local_rank', 'data', 'given')


def resume(
        task: TrainingTask,
        path: str,
        optimizer: Optional[torch.optim.Optimizer] = None,
        loss_scaler: Any = None,
        scheduler: Any = None,
        state: Optional[Dict[str, Any]] = None,
) -> Progress:
    """Restore a run from a checkpoint: model, heads and running average, and the state of all that is given.

    Args:
        task: Task of the run.
        path: Path of the checkpoint.
        optimizer: Optimizer to restore.
        loss_scaler: Loss scaler to restore.
        scheduler: Scheduler to restore; only plateau has a state.
        state: What `load` returned for the file, if it is loaded already.

    Raises:
        ValueError: The file is missing, damaged, or no checkpoint of a run.
    """
    state = load(path) if state is None else state
    progress = read_kept(path, state).progress
    with as_settings_error(f'The checkpoint {path} does not fit this run'):
        task.load_checkpoint_state(clean_state_dict(state['state_dict']), state.get('task_state'))
        if task.has_ema():
            ema = 'state_dict_ema' in state
            task.load_checkpoint_state(
                clean_state_dict(state['state_dict_ema' if ema else 'state_dict']),
                state.get('task_state_ema' if ema else 'task_state'), ema=True)
        if optimizer is not None and 'optimizer' in state:
            optimizer.load_state_dict(state['optimizer'])
            _check_state(optimizer)
        if loss_scaler is not None and loss_scaler.state_dict_key in state:
            loss_scaler.load_state_dict(state[loss_scaler.state_dict_key])
        saver = state.get('saver') or {}
        if isinstance(scheduler, PlateauLRScheduler) and saver.get('plateau') is not None:
            scheduler.restore_lr = saver['plateau']['restore_lr']
            for name in PLATEAU_COUNTERS:
                setattr(scheduler.lr_scheduler, name, saver['plateau'][name])
    return progress


def _check_state(optimizer: torch.optim.Optimizer) -> None:
    """Check that the state loaded into an optimizer has all entries of each parameter that a first step makes.

    Raises:
        ValueError: An entry is missing, so the next step would fail.
    """
    arguments = set(inspect.signature(type(optimizer)).parameters) - {'params'}
    for group in optimizer.param_groups:
        stepped = [p for p in group['params'] if p in optimizer.state]
        if not stepped:
            continue
        probe = torch.nn.Parameter(torch.zeros_like(stepped[0]))
        probe.grad = torch.zeros_like(probe)
        try:
            fresh = type(optimizer)([probe], **{name: group[name] for name in arguments if name in group})
            fresh.step()
        except Exception:  # it wraps another optimizer, or needs more than its defaults
            return
        for p in stepped:
            absent = sorted(set(fresh.state[probe]) - set(optimizer.state[p]))
            if absent:
                raise ValueError(f'the state of its optimizer has no {absent[0]}')


def changed_settings(kept: Kept, args: argparse.Namespace, images: int, names: Iterable[str]) -> List[str]:
    """Return the settings that have changed since a checkpoint was written, each as 'name before -> now'.

    Args:
        kept: The checkpoint.
        args: The settings now, with their final values.
        images: Number of training images now.
        names: Names of the settings to compare. Settings that the checkpoint does not have are left out.
    """
    pairs = [(name.replace('_', '-'), kept.settings[name], getattr(args, name)) for name in names
             if name in kept.settings and name not in OWN]
    if 'world_size' in kept.settings:
        pairs.append(('processes', kept.settings['world_size'], args.world_size))
    if kept.images is not None:
        pairs.append(('training images', kept.images, images))
    return [f'{name} {brief(before)} -> {brief(now)}' for name, before, now in pairs if _plain(before) != _plain(now)]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def check_order(kept: Kept, args: argparse.Namespace, images: int) -> None:
    """Check that the rest of an epoch has exactly the images that were not yet trained on in it.

    Raises:
        ValueError: The checkpoint is from within an epoch, and the settings or the data would give other images.
    """
    epoch, batch = kept.stands
    changed = changed_settings(kept, args, images, [*ORDER, *(['epochs'] if args.train_img_sizes else [])])
    if not batch or not changed:
        return
    folder = os.path.dirname(kept.path)
    last = os.path.join(folder, 'last.pth.tar')
    way = f'--resume {last} goes on from the end of an epoch' if os.path.exists(last) else 'begin the run anew'
    raise ValueError(
        f'{kept.path} stands in the middle of epoch {epoch}, after batch {batch}, and in the rest of it images would '
        f'be skipped or come twice, since {", ".join(changed)}: leave that as it was, or {way}.')
