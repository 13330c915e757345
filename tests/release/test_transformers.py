"""An export in transformers: the same logits, bit for bit."""
import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ENVIRONMENT

import timm_focus

pytest.importorskip('transformers', reason="pip install -e '.[test]' installs it")
ABOUT = dict(license='cc-by-4.0', dataset='My Scenes', label_names=['a', 'b', 'c'])
CODE = """
import json, re, sys
sys.modules['timm_focus'] = None  # as where it is not installed
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
import torch
image = Image.open(sys.argv[1]).convert('RGB')
found = {}
for folder in sys.argv[2:]:
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        found[folder] = model(processor(image, return_tensors='pt')['pixel_values']).logits.tolist()
    assert model.config.id2label == {0: 'a', 1: 'b', 2: 'c'}
card = open(sys.argv[2] + '/README.md').read()
(block,) = [b for b in re.findall(r'^```python\\n(.*?)^```', card, re.M | re.S) if 'transformers' in b]
exec(block)
found['card'] = {answer['label']: answer['score'] for answer in classify(image)}
print(json.dumps(found))
"""


def test_the_same_logits(hub, tmp_path, photo):
    """From a folder, of models of several kinds, and from the Hub by the lines of the card."""
    photo.save(tmp_path / 'photo.png')
    models = {
        'resnet': timm.create_model('focus_test_resnet', num_classes=3),
        'vit': timm.create_model('focus_test_vit', num_classes=3, img_size=64),
        'convnext': timm.create_model('test_convnext', num_classes=3, drop_rate=0.1),
        'efficientnet': timm.create_model('test_efficientnet', num_classes=3, global_pool='max'),
    }
    folders = [str(timm_focus.save_for_hub(model, tmp_path / name, repo_id='user/name', **ABOUT))
               for name, model in models.items()]
    timm_focus.release.push_folder(folders[0], 'user/name')
    done = subprocess.run(
        [sys.executable, '-c', CODE, tmp_path / 'photo.png', *folders], cwd=tmp_path, capture_output=True, text=True,
        env={**ENVIRONMENT, **hub.environment, 'TRANSFORMERS_VERBOSITY': 'error', 'PYTHONPATH': os.getcwd()})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for folder in folders:
        plain = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=plain))
        with torch.no_grad():
            logits = plain(transform(photo)[None])
        assert torch.equal(torch.tensor(found[folder]), logits), folder
        config = json.loads(open(f'{folder}/config.json').read())
        assert config['num_classes'] == 3 and 'num_classes' not in config['model_args']
        if folder == folders[0]:
            expected = dict(zip('abc', logits[0].softmax(0).tolist()))
            assert found['card'] == pytest.approx(expected, abs=1e-5)
