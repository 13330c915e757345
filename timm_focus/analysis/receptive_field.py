"""Receptive field of any network: the pixels that a position of a feature sees ("See More for Scene", Table 2, RF).

The network runs on boxes instead of numbers. Every element of every tensor carries the box of input pixels that it
depends on, and every operation gives its results the smallest boxes around those of what they are computed from: the
elements under the kernel of a convolution or a pool, the two terms of a sum, the same element for an activation. Views,
slices, concatenations and permutations move boxes as they move numbers, so nobody has to say which dimensions of a
tensor are the image's. At the feature the boxes are read off: away from the border they have one size, and move by one
stride from a position to the next. For plain convolutions that is the textbook's r += (k - 1) j, j *= s, with the
maximum where paths join.

A box is (first row, -last row, first column, -last column), so that the box around boxes is a minimum.

No number is computed, and boxes are cheap: the rows that elements see change along the height alone, so an edge of all
the boxes of a tensor is a line, expanded over the other dimensions (stride 0). An image of 7168 x 7168 pixels costs
about 7168 numbers.

Some operations are global: what they see grows with the image, as a mean over all positions does (the pool of a
squeeze-and-excite gate), or depends on the place or the data, as in attention. They are left out of the boxes: a gate
then adds nothing, and attention leaves each query its own box. Beside its box each element carries the number of the
first global operation that it depends on. So one run tells the size without them, and whether, and through which
module, the receptive field is infinite.
"""
import copy
import difflib
import functools
import math
import numbers
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from timm.models import get_model_input_config
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ['ReceptiveField', 'receptive_field']

GROWTH = (1, 4, 16, 64)  # sides of the image in those a model is made for, until the border is away from the middle
ENOUGH = 33  # positions away from the border that show a sliding window if there is one

# What the elements of a tensor see: the four edges of their boxes, and the number of the first global operation, each
# of the tensor's shape. Infinite where no pixel is seen, and where no global operation was used.
Seen = List[Tensor]
Number = Union[int, float]


class ReceptiveField(NamedTuple):
    """What position p of a feature sees of the image: `size` pixels, the first of them at `start + stride * p`.

    All in input pixels. A field is one number where rows and columns have the same, else a pair (of rows, of columns).

    Attributes:
        size: Number of pixels from the first to the last that is seen; infinite through a global operation. The largest
            where positions differ, as after interpolation.
        stride: Pixels from one position to the next (the jump); nan where the image is too small to tell, which is no
            error if the size is infinite.
        start: First pixel that position 0 sees, negative if that is padding; minus infinity if the size is infinite.
        through: Name of the module of the first global operation on the way to the feature, None if there is none.
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
    """Receptive field of a feature of any model, by default of the last before the global pool or the classifier.

    What counts is what can matter, whatever the weights: the support of the gradient of one position with respect to
    the image, were the network linear and all its weights positive (Table 2 of "See More for Scene").

    It is infinite through global operations: means over all positions that come back to the feature
    (squeeze-and-excite), norms over positions (GroupNorm), layers that mix all positions, and attention of every kind,
    also in windows, whose reach is no sliding window.

    Args:
        model: The model, of any library. A copy that shares its parameters is traced in evaluation mode.
        feature: Name of a submodule, whose output (of its first call) is meant, or an index into timm's `feature_info`.
        through_global: Leave the global operations out, and tell the size without them.
        input_size: Channels, height and width of the image to trace the model on. By default what the model is made
            for, and multiples of it if the model takes them and the border is not away from the middle.

    Raises:
        ValueError: There is no such feature, or it does not see the image through a sliding window; the model cannot be
            run, or does what is not known here; or the image is too small to tell.
    """
    name, before = _find_feature(model, feature)
    what = f'the last feature of {type(model).__name__}' if name is None else f'the feature {name!r}'
    tried = []
    for image in _images(model, input_size):
        try:
            seen, through = _trace(model, image, name, before)
        except _CannotRun:
            if not tried:
                raise
            break  # the model takes no larger images
        tried.append(image)
        infinite = through is not None and not through_global
        if not _sees(seen):
            if infinite:
                return ReceptiveField(math.inf, math.inf, -math.inf, through)
            raise ValueError(f'No position of {what} sees a place of the image of its own: name another feature.')
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
        raise ValueError(f'The positions of {what} are not those of a sliding window: name another feature.')
    raise ValueError(
        f'An image of {tried[-1][1]} x {tried[-1][2]} pixels is too small to tell the receptive field of {what}: '
        'give a larger input_size, or make the model for larger images (img_size).')


# ---- the model, its feature, its images ----

def _find_feature(model: nn.Module, feature: Union[None, int, str]) -> Tuple[Optional[str], bool]:
    """Name of the module of a feature, and whether the feature goes into the module instead of coming out of it."""
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
    wanted, before = entry['module'], entry.get('hook_type') == 'forward_pre'
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
    """Channels, height and width of the images to try, the smallest first."""
    if input_size is not None:
        if len(input_size) != 3 or not all(isinstance(n, numbers.Integral) and n > 0 for n in input_size):
            raise ValueError(f'input_size is {input_size!r}: give the channels, height and width of an image.')
        return [tuple(input_size)]
    if getattr(model, 'pretrained_cfg', None):  # a timm model
        channels, height, width = get_model_input_config(model)['input_size']
    else:
        channels = next((m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d)), 3)
        height = width = 224
    return [(channels, times * height, times * width) for times in GROWTH]


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares the parameters, to be hooked and run without a trace on the model."""
    memo = {}
    for module in model.modules():
        memo.update((id(p), p) for p in module.parameters(recurse=False))
        # results of autograd, as the weight that torch.nn.utils.weight_norm leaves, cannot be copied as they are
        memo.update((id(t), t.detach().clone()) for t in vars(module).values() if isinstance(t, Tensor))
    return copy.deepcopy(model, memo).eval()


