"""A network run on boxes instead of numbers: a tensor that carries them, and what each operation does to them.

See `receptive_field`, for which this is.
"""
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from timm_focus.utils.meta import run_on_meta

from .boxes import (
    Seen, at_most, blind, breadth, densified, joined, kernel_taps, over, part_of, put, reshaped, sees, slide,
    thinned, union,
)


class Refused(ValueError):
    """The receptive field cannot be found; the message says why."""


@dataclass
class Run:
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
        """Reduce over some dimensions (by default all), which keep size 1.

        Each result sees the box around all that it combines. If every result then sees the whole extent in height or
        width, and that was not so before, the reduction is a global operation: it is noted, and its results see
        nothing.
        """
        rank = seen[0].dim()
        dims = sorted({d % rank for d in dims}) if dims else list(range(rank))
        mixed = [over(edge, dims) for edge in seen]
        edges = [(mixed[i:i + 2], seen[i:i + 2]) for i in (0, 2)]
        if not any(_all_reach(after, before) > _all_reach(before, before) for after, before in edges):
            return mixed
        through = at_most(mixed[4], self.new_global())
        return [*blind(through.shape)[:4], through]

    def refuse(self, func: Any, why: str = 'which mixes positions in a way that is not known here') -> NoReturn:
        raise Refused(f'{self.path[-1]} uses {func}, {why}: name a feature before it.')


def _all_reach(edges: Sequence[Tensor], of: Sequence[Tensor]) -> bool:
    """Whether all that see anything see as far as any of others does."""
    ends = [thinned(edge).min() for edge in of]
    return all(bool(((thinned(edge) == end) | thinned(edge).isinf()).all()) for edge, end in zip(edges, ends))


class Traced(Tensor):
    """A tensor without numbers, which knows what its elements see (`seen_by`).

    Attributes:
        run: The run.
        meta: Its shape, strides and type: a tensor on the meta device.
        base: The tensor whose memory it shares, if it is a view of one.
        changes: How often operations in place changed what its memory sees.
    """
    run: Run
    meta: Tensor
    seen: Seen
    base: Optional['Traced']
    changes: int
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # torch's way to have none

    @staticmethod
    def __new__(cls, run: Run, meta: Tensor, device: torch.device, seen: Seen, base: Optional['Traced'] = None):
        t = torch.Tensor._make_wrapper_subclass(
            cls, meta.shape, strides=meta.stride(), storage_offset=meta.storage_offset(), dtype=meta.dtype,
            device=device)
        t.run, t.meta, t.seen, t.base, t.changes = run, meta, seen, base, 0 if base is None else base.changes
        return t

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own has no types
            cls, func: Any, types: Any, args: Tuple = (), kwargs: Optional[Dict] = None) -> Any:
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
            run.last = t.seen if sees(t.seen) else run.last
            return t
        result = run_on_meta(func, _on_meta(args), _on_meta(kwargs))
        seen = rule(run, func, arguments, result)
        several = not isinstance(result, Tensor)
        results = list(result) if several else [result]
        seen = seen if seen and isinstance(seen[0], list) else [seen] + [None] * (len(results) - 1)
        base = None if not func.is_view else first if first.base is None else first.base
        traced = [cls(run, t, first.device, s or blind(t.shape), base) for t, s in zip(results, seen)]
        if not func.is_view and rule is not _view:
            run.last = next((t.seen for t in traced if sees(t.seen)), run.last)
        return type(result)(traced) if several else traced[0]


def _name(func: Any) -> str:
    """Name of an operation, the same in place or not."""
    return func._schema.name.removeprefix('aten::').removesuffix('_')


def _on_meta(tree: Any) -> Any:
    return tree_map(lambda t: t.meta if isinstance(t, Traced) else t.to('meta') if isinstance(t, Tensor) else t, tree)


def seen_by(t: Any) -> Optional[Seen]:
    """What the elements of a tensor see, None for a constant."""
    if not isinstance(t, Traced):
        return None
    if t.base is not None and t.changes < t.base.changes:  # the memory was written to through another view
        t.seen, t.changes = [part_of(edge, t.base.meta, t.meta) for edge in t.base.seen], t.base.changes
    return t.seen


def _seen(t: Traced) -> Seen:
    """What the elements of a tensor see that depends on the image."""
    seen = seen_by(t)
    if seen is None:
        raise TypeError(f'A constant of shape {tuple(t.shape)} sees nothing of the image.')
    return seen


