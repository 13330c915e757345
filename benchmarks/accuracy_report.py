"""Writes the tables and the figure of the results of benchmarks/accuracy.py."""
import csv
import gzip
import io
import json
import statistics
from pathlib import Path
from typing import Any, Dict, Iterable, List, Sequence, Tuple

import numpy as np

from accuracy_matrix import CLAIMS, MATRIX, METHODS, Block
from timm_focus.analysis.comparison import Images, contrast
from timm_focus.utils import write_whole

__all__ = ['curves', 'judge', 'load', 'report']

COLUMNS = ('data', 'kind', 'model', 'method', 'seed', 'epochs', 'passes', 'images', 'seconds', 'n_val', 'top1', 'top5',
           'coverage', 'coverage_map', 'lost_10', 'lost_25', 'lost_50', 'random_10', 'random_25', 'random_50',
           'erasing_map')


# the report

def _rows(text: str) -> List[Dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def load(results: Path) -> Tuple[List[Dict[str, Any]], Dict[Tuple[str, str], Images]]:
    """Return the rows of all cells in order, and what was measured of their images, by data set and model.

    Raises:
        ValueError: Cells of one model and data set have different settings, or were measured on different images.
    """
    rows, images, names, bases = [], {}, {}, {}
    for path in sorted(results.glob('*/*/cell.json')):
        cell = json.loads(path.read_text())
        area = json.loads((path.parent / 'area.json').read_text())[0]
        validated = json.loads((path.parent / 'validate.json').read_text())[0]
        if bases.setdefault((cell['data'], cell['model']), cell['base']) != cell['base']:
            raise ValueError(f'{path.parent} is of other settings than the cells before it: remove it.')
        table = sorted(_rows(gzip.decompress((path.parent / 'images.csv.gz').read_bytes()).decode()),
                       key=lambda row: row['image'])
        listed = [row['image'] for row in table]
        if names.setdefault(cell['data'], listed) != listed:
            raise ValueError(f'{path.parent} was measured on other images than the cells before it: remove it.')
        found = {name: 100 * np.array([float(row[name]) for row in table]) for name in table[0] if name not in (
            'image', 'label', 'prediction')}
        columns = dict(top1=found['correct'], top5=found['correct_top5'], coverage=found['coverage'])
        for name, flags in found.items():  # points lost by erasing by the CAM, and at random
            if name.startswith('correct_cam_'):
                columns[name.replace('correct_cam', 'lost')] = found['correct'] - flags
            if name.startswith('correct_random_'):
                columns[name.replace('correct_random', 'random')] = found['correct'] - flags
        images.setdefault((cell['data'], cell['model']), {})[cell['method'], cell['seed']] = columns
        sizes = dict(coverage_map=area['map_size'], erasing_map=validated['map_size'])
        values = {**cell, **{name: f'{v.mean():.4f}' for name, v in columns.items()}, 'n_val': len(table),
                  **{name: 'x'.join(map(str, size)) for name, size in sizes.items()}}
        rows.append({name: values[name] for name in COLUMNS})
    return rows, images


def _blocks(kind: str, model: str) -> List[Block]:
    """Return the blocks of the matrix with this model, or with the first model if the matrix does not have it."""
    blocks = [b for b in MATRIX if b.kind == kind and b.model in (model, MATRIX[0].model)]
    return [b for b in blocks if b.model == model] or blocks


def asked(kind: str, model: str) -> Dict[str, int]:
    """Return the number of seeds that the matrix has for each method."""
    seeds: Dict[str, int] = {}
    for block in _blocks(kind, model):
        seeds.update({method: max(seeds.get(method, 0), block.seeds) for method in block.methods})
    return seeds


def begun(kind: str, model: str, run: Iterable[str]) -> Dict[str, int]:
    """Return `asked` without the tiers of which nothing is run, that is, none of the methods that only they have."""
    tiers: Dict[str, int] = {}
    for block in reversed(_blocks(kind, model)):
        tiers.update(dict.fromkeys(block.methods, block.tier))
    there = {tiers.get(method) for method in run}
    return {method: n for method, n in asked(kind, model).items() if tiers[method] in there}


def groups(rows: Sequence[Dict[str, Any]]) -> Dict[Tuple[str, str, str], List[Dict[str, Any]]]:
    """Group cells that are compared: by kind of data (scenes first), data set and model."""
    found: Dict[Tuple[str, str, str], List[Dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row['kind'], row['data'], row['model']), []).append(row)
    return dict(sorted(found.items(), key=lambda item: item[0][0] != 'scenes'))


def judge(rows: Sequence[Dict[str, Any]], images: Dict[Tuple[str, str], Images]) -> List[Dict[str, str]]:
    """Compare each claim with the results, for each data set and model for which the matrix has its methods."""
    judged, grouped = [], groups(rows)
    blank = dict.fromkeys(('difference', 'over seeds', 'over images', 'cells'), '')
    for claim in CLAIMS:
        needed = {method for weights, _, _ in claim.contrasts for method in weights}
        places = [key for key in grouped if key[0] == claim.kind and needed <= set(asked(claim.kind, key[2]))]
        for kind, data, model in places:
            cells, seeds = grouped[kind, data, model], asked(kind, model)
            have = {m: sum(row['method'] == m for row in cells) for m in needed}
            row = dict(claim=claim.text, where=f'{data}, {model}', answer='not run', **blank)
            if all(have.values()):
                found = [(contrast(cells, images.get((data, model), {}), weights, column), margin)
                         for weights, column, margin in claim.contrasts]
                answers = [difference.answer(margin) for difference, margin in found]
                row['answer'] = 'no' if 'no' in answers else 'yes' if set(answers) == {'yes'} else 'undecided'
                row['difference'] = '; '.join(
                    _signed(weights, d.value) for (weights, _, _), (d, _) in zip(claim.contrasts, found))
                row['over seeds'] = '; '.join(str(d.seeds or 'one seed') for d, _ in found)
                row['over images'] = '; '.join(str(d.images or 'none') for d, _ in found)
            row['cells'] = ', '.join(f'{m} {have[m]}' for m in METHODS if m in needed)
            short = [m for m in needed if have[m] < seeds[m]]
            if short and row['answer'] != 'not run':
                row['answer'] += ', incomplete'
            judged.append(row)
        if not places:
            judged.append(dict(claim=claim.text, where=claim.kind, answer='not run', **blank))
    return judged


def _signed(weights: Dict[str, float], value: float) -> str:
    terms = ' '.join(f'{"+" if w > 0 else "-"} {"" if abs(w) == 1 else f"{abs(w):g} "}{m}' for m, w in weights.items())
    return f'{terms.removeprefix("+ ")} = {value:+.2f}'


def _compute(row: Dict[str, Any]) -> float:
    """Return how often a cell passed each training image through the network."""
    return float(row['epochs']) * float(row['passes'])


def _table(rows: Sequence[Dict[str, str]]) -> str:
    lines = [list(rows[0]), ['---'] * len(rows[0]), *([str(v) for v in row.values()] for row in rows)]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def method_rows(rows: Sequence[Dict[str, Any]], images: Images) -> List[Dict[str, str]]:
    """Return a row for each method of one model on one data set."""
    def mean(cells: Sequence[Dict[str, Any]], column: str, sd: bool = False) -> str:
        values = [float(cell[column]) for cell in cells]
        spread = f' ± {statistics.stdev(values):.2f}' if sd and len(values) > 1 else ''
        return f'{statistics.fmean(values):.2f}{spread}'

    table = []
    for method in METHODS:
        cells = [row for row in rows if row['method'] == method]
        if not cells:
            continue
        against = dict.fromkeys(('to plain', 'over seeds', 'over images'), '')
        if method != 'plain' and any(row['method'] == 'plain' for row in rows):
            found = contrast(rows, images, {method: 1, 'plain': -1}, 'top1')
            against = {'to plain': f'{found.value:+.2f}', 'over seeds': found.seeds or 'one seed',
                       'over images': found.images or 'none'}
        one = cells[0]
        table.append({
            'method': f'`{method}`', 'seeds': len(cells), 'epochs': one['epochs'],
            'compute': f'{_compute(one):g}', 'top-1': mean(cells, 'top1', True),
            **against,
            'top-5': mean(cells, 'top5', True),
            f'coverage, {one["coverage_map"]} map': mean(cells, 'coverage', True),
            f'lost, 25 % erased by CAM, {one["erasing_map"]} map': mean(cells, 'lost_25'),
            'lost, at random': mean(cells, 'random_25'),
            'minutes': f'{statistics.fmean(float(cell["seconds"]) for cell in cells) / 60:.1f}'})
    return table


def _record(results: Path, row: Dict[str, Any]) -> Dict[str, Any]:
    return json.loads((results / row['data'] / f'{row["model"]}-{row["method"]}-{row["seed"]}/cell.json').read_text())


def machines(results: Path, rows: Sequence[Dict[str, Any]]) -> str:
    """Say on which machine these cells ran; cells that ran on another machine are named."""
    found: Dict[str, List[str]] = {}
    for row in rows:
        cell = _record(results, row)
        text = f'{cell["processor"]}, {cell["cores"]} cores, torch {cell["torch"]}, timm {cell["timm"]}'
        found.setdefault(text, []).append(f'{row["method"]}-{row["seed"]}')
    most = max(found, key=lambda text: len(found[text]))
    return '; '.join([most, *(f'{text}: {", ".join(found[text])}' for text in found if text != most)])


def draw(rows: Sequence[Dict[str, Any]], path: Path) -> None:
    """Draw top-1 against compute: a point for each method, with the range of its seeds."""
    from matplotlib.figure import Figure

    grouped = groups(rows)
    wide, high = min(len(grouped), 2), (len(grouped) + 1) // 2
    figure = Figure(figsize=(7 * wide, 4.2 * high), layout='constrained')
    for k, ((_, data, model), cells) in enumerate(grouped.items()):
        ax = figure.add_subplot(high, wide, k + 1)
        found = {m: [cell for cell in cells if cell['method'] == m] for m in METHODS}
        compute = {m: _compute(f[0]) for m, f in found.items() if f}
        for method, x in compute.items():
            n = list(METHODS).index(method)  # a method looks the same in all panels
            tops = [float(cell['top1']) for cell in found[method]]
            mean = statistics.fmean(tops)
            alike = [m for m in compute if compute[m] == x]  # drawn side by side, so that none hides another
            x += 0.015 * max(compute.values()) * (alike.index(method) - (len(alike) - 1) / 2)
            ax.errorbar([x], [mean], [[mean - min(tops)], [max(tops) - mean]], fmt='os^Dv'[n // 10], capsize=3,
                        color=f'C{n % 10}', label=method + (' (one seed)' if len(tops) == 1 else ''))
        ax.set(xlabel='passes over the training images; side by side: the same', ylabel='top-1, %',
               title=f'{data}, {model}')
        ax.legend(fontsize=7, loc='center left', bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120, metadata={'Software': None})


def report(results: Path) -> None:
    """Write `cells.csv`, `README.md` and `accuracy.png` for all cells that are done.

    Raises:
        ValueError: No cell is done.
    """
    rows, images = load(results)
    if not rows:
        raise ValueError(f'There are no results in {results}: run some cells first.')
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(str(results / 'cells.csv'), text.getvalue())
    rows = _rows((results / 'cells.csv').read_text())  # so that claims are judged by the numbers in the file
    judged = judge(rows, images)
    parts = [INTRODUCTION, '## Claims\n', _table(judged), READING]
    for (kind, data, model), cells in groups(rows).items():
        seeds = begun(kind, model, {cell['method'] for cell in cells})
        have = {m: sum(cell['method'] == m for cell in cells) for m in seeds}
        missing = [f'{m} ({have[m]} of {n})' for m, n in seeds.items() if have[m] < n]
        cell = _record(results, cells[0])
        parts += [f'## {data}, {model}\n', _table(method_rows(cells, images[data, model])),
                  f'Incomplete, seeds run: {", ".join(missing)}.\n' if missing else 'All cells are run.\n',
                  f'Settings: {cell["base"]}. {machines(results, cells)}. A cell:\n\n```\n{cell["command"]}\n```\n']
    write_whole(str(results / 'README.md'), '\n'.join(parts))
    draw(rows, results / 'accuracy.png')
    print(f'{results / "README.md"}, cells.csv and accuracy.png beside it')
    for row in judged:
        print(f'{row["answer"]:22} {row["claim"]} ({row["where"]}): {row["difference"]}')


# accuracy against the number of passes

def curves(folder: Path) -> None:
    """Write `README.md` and `curves.png` of the results in folders within `folder`, one for each number of epochs.

    Raises:
        ValueError: No cell is done.
    """
    found: Dict[Tuple[str, str], Dict[float, List[Dict[str, Any]]]] = {}
    images, records = {}, {}
    for part in sorted(folder.iterdir()):
        rows, of_images = load(part)
        for (_, data, model), group in groups(rows).items():
            budget = next((_compute(row) for row in group if row['method'] == 'plain_2x'), max(map(_compute, group)))
            found.setdefault((data, model), {}).setdefault(budget, []).extend(group)
            images.setdefault((data, model, budget), {}).update(of_images[data, model])
            records[data, model] = _record(part, group[0]), machines(part, group)
    if not found:
        raise ValueError(f'There are no results in folders within {folder}: run some cells with --results first.')
    parts = [CURVES]
    for (data, model), budgets in sorted(found.items()):
        table = []
        for method in METHODS:
            line = {'method': f'`{method}`'}
            for budget, rows in sorted(budgets.items()):
                cells = [row for row in rows if row['method'] == method]
                text = ''
                if cells:
                    text = f'{statistics.fmean(float(row["top1"]) for row in cells):.1f}'
                    compute = statistics.fmean(map(_compute, cells))
                    if abs(compute - budget) > 0.01 * budget:
                        text += f' ({compute:.0f} passes)'
                    if method != 'plain_2x' and any(row['method'] == 'plain_2x' for row in rows):
                        weights = {method: 1, 'plain_2x': -1}
                        difference = contrast(rows, images[data, model, budget], weights, 'top1')
                        text += f', {difference.value:+.1f} ({difference.images})'
                line[f'{budget:g} passes'] = text
            if any(list(line.values())[1:]):
                table.append(line)
        cell, machine = records[data, model]
        settings = '; '.join(word for word in cell['base'].split('; ') if not word.endswith('epochs'))
        parts += [f'## {data}, {model}\n', _table(table),
                  f'Settings: {settings}. {machine}. A cell:\n\n```\n{cell["command"]}\n```\n']
    write_whole(str(folder / 'README.md'), '\n'.join(parts))
    _draw_curves(found, folder / 'curves.png')
    print(f'{folder / "README.md"}, and curves.png beside it')


def _draw_curves(found: Dict[Tuple[str, str], Dict[float, List[Dict[str, Any]]]], path: Path) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(6.5 * len(found), 4.2), layout='constrained')
    for k, ((data, model), budgets) in enumerate(sorted(found.items())):
        ax = figure.add_subplot(1, len(found), k + 1)
        cells = [row for rows in budgets.values() for row in rows]
        for method in METHODS:
            n, points = list(METHODS).index(method), {}
            for row in cells:
                if row['method'] == method:
                    points.setdefault(_compute(row), []).append(float(row['top1']))
            if points:
                x = sorted(points)
                ax.plot(x, [statistics.fmean(points[i]) for i in x], f'{"os^Dv"[n // 10]}-', color=f'C{n % 10}',
                        label=method)
        ax.set_xscale('log')
        ax.set_xticks(sorted(budgets), [f'{budget:g}' for budget in sorted(budgets)])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set(xlabel='passes over the training images', ylabel='top-1, %', title=f'{data}, {model}')
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=120, metadata={'Software': None})


