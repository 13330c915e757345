"""benchmarks/accuracy.py: runs, their resumption, statistics and claims."""
import csv
import gzip
import json
import math
import os
import re
import shutil
import signal
import statistics
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))
import accuracy
import accuracy_report
from accuracy_matrix import CLAIMS, MATRIX, METHODS
from accuracy_report import COLUMNS, judge

from timm_focus.analysis.comparison import contrast

TINY = 'resnet10t'  # of the matrix
SETTINGS = ['--model', TINY, '--tier', '1', '--img-size', '48', '--seeds', '1', '--device', 'cpu', '-j', '0']


@pytest.fixture
def bench(image_folder, tmp_path, monkeypatch, capsys, quietly):
    """`bench('--list')` is the exit code and what was printed, for two cells of a tiny model."""
    def run(*more, methods=('plain', 'focus'), epochs=1, data=image_folder):
        for name, value in ENVIRONMENT.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        code = accuracy.main([
            '--scenes', str(data), *SETTINGS, '--methods', *methods, '--epochs', str(epochs), '--output',
            f'{tmp_path}/out', '--results', f'{tmp_path}/results', *more])
        return code, capsys.readouterr()
    return run


def terminate_once_there(path):
    """Send this process SIGTERM, as a scheduler does, when a run has written a file."""
    def watch():
        end = time.monotonic() + 120
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
def test_runs_are_stopped_resumed_and_not_repeated(bench, tmp_path, monkeypatch):
    flags = dict(epochs=6)
    run = tmp_path / f'out/data/{TINY}-plain-0'
    results = tmp_path / 'results/data'
    thread = terminate_once_there(run / 'summary.csv')
    code, printed = bench('--', '--batch-size', '8', **flags)
    thread.join()
    assert code == 130 and 'goes on next time' in printed.err
    assert not list(results.glob('*')) and not list(tmp_path.glob(f'out/data/{TINY}-focus-0'))
    before = (run / 'summary.csv').read_text().splitlines()
    assert 2 <= len(before) < 7, 'it was stopped in the middle'

    assert re.search(rf'{TINY}-plain-0 +\d of 6 epochs', bench('--list', '--', '--batch-size', '8', **flags)[1].out)
    code, printed = bench('--', '--batch-size', '8', **flags)
    assert code == 0, printed.err
    assert 'Resuming' in (run / 'log.txt').read_text()
    after = (run / 'summary.csv').read_text().splitlines()
    assert len(after) == 7 and after[:len(before)] == before
    for method in ('plain', 'focus'):
        folder = results / f'{TINY}-{method}-0'
        cell = json.loads((folder / 'cell.json').read_text())
        assert cell['seconds'] > 0 and cell['images'] == 24 * 6 and cell['passes'] == (2 if method == 'focus' else 1)
        assert f'--model {"focus_" if method == "focus" else ""}{TINY}' in cell['command']
        for file in folder.glob('*.[cjy]*'):
            if file.suffix != '.gz':
                assert str(tmp_path) not in file.read_text(), f'{file.name} has paths of this machine'
        images = list(csv.DictReader(gzip.decompress((folder / 'images.csv.gz').read_bytes()).decode().splitlines()))
        validated = json.loads((folder / 'validate.json').read_text())[0]
        assert len(images) == 10 and 0 < float(images[0]['coverage']) < 1
        assert validated['top1'] == pytest.approx(10 * sum(int(row['correct']) for row in images))
        last = list(csv.DictReader((folder / 'summary.csv').read_text().splitlines()))[-1]
        assert validated['top1'] == pytest.approx(float(last['eval_top1'])), 'the last epoch counts'

    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob('**/*') if path.is_file()}
    code, printed = bench('--', '--batch-size', '8', **flags)
    assert code == 0 and not printed.out, 'what is done is not run again'
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob('**/*') if path.is_file()}

    # the time that a cell takes is known now: twice the epochs and a pass each
    code, printed = bench('--list', '--', '--batch-size', '8', methods=('plain', 'focus', 'plain_2x'), **flags)
    assert printed.out.count(' done ') == 2 and '-plain_2x-0' in printed.out and 'unknown' not in printed.out
    code, printed = bench(
        '--minutes', '0.01', '--', '--batch-size', '8', methods=('plain', 'focus', 'plain_2x'), **flags)
    assert code == 0 and '1 cells would take longer' in printed.out and not list(tmp_path.glob('out/**/*plain_2x*'))

    code, printed = bench('--', '--batch-size', '4', **flags)
    assert code == 2 and 'other settings' in printed.err and printed.err.count('\n') == 1
    monkeypatch.setitem(METHODS, 'focus', METHODS['focus_half'])
    code, printed = bench('--', '--batch-size', '8', **flags)
    assert code == 2 and 'other settings' in printed.err, 'a method that became another'
    monkeypatch.undo()

    assert accuracy.main(['--report', '--results', f'{tmp_path}/results']) == 0
    rows = list(csv.DictReader((tmp_path / 'results/cells.csv').read_text().splitlines()))
    assert [(row['method'], row['seed'], row['coverage_map'], row['erasing_map']) for row in rows] == [
        ('focus', '0', '4x4', '2x2'), ('plain', '0', '4x4', '2x2')]
    text = (tmp_path / 'results/README.md').read_text()
    for words in ('`focus`', 'one seed', 'plain (1 of 2)', 'undecided, incomplete'):
        assert words in text, words
    assert (tmp_path / 'results/accuracy.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('method, columns, passes', [
    ('plain_2x', {}, 1), ('focus', {}, 2), ('crops_auto_2x', dict(complex_start=['', '2', '2', '2']), 1),
    ('auto', dict(focus_start=['', '', '', '']), 1), ('auto', dict(focus_start=['', '2', '2', '2']), 1.5),
    ('both_auto', dict(complex_start=['', '1', '1', '1'], focus_start=['', '', '3', '3']), 1.25),
])
def test_passes_of_a_run_that_finds_its_start(tmp_path, image_folder, method, columns, passes):
    args = accuracy.parse_args(['--scenes', str(image_folder), '--tier', '1', '5', '--model', TINY, '--seeds', '1',
                                '--methods', method, '--output', str(tmp_path / 'out')])
    [cell] = accuracy.plan(args)
    cell.run.mkdir(parents=True)
    with open(cell.run / 'summary.csv', 'w') as f:
        rows = [dict(epoch=e, **{name: values[e] for name, values in columns.items()}) for e in range(4)]
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert accuracy.mean_passes(cell) == passes


