"""ShuffleNetV2 against torchvision's network, and against what timm expects of a model."""
import copy
import math

import pytest
import timm
import torch
import torchvision
from timm.data import resolve_data_config
from timm.models._manipulate import group_parameters
from timm.optim import param_groups_layer_decay
from torch import nn

import timm_focus  # noqa: F401  registers the models
from timm_focus.models.shufflenetv2 import ShuffleNetV2

WIDTHS = ('x0_5', 'x1_0', 'x1_5', 'x2_0')
NAMES = [f'shufflenetv2_{width}' for width in WIDTHS]
SMALL = NAMES[0]


@pytest.fixture(autouse=True, scope='module')
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pictures are tiny: more threads wait for each other, by minutes on a busy machine
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def images(*size: int) -> torch.Tensor:
    return torch.randn(*(size or (2, 3, 64, 64)))


def torchvision_net(width: str, **kwargs) -> nn.Module:
    """torchvision's network with running statistics that are not the trivial zeros and ones."""
    net = torchvision.models.get_model(f'shufflenet_v2_{width}', **kwargs)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 1.5)
    return net


def create(name: str = SMALL, **kwargs) -> nn.Module:
    return timm.create_model(name, **kwargs)


# ---- torchvision's network ----

@pytest.mark.parametrize('width', WIDTHS)
def test_equals_torchvision(width):
    theirs, ours = torchvision_net(width), create(f'shufflenetv2_{width}')
    assert isinstance(ours, ShuffleNetV2) and isinstance(ours, torchvision.models.ShuffleNetV2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(2, 3, 96, 64)
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))

    # A step of training: the same output, gradients and running statistics.
    y, z = ours.train()(x), theirs.train()(x)
    assert torch.equal(y, z)
    y.square().mean().backward()
    z.square().mean().backward()
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p.grad, q.grad)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert all(torch.equal(p, q) for p, q in zip(ours.buffers(), theirs.buffers()))


@pytest.mark.parametrize('width', WIDTHS)
def test_initialisation_is_torchvisions(width):
    torch.manual_seed(1)
    theirs = torchvision.models.get_model(f'shufflenet_v2_{width}', num_classes=7).state_dict()
    torch.manual_seed(1)
    ours = create(f'shufflenetv2_{width}', num_classes=7).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize('width', WIDTHS)
def test_parameter_count(width):
    weights = torchvision.models.get_model_weights(f'shufflenet_v2_{width}').IMAGENET1K_V1
    assert sum(p.numel() for p in create(f'shufflenetv2_{width}').parameters()) == weights.meta['num_params']


def test_parameter_count_of_places365():
    assert sum(p.numel() for p in create('shufflenetv2_x1_5', num_classes=365).parameters()) == 2_852_749


# ---- registration and pretrained weights ----

def test_registered():
    tagged = [f'{name}.tv_in1k' for name in NAMES]
    assert timm.list_models('shufflenetv2*') == NAMES
    assert timm.list_models(module='shufflenetv2') == NAMES
    assert timm.list_pretrained('shufflenetv2*') == tagged
    assert all(timm.is_model_pretrained(name) for name in NAMES + tagged)


@pytest.mark.parametrize('width, resize', list(zip(WIDTHS, (256, 256, 232, 232))))
def test_pretrained_cfg(width, resize):
    weights = torchvision.models.get_model_weights(f'shufflenet_v2_{width}').IMAGENET1K_V1
    model = create(f'shufflenetv2_{width}.tv_in1k')
    cfg, preset = model.pretrained_cfg, weights.transforms()
    assert cfg['url'] == weights.url and cfg['tag'] == 'tv_in1k' and cfg['license'] == 'bsd-3-clause'
    data = resolve_data_config(model=model)
    assert math.floor(224 / data['crop_pct']) == preset.resize_size[0] == resize
    assert data['input_size'] == (3, 224, 224)
    assert data['interpolation'] == 'bilinear'
    assert list(data['mean']) == preset.mean and list(data['std']) == preset.std
    assert isinstance(model.get_submodule(cfg['first_conv']), nn.Conv2d)
    assert model.get_submodule(cfg['classifier']) is model.get_classifier()
    assert model.forward_features(images(1, 3, 224, 224)).shape[2:] == cfg['pool_size']


@pytest.fixture(scope='module')
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'shufflenetv2_x0_5.pth'
    torch.manual_seed(2)
    torch.save(torchvision_net('x0_5').state_dict(), path)
    return str(path)


