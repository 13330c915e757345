"""The command line: its layers, its YAML file, and one sentence for every mistake."""
import argparse
import inspect
import logging
import re
import sys
from pathlib import Path

import pytest
import timm.data.config
import timm.models
import yaml
from timm.optim import optimizer_kwargs
from timm.scheduler import scheduler_kwargs

import train_focus
from timm_focus.commands.main import main as timm_focus_command
from timm_focus.training import SettingsError, build_parser, parse_args
from timm_focus.training.arguments import FOCUS_LOSS_FLAGS, FOCUS_MODEL_FLAGS
from timm_focus.commands.options import options_page
from timm_focus.training.refused import REFUSED
from timm_focus.training.settings import ALIASES

ROOT = Path(__file__).parents[2]


def parse(*argv):
    return parse_args(build_parser(), argv)[0]


@pytest.fixture
def config(tmp_path):
    """`config('epochs: 3')` is the path of a YAML file with this text."""
    def write(text):
        path = tmp_path / 'config.yaml'
        path.write_text(text)
        return str(path)
    return write


@pytest.fixture
def refusal(capsys, monkeypatch):
    """`refusal(*argv)` is the one line on stderr with which the script refuses the settings."""
    def refuse(*argv):
        monkeypatch.setattr(sys, 'argv', ['train_focus.py', *argv])
        with pytest.raises(SystemExit) as e:
            train_focus.cli()
        assert e.value.code == 2
        out, err = capsys.readouterr()
        assert not out
        assert err.count('\n') == 1 and err.startswith('train_focus.py: error: ')
        return err
    return refuse


def test_no_argument_means_the_drawn_scenes():
    args = parse()
    assert (args.dataset, args.model, args.method, args.img_size) == ('synthetic', 'focus_test_resnet', 'focus', 64)
    assert args.epochs == 12 and args.data_dir is None
    assert vars(parse('--dataset', 'synthetic')) == vars(args)


def test_a_folder_is_trained_on_by_the_papers_recipe():
    args = parse('/data')
    assert args.data_dir == '/data' and parse('--data-dir', '/data').data_dir == '/data'
    assert (args.model, args.method, args.epochs, args.batch_size) == ('focus_resnet50', 'focus', 40, 256)
    assert (args.lr, args.lr_base, args.lr_base_size, args.weight_decay, args.opt) == (None, 0.1, 256, 2e-4, 'momentum')
    assert (args.smoothing, args.warmup_epochs, args.min_lr, args.crop_pct) == (0, 0, 0, 0.875)


@pytest.mark.parametrize('model, method, expected', [
    ('resnet18', None, 'none'), ('resnet18', 'focus', 'focus'), ('resnet18', 'none', 'none'),
    ('focus_resnet18', None, 'focus'), ('focus_resnet18', 'focus', 'focus'), ('hf-hub:a/b', 'focus', 'focus')])
def test_the_method_goes_by_the_name_unless_it_is_given(model, method, expected):
    assert parse('d', '--model', model, *(['--method', method] if method else [])).method == expected


# layers

def test_the_scheme_sets_the_augmentation():
    simple, complex_ = parse('d'), parse('d', '--scheme', 'complex')
    assert (simple.color_jitter, simple.scale, simple.ratio) == (0, None, None)
    assert complex_.color_jitter == 0.4 and complex_.scale == [0.08, 1] and complex_.ratio == [3 / 4, 4 / 3]
    assert simple.train_interpolation == complex_.train_interpolation == 'bilinear'


def test_an_explicit_flag_wins_over_the_scheme():
    args = parse('d', '--scheme', 'complex', '--color-jitter', '0', '--scale', '0.5', '1')
    assert args.color_jitter == 0 and args.scale == [0.5, 1] and args.ratio == [3 / 4, 4 / 3]


def test_an_explicit_flag_wins_over_the_synthetic_settings():
    args = parse('--dataset', 'synthetic', '--model', 'resnet18', '--epochs', '40')
    assert (args.model, args.method) == ('resnet18', 'none')
    assert args.epochs == 40  # though it is the parser's default
    assert args.batch_size == parse().batch_size


