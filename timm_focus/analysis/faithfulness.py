"""Accuracy under erasing: how much a classifier needs the regions that its class activation map ranks highest.

Each image is tested with the highest part of the map of its predicted class erased, and, for comparison, with smooth
random regions of exactly the same share erased. The more a classifier loses by the map compared with the random
regions, the more it relies on few regions. One that looks at more of the picture loses less ("See More for Scene",
section 4, erases such regions in training).
"""
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from timm_focus.method.erase import erase, resize_map
from timm_focus.utils.modes import evaluating

from .class_map import classifier_map

__all__ = ['Faithfulness', 'erase_highest', 'faithfulness', 'pixel_rank', 'random_maps']


class Faithfulness(NamedTuple):
    """A classifier's answers to N images, whole and with each of S shares erased, on the CPU.

    Attributes:
        target: True classes, `[N]`.
        prediction: Classes with the highest logit, `[N]`.
        in_top5: Whether the true class is among the five highest logits (among all, if there are fewer), bool `[N]`.
        cam: Whether the prediction is right with the highest part of the map erased, bool `[S, N]`.
        random: Whether the prediction is right with random regions erased, bool `[S, N]`.
        map_size: Height and width of the maps; None without erasing.
        map_kind: `ClassMap.kind`; None without erasing.
    """
    target: Tensor
    prediction: Tensor
    in_top5: Tensor
    cam: Tensor
    random: Tensor
    map_size: Optional[Tuple[int, int]]
    map_kind: Optional[str]


def pixel_rank(score: Tensor) -> Tensor:
    """Rank of each pixel in its image, 0 for the highest score, `[B, H, W]`; equal scores are ranked by position."""
    order = score.flatten(1).sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).view_as(score)


def erase_highest(x: Tensor, rank: Tensor, share: float) -> Tensor:
    """Erase exactly a share of the pixels of each image: those that rank highest.

    Args:
        x: Normalised images `[B, C, H, W]`; erased pixels become 0, the mean colour.
        rank: Rank of each pixel by `pixel_rank`, `[B, H, W]`.
        share: Above 0 and at most 1; rounded to a whole number of pixels.

    Raises:
        ValueError: The share is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f'The share to erase is {share}: give one above 0 and at most 1.')
    return erase(x, (rank >= round(share * rank[0].numel()))[:, None])


def random_maps(images: Iterable[int], size: Tuple[int, int]) -> Tensor:
    """Gaussian noise `[B, h, w]`, seeded by each image's number alone; enlarged, it makes smooth regions."""
    return torch.stack([torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in images])


@torch.inference_mode()
def faithfulness(
        model: nn.Module,
        batches: Iterable[Tuple[Tensor, Tensor]],
        shares: Sequence[float] = (0.1, 0.25, 0.5),
) -> Faithfulness:
    """Measure a classifier's accuracy, image by image, on whole and on erased images.

    Each batch takes one forward for the map and its logits (and one backward for Grad-CAM), and two forwards for each
    share. The random regions are seeded by an image's place among all, so they do not depend on the batch size, and
    are the same for all models whose maps have the same size.

    Args:
        model: See `classifier_map`; it is used in evaluation and left as it was.
        batches: Normalised images `[B, C, H, W]` and their classes `[B]`; runs to compare need the same order.
        shares: Shares of the pixels to erase, each above 0 and at most 1; without any, accuracy alone is measured.

    Raises:
        ValueError: There are no images, the logits are not finite, or the model has no map of a class, or a map of a
            single position, which ranks nothing.
        ImportError: The map takes Grad-CAM, which is not installed.
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
                target.clone(),  # a copy: a tensor shared by a worker holds a file open
                logits.argmax(1), (top == target[:, None]).any(1), right)))
            n += len(x)
    if not n:
        raise ValueError('There are no images to measure on.')
    target, prediction, in_top5, right = (torch.cat(parts, -1) for parts in zip(*found))
    by_cam, at_random = right.view(2, len(shares), n)
    return Faithfulness(target, prediction, in_top5, by_cam, at_random, size, kind)
