"""What three and four processes do together is what one does alone: runs of the script over gloo, on the CPU."""
import re

import pytest
import timm
import torch
import yaml

from conftest import TINY, Run, evaluate

pytestmark = [pytest.mark.slow, pytest.mark.parametrize('n', [3, pytest.param(4, marks=pytest.mark.long)])]
WATCHED = """
import os, sys
import torch
import train_focus
seen = {}
train, average = train_focus.train_one_epoch, train_focus.distribute_bn
def watched(task, loader, optimizer, args, **kwargs):
    model = task.trainable_module
    assert type(model) is torch.nn.parallel.DistributedDataParallel and not model.find_unused_parameters
    seen.update(broadcast=model.broadcast_buffers, lr=args.lr, batches=[])
    class Watched(list):
        def __iter__(self):
            for x, y in loader:
                seen['batches'].append(len(x))
                yield x, y
    result = train(task, Watched(loader), optimizer=optimizer, args=args, **kwargs)
    seen['parameters'] = {k: v.detach().clone() for k, v in model.module.named_parameters()}
    return result
def averaged(model, *args):
    before = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
    average(model, *args)
    after = {k: v.clone() for k, v in model.state_dict().items() if 'running' in k}
    seen.setdefault('statistics', []).append((before, after))
train_focus.train_one_epoch, train_focus.distribute_bn = watched, averaged
path = sys.argv.pop(1)
train_focus.main()
torch.save(seen, f'{path}/{os.environ["RANK"]}.pt')
"""
VIT = '--model focus_vit_tiny_patch16_224 --model-kwargs depth=4 --no-aug'


@pytest.fixture
def together(fork, tmp_path, image_folder):
    """`together(n, more)` is a run of n processes, and what each of them saw."""
    def run(n, more):
        folder = tmp_path / f'seen-{n}'
        folder.mkdir()
        done = fork(
            WATCHED, folder, image_folder, '--img-size', '32', '-j', '0', '--epochs', '1', '--device', 'cpu',
            '--output', tmp_path / 'out', '--experiment', str(n), *more.split(), processes=n)
        assert done.returncode == 0, done.stderr
        return Run(folder=tmp_path / 'out' / str(n), err=done.stderr), [
            torch.load(folder / f'{rank}.pt') for rank in range(n)]
    return run


def test_processes_share_images_statistics_and_the_work(together, image_folder, n):
    """24 images to train on; of the 10 to validate on, the processes' equal shares count some twice."""
    run, seen = together(n, f'--model focus_{TINY} -b 2 -vb 2 --model-ema --model-ema-decay 0.5 '
                    '--sheet-images 2')
    assert all(sum(one['batches']) == 24 // n and set(one['batches']) == {2} for one in seen)
    assert all(one['lr'] == 0.1 * 2 * n / 256 and one['broadcast'] for one in seen)
    for one in seen:
        assert all(torch.equal(p, seen[0]['parameters'][k]) for k, p in one['parameters'].items())
        assert len(one['statistics']) == 2  # of the weights, and of their running average
    for i in range(2):
        for key, after in seen[0]['statistics'][i][1].items():
            mean = torch.stack([one['statistics'][i][0][key] for one in seen]).mean(0)
            torch.testing.assert_close(after, mean)
            assert all(torch.equal(one['statistics'][i][1][key], after) for one in seen)
    assert any(not torch.equal(value, seen[-1]['statistics'][0][0][key])
               for key, value in seen[0]['statistics'][0][0].items())

    assert len(run.rows) == 1 and run.err.count('Load it with timm') == 1 and (run.folder / 'focus.png').exists()
    assert f'batches of 2 images on each of {n} processes' in run.err
    assert yaml.safe_load((run.folder / 'args.yaml').read_text())
    model = timm.create_model(TINY, num_classes=2)
    model.load_state_dict(run.checkpoint()['state_dict_ema'])
    loss, top1 = evaluate(model, image_folder)
    assert run.column('eval_top1')[0] == pytest.approx(top1, abs=1e-9)
    assert run.column('eval_loss')[0] == pytest.approx(loss, rel=1e-4)


@pytest.mark.long
def test_the_statistics_of_the_first_count_while_it_draws(together, n):
    """`--dist-bn broadcast`; the first process saves and draws after each epoch, and the others wait for it."""
    run, seen = together(n, f'--model focus_{TINY} -b 2 -vb 2 --dist-bn broadcast --epochs 2 --focus-save-images '
                         '--sheet-images 2')
    assert all(len(one['statistics']) == 2 for one in seen)  # of each epoch
    for i in range(2):
        for key, first in seen[0]['statistics'][i][0].items():
            assert all(torch.equal(one['statistics'][i][1][key], first) for one in seen)
    assert any(not torch.equal(value, seen[0]['statistics'][0][0][key])
               for key, value in seen[-1]['statistics'][0][0].items())
    assert len(run.rows) == 2 and all((run.folder / f'focus-{epoch}.png').exists() for epoch in range(2))


def test_processes_make_the_update_of_one(together, train, n):
    """All images in one update, at a learning rate that follows the batch of all processes."""
    run, seen = together(n, f'{VIT} -b {24 // n} --no-ddp-bb')
    assert not any(one['broadcast'] for one in seen) and all(one['batches'] == [24 // n] for one in seen)
    alone = train(f'{VIT} -b 24 --lr {0.1 * 24 / 256}', 'alone', model='focus_vit_tiny_patch16_224')
    assert re.search(r'at 0\.009375', run.err) and run.column('train_loss') == pytest.approx(
        alone.column('train_loss'), rel=1e-5)
    start = train(f'{VIT} -b 24 --lr 0', 'start', model='focus_vit_tiny_patch16_224').weights()
    for key, value in alone.weights().items():
        moved = (value - start[key]).abs().max()
        assert (run.weights()[key] - value).abs().max() <= 1e-3 * moved + 1e-8, key