def test_pretrained(weights_file):
    source = torch.load(weights_file, weights_only=True)
    overlay = dict(file=weights_file)

    model = create(pretrained=True, pretrained_cfg_overlay=overlay)
    assert all(torch.equal(p, source[name]) for name, p in model.state_dict().items())

    model = create(pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=5)
    assert torch.equal(model.conv1[0].weight, source['conv1.0.weight'].sum(1, keepdim=True))
    assert torch.equal(model.conv5[0].weight, source['conv5.0.weight'])
    assert model.fc.weight.shape == (5, 1024)

    model = create(pretrained=True, pretrained_cfg_overlay=overlay, in_chans=4, num_classes=0)
    assert model(images(2, 4, 64, 64)).shape == (2, 1024)

    features = create(pretrained=True, pretrained_cfg_overlay=overlay, features_only=True)
    assert torch.equal(features['conv1'][0].weight, source['conv1.0.weight'])


# ---- features ----

@pytest.mark.parametrize('name', NAMES)
def test_feature_info_tells_the_truth(name):
    model = create(name).eval()
    x = images(2, 3, 64, 96)
    with torch.no_grad():
        final, features = model.forward_intermediates(x)
        assert torch.equal(final, model.forward_features(x))
        assert torch.equal(model.forward_head(final), model(x))
    assert final.shape == (2, model.num_features, 2, 3)
    assert [info['module'] for info in model.feature_info] == ['conv1', 'maxpool', 'stage2', 'stage3', 'stage4']
    assert [info['reduction'] for info in model.feature_info] == [2, 4, 8, 16, 32]
    for info, feature in zip(model.feature_info, features, strict=True):
        assert feature.shape == (2, info['num_chs'], 64 // info['reduction'], 96 // info['reduction'])


@pytest.mark.parametrize('feature_cls', ['list', 'hook', 'getter'])
def test_features_only(feature_cls):
    model = create().eval()
    features = create(features_only=True, out_indices=(1, 3, 4), feature_cls=feature_cls).eval()
    assert features.feature_info.channels() == [24, 96, 192]
    assert features.feature_info.reduction() == [4, 16, 32]
    net = dict(hook='body', getter='model').get(feature_cls, '')  # timm's wrappers hold the network in this child
    missing, _ = features.get_submodule(net).load_state_dict(model.state_dict(), strict=False)
    assert not missing
    x = images()
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1, 3, 4], intermediates_only=True)
        for feature, other in zip(features(x), expected, strict=True):
            assert torch.equal(feature, other)


@pytest.mark.parametrize('index', range(5))
def test_stop_early_and_prune(index):
    model = create().eval()
    x = images()
    with torch.no_grad():
        expected = model.forward_intermediates(x, intermediates_only=True)[index]
        final, (feature,) = model.forward_intermediates(x, indices=[index], stop_early=True)
        assert torch.equal(feature, expected)
        assert torch.equal(final, model.forward_features(x) if index == 4 else expected)

        pruned = copy.deepcopy(model)
        assert pruned.prune_intermediate_layers([index - 5]) == [index]
        assert torch.equal(pruned.forward_features(x), expected)
        assert torch.equal(pruned(x), expected)
        assert pruned.num_features == pruned.head_hidden_size == expected.shape[1]
        pruned.reset_classifier(7, 'avg')
        assert pruned(x).shape == (2, 7)
    pruned.train().set_grad_checkpointing()
    pruned(x).sum().backward()
    assert all(p.grad is not None for p in pruned.parameters())


def test_prune_nothing_keeps_the_output():
    model = create().eval()
    x = images()
    with torch.no_grad():
        expected = model(x)
        model.prune_intermediate_layers([4], prune_head=False)
        assert torch.equal(model(x), expected)


# ---- head ----

@pytest.mark.parametrize('global_pool, width', [('avg', 1024), ('max', 1024), ('avgmax', 1024), ('catavgmax', 2048)])
def test_global_pool(global_pool, width):
    model = create(num_classes=6, global_pool=global_pool).eval()
    assert not list(model.global_pool.parameters())
    assert model.num_features == 1024 and model.head_hidden_size == width
    assert model.get_classifier().weight.shape == (6, width)
    features = model.forward_features(images())
    assert model.forward_head(features).shape == (2, 6)
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, width)
    means, maxima = features.mean((2, 3)), features.amax((2, 3))
    torch.testing.assert_close(pooled, dict(
        avg=means, max=maxima, avgmax=(means + maxima) / 2, catavgmax=torch.cat((means, maxima), 1))[global_pool])


