import copy
import math

import pytest
import timm
import torch
from timm.models import get_model_args, group_parameters
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, freeze
from torch import nn

import timm_focus
from timm_focus import FocusNet, FocusOutput, export_backbone
from timm_focus.method import default_stage, find_stage
from timm_focus.method.cam import normalize_map
from timm_focus.method.erase import keep_mask


def make(name='resnet10t', num_classes=5, **kwargs):
    return timm.create_model(f'focus_{name}', num_classes=num_classes, **kwargs).train()


def statistics(model):
    return {n: b.clone() for n, b in model.named_buffers() if 'running' in n or 'num_batches' in n}


# what comes out

def test_training_gives_three_logits_and_evaluation_the_backbone(photos):
    model, x = make(), photos(4)
    output = model(x)
    assert isinstance(output, FocusOutput) and output._fields == ('main', 'side', 'erased')
    assert all(logits.shape == (4, 5) for logits in output)
    assert 0 < model.erased_fraction < 1 and model.erased_fraction.ndim == 0 and not model.erased_fraction.requires_grad
    model.eval()
    assert torch.equal(model(x), model.backbone(x))
    with torch.no_grad():
        assert model(x).shape == (4, 5)


def test_focus_training_can_be_switched_off(photos):
    torch.manual_seed(3)
    model = make()
    plain = copy.deepcopy(model.backbone)
    model.set_focus_training(False)
    x = photos(4)
    assert torch.equal(model(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(statistics(model.backbone).values(), statistics(plain).values()))
    model.set_focus_training(True)
    assert isinstance(model(x), FocusOutput)


def test_main_logits_are_those_of_the_plain_model_with_dropout_and_drop_path(photos):
    for name, kwargs in (('resnet10t', dict(drop_rate=0.5)),
                         ('vit_tiny_patch16_224', dict(img_size=64, drop_path_rate=0.3, drop_rate=0.2)),
                         ('convnext_atto', dict(drop_path_rate=0.3))):
        model = make(name, **kwargs)
        x = photos(3)
        torch.manual_seed(7)
        expected = model.backbone(x)
        torch.manual_seed(7)
        assert torch.equal(model(x).main, expected), name


@pytest.mark.parametrize('side, erased', [(True, True), (True, False), (False, True), (False, False)])
def test_branches_that_do_not_run(side, erased, photos):
    model = make(focus_map='mean')  # which needs no CAM
    model.set_branches(side=side, erased=erased)
    before = statistics(model.backbone)
    output = model(photos(2))
    assert (output.side is None) == (not side) and (output.erased is None) == (not erased)
    assert all(p.requires_grad == side for p in model.cam_head.parameters())
    assert all(p.requires_grad == erased for p in model.erased_head.parameters())
    counted = [(v - before[k]).item() for k, v in statistics(model.backbone).items() if 'num_batches' in k]
    assert set(counted) == {2 if erased else 1}


def test_attention_mining_scores_by_the_main_classifier(photos):
    model = make().eval()
    x = photos(3)
    model.set_branches(scored_by='main')
    assert not any(p.requires_grad for p in model.erased_head.parameters())
    model.train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()  # so that a second look at the same images sees the same network
    output = model(x)
    final, (tap,) = model.backbone.forward_intermediates(x, indices=[model.stage], norm=False)
    keep = model.keep_mask(tap, output.main.argmax(1), x.shape[-2:])
    torch.testing.assert_close(output.erased, model.backbone(x * keep))
    with pytest.raises(ValueError, match="scored_by is 'side'.*'erased_head', 'main'"):
        model.set_branches(scored_by='side')


@pytest.mark.parametrize('fraction, n', [(1., 5), (0.5, 2), (0.25, 2), (0.01, 2), (0.7, 4)])
def test_a_fraction_of_the_batch(fraction, n, photos):
    model = make(focus_fraction=fraction)
    output = model(photos(5))
    assert output.erased.shape == (n, 5) and output.main.shape == (5, 5) and output.side.shape == (5, 5)


def test_the_map_is_of_the_predicted_class_without_gradient(photos):
    model, x = make(num_classes=3), photos(2)
    final, (tap,) = model.backbone.forward_intermediates(x, indices=[model.stage], norm=False)
    target = torch.tensor([1, 0])
    keep = model.keep_mask(tap, target, (64, 64))
    assert keep.dtype == torch.bool and not keep.requires_grad
    other = model.keep_mask(tap, target + 1, (64, 64))
    assert not torch.equal(keep, other)
    assert torch.equal(keep[:1], model.keep_mask(tap[:1], target[:1], (64, 64)))
    literal = model.cam_head.activation_map(tap, target).detach()
    assert torch.equal(model.activation_map(tap, target), literal)
    assert torch.equal(keep, keep_mask(normalize_map(literal), (64, 64), 0.7))
    assert torch.equal(model.keep_mask(tap, target, (64, 64), 0.2), keep_mask(normalize_map(literal), (64, 64), 0.2))
    model.eval()
    with torch.no_grad():
        main, _, mask = model._first_pass(x)
    assert torch.equal(mask, model.keep_mask(model._main_and_tap(x)[1], main.argmax(1), (64, 64)))


def test_mask_is_float32_under_autocast(photos):
    model, x = make(), photos(3)
    _, (tap,) = model.backbone.forward_intermediates(x, indices=[model.stage], norm=False)
    target = torch.tensor([4, 0, 2])
    expected = model.keep_mask(tap, target, (64, 64))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(model.keep_mask(tap, target, (64, 64)), expected)
        output = model(x)
    assert all(torch.isfinite(o.float()).all() for o in output)


@pytest.mark.parametrize('name', ['resnet10t', 'efficientnet_lite0', 'shufflenetv2_x0_5'])
def test_clean_batch_norm_counts_original_images_only(name, photos):
    model, x = make(name, focus_bn='clean'), photos(4)
    plain = copy.deepcopy(model.backbone)
    model(x)
    plain(x)
    for key, value in statistics(plain).items():
        assert torch.equal(statistics(model.backbone)[key], value), key
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_clean_batch_norm_still_normalises_by_the_batch(photos):
    torch.manual_seed(0)
    shared = make()
    torch.manual_seed(0)
    clean = make(focus_bn='clean')
    x = photos(4)
    torch.testing.assert_close(clean(x).erased, shared(x).erased)


def test_clean_batch_norm_restores_after_an_error(photos):
    model = make(focus_bn='clean')
    model.erased_head = nn.Linear(3, 3)  # does not fit
    with pytest.raises(RuntimeError):
        model(photos(2))
    assert all(m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_maps(photos):
    x, shares = photos(4), {}
    for kind in ('cam', 'mean', 'random'):
        torch.manual_seed(5)
        model = make(focus_map=kind)
        torch.manual_seed(6)
        model(x)
        shares[kind] = model.erased_fraction.item()
    assert shares['random'] == shares['cam'] != shares['mean']
    model = make(focus_map='random')
    _, (tap,) = model.backbone.forward_intermediates(x, indices=[model.stage], norm=False)
    target = torch.tensor([0, 1, 2, 3])
    random, again = (model.keep_mask(tap, target, (64, 64)) for _ in range(2))
    assert not torch.equal(random, again)
    model.map_kind = 'cam'
    cam = model.keep_mask(tap, target, (64, 64))
    assert torch.equal(random.flatten(1).sum(1), cam.flatten(1).sum(1)), 'share by share, image by image'


# where it taps

@pytest.mark.parametrize('name, feature', [
    ('resnet18', 'layer3'), ('resnet50', 'layer3'), ('densenet121', 'features.denseblock3'),
    ('shufflenetv2_x1_5', 'stage3'), ('swin_tiny_patch4_window7_224', 'layers.2'),
    ('vit_tiny_patch16_224', 'blocks.8'), ('convnext_atto', 'stages.2'), ('efficientnet_lite0', 'blocks.4'),
])
def test_default_stage(name, feature):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert model.feature_info[default_stage(model.feature_info)]['module'] == feature


def test_default_stage_of_flat_models():
    for n in (1, 3, 4, 5, 12, 13, 24):
        assert default_stage([dict(reduction=16)] * n) == math.ceil(3 * n / 4) - 1
    assert default_stage([dict(reduction=r) for r in (4, 8, 16, 16)]) == 1


def test_stage_by_name_and_index(photos):
    assert make(focus_stage='layer2').stage == make(focus_stage=2).stage == make(focus_stage=-3).stage == 2
    model = make(focus_stage='layer4')
    assert model.cam_head.conv.in_channels == 512
    assert model(photos(2)).side.shape == (2, 5)


@pytest.mark.parametrize('stage', ['layer5', 5, -6, True, 2.0])
def test_stage_that_does_not_exist(stage):
    with pytest.raises(ValueError, match='0: act1, 1: layer1, 2: layer2, 3: layer3, 4: layer4'):
        make(focus_stage=stage)


def test_stages_that_share_a_name():
    info = [dict(module=m, reduction=r) for m, r in (('a', 4), ('b', 8), ('b', 16))]
    with pytest.raises(ValueError, match="Several features are named 'b'.*by index"):
        find_stage(info, 'b')
    assert find_stage(info, 2) == 2 and find_stage(info, 'a') == 0


# what is refused

@pytest.mark.parametrize('kwargs, message', [
    (dict(focus_threshold=0), 'focus_threshold is 0: give a number above 0 and at most 1'),
    (dict(focus_threshold=1.01), 'focus_threshold is 1.01'),
    (dict(focus_threshold=float('nan')), 'focus_threshold is nan'),
    (dict(focus_threshold='0.7'), "focus_threshold is '0.7'"),
    (dict(focus_fraction=0.), 'focus_fraction is 0.0'),
    (dict(focus_fraction=2), 'focus_fraction is 2'),
    (dict(focus_threshold=True), 'focus_threshold is True'),
    (dict(focus_width=0), 'focus_width is 0'),
    (dict(focus_width=True), 'focus_width is True'),
    (dict(focus_width=1.5), 'focus_width is 1.5'),
    (dict(focus_interpolation='bicubic'), "focus_interpolation is 'bicubic': choose one of 'bilinear', 'nearest'"),
    (dict(focus_bn='frozen'), "focus_bn is 'frozen': choose one of 'shared', 'clean'"),
    (dict(focus_map='grad'), "focus_map is 'grad': choose one of 'cam', 'mean', 'random', 'grid'"),
    (dict(num_classes=0), 'num_classes=0 leaves no classifier'),
    (dict(global_pool=''), "global_pool=''"),
    (dict(features_only=True), 'features_only=True'),
    (dict(scriptable=True), 'scriptable=True'),
])
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_backbones_that_cannot_be_trained(photos):
    with pytest.raises(TypeError, match='Linear has no feature_info.*timm.create_model'):
        FocusNet(nn.Linear(3, 3))
    with pytest.raises(TypeError, match='features_only'):
        FocusNet(timm.create_model('resnet10t', features_only=True))
    with pytest.raises(ValueError, match='no classifier'):
        FocusNet(timm.create_model('resnet10t', num_classes=0))
    with pytest.raises(ValueError, match='patch_drop_rate=0'):
        make('vit_tiny_patch16_224', img_size=64, patch_drop_rate=0.3)
    with pytest.raises(ValueError, match='patch_drop_rate=0'):
        make('eva02_tiny_patch14_224', img_size=56, patch_drop_rate=0.3)
    model = make('deit_tiny_distilled_patch16_224', img_size=64)
    with pytest.raises(ValueError, match='distilled training'):
        model.set_distilled_training(True)
    model.set_distilled_training(False)
    assert model(photos(2)).main.shape == (2, 5)
    model.backbone.set_distilled_training(True)
    with pytest.raises(ValueError, match='distilled training'):
        model(photos(2))


def test_resets_that_cannot_be_trained_are_refused_in_training_only(photos):
    model, x = make(), photos(2)
    model.reset_classifier(0)
    with pytest.raises(ValueError, match='num_classes is 0'):
        model(x)
    assert model.eval()(x).shape == (2, 512)
    model = make()
    model.reset_classifier(0, '')
    model.train()
    with pytest.raises(ValueError):
        model(x)
    assert model.eval()(x).ndim == 4


def test_checkpointing_with_clean_batch_norm_is_refused():
    with pytest.raises(ValueError, match="focus_bn='clean'"):
        make(focus_bn='clean').set_grad_checkpointing()


# a timm model

def test_interface_is_the_backbones(photos):
    model = make('convnext_atto')
    backbone = model.backbone
    for name in ('num_classes', 'num_features', 'head_hidden_size', 'feature_info', 'pretrained_cfg', 'default_cfg'):
        assert getattr(model, name) is getattr(backbone, name), name
    assert model.get_classifier() is backbone.get_classifier()
    model.eval()
    x = photos(2)
    features = model.forward_features(x)
    assert torch.equal(model.forward_head(features), model(x))
    assert torch.equal(model.forward_head(features, pre_logits=True), backbone.forward_head(features, pre_logits=True))
    final, taps = model.forward_intermediates(x, indices=2)
    assert torch.equal(final, features) and len(taps) == 2


@pytest.mark.parametrize('name', ['resnet10t', 'vit_tiny_patch16_224', 'deit_tiny_distilled_patch16_224'])
def test_reset_classifier_resets_all_three(name, photos):
    model = make(name, **({} if name == 'resnet10t' else dict(img_size=64)))
    model.set_branches(side=True, erased=False)
    model.reset_classifier(9)
    assert model.num_classes == 9
    assert not any(p.requires_grad for p in model.erased_head.parameters()), 'what did not train still does not'
    model.set_branches()
    assert all(o.shape == (2, 9) for o in model(photos(2)))
    assert get_model_args(model)['num_classes'] == 9


def test_reset_to_a_pool_that_doubles_the_features(photos):
    model = make()
    model.reset_classifier(4, 'catavgmax')
    assert model.erased_head.in_features == 1024
    assert all(o.shape == (2, 4) for o in model(photos(2)))
    assert export_backbone(model)(photos(2)).shape == (2, 4)


@pytest.mark.parametrize('name', ['resnet10t', 'vit_tiny_patch16_224', 'convnext_atto', 'efficientnet_lite0',
                                  'swin_tiny_patch4_window7_224', 'shufflenetv2_x0_5', 'densenet121'])
@pytest.mark.parametrize('coarse', [False, True])
def test_layer_groups_are_the_backbones_with_the_heads_last(name, coarse):
    with torch.device('meta'):
        model = make(name)
    own = group_parameters(model.backbone, model.backbone.group_matcher(coarse=coarse), reverse=True)
    groups = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
    last = max(own.values())
    for parameter, group in groups.items():
        if parameter.startswith('backbone.'):
            assert group == own[parameter.removeprefix('backbone.')], parameter
        else:
            # a backbone whose classifier is in a group of its own already has this one
            assert group >= last, parameter


def test_layer_decay_and_weight_decay_reach_the_backbone():
    model = make('vit_tiny_patch16_224', img_size=64)
    assert model.no_weight_decay() == {'backbone.pos_embed', 'backbone.cls_token'} | {
        f'backbone.{n}' for n in model.backbone.no_weight_decay()}
    optimizer = create_optimizer_v2(model, 'adamw', lr=1., weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): g['lr_scale'] for g in optimizer.param_groups for p in g['params']}
    decay = {id(p): g['weight_decay'] for g in optimizer.param_groups for p in g['params']}
    assert scale[id(model.cam_head.fc.weight)] == scale[id(model.erased_head.weight)] == 1
    assert scale[id(model.backbone.head.weight)] == 1
    first, last = (scale[id(model.backbone.blocks[i].attn.qkv.weight)] for i in (0, 11))
    assert first < last < 1
    assert decay[id(model.backbone.pos_embed)] == 0 and decay[id(model.cam_head.conv.weight)] == 0.1
    assert len(scale) == len(list(model.parameters()))


@pytest.mark.parametrize('name', ['inception_v3', 'pit_ti_224', 'cait_xxs24_224'])
def test_layer_groups_of_backbones_that_give_a_function_or_none(name):
    from timm.optim import auto_group_layers
    with torch.device('meta'):
        model = make(name)
    groups = group_parameters(model, model.group_matcher(), reverse=True)
    if hasattr(model.backbone, 'group_matcher'):
        own = group_parameters(model.backbone, model.backbone.group_matcher(), reverse=True)
    else:
        own = auto_group_layers(model.backbone)
    assert len(set(own.values())) > 2
    assert all(groups[f'backbone.{n}'] == g for n, g in own.items())
    assert groups['cam_head.fc.weight'] == groups['erased_head.weight'] >= max(own.values())


def test_frozen_heads_stay_frozen_and_cfgs_can_be_set():
    model = make()
    model.cam_head.requires_grad_(False)
    model.set_branches(side=False, erased=False)
    model.set_branches(side=True, erased=True)
    assert not any(p.requires_grad for p in model.cam_head.parameters())
    assert all(p.requires_grad for p in model.erased_head.parameters())
    model.pretrained_cfg = dict(model.pretrained_cfg, license='mit')
    assert model.backbone.pretrained_cfg['license'] == 'mit'


def test_gradient_checkpointing_gives_the_same_gradients(photos):
    model, x = make(), photos(2)
    other = copy.deepcopy(model)
    other.set_grad_checkpointing()
    for m in (model, other):
        sum(o.square().mean() for o in m(x)).backward()
    for (name, a), b in zip(model.named_parameters(), other.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_ema_and_freezing(photos):
    model = make()
    ema = ModelEmaV3(model, decay=0.5)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.)
    ema.update(model)
    torch.testing.assert_close(ema.module.cam_head.fc.weight, model.cam_head.fc.weight - 0.5)
    torch.testing.assert_close(ema.module.backbone.fc.weight, model.backbone.fc.weight - 0.5)
    assert torch.equal(ema(photos(2)), ema.module.backbone(photos(2)))
    freeze(model, ['backbone.layer1'])
    assert not any(p.requires_grad for p in model.backbone.layer1.parameters())
    model(photos(2)).main.sum().backward()
    assert model.backbone.layer2[0].conv1.weight.grad is not None


# state

def test_loads_a_plain_state_dict_and_says_so(caplog):
    model, plain = make(), timm.create_model('resnet10t', num_classes=5)
    heads = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith('backbone.')}
    with caplog.at_level('WARNING'):
        result = model.load_state_dict(plain.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert len(caplog.records) == 1
    assert all(head in caplog.text for head in heads) and len(heads) == 6
    assert all(torch.equal(model.state_dict()[k], v) for k, v in heads.items())
    assert all(torch.equal(model.backbone.state_dict()[k], v) for k, v in plain.state_dict().items())


def test_loads_its_own_state_dict_silently_and_refuses_others(caplog):
    model, other = make(), make()
    with caplog.at_level('WARNING'):
        model.load_state_dict(other.state_dict())
    assert not caplog.records
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    partial = {k: v for k, v in other.state_dict().items() if not k.startswith('cam_head.')}
    with pytest.raises(RuntimeError, match='cam_head.conv.weight'):
        model.load_state_dict(partial)
    with pytest.raises(RuntimeError, match='size mismatch'):
        model.load_state_dict(timm.create_model('resnet10t', num_classes=6).state_dict())
    # inside another module, by its prefix
    nn.ModuleDict(dict(net=model)).load_state_dict({f'net.{k}': v for k, v in other.backbone.state_dict().items()})


def test_settings_are_recorded_so_that_the_model_rebuilds():
    model = make(focus_stage='layer2', focus_threshold=0.5, focus_width=7, focus_interpolation='nearest',
                 focus_bn='clean', focus_map='mean', focus_fraction=0.5, focus_recompute=True)
    assert model.focus_args == dict(
        focus_stage=2, focus_threshold=0.5, focus_width=7, focus_interpolation='nearest', focus_bn='clean',
        focus_map='mean', focus_share=None, focus_size=1., focus_drop_tokens=False, focus_fraction=0.5,
        focus_recompute=True)
    again = timm.create_model('focus_resnet10t', **get_model_args(model))
    again.load_state_dict(model.state_dict())
    assert again.focus_args == model.focus_args
    direct = FocusNet(timm.create_model('resnet10t', num_classes=5), **model.focus_args)
    assert get_model_args(direct)['focus_stage'] == 2 and direct.focus_args == model.focus_args


# export

@pytest.mark.slow('deit', 'lite0', 'convnext')
@pytest.mark.parametrize('name, kwargs', [
    ('resnet10t', {}),
    ('vit_tiny_patch16_224', dict(img_size=64, in_chans=1)),
    ('vit_tiny_patch16_224', dict(img_size=64, global_pool='avg', drop_path_rate=0.1)),
    ('deit_tiny_distilled_patch16_224', dict(img_size=64)),
    ('shufflenetv2_x0_5', dict(in_chans=1)),
    ('convnext_atto', dict(kernel_sizes=5)),
    ('efficientnet_lite0', dict(in_chans=4)),
])
def test_export_is_a_fresh_plain_timm_model(name, kwargs, photos):
    model = make(name, **kwargs).to(memory_format=torch.channels_last)
    x = photos(2, 64, kwargs.get('in_chans', 3))
    model(x)
    plain = export_backbone(model)
    model.eval()
    assert type(plain) is type(model.backbone) and not plain.training
    assert torch.equal(plain(x), model(x.contiguous(memory_format=torch.channels_last))) or torch.allclose(
        plain(x), model(x), atol=1e-5)
    assert all(v.is_contiguous() for v in plain.state_dict().values())
    assert plain.pretrained_cfg['architecture'] == name
    fresh = timm.create_model(name, **{'num_classes': 5, **kwargs})
    fresh.load_state_dict(plain.state_dict(), strict=True)
    own = {v.data_ptr() for v in model.state_dict().values() if v.numel()}
    assert not own & {v.data_ptr() for v in plain.state_dict().values() if v.numel()}


def test_export_through_wrappers(photos):
    model, x = make(), photos(2)
    model(x)
    expected = copy.deepcopy(model).eval()(x)
    compiled = torch.compile(model, backend='eager')
    for wrapped in (model, model.backbone, nn.DataParallel(model), ModelEmaV3(model), compiled):
        torch.testing.assert_close(export_backbone(wrapped)(x), expected, rtol=0, atol=0)


def test_export_follows_what_changed_since_construction(photos):
    model = make()
    model.reset_classifier(11)
    model = model.double()
    plain = export_backbone(model)
    assert plain.num_classes == 11 and next(plain.parameters()).dtype == torch.float64
    model.backbone.layer1 = nn.Identity()
    with pytest.raises(ValueError, match='do not rebuild this backbone'):
        export_backbone(model)
    model.backbone.pretrained_cfg = {}
    with pytest.raises(ValueError, match='does not record its architecture'):
        export_backbone(model)


@pytest.mark.slow
def test_compiles_without_a_graph_break(photos):
    for kwargs in ({}, dict(focus_bn='clean'), dict(focus_map='random', focus_fraction=0.5)):
        model = make(**kwargs)
        compiled = torch.compile(copy.deepcopy(model), backend='aot_eager', fullgraph=True)
        x = photos(2)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        for a, b in zip(compiled(x), expected):
            if kwargs.get('focus_map') != 'random':
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert compiled.erased_fraction.item() == pytest.approx(model.erased_fraction.item(), abs=0.02)


def test_public_names():
    namespace = {}
    exec('from timm_focus import *', namespace)
    for name in ('FocusNet', 'FocusLoss', 'FocusOutput', 'export_backbone'):
        assert namespace[name] is getattr(timm_focus, name)
