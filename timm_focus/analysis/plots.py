"""Pictures of what networks look at.

All text is drawn as it is, never as a formula, whatever the names of classes and files.
"""
import os
import warnings
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor, nn

from timm_focus.utils import open_whole, shown

from .explain import explain

__all__ = [
    'FORMATS', 'Picture', 'coverage_plot', 'explanation_plot', 'explanation_sheet', 'focus_sheet', 'save_figure',
    'to_pixels',
]

Box = Tuple[float, float, float, float]
FORMATS = ('png', 'pdf', 'svg')
MAP_COLORS, MAP_ALPHA = 'turbo', 0.55
ERASED, CROP = '#ff2a2a', 'white'
GREY = '0.35'


class Picture(NamedTuple):
    """The parts of a drawn explanation of one image.

    Attributes:
        name: Name of its file.
        size: Width and height of the whole image.
        whole: The whole image, maybe scaled down, uint8 `[H', W', C]`.
        crop: The part that the network sees, x0, y0, x1, y1 in pixels of the whole image; it may reach beyond it.
        boxes: Boxes around the connected pieces of the erased area, the largest piece first.
        image: The network's input, uint8 `[H, W, C]`.
        heat: Map of the class in 0 to 1, `[H, W]`.
        keep: Mask of the pixels that are kept, bool `[H, W]`.
        erased: The input with all other pixels at the mean colour, uint8 `[H, W, C]`.
        area: Focus area, bool `[h, w]`.
        label: The class that is explained.
        before: Names and probabilities of classes for the image, the most probable first.
        after: The same for the erased image.
        threshold: gamma: pixels are erased where the map reaches it.
        by: The model that made the explanation, in words.
        truth: Name of the true class; None if it is not known.
    """
    name: str
    size: Tuple[int, int]
    whole: np.ndarray
    crop: Box
    boxes: Sequence[Tuple[int, int, int, int]]
    image: np.ndarray
    heat: np.ndarray
    keep: np.ndarray
    erased: np.ndarray
    area: np.ndarray
    label: str
    before: List[Tuple[str, float]]
    after: List[Tuple[str, float]]
    threshold: float
    by: str
    truth: Optional[str] = None


def focus_sheet(
        model: nn.Module,
        x: Tensor,
        path: Union[str, Path],
        mean: Sequence[float],
        std: Sequence[float],
        titles: Optional[Sequence[str]] = None,
        names: Optional[Sequence[str]] = None,
) -> None:
    """Draw what focus training does to images: one row for each, with image, map, erased part and kept part.

    Args:
        model: A `FocusNet`; its mode is left as it was.
        x: Normalised images `[B, C, H, W]`, with one or three channels.
        path: Where the picture goes; its ending, one of FORMATS, says what it is.
        mean: Mean of the normalisation, one number for each channel.
        std: Standard deviation of the normalisation, likewise.
        titles: A word for each image, such as its class.
        names: Names of the model's classes; if given, each row shows the answers before and after erasing.
    """
    from matplotlib.figure import Figure  # the one import here that takes a second

    found = explain(model, x)
    original, erased = to_pixels(x, mean, std), to_pixels(found.erased, mean, std)
    heat, keep = found.heat.float().cpu().numpy(), found.keep[:, 0].cpu().numpy()
    before, after = (logits.float().softmax(1).max(1) for logits in (found.logits, found.erased_logits))
    side, gap, left, top, bottom = 1.7, 0.06, 0.25 if titles else 0.06, 0.26, 0.62
    words = 1.9 if names else 0.
    rows = len(x)
    width, height = left + 4 * (side + gap) + words, top + rows * (side + gap) + bottom
    figure = Figure(figsize=(width, height))
    for i in range(rows):
        y = height - top - i * (side + gap) - side
        axes = [figure.add_axes(((left + j * (side + gap)) / width, y / height, side / width, side / height))
                for j in range(4)]
        _show(axes[0], original[i])
        _show_erasing(axes[1:], original[i], heat[i], keep[i], erased[i])
        if i == 0:
            for ax, name in zip(axes, ('image', 'activation map', 'erased', 'kept')):
                ax.set_title(name, fontsize=9, pad=4)
        if titles is not None:
            axes[0].set_ylabel(_cut(titles[i], 24), fontsize=8.5, labelpad=3)
        if names is not None:
            truth = titles[i] if titles else None
            lines: List[Tuple[str, Dict[str, Any]]] = []
            for when, answer in (('of the image', before), ('of what is kept', after)):
                name = names[int(answer.indices[i])]
                lines += [(f'{when}:', dict(color=GREY)),
                          (f'{_cut(name, 21)}  {answer.values[i]:.0%}{_mark(name, truth)}',
                           _answer_style(name, truth))]
            lines.append((f'erased {1 - keep[i].mean():.0%}', dict(color=GREY)))
            _lines(figure, (left + 4 * (side + gap) + gap) / width, (y + side) / height, 0.19 / height, lines)
    _map_bar(figure, (left + side + gap, 0.45, side, 0.09), found.threshold)
    _text(figure, left / width, 0.17 / height,
          'erased: where the map reaches the mark; kept: the rest, erased to the mean colour', fontsize=7, color=GREY)
    save_figure(figure, path)


