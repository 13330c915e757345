"""A command line for timm's train.py gives the same run here: every flag is there, and does what it says."""
import glob
import json
import logging
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_dataset
from timm.layers.fast_norm import is_fast_norm, set_fast_norm
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy

import train_focus
from conftest import TINY, TRAIN, equal, finite
from timm_focus.training import SettingsError, build_parser, create_task, parse_args
from timm_focus.training.data import create_loaders
from timm_focus.training.refused import REFUSED

pytestmark = pytest.mark.usefixtures('quietly')
# of timm 1.0.29: option strings, name, default, number and type of the values
TIMM = json.loads((Path(__file__).parent / 'timm_flags.json').read_text())
LATER = {
    '--task': 'classification', '--target-format': None, '--multilabel-threshold': 0.5, '--loss': None,
    '--loss-class-weight': None, '--loss-pos-weight': None, '--loss-weight-power': 1., '--class-stats': None,
    '--poly-gamma': 0., '--poly-epsilon': 2., '--stop-epoch': None, '--save-epochs': None, '--lr-decay-fn': None,
    '--lr-stable-timescale': None, '--pretrained-cfg-overlay': {}}
# what this script finds by itself, with any recipe
FOUND = {'device': None, 'amp_dtype': None, 'model': 'focus_resnet50'}


def parse(*argv):
    return parse_args(build_parser(), argv)[0]


@pytest.mark.parametrize('flags, dest, default, nargs, kind', TIMM, ids=[row[1] for row in TIMM])
def test_a_flag_of_timm_is_there(flags, dest, default, nargs, kind):
    action = next(a for a in build_parser()._actions if a.dest == dest)
    assert set(flags) <= set(action.option_strings)
    assert action.nargs == nargs
    numeric = action.type.__name__ if action.type in (int, float) else None  # what is text there is text here
    assert numeric == (kind if kind in ('int', 'float') else None)
    assert getattr(parse('d', '--recipe', 'timm'), dest) == {**FOUND, 'data_dir': 'd'}.get(dest, default)


def test_later_flags_of_timm_are_there():
    for flag, default in LATER.items():
        action = build_parser()._option_string_actions[flag]
        assert action.default == default, flag


def test_where_the_defaults_differ_the_docs_say_so():
    parser = build_parser()
    differing = {dest for _, dest, default, *_ in TIMM
                 if dest not in ('data', 'data_dir') and parser.get_default(dest) != default}
    page = (Path(__file__).parents[2] / 'docs/method.md').read_text()
    table = page.split('| flag | here | timm | why |')[1].split('\n\n')[0]
    told = {f.removeprefix('--').replace('-', '_') for f in re.findall(r'`(--[\w-]+)`', table)}
    assert differing <= told


def test_the_recipe_gives_way():
    timms = parse('d', '--recipe', 'timm')
    assert (timms.opt, timms.scale, timms.no_decay_1d, timms.crop_pct) == ('sgd', [0.08, 1.], True, None)
    simple = parse('d', '--recipe', 'timm', '--scheme', 'simple', '--epochs', '40')
    assert (simple.scale, simple.color_jitter, simple.opt, simple.epochs) == (None, 0., 'sgd', 40)
    assert parse('d', '--recipe', 'timm', '--color-jitter', '0').color_jitter == 0
    assert {**vars(parse('d', '--recipe', 'paper')), 'given': ['data_dir']} == vars(parse('d'))


def test_the_recipe_of_a_file_gives_way_to_another(tmp_path):
    path = tmp_path / 'args.yaml'
    for first, second in (('timm', 'paper'), ('paper', 'timm')):
        path.write_text(parse_args(build_parser(), ['d', '--recipe', first, '--lr', '0.3'])[1])
        again = parse('--config', str(path), '--recipe', second)
        assert {**vars(again), 'config': None} == vars(parse('d', '--recipe', second, '--lr', '0.3'))
    aliases = ['--bce-loss', '--bce-pos-weight', '2', '--drop-connect', '0.1']
    path.write_text(parse_args(build_parser(), ['d', *aliases])[1])
    assert parse('--config', str(path)).loss == 'bce'
    again = parse('--config', str(path), '--loss', 'ce', '--loss-pos-weight', '', '--drop-path', '0.3')
    assert (again.loss, again.bce_loss, again.drop_path) == ('ce', False, 0.3)


