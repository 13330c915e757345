"""Focus area and coverage ratio: where the features of a network are strong ("See More for Scene", section 3).

A heat map is the channel mean of the last feature map. The focus area is where the heat map is above its mean over the
image, and the coverage ratio is the share of the positions in it. None of this takes labels or gradients.

The ratio depends on the number of positions: a map of 2 x 2 has five possible values. Compare networks at inputs whose
last map is at least 4 x 4, and report its size.
"""
from typing import List, NamedTuple, Tuple, Union

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from timm_focus.method import FocusNet
from timm_focus.utils.modes import evaluating

__all__ = ['FocusArea', 'coverage_ratio', 'focus_area', 'last_map', 'plain_model', 'threshold_map']

Rule = Union[str, float]


class FocusArea(NamedTuple):
    """What a network looks at in images.

    Attributes:
        heat: Heat maps, float32 `[B, h, w]`.
        area: Focus areas, bool `[B, h, w]`.
        coverage: Coverage ratios, float32 `[B]`, 0 to 1.
        convolutional: Whether convolutions made the map. The paper measures only these; for transformers and the like,
            the ratio is another quantity.
    """
    heat: Tensor
    area: Tensor
    coverage: Tensor
    convolutional: bool


def plain_model(model: nn.Module) -> nn.Module:
    """The model that classifies, without `torch.compile` or DDP around it; for a focus model, its backbone."""
    model = unwrap_model(model)
    return unwrap_model(model.backbone) if isinstance(model, FocusNet) else model


def focus_area(model: nn.Module, x: Tensor, rule: Rule = 'mean') -> FocusArea:
    """Find the focus areas of images, with a model in evaluation.

    Args:
        model: Any timm model, or any whose last feature map is pooled over its positions, such as torchvision's
            convolutional ones. Its mode is left as it was.
        x: Normalised images `[B, C, H, W]`, on the model's device.
        rule: See `threshold_map`.

    Raises:
        ValueError: The model pools no feature map, its numbers are not finite, or the rule is unknown.
    """
    features, convolutional = last_map(model, x)
    heat = features.float().mean(1)
    if not heat.isfinite().all():
        raise ValueError(f'The last feature map of {type(model).__name__} has numbers that are not finite, so it has '
                         'no focus area: its training diverged, or its weights are damaged.')
    area = threshold_map(heat, rule)
    return FocusArea(heat, area, coverage_ratio(area), convolutional)


@torch.inference_mode()
def last_map(model: nn.Module, x: Tensor) -> Tuple[Tensor, bool]:
    """The last feature map of a model, `[B, C, h, w]`, and whether convolutions made it.

    For a convolutional timm model that is the output of `forward_features`; for other timm models, the last
    intermediate feature before its norm, since a LayerNorm takes the channel mean away; for other libraries, the map
    that the network pools last.

    Args:
        model: See `focus_area`; of a focus model, the backbone is used.
        x: Normalised images `[B, C, H, W]`.

    Raises:
        ValueError: The model pools no feature map.
    """
    model = plain_model(model)
    attends = any(word in type(m).__name__.lower() for m in model.modules() for word in ('attention', 'attn'))
    with evaluating(model):
        if not hasattr(model, 'forward_intermediates'):
            return _pooled_map(model, x), not attends
        if not attends:
            features = model.forward_features(x)
            if torch.is_tensor(features) and features.ndim == 4 and getattr(model, 'output_fmt', 'NCHW') == 'NCHW':
                return features, True
        return model.forward_intermediates(
            x, indices=1, norm=False, stop_early=False, output_fmt='NCHW', intermediates_only=True)[-1], False


def threshold_map(heat: Tensor, rule: Rule = 'mean') -> Tensor:
    """Mask where each map is above its own threshold, bool `[B, h, w]`; empty for a flat map.

    Args:
        heat: Maps `[B, h, w]`.
        rule: 'mean' as in the paper; 'otsu', the threshold that makes two groups of values with the least variance
            within them; or a percentile of the values, 0 to 100.

    Raises:
        ValueError: The rule is none of these.
    """
    values = heat.flatten(1).float()
    if rule == 'mean':
        threshold = values.mean(1)
    elif rule == 'otsu':
        threshold = _otsu(values)
    elif isinstance(rule, (int, float)) and 0 <= rule <= 100:
        threshold = values.quantile(rule / 100, dim=1)
    else:
        raise ValueError(f"There is no threshold {rule!r}: give 'mean', 'otsu', or a percentile from 0 to 100.")
    return heat > threshold.view(-1, 1, 1)


def _otsu(values: Tensor) -> Tensor:
    """Otsu's threshold of each row of `[B, N]`: the cut with the most variance between the two groups."""
    ordered = values.sort(1).values.double()
    n = ordered.shape[1]
    below = torch.arange(1, n, device=values.device, dtype=torch.float64)
    sums = ordered.cumsum(1)
    low = sums[:, :-1] / below
    high = (sums[:, -1:] - sums[:, :-1]) / (n - below)
    between = below * (n - below) * (high - low) ** 2
    between = between.masked_fill(ordered[:, 1:] == ordered[:, :-1], -1)  # no cut between equal values
    cut = between.argmax(1, keepdim=True) if n > 1 else torch.zeros_like(ordered[:, :1], dtype=torch.long)
    return ordered.gather(1, cut).squeeze(1).to(values.dtype)


def coverage_ratio(area: Tensor) -> Tensor:
    """Share of the positions that are in the area, float32 `[B]` of bool `[B, h, w]`."""
    return area.flatten(1).float().mean(1)


class _PooledMap(TorchDispatchMode):
    """Records the maps that a network pools over their positions."""

    POOLS = (torch.ops.aten._adaptive_avg_pool2d.default, torch.ops.aten.adaptive_avg_pool2d.default)
    MEANS = (torch.ops.aten.mean.dim,)

    def __init__(self):
        super().__init__()
        self.found: List[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.POOLS:
            self.found.append(args[0])
        elif func in self.MEANS and args[0].ndim == 4:
            dims = sorted(d % 4 for d in args[1])
            if dims == [2, 3]:
                self.found.append(args[0])
            elif dims == [1, 2]:  # channels last
                self.found.append(args[0].permute(0, 3, 1, 2))
        return func(*args, **(kwargs or {}))


def _pooled_map(model: nn.Module, x: Tensor) -> Tensor:
    with _PooledMap() as pooled:
        model(x)
    maps = [found for found in pooled.found if found.shape[0] == x.shape[0]]
    if not maps:
        raise ValueError(
            f'{type(model).__name__} pools no feature map over its positions, so it has no focus area: take a timm '
            'model, or one with a global pool.')
    return maps[-1]
