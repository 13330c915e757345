"""On real scene images, where they are: $TIMM_FOCUS_SCENES names a folder with train/<class>/ and val/<class>/."""
import csv
import os
import shutil
import sys
import tarfile
from pathlib import Path

import pytest
import timm
import torch
from timm.data import create_dataset, create_loader

import timm_focus
import train_focus
from timm_focus.data.places365 import CATEGORIES


@pytest.fixture
def scenes():
    path = os.environ.get('TIMM_FOCUS_SCENES')
    if not path:
        pytest.skip('real scene images are not here: name their folder in TIMM_FOCUS_SCENES')
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
    keep = model.keep_mask(tap, model.forward_head(final).argmax(1), (128, 128))
    shares = 1 - keep.flatten(1).float().mean(1)
    assert shares.min() > 0 and shares.max() < 1 and shares.std() > 0.01
    assert len({k.numpy().tobytes() for k in keep}) == 16


@pytest.mark.slow
@pytest.mark.usefixtures('quietly')
def test_each_layout_of_real_images_trains_alike(scenes, tmp_path, train, capsys):
    """The images under Places365's names, in each layout, and as they are, by this project's readers and by timm's."""
    def put(file, *path):
        path = tmp_path.joinpath(*path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.hardlink_to(file)
        except OSError:  # another file system
            shutil.copy(file, path)

    lists = dict(train=[], val=[])
    for split in lists:
        classes = sorted((Path(scenes) / split).iterdir())
        spread = len(CATEGORIES) // len(classes) + 1  # each class of theirs is some of Places365's
        count = dict.fromkeys(range(len(CATEGORIES)), 0)
        labelled = []
        for c, folder in enumerate(classes):
            first = len(CATEGORIES) * c // len(classes)
            for i, file in enumerate(sorted(folder.iterdir())):
                labelled.append((min(first + i % spread, len(CATEGORIES) - 1), file))
        for label, file in sorted(labelled):
            category, name = CATEGORIES[label], f'{count[label]:08}.jpg'
            count[label] += 1
            nested, flat = f'{category[0]}/{category}/{name}', f'Places365_{split}_{label:03}_{name}'
            put(file, 'nested', split, nested)
            put(file, 'easy/places365_standard', split, category.replace('/', '-'), name)
            if split == 'train':
                put(file, 'official/data_256', nested)
                put(file, 'torchvision/data_256_standard', nested)
            else:
                put(file, 'official/val_256', flat)
                put(file, 'torchvision/val_256', flat)
            lists[split].append(f'/{nested} {label}\n' if split == 'train' else f'{flat} {label}\n')
    for layout in ('official', 'torchvision'):
        (tmp_path / layout / 'places365_train_standard.txt').write_text(''.join(lists['train']))
        (tmp_path / layout / 'places365_val.txt').write_text(''.join(lists['val']))
    for split in lists:
        with tarfile.open(tmp_path / f'{split}.tar', 'w') as tar:
            tar.add(Path(scenes) / split, arcname='.')

    flags = '-b 64 --img-size 32 -j 1 --lr 0.05'
    runs = {layout: train(flags, layout, model='resnet10t', data=tmp_path / layout)
            for layout in ('official', 'torchvision', 'nested', 'easy')}
    runs['folder'] = train(flags, 'folder', model='resnet10t', data=scenes)
    runs['tar'] = train(f'{flags} --train-split train.tar --val-split val.tar', 'tar', model='resnet10t', data=tmp_path)
    classes = runs['folder'].folder / 'classes.txt'
    runs['timm'] = train(f'{flags} --class-map {classes}', 'timm', model='resnet10t', data=scenes)
    with capsys.disabled():
        for name, run in runs.items():
            print(f'\n{name}: top1 {run.column("eval_top1")[0]:.4f}, top5 {run.column("eval_top5")[0]:.4f}', end='')
    for layout in ('torchvision', 'nested', 'easy'):
        assert runs[layout].rows == runs['official'].rows
        assert (runs[layout].folder / 'classes.txt').read_text().split() == list(CATEGORIES)
    for other in ('tar', 'timm'):
        assert runs[other].rows == runs['folder'].rows
    assert runs['folder'].column('eval_top1')[0] > 5
