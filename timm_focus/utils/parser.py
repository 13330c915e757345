"""The parser of all command lines here: errors are one line with the nearest flag, and help shows each default."""
import argparse
import difflib
from typing import Any, Iterable, NoReturn, Optional, Sequence

from .secrets import redact

__all__ = ['Parser', 'nearest']


def nearest(name: str, names: Iterable[str]) -> str:
    """The known name nearest to a mistyped one; '' if none is near."""
    return next(iter(difflib.get_close_matches(name, list(names), 1)), '')


class _Help(argparse.HelpFormatter):
    """Shows the default of each flag whose help text does not mention it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or '').removesuffix(' (default: %(default)s)')  # added by Python for --flag and --no-flag
        told = 'default:' in text or action.default is argparse.SUPPRESS or action.required
        if told or not action.option_strings:
            return text
        return f'{text} (default: {shown(action.default).replace("%", "%%")})'


def shown(value: Any) -> str:
    """Format a setting's value for help and documents."""
    if value is None or value == '' or value == [] or value == {}:
        return 'none'
    if isinstance(value, bool):
        return 'on' if value else 'off'
    if isinstance(value, (list, tuple)):
        return ' '.join(map(shown, value))
    return f'{value:g}' if isinstance(value, float) else str(value)


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose errors are one line with exit code 2, without the usage.

    Args:
        examples: Commands to show at the end of the help.
        *args, **kwargs: Arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any):
        super().__init__(*args, **{'formatter_class': _Help, **kwargs})
        self.examples = tuple(examples)

    def format_help(self) -> str:
        shown = ''.join(f'  {example}\n' for example in self.examples)
        return super().format_help() + (f'\nexamples:\n{shown}' if shown else '')

    def error(self, message: str) -> NoReturn:
        self.exit(2, f'{self.prog}: error: {" ".join(message.split())}\n')

    def exit(self, status: int = 0, message: Optional[str] = None) -> NoReturn:
        super().exit(status, redact(message) if message else None)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # argparse has three overloads
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._chosen(found)
            hints = ((word, nearest(word.partition('=')[0], parser._option_string_actions)) for word in unknown)
            parser.error('unrecognized arguments: ' + ' '.join(
                f'{word} (did you mean {near}?)' if near and word.startswith('-') else word for word, near in hints))
        return found

    def _chosen(self, namespace: argparse.Namespace) -> argparse.ArgumentParser:
        """The parser of the chosen subcommand, or this one."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                return action.choices[getattr(namespace, action.dest)]
        return self
