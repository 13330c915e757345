"""Draws the pictures of a model card: curves of the run, coverage, and a gallery of erased images."""
import csv
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from timm.data import create_transform
from torch import Tensor, nn

from timm_focus.analysis import coverage_plot, focus_area, focus_sheet, last_map
from timm_focus.analysis.plots import save_figure
from timm_focus.method import FocusNet
from timm_focus.utils.text import one_line

__all__ = ['draw_coverage', 'draw_curves', 'draw_gallery']

FINE = 4  # a coverage ratio says little on maps with fewer positions along a side
GALLERY = 6  # images


def draw_curves(summary: Union[str, Path], path: Union[str, Path]) -> bool:
    """Draw the losses and accuracies of a summary.csv by epoch; returns whether there was anything to draw."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with open(summary, newline='', encoding='utf-8', errors='replace') as f:
        rows = list(csv.DictReader(f))
    names = [n for n in (rows[0] if rows else ()) if n]
    curves = {}
    for name in names:
        if name.endswith('loss') or name.startswith('eval_top'):
            points = [(_number(r.get('epoch')), _number(r.get(name))) for r in rows]
            points = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
            if points:
                curves[name] = points
    losses = {n: p for n, p in curves.items() if n.endswith('loss')}
    accuracies = {n: p for n, p in curves.items() if n not in losses}
    panels = [(label, some) for label, some in (('loss', losses), ('accuracy, %', accuracies)) if some]
    if not panels:
        return False
    figure = Figure(figsize=(4.5 * len(panels), 3.4), layout='constrained')
    for axes, (label, some) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for name, points in some.items():
            axes.plot(*zip(*points), label=one_line(name)[:60], marker='.' if len(points) < 20 else None,
                      linestyle='-' if name.startswith('eval') or label != 'loss' else '--')
        axes.set_xlabel('epoch')
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(fontsize=8)
    save_figure(figure, path, 110)
    return True


def _number(text: Optional[str]) -> float:
    try:
        return float(text or 'nan')
    except ValueError:
        return math.nan


def _batch(images: Sequence[Any], data_config: Dict[str, Any], scale: int = 1) -> Tensor:
    size = (data_config['input_size'][0], *(scale * n for n in data_config['input_size'][1:]))
    transform = create_transform(**{**data_config, 'input_size': size}, is_training=False)
    return torch.stack([transform(image) for image in images])


@torch.inference_mode()
def draw_coverage(
        model: nn.Module,
        images: Sequence[Any],
        data_config: Dict[str, Any],
        path: Union[str, Path],
        name: str,
        dataset: str,
) -> Dict[str, Any]:
    """Draw the coverage ratios of images ("See More for Scene", section 3).

    If the last feature map has fewer than 4 x 4 positions, on which a ratio says little, larger inputs are used, as far
    as the model takes them.

    Args:
        model: A plain timm model in evaluation mode.
        images: Pillow images.
        data_config: timm's data configuration of the evaluation.
        path: PNG file to write.
        name: Name of the model.
        dataset: Name of the data set.

    Returns:
        n, mean, median, map_size and input_size, and whether convolutions made the map.
    """
    scale, convolutional = 1, True
    for scale in (1, 2, 4):
        try:
            heat, convolutional = last_map(model, _batch(images[:1], data_config, scale))
        except (AssertionError, RuntimeError, ValueError):  # the model takes only one size
            if scale == 1:
                raise
            scale //= 2
            break
        if min(heat.shape[-2:]) >= FINE:
            break
    ratios: List[float] = []
    shape: Tuple[int, ...] = ()
    for i in range(0, len(images), 16):
        found = focus_area(model, _batch(images[i:i + 16], data_config, scale))
        ratios += found.coverage.tolist()
        shape = tuple(found.heat.shape[1:])
    coverage_plot({(name, dataset): ratios}, path)
    ordered = sorted(ratios)
    return dict(
        n=len(ratios), mean=sum(ratios) / len(ratios), median=ordered[len(ordered) // 2], map_size=shape,
        input_size=tuple(scale * n for n in data_config['input_size'][1:]), convolutional=convolutional)


def draw_gallery(
        model: FocusNet,
        images: Sequence[Any],
        data_config: Dict[str, Any],
        path: Union[str, Path],
) -> None:
    """Draw what training erases, for some images spread over those given: image, map, erased part, kept part."""
    n = min(GALLERY, len(images))
    picks = [images[i * len(images) // n] for i in range(n)]
    focus_sheet(model, _batch(picks, data_config), path, data_config['mean'], data_config['std'])
