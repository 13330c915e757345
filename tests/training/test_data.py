"""The data of a run: whatever lies in the folder is found, read by the right classes, and told."""
import json
import os
import re
import shutil
import tarfile

import pytest
import timm
import torch
import yaml
from timm.data import AugMixDataset, create_loader
from timm.data.distributed_sampler import RepeatAugSampler

import train_focus
from conftest import TINY, TRAIN, equal, evaluate
from timm_focus import export_backbone
from timm_focus.data import create_dataset, read_list
from timm_focus.data.places365 import CATEGORIES
from timm_focus.training import build_parser, parse_args
from timm_focus.data.readers import pick

pytestmark = pytest.mark.usefixtures('quietly')
NESTED = [f'{name[0]}/{name}' for name in CATEGORIES]
EASY = [name.replace('/', '-') for name in CATEGORIES]


@pytest.fixture(scope='session')
def places(tmp_path_factory, photo):
    """Each layout of Places365 with the same images: two to train on and one to validate on a category."""
    base = tmp_path_factory.mktemp('places')
    pictures = []
    for i in range(3):
        picture = base / f'{i}.jpg'
        photo.crop((60 * i, 90 * i, 60 * i + 240, 90 * i + 240)).resize((16, 16)).save(picture)
        pictures.append(picture)

    def put(i, *path):
        path = base.joinpath(*path)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(pictures[i], path)

    train, val = [], []
    for k, (nested, easy) in enumerate(zip(NESTED, EASY)):
        for i in range(2):
            file = f'0000000{i + 1}.jpg'
            put((k + i) % 3, 'official/data_256', nested, file)
            put((k + i) % 3, 'torchvision/data_256_standard', nested, file)
            put((k + i) % 3, 'nested/train', nested, file)
            put((k + i) % 3, 'easy/places365_standard/train', easy, file)
            train.append(f'/{nested}/{file} {k}\n')
        name = f'Places365_val_{k + 1:08}.jpg'
        for flat in ('official', 'torchvision'):
            put((k + 2) % 3, flat, 'val_256', name)
        put((k + 2) % 3, 'nested/val', nested, name)
        put((k + 2) % 3, 'easy/places365_standard/val', easy, name)
        val.append(f'{name} {k}\n')
    for flat in ('official', 'torchvision'):
        (base / flat / 'places365_train_standard.txt').write_text(''.join(train))
        (base / flat / 'places365_val.txt').write_text(''.join(val))
        (base / flat / 'categories_places365.txt').write_text(''.join(f'/{n} {k}\n' for k, n in enumerate(NESTED)))
    return base


RUN = '-b 16 --img-size 32 --workers 0 --lr 0.02'


@pytest.mark.slow
def test_each_layout_trains_alike(train, places):
    """The same images by the same indices: the same weights and the same accuracy, to the bit."""
    first = None
    for layout, words in (('official', 'official lists'), ('torchvision', 'official lists'),
                          ('nested', 'nested tree'), ('easy', 'easy format')):
        run = train(RUN, layout, model=TINY, data=places / layout)
        assert re.search(f'Training images: Places365 .*{words}.*official class indices', run.err)
        assert '730 training images, 365 validation images, 365 classes' in run.err
        assert (run.folder / 'classes.txt').read_text().split() == list(CATEGORIES)
        first = first or run
        assert run.rows == first.rows and equal(run.weights(), first.weights())
        assert run.checkpoint()['args'].label_names == list(CATEGORIES)


def test_a_flag_chooses_among_versions(refusal, places):
    data = places / 'official'
    assert 'has no Places365 challenge, but standard, 256 px' in refusal('--places-version challenge', data=data)
    assert re.search('has no Places365 large', refusal('--places-size large', data=data))
    assert 'invalid choice' in refusal('--places-version extra', data=data)
    assert 'There is no Places365 in' in refusal('--dataset places365')
    assert 'There is no Places365 in' in refusal('--places-size 256')


