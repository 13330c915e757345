"""Writes files whole or not at all."""
import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import IO, Any, Iterator, Union
from uuid import uuid4

__all__ = ['FileError', 'copy_whole', 'is_scratch', 'open_whole', 'write_whole']

_SCRATCH = re.compile(r'\..+\.[0-9a-f]{32}\.tmp', re.DOTALL)


class FileError(OSError):
    """A file could not be written: one sentence says which, why, and how much room there is."""


@contextlib.contextmanager
def open_whole(path: Union[str, Path], mode: str = 'w', **kwargs: Any) -> Iterator[IO]:
    """Open a file for writing that replaces `path` only when it is complete and on the disk.

    The content goes into a file with a unique name in the same folder, which is removed if something fails.
    `is_scratch` recognises such files of killed processes.

    Args:
        path: Name of the file. If it is a link, the link's target is written.
        mode: 'w' or 'wb'.
        **kwargs: More arguments of `open`. Text is UTF-8 by default.

    Raises:
        FileError: The file cannot be written, for example on a full disk.
    """
    with _written(path) as scratch:
        with open(scratch, mode, **({} if 'b' in mode else {'encoding': 'utf-8', **kwargs})) as f:
            yield f
            f.flush()
            os.fsync(f.fileno())  # after a power cut, the name must not exist without its content


def write_whole(path: Union[str, Path], content: Union[str, bytes]) -> None:
    """Write a file of text or bytes whole or not at all.

    Raises:
        FileError: The file cannot be written, for example on a full disk.
    """
    with open_whole(path, 'wb' if isinstance(content, bytes) else 'w') as f:
        f.write(content)


def copy_whole(source: Union[str, Path], path: Union[str, Path]) -> None:
    """Give a file a second name, by a hard link if possible, else by a copy, whole or not at all.

    Raises:
        FileError: The file cannot be written, for example on a full disk.
    """
    with _written(path) as scratch:
        try:
            os.link(source, scratch)
        except OSError:  # a file system without hard links
            shutil.copy2(source, scratch)
            with open(scratch, 'rb') as f:
                os.fsync(f.fileno())


def is_scratch(name: str) -> bool:
    """Whether a file name is one of the temporary names that `open_whole` makes."""
    return _SCRATCH.fullmatch(name) is not None


@contextlib.contextmanager
def _written(path: Union[str, Path]) -> Iterator[str]:
    """Yield a unique name to write under. The file becomes `path` at the end, or is removed if something fails."""
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    name = os.fsdecode(os.fsencode(name)[:200])  # file systems have room for 255 bytes
    scratch = os.path.join(folder, f'.{name}.{uuid4().hex}.tmp')
    try:
        yield scratch
        os.replace(scratch, target)
    except FileError:
        raise
    except OSError as e:
        raise FileError(f'{path} cannot be written: {e.strerror or e}{_room(folder)}') from e
    finally:
        with contextlib.suppress(OSError):
            os.unlink(scratch)


def _room(folder: str) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return f'; the folder {folder} is not there.'
    return f'; the disk of {folder} has {free / 2 ** 20:,.1f} MiB free.'
