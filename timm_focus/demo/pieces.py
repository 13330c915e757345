"""The pieces of the drawn scenes, each a function that draws itself with a pen: backdrops, grounds and things.

A piece takes every choice (place, size, colour, number) from the pen's random numbers. classes.py defines which class
has which pieces.
"""
from random import Random
from typing import Callable, Optional, Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws on a square image in unit coordinates (x to the right, y down), and draws the random numbers for it.

    Attributes:
        image: the RGB image drawn on.
        mask: an image of the same size, 255 where the visible shape was drawn while `telling`, else 0.
        telling: whether the next shapes are added to the mask, or taken out where they cover it. No random number or
            colour depends on it.
        horizon: where the ground begins.
    """

    def __init__(self, rng: Random, pixels: int):
        self.rng = rng
        self.pixels = pixels
        self.image = Image.new('RGB', (pixels, pixels))
        self.mask = Image.new('L', (pixels, pixels))
        self.telling = False
        self._draws = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        self.horizon = rng.uniform(0.36, 0.58)

    def shade(self, colour: Colour, spread: int = 22) -> Colour:
        """The colour, made a little lighter or darker and a little different in hue."""
        light = self.rng.randint(-spread, spread)
        red, green, blue = (min(255, max(0, c + light + self.rng.randint(-spread // 3, spread // 3))) for c in colour)
        return red, green, blue

    def pick(self, *colours: Colour) -> Colour:
        return self.shade(self.rng.choice(colours))

    def polygon(self, points: Sequence[Point], fill: Colour) -> None:
        coordinates = [(round(x * self.pixels), round(y * self.pixels)) for x, y in points]
        for draw, value in self._layers(fill):
            draw.polygon(coordinates, fill=value)

    def rect(self, x: float, y: float, width: float, height: float, fill: Colour) -> None:
        """A rectangle given by its upper left corner."""
        self.polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill)

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour) -> None:
        """An ellipse given by its centre and half axes."""
        box = [round(v * self.pixels) for v in (x - rx, y - ry, x + rx, y + ry)]
        for draw, value in self._layers(fill):
            draw.ellipse(box, fill=value)

    def line(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        coordinates = [(round(x * self.pixels), round(y * self.pixels)) for x, y in points]
        for draw, value in self._layers(fill):
            draw.line(coordinates, fill=value, width=max(1, round(width * self.pixels)))

    def spots(self, low: int, high: int, top: Optional[float] = None, bottom: float = 1.0) -> list[tuple]:
        """Places (x, y, scale) on the ground, far ones first and smaller."""
        top = self.horizon + 0.02 if top is None else top
        depths = sorted(self.rng.uniform(top, bottom) for _ in range(self.rng.randint(low, high)))
        return [(self.rng.uniform(0, 1), y, 0.45 + 0.9 * (y - self.horizon)) for y in depths]

    def _layers(self, fill: Colour) -> tuple:
        """The layers that a shape is drawn on, each with its fill."""
        return tuple(zip(self._draws, (fill, 255 if self.telling else 0)))


# Backdrops and grounds.

def sky(pen: Pen) -> None:
    high, low = pen.rng.choice([
        ((82, 150, 222), (190, 222, 246)),
        ((110, 165, 215), (225, 232, 236)),
        ((150, 160, 172), (208, 212, 216)),
        ((88, 96, 150), (246, 178, 128)),
        ((240, 170, 120), (252, 222, 170)),
    ])
    bands = 24
    for band in range(bands):
        mix = band / (bands - 1)
        red, green, blue = (round(a + (b - a) * mix) for a, b in zip(high, low))
        pen.rect(0, pen.horizon * mix * 0.97, 1, pen.horizon, (red, green, blue))
    if pen.rng.random() < 0.35:
        radius = pen.rng.uniform(0.03, 0.07)
        pen.oval(pen.rng.uniform(0, 1), pen.rng.uniform(0.04, 0.3), radius, radius, pen.pick((255, 244, 190)))


def clouds(pen: Pen) -> None:
    for _ in range(pen.rng.randint(1, 4)):
        x, y = pen.rng.uniform(0, 1), pen.rng.uniform(0.04, 0.28)
        colour = pen.pick((240, 240, 244), (214, 218, 226))
        for _ in range(4):
            pen.oval(x + pen.rng.uniform(-0.07, 0.07), y + pen.rng.uniform(-0.015, 0.015), 0.06, 0.025, colour)


def wall(pen: Pen) -> None:
    pen.horizon = pen.rng.uniform(0.58, 0.72)
    pen.rect(0, 0, 1, 1, pen.pick((226, 214, 190), (206, 214, 218), (198, 214, 192), (228, 204, 196), (200, 190, 208)))


def wall_tiles(pen: Pen) -> None:
    step = pen.rng.uniform(0.06, 0.1)
    joint = pen.pick((176, 176, 176), (236, 236, 232))
    top = pen.rng.choice([0.0, 0.25])
    for k in range(1, 18):
        pen.line([(k * step, top), (k * step, pen.horizon)], joint, 0.006)
        pen.line([(0, min(top + k * step, pen.horizon)), (1, min(top + k * step, pen.horizon))], joint, 0.006)


def wallpaper(pen: Pen) -> None:
    step = pen.rng.uniform(0.07, 0.12)
    colour = pen.pick((214, 196, 176), (186, 198, 210), (208, 184, 190), (190, 204, 182))
    for k in range(15):
        pen.rect(k * step, 0, step * 0.45, pen.horizon, colour)


def blots(pen: Pen) -> None:
    """The backdrop of objects: shapes of all colours and sizes that belong to no class."""
    def colour() -> Colour:
        red, green, blue = (pen.rng.randint(50, 235) for _ in range(3))
        return red, green, blue

    pen.rect(0, 0, 1, 1, colour())
    for _ in range(pen.rng.randint(30, 60)):
        x, y, size = pen.rng.uniform(0, 1), pen.rng.uniform(0, 1), 0.01 + 0.12 * pen.rng.random() ** 2
        shape = pen.rng.choice(['oval', 'rect', 'triangle', 'line'])
        if shape == 'oval':
            pen.oval(x, y, size, size * pen.rng.uniform(0.2, 1), colour())
        elif shape == 'rect':
            pen.rect(x, y, size, size * pen.rng.uniform(0.2, 2), colour())
        elif shape == 'triangle':
            pen.polygon([(x - size, y), (x + size * pen.rng.uniform(-1, 1), y - size), (x + size, y)], colour())
        else:
            pen.line([(x, y), (x + size * pen.rng.uniform(-1, 1), y + size)], colour(), 0.01)


def _ground(*colours: Colour) -> Callable[[Pen], None]:
    def draw(pen: Pen) -> None:
        colour = pen.pick(*colours)
        pen.rect(0, pen.horizon, 1, 1 - pen.horizon, colour)
        for x, y, scale in pen.spots(15, 40):
            pen.oval(x, y, 0.03 * scale, 0.006 * scale, pen.shade(colour, 16))
    return draw


sand = _ground((226, 200, 146), (214, 180, 124), (232, 212, 170))
grass = _ground((104, 150, 72), (132, 158, 84), (84, 124, 66))
earth = _ground((142, 112, 80), (160, 132, 98), (110, 96, 72))
snow = _ground((232, 238, 244), (214, 224, 234))
paving = _ground((150, 150, 152), (168, 162, 152), (124, 126, 130))
water = _ground((62, 122, 168), (76, 142, 160), (92, 128, 150), (70, 104, 136))


def planks(pen: Pen) -> None:
    colour = pen.pick((170, 128, 88), (192, 154, 112), (132, 98, 72))
    pen.rect(0, pen.horizon, 1, 1, colour)
    for k in range(1, 9):
        y = pen.horizon + (1 - pen.horizon) * (k / 9) ** 1.4
        pen.line([(0, y), (1, y)], pen.shade(colour, 30), 0.008)


def floor_tiles(pen: Pen) -> None:
    light = pen.pick((226, 222, 212), (208, 208, 204))
    dark = pen.pick((150, 146, 140), (176, 140, 112), (120, 136, 150))
    rows, columns = 5, 9
    height = (1 - pen.horizon) / rows
    for row in range(rows):
        for column in range(columns):
            colour = light if (row + column) % 2 else dark
            pen.rect(column / columns, pen.horizon + row * height, 1 / columns, height + 0.01, colour)


# Wide pieces of landscape.

def peaks(pen: Pen) -> None:
    colour = pen.pick((112, 118, 134), (128, 116, 108), (92, 106, 112))
    snowy = pen.rng.random() < 0.55
    for _ in range(pen.rng.randint(2, 5)):
        x, half = pen.rng.uniform(0, 1), pen.rng.uniform(0.14, 0.34)
        top = pen.horizon - half * pen.rng.uniform(0.6, 1.1)
        pen.polygon([(x - half, pen.horizon), (x, top), (x + half, pen.horizon)], pen.shade(colour))
        if snowy:
            cap, drop = half * 0.28, (pen.horizon - top) * 0.28
            pen.polygon([(x - cap, top + drop), (x, top), (x + cap, top + drop)], pen.shade((238, 242, 248), 8))


def hills(pen: Pen) -> None:
    colour = pen.pick((122, 142, 112), (140, 140, 120), (112, 130, 140), (170, 146, 112))
    for _ in range(pen.rng.randint(2, 4)):
        height = pen.rng.uniform(0.05, 0.14)
        x, half = pen.rng.uniform(0, 1), pen.rng.uniform(0.2, 0.45)
        points = [(x + half * k / 8, pen.horizon - height * (1 - (k / 8) ** 2)) for k in range(-8, 9)]
        pen.polygon(points, pen.shade(colour))


def dunes(pen: Pen) -> None:
    for x, y, scale in pen.spots(2, 5, bottom=0.85):
        half, height = 0.42 * scale, 0.13 * scale
        colour = pen.pick((222, 186, 126), (206, 166, 110))
        pen.polygon([(x - half, y), (x, y - height), (x + half, y)], colour)
        pen.polygon([(x, y - height), (x + half, y), (x - half * 0.2, y)], pen.shade((182, 142, 94), 12))


def sea(pen: Pen) -> None:
    depth = (1 - pen.horizon) * pen.rng.uniform(0.15, 0.5)
    pen.rect(0, pen.horizon, 1, depth, pen.pick((58, 126, 172), (72, 150, 172), (96, 132, 156)))
    pen.rect(0, pen.horizon + depth, 1, 0.012, pen.shade((232, 238, 240), 10))


def waves(pen: Pen) -> None:
    for x, y, scale in pen.spots(5, 16, bottom=pen.rng.uniform(0.65, 1)):
        half = 0.06 * scale
        pen.line([(x - half, y), (x, y - half * 0.3), (x + half, y)], pen.shade((218, 230, 236), 14), 0.008)


def road(pen: Pen) -> None:
    colour = pen.pick((92, 94, 98), (118, 116, 114), (166, 142, 108))
    far, near = pen.rng.uniform(0.25, 0.75), pen.rng.uniform(0.1, 0.9)
    half = pen.rng.uniform(0.2, 0.4)
    pen.polygon([(far - 0.03, pen.horizon), (far + 0.03, pen.horizon), (near + half, 1), (near - half, 1)], colour)
    if pen.rng.random() < 0.5:
        for k in range(5):
            t = (k + 0.3) / 5
            x, y = far + (near - far) * t, pen.horizon + (1 - pen.horizon) * t
            pen.rect(x, y, 0.012 + 0.012 * t, 0.05 * t + 0.01, pen.shade((228, 224, 200), 10))


# Things out of doors.

def pines(pen: Pen) -> None:
    for x, y, scale in pen.spots(3, 11, bottom=0.95):
        colour, height = pen.pick((38, 84, 56), (58, 98, 62), (48, 92, 88)), 0.36 * scale
        pen.rect(x - 0.012 * scale, y - height * 0.2, 0.024 * scale, height * 0.2, pen.shade((96, 70, 48)))
        for k in range(3):
            half, foot = height * (0.28 - 0.06 * k), y - height * (0.15 + 0.24 * k)
            pen.polygon([(x - half, foot), (x, foot - height * 0.36), (x + half, foot)], pen.shade(colour, 10))


def leafy_trees(pen: Pen) -> None:
    for x, y, scale in pen.spots(2, 8, bottom=0.95):
        colour, height = pen.pick((72, 122, 56), (104, 142, 62), (172, 128, 56)), 0.34 * scale
        pen.rect(x - 0.016 * scale, y - height * 0.6, 0.032 * scale, height * 0.6, pen.shade((104, 78, 54)))
        for _ in range(5):
            dx, dy = pen.rng.uniform(-0.08, 0.08) * scale, pen.rng.uniform(-0.06, 0.06) * scale
            pen.oval(x + dx, y - height * 0.8 + dy, 0.08 * scale, 0.07 * scale, pen.shade(colour, 14))


def palms(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 4, bottom=0.95):
        height, lean = 0.38 * scale, pen.rng.uniform(-0.08, 0.08)
        top = (x + lean, y - height)
        pen.line([(x, y), (x + lean * 0.4, y - height * 0.5), top], pen.shade((140, 108, 72)), 0.026 * scale)
        colour = pen.pick((70, 130, 66), (92, 140, 62))
        for dx, dy in ((-0.15, 0.05), (-0.12, -0.06), (-0.02, -0.1), (0.12, -0.06), (0.15, 0.05)):
            tip = (top[0] + dx * scale, top[1] + dy * scale)
            pen.polygon([top, ((top[0] + tip[0]) / 2, tip[1] - 0.03 * scale), tip], colour)


def cacti(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 5, bottom=0.95):
        colour, height, thick = pen.pick((84, 128, 76), (108, 138, 88)), 0.24 * scale, 0.035 * scale
        pen.rect(x - thick / 2, y - height, thick, height, colour)
        for side in (-1, 1):
            arm = y - height * pen.rng.uniform(0.35, 0.7)
            elbow = x + side * 0.06 * scale
            pen.line([(x, arm), (elbow, arm), (elbow, arm - 0.07 * scale)], colour, thick * 0.8)


def bushes(pen: Pen) -> None:
    for x, y, scale in pen.spots(3, 9):
        colour = pen.pick((96, 130, 70), (140, 138, 84), (78, 110, 64))
        for dx in (-0.03, 0, 0.03):
            pen.oval(x + dx * scale, y - 0.02 * scale, 0.03 * scale, 0.03 * scale, pen.shade(colour, 12))


def rocks(pen: Pen) -> None:
    for x, y, scale in pen.spots(2, 8):
        half = pen.rng.uniform(0.025, 0.07) * scale
        colour = pen.pick((136, 132, 128), (112, 108, 108), (158, 138, 116))
        outline = [(x - half, y), (x - half * 0.5, y - half), (x + half * 0.5, y - half * 1.1), (x + half, y)]
        pen.polygon(outline, colour)


def boats(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 4, bottom=0.9):
        half = 0.1 * scale
        hull = pen.pick((170, 64, 56), (236, 236, 230), (54, 74, 110), (190, 150, 90))
        deck = y - half * 0.4
        pen.polygon([(x - half, deck), (x + half, deck), (x + half * 0.6, y), (x - half * 0.7, y)], hull)
        if pen.rng.random() < 0.5:
            sail = pen.pick((246, 244, 236), (222, 190, 120))
            pen.polygon([(x, y - half * 0.5), (x, y - half * 2.6), (x + half * 0.9, y - half * 0.5)], sail)
        else:
            pen.rect(x - half * 0.3, y - half * 0.9, half * 0.7, half * 0.5, pen.pick((240, 240, 236), (200, 190, 170)))


def cranes(pen: Pen) -> None:
    for _ in range(pen.rng.randint(1, 3)):
        x, top, arm = pen.rng.uniform(0, 1), pen.rng.uniform(0.08, 0.26), pen.rng.choice([-0.24, 0.24])
        colour = pen.pick((206, 120, 56), (98, 104, 118), (190, 64, 56))
        foot = pen.horizon + 0.03
        pen.line([(x, foot), (x, top), (x + arm, top)], colour, 0.018)
        pen.line([(x - arm * 0.35, top), (x, top - 0.06), (x + arm, top)], colour, 0.009)
        pen.line([(x + arm * 0.8, top), (x + arm * 0.8, top + 0.12)], colour, 0.007)


def crates(pen: Pen) -> None:
    for x, y, scale in pen.spots(2, 7):
        side = 0.1 * scale
        colour = pen.pick((176, 74, 58), (64, 108, 150), (196, 156, 70), (98, 134, 96))
        pen.rect(x, y - side, side * pen.rng.uniform(0.9, 2), side, colour)
        pen.line([(x, y - side / 2), (x + side, y - side / 2)], pen.shade(colour, 30), 0.008)


def buildings(pen: Pen) -> None:
    left = pen.rng.uniform(-0.15, 0.2)
    for _ in range(pen.rng.randint(2, 6)):
        width, height = pen.rng.uniform(0.14, 0.28), pen.rng.uniform(0.14, 0.4)
        top = pen.horizon + 0.02 - height
        pen.rect(left, top, width, height, pen.pick((178, 112, 92), (196, 178, 148), (140, 146, 156), (206, 196, 186)))
        if pen.rng.random() < 0.45:
            roof = pen.pick((138, 72, 58), (86, 82, 88))
            pen.polygon([(left, top), (left + width / 2, top - 0.07), (left + width, top)], roof)
        glass = pen.pick((74, 88, 108), (238, 214, 140))
        for row in range(int(height / 0.08)):
            for column in range(3):
                pen.rect(left + width * (0.12 + 0.29 * column), top + 0.025 + 0.08 * row, width * 0.17, 0.04, glass)
        left += width + pen.rng.choice([0.0, 0.0, 0.06, 0.2])


def huts(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 2, bottom=0.8):
        side = 0.13 * scale
        pen.rect(x - side, y - side, side * 2, side, pen.pick((150, 106, 72), (206, 196, 178)))
        roof = pen.pick((112, 68, 54), (84, 84, 92))
        pen.polygon([(x - side * 1.2, y - side), (x, y - side * 1.8), (x + side * 1.2, y - side)], roof)
        pen.rect(x - side * 0.2, y - side * 0.6, side * 0.4, side * 0.6, pen.shade((84, 62, 48)))


def tents(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 3, bottom=0.9):
        half = 0.09 * scale
        cloth = pen.pick((206, 120, 60), (76, 122, 160), (218, 208, 180))
        pen.polygon([(x - half, y), (x, y - half * 1.3), (x + half, y)], cloth)
        pen.polygon([(x - half * 0.25, y), (x, y - half * 0.9), (x + half * 0.25, y)], pen.shade((70, 62, 58)))


def cars(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 4, bottom=0.92):
        half = 0.09 * scale
        body = pen.pick((188, 56, 52), (62, 94, 150), (228, 228, 226), (60, 62, 68), (206, 170, 70))
        pen.rect(x - half, y - half * 0.6, half * 2, half * 0.45, body)
        pen.polygon([(x - half * 0.6, y - half * 0.6), (x - half * 0.35, y - half), (x + half * 0.4, y - half),
                     (x + half * 0.7, y - half * 0.6)], pen.shade((150, 172, 188)))
        for side in (-0.55, 0.55):
            pen.oval(x + side * half, y - half * 0.12, half * 0.2, half * 0.2, (34, 34, 36))


def street_lamps(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 4, bottom=0.85):
        height = 0.36 * scale
        colour = pen.shade((70, 72, 78))
        pen.line([(x, y), (x, y - height), (x + 0.06 * scale, y - height)], colour, 0.012)
        pen.oval(x + 0.065 * scale, y - height + 0.01, 0.018 * scale, 0.014 * scale, pen.shade((250, 236, 170)))


def people(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 7):
        height = 0.12 * scale
        trousers = pen.pick((62, 66, 88), (150, 120, 90))
        pen.rect(x - height * 0.14, y - height * 0.45, height * 0.28, height * 0.45, trousers)
        shirt = pen.pick((196, 76, 70), (78, 124, 176), (232, 208, 110), (230, 230, 230), (96, 146, 104))
        pen.rect(x - height * 0.18, y - height * 0.85, height * 0.36, height * 0.45, shirt)
        pen.oval(x, y - height, height * 0.14, height * 0.15, pen.pick((228, 188, 156), (150, 108, 82)))


def parasols(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 5):
        half = 0.09 * scale
        pen.line([(x, y), (x, y - half * 1.6)], pen.shade((150, 130, 110)), 0.01)
        colour = pen.pick((210, 70, 64), (240, 206, 90), (72, 140, 186))
        pen.polygon([(x - half, y - half * 1.3), (x, y - half * 2.1), (x + half, y - half * 1.3)], colour)
        pen.polygon([(x - half * 0.3, y - half * 1.3), (x, y - half * 2.1), (x + half * 0.3, y - half * 1.3)],
                    pen.shade((244, 240, 230), 8))


def towels(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 5, top=0.7):
        length, depth = 0.12 * scale, 0.04 * scale
        colour = pen.pick((206, 92, 96), (86, 150, 190), (236, 214, 120), (150, 190, 130))
        pen.polygon([(x, y), (x + length, y), (x + length + depth, y - depth), (x + depth, y - depth)], colour)


def birds(pen: Pen) -> None:
    colour = pen.pick((50, 52, 58), (238, 238, 238))
    for _ in range(pen.rng.randint(2, 6)):
        x, y, half = pen.rng.uniform(0, 1), pen.rng.uniform(0.04, 0.36), pen.rng.uniform(0.015, 0.03)
        pen.line([(x - half, y - half * 0.6), (x, y), (x + half, y - half * 0.6)], colour, 0.008)


# Things in a room.

def _doors(pen: Pen, x: float, y: float, width: float, height: float, columns: int, rows: int, colour: Colour) -> None:
    """A piece of furniture seen from the front: a box of equal doors or drawers with knobs."""
    pen.rect(x, y, width, height, colour)
    red, green, blue = (c * 4 // 5 for c in colour)
    edge, knob = pen.shade((red, green, blue), 8), pen.pick((64, 60, 58), (210, 204, 190))
    for column in range(columns):
        for row in range(rows):
            left, top = x + width * column / columns, y + height * row / rows
            corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
            pen.line([(left + a * width / columns, top + b * height / rows) for a, b in corners], edge, 0.008)
            pen.oval(left + width / columns * 0.8, top + height / rows * 0.5, 0.007, 0.007, knob)


def _wood(pen: Pen) -> Colour:
    return pen.pick((166, 122, 82), (126, 90, 64), (222, 214, 200), (190, 160, 122), (150, 160, 160))


def window(pen: Pen) -> None:
    for _ in range(pen.rng.randint(1, 2)):
        x, y, side = pen.rng.uniform(0, 0.75), pen.rng.uniform(0.06, 0.2), pen.rng.uniform(0.18, 0.28)
        frame = pen.pick((240, 238, 232), (140, 108, 78))
        pen.rect(x, y, side, side, frame)
        glass = pen.pick((150, 196, 232), (206, 220, 228), (70, 84, 124))
        for column in (0, 1):
            for row in (0, 1):
                left, top = x + side * (0.07 + 0.46 * column), y + side * (0.07 + 0.46 * row)
                pen.rect(left, top, side * 0.4, side * 0.4, glass)
        if pen.rng.random() < 0.4:
            cloth = pen.pick((196, 120, 110), (120, 146, 176), (222, 206, 170))
            for left in (x - side * 0.15, x + side * 0.85):
                pen.rect(left, y - 0.02, side * 0.3, side * pen.rng.uniform(1.05, 1.6), cloth)


def wall_cabinets(pen: Pen) -> None:
    columns = pen.rng.randint(2, 5)
    width = columns * pen.rng.uniform(0.1, 0.16)
    _doors(pen, pen.rng.uniform(-0.1, 1 - width * 0.6), 0.0, width, pen.rng.uniform(0.14, 0.24), columns, 1, _wood(pen))


def low_cabinets(pen: Pen) -> None:
    columns = pen.rng.randint(2, 6)
    width, height = columns * pen.rng.uniform(0.1, 0.15), pen.rng.uniform(0.2, 0.28)
    x, top = pen.rng.uniform(-0.15, 1 - width * 0.6), pen.horizon + 0.06 - height
    _doors(pen, x, top, width, height, columns, pen.rng.randint(1, 3), _wood(pen))
    pen.rect(x - 0.01, top - 0.025, width + 0.02, 0.03, pen.pick((90, 88, 90), (210, 204, 196), (150, 112, 80)))


def tall_cabinet(pen: Pen) -> None:
    width, top = pen.rng.uniform(0.16, 0.28), pen.rng.uniform(0.1, 0.24)
    colour = pen.pick((226, 228, 230), (176, 180, 186), (160, 118, 80), (206, 190, 164))
    columns, rows = pen.rng.choice([(1, 2), (2, 1), (2, 2)])
    _doors(pen, pen.rng.uniform(-0.05, 0.85), top, width, pen.horizon + 0.06 - top, columns, rows, colour)


def stove(pen: Pen) -> None:
    x, width, height = pen.rng.uniform(0, 0.8), pen.rng.uniform(0.16, 0.22), 0.24
    top = pen.horizon + 0.06 - height
    body = pen.pick((230, 230, 228), (70, 72, 76), (164, 168, 172))
    pen.rect(x, top, width, height, body)
    pen.rect(x + width * 0.15, top + height * 0.35, width * 0.7, height * 0.4, (38, 38, 42))
    for k in range(4):
        pen.oval(x + width * (0.2 + 0.2 * k), top + height * 0.15, 0.012, 0.012, (110, 40, 36))
    if pen.rng.random() < 0.6:
        metal = pen.pick((176, 180, 184), (120, 122, 126))
        pen.polygon([(x, 0.22), (x + width * 0.3, 0.12), (x + width * 0.7, 0.12), (x + width, 0.22)], metal)
        pen.rect(x + width * 0.4, 0, width * 0.2, 0.13, metal)


def crockery(pen: Pen) -> None:
    for _ in range(pen.rng.randint(2, 8)):
        x, y, side = pen.rng.uniform(0, 1), pen.horizon - pen.rng.uniform(0.16, 0.22), pen.rng.uniform(0.025, 0.05)
        colour = pen.pick((196, 70, 60), (240, 240, 236), (86, 130, 160), (80, 80, 84), (230, 184, 80))
        pen.rect(x, y - side, side, side, colour)
        pen.line([(x + side, y - side * 0.6), (x + side * 1.4, y - side * 0.6)], colour, 0.01)


def hooks(pen: Pen) -> None:
    x, y, length = pen.rng.uniform(0, 0.6), pen.rng.uniform(0.26, 0.34), pen.rng.uniform(0.2, 0.4)
    colour = pen.pick((84, 84, 88), (150, 116, 84))
    pen.line([(x, y), (x + length, y)], colour, 0.008)
    for k in range(5):
        hang = x + length * (k + 0.5) / 5
        pen.line([(hang, y), (hang, y + 0.06)], colour, 0.008)
        pen.oval(hang, y + 0.075, 0.016, 0.02, pen.shade(colour, 30))


def table(pen: Pen) -> None:
    x, y, width = pen.rng.uniform(-0.05, 0.6), pen.rng.uniform(pen.horizon + 0.06, 0.86), pen.rng.uniform(0.26, 0.48)
    colour = _wood(pen)
    pen.rect(x, y, width, 0.035, colour)
    for leg in (0.05, 0.9):
        pen.rect(x + width * leg, y, width * 0.06, 0.2, pen.shade(colour, 12))
    if pen.rng.random() < 0.5:
        fruit = pen.pick((200, 70, 60), (226, 170, 60), (120, 160, 70))
        for k in range(3):
            pen.oval(x + width * (0.4 + 0.09 * k), y - 0.015, 0.02, 0.02, fruit)


def chairs(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 3, top=pen.horizon + 0.12):
        colour, side = _wood(pen), 0.12 * scale
        pen.rect(x, y - side * 2, side * 0.15, side * 2, colour)
        pen.rect(x, y - side, side, side * 0.16, colour)
        pen.rect(x + side * 0.85, y - side, side * 0.15, side, colour)
        pen.rect(x, y - side * 1.9, side * 0.5, side * 0.5, pen.shade(colour, 12))


def bed(pen: Pen) -> None:
    x, y, width = pen.rng.uniform(-0.1, 0.5), pen.rng.uniform(pen.horizon + 0.1, 0.92), pen.rng.uniform(0.42, 0.62)
    cloth = pen.pick((124, 150, 186), (200, 132, 124), (232, 222, 206), (150, 176, 146), (150, 130, 170))
    wood, head = _wood(pen), pen.rng.choice([0.0, 1.0])
    pen.rect(x, y - 0.17, width, 0.15, cloth)
    pen.rect(x, y - 0.05, width, 0.06, wood)
    pen.rect(x + (width - 0.03) * head, y - 0.28, 0.03, 0.32, wood)
    pen.rect(x + (width - 0.03) * (1 - head), y - 0.18, 0.03, 0.22, wood)
    pillow = x + 0.03 + (width - 0.17) * head
    pen.rect(pillow, y - 0.21, 0.11, 0.05, pen.shade((242, 240, 234), 10))


def cushions(pen: Pen) -> None:
    for x, y, scale in pen.spots(1, 5, top=pen.horizon + 0.05):
        side = 0.08 * scale
        colour = pen.pick((200, 110, 100), (110, 140, 176), (226, 200, 130), (150, 170, 130), (238, 234, 226))
        corners = [(0, 0), (1, 0.1), (0.9, 1), (0.1, 0.9)]
        pen.polygon([(x + side * a, y - side * b) for a, b in corners], colour)


def rug(pen: Pen) -> None:
    x, y, rx = pen.rng.uniform(0.2, 0.8), pen.rng.uniform(pen.horizon + 0.1, 0.95), pen.rng.uniform(0.15, 0.34)
    colour = pen.pick((160, 70, 66), (92, 110, 146), (206, 186, 150), (112, 136, 106))
    for shrink in (1, 0.8, 0.55):
        pen.oval(x, y, rx * shrink, rx * 0.3 * shrink, pen.shade(colour, 30))


def pictures(pen: Pen) -> None:
    for _ in range(pen.rng.randint(1, 4)):
        x, y = pen.rng.uniform(0, 0.9), pen.rng.uniform(0.06, 0.3)
        width, height = pen.rng.uniform(0.07, 0.14), pen.rng.uniform(0.07, 0.14)
        pen.rect(x, y, width, height, pen.pick((72, 56, 44), (214, 180, 110), (240, 240, 240)))
        inside = pen.pick((120, 160, 190), (190, 120, 90), (130, 160, 110), (60, 66, 90))
        pen.rect(x + 0.015, y + 0.015, width - 0.03, height - 0.03, inside)


def shelf(pen: Pen) -> None:
    x, y, length = pen.rng.uniform(0, 0.6), pen.rng.uniform(0.2, 0.36), pen.rng.uniform(0.2, 0.4)
    pen.rect(x, y, length, 0.018, _wood(pen))
    left = x
    while left < x + length - 0.03:
        width, height = pen.rng.uniform(0.015, 0.035), pen.rng.uniform(0.04, 0.09)
        cover = pen.pick((170, 70, 64), (70, 104, 146), (216, 190, 120), (110, 140, 110))
        pen.rect(left, y - height, width, height, cover)
        left += width + pen.rng.choice([0.003, 0.003, 0.03])


def lamp(pen: Pen) -> None:
    x, bright = pen.rng.uniform(0.05, 0.95), pen.pick((250, 226, 160), (236, 206, 180), (200, 90, 80))
    if pen.rng.random() < 0.5:
        drop = pen.rng.uniform(0.06, 0.2)
        pen.line([(x, 0), (x, drop)], (70, 70, 70), 0.008)
        pen.polygon([(x - 0.06, drop + 0.06), (x - 0.02, drop), (x + 0.02, drop), (x + 0.06, drop + 0.06)], bright)
    else:
        foot = pen.horizon - pen.rng.uniform(-0.05, 0.12)
        pen.line([(x, foot), (x, foot - 0.14)], pen.shade((110, 96, 84)), 0.014)
        low, high = foot - 0.12, foot - 0.2
        pen.polygon([(x - 0.06, low), (x - 0.03, high), (x + 0.03, high), (x + 0.06, low)], bright)


def pot_plant(pen: Pen) -> None:
    x, y = pen.rng.uniform(0.05, 0.95), pen.rng.uniform(pen.horizon - 0.08, pen.horizon + 0.2)
    leaf = pen.pick((78, 130, 70), (110, 146, 84))
    for _ in range(6):
        tip = (x + pen.rng.uniform(-0.08, 0.08), y - pen.rng.uniform(0.1, 0.18))
        pen.polygon([(x - 0.015, y - 0.05), tip, (x + 0.015, y - 0.05)], pen.shade(leaf, 14))
    pot = pen.pick((176, 98, 66), (220, 216, 206))
    pen.polygon([(x - 0.035, y - 0.06), (x + 0.035, y - 0.06), (x + 0.025, y), (x - 0.025, y)], pot)
