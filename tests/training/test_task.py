"""FocusTask: what it trains, evaluates and saves, alone, wrapped in every wrapper, and in two processes."""
import datetime
import io
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask
from timm.utils import unwrap_model
from torch import nn

from timm_focus import FocusLoss, export_backbone
from timm_focus.training import FocusTask, build_parser, create_task, parse_args

CLASSES = 4
TABLE_7 = {
    'baseline': dict(alpha=0, beta=0, side_weight=0),
    'side': dict(alpha=0, beta=0),
    'side+cpc': dict(beta=0),
    'side+ipc': dict(alpha=0),
    'all': {},
}
MINING = dict(consistency='attention_mining')
ROWS = {**TABLE_7, 'attention mining': MINING}
TERMS = ['loss', 'main_loss', 'side_loss', 'erased_loss', 'consistency_loss']
SHUFFLENET, RESNET, VIT, CONVNEXT = 'shufflenetv2_x0_5', 'resnet10t', 'vit_tiny_patch16_224', 'convnext_atto'
SMALL = {name: dict(img_size=32, depth=4) for name in (VIT, 'deit_tiny_distilled_patch16_224')}
WRAPPINGS = ['plain', 'compile', 'ddp', 'ema', 'ema+compile+ddp', 'compile+ema+ddp']


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def process_group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def make_model(name=SHUFFLENET, seed=0, prefix='focus_', **focus):
    """The same backbone for the same seed, with or without heads."""
    torch.manual_seed(seed)
    return timm.create_model(prefix + name, num_classes=CLASSES, **SMALL.get(name, {}), **focus)


def make_task(name=SHUFFLENET, seed=0, double=False, recompute=False, **weights):
    model = make_model(name, seed, focus_recompute=recompute).train()
    return FocusTask(model.double() if double else model, FocusLoss(**weights))


