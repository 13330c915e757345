"""Runs of the training script in processes of their own, forked from one that has imported what they need.

Each is a process like any other, with a session, a log and an exit status of its own; it begins without the seconds
that importing torch and timm takes. A line on standard input asks for one, a line on standard output says how it ended.
"""
import json
import os
import signal
import socket
import sys
import time

import timm_focus.training  # noqa: F401
import train_focus  # noqa: F401


def _become(job, rank, port):
    """What a new process has of its own."""
    os.setsid()
    for kind in (1, 2):
        os.dup2(os.open(f'{job["log"]}{kind}', os.O_WRONLY | os.O_CREAT | os.O_APPEND), kind)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.chdir(job['cwd'])
    os.environ.update(job['environment'])
    if job['processes'] > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(job['processes']),
            LOCAL_WORLD_SIZE=str(job['processes']), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    sys.argv = job['argv']


def _free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def _wait(pids, seconds):
    """Exit statuses as subprocess gives them; processes that take longer are killed, with what they started."""
    codes, end = {}, time.monotonic() + seconds
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes[pid] = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[pid] for pid in pids]


def next_job():
    """Return in a forked process, with its job; in the server at the end, with None."""
    reports = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    for line in sys.stdin:
        job, pids, port = json.loads(line), [], _free_port()
        for rank in range(job['processes']):
            pid = os.fork()
            if not pid:
                os.close(reports.fileno())
                _become(job, rank, port)
                return job
            pids.append(pid)
        print(json.dumps(dict(codes=_wait(pids, job['seconds']), pids=pids)), file=reports, flush=True)
    return None


if __name__ == '__main__':
    job = next_job()
    if job is not None:
        exec(compile(job['code'], '<job>', 'exec'), {'__name__': '__main__'})
