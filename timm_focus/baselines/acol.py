"""ACoL (Adversarial Complementary Learning): two classifiers; the second does not see what the first relies on.

What it does
    Classifier A has three convolutions on the last feature map. It gives a map for each class; the means of the maps
    are its logits. The feature map is set to zero where A's map of the true class is high, and goes to classifier B,
    built like A. So B, and the features with it, learn to recognise the class by other regions. Both classifiers have
    the loss of plain training, and the sum is minimised. No gradient goes through the choice of the region.

    In evaluation A classifies. **The result is not the plain timm model**: it is `AcolNet`, the timm model's features
    with head A in place of its classifier. `create_acol` loads its weights, so timm_focus is needed. Head B only exists
    in training.

Hyper-parameters
    threshold  0.6   erase where A's map of the true class, scaled to 0..1 in each image, reaches it.
    width      1024  channels of the convolutions of the heads.

Cost
    One forward and one backward pass of the network and of two heads, each with two 3x3 convolutions and a 1x1
    convolution. On maps of 7x7, a head takes 0.7 (512 channels, ResNet18) or 1.4 (2048, ResNet50) billion multiply-adds
    and 14 or 28 million parameters; the trained model keeps those of A. For ResNet18, the two heads cost three quarters
    of a pass.

When not to use it
    When the result must be the plain model, or as fast. With labels mixed by mixup or CutMix, where no single class is
    the true one (refused). With networks without a map of channels, such as vision transformers (refused).

Source
    X. Zhang, Y. Wei, J. Feng, Y. Yang and T. Huang, 'Adversarial Complementary Learning for Weakly Supervised Object
    Localization', CVPR 2018; here as a baseline that 'See More for Scene' compares with.
"""
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import timm
import torch
from timm.models import load_checkpoint
from torch import Tensor, nn

from .maps import trace_maps

__all__ = ['ACoL', 'AcolNet', 'AcolOutput', 'MapHead', 'create_acol', 'erase_class']

THRESHOLD = 0.6
WIDTH = 1024
EPSILON = 1e-5


class AcolOutput(NamedTuple):
    """Output of `ACoL` in training: logits `a` and `b` `[B, K]`, and the erased share of the feature map, `[]`."""
    a: Tensor
    b: Tensor
    erased_fraction: Tensor


@torch.no_grad()
def erase_class(maps: Tensor, target: Tensor, threshold: float = THRESHOLD) -> Tensor:
    """Mask that keeps the feature map where the map of a class is low.

    Args:
        maps: maps of all classes `[B, K, h, w]`.
        target: class of each image `[B]`.
        threshold: erase where the map, scaled to 0..1 in each image, reaches it. A flat map erases nothing.

    Returns:
        Booleans `[B, 1, h, w]`, True where the feature is kept.
    """
    one = maps.gather(1, target[:, None, None, None].expand(-1, 1, *maps.shape[2:])).float()
    low, high = one.amin((2, 3), keepdim=True), one.amax((2, 3), keepdim=True)
    return (one - low) / (high - low + EPSILON) < threshold


class MapHead(nn.Sequential):
    """A convolutional classifier: features `[B, C, h, w]` to maps of the classes `[B, K, h, w]`.

    The means of the maps are the logits.

    Args:
        in_chs: channels of the features.
        num_classes: number of classes.
        width: channels of the two hidden convolutions.
    """

    def __init__(self, in_chs: int, num_classes: int, width: int = WIDTH, device=None, dtype=None):
        factory = dict(device=device, dtype=dtype)
        super().__init__(
            nn.Conv2d(in_chs, width, 3, padding=1, **factory), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, **factory), nn.ReLU(inplace=True),
            nn.Conv2d(width, num_classes, 1, **factory))


def _of_backbone(name: str) -> property:
    return property(lambda self: getattr(self.backbone, name))