def batch(n=4, size=64, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(CLASSES, (n,), generator=generator)


def optimizer_of(task, lr=0.05):
    return torch.optim.SGD(task.get_trainable_module().parameters(), lr=lr, momentum=0.9)


def update(task, optimizer, *batches):
    """One update of the weights by the mean gradient of the batches, communicated with the last of them."""
    for x, y in batches[:-1]:
        with task.no_sync():
            (task(x, y)['loss'] / len(batches)).backward()
    result = task(*batches[-1])
    (result['loss'] / len(batches)).backward()
    optimizer.step()
    optimizer.zero_grad()
    return result


def wrap(task, how, backend='eager'):
    for step in how.split('+'):
        if step == 'compile':
            task.compile(backend=backend)
        elif step == 'ddp':
            task.prepare_distributed(device_ids=None)
        elif step == 'ema':
            task.setup_ema(decay=0.5)
    return task


def assert_same_state(a, b):
    assert list(a) == list(b)
    for key in a:
        assert torch.equal(a[key], b[key]), key


def differs(a, b):
    return any(not torch.equal(a[key], b[key]) for key in a)


# the result of a step

@pytest.mark.parametrize('name, size', [(RESNET, 64), (SHUFFLENET, 64), (VIT, 32)])
def test_result_has_the_terms_and_the_main_logits(name, size):
    task = make_task(name)
    x, y = batch(3, size)
    result = task(x, y)
    assert list(result) == [*TERMS, 'erased_fraction', 'output']
    assert all(result[key].shape == () and result[key].isfinite() for key in TERMS)
    assert 0 <= result['erased_fraction'] < 1 and not result['erased_fraction'].requires_grad
    assert result['output'].shape == (3, CLASSES)
    torch.testing.assert_close(
        result['loss'],
        result['main_loss'] + result['side_loss'] + result['erased_loss'] + 2 * result['consistency_loss'])
    torch.testing.assert_close(result['main_loss'], nn.functional.cross_entropy(result['output'], y))


@pytest.mark.parametrize('row', ROWS)
def test_branches_that_the_loss_does_not_use_do_not_run(row):
    task = make_task(**ROWS[row])
    model, loss = task.trainable_module, task.loss
    result = task(*batch())
    output = model(batch()[0])
    assert (output.side is not None) == loss.uses_side == (row != 'baseline')
    assert (output.erased is not None) == loss.uses_erased == (row not in ('baseline', 'side'))
    assert ('erased_fraction' in result) == loss.uses_erased
    trains = {
        'backbone': True, 'cam_head': row != 'baseline', 'erased_head': row in ('side+cpc', 'side+ipc', 'all')}
    result['loss'].backward()
    for name, parameter in model.named_parameters():
        head = name.split('.')[0]
        assert parameter.requires_grad == trains[head], name
        assert (parameter.grad is not None) == trains[head], name


def test_attention_mining_scores_by_the_main_classifier():
    task = make_task(**MINING)
    seen = []
    task.trainable_module.erased_head.register_forward_hook(lambda *_: seen.append(1))
    x, y = batch()
    result = task(x, y)
    assert not seen and 0 < result['erased_loss'] < 1 and result['consistency_loss'] == 0
    torch.testing.assert_close(result['loss'], result['main_loss'] + result['side_loss'] + result['erased_loss'])


def test_loss_is_equation_3_by_default():
    task = FocusTask(make_model())
    assert (task.loss.alpha, task.loss.beta, task.loss.side_weight) == (1., 2., 1.)


# what is not focus training equals plain training

def plain_step(name, x, y):
    """Loss, gradients and buffers of a step of timm's own task on the plain model."""
    task = ClassificationTask(make_model(name, prefix='').train())
    result = task(x, y)
    result['loss'].backward()
    model = task.trainable_module
    return result, {k: p.grad for k, p in model.named_parameters()}, dict(model.named_buffers())


@pytest.mark.parametrize('name, size', [(RESNET, 64), (SHUFFLENET, 64), (CONVNEXT, 64), (VIT, 32)])
def test_baseline_row_is_timms_classification_task(name, size):
    x, y = batch(4, size)
    plain, gradients, buffers = plain_step(name, x, y)
    task = make_task(name, **TABLE_7['baseline'])
    backbone = task.trainable_module.backbone
    result = task(x, y)
    result['loss'].backward()
    assert torch.equal(result['loss'], plain['loss']) and torch.equal(result['output'], plain['output'])
    assert_same_state({k: p.grad for k, p in backbone.named_parameters()}, gradients)
    assert_same_state(dict(backbone.named_buffers()), buffers)


@pytest.mark.parametrize('name', [RESNET, SHUFFLENET])
def test_side_branch_leaves_batch_norm_and_the_main_gradient_to_the_image(name):
    x, y = batch()
    plain, gradients, buffers = plain_step(name, x, y)
    task = make_task(name, **TABLE_7['side'])
    backbone = task.trainable_module.backbone
    before = {k: b.clone() for k, b in backbone.named_buffers()}
    result = task(x, y)
    assert_same_state(dict(backbone.named_buffers()), buffers)
    assert differs(buffers, before), 'the statistics have to move for this to say anything'
    assert torch.equal(result['main_loss'], plain['loss'])
    parameters = dict(backbone.named_parameters())
    main = torch.autograd.grad(result['main_loss'], list(parameters.values()), retain_graph=True)
    assert_same_state(dict(zip(parameters, main)), gradients)
    # the rest is the side loss, which reaches the layers up to the tap and none behind it
    result['loss'].backward()
    assert not torch.equal(next(iter(parameters.values())).grad, main[0])
    classifier = backbone.get_classifier().weight
    assert torch.equal(classifier.grad, gradients[next(k for k, p in parameters.items() if p is classifier)])


def test_erased_images_count_in_batch_norm():
    x, y = batch()
    _, _, buffers = plain_step(SHUFFLENET, x, y)
    task = make_task()
    task(x, y)
    assert differs(dict(task.trainable_module.backbone.named_buffers()), buffers)


# what is evaluated

@pytest.mark.slow('compile')
@pytest.mark.parametrize('how', WRAPPINGS)
def test_eval_model_is_the_backbone(how, process_group):
    model = make_model()
    task = wrap(FocusTask(model), how)
    assert unwrap_model(task.get_eval_model()) is model.backbone
    assert unwrap_model(task.get_trainable_module()) is model
    assert isinstance(task.get_eval_model(), torch._dynamo.OptimizedModule) == ('compile' in how)
    if 'ddp' in how:
        assert isinstance(task.get_trainable_module(), nn.parallel.DistributedDataParallel)
    x, _ = batch(2)
    task.eval()
    with torch.no_grad():
        assert torch.equal(task.get_eval_model()(x), model.backbone(x))
    average = task.get_eval_model(ema=True)
    if 'ema' not in how:
        assert average is None and not task.has_ema()
    else:
        assert unwrap_model(average) is unwrap_model(task.get_trainable_module(ema=True)).backbone
        assert unwrap_model(average) is not model.backbone and not unwrap_model(average).training
        assert task.get_eval_model(module=task.get_trainable_module(ema=True)) is unwrap_model(average)


def test_compiled_average_is_evaluated():
    task = make_task()
    task.setup_ema()
    compiled = task.compile_ema(backend='eager')
    assert task.get_eval_model(ema=True) is compiled
    assert unwrap_model(compiled) is task.get_trainable_module(ema=True).module.backbone
    plain = make_model(prefix='')
    plain.load_state_dict(task.get_checkpoint_state(ema=True)['state_dict_ema'])


def test_average_follows_backbone_and_heads():
    task = make_task()
    average = task.setup_ema(decay=0.75).module
    optimizer = optimizer_of(task)
    expected = {k: v.clone() for k, v in task.trainable_module.state_dict().items()}
    start = {k: v.clone() for k, v in expected.items()}
    for step in range(2):
        update(task, optimizer, batch(seed=step))
        task.update_ema()
        for key, value in task.trainable_module.state_dict().items():
            expected[key] = 0.75 * expected[key] + 0.25 * value if value.is_floating_point() else value.clone()
    for key, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=lambda m: f'{key}: {m}')
    for part in ('backbone.', 'cam_head.', 'erased_head.'):
        assert differs({k: v for k, v in average.state_dict().items() if k.startswith(part)}, start), part