def test_a_damaged_copy_is_one_line(refusal, places, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(places / 'easy', copy, copy_function=os.link)
    standard = copy / 'places365_standard'
    shutil.rmtree(standard / 'train/zen_garden')
    assert re.search('1 of the 365 classes have no images in .*zen_garden.*--dataset folder', refusal(data=copy))
    (standard / 'train/zen_garden').mkdir()
    os.link(places / '0.jpg', standard / 'train/zen_garden/1.jpg')
    (standard / 'val/atlantis').mkdir()
    os.link(places / '0.jpg', standard / 'val/atlantis/1.jpg')
    assert re.search('1 of the 366 classes .*atlantis', refusal(data=copy))
    lists = tmp_path / 'lists'
    shutil.copytree(places / 'official', lists, copy_function=os.link)
    (lists / 'data_256/z/zen_garden/00000002.jpg').unlink()
    assert re.search('1 of the 730 images that .*standard.txt lists .*zen_garden/00000002.jpg', refusal(data=lists))


@pytest.mark.slow
def test_plain_folders_of_places_can_be_asked_for(train, places, tmp_path):
    copy = tmp_path / 'copy'
    shutil.copytree(places / 'easy/places365_standard', copy, copy_function=os.link)
    for split in ('train', 'val'):
        shutil.rmtree(copy / split / 'airfield')
    for name in ('folder', 'ImageFolder'):
        assert '364 classes' in train(f'{RUN} --dataset {name} --dry-run', name, model=TINY, data=copy).err


def test_a_class_folder_without_images_is_one_line(refusal, image_folder):
    (image_folder / 'train/empty').mkdir()
    assert re.search('1 of the class folders in .*train have no images: empty', refusal())
    (image_folder / 'train/empty').rename(image_folder / 'train/.hidden')
    (image_folder / 'val/.hidden').mkdir()
    create_dataset('', image_folder, 'train')


# part of the images

def test_a_subset_is_balanced_kept_and_usable(train, image_folder, tmp_path):
    run = train('--images-per-class 5 --subset-seed 3 -b 5', 'picked', model=TINY)
    assert '10 training images, 10 validation images' in run.err and '5 of each class (seed 3)' in run.err
    listed = read_list(run.folder / 'train.txt', image_folder / 'train', class_names=['left', 'right'])
    assert listed.counts().tolist() == [5, 5]
    again = train(f'--train-list {run.folder}/train.txt -b 5', 'listed', model=TINY)
    assert equal(run.weights(), again.weights())
    assert (again.folder / 'train.txt').read_text() == (run.folder / 'train.txt').read_text()
    other = train('--images-per-class 5 --subset-seed 4 -b 5', 'other', model=TINY)
    assert (other.folder / 'train.txt').read_text() != (run.folder / 'train.txt').read_text()


def test_subsets_that_cannot_be_are_one_line(refusal, tmp_path):
    assert re.search('2 of the 2 classes have fewer than 13 images: left .12., right .12.',
                     refusal('--images-per-class 13'))
    assert '--images-per-class is 0' in refusal('--images-per-class 0')
    (tmp_path / 'list.txt').write_text('left/0.jpg 0\nleft/99.jpg 0\n')
    assert re.search('lists 1 images of 2 that are not in .*left/99.jpg', refusal(f'--train-list {tmp_path}/list.txt'))
    (tmp_path / 'list.txt').write_text('left/0.jpg 2\n')
    assert re.search('1 of the 1 lines of .* have a label outside 0 to 1', refusal(f'--train-list {tmp_path}/list.txt'))
    assert 'No such file' in refusal('--train-list nowhere.txt')


def test_a_subset_of_a_tar_file(train, image_folder, refusal):
    """timm's reader, by timm's split names."""
    for split in ('train', 'val'):
        with tarfile.open(image_folder / f'{split}.tar', 'w') as tar:
            tar.add(image_folder / split, arcname='.')
    flags = '--train-split train.tar --val-split val.tar'
    whole = train(flags, 'whole', model=TINY)
    assert '24 training images, 10 validation images, 2 classes' in whole.err
    run = train(f'{flags} --images-per-class 4 -b 4', 'picked', model=TINY)
    assert '8 training images, 10 validation images' in run.err
    labels = [line.split()[1] for line in (run.folder / 'train.txt').read_text().splitlines()]
    assert sorted(labels) == ['0'] * 4 + ['1'] * 4
    assert '--places-size is of folders' in refusal(f'{flags} --places-size 256')


def test_shards_are_found_by_their_info(train, image_folder, tmp_path, refusal):
    import webdataset
    shards, info = tmp_path / 'shards', dict(name='scenes', num_classes=2, splits={})
    shards.mkdir()
    for split, name in (('train', 'train'), ('val', 'validation')):
        files = sorted(image_folder.glob(f'{split}/*/*.jpg'))
        with webdataset.ShardWriter(f'{shards}/{split}-%04d.tar', maxcount=8, verbose=0) as writer:
            for i, file in enumerate(files):
                label = ['left', 'right'].index(file.parent.name)
                writer.write({'__key__': f'{i:06}', ('jpg', 'jpeg')[i % 2]: file.read_bytes(), 'cls': label})
        names = sorted(p.name for p in shards.glob(f'{split}-*.tar'))
        info['splits'][name] = dict(
            name=name, num_samples=len(files), filenames=names,
            shard_lengths=[min(8, len(files) - 8 * k) for k in range(len(names))])
    (shards / '_info.json').write_text(json.dumps(info))
    run = train('-b 4', 'shards', model=TINY, data=shards)
    assert '24 training images, 10 validation images, 2 classes' in run.err and 'shuffles by itself' in run.err
    model = timm.create_model(TINY, num_classes=2)
    model.load_state_dict(run.weights())
    assert evaluate(model, image_folder)[1] == run.column('eval_top1')[0]
    assert '--images-per-class is of images with numbers' in refusal('--images-per-class 2', data=shards, model=TINY)
    del info['num_classes']
    (shards / '_info.json').write_text(json.dumps(info))
    run = train('-b 4', 'untold', model=TINY, data=shards)
    assert "does not tell how many classes it has, so they are the model's: give --num-classes" in run.err
    assert len(run.weights()['fc.bias']) == 1000


def test_a_data_set_of_torchvision_knows_its_classes(train):
    run = train('--dataset torch/image_folder', model=TINY)
    assert '2 classes' in run.err and len(run.weights()['fc.bias']) == 2


def test_a_pick_is_balanced():
    targets = [i % 3 for i in range(60)]
    picked = pick(targets, 4, 0)
    assert sorted(targets[i] for i in picked) == [0] * 4 + [1] * 4 + [2] * 4
    assert picked == sorted(set(picked)) == pick(targets, 4, 0) != pick(targets, 4, 1)
    with pytest.raises(ValueError, match='fewer than 21'):
        pick(targets, 21, 0)


# channels

@pytest.mark.parametrize('flags, channels', [
    ('--in-chans 1 --aa rand-m9-mstd0.5 --color-jitter 0.4', 1),
    ('--input-size 1 32 32 --no-prefetcher --aa original', 1),
    ('--model-kwargs in_chans=1 --aa augmix-m3-w2 --aug-splits 2', 1),
    ('--in-chans 4 --input-img-mode RGBA --no-prefetcher', 4),
    ('--in-chans 4 --input-img-mode CMYK', 4)])
def test_statistics_follow_the_channels(flags, channels, train):
    run = train(flags, model='test_resnet')
    assert run.weights()['conv1.0.weight'].shape[1] == channels
    assert f'input_size ({channels}, 32, 32)' in run.err
    numbers = re.search(r'mean \(([^)]*)\)', run.err)[1].strip(',').split(',')
    assert len(numbers) == channels and {float(n) for n in numbers} == {0.5}


def test_channels_that_files_do_not_have_are_one_line(refusal):
    assert re.search('takes images of 4 channels, where files give 1 .L. or 3 .RGB.: ask for a mode of 4 channels, '
                     'such as RGBA or CMYK, by --input-img-mode', refusal('--in-chans 4', model=TINY))
    assert re.search('takes images of 5 channels, .*: take a model of 1 to 4', refusal('--in-chans 5', model=TINY))
    assert 'takes images of 3 channels, but mode L has 1' in refusal('--input-img-mode L', model=TINY)
    assert 'Pillow knows no image mode BGR' in refusal('--input-img-mode BGR', model=TINY)


# images that cannot be read

def damage(path):
    path.write_bytes(path.read_bytes()[:300])


def test_unreadable_images_are_counted_named_and_skipped(train, image_folder):
    damage(image_folder / 'train/left/3.jpg')
    run = train('--max-bad-images 0.05 --epochs 3', model=TINY)
    assert run.err.count('Skipped') == 1 and 'train/left/3.jpg, which cannot be read' in run.err
    assert len(run.rows) == 3


@pytest.mark.slow
def test_too_many_unreadable_images_end_the_run(fork, settings, image_folder, tmp_path):
    damage(image_folder / 'val/right/1.jpg')
    (image_folder / 'val/left/2.jpg').write_bytes(b'')
    done = fork(TRAIN, *settings('-j 2 --epochs 3 --model-ema -vb 2', model=TINY))
    assert done.returncode == 2
    assert re.search(r'error: [12] of the 10 images in .*/val cannot be read, such as .*(left/2|right/1)\.jpg, where 0 '
                     r'may be: repair .* --max-bad-images', done.stderr.splitlines()[-1])
    assert list((tmp_path / 'out/run').glob('recovery-*')), 'what was trained is kept'


@pytest.mark.slow
def test_a_folder_of_broken_images_is_told(image_folder):
    for path in image_folder.glob('val/*/*.jpg'):
        path.write_bytes(b'')
    dataset = create_dataset('', image_folder, 'val')
    with pytest.raises(OSError, match='Not one of the 10 images'):
        dataset[3]


# with timm's machinery

def test_other_scripts_and_timms_loaders_take_the_data_sets(places, image_folder):
    dataset = create_dataset('places365', places / 'nested', 'val')
    assert len(dataset) == 365 and dataset.reader.class_to_idx['arena/hockey'] == CATEGORIES.index('arena/hockey')
    loader = create_loader(dataset, input_size=(3, 32, 32), batch_size=100, num_workers=2, device=torch.device('cpu'))
    targets = torch.cat([y for _, y in loader])
    assert torch.equal(targets, torch.arange(365))
    assert dataset.filename(3).startswith('a/alcove/Places365_val_')
    assert dataset.filenames(basename=True)[0] == 'Places365_val_00000001.jpg'
    train = AugMixDataset(create_dataset('', image_folder, 'train'), num_splits=2)
    loader = create_loader(
        train, input_size=(3, 32, 32), batch_size=4, is_training=True, num_aug_splits=2, auto_augment='augmix-m3-w2',
        num_workers=0, device=torch.device('cpu'))
    x, y = next(iter(loader))
    assert x.shape == (8, 3, 32, 32) and torch.equal(y[:4], y[4:])
    sampler = RepeatAugSampler(train, num_replicas=2, rank=0, num_repeats=3)
    assert len(list(sampler)) == len(sampler)
    plain = timm.data.create_dataset('', root=str(image_folder), split='train')
    ours = create_dataset('', image_folder, 'train')
    assert [ours.filename(i) for i in range(24)] == [plain.filename(i) for i in range(24)]
    assert [plain.reader[i][1] for i in range(24)] == ours.reader.targets.tolist()


def test_the_model_carries_labels_and_evaluation(image_folder, settings):
    args = parse_args(build_parser(), settings('--crop-pct 0.9'))[0].completed(prefetcher=True, distributed=False)
    args, *_ = train_focus.create_datasets(args)
    args, model = train_focus.build_model(args)
    config = timm.data.resolve_data_config(vars(args), model=model)
    train_focus.note_data(model, args, config)
    cfg = model.backbone.pretrained_cfg
    assert cfg['label_names'] == ['left', 'right'] and cfg['crop_pct'] == 0.9 and cfg['input_size'] == (3, 32, 32)
    plain = export_backbone(model)
    assert plain.pretrained_cfg['label_names'] == ['left', 'right']
    assert plain.pretrained_cfg['interpolation'] == 'bilinear'


def test_there_is_one_evaluation_transform(image_folder, settings, photo):
    """Of validation here, of whoever loads the model, and of the paper."""
    args = parse_args(build_parser(), settings('--no-prefetcher'))[0]
    args = args.completed(prefetcher=False, distributed=False, world_size=1, rank=0)
    args, *datasets = train_focus.create_datasets(args)
    args, model = train_focus.build_model(args)
    config = timm.data.resolve_data_config(vars(args), model=model)
    train_focus.note_data(model, args, config)
    loader = train_focus.create_loaders(args, *datasets, config, torch.device('cpu'))[1]
    theirs = timm.data.resolve_model_data_config(export_backbone(model))
    x = loader.dataset.transform(photo)
    assert torch.equal(x, timm.data.create_transform(**theirs)(photo))
    papers = timm.data.create_transform(
        32, mean=config['mean'], std=config['std'], crop_pct=7 / 8, interpolation='bilinear')
    assert torch.equal(x, papers(photo))


def test_args_yaml_names_the_data_again(train, tmp_path):
    run = train('--images-per-class 5 -b 5', model=TINY)
    written = yaml.safe_load((run.folder / 'args.yaml').read_text())
    assert written['images_per_class'] == 5 and 'label_names' not in written
