"""The same images in every shape that data comes in: the same numbers, the same pixels, the same classes."""
import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from timm_focus.data import create_dataset, open_images
from timm_focus.data.libraries import saved_as
from timm_focus.data.tars import class_info, scan_tar

NAMES = ['left', 'right']


def add(tar, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def files_of(root, split):
    return [(f'{path.parent.name}/{path.name}', path.read_bytes(), NAMES.index(path.parent.name))
            for path in sorted(root.glob(f'{split}/*/*.jpg'))]


@pytest.fixture
def shards(image_folder, tmp_path):
    """Shards of WebDataset, without its package, of eight images each."""
    folder = tmp_path / 'shards'
    folder.mkdir()
    info = dict(num_classes=2, class_names=NAMES, splits={})
    for split, name in (('train', 'train'), ('val', 'validation')):
        files = files_of(image_folder, split)
        parts = [files[i:i + 8] for i in range(0, len(files), 8)]
        for k, part in enumerate(parts):
            with tarfile.open(folder / f'{split}-{k:04}.tar', 'w') as tar:
                for i, (_, data, label) in enumerate(part):
                    add(tar, f'{8 * k + i:06}.jpg', data)
                    add(tar, f'{8 * k + i:06}.cls', str(label).encode())
                    add(tar, f'{8 * k + i:06}.json', json.dumps(dict(scene=1 - label)).encode())
        info['splits'][name] = dict(
            name=name, num_samples=len(files), filenames=[f'{split}-{k:04}.tar' for k in range(len(parts))],
            shard_lengths=list(map(len, parts)))
    (folder / '_info.json').write_text(json.dumps(info))
    return folder


@pytest.fixture
def saved(image_folder, tmp_path):
    """Folders of parquet files and of save_to_disk, both with a train split alone."""
    datasets = pytest.importorskip('datasets', reason="needs Hugging Face's datasets")
    datasets.disable_progress_bars()
    files = files_of(image_folder, 'val')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=NAMES))
    dataset = datasets.Dataset.from_dict(
        dict(image=[dict(bytes=data, path=name) for name, data, _ in files], label=[k for *_, k in files]),
        features=features)
    (tmp_path / 'parquet/data').mkdir(parents=True)
    dataset.to_parquet(tmp_path / 'parquet/data/train-00000-of-00001.parquet')
    datasets.DatasetDict(train=dataset).save_to_disk(tmp_path / 'disk')
    dataset.save_to_disk(tmp_path / 'one')
    return dict(root=str(tmp_path / 'cache'), parquet=str(tmp_path / 'parquet'), disk=str(tmp_path / 'disk'),
                one=str(tmp_path / 'one'))


def same(dataset, image_folder):
    """Whether a data set has the validation images of the folder, and which names it gives the classes."""
    expected = create_dataset('', image_folder, 'validation')
    assert dataset.reader.targets.tolist() == expected.reader.targets.tolist()
    for i in range(len(expected)):
        (x, target), (y, other) = dataset[i], expected[i]
        assert np.array_equal(x, y) and target == other and x.mode == 'RGB'
    assert len({dataset.filename(i) for i in range(len(dataset))}) == len(dataset), 'each has a name of its own'
    dataset.transform = lambda image: torch.from_numpy(np.array(image))
    loaded = torch.cat([x for x, _ in DataLoader(dataset, 3, num_workers=2)])
    assert np.array_equal(loaded[-1], expected[len(expected) - 1][0]), 'read by several processes, too'
    return list(dataset.reader.class_to_idx)


def tar_of(folder, path, prefix=''):
    with tarfile.open(path, 'w') as tar:
        tar.add(folder, arcname=prefix or '.')
    return path


def test_archives(image_folder, tmp_path):
    apart = tmp_path / 'apart'
    apart.mkdir()
    for split in ('train', 'val'):
        tar_of(image_folder / split, apart / f'{split}.tar')
    for dataset in (
            open_images(apart), create_dataset('', apart, 'validation'), create_dataset('', apart, 'val.tar'),
            open_images(apart / 'val.tar'), open_images(tar_of(image_folder, tmp_path / 'all.tar')),
            create_dataset('', tar_of(image_folder, tmp_path / 'scenes.tar', 'scenes'), 'validation')):
        assert same(dataset, image_folder) == NAMES
    assert len(create_dataset('', tmp_path / 'scenes.tar', 'train')) == 24
    with pytest.raises(ValueError, match=r'val\.tar has no folder train: put the images into'):
        create_dataset('', apart / 'val.tar', 'train')
    with pytest.raises(ValueError, match=r'has no folder test, but archives, such as train\.tar, val\.tar: name one'):
        create_dataset('', apart, 'test')


