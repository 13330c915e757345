"""README's commands, code and tables, as printed."""
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import train_focus
from timm_focus.training import parse_args

README = (ROOT / 'README.md').read_text()
SMALL = ['--img-size', '32', '-b', '4', '--epochs', '1', '-j', '0', '--device', 'cpu']


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```', README, re.M | re.S)


def commands():
    return [line for block in blocks('bash') for line in block.splitlines() if line and not line.startswith('#')]


def script_arguments(command):
    """Arguments of the training script in a command, None if it does not start it."""
    words = shlex.split(command)
    for name in ('train_focus.py', 'train_focus'):
        if name in words:
            return words[words.index(name) + 1:]
    return None


TRAINING = [c for c in commands() if script_arguments(c)]


def test_the_two_lines():
    assert commands()[:2] == ['pip install -e . && python train_focus.py', "pip install -e '.[test]' && pytest"]


@pytest.mark.parametrize('command', TRAINING)
def test_command_is_understood(command):
    parse_args(train_focus.parser, script_arguments(command))


@pytest.mark.parametrize('command', [
    c for c in TRAINING if not c.startswith('torchrun') and '--pretrained' not in c and 'initial-checkpoint' not in c])
def test_command_trains(command, image_folder, tmp_path, monkeypatch):
    if '--torchcompile' in command and not shutil.which('g++'):
        pytest.skip('inductor needs a C++ compiler, and there is none')
    arguments = [str(image_folder) if a == 'DIR' else a for a in script_arguments(command)]
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *arguments, *SMALL])
    monkeypatch.chdir(tmp_path)
    train_focus.main()
    assert bool(list(tmp_path.glob('output/train/*/model_best.pth.tar'))) == ('--dry-run' not in command)


def test_starting_from_a_plain_run(image_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    command = next(c for c in TRAINING if 'initial-checkpoint' in c)
    for arguments in (['DIR', '--model', 'resnet18', '--experiment', 'plain'], script_arguments(command)):
        arguments = [str(image_folder) if a == 'DIR' else a for a in arguments]
        monkeypatch.setattr(sys, 'argv', ['train_focus.py', *arguments, *SMALL])
        train_focus.main()
    assert 'cam_head.conv.weight' in caplog.text and 'keep their values' in caplog.text


@pytest.mark.slow
def test_two_processes_on_a_cpu(image_folder, tmp_path):
    command = next(c for c in TRAINING if c.startswith('torchrun') and '--device cpu' in c)
    words = [str(image_folder) if w == 'DIR' else w for w in shlex.split(command)[1:]]
    process = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', *words, *SMALL], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.glob('output/train/*/model_best.pth.tar'))


@pytest.mark.slow
def test_without_arguments(tmp_path, monkeypatch):
    """The demo itself: far above chance, which is 12.5 %, with its pictures."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    process = subprocess.run([sys.executable, ROOT / 'train_focus.py'], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    best = float(re.search(r'Best top1: ([\d.]+)', process.stdout + process.stderr).group(1))
    assert best > 60
    assert list(tmp_path.glob('output/train/*/focus.png'))


def test_loop_of_ones_own(photos):
    code = next(b for b in blocks('python') if 'FocusLoss' in b)
    assert 10 <= len(code.strip().splitlines()) <= 13
    torch.set_num_threads(1)
    loader = [(photos(4), torch.tensor([0, 1, 2, 39])) for _ in range(6)]
    losses, namespace = [], {}

    def batches():
        for batch in loader:
            losses.append(namespace.get('losses'))
            yield batch

    namespace['loader'] = batches()
    exec(code, namespace)
    assert namespace['losses']['loss'] < losses[1]['loss'], 'the same batch, six times: it has to learn'
    assert set(namespace['losses']) == {'loss', 'main_loss', 'side_loss', 'erased_loss', 'consistency_loss'}
    assert namespace['plain'](photos(1)).shape == (1, 40)


def rows(heading):
    table = README.split(heading)[1].split('\n\n')[0]
    return [[cell.strip() for cell in row.split('|')[1:-1]] for row in table.splitlines() if row.startswith('| `')]


def test_tables_name_real_flags_and_defaults():
    actions = {option: a for a in train_focus.parser._actions for option in a.option_strings}
    focus = rows('| flag | default | meaning |')
    named = [flag for row in focus for flag in re.findall(r'`(--[\w-]+)`', row[0])]
    assert set(named) >= {o for o in actions if o.startswith('--focus-')}
    for row in focus:
        flags, defaults = re.findall(r'`(--[\w-]+)`', row[0]), row[1].split(', ')
        for flag, default in zip(flags, defaults):
            value = actions[flag].default
            if value not in (None, False):
                assert default.strip('`') == f'{value:g}' if isinstance(value, float) else str(value), flag
    for row in rows('| flag | here | timm | why |'):
        for flag in re.findall(r'`(--[\w-]+)`', row[0]):
            assert flag in actions, flag
    assert actions['--weight-decay'].default == 2e-4 and actions['--epochs'].default == 40
    assert actions['--batch-size'].default == 256 and actions['--opt'].default == 'momentum'