@pytest.mark.slow
def test_a_cell_that_fails_does_not_stop_the_others(bench, tmp_path):
    code, printed = bench('--', '--batch-size', '8', '--lr', '1e30')
    assert code == 1 and printed.err.count('exit code 1') == 2, printed.err
    assert not list(tmp_path.glob('results/**/cell.json'))


@pytest.mark.parametrize('flags, words', [
    ('--drop much', '--drop'), ('--train-batches-per-epoch 4', 'needs --train-img-sizes'), ('--droop 1', '--droop')])
def test_flags_that_the_script_refuses(bench, capsys, flags, words):
    try:
        code, printed = bench('--', *flags.split())
        err = printed.err
    except SystemExit as e:  # argparse's
        code, err = e.code, capsys.readouterr().err
    assert code == 2 and err.count('\n') == 1 and words in err


def test_images_are_those_that_the_flags_leave(image_folder):
    args = accuracy.parse_args(['--scenes', str(image_folder), '--', '--images-per-class', '5'])
    assert {cell.n_train for cell in accuracy.plan(args)} == {10}


def test_flags_of_focus_training_alone(bench):
    code, printed = bench('--list', '--', '--focus-start', '1', methods=('focus',), epochs=2)
    assert code == 0 and f'{TINY}-focus-0' in printed.out
    code, printed = bench('--list', '--', '--focus-start', '1', epochs=2)
    assert code == 2 and '--focus-start belongs to focus training' in printed.err


