"""`timm-focus explain`, as it is typed, on real files of every kind."""
import argparse
import contextlib
import io
import json
import logging
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from timm.data.transforms_factory import transforms_imagenet_eval

from conftest import TINY
from timm_focus import FocusNet
from timm_focus.analysis import explain
from timm_focus.analysis.pieces import connected_pieces
from timm_focus.commands.classes import find_class, folder_classes
from timm_focus.commands.explain import Manifest, _check_output, erased_boxes, spread
from timm_focus.runs import load_model
from timm_focus.commands.main import build_parser, main
from timm_focus.commands.sources import Placement, find_sources, place

SMALL = ('--model', 'test_resnet', '--random-weights', '--img-size', '128', '-j', '0')


@pytest.fixture
def command(quietly, capsys, tmp_path, monkeypatch):
    """`command('images', ...)` runs it in a folder of its own; (what it prints, what it says beside that, manifest)."""
    (tmp_path / 'here').mkdir()
    monkeypatch.chdir(tmp_path / 'here')

    def run(*argv, output='explained'):
        capsys.readouterr()
        logging.getLogger().handlers.clear()  # each run sets up its own
        torch.manual_seed(0)  # the same random weights each time
        main(['explain', *map(str, argv), '--output', str(output)])
        out, err = capsys.readouterr()
        return out, err, json.loads((tmp_path / 'here' / output / 'explained.json').read_text())
    return run


@pytest.fixture
def refusal(capsys, tmp_path, monkeypatch):
    """`refusal('images', ...)` is the one line with which it refuses."""
    def run(*argv):
        (tmp_path / 'there').mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / 'there')
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main(['explain', *map(str, argv)])
        out, err = capsys.readouterr()
        assert e.value.code == 2 and err.startswith('timm-focus explain: error: ') and err.count('\n') == 1, err
        assert not out and not list((tmp_path / 'there').rglob('*.*')), 'nothing is written'
        return err
    return run


@pytest.fixture
def run_folder(train):
    return train('--img-size 64 --crop-pct 0.8 --focus-threshold 0.6 --focus-interpolation nearest '
                 '--focus-stage 2').folder


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob('*') if p.is_file())


# what is written

@pytest.mark.slow
def test_a_run_is_explained_as_it_was_trained(command, run_folder, image_folder, tmp_path):
    out, err, manifest = command(image_folder, '--checkpoint', run_folder, '-j', '0', '-b', '4')
    folder = tmp_path / 'here/explained'
    expected = [f'{label}/{i}{ending}' for label in ('left', 'right') for i in range(5)
                for ending in ('.npy', '.png', '-mask.png')]
    assert files(folder) == sorted([*expected, 'explained.json', 'sheet.png'])
    assert manifest['complete'] and manifest['left_out'] == [] and len(manifest['images']) == 10
    assert (manifest['map'], manifest['threshold'], manifest['focus_map']) == ('cam_head', 0.6, 'cam')
    assert manifest['feature'] == 'layer2' and manifest['map_size'] == [8, 8] and manifest['area_size'] == [2, 2]
    assert '10 explained' in out and 'map of the CAM head, threshold 0.6' in out

    checkpoint = torch.load(run_folder / 'model_best.pth.tar', weights_only=False)
    model = FocusNet(timm.create_model(TINY, num_classes=2), 2, 0.6, focus_interpolation='nearest')
    model.backbone.load_state_dict(checkpoint['state_dict'])
    for head in ('cam_head', 'erased_head'):
        getattr(model, head).load_state_dict(checkpoint['task_state'][head])
    model.eval()
    config = dict(resolve_data_config({}, pretrained_cfg=model.backbone.pretrained_cfg), input_size=64, crop_pct=0.8)
    transform = create_transform(**config, is_training=False)
    for entry in manifest['images']:
        x = transform(Image.open(entry['file']).convert('RGB'))[None]
        with torch.no_grad():
            final, (tap,) = model.backbone.forward_intermediates(x, indices=[2], norm=False, output_fmt='NCHW')
            main_logits = model.backbone.forward_head(final)
            keep = model.keep_mask(tap, main_logits.argmax(1), (64, 64))
            raw = model.cam_head.activation_map(tap, main_logits.argmax(1))[0]
            probabilities = {'before': main_logits.softmax(1)[0], 'after': model.backbone(x * keep).softmax(1)[0]}
        stored = np.load(folder / entry['files']['map'])
        assert stored.dtype == np.float32 and np.allclose(stored, raw, atol=1e-4)
        mask = Image.open(folder / entry['files']['mask'])
        assert mask.mode == '1' and np.array_equal(np.asarray(mask), keep[0, 0].numpy())
        assert entry['erased'] == pytest.approx(1 - keep.float().mean().item(), abs=1e-6)
        for when, p in probabilities.items():
            assert [a['index'] for a in entry[when]] == p.topk(2).indices.tolist()
            assert [a['probability'] for a in entry[when]] == pytest.approx(p.topk(2).values.tolist(), abs=1e-4)
            assert [a['name'] for a in entry[when]] == [('left', 'right')[a['index']] for a in entry[when]]
            assert entry['label'][when] == pytest.approx(p[entry['label']['index']].item(), abs=1e-4)
        assert entry['label']['index'] == main_logits.argmax()
        assert (entry['width'], entry['height']) == (48, 48)
        assert entry['true']['name'] == entry['file'].split('/')[-2]
        pieces = connected_pieces(~keep[0, 0].numpy())
        assert 0 < len(entry['boxes']) <= len(pieces)
        for box, piece in zip(entry['boxes'], pieces):  # 64 of 80 pixels in the middle of 48
            literal = [(8 + v) * 48 / 80 for v in (piece.x0, piece.y0, piece.x1, piece.y1)]
            assert box == [*np.floor(literal[:2]).astype(int), *np.ceil(np.round(literal[2:], 9)).astype(int)]
        assert Image.open(folder / entry['files']['picture']).size[0] > 1000


