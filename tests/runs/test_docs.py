"""The commands, code and tables of README and of docs/, as printed."""
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ROOT

import timm_focus
import train_focus
from timm_focus.commands.main import main as timm_focus_command
from timm_focus.data.places365 import CATEGORIES, SIZES, VERSIONS
from timm_focus.training import parse_args

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
TEXT = '\n'.join(page.read_text() for page in PAGES)
SMALL = ['--img-size', '32', '-b', '4', '--epochs', '1', '-j', '0', '--device', 'cpu', '--sheet-images', '2']
SMALLER = {'resnet18': 'test_resnet', 'focus_resnet18': 'focus_test_resnet'}


def blocks(language):
    return re.findall(rf'^```{language}\n(.*?)^```', TEXT, re.M | re.S)


def commands():
    lines = (line for block in blocks('bash') for line in block.replace('\\\n', ' ').splitlines()
             if line and not line.startswith('#'))
    return list(dict.fromkeys(lines))  # README's are in docs, too


def script_arguments(command):
    """Arguments of the training script in a command, None if it does not start it."""
    words = shlex.split(command.removesuffix(' &'))
    for name in ('train_focus.py', 'train_focus'):
        if name in words:
            return words[words.index(name) + 1:]
    return None


TRAINING = [c for c in commands() if script_arguments(c)]


def test_the_two_lines():
    assert commands()[:2] == ['pip install -e . && python train_focus.py', "pip install -e '.[test]' && pytest"]


@pytest.mark.parametrize('command', TRAINING)
def test_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)  # recipes are named from there
    parse_args(train_focus.parser, script_arguments(command))


NEEDING_MORE = ('torchrun', '--pretrained', '--initial-checkpoint', '--train-list', '--places-version', '--config',
                '--push-to-hub', '--dataset hfds/')


@pytest.mark.slow('acol')
@pytest.mark.long('--torchcompile')  # inductor takes minutes
@pytest.mark.parametrize('command', [c for c in TRAINING if not any(word in c for word in NEEDING_MORE)])
def test_command_trains(command, image_folder, tmp_path, monkeypatch):
    if '--torchcompile' in command and not shutil.which('g++'):
        pytest.skip('inductor needs a C++ compiler, and there is none')
    replaced = {'DIR': str(image_folder), '1000': '6', **SMALLER}
    arguments = [replaced.get(a, a) for a in script_arguments(command)]
    epochs = ['--epochs', '2'] if '--scheme auto' in command else []  # it looks at one before it changes
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *arguments, *SMALL, *epochs])
    monkeypatch.chdir(tmp_path)
    train_focus.main()
    assert bool(list(tmp_path.glob('output/train/*/model_best.pth.tar'))) == ('--dry-run' not in command)


@pytest.mark.slow
def test_starting_from_a_plain_run(image_folder, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    command = next(c for c in TRAINING if 'initial-checkpoint' in c)
    for arguments in (['DIR', '--model', 'resnet18', '--experiment', 'plain'], script_arguments(command)):
        arguments = [str(image_folder) if a == 'DIR' else a for a in arguments]
        monkeypatch.setattr(sys, 'argv', ['train_focus.py', *arguments, *SMALL])
        train_focus.main()
    assert 'it has no heads of focus training, and new ones are trained' in caplog.text


@pytest.mark.slow
def test_a_run_on_the_images_of_another(image_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    commands = [next(c for c in TRAINING if flag in c) for flag in ('--images-per-class', '--train-list')]
    for command, more in zip(commands, (['--experiment', 'scenes'], ['--experiment', 'again'])):
        arguments = [{'DIR': str(image_folder), '1000': '6'}.get(a, a) for a in script_arguments(command)]
        monkeypatch.setattr(sys, 'argv', ['train_focus.py', *arguments, *SMALL, *more])
        train_focus.main()
    lists = [(tmp_path / f'output/train/{name}/train.txt').read_text() for name in ('scenes', 'again')]
    assert lists[0] == lists[1] and lists[0].count('\n') == 12


@pytest.mark.slow
def test_a_choice_among_versions(image_folder, tmp_path, monkeypatch, capsys):
    """A copy with both versions of both sizes, of which the command takes one."""
    picture = image_folder / 'train/left/0.jpg'
    root = tmp_path / 'places'
    lists = {version: [] for version in VERSIONS}
    val = []
    for k, category in enumerate(CATEGORIES):
        for version in VERSIONS:
            file = f'{category[0]}/{category}/{version}.jpg'
            lists[version].append(f'/{file} {k}\n')
            for size in SIZES:
                path = root / f'data_{size}_{version}' / file
                path.parent.mkdir(parents=True)
                path.hardlink_to(picture)
        val.append(f'{k}.jpg {k}\n')
        for size in SIZES:
            path = root / f'val_{size}/{k}.jpg'
            path.parent.mkdir(exist_ok=True)
            path.hardlink_to(picture)
    for version in VERSIONS:
        (root / f'places365_train_{version}.txt').write_text(''.join(lists[version]))
    (root / 'places365_val.txt').write_text(''.join(val))
    command = next(c for c in TRAINING if '--places-version' in c)
    arguments = [str(root) if a == 'DIR' else a for a in script_arguments(command)]
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *arguments, *SMALL, '-b', '128', '--dry-run'])
    train_focus.main()
    err = capsys.readouterr().err
    assert re.search('Training images: Places365 challenge, large images.*train data_large_challenge', err), err


