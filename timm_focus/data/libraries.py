"""Readers of images by number for data sets of other libraries: Hugging Face's `datasets` and torchvision."""
import io
import itertools
import os
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
from PIL import EpsImagePlugin

from timm_focus.utils import shown, some
from timm_focus.utils.errors import sentence

from .folders import is_debris
from .images import open_regular
from .numbered import NumberedReader

__all__ = ['HfdsReader', 'TorchReader', 'forbid_programs', 'saved_as']

MOST_FOLDERS = 9  # a data set has at most about as many configurations or splits; more folders are classes
SAVED = ('state.json', 'dataset_dict.json')  # save_to_disk writes these for one split, and for several


def forbid_programs() -> None:
    """Keep Pillow from starting a program (Ghostscript, for EPS) when another library opens images with it."""
    EpsImagePlugin.gs_binary = False


def saved_as(folder: str) -> str:
    """Say in words whether a folder holds a data set of save_to_disk or parquet files; '' if neither."""
    if any(os.path.isfile(os.path.join(folder, name)) for name in SAVED):
        return 'a data set that save_to_disk wrote'
    return 'parquet files' if _has_parquet(folder, 2) else ''


def _has_parquet(folder: str, depth: int) -> bool:
    """Say whether a folder, or one of its folders down to `depth`, has parquet files: <configuration>/<split>/ is two.

    It stays cheap in a tree of images: it looks at 1,000 entries of a folder at most, and where a folder has more than
    MOST_FOLDERS folders, which are classes then, it enters `data` alone.
    """
    try:
        with os.scandir(folder) as entries:
            kept = [entry for entry in itertools.islice(entries, 1000) if not is_debris(entry.name)]
        inner = [entry for entry in kept if entry.is_dir()]
    except OSError:  # whoever reads it tells
        return False
    if any(entry.name.endswith('.parquet') for entry in kept):
        return True
    if len(inner) > MOST_FOLDERS:
        inner = [entry for entry in inner if entry.name == 'data']
    return depth > 0 and any(_has_parquet(entry.path, depth - 1) for entry in inner)


class HfdsReader(NumberedReader):
    """A split of a Hugging Face data set: from the Hub, a folder of parquet files, or save_to_disk.

    Args:
        name: Name on the Hub, or folder.
        split: Names of the split, or a slice such as 'train[80%:]'.
        root: Folder for downloaded and converted files, in place of the library's own cache.
        input_key: Column of the images; by default the only image column.
        target_key: Column of the classes; by default the only class column, or `label`.
        trust_remote_code: Let the data set run its own code, if the library still can.

    Raises:
        ValueError: There is no such data set, split or column.
        ImportError: The library is not installed.
    """
    targets: np.ndarray

    def __init__(
            self,
            name: str,
            split: Sequence[str],
            root: Optional[str] = None,
            input_key: Optional[str] = None,
            target_key: Optional[str] = None,
            trust_remote_code: bool = False,
    ):
        super().__init__()
        try:
            import datasets
        except ImportError as e:
            raise ImportError(f"hfds/{name} takes Hugging Face's datasets: pip install datasets.") from e

        self.root = name
        kwargs = dict(trust_remote_code=True) if trust_remote_code else {}
        try:
            if any(os.path.isfile(os.path.join(name, file)) for file in SAVED):
                parts = datasets.load_from_disk(name)
                if not isinstance(parts, datasets.DatasetDict):  # a single split may have no name, so any name fits
                    parts = {str(parts.split or split[0].partition('[')[0]): parts}
            else:
                parts = datasets.load_dataset(name, cache_dir=root or None, **kwargs)
        except Exception as e:  # its many builders, file systems and servers raise anything
            raise ValueError(f'The data set {shown(name)} cannot be loaded: {sentence(e)}') from e
        self.split, dataset = _slice(parts, split, name)
        features = dataset.features
        input_key = input_key or _only(features, datasets.Image, 'image')
        target_key = target_key or _only(features, datasets.ClassLabel, 'label')
        for key, flag, what in ((input_key, 'input-key', 'images'), (target_key, 'target-key', 'classes')):
            if key not in features:
                raise ValueError(f'{shown(name)} has no column {key} of {what}, but {some(features, 9)}: name it by '
                                 f'--{flag}.')
        self.image_key, self.label_key = input_key, target_key
        self.dataset = dataset.cast_column(input_key, datasets.Image(decode=False))
        labels = dataset.select_columns([target_key]).with_format('numpy')[:][target_key]
        names = getattr(features[target_key], 'names', None)
        if names is None and labels.dtype.kind not in 'iu':  # the names themselves
            names, labels = np.unique(labels.astype(str), return_inverse=True)
        elif names is None:
            names = range(int(labels.max()) + 1 if len(labels) else 0)
        if len(labels) and labels.min() < 0:
            raise ValueError(f'{int((labels < 0).sum())} of the {len(labels)} images in {self.split} of {shown(name)} '
                             'have no class (-1): take a split with classes.')
        self.targets = np.asarray(labels, np.int64)
        self.class_to_idx = {str(label): i for i, label in enumerate(names)}

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        image = self.dataset[i][self.image_key]
        if image['bytes'] is not None:
            return io.BytesIO(image['bytes']), int(self.targets[i])
        return open_regular(image['path']), int(self.targets[i])

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, i: int) -> int:
        """Bytes of image i."""
        image = self.dataset[i][self.image_key]
        return os.stat(image['path']).st_size if image['bytes'] is None else len(image['bytes'])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """The index in the split, which makes the name unique, and the file's own name if it is known."""
        own = os.path.basename(self.dataset[index][self.image_key]['path'] or '')
        name = f'{index:08}-{own}' if own else f'{index:08}'
        return f'{self.root}/{self.split}/{name}' if absolute else name


