"""What a network relies on in images, and what it answers without that ("See More for Scene", figure 2).

An explanation has a map of the class, the mask that keeps what is below gamma, the erased image, and the classifier's
answers to the image and to the erased image. The focus area comes with them; it needs no class.
"""
from typing import NamedTuple, Optional, Tuple, Union

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_focus.method.cam import normalize_map
from timm_focus.method.erase import erase, keep_mask, resize_map
from timm_focus.method import FocusNet
from timm_focus.utils.modes import evaluating

from .class_map import check_target, classifier_map
from .focus_area import FocusArea, focus_area, plain_model

__all__ = ['Explanation', 'explain']


class Explanation(NamedTuple):
    """What a network relies on in images.

    Attributes:
        map: Map of the class, not normalised, float32 `[B, h, w]`.
        kind: What made the map: 'cam_head', the CAM head of a focus model; 'mean', the channel mean of a focus model
            that erases by it; 'classifier' or 'gradient', see `classifier_map`.
        heat: The map from 0 to 1 at the size of the images, `[B, H, W]`.
        keep: Mask of the pixels that are kept, bool `[B, 1, H, W]`.
        erased: The images with all other pixels erased, `[B, C, H, W]`.
        area: The focus area, see `focus_area`.
        target: Class of each map, `[B]`.
        logits: Logits of the images, `[B, K]`.
        erased_logits: Logits of the erased images by the same classifier, `[B, K]`.
        threshold: gamma of Eq. 2.
    """
    map: Tensor
    kind: str
    heat: Tensor
    keep: Tensor
    erased: Tensor
    area: FocusArea
    target: Tensor
    logits: Tensor
    erased_logits: Tensor
    threshold: float


def explain(
        model: nn.Module,
        x: Tensor,
        threshold: Optional[float] = None,
        target: Union[None, int, Tensor] = None,
) -> Explanation:
    """Explain a model's answers to images, in evaluation; its mode is left as it was.

    A focus model is explained by the map and the mask of its training ('random' and 'grid' draw a new mask each time),
    any other model by `classifier_map`.

    Args:
        model: A focus model, or any with a `classifier_map`.
        x: Normalised images `[B, C, H, W]`, on the model's device.
        threshold: gamma of Eq. 2, in (0, 1]. By default that of a focus model, and 0.7 for other models.
        target: Class to explain, one for all images or `[B]`; by default the predicted classes.

    Raises:
        ValueError: The threshold is out of range, the model lacks a class, or it has no such map.
        ImportError: The map takes Grad-CAM, which is not installed.
    """
    model = unwrap_model(model)
    gamma = threshold  # None lets a focus model erase as it trains, which may be by a share
    if threshold is None:
        threshold = model.threshold if isinstance(model, FocusNet) else 0.7
    if not 0 < threshold <= 1:
        raise ValueError(f'threshold is {threshold!r}: give a number above 0 and at most 1.')
    if target is not None:
        target = torch.as_tensor(target, device=x.device).expand(len(x))
    with evaluating(model):
        if isinstance(model, FocusNet):
            plain = plain_model(model)
            found, kind, heat, keep, target, logits = _of_focus_model(model, x, gamma, target)
        else:
            plain = model
            found, logits, kind = classifier_map(model, x, target)
            target = logits.argmax(1) if target is None else target
            heat = resize_map(normalize_map(found), x.shape[-2:])
            keep = keep_mask(normalize_map(found), x.shape[-2:], threshold)
        erased = erase(x, keep)
        with torch.no_grad():
            erased_logits = plain(erased)
        area = focus_area(plain, x)
    return Explanation(found, kind, heat, keep, erased, area, target, logits, erased_logits, float(threshold))


@torch.no_grad()
def _of_focus_model(
        model: FocusNet,
        x: Tensor,
        threshold: Optional[float],
        target: Optional[Tensor],
) -> Tuple[Tensor, str, Tensor, Tensor, Tensor, Tensor]:
    final, (tap,) = model.backbone.forward_intermediates(
        x, indices=[model.stage], norm=False, stop_early=False, output_fmt='NCHW')
    logits = model.backbone.forward_head(final)
    target = check_target(target, logits)
    found = model.activation_map(tap, target).float()
    heat = resize_map(normalize_map(found), x.shape[-2:], model.interpolation)
    keep = model.keep_mask(tap, target, x.shape[-2:], threshold)
    return found, 'mean' if model.map_kind == 'mean' else 'cam_head', heat, keep, target, logits
