"""Makes names and labels that come from data and checkpoints fit for messages and files."""
import re
from typing import Any, Iterable, Sequence

__all__ = ['brief', 'check_names', 'csv_cell', 'from_csv_cell', 'markdown', 'one_line', 'shown', 'some', 'word',
           'writable']

FORMULA = re.compile(r"'*[=+\-@]")  # a cell that begins so is calculated by spreadsheets, unless an apostrophe leads it
UNWRITABLE = re.compile('[\x00-\x1f\x7f\udc80-\udcff]|\\\\(?=x)')  # controls, bytes that are no UTF-8, and our own sign
LONE = re.compile('[\ud800-\udfff]')  # halves of a character, which no encoding takes
ESCAPED = re.compile(r'\\x([0-9a-f]{2})')
MARKUP = re.compile(r'[\\`*\[\]<>|&~${}]|(?<!\w)_|_(?!\w)')
LINE_BREAKS = re.compile('[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]')


def shown(text: str) -> str:
    """A text that every terminal and log can show, whatever bytes a file name has: `?` stands for what they cannot."""
    return ''.join(c if c.isprintable() else '?' for c in text)


def some(items: Iterable[str], n: int = 3) -> str:
    """The first few of the items, for a message."""
    items = list(items)
    return shown(', '.join(items[:n])) + (', ...' if len(items) > n else '')


def brief(value: Any) -> str:
    """A value as Python writes it, on one line of 60 characters at most."""
    text = ' '.join(repr(value).split())
    return text if len(text) <= 60 else f'{text[:57]}...'


def one_line(text: Any) -> str:
    """A text as one line that any terminal, font and encoding takes."""
    return shown(' '.join(str(text).split()))


def markdown(text: Any) -> str:
    """A text as one line of Markdown that shows it as it is, without markup, HTML, formula or table cell of its own."""
    return MARKUP.sub(r'\\\g<0>', one_line(text))


def word(text: str) -> str:
    """A text as an identifier of the Hub: small letters, digits, dots and hyphens; '' if it has none."""
    return '-'.join(re.findall(r'[a-z0-9.]+', text.lower()))


def csv_cell(value: Any) -> Any:
    """A value as a cell of a CSV: a text that spreadsheets would calculate is led by an apostrophe, which they do not
    show, and bytes that are no text are written `\\xNN`. `from_csv_cell` takes both back."""
    if not isinstance(value, str):
        return value
    text = writable(value)
    return f"'{text}" if FORMULA.match(text) else text


def writable(text: str) -> str:
    """A text that every text file can hold: controls and bytes that are no text are written `\\xNN`."""
    return LONE.sub('\ufffd', UNWRITABLE.sub(lambda m: f'\\x{ord(m[0]) & 0xff:02x}', text))


def from_csv_cell(text: str) -> str:
    """The text of which `csv_cell` made a cell."""
    if text.startswith("'") and FORMULA.match(text):
        text = text[1:]

    def character(match: re.Match) -> str:
        byte = int(match[1], 16)
        return chr(byte if byte < 0x80 else 0xdc00 + byte)
    return ESCAPED.sub(character, text)


def check_names(names: Sequence[str]) -> None:
    """Refuse class names that a list with one name a line cannot hold, or no file of text.

    Raises:
        ValueError: It shows the first.
    """
    for name in names:
        if LINE_BREAKS.search(name):
            raise ValueError(f'The class {name!r} has a line break in its name, which a list of names cannot hold: '
                             'rename its folder.')
        if LONE.search(name):
            raise ValueError(f'The class {name!r} has bytes in its name that are no UTF-8: rename its folder.')
