"""Indexes the images of a split and their classes, from lists and folders, without a Python object per image.

The workers of a loader share memory with the process that starts them until somebody writes to it. Python writes to
every object that it touches, to count references, so a list of 1.8 million paths ends up copied into each worker. The
bytes of an array do not.

Errors that a user can fix are a `ValueError` of one sentence, with the first offenders and their number. Errors of the
system (a missing file, a folder without permission) stay an `OSError`.
"""
import hashlib
import itertools
import json
import logging
import os
import posixpath
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np
from timm.utils import natural_key

from timm_focus.utils import open_whole, shown, some
from timm_focus.utils.text import check_names

from .folders import LeftOut, folder_state, walk
from .images import image_endings

__all__ = [
    'ImageIndex', 'cached_scan', 'folders', 'list_images', 'missing', 'read_list', 'scan_folder', 'subset',
    'write_list',
]

_logger = logging.getLogger(__name__)

CACHED_FROM = 10_000  # images; smaller trees are scanned quickly

# A folder may change twice within one tick of the file system clock, and its time does not show the second change.
# So a tree that changed this recently is not cached. FAT's clock has steps of 2 s.
_SETTLED_NS = 2 * 10 ** 9

_CACHE_FORMAT = 2  # part of the cache file's name: raise it whenever its content or the order of images changes

