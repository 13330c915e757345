"""Modes of modules."""
import contextlib
from typing import Iterator

from torch import nn

__all__ = ['evaluating']


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation; afterwards each of its modules has the mode that it had, frozen ones too."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
