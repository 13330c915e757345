"""The loop of train_focus.py: an epoch of training, and a pass of validation. It knows tasks, not methods."""
import argparse
import contextlib
import functools
import itertools
import logging
import os
import sys
import time
from typing import Any, Callable, Dict, Iterator, Optional

import torch
import torch.distributed as dist
from timm.task import TrainingTask
from timm.task.evaluator import evaluation_sample_limit
from timm.utils import dispatch_clip_grad
from torch import Tensor
from torchvision.utils import save_image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from timm_focus.data.dataset import DataError
from timm_focus.utils import open_whole
from timm_focus.utils.warned import warned

from .device import cores
from .interrupt import Interrupted, Interruption
from .reproducible import seed_all
from .saver import FocusCheckpointSaver, Progress, check_finite, gather_buffers
from .starts import AUTO

__all__ = ['train_one_epoch', 'validate']

_logger = logging.getLogger('train')


class Waited:
    """Times the waits for the batches of a loader, without the first.

    Attributes:
        seconds: Seconds of waiting since it was last set to 0.
        began: Time at which the first batch came.
    """

    def __init__(self, loader: Any):
        self.loader = loader
        self.seconds = 0.
        self.began = time.perf_counter()

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        for i in itertools.count():
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if i:
                self.seconds += time.perf_counter() - began
            else:
                self.began = time.perf_counter()
            yield batch


def _advice(args: argparse.Namespace) -> str:
    """Say what to do if images come too slowly."""
    if args.workers < cores():
        return f'give more --workers, {args.workers} of them share {cores()} cores'
    return ('keep the images as small as they are needed (a short side of 8/7 of the input), on a disk of this machine '
            'or in shards (--dataset wds/...), or augment less')


class Averages:
    """Means of named scalars over images. They are kept on the device, and only reading them waits for it.

    Args:
        device: Device of the scalars.
        totals: Earlier `totals` to go on from.
    """

    def __init__(self, device: torch.device, totals: Optional[Dict[str, float]] = None):
        self.device = device
        self.dtype = torch.float32 if device.type == 'mps' else torch.float64
        totals = dict(totals or {})
        self.count = totals.pop('count', 0)
        self.sums = {name: torch.tensor(total, dtype=self.dtype, device=device) for name, total in totals.items()}

    @torch.no_grad()
    def update(self, values: Dict[str, Tensor], n: int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().to(self.dtype) * n
        self.count += n

    def copy(self) -> 'Averages':
        """Return a copy of the present state. It shares the sums, which are never changed in place."""
        copied = Averages(self.device)
        copied.sums, copied.count = dict(self.sums), self.count
        return copied

    def totals(self, distributed: bool = False) -> Dict[str, float]:
        """Return sums over images by name, and the number of images as 'count'."""
        count = torch.tensor(self.count, dtype=self.dtype, device=self.device)
        packed = torch.stack([*self.sums.values(), count])
        if distributed:
            dist.all_reduce(packed)
        return dict(zip([*self.sums, 'count'], packed.tolist()))


def _means(totals: Dict[str, float]) -> Dict[str, float]:
    return {name: total / totals['count'] for name, total in totals.items() if name != 'count'}


def _describe(means: Dict[str, float]) -> str:
    """Write the loss and its terms, the training accuracy if it is counted, and the share of erased pixels."""
    terms = ', '.join(f'{name.removesuffix("_loss")} {value:.4f}' for name, value in means.items()
                      if name not in ('loss', 'erased_fraction', 'top1'))
    text = f'loss {means["loss"]:.4f}' + (f' ({terms})' if terms else '')
    text += f'  top1 {means["top1"]:.1f}' if 'top1' in means else ''
    return text + (f'  erased area {100 * means["erased_fraction"]:.1f}%' if 'erased_fraction' in means else '')


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}'


def _bar(total: int, initial: int, name: str, show: bool) -> tqdm:
    return tqdm(
        total=total, initial=initial, desc=name, unit='batch', leave=False, dynamic_ncols=True, disable=not show)


@contextlib.contextmanager
def _when_data_ends(keep: Callable[[], None]) -> Iterator[None]:
    """Write a recovery checkpoint if lost data ends the run."""
    try:
        yield
    except DataError:
        keep()
        raise


def _loss_scale(args: argparse.Namespace, input: Tensor) -> float:
    """Return the weight of the loss of a batch whose size the schedule of resolutions chose."""
    scale = input.shape[0] / args.batch_size
    return {'none': 1., 'sqrt': scale ** 0.5, 'linear': scale}[args.variable_batch_loss_scale]