@pytest.mark.slow('average')
@pytest.mark.parametrize('kind', ['file of a FocusNet', 'running average', 'plain'])
def test_heads_are_found_where_they_are(kind, run_folder, train, tmp_path):
    path, argv = tmp_path / 'w.pth', {}
    if kind == 'running average':
        path = train('--model-ema --model-ema-decay 0.5', experiment='ema').folder / 'last.pth.tar'
        checkpoint = torch.load(path, weights_only=False)
        state, heads = checkpoint['state_dict_ema'], checkpoint['task_state_ema']
    else:
        checkpoint = torch.load(run_folder / 'last.pth.tar', weights_only=False)
        state, heads = checkpoint['state_dict'], checkpoint['task_state']
        whole = {f'backbone.{k}': v for k, v in state.items()}
        whole.update({f'{head}.{k}': v for head in heads for k, v in heads[head].items()})
        if kind == 'plain':
            torch.save(state, path)
            argv = dict(name=f'focus_{TINY}')
        else:
            torch.save({'state_dict': whole, 'args': checkpoint['args'], 'arch': f'focus_{TINY}'}, path)
    loaded = load_model(checkpoint=str(path), heads=True, **argv)
    plain = load_model(checkpoint=str(path), **argv).model
    assert type(plain) is type(timm.create_model(TINY)) and not loaded.model.training
    assert all(torch.equal(v, state[k]) for k, v in plain.state_dict().items())
    if kind == 'plain':
        assert type(loaded.model) is type(plain)
        return
    assert loaded.model.stage == checkpoint['args'].focus_stage or kind == 'running average'
    for head, weights in heads.items():
        assert all(torch.equal(v, weights[k]) for k, v in getattr(loaded.model, head).state_dict().items())


@pytest.mark.slow
def test_a_model_of_one_channel(command, train, image_folder):
    folder = train('--in-chans 1 --img-size 64').folder
    _, _, manifest = command(image_folder / 'val/left/0.jpg', '--checkpoint', folder, '-j', '0')
    assert manifest['data_config']['input_size'] == [1, 64, 64] and len(manifest['images']) == 1
    assert len(manifest['data_config']['mean']) == 1
    loaded = load_model(checkpoint=str(folder), heads=True)
    x = create_transform(**loaded.data_config)(Image.open(manifest['images'][0]['file']).convert('L'))[None]
    assert explain(loaded.model, x).logits.softmax(1).max().item() == pytest.approx(
        manifest['images'][0]['before'][0]['probability'], abs=1e-4)
    main(['area', str(image_folder), '--checkpoint', str(folder), '-j', '0'])


