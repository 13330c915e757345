"""Thousands of images take no more memory, files and processes at the end than at the start."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch

from conftest import ENVIRONMENT

N = 2000
COMMANDS = {
    'area': '-b 8', 'explain': '-b 8', 'predict': '--class-map {classes} -b 8',
    'validate': '-b 1',  # a batch an image: what is kept of each batch shows
}


def used(pid):
    """Memory of a process's own in MB, its open files and its child processes."""
    status = Path(f'/proc/{pid}/status').read_text()
    memory = sum(int(line.split()[1]) for line in status.splitlines() if line.startswith(('RssAnon', 'RssShmem')))
    children = Path(f'/proc/{pid}/task/{pid}/children').read_text().split()
    return memory / 1024, len(os.listdir(f'/proc/{pid}/fd')), len(children)


@pytest.fixture(scope='module')
def images(photo, tmp_path_factory):
    """Folder of 2,000 images in four classes, with weights and names of the classes beside it."""
    folder = tmp_path_factory.mktemp('long')
    for k in range(4):
        (folder / f'val/{k}').mkdir(parents=True)
    for i in range(N):
        photo.crop((i % 200, i % 150, i % 200 + 200, i % 150 + 200)).resize((64, 64)).save(
            folder / f'val/{i % 4}/{i}.jpg')
    torch.save(timm.create_model('test_resnet', num_classes=4).state_dict(), folder / 'w.pth')
    (folder / 'classes.txt').write_text('0\n1\n2\n3\n')
    return folder


@pytest.mark.long
@pytest.mark.skipif(not os.path.exists('/proc/self/fd'), reason='reads /proc, which Linux has')
@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_uses_no_more_at_its_end(images, tmp_path, name):
    more = COMMANDS[name].format(classes=images / 'classes.txt').split()
    data = images if name in ('area', 'validate') else images / 'val'
    command = [
        name, data, '--model', 'test_resnet', '--checkpoint', images / 'w.pth', '--img-size', '128', '-j', '2',
        '--device', 'cpu', *more, '--output', tmp_path / 'out']
    with open(tmp_path / 'log', 'w') as log:
        process = subprocess.Popen(
            [sys.executable, '-m', 'timm_focus.commands.main', *map(str, command)], env=ENVIRONMENT, stdout=log,
            stderr=log)
        samples = []
        while process.poll() is None:
            try:
                samples.append(used(process.pid))
            except (OSError, StopIteration):  # it ended meanwhile
                pass
            time.sleep(0.2)
    assert process.returncode == 0, (tmp_path / 'log').read_text()
    samples = [s for s in samples if s[2] == 2]  # from when the workers are there until they end
    assert len(samples) > 40, 'it was too short to tell'
    early, late = samples[len(samples) // 5:len(samples) // 3], samples[-len(samples) // 10:]
    print(f'{name}: MB, files, processes: {early[0]} ... {late[-1]}')
    for i, spare in ((0, 60), (1, 10), (2, 0)):
        assert max(s[i] for s in late) <= max(s[i] for s in early) + spare, (early, late)
