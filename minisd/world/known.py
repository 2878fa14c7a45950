"""A world as plain data: what it knows and where that stands out, so that prompts of it can be made without its font.

In: a `World`. Out: dicts, lists, strings and numbers, fit for JSON; and its `Vocabulary`, from these again.
"""

from typing import Any

from minisd.world.vocabulary import Vocabulary
from minisd.world.words import COLOURS, SHAPES
from minisd.world.world import World


def known(world: World) -> dict[str, Any]:
    """All that is needed to make scenes of a world."""
    recipe, words = world.recipe, world.vocabulary
    looks = things(words.nouns)
    return {
        "nouns": {noun: list(hues) for noun, hues in words.nouns.items()},
        "own": dict(words.own),
        "patterns": list(recipe.patterns),
        "grounds": list(recipe.grounds),
        "shapes": recipe.shapes,
        "clear": {ground: packed(looks, choice) for ground, choice in words.on.items()},
    }


def vocabulary(data: dict[str, Any]) -> Vocabulary:
    """The inverse of `known`: the same seed gives the same scenes."""
    nouns = {noun: tuple(hues) for noun, hues in data["nouns"].items()}
    looks = things(nouns)
    clear = {ground: unpacked(looks, bits) for ground, bits in data["clear"].items()}
    return Vocabulary(nouns, data["own"], clear, data["patterns"], data["grounds"], data["shapes"])


def things(nouns: dict[str, tuple[str, ...]]) -> list[tuple[str, str | None]]:
    """All nouns with all hues, in order."""
    shapes = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    return shapes + [(noun, hue) for noun, hues in nouns.items() for hue in (None, *hues)]


def packed(looks: list[tuple[str, str | None]], choice: Any) -> str:
    """Which things stand out from a ground, as bits in hexadecimal digits."""
    clear = {item.look[:2] for items in (choice.shapes, choice.emoji, choice.hued, choice.held_out) for item in items}
    return f"{sum(1 << i for i, look in enumerate(looks) if look in clear):x}"


def unpacked(looks: list[tuple[str, str | None]], bits: str) -> set[tuple[str, str | None]]:
    """The things of `packed`."""
    number = int(bits, 16)
    return {look for i, look in enumerate(looks) if number >> i & 1}
