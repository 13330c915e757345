"""Two backward passes in turn, and steps without erasing: gradients, and everything between them and a step."""
import functools

import pytest
import timm
import torch
import torch.distributed as dist
from timm.utils import NativeScaler

from timm_focus import FocusLoss
from timm_focus.analysis import peak_bytes
from timm_focus.training import FocusTask
from timm_focus.training.loop import _backward

LOSSES = {
    'detached': dict(kl_detach='main'),
    'main, detached': dict(kl_detach='main', scored_by='main', kl_direction='main_erased'),
    'cpc': dict(beta=0),
    'mining': dict(consistency='attention_mining'),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def gradients(photos, recompute, loss, name='test_resnet', wrap=None, dtype=None, scaler=None, parts=1, **focus):
    """Terms of a step and the gradients that it leaves; in turn with `recompute`."""
    torch.manual_seed(0)
    model = timm.create_model(f'focus_{name}', num_classes=5, drop_rate=0.1, focus_recompute=recompute, **focus).train()
    task = FocusTask(model if dtype else model.double(), FocusLoss(**loss))
    if wrap:
        getattr(task, wrap)(**(dict(backend='eager') if wrap == 'compile' else {}))
    x, y = photos(4 * parts, 64, dtype=torch.float32 if dtype else torch.float64), torch.arange(4 * parts) % 5
    for i, (images, labels) in enumerate(zip(x.chunk(parts), y.chunk(parts))):
        torch.manual_seed(i)
        with torch.autocast('cpu', dtype or torch.bfloat16, enabled=dtype is not None):
            terms = task.training_step(
                images, labels, i, functools.partial(_backward, scale=1 / parts, scaler=scaler))
        assert ('to_go' in terms) == recompute
        left = terms.pop('to_go', terms['loss']) / parts
        if scaler is None:
            left.backward()
        else:
            scaler(left, None, need_update=False)
    return terms, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}, dict(model.named_buffers())


def assert_alike(one, other, **tolerance):
    for a, b in zip(one, other):
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(b[key], a[key], msg=lambda m, key=key: f'{key}: {m}', **tolerance)


