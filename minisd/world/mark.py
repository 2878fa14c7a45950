"""Marks: whether a picture, as it was read, shows what was told, word by word.

In: a `Reading` (of the oracle's or the judge's) and what was `Told`. Out: a verdict on every word, and on all.
What a prompt leaves unsaid is free: colour, pattern, size, place, relation, ground. What it does say is strict: exactly
the objects that it names are there and nothing else, each with its own words. So "three stars" is wrong with four, and
"a red balloon" is wrong beside a fox, or where something is that cannot be told.
"""

from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from minisd.world.oracle import Reading
from minisd.world.scenes import Object, Scene
from minisd.world.words import PLACES

AS_IT_IS = "natural"  # the colour of an emoji in its own colours that no word names
MIDDLE = (0.4, 0.6)  # of the width; the world puts what is in the middle at 0.44 to 0.56, and what is not beyond 0.35
MOST = 6  # objects that are paired with what was told: noise may have dozens
WORDS = ("count", "noun", "colour", "pattern", "size", "relation", "place", "ground")


@dataclass(frozen=True)
class Thing:
    """What is told of an object; None: nothing, so that anything will do."""

    noun: str
    colour: str | None = None
    pattern: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Told:
    """What is told of a picture. Of two things the first may have a relation to the other; one may have a place."""

    things: tuple[Thing, ...]
    relation: str | None = None
    place: str | None = None
    ground: str | None = None


def told(scene: Scene, words: Sequence[str] = WORDS) -> Told:
    """Of a scene so many words; its nouns and their number are always told."""

    def said(word: str, value: str | None) -> str | None:
        return value if word in words else None

    things = tuple(
        Thing(
            item.noun,
            said("colour", item.colour or AS_IT_IS),
            said("pattern", item.pattern),
            said("size", item.size),
        )
        for item in scene.objects
    )
    return Told(things, said("relation", scene.relation), said("place", scene.place), said("ground", scene.background))


def mark(reading: Reading, truth: Told) -> dict[str, bool]:
    """The verdict on each of WORDS and on "all"; a word that was not told is right.

    The objects are paired with what was told in the way that is kindest to the picture. If one is missing, every word
    about objects is wrong. An emoji in its own colours is right by the word that names them.
    """
    wanted, found = truth.things, reading.objects[:MOST]
    verdict = {
        **dict.fromkeys(WORDS, False),
        "count": len(reading.objects) == len(wanted),
        "relation": truth.relation is None,
        "place": truth.place is None,
        "ground": truth.ground in (None, reading.background),
    }
    if len(found) >= len(wanted):
        verdict |= max((compared(chosen, truth) for chosen in permutations(found, len(wanted))), key=kindness)
    return verdict | {"all": all(verdict.values())}


def compared(chosen: tuple[Object, ...], truth: Told) -> dict[str, bool]:
    """The words about the objects, for one way of pairing them with what was told."""
    verdict = {word: True for word in ("noun", "colour", "pattern", "size")}
    for seen, thing in zip(chosen, truth.things, strict=True):
        for word, right in fitting(seen, thing):
            verdict[word] &= right
    relation = truth.relation is None or holds(truth.relation, *chosen)
    return verdict | {"relation": relation, "place": truth.place is None or lies(truth.place, chosen[0])}


def fitting(seen: Object, thing: Thing) -> Iterator[tuple[str, bool]]:
    """Each word about an object, and whether it fits."""
    yield "noun", seen.noun == thing.noun
    yield "colour", thing.colour in (None, seen.colour or AS_IT_IS)
    yield "pattern", thing.pattern in (None, seen.pattern)
    yield "size", thing.size in (None, seen.size)


def holds(relation: str, first: Object, second: Object) -> bool:
    """Whether `first` RELATION `second`, by the centres and along the longer way between them."""
    dx, dy = second.x - first.x, second.y - first.y
    ahead = {"to the left of": dx, "to the right of": -dx, "above": dy, "below": -dy}[relation]
    return ahead > 0 and ahead >= max(abs(dx), abs(dy))


def lies(place: str, seen: Object) -> bool:
    """Whether the centre of an object lies in that place: left, in the middle, right; top, in the middle, bottom."""
    return tuple(bisect(MIDDLE, at) for at in (seen.x, seen.y)) == PLACES[place]


def kindness(verdict: dict[str, bool]) -> tuple[int, bool]:
    # The relation only breaks ties: else two objects that swapped places would be taken for each other.
    return sum(verdict[word] for word in ("noun", "colour", "pattern", "size")), verdict["relation"]
