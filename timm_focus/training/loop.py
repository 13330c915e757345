"""The loop of train_focus.py: one epoch of training, one pass of validation. It knows tasks, not methods."""
import argparse
import contextlib
import logging
import math
import sys
import time
from typing import Any, Callable, Dict, Optional

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.task.evaluator import evaluation_sample_limit
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .checkpoint import FocusCheckpointSaver, Progress
from .reproducible import seed_all

__all__ = ['train_one_epoch', 'validate']

_logger = logging.getLogger('train')


class Averages:
    """Means of named scalars over images, kept on the device: reading them is what waits for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.sums: Dict[str, Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def update(self, values: Dict[str, Tensor], n: int) -> None:
        dtype = torch.float32 if self.device.type == 'mps' else torch.float64
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().to(dtype) * n
        self.count += n

    def means(self, distributed: bool = False) -> Dict[str, float]:
        if not self.sums:
            return {}
        packed = torch.stack([*self.sums.values(), torch.full_like(next(iter(self.sums.values())), self.count)])
        if distributed:
            dist.all_reduce(packed)
        *sums, count = packed.tolist()
        return {name: total / count for name, total in zip(self.sums, sums)}


def _describe(means: Dict[str, float]) -> str:
    parts = []
    for name, value in means.items():
        if name == 'erased_fraction':
            parts.append(f'erased {100 * value:.1f}%')
        else:
            parts.append(f'{name.removesuffix("_loss")} {value:.4f}')
    return '  '.join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'


def _bar(total: int, initial: int, name: str, show: bool) -> tqdm:
    return tqdm(
        total=total, initial=initial, desc=name, unit='batch', leave=False, dynamic_ncols=True, disable=not show)


def train_one_epoch(
        task: TrainingTask,
        loader: Any,
        optimizer: torch.optim.Optimizer,
        args: argparse.Namespace,
        start: Progress,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        loss_scaler: Any = None,
        lr_scheduler: Any = None,
        saver: Optional[FocusCheckpointSaver] = None,
        augment: Optional[Callable[[Tensor], Tensor]] = None,
        mixup_fn: Optional[Callable[[Tensor, Tensor], Any]] = None,
) -> Dict[str, float]:
    """Train from `start` to the end of its epoch.

    Args:
        task: What is trained.
        loader: Gives images `[B, C, H, W]`, normalised, and targets.
        optimizer: Steps after every `args.grad_accum_steps` batches.
        args: Settings of train_focus.py.
        start: Epoch and batch to begin with, and updates made before.
        device: Where to train.
        autocast: Context of the forward pass.
        loss_scaler: timm's, for float16.
        lr_scheduler: timm's, stepped by update here.
        saver: Writes recovery checkpoints.
        augment: Changes images on the device, such as Hide-and-Seek.
        mixup_fn: Mixes batches, where the loader does not.

    Returns:
        Means of the task's scalars over the images of all processes, this call's part of the epoch.

    Raises:
        FloatingPointError: The mean loss is not finite.
    """
    task.train()
    epoch, n_batches, accum = start.epoch, len(loader), args.grad_accum_steps
    last_window = n_batches - n_batches % accum  # the batches from here on are fewer than a full window
    updates = start.updates
    epoch_means, recent = Averages(device), Averages(device)
    primary = args.rank == 0
    exclude_head = args.clip_mode == 'agc'
    parameters = list(task.get_clip_parameters(exclude_head=exclude_head)) if args.clip_grad is not None else None

    optimizer.zero_grad()
    began = time.perf_counter()
    bar = _bar(n_batches, start.batch, f'Train {epoch}', primary and sys.stderr.isatty())
    with bar, logging_redirect_tqdm() if not bar.disable else contextlib.nullcontext():
        for batch, (input, target) in enumerate(loader, start.batch):
            window = accum if batch < last_window else n_batches - last_window
            update = (batch + 1) % accum == 0 or batch + 1 == n_batches
            if not args.prefetcher:
                input, target = input.to(device), target.to(device)
                if mixup_fn is not None:
                    input, target = mixup_fn(input, target)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)

            seed_all(args.seed, 'step', epoch, batch, args.rank)
            if augment is not None:
                input = augment(input)
            with contextlib.nullcontext() if update else task.no_sync():
                with autocast():
                    result = task(input, target)
                loss = result['loss'] / window
                if loss_scaler is not None:
                    loss_scaler(loss, optimizer, clip_grad=args.clip_grad, clip_mode=args.clip_mode,
                                parameters=parameters, need_update=update)
                else:
                    loss.backward()
                    if update:
                        if args.clip_grad is not None:
                            dispatch_clip_grad(parameters, args.clip_grad, mode=args.clip_mode)
                        optimizer.step()
            scalars = {name: value for name, value in result.items() if name != 'output'}
            epoch_means.update(scalars, input.shape[0])
            recent.update(scalars, input.shape[0])
            bar.update()

            if update:
                optimizer.zero_grad()
                updates += 1
                task.update_ema(step=updates)
                if lr_scheduler is not None:
                    lr_scheduler.step_update(num_updates=updates)
                if args.synchronize_step and device.type == 'cuda':
                    torch.cuda.synchronize()

            if (batch + 1) % args.log_interval == 0 or batch + 1 == n_batches:
                means = recent.means()
                now = time.perf_counter()
                rate = recent.count * args.world_size / (now - began)
                seconds = (now - began) * args.batch_size / recent.count
                left = n_batches - batch - 1 + (args.last_epoch - epoch - 1) * n_batches
                lr = max(group['lr'] for group in optimizer.param_groups)
                if primary:
                    _logger.info(
                        f'Train: {epoch} [{batch + 1:>4}/{n_batches}]  {_describe(means)}  lr {lr:.3e}  '
                        f'{rate:.1f} img/s  left {_duration(left * seconds)}')
                recent, began = Averages(device), time.perf_counter()

            if saver is not None and args.recovery_interval and update and batch + 1 < n_batches \
                    and (batch + 1) // args.recovery_interval > (batch + 1 - window) // args.recovery_interval:
                saver.progress = Progress(epoch, batch + 1, updates)
                saver.save_recovery(epoch, batch_idx=batch)

    means = epoch_means.means(args.distributed)
    if not math.isfinite(means['loss']):
        raise FloatingPointError(
            f'The loss of epoch {epoch} is {means["loss"]}: lower --lr, or clip with --clip-grad.')
    return means


def validate(
        model: nn.Module,
        loader: Any,
        task: TrainingTask,
        args: argparse.Namespace,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        name: str = 'Validate',
) -> Dict[str, float]:
    """Loss and accuracies in percent of a model over all images of a loader, each counted once over all processes."""
    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    model.eval()
    bar = _bar(len(loader), 0, name, args.rank == 0 and sys.stderr.isatty())
    with bar, torch.inference_mode():
        for input, target in loader:
            if not args.prefetcher:
                input, target = input.to(device), target.to(device)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            with autocast():
                output = model(input)
            evaluator.update(output, target)
            bar.update()
    metrics = evaluator.compute(distributed=args.distributed)
    if args.rank == 0:
        _logger.info(f'{name}: {"  ".join(f"{k} {v:.4f}" for k, v in metrics.items())}')
    return metrics
