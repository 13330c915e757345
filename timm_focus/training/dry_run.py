"""Measures what training would cost, by two of its steps."""
import argparse
import logging
import sys
import time
from typing import Any, Dict, Iterable, Iterator, Optional, Tuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_focus.baselines import ACoL
from timm_focus.method import FocusNet
from timm_focus.utils.meta import meta_twin

from .starts import AUTO

__all__ = ['TwoSteps', 'describe_training', 'differing', 'training_multiply_adds']

_logger = logging.getLogger('train')


class TwoSteps:
    """A loader that gives one batch twice: the first step warms up, the second is timed.

    Attributes:
        seconds: Duration of the second step, once both are made.
    """

    def __init__(self, batch: Any, device: torch.device):
        self.batch, self.device = batch, device
        self.seconds = 0.

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Any]:
        yield self.batch
        began = self._now()
        yield self.batch
        self.seconds = self._now() - began

    def _now(self) -> float:
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def training_multiply_adds(model: nn.Module, images: torch.Tensor) -> Optional[int]:
    """Count the multiply-adds of a training step, forward and backward, on images of this shape, without computing it.

    The count is three times that of the forward pass in training, with its second pass and its heads. Recomputation and
    a teacher are not counted. None for the few models that cannot run without numbers.
    """
    twin = meta_twin(model).train()
    for module in twin.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.eval()  # in training it takes tensors of a GPU alone; it has no multiply-adds that are counted
    dtype = next(p.dtype for p in twin.parameters() if p.is_floating_point())
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            targets = [torch.zeros(len(images), device='meta', dtype=torch.long)] if isinstance(model, ACoL) else []
            twin(torch.zeros(images.shape, device='meta', dtype=dtype), *targets)
    except (NotImplementedError, RuntimeError):
        return None
    return 3 * counter.get_total_flops() // 2


def mean_step(model: nn.Module, images: torch.Tensor, every: int = 1) -> Tuple[Optional[float], float]:
    """Return the multiply-adds of a mean training step (None if they cannot be counted), and how many passes they make.

    Args:
        model: The model to train. The second pass of a `FocusNet` may be that of a part of the batch, of smaller images
            or of fewer tokens.
        images: A batch.
        every: Number of steps from one that erases to the next.
    """
    whole = training_multiply_adds(model, images)
    if not (isinstance(model, FocusNet) and model.erased_branch):
        return whole, 1.
    model.erase_in_this_step(False)
    one = training_multiply_adds(model, images)  # the cost of heads is negligible
    model.erase_in_this_step(True)
    if whole is None or not one:
        return None, 1 + model.batch_fraction / every
    return one + (whole - one) / every, 1 + (whole - one) / one / every


def _peak_memory(device: torch.device) -> str:
    if device.type == 'cuda':
        return f'the device had {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB allocated at most'
    try:
        import resource
    except ImportError:  # Windows
        return ''
    unit = 1 if sys.platform == 'darwin' else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f'the process had {peak / 1e9:.2f} GB at most'


def _duration(seconds: float) -> str:
    for size, name in ((86400, 'days'), (3600, 'hours'), (60, 'minutes')):
        if seconds >= 2 * size:
            return f'{seconds / size:.1f} {name}'
    return f'{seconds:.3g} seconds'


def describe_training(
        args: argparse.Namespace,
        model: nn.Module,
        steps: TwoSteps,
        n_batches: int,
        num_epochs: int,
        device: torch.device,
) -> None:
    """Print what training costs: passes, operations, memory and time.

    Args:
        args: Settings of the run.
        model: The model, unwrapped.
        steps: Two steps that were made.
        n_batches: Number of batches in an epoch.
        num_epochs: Number of epochs.
        device: Device of the steps.
    """
    images = steps.batch[0]
    operations, passes = mean_step(model, images, getattr(args, 'focus_every', 1))
    text = f'{passes:.3g} passes over the images a step' if passes != 1 else 'one pass over the images a step'
    if operations is not None:
        epoch = operations * n_batches * args.world_size
        text += (f', {operations / len(images):.3g} multiply-adds an image forward and backward, {epoch:.3g} an epoch, '
                 f'{epoch * num_epochs:.3g} in all')
    if args.method == 'focus' and args.focus_start:
        text += ('; one pass before images are erased' if args.focus_start == AUTO else
                 f'; one pass in the first {args.focus_start} epochs')
    _logger.info(f'Cost of training: {text}')
    peak = _peak_memory(device)
    if peak:
        _logger.info(f'Memory of a step: {peak}')
    _logger.info(
        f'Time: a step took {_duration(steps.seconds)} (the second of two), so an epoch of {n_batches} takes about '
        f'{_duration(steps.seconds * n_batches)}, and {num_epochs} epochs '
        f'{_duration(steps.seconds * n_batches * num_epochs)}, where images come in time, and without validation')


def differing(parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str]) -> Dict[str, Any]:
    """Return those of the named settings that differ from the defaults of a parser."""
    return {name: getattr(args, name) for name in names if getattr(args, name) != parser.get_default(name)}
