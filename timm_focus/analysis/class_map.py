"""Maps of where a classifier finds a class in images, at its last feature map.

Where the logits are W mean(feature) + b, the map is the class activation map M = sum_k W[class, k] feature_k. Its mean
over the positions is the logit without its bias. Whether the logits are linear is tested on the numbers, not told by
the model's name.

Other models, such as ViT, ConvNeXt and MobileNetV3, get Grad-CAM: W[class, k] is replaced by the mean over the
positions of the logit's gradient with respect to feature_k. For linear logits that is the same map, divided by the
number of positions.
"""
import contextlib
from collections import Counter
from typing import ContextManager, Dict, Iterator, List, NamedTuple, Optional, Tuple, cast

import torch
from torch import Tensor, nn

from timm_focus.method.cam import at_least_float32, class_activation_map
from timm_focus.utils.modes import evaluating

from .focus_area import _PooledMap, plain_model

__all__ = ['ClassMap', 'classifier_map']


class ClassMap(NamedTuple):
    """A map of where a classifier finds a class.

    Attributes:
        map: Maps, float32 `[B, h, w]`, neither normalised nor cut off at 0.
        logits: Logits of the model, `[B, K]`.
        kind: 'classifier' if the classifier's own weights made the map, 'gradient' if Grad-CAM did.
    """
    map: Tensor
    logits: Tensor
    kind: str


def classifier_map(model: nn.Module, x: Tensor, target: Optional[Tensor] = None) -> ClassMap:
    """Map where a model's own classifier finds a class, at the last feature that has positions.

    It works alike with and without focus training: of a focus model, the backbone is mapped. The model runs in
    evaluation and is left as it was: modes, gradients and `requires_grad`.

    Args:
        model: Any timm model that classifies, or any whose last feature map is pooled over its positions, such as
            torchvision's convolutional ones.
        x: Normalised images `[B, C, H, W]`, on the model's device.
        target: Class of each image, `[B]`; by default the class with the highest logit.

    Raises:
        ValueError: The model has no classifier or no such feature, or does not have a class.
        ImportError: The map takes Grad-CAM, which is not installed.
    """
    model = plain_model(model)
    with evaluating(model), _frozen(model):
        with torch.no_grad():
            logits, features, like = _forward(model, x)
            if not torch.is_tensor(logits) or logits.ndim != 2 or getattr(model, 'num_classes', None) == 0:
                raise ValueError(f'{type(model).__name__} gives no logits [B, K], so there is no class to map: take a '
                                 'model that classifies, with its pool.')
            target = check_target(target, logits)
            for feature in features:
                weight = _linear_weight(model, feature, logits)
                if weight is not None:
                    return ClassMap(class_activation_map(feature, weight[target]).float(), logits, 'classifier')
        if like is None:
            raise ValueError(f'{type(model).__name__} pools no feature map over its positions, so it has no map of a '
                             'class: take a timm model, or one with a global pool.')
        with _eagerly():
            return ClassMap(_gradient_map(model, x, target, like), logits, 'gradient')


def check_target(target: Optional[Tensor], logits: Tensor) -> Tensor:
    """Check the class of each image, `[B]`; without any, take the class with the highest logit.

    Raises:
        ValueError: A class is not one of the model's, or the shape or type is wrong.
    """
    n, classes = logits.shape
    if target is None:
        return logits.argmax(1)
    target = torch.as_tensor(target, device=logits.device)
    if target.shape != (n,) or target.is_floating_point() or target.dtype == torch.bool:
        raise ValueError(f'target is {target.dtype} {list(target.shape)}: give a class index for each of {n} images.')
    if n and not 0 <= target.min() <= target.max() < classes:
        raise ValueError(f'target has classes {target.min()} to {target.max()}: the model knows 0 to {classes - 1}.')
    return target.long()


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Switch off the gradients of all parameters, and restore them afterwards, since Grad-CAM clears them."""
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    model.requires_grad_(False)
    try:
        yield
    finally:
        for p, required, grad in parameters:
            p.requires_grad_(required)
            p.grad = grad


def _eagerly() -> ContextManager[None]:
    """Run compiled modules as plain Python for a while, so that their hooks are called."""
    set_stance = getattr(torch.compiler, 'set_stance', None)  # from torch 2.6 on
    return contextlib.nullcontext() if set_stance is None else set_stance('force_eager')


def _forward(model: nn.Module, x: Tensor) -> Tuple[Tensor, List[Tensor], Optional[Tensor]]:
    """Logits, features `[B, C, h, w]` that they may be a pool of, and a map with the last feature's shape, or None."""
    if not hasattr(model, 'forward_intermediates'):
        with _PooledMap() as pooled:
            logits = model(x)
        maps = [found for found in pooled.found if found.shape[0] == x.shape[0]]
        return logits, maps[-1:], maps[-1] if maps else None
    final, (last,) = model.forward_intermediates(x, indices=1, norm=False, stop_early=False, output_fmt='NCHW')
    logits = model.forward_head(final)
    if not torch.is_tensor(final):  # several branches
        return logits, [], last
    if final.ndim == 4:
        channels = getattr(model, 'num_features', None)
        layouts = [f for f in (final, final.permute(0, 3, 1, 2)) if f.shape[1] == channels]
        return logits, layouts, layouts[0] if layouts else final
    tokens = _positions(final, last, model)
    return logits, [] if tokens is None else [tokens], last


