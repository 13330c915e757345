"""Whatever a checkpoint is like, its model is made as it was trained, or one sentence says what is in the way."""
import argparse
import json
import re

import pytest
import timm
import torch

import timm_focus
from conftest import equal
from timm_focus.data.places365 import CATEGORIES
from timm_focus.models.weights import argument_of, misfit, native_state, shapes_of, tensors_by
from timm_focus.release import save_for_hub
from timm_focus.runs import (
    class_names, load_model, load_run, model_arguments, parse_checkpoint, read_class_names, start_from)

NAME = 'test_resnet'  # the smallest of timm's


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def save(tmp_path):
    """`save(content)` is the path of a file of it."""
    def to(content, name='weights.pth'):
        torch.save(content, tmp_path / name)
        return str(tmp_path / name)
    return to


def make(name=NAME, **kwargs):
    return timm.create_model(name, **{'num_classes': 7, **kwargs})


def checkpoint(model, **kwargs):
    """As train_focus.py and timm's train.py write it."""
    found = dict(epoch=3, arch=NAME, state_dict=model.state_dict(), args=argparse.Namespace(num_classes=7), metric=5.)
    found.update(kwargs)
    return found


# which weights

@pytest.mark.parametrize('wrap', [
    lambda s: s,
    lambda s: {'model': s},
    lambda s: {'model_state_dict': s, 'optimizer': {}, 'epoch': 9},
    lambda s: {'state_dict': {f'module.{k}': v for k, v in s.items()}, 'best_prec1': torch.tensor(3.)},
    lambda s: {'state_dict': {f'module._orig_mod.{k}': v for k, v in s.items()}},
    lambda s: {'state_dict': {k: v * 0 for k, v in s.items()}, 'state_dict_ema': s},
    lambda s: {'model': {k: v * 0 for k, v in s.items()}, 'model_ema': s},
    lambda s: {k: v for k, v in s.items() if not k.endswith('num_batches_tracked')},
], ids=['bare', 'model', 'model_state_dict', 'module', 'compiled', 'ema', 'model_ema', 'old'])
def test_checkpoints_of_other_scripts_are_read(save, wrap):
    model = make()
    loaded = load_model(NAME, save(wrap(model.state_dict())))
    assert equal(loaded.model.state_dict(), model.state_dict()) and not loaded.model.training


def test_an_average_that_was_not_validated_does_not_count(save):
    model = make()
    zeros = {k: v * 0 for k, v in model.state_dict().items()}
    path = save(checkpoint(
        model, state_dict_ema=zeros, args=argparse.Namespace(num_classes=7, model_ema_force_cpu=True)))
    assert equal(load_model(checkpoint=path).model.state_dict(), model.state_dict())


@pytest.mark.slow('convnext')
@pytest.mark.parametrize('name, kwargs', [
    ('test_vit', {}), ('deit_tiny_distilled_patch16_224', dict(depth=1)), ('levit_128s', {}), ('convnext_atto', {}),
    ('test_resnet', dict(in_chans=1)), ('test_efficientnet', {}), ('test_vit3', {}),
])
def test_classes_and_channels_are_told_by_the_weights(name, kwargs):
    def create(**more):
        return make(name, **{**{k: v for k, v in kwargs.items() if k != 'in_chans'}, **more})

    state = make(name, **kwargs).state_dict()
    assert argument_of(create, 'num_classes', state) == 7
    assert argument_of(create, 'in_chans', state) == kwargs.get('in_chans', 3)
    assert argument_of(create, 'num_classes', {'none': torch.zeros(3)}) is None


def test_two_classifiers_that_differ_are_told():
    state = make('levit_128s').state_dict()
    heads = sorted(tensors_by(lambda **kw: make('levit_128s', **kw), 'num_classes'))
    state[heads[0]] = torch.zeros(9, *state[heads[0]].shape[1:])
    with pytest.raises(ValueError, match='num_classes differs in it: .*9 of .*7 of |num_classes differs in it: .*7 of'):
        argument_of(lambda **kw: make('levit_128s', **kw), 'num_classes', state)


