"""ShuffleNetV2 for timm: torchvision's network and weights, with the interface that timm's models share.

Source: `ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design`, Ma et al., ECCV 2018,
https://arxiv.org/abs/1807.11164
"""
from contextlib import nullcontext
from typing import Any, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import create_classifier, get_device_dtype
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import MATCH_PREV_GROUP
from torchvision.models import (
    ShuffleNet_V2_X0_5_Weights, ShuffleNet_V2_X1_0_Weights, ShuffleNet_V2_X1_5_Weights, ShuffleNet_V2_X2_0_Weights,
    WeightsEnum,
)
from torchvision.models.shufflenetv2 import ShuffleNetV2 as TorchvisionShuffleNetV2

__all__ = ['ShuffleNetV2']


class ShuffleNetV2(TorchvisionShuffleNetV2):
    """torchvision's ShuffleNetV2 (Ma et al., ECCV 2018) as a timm model.

    The layers, their names and their initialisation are torchvision's, so state dicts load strictly both ways and the
    same weights give the same output. Images `[B, C, H, W]` become features `[B, num_features, H/32, W/32]` and then
    logits `[B, num_classes]`.

    Args:
        stages_repeats: Number of blocks in each of the three stages.
        stages_out_channels: Channels of the stem, the three stages and the last convolution (`num_features`).
        num_classes: Number of classes, 0 for no classifier.
        in_chans: Number of image channels.
        global_pool: timm's pooling before the classifier: 'avg', 'max', 'avgmax', 'catavgmax', or '' for none.
        drop_rate: Dropout before the classifier, in training.
        device: Device to create the parameters on.
        dtype: Type to create the parameters in.

    Raises:
        ValueError: If the stages are not three repeats and five widths, or a number is out of its range.
    """
    fc: nn.Module
    global_pool: Any
    head_hidden_size: int
    _taps = ('conv1', 'maxpool', 'stage2', 'stage3', 'stage4')  # the modules whose outputs are the features

    def __init__(
            self,
            stages_repeats: Sequence[int],
            stages_out_channels: Sequence[int],
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            drop_rate: float = 0.,
            device=None,
            dtype=None,
    ) -> None:
        if num_classes < 0:
            raise ValueError(f'num_classes must be 0 or more, got {num_classes}.')
        if in_chans < 1:
            raise ValueError(f'in_chans must be 1 or more, got {in_chans}.')
        if not 0 <= drop_rate <= 1:
            raise ValueError(f'drop_rate must lie in [0, 1], got {drop_rate}.')
        # torchvision's constructor takes no device, so the context sets it.
        with nullcontext() if device is None else torch.device(device):
            super().__init__(list(stages_repeats), list(stages_out_channels), num_classes=max(num_classes, 1))
            if in_chans != 3:
                self.conv1[0] = nn.Conv2d(in_chans, stages_out_channels[0], 3, 2, 1, bias=False)
        if dtype is not None:
            self.to(dtype=dtype)

        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        stem, *stages, self.num_features = stages_out_channels
        self.feature_info = [
            dict(num_chs=chs, reduction=2 ** i, module=name)
            for i, (chs, name) in enumerate(zip((stem, stem, *stages), self._taps), start=1)
        ]
        fc = self.fc
        self.reset_classifier(num_classes, global_pool)
        if num_classes and self.head_hidden_size == self.num_features:
            self.fc = fc  # keep torchvision's classifier, so that a seed draws exactly torchvision's weights

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that put the parameters in order from stem to classifier, by stage (`coarse`) or by block."""
        return dict(
            stem=r'^conv1',
            blocks=[
                (r'^stage(\d+)' if coarse else r'^stage(\d+)\.(\d+)', None),
                (r'^conv5', MATCH_PREV_GROUP),  # with the last block, so that the classifier has a group of its own
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the blocks' activations in the backward pass instead of keeping them, or switch this off."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The classifier: a linear layer, or an identity where there are no classes."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: Number of classes, 0 for no classifier.
            global_pool: New pooling, None to keep the current one.

        Raises:
            ValueError: If num_classes is negative.
        """
        if num_classes < 0:
            raise ValueError(f'num_classes must be 0 or more, got {num_classes}.')
        self.num_classes = num_classes
        if global_pool is None:
            global_pool = self.global_pool.pool_type
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, **get_device_dtype(self))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """The features at reductions 2, 4, 8, 16 and 32, before the last convolution.

        Args:
            x: Images `[B, C, H, W]`.
            indices: The last n features if an int, all if None, else those at the indices.
            norm: Part of timm's interface; there is no final norm to apply.
            stop_early: Run no further than the last feature asked for.
            output_fmt: 'NCHW' only.
            intermediates_only: Return only the list of features.

        Returns:
            The final features, as `forward_features` gives them (or the last that were computed, when stopped early),
            and the list of features `[B, num_chs, H/reduction, W/reduction]`; or the list alone.

        Raises:
            ValueError: If output_fmt is not 'NCHW'.
        """
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}.")
        take_indices, max_index = feature_take_indices(len(self._taps), indices)
        intermediates = []
        last = max_index if stop_early else len(self._taps) - 1
        for i, name in enumerate(self._taps[:last + 1]):
            layer = getattr(self, name)
            x = checkpoint_seq(layer, x) if self.grad_checkpointing and name.startswith('stage') else layer(x)
            if i in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        if last == len(self._taps) - 1:
            x = self.conv5(x)
        return x, intermediates

    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Remove the layers that the features at `indices` do not need.

        Args:
            indices: The last n features if an int, else those at the indices.
            prune_norm: Remove the last convolution, which comes after the last feature.
            prune_head: Remove the last convolution, the pooling and the classifier.

        Returns:
            The indices that were kept, counted from the first feature.
        """
        take_indices, max_index = feature_take_indices(len(self._taps), indices)
        for name in self._taps[max_index + 1:]:
            setattr(self, name, nn.Sequential())  # empty rather than an identity: checkpoint_seq iterates over it
        if prune_norm or prune_head or max_index < len(self._taps) - 1:
            # The features now end at the last one kept, for which the classifier has the wrong width.
            self.conv5 = nn.Sequential()
            self.num_features = self.feature_info[max_index]['num_chs']
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to features `[B, num_features, H/32, W/32]`."""
        x = self.conv1(x)
        x = self.maxpool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.stage2, self.stage3, self.stage4], x, flatten=True)
        else:
            x = self.stage2(x)
            x = self.stage3(x)
            x = self.stage4(x)
        return self.conv5(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features `[B, num_features, H, W]` to logits `[B, num_classes]`, or what precedes them
        `[B, head_hidden_size]`."""
        x = self.global_pool(x)
        if self.drop_rate > 0.:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` to logits `[B, num_classes]`."""
        return self.forward_head(self.forward_features(x))


def _cfg(weights: WeightsEnum) -> dict[str, Any]:
    """timm's configuration of torchvision's published weights, taken from their transforms."""
    preset = weights.transforms()
    crop, resize = preset.crop_size[0], preset.resize_size[0]
    return dict(
        url=weights.url, num_classes=len(weights.meta['categories']), input_size=(3, crop, crop), pool_size=(7, 7),
        crop_pct=crop / resize, interpolation=preset.interpolation.value, mean=tuple(preset.mean),
        std=tuple(preset.std), first_conv='conv1.0', classifier='fc', license='bsd-3-clause',
        origin_url='https://github.com/pytorch/vision', paper_ids='arXiv:1807.11164',
    )


default_cfgs = generate_default_cfgs({
    'shufflenetv2_x0_5.tv_in1k': _cfg(ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1),
    'shufflenetv2_x1_0.tv_in1k': _cfg(ShuffleNet_V2_X1_0_Weights.IMAGENET1K_V1),
    'shufflenetv2_x1_5.tv_in1k': _cfg(ShuffleNet_V2_X1_5_Weights.IMAGENET1K_V1),
    'shufflenetv2_x2_0.tv_in1k': _cfg(ShuffleNet_V2_X2_0_Weights.IMAGENET1K_V1),
})


def _create_shufflenetv2(variant: str, pretrained: bool, channels: Sequence[int], **kwargs) -> ShuffleNetV2:
    model_args = dict(stages_repeats=(4, 8, 4), stages_out_channels=channels)
    return build_model_with_cfg(ShuffleNetV2, variant, pretrained, **dict(model_args, **kwargs))


@register_model
def shufflenetv2_x0_5(pretrained: bool = False, **kwargs) -> ShuffleNetV2:
    """ShuffleNetV2 at half width: 1.4 million parameters, 0.04 GMACs."""
    return _create_shufflenetv2('shufflenetv2_x0_5', pretrained, (24, 48, 96, 192, 1024), **kwargs)


@register_model
def shufflenetv2_x1_0(pretrained: bool = False, **kwargs) -> ShuffleNetV2:
    """ShuffleNetV2: 2.3 million parameters, 0.15 GMACs."""
    return _create_shufflenetv2('shufflenetv2_x1_0', pretrained, (24, 116, 232, 464, 1024), **kwargs)


@register_model
def shufflenetv2_x1_5(pretrained: bool = False, **kwargs) -> ShuffleNetV2:
    """ShuffleNetV2 at one and a half times the width: 3.5 million parameters, 0.30 GMACs."""
    return _create_shufflenetv2('shufflenetv2_x1_5', pretrained, (24, 176, 352, 704, 1024), **kwargs)


@register_model
def shufflenetv2_x2_0(pretrained: bool = False, **kwargs) -> ShuffleNetV2:
    """ShuffleNetV2 at twice the width: 7.4 million parameters, 0.58 GMACs."""
    return _create_shufflenetv2('shufflenetv2_x2_0', pretrained, (24, 244, 488, 976, 2048), **kwargs)
