#!/usr/bin/env python3
"""Measures images a second of train_focus.py: against a bare loop of the same steps, and two processes against one.

    python benchmarks/loop_speed.py /data/miniplaces --model resnet18 --img-size 224 -b 16
    python benchmarks/loop_speed.py /data/miniplaces --model focus_resnet18 --img-size 64 -b 64 --processes
    python benchmarks/loop_speed.py /data/miniplaces --device cuda --amp --epochs 3 -b 128 -j 2 4 8 --pin-mem

Each figure comes from a process of its own, started as a user would start it; the kinds take turns. The bare loop
trains on one batch in memory. The speed of a run is read from its log, without the first line; with several epochs,
without the whole first epoch.
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

from header import print_header, spread
from timm_focus.utils.files import write_whole

BARE = """
import contextlib, functools, sys, time, timm, timm_focus, torch
from timm.task import ClassificationTask
from timm.utils import NativeScaler
from timm_focus.training.device import choose_kernels
name, device, amp, size, n, steps, classes, every = *sys.argv[1:4], *map(int, sys.argv[4:])
device = torch.device(device)
choose_kernels()
autocast = functools.partial(torch.autocast, device.type, getattr(torch, amp)) if amp else contextlib.nullcontext
scaler = NativeScaler(device.type) if amp == 'float16' else None
model = timm.create_model(name, num_classes=classes).train().to(device, memory_format=torch.channels_last)
task = (timm_focus.FocusTask if name.startswith('focus_') else ClassificationTask)(model, device=device, verbose=False)
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
x, y = torch.randn(n, 3, size, size).contiguous(memory_format=torch.channels_last), torch.randint(classes, (n,))
x, y = x.to(device), y.to(device)
for i in range(steps):
    if i % every == 0:
        began = time.perf_counter()
    with autocast():
        loss = task(x, y)['loss']
    if scaler is not None:
        scaler(loss, optimizer)
    else:
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    if i % every == every - 1:
        loss.item()  # waits for the device
        print(f'{n * every / (time.perf_counter() - began):.2f} img/s')
"""


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data', metavar='DIR', help='folder with train/<class>/')
    parser.add_argument('--model', default='resnet18', help='model to train (default: resnet18)')
    parser.add_argument('-b', '--batch-size', type=int, default=16, help='images a step (default: 16)')
    parser.add_argument('--img-size', type=int, default=224, help='height and width (default: 224)')
    parser.add_argument('-j', '--workers', type=int, nargs='+', default=[2], metavar='N', help='workers of a run; '
                        'several numbers are compared (default: 2)')
    parser.add_argument('--pin-mem', action='store_true', help='also run the last number of workers with pinned memory')
    parser.add_argument('--steps', type=int, default=40, help='steps of an epoch (default: 40)')
    parser.add_argument('--epochs', type=int, default=1, help='epochs of a process (default: 1)')
    parser.add_argument('--repeats', type=int, default=3, help='processes of each kind (default: 3)')
    parser.add_argument('--processes', action='store_true', help='compare two processes of one thread with one of '
                        'two threads, instead of the bare loop')
    parser.add_argument('--device', default='cpu', help='device (default: cpu)')
    parser.add_argument('--amp', nargs='?', const='float16', default='', choices=('float16', 'bfloat16'),
                        help='mixed precision (float16 if no type is named)')
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file after each process')
    args = parser.parse_args()
    if args.processes and (args.device != 'cpu' or len(args.workers) > 1):
        parser.error('--processes compares on the CPU with one number of workers: leave out --device, and give -j one '
                     'number.')
    return args


def speeds(command, threads, skip=1, pattern=r'([\d.]+) img/s'):
    """Run a process; return the images a second that its log lines say, without the first `skip`, and the seconds from
    its start to the first line."""
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
    if p.returncode or len(found) < skip + 2:
        sys.exit(''.join(lines[-20:]))
    return found[skip:], first


def report(found, started, base, path):
    """Return what was measured so far as one dict for each kind, and write it to a file if one is named."""
    lines = []
    for kind, rates in found.items():
        ratio = statistics.median(rates) / statistics.median(found[base]) if base in found else None
        lines.append(dict(
            kind=kind, rate=statistics.median(rates), low=min(rates), high=max(rates), ratio=ratio,
            first_line=statistics.median(s for k, s in started if k == kind)))
    if path:
        write_whole(path, json.dumps(lines, indent=2) + '\n')
    return lines


def main():
    args = parse_args()
    every = max(args.steps // 8, 1)
    print_header(model=args.model, size=f'{args.img_size} px', batch=args.batch_size, workers=args.workers,
                 device=args.device, type=f'amp, {args.amp}' if args.amp else 'float32',
                 steps=f'{args.steps} in lines of {every}, {args.epochs} times',
                 processes=f'{args.repeats} of each kind')
    classes = len(next(os.walk(os.path.join(args.data, 'train')))[1])
    cores = len(os.sched_getaffinity(0))

    def run(n_processes, output, workers, *more):
        launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(n_processes)]
        share = args.batch_size // n_processes
        images = args.steps * args.batch_size
        return [
            sys.executable, *(launch if n_processes > 1 else []), '-m', 'train_focus', args.data, '--model', args.model,
            '--img-size', str(args.img_size), '-b', str(share), '-j', str(workers // n_processes),
            '--epochs', str(args.epochs), '--val-split', '', '--log-interval', str(every), '--device', args.device,
            *(['--amp', '--amp-dtype', args.amp] if args.amp else []), '--output', output, '--experiment', 'run',
            '--images-per-class', str(-(-images // classes)), '--sched', 'none', *more]

    bare = [sys.executable, '-c', BARE, args.model, args.device, args.amp, *map(str, (
        args.img_size, args.batch_size, args.steps * args.epochs, classes, every))]
    found, started = {}, []
    base = 'one process' if args.processes else 'bare loop'
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as folder:
            kinds = {'bare loop': (bare, cores)}
            if args.processes:
                kinds = {'two processes': (run(2, f'{folder}/two', args.workers[0]), cores // 2)}
            for j in args.workers:
                kind = 'one process' if len(args.workers) == 1 else f'{j} workers'
                kinds[kind] = run(1, f'{folder}/{j}', j), cores
            if args.pin_mem:
                kinds[f'{kind}, pinned'] = run(1, f'{folder}/pinned', j, '--pin-mem'), cores
            for kind, (command, threads) in kinds.items():
                epoch = -(-args.steps // every)  # log lines of one epoch
                rates, first = speeds(command, threads, epoch if args.epochs > 1 else 1)
                found.setdefault(kind, []).extend(rates)
                started.append((kind, first))
                report(found, started, base, args.json)
    for line in report(found, started, base, args.json):
        print(f'{line["kind"]:20} {spread(found[line["kind"]])} img/s, ratio to {base} {line["ratio"]:.3f}; first line '
              f'after {line["first_line"]:.1f} s')


if __name__ == '__main__':
    main()
