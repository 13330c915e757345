"""Maps of a class against the definition, written out slowly."""
import sys

import pytest
import timm
import torch
import torchvision

import timm_focus
from timm_focus.analysis import classifier_map
from timm_focus.analysis.class_map import _frozen, _gradient_map

LINEAR = ['test_resnet', 'resnet10t', 'shufflenetv2_x0_5', 'densenet121', 'test_efficientnet', 'regnety_002',
          'swin_tiny_patch4_window7_224', 'mixer_s32_224']
OTHERS = [('test_convnext', (2, 2)), ('mobilenetv3_small_050', (2, 2)), ('test_vit', (4, 4)), ('test_vit2', (4, 4)),
          ('deit_tiny_distilled_patch16_224', (4, 4)), ('davit_tiny', (2, 2)), ('xcit_nano_12_p16_224', (4, 4)),
          ('cait_xxs24_224', (4, 4)), ('poolformer_s12', (2, 2)), ('hiera_tiny_224', (2, 2))]


def make(name, size=64, **kwargs):
    """A model with random numbers in its norms and classifier, too."""
    torch.manual_seed(0)
    kwargs = timm.models.resolve_model_input_args(name, dict(img_size=size), num_classes=5, **kwargs)
    model = timm.create_model(**kwargs)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 1:
                p.add_(0.3 * torch.rand_like(p))
        for p in model.parameters():
            if p.ndim == 2 and len(p) == 5:
                p.normal_(std=0.2)
    return model.eval()


def slow_map(feature, weight, target):
    """Eq. 1, a number at a time, of a feature [C, h, w]."""
    _, h, w = feature.shape
    return torch.stack([
        torch.stack([sum(weight[target, k] * feature[k, i, j] for k in range(len(feature))) for j in range(w)])
        for i in range(h)])


def sized(name):
    return 96 if name.startswith('swin') else 64


@pytest.mark.slow('swin', 'densenet')
@pytest.mark.parametrize('name', LINEAR)
def test_where_the_pool_is_linear_it_is_the_class_activation_map(name, photos):
    model, x, target = make(name, sized(name)), photos(3, sized(name)), torch.tensor([4, 0, 2])
    with torch.no_grad():
        feature = model.forward_features(x)
        logits = model(x)
    if name.startswith('swin'):
        feature = feature.permute(0, 3, 1, 2)
    elif feature.ndim == 3:
        feature = feature.transpose(1, 2).unflatten(2, (2, 2))
    fc = model.get_classifier()
    found = classifier_map(model, x, target)
    assert found.kind == 'classifier' and torch.allclose(found.logits, logits, atol=1e-5)
    for one, f, t in zip(found.map, feature, target):
        expected = slow_map(f, fc.weight.detach(), t)
        assert expected.std() > 1e-3 and torch.allclose(one, expected, atol=1e-3 * expected.abs().max())
    whole = found.map.mean((1, 2)) + fc.bias.detach()[target]
    assert torch.allclose(whole, logits.gather(1, target[:, None])[:, 0], atol=1e-3), 'its mean is the logit'
    assert torch.equal(classifier_map(model, x).map, classifier_map(model, x, logits.argmax(1)).map)


@pytest.mark.slow('resnet10t', 'efficientnet', 'swin')
@pytest.mark.long('swin')
@pytest.mark.parametrize('name', ['resnet10t', 'test_efficientnet', 'swin_tiny_patch4_window7_224', 'mixer_s32_224'])
def test_grad_cam_of_a_linear_pool_is_its_class_activation_map(name, photos):
    model, x, target = make(name, sized(name)), photos(3, sized(name)), torch.tensor([1, 3, 3])
    linear = classifier_map(model, x, target)
    like = torch.empty(3, model.num_features, *linear.map.shape[1:])
    with _frozen(model):
        gradient = _gradient_map(model, x, target, like)
    n = linear.map[0].numel()
    assert n > 1 and linear.map.std() > 1e-3
    assert torch.allclose(gradient * n, linear.map, atol=1e-3 * linear.map.abs().max().item())


@pytest.mark.slow('davit', 'cait', 'hiera', 'poolformer', 'xcit')
@pytest.mark.parametrize('name, size', OTHERS)
def test_grad_cam_where_the_pool_is_not_linear(name, size, photos):
    model, x, target = make(name), photos(3), torch.tensor([4, 0, 2])
    found = classifier_map(model, x, target)
    assert found.kind == 'gradient' and found.map.shape == (3, *size) and found.map.dtype == torch.float32
    assert found.map.flatten(1).std(1).min() > 0 and (found.map < 0).any(), 'there is no ReLU'
    with torch.no_grad():
        assert torch.allclose(found.logits, model(x), atol=1e-5)
    alone = torch.cat([classifier_map(model, x[i:i + 1], target[i:i + 1]).map for i in range(3)])
    assert torch.allclose(found.map, alone, atol=1e-3 * alone.abs().max().item())


