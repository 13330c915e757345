import gc
import hashlib
import io
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from timm.data import add_img_extensions, get_img_extensions, set_img_extensions
from timm.data.readers.reader_image_folder import find_images_and_targets

from timm_focus.data import index as indexing
from timm_focus.data.index import (
    ImageIndex, cached_scan, folders, list_images, missing, read_list, scan_folder, subset, write_list)

NAMES = ['beach', 'canyon', 'desert']


@pytest.fixture(scope='module')
def jpeg(photo):
    file = io.BytesIO()
    photo.crop((200, 100, 208, 108)).save(file, 'JPEG')
    return file.getvalue()


@pytest.fixture
def tree(tmp_path, jpeg):
    """`tree('a/1.jpg', ...)` is a folder with these images, last changed long ago."""
    def make(*files, root='tree'):
        root = tmp_path / root
        root.mkdir(exist_ok=True)
        for file in files:
            path = root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg)
        settle(root)
        return root
    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    return tmp_path / 'cache' / 'timm_focus' / 'index'


def settle(root):
    """Make it long ago that all folders were last modified, by their own account."""
    time.sleep(0.02)  # more than a tick of the system's clock since they were
    for folder, *_ in os.walk(root):
        os.utime(folder, ns=(10 ** 18, 10 ** 18))


def pairs(index):
    return [(index.path(i), index.target(i)) for i in range(len(index))]


def make_index(files, class_names=NAMES, root='/r'):
    """The slow way: from pairs of path and target."""
    paths = [os.fsencode(path) for path, _ in files]
    return ImageIndex(
        root, np.frombuffer(b''.join(paths), np.uint8), np.cumsum([0, *map(len, paths)]),
        np.array([target for _, target in files], np.int32), list(class_names))


def literal_list(text, root):
    """What a list says, read line by line."""
    found = []
    for line in text.decode(errors='surrogateescape').split('\n'):
        line = line.removesuffix('\r')
        if line:
            path, label = line.rsplit(' ', 1)
            found.append((os.path.join(root, path.lstrip('/')), int(label)))
    return found


# the index

def test_images_of_an_index():
    files = [('beach/1.jpg', 0), ('desert/zürich am see.jpg', 2), ('x.png', 1)]
    index = make_index(files)
    assert len(index) == 3
    assert [index.relative(i) for i in range(3)] == [path for path, _ in files]
    assert pairs(index) == [(f'/r/{path}', target) for path, target in files]
    assert (index.path(-1), index.target(-1)) == ('/r/x.png', 1)
    assert type(index.target(0)) is int
    with pytest.raises(IndexError):
        index.path(3)
    with pytest.raises(IndexError):
        index.relative(-4)
    assert index.counts().tolist() == [1, 1, 1]
    assert index.select([0, 0]).counts().tolist() == [2, 0, 0]


def test_select_takes_any_indices_in_their_order():
    draw = random.Random(0)
    files = [('x' * draw.randrange(1, 30) + str(i), draw.randrange(3)) for i in range(1000)]
    index = make_index(files)
    everything = pairs(index)
    for indices in ([5, 3, 3, -1], [], list(range(1000)), np.array([7]), draw.choices(range(1000), k=5000)):
        selected = index.select(indices)
        assert pairs(selected) == [everything[i] for i in indices]
        assert selected.class_names == NAMES and selected.root == index.root
        assert (selected.offsets.dtype, selected.targets.dtype) == (np.uint32, np.int32)
    mask = index.targets == 1
    assert pairs(index.select(mask)) == [pair for pair in everything if pair[1] == 1]
    with pytest.raises(IndexError):
        index.select([1000])


def test_select_in_blocks_is_the_same():
    files = [(f'{i:x}.jpg', i % 3) for i in range(250_000)]
    index = make_index(files)
    order = np.random.default_rng(0).permutation(len(index))
    selected = index.select(order)
    assert all(selected.relative(k) == files[order[k]][0] for k in range(0, len(order), 101))
    assert selected.relative(-1) == files[order[-1]][0]


