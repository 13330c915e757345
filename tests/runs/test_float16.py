"""Mixed precision in float16 with the loss scaler, on the CPU, where torch has both: what a GPU does, but for speed."""
import pytest
import torch

from conftest import TINY, equal, finite

pytestmark = pytest.mark.usefixtures('quietly')
FLOAT16 = '--amp --amp-dtype float16'
FIRST_SCALE = 65536.
VIT = 'focus_vit_tiny_patch16_224'
DEPTH = '--model-kwargs depth=2'
# whose gradients are too large for float16 at the first scale
OVERFLOWING = {
    'test_vit': '--img-size 64 --lr 3e-3',
    'shufflenetv2_x0_5': '--img-size 64',
    'test_convnext': '--img-size 64 --model-kwargs depths=(1,1,2,1)',
}


def scale(run, name='last'):
    return run.checkpoint(name)['amp_scaler']['scale']


@pytest.mark.slow
@pytest.mark.long('convnext', 'shufflenet')
@pytest.mark.parametrize('name', OVERFLOWING)
def test_the_scale_backs_off_where_gradients_overflow_and_the_run_learns(train, name):
    run = train(f'--no-aug --opt adamw --lr 1e-3 {OVERFLOWING[name]} {FLOAT16} --epochs 8', model=f'focus_{name}')
    assert scale(run) < FIRST_SCALE and 'overflow float16' not in run.err
    losses = run.column('train_main_loss')
    assert losses[-1] < 0.8 * losses[0] and finite(run.weights()), losses


@pytest.mark.slow
def test_a_resumed_run_has_its_scale_back(train):
    """After updates that overflow, with a running average, accumulation and clipping."""
    more = (f'{FLOAT16} --lr 0.01 -b 4 --grad-accum-steps 2 --clip-grad 1 --model-ema --model-ema-decay 0.5 --epochs 2 '
            f'{DEPTH}')  # six batches, three updates an epoch
    whole = train(more, 'whole', model=VIT)
    assert scale(whole) < FIRST_SCALE
    train(f'{more} --stop-epoch 1', model=VIT)
    run = train(f'{more} --resume auto', model=VIT)
    saved, expected = run.checkpoint(), whole.checkpoint()
    assert saved['amp_scaler'] == expected['amp_scaler']
    for state in ('state_dict', 'state_dict_ema'):
        assert equal(saved[state], expected[state]) and finite(saved[state])


@pytest.mark.slow('norm')
@pytest.mark.parametrize('mode', ['norm', pytest.param('agc', marks=pytest.mark.slow)])
def test_gradients_are_clipped_after_the_scale_is_taken_out(train, mode):
    """By a descent without momentum: clipped before, they would be a 65536th of what they are clipped to."""
    more = f'{FLOAT16} --momentum 0 --weight-decay 0 --no-aug -b 12 --grad-accum-steps 2'  # one update
    lr, clip = 0.1, 1e-2
    start = train(f'{more} --lr 0', 'start').weights()
    run = train(f'{more} --lr {lr} --sched none --clip-grad {clip} --clip-mode {mode}', mode)
    assert scale(run) == FIRST_SCALE
    moved = {n: run.weights()[n] - start[n] for n in start if n.endswith(('weight', 'bias'))}
    if mode == 'norm':
        norm = torch.stack([m.square().sum() for m in moved.values()]).sum().sqrt()
        assert 0.5 * lr * clip < norm <= 1.01 * lr * clip  # the heads have their share of it
    else:
        kernels = [n for n in start if start[n].ndim == 4]
        units = torch.cat([start[n].flatten(1).norm(dim=1) for n in kernels])
        steps = torch.cat([moved[n].flatten(1).norm(dim=1) for n in kernels]) / (lr * clip * units)
        assert 0.01 < steps.max() <= 1.01
        assert moved['fc.weight'].norm() > lr * clip * start['fc.weight'].norm()  # the classifiers are spared


@pytest.mark.slow
def test_accumulated_gradients_are_those_of_the_whole_batch(train):
    more, model = f'{FLOAT16} --no-aug {DEPTH}', VIT
    start = train(f'{more} -b 24 --lr 0', 'start', model=model).weights()
    whole = train(f'{more} -b 24 --lr 1e-4', 'whole', model=model)
    parts = train(f'{more} -b 8 --grad-accum-steps 3 --lr 1e-4', 'parts', model=model)
    for term in ('train_loss', 'train_main_loss'):
        assert parts.column(term) == pytest.approx(whole.column(term), rel=1e-2)
    assert scale(whole) == scale(parts) == FIRST_SCALE, 'an update that was skipped says nothing'
    for name, expected in whole.weights().items():
        moved = (expected - start[name]).norm()
        assert (parts.weights()[name] - expected).norm() <= 0.1 * moved + 1e-7, name


def test_a_run_whose_every_update_overflows_says_so(train, monkeypatch):
    from timm.utils import NativeScaler
    monkeypatch.setattr('timm_focus.training.device.NativeScaler', lambda device: scaler)
    scaler = NativeScaler('cpu')
    scaler._scaler = torch.amp.GradScaler('cpu', init_scale=0.5)
    run = train(FLOAT16, model=TINY)
    assert "skipped updates until the loss scale was down to 0.5, since gradients overflow float16" in run.err
