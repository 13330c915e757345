"""Which feature of a model the CAM head taps ("See More for Scene", section 4)."""
import math
import numbers
from typing import Any, Dict, List, Sequence, Union

from torch import nn

__all__ = ['default_stage', 'feature_info', 'find_stage']


def feature_info(backbone: nn.Module) -> List[Dict[str, Any]]:
    """timm's description of the features of a model, a dict for each."""
    info: Any = backbone.feature_info
    return list(getattr(info, 'info', info))


def default_stage(feature_info: Sequence[Dict[str, Any]]) -> int:
    """Index of the feature that is tapped by default: the last one before the last down-sampling (section 4).

    Models that never down-sample, such as a ViT, are tapped after three quarters of their blocks.

    Args:
        feature_info: timm's description of a model's features, dicts with 'reduction'.
    """
    reductions = [f['reduction'] for f in feature_info]
    for i in range(len(reductions) - 2, -1, -1):
        if reductions[i] < reductions[i + 1]:
            return i
    return math.ceil(3 * len(reductions) / 4) - 1


def find_stage(feature_info: Sequence[Dict[str, Any]], stage: Union[None, int, str]) -> int:
    """Index into `feature_info` of a feature given by name, by index (negative ones count from the end) or by default.

    Raises:
        ValueError: There is no such feature, or several share the name.
    """
    if stage is None:
        return default_stage(feature_info)
    names = [f['module'] for f in feature_info]
    known = ', '.join(f'{i}: {name}' for i, name in enumerate(names))
    if isinstance(stage, numbers.Integral) and not isinstance(stage, bool):
        if -len(names) <= stage < len(names):
            return int(stage) % len(names)
        raise ValueError(f'There is no feature {stage}: choose an index or a name of {known}.')
    if names.count(stage) == 1:
        return names.index(stage)
    if names.count(stage) > 1:
        raise ValueError(f'Several features are named {stage!r}: choose by index one of {known}.')
    raise ValueError(f'There is no feature {stage!r}: choose a name or an index of {known}.')
