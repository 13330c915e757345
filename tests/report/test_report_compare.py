"""What differs between runs, in words and in numbers."""
import numpy as np
import pytest
from pages import compared, measured, run

from timm_focus.report import Comparison, choose, listed_confusions
from timm_focus.report.compare import answer, changed_confusions, differing, groups, pairs

TARGET = np.arange(400) % 4


def said(runs, rights):
    what = Comparison(runs, [measured(TARGET, right, 4) for right in rights], TARGET, list('abcd'))
    return [''.join(text for text, _ in sentence) for sentence in answer(what)]


def right(n):
    """The first n of the images."""
    return np.arange(len(TARGET)) < n


FOCUS = dict(method='focus training', settings=dict(method='focus'))


def test_the_answer_is_a_sentence_with_its_interval():
    first, second = said([run('plain'), run('focus', passes=2., **FOCUS)], [right(200), right(220)])
    assert first == (
        'focus is 5.0 points better than plain (95 %: 3.0 to 7.2, paired over 400 images) at 2.0 times the compute.')
    assert second == ('These runs do not show which is better at equal compute: '
                      'to compare them, train plain for 12 epochs instead of 6.')


def test_a_loss_and_a_difference_that_is_none():
    worse, = said([run('plain', passes=2.), run('focus', passes=2., **FOCUS)], [right(220), right(200)])
    assert worse.startswith('focus is 5.0 points worse than plain (95 %: 3.0 to 7.2, paired')
    assert worse.endswith(' at equal compute.')
    none = said([run('plain'), run('focus', passes=2., **FOCUS)], [right(200), np.arange(400) % 2 == 0])[0]
    assert none.startswith('focus and plain cannot be told apart: the difference is +0.0 points (95 %: -')


def test_equal_compute_where_a_run_has_it():
    longer = run('longer', epochs=12)
    sentences = said([run('focus', passes=2., **FOCUS), run('plain'), longer], [right(220), right(200), right(230)])
    assert sentences[0].startswith('focus is 5.0 points better than plain')
    assert sentences[1] == 'At equal compute, focus is 2.5 points worse than longer (95 %: 1.2 to 4.2, paired).'
    assert sentences[2].startswith('longer is 7.5 points better than plain')


def test_runs_of_several_seeds_are_taken_together():
    def seeds(name, **kwargs):
        own = kwargs.pop('settings', {})
        return [run(f'{name}-{seed}', settings={**own, 'model': name, 'seed': seed}, **kwargs) for seed in range(2)]
    runs = [*seeds('plain'), *seeds('focus', passes=2., **FOCUS)]
    runs = [r._replace(settings={**r.settings, 'model': r.name[:-2]}) for r in runs]
    assert [g.name for g in groups(runs)] == ['plain', 'focus']
    sentence = said(runs, [right(n) for n in (198, 202, 218, 224)])[0]
    assert sentence.startswith('focus is 5.2 points better than plain (95 %: ') and '; over seeds ' in sentence


def test_without_images_the_runs_own_numbers_are_told():
    what = Comparison([run('plain'), run('focus', passes=2., top1=60., **FOCUS)], [], np.zeros(0, int), [])
    text = ''.join(text for text, _ in answer(what)[0])
    assert text == 'focus was right on 57.6 % of its validation images, plain on 47.6 % at 2.0 times the compute. ' \
                   'Without the images there is no interval.'


def test_a_run_alone():
    assert said([run('plain')], [right(200)]) == ['plain is right on 50.0 % of 400 images (95 %: 44.8 to 55.0).']


def test_costs_that_are_not_known_are_not_told():
    foreign = run('theirs', method='')._replace(settings={}, passes=None, images=None, epochs=None, rows=[])
    text = said([foreign, run('focus', passes=2., **FOCUS)], [right(200), right(220)])
    assert len(text) == 1 and text[0].endswith('paired over 400 images).')
    assert pairs(Comparison([foreign, run('focus')], [], TARGET, []))[0].compute is None


def test_settings_in_which_runs_differ():
    runs = [run('a', settings=dict(amp=False, opt='sgd')), run('b', settings=dict(amp=True, opt='sgd', new=[1, 2.5]))]
    assert differing(runs) == [('amp', ['off', 'on']), ('model', ['a', 'b']), ('new', ['–', '1 2.5'])]


def test_confusions_that_changed_most():
    target = np.array([0] * 6 + [1] * 4)
    a, b = (measured(target, np.ones(10, bool), 3) for _ in range(2))
    a = a._replace(prediction=np.array([1, 1, 1, 1, 2, 0, 0, 1, 1, 1]))
    b = b._replace(prediction=np.array([1, 0, 0, 0, 2, 2, 0, 0, 0, 0]))
    a, b = (m._replace(right=m.prediction == target) for m in (a, b))
    what = Comparison([run('a'), run('b')], [a, b], target, list('xyz'))
    found = [(c.truth, c.taken, c.counts, c.change) for c in changed_confusions(what, 1, 0)]
    assert found == [(0, 1, [4, 1], -3), (1, 0, [1, 4], 3), (0, 2, [1, 2], 1)]
    assert [c.change for c in changed_confusions(what, 1, None)] == [4, 2, 1]


@pytest.mark.parametrize('n', [1, 10, 60, 200])
def test_images_are_chosen_of_all_kinds(n):
    what = compared()
    confusions = [c for _, found in listed_confusions(what) for c in found]
    chosen = choose(what, n, confusions)
    assert len(chosen) == len(set(chosen)) == min(n, 120) and chosen == sorted(chosen)
    if n < 60:
        return
    right = np.stack([m.right for m in what.measured])[:, chosen]
    assert (right[0] & ~right[1]).sum() >= 5 and (right[1] & ~right[0]).sum() >= 5 and right.all(0).sum() >= 5
    assert set(what.target[chosen]) == {0, 1, 2, 3}
    for c in confusions:
        assert any(what.target[i] == c.truth and any(m.prediction[i] == c.taken for m in what.measured) for i in chosen)
