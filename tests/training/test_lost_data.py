"""Images that cannot be read, and data that goes away in the middle of a run."""
import logging
import os
import threading

import pytest

from conftest import TINY, equal
from timm_focus.data import create_dataset
from timm_focus.data.dataset import BadImages, DataError, DataLost

pytestmark = pytest.mark.usefixtures('quietly')
FLAGS = '-b 4 --lr 0.01 --log-interval 1 --epochs 1 --model-ema --model-ema-decay 0.8'


@pytest.fixture
def goes_away(image_folder):
    """`goes_away(seconds)` has the data go away when the first batch of an epoch is trained, and come back then."""
    away = image_folder.with_name('away')
    watched = logging.getLogger('train')

    class Watch(logging.Handler):
        def __init__(self, seconds, epoch):
            super().__init__()
            self.seconds, self.epoch, self.struck = seconds, epoch, False

        def emit(self, record):
            if not self.struck and f'Train: {self.epoch} [   1/' in record.getMessage():
                self.struck = True
                os.rename(image_folder, away)
                if self.seconds is not None:
                    threading.Timer(self.seconds, os.rename, (away, image_folder)).start()

    watches = []

    def arm(seconds=None, epoch=0):
        watches.append(Watch(seconds, epoch))
        watched.addHandler(watches[-1])
        return away
    yield arm
    for watch in watches:
        watched.removeHandler(watch)


@pytest.mark.slow
def test_a_run_waits_for_its_data_and_ends_with_a_checkpoint(train, goes_away, image_folder, capsys):
    whole = train(FLAGS, experiment='whole')
    goes_away(seconds=2)
    waited = train(f'{FLAGS} --data-timeout 60', experiment='waited')
    assert waited.err.count('the run waits for it, 60 s at most (--data-timeout): ') == 1
    assert 'can be read again, after ' in waited.err and 'Skipped' not in waited.err

    away = goes_away()
    with pytest.raises(DataLost) as e:
        train(f'{FLAGS} --data-timeout 0.5', experiment='lost')
    assert str(e.value).startswith(f'Nothing in {image_folder}/train can be read any more for ')
    assert '--experiment lost --resume auto goes on from ' in str(e.value) and 'Traceback' not in str(e.value)
    assert 'recovery-0-' in str(e.value)
    os.rename(away, image_folder)
    resumed = train(f'{FLAGS} --resume auto', experiment='lost')
    assert 'Resuming ' in resumed.err
    for run in (waited, resumed):
        for state in ('state_dict', 'state_dict_ema'):
            assert equal(run.checkpoint()[state], whole.checkpoint()[state])
        assert run.rows == whole.rows


def test_a_run_whose_data_goes_knows_when_it_began_to_erase(train, goes_away, image_folder):
    more = '--lr 0.03 --log-interval 1 --epochs 5 --focus-start auto --scheme auto'
    whole = train(more, experiment='whole')
    started = {name: whole.rows[-1][name] for name in ('focus_start', 'complex_start')}
    assert int(started['complex_start']) < 4
    away = goes_away(epoch=4)
    with pytest.raises(DataLost):
        train(f'{more} --data-timeout 0.5', experiment='lost')
    os.rename(away, image_folder)
    again = train(f'{more} --resume auto', experiment='lost')
    assert 'recovery-4-' in again.err and again.rows == whole.rows and equal(again.weights(), whole.weights())


def test_too_many_bad_images_end_a_run_when_that_is_clear(train, image_folder, tmp_path):
    for k in (3, 5, 7):
        (image_folder / f'train/left/{k}.jpg').write_bytes(b'')
    with pytest.raises(BadImages, match='2 of the 24 images in .*where 1 may be: repair the data, or allow for it'):
        train('--max-bad-images 0.05 --epochs 9', model=TINY)
    assert not list((tmp_path / 'out/run').glob('*.pth.tar')), 'before the epoch ends'
    assert train('--max-bad-images 0.2', model=TINY, experiment='more').err.count('Skipped ') == 3


def test_what_is_gone_and_what_is_bad(image_folder):
    dataset = create_dataset('', image_folder, 'train')
    (image_folder / 'train/left/3.jpg').unlink()
    assert dataset[3][1] == 0 and dataset.bad.sum() == 1, 'one file is gone, and the next takes its place'
    os.rename(image_folder, image_folder.with_name('away'))
    with pytest.raises(DataLost, match='can be read any more: .*No such file'):
        dataset[4]
    assert dataset.bad.sum() == 1
    told = DataLost("Caught DataLost in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
                    '  raise DataLost(\ntimm_focus.data.dataset.DataLost: Nothing: gone.\n')
    assert str(told) == 'Nothing: gone.' and isinstance(told, DataError) and not isinstance(told, BadImages)


@pytest.mark.parametrize('name', ['area', 'validate'])
def test_a_command_ends_with_a_sentence_where_its_data_is_gone(name, image_folder, finished_run, tmp_path, monkeypatch,
                                                              capsys):
    from timm_focus.commands import checks, main

    def gone(loaded, needs_map=True):
        os.rename(image_folder, tmp_path / 'away')
        return checks.Checked(None)

    monkeypatch.setattr(f'timm_focus.commands.{name}.check_model', gone)
    with pytest.raises(SystemExit) as e:
        main.main([name, str(image_folder), '--checkpoint', str(finished_run), '--img-size', '64', '-j', '2',
                   '--output', str(tmp_path / 'out'), '--device', 'cpu'])
    err = capsys.readouterr().err
    assert e.value.code == 2 and f'timm-focus {name}: error: Nothing in ' in err and 'Traceback' not in err