def test_what_does_not_fit_is_counted():
    own = shapes_of(make)
    state = make().state_dict()
    assert misfit(own, state) == ''
    odd = {k: v for k, v in state.items() if k != 'conv1.0.weight'}
    odd['fc.weight'] = torch.zeros(())
    odd['strange'] = torch.zeros(1)
    assert misfit(own, odd) == (
        f'of {len(own)} tensors {len(own) - 2} fit; 1 are missing, such as conv1.0.weight; 1 are unknown, such as '
        f'strange; 1 have other shapes, such as fc.weight () for {own["fc.weight"]}')


def test_older_names_and_other_sizes_are_read(caplog):
    whole = timm.create_model('densenet121', num_classes=3)
    old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)\.', r'\1.\2.', k): v for k, v in whole.state_dict().items()
           if not k.endswith('num_batches_tracked')}
    found = native_state('densenet121', old, num_classes=3)
    assert all(torch.equal(found[k], v) for k, v in whole.state_dict().items())
    small = make('test_vit', img_size=64).state_dict()
    assert native_state('test_vit', small, num_classes=7, img_size=96)['pos_embed'].shape[1] == 37
    assert 'resized to fit test_vit, such as pos_embed' in caplog.text
    for name, state in ((NAME, small), ('test_vit', whole.state_dict()), ('dla34', small)):  # dla34: timm is not strict
        with pytest.raises(ValueError, match=r'of another architecture: of \d+ tensors \d+ fit; \d+ are missing'):
            native_state(name, state, num_classes=7)


@pytest.mark.parametrize('size', [dict(img_size=64), dict(input_size=[3, 64, 64]), dict(input_size=[3, 48, 96])])
@pytest.mark.parametrize('name, more', [
    ('test_vit', {}), ('vit_tiny_patch16_224', dict(depth=1, embed_dim=48)),
    ('swin_tiny_patch4_window7_224', dict(depths=[1, 1, 1, 1], embed_dim=24))])
def test_the_settings_of_a_run_build_its_model(save, name, more, size):
    settings = dict(num_classes=7, bn_eps=None, model_kwargs=more, **size)
    arguments = model_arguments(name, settings)
    model = timm.create_model(**arguments)
    loaded = load_model(checkpoint=save(checkpoint(model, arch=name, args=argparse.Namespace(**settings))))
    height, width = size.get('input_size', (3, 64, 64))[1:]
    assert loaded.data_config['input_size'] == (3, height, width)
    x = torch.randn(2, 3, height, width)
    assert torch.equal(loaded.model(x), model.eval()(x))


def test_what_training_set_of_norms_is_set_again(save):
    model = make('test_efficientnet', bn_eps=0.3)
    path = save(checkpoint(model, arch='test_efficientnet', args=argparse.Namespace(num_classes=7, bn_eps=0.3)))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(load_model(checkpoint=path).model(x), model.eval()(x))


# what is no checkpoint

SPARSE = torch.eye(3).to_sparse()


@pytest.mark.parametrize('change, words', [
    (dict(state_dict=[1, 2]), r'no weights: its state_dict is \[1, 2\]'),
    (dict(state_dict=None), 'no weights'),
    (dict(state_dict=5), 'its state_dict is 5'),
    (dict(state_dict={}), 'its state_dict is {}'),
    (dict(state_dict={1: torch.zeros(1)}), 'no weights by names: its state_dict has the key 1'),
    (dict(state_dict={'fc.weight': 3.}), 'fc.weight of its state_dict is 3.0'),
    (dict(state_dict={'fc.weight': SPARSE}), 'sparse weights, such as fc.weight'),
    (dict(state_dict={'fc.weight': torch.zeros(())}), 'of another architecture: of .* 1 have other shapes'),
    (dict(arch=5), 'is of the model 5, which is no name'),
    (dict(arch='resnet81'), 'timm knows no model resnet81. Did you mean'),
    (dict(task_state=5), 'a task_state that is 5'),
    (dict(task_state=dict(cam_head=1, erased_head=2)), 'its cam_head is 1'),
] + [(dict(args=argparse.Namespace(**{name: value})), rf'has the setting {name} .*, where .* belongs')
     for name, value in (
    ('label_names', 5), ('label_names', [1]), ('model_kwargs', [1]), ('num_classes', -1), ('num_classes', 'many'),
    ('in_chans', 0), ('img_size', 'large'), ('input_size', [3, 10 ** 6, 10 ** 6]), ('input_size', [3, 64]),
    ('img_size', 10 ** 6), ('input_size', [10 ** 9, 64, 64]), ('mean', 5), ('crop_pct', 'all'),
    ('interpolation', 7), ('gp', 3))] + [
    (dict(args=argparse.Namespace(**{'num_classes': 7, name: value})), words) for name, value, words in (
        ('interpolation', 'cubist', 'says of its images what cannot be done.*cubist'),
        ('pretrained_cfg_overlay', dict(input_size=[3, 10 ** 6, 10 ** 6]), 'has the setting input_size '),
        ('model_kwargs', dict(img_size=10 ** 6), 'has the setting img_size 1000000, where a size of at most'),
        ('model_kwargs', dict(nonsense=1), 'nonsense'), ('num_classes', 10 ** 12, 'of another architecture'))])
