"""What ends a run with one sentence."""
import contextlib
import pickle
import traceback
from typing import Iterator

__all__ = ['SettingsError', 'as_settings_error', 'sentence']


class SettingsError(ValueError):
    """The settings, the data or a checkpoint make no sense: one sentence, exit code 2."""


def sentence(error: BaseException, longest: int = 500) -> str:
    """What an exception says, on one line of at most so many characters; its kind if it says nothing."""
    return ' '.join(str(error).split())[:longest] or type(error).__name__


@contextlib.contextmanager
def as_settings_error(what: str) -> Iterator[None]:
    """Turn an exception that a library raises because of the settings into a `SettingsError` of one sentence.

    A bug of this package keeps its traceback: an AttributeError, KeyError, TypeError or the like that a line of this
    package raised.

    Args:
        what: What went wrong, the beginning of the sentence.
    """
    try:
        yield
    except SettingsError:
        raise
    except (AssertionError, AttributeError, LookupError, TypeError) as e:
        if _is_ours(e):
            raise
        raise SettingsError(f'{what}: {sentence(e)}') from e
    except (ArithmeticError, EOFError, ImportError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as e:
        raise SettingsError(f'{what}: {sentence(e)}') from e


def _is_ours(error: BaseException) -> bool:
    """Whether the line that raised an exception is of this package or its script."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get('__name__', '').partition('.')[0] in ('timm_focus', 'train_focus')
