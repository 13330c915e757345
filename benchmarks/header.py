"""Prints the first lines of every result: what was run, when, on which machine and with which versions."""
import datetime
import os
import platform
import shlex
import statistics
import sys

import timm
import torch

__all__ = ['machine', 'print_header', 'processor', 'spread']


def print_header(**settings: object) -> None:
    """Print command, machine, versions and the settings that matter."""
    print(f'# python {shlex.join(sys.argv)}')
    print(f'# {datetime.date.today()}, {machine(settings.get("device"))}, '
          f'{len(os.sched_getaffinity(0))} cores, {torch.get_num_threads()} threads; '
          f'Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}')
    print('# ' + ', '.join(f'{name} {value}' for name, value in settings.items()), flush=True)


def machine(device: object = None) -> str:
    """Return the name of the GPU if it is the device, or no device is given and there is one; else of the processor."""
    is_gpu = torch.cuda.is_available() if device is None else str(device).startswith('cuda')
    return torch.cuda.get_device_name() if is_gpu else processor()


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        with open('/proc/cpuinfo') as f:
            return next(line.split(':')[1].strip() for line in f if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.machine()


def spread(values: list) -> str:
    """Write the median of values and their range."""
    return f'{statistics.median(values):.4g} ({min(values):.4g} to {max(values):.4g})'
