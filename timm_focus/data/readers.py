"""timm readers of indexed images, and readers of a part of another reader's images with other class numbers."""
import os
import pickle
from dataclasses import replace
from typing import Any, Dict, List, Sequence, Tuple, Union

import numpy as np
from timm.data.readers.class_map import load_class_map

from timm_focus.utils import shown, some
from timm_focus.utils.errors import sentence

from .folders import LeftOut
from .images import open_regular
from .index import ImageIndex, subset
from .numbered import NumberedReader
from .tars import class_info

__all__ = ['IndexReader', 'PartReader', 'by_names', 'draw', 'label_names', 'map_classes', 'pick']


class IndexReader(NumberedReader):
    """A timm reader of an `ImageIndex`: open files with their classes.

    Args:
        index: The images.
    """

    def __init__(self, index: ImageIndex):
        super().__init__()
        self.index = index
        self.root = index.root
        self.targets = index.targets
        self.class_to_idx = {name: i for i, name in enumerate(index.class_names)}

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        return open_regular(self.index.path(i)), self.index.target(i)

    def __len__(self) -> int:
        return len(self.index)

    def size(self, i: int) -> int:
        """Bytes of image i."""
        return os.stat(self.index.path(i)).st_size

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        if absolute:
            return self.index.path(index)
        relative = self.index.relative(index)
        return relative.rsplit('/', 1)[-1] if basename else relative


class PartReader(NumberedReader):
    """Some of the images of another reader, with other class numbers.

    Args:
        reader: The other reader.
        indices: Its images to take, in order, `[N]`.
        targets: Classes of these images, `[N]`.
        class_to_idx: Names and numbers of the classes.
    """
    targets: np.ndarray

    def __init__(self, reader: NumberedReader, indices: np.ndarray, targets: np.ndarray, class_to_idx: Dict[str, int]):
        super().__init__()
        self.reader, self.indices, self.targets, self.class_to_idx = reader, indices, targets, class_to_idx
        self.root = reader.root

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        return self.reader[int(self.indices[i])][0], int(self.targets[i])

    def __len__(self) -> int:
        return len(self.indices)

    def size(self, i: int) -> int:
        """Bytes of image i."""
        return self.reader.size(int(self.indices[i]))

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return self.reader._filename(int(self.indices[index]), basename, absolute)


def label_names(reader: Any) -> List[str]:
    """Names of the classes of a reader by index; [] if they are not known."""
    numbers = getattr(reader, 'class_to_idx', None) or {}
    names = [str(i) for i in range(max(numbers.values(), default=-1) + 1)]
    for name, i in numbers.items():
        names[i] = str(name)
    return names or class_info(getattr(reader, 'info', None))[0]


def map_classes(reader: NumberedReader, class_map: Union[str, os.PathLike]) -> NumberedReader:
    """Renumber the classes of a reader by a class map. Images of classes that the map lacks are left out."""
    path = os.fspath(class_map)
    try:
        numbers = load_class_map(path, reader.root if os.path.isdir(reader.root) else os.path.dirname(reader.root))
    except (AssertionError, OSError, ValueError, pickle.UnpicklingError) as e:
        raise ValueError(f'--class-map {shown(path)} cannot be read: {sentence(e)}') from e
    new = {old: numbers.get(name, numbers.get(old, -1)) for name, old in reader.class_to_idx.items()}
    lost = [name for name, old in reader.class_to_idx.items() if new[old] < 0]
    if len(lost) == len(new):
        raise ValueError(f'--class-map {shown(path)} has none of the {len(new)} classes of the data: {some(lost)}.')
    names = {str(name): int(number) for name, number in numbers.items()}
    if reader.targets is None:
        raise ValueError(f'--class-map needs the classes of all images, which {shown(reader.root)} does not tell.')
    targets = np.array([new.get(old, -1) for old in range(max(new) + 1)], np.int64)[reader.targets]
    kept = np.flatnonzero(targets >= 0)
    if len(kept) < len(targets):
        left_out = LeftOut(reader.root)
        left_out.note('unmapped', reader._filename(int(np.flatnonzero(targets < 0)[0])), len(targets) - len(kept))
        left_out.tell()
    return _renumbered(reader, kept, targets, names)


def by_names(reader: NumberedReader, class_names: Sequence[str]) -> NumberedReader:
    """Renumber the classes of a reader to match the order of other class names.

    Raises:
        ValueError: The reader has images of a class that is not among these names.
    """
    names = {name: i for i, name in enumerate(class_names)}
    if reader.class_to_idx == names or reader.targets is None:
        return reader
    present = set(np.unique(reader.targets).tolist())
    unknown = [name for name, i in reader.class_to_idx.items() if i in present and name not in names]
    if unknown:
        raise ValueError(f'{len(unknown)} of the classes in {shown(reader.root)} are not among the {len(names)} known '
                         f'ones, such as {some(unknown)}.')
    new = np.zeros(max(reader.class_to_idx.values()) + 1, np.int64)
    for name, i in reader.class_to_idx.items():
        new[i] = names.get(name, 0)
    return _renumbered(reader, np.arange(len(reader)), new[reader.targets], names)


def _renumbered(reader: NumberedReader, kept: np.ndarray, targets: np.ndarray, names: Dict[str, int]) -> NumberedReader:
    if not isinstance(reader, IndexReader):
        return PartReader(reader, kept, targets[kept], names)
    listed = list(map(str, range(max(names.values()) + 1)))
    for name, i in names.items():
        listed[i] = name
    return IndexReader(replace(reader.index, targets=targets.astype(np.int32), class_names=listed).select(kept))


def draw(reader: NumberedReader, images_per_class: int, seed: int) -> NumberedReader:
    """Draw the same number of images from each class at random; see `subset`.

    Raises:
        ValueError: A class has fewer images, or the data does not give the classes.
    """
    if isinstance(reader, IndexReader):
        return IndexReader(subset(reader.index, images_per_class, seed))
    if reader.targets is None:
        raise ValueError(f'{shown(reader.root)} does not tell the classes of its images: none can be drawn by class.')
    picked: np.ndarray = np.array(pick(reader.targets.tolist(), images_per_class, seed))
    return PartReader(reader, picked, reader.targets[picked], reader.class_to_idx)


def pick(targets: Sequence[int], images_per_class: int, seed: int) -> List[int]:
    """Draw indices of the same number of images from each class, in a data set without file names.

    Raises:
        ValueError: A class has fewer images.
    """
    names = [str(i).encode() for i in range(len(targets))]
    offsets = np.cumsum([0, *map(len, names)])
    classes = [str(k) for k in range(max(targets) + 1)]
    index = ImageIndex(
        '', np.frombuffer(b''.join(names), np.uint8), offsets, np.asarray(targets, np.int32), classes)
    drawn = subset(index, images_per_class, seed)
    return [int(drawn.relative(i)) for i in range(len(drawn))]
