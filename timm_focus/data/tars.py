"""Readers of images in tar archives, by number, without unpacking: class folders, and shards of WebDataset.

The archive, offset and size of each image are kept. A worker opens, reads and closes the archive for each image, so no
open file is shared after a fork. Archives must not be compressed.
"""
import io
import json
import os
import posixpath
import tarfile
from collections import defaultdict
from typing import IO, Any, BinaryIO, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from timm_focus.utils import shown, some
from timm_focus.utils.errors import sentence

from .folders import LeftOut, is_debris
from .images import image_endings, open_regular
from .index import ImageIndex, tree_index
from .numbered import NumberedReader

__all__ = ['INFO', 'ShardReader', 'TarReader', 'class_info', 'has_splits', 'scan_tar', 'shards_of']

INFO = ('_info.json', 'info.json')  # as WebDataset's users, and timm, name the description of shards


Place = Tuple[int, int]  # offset and size of a file's bytes in an archive


class Member(NamedTuple):
    """A file in an archive: its path, and the offset and size of its bytes; no size if it is not a regular file."""
    name: str
    offset: int
    size: Optional[int]


def _members(file: IO[bytes], path: str, base: int = 0, above: str = '') -> Iterator[Member]:
    """Yield the files of an archive and of the archives in it, whose names act as folders.

    Raises:
        ValueError: It is no archive, or is truncated or compressed.
    """
    known: Dict[str, Place] = {}
    try:
        with tarfile.open(fileobj=file, mode='r:') as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all; not in typeshed
                name = posixpath.normpath(posixpath.join(above, member.name.lstrip('/')))
                if member.isdir():
                    continue
                place: Optional[Place] = (base + member.offset_data, member.size)
                if member.islnk():  # a hard link: the same bytes as an earlier member
                    place = known.get(posixpath.normpath(posixpath.join(above, member.linkname.lstrip('/'))))
                elif not member.isreg() or member.issparse():
                    place = None
                if place is None:
                    yield Member(name, 0, None)
                elif name.lower().endswith('.tar') and (inner := tar.extractfile(member)):
                    with inner:
                        yield from _members(inner, f'{path}/{member.name}', place[0], name[:-len('.tar')])
                else:
                    known[name] = place
                    yield Member(name, *place)
    except (tarfile.TarError, EOFError) as e:
        raise ValueError(f'{shown(path)} is no tar archive that can be read: it is compressed, cut off or damaged '
                         f'({sentence(e)}).') from e


class _Places:
    """Archive, offset and size of the bytes of each image."""

    def __init__(self, archives: Sequence[str], places: Sequence[Tuple[int, int, int]]):
        self.archives = list(archives)
        self.places = np.array(places, np.int64).reshape(-1, 3)

    def open(self, i: int) -> BinaryIO:
        archive, offset, size = self.places[i].tolist()
        with open_regular(self.archives[archive]) as f:
            f.seek(offset)
            data = f.read(size)
        if len(data) < size:
            raise OSError('its archive is cut off')
        return io.BytesIO(data)

    def size(self, i: int) -> int:
        return int(self.places[i, 2])


class TarReader(NumberedReader):
    """Images in the class folders of an archive: see `scan_tar`."""

    def __init__(self, index: ImageIndex, places: _Places):
        super().__init__()
        self.index, self.places, self.root = index, places, index.root
        self.targets = index.targets
        self.class_to_idx = {name: i for i, name in enumerate(index.class_names)}

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        return self.places.open(i), self.index.target(i)

    def __len__(self) -> int:
        return len(self.index)

    def size(self, i: int) -> int:
        """Bytes of image i."""
        return self.places.size(i)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.index.relative(index)
        return name.rsplit('/', 1)[-1] if basename else os.path.join(self.root, name) if absolute else name


