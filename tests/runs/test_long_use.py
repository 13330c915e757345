"""A long training uses no more of a machine at its end than at its beginning."""
import json

import pytest

# notes memory, file descriptors and processes after each validation
WATCHED = """
import json, os, sys
import train_focus
from timm_focus.training import Journal

def tree():
    ours = {os.getpid()}
    for pid in sorted(map(int, filter(str.isdigit, os.listdir('/proc')))):
        try:
            with open(f'/proc/{pid}/stat') as f:
                if int(f.read().rpartition(')')[2].split()[1]) in ours:
                    ours.add(pid)
        except FileNotFoundError:
            pass
    return ours

write = Journal.write
def noting(self, *args, **kwargs):
    kilobytes = files = 0
    for pid in tree():
        with open(f'/proc/{pid}/status') as f:
            kilobytes += sum(int(line.split()[1]) for line in f if line.startswith(('RssAnon', 'RssShmem')))
        files += len(os.listdir(f'/proc/{pid}/fd'))
    print('USE', json.dumps(dict(mb=kilobytes // 1024, files=files, processes=len(tree()))), flush=True)
    return write(self, *args, **kwargs)
Journal.write = noting
train_focus.main()
"""


@pytest.mark.long
def test_a_long_training_uses_no_more_at_its_end(launch, settings):
    done = launch('-c', WATCHED, *settings(  # 3,000 steps, validated after each 96
        '-b 2 -j 2 --epochs 250 --val-interval 8 --recovery-interval 10 --model-ema --lr 1e-3',
        model='focus_test_resnet'), seconds=3000)
    assert done.returncode == 0, done.stderr
    used = [json.loads(line[4:]) for line in done.stdout.splitlines() if line.startswith('USE ')]
    print(used[::25])
    assert len(used) == 250
    early, late = used[20], used[-1]  # by then, everything has been allocated once
    assert late['processes'] == early['processes'], used
    assert late['files'] <= early['files'] + 20, used  # batches under way have some; a leak would have hundreds
    assert late['mb'] <= early['mb'] * 1.05 + 10, used