# what is saved

@pytest.mark.parametrize('name', [SHUFFLENET, VIT])
@pytest.mark.parametrize('how', WRAPPINGS)
def test_checkpoint_is_a_plain_model_and_two_heads(name, how, process_group):
    task = wrap(make_task(name), how)
    plain = make_model(name, seed=9, prefix='')
    for ema, suffix in ((False, ''), (True, '_ema')) if 'ema' in how else ((False, ''),):
        state = task.get_checkpoint_state(ema=ema)
        assert list(state) == [f'state_dict{suffix}', f'task_state{suffix}']
        weights, heads = state.values()
        assert list(weights) == list(plain.state_dict())
        plain.load_state_dict(weights, strict=True)
        model = unwrap_model(task.get_trainable_module(ema=ema))
        assert_same_state(plain.state_dict(), model.backbone.state_dict())
        assert list(heads) == ['cam_head', 'erased_head']
        assert list(heads['cam_head']) == ['conv.weight', 'conv.bias', 'fc.weight', 'fc.bias']
        assert list(heads['erased_head']) == ['weight', 'bias']
        for head in heads:
            assert_same_state(heads[head], getattr(model, head).state_dict())
        for key in (*weights, *heads['cam_head'], *heads['erased_head']):
            assert '_orig_mod.' not in key and 'module.' not in key
    if 'ema' not in how:
        assert task.get_checkpoint_state(ema=True) == {} and task.get_task_state(ema=True) == {}


