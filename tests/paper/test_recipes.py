"""The recipes of the paper's tables: the index, the files and what the script builds of them say the same."""
import logging
import math
import re
import shlex
import sys
from functools import lru_cache
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from conftest import ROOT
from timm.data import resolve_data_config
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch import nn
from torchvision import transforms

import train_focus
from timm_focus import FocusNet
from timm_focus.analysis import multiply_adds
from timm_focus.baselines import ACoL, MaskSub, adl_modules
from timm_focus.data.places365 import CATEGORIES
from timm_focus.training import SettingsError, create_datasets, create_loaders, create_task, parse_args, set_up_device

pytestmark = pytest.mark.usefixtures('quietly')
FOLDER = ROOT / 'timm_focus/recipes'
INDEX = (FOLDER / 'README.md').read_text()
BASES = ('imagenet.yaml', 'places365.yaml', 'places365_small.yaml')
IMAGES = {'ImageNet': 1_281_167, 'Places365': 1_803_460, 'Places365-small': 365_000}
MULTIPLY_ADDS_A_SECOND = 10e12

# The tables of the paper, read off it: the numbers of a row in the order of its columns.
SMALL, FULL = 'Places365-small', 'Places365'
PAPER = {
    'Table 1': {(data, model, scheme): number for data, numbers in {
        'ImageNet': [('68.80', '69.93'), ('74.72', '75.78')], 'Places365': [('54.36', '54.30'), ('55.53', '55.75')],
    }.items() for model, pair in zip(('ResNet18', 'ResNet50'), numbers)
        for scheme, number in zip(('simple', 'complex'), pair)},
    'Table 2': {(data, model, column): f'{top1} (top-5 {top5})' for (data, model), row in {
        (SMALL, 'ShuffleNetV2'): ('47.67', '78.68', '48.91', '79.76'),
        (SMALL, 'ResNet18'): ('48.21', '79.22', '49.70', '80.62'),
        (SMALL, 'ResNet34'): ('48.52', '79.58', '50.72', '81.31'),
        (SMALL, 'ResNet50'): ('49.66', '80.67', '50.92', '81.70'),
        (SMALL, 'DenseNet121'): ('49.48', '80.87', '51.55', '82.20'),
        (FULL, 'ShuffleNetV2'): ('54.01', '84.05', '54.95', '84.56'),
        (FULL, 'ResNet18'): ('54.36', '84.50', '55.12', '84.94'),
        (FULL, 'ResNet34'): ('54.84', '84.72', '56.23', '85.79'),
        (FULL, 'ResNet50'): ('55.53', '85.85', '56.61', '86.15'),
        (FULL, 'DenseNet121'): ('55.40', '85.50', '56.84', '86.44'),
    }.items() for column, top1, top5 in (('baseline', *row[:2]), ('our method', *row[2:]))},
    'Table 3': {(model, method): number for model, row in {
        'ResNet18': ('49.25', '48.70', '49.03', '49.70'), 'ResNet34': ('49.91', '48.68', '49.55', '50.72'),
    }.items() for method, number in zip(('HaS', 'ADL', 'ACoL', 'ours'), row)},
    'Table 4': {(model, stage): number for stage, row in {
        'stage4': ('49.62±0.22', '49.77±0.08', '51.29±0.08'), 'stage3': ('49.70±0.10', '50.72±0.05', '51.55±0.17'),
    }.items() for model, number in zip(('ResNet18', 'ResNet34', 'DenseNet'), row)},
    'Table 5': {(data, row): number for row, numbers in {
        'baseline': ('47.80', '54.30', '69.93'), 'ours': ('48.68', '54.78', '69.57'),
    }.items() for data, number in zip((SMALL, FULL, 'ImageNet'), numbers)},
    'Table 6': {('ResNet18', 'AM'): '48.85', ('ResNet18', 'CPC'): '49.12',
                ('ResNet34', 'AM'): '48.89', ('ResNet34', 'CPC'): '49.92'},
    'Table 7': {(model, *terms): number for terms, row in {
        ('side',): ('48.75', '48.76', '49.52'), ('side', 'CPC'): ('49.12', '49.92', '50.43'),
        ('side', 'IPC'): ('49.65', '50.36', '50.85'), ('side', 'CPC', 'IPC'): ('49.70', '50.72', '50.92'),
        ('baseline',): ('48.21', '48.52', '49.66'),
    }.items() for model, number in zip(('ResNet18', 'ResNet34', 'ResNet50'), row)},
}
ARCHITECTURES = {
    'ShuffleNetV2': 'shufflenetv2_x1_5', 'ResNet18': 'resnet18', 'ResNet34': 'resnet34', 'ResNet50': 'resnet50',
    'DenseNet121': 'densenet121', 'DenseNet': 'densenet121'}