def test_yaml_wins_over_scheme_and_synthetic_settings(config):
    args = parse('--config', config('dataset: synthetic\nscheme: complex\ncolor_jitter: 0.1\nepochs: 3'))
    assert (args.dataset, args.model, args.epochs) == ('synthetic', 'focus_test_resnet', 3)
    assert args.color_jitter == 0.1 and args.scale == [0.08, 1]


def test_an_explicit_flag_wins_over_yaml(config):
    path = config('epochs: 3\nmodel_ema: true\nchannels_last: true\nlr: 0.5\nscheme: complex')
    args = parse('d', '--config', path, '--epochs', '40', '--no-channels-last', '--scheme', 'simple')
    assert (args.epochs, args.channels_last, args.scheme, args.color_jitter) == (40, False, 'simple', 0)
    assert args.model_ema is True and args.lr == 0.5


@pytest.mark.parametrize('name', ['data', 'data-dir', 'data_dir'])
def test_a_folder_on_the_command_line_wins_over_yaml(config, name):
    path = config(f'{name}: /of/yaml')
    assert parse('--config', path).data_dir == '/of/yaml'
    assert parse('/mine', '--config', path).data_dir == '/mine'
    assert parse('--data-dir', '/mine', '--config', path).data_dir == '/mine'


@pytest.mark.parametrize('argv', [
    [], ['/data', '--model', 'focus_resnet18', '--scheme', 'complex', '--focus-stage', '2', '--opt-betas', '.9', '.99'],
    ['--data-dir', '/data', '--lr', '3e-4', '--model-kwargs', 'zero_init_last=False', '--no-channels-last']])
def test_the_written_settings_give_the_run_again(config, argv):
    args, text = parse_args(build_parser(), argv)
    again = parse('--config', config(text))
    assert {**vars(again), 'config': None} == vars(args)
    assert yaml.safe_load(text)['model'] == args.model


@pytest.fixture
def configs(tmp_path):
    """`configs('epochs: 3', 'lr: 1')` is the command line that names files with these texts."""
    def write(*texts):
        argv = []
        for i, text in enumerate(texts):
            (tmp_path / f'{i}.yaml').write_text(text)
            argv += ['--config', str(tmp_path / f'{i}.yaml')]
        return argv
    return write


def test_of_several_files_the_later_wins_and_the_command_line_over_all(configs):
    files = configs(
        'epochs: 3\nlr: 0.5\nmodel: resnet18\nmodel_kwargs: {a: 1}', 'epochs: 4\nmodel_kwargs: {b: 2}', 'lr: 0.2')
    args = parse('d', *files)
    assert (args.epochs, args.lr, args.model, args.model_kwargs) == (4, 0.2, 'resnet18', {'b': 2})
    assert args.config == files[1::2]
    assert parse(*files, 'd', '--epochs', '3').epochs == 3
    assert parse('d', '-c', files[3], '-c', files[1]).epochs == 3


def test_a_later_file_wins_by_another_name_and_by_the_scheme(configs):
    assert parse(*configs('data: /a', 'data_dir: /b')).data_dir == '/b'
    args = parse('d', *configs('model: resnet18\nloss: bce', 'jsd_loss: true\naug_splits: 2'))
    assert args.loss == 'jsd'
    args = parse('d', *configs(parse_args(build_parser(), ['d', '--scheme', 'complex'])[1], 'scheme: simple'))
    assert (args.scheme, args.scale, args.color_jitter) == ('simple', None, 0)
    assert parse('d', *configs('dataset: synthetic', 'epochs: 2')).dataset == ''
    assert parse('d', *configs('recipe: timm', 'epochs: 2')).batch_size == 128


def test_the_written_settings_name_no_other_file(configs, tmp_path):
    args, text = parse_args(build_parser(), ['d', *configs('epochs: 3', 'lr: 0.5')])
    assert 'config' not in yaml.safe_load(text)
    again = parse(*configs(text))
    assert {**vars(again), 'config': None} == {**vars(args), 'config': None}


def test_a_file_that_names_another_is_one_line(config, refusal):
    path = config('config: base.yaml\nepochs: 2')
    assert 'names another file: give --config for each' in refusal('d', '--config', path)
    assert parse('d', '--config', config('config: null\nepochs: 2')).epochs == 2


# YAML values

