"""One training step, evaluation and export of a model of many classes in timm, or of every one of them.

With --slow a list of small ones; with --long those of the registry, which takes minutes to read, that have at most 5 M
parameters; with --long --all-models every class. What is exported is reloaded by timm alone, in one process that cannot
know timm_focus.
"""
import gc
import json
import subprocess
import sys

import pytest
import timm
import torch
from timm.models import get_model_args, save_for_hf
from timm.task import ClassificationTask
from torch.nn.modules.module import register_module_parameter_registration_hook

import timm_focus
from timm_focus.training import FocusTask

SMALL = 5_000_000
# the smallest of each class that has one of at most 5 M parameters, in timm 1.0.31
FEW = (
    'test_byobnet', 'test_convnext', 'cs3darknet_focus_s', 'cspnext_tiny', 'dla46x_c', 'edgenext_xx_small',
    'efficientformerv2_s0', 'test_efficientnet', 'efficientvit_b0', 'efficientvit_m0', 'fastvit_t8', 'fasternet_t0',
    'ghostnet_050', 'iformer_t', 'lcnetv2_small', 'test_mambaout', 'test_coatnet', 'inception_next_atto',
    'mobilenetv3_small_050', 'test_nfnet', 'pit_ti_224', 'pvt_v2_b0', 'regnetx_002', 'repghostnet_050', 'test_resnet',
    'rexnet_100', 'shufflenetv2_x0_5', 'starnet_s050', 'swiftformer_xs', 'test_vit', 'test_vit_relpos',
    'ese_vovnet19b_slim_dw', 'xcit_nano_12_p8_224')
NUM_CLASSES = 5

RELOAD = '''
import json, sys, timm, torch
torch.set_num_threads(1)
wrong = {}
for folder in json.load(open(sys.argv[1])):
    try:
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        sample = torch.load(f'{folder}/sample.pt', weights_only=True)
        with torch.no_grad():
            torch.testing.assert_close(model(sample['x']), sample['y'], rtol=0, atol=0)
    except Exception as e:
        wrong[folder] = f'{type(e).__name__}: {e}'
assert 'timm_focus' not in sys.modules
print(json.dumps(wrong))
'''


class TooLarge(Exception):
    pass


def smallest_of_each_class(limit, module=''):
    """Name of the smallest model of every model class, of those within the limit and the module if they are given."""
    smallest, count = {}, 0

    def stop_when_too_large(module, name, parameter):
        nonlocal count
        count += parameter.numel() if parameter is not None else 0
        if limit is not None and count > 3 * limit:  # shared or replaced parameters are counted again
            raise TooLarge

    hook = register_module_parameter_registration_hook(stop_when_too_large)
    try:
        for name in timm.list_models(module=module, exclude_filters='focus_*'):
            if not timm.is_model(f'focus_{name}'):
                continue
            count = 0
            try:
                with torch.device('meta'):
                    model = timm.create_model(name)
            except (TooLarge, RuntimeError, NotImplementedError):  # some gemma4_vit cannot be made on meta
                continue
            size = sum(p.numel() for p in model.parameters())
            kind = type(model).__name__
            if (limit is None or size <= limit) and size < smallest.get(kind, ('', float('inf')))[1]:
                smallest[kind] = (name, size)
    finally:
        hook.remove()
    return {kind: name for kind, (name, _) in smallest.items()}


def make(name):
    """The plain and the focus model, same seed, and an input that they take."""
    cfg = timm.get_pretrained_cfg(name).to_dict()
    size = cfg.get('min_input_size') or cfg['input_size']
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=NUM_CLASSES).train()
    torch.manual_seed(0)
    focus = timm.create_model(f'focus_{name}', num_classes=NUM_CLASSES).train()
    return plain, focus, size


def gradients(task, x, target):
    torch.manual_seed(1)
    result = task(x, target)
    result['loss'].backward()
    return result, {n for n, p in task.trainable_module.named_parameters() if p.grad is not None}


def check(name, photos, folder):
    """Train one step, compare in evaluation, export: raises where something is wrong."""
    plain, focus, (channels, height, width) = make(name)
    x, target = photos(2, height, channels)[..., :width], torch.tensor([1, 3])

    result, with_gradient = gradients(FocusTask(focus, verbose=False), x, target)
    assert result['output'].shape == (2, NUM_CLASSES)
    assert all(torch.isfinite(v).all() for v in result.values())
    assert 0 <= result['erased_fraction'] < 1
    _, expected = gradients(ClassificationTask(plain, verbose=False), x, target)
    missing = {f'backbone.{n}' for n in expected} - with_gradient
    assert not missing, f'no gradient on {sorted(missing)[:3]}'
    heads = {n for n, _ in focus.named_parameters() if n.startswith(('cam_head.', 'erased_head.'))}
    assert len(heads) == 6 and heads <= with_gradient
    with torch.no_grad():
        # a step, so that what is exported is not what a fresh model of the same seed would be
        for p in focus.parameters():
            if p.grad is not None:
                p -= 1e-3 * p.grad.sign()

    del plain
    focus.eval()
    exported = timm_focus.export_backbone(focus)
    assert exported.pretrained_cfg['architecture'] == name
    with torch.no_grad():
        y = focus(x)
        assert torch.equal(y, focus.backbone(x))
        assert torch.equal(y, exported(x))
    pointers = [v.data_ptr() for v in exported.state_dict().values() if v.numel()]
    shared = len(set(pointers)) < len(pointers)  # safetensors takes no tensors that share memory, such as CoaT's
    save_for_hf(exported, folder, model_args=get_model_args(exported), safe_serialization=not shared)
    torch.save({'x': x, 'y': y}, folder / 'sample.pt')


def check_all(names, photos, folder):
    torch.set_num_threads(1)
    wrong, folders = {}, []
    for name in names:
        try:
            check(name, photos, folder / name)
            if not name.startswith('shufflenetv2_'):  # timm alone does not have it
                folders.append(str(folder / name))
        except Exception as e:
            wrong[name] = f'{type(e).__name__}: {str(e)[:300]}'
        gc.collect()
        print(name, wrong.get(name, 'ok'), flush=True)
    (folder / 'folders.json').write_text(json.dumps(folders))
    process = subprocess.run(
        [sys.executable, '-c', RELOAD, str(folder / 'folders.json')], capture_output=True, text=True, cwd=folder)
    assert process.returncode == 0, process.stderr
    reloaded = json.loads(process.stdout.splitlines()[-1])
    print(f'{len(names)} models, {len(wrong)} wrong, {len(folders)} reloaded, {len(reloaded)} of them wrong')
    assert not wrong and not reloaded, json.dumps({**wrong, **reloaded}, indent=1)


@pytest.mark.slow
def test_a_model_of_many_classes(photos, tmp_path):
    names = [name for name in FEW if timm.is_model(name)]  # an older timm does not have them all
    assert len(names) >= 25
    check_all(names, photos, tmp_path)


@pytest.mark.long
def test_every_model_class(request, photos, tmp_path):
    names = smallest_of_each_class(None if request.config.getoption('--all-models') else SMALL)
    assert len(names) >= 30, 'the registry holds more classes than that'
    check_all(sorted(names.values()), photos, tmp_path)
