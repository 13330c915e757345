"""A tensor that carries boxes instead of numbers, and what each operation does to boxes.

`receptive_field` runs networks on such tensors, and says what boxes are.
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
    """State of one run of a network on boxes.

    Attributes:
        path: Names of the modules that are running, the innermost last.
        globals: Name of the module of each global operation so far.
        last: What the elements of the most recent result see, counting only results that see any pixel.
    """
    path: List[str]
    globals: List[str]
    last: Optional[Seen] = None

    def new_global(self) -> int:
        """Note a global operation of the running module, and return its number."""
        self.globals.append(self.path[-1])
        return len(self.globals) - 1

    def mix(self, seen: Seen, dims: Optional[Sequence[int]]) -> Seen:
        """Reduce over some dimensions (by default all), which keep size 1.

        Each result sees the box around everything that it combines. If the reduction makes every result see the full
        height or the full width, it is a global operation: it is noted, and its results see nothing.
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
        """Raise `Refused` for an operation of the running module."""
        raise Refused(f'{self.path[-1]} uses {func}, {why}: name a feature before it.')


def _all_reach(edges: Sequence[Tensor], of: Sequence[Tensor]) -> bool:
    """Return whether every element that sees anything sees as far as the farthest of `of`."""
    ends = [thinned(edge).min() for edge in of]
    return all(bool(((thinned(edge) == end) | thinned(edge).isinf()).all()) for edge, end in zip(edges, ends))


class Traced(Tensor):
    """A tensor without numbers that knows what its elements see; `seen_by` returns it.

    Attributes:
        run: The run that made the tensor.
        meta: A tensor on the meta device with its shape, strides and type.
        seen: What its elements saw when `changes` was last brought up to date.
        base: The tensor whose memory it shares if it is a view, else None.
        changes: How many operations in place on its memory `seen` takes into account.
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
    """Return the name of an operation, which is the same for its in-place variant."""
    return func._schema.name.removeprefix('aten::').removesuffix('_')


def _on_meta(tree: Any) -> Any:
    """Replace each tensor in a tree of arguments by one on the meta device."""
    return tree_map(lambda t: t.meta if isinstance(t, Traced) else t.to('meta') if isinstance(t, Tensor) else t, tree)


def seen_by(t: Any) -> Optional[Seen]:
    """Return what the elements of a tensor see, None for a constant."""
    if not isinstance(t, Traced):
        return None
    if t.base is not None and t.changes < t.base.changes:  # another view wrote to the shared memory
        t.seen, t.changes = [part_of(edge, t.base.meta, t.meta) for edge in t.base.seen], t.base.changes
    return t.seen


def _seen(t: Traced) -> Seen:
    """Return what the elements of a tensor see; raise TypeError for a constant."""
    seen = seen_by(t)
    if seen is None:
        raise TypeError(f'A constant of shape {tuple(t.shape)} sees nothing of the image.')
    return seen


def _change(t: Traced, seen: Seen) -> None:
    """Note what a tensor sees after an operation in place; tensors that share its memory then see it, too."""
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
    """Register a function as the rule for operations of torch.ops.aten; names are without the _ of in-place variants.

    A rule is called with the run, the operation, the operation's arguments by name, and its result on the meta device.
    It returns what the elements of the result see, or a list with one such entry for each of several results.
    """
    def register(function: Callable) -> Callable:
        _RULES.update(dict.fromkeys(names, function))
        return function
    return register


@_rule('hardswish', '_prelu_kernel')  # torch tags all other pointwise operations
def _pointwise(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """Each result depends on the elements at its own place."""
    seen = [s for s in map(seen_by, tree_leaves(list(a.values()))) if s is not None]
    return seen[0] if len(seen) == 1 and seen[0][0].shape == result.shape else union(seen, result.shape)


@_rule('clone', '_to_copy')
def _same(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """A copy sees what the original sees."""
    return _seen(a['self'])


@_rule('copy', 'fill', 'zero')
def _overwrite(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """A tensor that is written over sees what the new elements see."""
    seen = seen_by(a.get('src', a.get('value')))
    return [edge.expand(result.shape) for edge in seen] if seen else blind(result.shape)


@_rule('zeros_like', 'ones_like', 'empty_like', 'full_like', 'new_zeros', 'new_ones', 'new_empty', 'new_full')
def _constant(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> None:
    """The result has the shape of a tensor and none of its numbers, so it sees nothing."""


@_rule('view', '_unsafe_view')
def _view(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The same elements in another shape."""
    if not result.numel() or result.numel() != a['self'].numel():
        run.refuse(func)
    return [reshaped(edge, result.shape) for edge in _seen(a['self'])]


