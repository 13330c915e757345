"""Each kind of model through everything that training is made of: the script on a small one of each."""
import pytest
import timm
import torch

import train_focus
from conftest import equal, finite
from timm_focus import export_backbone
from timm_focus.training import SettingsError

pytestmark = pytest.mark.usefixtures('quietly')
# size of the images, and what keeps the model small: the kind of a model is tested here, and no kind is its width
TABLE = {
    'test_resnet': (64, ''),
    'densenet121': (64, '--model-kwargs block_config=(1,2,2,1) growth_rate=8'),
    'shufflenetv2_x0_5': (64, '--model-kwargs stages_repeats=(2,2,2)'),
    'test_convnext': (64, '--model-kwargs depths=(1,1,2,1)'),
    'vit_tiny_patch16_224': (64, '--model-kwargs depth=4 embed_dim=48'),
    'swin_tiny_patch4_window7_224': (64, '--model-kwargs depths=(1,1,2,1) embed_dim=24'),
    'hiera_tiny_224': (64, '--model-kwargs stages=(1,1,1,1) embed_dim=24'),
    'deit_tiny_distilled_patch16_224': (64, '--model-kwargs depth=4 embed_dim=48'),
    'crossvit_9_240': (120, '--model-kwargs depth=((1,1,0),(1,1,0),(1,1,0)) embed_dim=(32,64)'),
    'test_efficientnet': (128, ''),  # of 64 pixels 2 x 2 are left, and over 16 values BatchNorm makes rounding large
    'mobilenetv4_conv_small_050': (128, ''),
    'levit_128s': (64, '--model-kwargs depth=(1,1,1) embed_dim=(64,64,96)'),
}
LARGER = (  # than what is tried without --slow
    'densenet', 'shufflenet', 'convnext', 'swin', 'hiera', 'deit', 'crossvit', 'efficientnet', 'mobilenet', 'levit')
TAKING_LONG_TO_COMPILE = ('hiera_tiny_224', 'crossvit_9_240', 'mobilenetv4_conv_small_050', 'levit_128s')
NO_DROP_PATH = ('densenet121', 'shufflenetv2_x0_5')
BASE = '-b 4 --lr 0.01 --epochs 2 --model-ema --model-ema-decay 0.5 --grad-accum-steps 2'


def flags(name):
    size, more = TABLE[name]
    return f'{BASE} --img-size {size} {"" if name in NO_DROP_PATH else "--drop-path 0.1"} {more}'


@pytest.fixture
def image_folder(image_folder):
    """Eight images to train on, and to validate on: two batches, one update an epoch."""
    for label in ('left', 'right'):
        for split, n in (('train', 12), ('val', 5)):
            for i in range(4, n):
                (image_folder / f'{split}/{label}/{i}.jpg').unlink()
    return image_folder


def focus(name):
    return f'focus_{name}'


def parameters(run):
    return {k: v for k, v in run.weights().items() if 'running_' not in k and 'num_batches' not in k}


def close(a, b):
    """Equal but for rounding, which BatchNorm over a few values makes larger: whole tensors are compared."""
    assert a.keys() == b.keys()
    for name in a:
        difference, size = (a[name] - b[name]).float().norm(), b[name].float().norm()
        assert difference <= 1e-3 * size + 1e-4, (name, difference.item(), size.item())


@pytest.mark.slow(*LARGER)
@pytest.mark.long('crossvit')
@pytest.mark.parametrize('name', TABLE)
def test_a_model_trains_resumes_and_exports(train, settings, name):
    """One step an epoch, with a running average and gradient accumulation; stopped, resumed, exported."""
    whole = train(flags(name), 'whole', model=focus(name))
    first = train(f'{flags(name)} --stop-epoch 1', model=focus(name))
    for state in ('state_dict', 'state_dict_ema'):
        assert finite(first.checkpoint()[state]) and not equal(first.checkpoint()[state], whole.checkpoint()[state])
    run = train(f'{flags(name)} --resume auto', model=focus(name))
    for state in ('state_dict', 'state_dict_ema'):
        assert equal(run.checkpoint()[state], whole.checkpoint()[state])
    assert run.rows == whole.rows and 0 < run.column('train_erased_fraction')[0] < 1

    plain = eval(next(line.split('timm: ')[1].removeprefix('import timm_focus; ') for line in run.err.splitlines()
                      if line.startswith('Load it with timm: ')))
    assert type(plain).__module__.startswith(('timm.', 'timm_focus.models.'))
    args = train_focus.parse_args(train_focus.parser, settings(flags(name), model=focus(name)))[0]
    args, model = train_focus.build_model(args.completed(num_classes=2, rank=0))
    model.backbone.load_state_dict(run.checkpoint('model_best')['state_dict'])
    exported = export_backbone(model).eval()
    model.backbone.load_state_dict(plain.state_dict())  # of the running average or of the weights: what was better
    x = torch.randn(2, 3, *2 * [TABLE[name][0]])
    with torch.no_grad():
        assert exported(x).shape == (2, 2) and torch.equal(model.eval()(x), plain.eval()(x))


