"""On real scene images, where they are: `pytest --scenes DIR` with train/<class>/ and val/<class>/."""
import csv
import os
import sys

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader

import timm_focus
import train_focus


@pytest.fixture
def scenes(request):
    path = request.config.getoption('--scenes')
    if not path:
        pytest.skip('real scene images are not here: give --scenes DIR or set TIMM_FOCUS_SCENES')
    return os.path.abspath(path)


def test_an_epoch_beats_chance_and_is_loaded_by_timm(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [
        'train_focus.py', scenes, '--model', 'focus_test_resnet', '--img-size', '64', '-b', '64', '--epochs', '1',
        '-j', '2',
        '--opt', 'adamw', '--lr', '1e-3', '--output', str(tmp_path), '--experiment', 'run', '--device', 'cpu'])
    train_focus.main()
    row = next(csv.DictReader((tmp_path / 'run' / 'summary.csv').open()))
    classes = len(os.listdir(os.path.join(scenes, 'train')))
    assert float(row['eval_top1']) > 2 * 100 / classes
    assert 0.02 < float(row['train_erased_fraction']) < 0.8

    model = timm.create_model(
        'test_resnet', num_classes=classes, checkpoint_path=tmp_path / 'run' / 'model_best.pth.tar').eval()
    cfg = timm.data.resolve_data_config(dict(img_size=64, interpolation='bilinear', crop_pct=0.875), model=model)
    loader = create_loader(
        create_dataset('', scenes, 'validation'), cfg['input_size'], 256, interpolation=cfg['interpolation'],
        mean=cfg['mean'], std=cfg['std'], crop_pct=cfg['crop_pct'], device=torch.device('cpu'))
    with torch.inference_mode():
        correct = [(model(x).argmax(1) == y) for x, y in loader]
    assert 100 * torch.cat(correct).double().mean().item() == pytest.approx(float(row['eval_top1']), abs=0.1)


def test_what_is_erased_differs_from_image_to_image(scenes):
    loader = create_loader(
        create_dataset('', scenes, 'validation'), (3, 128, 128), 16, is_training=True, no_aug=True,
        device=torch.device('cpu'))
    x, _ = next(iter(loader))
    model = timm_focus.create_focus_net('resnet18', num_classes=10).train()
    final, (tap,) = model.forward_intermediates(x, indices=[model.stage], norm=False)
    keep = model.keep_mask(tap, model.forward_head(final), (128, 128))
    shares = 1 - keep.flatten(1).float().mean(1)
    assert shares.min() > 0 and shares.max() < 1 and shares.std() > 0.01
    assert len({k.numpy().tobytes() for k in keep}) == 16
