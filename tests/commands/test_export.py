"""timm-focus export: files that timm and another runtime load, compared on a real photograph."""
import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ENVIRONMENT
from PIL import Image
from timm.data import create_transform

from timm_focus.runs import load_model
from timm_focus.commands.main import main

BY_ONNX = """
import json, sys
for name in ('timm_focus', 'timm', 'torch'):
    sys.modules[name] = None
import numpy as np, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1] + '/model.onnx', providers=['CPUExecutionProvider'])
about = session.get_modelmeta().custom_metadata_map
config, names = json.loads(about['data_config']), json.loads(about['label_names'])
images = []
for path in sys.argv[2:]:  # resize the short side, crop the middle, normalise
    size = config['input_size'][1]
    image, side = Image.open(path).convert('RGB'), int(size / config['crop_pct'])
    image = image.resize([int(side * n / min(image.size)) for n in image.size], Image.Resampling.BILINEAR)
    left, top = (round((n - size) / 2) for n in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), np.float32) / 255
    images.append(((pixels - np.float32(config['mean'])) / np.float32(config['std'])).transpose(2, 0, 1))
logits = session.run(['logits'], {'images': np.stack(images)})[0]
alone = np.concatenate([session.run(['logits'], {'images': image[None]})[0] for image in images])
assert np.allclose(logits, alone, atol=1e-5), 'any batch size'
json.dump([names, logits.tolist()], sys.stdout)
"""


@pytest.fixture
def photographs(tmp_path, photo):
    paths = [str(tmp_path / f'{i}.png') for i in range(3)]
    for i, path in enumerate(paths):
        photo.crop((40 * i, 30 * i, 40 * i + 300, 30 * i + 350)).save(path)
    return paths


def by_timm(folder, paths):
    """By timm alone; test_hub.py and test_all_models.py do so in processes that cannot import timm_focus."""
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    transform = create_transform(**timm.data.resolve_data_config({}, model=model))
    with torch.no_grad():
        logits = model(torch.stack([transform(Image.open(path).convert('RGB')) for path in paths]))
    return model.pretrained_cfg['label_names'], logits.tolist()


def by_onnx(folder, paths):
    """By a process without torch."""
    done = subprocess.run(
        [sys.executable, '-c', BY_ONNX, folder, *paths], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow('onnx')
@pytest.mark.parametrize('kind, load, tolerance', [('safetensors', by_timm, 0), ('onnx', by_onnx, 1e-4)])
def test_a_run_elsewhere(kind, load, tolerance, train, photographs, capsys):
    if kind == 'onnx':
        pytest.importorskip('onnxscript', reason="pip install -e '.[test]' installs it")
        pytest.importorskip('onnxruntime', reason="pip install -e '.[test]' installs it")
    run = train('--img-size 64 --crop-pct 0.8 --mean 0.4 0.5 0.6 --std 0.2 0.3 0.4')
    main(['export', str(run.folder), '--format', kind])
    folder = run.folder / kind
    assert f'Exported to {folder}/model.{kind}' in capsys.readouterr().out
    config = []
    if kind == 'safetensors':
        main(['export', str(run.folder), '--format', kind])  # once more, in its place
        config = ['config.json']
    assert sorted(os.listdir(folder)) == ['.timm_focus.json', *config, f'model.{kind}']
    names, logits = load(folder, photographs)
    assert names == ['left', 'right']
    loaded = load_model(checkpoint=str(run.folder))
    transform = create_transform(**loaded.data_config, is_training=False)
    with torch.no_grad():
        expected = loaded.model(torch.stack([transform(Image.open(path)) for path in photographs]))
    assert expected.std(0).min() > 1e-3, 'the photographs differ'
    torch.testing.assert_close(torch.tensor(logits), expected, atol=tolerance, rtol=tolerance)


def test_nothing_else_is_replaced(finished_run, capsys, tmp_path):
    with pytest.raises(SystemExit) as e:
        main(['export', str(finished_run), '--format', 'safetensors', '--output', str(finished_run)])
    assert e.value.code == 2 and 'holds something else' in capsys.readouterr().err
    assert (finished_run / 'model_best.pth.tar').exists()
    main(['export', str(finished_run), '--format', 'safetensors', '--output', str(tmp_path / 'new')])
    cfg = json.loads((tmp_path / 'new/config.json').read_text())['pretrained_cfg']
    assert 'license' not in cfg and 'tag' not in cfg, 'those of weights that these are no longer'


def test_onnx_is_an_extra(finished_run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(SystemExit):
        main(['export', str(finished_run), '--format', 'onnx'])
    assert "pip install 'timm_focus[onnx]'" in capsys.readouterr().err and not (finished_run / 'onnx').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name, kwargs', [
    ('test_vit', dict(img_size=64)),
    ('shufflenetv2_x0_5', dict(stages_repeats=(2, 2, 2))),
    pytest.param('test_convnext', dict(depths=(1, 1, 2, 1)), marks=pytest.mark.long),
    pytest.param('densenet121', dict(block_config=(1, 2, 2, 1), growth_rate=8), marks=pytest.mark.long),
    pytest.param('swin_tiny_patch4_window7_224', dict(img_size=64, depths=(1, 1, 2, 1), embed_dim=24),
                 marks=pytest.mark.long)])
def test_onnx_of_other_models(name, kwargs, tmp_path, photos):
    import numpy as np
    onnxruntime = pytest.importorskip('onnxruntime')
    from timm_focus.release import save_onnx
    model = timm.create_model(f'focus_{name}', num_classes=5, **kwargs).eval()
    save_onnx(model, tmp_path / 'm.onnx', data_config=timm.data.resolve_data_config(dict(img_size=64), model=model))
    x = photos(3, 64)
    session = onnxruntime.InferenceSession(str(tmp_path / 'm.onnx'), providers=['CPUExecutionProvider'])
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(None, {'images': x.numpy()})[0], model(x).numpy(), atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_what_timm_cannot_load_is_refused(train, capsys):
    run = train('--method acol --img-size 64', 'acol', model='test_resnet')
    for command in (['export', str(run.folder), '--format', 'safetensors'],
                    ['push', str(run.folder), 'user/name', '--license', 'mit', '--dataset', 'x', '--dry-run']):
        with pytest.raises(SystemExit) as e:
            main(command)
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.count('\n') == 1 and 'a head of ACoL' in err and 'create_acol' in err
    assert not (run.folder / 'hub').exists() and not (run.folder / 'safetensors').exists()
