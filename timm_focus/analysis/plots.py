"""Pictures of what networks look at."""
import warnings
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from timm_focus.utils import open_whole

from .explain import explain

__all__ = ['Picture', 'coverage_plot', 'explanation_plot', 'explanation_sheet', 'focus_sheet', 'save_figure',
           'to_pixels']

Box = Tuple[float, float, float, float]


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

    found = explain(model, x)
    original, erased = to_pixels(x, mean, std), to_pixels(found.erased, mean, std)
    heat, keep = found.heat.float().cpu().numpy(), found.keep[:, 0].cpu().numpy()
    n = x.shape[0]
    figure = Figure(figsize=(8, 2 * n + 0.3), layout='constrained')
    axes = figure.subplots(n, 4, squeeze=False)
    columns = ('original', 'activation map', 'kept', 'erased')
    for i, row in enumerate(axes):
        _show(row[0], original[i])
        _show_erasing(row[1:], original[i], heat[i], keep[i], erased[i])
        if i == 0:
            for name, ax in zip(columns, row):
                ax.set_title(name, fontsize=9)
        if titles is not None:
            row[0].set_ylabel(_cut(titles[i], 40), fontsize=9)
    save_figure(figure, path, 100)


def to_pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Normalised images `[B, C, H, W]` as they were before, uint8 `[B, H, W, C]`."""
    scale, shift = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (std, mean))
    return ((x.float().cpu() * scale + shift) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _show(ax: Any, image: np.ndarray, **kwargs: Any) -> None:
    """An image `[H, W]`, `[H, W, 1]` or `[H, W, 3]` without ticks."""
    high = 1 if image.dtype == bool else 255
    ax.imshow(image, **{**dict(cmap='gray', vmin=0, vmax=high), **kwargs})
    ax.set_xticks([])
    ax.set_yticks([])


def _show_erasing(
        axes: Sequence[Any],
        image: np.ndarray,
        heat: np.ndarray,
        keep: np.ndarray,
        erased: np.ndarray,
) -> None:
    """Activation map, kept area and erased image."""
    _show(axes[0], image)
    axes[0].imshow(heat, cmap='jet', alpha=0.5, vmin=0, vmax=1)
    _show(axes[1], keep)
    _show(axes[2], erased)


class Picture(NamedTuple):
    """What is drawn of the explanation of an image.

    Attributes:
        name: Of its file.
        size: Width and height of the whole image.
        whole: It, maybe smaller, uint8 `[H', W', C]`.
        crop: What the network sees of it, x0, y0, x1, y1 in its pixels; it may reach beyond it.
        box: The box around what is erased, None if nothing is.
        image: What the network sees, uint8 `[H, W, C]`.
        heat: Map of the class in 0 to 1, `[H, W]`.
        keep: What is kept, bool `[H, W]`.
        erased: The rest of it, uint8 `[H, W, C]`.
        area: Focus area, bool `[h, w]`.
        label: The class that is explained.
        before: Names and probabilities of classes of the image, the most probable first.
        after: Those of the erased image.
        by: What made it, in words.
    """
    name: str
    size: Tuple[int, int]
    whole: np.ndarray
    crop: Box
    box: Optional[Tuple[int, int, int, int]]
    image: np.ndarray
    heat: np.ndarray
    keep: np.ndarray
    erased: np.ndarray
    area: np.ndarray
    label: str
    before: List[Tuple[str, float]]
    after: List[Tuple[str, float]]
    by: str


def explanation_plot(picture: Picture, path: Union[str, Path]) -> None:
    """Draw an explanation: image with the box around what is erased, map, kept area, erased image, focus area, and the
    classifier's answers before and after.

    Args:
        picture: What is drawn.
        path: Where the PNG goes.
    """
    from matplotlib.figure import Figure

    width, height, side, gap, top = 9., 6.82, 2.9, 0.075, 0.58  # inches
    figure = Figure(figsize=(width, height))
    axes = []
    for row in range(2):
        for column in range(3):
            left = gap + column * (side + gap)
            bottom = height - top - row * (side + 0.28) - side
            axes.append(figure.add_axes((left / width, bottom / height, side / width, side / height)))
    _text(figure, gap / width, 1 - 0.06 / height, _cut(picture.name, 90, front=True), fontsize=10, weight='bold')
    _text(figure, gap / width, 1 - 0.25 / height, _cut(picture.by, 150, front=True), fontsize=7.5, color='0.35')
    _panels([axes[0], *axes[1:5]], picture)
    share, area = 1 - picture.keep.mean(), picture.area
    titles = ('original, box around what is erased', f'activation map: {_cut(picture.label, 26)}',
              f'kept, {1 - share:.0%}', f'erased, {share:.0%}',
              f'focus area, {area.mean():.0%} of {area.shape[0]} x {area.shape[1]}', 'most probable classes')
    for ax, title in zip(axes, titles):
        ax.set_title(title, fontsize=9, pad=3, parse_math=False)
    _answers(axes[5], picture)
    save_figure(figure, path, 150)


def explanation_sheet(pictures: Sequence[Picture], path: Union[str, Path]) -> None:
    """Draw explanations as a page, a row each.

    Args:
        pictures: What is drawn; about 200 fit.
        path: Where the PNG goes.
    """
    from matplotlib.figure import Figure

    side, gap, top, words = 1.5, 0.06, 0.46, 2.5
    width, height = 5 * (side + gap) + gap + words, top + len(pictures) * (side + gap)
    figure = Figure(figsize=(width, height))
    _text(figure, gap / width, 1 - 0.05 / height, _cut(pictures[0].by, 150, front=True), fontsize=8, color='0.35')
    for i, picture in enumerate(pictures):
        bottom = height - top - (i + 1) * side - i * gap
        axes = [figure.add_axes(((gap + j * (side + gap)) / width, bottom / height, side / width, side / height))
                for j in range(5)]
        _panels(axes, picture)
        if i == 0:
            for ax, title in zip(axes, ('original, box', 'activation map', 'kept', 'erased', 'focus area')):
                ax.set_title(title, fontsize=8, pad=3)
        left, start = (2 * gap + 5 * (side + gap)) / width, (bottom + side) / height
        lines = [(_cut(picture.name, 31, front=True), dict(weight='bold'))]
        if picture.label != picture.before[0][0]:
            lines.append((f'map of {_cut(picture.label, 28)}', {}))
        for title, (name, probability) in (('before', picture.before[0]), ('after', picture.after[0])):
            lines += [(f'{title}:', dict(color='0.35')), (f'{_cut(name, 27)}  {probability:.0%}', {})]
        shares = f'erased {1 - picture.keep.mean():.0%}, focus area {picture.area.mean():.0%}'
        lines.append((shares, dict(color='0.35')))
        for j, (line, style) in enumerate(lines):
            _text(figure, left, start - 0.19 * j / height, line, fontsize=8, **style)
    save_figure(figure, path, 120)


def _panels(axes: Sequence[Any], picture: Picture) -> None:
    """The five pictures of an explanation."""
    from matplotlib.patches import Rectangle

    width, height = picture.size
    original, heat, kept, erased, area = axes
    _show(original, picture.whole, extent=(0, width, height, 0))
    for box, color, style, line in ((picture.crop, 'white', (0, (4, 3)), 1.), (picture.box, '#ff2a2a', '-', 1.8)):
        if box is None or tuple(box) == (0, 0, width, height) and box is picture.crop:
            continue
        x0, y0, x1, y1 = box
        for color_, line_ in (('black', line + 1.4), (color, line)):  # seen on light and on dark
            original.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color_, linestyle=style,
                                         linewidth=line_))
    original.set_xlim(0, width)
    original.set_ylim(height, 0)
    _show_erasing((heat, kept, erased), picture.image, picture.heat, picture.keep, picture.erased)
    if picture.keep.any() and not picture.keep.all():
        heat.contour(picture.keep, levels=[0.5], colors='white', linewidths=1.2)
    rows, columns = (np.arange(n) * m // n for n, m in zip(picture.image.shape, picture.area.shape))
    inside = picture.area[rows][:, columns, None]
    _show(area, np.where(inside, picture.image, picture.image // 4))


def _answers(ax: Any, picture: Picture) -> None:
    """The classifier's answers before and after as bars with names on them."""
    rows = 2 * max(len(picture.before), len(picture.after)) + 2
    ax.set_xlim(0, 1)
    ax.set_ylim(max(rows, 12), 0)
    ax.axis('off')
    parts = (('of the original', picture.before, '#9ecae1'), ('of the erased image', picture.after, '#fdae6b'))
    at = 0
    for title, answers, color in parts:
        _text(ax, 0, at + 0.5, title, fontsize=8.5, va='center', color='0.35')
        for j, (name, probability) in enumerate(answers, at + 1):
            ax.barh(j + 0.5, probability, height=0.84, color=color)
            weight = 'bold' if name == picture.label else 'normal'
            _text(ax, 0.015, j + 0.5, _cut(name, 32), fontsize=8.5, va='center', weight=weight)
            _text(ax, 0.985, j + 0.5, f'{probability:.1%}', fontsize=8.5, va='center', ha='right', weight=weight)
        at += max(rows, 12) // 2


