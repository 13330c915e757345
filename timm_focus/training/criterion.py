"""Which classification loss the settings ask for: timm's, by timm's flags."""
import argparse
from typing import Any, Dict

from timm.loss.class_weights import load_class_stats, resolve_class_weights

__all__ = ['criterion_kwargs', 'mixes']


def criterion_kwargs(args: argparse.Namespace) -> Dict[str, Any]:
    """Return arguments of `timm.loss.create_classification_loss`.

    Raises:
        ValueError: Class weights or statistics make no sense.
        OSError: Their file cannot be read.
    """
    stats = load_class_stats(args.class_stats)
    weights = {
        kind: resolve_class_weights(value, kind, stats, power=args.loss_weight_power)
        for kind, value in (('class_weight', args.loss_class_weight), ('pos_weight', args.loss_pos_weight))}
    return dict(
        loss_type=args.loss,
        smoothing=args.smoothing,
        soft_targets=mixes(args),
        bce_target_thresh=args.bce_target_thresh,
        bce_sum=args.bce_sum,
        poly_epsilon=args.poly_epsilon,
        poly_gamma=args.poly_gamma,
        jsd_splits=args.aug_splits,
        **weights,
    )


def mixes(args: argparse.Namespace) -> bool:
    """Return whether batches are mixed, so that targets are soft."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None
