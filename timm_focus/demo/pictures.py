"""Draws the synthetic pictures, scenes and objects, each with a mask of the pixels that tell its class.

classes.py defines which pieces tell a class. A pixel belongs to the mask if any part of it shows a telling
ground or piece that is not covered.
"""
from random import Random

import numpy as np
from PIL import Image

from .classes import COMPOSITIONS, SCENES, TELLING, Piece
from .pieces import Pen, blots

# Pictures are drawn this many times larger and then averaged down, for smooth edges.
OVERSAMPLING = 2


def draw_scene(scene: str, seed: int, size: int = 96) -> Image.Image:
    """Draws one scene.

    Args:
        scene: one of `SCENES`.
        seed: any integer; the picture is a pure function of scene, seed and size. Another size shows the same scene.
        size: side of the square picture in pixels, at least 8.

    Returns:
        An RGB picture of `size` x `size` pixels.

    Raises:
        ValueError: for an unknown scene or a size below 8.
    """
    return draw_scene_with_mask(scene, seed, size)[0]


def draw_scene_with_mask(scene: str, seed: int, size: int = 96) -> tuple[Image.Image, np.ndarray]:
    """Draws one scene, with a mask of the pixels that tell its class: on average half of them, all over the picture.

    Args:
        scene, seed, size: as in `draw_scene`.

    Returns:
        The picture of `draw_scene`, and its mask, bool `[size, size]`. About one scene in 2,000 shows nothing that
        tells its class, and has an empty mask.

    Raises:
        ValueError: as `draw_scene`.
    """
    _check(scene, size)
    rng = Random(f'{scene}/{seed}')
    return _finish(_paint(scene, rng, size * OVERSAMPLING), rng)


def draw_object_with_mask(scene: str, seed: int, size: int = 96) -> tuple[Image.Image, np.ndarray]:
    """Draws an object: the pieces that tell a scene's class, in one place, at half the size, on a random backdrop.

    The backdrop, the place and the light only depend on seed and size, so no pixel outside the mask depends on the
    class. If the scene of this seed shows nothing that tells its class, the next random numbers are taken.

    Args:
        scene: the class, one of `SCENES`.
        seed: any integer; the evidence is that of `draw_scene_with_mask(scene, seed)`. Another size shows the same.
        size: side of the square picture in pixels, at least 8.

    Returns:
        An RGB picture of `size` x `size` pixels, and its mask, bool `[size, size]`, which is never empty and lies in a
        square of at most a quarter of the picture.

    Raises:
        ValueError: for an unknown scene or a size below 8.
    """
    _check(scene, size)
    side = size // 2
    scene_rng = Random(f'{scene}/{seed}')
    evidence = _paint(scene, scene_rng, side * OVERSAMPLING)
    while not evidence.mask.getbbox():
        evidence = _paint(scene, scene_rng, side * OVERSAMPLING)

    rng = Random(f'object/{seed}')
    pen = Pen(rng, size * OVERSAMPLING)
    blots(pen)
    left, top = (round(rng.random() * (size - side)) * OVERSAMPLING for _ in range(2))
    pen.image.paste(evidence.image, (left, top), evidence.mask)
    pen.mask.paste(evidence.mask, (left, top))
    return _finish(pen, rng)


def _check(scene: str, size: int) -> None:
    if scene not in COMPOSITIONS:
        raise ValueError(f'Unknown scene {scene!r}; allowed are {", ".join(SCENES)}.')
    if size < 8:
        raise ValueError(f'size must be at least 8 pixels, got {size}.')


def _paint(scene: str, rng: Random, pixels: int) -> Pen:
    """Paints a scene with its mask, before the light, on `pixels` x `pixels` pixels."""
    recipe = COMPOSITIONS[scene]
    pen = Pen(rng, pixels)

    def draw(piece: Piece) -> None:
        pen.telling = piece in TELLING[scene]
        piece(pen)

    draw(recipe.backdrop)
    draw(rng.choices(list(recipe.grounds), list(recipe.grounds.values()))[0])
    for piece, probability in recipe.pieces.items():
        if rng.random() < probability:
            draw(piece)
    return pen


def _finish(pen: Pen, rng: Random) -> tuple[Image.Image, np.ndarray]:
    """Scales a drawing to its final size, puts it under a random light, and returns it with its mask."""
    return _light(pen.image.reduce(OVERSAMPLING), rng), np.asarray(pen.mask.reduce(OVERSAMPLING)) > 0


def _light(image: Image.Image, rng: Random) -> Image.Image:
    """Puts a picture under a light of random colour, strength and side."""
    strength, warmth, faded = rng.uniform(0.68, 1.1), rng.uniform(-0.12, 0.12), rng.uniform(0, 0.5)
    across, down = rng.uniform(-0.18, 0.18), rng.uniform(-0.18, 0.18)
    pixels = np.asarray(image, dtype=np.float64)
    pixels = pixels + faded * (pixels.mean(axis=2, keepdims=True) - pixels)
    ramp = np.linspace(-1, 1, image.width)
    light = strength * (1 + across * ramp[None, :] + down * ramp[:, None])
    colour = np.array([1 + warmth, 1, 1 - warmth])
    return Image.fromarray(np.clip(np.rint(pixels * light[:, :, None] * colour), 0, 255).astype(np.uint8))
