"""Draws charts as SVG, in the colours of the page, so that they are seen without a script."""
import math
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from markupsafe import Markup, escape

__all__ = ['Chart', 'Series', 'box_chart', 'line_chart']

WIDTH, HEIGHT = 420, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 34


class Series(NamedTuple):
    """A line of a chart: number of the run, label and points. Lines of training and of random regions are dashed."""
    run: int
    label: str
    points: Sequence[Tuple[float, float]]
    dashed: bool = False


class Chart(NamedTuple):
    """A chart: its SVG, and `data` for the script that shows values: the lines, and where they are drawn."""
    svg: Markup
    data: Dict[str, Any]


def ticks(low: float, high: float, n: int = 5) -> List[float]:
    """Return about n round numbers, the first at most `low` and the last at least `high`."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / max(n - 1, 1)
    power = 10. ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def number(value: float) -> str:
    """Write a number in four significant digits, or whole from 1000 on."""
    return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def line_chart(name: str, series: Sequence[Series], x_label: str, percent: bool = False) -> Chart:
    """Draw lines over a shared axis.

    Args:
        name: What the chart shows, for screen readers.
        series: The lines, with finite numbers.
        x_label: Label of the horizontal axis.
        percent: The vertical axis is a percentage: it has no marks below 0 or above 100 if all values are within.
    """
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    across, up = ticks(min(xs), max(xs), 6), ticks(min(ys), max(ys), 5)
    if all(x == int(x) for x in xs):  # epochs, of which there are no halves
        across = [x for x in across if x == int(x) and min(xs) <= x <= max(xs)]
    if percent:
        up = [y for y in up if 0 <= y <= 100] if min(ys) >= 0 and max(ys) <= 100 else up
    x0, x1 = min(xs), max(xs)
    if x0 == x1:
        x0, x1 = x0 - 1, x1 + 1
    y0, y1 = min(up[0], min(ys)), max(up[-1], max(ys))

    def at(x: float, y: float) -> Tuple[float, float]:
        return (LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
                HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM))

    parts = [_line(LEFT, at(x0, y)[1], WIDTH - RIGHT, at(x0, y)[1], 'grid') for y in up]
    parts += [_text(LEFT - 6, at(x0, y)[1] + 4, number(y), 'end') for y in up]
    parts += [_text(at(x, y0)[0], HEIGHT - BOTTOM + 16, number(x), 'middle') for x in across if x0 <= x <= x1]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x_label, 'middle'))
    for line in series:
        places = [at(*point) for point in line.points]
        kind = f'line run-{line.run}{" dashed" if line.dashed else ""}'
        if len(places) > 1:
            parts.append(Markup('<path class="{}" d="M{}"/>').format(
                kind, 'L'.join(f'{x:.1f} {y:.1f}' for x, y in places)))
        if len(places) <= 12:
            parts += [Markup('<circle class="dot run-{}" cx="{:.1f}" cy="{:.1f}" r="2.6"/>').format(line.run, x, y)
                      for x, y in places]
    said = '; '.join(f'{line.label}: {number(line.points[0][1])} to {number(line.points[-1][1])}' for line in series)
    data = dict(
        x0=x0, x1=x1, y0=y0, y1=y1, left=LEFT, right=WIDTH - RIGHT, top=TOP, bottom=HEIGHT - BOTTOM, x=x_label,
        series=[dict(run=line.run, label=line.label, dashed=line.dashed,
                     points=[[float(f'{x:.6g}'), float(f'{y:.5g}')] for x, y in line.points]) for line in series])
    return Chart(_svg(parts, HEIGHT, f'{name}. {said}'), data)


def box_chart(
        name: str,
        boxes: Sequence[Dict[str, float]],
        names: Sequence[str],
        x_label: str,
        runs: Sequence[int],
) -> Markup:
    """Draw a row for each box, from quartile to quartile, with the median, the mean and whiskers.

    Args:
        name: What the chart shows, for screen readers.
        boxes: 'low', 'q25', 'median', 'q75', 'high' and 'mean' of each row, from 0 to 100.
        names: Names of the rows.
        x_label: Label of the horizontal axis.
        runs: For each row the number of the run, which chooses its colour.
    """
    row, left, height = 40, 12, 40 * len(boxes) + BOTTOM + 6
    low, high = min(b['low'] for b in boxes), max(b['high'] for b in boxes)
    marks = [x for x in ticks(low, high, 6) if 0 <= x <= 100]
    low, high = min(low, marks[0]), max(high, marks[-1])

    def at(x: float) -> float:
        return left + (x - low) / ((high - low) or 1) * (WIDTH - left - RIGHT)

    parts = [_line(at(x), 4, at(x), height - BOTTOM, 'grid') for x in marks]
    parts += [_text(at(x), height - BOTTOM + 16, number(x), 'middle') for x in marks]
    parts.append(_text(WIDTH / 2, height - 3, x_label, 'middle'))
    for j, (i, one, label) in enumerate(zip(runs, boxes, names)):
        y = 4 + row * j + 26
        start, end, middle = at(one['q25']), at(one['q75']), at(one['median'])
        parts.append(_text(left, y - 14, label[:56], 'start', 'tick name'))
        parts += [_line(at(one[a]), y, at(one[b]), y, f'line run-{i}') for a, b in (('low', 'q25'), ('q75', 'high'))]
        parts.append(Markup('<rect class="box run-{}" x="{:.1f}" y="{}" width="{:.1f}" height="14" rx="2"/>').format(
            i, start, y - 7, max(end - start, 1)))
        parts.append(_line(middle, y - 7, middle, y + 7, f'median run-{i}'))
        parts.append(Markup('<circle class="mean run-{}" cx="{:.1f}" cy="{}" r="3"/>').format(i, at(one['mean']), y))
    said = '; '.join(f'{label}: median {number(one["median"])}, mean {number(one["mean"])}'
                     for one, label in zip(boxes, names))
    return _svg(parts, height, f'{name}. {said}')


def box(values: Any) -> Dict[str, float]:
    """Return what `box_chart` draws of some values. Whiskers end at the last value within 1.5 lengths of the box."""
    import numpy as np

    q25, median, q75 = np.percentile(values, (25, 50, 75)).tolist()
    reach = 1.5 * (q75 - q25)
    return dict(low=float(values[values >= q25 - reach].min()), q25=q25, median=median, q75=q75,
                high=float(values[values <= q75 + reach].max()), mean=float(values.mean()))


def _svg(parts: Sequence[Markup], height: float, name: str) -> Markup:
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, name, Markup('').join(parts))


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x0, y0, x1, y1)


def _text(x: float, y: float, text: str, anchor: str, kind: Optional[str] = 'tick') -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, escape(text))
