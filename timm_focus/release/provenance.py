"""Records on this machine which images a run was trained on, so that no pictures of other folders are published.

A checkpoint names a folder, too, but it may come from anywhere, and its maker may have guessed a folder of this
machine. So training keeps a note outside the run: in `timm_focus/runs` in `$XDG_STATE_HOME`, or in `~/.local/state`.
"""
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Optional

from timm_focus.utils import write_whole

__all__ = ['images_of_run', 'note_images']

_logger = logging.getLogger(__name__)


def note_images(run: str, data: Optional[str]) -> None:
    """Record that a run is trained here on the images of a folder.

    Args:
        run: Folder of the run, with args.yaml in it.
        data: Folder of the images; None removes the note, for data without a folder.
    """
    note = _note(run)
    try:
        note.unlink(missing_ok=True)
        if data is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            write_whole(note, json.dumps(dict(settings=_settings(run), data=os.path.abspath(data))))
    except OSError as e:
        _logger.info(f'It cannot be noted on which images {run} is trained, so `timm-focus push` needs --data: {e}')


def images_of_run(run: str) -> Optional[str]:
    """Folder of the images that a run was trained on; None unless this machine trained it in this very folder."""
    try:
        found = json.loads(_note(run).read_text('utf-8'))
        known = found['settings'] == _settings(run) and os.path.isdir(found['data'])
        return found['data'] if known else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note(run: str) -> Path:
    notes = Path(os.environ.get('XDG_STATE_HOME') or os.path.expanduser('~/.local/state')) / 'timm_focus' / 'runs'
    return notes / f'{hashlib.sha256(os.fsencode(os.path.realpath(run))).hexdigest()[:32]}.json'


def _settings(run: str) -> str:
    """Hash of a run's settings, to notice that another run has taken its folder."""
    return hashlib.sha256((Path(run) / 'args.yaml').read_bytes()).hexdigest()
