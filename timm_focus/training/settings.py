"""Reads the settings of a run from the command line and from YAML files.

From weak to strong: the parser's defaults, the settings of `--recipe`, of `--scheme` and of the synthetic demo, the
YAML files of `--config` in their order, the command line.
"""
import argparse
import logging
import os
from pathlib import Path
from typing import Any, Dict, NoReturn, Optional, Sequence, Tuple, Union

import yaml
from timm.utils import ParseKwargs

from timm_focus.demo import SYNTHETIC
from timm_focus.recipes import recipe_names, recipe_path
from timm_focus.runs.kinds import IDENTITY
from timm_focus.utils.errors import SettingsError, sentence
from timm_focus.utils.parser import nearest

from .arguments import RECIPE_SETTINGS, SCHEMES, stage
from .checks import check, choose_method, flag
from .starts import start

__all__ = ['Settings', 'parse_args']

_logger = logging.getLogger(__name__)

SYNTHETIC_SETTINGS = dict(
    model='focus_test_resnet', img_size=64, batch_size=32, epochs=12, opt='adamw', lr=2e-3, weight_decay=0.05,
    warmup_epochs=1, sched_on_updates=True, workers=2, log_interval=20,
)
# second names of settings: the first name, and how to translate a value; None means that nothing is set
ALIASES = {
    'data': ('data_dir', str),
    'drop_connect': ('drop_path', float),
    'bce_loss': ('loss', lambda on: 'bce' if on else None),
    'jsd_loss': ('loss', lambda on: 'jsd' if on else None),
    'bce_pos_weight': ('loss_pos_weight', str),
}
WANTED = {int: 'a whole number', float: 'a number', str: 'text', stage: 'a name or an index',
          start: "an epoch or 'auto'"}
GIVEN = 'given'  # the key of args.yaml with the names of the settings that were given; all others followed


class Settings(argparse.Namespace):
    """Settings of a run. They cannot be changed: `completed` makes new settings with what the run finds out."""

    def __init__(self, **settings: Any):
        vars(self).update(settings)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f'{name} is a setting, which is only read: completed({name}=...) gives settings with it.')

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f'{name} is a setting, which is only read.')

    def completed(self, **found: Any) -> 'Settings':
        """Return these settings, with the values that were found."""
        return Settings(**{**vars(self), **found})


