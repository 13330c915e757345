"""ADL against loops, alone, in real networks, and in runs of the script."""
import copy
import re

import pytest
import timm
import torch
from conftest import TINY, equal, finite
from timm.utils import ModelEmaV3

from timm_focus.baselines import adl, adl_modules, drop_attention, insert_adl

pytestmark = pytest.mark.usefixtures('quietly')
RESNET, SHUFFLENET, CONVNEXT = 'resnet18', 'shufflenetv2_x0_5', 'convnext_atto'


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def adl_slowly(x, drop, gamma=0.9):
    """Place by place, in Python's numbers where nothing is learned."""
    images = []
    for feature in x:
        channels, height, width = feature.shape
        attention = [[sum(feature[c, i, j] for c in range(channels)) / channels for j in range(width)]
                     for i in range(height)]
        peak = max(float(a.detach()) for row in attention for a in row)
        rows = []
        for i in range(height):
            row = []
            for j in range(width):
                if drop:
                    weight = torch.tensor(1. if float(attention[i][j].detach()) < gamma * peak else 0., dtype=x.dtype)
                else:
                    weight = 1 / (1 + torch.exp(-attention[i][j]))
                row.append(feature[:, i, j] * weight)
            rows.append(torch.stack(row, 1))
        images.append(torch.stack(rows, 1))
    return torch.stack(images)


@pytest.mark.parametrize('drop', [True, False])
@pytest.mark.parametrize('gamma', [0.3, 0.9, 1.])
def test_values_and_gradients_match_loops(drop, gamma):
    x = torch.randn(3, 5, 4, 6, generator=seeded(), dtype=torch.float64)
    x[0] += 1  # an image whose attention is positive everywhere, one whose is negative, one of both
    x[1] -= 2
    ours, slow = (x.clone().requires_grad_() for _ in range(2))
    out, expected = adl.apply_adl(ours, torch.tensor(drop), gamma), adl_slowly(slow, drop, gamma)
    torch.testing.assert_close(out, expected)
    weight = torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    for result in (out, expected):
        (result * weight).sum().backward()
    torch.testing.assert_close(ours.grad, slow.grad)
    if drop:
        dropped = (out == 0).all(1)
        assert dropped.any((1, 2)).tolist() == [True, gamma == 1, True], 'of a negative attention none reaches a share'
        assert torch.equal(ours.grad == 0, dropped[:, None].expand_as(x))


def test_the_strongest_place_is_dropped_and_the_map_not_rescaled():
    x = torch.ones(1, 2, 3, 3)
    x[0, :, 1, 2] = 5
    out = drop_attention(x, drop_rate=1.)
    expected = x.clone()
    expected[0, :, 1, 2] = 0
    assert torch.equal(out, expected)
    torch.testing.assert_close(drop_attention(x, drop_rate=0.), x * torch.sigmoid(x.mean(1, keepdim=True)))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_memory_format_are_kept(dtype):
    x = torch.randn(2, 4, 5, 6).to(dtype)
    for drop_rate in (0., 1.):
        out = drop_attention(x.to(memory_format=torch.channels_last), drop_rate=drop_rate)
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(out, drop_attention(x, drop_rate=drop_rate))


def test_one_draw_a_batch_by_the_rate():
    x = torch.rand(8, 2, 4, 4) + 1
    generator, kinds = seeded(3), []
    for _ in range(1000):
        zeros = (drop_attention(x, generator=generator) == 0).flatten(1).any(1)
        assert zeros.all() or not zeros.any(), 'all images of a batch alike'
        kinds.append(bool(zeros[0]))
    assert abs(sum(kinds) / 1000 - 0.75) < 0.05  # over three standard deviations


# in networks

def small_model(name, seed=0, **kwargs):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=4, **kwargs).train()


def run_slowly(model, x, draws):
    """Forward through the parts of a network with ADL by the definition, `draws` saying what each place does."""
    draws = iter(draws)
    if hasattr(model, 'layer4'):
        x = model.maxpool(model.act1(model.bn1(model.conv1(x))))
        stages = [list(stage) for stage in (model.layer1, model.layer2, model.layer3, model.layer4)]
    elif hasattr(model, 'stage4'):
        x = model.maxpool(model.conv1(x))
        stages = [list(stage) for stage in (model.stage2, model.stage3, model.stage4)]
    else:
        x = model.stem(x)
        stages = [[(stage.downsample, block) if i == 0 else block for i, block in enumerate(stage.blocks)]
                  for stage in model.stages]
    for s, stage in enumerate(stages):
        for b, block in enumerate(stage):
            for part in block if isinstance(block, tuple) else (block,):
                x = part(x)
            late = s >= len(stages) - 2
            if late and b == 0 or s == len(stages) - 1 and b == len(stage) - 1:
                attention = x.mean(1, keepdim=True)
                if next(draws):
                    top = torch.stack([a.max() for a in attention])[:, None, None, None]
                    x = x * (attention < 0.9 * top).to(x)
                else:
                    x = x * attention.sigmoid()
    if hasattr(model, 'conv5'):
        x = model.conv5(x)
    elif hasattr(model, 'norm_pre'):
        x = model.norm_pre(x)
    return model.forward_head(x)


