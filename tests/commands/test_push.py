"""From a run to the Hub: timm-focus push, and --push-to-hub of the script."""
import argparse
import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import timm
import torch
from conftest import ENVIRONMENT, ROOT, TINY, equal
from huggingface_hub import ModelCard, constants
from loopback_hub import TOKEN
from safetensors.torch import load, load_file

import timm_focus
import train_focus
from timm_focus.commands.main import main
from timm_focus.release.folder import RECORD
from timm_focus.training import parse_args

ABOUT = ('--license', 'cc-by-4.0', '--dataset', 'My Scenes')


@pytest.fixture
def push(capsys):
    """`push('run', 'user/name')` is what it prints."""
    def run(*argv):
        capsys.readouterr()
        main(['push', *map(str, argv)])
        return capsys.readouterr().out
    return run


@pytest.fixture
def refused(capsys):
    """`refused('run', 'user/name')` is the one line with which it refuses."""
    def run(*argv):
        capsys.readouterr()
        with pytest.raises(SystemExit) as e:
            main(['push', *map(str, argv)])
        out, err = capsys.readouterr()
        assert e.value.code == 2 and err.startswith('timm-focus push: error: ') and err.count('\n') == 1, err
        return err
    return run


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != RECORD}


def test_a_run_is_published_as_it_was_evaluated(hub, train, push, image_folder, monkeypatch):
    """Everything of it, and nothing of the machine it ran on, nor of the token."""
    monkeypatch.setenv('WANDB_API_KEY', 'wandbsecret')
    run = train('--epochs 2 --crop-pct 0.9 --mean 0.4 0.5 0.6 --wandb-project wandbsecret --focus-stage layer2')
    text = push(run.folder, 'user/name', *ABOUT, '--dataset-terms', 'CC BY 4.0')
    sent = hub.content('user/name')
    assert sent == content(run.folder / 'hub')
    assert set(sent) == {'README.md', 'args.yaml', 'config.json', 'coverage.png', 'curves.png', 'focus.png',
                         'focus_heads.safetensors', 'model.safetensors', 'summary.csv'}
    best = run.checkpoint('model_best')
    assert equal(load(sent['model.safetensors']), best['state_dict'])
    heads = load(sent['focus_heads.safetensors'])
    assert equal(heads, {f'{head}.{k}': v for head, state in best['task_state'].items() for k, v in state.items()})
    config = json.loads(sent['config.json'])
    cfg = config['pretrained_cfg']
    assert config['architecture'] == TINY and config['label_names'] == ['left', 'right'] and config['num_classes'] == 2
    assert (cfg['crop_pct'], cfg['mean'], cfg['input_size']) == (0.9, [0.4, 0.5, 0.6], [3, 32, 32])
    row = run.rows[best['epoch']]
    results = {r.metric_name: r.metric_value for r in ModelCard(sent['README.md'].decode()).data.eval_results}
    assert results['Top-1 accuracy'] == pytest.approx(float(row['eval_top1']) / 100, abs=1e-6)
    assert results['Cross-entropy'] == pytest.approx(float(row['eval_loss']), abs=1e-4)
    everything = b'\n'.join(sent.values()) + b''.join(p.encode() for _, p, _ in hub.requests)
    for private in (TOKEN, 'wandbsecret', str(image_folder), str(run.folder), '/tmp', os.path.expanduser('~') + '/'):
        assert private.encode() not in everything, private
    assert TOKEN not in text and 'wandbsecret' not in text
    (run.folder / 'published.yaml').write_bytes(sent['args.yaml'])
    again = parse_args(train_focus.parser, ['DIR', '--config', str(run.folder / 'published.yaml')])[0]
    assert (again.model, again.epochs, again.focus_stage, again.crop_pct) == (f'focus_{TINY}', 2, 'layer2', 0.9)
    assert again.push_to_hub is None and again.device is None
    focus = timm_focus.create_from_hub('user/name')
    assert equal(focus.backbone.state_dict(), best['state_dict']) and focus.stage == 2
    assert push(run.folder / 'hub', 'user/name').endswith('Published: ' + hub.url + '/user/name\n'), 'sent already'