def to_pixels(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation of images: `[B, C, H, W]` to uint8 `[B, H, W, C]`."""
    scale, shift = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (std, mean))
    return ((x.float().cpu() * scale + shift) * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def explanation_plot(picture: Picture, path: Union[str, Path]) -> None:
    """Draw an explanation: image with boxes around the erased pieces, map, erased part, kept part, focus area, and
    the classifier's answers before and after.

    Args:
        picture: The parts to draw.
        path: Where the picture goes; its ending, one of FORMATS, says what it is.
    """
    from matplotlib.figure import Figure

    side, gap, title, top, bottom = 2.9, 0.09, 0.24, 0.50, 0.52  # inches
    width, height = 3 * (side + gap) + gap, top + 2 * (side + title) + bottom
    figure = Figure(figsize=(width, height))
    axes = []
    for row in range(2):
        for column in range(3):
            x, y = gap + column * (side + gap), height - top - (row + 1) * (side + title)
            axes.append(figure.add_axes((x / width, y / height, side / width, side / height)))
    _text(figure, gap / width, 1 - 0.07 / height, _cut(picture.name, 60, front=True), fontsize=10.5, weight='bold')
    if picture.truth is not None:
        right = picture.before[0][0] == picture.truth
        _text(figure, 1 - gap / width, 1 - 0.07 / height,
              f'true class: {_cut(picture.truth, 36)}, answer {"right" if right else "wrong"}',
              fontsize=9, ha='right', **_answer_style(picture.before[0][0], picture.truth))
    _text(figure, gap / width, 1 - 0.28 / height, _cut(picture.by, 120, front=True), fontsize=7.5, color=GREY)
    _panels(axes[:5], picture)
    share, area = 1 - picture.keep.mean(), picture.area
    titles = ('image', f'activation map: {_cut(picture.label, 30)}', f'erased, {share:.0%}', f'kept, {1 - share:.0%}',
              f'focus area, {area.mean():.0%} of {area.shape[0]} x {area.shape[1]}', 'most probable classes')
    for ax, text in zip(axes, titles):
        ax.set_title(text, fontsize=9, pad=3.5)
    _answers(axes[5], picture)
    _map_bar(figure, (gap + side + gap, 0.25, side, 0.11), picture.threshold)
    _legend(figure, (gap, 0.03), [picture])
    _text(figure, (gap + 2 * (side + gap)) / width, 0.36 / height,
          'kept: what is erased has the mean colour\nfocus area: the last feature map above its mean', fontsize=7,
          color=GREY, linespacing=1.4)
    save_figure(figure, path)


def explanation_sheet(pictures: Sequence[Picture], path: Union[str, Path]) -> None:
    """Draw explanations on one page, one row for each.

    Args:
        pictures: The explanations; about 200 fit.
        path: Where the picture goes; its ending, one of FORMATS, says what it is.
    """
    from matplotlib.figure import Figure

    side, gap, top, bottom, words = 1.5, 0.06, 0.46, 0.55, 2.5
    width, height = 5 * (side + gap) + gap + words, top + len(pictures) * (side + gap) + bottom
    figure = Figure(figsize=(width, height))
    _text(figure, gap / width, 1 - 0.05 / height, _cut(pictures[0].by, 130, front=True), fontsize=8, color=GREY)
    for i, picture in enumerate(pictures):
        y = height - top - (i + 1) * side - i * gap
        axes = [figure.add_axes(((gap + j * (side + gap)) / width, y / height, side / width, side / height))
                for j in range(5)]
        _panels(axes, picture, thin=True)
        if i == 0:
            for ax, title in zip(axes, ('image', 'activation map', 'erased', 'kept', 'focus area')):
                ax.set_title(title, fontsize=8, pad=3)
        lines = [(_cut(picture.name, 34, front=True), dict(weight='bold'))]
        if picture.truth is not None:
            lines.append((f'true class: {_cut(picture.truth, 26)}', dict(color=GREY)))
        if picture.label != picture.before[0][0]:
            lines.append((f'map of {_cut(picture.label, 30)}', {}))
        for title, (name, probability) in (('before', picture.before[0]), ('after', picture.after[0])):
            lines.append((f'{title}: {_cut(name, 23)}  {probability:.0%}{_mark(name, picture.truth)}',
                          _answer_style(name, picture.truth)))
        shares = f'erased {1 - picture.keep.mean():.0%}, focus area {picture.area.mean():.0%}'
        lines.append((shares, dict(color=GREY)))
        _lines(figure, (2 * gap + 5 * (side + gap)) / width, (y + side) / height, 0.19 / height, lines)
    _map_bar(figure, (gap + side + gap, 0.33, side, 0.08), pictures[0].threshold)
    _legend(figure, (gap + 2 * (side + gap), 0.06), pictures)
    save_figure(figure, path, 120)


def coverage_plot(groups: Dict[Tuple[str, str], Sequence[float]], path: Union[str, Path]) -> None:
    """Draw coverage ratios as the paper does (figures 1, 3 and 4): box plots side by side, grouped by model.

    A box spans the 25th to the 75th percentile; its line is the median, its triangle the mean. The whiskers end at the
    last value within 1.5 box heights.

    Args:
        groups: Ratios, 0 to 1, by model and data set.
        path: Where the picture goes; its ending, one of FORMATS, says what it is.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    models = list(dict.fromkeys(model for model, _ in groups))
    datasets = list(dict.fromkeys(dataset for _, dataset in groups))
    names = [_cut(model, 40, front=True) for model in models]
    longest = max(map(len, names))
    # room for the boxes, the longest name (about 12 letters an inch) and a legend of all data sets
    figure = Figure(figsize=(1.6 + 0.9 * len(groups) + max(longest / 12 - 1, 0), max(3.6, 1.5 + 0.18 * len(datasets))),
                    layout='constrained')
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
    slanted = len(names) > 1 and longest > 12
    axes.set_xticks(range(len(names)), names, rotation=20 if slanted else 0, ha='right' if slanted else 'center')
    axes.set_ylabel('coverage ratio')
    axes.set_ylim(0, 1)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    if len(datasets) > 1:
        axes.legend(handles=[Patch(facecolor=f'C{j}', label=_cut(name, 40)) for j, name in enumerate(datasets)],
                    fontsize=8)
    save_figure(figure, path)


# parts of pictures

def _show(ax: Any, image: np.ndarray, **kwargs: Any) -> None:
    """Show an image `[H, W]`, `[H, W, 1]` or `[H, W, 3]` without ticks."""
    high = 1 if image.dtype == bool else 255
    ax.imshow(image, **{**dict(cmap='gray', vmin=0, vmax=high), **kwargs})
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color('0.75')


def _show_erasing(
        axes: Sequence[Any],
        image: np.ndarray,
        heat: np.ndarray,
        keep: np.ndarray,
        erased: np.ndarray,
) -> None:
    """Show the activation map, the erased part alone, and the kept part as the network sees it."""
    _show(axes[0], image)
    axes[0].imshow(heat, cmap=MAP_COLORS, alpha=MAP_ALPHA, vmin=0, vmax=1)
    _show(axes[1], np.where(keep[..., None], np.uint8(255), image))
    _show(axes[2], erased)
    if keep.any() and not keep.all():
        for ax, color, line in zip(axes, ('white', GREY, GREY), (1.2, 0.6, 0.6)):
            ax.contour(keep, levels=[0.5], colors=color, linewidths=line)


def _panels(axes: Sequence[Any], picture: Picture, thin: bool = False) -> None:
    """Draw the five pictures of an explanation."""
    from matplotlib.patches import Rectangle

    width, height = picture.size
    original, heat, erased, kept, area = axes
    _show(original, picture.whole, extent=(0, width, height, 0))
    boxes: List[Tuple[Box, str, Any, float]] = [(box, ERASED, '-', 1.1 if thin else 1.7) for box in picture.boxes]
    if _is_cropped(picture):
        boxes.append((picture.crop, CROP, (0, (4, 3)), 0.8 if thin else 1.1))
    for (x0, y0, x1, y1), color, style, line in boxes:
        for color_, line_ in (('black', line + 1.1), (color, line)):  # a dark rim, to be seen on light and on dark
            original.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color_, linestyle=style,
                                         linewidth=line_))
    original.set_xlim(0, width)
    original.set_ylim(height, 0)
    _show_erasing((heat, erased, kept), picture.image, picture.heat, picture.keep, picture.erased)
    rows, columns = (np.arange(n) * m // n for n, m in zip(picture.image.shape, picture.area.shape))
    inside = picture.area[rows][:, columns, None]
    _show(area, np.where(inside, picture.image, picture.image // 4))


def _is_cropped(picture: Picture) -> bool:
    """Whether the network sees a crop, not the whole image."""
    return max(abs(a - b) for a, b in zip(picture.crop, (0, 0, *picture.size))) > 0.5


def _answers(ax: Any, picture: Picture) -> None:
    """Draw the classifier's answers before and after erasing as bars with names."""
    rows = 2 * max(len(picture.before), len(picture.after)) + 2
    ax.set_xlim(0, 1)
    ax.set_ylim(max(rows, 12), 0)
    ax.axis('off')
    parts = (('of the image', picture.before, '#9ecae1'), ('of what is kept', picture.after, '#fdae6b'))
    at = 0
    for title, answers, color in parts:
        _text(ax, 0, at + 0.5, title, fontsize=8.5, va='center', color=GREY)
        for j, (name, probability) in enumerate(answers, at + 1):
            ax.barh(j + 0.5, probability, height=0.84, color=color)
            style = dict(weight='bold' if name == picture.label else 'normal')
            style.update(dict(color='#1a7a1a') if name == picture.truth else {})
            _text(ax, 0.015, j + 0.5, _cut(name, 32), fontsize=8.5, va='center', **style)
            _text(ax, 0.985, j + 0.5, f'{probability:.1%}', fontsize=8.5, va='center', ha='right', **style)
        at += max(rows, 12) // 2


def _answer_style(name: str, truth: Optional[str]) -> Dict[str, Any]:
    """Colour of an answer: green if right, red if wrong, black if the true class is not known."""
    return {} if truth is None else dict(color='#1a7a1a' if name == truth else '#b3261e')


def _mark(name: str, truth: Optional[str]) -> str:
    return '' if truth is None else '  ✓' if name == truth else '  ✗'


def _map_bar(figure: Any, box: Tuple[float, float, float, float], threshold: float) -> None:
    """Draw the map's colour bar, with a mark where erasing begins; `box` is in inches."""
    width, height = figure.get_size_inches()
    ax = figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    ramp = np.linspace(0, 1, 256)[None]
    ax.imshow(np.full((*ramp.shape, 3), 128, np.uint8), extent=(0, 1, 0, 1), aspect='auto')
    ax.imshow(ramp, cmap=MAP_COLORS, alpha=MAP_ALPHA, extent=(0, 1, 0, 1), aspect='auto')
    ax.axvline(threshold, color='black', linewidth=1.2)
    ticks = [t for t in (0, 1) if abs(t - threshold) > 0.08] + [threshold]
    ax.set_xticks(ticks, [f'≥ {t:g} erased' if t == threshold and t < 0.8 else f'{t:g}' for t in ticks], fontsize=7)
    ax.set_yticks([])
    ax.tick_params(length=2, pad=1.5)


def _legend(figure: Any, at: Tuple[float, float], pictures: Sequence[Picture]) -> None:
    """Draw the legend of the lines in the pictures, at a place in inches."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    width, height = figure.get_size_inches()
    known: List[Any] = []
    if any(p.boxes for p in pictures):
        known.append(Patch(fill=False, edgecolor=ERASED, linewidth=1.6, label='around a piece of what is erased'))
    if any(_is_cropped(p) for p in pictures):
        known.append(Line2D([], [], color='black', linestyle=(0, (2, 1.2)), linewidth=1.4,
                            label='what the network sees'))
    if any(p.keep.any() and not p.keep.all() for p in pictures):
        known.append(Line2D([], [], color=GREY, linewidth=0.9, label='border of what is erased'))
    if known:
        legend = figure.legend(
            handles=known, loc='lower left', bbox_to_anchor=(at[0] / width, at[1] / height), frameon=False,
            fontsize=7, borderpad=0, borderaxespad=0, labelspacing=0.25, handlelength=1.6, handleheight=0.9)
        legend.set_in_layout(False)


def _lines(figure: Any, x: float, y: float, step: float, lines: Sequence[Tuple[str, Dict[str, Any]]]) -> None:
    for j, (line, style) in enumerate(lines):
        _text(figure, x, y - step * j, line, fontsize=8, **style)


def _text(where: Any, x: float, y: float, text: str, va: str = 'top', **kwargs: Any) -> None:
    where.text(x, y, text, va=va, **kwargs)


def _cut(text: str, n: int, front: bool = False) -> str:
    """Shorten a text to n printable characters: drop its later names first, then cut one end."""
    text = shown(text)
    while len(text) > n and ', ' in text and not front:  # ImageNet's names of one class
        text = text.rpartition(', ')[0]
    if len(text) <= n:
        return text
    return f'…{text[1 - n:]}' if front else f'{text[:n - 1]}…'


def save_figure(figure: Any, path: Union[str, Path], dpi: int = 150) -> None:
    """Save a figure, whole or not at all, with all its text drawn literally, never as a formula.

    Args:
        figure: A figure of matplotlib.
        path: Where it goes; its ending, one of FORMATS, says what it is.
        dpi: Pixels per inch of a PNG; images inside the other formats have 300.

    Raises:
        ValueError: The ending is not one of FORMATS.
    """
    import matplotlib
    from matplotlib.text import Text

    kind = os.path.splitext(path)[1].removeprefix('.')
    if kind not in FORMATS:
        raise ValueError(f'{path} is no name of a picture: let it end in one of .{", .".join(FORMATS)}.')
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)
    settings: Dict[Any, Any] = {
        'text.parse_math': False, 'text.usetex': False,  # for tick labels, which are only made during drawing
        'savefig.bbox': None, 'pdf.fonttype': 42}  # text of a PDF stays text
    # the default's last tenth of compression takes as long as all of the drawing
    kwargs = dict(dpi=dpi, pil_kwargs=dict(compress_level=2)) if kind == 'png' else dict(dpi=300)
    with open_whole(path, 'wb') as f, matplotlib.rc_context(settings), warnings.catch_warnings():
        # characters that the font lacks are drawn as boxes
        warnings.filterwarnings('ignore', 'Glyph .* missing from', UserWarning)
        figure.savefig(f, format=kind, **kwargs)