def test_training_images_are_held_back(bench, tmp_path, image_folder):
    code, printed = bench('--held-back', '0.25', '--list')
    assert code == 0 and 'data-held-back-0.25' in printed.out
    held = tmp_path / 'out/held_back_data/data-held-back-0.25'
    parts = {split: [path.resolve() for path in held.glob(f'{split}/*/*')] for split in ('train', 'val')}
    assert len(parts['val']) == 6 and len(parts['train']) == 18
    assert {*parts['val'], *parts['train']} == {*(image_folder / 'train').resolve().glob('*/*')}
    assert len({path.parent.name for path in parts['val']}) == 2
    assert bench('--held-back', '0.25', '--list')[0] == 0, 'the folder is there'
    args = accuracy.parse_args(['--scenes', 'x', '--held-back'])
    assert args.held_back == 0.2 and args.results == args.output / 'held_back', 'not among the results'


@pytest.mark.slow
def test_the_end_of_the_time(tmp_path, image_folder, monkeypatch):
    """A command is asked to end, and waited for; nobody else has its cell meanwhile."""
    monkeypatch.setattr(accuracy, 'NOTED', 0.1)
    notes = []
    args = accuracy.parse_args(['--scenes', str(image_folder), '--output', str(tmp_path / 'out'), '--tier', '1'])
    cell = accuracy.plan(args)[0]
    code = ("import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(print('saved'))); "
            "print('begun', flush=True); time.sleep(60)")
    log = tmp_path / 'log.txt'
    with accuracy.held(cell) as lock:
        with accuracy.held(cell) as other:
            assert lock is not None and other is None
        with pytest.raises(accuracy.Stopped):
            accuracy.call([sys.executable, '-c', code], log, time.monotonic() + 2, lock, lambda: notes.append(1))
    assert 5 <= len(notes) <= 21, 'notes were not taken while it ran'
    assert log.read_text().split() == ['begun', 'saved']
    with accuracy.held(cell) as lock:
        assert lock is not None
        with pytest.raises(accuracy.Failed, match='exit code 3, .*: last words'):
            accuracy.call([sys.executable, '-c', "print('last words'); raise SystemExit(3)"], log, math.inf, lock,
                          lambda: notes.append(1))


@pytest.mark.parametrize('more, words', [
    (('--held-back', '0.01'), 'leaves one part without images of left'),
    (('--model', 'focus_resnet18'), 'name of a plain model'),
    (('--model', 'resnet'), '--model is resnet'),
    (('--weights', 'none.pth'), '--weights is none.pth, which is no file'),
    (('--tier', '3', '--methods', 'mean_map'), 'leave no cell'),
    (('--objects', '{data}'), 'the same name'),
    (('--scenes', '{data}/val'), 'train'),
    (('--', '--epochs', '3'), '--epochs after -- is set by this script'),
    (('--', '--seed=3'), '--seed=3 after -- is set by this script'),
])
def test_bad_input(bench, image_folder, more, words):
    code, printed = bench(*(word.format(data=image_folder) for word in more))
    assert code == 2 and printed.err.count('\n') == 1 and words in printed.err, printed.err


@pytest.mark.parametrize('argv, words', [
    ([], '--scenes DIR'), (['--scenes', 'x', '--img-size', '32'], 'give 33 or more'),
    (['--scenes', 'x', '--held-back', '1'], 'between 0 and 1'), (['--scenes', 'x', '--seeds', '0'], 'give 1 or more'),
])
def test_bad_flags(argv, words, capsys):
    with pytest.raises(SystemExit) as e:
        accuracy.parse_args(argv)
    assert e.value.code == 2 and words in capsys.readouterr().err


def test_no_results(tmp_path, capsys):
    assert accuracy.main(['--report', '--results', str(tmp_path)]) == 2
    assert 'There are no results' in capsys.readouterr().err


