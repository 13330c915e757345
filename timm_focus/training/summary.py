"""Writes the numbers of a run, epoch by epoch: summary.csv."""
import csv
import io
import logging
from typing import Any, Dict, List

from timm_focus.runs import read_summary
from timm_focus.utils import write_whole

__all__ = ['Summary']

_logger = logging.getLogger('train')


class Summary:
    """A summary.csv, which is written anew, whole, with each epoch.

    Args:
        path: The file.
        start_epoch: Epoch that the run goes on with: what was written of it and of later ones is dropped.
    """

    def __init__(self, path: str, start_epoch: int):
        self.path = path
        there = read_summary(path)
        self.rows: List[Dict[str, Any]] = [row for row in there if int(row['epoch']) < start_epoch]
        if len(self.rows) < len(there):
            _logger.info(f'Dropping {len(there) - len(self.rows)} rows at or after epoch {start_epoch} from {path}.')
            self._write()

    def add(self, row: Dict[str, Any]) -> None:
        """Write down an epoch; columns that are new are empty in the rows before."""
        self.rows.append(row)
        self._write()

    def _write(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval='', lineterminator='\n')
        if columns:
            writer.writeheader()
        writer.writerows(self.rows)
        write_whole(self.path, text.getvalue())
