"""`timm-focus report`: one page that compares runs."""
import argparse
import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from timm_focus.runs import Loaded, image_mode
from timm_focus.utils import shown, some
from timm_focus.utils.errors import sentence

from .checks import check_model
from .data import add_data_arguments, open_data
from .load import add_model_arguments, load_models
from .validate import match_to

__all__ = ['add_parser']

PAGE = 'index.html'
MOST = 1000  # most images in a page


class Matched(NamedTuple):
    """How the model of a run fits the images.

    Attributes:
        numbers: The model's class for each class of the data.
        names: Names of the model's classes.
        maps: Whether the model has class maps.
        note: A note on the map, or why there is none.
    """
    numbers: Dict[int, int]
    names: List[str]
    maps: bool
    note: str


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'report', help='one page that compares runs: accuracy, curves, classes, what they look at',
        description='Write a page that compares runs: which is better, by how much and at what compute; curves, '
                    'settings and costs; and, measured on images, accuracy by class, confusions, a gallery of images '
                    'that one run gets right and another wrong, and what each run looks at. It is one file, which '
                    'needs no network. All runs are compared with the first one of plain training. Runs that differ '
                    'in their seed alone form a group.',
        examples=('timm-focus report output/train/plain output/train/scenes --data DIR',
                  'timm-focus report --model resnet18 --checkpoint weights.pth --class-map names.txt --data DIR'))
    parser.add_argument('runs', nargs='*', metavar='RUN', help='folder of a run, a checkpoint of it or of timm, an '
                        'export, hf-hub:user/name, or local-dir:FOLDER')
    parser.add_argument('--data', metavar='DIR', help='images to measure on: a folder with val/<class>/, Places365, '
                        'folder or tar file of class folders (default: those of a run that was trained here)')
    parser.add_argument('--no-data', action='store_true',
                        help='measure on no images, even for a run that was trained here')
    parser.add_argument('--gallery', type=int, default=240, metavar='N', help='number of images that the page shows '
                        '(default: 240; with 0 people who may not see the images can have the page)')
    parser.add_argument('--output', default='report', metavar='DIR', help=f'folder of {PAGE} (default: report)')
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Read the runs, measure them if there are images, and write the page."""
    from timm_focus.report import Comparison, build_page, read_run
    from timm_focus.utils import write_whole

    path = os.path.join(args.output, PAGE)
    _check(args, path)
    args.checkpoint = [*args.runs, *args.checkpoint]
    models = load_models(args, heads=True, distinct=False)
    names = _names(args.checkpoint or args.model)
    runs = [read_run(name, loaded) for name, loaded in zip(names, models)]
    left_out = [f'Curves of {run.name}: there is no summary.csv beside its weights.' for run in runs if not run.rows]
    data, dataset = _open(args, models)
    gallery, notes = None, []
    if dataset is None:
        left_out.append('Accuracy with its interval, classes, confusions, gallery and what the runs look at: no images '
                        'are at hand. timm-focus report --data DIR measures on some.')
        compared = Comparison(runs, [], *_nothing())
    else:
        matches = [_match(loaded, run.name, dataset) for loaded, run in zip(models, runs)]
        left_out += [match.note for match in matches if not match.maps]
        notes = [match.note for match in matches if match.maps and match.note]
        compared, gallery = _measure_all(args, models, runs, matches, dataset, data, left_out)
    text = build_page(compared, gallery, left_out, notes)
    os.makedirs(args.output, exist_ok=True)
    write_whole(path, text)
    for note in left_out:
        print(shown(f'Left out: {note}'))
    print(shown(f'{path}, {len(text.encode()) / 1e6:.1f} MB'))


def _nothing() -> Tuple[Any, List[str]]:
    import numpy as np

    return np.zeros(0, np.int64), []


def _check(args: argparse.Namespace, path: str) -> None:
    from timm_focus.report import page_images

    if not 0 <= args.gallery <= MOST:
        raise ValueError(f'--gallery is {args.gallery}: give a number from 0 to {MOST}.')
    if args.data and args.no_data:
        raise ValueError('--data and --no-data contradict each other: give one of them.')
    if os.path.exists(path) and page_images(path) is None:
        raise ValueError(f'{path} is no page of timm-focus report, and is not replaced: give another --output.')


def _names(paths: Sequence[str]) -> List[str]:
    """Return names for runs: as many of the last parts of their paths as are needed to differ.

    Raises:
        ValueError: A run is given twice.
    """
    parts = [os.path.normpath(path).split(os.sep) if ':' not in path else [path] for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ['/'.join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return [shown(name) for name in names]
    twice = next(path for path in paths if list(paths).count(path) > 1)
    raise ValueError(f'{shown(twice)} is named twice: a run is compared with others.')


def _open(args: argparse.Namespace, models: Sequence[Loaded]) -> Tuple[str, Optional[Any]]:
    """Open the images to measure on (by default those of a run trained here); return their name and the data set."""
    from timm_focus.release.provenance import images_of_run

    if args.data or args.dataset:
        opened, = open_data(args, [args.data] if args.data else [], labelled=True)
        return opened.name, opened.dataset
    homes = [os.path.dirname(loaded.checkpoint.get('path') or '') for loaded in models]
    found = next(filter(None, (images_of_run(home) for home in homes if home)), None)
    if args.no_data or found is None:
        return '', None
    try:
        opened, = open_data(args, [found], labelled=True)
    except (OSError, ValueError) as e:
        print(shown(f'{found}, on which a run was trained here, is not used: {sentence(e)}'))
        return '', None
    print(shown(f'Images: {found}, on which a run was trained here (--no-data measures on none)'))
    return opened.name, opened.dataset


def _match(loaded: Loaded, name: str, dataset: Any) -> Matched:
    """Match the model of a run with the images. A model without class maps is measured without them.

    Raises:
        ValueError: The model cannot be measured at all.
    """
    image_mode(loaded)
    try:
        note = check_model(loaded).note
        return Matched(*match_to(loaded, dataset, True), True, note.replace(loaded.name, name))
    except (ValueError, ImportError) as e:
        check_model(loaded, needs_map=False)
        why = sentence(e).rstrip('.')
        return Matched(*match_to(loaded, dataset, False), False, f'What {name} looks at: {why}.')


def _measure_all(
        args: argparse.Namespace,
        models: Sequence[Loaded],
        runs: Sequence[Any],
        matches: Sequence[Matched],
        dataset: Any,
        data: str,
        left_out: List[str],
) -> Tuple[Any, Optional[Any]]:
    """Measure all runs on the images, and make the gallery."""
    import numpy as np
    from tqdm import tqdm

    from timm_focus.data.readers import label_names
    from timm_focus.report import Comparison, measure

    classes = [shown(str(name)) for name in label_names(dataset.reader)]
    measured = []
    for loaded, run, match in zip(models, runs, matches):
        with tqdm(total=len(dataset), desc=run.name, unit='image', disable=None) as bar:
            measured.append(measure(
                loaded, dataset, match.numbers, match.names, len(classes), maps=match.maps, batch_size=args.batch_size,
                workers=args.workers, progress=bar.update))
    good = np.flatnonzero(dataset.bad.numpy() == 0)
    if len(good) < len(dataset):
        bad = [dataset.filename(i) for i in np.flatnonzero(dataset.bad.numpy()).tolist()]
        left_out.append(f'{len(bad)} of {len(dataset)} images, which cannot be read: {some(bad)}')
    compared = Comparison(
        list(runs), [m.of(good) for m in measured], np.asarray(dataset.reader.targets)[good], classes, data)
    return compared, _gallery(args, models, compared, matches, dataset, good, left_out)


def _gallery(
        args: argparse.Namespace,
        models: Sequence[Loaded],
        compared: Any,
        matches: Sequence[Matched],
        dataset: Any,
        good: Any,
        left_out: List[str],
) -> Optional[Any]:
    """Choose the images that the page shows, and make their pictures and maps."""
    from tqdm import tqdm

    from timm_focus.report import choose, explain_images, listed_confusions, Gallery, thumbnails, view

    channels = {loaded.data_config['input_size'][0] for loaded in models}
    if not args.gallery:
        left_out.append('The gallery: --gallery 0 asks for none.')
        return None
    if channels - {1, 3}:
        left_out.append(f'The gallery: images of {max(channels)} channels cannot be shown.')
        return None
    chosen = choose(compared, args.gallery, [c for _, found in listed_confusions(compared) for c in found])
    indices = good[chosen].tolist()
    shown_by: List[Optional[List[Any]]] = []
    thresholds: List[Optional[float]] = []
    for loaded, run, match in zip(models, compared.runs, matches):
        if not match.maps:
            shown_by.append(None)
            thresholds.append(None)
            continue
        with tqdm(total=len(indices), desc=f'{run.name}, gallery', unit='image', disable=None) as bar:
            found, threshold, says = explain_images(
                loaded, dataset, match.numbers, len(compared.classes), indices, batch_size=args.batch_size,
                workers=args.workers, progress=bar.update)
        shown_by.append(found)
        thresholds.append(threshold if says else None)
    views = list(dict.fromkeys(view(loaded) for loaded in models))
    first = [next(loaded for loaded in models if view(loaded) == one) for one in views]
    return Gallery(
        chosen, [dataset.filename(i) for i in indices],
        [list(thumbnails(loaded, dataset, indices)) for loaded in first],
        [views.index(view(loaded)) for loaded in models], shown_by, thresholds,
        [_mean(loaded.data_config['mean']) for loaded in models],
        [getattr(loaded.model, 'interpolation', 'bilinear') == 'bilinear' for loaded in models])


def _mean(mean: Sequence[float]) -> Tuple[int, int, int]:
    """Return the mean colour of the images of a network."""
    red, green, blue = (round(255 * value) for value in (mean if len(mean) == 3 else [*mean] * 3))
    return red, green, blue