@pytest.mark.slow
def test_the_matrix(image_folder):
    """What the claims need is run, on the same settings, and every flag is one of the script's."""
    import train_focus
    from timm_focus.training import parse_args
    for claim in CLAIMS:
        needed = {method for weights, _, _ in claim.contrasts for method in weights}
        assert any(needed <= set(accuracy_report.asked(claim.kind, block.model)) for block in MATRIX), claim.text
        assert all(math.isclose(sum(weights.values()), 0, abs_tol=1e-9) for weights, _, _ in claim.contrasts)
    for name, method in METHODS.items():
        args, _ = parse_args(train_focus.parser, [str(image_folder), *method.flags.format(TINY).split()])
        if name != 'side':  # it has the head, and no second pass
            assert args.method in (('none',) if method.passes == 1 else ('focus', 'masksub'))
    assert len({(block.epochs, block.img_size, block.flags) for block in MATRIX if block.kind == 'scenes'
                and block.model == MATRIX[0].model}) == 1
    args = accuracy.parse_args(['--scenes', str(image_folder), '--weights', __file__])
    cells = accuracy.plan(args)
    assert [cell.block.tier for cell in cells] == sorted(cell.block.tier for cell in cells)
    assert sum(cell.block.tier == 1 for cell in cells) == 21 and len({cell.results for cell in cells}) == len(cells)
    assert [cell.seed for cell in cells if cell.block.tier == 1] == [0] * 7 + [1] * 7 + [2] * 7
    assert all(('--pretrained-path' in cell.start) == cell.block.weights for cell in cells)
    tuned = accuracy.plan(accuracy.parse_args(['--scenes', str(image_folder), '--weights', __file__, '--model', TINY]))
    assert len(tuned) == 11 and all('--pretrained-path' in cell.start and cell.block.model == TINY for cell in tuned)


# claims

MEASURED = ('top1', 'coverage', 'lost_25')


def made_up(means, seeds=3, spread=0.3, n=4000, kind='scenes', data='places', model=MATRIX[0].model):
    """Rows and images of methods with about these means, in percent."""
    rng = np.random.default_rng(3)
    difficulty = rng.permutation(n) / n * 100
    rows, images = [], {}
    for method, mean in means.items():
        for seed in range(seeds):
            shifted = mean + spread * (seed - (seeds - 1) / 2)
            right = np.where(difficulty < shifted, 100., 0.)
            images[method, seed] = dict.fromkeys(MEASURED, right)
            rows.append({**dict.fromkeys(COLUMNS, ''), **dict(
                kind=kind, data=data, model=model, method=method, seed=str(seed)),
                **dict.fromkeys(MEASURED, str(right.mean()))})
    return rows, {(data, model): images}


def answers(*found):
    """Answers in the order of the claims."""
    rows, images = [], {}
    for more, other in found:
        rows += more
        images.update(other)
    judged = judge(rows, images)
    assert [row['claim'] for row in judged] == [claim.text for claim in CLAIMS]
    return [row['answer'] for row in judged]


SCENES = dict(plain=40, plain_2x=42.1, has=41, has_2x=44, focus=42, focus_half=41.9, focus_random=40, side=41,
              side_cpc=43, side_ipc=45)
OBJECTS = dict(plain=70, plain_2x=72, focus=70.1)


@pytest.mark.parametrize('scenes, objects, expected', [
    # epochs, compute, both longer, HaS, CAM, objects twice, coverage, erasing, IPC and CPC, half
    ({}, {}, 'yes undecided not_run no yes undecided yes yes no yes yes'),
    (dict(focus=40.1, focus_half=42), dict(focus=74),
     'undecided no not_run no undecided no no undecided undecided yes undecided'),
    (dict(focus=46, focus_half=42), dict(focus=67), 'yes yes not_run yes yes yes yes yes no yes no'),
    (dict(focus=38, side_cpc=41.1), {}, 'no no not_run no no undecided yes no yes undecided no'),
])
def test_claims(scenes, objects, expected):
    found = answers(made_up({**SCENES, **scenes}), made_up({**OBJECTS, **objects}, kind='objects', data='things'))
    assert ' '.join(answer.replace(' ', '_') for answer in found) == expected


def test_figure(tmp_path):
    rows, _ = made_up(SCENES)
    for row in rows:
        row.update(epochs='20', passes=str(METHODS[row['method']].passes))
    accuracy_report.draw(rows, tmp_path / 'a.png')
    assert (tmp_path / 'a.png').stat().st_size > 10_000


