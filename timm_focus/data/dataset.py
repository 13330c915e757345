"""A timm data set of images, found from a folder alone, that works with timm's loaders, samplers and AugMix."""
import logging
import os
import time
from typing import Any, Callable, Optional, Sequence, Tuple, Union

import timm.data
import torch
from PIL import Image, ImageOps
from timm.data import ImageDataset

from timm_focus.utils import shown, some
from timm_focus.utils.errors import sentence

from .folders import is_debris
from .images import read_image
from .index import ImageIndex, cached_scan, folders, list_images, missing, read_list
from .libraries import HfdsReader, TorchReader, saved_as
from .numbered import NumberedReader
from .places365 import find_places365, read_split
from .readers import IndexReader, by_names, draw, map_classes
from .tars import INFO, ShardReader, has_splits, scan_tar

__all__ = [
    'FOLDER', 'PLACES365', 'STREAMS', 'BadImages', 'DataError', 'DataLost', 'SceneDataset', 'create_dataset',
    'found_name', 'open_images']

PLACES365, FOLDER = 'places365', 'folder'
LIBRARIES, STREAMS = ('hfds', 'torch', 'wds'), ('hfids', 'tfds')  # prefixes of timm's names
# names of splits that mean the same, as in timm
TRAIN, EVAL = ('train', 'training'), ('validation', 'val', 'valid', 'eval', 'evaluation')

_logger = logging.getLogger(__name__)


class DataError(OSError):
    """A data set has failed: one sentence, without the traceback that a worker puts before it."""

    def __init__(self, message: str):
        super().__init__(message.strip().rpartition(f'{type(self).__name__}: ')[2])


class BadImages(DataError):
    """Too many images cannot be read."""


class DataLost(DataError):
    """No image can be read any more, as when a disk is gone."""


