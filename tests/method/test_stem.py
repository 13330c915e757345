"""A new model whose images are erased has gradients like any other."""
import pytest
import timm
import torch

from timm_focus import FocusLoss, FocusNet
from timm_focus.method.stem import break_ties


def largest_gradient(model, x):
    FocusLoss()(model(x), torch.arange(len(x)))['loss'].backward()
    return max(p.grad.norm().item() for p in model.parameters() if p.grad is not None)


def test_erased_places_do_not_blow_up_a_new_convnext(photos):
    largest = []
    for broken in (False, True):
        torch.manual_seed(0)
        backbone = timm.create_model('test_convnext', num_classes=7)
        assert not broken or break_ties(backbone) == 'stem.0'
        largest.append(largest_gradient(FocusNet(backbone).train(), photos(4, 64)))
    assert largest[0] > 1e4, 'as timm begins it: what this is about'
    assert largest[1] < 50


@pytest.mark.slow('vgg11')
@pytest.mark.parametrize('name', ['test_resnet', 'test_vit', 'vgg11'])
def test_others_begin_as_they_are(name):
    model = timm.create_model(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert break_ties(model) == ''
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_bias_that_is_there_stays():
    model = timm.create_model('test_convnext')
    torch.nn.init.ones_(model.stem[0].bias)
    assert break_ties(model) == '' and (model.stem[0].bias == 1).all()


@pytest.mark.slow
def test_the_script_begins_so_and_a_plain_run_does_not(train):
    assert 'stem.0 begins with a random bias' in train(model='focus_test_convnext', more='--img-size 64').err
    assert 'random bias' not in train(model='test_convnext', experiment='plain', more='--img-size 64').err
