"""Makes the model of a run from its settings: architecture, first weights and the heads of its method."""
import logging
from typing import Any, Dict, Tuple

import torch
from timm.models import create_model
from torch import nn

from timm_focus.baselines import ACoL, AcolNet, MaskSub
from timm_focus.method import FocusNet
from timm_focus.method.heads import classifiers
from timm_focus.method.stem import break_ties
from timm_focus.runs import check_name, is_source, model_arguments, start_from
from timm_focus.utils.errors import as_settings_error, refused

from .arguments import FOCUS_MODEL_FLAGS
from .settings import Settings

__all__ = ['build_model', 'default_lr', 'note_data']

_logger = logging.getLogger('train')


def build_model(args: Settings) -> Tuple[Settings, Any]:
    """Make the model, with the heads of its method; return settings with its channels and classes, and the model."""
    focus_args = {f'focus_{name}': getattr(args, f'focus_{name}') for name in FOCUS_MODEL_FLAGS}
    with refused():
        check_name(args.model)
    shared = args.model if is_source(args.model) and args.pretrained else ''
    weights = args.initial_checkpoint or args.pretrained_path or shared
    with as_settings_error(f'The model {args.model} cannot be made'):
        kwargs = model_arguments(args.model.removeprefix('focus_'), vars(args))
        model: Any = create_model(
            pretrained=args.pretrained and not weights,
            pretrained_cfg_overlay=dict(args.pretrained_cfg_overlay) or None, **kwargs)
        args = args.completed(in_chans=getattr(model, 'in_chans', args.in_chans or 3))
        if args.method == 'focus':
            model = FocusNet(model, **focus_args)
    if weights:
        with refused():
            _logger.info(start_from(model, weights, new_classifier=weights == args.pretrained_path))
    elif not args.pretrained and (args.method == 'focus' or args.has):
        stem = break_ties(model)
        if stem and args.rank == 0:
            _logger.info(f'{stem} begins with a random bias in place of 0, by which erased places are told apart.')
    with as_settings_error(f'The model {args.model} cannot be made'):
        if args.method == 'acol':
            num_classes = model.num_classes
            model.reset_classifier(0)
            model = ACoL(AcolNet(model, num_classes), args.acol_threshold)
        if args.method == 'masksub':
            model = MaskSub(model, args.masksub_share)
    if args.num_classes is None:
        args = args.completed(num_classes=model.num_classes)
    _initialise_classifiers(model, args)
    if args.grad_checkpointing:
        with as_settings_error(f'--grad-checkpointing does not go with {args.model}'):
            model.set_grad_checkpointing(enable=True)
    return args, model


@torch.no_grad()
def _initialise_classifiers(model: nn.Module, args: Settings) -> None:
    """Scale weights and set biases of classifiers as --head-init-scale and --head-init-bias say."""
    for name, p in (item for c in classifiers(model) for item in c.named_parameters()):
        if args.head_init_scale is not None:
            p.mul_(args.head_init_scale)
        if args.head_init_bias is not None and name.endswith('bias'):
            p.fill_(args.head_init_bias)


def note_data(model: Any, args: Settings, data_config: Dict[str, Any]) -> None:
    """Note how images are prepared, and the names of classes, in `pretrained_cfg`, where timm looks for them."""
    plain = model.backbone if isinstance(model, FocusNet) else model
    if getattr(plain, 'pretrained_cfg', None):
        plain.pretrained_cfg.update(data_config, **(dict(label_names=args.label_names) if args.label_names else {}))


def default_lr(args: Settings) -> float:
    """Return the learning rate for the global batch: --lr-base, scaled linearly, or by the root if adaptive."""
    ratio = args.batch_size * args.world_size * args.grad_accum_steps / args.lr_base_size
    scale = args.lr_base_scale
    if not scale:
        scale = 'sqrt' if any(o in args.opt.lower() for o in ('ada', 'lamb')) else 'linear'
    return args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)