def test_claims_of_an_incomplete_matrix():
    complete = answers(made_up(SCENES))
    assert complete[5:7] == ['not run', 'not run'], 'there are no objects'
    rows, images = made_up(SCENES)
    fewer = [row for row in rows if (row['method'], row['seed']) != ('focus', '2')]
    del images['places', MATRIX[0].model]['focus', 2]
    found = answers((fewer, images))
    assert found[0] == 'yes, incomplete' and found[10].endswith(', incomplete') and found[9] == 'yes'
    assert answers(([row for row in rows if row['method'] != 'has_2x'], images))[3] == 'not run'
    assert answers((rows, {}))[0] == 'undecided', 'without the images'
    text = accuracy_report._table(judge(fewer, images))
    assert re.search(r'focus - plain = \+1\.8\d', text) and 'plain 3, focus 2' in text


@pytest.mark.parametrize('image, base, words', [('a/2.jpg', 'x', 'other images'), ('a/1.jpg', 'y', 'other settings')])
def test_what_is_not_alike_is_not_compared(tmp_path, image, base, words):
    for method, image, base in (('focus', image, base), ('plain', 'a/1.jpg', 'x')):
        folder = tmp_path / 'x' / f'm-{method}-0'
        folder.mkdir(parents=True)
        for name, content in (('cell', {**dict.fromkeys(COLUMNS, 'x'), 'base': base}),
                              ('area', [dict(map_size=[4, 4])]), ('validate', [dict(map_size=[2, 2])])):
            (folder / f'{name}.json').write_text(json.dumps(content))
        columns = ['correct', 'correct_top5', 'coverage', *(f'correct_{kind}_{share}' for kind in ('cam', 'random')
                                                            for share in (10, 25, 50))]
        table = f'image,label,prediction,{",".join(columns)}\n{image},a,a{",1" * len(columns)}\n'
        (folder / 'images.csv.gz').write_bytes(gzip.compress(table.encode()))
    with pytest.raises(ValueError, match=words):
        accuracy_report.load(tmp_path)


def test_machines(tmp_path):
    rows = [dict(data='x', model='m', method=method, seed='0') for method in ('plain', 'focus', 'has')]
    for row, torch in zip(rows, ('2.5', '2.6', '2.5')):
        folder = tmp_path / f'x/m-{row["method"]}-0'
        folder.mkdir(parents=True)
        (folder / 'cell.json').write_text(json.dumps(dict(processor='P', cores=2, torch=torch, timm='1.0')))
    assert accuracy_report.machines(tmp_path, rows[::2]) == 'P, 2 cores, torch 2.5, timm 1.0'
    assert accuracy_report.machines(tmp_path, rows) == (
        'P, 2 cores, torch 2.5, timm 1.0; P, 2 cores, torch 2.6, timm 1.0: focus-0')


# what is published

@pytest.mark.slow
def test_the_report_is_that_of_the_results(tmp_path):
    shutil.copytree(accuracy.RESULTS, tmp_path, dirs_exist_ok=True)
    accuracy_report.report(tmp_path)
    for name in ('README.md', 'cells.csv'):
        assert (tmp_path / name).read_text() == (accuracy.RESULTS / name).read_text(), name


def test_the_page_of_results_has_them():
    section = (ROOT / 'docs/results.md').read_text().split('## Does it work?')[1].split('\n## ')[0]
    rows = re.findall(r'^\| .*\(`(\w+)`\) \| (\d+) \| (\d+) \| ([\d.]+).* \|$', section, re.M)
    with open(accuracy.RESULTS / 'cells.csv', newline='') as f:
        cells = [row for row in csv.DictReader(f) if row['model'] == MATRIX[0].model and row['kind'] == 'scenes']
    done = {method: [cell for cell in cells if cell['method'] == method] for method in MATRIX[0].methods}
    assert [row[0] for row in rows] == [method for method, found in done.items() if found]
    for method, seeds, passes, top1 in rows:
        found = done[method]
        assert int(seeds) == len(found) and int(passes) == float(found[0]['epochs']) * float(found[0]['passes'])
        assert float(top1) == pytest.approx(statistics.fmean(float(cell['top1']) for cell in found), abs=0.051)
    changed = {method.flags.partition('focus_{}')[2].strip(): name for name, method in METHODS.items()
               if method.times == 1 and 'focus_{}' in method.flags}
    table = section.split('| | flags | top-1, % |')[1].split('\n\n')[0]
    rows = re.findall(r'^\| .* \| (`.*`)? ?\| ([\d.]+) \|$', table, re.M)
    first = {cell['method']: float(cell['top1']) for cell in cells if cell['seed'] == '0'}
    shown = {changed[flags.strip('`')]: float(top1) for flags, top1 in rows}
    assert set(shown) == {'focus', *(method for method in MATRIX[1].methods if method in first)}
    assert shown == {method: pytest.approx(first[method], abs=0.051) for method in shown}


