#!/usr/bin/env python3
"""Compares the time of a training run beside a busy core with its time on an idle machine.

    python benchmarks/busy_core.py                                # the demo, shortened to 2 epochs
    python benchmarks/busy_core.py DIR --model focus_resnet18 --img-size 64 -b 64 -j 2 --epochs 1

The arguments are those of train_focus.py. Runs take turns: alone, and beside a process that keeps one core busy; with
threads that sleep while they wait, as train_focus.py sets them up, and with threads that spin, which is torch's
default. Spinning threads and the workers of the loader take cores from each other as soon as another process uses one.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from header import print_header

ROOT = Path(__file__).parent.parent
DEMO = ['--dataset', 'synthetic', '--epochs', '2']
SPIN = 'while True: pass'


def seconds(arguments, policy, busy):
    """Return the time of a training run from start to end."""
    neighbour = subprocess.Popen([sys.executable, '-c', SPIN]) if busy else None
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, ROOT / 'train_focus.py', *arguments, '--output', folder], check=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, 'OMP_WAIT_POLICY': policy, 'PYTHONPATH': str(ROOT)})
            return time.perf_counter() - began
    finally:
        if neighbour is not None:
            neighbour.kill()
            neighbour.wait()


def main():
    arguments = sys.argv[1:] or DEMO
    print_header(arguments=' '.join(arguments), load_before=f'{os.getloadavg()[0]:.1f}')
    seconds(arguments, 'PASSIVE', False)  # draws the scenes of the demo, which are kept
    print(f'{"threads":<10} {"alone":>8} {"busy core":>10} {"ratio":>6}')
    for name, policy in (('sleep', 'PASSIVE'), ('spin', 'ACTIVE')):
        alone, busy = (seconds(arguments, policy, beside) for beside in (False, True))
        print(f'{name:<10} {alone:>6.1f} s {busy:>8.1f} s {busy / alone:>6.2f}', flush=True)


if __name__ == '__main__':
    main()
