#!/usr/bin/env python3
"""Images a second of train_focus.py: against a bare loop of the same steps, and of two processes against one.

    python benchmarks/loop_speed.py /data/miniplaces --model resnet18 --img-size 224 -b 16
    python benchmarks/loop_speed.py /data/miniplaces --model focus_resnet18 --img-size 64 -b 64 --processes

Each figure is of a process of its own, which is started as a user would; the kinds take turns. The bare loop trains on
one batch that is in memory. A run's speed is that of its log, whose first lines are left out.
"""
import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from header import print_header, spread

BARE = """
import sys, time, timm, timm_focus, torch
from timm.task import ClassificationTask
name, size, n, steps, classes, every = sys.argv[1], *map(int, sys.argv[2:])
model = timm.create_model(name, num_classes=classes).train().to(memory_format=torch.channels_last)
task = (timm_focus.FocusTask if name.startswith('focus_') else ClassificationTask)(model, verbose=False)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
x, y = torch.randn(n, 3, size, size).contiguous(memory_format=torch.channels_last), torch.randint(classes, (n,))
for i in range(steps):
    if i % every == 0:
        began = time.perf_counter()
    task(x, y)['loss'].backward()
    optimizer.step()
    optimizer.zero_grad()
    if i % every == every - 1:
        print(f'{n * every / (time.perf_counter() - began):.2f} img/s')
"""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', metavar='DIR', help='folder with train/<class>/')
    parser.add_argument('--model', default='resnet18', help='what is trained (default: resnet18)')
    parser.add_argument('-b', '--batch-size', type=int, default=16, help='images a step (default: 16)')
    parser.add_argument('--img-size', type=int, default=224, help='height and width (default: 224)')
    parser.add_argument('-j', '--workers', type=int, default=2, help='workers of each run (default: 2)')
    parser.add_argument('--steps', type=int, default=40, help='steps of a process (default: 40)')
    parser.add_argument('--repeats', type=int, default=3, help='processes of each kind (default: 3)')
    parser.add_argument('--processes', action='store_true', help='two processes of a thread against one of two '
                        'threads, in place of the bare loop')
    return parser.parse_args()


def speeds(command, threads, pattern=r'([\d.]+) img/s'):
    """Images a second of every line but the first of a process, and the seconds until that first line."""
    environment = {**os.environ, 'OMP_NUM_THREADS': str(threads), 'PYTHONUNBUFFERED': '1'}
    began, first, found = time.perf_counter(), None, []
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as p:
        lines = []
        for line in p.stdout:
            lines.append(line)
            match = re.search(pattern, line)
            if match:
                first = first or time.perf_counter() - began
                found.append(float(match[1]))
    if p.returncode or len(found) < 3:
        sys.exit(''.join(lines[-20:]))
    return found[1:], first


def main():
    args = parse_args()
    every = max(args.steps // 8, 1)
    print_header(model=args.model, size=f'{args.img_size} px', batch=args.batch_size, workers=args.workers,
                 steps=f'{args.steps} in lines of {every}', processes=f'{args.repeats} of each kind')
    classes = len(next(os.walk(os.path.join(args.data, 'train')))[1])
    cores = len(os.sched_getaffinity(0))

    def run(n_processes, output):
        launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(n_processes)]
        share = args.batch_size // n_processes
        images = args.steps * args.batch_size
        return [
            sys.executable, *(launch if n_processes > 1 else []), '-m', 'train_focus', args.data, '--model', args.model,
            '--img-size', str(args.img_size), '-b', str(share), '-j', str(args.workers // n_processes), '--epochs', '1',
            '--val-split', '', '--log-interval', str(every), '--device', 'cpu', '--output', output,
            '--experiment', 'run', '--images-per-class', str(-(-images // classes)), '--sched', 'none']

    bare = [sys.executable, '-c', BARE, args.model, *map(str, (
        args.img_size, args.batch_size, args.steps, classes, every))]
    found, started = {}, []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            kinds = {'one process': (run(1, a), cores)}
            if args.processes:
                kinds['two processes'] = (run(2, b), cores // 2)
            else:
                kinds['bare loop'] = (bare, cores)
            for kind, (command, threads) in kinds.items():
                rates, first = speeds(command, threads)
                found.setdefault(kind, []).extend(rates)
                started.append((kind, first))
    base = 'one process' if args.processes else 'bare loop'
    for kind, rates in found.items():
        ratio = statistics.median(rates) / statistics.median(found[base])
        print(f'{kind:14} {spread(rates)} img/s, ratio to {base} {ratio:.3f}; first line after '
              f'{statistics.median(s for k, s in started if k == kind):.1f} s')


if __name__ == '__main__':
    main()