def parse_args(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Tuple[Settings, str]:
    """Parse the settings of a run.

    Returns:
        The settings, with the names of the given ones as `given`; and the text of args.yaml, which gives the same
        settings as `--config`.

    Raises:
        SettingsError: The settings make no sense.
        SystemExit: argparse cannot read the command line, or was asked for help.
    """
    told = _explicit(parser, argv)
    config = told.pop('config', None)
    given: Dict[str, Any] = {}
    for path in config or ():
        given = _override(given, load_config(parser, path))
    given = _override(given, _first_names(told))
    if not argv:
        given['dataset'] = SYNTHETIC
    followed = {**_defaults(parser), **_layer(given.get('recipe', parser.get_default('recipe')), given.get('scheme'))}
    demo = SYNTHETIC_SETTINGS if given.get('dataset') == SYNTHETIC else {}
    named = sorted({*given, *(demo.keys() - {'workers'})})  # without workers: the number of cores still limits them
    asked = Settings(**{**followed, **demo, **given, 'config': config, GIVEN: named})
    model, method = choose_method(asked.model, asked.method, named='model' in given)
    args = asked.completed(model=model, method=method)
    check(parser, args, given)
    # with the method as it was given, so that the file also serves as --config of another model, and needs no base
    written = {name: value for name, value in vars(args).items() if name != 'config'}
    return args, yaml.safe_dump({**written, 'method': asked.method}, default_flow_style=False)


def _defaults(parser: argparse.ArgumentParser) -> Dict[str, Any]:
    return {a.dest: a.default for a in parser._actions if a.default is not argparse.SUPPRESS}


def _layer(recipe: str, scheme: Optional[str]) -> Dict[str, Any]:
    """Return the settings of a recipe with a scheme laid over it; without a scheme, the recipe over its own scheme."""
    if scheme is None:
        return {**SCHEMES[RECIPE_SETTINGS[recipe].get('scheme', 'simple')], **RECIPE_SETTINGS[recipe]}
    return {**RECIPE_SETTINGS[recipe], **SCHEMES[scheme]}


def _first_names(given: Dict[str, Any]) -> Dict[str, Any]:
    """Replace second names of settings by the first.

    Raises:
        SettingsError: Two names of one setting have different values.
    """
    first = {name: value for name, value in given.items() if name not in ALIASES}
    for alias, (name, translate) in ALIASES.items():
        value = translate(given[alias]) if given.get(alias) is not None else None
        if value is None:
            continue
        if first.get(name) not in (None, value):
            second = 'the folder' if alias == 'data' else flag(alias)
            raise SettingsError(
                f'{flag(name)} {first[name]} and {second} {given[alias]} are the same, given twice, and contradict '
                'each other: give one.')
        first[name] = value
    return first


def _override(weaker: Dict[str, Any], stronger: Dict[str, Any]) -> Dict[str, Any]:
    """Lay settings over weaker ones. A folder of data also replaces the drawn scenes."""
    if stronger.get('data_dir') is not None and weaker.get('dataset') == SYNTHETIC:
        weaker = {name: value for name, value in weaker.items() if name != 'dataset'}
    return {**weaker, **stronger}


def _explicit(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Dict[str, Any]:
    """Return the settings that the command line gives."""
    unset = object()
    blank = argparse.Namespace(**{name: unset for name in _defaults(parser) if name != 'config'})
    try:
        parsed = parser.parse_args(argv, blank)
    except ValueError as e:  # timm's ParseKwargs raises it
        names = ', '.join(a.option_strings[0] for a in parser._actions if isinstance(a, ParseKwargs))
        raise SettingsError(f'What follows {names} is written key=value.') from e
    given = {k: v for k, v in vars(parsed).items() if v is not unset}
    for name in ('data', 'config'):  # argparse sets an optional positional, given or not, and a list needs its default
        if given[name] is None:
            del given[name]
    return given


def load_config(parser: argparse.ArgumentParser, path: str, above: Tuple[str, ...] = ()) -> Dict[str, Any]:
    """Read the settings of a YAML file or a recipe, checked against the parser; unknown keys are warned about.

    Its `base` names a file or recipe that it overrides. An args.yaml contributes only the settings that were given to
    its run, without those that name the run; all others follow from them again.

    Raises:
        SettingsError: A file cannot be read, or a value has the wrong type.
    """
    config = _read(path)
    base = config.pop('base', None)
    if base in (path, *above):
        raise SettingsError(f'base in --config {path} is {base}, which is its own base: leave it out.')
    weaker = load_config(parser, str(base), (path, *above)) if base is not None else {}
    return _override(weaker, _first_names(_checked(parser, path, config)))


def _read(path: str) -> Dict[str, Any]:
    """Return the content of a file, or of the recipe of that name if there is no such file."""
    found: Union[str, Path] = path
    if not os.path.exists(path):
        try:
            found = recipe_path(path)
        except FileNotFoundError:
            near = nearest(path.removesuffix('.yaml'), recipe_names())
            hint = f' Did you mean {near}?' if near else ''
            raise SettingsError(
                f'Cannot read --config {path}: there is no such file, and no recipe of that name, of which '
                f'--list-recipes names all.{hint}') from None
    try:
        with open(found, encoding='utf-8') as f:
            config = yaml.safe_load(f) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise SettingsError(f'Cannot read --config {path}: {sentence(e)}') from e
    if not isinstance(config, dict):
        raise SettingsError(f'--config {path} is no mapping of names to values.')
    return config


def _checked(parser: argparse.ArgumentParser, path: str, config: Dict[str, Any]) -> Dict[str, Any]:
    """Convert the settings of a file to the names and types of the parser."""
    if config.pop('config', None):
        raise SettingsError(
            f'config in --config {path} names another file: give --config for each, the stronger one last.')
    names = config.pop(GIVEN, None)
    actions = {a.dest: a for a in parser._actions if a.default is not argparse.SUPPRESS and a.dest != 'config'}
    settings = {}
    for key, value in config.items():
        dest = str(key).replace('-', '_')
        if dest not in actions:
            near = nearest(dest, actions)
            hint = f': did you mean {near}?' if near else '.'
            _logger.warning(f'--config {path} has an unknown key {key}, which is ignored{hint}')
            continue
        try:
            settings[dest] = _convert(actions[dest], value)
        except ValueError as e:
            raise SettingsError(f'{key} in --config {path} is {value!r}: give {e}.') from e
    if isinstance(names, list):
        settings = {name: value for name, value in settings.items() if name in names}
    elif len(settings) > len(actions) / 2:  # an older args.yaml, which does not say which settings were given
        settings = _guess_given(parser, settings)
    else:
        return settings
    # so that the new run neither resumes nor overwrites the old one
    left = {name: settings.pop(name) for name in IDENTITY if name in settings}
    if left and os.environ.get('RANK', '0') == '0':
        _logger.info(f'--config {path} is of another run, whose '
                     f'{", ".join(f"{flag(name)} {value}" for name, value in left.items())} do not carry over.')
    return settings


def _guess_given(parser: argparse.ArgumentParser, settings: Dict[str, Any]) -> Dict[str, Any]:
    """Guess which settings of an older args.yaml were given: those that differ from its recipe and scheme."""
    recipe = settings.get('recipe', parser.get_default('recipe'))
    scheme = settings.get('scheme')
    own = scheme == _layer(recipe, None).get('scheme', 'simple')
    followed = {**_defaults(parser), **_layer(recipe, None if own else scheme)}
    drawn = SYNTHETIC_SETTINGS if settings.get('dataset') == SYNTHETIC else {}
    return {name: value for name, value in settings.items()
            if value != followed[name] or name in drawn or (name == 'scheme' and not own)}


def _convert(action: argparse.Action, value: Any) -> Any:
    """Convert a YAML value as the command line would. A ValueError says what is wanted."""
    if value is None:
        if action.default is not None and all(r.get(action.dest, '') is not None for r in RECIPE_SETTINGS.values()):
            raise ValueError('a value, or leave the line out')
        return None
    if isinstance(action, (argparse._StoreTrueAction, argparse.BooleanOptionalAction)):
        if not isinstance(value, bool):
            raise ValueError('true or false')
        return value
    if isinstance(action, ParseKwargs):
        if not isinstance(value, dict):
            raise ValueError('a mapping')
        return value
    several = action.nargs in ('*', '+') or isinstance(action.nargs, int)
    if several:
        if not isinstance(value, list) or (isinstance(action.nargs, int) and len(value) != action.nargs):
            raise ValueError(f'a list of {action.nargs} values' if isinstance(action.nargs, int) else 'a list')
    elif isinstance(value, (list, dict)):
        raise ValueError('a single value')

    def one(v: Any) -> Any:
        kind = action.type or str
        if isinstance(v, bool) or (kind is int and isinstance(v, float) and not v.is_integer()):
            raise ValueError(WANTED[kind])
        try:
            v = kind(str(v) if kind in (stage, start) else v)
        except (TypeError, ValueError):
            raise ValueError(WANTED[kind]) from None
        if action.choices is not None and v not in action.choices:
            raise ValueError('one of ' + ', '.join(map(repr, action.choices)))
        return v

    return [one(v) for v in value] if several else one(value)
