"""What an export holds, and that it is whole or not there."""
import csv
import json
import resource

import pytest
import timm
import torch
import yaml
from conftest import TINY, equal
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

import timm_focus
from timm_focus.release import published_settings
from timm_focus.release.export import FILES
from timm_focus.release.folder import RECORD

ABOUT = dict(license='cc-by-4.0', dataset='My Scenes')
CONFIG = dict(input_size=(3, 64, 64), crop_pct=0.9, interpolation='bilinear', mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def again(folder):
    return timm_focus.create_from_hub(f'local-dir:{folder}')


@pytest.fixture
def model():
    return timm.create_model(f'focus_{TINY}', num_classes=3, focus_threshold=0.6, focus_stage=2, focus_width=5)


@pytest.fixture
def summary(tmp_path):
    path = tmp_path / 'summary.csv'
    with open(path, 'w', newline='') as f:
        csv.writer(f).writerows([
            ['epoch', 'train_loss', 'train_main_loss', 'eval_loss', 'eval_top1', 'lr'], [0, 2, 1, 1.5, 30, 0.1],
            [1, 1.5, 'nan', '', '', 0.1], [2, 1.2, 0.9, 1.1, 50, 0.1]])
    return path


def test_all_that_is_in_it(model, tmp_path, photo, summary):
    images = [photo.crop((i, i, 300 + i, 300 + i)) for i in range(0, 40, 5)]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folder = timm_focus.save_for_hub(
        model, tmp_path / 'out', **ABOUT, dataset_terms='see | there', label_names=['a', 'b', 'c'], data_config=CONFIG,
        metrics=dict(top1=50., top5=float('nan'), loss=1.1), settings=dict(lr=0.1, epochs=3, data_dir='/home/me'),
        summary=summary, images=images, repo_id='user/name')
    assert {p.name for p in folder.iterdir()} == {*FILES, RECORD} and not list(tmp_path.glob('out.*'))
    assert equal(before, model.state_dict()) and model.training
    weights = load_file(folder / 'model.safetensors')
    assert equal(weights, model.backbone.state_dict())
    config = json.loads((folder / 'config.json').read_text())
    cfg = config['pretrained_cfg']
    assert config['architecture'] == TINY and config['num_classes'] == 3 and config['label_names'] == ['a', 'b', 'c']
    assert cfg['license'] == 'cc-by-4.0' and cfg['tag'] == 'focus_my_scenes'
    assert {k: tuple(cfg[k]) if isinstance(cfg[k], list) else cfg[k] for k in CONFIG} == CONFIG
    assert config['focus']['focus_threshold'] == 0.6 and config['focus']['focus_stage'] == 2
    restored = again(folder)
    assert equal(restored.state_dict(), model.state_dict()) and restored.focus_args == model.focus_args
    assert restored.training and all(p.requires_grad for p in restored.parameters())

    card = ModelCard((folder / 'README.md').read_text())
    assert card.data.license == 'cc-by-4.0' and card.data.library_name == 'timm' and not card.data.datasets
    results = {r.metric_name: (r.metric_value, r.dataset_name, r.dataset_split) for r in card.data.eval_results}
    assert results == {'Top-1 accuracy': (0.5, 'My Scenes', 'validation'),
                       'Cross-entropy': (1.1, 'My Scenes', 'validation')}, 'what is no number is left out'
    for words in (r'see \| there', '| Top-1 accuracy | 50.00 % |',
                  f'{sum(p.numel() for p in model.backbone.parameters()):,}', 'multiply-adds', ' pixels',
                  'hf-hub:user/name', '| epochs | 3 |',
                  '](curves.png)', '](coverage.png)', '](focus.png)', 'chen2021see', 'at 128 x 128'):
        assert words in card.content, words
    assert '/home/me' not in (folder / 'args.yaml').read_text()
    assert yaml.safe_load((folder / 'args.yaml').read_text()) == dict(lr=0.1, epochs=3)


def test_what_was_not_given_is_not_spoken_of(model, tmp_path):
    card = (timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT) / 'README.md').read_text()
    assert {p.name for p in (tmp_path / 'out').iterdir()} == {
        RECORD, 'README.md', 'config.json', 'model.safetensors', 'focus_heads.safetensors'}
    for word in ('.png', 'args.yaml', 'summary.csv', 'Recipe', 'model-index', 'label_names', '{{', '{%', '| None'):
        assert word not in card, word
    assert 'not stated' in card and 'Nothing was measured' in card


