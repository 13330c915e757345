#!/usr/bin/env python3
"""Time of a focus training step over a plain one: steps of both interleaved in one process, medians compared.

    python benchmarks/step_cost.py resnet18 shufflenetv2_x1_5 --img-size 64 -b 64 --steps 15
"""
import argparse
import os
import platform
import statistics
import time

import timm
import torch
from timm.task import ClassificationTask

from timm_focus import FocusTask


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('models', nargs='+', metavar='MODEL', help='plain timm names')
    parser.add_argument('-b', '--batch-size', type=int, default=64, help='images a step (default: 64)')
    parser.add_argument('--img-size', type=int, default=224, help='height and width (default: 224)')
    parser.add_argument('--num-classes', type=int, default=365, help='classes (default: 365)')
    parser.add_argument('--steps', type=int, default=15, help='timed steps of each (default: 15)')
    return parser.parse_args()


def step_time(task, optimizer, images, labels):
    """Seconds of one training step."""
    began = time.perf_counter()
    loss = task(images, labels)['loss']
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - began


def main():
    args = parse_args()
    print(f'{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, '
          f'torch {torch.__version__}, timm {timm.__version__}; batch {args.batch_size}, '
          f'{args.img_size} px, float32, channels_last, {args.steps} steps of each')
    for name in args.models:
        tasks = {}
        for kind, prefix, make_task in (('plain', '', ClassificationTask), ('focus', 'focus_', FocusTask)):
            model = timm.create_model(prefix + name, num_classes=args.num_classes)
            model = model.train().to(memory_format=torch.channels_last)
            tasks[kind] = make_task(model, verbose=False), torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
        images = torch.randn(args.batch_size, 3, args.img_size, args.img_size)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(args.num_classes, (args.batch_size,))
        times = {kind: [] for kind in tasks}
        for i in range(args.steps + 2):  # the first two warm up
            for kind, (task, optimizer) in tasks.items():
                seconds = step_time(task, optimizer, images, labels)
                if i >= 2:
                    times[kind].append(seconds)
        plain, focus = (statistics.median(times[kind]) for kind in ('plain', 'focus'))
        print(f'{name}: plain {plain:.3f} s, focus {focus:.3f} s, ratio {focus / plain:.3f}')


if __name__ == '__main__':
    main()