@torch.no_grad()
def _known(output: Tensor, target: Tensor) -> Tensor:
    """Return for how many percent of the images the logits give the label (of mixed images the larger one)."""
    label = target if target.ndim == 1 else target.argmax(1)
    return 100 * (output.argmax(1) == label).float().mean()


def _keep_picture(input: Tensor, stem: str) -> None:
    """Draw a batch into a file. The ending is added, as JPEG has 1 or 3 channels. A failure only gives a warning."""
    name, ending = ('jpeg', 'jpg') if input.shape[1] in (1, 3) else ('png', 'png')
    path = f'{stem}.{ending}'
    with warned(f'{path} cannot be drawn', _logger), open_whole(path, 'wb') as f:
        save_image(input.float(), f, format=name, padding=0, normalize=True)


def _backward(loss: Tensor, scale: float, scaler: Any = None) -> None:
    """Run the backward pass of a part of the loss within a forward pass, but outside of its autocast."""
    with torch.autocast(loss.device.type, enabled=False):
        if scaler is not None:
            scaler(loss * scale, None, need_update=False)
        else:
            (loss * scale).backward()
    torch.clear_autocast_cache()  # its cached copies of weights belong to a graph that is gone


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
        interruption: Optional[Interruption] = None,
) -> Dict[str, float]:
    """Train from `start` to the end of its epoch.

    Args:
        task: Task of the run.
        loader: Loader of normalised images `[B, C, H, W]` and targets.
        optimizer: Optimizer; it steps after every `args.grad_accum_steps` batches.
        args: Settings of train_focus.py.
        start: Epoch and batch to begin with, and the number of updates made before.
        device: Device to train on.
        autocast: Context of the forward pass.
        loss_scaler: timm's loss scaler, for float16.
        lr_scheduler: timm's scheduler; this steps it after each update.
        saver: Saver of recovery checkpoints; its `progress` is kept up to date.
        augment: Function that changes images on the device, such as Hide-and-Seek.
        mixup_fn: Function that mixes batches if the loader does not.
        interruption: Signals, which end the epoch after an update.

    Returns:
        Means of the task's scalars over the epoch's images of all processes, and 'top1', the percentage of them that
        the main classifier knew, if something starts by it.

    Raises:
        DataError: The data is gone, or too much of it cannot be read. If a single process trains, it writes a recovery
            checkpoint first.
        FloatingPointError: The mean loss or the weights are not finite. No checkpoint keeps them.
        Interrupted: A signal was noted, and a recovery checkpoint written.
    """
    task.train()
    epoch, n_batches, accum = start.epoch, len(loader), args.grad_accum_steps
    last_window = n_batches - n_batches % accum  # the last window of an epoch may have fewer batches
    updates = start.updates
    primary = args.rank == 0
    before = start.totals or {}  # sums of all processes, which one process counts
    whole, recent = Averages(device, before if primary else dict.fromkeys(before, 0)), Averages(device)
    dtype = getattr(torch, args.model_dtype or 'float32')
    exclude_head = args.clip_mode == 'agc'
    counts_known = AUTO in (args.focus_start, args.scheme)
    step = getattr(task, 'training_step', lambda input, target, *_: task(input, target))
    parameters = list(task.get_clip_parameters(exclude_head=exclude_head)) if args.clip_grad is not None else None

    optimizer.zero_grad()
    began, logged = time.perf_counter(), start.batch
    waited, starved = Waited(loader), 0.
    bar = _bar(n_batches, start.batch, f'Train {epoch}', primary and sys.stderr.isatty())
    done, scalars_done = start, whole.copy()  # the state after the last update

    def keep_done() -> None:  # this process alone decides: the others wait for its gradients
        if saver is not None and not args.distributed and done.batch > start.batch:
            totals = scalars_done.totals()
            check_finite(task, optimizer, totals, epoch)
            saver.progress = done._replace(totals=totals)
            saver.save_recovery(epoch, batch_idx=done.batch - 1)

    redirected = logging_redirect_tqdm() if not bar.disable else contextlib.nullcontext()
    with bar, redirected, _when_data_ends(keep_done):
        for batch, (input, target) in enumerate(waited, start.batch):
            window = accum if batch < last_window else n_batches - last_window
            update = (batch + 1) % accum == 0 or batch + 1 == n_batches
            if not args.prefetcher:
                input, target = input.to(device, dtype, non_blocking=True), target.to(device, non_blocking=True)
                if mixup_fn is not None:
                    input, target = mixup_fn(input, target)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)

            seed_all(args.seed, 'step', epoch, batch, args.rank)
            if augment is not None:
                input = augment(input)
            with contextlib.nullcontext() if update else task.no_sync():
                scale = _loss_scale(args, input) / window
                with autocast():
                    result = step(input, target, batch, functools.partial(_backward, scale=scale, scaler=loss_scaler))
                loss = result.pop('to_go', result['loss']) * scale
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
            if counts_known:
                scalars['top1'] = _known(result['output'], target)
            whole.update(scalars, input.shape[0])
            recent.update(scalars, input.shape[0])
            bar.update()

            if update:
                optimizer.zero_grad()
                updates += 1
                done, scalars_done = start._replace(batch=batch + 1, updates=updates, totals=None), whole.copy()
                task.update_ema(step=updates)
                if lr_scheduler is not None:
                    lr_scheduler.step_update(num_updates=updates)
                if args.synchronize_step and device.type == 'cuda':
                    torch.cuda.synchronize()

            if (batch + 1) % args.log_interval == 0 or batch + 1 == n_batches:
                computed = time.perf_counter()
                means = _means(recent.totals())
                now = time.perf_counter()
                # if the device is still busy, it was not short of images, however long the host waited for them
                idle = max(waited.seconds - (now - computed), 0.)
                starved += idle
                rate = recent.count * args.world_size / (now - began)
                seconds = (now - began) / (batch + 1 - logged)
                left = n_batches - batch - 1 + (args.last_epoch - epoch - 1) * n_batches
                lr = max(group['lr'] for group in optimizer.param_groups)
                if primary:
                    _logger.info(
                        f'Train: {epoch} [{batch + 1:>4}/{n_batches}]  {_describe(means)}  lr {lr:.3e}  '
                        f'{rate:.1f} img/s  waiting {100 * idle / (now - max(began, waited.began)):.0f}%  '
                        f'left {_duration(left * seconds)}')
                    if args.save_images and saver is not None:
                        _keep_picture(input, os.path.join(saver.checkpoint_dir, f'train-batch-{batch}'))
                recent, began, logged = Averages(device), time.perf_counter(), batch + 1
                waited.seconds = 0.

            if update and batch + 1 < n_batches:
                number = interruption.noted() if interruption is not None else 0
                due = args.recovery_interval and \
                    (batch + 1) // args.recovery_interval > (batch + 1 - window) // args.recovery_interval
                if number or due:
                    totals, buffers = whole.totals(args.distributed), gather_buffers(task)
                    check_finite(task, optimizer, totals, epoch)
                    if saver is not None:
                        saver.progress = start._replace(
                            batch=batch + 1, updates=updates, totals=totals, buffers=buffers)
                        saver.save_recovery(epoch, batch_idx=batch)
                if number:
                    raise Interrupted(number)

    share = starved / (time.perf_counter() - waited.began)
    if primary and share > 0.2:
        _logger.warning(f'Epoch {epoch} waited for images {100 * share:.0f}% of its time, so the loader is the '
                        f'bottleneck: {_advice(args)}.')
    if loss_scaler is not None:
        scale = loss_scaler.state_dict()['scale']
        if primary and scale < 1:  # even the unscaled loss has gradients too large for float16
            _logger.warning(f'Epoch {epoch} skipped updates until the loss scale was down to {scale:.2g}, since '
                            'gradients overflow float16: --amp-dtype bfloat16 holds them.')
    totals, buffers = whole.totals(args.distributed), gather_buffers(task)
    if saver is not None:
        saver.progress = start._replace(batch=n_batches, updates=updates, totals=totals, buffers=buffers)
    check_finite(task, optimizer, totals, epoch)
    return _means(totals)


