"""Finds what differs between runs: accuracy, overall and by class, confusions, and the images that show it."""
import os
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from timm_focus.analysis.comparison import Difference, Images, contrast

from .facts import Run
from .measure import Measured

__all__ = ['Comparison', 'Confusion', 'Pair', 'answer', 'changed_confusions', 'choose', 'differing', 'pairs']

CONFUSIONS = 12  # how many confusions the page lists
ALIKE = 0.05  # compute counts as equal within this share
NOTHING = '–'  # in place of a value that is not known


class Group(NamedTuple):
    """Runs that differ in their seed alone. `runs` holds their numbers in the list of all runs."""
    name: str
    runs: List[int]


class Pair(NamedTuple):
    """Two groups of runs that are compared.

    Attributes:
        name: Name of the one group.
        base: Name of the group that it is compared with.
        runs: Numbers of the runs of the one group in the list of all runs.
        base_runs: Numbers of the runs of the other.
        difference: Top-1 of the one group minus that of the other in points, None without images.
        compute: Training compute of the one group over that of the other, None if it is not known.
    """
    name: str
    base: str
    runs: List[int]
    base_runs: List[int]
    difference: Optional[Difference]
    compute: Optional[float]


class Confusion(NamedTuple):
    """Images of one class that are taken for another class.

    Attributes:
        truth: Number of the true class.
        taken: Number of the predicted class.
        counts: How many images each run confuses in this way.
        change: How many more there are for the run than for the one that it is compared with.
    """
    truth: int
    taken: int
    counts: List[int]
    change: int


class Comparison(NamedTuple):
    """Runs, and what was measured of them on the same N images.

    Attributes:
        runs: What each run records about itself.
        measured: What was measured of each run, [] without images.
        target: Number of the true class of each image, `[N]`.
        classes: Names of the classes of the data.
        data: Name of the data, '' without images.
    """
    runs: List[Run]
    measured: List[Measured]
    target: np.ndarray
    classes: List[str]
    data: str = ''

    def name_of(self, k: int) -> str:
        """Return the name of a class of the data, or of a class that only a model has."""
        if k < len(self.classes):
            return self.classes[k]
        return next((m.others[k] for m in self.measured if k in m.others), str(k))


def groups(runs: Sequence[Run]) -> List[Group]:
    """Group runs that differ in their seed alone.

    The first group is the one that the others are compared with: the first of plain training if there is one.
    """
    found: Dict[str, List[int]] = {}
    for i, run in enumerate(runs):
        found.setdefault(run.key, []).append(i)
    first = next((members for members in found.values() if runs[members[0]].plain), None)
    ordered = sorted(found.values(), key=lambda members: members is not first)
    return [Group(_common([runs[i].name for i in members]), members) for members in ordered]


def _common(names: Sequence[str]) -> str:
    """Return a name for runs of several seeds: the words with which all their names begin, or the first name."""
    if len(names) == 1:
        return names[0]
    prefix = os.path.commonprefix(list(names)).rstrip('-_. /0123456789')
    return prefix or names[0]


def compute(run: Run) -> Optional[float]:
    """Return the multiply-adds of a run's forward passes in training, None if they are not known.

    Where the number of images is not noted, one image stands for all; such runs are compared with each other alone.
    """
    if run.passes is None or run.multiply_adds is None:
        return None
    return run.passes * run.multiply_adds * (run.images or 1)


def pairs(compared: Comparison) -> List[Pair]:
    """Pair each group with the first, and each group of another method with plain ones of equal compute."""
    runs, found = compared.runs, []
    parts = groups(runs)
    for a, base in enumerate(parts):
        for b, group in enumerate(parts):
            ratio = _ratio(runs[group.runs[0]], runs[base.runs[0]])
            equal = ratio is not None and abs(ratio - 1) <= ALIKE
            if (a == 0 and b > 0) or (a > 0 and b > 0 and a != b and equal and runs[base.runs[0]].plain
                                      and not runs[group.runs[0]].plain):
                found.append(Pair(group.name, base.name, group.runs, base.runs,
                                  _difference(compared, parts, group, base), ratio))
    return found


def _ratio(run: Run, base: Run) -> Optional[float]:
    """Return the compute of a run over that of another, None if it is not known."""
    own, other = compute(run), compute(base)
    if not own or not other or (run.images is None) != (base.images is None):
        return None
    return own / other


def _difference(compared: Comparison, parts: List[Group], group: Group, base: Group) -> Optional[Difference]:
    if not compared.measured:
        return None
    rows, images = _cells(compared, parts)
    return contrast(rows, images, {group.name: 1., base.name: -1.}, 'top1')