_NEWLINE, _RETURN, _SPACE, _MINUS, _SLASH, _ZERO = b'\n\r -/0'
_MAX_DIGITS = 9  # of a label: always fits int32
_BLOCK_BYTES = 8 * 2 ** 20  # of a list, read at once


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The images of one split, in order.

    Attributes:
        root: Absolute path of the folder that the paths are relative to.
        paths: All relative paths with `/`, joined without separators, in the file system's bytes, uint8.
        offsets: Start of each path in `paths`, then the end of the last one, `[N + 1]`.
        targets: Class index of each image, int32 `[N]`.
        class_names: Names of the classes by index.
    """
    root: str
    paths: np.ndarray = field(repr=False)
    offsets: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    class_names: List[str] = field(repr=False)

    def __len__(self) -> int:
        return len(self.targets)

    def relative(self, i: int) -> str:
        """Path of image i from `root`."""
        i = range(len(self))[i]  # negative i count from the end; outside is an IndexError
        return os.fsdecode(self.paths[self.offsets[i]:self.offsets[i + 1]].tobytes())

    def path(self, i: int) -> str:
        """Absolute path of image i."""
        return os.path.join(self.root, self.relative(i))

    def target(self, i: int) -> int:
        """Class index of image i."""
        return int(self.targets[i])

    def select(self, indices: Union[Sequence[int], np.ndarray]) -> 'ImageIndex':
        """Take only these images, in this order; `indices` may be a boolean mask."""
        indices = np.arange(len(self))[indices]
        offsets = self.offsets.astype(np.int64)
        starts, lengths = offsets[indices], offsets[indices + 1] - offsets[indices]
        paths = [np.empty(0, np.uint8)]
        for block in range(0, len(indices), 100_000):  # the index of each byte takes 8 bytes: not all at once
            part = lengths[block:block + 100_000]
            shift = np.repeat(starts[block:block + 100_000] - np.cumsum(part) + part, part)
            paths.append(self.paths[np.arange(len(shift)) + shift])
        return replace(
            self, paths=np.concatenate(paths), offsets=_offsets(lengths), targets=self.targets[indices])

    def counts(self) -> np.ndarray:
        """Number of images of each class, `[K]`."""
        return np.bincount(self.targets, minlength=len(self.class_names))


# lists

def read_list(
        path: Union[str, os.PathLike],
        root: Union[str, os.PathLike],
        class_names: Optional[Sequence[str]] = None,
        n_classes: Optional[int] = None,
) -> ImageIndex:
    """Read a list of lines `<path> <label>`, where the label follows the last space.

    Args:
        path: The list. Leading slashes of paths are dropped, lines may end in CRLF, and blank lines are skipped.
        root: The folder that the paths are relative to.
        class_names: Names of the classes by label.
        n_classes: Number of classes, if they have no names; the labels are then their names.

    Raises:
        ValueError: A line has another form, a label is no class, the list has no images, or `class_names` and
            `n_classes` are both missing or disagree.
        OSError: The list cannot be read.
    """
    if class_names is None:
        if n_classes is None:
            raise ValueError('Labels can only be checked with class_names or n_classes: give one of them.')
        class_names = list(map(str, range(n_classes)))
    class_names = list(class_names)
    if n_classes not in (None, len(class_names)):
        raise ValueError(f'n_classes is {n_classes}, but there are {len(class_names)} class names: give one of them.')
    paths, lengths, targets, unreadable, strange = bytearray(), [], [], [], []
    n_lines = 0
    for block in _blocks_of_lines(path):
        numbers, starts, cuts, labels, good, n = _parse(block)
        unreadable.append(n_lines + numbers[~good])
        strange.append(n_lines + numbers[good & ((labels < 0) | (labels >= len(class_names)))])
        n_lines += n
        inside = np.zeros(len(block) + 1, np.int8)  # 1 on the bytes of paths: the sum of steps up and down
        inside[starts[good]], inside[cuts[good]] = 1, -1
        np.cumsum(inside, out=inside)
        paths += block[inside[:-1].view(bool)].data
        lengths.append((cuts - starts).astype(np.int32))
        targets.append(labels)
    if not any(map(len, targets)):
        raise ValueError(f'{os.fspath(path)} lists no images: give lines "<path> <label>".')
    for lines, what in (
            (np.concatenate(unreadable), 'are not "<path> <label>"'),
            (np.concatenate(strange), f'have a label outside 0 to {len(class_names) - 1}')):
        if len(lines):
            raise ValueError(f'{len(lines)} of the {n_lines} lines of {os.fspath(path)} {what}: {_quote(path, lines)}')
    return ImageIndex(
        os.path.abspath(root), np.frombuffer(paths, np.uint8), _offsets(np.concatenate(lengths)),
        np.concatenate(targets), class_names)


def write_list(index: ImageIndex, path: Union[str, os.PathLike]) -> None:
    """Write the images as lines `<path> <label>`, which `read_list` reads. The file is written whole or not at all.

    Raises:
        ValueError: A path has a line break, which a list cannot hold.
        OSError: The file cannot be written.
    """
    broken = np.flatnonzero(index.paths == _NEWLINE)
    if len(broken):
        images = np.unique(np.searchsorted(index.offsets, broken, side='right') - 1)
        raise ValueError(
            f'{len(images)} of the {len(index)} paths have a line break, such as '
            f'{some(repr(index.relative(i)) for i in images[:4])}: rename these files.')
    with open_whole(os.fspath(path), 'wb') as f:
        f.writelines(b'%b %d\n' % (os.fsencode(index.relative(i)), index.targets[i]) for i in range(len(index)))


def _blocks_of_lines(path: Union[str, os.PathLike]) -> Iterator[np.ndarray]:
    """Read a file in blocks of whole lines, since parsing a block takes several times its memory."""
    with open(path, 'rb') as f:
        while block := f.read(_BLOCK_BYTES):
            yield np.frombuffer(block + f.readline(), np.uint8)


def _parse(block: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Parse a block of lines. For each line that is not blank: its number, start and end of its path, its label, and
    whether it has the form `<path> <label>`; then the number of all lines."""
    ends = np.flatnonzero(block == _NEWLINE)
    if block[-1] != _NEWLINE:
        ends = np.append(ends, len(block))
    starts = np.append(0, ends[:-1] + 1)
    stops = ends - (block[ends - 1] == _RETURN)
    numbers = np.flatnonzero(stops > starts)
    starts, stops = starts[numbers], stops[numbers]
    spaces = np.flatnonzero(block == _SPACE)
    last = np.searchsorted(spaces, stops) - 1
    cuts = np.append(spaces, -1)[last]  # `last` is -1 for a line with no space before its end
    while (slashes := (block[starts] == _SLASH) & (starts < cuts)).any():
        starts = starts + slashes
    labels, good = _integers(block, cuts + 1, stops)
    return numbers, starts, cuts, labels, good & (starts < cuts), len(ends)


def _quote(path: Union[str, os.PathLike], lines: np.ndarray) -> str:
    """Quote the first few of these lines of a file, for a message."""
    wanted = lines[:4].tolist()
    with open(path, 'rb') as f:
        found = [line for i, line in enumerate(itertools.islice(f, wanted[-1] + 1)) if i in wanted]
    texts = [line.rstrip(b'\r\n')[:100].decode(errors='replace') for line in found]
    return some(f'line {i + 1} {text!r}' for i, text in zip(wanted, texts))


