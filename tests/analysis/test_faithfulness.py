"""Accuracy under erasing against the definition, written out slowly."""
import os

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import timm_focus
from timm_focus.analysis import erase_highest, faithfulness, pixel_rank, random_maps

SHARES = (0.1, 0.25, 0.5)


@pytest.fixture
def model(photos):
    """Random, but not of one opinion on all images."""
    torch.manual_seed(0)
    model = timm.create_model('resnet10t', num_classes=7).eval()
    nn.init.normal_(model.fc.weight, std=0.5)
    with torch.no_grad():
        model.fc.bias -= model(photos(12, 96)).mean(0)
    return model


def slow_keep(score, n):
    """Mask without the n highest of a map, the first of equal ones first."""
    values = score.flatten().tolist()
    keep = torch.ones(len(values), dtype=torch.bool)
    keep[sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]] = False
    return keep.view_as(score)


@pytest.mark.parametrize('size', [(8, 8), (7, 5)])
def test_exactly_the_share_is_erased(size):
    torch.manual_seed(0)
    x = torch.rand(3, 2, *size) + 1
    score = torch.randn(3, *size)
    score[1] = score[1].round()  # many are equal
    score[2] = 0
    rank = pixel_rank(score)
    for share in (0.01, 0.1, 0.5, 0.99, 1):
        n = round(share * size[0] * size[1])
        erased = erase_highest(x, rank, share)
        assert (erased == 0).sum((2, 3)).tolist() == [[n, n]] * 3
        for image, original, s in zip(erased, x, score):
            assert torch.equal(image, original * slow_keep(s, n))


@pytest.mark.parametrize('share', [0, -0.1, 1.01, float('nan')])
def test_another_share_is_told(share):
    with pytest.raises(ValueError, match='The share to erase is .*: give one above 0 and at most 1'):
        erase_highest(torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2), share)


def test_random_maps_go_by_the_image_alone():
    together = random_maps(range(5, 9), (3, 4))
    assert torch.equal(together, torch.cat([random_maps([i], (3, 4)) for i in range(5, 9)]))
    torch.manual_seed(1)
    assert torch.equal(together, random_maps(range(5, 9), (3, 4)))
    many = random_maps(range(500), (5, 5))
    assert len({tuple(m.flatten().tolist()) for m in many}) == 500
    assert abs(many.mean()) < 0.05 and abs(many.std() - 1) < 0.05


@pytest.mark.slow
def test_image_by_image(model, photos):
    x = photos(12, 96)
    with torch.no_grad():
        own = model(x)
    target = own.argmax(1).clone()
    target[::4] = own.topk(3).indices[::4, 2]  # right among five
    target[1::4] = own.argmin(1)[1::4]  # wrong
    batches = [(x[:5], target[:5]), (x[5:10], target[5:10]), (x[10:], target[10:])]
    found = faithfulness(model, batches, SHARES)
    assert found.map_size == (3, 3) and found.map_kind == 'classifier'
    assert torch.equal(found.target, target) and torch.equal(found.prediction, own.argmax(1))
    for i in range(12):
        with torch.no_grad():
            feature = model.forward_features(x[i:i + 1])[0]
            predicted = own[i].argmax()
            cam = sum(w * f for w, f in zip(model.fc.weight[predicted], feature))
            noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(i))
            assert bool(found.in_top5[i]) == (int((own[i] > own[i, target[i]]).sum()) < 5)
            for kind, score in ((found.cam, cam), (found.random, noise)):
                large = F.interpolate(score[None, None], (96, 96), mode='bilinear')[0, 0]
                for right, share in zip(kind, SHARES):
                    erased = x[i] * slow_keep(large, round(share * 96 * 96))
                    assert bool(right[i]) == (model(erased[None])[0].argmax() == target[i])
    assert len(own.argmax(1).unique()) > 2 and 0 < found.cam.sum() < found.cam.numel()
    assert not torch.equal(found.cam, found.random)


@pytest.mark.slow
def test_whatever_the_batches_and_the_run(model, photos):
    x, target = photos(9), torch.arange(9) % 7

    def measure(n):
        return faithfulness(model, zip(x.split(n), target.split(n)), SHARES)
    first = measure(9)
    for n in (1, 4, 9):
        assert all(torch.equal(a, b) for a, b in zip(first[:5], measure(n)[:5]))


def test_accuracy_alone_is_one_pass(model, photos):
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = faithfulness(model, [(photos(4), torch.zeros(4, dtype=torch.long))], ())
    assert len(calls) == 1 and found.cam.shape == found.random.shape == (0, 4)
    assert found.map_size is None and found.map_kind is None
    few = timm.create_model('resnet10t', num_classes=3)
    assert faithfulness(few, [(photos(4), torch.tensor([0, 1, 2, 0]))], ()).in_top5.all(), 'of three, all are'


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext', 'focus_resnet10t'])
def test_the_same_for_all_models(name, photos):
    torch.manual_seed(0)
    kwargs = timm.models.resolve_model_input_args(name, dict(img_size=64), num_classes=4)
    model = timm.create_model(**kwargs).train()
    before = [p.requires_grad for p in model.parameters()]
    x = photos(3)
    found = faithfulness(model, [(x, torch.zeros(3, dtype=torch.long))], SHARES)
    assert found.cam.shape == found.random.shape == (3, 3) and model.training
    assert [p.requires_grad for p in model.parameters()] == before and all(p.grad is None for p in model.parameters())
    assert found.map_kind == ('classifier' if 'resnet' in name else 'gradient')
    if isinstance(model, timm_focus.FocusNet):
        plain = faithfulness(model.backbone, [(x, torch.zeros(3, dtype=torch.long))], SHARES)
        assert all(torch.equal(a, b) for a, b in zip(found[:5], plain[:5]))


def test_what_cannot_be_ranked_is_told(model, photos):
    batch = (photos(2, 32), torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match='ResNet is 1 x 1 at images of 32 x 32, so it ranks no pixels: .* larger'):
        faithfulness(model, [batch])
    assert faithfulness(model, [batch], ()).prediction.shape == (2,)
    with pytest.raises(ValueError, match='no images'):
        faithfulness(model, [])


@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='reads /proc, which Linux has')
def test_no_descriptor_of_a_batch_is_kept():
    """Each tensor that a worker shares has one."""
    images = [(torch.randn(3, 32, 32), 0) for _ in range(150)]
    loader = DataLoader(images, batch_size=1, num_workers=1)
    most = 0

    def batches():
        nonlocal most
        for batch in loader:
            most = max(most, len(os.listdir('/proc/self/fd')))
            yield batch
    before = len(os.listdir('/proc/self/fd'))
    found = faithfulness(timm.create_model('test_resnet', num_classes=2), batches(), shares=())
    assert len(found.target) == 150 and most < before + 40
