"""Compares a state dict with a model by the shapes of its tensors, before the model is made."""
import logging
import math
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import timm
import torch
from torch import Tensor, nn

__all__ = ['argument_of', 'misfit', 'native_state', 'shapes_of', 'tensors_by']

_logger = logging.getLogger(__name__)

Make = Callable[..., nn.Module]
State = Dict[str, Tensor]
COUNTER = 'num_batches_tracked'  # old checkpoints lack it, and torch does not need it


def shapes_of(make: Make, **kwargs: Any) -> Dict[str, Tuple[int, ...]]:
    """Shapes of a model's tensors by name. The model is made on the meta device, so it takes no memory.

    Args:
        make: Function that makes the model.
        **kwargs: Arguments of `make`.
    """
    with torch.device('meta'):
        return {name: tuple(tensor.shape) for name, tensor in make(**kwargs).state_dict().items()}


def tensors_by(make: Make, argument: str) -> Dict[str, Tuple[int, int]]:
    """Tensors whose shape depends on a model's argument, such as num_classes: the axis, and its size per unit."""
    two, three = (shapes_of(make, **{argument: n}) for n in (2, 3))
    found = {}
    for name, shape in two.items():
        for axis, (a, b) in enumerate(zip(shape, three.get(name, ()))):
            if a != b and a == 2 * (b - a):
                found[name] = axis, b - a
    return found


def argument_of(make: Make, argument: str, state: State) -> Optional[int]:
    """Infer the value of a model's argument, such as num_classes, from the tensors that depend on it.

    Returns:
        The value; None if no tensor in the state dict tells it.

    Raises:
        ValueError: The tensors give different values.
    """
    found = {}
    for name, (axis, unit) in tensors_by(make, argument).items():
        if name in state and state[name].ndim > axis:
            found[name] = state[name].shape[axis] // unit
    if len(set(found.values())) > 1:
        raise ValueError(f'{argument} differs in it: ' + ', '.join(f'{n} of {name}' for name, n in found.items()))
    return next(iter(found.values()), None)


def misfit(own: Mapping[str, Tuple[int, ...]], state: State) -> str:
    """Describe how a state dict differs from a model; '' if it fits.

    Args:
        own: Shapes of the model's tensors by name.
        state: The state dict.
    """
    absent = [k for k in own if k not in state and not k.endswith(COUNTER)]
    strange = [k for k in state if k not in own]
    shapes = [f'{k} {tuple(state[k].shape)} for {own[k]}' for k in own if k in state and state[k].shape != own[k]]
    if not absent and not strange and not shapes:
        return ''
    fits = sum(k in state and state[k].shape == shape for k, shape in own.items())
    parts = [f'{len(items)} {kind}, such as {items[0]}' for items, kind in (
        (absent, 'are missing'), (strange, 'are unknown'), (shapes, 'have other shapes')) if items]
    return f'of {len(own)} tensors {fits} fit; {"; ".join(parts)}'


def native_state(name: str, state: State, num_classes: int, **kwargs: Any) -> State:
    """Translate a state dict to the names and shapes of timm's model.

    Its names and shapes may come from another library, an older version or another image size. timm can read the
    official checkpoints of its models.

    Args:
        name: timm's name of the model.
        state: The state dict.
        num_classes: Number of classes of the state dict; 0 if it has no classifier.
        **kwargs: Arguments of `timm.create_model` for the model.

    Raises:
        ValueError: The state dict is of another architecture; the message counts the tensors that fit and names the
            first that do not.
    """
    kwargs['num_classes'] = num_classes
    own = shapes_of(timm.create_model, model_name=name, **kwargs)
    why = misfit(own, state)
    if not why:
        return state
    if sum(map(math.prod, own.values())) <= 4 * sum(t.numel() for t in state.values()):  # else not this model's
        translated = _translated(name, state, kwargs)
        # for some models timm ignores the names: a translation only proves a fit if a wrong state dict is refused
        if translated and not _translated(name, {'none': torch.zeros(1)}, kwargs):
            resized = [f'{k} from {tuple(state[k].shape)} to {tuple(v.shape)}' for k, v in translated.items()
                       if k in state and state[k].shape != v.shape]
            if resized:
                _logger.warning(f'{len(resized)} tensors are resized to fit {name}, such as {resized[0]}.')
            return translated
    raise ValueError(f'it is of another architecture: {why}')


def _translated(name: str, state: State, kwargs: Dict[str, Any]) -> Optional[State]:
    """The state dict after timm loaded it into a model; None if timm cannot."""
    overlay = dict(kwargs.get('pretrained_cfg_overlay') or {}, state_dict=dict(state), source='', custom_load=False,
                   num_classes=kwargs['num_classes'], label_offset=0)
    logger = logging.getLogger('timm.models')  # it would log these attempts
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return timm.create_model(name, pretrained=True, **{**kwargs, 'pretrained_cfg_overlay': overlay}).state_dict()
    except Exception:  # timm's code for one checkpoint may raise anything on another
        return None
    finally:
        logger.setLevel(level)
