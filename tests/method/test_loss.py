"""Each term of the loss and its gradients against loops over samples and classes, and what holds of all of them."""
import math
import warnings

import pytest
import timm
import torch
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.task import ClassificationTask
from torch import nn

from timm_focus.method import FocusOutput
from timm_focus.method.loss import KL_DETACH, KL_DIRECTIONS, FocusLoss, attention_mining, kl_consistency

BATCH, CLASSES = 4, 5
KEYS = ['loss', 'main_loss', 'side_loss', 'erased_loss', 'consistency_loss']
TABLE_7 = {
    'baseline': dict(alpha=0, beta=0, side_weight=0),
    'side': dict(alpha=0, beta=0),
    'side+cpc': dict(beta=0),
    'side+ipc': dict(alpha=0),
    'all': dict(alpha=1, beta=2, side_weight=1),
}
MINING = dict(consistency='attention_mining')
SETTINGS = {
    'default': {},
    **TABLE_7,
    'odd weights': dict(alpha=0.3, beta=0.7, side_weight=1.9),
    **{f'{direction}, detach {detach}': dict(kl_direction=direction, kl_detach=detach)
       for direction in KL_DIRECTIONS for detach in KL_DETACH},
    'attention mining': dict(MINING, alpha=0.6),
    'attention mining off': dict(MINING, alpha=0),
}
INDICES = torch.tensor([3, 0, 4, 1])


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def logits(n=BATCH, scale=2., dtype=torch.float64, seed=0):
    """Main, side and erased logits, of n erased images."""
    generator = torch.Generator().manual_seed(seed)
    return FocusOutput(*(
        (scale * torch.randn(rows, CLASSES, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for rows in (BATCH, BATCH, n)))


def soft_targets():
    generator = torch.Generator().manual_seed(5)
    return torch.rand(BATCH, CLASSES, generator=generator, dtype=torch.float64).softmax(1)


def rows_of(target, smoothing=0.):
    """A target as lists of what each class should get, of class indices or soft targets."""
    if target.ndim == 2:
        return target.tolist()
    return [[(1 - smoothing) * (k == t) + smoothing / CLASSES for k in range(CLASSES)] for t in target.tolist()]


# the literal loss: plain loops over 0-dim tensors, nothing of torch but exp, log and autograd

def softmax(row):
    powers = [torch.exp(z) for z in row]
    return [p / sum(powers) for p in powers]


def literal_cross_entropy(scores, rows):
    total = 0.
    for b in range(len(scores)):
        p = softmax(scores[b])
        for k in range(CLASSES):
            total = total - rows[b][k] * torch.log(p[k])
    return total / len(scores)


def literal_bce(scores, rows):
    total = 0.
    for b in range(len(scores)):
        for k in range(CLASSES):
            p = 1 / (1 + torch.exp(-scores[b, k]))
            total = total - rows[b][k] * torch.log(p) - (1 - rows[b][k]) * torch.log(1 - p)
    return total / (len(scores) * CLASSES)


def literal_kl(main, erased, direction, detach):
    total = 0.
    for b in range(len(erased)):
        p, q = softmax(main[b]), softmax(erased[b])
        p = [v.item() for v in p] if detach == 'main' else p  # plain numbers have no gradient
        q = [v.item() for v in q] if detach == 'erased' else q
        log = {id(v): torch.log(v) if isinstance(v, torch.Tensor) else math.log(v) for v in (*p, *q)}
        for k in range(CLASSES):
            q_p = q[k] * (log[id(q[k])] - log[id(p[k])])
            p_q = p[k] * (log[id(p[k])] - log[id(q[k])])
            total = total + {'erased_main': q_p, 'main_erased': p_q, 'symmetric': (q_p + p_q) / 2}[direction]
    return total / len(erased)


def literal_mining(erased, rows):
    total = 0.
    for b in range(len(erased)):
        p = softmax(erased[b])
        total = total + sum(rows[b][k] * p[k] for k in range(CLASSES))
    return total / len(erased)


def literal_loss(settings, output, target, classify=literal_cross_entropy, smoothing=0.):
    weights = dict(dict(alpha=1., beta=2., side_weight=1.), **settings)
    rows, true, n = rows_of(target, smoothing), rows_of(target), len(output.erased)
    mining = weights.get('consistency') == 'attention_mining'
    terms = dict.fromkeys(KEYS, torch.zeros((), dtype=torch.float64))
    terms['main_loss'] = classify(output.main, rows)
    if weights['side_weight']:
        terms['side_loss'] = classify(output.side, rows)
    if weights['alpha']:
        terms['erased_loss'] = literal_mining(output.erased, true) if mining else classify(output.erased, rows[:n])
    if weights['beta'] and not mining:
        terms['consistency_loss'] = literal_kl(
            output.main, output.erased, weights.get('kl_direction', 'erased_main'), weights.get('kl_detach'))
    terms['loss'] = (terms['main_loss'] + weights['side_weight'] * terms['side_loss']
                     + weights['alpha'] * terms['erased_loss'] + weights['beta'] * terms['consistency_loss'])
    return terms


def assert_equal_terms(terms, literal, output):
    """Every term, and its gradient with respect to each of the three logits."""
    assert list(terms) == KEYS
    for key in KEYS:
        assert terms[key].shape == () and terms[key].dtype == torch.float64
        torch.testing.assert_close(terms[key], literal[key], rtol=1e-10, atol=1e-12, msg=lambda m: f'{key}: {m}')
        assert terms[key].requires_grad == literal[key].requires_grad, key
        if not literal[key].requires_grad:
            continue
        actual, expected = (
            torch.autograd.grad(t[key], list(output), retain_graph=True, allow_unused=True, materialize_grads=True)
            for t in (terms, literal))
        for name, a, b in zip(output._fields, actual, expected):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=lambda m: f'd {key} / d {name}: {m}')


@pytest.mark.parametrize('n', [BATCH, 3, 1])
@pytest.mark.parametrize('name', SETTINGS)
def test_terms_and_gradients_equal_literal_loops(name, n):
    output = logits(n)
    literal = literal_loss(SETTINGS[name], output, INDICES)
    assert_equal_terms(FocusLoss(**SETTINGS[name])(output, INDICES), literal, output)


CRITERIA = {
    'cross-entropy, probabilities': (nn.CrossEntropyLoss(), soft_targets(), literal_cross_entropy, 0.),
    'soft targets': (SoftTargetCrossEntropy(), soft_targets(), literal_cross_entropy, 0.),
    'smoothing': (LabelSmoothingCrossEntropy(0.2), INDICES, literal_cross_entropy, 0.2),
    'bce': (BinaryCrossEntropy(0.), INDICES, literal_bce, 0.),
    'bce, smoothing': (BinaryCrossEntropy(0.3), INDICES, literal_bce, 0.3),
    'bce, soft targets': (BinaryCrossEntropy(0.), soft_targets(), literal_bce, 0.),
}


@pytest.mark.parametrize('settings', [{}, TABLE_7['baseline'], MINING], ids=['all', 'baseline', 'mining'])
@pytest.mark.parametrize('n', [BATCH, 2])
@pytest.mark.parametrize('name', CRITERIA)
def test_every_criterion_of_timm(name, n, settings):
    criterion, target, classify, smoothing = CRITERIA[name]
    output = logits(n, seed=1)
    literal = literal_loss(settings, output, target, classify, smoothing)
    assert_equal_terms(FocusLoss(**settings, criterion=criterion)(output, target), literal, output)


@pytest.mark.parametrize('direction', KL_DIRECTIONS)
def test_kl_of_equal_predictions_is_zero_and_of_others_positive(direction):
    output = logits()
    assert abs(kl_consistency(output.main, output.main + 3, direction)) < 1e-14  # a softmax does not see a shift
    assert kl_consistency(output.main, output.erased, direction) > 0.1


def test_kl_directions():
    main, _, erased = logits()
    forward, backward = (kl_consistency(main, erased, d) for d in ('erased_main', 'main_erased'))
    assert abs(forward - backward) > 0.01
    torch.testing.assert_close(kl_consistency(erased, main), backward)
    torch.testing.assert_close(kl_consistency(main, erased, 'symmetric'), (forward + backward) / 2)


@pytest.mark.parametrize('direction', KL_DIRECTIONS)
@pytest.mark.parametrize('detach', KL_DETACH)
def test_detach_stops_the_gradient_of_that_branch_alone(direction, detach):
    main, _, erased = logits()
    to_main, to_erased = torch.autograd.grad(
        kl_consistency(main, erased, direction, detach), [main, erased], allow_unused=True)
    assert (to_main is None) == (detach == 'main')
    assert (to_erased is None) == (detach == 'erased')
    # by hand: d KL(q || p) / d main = p - q, d KL(q || p) / d erased = q (log q - log p - KL)
    p, q = main.detach().softmax(1), erased.detach().softmax(1)
    if direction == 'erased_main' and to_main is not None:
        torch.testing.assert_close(to_main, (p - q) / BATCH, rtol=1e-10, atol=1e-12)
    if direction == 'erased_main' and to_erased is not None:
        ratio = q.log() - p.log()
        expected = q * (ratio - (q * ratio).sum(1, keepdim=True)) / BATCH
        torch.testing.assert_close(to_erased, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('branch', ['main', 'erased'])
def test_detach_leaves_the_classification_of_that_branch(branch):
    gradients = []
    for settings in (dict(beta=0), dict(beta=2, kl_detach=branch), dict(beta=2)):
        output = logits()
        FocusLoss(**settings)(output, INDICES)['loss'].backward()
        gradients.append(getattr(output, branch).grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=0)
    assert not torch.allclose(gradients[2], gradients[0])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize('settings', [{}, dict(kl_direction='symmetric'), MINING], ids=['all', 'symmetric', 'mining'])
def test_low_precision_logits_give_float32(dtype, settings):
    output = logits(3, dtype=dtype)
    terms = FocusLoss(**settings)(output, INDICES)
    literal = literal_loss(settings, FocusOutput(*(z.double() for z in output)), INDICES)
    for key in KEYS:
        assert terms[key].dtype == torch.float32, key
        # of the same rounded logits, so only float32 arithmetic separates the two
        torch.testing.assert_close(terms[key].double(), literal[key], rtol=1e-5, atol=1e-6)
    terms['loss'].backward()
    for z in output:
        assert z.grad.dtype == dtype and z.grad.isfinite().all() and z.grad.abs().max() > 0


@pytest.mark.parametrize('function', [
    kl_consistency, lambda main, erased: attention_mining(erased, INDICES)], ids=['kl', 'mining'])
def test_functions_alone_give_float32_or_better(function):
    for dtype, expected in ((torch.bfloat16, torch.float32), (torch.float16, torch.float32),
                            (torch.float32, torch.float32), (torch.float64, torch.float64)):
        main, _, erased = logits(dtype=dtype)
        value = function(main, erased)
        assert value.dtype == expected
        if dtype != torch.float64:
            with torch.autocast('cpu', torch.float16):
                assert torch.equal(function(main, erased), value)
        torch.testing.assert_close(
            value, function(main.double(), erased.double()), check_dtype=False, rtol=1e-6, atol=1e-7)


class _Projected(nn.Module):
    """A criterion with a matrix product, which autocast would compute in low precision."""

    def __init__(self):
        super().__init__()
        self.register_buffer('projection', torch.randn(CLASSES, CLASSES, generator=torch.Generator().manual_seed(3)))

    def forward(self, scores, target):
        return nn.functional.cross_entropy(scores @ self.projection, target)


@pytest.mark.parametrize('criterion', [None, _Projected()], ids=['cross-entropy', 'projected'])
@pytest.mark.parametrize('settings', [{}, MINING], ids=['all', 'mining'])
def test_autocast_does_not_reach_the_loss(criterion, settings):
    x, head = torch.randn(BATCH, 8), nn.Linear(8, CLASSES)
    loss = FocusLoss(**settings, criterion=criterion)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = FocusOutput(head(x), head(x + 1), head(2 * x)[:3])
        inside = loss(output, INDICES)
    assert output.main.dtype == torch.bfloat16
    outside = loss(FocusOutput(*(z.float() for z in output)), INDICES)
    for key in KEYS:
        assert inside[key].dtype == torch.float32
        torch.testing.assert_close(inside[key], outside[key], rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('settings', [
    *(dict(kl_direction=direction, kl_detach=detach) for direction in KL_DIRECTIONS for detach in KL_DETACH), MINING],
    ids=lambda s: '-'.join(map(str, s.values())))
def test_finite_at_extreme_logits(settings, dtype):
    far = 1e4 * torch.eye(CLASSES)[:BATCH]
    for signs in ((1, 1, 1), (1, -1, -1), (-1, 1, 1), (1, 0, -1), (0, 1, 1)):
        output = FocusOutput(*((s * z).to(dtype).requires_grad_() for s, z in zip(
            signs, (far, far.roll(1, 1), far.flip(1)))))
        terms = FocusLoss(**settings)(output, INDICES)
        terms['loss'].backward()
        assert all(term.isfinite() for term in terms.values()), terms
        assert all(z.grad.isfinite().all() for z in output)
        assert terms['loss'] > 0


@pytest.mark.parametrize('name', SETTINGS)
def test_term_of_weight_zero_is_zero_and_not_computed(name):
    full = logits()
    seen = []
    loss = FocusLoss(**SETTINGS[name], criterion=lambda z, t: seen.append(z) or nn.functional.cross_entropy(z, t))
    # what the loss does not read could be anything, even not a number
    nothing = torch.full((BATCH, CLASSES), math.nan, dtype=torch.float64)
    output = FocusOutput(
        full.main, full.side if loss.uses_side else nothing, full.erased if loss.uses_erased else nothing)
    terms = loss(output, INDICES)
    absent = loss(FocusOutput(*(None if z is nothing else z for z in output)), INDICES)
    weights = dict(
        side_loss=loss.side_weight, erased_loss=loss.alpha,
        consistency_loss=0 if loss.consistency == 'attention_mining' else loss.beta)
    assert list(terms) == list(absent) == KEYS
    for key, weight in weights.items():
        assert (terms[key].item() == 0.) == (weight == 0), key
    assert torch.equal(terms['loss'], absent['loss']) and terms['loss'].isfinite()
    mined = loss.consistency == 'attention_mining'
    assert len(seen) == 2 * (1 + (loss.side_weight > 0) + (loss.alpha > 0 and not mined))


def test_which_branches_a_loss_uses():
    expected = {'baseline': (False, False), 'side': (True, False), 'side+cpc': (True, True), 'side+ipc': (True, True),
                'all': (True, True), 'attention mining': (True, True), 'attention mining off': (True, False)}
    for name, uses in expected.items():
        loss = FocusLoss(**SETTINGS[name])
        assert (loss.uses_side, loss.uses_erased) == uses, name
        assert loss.scorer == ('main' if 'mining' in name else 'erased_head')


@pytest.mark.parametrize('branch', ['side', 'erased'])
@pytest.mark.parametrize('settings', [{}, MINING], ids=['kl', 'mining'])
def test_branch_that_did_not_run_is_named(branch, settings):
    with pytest.raises(ValueError, match=(
            rf'^The loss needs the {branch} logits, but the model did not run that branch: call '
            rf'model\.set_branches\({branch}=True\), or set the weights of its terms to 0\.$')):
        FocusLoss(**settings)(logits()._replace(**{branch: None}), INDICES)


@pytest.mark.parametrize('name', ['alpha', 'beta', 'side_weight'])
@pytest.mark.parametrize('value', [-1, -1e-9, math.nan, math.inf, -math.inf])
def test_weights_are_finite_and_not_negative(name, value):
    with pytest.raises(ValueError, match=rf'^{name} is {value}: give a finite number, 0 or above\.$'):
        FocusLoss(**{name: value})


@pytest.mark.parametrize('name, value, choices', [
    ('consistency', 'js', "'kl', 'attention_mining'"),
    ('consistency', None, "'kl', 'attention_mining'"),
    ('kl_direction', 'forward', "'erased_main', 'main_erased', 'symmetric'"),
    ('kl_detach', 'side', "None, 'main', 'erased'"),
    ('kl_detach', False, "None, 'main', 'erased'"),
])
def test_choices_are_named(name, value, choices):
    with pytest.raises(ValueError, match=rf'^{name} is {value!r}: choose one of {choices}\.$'):
        FocusLoss(**{name: value})


@pytest.mark.parametrize('settings, warned', [
    (dict(side_weight=0), 1),
    (dict(side_weight=0, alpha=0), 1),
    (dict(side_weight=0, beta=0), 1),
    (dict(side_weight=0, **MINING), 1),
    (dict(side_weight=0, alpha=0, beta=0), 0),
    (dict(side_weight=0, alpha=0, **MINING), 0),
    ({}, 0),
    (dict(side_weight=1e-3), 0),
])
def test_erasing_by_an_untrained_map_is_warned_about_once(settings, warned):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        loss = FocusLoss(**settings)
        loss(logits(), INDICES)
        assert not caught, 'the loss does not know what erases'
        for kind in ('cam', 'mean', 'grid'):
            model = timm.create_model('focus_test_resnet', num_classes=CLASSES, focus_map=kind)
            model.set_branches(loss.uses_side, loss.uses_erased, loss.scorer)
    assert len(caught) == warned
    for w in caught:
        assert w.filename == __file__ and str(w.message).startswith('The side loss has no weight, and images are')


# a share of the batch

def test_a_fraction_has_the_loss_of_the_whole_batch_in_expectation(photos):
    """Over all rotations of a batch each image is erased equally often; without BatchNorm, to rounding."""
    torch.manual_seed(0)
    model = timm.create_model('focus_vit_tiny_patch16_224', num_classes=5, img_size=64, depth=4).double().train()
    x, y, loss = photos(6, 64, dtype=torch.float64), torch.arange(6) % 5, FocusLoss()

    def terms_and_gradient(fraction, shift):
        model.batch_fraction = fraction
        model.zero_grad()
        terms = loss(model(x.roll(shift, 0)), y.roll(shift))
        terms['loss'].backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return torch.stack([t.detach() for t in terms.values()]), gradient

    whole, gradient = terms_and_gradient(1., 0)
    for fraction in (0.5, 1 / 3):
        found = [terms_and_gradient(fraction, shift) for shift in range(6)]
        torch.testing.assert_close(sum(t for t, _ in found) / 6, whole, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(sum(g for _, g in found) / 6, gradient, rtol=1e-7, atol=1e-10)
        assert all((t - whole).abs().max() > 1e-6 for t, _ in found)  # each rotation by itself is another loss


# what is given to the wrong loss

@pytest.mark.parametrize('kwargs', [dict(smoothing=0.1), dict(smoothing=0.), dict(loss_type='bce')])
def test_the_task_of_a_plain_model_says_what_trains_a_focus_model(kwargs, photos):
    """That of timm's own train.py."""
    model = timm.create_model('focus_test_resnet', num_classes=4).train()
    task = ClassificationTask(model, criterion_kwargs=kwargs, verbose=False)
    words = r'FocusLoss takes\. train_focus\.py trains it.*leave out focus_'
    with pytest.raises((TypeError, AttributeError), match=words):
        task(photos(4, 64), torch.arange(4))


def test_the_output_of_evaluation_is_told(photos):
    model = timm.create_model('focus_test_resnet', num_classes=4).eval()
    with pytest.raises(TypeError, match=r'got one tensor of shape \[4, 4\], as the model gives in evaluation'):
        FocusLoss()(model(photos(4, 64)), torch.arange(4))
