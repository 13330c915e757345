"""Operations on the boxes of pixels that the elements of a tensor see; `receptive_field` says what they are for.

The boxes of a tensor are kept edge by edge: the first row of every box, for example, is one tensor of the same shape.
That tensor is expanded (stride 0) along the dimensions in which it is known to be constant, so it takes little memory.
"""
import functools
import math
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

# What the elements of a tensor see: five tensors of its shape. The first four hold the edges of the boxes, and are
# infinite where an element sees no pixel. The fifth holds the number of the first global operation that an element
# depends on, and is infinite where there is none.
Seen = List[Tensor]
Number = Union[int, float]


def thinned(edge: Tensor) -> Tensor:
    """Return the edge with size 1 along the dimensions that are expanded."""
    return edge[tuple(slice(1) if stride == 0 else slice(None) for stride in edge.stride())]


def densified(edge: Tensor, dims: Sequence[int]) -> Tensor:
    """Return a copy of the edge that is full along `dims`, and has size 1 along all other expanded dimensions."""
    keep = [d in dims or stride for d, stride in enumerate(edge.stride())]
    return edge[tuple(slice(None) if k else slice(1) for k in keep)].clone(memory_format=torch.contiguous_format)


def settled(edge: Tensor) -> Tensor:
    """Return the same edge, expanded along every dimension in which its values turn out to be constant."""
    thin = thinned(edge)
    for dim in range(thin.dim()):
        if thin.shape[dim] > 1 and bool((thin == thin.narrow(dim, 0, 1)).all()):
            thin = thin.narrow(dim, 0, 1)
    return thin.expand(edge.shape)


def blind(shape: Sequence[int], through: Number = math.inf) -> Seen:
    """Return what the elements of a constant see: no pixel."""
    return [torch.tensor(float(value)).expand(shape) for value in (math.inf,) * 4 + (through,)]


def sees(seen: Seen) -> bool:
    """Return whether any element sees a pixel."""
    return bool(thinned(seen[0]).min() < math.inf)


def breadth(seen: Seen) -> Number:
    """Return the largest height plus the largest width of the boxes; infinite if no element sees a pixel."""
    sides = [-(thinned(first) + thinned(last)) for first, last in (seen[:2], seen[2:4])]
    return sum(side.where(side.isfinite(), 0).max().item() for side in sides) if sees(seen) else math.inf


def at_most(edge: Tensor, limit: Number) -> Tensor:
    """Return the edge with values above the limit replaced by the limit."""
    return thinned(edge).clamp(max=limit).expand(edge.shape)


def union(seen: Sequence[Seen], shape: Sequence[int]) -> Seen:
    """Return the boxes of a result whose elements combine the elements of several tensors, place by place."""
    return [functools.reduce(torch.minimum, map(thinned, edges)).expand(shape) for edges in zip(*seen)]


def over(edge: Tensor, dims: Sequence[int]) -> Tensor:
    """Return the edge of the boxes around all elements along `dims`, which keep size 1."""
    if not dims:
        return edge
    shape = [1 if d in dims else n for d, n in enumerate(edge.shape)]
    return thinned(edge).amin(tuple(dims), keepdim=True).expand(shape)


def slide(edge: Tensor, shape: Sequence[int], tables: Dict[int, Tensor]) -> Tensor:
    """Return the edge of the boxes around the elements under a sliding kernel.

    Args:
        edge: An edge of the boxes that the kernel slides over.
        shape: Shape of the result.
        tables: For each dimension that the kernel slides along, the positions `[n, taps]` that are under it for each of
            n results. A position out of range is padding, which sees nothing.
    """
    edge = thinned(edge)
    for dim, table in tables.items():
        n = edge.shape[dim]
        if n > 1:  # an edge that is constant along this dimension stays constant
            padded = torch.cat([edge, torch.full_like(edge.narrow(dim, 0, 1), math.inf)], dim)
            table = table.where((table >= 0) & (table < n), n)
            edge = padded.index_select(dim, table.flatten()).unflatten(dim, table.shape).amin(dim + 1)
    return edge.expand(shape)


def kernel_taps(
        n: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool = False) -> Tensor:
    """Return the positions `[n, kernel]` under a sliding kernel; -1 where a transposed kernel has none."""
    results, offsets = torch.arange(n)[:, None], torch.arange(kernel) * dilation
    if not transposed:
        return results * stride - padding + offsets
    positions = results + padding - offsets
    return (positions // stride).where(positions % stride == 0, -1)


def reshaped(edge: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the edge in another shape.

    Dimensions that merge or split do so in groups. A group that is expanded as a whole remains expanded.
    """
    old, new = list(edge.shape), list(shape)
    thin: List[slice] = []
    target: List[int] = []
    while old or new:
        a, b = 1, 1  # the next `a` old dimensions become the next `b` new ones
        while math.prod(old[:a]) != math.prod(new[:b]):
            a, b = (a + 1, b) if math.prod(old[:a]) < math.prod(new[:b]) else (a, b + 1)
        constant = all(n == 1 or edge.stride(len(thin) + i) == 0 for i, n in enumerate(old[:a]))
        thin += [slice(1) if constant else slice(None)] * len(old[:a])
        target += [1] * len(new[:b]) if constant else new[:b]
        old, new = old[a:], new[b:]
    return settled(edge[tuple(thin)].reshape(target).expand(shape))


def _slices(base: Tensor, view: Tensor) -> Optional[Tuple[slice, ...]]:
    """Return the slices of `base` that give `view`; None if slices alone cannot give it."""
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
    """Copy the edge into memory laid out as that of `base`; return the copy, and its part that belongs to `view`."""
    buffer = torch.empty_strided(base.shape, base.stride()).copy_(edge)
    return buffer, buffer.as_strided(view.shape, view.stride(), view.storage_offset() - base.storage_offset())


def part_of(edge: Tensor, base: Tensor, view: Tensor) -> Tensor:
    """Return the part of an edge of `base` that belongs to `view`."""
    slices = _slices(base, view)
    return _in_memory(edge, base, view)[1] if slices is None else edge[slices]


def put(edge: Tensor, base: Tensor, view: Tensor, new: Tensor) -> Tensor:
    """Return the edge of `base` with the part that belongs to `view` replaced by `new`."""
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


def joined(edges: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate edges along a dimension."""
    shape = list(edges[0].shape)
    shape[dim] = sum(edge.shape[dim] for edge in edges)
    keep = [dim] + [d for d in range(len(shape)) if any(edge.stride(d) for edge in edges)]
    return settled(torch.cat([densified(edge, keep) for edge in edges], dim).expand(shape))
