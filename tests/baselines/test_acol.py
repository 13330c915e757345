"""ACoL against loops, alone, on real networks, and in runs of the script."""
import re

import pytest
import timm
import torch
from conftest import TINY, equal, evaluate, finite
from torch import nn
from torch.nn import functional as F

from timm_focus.baselines import ACoL, AcolNet, create_acol
from timm_focus.baselines.acol import MapHead, erase_class
from timm_focus.runs import load_model
from timm_focus.commands.main import main as timm_focus_command
from timm_focus.training.task import AcolTask

pytestmark = pytest.mark.usefixtures('quietly')
RESNET, SHUFFLENET, CONVNEXT, MOBILENET = 'resnet10t', 'shufflenetv2_x0_5', 'convnext_atto', 'mobilenetv3_small_050'
CLASSES = 4


def make(name=RESNET, seed=0, width=16, threshold=0.6, **kwargs):
    torch.manual_seed(seed)
    return ACoL(create_acol(name, CLASSES, width=width, **kwargs), threshold).train()


def keep_slowly(maps, target, threshold):
    """Place by place, in Python's numbers."""
    keep = torch.empty(len(maps), 1, *maps.shape[2:], dtype=torch.bool)
    for b, (image, k) in enumerate(zip(maps.tolist(), target.tolist())):
        values = [v for row in image[k] for v in row]
        low, high = min(values), max(values)
        for i, row in enumerate(image[k]):
            for j, v in enumerate(row):
                keep[b, 0, i, j] = (v - low) / (high - low + 1e-5) < threshold
    return keep


@pytest.mark.parametrize('threshold', [0.1, 0.6, 1.])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_kept_matches_loops(threshold, dtype):
    maps = torch.randn(6, 5, 7, 4).to(dtype)
    maps[0] *= 1e-3  # where the epsilon counts
    maps[1] = 2.  # flat
    target = torch.tensor([0, 4, 1, 2, 3, 0])
    keep = erase_class(maps, target, threshold)
    assert torch.equal(keep, keep_slowly(maps.float(), target, threshold))
    assert keep[1].all() and (threshold == 1 or not keep[2].all())


def test_a_head_is_two_convolutions_of_3x3_and_one_of_1x1():
    head = MapHead(6, CLASSES)
    shapes = [tuple(p.shape) for p in head.parameters()]
    assert shapes == [(1024, 6, 3, 3), (1024,), (1024, 1024, 3, 3), (1024,), (CLASSES, 1024, 1, 1), (CLASSES,)]
    x = torch.randn(2, 6, 5, 7)
    c1, c2, c3 = (layer for layer in head if isinstance(layer, nn.Conv2d))
    slow = F.conv2d(F.conv2d(F.conv2d(x, c1.weight, c1.bias, padding=1).clamp(min=0), c2.weight, c2.bias,
                             padding=1).clamp(min=0), c3.weight, c3.bias)
    torch.testing.assert_close(head(x), slow)


def step_slowly(model, x, target, threshold=0.6):
    """Losses by the definition."""
    feature = model.network.backbone.forward_features(x)
    maps = model.network.head(feature)
    keep = keep_slowly(maps.detach(), target, threshold)
    maps_b = model.head_b(torch.where(keep, feature, torch.zeros(())))
    losses = []
    for m in (maps, maps_b):
        logits = torch.stack([torch.stack([image[k].sum() / image[k].numel() for k in range(CLASSES)]) for image in m])
        losses.append(-sum(torch.log_softmax(row, 0)[k] for row, k in zip(logits, target.tolist())) / len(target))
    return losses, keep


