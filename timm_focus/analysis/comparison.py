"""Differences in accuracy between methods, with 95 % intervals over seeds and over images.

A cell is one trained model: it has a row of means, and values for each validation image. All cells in a comparison saw
the same images in the same order.
"""
import functools
import math
import statistics
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

__all__ = ['Difference', 'Images', 'Interval', 'contrast']

# Student's t at 0.975 by degrees of freedom, from 1: half a 95 % interval in standard errors
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120,
     2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)


class Interval(NamedTuple):
    """Bounds of a 95 % interval."""
    low: float
    high: float

    def __str__(self) -> str:
        return f'{self.low:+.2f} to {self.high:+.2f}'


class Difference(NamedTuple):
    """A contrast of means, with 95 % intervals over seeds and over images; None where there is too little data."""
    value: float
    seeds: Optional[Interval]
    images: Optional[Interval]

    def answer(self, margin: float = 0.) -> str:
        """'yes' if both intervals lie above the margin, 'no' if both lie below, else 'undecided'."""
        if self.seeds is None or self.images is None:
            return 'undecided'
        if min(self.seeds.low, self.images.low) > margin:
            return 'yes'
        return 'no' if max(self.seeds.high, self.images.high) < margin else 'undecided'


Images = Dict[Tuple[str, int], Dict[str, np.ndarray]]  # (method, seed) -> column -> percent for each image


def contrast(rows: Sequence[Dict[str, Any]], images: Images, weights: Dict[str, float], column: str) -> Difference:
    """Weighted sum of the methods' means, for the cells of one model on one data set.

    The interval over seeds is Student's t. It pools the variance within all methods of `rows`, as a one-way analysis of
    variance does, so a method with a single seed has an interval, too. The interval over images is a paired bootstrap:
    all cells see the same images, and each image is averaged over its method's seeds.

    Args:
        rows: One row for each cell, with its 'method' and the mean of `column` over the images.
        images: Values for each image, by method and seed.
        weights: Weight of each method's mean in the sum, such as {'focus': 1, 'plain': -1}.
        column: The quantity to compare, such as 'top1', in percent.
    """
    values: Dict[str, List[float]] = {}
    for row in rows:
        values.setdefault(row['method'], []).append(float(row[column]))
    value = sum(w * statistics.fmean(values[m]) for m, w in weights.items())
    freedom = sum(len(v) - 1 for v in values.values())
    seeds = None
    if freedom:
        variance = sum((x - statistics.fmean(v)) ** 2 for v in values.values() for x in v) / freedom
        error = math.sqrt(variance * sum(w * w / len(values[m]) for m, w in weights.items()))
        half = T[min(freedom, len(T)) - 1] * error
        seeds = Interval(value - half, value + half)
    cells = {m: [found[column] for (method, _), found in images.items() if method == m] for m in weights}
    if not all(len(cells[m]) == len(values[m]) for m in weights):
        return Difference(value, seeds, None)
    each = sum(w * np.mean(cells[m], axis=0) for m, w in weights.items())
    means = each[_resamples(len(each))].mean(1)
    return Difference(value, seeds, Interval(*np.percentile(means, (2.5, 97.5)).tolist()))


@functools.lru_cache(1)
def _resamples(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(n, size=(2000, n), dtype=np.int32)
