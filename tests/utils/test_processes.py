"""Workers of loaders live as long as their run, and no longer."""
import gc
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from timm_focus.utils import processes

# one process imports torch, and one for each case is forked of it; each says at once who its workers are
CASES = """
import gc, json, multiprocessing, os, runpy, signal, sys, time
import torch
from torch.utils.data import DataLoader, Dataset
globals().update(runpy.run_path(sys.argv[1]))  # not the whole package, which takes its time

class Numbers(Dataset):
    stuck = None
    def __len__(self):
        return 20
    def __getitem__(self, i):
        if not gc.isenabled():
            gc.collect()
        if i == self.stuck:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            time.sleep(1000)
        return i

def begin(stuck=None):
    numbers = Numbers()
    numbers.stuck = stuck
    loader = shield_workers(DataLoader(numbers, num_workers=2, persistent_workers=True))
    batches = iter(loader)
    next(batches)
    workers.extend(p.pid for p in multiprocessing.active_children() if p.pid not in workers)
    with open(found, 'w') as f:
        json.dump(workers, f)
    return loader, batches

def an_exception():
    kept = begin()
    raise KeyError('lost')

def an_exception_with_a_stuck_worker():
    kept = begin(stuck=4)
    raise KeyError('lost')

def an_exit_with_a_stuck_worker():
    kept = begin(stuck=4)
    try:
        raise KeyError('lost')
    except KeyError:
        end_workers()
        sys.exit(3)

def a_worker_that_is_killed():
    kept = begin()
    os.kill(workers[0], signal.SIGKILL)
    for _ in kept[1]:
        pass
    time.sleep(5)

def the_parent_is_killed():
    kept = begin(stuck=4)
    os.kill(os.getpid(), signal.SIGKILL)

def an_iterator_where_another_was():
    kept = begin()
    end_workers()
    torch._C._set_worker_pids(id(kept[1]), ())  # as torch does for an iterator at this address

def no_exit_at_all():
    kept = begin(stuck=4)
    os._exit(4)

def signals_to_all():
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    loader, batches = begin()
    for number in SIGNALS:
        os.killpg(0, number)
        time.sleep(0.1)
    assert len(list(batches)) == 19
    assert len(list(loader)) == 20

def one_loader_after_another():
    gc.disable()
    first = begin()
    first[0].self = first  # garbage that a worker of the second finds
    del first
    second = begin()
    list(second[1])

def the_grandparent_is_killed():
    if os.fork():
        while not os.path.exists(found):  # the child listens by then
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    end_with_parent(signal.SIGTERM)
    workers.append(os.getpid())
    kept = begin()
    time.sleep(1000)

def gone(pid):
    try:
        with open(f'/proc/{pid}/stat') as f:
            return f.read().rpartition(')')[2].split()[0] == 'Z'
    except FileNotFoundError:
        return True

results, folder = {}, sys.argv[2]
for name in sys.argv[3:]:
    found, workers = os.path.join(folder, name), []
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        os.setsid()
        os.dup2(os.open(found + '.err', os.O_CREAT | os.O_WRONLY), 2)
        globals()[name]()
        sys.exit(0)
    while not os.path.exists(found) or not os.path.getsize(found):
        time.sleep(0.01)
    began = time.monotonic()
    status = os.waitpid(pid, 0)[1]
    while not all(map(gone, workers := json.load(open(found)))) and time.monotonic() - began < 30:
        time.sleep(0.01)
    results[name] = dict(
        code=os.waitstatus_to_exitcode(status), seconds=time.monotonic() - began, workers=len(workers),
        left=[pid for pid in workers if not gone(pid)], err=open(found + '.err').read())
print(json.dumps(results))
"""
EXPECTED = dict(
    an_exception=(1, "KeyError: 'lost'"),
    an_exception_with_a_stuck_worker=(1, "KeyError: 'lost'"),
    an_exit_with_a_stuck_worker=(3, ''),
    a_worker_that_is_killed=(1, 'Error: '),  # torch's, or one of the pipe to it
    the_parent_is_killed=(-signal.SIGKILL, ''),
    no_exit_at_all=(4, ''),
    an_iterator_where_another_was=(0, ''),
    signals_to_all=(0, ''),
    one_loader_after_another=(0, ''),
    the_grandparent_is_killed=(-signal.SIGKILL, ''),
)


@pytest.fixture(scope='module')
def _results(tmp_path_factory):
    done = subprocess.run(
        [sys.executable, '-c', CASES, processes.__file__, str(tmp_path_factory.mktemp('cases')), *EXPECTED],
        capture_output=True, text=True, timeout=300, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize('name', EXPECTED)
def test_no_worker_outlives_its_run_whatever_ends_it(_results, name):
    found, (code, words) = _results[name], EXPECTED[name]
    assert found['code'] == code and found['workers'] >= 2 and not found['left'], found
    assert found['seconds'] < 20, found
    assert words in found['err'] and bool(words) == bool(found['err']), found['err']


def test_a_loader_that_is_dropped_ends_its_workers_at_once():
    """Without the garbage collector, which would let torch wait five seconds for each worker, twice."""
    from torch.utils.data import DataLoader
    loader = processes.shield_workers(DataLoader(list(range(8)), num_workers=2, persistent_workers=True))
    assert len(list(loader)) == len(list(loader)) == 8
    workers = loader._iterator._workers
    start = time.monotonic()
    gc.disable()
    try:
        del loader
    finally:
        gc.enable()
    assert not any(worker.is_alive() for worker in workers) and time.monotonic() - start < 5


class _Hooks:
    """A data set whose images are the names of errors that a thread of a worker, which sends tensors, would print."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        import contextlib
        import io
        error = (ConnectionResetError(104, 'reset'), EOFError(), ValueError('lost'))[i]
        with contextlib.redirect_stderr(io.StringIO()) as said:
            sys.excepthook(type(error), error, None)
        return said.getvalue()


def test_a_worker_whose_parent_goes_in_the_middle_of_a_tensor_says_nothing():
    from torch.utils.data import DataLoader
    loader = processes.shield_workers(DataLoader(_Hooks(), batch_size=None, num_workers=1))
    assert list(loader) == ['', '', 'ValueError: lost\n']