@pytest.mark.parametrize('how', ['ema', 'ema+compile+ddp'])
def test_save_and_load_restore_every_bit(how, process_group):
    task = make_task()
    task.setup_ema(decay=0.5)
    optimizer = optimizer_of(task)
    for step in range(2):
        update(task, optimizer, batch(seed=step))
        task.update_ema()
    file = io.BytesIO()
    torch.save({**task.get_checkpoint_state(), **task.get_checkpoint_state(ema=True)}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)

    fresh = wrap(make_task(seed=7), how)
    own, other = (unwrap_model(t.get_trainable_module()).state_dict() for t in (task, fresh))
    assert differs(own, other)
    fresh.load_checkpoint_state(state['state_dict'], state['task_state'])
    fresh.load_checkpoint_state(state['state_dict_ema'], state['task_state_ema'], ema=True)
    for ema in (False, True):
        assert_same_state(*(unwrap_model(t.get_trainable_module(ema=ema)).state_dict() for t in (fresh, task)))
    assert differs(task.get_checkpoint_state(ema=True)['state_dict_ema'], state['state_dict'])


def test_checkpoint_without_heads_is_refused():
    task = make_task()
    weights = make_model(seed=3, prefix='').state_dict()
    for state in (None, {}, {'erased_head': task.get_task_state()['erased_head']}):
        with pytest.raises(RuntimeError, match=(
                r'^The checkpoint has no cam_head, so it is not of a focus run: start from it by '
                r'--initial-checkpoint, which gives it new heads\.$')):
            task.load_checkpoint_state(weights, state)
    with pytest.raises(RuntimeError, match='has no erased_head'):
        task.load_checkpoint_state(weights, {'cam_head': task.get_task_state()['cam_head']})


@pytest.mark.parametrize('state', [None, {}])
def test_checkpoint_without_heads_is_tolerated_when_not_strict(state):
    task = make_task()
    heads = {head: {k: v.clone() for k, v in s.items()} for head, s in task.get_task_state().items()}
    weights = make_model(seed=3, prefix='').state_dict()
    task.load_checkpoint_state(weights, state, strict=False)
    assert_same_state(task.trainable_module.backbone.state_dict(), weights)
    for head in heads:
        assert_same_state(task.get_task_state()[head], heads[head])


def test_average_that_was_not_set_up_is_not_loaded():
    task = make_task()
    state = task.get_checkpoint_state()
    with pytest.raises(RuntimeError, match=r'setup_ema\(\)'):
        task.load_checkpoint_state(*state.values(), ema=True)
    with pytest.raises(RuntimeError, match=r'^There is no running average .* call setup_ema\(\) first\.$'):
        task.load_task_state(state['task_state'], ema=True)


@pytest.mark.parametrize('how', WRAPPINGS)
def test_wrappers_do_not_change_the_export(how, process_group):
    task = wrap(make_task(seed=2), how)
    model = unwrap_model(task.trainable_module)
    x, _ = batch(2)
    for wrapped in (task.get_trainable_module(), task.get_trainable_module(ema=True), task.get_eval_model()):
        if wrapped is None:
            continue
        exported = export_backbone(wrapped)
        assert type(exported) is type(make_model(prefix='')) and not exported.training
        assert_same_state(exported.state_dict(), model.backbone.state_dict())
        with torch.no_grad():
            assert torch.equal(exported(x), model.eval()(x))


# clipping

@pytest.mark.parametrize('how', ['plain', 'compile+ddp'])
@pytest.mark.parametrize('name, classifiers', [
    (SHUFFLENET, ['fc']), (VIT, ['head']), (CONVNEXT, ['head.fc']),
    ('deit_tiny_distilled_patch16_224', ['head', 'head_dist'])])