def test_yaml_converts_like_the_command_line(config):
    args = parse('d', '--config', config(
        "lr: '3e-4'\nweight-decay: 1e-3\nbatch_size: '8'\nepochs: 3.0\nopt_betas: ['0.9', 1]\nexperiment: 5\n"
        'focus_stage: layer2\nmodel: focus_resnet18\nmodel_kwargs: {zero_init_last: false}\nimg_size: null\n'
        'clip-mode: agc\ninput_size: [3, 32, 32]'))
    assert args.lr == 3e-4 and args.weight_decay == 1e-3 and args.opt_betas == [0.9, 1.]
    assert (args.batch_size, args.epochs, args.experiment) == (8, 3, '5')
    assert isinstance(args.epochs, int) and isinstance(args.opt_betas[1], float)
    assert (args.focus_stage, args.model_kwargs, args.img_size) == ('layer2', {'zero_init_last': False}, None)
    assert (args.clip_mode, args.input_size) == ('agc', [3, 32, 32])
    assert parse('d', '--model', 'focus_resnet18', '--config', config('focus_stage: 2')).focus_stage == 2
    assert parse('d', '--model', 'focus_resnet18', '--config', config('focus_stage: 2.5')).focus_stage == '2.5'


def test_an_unknown_key_is_ignored_with_the_nearest_name(config, caplog):
    with caplog.at_level(logging.WARNING):
        args = parse('d', '--config', config('weight_dekay: 7\nqqqqqqq: 1\nepochs: 2'))
    assert args.weight_decay == 2e-4 and args.epochs == 2 and not hasattr(args, 'weight_dekay')
    assert 'unknown key weight_dekay, which is ignored: did you mean weight_decay?' in caplog.text
    assert 'unknown key qqqqqqq, which is ignored.' in caplog.text and len(caplog.records) == 2


@pytest.mark.parametrize('text, words', [
    ('epochs: ten', 'epochs in --config .* a whole number'),
    ('epochs: 2.5', 'a whole number'),
    ('epochs: true', 'a whole number'),
    ('epochs: null', 'leave the line out'),
    ('lr: fast', 'a number'),
    ('weight-decay: [1, 2]', 'weight-decay in --config .* a single value'),
    ('lr: {a: 1}', 'a single value'),
    ('opt_betas: 0.9', 'a list'),
    ('opt_betas: [0.9, x]', 'a number'),
    ('input_size: [3, 32]', 'a list of 3 values'),
    ('model_kwargs: 3', 'a mapping'),
    ('model_ema: 1', 'true or false'),
    ("channels_last: 'yes'", 'true or false'),
    ('scheme: hard', "one of 'simple', 'complex'"),
    ('focus_map: heat', "one of 'cam', 'mean', 'random'"),
    ('focus_stage: true', 'a name or an index'),
    ('- epochs', 'no mapping'),
    ('a: [', 'Cannot read'),
])
def test_a_wrong_yaml_value_is_one_line(config, refusal, text, words):
    assert re.search(words, refusal('d', '--config', config(text)))


def test_a_missing_yaml_file_is_one_line(refusal, tmp_path):
    assert 'Cannot read --config' in refusal('d', '--config', str(tmp_path / 'none.yaml'))
    assert 'Cannot read --config' in refusal('d', '--config', str(tmp_path))


# mistakes

@pytest.mark.parametrize('argv, words', [
    (['--epochs', '3'], 'No data is given'),
    (['--model', 'resnet18'], 'No data is given'),
    (['d', '--data-dir', 'e'], 'given twice'),
    (['d', '--dataset', 'synthetic'], 'draws its own images'),
    (['d', '--resume', 'auto'], '--resume auto needs --experiment'),
    (['d', '--model', 'resnet18', '--focus-alpha', '2'], '--focus-alpha belongs to focus training.*focus_resnet18'),
    (['d', '--focus-bn', 'clean', '--focus-stage', '1', '--method', 'none'], '--focus-bn, --focus-stage belongs'),
    (['d', '--model', 'focus_resnet18', '--method', 'none'], 'give --model resnet18'),
    (['d', '--method', 'acul'], 'invalid choice'),
    (['d', '--no-such-flag'], 'unrecognized arguments: --no-such-flag'),
    (['d', '--epochs', 'ten'], 'invalid int value'),
    (['d', '--eval-metric', 'f1'], 'invalid choice'),
    (['d', '--model-kwargs', 'depth'], 'key=value'),
    (['d', 'e'], 'unrecognized arguments: e'),
])
def test_a_mistake_is_one_line(refusal, argv, words):
    assert re.search(words, refusal(*argv))