@pytest.mark.slow('resnet18', 'convnext')
@pytest.mark.parametrize('name', [RESNET, SHUFFLENET, CONVNEXT])
def test_a_network_with_adl_is_what_the_definition_says(name, photos):
    model, plain = small_model(name), small_model(name)
    names = insert_adl(model)
    assert len(names) == 3 and names == adl_modules(model)
    x, y = photos(4, 64), torch.tensor([0, 1, 2, 3])
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        draws = [float(torch.rand(())) < 0.75 for _ in names]
        seen.add(tuple(draws))
        plain.load_state_dict(model.state_dict())
        torch.manual_seed(seed)
        out, expected = model(x), run_slowly(plain, x, draws)
        torch.testing.assert_close(out, expected)
        for m, logits in ((model, out), (plain, expected)):
            m.zero_grad()
            torch.nn.functional.cross_entropy(logits, y).backward()
        for (k, p), q in zip(model.named_parameters(), plain.parameters()):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5, msg=lambda m: f'{k}: {m}')
    assert len(seen) > 1


@pytest.mark.parametrize('name, expected', [
    ('resnet50', ['layer3.0', 'layer4.0', 'layer4.2']), (RESNET, ['layer3.0', 'layer4.0', 'layer4.1']),
    ('resnet10t', ['layer3.0', 'layer4.0']), ('shufflenetv2_x1_5', ['stage3.0', 'stage4.0', 'stage4.3']),
    ('densenet121', ['features.denseblock3', 'features.norm5']),
    (CONVNEXT, ['stages.2.blocks.0', 'stages.3.blocks.0', 'stages.3.blocks.1']),
    ('regnetx_002', ['s3.b1', 's4.b1', 's4.b7']), ('efficientnet_b0', ['blocks.4.0', 'blocks.6.0']),
    ('mobilenetv3_small_050', ['blocks.3.0', 'blocks.5.0']), ('vgg11_bn', ['features.27', 'features.28'])])
def test_where_it_comes_by_default(name, expected):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert adl_modules(model) == []
    assert insert_adl(model) == adl_modules(model) == expected


@pytest.mark.parametrize('name', [RESNET, SHUFFLENET])
def test_nothing_is_left_in_evaluation(name, photos):
    model, plain = small_model(name), small_model(name)
    insert_adl(model)
    assert equal(model.state_dict(), plain.state_dict())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in plain.named_modules()]
    x = photos(2, 64)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    assert not torch.equal(model.train()(x), plain.train()(x))


def test_a_copy_has_it_too(photos):
    model = small_model(RESNET)
    insert_adl(model)
    x = photos(2, 64)
    average = ModelEmaV3(model)
    assert adl_modules(average.module) == adl_modules(model)
    assert torch.equal(average(x), model.eval()(x)), 'an average evaluates'
    copies = [model, copy.deepcopy(model)]
    outputs = []
    for one in copies:
        torch.manual_seed(2)
        outputs.append(one.train()(x))
    assert torch.equal(*outputs)


@pytest.mark.slow('modules')
@pytest.mark.parametrize('modules', [None, ['layer3', 'layer4'], ['layer2.0']])
def test_gradient_checkpointing_changes_nothing(modules, photos):
    x, results = photos(2, 64), []
    for enable in (False, True):
        model = small_model(RESNET)
        insert_adl(model, modules)
        model.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        out = model(x)
        out.sum().backward()
        results.append((out, [p.grad for p in model.parameters()]))
    (a, grads), (b, others) = results
    assert torch.equal(a, b)
    for g, h in zip(grads, others):
        torch.testing.assert_close(g, h)
    assert not torch.equal(a, small_model(RESNET)(x))


@pytest.mark.slow
def test_compiled_it_is_the_same(photos):
    torch._dynamo.reset()
    x, results = photos(2, 64), []
    for compiled in (False, True):
        model = small_model(TINY)
        insert_adl(model, ['layer2.0', 'layer3'])
        run = torch.compile(model, backend='aot_eager', fullgraph=True) if compiled else model
        outputs = []
        for seed in range(4):
            torch.manual_seed(seed)
            outputs.append(run(x))
        results.append(outputs)
    torch._dynamo.reset()
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert len({float(o.detach().sum()) for o in results[0]}) > 1


# mistakes

