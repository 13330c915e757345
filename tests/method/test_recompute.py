"""Recomputing the first pass: the ordinary step, number for number, with the activations of one pass."""
import pytest
import timm
import torch
from timm.layers import convert_sync_batchnorm
from torch.nn import functional as F

from timm_focus import FocusLoss
from timm_focus.analysis import peak_bytes

MODELS = {  # with dropout and stochastic depth where they have it, a norm of each kind; narrow, as bfloat16 is slow
    'test_resnet': (64, dict(drop_rate=0.2, drop_path_rate=0.2)),
    'resnetv2_18': (64, dict(drop_rate=0.2, drop_path_rate=0.2, channels=(16, 24, 32, 48), stem_chs=16)),
    'shufflenetv2_x0_5': (64, dict(drop_rate=0.2, stages_repeats=(2, 2, 2))),
    'densenet121': (64, dict(drop_rate=0.2, block_config=(1, 2, 2, 1), growth_rate=8)),
    'test_efficientnet': (64, dict(drop_rate=0.2, drop_path_rate=0.2)),
    'test_efficientnet_evos': (64, dict(drop_rate=0.2)),  # EvoNorm keeps a running variance of its own
    'test_convnext': (64, dict(drop_rate=0.2, drop_path_rate=0.2, depths=(1, 1, 2, 1))),
    'vit_tiny_patch16_224': (64, dict(drop_rate=0.2, drop_path_rate=0.2, depth=4, embed_dim=48, img_size=64)),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def train(name, photos, amp=False, steps=2, loss=None, compiled=False, sync_bn=False, **focus):
    """Losses, gradients of each step, and the state that training steps lead to."""
    torch.manual_seed(0)
    size, kwargs = MODELS[name]
    model = timm.create_model(f'focus_{name}', num_classes=5, **kwargs, **focus).train()
    if sync_bn:
        model = convert_sync_batchnorm(model)
    loss = loss or FocusLoss()
    model.set_branches(loss.uses_side, loss.uses_erased, loss.scorer)
    run = torch.compile(model, backend='aot_eager', fullgraph=True) if compiled else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    seen = []
    for step in range(steps):
        torch.manual_seed(step)
        x, y = photos(4, size).roll(step, 0), torch.arange(4)
        with torch.autocast('cpu', torch.bfloat16, enabled=amp):
            terms = loss(run(x), y)
        terms['loss'].backward()
        seen.append({**terms, **{k: p.grad.clone() for k, p in model.named_parameters() if p.grad is not None}})
        optimizer.step()
        optimizer.zero_grad()
    return model, seen


def assert_equal(a, b, **tolerance):
    (first, seen), (second, recomputed) = a, b
    assert len(seen) == len(recomputed) == 2
    for one, other in zip((*seen, first.state_dict()), (*recomputed, second.state_dict())):
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, msg=lambda m: f'{key}: {m}', **tolerance)


@pytest.mark.slow('-bfloat16', 'evos', 'shufflenet', 'convnext', 'resnetv2')
@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('bn', ['shared', 'clean'])
@pytest.mark.parametrize('name', [
    n if n in timm.list_models() else pytest.param(n, marks=pytest.mark.skip(reason='not in this timm'))
    for n in MODELS])
def test_recomputing_changes_no_number(name, bn, amp, photos):
    whole, recomputed = (train(name, photos, amp, focus_bn=bn, focus_recompute=r) for r in (False, True))
    assert_equal(whole, recomputed, rtol=0, atol=0)
    counters = [v for k, v in recomputed[0].state_dict().items() if k.endswith('num_batches_tracked')]
    assert all(int(v) == (2 if bn == 'clean' else 4) for v in counters)


@pytest.mark.parametrize('focus, loss', [
    (dict(focus_fraction=0.5), None),
    (dict(sync_bn=True), None),  # torch's layer insists on its counter; alone, a process has nothing to wait for
    (dict(focus_map='random'), None),
    ({}, FocusLoss(consistency='attention_mining')),
    ({}, FocusLoss(alpha=0, beta=0)),
])
def test_recomputing_changes_no_number_of_a_variant(focus, loss, photos):
    assert_equal(*(train('test_resnet', photos, loss=loss, focus_recompute=r, **focus) for r in (False, True)),
                 rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.long('clean')
@pytest.mark.parametrize('name, bn', [
    ('test_resnet', 'shared'), ('test_resnet', 'clean'), ('vit_tiny_patch16_224', 'shared')])
def test_compiled_recomputing_equals_eager(name, bn, photos, monkeypatch):
    """Without dropout, whose draws come in another order when compiled."""
    size, kwargs = MODELS[name]
    still = {k: v for k, v in kwargs.items() if not k.startswith('drop')}
    monkeypatch.setitem(MODELS, name, (size, still))
    torch._dynamo.reset()
    try:
        assert_equal(train(name, photos, focus_bn=bn),
                     train(name, photos, focus_bn=bn, focus_recompute=True, compiled=True), rtol=2e-3, atol=2e-4)
    finally:
        torch._dynamo.reset()


def test_an_error_in_the_recomputation_leaves_the_layers_as_they_were(photos):
    model = timm.create_model('focus_resnet10t', num_classes=5, focus_recompute=True).train()
    out = model(photos(2))
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [(m.momentum, m.num_batches_tracked.clone()) for m in norms]
    fail = model.backbone.layer3.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (out.main.sum() + out.erased.sum()).backward()
    fail.remove()
    assert [(m.momentum, m.num_batches_tracked) for m in norms] == before and norms


def test_the_activations_of_one_pass_are_kept(photos):
    peaks = {}
    x, y = photos(8, 64), torch.arange(8) % 5
    for kind, focus in (('plain', None), ('focus', False), ('recompute', True)):
        name = 'resnet10t' if focus is None else 'focus_resnet10t'
        model = timm.create_model(name, num_classes=5, **({} if focus is None else dict(focus_recompute=focus))).train()
        loss = FocusLoss()
        peaks[kind] = peak_bytes(
            model, lambda: F.cross_entropy(model(x), y) if focus is None else loss(model(x), y)['loss'])
    assert peaks['focus'] > 1.9 * peaks['plain']
    assert peaks['recompute'] <= 1.06 * peaks['plain']


def test_recomputing_and_checkpointing_are_one_too_many():
    model = timm.create_model('focus_resnet10t', num_classes=5, focus_recompute=True)
    with pytest.raises(ValueError, match='does not go with focus_recompute'):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)
