"""Images as a timm data set, which timm's loaders, samplers and AugMix work with, found from a folder alone."""
import logging
import os
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from timm.data import ImageDataset
from timm.data.readers.reader import Reader
from torch.utils.data import Subset

from timm_focus.utils import shown, some

from .folders import is_debris
from .images import open_regular, read_image
from .index import ImageIndex, cached_scan, folders, list_images, missing, read_list, subset
from .places365 import find_places365, read_split

__all__ = [
    'FOLDER', 'PLACES365', 'IndexReader', 'PickedDataset', 'SceneDataset', 'create_dataset', 'open_images', 'pick']

PLACES365, FOLDER = 'places365', 'folder'
# names of splits that mean the same, as in timm
TRAIN, EVAL = ('train', 'training'), ('validation', 'val', 'valid', 'eval', 'evaluation')

_logger = logging.getLogger(__name__)


class IndexReader(Reader):
    """timm's reader of an index: files with their targets.

    Args:
        index: The images.
    """

    def __init__(self, index: ImageIndex):
        super().__init__()
        self.index = index
        self.root = index.root
        self.class_to_idx: Dict[str, int] = {name: i for i, name in enumerate(index.class_names)}

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        return open_regular(self.index.path(i)), self.index.target(i)

    def __len__(self) -> int:
        return len(self.index)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        if absolute:
            return self.index.path(index)
        relative = self.index.relative(index)
        return relative.rsplit('/', 1)[-1] if basename else relative


class SceneDataset(ImageDataset):
    """timm's image data set, which keeps count of the images that cannot be read.

    Each is named once in the log, by whichever worker meets it first, and the next one takes its place, as in timm.

    Args:
        index: The images.
        found: What they were found as, in words.
        input_img_mode: Pillow mode to convert to.
        transform: Applied to each image; timm's loaders set it.
        target_transform: Applied to each target.

    Attributes:
        bad: Flags of the images that could not be read, uint8 `[N]`, shared between processes.
    """

    def __init__(
            self,
            index: ImageIndex,
            found: str = '',
            input_img_mode: str = 'RGB',
            transform: Optional[Callable] = None,
            target_transform: Optional[Callable] = None,
    ):
        super().__init__(
            index.root, reader=IndexReader(index), input_img_mode=input_img_mode, transform=transform,
            target_transform=target_transform)
        self.found = found
        self.bad = torch.zeros(len(index), dtype=torch.uint8).share_memory_()

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        for _ in range(len(self)):
            try:
                file, target = self.reader[i]
                with file:
                    image = read_image(file, self.input_img_mode)
                break
            except OSError as e:
                if not self.bad[i]:
                    self.bad[i] = 1
                    _logger.warning(f'Skipped {shown(self.filename(i, absolute=True))}, which cannot be read: {e}')
                i = (i + 1) % len(self)
        else:
            raise RuntimeError(f'Not one of the {len(self):,} images in {self.reader.root} can be read.')
        if self.transform is not None:
            image = self.transform(image)
        return image, target if self.target_transform is None else self.target_transform(target)


