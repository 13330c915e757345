"""What an export replaces: what this program wrote, as it was written, and nothing else."""
import hashlib
import json
import os
import signal

import pytest

from timm_focus.commands.main import main
from timm_focus.release import written_whole
from timm_focus.release.folder import RECORD


def write(folder, text='new', kind='a'):
    with written_whole(folder, kind) as draft:
        (draft / 'model').write_text(text)
        (draft / 'card').write_text('card')


def tree(folder):
    """Everything in a folder by name: content of files, targets of links."""
    found = {}
    for path in sorted(folder.rglob('*')):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


@pytest.fixture
def export(tmp_path):
    folder = tmp_path / 'm'
    write(folder)
    return folder


def test_what_was_written_is_replaced(export, tmp_path):
    (export / 'card').unlink()  # what is gone is written anew
    (export / '.DS_Store').write_text('of a file manager')
    write(export, 'newer')
    assert set(tree(export)) == {'model', 'card', RECORD} and (export / 'model').read_text() == 'newer'
    assert os.listdir(tmp_path) == ['m'] and (export / 'model').stat().st_mode == (tmp_path / 'm/card').stat().st_mode
    (tmp_path / 'empty').mkdir()
    write(tmp_path / 'empty')
    write(tmp_path / 'deep/er/folder')
    (tmp_path / 'link').symlink_to('m')
    write(tmp_path / 'link', 'newest')
    assert os.readlink(tmp_path / 'link') == 'm' and (export / 'model').read_text() == 'newest'


IN_THE_WAY = {
    'an edited file': (lambda m: (m / 'card').write_text('mine'), 'card was edited'),
    'a link in place of a file': (
        lambda m: ((m / 'card').unlink(), (m / 'card').symlink_to('model')), 'card was edited'),
    'a file': (lambda m: (m / 'tokenizer.json').write_text('{}'), 'tokenizer.json was added'),
    'a file in a folder': (
        lambda m: ((m / 'notes').mkdir(), (m / 'notes/a.md').write_text('a')), 'notes/a.md was added'),
    'an empty folder': (lambda m: (m / 'later').mkdir(), 'later was added'),
    'a hidden file': (lambda m: (m / '.git').mkdir(), '.git was added'),
    'a link to a folder': (lambda m: (m / 'data').symlink_to('..'), 'data was added'),
    'several': (lambda m: [(m / n).write_text('x') for n in ('a', 'b', 'c', 'd', 'card')],
                'a, b, c and 1 more were added and card was edited'),
    'no record': (lambda m: (m / RECORD).unlink(), 'holds something else than this export'),
    'a record that is damaged': (lambda m: (m / RECORD).write_text('{"kind": "a"'), 'holds something else'),
    'a record of another kind': (lambda m: (m / RECORD).write_text('[]'), 'holds something else'),
}


@pytest.mark.parametrize('what', IN_THE_WAY)
@pytest.mark.parametrize('meanwhile', [False, True])
def test_nothing_else_is_replaced(what, meanwhile, export, tmp_path):
    put, words = IN_THE_WAY[what]
    with pytest.raises(ValueError, match=words):
        if meanwhile:
            with written_whole(export, 'a') as draft:
                (draft / 'model').write_text('other')
                put(export)
                before = tree(export)
        else:
            put(export)
            before = tree(export)
            write(export)
    assert tree(export) == before and os.listdir(tmp_path) == ['m']


def test_a_file_and_another_kind_are_in_the_way(export, tmp_path):
    (tmp_path / 'file').write_text('x')
    with pytest.raises(ValueError, match='is there and is no folder'):
        write(tmp_path / 'file')
    with pytest.raises(ValueError, match='holds something else'):
        write(export, kind='b')


def test_a_record_from_elsewhere_removes_nothing(export, tmp_path):
    """Its names are looked for in the folder alone."""
    (tmp_path / 'thesis.tex').write_text('x')
    record = json.loads((export / RECORD).read_text())
    record['files'].update({'../thesis.tex': hashlib.sha256(b'x').hexdigest(), str(tmp_path / 'thesis.tex'): ''})
    (export / RECORD).write_text(json.dumps(record))
    write(export, 'newer')
    assert (export / 'model').read_text() == 'newer' and (tmp_path / 'thesis.tex').read_text() == 'x'


def test_what_fails_leaves_everything(export, tmp_path):
    before = tree(export)
    with pytest.raises(OSError, match='cannot be written: no room. What was there before is as it was'):
        with written_whole(export, 'a') as draft:
            (draft / 'half').write_text('x')
            raise OSError('no room')
    with pytest.raises(KeyboardInterrupt):
        with written_whole(export, 'a'):
            raise KeyboardInterrupt
    assert tree(export) == before and os.listdir(tmp_path) == ['m']


KILLED = """
import os, signal, sys
from timm_focus.release import written_whole
with written_whole(sys.argv[1], 'a') as draft:
    (draft / 'half').write_text('x')
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_process_that_was_killed_is_in_nobodys_way(fork, tmp_path):
    folder = tmp_path / 'own'
    folder.mkdir()
    write(folder / 'm')
    assert fork(KILLED, folder / 'm').returncode == -signal.SIGKILL
    left = set(os.listdir(folder)) - {'m'}
    assert len(left) == 1 and tree(folder / 'm')['model'] == b'new'
    write(folder / 'm', 'newer')
    assert (folder / 'm/model').read_text() == 'newer'
    assert set(os.listdir(folder)) == {'m', *left}, 'nobody knows whose'


# the commands

def neighbours(folder):
    """What somebody may keep beside an export: backups by hand, drafts."""
    for name in ('m', 'm.old', 'm.tmp', 'hub', 'hub.old', 'hub.tmp'):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / 'README.md').write_text('edited for an hour')
    (folder / 'm/README.md').unlink()
    (folder / 'hub/README.md').unlink()


@pytest.mark.slow
def test_the_commands_leave_what_is_not_theirs(finished_run, tmp_path, capsys):
    neighbours(tmp_path)
    export = ['export', str(finished_run), '--format', 'safetensors', '--output']
    push = ['push', str(finished_run), 'user/name', '--license', 'mit', '--dataset', 'x', '--dry-run', '--output']
    before = {k: v for k, v in tree(tmp_path).items() if k.startswith(('m.', 'hub.'))}
    for _ in range(2):
        main([*export, str(tmp_path / 'm')])
        main([*push, str(tmp_path / 'hub')])
    assert {k: v for k, v in tree(tmp_path).items() if k.startswith(('m.', 'hub.'))} == before

    mine = tmp_path / 'mine'  # a model of timm's that another program wrote
    mine.mkdir()
    for name in ('model.safetensors', 'config.json', 'tokenizer.json', 'table.csv'):
        source = tmp_path / 'm' / name
        (mine / name).write_bytes(source.read_bytes() if source.exists() else b'mine')
    config = tmp_path / 'config'  # a configuration alone
    config.mkdir()
    (config / 'config.json').write_text('{"mine": 1}')
    before = tree(tmp_path)
    for command in ([*export, str(mine)], [*push, str(mine)], [*export, str(config)], [*push, str(config)],
                    [*push, str(tmp_path / 'm')], [*export, str(tmp_path / 'hub')]):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main(command)
        err = capsys.readouterr().err
        assert e.value.code == 2 and err.count('\n') == 1 and 'holds something else' in err, err
    assert tree(tmp_path) == before
