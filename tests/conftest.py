import atexit
import csv
import json
import logging
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset, create_transform, resolve_data_config
from torch.nn import functional as F

os.environ['XDG_STATE_HOME'] = tempfile.mkdtemp(prefix='timm_focus_state_')  # where training notes the images of a run
atexit.register(shutil.rmtree, os.environ['XDG_STATE_HOME'], ignore_errors=True)
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # for the processes that tests start: waiting threads do not spin
if 'PYTEST_XDIST_WORKER' in os.environ:
    torch.set_num_threads(1)  # two workers on two cores
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption('--slow', action='store_true', help='run the checks that take seconds to minutes, too; of the '
                     'model classes of timm, a list of small ones')
    parser.addoption('--long', action='store_true', help='with --slow: run the checks that CI leaves out, too, which '
                     'take minutes or are much like another; of the model classes of timm, all that have a model of at '
                     'most 5 M parameters')
    parser.addoption('--all-models', action='store_true', help='with --slow and --long: of the models of timm, those '
                     'that are larger, too')
    parser.addoption('--rehearse', action='store_true', help='run the tests of a GPU on the CPU, as far as they go')


def pytest_configure(config):  # not in setup.cfg, which pytest does not read when an option names a folder elsewhere
    config.addinivalue_line('markers', 'slow(*words): takes seconds to minutes, runs with --slow; with words, '
                            'the cases whose names have one of them')
    config.addinivalue_line('markers', 'long(*words): takes minutes, or is much like another, runs with --long; not in '
                            'CI, whose time is limited; words as for slow')
    config.addinivalue_line('markers', 'cuda: needs a GPU')


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(config, items):
    for item in items:
        case = item.name.partition('[')[2]
        for marker in [*item.iter_markers('slow'), *item.iter_markers('long')]:
            if marker.args and not any(word in case for word in marker.args):
                item.own_markers.remove(marker)
        if item.get_closest_marker('slow') and not config.getoption('--slow'):
            item.add_marker(pytest.mark.skip(reason='takes a while: give --slow'))
        if item.get_closest_marker('long') and not config.getoption('--long'):
            item.add_marker(pytest.mark.skip(reason='takes minutes, or is much like another: give --slow --long'))
        if item.get_closest_marker('cuda') and not (torch.cuda.is_available() or config.getoption('--rehearse')):
            item.add_marker(pytest.mark.skip(reason='needs a GPU, and torch finds none'))


@pytest.fixture(autouse=True)
def _same_numbers_and_threads():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='session')
def photo() -> Image.Image:
    """A real photograph, of matplotlib's sample data."""
    from matplotlib import cbook
    with cbook.get_sample_data('grace_hopper.jpg') as f:
        return Image.open(f).convert('RGB')


@pytest.fixture
def photos(photo):
    """A batch of normalised crops of a real photograph: `photos(n, size, channels)` is `[n, channels, size, size]`."""
    def make(n=4, size=64, channels=3, dtype=torch.float32):
        from torchvision.transforms import functional as TF
        generator = torch.Generator().manual_seed(1)
        crops = []
        for _ in range(n):
            side = int(torch.randint(150, min(photo.size), (), generator=generator))
            top = int(torch.randint(0, photo.height - side + 1, (), generator=generator))
            left = int(torch.randint(0, photo.width - side + 1, (), generator=generator))
            crop = TF.pil_to_tensor(TF.resized_crop(photo, top, left, side, side, [size, size])).to(dtype) / 255
            crops.append((crop - 0.45) / 0.225)
        return torch.stack(crops)[:, [0, 1, 2][:channels] if channels <= 3 else [0] * channels]
    return make


