"""What ends a run with one sentence."""
import contextlib
import pickle
from typing import Iterator

__all__ = ['SettingsError', 'explained']


class SettingsError(ValueError):
    """The settings, the data or a checkpoint make no sense: one sentence, exit code 2."""


@contextlib.contextmanager
def explained(sentence: str) -> Iterator[None]:
    """Turn what a library says of the settings into one sentence."""
    try:
        yield
    except SettingsError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError,
            TypeError, ValueError, pickle.UnpicklingError) as e:
        raise SettingsError(f'{sentence}: {" ".join(str(e).split())[:500] or type(e).__name__}') from e
