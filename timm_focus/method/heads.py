"""The heads that exist only while a model trains ("See More for Scene", section 4)."""
from typing import Any, List, Optional

import torch
from torch import Tensor, nn

from .cam import class_activation_map, class_weights

__all__ = ['HEADS', 'CamHead', 'classifiers', 'copy_classifier', 'nothing', 'pre_logits_size']

HEADS = ('cam_head', 'erased_head')  # of a FocusNet, beside its backbone


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


def pre_logits_size(backbone: Any) -> int:
    """Return the width of `forward_head(pre_logits=True)`. A pool that concatenates doubles what the model says."""
    classifier = backbone.get_classifier()
    return classifier.in_features if isinstance(classifier, nn.Linear) else backbone.head_hidden_size


def classifiers(model: nn.Module) -> List[Any]:
    """Return the classifiers of a timm model: one, two for a distilled model, none if the model does not name them."""
    own = model.get_classifier() if hasattr(model, 'get_classifier') else ()
    return list(own) if isinstance(own, (tuple, list, nn.ModuleList)) else [own]


@torch.no_grad()
def copy_classifier(backbone: nn.Module, head: nn.Linear) -> None:
    """Give a head the weights of a backbone's classifier, a linear layer or a convolution that is one.

    Raises:
        ValueError: The classifier is no such layer.
    """
    own = classifiers(backbone)
    weight = getattr(own[0], 'weight', None) if len(own) == 1 else None
    if not isinstance(weight, Tensor) or weight.flatten(1).shape != head.weight.shape:
        raise ValueError(f'{type(backbone).__name__} is not classified by one linear layer, of which there could be a '
                         'copy: let the erased head begin anew.')
    head.weight.copy_(weight.flatten(1))
    if own[0].bias is None:
        head.bias.zero_()
    else:
        head.bias.copy_(own[0].bias)


def nothing(modules: List[Any], like: Tensor) -> Tensor:
    """Return a 0 that depends on modules without a part in a pass, as DDP waits for a gradient of every parameter."""
    zero = like.new_zeros(())
    for p in (p for module in modules for p in module.parameters() if p.requires_grad):
        zero = zero + 0 * p.sum().to(like.dtype)
    return zero
