"""Receptive field of any network: the pixels that a position of a feature sees ("See More for Scene", Table 2, RF).

The network runs on boxes instead of numbers. Every element of every tensor carries the box of input pixels that it
depends on. An operation gives each of its results the smallest box around the boxes of the elements that the result is
computed from: the elements under the kernel of a convolution or a pool, the two terms of a sum, the one element that an
activation takes. Views, slices, concatenations and permutations move boxes as they move numbers, so nobody has to say
which dimensions of a tensor are the height and width of the image.

At the feature the boxes are read: away from the border they have one size, and move by one stride from a position to
the next. For plain convolutions this gives the textbook's r += (k - 1) j, j *= s, and the maximum where paths join.

A box is (first row, -last row, first column, -last column), so the smallest box around several is their minimum.

No activation is computed, and boxes take little memory. The rows that an element sees depend on its height alone, so an
edge of all boxes of a tensor is one line of numbers, expanded over the other dimensions (stride 0). An image of
7168 x 7168 pixels costs about 7168 numbers.

Some operations are global. What they see grows with the image, as for a mean over all positions (the pool of a
squeeze-and-excite gate), or depends on the position or the data, as in attention. Boxes leave these operations out: a
gate adds nothing, and attention gives each query its own box. Beside its box, each element carries the number of the
first global operation that it depends on. So a single run finds the size without global operations, whether the
receptive field is infinite with them, and which module makes it so.
"""
import copy
import difflib
import functools
import math
import numbers
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .boxes import Number, Seen, blind, over, sees, thinned
from .rules import Refused, Run, Traced, seen_by

__all__ = ['ReceptiveField', 'receptive_field']

GROWTH = (1, 4, 16, 64)  # sizes to try, in times the model's own: the middle must be away from the border
ENOUGH = 33  # so many positions away from the border show a sliding window, if there is one


class ReceptiveField(NamedTuple):
    """Receptive field: position p of a feature sees `size` pixels of the image, and the first is `start + stride * p`.

    All numbers are input pixels. Each is one number if it is the same for rows and columns, else a pair (rows,
    columns).

    Attributes:
        size: Number of pixels from the first to the last that a position sees. Infinite if the feature depends on a
            global operation. Where positions differ, as after interpolation, the largest.
        stride: Pixels from one position to the next (the jump). nan if the size is infinite and the traced image was
            too small to find the stride.
        start: First pixel that position 0 sees; negative if it lies in the padding, minus infinity if the size is
            infinite.
        through: Name of the module that has the first global operation on the way to the feature; None if there is
            none.
    """
    size: Union[Number, Tuple[Number, Number]]
    stride: Union[Number, Tuple[Number, Number]]
    start: Union[Number, Tuple[Number, Number]]
    through: Optional[str] = None


def receptive_field(
        model: nn.Module,
        feature: Union[None, int, str] = None,
        *,
        through_global: bool = False,
        input_size: Optional[Sequence[int]] = None,
) -> ReceptiveField:
    """Find the receptive field of a feature of any model (RF in Table 2 of "See More for Scene").

    A pixel belongs to the receptive field of a position if it can change the value there for some weights. So the
    field is the set of pixels with a nonzero gradient if the network were linear and had only positive weights.

    The field is infinite if the feature depends on a global operation: a mean over all positions whose result comes
    back to the feature (squeeze-and-excite), a norm over positions (GroupNorm), a layer that mixes all positions, or
    attention of any kind. Attention in windows counts too, because its windows do not slide.

    Args:
        model: A model of any library. It is not changed: a copy that shares its parameters is traced in evaluation
            mode.
        feature: Name of a submodule, which stands for the output of its first call, or an index into timm's
            `feature_info`. By default the last feature before the global pool or the classifier.
        through_global: Leave global operations out, and return the size without them.
        input_size: Channels, height and width of the image to trace the model on. By default the size that the model is
            made for; if every position feels the border there, multiples of that size, as far as the model takes them.

    Raises:
        ValueError: The model has no such feature; the feature does not see the image through a sliding window; the
            model cannot be run on the image; the model uses an operation that is not known here; or the image is too
            small to find the size.
    """
    name, before = _find_feature(model, feature)
    what = f'the last feature of {type(model).__name__}' if name is None else f'the feature {name!r}'
    tried: List[Tuple[int, int, int]] = []
    for image in _images(model, input_size):
        try:
            seen, through = _trace(model, image, name, before)
        except _CannotRun:
            if not tried:
                raise
            break  # the model takes no larger images
        tried.append(image)
        infinite = through is not None and not through_global
        if not sees(seen):
            if infinite:
                return ReceptiveField(math.inf, math.inf, -math.inf, through)
            raise ValueError(f'No position of {what} has a place of its own in the image: name another feature.')
        lines = _lines(seen)
        laws = [_law(*line) for line in lines]
        if all(laws):
            size, stride, start = (a if a == b else (a, b) for a, b in zip(*laws))
            return ReceptiveField(math.inf if infinite else size, stride, -math.inf if infinite else start, through)
        lawless = all(law or len(_inner(*line)) >= ENOUGH for law, line in zip(laws, lines))
        if lawless:
            break
    if infinite:
        return ReceptiveField(math.inf, math.nan, -math.inf, through)
    if lawless:
        raise ValueError(f'What {what} sees of the image is no sliding window: name another feature.')
    raise ValueError(
        f'An image of {tried[-1][1]} x {tried[-1][2]} pixels is too small to find the receptive field of {what}: '
        'give a larger input_size, or make the model for larger images (img_size).')


