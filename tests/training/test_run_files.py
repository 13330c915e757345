"""A run's folder: whose it is, what may be lost, and from where a run goes on."""
import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile

import pytest
import torch
from timm.task import ClassificationTask
from torch import nn

from timm_focus.training import FocusCheckpointSaver, Progress, RunFolder, SettingsError
from timm_focus.training.saver import check_finite, find_kept, is_finite, ranking
from timm_focus.runs import read_summary
from timm_focus.training.summary import Summary


class Keeper:
    """The saver of a small run in a folder, and its task."""

    def __init__(self, folder, run='a', seed=0, **kwargs):
        os.makedirs(folder, exist_ok=True)
        torch.manual_seed(seed)
        self.model = model = nn.Linear(3, 2)
        self.task = ClassificationTask(model)
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        self.saver = FocusCheckpointSaver(
            model=model, task=self.task, optimizer=self.optimizer, args=argparse.Namespace(model='linear', lr=0.1),
            checkpoint_dir=str(folder), recovery_dir=str(folder), **kwargs)
        self.saver.run, self.saver.ranked_by = run, 'eval_top1'

    def end(self, epoch, metric=None):
        self.saver.progress = Progress(epoch + 1, 0, 0)
        return self.saver.save_checkpoint(epoch, metric)

    def recover(self, epoch, batch):
        self.saver.progress = Progress(epoch, batch, 0)
        self.saver.save_recovery(epoch, batch - 1)


def run_folder(path, **kwargs):
    return RunFolder(argparse.Namespace(**{**dict(
        experiment=path.name, output=str(path.parent), model='linear', resume='', overwrite=False, start_epoch=None,
        dry_run=False, distributed=False), **kwargs}))


def begin(path, start=(0, 0), ranked_by='eval_top1', **kwargs):
    folder = run_folder(path, **kwargs)
    chosen = folder.plan()
    folder.begin(Progress(*start, 0), ranked_by)
    return folder, chosen


def begun(path, epochs=2):
    """A run as its process leaves it."""
    folder, _ = begin(path)
    keeper = Keeper(path, folder.run)
    summary = Summary(str(path / 'summary.csv'), 0)
    (path / 'args.yaml').write_text('lr: 0.1\n')
    for epoch in range(epochs):
        summary.add(dict(epoch=epoch, lr=0.1))
        keeper.end(epoch, 50. + epoch)
    folder.release()
    return keeper


def refusal(path, **kwargs):
    before = {name: (path / name).read_bytes() for name in names(path)}
    with pytest.raises(SettingsError) as e:
        run_folder(path, **kwargs).plan()
    assert {name: (path / name).read_bytes() for name in names(path)} == before
    assert '\n' not in str(e.value)
    return str(e.value)


def names(path):
    return sorted(p.name for p in path.iterdir() if not p.name.startswith('.'))


# what may be lost

def test_a_run_that_has_begun_is_not_overwritten(tmp_path):
    path = tmp_path / 'x'
    begun(path)
    text = refusal(path)
    for word in (f'{path} holds a run, which has got to epoch 2', '--resume auto', '--experiment', '--overwrite'):
        assert word in text
    # from a checkpoint elsewhere, either
    begun(tmp_path / 'other')
    assert 'holds a run' in refusal(path, resume=str(tmp_path / 'other/last.pth.tar'))


def test_overwriting_takes_what_the_old_run_wrote_and_nothing_else(tmp_path):
    path = tmp_path / 'x'
    begun(path)
    foreign = ['notes.txt', 'my.pth.tar', 'checkpoint-best.pth.tar', 'summary.csv.bak', 'focus.svg']
    for name in foreign:
        (path / name).write_text('mine')
    old = json.loads((path / 'run.json').read_text())['run']
    folder, chosen = begin(path, overwrite=True)
    assert chosen == ('', False) and folder.kept == [] and folder.run != old
    assert names(path) == sorted([*foreign, 'run.json'])
    assert json.loads((path / 'run.json').read_text()) == {'run': folder.run}


