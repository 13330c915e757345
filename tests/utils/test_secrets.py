"""What is logged while the Hub is spoken to."""
import logging
import sys
import warnings

import pytest

from timm_focus.utils.secrets import discreet, redact

SECRET = 'hf_aBcDeFgHiJkLmNoP'


@pytest.mark.parametrize('text, shown', [
    (f'Authorization: Bearer {SECRET}', 'Authorization: ***'),
    (f"{{'authorization': 'Bearer {SECRET}', 'accept': '*/*'}}", "{'authorization': '***', 'accept': '*/*'}"),
    ('authorization=Basic dXNlcjpwdw==; host: x', 'authorization=***; host: x'),
    ('(b"Authorization", b"Bearer abcdefghij")', '(b"Authorization", b"Bearer ***")'),
    ('a token hf_abcdef that was cut', 'a token hf_*** that was cut'),
    ('hf_oauth_abcdefgh', 'hf_***'),
    ('https://me:word@host/x', 'https://***@host/x'),
    ('GET https://s3/x?X-Amz-Signature=abc&X-Amz-Credential=d failed', 'GET https://s3/x?*** failed'),
    ('/home/me/hf_scenes40/a.png and hf_datasets/a.png, of hf_hub_download', None),
    ('HF_HUB_DISABLE_XET=1 and https://huggingface.co/user/name', None),
    ('Invalid metadata in README.md: "license" must be an identifier', None),
])
def test_what_looks_like_a_secret(text, shown):
    assert redact(text) == (text if shown is None else shown)


@pytest.mark.parametrize('raw', ['opensesame42', ' opensesame42\n', 'open\r\nsesame42', '"open\tsesame42"'])
def test_the_users_own(raw, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', raw)
    for form in (raw, raw.strip(), raw.replace('\r', '').replace('\n', '').strip(), repr(raw.strip())):
        assert 'sesame' not in redact(f'sent {form} there'), form


def test_the_log(hub, caplog, capsys, monkeypatch):
    """Requests of a real client are not logged, its warnings are, redacted; afterwards all is as it was."""
    httpx = pytest.importorskip('httpx')
    monkeypatch.setattr(logging, 'raiseExceptions', False)  # of handlers whose stream another test has closed
    logging.getLogger('httpx').setLevel(logging.INFO)
    address, record = f'{hub.url}/api/models?X-Amz-Signature=sesame', logging.getLogRecordFactory()
    with discreet(), caplog.at_level(logging.DEBUG):
        httpx.get(address)
        assert not caplog.records
        logging.getLogger('huggingface_hub.somewhere').warning('Retrying %s', address)
        try:
            raise ValueError(f'no {address}')
        except ValueError:
            logging.getLogger('late').exception('of %s', SECRET)
        logging.getLogger('plain').warning('%s of %d', 'one', 2)
        with warnings.catch_warnings():
            warnings.simplefilter('always')
            showing = warnings.showwarning
            warnings.showwarning = lambda *args, **_: sys.stderr.write(warnings.formatwarning(*args[:4]))
            warnings.warn(f'no {address}', stacklevel=1)
            warnings.showwarning = showing
    assert 'Retrying http' in caplog.text and 'one of 2' in caplog.text
    for text in (caplog.text, capsys.readouterr().err):
        assert 'sesame' not in text and 'aBcDeF' not in text and '?***' in text
    assert logging.getLogRecordFactory() is record
    caplog.clear()
    with caplog.at_level(logging.INFO):
        httpx.get(address)
    assert 'sesame' in caplog.text, 'what others log is theirs'
    logging.getLogger('httpx').setLevel(logging.NOTSET)


def test_training_and_commands_are_discreet(hub, settings, monkeypatch, caplog, tmp_path):
    httpx = pytest.importorskip('httpx')
    import train_focus
    from timm_focus.commands.main import main
    address = f'{hub.url}/api/models?X-Amz-Signature=sesame'

    def stream(*_, **__):  # as a data set of the Hub is read
        httpx.get(address)
        logging.getLogger('train').info('read %s', address)
        raise ValueError('enough')

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings()])
    monkeypatch.setattr(train_focus, 'create_datasets', stream)
    with pytest.raises(ValueError, match='enough'):
        train_focus.main()
    monkeypatch.setattr('timm_focus.commands.rf.run', stream)
    with pytest.raises(SystemExit):
        main(['rf', 'resnet18'])
    assert caplog.text.count('read http') == 2 and 'sesame' not in caplog.text and 'HTTP Request' not in caplog.text
