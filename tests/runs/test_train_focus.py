"""The training script from end to end: what a run writes, every option, interruptions, mistakes, several processes."""
import math
import os
import re
import signal
import sys

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_dataset, create_transform

import train_focus
from conftest import TINY, TRAIN, Run, equal, evaluate, finite
from timm_focus import export_backbone
from timm_focus.baselines import create_acol
from timm_focus.commands.main import main
from timm_focus.training import FocusCheckpointSaver, Progress, parse_args

pytestmark = pytest.mark.usefixtures('quietly')
NO_BATCH_NORM = 'convnext_atto'
METRICS = ['loss', 'top1', 'top5']
TERMS = ['loss', 'main_loss', 'side_loss', 'erased_loss', 'consistency_loss', 'erased_fraction']
COLUMNS = ['epoch', *(f'train_{t}' for t in TERMS), *(f'eval_{m}' for m in METRICS), 'lr']


# what a run leaves behind

LOADER = """
import sys
import timm, torch
from timm.data import create_dataset, create_transform
model = {expression}
dataset = create_dataset('', root={root!r}, split='validation')
dataset.transform = create_transform(
    32, is_training=False, mean=3 * (0.5,), std=3 * (0.5,), crop_pct=0.875, interpolation='bilinear')
with torch.no_grad():
    hits = [int(model.eval()(x[None]).argmax()) == t for x, t in dataset]
assert not any(name.startswith('timm_focus') for name in sys.modules)
print(100 * sum(hits) / len(hits))
"""


@pytest.mark.slow('process')
@pytest.mark.parametrize('by', ['call', 'process'])
def test_a_focus_run(by, launch, train, settings, image_folder, tmp_path):
    """By a process as a user runs it, which another loads with timm alone."""
    flags = '--epochs 2 -j 2 --log-interval 1 --sheet-images 3'
    given = settings(flags)
    if by == 'process':
        done = launch('-m', 'train_focus', *given)
        assert done.returncode == 0, done.stderr
        run = Run(folder=tmp_path / 'out/run', err=done.stderr)
    else:
        run = train(flags)
    assert (run.folder / 'summary.csv').read_text().splitlines()[0].split(',') == COLUMNS
    assert [row['epoch'] for row in run.rows] == ['0', '1']
    for row in run.rows:
        terms = {k: float(v) for k, v in row.items()}
        assert all(map(math.isfinite, terms.values())) and 0 < terms['train_erased_fraction'] < 1
        assert terms['train_loss'] == pytest.approx(
            terms['train_main_loss'] + terms['train_side_loss'] + terms['train_erased_loss']
            + 2 * terms['train_consistency_loss'], rel=1e-5)
    assert sorted(p.name for p in run.folder.iterdir()) == [
        '.lock', 'args.yaml', 'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar', 'classes.txt', 'focus.png',
        'last.pth.tar', 'model_best.pth.tar', 'run.json', 'summary.csv']
    assert (run.folder / 'classes.txt').read_text() == 'left\nright\n'
    written = yaml.safe_load((run.folder / 'args.yaml').read_text())
    assert written == yaml.safe_load(parse_args(train_focus.parser, given)[1])
    assert (run.folder / 'focus.png').read_bytes().startswith(b'\x89PNG')

    number = r'\d+\.\d+'
    lines = re.findall(rf'Train: (\d) \[ *(\d)/3\]  loss {number} \(main {number}, side {number}, erased {number}, '
                       rf'consistency {number}\)  erased area {number}%  lr .* img/s  waiting \d+%  '
                       r'left \d:\d\d:\d\d', run.err)
    assert lines == [(e, b) for e in '01' for b in '123']
    assert run.err.startswith(f'Training focus_{TINY} by focus training\n')  # the first line
    assert '3 batches of 8 images, momentum at' in run.err and 'checkpoint-0' not in run.err
    best = max(run.column('eval_top1'))
    assert f'Best top1: {best:.4f}' in run.err and 'Traceback' not in run.err
    expression = re.search(r'Load it with timm: (.*)', run.err)[1]
    if by == 'process':
        loaded = launch('-c', LOADER.format(expression=expression, root=str(image_folder)))
        assert loaded.returncode == 0, loaded.stderr
        assert float(loaded.stdout) == best
    else:
        assert evaluate(eval(expression), image_folder)[1] == best


def test_a_plain_run_goes_by_the_same_loop(train, image_folder):
    run = train('--epochs 2', model=TINY)
    assert list(run.rows[0]) == ['epoch', 'train_loss', *(f'eval_{m}' for m in METRICS), 'lr']
    assert 'task_state' not in run.checkpoint() and not (run.folder / 'focus.png').exists()
    expression = re.search(r'Load it with timm: (.*)', run.err)[1]
    loss, top1 = evaluate(eval(expression), image_folder)
    best = run.column('eval_top1').index(max(run.column('eval_top1')))
    assert (top1, loss) == (run.column('eval_top1')[best], pytest.approx(run.column('eval_loss')[best], rel=1e-4))