@pytest.mark.slow('mobilenetv3', 'convnext', 'shufflenet')
@pytest.mark.parametrize('name', [RESNET, SHUFFLENET, CONVNEXT, MOBILENET])
def test_a_step_is_what_the_definition_says(name, photos):
    model, slow = make(name), make(name)
    assert equal(model.state_dict(), slow.state_dict())
    x, y = photos(4, 96), torch.tensor([3, 0, 1, 2])
    result = AcolTask(model)(x, y)
    (a, b), keep = step_slowly(slow, x, y)
    torch.testing.assert_close(result['a_loss'], a)
    torch.testing.assert_close(result['b_loss'], b)
    torch.testing.assert_close(result['loss'], a + b)
    assert result['erased_fraction'] == pytest.approx(1 - keep.float().mean().item(), abs=1e-6) and not keep.all()
    result['loss'].backward()
    (a + b).backward()
    for (k, p), q in zip(model.named_parameters(), slow.parameters()):
        assert (p.grad is None) == (not p.requires_grad), k
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=lambda m: f'{k}: {m}')


@pytest.mark.slow('mobilenet')
@pytest.mark.parametrize('name, idle', [
    (RESNET, 0), (SHUFFLENET, 0), (CONVNEXT, 2), (MOBILENET, 2)])
def test_what_the_features_do_not_use_asks_for_no_gradient(name, idle):
    """DDP would wait for it: convnext's norm after the pool, mobilenetv3's convolution there."""
    model = make(name)
    assert sum(not p.requires_grad for p in model.parameters()) == idle
    assert not any(name.startswith('network.backbone.fc') for name, _ in model.named_parameters())


@pytest.mark.parametrize('name', [RESNET, SHUFFLENET, CONVNEXT])
def test_head_a_classifies(name, photos):
    model = make(name).eval()
    x = photos(2, 96)
    net = model.network
    logits = net.head(net.backbone.forward_features(x)).mean((2, 3))
    assert torch.equal(model(x), logits) and torch.equal(net(x), logits)
    assert torch.equal(net.forward_head(net.forward_features(x)), logits)
    hidden = net.forward_head(net.forward_features(x), pre_logits=True)
    assert hidden.shape == (2, net.head_hidden_size)
    last = net.get_classifier()
    torch.testing.assert_close(F.linear(hidden, last.weight.flatten(1), last.bias), logits)


def test_the_network_is_the_timm_model_without_its_classifier():
    plain = timm.create_model(RESNET, num_classes=CLASSES)
    names = {n for n in plain.state_dict() if not n.startswith('fc.')}
    own = create_acol(RESNET, CLASSES).state_dict()
    assert {n.removeprefix('backbone.') for n in own if n.startswith('backbone.')} == names
    assert {n for n in own if not n.startswith('backbone.')} == {
        f'head.{i}.{p}' for i in (0, 2, 4) for p in ('weight', 'bias')}


def test_gradient_checkpointing_changes_nothing(photos):
    x, y, results = photos(2, 96), torch.tensor([1, 2]), []
    for enable in (False, True):
        task = AcolTask(make())
        task.trainable_module.set_grad_checkpointing(enable)
        task(x, y)['loss'].backward()
        results.append([p.grad for p in task.trainable_module.parameters()])
    for g, h in zip(*results):
        torch.testing.assert_close(g, h)


