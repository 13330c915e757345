#!/usr/bin/env python3
"""Compares the cost of a focus training step with a plain one: operations, bytes kept for backward, peak memory, time.

    python benchmarks/step_cost.py resnet18 shufflenetv2_x1_5 -b 8 --steps 15
    python benchmarks/step_cost.py resnet18 vit_small_patch16_224 --device cuda --amp float16 -b 64
    python benchmarks/step_cost.py resnet18 --torchcompile --steps 15

Steps of all kinds take turns in one process. The ratio of times is the median over rounds of a step's time to that of
the plain step beside it, so a machine that slows down for a while disturbs it little. For a kind that erases in every
k-th step, each k rounds in a row count as one, with their mean.

On CUDA, time is measured by events around three steps; with float16 they include the loss scaler. The peak of memory is
the allocator's, over what was allocated before; it includes the gradients of parameters. On the CPU the peak is that of
all tensors that are alive in an eager step, without these gradients.
"""
import argparse
import contextlib
import functools
import json
import statistics
import time

import timm
import torch
from timm.task import ClassificationTask
from timm.utils import NativeScaler

from header import print_header, spread
from timm_focus import FocusLoss, FocusTask
from timm_focus.analysis import StepCost, step_cost
from timm_focus.baselines import MaskSub, MaskSubLoss
from timm_focus.method.stem import break_ties
from timm_focus.training.device import choose_kernels, keep_freed_memory
from timm_focus.training.loop import _backward
from timm_focus.utils.files import write_whole

KINDS = {  # for each kind of step the arguments of the focus model, of its task and of its loss
    'plain': None,
    'focus': {},
    'focus, recompute': dict(focus_recompute=True),
    'focus, fraction 0.5': dict(focus_fraction=0.5),
    'focus, fraction 0.25': dict(focus_fraction=0.25),
    'focus, every 4th': dict(every=4),
    'focus, size 0.75': dict(focus_size=0.75),
    'focus, size 0.5': dict(focus_size=0.5),
    'focus, half the tokens': dict(focus_drop_tokens=True),
    'focus, in turn': dict(focus_recompute=True, loss=dict(kl_detach='main')),
    'masksub': dict(method=MaskSub),
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', metavar='MODEL', help='plain timm names')
    parser.add_argument('-b', '--batch-size', type=int, default=8, help='images a step (default: 8)')
    parser.add_argument('--img-size', type=int, default=224, help='height and width (default: 224)')
    parser.add_argument('--num-classes', type=int, default=365, help='classes (default: 365)')
    parser.add_argument('--steps', type=int, default=15, help='timed steps of each kind, 0 for counts (default: 15)')
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=list(KINDS)[1:], metavar='KIND',
                        help=f'what to compare with plain steps (default: {", ".join(list(KINDS)[1:])})')
    parser.add_argument('--no-counts', action='store_true', help='measure only time')
    parser.add_argument('--amp', choices=('float16', 'bfloat16'), help='mixed precision (default: float32)')
    parser.add_argument('--no-channels-last', action='store_true', help='keep images and weights in channels_first')
    parser.add_argument('--json', metavar='FILE', help='write the figures to this file after each model')
    parser.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the steps')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='device')
    return parser.parse_args()


def make_task(name, kind, args):
    """Return the task of a kind of step, None if the model cannot take such a step."""
    focus = dict(KINDS[kind] or {})
    loss, every, is_focus = focus.pop('loss', {}), focus.pop('every', 1), kind.startswith('focus')
    torch.manual_seed(0)
    try:
        model = timm.create_model(f'{"focus_" if is_focus else ""}{name}', num_classes=args.num_classes, **(
            focus if is_focus else {}))
    except ValueError as e:  # a CNN has no tokens to drop, and some models take only one size
        print(f'{kind}: {e}')
        return None
    if kind != 'plain':
        break_ties(model)  # as train_focus.py does: gradients that overflow float16 would leave updates out
    model = (MaskSub(model) if kind == 'masksub' else model).train().to(args.device)
    if not args.no_channels_last:
        model.to(memory_format=torch.channels_last)
    common = dict(device=torch.device(args.device), verbose=False)
    if kind == 'plain':
        return ClassificationTask(model, **common)
    return FocusTask(model, MaskSubLoss() if kind == 'masksub' else FocusLoss(**loss), every=every, **common)


class Steps:
    """Computes the loss of a task's next step. If a step has two backward passes in turn, this does the first."""

    def __init__(self, task, amp, images, labels):
        self.task, self.amp, self.images, self.labels, self.batch = task, amp, images, labels, 0
        self.scaler = None

    def __call__(self):
        with self.amp():
            if isinstance(self.task, ClassificationTask):
                return self.task(self.images, self.labels)['loss']
            found = self.task.training_step(
                self.images, self.labels, self.batch, functools.partial(_backward, scale=1., scaler=self.scaler))
        self.batch += 1
        return found.get('to_go', found['loss'])