def test_a_checkpoint_of_the_wrong_shape_is_one_sentence(save, change, words):
    path = save(checkpoint(make(), **change))
    with pytest.raises(ValueError, match=words) as e:
        load_model(checkpoint=path)
    assert '\n' not in str(e.value) and NAME in str(e.value) + path + NAME


def test_a_state_dict_may_name_its_tensors_as_it_likes():
    state = dict(arch=torch.zeros(1), model=torch.ones(1))
    assert parse_checkpoint(state, 'x').state.keys() == state.keys()


# heads

@pytest.fixture
def focused():
    return timm.create_model(f'focus_{NAME}', num_classes=7, focus_width=12, focus_threshold=0.6).eval()


@pytest.fixture
def focus_checkpoint(focused, save):
    heads = {head: getattr(focused, head).state_dict() for head in ('cam_head', 'erased_head')}
    settings = argparse.Namespace(num_classes=7, focus_threshold=0.6, focus_width=12, label_names=list('abcdefg'))
    return save(checkpoint(focused.backbone, arch=f'focus_{NAME}', task_state=heads, args=settings))


def test_a_run_is_loaded_with_its_heads(focused, focus_checkpoint):
    model = load_run(focus_checkpoint)
    assert isinstance(model, timm_focus.FocusNet) and equal(model.state_dict(), focused.state_dict())
    assert model.threshold == 0.6 and model.pretrained_cfg['label_names'] == list('abcdefg')
    assert type(load_model(checkpoint=focus_checkpoint).model) is type(focused.backbone)


def test_timm_loads_the_heads_of_a_checkpoint(focused, focus_checkpoint, save, caplog):
    arguments = dict(num_classes=7, focus_width=12)
    model = timm.create_model(f'focus_{NAME}', checkpoint_path=focus_checkpoint, **arguments)
    assert equal(model.state_dict(), focused.state_dict()) and 'plain' not in caplog.text
    plain = timm.create_model(NAME, num_classes=7, checkpoint_path=focus_checkpoint)
    assert equal(plain.state_dict(), focused.backbone.state_dict())
    other = timm.create_model(f'focus_{NAME}', checkpoint_path=save(plain.state_dict(), 'plain.pth'), **arguments)
    assert equal(other.backbone.state_dict(), plain.state_dict()) and 'is of a plain model' in caplog.text
    with pytest.raises(ValueError, match='cam_head is of another model.*conv.weight'):
        timm.create_model(f'focus_{NAME}', num_classes=7, checkpoint_path=focus_checkpoint)
    with pytest.raises(ValueError, match='does not fit the model'):
        timm.create_model(f'focus_{NAME}', num_classes=8, checkpoint_path=focus_checkpoint)