# what is refused

@pytest.mark.parametrize('dest', REFUSED)
def test_a_refused_flag_is_a_sentence_that_says_why(dest):
    action = next(a for a in build_parser()._actions if a.dest == dest)
    value = {
        'task': ['multilabel'], 'target_format': ['multihot'], 'naflex_loss_scale': ['sqrt'], 'torchscript': [],
        'naflex_loader': [], 'naflex_patchify_channels_first': [], 'multilabel_threshold': ['0.3'], 'fuser': ['te'],
    }.get(dest, ['7'])
    with pytest.raises(SettingsError, match=f'^{action.option_strings[0]} is not for this script: .{{40,}}'):
        parse('d', action.option_strings[0], *value)
    default = action.default  # at its default, as in an args.yaml, it disturbs nobody
    if isinstance(default, (int, float, str)) and not isinstance(default, bool):
        parse('d', action.option_strings[0], str(default))


@pytest.mark.parametrize('more, words', [
    (['--model', 'focus_resnet18', '--kd-model-name', 'resnet50'],
     '--kd-model-name does not go with focus training.*not distilled.*train resnet18'),
    (['--model', 'focus_resnet18', '--jsd-loss', '--aug-splits', '3'], '--jsd-loss does not go with focus'),
    (['--model', 'focus_resnet18', '--split-bn', '--resplit'], '--split-bn does not go with focus'),
    (['--amp', '--model-dtype', 'bfloat16'], '--model-dtype bfloat16 does not go with --amp'),
    (['--wandb-resume-id', 'abc'], '--wandb-resume-id needs --resume'),
    (['--drop-path', '.1', '--drop-connect', '.2'], 'the same'),
    (['--bce-loss', '--loss', 'asl'], 'contradict'),
    (['--jsd-loss', '--model', 'resnet50'], 'JSD loss requires'),
    (['--loss', 'zlpr'], 'requires multi-label targets'),
    (['--loss', 'nonsense'], 'invalid choice'),
    (['--bce-target-thresh', '.2'], 'only apply to the bce loss'),
    (['--loss', 'asl', '--mixup', '.2'], 'does not support Mixup'),
    (['--loss', 'poly', '--poly-gamma', '2'], 'Poly gamma'),
    (['--bce-loss', '--loss-pos-weight', 'neg_pos'], 'requires class stats'),
    (['--bce-loss', '--loss-class-weight', '/none.json'], 'The loss cannot be made'),
    (['--class-stats', '/none.json'], 'The loss cannot be made.*No such file'),
    (['--bce-loss', '--loss-pos-weight', '3', '--bce-pos-weight', '2'], 'the same'),
    (['--aug-splits', '1'], 'give 0, or 2'),
    (['--aug-splits', '3', '--mixup', '.2'], 'does not go with mixup'),
    (['--aug-splits', '3', '--no-prefetcher'], '--no-prefetcher'),
    (['--split-bn', '--model', 'resnet50'], 'needs splits'),
    (['--train-batch-sizes', '8'], '--train-batch-sizes needs --train-img-sizes'),
    (['--train-batches-per-epoch', '8'], '--train-batches-per-epoch needs'),
    (['--train-size-schedule', 'progressive'], '--train-size-schedule needs'),
    (['--train-img-sizes', '32', '--train-size-schedule', 'progressive'], 'two of'),
    (['--train-img-sizes', '32', '48', '--train-batch-sizes', '8'], '1 values: give 2'),
    (['--train-img-sizes', '32', '48', '--train-size-probs', '0', '0'], '0 for each size'),
    (['--train-img-sizes', '0'], r'--train-img-sizes is \[0\]: give 1'),
    (['--train-img-sizes', '32', '--aug-splits', '2'], 'does not go with --train-img-sizes'),
    (['--kd-temperature', '0'], 'above 0'),
    (['--kd-loss-type', 'mse'], 'invalid choice'),
])
def test_what_does_not_go_together_is_a_sentence(more, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', 'd', *more])
    with pytest.raises(SystemExit) as e:
        train_focus.cli()
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count('\n') == 1 and re.search(words, err), err


@pytest.mark.parametrize('more, words', [
    ('--device-modules no_such_module', '--device-modules no_such_module cannot be imported'),
    ('--torchcompile no_such_backend', '--torchcompile no_such_backend'),
    ('--bce-loss --loss-class-weight 1,2,3', 'has 3 entries but the model has 2 classes'),
    ('--train-img-sizes 32 48 --train-batch-sizes 8 7 --mixup 0.2', '--train-batch-sizes is 7'),
    ('--train-img-sizes 32 48 --train-batch-sizes 80 70', 'reduce the batch sizes'),
])
def test_what_the_run_finds_wrong_is_one_line(refusal, more, words):
    assert re.search(words, refusal(more, model=TINY))


# losses

def test_losses_are_timms():
    def criterion(*argv):
        return create_task(timm.create_model(TINY, num_classes=3), parse(
            'd', '--model', TINY, '--num-classes', '3', *argv), device=torch.device('cpu')).criterion

    assert isinstance(criterion('--smoothing', '0.1'), LabelSmoothingCrossEntropy)
    assert isinstance(criterion(), torch.nn.CrossEntropyLoss)
    bce = criterion(
        '--bce-loss', '--bce-pos-weight', '2', '--loss-class-weight', '1,2,3', '--smoothing', '0.1', '--bce-sum')
    assert isinstance(bce, BinaryCrossEntropy) and float(bce.pos_weight) == 2 and bce.weight.tolist() == [1, 2, 3]
    assert (bce.smoothing, bce.sum_classes) == (0.1, True)
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    poly = criterion('--loss', 'poly', '--poly-epsilon', '1.5')
    p = x.softmax(1)[range(4), y]
    torch.testing.assert_close(poly(x, y), (-p.log() + 1.5 * (1 - p)).mean())


def test_class_weights_of_statistics(tmp_path, train):
    (tmp_path / 'stats.json').write_text(json.dumps(dict(pos_counts=[3, 9], num_samples=12)))
    flags = f'--bce-loss --class-stats {tmp_path}/stats.json --loss-pos-weight neg_pos --loss-weight-power 0.5'
    args = parse('d', '--model', TINY, *flags.split()).completed(num_classes=2)
    task = create_task(timm.create_model(TINY, num_classes=2), args, device=torch.device('cpu'))
    torch.testing.assert_close(task.criterion.pos_weight, torch.tensor([3 ** 0.5, (1 / 3) ** 0.5]))
    for model in (TINY, f'focus_{TINY}'):
        assert finite(train(flags, model, model=model).weights())


@pytest.mark.slow('poly', 'asl')
@pytest.mark.parametrize('loss', ['bce', 'asl', 'poly'])
def test_a_focus_model_takes_the_loss(train, loss):
    plain, other = train('--lr 0'), train(f'--lr 0 --loss {loss}', 'other')
    for name in ('main_loss', 'side_loss', 'erased_loss'):
        assert other.column(f'train_{name}') != plain.column(f'train_{name}')
    assert other.column('train_consistency_loss') == plain.column('train_consistency_loss')


# AugMix

def test_augmix_with_jsd_and_split_batch_norm(train):
    """The first split is not augmented, and the main statistics are its own."""
    flags = '--aug-splits 3 --jsd-loss --split-bn --aa augmix-m3-w3 --resplit --reprob 0.5'
    run = train(f'{flags} --epochs 2', model=TINY)
    assert finite(run.weights()) and any('.aux_bn.' in name for name in run.weights())
    line = re.search(r'Load it with timm: (.*)', run.err)[1]
    namespace = dict(timm=timm)
    exec(line, namespace)
    plain = {k: v for k, v in run.weights('model_best').items() if 'aux_bn' not in k}
    assert equal(namespace['model'].state_dict(), plain)
    again = train(f'{flags} --epochs 3 --resume auto', model=TINY)
    assert [row['epoch'] for row in again.rows] == list('012')


def test_augmentation_splits_are_copies_of_the_batch(image_folder):
    args = parse(str(image_folder), '--aug-splits', '3', '--aa', 'augmix-m9-w3', '-b', '4', '-j', '0', '--hflip', '0')
    x, target = next(iter(_loader(args, image_folder)))
    assert x.shape == (12, 3, 32, 32) and torch.equal(target[:4], target[4:8]) and torch.equal(target[:4], target[8:])
    clean, *mixed = x.split(4)
    for copy in mixed:
        assert 0 < (copy - clean).abs().mean() < (clean.roll(1, 0) - clean).abs().mean()


def _loader(args, image_folder):
    args = args.completed(prefetcher=True, distributed=False, world_size=1, rank=0, num_classes=2)
    dataset = create_dataset('', root=str(image_folder), split='train', is_training=True)
    config = dict(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)
    return create_loaders(args, dataset, None, config, torch.device('cpu'))[0]


def test_a_focus_model_trains_on_splits(train):
    assert finite(train('--aug-splits 2 --aa augmix-m3-w2').weights())


# scheduled resolution

SCHEDULED = ('--train-img-sizes', '32', '48', '64', '--train-batch-sizes', '8', '6', '4', '-b', '8', '-j', '0')


def shapes(loader, epoch=0, start=0):
    train_focus.set_epoch(loader, epoch, start)
    return [(x.clone(), y) for x, y in loader]


def test_each_batch_has_one_of_the_sizes(image_folder):
    seen = set()
    for seed in range(3):
        loader = _loader(parse(str(image_folder), *SCHEDULED, '--seed', str(seed)), image_folder)
        batches = shapes(loader)
        assert len(batches) == len(loader) and 20 < sum(len(x) for x, _ in batches) <= 24
        seen |= {tuple(x.shape) for x, _ in batches}
    assert seen == {(8, 3, 32, 32), (6, 3, 48, 48), (4, 3, 64, 64)}


def test_a_progressive_schedule_goes_up(image_folder):
    args = parse(str(image_folder), *SCHEDULED, '--epochs', '3', '--train-size-schedule', 'progressive',
                 '--train-size-schedule-spread', '0', '--train-size-random-mix', '0', '--train-steps-per-epoch', '5')
    loader = _loader(args, image_folder)
    sizes = [{x.shape[-1] for x, _ in shapes(loader, epoch)} for epoch in range(3)]
    assert sizes == [{32}, {48}, {64}] and len(loader) == 5
    fixed = parse(str(image_folder), *SCHEDULED, '--train-size-probs', '0', '1', '0')
    assert {x.shape[-1] for x, _ in shapes(_loader(fixed, image_folder))} == {48}


@pytest.mark.slow
@pytest.mark.parametrize('more', [(), ('--train-batches-per-epoch', '9')])
def test_scheduled_batches_are_a_function_of_seed_and_epoch(image_folder, more):
    """From any batch on, whoever loads them and whatever draws in between; the data comes round again in mid-epoch."""
    args = parse(str(image_folder), *SCHEDULED, *more, '--color-jitter', '0.4', '--reprob', '0.5')
    expected = shapes(_loader(args, image_folder), 1)
    args = args.completed(workers=2)
    torch.manual_seed(99)
    loader = _loader(args, image_folder)
    for start in (0, 2, len(expected) - 1):
        train_focus.set_epoch(loader, 1, start)
        found = []
        for x, y in loader:
            found.append((x.clone(), y))
            torch.rand(7)
        assert len(found) == len(expected) - start
        for (x, y), (a, b) in zip(found, expected[start:]):
            assert torch.equal(x, a) and torch.equal(y, b)
    if more:
        assert sum(len(x) for x, _ in expected) > 24


@pytest.mark.slow
def test_scheduled_sizes_train_and_resume(train):
    flags = '--train-img-sizes 32 48 --train-batch-sizes 8 4 --epochs 2 --recovery-interval 1'
    whole = train(flags, 'whole')
    assert finite(whole.weights()) and 'Resolution: constant schedule of 8 x 32 px, 4 x 48 px' in whole.err
    train(f'{flags} --stop-epoch 1')
    assert equal(train(f'{flags} --resume auto').weights(), whole.weights())


def test_a_smaller_batch_may_weigh_less(train):
    flags = '--train-img-sizes 32 --train-batch-sizes 4 --weight-decay 0 --momentum 0'
    scaled = train(f'{flags} --variable-batch-loss-scale linear --lr 0.05', 'scaled', model=TINY)
    halved = train(f'{flags} --lr 0.025', 'halved', model=TINY)
    whole = train(f'{flags} --lr 0.05', 'whole', model=TINY)
    assert equal(scaled.weights(), halved.weights()) and not equal(scaled.weights(), whole.weights())
    one = f'{flags} --train-batches-per-epoch 1'
    root = train(f'{one} --variable-batch-loss-scale sqrt --lr {0.05 * 2 ** 0.5}', 'root', model=TINY).weights()
    for name, value in train(f'{one} --lr 0.05', 'step', model=TINY).weights().items():
        torch.testing.assert_close(root[name], value, rtol=1e-4, atol=1e-6)


# distillation

@pytest.fixture
def teacher(tmp_path):
    """Pretrained weights, in a folder."""
    torch.manual_seed(5)
    timm.models.save_for_hf(timm.create_model('test_efficientnet', num_classes=2), tmp_path / 'teacher')
    return f'local-dir:{tmp_path}/teacher'


def test_logit_distillation(train, teacher):
    flags = f'--kd-model-name {teacher} --task-loss-weight 0.25 --kd-temperature 2'
    run = train(f'{flags} --lr 0 --no-aug --epochs 1 -b 24', model=TINY)
    row = {k: float(v) for k, v in run.rows[0].items()}
    assert row['train_loss'] == pytest.approx(0.25 * row['train_task_loss'] + 0.75 * row['train_kd_loss'], rel=1e-5)
    assert row['train_kd_loss'] > 0 and set(run.checkpoint()) & {'task_state'} == set()
    loaded = eval(re.search(r'Load it with timm: (.*)', run.err)[1])
    assert equal(loaded.state_dict(), run.weights())


@pytest.mark.slow
def test_feature_distillation_resumes_with_its_projection(train, teacher):
    flags = f'--kd-model-name {teacher} --kd-distill-type feature --distill-loss-weight 2 --epochs 2 --model-ema'
    model = 'shufflenetv2_x0_5'
    whole = train(flags, 'whole', model=model)
    assert whole.checkpoint()['task_state']
    train(f'{flags} --stop-epoch 1', model=model)
    resumed = train(f'{flags} --resume auto', model=model)
    assert equal(resumed.weights(), whole.weights())
    assert 'train_kd_loss' in whole.rows[0]


@pytest.mark.slow('hard')
@pytest.mark.parametrize('kind', ['soft', 'hard'])
def test_token_distillation(train, teacher, kind):
    run = train(f'--kd-model-name {teacher} --kd-distill-type token --kd-token-distill-type {kind} '
                '--model-kwargs depth=2', model='deit_tiny_distilled_patch16_224')
    assert finite(run.weights())


@pytest.mark.parametrize('name', ['no_such_model', 'local-dir:/nowhere'])
def test_a_teacher_that_is_not_there_is_told(settings, monkeypatch, capsys, name):
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings(f'--kd-model-name {name}', model=TINY)])
    with pytest.raises(SystemExit) as e:
        train_focus.cli()
    assert e.value.code == 2  # below timm's own line on the teacher
    assert f'error: {TINY} cannot learn from --kd-model-name {name}: ' in capsys.readouterr().err.splitlines()[-1]


