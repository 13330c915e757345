"""Pushing to a Hub that speaks HTTP, by the true client, and what comes back."""
import json
import re
import subprocess
import sys
import threading
import traceback

import pytest
import timm
import torch
from conftest import ENVIRONMENT, equal
from huggingface_hub import ModelCard, constants
from loopback_hub import TOKEN

import timm_focus
from timm_focus.release import HubError, list_export, push_folder
from timm_focus.release.folder import RECORD

ABOUT = dict(license='cc-by-4.0', dataset='My Scenes')


@pytest.fixture
def model():
    return timm.create_model('focus_test_resnet', num_classes=3)


@pytest.fixture
def export(model, tmp_path):
    return timm_focus.save_for_hub(model, tmp_path / 'out', **ABOUT)


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != RECORD}


@pytest.fixture
def impatient(monkeypatch):
    """The client's waits between its own tries, 23 seconds of them, are noted and left out."""
    waits = []
    monkeypatch.setattr('huggingface_hub.utils._http.time.sleep', waits.append)
    return waits


def test_there_and_back(hub, model, tmp_path):
    url = timm_focus.push_to_hub(model, 'user/name', **ABOUT, folder=tmp_path / 'out', label_names=['a', 'b', 'c'])
    assert url == f'{hub.url}/user/name/commit/{hub.repos["user/name"].branches["main"][-1][0]}'
    assert len(hub.repos['user/name'].branches['main']) == 2, 'one commit after the first, empty one'
    assert hub.content('user/name') == content(tmp_path / 'out') and not hub.repos['user/name'].private
    assert hub.made('PUT', '^/lfs/'), 'weights go by LFS'
    focus = timm_focus.create_from_hub('user/name')
    assert equal(focus.state_dict(), model.state_dict()) and focus.focus_args == model.focus_args
    plain = timm.create_model('hf-hub:user/name', pretrained=True)
    assert equal(plain.state_dict(), model.backbone.state_dict())
    cfg = plain.pretrained_cfg
    assert cfg['label_names'] == ['a', 'b', 'c'] and cfg['architecture'] == 'test_resnet'
    assert all(a in (None, f'Bearer {TOKEN}') for _, _, a in hub.requests)
    assert not any(a for _, p, a in hub.requests if p.startswith('/lfs') and _ == 'PUT'), 'storage is not the Hub'


@pytest.mark.slow
def test_the_cards_own_lines(hub, model, tmp_path, photo, monkeypatch):
    """What the card says on loading, as printed, of a focus model, a plain one and ShuffleNetV2."""
    monkeypatch.chdir(tmp_path)
    models = dict(focus=model, plain=timm.create_model('test_resnet', num_classes=3),
                  shuffle=timm.create_model('focus_shufflenetv2_x0_5', num_classes=3))
    for name, source in models.items():
        timm_focus.push_to_hub(source, f'user/{name}', **ABOUT, folder=tmp_path / name)
        blocks = re.findall(r'^```python\n(.*?)^```', (tmp_path / name / 'README.md').read_text(), re.M | re.S)
        assert len(blocks) == (3 if name == 'shuffle' else 4)
        blocks = [b for b in blocks if 'transformers' not in b]  # test_transformers.py has it
        for code in blocks:
            namespace = dict(image=photo)
            exec(code, namespace)
            loaded = namespace['model']
            with torch.no_grad():
                x = torch.randn(2, 3, 64, 64)
                assert torch.equal(loaded.eval()(x), source.eval()(x)), code
                if 'transform' in namespace:
                    assert loaded(namespace['transform'](photo)[None]).shape == (1, 3)
        assert any('create_from_hub' in b for b in blocks) == (name != 'plain')
        assert any('torchvision' in b for b in blocks) == (name == 'shuffle')


WITHOUT = """
import sys
sys.modules['timm_focus'] = None  # as where it is not installed: importing it fails
import timm, torch
from PIL import Image
model = timm.create_model('hf-hub:user/name', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
with torch.no_grad():
    torch.save(model(transform(Image.open(sys.argv[1]).convert('RGB'))[None]), sys.argv[2])
"""


@pytest.mark.slow
def test_without_this_project(hub, model, tmp_path, photo):
    photo.save(tmp_path / 'photo.png')
    config = dict(input_size=(3, 64, 64), crop_pct=0.9, interpolation='bicubic', mean=(0.4,) * 3, std=(0.2,) * 3)
    timm_focus.push_to_hub(model, 'user/name', **ABOUT, data_config=config)
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT, tmp_path / 'photo.png', tmp_path / 'logits.pt'],
        env={**ENVIRONMENT, **hub.environment}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        logits = model.eval()(timm.data.create_transform(**config)(photo)[None])
    assert torch.equal(torch.load(tmp_path / 'logits.pt'), logits)


