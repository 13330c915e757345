"""What a network relies on in images, and what it says of them without: the picture of "See More for Scene", figure 2.

A map of the class, the area that is kept where the map is below gamma, the image erased elsewhere, and the classifier's
answers to both; beside them the focus area, which asks for no class.
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
        map: Map of the class, as it comes, float32 `[B, h, w]`.
        kind: Of what it is: 'cam_head', the head of a focus model; 'mean', the channel mean of a focus model that
            erases by it; 'classifier' and 'gradient', see `classifier_map`.
        heat: The map from 0 to 1 at the size of the images, `[B, H, W]`.
        keep: What is kept, bool `[B, 1, H, W]`.
        erased: The images without the rest, `[B, C, H, W]`.
        area: The focus area, see `focus_area`.
        target: Class of each map, `[B]`.
        logits: The classifier on the images, `[B, K]`.
        erased_logits: The same classifier on the erased images, `[B, K]`.
        threshold: gamma.
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

    A focus model is shown as it trains: the map and the mask are those of its CAM head ('random' and 'grid' draw a
    mask each time). Of any other model the map is `classifier_map`.

    Args:
        model: A focus model, or any with a `classifier_map`.
        x: Normalised images `[B, C, H, W]`, on the model's device.
        threshold: gamma of Eq. 2, in (0, 1]. By default that of a focus model, 0.7 of others.
        target: Class to explain, one or `[B]`; the predicted ones by default.

    Raises:
        ValueError: The threshold or a class is none, or the model has no such map.
        ImportError: The map takes Grad-CAM, and that is not installed.
    """
    model = unwrap_model(model)
    gamma = threshold  # of a focus model that is shown as it trains, None: it may erase a share in its place
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