@pytest.mark.parametrize('name', ['args.yaml', 'classes.txt', 'summary.csv', 'last.pth.tar'])
def test_files_that_no_run_wrote_are_not_overwritten(tmp_path, name):
    path = tmp_path / 'x'
    path.mkdir()
    (path / name).write_text("epoch,a\n0,somebody's\n")
    with pytest.raises(SettingsError, match='--overwrite'):
        run_folder(path).plan()
    (path / name).rename(path / 'other')
    begin(path)


def test_a_run_that_kept_nothing_yet_may_begin_again(tmp_path):
    path = tmp_path / 'x'
    for _ in range(2):
        folder, chosen = begin(path)
        assert chosen == ('', False)
        (path / 'args.yaml').write_text('lr: 0.1\n')
        folder.release()


def test_runs_without_a_name_that_begin_in_one_second_have_folders_of_their_own(tmp_path):
    folders = [run_folder(tmp_path / 'x', experiment='') for _ in range(3)]
    for folder in folders:
        folder.name = 'then-linear'
        folder.path = str(tmp_path / folder.name)
        assert folder.plan() == ('', False)
        folder.begin(Progress(0, 0, 0), '')
    assert [f.name for f in folders] == ['then-linear', 'then-linear-1', 'then-linear-2'] == names(tmp_path)


def test_a_run_that_was_faster_is_not_overwritten(tmp_path):
    slow = run_folder(tmp_path / 'x')
    assert slow.plan() == ('', False)
    begun(tmp_path / 'x')
    with pytest.raises(SettingsError, match='holds a run'):
        slow.begin(Progress(0, 0, 0), '')


# two at once

