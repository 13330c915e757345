"""Checks that a model can be looked at, and identifies the images of a result."""
import hashlib
import os
import sys
from typing import Any, Iterable, NamedTuple, Sequence, Tuple

from timm_focus.runs import Loaded
from timm_focus.utils import shown

__all__ = ['Checked', 'check_free', 'check_model', 'count_classes', 'images_digest', 'tell']


class Checked(NamedTuple):
    """Logits of a model for an image of zeros, and a note on its map, '' if there is none."""
    logits: Any
    note: str = ''


def check_model(loaded: Loaded, needs_map: bool = True) -> Checked:
    """Check that a model can be looked at; a note says if its last feature map is coarse.

    Args:
        loaded: The model.
        needs_map: Whether the command uses a map of the model.

    Raises:
        ValueError: It cannot run on images of the wanted size, its numbers are not finite, or its last feature map has
            a single position.
    """
    import torch

    from timm_focus.analysis import FINE, check_size, find_size, last_map

    size = loaded.data_config['input_size']
    name, (height, width) = shown(loaded.name), size[1:]
    logits = check_size(loaded.model, size, name)
    if torch.is_tensor(logits) and not logits.isfinite().all():
        raise ValueError(f'{name} answers with numbers that are not finite: its training diverged, or its weights are '
                         'damaged.')
    if not needs_map:
        return Checked(logits)
    parameter = next(p for p in loaded.model.parameters() if p.is_floating_point())
    features, _ = last_map(loaded.model, torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype))
    rows, columns = features.shape[2:]
    if min(rows, columns) >= FINE:
        return Checked(logits)
    finer = find_size(loaded.model, size, FINE)
    advice = f'larger images, such as {finer[0]} x {finer[1]}' if finer else 'larger images'
    if finer and finer[0] == finer[1]:
        advice += f' (--img-size {finer[0]})'
    what = f'The last feature map of {name} is {rows} x {columns} at images of {height} x {width}'
    if rows * columns == 1:
        raise ValueError(f'{what}, so it tells no place from another: take {advice}.')
    return Checked(logits, f'{what}, on which a share of the places says little: for one of {FINE} x {FINE} or more '
                           f'take {advice}.')


def count_classes(loaded: Loaded, needs_map: bool = True) -> Tuple[int, str]:
    """Return the number of classes of a model, and a note on its map.

    Raises:
        ValueError: It has no classes, or `check_model` refuses it.
    """
    import torch

    logits, note = check_model(loaded, needs_map)
    if not torch.is_tensor(logits) or logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f'{loaded.name} gives no logits of classes: take a model that classifies.')
    return logits.shape[1], note


def check_free(folder: str, names: Iterable[str], mark: str) -> None:
    """Check that a command replaces no files of others.

    Args:
        folder: Folder of the files.
        names: Paths in the folder of those files to write that no earlier run of the command is known to have written.
        mark: Name of the file in which the command records what it wrote.

    Raises:
        ValueError: One of the files exists.
    """
    there = next((path for path in (os.path.join(folder, name) for name in names) if os.path.lexists(path)), None)
    if there is not None:
        raise ValueError(f'{shown(there)} is there already, and no {mark} beside it says that this command wrote it: '
                         'give another --output, or move it.')


def tell(notes: Sequence[str]) -> None:
    """Print notes on standard error. Call it when nothing can be refused any more."""
    for note in filter(None, notes):
        print(note, file=sys.stderr)


def images_digest(dataset: Any) -> str:
    """Return the SHA-256 of the names, classes and sizes in bytes of a list of images, in order."""
    found, reader = hashlib.sha256(), dataset.reader
    for i in range(len(dataset)):
        try:
            size = reader.size(i)
        except OSError:  # reading it will say what is wrong
            size = -1
        target = '' if reader.targets is None else int(reader.targets[i])
        found.update(os.fsencode(dataset.filename(i)) + f'\0{target}\0{size}\n'.encode())
    return found.hexdigest()