# ---- the model, its feature, its images ----

def _find_feature(model: nn.Module, feature: Union[None, int, str]) -> Tuple[Optional[str], bool]:
    """Return the name of a feature's module, and whether the feature is the input of the module, not its output."""
    if feature is None:
        return None, False
    info = getattr(model, 'feature_info', [])
    info = list(getattr(info, 'info', info))  # timm keeps a list of dicts, or a FeatureInfo around it
    entry = {'module': feature}
    if isinstance(feature, numbers.Integral) and not isinstance(feature, bool):
        if not -len(info) <= feature < len(info):
            known = ', '.join(f"{i}: {f['module']}" for i, f in enumerate(info))
            raise ValueError(
                f'{type(model).__name__} has no feature {feature}: '
                + (f'choose one of {known}.' if known else 'it has no feature_info, so give the name of a submodule.'))
        entry = info[feature]
    wanted, before = str(entry['module']), entry.get('hook_type') == 'forward_pre'
    names = [name for name, _ in model.named_modules() if name]
    if wanted in names:
        return wanted, before
    ending = [name for name in names if name.endswith(f'.{wanted}')]  # in a wrapper such as DistributedDataParallel
    if len(ending) == 1:
        return ending[0], before
    near = ending or difflib.get_close_matches(str(wanted), names) or [name for name, _ in model.named_children()]
    raise ValueError(
        f'{type(model).__name__} has no module {wanted!r}: choose one of its modules, such as {", ".join(near[:5])}.')


def _images(model: nn.Module, input_size: Optional[Sequence[int]]) -> List[Tuple[int, int, int]]:
    """Return channels, height and width of the images to try, the smallest first."""
    if input_size is not None:
        if len(input_size) != 3 or not all(isinstance(n, numbers.Integral) and n > 0 for n in input_size):
            raise ValueError(f'input_size is {input_size!r}: give the channels, height and width of an image.')
        channels, height, width = map(int, input_size)
        return [(channels, height, width)]
    if getattr(model, 'pretrained_cfg', None):  # a timm model
        channels, height, width = get_model_input_config(model)['input_size']
    else:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
        height = width = 224
    return [(channels, times * height, times * width) for times in GROWTH]


def _skeleton(model: nn.Module) -> nn.Module:
    """Copy the model, in evaluation mode and with shared parameters, so that hooks on the copy leave it unchanged."""
    memo: Dict[int, Any] = {}
    for module in model.modules():
        memo.update((id(p), p) for p in module.parameters(recurse=False))
        # deepcopy refuses results of autograd, such as the weight that torch.nn.utils.weight_norm leaves
        memo.update((id(t), t.detach().clone()) for t in vars(module).values() if isinstance(t, Tensor))
    return copy.deepcopy(model, memo).eval()


class _CannotRun(ValueError):
    """The model fails on an image of this size; raised with the model's own error."""


class _Reached(Exception):
    """The run has reached the feature; raised to skip the rest of the model."""


