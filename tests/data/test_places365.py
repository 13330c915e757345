import hashlib
import os
import random
import re
import shutil

import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import find_images_and_targets
from torchvision.datasets import Places365

from timm_focus.data import index
from timm_focus.data.places365 import CATEGORIES, find_places365, read_split

# (category, file) of each image: one for training each, named alike in all classes as in the real ones; none for
# validation in some classes, which must not move those after them
TRAIN = [(category, '00000001.jpg') for category in CATEGORIES]
VAL = [(category, f'Places365_val_{i:08d}.jpg') for i, category in enumerate(CATEGORIES) if i % 50 != 7]
random.Random(0).shuffle(VAL)
OFFICIAL = ''.join(f'/{category[0]}/{category} {i}\n' for i, category in enumerate(CATEGORIES))


@pytest.fixture(scope='session')
def jpeg(photo, tmp_path_factory):
    path = tmp_path_factory.mktemp('jpeg') / '1.jpg'
    photo.crop((200, 100, 208, 108)).save(path)
    return path


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


class Copy:
    """A miniature copy of Places365 in a folder; each method lays one thing there."""

    def __init__(self, root, jpeg):
        self.root, self.jpeg = root, jpeg

    def put(self, path):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(self.jpeg, self.root / path)

    def nested(self, folder, images=TRAIN):
        for category, name in images:
            self.put(f'{folder}/{category[0]}/{category}/{name}')
        return self

    def easy(self, folder, images=TRAIN):
        for category, name in images:
            self.put(f'{folder}/{category.replace("/", "-")}/{name}')
        return self

    def flat(self, folder):
        for _, name in VAL:
            self.put(f'{folder}/{name}')
        return self

    def write(self, name, lines):
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(''.join(f'{line}\n' for line in lines))
        return self

    def train_list(self, version='standard', folder=''):
        return self.write(f'{folder}places365_train_{version}.txt', [
            f'/{category[0]}/{category}/{name} {CATEGORIES.index(category)}' for category, name in TRAIN])

    def val_list(self, folder=''):
        return self.write(f'{folder}places365_val.txt', [
            f'{name} {CATEGORIES.index(category)}' for category, name in VAL])

    def official(self, train='data_256', val='val_256', version='standard'):
        self.nested(train).flat(val).train_list(version).val_list()
        (self.root / 'categories_places365.txt').write_text(OFFICIAL)
        return self

    def read(self, **kwargs):
        layout = find_places365(self.root, **kwargs)
        return layout, read_split(layout, 'train'), read_split(layout, 'val')


@pytest.fixture
def copy(tmp_path, jpeg):
    return Copy(tmp_path / 'places', jpeg)


def pairs(split):
    return [(split.path(i), split.target(i)) for i in range(len(split))]


def content(split):
    """(category, file) of each image, the category by index."""
    return sorted((CATEGORIES[target], os.path.basename(path)) for path, target in pairs(split))


def refusal(copy, split, **kwargs):
    """The sentence with which a split is refused."""
    with pytest.raises(ValueError) as e:
        read_split(find_places365(copy.root, **kwargs), split)
    return str(e.value)


# the categories

def test_categories_are_the_official_ones():
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 365
    assert (CATEGORIES[0], CATEGORIES[8], CATEGORIES[364]) == ('airfield', 'apartment_building/outdoor', 'zen_garden')
    official = OFFICIAL.removesuffix('\n').encode()
    assert hashlib.md5(official).hexdigest() == Places365._CATEGORIES_META[1]


# every layout, each alone and one level down

