"""Flags that messages name exist."""
import ast
import re
from pathlib import Path

import pytest

import train_focus
from timm_focus.commands.main import build_parser

ROOT = Path(__file__).parents[2]
# of other programs: hf download, pip, torchrun
FOREIGN = {'--local-dir', '--nproc-per-node', '--max-restarts'}


def flags(parser):
    return {option for action in parser._actions for option in action.option_strings}


def named(path):
    """Flags in the text of a file that is printed or raised: all of it but docstrings, with their lines."""
    tree = ast.parse(path.read_text('utf-8'))
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            for flag in re.findall(r'(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w{-])', node.value):
                yield flag, f'{path.relative_to(ROOT)}:{node.lineno}'


COMMANDS = build_parser()._subparsers._group_actions[0].choices
KNOWN = {'train_focus.py': flags(train_focus.parser), **{name: flags(p) for name, p in COMMANDS.items()}}
FILES = [ROOT / 'train_focus.py', *sorted((ROOT / 'timm_focus').rglob('*.py'))]


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_flags_that_messages_name_exist(path):
    """In the command that says it, where a file is of one command; else in one of them."""
    known = set().union(*KNOWN.values(), FOREIGN)
    if path.name in ('train_focus.py', 'train.py') or path.parent.name == 'training':
        known = KNOWN['train_focus.py'] | FOREIGN
    elif path.parent.name == 'commands' and path.stem in KNOWN:
        known = KNOWN[path.stem] | FOREIGN
    missing = [f'{flag} ({where})' for flag, where in named(path) if flag not in known]
    assert not missing, f'no such flags: {", ".join(missing)}'


def test_the_test_finds_flags():
    found = {flag for path in FILES for flag, _ in named(path)}
    assert {'--push-to-hub', '--class-map', '--overwrite', '--resume'} <= found
