"""Keeps failures of optional output, such as pictures, dashboards and counts, from ending a run."""
import contextlib
import logging
from typing import Iterator

from .text import one_line

__all__ = ['warned']


@contextlib.contextmanager
def warned(sentence: str, logger: logging.Logger) -> Iterator[None]:
    """Turn any exception inside into a warning, and go on."""
    try:
        yield
    except Exception as e:  # libraries for pictures and dashboards may raise anything
        logger.warning(f'{sentence}: {type(e).__name__}: {one_line(e)[:300]}'.rstrip(': '))
