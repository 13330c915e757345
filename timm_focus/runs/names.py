"""Names of a model's classes."""
import os
import re
from typing import List

from timm.data import ImageNetInfo, infer_imagenet_subset

from timm_focus.data.places365 import CATEGORIES
from timm_focus.utils.errors import sentence

from .model import Loaded

__all__ = ['class_names', 'read_class_names']


def class_names(loaded: Loaded, num_classes: int) -> List[str]:
    """A name for each class: the checkpoint's, else ImageNet's or Places365's if the number fits, else numbers."""
    if len(loaded.label_names) == num_classes:
        return [str(name) for name in loaded.label_names]
    if num_classes == len(CATEGORIES):
        return list(CATEGORIES)
    subset = infer_imagenet_subset(dict(num_classes=num_classes))
    if subset:
        return list(ImageNetInfo(subset).label_descriptions())
    return [f'class {i}' for i in range(num_classes)]


def read_class_names(path: str) -> List[str]:
    """Read class names, one a line in the order of their indices; Places365's list with indices is read, too.

    Raises:
        ValueError: The file cannot be read, has no names, or has a name twice.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # such as a pipe, on which reading would block
        raise ValueError(f'The names of classes in {path} cannot be read: it is no regular file.')
    try:
        with open(path, encoding='utf-8') as f:
            names = [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise ValueError(f'The names of classes in {path} cannot be read: {sentence(e)}') from e
    numbered = [re.fullmatch(r'/\w/(\S+) (\d+)', name) for name in names]
    matches = [m for m in numbered if m]
    if names and [int(m[2]) for m in matches] == list(range(len(names))):
        names = [m[1] for m in matches]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice or not names:
        raise ValueError(f'{path} has {f"{twice[0]} twice" if twice else "no lines"}: give a name of a class a line.')
    return names