def _linear_weight(model: nn.Module, feature: Tensor, logits: Tensor) -> Optional[Tensor]:
    """Weight `[K, C]` of the classifier if its logits are W mean(feature) + b, else None."""
    if hasattr(model, 'get_classifier'):
        classifier = model.get_classifier()  # in Sequencer it is the whole head, in distilled models a pair
        layers = list(classifier.modules()) if isinstance(classifier, nn.Module) else []
    else:
        layers = list(model.modules())[::-1]
    shape = (logits.shape[1], feature.shape[1])
    for layer in layers:
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.flatten(1).shape == shape:
            weight = at_least_float32(layer.weight.flatten(1))
            linear = at_least_float32(feature).mean((2, 3)) @ weight.T
            if layer.bias is not None:
                linear = linear + layer.bias
            tolerance = max(1e-3, torch.finfo(feature.dtype).eps ** 0.5) * logits.abs().amax()
            return weight if ((linear - logits).abs() <= tolerance).all() else None
    return None


def _positions(feature: Tensor, like: Tensor, model: nn.Module) -> Optional[Tensor]:
    """A layer's output as a map with the shape of `like`, `[B, C, h, w]`; None if it is no such map.

    The output may have its channels last, or be a sequence of tokens, whose prefix tokens are dropped.
    """
    if feature.shape == like.shape:
        return feature
    if feature.ndim == 4 and feature.permute(0, 3, 1, 2).shape == like.shape:
        return feature.permute(0, 3, 1, 2)
    b, c, h, w = like.shape
    extra = feature.shape[1] - h * w if feature.ndim == 3 else -1
    if extra in (0, getattr(model, 'num_prefix_tokens', 1)) and feature.shape == (b, h * w + extra, c):
        return feature[:, extra:].transpose(1, 2).reshape(like.shape)
    return None


@torch.inference_mode(False)
@torch.enable_grad()
def _gradient_map(model: nn.Module, x: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """Grad-CAM `[B, h, w]` before its ReLU, at the last layer whose positions move the logits."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as e:
        raise ImportError(f"The class map of {type(model).__name__}, which has no linear pool, takes Grad-CAM: "
                          "pip install 'timm_focus[explain]'") from e
    x, target = x.detach().clone(), target.clone()
    layer = _last_layer(model, x[:1].clone().requires_grad_(), target[:1], like[:1])
    # Grad-CAM computes in numpy, which has no bfloat16
    cam = GradCAM(model, [layer], lambda output: at_least_float32(cast(Tensor, _positions(output, like, model))))
    found = cam.activations_and_grads
    try:
        targets = [ClassifierOutputTarget(k) for k in target.tolist()]
        cam(x.requires_grad_(), targets)  # its result is enlarged and scaled: the plain map is computed below
        activation, gradient = found.activations[0].numpy(), found.gradients[0].numpy()
        return torch.from_numpy(cam.get_cam_image(x, layer, targets, activation, gradient)).float().to(x.device)
    finally:
        found.release()


def _last_layer(model: nn.Module, x: Tensor, target: Tensor, like: Tensor) -> nn.Module:
    """The last layer whose output has a map's positions and moves the logit of an image.

    After the last attention of a ViT, only the class token moves the logit, so it is the norm before that attention.
    """
    outputs: Dict[nn.Module, Tensor] = {}
    calls: Counter[nn.Module] = Counter()

    def note(module, args, output):
        calls[module] += 1
        if torch.is_tensor(output) and output.requires_grad:
            outputs[module] = output

    hooks = [m.register_forward_hook(note) for m in model.modules()]
    try:
        logit = model(x).gather(1, target[:, None]).sum()
    finally:
        for hook in hooks:
            hook.remove()
    fitting = {m: o for m, o in outputs.items() if calls[m] == 1 and _positions(o, like, model) is not None}
    gradients = torch.autograd.grad(logit, list(fitting.values()), allow_unused=True) if fitting else []
    for module, gradient in reversed(list(zip(fitting, gradients))):
        if gradient is not None and _positions(gradient, like, model).any():
            return module
    raise ValueError(f'No layer of {type(model).__name__} with a map of {like.shape[2]} x {like.shape[3]} positions '
                     'moves its logits, so it has no map of a class.')
