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


@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_takes_every_name(name, sources, image_folder, tmp_path, capsys):
    places = dict(DATA=str(image_folder), IMAGE=str(image_folder / 'val/left/0.jpg'), OUT=str(tmp_path / 'out'))
    ways = [(flag, kind) for flag in ('--model', '--checkpoint') for kind in NAMED]
    for flag, kind in ways if name == 'predict' else ways[1:3]:  # all load by one function
        argv = [name, *(places.get(a, a) for a in COMMANDS[name]), '--device', 'cpu', '-j', '0', '--img-size', '64']
        main([*argv, flag, sources[kind]])
        shutil.rmtree(tmp_path / 'out', ignore_errors=True)


def test_models_by_name_where_no_flag_names_them(sources, tmp_path, capsys):
    for kind in NAMED:
        main(['rf', sources[kind]])
        assert sources[kind] in capsys.readouterr().out
        main(['export', sources[kind], '--format', 'safetensors', '--output', str(tmp_path / kind)])
        assert (tmp_path / kind / 'model.safetensors').exists()
    with pytest.raises(SystemExit):
        main(['export', sources['hub'], '--format', 'safetensors'])
    assert 'has no folder to write into: give --output' in capsys.readouterr().err
