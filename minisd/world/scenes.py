"""The truth of a picture: one to four objects on a ground, every factor known.

A picture made from a scene's caption can be marked right or wrong against it. Lengths are fractions of the picture's
width, y points down. Three splits keep an evaluation honest:
- "train" shows neither a held-out pair of noun and colour nor a `reserved` recipe,
- "test" shows only reserved recipes, without held-out pairs,
- "held_out" shows only scenes with a held-out pair.
"""

import hashlib
from dataclasses import dataclass, replace

from minisd.world.words import COLOURS, INVERSE, NUMBERS, PLACES, RELATIONS, SHAPES

SPLITS = ("train", "test", "held_out")
HELD_OUT = frozenset((shape, list(COLOURS)[(i + 6) % 8]) for i, shape in enumerate(SHAPES))


@dataclass(frozen=True, slots=True)
class Object:
    """One thing: its words, its centre (x, y) and the side of its bounding box, as fractions of the width.

    An emoji as it is has `own`: its colour word, where there is one, may go unsaid.
    """

    noun: str
    colour: str | None
    size: str
    x: float
    y: float
    extent: float
    pattern: str = "plain"
    own: bool = False

    @property
    def look(self) -> tuple[str, str | None, str]:
        """Noun, hue and pattern: what sprite it is."""
        return self.noun, None if self.own else self.colour, self.pattern

    @property
    def name(self) -> str:
        """The look in words."""
        noun, hue, pattern = self.look
        return " ".join(filter(None, (pattern if pattern != "plain" else None, hue, noun)))


@dataclass(frozen=True, slots=True)
class Scene:
    """Objects on a ground. Two may have `objects[0]` RELATION `objects[1]`, one may have a place; `grain` chooses among
    the pictures of the ground and goes unsaid."""

    objects: tuple[Object, ...]
    background: str
    relation: str | None = None
    place: str | None = None
    grain: int = 0

    def __post_init__(self) -> None:
        n = len(self.objects)
        if not 1 <= n <= 4:
            raise ValueError(f"{n} objects: a scene has 1 to 4")
        if self.relation is not None and (n != 2 or self.relation not in INVERSE):
            raise ValueError(f"{n} objects with relation {self.relation!r}: give two objects and one of {RELATIONS}")
        if self.place is not None and (n != 1 or self.place not in PLACES):
            raise ValueError(f"{n} objects with place {self.place!r}: give one object and one of {tuple(PLACES)}")

    @property
    def groups(self) -> list[tuple[int, Object]]:
        """Alike objects together, each group with its number, in the order of the first."""
        found: dict[tuple, list[Object]] = {}
        for item in self.objects:
            found.setdefault((item.look, item.size), []).append(item)
        return [(len(items), items[0]) for items in found.values()]

    @property
    def kind(self) -> str:
        """single, place, relation, list or count."""
        if self.relation:
            return "relation"
        if len(self.objects) == 1:
            return "place" if self.place else "single"
        return "list" if len(self.groups) == len(self.objects) else "count"


def told_otherwise(scene: Scene) -> Scene:
    """The same scene with the other object first: A left of B becomes B right of A."""
    if scene.relation is None:
        return scene
    return replace(scene, objects=scene.objects[::-1], relation=INVERSE[scene.relation])


def recipe(scene: Scene) -> str:
    """All factors but the exact coordinates in one string, the same in whatever order the objects are told."""
    if scene.relation in ("to the right of", "below"):
        scene = told_otherwise(scene)
    if scene.relation:
        things = f" {scene.relation} ".join(f"{item.size} {item.name}" for item in scene.objects)
    else:
        groups = sorted((f"{item.size} {item.name}", number) for number, item in scene.groups)
        things = " and ".join(f"{NUMBERS[number]} {words}" if number > 1 else words for words, number in groups)
    return f"{things} {scene.place} on {scene.background}" if scene.place else f"{things} on {scene.background}"


def reserved(recipe_str: str) -> bool:
    """Whether a recipe is put aside for evaluation: about one in ten, the same ones in every process."""
    return hashlib.sha256(recipe_str.encode()).digest()[0] < 26  # 26 / 256; hash() is salted per process


def held_out(item: Object) -> bool:
    """Whether a pair of noun and colour is never trained on: one in eight of the shapes', one in twelve of the
    emoji's; an emoji as it is never is."""
    if item.noun in SHAPES:
        return (item.noun, item.colour) in HELD_OUT
    return not item.own and hashlib.sha256(f"{item.noun}/{item.colour}".encode()).digest()[0] < 21
