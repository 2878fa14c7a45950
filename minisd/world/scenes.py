"""The words and the truth of the toy world: one or two coloured shapes on a plain background.

In: a `random.Random` and the name of a split. Out: a `Scene`, every factor of which is known, so that a
picture made from its caption can be marked right or wrong (`minisd.world.oracle`). Lengths are fractions of
the picture's width, y points down. Three splits keep an evaluation honest:
- "train" shows neither the `HELD_OUT` pairs of shape and colour nor a `reserved` recipe,
- "test" shows only reserved recipes, without held-out pairs,
- "held_out" shows only scenes with a held-out pair.
"""

import hashlib
import random
from dataclasses import asdict, dataclass

RGB = tuple[int, int, int]
Pair = tuple[str, str]  # (shape, colour)

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond", "ring")
COLOURS: dict[str, RGB] = {
    "red": (220, 30, 35),
    "green": (30, 160, 60),
    "blue": (40, 80, 235),
    "yellow": (250, 215, 30),
    "purple": (140, 40, 200),
    "orange": (245, 130, 20),
    "black": (15, 15, 15),
    "pink": (255, 95, 175),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "gray": (150, 150, 150),
    "cream": (255, 243, 214),
    "cyan": (120, 225, 235),
    "brown": (120, 80, 45),
    "dark blue": (25, 40, 110),
}
SIZES = {"small": 0.2, "large": 0.4}
JITTER = {"small": 0.015, "large": 0.025}  # an extent is SIZES[s] +- JITTER[s]
INVERSE = {
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "above": "below",
    "below": "above",
}
RELATIONS = tuple(INVERSE)

MARGIN = 0.03  # between a bounding box and the border
GAP = 0.05  # between two bounding boxes, along the axis of the relation
SLANT = 1.5  # distance of the centres along the axis of the relation : across it, at least

PAIRS: tuple[Pair, ...] = tuple((shape, colour) for shape in SHAPES for colour in COLOURS)
HELD_OUT = frozenset((shape, list(COLOURS)[(i + 6) % 8]) for i, shape in enumerate(SHAPES))
SEEN: tuple[Pair, ...] = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
SPLITS = ("train", "test", "held_out")


@dataclass(frozen=True)
class Object:
    """One shape: its words, its centre (x, y) and the side of its bounding box, as fractions of the width."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    extent: float


@dataclass(frozen=True)
class Scene:
    """One object and no relation, or two with `objects[0]` RELATION `objects[1]`."""

    objects: tuple[Object, ...]
    background: str
    relation: str | None = None

    def __post_init__(self) -> None:
        if (len(self.objects), self.relation in RELATIONS) not in ((1, False), (2, True)):
            raise ValueError(
                f"{len(self.objects)} objects with relation {self.relation!r}: give one object and None, "
                f"or two objects and one of {RELATIONS}"
            )

    def to_dict(self) -> dict:
        """The scene in lists, dicts, strings and floats, fit for JSON."""
        return {**asdict(self), "objects": [asdict(item) for item in self.objects]}

    @classmethod
    def from_dict(cls, data: dict) -> "Scene":
        """The inverse of `to_dict`."""
        return cls(tuple(Object(**item) for item in data["objects"]), data["background"], data["relation"])


def told_otherwise(scene: Scene) -> Scene:
    """The same scene with the other object first: A left of B becomes B right of A."""
    if scene.relation is None:
        return scene
    return Scene(scene.objects[::-1], scene.background, INVERSE[scene.relation])


def recipe(scene: Scene) -> str:
    """All factors but the exact coordinates in one string, the same whichever object is told first."""
    if scene.relation in ("to the right of", "below"):
        scene = told_otherwise(scene)
    things = [f"{item.size} {item.colour} {item.shape}" for item in scene.objects]
    return f" {scene.relation} ".join(things) + f" on {scene.background}"


def reserved(recipe_str: str) -> bool:
    """Whether a recipe is put aside for evaluation: about one in ten, the same ones in every process."""
    return hashlib.sha256(recipe_str.encode()).digest()[0] < 26  # 26 / 256; hash() is salted per process


def sample_scene(rng: random.Random, split: str = "train", n_objects: int | None = None) -> Scene:
    """A random scene of a split. Without `n_objects`, 40 % of scenes have one object ("held_out": all have).

    Raises ValueError for an unknown split or a number of objects other than 1 and 2.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {SPLITS}")
    if n_objects not in (None, 1, 2):
        raise ValueError(f"n_objects is {n_objects}: a scene has 1 or 2 (None draws the number)")
    if n_objects is None:
        n_objects = 1 if split == "held_out" or rng.random() < 0.4 else 2
    # Only the words are drawn again (ten times on average for "test"); placing never fails.
    while True:
        scene = _place(rng, _pairs(rng, split, n_objects))
        if split == "held_out" or reserved(recipe(scene)) == (split == "test"):
            return scene


def _pairs(rng: random.Random, split: str, n_objects: int) -> list[Pair]:
    """Distinct pairs, hence two objects that can be told apart."""
    if split != "held_out":
        return rng.sample(SEEN, n_objects)
    first = rng.choice(sorted(HELD_OUT))
    others = [pair for pair in PAIRS if pair != first]
    pairs = [first, *rng.sample(others, n_objects - 1)]
    rng.shuffle(pairs)
    return pairs


def _place(rng: random.Random, pairs: list[Pair]) -> Scene:
    sizes = [rng.choice(tuple(SIZES)) for _ in pairs]
    extents = [SIZES[size] + rng.uniform(-1, 1) * JITTER[size] for size in sizes]
    background = rng.choice(tuple(BACKGROUNDS))
    relation = rng.choice(RELATIONS) if len(pairs) == 2 else None
    if relation is None:
        centres = [(_anywhere(rng, extents[0]), _anywhere(rng, extents[0]))]
    else:
        centres = _two_centres(rng, extents, relation)
    return Scene(
        tuple(
            Object(shape, colour, size, x, y, extent)
            for (shape, colour), size, (x, y), extent in zip(pairs, sizes, centres, extents, strict=False)
        ),
        background,
        relation,
    )


def _anywhere(rng: random.Random, extent: float) -> float:
    return rng.uniform(MARGIN + extent / 2, 1 - MARGIN - extent / 2)


def _two_centres(rng: random.Random, extents: list[float], relation: str) -> list[tuple[float, float]]:
    """Centres of two boxes that hold a relation, with its margins, gap and slant, drawn without rejection."""
    backwards = relation in ("to the right of", "below")
    first, second = extents[::-1] if backwards else extents  # in order along the axis

    # The room left over is split at random into before, between and after.
    room = 1 - 2 * MARGIN - GAP - first - second
    before, between = sorted(rng.uniform(0, room) for _ in range(2))
    along = [MARGIN + before + first / 2, MARGIN + between + first + GAP + second / 2]

    # The range of the larger box lies within that of the smaller: placed first, it always leaves room.
    big, little = max(first, second), min(first, second)
    reach = (along[1] - along[0]) / SLANT
    across_big = _anywhere(rng, big)
    low = max(MARGIN + little / 2, across_big - reach)
    high = min(1 - MARGIN - little / 2, across_big + reach)
    across_little = rng.uniform(low, high)
    across = [across_big, across_little] if first >= second else [across_little, across_big]

    centres = list(zip(along, across, strict=False)) if "to the" in relation else list(zip(across, along, strict=False))
    return centres[::-1] if backwards else centres
