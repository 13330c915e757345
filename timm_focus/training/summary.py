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
    """Writes a summary.csv, the whole file at each epoch.

    Args:
        path: Path of the file.
        start_epoch: Epoch that the run goes on with. Rows of this epoch and of later ones are dropped.
    """

    def __init__(self, path: str, start_epoch: int):
        self.path = path
        there = read_summary(path)
        self.rows: List[Dict[str, Any]] = [row for row in there if int(row['epoch']) < start_epoch]
        if len(self.rows) < len(there):
            _logger.info(f'Dropping {len(there) - len(self.rows)} rows at or after epoch {start_epoch} from {path}.')
            self._write()

    def add(self, row: Dict[str, Any]) -> None:
        """Add the row of an epoch. Its new columns are empty in earlier rows."""
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
