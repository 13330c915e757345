"""Training and evaluation mode of modules."""
import contextlib
from typing import Iterator

from torch import nn

__all__ = ['evaluating']


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while, then restore each module's own mode, also of frozen ones."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
