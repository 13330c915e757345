"""The training script and the folder of its run: what is overwritten, what is said, and disks that fail."""
import contextlib
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
import torch
import yaml

import train_focus
from conftest import TINY, TRAIN, Run, equal, finite
from timm_focus.training import FocusCheckpointSaver

pytestmark = pytest.mark.usefixtures('quietly')


@pytest.fixture
def ends(settings, tmp_path, monkeypatch, capsys):
    """`ends(code, more)` is the last line of a run in this process that ends with an exit code, and its folder."""
    import logging

    def end(code, more='', experiment='run', **kwargs):
        monkeypatch.setattr(sys, 'argv', ['train_focus.py', *settings(more, experiment, **kwargs)])
        capsys.readouterr()
        logging.getLogger().handlers.clear()
        with pytest.raises(SystemExit) as e:
            train_focus.cli()
        err = capsys.readouterr().err
        assert e.value.code == code and 'Traceback' not in err, err
        return err.splitlines()[-1]
    return end


def content(folder):
    return {p.name: (p.read_bytes(), p.stat().st_ino) for p in folder.iterdir() if p.name != '.lock'}


def test_a_run_is_not_overwritten_unasked(train, ends):
    run = train('--epochs 2', model=TINY)
    before, weights = content(run.folder), run.weights()
    for more in ('--epochs 1', f'--config {run.folder}/args.yaml', f'--resume {run.folder}/checkpoint-0.pth.tar'):
        assert re.search(r'out/run (holds a run, which )?has got to epoch 2.*--overwrite', ends(2, more, model=TINY))
        assert content(run.folder) == before
    over = train('--epochs 1 --overwrite --seed 1', model=TINY)
    assert sorted(p.name for p in over.folder.iterdir()) == [
        '.lock', 'args.yaml', 'checkpoint-0.pth.tar', 'classes.txt', 'last.pth.tar', 'model_best.pth.tar', 'run.json',
        'summary.csv']
    assert len(over.rows) == 1 and not equal(over.weights(), weights)


def test_the_settings_of_a_run_begin_one_of_its_own(train, tmp_path, monkeypatch, capsys):
    run = train('--resume auto --seed 3 --wandb-resume-id x', model=TINY)
    before = content(run.folder)
    capsys.readouterr()
    monkeypatch.setattr(sys, 'argv', ['train_focus.py', '--config', f'{run.folder}/args.yaml', '--experiment', 'new'])
    train_focus.main()
    err = capsys.readouterr().err
    assert re.search(r'--config .*run/args\.yaml is of another run, whose --experiment run, '
                     r'--resume auto, --wandb-resume-id x do not carry over\.', err)
    assert 'Resuming' not in err and content(run.folder) == before
    new = Run(folder=tmp_path / 'out/new')
    assert equal(new.weights(), run.weights())
    written = yaml.safe_load((new.folder / 'args.yaml').read_text())
    assert (written['seed'], written['resume'], written['experiment']) == (3, '', 'new')


def test_a_finished_run_that_is_resumed_says_so(train, tmp_path):
    run = train('--epochs 2')
    before = content(run.folder)
    again = train('--epochs 2 --resume auto')
    assert 'This run is finished, its 2 epochs are trained' in again.err
    assert 'Best top1' in again.err and 'Load it with timm' in again.err and 'Train:' not in again.err
    assert content(run.folder).keys() == before.keys()
    for name in before:
        if name != 'run.json':
            assert content(run.folder)[name] == before[name], name
    elsewhere = train(f'--epochs 2 --resume {run.folder}/last.pth.tar', 'elsewhere')
    assert 'This run is finished' in elsewhere.err and not (tmp_path / 'out/elsewhere').exists()


def test_what_changed_is_named(train):
    train('--epochs 2 --stop-epoch 1 --weight-decay 0.1', model=TINY)
    run = train('--epochs 3 --stop-epoch 2 --resume auto --lr 0.01 --seed 5 -b 12 -j 1', model=TINY)
    changed = re.search('Changed since: (.*)', run.err)[1]
    assert changed.split(', ') == [
        'batch-size 8 -> 12', 'epochs 2 -> 3', 'lr 0.05 -> 0.01', 'seed 42 -> 5', 'stop-epoch 1 -> 2',
        'weight-decay 0.1 -> 0.0002', 'workers 0 -> 1']
    assert 'Changed since' not in train('--epochs 3 --resume auto --stop-epoch 2 --lr 0.01 --seed 5 -b 12 -j 1',
                                        model=TINY).err


@contextlib.contextmanager
def stopping(monkeypatch, n):
    """The run ends right after its n-th recovery checkpoint."""
    save, count = FocusCheckpointSaver.save_recovery, [0]

    def saving(self, *args, **kwargs):
        save(self, *args, **kwargs)
        count[0] += 1
        if count[0] == n:
            raise KeyboardInterrupt
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(FocusCheckpointSaver, 'save_recovery', saving)
        yield


def test_in_mid_epoch_what_orders_the_images_cannot_change(train, refusal, monkeypatch, image_folder):
    with stopping(monkeypatch, 3):
        train('-b 4 --epochs 2 --recovery-interval 2', model=TINY)
    for more, words in (
            ('-b 8', 'batch-size 4 -> 8'), ('-b 4 --grad-accum-steps 2', 'grad-accum-steps 1 -> 2'),
            ('-b 4 --seed 1', 'seed 42 -> 1'), ('-b 4 --images-per-class 6', 'images-per-class None -> 6')):
        text = refusal(f'{more} --epochs 2 --resume auto', model=TINY)
        assert re.search(r'recovery-1-1\.pth\.tar stands in the middle of epoch 1, after batch 2, .* since '
                         rf'{words}.*leave that as it was, or --resume .*last\.pth\.tar goes on', text)
    (image_folder / 'train/left/0.jpg').rename(image_folder / 'gone.jpg')
    assert 'training images 24 -> 23' in refusal('-b 4 --epochs 2 --resume auto', model=TINY)
    # from the end of an epoch all of them may, and the rest of the interrupted one is done anew
    run = train(f'-b 8 --seed 1 --epochs 2 --resume {image_folder.parent}/out/run/last.pth.tar', model=TINY)
    assert [row['epoch'] for row in run.rows] == ['0', '1'] and not list(run.folder.glob('recovery*'))


