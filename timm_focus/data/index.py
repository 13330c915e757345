"""The images of a split and their classes, from lists and folders: no Python object is kept for an image.

The workers of a loader share the memory of the process that starts them until somebody writes to it, and Python writes
to every object it looks at, to count references. A list of 1.8 million paths thus ends up copied into each worker; the
bytes of an array do not.

Errors that a person can cure are `ValueError`s of one sentence with the first offenders and their number; what the
system refuses (a file that is not there, a folder that may not be read) stays the `OSError` it is.
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

CACHED_FROM = 10_000  # images; smaller trees are scanned in no time

# A folder may change twice within a tick of its file system's clock, and the second change does not show in its time:
# a tree that changed this short a time ago is not trusted to show the next change. FAT counts in steps of 2 s.
_SETTLED_NS = 2 * 10 ** 9

_CACHE_FORMAT = 2  # part of the cache file's name: raise it whenever its content or the order of images changes

_NEWLINE, _RETURN, _SPACE, _MINUS, _SLASH, _ZERO = b'\n\r -/0'
_MAX_DIGITS = 9  # of a label: what int32 surely holds
_BLOCK_BYTES = 8 * 2 ** 20  # of a list, read at a time


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The images of one split, in order.

    Attributes:
        root: The folder that the paths are relative to, absolute itself.
        paths: Relative paths with `/`, one after the other, as the bytes of the file system, uint8.
        offsets: Where each path begins in `paths`, and after them where the last one ends, `[N + 1]`.
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
        i = range(len(self))[i]  # negative ones count from the end, those outside are an IndexError
        return os.fsdecode(self.paths[self.offsets[i]:self.offsets[i + 1]].tobytes())

    def path(self, i: int) -> str:
        """Absolute path of image i."""
        return os.path.join(self.root, self.relative(i))

    def target(self, i: int) -> int:
        """Class index of image i."""
        return int(self.targets[i])

    def select(self, indices: Union[Sequence[int], np.ndarray]) -> 'ImageIndex':
        """These images alone, in this order; a mask of booleans does, too."""
        indices = np.arange(len(self))[indices]
        offsets = self.offsets.astype(np.int64)
        starts, lengths = offsets[indices], offsets[indices + 1] - offsets[indices]
        paths = [np.empty(0, np.uint8)]
        for block in range(0, len(indices), 100_000):  # each byte's place takes eight: not all at a time
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
    """The images of a list of lines `<path> <label>`: the label is what follows the last space.

    Args:
        path: The list. A slash that paths begin with is left out, lines may end in CRLF, blank lines are passed over.
        root: The folder that the paths are relative to.
        class_names: Names of the classes by label.
        n_classes: Number of classes where they have no names; their labels are the names then.

    Raises:
        ValueError: A line that is none of these, a label that is no class, a list without images, neither names nor
            number of classes or both and not the same.
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
    """Write the images as lines `<path> <label>`, which `read_list` reads; the whole file or none.

    Raises:
        ValueError: A path with a line break, which no line can hold.
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
    """The bytes of a file in blocks of whole lines: what is made of a block takes several times its memory."""
    with open(path, 'rb') as f:
        while block := f.read(_BLOCK_BYTES):
            yield np.frombuffer(block + f.readline(), np.uint8)


def _parse(block: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]:
    """Of the lines of a block that are not blank: their numbers, where the path begins and ends, the label, and
    whether they are `<path> <label>` at all; and the number of all lines."""
    ends = np.flatnonzero(block == _NEWLINE)
    if block[-1] != _NEWLINE:
        ends = np.append(ends, len(block))
    starts = np.append(0, ends[:-1] + 1)
    stops = ends - (block[ends - 1] == _RETURN)
    numbers = np.flatnonzero(stops > starts)
    starts, stops = starts[numbers], stops[numbers]
    spaces = np.flatnonzero(block == _SPACE)
    last = np.searchsorted(spaces, stops) - 1
    cuts = np.append(spaces, -1)[last]  # where there is no space before, `last` is -1
    while (slashes := (block[starts] == _SLASH) & (starts < cuts)).any():
        starts = starts + slashes
    labels, good = _integers(block, cuts + 1, stops)
    return numbers, starts, cuts, labels, good & (starts < cuts), len(ends)


def _quote(path: Union[str, os.PathLike], lines: np.ndarray) -> str:
    """The first few of these lines of a file, for a message."""
    wanted = lines[:4].tolist()
    with open(path, 'rb') as f:
        found = [line for i, line in enumerate(itertools.islice(f, wanted[-1] + 1)) if i in wanted]
    texts = [line.rstrip(b'\r\n')[:100].decode(errors='replace') for line in found]
    return some(f'line {i + 1} {text!r}' for i, text in zip(wanted, texts))


def _integers(data: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """The decimal integers written between starts and stops, int32, and which of them are integers."""
    minus = (starts < stops) & (data[np.minimum(starts, len(data) - 1)] == _MINUS)
    starts = starts + minus
    lengths = stops - starts
    good = (lengths > 0) & (lengths <= _MAX_DIGITS)
    values = np.zeros(len(starts), np.int32)
    for k in range(_MAX_DIGITS):
        here = np.flatnonzero(good & (lengths > k))
        digits = data[starts[here] + k] - np.uint8(_ZERO)  # what sorts before '0' wraps around to above 9
        values[here] = 10 * values[here] + digits
        good[here] = digits <= 9
    return np.where(minus, -values, values), good


# folders

def scan_folder(
        root: Union[str, os.PathLike],
        nested: bool = False,
        class_names: Optional[Sequence[str]] = None,
) -> ImageIndex:
    """The images in the class folders of a tree, with timm's classes in timm's order, images in timm's order.

    Names that differ in nothing that timm sorts by (`A` and `a`, `1` and `01`), which timm leaves in the order that
    the file system gives, are in alphabetical order. What is no image (see `folders`) is counted in the log.

    Args:
        root: The folder that holds the class folders.
        nested: The class is the folder's whole path from `root`, such as `arena/hockey`; by default its last part
            alone, as with timm, so that folders of one name are one class wherever they are.
        class_names: Names of the classes by index, those of training; by default all found, in natural order.

    Raises:
        ValueError: No such folder, no images in it, images outside the class folders, a class that `class_names` does
            not have or whose name is no text.
        OSError: A folder that cannot be read.
    """
    index, _, left_out = _scan(os.path.abspath(root), nested)
    left_out.tell()
    return _with_classes(index, class_names)


def cached_scan(
        root: Union[str, os.PathLike],
        nested: bool = False,
        class_names: Optional[Sequence[str]] = None,
) -> ImageIndex:
    """`scan_folder`, that keeps what it found of a large tree in a cache file until the tree changes.

    The file lies in `timm_focus/index` in `$XDG_CACHE_HOME`, or in `~/.cache` if that is not set. It holds of every
    folder what changes when a file or folder in it is added, removed or renamed, whatever times are set back
    afterwards. A tree with links that lead nowhere is not kept, since no folder changes when they lead somewhere again.

    Args:
        root, nested, class_names: As in `scan_folder`.

    Raises:
        ValueError, OSError: As `scan_folder`; a cache that cannot be used is none.
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
    """All images in a folder and the folders in it, in alphabetical order, as one class.

    Args:
        root: The folder.
        apart: A folder in it that is passed over.

    Raises:
        ValueError: No such folder, or no images in it.
        OSError: A folder that cannot be read.
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
    """The images of a tree, the state of each of its folders, and what is passed over."""
    if not os.path.isdir(root):
        raise ValueError(f'There is no folder {shown(root)}.')
    images, states, left_out = {}, {}, LeftOut(root)
    for folder in walk(root, left_out):
        states[folder.path] = folder.state
        if folder.images:
            images[folder.path] = folder.images
    return tree_index(root, images, left_out, nested), states, left_out


def tree_index(root: str, images: Dict[str, List[str]], left_out: LeftOut, nested: bool = False) -> ImageIndex:
    """An index of images by the folders that they are in, with timm's classes in timm's order.

    Args:
        root: What the folders are in, for the index and for messages.
        images: Names of the images in each folder, by its path from the root.
        left_out: What else is there.
        nested: See `scan_folder`.

    Raises:
        ValueError: There are no images, some in no class folder, or a class whose name is no text.
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
    """The folders in the order of their images, in blocks that each are sorted by themselves.

    In the natural order of whole paths, the images of two folders mingle only if one folder is in the other or their
    names differ in nothing that this order looks at. So a block, which is a single folder mostly, can be sorted alone,
    which spares the memory for the keys of all images.
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
    """The index with the given classes in place of those found."""
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
    """What the cache file holds, None if there is none or the tree has changed."""
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
    except Exception as e:  # damage shows in any way; whatever the file is, the tree itself tells more
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


# what can be asked of an index

def subset(index: ImageIndex, images_per_class: int, seed: int) -> ImageIndex:
    """As many images of each class, drawn at random, in the order of the index.

    What is drawn of a class depends on the seed, the class's name and its images' file names, and on nothing else: not
    on machine, versions, other classes, the order of the images, or the folders they are in.

    Args:
        index: What to draw from.
        images_per_class: Images to draw of each class, at least 1.
        seed: Any integer.

    Raises:
        ValueError: A class with fewer images.
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
    """Indices of the images whose files are not there. Each folder is listed once, no file is looked at by itself.

    Raises:
        OSError: A folder that cannot be read.
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
    for block in range(0, len(index), 100_000):  # integers of Python, but not all at a time
        bounds = offsets[block:block + 100_001].tolist()
        for start, stop in zip(bounds, bounds[1:]):
            yield data[start:stop]