@pytest.mark.slow(*LARGER)
@pytest.mark.long('crossvit', 'swin', 'levit', 'hiera', 'deit', 'densenet')
@pytest.mark.parametrize('name', TABLE)
def test_a_model_trains_in_mixed_precision_and_with_gradient_checkpointing(train, name):
    run = train(f'{flags(name)} --stop-epoch 1', 'float32', model=focus(name))
    # bfloat16 has 8 bits, float16 11; BatchNorm over a few values of 4 images makes rounding large
    for dtype, tolerance in (('bfloat16', 0.4), ('float16', 0.2)):
        half = train(f'{flags(name)} --stop-epoch 1 --amp --amp-dtype {dtype}', dtype, model=focus(name))
        assert finite(half.weights())
        assert {v.dtype for v in half.weights().values()} == {v.dtype for v in run.weights().values()}
        assert ('amp_scaler' in half.checkpoint()) == (dtype == 'float16')
        for term in ('main_loss', 'side_loss', 'erased_loss'):
            assert half.column(f'train_{term}') == pytest.approx(run.column(f'train_{term}'), rel=tolerance), dtype
    if name.startswith('crossvit'):  # timm's own has none
        with pytest.raises(SettingsError, match='--grad-checkpointing does not go with focus_crossvit'):
            train(f'{flags(name)} --grad-checkpointing', 'checkpointed', model=focus(name))
        return
    checkpointed = train(f'{flags(name)} --stop-epoch 1 --grad-checkpointing', 'checkpointed', model=focus(name))
    close(parameters(checkpointed), parameters(run))


@pytest.mark.slow
@pytest.mark.long('swin', 'densenet', 'convnext', 'test_efficientnet', 'deit')
@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.long) if name in TAKING_LONG_TO_COMPILE else name for name in TABLE])
def test_a_model_compiles_without_a_graph_break(train, name):
    """Dynamo alone says whether there is one; what AOTAutograd makes of the graphs, takes a multiple of its time."""
    backend = 'aot_eager' if name in ('test_resnet', 'vit_tiny_patch16_224') else 'eager'
    eager = train(f'{flags(name)} --stop-epoch 1', 'eager', model=focus(name))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    try:
        compiled = train(f'{flags(name)} --stop-epoch 1 --torchcompile {backend}', 'compiled', model=focus(name))
        assert not torch._dynamo.utils.counters['graph_break']
        assert torch._dynamo.utils.counters['stats']['unique_graphs'] >= 3  # training, its loss, validation
    finally:
        torch._dynamo.reset()
    for column in eager.rows[0]:
        assert compiled.column(column) == pytest.approx(eager.column(column), rel=1e-3, abs=1e-4), column
    close(parameters(compiled), parameters(eager))
    assert compiled.weights().keys() == eager.weights().keys()


PROCESSES = """
import sys
import torch
import torch.distributed as dist
import train_focus
from timm_focus.training import create_task
images, *names = sys.argv[1:]
dist.init_process_group('gloo')
torch.set_num_threads(1)
rank = dist.get_rank()
for line in names:
    args = train_focus.parse_args(train_focus.parser, line.split())[0]
    torch.manual_seed(rank)  # DDP is to make them alike
    args, model = train_focus.build_model(args.completed(num_classes=2, rank=rank))
    task = create_task(model, args, device=torch.device('cpu'))
    task.setup_ema(decay=0.5)
    task.prepare_distributed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x = torch.load(images, weights_only=True)[rank::2]
    x = torch.nn.functional.interpolate(x, size=(args.img_size, args.img_size))
    y = torch.arange(len(x)) % 2
    for step in range(2):
        with task.no_sync():
            task(x, y)['loss'].backward()
        loss = task(x.flip(0), y.flip(0))['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step)
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    others = [torch.empty_like(flat) for _ in range(2)]
    dist.all_gather(others, flat)
    assert torch.equal(*others) and flat.isfinite().all(), line
    losses = [torch.empty(()) for _ in range(2)]
    dist.all_gather(losses, loss.detach())
    assert losses[0] != losses[1], line
    if rank == 0:
        print(args.model, 'is alike', flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_each_model_trains_in_two_processes(fork, settings, tmp_path, photos):
    torch.save(photos(8), tmp_path / 'images.pt')
    lines = [' '.join(settings(flags(name), model=focus(name))) for name in TABLE]
    done = fork(PROCESSES, tmp_path / 'images.pt', *lines, processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split('\n')[:-1] == [f'focus_{name} is alike' for name in TABLE]
    assert all(timm.is_model(name) for name in TABLE)
