"""The schemes against the words of the paper and of the README."""
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision.transforms import functional as TF

import train_focus
from timm_focus.data.transforms import posterize, posterizing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def transforms(image_folder):
    """`transforms('simple')` is what the script trains and what it validates with."""
    def make(scheme, size=(224, 224), more=()):
        args = train_focus.parse_args(train_focus.parser, [
            str(image_folder), '--model', 'test_resnet', '-b', '4', '-j', '0', '--no-prefetcher', '--epochs', '2',
            '--scheme', scheme, *more])[0]
        args = args.completed(prefetcher=False, distributed=False, world_size=1, rank=0)
        args, *datasets = train_focus.create_datasets(args)
        config = dict(input_size=(3, *size), mean=MEAN, std=STD, interpolation=args.interpolation,
                      crop_pct=args.crop_pct, crop_mode='center')
        train_focus.create_loaders(args, *datasets, config, torch.device('cpu'))
        return [dataset.transform for dataset in datasets]
    return make


@pytest.fixture
def coordinates():
    """An image whose red and green say where each pixel is, 0 to 255 over 512 pixels."""
    x, y = np.meshgrid(np.arange(512) / 2, np.arange(256))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 128)], -1).astype(np.uint8))


def boxes(transform, image, n=60, mean=MEAN, std=STD):
    """Columns and rows of the original that the edges of n crops show, and whether each was flipped."""
    torch.manual_seed(0)
    found = []
    for _ in range(n):
        x = transform(image)
        assert x.shape == (3, 224, 224) and x.dtype == torch.float32
        x = (x * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)) * 255
        row, column = x[1].mean(1), x[0].mean(0) * 2
        found.append((column[0].item(), column[-1].item(), row[0].item(), row[-1].item()))
    return found


def test_simple_is_a_random_crop_of_seven_eighths_and_a_flip(coordinates, transforms):
    found = boxes(transforms('simple')[0], coordinates)
    flipped = [a > b for a, b, _, _ in found]
    assert 15 < sum(flipped) < 45
    for a, b, top, bottom in found:
        left, right = min(a, b), max(a, b)
        assert bottom - top == pytest.approx(256 * 7 / 8, abs=3), 'the short side is 256, 224 of it are cropped'
        assert right - left == pytest.approx(bottom - top, abs=4), 'at its own aspect'
    assert len({round(min(a, b)) for a, b, _, _ in found}) > 30, 'at random places, along the long side, too'
    tops = {round(top) for _, _, top, _ in found}
    assert min(tops) < 4 and max(tops) > 28 and len(tops) > 15


def test_simple_does_not_touch_colours(photo, transforms):
    square = photo.crop((0, 0, 500, 500))
    transform = transforms('simple', size=(200, 200))[0]
    resized = TF.to_tensor(square.resize((229, 229), Image.BILINEAR))
    for _ in range(5):
        x = transform(square) * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        distances = [
            (resized[:, i:i + 200, j:j + 200] - y).abs().max()
            for y in (x, x.flip(2)) for i in range(30) for j in range(30)]
        assert min(distances) < 1e-5, 'it is one of the crops, flipped or not'


def test_complex_is_a_random_resized_crop(coordinates, transforms):
    """Where its box is told by the picture of coordinates, without colour jitter, which would blur that."""
    transform = transforms('complex')[0]
    kinds = [type(t).__name__ for t in transform.transforms]
    crop, jitter = transform.transforms[0], transform.transforms[kinds.index('ColorJitter')]
    assert (tuple(crop.scale), tuple(crop.ratio)) == ((0.08, 1.), (3 / 4, 4 / 3))
    for span in (jitter.brightness, jitter.contrast, jitter.saturation):
        assert tuple(span) == pytest.approx((0.6, 1.4))
    assert jitter.hue is None
    transform.transforms.remove(jitter)
    found = boxes(transform, coordinates, 200)
    areas = [abs(b - a) * (d - c) / (512 * 256) for a, b, c, d in found]
    ratios = [abs(b - a) / (d - c) for a, b, c, d in found]
    assert 0.06 < min(areas) < 0.15 and max(areas) > 0.6
    assert 0.70 < min(ratios) < 0.8 and 1.25 < max(ratios) < 1.4


@pytest.mark.parametrize('more', [
    (), ('--color-jitter', '0.2'), ('--color-jitter-prob', '0.5'), ('--scale', '0.3', '1', '--hflip', '0'),
    ('--aa', 'rand-m9-mstd0.5'),
])
def test_auto_is_simple_and_then_complex(photo, transforms, more):
    def drawn(transform):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return torch.stack([transform(photo) for _ in range(5)])

    auto, other = (transforms(scheme, more=more)[0] for scheme in ('auto', 'complex'))
    # what is given for the crop is of the complex scheme
    simple = transforms('simple', more=more[more.index('1') + 1:] if '--scale' in more else more)[0]
    assert not torch.equal(drawn(simple), drawn(other))
    assert torch.equal(drawn(auto), drawn(simple))
    auto.set_complex()
    assert torch.equal(drawn(auto), drawn(other))
    auto.set_complex(False)
    assert torch.equal(drawn(auto), drawn(simple))


def test_evaluation_is_the_centre_crop(photo, transforms):
    square = photo.crop((0, 0, 500, 500))
    x = transforms('simple')[1](square)
    expected = TF.center_crop(TF.to_tensor(square.resize((256, 256), Image.BILINEAR)), 224)
    torch.testing.assert_close(x, TF.normalize(expected, MEAN, STD))


def test_the_input_need_not_be_square(transforms):
    image = Image.new('RGB', (90, 60))
    for scheme in ('simple', 'complex'):
        for transform in transforms(scheme, size=(32, 48)):
            assert transform(image).shape == (3, 32, 48)


@pytest.mark.parametrize('policy', ['v0', 'rand-m10-inc1', 'rand-m1'])
def test_policies_that_posterize_to_nothing_go_on(policy):
    """Pillow 13 refuses 0 bits, which these ask for; before, the image was black."""
    with posterizing():
        transform = create_transform(32, is_training=True, auto_augment=policy)
    made = transform.transforms[2]
    ops = [op for sub in made.policy for op in sub] if policy == 'v0' else made.ops
    ops = [op for op in ops if op.name.startswith('Posterize')]
    assert ops
    for op in ops:
        op.prob = 1.
        image = Image.new('RGB', (9, 9), (10, 200, 30))
        assert max(c for _, pixel in op(image).getcolors() for c in pixel) in range(201)
    assert posterize(image, 0).getcolors() == [(81, (0, 0, 0))]
    assert auto_augment.NAME_TO_OP['Posterize'] is auto_augment.posterize, 'timm is as it was'