def test_curves(tmp_path):
    """Of real cells: those of 10 and of 20 epochs, as they would be in two folders of results."""
    for part, methods in (('10', ('plain_2x', 'focus')), ('20', ('plain_4x', 'focus_2x'))):
        for method in methods:
            cell = f'miniplaces40/resnet10t-{method}-0'
            shutil.copytree(accuracy.RESULTS / cell, tmp_path / part / cell)
    assert accuracy.main(['--curves', str(tmp_path)]) == 0
    lines = (tmp_path / 'README.md').read_text().splitlines()
    found = {line.split('|')[1].strip(): line for line in lines if line.startswith('| ')}
    assert found['method'] == '| method | 20 passes | 40 passes |'
    assert found['`plain_2x`'] == '| `plain_2x` | 43.4 |  |' and found['`focus_2x`'] == '| `focus_2x` |  | 45.5 |'
    rows, images = accuracy_report.load(tmp_path / '10')
    difference = contrast(rows, images['miniplaces40', 'resnet10t'], {'focus': 1, 'plain_2x': -1}, 'top1')
    assert -6 < difference.value < -3
    assert f'{difference.value:+.1f} ({difference.images})' in found['`focus`']
    assert (tmp_path / 'curves.png').stat().st_size > 10_000


def test_curves_of_nothing(tmp_path, capsys):
    assert accuracy.main(['--curves', str(tmp_path)]) == 2
    assert 'run some cells with --results first' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        accuracy.main(['--curves', f'{tmp_path}/none'])
    assert 'which is no folder' in capsys.readouterr().err


@pytest.mark.slow
def test_the_readme_compares_at_equal_compute():
    table = (ROOT / 'README.md').read_text().split('| focus - plain, points (95 % over seeds) |')[1].split('\n\n')[0]
    lines = re.findall(r'^\| (?:(\w+), `(\S+)` .*|the same,.*) \| (\d+) \| (\d+) \| ([\d.]+) \| '
                       r'([-+][\d.]+) \(([-\d.]+) to ([-\d.]+)\)(, one seed)? \|$', table, re.M)
    assert len(lines) == table.strip().count('\n') > 3
    rows, images = accuracy_report.load(accuracy.RESULTS)
    groups = accuracy_report.groups(rows)
    for kind, model, *epochs, loss, gain, low, high, one_seed in lines:
        if model:
            where = next(k for k in groups if (k[0], k[2]) == (kind, model))
        plain, focus = ([row for row in groups[where] if row['method'] in names and int(row['epochs']) == int(n)]
                        for names, n in zip((('plain', 'plain_2x', 'plain_4x'), ('focus', 'focus_2x')), epochs))
        assert int(epochs[0]) == 2 * int(epochs[1]) and (len(plain) == len(focus) == 1) == bool(one_seed)
        found = contrast(groups[where], images[where[1:]], {focus[0]['method']: 1, plain[0]['method']: -1}, 'top1')
        assert found.value == pytest.approx(float(gain), abs=0.051)
        assert found.seeds == pytest.approx((float(low), float(high)), abs=0.051)
        losses = []
        for row in plain:
            folder = accuracy.RESULTS / where[1] / f'{row["model"]}-{row["method"]}-{row["seed"]}'
            epochs_run = list(csv.DictReader((folder / 'summary.csv').read_text().splitlines()))
            losses.append(float(epochs_run[-1]['train_loss']))
        assert statistics.fmean(losses) == pytest.approx(float(loss), abs=0.51 * 10 ** -len(loss.partition('.')[2]))