class SceneDataset(ImageDataset):
    """timm's image data set, which also counts the images that cannot be read.

    The worker that first meets an unreadable image names it in the log, once; the next image takes its place, as in
    timm. If all data is gone, as with a network disk, no image counts as bad: the data set waits for it.

    Args:
        index: The images, or a reader of them.
        found: The layout that was found, in words.
        input_img_mode: Pillow mode to convert to.
        transform: Applied to each image; timm's loaders set it.
        target_transform: Applied to each target.

    Attributes:
        bad: Flags of the images that could not be read, uint8 `[N]`, shared between processes.
        most_bad: Number of bad images allowed; more raise `BadImages`. None allows any number except all.
        patience: Seconds to wait for data that is gone, before `DataLost` is raised.
    """

    def __init__(
            self,
            index: Union[ImageIndex, NumberedReader],
            found: str = '',
            input_img_mode: str = 'RGB',
            transform: Optional[Callable] = None,
            target_transform: Optional[Callable] = None,
    ):
        reader = index if isinstance(index, NumberedReader) else IndexReader(index)
        super().__init__(
            reader.root, reader=reader, input_img_mode=input_img_mode, transform=transform,
            target_transform=target_transform)
        self.found = found
        self.bad = torch.zeros(len(reader), dtype=torch.uint8).share_memory_()
        self.most_bad: Optional[int] = None
        self.patience = 0.
        self._waiting = torch.zeros(1, dtype=torch.uint8).share_memory_()  # shared: one process logs for all

    def read(self, i: int, upright: bool = False) -> Tuple[Image.Image, int]:
        """Read image i without its transform, in the data set's mode, and its class.

        Raises:
            OSError: The image cannot be read.
        """
        file, target = self.reader[i]
        if isinstance(file, Image.Image):  # from a library that opens files itself
            image = ImageOps.exif_transpose(file) if upright else file
            return image.convert(self.input_img_mode), target
        with file:
            return read_image(file, self.input_img_mode, upright), target

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        for _ in range(len(self)):
            try:
                image, target = self._await(i)
                break
            except DataError:
                raise
            except OSError as e:
                if not self.bad[i]:
                    self.bad[i] = 1
                    _logger.warning(f'Skipped {shown(self.filename(i, absolute=True))}, which cannot be read: {e}')
                    self.check_bad(self.bad)
                i = (i + 1) % len(self)
        else:
            raise BadImages(f'Not one of the {len(self):,} images in {shown(self.reader.root)} can be read.')
        if self.transform is not None:
            image = self.transform(image)
        return image, target if self.target_transform is None else self.target_transform(target)

    def check_bad(self, bad: torch.Tensor) -> None:
        """Check that at most `most_bad` images are bad.

        Args:
            bad: Flags of the images that any process could not read, `[N]`.

        Raises:
            BadImages: Too many are bad.
        """
        n = int(bad.sum())
        if self.most_bad is not None and n > self.most_bad:
            first = shown(self.filename(int(bad.argmax()), absolute=True))
            raise BadImages(
                f'{n} of the {len(self):,} images in {shown(self.reader.root)} cannot be read, such as {first}, where '
                f'{self.most_bad:,} may be: repair the data, or allow for it by --max-bad-images.')

    def _await(self, i: int) -> Tuple[Image.Image, int]:
        """Read image i and its class; wait if no data can be read at all."""
        began, waited = time.monotonic(), False
        while True:
            try:
                found = self.read(i)
            except OSError as e:
                if e.errno is None or not self._is_gone(i):  # the image's fault, not the system's
                    raise
                root, seconds = shown(self.reader.root), time.monotonic() - began
                if seconds >= self.patience:
                    after = f' for {seconds:.0f} s' if self.patience else ''
                    raise DataLost(f'Nothing in {root} can be read any more{after}: {sentence(e)}.') from e
                if not self._waiting[0]:
                    self._waiting[0] = 1
                    _logger.warning(f'Nothing in {root} can be read any more: the run waits for it, '
                                    f'{self.patience:g} s at most (--data-timeout): {sentence(e)}')
                waited = True
                time.sleep(min(1., self.patience - seconds))
                continue
            if waited and self._waiting[0]:
                self._waiting[0] = 0
                _logger.info(f'{shown(self.reader.root)} can be read again, after {time.monotonic() - began:.0f} s.')
            return found

    def _is_gone(self, i: int) -> bool:
        """Whether other images cannot be read, either."""
        for k in {0, len(self) // 2, len(self) - 1} - ({i} if len(self) > 1 else set()):
            try:
                file = self.reader[k][0]
                with file:
                    if not isinstance(file, Image.Image):
                        file.read(1)
                return False
            except OSError:
                continue
        return True


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
        class_map: Optional[Union[str, os.PathLike]] = None,
        input_key: Optional[str] = None,
        target_key: Optional[str] = None,
        download: bool = False,
        trust_remote_code: bool = False,
) -> SceneDataset:
    """Open a split of a data set: Places365 in any layout, a tree or archive of class folders, or a data set that a
    library reads.

    Args:
        name: 'places365' or 'folder'; timm's 'hfds/<name or folder>', 'torch/<name>' or 'wds/<name>'; '' finds out
            from the folder.
        root: Folder of the data set, with the splits in it, or an archive.
        split: Name of the split: 'train', 'validation' or a synonym; for a tree, also the folder's name.
        class_names: Names of the classes by index. Give the training split's names to the other splits.
        version: Version of Places365, 'standard' or 'challenge'.
        size: Size of the images of Places365, '256' or 'large'.
        image_list: File of lines `<path> <label>`, with paths from the split's folder; only these images are taken.
        images_per_class: Number of images to draw at random from each class; see `subset`.
        subset_seed: Seed of that draw.
        input_img_mode: Pillow mode to convert to.
        class_map: File of class names, one a line by index; images of other classes are left out, and logged.
        input_key, target_key: For hfds/ and wds/, the fields of the images and their classes.
        download: Let torch/ data sets download.
        trust_remote_code: Let hfds/ data sets run their own code.

    Raises:
        ValueError: There is no such data set, or it is inconsistent: one sentence with the first offenders.
        OSError: Something cannot be read.
        ImportError: A library is not installed.
    """
    root = os.fspath(root)
    names = [split, *next((synonyms for synonyms in (TRAIN, EVAL) if split in synonyms), ())]
    kind, _, rest = name.partition('/')
    kind = kind.lower() if rest else ''
    if kind in STREAMS:
        raise ValueError(f'{name} is a stream, whose images have no numbers: give hfds/ in place of hfids/, and shards '
                         '(wds/) in place of tfds/.')
    if kind in LIBRARIES:
        reader, found = _library_reader(kind, rest, root, names, input_key, target_key, download, trust_remote_code)
    elif name not in ('', PLACES365, FOLDER):
        raise ValueError(f"There is no data set {name!r} here: give '{PLACES365}', '{FOLDER}', one of hfds/, torch/ "
                         "and wds/, or '' for what is found.")
    elif name != PLACES365 and (archive := _archive(root, names)):
        reader = scan_tar(archive, names if archive == root else ())
        found = f'class folders in {archive}, class indices by their sorted names'
    else:
        index, found = _scan_split(name, root, split, class_names if class_map is None else None, version, size)
        reader, version, size = IndexReader(index), None, None
    if image_list is not None and isinstance(reader, IndexReader):
        reader = IndexReader(_listed(image_list, reader.index))
        found += f', those in {os.fspath(image_list)}'
        image_list = None
    for flag, value in (('places-version', version), ('places-size', size), ('train-list', image_list)):
        if value is not None:
            raise ValueError(f'--{flag} is of folders of images, and {name or root} is none: leave it out.')
    if class_map is not None:
        reader = map_classes(reader, class_map)
    if class_names is not None:
        reader = by_names(reader, class_names)
    if images_per_class is not None:
        reader = draw(reader, images_per_class, subset_seed)
        found += f', {images_per_class} of each class (seed {subset_seed})'
    return SceneDataset(reader, found, input_img_mode)