@pytest.mark.slow
def test_batches_change_nothing(command, image_folder):
    torch.manual_seed(0)
    images = image_folder / 'val/left'
    _, _, one = command(images, *SMALL, '-b', '1', output='one')
    torch.manual_seed(0)
    _, _, all_ = command(images, *SMALL[:-2], '-j', '2', '-b', '3', '--sheet', '2', output='all')
    for a, b in zip(one['images'], all_['images'], strict=True):
        assert a['file'] == b['file'] and a['files'] == b['files']
        assert a['label']['before'] == pytest.approx(b['label']['before'], abs=1e-5)
    heights = [Image.open(f'{name}/sheet.png').height for name in ('one', 'all')]
    assert heights[0] > 2 * heights[1]


@pytest.mark.slow
def test_what_is_done_is_kept_when_it_is_interrupted(command, image_folder, tmp_path, monkeypatch):
    from timm_focus.analysis import plots
    draw, drawn = plots.explanation_plot, []

    def interrupted(picture, path):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(path)
        draw(picture, path)
    monkeypatch.setattr(plots, 'explanation_plot', interrupted)
    with pytest.raises(SystemExit):  # Ctrl-C
        command(image_folder / 'val/left', *SMALL)
    manifest = json.loads((tmp_path / 'here/explained/explained.json').read_text())
    assert not manifest['complete'] and len(manifest['images']) == 3
    assert not [f for f in files(tmp_path / 'here') if f.endswith('.tmp')]
    monkeypatch.setattr(plots, 'explanation_plot', draw)
    _, _, manifest = command(image_folder / 'val/left', *SMALL)
    assert manifest['complete'] and len(manifest['images']) == 5


# where in the image

@pytest.mark.parametrize('size', [(640, 480), (333, 500), (97, 103), (1000, 201), (40, 30)], ids=str)
@pytest.mark.parametrize('settings', [
    {}, dict(crop_pct=1.), dict(crop_pct=0.7, crop_mode='squash'), dict(crop_mode='border'),
    dict(crop_pct=1.2), dict(img_size=(96, 160))], ids=str)
