"""Scenes told in words.

In: a `Scene`. Out: lower-case ASCII sentences such as "a large red circle to the left of a small blue square on a white
background". A sentence is a core (the objects, told in one of several ways) in a frame (the ground and some filler), so
that one small vocabulary gives many phrasings.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache

from minisd.world.chance import pick
from minisd.world.scenes import Object, Scene, recipe, told_otherwise
from minisd.world.words import NUMBERS, article, ground_parts, plural

Choose = Callable[[Sequence], object]  # picks one of several ways of saying the same

# Where the second object is, seen from the first, when the first RELATION the second.
_SEEN_FROM_FIRST = {
    "to the left of": "to its right",
    "to the right of": "to its left",
    "above": "below it",
    "below": "above it",
}
_SHORT = {"to the left of": "left of", "to the right of": "right of"}
_PLACES = {  # other words for a place
    "in the middle": ("in the middle", "in the center"),
    "on the left": ("on the left", "on the left side"),
    "on the right": ("on the right", "on the right side"),
}
_FRAMES = (  # the first one is the canonical phrasing
    "{core} {where}",
    "{core}, {where}",
    "{where}, {core}",
    "a picture of {core} {where}",
    "there {are} {core} {where}",
    "{ground}: {core}",
    "{core}, {ground}",
)
_BARE_FRAMES = ("{core}", "a picture of {core}", "there {are} {core}")
# The ground alone, and the ways to say that something is there. Of a gradient the order of colours counts.
_GROUNDS = {
    "plain": ("{0} background", ("on a {0} background",)),
    "gradient": (
        "{0} to {1} gradient",
        ("on a {0} to {1} gradient", "on a gradient from {0} to {1}", "on a {0} to {1} gradient background"),
    ),
    "striped": (
        "{0} and {1} stripes",
        ("on a striped {0} and {1} background", "on a {0} and {1} striped background", "on {0} and {1} stripes"),
    ),
    "checkered": (
        "{0} and {1} checkered background",
        ("on a checkered {0} and {1} background", "on a {0} and {1} checkered background"),
    ),
    "night sky": ("night sky", ("under a night sky", "under a starry night sky", "at night")),
    "sea": ("the sea", ("by the sea", "in front of the sea")),
    "meadow": ("green meadow", ("on a meadow", "on a green meadow", "in a meadow")),
}


def captions(scene: Scene, count: int = 48) -> list[str]:
    """Up to `count` different phrasings that name every factor, always the same; the first is the canonical one."""
    rng = random.Random(recipe(scene))
    told = [tell(scene, first)]
    told += (tell(scene, lambda options: pick(rng, options)) for _ in range(2 * count))
    return list(dict.fromkeys(told))[:count]


def caption(scene: Scene, rng: random.Random, drop: float = 0.25) -> str:
    """One phrasing at random. With probability `drop` it is silent on the ground, the sizes or both; of the full ones
    a third is canonical."""
    if rng.random() < drop:
        placed, sized = pick(rng, ((True, False), (False, True), (False, False), (False, False)))
    elif rng.random() < 1 / 3:
        return tell(scene, first)
    else:
        placed = sized = True
    return tell(scene, lambda options: pick(rng, options), placed, sized)


def first(options: Sequence) -> object:
    """The canonical choice."""
    return options[0]


def tell(scene: Scene, choose: Choose, placed: bool = True, sized: bool = True) -> str:
    """The scene in words, as `choose` picks them, with its ground and its sizes or without."""
    number, core = _core(scene, choose, sized)
    are = "are" if number > 1 else "is"
    if not placed:
        return choose(_BARE_FRAMES).format(core=core, are=are)
    ground, where = choose(_ground(scene.background))
    return choose(_FRAMES).format(core=core, are=are, ground=ground, where=choose(where))


@cache
def _ground(background: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The ground alone and the ways of standing on it, in one or both orders of its colours."""
    kind, colours = ground_parts(background)
    orders = [colours, colours[::-1]] if kind in ("striped", "checkered") else [colours]
    alone, ways = _GROUNDS[kind]
    return tuple((alone.format(*order), tuple(way.format(*order) for way in ways)) for order in orders)


def _core(scene: Scene, choose: Choose, sized: bool) -> tuple[int, str]:
    """The objects in words, and how many are told first."""
    if scene.relation:
        told = choose((scene, told_otherwise(scene)))
        one, other = (_things(1, item, choose, sized) for item in told.objects)
        way = choose((told.relation, told.relation, _SHORT.get(told.relation, told.relation), None))
        return 1, f"{one} {way} {other}" if way else f"{one} with {other} {_SEEN_FROM_FIRST[told.relation]}"
    groups = scene.groups
    if len(groups) > 1:
        turned = choose(range(len(groups)))
        groups = groups[turned:] + groups[:turned]
    # Of more than two objects all are small: that is said sometimes, and never in a long list.
    sized = sized and (len(scene.objects) <= 2 or (len(groups) == 1 and choose((False, False, True))))
    things = [_things(number, item, choose, sized) for number, item in groups]
    if scene.place:
        return 1, f"{things[0]} {choose(_PLACES.get(scene.place, (scene.place,)))}"
    return groups[0][0], " and ".join(filter(None, (", ".join(things[:-1]), things[-1])))


def _things(number: int, item: Object, choose: Choose, sized: bool) -> str:
    colour = item.colour
    if item.own and colour:
        colour = choose((None, None, colour))
    pattern = None if item.pattern == "plain" else item.pattern
    noun = plural(item.noun) if number > 1 else item.noun
    words = " ".join(filter(None, (item.size if sized else None, pattern, colour, noun)))
    if number == 1:
        return article(words)
    return f"{choose((NUMBERS[number], NUMBERS[number], NUMBERS[number], str(number)))} {words}"