def create_dataset(
        name: str = '',
        root: Union[str, os.PathLike] = '',
        split: str = 'train',
        class_names: Optional[Sequence[str]] = None,
        version: Optional[str] = None,
        size: Optional[str] = None,
        image_list: Optional[Union[str, os.PathLike]] = None,
        images_per_class: Optional[int] = None,
        subset_seed: int = 0,
        input_img_mode: str = 'RGB',
) -> SceneDataset:
    """A split of Places365, in whatever layout it lies in a folder, or of any tree of class folders.

    Args:
        name: 'places365' or 'folder'; '' takes what is found.
        root: Folder of the data set, with the splits in it.
        split: Name of the split: 'train', 'validation' and their synonyms, or for a tree its folder.
        class_names: Names of the classes by index: give those of training to the other splits.
        version: Of Places365, 'standard' or 'challenge'.
        size: Of its images, '256' or 'large'.
        image_list: File of lines `<path> <label>`, paths from the split's folder: these images alone.
        images_per_class: As many images of each class, drawn at random; see `subset`.
        subset_seed: What they are drawn by.
        input_img_mode: Pillow mode to convert to.

    Raises:
        ValueError: Nothing of the kind is there, or it makes no sense: one sentence with the first offenders.
        OSError: Something cannot be read.
    """
    if name not in ('', PLACES365, FOLDER):
        raise ValueError(f"There is no data set {name!r} here: give '{PLACES365}', '{FOLDER}' or '' for what is found.")
    if not os.path.isdir(root):
        raise ValueError(f'There is no folder {os.fspath(root)}: name one with train/<class>/ and val/<class>/.')
    layout = find_places365(root, version, size) if name != FOLDER else None
    if layout is None and (name == PLACES365 or version or size):
        raise ValueError(f'There is no Places365 in {os.fspath(root)}: name the folder that its archives, lists or '
                         'class folders are in.')
    if layout is not None:
        part = 'train' if split in TRAIN else 'val' if split in EVAL else split
        try:
            index = read_split(layout, part)
        except ValueError as e:
            if name == PLACES365:
                raise
            raise ValueError(f'{e} (It was taken for Places365: --dataset {FOLDER} reads plain class folders.)') from e
        found = f'{layout.describe()}, official class indices'
        if class_names is not None and list(class_names) != index.class_names:
            raise ValueError(f'The classes of {os.fspath(root)} are those of Places365, but training has others.')
    else:
        folder = split_folder(root, split)
        index = cached_scan(folder, class_names=class_names)
        if class_names is None:
            _check_class_folders(index)
        found = f'class folders in {folder}, class indices by their sorted names'
    if image_list is not None:
        index = read_list(image_list, index.root, class_names=index.class_names)
        gone = missing(index)
        if len(gone):
            raise ValueError(f'{os.fspath(image_list)} lists {len(gone)} images of {len(index)} that are not in '
                             f'{index.root}: {some(index.relative(i) for i in gone[:4])}')
        found += f', those in {os.fspath(image_list)}'
    if images_per_class is not None:
        index = subset(index, images_per_class, subset_seed)
        found += f', {images_per_class} of each class (seed {subset_seed})'
    return SceneDataset(index, found, input_img_mode)


def open_images(path: Union[str, os.PathLike], apart: Optional[Union[str, os.PathLike]] = None) -> SceneDataset:
    """The images of a folder: its validation split if it has splits, else all that are in it, as one class.

    Args:
        path: The folder.
        apart: A folder in it that is passed over.

    Raises:
        ValueError: There is no such folder, or there are no images in it.
        OSError: A folder cannot be read.
    """
    if not os.path.isdir(path):
        raise ValueError(f'There is no folder {shown(os.fspath(path))}.')
    if any(os.path.isdir(os.path.join(path, split)) for split in EVAL) or find_places365(path):
        return create_dataset('', path, 'validation')
    return SceneDataset(list_images(path, apart), f'images in {os.fspath(path)}')


def split_folder(root: Union[str, os.PathLike], split: str) -> str:
    """The folder of a split, by its name or one of its synonyms.

    Raises:
        ValueError: There is none.
    """
    names = [split, *next((synonyms for synonyms in (TRAIN, EVAL) if split in synonyms), ())]
    for name in names:
        folder = os.path.join(root, name)
        if os.path.exists(folder):
            return folder
    raise ValueError(f'{os.fspath(root)} has no folder {split}: put the images into <split>/<class>/.')


def _check_class_folders(index: ImageIndex) -> None:
    """Look for class folders without an image, which would be left out without a word."""
    filled = {folder.split('/')[0] for folder in folders(index)[0]}
    with os.scandir(index.root) as entries:
        empty = sorted(e.name for e in entries if e.is_dir() and not is_debris(e.name) and e.name not in filled)
    if empty:
        raise ValueError(
            f'{len(empty)} of the class folders in {index.root} have no images: {some(empty)}. Fill or remove them.')


def pick(targets: Sequence[int], images_per_class: int, seed: int) -> List[int]:
    """Indices of as many images of each class, drawn at random, of a data set that names no files.

    Raises:
        ValueError: A class with fewer images.
    """
    names = [str(i).encode() for i in range(len(targets))]
    offsets = np.cumsum([0, *map(len, names)])
    classes = [str(k) for k in range(max(targets) + 1)]
    index = ImageIndex(
        '', np.frombuffer(b''.join(names), np.uint8), offsets, np.asarray(targets, np.int32), classes)
    drawn = subset(index, images_per_class, seed)
    return [int(drawn.relative(i)) for i in range(len(drawn))]


class PickedDataset(Subset):
    """Some of the images of a data set, with its transform where timm's loaders look for it."""

    @property
    def transform(self) -> Any:
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any) -> None:
        self.dataset.transform = transform

    @property
    def input_img_mode(self) -> str:
        return self.dataset.input_img_mode

    @input_img_mode.setter
    def input_img_mode(self, mode: str) -> None:
        self.dataset.input_img_mode = mode

    @property
    def reader(self) -> Any:
        return self.dataset.reader
