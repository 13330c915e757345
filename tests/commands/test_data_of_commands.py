"""The data of a folder, as every command reads it."""
import csv
import json
import os
import shlex
import subprocess
import sys

import pytest

from conftest import ENVIRONMENT
from timm_focus.commands.main import main
from timm_focus.utils.text import from_csv_cell

RUN = '--img-size 64 --device cpu -j 0 -b 4'


@pytest.fixture
def command(finished_run, tmp_path, capsys):
    """`command('area', data)` is what a command says on stdout and stderr; it writes into `tmp_path/<its name>`."""
    def run(name, data, more='', ends=False):
        capsys.readouterr()
        argv = [name, *([data] if isinstance(data, (str, os.PathLike)) else data), *shlex.split(f'{RUN} {more}'),
                '--checkpoint', str(finished_run), '--output', str(tmp_path / name)]
        if ends:
            with pytest.raises(SystemExit) as e:
                main([str(a) for a in argv])
            assert e.value.code == 2
        else:
            main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return out, err
    return run


def rows(path):
    with open(path, newline='', encoding='utf-8') as f:
        return [{k: from_csv_cell(v) for k, v in row.items()} for row in csv.DictReader(f)]


def measured(name, folder):
    """Names of the images that a command has measured."""
    if name == 'explain':
        return [os.path.basename(e['file']) for e in json.loads((folder / 'explained.json').read_text())['images']]
    file = dict(area='area.csv', validate='images.csv', predict='')[name]
    return [os.path.basename(row['image']) for row in rows(folder / file)]


COMMANDS = dict(area='', explain='', validate='--no-erase', predict='--format csv')


@pytest.mark.slow
@pytest.mark.parametrize('name', COMMANDS)
def test_each_command_reads_the_same_images(name, command, image_folder, tmp_path, caplog):
    val = image_folder / 'val'
    for folder in (val / '.ipynb_checkpoints', val / 'left/.ipynb_checkpoints', val / 'left/@eaDir'):
        folder.mkdir()
        os.link(val / 'left/0.jpg', folder / '0.jpg')
    os.rename(val / 'right', tmp_path / 'right')
    os.symlink(tmp_path / 'right', val / 'right')
    os.symlink(image_folder, tmp_path / 'right/round')
    os.mkfifo(val / 'left/pipe.jpg')
    os.link(val / 'left/0.jpg', os.path.join(os.fsencode(val), b'left/caf\xe9.jfif'))
    (val / 'left/e.jpg').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    err = command(name, image_folder, COMMANDS[name])[1]
    found = measured(name, tmp_path / name)
    assert sorted(found) == sorted([f'{i}.jpg' for i in range(5)] * 2 + [os.fsdecode(b'caf\xe9.jfif')])
    told = [message for message in caplog.messages if message.startswith('Left out in')]
    assert [text.partition(': ')[2] for text in told] == [
        '3 are hidden or left behind by programs, such as .ipynb_checkpoints; 1 file with the ending of an image is no '
        'regular file, such as left/pipe.jpg; 1 link leads to a folder that it lies in, such as right/round.']
    assert 'left/e.jpg' in err + caplog.text and 'it is no image of a format that is read' in err + caplog.text


@pytest.mark.slow
def test_area_goes_on_after_a_name_that_is_no_utf8(command, image_folder, tmp_path):
    os.rename(image_folder / 'val/left/0.jpg', os.path.join(os.fsencode(image_folder), b'val/left/caf\xe9.jpg'))
    command('area', image_folder)
    before = (tmp_path / 'area/area.csv').read_bytes()
    assert before.count(b'\n') == 11
    assert os.fsdecode(b'left/caf\xe9.jpg') in [row['image'] for row in rows(tmp_path / 'area/area.csv')]
    command('area', image_folder)
    assert (tmp_path / 'area/area.csv').read_bytes() == before, 'none is measured again'


@pytest.mark.slow
@pytest.mark.long('C.UTF-8')
@pytest.mark.parametrize('locale', ['C', 'C.UTF-8'])
def test_names_are_written_in_any_locale(locale, image_folder, finished_run, tmp_path):
    name = b'left/caf\xe9 \xc3\xa9.jpg'
    os.rename(image_folder / 'val/left/0.jpg', os.path.join(os.fsencode(image_folder / 'val'), name))
    done = subprocess.run(
        [sys.executable, '-m', 'timm_focus.commands.main', 'validate', image_folder, '--checkpoint', finished_run,
         *shlex.split(RUN), '--no-erase', '--output', tmp_path / 'out'],
        env={**ENVIRONMENT, 'LC_ALL': locale}, capture_output=True, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    assert os.fsdecode(name) in [row['image'] for row in rows(tmp_path / 'out/images.csv')]


def test_a_class_folder_that_is_no_utf8_is_refused_before_measuring(command, image_folder, refusal):
    os.rename(image_folder / 'val/right', os.path.join(os.fsencode(image_folder), b'val/caf\xe9'))
    assert 'are no UTF-8: rename its folder' in command('validate', image_folder, ends=True)[1]
    os.rename(image_folder / 'train/right', os.path.join(os.fsencode(image_folder), b'train/caf\xe9'))
    assert 'are no UTF-8: rename its folder' in refusal()
