"""A world without a font: its emoji are painted here."""

from PIL import Image, ImageDraw

from minisd.world.recipe import WorldRecipe
from minisd.world.world import World


def face(head: str, eyes: str, nose: str) -> Image.Image:
    """A round thing of three colours."""
    picture = Image.new("RGBA", (128, 128))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((2, 2, 125, 125), head)
    for x in (40, 88):
        pen.ellipse((x - 14, 36, x + 14, 64), eyes)
    pen.polygon(((64, 60), (30, 110), (98, 110)), nose)
    return picture


def boat(hull: str, sail: str) -> Image.Image:
    """Two parts of different colours."""
    picture = Image.new("RGBA", (128, 128))
    pen = ImageDraw.Draw(picture)
    pen.polygon(((2, 80), (125, 80), (100, 125), (28, 125)), hull)
    pen.polygon(((64, 2), (64, 76), (10, 76)), sail)
    return picture


def gift(box: str, ribbon: str) -> Image.Image:
    """A square with a cross."""
    picture = Image.new("RGBA", (128, 128), box)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((50, 0, 78, 127), ribbon)
    pen.rectangle((0, 50, 127, 78), ribbon)
    return picture


PICTURES = {
    "fox": face("#f0781e", "white", "black"),
    "boat": boat("#784b2d", "white"),
    "gift": gift("#fad71e", "#dc1e23"),
}


def tiny_world(size: int = 32, **changes: object) -> World:
    """Three emoji and the shapes, without patterns, on plain grounds and on a meadow."""
    recipe = {"patterns": ("plain",), "grounds": ("plain", "meadow"), "font": "/no/font", **changes}
    return World(WorldRecipe(**recipe), size, pictures=PICTURES)


def shape_captions(count: int) -> list[str]:
    """Captions of shapes, always the same ones."""
    return World(WorldRecipe(emoji=0)).captions(range(count), 0)
