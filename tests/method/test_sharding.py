"""FSDP2: a sharded FocusNet trains as a whole one does and is exported whole, in two real processes."""
import re

import pytest
import torch
from conftest import ROOT

# the loop of docs/sharding.md between these, with the model that it is compared with
BEFORE = """
import torch
generator = torch.Generator().manual_seed(3)
batches = [(torch.randn(2, 4, 3, 64, 64, generator=generator), torch.randint(0, 4, (2, 4), generator=generator))
           for _ in range(2)]
import os
rank = int(os.environ['RANK'])
loader = [(images[rank], labels[rank]) for images, labels in batches]
torch.manual_seed(0)
"""
# a process computes both processes' losses on a whole model; the running statistics are those of its own images
COMPARED = """
torch.manual_seed(0)
whole = timm.create_model('focus_resnet10t', num_classes=4).train()
optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
for images, labels in batches:
    before = {name: value.clone() for name, value in whole.named_buffers()}
    for turn in (1 - rank, rank):
        for name, value in whole.named_buffers():
            value.copy_(before[name])
        (loss_fn(whole(images[turn]), labels[turn])['loss'] / 2).backward()
    optimizer.step()
    optimizer.zero_grad()
expected, found = whole.backbone.state_dict(), plain.state_dict()
assert found.keys() == expected.keys()
for name in expected:
    torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
with torch.no_grad():
    logits = plain(images[0])
    torch.testing.assert_close(model.eval()(images[0]), logits)
    torch.testing.assert_close(model.forward_head(model.forward_features(images[0])), logits)
"""


def page():
    return re.search(r'```python\n(.*?)```', (ROOT / 'docs/sharding.md').read_text(), re.S)[1]


KINDS = ('as the page says', 'the backbone alone', 'the model alone')


def code_of(kind):
    """The page's code without the start and the end of the processes, which are for all kinds alike."""
    code = page()
    for line in ('dist.init_process_group()\n', 'dist.destroy_process_group()\n'):
        assert code.count(line) == 1
        code = code.replace(line, '')
    stages = re.search(r'for stage in .*?\n.*?\n', code)[0]
    if kind == 'the backbone alone':
        code = re.sub(r'fully_shard\(model\) .*\n', '', code).replace(stages, '').replace(
            '    optimizer.step()', '    for p in (*model.cam_head.parameters(), *model.erased_head.parameters()):\n'
            '        dist.all_reduce(p.grad, dist.ReduceOp.SUM)\n        p.grad /= 2\n    optimizer.step()')
    elif kind == 'the model alone':
        code = code.replace(stages, '').replace('fully_shard(model.backbone)\n', '')
    return code.replace("'model.pth'", f"'{kind}.pth'")


@pytest.mark.slow
def test_a_sharded_model_trains_and_exports(fork, tmp_path):
    """Of every kind in the same two processes."""
    lines = ['import os, runpy, sys', 'import torch.distributed as dist', 'os.chdir(sys.argv[1])',
             "dist.init_process_group('gloo')"]
    for kind in KINDS:
        (tmp_path / f'{kind}.py').write_text(BEFORE + code_of(kind) + COMPARED)
        lines.append(f"runpy.run_path('{kind}.py')")
    done = fork('\n'.join([*lines, 'dist.destroy_process_group()']), tmp_path, processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in KINDS:
        plain = torch.load(tmp_path / f'{kind}.pth', weights_only=True)
        assert {type(value) for value in plain.values()} == {torch.Tensor}, kind