class _Refused(ValueError):
    """What is asked for does not go."""


class _CannotRun(ValueError):
    """The model fails on an image of this size."""


class _Reached(Exception):
    """The feature is known: what comes after it does not matter."""


def _trace(
        model: nn.Module,
        image: Tuple[int, int, int],
        name: Optional[str],
        before: bool,
) -> Tuple[Seen, Optional[str]]:
    """What the elements of a feature see of an image, and the module of the first global operation on the way to it."""
    skeleton, run = _skeleton(model), _Run([type(model).__name__], [])

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
            raise _Refused(f'The feature {name!r} is a {type(feature).__name__}, not a tensor: name a part of it.')
        run.last = _seen(feature) or _blind(feature.shape)
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
        torch.backends.mha.set_fastpath_enabled(False)  # attention is to be seen in the operations that it consists of
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            skeleton(_Traced(run, x, like.device, [edge.expand(x.shape) for edge in edges]))
        if name is not None:
            raise _Refused(f'{type(model).__name__} does not run its module {name!r} in evaluation: name another.')
    except _Reached:
        pass
    except _Refused:
        raise
    except Exception as e:
        raise _CannotRun(
            f'{run.path[-1]} cannot be traced on an image of {" x ".join(map(str, image))} '
            f'({type(e).__name__}: {e}): give an input_size that the model takes, or a feature before it.') from e
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    number = _thin(run.last[4]).min()
    return run.last, run.globals[int(number)] if number.isfinite() else None


# ---- reading a feature ----

def _lines(seen: Seen) -> List[Tuple[Tensor, Tensor]]:
    """First and last pixel that each position sees, for the rows and for the columns: vectors of all positions.

    The positions of an axis are along the dimension of the feature where the edges change most.
    """
    dims = [max(range(edge.dim()), key=functools.partial(_spread, edge)) for edge in (seen[0], seen[2])]
    lines = []
    for axis, dim in enumerate(dims):
        others = [d for d in range(seen[0].dim()) if d != dim]
        first, last = (_over(edge, others).flatten() for edge in seen[2 * axis:2 * axis + 2])
        line = torch.stack([first, -last])[:, first.isfinite()]
        if dims[0] == dims[1]:  # tokens: the positions of rows and of columns in one sequence
            line = line.unique(dim=1)
        lines.append((line[0], line[1]))
    return lines


def _spread(edge: Tensor, dim: int) -> float:
    """Largest change of an edge along a dimension."""
    edge = _thin(edge)
    spread = edge.where(edge.isfinite(), -math.inf).amax(dim) - edge.amin(dim)
    return spread.where(spread.isfinite(), 0).max().item()


