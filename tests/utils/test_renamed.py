"""Old names of attributes."""
import pytest
import timm

from timm_focus import FocusLoss


@pytest.mark.parametrize('old, new, value', [
    ('map', 'map_kind', 'mean'), ('fraction', 'batch_fraction', 0.5), ('erased_by', 'scored_by', 'main')])
def test_a_model_knows_the_old_names_of_its_attributes(old, new, value):
    model = timm.create_model('focus_test_resnet', num_classes=4)
    with pytest.warns(DeprecationWarning, match=f'FocusNet is now called {new}') as caught:
        assert getattr(model, old) == getattr(model, new)
        setattr(model, old, value)
    assert getattr(model, new) == value and caught[0].filename == __file__


def test_a_loss_knows_the_old_name_of_its_scorer():
    with pytest.warns(DeprecationWarning, match='FocusLoss is now called scorer'):
        assert FocusLoss(consistency='attention_mining').erased_by == 'main'
