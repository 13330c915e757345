"""timm-focus report: from runs to a page."""
import argparse
import shutil

import pytest
import torch

from conftest import TINY
from timm_focus.commands.main import main
from timm_focus.release import note_images
from timm_focus.report import page_images

FLAGS = ('--device', 'cpu', '-j', '0', '--img-size', '64')


@pytest.fixture
def report(tmp_path, capsys):
    """`report(run, '--data', folder)` is the page, and what the command says."""
    def run(*argv):
        capsys.readouterr()
        main([str(a) for a in ('report', *FLAGS, '--output', tmp_path / 'report', *argv)])
        return (tmp_path / 'report/index.html').read_text('utf-8'), capsys.readouterr().out
    return run


@pytest.fixture
def refusal(report, capsys):
    def run(*argv):
        with pytest.raises(SystemExit) as e:
            report(*argv)
        assert e.value.code == 2
        return capsys.readouterr().err
    return run


@pytest.fixture
def plain_run(finished_run, tmp_path):
    """A run of plain training, of other weights than the finished one."""
    folder = tmp_path / 'plain'
    shutil.copytree(finished_run, folder)
    state = torch.load(folder / 'model_best.pth.tar', weights_only=False)
    settings = {k: v for k, v in vars(state['args']).items() if not k.startswith('focus_')}
    state.pop('task_state')
    state['args'] = argparse.Namespace(**{**settings, 'model': TINY, 'method': 'none'})
    state['arch'] = TINY
    generator = torch.Generator().manual_seed(0)
    for value in state['state_dict'].values():
        if value.is_floating_point() and value.ndim == 2:
            value.add_(torch.randn(value.shape, generator=generator) / 5)
    torch.save(state, folder / 'model_best.pth.tar')
    lines = (folder / 'args.yaml').read_text().splitlines(keepends=True)
    (folder / 'args.yaml').write_text(''.join(line for line in lines if not line.startswith('focus_')))
    return folder


def test_two_runs_on_images(report, finished_run, plain_run, image_folder, tmp_path):
    text, out = report(finished_run, plain_run, '--data', image_folder)
    assert 'paired over 10 images) at 2.0 times the compute' in text.replace('</strong>', '').replace('<strong>', '')
    for words in ('<code>method</code>', 'id="class-table"', 'id="gallery"', 'id="looks"', 'left/0.jpg'):
        assert words in text, words
    assert page_images(tmp_path / 'report/index.html') == 10
    assert str(tmp_path) not in text, 'nothing of this machine'
    assert f'{tmp_path}/report/index.html, 0.' in out and 'Left out' not in out
    report(plain_run, '--data', image_folder, '--gallery', 0)  # its own page is replaced
    assert page_images(tmp_path / 'report/index.html') == 0


@pytest.mark.slow
def test_the_images_that_a_run_was_trained_on_here(report, finished_run, plain_run, image_folder):
    note_images(str(plain_run), str(image_folder))
    text, out = report(finished_run, plain_run, '--gallery', 0)
    assert f'Images: {image_folder}, on which a run was trained here' in out and 'paired over 10 images' in text
    text, out = report(finished_run, plain_run, '--no-data')
    assert 'no images are at hand' in out and 'no images are at hand' in text
    assert 'of its validation images' in text and 'id="curves"' in text and 'id="classes"' not in text


@pytest.mark.slow
def test_a_checkpoint_of_timms_own(report, finished_run, image_folder, tmp_path):
    """A bare state dict, and one of timm's script, which has no names of classes."""
    state = torch.load(finished_run / 'model_best.pth.tar', weights_only=False)
    torch.save(state['state_dict'], tmp_path / 'bare.pth')
    args = argparse.Namespace(model=TINY, num_classes=2, img_size=64)
    torch.save(dict(epoch=3, arch=TINY, state_dict=state['state_dict'], args=args), tmp_path / 'timm.pth.tar')
    (tmp_path / 'names.txt').write_text('left\nright\n')
    text, out = report('--model', TINY, '--checkpoint', tmp_path / 'bare.pth', '--class-map', tmp_path / 'names.txt',
                       '--data', image_folder)
    assert 'Left out: Curves of bare.pth' in out and 'is right on' in text.replace('</strong>', '')
    text, out = report(tmp_path / 'timm.pth.tar', finished_run, '--data', image_folder)
    assert 'Left out: Curves of timm.pth.tar' in out and 'paired over 10 images' in text


def test_what_cannot_be_read_or_mapped_is_left_out(report, plain_run, image_folder):
    (image_folder / 'val/left/bad.jpg').write_bytes(b'no image')
    text, out = report(plain_run, '--data', image_folder, '--img-size', 16)
    assert '1 of 11 images, which cannot be read: left/bad.jpg' in text
    assert 'What plain looks at: ' in text and 'id="looks"' not in text and 'id="gallery"' in text
    assert 'of 10 images' in text


def test_runs_of_one_name_are_told_apart(report, plain_run, tmp_path):
    for name in ('old', 'new'):
        shutil.copytree(plain_run, tmp_path / name / 'run')
    text, _ = report(tmp_path / 'old/run', tmp_path / 'new/run', '--no-data')
    assert 'old/run' in text and 'new/run' in text


def test_mistakes(refusal, plain_run, image_folder, tmp_path):
    assert 'is named twice' in refusal(plain_run, plain_run, '--no-data')
    assert 'contradict each other' in refusal(plain_run, '--data', image_folder, '--no-data')
    assert '--gallery is -1' in refusal(plain_run, '--gallery', '-1')
    assert 'No model is named' in refusal()
    assert 'There is no folder nowhere' in refusal(plain_run, '--data', 'nowhere')
    (tmp_path / 'report').mkdir()
    (tmp_path / 'report/index.html').write_text('<html>mine')
    assert 'is no page of timm-focus report, and is not replaced' in refusal(plain_run, '--no-data')
    assert (tmp_path / 'report/index.html').read_text() == '<html>mine'
