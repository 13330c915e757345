"""Text for people."""
from typing import Iterable

__all__ = ['shown', 'some']


def shown(text: str) -> str:
    """A text that any terminal and any log takes, whatever bytes a file is called by: `?` for what cannot be shown."""
    return ''.join(c if c.isprintable() else '?' for c in text)


def some(items: Iterable[str], n: int = 3) -> str:
    """The first few of the items, for a message."""
    items = list(items)
    return shown(', '.join(items[:n])) + (', ...' if len(items) > n else '')
