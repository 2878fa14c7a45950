"""What lies behind the objects: plain, gradient, striped, checkered; night sky, sea and meadow.

In: a ground's name and the side of the picture. Out: RGB bytes (k, size, size, 3): k pictures of a landscape, one of
any other ground. They are painted once; a scene's `grain` chooses among them.
"""

import random

import numpy as np

from minisd.world.colour import mixed
from minisd.world.words import LANDSCAPES, MUTED, PLAIN, RGB, ground_parts

PICTURES = 24  # of each landscape
BANDS = 8  # stripes and checks across the picture


def paint(ground: str, size: int) -> np.ndarray:
    """All pictures of a ground, uint8 (k, size, size, 3)."""
    kind, names = ground_parts(ground)
    if kind in LANDSCAPES:
        pictures = [PAINTERS[kind](size, random.Random(f"{kind}/{k}")) for k in range(PICTURES)]
    elif kind == "plain":
        pictures = [np.full((size, size, 3), PLAIN[names[0]], dtype=np.float64)]
    else:
        one, other = (np.array(MUTED[name], dtype=np.float64) for name in names)
        pictures = [one + PATTERNED[kind](*_axes(size))[..., None] * (other - one)]
    return np.stack(pictures).clip(0, 255).round().astype(np.uint8)


def colours(ground: str) -> list[RGB]:
    """The colours that an object has to stand out from."""
    kind, names = ground_parts(ground)
    if kind == "plain":
        return [PLAIN[names[0]]]
    if kind == "gradient":
        return [mixed(MUTED[names[0]], MUTED[names[1]], k / 4) for k in range(5)]
    return list(LANDSCAPES[kind]) if kind in LANDSCAPES else [MUTED[name] for name in names]


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x (1, size) and y (size, 1) of the pixels' centres."""
    centres = (np.arange(size) + 0.5) / size
    return centres[None, :], centres[:, None]


def _faded(y: np.ndarray, top: RGB, bottom: RGB) -> np.ndarray:
    """(size, size, 3) from one colour to another, y (size, size) or (size, 1) from 0 to 1."""
    share = np.broadcast_to(y.clip(0, 1), (len(y), len(y)))[..., None]
    return np.array(top) + share * (np.array(bottom, dtype=np.float64) - top)


def _dotted(picture: np.ndarray, rng: random.Random, count: int, top: float, paints: tuple[RGB, ...]) -> np.ndarray:
    """Little round dots below `top`, on a picture."""
    x, y = _axes(len(picture))
    for _ in range(count):
        cx, cy, radius = rng.random(), top + (1 - top) * rng.random(), rng.uniform(0.006, 0.012)
        cover = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * radius**2)) * rng.uniform(0.5, 1)
        picture = picture + cover[..., None] * (np.array(rng.choice(paints)) - picture)
    return picture


def _night(size: int, rng: random.Random) -> np.ndarray:
    """Dark blue, with stars too small to be taken for things."""
    sky = _faded(_axes(size)[1], *LANDSCAPES["night sky"])
    return _dotted(sky, rng, 34, 0, ((255, 255, 255), (255, 246, 205), (215, 225, 255)))


def _sea(size: int, rng: random.Random) -> np.ndarray:
    """Pale sky over a horizon, water with lighter crests."""
    x, y = _axes(size)
    sky, near, far = LANDSCAPES["sea"]
    horizon, turn = rng.uniform(0.38, 0.48), rng.random()
    depth = (y - horizon) / (1 - horizon)
    crests = np.sin(2 * np.pi * (9 * np.sqrt(depth.clip(0)) + 0.35 * np.sin(2 * np.pi * (2.5 * x + turn)) + turn))
    water = _faded(depth, near, far) + 26 * (crests.clip(0.55) - 0.55)[..., None]
    edge = ((y - horizon) * size + 0.5).clip(0, 1)[..., None]
    return _faded(y / horizon, mixed(sky, (120, 185, 240), 0.35), sky) * (1 - edge) + water * edge


def _meadow(size: int, rng: random.Random) -> np.ndarray:
    """Pale sky over a hill of grass with little flowers."""
    x, y = _axes(size)
    sky, near, far = LANDSCAPES["meadow"]
    hill = rng.uniform(0.36, 0.44) + 0.04 * np.sin(2 * np.pi * (0.9 * x + rng.random()))
    lean = 1.5 * np.sin(2 * np.pi * (3 * y + rng.random()))
    blades = np.sin(2 * np.pi * (19 * x + lean)) * np.sin(2 * np.pi * 11 * y)
    grass = _faded((y - hill) / (1 - hill), near, far) + 7 * blades[..., None]
    grass = _dotted(grass, rng, 16, 0.45, ((255, 255, 255), (255, 235, 120), (250, 190, 215)))
    edge = ((y - hill) * size + 0.5).clip(0, 1)[..., None]
    return _faded(y / 0.4, mixed(sky, (120, 185, 240), 0.35), sky) * (1 - edge) + grass * edge


PATTERNED = {  # share of the second colour, of x (1, n) and y (n, 1)
    "gradient": lambda x, y: np.broadcast_to(y, (y.size, x.size)),
    "striped": lambda x, y: np.broadcast_to(np.floor(BANDS * x) % 2, (y.size, x.size)),
    "checkered": lambda x, y: (np.floor(BANDS * x) + np.floor(BANDS * y)) % 2,
}
PAINTERS = {"night sky": _night, "sea": _sea, "meadow": _meadow}
