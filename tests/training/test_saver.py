"""Checkpoints are whole or absent, and a run goes on from them as if nothing had happened."""
import argparse
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from timm.models import load_checkpoint
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import NativeScaler

from timm_focus.runs.kinds import ORDER
from timm_focus.training import FocusCheckpointSaver, FocusTask, Progress, SettingsError, resume
from timm_focus.training.saver import Kept, gather_buffers, restore_buffers
from timm_focus.training.continuation import check_order

NAME = 'resnet10t'


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


class Run:
    """What a training run consists of, with weights of its own."""

    def __init__(self, folder, seed=0, focus=True, ema=False, sched='cosine', momentum=0.9, scaler=None, **kwargs):
        torch.manual_seed(seed)
        self.model = timm.create_model(f'focus_{NAME}' if focus else NAME, num_classes=3)
        self.task = FocusTask(self.model) if focus else ClassificationTask(self.model)
        if ema:
            self.task.setup_ema(decay=0.5)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=momentum)
        self.scheduler, _ = create_scheduler_v2(self.optimizer, sched=sched, num_epochs=10, patience_epochs=2)
        self.scaler = scaler
        self.saver = FocusCheckpointSaver(
            model=self.model, task=self.task, optimizer=self.optimizer, args=argparse.Namespace(model=NAME),
            amp_scaler=scaler, checkpoint_dir=str(folder), recovery_dir=str(folder), **kwargs)
        self.saver.scheduler = self.scheduler

    def step(self):
        """One update that gives the optimizer a state."""
        self.model.train()
        result = self.task(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
        result['loss'].backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.task.update_ema()

    def save(self, epoch, metric=None):
        self.saver.progress = Progress(epoch + 1, 0, 5 * (epoch + 1))
        return self.saver.save_checkpoint(epoch, metric)

    def resume(self, path):
        return resume(self.task, str(path), self.optimizer, self.scaler, self.scheduler)


def state(module):
    return {k: v.clone() for k, v in module.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def epoch_of(path):
    return torch.load(path, weights_only=False)['epoch']


# a run and its continuation

def test_a_focus_run_is_restored_whole(tmp_path):
    run = Run(tmp_path, ema=True)
    run.step()
    run.save(3, metric=50.)
    other = Run(tmp_path, seed=1, ema=True)
    assert not equal(state(other.model), state(run.model))
    assert other.resume(tmp_path / 'last.pth.tar') == Progress(4, 0, 20)
    assert equal(state(other.model), state(run.model))  # heads as well
    ema, expected = (r.task.get_trainable_module(ema=True) for r in (other, run))
    assert equal(state(ema), state(expected)) and not equal(state(ema.module), state(other.model))
    momenta = [s['momentum_buffer'] for s in run.optimizer.state.values()]
    restored = [s['momentum_buffer'] for s in other.optimizer.state.values()]
    assert len(momenta) == len(restored) > 10 and all(torch.equal(a, b) for a, b in zip(momenta, restored))
    assert run.save(4, metric=60.) == (60., 4)  # reading did not get in the way of writing


def test_what_is_saved_is_a_plain_model(tmp_path):
    run = Run(tmp_path)
    run.save(0, metric=1.)
    plain = timm.create_model(NAME, num_classes=3, checkpoint_path=str(tmp_path / 'model_best.pth.tar')).eval()
    assert equal(state(plain), state(run.model.backbone))
    saved = torch.load(tmp_path / 'last.pth.tar', weights_only=False)
    assert set(saved['task_state']) == {'cam_head', 'erased_head'}


def test_weights_alone_can_be_resumed(tmp_path):
    run = Run(tmp_path)
    run.step()
    run.save(0)
    other = Run(tmp_path, seed=1)
    assert resume(other.task, str(tmp_path / 'last.pth.tar')) == Progress(1, 0, 5)
    assert equal(state(other.model), state(run.model)) and not other.optimizer.state


def test_a_running_average_can_begin_at_a_resume(tmp_path):
    run = Run(tmp_path)
    run.save(0)
    other = Run(tmp_path, seed=1, ema=True)
    other.resume(tmp_path / 'last.pth.tar')
    assert equal(state(other.task.get_trainable_module(ema=True).module), state(run.model))


def test_progress_in_mid_epoch_travels_in_a_recovery_checkpoint(tmp_path):
    run = Run(tmp_path)
    run.saver.progress = progress = Progress(2, 7, 31, {'loss': 9.5, 'count': 28.})
    run.saver.save_recovery(2, batch_idx=6)
    assert Run(tmp_path, seed=1).resume(tmp_path / 'recovery-2-6.pth.tar') == progress
    assert not list(tmp_path.glob('*tmp*'))


def test_a_checkpoint_without_progress_goes_on_with_the_next_epoch(tmp_path):
    run = Run(tmp_path)
    run.saver.save_checkpoint(4)  # as another script would: timm's train.py, say
    assert Run(tmp_path).resume(tmp_path / 'last.pth.tar') == Progress(5, 0, 0)


def test_plateau_remembers_how_patient_it_was(tmp_path):
    def metrics(run, epochs):
        rates = []
        for epoch in epochs:
            run.scheduler.step(epoch + 1, 10.)  # never better
            rates.append(run.optimizer.param_groups[0]['lr'])
        return rates

    with pytest.warns(FutureWarning, match='Plateau'):
        whole, run, other = (Run(tmp_path, sched='plateau') for _ in range(3))
    expected = metrics(whole, range(8))
    assert len(set(expected)) > 1
    metrics(run, range(2))
    run.save(1)
    other.resume(tmp_path / 'last.pth.tar')
    assert metrics(other, range(2, 8)) == expected[2:]


@pytest.mark.parametrize('sched', ['cosine', 'step', 'multistep', 'poly'])
def test_a_new_schedule_after_a_resume_is_not_overruled(tmp_path, sched):
    """Longer, say: what such a schedule gives depends on the settings and the epoch alone."""
    run, other = Run(tmp_path, sched=sched), Run(tmp_path, sched=sched)
    run.save(0)
    before = dict(vars(other.scheduler))
    other.scheduler.t_initial = before['t_initial'] = 99
    other.resume(tmp_path / 'last.pth.tar')
    assert vars(other.scheduler) == before


def test_the_loss_scale_is_restored(tmp_path):
    run, other = (Run(tmp_path, scaler=NativeScaler(device='cpu')) for _ in range(2))
    run.scaler._scaler.scale(torch.ones(1))  # it has no scale before
    run.scaler._scaler.update(256.)
    run.save(0)
    other.resume(tmp_path / 'last.pth.tar')
    assert other.scaler.state_dict()['scale'] == run.scaler.state_dict()['scale'] == 256.


# which files there are

def test_the_best_and_the_last_are_kept(tmp_path):
    run = Run(tmp_path, max_history=2)
    for epoch, metric in enumerate([30., 50., 40., 20.]):
        best = run.save(epoch, metric)
    assert best == (50., 1)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        'checkpoint-1.pth.tar', 'checkpoint-2.pth.tar', 'last.pth.tar', 'model_best.pth.tar']
    assert [epoch_of(tmp_path / f'{n}.pth.tar') for n in ('last', 'model_best', 'checkpoint-2')] == [3, 1, 2]


def test_a_loss_ranks_the_other_way(tmp_path):
    run = Run(tmp_path, max_history=1, decreasing=True)
    for epoch, metric in enumerate([3., 1., 2.]):
        best = run.save(epoch, metric)
    assert best == (1., 1) and (tmp_path / 'checkpoint-1.pth.tar').exists()


def test_the_ranking_goes_on_after_a_resume(tmp_path):
    run = Run(tmp_path, max_history=2)
    for epoch, metric in enumerate([50., 30.]):
        run.save(epoch, metric)
    other = Run(tmp_path, max_history=2)
    assert other.saver.load_state_dict_from_checkpoint(str(tmp_path / 'last.pth.tar'))
    assert other.save(2, 40.) == (50., 0)
    assert sorted(p.name for p in tmp_path.glob('checkpoint-*')) == ['checkpoint-0.pth.tar', 'checkpoint-2.pth.tar']


def test_without_hard_links_files_are_copied(tmp_path, monkeypatch):
    def no_link(src, dst):
        raise OSError('no hard links here')
    monkeypatch.setattr(os, 'link', no_link)
    run = Run(tmp_path)
    run.save(0, 1.)
    run.save(1, 2.)
    assert epoch_of(tmp_path / 'model_best.pth.tar') == 1 and not list(tmp_path.glob('*.tmp'))


# interruptions

def _die_after_half(monkeypatch):
    """Let torch.save write half of a file and then die, as a full disk or a kill would."""
    save = torch.save

    def half(obj, f):
        save(obj, f)
        f.truncate(f.tell() // 2)
        raise KeyboardInterrupt
    monkeypatch.setattr(torch, 'save', half)


@pytest.mark.parametrize('what', ['checkpoint', 'recovery'])
def test_dying_while_a_checkpoint_is_written_leaves_the_old_ones(tmp_path, monkeypatch, what):
    run = Run(tmp_path)
    run.save(0, 50.)
    run.saver.save_recovery(1, 3)
    _die_after_half(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        if what == 'checkpoint':
            run.save(1, 60.)
        else:
            run.saver.save_recovery(1, 5)
    for name in ('last', 'model_best', 'checkpoint-0', 'recovery-1-3'):
        assert epoch_of(tmp_path / f'{name}.pth.tar') == (name == 'recovery-1-3')
    assert Run(tmp_path, seed=1).resume(tmp_path / 'last.pth.tar').epoch == 1
    assert not (tmp_path / 'checkpoint-1.pth.tar').exists() and not (tmp_path / 'recovery-1-5.pth.tar').exists()


@pytest.mark.parametrize('call', ['replace', 'link'])
def test_last_and_best_are_never_missing(tmp_path, monkeypatch, call):
    """At every step of a save on the disk, both are there and can be read."""
    run = Run(tmp_path)
    run.save(0, 50.)
    seen = []

    def watch(name):
        original = getattr(os, name)

        def watched(*args):
            for stage in ('before', 'after'):
                seen.append([epoch_of(tmp_path / f'{n}.pth.tar') for n in ('last', 'model_best')])
                if stage == 'before':
                    original(*args)
        monkeypatch.setattr(os, name, watched)

    watch(call)
    run.save(1, 60.)
    assert seen[-1][0] == 1 and len(seen) >= 4
    assert epoch_of(tmp_path / 'model_best.pth.tar') == 1


def test_leftovers_of_a_killed_run_are_in_nobodys_way(tmp_path):
    for name in ('tmp.pth.tar', 'model_best.pth.tar.tmp', 'checkpoint-0.pth.tar.tmp'):
        (tmp_path / name).write_bytes(b'half')
    run = Run(tmp_path)
    run.save(0, 1.)
    assert [epoch_of(tmp_path / f'{n}.pth.tar') for n in ('last', 'model_best', 'checkpoint-0')] == [0, 0, 0]


# files that are no checkpoint of the run

def damage(path):
    data = Path(path).read_bytes()
    Path(path).unlink()  # it shares its content with others by hard links
    Path(path).write_bytes(data[:len(data) // 2])


def test_a_damaged_file_names_the_newest_good_one(tmp_path):
    run = Run(tmp_path)
    for epoch, metric in enumerate([3., 2., 1.]):
        run.save(epoch, metric)
    for age, name in enumerate(['checkpoint-2', 'checkpoint-1', 'checkpoint-0', 'model_best']):
        os.utime(tmp_path / f'{name}.pth.tar', (1e9 - age, 1e9 - age))
    for name in ('last', 'checkpoint-2'):
        damage(tmp_path / f'{name}.pth.tar')
    os.utime(tmp_path / 'checkpoint-2.pth.tar', (2e9, 2e9))
    with pytest.raises(ValueError, match=r'last\.pth\.tar cannot be read, .*newest good one is .*checkpoint-1\.pth'):
        Run(tmp_path).resume(tmp_path / 'last.pth.tar')


@pytest.mark.parametrize('content', [b'', b'no checkpoint at all', b'PK\x03\x04'])
def test_a_damaged_file_alone_is_a_sentence(tmp_path, content):
    path = tmp_path / 'last.pth.tar'
    path.write_bytes(content)
    with pytest.raises(ValueError, match='cannot be read.*damaged.*there is no good one beside it'):
        Run(tmp_path).resume(path)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r'There is no checkpoint .*nowhere/last\.pth\.tar\.$'):
        Run(tmp_path).resume(tmp_path / 'nowhere' / 'last.pth.tar')
    with pytest.raises(ValueError, match='cannot be read'):
        Run(tmp_path).resume(tmp_path)


@pytest.mark.parametrize('wrapped', [False, True])
def test_weights_without_a_run_are_a_sentence(tmp_path, wrapped):
    weights = timm.create_model(NAME, num_classes=3).state_dict()
    torch.save({'state_dict': weights} if wrapped else weights, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='weights but no run to resume: start from it by --initial-checkpoint'):
        Run(tmp_path).resume(tmp_path / 'weights.pth')


def test_a_plain_runs_checkpoint_does_not_continue_as_a_focus_run(tmp_path):
    Run(tmp_path, focus=False).save(0)
    with pytest.raises(ValueError, match='does not fit this run.*not of a focus run.*--initial-checkpoint'):
        Run(tmp_path).resume(tmp_path / 'last.pth.tar')


def test_a_focus_runs_checkpoint_is_a_plain_models_weights_and_not_its_run(tmp_path):
    run = Run(tmp_path)
    run.save(0)
    plain = Run(tmp_path, seed=1, focus=False)
    with pytest.raises(ValueError, match='does not fit this run'):  # the optimizer had the heads as well
        plain.resume(tmp_path / 'last.pth.tar')
    load_checkpoint(plain.model, str(tmp_path / 'last.pth.tar'))
    assert equal(state(plain.model), state(run.model.backbone))


def test_another_architecture_is_a_sentence(tmp_path):
    run = Run(tmp_path)
    run.save(0)
    torch.manual_seed(0)
    task = FocusTask(timm.create_model('focus_resnet18', num_classes=3))
    with pytest.raises(ValueError, match='does not fit this run') as e:
        resume(task, str(tmp_path / 'last.pth.tar'))
    assert '\n' not in str(e.value) and len(str(e.value)) < 700


# of the wrong shape

@pytest.mark.slow('change1')
@pytest.mark.parametrize('change, words', [
    (dict(state_dict=[1]), 'does not fit this run'),
    (dict(state_dict=None), 'does not fit this run'),
    (dict(state_dict={1: torch.zeros(1)}), 'does not fit this run'),
    (dict(task_state=5), 'does not fit this run'),
    (dict(task_state=dict(cam_head=5, erased_head=5)), 'does not fit this run'),
    (dict(optimizer=5), 'does not fit this run'),
    (dict(optimizer=dict(state=5, param_groups=[])), 'does not fit this run'),
    (dict(epoch='two'), 'does not say where its run stands'),
    (dict(epoch=float('inf')), 'does not say where its run stands'),
    (dict(saver=dict(progress=5)), 'does not say where its run stands'),
    (dict(saver='plateau'), "where its run stands: its saver is 'plateau'"),
    *((dict(saver=dict(progress=dict(epoch=1, batch=0, updates=5, **{name: value}))), f'run stands: its {name} is ')
      for name, value in (('totals', 5), ('totals', dict(loss='x')), ('buffers', 5), ('focus_start', 'x'))),
    *((dict(saver=dict(plateau=value)), 'run stands: its plateau is ') for value in (
        5, dict(best=1., num_bad_epochs=0, cooldown_counter=0, last_epoch=0), dict(restore_lr=None),
        dict(restore_lr='x', best=1., num_bad_epochs=0, cooldown_counter=0, last_epoch=0))),
])
@pytest.mark.filterwarnings('ignore:.*Plateau:FutureWarning')
def test_a_checkpoint_of_the_wrong_shape_is_a_sentence(tmp_path, change, words):
    Run(tmp_path, sched='plateau').save(0)
    path = tmp_path / 'last.pth.tar'
    found = torch.load(path, weights_only=False)
    torch.save({**found, **change}, path)
    with pytest.raises(ValueError, match=words) as e:
        Run(tmp_path, sched='plateau').resume(path)
    assert '\n' not in str(e.value)


@pytest.fixture
def group(tmp_path):
    """A group of one process."""
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_buffers_of_the_processes_are_restored_or_refused(tmp_path, group):
    run = Run(tmp_path, ema=True)
    run.step()
    gathered = gather_buffers(run.task)
    other = Run(tmp_path, ema=True, seed=1)
    restore_buffers(other.task, gathered)
    assert equal(gather_buffers(other.task)[0], gathered[0])
    weights = {name: v for name, v in gathered[0].items() if not name.startswith('ema.')}
    restore_buffers(other.task, [weights])
    found = gather_buffers(other.task)[0]
    assert equal({name: v for name, v in found.items() if not name.startswith('ema.')}, weights)
    assert all(torch.equal(v, weights[name.removeprefix('ema.')]) for name, v in found.items()), 'it begins here'
    first = next(iter(weights))
    sentence = rf'^The checkpoint has no {re.escape(first)} of shape \(24,\) of each of its 1 processes'
    for wrong in ({}, {f'module.{k}': v for k, v in weights.items()}, {**weights, first: weights[first][:1]},
                  {**weights, first: 1}):
        with pytest.raises(SettingsError, match=sentence):
            restore_buffers(other.task, [wrong])
    restore_buffers(other.task, [{}, {}])  # of another number of processes: as it was


@pytest.mark.slow('lamb', 'sgd')
@pytest.mark.parametrize('name, needed', [('adamw', 'step'), ('sgd', 'momentum_buffer'), ('lamb', 'exp_avg')])
def test_an_optimizer_without_a_part_of_its_state_is_a_sentence(tmp_path, name, needed):
    def run():
        made = Run(tmp_path)
        made.optimizer = timm.optim.create_optimizer_v2(made.model, name, lr=0.1, momentum=0.9)
        made.saver.optimizer = made.optimizer
        return made

    first, path = run(), tmp_path / 'last.pth.tar'
    first.step()
    first.save(0)
    run().resume(path)
    found = torch.load(path, weights_only=False)
    for of_parameter in found['optimizer']['state'].values():
        del of_parameter[needed]
    torch.save(found, path)
    with pytest.raises(ValueError, match=f'does not fit this run: .*{needed}'):
        run().resume(path)


def test_a_flipped_bit_is_told(tmp_path):
    run = Run(tmp_path)
    run.save(0)
    run.save(1)
    path = tmp_path / 'last.pth.tar'
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()  # checkpoint-1 is another name of it
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r'last.pth.tar is damaged: .*: the newest good one is .*checkpoint-1'):
        Run(tmp_path).resume(path)


@pytest.mark.parametrize('name, before, now', [
    ('world_size', 1, 2), ('train_split', 'train', 'other'), ('dataset', '', 'folder'), ('class_map', '', 'map.txt'),
    ('places_version', None, 'challenge'), ('places_size', '256', 'large')])
def test_the_rest_of_an_epoch_is_of_the_same_images(name, before, now):
    def kept(batch, **settings):
        return Kept('run/recovery-0-3.pth.tar', None, 0, Progress(0, batch, batch), None, '', 24, settings)
    args = SimpleNamespace(**{**dict.fromkeys(ORDER), 'world_size': 1, name: now})
    said = f'{name.replace("_", "-")}' if name != 'world_size' else 'processes'
    with pytest.raises(ValueError, match=f'in the middle of epoch 0, after batch 4, .* since {said} '):
        check_order(kept(4, **{name: before}), args, 24)
    check_order(kept(4, **{name: now}), args, 24)
    check_order(kept(0, **{name: before}), args, 24)
    check_order(kept(4), args, 24)  # of an older version, which does not tell