def test_clipping_spares_the_classifiers(name, classifiers, how, process_group):
    task = wrap(make_task(name), how)
    model = unwrap_model(task.trainable_module)
    names = {id(p): n for n, p in model.named_parameters()}
    assert [names[id(p)] for p in task.get_clip_parameters()] == list(names.values())
    clipped = [names[id(p)] for p in task.get_clip_parameters(exclude_head=True)]
    spared = [f'backbone.{c}.{w}' for c in classifiers for w in ('weight', 'bias')]
    spared += [n for n in names.values() if n.startswith(('cam_head.', 'erased_head.'))]
    assert len(spared) == 2 * len(classifiers) + 6
    assert clipped == [n for n in names.values() if n not in spared]


# the second pass, from when on

@pytest.mark.parametrize('row', ['all', 'attention mining', 'side'])
def test_without_erasing_a_step_is_that_of_the_side_row(row):
    """Its losses; where images will be erased, its backbone is that of plain training, with the same clipping."""
    task, side = make_task(**ROWS[row]), make_task(**ROWS['side'])
    task.set_erasing(False)
    data = batch()
    result, expected = (update(t, optimizer_of(t), data) for t in (task, side))
    for key in TERMS:
        assert torch.equal(result[key], expected[key]), key
    assert ('erased_fraction' in result) == (row != 'side')  # a column of the run, 0 as long as nothing is erased
    assert not result.get('erased_fraction', 0)
    own, clipped = task.trainable_module, [id(p) for p in task.get_clip_parameters()]
    if row == 'side':
        assert_same_state(parameters_of(task), parameters_of(side))
        assert clipped == [id(p) for p in own.parameters()]
    else:
        plain = ClassificationTask(make_model(prefix='').train())
        update(plain, optimizer_of(plain), data)
        assert_same_state(own.backbone.state_dict(), plain.trainable_module.state_dict())
        assert differs(own.cam_head.state_dict(), make_model().cam_head.state_dict())
        assert clipped == [id(p) for p in own.backbone.parameters()]
    task.set_erasing(True)
    assert (task(*data).get('erased_fraction', 0) > 0) == (row != 'side')


# compiled