@pytest.mark.slow
@pytest.mark.parametrize('flags, weights, heads', [
    ('--model-ema --model-ema-decay 0.5', 'state_dict_ema', 'task_state_ema'),
    ('--model-ema --model-ema-decay 0.5 --model-ema-force-cpu', 'state_dict', 'task_state'),  # kept, but not evaluated
])
def test_the_weights_are_those_that_were_evaluated(flags, weights, heads, hub, train, push):
    run = train(flags)
    push(run.folder, 'user/name', *ABOUT, '--dry-run')
    state = run.checkpoint('model_best')
    assert not equal(state['state_dict'], state['state_dict_ema'])
    assert equal(load_file(run.folder / 'hub/model.safetensors'), state[weights])
    written = load_file(run.folder / 'hub/focus_heads.safetensors')
    assert torch.equal(written['cam_head.conv.weight'], state[heads]['cam_head']['conv.weight'])


@pytest.mark.slow
def test_plain_runs_and_checkpoints_of_timm(hub, train, push, tmp_path, image_folder):
    run = train(model=TINY)
    push(run.folder, 'user/plain', *ABOUT)
    assert 'focus' not in json.loads(hub.content('user/plain')['config.json'])
    assert not {'focus_heads.safetensors', 'focus.png'} & set(hub.content('user/plain'))
    assert 'chen2021see' not in hub.content('user/plain')['README.md'].decode()
    assert 'coverage.png' in hub.content('user/plain')
    state = run.checkpoint('model_best')
    settings = state['args']
    for name in list(vars(settings)):  # what timm's own script does not know
        if name.startswith(('focus_', 'hub_', 'push_', 'label_names', 'last_epoch', 'places', 'method')):
            delattr(settings, name)
    settings.data_dir = '/nowhere/at/all'
    (tmp_path / 'timm').mkdir()
    torch.save(dict(arch=TINY, epoch=0, metric=40., state_dict=state['state_dict'], args=settings),
               tmp_path / 'timm/model_best.pth.tar')
    (tmp_path / 'names.txt').write_text('left\nright\n')
    push(tmp_path / 'timm/model_best.pth.tar', 'user/timm', *ABOUT, '--class-map', tmp_path / 'names.txt')
    sent = hub.content('user/timm')
    assert set(sent) == {'README.md', 'args.yaml', 'config.json', 'model.safetensors'}
    assert json.loads(sent['config.json'])['label_names'] == ['left', 'right'] and b'nowhere' not in sent['args.yaml']
    assert ModelCard(sent['README.md'].decode()).data.eval_results[0].metric_value == 0.4
    assert timm.create_model('hf-hub:user/timm', pretrained=True).num_classes == 2
    torch.save(state['state_dict'], tmp_path / 'bare.pth')  # weights alone
    push(tmp_path / 'bare.pth', 'user/bare', *ABOUT, '--model', TINY, '--data', image_folder,
         '--output', tmp_path / 'b')
    assert set(hub.content('user/bare')) == {'README.md', 'config.json', 'model.safetensors', 'coverage.png'}


PICTURES = {'coverage.png', 'focus.png'}


