"""Refuses models that cannot be focus-trained and settings that make no sense, with one sentence each."""
import numbers
from typing import Any

from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models import get_model_args

__all__ = ['BATCH_NORMS', 'INTERPOLATIONS', 'MAPS', 'check_backbone', 'check_settings']

MAPS = ('cam', 'mean', 'random', 'grid')
INTERPOLATIONS = ('bilinear', 'nearest')
BATCH_NORMS = ('shared', 'clean')


def check_backbone(backbone: Any) -> None:
    """Check that a model can be focus-trained.

    Raises:
        TypeError: It is no timm model.
        ValueError: It does not classify, or has no feature map of the image.
    """
    name = type(backbone).__name__
    if not all(hasattr(backbone, a) for a in ('feature_info', 'forward_intermediates', 'forward_head')):
        raise TypeError(
            f'{name} has no feature_info, forward_intermediates and forward_head: '
            'give a model of timm.create_model, without features_only.')
    if not getattr(backbone, 'num_classes', 0):
        raise ValueError(f'{name} has no classifier (num_classes is 0), and focus training needs one.')
    if get_model_args(backbone).get('global_pool') == '':
        raise ValueError(
            f"{name} has global_pool='', and focus training needs pooled logits: leave it at its default.")
    if any(isinstance(m, (PatchDropout, PatchDropoutWithIndices)) and m.prob > 0 for m in backbone.modules()):
        raise ValueError(
            f'{name} drops patches (patch_drop_rate), which leaves no map of the image: set patch_drop_rate=0.')


def check_settings(
        threshold: Any,
        width: Any,
        interpolation: Any,
        bn: Any,
        map: Any,
        share: Any,
        fraction: Any,
        size: Any,
) -> None:
    """Check that the settings of a `FocusNet`, without their prefix, make sense.

    Raises:
        ValueError: A setting is not allowed. The message says what is allowed.
    """
    for key, value in (('focus_threshold', threshold), ('focus_fraction', fraction), ('focus_size', size)):
        if not (_is(value, numbers.Real) and 0 < value <= 1):
            raise ValueError(f'{key} is {value!r}: give a number above 0 and at most 1.')
    if not (share is None or (_is(share, numbers.Real) and 0 < share < 1)):
        raise ValueError(f'focus_share is {share!r}: give a number between 0 and 1, or None.')
    if not (width is None or (_is(width, numbers.Integral) and width >= 1)):
        raise ValueError(f'focus_width is {width!r}: give a number of channels, 1 or more, or None.')
    for key, value, allowed in (
            ('focus_interpolation', interpolation, INTERPOLATIONS),
            ('focus_bn', bn, BATCH_NORMS),
            ('focus_map', map, MAPS),
    ):
        if value not in allowed:
            raise ValueError(f'{key} is {value!r}: choose one of {", ".join(repr(a) for a in allowed)}.')


def _is(value: Any, kind: type) -> bool:
    """Return whether a value is a number of a kind. True and False are not."""
    return isinstance(value, kind) and not isinstance(value, bool)