def test_a_place_in_the_input_is_one_in_the_image(size, settings):
    steps = transforms_imagenet_eval(**{**dict(img_size=128, mean=(0.5,), std=(0.5,)), **settings}).transforms
    steps = [s for s in steps if type(s).__name__ not in ('MaybeToTensor', 'Normalize')]
    transform = type('Steps', (), dict(transforms=steps))
    for axis in (0, 1):
        values = np.arange(size[axis], dtype=np.float32)
        values = np.broadcast_to(values if axis == 0 else values[:, None], size[::-1])
        image, at = place(Image.fromarray(values.copy()), transform)
        found = np.asarray(image)[image.height // 2] if axis == 0 else np.asarray(image)[:, image.width // 2]
        start, scale = (at.x0, at.x_scale) if axis == 0 else (at.y0, at.y_scale)
        expected = start + scale * (np.arange(len(found)) + 0.5) - 0.5  # the middles of pixels
        inside = (expected > 2 * scale + 2) & (expected < size[axis] - 3 - 2 * scale)
        assert inside.sum() > 5
        assert np.abs(found - expected)[inside].max() < 0.1 * max(scale, 1)


def test_boxes_are_whole_pixels_inside_the_image():
    keep = np.ones((10, 10), bool)
    assert erased_boxes(keep, Placement(), (10, 10)) == []
    keep[2, 3] = False
    assert erased_boxes(keep, Placement(), (10, 10)) == [(3, 2, 4, 3)]
    assert erased_boxes(keep, Placement(5, 1, 2, 2.5), (100, 100)) == [(11, 6, 13, 9)]
    assert erased_boxes(keep, Placement(-100, 0, 2, 2), (100, 100)) == [], 'the border that was added'
    keep[5:8, 6:9] = False
    assert erased_boxes(keep, Placement(), (10, 10)) == [(6, 5, 9, 8), (3, 2, 4, 3)], 'one each, the larger first'
    rows, columns = np.indices((30, 30))
    assert len(erased_boxes((rows % 2 > 0) | (columns % 2 > 0), Placement(), (30, 30))) == 10, 'the largest of many'


# the page

def test_images_of_the_page_are_spread_over_the_classes():
    labels = ['a'] * 10 + ['b'] * 2 + ['c'] * 5
    assert spread(labels, 3) == [0, 10, 12]
    assert spread(labels, 6) == [0, 5, 10, 11, 12, 14]
    assert spread(labels, 100) == list(range(17)) and spread(labels, 0) == [] and spread([], 3) == []
    many = [f'{i // 4}' for i in range(400)]
    assert [many[i] for i in spread(many, 4)] == ['0', '25', '50', '75']
    assert len(spread(['x'] * 7, 3)) == 3 and spread(['x'] * 9, 3) == [0, 3, 6]


@pytest.mark.slow
def test_the_page_shows_images_of_all_classes(command, image_folder):
    for i in (3, 4):
        for label in ('left', 'right'):
            (image_folder / f'val/{label}/{i}.jpg').unlink()
    out, _, _ = command(image_folder, *SMALL, '--sheet', '4')
    shown = [line.split()[0].split('/')[0] for line in out.splitlines()[:-1]]
    assert shown == ['left', 'left', 'right', 'right']


@pytest.mark.slow
def test_rotated_by_exif_is_explained_upright(command, photo, tmp_path):
    upright = photo.resize((120, 80))
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned by 90 degrees to the right
    (tmp_path / 'in').mkdir()
    upright.save(tmp_path / 'in/a.png')
    upright.rotate(90, expand=True).save(tmp_path / 'in/b.png', exif=exif)
    _, _, manifest = command(tmp_path / 'in', *SMALL)
    a, b = manifest['images']
    assert (b['width'], b['height']) == (120, 80)
    assert {**a, 'file': '', 'files': ''} == {**b, 'file': '', 'files': ''}


# names

@pytest.mark.slow
def test_names_mirror_the_paths_and_never_meet(command, photo, tmp_path):
    small = photo.resize((40, 40))
    for name in ('x/same/1.jpg', 'x/same/1.png', 'x/same/1-mask.png', 'x/same/1.JPEG', 'x/other/same/1.jpg',
                 'y/same/1.jpg', 'x/sheet.jpg', 'x/explained.jpg', 'x/same.jpg', 'x/1.png/b.jpg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        small.save(tmp_path / name)
    _, _, manifest = command(tmp_path / 'x', *SMALL, '--sheet', '0')
    written = [f for e in manifest['images'] for f in e['files'].values()]
    assert len(manifest['images']) == 9 and len({f.lower() for f in written}) == 27
    assert files(tmp_path / 'here/explained') == sorted([*written, 'explained.json'])
    by_file = {os.path.relpath(e['file'], tmp_path): e['files']['picture'] for e in manifest['images']}
    assert by_file['x/other/same/1.jpg'] == 'other/same/1.png' and by_file['x/sheet.jpg'] == 'sheet-2.png'
    assert by_file['x/same.jpg'] == 'same.png'

    _, _, manifest = command(tmp_path / 'x/same', tmp_path / 'y/same', tmp_path / 'x/same.jpg', *SMALL, output='both')
    pictures = [e['files']['picture'] for e in manifest['images']]
    assert len(set(pictures)) == 6 and {p.split('/')[0] for p in pictures} == {'same', 'same-2', 'same.png'}


@pytest.mark.slow
def test_all_stays_in_the_output_folder(command, refusal, photo, tmp_path):
    (tmp_path / 'here/sub').mkdir()
    photo.resize((40, 40)).save(tmp_path / 'here/sub/a.png')
    before = set(files(tmp_path))
    _, _, manifest = command('../here/sub/../sub/a.png', *SMALL)
    assert {f.split('/')[1] for f in set(files(tmp_path)) - before} == {'explained'}
    assert manifest['images'][0]['files']['picture'] == 'a.png'
    for _ in range(2):
        _, _, manifest = command('.', *SMALL)
        assert [e['file'] for e in manifest['images']] == ['sub/a.png'], 'its own pictures are passed over'
    sub = tmp_path / 'here/sub'
    for images, output in ((sub, sub), (sub / 'a.png', '../here/sub')):
        assert 'would write among the images in' in refusal(images, *SMALL, '--output', output)


@pytest.mark.slow
def test_names_of_any_bytes(command, photo, tmp_path):
    names = [b'a$x_$b$.png', 'größe-写真.png'.encode(), b'line\nbreak.png', b'\xff\xfe.png', b'n' * 251 + b'.png']
    (tmp_path / 'in').mkdir()
    for name in names:
        photo.resize((30, 30)).save(tmp_path / 'in' / os.fsdecode(name))
    out, err, manifest = command(tmp_path / 'in', *SMALL)
    assert len(manifest['images']) == 5 and not err and out.isascii() is False
    for entry in manifest['images']:
        assert os.path.exists(tmp_path / 'here/explained' / entry['files']['picture'])
    assert out.count('\n') == 6


# classes

NAMES = ['tench, Tinca tinca', 'crane', 'hot_spring', '7', 'crane, machine', 'English springer']


@pytest.mark.parametrize('text, index', [
    ('crane', 1), ('tench', 0), ('Tinca tinca', 0), ('HOT SPRING', 2), ('hot_spring', 2), ('7', 3), ('5', 5),
    ('machine', 4), ('english_springer', 5), ('0', 0)])
def test_classes_by_name_and_index(text, index):
    assert find_class(text, NAMES) == index


@pytest.mark.parametrize('text, words', [
    ('hotspring', 'There is no class hotspring among 6: did you mean hot_spring?'),
    ('zzzzzz', r'There is no class zzzzzz among 6: they are tench, Tinca tinca, crane, hot_spring, \.\.\.'),
    ('6', 'There is no class 6: give a name, or an index from 0 to 5'), ('-1', 'There is no class -1'),
    ('Crane', 'is the name of 2 classes, 1, 4: give its index')])
def test_classes_that_are_none(text, words):
    with pytest.raises(ValueError, match=words):
        find_class(text, NAMES)


@pytest.mark.slow
def test_the_true_class_is_that_of_the_folder(command, image_folder, run_folder, tmp_path):
    class Named:
        label_names = NAMES
    assert folder_classes(Named, ['a/b', 'c']) == {'a-b': 0, 'c': 1}
    many = folder_classes(Named, ImageNetInfo().label_descriptions())
    assert many['n01440764'] == many['tench, Tinca tinca'] == many['tench'] == 0
    assert 'crane' not in many and many['n02012849'] == 134, 'two are called so'

    out, _, manifest = command(image_folder, '--checkpoint', run_folder, '-j', '0', '--img-size', '128')
    entries = manifest['images']
    right = {when: sum(e[when][0] == {**e['true'], 'probability': e[when][0]['probability']} for e in entries)
             for when in ('before', 'after')}
    assert f'{right["before"]} of 10 right, {right["after"]} right without' in out
    assert out.count('(right)') == right['before'] and out.count('(wrong: ') == 10 - right['before']
    argv = ('--checkpoint', run_folder, '-j', '0', '--img-size', '128')
    _, _, manifest = command(image_folder / 'val/right/0.jpg', *argv, output='one')
    assert manifest['images'][0]['true'] == {'index': 1, 'name': 'right'}
    shutil.copy(image_folder / 'val/right/0.jpg', tmp_path / 'photo.jpg')
    out, _, manifest = command(tmp_path / 'photo.jpg', *argv, output='unknown')
    assert manifest['images'][0]['true'] is None and 'right' not in out.splitlines()[-1]


def test_another_class_is_explained(command, refusal, image_folder):
    argv = (image_folder / 'val/left/0.jpg', *SMALL)
    torch.manual_seed(0)
    _, _, manifest = command(*argv, '--class', 'English springer')
    entry, = manifest['images']
    assert manifest['label'] == {'index': 217, 'name': 'English springer, English springer spaniel'}
    assert entry['label']['index'] == 217 != entry['before'][0]['index'] and len(entry['before']) == 5
    assert not os.path.exists('explained/sheet.png'), 'of one image'
    torch.manual_seed(0)
    loaded = load_model('test_resnet', img_size=128)
    x = create_transform(**loaded.data_config)(Image.open(argv[0]).convert('RGB'))[None]
    assert np.allclose(np.load('explained/0.npy'), explain(loaded.model, x, target=217).map[0], atol=1e-5)
    assert re.search('no class springe among 1000: did you mean', refusal(*argv, '--class', 'springe'))
    assert 'give a name, or an index from 0 to 999' in refusal(*argv, '--class', '1000')


def test_classes_without_names_have_numbers(command, image_folder, tmp_path):
    torch.save(timm.create_model('test_resnet', num_classes=17).state_dict(), tmp_path / 'w.pth')
    _, _, manifest = command(image_folder / 'val/left/0.jpg', *SMALL, '--checkpoint', tmp_path / 'w.pth')
    assert all(a['name'] == f'class {a["index"]}' for a in manifest['images'][0]['before'])
    assert manifest['map'] == 'classifier' and manifest['threshold'] == 0.7


# pictures

@pytest.mark.slow
@pytest.mark.long('svg')
@pytest.mark.parametrize('kind', ['png', 'pdf', 'svg'])
def test_pictures_of_every_format_write_words_as_they_are(command, photo, tmp_path, kind):
    names = ['$\\frac{1$', '<b>&amp;</b>', '{{ x }} $a_b$', 'plain', '\x1b[31mred\u202e', '写真']
    folder = tmp_path / 'a $b$ & c'
    for i in range(2):
        (folder / 'val' / f'{i}').mkdir(parents=True)
        photo.resize((60, 50)).save(folder / 'val' / f'{i}' / '$x_$.jpg')
    model = timm.create_model('test_resnet', num_classes=6)
    torch.save({'state_dict': model.state_dict(), 'arch': 'test_resnet', 'args': argparse.Namespace(
        num_classes=6, label_names=names)}, tmp_path / '$w$.pth.tar')
    argv = (folder, '--checkpoint', tmp_path / '$w$.pth.tar', '--img-size', '128', '-j', '0', '--format', kind)
    _, err, manifest = command(*argv)
    assert 'drawn' not in err and len(manifest['images']) == 2
    pictures = [f for f in files(tmp_path / 'here/explained') if f.endswith(kind) and not f.endswith('-mask.png')]
    assert len(pictures) == 3 and f'sheet.{kind}' in pictures
    start = {'png': b'\x89PNG', 'pdf': b'%PDF', 'svg': b'<?xml'}[kind]
    assert all((tmp_path / 'here/explained' / f).read_bytes().startswith(start) for f in pictures)
    main(['area', *map(str, argv), '--output', 'area'])
    assert (tmp_path / 'here/area' / f'area.{kind}').read_bytes().startswith(start)


@pytest.mark.slow
def test_a_picture_that_cannot_be_drawn_ends_nothing(command, image_folder, monkeypatch):
    from timm_focus.analysis import plots
    draw = plots.explanation_plot

    def fails(picture, path):
        if picture.name.startswith('1'):
            raise RuntimeError('no fonts')
        draw(picture, path)
    monkeypatch.setattr(plots, 'explanation_plot', fails)
    _, err, manifest = command(image_folder / 'val/left', *SMALL)
    assert manifest['complete'] and len(manifest['images']) == 5
    assert '1.png cannot be drawn: RuntimeError: no fonts' in err


def test_names_that_lead_out_of_the_output_folder(image_folder, tmp_path, monkeypatch):
    """Of a shard of somebody else's, and of any other data set that names its images so."""
    shards = tmp_path / 'shards'
    shards.mkdir()
    (shards / 'label.cls').write_text('0')
    with tarfile.open(shards / 'val-0000.tar', 'w') as tar:
        for key in ('../../evil', 'sub/../../../evil', '.hidden/a', 'good'):
            tar.add(image_folder / 'val/left/0.jpg', arcname=f'{key}.jpg')
            tar.add(shards / 'label.cls', arcname=f'{key}.cls')
    (shards / '_info.json').write_text(json.dumps(dict(splits=dict(validation=dict(filenames=['val-0000.tar'])))))
    args = build_parser().parse_args(['explain', str(shards)])
    found, = find_sources(args, args.images, str(tmp_path / 'out'), ('.png',), ())
    assert found.base == 'val-0000.tar/good'
    for name in ('../evil.jpg', 'a/../../evil.jpg', '/evil.jpg'):
        monkeypatch.setattr('timm_focus.commands.sources.find_images', lambda *_: [found._replace(name=name)])
        with pytest.raises(ValueError, match='evil.jpg, so that what is made of it would lie outside of --output out'):
            find_sources(args, args.images, 'out', ('.png',), ())


# what can be looked at

@pytest.mark.slow
def test_an_output_goes_with_its_weights_and_settings(command, refusal, image_folder, run_folder, tmp_path):
    argv = (image_folder / 'val/left/0.jpg', '--checkpoint', run_folder, '-j', '0', '--img-size', '128')
    _, _, manifest = command(*argv)
    assert command(*argv)[2] == manifest, 'the same again'
    folder = tmp_path / 'here/explained'
    for more in (('--threshold', '0.5'), ('--class', 'right'), ('--img-size', '160')):
        assert f'{folder} holds explanations by other settings' in _ends(argv, *more, '--output', folder)
    checkpoint = torch.load(run_folder / 'model_best.pth.tar', weights_only=False)
    next(iter(checkpoint['state_dict'].values())).mul_(1.01)
    torch.save(checkpoint, run_folder / 'model_best.pth.tar')
    assert '(weights in ' in _ends(argv, '--output', folder)
    assert json.loads((folder / 'explained.json').read_text()) == manifest


def test_a_manifest_says_which_files_may_be_replaced(tmp_path):
    path, settings = str(tmp_path / 'explained.json'), dict.fromkeys(
        ('weights', 'threshold', 'label', 'data_config', 'feature', 'focus_map'), 1)
    own = {'a.png', 'b.png', 'sheet.png', 'never.png'}
    assert _check_output(path, settings, own) == set()
    with Manifest(path, own) as manifest:
        manifest.begin(settings)
        assert set(json.loads((tmp_path / 'explained.json').read_text())['other_files']) == own, 'after a kill, too'
        for name in ('a.png', 'b.png', 'sheet.png'):
            (tmp_path / name).touch()
        manifest.add(dict(files=dict(picture='a.png')))  # and it is interrupted before b
    assert json.loads((tmp_path / 'explained.json').read_text())['other_files'] == ['b.png', 'sheet.png']
    (tmp_path / 'c.png').touch()
    known = _check_output(path, settings, {'b.png'})
    assert known == {'a.png', 'b.png', 'sheet.png'}
    with Manifest(path, {'b.png'} | known) as manifest:  # of another image
        manifest.begin(settings)
        manifest.add(dict(files=dict(picture='b.png')))
    assert _check_output(path, settings, {'a.png', 'd.png'}) == known, 'and of the first one again'
    text = (tmp_path / 'explained.json').read_text()
    (tmp_path / 'explained.json').write_text(text.replace('focus_map', 'erased_by'))
    assert _check_output(path, settings, {'a.png'}) == known, 'a manifest with the old name'
    with pytest.raises(ValueError, match=r'c\.png is there already, and no explained\.json beside it says'):
        _check_output(path, settings, {'a.png', 'c.png'})


def _ends(argv, *more):
    with pytest.raises(SystemExit) as e, contextlib.redirect_stderr(io.StringIO()) as err:
        main(['explain', *map(str, (*argv, *more))])
    assert e.value.code == 2
    return err.getvalue()


@pytest.mark.slow
def test_a_map_that_is_coarse_is_told_and_one_place_is_refused(command, refusal, image_folder):
    argv = (image_folder / 'val/left/0.jpg', '--model', TINY, '--random-weights', '-j', '0')
    _, err, _ = command(*argv, '--img-size', '64')
    assert err == (f'The last feature map of {TINY} is 2 x 2 at images of 64 x 64, on which a share of the places says '
                   'little: for one of 4 x 4 or more take larger images, such as 128 x 128 (--img-size 128).\n')
    assert not command(*argv, '--img-size', '128', output='fine')[1]
    assert re.search(r'is 1 x 1 at images of 32 x 32, .*: take larger images, such as 128 x 128 \(--img-size 128\)',
                     refusal(*argv, '--img-size', '32'))


# images of every kind

@pytest.mark.slow
def test_images_of_every_kind(command, photo, tmp_path, monkeypatch):
    picture, folder = photo.resize((60, 40)), tmp_path / 'in'
    folder.mkdir()
    Image.new('RGB', (1, 1), 'red').save(folder / 'pixel.png')
    picture.convert('L').save(folder / 'grey.JPG')
    picture.convert('CMYK').save(folder / 'cmyk.jpg')
    deep = np.asarray(picture.convert('L')).astype(np.uint16) * 257
    Image.fromarray(deep).save(folder / 'deep.png')
    picture.convert('L').save(folder / 'shallow.PNG')
    picture.quantize(64).save(folder / 'palette.png', transparency=bytes([0] * 9 + [255] * 55))
    for ending in ('gif', 'png', 'webp'):
        picture.save(folder / f'moving.{ending}', save_all=True, append_images=[Image.new('RGB', (60, 40))])
    data = io.BytesIO()
    picture.save(data, 'jpeg')
    (folder / 'cut.jpg').write_bytes(data.getvalue()[:-300])
    (folder / 'text.png').write_text('no image')
    (folder / 'notes.txt').write_text('no image either')
    Image.new('L', (1, 5000)).save(folder / 'narrow.png')
    Image.new('L', (200, 250)).save(folder / 'large.png')
    os.symlink('nowhere', folder / 'gone.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 40_000)
    Image.new('L', (500, 300)).save(folder / 'huge.png')
    _, err, manifest = command(folder, *SMALL)
    assert {os.path.basename(e['file']) for e in manifest['images']} == {
        'pixel.png', 'grey.JPG', 'cmyk.jpg', 'deep.png', 'shallow.PNG', 'palette.png', 'moving.gif', 'moving.png',
        'moving.webp', 'large.png'}
    why = {os.path.basename(e['file']): e['why'] for e in manifest['left_out']}
    for name, words in (
            ('cut.jpg', 'it is damaged .*truncated'), ('text.png', 'it is no image of a format'),
            ('narrow.png', 'with 1 x 5,000 pixels it is too narrow'),
            ('huge.png', 'more than 80,000 pixels, which Pillow refuses')):
        assert re.search(words, why.pop(name))
        assert len(re.findall(rf'{name} is left out: .*\.\n', err)) == 1
    assert err.count('large.png is read, though its 200 x 250 pixels are more than the 40,000') == 1
    assert '1 file has no ending of an image (.txt), such as notes.txt; 1 link leads nowhere, such as gone.png.' in err
    assert not why and err.count('\n') == 6
    of = {os.path.basename(e['file']): e for e in manifest['images']}
    assert of['deep.png']['before'] == of['shallow.PNG']['before'], '16 bits of grey as 8'
    assert (of['pixel.png']['width'], of['pixel.png']['height']) == (1, 1)
    assert of['pixel.png']['boxes'] in ([[0, 0, 1, 1]], [])
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest


def test_none_is_left(refusal, image_folder, tmp_path):
    (tmp_path / 'in').mkdir()
    (tmp_path / 'in/a.jpg').write_text('no image')
    # the images are named as they are left out, too
    with pytest.raises(AssertionError, match='a.jpg is left out: it is no image'):
        refusal(tmp_path / 'in', *SMALL)
    (tmp_path / 'in/a.jpg').unlink()
    assert re.search('There are no images in .*: regular files .jpg, .png, .webp', refusal(tmp_path / 'in', *SMALL))
    assert 'There is no file or folder nowhere' in refusal('nowhere', *SMALL)


@pytest.mark.parametrize('argv, words', [
    (['--model', 'resnet81'], 'timm knows no model resnet81. Did you mean resnet'),
    ([], 'No model is named'),
    (['--model', TINY], f'{TINY} would have random weights'),
    (['--model', TINY, '--model', 'resnet18'], 'explain takes one model'),
    (['--model', TINY, '--threshold', '0'], '--threshold is 0.0: give a number above 0 and at most 1'),
    (['--model', TINY, '--threshold', 'nan'], '--threshold is nan'),
    (['--model', TINY, '--sheet', '10000'], '--sheet is 10000: give a number from 0 to 200'),
    (['--model', TINY, '-b', '0'], 'argument -b/--batch-size: 0 is given, where 1 or more is allowed'),
    (['--model', TINY, '-j', '-1'], '--workers is -1: give 0 or more'),
    (['--model', TINY, '--checkpoint', 'nowhere.pth'], 'There is no checkpoint nowhere.pth'),
    (['--model', TINY, '--device', 'nonsense'], '--device is nonsense'),
])
def test_a_mistake_is_one_line(refusal, image_folder, argv, words):
    assert words in refusal(image_folder, *argv)


def test_weights_that_cannot_answer_are_told(refusal, image_folder, tmp_path):
    state = timm.create_model(TINY, num_classes=2).state_dict()
    torch.save({**state, 'fc.bias': torch.full((2,), torch.nan)}, tmp_path / 'w.pth')
    line = refusal(image_folder, '--model', TINY, '--checkpoint', tmp_path / 'w.pth')
    assert 'numbers that are not finite: its training diverged' in line
    torch.save(timm.create_model('test_resnet', in_chans=5, num_classes=2).state_dict(), tmp_path / 'w.pth')
    line = refusal(image_folder, '--model', 'test_resnet', '--checkpoint', tmp_path / 'w.pth')
    assert 'takes images of 5 channels, where files give 1 (L) or 3 (RGB)' in line
    torch.save([1, 2], tmp_path / 'w.pth')
    assert 'holds a list, not weights' in refusal(image_folder, '--model', TINY, '--checkpoint', tmp_path / 'w.pth')