def timm_focus_commands():
    return [shlex.split(c)[1:] for c in commands() if c.startswith('timm-focus ')]


def analysis_commands():
    looking = ('area', 'explain', 'predict', 'report', 'validate', 'rf', 'models')
    return [w for w in timm_focus_commands() if w[0] in looking]


@pytest.mark.slow
def test_what_a_network_looks_at(image_folder, tmp_path, monkeypatch, capsys):
    """The commands of that section, those that need no download; runs are a plain and a focus model's."""
    monkeypatch.chdir(tmp_path)
    for model, name in (('resnet18', 'plain'), ('focus_resnet18', 'scenes')):
        monkeypatch.setattr(sys, 'argv', [
            'train_focus.py', str(image_folder), '--model', model, '--experiment', name, *SMALL, '--img-size', '64'])
        train_focus.main()
    words = analysis_commands()
    area, by_dataset = (w for w in words if w[0] == 'area')
    explain, explain_pdf, explain_one = sorted((w for w in words if w[0] == 'explain'), key=lambda w: (w[1], len(w)))
    validate, rf, models = (next(w for w in words if w[0] == name) for name in ('validate', 'rf', 'models'))
    capsys.readouterr()
    timm_focus_command([str(image_folder) if a == 'DIR' else a for a in area] + ['-j', '0'])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:2]] == [
        'resnet18@plain', 'focus_resnet18@scenes']
    (tmp_path / 'OTHER').mkdir()
    shutil.copy(image_folder / 'train/left/0.jpg', tmp_path / 'OTHER')
    offline = [{'DIR': str(image_folder), '--pretrained': '--random-weights'}.get(a, a) for a in by_dataset]
    timm_focus_command([*offline, '-j', '0', '--output', 'apart', '--img-size', '64'])
    assert len(capsys.readouterr().out.splitlines()) == 5
    for command in (explain, explain_pdf):
        timm_focus_command([str(image_folder / 'val/left') if a == 'DIR' else a for a in command] + ['-j', '0'])
    assert len(list((tmp_path / 'explained').glob('*.npy'))) == 5
    assert all((tmp_path / f'explained/sheet.{ending}').exists() for ending in ('png', 'pdf'))
    shutil.copy(image_folder / 'train/left/0.jpg', tmp_path / 'photo.jpg')
    offline = [{'--pretrained': '--random-weights'}.get(a, a) for a in explain_one]
    timm_focus_command([*offline, '-j', '0', '--output', 'one'])
    assert 'English springer' in (tmp_path / 'one/explained.json').read_text()
    capsys.readouterr()
    folder = str(image_folder)
    report, report_weights, predict, predict_all = (w for w in words if w[0] in ('report', 'predict'))
    timm_focus_command([folder if a == 'DIR' else a for a in report] + ['-j', '0'])
    assert 'paired over 10 images' in (tmp_path / 'report/index.html').read_text()
    shutil.copy(tmp_path / 'output/train/plain/model_best.pth.tar', 'weights.pth')
    (tmp_path / 'names.txt').write_text('left\nright\n')
    timm_focus_command([folder if a == 'DIR' else a for a in report_weights] + ['-j', '0', '--gallery', '0'])
    for command in (predict, predict_all):
        timm_focus_command([folder if a == 'DIR' else a for a in command] + ['-j', '0'])
    assert len((tmp_path / 'answers.csv').read_text().splitlines()) == 11
    capsys.readouterr()
    timm_focus_command([folder if a == 'DIR' else a for a in validate] + ['-j', '0', '--img-size', '64'])
    assert len(capsys.readouterr().out.splitlines()) == 3 and (tmp_path / 'accuracy/images.csv').exists()
    timm_focus_command(rf)
    fields = [line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]]
    assert fields[:5] == ['527', '435', '899', '427', '2,071'] and len(fields) == 6
    timm_focus_command([{'resnet*': 'resnet1[08]*'}.get(a, a) for a in models])
    assert 'resnet18,11363757,' in capsys.readouterr().out
    namespace = dict(timm_focus=timm_focus, model=timm.create_model('resnet18'), images=torch.randn(2, 3, 128, 128))
    exec(next(b for b in blocks('python') if 'focus_area' in b), namespace)
    assert namespace['field'].size == 435 and namespace['area'].coverage.shape == (2,)


