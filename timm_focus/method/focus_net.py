"""FocusNet: a timm model and the two heads that exist only while it trains ("See More for Scene", section 4).

The way of a batch in training, one forward:

    x [B,3,H,W] -> backbone -> main [B,K]                  what the network says of the image
                     | tap [B,C,h,w] at `stage`
                     +-> cam_head -> side [B,K]            trains the class activation map
                           | map of the class that main predicts, without gradient
    x * (map < threshold) -> backbone -> erased [n,K]      what it says without what it relied on

What else may erase is in erase.py, and what a second pass may leave out in tokens.py.

In evaluation it is the backbone and nothing else.
"""
import contextlib
import math
import warnings
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple, Union, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from timm_focus.utils.renamed import renamed

from .cam import mean_activation_map, normalize_map
from .checks import check_backbone, check_settings
from .erase import (
    erase, erased_share, keep_mask, keep_mask_like, keep_mask_share, random_grid, resize_image, resize_map)
from .heads import CamHead, classifiers, nothing, pre_logits_size
from .plain_weights import accept_plain_state_dict
from .sharding import gather_for_calls
from .sizes import check_other_sizes, patches
from .stage import feature_info, find_stage
from .statistics import clean_statistics, frozen_statistics
from .timm_interface import DISTILLED, TimmInterface
from .tokens import check_tokens, forward_tokens, keep_tokens, token_grid

__all__ = ['FocusNet', 'FocusOutput']

SCORERS = ('erased_head', 'main')
SHARE = 0.5  # default share of a grid's cells and of tokens: gamma does not say how many to erase


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
        """Refuse a loss or function of one tensor, and say what takes this output."""
        raise TypeError(f'{getattr(function, "__name__", function)} takes one tensor. {_THREE}')

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"'FocusOutput' object has no attribute {name!r}. {_THREE}")


