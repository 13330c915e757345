"""Training on a GPU that is not there: torch's fake tensors on 'cuda' have shapes, types and devices, and no numbers.

Whatever asks for a number, so that the host would wait for the device, raises; so does what mixes devices, or copies
from one to the other and waits for it. A backward pass is not possible without a card: gradients are filled in.
"""
import functools
import logging

import pytest
import torch
from timm.data import Mixup
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from torch._subclasses.fake_tensor import (
    DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_focus
from conftest import TINY
from test_model_table import LARGER, TABLE, flags, focus
from timm_focus.baselines import HideAndSeek
from timm_focus.training import Progress, create_task, train_one_epoch, validate

CUDA = torch.device('cuda:0')
CLASSES, BATCH = 3, 4


class Card(TorchDispatchMode):
    """What a card does not forgive, or waits for, raises: mixed devices, and copies between them that are waited for.

    Numbers without dimensions travel with the kernel.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        named = {**dict(zip((a.name for a in func._schema.arguments), args)), **kwargs}
        waits = not named.get('non_blocking')
        given = {t.device.type for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor) and t.ndim}
        if len(given) > 1 and waits:
            raise RuntimeError(f'{func} of tensors on {given}')
        result = func(*args, **kwargs)
        made = {t.device.type for t in tree_leaves(result) if isinstance(t, torch.Tensor) and t.ndim}
        if given and made and made != given and waits:
            raise RuntimeError(f'{func} takes {given}, gives {made}, and waits')
        return result


@pytest.fixture(autouse=True)
def _pretended():
    """Autocast counts itself off without a card, and is left as it was."""
    level = logging.getLogger().level
    yield
    torch.set_autocast_enabled('cuda', False)
    torch.set_autocast_dtype('cuda', torch.float16)
    logging.getLogger().setLevel(level)


class Autocast:
    """`torch.autocast('cuda', dtype)`, without asking whether there is a card."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        torch.set_autocast_dtype('cuda', self.dtype)
        torch.set_autocast_enabled('cuda', True)

    def __exit__(self, *exception):
        torch.set_autocast_enabled('cuda', False)


def settings(words):
    args, _ = train_focus.parse_args(train_focus.parser, ['folder', *words.split()])
    return args.completed(
        num_classes=CLASSES, prefetcher=not args.no_prefetcher, rank=0, distributed=False, last_epoch=1, world_size=1,
        lr=args.lr or 0.1)


def to_card(model, mode):
    """The model's parameters and buffers on the pretended card; constructors may read numbers, so it is made before."""
    def move(tensor):
        return torch.empty_like(mode.from_tensor(tensor), device=CUDA)

    known = {}  # a parameter that two modules share stays one
    for module in model.modules():
        for name, p in module._parameters.items():
            if p is not None:
                if id(p) not in known:
                    known[id(p)] = torch.nn.Parameter(move(p), requires_grad=p.requires_grad)
                module._parameters[name] = known[id(p)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = move(buffer)
    return model


def prepare(words, mode, ema=False):
    """Settings and their task on the pretended card."""
    args = settings(words)
    args, model = train_focus.build_model(args)
    model.to(memory_format=torch.channels_last)
    if not ema:
        with mode:
            return args, create_task(to_card(model, mode), args, device=CUDA)
    task = create_task(model, args)
    task.setup_ema(decay=0.5)  # which copies, as fake tensors cannot be
    with mode:
        to_card(task, mode)
    task.device = CUDA
    return args, task


def images(args, n=BATCH):
    size = args.img_size
    return torch.zeros(n, 3, size, size, dtype=torch.uint8), torch.zeros(n, dtype=torch.long)


@pytest.mark.slow(*LARGER)
@pytest.mark.parametrize('name', TABLE)
def test_a_forward_and_its_loss_stay_on_the_card(name):
    mode = FakeTensorMode()
    args, task = prepare(f'--model {focus(name)} {flags(name)}', mode)
    model, seen = task.trainable_module, {}
    model.register_forward_hook(lambda _, __, output: seen.update(output._asdict()))
    keep_mask = model.keep_mask

    def watched(tap, target, size):
        seen.update(tap=tap, map=model.activation_map(tap, target), keep=keep_mask(tap, target, size))
        return seen['keep']

    model.keep_mask = watched
    with mode, Card():
        task.train()
        x, y = (t.to(CUDA, non_blocking=True) for t in images(args))
        x = x.float().contiguous(memory_format=torch.channels_last)
        with Autocast(torch.float16):
            result = task(x, y)
        assert {t.device for t in (*result.values(), *seen.values())} == {CUDA}
        assert {seen[logits].dtype for logits in ('main', 'side', 'erased')} == {torch.float16}
        assert seen['map'].dtype == torch.float32 and seen['keep'].dtype == torch.bool
        assert {v.dtype for k, v in result.items() if k != 'output'} == {torch.float32}
        with torch.no_grad(), Autocast(torch.float16):
            assert task.get_eval_model().eval()(x).shape == (BATCH, CLASSES)


ROWS = {
    'focus': f'--model focus_{TINY}',
    'mixed': f'--model focus_{TINY} --mixup 0.2 --cutmix 1 --no-prefetcher',
    'vit': '--model focus_vit_tiny_patch16_224 --model-kwargs depth=4 --focus-recompute',
    'plain': f'--model {TINY}',
    'half of the batch': f'--model focus_{TINY} --focus-fraction 0.5 --smoothing 0.1',
    'random map': f'--model focus_{TINY} --focus-map random',
    'clean': f'--model focus_{TINY} --focus-bn clean',
    'attention mining': f'--model focus_{TINY} --focus-consistency attention_mining',
    'binary': f'--model focus_{TINY} --bce-loss --loss-pos-weight 2 --loss-class-weight 1,2,3',
    'adl': f'--model {TINY} --method adl',
    'acol': f'--model {TINY} --method acol',
    'adaptively clipped': f'--model focus_{TINY} --clip-grad 0.1 --clip-mode agc',
    'adamw': f'--model focus_{TINY} --opt adamw --clip-grad 1 --grad-accum-steps 2 --sched-on-updates',
    'smaller': f'--model focus_{TINY} --focus-size 0.75 --focus-scored-by main --focus-start auto',
    'now and then': f'--model focus_{TINY} --focus-every 2 --focus-share 0.3 --focus-map grid',
    'tokens': '--model focus_vit_tiny_patch16_224 --model-kwargs depth=2 --focus-drop-tokens',
    'in turn': f'--model focus_{TINY} --focus-recompute --focus-kl-detach main',
    'masksub': f'--model {TINY} --method masksub',
    'masksub, tokens': '--model vit_tiny_patch16_224 --model-kwargs depth=2 --method masksub',
}
IN_TURN = ('in turn', 'masksub', 'masksub, tokens')  # two backward passes a step


@pytest.mark.slow('vit')
@pytest.mark.long('adaptively', 'half of', 'adamw', 'clean', 'binary')
@pytest.mark.parametrize('row', [
    row if row in ('focus', 'mixed', 'vit') else pytest.param(row, marks=pytest.mark.slow) for row in ROWS])
def test_an_epoch_waits_for_the_card_at_its_log_line_alone(row, monkeypatch):
    """The script's own loop, with the prefetcher, Hide-and-Seek, random erasing, and a running average."""
    mode, steps = FakeTensorMode(), []
    args, task = prepare(f'{ROWS[row]} --img-size 64 --log-interval 1000', mode, ema=True)

    def backward(loss):
        assert loss.device == CUDA and loss.dtype == torch.float32 and not loss.shape
        for p in task.trainable_module.parameters():
            if p.requires_grad:
                p.grad = torch.zeros_like(p)
        steps.append(loss)

    monkeypatch.setattr(torch.Tensor, 'backward', backward)
    with mode:
        optimizer = create_optimizer_v2(
            task.get_trainable_module(), **optimizer_kwargs(args), filter_bias_and_bn=args.no_decay_1d)
        scheduler, _ = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=3)
        loader = [images(args) for _ in range(3)]
        if args.prefetcher:
            loader = PrefetchLoader(loader, device=CUDA, re_prob=0.9, re_mode='pixel')
        mixup_fn = Mixup(args.mixup, args.cutmix, num_classes=CLASSES) if args.mixup else None
        common = dict(args=args, device=CUDA, autocast=functools.partial(Autocast, torch.bfloat16))
        with Card(), pytest.raises(DataDependentOutputException) as waited:
            train_one_epoch(task, loader, optimizer, start=Progress(0, 0, 0), lr_scheduler=scheduler,
                            augment=HideAndSeek(), mixup_fn=mixup_fn, **common)
        assert len(steps) == (6 if row in IN_TURN else 3) and 'totals' in [entry.name for entry in waited.traceback]
        with Card(), pytest.raises(DataDependentOutputException) as waited:
            validate(task.get_eval_model(ema=True), loader, task, **common)
        assert 'compute' in [entry.name for entry in waited.traceback]


def test_the_pretended_card_does_not_forgive():
    """Without this nothing above would have to raise."""
    with FakeTensorMode(), Card():
        here, there = torch.zeros(3), torch.zeros(3, device=CUDA)
        there + torch.zeros(()), here.to(CUDA, non_blocking=True)  # allowed: neither waits
        for wrong in (lambda: here + there, lambda: here.to(CUDA), lambda: there.cpu(), lambda: there[here.long()],
                      lambda: there.copy_(here), lambda: there.sum().item(), lambda: bool(there.any()),
                      lambda: there[there > 0], lambda: there.nonzero(), lambda: there.tolist()):
            with pytest.raises((RuntimeError, DataDependentOutputException, DynamicOutputShapeException)):
                wrong()
