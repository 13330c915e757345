"""Rows as a table for people, as CSV or as JSON."""
import argparse
import csv
import json
import sys
from typing import Any, Dict, List

from timm_focus.utils.text import csv_cell, one_line

__all__ = ['add_format', 'write_table']


def add_format(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--format', choices=('table', 'csv', 'json'), default='table', help='default: table')


def write_table(rows: List[Dict[str, Any]], args: argparse.Namespace) -> None:
    """Print rows of the same columns to standard output."""
    if args.format == 'json':
        print(json.dumps(rows, indent=2))
        return
    names = list(rows[0])
    if args.format == 'csv':
        writer = csv.DictWriter(sys.stdout, names, lineterminator='\n')
        writer.writeheader()
        writer.writerows({k: csv_cell(v) for k, v in row.items()} for row in rows)
        return
    texts = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(names))]
    numeric = [all(isinstance(row[name], (int, float, type(None))) for row in rows) for name in names]
    for line in texts:
        print('  '.join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric)).rstrip())


def _text(value: Any) -> str:
    return '' if value is None else f'{value:,}' if isinstance(value, int) else one_line(value)