def test_the_task_saves_the_network_and_keeps_head_b():
    task = AcolTask(make())
    task.setup_ema(decay=0.5)
    state = {**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}
    assert list(state) == ['state_dict', 'task_state', 'state_dict_ema', 'task_state_ema']
    create_acol(RESNET, CLASSES, width=16).load_state_dict(state['state_dict'])
    other = AcolTask(make(seed=5))
    other.load_checkpoint_state(state['state_dict'], state['task_state'])
    assert equal(other.trainable_module.state_dict(), task.trainable_module.state_dict())
    with pytest.raises(RuntimeError, match='has no head_b, so it is not of an ACoL run'):
        other.load_checkpoint_state(state['state_dict'], {})
    model = task.trainable_module
    spared = {id(p) for p in model.parameters()} - {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    assert spared == {id(p) for m in (model.network.head[-1], model.head_b) for p in m.parameters()}


# mistakes

@pytest.mark.slow
def test_what_cannot_be_made():
    with pytest.raises(ValueError, match='has a classifier of 4 classes.*num_classes=0'):
        AcolNet(timm.create_model(RESNET, num_classes=4), 4)
    for name in ('vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'):
        with pytest.raises(ValueError, match='does not end in a feature map'), torch.device('meta'):
            create_acol(name)
    for threshold in (0, 1.1, float('nan')):
        with pytest.raises(ValueError, match='threshold'):
            make(threshold=threshold)
    for classes in (0, None, 2.):
        with pytest.raises(ValueError, match='num_classes is .*: give 1 or more'):
            create_acol(RESNET, classes)


def test_targets_that_are_no_classes(photos):
    model = make()
    with pytest.raises(ValueError, match='no targets'):
        model(photos(2, 64))
    with pytest.raises(ValueError, match=r'targets of shape \(2, 4\)'):
        model(photos(2, 64), torch.full((2, 4), 0.25))


# runs

ACOL = '--method acol --img-size 64 -b 24 --momentum 0'  # whose checkpoints are large enough without


@pytest.mark.slow
def test_a_run(train, image_folder, capsys, monkeypatch, tmp_path):
    run = train(f'{ACOL} --acol-threshold 0.4 --model-ema --model-ema-decay 0.5 --epochs 2', model=TINY)
    assert list(run.rows[0])[1:5] == ['train_loss', 'train_a_loss', 'train_b_loss', 'train_erased_fraction']
    for row in run.rows:
        assert float(row['train_loss']) == pytest.approx(float(row['train_a_loss']) + float(row['train_b_loss']))
        assert 0 < float(row['train_erased_fraction']) < 1
    line = re.search(r'no plain timm model\. Load it: (.*)', run.err)[1]
    statement, expression = line.split('; ')
    namespace = {}
    exec(statement, namespace)
    loaded = eval(expression, namespace)
    best = run.column('eval_top1').index(max(run.column('eval_top1')))
    loss, top1 = evaluate(loaded, image_folder, size=64)
    assert (top1, loss) == (run.column('eval_top1')[best], pytest.approx(run.column('eval_loss')[best], rel=1e-4))
    kept = sum(p.numel() for p in loaded.parameters())
    assert f'{kept:,} of them in the features and head A' in run.err

    # what looks at runs can look at this one
    by_command = load_model(checkpoint=str(run.folder))
    assert equal(by_command.model.state_dict(), loaded.state_dict())
    assert by_command.data_config['input_size'] == (3, 64, 64)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)
    timm_focus_command(['area', str(image_folder), '--checkpoint', str(run.folder), '-j', '0'])
    assert 'map 2 x 2' in capsys.readouterr().out


@pytest.mark.slow('mobilenetv3')
@pytest.mark.parametrize('model, more', [
    (MOBILENET, ''), (TINY, '--in-chans 1'), (MOBILENET, '--model-kwargs act_layer=silu')])
def test_the_load_line_says_what_the_network_was_made_with(train, model, more):
    run = train(f'{ACOL} {more}', model=model)
    namespace = {}
    statement, expression = re.search(r'Load it: (.*)', run.err)[1].split('; ')
    exec(statement, namespace)
    loaded = eval(expression, namespace)
    assert equal(loaded.state_dict(), run.weights('model_best'))
    if 'silu' in more:
        assert any(isinstance(m, nn.SiLU) for m in loaded.modules())
    assert next(loaded.parameters()).shape[1] == (1 if 'in-chans' in more else 3)


@pytest.mark.slow
def test_a_run_goes_on_bit_for_bit(train):
    more = f'{ACOL} --epochs 2 --momentum 0.9'
    whole = train(more, 'whole', model=TINY)
    train(f'{more} --stop-epoch 1', model=TINY)
    resumed = train(f'{more} --resume auto', model=TINY)
    assert equal(resumed.weights(), whole.weights())
    assert equal(resumed.checkpoint()['task_state']['head_b'], whole.checkpoint()['task_state']['head_b'])


