"""`timm-focus validate`, as it is typed."""
import csv
import json
import logging
import os
import re
import shutil
import sys

import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform

from conftest import TINY
from timm_focus.analysis import faithfulness
from timm_focus.runs import Loaded, load_model
from timm_focus.commands.main import main
from timm_focus.commands.validate import _check_output, _write, match_classes
from timm_focus.data.places365 import CATEGORIES


@pytest.fixture
def command(capsys, quietly):
    """`command(data, '--model', name)` is what it prints; it loads in this process."""
    def run(*argv):
        logging.getLogger().handlers.clear()  # each run sets up its own
        capsys.readouterr()
        main(['validate', *map(str, argv), '-j', '0', '--device', 'cpu'])
        return capsys.readouterr().out
    return run


@pytest.fixture
def refusal(capsys, quietly):
    """`refusal(data, '--model', name)` is the one line with which it refuses."""
    def run(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main(['validate', *map(str, argv), '-j', '0', '--device', 'cpu'])
        out, err = capsys.readouterr()
        assert e.value.code == 2 and not out and err.startswith('timm-focus validate: error: '), err
        assert err.count('\n') == 1, err
        return err
    return run


def read(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


def weights(path, num_classes=2, name=TINY, bias=0, **kwargs):
    """A file of random weights that have opinions."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes, **kwargs)
    torch.nn.init.normal_(model.get_classifier().weight)
    torch.nn.init.constant_(model.get_classifier().bias, bias)
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize('model', [TINY, f'focus_{TINY}'])
def test_a_runs_accuracy_is_the_one_of_its_training(train, command, image_folder, tmp_path, model):
    run = train('--epochs 3 --img-size 64', model=model)
    out = tmp_path / 'found'
    text = command(image_folder, '--checkpoint', run.folder, '--output', out, '-b', '3')
    record, = json.loads((out / 'validate.json').read_text())
    assert record['top1'] == pytest.approx(max(run.column('eval_top1')), abs=1e-3)
    last, = json.loads(command(image_folder, '--checkpoint', run.folder / 'last.pth.tar', '--no-erase', '--format',
                               'json'))
    assert last['top1'] == pytest.approx(run.column('eval_top1')[-1], abs=1e-3)
    assert last['top5'] == record['top5'] == 100, 'of two classes'
    assert record['n'] == 10 and record['model'] == f'{model}@run' and record['unreadable'] == []
    assert record['map_size'] == [2, 2] and record['map_kind'] == 'classifier'
    assert record['settings']['input_size'] == [3, 64, 64] and record['settings']['erase'] == [10, 25, 50]
    assert text.splitlines()[0].split() == [
        'model', 'n', 'top1', 'top5', 'cam_10', 'random_10', 'cam_25', 'random_25', 'cam_50', 'random_50', 'map',
        'map_kind']


def test_files_hold_what_the_images_give(command, image_folder, tmp_path):
    files = [weights(tmp_path / 'a.pth'), weights(tmp_path / 'b.pth', name='test_vit', img_size=64)]
    out = tmp_path / 'found'
    text = command(image_folder, '--model', TINY, '--model', 'test_vit', '--checkpoint', files[0], '--checkpoint',
                   files[1], '--img-size', '64', '--erase', '50', '20', '20', '--output', out, '--format', 'json')
    records, printed = json.loads((out / 'validate.json').read_text()), json.loads(text)
    images, classes = read(out / 'images.csv'), read(out / 'classes.csv')
    for record, row, (name, path) in zip(records, printed, ((TINY, files[0]), ('test_vit', files[1]))):
        loaded = load_model(name, str(path), img_size=64)
        mine = [r for r in images if r['model'] == loaded.name]
        transform = create_transform(**loaded.data_config, is_training=False)
        paths = sorted((image_folder / 'val').glob('*/*.jpg'))
        assert [r['image'] for r in mine] == [str(p.relative_to(image_folder / 'val')) for p in paths]
        x = torch.stack([transform(Image.open(p).convert('RGB')) for p in paths])
        target = torch.tensor([0] * 5 + [1] * 5)
        found = faithfulness(loaded.model, [(x, target)], [0.2, 0.5])
        columns = [found.prediction == target, torch.ones(10, dtype=torch.bool), *found.cam, *found.random]
        names = ['correct', 'correct_top5', 'correct_cam_20', 'correct_cam_50', 'correct_random_20',
                 'correct_random_50']
        for column, flags in zip(names, columns):
            assert [int(r[column]) for r in mine] == flags.int().tolist()
        folders = ['left', 'right']
        assert [r['label'] for r in mine] == [p.parent.name for p in paths]
        assert [r['prediction'] for r in mine] == [folders[i] for i in found.prediction]
        with torch.no_grad():
            right = (loaded.model(x).argmax(1) == target).double().mean()
        assert record['top1'] == 100 * columns[0].double().mean() == pytest.approx(100 * right) == row['top1']
        assert record['erasing'].keys() == {'20', '50'} and record['map_kind'] == found.map_kind
        for i, share in enumerate(('20', '50')):
            assert record['erasing'][share] == {
                'cam': 100 * found.cam[i].double().mean(), 'random': 100 * found.random[i].double().mean()}
            assert row[f'cam_{share}'] == pytest.approx(record['erasing'][share]['cam'])
        for label, part in (('left', slice(0, 5)), ('right', slice(5, 10))):
            own = 100 * columns[0][part].double().mean()
            assert record['classes'][label] == {'n': 5, 'top1': own}
            row = next(r for r in classes if (r['model'], r['label']) == (loaded.name, label))
            assert (int(row['n']), float(row['top1'])) == (5, own)


def test_classes_go_by_name(train, command, refusal, image_folder, tmp_path):
    run = train('--epochs 2 --img-size 64')
    whole, = json.loads(command(image_folder, '--checkpoint', run.folder, '--no-erase', '--format', 'json'))
    flat = image_folder / 'val'
    again, = json.loads(command(flat, '--checkpoint', run.folder, '--no-erase', '--format', 'json'))
    assert again == whole, 'a folder of class folders is one, too'
    out = tmp_path / 'one'
    one = tmp_path / 'some'
    shutil.copytree(flat / 'right', one / 'right')  # 0 among its own, 1 in the model
    command(one, '--checkpoint', run.folder, '--no-erase', '--output', out)
    record, = json.loads((out / 'validate.json').read_text())
    rows = read(out / 'images.csv')
    with torch.no_grad():
        loaded = load_model(checkpoint=str(run.folder))
        transform = create_transform(**loaded.data_config, is_training=False)
        images = [transform(Image.open(one / row['image']).convert('RGB')) for row in rows]
        own = loaded.model(torch.stack(images)).argmax(1)
    assert record['top1'] == 100 * (own == 1).double().mean() and {r['label'] for r in rows} == {'right'}
    assert record['classes'].keys() == {'right'} and record['erasing'] == {} and record['map_size'] is None
    shutil.copytree(flat / 'left', one / 'nowhere')
    assert re.search(r"1 of the 2 classes of the data are none of the 2 that .* knows \(left, right\): nowhere. Rename",
                     refusal(one, '--checkpoint', run.folder))


def names_of(label_names, n_classes, names, present=None):
    loaded = Loaded('m', None, {}, label_names)
    return match_classes(loaded, n_classes, names, range(len(names)) if present is None else present)


def test_matching():
    assert names_of(['b', 'a/c', 'd'], 4, ['a-c', 'b']) == ([1, 0], ['b', 'a/c', 'd', '3'])
    assert names_of(['b', 'a'], 2, ['a', 'x', 'b'], [0, 2]) == ([1, 0], ['b', 'a']), 'x has no images'
    assert names_of([], 2, ['x', 'y'], [1]) == ([1], ['x', 'y'])
    synsets = ImageNetInfo().label_names()
    folders = ['n01440764', 'n03888257', 'n02102040']
    assert names_of([], 1000, folders) == ([synsets.index(n) for n in folders], synsets)
    assert names_of([], 3, folders) == ([0, 1, 2], folders), 'fine-tuned on these'
    assert names_of(synsets, 3, folders) == ([0, 1, 2], folders), "names of the weights that it began with"
    assert names_of(['goldfish', 'dog'] * 500, 1000, folders)[0][0] == 0
    written = ['swimming_pool_outdoor', 'subway_station_platform', 'arena-hockey']
    places = ['swimming_pool/outdoor', 'subway_station/platform', 'arena/hockey']
    assert names_of([], 365, written)[0] == [CATEGORIES.index(name) for name in places]
    with pytest.raises(ValueError, match=r'1 of the 4 classes .* none of the 365 .*: my_attic\. Rename'):
        names_of([], 365, [*written, 'my_attic'])
    with pytest.raises(ValueError, match='1 of the 1 classes of the data are none of the 1000 .*n00000000'):
        names_of([], 1000, ['n00000000'])
    with pytest.raises(ValueError, match='data has 2 classes, but m has 1000 and no names'):
        names_of([], 1000, ['kitchen', 'bar'])


def test_imagenets_folders_by_their_numbers(command, image_folder, tmp_path):
    """Predictions are over all 1000 classes, which the numbers of the folders are places among."""
    for old, new in (('left', 'n03888257'), ('right', 'n02102040')):
        (image_folder / 'val' / old).rename(image_folder / 'val' / new)
    torch.manual_seed(0)
    model = timm.create_model(TINY)
    with torch.no_grad():
        model.fc.weight.zero_()
        model.fc.bias[ImageNetInfo().label_names().index('n02102040')] = 1
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    command(image_folder, '--model', TINY, '--checkpoint', tmp_path / 'w.pth', '--img-size', '64', '--output',
            tmp_path / 'out')
    record, = json.loads((tmp_path / 'out/validate.json').read_text())
    assert record['top1'] == 50 and {k: v['top1'] for k, v in record['classes'].items()} == {
        'n02102040': 100, 'n03888257': 0}
    assert {r['prediction'] for r in read(tmp_path / 'out/images.csv')} == {'n02102040'}


def test_images_that_cannot_be_read_are_left_out(image_folder, tmp_path, capsys, quietly):
    logging.getLogger().handlers.clear()
    (image_folder / 'val/left/1.jpg').write_bytes(b'no image')
    path = weights(tmp_path / 'w.pth')
    argv = (image_folder, '--model', TINY, '--checkpoint', path, '--img-size', '64')
    main(['validate', *map(str, argv), '-j', '2', '--output', str(tmp_path / 'out'), '--device', 'cpu'])
    assert '1 of 10 images cannot be read and are left out: left/1.jpg' in capsys.readouterr().err
    record, = json.loads((tmp_path / 'out/validate.json').read_text())
    rows = read(tmp_path / 'out/images.csv')
    assert record['n'] == len(rows) == 9 and record['unreadable'] == ['left/1.jpg']
    assert len({r['image'] for r in rows}) == 9 and record['classes']['left']['n'] == 4
    assert record['top1'] == pytest.approx(100 * sum(int(r['correct']) for r in rows) / 9)
    for file in image_folder.glob('val/*/*.jpg'):
        file.write_bytes(b'')
    with pytest.raises(SystemExit):
        main(['validate', *map(str, argv), '--device', 'cpu'])
    assert re.search('error: Not one of the 10 images in .* can be read', capsys.readouterr().err.splitlines()[-1])


def test_a_folder_of_results_is_not_overwritten_by_others(command, refusal, image_folder, tmp_path):
    path, out = weights(tmp_path / 'w.pth'), tmp_path / 'out'
    argv = (image_folder, '--model', TINY, '--checkpoint', path, '--img-size', '64', '--output', out)
    command(*argv)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    assert before.keys() == {'validate.json', 'classes.csv', 'images.csv'}
    command(*argv)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before, 'the same again'
    assert 'holds results of other models, weights, images or settings' in refusal(*argv, '--no-erase')
    weights(path, bias=1)
    assert 'holds results of other models' in refusal(*argv), 'the same file, another checkpoint'
    weights(path)
    image = image_folder / 'val/left/0.jpg'
    image.write_bytes(image.read_bytes() + b' ')
    assert 'holds results of other models' in refusal(*argv), 'another image'
    for content in ('{"half', '[]', '{}'):
        (out / 'validate.json').write_text(content)
        assert 'holds results of other models' in refusal(*argv)


def test_a_kill_between_two_files_leaves_a_folder_of_the_same_command(tmp_path, monkeypatch):
    """Two models, three files after each: killed before each of them in turn, and run again."""
    settings = [dict(model=m, weights=m * 9, data='d', images='i', settings={}) for m in 'ab']
    rows = [dict(model=m, n=1) for m in 'ab']
    replaces, replace = [], os.replace

    def run(folder):
        _check_output(str(folder), settings)
        for n in (1, 2):
            _write(str(folder), [{**one, 'n': 1} for one in settings[:n]], settings, rows[:n], rows[:n])
        return {file.name: file.read_text() for file in folder.iterdir()}

    def counted(*args):
        replaces.append(args)
        if len(replaces) == lives + 1:
            raise SystemExit('killed')
        replace(*args)
    monkeypatch.setattr(os, 'replace', counted)
    lives = 100
    whole = run(tmp_path / 'whole')
    assert run(tmp_path / 'whole') == whole and json.loads(whole['validate.json']) == [
        {**one, 'n': 1} for one in settings]
    n, left = len(replaces) // 2, set()
    assert n == 8
    for lives in range(n):
        replaces.clear()
        folder = tmp_path / str(lives)
        with pytest.raises(SystemExit):
            run(folder)
        left.add(frozenset(file.name for file in folder.iterdir()))
        if lives:
            with pytest.raises(ValueError, match='holds results of other models'):
                _check_output(str(folder), [{**one, 'weights': 'other'} for one in settings])
        assert run(folder) == whole
    assert left == {frozenset(names) for names in (
        (), ('validate.json',), ('validate.json', 'classes.csv'), ('validate.json', 'classes.csv', 'images.csv'))}


@pytest.mark.parametrize('argv, words', [
    (['--erase', '0'], '--erase is 0: give percentages above 0 and at most 100'),
    (['--erase', '101'], '--erase is 101'),
    (['--erase', 'nan'], '--erase is nan'),
    (['--img-size', '32'], 'is 1 x 1 at images of 32 x 32, so it tells no place from another: take larger images'),
    (['--model', TINY], f'{TINY} would have random weights: give its --checkpoint'),
    (['--model', 'torchvision:resnet18'], 'torchvision:resnet18 would have random'),
    (['--batch-size', '0'], 'argument -b/--batch-size: 0 is given, where 1 or more is allowed'),
    (['--img-size', '-64'], '--img-size: -64 is given, where 1 or more is allowed'),
])
def test_a_mistake_is_one_line(refusal, argv, words, image_folder, tmp_path):
    model = [] if '--model' in argv else ['--model', TINY, '--checkpoint', weights(tmp_path / 'w.pth')]
    assert re.search(words, refusal(image_folder, '--img-size', '64', *model, *argv, '--output', tmp_path / 'out'))
    assert not (tmp_path / 'out/validate.json').exists()


def test_a_number_of_classes_that_is_another_is_told(refusal, image_folder, tmp_path):
    path = weights(tmp_path / 'w.pth', num_classes=3)
    assert 'The data has 2 classes, but test_resnet@w.pth has 3 and no names' in refusal(
        image_folder, '--model', TINY, '--checkpoint', path, '--img-size', '64')


def test_grad_cam_that_is_missing_is_told(refusal, image_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    path = weights(tmp_path / 'w.pth', name='test_vit')
    assert "pip install 'timm_focus[explain]'" in refusal(image_folder, '--model', 'test_vit', '--checkpoint', path)


def test_data_that_is_none(refusal, image_folder, tmp_path):
    argv = ('--model', TINY, '--checkpoint', weights(tmp_path / 'w.pth'))
    assert 'There is no folder' in refusal(tmp_path / 'nowhere', *argv)
    shutil.rmtree(image_folder / 'val')
    assert 'has no folder validation' in refusal(image_folder, *argv), 'training images are not measured on unasked'
    (tmp_path / 'flat').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / 'flat/a.png')
    assert 'outside its class folders' in refusal(tmp_path / 'flat', *argv)
    (tmp_path / 'flat/a.png').unlink()
    assert 'There are no images' in refusal(tmp_path / 'flat', *argv)
    assert 'No model is named' in refusal(image_folder / 'train')