HOLDER = """
import argparse, os, sys, time
from timm_focus.training import Progress, RunFolder
folder = RunFolder(argparse.Namespace(experiment='x', output=sys.argv[1], resume='', overwrite=False, dry_run=False,
                                      model='linear', start_epoch=None, distributed=False))
folder.plan()
folder.begin(Progress(0, 0, 0), '')
child = os.fork()  # as a worker is
if child:
    print(child, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
def test_two_runs_do_not_share_a_folder_and_a_dead_one_does_not_hold_it(tmp_path):
    path = tmp_path / 'x'
    holder = subprocess.Popen([sys.executable, '-c', HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    worker = int(holder.stdout.readline())
    try:
        for resume in ('', 'auto'):
            text = refusal(path, resume=resume, overwrite=True)
            assert text.startswith(f'{path} is in use, by process {holder.pid} on ') and '--experiment' in text
        assert run_folder(path, dry_run=True).plan() == ('', False)  # which writes nothing
        holder.kill()
        holder.wait()
        os.kill(worker, 0)  # lives on, for a while
        assert run_folder(path).plan() == ('', False)
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.kill()
        holder.wait()


def test_without_locks_it_is_said(tmp_path, monkeypatch, caplog):
    import errno
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, 'No locks available')
    monkeypatch.setattr(fcntl, 'lockf', none)
    begin(tmp_path / 'x')
    assert 'has no locks (No locks available)' in caplog.text


# which checkpoint is the last

@pytest.mark.parametrize('how', ['cp', 'tar', 'equal times', 'future'])
def test_the_last_checkpoint_is_known_by_what_is_in_it(tmp_path, how):
    keeper = begun(tmp_path / 'x')
    keeper.recover(2, 3)
    path = tmp_path / 'x'
    if how == 'cp':
        path = tmp_path / 'y'
        path.mkdir()
        for name in sorted(os.listdir(tmp_path / 'x'), reverse=True):  # the oldest comes last
            shutil.copy(tmp_path / 'x' / name, path)
    elif how == 'tar':
        with tarfile.open(tmp_path / 'x.tar', 'w') as f:
            f.add(tmp_path / 'x', 'y', filter=lambda info: setattr(info, 'mtime', 0) or info)
        shutil.unpack_archive(tmp_path / 'x.tar', tmp_path)
        path = tmp_path / 'y'
    elif how == 'equal times':
        for p in path.iterdir():
            os.utime(p, (1e9, 1e9))
    else:
        os.utime(path / 'checkpoint-0.pth.tar', (4e9, 4e9))
    assert run_folder(path, resume='auto').plan() == (str(path / 'recovery-2-2.pth.tar'), True)
    for name in names(path):
        if name.startswith('recovery'):
            (path / name).unlink()
    folder, chosen = begin(path, (2, 0), resume='auto')
    assert chosen == (str(path / 'last.pth.tar'), True)
    assert {os.path.basename(k.path) for k in folder.kept} == {
        'last.pth.tar', 'model_best.pth.tar', 'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar'}
    (path / 'last.pth.tar').unlink()
    folder.release()
    assert run_folder(path, resume='auto').plan()[0] == str(path / 'checkpoint-1.pth.tar')


def test_what_another_run_left_is_not_taken(tmp_path):
    path = tmp_path / 'x'
    begun(path, 3)
    Keeper(path, 'other', seed=1).recover(7, 1)
    text = refusal(path, resume='auto')
    assert 'checkpoints of several runs, such as' in text and 'recovery-7-0.pth.tar' in text
    assert 'of several runs' in refusal(path, resume='auto')
    folder, chosen = begin(path, (3, 0), resume='auto', overwrite=True)  # the others are lost
    assert chosen == (str(path / 'last.pth.tar'), True) and 'recovery-7-0.pth.tar' not in names(path)


def test_without_its_id_a_folder_is_known_by_its_checkpoints(tmp_path):
    path = tmp_path / 'x'
    run = begun(path).saver.run
    (path / 'run.json').unlink()
    folder, chosen = begin(path, (2, 0), resume='auto')
    assert chosen == (str(path / 'last.pth.tar'), True) and folder.run == run
    folder.release()
    (path / 'run.json').write_text('{"run"')
    Keeper(path, 'other').recover(7, 1)
    assert 'of several runs' in refusal(path, resume='auto')


def test_a_run_of_an_older_version_goes_on_without_an_id(tmp_path):
    path = tmp_path / 'x'
    Keeper(path, run=None).end(0, 50.)
    assert 'holds a run' in refusal(path)
    for epoch in (1, 2):
        folder, chosen = begin(path, (epoch, 0), resume='auto')
        assert chosen == (str(path / 'last.pth.tar'), True) and folder.run is None
        keeper = Keeper(path, folder.run)
        keeper.saver.take_up(folder.kept)
        keeper.end(epoch, 50. + epoch)
        folder.release()
    assert [k.epoch for k in find_kept(path)[0]] == [2, 2, 2, 1, 0] and 'run.json' not in names(path)


def test_a_checkpoint_may_be_resumed_elsewhere(tmp_path):
    begun(tmp_path / 'x')
    source = str(tmp_path / 'x/last.pth.tar')
    folder, chosen = begin(tmp_path / 'y', (2, 0), resume=source)
    assert chosen == (source, False) and folder.kept == [] and names(tmp_path / 'y') == ['run.json']
    assert folder.run != json.loads((tmp_path / 'x/run.json').read_text())['run']


def test_going_back_in_a_run_needs_overwrite(tmp_path):
    path = tmp_path / 'x'
    keeper = begun(path, 4)
    keeper.recover(4, 2)
    back = str(path / 'checkpoint-1.pth.tar')
    text = refusal(path, resume=back)
    assert f'has got to epoch 4, and {back} goes on with epoch 2' in text and '--overwrite' in text
    assert 'goes on with epoch 1' in refusal(path, resume=str(path / 'last.pth.tar'), start_epoch=1)
    # a recovery checkpoint is no loss
    folder, _ = begin(path, (4, 0), resume=str(path / 'last.pth.tar'))
    assert not list(path.glob('recovery*')) and (path / 'checkpoint-3.pth.tar').exists()
    folder.release()
    folder, chosen = begin(path, (2, 0), resume=back, overwrite=True)
    assert chosen == (back, True)
    assert names(path) == ['args.yaml', 'checkpoint-0.pth.tar', 'checkpoint-1.pth.tar', 'run.json', 'summary.csv']
    keeper = Keeper(path, folder.run)
    keeper.saver.take_up(folder.kept)
    assert (keeper.saver.best_metric, keeper.saver.best_epoch) == (51., 1)
    assert find_kept(path)[0][0].epoch == 1 and (path / 'model_best.pth.tar').exists()


def test_another_ranking_is_refused(tmp_path):
    begun(tmp_path / 'x')
    with pytest.raises(SettingsError, match='ranked by eval_top1, and would now be by eval_loss.*--eval-metric'):
        begin(tmp_path / 'x', (2, 0), 'eval_loss', resume='auto')


def test_numbers_without_a_checkpoint_are_kept(tmp_path):
    path = tmp_path / 'x'
    begun(path)
    for p in path.glob('*.pth.tar'):
        p.unlink()
    assert 'numbers of 2 epochs, but no checkpoint' in refusal(path, resume='auto')
    # killed before the first checkpoint was there
    Summary(str(path / 'summary.csv'), 1)
    assert run_folder(path, resume='auto').plan() == ('', False)


def test_damage_is_named_with_what_is_good(tmp_path):
    path = tmp_path / 'x'
    begun(path, 3)
    for name in ('last', 'checkpoint-2'):
        (path / f'{name}.pth.tar').unlink()  # it shares its content with others by hard links
        (path / f'{name}.pth.tar').write_bytes(b'half')
    text = refusal(path, resume='auto')
    assert 'last.pth.tar cannot be read' in text and f'newest good one is {path}/model_best.pth.tar' in text
    (path / 'last.pth.tar').unlink()
    assert run_folder(path, resume='auto').plan()[0] == str(path / 'model_best.pth.tar')
    assert 'There is no checkpoint' in refusal(path, resume=str(path / 'last.pth.tar'))


# divergence

def test_what_is_not_finite_is_not_gone_on_from(tmp_path, caplog):
    path = tmp_path / 'x'
    keeper = begun(path)
    for i, (module, value) in enumerate(((keeper.model.weight, 'nan'), (keeper.model.bias, 'inf'))):
        with torch.no_grad():
            module[0] = float(value)
        keeper.recover(2, i + 1)
    folder, chosen = begin(path, (2, 0), resume='auto')
    assert chosen == (str(path / 'last.pth.tar'), True) and caplog.text.count('not finite') == 2
    assert not list(path.glob('recovery*'))
    folder.release()
    keeper.recover(2, 1)
    assert 'not finite' in refusal(path, resume=str(path / 'recovery-2-0.pth.tar'))


def test_finite():
    inf, nan = math.inf, math.nan
    assert is_finite({'a': torch.ones(2), 'b': [torch.tensor(-inf), torch.zeros(0), torch.arange(3), None, 'x']})
    for wrong in (torch.tensor(nan), torch.tensor([1, inf]), torch.tensor([nan + 0j])):
        assert not is_finite([torch.ones(1), {'deep': (wrong,)}])


@pytest.mark.parametrize('where', ['weight', 'average', 'momentum', 'loss'])
def test_divergence_is_seen_before_anything_is_kept(tmp_path, where):
    keeper = Keeper(tmp_path)
    keeper.task.setup_ema(decay=0.5)
    totals = {'loss': 3., 'count': 2.}
    keeper.model.weight.grad = torch.ones(2, 3)
    keeper.optimizer.step()
    check_finite(keeper.task, keeper.optimizer, totals, 1)
    with torch.no_grad():
        if where == 'weight':
            keeper.model.weight[1] = math.nan
        elif where == 'average':
            keeper.task.get_trainable_module(ema=True).module.weight[1] = math.inf
        elif where == 'momentum':
            keeper.optimizer.state[keeper.model.weight]['momentum_buffer'][0] = math.inf
        else:
            totals['loss'] = math.nan
    with pytest.raises(FloatingPointError, match=r'of epoch 1 (is nan|are not finite): lower --lr, or clip'):
        check_finite(keeper.task, keeper.optimizer, totals, 1)


def test_the_recovery_after_which_a_run_diverged_is_not_gone_on_from(tmp_path):
    keeper = begun(tmp_path / 'x')
    for batch in (1, 2):
        keeper.recover(2, batch)
    with pytest.raises(FloatingPointError) as e, run_folder(tmp_path / 'x').advice(keeper.saver):
        raise FloatingPointError('It is nan.')
    assert 'recovery-2-1.pth.tar was removed, because the run diverged after it' in str(e.value)
    assert str(e.value).endswith(f'--resume auto goes on from {tmp_path}/x/recovery-2-0.pth.tar.')
    for _ in range(2):
        keeper.saver.doubt()
    assert find_kept(tmp_path / 'x')[0][0].path.endswith('last.pth.tar')  # of an epoch that was validated


# history

def test_ranking():
    metrics = {0: 1., 1: None, 2: 3., 3: None, 4: 3., 5: 2.}
    assert ranking(metrics) == [2, 4, 5, 0, 3, 1]
    assert ranking(metrics, decreasing=True) == [0, 5, 2, 4, 3, 1]


def test_recoveries_go_when_they_are_overtaken(tmp_path):
    keeper = Keeper(tmp_path)
    for batch in (1, 2, 3):
        keeper.recover(0, batch)
    assert names(tmp_path) == ['recovery-0-1.pth.tar', 'recovery-0-2.pth.tar']
    keeper.end(0, 1.)
    assert not list(tmp_path.glob('recovery*'))
    # those that another process of the run wrote, too
    keeper.recover(1, 1)
    other = Keeper(tmp_path)
    other.saver.take_up(find_kept(tmp_path)[0])
    other.end(1, 1.)
    assert not list(tmp_path.glob('recovery*'))


def test_names_in_a_checkpoint_delete_nothing(tmp_path):
    """It may come from elsewhere."""
    path = tmp_path / 'x'
    Keeper(path).end(0, 50.)
    victims = [tmp_path / 'notes.txt', path / 'notes.txt', path / 'checkpoint-7.pth.tar']
    for victim in victims:
        victim.write_text('mine')
    last = path / 'last.pth.tar'
    state = torch.load(last, weights_only=False)
    state['saver'].update(checkpoint_files=[
        ('../notes.txt', 9.), (str(victims[0]), 9.), ('notes.txt', 8.), ('checkpoint-7.pth.tar', 7.)])
    torch.save(state, last)
    for take_up in (lambda s: s.load_state_dict_from_checkpoint(str(last)), lambda s: s.take_up(find_kept(path)[0])):
        keeper = Keeper(path, max_history=1)
        take_up(keeper.saver)
        for epoch in (1, 2, 3):
            keeper.end(epoch, 50. + epoch)
        assert [v.read_text() for v in victims] == ['mine'] * 3
    assert names(path) == ['checkpoint-3.pth.tar', 'checkpoint-7.pth.tar', 'last.pth.tar', 'model_best.pth.tar',
                           'notes.txt']


def test_a_metric_that_is_no_number_ranks_nothing(tmp_path):
    keeper = Keeper(tmp_path)
    assert keeper.end(0, math.nan) == (None, None) and keeper.end(1, 5.) == (5., 1)


METRICS = [50., 60., 55., 70.]


def _kill_at(step, folder):
    """Train in a process of its own that is killed at a step on the disk; says whether it was."""
    child = os.fork()
    if child:
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL)
        return bool(status)
    try:
        count = 0
        for name in ('replace', 'link', 'remove', 'unlink', 'fsync'):
            def counted(*args, original=getattr(os, name)):
                nonlocal count
                count += 1
                if count == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*args)
            setattr(os, name, counted)
        keeper = Keeper(folder, max_history=2)
        keeper.saver.milestones = {2}
        for epoch, metric in enumerate(METRICS[:3]):
            keeper.recover(epoch, 1)
            keeper.end(epoch, metric)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.slow
def test_killed_at_any_step_a_run_ends_with_the_same_files(tmp_path):
    """Every epoch is ranked, and model_best is what the log says."""
    torch.set_num_threads(1)
    whole = Keeper(tmp_path / 'whole', max_history=2)
    whole.saver.milestones = {2}
    for epoch, metric in enumerate(METRICS):
        whole.end(epoch, metric)
    expected = {name: find_epoch(tmp_path / 'whole' / name) for name in names(tmp_path / 'whole')}
    assert expected == {'checkpoint-1.pth.tar': 1, 'checkpoint-3.pth.tar': 3, 'last.pth.tar': 3,
                        'milestone-2.pth.tar': 1, 'model_best.pth.tar': 3}
    step = 0
    while _kill_at(step := step + 1, path := tmp_path / f'{step}'):
        folder = run_folder(path, resume='auto')
        chosen, _ = folder.plan()
        start = next((k.stands for k in folder.kept if k.path == chosen), (0, 0))
        folder.begin(Progress(*start, 0), 'eval_top1')
        keeper = Keeper(path, folder.run, max_history=2)
        keeper.saver.milestones = {2}
        keeper.saver.take_up(folder.kept)
        so_far = METRICS[:start[0]]
        assert keeper.saver.best_metric == max(so_far, default=None), step
        assert not so_far or METRICS[find_epoch(path / 'model_best.pth.tar')] == max(so_far), step
        for epoch in range(start[0], len(METRICS)):
            keeper.end(epoch, METRICS[epoch])
        found = {name: find_epoch(path / name) for name in names(path) if name != 'run.json'}
        assert found == expected and not list(path.glob('.*.tmp')), step
        folder.release()
    assert step > 40


def find_epoch(path):
    return torch.load(path, weights_only=False)['epoch']


# summary.csv

@pytest.mark.parametrize('torn', [
    '2', '2,0.', '2,0.5,', '2,0.5,0', '2,0.5,0.13,0.5,0.1\n', '\0\0\0\0', 'x,y,z\n', '\n\n'])
def test_a_torn_line_is_left_out(tmp_path, torn):
    path = tmp_path / 'summary.csv'
    path.write_text(f'epoch,loss,lr\n0,1.5,0.1\n1,0.7,0.1\n{torn}')
    summary = Summary(str(path), 2)
    summary.add(dict(epoch=2, loss=0.5, lr=0.125))
    assert path.read_text() == 'epoch,loss,lr\n0,1.5,0.1\n1,0.7,0.1\n2,0.5,0.125\n'
    assert [row['epoch'] for row in read_summary(str(path))] == ['0', '1', '2']


def test_the_summary_goes_on_from_an_epoch(tmp_path):
    path = tmp_path / 'summary.csv'
    assert read_summary(str(path)) == [] and not Summary(str(path), 0).rows and not path.exists()
    first = Summary(str(path), 0)
    for epoch in range(3):
        first.add(dict(epoch=epoch, loss=1))
    inode = path.stat().st_ino
    assert len(Summary(str(path), 3).rows) == 3 and path.stat().st_ino == inode
    Summary(str(path), 1).add(dict(epoch=1, loss=2, top1=9))
    assert path.read_text() == 'epoch,loss,top1\n0,1,\n1,2,9\n'
    Summary(str(path), 0)
    assert path.read_text() == ''
