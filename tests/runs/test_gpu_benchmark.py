"""benchmarks/gpu.py: tried whole on the CPU, so that on the day of a GPU nothing fails for a typing mistake."""
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import timm
import torch

from conftest import ENVIRONMENT, ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))
import gpu

SCRIPT = str(ROOT / 'benchmarks/gpu.py')


def run(tmp_path, *argv):
    """As a user starts it where nothing of the project is installed."""
    environment = {k: v for k, v in ENVIRONMENT.items() if k != 'PYTHONPATH'}
    return subprocess.run(
        [sys.executable, SCRIPT, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True)


@pytest.fixture
def packed(image_folder, tmp_path, capsys):
    """The images in one file."""
    assert gpu.main(['--scenes', str(image_folder), '--pack', str(tmp_path / 'scenes.tar')]) == 0
    assert '100% of the images' in capsys.readouterr().out
    return tmp_path / 'scenes.tar'


def test_images_travel_in_one_file(image_folder, packed, tmp_path):
    folder = gpu.unpack(packed, tmp_path)
    assert folder.name == image_folder.name
    for path in image_folder.rglob('*.jpg'):
        assert (folder / path.relative_to(image_folder)).read_bytes() == path.read_bytes()
    mib = 0.6 * packed.stat().st_size / 2 ** 20
    assert gpu.main(['--scenes', str(image_folder), '--pack', str(tmp_path / 'part.tar'), '--pack-mib', f'{mib}']) == 0
    with tarfile.open(tmp_path / 'part.tar') as tar:
        names = [Path(name).parent.name for name in tar.getnames()]
    assert (tmp_path / 'part.tar').stat().st_size <= mib * 2 ** 20 and len(names) < 34
    assert len({names.count(label) for label in ('left', 'right')}) == 1 and len(names) >= 8


def test_a_trial_reads_a_few_images_of_each_class(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, 'FEW', 6)
    folder = gpu.few(image_folder, tmp_path)
    paths = [path.relative_to(folder) for path in sorted(folder.rglob('*.jpg'))]
    assert [p.as_posix() for p in paths if p.name == '0.jpg'] == [
        f'{split}/{label}/0.jpg' for split in ('train', 'val') for label in ('left', 'right')]
    assert len(paths) == 12 and all((folder / p).read_bytes() == (image_folder / p).read_bytes() for p in paths)
    monkeypatch.setattr(gpu, 'FEW', 1)
    assert len(list(gpu.few(image_folder, tmp_path / 'one').rglob('*.jpg'))) == 4


@pytest.mark.parametrize('argv, words', [
    (['--device', 'cpu', '--scenes', 'nowhere'], 'there is no nowhere'),
    (['--scenes', '.', '--pack', 'x.tar'], 'has no train and val')])
def test_a_mistake_is_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert gpu.main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert '--device cpu tries everything in tiny sizes' in capsys.readouterr().err


def test_what_does_not_fit_is_left_out_with_a_sentence(tmp_path, capsys):
    assert gpu.main(['--device', 'cpu', '--budget', '1', '--output', str(tmp_path / 'gpu')]) == 0
    found = json.loads((tmp_path / 'gpu/report.json').read_text())['items']
    assert [item['name'] for item in found] == [item.name for item in gpu.ITEMS]
    assert all(item['state'] == 'skipped' and 'are left, and it takes' in item['why'] for item in found)
    assert (tmp_path / 'gpu/report.md').read_text() in capsys.readouterr().out


@pytest.mark.slow
def test_a_limit_ends_a_process_and_keeps_the_report(tmp_path, monkeypatch, capsys):
    """An item that takes too long, and one that fails: the next one is run all the same."""
    def slow(bench, seconds):
        code, said = bench.call(2, '-c', 'import time; print("begun", flush=True); time.sleep(100)')
        return gpu.state_of(code, said), gpu.last_line(said), [dict(a=1.)]

    items = [gpu.Item('slow', 'Slow', 0, 9, slow), gpu.Item('wrong', 'Wrong', 0, 9, lambda *_: 1 / 0),
             gpu.Item('scenes', 'Scenes', 0, 9, gpu.loop)]
    monkeypatch.setattr(gpu, 'ITEMS', tuple(items))
    assert gpu.main(['--device', 'cpu', '--output', str(tmp_path / 'gpu')]) == 1
    found = json.loads((tmp_path / 'gpu/report.json').read_text())['items']
    assert [(item['state'], item['why']) for item in found] == [
        ('stopped at its limit', 'begun'), ('failed', 'ZeroDivisionError: division by zero'),
        ('skipped', 'it needs images: give --scenes.')]
    assert 'begun' in (tmp_path / 'gpu/log.txt').read_text() and found[0]['seconds'] < 30


@pytest.mark.slow
def test_the_commands_for_a_gpu_are_understood(image_folder, tmp_path, monkeypatch):
    """Each script reads what it would be given there; only the CPU's sizes are run anywhere else."""
    import accuracy
    import loop_speed
    import step_cost
    import train_focus
    commands = []
    monkeypatch.setattr(gpu.Bench, 'call', lambda bench, seconds, *command: (commands.append(command) or 0, ''))
    args = gpu.parse_args(['--scenes', str(image_folder), '--output', str(tmp_path)])
    bench = gpu.Bench(args, tmp_path)
    for item in gpu.ITEMS:
        item.run(bench, item.most)
    assert len(commands) == len(gpu.ITEMS)
    for script, *words in commands:
        monkeypatch.setattr(sys, 'argv', [script, *words])
        name = Path(script).stem
        if name == 'step_cost':
            read = step_cost.parse_args()
            assert all(timm.is_model(model) for model in read.models)
        elif name == 'loop_speed':
            read = loop_speed.parse_args()
            assert timm.is_model(read.model)
        elif name == 'accuracy':
            read = accuracy.parse_args()
            assert len(accuracy.plan(read)) > 20
        elif name == 'train_focus':
            read, _ = train_focus.parse_args(train_focus.parser, words)
        else:
            assert script == '-m' and words[0] == 'pytest' and Path(words[-1]).exists()
            continue
        assert read.device == 'cuda', script
    assert {Path(script).stem for script, *_ in commands} == {
        '-m', 'train_focus', 'step_cost', 'loop_speed', 'accuracy'}


CUT_OFF = """
import os, sys
sys.path.insert(0, sys.argv.pop(1))
import gpu
def killed(bench, seconds):
    os.kill(os.getpid(), 9)
gpu.ITEMS = (gpu.Item('first', 'First', 0, 9, lambda *_: ('done', '', [dict(a=1)])),
             gpu.Item('second', 'Second', 0, 9, killed), gpu.Item('third', 'Third', 0, 9, gpu.loop))
gpu.main()
"""


def states(folder):
    found = json.loads((folder / 'report.json').read_text())['items']
    text = (folder / 'report.md').read_text()
    assert all(f'| {item["title"]} | {item["state"]} |' in text for item in found)
    return [(item['state'], item['rows']) for item in found]


@pytest.mark.slow
def test_a_run_that_is_killed_leaves_what_it_had_and_says_what_it_lacks(fork, tmp_path):
    done = fork(CUT_OFF, ROOT / 'benchmarks', '--device', 'cpu', '--output', tmp_path / 'gpu')
    assert done.codes == [-9], done.stderr
    assert states(tmp_path / 'gpu') == [('done', [dict(a=1)]), ('under way', []), ('not begun', [])]


def test_a_run_that_is_interrupted_keeps_what_the_item_had(tmp_path, monkeypatch, capsys):
    def halfway(bench, seconds):
        code, said = bench.call(60, '-c', 'import os, time; os.kill(os.getppid(), 2); time.sleep(99)')
        return gpu.state_of(code, said), gpu.last_line(said), [dict(a=1)]

    items = [gpu.Item('halfway', 'Halfway', 0, 9, halfway), gpu.Item('next', 'Next', 0, 9, gpu.loop)]
    monkeypatch.setattr(gpu, 'ITEMS', tuple(items))
    assert gpu.main(['--device', 'cpu', '--output', str(tmp_path / 'gpu')]) == 130
    assert states(tmp_path / 'gpu') == [('cut off', [dict(a=1)]), ('not begun', [])]
    assert 'Stopped' in capsys.readouterr().err


@pytest.mark.long
def test_the_whole_of_it_on_the_cpu(packed, tmp_path):
    done = run(tmp_path, '--device', 'cpu', '--budget', '1800', '--scenes', str(packed))  # 300 on cores of its own
    report = json.loads((tmp_path / 'gpu/report.json').read_text())
    items = {item['name']: item for item in report['items']}
    assert done.returncode == 0 and list(items) == [item.name for item in gpu.ITEMS], done.stdout + done.stderr
    for name, item in items.items():
        expected = 'skipped' if name == 'step-compiled' else 'done'
        assert item['state'] == expected, (name, item, (tmp_path / 'gpu/log.txt').read_text()[-3000:])
        assert (expected == 'done') == bool(item['rows'])
    tests = items['tests']['rows']
    assert {row['result'] for row in tests} <= {'passed', 'skipped'} and len(tests) > 20
    for name in ('train', 'train-plain'):
        row, = items[name]['rows']
        assert row['img/s'] > 0 and 0 <= row['eval_top1'] <= 100 and row['loaded'].startswith('loaded ResNet ')
    assert [row['step'] for row in items['step']['rows']] == ['plain', 'forward', 'focus']
    assert all(row['over plain'] > 0 for row in items['loop']['rows'] if 'over plain' in row)
    assert {row['run'] for row in items['loop']['rows']} == {'bare loop', 'one process'}
    assert items['accuracy']['rows'][0]['method'] == 'focus'
    with tarfile.open(tmp_path / 'gpu/accuracy.tar.gz') as tar:
        assert any(name.endswith('cell.json') for name in tar.getnames())
    text = (tmp_path / 'gpu/report.md').read_text()
    assert '# A trial on the CPU' in text and all(item.title in text for item in gpu.ITEMS)
    assert len(list((tmp_path / 'gpu').iterdir())) == 4 and str(tmp_path) not in text