def _text(where: Any, x: float, y: float, text: str, va: str = 'top', **kwargs: Any) -> None:
    where.text(x, y, text, va=va, parse_math=False, **kwargs)


def _cut(text: str, n: int, front: bool = False) -> str:
    """A text of at most n characters that can be drawn: what is too long loses its later names, or one end."""
    text = ''.join(c if c.isprintable() else '?' for c in text)
    while len(text) > n and ', ' in text and not front:  # ImageNet's names of one class
        text = text.rpartition(', ')[0]
    if len(text) <= n:
        return text
    return f'…{text[1 - n:]}' if front else f'{text[:n - 1]}…'


def save_figure(figure: Any, path: Union[str, Path], dpi: int) -> None:
    """Save a figure whole or not at all. A name in it is drawn as it is, never as a formula, whatever it has of `$`."""
    import matplotlib
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)
    plainly = matplotlib.rc_context({'text.parse_math': False})  # labels of ticks, which are made while it is drawn
    with open_whole(path, 'wb') as f, plainly, warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes
        warnings.filterwarnings('ignore', 'Glyph .* missing from font', UserWarning)
        # as much time goes into the default's last tenth of compression as into all of the drawing
        figure.savefig(f, dpi=dpi, format='png', pil_kwargs=dict(compress_level=2))


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
    names = [_cut(model, 60) for model in models]
    axes.set_xticks(range(len(models)), names, rotation=20 if slanted else 0, ha='right' if slanted else 'center')
    axes.set_ylabel('coverage ratio')
    axes.set_ylim(0, 1)
    if len(datasets) > 1:
        axes.legend(handles=[Patch(facecolor=f'C{j}', label=_cut(name, 60)) for j, name in enumerate(datasets)],
                    fontsize=8)
    save_figure(figure, path, 150)
