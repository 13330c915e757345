"""`timm-focus validate`: accuracy of models, as a whole, by class, and with what they look at erased."""
import argparse
import csv
import io
import json
import os
import re
import sys
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from timm_focus.runs import Loaded, image_mode
from timm_focus.utils.processes import shield_workers
from timm_focus.utils.text import csv_cell, some
from timm_focus.utils.weight_files import digest

from .checks import check_free, check_model, images_digest, tell
from .classes import folder_key
from .data import add_data_arguments, open_data
from .load import add_model_arguments, load_models
from .table import add_format, write_table

__all__ = ['add_parser', 'match_classes', 'match_to']

SUMMARY, CLASSES, IMAGES = 'validate.json', 'classes.csv', 'images.csv'


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'validate', help='accuracy, whole, by class and with what a model looks at erased',
        description='Measure top-1 and top-5 accuracy in percent, in float32, each image once. Measure top-1 also with '
                    'a share of each image erased: where the class activation map of the predicted class is highest '
                    '(cam), and, for comparison, in smooth random regions (random). Classes are matched by the names '
                    'of their folders if the model has names, as models of train_focus.py have.',
        examples=('timm-focus validate DIR --checkpoint output/train/plain --checkpoint output/train/scenes '
                  '--output accuracy',))
    parser.add_argument('data', nargs='?', metavar='DATA', help='folder with val/<class>/, Places365, folder or tar '
                        'file of class folders')
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument('--erase', nargs='+', type=float, default=[10., 25., 50.], metavar='PERCENT',
                        help='shares of the pixels to erase (default: 10 25 50); each share takes two more passes')
    parser.add_argument('--no-erase', action='store_true', help='measure accuracy alone, in one pass')
    parser.add_argument('--output', metavar='DIR', help=f'write {SUMMARY}, {CLASSES} and, for paired comparisons of '
                        f'models, {IMAGES} (default: only print the table)')
    add_format(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure each model, and after each write the results so far and print a line."""
    percents = [] if args.no_erase else sorted(set(args.erase))
    wrong = [p for p in percents if not 0 < p <= 100]
    if wrong:
        raise ValueError(f'--erase is {wrong[0]:g}: give percentages above 0 and at most 100.')
    opened, = open_data(args, [args.data] if args.data else [], labelled=True)
    dataset = opened.dataset
    models = load_models(args)
    for loaded in models:
        image_mode(loaded)
    notes = [check_model(loaded, needs_map=bool(percents)).note for loaded in models]
    images = images_digest(dataset)
    settings = [_settings(loaded, opened.place, images, percents) for loaded in models]
    if args.output:
        _check_output(args.output, settings)
    matches = [match_to(loaded, dataset, bool(percents)) for loaded in models]
    tell(notes)
    records: List[Dict[str, Any]] = []
    class_rows: List[Dict[str, Any]] = []
    image_rows: List[Dict[str, Any]] = []
    for loaded, setting, match in zip(models, settings, matches):
        record, by_image = _measure(loaded, dataset, match, percents, args)
        records.append({**setting, **record})
        class_rows += [dict(model=loaded.name, label=label, **found) for label, found in record['classes'].items()]
        image_rows += by_image
        if args.output:
            _write(args.output, records, settings, class_rows, image_rows)
    bad = records[-1]['unreadable']
    if bad:
        print(f'{len(bad)} of {len(dataset)} images cannot be read and are left out: {some(bad)}', file=sys.stderr)
    write_table([_row(record) for record in records], args)


# images and their classes

def match_classes(
        loaded: Loaded,
        n_classes: int,
        names: Sequence[str],
        present: Sequence[int],
) -> Tuple[List[int], List[str]]:
    """Match the classes of a data set with those of a model, and name the model's.

    They are matched by name if the model has names, or if the folders have those of Places365 and the model as many
    classes; by WordNet number (n01440764) if the folders have these and the model as many classes as one of ImageNet's
    sets; else by index, if their numbers of classes are equal.

    Args:
        loaded: The model.
        n_classes: Number of its logits.
        names: Names of the data's classes, which are those of their folders.
        present: Indices of the classes that have images; these are matched.

    Raises:
        ValueError: They cannot be matched.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    from timm_focus.data.places365 import CATEGORIES

    candidates = [loaded.label_names] if 0 < len(loaded.label_names) <= n_classes else []
    subset = infer_imagenet_subset(dict(num_classes=n_classes))
    folders = [names[i] for i in present]
    if subset and all(re.fullmatch(r'n\d{8}', name) for name in folders):
        candidates.append(ImageNetInfo(subset).label_names())
    categories = set(map(folder_key, CATEGORIES))
    if n_classes == len(CATEGORIES) and 2 * sum(folder_key(name) in categories for name in folders) > len(folders):
        candidates.append(list(CATEGORIES))
    unknown, known = [], []
    for known in candidates:
        numbers = {folder_key(name): i for i, name in enumerate(known)}
        unknown = [name for name in folders if folder_key(name) not in numbers]
        if not unknown:
            rest = map(str, range(len(known), n_classes))
            return [numbers[folder_key(name)] for name in folders], [*map(str, known), *rest]
    if unknown:
        raise ValueError(
            f'{len(unknown)} of the {len(folders)} classes of the data are none of the {len(known)} that {loaded.name} '
            f'knows ({some(known)}): {some(unknown)}. Rename these folders, or leave them out.')
    if len(names) != n_classes:
        raise ValueError(
            f'The data has {len(names)} classes, but {loaded.name} has {n_classes} and no names to match them by: take '
            'data with the same classes, or a checkpoint with names, such as those of train_focus.py.')
    return list(present), list(names)


class _Numbers:
    """Maps the number of a folder to the target of its images. A class, so that worker processes can unpickle it."""

    def __init__(self, numbers: Dict[int, int]):
        self.numbers = numbers

    def __call__(self, target: int) -> int:
        return self.numbers[target]


def match_to(loaded: Loaded, dataset: Any, erasing: bool) -> Tuple[Dict[int, int], List[str]]:
    """Match a model with a data set; return its class for each class of the data, and its names, or raise."""
    import numpy as np
    import torch

    from timm_focus.analysis import faithfulness
    from timm_focus.data.readers import label_names

    _prepare(loaded, dataset, None)
    x = dataset[0][0][None]
    device = next(loaded.model.parameters()).device
    with torch.inference_mode():
        n_classes = loaded.model(x.to(device)).shape[1]
    if erasing:  # refuses a model without a map
        faithfulness(loaded.model, [(x, torch.zeros(1, dtype=torch.long))], [0.5])
    names = label_names(dataset.reader)
    targets = dataset.reader.targets
    present = list(range(len(names))) if targets is None else np.unique(targets).tolist()
    numbers, names = match_classes(loaded, n_classes, names, present)
    return dict(zip(present, numbers)), names


def _prepare(loaded: Loaded, dataset: Any, numbers: Any) -> None:
    from timm.data import create_transform

    dataset.transform = create_transform(**loaded.data_config, is_training=False)
    dataset.input_img_mode = image_mode(loaded)
    dataset.target_transform = numbers


# measuring

def _measure(
        loaded: Loaded,
        dataset: Any,
        match: Tuple[Dict[int, int], List[str]],
        percents: Sequence[float],
        args: argparse.Namespace,
) -> Tuple[Dict[str, Any], List[Dict[str, Any]]]:
    """Measure a model; return the results, and a row for each image."""
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    from timm_focus.analysis import faithfulness

    numbers, names = match
    _prepare(loaded, dataset, _Numbers(numbers))
    loader = shield_workers(DataLoader(dataset, batch_size=args.batch_size, num_workers=args.workers))
    with tqdm(total=len(dataset), desc=loaded.name, unit='image', disable=None) as bar:
        def batches() -> Iterator[Any]:
            for x, target in loader:
                yield x, target
                bar.update(len(x))
        found = faithfulness(loaded.model, batches(), [p / 100 for p in percents])

    good = dataset.bad == 0  # where an image cannot be read, another one took its place
    right = {'top1': found.prediction == found.target, 'top5': found.in_top5}
    for kind, erased in (('cam', found.cam), ('random', found.random)):
        right.update({f'{kind}_{p:g}': row for p, row in zip(percents, erased)})
    percent = {name: 100 * flags[good].double().mean().item() for name, flags in right.items()}
    classes = {}
    for i in sorted(set(numbers.values())):
        here = good & (found.target == i)
        if here.any():
            classes[names[i]] = dict(n=int(here.sum()), top1=100 * right['top1'][here].double().mean().item())
    record = dict(
        n=int(good.sum()), unreadable=[dataset.filename(i) for i in (~good).nonzero()[:, 0].tolist()],
        top1=percent['top1'], top5=percent['top5'], classes=classes, map_size=found.map_size, map_kind=found.map_kind,
        erasing={f'{p:g}': {kind: percent[f'{kind}_{p:g}'] for kind in ('cam', 'random')} for p in percents})
    columns = {('correct' if name == 'top1' else f'correct_{name}'): flags.int().tolist()
               for name, flags in right.items()}
    targets, predictions = found.target.tolist(), found.prediction.tolist()
    images = [
        dict(model=loaded.name, image=dataset.filename(i), label=names[targets[i]], prediction=names[predictions[i]],
             **{name: flags[i] for name, flags in columns.items()})
        for i in good.nonzero()[:, 0].tolist()]
    return record, images


def _settings(loaded: Loaded, data: str, images: str, percents: Sequence[float]) -> Dict[str, Any]:
    """Return the settings that a result depends on."""
    return dict(
        model=loaded.name, weights=digest(loaded.model.state_dict()), data=data, images=images,
        settings=json.loads(json.dumps(dict(loaded.data_config, erase=list(percents)), default=str)))


def _row(record: Dict[str, Any]) -> Dict[str, Any]:
    row = dict(model=record['model'], n=record['n'], top1=round(record['top1'], 3), top5=round(record['top5'], 3))
    for share, found in record['erasing'].items():
        row.update({f'{kind}_{share}': round(value, 3) for kind, value in found.items()})
    if record['erasing']:
        row.update(map='x'.join(map(str, record['map_size'])), map_kind=record['map_kind'])
    return row


# files

def _check_output(folder: str, settings: List[Dict[str, Any]]) -> None:
    """Check that a folder has no results of another command line; the same one may be repeated."""
    path = os.path.join(folder, SUMMARY)
    if not os.path.exists(path):
        check_free(folder, (CLASSES, IMAGES), SUMMARY)
    else:
        before: Any
        try:
            with open(path) as f:
                before = json.load(f)
            before = [{key: record[key] for key in settings[0]} for record in before] if before else [None]
        except (ValueError, TypeError, KeyError):
            before = [None]
        if not all(one in settings for one in before):
            raise ValueError(f'{folder} holds results of other models, weights, images or settings ({path}): give '
                             'another --output, or remove it.')
    os.makedirs(folder, exist_ok=True)


def _write(
        folder: str,
        records: List[Dict],
        settings: List[Dict],
        class_rows: List[Dict],
        image_rows: List[Dict],
) -> None:
    """Write the results of the models so far.

    The record is written twice: before the other files, without the last model, and after them. So if the process is
    killed, the record says what it was about to write, and the same command can do it again.

    Args:
        folder: Folder of the results.
        records: Settings and results of the models that are measured.
        settings: Settings of all models. For models that are still to be measured, the record has only these.
        class_rows: Rows of the table of classes.
        image_rows: Rows of the table of images.
    """
    from timm_focus.utils import write_whole

    def write_record(n: int) -> None:
        record = [*records[:n], *settings[n:]]
        write_whole(os.path.join(folder, SUMMARY), json.dumps(record, indent=2) + '\n')

    write_record(len(records) - 1)
    for name, rows in ((CLASSES, class_rows), (IMAGES, image_rows)):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)
        write_whole(os.path.join(folder, name), text.getvalue())
    write_record(len(records))
