"""Finds and reads Places365 in every layout that its authors and others distribute, from the folder alone.

The class index is always the official one, the index in `CATEGORIES`, whatever the order of the folders.

| kind | training images | validation images |
|---|---|---|
| official lists | `data_256/a/airfield/1.jpg`, `places365_train_standard.txt` | flat `val_256`, `places365_val.txt` |
| nested tree | `data_256/a/airfield/1.jpg` or `train/a/airfield/1.jpg`, no list | as one of the others |
| easy format | `train/airfield/1.jpg`, `train/arena-hockey/1.jpg` | `val/airfield/2.jpg` |

`large` may replace 256, and `data_256_standard` or `data_256_challenge` may replace `data_256`. If the validation
images lie in class folders, nested or easy, the folders give their classes.
"""
import os
from dataclasses import replace
from pathlib import Path
from typing import Iterator, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from timm_focus.utils import some

from .folders import is_debris
from .index import ImageIndex, cached_scan, folders, missing, read_list

__all__ = ['CATEGORIES', 'SIZES', 'VERSIONS', 'Layout', 'find_places365', 'read_split']

CATEGORIES = tuple(Path(__file__).with_name('places365_categories.txt').read_text(encoding='utf-8').split())
VERSIONS = ('standard', 'challenge')
SIZES = ('256', 'large')

_KINDS = ('official lists', 'nested tree', 'easy format')
_VAL_LIST = 'places365_val.txt'
_NESTED = [f'{category[0]}/{category}' for category in CATEGORIES]
_EASY = [category.replace('/', '-') for category in CATEGORIES]


