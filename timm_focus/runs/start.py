"""Loads weights into a model that is to be trained."""
import functools
import logging
from typing import Any

import timm
from timm.models import get_model_args, load_checkpoint
from torch import nn

from timm_focus.method import HEADS, FocusNet
from timm_focus.models.weights import argument_of, misfit, native_state, tensors_by
from timm_focus.utils.errors import as_settings_error

from .checkpoint import read_checkpoint
from .model import load_heads

__all__ = ['start_from']

_logger = logging.getLogger(__name__)


def start_from(model: nn.Module, path: str, new_classifier: bool = False) -> str:
    """Load the weights of a checkpoint into a model that is to be trained.

    The classifier and the heads of focus training are loaded only if the number of classes is the same.

    Args:
        model: A plain timm model, or a `FocusNet`.
        path: As for `read_checkpoint`, or an original .npz file, for models whose .npz files timm can read.
        new_classifier: Do not load the classifier and the heads.

    Returns:
        A sentence on what was loaded.

    Raises:
        ValueError: There is no such checkpoint, or it does not fit; the message counts the tensors that fit and
            names the first that do not.
    """
    plain: Any = model.backbone if isinstance(model, FocusNet) else model
    name = plain.pretrained_cfg['architecture']
    if path.endswith(('.npz', '.npy')):
        with as_settings_error(f'{path} cannot be read into {name}'):
            load_checkpoint(plain, path)
        return f'The weights of {path} are taken.'
    found = read_checkpoint(path)
    kwargs = {**getattr(plain, '_model_args', {}), **get_model_args(plain)}
    create = functools.partial(timm.create_model, name, **kwargs)
    with as_settings_error(f'{path} into {name} does not go'):
        classifier = tensors_by(create, 'num_classes')
        n = argument_of(create, 'num_classes', found.state)
        given = [n] if n is not None else list(dict.fromkeys((
            found.settings.get('num_classes') or plain.num_classes, plain.num_classes, 1000, 0)))
        for i, n in enumerate(given):
            try:
                state = native_state(name, found.state, **{**kwargs, 'num_classes': n})
                break
            except ValueError:
                if i == len(given) - 1:
                    native_state(name, found.state, **{**kwargs, 'num_classes': given[0]})
        kept = n == plain.num_classes and not new_classifier
        if not kept:
            state = {k: v for k, v in state.items() if k not in classifier}
        plain.load_state_dict(state, strict=False)
    total = len(plain.state_dict())
    note = f'{len(state)} of the {total} tensors of {name} are taken from {found.path}'
    if not kept:
        classes = f'has {n} classes in place of {plain.num_classes}' if n != plain.num_classes else 'is not asked for'
        return f'{note}: its classifier {classes}, and a new one is trained.'
    if isinstance(model, FocusNet):
        if not found.heads:
            return f'{note}: it has no heads of focus training, and new ones are trained.'
        try:
            load_heads(model, found.heads)
        except ValueError as e:
            return f'{note}, but not its heads, so new ones are trained: {e}.'
        return f'{note}, and its heads.'
    return f'{note}.'


def _load_with_heads(model: nn.Module, checkpoint_path: str, *args: Any, **kwargs: Any) -> Any:
    """Load by timm's `load_checkpoint`, and for a `FocusNet` also the heads, if the checkpoint has them."""
    if isinstance(model, FocusNet):
        found = read_checkpoint(str(checkpoint_path))
        why = misfit({k: tuple(v.shape) for k, v in model.backbone.state_dict().items()}, found.state)
        if why:
            raise ValueError(f'{checkpoint_path} does not fit the model: {why}.')
        if found.heads:
            load_heads(model, found.heads)
        else:
            _logger.warning(f'{checkpoint_path} is of a plain model: {", ".join(HEADS)} are not in it and are new.')
        return model.backbone.load_state_dict(found.state)
    return load_checkpoint(model, checkpoint_path, *args, **kwargs)


# create_model('focus_...', checkpoint_path=...) reads the file itself and only passes the plain weights to the model
timm.models._factory.load_checkpoint = _load_with_heads
