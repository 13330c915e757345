"""Writes the folder of an export whole, and replaces one only if everything in it was written by this program.

A record in the folder, `.timm_focus.json`, lists the written files and their SHA-256. Files that a user added or edited
differ from it. The record is hidden, so it is never pushed.
"""
import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Union

from safetensors import SafetensorError

from timm_focus.utils.text import shown

__all__ = ['check_free', 'written_whole']

_logger = logging.getLogger(__name__)

RECORD = '.timm_focus.json'
LITTER = ('.DS_Store', 'Thumbs.db', 'desktop.ini')  # file managers leave these behind wherever somebody looks
Folder = Union[str, Path]


@contextlib.contextmanager
def written_whole(folder: Folder, kind: str, advice: str = '') -> Iterator[Path]:
    """Yield an empty folder to write into. At the end it replaces `folder`; if something fails, `folder` is unchanged.

    Args:
        folder: Folder to write. It may be absent, empty, or an unedited earlier export of this kind.
        kind: Kind of the export; an export of another kind is not replaced.
        advice: See `check_free`.

    Raises:
        ValueError: See `check_free`, which runs before writing and again before the old export is replaced.
        OSError: The folder cannot be written, for example on a full disk.
    """
    folder = Path(os.path.realpath(folder))  # the target of a link, so that the link stays
    check_free(folder, kind, advice)
    draft = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f'{folder.name}.', dir=folder.parent))  # a name that nobody else has
        draft, old = scratch / 'new', scratch / 'old'
        draft.mkdir()
        yield draft
        _write_record(draft, kind)
        check_free(folder, kind, advice)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(draft, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        if old.exists():
            _remove_own(old)
    except (OSError, SafetensorError) as e:
        raise OSError(
            f'{folder} cannot be written: {e}. What was there before is as it was; make room, or name another folder '
            'on a disk that has some.') from e
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
            with contextlib.suppress(OSError):  # not empty if the old folder is still in it
                scratch.rmdir()


def check_free(folder: Folder, kind: str, advice: str = '') -> None:
    """Refuse a folder that holds anything other than an unedited export of this kind.

    Args:
        folder: The folder.
        kind: Kind of the export.
        advice: A sentence for somebody who has edited an export of this kind.

    Raises:
        ValueError: The folder is in use; the message names the files.
    """
    folder = Path(folder)
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise ValueError(f'{folder} is there and is no folder: name another one.')
    there = _contents(folder)
    if not there:
        return
    record = _read_record(folder)
    if record.get('kind') != kind:
        raise ValueError(f'{folder} holds something else than this export ({some_names(there)}), and nothing of it is '
                         'replaced: name another folder.')
    foreign = [name for name in there if name not in record['files']]
    edited = [name for name in there if name not in foreign and _digest(folder / name) != record['files'][name]]
    changes = [f'{some_names(names)} {"was" if len(names) == 1 else "were"} {what}'
               for names, what in ((foreign, 'added'), (edited, 'edited')) if names]
    if changes:
        raise ValueError(f'In {folder}, {" and ".join(changes)} since it was written, and nothing of it is replaced: '
                         f'name another folder, or take away what is in the way.{" " * bool(advice)}{advice}')


def _contents(folder: Path) -> List[str]:
    """Relative paths of all files, links and empty folders in a folder, without the record and system litter."""
    names = []
    for at, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(at, name))]
        names += [os.path.join(at, name) for name in (*files, *links) if name not in LITTER]
        if not folders and not files and at != str(folder):
            names.append(at)
    return sorted(name for name in (os.path.relpath(name, folder) for name in names) if name != RECORD)


def _digest(path: Path) -> str:
    """SHA-256 of a file; '' if it is not a regular file."""
    if path.is_symlink() or not path.is_file():
        return ''
    digest = hashlib.sha256()
    with open(path, 'rb') as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write_record(folder: Path, kind: str) -> None:
    files = {name: _digest(folder / name) for name in _contents(folder)}
    text = json.dumps(dict(written_by='timm_focus', kind=kind, files=files), indent=2)
    (folder / RECORD).write_text(text + '\n', 'utf-8')


def _read_record(folder: Path) -> Dict:
    """Read the record of a folder; {} if there is no readable one."""
    try:
        record = json.loads((folder / RECORD).read_text('utf-8'))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and isinstance(record.get('files'), dict) else {}


def _remove_own(old: Path) -> None:
    """Remove the files of an export that was replaced. Files that were added meanwhile stay, with a warning."""
    files = _read_record(old).get('files', {})
    for name in _contents(old):  # not the names of the record, which may come from anywhere
        if name in files and _digest(old / name) == files[name]:
            (old / name).unlink()
    for name in (RECORD, *LITTER):
        (old / name).unlink(missing_ok=True)
    try:
        old.rmdir()
    except OSError:
        _logger.warning(f'Something was added to the export while it was replaced: it is in {old}.')


def some_names(names: Sequence[str]) -> str:
    """The first few names, and how many more there are, for a message."""
    return shown(', '.join(names[:3])) + (f' and {len(names) - 3} more' if len(names) > 3 else '')