PARAMETERS = {'shufflenetv2_x1_5': 2.85, 'resnet18': 11.36, 'resnet34': 21.47, 'resnet50': 24.26, 'densenet121': 7.33}


def read_index():
    """Lines of the index's tables: section, cell as a tuple of words, number, time and command."""
    section, rows = None, []
    for line in INDEX.splitlines():
        if line.startswith('#'):
            section = line.lstrip('# ')
        match = re.fullmatch(r'\| (.*?) \| (.*?) \| ([\d.]+ h) \| `(.*)` \|', line)
        if match:
            cell, number, time, command = match.groups()
            rows.append(SimpleNamespace(
                section=section, cell=tuple(cell.split(', ')), number=number, time=time, command=command))
    return rows


ROWS = read_index()
TABLES = [row for row in ROWS if row.section in PAPER]
EQUAL = [row for row in ROWS if row.section.endswith('at equal compute')]
TODAY = [row for row in ROWS if row.section == "Today's habits"]
LOOP = re.compile(r'for s in 1 2 3; do (.*) --seed \$s; done')


def configs(command):
    """The base and the file of a command's recipe."""
    words = shlex.split(command)
    name, = (words[i + 1] for i, w in enumerate(words) if w == '--config')
    return [f'{yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["base"]}.yaml', f'{name}.yaml']


def arguments(command, seed='1'):
    """What the script is given."""
    looped = LOOP.fullmatch(command)
    words = shlex.split((looped[1] + f' --seed {seed}') if looped else command)
    assert words[:3] == ['python', 'train_focus.py', 'DIR'], command
    return words[2:]


def parse(command):
    return parse_args(train_focus.parser, arguments(command))[0]


def identify(row):
    return f'{row.section}: {", ".join(row.cell)}'


# the index and the files

def test_the_index_has_every_cell_of_the_papers_tables():
    assert len(TABLES) + len(EQUAL) + len(TODAY) == len(ROWS)
    for table, cells in PAPER.items():
        listed = [row for row in TABLES if row.section == table]
        assert {row.cell: row.number for row in listed} == cells and len(listed) == len(cells), table
    assert sum(map(len, PAPER.values())) == len(TABLES) == 67


def test_index_and_files_name_each_other():
    files = {str(p.relative_to(FOLDER)) for p in FOLDER.rglob('*.yaml')} - set(BASES)
    assert {p.name for p in FOLDER.glob('*.yaml')} == set(BASES)
    for row in ROWS:
        base, recipe = configs(row.command)
        assert base in BASES and recipe in files, row.command
    assert {configs(row.command)[1] for row in TABLES + TODAY} == files