def _inner(first: Tensor, last: Tensor) -> range:
    """Positions that do not feel the border.

    They see more than those that do, each as much as the next; or, where that changes from position to position, as
    after upsampling, neither the first nor the last pixel.
    """
    sides = last - first
    largest = (sides == sides.max()).nonzero().flatten()
    if len(largest) > 2 and bool((largest.diff() == 1).all()) and bool((first[largest].diff() > 0).all()):
        return range(int(largest[0]), int(largest[-1]) + 1)
    inner = ((first > first.min()) & (last < last.max())).nonzero().flatten()
    return range(int(inner[0]), int(inner[-1]) + 1) if len(inner) else range(0)


def _law(first: Tensor, last: Tensor) -> Optional[Tuple[Number, Number, Number]]:
    """Size, stride and start of a sliding window from the first and last pixel of each position, None if there is none.

    After upsampling the window moves by the same once in a period of positions.
    """
    inner = _inner(first, last)
    first, last = (edge[inner.start:inner.stop] for edge in (first, last))
    for period in range(1, (len(inner) - 1) // 2 + 1):
        steps = torch.cat([first[period:] - first[:-period], last[period:] - last[:-period]])
        if steps[0] > 0 and bool((steps == steps[0]).all()):
            stride = steps[0].item() / period
            i = -inner.start % period  # whole periods from position 0
            size, start = (last - first).max().item() + 1, first[i].item() - inner[i] * stride
            return tuple(int(n) if n == int(n) else n for n in (size, stride, start))
    return None


# ---- edges of boxes: tensors expanded (stride 0) along the dimensions in which they are known to be constant ----

def _thin(edge: Tensor) -> Tensor:
    """Size 1 along the dimensions that are expanded."""
    return edge[tuple(slice(1) if stride == 0 else slice(None) for stride in edge.stride())]


def _dense(edge: Tensor, dims: Sequence[int]) -> Tensor:
    """Thin, but for some dimensions, along which it is not expanded."""
    keep = [d in dims or stride for d, stride in enumerate(edge.stride())]
    return edge[tuple(slice(None) if k else slice(1) for k in keep)].clone(memory_format=torch.contiguous_format)


def _settle(edge: Tensor) -> Tensor:
    """Expanded along all dimensions in which it is constant."""
    thin = _thin(edge)
    for dim in range(thin.dim()):
        if thin.shape[dim] > 1 and bool((thin == thin.narrow(dim, 0, 1)).all()):
            thin = thin.narrow(dim, 0, 1)
    return thin.expand(edge.shape)


def _blind(shape: Sequence[int], through: Number = math.inf) -> Seen:
    """What elements see that see no pixel, as constants."""
    return [torch.tensor(float(value)).expand(shape) for value in (math.inf,) * 4 + (through,)]


def _sees(seen: Seen) -> bool:
    """Whether any element sees a pixel."""
    return bool(_thin(seen[0]).min() < math.inf)


def _breadth(seen: Seen) -> Number:
    """Sum of the sides of the largest boxes, infinite if no pixel is seen."""
    sides = [-(_thin(first) + _thin(last)) for first, last in (seen[:2], seen[2:4])]
    return sum(side.where(side.isfinite(), 0).max().item() for side in sides) if _sees(seen) else math.inf


def _at_most(edge: Tensor, limit: Number) -> Tensor:
    return _thin(edge).clamp(max=limit).expand(edge.shape)


def _union(seen: Sequence[Seen], shape: Sequence[int]) -> Seen:
    """The boxes around those of tensors that are combined element by element."""
    return [functools.reduce(torch.minimum, map(_thin, edges)).expand(shape) for edges in zip(*seen)]


def _over(edge: Tensor, dims: Sequence[int]) -> Tensor:
    """Around all that lies along some dimensions, of which size 1 remains."""
    if not dims:
        return edge
    return _thin(edge).amin(dims, keepdim=True).expand([1 if d in dims else n for d, n in enumerate(edge.shape)])


def _slide(edge: Tensor, shape: Sequence[int], tables: Dict[int, Tensor]) -> Tensor:
    """Around the elements under a sliding kernel.

    Args:
        edge: An edge of boxes.
        shape: Shape of the result.
        tables: By dimension the positions `[n, taps]` under the kernel for each of n results; those out of range are
            padding, which sees nothing.
    """
    edge = _thin(edge)
    for dim, table in tables.items():
        n = edge.shape[dim]
        if n > 1:  # else it is constant, and remains so
            padded = torch.cat([edge, torch.full_like(edge.narrow(dim, 0, 1), math.inf)], dim)
            table = table.where((table >= 0) & (table < n), n)
            edge = padded.index_select(dim, table.flatten()).unflatten(dim, table.shape).amin(dim + 1)
    return edge.expand(shape)


def _taps(n: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool = False) -> Tensor:
    """Positions `[n, kernel]` under a sliding kernel, -1 for those that a transposed one skips."""
    results, offsets = torch.arange(n)[:, None], torch.arange(kernel) * dilation
    if not transposed:
        return results * stride - padding + offsets
    positions = results + padding - offsets
    return (positions // stride).where(positions % stride == 0, -1)


def _reshape(edge: Tensor, shape: Sequence[int]) -> Tensor:
    """The elements in another shape, still expanded where whole groups of dimensions that merge or split are."""
    old, new = list(edge.shape), list(shape)
    thin, target = [], []
    while old or new:
        a, b = 1, 1  # so many of the old dimensions become so many of the new ones
        while math.prod(old[:a]) != math.prod(new[:b]):
            a, b = (a + 1, b) if math.prod(old[:a]) < math.prod(new[:b]) else (a, b + 1)
        constant = all(n == 1 or edge.stride(len(thin) + i) == 0 for i, n in enumerate(old[:a]))
        thin += [slice(1) if constant else slice(None)] * len(old[:a])
        target += [1] * len(new[:b]) if constant else new[:b]
        old, new = old[a:], new[b:]
    return _settle(edge[tuple(thin)].reshape(target).expand(shape))


def _slices(base: Tensor, view: Tensor) -> Optional[Tuple[slice, ...]]:
    """The slices that make a view of a tensor, None if it is made otherwise."""
    offset, slices = view.storage_offset() - base.storage_offset(), [slice(None)] * base.dim()
    if base.dim() != view.dim():
        return None
    for dim in sorted(range(base.dim()), key=base.stride, reverse=True):
        n, stride = view.shape[dim], base.stride(dim)
        if base.shape[dim] > 1:
            step = view.stride(dim) // stride if n > 1 else 1
            start = offset // stride
            if step < 1 or n > 1 and view.stride(dim) % stride or start + (n - 1) * step >= base.shape[dim]:
                return None
            slices[dim] = slice(start, start + (n - 1) * step + 1, step)
            offset -= start * stride
    return None if offset else tuple(slices)


def _in_memory(edge: Tensor, base: Tensor, view: Tensor) -> Tuple[Tensor, Tensor]:
    """A copy of an edge of a tensor, laid out as the tensor is, and the view of it."""
    buffer = torch.empty_strided(base.shape, base.stride()).copy_(edge)
    return buffer, buffer.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())


def _part(edge: Tensor, base: Tensor, view: Tensor) -> Tensor:
    """Of an edge of a tensor what belongs to a view."""
    slices = _slices(base, view)
    return _in_memory(edge, base, view)[1] if slices is None else edge[slices]


def _put(edge: Tensor, base: Tensor, view: Tensor, new: Tensor) -> Tensor:
    """An edge of a tensor with another one where a view is."""
    slices = _slices(base, view)
    if slices is None:
        buffer, target = _in_memory(edge, base, view)
        target.copy_(new)
        return buffer
    constant = [base.shape[d] == view.shape[d] and edge.stride(d) == new.stride(d) == 0 for d in range(base.dim())]
    thin = tuple(slice(1) if c else slice(None) for c in constant)
    buffer = edge[thin].clone(memory_format=torch.contiguous_format)
    buffer[tuple(slice(None) if c else s for c, s in zip(constant, slices))] = new[thin]
    return buffer.expand(edge.shape)


def _join(edges: Sequence[Tensor], dim: int) -> Tensor:
    """One after the other along a dimension."""
    shape = list(edges[0].shape)
    shape[dim] = sum(edge.shape[dim] for edge in edges)
    keep = [dim] + [d for d in range(len(shape)) if any(edge.stride(d) for edge in edges)]
    return _settle(torch.cat([_dense(edge, keep) for edge in edges], dim).expand(shape))


# ---- the run on boxes ----

@dataclass
class _Run:
    """State of a run.

    Attributes:
        path: Names of the modules that are running, the innermost last.
        globals: Name of the module of each global operation so far.
        last: What the elements of the last result see, of those that see places of the image.
    """
    path: List[str]
    globals: List[str]
    last: Optional[Seen] = None

    def new_global(self) -> int:
        """Number of another global operation, that of the module that is running."""
        self.globals.append(self.path[-1])
        return len(self.globals) - 1

    def mix(self, seen: Seen, dims: Optional[Sequence[int]]) -> Seen:
        """All elements along some dimensions (by default all) together, which keep size 1.

        They see the box around theirs, or nothing if that is a global operation: if each then sees all that any element
        of the tensor does, along the height or the width, and did not before.
        """
        rank = seen[0].dim()
        dims = sorted({d % rank for d in dims}) if dims else list(range(rank))
        mixed = [_over(edge, dims) for edge in seen]
        edges = [(mixed[i:i + 2], seen[i:i + 2]) for i in (0, 2)]
        if not any(_all_reach(after, before) > _all_reach(before, before) for after, before in edges):
            return mixed
        through = _at_most(mixed[4], self.new_global())
        return [*_blind(through.shape)[:4], through]

    def refuse(self, func: Any, why: str = 'which mixes positions in a way that is not known here') -> None:
        raise _Refused(f'{self.path[-1]} uses {func}, {why}: name a feature before it.')


def _all_reach(edges: Sequence[Tensor], of: Sequence[Tensor]) -> bool:
    """Whether all that see anything see as far as any of others does."""
    ends = [_thin(edge).min() for edge in of]
    return all(bool(((_thin(edge) == end) | _thin(edge).isinf()).all()) for edge, end in zip(edges, ends))


class _Traced(Tensor):
    """A tensor without numbers, which knows what its elements see (`_seen`).

    Attributes:
        run: The run.
        meta: Its shape, strides and type: a tensor on the meta device.
        base: The tensor whose memory it shares, if it is a view of one.
        changes: How often operations in place changed what its memory sees.
    """
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, run: _Run, meta: Tensor, device: torch.device, seen: Seen, base: Optional['_Traced'] = None):
        t = torch.Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=meta.stride(), storage_offset=meta.storage_offset(), dtype=meta.dtype,
            device=device)
        t.run, t.meta, t.seen, t.base, t.changes = run, meta, seen, base, 0 if base is None else base.changes
        return t

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
        kwargs = {name: 'meta' if name == 'device' else value for name, value in (kwargs or {}).items()}
        schema = func._schema
        arguments = {a.name: a.default_value for a in schema.arguments}
        arguments.update(zip(arguments, args))
        arguments.update(kwargs)
        first = next(t for t in tree_leaves(arguments) if isinstance(t, cls))
        run = first.run
        rule = _RULES.get(_name(func))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = _pointwise
        if rule is None and func.is_view:
            rule = _move
        written = [arguments[a.name] for a in schema.arguments if a.alias_info and a.alias_info.is_write]
        if rule is None or written and not schema.name.endswith('_'):
            run.refuse(func)
        if written:
            t, = written
            if not isinstance(t, cls):
                run.refuse(func, 'which writes what depends on the image into a constant')
            _change(t, rule(run, func, arguments, t.meta))
            run.last = t.seen if _sees(t.seen) else run.last
            return t
        result = func(*_on_meta(args), **_on_meta(kwargs))
        seen = rule(run, func, arguments, result)
        several = not isinstance(result, Tensor)
        results = list(result) if several else [result]
        seen = seen if seen and isinstance(seen[0], list) else [seen] + [None] * (len(results) - 1)
        base = None if not func.is_view else first if first.base is None else first.base
        traced = [cls(run, t, first.device, s or _blind(t.shape), base) for t, s in zip(results, seen)]
        if not func.is_view and rule is not _view:
            run.last = next((t.seen for t in traced if _sees(t.seen)), run.last)
        return type(result)(traced) if several else traced[0]