@pytest.mark.slow
def test_no_python_object_is_kept_for_an_image(tmp_path):
    n = 50_000
    (tmp_path / 'list.txt').write_text(''.join(f'/some/folder/{i:08d}.jpg {i % 3}\n' for i in range(n)))
    gc.collect()
    before = len(gc.get_objects()), sys.getallocatedblocks()
    index = read_list(tmp_path / 'list.txt', tmp_path, NAMES)
    gc.collect()
    assert len(gc.get_objects()) - before[0] < 100 and sys.getallocatedblocks() - before[1] < 1000
    arrays = [getattr(index, name).nbytes for name in ('paths', 'offsets', 'targets')]
    assert sum(arrays) == n * (len('some/folder/00000000.jpg') + 4 + 4) + 4
    assert len(pickle.dumps(index)) < sum(arrays) + 2000
    assert pairs(pickle.loads(pickle.dumps(index))) == pairs(index)


# lists

LISTS = {
    'plain': b'a/1.jpg 0\nb/2.jpg 2\n',
    'slashes, no last newline': b'/a/1.jpg 0\n//b/2.jpg 2',
    'crlf': b'/a/1.jpg 0\r\nb/2.jpg 2\r\n',
    'crlf, no last newline': b'/a/1.jpg 0\r\nb/2.jpg 2\r',
    'spaces': b'a b/1 2.jpg 0\n c 1\nd  2.jpg  3 2\n',
    'blank lines': b'\r\n\na/1.jpg 0\n\r\nb/2.jpg 2\n\n\r\n\n',
    'utf-8': 'plage/été.jpg 0\n砂漠/一 二.jpg 2\n'.encode(),
    'other bytes': b'caf\xe9/1.jpg 0\n',
    'leading zeros': b'a/1.jpg 000000002\n',
    'a short one': b'a 1',
}


@pytest.mark.parametrize('text', LISTS.values(), ids=LISTS.keys())
@pytest.mark.parametrize('block_bytes', [1, 13, 2 ** 23])
def test_lists_are_read_as_line_by_line(text, block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, '_BLOCK_BYTES', block_bytes)
    (tmp_path / 'list.txt').write_bytes(text)
    index = read_list(tmp_path / 'list.txt', tmp_path / 'images', NAMES)
    assert pairs(index) == literal_list(text, str(tmp_path / 'images')) and len(index) > 0
    assert index.class_names == NAMES


def test_long_list_is_read_as_line_by_line(tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, '_BLOCK_BYTES', 1000)
    draw = random.Random(1)
    text = ''.join(
        f'{"/" * draw.randrange(2)}{"ab ä"[draw.randrange(4)] * draw.randrange(1, 40)}{i}.jpg {draw.randrange(365)}'
        f'{draw.choice(["", chr(13)])}\n' for i in range(5000)).encode()
    (tmp_path / 'list.txt').write_bytes(text)
    index = read_list(tmp_path / 'list.txt', '/r', n_classes=365)
    assert pairs(index) == literal_list(text, '/r')
    assert index.class_names == [str(i) for i in range(365)]


@pytest.mark.parametrize('line', [
    'a/1.jpg', '1', 'a/1.jpg ', ' 1', '/ 1', 'a/1.jpg 1x', 'a/1.jpg x', 'a/1.jpg -', 'a/1.jpg 1.0', 'a/1.jpg\t1',
    'a/1.jpg 1 ', 'a/1.jpg +1', 'a/1.jpg 1234567890', 'a/1.jpg 1:', 'a/1.jpg /1', ' ', 'a/1.jpg ²',
])
@pytest.mark.parametrize('block_bytes', [1, 2 ** 23])
def test_lines_that_are_none(line, block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, '_BLOCK_BYTES', block_bytes)
    path = tmp_path / 'list.txt'
    for text, number in ((f'{line}\nb 1\n', 1), (f'b 1\n\r\n{line}\r\nb 1\n', 3), (f'b 1\n{line}', 2)):
        path.write_text(text, newline='')
        with pytest.raises(ValueError, match='^1 of the [24] lines of ') as e:
            read_list(path, '/r', NAMES)
        assert str(e.value).endswith(f' {path} are not "<path> <label>": line {number} {line!r}')