def open_images(
        path: Union[str, os.PathLike] = '',
        dataset: str = '',
        split: str = '',
        apart: Optional[Union[str, os.PathLike]] = None,
        labelled: bool = False,
        **kwargs: Any,
) -> SceneDataset:
    """Open the images for a command: the validation split of a data set, or all images in a folder.

    Args:
        path: A folder, with or without splits, or a tar archive.
        dataset: `name` of `create_dataset`.
        split: Another split than validation.
        apart: A folder inside `path` to skip when all images of the folder are taken.
        labelled: Classes are needed: in a folder without splits, each folder is a class.
        **kwargs: More arguments of `create_dataset`.

    Raises:
        ValueError: There is no such folder, or there are no images in it.
        OSError: A folder cannot be read.
    """
    path, apart = os.fspath(path), None if apart is None else os.fspath(apart)
    if not dataset and not os.path.exists(path):
        raise ValueError(f'There is no folder {shown(path)}.')
    dataset = found_name(path, dataset)
    parts = (*EVAL, *TRAIN) if labelled else EVAL
    whole = not (dataset or split or find_places365(path))
    if whole and os.path.isdir(path) and not _archive(path, EVAL) \
            and not any(os.path.isdir(os.path.join(path, part)) for part in parts):
        if not labelled:
            return SceneDataset(list_images(path, apart), f'images in {path}')
        index = cached_scan(path)
        _check_class_folders(index)
        reader: NumberedReader = IndexReader(index)
        if kwargs.get('class_map') is not None:
            reader = map_classes(reader, kwargs['class_map'])
        return SceneDataset(reader, f'class folders in {path}')
    if whole and os.path.isfile(path) and not has_splits(path):
        return SceneDataset(scan_tar(path), f'class folders in {path}')
    return create_dataset(dataset, path, split or 'validation', **kwargs)


def found_name(root: str, name: str) -> str:
    """Complete an empty data set name: a folder of shards is recognised by its description file.

    Raises:
        ValueError: The folder holds a kind that has to be named; the message names it.
    """
    if name or not os.path.isdir(root):
        return name
    if any(os.path.isfile(os.path.join(root, info)) for info in INFO):
        return f'wds/{os.path.basename(os.path.abspath(root))}'
    saved = saved_as(root)
    if saved:
        raise ValueError(f'{shown(root)} holds {saved}: give --dataset hfds/{shown(root)} in its place.')
    return name