@pytest.mark.slow('shufflenet', 'smooth', 'gp max')
@pytest.mark.parametrize('more, model', [
    ('--in-chans 1', TINY), ('--gp max', TINY), ('--model-kwargs act_layer=silu', TINY), ('', 'shufflenetv2_x0_5'),
    ('--model-ema --model-ema-decay 0.5 --smoothing 0.2', TINY)])
def test_the_printed_line_loads_what_was_validated(train, image_folder, more, model):
    run = train(more, model=f'focus_{model}')
    expression = re.search(r'Load it with timm: (?:import timm_focus; )?(.*)', run.err)[1]
    assert ('import timm_focus' in run.err) == model.startswith('shufflenet')  # not one of timm's own
    loaded = eval(expression)
    if '--in-chans' in more:
        assert loaded.conv1[0].in_channels == 1
        return
    loss, top1 = evaluate(loaded, image_folder)
    assert (top1, loss) == (run.column('eval_top1')[0], pytest.approx(run.column('eval_loss')[0], rel=1e-4))


# methods

METHODS = {
    'focus': (f'focus_{TINY}', ''),
    'focus by method': (TINY, '--method focus'),
    'half of the batch': (f'focus_{TINY}', '--focus-fraction 0.5'),
    'attention mining': (f'focus_{TINY}', '--focus-consistency attention_mining'),
    'clean': (f'focus_{TINY}', '--focus-bn clean'),
    'mean': (f'focus_{TINY}', '--focus-map mean'),
    'random': (f'focus_{TINY}', '--focus-map random'),
    'side only': (f'focus_{TINY}', '--focus-alpha 0 --focus-beta 0'),
    'focus+has': (f'focus_{TINY}', '--has'),
    'none': (TINY, ''),
    'none+has': (TINY, '--has'),
    'adl': (TINY, '--method adl --adl-modules layer1 layer2.0'),
    'acol': (TINY, '--method acol --img-size 64'),
}


@pytest.fixture(scope='module')
def seen_weights():
    """Weights that a method has led to, by its name: no two methods may lead to the same."""
    return {}


@pytest.mark.slow('acol', 'by method', 'focus+has', 'random', 'attention')
@pytest.mark.parametrize('name', METHODS)
def test_every_method_trains_resumes_and_exports(train, image_folder, seen_weights, name):
    model, more = METHODS[name]
    run = train(more, model=model)
    first = run.weights()
    assert finite(first)
    for other, weights in seen_weights.items():
        assert equal(weights, first) == ({name, other} == {'focus', 'focus by method'}), other
    seen_weights[name] = first

    again = train(f'{more} --epochs 2 --resume auto', model=model)
    assert [row['epoch'] for row in again.rows] == ['0', '1'] and 'Resuming' in again.err
    assert finite(again.weights()) and not equal(again.weights(), first)
    if name == 'acol':  # what it classifies by is more than a timm model
        plain = create_acol(TINY, num_classes=2)
        plain.load_state_dict(again.weights())
    elif name == 'focus by method' or not model.startswith('focus_'):
        plain = timm.create_model(TINY, num_classes=2)
        plain.load_state_dict(again.weights())
        plain = export_backbone(plain)
    else:
        wrapped = timm.create_model(model, num_classes=2)
        wrapped.backbone.load_state_dict(again.weights())
        plain = export_backbone(wrapped)
    assert equal(plain.state_dict(), again.weights())
    assert evaluate(plain, image_folder, size=64 if '--img-size 64' in more else 32)[1] == again.column('eval_top1')[-1]


