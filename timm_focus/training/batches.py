"""Checks, before training, that batches fit the data and the model."""
import argparse
from typing import Any, List, Sequence

import torch
from timm.task import TrainingTask
from torch import nn

from timm_focus.analysis import check_size, plain_model
from timm_focus.baselines import ACoL
from timm_focus.method import FocusNet
from timm_focus.utils.errors import SettingsError, as_settings_error, refused
from timm_focus.utils.meta import ShapesAlone, meta_twin

__all__ = ['advice_on_batches', 'check_sizes', 'check_smallest_batch', 'check_teacher_sizes']


def advice_on_batches(n_images: int, n_batches: int, batch_size: int, epochs: int, window: int = 1) -> str:
    """Return a sentence with a remedy if batches are too large for the data, else ''.

    Args:
        n_images: Number of training images.
        n_batches: Number of whole batches in an epoch. The remaining images are not trained on.
        batch_size: Images of a batch, over all processes.
        epochs: Number of epochs of the run.
        window: Number of batches in an update.
    """
    left = n_images - n_batches * batch_size
    if n_batches > 1 and left <= n_images / 10:
        return ''
    updates = -(-n_batches // window) * epochs
    rest = f' and leave out {left} of the {n_images} training images in each' if left else ''
    better = 2 ** max(int(n_images / 10).bit_length() - 1, 1)
    return (f'Batches of {batch_size} are few: {epochs} epochs make {updates} updates{rest}. Give a smaller '
            f'--batch-size, {better} images at a time or fewer.')


def check_sizes(model: nn.Module, args: argparse.Namespace, input_size: Sequence[int]) -> None:
    """Check, without computing anything, that a model takes images of every size that the run has.

    Args:
        model: The model to train.
        args: Settings of the run.
        input_size: Channels, height and width of validation images, and of training images if no other size is set.

    Raises:
        SettingsError: It does not take them. The message names a nearby size that works, if one is found.
    """
    channels, *size = input_size
    trained: List[Sequence[int]] = [(n, n) for n in args.train_img_sizes or ()]
    with refused():
        _check_size(model, input_size, args.model)
        for other in trained:
            _check_size(model, (channels, *other), args.model, anew=False)
    if isinstance(model, FocusNet) and model.size != 1:
        what = f'--focus-size {model.size:g} makes erased images that the model does not take, so give more'
        with as_settings_error(what):
            for other in trained or [size]:
                _check_size(model, (channels, *model.erased_size(other)), 'It', anew=False)


def check_teacher_sizes(task: TrainingTask, args: argparse.Namespace, input_size: Sequence[int]) -> None:
    """Check, as `check_sizes` does, that the teacher of a task, if it has one, takes the images of training.

    Raises:
        SettingsError: It does not take them; a nearby size that works, if one is found.
    """
    teacher: Any = getattr(task, 'teacher', None)
    if teacher is not None:
        with as_settings_error(f'{args.model} cannot learn from --kd-model-name {args.kd_model_name}'):
            for n in args.train_img_sizes or (None,):
                _check_size(teacher.model, input_size if n is None else (input_size[0], n, n), 'It', anew=False)


def _check_size(model: nn.Module, input_size: Sequence[int], name: str, anew: bool = True) -> None:
    twin = meta_twin(plain_model(model))
    dtype = next(p.dtype for p in twin.parameters() if p.is_floating_point())
    try:
        with torch.no_grad(), ShapesAlone():
            twin(torch.zeros(1, *input_size, device='meta', dtype=dtype))
    except Exception:  # a few models cannot run without numbers: then the model itself says it in training
        check_size(model, input_size, name, anew)


def check_smallest_batch(model: nn.Module, args: argparse.Namespace, input_size: Sequence[int]) -> None:
    """Check, without computing anything, that a model trains on the smallest batch if that is a single image.

    Raises:
        SettingsError: BatchNorm would normalise a single value for each channel.
    """
    if args.distributed and args.sync_bn:
        return  # it normalises over all processes
    sizes: List[Sequence[int]] = [(input_size[0], n, n) for n in args.train_img_sizes or ()]
    sizes = sizes or [input_size]
    batches = args.train_batch_sizes or [args.batch_size] * len(sizes)
    for size in (size for size, n in zip(sizes, batches) if n == 1):
        twin = meta_twin(model).train()
        dtype = next(p.dtype for p in twin.parameters() if p.is_floating_point())
        try:
            targets = [torch.zeros(1, device='meta', dtype=torch.long)] if isinstance(model, ACoL) else []
            with torch.no_grad():
                twin(torch.zeros(1, *size, device='meta', dtype=dtype), *targets)
        except ValueError as e:
            if 'more than 1 value per channel' in str(e):
                raise SettingsError(
                    f'BatchNorm in {args.model} cannot train on batches of one image of {size[1]} x {size[2]}, of '
                    'which it has one value a channel: give a --batch-size of 2 or more, or larger images.') from e
        except (NotImplementedError, RuntimeError):  # it cannot run without numbers: training will say it
            return
