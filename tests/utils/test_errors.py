"""What ends a run with one sentence, and what does not."""
import pytest
import timm

from timm_focus.utils.errors import SettingsError, as_settings_error, sentence

OURS = dict(__name__='timm_focus.somewhere')


def test_what_a_library_says_is_one_sentence():
    with pytest.raises(SettingsError, match=r'^The model cannot be made: .*no_such_argument'), \
            as_settings_error('The model cannot be made'):
        timm.create_model('test_resnet', no_such_argument=1)
    with pytest.raises(SettingsError, match='^It cannot be read: No such file'), as_settings_error('It cannot be read'):
        raise FileNotFoundError('No such file\n  or folder')


@pytest.mark.parametrize('mistake, kind', [
    ('{}["a"]', KeyError), ('None.name', AttributeError), ('1 + ""', TypeError), ('[][0]', IndexError)])
def test_a_mistake_in_this_package_keeps_its_traceback(mistake, kind):
    with pytest.raises(kind), as_settings_error('The model cannot be made'):
        eval(mistake, dict(OURS))
    with pytest.raises(SettingsError, match='^The model cannot be made: '), \
            as_settings_error('The model cannot be made'):
        eval(mistake, dict(__name__='library'))


def test_what_this_package_refuses_is_told_as_it_is():
    with pytest.raises(SettingsError, match='^give another$'), as_settings_error('The model cannot be made'):
        raise SettingsError('give another')
    with pytest.raises(SettingsError, match='^The model cannot be made: no classes$'), \
            as_settings_error('The model cannot be made'):
        exec('raise ValueError("no classes")', dict(OURS))


def test_a_sentence_is_one_line_and_not_too_long():
    assert sentence(ValueError('a\n   b')) == 'a b' and sentence(KeyError()) == 'KeyError'
    assert len(sentence(ValueError('a' * 1000))) == 500
    for n in range(450, 500):  # where a cut falls into a token
        assert 'Cd' not in sentence(ValueError('a' * n + ' Authorization: Bearer hf_aBCdCdCdCdCdCdCdCd'))
