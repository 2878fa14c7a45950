"""Shapes as coverage: how much of each pixel a shape covers, anti-aliased.

In: a shape's name and its bounding box in pixels. Out: an "L" image. Every shape fills its box exactly, so that its
extent can be read back.
"""

import math
from functools import cache

from PIL import Image, ImageDraw

from minisd.world.words import SHAPES

Polygon = tuple[tuple[float, float], ...]
Box = tuple[float, float, float, float]  # left, top, right, bottom

SUPERSAMPLE = 4


def mask(shape: str, box: Box) -> tuple[Image.Image, tuple[int, int]]:
    """How much of each pixel a shape covers.

    `box` is the bounding box in pixels, with fractions. Returns an "L" image (0 to 255) just large enough for
    the box, and the (left, top) pixel where it belongs in the picture. Raises ValueError for an unknown
    shape.
    """
    left, top, right, bottom = box
    x0, y0 = math.floor(left), math.floor(top)
    width, height = math.ceil(right) - x0, math.ceil(bottom) - y0
    large = Image.new("L", (width * SUPERSAMPLE, height * SUPERSAMPLE))
    pen = ImageDraw.Draw(large)
    for polygon, fill in outline(shape):
        # Pillow fills the pixels on an outline too: half a pixel is taken off every side to make up for it.
        pen.polygon(
            [
                (
                    (left - x0 + u * (right - left)) * SUPERSAMPLE - u,
                    (top - y0 + v * (bottom - top)) * SUPERSAMPLE - v,
                )
                for u, v in polygon
            ],
            fill=fill,
        )
    return large.reduce(SUPERSAMPLE), (x0, y0)


@cache
def outline(shape: str) -> tuple[tuple[Polygon, int], ...]:
    """The polygons of a shape in the unit square, y down, each with its fill: 255 inside, 0 for a hole."""
    if shape == "ring":
        circle = _round(48)
        return (_fitted(circle), 255), (tuple((0.25 + u / 2, 0.25 + v / 2) for u, v in _fitted(circle)), 0)
    if shape not in _POLYGONS:
        raise ValueError(f"unknown shape {shape!r}: choose one of {SHAPES}")
    return ((_fitted(_POLYGONS[shape]()), 255),)


def _fitted(points: Polygon) -> Polygon:
    """Points stretched so that their bounding box is the unit square."""
    xs, ys = zip(*points, strict=False)
    x0, y0, width, height = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)
    return tuple(((x - x0) / width, (y - y0) / height) for x, y in points)


def _round(corners: int) -> Polygon:
    turns = [2 * math.pi * k / corners for k in range(corners)]
    return tuple((math.cos(turn), math.sin(turn)) for turn in turns)


def _star() -> Polygon:
    # The inner radius of a pentagram is 0.38; a little more keeps the tips at 13 pixels.
    radii = [1.0, 0.42] * 5
    return tuple((r * math.sin(math.pi * k / 5), -r * math.cos(math.pi * k / 5)) for k, r in enumerate(radii))


def _heart() -> Polygon:
    turns = [2 * math.pi * k / 48 for k in range(48)]
    return tuple(
        (
            16 * math.sin(t) ** 3,
            -13 * math.cos(t) + 5 * math.cos(2 * t) + 2 * math.cos(3 * t) + math.cos(4 * t),
        )
        for t in turns
    )


def _cross() -> Polygon:
    return ((1, 0), (2, 0), (2, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3), (1, 2), (0, 2), (0, 1), (1, 1))


_POLYGONS = {
    "circle": lambda: _round(48),
    "square": lambda: ((0, 0), (1, 0), (1, 1), (0, 1)),
    "triangle": lambda: ((0, 1), (1, 1), (0.5, 0)),
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "diamond": lambda: ((0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)),
}
