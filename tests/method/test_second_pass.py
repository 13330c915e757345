"""What erases, how large the erased image is and what of it is computed: masks, sizes, tokens, and steps without."""
import pytest
import timm
import torch
from timm.utils import freeze
from torch import nn

from timm_focus import FocusLoss
from timm_focus.method.erase import keep_mask_share, random_grid, resize_image
from timm_focus.method.heads import copy_classifier
from timm_focus.method.tokens import forward_tokens, keep_tokens, token_grid

CNN, VIT = 'test_resnet', 'test_vit'
SMALL = {  # a model of each family that has patch drop, by its plain name: size and arguments
    VIT: (64, dict(img_size=64)),
    'test_vit4': (64, dict(img_size=64)),
    'vit_small_patch16_rope_224': (64, dict(img_size=64, depth=2, embed_dim=64, num_heads=2)),
    'naflexvit_base_patch16_gap': (64, dict(img_size=64, depth=2, embed_dim=64, num_heads=2)),
    'hiera_tiny_224': (224, dict(embed_dim=32, stages=(1, 1, 1, 1))),
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def make(name=CNN, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(f'focus_{name}', num_classes=5, **{**SMALL.get(name, (64, {}))[1], **kwargs}).train()


def still(model):
    """A model whose BatchNorm is that of evaluation, so that a second look at the same images sees the same network."""
    model.train()
    freeze(model.backbone, [n for n, m in model.backbone.named_modules() if isinstance(m, nn.BatchNorm2d)])
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    return model


# which share

def test_a_share_is_erased_where_the_score_is_highest():
    score = torch.arange(20.).view(1, 4, 5).repeat(3, 1, 1)
    score[1] = score[1].flip(0)
    score[2] = 7.
    keep = keep_mask_share(score, 0.25)
    assert keep.shape == (3, 1, 4, 5) and keep.dtype == torch.bool
    assert (~keep[0, 0])[3].all() and (~keep[1, 0])[0].all() and (~keep[:2]).sum() == 10
    assert keep[2].all(), 'a flat map prefers nothing'


@pytest.mark.parametrize('size', [(56, 56), (64, 64), (60, 128), (5, 5)])
def test_a_grid_has_seven_cells_on_the_shorter_side_and_one_share(size):
    keep = random_grid(6, size, 0.3, torch.device('cpu'))
    assert keep.shape == (6, 1, *size) and keep.dtype == torch.bool
    assert not torch.equal(keep[0], keep[1])
    rows, columns = (round(7 * side / min(size)) for side in size)
    if size == (56, 56):  # whole cells of 8 x 8
        cells = keep.view(6, 7, 8, 7, 8).float().mean((2, 4))
        assert ((cells == 0) | (cells == 1)).all()
        assert ((1 - cells).sum((1, 2)) == round(0.3 * 49)).all()
    if min(size) >= rows:
        assert abs((~keep).float().mean() - round(0.3 * rows * columns) / (rows * columns)) < 0.05


@pytest.mark.parametrize('kind', ['cam', 'mean', 'random', 'grid'])
def test_every_map_erases_the_share_it_is_told(kind, photos):
    model = make(focus_map=kind, focus_share=0.3)
    model(photos(4))
    assert float(model.erased_fraction) == pytest.approx(0.3, abs=0.01)
    assert model.focus_args['focus_share'] == 0.3


def test_a_share_is_of_the_same_map_that_gamma_cuts(photos):
    model, x = make(focus_share=0.3), photos(3)
    _, (tap,) = model.backbone.forward_intermediates(x, indices=[model.stage], norm=False)
    target = torch.tensor([0, 1, 2])
    shared, cut = (model.keep_mask(tap, target, (64, 64), gamma)[:, 0] for gamma in (None, 0.7))
    for a, b in zip(~shared, ~cut):  # one of the two holds the other
        assert (a & b).sum() == min(a.sum(), b.sum())


def test_a_grid_needs_no_cam_and_says_nothing_of_it(photos, recwarn):
    model = make(focus_map='grid')
    assert model.share == 0.5 and make().share is None
    calls = []
    model.cam_head.register_forward_hook(lambda *_: calls.append(1))
    model.set_branches(side=False, erased=True, scored_by='main')
    out = model(photos(4))
    assert not calls and out.side is None and out.erased.shape == (4, 5) and not recwarn.list
    with pytest.warns(UserWarning, match='a CAM head that nothing trains'):
        make().set_branches(side=False)


# at a smaller size

def test_the_erased_image_may_be_smaller(photos):
    model, x, seen = still(make(focus_size=0.75, focus_share=0.3)), photos(4), []
    model.backbone.register_forward_pre_hook(lambda *_: None)
    model.backbone.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    torch.manual_seed(1)
    out = model(x)
    assert [tuple(v.shape[-2:]) for v in seen] == [(64, 64), (48, 48)]
    small = resize_image(x, (48, 48))
    erased = seen[1] == 0
    assert torch.equal(seen[1][~erased], small[~erased]) and erased.float().mean() == pytest.approx(0.3, abs=0.01)
    expected = model.erased_head(model.backbone.forward_head(model.backbone.forward_features(seen[1]), pre_logits=True))
    torch.testing.assert_close(out.erased, expected)


def test_smaller_images_leave_the_running_statistics_alone_unless_told(photos):
    assert make().bn == 'shared' and make(focus_size=0.75, focus_bn='shared').bn == 'shared'
    model, plain, x = make(focus_size=0.75), make(), photos(4)
    model(x)
    plain.set_branches(erased=False)
    plain(x)
    for (name, a), (_, b) in zip(model.backbone.named_buffers(), plain.backbone.named_buffers()):
        assert torch.equal(a, b), name


def test_sizes_are_whole_patches(photos):
    model = make(VIT, focus_size=0.6)  # it takes any size
    assert model.erased_size((64, 64)) == [32, 32] and make(focus_size=0.6).erased_size((64, 50)) == [38, 30]
    assert make().erased_size((64, 50)) == (64, 50)
    assert model(photos(2)).erased.shape == (2, 5)


# tokens

@pytest.mark.parametrize('name', SMALL)
def test_tokens_are_left_out(name, photos):
    """As many of each image, each time others, with gradients for all; the model is as it was afterwards."""
    size, _ = SMALL[name]
    model, x = make(name, focus_drop_tokens=True, focus_share=0.25), photos(2, size)
    before = dict(vars(model.backbone))
    out = model(x)
    FocusLoss()(out, torch.tensor([0, 1]))['loss'].backward()
    assert all(p.grad is not None for p in model.parameters())
    assert float(model.erased_fraction) == pytest.approx(0.25, abs=0.01)
    assert vars(model.backbone).keys() == before.keys() and vars(model.backbone)['_modules'] is before['_modules']
    model.eval()
    assert torch.equal(model(x), model.backbone(x))


@pytest.mark.parametrize('name', SMALL)
def test_no_token_left_out_is_the_model_itself_and_others_are_not_seen(name, photos):
    size, _ = SMALL[name]
    model, x = make(name, focus_drop_tokens=True), photos(2, size)
    backbone = model.backbone
    grid = token_grid(backbone, (size, size))
    everything = torch.arange(grid[0] * grid[1]).expand(2, -1)
    logits = backbone.forward_head(forward_tokens(backbone, x, everything))
    torch.testing.assert_close(logits, backbone(x), rtol=1e-4, atol=1e-5)
    # what is painted over tokens that are left out changes nothing
    kept = keep_tokens(torch.arange(2. * grid[0] * grid[1]).view(2, *grid), 0.5)  # the upper half, whole rows
    rows = int(kept.max()) // grid[1] + 1
    other = x.clone()
    other[:, :, rows * size // grid[0]:] = 9.
    if grid[0] % 2 == 0:
        assert torch.equal(forward_tokens(backbone, x, kept), forward_tokens(backbone, other, kept))
        assert not torch.equal(backbone.forward_features(x), backbone.forward_features(other))


def test_the_tokens_of_the_lowest_scores_stay():
    score = torch.tensor([[[3., 1.], [2., 0.]], [[0., 1.], [2., 3.]]])
    assert keep_tokens(score, 0.5).tolist() == [[1, 3], [0, 1]]
    assert keep_tokens(score, 0.99).tolist() == [[3], [0]], 'one stays'


@pytest.mark.parametrize('kind', ['cam', 'mean', 'random', 'grid'])
def test_tokens_go_by_every_map(kind, photos):
    model, x = make(VIT, focus_drop_tokens=True, focus_map=kind), photos(3)
    _, (tap,) = model.backbone.forward_intermediates(x, indices=[model.stage], norm=False)
    kept, again = (model.keep_tokens(tap, torch.tensor([0, 1, 2]), (64, 64)) for _ in range(2))
    assert kept.shape == (3, 8) and torch.equal(kept, again) == (kind in ('cam', 'mean'))


# a copied head

def test_the_erased_head_may_be_a_copy(photos):
    for name in (CNN, VIT, 'test_convnext', 'test_efficientnet'):
        model = still(make(name))
        copy_classifier(model.backbone, model.erased_head)
        x = photos(2)
        main, _, keep = model(x, in_turn=True)
        own = model(x, keep)
        model.set_branches(scored_by='main')
        torch.testing.assert_close(own, model(x, keep), msg=name)
    distilled = make('deit_tiny_distilled_patch16_224', img_size=64, depth=1)
    with pytest.raises(ValueError, match='not classified by one linear layer'):
        copy_classifier(distilled.backbone, distilled.erased_head)


# steps without

def test_steps_without_erasing_train_the_head_by_nothing(photos):
    model, x = make(), photos(4)
    model.erase_in_this_step(False)
    out = model(x)
    assert out.erased is None
    other = make()
    other.set_branches(erased=False)
    assert torch.equal(out.main, other(x).main)
    FocusLoss()(out, torch.arange(4), erasing=False)['loss'].backward()
    assert all(p.grad is not None for p in model.parameters()), 'or DDP would wait'
    assert not any(p.grad.any() for p in model.erased_head.parameters())
    model.erase_in_this_step()
    assert model(x).erased is not None


# what is refused

@pytest.mark.parametrize('name, kwargs, message', [
    (CNN, dict(focus_share=1), 'focus_share is 1: give a number between 0 and 1, or None'),
    (CNN, dict(focus_share=True), 'focus_share is True'),
    (CNN, dict(focus_size=1.5), 'focus_size is 1.5: give a number above 0 and at most 1'),
    (CNN, dict(focus_drop_tokens=True), 'ResNet has no tokens that can be left out.*VisionTransformer, Eva'),
    (VIT, dict(focus_drop_tokens=True, focus_size=0.5), 'both make the second pass smaller: give one'),
    (VIT, dict(focus_size=0.5, dynamic_img_size=False), 'VisionTransformer takes images of one size'),
    ('swin_tiny_patch4_window7_224', dict(focus_size=0.5), 'SwinTransformer takes images of one size'),
])
def test_settings_that_make_no_sense(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        with torch.device('meta'):
            make(name, **kwargs)


@pytest.mark.slow
@pytest.mark.long('focus2', 'focus4')
@pytest.mark.parametrize('name, focus', [
    (CNN, dict(focus_map='grid')), (CNN, dict(focus_size=0.75)), (CNN, dict(focus_share=0.3)),
    (VIT, dict(focus_drop_tokens=True)), (CNN, dict(in_turn=True))])
def test_compiled_as_one_graph_it_is_the_same(name, focus, photos):
    in_turn = focus.pop('in_turn', False) if 'in_turn' in focus else False
    model, x = make(name, **focus), photos(2)
    torch._dynamo.reset()
    try:
        found = []
        for run in (model, torch.compile(model, backend='eager', fullgraph=True)):
            model.load_state_dict(make(name, **focus).state_dict())
            torch.manual_seed(3)
            if in_turn:
                main, _, keep = run(x, in_turn=True)
                found.append((main, run(x, keep)))
            else:
                out = run(x)
                found.append((out.main, out.erased))
        for a, b in zip(*found):
            torch.testing.assert_close(a, b)
    finally:
        torch._dynamo.reset()