class FocusNet(TimmInterface):
    """A timm model with the training-time heads of "See More for Scene" (section 4).

    In training `model(x)` of images `[B, C, H, W]` is a `FocusOutput(main, side, erased)`; in evaluation, and after
    `set_focus_training(False)`, it is `backbone(x)`. The backbone stays an untouched plain timm model:
    `model.backbone`, or a fresh copy by `export_backbone(model)`.

    For two backward passes in turn, `model(x, in_turn=True)` in training is the first pass alone, (main, side, keep),
    and `model(x, keep)` the second, erased.

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
            by its own batch and leaves the running statistics to the original images. By default 'shared', but 'clean'
            where erased images are smaller, whose statistics are others.
        focus_map: What erases: 'cam', the class activation map of the predicted class; 'mean', the channel mean of the
            feature; 'random', a smooth random field that erases as much of each image as the CAM would; 'grid', random
            cells of a grid of 7 x 7, which needs no map.
        focus_share: Share of each image, between 0 and 1, that is erased in place of what reaches gamma. By default 0.5
            of a grid and of tokens, and else what reaches gamma.
        focus_size: Side of the erased image over that of the original, in (0, 1].
        focus_drop_tokens: Leave the tokens of what is erased out of a transformer's second pass, in place of erasing
            pixels; it costs the share of the tokens that stay.
        focus_fraction: Share of the batch, in (0, 1], that is erased and passes a second time: its first rows. A step
            costs 1 + f passes. Batches are shuffled, so the expected loss and gradient are those of f = 1, over fewer
            images and so with more variance; but BatchNorm normalises erased images over those that there are.
        focus_recompute: Keep the activations of one pass, not of two: those of the first are computed again in the
            backward pass, for one more forward in time. Gradients and running statistics are the same. `FocusTask` does
            without the forward where its loss lets it.

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
            focus_bn: Optional[str] = None,
            focus_map: str = 'cam',
            focus_share: Optional[float] = None,
            focus_size: float = 1.,
            focus_drop_tokens: bool = False,
            focus_fraction: float = 1.,
            focus_recompute: bool = False,
    ):
        super().__init__()
        check_backbone(backbone)
        if focus_bn is None:
            focus_bn = 'clean' if focus_size != 1 else 'shared'
        check_settings(focus_threshold, focus_width, focus_interpolation, focus_bn, focus_map, focus_share,
                       focus_fraction, focus_size)
        if focus_size < 1:
            check_other_sizes(backbone)
        if focus_drop_tokens:
            check_tokens(backbone)
            if focus_size < 1:
                raise ValueError('focus_drop_tokens and focus_size both make the second pass smaller: give one.')

        info = feature_info(backbone)
        self.stage = find_stage(info, focus_stage)
        self.threshold = float(focus_threshold)
        self.interpolation = focus_interpolation
        self.bn = focus_bn
        self.map_kind = focus_map
        self.share = SHARE if focus_share is None and (focus_map == 'grid' or focus_drop_tokens) else focus_share
        self.size = float(focus_size)
        self.drop_tokens = bool(focus_drop_tokens)
        self.batch_fraction = float(focus_fraction)
        self.recompute = bool(focus_recompute)
        self.erased_fraction = torch.zeros(())

        like = next(p for p in backbone.parameters() if p.is_floating_point())
        device, dtype = like.device, like.dtype
        self.backbone = backbone
        self.cam_head = CamHead(info[self.stage]['num_chs'], self.num_classes, focus_width, device, dtype)
        self.erased_head = nn.Linear(pre_logits_size(backbone), self.num_classes, device=device, dtype=dtype)
        self._focus_training = True
        self.erases_now = True
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
            focus_map=self.map_kind,
            focus_share=self.share,
            focus_size=self.size,
            focus_drop_tokens=self.drop_tokens,
            focus_fraction=self.batch_fraction,
            focus_recompute=self.recompute,
        )

    map = renamed('map_kind')
    fraction = renamed('batch_fraction')
    erased_by = renamed('scored_by')

    def set_branches(
            self,
            side: bool = True,
            erased: bool = True,
            scored_by: str = 'erased_head',
            apart: bool = False,
    ) -> None:
        """Choose what runs in training: what the loss does not use is not computed and asks for no gradient.

        Args:
            side: Whether the CAM head classifies.
            erased: Whether images are erased and pass a second time.
            scored_by: Which classifier scores them: 'erased_head', or 'main' for attention mining (Table 6).
            apart: Whether the CAM head learns beside the backbone, which its gradient does not reach.

        Raises:
            ValueError: `scored_by` is unknown.
        """
        if scored_by not in SCORERS:
            raise ValueError(f'scored_by is {scored_by!r}: choose one of {", ".join(map(repr, SCORERS))}.')
        self.side_branch = bool(side)
        self.erased_branch = bool(erased)
        self.scored_by = scored_by
        self.apart = bool(apart)
        if self.erased_branch and not self.side_branch and self.map_kind in ('cam', 'random'):
            warnings.warn(
                'The side loss has no weight, and images are erased by the class activation map, which then comes from '
                "a CAM head that nothing trains: give it some, or erase by another map, such as focus_map='mean'.",
                stacklevel=2)
        trained = {'cam_head': self.side_branch, 'erased_head': self.erased_branch and scored_by == 'erased_head'}
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

    def erase_in_this_step(self, enable: bool = True) -> None:
        """Choose whether the next steps erase images, if images are erased at all."""
        self.erases_now = bool(enable)

    def _check_trainable(self, main: Tensor) -> None:
        if not self.num_classes:
            raise ValueError('The model has no classifier (num_classes is 0): call reset_classifier before training.')
        if main.ndim != 2:
            raise ValueError(
                f'The main logits have {main.ndim} dimensions, not [B, K]: '
                "set the model's global_pool before training.")

    def forward(self, x: Tensor, keep: Optional[Tensor] = None, in_turn: bool = False) -> Any:
        """`FocusOutput` of images `[B, C, H, W]` in training, the backbone's logits `[B, K]` in evaluation.

        Args:
            x: Images.
            keep: What is kept of them, in training: the second pass alone, its logits `[n, K]`.
            in_turn: In training, the first pass alone: main and side logits, and what is kept.

        Raises:
            ValueError: In training, of a model that cannot be focus-trained as it stands.
        """
        if not (self.training and self._focus_training):
            return self.backbone(x)
        if getattr(self.backbone, 'distilled_training', False):
            raise ValueError(DISTILLED)
        gather_for_calls(self.backbone)
        if keep is not None:
            return self._second_pass(x, keep) + nothing(self._idle_in_second_pass(), like=x)
        main, side, keep = self._first_pass(x, recompute=self.recompute and not in_turn)
        if in_turn:
            return main, side, keep
        return FocusOutput(main, side, None if keep is None else self._second_pass(x, keep))

    def _first_pass(self, x: Tensor, recompute: bool = False) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
        """Main and side logits `[B, K]` of images, and what is kept of the first n of them, if they are erased."""
        erases = self.erased_branch and self.erases_now
        main, tap = self._recomputed(x) if recompute and erases else self._main_and_tap(x)
        self._check_trainable(main)
        side = self.cam_head(tap.detach() if self.apart else tap) if self.side_branch else None
        if erases:
            return main, side, self._what_is_kept(x, tap, main)
        return main + nothing([self.erased_head], like=main) if self.erased_branch else main, side, None

    def _what_is_kept(self, x: Tensor, tap: Tensor, main: Tensor) -> Tensor:
        """What is kept of the first n images: a mask `[n, 1, H, W]` at their size, or indices of tokens `[n, k]`."""
        n = min(max(self._least, round(self.batch_fraction * x.shape[0])), x.shape[0])
        tap, target, size = tap[:n], main[:n].argmax(1), (x.shape[2], x.shape[3])
        if self.drop_tokens:
            keep = self.keep_tokens(tap, target, size)
            self.erased_fraction = main.new_full(
                (), 1 - keep.shape[1] / math.prod(token_grid(self.backbone, size)), dtype=torch.float32)
        else:
            keep = self.keep_mask(tap, target, self.erased_size(size))
            self.erased_fraction = erased_share(keep)
        return keep

    def erased_size(self, size: Sequence[int]) -> Sequence[int]:
        """Height and width of the erased image, from those of the original; whole patches where a model has them."""
        if self.size == 1:
            return size
        return [max(1, round(self.size * side / p)) * p for side, p in zip(size, patches(self.backbone))]

    def _idle_in_second_pass(self) -> List[nn.Module]:
        """Modules that the first pass trains and the second does not use."""
        return [self.cam_head, *(classifiers(self.backbone) if self.scored_by == 'erased_head' else [])]

    def _main_and_tap(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        # stop_early cuts Hiera's final feature short by default
        final, (tap,) = self.backbone.forward_intermediates(
            x, indices=[self.stage], norm=False, stop_early=False, output_fmt='NCHW')
        return self.backbone.forward_head(final), tap

    def _recomputed(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        """`_main_and_tap` that keeps no activations: the backward pass computes them again, after the second pass's."""
        if torch.compiler.is_compiling():  # a compiled graph recomputes without its side effects
            return checkpoint(self._main_and_tap, x, use_reentrant=False)
        return checkpoint(
            self._main_and_tap, x, use_reentrant=False,
            context_fn=lambda: (contextlib.nullcontext(), frozen_statistics(self.backbone)))

    def _second_pass(self, x: Tensor, keep: Tensor) -> Tensor:
        """Logits `[n, K]` of the erased images."""
        x = x[:keep.shape[0]]
        with clean_statistics(self.backbone) if self.bn == 'clean' else contextlib.nullcontext():
            if self.drop_tokens:
                final = forward_tokens(self.backbone, x, keep)
            else:
                final = self.backbone.forward_features(erase(resize_image(x, keep.shape[-2:]), keep))
            if self.scored_by == 'main':
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
        return mean_activation_map(tap) if self.map_kind == 'mean' else self.cam_head.activation_map(tap, target)

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
            threshold: gamma; by default the model's, or the share that is erased in its place.

        Returns:
            `[B, 1, H, W]` bool, True where the image is kept.
        """
        if self.map_kind == 'grid':
            return random_grid(len(tap), size, cast(float, self.share), tap.device)
        activation = normalize_map(self.activation_map(tap, target))
        if self.share is not None and threshold is None:
            score = torch.randn_like(activation) if self.map_kind == 'random' else activation
            return keep_mask_share(resize_map(score, size, self.interpolation), self.share)
        keep = keep_mask(activation, size, self.threshold if threshold is None else threshold, self.interpolation)
        if self.map_kind == 'random':
            keep = keep_mask_like(resize_map(torch.randn_like(activation), size), keep)
        return keep

    @torch.no_grad()
    def keep_tokens(self, tap: Tensor, target: Tensor, size: Sequence[int]) -> Tensor:
        """Which tokens are kept of images, as `keep_mask` says what is kept of their pixels: indices `[B, k]`."""
        grid = token_grid(self.backbone, size)
        if self.map_kind == 'grid':
            return keep_tokens(torch.rand(len(tap), *grid, device=tap.device), cast(float, self.share))
        activation = self.activation_map(tap, target)
        score = torch.randn_like(activation) if self.map_kind == 'random' else activation
        return keep_tokens(resize_map(score, grid), cast(float, self.share))

    def extra_repr(self) -> str:
        return ', '.join(f'{k}={v!r}' for k, v in self.focus_args.items())
