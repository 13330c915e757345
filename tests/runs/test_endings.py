"""Whatever ends a run of the script ends it: at once, with a word, and no process is left."""
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ENVIRONMENT, equal

# something happens before a step of a process; where it is signalled, SIGINT is not ignored, as in a background job
STRUCK = """
import errno, multiprocessing, os, signal, sys, time
what, rank, count = sys.argv.pop(1), sys.argv.pop(1), int(sys.argv.pop(1))
signal.signal(signal.SIGINT, signal.default_int_handler)
import train_focus
from timm_focus.training import FocusCheckpointSaver, FocusTask

def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'recovery-0-3.pth.tar')

def strike():
    if what == 'exception':
        raise KeyError('lost')
    if what == 'memory':
        raise MemoryError
    if what == 'worker':
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        time.sleep(10)
    if what == 'launcher':
        os.kill(os.getppid(), signal.SIGKILL)
    if what == 'disk':
        FocusCheckpointSaver.save_recovery = full
        os.kill(os.getpid(), signal.SIGTERM)
    if what == 'ctrl-c twice':
        os.killpg(0, signal.SIGINT)
        os.killpg(0, signal.SIGINT)
    if hasattr(signal, what):
        os.killpg(0, getattr(signal, what))

forward = FocusTask.forward
def counting(self, *args):
    global count
    count -= os.environ.get('RANK', '0') == rank and os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0'
    if not count:
        strike()
    return forward(self, *args)
FocusTask.forward = counting
train_focus.cli()
"""
RUN = '-j 2 -b 4 --epochs 2'


def _processes(mark, sessions):
    """Those that carry the mark in their environment or are of one of the sessions."""
    found = []
    for pid in filter(str.isdigit, os.listdir('/proc')):
        try:
            marked = mark.encode() in Path(f'/proc/{pid}/environ').read_bytes()
            if marked or os.getsid(int(pid)) in sessions:
                found.append(int(pid))
        except OSError:
            pass
    return found


@pytest.fixture
def strike(settings, fork, tmp_path):
    """`strike(what, flags)` is a run in which that happens, and what it left; by `torchrun`, of two processes."""
    def run(what, flags=RUN, torchrun=False, rank=0, environment=(), step=4, restarts=0):
        mark = uuid.uuid4().hex
        arguments = [what, rank, step, *settings(flags)]
        environment = {**dict(environment), 'TIMM_FOCUS_MARK': mark}
        if torchrun:
            command = ['-m', 'torch.distributed.run', '--max-restarts', restarts, '--standalone', '--nproc-per-node', 2,
                       '--no-python', sys.executable, '-c', STRUCK, *arguments]
            with open(tmp_path / 'log', 'w') as f:
                process = subprocess.Popen(
                    [sys.executable, *map(str, command)], stdout=f, stderr=f, start_new_session=True,
                    env={**ENVIRONMENT, **environment})
                ended = SimpleNamespace(returncode=process.wait(300), pids=[process.pid])
        else:
            ended = fork(STRUCK, *arguments, environment=environment)
        began = time.monotonic()
        while _processes(mark, ended.pids) and time.monotonic() - began < 60:
            time.sleep(0.1)
        log = (tmp_path / 'log').read_text() if torchrun else ended.stderr  # the launcher may be the first that ends
        return SimpleNamespace(code=ended.returncode, log=log, left=_processes(mark, ended.pids))
    return run


@pytest.mark.slow
def test_an_exception_ends_a_run(strike):
    ended = strike('exception')
    assert ended.code == 1 and not ended.left
    assert ended.log.rstrip().endswith("KeyError: 'lost'")


@pytest.mark.slow
@pytest.mark.parametrize('what, code, words', [
    ('memory', 1, 'MemoryError'),
    ('worker', 1, 'Error: '),
    ('disk', 1, 'No space left on device'),
    ('ctrl-c twice', 130, 'train_focus.py: ended by Ctrl-C at once'),
    ('SIGINT', 130, 'Ended by SIGINT, with a recovery checkpoint'),
    ('SIGHUP', 129, 'Ended by SIGHUP, with a recovery checkpoint'),
    ('SIGUSR1', 138, 'Ended by SIGUSR1, with a recovery checkpoint'),
    ('SIGKILL', -9, ''),
])
def test_what_else_ends_a_run(strike, what, code, words):
    """The signals go to the whole process group, the workers of the loaders among it."""
    ended = strike(what)
    assert ended.code == code and words in ended.log and not ended.left, ended
    assert ('Traceback' in ended.log) == (code == 1)


@pytest.mark.slow
@pytest.mark.long('--mixup', '--use-multi')
@pytest.mark.parametrize('flags', ['', '--use-multi-epochs-loader', '--mixup 0.2 --mixup-off-epoch 1'])
def test_a_dashboard_waits_for_nobody(strike, flags):
    pytest.importorskip('wandb')
    offline = dict(WANDB_MODE='offline', WANDB_SILENT='true')
    for what, code in (('nothing', 0), ('exception', 1)):
        ended = strike(what, f'{RUN} --log-wandb --experiment {what} {flags}', environment=offline)
        assert ended.code == code and not ended.left, ended


@pytest.mark.slow
@pytest.mark.long('disk', 'worker')
@pytest.mark.parametrize('what, rank, words', [
    pytest.param('exception', 0, "KeyError: 'lost'", marks=pytest.mark.long),
    ('exception', 1, "KeyError: 'lost'"),
    ('worker', 1, 'Error: '),
    ('disk', 0, 'No space left on device'),
    pytest.param('SIGKILL', 0, 'Signal 9', marks=pytest.mark.long),
    ('SIGKILL', 1, 'Signal 9'),
    ('SIGTERM', 1, 'Ended by SIGTERM'),
    ('launcher', 0, 'Ended by SIGTERM'),
])
def test_what_ends_one_process_ends_all(strike, what, rank, words):
    ended = strike(what, torchrun=True, rank=rank)
    assert ended.code and words in ended.log and not ended.left, ended
    assert 'forcefully' not in ended.log  # torchrun lost patience, after 30 seconds


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize('tries', [2, 10])
def test_torchrun_starts_a_killed_run_anew(strike, tmp_path, tries):
    """Killed at several steps, either process, it comes to what an undisturbed run comes to."""
    flags = '-j 0 -b 4 --epochs 2 --recovery-interval 1 --model-ema --model-ema-decay 0.8 --experiment'
    assert strike('nothing', f'{flags} whole', torchrun=True).code == 0
    whole = torch.load(tmp_path / 'out/whole/last.pth.tar', weights_only=False)
    for i in range(0, 10, 10 // tries):
        ended = strike(
            'SIGKILL', f'{flags} run{i} --resume auto', torchrun=True, rank=i % 2, step=1 + i // 2, restarts=3)
        assert ended.code == 0 and not ended.left, (i, ended)
        assert 'Resuming' in ended.log or i < 2, (i, ended)  # the first step has no checkpoint before it
        saved = torch.load(tmp_path / f'out/run{i}/last.pth.tar', weights_only=False)
        for state in ('state_dict', 'state_dict_ema'):
            assert equal(saved[state], whole[state]), (i, state)
