"""What there is to draw, and random scenes of it.

In: the nouns and hues that stand out from each ground, a `random.Random`, the name of a split. Out: a `Scene`.
"""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from minisd.world.chance import pick, weighted
from minisd.world.layout import at_place, related, scattered
from minisd.world.scenes import SPLITS, Object, Scene, held_out, recipe, reserved
from minisd.world.words import COLOURS, GROUNDS, JITTER, NEVER, PATTERNS, PLACES, RELATIONS, SHAPES, SIZES

KINDS = {"single": 0.16, "place": 0.14, "relation": 0.3, "list": 0.2, "count": 0.2}  # and how often
GROUPS = {  # kind -> how many of each thing, and how often
    "single": {(1,): 1.0},
    "place": {(1,): 1.0},
    "relation": {(1, 1): 1.0},
    "list": {(1, 1): 0.45, (1, 1, 1): 0.33, (1, 1, 1, 1): 0.22},
    "count": {(2,): 0.3, (3,): 0.25, (4,): 0.2, (2, 1): 0.1, (2, 2): 0.075, (3, 1): 0.075},
}
GROUND_KINDS = {
    "plain": 0.34,
    "gradient": 0.12,
    "striped": 0.1,
    "checkered": 0.1,
    "night sky": 0.12,
    "sea": 0.11,
    "meadow": 0.11,
}
HUED = 0.5  # of the emoji are in a hue
PLAINLY = 0.5  # of the shapes have no pattern
GRAINS = 2**20
SIZE_NAMES, PLACE_NAMES = tuple(SIZES), tuple(PLACES)


class Choice(NamedTuple):
    """What stands out from a ground: objects without place or pattern, by the way they are drawn at random."""

    shapes: list[Object]
    emoji: list[Object]  # as they are
    hued: list[Object]
    held_out: list[Object]


def sort_of(item: Object) -> str:
    """The field of `Choice` that an object belongs to."""
    if held_out(item):
        return "held_out"
    if item.noun in SHAPES:
        return "shapes"
    return "emoji" if item.own else "hued"


class Vocabulary:
    """All that can be drawn, and random scenes of it."""

    def __init__(
        self,
        nouns: Mapping[str, tuple[str, ...]],
        own: Mapping[str, str],
        clear: Mapping[str, Collection[tuple[str, str | None]]],
        patterns: Sequence[str] = PATTERNS,
        grounds: Sequence[str] = tuple(GROUND_KINDS),
        shapes: float = 0.3,
    ) -> None:
        """`nouns` are the emoji with their hues, `own` the colour words of emoji as they are; `clear` holds for each
        ground the (noun, hue) that stand out; `shapes` is the share of shapes, where there are emoji."""
        self.nouns, self.own = nouns, own
        self.patterns_of = {  # beside plain
            shape: tuple(p for p in patterns if p not in ("plain", *NEVER.get(shape, ()))) for shape in SHAPES
        }
        self.shape_share = shapes if nouns else 1.0
        self.kinds = {kind: GROUND_KINDS[kind] for kind in grounds}
        every = [self.item(shape, colour) for shape in SHAPES for colour in COLOURS]
        every += [self.item(noun, colour) for noun, hues in nouns.items() for colour in (None, *hues)]
        sorted_out = [(item, item.look[:2], sort_of(item)) for item in every]
        self.on: dict[str, Choice] = {}
        self._told: dict[str, set[tuple[str, str | None]]] = {}  # what training may show on a ground
        for ground in (ground for kind in grounds for ground in GROUNDS[kind]):
            parts: dict[str, list[Object]] = {sort: [] for sort in Choice._fields}
            for item, look, sort in sorted_out:
                if look in clear[ground]:
                    parts[sort].append(item)
            self.on[ground] = Choice(**parts)
            self._told[ground] = {
                item.look[:2] for sort, items in parts.items() if sort != "held_out" for item in items
            }

    def item(self, noun: str, colour: str | None) -> Object:
        """A small thing nowhere; a hue of None, or an emoji's own colour, is the emoji as it is."""
        own = noun not in SHAPES and colour in (None, self.own.get(noun))
        return Object(noun, self.own.get(noun) if own else colour, "small", 0.5, 0.5, SIZES["small"], "plain", own)

    def sample(self, rng: random.Random, split: str = "train", kind: str | None = None) -> Scene:
        """A random scene of a split, of one of KINDS or of any.

        Raises:
            ValueError: an unknown split or kind.
        """
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}: choose one of {SPLITS}")
        if kind not in (None, *KINDS):
            raise ValueError(f"unknown kind {kind!r}: choose one of {tuple(KINDS)}")
        kind = kind or weighted(rng, KINDS)
        while True:  # ten times on average for "test"
            scene = self._scene(rng, split, kind)
            if split == "held_out" or reserved(recipe(scene)) == (split == "test"):
                return scene

    def _scene(self, rng: random.Random, split: str, kind: str) -> Scene:
        ground, things = None, []
        groups = weighted(rng, GROUPS[kind])
        while not things:
            ground = pick(rng, GROUNDS[weighted(rng, self.kinds)])
            things = self._things(rng, self.on[ground], len(groups), split)
        free = sum(groups) <= 2  # of three or four all are small
        sizes = [pick(rng, SIZE_NAMES) if free else "small" for _ in things]
        each = [(thing, size) for thing, size, n in zip(things, sizes, groups, strict=True) for _ in range(n)]
        extents = [SIZES[size] + (2 * rng.random() - 1) * JITTER[size] for _, size in each]
        relation = pick(rng, RELATIONS) if kind == "relation" else None
        place = pick(rng, PLACE_NAMES) if kind == "place" else None
        if relation:
            centres = related(rng, extents, relation)
        elif place:
            centres = [at_place(rng, extents[0], place)]
        else:
            centres = scattered(rng, extents)
        objects = tuple(
            Object(thing.noun, thing.colour, size, x, y, extent, thing.pattern, thing.own)
            for (thing, size), (x, y), extent in zip(each, centres, extents, strict=True)
        )
        return Scene(objects, ground, relation, place, int(rng.random() * GRAINS))

    def _things(self, rng: random.Random, choice: Choice, count: int, split: str) -> list[Object]:
        """Things that can be told apart by their words; none where the ground has nothing held out to show."""
        chosen = int(rng.random() * count) if split == "held_out" else None
        if chosen is not None and not choice.held_out:
            return []
        while True:
            things = [self._thing(rng, choice, held=i == chosen) for i in range(count)]
            if count == 1 or distinct(things):
                return things

    def _thing(self, rng: random.Random, choice: Choice, held: bool) -> Object:
        if held:
            thing = pick(rng, choice.held_out)
        elif rng.random() < self.shape_share or not choice.emoji:
            thing = pick(rng, choice.shapes)
        else:
            thing = pick(rng, choice.hued if rng.random() < HUED and choice.hued else choice.emoji)
        patterns = self.patterns_of.get(thing.noun, ())
        if not patterns or rng.random() < PLAINLY:
            return thing
        return replace(thing, pattern=pick(rng, patterns))

    def shows(self, scene: Scene) -> bool:
        """Whether training may show a scene: it can be drawn and told, and nothing in it is put aside."""
        return (
            all(item.look[:2] in self._told[scene.background] for item in scene.objects)
            and distinct([item for _, item in scene.groups])
            and not reserved(recipe(scene))
        )


def distinct(things: Sequence[Object]) -> bool:
    """Whether words tell them all apart: by their nouns, or by colours that are said."""
    return all(
        a.noun != b.noun or (a.colour != b.colour and not a.own and not b.own) for a, b in combinations(things, 2)
    )