@pytest.mark.parametrize('modules, words', [
    (['layer3.O'], r"ResNet has no module 'layer3\.O'.*did you mean .*layer3\.0"),
    (['qqqqqqqq'], 'no module .*named_modules'),
    ([''], "no module ''"),
    (['fc'], r'The module fc gives no map \[B, C, h, w\]'),
    ([], 'after no module'),
])
def test_modules_that_cannot_have_it(modules, words):
    model = small_model(RESNET)
    with pytest.raises(ValueError, match=words):
        insert_adl(model, modules)
    assert not adl_modules(model), 'none of them, or all'


@pytest.mark.parametrize('name', ['vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'])
def test_transformers_are_refused(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    with pytest.raises(ValueError, match=r'does not end in a feature map \[B, C, h, w\].*resnet18'):
        insert_adl(model)


def test_it_is_not_inserted_twice():
    model = small_model(RESNET)
    insert_adl(model, ['layer2'])
    with pytest.raises(ValueError, match='has ADL already, after layer2'):
        insert_adl(model)


@pytest.mark.parametrize('settings, words', [
    (dict(gamma=0), 'gamma'), (dict(gamma=1.1), 'gamma'), (dict(gamma=float('nan')), 'gamma'),
    (dict(drop_rate=-0.1), 'drop_rate'), (dict(drop_rate=1.1), 'drop_rate'),
    (dict(drop_rate=float('nan')), 'drop_rate')])
def test_settings_out_of_range(settings, words):
    for call in (lambda: drop_attention(torch.zeros(1, 1, 2, 2), **settings),
                 lambda: insert_adl(small_model(TINY), **settings)):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize('x', [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [torch.zeros(1)]])
def test_no_maps(x):
    with pytest.raises(ValueError, match='x must be a floating'):
        drop_attention(x)


# runs

ADL = '--method adl --img-size 64'


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_draws(train):
    more = f'{ADL} --adl-gamma 0.8 --adl-drop-rate 0.5 --model-ema --recovery-interval 1 --epochs 2'
    whole = train(more, 'whole', model=TINY)
    train(f'{more} --stop-epoch 1', model=TINY)
    resumed = train(f'{more} --resume auto', model=TINY)
    assert equal(resumed.weights(), whole.weights()) and finite(whole.weights())
    assert equal(resumed.checkpoint()['state_dict_ema'], whole.checkpoint()['state_dict_ema'])
    assert 'with ADL after layer3.0, layer4.0' in whole.err and 'task_state' not in whole.checkpoint()
    loaded = eval(re.search(r'Load it with timm: (.*)', whole.err)[1])
    assert equal(loaded.state_dict(), whole.checkpoint('model_best')['state_dict_ema'])


@pytest.mark.slow
def test_the_settings_reach_it(train):
    runs = {more: train(f'{ADL} {more}', str(i), model=TINY).weights() for i, more in enumerate((
        '', '--adl-gamma 0.5', '--adl-drop-rate 0', '--adl-modules layer2', '--adl-modules layer3.0 layer4.0'))}
    for more, weights in runs.items():
        same = [other for other in runs if other != more and equal(runs[other], weights)]
        assert same == {'': ['--adl-modules layer3.0 layer4.0'], '--adl-modules layer3.0 layer4.0': ['']}.get(more, [])
    assert not equal(runs[''], train('--img-size 64', 'plain', model=TINY).weights())


@pytest.mark.slow
def test_it_goes_with_timms_own_habits(train):
    for i, more in enumerate(('--mixup 0.2', '--has', '--torchcompile eager', '--grad-checkpointing',
                              '--aug-splits 2 --split-bn --aa augmix-m3-w2 --jsd-loss')):
        assert finite(train(f'{ADL} {more}', str(i), model=TINY).weights()), more
    torch._dynamo.reset()


def test_a_map_of_one_place_is_told(train):
    assert 'The last feature map of an image of 32x32 has one place' in train('--method adl', model=TINY).err


@pytest.mark.parametrize('model, more, words', [
    (TINY, '--method adl --adl-modules layer3.O', r'cannot be trained by ADL: .*did you mean layer3'),
    ('vit_tiny_patch16_224', '--method adl --img-size 224', 'cannot be trained by ADL: VisionTransformer does not end'),
    (TINY, '--adl-gamma 0.5', '--adl-gamma belongs to ADL: give --model test_resnet --method adl'),
    (f'focus_{TINY}', '--adl-modules layer3', '--adl-modules belongs to ADL: give --model test_resnet --method adl'),
    (f'focus_{TINY}', '--method adl', f'--method adl trains .*give --model {TINY}'),
    (TINY, '--method adl --focus-alpha 2', '--focus-alpha belongs to focus training'),
    (TINY, '--method adl --acol-threshold 0.5', '--acol-threshold belongs to ACoL'),
    (TINY, '--method adl --adl-gamma 0', '--adl-gamma is 0.0: give a number above 0'),
    (TINY, '--method adl --adl-drop-rate 2', '--adl-drop-rate is 2.0: give a number from 0 to 1'),
])
def test_a_mistake_is_one_line(refusal, model, more, words):
    assert re.search(words, refusal(more, model=model))
