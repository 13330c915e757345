"""An explanation is what training erases, step by step, and what the classifier says before and after."""
import pytest
import timm
import torch
from torch.nn import functional as F

import timm_focus
from timm_focus.analysis import classifier_map, explain, focus_area
from timm_focus.analysis.plots import focus_sheet


def focus_model(name='test_resnet', **kwargs):
    return timm.create_model(f'focus_{name}', num_classes=7, **kwargs).eval()


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'test_convnext'])
@pytest.mark.parametrize('settings', [
    {}, dict(focus_threshold=0.4, focus_interpolation='nearest'), dict(focus_map='mean')], ids=str)
def test_a_focus_model_is_shown_as_it_trains(name, settings, photos):
    model = focus_model(name, **settings)
    x = photos(3, 160)
    found = explain(model, x)
    erased, forward = [], model.backbone.forward_features
    with torch.no_grad():
        model.backbone.forward_features = lambda image: erased.append(image) or forward(image)
        model._second_pass(x, model._first_pass(x)[2])
        del model.backbone.forward_features
        assert torch.equal(found.erased, erased[0])
        assert torch.equal(found.logits, model.backbone(x))
        assert torch.equal(found.erased_logits, model.backbone(found.erased))
    assert torch.equal(found.target, found.logits.argmax(1))
    low, high = found.map.amin((1, 2), keepdim=True), found.map.amax((1, 2), keepdim=True)
    normal = (found.map - low) / (high - low)
    mode = dict(mode='nearest-exact') if 'focus_interpolation' in settings else dict(mode='bilinear')
    assert torch.allclose(found.heat, F.interpolate(normal[:, None], (160, 160), **mode)[:, 0], atol=1e-6)
    assert torch.equal(found.keep[:, 0], found.heat < found.threshold)
    assert found.threshold == settings.get('focus_threshold', 0.7)
    assert found.kind == ('mean' if 'focus_map' in settings else 'cam_head')
    assert torch.equal(found.area.area, focus_area(model, x).area)


def _tap_and_main(model, x):
    final, (tap,) = model.backbone.forward_intermediates(
        x, indices=[model.stage], norm=False, stop_early=False, output_fmt='NCHW')
    return tap, model.backbone.forward_head(final)


def test_the_raw_map_is_that_of_the_class(photos):
    model, x = focus_model(), photos(2, 160)
    tap, _ = _tap_and_main(model, x)
    for target in (4, torch.tensor([4, 1])):
        found = explain(model, x, target=target)
        for i, k in enumerate(torch.as_tensor(target).expand(2).tolist()):
            with torch.no_grad():
                literal = F.conv2d(tap[i], model.cam_head.conv.weight)  # without its bias, a constant of the map
                literal = sum(w * channel for w, channel in zip(model.cam_head.fc.weight[k], literal))
            assert torch.allclose(found.map[i], literal, atol=1e-5)
            assert found.target[i] == k
    assert not torch.equal(explain(model, x, target=0).keep, explain(model, x, target=3).keep)


def test_a_random_mask_erases_as_much_as_the_map(photos):
    x = photos(2, 160)
    random = focus_model(focus_map='random')
    cam = focus_model()
    cam.load_state_dict(random.state_dict())
    one, other = explain(random, x), explain(cam, x)
    assert torch.equal(one.map, other.map) and not torch.equal(one.keep, other.keep)
    assert torch.equal(one.keep.flatten(1).sum(1), other.keep.flatten(1).sum(1))


@pytest.mark.parametrize('name, kind', [('test_resnet', 'classifier'), ('test_vit', 'gradient')])
def test_any_model_is_explained_by_its_own_classifier(name, kind, photos):
    if kind == 'gradient':
        pytest.importorskip('pytorch_grad_cam')
    model, x = timm.create_model(name, num_classes=7).train(), photos(3, 160)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    found = explain(model, x, threshold=0.5, target=2)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model.eval()
    expected = classifier_map(model, x, torch.full((3,), 2))
    assert found.kind == expected.kind == kind and torch.equal(found.map, expected.map)
    assert found.threshold == 0.5 and found.target.tolist() == [2, 2, 2]
    with torch.no_grad():
        assert torch.allclose(found.logits, model(x), atol=1e-6)
        assert torch.equal(found.erased_logits, model(x * (found.heat < 0.5)[:, None]))
    assert explain(model, x).threshold == 0.7


@pytest.mark.parametrize('name', ['test_convnext', 'test_vit', 'focus_test_convnext', 'focus_test_vit'])
def test_models_in_bfloat16_are_explained(name, photos):
    pytest.importorskip('pytorch_grad_cam')
    model = timm.create_model(name, num_classes=7).eval()
    x = photos(2, 160)
    whole, half = explain(model, x), explain(model.to(torch.bfloat16), x.to(torch.bfloat16), target=None)
    assert half.kind == whole.kind and half.map.dtype == torch.float32 and half.map.isfinite().all()
    assert half.erased_logits.dtype == torch.bfloat16
    assert torch.allclose(half.logits.float(), whole.logits, atol=0.1)


@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'focus_test_resnet'])
def test_compiled_models_are_explained_as_they_are(name, photos):
    pytest.importorskip('pytorch_grad_cam')
    model, x = timm.create_model(name, num_classes=7).eval(), photos(2, 160)
    found, expected = explain(torch.compile(model, backend='eager'), x), explain(model, x)
    assert found.kind == expected.kind and torch.allclose(found.map, expected.map, atol=1e-5)
    assert torch.equal(found.target, expected.target)


def test_a_threshold_is_tried_without_a_trace(photos):
    model, x = focus_model().train(), photos(2, 160)
    some, more = explain(model, x, 0.9), explain(model, x, 0.2)
    assert model.threshold == 0.7 and model.training
    assert (more.keep <= some.keep).all() and more.keep.sum() < some.keep.sum()


@pytest.mark.parametrize('model', ['focus_test_resnet', 'test_resnet'])
def test_what_is_none_is_refused(model, photos):
    model, x = timm.create_model(model, num_classes=7).eval(), photos(2, 160)
    for threshold in (0, -1, 1.5, float('nan')):
        with pytest.raises(ValueError, match='give a number above 0 and at most 1'):
            explain(model, x, threshold)
    for target in (7, -1):
        with pytest.raises(ValueError, match='knows 0 to 6'):
            explain(model, x, target=target)


@pytest.mark.parametrize('channels', [1, 3])
def test_a_flat_image_and_one_channel(channels, tmp_path):
    model = focus_model(in_chans=channels)
    found = explain(model, torch.zeros(1, channels, 160, 160))
    assert found.erased_logits.isfinite().all()
    focus_sheet(model, torch.zeros(1, channels, 160, 160), tmp_path / 'sheet.png', (0.5,) * channels,
                (0.2,) * channels, ['flat'])
    assert (tmp_path / 'sheet.png').stat().st_size > 1000
    assert timm_focus.FocusNet is type(model)