# of the others, tests further down have mixed precision and several processes
COMMON = [name if name in ('adl', 'acol') else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


@pytest.mark.slow('acol')
@pytest.mark.long('acol')
@pytest.mark.parametrize('name', COMMON)
def test_every_method_trains_in_mixed_precision(train, name):
    model, more = METHODS[name]
    run = train(f'{more} --amp --model-ema', model=model)
    assert finite(run.weights()) and finite(run.checkpoint()['state_dict_ema'])
    assert {v.dtype for v in run.weights().values() if v.is_floating_point()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.long('mean', 'by method', 'random', 'side only', 'none+has', 'half')
@pytest.mark.parametrize('name', COMMON)
def test_every_method_trains_in_two_processes(fork, settings, image_folder, tmp_path, name):
    model, more = METHODS[name]
    done = fork(TRAIN, *settings(f'{more} -b 4 --grad-accum-steps 2', model=model), processes=2)
    assert done.codes == [0, 0], done.stderr
    run = Run(folder=tmp_path / 'out/run', err=done.stderr)
    assert len(run.rows) == 1 and finite(run.weights())


@pytest.mark.slow
def test_erasing_may_start_later(train):
    whole = train('--epochs 3 --focus-start 1', 'whole')
    for term in ('erased_loss', 'consistency_loss', 'erased_fraction'):
        assert [value > 0 for value in whole.column(f'train_{term}')] == [False, True, True]
    for stop in (1, 2):
        train(f'--epochs 3 --focus-start 1 --stop-epoch {stop}', f'stopped-{stop}')
        again = train('--epochs 3 --focus-start 1 --resume auto', f'stopped-{stop}')
        assert equal(again.weights(), whole.weights()) and again.rows == whole.rows


def test_the_columns_of_a_method_are_its_own_terms(train):
    side = train('--focus-alpha 0 --focus-beta 0', 'side').rows[0]
    assert 'train_erased_fraction' not in side
    assert float(side['train_erased_loss']) == 0 < float(side['train_side_loss'])
    mined = train('--focus-consistency attention_mining', 'mining').rows[0]
    assert 'train_erased_fraction' in mined and float(mined['train_erased_fraction']) > 0


def test_a_loader_that_is_too_slow_is_named(train, image_folder):
    for path in (image_folder / 'train').rglob('*.jpg'):
        Image.open(path).resize((1500, 1500)).save(path)
    slow = train('-j 0 -b 2', 'slow', model='test_resnet').err
    assert re.search(r'img/s  waiting [3-9]\d%  left', slow)
    assert re.search(r'Epoch 0 waited for images [3-9]\d% of its time, so the loader is the bottleneck: '
                     r'give more --workers, 0 of them share \d+ cores\.', slow)


# options

@pytest.fixture(scope='module')
def _base():
    return {}


@pytest.fixture
def base(train, _base):
    """Weights that the settings lead to when no option is given, by model."""
    def weights(model):
        if model not in _base:
            _base[model] = train(experiment='base', model=model).weights()
        return _base[model]
    return weights


@pytest.mark.slow('--amp-test', '--mixup', '--bce-loss --smoothing')
@pytest.mark.parametrize('more, model', [(more, f'focus_{TINY}') for more in (
    '--amp', '--mixup 0.2 --cutmix 1', '--bce-loss', '--bce-loss --mixup 0.2 --smoothing 0.1 --bce-target-thresh 0.2',
    '--reprob 0.9', '--scheme complex', '--opt adamw --lr 1e-3 --layer-decay 0.5', '--grad-accum-steps 2'
)] + [(more, TINY) for more in ('--amp', '--mixup 0.2 --cutmix 1', '--bce-loss --smoothing 0.1')])
def test_an_option_has_its_effect(train, base, more, model):
    run = train(more, model=model)
    assert finite(run.weights()) and math.isfinite(run.column('train_loss')[0])
    assert not equal(run.weights(), base(model))
    if '--layer-decay' in more:
        scales = {g['lr_scale'] for g in run.checkpoint()['optimizer']['param_groups']}
        assert len(scales) > 3 and max(scales) == 1


@pytest.mark.parametrize('more', [
    '', '--workers 2', '--log-interval 1 --recovery-interval 1', '-vb 3 --save-epochs 1', '--focus-recompute'])
def test_what_does_not_concern_the_training_leaves_it_alone(train, base, more):
    """And the same settings give the same weights, bit for bit."""
    weights = train(more).weights()
    assert equal(weights, base(f'focus_{TINY}'))


def test_the_prefetcher_makes_no_difference_but_rounding(train):
    with_it, without = (train(f'--lr 1e-6 --overwrite {more}', model=TINY) for more in ('', '--no-prefetcher'))
    for column in ('train_loss', 'eval_loss'):  # it normalises the images elsewhere
        assert without.column(column) == pytest.approx(with_it.column(column), rel=1e-3)


def test_another_seed_is_another_run(train, base):
    assert not equal(train('--seed 1').weights(), base(f'focus_{TINY}'))


def test_mixing_can_end(train):
    whole, ended = train('--epochs 2 --mixup 1', 'whole'), train('--epochs 2 --mixup 1 --mixup-off-epoch 1', 'ended')
    assert equal(whole.weights('checkpoint-0'), ended.weights('checkpoint-0'))
    assert not equal(whole.weights(), ended.weights())
    assert ended.rows[0] != ended.rows[1]


def test_a_running_average_is_kept_and_validated(train, image_folder):
    run = train('--model-ema --model-ema-decay 0.9', model=TINY)
    saved = run.checkpoint()
    assert not equal(saved['state_dict'], saved['state_dict_ema'])
    model = timm.create_model(TINY, num_classes=2)
    model.load_state_dict(saved['state_dict_ema'])
    assert evaluate(model, image_folder)[0] == pytest.approx(run.column('eval_loss')[0], rel=1e-4)
    warm = train('--model-ema --model-ema-decay 0.9 --model-ema-warmup', 'warm', model=TINY).checkpoint()
    assert equal(warm['state_dict'], saved['state_dict']) and not equal(warm['state_dict_ema'], saved['state_dict_ema'])


@pytest.mark.slow
@pytest.mark.parametrize('model', [NO_BATCH_NORM, f'focus_{NO_BATCH_NORM}'])
def test_accumulated_gradients_are_those_of_the_whole_batch(train, model):
    whole = train('--no-aug --lr 0.01', 'whole', model=model)
    parts = train('--no-aug --lr 0.01 -b 4 --grad-accum-steps 2', 'parts', model=model)
    assert parts.column('train_loss') == pytest.approx(whole.column('train_loss'), rel=1e-4)
    weights, start = parts.weights(), train('--no-aug --lr 0', 'start', model=model).weights()
    for name, expected in whole.weights().items():
        moved = (expected - start[name]).abs().max()
        assert (weights[name] - expected).abs().max() <= 1e-2 * moved + 1e-7, name


def test_the_last_update_of_an_epoch_may_be_of_fewer_batches(train, monkeypatch):
    recoveries = []
    monkeypatch.setattr(FocusCheckpointSaver, 'save_recovery', lambda self, *_, **__: recoveries.append(self.progress))
    run = train('-b 4 --grad-accum-steps 4 --recovery-interval 1')  # 6 batches: an update of 4, one of 2
    assert Progress(**run.checkpoint()['saver']['progress']) == Progress(1, 0, 2)
    progress, = recoveries
    assert progress[:3] == (0, 4, 1) and progress.totals['count'] == 16


@pytest.mark.slow
def test_a_model_that_cannot_run_in_channels_last_runs_without(train, image_folder, caplog, capsys):
    run = train('--img-size 64', model='lambda_resnet26t')
    assert 'cannot be trained with channels last, so it is trained without' in run.err and finite(run.weights())
    main(['validate', str(image_folder), '--checkpoint', str(run.folder), '--no-erase', '-j', '0', '--device', 'cpu'])
    assert 'cannot be run with channels last, so it is run without' in caplog.text + capsys.readouterr().err


@pytest.mark.parametrize('mode', ['norm', 'value', 'agc'])
def test_gradients_are_clipped(train, mode):
    """Plain gradient descent without momentum or decay goes no further than the clipped gradients let it."""
    more, clip, lr, steps = '--momentum 0 --weight-decay 0 --no-aug', 1e-4, 0.1, 3
    start = train(f'{more} --lr 0', 'start').weights()
    end = train(f'{more} --lr {lr} --sched none --clip-grad {clip} --clip-mode {mode}', mode).weights()
    names = [n for n in start if n.endswith(('weight', 'bias'))]
    moved = {n: end[n] - start[n] for n in names}
    limit = steps * lr * clip * 1.01
    if mode == 'norm':
        assert 0 < torch.stack([m.square().sum() for m in moved.values()]).sum().sqrt() <= limit
    elif mode == 'value':
        assert 0 < max(m.abs().max() for m in moved.values()) <= limit
    else:
        kernels = [n for n in names if start[n].ndim == 4]
        for n in kernels:
            unit = start[n].flatten(1).norm(dim=1)
            assert (moved[n].flatten(1).norm(dim=1) <= limit * unit.clamp(min=1e-3) * 1.1).all()
        assert moved['fc.weight'].norm() > 10 * limit * start['fc.weight'].norm()  # the classifiers are spared


@pytest.mark.slow
def test_schedules(train):
    def rates(more, epochs=3, name='s'):
        return train(f'--epochs {epochs} {more}', name, model=TINY).column('lr')

    assert rates('--sched none', 2, 'none') == [0.05, 0.05]
    assert rates('--sched step --decay-epochs 1', 3, 'step') == pytest.approx([0.05, 0.005, 0.0005])
    assert rates('', 2, 'cosine') == pytest.approx([0.05, 0.025])
    # after the third of six updates, and the sixth
    assert rates('--sched-on-updates', 2, 'updates') == pytest.approx([0.025, 0.], abs=1e-9)
    assert rates('--warmup-epochs 1 --warmup-lr 0.01', 2, 'warm')[0] == pytest.approx(0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:.*Plateau.*:FutureWarning')
def test_plateau_watches_the_validation_or_else_the_loss(train):
    still = '--epochs 3 --sched plateau --patience-epochs 0 --lr 1e-6'
    assert train(still, 'top1', model=NO_BATCH_NORM).column('lr') == pytest.approx([1e-6, 1e-6, 1e-7])
    falling = train('--epochs 4 --sched plateau --patience-epochs 0 --no-aug --lr 1e-3 --val-split ""', 'l', model=TINY)
    losses = falling.column('train_loss')
    assert losses == sorted(losses, reverse=True) and falling.column('lr') == [1e-3] * 4


def test_without_validation_the_loss_ranks(train):
    run = train('--epochs 2 --val-split ""')
    assert list(run.rows[0]) == [c for c in COLUMNS if not c.startswith('eval_')]
    best = min(range(2), key=run.column('train_loss').__getitem__)
    assert run.checkpoint('model_best')['epoch'] == best and f'(epoch {best})' in run.err


def test_validation_now_and_then(train):
    run = train('--epochs 5 --val-interval 2 --save-epochs 3 --stop-epoch 5 --checkpoint-hist 1')
    assert [row['epoch'] for row in run.rows if row['eval_top1']] == ['1', '2', '3', '4']  # a milestone, and the end
    assert list(run.rows[0]) == COLUMNS and [row['epoch'] for row in run.rows] == list('01234')
    assert all(row['lr'] and row['train_loss'] for row in run.rows)
    assert run.checkpoint('milestone-3')['epoch'] == 2 and len(list(run.folder.glob('checkpoint-*'))) == 1


def test_a_run_may_stop_before_its_schedule_ends(train):
    run = train('--epochs 4 --stop-epoch 2')
    assert run.column('lr') == pytest.approx([0.05, 0.05 * (1 + math.cos(math.pi / 4)) / 2])
    whole = train('--epochs 4 --stop-epoch 3 --resume auto')
    assert equal(whole.weights(), train('--epochs 4 --stop-epoch 3', 'at_once').weights())


def test_a_run_starts_from_a_plain_runs_weights(train):
    plain = train(experiment='plain', model=TINY)
    start = plain.folder / 'model_best.pth.tar'
    run = train(f'--initial-checkpoint {start} --lr 0 --no-aug', 'focus')
    names = [n for n in plain.weights() if n.endswith(('weight', 'bias'))]
    assert all(torch.equal(run.weights()[n], plain.weights()[n]) for n in names)
    assert 'it has no heads of focus training, and new ones are trained' in run.err


def test_a_model_of_a_local_folder_is_wrapped(train, tmp_path, image_folder):
    torch.manual_seed(3)
    model = timm.create_model(TINY, num_classes=5)
    timm.models.save_for_hf(model, tmp_path / 'hub')
    run = train('--method focus --pretrained --lr 0 --no-aug', model=f'local-dir:{tmp_path}/hub')
    weights = run.weights()
    assert torch.equal(weights['conv1.0.weight'], model.state_dict()['conv1.0.weight'])
    assert len(weights['fc.weight']) == 2 and set(run.checkpoint()['task_state']) == {'cam_head', 'erased_head'}
    loss, _ = evaluate(eval(re.search(r'Load it with timm: (.*)', run.err)[1]), image_folder)
    assert loss == pytest.approx(run.column('eval_loss')[0], rel=1e-4)


def test_a_yaml_file_runs(train, tmp_path):
    config = tmp_path / 'config.yaml'
    config.write_text('epochs: 7\nfocus-threshold: 0.5\nlr: 0.5\n')
    run = train(f'--config {config}')
    written = yaml.safe_load((run.folder / 'args.yaml').read_text())
    assert (written['epochs'], written['lr'], written['focus_threshold']) == (1, 0.05, 0.5)


# interruptions

KILLER = """
import os, signal, sys
from timm_focus.training import FocusCheckpointSaver
method, when, count = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
original = getattr(FocusCheckpointSaver, method)
def saving(self, *args, **kwargs):
    global count
    count -= 1
    if when == 'before' and not count:
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(self, *args, **kwargs)
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(FocusCheckpointSaver, method, saving)
import train_focus
train_focus.main()
"""
# everything that draws numbers or has a state
DRAWING = ('--epochs 2 -b 4 -j 2 --drop 0.1 --mixup 0.4 --cutmix 1 --reprob 0.5 --model-ema --model-ema-decay 0.8 '
           '--has --model-ema-warmup --sched-on-updates --recovery-interval 2 --focus-map random --color-jitter 0.4')


@pytest.fixture
def whole(train):
    return train(DRAWING, 'whole')


@pytest.mark.slow
def test_a_killed_run_goes_on_as_if_nothing_had_happened(train, whole, fork, settings, tmp_path):
    """Killed after an epoch's checkpoint, after its line in the summary, and in mid-epoch."""
    for name, method, when, count, stood in (
            ('after', 'save_checkpoint', 'after', 1, (1, 0)),
            ('before', 'save_checkpoint', 'before', 2, (1, 4)),
            ('middle', 'save_recovery', 'after', 3, (1, 2)),
            ('ranking', '_settle', 'before', 2, (2, 0))):  # in the last save: the run is finished but for that
        killed = fork(KILLER, method, when, str(count), *settings(DRAWING, name))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert len(Run(folder=tmp_path / 'out' / name).rows) == (2 if name in ('before', 'ranking') else 1)
        run = train(f'{DRAWING} --resume auto', name)
        assert 'at epoch {}, batch {}.'.format(*stood) in run.err
        assert [row['epoch'] for row in run.rows] == ['0', '1']
        assert run.rows == whole.rows, name
        saved, expected = run.checkpoint(), whole.checkpoint()
        for state in ('state_dict', 'state_dict_ema'):
            assert equal(saved[state], expected[state]), (name, state)
        for state in ('task_state', 'task_state_ema'):
            assert all(equal(saved[state][head], expected[state][head]) for head in expected[state])
        momenta = [[s['momentum_buffer'] for s in c['optimizer']['state'].values()] for c in (saved, expected)]
        assert all(map(torch.equal, *momenta)) and len(momenta[0]) > 10
        assert saved['saver']['best_metric'] == expected['saver']['best_metric']
        assert equal(run.checkpoint('model_best')['state_dict'], whole.checkpoint('model_best')['state_dict'])


SIGNALLED = """
import os, signal, sys
from timm.task import ClassificationEvaluator
from timm_focus.training import FocusTask
where, count, number = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
owner, method = dict(training=(FocusTask, 'forward'), validation=(ClassificationEvaluator, 'update'))[where]
original = getattr(owner, method)
def counting(self, *args):
    global count
    count -= int(os.environ.get('RANK', '1')) == 1
    if not count:
        os.killpg(0, number) if 'RANK' not in os.environ else os.kill(os.getpid(), number)
    return original(self, *args)
setattr(owner, method, counting)
import train_focus
train_focus.cli()
"""


@pytest.mark.slow
@pytest.mark.long('stood2', 'stood3')
@pytest.mark.parametrize('where, count, number, stood', [
    ('training', 8, signal.SIGTERM, (1, 2)), ('validation', 5, signal.SIGINT, (0, 6)),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        ('training', 3, signal.SIGINT, (0, 3)), ('training', 6, signal.SIGTERM, (0, 6)),
        ('validation', 2, signal.SIGTERM, (0, 6)), ('validation', 8, signal.SIGINT, (1, 6))))])
def test_a_signal_ends_a_run_that_goes_on_as_if_nothing_had_happened(
        train, whole, fork, settings, where, count, number, stood):
    """Sent to the run and its workers at once, as terminals and schedulers do."""
    ended = fork(SIGNALLED, where, count, int(number), *settings(DRAWING))
    assert ended.returncode == 128 + number, ended.stderr
    assert f'Ended by {number.name}, with a recovery checkpoint' in ended.stderr and 'Traceback' not in ended.stderr
    run = train(f'{DRAWING} --resume auto')
    assert re.search(f'at epoch {stood[0]}, batch {stood[1]}', run.err)
    assert run.rows == whole.rows  # the means of training, too
    saved, expected = run.checkpoint(), whole.checkpoint()
    for state in ('state_dict', 'state_dict_ema'):
        assert equal(saved[state], expected[state])


@pytest.mark.slow
@pytest.mark.long('--dist-bn', '--no-ddp-bb')
@pytest.mark.parametrize('more', ['', '--no-ddp-bb', "--dist-bn ''"])
def test_a_signal_to_one_process_ends_both(fork, settings, tmp_path, train, more):
    """And both go on as if nothing had happened, each with statistics of BatchNorm of its own."""
    flags = f'-b 4 --epochs 2 --sched-on-updates --model-ema --model-ema-decay 0.8 {more}'
    ended = fork(SIGNALLED, 'training', 2, int(signal.SIGTERM), *settings(flags), processes=2)
    assert ended.codes == [143, 143] and ended.stderr.count('Ended by SIGTERM') == 1, ended.stderr
    run = Run(folder=tmp_path / 'out/run')
    recovery, = run.folder.glob('recovery-*')
    progress = torch.load(recovery, weights_only=False)['saver']['progress']
    assert progress['totals']['count'] == progress['batch'] * 8  # of both
    done = fork(TRAIN, *settings(f'{flags} --resume auto'), processes=2)
    assert done.codes == [0, 0], done.stderr
    again = fork(TRAIN, *settings(flags, 'whole'), processes=2)
    assert again.codes == [0, 0], again.stderr
    whole = Run(folder=tmp_path / 'out/whole')
    saved, expected = run.checkpoint(), whole.checkpoint()
    for state in ('state_dict', 'state_dict_ema'):
        assert equal(saved[state], expected[state]), state
    for column in run.rows[0]:
        assert run.column(column) == pytest.approx(whole.column(column), rel=1e-9)


@pytest.fixture
def _interruptible():
    """Where a shell started the tests in the background, SIGINT is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_is_obeyed_at_once(_interruptible):
    from timm_focus.training import Interruption
    with Interruption() as interruption:
        assert interruption.noted() == 0
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.noted() == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):
                pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_resuming_a_finished_run_changes_nothing(train):
    run = train('--epochs 2')
    names = ['last.pth.tar', 'model_best.pth.tar', 'checkpoint-0.pth.tar', 'summary.csv']
    before = [(run.folder / n).read_bytes() for n in names], [(run.folder / n).stat().st_ino for n in names]
    again = train('--epochs 2 --resume auto')
    assert ([(run.folder / n).read_bytes() for n in names], [(run.folder / n).stat().st_ino for n in names]) == before
    assert 'Train:' not in again.err and 'Best top1' in again.err


def test_resume_auto_begins_a_run_that_is_not_there(train):
    assert 'Resuming' not in train('--resume auto').err


def test_a_checkpoint_resumes_into_another_folder(train):
    first = train('--epochs 2 --stop-epoch 1', 'first')
    second = train(f'--epochs 2 --resume {first.folder}/last.pth.tar', 'second')
    assert [row['epoch'] for row in second.rows] == ['1'] and len(first.rows) == 1
    assert equal(second.weights(), train('--epochs 2', 'at_once').weights())


# several processes

@pytest.mark.slow
def test_two_processes_count_each_image_once(fork, settings, image_folder, tmp_path):
    (image_folder / 'val/right/0.jpg').unlink()  # nine images: one process validates one of them twice
    done = fork(TRAIN, *settings('-b 4 -vb 2 --model-ema --model-ema-decay 0.5'), processes=2)
    assert done.codes == [0, 0], done.stderr
    run = Run(folder=tmp_path / 'out/run', err=done.stderr)
    assert len(run.rows) == 1 and run.err.count('Best top1') == 1
    model = timm.create_model(TINY, num_classes=2)
    model.load_state_dict(run.checkpoint()['state_dict_ema'])
    loss, top1 = evaluate(model, image_folder)
    assert run.column('eval_top1')[0] == pytest.approx(top1, abs=1e-9)
    assert run.column('eval_loss')[0] == pytest.approx(loss, rel=1e-4)
    model.load_state_dict(run.weights())
    raw = float(re.search(r'Validate: loss ([\d.]+)', run.err)[1])
    assert raw == pytest.approx(evaluate(model, image_folder)[0], rel=1e-4) != pytest.approx(loss, rel=1e-3)


# mistakes

@pytest.mark.slow
def test_a_mistake_is_one_line_of_a_process(launch, settings, tmp_path):
    done = launch('-m', 'train_focus', *settings(data=tmp_path / 'nowhere'))
    assert done.returncode == 2 and not done.stdout
    assert re.fullmatch(r'train_focus\.py: error: There is no folder .*nowhere: .*\n', done.stderr)


def test_folders_that_are_not_there(refusal, image_folder, tmp_path):
    (image_folder / 'train').rename(tmp_path / 'train')
    assert 'has no folder train: ' in refusal()
    (tmp_path / 'train').rename(image_folder / 'train')
    (image_folder / 'val').rename(tmp_path / 'val')
    assert 'has no folder validation: ' in refusal()
    assert 'has no folder test: ' in refusal('--val-split test')
    (image_folder / 'val').mkdir()
    assert re.search("There are no images in .*val: .*--val-split '' does without", refusal())


def test_classes_that_training_lacks(refusal, image_folder):
    (image_folder / 'val/right').rename(image_folder / 'val/wrong')
    assert re.search('1 of the 2 classes in .*val are not among the 2 known ones, such as wrong', refusal())


def test_folders_without_images_are_no_classes(train, image_folder):
    (image_folder / 'val/.ipynb_checkpoints').mkdir()
    nested = image_folder / 'val/group'
    nested.mkdir()
    (image_folder / 'val/left').rename(nested / 'left')
    assert '10 validation images' in train(model=TINY).err


def test_a_class_without_validation_images_shifts_none(train, image_folder):
    import shutil
    shutil.rmtree(image_folder / 'val/left')
    run = train('--epochs 1', model=TINY)
    model = timm.create_model(TINY, num_classes=2)
    model.load_state_dict(run.weights())
    dataset = create_dataset('', root=str(image_folder), split='validation', class_map={'left': 0, 'right': 1})
    dataset.transform = create_transform(32, is_training=False, crop_pct=0.875, interpolation='bilinear')
    model.eval()
    with torch.no_grad():
        hits = [int(model(x[None]).argmax()) == 1 for x, _ in dataset]
    assert run.column('eval_top1') == [100 * sum(hits) / len(hits)]


@pytest.mark.parametrize('model, more, words', [
    ('resnet81', '', r'timm knows no model resnet81.*Did you mean resnet\d+\?'),
    ('focus_resnet81', '', r'Did you mean focus_resnet'),
    ('local-dir:/nowhere', '--method focus', 'local-dir:/nowhere cannot be made'),
    (f'focus_{TINY}', '--focus-stage layer9', "no feature 'layer9': .*layer1.*layer4"),
    (f'focus_{TINY}', '--focus-stage 17', 'no feature 17: .*layer1.*layer4'),
    (f'focus_{TINY}', '-b 25', 'only 24 training images'),
    (f'focus_{TINY}', '-b 5 --mixup 1', 'even number'),
    (f'focus_{TINY}', '--num-classes 1', 'the data has 2 classes'),
    (f'focus_{TINY}', '--opt sgdd', 'sgdd'),
    (f'focus_{TINY}', '--sched cosinus', 'schedule cannot be made'),
    (f'focus_{TINY}', '--mean 0.5 0.5', 'do not go together'),
    (f'focus_{TINY}', '--aug-repeats 3', 'torchrun'),
    (f'focus_{TINY}', '--model-kwargs no_such=1', 'cannot be made.*no_such'),
    (f'focus_{TINY}', '--focus-bn clean --grad-checkpointing', 'focus_bn'),
    (f'focus_{TINY}', '--focus-recompute --grad-checkpointing', 'focus_recompute'),
    (f'focus_{TINY}', '--focus-start 1', '--focus-start is 1, but --epochs is 1'),
    (f'focus_{TINY}', '--focus-start -1', '--focus-start is -1: give 0 or more'),
    (f'focus_{TINY}', '--initial-checkpoint nowhere.pth', 'nowhere.pth'),
    (f'focus_{TINY}', '--device nonsense', '--device is nonsense'),
    (f'focus_{TINY}', '--resume nowhere.pth.tar', r'There is no checkpoint nowhere\.pth\.tar'),
    (f'focus_{TINY}', '--epochs 2 --stop-epoch 3', '--stop-epoch is 3: .* 1 to --epochs, 2'),
    (f'focus_{TINY}', '--epochs 2 --stop-epoch 0', '--stop-epoch is 0'),
    (f'focus_{TINY}', '--interpolation curly', 'curly'),
    (f'focus_{TINY}', '--aa nonsense', 'nonsense'),
    (f'focus_{TINY}', '--sync-bn', '--sync-bn needs GPUs'),
    (f'focus_{TINY}', '--input-img-mode FOO', 'Pillow knows no image mode FOO'),
    (f'focus_{TINY}', '--output /dev/null/x', '--output /dev/null/x cannot be written'),
])
def test_a_mistake_is_one_line(refusal, model, more, words):
    assert re.search(words, refusal(more, model=model))


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_a_gpu_that_is_not_there_is_one_line(refusal):
    assert '--device is cuda, but torch finds no CUDA device' in refusal('--device cuda')


def test_damaged_checkpoints_are_one_line(train, refusal):
    run = train(model=TINY)
    last = run.folder / 'last.pth.tar'
    data = last.read_bytes()
    last.unlink()
    last.write_bytes(data[:1000])
    for more in ('--resume auto', f'--resume {last}'):
        assert re.search('cannot be read.*newest good one is .*(checkpoint-0|model_best)', refusal(more, model=TINY))
    assert 'cannot be read, so it is damaged' in refusal(f'--initial-checkpoint {last}', experiment='other')
    (last.parent / 'empty.pth').write_bytes(b'')
    assert 'cannot be read, so it is damaged' in refusal(
        f'--pretrained-path {last.parent}/empty.pth', experiment='other')


def test_a_plain_runs_checkpoint_does_not_resume_as_a_focus_run(train, refusal):
    run = train(experiment='plain', model=TINY)
    assert '--initial-checkpoint' in refusal(f'--resume {run.folder}/last.pth.tar')


def test_main_raises_what_cli_prints(train):
    with pytest.raises(ValueError, match='stop-epoch'):
        train('--epochs 2 --stop-epoch 3')


def test_a_run_that_diverges_says_so(settings, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings('--lr 1e30 --epochs 2', model=TINY)])
    with pytest.raises(SystemExit) as e:
        train_focus.cli()
    assert e.value.code == 1
    assert re.search(r'error: The loss of epoch \d is (nan|inf).*--lr', capsys.readouterr().err.splitlines()[-1])


@pytest.mark.slow('levit', 'pit_ti', 'lite0')
@pytest.mark.long('pit_ti')
@pytest.mark.parametrize('model, more', [
    ('focus_efficientnet_lite0', '--bn-eps 0.5'),
    ('focus_levit_128s', '--head-init-scale 0.5 --head-init-bias 0.1 --img-size 224 -b 4'),
    ('focus_pit_ti_224', '--opt adamw --lr 1e-4 --layer-decay 0.7 --img-size 224 -b 4'),
    ('focus_resnet10t', '--model-ema --model-ema-force-cpu'),
])
def test_the_load_line_gives_what_was_evaluated(train, image_folder, model, more):
    """Evaluated anew by what the last line of the log says, whatever the model was made with."""
    run = train(more, model=model)
    line = next(row for row in run.err.splitlines() if row.startswith('Load it with timm: '))
    line = line.removeprefix('Load it with timm: ')
    scope = {}
    exec('import timm; ' + (line if line.startswith('model = ') else f'model = {line}'), scope)
    loaded = scope['model'].eval()
    size = 224 if '224' in more else 32
    dataset = create_dataset('', root=str(image_folder), split='validation')
    cfg = loaded.pretrained_cfg
    dataset.transform = create_transform(
        size, is_training=False, crop_pct=0.875, interpolation='bilinear', mean=cfg['mean'], std=cfg['std'])
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(
            torch.cat([loaded(x[None]) for x, _ in dataset]), torch.tensor([y for _, y in dataset]))
    assert loss.item() == pytest.approx(run.column('eval_loss')[-1], rel=1e-3)
