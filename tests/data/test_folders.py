"""Which files are images, and what is passed over: by kind, counted and named, the same for all."""
import os
import socket

import pytest
from PIL import Image, features

from timm_focus.data import list_images, read_image, scan_folder
from timm_focus.data.folders import LeftOut, is_debris, walk
from timm_focus.data.images import FORMATS, image_endings


@pytest.fixture
def tree(tmp_path, photo):
    """`tree('a/1.jpg', ...)` is a folder with these files, images all of them by what is in them."""
    picture = photo.resize((8, 8))

    def make(*files):
        for file in files:
            path = tmp_path / 'tree' / file
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, 'JPEG')
        return tmp_path / 'tree'
    return make


def walked(root, **kwargs):
    left_out = LeftOut(str(root))
    found = sorted(os.path.join(f.path, name) for f in walk(str(root), left_out, **kwargs) for name in f.images)
    return found, left_out


@pytest.mark.parametrize('name', [
    '.ipynb_checkpoints', '.git', '._1.jpg', '.DS_Store', '.1.jpg.swp', '.nfs0001', '.fuse_hidden0001', '.Trash-1000',
    '.snapshot', '__MACOSX', '@eaDir', '@EADIR', 'Thumbs.db', 'thumbs.db', 'lost+found', '$RECYCLE.BIN', '#recycle',
    'System Volume Information', 'Icon\r', 'desktop.ini', '__pycache__'])
def test_what_programs_leave_behind_is_no_data(name, tree):
    assert is_debris(name)
    root = tree('a/1.jpg', f'a/{name}/2.jpg', f'{name}/3.jpg')
    found, left_out = walked(root)
    assert found == ['a/1.jpg'] and left_out.counts == {'debris': 2}
    assert str(left_out).startswith('2 are hidden or left behind by programs, such as ')
    assert scan_folder(root).class_names == ['a'] and len(list_images(root)) == 1


@pytest.mark.parametrize('name', ['a', 'lost', 'a.b', 'thumbs', 'recycler plant', '@home', '#1', '1.jpg', 'été', '~'])
def test_names_of_people_are_data(name):
    assert not is_debris(name)


def test_what_is_left_out_is_counted_and_named_once(tree, caplog):
    root = tree('a/1.jpg', 'a/b.txt', 'a/a.txt', 'b/2.jpeg', 'b/x.mp4', 'b/README', '.hidden/3.jpg')
    os.mkfifo(root / 'a/pipe.jpg')
    os.symlink('nowhere.jpg', root / 'a/gone.jpg')
    os.symlink('round.jpg', root / 'a/round.jpg')
    os.symlink('..', root / 'b/up')
    with socket.socket(socket.AF_UNIX) as plug:
        here = os.getcwd()
        os.chdir(root / 'b')  # the path of a socket is short
        try:
            plug.bind('plug.png')
        finally:
            os.chdir(here)
    caplog.set_level('INFO')
    assert len(scan_folder(root)) == 2
    assert caplog.messages == [
        f'Left out in {root}: 1 is hidden or left behind by a program, such as .hidden; 4 files have no ending of an '
        'image (.txt, none, .mp4), such as a/a.txt; 2 files with the ending of an image are no regular files, such as '
        'a/pipe.jpg; 2 links lead nowhere, such as a/gone.jpg; 1 link leads to a folder that it lies in, such as b/up.']
    assert caplog.records[0].levelname == 'WARNING'
    caplog.clear()
    index = list_images(root)
    assert [index.relative(i) for i in range(2)] == ['a/1.jpg', 'b/2.jpeg'] and len(caplog.messages) == 1
    left_out = walked(root)[1]
    assert str(LeftOut.loads(left_out.dumps())) == str(left_out)


def test_what_is_harmless_is_no_warning_and_nothing_is_not_told(tree, caplog):
    caplog.set_level('INFO')
    list_images(tree('1.jpg'))
    assert not caplog.messages
    list_images(tree('notes.txt'))
    assert caplog.records[0].levelname == 'INFO'