# what is there already

def test_nothing_is_overwritten_without_being_asked(hub, export, tmp_path, model):
    push_folder(export, 'user/name')
    before = hub.content('user/name')
    assert push_folder(export, 'user/name') == f'{hub.url}/user/name', 'the same again is done already'
    assert len(hub.repos['user/name'].branches['main']) == 2
    other = timm_focus.save_for_hub(model.backbone, tmp_path / 'other', **ABOUT)
    with pytest.raises(HubError, match=r'has files already \(README.md, config.json, .* --overwrite` replaces them'):
        push_folder(other, 'user/name')
    assert hub.content('user/name') == before
    url = push_folder(other, 'user/name', create_pr=True)
    assert url.endswith('/discussions/1') and hub.content('user/name') == before
    assert hub.content('user/name', 'refs/pr/1') == content(other)
    push_folder(other, 'user/name', overwrite=True)
    assert hub.content('user/name') == content(other), 'heads of other weights are gone, too'


def test_a_readme_of_somebody_counts(hub, export):
    push_folder(export, 'user/other')
    repo = hub.repos['user/name'] = type(hub.repos['user/other'])(False)
    push_folder(export, 'user/name')  # .gitattributes alone is nothing
    repo.branches['main'][-1] = (repo.branches['main'][-1][0], {'README.md': b'# Mine', '.gitattributes': b''})
    with pytest.raises(HubError, match=r'has files already \(README.md\)'):
        push_folder(export, 'user/name')
    assert hub.content('user/name') == {'README.md': b'# Mine'}


def test_somebody_was_faster(hub, export, monkeypatch):
    """A commit between our look and our commit: by a thread, when the first object arrives."""
    push_folder(export, 'user/other')
    repo = hub.repos['user/name'] = type(hub.repos['user/other'])(False)
    check, done = hub.RequestHandlerClass.validate, threading.Event()

    def validate(handler, text):
        if not done.is_set():
            done.set()
            repo.add('main', {'README.md': b'# Mine'})
        check(handler, text)

    monkeypatch.setattr(hub.RequestHandlerClass, 'validate', validate)
    with pytest.raises(HubError, match=r'changed by somebody else meanwhile \(412\)'):
        push_folder(export, 'user/name')
    assert hub.content('user/name') == {'README.md': b'# Mine'}


def test_branches_and_privacy(hub, export):
    push_folder(export, 'user/name', private=True, revision='dev')
    repo = hub.repos['user/name']
    assert repo.private and not hub.content('user/name') and hub.content('user/name', 'dev') == content(export)
    push_folder(export, 'user/name', revision='later')
    assert hub.content('user/name', 'later') == content(export)
    loaded = timm_focus.create_from_hub('user/name@dev')
    assert timm.create_model('hf-hub:user/name@dev', pretrained=True).num_classes == loaded.num_classes == 3
    push_folder(export, 'user/public')
    with pytest.raises(HubError, match='was to be private, and is public on .*: nothing was sent.*leave out private'):
        push_folder(export, 'user/public', private=True, overwrite=True)
    with pytest.raises(HubError, match='has no repository user/none'):
        push_folder(export, 'user/none', create_pr=True)


def test_what_is_to_be_private_is_never_sent_to_a_public_place(hub, export):
    """A server that reads 'private', where the client says 'visibility', makes it public."""
    hub.reads = 'private'
    with pytest.raises(HubError, match='was to be private, and is public on .*: nothing was sent.*export is whole'):
        push_folder(export, 'user/name', private=True)
    assert not hub.repos['user/name'].private and not hub.blobs
    assert [(m, p) for m, p, _ in hub.requests if m != 'GET'] == [('POST', '/api/repos/create')], 'nothing is deleted'
    push_folder(export, 'user/name')
    assert hub.content('user/name') == content(export)
    hub.repos['user/name'].private = None  # a server that does not say it
    with pytest.raises(HubError, match='was to be private, and is not known to be private'):
        push_folder(export, 'user/name', private=True, overwrite=True)


