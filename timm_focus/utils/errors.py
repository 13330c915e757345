"""What ends a run with one sentence."""
import contextlib
import pickle
from typing import Iterator

__all__ = ['SettingsError', 'explained', 'sentence']


class SettingsError(ValueError):
    """The settings, the data or a checkpoint make no sense: one sentence, exit code 2."""


def sentence(error: BaseException, longest: int = 500) -> str:
    """What an exception says, on one line of at most so many characters; its kind if it says nothing."""
    return ' '.join(str(error).split())[:longest] or type(error).__name__


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn what a library says of the settings into one sentence."""
    try:
        yield
    except SettingsError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, OSError, RuntimeError,
            TypeError, ValueError, pickle.UnpicklingError) as e:
        raise SettingsError(f'{what}: {sentence(e)}') from e
