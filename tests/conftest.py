import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')  # for the processes that tests start: waiting threads do not spin
ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(Path(__file__).parent))


def pytest_addoption(parser):
    parser.addoption('--all-models', action='store_true', help='check every model class of timm, not small ones alone')
    parser.addoption('--timm-tests', metavar='PATH', help="unpacked timm sdist whose own tests are run on timm_focus")
    parser.addoption('--scenes', metavar='PATH', default=os.environ.get('TIMM_FOCUS_SCENES'),
                     help='folder of real scene images, train/<class>/ and val/<class>/ (or $TIMM_FOCUS_SCENES)')
    parser.addoption('--slow', action='store_true', help='run the checks that take minutes, too')


def pytest_collection_modifyitems(config, items):
    for item in items:
        if item.get_closest_marker('slow') and not config.getoption('--slow'):
            item.add_marker(pytest.mark.skip(reason='takes minutes: give --slow'))
        if item.get_closest_marker('cuda') and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason='needs a GPU, and torch finds none'))


@pytest.fixture(autouse=True)
def _same_numbers_and_threads():
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
