"""Small worlds that are drawn in a blink."""

from pathlib import Path

from minisd.world.recipe import WorldRecipe
from minisd.world.world import World


def tiny_world(font: Path, size: int = 32, **changes: object) -> World:
    """Three toys (fox, cat, dog) and the shapes, without patterns, on plain grounds and on a meadow."""
    recipe = {"emoji": 3, "patterns": ("plain",), "grounds": ("plain", "meadow"), "font": str(font), **changes}
    return World(WorldRecipe(**recipe), size)


def shape_captions(count: int) -> list[str]:
    """Captions of shapes, always the same ones."""
    return World(WorldRecipe(emoji=0)).captions(range(count), 0)
