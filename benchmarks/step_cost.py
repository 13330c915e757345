#!/usr/bin/env python3
"""What a focus training step costs over a plain one: operations, bytes kept for backward, peak of memory, time.

    python benchmarks/step_cost.py resnet18 shufflenetv2_x1_5 -b 8 --steps 15
    python benchmarks/step_cost.py resnet18 --amp --device cuda -b 64
    python benchmarks/step_cost.py resnet18 --torchcompile --steps 15

Steps of all kinds are interleaved in one process; the ratio of times is the median over rounds of a step to the plain
one beside it, which a machine that slows down for a while disturbs little. On CUDA time is that of events, the peak the
allocator's, gradients of parameters included; on the CPU it is of the tensors that are alive, without them.
"""
import argparse
import contextlib
import functools
import statistics
import time

import timm
import torch
from timm.task import ClassificationTask

from header import print_header, spread
from timm_focus import FocusTask
from timm_focus.analysis import step_cost
from timm_focus.training.device import keep_freed_memory

KINDS = {  # arguments of the focus model
    'plain': None,
    'focus': {},
    'focus, recompute': dict(focus_recompute=True),
    'focus, fraction 0.5': dict(focus_fraction=0.5),
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', metavar='MODEL', help='plain timm names')
    parser.add_argument('-b', '--batch-size', type=int, default=8, help='images a step (default: 8)')
    parser.add_argument('--img-size', type=int, default=224, help='height and width (default: 224)')
    parser.add_argument('--num-classes', type=int, default=365, help='classes (default: 365)')
    parser.add_argument('--steps', type=int, default=15, help='timed steps of each, 0 for counts alone (default: 15)')
    parser.add_argument('--kinds', nargs='+', default=list(KINDS), choices=list(KINDS)[1:], metavar='KIND',
                        help=f'what to compare with plain steps (default: {", ".join(list(KINDS)[1:])})')
    parser.add_argument('--no-counts', action='store_true', help='time alone')
    parser.add_argument('--amp', action='store_true', help='float16 on CUDA, bfloat16 on the CPU')
    parser.add_argument('--torchcompile', nargs='?', const='inductor', metavar='BACKEND', help='compile the steps')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='device')
    return parser.parse_args()


def make_task(name, kind, args):
    focus = KINDS[kind]
    torch.manual_seed(0)
    if focus is None:
        model = timm.create_model(name, num_classes=args.num_classes)
    else:
        model = timm.create_model(f'focus_{name}', num_classes=args.num_classes, **focus)
    model = model.train().to(args.device, memory_format=torch.channels_last)
    return (ClassificationTask if focus is None else FocusTask)(model, device=torch.device(args.device), verbose=False)


def seconds_of(function, device):
    """Time of a call, by the device's own clock where it has one."""
    if device == 'cpu':
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    function()
    events[1].record()
    torch.cuda.synchronize()
    return events[0].elapsed_time(events[1]) / 1000


def measure(name, args):
    """Print a table of a model: each kind of step over the plain one."""
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=args.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(args.num_classes, (args.batch_size,), device=args.device)
    amp = functools.partial(
        torch.autocast, args.device, torch.bfloat16 if args.device == 'cpu' else torch.float16,
        enabled=args.amp) if args.amp else contextlib.nullcontext
    counts, steps = {}, {}
    for kind in dict.fromkeys(['plain', *args.kinds]):
        task = make_task(name, kind, args)

        def loss_of(task=task):
            with amp():
                return task(images, labels)['loss']

        if not args.no_counts:
            counts[kind] = step_cost(task.get_trainable_module(), loss_of)
        if args.torchcompile:
            task.compile(backend=args.torchcompile)
        optimizer = torch.optim.SGD(task.get_trainable_module().parameters(), 1e-3, momentum=0.9)

        def step(loss_of=loss_of, optimizer=optimizer):
            loss_of().backward()
            optimizer.step()
            optimizer.zero_grad()

        steps[kind] = step
        if kind == 'plain':
            steps['forward'] = loss_of
    times = {kind: [] for kind in steps}
    for i in range(args.steps + 2 if args.steps else 0):  # the first two warm up
        for kind, step in steps.items():
            seconds = seconds_of(step, args.device)
            if i >= 2:
                times[kind].append(seconds)

    print(f'\n{name}')
    print(f'{"":20}  {"GFLOP":>8} {"ratio":>7}  {"kept MiB":>8} {"ratio":>7}  {"peak MiB":>8} {"ratio":>7}  '
          f'{"ratio":>7}  seconds: median (range)')
    for kind in steps:
        line = f'{kind:20}'
        if kind in counts:
            for value, base, unit in zip(counts[kind], counts['plain'], (1e9, 2 ** 20, 2 ** 20)):
                line += f'  {value / unit:8.1f} {value / base:7.4f}'
        else:
            line += ' ' * 54
        if args.steps:
            ratio = statistics.median(a / b for a, b in zip(times[kind], times['plain']))
            line += f'  {ratio:7.3f}  {spread(times[kind])}'
        print(line, flush=True)


def main():
    args = parse_args()
    keep_freed_memory()  # as train_focus.py does
    print_header(batch=args.batch_size, size=f'{args.img_size} px', classes=args.num_classes, device=args.device,
                 type='amp' if args.amp else 'float32', compiled=args.torchcompile or 'no', steps=args.steps,
                 format='channels_last')
    for name in args.models:
        measure(name, args)


if __name__ == '__main__':
    main()