def test_a_branch_is_made_when_the_push_goes_ahead(hub, export, model, tmp_path):
    push_folder(export, 'user/name')
    other = timm_focus.save_for_hub(model.backbone, tmp_path / 'other', **ABOUT)
    with pytest.raises(HubError, match='has files already.*--revision dev --overwrite` replaces them'):
        push_folder(other, 'user/name', revision='dev')
    (other / 'weights.bin').write_bytes(b'x')
    with pytest.raises(ValueError, match='weights.bin may hold code'):
        push_folder(other, 'user/name', revision='dev', overwrite=True)
    (other / 'weights.bin').unlink()
    with pytest.raises(ValueError, match='A pull request goes to the main branch: leave out create_pr or revision'):
        push_folder(other, 'user/name', revision='dev', create_pr=True)
    assert set(hub.repos['user/name'].branches) == {'main'} and not hub.made('POST', '/branch/')
    push_folder(other, 'user/name', revision='dev', overwrite=True)
    assert hub.content('user/name', 'dev') == content(other) and hub.content('user/name') == content(export)
    push_folder(export, 'user/name', revision='same')  # what main has already: a branch, and nothing is sent
    assert hub.content('user/name', 'same') == content(export)


# faults

@pytest.mark.slow('call1')
@pytest.mark.parametrize('call, words', [
    (('GET', '^/api/models/', 503), r'has a fault \(503\)'),
    (('POST', 'repos/create', 401), r'does not know the token \(401\)'),
    (('POST', 'repos/create', 403), r'does not allow this on user/name \(403\)'),
    (('POST', 'repos/create', 429, {'Retry-After': '7'}), r'asks for fewer requests \(429\): wait 7 seconds'),
    (('POST', 'preupload', 404), r'has no repository user/name.*\(404\)'),
    (('POST', 'preupload', 500, {}, 9), r'has a fault \(500\)'),
    (('POST', 'batch', None, {}, 9), 'cannot be made, or broke'),
    (('PUT', '/lfs/', None, {}, 20, 10_000), 'cannot be made, or broke'),  # in the midst of the weights
    (('PUT', '/lfs/', 503, {}, 20), r'has a fault \(503\)'),
    (('POST', '/lfs/', 403), r'\(403\)'),
    (('POST', 'commit', 409), r'changed by somebody else meanwhile \(409\)'),
    (('POST', 'commit', 429), r'\(429\): wait some minutes'),
    (('POST', 'commit', 502), r'has a fault \(502\)'),
    (('POST', 'commit', None), 'cannot be made, or broke'),
    (('POST', 'commit', 418), r'refuses \(418\)'),
    (('POST', 'commit', 'done'), 'cannot be made, or broke'),  # it arrived, but the answer did not
])
def test_a_fault_leaves_the_export_and_says_how_to_go_on(call, words, hub, export, impatient, caplog):
    before = content(export)
    hub.fail(*call)
    with pytest.raises(HubError) as e:
        push_folder(export, 'user/name', private=True)
    text = str(e.value)
    assert re.search(words, text), text
    said = 'The server says: as asked' in text or 'refuses (418)' in text and 'as asked' in text
    assert said == isinstance(call[2], int), text
    command = re.search('`timm-focus push (.*?) --private`', text)
    assert command and command[1] == f'{export} user/name' and f'The export is whole in {export}' in text
    assert TOKEN not in text + caplog.text and e.value.__cause__ is None and e.value.__suppress_context__
    assert content(export) == before
    hub.faults.clear()
    sent = len(hub.made('PUT', '/lfs/'))
    push_folder(export, 'user/name', private=True)
    assert hub.content('user/name') == before and len(hub.repos['user/name'].branches['main']) == 2
    if call[1] == 'commit':
        assert len(hub.made('PUT', '/lfs/')) == sent, 'what has arrived is not sent again'


def test_the_client_waits_as_it_is_told(hub, export, impatient):
    hub.fail('POST', 'preupload', 429, {'Retry-After': '3'})
    hub.fail('PUT', '/lfs/', 503, times=2)
    push_folder(export, 'user/name')
    assert 4 in impatient and hub.content('user/name') == content(export)


def test_a_wrong_token(hub, export, monkeypatch, caplog):
    monkeypatch.setenv('HF_TOKEN', 'hf_wrongwrongwrong')
    with pytest.raises(HubError, match=r'does not know the token \(401\)') as e:
        push_folder(export, 'user/name')
    assert 'hf_wrong' not in str(e.value) + caplog.text
    with pytest.raises(HubError, match=r'\(401\)'):
        timm_focus.create_from_hub('user/name')
    monkeypatch.setenv('HF_TOKEN', 'hf_with\tin\x01it')  # no header can carry it, and the HTTP library shows headers
    with pytest.raises(HubError) as e:
        push_folder(export, 'user/name')
    assert 'hf_with' not in str(e.value) + caplog.text


