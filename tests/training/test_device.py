"""What set_up_device does that no run shows; the rest is in the tests of the script."""
import os
import platform
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT

from timm_focus.training import build_parser, parse_args, set_up_device

FAULTS = """
import resource, torch
from timm_focus.training.device import keep_freed_memory

def faults():
    for i in range(12):
        tensors = [torch.ones(2 ** 20) for _ in range(16)]  # 64 MiB, in parts that are neither small nor huge
        del tensors
        if i == 1:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = faults()
keep_freed_memory()
print(default, faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of the C library glibc')
def test_freed_memory_is_not_cleared_again():
    default, kept = map(int, subprocess.run(
        [sys.executable, '-c', FAULTS], env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout.split())
    assert default > 1_000 and 10 * kept < default, (default, kept)  # fewer with huge pages


@pytest.mark.parametrize('flags, cores, processes, workers', [
    ([], 2, 1, 2), ([], 64, 1, 4), ([], 8, 4, 2), ([], 2, 4, 1), (['-j', '4'], 2, 1, 4), (['--workers', '0'], 2, 1, 0),
    (['--dataset', 'synthetic'], 1, 1, 1), (['--dataset', 'synthetic'], 8, 1, 2),
    (['--dataset', 'synthetic', '-j', '2'], 1, 1, 2)])
def test_no_more_workers_than_cores_unless_asked(flags, cores, processes, workers, monkeypatch, quietly):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(cores)), raising=False)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    data = [] if '--dataset' in flags else ['d']
    args, _ = parse_args(build_parser(), [*data, '--device', 'cpu', *flags])
    args, *_ = set_up_device(args)
    assert args.workers == workers
