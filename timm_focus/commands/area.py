"""`timm-focus area`: coverage ratios of images, and the box plot of the paper's figures 1, 3 and 4."""
import argparse
import csv
import json
import os
from typing import Any, Dict, List, Sequence

from timm_focus.runs import Loaded, image_mode
from timm_focus.utils.processes import shield_workers
from timm_focus.utils.text import csv_cell, from_csv_cell
from timm_focus.utils.weight_files import digest

from .checks import check_free, check_model, images_digest, tell
from .data import add_data_arguments, open_data
from .load import add_model_arguments, load_models
from .table import add_picture_format

__all__ = ['add_parser']

SETTINGS = 'settings.json'
COLUMNS = ('model', 'dataset', 'image', 'coverage', 'map_height', 'map_width')


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        'area', help='coverage ratio of the focus area over images, with a box plot',
        description='Measure the coverage ratio of the focus area of each image ("See More for Scene", section 3): a '
                    'CSV with every image, a JSON of means and quartiles, and a box plot. If it was stopped, the same '
                    'command goes on where it was.',
        examples=('timm-focus area DIR --checkpoint output/train/plain --checkpoint output/train/scenes',))
    parser.add_argument('data', nargs='*', metavar='DATA', help='folders of images, or tar files; if they '
                        'have splits, the validation split')
    add_model_arguments(parser)
    add_data_arguments(parser)
    parser.add_argument('--by-dataset', action='store_true', help='measure each folder by itself (default: all are '
                        'one set, as in the paper)')
    parser.add_argument('--threshold', type=_rule, default='mean', metavar='RULE', help="mean (default, the paper's), "
                        'otsu, or a percentile from 0 to 100')
    add_picture_format(parser)
    parser.add_argument('--output', default='focus_area', metavar='DIR', help='where to write (default: focus_area)')
    parser.set_defaults(run=run)