@pytest.mark.slow
def test_source_weights_leave_no_trace(tmp_path):
    """Licence, tag and papers of the weights that timm has under this name are not those of these weights."""
    model = timm.create_model('mobilenetv4_conv_small.e2400_r224_in1k', num_classes=4)
    source = {k: model.pretrained_cfg.get(k) for k in ('license', 'tag', 'paper_ids', 'origin_url', 'hf_hub_id')}
    assert source['tag'] and source['hf_hub_id']
    timm_focus.save_for_hub(model, tmp_path / 'out', license='other', license_name='mine', license_link='https://x.org',
                            dataset='user/scenes')
    cfg = json.loads((tmp_path / 'out/config.json').read_text())['pretrained_cfg']
    assert cfg['license'] == 'mine' and cfg['tag'] == 'plain_user_scenes'
    assert not set(cfg) & {'paper_ids', 'origin_url', 'hf_hub_id', 'url', 'file', 'label_names'}
    data = ModelCard((tmp_path / 'out/README.md').read_text()).data
    assert (data.license, data.license_name, data.license_link) == ('other', 'mine', 'https://x.org')
    assert data.datasets == ['user/scenes']


WRAPPED = {
    'channels last': lambda m: m.to(memory_format=torch.channels_last),
    'compiled backbone': lambda m: setattr(m, 'backbone', torch.compile(m.backbone)) or m,
    'running average': ModelEmaV3,
    'bfloat16': lambda m: m.bfloat16(),
}


@pytest.mark.parametrize('wrapping', [
    pytest.param(w, marks=pytest.mark.slow) if 'compiled' in w else w for w in WRAPPED])
def test_however_it_was_trained(wrapping, model, tmp_path):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    timm_focus.save_for_hub(WRAPPED[wrapping](model), tmp_path / 'out', **ABOUT)
    if wrapping == 'bfloat16':
        state = {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in state.items()}
    assert equal(again(tmp_path / 'out').state_dict(), state)


@pytest.mark.slow('coat_tiny', 'convnext', 'shufflenet')
@pytest.mark.long('coat_tiny')
@pytest.mark.parametrize('name, kwargs', [
    ('coat_tiny', {}),  # parameters that several modules share
    ('test_vit', dict(img_size=64)), ('test_convnext', dict(in_chans=1)), ('shufflenetv2_x0_5', {}),
    pytest.param('swin_tiny_patch4_window7_224', dict(img_size=64, window_size=2, depths=(1, 1, 1, 1)),
                 marks=pytest.mark.slow),
])
def test_whatever_it_is(name, kwargs, tmp_path):
    model = timm.create_model(f'focus_{name}', num_classes=5, drop_rate=0.1, **kwargs)
    timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT)
    assert equal(again(tmp_path / 'out').state_dict(), model.state_dict())
    plain = timm.create_model(f'local-dir:{tmp_path}/out', pretrained=True).eval()
    size = timm.data.resolve_data_config({}, model=plain)['input_size']
    x = torch.randn(2, *size)
    with torch.no_grad():
        assert torch.equal(plain(x), model.eval()(x))
    card = (tmp_path / 'out/README.md').read_text()
    assert ('plain timm has no ShuffleNetV2' in card) == name.startswith('shuffle')


@pytest.mark.slow
def test_torchvision_loads_shufflenet(tmp_path):
    import torchvision
    model = timm.create_model('shufflenetv2_x0_5', num_classes=5).eval()
    timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT)
    assert 'torchvision.models.shufflenet_v2_x0_5(num_classes=5)' in (tmp_path / 'out/README.md').read_text()
    other = torchvision.models.shufflenet_v2_x0_5(num_classes=5).eval()
    other.load_state_dict(load_file(tmp_path / 'out/model.safetensors'))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))


# what cannot be exported

def test_arguments_that_are_no_json(tmp_path):
    model = timm.create_model(f'focus_{TINY}', num_classes=3, act_layer=torch.nn.SiLU)
    with pytest.raises(ValueError, match='act_layer'):
        timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT)
    assert not list(tmp_path.iterdir())
    timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT, model_args=dict(act_layer='silu'))
    assert isinstance(again(tmp_path / 'out').backbone.act1, type(model.backbone.act1))
    with pytest.raises(ValueError, match='does not make it again'):
        timm_focus.save_for_hub(model, tmp_path / 'bad', **ABOUT, model_args=dict(act_layer='nonsense'))
    assert not (tmp_path / 'bad').exists()


