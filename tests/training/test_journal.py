"""What a run says of itself, and that no picture and no dashboard ends it."""
import logging
from types import SimpleNamespace

import pytest
import timm
import torch

from timm_focus.training import build_parser, journal, parse_args
from timm_focus.training.loop import _keep_picture
from timm_focus.training.journal import Journal, _headline, describe_cost


def said(caplog, *args):
    caplog.clear()
    with caplog.at_level(logging.INFO, logger='train'):
        describe_cost(*args)
    return [r.message for r in caplog.records]


@pytest.mark.parametrize('name, size', [('focus_cait_xxs24_224', 224), ('focus_pit_ti_224', 224), ('resnet10t', 64)])
def test_costs_are_counted_of_every_kind_of_model(caplog, name, size):
    lines = said(caplog, timm.create_model(name, num_classes=3), (3, size, size))
    assert lines[0].startswith('Cost at inference: ') and lines[0].endswith(' multiply-adds an image')
    assert len(lines) == (2 if name.startswith('focus_') else 1)


def test_a_count_that_fails_is_no_fault_of_the_size(caplog, monkeypatch):
    def fails(*_):
        raise AttributeError("'NoneType' object has no attribute 'next_functions'")
    monkeypatch.setattr(journal, 'multiply_adds', fails)
    lines = said(caplog, timm.create_model('focus_resnet10t', num_classes=3), (3, 64, 64))
    assert lines[0].startswith('The multiply-adds cannot be counted: AttributeError: ')
    assert lines[1] == 'Tapped feature: layer3, 256 channels of 4 x 4'


@pytest.mark.parametrize('argv, line', [
    ('d', 'Training focus_resnet50 by focus training, as no --model is given (--model resnet50 trains it by its '
     'classifier alone)'),
    ('d --method adl', 'Training resnet50 by ADL, as no --model is given'),
    ('d --model focus_resnet18', 'Training focus_resnet18 by focus training'),
    ('d --model resnet18', 'Training resnet18 by its classifier alone')])
def test_the_first_line_says_what_is_trained_and_why(argv, line):
    assert _headline(parse_args(build_parser(), argv.split())[0]) == line


def test_class_names_are_drawn_as_they_are(train, image_folder):
    for split in ('train', 'val'):
        (image_folder / split / 'left').rename(image_folder / split / r'$\frac{1$')
    run = train('--img-size 64 --sheet-images 2')
    assert (run.folder / 'focus.png').stat().st_size > 10_000 and (run.folder / 'model_best.pth.tar').exists()
    assert 'cannot be drawn' not in run.err


def test_a_picture_that_cannot_be_drawn_ends_no_run(train, monkeypatch):
    def fails(*_):
        raise RuntimeError('no fonts\nat all')
    monkeypatch.setattr(journal, 'focus_sheet', fails)
    run = train('--img-size 64 --focus-save-images --sheet-images 2')
    assert run.err.count('focus-0.png cannot be drawn: RuntimeError: no fonts at all') == 1
    assert run.err.count('focus.png cannot be drawn') == 1 and 'Load it with timm' in run.err
    assert f'Compare it with another run: timm-focus report {run.folder} OTHER_RUN\n' in run.err
    assert (run.folder / 'model_best.pth.tar').exists()


def test_a_dashboard_that_fails_ends_no_run(tmp_path, caplog):
    class Fails:
        def __getattr__(self, name):
            raise RuntimeError('the network is gone')
    journal = Journal(SimpleNamespace(tensorboard=False, log_wandb=False), str(tmp_path), 'run', 0, ['top1'])
    journal.tensorboard = journal.wandb = Fails()
    journal.write(0, {'loss': 1.}, {'top1': 50.}, 0.1)
    journal.close()
    assert [r.message for r in caplog.records] == [
        'TensorBoard has nothing of epoch 0: RuntimeError: the network is gone',
        'Weights & Biases has nothing of epoch 0: RuntimeError: the network is gone',
        'TensorBoard is not closed: RuntimeError: the network is gone',
        'Weights & Biases is not closed: RuntimeError: the network is gone']
    assert (tmp_path / 'summary.csv').read_text().splitlines()[1].startswith('0,1.0')


@pytest.mark.parametrize('channels, ending', [(1, 'jpg'), (2, 'png'), (3, 'jpg'), (4, 'png'), (5, None)])
def test_a_batch_that_cannot_be_drawn_ends_no_run(channels, ending, tmp_path, caplog):
    _keep_picture(torch.rand(2, channels, 8, 8), str(tmp_path / 'batch'))
    assert [path.name for path in tmp_path.iterdir()] == ([f'batch.{ending}'] if ending else [])
    assert bool(caplog.records) == (ending is None)
    caplog.clear()
    _keep_picture(torch.rand(2, channels, 8, 8), '/dev/null/batch')
    assert len(caplog.records) == 1 and 'cannot be drawn' in caplog.text
