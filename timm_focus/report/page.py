"""Builds the page: one HTML file that holds everything it needs, and loads nothing from elsewhere."""
import base64
import hashlib
import os
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib import colormaps

from timm_focus.analysis.plots import MAP_ALPHA, MAP_COLORS
from timm_focus.utils.text import one_line

from .charts import Chart, Series, box, box_chart, line_chart
from .compare import (
    NOTHING, Comparison, Confusion, answer, by_class, changed_confusions, compute, differing, groups, own_interval)
from .facts import Run
from .measure import SHARES, Shown

__all__ = ['PAGE', 'Gallery', 'build_page', 'find_page', 'listed_confusions', 'page_images']

HERE, PAGE = Path(__file__).parent, 'index.html'
TITLES = dict(top1='Top-1, %', top5='Top-5, %', loss='Loss', lr='Learning rate')
FIRST = ('top1', 'top5', 'loss')
COLORS = 6  # page.css has so many colours of runs
ERASED = (0., *(100 * share for share in SHARES))  # in percent
STOPS = 33  # the page holds so many colours of the map, and interpolates between them


class Gallery(NamedTuple):
    """The images that the page shows.

    Attributes:
        indices: Numbers of the images among those that were measured.
        names: Names of their files.
        views: For each view (how runs crop and scale images), pictures of all images in `data:` addresses.
        view_of: Number of each run's view.
        shown: For each run what to show of each image, None for a run without a map.
        thresholds: For each run the value of its map from which on pixels are erased, from 0 to 1. None if the map does
            not decide what is erased.
        means: For each run the mean colour of its images, which replaces erased pixels.
        smooth: For each run whether its map is enlarged by interpolation, as its mask is.
    """
    indices: List[int]
    names: List[str]
    views: List[List[str]]
    view_of: List[int]
    shown: List[Optional[List[Shown]]]
    thresholds: List[Optional[float]]
    means: List[Tuple[int, int, int]]
    smooth: List[bool]


def build_page(
        compared: Comparison,
        gallery: Optional[Gallery] = None,
        left_out: Sequence[str] = (),
        notes: Sequence[str] = (),
) -> str:
    """Build the page, and return its HTML.

    Args:
        compared: Runs, and what was measured of them.
        gallery: The images to show, None for a page without images.
        left_out: Sentences that say what the page does not have, and why.
        notes: Sentences about the maps.
    """
    names = [one_line(run.name) for run in compared.runs]
    charts: Dict[str, Chart] = {}
    confusions = listed_confusions(compared)
    data = dict(
        runs=names, classes=_class_names(compared), charts={}, images=_images(compared, gallery),
        maps=_maps(gallery), colors=_colors(), alpha=MAP_ALPHA, present=np.unique(compared.target).tolist())
    curves = _curves(compared.runs, charts)
    erasing = _erasing(compared, charts)
    data['charts'] = {name: chart.data for name, chart in charts.items()}
    style, script = ((HERE / name).read_text('utf-8') for name in ('page.css', 'page.js'))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_plain_number, percent=lambda v: NOTHING if v is None else f'{v:.1f}',
                               signed=lambda v: f'{v:+.1f}', line=one_line)
    template = environment.from_string((HERE / 'page.html').read_text('utf-8'))
    lines = dict(left_out=left_out, notes=notes)
    return template.render(
        names=names, runs=[_row(compared, i) for i in range(len(names))], answer=answer(compared),
        n=len(compared.target) if compared.measured else 0, data_name=one_line(compared.data), curves=curves,
        settings=[(one_line(k), [one_line(v) for v in values]) for k, values in differing(compared.runs)],
        has_settings=[bool(run.settings) for run in compared.runs], classes=_classes(compared),
        widest=_widest(compared), headings=_headings(compared), confusions=confusions,
        class_name=lambda k: one_line(compared.name_of(k)), coverage=_coverage(compared), erasing=erasing,
        shares=ERASED, looks=_looks(compared), gallery=gallery, data=data, best=_chosen(compared.runs),
        **{name: [one_line(text) for text in texts] for name, texts in lines.items()},
        style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script))


def page_images(path: Union[str, os.PathLike]) -> Optional[int]:
    """Return how many images a page of `build_page` shows; None if the file is not such a page."""
    with open(path, encoding='utf-8', errors='replace') as f:
        head = f.read(4096)
    found = re.search(r'<meta name="timm-focus-images" content="(\d+)">', head)
    return int(found[1]) if found else None


