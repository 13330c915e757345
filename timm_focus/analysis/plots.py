"""Pictures of focus training."""
from pathlib import Path
from typing import Dict, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from timm_focus.method.erase import erase, resize_map

__all__ = ['coverage_plot', 'focus_sheet']


@torch.inference_mode()
def focus_sheet(
        model: nn.Module,
        x: Tensor,
        path: Union[str, Path],
        mean: Sequence[float],
        std: Sequence[float],
        titles: Optional[Sequence[str]] = None,
) -> None:
    """Draw what focus training does to images: original, map, kept area and erased image, a row each.

    Args:
        model: A `FocusNet`; its mode is left as it was.
        x: Normalised images `[B, C, H, W]`, with one or three channels.
        path: Where the PNG goes.
        mean: Mean of the normalisation, a number a channel.
        std: Its standard deviation.
        titles: A word for each image.
    """
    from matplotlib.figure import Figure  # the one import here that takes a second

    was_training = model.training
    model.eval()
    final, (tap,) = model.backbone.forward_intermediates(
        x, indices=[model.stage], norm=False, stop_early=False, output_fmt='NCHW')
    main = model.backbone.forward_head(final)
    keep = model.keep_mask(tap, main, x.shape[-2:])
    heat = resize_map(model.activation_map(tap, main), x.shape[-2:], model.interpolation).float().cpu().numpy()
    model.train(was_training)

    def pixels(images: Tensor) -> np.ndarray:
        scale, shift = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (std, mean))
        return (images.float().cpu() * scale + shift).clamp(0, 1).permute(0, 2, 3, 1).numpy()

    original, erased, kept = pixels(x), pixels(erase(x, keep)), keep[:, 0].cpu().numpy()
    n = x.shape[0]
    figure = Figure(figsize=(8, 2 * n + 0.3), layout='constrained')
    axes = figure.subplots(n, 4, squeeze=False)
    columns = ('original', 'activation map', 'kept', 'erased')
    for i, row in enumerate(axes):
        row[0].imshow(original[i], cmap='gray')
        row[1].imshow(original[i], cmap='gray')
        row[1].imshow(heat[i], cmap='jet', alpha=0.5, vmin=0, vmax=1)
        row[2].imshow(kept[i], cmap='gray', vmin=0, vmax=1)
        row[3].imshow(erased[i], cmap='gray')
        for name, ax in zip(columns, row):
            ax.set_xticks([])
            ax.set_yticks([])
            if i == 0:
                ax.set_title(name, fontsize=9)
        if titles is not None:
            row[0].set_ylabel(titles[i], fontsize=9)
    figure.savefig(path, dpi=100)


def coverage_plot(groups: Dict[Tuple[str, str], Sequence[float]], path: Union[str, Path]) -> None:
    """Draw coverage ratios as the paper does (figures 1, 3 and 4): boxes side by side, those of one model together.

    A box is from the 25th to the 75th percentile, its line the median, the triangle the mean; the whiskers end at the
    last value within 1.5 box heights.

    Args:
        groups: Ratios, 0 to 1, by model and data set.
        path: Where the PNG goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    models = list(dict.fromkeys(model for model, _ in groups))
    datasets = list(dict.fromkeys(dataset for _, dataset in groups))
    figure = Figure(figsize=(1.6 + 0.9 * len(groups), 3.6), layout='constrained')
    axes = figure.subplots()
    width = 0.7 / len(datasets)
    for j, dataset in enumerate(datasets):
        here = [(i, groups[model, dataset]) for i, model in enumerate(models) if (model, dataset) in groups]
        boxes = axes.boxplot(
            [values for _, values in here], positions=[i + (j - (len(datasets) - 1) / 2) * width for i, _ in here],
            widths=0.85 * width, showmeans=True, showfliers=False, patch_artist=True,
            medianprops=dict(color='black'),
            meanprops=dict(marker='^', markerfacecolor='white', markeredgecolor='black'))
        for box in boxes['boxes']:
            box.set_facecolor(f'C{j}')
    slanted = len(models) > 1 and max(map(len, models)) > 12
    axes.set_xticks(range(len(models)), models, rotation=20 if slanted else 0, ha='right' if slanted else 'center')
    axes.set_ylabel('coverage ratio')
    axes.set_ylim(0, 1)
    if len(datasets) > 1:
        axes.legend(handles=[Patch(facecolor=f'C{j}', label=name) for j, name in enumerate(datasets)], fontsize=8)
    figure.savefig(path, dpi=150)