def validate(
        model: Any,
        loader: Any,
        task: TrainingTask,
        args: argparse.Namespace,
        device: torch.device,
        autocast: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        name: str = 'Validate',
        interruption: Optional[Interruption] = None,
) -> Dict[str, float]:
    """Return loss and accuracies in percent of a model over all images of a loader; each image counts once.

    Raises:
        DataError: The data is gone, or too much of it cannot be read.
        Interrupted: A signal was noted.
    """
    evaluator = task.create_evaluator(max_samples=evaluation_sample_limit(loader))
    model.eval()
    bar = _bar(len(loader), 0, name, args.rank == 0 and sys.stderr.isatty())
    with bar, torch.inference_mode():
        for input, target in loader:
            if not args.prefetcher:
                dtype = getattr(torch, args.model_dtype or 'float32')
                input, target = input.to(device, dtype, non_blocking=True), target.to(device, non_blocking=True)
            if args.channels_last:
                input = input.contiguous(memory_format=torch.channels_last)
            with autocast():
                output = model(input)
            evaluator.update(output, target)
            bar.update()
            if interruption is not None:
                interruption.check()
    metrics = evaluator.compute(distributed=args.distributed)
    if args.rank == 0:
        _logger.info(f'{name}: {"  ".join(f"{k} {v:.4f}" for k, v in metrics.items())}')
    return metrics
