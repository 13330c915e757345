"""Who may import whom, as docs/architecture.md says."""
import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / 'timm_focus'
ALLOWED = {  # what a room may import beside itself; commands may import everything
    'utils': set(),
    'method': {'utils'},
    'data': {'utils'},
    'demo': {'utils'},
    'receptive': {'utils'},
    'baselines': {'utils', 'method'},
    'recipes': set(),
    'models': {'utils', 'method'},
    'analysis': {'utils', 'method'},
    'runs': {'utils', 'method', 'data', 'demo', 'receptive', 'models', 'analysis', 'baselines'},
    'release': {'utils', 'method', 'data', 'demo', 'receptive', 'models', 'analysis', 'runs'},
    'report': {'utils', 'method', 'data', 'demo', 'receptive', 'models', 'analysis', 'runs', 'release'},
    'training': {'utils', 'method', 'data', 'demo', 'receptive', 'models', 'analysis', 'baselines', 'runs', 'recipes'},
}


def imports(path):
    """Modules of timm_focus that a file imports, relative to the package."""
    package = ('timm_focus', *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(filter(None, (base, node.module)))
            names = [f'{module}.{a.name}' for a in node.names] + [module]
        else:
            continue
        for name in names:
            if name == 'timm_focus' or name.startswith('timm_focus.'):
                yield name.removeprefix('timm_focus').removeprefix('.')
            elif name.split('.')[0] == 'train_focus':
                yield 'train_focus'


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_follow_the_architecture(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix('.py')
    if room == '__init__':
        assert not any(i.startswith('commands') or i == 'train_focus' for i in imports(path))
        return
    for name in imports(path):
        if name == 'train_focus' or name.startswith('commands'):
            assert room == 'commands', f'{path} imports {name}, which nothing may know'
        target = name.split('.')[0]
        if room == 'commands' or target == room or name in ('', '__version__'):
            continue
        allowed = ALLOWED[room]
        assert any(name == a or name.startswith(f'{a}.') or a.startswith(f'{name}.') for a in allowed), \
            f'{path.relative_to(PACKAGE)} may not import timm_focus.{name}'


def test_the_page_names_every_file():
    page = (PACKAGE.parent / 'docs/architecture.md').read_text()
    files = [path for path in PACKAGE.rglob('*.py') if path.parent.name != 'commands']  # one for each subcommand
    assert not [path for path in files if path.name != '__init__.py' and path.name not in page]


def test_no_bare_asserts_outside_tests():
    for path in [*PACKAGE.rglob('*.py'), PACKAGE.parent / 'train_focus.py']:
        assert not any(isinstance(n, ast.Assert) for n in ast.walk(ast.parse(path.read_text()))), path
