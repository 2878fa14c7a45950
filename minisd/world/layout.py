"""Where things go: boxes that never overlap, drawn at random without trial and error.

In: a `random.Random` and the sides of square boxes, as fractions of the picture. Out: their centres (x, y), y down.
"""

import random

from minisd.world.words import PLACES

Centre = tuple[float, float]

MARGIN = 0.03  # between a box and the border
GAP = 0.04  # between two boxes, along one axis at least
SLANT = 1.5  # of two related ones, distance of the centres along the axis of the relation : across it, at least
LEEWAY = 0.06  # how far from the middle a place in the middle may lie
OFF = 0.35  # how far from the border a place at the side may lie


def scattered(rng: random.Random, extents: list[float]) -> list[Centre]:
    """Anywhere: the picture is cut in two, across or along, until every part holds one box."""
    room = 1 - 2 * MARGIN
    while True:  # four in a row do not fit
        tree = _tree(rng, extents)
        if max(tree[:2]) <= room:
            return _settled(rng, tree, (MARGIN, MARGIN), (room, room))


def at_place(rng: random.Random, extent: float, place: str) -> Centre:
    """In one of the nine places."""
    low, high = MARGIN + extent / 2, 1 - MARGIN - extent / 2
    ranges = ((low, max(low, OFF)), (0.5 - LEEWAY, 0.5 + LEEWAY), (min(high, 1 - OFF), high))
    return tuple(rng.uniform(*ranges[third]) for third in PLACES[place])


def related(rng: random.Random, extents: list[float], relation: str) -> list[Centre]:
    """Two boxes of which the first is RELATION the second, plainly so."""
    backwards = relation in ("to the right of", "below")
    first, second = extents[::-1] if backwards else extents  # in order along the axis

    # The room left over is split at random into before, between and after.
    room = 1 - 2 * MARGIN - GAP - first - second
    before, between = sorted(rng.random() * room for _ in range(2))
    along = [MARGIN + before + first / 2, MARGIN + between + first + GAP + second / 2]

    # The range of the larger box lies within that of the smaller: placed first, it always leaves room.
    big, little = max(first, second), min(first, second)
    reach = (along[1] - along[0]) / SLANT
    across_big = rng.uniform(MARGIN + big / 2, 1 - MARGIN - big / 2)
    low = max(MARGIN + little / 2, across_big - reach)
    high = min(1 - MARGIN - little / 2, across_big + reach)
    across_little = rng.uniform(low, high)
    across = [across_big, across_little] if first >= second else [across_little, across_big]

    centres = list(zip(along, across, strict=True)) if "to the" in relation else list(zip(across, along, strict=True))
    return centres[::-1] if backwards else centres


def _tree(rng: random.Random, extents: list[float]) -> tuple:
    """A random cut: the width and height that it needs, then its axis and two parts (none for a single box)."""
    if len(extents) == 1:
        return extents[0], extents[0]
    cut = 1 + int(rng.random() * (len(extents) - 1))
    one, other = _tree(rng, extents[:cut]), _tree(rng, extents[cut:])
    axis = int(rng.random() * 2)
    needs = [max(one[0], other[0]), max(one[1], other[1])]
    needs[axis] = one[axis] + GAP + other[axis]
    return *needs, axis, one, other


def _settled(rng: random.Random, tree: tuple, corner: Centre, room: Centre) -> list[Centre]:
    """Centres of a tree's boxes within a room (width, height) at a corner (left, top)."""
    if len(tree) == 2:
        return [tuple(corner[k] + tree[k] / 2 + rng.random() * (room[k] - tree[k]) for k in (0, 1))]
    axis, one, other = tree[2:]
    left = one[axis] + rng.random() * (room[axis] - tree[axis])
    rest = room[axis] - left - GAP
    if axis == 0:
        rooms, second = ((left, room[1]), (rest, room[1])), (corner[0] + left + GAP, corner[1])
    else:
        rooms, second = ((room[0], left), (room[0], rest)), (corner[0], corner[1] + left + GAP)
    return _settled(rng, one, corner, rooms[0]) + _settled(rng, other, second, rooms[1])
