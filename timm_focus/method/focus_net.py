"""FocusNet: a timm model and the two heads that exist only while it trains ("See More for Scene", section 4).

The way of a batch in training, one forward:

    x [B,3,H,W] -> backbone -> main [B,K]                  what the network says of the image
                     | tap [B,C,h,w] at `stage`
                     +-> cam_head -> side [B,K]            trains the class activation map
                           | map of the class that main predicts, without gradient
    x * (map < threshold) -> backbone -> erased [n,K]      what it says without what it relied on

In evaluation it is the backbone and nothing else.
"""
import contextlib
import logging
import math
import numbers
import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple, Union

import timm
import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models import get_model_args
from timm.optim import auto_group_layers
from timm.utils import unwrap_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cam import class_activation_map, class_weights, mean_activation_map, normalize_map
from .erase import erase, erased_share, keep_mask, keep_mask_like, resize_map

__all__ = ['CamHead', 'FocusNet', 'FocusOutput', 'default_stage', 'export_backbone', 'find_stage']

_logger = logging.getLogger(__name__)

MAPS = ('cam', 'mean', 'random')
INTERPOLATIONS = ('bilinear', 'nearest')
BATCH_NORMS = ('shared', 'clean')
ERASED_BY = ('erased_head', 'main')
_DISTILLED = 'Focus training does not go with distilled training, whose two outputs it cannot pair: leave it off.'
_ANCHOR = re.compile(r'(?<![\[\\])\^')  # the ^ that means the beginning, not that of [^...] or \^


class FocusOutput(NamedTuple):
    """Logits of `FocusNet` in training: `main` and `side` `[B, K]`, `erased` `[n, K]` of the first n images.

    A branch that does not run is None.
    """
    main: Tensor
    side: Optional[Tensor]
    erased: Optional[Tensor]


class CamHead(nn.Module):
    """CAM module: 1x1 convolution, global average pool, linear classifier (section 4, "Modifying image").

    The pool comes first: the order of linear operations is free, and on pooled features the convolution costs nothing.

    Args:
        in_chs: Channels of the tapped feature.
        num_classes: Number of classes.
        width: Channels of the convolution, as many as the feature has by default.
    """

    def __init__(self, in_chs: int, num_classes: int, width: Optional[int] = None, device=None, dtype=None):
        super().__init__()
        width = width or in_chs
        self.conv = nn.Conv2d(in_chs, width, 1, device=device, dtype=dtype)
        self.fc = nn.Linear(width, num_classes, device=device, dtype=dtype)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits `[B, K]` of a feature `[B, C, h, w]`."""
        return self.fc(self.conv(feature.mean((2, 3), keepdim=True)).flatten(1))

    def activation_map(self, feature: Tensor, target: Tensor) -> Tensor:
        """Class activation map of Eq. 1, not normalised: `[B, h, w]` of features `[B, C, h, w]`, classes `[B]`."""
        return class_activation_map(feature, class_weights(self.conv.weight, self.fc.weight, target))


def _feature_info(backbone: nn.Module) -> List[Dict[str, Any]]:
    info = backbone.feature_info
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


@contextlib.contextmanager
def _clean_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers in training mode normalise by the batch and leave their running statistics alone."""
    # collected at use: sync-bn, split-bn and EMA replace the modules after construction
    tracking = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for m in tracking:
        m.track_running_stats = False
    try:
        yield
    finally:
        for m in tracking:
            m.track_running_stats = True


@contextlib.contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, running statistics stay bit for bit what they are, and autograd saves the same tensors as outside."""
    # momentum 0 and not _clean_statistics, under which a layer saves other tensors, which a recomputation must not
    tracking = [m for m in module.modules() if getattr(m, 'running_var', None) is not None]
    before = [(m, m.momentum, m._buffers.get('num_batches_tracked')) for m in tracking]
    for m, _, counter in before:
        m.momentum = 0.
        if counter is not None:
            m.num_batches_tracked = None
    try:
        yield
    finally:  # a recomputation ends by an exception once it has what it needs
        for m, momentum, counter in before:
            m.momentum = momentum
            if counter is not None:
                m.num_batches_tracked = counter


def _accept_plain_state_dict(model: 'FocusNet', state_dict: Dict[str, Any], prefix: str, *_: Any) -> None:
    """Load hook: lets a FocusNet take a plain backbone's state dict; its heads keep their values."""
    names = {k[len(prefix):] for k in state_dict if k.startswith(prefix)}
    own = set(model.backbone.state_dict())
    if not names & own or names & {f'backbone.{k}' for k in own}:
        return
    for name in names:
        state_dict[f'{prefix}backbone.{name}'] = state_dict.pop(prefix + name)
    heads = {k: v for k, v in model.state_dict(prefix=prefix).items() if not k.startswith(f'{prefix}backbone.')}
    state_dict.update(heads)
    _logger.warning('Loaded the state dict of a plain model: %s are not in it and keep their values.', ', '.join(heads))