LAYOUTS = {
    'data_256': (lambda copy: copy.official(), 'official lists', 'standard', '256'),
    'data_large': (
        lambda copy: copy.official('data_large', 'val_large'), 'official lists', 'standard', 'large'),
    'data_256 challenge': (
        lambda copy: copy.official(version='challenge'), 'official lists', 'challenge', '256'),
    'data_256_standard': (
        lambda copy: copy.official('data_256_standard'), 'official lists', 'standard', '256'),
    'data_large_standard': (
        lambda copy: copy.official('data_large_standard', 'val_large'), 'official lists', 'standard', 'large'),
    'data_256_challenge': (
        lambda copy: copy.official('data_256_challenge', version='challenge'), 'official lists', 'challenge', '256'),
    'data_large_challenge': (
        lambda copy: copy.official('data_large_challenge', 'val_large', 'challenge'),
        'official lists', 'challenge', 'large'),
    'lists for train': (lambda copy: copy.official('train', 'val'), 'official lists', 'standard', None),
    'lists, nested val': (
        lambda copy: copy.nested('data_256').nested('val_256', VAL).train_list().val_list(),
        'official lists', 'standard', '256'),
    'lists, easy val': (
        lambda copy: copy.nested('data_256').easy('val_256', VAL).train_list(), 'official lists', 'standard', '256'),
    'nested data_256': (
        lambda copy: copy.nested('data_256').nested('val_256', VAL), 'nested tree', None, '256'),
    'nested data_large, flat val': (
        lambda copy: copy.nested('data_large').flat('val_large').val_list(), 'nested tree', None, 'large'),
    'nested data_256_challenge': (
        lambda copy: copy.nested('data_256_challenge').flat('val_256').val_list(), 'nested tree', 'challenge', '256'),
    'nested train': (lambda copy: copy.nested('train').nested('val', VAL), 'nested tree', None, None),
    'nested train, flat val': (
        lambda copy: copy.nested('train').flat('val').val_list(), 'nested tree', None, None),
    'nested train, easy val': (lambda copy: copy.nested('train').easy('val', VAL), 'nested tree', None, None),
    'easy format': (
        lambda copy: copy.easy('places365_standard/train').easy('places365_standard/val', VAL),
        'easy format', 'standard', '256'),
    'easy format with the lists in it': (
        lambda copy: copy.easy('places365_standard/train').easy('places365_standard/val', VAL)
        .train_list(folder='places365_standard/').val_list(folder='places365_standard/'),
        'easy format', 'standard', '256'),
    'easy format, other name': (lambda copy: copy.easy('train').easy('val', VAL), 'easy format', None, None),
    'easy format with the lists': (
        lambda copy: copy.easy('train').easy('val', VAL).train_list().val_list(), 'easy format', None, None),
}


@pytest.mark.slow('other name', 'the lists', 'nested', 'lists,')
@pytest.mark.parametrize('lay, kind, version, size', LAYOUTS.values(), ids=LAYOUTS.keys())
def test_every_layout_gives_the_same_images(lay, kind, version, size, copy):
    lay(copy)
    for root in (copy.root, copy.root.parent, str(copy.root) + '/'):
        if kind == 'easy format' and version and root == copy.root.parent:
            root = copy.root / 'places365_standard'  # which is its root
        layout = find_places365(root)
        assert (layout.kind, layout.version, layout.size, layout.also) == (kind, version, size, ())
        train, val = read_split(layout, 'train'), read_split(layout, 'val')
        assert train.class_names == val.class_names == list(CATEGORIES)
        assert content(train) == sorted(TRAIN) and content(val) == sorted(VAL)
        for split in (train, val):
            assert all(os.path.isabs(path) and os.path.isfile(path) for path, _ in pairs(split))
    with Image.open(val.path(0)) as image:
        assert image.convert('RGB').size == (8, 8)


def test_same_images_in_the_same_order_as_torchvision(copy, monkeypatch):
    copy.official('data_256_standard').train_list('challenge')
    os.rename(copy.root / 'data_256_standard', copy.root / 'data_256_challenge')
    monkeypatch.setattr(Places365, '_check_integrity', lambda *args: True)  # of the lists, which are miniatures
    for split, version in (('train-challenge', 'challenge'), ('val', 'challenge')):
        theirs = Places365(str(copy.root), split=split, small=True)
        ours = read_split(find_places365(copy.root, version), split.split('-')[0])
        assert pairs(ours) == theirs.imgs and len(ours) > 300


def test_the_trap_that_the_nested_tree_is(copy):
    copy.nested('data_256')
    assert len(find_images_and_targets(str(copy.root / 'data_256'))[1]) == 314
    assert (read_split(find_places365(copy.root), 'train').counts() == 1).all()


def test_a_large_tree_is_scanned_once(copy, monkeypatch):
    copy.nested('train')
    monkeypatch.setattr(index, 'CACHED_FROM', 365)
    monkeypatch.setattr(index, '_SETTLED_NS', -10 ** 10)
    first = pairs(read_split(find_places365(copy.root), 'train'))
    monkeypatch.setattr(index, '_scan', None)
    assert pairs(read_split(find_places365(copy.root), 'train')) == first