def test_first_offenders_and_their_number(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text('a/0.jpg 0\n' + ''.join(f'wrong{i}\n' for i in range(7)) + 'a/9.jpg 99\n')
    with pytest.raises(ValueError) as e:
        read_list(path, '/r', NAMES)
    assert str(e.value) == (
        f'7 of the 9 lines of {path} are not "<path> <label>": '
        "line 2 'wrong0', line 3 'wrong1', line 4 'wrong2', ...")


@pytest.mark.parametrize('label', [3, -1, 365, 999_999_999, -999_999_999])
def test_label_outside_the_classes(label, tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text(f'a/1.jpg 2\na/2.jpg {label}\na/3.jpg 0\na/4.jpg {label}\n')
    with pytest.raises(ValueError) as e:
        read_list(path, '/r', NAMES)
    assert str(e.value) == (
        f"2 of the 4 lines of {path} have a label outside 0 to 2: "
        f"line 2 'a/2.jpg {label}', line 4 'a/4.jpg {label}'")


@pytest.mark.parametrize('text', [b'', b'\n', b'\r\n\n'])
def test_empty_list(text, tmp_path):
    path = tmp_path / 'list.txt'
    path.write_bytes(text)
    with pytest.raises(ValueError, match=f'{re.escape(str(path))} lists no images'):
        read_list(path, '/r', NAMES)


def test_list_needs_its_classes(tmp_path):
    path = tmp_path / 'list.txt'
    path.write_text('a 0\n')
    assert read_list(path, '/r', NAMES, n_classes=3).class_names == NAMES
    with pytest.raises(ValueError, match='n_classes is 4, but there are 3 class names'):
        read_list(path, '/r', NAMES, n_classes=4)
    with pytest.raises(ValueError, match='class_names or n_classes'):
        read_list(path, '/r')
    with pytest.raises(FileNotFoundError):
        read_list(tmp_path / 'other.txt', '/r', NAMES)


def test_root_of_an_index_is_absolute(tmp_path, monkeypatch, tree):
    root = tree('a/1.jpg')
    (tmp_path / 'list.txt').write_text('a/1.jpg 0')
    monkeypatch.chdir(tmp_path)
    expected = [(str(root / 'a/1.jpg'), 0)]
    assert pairs(read_list('list.txt', 'tree', n_classes=1)) == expected
    assert pairs(scan_folder('tree')) == pairs(cached_scan('tree')) == pairs(scan_folder('tree/')) == expected


def test_written_list_is_read_back(tmp_path, tree):
    root = tree('a b/1 2.jpg', 'été/3.jpg', 'c/4.jpg', 'c/5.jpg')
    os.rename(root / 'c/4.jpg', os.fsencode(root / 'c') + b'/\xff.jpg')
    index = scan_folder(root).select([3, 0, 2, 1])
    path = tmp_path / 'list.txt'
    write_list(index, path)
    assert pairs(read_list(path, root, index.class_names)) == pairs(index)
    assert path.read_bytes().split(b'\n')[1:3] == [b'a b/1 2.jpg 0', b'c/\xff.jpg 1']
    assert os.listdir(tmp_path).count('list.txt') == 1 and not list(tmp_path.glob('*.tmp'))


def test_list_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / 'list.txt'
    path.write_text('old')
    index = make_index([('a.jpg', 0), ('b\nc.jpg', 1)])
    with pytest.raises(ValueError, match=re.escape("1 of the 2 paths have a line break, such as 'b\\nc.jpg'")):
        write_list(index, path)
    real = ImageIndex.relative
    monkeypatch.setattr(ImageIndex, 'relative', lambda self, i: real(self, i) if i < 1 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_list(make_index([('a.jpg', 0), ('b.jpg', 1)]), path)
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['list.txt']


# folders

TREES = {
    'numbers': [f'class{k}/{i}.jpg' for k in (1, 2, 10, 100) for i in (1, 2, 10, 9, 11)],
    'upper case': ['Beach/B.JPG', 'Beach/a.jpg', 'Beach/C.Jpeg', 'canyon/x.PNG', 'Desert/y.jpg', 'abbey/Z9.jpg'],
    'no images': ['a/1.txt', 'a/2.jpg', 'b/3.mp4', 'c/4.jpg.part', 'd/jpg', 'e.jpg/5.jpg'],
    'deep': ['a/x/1.jpg', 'b/y/2.jpg', 'b/y/z/3.jpg', 'b/y/a.jpg', 'b/y/zz.jpg', 'b/0.jpg', 'b/y1.jpg', 'b/y/z-/1.jpg'],
    'signs': [f'{name}/1.jpg' for name in ('a', 'a-b', 'a b', 'a.b', 'a_b', 'a1', 'a1b', '1a', '1')],
    'one name': ['apartment/outdoor/2.jpg', 'hotel/outdoor/1.jpg', 'inn/indoor/3.jpg', 'inn/outdoor/0.jpg'],
    'unicode': ['été/é1.jpg', 'ete/e2.jpg', 'Été2/x.jpg', '砂漠/一 二.jpg', 'a b/c d 10.jpg', 'a b/c d 9.jpg'],
    'leading zeros': ['a/001.jpg', 'a/2.jpg', 'a/0010.jpg', 'b07/1.jpg', 'b6/1.jpg', 'b08/1.jpg'],
}


@pytest.mark.parametrize('files', TREES.values(), ids=TREES.keys())
@pytest.mark.parametrize('root', ['tree', 'tree 12', '7/Tree'])
def test_folders_are_read_as_by_timm(files, root, tree):
    Path(tree()).parent.joinpath(root).parent.mkdir(exist_ok=True)
    root = tree(*files, root=root)
    expected, class_to_idx = find_images_and_targets(str(root))
    index = scan_folder(root)
    assert pairs(index) == expected and len(expected) > 1
    assert {name: i for i, name in enumerate(index.class_names)} == class_to_idx
    assert pairs(cached_scan(root)) == expected


def test_random_trees_are_read_as_by_timm(tree):
    draw = random.Random(3)
    letters = ['a', 'B', '1', '02', '10', '-', '.', '_', ' ', 'é']
    for trial in range(30):
        def name():
            return 'x' + ''.join(draw.choices(letters, k=draw.randrange(1, 4))) + 'y'
        known = [[name()]]
        for _ in range(15):
            known.append(draw.choice([[], *known]) + [name()])
        files = [f'{"/".join(draw.choice(known))}/{name()}{i}.jpg' for i in range(60)]
        root = tree(*files, root=f'{trial}')
        assert pairs(scan_folder(root)) == find_images_and_targets(str(root))[0]


def test_names_alike_are_in_alphabetical_order(tree):
    root = tree('b/1.jpg', 'B/01.jpg', 'b/01.jpg', 'B/1.jpg', 'b/A.jpg', 'b/a.jpg')
    index = scan_folder(root)
    assert index.class_names == ['B', 'b']
    assert [index.relative(i) for i in range(6)] == ['B/01.jpg', 'B/1.jpg', 'b/01.jpg', 'b/1.jpg', 'b/A.jpg', 'b/a.jpg']


def test_nested_classes_do_not_merge(tree, caplog):
    root = tree(*TREES['one name'], 'inn/4.jpg')
    index = scan_folder(root, nested=True)
    assert index.class_names == ['apartment/outdoor', 'hotel/outdoor', 'inn', 'inn/indoor', 'inn/outdoor']
    for path, target in pairs(index):
        assert path.rsplit('/', 1)[0] == f'{root}/{index.class_names[target]}'
    assert index.counts().tolist() == [1, 1, 1, 1, 1] and not caplog.records
    assert [pair[0] for pair in pairs(index)] == [path for path, _ in find_images_and_targets(str(root))[0]]
    merged = scan_folder(root)
    assert merged.class_names == ['indoor', 'inn', 'outdoor'] and merged.counts().tolist() == [1, 1, 3]
    assert caplog.messages == [
        f'3 of the 5 class folders in {root} share their names with others and make one class with them, such as '
        f'apartment/outdoor, hotel/outdoor, inn/outdoor.']


def test_linked_folders_are_followed_as_by_timm(tree, tmp_path):
    root = tree('a/1.jpg')
    tree('2.jpg', 'deep/3.jpg', root='elsewhere')
    os.symlink(tmp_path / 'elsewhere', root / 'b')
    os.symlink(tmp_path / 'elsewhere' / '2.jpg', root / 'a' / '4.jpg')
    expected = find_images_and_targets(str(root))[0]
    assert pairs(scan_folder(root)) == expected and len(expected) == 4
    os.symlink(root, tmp_path / 'elsewhere' / 'round')
    assert pairs(scan_folder(root)) == expected


def test_endings_added_to_timms_are_images(tree):
    before = get_img_extensions()
    root = tree('a/1.jpg', 'a/2.scan')
    assert len(scan_folder(root)) == 1
    try:
        add_img_extensions('.scan')
        assert pairs(scan_folder(root)) == [(f'{root}/a/1.jpg', 0), (f'{root}/a/2.scan', 0)]
    finally:
        set_img_extensions(before)


@pytest.mark.parametrize('name, words', [(b'caf\xe9', 'no UTF-8'), (b'two\nlines', 'a line break')])
def test_a_class_whose_name_no_list_can_hold(name, words, tree, jpeg):
    root = tree('a/1.jpg')
    os.mkdir(os.path.join(os.fsencode(root), name))
    with open(os.path.join(os.fsencode(root), name, b'2.jpg'), 'wb') as f:
        f.write(jpeg)
    with pytest.raises(ValueError, match=f'(?s){words}.* rename its folder'):
        scan_folder(root)
    assert len(list_images(root)) == 2, 'where folders are no classes, their names matter not'


@pytest.mark.parametrize('scan', [scan_folder, cached_scan])
def test_classes_given(scan, tree):
    root = tree('desert/1.jpg', 'beach/2.jpg')
    index = scan(root, class_names=NAMES)
    assert pairs(index) == [(f'{root}/beach/2.jpg', 0), (f'{root}/desert/1.jpg', 2)]
    assert index.class_names == NAMES and index.counts().tolist() == [1, 0, 1]
    index = scan(root, class_names=NAMES[::-1])
    assert pairs(index) == [(f'{root}/beach/2.jpg', 2), (f'{root}/desert/1.jpg', 0)]
    tree('forest/3.jpg', 'gorge/4.jpg', 'hill/5.jpg', 'island/6.jpg')
    with pytest.raises(ValueError) as e:
        scan(root, class_names=NAMES)
    assert str(e.value) == (
        f'4 of the 6 classes in {root} are not among the 3 known ones, such as forest, gorge, hill, ...: '
        f'rename these folders, or remove them.')


@pytest.mark.parametrize('scan', [scan_folder, cached_scan])
def test_folders_that_are_none(scan, tree, tmp_path):
    root = tree()
    with pytest.raises(ValueError, match='There is no folder .*/other'):
        scan(tmp_path / 'other')
    with pytest.raises(ValueError, match=f'There are no images in {root}: regular files .jpg, .png, .webp and others'):
        scan(root)
    tree('a/1.jpg', 'x.jpg', 'y.jpg')
    with pytest.raises(ValueError, match=f'2 images lie in {root} outside its class folders, such as x.jpg, y.jpg'):
        scan(root)


# the cache

@pytest.fixture
def scans(monkeypatch):
    """Roots that were scanned, with every tree large and old enough for the cache."""
    monkeypatch.setattr(indexing, 'CACHED_FROM', 1)
    monkeypatch.setattr(indexing, '_SETTLED_NS', -10 ** 10)
    made, scan = [], indexing._scan
    monkeypatch.setattr(indexing, '_scan', lambda root, nested: made.append(root) or scan(root, nested))
    return made


def test_a_tree_is_scanned_once(tree, scans, cache):
    root = tree('b/ü 1.jpg', 'b/2.jpg', 'a/deep/1.jpg', 'a/note.txt')
    for nested in (False, True):
        scans.clear()
        first = cached_scan(root, nested)
        again = cached_scan(root, nested)
        assert len(scans) == 1
        assert pairs(again) == pairs(first) == pairs(scan_folder(root, nested))
        assert again.class_names == first.class_names == (['a/deep', 'b'] if nested else ['b', 'deep'])
        assert (again.paths.dtype, again.offsets.dtype, again.targets.dtype) == (np.uint8, np.uint32, np.int32)
    assert len(list(cache.glob('*.npz'))) == len(os.listdir(cache)) == 2


CHANGES = {
    'file added': lambda root: (root / 'a/9.jpg').write_bytes(b''),
    'file removed': lambda root: (root / 'a/1.jpg').unlink(),
    'file renamed': lambda root: (root / 'a/1.jpg').rename(root / 'a/0.jpg'),
    'file moved': lambda root: (root / 'a/1.jpg').rename(root / 'b/7.jpg'),
    'deep file added': lambda root: (root / 'c/deep/9.jpg').write_bytes(b''),
    'folder added': lambda root: (root / 'd').mkdir() or (root / 'd/1.jpg').write_bytes(b''),
    'folder removed': lambda root: shutil.rmtree(root / 'b'),
    'folder renamed': lambda root: (root / 'b').rename(root / 'B2'),
    'file in a folder without images': lambda root: (root / 'empty/1.jpg').write_bytes(b''),
    'file for a folder': lambda root: shutil.rmtree(root / 'b') or (root / 'b').write_text(''),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES.keys())
def test_a_tree_that_changed_is_scanned_again(change, tree, scans):
    root = tree('a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'c/deep/1.jpg', 'empty/none.txt')
    before = pairs(cached_scan(root, nested=True))
    change(root)
    after = pairs(cached_scan(root, nested=True))
    assert len(scans) == 2 and after != before
    assert after == pairs(scan_folder(root, nested=True))
    settle(root)
    cached_scan(root, nested=True)
    scans.clear()
    assert pairs(cached_scan(root, nested=True)) == after and not scans


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES.keys())
def test_a_tree_that_changed_and_has_its_old_times_again(change, tree, scans):
    """As an archive that was made reproducible, or rsync, leaves it."""
    root = tree('a/1.jpg', 'a/2.jpg', 'b/1.jpg', 'c/deep/1.jpg', 'empty/none.txt')
    cached_scan(root, nested=True)
    times = {folder: os.stat(folder).st_mtime_ns for folder, *_ in os.walk(root)}
    change(root)
    for folder, time_ in times.items():
        if os.path.exists(folder):
            os.utime(folder, ns=(time_, time_))
    assert pairs(cached_scan(root, nested=True)) == pairs(scan_folder(root, nested=True))


def test_an_archive_unpacked_over_a_tree_is_seen(tree, scans, tmp_path):
    """Every folder has the time of the archive before and after; a hundred images are new."""
    root = tree('a/0.jpg', 'b/0.jpg')
    assert len(cached_scan(root)) == 2
    tree(*(f'{k}/{i}.jpg' for k in 'ab' for i in range(1, 51)), root='more')
    with tarfile.open(tmp_path / 'more.tar', 'w') as tar:
        tar.add(tmp_path / 'more', arcname='.')
    with tarfile.open(tmp_path / 'more.tar') as tar:
        tar.extractall(root, filter='data')
    assert os.stat(root / 'a').st_mtime_ns == 10 ** 18
    assert len(cached_scan(root)) == 102


def test_a_link_that_leads_somewhere_again_is_seen(tree, scans, tmp_path):
    root = tree('a/1.jpg')
    os.symlink(tmp_path / 'later.jpg', root / 'a/2.jpg')
    assert len(cached_scan(root)) == 1
    shutil.copy(root / 'a/1.jpg', tmp_path / 'later.jpg')
    assert len(cached_scan(root)) == 2


def test_a_tree_that_changed_just_now_is_not_trusted(tree, cache, monkeypatch):
    monkeypatch.setattr(indexing, 'CACHED_FROM', 1)
    root = tree('a/1.jpg', 'b/1.jpg')
    cached_scan(root)
    assert not cache.exists(), 'whatever its time of modification says'
    monkeypatch.setattr(indexing, '_SETTLED_NS', 10 ** 7)
    time.sleep(0.05)
    cached_scan(root)
    assert len(os.listdir(cache)) == 1


def test_what_is_left_out_is_told_of_a_kept_tree_too(tree, scans, caplog):
    root = tree('a/1.jpg', '.trash/2.jpg')
    caplog.set_level('INFO')
    for _ in range(2):
        cached_scan(root)
    assert len(scans) == 1 and caplog.messages == [
        f'Left out in {root}: 1 is hidden or left behind by a program, such as .trash.'] * 2


def test_each_tree_and_each_way_has_its_own_cache(tree, scans, cache, tmp_path):
    one, two = tree('a/1.jpg', root='one'), tree('b/1.jpg', root='two')
    os.symlink(one, tmp_path / 'link')
    for root in (one, two, one, tmp_path / 'link'):
        assert pairs(cached_scan(root)) == pairs(scan_folder(root))
    before = get_img_extensions()
    try:
        add_img_extensions('.scan')
        cached_scan(one)
    finally:
        set_img_extensions(before)
    assert len(os.listdir(cache)) == 3


def test_small_trees_are_not_kept(tree, cache, monkeypatch):
    monkeypatch.setattr(indexing, '_SETTLED_NS', -10 ** 10)
    assert indexing.CACHED_FROM == 10_000
    root = tree(*(f'a/{i}.jpg' for i in range(4)))
    monkeypatch.setattr(indexing, 'CACHED_FROM', 5)
    cached_scan(root)
    assert not cache.exists()
    monkeypatch.setattr(indexing, 'CACHED_FROM', 4)
    cached_scan(root)
    assert cache.exists()


def test_cache_lies_in_the_home_folder(tree, scans, tmp_path, monkeypatch):
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    cached_scan(tree('a/1.jpg'))
    assert len(list((tmp_path / 'home/.cache/timm_focus/index').iterdir())) == 1


def test_a_damaged_cache_is_made_anew(tree, scans, cache, caplog):
    root = tree('a/1.jpg', 'b/2.jpg')
    expected = pairs(cached_scan(root))
    file, = cache.iterdir()
    whole = file.read_bytes()
    draw = random.Random(0)
    damages = [b'', b'no archive', whole[:100], whole[:-1], whole[:len(whole) // 2], pickle.dumps([1])]
    for _ in range(60):
        i = draw.randrange(len(whole))
        damages.append(whole[:i] + bytes([whole[i] ^ 1 << draw.randrange(8)]) + whole[i + 1:])
    rebuilt = 0
    for damage in damages:
        file.write_bytes(damage)
        scans.clear()
        assert pairs(cached_scan(root)) == expected
        rebuilt += len(scans)
    assert rebuilt > 30 and 'cannot be used and is made anew' in caplog.text
    scans.clear()
    file.write_bytes(b'')
    cached_scan(root)
    cached_scan(root)
    assert len(scans) == 1


def test_an_archive_of_other_things_is_made_anew(tree, scans, cache):
    root = tree('a/1.jpg', 'b/2.jpg')
    expected = pairs(cached_scan(root))
    file, = cache.iterdir()
    with open(file, 'wb') as f:
        np.savez(f, paths=np.zeros(3))
    assert pairs(cached_scan(root)) == expected and len(scans) == 2


def test_unwritable_cache_only_costs_time(tree, scans, cache, caplog):
    root = tree('a/1.jpg')
    cache.parent.parent.mkdir()
    cache.parent.write_text('a file where the folder would be')
    assert pairs(cached_scan(root)) == pairs(cached_scan(root)) == [(f'{root}/a/1.jpg', 0)]
    assert len(scans) == 2
    assert f'The index of {root} cannot be kept' in caplog.text


def test_cache_appears_whole_or_not_at_all(tree, scans, cache, monkeypatch, caplog):
    root = tree('a/1.jpg')

    def full_disk(f, **arrays):
        f.write(b'half of it')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez', full_disk)
    assert len(cached_scan(root)) == 1
    assert os.listdir(cache) == [] and 'No space left on device' in caplog.text


# subsets

def many(n=50, names=('beach', 'canyon', 'desert')):
    return make_index([(f'{name}/{i:03d}.jpg', k) for k, name in enumerate(names) for i in range(n)], names)


def test_subset_is_balanced_and_in_order():
    index = many()
    drawn = subset(index, 10, seed=0)
    assert drawn.counts().tolist() == [10, 10, 10] and drawn.class_names == index.class_names
    everything = pairs(index)
    places = [everything.index(pair) for pair in pairs(drawn)]
    assert places == sorted(set(places))
    assert pairs(subset(index, 50, seed=0)) == everything


def test_subset_is_this_one_everywhere():
    assert [subset(many(), 3, 0).relative(i) for i in range(9)] == [
        'beach/017.jpg', 'beach/041.jpg', 'beach/047.jpg', 'canyon/007.jpg', 'canyon/018.jpg', 'canyon/026.jpg',
        'desert/025.jpg', 'desert/029.jpg', 'desert/030.jpg']


@pytest.mark.parametrize('n, seed', [(1, 0), (7, 5), (49, -3)])
def test_subset_is_the_lowest_draws(n, seed):
    expected = []
    for name in NAMES:
        files = [f'{i:03d}.jpg' for i in range(50)]
        files.sort(key=lambda file: hashlib.blake2b(f'{seed}/{name}/{file}'.encode(), digest_size=8).digest())
        expected += [f'{name}/{file}' for file in sorted(files[:n])]
    index = subset(many(), n, seed)
    assert [index.relative(i) for i in range(len(index))] == expected


@pytest.mark.slow
def test_subset_depends_on_the_seed_alone(tmp_path):
    index = many()
    first = pairs(subset(index, 5, 7))
    random.seed(1)
    np.random.seed(1)
    state = random.getstate(), np.random.get_state()[1].tolist()
    assert pairs(subset(index, 5, 7)) == first
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state
    assert len({tuple(pairs(subset(index, 5, seed))) for seed in range(20)}) == 20
    script = (
        'import sys; sys.path.insert(0, sys.argv[1]); import test_index as t; '
        'print(t.pairs(t.subset(t.many(), 5, 7)))')
    out = subprocess.run(
        [sys.executable, '-c', script, str(Path(__file__).parent)], env={**os.environ, 'PYTHONHASHSEED': '1'},
        capture_output=True, text=True, check=True).stdout
    assert out.strip() == str(first)


def test_each_class_is_drawn_by_itself():
    first = pairs(subset(many(), 5, 0))
    other = many(names=('canyon', 'zoo'))
    drawn = subset(other, 5, 0)
    canyon = [path for path, target in first if target == 1]
    assert [path for path, target in pairs(drawn) if target == 0] == canyon
    # neither the order of the images nor the folders they are in matter
    index = many()
    moved = make_index([(f'{k}/x/{Path(path).name}', k) for path, k in pairs(index)[::-1]])
    assert {(Path(path).name, k) for path, k in pairs(subset(moved, 5, 0))} == {(Path(p).name, k) for p, k in first}
    # and no class draws as another
    assert len({tuple(Path(path).name for path, target in first if target == k) for k in range(3)}) == 3


def test_every_image_is_drawn_as_often():
    index = many(20, names=('beach',))
    times = np.zeros(20, int)
    for seed in range(2000):
        times += np.isin(np.arange(20), [int(Path(path).stem) for path, _ in pairs(subset(index, 5, seed))])
    assert times.sum() == 10_000
    assert abs(times - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_subset_of_too_few():
    index = make_index([('b/1.jpg', 0), ('b/2.jpg', 0), ('c/1.jpg', 1)])
    with pytest.raises(ValueError) as e:
        subset(index, 2, 0)
    assert str(e.value) == '2 of the 3 classes have fewer than 2 images: canyon (1), desert (0); draw fewer.'
    with pytest.raises(ValueError, match='images_per_class must be at least 1, got 0'):
        subset(index, 0, 0)


# what is on the disk

def test_missing_files(tree, monkeypatch):
    there = ['b/1.jpg', 'a/1.jpg', 'b/2.jpg', 'top.jpg', 'a/x/é 3.jpg', 'a/x.jpg']
    root = tree(*there)
    (root / 'file').write_text('')
    gone = ['a/2.jpg', 'A/1.jpg', 'c/1.jpg', 'file/1.jpg', 'x/é 3.jpg', '3.jpg', 'a/x/top.jpg', 'b/1.jpg2', 'b/.jpg']
    files = there + gone
    random.Random(0).shuffle(files)
    index = make_index([(file, 0) for file in files], root=str(root))
    listed, listdir = [], os.listdir
    monkeypatch.setattr(os, 'listdir', lambda folder: listed.append(folder) or listdir(folder))
    monkeypatch.setattr(os, 'stat', None)
    found = missing(index)
    monkeypatch.undo()
    assert found.tolist() == [i for i, file in enumerate(files) if not (root / file).exists()]
    assert sorted(files[i] for i in found) == sorted(gone)
    assert len(listed) == len(set(listed)) == len({os.path.dirname(file) for file in files})
    assert missing(index.select([i for i in range(len(files)) if i not in found])).tolist() == []


def test_folders_of_the_images():
    names, numbers = folders(make_index([('b/1.jpg', 0), ('x.jpg', 0), ('a/é/1.jpg', 1), ('b/2.jpg', 0)]))
    assert [names[k] for k in numbers] == ['b', '', 'a/é', 'b'] and len(names) == 3