def scan_tar(path: str, split: Sequence[str] = ()) -> TarReader:
    """Read the images in the class folders of an archive, with the classes in timm's order.

    Args:
        path: The archive.
        split: Names of the split, a folder in the archive; without any, everything is read.

    Raises:
        ValueError: The file is no archive, or has no such images.
        OSError: The archive cannot be read.
    """
    path = os.path.abspath(path)
    endings, left_out, debris = image_endings(), LeftOut(path), set()
    found: Dict[str, Place] = {}
    with open_regular(path) as file:
        for name, offset, size in _members(file, path):
            steps = name.split('/')
            hidden = next((k for k, step in enumerate(steps) if is_debris(step)), None)
            if hidden is not None:
                debris.add('/'.join(steps[:hidden + 1]))
            elif posixpath.splitext(name)[1].lower() not in endings:
                left_out.note('ending', name)
            elif size is None:
                left_out.note('irregular', name)
            else:
                found[name] = (offset, size)  # as in unpacking, a later file of the same name wins
    for name in debris:
        left_out.note('debris', name)
    if split:
        found = _of_split(found, split, path)
    images = defaultdict(list)
    for name in found:
        folder, _, base = name.rpartition('/')
        images[folder].append(base)
    index = tree_index(path, images, left_out)
    left_out.tell()
    places = [(0, *found[index.relative(i)]) for i in range(len(index))]
    return TarReader(index, _Places([path], places))


def has_splits(path: str) -> bool:
    """Whether an archive has folders train or val, with class folders in them."""
    with open_regular(path) as file:
        for member in _members(file, path):
            folders = member.name.split('/')[:-1]
            if len(folders) > 1 and {'train', 'training', 'val', 'validation'} & set(folders[:2]):
                return True
    return False


def _of_split(found: Dict[str, Place], split: Sequence[str], path: str) -> Dict[str, Place]:
    """Files in the folder of a split, which may lie inside one enclosing folder."""
    for depth in (0, 1):
        names = {steps[depth] for steps in (name.split('/') for name in found) if len(steps) > depth + 1}
        name = next((name for name in split if name in names), None)
        if name is not None:
            return {file: place for file, place in found.items()
                    if file.split('/')[depth] == name and file.count('/') > depth}
    raise ValueError(f'{shown(path)} has no folder {split[0]}: put the images into <split>/<class>/, or into an '
                     'archive for each split.')


# shards

def shards_of(root: str, split: Sequence[str], flag: str = '') -> Tuple[List[str], Dict[str, Any], Dict[str, Any]]:
    """Paths of the shards of a split, the entry of the split in the shards' description, and the whole description.

    Args:
        root: Folder of the shards.
        split: Names of the split, or timm's form `train-{0000..0009}.tar|1000`.

    Raises:
        ValueError: There are no such shards.
    """
    info: Dict[str, Any] = {}
    for file in (os.path.join(root, name) for name in INFO):
        if os.path.isfile(file):
            try:
                with open(file, encoding='utf-8') as f:
                    info = json.load(f)
            except ValueError as e:
                raise ValueError(f'{shown(file)} cannot be read: {e}') from e
            break
    splits = info.get('splits') if isinstance(info, dict) else None
    splits = splits if isinstance(splits, dict) else {}
    name = next((name for name in split if name in splits), None)
    if name is not None:
        part = splits[name]
        files = list(part.get('filenames') or ())
    elif '.tar' in split[0] or '..' in split[0]:
        from braceexpand import braceexpand  # installed with webdataset

        part, files = {}, [file for spec in split[0].split('|')[0].split('::') for file in braceexpand(spec)]
    else:
        there = f'has {some(splits)}' if splits else 'is not described by an _info.json'
        raise ValueError(f'{shown(os.fspath(root))} {there}, and no split {split[0]}: name one that is there, or its '
                         "shards, such as 'train-{0000..0009}.tar|1000'.")
    paths = [os.path.join(root, file) for file in files]
    gone = [path for path in paths if not os.path.isfile(path)]
    if gone or not paths:
        raise ValueError(f'{len(gone)} of the {len(paths)} shards of {split[0]} are not there: {some(gone)}')
    return paths, part, info


