"""Training and evaluation mode of modules."""
import contextlib
from typing import Iterator

from torch import nn

__all__ = ['evaluating']


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; afterwards each module has its old mode again, frozen ones too."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