def _name(func: Any) -> str:
    """Name of an operation, the same in place or not."""
    return func._schema.name.removeprefix('aten::').removesuffix('_')


def _on_meta(tree: Any) -> Any:
    return tree_map(lambda t: t.meta if isinstance(t, _Traced) else t.to('meta') if isinstance(t, Tensor) else t, tree)


def _seen(t: Any) -> Optional[Seen]:
    """What the elements of a tensor see, None for a constant."""
    if not isinstance(t, _Traced):
        return None
    if t.base is not None and t.changes < t.base.changes:  # the memory was written to through another view
        t.seen, t.changes = [_part(edge, t.base.meta, t.meta) for edge in t.base.seen], t.base.changes
    return t.seen


def _change(t: _Traced, seen: Seen) -> None:
    """Note what a tensor sees after an operation in place, which others that share its memory see, too."""
    if seen is t.seen:
        return
    t.seen, base = seen, t if t.base is None else t.base
    if base is not t:
        base.seen = [_put(edge, base.meta, t.meta, new) for edge, new in zip(base.seen, seen)]
    base.changes += 1
    t.changes = base.changes


# ---- what operations do to boxes ----

_RULES: Dict[str, Callable] = {}


def _rule(*names: str) -> Callable:
    """Registers a function for operations of torch.ops.aten, by their names without the _ of those in place.

    It is called with the run, the operation, its arguments by name and its result without numbers, and returns what the
    elements of the result see, or a list of that for several results.
    """
    def register(function: Callable) -> Callable:
        _RULES.update(dict.fromkeys(names, function))
        return function
    return register


