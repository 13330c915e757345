"""Reads summary.csv, the numbers of a run by epoch."""
import csv
import logging
from typing import Dict, List

__all__ = ['read_summary']

_logger = logging.getLogger(__name__)


def read_summary(path: str) -> List[Dict[str, str]]:
    """Read the rows as dicts by column; [] without a file. Broken lines, as a killed process leaves, are skipped."""
    try:
        with open(path, encoding='utf-8', errors='replace', newline='') as f:
            lines = list(csv.reader(f.read().replace('\0', '').splitlines()))
    except FileNotFoundError:
        return []
    header = lines[0] if lines else []
    rows = [dict(zip(header, line)) for line in lines[1:] if len(line) == len(header) and line[0].isdigit()]
    wrong = sum(map(bool, lines[1:])) - len(rows)
    if wrong:
        _logger.warning(f'{wrong} of the lines of {path} cannot be read as rows of its columns: they are left out.')
    return rows