@pytest.mark.slow
def test_pictures_of_no_folder_that_a_checkpoint_names(hub, finished_run, push, image_folder, caplog):
    """It names a folder of this machine, which is there; but this is a copy, which may be from anywhere."""
    named = torch.load(finished_run / 'model_best.pth.tar', weights_only=False)['args'].data_dir
    assert os.path.isdir(named)
    caplog.set_level('INFO')
    push(finished_run, 'user/name', *ABOUT)
    assert not PICTURES & set(hub.content('user/name')) and named not in caplog.text
    assert 'No images are used: `timm-focus push --data DIR` draws' in caplog.text
    push(finished_run, 'user/name', *ABOUT, '--data', image_folder, '--overwrite')
    assert PICTURES <= set(hub.content('user/name'))
    assert f'drawn of 10 images of {image_folder}; some of them are shown (--no-gallery shows none)' in caplog.text
    push(finished_run, 'user/name', *ABOUT, '--data', image_folder, '--overwrite', '--no-gallery')
    assert PICTURES & set(hub.content('user/name')) == {'coverage.png'} and 'none of them is shown' in caplog.text


@pytest.mark.slow
def test_pictures_of_what_a_run_was_trained_on_here(hub, train, push, image_folder, tmp_path, caplog):
    run = train()
    logging.getLogger().addHandler(caplog.handler)  # which the run has taken off
    caplog.set_level('INFO')
    push(run.folder, 'user/name', *ABOUT, '--dry-run')
    assert f'of 10 images of {image_folder}' in caplog.text
    assert PICTURES <= set(os.listdir(run.folder / 'hub'))
    shutil.copytree(run.folder, tmp_path / 'copy', ignore=shutil.ignore_patterns('hub'))
    caplog.clear()
    push(tmp_path / 'copy', 'user/name', *ABOUT, '--dry-run')
    assert 'No images are used' in caplog.text and str(image_folder) not in caplog.text
    with open(run.folder / 'args.yaml', 'a') as f:  # another run, from elsewhere, in its place
        f.write('seed: 7\n')
    caplog.clear()
    push(run.folder, 'user/name', *ABOUT, '--dry-run')
    assert 'No images are used' in caplog.text
    assert not PICTURES & set(os.listdir(run.folder / 'hub'))


def test_a_dry_run_sends_nothing(hub, finished_run, push, monkeypatch):
    monkeypatch.delenv('HF_TOKEN')
    text = push(finished_run, 'user/name', *ABOUT, '--dry-run', '--no-gallery', '--tag', 'mine')
    assert not hub.requests and (finished_run / 'hub/README.md').exists()
    sizes = {p.name: p.stat().st_size for p in (finished_run / 'hub').iterdir() if p.name != RECORD}
    assert re.findall(r'([\d,]+)  ([\w.]+)\n', text) == [(f'{sizes[n]:,}', n) for n in sorted(sizes)]
    assert 'To user/name would go:' in text and 'focus.png' not in sizes
    assert json.loads((finished_run / 'hub/config.json').read_text())['pretrained_cfg']['tag'] == 'mine'


CAIT = dict(depth=2, embed_dim=32, num_heads=2)


@pytest.mark.slow('True')
@pytest.mark.parametrize('data, name, kwargs', [
    (False, 'cait_xxs24_224', CAIT), (True, 'cait_xxs24_224', CAIT),
    (True, 'pit_ti_224', dict(base_dims=[16, 16, 16], depth=[1, 1, 1], heads=[1, 2, 4])),
    (True, 'tnt_s_legacy_patch16_224', dict(
        depth=2, embed_dim=32, inner_dim=8, num_heads_outer=2, num_heads_inner=2)),
    (True, 'naflexvit_base_patch16_gap', dict(depth=2, embed_dim=32, num_heads=2))])