def _slice(parts: Any, split: Sequence[str], name: str) -> Tuple[str, Any]:
    """Select a split, or slices of splits."""
    import datasets

    known = next((one for one in split if one in parts), None)
    if known is not None:
        return known, parts[known]
    try:
        instructions = datasets.ReadInstruction.from_spec(split[0]).to_absolute({k: len(v) for k, v in parts.items()})
        sliced = [parts[one.splitname].select(range(one.from_, one.to)) for one in instructions]
    except (AssertionError, KeyError, ValueError) as e:
        only = ''
        if list(parts) == ['train']:
            only = ", such as --train-split 'train[:80%]' and --val-split 'train[80%:]'"
        raise ValueError(f'{shown(name)} has {some(parts, 9)}, and no split {split[0]}: name one that is there, or a '
                         f'part of one{only}.') from e
    return split[0], datasets.concatenate_datasets(sliced)


def _only(features: Any, kind: type, default: str) -> str:
    """The default column if it exists, else the only column of a kind."""
    if default in features:
        return default
    keys = [key for key, feature in features.items() if isinstance(feature, kind)]
    return keys[0] if len(keys) == 1 else default


class TorchReader(NumberedReader):
    """A data set of torchvision, with the names of its classes.

    Args:
        dataset: A torchvision data set that gives Pillow images.
        root: Folder of the data set.
    """

    def __init__(self, dataset: Any, root: str):
        super().__init__()
        self.dataset, self.root = dataset, root
        self.targets = _targets(dataset)
        names: List[str] = _names(dataset)
        if not names and self.targets is not None and len(self.targets):
            names = list(map(str, range(int(self.targets.max()) + 1)))
        self.class_to_idx = {name: i for i, name in enumerate(names)}

    def __getitem__(self, i: int) -> Tuple[Any, int]:
        forbid_programs()
        return self.dataset[i]

    def __len__(self) -> int:
        return len(self.dataset)

    def size(self, i: int) -> int:
        """Bytes of image i; -1 if it has no file of its own."""
        path = self._filename(i, absolute=True)
        return os.stat(path).st_size if os.path.isabs(path) else -1

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        for name in ('samples', 'imgs'):
            if hasattr(self.dataset, name):
                path = str(getattr(self.dataset, name)[index][0])
                return os.path.basename(path) if basename else os.path.abspath(path) if absolute else \
                    os.path.relpath(path, self.root)
        return f'{index:08}'


def _targets(dataset: Any) -> Optional[np.ndarray]:
    """Classes of all images without decoding any, if the data set keeps them."""
    for name in ('targets', 'labels', '_labels', 'y'):
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset):
            return np.asarray(found, np.int64)
    for name in ('samples', 'imgs', '_samples'):
        found = getattr(dataset, name, None)
        if found is not None and len(found) == len(dataset):
            return np.array([int(sample[1]) for sample in found], np.int64)
    return None


def _names(dataset: Any) -> List[str]:
    """Names of the classes by index. Several names of one class, as in ImageNet, are joined."""
    classes = getattr(dataset, 'classes', None) or getattr(dataset, 'categories', None) or ()
    names = [', '.join(map(str, one)) if isinstance(one, (tuple, list)) else str(one) for one in classes]
    if len(set(names)) < len(names):  # two classes may have the same name
        names = [f'{name} ({i})' if names.count(name) > 1 else name for i, name in enumerate(names)]
    return names