@_rule('as_strided')
def _as_strided(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """A view by strides, which are relative to the memory of the base."""
    base = a['self'] if a['self'].base is None else a['self'].base
    return [part_of(edge, base.meta, result) for edge in base.seen]


@_rule('index', 'index_select', 'gather', 'roll', 'flip', 'repeat', 'pixel_shuffle', 'pixel_unshuffle', 'unsafe_split')
def _move(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Union[Seen, List[Seen]]:
    """Views, and all other operations that only move elements: they move boxes as they move numbers."""
    others = {name: value for name, value in a.items() if name != 'self'}
    if any(isinstance(t, Traced) for t in tree_leaves(others)):
        run.refuse(func, 'which takes elements that depend on the data')
    others = tree_map(lambda t: t.cpu() if isinstance(t, Tensor) else t, others)
    edges = [func(edge, **others) for edge in _seen(a['self'])]
    return edges if isinstance(result, Tensor) else [list(edge) for edge in zip(*edges)]


@_rule('cat', 'stack')
def _cat(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The parts one after the other; a constant part sees nothing."""
    dim, stack = a['dim'] % result.dim(), _name(func) == 'stack'
    parts = [seen_by(t) or blind(t.shape) for t in a['tensors'] if t.numel()]
    return [joined([edge.unsqueeze(dim) if stack else edge for edge in edges], dim) for edges in zip(*parts)]


_PADS = {
    'constant_pad_nd': 'constant', 'reflection_pad1d': 'reflect', 'reflection_pad2d': 'reflect',
    'replication_pad1d': 'replicate', 'replication_pad2d': 'replicate',
}


@_rule(*_PADS)
def _pad(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """Padding sees the elements that it repeats, and nothing if it is constant."""
    seen, ends = _seen(a['self']), a.get('pad') or a['padding']
    mode, tables = _PADS[_name(func)], {}
    for i in range(len(ends) // 2):
        dim = result.dim() - 1 - i
        positions = torch.arange(a['self'].shape[dim], dtype=torch.float32)[None]
        ends_here = ends[2 * i:2 * i + 2]
        padded = F.pad(positions, ends_here, mode, -1) if mode == 'constant' else F.pad(positions, ends_here, mode)
        tables[dim] = padded.long().view(-1, 1)
    # boxes are usually constant along channels, but constant padding of channels sees nothing: these need full edges
    channels = [dim for dim in tables if not any(edge.stride(dim) for edge in seen) and mode == 'constant']
    return [slide(densified(edge, channels), result.shape, tables) for edge in seen]


@_rule('convolution')
def _convolution(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """A sliding kernel over all channels of a group. A kernel computed from the image makes it a global operation."""
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
    """A sliding kernel, or a reduction if one kernel covers all positions."""
    result, kernels = result if isinstance(result, Tensor) else result[0], a['kernel_size']
    kernels = [kernels[i % len(kernels)] for i in range(int(_name(func).split('pool')[1][0]))]
    spatial = range(result.dim() - len(kernels), result.dim())
    if all(result.shape[d] == 1 for d in spatial):  # one kernel covers all positions
        return [edge.expand(result.shape) for edge in run.mix(_seen(a['self']), spatial)]
    tables = _tables(result, kernels, a['stride'] or kernels, a['padding'], a.get('dilation', [1]), [False])
    return [slide(edge, result.shape, tables) for edge in _seen(a['self'])]


def _tables(result: Tensor, kernels: Sequence[int], *settings: Sequence[Any]) -> Dict[int, Tensor]:
    """Return the tables of `slide`: `kernel_taps` along the last dimensions.

    Each of the settings has one entry for each of these dimensions, or one entry for all.
    """
    first = result.dim() - len(kernels)
    return {
        first + i: kernel_taps(result.shape[first + i], kernel, *(setting[i % len(setting)] for setting in settings))
        for i, kernel in enumerate(kernels)}


def _windows(a: Dict[str, Any], size: Sequence[int]) -> List[int]:
    """Return how many windows of a kernel fit along the height and the width of a map."""
    return [
        (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1 for n, kernel, dilation, padding, stride in zip(
            size, a['kernel_size'], a['dilation'], a['padding'], a['stride'])]


@_rule('im2col')
def _unfold(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The elements under each tap of a kernel become channels."""
    (h, w), shape = a['kernel_size'], [*a['self'].shape[:2], *_windows(a, a['self'].shape[2:])]
    rows, columns = (kernel_taps(n, *setting) for n, *setting in zip(
        shape[2:], a['kernel_size'], a['stride'], a['padding'], a['dilation']))
    return [reshaped(joined([
        slide(edge, shape, {2: rows[:, i:i + 1], 3: columns[:, j:j + 1]}).unsqueeze(2)
        for i in range(h) for j in range(w)
    ], 2), result.shape) for edge in _seen(a['self'])]


@_rule('col2im')
def _fold(run: Run, func: Any, a: Dict[str, Any], result: Tensor) -> Seen:
    """The reverse of `_unfold`: each result combines the taps that lie on it."""
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
    """Interpolation: interpolating each unit vector of an axis shows which elements a result is computed from."""
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
    """No change if the size is already right; else a global operation, because its windows grow with the image."""
    seen, shape = _seen(a['self']), (result if isinstance(result, Tensor) else result[0]).shape
    if seen[0].shape == shape:
        return seen
    return blind(shape, min(run.new_global() if sees(seen) else math.inf, thinned(seen[4]).min().item()))


@_rule('mean', 'sum', 'amax', 'amin', 'max', 'min', 'prod', 'var', 'var_mean', 'std', 'std_mean', 'logsumexp',
       'linalg_vector_norm', 'norm', 'any', 'all', 'argmax', 'argmin')
def _reduce(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Union[Seen, List[Seen]]:
    """A reduction over some or all dimensions."""
    dims = a.get('dim')
    mixed = run.mix(_seen(a['self']), [dims] if isinstance(dims, int) else dims)
    if isinstance(result, Tensor):
        return [reshaped(edge, result.shape) for edge in mixed]
    return [[reshaped(edge, r.shape) for edge in mixed] for r in result]


@_rule('_softmax', '_log_softmax', '_safe_softmax', 'cumsum', 'native_layer_norm', 'native_group_norm',
       'native_batch_norm')
def _normalize(run: Run, func: Any, a: Dict[str, Any], result: Any) -> Seen:
    """Each result depends on all elements along some dimensions.

    If that is a global operation, the result keeps the box of its own element.
    """
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
    """A product with weights mixes the elements that it sums over. A product of two factors that see the image is
    attention, and so a global operation.

    Without global operations, attention sees what its queries see. They are the factor whose boxes the sum widens less.
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
