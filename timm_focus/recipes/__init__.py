"""Recipes: settings of runs by name, the rows of the paper's tables and today's habits, as `--config` takes them."""
from pathlib import Path
from typing import List

__all__ = ['recipe_names', 'recipe_path', 'recipe_table']

FOLDER = Path(__file__).parent


def recipe_names() -> List[str]:
    """Names of the recipes, such as 'table2/places365_small_resnet18_focus'; without those that are bases of others."""
    return sorted(str(path.relative_to(FOLDER).with_suffix('').as_posix()) for path in FOLDER.glob('*/*.yaml'))


def recipe_path(name: str) -> Path:
    """File of a recipe or of a base, by its name.

    Raises:
        FileNotFoundError: There is no recipe of this name.
    """
    path = FOLDER / f'{name.removesuffix(".yaml")}.yaml'
    if FOLDER not in path.resolve().parents or not path.is_file():
        raise FileNotFoundError(f'There is no recipe {name}.')
    return path


def recipe_table() -> str:
    """Each recipe with what it is of, a line each."""
    names = recipe_names()
    width = max(map(len, names))
    lines = []
    for name in names:
        comments = [line.removeprefix('# ') for line in recipe_path(name).read_text('utf-8').splitlines()
                    if line.startswith('# Paper: ')]
        lines.append(f'{name:<{width}}  {comments[0]}')
    return '\n'.join(lines)
