"""Built-in drawn scenes: a small data set to try training and analysis on, without any download.

Eight classes of little illustrations whose evidence is spread over the whole image. A scene is a backdrop, a ground and
many scattered objects; every piece is there only with some probability, has a random place, size and colour, and most
pieces belong to several classes (sand to beach and desert, windows to kitchen and bedroom). No single region settles
the class, so a network gains from seeing more of the picture.

Each picture comes with a mask of the pixels that tell its class. Each scene also exists as an object: the same evidence
gathered in one place, on a backdrop that tells nothing. With the masks, scenes and objects are a controlled test of the
focus area: whether it lies on the evidence, and whether it is wide or small where the evidence is. They are not a
benchmark of accuracy: how well a network classifies drawings says little about photographs.

    pieces.py    the pen and what it can draw
    classes.py   which class has which pieces, and which of them tell it
    pictures.py  one scene or object, with its mask
    scenes.py    data sets of them in folders, and their cache

Image `index` of a split is a pure function of (seed, split, class, index). All draws come from `random.Random` seeded
with a string, which Python hashes by SHA-512 and keeps stable across versions and machines.
"""
import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any, Dict, Union
from uuid import uuid4

from PIL import Image

from .classes import SCENES
from .pictures import draw_object_with_mask, draw_scene, draw_scene_with_mask

__all__ = [
    'SCENES', 'draw_object_with_mask', 'draw_scene', 'draw_scene_with_mask', 'picture_seed', 'synthetic_scenes',
    'write_synthetic_scenes',
]

# Part of the cache folder's name: raise it whenever the pictures change.
VERSION = 1

# Written last into a finished data set, and identifies it.
_RECORD = 'synthetic.json'

_KINDS = {'scenes': draw_scene_with_mask, 'objects': draw_object_with_mask}


def picture_seed(split: str, index: int, seed: int = 0) -> int:
    """The seed that picture `index` of a split was drawn with, in every class.

    Args:
        split: `'train'` or `'val'`.
        index: the number in the picture's file name.
        seed: the data set's seed.
    """
    return Random(f'{seed}/{split}/{index}').getrandbits(63)


def write_synthetic_scenes(
        root: Union[str, Path],
        train_per_class: int = 250,
        val_per_class: int = 50,
        size: int = 96,
        seed: int = 0,
        kind: str = 'scenes',
        masks: bool = False,
) -> Path:
    """Renders an ImageFolder tree, `root/train/<class>/0000.png` and `root/val/<class>/0000.png` onwards.

    The mask of `root/<split>/<class>/0000.png` is `root/masks/<split>/<class>/0000.png`, a PNG of mode '1', which is
    white where the picture tells its class.

    The tree appears whole or not at all: it is drawn in a folder beside `root` and then renamed. If it is already
    finished, the call returns at once. If several processes draw it at the same time, the first to finish provides it.

    Args:
        root: the folder to make; its parents are made as needed.
        train_per_class: training pictures of each class, at least 1.
        val_per_class: validation pictures of each class, at least 1.
        size: side of the pictures in pixels.
        seed: any integer; image `index` of a split depends on (seed, split, class, index) only, and so stays
            the same if there are more or fewer images.
        kind: `'scenes'`, or `'objects'` for the evidence of the same scenes gathered in one place.
        masks: write the masks too.

    Returns:
        `root`.

    Raises:
        ValueError: if a count is below 1, `size` below 8 or the kind unknown.
        FileExistsError: if `root` exists and holds anything but these pictures.
    """
    counts = {'train': train_per_class, 'val': val_per_class}
    for split, count in counts.items():
        if count < 1:
            raise ValueError(f'{split}_per_class must be at least 1, got {count}.')
    if kind not in _KINDS:
        raise ValueError(f'Unknown kind {kind!r}; allowed are {", ".join(_KINDS)}.')
    root = Path(root)
    record: Dict[str, Any] = {'version': VERSION, **counts, 'size': size, 'seed': seed}
    # Plain scenes are recorded without kind and masks, so that data sets drawn before these existed stay valid.
    if kind != 'scenes':
        record['kind'] = kind
    if masks:
        record['masks'] = masks
    if _is_finished(root, record):
        return root

    root.parent.mkdir(parents=True, exist_ok=True)
    # The name is new each time, so that no other process, running or killed, uses the same folder.
    draft = root.with_name(f'.{root.name}-{uuid4().hex}')
    try:
        for split, count in counts.items():
            for scene in SCENES:
                folder, mask_folder = draft / split / scene, draft / 'masks' / split / scene
                folder.mkdir(parents=True)
                if masks:
                    mask_folder.mkdir(parents=True)
                for index in range(count):
                    image, mask = _KINDS[kind](scene, picture_seed(split, index, seed), size)
                    image.save(folder / f'{index:04d}.png')
                    if masks:
                        Image.fromarray(mask).save(mask_folder / f'{index:04d}.png')
        (draft / _RECORD).write_text(json.dumps(record), encoding='utf-8')
        try:
            os.replace(draft, root)
        except OSError:
            # Another process may have finished first; anything else is an error.
            if not _is_finished(root, record):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return root


def synthetic_scenes(
        cache_dir: Union[str, Path, None] = None,
        train_per_class: int = 250,
        val_per_class: int = 50,
        size: int = 96,
        seed: int = 0,
        kind: str = 'scenes',
        masks: bool = False,
) -> Path:
    """Return the folder of a rendered data set in the cache; render it first if needed (some seconds).

    Args:
        cache_dir: where to keep it; by default `timm_focus` in `$XDG_CACHE_HOME`, or in `~/.cache` if that is not set.
        train_per_class, val_per_class, size, seed, kind, masks: as in `write_synthetic_scenes`. They are part of the
            folder's name, together with a version of the drawings, so that different data sets never collide.

    Returns:
        Path of an ImageFolder tree with `train` and `val`, and with `masks` if asked for.

    Raises:
        ValueError: as `write_synthetic_scenes`.
    """
    if cache_dir is None:
        cache_dir = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'timm_focus'
    name = f'synthetic-v{VERSION}-train{train_per_class}-val{val_per_class}-size{size}-seed{seed}'
    name += ('' if kind == 'scenes' else f'-{kind}') + ('-masks' if masks else '')
    return write_synthetic_scenes(Path(cache_dir) / name, train_per_class, val_per_class, size, seed, kind, masks)


def _is_finished(root: Path, record: dict) -> bool:
    """Whether `root` holds the data set of this record; raises FileExistsError if it holds something else."""
    if not root.exists():
        return False
    try:
        found = json.loads((root / _RECORD).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        found = None
    if found == record:
        return True
    if found is None and root.is_dir() and not any(root.iterdir()):
        return False
    raise FileExistsError(f'{root} exists and holds something else than the synthetic scenes {record}.')