def cost_of(function, device, calls=3):
    """Return the seconds of a call, and on CUDA its peak of memory in bytes (else None)."""
    if device.type == 'cpu':
        began = time.perf_counter()
        function()
        return time.perf_counter() - began, None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(calls):  # several, because the device waits for the first kernel of the first call
        function()
    events[1].record()
    torch.cuda.synchronize(device)
    return events[0].elapsed_time(events[1]) / 1000 / calls, torch.cuda.max_memory_allocated(device) - before


def _means(values, n):
    return [statistics.mean(values[i:i + n]) for i in range(0, len(values), n)]


def measure(name, args):
    """Print a table of a model, with each kind of step compared with the plain one; return its lines as dicts."""
    device = torch.device(args.device)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    if not args.no_channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(args.num_classes, (args.batch_size,), device=device)
    amp = functools.partial(torch.autocast, device.type, getattr(torch, args.amp)) if args.amp \
        else contextlib.nullcontext
    counts, steps, in_a_row = {}, {}, {}  # in_a_row: how many steps are measured as one
    for kind in dict.fromkeys(['plain', *args.kinds]):
        task = make_task(name, kind, args)
        if task is None:
            continue
        loss_of, every = Steps(task, amp, images, labels), getattr(task, 'every', 1)
        if not args.no_counts:
            rounds = []
            for first in range(every):
                def at(first=first, loss_of=loss_of):
                    loss_of.batch = first
                    return loss_of()

                rounds.append(step_cost(task.get_trainable_module(), at))
            counts[kind] = StepCost(statistics.mean(r.flops for r in rounds), *map(max, zip(*(r[1:] for r in rounds))))
        if args.torchcompile:
            task.compile(backend=args.torchcompile)
        optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), 1e-3, momentum=0.9)

        scaler = loss_of.scaler = NativeScaler(device.type) if args.amp == 'float16' else None

        def step(loss_of=loss_of, optimizer=optimizer, scaler=scaler):
            if scaler is not None:
                scaler(loss_of(), optimizer)
            else:
                loss_of().backward()
                optimizer.step()
            optimizer.zero_grad()

        steps[kind], in_a_row[kind] = step, every
        if kind == 'plain':
            steps['forward'], in_a_row['forward'] = loss_of, 1
    n_rounds = -(-args.steps // max(in_a_row.values())) * max(in_a_row.values())
    times, peaks = {kind: [] for kind in steps}, {}
    for i in range(n_rounds + 2 if n_rounds else 0):  # the first two warm up
        for kind, step in steps.items():
            seconds, peak = cost_of(step, device)
            if i >= 2:
                times[kind].append(seconds)
                peaks[kind] = max(peak, peaks.get(kind, 0)) if peak is not None else None
    if device.type == 'cuda' and args.steps:
        counts = {kind: counts[kind]._replace(peak_bytes=peaks[kind]) for kind in counts}

    print(f'\n{name}')
    print(f'{"":22}  {"GFLOP":>8} {"ratio":>7}  {"kept MiB":>8} {"ratio":>7}  {"peak MiB":>8} {"ratio":>7}  '
          f'{"ratio":>7}  seconds: median (range)')
    lines = []
    for kind in steps:
        line = f'{kind:22}'
        found = dict(model=name, kind=kind)
        if kind in counts:
            for value, base, unit in zip(counts[kind], counts['plain'], (1e9, 2 ** 20, 2 ** 20)):
                line += f'  {value / unit:8.1f} {value / base:7.4f}'
            for key, value, base in zip(counts[kind]._fields, counts[kind], counts['plain']):
                found.update({key: value, f'{key}_ratio': value / base})
        else:
            line += ' ' * 54
        if args.steps:
            of_kind, of_plain = (_means(times[k], in_a_row[kind]) for k in (kind, 'plain'))
            ratio = statistics.median(a / b for a, b in zip(of_kind, of_plain))
            line += f'  {ratio:7.3f}  {spread(of_kind)}'
            found.update(ratio=ratio, seconds=statistics.median(of_kind), low=min(of_kind), high=max(of_kind))
            if peaks[kind] is not None:
                found.update(peak_bytes=peaks[kind], peak_bytes_ratio=peaks[kind] / peaks['plain'])
        print(line, flush=True)
        lines.append(found)
    return lines


def main():
    args = parse_args()
    keep_freed_memory()  # train_focus.py does both, too
    choose_kernels()
    print_header(batch=args.batch_size, size=f'{args.img_size} px', classes=args.num_classes, device=args.device,
                 type=f'amp, {args.amp}' if args.amp else 'float32', compiled=args.torchcompile or 'no',
                 steps=args.steps, format='channels_first' if args.no_channels_last else 'channels_last')
    lines = []
    for name in args.models:
        lines += measure(name, args)
        if args.json:
            write_whole(args.json, json.dumps(lines, indent=2) + '\n')


if __name__ == '__main__':
    main()
