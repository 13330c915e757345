"""The timm-focus command, as it is typed."""
import argparse
import csv
import json
import math
import re
import shutil
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform

from conftest import TINY
from timm_focus.runs import load_model
from timm_focus.commands.main import main

PAPER = {'shufflenetv2_x1_5': (2852749, 527), 'resnet18': (11363757, 435), 'resnet34': (21471917, 899),
         'resnet50': (24255917, 427), 'densenet121': (7327981, 2071)}


@pytest.fixture
def command(capsys):
    """`command('rf', 'resnet18')` is what it prints."""
    def run(*argv):
        capsys.readouterr()
        torch.manual_seed(0)  # the same random weights each time
        main([str(a) for a in argv])
        return capsys.readouterr().out
    return run


@pytest.fixture
def refusal(capsys):
    """`refusal('rf', 'resnet81')` is the one line with which it refuses."""
    def run(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main([str(a) for a in argv])
        out, err = capsys.readouterr()
        assert e.value.code == 2 and err.startswith('timm-focus') and err.count('\n') == 1, err
        return err
    return run


@pytest.fixture
def run_folder(train):
    """A run of the script, whose best weights are a model's."""
    return train('--img-size 64 --crop-pct 0.9').folder


def read(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))


# models and receptive fields

@pytest.mark.slow
def test_the_papers_models(command):
    rows = json.loads(command('models', 'resnet[135][048]', '--format', 'json', '--img-size', '224'))
    rows += json.loads(command('models', 'shufflenetv2_x1_5', '--format', 'json'))
    rows += json.loads(command('models', 'densenet121', '--format', 'json'))
    assert {r['model']: (r['parameters'], r['receptive_field']) for r in rows} == PAPER
    by_name = {r['model']: r for r in rows}
    assert [by_name[n]['feature'] for n in ('resnet18', 'resnet50', 'densenet121')] == [
        'layer3', 'layer3', 'features.denseblock3']
    for name, channels in (('shufflenetv2_x1_5', 352), ('resnet34', 256), ('resnet50', 1024), ('densenet121', 1024)):
        assert (by_name[name]['channels'], by_name[name]['height'], by_name[name]['width']) == (channels, 14, 14)
    assert by_name['resnet18']['multiply_adds'] == 1814073344 - 512 * 1000 + 512 * 365


@pytest.mark.slow
def test_tables(command):
    table = command('rf', 'resnet18', 'seresnet18', 'torchvision:resnet34')
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][:2] == ['model', 'receptive_field']
    assert lines[1][:2] == ['resnet18', '435'] and lines[3][:2] == ['torchvision:resnet34', '899']
    assert lines[2][1] == 'inf' and 'se' in lines[2][-1]
    rows = list(csv.DictReader(command('rf', 'seresnet18', '--through-global', '--format', 'csv').splitlines()))
    assert rows[0]['receptive_field'] == '435' and rows[0]['through'] == ''
    assert json.loads(command('rf', 'resnet18', '--feature', 'layer3', '--format', 'json'))[0]['receptive_field'] == 211
    assert json.loads(command('rf', 'resnet18', '--feature', '2', '--format', 'json'))[0]['receptive_field'] == 99