def class_info(info: Any) -> Tuple[List[str], Optional[int]]:
    """Names of the classes in a description of shards, or [], and their number, or None."""
    info = info if isinstance(info, dict) else {}
    features = info.get('features') if isinstance(info.get('features'), dict) else {}
    labels = [label for label in (features.get('label'), features.get('cls')) if isinstance(label, dict)]
    labels += [label['class_label'] for label in labels if isinstance(label.get('class_label'), dict)]
    for holder in (info, *labels):
        for key in ('class_names', 'classes', 'label_names', 'labels', 'names'):
            names = holder.get(key)
            if isinstance(names, dict) and names and all(str(k).isdigit() for k in names):  # names by index
                names = [names[k] for k in sorted(names, key=int)]
            elif isinstance(names, dict) and sorted(names.values(), key=str) == sorted(range(len(names)), key=str):
                names = sorted(names, key=names.__getitem__)  # indices by name
            if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
                return names, len(names)
    for key in ('num_classes', 'n_classes', 'num_labels', 'classes'):
        if isinstance(info.get(key), int) and info[key] > 0:
            return [], info[key]
    return [], None


class ShardReader(NumberedReader):
    """Images in WebDataset shards, each with its class in a `.cls` file or in a field of its `.json` file.

    Args:
        root: Folder of the shards.
        split: See `shards_of`.
        target_key: Field of the JSON file with the class.

    Raises:
        ValueError: There are no shards or no images in them, or an image has no class.
        OSError: A shard cannot be read.
    """
    targets: np.ndarray

    def __init__(self, root: str, split: Sequence[str], target_key: Optional[str] = None):
        super().__init__()
        self.root = os.path.abspath(root)
        paths, part, self.info = shards_of(self.root, split)
        target_key = target_key or part.get('alt_label')
        endings = image_endings()
        names, places, targets = [], [], []
        for number, path in enumerate(paths):
            with open_regular(path) as file:
                for key, sample in _samples(file, path):
                    ending = next((e for e in sample if f'.{e.rpartition(".")[2]}' in endings), None)
                    if ending is None:
                        continue
                    names.append(f'{os.path.basename(path)}/{key}.{ending}')
                    places.append((number, *sample[ending]))
                    targets.append(_class_of(file, sample, target_key, names[-1]))
        if not names:
            raise ValueError(f'There are no images in the shards of {split[0]} in {shown(self.root)}.')
        self.names, self.places = names, _Places(paths, places)
        self.targets = np.array(targets, np.int64)
        labels, n = class_info(self.info)
        labels = labels or list(map(str, range(n or int(self.targets.max()) + 1)))
        self.class_to_idx = {name: i for i, name in enumerate(labels)}

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        return self.places.open(i), int(self.targets[i])

    def __len__(self) -> int:
        return len(self.names)

    def size(self, i: int) -> int:
        """Bytes of image i."""
        return self.places.size(i)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.names[index]
        return name.rsplit('/', 1)[-1] if basename else os.path.join(self.root, name) if absolute else name


def _samples(file: BinaryIO, path: str) -> Iterator[Tuple[str, Dict[str, Place]]]:
    """Yield samples: consecutive files whose names only differ after the first dot, as places by ending."""
    key = ''
    sample: Dict[str, Place] = {}
    for member in _members(file, path):
        folder, name = posixpath.split(member.name)
        stem, _, ending = name.partition('.')
        if member.size is None or any(map(is_debris, member.name.split('/'))):  # '..', too, which leads out
            continue
        this = posixpath.join(folder, stem)
        if this != key and sample:
            yield key, sample
            sample = {}
        key = this
        sample[ending.lower()] = member.offset, member.size
    if sample:
        yield key, sample


def _class_of(file: BinaryIO, sample: Dict[str, Place], target_key: Optional[str], name: str) -> int:
    ending = 'json' if target_key else 'cls'
    try:
        here = file.tell()
        offset, size = sample[ending]
        file.seek(offset)
        data = file.read(size)
        file.seek(here)
        return int(json.loads(data)[target_key] if target_key else data)
    except (KeyError, TypeError, ValueError) as e:
        what = f'no class {target_key} in a .json' if target_key else 'no class in a .cls'
        raise ValueError(f'{shown(name)} has {what} beside it: --target-key names a field of its .json.') from e