def test_token_distillation_needs_a_token(refusal, teacher):
    assert 'set_distilled_training' in refusal(f'--kd-model-name {teacher} --kd-distill-type token', model=TINY)


# types, devices, loaders

@pytest.mark.slow('focus_')
@pytest.mark.parametrize('model', [TINY, f'focus_{TINY}'])
@pytest.mark.parametrize('more', ['', '--no-prefetcher'])
def test_the_models_own_type(train, model, more):
    pictures = '--focus-save-images --sheet-images 2' if 'focus' in model else ''
    run = train(f'--model-dtype bfloat16 {more} {pictures}', model=model)
    weights = run.weights()
    assert finite(weights) and {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.bfloat16}
    if 'focus' in model:
        assert {v.dtype for v in run.checkpoint()['task_state']['cam_head'].values()} == {torch.bfloat16}


def test_layer_decay_reaches_a_focus_model(settings):
    args = parse(*settings('--layer-decay 0.5'))
    args, model = train_focus.build_model(args.completed(num_classes=2))
    task = create_task(model, args, device=torch.device('cpu'))
    optimizer = timm.optim.create_optimizer_v2(
        task.get_trainable_module(), **timm.optim.optimizer_kwargs(args), filter_bias_and_bn=False)
    scale = {id(p): g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
    rising = [scale[id(p)] for p in (model.backbone.conv1[0].weight, model.backbone.layer2[0].conv1.weight,
                                     model.backbone.layer4[0].conv1.weight, model.backbone.fc.weight)]
    assert rising == sorted(set(rising)) and rising[-1] == 1
    assert scale[id(model.cam_head.fc.weight)] == scale[id(model.erased_head.weight)] == 1


@pytest.mark.slow
def test_other_devices_flags(train, tmp_path, monkeypatch):
    (tmp_path / 'my_backend.py').write_text('seen = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    was = is_fast_norm()
    try:
        run = train('--device-modules my_backend --fast-norm --worker-seeding part -j 1 --drop-connect 0.1 '
                    '--use-multi-epochs-loader --epochs 3', model=f'focus_{TINY}')
        assert is_fast_norm()
    finally:
        set_fast_norm(was)
    assert sys.modules['my_backend'].seen and len(run.rows) == 3
    other = train('-j 1 --drop-path 0.1 --epochs 3', 'other')
    assert equal(run.weights(), other.weights()) and run.column('eval_loss') == other.column('eval_loss')


# what is logged

def test_tensorboard_shows_the_summary(train):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train('--tensorboard --epochs 3 --stop-epoch 2')
    run = train('--tensorboard --epochs 3 --resume auto')
    events = EventAccumulator(str(run.folder))
    events.Reload()
    for tag, column in (('train/erased_loss', 'train_erased_loss'), ('eval/top1', 'eval_top1'), ('lr', 'lr')):
        scalars = events.Scalars(tag)
        assert [s.step for s in scalars] == [0, 1, 2]
        assert [s.value for s in scalars] == pytest.approx(run.column(column), rel=1e-5)


@pytest.mark.slow
def test_wandb_gets_the_summary(fork, settings, tmp_path):
    """Really, in its offline mode, which keeps the run in a file."""
    done = fork(TRAIN, *settings('--log-wandb --wandb-project scenes --wandb-tags a b'),
                environment=dict(WANDB_MODE='offline', WANDB_SILENT='true'))
    assert done.returncode == 0, done.stderr
    record, = glob.glob(str(tmp_path / 'out/run/wandb/offline-run-*/run-*.wandb'))
    content = Path(record).read_bytes()
    for word in (b'train_erased_loss', b'eval_top1', b'scenes', b'focus_threshold'):
        assert word in content, word


def test_dashboards_that_are_not_installed_are_one_line(refusal, monkeypatch):
    for module, flag in (('torch.utils.tensorboard', 'tensorboard'), ('wandb', 'log-wandb')):
        monkeypatch.setitem(sys.modules, module, None)  # which is how Python marks a module that cannot be imported
        assert f"error: --{flag} cannot be had, pip install 'timm_focus" in refusal(f'--{flag}')


@pytest.mark.slow
def test_pictures_at_every_validation(train):
    run = train('--focus-save-images --sheet-images 2 --epochs 4 --val-interval 2 --save-images --log-interval 2 -b 4')
    assert sorted(p.name for p in run.folder.glob('*.png')) == ['focus-1.png', 'focus-3.png', 'focus.png']
    pictures = [Image.open(run.folder / f'focus-{e}.png') for e in (1, 3)]
    assert pictures[0].size == pictures[1].size and pictures[0].tobytes() != pictures[1].tobytes()
    assert sorted(p.name for p in run.folder.glob('train-batch-*.jpg')) == [f'train-batch-{b}.jpg' for b in (1, 3, 5)]
    assert Image.open(run.folder / 'train-batch-1.jpg').size == (4 * 32, 32)


def test_a_dry_run_says_what_it_would_do(settings, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings('--dry-run --epochs 5 --opt adamw')])
    logging.getLogger().handlers.clear()
    train_focus.main()
    out, err = capsys.readouterr()
    printed = yaml.safe_load(out)
    assert 'momentum' not in printed and 'weight_decay' not in printed, 'the defaults'
    assert (printed['opt'], printed['num_classes'], printed['lr'], printed['device']) == ('adamw', 2, 0.05, 'cpu')
    assert not (tmp_path / 'out').exists()
    plain = timm.create_model(TINY, num_classes=2)
    assert f'{sum(p.numel() for p in plain.parameters()):,} of them in the backbone' in err
    assert '24 training images, 10 validation images' in err
    # by hand: each convolution and linear layer, its output's places times its weights
    count = []
    for module in plain.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
            module.register_forward_hook(lambda m, _, y: count.append(
                m.weight.numel() * (y.shape[-1] * y.shape[-2] if y.ndim == 4 else 1)))
    plain.eval()
    tap = plain.forward_intermediates(torch.zeros(1, 3, 32, 32), indices=[3], intermediates_only=True)[0]
    count.clear()
    plain(torch.zeros(1, 3, 32, 32))
    assert f'Cost at inference: {sum(count):,} multiply-adds an image' in err
    passes = 2 * sum(count)  # and the heads'
    trained = re.search(r'Cost of training: 2 passes over the images a step, (\S+) multiply-adds an image forward and '
                        r'backward, (\S+) an epoch, (\S+) in all', err)
    assert float(trained[1]) == pytest.approx(3 * passes, rel=0.02)
    assert float(trained[2]) == pytest.approx(float(trained[1]) * 24, rel=0.01)
    assert float(trained[3]) == pytest.approx(float(trained[2]) * 5, rel=0.01)
    assert re.search(r'Memory of a step: the process had \d+\.\d+ GB at most', err)
    step, epoch, run = (float(x) * {'seconds': 1, 'minutes': 60}[unit] for x, unit in re.findall(
        r'(\S+) (seconds|minutes)', re.search(r'Time: .*', err)[0]))
    assert 0 < step < 60 and epoch == pytest.approx(3 * step, rel=0.1) and run == pytest.approx(15 * step, rel=0.1)
    assert f'Tapped feature: layer3, {tap.shape[1]} channels of {tap.shape[2]} x {tap.shape[3]}' in err
    assert len(re.findall(r'Train: 0 \[ +2/2\]  loss \d', err)) == 1 and 'Validate' not in err


@pytest.mark.slow('acol', 'adl', 'cait')
@pytest.mark.parametrize('model, more', [
    (TINY, '--method acol --img-size 64'), (TINY, '--method adl'), (TINY, '--has'),
    ('cait_xxs24_224', '--img-size 224 -b 2')])
def test_a_dry_run_counts_what_other_methods_and_models_take(train, tmp_path, model, more):
    err = train(f'--dry-run {more}', model=model).err
    assert re.search(r'Cost of training: one pass over the images a step, [\d.e+]+ multiply-adds an image', err), err
    assert not (tmp_path / 'out').exists()


def test_a_dry_run_shows_all_settings_if_asked(settings, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings('--dry-run --verbose --sched none')])
    train_focus.main()
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed['momentum'] == 0.9 and len(printed) > 150


