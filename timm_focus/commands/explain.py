"""`timm-focus explain`: what a network relies on in images, and what it says of them without."""
import argparse
import contextlib
import difflib
import json
import math
import os
import sys
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from timm_focus.runs import Loaded, class_names, image_mode
from timm_focus.utils import open_whole
from timm_focus.utils.processes import shield_workers

from .load import add_model_arguments, load_models
from .sources import Placement, Source, SourceImages, find_sources

__all__ = ['Manifest', 'add_parser', 'find_class']

MANIFEST, SHEET = 'explained.json', 'sheet.png'
ENDINGS = dict(picture='.png', map='.npy', mask='-mask.png')
MAPS = dict(
    cam_head='map of the CAM head', mean='channel mean of the tapped feature',
    classifier='map of the classifier', gradient='map by Grad-CAM')
BOX = 'x0, y0, x1, y1 in pixels of the upright image, whose corner is 0, 0; x1 and y1 are the first pixels outside'
TOP = 5
LONGEST = 640  # pixels of an original in its picture
MAX_SHEET = 200  # rows: more pixels than most viewers open


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'explain', help='what a model relies on in images: map, box, erased image, its answers before and after',
        description='Explain what a model relies on in images. Of each: a picture (the image with a box around what is '
                    'erased, the activation map, what is kept, the erased image, the focus area, the most probable '
                    f'classes before and after), the map as .npy and the mask of what is kept. {MANIFEST} has it in '
                    f'numbers, {SHEET} shows the first ones on a page.')
    parser.add_argument('images', nargs='+', metavar='IMAGE_OR_FOLDER', help='image files, and folders of images; of '
                        'those with splits, validation')
    add_model_arguments(parser)
    parser.add_argument('--class', dest='label', metavar='NAME_OR_INDEX',
                        help='class to explain (default: the one predicted for each image)')
    parser.add_argument('--threshold', type=float, metavar='GAMMA', help='erase where the map, from 0 to 1, reaches it '
                        '(default: what the run was trained with, else 0.7)')
    parser.add_argument('--sheet', type=int, default=24, metavar='N', help='images on the page (default: 24; 0: none)')
    parser.add_argument('--output', default='explained', metavar='DIR', help='where to write (default: explained)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Explain images, a batch at a time."""
    import torch
    from timm.data import create_transform
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from timm_focus.analysis.plots import explanation_plot, explanation_sheet

    _check(args)
    sources = find_sources(args.images, args.output, tuple(ENDINGS.values()), (MANIFEST, SHEET))
    loaded, = load_models(args, heads=True)
    device = next(loaded.model.parameters()).device
    names = class_names(loaded, _count_classes(loaded, device))
    target = None if args.label is None else find_class(args.label, names)
    dataset = SourceImages(
        sources, create_transform(**loaded.data_config, is_training=False), image_mode(loaded), LONGEST)
    batches = -(-len(dataset) // args.batch_size)
    loader = shield_workers(DataLoader(
        dataset, args.batch_size, num_workers=args.workers if batches > 1 else 0, collate_fn=list))

    os.makedirs(args.output, exist_ok=True)
    n_kept, sheet, unread = 0, [], ''
    manifest_path = os.path.join(args.output, MANIFEST)
    with Manifest(manifest_path) as manifest, tqdm(
            total=len(dataset), desc=loaded.name, unit='image', disable=None) as bar:
        for batch in loader:
            for item in batch:
                if 'why' in item:
                    path = sources[item['i']].path
                    unread = unread or f'{path}: {item["why"]}'
                    bar.write(_shown(f'{path} is left out: {item["why"]}.'), file=sys.stderr)
                    manifest.leave_out(path, item['why'])
                    bar.update()
            batch = [item for item in batch if 'x' in item]
            if not batch:
                continue
            found = _explain(loaded, torch.stack([item['x'] for item in batch]).to(device), args.threshold, target)
            if not manifest.n:
                manifest.begin(_settings(args, loaded, found, names, target))
            for j, (item, picture, entry) in enumerate(_describe(batch, found, loaded, sources, names)):
                files = _make_room(args.output, sources[item['i']])
                _write_arrays(args.output, files, found.map[j], picture.keep)
                explanation_plot(picture, os.path.join(args.output, files['picture']))
                manifest.add({**entry, 'files': files})
                n_kept += entry['before'][0]['index'] == entry['after'][0]['index']
                if len(sheet) < args.sheet:
                    sheet.append(picture)
                bar.update()
        if not manifest.n:
            raise ValueError(f'None of {len(sources)} images can be read: {unread}.')
        manifest.complete = True
    for picture in sheet:
        (before, p), (after, q) = picture.before[0], picture.after[0]
        print(_shown(f'{picture.name}  {before} {p:.1%}  without the erased {1 - picture.keep.mean():.1%}: '
                     f'{after} {q:.1%}'))
    if len(sources) > 1 and sheet:
        explanation_sheet(sheet, os.path.join(args.output, SHEET))
    print(_shown(f'{manifest.n:,} explained ({MAPS[found.kind]}, threshold {found.threshold:g}), {n_kept:,} keep their '
                 f'class without what is erased: {manifest_path}'))


def _check(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise ValueError(f'--threshold is {args.threshold}: give a number above 0 and at most 1.')
    if not 0 <= args.sheet <= MAX_SHEET:
        raise ValueError(f'--sheet is {args.sheet}: give a number from 0 to {MAX_SHEET}.')
    for flag, value, least in (('--batch-size', args.batch_size, 1), ('--workers', args.workers, 0)):
        if value < least:
            raise ValueError(f'{flag} is {value}: give {least} or more.')
    if max(len(args.model), len(args.checkpoint)) > 1:
        raise ValueError('explain takes one model: run it once for each, with an --output of its own.')


def _count_classes(loaded: Loaded, device: Any) -> int:
    """Number of classes that a model tells apart.

    Raises:
        ValueError: It tells none, or its numbers are not finite.
    """
    import torch

    with torch.no_grad():
        try:
            logits = loaded.model(torch.zeros(1, *loaded.data_config['input_size'], device=device))
        except RuntimeError as e:
            raise ValueError(f'{loaded.name} cannot be run on images of '
                             f'{"x".join(map(str, loaded.data_config["input_size"]))}: {e}') from e
    if not torch.is_tensor(logits) or logits.ndim != 2 or not logits.shape[1]:
        raise ValueError(f'{loaded.name} gives no logits of classes: take a model that classifies.')
    if not logits.isfinite().all():
        raise ValueError(f'{loaded.name} answers with numbers that are not finite: its training diverged.')
    return logits.shape[1]


def find_class(text: str, names: Sequence[str]) -> int:
    """Index of a class by its name, one of its synonyms parted by commas, or its index; what is a name is no index.

    Raises:
        ValueError: There is none, or several are called so.
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


def _explain(loaded: Loaded, x: Any, threshold: Optional[float], target: Optional[int]) -> Any:
    from timm_focus.analysis import explain

    found = explain(loaded.model, x, threshold, target)
    if not (found.logits.isfinite().all() and found.erased_logits.isfinite().all()):
        raise ValueError(f'{loaded.name} answers with numbers that are not finite: its training diverged.')
    return found


def _settings(
        args: argparse.Namespace,
        loaded: Loaded,
        found: Any,
        names: Sequence[str],
        target: Optional[int],
) -> Dict[str, Any]:
    """What holds for all images."""
    import timm_focus

    feature = None
    if hasattr(loaded.model, 'cam_head'):
        feature = loaded.model.feature_info[loaded.model.stage]['module']
    return dict(
        timm_focus=timm_focus.__version__, model=loaded.name, checkpoint=(args.checkpoint or [None])[0],
        map=found.kind, feature=feature, erased_by=getattr(loaded.model, 'map', 'cam'), threshold=found.threshold,
        label=None if target is None else _class(target, names), map_size=list(found.map.shape[1:]),
        area_size=list(found.area.area.shape[1:]), convolutional=found.area.convolutional,
        data_config=loaded.data_config, box=BOX)


def _describe(
        batch: List[Dict[str, Any]],
        found: Any,
        loaded: Loaded,
        sources: Sequence[Source],
        names: Sequence[str],
) -> Iterator[Tuple[Dict[str, Any], Any, Dict[str, Any]]]:
    """For each image of a batch: it, what is drawn of it, and what the manifest says of it."""
    from timm_focus.analysis.plots import Picture, to_pixels

    normalised_by = loaded.data_config['mean'], loaded.data_config['std']
    before, after = (logits.float().softmax(1).cpu() for logits in (found.logits, found.erased_logits))
    n = min(TOP, len(names))
    for j, item in enumerate(batch):
        keep = found.keep[j, 0].cpu().numpy()
        label = int(found.target[j])
        at, size = item['placement'], item['size']
        box = erased_box(keep, at, size)
        tops = [p[j].topk(n).indices.tolist() for p in (before, after)]
        answers = [top if label in top else [*top, label] for top in tops]
        path = sources[item['i']].path
        made_by = f'{loaded.name}: {MAPS[found.kind]}, erased where it reaches {found.threshold:g}'
        picture = Picture(
            path, size, item['whole'], at.box(0, 0, keep.shape[1], keep.shape[0]), box,
            to_pixels(item['x'][None], *normalised_by)[0], found.heat[j].float().cpu().numpy(), keep,
            to_pixels(found.erased[j:j + 1], *normalised_by)[0], found.area.area[j].cpu().numpy(), names[label],
            *([(names[k], p[j, k].item()) for k in shown] for p, shown in zip((before, after), answers)), made_by)
        entry = dict(
            file=path, width=size[0], height=size[1],
            label=dict(**_class(label, names), before=before[j, label].item(), after=after[j, label].item()),
            **{when: [dict(**_class(k, names), probability=p[j, k].item()) for k in top]
               for when, p, top in zip(('before', 'after'), (before, after), tops)},
            coverage=found.area.coverage[j].item(), erased=float(1 - keep.mean()), box=box)
        yield item, picture, entry


def _class(index: int, names: Sequence[str]) -> Dict[str, Any]:
    return dict(index=index, name=names[index])


def erased_box(keep: Any, at: Placement, size: Tuple[int, int]) -> Optional[Tuple[int, int, int, int]]:
    """The box around what is erased, in whole pixels of the image, x1 and y1 exclusive; None if nothing is.

    Args:
        keep: What is kept of a network's input, bool `[H, W]`.
        at: Where the input lies in the image.
        size: Width and height of the image.
    """
    ys, xs = (~keep).nonzero()
    if not len(xs):
        return None
    x0, y0, x1, y1 = at.box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    rounded = 1e-6  # an edge that is whole but for rounding stays where it is
    box = (max(0, math.floor(x0 + rounded)), max(0, math.floor(y0 + rounded)),
           min(size[0], math.ceil(x1 - rounded)), min(size[1], math.ceil(y1 - rounded)))
    return box if box[0] < box[2] and box[1] < box[3] else None  # what is erased of the border alone


def _make_room(output: str, source: Source) -> Dict[str, str]:
    """Names of the files of an image, from the output folder; the folder that they lie in is made."""
    os.makedirs(os.path.join(output, os.path.dirname(source.base)), exist_ok=True)
    return {what: source.base + ending for what, ending in ENDINGS.items()}


def _write_arrays(output: str, files: Dict[str, str], activation: Any, keep: Any) -> None:
    """Write map and mask, each whole or not at all."""
    import numpy as np
    from PIL import Image

    for what, save in (('map', lambda f: np.save(f, activation.float().cpu().numpy())),
                       ('mask', lambda f: Image.fromarray(keep).save(f, 'png'))):
        with open_whole(os.path.join(output, files[what]), 'wb') as f:
            save(f)


class Manifest:
    """A JSON file that is written as the images come, and is there, whole, when they have come or were interrupted.

    Args:
        path: Where it goes.

    Attributes:
        n: Number of images so far.
        complete: Whether all have come; set it at the end.
    """

    def __init__(self, path: str):
        self.path, self.n, self.complete = path, 0, False
        self._left_out: List[Dict[str, str]] = []
        self._opened, self._file = contextlib.ExitStack(), None

    def __enter__(self) -> 'Manifest':
        return self

    def begin(self, settings: Dict[str, Any]) -> None:
        """Write what holds for all images; what an earlier run wrote is no longer true of the folder."""
        if os.path.exists(self.path):
            os.unlink(self.path)
        self._file = self._opened.enter_context(open_whole(self.path))
        self._file.write(json.dumps(settings, indent=2)[:-2] + ',\n  "images": [')

    def add(self, entry: Dict[str, Any]) -> None:
        self._file.write((',' if self.n else '') + '\n    ' + json.dumps(entry))
        self.n += 1

    def leave_out(self, path: str, why: str) -> None:
        self._left_out.append(dict(file=path, why=why))

    def __exit__(self, *_: Any) -> None:
        if self._file is None:
            return
        left_out = ''.join((',' if i else '') + '\n    ' + json.dumps(e) for i, e in enumerate(self._left_out))
        self._file.write(f'\n  ],\n  "left_out": [{left_out}],\n  "complete": {json.dumps(self.complete)}\n}}\n')
        self._opened.close()


def _shown(text: str) -> str:
    """A text that any terminal takes, whatever bytes a file is called by."""
    return ''.join(c if c.isprintable() else '?' for c in text)