class Layout(NamedTuple):
    """A copy of Places365. A field is None if the part was not found or is not known.

    Attributes:
        kind: 'official lists', 'nested tree' or 'easy format'.
        version: 'standard' or 'challenge'.
        size: '256' or 'large'.
        root: The folder that contains everything.
        train: Folder of the training images.
        val: Folder of the validation images.
        train_list: List of the training images; None if class folders give the classes.
        val_list: List of the validation images, likewise.
        also: Other versions and sizes in the folder, in words.
    """
    kind: str
    version: Optional[str]
    size: Optional[str]
    root: str
    train: Optional[str]
    val: Optional[str]
    train_list: Optional[str]
    val_list: Optional[str]
    also: Tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Version, size and kind, in words."""
        images = {'256': '256 px', 'large': 'large images', None: 'images of unknown size'}[self.size]
        return f'{self.version or "of unknown version"}, {images}, {self.kind}'

    def describe(self) -> str:
        """Describe what was found, in one line."""
        splits = []
        for name, folder, file in (('train', self.train, self.train_list), ('val', self.val, self.val_list)):
            source = os.path.basename(folder) if folder else 'not there'
            splits.append(f'{name} {source}' + (f' by {os.path.basename(file)}' if file else ''))
        also = f' (also there: {"; ".join(self.also)})' if self.also else ''
        return f'Places365 {self.title}, in {self.root}: {", ".join(splits)}{also}'


def find_places365(
        root: Union[str, os.PathLike],
        version: Optional[str] = None,
        size: Optional[str] = None,
) -> Optional[Layout]:
    """Find the copy of Places365 in a folder or its subfolders; None if there is none.

    Among several copies, one with both splits is preferred, then standard over challenge, then 256 over large, then
    official lists over a nested tree over the easy format.

    Args:
        root: The folder to search.
        version: 'standard' or 'challenge'; None takes either.
        size: '256' or 'large'; None takes either.

    Raises:
        ValueError: Places365 is there, but not in this version and size; or the version or size is unknown.
    """
    for name, value, allowed in (('version', version, VERSIONS), ('size', size, SIZES)):
        if value not in (None, *allowed):
            raise ValueError(f'Places365 has no {name} {value!r}: ask for {" or ".join(allowed)}.')
    root = os.path.abspath(root)
    found = list(_layouts(root))
    # a folder with a train folder is itself a data set, whatever else it contains
    if not found and os.path.isdir(root) and not os.path.isdir(os.path.join(root, 'train')):
        with os.scandir(root) as entries:
            inner = sorted(entry.path for entry in entries if not is_debris(entry.name) and entry.is_dir())
        found = [layout for folder in inner for layout in _layouts(folder)]
    if not found:
        return None
    fitting = [layout for layout in found if version in (None, layout.version) and size in (None, layout.size)]
    if not fitting:
        asked = ', '.join(filter(None, (version, size)))
        raise ValueError(
            f'{root} has no Places365 {asked}, but {"; ".join(layout.title for layout in found)}: ask for one that is '
            f'there.')
    best = min(fitting, key=_rank)
    return best._replace(also=tuple(layout.title for layout in found if layout is not best))


def read_split(layout: Layout, split: str) -> ImageIndex:
    """Index the images of one split, with the official class indices and names.

    Args:
        layout: The result of `find_places365`.
        split: 'train' or 'val'.

    Raises:
        ValueError: The images or their list are missing or do not match; Places365 does not have a class folder; a
            class has no training images; or categories_places365.txt differs from the official one.
        OSError: A list or a folder cannot be read.
    """
    if split not in ('train', 'val'):
        raise ValueError(f'Places365 has no split {split!r} with classes: ask for train or val.')
    _check_categories(layout.root)
    folder, file = (layout.train, layout.train_list) if split == 'train' else (layout.val, layout.val_list)
    if folder is None:
        raise ValueError(_absent(layout, split))
    index = _read_listed(file, folder) if file else _read_tree(folder, layout.root, split)
    empty = np.flatnonzero(index.counts() == 0)
    if split == 'train' and len(empty):
        raise ValueError(
            f'{len(empty)} of the {len(CATEGORIES)} classes have no images in {file or folder}, such as '
            f'{some(CATEGORIES[k] for k in empty)}: unpack the archive again.')
    return index


def _layouts(root: str) -> Iterator[Layout]:
    """Yield every copy that lies directly in this folder."""
    def folder(name: str) -> Optional[str]:
        path = os.path.join(root, name)
        return path if os.path.isdir(path) else None

    def file(name: str) -> Optional[str]:
        path = os.path.join(root, name)
        return path if os.path.isfile(path) else None

    lists = {version: path for version in VERSIONS if (path := file(f'places365_train_{version}.txt'))}
    val_list = file(_VAL_LIST)
    listed: List[Optional[str]] = [*lists] or [None]
    pairs: List[Tuple[str, str, List[Optional[str]], Optional[str]]] = []
    pairs += [(f'data_{size}_{version}', f'val_{size}', [version], size) for size in SIZES for version in VERSIONS]
    pairs += [(f'data_{size}', f'val_{size}', listed, size) for size in SIZES]
    pairs += [('train', 'val', listed, None)]
    seen = set()
    for train_name, val_name, versions, size in pairs:
        train, val = folder(train_name), folder(val_name)
        if train is None:
            continue
        names, n_classes = _class_folders(train)
        easy = names is _EASY
        if easy:  # the official lists name the files of a nested tree
            versions = [None]
            if os.path.basename(root) == 'places365_standard':  # the folder in the authors' archive
                versions, size = ['standard'], '256'
        for version in versions:
            train_list = None if easy or version is None else lists.get(version)
            # without a list and a size in the name, most of the class folders must be there
            if ((train_list and size) or 2 * n_classes > len(CATEGORIES)) and (version, size) not in seen:
                seen.add((version, size))
                kind = _KINDS[0] if train_list else _KINDS[2] if easy else _KINDS[1]
                yield Layout(kind, version, size, root, train, val, train_list, _needed(val, val_list))
    if not seen and (lists or val_list):  # only partly unpacked
        size = next((size for size in SIZES if folder(f'val_{size}')), None)
        val = folder(f'val_{size}' if size else 'val')
        version, train_list = next(iter(lists.items()), (None, None))
        yield Layout(_KINDS[0], version, size, root, None, val, train_list, _needed(val, val_list))


def _needed(val: Optional[str], val_list: Optional[str]) -> Optional[str]:
    """The list of validation images; None if they lie in class folders."""
    return val_list if val is None or not _class_folders(val)[1] else None


def _class_folders(folder: str) -> Tuple[List[str], int]:
    """Whether the class folders in a folder are nested or easy (their list of names), and how many there are."""
    counts = [sum(os.path.isdir(os.path.join(folder, name)) for name in names) for names in (_NESTED, _EASY)]
    return (_EASY, counts[1]) if counts[1] > counts[0] else (_NESTED, counts[0])


def _rank(layout: Layout) -> tuple:
    whole = layout.train is not None and layout.val is not None
    return (
        not whole, (VERSIONS[0], None, VERSIONS[1]).index(layout.version),
        (SIZES[0], None, SIZES[1]).index(layout.size), _KINDS.index(layout.kind))


def _absent(layout: Layout, split: str) -> str:
    """Say why a split has no folder."""
    stem, other, file = (
        ('data', layout.val, layout.train_list) if split == 'train' else ('val', layout.train, layout.val_list))
    if other is None:
        wanted = ' or '.join(f'{stem}_{size}' for size in SIZES)
    else:
        wanted = split if os.path.basename(other) in ('train', 'val') else f'{stem}_{layout.size}'
    there = [name for size in SIZES if os.path.isdir(os.path.join(layout.root, name := f'{stem}_{size}'))]
    return (
        f'{layout.root} has no folder {wanted}' + (f', whose images {os.path.basename(file)} lists' if file else '')
        + (f', but {there[0]}' if there else '') + f': unpack the archive of the {split} images there.')


def _read_listed(file: str, folder: str) -> ImageIndex:
    index = read_list(file, folder, class_names=CATEGORIES)
    gone = missing(index)
    if len(gone):
        raise ValueError(
            f'{len(gone)} of the {len(index)} images that {file} lists are not in {folder}, such as '
            f'{some(index.relative(i) for i in gone[:4])}: unpack the archive again, or strike them off the list.')
    # a list with another order of classes would train without any sign of it
    names, numbers = folders(index)
    labels = {name: label for label, name in enumerate(_NESTED)}
    expected = np.array([labels.get(name, -1) for name in names])[numbers]
    wrong = np.flatnonzero((expected >= 0) & (expected != index.targets))
    if len(wrong):
        raise ValueError(
            f'{file} gives {len(wrong)} of its {len(index)} images another class than the folder that they are in, '
            f'such as {some(f"{index.relative(i)} {index.target(i)}" for i in wrong[:4])}: use the official list.')
    return index


def _read_tree(folder: str, root: str, split: str) -> ImageIndex:
    names, n_classes = _class_folders(folder)
    if not n_classes:
        file = _VAL_LIST if split == 'val' else f'places365_train_{VERSIONS[0]}.txt'
        raise ValueError(
            f'{file} is missing: {folder} has no class folders, so this list alone tells the classes; put it into '
            f'{root}.')
    return replace(cached_scan(folder, nested=True, class_names=names), class_names=list(CATEGORIES))


def _check_categories(root: str) -> None:
    """Compare the official list of categories with ours, if it is there."""
    file = Path(root, 'categories_places365.txt')
    if not file.is_file():
        return
    found = [line for line in file.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]
    ours = [f'/{name} {label}' for label, name in enumerate(_NESTED)]
    wrong = [f'{theirs!r} instead of {our!r}' for theirs, our in zip(found, ours) if theirs.split() != our.split()]
    if wrong or len(found) != len(ours):
        raise ValueError(
            f'{file} is not the official list of the {len(ours)} categories: it has {len(found)} lines, {len(wrong)} '
            f'of the first {min(len(found), len(ours))} differ'
            + (f', such as {some(wrong, 1)}' if wrong else '') + ': put the official one there, or none.')
