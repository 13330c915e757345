"""Files that are there whole or not at all."""
import os

__all__ = ['write_whole']


def write_whole(path: str, text: str) -> None:
    """Write a file whole or not at all."""
    with open(f'{path}.tmp', 'w') as f:
        f.write(text)
    os.replace(f'{path}.tmp', path)
