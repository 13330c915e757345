"""Intervals of differences, against literal computations."""
import math
import statistics

import numpy as np
import pytest

from timm_focus.analysis.comparison import T, Difference, Interval, contrast


def test_quantiles_of_t():
    """By integration of the density, from -t to t."""
    assert len(T) == 30
    for freedom in (1, 2, 4, 14, 30):
        t = T[freedom - 1]
        x = np.linspace(-t, t, 200_001)
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        y = scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        assert ((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() == pytest.approx(0.95, abs=2e-4)


def made_up(means, seeds=3, spread=0.3, n=4000):
    """Rows and images of methods with about these means, in percent."""
    difficulty = np.random.default_rng(3).permutation(n) / n * 100
    rows, images = [], {}
    for method, mean in means.items():
        for seed in range(seeds):
            right = np.where(difficulty < mean + spread * (seed - (seeds - 1) / 2), 100., 0.)
            images[method, seed] = dict(top1=right)
            rows.append(dict(method=method, seed=str(seed), top1=str(right.mean())))
    return rows, images


def test_intervals_are_those_of_literal_computations():
    rows, images = made_up(dict(plain=40, focus=42, has=41))
    weights = {'focus': 1, 'plain': -0.5, 'has': -0.5}
    found = contrast(rows, images, weights, 'top1')
    values = {m: [float(row['top1']) for row in rows if row['method'] == m] for m in weights}
    assert found.value == pytest.approx(
        statistics.mean(values['focus']) - (statistics.mean(values['plain']) + statistics.mean(values['has'])) / 2)
    within = statistics.mean(statistics.variance(v) for v in values.values())  # of 6
    half = 2.447 * math.sqrt(within * (1 / 3 + 0.25 / 3 + 0.25 / 3))
    assert found.seeds == pytest.approx((found.value - half, found.value + half))

    each = np.zeros(4000)
    for m, w in weights.items():
        for seed in range(3):
            each += w / 3 * images[m, seed]['top1']
    rng = np.random.default_rng(7)  # other draws than the code's
    means = sorted(each[rng.integers(4000, size=4000)].mean() for _ in range(2000))
    assert found.images == pytest.approx((means[50], means[1949]), abs=0.06)
    paired = found.images.high - found.images.low
    apart = 2 * 1.96 * math.sqrt(2 * 0.4 * 0.6 / 4000) * 100
    assert paired < apart / 2, 'the pairing tells'


def test_one_seed_borrows_the_spread_of_the_others():
    rows, images = made_up(dict(plain=40, focus=42))
    more, one = made_up(dict(side=41), seeds=1)
    found = contrast(rows + more, {**images, **one}, {'side': 1, 'plain': -1}, 'top1')
    assert (found.seeds.high - found.seeds.low) / 2 == pytest.approx(2.776 * 0.3 * math.sqrt(1 + 1 / 3), rel=0.03)
    alone = contrast(made_up(dict(plain=40, focus=60), seeds=1)[0], {}, {'focus': 1, 'plain': -1}, 'top1')
    assert alone.seeds is None and alone.images is None and alone.answer() == 'undecided'


@pytest.mark.parametrize('seeds, images, margin, answer', [
    ((0.1, 2), (0.2, 3), 0, 'yes'), ((-0.1, 2), (0.2, 3), 0, 'undecided'), ((0.1, 2), (-0.2, 3), 0, 'undecided'),
    ((-2, -0.1), (-3, -0.2), 0, 'no'), ((-2, -0.1), (-3, 0.2), 0, 'undecided'), (None, (1, 2), 0, 'undecided'),
    ((1, 2), None, 0, 'undecided'), ((-0.4, 1), (-0.3, 1), -0.5, 'yes'), ((-2, -0.6), (-2, -0.7), -0.5, 'no'),
])
def test_answers(seeds, images, margin, answer):
    intervals = [None if i is None else Interval(*i) for i in (seeds, images)]
    assert Difference(0, *intervals).answer(margin) == answer