@pytest.mark.parametrize('loss', LOSSES)
def test_gradients_and_statistics_are_those_of_one_backward_pass(loss, photos):
    assert_alike(*(gradients(photos, r, LOSSES[loss]) for r in (False, True)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('more', [
    pytest.param(dict(wrap='compile'), marks=pytest.mark.slow), dict(parts=2),
    dict(focus_fraction=0.5), dict(focus_map='grid', focus_size=0.75),
    dict(name='test_vit', img_size=64, focus_drop_tokens=True)], ids=str)
def test_it_composes(more, photos):
    one, other = (gradients(photos, r, LOSSES['detached'], **more) for r in (False, True))
    assert_alike(one, other, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_under_mixed_precision_they_are_as_near_the_exact_ones(dtype, photos):
    """Of both parts, with the loss scaler: rounding is no larger than in one pass."""
    def run(recompute, dtype):
        scaler = NativeScaler('cpu') if dtype is torch.float16 else None
        terms, found, _ = gradients(photos, recompute, LOSSES['detached'], dtype=dtype or None, scaler=scaler)
        scale = scaler.state_dict()['scale'] if scaler else 1
        return torch.cat([g.double().flatten() / scale for g in found.values()])

    exact = gradients(photos, False, LOSSES['detached'])[1]
    exact = torch.cat([g.flatten() for g in exact.values()])
    joint, turned = (float((run(r, dtype) - exact).norm() / exact.norm()) for r in (False, True))
    assert turned < 1.2 * joint + 1e-3, (joint, turned)


@pytest.mark.parametrize('loss', ['detached', 'main, detached'])
def test_ddp_reduces_once_and_misses_nothing(loss, photos, tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        one = gradients(photos, False, LOSSES[loss])
        other = gradients(photos, True, LOSSES[loss], wrap='prepare_distributed', parts=1)
        assert_alike(one, other, rtol=1e-9, atol=1e-12)
    finally:
        dist.destroy_process_group()


def test_the_activations_of_one_pass_are_kept(photos):
    x, y, peaks = photos(8, 64), torch.arange(8) % 5, {}
    for recompute in (False, True):
        model = timm.create_model('focus_resnet10t', num_classes=5, focus_recompute=recompute).train()
        task = FocusTask(model, FocusLoss(kl_detach='main'))

        def loss_of(task=task):
            terms = task.training_step(x, y, 0, functools.partial(_backward, scale=1.))
            return terms.pop('to_go', terms['loss'])

        peaks[recompute] = peak_bytes(model, loss_of)
    assert peaks[True] < 0.7 * peaks[False]


def test_where_it_is_not_exact_the_first_pass_is_recomputed(photos):
    model = timm.create_model('focus_test_resnet', num_classes=5, focus_recompute=True).train()
    task = FocusTask(model, FocusLoss())  # whose consistency loss trains the main classifier
    calls = []
    terms = task.training_step(photos(4), torch.arange(4), 0, calls.append)
    assert 'to_go' not in terms and not calls


# steps without

def test_every_other_step_erases(photos):
    model = timm.create_model('focus_test_resnet', num_classes=5).train()
    task = FocusTask(model, every=2)
    seen = [task.training_step(photos(4), torch.arange(4), batch, None) for batch in (0, 1, 2, 3, 1)]
    assert [terms['erased_loss'] > 0 for terms in seen] == [True, False, True, False, False]
    assert [terms['erased_fraction'] > 0 for terms in seen] == [True, False, True, False, False]


SWITCHES = {
    'share': '--focus-share 0.3', 'grid': '--focus-map grid', 'size': '--focus-size 0.75', 'every': '--focus-every 2',
    'in turn': '--focus-recompute --focus-kl-detach main --grad-accum-steps 2 --clip-grad 1',
    'main': '--focus-scored-by main --focus-kl-detach main', 'copied': '--focus-copy-head --focus-start 1',
    'tokens': '--focus-drop-tokens',
}
MIXED = ('in turn', 'tokens')  # the others take the same way through autocast, which is slow on many processors


@pytest.mark.slow
@pytest.mark.parametrize('name', SWITCHES)
def test_a_run_goes_on_bit_for_bit(train, name):
    """Stopped after the first epoch of two; what is kept is a plain model."""
    from conftest import equal
    model = 'test_vit' if name == 'tokens' else 'test_resnet'
    more = f'--img-size 64 --epochs 2 {SWITCHES[name]} --model-ema{" --amp" if name in MIXED else ""}'
    whole = train(more, 'whole', model=f'focus_{model}')
    train(f'{more} --stop-epoch 1', 'stopped', model=f'focus_{model}')
    again = train(f'{more} --resume auto', 'stopped', model=f'focus_{model}')
    assert equal(again.weights(), whole.weights()) and again.rows == whole.rows
    timm.create_model(model, num_classes=2, **(dict(img_size=64) if name == 'tokens' else {})).load_state_dict(
        whole.weights())


@pytest.mark.parametrize('more, model, words', [
    ('--focus-share 0.3 --focus-threshold 0.6', 'focus_test_resnet', 'in place of --focus-threshold: give one'),
    ('--focus-share 1', 'focus_test_resnet', '--focus-share is 1.0: give a number between 0 and 1'),
    ('--focus-size 2', 'focus_test_resnet', '--focus-size is 2.0: give a number above 0 and at most 1'),
    ('--focus-every 0', 'focus_test_resnet', '--focus-every is 0: give 1 or more'),
    ('--focus-drop-tokens', 'focus_test_resnet', 'ResNet has no tokens that can be left out'),
    ('--focus-size 0.5', 'focus_vit_tiny_patch16_224', 'takes images of one size'),
    ('--focus-copy-head --focus-scored-by main', 'focus_test_resnet', '--focus-copy-head is of the erased head'),
    ('--focus-size 0.5', 'test_resnet', '--focus-size belongs to focus training'),
])
def test_switches_that_make_no_sense(refusal, more, model, words):
    assert words in refusal(more, model=model)
