"""Explaining thousands of images takes no more memory, files and processes at the end than at the start."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import ENVIRONMENT

N = 2000


def used(pid):
    """Resident memory in MB, open files and child processes of a process."""
    status = Path(f'/proc/{pid}/status').read_text()
    memory = int(next(line for line in status.splitlines() if line.startswith('VmRSS')).split()[1]) / 1024
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return memory, len(os.listdir(f'/proc/{pid}/fd')), len(children)


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='reads /proc, which Linux has')
def test_explain_is_flat(photo, tmp_path):
    import timm
    import torch
    for k in range(4):
        (tmp_path / f'in/{k}').mkdir(parents=True)
    for i in range(N):
        photo.crop((i % 200, i % 150, i % 200 + 200, i % 150 + 200)).resize((64, 64)).save(
            tmp_path / f'in/{i % 4}/{i}.jpg')
    torch.save(timm.create_model('test_resnet', num_classes=4).state_dict(), tmp_path / 'w.pth')
    process = subprocess.Popen(
        [sys.executable, '-m', 'timm_focus.commands.main', 'explain', str(tmp_path / 'in'), '--model', 'test_resnet',
         '--checkpoint', str(tmp_path / 'w.pth'), '--img-size', '128', '-j', '2', '-b', '8', '--output',
         str(tmp_path / 'out')], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    samples = []
    while process.poll() is None:
        done = sum(name.endswith('.npy') for k in range(4) if (tmp_path / f'out/{k}').exists()
                   for name in os.listdir(tmp_path / f'out/{k}'))
        try:
            samples.append((done, *used(process.pid)))
        except (OSError, StopIteration):  # it ended meanwhile
            pass
        time.sleep(0.5)
    assert process.returncode == 0
    early = [s for s in samples if N // 10 <= s[0] < N // 5]
    late = [s for s in samples if s[0] >= N * 9 // 10 and s[3] == 2]
    print(f'images, MB, files, processes: {early[0]} ... {late[-1]}')
    for i, spare in ((1, 60), (2, 2), (3, 0)):
        assert max(s[i] for s in late) <= max(s[i] for s in early) + spare, (early, late)
