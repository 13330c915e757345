"""Names that somebody else chose, in every kind of file that they are written into."""
import csv
import io
import re

import pytest
import yaml

from timm_focus.utils.text import check_names, csv_cell, from_csv_cell, markdown, one_line, word

NAMES = [
    'plain', 'with space', 'arena/hockey', '../../etc/passwd', '..', '/', '', ' ', '# heading', '- item', '---',
    '...', '*bold* _it_ `code` ~~gone~~', '[a](javascript:alert(1))', '![x](http://x/y.png)',
    '<script>alert(1)</script>', '<!-- -->', 'a | b', 'a\n| b | c |', '{{ 7 * 7 }}', '{% raw %}', '${7*7}', '$x^2$',
    '&lt;', 'back\\slash', 'a\\x41b', '\\x0a', "=cmd|' /C calc'!A0", '+1', '-1', '@SUM(A1)', "'=1", "''=1",
    "'quoted'", '"=1"', ',=1', 'tab\there', '\t=1', '\r=1', 'line\nbreak', 'cr\rlf\n', '\x00nul', 'bell\x07',
    '\x1b[31mred', '\u202eright to left', '\u2028', '\x85', 'caf\udce9', 'café', '地点', '🏔',
    '!!python/object/apply:os.system [x]', 'key: value', 'yes', 'null', '1e3', 'x' * 300,
]


@pytest.mark.parametrize('name', NAMES)
def test_a_name_in_a_table(name):
    """Read back as it was; and no cell is a formula, nor a line of its own."""
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerow([csv_cell(name), 'b', csv_cell(-1.5), csv_cell(None)])
    line = text.getvalue()
    assert line.count('\n') == 1 and line.encode('utf-8').decode() == line
    cells = next(csv.reader(io.StringIO(line)))
    assert from_csv_cell(cells[0]) == name and cells[1:] == ['b', '-1.5', '']
    assert not re.match(r'[=+\-@\t\r]', cells[0])


def test_cells_of_plain_names_are_the_names():
    for name in ('airfield/0001.jpg', 'a b', '地点.png', 'n01440764', "it's", 'a=b', 'a\\b.jpg'):
        assert csv_cell(name) == name


@pytest.mark.parametrize('name', NAMES)
def test_a_name_in_markdown(name):
    """Any CommonMark reader takes the backslashes away and shows the rest as it is."""
    shown = markdown(name)
    assert shown.isprintable() and shown.encode('utf-8').decode() == shown
    assert re.sub(r'\\([!-/:-@\[-`{-~])', r'\1', shown) == one_line(name)
    unescaped = re.sub(r'\\.', '', shown)
    assert not set('`*[]<>|&~${}') & set(unescaped) and not re.search(r'(?<!\w)_|_(?!\w)', unescaped)


@pytest.mark.parametrize('name', NAMES)
def test_a_name_in_one_line_and_as_a_word(name):
    line = one_line(name)
    assert line.isprintable() and line == line.strip() and line.encode('utf-8').decode() == line
    assert yaml.safe_load(yaml.safe_dump([line], allow_unicode=True)) == [line]
    assert re.fullmatch(r'[a-z0-9.]*(-[a-z0-9.]+)*', word(name))


@pytest.mark.parametrize('name', NAMES)
def test_a_name_in_a_list(name, tmp_path):
    """One a line, or refused."""
    try:
        check_names([name])
    except ValueError as e:
        assert re.search(r'(line break|bytes) in its name.*: rename', str(e)) and str(e).isprintable()
        return
    assert f'{name}\na\n'.splitlines() == [name, 'a']


# GitHub's Markdown, if a reader of it is installed

def test_markdown_shows_the_names():
    markdown_it = pytest.importorskip('markdown_it', reason="pip install -e '.[test]' installs it")
    reader = markdown_it.MarkdownIt('commonmark').enable('table').enable('strikethrough')
    for name in NAMES:
        tokens = reader.parse(f'| a | {markdown(name)} |\n|---|---|\n| b | of {markdown(name)} |')
        cells = [t for t in tokens if t.type == 'inline']
        assert len(cells) == 4, name
        for cell in cells:
            assert all(child.type in ('text', 'text_special') for child in cell.children), name
        assert ''.join(child.content for child in cells[3].children) == f'of {one_line(name)}'.strip(), name
