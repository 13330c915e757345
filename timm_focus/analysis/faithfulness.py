"""Accuracy under erasing: how much a classifier needs of what its class activation map says it looks at.

Of each image the highest part of the map of the predicted class is erased, and for comparison smooth random regions of
exactly the same share. The more a classifier loses by the first than by the second, the more it relies on few regions;
one that looks at more of the picture loses less ("See More for Scene", section 4, erases in training what relies on
such regions).
"""
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from timm_focus.method.erase import erase, resize_map
from timm_focus.utils.modes import evaluating

from .class_map import classifier_map

__all__ = ['Faithfulness', 'erase_highest', 'faithfulness', 'pixel_rank', 'random_maps']


class Faithfulness(NamedTuple):
    """What a classifier says of N images, whole and under S shares of erasing, on the CPU.

    Attributes:
        target: True classes, `[N]`.
        prediction: Classes with the highest logit, `[N]`.
        in_top5: Whether the true class is among the five highest logits, or all if they are fewer, bool `[N]`.
        cam: Whether the prediction is right with the highest of the class activation map erased, bool `[S, N]`.
        random: Whether it is with random regions erased, bool `[S, N]`.
        map_size: Height and width of the maps, None without erasing.
        map_kind: See `ClassMap`, None without erasing.
    """
    target: Tensor
    prediction: Tensor
    in_top5: Tensor
    cam: Tensor
    random: Tensor
    map_size: Optional[Tuple[int, int]]
    map_kind: Optional[str]


def pixel_rank(score: Tensor) -> Tensor:
    """Place of each pixel in its image's order from the highest score, from 0, `[B, H, W]`; equal ones by position."""
    order = score.flatten(1).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(score)


def erase_highest(x: Tensor, rank: Tensor, share: float) -> Tensor:
    """Erase a share of the pixels of each image, exactly: those that come first.

    Args:
        x: Normalised images `[B, C, H, W]`; what is erased becomes 0, the mean colour.
        rank: Place of each pixel, `[B, H, W]`, of `pixel_rank`.
        share: Above 0 and at most 1, of which the nearest whole number of pixels is taken.

    Raises:
        ValueError: The share is none.
    """
    if not 0 < share <= 1:
        raise ValueError(f'The share to erase is {share}: give one above 0 and at most 1.')
    return erase(x, (rank >= round(share * rank[0].numel()))[:, None])


def random_maps(images: Iterable[int], size: Tuple[int, int]) -> Tensor:
    """Gaussian noise for each image, `[B, h, w]`, by the image's number alone: enlarged, it makes smooth regions."""
    return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in images])


@torch.inference_mode()
def faithfulness(
        model: nn.Module,
        batches: Iterable[Tuple[Tensor, Tensor]],
        shares: Sequence[float] = (0.1, 0.25, 0.5),
) -> Faithfulness:
    """Accuracy of a classifier, whole and under erasing, image by image.

    A batch passes once for the map and its logits (Grad-CAM: and once back) and twice for each share. The random
    regions go by an image's place among all, so they are the same whatever the batch size, and for all models whose
    maps have the same size.

    Args:
        model: See `classifier_map`; it is used in evaluation and left as it was.
        batches: Normalised images `[B, C, H, W]` and their classes `[B]`, in the same order whenever they are compared.
        shares: Of the pixels to erase, above 0 and at most 1 each; none measures accuracy alone.

    Raises:
        ValueError: There are no images, the model's numbers are not finite, or it has no map of a class, or one of a
            single position, which ranks nothing.
        ImportError: The map takes Grad-CAM, and that is not installed.
    """
    device = next(model.parameters()).device
    found: List[Tuple[Tensor, ...]] = []
    size: Optional[Tuple[int, int]] = None
    kind: Optional[str] = None
    n = 0
    with evaluating(model):
        for x, target in batches:
            x, target = x.to(device), target.to(device)
            erasing = []
            if shares:
                activation, logits, kind = classifier_map(model, x)
                size = (activation.shape[1], activation.shape[2])
                if size == (1, 1):
                    raise ValueError(
                        f'The last feature map of {type(model).__name__} is 1 x 1 at images of {x.shape[2]} x '
                        f'{x.shape[3]}, so it ranks no pixels: take larger images, or leave the erasing off.')
                noise = random_maps(range(n, n + len(x)), size).to(device)
                ranks = [pixel_rank(resize_map(m, x.shape[2:])) for m in (activation, noise)]
                erasing = [model(erase_highest(x, rank, share)).argmax(1) for rank in ranks for share in shares]
            else:
                logits = model(x)
            if not logits.isfinite().all():
                raise ValueError(f'{type(model).__name__} answers with numbers that are not finite: its training '
                                 'diverged, or its weights are damaged.')
            top = logits.topk(min(5, logits.shape[1]), 1).indices
            right = torch.stack([p == target for p in erasing]) if erasing else target.new_empty(0, len(x)).bool()
            found.append(tuple(t.cpu() for t in (
                target.clone(),  # what a worker shares holds a file open for as long as it is kept
                logits.argmax(1), (top == target[:, None]).any(1), right)))
            n += len(x)
    if not n:
        raise ValueError('There are no images to measure on.')
    target, prediction, in_top5, right = (torch.cat(parts, -1) for parts in zip(*found))
    by_cam, at_random = right.view(2, len(shares), n)
    return Faithfulness(target, prediction, in_top5, by_cam, at_random, size, kind)