def test_models_whose_heads_take_tokens_alone(data, name, kwargs, push, tmp_path, image_folder):
    """What a run of theirs is published as: counted, drawn, and loaded by timm."""
    settings = dict(num_classes=2, img_size=64, model_kwargs=kwargs, label_names=['left', 'right'])
    model = timm.create_model(f'focus_{name}', num_classes=2, img_size=64, **kwargs).eval()
    heads = {head: getattr(model, head).state_dict() for head in ('cam_head', 'erased_head')}
    torch.save(dict(arch=f'focus_{name}', epoch=0, metric=50., state_dict=model.backbone.state_dict(), task_state=heads,
                    args=argparse.Namespace(model=f'focus_{name}', **settings)), tmp_path / 'model_best.pth.tar')
    text = push(tmp_path, 'user/name', *ABOUT, '--dry-run', *(['--data', image_folder / 'val'] if data else []))
    assert 'To user/name would go:' in text and ('focus.png' in text) == data
    card = (tmp_path / 'hub/README.md').read_text()
    assert re.search(r'\| multiply-adds, one image \| \d+,[\d,]+ \|', card), card
    plain, x = timm.create_model(f'local-dir:{tmp_path}/hub', pretrained=True).eval(), torch.randn(1, 3, 64, 64)
    assert torch.equal(plain(x), model(x))


def test_a_mistake_is_one_line_and_nothing_is_written(hub, finished_run, refused, monkeypatch, tmp_path):
    before = sorted(os.listdir(finished_run))
    monkeypatch.chdir(tmp_path)
    for argv, words in (
            ((finished_run, 'name', *ABOUT), "'name' is no user/name"),
            ((finished_run, 'user/name'), 'licence of the weights is not given.*--license'),
            ((finished_run, 'user/name', '--license', 'mit'), 'data set .* is not given.*--dataset'),
            (('nowhere', 'user/name', *ABOUT), 'There is no checkpoint nowhere'),
            (('hf-hub:user/other', 'user/name', *ABOUT), 'hf-hub:user/other has no folder to write into: .* --output'),
            ((tmp_path, 'user/name', *ABOUT), 'has neither model_best.pth.tar nor'),
            ((finished_run, 'user/name', *ABOUT, '--data', 'nowhere'), 'There is no folder nowhere'),
            ((finished_run, 'user/name', *ABOUT, '--class-map', 'nowhere'), 'nowhere'),
            ((finished_run, 'user/name', *ABOUT, '--output', finished_run), 'holds something else')):
        assert re.search(words, refused(*argv))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE is set' in refused(finished_run, 'user/name', *ABOUT)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.delenv('HF_TOKEN')
    assert '`hf auth login`' in refused(finished_run, 'user/name', *ABOUT)
    assert sorted(os.listdir(finished_run)) == before and not hub.requests


def test_an_edited_card_is_kept(hub, finished_run, push, refused):
    push(finished_run, 'user/name', *ABOUT, '--dry-run')
    card = finished_run / 'hub/README.md'
    card.write_text(card.read_text() + '\nBy hand.\n')
    line = refused(finished_run, 'user/name', *ABOUT)
    assert re.search('README.md was edited .*`timm-focus push .*/hub user/name` sends it', line)
    assert 'is an export already' in refused(finished_run / 'hub', 'user/name', *ABOUT)
    push(finished_run / 'hub', 'user/name')
    assert hub.content('user/name')['README.md'].endswith(b'By hand.\n')


def test_it_asks_on_a_terminal(hub, finished_run, push, monkeypatch):
    keyboard, terminal = os.openpty()
    os.write(keyboard, b'MIT\nMy Scenes\n\n')
    with open(terminal) as stdin:
        monkeypatch.setattr(sys, 'stdin', stdin)
        text = push(finished_run, 'user/name')
    os.close(keyboard)
    assert 'Licence of the weights' in text and 'Its terms of use' in text
    card = ModelCard(hub.content('user/name')['README.md'].decode())
    assert 'transformers' in card.data.tags
    assert card.data.license == 'mit' and card.data.eval_results[0].dataset_name == 'My Scenes'
    assert 'not stated' in card.content


# the script

HUB = '--push-to-hub user/name --hub-license cc-by-4.0 --hub-dataset MyScenes'


