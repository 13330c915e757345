"""Files are written whole or not at all, on disks that fail, too."""
import os
import resource

import pytest

from timm_focus.utils import FileError, is_scratch, open_whole, write_whole

def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / 'é.txt'
    for content in ('old\n', 'né\n'):
        write_whole(path, content)
        assert path.read_bytes() == content.encode() and os.listdir(tmp_path) == ['é.txt']
    write_whole(str(path), b'\xff')
    assert path.read_bytes() == b'\xff'


def test_its_permissions_are_those_of_any_new_file(tmp_path):
    write_whole(tmp_path / 'whole', '')
    (tmp_path / 'plain').write_text('')
    assert (tmp_path / 'whole').stat().st_mode == (tmp_path / 'plain').stat().st_mode


def test_until_it_is_complete_nothing_changes(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    with pytest.raises(KeyError), open_whole(path) as f:
        f.write('new')
        f.flush()
        assert path.read_text() == 'old'
        scratch, = (n for n in os.listdir(tmp_path) if n != 'a.txt')
        assert is_scratch(scratch) and not is_scratch('a.txt') and not is_scratch('.a.tmp')
        raise KeyError
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_two_writers_are_not_in_each_others_way(tmp_path):
    path = tmp_path / 'a.txt'
    with open_whole(path) as first, open_whole(path) as second:
        first.write('1' * 100000)
        second.write('2')
    assert path.read_text() == '1' * 100000  # whichever is done last


def test_what_others_left_is_not_touched(tmp_path):
    (tmp_path / 'a.txt.tmp').write_text("somebody's")
    write_whole(tmp_path / 'a.txt', 'mine')
    assert (tmp_path / 'a.txt.tmp').read_text() == "somebody's"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / 'there').mkdir()
    (tmp_path / 'link').symlink_to(tmp_path / 'there/file')
    write_whole(tmp_path / 'link', 'x')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'there/file').read_text() == 'x'
    assert os.listdir(tmp_path / 'there') == ['file']


@pytest.mark.parametrize('name', ['x' * 250 + '.txt', 'é' * 125 + '.txt'])
def test_the_longest_names(tmp_path, name):
    write_whole(tmp_path / name, 'x')
    assert os.listdir(tmp_path) == [name]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_text('old')
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(FileError) as e:
            write_whole(path, 'x' * 1001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(e.value).startswith(f'{path} cannot be written: File too large; the disk of {tmp_path} has ')
    assert str(e.value).endswith(' MiB free.')
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['a.txt']


def test_a_folder_that_is_not_there_is_a_sentence(tmp_path):
    with pytest.raises(FileError, match=r"nowhere/a\.txt cannot be written: No such file.*; the folder .* is not th"):
        write_whole(tmp_path / 'nowhere/a.txt', '')
