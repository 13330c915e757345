"""The classes of the drawn scenes: which pieces a scene has, how often, and which of them tell its class.

A ground or a piece tells the class of a picture if the class has it at least twice as often as the other classes with
the same backdrop have on average; seeing it then at least doubles the odds of the class. Parasols and palms tell a
beach, and so does its sand, though deserts have it too. Its clouds, hills, boats and sky do not.
"""
from dataclasses import dataclass
from statistics import fmean
from typing import Callable

from .pieces import (
    Pen, bed, birds, boats, buildings, bushes, cacti, cars, chairs, clouds, cranes, crates, crockery, cushions,
    dunes, earth, floor_tiles, grass, hills, hooks, huts, lamp, leafy_trees, low_cabinets, palms, parasols, paving,
    peaks, people, pictures, pines, planks, pot_plant, road, rocks, rug, sand, sea, shelf, sky, snow, stove,
    street_lamps, table, tall_cabinet, tents, towels, wall, wall_cabinets, wall_tiles, wallpaper, water, waves,
    window,
)

Piece = Callable[[Pen], None]


@dataclass(frozen=True)
class Recipe:
    """Composition of a scene: grounds with weights (one is drawn), then pieces with probabilities, back to front."""

    backdrop: Piece
    grounds: dict[Piece, float]
    pieces: dict[Piece, float]

    def share(self, piece: Piece) -> float:
        """Share of this class's pictures that have the ground or the piece."""
        if piece in self.grounds:
            return self.grounds[piece] / sum(self.grounds.values())
        return self.pieces.get(piece, 0.0)


COMPOSITIONS = {
    'beach': Recipe(
        sky,
        {sand: 9, earth: .5, grass: .5},
        {clouds: .4, hills: .3, peaks: .08, buildings: .1, sea: .85, waves: .5, dunes: .12, rocks: .35,
         boats: .3, huts: .2, palms: .6, bushes: .15, towels: .6, parasols: .6, people: .55, birds: .4},
    ),
    'bedroom': Recipe(
        wall,
        {planks: 8, floor_tiles: 2},
        {wall_tiles: .05, wallpaper: .5, window: .6, wall_cabinets: .08, pictures: .6, shelf: .4, hooks: .06,
         tall_cabinet: .5, low_cabinets: .25, crockery: .1, rug: .6, bed: .85, cushions: .6, table: .12,
         chairs: .25, lamp: .65, pot_plant: .35},
    ),
    'desert': Recipe(
        sky,
        {sand: 7, earth: 3},
        {clouds: .25, hills: .35, peaks: .25, buildings: .04, sea: .05, road: .25, dunes: .75, rocks: .5,
         huts: .2, palms: .2, cacti: .7, bushes: .45, tents: .25, cars: .1, people: .15, birds: .2},
    ),
    'forest': Recipe(
        sky,
        {grass: 6, earth: 3, snow: 1},
        {clouds: .3, hills: .35, peaks: .1, sea: .1, road: .2, rocks: .3, huts: .15, pines: .75,
         leafy_trees: .85, bushes: .7, tents: .15, people: .15, birds: .3},
    ),
    'harbour': Recipe(
        sky,
        {water: 6, paving: 3, sand: .5},
        {clouds: .4, hills: .3, peaks: .1, buildings: .5, cranes: .65, sea: .6, waves: .5, rocks: .2,
         crates: .65, boats: .8, street_lamps: .2, cars: .1, people: .3, birds: .45},
    ),
    'kitchen': Recipe(
        wall,
        {floor_tiles: 6, planks: 4},
        {wall_tiles: .6, wallpaper: .08, window: .55, wall_cabinets: .65, pictures: .15, shelf: .4, hooks: .5,
         tall_cabinet: .45, low_cabinets: .7, stove: .6, crockery: .7, rug: .1, cushions: .05, table: .55,
         chairs: .5, lamp: .45, pot_plant: .35},
    ),
    'mountain': Recipe(
        sky,
        {grass: 4, snow: 4, earth: 2.5},
        {clouds: .45, peaks: .92, hills: .3, sea: .15, road: .25, rocks: .7, huts: .4, pines: .45,
         leafy_trees: .08, bushes: .3, tents: .4, cars: .05, people: .25, birds: .3},
    ),
    'street': Recipe(
        sky,
        {paving: 8, grass: 1.5, earth: .5},
        {clouds: .4, hills: .2, buildings: .85, cranes: .1, road: .65, leafy_trees: .35, palms: .06,
         bushes: .3, crates: .08, parasols: .1, street_lamps: .65, cars: .75, people: .6, birds: .2},
    ),
}

SCENES: tuple[str, ...] = tuple(sorted(COMPOSITIONS))


def _telling(scene: str) -> frozenset[Piece]:
    recipe = COMPOSITIONS[scene]
    others = [other for name, other in COMPOSITIONS.items() if name != scene and other.backdrop is recipe.backdrop]
    return frozenset(piece for piece in (*recipe.grounds, *recipe.pieces)
                     if recipe.share(piece) >= 2 * fmean(other.share(piece) for other in others))


# The grounds and pieces that tell each class.
TELLING: dict[str, frozenset[Piece]] = {scene: _telling(scene) for scene in SCENES}
