"""Finds classes by the names that people and folders use."""
import difflib
from collections import Counter
from typing import Dict, List, Sequence

from timm_focus.runs import Loaded

__all__ = ['find_class', 'folder_classes', 'folder_key']


def folder_key(name: str) -> str:
    """Return a class name as folders spell it: Places365's arena/hockey may be arena-hockey or arena_hockey."""
    return str(name).replace('/', '-').replace('_', '-')


def folder_classes(loaded: Loaded, names: Sequence[str]) -> Dict[str, int]:
    """Return the classes of a model by the `folder_key` of all names that their folders may have.

    These are their names, and for ImageNet also their WordNet numbers.

    Args:
        loaded: The model.
        names: Names of all its classes, as `class_names` returns them.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    lists: List[Sequence[str]] = [names]
    subset = infer_imagenet_subset(dict(num_classes=len(names)))
    if subset:
        lists += [ImageNetInfo(subset).label_names(), [name.split(',')[0] for name in names]]
    found: Dict[str, int] = {}
    for known in lists:
        keys = [folder_key(name) for name in known]
        several = {key for key, n in Counter(keys).items() if n > 1}
        found.update((key, i) for i, key in enumerate(keys) if key not in several and key not in found)
    return found


def find_class(text: str, names: Sequence[str]) -> int:
    """Find a class by its name, by one of its synonyms (separated by commas), or by its index; names come first.

    Raises:
        ValueError: There is no such class, or there are several.
    """
    def plain(name: str) -> str:
        return ' '.join(name.casefold().replace('_', ' ').split())

    synonyms = [[plain(name), *map(plain, name.split(','))] for name in names]
    for found in ([i for i, name in enumerate(names) if name == text],
                  [i for i, of_class in enumerate(synonyms) if plain(text) in of_class]):
        if len(found) > 1:
            raise ValueError(f'--class {text} is the name of {len(found)} classes, {", ".join(map(str, found[:9]))}: '
                             'give its index.')
        if found:
            return found[0]
    try:
        index = int(text)
    except ValueError:
        known = {synonym: name for name, of_class in zip(names, synonyms) for synonym in of_class}
        near = dict.fromkeys(known[match] for match in difflib.get_close_matches(plain(text), known, 3))
        hint = f'did you mean {" or ".join(near)}?' if near else f'they are {", ".join(names[:3])}, ...'
        raise ValueError(f'There is no class {text} among {len(names)}: {hint}') from None
    if not 0 <= index < len(names):
        raise ValueError(f'There is no class {index}: give a name, or an index from 0 to {len(names) - 1}.')
    return index
