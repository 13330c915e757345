"""Connected pieces against a flood that fills them one pixel at a time."""
import numpy as np
import pytest

from timm_focus.analysis.pieces import Piece, connected_pieces


def flooded(mask):
    """Boxes and sizes of the pieces, found one pixel at a time."""
    left, found = {(int(y), int(x)) for y, x in zip(*mask.nonzero())}, []
    while left:
        edge, piece = [left.pop()], []
        while edge:
            y, x = edge.pop()
            piece.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge += near
        ys, xs = zip(*piece)
        found.append(Piece(min(ys), min(xs), max(ys) + 1, max(xs) + 1, len(piece)))
    return found


@pytest.mark.parametrize('share', [0, 0.05, 0.3, 0.45, 0.6, 0.95, 1])
def test_pieces_of_random_masks(share):
    generator = np.random.default_rng(0)
    for size in ((1, 1), (1, 9), (9, 1), (7, 5), (24, 31)):
        mask = generator.random(size) < share
        pieces = connected_pieces(mask)
        assert sorted(pieces) == sorted(flooded(mask))
        assert [p.n for p in pieces] == sorted((p.n for p in pieces), reverse=True)
        assert sum(p.n for p in pieces) == mask.sum()


def test_a_spiral_is_one_piece_and_a_corner_joins():
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]], bool)
    assert connected_pieces(mask) == [Piece(0, 0, 5, 5, 17)]
    assert connected_pieces(np.eye(4, dtype=bool)) == [Piece(0, 0, 4, 4, 4)]
    assert connected_pieces(np.array([[1, 0, 1], [1, 0, 0]], bool)) == [Piece(0, 0, 2, 1, 2), Piece(0, 2, 1, 3, 1)]
    assert connected_pieces(np.zeros((3, 3), bool)) == []