def test_an_export_is_a_checkpoint(focused, tmp_path):
    folder = save_for_hub(focused, tmp_path / 'hub', license='mit', dataset='drawn', label_names=list('abcdefg'))
    for source in (str(folder), f'local-dir:{folder}'):
        model = load_run(source)
        assert equal(model.state_dict(), focused.state_dict()) and model.threshold == 0.6
        assert load_model(checkpoint=source).label_names == list('abcdefg')
    assert equal(load_model(f'local-dir:{folder}').model.state_dict(), focused.backbone.state_dict())
    weights = folder / 'model.safetensors'
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match='model.safetensors is damaged'):
        load_model(f'local-dir:{folder}')


@pytest.mark.parametrize('part, change', [
    ('pretrained_cfg', dict(input_size=[3, 10 ** 6, 10 ** 6])), ('pretrained_cfg', dict(input_size=[10 ** 9, 9, 9])),
    ('model_args', dict(img_size=10 ** 6))])
def test_an_export_of_images_that_fill_the_memory_is_one_sentence(tmp_path, part, change):
    folder = save_for_hub(make(), tmp_path / 'hub', license='mit', dataset='drawn')
    config = json.loads((folder / 'config.json').read_text())
    config[part] = {**(config.get(part) or {}), **change}
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r'config\.json has the setting (input|img)_size .*, where .* belongs'):
        load_model(f'local-dir:{folder}')


# starting from weights

def test_training_starts_from_weights(focused, focus_checkpoint, save):
    plain, path = make(), focus_checkpoint
    total = len(plain.state_dict())
    assert f'{total} of the {total} tensors of {NAME} are taken' in start_from(plain, path)
    assert equal(plain.state_dict(), focused.backbone.state_dict())
    other = timm.create_model(f'focus_{NAME}', num_classes=7, focus_width=12)
    assert start_from(other, path).endswith('and its heads.') and equal(other.state_dict(), focused.state_dict())
    narrow = timm.create_model(f'focus_{NAME}', num_classes=7)
    assert 'but not its heads, so new ones are trained' in start_from(narrow, path)
    bare = save(focused.backbone.state_dict(), 'bare.pth')
    assert 'it has no heads of focus training' in start_from(timm.create_model(f'focus_{NAME}', num_classes=7), bare)


@pytest.mark.parametrize('classes, asked, words', [
    (5, False, 'its classifier has 7 classes in place of 5, and a new one is trained'),
    (7, True, 'its classifier is not asked for, and a new one is trained')])
def test_another_classifier_is_trained_anew(focused, focus_checkpoint, classes, asked, words):
    model = make(num_classes=classes)
    before = model.fc.weight.clone()
    assert words in start_from(model, focus_checkpoint, new_classifier=asked)
    assert torch.equal(model.conv1[0].weight, focused.backbone.conv1[0].weight) and torch.equal(model.fc.weight, before)


def test_weights_without_a_classifier_are_a_start(save):
    source = make()
    state = {k: v for k, v in source.state_dict().items() if not k.startswith('fc.')}
    model = make()
    assert 'its classifier has 0 classes in place of 7' in start_from(model, save(state))
    assert torch.equal(model.conv1[0].weight, source.conv1[0].weight)


def test_weights_of_another_model_are_no_start(save):
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'into test_resnet does not go: .* another architecture: of \d+ tensors'):
        start_from(model, save(make('test_vit').state_dict()))
    assert equal(model.state_dict(), before)


# names of classes

def test_places365_checkpoints_know_its_classes(save):
    state = {f'module.{k}': v for k, v in timm.create_model(NAME, num_classes=365).state_dict().items()}
    loaded = load_model(checkpoint=save(dict(arch=NAME, state_dict=state, epoch=90, best_prec1=55.)))
    assert loaded.model.num_classes == 365
    assert class_names(loaded, 365) == list(CATEGORIES)


def test_names_are_read_from_a_file(tmp_path):
    file = tmp_path / 'names.txt'
    for text, names in (('a b\n c \n\n', ['a b', 'c']),
                        ('/a/airfield 0\n/a/arena/hockey 1\n', ['airfield', 'arena/hockey'])):
        file.write_text(text)
        assert read_class_names(str(file)) == names
    for text, words in (('', 'has no lines'), ('a\nb\na\n', 'has a twice')):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_class_names(str(file))
    with pytest.raises(ValueError, match='cannot be read'):
        read_class_names(str(tmp_path / 'nowhere'))