@pytest.mark.slow
def test_training_ends_on_the_hub(hub, train, push):
    run = train(HUB + ' --hub-private --hub-tag mine --hub-dataset-terms none')
    config = json.loads((run.folder / 'hub/config.json').read_text())
    assert config['pretrained_cfg']['tag'] == 'mine' and PICTURES <= set(hub.content('user/name'))
    assert hub.repos['user/name'].private and len(hub.repos['user/name'].branches['main']) == 2
    assert hub.content('user/name') == content(run.folder / 'hub') and TOKEN not in run.err
    assert b'user/name' not in hub.content('user/name')['args.yaml']
    focus = timm_focus.create_from_hub('user/name')
    assert equal(focus.backbone.state_dict(), run.checkpoint('model_best')['state_dict'])
    push(run.folder, 'user/again')  # licence and data set are the run's


@pytest.mark.parametrize('flags, words', [
    ('--push-to-hub name --hub-license mit --hub-dataset x', "'name' is no user/name"),
    ('--push-to-hub user/name --hub-dataset x', 'licence .* is not given.*--hub-license'),
    ('--push-to-hub user/name --hub-license mit', 'data set .* is not given.*--hub-dataset'),
    ('--push-to-hub user/name --hub-license other --hub-dataset x', 'give --hub-license-name and --hub-license-link'),
])
def test_the_script_asks_before_it_trains(flags, words, hub, refusal, tmp_path):
    assert re.search(words, refusal(flags))
    assert not (tmp_path / 'out').exists() and not hub.requests


def test_what_no_timm_model_has_is_not_published(hub, refusal, tmp_path):
    assert 'does not go with --method acol' in refusal(f'{HUB} --method acol', model='test_resnet')
    assert not (tmp_path / 'out').exists()


def test_the_script_needs_a_token_first(hub, refusal, monkeypatch, tmp_path):
    monkeypatch.delenv('HF_TOKEN')
    assert 'There is no token of the Hub' in refusal(HUB)
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_a_push_that_fails_after_training(hub, settings, monkeypatch, capsys, tmp_path):
    hub.fail('POST', 'commit', 502)
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings(HUB)])
    with pytest.raises(SystemExit) as e:
        train_focus.cli()
    err = capsys.readouterr().err
    command = re.search(r'error: .*has a fault \(502\).*`timm-focus (push (\S+) user/name)`', err)
    assert e.value.code == 1 and command and TOKEN not in err
    assert os.path.samefile(command[2], tmp_path / 'out/run/hub')
    main(command[1].split())
    assert hub.content('user/name') == content(tmp_path / 'out/run/hub')


@pytest.mark.slow
def test_a_push_that_fails_while_workers_live_says_nothing_else(hub, launch, settings):
    hub.fail('POST', 'commit', 502)
    done = launch('-m', 'train_focus', *settings(f'{HUB} -j 2'), environment=hub.environment)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and 'has a fault (502)' in lines[-1], done.stderr
    assert not [line for line in lines if 'Traceback' in line or 'child process' in line or 'Exception' in line]


def test_an_export_that_fails_after_training(hub, settings, monkeypatch, capsys, tmp_path):
    (tmp_path / 'out/run').mkdir(parents=True)
    (tmp_path / 'out/run/hub').write_text('in the way')
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings(HUB)])
    with pytest.raises(SystemExit) as e:
        train_focus.cli()
    err = capsys.readouterr().err
    assert e.value.code == 1
    assert re.search(r'run is whole in .*is there and is no folder.*`timm-focus push \S+run user/name --license', err)
    assert (tmp_path / 'out/run/model_best.pth.tar').exists() and not hub.requests


# docs/publishing.md

PAGE = (ROOT / 'docs/publishing.md').read_text()


def printed(language):
    return '\n'.join(re.findall(rf'^```{language}\n(.*?)^```', PAGE, re.M | re.S))


def test_readme_publishes_as_the_page_does():
    section = (ROOT / 'README.md').read_text().split('\n## Publish\n')[1].split('\n## ')[0]
    command, = re.findall(r'^timm-focus .*$', section, re.M)
    assert command in printed('bash').splitlines()