@pytest.mark.parametrize('argv, words', [
    (['rf', 'resnet81'], r'knows no model resnet81. Did you mean resnet\d+'),
    (['rf', 'resnet18', '--img-size', '0'], r'argument --img-size: 0 is given, where 1 or more is allowed'),
    (['rf', 'torchvision:resnet81'], r'torchvision knows no model resnet81. Did you mean resnet\d+'),
    (['rf', 'resnet18', '--feature', 'layer33'], "layer33.*layer3"),
    (['models', 'nonsense*'], 'No model is called nonsense'),
    (['models', 'resnet18', '--format', 'xml'], 'invalid choice'),
    (['nonsense'], 'invalid choice'),
    (['area', 'nowhere', '--model', TINY, '--random-weights'], 'There is no folder nowhere'),
    (['area', 'nowhere', '--model', TINY], f'{TINY} would have random weights: give its --checkpoint or --pretrained'),
    (['explain', 'nowhere.jpg', '--model', TINY], 'There is no file or folder nowhere.jpg'),
    (['area', 'nowhere'], 'No model is named'),
    (['area', 'nowhere', '--model', TINY, '--threshold', 'median'], "There is no threshold 'median'"),
    (['area', 'nowhere', '--model', TINY, '--checkpoint', 'nowhere.pth'], 'There is no checkpoint nowhere.pth'),
    (['area', 'nowhere', '--model', TINY, '--model', TINY, '--random-weights'], 'named twice'),
    (['area', 'nowhere', '--model', TINY, '--checkpoint', 'a', '--checkpoint', 'b'], '1 --model and 2 --checkpoint'),
])
def test_a_mistake_is_one_line(refusal, argv, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert re.search(words, refusal(*argv))
    assert not list(tmp_path.iterdir()), 'nothing is written'


# loading

def test_a_run_is_loaded_as_it_was_evaluated(run_folder, image_folder):
    loaded = load_model(checkpoint=str(run_folder))
    assert loaded.name == f'focus_{TINY}@run' and loaded.label_names == ['left', 'right']
    assert loaded.data_config['input_size'] == (3, 64, 64) and loaded.data_config['crop_pct'] == 0.9
    state = torch.load(run_folder / 'model_best.pth.tar', weights_only=False)['state_dict']
    assert all(torch.equal(v, state[k]) for k, v in loaded.model.state_dict().items())
    assert not loaded.model.training and type(loaded.model) is type(timm.create_model(TINY))


def test_weights_of_another_architecture_are_told(run_folder, refusal, tmp_path):
    path = run_folder / 'model_best.pth.tar'
    line = refusal('area', 'x', '--model', 'resnet18', '--checkpoint', path)
    assert re.search(
        r'of another architecture: of \d+ tensors \d+ fit; \d+ are missing, such as .*; \d+ are unknown', line)
    line = refusal('area', 'x', '--model', 'resnet14t', '--checkpoint', path)
    assert 'are missing' in line
    state = timm.create_model(TINY).state_dict()
    torch.save({**state, 'fc.bias': state['fc.bias'][:1]}, tmp_path / 'w.pth')
    assert re.search('num_classes differs in it: 1000 of fc.weight, 1 of fc.bias',
                     refusal('area', 'x', '--model', TINY, '--checkpoint', tmp_path / 'w.pth'))
    (tmp_path / 'broken.pth').write_bytes(b'nothing')
    assert 'cannot be read' in refusal('area', 'x', '--model', TINY, '--checkpoint', tmp_path / 'broken.pth')
    assert 'does not say which model' in refusal('area', 'x', '--checkpoint', tmp_path / 'w.pth')
    assert 'has neither model_best.pth.tar nor' in refusal('area', 'x', '--model', TINY, '--checkpoint', tmp_path)


# focus area

def test_area_is_measured_image_by_image(command, run_folder, image_folder, tmp_path):
    out = tmp_path / 'area'
    text = command('area', image_folder, '--checkpoint', run_folder, '--img-size', '128', '-b', '4', '-j', '0',
                   '--output', out)
    rows = read(out / 'area.csv')
    assert len(rows) == 10 and {r['dataset'] for r in rows} == {'data'}, 'the validation images'
    loaded = load_model(checkpoint=str(run_folder), img_size=128)
    transform = create_transform(**loaded.data_config, is_training=False)
    for row in rows:
        image = Image.open(image_folder / 'val' / row['image']).convert('RGB')
        with torch.no_grad():
            heat = loaded.model.forward_features(transform(image)[None])[0].mean(0)
        assert float(row['coverage']) == pytest.approx((heat > heat.mean()).double().mean().item(), abs=1e-6)
        assert (row['map_height'], row['map_width']) == ('4', '4')
    values = [float(r['coverage']) for r in rows]
    summary, = json.loads((out / 'area.json').read_text())
    assert summary['n'] == 10 and summary['mean'] == pytest.approx(np.mean(values))
    assert [summary[q] for q in ('q25', 'median', 'q75')] == pytest.approx(np.percentile(values, (25, 50, 75)).tolist())
    assert summary['map_size'] == [4, 4] and summary['convolutional'] and f'mean {np.mean(values):.4f}' in text
    assert Image.open(out / 'area.png').size[0] > 100


def test_torchvisions_weights_are_evaluated_as_they_were_published(tmp_path, monkeypatch):
    import torchvision
    torch.manual_seed(1)
    published = torchvision.models.resnet18().state_dict()
    cache = tmp_path / 'hub/checkpoints'  # what has been downloaded before is not downloaded again
    cache.mkdir(parents=True)
    torch.save(published, cache / 'resnet18-f37072fd.pth')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    loaded = load_model('torchvision:resnet18', pretrained=True)
    assert all(torch.equal(v, published[k]) for k, v in loaded.model.state_dict().items())
    assert loaded.data_config['input_size'] == (3, 224, 224) and loaded.data_config['crop_pct'] == 224 / 256
    random = load_model('torchvision:resnet18', img_size=64)
    assert not torch.equal(random.model.fc.weight, published['fc.weight'])
    assert random.data_config['input_size'] == (3, 64, 64)


@pytest.mark.slow
def test_a_broken_measurement_goes_on(command, image_folder, tmp_path):
    out = tmp_path / 'area'
    argv = ('area', image_folder, '--model', 'torchvision:shufflenet_v2_x0_5', '--random-weights', '--img-size', '64',
            '-j', '0', '--output', out)
    command(*argv)
    whole = (out / 'area.csv').read_text()
    (out / 'area.csv').write_text(whole[:len(whole) // 2])  # in the middle of a line
    command(*argv)
    assert (out / 'area.csv').read_text() == whole
    command(*argv)
    assert (out / 'area.csv').read_text() == whole, 'nothing is measured twice'


@pytest.mark.slow
def test_folders_are_pooled_or_told_apart(command, image_folder, tmp_path):
    flat = tmp_path / 'flat'
    flat.mkdir()
    for i, file in enumerate(sorted(image_folder.glob('train/left/*.jpg'))[:3]):
        shutil.copy(file, flat / f'{i}.jpg')
    Image.open(flat / '0.jpg').convert('L').save(flat / 'grey.png')
    Image.open(flat / '0.jpg').convert('CMYK').save(flat / 'cmyk.jpg')
    Image.new('RGB', (1, 1)).save(flat / 'pixel.png')
    (flat / 'broken.jpg').write_bytes(b'no image')
    argv = ('area', image_folder, flat, '--model', TINY, '--model', 'vit_tiny_patch16_224', '--random-weights',
            '--img-size', '64', '-j', '0', '--output', tmp_path / 'area')
    text = command(*argv)
    pooled = json.loads((tmp_path / 'area/area.json').read_text())
    assert [(r['dataset'], r['n']) for r in pooled] == [('data + flat', 16)] * 2
    assert [r['convolutional'] for r in pooled] == [True, False] and text.count('another quantity') == 1
    before = (tmp_path / 'area/area.csv').read_text()
    command(*argv, '--by-dataset')
    apart = json.loads((tmp_path / 'area/area.json').read_text())
    assert [(r['model'], r['dataset'], r['n']) for r in apart] == [
        (m, d, n) for m in (TINY, 'vit_tiny_patch16_224') for d, n in (('data', 10), ('flat', 6))]
    assert (tmp_path / 'area/area.csv').read_text() == before
    assert apart[0]['mean'] * 10 + apart[1]['mean'] * 6 == pytest.approx(pooled[0]['mean'] * 16)


@pytest.fixture
def diverged(tmp_path):
    """Weights of a run that diverged: all are NaN."""
    state = {k: v.fill_(torch.nan) if v.is_floating_point() else v
             for k, v in timm.create_model(TINY, num_classes=2).state_dict().items()}
    torch.save(state, tmp_path / 'nan.pth')
    return tmp_path / 'nan.pth'


@pytest.mark.slow
def test_what_is_kept_goes_with_its_weights_images_and_settings(command, refusal, image_folder, tmp_path):
    out, path = tmp_path / 'area', tmp_path / 'w.pth'
    argv = ('area', image_folder, '--model', TINY, '--checkpoint', path, '--img-size', '128', '-j', '0')
    state = timm.create_model(TINY, num_classes=2).state_dict()
    torch.save(state, path)
    command(*argv, '--output', out)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    command(*argv, '--output', out)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before, 'the same again'

    line = refusal(*argv, '--threshold', 'otsu', '--output', out)
    assert f'{out} holds a measurement with a threshold mean' in line and 'give another --output, or remove it' in line
    assert f'with other weights or transform of {TINY}@w.pth' in refusal(*argv, '--img-size', '160', '--output', out)
    state['fc.bias'][0] += 1e-3  # the same file, another checkpoint
    torch.save(state, path)
    assert f'with other weights or transform of {TINY}@w.pth' in refusal(*argv, '--output', out)
    state['fc.bias'][0] -= 1e-3
    torch.save({k: state[k] for k in reversed(state)}, path)
    command(*argv, '--output', out)  # the same weights in another order
    image = next((image_folder / 'val/left').iterdir())
    image.rename(image.with_name('other.jpg'))
    assert 'with other images of data' in refusal(*argv, '--output', out)
    image.with_name('other.jpg').rename(image)
    image.write_bytes(image.read_bytes() + b' ')
    assert 'with other images of data' in refusal(*argv, '--output', out)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before

    (out / 'settings.json').write_text('{"half')
    assert 'with unknown settings' in refusal(*argv, '--output', out)
    (out / 'settings.json').unlink()
    assert 'area.csv is there already, and no settings.json beside it' in refusal(*argv, '--output', out)


@pytest.mark.slow
def test_another_model_and_folder_join_a_measurement(command, image_folder, tmp_path):
    torch.manual_seed(0)
    files = []
    for name in 'ab':
        torch.save(timm.create_model(TINY, num_classes=2).state_dict(), tmp_path / f'{name}.pth')
        files.append(('--model', TINY, '--checkpoint', tmp_path / f'{name}.pth'))
    argv = ('--img-size', '128', '-j', '0', '--output', tmp_path / 'area')
    command('area', image_folder / 'val', *files[0], *argv)
    command('area', image_folder / 'train', *files[1], *argv)
    rows = read(tmp_path / 'area/area.csv')
    assert len(rows) == 10 + 24
    command('area', image_folder / 'val', image_folder / 'train', *files[0], *files[1], *argv)
    assert read(tmp_path / 'area/area.csv')[:34] == rows and len(read(tmp_path / 'area/area.csv')) == 68


@pytest.mark.parametrize('argv', [('area',), ('explain',), ('validate',), ('validate', '--no-erase')], ids=' '.join)
def test_weights_that_answer_with_nan_are_refused(refusal, image_folder, diverged, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob('*'))
    line = refusal(*argv, image_folder, '--model', TINY, '--checkpoint', diverged, '--img-size', '128', '-j', '0')
    assert f'{TINY}@nan.pth answers with numbers that are not finite' in line
    assert sorted(tmp_path.rglob('*')) == before, 'nothing is written'


@pytest.mark.slow('vgg11', 'vit', 'explain', 'area')
@pytest.mark.long('vgg11')
@pytest.mark.parametrize('model, size, near, argv', [
    *(('dla34', 70, 64, command) for command in ('area', 'explain', 'validate')),
    *(('test_vit', 70, 64, command) for command in ('area', 'explain', 'validate')),
    ('torchvision:vgg11', 16, 32, 'validate')])  # other models in test_sizes.py
def test_a_size_that_a_model_cannot_take_is_told(refusal, image_folder, tmp_path, monkeypatch, argv, model, size, near):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'w.pth'
    if model.startswith('torchvision:'):
        import torchvision
        torch.save(torchvision.models.vgg11(num_classes=2).state_dict(), path)
    else:
        kwargs = timm.models.resolve_model_input_args(model, dict(img_size=size), num_classes=2)
        torch.save(timm.create_model(**kwargs).state_dict(), path)
    line = refusal(argv, image_folder, '--model', model, '--checkpoint', path, '--img-size', size, '-j', '0')
    assert re.search(rf'cannot be run on images of {size} x {size} \(.*\): {near} x {near} works', line)


@pytest.mark.slow
@pytest.mark.parametrize('argv', [('area',), ('validate',)], ids=' '.join)  # explain's own in test_explain_command.py
def test_maps_of_one_place_are_refused_and_coarse_ones_are_told(
        refusal, capsys, image_folder, tmp_path, monkeypatch, argv):
    monkeypatch.chdir(tmp_path)
    torch.save(timm.create_model(TINY, num_classes=2).state_dict(), tmp_path / 'w.pth')
    argv = (*argv, image_folder, '--model', TINY, '--checkpoint', tmp_path / 'w.pth', '-j', '0')
    assert re.search(r'is 1 x 1 at images of 32 x 32, so it tells no place .*larger images, such as 128 x 128',
                     refusal(*argv, '--img-size', '32'))
    main([*map(str, argv), '--img-size', '64'])
    assert re.search(r'is 2 x 2 at images of 64 x 64, on which .* says little: .* \(--img-size 128\)',
                     capsys.readouterr().err)


def test_an_empty_folder(refusal, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert 'There are no images in' in refusal('area', tmp_path / 'empty', '--model', TINY, '--random-weights')


@pytest.mark.slow
def test_the_command_is_installed(launch):
    import shutil as s
    path = s.which('timm-focus', path=str(sys.executable).rsplit('/', 1)[0])
    assert path, 'pip install puts it beside python'
    done = launch('-m', 'timm_focus.commands.main', 'rf', 'resnet18')
    assert done.returncode == 0 and '435' in done.stdout and not done.stderr
    assert math.isfinite(len(done.stdout))


# weights of every kind, in every command

@pytest.mark.slow
@pytest.mark.parametrize('size', [dict(input_size=(3, 48, 96)), dict(img_size=64)])
def test_a_transformers_run_can_be_used_at_its_size(command, image_folder, tmp_path, size):
    settings = argparse.Namespace(num_classes=2, label_names=['left', 'right'], **size)
    height, width = size.get('input_size', (3, 64, 64))[1:]
    model = timm.create_model('test_vit', num_classes=2, img_size=(height, width))
    file = tmp_path / 'last.pth.tar'
    torch.save(dict(arch='focus_test_vit', state_dict=model.state_dict(), args=settings, epoch=0), file)
    checkpoint = ('--checkpoint', file, '-j', '0')
    row, = json.loads(command('validate', image_folder, *checkpoint, '--no-erase', '--format', 'json'))
    command('explain', image_folder / 'val/left', *checkpoint, '--output', tmp_path / 'explained')
    assert json.loads((tmp_path / 'explained/explained.json').read_text())['data_config']['input_size'] == [
        3, height, width]
    command('area', image_folder, *checkpoint, '--output', tmp_path / 'area')
    assert read(tmp_path / 'area/area.csv')[0]['map_width'] == str(width // 16)
    assert 'Exported' in command('export', file, '--format', 'safetensors', '--output', tmp_path / 'plain')
    again = json.loads(command('validate', image_folder, '--checkpoint', tmp_path / 'plain', '-j', '0', '--no-erase',
                               '--format', 'json'))[0]
    assert again['top1'] == row['top1']


def test_an_official_places365_checkpoint_needs_no_more_than_its_file(command, image_folder, tmp_path):
    from timm_focus.data.places365 import CATEGORIES
    for name, place in (('left', 'arena-hockey'), ('right', 'beach')):
        (image_folder / 'val' / name).rename(image_folder / 'val' / place)
        (image_folder / 'train' / name).rename(image_folder / 'train' / place)
    model = timm.create_model(TINY, num_classes=365)
    model.fc.weight.data.zero_()
    model.fc.bias.data.zero_()[CATEGORIES.index('beach')] = 9.
    state = {f'module.{k}': v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save(dict(epoch=90, arch=TINY, state_dict=state, best_prec1=torch.tensor(55.)), tmp_path / 'p.pth.tar',
               _use_new_zipfile_serialization=False)
    small = ('--checkpoint', tmp_path / 'p.pth.tar', '--img-size', '64', '-j', '0')
    row, = json.loads(command('validate', image_folder, *small, '--no-erase', '--format', 'json'))
    assert row['top1'] == 50, 'all are called beach'
    assert 'beach' in command('explain', image_folder / 'val/beach/0.jpg', *small, '--output', tmp_path / 'explained')


def test_a_class_map_names_the_classes(command, refusal, image_folder, tmp_path):
    torch.save(timm.create_model(TINY, num_classes=3).state_dict(), tmp_path / 'w.pth')
    (tmp_path / 'names.txt').write_text('left\nmiddle\nright\n')
    argv = ('validate', image_folder, '--model', TINY, '--checkpoint', tmp_path / 'w.pth', '--img-size', '64', '-j',
            '0', '--no-erase', '--format', 'json')
    assert 'no names to match them by' in refusal(*argv)
    assert json.loads(command(*argv, '--class-map', tmp_path / 'names.txt'))[0]['n'] == 10
    (tmp_path / 'names.txt').write_text('left\nright\n')
    assert 'has 2 names, but test_resnet@w.pth knows 3 classes' in refusal(*argv, '--class-map', tmp_path / 'names.txt')


def test_a_model_of_a_folder_or_of_the_hub_needs_no_more_than_its_name(command, refusal, hub, image_folder, tmp_path):
    from timm_focus import push_to_hub
    model = timm.create_model(f'focus_{TINY}', num_classes=2)
    push_to_hub(model, 'user/scenes', folder=tmp_path / 'hub', license='mit', dataset='drawn',
                label_names=['left', 'right'])
    shown = []
    for flag, source in (('--model', f'local-dir:{tmp_path}/hub'), ('--checkpoint', tmp_path / 'hub'),
                         ('--model', 'hf-hub:user/scenes'), ('--checkpoint', 'hf-hub:user/scenes')):
        row, = json.loads(command('validate', image_folder, flag, source, '--img-size', '64', '-j', '0', '--no-erase',
                                  '--format', 'json'))
        shown.append((row['n'], row['top1']))
    assert len(set(shown)) == 1 and shown[0][0] == 10
    assert 'has no repository user/nothing' in refusal('validate', image_folder, '--model', 'hf-hub:user/nothing')
    assert 'has no config.json' in refusal('validate', image_folder, '--model', f'local-dir:{tmp_path}')
