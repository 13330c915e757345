"""Batches that do not fit the data or the model are told before training."""
import math

import pytest
import timm
from conftest import TINY
from timm.task import ClassificationTask, LogitDistillationTask

from timm_focus.analysis import plain_model
from timm_focus.training import build_model, build_parser, parse_args
from timm_focus.training.batches import (
    advice_on_batches, check_sizes, check_smallest_batch, check_teacher_sizes)
from timm_focus.utils.errors import SettingsError

pytestmark = pytest.mark.usefixtures('quietly')


@pytest.mark.parametrize('n_images, batch, window, updates, left', [
    (360, 256, 1, 40, 104), (360, 360, 1, 40, 0), (100, 64, 4, 40, 36), (1000, 400, 1, 80, 200)])
def test_batches_too_large_for_the_data_are_told(n_images, batch, window, updates, left):
    text = advice_on_batches(n_images, n_images // batch, batch, 40, window)
    assert f'Batches of {batch} are few: 40 epochs make {updates} updates' in text
    assert (f'leave out {left} of the {n_images} training images' in text) == bool(left)
    better = int(text.split('--batch-size, ')[1].split()[0])
    assert n_images / 40 < better <= n_images / 10, 'ten batches an epoch or more'
    assert not advice_on_batches(n_images, n_images // better, better, 40, window)


@pytest.mark.parametrize('n_images, batch', [(360, 32), (24, 8), (5000, 256), (1_803_460, 256)])
def test_batches_that_fit_are_not_spoken_of(n_images, batch):
    assert advice_on_batches(n_images, n_images // batch, batch, 40) == ''


def sized(model, flags):
    """Check the sizes of a run; return the devices that its model is run on."""
    args = parse_args(build_parser(), ['d', '--model', model, *flags.split()])[0].completed(num_classes=3, rank=0)
    args, network = build_model(args)
    height, width = args.input_size[1:] if args.input_size else 2 * [args.img_size]
    runs = []
    plain_model(network).register_forward_pre_hook(lambda _, inputs: runs.append(inputs[0].device.type))
    check_sizes(network, args, (3, height, width))
    return runs


@pytest.mark.parametrize('model, flags, n', [
    (TINY, '--img-size 224', 1), (f'focus_{TINY}', '--input-size 3 48 96 --train-img-sizes 33 47 --focus-size 0.7', 5),
    ('test_vit', '--img-size 64 --method masksub', 1), (TINY, '--img-size 64 --method acol', 1),
    ('focus_test_vit', '--img-size 64 --model-kwargs dynamic_img_size=True --focus-size 0.6', 2)])
def test_sizes_that_a_model_takes_cost_no_computation(model, flags, n):
    runs = sized(model, flags)
    assert set(runs) == {'meta'} and len(runs) == n


@pytest.mark.parametrize('model, flags, sentence', [
    ('focus_dla46_c', '--img-size 70', r'focus_dla46_c cannot be run on images of 70 x 70 \(.*\): 64 x 64 works\.'),
    ('test_vit', '--input-size 3 64 70', r'test_vit cannot .* 64 x 70 \(.*\): 64 x 64 works\.'),
    ('vit_tiny_patch16_224', '--img-size 64 --train-img-sizes 64 96 --model-kwargs depth=1',
     r'vit_tiny_patch16_224 cannot .* 96 x 96 \(.*\): 64 x 64 works\.'),
    ('focus_dla46_c', '--img-size 96 --focus-size 0.73', '--focus-size 0.73 makes erased images that the model does '
     r'not take, so give more: It cannot .* 70 x 70 \(.*\): 64 x 64 works\.')])
def test_a_size_that_a_model_cannot_take_is_told_with_one_that_works(model, flags, sentence):
    with pytest.raises(SettingsError, match=f'^{sentence}$'):
        sized(model, flags)


def test_a_size_that_a_teacher_cannot_take_is_told():
    args = parse_args(build_parser(), ['d', '--model', TINY, '--kd-model-name', 'dla46_c'])[0]
    task = LogitDistillationTask(timm.create_model(TINY), teacher_model=timm.create_model('dla46_c'), verbose=False)
    check_teacher_sizes(task, args, (3, 64, 64))
    check_teacher_sizes(ClassificationTask(timm.create_model(TINY), verbose=False), args, (3, 64, 64))
    with pytest.raises(SettingsError, match=rf'^{TINY} cannot learn from --kd-model-name dla46_c: It cannot be run '
                                            r'on images of 70 x 70 \(.*\): 64 x 64 works\.$'):
        check_teacher_sizes(task, args.completed(train_img_sizes=[64, 70]), (3, 64, 64))


def trained(model, *flags, size=32):
    args = parse_args(build_parser(), ['d', '--model', model, *flags])[0].completed(distributed=False)
    check_smallest_batch(timm.create_model(model, num_classes=3), args, (3, size, size))


@pytest.mark.parametrize('model', [TINY, f'focus_{TINY}'])
def test_a_batch_of_one_image_is_refused_where_batch_norm_has_one_value(model):
    with pytest.raises(SettingsError, match=rf'BatchNorm in {model} .* 32 x 32.*--batch-size of 2'):
        trained(model, '-b', '1')
    trained(model, '-b', '2')
    trained(model, '-b', '1', size=64)
    sizes = ('--train-img-sizes', '64', '32', '--train-batch-sizes')
    trained(model, *sizes, '1', '2')
    with pytest.raises(SettingsError, match='32 x 32'):
        trained(model, *sizes, '4', '1')


@pytest.mark.parametrize('model', ['convnext_atto', 'focus_convnext_atto'])
def test_models_without_batch_norm_train_on_one_image(model):
    trained(model, '-b', '1')


def test_what_is_told_of_batches_and_classes(train, refusal, image_folder, tmp_path):
    """Before the first step of a run."""
    run = train('-b 16 --num-classes 1000', 'warned')
    before, _ = run.err.split('Train: 0')
    assert '1 epochs make 1 updates and leave out 8 of the 24 training images in each. Give a smaller' in before
    assert '--num-classes is 1000, but the data has 2 classes: 998 outputs learn nothing. Leave the flag out.' in before
    assert 'one image of 32 x 32' in refusal('-b 1', experiment='other')
    assert '64 x 64 works' in refusal('--img-size 70', experiment='other', model='test_vit')
    assert not (tmp_path / 'out/other').exists(), 'nothing is made of a run that is refused'
    for split in ('train', 'val'):
        (image_folder / split / 'right').rename(image_folder / f'{split}-right')
    assert 'There is one class, left, and a classifier' in refusal(experiment='other')
    assert 'There is one class, left, and a classifier' in refusal('--num-classes 5', experiment='other')


def test_a_small_share_of_a_small_batch_trains(train):
    """Two images where one gives BatchNorm nothing to normalise."""
    run = train('--focus-fraction 0.1 -b 8')
    assert math.isfinite(run.column('train_erased_loss')[0]) and run.column('train_erased_fraction')[0] > 0