# what is chosen

@pytest.fixture
def several(copy):
    """All four, and the easy format in the same folder."""
    for size in ('large', '256'):
        copy.flat(f'val_{size}')
        for version in ('challenge', 'standard'):
            copy.nested(f'data_{size}_{version}').train_list(version)
    return copy.val_list().easy('train').easy('val', VAL)


@pytest.mark.slow('asked0', 'asked1', 'asked2')
@pytest.mark.parametrize('asked, expected', [
    ({}, ('standard', '256')),
    ({'version': 'challenge'}, ('challenge', '256')),
    ({'size': 'large'}, ('standard', 'large')),
    ({'version': 'challenge', 'size': 'large'}, ('challenge', 'large')),
])
def test_what_is_asked_for_is_taken(asked, expected, several):
    layout = find_places365(several.root, **asked)
    version, size = expected
    assert (layout.version, layout.size, layout.kind) == (*expected, 'official lists')
    assert layout.train == f'{several.root}/data_{size}_{version}' and layout.val == f'{several.root}/val_{size}'
    assert layout.train_list == f'{several.root}/places365_train_{version}.txt'
    assert len(layout.also) == 4 and 'of unknown version, images of unknown size, easy format' in layout.also


def test_description_is_one_line(several):
    assert find_places365(several.root).describe() == (
        f'Places365 standard, 256 px, official lists, in {several.root}: train data_256_standard by '
        f'places365_train_standard.txt, val val_256 by places365_val.txt (also there: challenge, 256 px, '
        f'official lists; standard, large images, official lists; challenge, large images, official lists; '
        f'of unknown version, images of unknown size, easy format)')


def test_description_of_a_tree(copy):
    copy.nested('train')
    assert find_places365(copy.root).describe() == (
        f'Places365 of unknown version, images of unknown size, nested tree, in {copy.root}: train train, '
        f'val not there')


def test_both_lists_of_one_folder(copy):
    copy.official().train_list('challenge')
    assert find_places365(copy.root).version == 'standard'
    assert find_places365(copy.root, 'challenge').train_list.endswith('challenge.txt')
    os.rename(copy.root / 'data_256', copy.root / 'data_256_challenge')
    assert find_places365(copy.root).version == 'challenge'


def test_what_is_whole_goes_first(copy):
    copy.official('data_large', 'val_large').nested('data_256')
    layout = find_places365(copy.root)
    assert (layout.size, layout.also) == ('large', ('standard, 256 px, official lists',))
    assert find_places365(copy.root, size='256').val is None


@pytest.mark.parametrize('asked, words', [
    ({'version': 'challenge'}, 'Places365 challenge, but standard, 256 px, official lists: ask for one that is there.'),
    ({'size': 'large'}, 'Places365 large, but standard, 256 px'),
    ({'version': 'challenge', 'size': '256'}, 'Places365 challenge, 256, but standard'),
])
def test_what_is_not_there_is_refused(asked, words, copy):
    copy.official()
    with pytest.raises(ValueError, match=f'^{re.escape(str(copy.root))} has no {words}'):
        find_places365(copy.root, **asked)


def test_what_nothing_tells_is_not_taken_for_granted(copy):
    copy.nested('train').nested('val', VAL)
    with pytest.raises(ValueError, match='has no Places365 standard, but of unknown version, images of unknown size'):
        find_places365(copy.root, version='standard')


def test_words_that_are_none(copy):
    with pytest.raises(ValueError, match="Places365 has no version 'full': ask for standard or challenge"):
        find_places365(copy.root, version='full')
    with pytest.raises(ValueError, match="Places365 has no size '512': ask for 256 or large"):
        find_places365(copy.root, size='512')
    copy.official()
    with pytest.raises(ValueError, match="no split 'test' with classes: ask for train or val"):
        read_split(find_places365(copy.root), 'test')


# what is no Places365

