"""What only a GPU can show; `pytest -m cuda --rehearse` runs the same on the CPU, as far as it goes there.

`python benchmarks/gpu.py` runs them first. What compiles comes last, as it takes longest.
"""
import contextlib
import copy
import functools
import re

import pytest
import timm
import torch
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.task import ClassificationTask

import train_focus
from conftest import TINY, equal, evaluate, finite
from timm_focus import FocusLoss, FocusOutput
from timm_focus.analysis import peak_bytes
from timm_focus.baselines import HideAndSeek
from timm_focus.commands.main import main as timm_focus_command
from timm_focus.method.heads import CamHead
from timm_focus.training import FocusTask, Progress, create_task, train_one_epoch
from timm_focus.training.device import choose_kernels, set_up_device

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures('quietly')]
VIT = 'vit_tiny_patch16_224'
SMALL = {TINY: (64, {}), VIT: (32, dict(depth=4, img_size=32))}
CLASSES = 4


@pytest.fixture
def gpu():
    """The device: a GPU, or the CPU in a rehearsal."""
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


@pytest.fixture
def deterministic():
    """Kernels that give the same bits each time, where there are such."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def make_task(name, gpu, task=FocusTask, **focus):
    torch.manual_seed(0)
    prefix = 'focus_' if task is FocusTask else ''
    model = timm.create_model(f'{prefix}{name}', num_classes=CLASSES, **SMALL[name][1], **focus).train()
    return task(model.to(gpu, memory_format=torch.channels_last), device=gpu, verbose=False)


def batch(name, gpu, n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, SMALL[name][0], SMALL[name][0], generator=generator)
    return x.to(gpu, memory_format=torch.channels_last), torch.randint(CLASSES, (n,), generator=generator).to(gpu)


# whole runs

@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_a_run_trains_resumes_validates_and_exports(train, gpu, image_folder, dtype):
    """With everything that has a state, on the device that `--device` names."""
    more = (f'--device {gpu} --amp --amp-dtype {dtype} --model-ema --model-ema-decay 0.5 --grad-accum-steps 2 '
            '--clip-grad 1 --reprob 0.5 --mixup 0.2 --has -j 2 --log-interval 1 --img-size 64 --sheet-images 2')
    run = train(f'{more} --epochs 3 --stop-epoch 2')
    scaler = run.checkpoint().get('amp_scaler')
    assert (scaler is not None) == (dtype == 'float16') and finite(run.weights())
    run = train(f'{more} --epochs 3 --resume auto')
    assert 'Resuming' in run.err and len(run.rows) == 3 and finite(run.weights())
    assert finite(run.checkpoint()['state_dict_ema']) and (run.folder / 'focus.png').exists()
    assert {v.dtype for v in run.weights().values() if v.is_floating_point()} == {torch.float32}
    assert str(gpu) in re.search('scheme simple, on (.*)', run.err)[1]
    plain = eval(re.search(r'Load it with timm: (.*)', run.err)[1])
    loss, top1 = evaluate(plain, image_folder, size=64)  # on the CPU, in float32
    rows = [(float(row['eval_top1']), float(row['eval_loss'])) for row in run.rows]
    best = max(rows, key=lambda row: row[0])
    assert loss == pytest.approx(best[1], rel=0.05) and abs(top1 - best[0]) <= 20  # one or two of ten images
    timm_focus_command([
        'validate', str(image_folder), '--checkpoint', str(run.folder), '--device', str(gpu), '-j', '0',
        '--output', str(run.folder / 'validated')])
    timm_focus_command([
        'area', str(image_folder), '--checkpoint', str(run.folder), '--device', str(gpu), '-j', '0',
        '--output', str(run.folder / 'area')])
    timm_focus_command([
        'explain', str(image_folder / 'val/left/0.jpg'), '--checkpoint', str(run.folder), '--device', str(gpu),
        '--output', str(run.folder / 'explained')])
    timm_focus_command([
        'predict', str(image_folder / 'val/left/0.jpg'), '--checkpoint', str(run.folder), '--device', str(gpu)])
    assert any((run.folder / 'explained').iterdir())
    assert (run.folder / 'validated/validate.json').exists() and (run.folder / 'area/area.json').exists()


@pytest.mark.parametrize('more, model', [
    ('--no-prefetcher --pin-mem --cutmix 1 -j 2', f'focus_{TINY}'), ('--pin-mem --focus-recompute', f'focus_{TINY}'),
    ('--focus-bn clean --focus-map random --opt adamw --lr 1e-3 --clip-grad 0.1 --clip-mode agc', f'focus_{TINY}'),
    ('--focus-recompute --focus-kl-detach main --focus-size 0.75 --focus-start 1 --epochs 2', f'focus_{TINY}'),
    ('--focus-drop-tokens --focus-scored-by main --model-kwargs depth=2', f'focus_{VIT}'),
    ('--method masksub', TINY), ('--method adl', TINY), ('--method acol --img-size 64', TINY)])
def test_every_way_of_training_runs(train, gpu, more, model):
    run = train(f'--device {gpu} --amp {more}', model=model)
    assert finite(run.weights()) and run.column('train_loss')[0] > 0


def test_a_resumed_run_is_the_whole_one_bit_for_bit(train, gpu, deterministic):
    """With torch's deterministic kernels: dropout, mixing, erasing, the scale of the loss."""
    more = f'--device {gpu} --amp --amp-dtype float16 --epochs 2 --drop 0.1 --mixup 0.4 --reprob 0.5 --has --model-ema'
    whole = train(more, 'whole')
    train(f'{more} --stop-epoch 1')
    run = train(f'{more} --resume auto')
    saved, expected = run.checkpoint(), whole.checkpoint()
    for state in ('state_dict', 'state_dict_ema'):
        assert equal(saved[state], expected[state])
    assert saved['amp_scaler'] == expected['amp_scaler'] and run.rows == whole.rows