@pytest.mark.long
def test_another_number_of_processes_in_mid_epoch_is_refused(train, fork, settings, monkeypatch):
    with stopping(monkeypatch, 1):
        train('-b 4 --recovery-interval 2', model=TINY)
    done = fork(TRAIN, *settings('-b 4 --resume auto', model=TINY), processes=2)
    assert done.codes == [2, 2] and 'train_focus.py: error: ' in done.stderr and 'processes 1 -> 2' in done.stderr


@pytest.mark.slow
def test_a_run_that_diverged_goes_on_with_a_lower_rate(train, ends, tmp_path):
    train('--epochs 3 --stop-epoch 1', model=TINY)
    line = ends(1, '--epochs 3 --resume auto --lr 1e30 --recovery-interval 1', model=TINY)
    assert re.search(r'error: The (loss|weights) of epoch 1 .*--lr.* --experiment run --resume auto goes on from '
                     r'.*/last\.pth\.tar\.$', line)
    folder = tmp_path / 'out/run'
    assert not list(folder.glob('recovery*')) and all(
        finite(torch.load(p, weights_only=False)['state_dict']) for p in folder.glob('*.pth.tar'))
    run = train('--epochs 3 --resume auto', model=TINY)
    assert 'Resuming' in run.err and equal(run.weights(), train('--epochs 3', 'whole', model=TINY).weights())
    # in its first epoch, it begins again
    assert 'lower --lr' in ends(1, '--lr 1e30 --recovery-interval 1', 'first', model=TINY)
    assert finite(train('--resume auto', 'first', model=TINY).weights())


# disks that fail

@pytest.fixture
def disk(tmp_path):
    """A small file system of its own, where tests may mount one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'none', folder], capture_output=True).returncode:
        pytest.skip('a file system can be mounted by root alone')
    yield folder
    while not subprocess.run(['umount', '-l', folder], capture_output=True).returncode:
        pass  # one may have been mounted over the other


def fill(disk):
    with contextlib.suppress(OSError), open(disk / 'big', 'wb', buffering=0) as f:
        while f.write(b'x' * 4096):
            pass


def forbid(disk):
    for command in (['--bind', disk, disk], ['-o', 'remount,bind,ro', disk]):
        subprocess.run(['mount', *command], check=True)


HARMS = {
    'full': (fill, 'No space left on device'),
    'read-only': (forbid, 'Read-only file system'),
    'removed': (lambda disk: shutil.rmtree(disk / 'run'), 'No such file or directory'),
    'limit': (lambda disk: resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 16, resource.RLIM_INFINITY)),
              'File too large'),
}


@pytest.mark.slow('recovery')
@pytest.mark.parametrize('during', ['epoch', 'recovery'])
@pytest.mark.parametrize('how', HARMS)
def test_a_disk_that_fails_is_a_sentence(ends, disk, monkeypatch, how, during):
    """And what was kept before is as it was."""
    harm, words = HARMS[how]
    save, before = FocusCheckpointSaver.save_checkpoint, {}

    def saving(self, *args, **kwargs):
        best = save(self, *args, **kwargs)
        if not before:
            before.update(content(disk / 'run'))
            harm(disk)
        return best
    monkeypatch.setattr(FocusCheckpointSaver, 'save_checkpoint', saving)
    more = '--recovery-interval 1' if during == 'recovery' else ''
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        line = ends(1, f'--epochs 3 --output {disk} {more}', model='test_resnet')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    name = 'recovery-1-0.pth.tar' if during == 'recovery' else r'(summary\.csv|last\.pth\.tar)'
    assert re.search(rf'error: {disk}/run/{name} cannot be written: {words}; the ', line)
    if how == 'removed':
        assert 'the folder' in line and 'is not there' in line and not (disk / 'run').exists()
        return
    assert re.search(rf'the disk of .* has [\d.,]+ MiB free\. .*Make room, then --output {disk} --experiment run '
                     rf'--resume auto goes on from {disk}/run/last\.pth\.tar\.$', line)
    after = content(disk / 'run')
    assert after.pop('summary.csv')[0].startswith(before.pop('summary.csv')[0])  # the second epoch's row may be there
    assert after.pop('run.json') and before.pop('run.json')  # it has the time that was spent
    assert after == before


@pytest.mark.slow
def test_after_the_disk_was_full_a_run_goes_on(train, ends, disk, monkeypatch):
    save = FocusCheckpointSaver.save_checkpoint
    with monkeypatch.context() as m:
        m.setattr(FocusCheckpointSaver, 'save_checkpoint', lambda self, *a, **k: (save(self, *a, **k), fill(disk))[0])
        ends(1, f'--epochs 2 --output {disk}', model='test_resnet')
    os.unlink(disk / 'big')
    train(f'--epochs 2 --output {disk} --resume auto', model='test_resnet')
    run, whole = Run(folder=disk / 'run'), train('--epochs 2', 'whole', model='test_resnet')
    assert equal(run.weights(), whole.weights()) and run.rows == whole.rows