def _integers(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Parse the decimal integers between starts and stops, int32, and tell which are integers."""
    minus = (starts < stops) & (data[np.minimum(starts, len(data) - 1)] == _MINUS)
    starts = starts + minus
    lengths = stops - starts
    good = (lengths > 0) & (lengths <= _MAX_DIGITS)
    values = np.zeros(len(starts), np.int32)
    for k in range(_MAX_DIGITS):
        here = np.flatnonzero(good & (lengths > k))
        digits = data[starts[here] + k] - np.uint8(_ZERO)  # characters before '0' wrap around to above 9
        values[here] = 10 * values[here] + digits
        good[here] = digits <= 9
    return np.where(minus, -values, values), good


# folders

def scan_folder(
        root: Union[str, os.PathLike],
        nested: bool = False,
        class_names: Optional[Sequence[str]] = None,
) -> ImageIndex:
    """Index the images in the class folders of a tree, with timm's classes and timm's order of classes and images.

    Names that timm's sorting cannot tell apart (`A` and `a`, `1` and `01`) are in alphabetical order; timm leaves them
    in the order of the file system. Files that are no images are counted in the log.

    Args:
        root: The folder that holds the class folders.
        nested: The class is the folder's whole path from `root`, such as `arena/hockey`. By default it is only the
            last part, as in timm, so folders of the same name are one class wherever they are.
        class_names: Names of the classes by index, as in training; by default all that are found, in natural order.

    Raises:
        ValueError: There is no such folder, it has no images or some outside class folders, or a class is not in
            `class_names` or has a name that is no text.
        OSError: A folder cannot be read.
    """
    index, _, left_out = _scan(os.path.abspath(root), nested)
    left_out.tell()
    return _with_classes(index, class_names)


def cached_scan(
        root: Union[str, os.PathLike],
        nested: bool = False,
        class_names: Optional[Sequence[str]] = None,
) -> ImageIndex:
    """`scan_folder` with a cache file for large trees, used until the tree changes.

    The file is in `timm_focus/index` in `$XDG_CACHE_HOME`, or in `~/.cache` if that is not set. It records the state of
    every folder, which changes when an entry is added, removed or renamed, even if times are set back afterwards. A
    tree with broken links is not cached, since no folder changes when they lead somewhere again.

    Args:
        root, nested, class_names: As in `scan_folder`.

    Raises:
        ValueError, OSError: As `scan_folder`. A cache that cannot be used is ignored with a warning.
    """
    root = os.path.abspath(root)
    file = _cache_file(root, nested)
    kept = _load(file, root)
    if kept is None:
        began = time.time_ns()
        index, states, left_out = _scan(root, nested)
        settled = max(max(state[:2]) for state in states.values()) < began - _SETTLED_NS
        if len(index) >= CACHED_FROM and settled and 'broken' not in left_out.counts:
            _store(file, index, states, left_out)
    else:
        index, left_out = kept
    left_out.tell()
    return _with_classes(index, class_names)


def list_images(root: Union[str, os.PathLike], apart: Optional[str] = None) -> ImageIndex:
    """Index all images in a folder and its subfolders, in alphabetical order, as one class.

    Args:
        root: The folder.
        apart: A folder inside it to skip.

    Raises:
        ValueError: There is no such folder, or it has no images.
        OSError: A folder cannot be read.
    """
    root = os.path.abspath(root)
    if not os.path.isdir(root):
        raise ValueError(f'There is no folder {shown(root)}.')
    left_out = LeftOut(root)
    names = sorted(posixpath.join(folder.path, name)
                   for folder in walk(root, left_out, apart) for name in folder.images)
    if not names:
        raise ValueError(_no_images(left_out))
    left_out.tell()
    encoded = [os.fsencode(name) for name in names]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return ImageIndex(
        root, np.frombuffer(b''.join(encoded), np.uint8), _offsets(lengths), np.zeros(len(names), np.int32), ['image'])


def _no_images(left_out: LeftOut) -> str:
    what = f' Left out: {left_out}.' if left_out else ''
    return (f'There are no images in {shown(left_out.root)}: regular files .jpg, .png, .webp and others that Pillow '
            f'reads are looked for.{what}')


def _scan(root: str, nested: bool) -> Tuple[ImageIndex, Dict[str, Tuple[int, int, int]], LeftOut]:
    """Index the images of a tree; also the state of each folder, and the skipped entries."""
    if not os.path.isdir(root):
        raise ValueError(f'There is no folder {shown(root)}.')
    images, states, left_out = {}, {}, LeftOut(root)
    for folder in walk(root, left_out):
        states[folder.path] = folder.state
        if folder.images:
            images[folder.path] = folder.images
    return tree_index(root, images, left_out, nested), states, left_out


def tree_index(root: str, images: Dict[str, List[str]], left_out: LeftOut, nested: bool = False) -> ImageIndex:
    """Make an index from the images of each folder, with timm's classes in timm's order.

    Args:
        root: The folder or archive that contains the folders.
        images: Names of the images in each folder, by the folder's path from the root.
        left_out: The skipped entries, for messages.
        nested: See `scan_folder`.

    Raises:
        ValueError: There are no images, some are in no class folder, or a class has a name that is no text.
    """
    if '' in images:
        raise ValueError(
            f'{len(images[""])} images lie in {shown(root)} outside its class folders, such as '
            f'{some(sorted(images[""]))}: move them into the folder of their class.')
    if not images:
        raise ValueError(_no_images(left_out))
    labels = {folder: folder if nested else posixpath.basename(folder) for folder in images}
    class_names = sorted(set(labels.values()), key=lambda name: (natural_key(name), name))
    check_names(class_names)
    if len(class_names) < len(images):
        seen = defaultdict(list)
        for folder in sorted(images):
            seen[labels[folder]].append(folder)
        shared = [folder for same in seen.values() if len(same) > 1 for folder in same]
        _logger.warning(
            f'{len(shared)} of the {len(images)} class folders in {shown(root)} share their names with others and make '
            f'one class with them, such as {some(shared)}.')
    numbers = {name: i for i, name in enumerate(class_names)}
    paths, lengths, targets = [], [], []
    for block in _blocks(images):
        files = sorted(
            ((folder, name) for folder in block for name in images[folder]),
            key=lambda file: (natural_key('/' + '/'.join(file)), file))
        encoded = [os.fsencode('/'.join(file)) for file in files]
        paths.append(b''.join(encoded))
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        targets.append(np.fromiter((numbers[labels[folder]] for folder, _ in files), np.int32, len(files)))
    return ImageIndex(
        root, np.frombuffer(b''.join(paths), np.uint8), _offsets(np.concatenate(lengths)), np.concatenate(targets),
        class_names)


def _blocks(images: Dict[str, List[str]]) -> List[List[str]]:
    """Group the folders into ordered blocks, each of which can be sorted by itself.

    In the natural order of whole paths, the images of two folders only interleave if one folder is in the other, or if
    this order cannot tell their names apart. So a block, which is mostly a single folder, can be sorted alone. That
    saves the memory for the sort keys of all images.
    """
    def key(folder: str) -> tuple:
        return tuple(natural_key(f'/{folder}/'))

    keys = {key(folder) for folder in images}
    blocks = defaultdict(list)
    for folder in images:
        steps = folder.split('/')
        above = (key('/'.join(steps[:n])) for n in range(1, len(steps) + 1))
        blocks[next(k for k in above if k in keys)].append(folder)
    return [blocks[k] for k in sorted(blocks)]


def _with_classes(index: ImageIndex, class_names: Optional[Sequence[str]]) -> ImageIndex:
    """Renumber an index to the given classes, if there are any."""
    if class_names is None:
        return index
    numbers = {name: i for i, name in enumerate(class_names)}
    unknown = [name for name in index.class_names if name not in numbers]
    if unknown:
        raise ValueError(
            f'{len(unknown)} of the {len(index.class_names)} classes in {index.root} are not among the {len(numbers)} '
            f'known ones, such as {some(unknown)}: rename these folders, or remove them.')
    targets = np.array([numbers[name] for name in index.class_names], np.int32)[index.targets]
    return replace(index, targets=targets, class_names=list(class_names))


# the cache of folders

def _cache_file(root: str, nested: bool) -> Path:
    cache = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')) / 'timm_focus' / 'index'
    key = repr((_CACHE_FORMAT, os.path.realpath(root), nested, sorted(image_endings())))
    return cache / f'{hashlib.sha256(os.fsencode(key)).hexdigest()[:32]}.npz'


def _store(file: Path, index: ImageIndex, states: Dict[str, Tuple[int, int, int]], left_out: LeftOut) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_whole(file, 'wb') as f:
            np.savez(
                f, paths=index.paths, offsets=index.offsets, targets=index.targets,
                class_names=_joined(index.class_names), states=_joined([json.dumps(states)]),
                left_out=_joined([left_out.dumps()]))
    except OSError as e:
        _logger.warning(f'The index of {index.root} cannot be kept, so it will be made anew each time: {e}')


def _load(file: Path, root: str) -> Optional[Tuple[ImageIndex, LeftOut]]:
    """Load the index from the cache file; None if there is none or the tree has changed."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            kept = dict(arrays)
        for folder, state in json.loads(_split(kept['states'])[0]).items():
            if folder_state(os.path.join(root, folder)) != tuple(state):
                return None
        left_out = LeftOut.loads(_split(kept['left_out'])[0])
        index = ImageIndex(root, kept['paths'], kept['offsets'], kept['targets'], _split(kept['class_names']))
        return index, left_out
    except (FileNotFoundError, NotADirectoryError):  # the cache file, or a folder that was in the tree
        return None
    except Exception as e:  # damage raises anything, and the tree can be scanned again
        _logger.warning(f'The index of {root} in {file} cannot be used and is made anew: {e}')
        return None


def _joined(names: Iterable[str]) -> np.ndarray:
    return np.frombuffer(b'\0'.join(os.fsencode(name) for name in names), np.uint8)


def _split(joined: np.ndarray) -> List[str]:
    return [os.fsdecode(name) for name in joined.tobytes().split(b'\0')]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets.astype(np.uint32) if offsets[-1] < 2 ** 32 else offsets


# functions on an index

def subset(index: ImageIndex, images_per_class: int, seed: int) -> ImageIndex:
    """Draw the same number of images from each class at random; they stay in the order of the index.

    The draw for a class depends only on the seed, the class's name and its images' file names, not on the machine,
    versions, other classes, the order of the images or their folders.

    Args:
        index: The images to draw from.
        images_per_class: Images to draw from each class, at least 1.
        seed: Any integer.

    Raises:
        ValueError: A class has fewer images.
    """
    if images_per_class < 1:
        raise ValueError(f'images_per_class must be at least 1, got {images_per_class}.')
    counts = index.counts()
    short = np.flatnonzero(counts < images_per_class).tolist()
    if short:
        raise ValueError(
            f'{len(short)} of the {len(counts)} classes have fewer than {images_per_class} images: '
            f'{some(f"{index.class_names[k]} ({counts[k]})" for k in short)}; draw fewer.')
    prefixes = [os.fsencode(f'{seed}/{name}/') for name in index.class_names]
    digests = (
        hashlib.blake2b(prefixes[target] + path[path.rfind(b'/') + 1:], digest_size=8).digest()
        for path, target in zip(_relatives(index), index.targets))
    draws = np.fromiter((int.from_bytes(digest, 'big') for digest in digests), np.uint64, len(index))
    order = np.lexsort((draws, index.targets))  # by class, then by draw
    rank = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return index.select(np.sort(order[rank < images_per_class]))


def folders(index: ImageIndex) -> Tuple[List[str], np.ndarray]:
    """The folders that the images are in, relative to the root, and the number of each image's folder, int32 `[N]`."""
    numbers: Dict[bytes, int] = {}
    found = np.fromiter(
        (numbers.setdefault(path[:max(path.rfind(b'/'), 0)], len(numbers)) for path in _relatives(index)),
        np.int32, len(index))
    return [os.fsdecode(folder) for folder in numbers], found


def missing(index: ImageIndex) -> np.ndarray:
    """Indices of the images whose files are missing. Each folder is listed once; no single file is checked.

    Raises:
        OSError: A folder cannot be read.
    """
    names, numbers = folders(index)
    order = np.argsort(numbers, kind='stable')
    ends = np.cumsum(np.bincount(numbers, minlength=len(names)))
    data, offsets = index.paths.tobytes(), index.offsets.tolist()
    gone = []
    for folder, images in zip(names, np.split(order, ends[:-1])):
        try:
            there = set(os.listdir(os.fsencode(os.path.join(index.root, folder))))
        except (FileNotFoundError, NotADirectoryError):
            there = set()
        skip = len(os.fsencode(folder)) + 1 if folder else 0
        gone += [i for i in images.tolist() if data[offsets[i] + skip:offsets[i + 1]] not in there]
    return np.sort(np.array(gone, np.int64))


def _relatives(index: ImageIndex) -> Iterator[bytes]:
    data, offsets = index.paths.tobytes(), index.offsets
    for block in range(0, len(index), 100_000):  # as Python integers, but not all at once
        bounds = offsets[block:block + 100_001].tolist()
        for start, stop in zip(bounds, bounds[1:]):
            yield data[start:stop]
