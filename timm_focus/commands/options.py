"""Writes docs/options.md from the parser: `python -m timm_focus.commands.options > docs/options.md`."""
import argparse

from timm_focus.training.refused import REFUSED
from timm_focus.utils.parser import shown

__all__ = ['options_page']

HEAD = """# Options

Every flag of `train_focus.py`, or `timm-focus train`, made from its parser by `python -m timm_focus.commands.options`.
Names and meanings are those of timm's `train.py`. From weak to strong: these defaults, the settings of `--recipe`, of
`--scheme` and of the drawn scenes, the files of `--config` in their order, the command line.
"""


def options_page() -> str:
    """Return the page: a table for each group of flags."""
    from train_focus import parser

    parts = [HEAD]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS and a.dest != 'help']
        if actions:
            title = str(group.title)
            parts.append(f'\n## {title[:1].upper()}{title[1:]}\n\n| flag | default | meaning |\n|---|---|---|\n')
            parts += [f'{_row(action)}\n' for action in actions]
    flags = '\n'.join(f'- `--{name.replace("_", "-")}`: {refused.reason}' for name, refused in REFUSED.items())
    return ''.join([*parts, f'\n## Refused\n\nOf timm\'s flags, with a sentence that says why:\n\n{flags}\n'])


def _row(action: argparse.Action) -> str:
    text = (action.help or '').removesuffix(' (default: %(default)s)').replace('%%', '%')
    meaning, _, default = text.partition('default: ')
    if default:
        default, meaning = default.removesuffix(')'), meaning.rstrip('(; ')
        meaning += ')' if meaning.count('(') > meaning.count(')') else ''
    else:
        default = '' if action.default is argparse.SUPPRESS or not action.option_strings else shown(action.default)
    names = ', '.join(f'`{name}`' for name in action.option_strings) or f'`{action.metavar}`'
    if action.choices is not None:
        meaning += f': {", ".join(f"`{choice}`" for choice in action.choices if choice)}'
    cells = (names, default, meaning)
    return '| ' + ' | '.join(cell.replace('|', '\\|').replace('<', '&lt;') for cell in cells) + ' |'


if __name__ == '__main__':
    print(options_page(), end='')
