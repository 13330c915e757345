"""Prints rows as a table for people, as CSV or as JSON, each row as it comes."""
import argparse
import csv
import json
import sys
from typing import IO, Any, Dict, Iterable, List, Mapping, Optional

from timm_focus.utils.text import csv_cell, one_line

__all__ = ['add_format', 'add_picture_format', 'write_rows', 'write_table']


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--format', choices=('table', 'csv', 'json'), default='table',
                        help='format of the output (default: table)')


def add_picture_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--format', choices=('png', 'pdf', 'svg'), default='png',
                        help='format of pictures (default: png)')


def write_table(rows: List[Dict[str, Any]], args: argparse.Namespace) -> None:
    """Print rows with the same columns, each column as wide as its longest value."""
    widths = {name: max(len(name), *(len(_text(row[name])) for row in rows)) for name in rows[0]}
    write_rows(rows, args, {
        name: width if all(isinstance(row[name], (int, float, type(None))) for row in rows) else -width
        for name, width in widths.items()})


def write_rows(
        rows: Iterable[Dict[str, Any]],
        args: argparse.Namespace,
        widths: Mapping[str, int],
        file: Optional[IO] = None,
) -> int:
    """Write rows to standard output or a file, each as it comes; return how many there were.

    Args:
        rows: Rows with the same columns.
        args: Arguments with the `format`: 'table', 'csv', 'json' (a list), or 'jsonl' (a line for each row).
        widths: Widths of the columns in characters, in order; negative for columns that are aligned to the left.
        file: File to write to, by default standard output.
    """
    n = 0
    file = file or sys.stdout
    writer = csv.DictWriter(file, list(widths), lineterminator='\n')
    for n, row in enumerate(rows, 1):
        if args.format == 'json':
            print('[' if n == 1 else ',', json.dumps(row, indent=2), sep='\n', end='', file=file)
        elif args.format == 'jsonl':
            print(json.dumps(row), file=file)
        elif args.format == 'csv':
            if n == 1:
                writer.writeheader()
            writer.writerow({k: csv_cell(v) for k, v in row.items()})
        else:
            if n == 1:
                _print_line({name: name for name in widths}, widths, file)
            _print_line({name: _text(row[name]) for name in widths}, widths, file)
        file.flush()
    if args.format == 'json':
        print('\n]' if n else '[]', file=file)
    return n


def _print_line(texts: Mapping[str, str], widths: Mapping[str, int], file: IO) -> None:
    print('  '.join(texts[name].rjust(width) if width > 0 else texts[name].ljust(-width)
                    for name, width in widths.items()).rstrip(), file=file)


def _text(value: Any) -> str:
    return '' if value is None else f'{value:,}' if isinstance(value, int) else one_line(value)
