"""Class activation maps as pure functions of tensors ("See More for Scene", section 4, Eq. 1).

The CAM module is a 1x1 convolution V, a global average pool and a linear classifier W. All three are linear, so their
order can be changed without changing the function, its parameters or its gradients:

    convolve, then weigh:   M_t = sum_c W[t, c] (sum_k V[c, k] tap_k + b_c)        C * K multiplications a pixel
    weigh, then sum:        M_t = sum_k (W V)[t, k] tap_k + const                  K multiplications a pixel

The bias adds a constant to the map, which the min-max normalisation removes.
"""
import torch
from torch import Tensor

__all__ = ['at_least_float32', 'class_activation_map', 'class_weights', 'mean_activation_map', 'normalize_map']


def at_least_float32(x: Tensor) -> Tensor:
    """Return the tensor in float32, or in float64 if it has that type."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(x: Tensor) -> torch.autocast:
    """Return a context without autocast on a tensor's device."""
    kind = x.device.type
    return torch.autocast('cpu' if kind == 'meta' else kind, enabled=False)  # meta has none


def class_weights(conv_weight: Tensor, fc_weight: Tensor, target: Tensor) -> Tensor:
    """Return the weights of the tapped channels in the map of each image's class: rows of the product W V of Eq. 1.

    Args:
        conv_weight: Weight of the 1x1 convolution, `[C, K, 1, 1]` (or `[C, K]`).
        fc_weight: Weight of the linear classifier, `[classes, C]`.
        target: Class index of each image, `[B]`.

    Returns:
        `[B, K]`, in float32 or better, whatever the autocast.
    """
    with without_autocast(fc_weight):
        return at_least_float32(fc_weight[target]) @ at_least_float32(conv_weight.flatten(1))


def class_activation_map(feature: Tensor, weight: Tensor) -> Tensor:
    """Compute the class activation map: the weighted sum of the channels of a feature (Eq. 1, before normalisation).

    Args:
        feature: Feature map, `[B, K, h, w]`.
        weight: Weight of each channel for each image, `[B, K]`, for instance of `class_weights`.

    Returns:
        `[B, h, w]`, in float32 or better, whatever the autocast.
    """
    with without_autocast(feature):
        return torch.einsum('bk,bkhw->bhw', at_least_float32(weight), at_least_float32(feature))


def mean_activation_map(feature: Tensor) -> Tensor:
    """Return the mean of a feature `[B, K, h, w]` over its channels, `[B, h, w]`: the "simple way" of section 4."""
    return at_least_float32(feature).mean(1)


def normalize_map(activation: Tensor) -> Tensor:
    """Normalise each map by its minimum and maximum, (M - min) / (max - min) (section 4, below Eq. 1).

    A flat map (max = min) prefers no position over another, and becomes 0 everywhere. So does a map that overflows.

    Args:
        activation: Maps, `[B, h, w]`.

    Returns:
        `[B, h, w]` in 0 to 1.
    """
    low = activation.amin((-2, -1), keepdim=True)
    span = activation.amax((-2, -1), keepdim=True) - low
    return torch.where((span > 0) & span.isfinite(), (activation - low) / span, 0.)
