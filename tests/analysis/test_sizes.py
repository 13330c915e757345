"""A size that is said to work does, and one that a model cannot take is told in a sentence."""
import re

import pytest
import timm
import torch
import torchvision

from timm_focus import FocusNet
from timm_focus.analysis import FINE, check_size, find_size, last_map

# what is asked for, and what is found near it
CANNOT = [('dla34', 70, 64), ('vgg11', 16, 32), ('maxvit_tiny_rw_224', 100, 96), ('hrnet_w18_small', 50, 64),
          ('test_vit', 70, 64), ('swin_tiny_patch4_window7_224', 16, 32), ('mobilevit_xxs', 20, 24),
          ('pit_ti_224', 10, 16)]


def at(name, size):
    """A model made for a size, as the commands make it."""
    kwargs = timm.models.resolve_model_input_args(name, dict(img_size=size), num_classes=3)
    return timm.create_model(**kwargs).eval()


def runs(name, size):
    try:
        with torch.no_grad():
            return at(name, size)(torch.zeros(1, 3, size, size)).shape == (1, 3)
    except Exception:  # whatever its layers say
        return False


@pytest.mark.slow('vgg11', 'maxvit', 'hrnet', 'pit')
@pytest.mark.long('hrnet', 'vgg11')
@pytest.mark.parametrize('name, size, near', CANNOT)
def test_a_size_that_a_model_cannot_take(name, size, near):
    if runs(name, size):
        pytest.skip('this timm takes it')
    try:
        model = at(name, size)
    except Exception:  # made for a size that it can be made for, then
        model = at(name, near)
    with pytest.raises(ValueError, match=rf'^a model cannot be run on images of {size} x {size} \(.*\): ') as e:
        check_size(model, (3, size, size), 'a model')
    found = re.search(r': (\d+) x (\d+) works\.$', str(e.value))
    assert found and found[1] == found[2]
    assert runs(name, int(found[1])), 'what is said to work does'
    assert abs(int(found[1]) - size) <= abs(near - size)


@pytest.mark.parametrize('make', [
    lambda: timm.create_model('resnet10t', num_classes=3), lambda: torchvision.models.resnet18(num_classes=3),
    lambda: FocusNet(timm.create_model('resnet10t', num_classes=3)),
    lambda: torch.compile(timm.create_model('resnet10t', num_classes=3), backend='eager')],
    ids=['timm', 'torchvision', 'focus', 'compiled'])
def test_a_size_with_a_map_of_enough_places(make):
    model = make()
    assert find_size(model, (3, 64, 64), FINE) == (128, 128)
    assert check_size(model, (3, 64, 64)).shape == (1, 3)
    assert min(last_map(model, torch.zeros(1, 3, 128, 128))[0].shape[2:]) == 4
    height, width = find_size(model, (3, 48, 96), FINE)
    assert height >= 48 and width >= 96
    assert min(last_map(model, torch.zeros(1, 3, height, width))[0].shape[2:]) >= 4


def test_where_no_size_is_found():
    class Never(torch.nn.Linear):
        def forward(self, x):
            raise IndexError('no\nimage is\ntaken.')
    sentence = r'^Never cannot be run on images of 8 x 8 \(no image is taken\): Give another'
    with pytest.raises(ValueError, match=sentence):
        check_size(Never(1, 1), (3, 8, 8))
    assert find_size(Never(1, 1), (3, 8, 8), FINE) is None