def test_a_mistake_is_raised_as_a_sentence():
    with pytest.raises(SettingsError, match='No data is given'):
        parse('--epochs', '3')


@pytest.mark.parametrize('typed, meant', [
    ('--epohcs', '--epochs'), ('--focus-treshold', '--focus-threshold'), ('--model-emma-x', '--model-ema'),
    ('--drop_path', '--drop-path'), ('--epohcs=3', '--epochs')])
def test_a_typing_mistake_in_a_flag_gets_the_nearest_one(refusal, typed, meant):
    assert f'unrecognized arguments: {typed} (did you mean {meant}?)' in refusal('d', typed)


def test_focus_flags_at_their_defaults_do_not_disturb_a_plain_model():
    assert parse('d', '--model', 'resnet18', '--focus-alpha', '1', '--focus-map', 'cam').method == 'none'


@pytest.mark.parametrize('flag, values', [
    ('batch-size', ['0', '-3']), ('grad-accum-steps', ['0']), ('epochs', ['0', '-1']), ('workers', ['-1']),
    ('log-interval', ['0']), ('val-interval', ['0']), ('checkpoint-hist', ['0']), ('img-size', ['0']),
    ('num-classes', ['0']), ('validation-batch-size', ['0']), ('recovery-interval', ['-1']), ('seed', ['-1']),
    ('lr', ['-1', 'nan', 'inf']), ('lr-base', ['nan', '-0.1']), ('weight-decay', ['-1', 'nan']),
    ('smoothing', ['-0.1', '1', '1.5', 'nan']), ('reprob', ['2', 'nan']),
    ('drop', ['1.5', 'nan']), ('mixup', ['-1', 'nan']),
    ('cutmix', ['-1', 'inf']), ('clip-grad', ['-1', 'nan']), ('hflip', ['1.1']), ('mixup-prob', ['nan']),
    ('crop-pct', ['0', '1.5', 'nan']), ('focus-threshold', ['0', '1.1', 'nan']), ('focus-fraction', ['0', '2', 'nan']),
    ('focus-alpha', ['-1', 'nan', 'inf']), ('focus-beta', ['-1', 'nan']), ('focus-side-weight', ['-1', 'inf']),
    ('drop-path', ['-1', 'nan']), ('model-ema-decay', ['1.5', 'nan']), ('momentum', ['-1', 'nan']), ('min-lr', ['-1']),
    ('opt-betas', ['nan']), ('decay-rate', ['inf']), ('start-epoch', ['-1']), ('focus-width', ['0']),
])
def test_a_number_out_of_range_is_one_line(refusal, flag, values):
    for value in values:
        line = refusal('d', '--model', 'focus_resnet18', f'--{flag}={value}')
        assert line.startswith(f'train_focus.py: error: --{flag} is '), line


@pytest.mark.parametrize('flag, value', [
    ('lr', '0'), ('smoothing', '0.99'), ('focus-threshold', '1'), ('focus-fraction', '1e-3'), ('focus-beta', '0'),
    ('drop', '0'), ('workers', '0'), ('recovery-interval', '0'), ('crop-pct', '1'), ('seed', '0')])
def test_the_end_of_a_range_belongs_to_it(flag, value):
    args = parse('d', '--model', 'focus_resnet18', f'--{flag}={value}')
    assert getattr(args, flag.replace('-', '_')) == float(value)


# no flag is dead

def _names_read_by_timm():
    """What timm's helpers take from the settings, found by asking them."""
    class Settings:
        def __init__(self):
            self.read = set()

        def __getattr__(self, name):
            self.read.add(name)
            return None
    settings = Settings()
    optimizer_kwargs(settings)
    scheduler_kwargs(settings, decreasing_metric=False)
    sources = inspect.getsource(timm.data.config) + inspect.getsource(timm.models._factory)
    return settings.read | set(re.findall(r"args(?:\.get\(|\[)'(\w+)'", sources))