class AcolNet(nn.Module):
    """A timm model's features with a convolutional classifier: the network that ACoL evaluates and keeps.

    Args:
        backbone: a convolutional timm model without a classifier, `timm.create_model(name, num_classes=0)`.
        num_classes: number of classes.
        width: channels of the head's hidden convolutions.

    Raises:
        ValueError: if the backbone has a classifier, which nothing would train, or gives no feature map.
    """

    def __init__(self, backbone: nn.Module, num_classes: int, width: int = WIDTH):
        super().__init__()
        if getattr(backbone, 'num_classes', 0):
            raise ValueError(f'The backbone has a classifier of {backbone.num_classes} classes, in whose place ACoL '
                             'puts its own: make it with num_classes=0.')
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f'num_classes is {num_classes!r}: give 1 or more.')
        final, _, _ = trace_maps(backbone)
        like = next(p for p in backbone.parameters() if p.is_floating_point())
        self.backbone = backbone
        self.num_classes = num_classes
        self.num_features = final.shape[1]
        self.head_hidden_size = width
        self.head = MapHead(final.shape[1], num_classes, width, device=like.device, dtype=like.dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` to the last feature map `[B, C, h, w]`."""
        return self.backbone.forward_features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features `[B, C, h, w]` to logits `[B, K]`, or to the pre-logits `[B, head_hidden_size]`."""
        for layer in list(self.head)[:-1] if pre_logits else self.head:
            x = layer(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, 3, H, W]` to logits `[B, K]`."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last convolution of the head."""
        return self.head[-1]

    # the part of timm's model interface that does not concern the classifier

    feature_info = _of_backbone('feature_info')
    pretrained_cfg = _of_backbone('pretrained_cfg')
    default_cfg = _of_backbone('default_cfg')

    @property
    def _traits(self) -> Dict[str, Any]:  # where timm's get_model_input_config looks
        return getattr(self.backbone, '_traits', {})

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Union[List[Tensor], Tuple]:
        return self.backbone.forward_intermediates(x, *args, **kwargs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.backbone.set_grad_checkpointing(enable)


class ACoL(nn.Module):
    """A timm model with ACoL's two heads.

    In training, `model(x, target)` takes images `[B, 3, H, W]` and classes `[B]` and returns an `AcolOutput`. In
    evaluation, `model(x)` returns the logits `[B, K]` of `model.network`, the part that is kept.

    Args:
        network: features and head A.
        threshold: erase from B's features where A's map of the true class reaches it; above 0 and at most 1.

    Raises:
        ValueError: if the threshold is out of its range.
    """

    def __init__(self, network: AcolNet, threshold: float = THRESHOLD):
        super().__init__()
        if not 0 < threshold <= 1:
            raise ValueError(f'threshold must lie above 0 and be at most 1, got {threshold!r}.')
        self.network = network
        head: Any = network.head
        self.head_b = MapHead(
            head[0].in_channels, network.num_classes, head[0].out_channels,
            device=head[0].weight.device, dtype=head[0].weight.dtype)
        self.threshold = threshold
        final, _, twin = trace_maps(network.backbone)
        names, parameters = zip(*twin.named_parameters())
        used = torch.autograd.grad(final.sum(), parameters, allow_unused=True)
        idle = {name for name, gradient in zip(names, used) if gradient is None}
        for name, p in network.backbone.named_parameters():
            if name in idle:  # unused parts of the timm model's head; DDP would wait for their gradients
                p.requires_grad_(False)

    def forward(self, x: Tensor, target: Optional[Tensor] = None) -> Union[Tensor, AcolOutput]:
        """Return `AcolOutput` for images `[B, 3, H, W]` and classes `[B]` in training, logits `[B, K]` in evaluation.

        Raises:
            ValueError: in training, if the targets are not class indices.
        """
        if not self.training:
            return self.network(x)
        if target is None or target.ndim != 1:
            given = 'no targets' if target is None else f'targets of shape {tuple(target.shape)}'
            raise ValueError(
                f'ACoL erases by the true class of each image, so it trains on classes [B], not on {given}.')
        feature = self.network.forward_features(x)
        maps = self.network.head(feature)
        keep = erase_class(maps, target, self.threshold)
        b = self.head_b(feature * keep).mean((2, 3))
        return AcolOutput(maps.mean((2, 3)), b, 1 - keep.float().mean())

    num_classes = property(lambda self: self.network.num_classes)
    feature_info = property(lambda self: self.network.feature_info)
    pretrained_cfg = property(lambda self: self.network.pretrained_cfg)
    default_cfg = property(lambda self: self.network.default_cfg)
    _traits = property(lambda self: self.network._traits)

    def get_classifier(self) -> Tuple[nn.Module, nn.Module]:
        """The last convolutions of both heads."""
        return self.network.get_classifier(), self.head_b[-1]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations of the backbone in the backward pass, as timm's models do."""
        self.network.set_grad_checkpointing(enable)

    def extra_repr(self) -> str:
        return f'threshold={self.threshold}'


def create_acol(
        name: str,
        num_classes: int = 1000,
        checkpoint_path: str = '',
        width: int = WIDTH,
        **kwargs: Any,
) -> AcolNet:
    """Make the network that ACoL trains, as `timm.create_model` makes the plain model.

    Args:
        name: timm's name of the backbone.
        num_classes: number of classes.
        checkpoint_path: checkpoint of a run with `--method acol`, whose weights are loaded.
        width: channels of the head's hidden convolutions.
        **kwargs: arguments of `timm.create_model`.

    Raises:
        ValueError: if the model is not convolutional.
    """
    network = AcolNet(timm.create_model(name, num_classes=0, **kwargs), num_classes, width)
    if checkpoint_path:
        load_checkpoint(network, checkpoint_path)
    return network