def test_other_folders_are_none(copy, tmp_path):
    assert find_places365(tmp_path / 'nowhere') is None
    copy.root.mkdir()
    assert find_places365(copy.root) is None
    assert find_places365(copy.jpeg) is None
    (copy.root / 'categories_places365.txt').write_text(OFFICIAL)
    (copy.root / 'data_256').mkdir()
    assert find_places365(copy.root) is None
    for split in ('train', 'val'):
        copy.easy(split, TRAIN[:100])  # scenes of the same names, as in other data sets
    assert find_places365(copy.root) is None
    assert find_places365(copy.root, version='challenge', size='large') is None


def test_a_data_set_beside_which_places365_lies(copy):
    copy.put('train/cat/1.jpg')
    inner = Copy(copy.root / 'more', copy.jpeg).official()
    assert find_places365(copy.root) is None
    assert find_places365(inner.root) is not None
    shutil.rmtree(copy.root / 'train')
    assert find_places365(copy.root).root == str(inner.root)


# what is refused

TREES = {
    'nested': (Copy.nested, 'train/z/zen_garden', 'train/y/youth_hostel', 'train/z/zoo', 'z/zoo'),
    'easy': (Copy.easy, 'train/zen_garden', 'train/youth_hostel', 'train/zoo', 'zoo'),
}


@pytest.mark.parametrize('lay, last, before_last, extra, name', TREES.values(), ids=TREES.keys())
def test_class_folders_that_are_not_the_365(lay, last, before_last, extra, name, copy):
    lay(copy, 'train')
    lay(copy, 'val', VAL)
    (copy.root / last / '00000001.jpg').rename(copy.root / 'kept.jpg')
    words = f'1 of the 365 classes have no images in {copy.root}/train, such as zen_garden: unpack the archive again.'
    assert refusal(copy, 'train') == words
    (copy.root / last).rmdir()
    assert refusal(copy, 'train') == words
    shutil.rmtree(copy.root / before_last)
    assert refusal(copy, 'train').startswith('2 of the 365 classes have no images')
    copy.put(f'{before_last}/1.jpg')
    copy.put(f'{last}/1.jpg')
    copy.put(f'{extra}/1.jpg')
    assert refusal(copy, 'train').startswith(
        f'1 of the 366 classes in {copy.root}/train are not among the 365 known ones, such as {name}:')
    shutil.rmtree(copy.root / extra)
    assert len(read_split(find_places365(copy.root), 'train')) == 365
    copy.put(f'{extra.replace("train", "val")}/1.jpg')
    assert refusal(copy, 'val').startswith(
        f'1 of the {len(VAL) + 1} classes in {copy.root}/val are not among the 365 known ones, such as {name}:')


def test_images_outside_the_class_folders(copy):
    copy.nested('train')
    copy.put('train/a/1.jpg')
    assert refusal(copy, 'train').startswith(
        f'1 of the 366 classes in {copy.root}/train are not among the 365 known ones, such as a:')


def test_flat_images_without_their_list(copy):
    copy.nested('data_256').flat('val_256')
    assert refusal(copy, 'val') == (
        f'places365_val.txt is missing: {copy.root}/val_256 has no class folders, so this list alone tells the '
        f'classes; put it into {copy.root}.')
    copy.val_list()
    assert len(read_split(find_places365(copy.root), 'val')) == len(VAL)


def test_unpacked_in_part(copy):
    copy.train_list().val_list()
    assert refusal(copy, 'train') == (
        f'{copy.root} has no folder data_256 or data_large, whose images places365_train_standard.txt lists: '
        f'unpack the archive of the train images there.')
    assert 'has no folder val_256 or val_large, whose images places365_val.txt lists: unpack' in refusal(copy, 'val')
    copy.flat('val_large')
    assert len(read_split(find_places365(copy.root), 'val')) == len(VAL)
    assert 'has no folder data_large, whose images' in refusal(copy, 'train')
    copy.nested('data_256')
    assert (
        f'{copy.root} has no folder val_256, whose images places365_val.txt lists, but val_large: unpack'
    ) in refusal(copy, 'val')
    os.rename(copy.root / 'data_256', copy.root / 'data_large_standard')
    assert len(read_split(find_places365(copy.root), 'train')) == 365


def test_no_validation_images_at_all(copy):
    copy.easy('places365_standard/train')
    assert refusal(copy, 'val') == (
        f'{copy.root}/places365_standard has no folder val: unpack the archive of the val images there.')