def test_every_flag_is_read_by_the_script_or_by_timm():
    files = [ROOT / 'train_focus.py', *sorted((ROOT / 'timm_focus/training').glob('*.py')),
             *sorted((ROOT / 'timm_focus/runs').glob('*.py'))]
    text = '\n'.join(p.read_text() for p in files if p.name not in ('arguments.py', 'checks.py', 'settings.py'))
    read = set(re.findall(r'\bargs\.(\w+)\b(?!\s*=[^=])', text)) | _names_read_by_timm()
    read |= set(re.findall(r"\bsettings\.get\('(\w+)'\)", text))  # by `model_arguments`
    read |= {f'focus_{name}' for name in (*FOCUS_MODEL_FLAGS, *FOCUS_LOSS_FLAGS)}  # by getattr, from these lists
    read |= {'config', 'help', 'recipe', 'list_recipes'}  # by the parser
    read |= {*ALIASES, *REFUSED}  # said by another name, or refused
    assert {'opt_eps', 'lr_noise', 'decay_rate', 'mean', 'interpolation', 'clip_mode', 'has'} <= read
    assert not {a.dest for a in build_parser()._actions} - read


def test_every_flag_has_a_help_text_and_shows_its_default():
    parser = build_parser()
    assert not [a.dest for a in parser._actions if not a.help]
    text = ' '.join(parser.format_help().split())
    for action in parser._actions:
        if action.default is argparse.SUPPRESS or action.dest == 'data' or action.dest in REFUSED:
            continue
        shown = text.split(f' {action.option_strings[-1]}', 2)[-1]
        shown = shown[:shown.index('default: ') + 60]
        assert re.search(r'[(;] ?default: \S', shown), action.dest
    for words in (
            '--batch-size BATCH_SIZE images a step and process (default: 256)',
            'EPOCH epoch that begins to erase images; before it a step is',
            'automatic mixed precision (default: off)', 'channels_last memory format (default: on)',
            'weight decay (default: 0.0002)', 'epochs of multistep (default: 90 180 270)',
            'feature the CAM head taps, by name or index (default: the last before the last down-sampling)',
            'clip gradients at this (default: none)'):
        assert words in text, words
    for dest in REFUSED:
        assert f'--{dest.replace("_", "-")} ' not in text, 'what is refused is not offered'


def test_the_page_of_options_is_that_of_the_parser():
    page = options_page()
    assert (ROOT / 'docs/options.md').read_text() == page, 'python -m timm_focus.commands.options > docs/options.md'
    for name, default in (('`-b`, `--batch-size`', '256'), ('`--amp`', 'off'), ('`--focus-width`', "the feature's"),
                          ('`--channels-last`, `--no-channels-last`', 'on'), ('`--lr`', 'by --lr-base')):
        assert f'| {name} | {default} | ' in page
    assert '- `--fuser`: it chooses how TorchScript' in page
    shown = {a.option_strings[-1] for a in train_focus.parser._actions if a.option_strings and a.dest != 'help'}
    assert all(f'`{name}`' in page for name in shown)


def test_args_yaml_of_a_run_serves_another_model_and_scheme(tmp_path):
    """The fair comparison: the same settings, another model."""
    path = tmp_path / 'args.yaml'
    path.write_text(parse_args(build_parser(), ['/data', '--model', 'focus_resnet18', '--epochs', '7'])[1])
    plain = parse('--config', str(path), '--model', 'resnet18')
    assert (plain.method, plain.epochs, plain.data_dir) == ('none', 7, '/data')
    assert parse('--config', str(path)).method == 'focus'
    other = parse('--config', str(path), '--scheme', 'complex', '/other')
    assert (other.color_jitter, other.scale, other.data_dir) == (0.4, [0.08, 1.], '/other')
    path.write_text(parse_args(build_parser(), ['/data', '--scheme', 'complex', '--color-jitter', '0.2'])[1])
    back = parse('--config', str(path), '--scheme', 'simple')
    assert (back.color_jitter, back.scale, back.ratio) == (0.2, None, None), 'what was not the scheme stays'
    path.write_text(parse_args(build_parser(), [])[1])
    assert parse('--config', str(path), '/data').dataset == ''


OLD = ROOT / 'benchmarks/results/miniplaces40/shufflenetv2_x1_5-focus-0/args.yaml'


