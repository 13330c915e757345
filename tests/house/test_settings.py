"""Nobody writes on the settings of a run: they are read, and completed by what a run finds out."""
import argparse
import ast
import re
from pathlib import Path

import pytest

import train_focus
from timm_focus.runs.kinds import IDENTITY, ORDER, PLACES, PRIVATE
from timm_focus.training import build_parser, parse_args

ROOT = Path(__file__).parents[2]
FILES = [ROOT / 'train_focus.py', *sorted((ROOT / 'timm_focus/training').glob('*.py'))]


def written(source):
    """Lines of code that write on `args`: by assignment, deletion, setattr, or into its dict."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            if ast.unparse(node.value) in ('args', 'self.args', 'vars(args)', 'args.__dict__'):
                yield node.lineno
        if isinstance(node, ast.Call):
            first = ast.unparse(node.args[0]) if node.args else ''
            called = ast.unparse(node.func)
            if (called in ('setattr', 'delattr') and first in ('args', 'self.args')
                    or called in ('vars(args).update', 'args.__dict__.update')):
                yield node.lineno


@pytest.mark.parametrize('line', [
    'args.lr = 1', 'args.lr += 1', 'del args.lr', 'args.lr, x = 1, 2', 'self.args.lr: int = 1', 'for args.lr in x: 0',
    "vars(args)['lr'] = 1", "setattr(args, 'lr', 1)", "vars(args).update(lr=1)", 'args.lr.x, args.lr = y'])
def test_a_line_that_writes_on_settings_is_found(line):
    assert set(written(f'x = args.lr\n{line}')) == {2}
    assert not list(written("x = args.lr; y = vars(args)['lr']; args = args.completed(lr=1); x.lr = 2"))


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_no_line_writes_on_settings(path):
    lines = list(written(path.read_text(encoding='utf-8')))
    assert not lines, f'{path.name} writes on the settings in lines {lines}: return what was found, for completed()'


def test_settings_are_only_read():
    args, _ = parse_args(build_parser(), ['folder', '--lr', '0.5'])
    assert isinstance(args, argparse.Namespace)  # as timm's functions take them
    for write in (lambda: setattr(args, 'lr', 1), lambda: setattr(args, 'new', 1), lambda: delattr(args, 'lr')):
        with pytest.raises(AttributeError, match='only read'):
            write()
    more = args.completed(rank=0, lr=0.25)
    assert (more.lr, more.rank, args.lr) == (0.25, 0, 0.5) and not hasattr(args, 'rank')
    assert type(more) is type(args) and {**vars(more), 'lr': 0.5} == {**vars(args), 'rank': 0}


def test_kinds_are_of_settings_that_there_are():
    flags = set(vars(parse_args(train_focus.parser, ['folder'])[0]))
    assert not {*IDENTITY, *PLACES, *ORDER} - flags
    found = {'label_names', 'rank', 'world_size', 'distributed'}
    for pattern in PRIVATE:
        assert '(' in pattern or any(re.fullmatch(pattern, name) for name in flags | found), pattern
