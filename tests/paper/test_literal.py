"""Section 4 as slow literal loops over pixels, classes and samples, against the module and its gradients."""
import pytest
import timm
import torch

from literal import literal_bilinear
from timm_focus import FocusLoss, FocusNet

GAMMA, ALPHA, BETA = 0.7, 1., 2.
MODELS = {
    'resnet10t': {},
    'densenet121': {},
    'shufflenetv2_x0_5': {},
    'convnext_atto': {},
    'vit_tiny_patch16_224': dict(img_size=64),
}


def literal_step(model, x, target):
    """Eq. 1 to 3 as printed, with the sign of the last term turned."""
    final, (tap,) = model.backbone.forward_intermediates(
        x, indices=[model.stage], norm=False, stop_early=False, output_fmt='NCHW')
    main = model.backbone.forward_head(final)
    V, v, W, w = model.cam_head.conv.weight, model.cam_head.conv.bias, model.cam_head.fc.weight, model.cam_head.fc.bias
    batch, classes, (height, width) = x.shape[0], main.shape[1], x.shape[-2:]
    h, width_tap = tap.shape[-2:]
    side, masks = [], torch.ones_like(x)
    for b in range(batch):
        # A: the convolution, pixel by pixel; r: global average pool and classifier
        A = [[V[:, :, 0, 0] @ tap[b, :, i, j] + v for j in range(width_tap)] for i in range(h)]
        pooled = sum(A[i][j] for i in range(h) for j in range(width_tap)) / (h * width_tap)
        side.append(torch.stack([sum(W[k, c] * pooled[c] for c in range(W.shape[1])) + w[k] for k in range(classes)]))
        # Eq. 1, for the class the main classifier predicts; plain numbers, so no gradient
        t = max(range(classes), key=lambda k: main[b, k].item())
        M = [[sum(W[t, c].item() * A[i][j][c].item() for c in range(W.shape[1])) for j in range(width_tap)]
             for i in range(h)]
        low, high = min(map(min, M)), max(map(max, M))
        M = [[(m - low) / (high - low) if high > low else 0. for m in row] for row in M]
        # Eq. 2
        enlarged = literal_bilinear(M, height, width)
        for i in range(height):
            for j in range(width):
                if enlarged[i][j] >= GAMMA:
                    masks[b, :, i, j] = 0.
    erased = model.erased_head(model.backbone.forward_head(model.backbone.forward_features(masks * x), pre_logits=True))

    # Eq. 3
    def softmax(row):
        powers = [torch.exp(z) for z in row]
        return [p / sum(powers) for p in powers]

    loss = 0.
    for b in range(batch):
        p, r, q = softmax(main[b]), softmax(side[b]), softmax(erased[b])
        k = target[b].item()
        loss = loss - torch.log(p[k]) - torch.log(r[k]) - ALPHA * torch.log(q[k])
        loss = loss + BETA * sum(q[i] * torch.log(q[i] / p[i]) for i in range(classes))
    return main, torch.stack(side), erased, loss / batch, 1 - masks.mean()


@pytest.mark.slow('densenet121', 'convnext')
@pytest.mark.parametrize('name', MODELS)
def test_module_equals_literal_loops(name, photos):
    backbone = timm.create_model(name, num_classes=4, **MODELS[name])
    model = FocusNet(backbone, focus_width=6).double().train()
    x, target = photos(3, 64, dtype=torch.float64), torch.tensor([1, 3, 0])
    parameters = dict(model.named_parameters())

    main, side, erased, loss, share = literal_step(model, x, target)
    expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)

    output = model(x)
    result = FocusLoss(ALPHA, BETA)(output, target)
    gradients = torch.autograd.grad(result['loss'], list(parameters.values()), allow_unused=True)

    assert 0.01 < share < 0.99, 'the images have to be erased in part for this to say anything'
    torch.testing.assert_close(model.erased_fraction.double(), share.double(), rtol=0, atol=1e-6)
    for actual, literal in ((output.main, main), (output.side, side), (output.erased, erased), (result['loss'], loss)):
        torch.testing.assert_close(actual, literal, rtol=1e-9, atol=1e-9)
    for (parameter, _), actual, literal in zip(parameters.items(), gradients, expected):
        assert (actual is None) == (literal is None), parameter
        if literal is not None:
            torch.testing.assert_close(actual, literal, rtol=1e-6, atol=1e-8, msg=lambda m: f'{parameter}: {m}')