@pytest.mark.slow
def test_an_args_yaml_without_what_was_given_serves_as_well():
    """Those of before list all settings: what their recipe and scheme do not lead to was given."""
    written = yaml.safe_load(OLD.read_text())
    assert 'given' not in written and len(written) > 150
    args = parse('/data', '--config', str(OLD))
    elsewhere = {'data_dir', 'method', 'dataset', 'experiment', 'resume', 'output'}  # of that run alone
    for name in set(written) - elsewhere - {n for n in written if n.startswith(('hub_', 'push_'))}:
        assert getattr(args, name) == written[name], name
    assert args.method == 'focus' and args.model == written['model']
    other = parse('/data', '--config', str(OLD), '--scheme', 'complex', '--model', 'resnet18')
    assert (other.color_jitter, other.scale, other.method) == (0.4, [0.08, 1.], 'none')
    assert other.epochs == written['epochs']


def test_args_yaml_lists_what_was_given(tmp_path):
    path = tmp_path / 'args.yaml'
    args, text = parse_args(build_parser(), ['/data', '--bce-loss', '--scheme', 'complex', '--lr', '0.3'])
    written = yaml.safe_load(text)
    assert written['given'] == args.given == ['data_dir', 'loss', 'lr', 'scheme']
    assert (written['scale'], written['model'], written['epochs']) == ([0.08, 1.], 'focus_resnet50', 40)
    path.write_text(text.replace('epochs: 40', 'epochs: 50'))  # it followed from nothing given: it follows anew
    again = parse('--config', str(path))
    assert again.epochs == 40 and again.given == args.given
    assert parse('--config', str(path), '--method', 'none').model == 'resnet50', 'nobody named the focus twin'


@pytest.mark.parametrize('argv, model, method', [
    ([], 'focus_resnet50', 'focus'), (['--method', 'focus'], 'focus_resnet50', 'focus'),
    (['--method', 'none'], 'resnet50', 'none'), (['--method', 'adl'], 'resnet50', 'adl'),
    (['--method', 'acol'], 'resnet50', 'acol'), (['--has'], 'focus_resnet50', 'focus'),
    (['--model', 'resnet50'], 'resnet50', 'none')])
def test_who_names_no_model_trains_the_focus_twin(argv, model, method):
    args = parse('d', *argv)
    assert (args.model, args.method) == (model, method)


def test_the_script_is_a_subcommand_too(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['timm-focus', 'train', '/nowhere', '--epohcs'])
    for argv in (None, ['train', '/nowhere', '--epohcs']):
        with pytest.raises(SystemExit) as e:
            timm_focus_command(argv)
        err = capsys.readouterr().err
        assert e.value.code == 2 and err == (
            'timm-focus train: error: unrecognized arguments: --epohcs (did you mean --epochs?)\n')
    with pytest.raises(SystemExit) as e:
        timm_focus_command(['train', '--help'])
    assert e.value.code == 0 and '--focus-threshold' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        timm_focus_command(['--help'])
    assert 'train_focus.py, with the same flags' in ' '.join(capsys.readouterr().out.split())
    assert train_focus.parser.prog == 'train_focus.py'


def test_a_file_that_names_a_model_keeps_it(config):
    assert parse('d', '--config', config('model: resnet18')).model == 'resnet18'
    assert parse('--dataset', 'synthetic', '--method', 'none').model == 'test_resnet'


@pytest.mark.parametrize('argv, words', [
    (['--scale', '0.5'], '--scale has 1 values: give 2'),
    (['--ratio', '1', '1', '1'], '--ratio has 3 values'),
    (['--cutmix-minmax', '0.2'], '--cutmix-minmax has 1 values'),
    (['--opt-betas', '0.9'], '--opt-betas has 1 values: give 2 or 3'),
    (['--lr-base-size', '0'], '--lr-base-size is 0'),
    (['--decay-epochs', '0'], '--decay-epochs is 0'),
    (['--std', '0', '0', '0'], '--std is'),
    (['--start-epoch', '5', '--epochs', '3'], '--start-epoch is 5, but --epochs is 3'),
    (['--save-epochs', '99'], '--save-epochs has 99'),
])
def test_numbers_that_make_no_sense_together(refusal, argv, words):
    assert words in refusal('/data', *argv)