def _cells(compared: Comparison, parts: Sequence[Group]) -> Tuple[List[Dict], Images]:
    """Return the accuracy of each run of some groups, and its hits and misses image by image, as `contrast` asks."""
    rows, images = [], {}
    for group in parts:
        for i in group.runs:
            flags = 100. * compared.measured[i].right
            rows.append(dict(method=group.name, top1=flags.mean()))
            images[group.name, i] = dict(top1=flags)
    return rows, images


def own_interval(compared: Comparison, i: int) -> Difference:
    """Return the top-1 accuracy of one run, with its interval over images."""
    part = Group(compared.runs[i].name, [i])
    return contrast(*_cells(compared, [part]), {part.name: 1.}, 'top1')


# the answer in words

def answer(compared: Comparison) -> List[List[Tuple[str, bool]]]:
    """Say what the comparison found, in sentences. A sentence is a list of pieces: a text, and whether it is strong."""
    if len(compared.runs) == 1:
        return [_alone(compared)]
    found = pairs(compared)
    first = groups(compared.runs)[0]
    sentences = []
    if not found:
        return [[(f'All {len(compared.runs)} runs differ in their seed alone.', False)]]
    for pair in found:
        if pair.base == first.name:
            sentences.append(_sentence(compared, pair))
            other = [p for p in found if p.name == pair.name and p.base != first.name]
            sentences += [_equal(p) for p in other]
            if not other and pair.compute is not None and abs(pair.compute - 1) > ALIKE:
                sentences.append(_unknown(compared, pair))
    return sentences


def _alone(compared: Comparison) -> List[Tuple[str, bool]]:
    run = compared.runs[0]
    if compared.measured:
        found = own_interval(compared, 0)
        interval = f' (95 %: {found.images.low:.1f} to {found.images.high:.1f})' if found.images else ''
        return [(run.name, True), (f' is right on {found.value:.1f} % of {len(compared.target):,} images', False),
                (f'{interval}.', False)]
    top = run.best()
    return [(run.name, True), (' has nothing measured on images.' if top is None else
                               f' was right on {top:.1f} % of its validation images.', False)]


def _sentence(compared: Comparison, pair: Pair) -> List[Tuple[str, bool]]:
    cost = _cost(pair)
    if pair.difference is None:
        top, base = (_mean([compared.runs[i].best() for i in members]) for members in (pair.runs, pair.base_runs))
        if top is None or base is None:
            return [(pair.name, True), (' and ', False), (pair.base, True),
                    (f' have no accuracy to compare{cost}.', False)]
        return [(pair.name, True), (f' was right on {top:.1f} % of its validation images, ', False),
                (pair.base, True), (f' on {base:.1f} %{cost}. Without the images there is no interval.', False)]
    return [*_better(pair), (f' ({_interval(pair, len(compared.target))}){cost}.', False)]


def _better(pair: Pair) -> List[Tuple[str, bool]]:
    found = _found(pair)
    value, images = found.value, found.images
    name, base = (pair.name, True), (pair.base, True)
    if images is not None and images.low <= 0 <= images.high:
        return [name, (' and ', False), base, (' cannot be told apart: the difference is ', False),
                (f'{value:+.1f} points', True)]
    how = 'better' if value > 0 else 'worse'
    return [name, (' is ', False), (f'{abs(value):.1f} points {how}', True), (' than ', False), base]


def _found(pair: Pair) -> Difference:
    if pair.difference is None:
        raise TypeError(f'{pair.name} and {pair.base} were not measured.')
    return pair.difference


def _interval(pair: Pair, n: int = 0) -> str:
    value, over, images = _found(pair)
    apart = images is not None and images.low <= 0 <= images.high
    sign = 1 if apart or value > 0 else -1

    def text(interval: Tuple[float, float]) -> str:
        low, high = sorted(sign * bound for bound in interval)
        return f'{low:.1f} to {high:.1f}'

    parts = [f'95 %: {text(images)}, paired{f" over {n:,} images" if n else ""}'] if images else []
    if over is not None and len(pair.runs) + len(pair.base_runs) > 2:
        parts.append(f'over seeds {text(over)}')
    return '; '.join(parts)


def _cost(pair: Pair) -> str:
    if pair.compute is None:
        return ''
    if abs(pair.compute - 1) <= ALIKE:
        return ' at equal compute'
    return f' at {pair.compute:.{1 if pair.compute > 1 else 2}f} times the compute'


def _equal(pair: Pair) -> List[Tuple[str, bool]]:
    if pair.difference is None:
        return [(f'{pair.base} used as much compute as {pair.name}.', False)]
    return [('At equal compute, ', False), *_better(pair), (f' ({_interval(pair)}).', False)]


def _unknown(compared: Comparison, pair: Pair) -> List[Tuple[str, bool]]:
    run, base = compared.runs[pair.runs[0]], compared.runs[pair.base_runs[0]]
    ratio = pair.compute or 1.
    less, ratio = (base, ratio) if ratio > 1 else (run, 1 / ratio)
    how = '' if less.epochs is None else \
        f': to compare them, train {less.name} for {round(less.epochs * ratio):,} epochs instead of {less.epochs:,}'
    return [(f'These runs do not show which is better at equal compute{how}.', False)]