@_rule('hardswish', '_prelu_kernel')  # the others are marked as such by torch
def _pointwise(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """Each element from those at its place."""
    seen = [s for s in map(_seen, tree_leaves(list(a.values()))) if s is not None]
    return seen[0] if len(seen) == 1 and seen[0][0].shape == result.shape else _union(seen, result.shape)


@_rule('clone', '_to_copy')
def _same(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    return _seen(a['self'])


@_rule('copy', 'fill', 'zero')
def _overwrite(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    seen = _seen(a.get('src', a.get('value')))
    return [edge.expand(result.shape) for edge in seen] if seen else _blind(result.shape)


@_rule('zeros_like', 'ones_like', 'empty_like', 'full_like', 'new_zeros', 'new_ones', 'new_empty', 'new_full')
def _constant(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> None:
    """Takes the shape of a tensor and none of its numbers."""


@_rule('view', '_unsafe_view')
def _view(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    if not result.numel() or result.numel() != a['self'].numel():
        run.refuse(func)
    return [_reshape(edge, result.shape) for edge in _seen(a['self'])]


@_rule('as_strided')
def _as_strided(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    base = a['self'] if a['self'].base is None else a['self'].base
    return [_part(edge, base.meta, result) for edge in base.seen]


@_rule('index', 'index_select', 'gather', 'roll', 'flip', 'repeat', 'pixel_shuffle', 'pixel_unshuffle', 'unsafe_split')
def _move(run: _Run, func: Any, a: Dict[str, Any], result: Any) -> Union[Seen, List[Seen]]:
    """Views, and all else that takes elements from elsewhere as they are: they move boxes as they move numbers."""
    others = {name: value for name, value in a.items() if name != 'self'}
    if any(isinstance(t, _Traced) for t in tree_leaves(others)):
        run.refuse(func, 'which takes elements that depend on the data')
    others = tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, others)
    edges = [func(edge, **others) for edge in _seen(a['self'])]
    return edges if isinstance(result, Tensor) else [list(edge) for edge in zip(*edges)]


@_rule('cat', 'stack')
def _cat(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    dim, stack = a['dim'] % result.dim(), _name(func) == 'stack'
    parts = [_seen(t) or _blind(t.shape) for t in a['tensors'] if t.numel()]
    return [_join([edge.unsqueeze(dim) if stack else edge for edge in edges], dim) for edges in zip(*parts)]


_PADS = {
    'constant_pad_nd': 'constant', 'reflection_pad1d': 'reflect', 'reflection_pad2d': 'reflect',
    'replication_pad1d': 'replicate', 'replication_pad2d': 'replicate',
}


@_rule(*_PADS)
def _pad(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    seen, ends = _seen(a['self']), a.get('pad', a.get('padding'))
    mode, tables = _PADS[_name(func)], {}
    for i in range(len(ends) // 2):
        dim = result.dim() - 1 - i
        positions = torch.arange(a['self'].shape[dim], dtype=torch.float32)[None]
        ends_here = ends[2 * i:2 * i + 2]
        padded = F.pad(positions, ends_here, mode, -1) if mode == 'constant' else F.pad(positions, ends_here, mode)
        tables[dim] = padded.long().view(-1, 1)
    # along channels boxes are constant, and what is padded sees nothing
    channels = [dim for dim in tables if not any(edge.stride(dim) for edge in seen) and mode == 'constant']
    return [_slide(_dense(edge, channels), result.shape, tables) for edge in seen]


@_rule('convolution')
def _convolution(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The channels of a group together, then a sliding kernel; one that depends on the image is a global operation."""
    def channels(edge: Tensor) -> Tensor:
        edge = _thin(edge)
        if edge.shape[1] > 1:
            edge = edge.unflatten(1, (a['groups'], -1)).amin(2)
        return edge.repeat_interleave(result.shape[1] // edge.shape[1], 1) if edge.shape[1] > 1 else edge

    kernels = a['weight'].shape[2:]
    tables = _tables(result, kernels, a['stride'], a['padding'], a['dilation'], [a['transposed']])
    seen = [_slide(channels(edge), result.shape, tables) for edge in _seen(a['input']) or _blind(a['input'].shape)]
    weight = _seen(a['weight'])
    if weight is None:
        return seen
    number = run.new_global() if _sees(weight) else math.inf
    return [*seen[:4], _at_most(seen[4], min(number, _thin(weight[4]).min().item()))]


@_rule('max_pool2d_with_indices', 'max_pool3d_with_indices', 'avg_pool1d', 'avg_pool2d', 'avg_pool3d')
def _pool(run: _Run, func: Any, a: Dict[str, Any], result: Any) -> Seen:
    result, kernels = result if isinstance(result, Tensor) else result[0], a['kernel_size']
    kernels = [kernels[i % len(kernels)] for i in range(int(_name(func).split('pool')[1][0]))]
    spatial = range(result.dim() - len(kernels), result.dim())
    if all(result.shape[d] == 1 for d in spatial):  # over all positions
        return [edge.expand(result.shape) for edge in run.mix(_seen(a['self']), spatial)]
    tables = _tables(result, kernels, a['stride'] or kernels, a['padding'], a.get('dilation', [1]), [False])
    return [_slide(edge, result.shape, tables) for edge in _seen(a['self'])]


def _tables(result: Tensor, kernels: Sequence[int], *settings: Sequence[int]) -> Dict[int, Tensor]:
    """For `_slide`: `_taps` along the last dimensions, of a setting for each of them, or of one for all."""
    first = result.dim() - len(kernels)
    return {first + i: _taps(result.shape[first + i], kernel, *(setting[i % len(setting)] for setting in settings))
            for i, kernel in enumerate(kernels)}


def _windows(a: Dict[str, Any], size: Sequence[int]) -> List[int]:
    """How many windows of a kernel fit into a map, by height and width."""
    return [
        (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n, kernel, dilation, padding, stride in zip(
            size, a['kernel_size'], a['dilation'], a['padding'], a['stride'])]


@_rule('im2col')
def _unfold(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The elements under a kernel as channels: those of each of its taps."""
    (h, w), shape = a['kernel_size'], [*a['self'].shape[:2], *_windows(a, a['self'].shape[2:])]
    rows, columns = (_taps(n, *setting) for n, *setting in zip(
        shape[2:], a['kernel_size'], a['stride'], a['padding'], a['dilation']))
    return [_reshape(_join([
        _slide(edge, shape, {2: rows[:, i:i + 1], 3: columns[:, j:j + 1]}).unsqueeze(2)
        for i in range(h) for j in range(w)
    ], 2), result.shape) for edge in _seen(a['self'])]


@_rule('col2im')
def _fold(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The reverse: each element from the taps that lie on it."""
    (h, w), shape = a['kernel_size'], result.shape
    rows, columns = (_taps(n, *setting, True) for n, *setting in zip(
        shape[2:], a['kernel_size'], a['stride'], a['padding'], a['dilation']))
    taps = [_reshape(edge, [*shape[:2], h, w, *_windows(a, shape[2:])]) for edge in _seen(a['self'])]
    return _union([
        [_slide(edge[:, :, i, j], shape, {2: rows[:, i:i + 1], 3: columns[:, j:j + 1]}) for edge in taps]
        for i in range(h) for j in range(w)], shape)


@_rule('upsample_nearest1d', 'upsample_nearest2d', '_upsample_nearest_exact1d', '_upsample_nearest_exact2d',
       'upsample_linear1d', 'upsample_bilinear2d', 'upsample_bicubic2d', '_upsample_bilinear2d_aa',
       '_upsample_bicubic2d_aa')
def _upsample(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """Interpolation: what it takes along an axis shows in what becomes of each unit vector."""
    x, tables = a['self'].meta, {}
    scales = [name for name in a if name.startswith('scales')]
    for dim, scale in zip(range(2, x.dim()), scales):
        n = x.shape[dim]
        units = torch.eye(n).view([1, n] + [n if d == dim else 1 for d in range(2, x.dim())])
        one_axis = {**a, **dict.fromkeys(scales), scale: a[scale], 'self': units,
                    'output_size': [result.shape[dim] if d == dim else 1 for d in range(2, x.dim())]}
        used = func(*one_axis.values()).view(n, -1).T != 0
        taps = used.float().topk(int(used.sum(1).max())).indices
        tables[dim] = taps.where(used.gather(1, taps), -1)
    return [_slide(edge, result.shape, tables) for edge in _seen(a['self'])]


@_rule('_adaptive_avg_pool2d', '_adaptive_avg_pool3d', 'adaptive_max_pool2d', 'adaptive_max_pool3d')
def _adaptive_pool(run: _Run, func: Any, a: Dict[str, Any], result: Any) -> Seen:
    """Nothing where the size is as it should be; else a global operation, whose windows grow with the image."""
    seen, shape = _seen(a['self']), (result if isinstance(result, Tensor) else result[0]).shape
    if seen[0].shape == shape:
        return seen
    return _blind(shape, min(run.new_global() if _sees(seen) else math.inf, _thin(seen[4]).min().item()))


@_rule('mean', 'sum', 'amax', 'amin', 'max', 'min', 'prod', 'var', 'var_mean', 'std', 'std_mean', 'logsumexp',
       'linalg_vector_norm', 'norm', 'any', 'all', 'argmax', 'argmin')
def _reduce(run: _Run, func: Any, a: Dict[str, Any], result: Any) -> Union[Seen, List[Seen]]:
    dims = a.get('dim')
    mixed = run.mix(_seen(a['self']), [dims] if isinstance(dims, int) else dims)
    if isinstance(result, Tensor):
        return [_reshape(edge, result.shape) for edge in mixed]
    return [[_reshape(edge, r.shape) for edge in mixed] for r in result]


@_rule('_softmax', '_log_softmax', '_safe_softmax', 'cumsum', 'native_layer_norm', 'native_group_norm',
       'native_batch_norm')
def _normalize(run: _Run, func: Any, a: Dict[str, Any], result: Any) -> Seen:
    """Each element by all along some dimensions: if that is a global operation, it keeps its own box."""
    seen, name = _seen(a.get('self', a.get('input'))), _name(func)
    dims = list(range(seen[0].dim()))
    if name == 'native_batch_norm':
        dims = [d for d in dims if d != 1] if a['training'] else []
    elif name == 'native_layer_norm':
        dims = dims[-len(a['normalized_shape']):]
    elif name != 'native_group_norm':
        dims = [a['dim']]
    if not dims:
        return seen
    mixed = run.mix(seen, dims)
    return _union([[*(mixed if _sees(mixed) else seen)[:4], mixed[4]]], seen[0].shape)


@_rule('mm', 'bmm', 'addmm', 'baddbmm')
def _matmul(run: _Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """A layer with weights mixes what it sums over. The product of two that see the image is attention, so global.

    Without global operations such a product sees what its queries see: the factor whose boxes the sum widens less.
    """
    *bias, left, right = [t for t in a.values() if isinstance(t, Tensor)]
    factors = [(_seen(left), -1), (_seen(right), -2)]
    factors = [(seen, run.mix(seen, [dim])) for seen, dim in factors if seen is not None]
    terms = [seen for seen in map(_seen, bias) if seen is not None] + [mixed for _, mixed in factors]
    if len(factors) == 2 and all(_sees(seen) for seen, _ in factors):
        (_, query), (_, other) = sorted(factors, key=lambda factor: _breadth(factor[1]) - _breadth(factor[0]))
        through = _at_most(other[4], run.new_global())
        terms[-2:] = [query, [*_blind(through.shape)[:4], through]]
    return _union(terms, result.shape)