def published(hub):
    assert len(hub.repos['user/name'].branches['main']) == 2 and b'CC BY 4.0' in hub.content('user/name')['README.md']
    weights = [load(hub.content(r)['model.safetensors']) for r in ('user/name', 'user/other')]
    assert equal(*weights)
    return weights[0]


def scenes(finished_run, folder):
    """The run of which the pages speak."""
    (folder / 'output/train').mkdir(parents=True)
    finished_run.rename(folder / 'output/train/scenes')


@pytest.mark.slow
def test_commands_of_the_page(hub, finished_run, image_folder, tmp_path, monkeypatch):
    """One after the other, in this process, and the Python."""
    scenes(finished_run, tmp_path)
    (tmp_path / 'DIR').symlink_to(image_folder)
    monkeypatch.chdir(tmp_path)
    for line in printed('bash').splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ['timm-focus'] and words[-1] != 'onnx':
            main(words[1:])
        elif words:
            assert words[:2] == ['python', 'train_focus.py'] or words[-1] == 'onnx', line
    exec(printed('python'), {})
    assert set(hub.repos) - {'user/pictures'} == {'user/name', 'user/other'}
    assert PICTURES <= set(hub.content('user/pictures')) and not PICTURES & set(hub.content('user/name'))
    exported = load_file(tmp_path / 'output/train/scenes/safetensors/model.safetensors')
    assert equal(published(hub), exported)


@pytest.mark.slow
def test_the_page_as_printed(hub, finished_run, image_folder, tmp_path):
    """A push, the training and the Python in a shell, with HF_ENDPOINT; the other lines go as these do."""
    scenes(finished_run, tmp_path)
    (tmp_path / 'DIR').symlink_to(image_folder)
    (tmp_path / 'train_focus.py').symlink_to(ROOT / 'train_focus.py')
    (tmp_path / 'bin').mkdir()
    for name, arguments in (('timm-focus', '-m timm_focus.commands.main'), ('python', '')):
        (tmp_path / 'bin' / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
        (tmp_path / 'bin' / name).chmod(0o755)
    small = '--img-size 32 -b 8 -j 0 --epochs 1 --device cpu --experiment new'
    pushed, trained = (next(line for line in printed('bash').splitlines() if words in line) for words in (
        "--dataset-terms 'CC BY 4.0'", 'python train_focus.py'))
    shell = f'{pushed}\n{trained}'.replace('--model focus_resnet18', f'--model focus_{TINY} {small}')
    environment = {**ENVIRONMENT, **hub.environment, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}',
                   'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        ['sh', '-ec', f'{shell}\npython -c "$0"', printed('python')], cwd=tmp_path, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr and 'HTTP Request' not in done.stderr
    assert set(hub.repos) == {'user/name', 'user/new', 'user/other'}
    published(hub)


@pytest.mark.slow
def test_a_push_carries_a_page(hub, finished_run, push, refused, image_folder, tmp_path):
    """That of timm-focus report, and no other file; with --no-gallery none that shows images."""
    for name, more in (('seen', ['--data', str(image_folder)]), ('unseen', ['--no-data'])):
        main(['report', str(finished_run), *more, '--output', str(tmp_path / name), '--img-size', '64', '-j', '0',
              '--device', 'cpu'])
    (tmp_path / 'other.html').write_text('<html>')
    about = (finished_run, 'user/name', *ABOUT)
    assert 'is no page of timm-focus report' in refused(*about, '--report', tmp_path / 'other.html')
    assert 'make the page with --gallery 0' in refused(*about, '--no-gallery', '--report', tmp_path / 'seen')
    push(*about, '--no-gallery', '--report', tmp_path / 'unseen')
    sent = hub.content('user/name')
    assert sent['report.html'] == (tmp_path / 'unseen/index.html').read_bytes()
    assert b'`report.html` compares this run with others' in sent['README.md']
