"""MaskSub against the literal loss, and runs of it: what is trained, kept and refused."""
import functools

import pytest
import timm
import torch
from torch.nn import functional as F

from conftest import equal
from timm_focus import FocusLoss
from timm_focus.baselines import MaskSub, MaskSubLoss
from timm_focus.method.erase import random_grid
from timm_focus.training.loop import _backward
from timm_focus.training.task import MaskSubTask

CNN, VIT = 'test_resnet', 'test_vit'


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make(name=CNN, **kwargs):
    torch.manual_seed(0)
    size = dict(img_size=64) if name == VIT else {}
    return timm.create_model(name, num_classes=5, **size, **kwargs).double().train()


def literal_step(x, y, share=0.5):
    """Gradients of the paper's loss: two passes of a plain model, loops over images and classes."""
    plain = make()
    torch.manual_seed(1)
    main = plain(x)
    keep = random_grid(len(x), x.shape[-2:], share, x.device)
    masked = x.clone()
    for b in range(len(x)):
        masked[b][:, ~keep[b, 0]] = 0
    sub = plain(masked)
    loss = 0.
    for b in range(len(x)):
        target = [float(p) for p in main[b].detach().softmax(0)]
        log_q = sub[b] - torch.log(sum(torch.exp(z) for z in sub[b]))
        loss = loss - (main[b] - torch.log(sum(torch.exp(z) for z in main[b])))[y[b]]
        loss = loss - sum(t * q for t, q in zip(target, log_q))
    loss = loss / len(x) / 2
    loss.backward()
    return loss, {k: p.grad for k, p in plain.named_parameters()}, dict(plain.named_buffers())


def step(x, y, in_turn, name=CNN):
    task = MaskSubTask(MaskSub(make(name)), MaskSubLoss())
    torch.manual_seed(1)
    backward = functools.partial(_backward, scale=1.) if in_turn else None
    terms = task.training_step(x, y, 0, backward)
    assert ('to_go' in terms) == in_turn
    terms.get('to_go', terms['loss']).backward()
    network = task.trainable_module.backbone
    return terms, {k: p.grad for k, p in network.named_parameters()}, dict(network.named_buffers()), task


@pytest.mark.parametrize('in_turn', [False, True])
def test_a_step_is_the_literal_one(in_turn, photos):
    x, y = photos(4, dtype=torch.float64), torch.tensor([0, 3, 4, 1])
    loss, gradients, buffers = literal_step(x, y)
    terms, own, statistics, _ = step(x, y, in_turn)
    torch.testing.assert_close(terms['loss'], loss)
    for found, expected in ((own, gradients), (statistics, buffers)):
        assert found.keys() == expected.keys()
        for key in found:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-8, atol=1e-11, msg=key)


def test_its_gradients_are_half_of_those_of_the_switches(photos):
    x, y = photos(4, dtype=torch.float64), torch.tensor([0, 3, 4, 1])
    _, own, _, _ = step(x, y, True)
    torch.manual_seed(0)
    model = timm.create_model(f'focus_{CNN}', num_classes=5, focus_map='grid').double().train()
    loss = FocusLoss(alpha=0, beta=1, side_weight=0, kl_direction='main_erased', kl_detach='main', scored_by='main')
    model.set_branches(loss.uses_side, loss.uses_erased, loss.scorer)
    torch.manual_seed(1)
    loss(model(x), y)['loss'].backward()
    for key, gradient in own.items():
        torch.testing.assert_close(
            2 * gradient, model.backbone.get_parameter(key).grad, rtol=1e-8, atol=1e-11, msg=key)


def test_a_transformer_does_not_see_the_masked_tokens(photos):
    x, y = photos(2, dtype=torch.float64), torch.tensor([0, 3])
    terms, own, _, task = step(x, y, True, VIT)
    assert task.trainable_module.drop_tokens and float(terms['erased_fraction']) == 0.5
    assert all(g is not None for g in own.values())


def test_soft_targets_and_a_criterion_of_ones_own(photos):
    x, y = photos(2, dtype=torch.float64), torch.rand(2, 5).softmax(1)
    model, calls = MaskSub(make()), []
    output = model(x)
    terms = MaskSubLoss(lambda z, t: calls.append(1) or F.cross_entropy(z, t))(output, y)
    assert len(calls) == 1 and terms['loss'] == (terms['main_loss'] + terms['erased_loss']) / 2


def test_a_run_keeps_the_plain_model(train):
    run = train('--method masksub --epochs 2 --model-ema', model=CNN)
    assert 'Training test_resnet by MaskSub' in run.err and 'timm.create_model(' in run.err and 'CAM' not in run.err
    assert 'task_state' not in run.checkpoint()
    timm.create_model(CNN, num_classes=2).load_state_dict(run.weights())
    assert [float(row['train_erased_fraction']) > 0 for row in run.rows] == [True, True]
    train('--method masksub --epochs 2 --model-ema --stop-epoch 1', 'stopped', model=CNN)
    again = train('--method masksub --epochs 2 --model-ema --resume auto', 'stopped', model=CNN)
    assert equal(again.weights(), run.weights())


@pytest.mark.parametrize('more, words', [
    ('--masksub-share 0.3', '--masksub-share belongs to MaskSub: give --model test_resnet --method masksub'),
    ('--method masksub --masksub-share 1', '--masksub-share is 1.0: give a number between 0 and 1'),
    ('--method masksub --focus-share 0.3', '--focus-share belongs to focus training'),
    ('--method masksub --kd-model-name resnet18', '--kd-model-name does not go with MaskSub'),
])
def test_what_makes_no_sense(refusal, more, words):
    assert words in refusal(more, model=CNN)
