"""Makes names and labels from data and checkpoints safe for messages and files."""
import re
from typing import Any, Iterable, Sequence

__all__ = ['brief', 'check_names', 'csv_cell', 'from_csv_cell', 'markdown', 'one_line', 'shown', 'some', 'word',
           'writable']

FORMULA = re.compile(r"'*[=+\-@]")  # spreadsheets calculate such a cell, unless it starts with an apostrophe
UNWRITABLE = re.compile('[\x00-\x1f\x7f\udc80-\udcff]|\\\\(?=x)')  # controls, bytes that are no UTF-8, our own escape
LONE = re.compile('[\ud800-\udfff]')  # lone surrogates, which cannot be encoded
ESCAPED = re.compile(r'\\x([0-9a-f]{2})')
MARKUP = re.compile(r'[\\`*\[\]<>|&~${}]|(?<!\w)_|_(?!\w)')
LINE_BREAKS = re.compile('[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]')


def shown(text: str) -> str:
    """Replace characters that terminals and logs cannot show by `?`."""
    return ''.join(c if c.isprintable() else '?' for c in text)


def some(items: Iterable[str], n: int = 3) -> str:
    """Join the first n items for a message."""
    items = list(items)
    return shown(', '.join(items[:n])) + (', ...' if len(items) > n else '')


def brief(value: Any) -> str:
    """The repr of a value on one line of at most 60 characters."""
    text = ' '.join(repr(value).split())
    return text if len(text) <= 60 else f'{text[:57]}...'


def one_line(text: Any) -> str:
    """Convert to one line that any terminal, font and encoding can show."""
    return shown(' '.join(str(text).split()))


def markdown(text: Any) -> str:
    """Escape a text as one line of Markdown, so that it makes no markup, HTML, formula or table cell."""
    return MARKUP.sub(r'\\\g<0>', one_line(text))


def word(text: str) -> str:
    """Convert to an identifier of the Hub: lower-case letters, digits, dots and hyphens; '' if none are left."""
    return '-'.join(re.findall(r'[a-z0-9.]+', text.lower()))


def csv_cell(value: Any) -> Any:
    """Convert a value to a cell of a CSV. A text that spreadsheets would calculate gets a leading apostrophe, which
    they hide, and bytes that are no text are written `\\xNN`. `from_csv_cell` undoes both."""
    if not isinstance(value, str):
        return value
    text = writable(value)
    return f"'{text}" if FORMULA.match(text) else text


def writable(text: str) -> str:
    """Escape control characters and bytes that are no text as `\\xNN`, so that any text file can hold the text."""
    return LONE.sub('\ufffd', UNWRITABLE.sub(lambda m: f'\\x{ord(m[0]) & 0xff:02x}', text))


def from_csv_cell(text: str) -> str:
    """Restore the text from a cell of `csv_cell`."""
    if text.startswith("'") and FORMULA.match(text):
        text = text[1:]

    def character(match: re.Match) -> str:
        byte = int(match[1], 16)
        return chr(byte if byte < 0x80 else 0xdc00 + byte)
    return ESCAPED.sub(character, text)


def check_names(names: Sequence[str]) -> None:
    """Refuse class names that a text file with one name per line cannot hold.

    Raises:
        ValueError: The message shows the first such name.
    """
    for name in names:
        if LINE_BREAKS.search(name):
            raise ValueError(f'The class {name!r} has a line break in its name, which a list of names cannot hold: '
                             'rename its folder.')
        if LONE.search(name):
            raise ValueError(f'The class {name!r} has bytes in its name that are no UTF-8: rename its folder.')