def test_nobody_listens(hub, export, monkeypatch):
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(HubError, match='http://127.0.0.1:9 cannot be made, or broke .*The export is whole'):
        push_folder(export, 'user/name')


def test_somebody_elses_namespace(hub, export):
    with pytest.raises(HubError, match=r'does not allow this on other/name \(403\)'):
        push_folder(export, 'other/name')


# nothing of the token

TOKENS = {
    'as it is': TOKEN, 'a line break after it': f'{TOKEN}\n', 'CR LF after it': f'{TOKEN}\r\n',
    'spaces around it': f'  {TOKEN} ', 'a line break within': f'{TOKEN[:9]}\n{TOKEN[9:]}', 'tabs': f'\t{TOKEN}\t',
    'of another kind': 'k7Q2vX9mZp4LsT8w', 'of another kind, spaced': ' k7Q2vX9mZp4LsT8w\n',
}
ECHOES = {
    '401': dict(status=401, says='You sent {headers}'), '403': dict(status=403, says='{headers}'),
    '404': dict(status=404, says='no: {headers}'), '418': dict(status=418, says='{headers}'),
    '500': dict(status=500, says='{headers}', times=9), '502': dict(status=502, says='{headers}', times=9),
    # so that a cut at 300 characters falls into the token, after 100 to 290 others
    **{f'after {n}': dict(status=418, says='x' * n + '{headers}') for n in range(100, 300, 10)},
    'in a header': dict(status=403, headers={'X-Error-Message': '{headers}'}),
    'in a warning': dict(status=500, headers={'X-HF-Warning': 'echo; {headers}'}, times=9),
}


def pieces(token, n=6):
    token = ''.join(token.split()).removeprefix('hf_')
    return {token[i:i + n] for i in range(len(token) - n + 1)}


@pytest.mark.slow('break', 'CR LF', 'tabs', 'kind', 'spaces')  # where a cut falls is tried for one token of each kind
@pytest.mark.parametrize('token', TOKENS)
def test_the_token_is_never_shown(token, hub, export, impatient, monkeypatch, caplog, capfd):
    """Not in the message, the log, the output or the traceback, of a server that answers with what it was sent."""
    monkeypatch.setenv('HF_TOKEN', TOKENS[token])
    hub.token = re.sub('[\r\n]', '', TOKENS[token]).strip()
    caplog.set_level('DEBUG')
    cut = token in ('as it is', 'a line break within', 'of another kind, spaced')
    for name, how in ECHOES.items():
        if name.startswith('after') and not cut:
            continue
        hub.fail('POST', 'preupload', **how)
        with pytest.raises(HubError) as e:
            push_folder(export, 'user/name')
        shown = ''.join(traceback.format_exception(e.value)) + caplog.text + ''.join(capfd.readouterr())
        found = [piece for piece in pieces(TOKENS[token]) if piece in shown]
        assert not found, (name, found, shown)
        cut_or_once = name.startswith('after') or 'warning' in name  # the client tells a warning once
        assert '***' in shown or cut_or_once, 'what it says is shown'
        assert f'Bearer {hub.token}' == hub.made('POST', 'preupload')[-1][2], 'the token was sent'
        hub.faults.clear()
        caplog.clear()


# before anything is written

@pytest.mark.parametrize('repo_id', [
    'name', 'a/b/c', 'user/na me', '', '/name', 'user/', 'user/-x', '../etc', 'user/n..m'])
def test_names_that_are_none(repo_id, hub, model, tmp_path):
    with pytest.raises(ValueError, match='is no user/name of a Hub repository'):
        timm_focus.push_to_hub(model, repo_id, **ABOUT, folder=tmp_path / 'out')
    assert not (tmp_path / 'out').exists() and not hub.requests


def test_no_token_no_network_no_licence(hub, model, tmp_path, monkeypatch):
    def refusal(**about):
        with pytest.raises(ValueError) as e:
            timm_focus.push_to_hub(model, 'user/name', **about, folder=tmp_path / 'out')
        assert not (tmp_path / 'out').exists() and not hub.requests and '\n' not in str(e.value)
        return str(e.value)

    assert 'licence of the weights is not given' in refusal(dataset='x')
    assert 'data set that the weights were trained on is not given' in refusal(license='mit')
    monkeypatch.delenv('HF_TOKEN')
    assert '`hf auth login` keeps one' in refusal(**ABOUT)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE is set' in refusal(**ABOUT)


