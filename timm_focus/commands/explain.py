"""`timm-focus explain`: what a network relies on in images, and what it answers with that erased."""
import argparse
import contextlib
import json
import math
import os
import sys
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

from timm_focus.runs import Loaded, class_names, image_mode
from timm_focus.utils import open_whole, shown, write_whole
from timm_focus.utils.processes import shield_workers
from timm_focus.utils.weight_files import digest

from .checks import check_free, count_classes, tell
from .classes import find_class, folder_classes, folder_key
from .data import add_data_arguments
from .load import add_model_arguments, check_single, load_models
from .sources import Placement, Source, SourceImages, find_sources
from .table import add_picture_format

__all__ = ['Manifest', 'add_parser', 'erased_boxes', 'spread']

MANIFEST, SHEET = 'explained.json', 'sheet'
MAPS = dict(
    cam_head='map of the CAM head', mean='channel mean of the tapped feature',
    classifier='map of the classifier', gradient='map by Grad-CAM')
BOXES = ('around each connected piece of what is erased, the largest first: x0, y0, x1, y1 in pixels of the upright '
         'image, whose corner is 0, 0; x1 and y1 are the first pixels outside')
MOST_BOXES = 10
TOP = 5
LONGEST = 640  # pixels of an original in its picture
MAX_SHEET = 200  # rows: more pixels than most viewers open


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'explain', help='what a model relies on in images: map, boxes, erased image, its answers before and after',
        description='Explain what a model relies on in images. For each image this writes a picture (the image with '
                    'boxes around what is erased, the activation map, what is erased, what is kept, the focus area, '
                    'the most probable classes before and after), the map as .npy, and the mask of what is kept. '
                    f'{MANIFEST} has the numbers, and {SHEET}.png shows some images of all classes on a page.',
        examples=('timm-focus explain DIR --checkpoint output/train/scenes',
                  'timm-focus explain photo.jpg --model resnet18 --pretrained'))
    parser.add_argument('images', nargs='*', metavar='IMAGE_OR_FOLDER', help='image files, folders of images, or tar '
                        'files; if they have splits, the validation split')
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument('--class', dest='label', metavar='NAME_OR_INDEX',
                        help='class to explain (default: the one predicted for each image)')
    parser.add_argument('--threshold', type=float, metavar='GAMMA', help='erase where the map, from 0 to 1, reaches '
                        'this value (default: that of the run, else 0.7)')
    parser.add_argument('--sheet', type=int, default=24, metavar='N', help='images on the page (default: 24; 0: none)')
    add_picture_format(parser)
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
    endings = dict(picture=f'.{args.format}', map='.npy', mask='-mask.png')
    sheet_name = f'{SHEET}.{args.format}'
    sources = find_sources(args, args.images, args.output, tuple(endings.values()), (MANIFEST, sheet_name))
    loaded, = load_models(args, heads=True)
    mode = image_mode(loaded)
    n_classes, note = count_classes(loaded)
    names = class_names(loaded, n_classes)
    target = None if args.label is None else find_class(args.label, names)
    settings = _settings(args, loaded, names, target)
    manifest_path = os.path.join(args.output, MANIFEST)
    files_of = {source.base: {what: source.base + ending for what, ending in endings.items()} for source in sources}
    own = {name for files in files_of.values() for name in files.values()}
    own |= {sheet_name} if len(sources) > 1 and args.sheet else set()
    own |= _check_output(manifest_path, settings, own)
    tell([note])
    truths = _true_classes(sources, loaded, names)
    on_sheet = set(spread([source.label if i is None else i for source, i in zip(sources, truths)], args.sheet))
    device = next(loaded.model.parameters()).device
    transform = create_transform(**loaded.data_config, is_training=False)
    dataset: Any = SourceImages(sources, transform, mode, LONGEST)  # it needs no torch at import
    batches = -(-len(dataset) // args.batch_size)
    loader = shield_workers(DataLoader(
        dataset, args.batch_size, num_workers=args.workers if batches > 1 else 0, collate_fn=list))

    os.makedirs(args.output, exist_ok=True)
    sheet, unread, tally = [], '', Tally()
    with Manifest(manifest_path, own) as manifest, tqdm(
            total=len(dataset), desc=shown(loaded.name), unit='image', disable=None) as bar:
        for batch in loader:
            for item in batch:
                if 'why' in item:
                    path = sources[item['i']].path
                    unread = unread or f'{path}: {item["why"]}'
                    bar.write(shown(f'{path} is left out: {item["why"]}.'), file=sys.stderr)
                    manifest.leave_out(path, item['why'])
                    bar.update()
            batch = [item for item in batch if 'x' in item]
            if not batch:
                continue
            found = _explain(loaded, torch.stack([item['x'] for item in batch]).to(device), args.threshold, target)
            if not manifest.images:
                manifest.begin({**settings, **_maps(found)})
            for j, (item, picture, entry) in enumerate(_describe(batch, found, loaded, sources, names, truths)):
                files = files_of[sources[item['i']].base]
                os.makedirs(os.path.dirname(os.path.join(args.output, files['picture'])), exist_ok=True)
                _write_arrays(args.output, files, found.map[j], picture.keep)
                with _drawn(bar, files['picture']):
                    explanation_plot(picture, os.path.join(args.output, files['picture']))
                manifest.add({**entry, 'files': files})
                tally.add(entry)
                if item['i'] in on_sheet:
                    sheet.append(picture)
                bar.update()
        if not manifest.images:
            raise ValueError(f'None of {len(sources)} images can be read: {unread}.')
        manifest.complete = True
        for picture in sheet:
            bar.write(_line(picture), file=sys.stdout)
        if len(sources) > 1 and sheet:
            with _drawn(bar, sheet_name):
                explanation_sheet(sheet, os.path.join(args.output, sheet_name))
    print(shown(f'{len(manifest.images):,} explained ({MAPS[found.kind]}, threshold {found.threshold:g}), {tally}: '
                f'{manifest_path}'))


class Tally:
    """Counts how many answers are right before and after erasing, and how many stay the same."""

    def __init__(self) -> None:
        self.known = self.before = self.after = self.kept = 0

    def add(self, entry: Dict[str, Any]) -> None:
        before, after = entry['before'][0]['index'], entry['after'][0]['index']
        self.kept += before == after
        if entry['true'] is not None:
            self.known += 1
            self.before += before == entry['true']['index']
            self.after += after == entry['true']['index']

    def __str__(self) -> str:
        right = f', {self.after:,} right without' if self.known else ''
        return ((f'{self.before:,} of {self.known:,} right{right}, ' if self.known else '')
                + f'{self.kept:,} keep their class without what is erased')


def _line(picture: Any) -> str:
    (before, p), (after, q) = picture.before[0], picture.after[0]
    truth = '' if picture.truth is None else ' (right)' if before == picture.truth else f' (wrong: {picture.truth})'
    return shown(f'{picture.name}  {before} {p:.1%}{truth}  without the erased {1 - picture.keep.mean():.1%}: '
                 f'{after} {q:.1%}')


@contextlib.contextmanager
def _drawn(bar: Any, name: str) -> Iterator[None]:
    """Warn about a picture that cannot be drawn, and go on: the numbers matter more."""
    try:
        yield
    except OSError:  # other files could not be written, either
        raise
    except Exception as e:  # matplotlib may raise anything
        bar.write(shown(f'{name} cannot be drawn: {type(e).__name__}: {e}'), file=sys.stderr)


def _check(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 < args.threshold <= 1:
        raise ValueError(f'--threshold is {args.threshold}: give a number above 0 and at most 1.')
    if not 0 <= args.sheet <= MAX_SHEET:
        raise ValueError(f'--sheet is {args.sheet}: give a number from 0 to {MAX_SHEET}.')
    for flag, value, least in (('--batch-size', args.batch_size, 1), ('--workers', args.workers, 0)):
        if value < least:
            raise ValueError(f'{flag} is {value}: give {least} or more.')
    check_single(args)


def _true_classes(sources: Sequence[Source], loaded: Loaded, names: Sequence[str]) -> List[Optional[int]]:
    """Return the class of each image by the name of its folder, None if that is no class of the model."""
    known = folder_classes(loaded, names)
    return [known.get(folder_key(source.label)) for source in sources]


def spread(labels: Sequence[Any], n: int) -> List[int]:
    """Pick n images, or all if they are fewer, of as many classes as possible, spread over each.

    Args:
        labels: Class of each image.
        n: Number of images to pick.
    """
    members: Dict[Any, List[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    classes = list(members.values())
    if len(classes) > n:
        classes = [classes[k * len(classes) // n] for k in range(n)]
    n = min(n, sum(map(len, classes)))
    shares = [0] * len(classes)
    while sum(shares) < n:  # one more of each class that has one, in turn
        for k, of_class in enumerate(classes):
            shares[k] += shares[k] < len(of_class) and sum(shares) < n
    return sorted(of_class[j * len(of_class) // share] for of_class, share in zip(classes, shares)
                  for j in range(share))


def _explain(loaded: Loaded, x: Any, threshold: Optional[float], target: Optional[int]) -> Any:
    from timm_focus.analysis import explain

    found = explain(loaded.model, x, threshold, target)
    if not (found.logits.isfinite().all() and found.erased_logits.isfinite().all()):
        raise ValueError(f'{loaded.name} answers with numbers that are not finite: its training diverged.')
    return found


def _settings(
        args: argparse.Namespace,
        loaded: Loaded,
        names: Sequence[str],
        target: Optional[int],
) -> Dict[str, Any]:
    """Return the settings that explanations depend on."""
    import timm_focus

    focused = isinstance(loaded.model, timm_focus.FocusNet)
    feature = loaded.model.feature_info[loaded.model.stage]['module'] if focused else None
    default = loaded.model.threshold if focused else 0.7
    return dict(
        timm_focus=timm_focus.__version__, model=loaded.name, checkpoint=(args.checkpoint or [None])[0],
        weights=digest(loaded.model.state_dict()), feature=feature,
        focus_map=loaded.model.map_kind if focused else 'cam',
        threshold=default if args.threshold is None else args.threshold,
        label=None if target is None else _class(target, names), data_config=loaded.data_config, boxes=BOXES)


def _maps(found: Any) -> Dict[str, Any]:
    """Return what all maps have in common."""
    return dict(
        map=found.kind, map_size=list(found.map.shape[1:]), area_size=list(found.area.area.shape[1:]),
        convolutional=found.area.convolutional)


def _check_output(path: str, settings: Dict[str, Any], names: Set[str]) -> Set[str]:
    """Check that only explanations with the same settings are overwritten.

    Args:
        path: Path of the manifest, which may not exist yet.
        settings: Settings of the explanations.
        names: Paths of the files to write, from the folder.

    Returns:
        The files that earlier runs wrote.

    Raises:
        ValueError: The folder has explanations with other settings, or one of the files belongs to something else.
    """
    folder = os.path.dirname(path)
    known: Set[str] = set()
    if os.path.exists(path):
        keys = ('weights', 'threshold', 'label', 'data_config', 'feature', 'focus_map')
        now = json.loads(json.dumps(settings))
        try:
            with open(path, encoding='utf-8') as f:
                before = json.load(f)
            before.setdefault('focus_map', before.get('erased_by'))  # its name in older files
            other = next((key for key in keys if before.get(key) != now[key]), None)
            known = {*before['other_files'], *(name for entry in before['images'] for name in entry['files'].values())}
        except (AttributeError, KeyError, TypeError, ValueError):
            other = 'content'
        if other is not None:
            raise ValueError(f'{folder or "."} holds explanations by other settings ({other} in {path}): '
                             'give another --output, or remove it.')
    check_free(folder, sorted(names - known), MANIFEST)
    return known


def _describe(
        batch: List[Dict[str, Any]],
        found: Any,
        loaded: Loaded,
        sources: Sequence[Source],
        names: Sequence[str],
        truths: Sequence[Optional[int]],
) -> Iterator[Tuple[Dict[str, Any], Any, Dict[str, Any]]]:
    """Yield each image of a batch, what is drawn of it, and its entry in the manifest."""
    from timm_focus.analysis.plots import Picture, to_pixels

    normalised_by = loaded.data_config['mean'], loaded.data_config['std']
    before, after = (logits.float().softmax(1).cpu() for logits in (found.logits, found.erased_logits))
    n = min(TOP, len(names))
    for j, item in enumerate(batch):
        keep = found.keep[j, 0].cpu().numpy()
        label = int(found.target[j])
        at, size = item['placement'], item['size']
        boxes = erased_boxes(keep, at, size)
        tops = [p[j].topk(n).indices.tolist() for p in (before, after)]
        answers = [top if label in top else [*top, label] for top in tops]
        source, truth = sources[item['i']], truths[item['i']]
        made_by = f'{loaded.name}: {MAPS[found.kind]}, erased where it reaches {found.threshold:g}'
        picture = Picture(
            name=source.name, size=size, whole=item['whole'], crop=at.box(0, 0, keep.shape[1], keep.shape[0]),
            boxes=boxes, image=to_pixels(item['x'][None], *normalised_by)[0],
            heat=found.heat[j].float().cpu().numpy(), keep=keep,
            erased=to_pixels(found.erased[j:j + 1], *normalised_by)[0], area=found.area.area[j].cpu().numpy(),
            label=names[label], before=[(names[k], before[j, k].item()) for k in answers[0]],
            after=[(names[k], after[j, k].item()) for k in answers[1]], threshold=found.threshold, by=made_by,
            truth=None if truth is None else names[truth])
        entry = dict(
            file=source.path, width=size[0], height=size[1], true=None if truth is None else _class(truth, names),
            label=dict(**_class(label, names), before=before[j, label].item(), after=after[j, label].item()),
            **{when: [dict(**_class(k, names), probability=p[j, k].item()) for k in top]
               for when, p, top in zip(('before', 'after'), (before, after), tops)},
            coverage=found.area.coverage[j].item(), erased=float(1 - keep.mean()), boxes=boxes)
        yield item, picture, entry


def _class(index: int, names: Sequence[str]) -> Dict[str, Any]:
    return dict(index=index, name=names[index])


def erased_boxes(keep: Any, at: Placement, size: Tuple[int, int]) -> List[Tuple[int, int, int, int]]:
    """Return boxes around the largest erased pieces, in whole pixels of the image, x1 and y1 exclusive.

    Args:
        keep: Mask of what is kept of the network's input, bool `[H, W]`.
        at: Placement of the input in the image.
        size: Width and height of the image.
    """
    from timm_focus.analysis.pieces import connected_pieces

    boxes, rounded = [], 1e-6  # an edge that is whole up to rounding stays where it is
    for piece in connected_pieces(~keep):
        x0, y0, x1, y1 = at.box(piece.x0, piece.y0, piece.x1, piece.y1)
        box = (max(0, math.floor(x0 + rounded)), max(0, math.floor(y0 + rounded)),
               min(size[0], math.ceil(x1 - rounded)), min(size[1], math.ceil(y1 - rounded)))
        if box[0] < box[2] and box[1] < box[3]:  # skip boxes of padding alone, which is outside the image
            if box not in boxes:  # two pieces within one pixel of a small image give equal boxes
                boxes.append(box)
    return boxes[:MOST_BOXES]


def _write_arrays(output: str, files: Dict[str, str], activation: Any, keep: Any) -> None:
    """Write map and mask, each whole or not at all."""
    import numpy as np
    from PIL import Image

    for what, save in (('map', lambda f: np.save(f, activation.float().cpu().numpy())),
                       ('mask', lambda f: Image.fromarray(keep).save(f, 'png'))):
        with open_whole(os.path.join(output, files[what]), 'wb') as f:
            save(f)


class Manifest:
    """The record of a folder of explanations, a JSON file. It is written when the first image comes, and at the end.

    Args:
        path: Path of the file.
        own: Names of files in its folder that this or an earlier run of the command writes. Those that are there and
            belong to no image of this run are its `other_files`; the next run may replace them, and nothing else.

    Attributes:
        complete: Whether all images have come; set it at the end.
        images: Entries of the images so far.
    """

    def __init__(self, path: str, own: Set[str]):
        self.path, self.complete, self.others = path, False, set(own)
        self.settings: Dict[str, Any] = {}
        self.images: List[Dict[str, Any]] = []
        self.left_out: List[Dict[str, str]] = []

    def __enter__(self) -> 'Manifest':
        return self

    def begin(self, settings: Dict[str, Any]) -> None:
        """Replace the record of an earlier run by one with these settings, so that it is there even after a kill."""
        self.settings = settings
        self._write(self.others)

    def add(self, entry: Dict[str, Any]) -> None:
        self.images.append(entry)
        self.others -= set(entry['files'].values())

    def leave_out(self, path: str, why: str) -> None:
        self.left_out.append(dict(file=path, why=why))

    def __exit__(self, *_: Any) -> None:
        if self.settings:
            folder = os.path.dirname(self.path)
            self._write(name for name in self.others if os.path.lexists(os.path.join(folder, name)))

    def _write(self, others: Iterable[str]) -> None:
        write_whole(self.path, json.dumps(dict(
            self.settings, images=self.images, left_out=self.left_out, other_files=sorted(others),
            complete=self.complete), indent=2) + '\n')
