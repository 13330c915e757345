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
import numbers
from typing import Any, Dict, NamedTuple, Optional, Sequence, Set, Tuple, Union

import torch
from timm.layers import PatchDropout, PatchDropoutWithIndices
from timm.models import get_model_args
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cam import mean_activation_map, normalize_map
from .erase import erase, erased_share, keep_mask, keep_mask_like, resize_map
from .heads import CamHead, pre_logits_size
from .plain_weights import accept_plain_state_dict
from .sharding import gather_for_calls
from .stage import feature_info, find_stage
from .statistics import clean_statistics, frozen_statistics
from .timm_interface import DISTILLED, TimmInterface

__all__ = ['FocusNet', 'FocusOutput']

MAPS = ('cam', 'mean', 'random')
INTERPOLATIONS = ('bilinear', 'nearest')
BATCH_NORMS = ('shared', 'clean')
ERASED_BY = ('erased_head', 'main')


_THREE = (
    'A FocusNet in training gives three: main, side and erased logits, which timm_focus.FocusLoss takes. '
    "train_focus.py trains it; for a script that trains plain models, such as timm's train.py, leave out focus_ before "
    'the name.')


class FocusOutput(NamedTuple):
    """Logits of `FocusNet` in training: `main` and `side` `[B, K]`, `erased` `[n, K]` of the first n images.

    A branch that does not run is None.
    """
    main: Tensor
    side: Optional[Tensor]
    erased: Optional[Tensor]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Say what takes this output, where it is given to a loss or function of one tensor."""
        raise TypeError(f'{getattr(function, "__name__", function)} takes one tensor. {_THREE}')

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'FocusOutput' object has no attribute {name!r}. {_THREE}")


class FocusNet(TimmInterface):
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
        for key, share in (('focus_threshold', focus_threshold), ('focus_fraction', focus_fraction)):
            if isinstance(share, bool) or not isinstance(share, numbers.Real) or not 0 < share <= 1:
                raise ValueError(f'{key} is {share!r}: give a number above 0 and at most 1.')
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

        info = feature_info(backbone)
        self.stage = find_stage(info, focus_stage)
        self.threshold = float(focus_threshold)
        self.interpolation = focus_interpolation
        self.bn = focus_bn
        self.map = focus_map
        self.fraction = float(focus_fraction)
        self.recompute = bool(focus_recompute)
        self.erased_fraction = torch.zeros(())

        like = next(p for p in backbone.parameters() if p.is_floating_point())
        device, dtype = like.device, like.dtype
        self.backbone = backbone
        self.cam_head = CamHead(info[self.stage]['num_chs'], self.num_classes, focus_width, device, dtype)
        self.erased_head = nn.Linear(pre_logits_size(backbone), self.num_classes, device=device, dtype=dtype)
        self._focus_training = True
        # BatchNorm has nothing to normalise in one image whose map is one place
        self._least = 2 if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules()) else 1
        self._paused: Set[str] = set()  # parameters whose gradients a branch that does not run turned off
        self.set_branches(side=True, erased=True)
        self._model_args = dict(getattr(backbone, '_model_args', {}), **self.focus_args)
        self.register_load_state_dict_pre_hook(accept_plain_state_dict)

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
            raise ValueError(DISTILLED)
        gather_for_calls(self.backbone)
        main, side, keep = self._first_pass(x)
        return FocusOutput(main, side, None if keep is None else self._second_pass(x, keep))

    def _first_pass(self, x: Tensor) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
        """Main and side logits `[B, K]` of images, and what is kept of the first n of them, `[n, 1, H, W]`."""
        main, tap = self._recomputed(x) if self.recompute and self.erased_branch else self._main_and_tap(x)
        self._check_trainable(main)
        side = self.cam_head(tap) if self.side_branch else None
        if not self.erased_branch:
            return main, side, None
        n = min(max(self._least, round(self.fraction * x.shape[0])), x.shape[0])
        keep = self.keep_mask(tap[:n], main[:n].argmax(1), (x.shape[2], x.shape[3]))
        self.erased_fraction = erased_share(keep)
        return main, side, keep

    def _main_and_tap(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        # stop_early cuts Hiera's final feature short by default
        final, (tap,) = self.backbone.forward_intermediates(
            x, indices=[self.stage], norm=False, stop_early=False, output_fmt='NCHW')
        return self.backbone.forward_head(final), tap

    def _recomputed(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """`_main_and_tap` without its activations, which the backward pass computes once it has spent the others'."""
        if torch.compiler.is_compiling():  # a compiled graph recomputes without its side effects
            return checkpoint(self._main_and_tap, x, use_reentrant=False)
        return checkpoint(
            self._main_and_tap, x, use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), frozen_statistics(self.backbone)))

    def _second_pass(self, x: Tensor, keep: Tensor) -> Tensor:
        """Logits `[n, K]` of the erased images."""
        with clean_statistics(self.backbone) if self.bn == 'clean' else contextlib.nullcontext():
            final = self.backbone.forward_features(erase(x[:keep.shape[0]], keep))
            if self.erased_by == 'main':
                return self.backbone.forward_head(final)
            return self.erased_head(self.backbone.forward_head(final, pre_logits=True))

    @torch.no_grad()
    def activation_map(self, tap: Tensor, target: Tensor) -> Tensor:
        """Map that decides what is erased (Eq. 1), not normalised, in float32 or better, whatever the autocast.

        Args:
            tap: Feature at `stage`, `[B, C, h, w]`.
            target: Class of each map, `[B]`; in training the predicted ones.

        Returns:
            `[B, h, w]`: the channel mean for `focus_map='mean'`, else the class activation map.
        """
        return mean_activation_map(tap) if self.map == 'mean' else self.cam_head.activation_map(tap, target)

    @torch.no_grad()
    def keep_mask(
            self,
            tap: Tensor,
            target: Tensor,
            size: Sequence[int],
            threshold: Optional[float] = None,
    ) -> Tensor:
        """What is kept of the images (Eq. 2).

        Args:
            tap: Feature at `stage`, `[B, C, h, w]`.
            target: Class of each map, `[B]`.
            size: Height and width of the images.
            threshold: gamma; by default the model's.

        Returns:
            `[B, 1, H, W]` bool, True where the image is kept.
        """
        activation = normalize_map(self.activation_map(tap, target))
        keep = keep_mask(activation, size, self.threshold if threshold is None else threshold, self.interpolation)
        if self.map == 'random':
            keep = keep_mask_like(resize_map(torch.randn_like(activation), size), keep)
        return keep

    def extra_repr(self) -> str:
        return ', '.join(f'{k}={v!r}' for k, v in self.focus_args.items())