@pytest.fixture
def image_folder(tmp_path, photo):
    """An ImageFolder tree of crops of a photograph: two classes, 12 training and 5 validation images each."""
    root = tmp_path / 'data'
    for split, n in (('train', 12), ('val', 5)):
        for label, (left, top) in {'left': (0, 0), 'right': (200, 250)}.items():
            folder = root / split / label
            folder.mkdir(parents=True)
            for i in range(n):
                photo.crop((left + 3 * i, top + 2 * i, left + 3 * i + 250, top + 2 * i + 250)).resize((48, 48)).save(
                    folder / f'{i}.jpg')
    return root


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback, which huggingface_hub speaks to, in this process and in those with `hub.environment`."""
    from huggingface_hub import constants
    from loopback_hub import TOKEN, Hub
    home = tmp_path / 'hf'
    with Hub() as hub:
        hub.environment = dict(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HOME=str(home), HF_HUB_DISABLE_XET='1')
        for name, value in dict(
                ENDPOINT=hub.url, HUGGINGFACE_CO_URL_TEMPLATE=hub.url + '/{repo_id}/resolve/{revision}/{filename}',
                HF_HUB_CACHE=str(home / 'hub'), HF_TOKEN_PATH=str(home / 'token'), HF_HUB_DISABLE_XET=True).items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv('HF_TOKEN', TOKEN)
        yield hub


# the training script

TINY = 'test_resnet'
TRAIN = 'import train_focus; train_focus.cli()'  # as code of a process
ENVIRONMENT = {**os.environ, 'OMP_NUM_THREADS': '1', 'OMP_WAIT_POLICY': 'PASSIVE', 'TQDM_DISABLE': '1'}


@pytest.fixture
def quietly():
    """One thread, and the log handlers that a run of the script sets up taken down again."""
    torch.set_num_threads(1)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


class Run(SimpleNamespace):
    """What a run left behind: `folder`, and `err`, its log."""

    @property
    def rows(self):
        with open(self.folder / 'summary.csv') as f:
            return list(csv.DictReader(f))

    def column(self, name):
        return [float(row[name]) for row in self.rows]

    def checkpoint(self, name='last'):
        return torch.load(self.folder / f'{name}.pth.tar', weights_only=False)

    def weights(self, name='last'):
        return self.checkpoint(name)['state_dict']


@pytest.fixture
def settings(image_folder, tmp_path):
    """`settings('--lr 1', experiment='a')` is the command line of a small run, the last mention of a flag counting."""
    def make(more='', experiment='run', model=f'focus_{TINY}', data=image_folder):
        return [str(data), '--model', model, *shlex.split(
            f'--img-size 32 -b 8 -j 0 --epochs 1 --lr 0.05 --device cpu --sheet-images 0 --output {tmp_path}/out '
            f'--experiment {experiment} {more}')]
    return make


@pytest.fixture
def train(settings, tmp_path, monkeypatch, capsys):
    """`train('--lr 1', experiment='a')` runs the script in this process, which saves importing torch each time."""
    def run(more='', experiment='run', **kwargs):
        monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings(more, experiment, **kwargs)])
        capsys.readouterr()
        logging.getLogger().handlers.clear()  # each run sets up its own
        import train_focus
        train_focus.main()
        return Run(folder=tmp_path / 'out' / experiment, err=capsys.readouterr().err)
    return run


@pytest.fixture(scope='session')
def _finished_run(tmp_path_factory, photo):
    folder = tmp_path_factory.mktemp('finished')
    for split in ('train', 'val'):
        for k, label in enumerate(('left', 'right')):
            (folder / 'data' / split / label).mkdir(parents=True)
            for i in range(4):
                photo.crop((200 * k + 9 * i, 9 * i, 200 * k + 250, 250)).save(folder / f'data/{split}/{label}/{i}.jpg')
    import train_focus
    root, argv = logging.getLogger(), sys.argv
    handlers, level = root.handlers[:], root.level
    sys.argv = ['train_focus.py', *shlex.split(
        f'{folder}/data --model focus_{TINY} --img-size 32 -b 8 -j 0 --epochs 1 --lr 0.05 --device cpu '
        f'--output {folder} --experiment run')]
    try:
        train_focus.main()
    finally:
        sys.argv, root.handlers[:], root.level = argv, handlers, level
    return folder / 'run'


@pytest.fixture
def finished_run(_finished_run, tmp_path):
    """Folder of a run, made once and copied for each test: best weights, settings, numbers."""
    folder = tmp_path / 'finished'
    folder.mkdir()
    for name in ('model_best.pth.tar', 'args.yaml', 'summary.csv'):
        shutil.copy2(_finished_run / name, folder)
    return folder


@pytest.fixture
def launch(tmp_path):
    """`launch(*argv)` runs a process of its own, python with these arguments, elsewhere than in the sources."""
    def run(*argv, environment=(), seconds=300):
        elsewhere = tmp_path / 'elsewhere'
        elsewhere.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, *argv], cwd=elsewhere, env={**ENVIRONMENT, **dict(environment)}, capture_output=True,
            text=True, timeout=seconds)
    return run


@pytest.fixture(scope='session')
def _fork_server():
    """Started with the first process that is asked for."""
    server = None

    def ask(**job):
        nonlocal server
        server = server or subprocess.Popen(
            [sys.executable, Path(__file__).parent / 'fork_server.py'], env={**ENVIRONMENT, 'PYTHONPATH': str(ROOT)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        server.stdin.write(json.dumps(job) + '\n')
        server.stdin.flush()
        return json.loads(server.stdout.readline())
    yield ask
    if server is not None:
        server.communicate()


@pytest.fixture
def fork(_fork_server, tmp_path):
    """`fork(code, *argv)` is `launch('-c', code, *argv)`, or several processes of a group, without the imports.

    What it gives has the processes' `pids`, each the leader of a session, and their exit `codes`.
    """
    def run(code, *argv, processes=1, environment=(), seconds=300):
        elsewhere = tmp_path / 'elsewhere'
        elsewhere.mkdir(exist_ok=True)
        log = Path(tempfile.mkdtemp(dir=tmp_path)) / 'log'
        done = SimpleNamespace(**_fork_server(
            code=code, argv=['train_focus.py', *map(str, argv)], processes=processes, cwd=str(elsewhere),
            environment=dict(environment), seconds=seconds, log=str(log)))
        done.stdout, done.stderr = (Path(f'{log}{kind}').read_text() for kind in (1, 2))
        done.returncode = max(done.codes, key=abs)
        return done
    return run


@pytest.fixture
def refusal(settings, monkeypatch, capsys):
    """`refusal(more)` is the one line on stderr with which the script refuses the settings."""
    def refuse(more='', **kwargs):
        monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings(more, **kwargs)])
        capsys.readouterr()
        logging.getLogger().handlers.clear()
        import train_focus
        with pytest.raises(SystemExit) as e:
            train_focus.cli()
        out, err = capsys.readouterr()
        assert e.value.code == 2 and not out
        assert err.startswith('train_focus.py: error: ') and err.count('\n') == 1, err
        return err
    return refuse


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def finite(state):
    return all(v.isfinite().all() for v in state.values() if v.is_floating_point())


def evaluate(model, root, split='validation', size=32):
    """Loss and accuracy, image by image, with nothing of the script's."""
    dataset = create_dataset('', root=str(root), split=split)
    own = resolve_data_config({}, pretrained_cfg=model.pretrained_cfg)
    dataset.transform = create_transform(
        size, is_training=False, mean=own['mean'], std=own['std'], crop_pct=0.875, interpolation='bilinear')
    model.eval()
    losses, correct = [], 0
    with torch.no_grad():
        for image, target in dataset:
            logits = model(image[None])
            losses.append(F.cross_entropy(logits, torch.tensor([target])).item())
            correct += int(logits.argmax()) == target
    return sum(losses) / len(losses), 100 * correct / len(losses)