@pytest.mark.slow
def test_it_compiles_whole(photos):
    torch._dynamo.reset()
    x, y, results = photos(2, 96), torch.tensor([1, 2]), []
    for compiled in (False, True):
        model = make()
        run = torch.compile(model, backend='aot_eager', fullgraph=True) if compiled else model
        results.append(run(x, y))
    torch._dynamo.reset()
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_run_has_the_same_losses(train):
    eager = train(ACOL, 'eager', model=TINY)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = train(f'{ACOL} --torchcompile eager', 'compiled', model=TINY)
    assert not torch._dynamo.utils.counters['graph_break']
    for name in eager.rows[0]:
        assert compiled.column(name) == pytest.approx(eager.column(name), rel=2e-3, abs=2e-4), name
    assert not [n for n in compiled.weights() if '_orig_mod' in n]
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_settings_reach_it(train):
    base = train(ACOL, 'base', model=TINY).weights()
    for i, more in enumerate(('--acol-threshold 0.2', '--smoothing 0.1 --has', '--layer-decay 0.5 --clip-grad 0.01 '
                              '--clip-mode agc --head-init-scale 0.1')):
        weights = train(f'{ACOL} {more}', str(i), model=TINY).weights()
        assert finite(weights) and not equal(weights, base), more


@pytest.mark.slow
def test_it_starts_from_a_plain_runs_weights(train):
    plain = train('--lr 0', 'plain', model=TINY)
    started = train(f'{ACOL} --lr 0 --initial-checkpoint {plain.folder}/last.pth.tar', model=TINY).weights()
    for name, value in plain.weights().items():
        if not name.startswith('fc.') and 'running' not in name and 'num_batches' not in name:
            assert torch.equal(started[f'backbone.{name}'], value), name


@pytest.mark.parametrize('model, more, words', [
    ('vit_tiny_patch16_224', '--method acol --img-size 224', 'cannot be made: VisionTransformer does not end in'),
    (TINY, '--acol-threshold 0.5', '--acol-threshold belongs to ACoL: give --model test_resnet --method acol'),
    (f'focus_{TINY}', '--method acol', f'--method acol trains .*give --model {TINY}'),
    (TINY, '--method acol --focus-bn clean', '--focus-bn belongs to focus training'),
    (TINY, '--method acol --adl-modules layer3', '--adl-modules belongs to ADL'),
    (TINY, '--method acol --acol-threshold 0', '--acol-threshold is 0.0: give a number above 0'),
    (TINY, '--method acol --mixup 0.2', '--mixup does not go with ACoL.*the one true class'),
    (TINY, '--method acol --cutmix-minmax 0.2 0.8', '--cutmix-minmax does not go with ACoL'),
    (TINY, '--method acol --kd-model-name resnet18', '--kd-model-name does not go with ACoL'),
    (TINY, '--method acol --gp max', '--gp does not go with ACoL'),
    (TINY, '--method acol --drop 0.5', '--drop does not go with ACoL'),
    (TINY, '--method acol --aug-splits 2 --jsd-loss', '--jsd-loss does not go with ACoL'),
])
def test_a_mistake_is_one_line(refusal, model, more, words):
    assert re.search(words, refusal(more, model=model))


@pytest.mark.slow
def test_runs_of_other_methods_do_not_resume_as_acol(train, refusal):
    plain = train(experiment='plain', model=TINY)
    assert 'does not fit this run' in refusal(f'{ACOL} --resume {plain.folder}/last.pth.tar', model=TINY)
    own = train(ACOL, 'acol', model=TINY)
    assert 'does not fit this run' in refusal(f'--resume {own.folder}/last.pth.tar', model=TINY)
    assert 'of another architecture' in refusal(f'--initial-checkpoint {own.folder}/last.pth.tar', model=TINY)