def find_page(source: str, images: bool = True) -> str:
    """Return the path of a page that is to be published.

    Args:
        source: The page, or the folder that has it.
        images: Whether it may show images.

    Raises:
        ValueError: There is no such page, or it shows images and may not.
    """
    path = os.path.join(source, PAGE) if os.path.isdir(source) else source
    n = page_images(path) if os.path.isfile(path) else None
    if n is None:
        raise ValueError(f'--report {source} is no page of timm-focus report: make one with `timm-focus report RUN`.')
    if n and not images:
        raise ValueError(f'--no-gallery publishes no images, and {path} shows {n}: make the page with --gallery 0.')
    return path


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _plain_number(value: Any) -> str:
    return NOTHING if value is None else f'{value:,}' if isinstance(value, int) else f'{value:,.4g}'


# runs

def _row(compared: Comparison, i: int) -> Dict[str, Any]:
    """Return what the tiles and the table of costs show of a run."""
    run, base = compared.runs[i], compared.runs[groups(compared.runs)[0].runs[0]]
    own, others = compute(run), compute(base)
    found = dict(
        run._asdict(), name=one_line(run.name), size=' x '.join(map(str, run.input_size)), top1=run.best(), top5=None,
        interval=None, n=None, color=i % COLORS, duration=_duration(run.seconds),
        compute=own / others if own and others and (run.images is None) == (base.images is None) else None)
    if compared.measured:
        measured, difference = compared.measured[i], own_interval(compared, i)
        found.update(top1=difference.value, interval=difference.images, top5=100 * float(measured.in_top5.mean()),
                     n=len(compared.target))
    return found


def _duration(seconds: Optional[float]) -> str:
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f'{seconds:.0f} s'
    minutes = round(seconds / 60)
    return f'{minutes} min' if minutes < 120 else f'{minutes // 60} h {minutes % 60:02} min'


def _chosen(runs: Sequence[Run]) -> bool:
    """Return whether the weights of any run are those of an epoch before its last, chosen by validation."""
    return any(run.epoch is not None and run.epochs is not None and run.epoch + 1 < run.epochs for run in runs)


# curves

def _curves(runs: Sequence[Run], charts: Dict[str, Chart]) -> List[Dict[str, Any]]:
    columns = list(dict.fromkeys(name for run in runs for row in run.rows for name in row if name != 'epoch'))
    quantities = list(dict.fromkeys(_quantity(name) for name in columns))
    quantities.sort(key=lambda q: FIRST.index(q) if q in FIRST else len(FIRST))
    by_passes = len({run.passes / run.epochs for run in runs if run.passes and run.epochs}) > 1
    found = []
    for i, quantity in enumerate(quantities):
        title = TITLES.get(quantity, quantity.replace('_', ' ').capitalize())
        entry: Dict[str, Any] = dict(title=title, charts=[], legend=[])
        for axis, label in (('epochs', 'epoch'), *((('passes', 'passes of an image'),) if by_passes else ())):
            series = [s for k, run in enumerate(runs) for s in _series(k, run, quantity, axis)]
            if series:
                name = f'curve-{i}-{axis}'
                charts[name] = line_chart(title, series, label, title.endswith('%'))
                entry['charts'].append(dict(id=name, axis=axis, svg=charts[name].svg))
                if axis == 'epochs':
                    entry['legend'] = [dict(label=s.label, run=s.run % COLORS, dashed=s.dashed, last=s.points[-1][1])
                                       for s in series]
        if entry['charts']:
            found.append(entry)
    return found


def _quantity(column: str) -> str:
    return column.removeprefix('train_').removeprefix('eval_')


def _series(k: int, run: Run, quantity: str, axis: str) -> List[Series]:
    found = []
    for prefix, words in (('eval_', 'validation'), ('train_', 'training'), ('', '')):
        column = f'{prefix}{quantity}'
        places = [row['epoch'] for row in run.rows] if axis == 'epochs' else run.work
        points = [(x, row[column]) for x, row in zip(places, run.rows) if x is not None and column in row]
        if points:
            found.append(Series(k % COLORS, f'{one_line(run.name)}{words and f", {words}"}', points,
                                prefix == 'train_'))
    return found


# what it looks at

def _coverage(compared: Comparison) -> Optional[Markup]:
    rows = _looks(compared)
    if not rows:
        return None
    return box_chart('Coverage ratio of the focus area, in percent', [row['box'] for row in rows],
                     [f'{row["name"]}, {row["map"]} map' for row in rows], 'coverage ratio, %',
                     [row['color'] for row in rows])