def test_a_data_set_for_ones_own_script(image_folder):
    namespace = dict(DIR=str(image_folder))
    exec(next(b for b in blocks('python') if 'create_dataset' in b), namespace)
    x, y = next(iter(namespace['loader']))
    assert x.shape == (4, 3, 224, 224) and len(namespace['dataset']) == 10


@pytest.mark.slow
def test_two_processes_on_a_cpu(image_folder, tmp_path):
    command = next(c for c in TRAINING if c.startswith('torchrun') and '--device cpu' in c)
    words = [str(image_folder) if w == 'DIR' else w for w in shlex.split(command)[1:]]
    process = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', *words, *SMALL], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.glob('output/train/*/model_best.pth.tar'))


@pytest.mark.slow
@pytest.mark.parametrize('more, least', [
    (['--dataset', 'synthetic', '--epochs', '3'], 30), pytest.param([], 60, marks=pytest.mark.long)])
def test_without_arguments(tmp_path, monkeypatch, more, least):
    """The demo itself, and in short: far above chance, which is 12.5 %, with its pictures."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    process = subprocess.run(
        [sys.executable, ROOT / 'train_focus.py', *more], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    best = float(re.search(r'Best top1: ([\d.]+)', process.stdout + process.stderr).group(1))
    assert best > least
    assert list(tmp_path.glob('output/train/*/focus.png'))


def test_the_step_in_readme(photos):
    code = next(b for b in blocks('python') if 'FocusLoss' in b)
    namespace = dict(images=photos(2), labels=torch.tensor([0, 39]))
    exec(code, namespace)
    assert namespace['loss'].requires_grad and namespace['plain'](photos(1)).shape == (1, 40)


def test_loop_of_ones_own(photos):
    code = next(b for b in blocks('python') if 'FocusLoss' in b and 'optimizer' in b and 'fully_shard' not in b)
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


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text().splitlines()) <= 150


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in re.findall(r'\]\(([^)#]+)(?:#[^)]*)?\)', page.read_text()):
        assert '://' in target or (page.parent / target).exists(), target


def test_the_table_of_differences_names_real_flags_and_defaults():
    table = TEXT.split('| flag | here | timm | why |')[1].split('\n\n')[0]
    actions = {option: a for a in train_focus.parser._actions for option in a.option_strings}
    named = [flag for row in table.splitlines() if row.startswith('| `')
             for flag in re.findall(r'`(--[\w-]+)`', row.split('|')[1])]
    assert len(named) > 15 and set(named) <= set(actions)
    assert actions['--weight-decay'].default == 2e-4 and actions['--epochs'].default == 40
    assert actions['--batch-size'].default == 256 and actions['--opt'].default == 'momentum'


def test_prose_names_real_flags():
    known = train_focus.parser._option_string_actions
    for page in (*PAGES, *(ROOT / 'benchmarks').rglob('*.md'), *(ROOT / 'timm_focus').rglob('*.md')):
        named = set(re.findall(r'--(?:focus|adl|acol|has)[a-z-]*', page.read_text()))
        assert not named - known.keys(), page
