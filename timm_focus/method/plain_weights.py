"""Loading the weights of a plain timm model into a `FocusNet`."""
import logging
from typing import Any, Dict

from torch import nn

__all__ = ['accept_plain_state_dict']

_logger = logging.getLogger(__name__)


def accept_plain_state_dict(model: nn.Module, state_dict: Dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: lets a FocusNet take a plain backbone's state dict; its heads keep their values."""
    names = {k[len(prefix):] for k in state_dict if k.startswith(prefix)}
    own = set(model.backbone.state_dict())
    if not names & own or names & {f'backbone.{k}' for k in own}:
        return
    for name in names:
        state_dict[f'{prefix}backbone.{name}'] = state_dict.pop(prefix + name)
    heads = {k: v for k, v in model.state_dict(prefix=prefix).items() if not k.startswith(f'{prefix}backbone.')}
    state_dict.update(heads)
    _logger.warning('Loaded the state dict of a plain model: %s are not in it and keep their values.', ', '.join(heads))
