#!/usr/bin/env python3
"""Time of a training beside a busy core, over that on an idle machine.

    python benchmarks/busy_core.py                                # the demo, shortened to 2 epochs
    python benchmarks/busy_core.py DIR --model focus_resnet18 --img-size 64 -b 64 -j 2 --epochs 1

What follows is of train_focus.py. In turn: alone, and beside a process that computes on one core without end; with
threads that sleep while they wait, as train_focus.py has it, and with threads that spin, as torch has it. Where threads
spin, two of them and the workers of the loader take the cores from each other as soon as somebody else has one.
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
    """Time of a training from start to end."""
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