# numbers

@pytest.mark.parametrize('name', SMALL)
def test_gradients_of_mixed_precision_are_those_of_float32(name, gpu):
    """As near as those of plain training: it is the network whose rounding is large, by the units that it turns off."""
    distances = {}
    for method, focus in ((ClassificationTask, {}), (FocusTask, dict(focus_threshold=1.))):
        gradients = {}  # of a lower threshold, rounding decides on whole regions
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            task = make_task(name, gpu, method, **focus)
            scale = 1024. if dtype == torch.float16 else 1.
            with torch.autocast(gpu.type, dtype, enabled=dtype != torch.float32):
                result = task(*batch(name, gpu))
            assert all(result[key].dtype == torch.float32 for key in result if key != 'output')
            (scale * result['loss']).backward()
            parameters = task.trainable_module.parameters()
            gradients[dtype] = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).cpu() / scale
        expected = gradients.pop(torch.float32)
        assert expected.norm() > 0.1
        for dtype, found in gradients.items():
            distances[method, dtype] = ((found - expected).norm() / expected.norm()).item()
    for dtype, largest in ((torch.float16, 0.15), (torch.bfloat16, 0.4)):
        plain, focused = distances[ClassificationTask, dtype], distances[FocusTask, dtype]
        assert focused < 1.2 * plain + 0.002 and focused < largest, distances


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_maps_of_1e5_and_logits_of_1e4_are_held(dtype, gpu):
    """They are more than float16 holds. A GPU multiplies float32 in TF32, which has its range and float16's 11 bits."""
    choose_kernels()
    torch.manual_seed(0)
    head, target = CamHead(8, 3), torch.tensor([0, 2])
    feature = (1e4 * torch.rand(2, 8, 4, 4)).to(dtype)
    logits = [sign * 1e4 * torch.eye(3).roll(shift, 1).to(dtype) for sign, shift in ((1, 0), (1, 1), (-1, 2))]
    found = []
    for device, exact in ((gpu, False), (torch.device('cpu'), True)):
        x, *output = (t.to(device, torch.float64 if exact else None) for t in (feature, *logits))
        own = copy.deepcopy(head).to(x if exact else device)
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=not exact):
            own.fc.weight.mul_(200)
            activation = own.activation_map(x, target.to(device))
            terms = FocusLoss()(FocusOutput(*output), torch.arange(3, device=device))
        found.append((activation.cpu(), torch.stack(list(terms.values())).cpu()))
    (activation, terms), (expected, expected_terms) = found
    assert activation.dtype == terms.dtype == torch.float32
    assert expected.abs().max() > 1e5 and expected_terms.max() > 1e4
    assert (activation - expected).abs().max() < 2e-3 * expected.abs().max()
    torch.testing.assert_close(terms.double(), expected_terms, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('name', SMALL)
def test_recomputing_changes_no_bit(name, dtype, gpu, deterministic):
    ends = []
    for recompute in (False, True):
        task = make_task(name, gpu, focus_recompute=recompute)
        optimizer = torch.optim.SGD(task.trainable_module.parameters(), lr=0.01, momentum=0.9)
        for step in range(2):
            torch.manual_seed(step)
            with torch.autocast(gpu.type, dtype, enabled=dtype != torch.float32):
                loss = task(*batch(name, gpu, seed=step))['loss']
            (1024 * loss).backward()
            for p in task.trainable_module.parameters():
                p.grad /= 1024
            optimizer.step()
            optimizer.zero_grad()
        ends.append(task.trainable_module.state_dict())
    assert equal(*ends) and finite(ends[0])


def test_recomputing_keeps_the_activations_of_one_pass(gpu):
    peaks = {}
    for recompute in (False, True):
        task, (x, y) = make_task(TINY, gpu, focus_recompute=recompute), batch(TINY, gpu, 64)
        peak_bytes(task.trainable_module, lambda task=task, x=x, y=y: task(x, y)['loss'])  # sets libraries up
        peaks[recompute] = peak_bytes(task.trainable_module, lambda task=task, x=x, y=y: task(x, y)['loss'])
    assert peaks[True] < 0.75 * peaks[False], peaks


# nothing waits

@contextlib.contextmanager
def no_waiting(gpu):
    """What makes the host wait for the GPU raises."""
    if gpu.type != 'cuda':
        yield
        return
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.parametrize('more', [
    '', '--focus-recompute --focus-fraction 0.5', f'--model {TINY} --method none', '--clip-grad 1'])
def test_nothing_waits_for_the_gpu_between_log_lines(gpu, more):
    """The script's own loop: at the last batch it reads the means for its log line, and there alone it waits."""
    words = (f'folder --model focus_{TINY} --img-size 64 --device {gpu} --amp --amp-dtype bfloat16 '
             f'--log-interval 1000 {more}')
    args = train_focus.parse_args(train_focus.parser, words.split())[0]
    args = args.completed(num_classes=CLASSES, lr=0.01, last_epoch=1)
    args, device, autocast, _ = set_up_device(args)
    args, model = train_focus.build_model(args)
    task = create_task(model.to(device, memory_format=torch.channels_last), args, device=device)
    task.setup_ema(decay=0.5)
    optimizer = create_optimizer_v2(task.get_trainable_module(), **optimizer_kwargs(args), filter_bias_and_bn=False)
    images = [((128 * torch.rand(4, 3, 64, 64)).byte(), torch.randint(CLASSES, (4,))) for _ in range(4)]
    loader = PrefetchLoader(images, device=device, re_prob=0.5, re_mode='pixel')
    train = functools.partial(
        train_one_epoch, task, loader, optimizer, args, Progress(0, 0, 0), device, autocast, augment=HideAndSeek())
    train()  # sets libraries up
    with no_waiting(gpu):
        if gpu.type != 'cuda':
            train()
            return
        with pytest.raises(RuntimeError, match='synchroniz') as waited:
            train()
    assert 'totals' in [entry.name for entry in waited.traceback]


# processes

ONE = """
import sys
import torch
import torch.distributed as dist
from timm.utils import distribute_bn
import timm, timm_focus
from timm.layers import convert_sync_batchnorm
from timm_focus.training import FocusTask, Interruption
from timm_focus.training.saver import gather_buffers, restore_buffers
cuda = torch.cuda.is_available()
device = torch.device('cuda:0' if cuda else 'cpu')
dist.init_process_group('nccl' if cuda else 'gloo', init_method='file://' + sys.argv[1], rank=0, world_size=1)
torch.manual_seed(0)
model = timm.create_model('focus_resnet10t', num_classes=4).train().to(device)
if cuda:
    torch.cuda.set_device(device)
    model = convert_sync_batchnorm(model)
task = FocusTask(model, device=device, verbose=False)
task.setup_ema(decay=0.5)
task.prepare_distributed(device_ids=[device] if cuda else None)
optimizer = torch.optim.SGD(model.parameters(), 0.01)
x, y = torch.randn(4, 3, 64, 64, device=device), torch.arange(4, device=device)
with Interruption(True) as interruption:
    for step in range(4):
        task.set_erasing(step != 1)
        with task.no_sync():
            task(x, y)['loss'].backward()
        task(x.flip(0), y.flip(0))['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step)
        assert not interruption.noted()
distribute_bn(task.get_trainable_module(), 1, True)
own, = gathered = gather_buffers(task)
assert own and all(buffer.device.type == 'cpu' for buffer in own.values())
restore_buffers(task, gathered)
answer = ['resume']
dist.broadcast_object_list(answer)
assert answer == ['resume']
dist.barrier()
assert all(p.isfinite().all() for p in model.parameters())
dist.destroy_process_group()
print('done')
"""


def test_one_process_trains_over_nccl(launch, tmp_path):
    done = launch('-c', ONE, str(tmp_path / 'store'))
    assert done.returncode == 0 and done.stdout == 'done\n', done.stderr


def test_two_processes_train_on_two_cards(launch, settings, gpu):
    if gpu.type == 'cuda' and torch.cuda.device_count() < 2:
        pytest.skip('there is one GPU')
    more = '--sync-bn --focus-recompute' if gpu.type == 'cuda' else '--dist-bn reduce --focus-recompute'
    done = launch('-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m', 'train_focus',
                  *settings(f'-b 4 --epochs 2 --amp --model-ema --device {gpu.type} {more}'))
    assert done.returncode == 0 and done.stderr.count('Load it with timm') == 1, done.stderr


# compiled

@pytest.mark.parametrize('mode', [None, 'reduce-overhead'])
def test_a_compiled_run_is_the_eager_one(train, gpu, mode):
    if gpu.type == 'cpu' and mode:
        pytest.skip('CUDA graphs are of a GPU')
    more = f'--device {gpu} --no-aug --epochs 2 --log-interval 1'
    backend = 'inductor' if gpu.type == 'cuda' else 'aot_eager'
    eager = train(more, 'eager')
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        compiled = train(
            f'{more} --torchcompile {backend} {f"--torchcompile-mode {mode}" if mode else ""}', 'compiled')
        assert not torch._dynamo.utils.counters['graph_break']
    finally:
        torch._dynamo.reset()
    assert finite(compiled.weights()) and compiled.weights().keys() == eager.weights().keys()
    for term in ('loss', 'main_loss', 'side_loss'):
        assert compiled.column(f'train_{term}') == pytest.approx(eager.column(f'train_{term}'), rel=0.05)