def test_an_archive_of_odd_members(image_folder, tmp_path, caplog):
    caplog.set_level('INFO')
    data = (image_folder / 'val/left/0.jpg').read_bytes()
    with tarfile.open(tmp_path / 'odd.tar', 'w') as tar:
        for name in ('a/1.jpg', 'a/._1.jpg', '__MACOSX/a/1.jpg', 'b/2.JFIF', 'b/notes.txt', 'a/.cache/1.jpg'):
            add(tar, name, data)
        link = tarfile.TarInfo('b/3.jpg')
        link.type, link.linkname = tarfile.LNKTYPE, 'a/1.jpg'
        tar.addfile(link)
        pipe = tarfile.TarInfo('b/4.jpg')
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(pipe)
        inner = io.BytesIO()
        with tarfile.open(fileobj=inner, mode='w') as nested:
            add(nested, '5.jpg', data)
        add(tar, 'c.tar', inner.getvalue())
        add(tar, 'a/1.jpg', (image_folder / 'val/right/0.jpg').read_bytes())  # as an update is appended
    dataset = open_images(tmp_path / 'odd.tar')
    assert dataset.filenames() == ['a/1.jpg', 'b/2.JFIF', 'b/3.jpg', 'c/5.jpg']
    assert list(dataset.reader.class_to_idx) == ['a', 'b', 'c']
    right = create_dataset('', image_folder, 'val')[5][0]
    assert np.array_equal(dataset[0][0], right) and np.array_equal(dataset[3][0], dataset[1][0])
    assert caplog.messages == [
        f'Left out in {tmp_path}/odd.tar: 3 are hidden or left behind by programs, such as __MACOSX; 1 file has no '
        'ending of an image (.txt), such as b/notes.txt; 1 file with the ending of an image is no regular file, such '
        'as b/4.jpg.']


def test_an_archive_that_is_none(image_folder, tmp_path):
    whole = tar_of(image_folder / 'val', tmp_path / 'val.tar').read_bytes()
    (tmp_path / 'packed.tar').write_bytes(gzip.compress(whole))
    (tmp_path / 'text.tar').write_text('no archive')
    for name in ('packed', 'text'):
        with pytest.raises(ValueError, match=f'{name}.tar is no tar archive that can be read: it is compressed'):
            scan_tar(tmp_path / f'{name}.tar')
    dataset = open_images(tmp_path / 'val.tar')
    (tmp_path / 'val.tar').write_bytes(whole[:3000])
    with pytest.raises(OSError, match='its archive is cut off'):
        dataset.read(len(dataset) - 1)


def test_shards(shards, image_folder):
    for dataset in (open_images(shards), open_images(shards, 'wds/any', 'validation'),
                    open_images(shards, 'wds/any', 'val-{0000..0001}.tar|10')):
        assert same(dataset, image_folder) == NAMES
    flipped = open_images(shards, target_key='scene')
    assert flipped.reader.targets.tolist() == [1] * 5 + [0] * 5
    with pytest.raises(ValueError, match='has no class depth in a .json beside it: --target-key'):
        open_images(shards, target_key='depth')
    with pytest.raises(ValueError, match='has train, validation, and no split test'):
        open_images(shards, 'wds/any', 'test')
    os.unlink(shards / 'val-0001.tar')
    with pytest.raises(ValueError, match='1 of the 2 shards of validation are not there: .*val-0001.tar'):
        open_images(shards)
    os.unlink(shards / '_info.json')
    with pytest.raises(ValueError, match='but archives, such as train-0000.tar.*give --dataset wds/NAME'):
        create_dataset('', shards, 'train')


@pytest.mark.parametrize('info, names, n', [
    (dict(num_classes=3), [], 3), (dict(class_names=['a', 'b']), ['a', 'b'], 2), ({}, [], None), (None, [], None),
    (dict(classes={'b': 1, 'a': 0}), ['a', 'b'], 2), (dict(classes=7), [], 7), ([], [], None),
    (dict(features=dict(label=dict(names=['x', 'y', 'z']))), ['x', 'y', 'z'], 3),
    (dict(features=dict(label=dict(class_label=dict(names={'1': 'b', '0': 'a'})))), ['a', 'b'], 2)])
def test_what_a_description_of_shards_says_of_classes(info, names, n):
    assert class_info(info) == (names, n)