def _change(t: Traced, seen: Seen) -> None:
    """Note what a tensor sees after an operation in place, which others that share its memory see, too."""
    if seen is t.seen:
        return
    t.seen, base = seen, t if t.base is None else t.base
    if base is not t:
        base.seen = [put(edge, base.meta, t.meta, new) for edge, new in zip(base.seen, seen)]
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
def _pointwise(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """Each element from those at its place."""
    seen = [s for s in map(seen_by, tree_leaves(list(a.values()))) if s is not None]
    return seen[0] if len(seen) == 1 and seen[0][0].shape == result.shape else union(seen, result.shape)


@_rule('clone', '_to_copy')
def _same(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    return _seen(a['self'])


@_rule('copy', 'fill', 'zero')
def _overwrite(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    seen = seen_by(a.get('src', a.get('value')))
    return [edge.expand(result.shape) for edge in seen] if seen else blind(result.shape)


@_rule('zeros_like', 'ones_like', 'empty_like', 'full_like', 'new_zeros', 'new_ones', 'new_empty', 'new_full')
def _constant(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> None:
    """Takes the shape of a tensor and none of its numbers."""


@_rule('view', '_unsafe_view')
def _view(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    if not result.numel() or result.numel() != a['self'].numel():
        run.refuse(func)
    return [reshaped(edge, result.shape) for edge in _seen(a['self'])]


@_rule('as_strided')
def _as_strided(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    base = a['self'] if a['self'].base is None else a['self'].base
    return [part_of(edge, base.meta, result) for edge in base.seen]


@_rule('index', 'index_select', 'gather', 'roll', 'flip', 'repeat', 'pixel_shuffle', 'pixel_unshuffle', 'unsafe_split')
def _move(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Union[Seen, List[Seen]]:
    """Views, and all else that takes elements from elsewhere as they are: they move boxes as they move numbers."""
    others = {name: value for name, value in a.items() if name != 'self'}
    if any(isinstance(t, Traced) for t in tree_leaves(others)):
        run.refuse(func, 'which takes elements that depend on the data')
    others = tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, others)
    edges = [func(edge, **others) for edge in _seen(a['self'])]
    return edges if isinstance(result, Tensor) else [list(edge) for edge in zip(*edges)]


@_rule('cat', 'stack')
def _cat(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    dim, stack = a['dim'] % result.dim(), _name(func) == 'stack'
    parts = [seen_by(t) or blind(t.shape) for t in a['tensors'] if t.numel()]
    return [joined([edge.unsqueeze(dim) if stack else edge for edge in edges], dim) for edges in zip(*parts)]


_PADS = {
    'constant_pad_nd': 'constant', 'reflection_pad1d': 'reflect', 'reflection_pad2d': 'reflect',
    'replication_pad1d': 'replicate', 'replication_pad2d': 'replicate',
}


@_rule(*_PADS)
def _pad(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    seen, ends = _seen(a['self']), a.get('pad') or a['padding']
    mode, tables = _PADS[_name(func)], {}
    for i in range(len(ends) // 2):
        dim = result.dim() - 1 - i
        positions = torch.arange(a['self'].shape[dim], dtype=torch.float32)[None]
        ends_here = ends[2 * i:2 * i + 2]
        padded = F.pad(positions, ends_here, mode, -1) if mode == 'constant' else F.pad(positions, ends_here, mode)
        tables[dim] = padded.long().view(-1, 1)
    # along channels boxes are constant, and what is padded sees nothing
    channels = [dim for dim in tables if not any(edge.stride(dim) for edge in seen) and mode == 'constant']
    return [slide(densified(edge, channels), result.shape, tables) for edge in seen]


@_rule('convolution')
def _convolution(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The channels of a group together, then a sliding kernel; one that depends on the image is a global operation."""
    def channels(edge: Tensor) -> Tensor:
        edge = thinned(edge)
        if edge.shape[1] > 1:
            edge = edge.unflatten(1, (a['groups'], -1)).amin(2)
        return edge.repeat_interleave(result.shape[1] // edge.shape[1], 1) if edge.shape[1] > 1 else edge

    kernels = a['weight'].shape[2:]
    tables = _tables(result, kernels, a['stride'], a['padding'], a['dilation'], [a['transposed']])
    seen = [slide(channels(edge), result.shape, tables) for edge in seen_by(a['input']) or blind(a['input'].shape)]
    weight = seen_by(a['weight'])
    if weight is None:
        return seen
    number = run.new_global() if sees(weight) else math.inf
    return [*seen[:4], at_most(seen[4], min(number, thinned(weight[4]).min().item()))]


@_rule('max_pool2d_with_indices', 'max_pool3d_with_indices', 'avg_pool1d', 'avg_pool2d', 'avg_pool3d')
def _pool(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Seen:
    result, kernels = result if isinstance(result, Tensor) else result[0], a['kernel_size']
    kernels = [kernels[i % len(kernels)] for i in range(int(_name(func).split('pool')[1][0]))]
    spatial = range(result.dim() - len(kernels), result.dim())
    if all(result.shape[d] == 1 for d in spatial):  # over all positions
        return [edge.expand(result.shape) for edge in run.mix(_seen(a['self']), spatial)]
    tables = _tables(result, kernels, a['stride'] or kernels, a['padding'], a.get('dilation', [1]), [False])
    return [slide(edge, result.shape, tables) for edge in _seen(a['self'])]


def _tables(result: Tensor, kernels: Sequence[int], *settings: Sequence[Any]) -> Dict[int, Tensor]:
    """For `slide`: `kernel_taps` along the last dimensions, of a setting for each of them, or of one for all."""
    first = result.dim() - len(kernels)
    return {
        first + i: kernel_taps(result.shape[first + i], kernel, *(setting[i % len(setting)] for setting in settings))
        for i, kernel in enumerate(kernels)}


def _windows(a: Dict[str, Any], size: Sequence[int]) -> List[int]:
    """How many windows of a kernel fit into a map, by height and width."""
    return [
        (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n, kernel, dilation, padding, stride in zip(
            size, a['kernel_size'], a['dilation'], a['padding'], a['stride'])]


@_rule('im2col')
def _unfold(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The elements under a kernel as channels: those of each of its taps."""
    (h, w), shape = a['kernel_size'], [*a['self'].shape[:2], *_windows(a, a['self'].shape[2:])]
    rows, columns = (kernel_taps(n, *setting) for n, *setting in zip(
        shape[2:], a['kernel_size'], a['stride'], a['padding'], a['dilation']))
    return [reshaped(joined([
        slide(edge, shape, {2: rows[:, i:i + 1], 3: columns[:, j:j + 1]}).unsqueeze(2)
        for i in range(h) for j in range(w)
    ], 2), result.shape) for edge in _seen(a['self'])]


@_rule('col2im')
def _fold(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The reverse: each element from the taps that lie on it."""
    (h, w), shape = a['kernel_size'], result.shape
    settings = zip(shape[2:], a['kernel_size'], a['stride'], a['padding'], a['dilation'])
    rows, columns = (kernel_taps(*setting, transposed=True) for setting in settings)
    taps = [reshaped(edge, [*shape[:2], h, w, *_windows(a, shape[2:])]) for edge in _seen(a['self'])]
    return union([
        [slide(edge[:, :, i, j], shape, {2: rows[:, i:i + 1], 3: columns[:, j:j + 1]}) for edge in taps]
        for i in range(h) for j in range(w)], shape)


@_rule('upsample_nearest1d', 'upsample_nearest2d', '_upsample_nearest_exact1d', '_upsample_nearest_exact2d',
       'upsample_linear1d', 'upsample_bilinear2d', 'upsample_bicubic2d', '_upsample_bilinear2d_aa',
       '_upsample_bicubic2d_aa')
def _upsample(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
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
    return [slide(edge, result.shape, tables) for edge in _seen(a['self'])]


@_rule('_adaptive_avg_pool2d', '_adaptive_avg_pool3d', 'adaptive_max_pool2d', 'adaptive_max_pool3d')
def _adaptive_pool(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Seen:
    """Nothing where the size is as it should be; else a global operation, whose windows grow with the image."""
    seen, shape = _seen(a['self']), (result if isinstance(result, Tensor) else result[0]).shape
    if seen[0].shape == shape:
        return seen
    return blind(shape, min(run.new_global() if sees(seen) else math.inf, thinned(seen[4]).min().item()))


@_rule('mean', 'sum', 'amax', 'amin', 'max', 'min', 'prod', 'var', 'var_mean', 'std', 'std_mean', 'logsumexp',
       'linalg_vector_norm', 'norm', 'any', 'all', 'argmax', 'argmin')
def _reduce(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Union[Seen, List[Seen]]:
    dims = a.get('dim')
    mixed = run.mix(_seen(a['self']), [dims] if isinstance(dims, int) else dims)
    if isinstance(result, Tensor):
        return [reshaped(edge, result.shape) for edge in mixed]
    return [[reshaped(edge, r.shape) for edge in mixed] for r in result]


@_rule('_softmax', '_log_softmax', '_safe_softmax', 'cumsum', 'native_layer_norm', 'native_group_norm',
       'native_batch_norm')
def _normalize(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Seen:
    """Each element by all along some dimensions: if that is a global operation, it keeps its own box."""
    seen, name = _seen(a['self'] if 'self' in a else a['input']), _name(func)
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
    return union([[*(mixed if sees(mixed) else seen)[:4], mixed[4]]], seen[0].shape)


@_rule('mm', 'bmm', 'addmm', 'baddbmm')
def _matmul(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """A layer with weights mixes what it sums over. The product of two that see the image is attention, so global.

    Without global operations such a product sees what its queries see: the factor whose boxes the sum widens less.
    """
    *bias, left, right = [t for t in a.values() if isinstance(t, Tensor)]
    sides = [(seen_by(left), -1), (seen_by(right), -2)]
    factors = [(seen, run.mix(seen, [dim])) for seen, dim in sides if seen is not None]
    terms = [seen for seen in map(seen_by, bias) if seen is not None] + [mixed for _, mixed in factors]
    if len(factors) == 2 and all(sees(seen) for seen, _ in factors):
        (_, query), (_, other) = sorted(factors, key=lambda factor: breadth(factor[1]) - breadth(factor[0]))
        through = at_most(other[4], run.new_global())
        terms[-2:] = [query, [*blind(through.shape)[:4], through]]
    return union(terms, result.shape)