def _trace(
        model: nn.Module,
        image: Tuple[int, int, int],
        name: Optional[str],
        before: bool,
) -> Tuple[Seen, Optional[str]]:
    """Return what the elements of a feature see of an image, and the module of its first global operation, if any."""
    skeleton, run = _skeleton(model), Run([type(model).__name__], [])

    def enter(path: str, module: nn.Module, args: Tuple) -> None:
        run.path.append(path)
        if path == name and before:
            reach(args[0])

    def leave(path: str, module: nn.Module, args: Tuple, output: Any) -> None:
        if path == name and not before:
            reach(output)
        run.path.pop()

    def reach(feature: Any) -> None:
        if not isinstance(feature, Tensor):
            raise Refused(f'The feature {name!r} is a {type(feature).__name__}, not a tensor: name a module inside it.')
        run.last = seen_by(feature) or blind(feature.shape)
        raise _Reached

    for path, module in skeleton.named_modules():
        if path:
            module.register_forward_pre_hook(functools.partial(enter, path))
            module.register_forward_hook(functools.partial(leave, path))
    like = next((p for p in skeleton.parameters() if p.is_floating_point()), torch.empty(0))
    x = torch.empty(1, *image, dtype=like.dtype, device='meta')
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in image[1:])
    edges = [rows[:, None], -rows[:, None], columns, -columns, torch.tensor(math.inf)]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # so that attention runs as the single operations it consists of
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            skeleton(Traced(run, x, like.device, [edge.expand(x.shape) for edge in edges]))
        if name is not None:
            raise Refused(f'{type(model).__name__} does not run its module {name!r} in evaluation mode: name another.')
    except _Reached:
        pass
    except Refused:
        raise
    except Exception as e:
        raise _CannotRun(
            f'{run.path[-1]} cannot be traced on an image of {" x ".join(map(str, image))} '
            f'({type(e).__name__}: {e}): give an input_size that the model takes, or a feature before it.') from e
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if run.last is None:
        raise Refused(f'No result of {type(model).__name__} sees a part of the image at each position: name a feature.')
    number = thinned(run.last[4]).min()
    return run.last, run.globals[int(number)] if number.isfinite() else None


# ---- reading a feature ----

def _lines(seen: Seen) -> List[Tuple[Tensor, Tensor]]:
    """Return the first and the last pixel that each position sees: a pair of vectors for rows, and one for columns.

    The positions of an axis lie along the dimension of the feature in which that axis' edges change most.
    """
    dims = [max(range(edge.dim()), key=functools.partial(_spread, edge)) for edge in (seen[0], seen[2])]
    lines = []
    for axis, dim in enumerate(dims):
        others = [d for d in range(seen[0].dim()) if d != dim]
        first, last = (over(edge, others).flatten() for edge in seen[2 * axis:2 * axis + 2])
        line = torch.stack([first, -last])[:, first.isfinite()]
        if dims[0] == dims[1]:  # tokens: the positions of rows and of columns in one sequence
            line = line.unique(dim=1)
        lines.append((line[0], line[1]))
    return lines


def _spread(edge: Tensor, dim: int) -> float:
    """Return the largest change of an edge along a dimension."""
    edge = thinned(edge)
    spread = edge.where(edge.isfinite(), -math.inf).amax(dim) - edge.amin(dim)
    return spread.where(spread.isfinite(), 0).max().item()


def _inner(first: Tensor, last: Tensor) -> range:
    """Return the positions that do not feel the border.

    These are the neighbouring positions that see the most pixels, each as many as the next. Where the number changes
    from position to position, as after upsampling, these are the positions that see neither the first nor the last
    pixel.
    """
    sides = last - first
    largest = (sides == sides.max()).nonzero().flatten()
    if len(largest) > 2 and bool((largest.diff() == 1).all()) and bool((first[largest].diff() > 0).all()):
        return range(int(largest[0]), int(largest[-1]) + 1)
    inner = ((first > first.min()) & (last < last.max())).nonzero().flatten()
    return range(int(inner[0]), int(inner[-1]) + 1) if len(inner) else range(0)


def _law(first: Tensor, last: Tensor) -> Optional[Tuple[Number, Number, Number]]:
    """Return size, stride and start of the sliding window that explains each position's first and last pixel, or None.

    After upsampling, single steps differ, but the window moves equally far in each period of positions.
    """
    inner = _inner(first, last)
    first, last = (edge[inner.start:inner.stop] for edge in (first, last))
    for period in range(1, (len(inner) - 1) // 2 + 1):
        steps = torch.cat([first[period:] - first[:-period], last[period:] - last[:-period]])
        if steps[0] > 0 and bool((steps == steps[0]).all()):
            stride = steps[0].item() / period
            i = -inner.start % period  # the first inner position that is whole periods away from position 0
            size, start = (last - first).max().item() + 1, first[i].item() - inner[i] * stride
            whole = [int(n) if n == int(n) else n for n in (size, stride, start)]
            return whole[0], whole[1], whole[2]
    return None