# compiled

def graph_breaks():
    return dict(torch._dynamo.utils.counters['graph_break'])


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses(train):
    """With what changes the step; the plain one is in test_model_table.py."""
    more = '--focus-bn clean --mixup 0.5 --smoothing 0.1 --focus-fraction 0.5'
    eager = train(f'{more} --epochs 1 --model-ema', 'eager')
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = train(f'{more} --epochs 1 --model-ema --torchcompile aot_eager', 'compiled')
    assert not graph_breaks() and torch._dynamo.utils.counters['stats']['unique_graphs'] > 0
    for name in eager.rows[0]:
        assert compiled.column(name) == pytest.approx(eager.column(name), rel=2e-3, abs=2e-4), name
    saved = compiled.checkpoint()
    assert saved['state_dict'].keys() == saved['state_dict_ema'].keys() == eager.weights().keys()
    names = [n for s in saved['task_state'].values() for n in s] + list(saved['state_dict'])
    assert not [n for n in names if '_orig_mod' in n or n.startswith('module.')]
    again = train(f'{more} --epochs 2 --model-ema --resume {compiled.folder}/last.pth.tar', 'goes_on')  # uncompiled
    assert len(again.rows) == 1
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.long
def test_other_tasks_compile(train, teacher):
    torch._dynamo.reset()
    for kind in ('logit', 'feature'):
        run = train(f'--kd-model-name {teacher} --kd-distill-type {kind} --torchcompile eager', kind, model=TINY)
        assert finite(run.weights()) and not [n for n in run.weights() if '_orig_mod' in n]
    torch._dynamo.reset()
