"""What all commands have alike: an example in their help, and what names of models and weights they take."""
import argparse
import shlex
import shutil

import pytest

import train_focus
from timm_focus.commands.main import build_parser, main
from timm_focus.release import push_to_hub
from timm_focus.runs import load_model


def parsers():
    parser = build_parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return parser, action.choices


@pytest.mark.parametrize('name', sorted(parsers()[1]))
def test_every_command_has_examples_that_are_understood(name, capsys):
    parser, commands = parsers()
    found = train_focus.parser if name == 'train' else commands[name]
    assert found.examples
    text = found.format_help()
    for example in found.examples:
        assert f'  {example}\n' in text
    for example in commands[name].examples:
        words = shlex.split(example.rpartition(' | ')[2])
        assert words[:2] == ['timm-focus', name]
        (train_focus.parser if name == 'train' else parser).parse_args(words[2 if name == 'train' else 1:])


@pytest.mark.parametrize('name', sorted(set(parsers()[1]) - {'train'}))
def test_help_shows_every_default(name):
    """Those of train_focus.py are tested with its flags."""
    parser = parsers()[1][name]
    text = ''.join(parser.format_help().split())
    for action in parser._actions:
        if not action.option_strings or action.required or action.default is argparse.SUPPRESS:
            continue
        told = parser._get_formatter()._expand_help(action)
        assert 'default: ' in told and ''.join(told.split()) in text, action.option_strings
        if action.default not in (None, True, False) and not isinstance(action.default, list):
            assert f'default: {action.default}' in told or 'default: one for each core' in told, action.option_strings


def test_help_explains_the_columns_of_rf():
    text = ' '.join(parsers()[1]['rf'].format_help().split())
    for words in ('start the first pixel that position 0 sees, negative if it looks over the border',
                  'start + p * stride', 'through names the first module that makes it so', 'stride the distance'):
        assert words in text


@pytest.fixture
def sources(hub, finished_run, tmp_path):
    """The same weights by every name that a command may be given."""
    loaded, folder = load_model(checkpoint=str(finished_run)), tmp_path / 'export'
    push_to_hub(loaded.model, 'user/name', folder=folder, license='cc0-1.0', dataset='Mine',
                data_config=loaded.data_config, label_names=loaded.label_names)
    return dict(local=f'local-dir:{folder}', hub='hf-hub:user/name')


NAMED = ('local', 'hub')
COMMANDS = {
    'area': ['DATA', '--output', 'OUT'], 'validate': ['DATA', '--no-erase'],
    'explain': ['IMAGE', '--output', 'OUT', '--sheet', '0'], 'predict': ['IMAGE'],
    'report': ['--no-data', '--output', 'OUT']}


@pytest.mark.slow('explain', 'report')
@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_takes_every_name(name, sources, image_folder, tmp_path, capsys):
    places = dict(DATA=str(image_folder), IMAGE=str(image_folder / 'val/left/0.jpg'), OUT=str(tmp_path / 'out'))
    ways = [(flag, kind) for flag in ('--model', '--checkpoint') for kind in NAMED]
    for flag, kind in ways if name == 'predict' else ways[1:3]:  # all load by one function
        argv = [name, *(places.get(a, a) for a in COMMANDS[name]), '--device', 'cpu', '-j', '0', '--img-size', '64']
        main([*argv, flag, sources[kind]])
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)


@pytest.mark.slow
def test_models_by_name_where_no_flag_names_them(sources, tmp_path, capsys):
    for kind in NAMED:
        main(['rf', sources[kind]])
        assert sources[kind] in capsys.readouterr().out
        main(['export', sources[kind], '--format', 'safetensors', '--output', str(tmp_path / kind)])
        assert (tmp_path / kind / 'model.safetensors').exists()
    with pytest.raises(SystemExit):
        main(['export', sources['hub'], '--format', 'safetensors'])
    assert 'has no folder to write into: give --output' in capsys.readouterr().err


@pytest.mark.parametrize('name, theirs, mark', [
    ('explain', '0-mask.png', 'explained.json'), ('explain', '0.npy', 'explained.json'),
    ('validate', 'images.csv', 'validate.json'), ('area', 'area.png', 'settings.json'),
    ('area', 'area.json', 'settings.json')])
def test_no_file_of_somebody_else_is_replaced(name, theirs, mark, image_folder, tmp_path, capsys):
    out = tmp_path / 'out'
    out.mkdir()
    (out / theirs).write_text('mine')
    image = image_folder / 'val/left/0.jpg'
    with pytest.raises(SystemExit) as e:
        main([name, str(image if name == 'explain' else image_folder), '--model', 'test_resnet', '--random-weights',
              '--img-size', '64', '--device', 'cpu', '-j', '0', '--output', str(out)])
    error = capsys.readouterr().err
    assert e.value.code == 2 and error.startswith(f'timm-focus {name}: error: {out / theirs} is there already, and no '
                                                  f'{mark} beside it'), error
    assert [f.name for f in out.iterdir()] == [theirs] and (out / theirs).read_text() == 'mine'


SAYS = {'status': 403, 'headers': {'X-Error-Message': 'Access to it is restricted. {headers}'}, 'times': 99}


@pytest.mark.parametrize('name', ['validate', 'train'])
def test_what_the_hub_says_is_told_without_the_token(name, hub, image_folder, tmp_path, capsys, quietly, monkeypatch):
    hub.fail('HEAD', 'resolve', **SAYS)
    hub.fail('GET', 'resolve', **SAYS)
    argv = [str(image_folder), '--model', 'hf-hub:user/name', '--device', 'cpu', '-j', '0']
    with pytest.raises(SystemExit) as e:
        if name == 'train':
            monkeypatch.setattr('sys.argv', ['train_focus.py', *argv, '--method', 'focus', '--output', str(tmp_path)])
            train_focus.cli()
        else:
            main([name, *argv])
    assert hub.requests[-1][2] == f'Bearer {hub.token}', 'the token was sent'
    out, err = capsys.readouterr()
    assert e.value.code == 2 and 'Access to it is restricted' in err and '***' in err, err
    assert hub.token not in out + err
    repository = 'the repository' if name == 'train' else 'user/name'
    assert f'The token may not read {repository} (403): ask for access on its page' in err