def _mean(values: Sequence[Optional[float]]) -> Optional[float]:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


# settings

def differing(runs: Sequence[Run]) -> List[Tuple[str, List[str]]]:
    """Return the settings in which the runs differ, each with the value of every run as text."""
    names = sorted({name for run in runs for name in run.settings})
    rows = []
    for name in names:
        values = [_text(run.settings[name]) if name in run.settings else NOTHING for run in runs]
        if len(set(values)) > 1:
            rows.append((name, values))
    return rows


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ', '.join(f'{k}={_text(v)}' for k, v in value.items()) or 'none'
    if isinstance(value, (list, tuple)):
        return ' '.join(map(_text, value)) or 'none'
    if isinstance(value, bool):
        return 'on' if value else 'off'
    if value is None or value == '':
        return 'none'
    return f'{value:g}' if isinstance(value, float) else str(value)


# classes and confusions

def by_class(compared: Comparison) -> List[Tuple[int, int, List[float]]]:
    """Return for each class with images its number, its number of images, and the top-1 of each run in percent."""
    rows = []
    for k in np.unique(compared.target).tolist():
        here = compared.target == k
        rows.append((k, int(here.sum()), [100 * float(m.right[here].mean()) for m in compared.measured]))
    return rows


def changed_confusions(compared: Comparison, run: int, base: Optional[int], n: int = CONFUSIONS) -> List[Confusion]:
    """Return the `n` confusions whose number changed most from the run `base` to `run`.

    Without a base these are the most frequent confusions of the run.
    """
    counts: List[Dict[Tuple[int, int], int]] = []
    for measured in compared.measured:
        wrong = ~measured.right
        found: Dict[Tuple[int, int], int] = {}
        for key in zip(compared.target[wrong].tolist(), measured.prediction[wrong].tolist()):
            found[key] = found.get(key, 0) + 1
        counts.append(found)
    before = counts[base] if base is not None else {}
    change = {key: counts[run].get(key, 0) - before.get(key, 0) for key in {**before, **counts[run]}}
    most = sorted((key for key in change if change[key]), key=lambda key: (-abs(change[key]), key))[:n]
    return [Confusion(*key, [found.get(key, 0) for found in counts], change[key]) for key in most]


# which images are shown

def choose(compared: Comparison, n: int, confusions: Sequence[Confusion] = (), each: int = 3) -> List[int]:
    """Choose the images that the page shows, and return their numbers in order.

    First come some images of each confusion, then images that one run gets right and another wrong, in turn for every
    combination of runs and every class, and then images of all classes on which the runs agree.

    Args:
        compared: Runs, and what was measured of them.
        n: Number of images to choose.
        confusions: The confusions that the page lists.
        each: Most images of one confusion. All confusions together take at most a third of `n`.
    """
    right = np.stack([m.right for m in compared.measured])
    predictions = np.stack([m.prediction for m in compared.measured])
    of_confusions = [np.flatnonzero((compared.target == c.truth) & (predictions == c.taken).any(0))[:each].tolist()
                     for c in confusions]
    chosen: Dict[int, None] = {}
    for i in _in_turn(of_confusions):
        if len(chosen) >= n // 3:
            break
        chosen[i] = None
    mixed = right.any(0) & ~right.all(0)
    ways: Dict[Tuple[bool, ...], List[int]] = {}
    for i in np.flatnonzero(mixed).tolist():
        ways.setdefault(tuple(right[:, i].tolist()), []).append(i)
    spread = [_by_class(members, compared.target) for members in ways.values()]
    limit = max(n * 3 // 4, len(chosen))  # the rest of the places is for images on which the runs agree
    for i in _in_turn(spread):
        if len(chosen) >= min(limit, n):
            break
        chosen[i] = None
    agreed = [np.flatnonzero(part).tolist() for part in (~right.any(0), right.all(0))]
    rest = [*(_by_class(members, compared.target) for members in agreed), *spread]
    for i in _in_turn(rest):
        if len(chosen) >= n:
            break
        chosen[i] = None
    return sorted(list(chosen)[:n])


def _by_class(members: Sequence[int], target: np.ndarray) -> List[int]:
    """Order images so that their classes take turns."""
    parts: Dict[int, List[int]] = {}
    for i in members:
        parts.setdefault(int(target[i]), []).append(i)
    return list(_in_turn(list(parts.values())))


def _in_turn(lists: Sequence[Sequence[int]]) -> Iterator[int]:
    """Yield the first of each list, then the second of each, and so on."""
    for k in range(max(map(len, lists), default=0)):
        for members in lists:
            if k < len(members):
                yield members[k]