def test_grad_cam_of_a_vit_written_out(photos):
    """At the norm before the last attention, behind which only the class token counts; without the class token."""
    model, x, target = make('test_vit'), photos(3), torch.tensor([4, 0, 2])
    found = classifier_map(model, x, target)
    block = model.blocks[-1]
    tokens = model.norm_pre(model._pos_embed(model.patch_embed(x)))
    for before in model.blocks[:-1]:
        tokens = before(tokens)
    normed = block.norm1(tokens).detach().requires_grad_()
    y = tokens.detach() + block.drop_path1(block.ls1(block.attn(normed)))
    y = y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))
    logits = model.forward_head(model.norm(y))
    gradient, = torch.autograd.grad(logits.gather(1, target[:, None]).sum(), normed)
    for one, activation, g in zip(found.map, normed.detach(), gradient):
        weight = g[1:].mean(0)
        expected = torch.stack([activation[1 + i] @ weight for i in range(16)]).view(4, 4)
        assert torch.allclose(one, expected, rtol=1e-3, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize('name', ['resnet10t', 'test_vit'])
def test_the_model_is_left_as_it_was(name, photos):
    model, x = make(name), photos(2)
    model.train()
    next(model.children()).eval()
    parameters = list(model.parameters())
    for p in parameters[::2]:
        p.requires_grad_(False)
    parameters[1].grad = torch.full_like(parameters[1], 7.)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    with torch.inference_mode():
        inside = classifier_map(model, x)
    outside = classifier_map(model, x)
    assert torch.allclose(inside.map, outside.map) and not outside.map.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in parameters] == [i % 2 == 1 for i in range(len(parameters))]
    assert all(p.grad is None for p in parameters[2:]) and (parameters[1].grad == 7).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules()) and not x.requires_grad and x.grad is None


def test_torchvisions_models_are_timms(photos):
    ours, theirs, x = make('resnet18'), torchvision.models.resnet18(num_classes=5).eval(), photos(2)
    theirs.load_state_dict(ours.state_dict())
    a, b = classifier_map(ours, x), classifier_map(theirs, x)
    assert a.kind == b.kind == 'classifier' and torch.allclose(a.map, b.map, atol=1e-5)
    other = torchvision.models.mobilenet_v3_small(num_classes=5)
    assert classifier_map(other, x).kind == 'gradient'


def test_of_a_focus_model_the_backbone_is_looked_at(photos):
    model, x = timm_focus.create_focus_net('resnet10t', num_classes=3).train(), photos(2)
    focus, plain = classifier_map(model, x), classifier_map(model.backbone.eval(), x)
    assert torch.equal(focus.map, plain.map) and torch.equal(focus.logits, plain.logits) and model.training


@pytest.mark.slow
def test_what_has_no_map_is_told(photos):
    x = photos(2)
    with pytest.raises(ValueError, match='VisionTransformer pools no feature map .* take a timm model'):
        classifier_map(torchvision.models.vit_b_32(num_classes=2, image_size=64), x)
    for kwargs in (dict(num_classes=0), dict(num_classes=0, global_pool='')):
        with pytest.raises(ValueError, match='ResNet gives no logits'):
            classifier_map(timm.create_model('resnet10t', **kwargs), x)
    model = make('resnet10t')
    for target in (torch.tensor([0, 5]), torch.tensor([-1, 0])):
        with pytest.raises(ValueError, match='target has classes .*: the model knows 0 to 4'):
            classifier_map(model, x, target)
    for target in (torch.tensor([0]), torch.tensor([0., 1.])):
        with pytest.raises(ValueError, match='give a class index for each of 2 images'):
            classifier_map(model, x, target)


def test_grad_cam_is_asked_for_where_it_is_needed(photos, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pytorch_grad_cam', None)
    model = make('test_vit').train()
    with pytest.raises(ImportError, match=r"VisionTransformer.* takes Grad-CAM: pip install 'timm_focus\[explain\]'"):
        classifier_map(model, photos(1))
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert classifier_map(make('resnet10t'), photos(1)).kind == 'classifier'


@pytest.mark.slow
def test_sequencers_classifier_is_within_its_head(photos):
    model, x = make('sequencer2d_s', 64), photos(2, 64)
    found = classifier_map(model, x, torch.tensor([1, 3]))
    fc = model.head.fc
    with torch.no_grad():
        expected = slow_map(model.forward_features(x)[0].permute(2, 0, 1), fc.weight, 1)
    assert found.kind == 'classifier' and expected.std() > 1e-3
    assert torch.allclose(found.map[0], expected, atol=1e-3 * expected.abs().max())