def test_list_that_names_missing_files(copy):
    copy.official()
    for category in CATEGORIES[3:8]:
        (copy.root / 'data_256' / category[0] / category / '00000001.jpg').unlink()
    assert refusal(copy, 'train') == (
        f'5 of the 365 images that {copy.root}/places365_train_standard.txt lists are not in {copy.root}/data_256, '
        f'such as a/alcove/00000001.jpg, a/alley/00000001.jpg, a/amphitheater/00000001.jpg, ...: unpack the archive '
        f'again, or strike them off the list.')
    (copy.root / 'val_256' / VAL[0][1]).unlink()
    assert refusal(copy, 'val').startswith(
        f'1 of the {len(VAL)} images that {copy.root}/places365_val.txt lists are not in {copy.root}/val_256, such as '
        f'{VAL[0][1]}:')


@pytest.mark.parametrize('label', [365, -1])
def test_list_with_another_label(label, copy):
    copy.official()
    for file, split in (('places365_train_standard.txt', 'train'), ('places365_val.txt', 'val')):
        with open(copy.root / file, 'a') as f:
            f.write(f'x.jpg {label}\n')
        n = 366 if split == 'train' else len(VAL) + 1
        assert refusal(copy, split) == (
            f"1 of the {n} lines of {copy.root}/{file} have a label outside 0 to 364: line {n} 'x.jpg {label}'")


def test_list_with_the_classes_in_another_order(copy):
    copy.official()
    file = copy.root / 'places365_train_standard.txt'
    lines = file.read_text().splitlines()
    lines[:2] = ['/a/airfield/00000001.jpg 1', '/a/airplane_cabin/00000001.jpg 0']
    copy.write(file.name, lines)
    assert refusal(copy, 'train') == (
        f'{file} gives 2 of its 365 images another class than the folder that they are in, such as '
        f'a/airfield/00000001.jpg 1, a/airplane_cabin/00000001.jpg 0: use the official list.')


def test_list_without_a_class(copy):
    copy.official()
    file = copy.root / 'places365_train_standard.txt'
    copy.write(file.name, file.read_text().splitlines()[2:])
    assert refusal(copy, 'train') == (
        f'2 of the 365 classes have no images in {file}, such as airfield, airplane_cabin: unpack the archive again.')


@pytest.mark.slow('text')
@pytest.mark.parametrize('text, words', [
    (OFFICIAL.replace('/a/alley 4', '/a/alley 5'), "it has 365 lines, 1 of the first 365 differ, such as '/a/alley 5'"),
    (OFFICIAL.replace('zen_garden', 'zen garden'), 'it has 365 lines, 1 of the first 365 differ'),
    (OFFICIAL.replace('/z/zen_garden 364\n', ''), 'it has 364 lines, 0 of the first 364 differ: put'),
    (OFFICIAL + '/z/zoo 365\n', 'it has 366 lines, 0 of the first 365 differ: put'),
    (OFFICIAL.replace('/a/airfield 0\n', ''), "it has 364 lines, 364 of the first 364 differ, such as '/a/airplane_"),
    ('', 'it has 0 lines'),
])
def test_other_categories_are_refused(text, words, copy):
    copy.official()
    file = copy.root / 'categories_places365.txt'
    file.write_text(text)
    for split in ('train', 'val'):
        message = refusal(copy, split)
        assert message.startswith(f'{file} is not the official list of the 365 categories: {words}')
    file.write_text(OFFICIAL.removesuffix('\n').replace('\n', '\r\n'), newline='')
    assert len(read_split(find_places365(copy.root), 'train')) == 365


def test_odd_folders_and_names(tmp_path, jpeg):
    copy = Copy(tmp_path / 'mes données 365', jpeg).official()
    copy.put('val_256/@eaDir/thumbnail.jpg')  # beside the images, as some disk stations leave it
    copy.put('data_256/a/alley/une allée 2.jpg')
    with open(copy.root / 'places365_train_standard.txt', 'a') as f:
        f.write('/a/alley/une allée 2.jpg 4\n')
    _, train, val = copy.read()
    assert train.path(365) == f'{copy.root}/data_256/a/alley/une allée 2.jpg' and train.target(365) == 4
    assert content(val) == sorted(VAL)