def test_what_must_not_be_sent(hub, export):
    (export / '.DS_Store').write_bytes(b'x')
    (export / 'README.md~').write_bytes(b'x')
    (export / 'notes').mkdir()
    (export / 'notes/more.md').write_text('more')
    assert [n for n, _ in list_export(export)] == [
        'README.md', 'config.json', 'focus_heads.safetensors', 'model.safetensors', 'notes/more.md']
    (export / 'notes/more.md').write_text(f'my token is {TOKEN}')
    with pytest.raises(ValueError, match='more.md contains your token') as e:
        push_folder(export, 'user/name')
    assert TOKEN not in str(e.value) and not hub.made('POST', '')
    (export / 'notes/more.md').unlink()
    (export / 'pytorch_model.bin').write_bytes(b'x')
    with pytest.raises(ValueError, match='pytorch_model.bin may hold code .* only safetensors'):
        push_folder(export, 'user/name')
    with pytest.raises(ValueError, match='is no export'):
        push_folder(export / 'notes', 'user/name')
    assert not hub.made('POST', '')


def test_an_edited_card_is_sent_as_it_is(hub, export, caplog):
    (export / 'README.md').write_text((export / 'README.md').read_text() + '\nBy hand.\n')
    push_folder(export, 'user/name')
    assert hub.content('user/name')['README.md'].endswith(b'By hand.\n')
    push_folder(export, 'user/two')
    assert 'README.md does not name user/two' in caplog.text
    (export / 'README.md').write_text('---\nlicense: "my own!"\n---\n')
    with pytest.raises(HubError, match='Invalid metadata in README.md.*"license" must be an identifier'):
        push_folder(export, 'user/three')
    assert not hub.content('user/three')


# back

def test_what_comes_back_is_checked(hub, model, tmp_path, export):
    timm_focus.push_to_hub(model.backbone, 'user/plain', **ABOUT)
    with pytest.raises(ValueError, match="plain model, without heads.*timm.create_model\\('hf-hub:user/plain'"):
        timm_focus.create_from_hub('user/plain')
    with pytest.raises(HubError, match='has no repository user/none'):
        timm_focus.create_from_hub('user/none')
    with pytest.raises(ValueError, match='There is no nowhere/config.json'):
        timm_focus.create_from_hub('local-dir:nowhere')
    config = json.loads((export / 'config.json').read_text())
    for focus, words in (
            (dict(config['focus'], focus_width=7), 'do not fit its model: Error.* size mismatch for cam_head'),
            (dict(config['focus'], focus_map='evil'), "do not fit its model: focus_map is 'evil'"),
            (dict(config['focus'], focus_new=1), "do not fit its model: .*focus_new"),
            ([1], 'is no configuration')):
        (export / 'config.json').write_text(json.dumps({**config, 'focus': focus}))
        with pytest.raises(ValueError, match=words):
            timm_focus.create_from_hub(f'local-dir:{export}')
    other = timm_focus.save_for_hub(model, tmp_path / 'two', **ABOUT)
    (export / 'config.json').write_bytes((other / 'config.json').read_bytes())
    for name in ('focus_heads.safetensors', 'model.safetensors'):
        (export / name).write_bytes((export / name).read_bytes()[:1000])
        with pytest.raises(ValueError, match='cannot be loaded'):
            timm_focus.create_from_hub(f'local-dir:{export}')
        (export / name).unlink()
        with pytest.raises(ValueError, match='There is no .*heads|cannot be loaded'):
            timm_focus.create_from_hub(f'local-dir:{export}')
        (export / name).write_bytes((other / name).read_bytes())
    assert timm_focus.create_from_hub(f'local-dir:{other}', focus_threshold=0.5).threshold == 0.5


def test_training_goes_on(hub, model, photos):
    timm_focus.push_to_hub(model, 'user/name', **ABOUT)
    loaded, results = timm_focus.create_from_hub('user/name'), []
    for one in (model, loaded):
        one.train()
        losses = timm_focus.FocusLoss()(one(photos(4)), torch.tensor([0, 1, 2, 0]))
        losses['loss'].backward()
        results.append([losses['loss'], *(p.grad for p in one.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_the_metadata_is_read_by_the_hubs_client(hub, model):
    timm_focus.push_to_hub(model, 'user/name', **ABOUT, metrics=dict(top1=12.5))
    card = ModelCard.load('user/name')
    assert card.data.eval_results[0].metric_value == 0.125 and card.data.model_name == 'name'