def _erasing(compared: Comparison, charts: Dict[str, Chart]) -> Optional[Markup]:
    series = []
    for row in _looks(compared):
        for label, name, dashed in (('by its map', 'cam', False), ('at random', 'random', True)):
            points = list(zip(ERASED, row[name]))
            series.append(Series(row['color'], f'{row["name"]}, {label}', points, dashed))
    if not series:
        return None
    charts['erasing'] = line_chart('Top-1 under erasing, in percent', series, 'erased, % of the pixels', True)
    return charts['erasing'].svg


def _looks(compared: Comparison) -> List[Dict[str, Any]]:
    """Return the numbers of both charts: a row for each run with a map."""
    rows = []
    for i, (run, measured) in enumerate(zip(compared.runs, compared.measured)):
        if measured.coverage is not None and measured.map_size is not None:
            tops = {name: [100 * float(flags.mean()) for flags in (measured.right, *found)]
                    for name, found in (('cam', measured.cam), ('random', measured.random)) if found is not None}
            rows.append(dict(
                color=i % COLORS, name=one_line(run.name), box=box(100 * measured.coverage),
                map=' x '.join(map(str, measured.map_size)), convolutional=measured.convolutional, **tops))
    return rows


# classes

def _headings(compared: Comparison) -> List[str]:
    return [f'{_short(compared, b)} minus {_short(compared, a)}' for b, a in _compared_runs(compared)]


def _short(compared: Comparison, i: int) -> str:
    return one_line(compared.runs[i].name)


def _compared_runs(compared: Comparison) -> List[Tuple[int, int]]:
    """Return the pairs of runs whose differences are shown: each run, and the one that all are compared with."""
    if len(compared.runs) < 2:
        return []
    base = groups(compared.runs)[0].runs[0]
    return [(i, base) for i in range(len(compared.runs)) if i != base]


def _classes(compared: Comparison) -> List[Dict[str, Any]]:
    """Return the rows of the table of classes.

    They are sorted by the first difference, the largest first; for a single run by its top-1, the lowest first.
    """
    if not compared.measured:
        return []
    against = _compared_runs(compared)
    rows = [dict(index=k, name=one_line(compared.name_of(k)), n=n, top1=top1,
                 differences=[top1[b] - top1[a] for b, a in against]) for k, n, top1 in by_class(compared)]
    return sorted(rows, key=lambda row: (-row['differences'][0] if against else row['top1'][0], row['name']))


def listed_confusions(compared: Comparison) -> List[Tuple[str, List[Confusion]]]:
    """Return a heading and the confusions that changed most for each pair of runs.

    For a single run these are its most frequent confusions.
    """
    if not compared.measured:
        return []
    against = _compared_runs(compared)
    if not against:
        return [('', changed_confusions(compared, 0, None))]
    return [(f'{_short(compared, b)} against {_short(compared, a)}' if len(against) > 1 else '',
             changed_confusions(compared, b, a)) for b, a in against]


def _widest(compared: Comparison) -> float:
    """Return the largest difference of a class (at least 1), which gets the longest bar."""
    return max([abs(d) for row in _classes(compared) for d in row['differences']] + [1.])


def _class_names(compared: Comparison) -> Dict[str, str]:
    known = {*range(len(compared.classes)), *(k for m in compared.measured for k in m.others)}
    return {str(k): one_line(compared.name_of(k)) for k in sorted(known)}


# the gallery

def _images(compared: Comparison, gallery: Optional[Gallery]) -> List[Dict[str, Any]]:
    if gallery is None:
        return []
    found = []
    for j, i in enumerate(gallery.indices):
        runs = []
        for measured, shown in zip(compared.measured, gallery.shown):
            entry: Dict[str, Any] = dict(p=int(measured.prediction[i]))
            if shown is not None:
                one = shown[j]
                entry.update(
                    q=round(one.answer[1], 3), a=one.after[0], b=round(one.after[1], 3),
                    k=round(one.kept, 3), h=one.map.shape[0], w=one.map.shape[1],
                    m=base64.b64encode(one.map.tobytes()).decode())
            runs.append(entry)
        found.append(dict(n=one_line(gallery.names[j]), t=int(compared.target[i]), r=runs,
                          v=[view[j] for view in gallery.views]))
    return found


def _maps(gallery: Optional[Gallery]) -> List[Dict[str, Any]]:
    if gallery is None:
        return []
    return [dict(view=view, threshold=threshold, mean=mean, smooth=smooth) for view, threshold, mean, smooth in zip(
        gallery.view_of, gallery.thresholds, gallery.means, gallery.smooth)]


def _colors() -> List[List[int]]:
    """Return the colours of the map for values from 0 to 1, as RGB from 0 to 255."""
    return (colormaps[MAP_COLORS](np.linspace(0, 1, STOPS))[:, :3] * 255).round().astype(int).tolist()
