"""The connected pieces of a mask."""
from typing import Dict, List, NamedTuple

import numpy as np

__all__ = ['Piece', 'connected_pieces']


class Piece(NamedTuple):
    """A connected piece of a mask: its bounding box, where y1 and x1 are exclusive, and its size.

    Attributes:
        n: Number of pixels.
    """
    y0: int
    x0: int
    y1: int
    x1: int
    n: int


def connected_pieces(mask: np.ndarray) -> List[Piece]:
    """The pieces of a mask, bool `[H, W]`, the largest first; pixels that touch at a corner are connected.

    Each row is cut into runs of pixels, and a run is joined to the runs that it touches in the row above.
    """
    runs: List[List[int]] = []  # row, first, last + 1
    parents: List[int] = []
    above: List[int] = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(row.astype(np.int8), prepend=0, append=0))
        here = []
        for first, end in edges.reshape(-1, 2).tolist():
            i = len(runs)
            runs.append([y, first, end])
            parents.append(i)
            here.append(i)
            for j in above:
                if runs[j][1] <= end and first <= runs[j][2]:
                    a, b = _root(parents, i), _root(parents, j)
                    parents[max(a, b)] = min(a, b)
        above = here
    found: Dict[int, Piece] = {}
    for i, (y, first, end) in enumerate(runs):
        root = _root(parents, i)
        old = found.get(root, Piece(y, first, y + 1, end, 0))
        found[root] = Piece(
            min(old.y0, y), min(old.x0, first), max(old.y1, y + 1), max(old.x1, end), old.n + end - first)
    return sorted(found.values(), key=lambda piece: (-piece.n, piece))


def _root(parents: List[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = i = parents[parents[i]]
    return i