CURVES = """# Accuracy against the number of passes

`python benchmarks/accuracy.py --curves DIR` writes this page and its figure from the folders in DIR, one for each
number of epochs. All methods of a column cost the same, counted in passes of an image through the network, unless the
number of passes stands beside. Differences are to plain training of the same number of passes, in percentage points,
with 95 % intervals over images (a paired bootstrap), to which seeds add an uncertainty of their own.

![Top-1 against passes](curves.png)
"""


INTRODUCTION = """# Accuracy

`python benchmarks/accuracy.py --report` writes this page from the folders beside it. Each folder is one run, with its
settings, the numbers of its epochs, its accuracy and its answer for each validation image. [cells.csv](cells.csv) has
all runs in one table. The weights are those of the last epoch; nothing was chosen on the validation images.

![Top-1 against compute](accuracy.png)
"""
READING = """
Differences are in percentage points, with 95 % intervals.

- Intervals over seeds use Student's t and the variance within methods, pooled over all methods of the same model and
  data. This assumes that seeds vary equally for all methods, and also gives an interval for a method with one seed.
- Intervals over images come from a paired bootstrap of the validation images, with the means over seeds.
- The answer to a claim is yes if both intervals lie above its margin, no if both lie below it, and undecided otherwise.
  The margin is 0, or half a point where the claim says so. Each interval is for its own claim, not for all together.
- Compute is epochs times passes of an image through the network in a step.
- Coverage is in percent, measured on images of at least 128 px. Its map, and the map that ranks the pixels to erase,
  are the last of the network.
- Minutes are those of training alone, on the machines that are named.
"""