def _rule(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def run(args: argparse.Namespace) -> None:
    """Measure coverage image by image, and write the summary and the box plot."""
    import torch

    from timm_focus.analysis import coverage_plot, threshold_map
    from timm_focus.utils import write_whole

    threshold_map(torch.zeros(1, 1, 1), args.threshold)  # refuses a wrong rule at once
    models = load_models(args)
    opened = open_data(args, args.data, apart=args.output)
    datasets = {one.name: one.dataset for one in opened}
    modes = {loaded.name: image_mode(loaded) for loaded in models}
    notes = [check_model(loaded).note for loaded in models]
    path = os.path.join(args.output, 'area.csv')
    _keep_settings(args.output, ('area.csv', 'area.json', f'area.{args.format}'), {
        'threshold': args.threshold,
        'models': {loaded.name: dict(
            weights=digest(loaded.model.state_dict()), data_config=loaded.data_config, mode=modes[loaded.name])
            for loaded in models},
        'data': {one.name: dict(folder=one.place, images=images_digest(one.dataset)) for one in opened}})
    tell(notes)
    done = _read(path)
    convolutional = {}
    for loaded in models:
        for name, dataset in datasets.items():
            seen = {row['image'] for row in done if (row['model'], row['dataset']) == (loaded.name, name)}
            convolutional[loaded.name] = _measure(loaded, name, dataset, seen, path, args)
    pools = {name: [name] for name in datasets} if args.by_dataset else {' + '.join(datasets): list(datasets)}
    rows = _read(path)
    groups = {
        (loaded.name, pool): [r for r in rows if r['model'] == loaded.name and r['dataset'] in members]
        for loaded in models for pool, members in pools.items()}
    summary = [_summarise(model, pool, found, convolutional[model], args) for (model, pool), found in groups.items()]
    write_whole(os.path.join(args.output, 'area.json'), json.dumps(summary, indent=2) + '\n')
    coverage_plot(
        {group: [float(r['coverage']) for r in found] for group, found in groups.items()},
        os.path.join(args.output, f'area.{args.format}'))
    for one in summary:
        size = ' x '.join(map(str, one['map_size']))
        note = '' if one['convolutional'] else "  (not of convolutions: another quantity than the paper's)"
        print(f'{one["model"]}  {one["dataset"]}  n {one["n"]}  mean {one["mean"]:.4f}  median {one["median"]:.4f}  '
              f'quartiles {one["q25"]:.4f} {one["q75"]:.4f}  map {size}{note}')
    print(f'{path}, area.json and area.{args.format} beside it')


def _keep_settings(folder: str, results: Sequence[str], settings: Dict[str, Any]) -> None:
    """Write the settings of a measurement into its folder, and refuse a folder whose measurement had other settings.

    Args:
        folder: Folder of the measurement, made if it is not there.
        results: Names of the files that the measurement consists of.
        settings: Its settings.

    Raises:
        ValueError: The settings have changed, or files of these names belong to something else.
    """
    from timm_focus.utils import write_whole

    path, settings = os.path.join(folder, SETTINGS), json.loads(json.dumps(settings, default=str))
    if not os.path.exists(path):
        check_free(folder, results, SETTINGS)
    else:
        try:
            with open(path, encoding='utf-8') as f:
                before = json.load(f)
            differs = [f'a threshold {before["threshold"]}'] if before['threshold'] != settings['threshold'] else []
            for kind, what in (('models', 'other weights or transform of'), ('data', 'other images of')):
                differs += [f'{what} {name}' for name, key in settings[kind].items()
                            if before[kind].get(name, key) != key]
                settings[kind] = {**before[kind], **settings[kind]}
        except (ValueError, TypeError, KeyError, AttributeError):
            differs = ['unknown settings']
        if differs:
            raise ValueError(f'{folder} holds a measurement with {differs[0]} ({path}): give another --output, or '
                             'remove it.')
    os.makedirs(folder, exist_ok=True)
    write_whole(path, json.dumps(settings, indent=2) + '\n')


def _read(path: str) -> List[Dict[str, str]]:
    """Read the whole lines of the CSV, and cut off a last line that is not whole."""
    if not os.path.exists(path):
        return []
    with open(path, 'rb+') as f:
        data = f.read()
        if not data.endswith(b'\n'):
            f.truncate(data.rfind(b'\n') + 1)
    with open(path, newline='') as f:
        return [{k: from_csv_cell(v) for k, v in row.items()} for row in csv.DictReader(f)]


def _measure(loaded: Loaded, name: str, dataset: Any, done: set, path: str, args: argparse.Namespace) -> bool:
    """Write a line for every image that has none yet; return whether convolutions make the map."""
    import torch
    from timm.data import create_transform
    from torch.utils.data import DataLoader, Subset
    from tqdm import tqdm

    from timm_focus.analysis import focus_area, last_map

    config = loaded.data_config
    dataset.transform = create_transform(**config, is_training=False)
    dataset.input_img_mode = image_mode(loaded)
    device = next(loaded.model.parameters()).device
    probe = torch.zeros(1, *config['input_size'], device=device)
    convolutional = last_map(loaded.model, probe)[1]
    left = [i for i in range(len(dataset)) if dataset.filename(i) not in done] if done else range(len(dataset))
    loader = shield_workers(
        DataLoader(Subset(dataset, left), batch_size=args.batch_size, num_workers=args.workers))
    is_new = not os.path.exists(path) or not os.path.getsize(path)
    at = 0
    with open(path, 'a', newline='') as f, tqdm(
            total=len(dataset), initial=len(dataset) - len(left), desc=f'{loaded.name} {name}', unit='image',
            disable=None) as bar:
        writer = csv.writer(f, lineterminator='\n')
        if is_new:
            writer.writerow(COLUMNS)
        for x, _ in loader:
            found = focus_area(loaded.model, x.to(device), args.threshold)
            indices = left[at:at + len(x)]
            at += len(x)
            for i, coverage in zip(indices, found.coverage.tolist()):
                if not dataset.bad[i]:  # an image that cannot be read has no ratio; the next took its place
                    row = (loaded.name, name, dataset.filename(i), f'{coverage:.6f}', *found.heat.shape[1:])
                    writer.writerow(map(csv_cell, row))
            f.flush()
            bar.update(len(x))
    return convolutional


def _summarise(
        model: str,
        dataset: str,
        rows: List[Dict[str, str]],
        convolutional: bool,
        args: argparse.Namespace,
) -> Dict[str, Any]:
    import numpy as np

    if not rows:
        raise ValueError(f'None of the images in {dataset} can be read.')
    values = np.array([float(row['coverage']) for row in rows])
    q25, median, q75 = np.percentile(values, (25, 50, 75)).tolist()
    return dict(
        model=model, dataset=dataset, n=len(values), mean=values.mean().item(), median=median, q25=q25, q75=q75,
        map_size=[int(rows[0]['map_height']), int(rows[0]['map_width'])], convolutional=convolutional,
        threshold=args.threshold)
