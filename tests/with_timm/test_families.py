"""One small model of each family of timm goes through training and every command: a few with --slow, one of each family
with --long --all-models."""
import contextlib
import io
import json
import logging
import sys

import pytest
import timm
import torch
from PIL import Image
from test_all_models import smallest_of_each_class

import train_focus
from timm_focus.commands.main import main
from timm_focus.commands.models import describe_model

FEW = ['test_resnet', 'test_vit', 'test_mambaout']
SMALL, LARGER = 30_000_000, 170_000_000  # parameters


def typed(*argv):
    """What a command prints, and the one line with which it refuses, '' if it does not."""
    logging.getLogger().handlers.clear()
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(a) for a in argv])
        except SystemExit as e:
            code = e.code
    assert code in (0, 2), code
    return out.getvalue(), err.getvalue() if code else ''


def look(name, data, folder, size=None):
    """Every command on a model: raises where something is wrong."""
    cfg = timm.get_pretrained_cfg(name).to_dict()
    size = size or cfg['input_size'][1] // (2 if cfg['input_size'][1] > 512 and not cfg['fixed_input_size'] else 1)
    torch.manual_seed(0)
    kwargs = timm.models.resolve_model_input_args(name, dict(img_size=size), num_classes=2)
    model = timm.create_model(**kwargs)
    for p in model.parameters():
        if p.ndim > 1 and not p.any():  # Sequencer's classifier begins at 0, and would find every class nowhere
            torch.nn.init.normal_(p, std=0.02)
    torch.save(model.state_dict(), folder / f'{name}.pth')
    del model
    argv = (data, '--model', name, '--checkpoint', folder / f'{name}.pth', '--img-size', size, '-j', '0', '-b', '2')
    for command, file in (('area', 'area.json'), ('explain', 'explained.json'), ('validate', 'validate.json')):
        more = ('--erase', '25') if command == 'validate' else ()
        _, refused = typed(command, *argv, *more, '--output', folder / command / name)
        assert not refused, f'{command}: {refused}'
        found = json.loads((folder / command / name / file).read_text())
        if command == 'area':
            assert found[0]['n'] == 2 and 0 < found[0]['mean'] < 1, found
        elif command == 'explain':
            assert len(found['images']) == 2 and found['complete']
            assert all(0 <= e['erased'] < 1 and e['true'] is not None for e in found['images'])
        else:
            assert found[0]['n'] == 2 and found[0]['erasing']['25']['cam'] >= 0
    (folder / 'names.txt').write_text('class 0\nclass 1\n')
    out, refused = typed('predict', *argv, '--class-map', folder / 'names.txt', '--format', 'jsonl')
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 2 and all(0 < a['probability_1'] <= 1 for a in answers), (answers, refused)
    publish(train(name, data, folder, size))
    out, refused = typed('rf', name, '--format', 'json')
    assert refused.count('\n') == 1 if refused else json.loads(out)[0]['receptive_field'], refused
    row = describe_model(name, 2)
    assert row['multiply_adds'] > 1e7 and row['height'] > 1


def train(name, data, folder, size):
    """Folder of a run of two images, by focus training where the family has it."""
    focus = f'focus_{name}' if timm.list_models(f'focus_{name}') else name
    argv = sys.argv
    sys.argv = ['train_focus.py', *map(str, (
        data, '--model', focus, '--train-split', 'val', '--val-split', '', '--img-size', size, '-b', '2', '-j', '0',
        '--epochs', '1', '--lr', '1e-4', '--sheet-images', '0', '--device', 'cpu', '--output', folder / 'runs',
        '--experiment', name))]
    try:
        train_focus.main()
    finally:
        sys.argv = argv
    return folder / 'runs' / name


def publish(run):
    """What a run is published as can be made, and loaded by timm."""
    _, refused = typed('export', run, '--format', 'safetensors', '--output', run / 'out')
    assert not refused, f'export: {refused}'
    timm.create_model(f'local-dir:{run}/out', pretrained=True)
    said, refused = typed('push', run, 'user/name', '--license', 'mit', '--dataset', 'Two Photographs', '--dry-run')
    assert 'would go' in said and not refused, f'push: {refused}'
    assert 'Two Photographs' in (run / 'hub/README.md').read_text()


@pytest.fixture
def data(photo, tmp_path):
    for label, left in (('class 0', 0), ('class 1', 200)):
        folder = tmp_path / 'data/val' / label
        folder.mkdir(parents=True)
        photo.crop((left, 0, left + 250, 250)).resize((96, 96), Image.Resampling.BILINEAR).save(folder / '0.jpg')
    return tmp_path / 'data'


@pytest.mark.slow
@pytest.mark.long('mambaout')
@pytest.mark.parametrize('name', FEW)
def test_a_few_families(name, data, tmp_path, quietly):
    pytest.importorskip('pytorch_grad_cam')
    look(name, data, tmp_path, 96)


@pytest.mark.long
@pytest.mark.parametrize('module', [
    module for module in timm.list_modules() if timm.list_models(module=module, exclude_filters='focus_*')])
def test_every_family(module, request, data, tmp_path, quietly):
    if not request.config.getoption('--all-models'):
        pytest.skip('takes half a minute and more: give --all-models')
    names = smallest_of_each_class(SMALL, module) or smallest_of_each_class(LARGER, module)
    if not names:
        pytest.skip(f'{module} has no model of at most {LARGER / 1e6:.0f} M parameters')
    look(next(iter(names.values())), data, tmp_path)