def test_links_are_followed_and_loops_are_not(tree, tmp_path):
    root = tree('a/1.jpg', 'b/2.jpg')
    (tmp_path / 'elsewhere').mkdir()
    os.rename(root / 'b', tmp_path / 'elsewhere/b')
    os.symlink(tmp_path / 'elsewhere/b', root / 'b')
    os.symlink(root / 'a/1.jpg', root / 'b/3.jpg')
    os.symlink(root, tmp_path / 'elsewhere/b/round')
    found, left_out = walked(root)
    assert found == ['a/1.jpg', 'b/2.jpg', 'b/3.jpg'] and left_out.counts == {'loop': 1}
    index = list_images(root)
    assert [index.relative(i) for i in range(3)] == found
    os.symlink(root, tmp_path / 'link')
    assert len(list_images(tmp_path / 'link')) == 3, 'the folder itself may be a link'
    os.symlink(tmp_path, tmp_path / 'elsewhere/b/out')
    found, left_out = walked(root)
    assert len(found) == 3 and left_out.counts == {'loop': 2}, 'it lies in the folders around the root, too'


def test_a_folder_apart_is_passed_over_by_whatever_name(tree, tmp_path):
    root = tree('a/1.jpg', 'made/2.jpg')
    os.symlink(root / 'made', tmp_path / 'other')
    found, left_out = walked(root, apart=tmp_path / 'other')
    assert found == ['a/1.jpg'] and not left_out


def test_a_name_that_is_no_utf8_is_an_image_and_shown_safely(tree):
    root = tree('1.jpg')
    for name in (b'caf\xe9.jpg', b'caf\xe9.txt'):
        os.link(os.fsencode(root / '1.jpg'), os.path.join(os.fsencode(root), name))
    found, left_out = walked(root)
    assert os.fsencode(found[1]) == b'caf\xe9.jpg' and str(left_out).endswith('such as caf?.txt')
    index = list_images(root)
    assert read_image(index.path(1)).size == (8, 8) and os.fsencode(index.relative(1)) == b'caf\xe9.jpg'
    str(left_out).encode()


WRITABLE = dict(
    JPEG='jpg jpeg jpe jfif', PNG='png apng', WEBP='webp', AVIF='avif', GIF='gif', BMP='bmp', TIFF='tif tiff',
    JPEG2000='jp2 j2k jpx', MPO='mpo', PPM='ppm pgm pnm', TGA='tga', DIB='dib', DDS='dds', ICO='ico',
    PCX='pcx', QOI='qoi', SGI='sgi', XBM='xbm')


@pytest.mark.parametrize('name, endings', WRITABLE.items(), ids=WRITABLE)
def test_what_pillow_writes_is_found_and_read(name, endings, photo, tmp_path):
    if name in ('AVIF', 'JPEG2000', 'WEBP') and not features.check(dict(JPEG2000='jpg_2000').get(name, name.lower())):
        pytest.skip(f'This Pillow has no {name}.')
    picture = photo.resize((16, 16)).convert('1' if name == 'XBM' else 'RGB')
    for ending in endings.split():
        picture.save(tmp_path / f'a.{ending.upper()}', name)
        read = read_image(tmp_path / f'a.{ending.upper()}')
        assert read.mode == 'RGB' and read.size == (16, 16)
    assert len(list_images(tmp_path)) == len(endings.split())


def test_formats_that_start_programs_are_not_opened(photo, tmp_path, monkeypatch):
    """Pillow goes by what is in a file: EPS by any name would start Ghostscript."""
    monkeypatch.setattr('subprocess.check_call', lambda *_, **__: pytest.fail('a program was started'))
    for name in ('e.jpg', 'e.eps'):
        photo.resize((8, 8)).save(tmp_path / name, 'EPS')
    with Image.open(tmp_path / 'e.jpg') as image:
        assert image.format == 'EPS'
    with pytest.raises(OSError, match='it is no image of a format that is read'):
        read_image(tmp_path / 'e.jpg')
    assert len(list_images(tmp_path)) == 1
    assert 'EPS' not in FORMATS and not {'.eps', '.ps', '.pdf', '.wmf', '.h5', '.mpg', '.txt', ''} & image_endings()


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / 'x.jpg')
    with pytest.raises(OSError, match='it is no regular file'):
        read_image(tmp_path / 'x.jpg')
    with pytest.raises(OSError, match='it is no regular file'):
        read_image(tmp_path)