@pytest.mark.parametrize('change, words', [
    (dict(license=''), 'licence of the weights is not given, and is never guessed'),
    (dict(license='my own'), "'my own' is no identifier"),
    (dict(dataset=' '), 'data set that the weights were trained on is not given'),
    (dict(label_names=['a', 'b']), '2 label names and 3 classes'),
])
def test_refused_before_anything_is_written(change, words, model, tmp_path):
    with pytest.raises(ValueError, match=words):
        timm_focus.save_for_hub(model, tmp_path / 'out', **{**ABOUT, **change})
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused(model, tmp_path):
    model.backbone.pretrained_cfg.pop('architecture')
    with pytest.raises(ValueError, match='does not record its architecture'):
        timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT)
    model = timm.create_model(f'focus_{TINY}', num_classes=3)
    with torch.no_grad():
        model.backbone.fc.weight[0, 0] = float('nan')
    with pytest.raises(ValueError, match=r'fc.weight has weights that are no numbers \(NaN\)'):
        timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT)


def test_what_is_there_stays(model, tmp_path):
    out = tmp_path / 'out'
    out.mkdir()
    timm_focus.save_for_hub(model, out, **ABOUT)  # an empty folder
    timm_focus.save_for_hub(model, out, license='mit', dataset='Others')  # an export as it was generated
    card = out / 'README.md'
    assert 'Others' in card.read_text()
    card.write_text(card.read_text() + 'edited')
    with pytest.raises(ValueError, match='README.md was edited .*`timm-focus push .*out user/name` sends it'):
        timm_focus.save_for_hub(model, out, **ABOUT)
    assert card.read_text().endswith('edited')
    card.unlink()
    timm_focus.save_for_hub(model, out, **ABOUT)
    assert 'My Scenes' in card.read_text()


@pytest.mark.parametrize('limit', [1_000_000, 10_000, 100])  # in the weights, in the configuration, in anything
def test_a_full_disk(limit, model, tmp_path):
    """As far as a process can tell: no file may grow beyond a limit."""
    out = timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match='cannot be written.*make room'):
            timm_focus.save_for_hub(model, out, license='mit', dataset='Others')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before and not list(tmp_path.glob('out.*'))


# settings

@pytest.mark.parametrize('name, value', [
    ('data_dir', '/data/places'), ('output', 'runs'), ('config', 'a.yaml'), ('resume', 'auto'),
    ('wandb_project', 'mine'),
    ('wandb_resume_id', 'x'), ('initial_checkpoint', 'w.pth'), ('some_new_path', '/home/me/x'), ('other', '~/x'),
    ('model', 'local-dir:/home/me/x'), ('model', 'hf_abcdefghijklmnop'), ('url', 'https://me:word@host/x'),
    ('url', 'https://host/x?token=word'), ('windows', 'C:\\Users\\me'), ('hf_token', 'x'), ('api_key', 'x'),
    ('wandb_password', 'x'), ('push_to_hub', 'user/name'), ('hub_license', 'mit'), ('callable', print),
    ('lists', ['/home/me']), ('rank', 0), ('opt', "pipe:curl -H 'Authorization: Bearer hf_abcdefghijkl'"),
])
def test_what_of_the_settings_is_private(name, value):
    assert published_settings({name: value, 'lr': 0.1}) == {'lr': 0.1}


def test_what_of_the_settings_is_published(monkeypatch):
    monkeypatch.setenv('WANDB_API_KEY', 'abcdef')
    settings = dict(
        model='hf-hub:timm/resnet18.a1_in1k', mean=[0.4, 0.5, 0.6], opt_kwargs=dict(a=1, file='/x'),
        kd_token_distill_type='soft', input_key='jpg', aa='rand-m9-mstd0.5', wandb='abcdef', notes='abcdef',
        scale=(0.1, 1.), amp=None)
    assert published_settings(settings) == dict(
        model='hf-hub:timm/resnet18.a1_in1k', mean=[0.4, 0.5, 0.6], opt_kwargs=dict(a=1), kd_token_distill_type='soft',
        input_key='jpg', aa='rand-m9-mstd0.5', scale=[0.1, 1.], amp=None)