@pytest.mark.slow('small', 'resnet34', 'resnet50')
@pytest.mark.parametrize('path', sorted(FOLDER.glob('*/*.yaml')),
                         ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_recipe_begins_with_command_number_and_time(path):
    header = [line.removeprefix('# ') for line in path.read_text().splitlines() if line.startswith('#')]
    rows = [row for row in TABLES + TODAY if configs(row.command)[1] == str(path.relative_to(FOLDER))]
    plain = [row for row in rows if not LOOP.fullmatch(row.command)] or rows
    assert {header[0]} == {row.command for row in plain}
    assert {LOOP.sub(r'\1', row.command) for row in rows} == {LOOP.sub(r'\1', header[0])}
    numbers = [f'Paper: {row.number}, {row.section}, {", ".join(row.cell)}' for row in rows if row in TABLES]
    assert header[1:-1] == (numbers or ["Paper: none, one of today's habits"])
    assert header[-1] == f'Time: {plain[0].time} on one A100, estimated as timm_focus/recipes/README.md says'


def test_no_two_recipes_are_alike_and_none_is_long():
    seen = {}
    for path in sorted(FOLDER.rglob('*/*.yaml')):
        settings = yaml.safe_load(path.read_text())
        base = settings.pop('base')
        assert 1 <= len(settings) <= 5, path
        other = seen.setdefault((base, str(sorted(settings.items()))), path)
        assert other == path, f'{path} is {other} again'


@pytest.mark.parametrize('row', ROWS, ids=identify)
def test_no_key_is_ignored(row, caplog):
    """What a file says is what the run has, but for what a later file or the command line says."""
    with caplog.at_level(logging.WARNING):
        args = parse(row.command)
    assert not caplog.records, caplog.text
    settings = {}
    for name in configs(row.command):
        settings.update(yaml.safe_load((FOLDER / name).read_text()))
    del settings['base']
    assert set(settings) <= set(vars(args))
    given = {w[2:].replace('-', '_') for w in arguments(row.command) if w.startswith('--')}
    for key, value in settings.items():
        if key not in given:
            own = getattr(args, key)
            assert own == value or (key == 'jsd_loss' and args.loss == 'jsd'), key


def test_a_recipe_is_found_by_name_and_by_path_and_listed(tmp_path, capsys, monkeypatch):
    name = 'table2/places365_small_resnet18_focus'
    by_name = parse(f'python train_focus.py DIR --config {name}')
    assert (by_name.model, by_name.epochs, by_name.images_per_class) == ('focus_resnet18', 30, 1000)
    for other in (f'{name}.yaml', str(FOLDER / f'{name}.yaml'), f'places365_small --config {name}'):
        assert {**vars(parse(f'python train_focus.py DIR --config {other}')), 'config': None} == {
            **vars(by_name), 'config': None}
    monkeypatch.chdir(tmp_path)  # a file of that name comes first
    (tmp_path / 'table2').mkdir()
    (tmp_path / name).write_text('base: places365_small\nepochs: 7')
    assert parse(f'python train_focus.py DIR --config {name}').epochs == 7
    with pytest.raises(SystemExit) as e:
        train_focus.parser.parse_args(['--list-recipes'])
    listed = capsys.readouterr().out.splitlines()
    assert e.value.code == 0 and [line.split()[0] for line in listed] == sorted(
        str(p.relative_to(FOLDER).with_suffix('')) for p in FOLDER.glob('*/*.yaml'))
    assert f'{name} ' in ''.join(listed) and '49.70 (top-5 80.62), Table 2' in ''.join(listed)


@pytest.mark.parametrize('name, words', [
    ('table2/places365_small_resnet18_fokus', 'no recipe of that name.*mean table2/places365_small_resnet18_focus'),
    ('../setup', 'no recipe of that name'), ('self.yaml', 'its own base'),
    ('lost.yaml', 'Cannot read --config no_such')])
def test_a_recipe_that_is_not_there(tmp_path, monkeypatch, name, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'self.yaml').write_text('base: self.yaml')
    (tmp_path / 'lost.yaml').write_text('base: no_such')
    with pytest.raises(SettingsError, match=words):
        parse(f'python train_focus.py DIR --config {name}')


# what is built

def expected(row):
    """What the paper says of a cell, in words of its own."""
    words = row.cell
    data = next((w for w in words if w in IMAGES), SMALL)
    name = next((w for w in words if w in ARCHITECTURES), 'ResNet18')  # all of Table 5 is
    model = ARCHITECTURES[name]
    epochs, decay = {SMALL: (30, 5e-4), FULL: (40, 2e-4), 'ImageNet': (90, 1e-4)}[data]
    if data == FULL and name == 'ShuffleNetV2':
        decay = 1e-4
    side = dict(alpha=0, beta=0, side_weight=1, consistency='kl')
    method, weights = 'none', None
    if 'our method' in words or 'ours' in words or row.section == 'Table 4' or 'IPC' in words and 'CPC' in words:
        method, weights = 'focus', dict(side, alpha=1, beta=2)
    elif 'AM' in words:
        method, weights = 'focus', dict(alpha=1, side_weight=1, consistency='attention_mining')
    elif 'CPC' in words:
        method, weights = 'focus', dict(side, alpha=1)
    elif 'IPC' in words:
        method, weights = 'focus', dict(side, beta=2)
    elif 'side' in words:
        method, weights = 'focus', side
    elif any(w.startswith('focus training') for w in words):  # none of the paper's
        method, weights = 'focus', dict(side, alpha=1, beta=2)
    elif (other := {'ADL', 'ACoL', 'MaskSub'} & set(words)):
        method = other.pop().lower()
    has = any(w == 'HaS' for w in words)
    crops = 'complex' in words or any('random resized crops' in word for word in words)
    scheme = 'complex' if crops or row.section.startswith('Table 5') else 'simple'
    doubled = [int(w.split()[0]) for w in words if w.endswith(' epochs')]
    assert doubled in ([], [2 * epochs]), 'equal compute is twice the epochs'
    return SimpleNamespace(
        data=data, model=model, epochs=2 * epochs if doubled else epochs, decay=decay, method=method, weights=weights,
        has=has, scheme=scheme, stage4='stage4' in words)


@pytest.fixture(scope='module')
def places(tmp_path_factory, photo):
    """A copy of Places365 with one training and one validation image of each class, all the same."""
    root = tmp_path_factory.mktemp('places') / 'places365_standard'
    picture = root.parent / 'picture.jpg'
    photo.resize((64, 64)).save(picture)
    for split in ('train', 'val'):
        for category in CATEGORIES:
            folder = root / split / category.replace('/', '-')
            folder.mkdir(parents=True)
            (folder / 'a.jpg').hardlink_to(picture)
    return root.parent


@pytest.fixture
def build(places, tmp_path, monkeypatch):
    """Everything that a run needs before its first step, as the script makes it; parameters without numbers."""
    monkeypatch.chdir(tmp_path)

    def make(command, device='meta'):
        argv = [str(places) if a == 'DIR' else a for a in arguments(command)]
        args = parse_args(train_focus.parser, [*argv, '--device', 'cpu', '-j', '0'])[0]
        args = args.completed(images_per_class=args.images_per_class and 1)
        if args.kd_model_name:
            torch.manual_seed(0)
            timm.models.save_for_hf(timm.create_model('resnet50', num_classes=len(CATEGORIES)), 'teacher')
        args, *_ = set_up_device(args)
        args, *datasets = create_datasets(args)
        with torch.device(device):
            args, model = train_focus.build_model(args)
        config = resolve_data_config(vars(args), model=model)
        loaders = create_loaders(args, *datasets, config, torch.device('cpu'))
        task = create_task(model, args)
        args = args.completed(lr=train_focus.default_lr(args))
        optimizer = create_optimizer_v2(
            task.get_trainable_module(), **optimizer_kwargs(args), **args.opt_kwargs,
            filter_bias_and_bn=args.no_decay_1d)
        return SimpleNamespace(args=args, datasets=datasets, model=model, config=config, loaders=loaders, task=task,
                               optimizer=optimizer)
    return make


@lru_cache(maxsize=None)
def cost(model, classes, method):
    """Multiply-adds of a training image, forward and backward; counted on a network without numbers."""
    with torch.device('meta'):
        plain = timm.create_model(model, num_classes=0 if method == 'acol' else classes)
        if method != 'acol':
            return 3 * multiply_adds(plain, (3, 224, 224))
        from timm_focus.baselines import create_acol
        backbone = multiply_adds(plain, (3, 224, 224))
        return 3 * (2 * multiply_adds(create_acol(model, classes), (3, 224, 224)) - backbone)


@pytest.mark.slow('ACoL', 'DenseNet', 'ResNet34', 'ImageNet', 'small')
@pytest.mark.parametrize('row', ROWS, ids=identify)
def test_the_time_is_what_the_index_says_how_to_count(row):
    args = parse(row.command)
    data = {'imagenet.yaml': 'ImageNet', 'places365.yaml': FULL, 'places365_small.yaml': SMALL}[configs(row.command)[0]]
    classes = 1000 if data == 'ImageNet' else 365
    model = args.model.removeprefix('focus_')
    erases = args.method == 'focus' and (args.focus_alpha > 0 or args.focus_beta > 0)
    work = cost(model, classes, args.method if args.method == 'acol' else '')
    work *= 2 if erases or args.method == 'masksub' else max(args.aug_splits, 1)
    if args.kd_model_name:
        work += cost('resnet50', classes, '') / 3
    hours = work * IMAGES[data] * args.epochs / MULTIPLY_ADDS_A_SECOND / 3600
    hours *= 3 if LOOP.fullmatch(row.command) else 1
    assert row.time == (f'{hours:.1f} h' if hours < 10 else f'{hours:.0f} h')
    assert f'{IMAGES[data]:,}' in INDEX and '10 trillion multiply-adds a second' in INDEX


@pytest.mark.slow('ACoL', 'DenseNet', 'ResNet34', 'ResNet50', 'ImageNet', 'distillation')
@pytest.mark.parametrize('row', [row for row in TABLES if not (
    row.section in ('Table 3', 'Table 4', 'Table 6', 'Table 7') and 'table2/' in row.command)] + TODAY, ids=identify)
def test_what_is_built_is_what_the_paper_states(row, build):
    want = expected(row)
    built = build(row.command)
    args = built.args
    check_settings(args, want)

    # model: architecture, size, start, stage
    plain = built.model
    if want.method == 'focus':
        assert isinstance(built.model, FocusNet)
        plain = built.model.backbone
        reduction = built.model.feature_info[built.model.stage]['reduction']
        assert reduction == (32 if want.stage4 else 16)
        model = built.model
        assert (model.threshold, model.batch_fraction, model.bn, model.map_kind) == (0.7, 1, 'shared', 'cam')
        loss = built.task.loss
        for name, value in want.weights.items():
            assert getattr(loss, name) == value, name
        assert isinstance(loss.criterion, SoftTargetCrossEntropy if args.cutmix else nn.CrossEntropyLoss)
        assert (loss.kl_direction, loss.kl_detach) == ('erased_main', None)
    elif want.method == 'acol':
        assert isinstance(built.model, ACoL) and built.model.threshold == 0.6
        assert built.model.head_b[0].out_channels == 1024
        plain = built.model.network.backbone
    elif want.method == 'masksub':
        assert isinstance(built.model, MaskSub)
        plain = built.model.backbone
    elif row in TABLES:
        assert isinstance(built.task.criterion, nn.CrossEntropyLoss) and built.task.criterion.label_smoothing == 0
    assert adl_modules(built.model) == (
        {'resnet18': ['layer3.0', 'layer4.0', 'layer4.1'], 'resnet34': ['layer3.0', 'layer4.0', 'layer4.2']}[want.model]
        if want.method == 'adl' else [])
    assert plain.pretrained_cfg['architecture'] == want.model
    if want.method != 'acol':
        assert round(sum(p.numel() for p in plain.parameters()) / 1e6, 2) == PARAMETERS[want.model]
    if want.model.startswith('resnet'):
        assert args.model_kwargs == dict(zero_init_last=False)

    # what is trained, and how fast
    group, = built.optimizer.param_groups
    assert type(built.optimizer) is torch.optim.SGD
    assert (group['weight_decay'], group['momentum'], group['nesterov']) == (want.decay, 0.9, False)
    assert len(group['params']) == len([p for p in built.model.parameters() if p.requires_grad])

    # images
    steps = list(built.datasets[0].transform.transforms)
    if row in TABLES:
        check_crop(steps, want.scheme)
        assert built.loaders[0].random_erasing is None and built.loaders[2] is None
    evaluation = built.datasets[1].transform.transforms
    assert (evaluation[0].size, evaluation[1].size) == (256, (224, 224))
    assert isinstance(evaluation[1], transforms.CenterCrop)
    assert built.config['mean'] == (0.485, 0.456, 0.406) and built.config['std'] == (0.229, 0.224, 0.225)


def check_settings(args, want):
    """What is a number of the paper: batch, rate, decay, epochs, schedule."""
    assert (args.method, args.has, args.scheme, args.epochs) == (want.method, want.has, want.scheme, want.epochs)
    assert (args.batch_size, args.grad_accum_steps, args.lr, args.weight_decay) == (256, 1, 0.1, want.decay)
    assert not args.pretrained and not args.initial_checkpoint, 'from scratch'
    assert args.img_size == 224 and not args.amp
    parameter = nn.Parameter(torch.zeros(1))
    scheduler, epochs = create_scheduler_v2(
        torch.optim.SGD([parameter], lr=args.lr), **scheduler_kwargs(args), updates_per_epoch=1)
    assert epochs == want.epochs
    for epoch in (0, 1, want.epochs // 2, want.epochs - 1, want.epochs):
        scheduler.step(epoch)
        assert scheduler.optimizer.param_groups[0]['lr'] == pytest.approx(
            0.05 * (1 + math.cos(math.pi * epoch / want.epochs)), abs=1e-9)


def check_crop(steps, scheme):
    flip, = (s for s in steps if isinstance(s, transforms.RandomHorizontalFlip))
    jitter = [s for s in steps if isinstance(s, transforms.ColorJitter) and s.brightness is not None]
    assert flip.p == 0.5
    if scheme == 'simple':
        resize, crop = steps[0].transforms
        assert isinstance(resize, ResizeKeepRatio) and resize.size == (256, 256)
        assert isinstance(crop, transforms.RandomCrop) and crop.size == (224, 224) and not jitter
    else:
        assert isinstance(steps[0], RandomResizedCropAndInterpolation)
        assert steps[0].size == (224, 224) and tuple(steps[0].scale) == (0.08, 1)
        assert tuple(steps[0].ratio) == (3 / 4, 4 / 3) and jitter[0].brightness == (0.6, 1.4)
    assert not [s for s in steps if isinstance(s, (transforms.RandomVerticalFlip, transforms.RandomErasing))]


@pytest.mark.parametrize('row', TABLES + EQUAL, ids=identify)
def test_settings_are_those_of_the_cell(row):
    args, want = parse(row.command), expected(row)
    assert args.model == ('focus_' if want.method == 'focus' else '') + want.model
    assert args.images_per_class == (1000 if want.data == SMALL else None)
    assert args.dataset == ('' if want.data == 'ImageNet' else 'places365')
    args = args.completed(world_size=1)
    args = args.completed(lr=train_focus.default_lr(args))
    check_settings(args, want)
    if LOOP.fullmatch(row.command):
        seeds = [parse_args(train_focus.parser, arguments(row.command, s))[0].seed for s in '123']
        assert seeds == [1, 2, 3] and row.section == 'Table 4'


def test_every_comparison_has_its_equals():
    """Plain with twice the epochs, Hide-and-Seek with once and twice, of each data set and model that the paper has."""
    epochs = {SMALL: 60, FULL: 80, 'ImageNet': 180}
    for section, n in (('Table 2', 2), ('Table 5', 1)):
        cells = {cell[:n] for cell in PAPER[section]}
        rows = {row.cell for row in EQUAL if row.section == f'{section} at equal compute'}
        assert rows == {(*c, *more) for c in cells for more in (
            ('plain', f'{epochs[c[0]]} epochs'), ('HaS',), ('HaS', f'{epochs[c[0]]} epochs'))}


@pytest.mark.slow('distillation')
@pytest.mark.parametrize('row', TODAY, ids=identify)
def test_todays_habits_are_timms(row, build):
    name = configs(row.command)[1].removeprefix('today/').removesuffix('.yaml')
    built = build(row.command, device='cpu' if name == 'distillation' else 'meta')
    loss = type(getattr(built.task, 'criterion', None)).__name__
    loader, _, mixup = built.loaders
    collate = loader.collate_fn if hasattr(loader, 'collate_fn') else loader.loader.collate_fn
    found = dict(
        mixup=getattr(collate, 'mixup_alpha', 0), cutmix=getattr(collate, 'cutmix_alpha', 0),
        erasing=getattr(loader.random_erasing, 'probability', 0), splits=built.args.aug_splits, loss=loss,
        task=type(built.task).__name__)
    usual = dict(mixup=0, cutmix=0, erasing=0, splits=0, loss='CrossEntropyLoss', task='ClassificationTask')
    assert mixup is None and found == {**usual, **{
        'mixup': dict(mixup=0.2, loss='SoftTargetCrossEntropy'),
        'cutmix': dict(cutmix=1., loss='SoftTargetCrossEntropy'),
        'random_erasing': dict(erasing=0.25), 'augmix_jsd': dict(splits=3, loss='JsdCrossEntropy'),
        'label_smoothing': dict(loss='LabelSmoothingCrossEntropy'),
        'distillation': dict(task='LogitDistillationTask'),
        'mixup_cutmix': dict(mixup=0.2, cutmix=1., loss='SoftTargetCrossEntropy'),
        'randaugment': {}, 'random_resized_crop': {},
        'masksub': dict(task='MaskSubTask', loss='NoneType'),
        'focus_cutmix': dict(cutmix=1., task='FocusTask', loss='NoneType')}[name]}
    dataset = getattr(loader.dataset, 'dataset', loader.dataset)
    transforms = str(dataset.transform)
    assert ('RandAugment' in transforms) == (name == 'randaugment')
    assert ('RandomResizedCrop' in transforms) == ('random_resized_crop' in name)


def test_networks_start_as_torchvisions_do(build):
    row = next(row for row in TABLES if row.cell == (SMALL, 'ResNet18', 'baseline'))
    model = build(row.command, device='cpu').model
    assert all((block.bn2.weight == 1).all() for block in (*model.layer1, *model.layer4))
    other = timm.create_model('resnet18')
    assert not other.layer4[1].bn2.weight.any(), 'or zero_init_last need not be said'


@pytest.mark.slow
@pytest.mark.long('DenseNet121', 'ResNet50', 'Table 4', 'Table 6', 'Table 7', 'ResNet34, base', 'ShuffleNetV2, base')
@pytest.mark.parametrize('row', [row for row in TABLES if row.cell[0] in ('ResNet18', FULL)] + [
    row for row in TODAY if 'distillation' not in row.command], ids=identify)
def test_a_step_by_the_script(row, places, monkeypatch, capsys):
    """By main itself, on small images of which there are few."""
    argv = [str(places) if a == 'DIR' else a for a in arguments(row.command)]
    small = '--dry-run --img-size 64 -b 4 -j 0 --device cpu'.split()
    subset = train_focus.parse_args(train_focus.parser, argv)[0].images_per_class
    more = ['--images-per-class', '1'] if subset else []
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *argv, *small, *more])
    train_focus.main()
    assert re.search(r'Train: 0 \[ +2/2\]  loss \d', capsys.readouterr().err)