def test_no_pool_and_no_classes():
    x = images()
    model = create(num_classes=0).eval()
    assert isinstance(model.get_classifier(), nn.Identity)
    assert model(x).shape == (2, 1024)
    model = create(num_classes=0, global_pool='').eval()
    assert torch.equal(model(x), model.forward_features(x))


def test_reset_classifier():
    model = create(global_pool='max').eval()
    x = images()
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(0)
        assert model.num_classes == 0 and torch.equal(model(x), pooled)
        model.reset_classifier(9)
        assert model.num_classes == 9 and model(x).shape == (2, 9)
        model.reset_classifier(3, 'catavgmax')
        assert model.head_hidden_size == 2048 and model(x).shape == (2, 3)
        model.reset_classifier(0, '')
        assert model(x).shape == (2, 1024, 2, 2)
    model.double().reset_classifier(4, 'avg')
    assert model.fc.weight.dtype == torch.float64 and not model.fc.training


def test_drop_rate_acts_in_training_only():
    plain, model = create(), create(drop_rate=0.5)
    model.load_state_dict(plain.state_dict())
    features = images(2, 1024, 2, 2)
    full, dropped = (net.train().forward_head(features, pre_logits=True) for net in (plain, model))
    kept = dropped != 0
    assert 0.3 < kept.float().mean() < 0.7
    torch.testing.assert_close(dropped[kept], 2 * full[kept])
    assert torch.equal(model.eval().forward_head(features), plain.eval().forward_head(features))


# ---- training ----

def test_parameter_groups_are_ordered():
    model = create()
    names = [name for name, _ in model.named_parameters()]
    fine = group_parameters(model, model.group_matcher(), reverse=True)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    for groups, last in ((fine, 17), (coarse, 4)):
        depths = [groups[name] for name in names]  # the names come in the order of the forward pass
        assert depths == sorted(depths)
        assert set(depths) == set(range(last + 1))
        assert {name for name in names if groups[name] == 0} == {n for n in names if n.startswith('conv1.')}
        assert {name for name in names if groups[name] == last} == {'fc.weight', 'fc.bias'}
        assert groups['conv5.0.weight'] == last - 1


def test_layer_decay():
    model = create()
    scale = {id(p): g['lr_scale'] for g in param_groups_layer_decay(model, layer_decay=0.5) for p in g['params']}
    scales = [scale[id(p)] for p in model.parameters()]
    assert scales == sorted(scales)
    assert scales[0] == 0.5 ** 17 and scales[-1] == 1.


def test_grad_checkpointing():
    plain = create(num_classes=5, drop_rate=0.).double()
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    x = images().double()
    kept = []
    for net in (plain, model):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            y = net.train()(x)
        y.square().sum().backward()
        kept.append(sum(saved))
    assert kept[1] < 0.6 * kept[0]  # it does spare memory: the rest is the stem's and the weights
    for p, q in zip(plain.parameters(), model.parameters()):
        torch.testing.assert_close(p.grad, q.grad)

    model.zero_grad()
    final, features = model.forward_intermediates(x)
    (final.sum() + sum(f.sum() for f in features)).backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.startswith('fc.'))
    model.set_grad_checkpointing(False)
    assert not model.grad_checkpointing


# ---- construction ----

@pytest.mark.parametrize('in_chans', [1, 4])
def test_in_chans(in_chans):
    model = create(num_classes=5, in_chans=in_chans).eval()
    assert model.in_chans == in_chans
    assert model(images(2, in_chans, 64, 64)).shape == (2, 5)


def test_device_and_dtype():
    model = create(device='meta', dtype=torch.float64, in_chans=4)
    assert all(p.is_meta and p.dtype == torch.float64 for p in model.parameters())
    assert all(b.is_meta for b in model.buffers())


@pytest.mark.slow
def test_compiles_and_copies():
    model = create(num_classes=5).eval()
    x = images()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(torch.compile(model, fullgraph=True, backend='eager')(x), expected)


@pytest.mark.parametrize('kwargs', [dict(in_chans=0), dict(num_classes=-1), dict(drop_rate=1.5)])
def test_bad_arguments(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        create(**kwargs)


def test_bad_stages():
    with pytest.raises(ValueError, match='stages_repeats'):
        ShuffleNetV2((4, 8), (24, 48, 96, 192, 1024))
    with pytest.raises(ValueError, match='stages_out_channels'):
        ShuffleNetV2((4, 8, 4), (24, 48, 96, 192))


def test_bad_calls():
    model = create()
    with pytest.raises(ValueError, match='output_fmt'):
        model.forward_intermediates(images(), output_fmt='NHWC')
    with pytest.raises(ValueError, match='num_classes'):
        model.reset_classifier(-1)
