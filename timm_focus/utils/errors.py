"""Errors that end a run with one sentence."""
import contextlib
import pickle
import traceback
from typing import Iterator, Tuple, Type, Union

from .hub_errors import answered, explanation
from .secrets import redact

__all__ = ['SettingsError', 'as_settings_error', 'refused', 'sentence']


class SettingsError(ValueError):
    """The settings, the data or a checkpoint are wrong: one sentence, exit code 2."""


def sentence(error: BaseException, longest: int = 500) -> str:
    """The message of an exception on one line, without tokens, cut to `longest` characters; its type if it is empty."""
    return redact(' '.join(str(error).split()))[:longest] or type(error).__name__


@contextlib.contextmanager
def as_settings_error(what: str) -> Iterator[None]:
    """Turn an exception that a library raises because of the settings into a `SettingsError` of one sentence.

    A bug of this package keeps its traceback: an AttributeError, KeyError, TypeError or the like whose raising line is
    in this package.

    Args:
        what: Beginning of the sentence: what went wrong.
    """
    try:
        yield
    except SettingsError:
        raise
    except (AssertionError, AttributeError, LookupError, TypeError) as e:
        if _is_ours(e):
            raise
        raise SettingsError(f'{what}: {_why(e)}') from e
    except (ArithmeticError, EOFError, ImportError, OSError, RuntimeError, ValueError, pickle.UnpicklingError) as e:
        raise SettingsError(f'{what}: {_why(e)}') from e


@contextlib.contextmanager
def refused(kinds: Union[Type[Exception], Tuple[Type[Exception], ...]] = ValueError) -> Iterator[None]:
    """Turn an exception of these kinds (default: ValueError), whose message is a sentence, into a `SettingsError`."""
    try:
        yield
    except kinds as e:
        raise SettingsError(str(e)) from e


def _why(error: BaseException) -> str:
    """What an exception says; where a server's refusal is behind it, what that means, as the client may not tell."""
    return explanation(error, 'the repository') if answered(error) else sentence(error)


def _is_ours(error: BaseException) -> bool:
    """Whether the line that raised an exception is in this package or its script."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get('__name__', '').partition('.')[0] in ('timm_focus', 'train_focus')