@pytest.mark.slow
def test_data_sets_of_hugging_face(saved, image_folder):
    for name in ('parquet', 'disk', 'one'):
        dataset = open_images(saved['root'], f'hfds/{saved[name]}', 'train')
        assert same(dataset, image_folder) == NAMES
        assert dataset.filename(3) == '00000003-3.jpg'
        part = create_dataset(f'hfds/{saved[name]}', saved['root'], 'train[30%:]', images_per_class=2)
        assert part.reader.targets.tolist() == [0, 0, 1, 1] and part[0][1] == 0
        with pytest.raises(ValueError, match='have fewer than 2 images'):
            create_dataset(f'hfds/{saved[name]}', saved['root'], 'train[80%:]', images_per_class=2)


def test_what_a_data_set_of_hugging_face_lacks_is_a_sentence(saved, tmp_path):
    slices = r"such as --train-split 'train\[:80%\]' and --val-split 'train\[80%:\]'"
    with pytest.raises(ValueError, match=f'has train, and no split validation: .*{slices}'):
        create_dataset(f'hfds/{saved["parquet"]}', saved['root'], 'validation')
    with pytest.raises(ValueError, match='has no column picture of images, but image, label: name it by --input-key'):
        create_dataset(f'hfds/{saved["disk"]}', saved['root'], 'train', input_key='picture')
    with pytest.raises(ValueError, match='cannot be loaded'):
        create_dataset(f'hfds/{tmp_path}/nowhere', saved['root'], 'train')


def test_folders_of_hugging_face_are_named_for_what_they_are(saved):
    for name, what in (('parquet', 'parquet files'), ('disk', 'a data set that save_to_disk wrote'),
                       ('one', 'a data set that save_to_disk wrote')):
        with pytest.raises(ValueError, match=f'holds {what}: give --dataset hfds/.*{name} in its place'):
            open_images(saved[name])


@pytest.mark.parametrize('place, found', [
    ('.', True), ('data', True), ('train', True), ('default/train', True), ('a/b/c', False), ('.cache/train', False)])
def test_parquet_files_are_found_below_configurations_and_splits(place, found, tmp_path):
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    (tmp_path / place / 'train-00000-of-00001.parquet').touch()
    assert saved_as(str(tmp_path)) == ('parquet files' if found else '')


def test_data_sets_of_torchvision_know_their_classes(image_folder):
    dataset = open_images(image_folder, 'torch/image_folder')
    assert same(dataset, image_folder) == NAMES
    with pytest.raises(ValueError, match='torch/mnist cannot be read from'):
        open_images(image_folder, 'torch/mnist')


def test_streams_are_refused(image_folder):
    for name in ('hfids/user/name', 'tfds/imagenet'):
        with pytest.raises(ValueError, match='is a stream, whose images have no numbers'):
            open_images(image_folder, name)
    with pytest.raises(ValueError, match="There is no data set 'places' here"):
        open_images(image_folder, 'places')


def test_a_class_map_numbers_and_chooses(image_folder, tmp_path, caplog):
    (tmp_path / 'map.txt').write_text('up\nright\n')
    dataset = create_dataset('', image_folder, 'val', class_map=tmp_path / 'map.txt')
    assert dataset.reader.targets.tolist() == [1] * 5 and dataset.reader.class_to_idx == dict(up=0, right=1)
    assert '5 images are of classes that --class-map does not have, such as left/0.jpg' in caplog.text
    tar_of(image_folder / 'val', tmp_path / 'val.tar')
    other = create_dataset('', tmp_path, 'val.tar', class_map=tmp_path / 'map.txt')
    assert np.array_equal(other[0][0], dataset[0][0]) and other[0][1] == 1 and len(other) == 5
    (tmp_path / 'map.txt').write_text('up\n')
    with pytest.raises(ValueError, match='has none of the 2 classes of the data: left, right'):
        create_dataset('', image_folder, 'val', class_map=tmp_path / 'map.txt')
    with pytest.raises(ValueError, match='--class-map nowhere.txt cannot be read'):
        create_dataset('', image_folder, 'val', class_map='nowhere.txt')


def test_a_class_without_images_does_not_shift_the_others(image_folder, tmp_path):
    for path in (image_folder / 'val/left').iterdir():
        path.unlink()
    (image_folder / 'val/left').rmdir()
    tar_of(image_folder / 'val', tmp_path / 'val.tar')
    dataset = create_dataset('', tmp_path, 'val', class_names=NAMES)
    assert dataset.reader.targets.tolist() == [1] * 5
    with pytest.raises(ValueError, match='1 of the classes in .* are not among the 1 known ones, such as right'):
        create_dataset('', tmp_path, 'val', class_names=['left'])
