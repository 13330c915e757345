"""An export in transformers: timm's weights and images bit for bit, and so its logits."""
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
import timm, torch
torch.set_num_threads(1)
image = Image.open(sys.argv[1]).convert('RGB')
found = {}
for folder in sys.argv[2:]:
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    plain = timm.create_model('local-dir:' + folder, pretrained=True).eval()
    x = timm.data.create_transform(**timm.data.resolve_data_config({}, model=plain))(image)[None]
    with torch.no_grad():
        y, logits = processor(image, return_tensors='pt')['pixel_values'], plain(x)
        ours, theirs = plain.state_dict(), model.timm_model.state_dict()
        assert torch.equal(x, y) and ours.keys() == theirs.keys(), folder
        assert all(torch.equal(ours[k], theirs[k]) for k in ours), folder
        # weights that lie elsewhere in memory may be summed in another order: exactly where they lie alike
        torch.testing.assert_close(model(y).logits, logits, atol=1e-5, rtol=1e-5)
        plain.load_state_dict(theirs)
        assert torch.equal(plain(y), logits), folder
    found[folder] = logits.tolist()
    assert model.config.id2label == {0: 'a', 1: 'b', 2: 'c'}
card = open(sys.argv[2] + '/README.md').read()
(block,) = [b for b in re.findall(r'^```python\\n(.*?)^```', card, re.M | re.S) if 'transformers' in b]
exec(block)
found['card'] = {answer['label']: answer['score'] for answer in classify(image)}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_same_logits(hub, tmp_path, photo):
    """From a folder, of models of several kinds; and from the Hub by the lines of the card."""
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
    for (name, model), folder in zip(models.items(), folders):
        config = json.loads((tmp_path / name / 'config.json').read_text())
        transform = timm.data.create_transform(**timm.data.resolve_data_config(config['pretrained_cfg']))
        with torch.no_grad():
            logits = model.eval()(transform(photo)[None])
        torch.testing.assert_close(torch.tensor(found[folder]), logits, atol=1e-5, rtol=1e-5)  # of another process
        assert config['num_classes'] == 3 and 'num_classes' not in config['model_args']
        if folder == folders[0]:
            expected = dict(zip('abc', logits[0].softmax(0).tolist()))
            assert found['card'] == pytest.approx(expected, abs=1e-5)