def _library_reader(
        kind: str,
        rest: str,
        root: str,
        names: Sequence[str],
        input_key: Optional[str],
        target_key: Optional[str],
        download: bool,
        trust_remote_code: bool,
) -> Tuple[NumberedReader, str]:
    if kind == 'hfds':
        reader = HfdsReader(rest, names, root, input_key, target_key, trust_remote_code)
        return reader, f'{reader.split} of {rest}, read by datasets'
    if kind == 'wds':
        if not os.path.isdir(root):
            raise ValueError(f'There is no folder {shown(root)} of shards: wds/{rest} is read from a folder here.')
        return ShardReader(root, names, target_key), f'{names[0]} of the shards in {root}'
    try:
        theirs = timm.data.create_dataset(f'torch/{rest}', root=root or None, split=names[0], download=download)
    except Exception as e:  # its many data sets and timm's asserts raise anything
        raise ValueError(f'torch/{rest} cannot be read from {shown(root)}: {sentence(e)}') from e
    return TorchReader(theirs, root), f'{names[0]} of {rest} in {root}, read by torchvision'


def _archive(root: str, names: Sequence[str]) -> str:
    """The archive that a split is read from: the root itself or a file in it, '' if there is none."""
    if os.path.isfile(root):
        return root
    if any(os.path.isdir(os.path.join(root, name)) for name in names):
        return ''
    files = [os.path.join(root, name if name.endswith('.tar') else f'{name}.tar') for name in names]
    return next((file for file in files if os.path.isfile(file)), '')


def _scan_split(
        name: str,
        root: str,
        split: str,
        class_names: Optional[Sequence[str]],
        version: Optional[str],
        size: Optional[str],
) -> Tuple[ImageIndex, str]:
    """Index a split of a folder, and describe the layout that was found."""
    if not os.path.isdir(root):
        raise ValueError(f'There is no folder {shown(root)}: name one with train/<class>/ and val/<class>/.')
    layout = find_places365(root, version, size) if name != FOLDER else None
    if layout is None and (name == PLACES365 or version or size):
        raise ValueError(f'There is no Places365 in {shown(root)}: name the folder that its archives, lists or class '
                         'folders are in.')
    if layout is None:
        folder = split_folder(root, split)
        index = cached_scan(folder, class_names=class_names)
        if class_names is None:
            _check_class_folders(index)
        return index, f'class folders in {folder}, class indices by their sorted names'
    part = 'train' if split in TRAIN else 'val' if split in EVAL else split
    try:
        index = read_split(layout, part)
    except ValueError as e:
        if name == PLACES365:
            raise
        raise ValueError(f'{e} (It was taken for Places365: --dataset {FOLDER} reads plain class folders.)') from e
    if class_names is not None and list(class_names) != index.class_names:
        raise ValueError(f'The classes of {shown(root)} are those of Places365, but training has others.')
    return index, f'{layout.describe()}, official class indices'


def _listed(image_list: Union[str, os.PathLike], index: ImageIndex) -> ImageIndex:
    listed = read_list(image_list, index.root, class_names=index.class_names)
    gone = missing(listed)
    if len(gone):
        raise ValueError(f'{os.fspath(image_list)} lists {len(gone)} images of {len(listed)} that are not in '
                         f'{shown(index.root)}: {some(listed.relative(i) for i in gone[:4])}')
    return listed


def split_folder(root: Union[str, os.PathLike], split: str) -> str:
    """Find the folder of a split by its name or a synonym.

    Raises:
        ValueError: There is none.
    """
    names = [split, *next((synonyms for synonyms in (TRAIN, EVAL) if split in synonyms), ())]
    for name in names:
        folder = os.path.join(root, name)
        if os.path.exists(folder):
            return folder
    tars = sorted(name for name in os.listdir(root) if name.endswith('.tar'))
    if tars:
        raise ValueError(
            f'{shown(os.fspath(root))} has no folder {split}, but archives, such as {some(tars[:4])}: name one as the '
            "split, or, of shards, give --dataset wds/NAME and splits such as 'train-{0000..0009}.tar|1000'.")
    raise ValueError(f'{shown(os.fspath(root))} has no folder {split}: put the images into <split>/<class>/.')


def _check_class_folders(index: ImageIndex) -> None:
    """Refuse class folders without an image, which would otherwise be left out silently."""
    filled = {folder.split('/')[0] for folder in folders(index)[0]}
    with os.scandir(index.root) as entries:
        empty = sorted(e.name for e in entries if e.is_dir() and not is_debris(e.name) and e.name not in filled)
    if empty:
        raise ValueError(
            f'{len(empty)} of the class folders in {index.root} have no images: {some(empty)}. Fill or remove them.')