def _pre_logits_size(backbone: nn.Module) -> int:
    """Width of `forward_head(pre_logits=True)`; a pool that concatenates doubles it without a word to the model."""
    classifier = backbone.get_classifier()
    return classifier.in_features if isinstance(classifier, nn.Linear) else backbone.head_hidden_size


def _of_backbone(name: str) -> property:
    return property(lambda self: getattr(self.backbone, name), lambda self, value: setattr(self.backbone, name, value))


class FocusNet(nn.Module):
    """A timm model with the training-time heads of "See More for Scene" (section 4).

    In training `model(x)` of images `[B, C, H, W]` is a `FocusOutput(main, side, erased)`; in evaluation, and after
    `set_focus_training(False)`, it is `backbone(x)`. The backbone stays an untouched plain timm model:
    `model.backbone`, or a fresh copy by `export_backbone(model)`.

    With `focus_bn='shared'`, the literal reading, erased images count in BatchNorm's running statistics as the original
    ones do: at momentum 0.1 the statistics settle at 53 % erased, 47 % original.

    Args:
        backbone: A timm model that classifies.
        focus_stage: Feature that the CAM head taps: a name or an index of `feature_info`. By default the last feature
            before the last down-sampling; three quarters of the way up a model that never down-samples. Where several
            branches are listed one after another (crossvit), an index tells them apart.
        focus_threshold: gamma of Eq. 2 in (0, 1]: what the normalised map reaches or exceeds is erased.
        focus_width: Channels of the CAM head's 1x1 convolution; as many as the feature has by default.
        focus_interpolation: How the map is enlarged to the image, 'bilinear' or 'nearest'.
        focus_bn: BatchNorm in the pass of erased images: 'shared', as in the first pass, or 'clean', which normalises
            by its own batch and leaves the running statistics to the original images.
        focus_map: What erases: 'cam', the class activation map of the predicted class; 'mean', the channel mean of the
            feature; 'random', a smooth random field that erases as much of each image as the CAM would.
        focus_fraction: Share of the batch, in (0, 1], that is erased and passes a second time: its first rows. A step
            costs 1 + f passes. Batches are shuffled, so the expected loss and gradient are those of f = 1, over fewer
            images and so with more variance; but BatchNorm normalises erased images over those that there are.
        focus_recompute: Keep the activations of one pass, not of two: those of the first are computed again in the
            backward pass, for one more forward in time. Gradients and running statistics are the same.

    Attributes:
        backbone: The plain timm model.
        cam_head: `CamHead` on the tapped feature.
        erased_head: Linear classifier of the erased images, on `head_hidden_size` features.
        stage: Index of the tapped feature in `feature_info`.
        threshold: gamma.
        erased_fraction: Mean share of the pixels erased in the last training pass, a scalar tensor.

    Raises:
        TypeError: The backbone is no timm model.
        ValueError: The backbone does not classify, or a setting is not allowed.
    """

    def __init__(
            self,
            backbone: nn.Module,
            focus_stage: Union[None, int, str] = None,
            focus_threshold: float = 0.7,
            focus_width: Optional[int] = None,
            focus_interpolation: str = 'bilinear',
            focus_bn: str = 'shared',
            focus_map: str = 'cam',
            focus_fraction: float = 1.,
            focus_recompute: bool = False,
    ):
        super().__init__()
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
        for key, value in (('focus_threshold', focus_threshold), ('focus_fraction', focus_fraction)):
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= 1:
                raise ValueError(f'{key} is {value!r}: give a number above 0 and at most 1.')
        if focus_width is not None and (
                isinstance(focus_width, bool) or not isinstance(focus_width, numbers.Integral) or focus_width < 1):
            raise ValueError(f'focus_width is {focus_width!r}: give a number of channels, 1 or more, or None.')
        for key, value, allowed in (
                ('focus_interpolation', focus_interpolation, INTERPOLATIONS),
                ('focus_bn', focus_bn, BATCH_NORMS),
                ('focus_map', focus_map, MAPS),
        ):
            if value not in allowed:
                raise ValueError(f'{key} is {value!r}: choose one of {", ".join(map(repr, allowed))}.')

        info = _feature_info(backbone)
        self.stage = find_stage(info, focus_stage)
        self.threshold = float(focus_threshold)
        self.interpolation = focus_interpolation
        self.bn = focus_bn
        self.map = focus_map
        self.fraction = float(focus_fraction)
        self.recompute = bool(focus_recompute)
        self.erased_fraction = torch.zeros(())

        like = next(p for p in backbone.parameters() if p.is_floating_point())
        factory = dict(device=like.device, dtype=like.dtype)
        self.backbone = backbone
        self.cam_head = CamHead(info[self.stage]['num_chs'], backbone.num_classes, focus_width, **factory)
        self.erased_head = nn.Linear(_pre_logits_size(backbone), backbone.num_classes, **factory)
        self._focus_training = True
        self._paused: Set[str] = set()  # parameters whose gradients a branch that does not run turned off
        self.set_branches(side=True, erased=True)
        self._model_args = dict(getattr(backbone, '_model_args', {}), **self.focus_args)
        self.register_load_state_dict_pre_hook(_accept_plain_state_dict)

    @property
    def focus_args(self) -> Dict[str, Any]:
        """The `focus_*` arguments that rebuild this model on a backbone like its own."""
        return dict(
            focus_stage=self.stage,
            focus_threshold=self.threshold,
            focus_width=self.cam_head.conv.out_channels,
            focus_interpolation=self.interpolation,
            focus_bn=self.bn,
            focus_map=self.map,
            focus_fraction=self.fraction,
            focus_recompute=self.recompute,
        )

    def set_branches(self, side: bool = True, erased: bool = True, erased_by: str = 'erased_head') -> None:
        """Choose what runs in training: what the loss does not use is not computed and asks for no gradient.

        Args:
            side: Whether the CAM head classifies.
            erased: Whether images are erased and pass a second time.
            erased_by: Which classifier scores them: 'erased_head', or 'main' for attention mining (Table 6).

        Raises:
            ValueError: `erased_by` is unknown.
        """
        if erased_by not in ERASED_BY:
            raise ValueError(f'erased_by is {erased_by!r}: choose one of {", ".join(map(repr, ERASED_BY))}.')
        self.side_branch = bool(side)
        self.erased_branch = bool(erased)
        self.erased_by = erased_by
        trained = {'cam_head': self.side_branch, 'erased_head': self.erased_branch and erased_by == 'erased_head'}
        for head, runs in trained.items():
            for name, p in getattr(self, head).named_parameters(head):
                if not runs and p.requires_grad:
                    self._paused.add(name)
                    p.requires_grad_(False)
                elif runs and name in self._paused:  # what the user froze stays frozen
                    self._paused.discard(name)
                    p.requires_grad_(True)

    def set_focus_training(self, enable: bool = True) -> None:
        """Switch the heads on or off in training: off, `model(x)` is `backbone(x)` in training, too."""
        self._focus_training = bool(enable)

    def _check_trainable(self, main: Tensor) -> None:
        if not self.num_classes:
            raise ValueError('The model has no classifier (num_classes is 0): call reset_classifier before training.')
        if main.ndim != 2:
            raise ValueError(
                f'The main logits have {main.ndim} dimensions, not [B, K]: '
                "set the model's global_pool before training.")

    def forward(self, x: Tensor) -> Union[Tensor, FocusOutput]:
        """`FocusOutput` of images `[B, C, H, W]` in training, the backbone's logits `[B, K]` in evaluation.

        Raises:
            ValueError: In training, of a model that cannot be focus-trained as it stands.
        """
        if not (self.training and self._focus_training):
            return self.backbone(x)
        if getattr(self.backbone, 'distilled_training', False):
            raise ValueError(_DISTILLED)
        main, side, keep = self._first_pass(x)
        return FocusOutput(main, side, None if keep is None else self._second_pass(x, keep))

    def _first_pass(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
        """Main and side logits `[B, K]` of images, and what is kept of the first n of them, `[n, 1, H, W]`."""
        main, tap = self._recomputed(x) if self.recompute and self.erased_branch else self._main_and_tap(x)
        self._check_trainable(main)
        side = self.cam_head(tap) if self.side_branch else None
        if not self.erased_branch:
            return main, side, None
        n = max(1, round(self.fraction * x.shape[0]))
        keep = self.keep_mask(tap[:n], main[:n], x.shape[-2:])
        self.erased_fraction = erased_share(keep)
        return main, side, keep

    def _main_and_tap(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        # stop_early cuts Hiera's final feature short by default
        final, (tap,) = self.backbone.forward_intermediates(
            x, indices=[self.stage], norm=False, stop_early=False, output_fmt='NCHW')
        return self.backbone.forward_head(final), tap

    def _recomputed(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """`_main_and_tap` without its activations, which the backward pass computes once it has spent the others'."""
        contexts = {}
        if not torch.compiler.is_compiling():  # a compiled graph recomputes without its side effects
            contexts['context_fn'] = lambda: (contextlib.nullcontext(), _frozen_statistics(self.backbone))
        return checkpoint(self._main_and_tap, x, use_reentrant=False, **contexts)

    def _second_pass(self, x: Tensor, keep: Tensor) -> Tensor:
        """Logits `[n, K]` of the erased images."""
        with _clean_statistics(self.backbone) if self.bn == 'clean' else contextlib.nullcontext():
            final = self.backbone.forward_features(erase(x[:keep.shape[0]], keep))
            if self.erased_by == 'main':
                return self.backbone.forward_head(final)
            return self.erased_head(self.backbone.forward_head(final, pre_logits=True))

    @torch.no_grad()
    def activation_map(self, tap: Tensor, main: Tensor) -> Tensor:
        """Normalised map that decides what is erased (Eq. 1), in float32 or better, whatever the autocast.

        Args:
            tap: Feature at `stage`, `[B, C, h, w]`.
            main: Main logits `[B, K]`, whose highest class chooses the map.

        Returns:
            `[B, h, w]` in 0 to 1: the channel mean for `focus_map='mean'`, else the class activation map.
        """
        with torch.autocast(tap.device.type, enabled=False):
            if self.map == 'mean':
                return normalize_map(mean_activation_map(tap))
            return normalize_map(self.cam_head.activation_map(tap, main.argmax(1)))

    @torch.no_grad()
    def keep_mask(self, tap: Tensor, main: Tensor, size: Tuple[int, int]) -> Tensor:
        """What is kept of the images (Eq. 2).

        Args:
            tap: Feature at `stage`, `[B, C, h, w]`.
            main: Main logits `[B, K]`.
            size: Height and width of the images.

        Returns:
            `[B, 1, H, W]` bool, True where the image is kept.
        """
        activation = self.activation_map(tap, main)
        keep = keep_mask(activation, size, self.threshold, self.interpolation)
        if self.map == 'random':
            keep = keep_mask_like(resize_map(torch.randn_like(activation), size), keep)
        return keep

    # timm's model interface: the backbone's own

    num_classes = _of_backbone('num_classes')
    num_features = _of_backbone('num_features')
    head_hidden_size = _of_backbone('head_hidden_size')
    in_chans = _of_backbone('in_chans')
    feature_info = _of_backbone('feature_info')
    pretrained_cfg = _of_backbone('pretrained_cfg')
    default_cfg = _of_backbone('default_cfg')

    @property
    def _traits(self) -> Dict[str, Any]:  # where timm's get_model_input_config looks
        return getattr(self.backbone, '_traits', {})

    def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.backbone.forward_features(x, *args, **kwargs)

    def forward_head(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.backbone.forward_head(x, *args, **kwargs)

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any):
        return self.backbone.forward_intermediates(x, *args, **kwargs)

    def get_classifier(self) -> nn.Module:
        return self.backbone.get_classifier()

    def reset_classifier(self, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """Give all three heads new classifiers of `num_classes`; other arguments go to the backbone's own.

        `num_classes=0` leaves the backbone without a classifier, for features in evaluation; the other two stay.
        """
        self.backbone.reset_classifier(num_classes, *args, **kwargs)
        if num_classes:
            old = self.cam_head.fc
            factory = dict(device=old.weight.device, dtype=old.weight.dtype)
            self.cam_head.fc = nn.Linear(old.in_features, num_classes, **factory)
            self.erased_head = nn.Linear(_pre_logits_size(self.backbone), num_classes, **factory)
            self.set_branches(self.side_branch, self.erased_branch, self.erased_by)

    def group_matcher(self, coarse: bool = False) -> Union[Dict[str, Any], Callable[[str], Any]]:
        """The backbone's layer groups; the heads match none and so join the last, as a classifier does."""
        def under_backbone(spec):
            if spec is None:
                return None
            if isinstance(spec, str):
                # a ^ inside could never match behind the prefix, and timm matches from the start anyway
                return rf'backbone\.(?:{_ANCHOR.sub("", spec)})'
            return [(under_backbone(s[0]), s[1]) for s in spec]

        if hasattr(self.backbone, 'group_matcher'):
            own = self.backbone.group_matcher(coarse=coarse)
        else:
            own = auto_group_layers(self.backbone).get  # what timm does where a model has no groups
        if callable(own):
            return lambda name: own(name.removeprefix('backbone.')) if name.startswith('backbone.') else float('inf')
        return {group: under_backbone(spec) for group, spec in own.items()}

    def no_weight_decay(self) -> Set[str]:
        own = self.backbone.no_weight_decay() if hasattr(self.backbone, 'no_weight_decay') else ()
        return {f'backbone.{name}' for name in own}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, as timm's models do.

        Raises:
            ValueError: With `focus_bn='clean'` or `focus_recompute`: its recomputation would run outside the pass that
                keeps the statistics.
        """
        if enable and self.recompute:
            raise ValueError(
                'Gradient checkpointing does not go with focus_recompute, which recomputes by itself: choose one.')
        if enable and self.bn == 'clean':
            raise ValueError(
                "Gradient checkpointing does not go with focus_bn='clean': "
                "choose focus_bn='shared', or no checkpointing.")
        self.backbone.set_grad_checkpointing(enable)

    def set_input_size(self, *args: Any, **kwargs: Any) -> None:
        self.backbone.set_input_size(*args, **kwargs)

    def set_distilled_training(self, enable: bool = True) -> None:
        """Refused: distillation trains two outputs of the backbone, and focus training has one.

        Raises:
            ValueError: `enable` is True.
        """
        if enable:
            raise ValueError(_DISTILLED)
        if hasattr(self.backbone, 'set_distilled_training'):
            self.backbone.set_distilled_training(False)

    def extra_repr(self) -> str:
        return ', '.join(f'{k}={v!r}' for k, v in self.focus_args.items())


def export_backbone(model: nn.Module) -> nn.Module:
    """The product of focus training: a fresh plain timm model with the backbone's weights.

    Args:
        model: A `FocusNet` or its backbone, also inside DDP, `torch.compile` or timm's EMA, in any memory format.

    Returns:
        A model of `timm.create_model` under the plain architecture name, rebuilt from the backbone's recorded
        arguments, in evaluation mode, contiguous, on the device and in the dtype of the source; it shares no memory
        with it.

    Raises:
        ValueError: The architecture is not recorded, or what is recorded does not rebuild the backbone.
    """
    model = unwrap_model(model)
    backbone = unwrap_model(model.backbone) if isinstance(model, FocusNet) else model
    cfg = dict(getattr(backbone, 'pretrained_cfg', None) or {})
    architecture = cfg.get('architecture')
    if not architecture:
        raise ValueError(
            f"{type(backbone).__name__} does not record its architecture: make it by timm.create_model, "
            "or set pretrained_cfg['architecture'] to its timm name.")
    # get_model_args knows what was changed since construction, _model_args the drop rates
    args = {**getattr(backbone, '_model_args', {}), **get_model_args(backbone)}
    plain = timm.create_model(architecture, pretrained=False, pretrained_cfg=cfg, **args)
    like = next(p for p in backbone.parameters() if p.is_floating_point())
    plain = plain.to(device=like.device, dtype=like.dtype)
    try:
        plain.load_state_dict(backbone.state_dict())
    except RuntimeError as e:
        first = ' '.join(str(e).split())[:200]  # of what can be hundreds of names
        raise ValueError(
            f'The recorded arguments of {architecture}, {args}, do not rebuild this backbone, which was changed after '
            f'it was made: {first} ...') from e
    return plain.eval()
