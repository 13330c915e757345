"""Walks a folder of images, by the same rules for training and every command: which files are images.

Images are regular files with an ending of `image_endings()`. Links to files and folders are followed, except a link to
a folder that contains it. Files that editors, systems and network disks leave behind are skipped, and so is every name
that begins with a dot. Skipped entries are counted by kind, and each kind is reported with an example.
"""
import json
import logging
import os
import posixpath
from collections import Counter
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

from timm_focus.utils import shown

from .images import image_endings

__all__ = ['Folder', 'LeftOut', 'is_debris', 'walk']

_logger = logging.getLogger(__name__)

# names of files and folders left behind by macOS, Windows, Linux, Python, and the disks of Synology, QNAP and NetApp
DEBRIS = frozenset(name.lower() for name in (
    '__MACOSX', 'Icon\r', 'Network Trash Folder', 'Temporary Items', 'TheVolumeSettingsFolder',
    'Thumbs.db', 'ehthumbs.db', 'ehthumbs_vista.db', 'desktop.ini', '$RECYCLE.BIN', 'RECYCLER',
    'System Volume Information', 'found.000', 'lost+found', '__pycache__',
    '@eaDir', '@tmp', '#recycle', '#snapshot', '@Recycle', '@Recently-Snapshot', '~snapshot'))


def is_debris(name: str) -> bool:
    """Whether a file or folder of this name, without its path, is hidden or left behind by some program."""
    return name.startswith('.') or name.lower() in DEBRIS


class LeftOut:
    """Counts of the entries that a walk skipped, by kind, each kind with its first path in sorted order.

    Args:
        root: The folder that was walked.
    """
    KINDS = {  # words for one, words for several, and whether to warn
        'debris': ('is hidden or left behind by a program', 'are hidden or left behind by programs', False),
        'ending': ('file has no ending of an image', 'files have no ending of an image', False),
        'irregular': ('file with the ending of an image is no regular file',
                      'files with the ending of an image are no regular files', True),
        'broken': ('link leads nowhere', 'links lead nowhere', True),
        'loop': ('link leads to a folder that it lies in', 'links lead to folders that they lie in', True),
        'unmapped': ('image is of a class that --class-map does not have',
                     'images are of classes that --class-map does not have', True),
    }

    def __init__(self, root: str):
        self.root = root
        self.counts: Dict[str, int] = {}
        self.examples: Dict[str, str] = {}
        self.endings: Dict[str, int] = Counter()

    def note(self, kind: str, path: str, n: int = 1) -> None:
        """Count n skipped entries; the path that sorts first is the kind's example."""
        self.counts[kind] = self.counts.get(kind, 0) + n
        self.examples[kind] = min(path, self.examples.get(kind, path))
        if kind == 'ending':
            self.endings[posixpath.splitext(path)[1].lower()] += n

    def __bool__(self) -> bool:
        return bool(self.counts)

    def __str__(self) -> str:
        parts = []
        for kind, words in self.KINDS.items():
            n = self.counts.get(kind, 0)
            if not n:
                continue
            detail = ''
            if kind == 'ending':
                common = [ending or 'none' for ending, _ in Counter(self.endings).most_common(3)]
                detail = f' ({", ".join(common)}{", ..." if len(self.endings) > 3 else ""})'
            parts.append(shown(f'{n:,} {words[n != 1]}{detail}, such as {self.examples[kind]}'))
        return '; '.join(parts)

    def tell(self) -> None:
        """Log the counts in one line."""
        if self:
            serious = any(self.KINDS[kind][2] for kind in self.counts)
            _logger.log(logging.WARNING if serious else logging.INFO, f'Left out in {shown(self.root)}: {self}.')

    def dumps(self) -> str:
        """Write the counts as text, which `loads` reads."""
        return json.dumps([self.root, self.counts, self.examples, self.endings])

    @classmethod
    def loads(cls, text: str) -> 'LeftOut':
        root, counts, examples, endings = json.loads(text)
        left_out = cls(root)
        left_out.counts, left_out.examples, left_out.endings = counts, examples, Counter(endings)
        return left_out


class Folder(NamedTuple):
    """A folder in a tree.

    Attributes:
        path: Path from the root, with `/`; '' for the root itself.
        state: Value that changes when an entry is added, removed or renamed; see `folder_state`.
        images: Names of the images in it, in no particular order.
    """
    path: str
    state: Tuple[int, int, int]
    images: List[str]


def folder_state(path: Union[str, os.PathLike], status: Optional[os.stat_result] = None) -> Tuple[int, int, int]:
    """Times of a folder's last modification and last change, in nanoseconds, and its inode.

    Adding a file changes the folder's modification time, but tar and rsync may set that back. The system's own change
    time (ctime) cannot be set.
    """
    status = status or os.stat(path)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def walk(root: str, left_out: LeftOut, apart: Optional[str] = None) -> Iterator[Folder]:
    """Yield every folder of a tree.

    Args:
        root: The folder.
        left_out: Counts the skipped entries.
        apart: A folder to skip without counting it.

    Raises:
        OSError: A folder cannot be read.
    """
    endings = image_endings()
    apart = apart and os.path.realpath(apart)
    outside = tuple(_number(os.stat(folder)) for folder in Path(os.path.realpath(root)).parents)
    pending = [('', outside)]
    while pending:
        path, above = pending.pop()
        place = os.path.join(root, path)
        status = os.stat(place)  # before the listing: a change during it must show afterwards
        this = _number(status)
        if this in above:
            left_out.note('loop', path)
            continue
        names = []
        with os.scandir(place) as entries:
            for entry in entries:
                name = entry.name
                if is_debris(name):
                    left_out.note('debris', posixpath.join(path, name))
                elif _is(entry.is_dir):
                    if not apart or os.path.realpath(entry.path) != apart:
                        pending.append((posixpath.join(path, name), (*above, this)))
                elif os.path.splitext(name)[1].lower() not in endings:
                    left_out.note('ending', posixpath.join(path, name))
                elif _is(entry.is_file):
                    names.append(name)
                else:
                    left_out.note('broken' if entry.is_symlink() else 'irregular', posixpath.join(path, name))
        yield Folder(path, folder_state(place, status), names)


def _number(status: os.stat_result) -> Tuple[int, int]:
    """Identity of a folder (device and inode), the same by whatever path it is reached."""
    return status.st_dev, status.st_ino


def _is(ask) -> bool:
    """Ask a folder entry for its kind; False for a link that leads in a circle."""
    try:
        return ask()
    except OSError:
        return False