@pytest.mark.slow
@pytest.mark.long('all-aot')
@pytest.mark.parametrize('row, backend', [('all', 'aot_eager'), ('attention mining', 'eager')])
def test_compiled_training_equals_eager(row, backend):
    tasks = make_task(RESNET, double=True, **ROWS[row]), make_task(RESNET, double=True, **ROWS[row])
    tasks[1].compile(backend=backend)
    optimizers = [optimizer_of(task) for task in tasks]
    for step in range(2):
        data = batch(3, seed=step, dtype=torch.float64)
        plain, compiled = (update(task, optimizer, data) for task, optimizer in zip(tasks, optimizers))
        assert list(plain) == list(compiled)
        for key in plain:
            torch.testing.assert_close(compiled[key], plain[key], rtol=1e-8, atol=1e-10, msg=lambda m: f'{key}: {m}')
    states = [unwrap_model(t.trainable_module).state_dict() for t in tasks]
    for key in states[0]:
        torch.testing.assert_close(states[1][key], states[0][key], rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.long('mining')
@pytest.mark.parametrize('focus', [
    {}, pytest.param(dict(recompute=True), marks=pytest.mark.slow), pytest.param(MINING, marks=pytest.mark.slow)],
    ids=['focus', 'recompute', 'mining'])
def test_no_step_is_compiled_again(focus):
    task = make_task(RESNET, **focus)
    torch._dynamo.reset()
    try:
        task.compile(backend='aot_eager', fullgraph=True)
        optimizer = optimizer_of(task)
        for step in range(4):
            with torch._dynamo.config.patch(error_on_recompile=step > 0):
                task.train()
                result = update(task, optimizer, batch(3, seed=step))
                assert result['loss'].isfinite()
                with torch.inference_mode():
                    task.get_eval_model().eval()(batch(3, seed=step)[0])
    finally:
        torch._dynamo.reset()


# settings

def settings(*argv):
    return parse_args(build_parser(), ['folder', *argv])[0]


def test_create_task_gives_focus_training_the_weights_of_the_settings():
    args = settings(
        '--model', f'focus_{SHUFFLENET}', '--focus-alpha', '0.5', '--focus-beta', '3', '--focus-side-weight', '0.25',
        '--focus-kl-direction', 'symmetric', '--focus-kl-detach', 'main')
    model = make_model()
    task = create_task(model, args, device=torch.device('cpu'))
    assert type(task) is FocusTask and task.trainable_module is model
    loss = task.loss
    assert (loss.alpha, loss.beta, loss.side_weight) == (0.5, 3., 0.25)
    assert (loss.consistency, loss.kl_direction, loss.kl_detach) == ('kl', 'symmetric', 'main')
    assert type(loss.criterion) is nn.CrossEntropyLoss


def test_create_task_defaults_to_equation_3():
    loss = create_task(make_model(), settings('--model', f'focus_{SHUFFLENET}')).loss
    default = FocusLoss()
    assert loss.extra_repr() == default.extra_repr()


def test_create_task_tells_the_model_what_runs():
    args = settings('--model', f'focus_{SHUFFLENET}', '--focus-consistency', 'attention_mining')
    model = create_task(make_model(), args).trainable_module
    assert (model.side_branch, model.erased_branch, model.scored_by) == (True, True, 'main')
    args = settings('--model', f'focus_{SHUFFLENET}', '--focus-alpha', '0', '--focus-beta', '0')
    model = create_task(make_model(), args).trainable_module
    assert (model.side_branch, model.erased_branch) == (True, False)


def test_create_task_gives_any_model_timms_own_task():
    model = make_model(prefix='')
    task = create_task(model, settings('--model', SHUFFLENET))
    assert type(task) is ClassificationTask and task.trainable_module is model
    assert type(task.criterion) is nn.CrossEntropyLoss
    assert list(task(*batch())) == ['loss', 'output']


@pytest.mark.parametrize('argv, expected', [
    ([], nn.CrossEntropyLoss),
    (['--smoothing', '0.1'], LabelSmoothingCrossEntropy),
    (['--mixup', '0.2'], SoftTargetCrossEntropy),
    (['--cutmix', '1', '--smoothing', '0.1'], SoftTargetCrossEntropy),
    (['--cutmix-minmax', '0.2', '0.8'], SoftTargetCrossEntropy),
    (['--bce-loss'], BinaryCrossEntropy),
    (['--bce-loss', '--smoothing', '0.1', '--bce-sum', '--bce-pos-weight', '2'], BinaryCrossEntropy),
    (['--bce-loss', '--mixup', '0.2', '--smoothing', '0.1', '--bce-target-thresh', '0.2'], BinaryCrossEntropy),
], ids=lambda v: ' '.join(v) if isinstance(v, list) else v.__name__)
@pytest.mark.parametrize('method', ['focus', 'none'])
def test_create_task_chooses_the_criterion(argv, expected, method):
    prefix = 'focus_' if method == 'focus' else ''
    task = create_task(make_model(prefix=prefix), settings('--model', prefix + SHUFFLENET, *argv))
    criterion = task.loss.criterion if method == 'focus' else task.criterion
    assert type(criterion) is expected
    mixed = any('mix' in a for a in argv)
    if expected is LabelSmoothingCrossEntropy:
        assert criterion.smoothing == 0.1
    if expected is BinaryCrossEntropy:
        assert criterion.smoothing == (0.1 if '--smoothing' in argv and not mixed else 0.)  # mixup smooths by itself
        assert criterion.sum_classes == ('--bce-sum' in argv)
        assert criterion.target_threshold == (0.2 if '--bce-target-thresh' in argv else None)
        assert (criterion.pos_weight is not None) == ('--bce-pos-weight' in argv)
    x, y = batch()
    y = torch.rand(len(y), CLASSES).softmax(1) if mixed else y
    result = task(x, y)
    result['loss'].backward()
    assert result['loss'].isfinite()
    torch.testing.assert_close(result.get('main_loss', result['loss']), criterion(result['output'], y))


# two processes

# models whose images do not see each other; ConvNeXt without erasing: while its biases are 0, an erased patch is
# all zeros at its LayerNorms, whose gradients there are too large to compare sums of another order
EQUAL = {
    f'{name}, {row}': (name, ROWS[row])
    for name, row in ((VIT, 'all'), (VIT, 'attention mining'), (CONVNEXT, 'side'))}
ACCUMULATED = f'{VIT}, all'


def shares(step, rank=None, accumulate=1, size=32):
    """Batches of a step: of one process, or of both as one."""
    x, y = batch(4 * accumulate, size, seed=10 + step, dtype=torch.float64)
    parts = list(zip(x.chunk(accumulate), y.chunk(accumulate)))
    return parts if rank is None else [(x.chunk(2)[rank], y.chunk(2)[rank]) for x, y in parts]


def train_equal(case, rank=None, accumulate=1):
    """Parameters after two updates in float64, of one process with whole batches or of one of two with half of each."""
    name, weights = EQUAL[case]
    task = make_task(name, double=True, **weights)
    if rank is not None:
        task.prepare_distributed(device_ids=None)
    optimizer = optimizer_of(task, lr=0.01)
    for step in range(2):
        update(task, optimizer, *shares(step, rank, accumulate))
    return parameters_of(task)


def parameters_of(task):
    return {k: p.detach().clone() for k, p in unwrap_model(task.trainable_module).named_parameters()}


def worker(rank, folder):
    """All that is asked of two processes, in one start of them."""
    torch.set_num_threads(1)
    dist.init_process_group(
        'gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2, timeout=datetime.timedelta(seconds=60))
    found = {}
    for row, weights in ROWS.items():
        task = make_task(seed=rank, **weights).prepare_distributed(device_ids=None)  # DDP starts all alike
        start, optimizer = parameters_of(task), optimizer_of(task)
        try:
            losses = [update(task, optimizer, batch(seed=2 * step + rank))['loss'].item() for step in range(2)]
            found[row] = dict(start=start, end=parameters_of(task), losses=losses)
        except RuntimeError as e:
            found[row] = dict(error=str(e))
    for case in EQUAL:
        found[case] = train_equal(case, rank)
    for recompute in (False, True):
        task = make_task(recompute=recompute).prepare_distributed(device_ids=None)
        optimizer = optimizer_of(task)
        for step in range(2):
            update(task, optimizer, batch(seed=2 * step + rank))
        found['recomputed' if recompute else 'ordinary'] = unwrap_model(task.trainable_module).state_dict()
    task = make_task(seed=rank).prepare_distributed(device_ids=None)
    optimizer = optimizer_of(task)
    found['started'] = {}
    for step, erasing in enumerate((False, True, False)):
        task.set_erasing(erasing)
        before = parameters_of(task)
        update(task, optimizer, batch(seed=2 * step + rank), batch(seed=20 + 2 * step + rank))
        found['started'][step] = before, parameters_of(task)
    found['accumulated'] = train_equal(ACCUMULATED, rank, accumulate=2)

    task = make_task().prepare_distributed(device_ids=None)
    gradient = task.trainable_module.module.cam_head.fc.weight
    with task.no_sync():
        task(*batch(seed=rank))['loss'].backward()
    found['not synchronised'] = gradient.grad.clone()
    task(*batch(seed=2 + rank))['loss'].backward()
    found['synchronised'] = gradient.grad.clone()
    torch.save(found, f'{folder}/{rank}.pt')
    dist.barrier()
    dist.destroy_process_group()


WORKER = """
import os, sys
sys.path.append(sys.argv[1])
import test_task
test_task.worker(int(os.environ['RANK']), sys.argv[2])
"""


@pytest.fixture(scope='module')
def two_processes(tmp_path_factory, _fork_server):
    """What two processes found, one dict each."""
    folder = tmp_path_factory.mktemp('two_processes')
    done = _fork_server(code=WORKER, argv=['', str(Path(__file__).parent), str(folder)], processes=2, cwd=str(folder),
                        environment={}, seconds=300, log=f'{folder}/log')
    assert done['codes'] == [0, 0], (folder / 'log2').read_text()
    return [torch.load(folder / f'{rank}.pt') for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS)
def test_two_processes_train_every_row_alike(row, two_processes):
    ranks = [found[row] for found in two_processes]
    assert all('error' not in r for r in ranks), ranks[0].get('error')
    assert_same_state(ranks[0]['start'], ranks[1]['start'])
    assert_same_state(ranks[0]['end'], ranks[1]['end'])
    assert ranks[0]['losses'] != ranks[1]['losses'], 'the processes have to see different images'
    moved = {k.split('.')[0] for k, v in ranks[0]['end'].items() if not torch.equal(v, ranks[0]['start'][k])}
    expected = {
        'baseline': {'backbone'}, 'side': {'backbone', 'cam_head'}, 'attention mining': {'backbone', 'cam_head'}}
    assert moved == expected.get(row, {'backbone', 'cam_head', 'erased_head'})


@pytest.mark.slow
def test_two_processes_recompute_alike(two_processes):
    for found in two_processes:
        assert_same_state(found['ordinary'], found['recomputed'])


def test_two_processes_begin_and_end_to_erase(two_processes):
    for step, erasing in enumerate((False, True, False)):
        (before, end), (_, other) = (found['started'][step] for found in two_processes)
        assert_same_state(end, other)
        moved = {k.split('.')[0] for k, v in end.items() if not torch.equal(v, before[k])}
        assert moved == {'backbone', 'cam_head'} | ({'erased_head'} if erasing else set())


@pytest.mark.parametrize('case', EQUAL)
def test_two_processes_equal_one_with_the_whole_batch(case, two_processes):
    expected = train_equal(case)
    start = parameters_of(make_task(EQUAL[case][0], double=True))
    assert max((expected[k] - start[k]).abs().max() for k in start) > 1e-4
    for found in two_processes:
        for key, value in found[case].items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-9, msg=lambda m: f'{key}: {m}')


def test_accumulated_gradients_of_two_processes_equal_one(two_processes):
    name, weights = EQUAL[ACCUMULATED]
    task = make_task(name, double=True, **weights)
    optimizer = optimizer_of(task, lr=0.01)
    for step in range(2):
        x, y = (torch.cat(parts) for parts in zip(*shares(step, accumulate=2)))
        update(task, optimizer, (x, y))
    expected = parameters_of(task)
    for found in two_processes:
        for key, value in found['accumulated'].items():
            torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-9, msg=lambda m: f'{key}: {m}')


def test_no_sync_keeps_the_gradients_apart_until_the_last_batch(two_processes):
    first, second = two_processes
    assert not torch.allclose(first['not synchronised'], second['not synchronised'])
    assert torch.equal(first['synchronised'], second['synchronised'])


def test_accumulation_without_processes():
    """no_sync is nothing where nothing is distributed: accumulated gradients are those of the batches, summed."""
    tasks = [make_task(VIT, double=True) for _ in range(2)]
    parts = shares(0, accumulate=2)
    update(tasks[0], optimizer_of(tasks[0]), *parts)
    update(tasks[1], optimizer_of(tasks[1]), tuple(torch.cat(p) for p in zip(*parts)))
    ends = [parameters_of(t) for t in tasks]
    for key in ends[0]:
        torch.testing.assert_close(ends[0][key], ends[1][key], rtol=0, atol=1e-10)
