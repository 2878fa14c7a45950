"""Sprites: what every object of the world looks like, as premultiplied RGBA of one size.

In: pictures of emoji (RGBA, square), from a colour font. Out: an atlas of bytes (s, 4, side, side), a sprite for every
`Look`: shape x pattern x colour, emoji as they are, emoji in one hue.

Three things are measured on the smallest sprites, and never set by hand. A noun that looks like an earlier one is
dropped. An emoji that is mostly of one colour may be called by it ("a red balloon" is the balloon), and is drawn in no
hue that would look the same. Of two nouns of one form, told apart by their colours alone, the later has no hues.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from einops import rearrange
from PIL import Image, ImageDraw, ImageFont

from minisd.world.colour import duotone, lab, levels, mixed, named, tones
from minisd.world.emoji import EMOJI
from minisd.world.recipe import find_font
from minisd.world.shapes import SUPERSAMPLE, mask
from minisd.world.words import COLOURS, NEVER, PATTERNS, SHAPES, TINTS

STRIKE = 109  # the one size of Noto's bitmaps
NATIVE = 128  # side of an emoji's picture before it is made small
MEASURED = 17  # side of the sprites that are compared: a small object on 64 pixels
ALIKE = 23.5  # CIE76 difference (see `apart`) below which two nouns are one to the eye
NEAR = 30.0  # ... below which a hue is too near to the emoji as it is
FORM = 21.0  # ... of two nouns in the same hue, below which their form does not tell them apart
MOSTLY = 0.5  # share of an emoji's pixels that its own colour has
LINE = 0.1  # thickness of an outlined shape's line, of its side


class Look(NamedTuple):
    """What an object looks like, but for its size. An emoji in its own colours has colour None."""

    noun: str
    colour: str | None
    pattern: str = "plain"


@dataclass(frozen=True)
class Sprites:
    """All looks of a world; `pictures` are emoji by noun, square RGBA, in the order of preference."""

    pictures: Mapping[str, Image.Image]
    patterns: tuple[str, ...] = PATTERNS

    @cached_property
    def nouns(self) -> dict[str, tuple[str, ...]]:
        """The emoji that are told apart, each with the colours that it can be drawn in beside its own."""
        return {noun: colours for noun, (colours, _) in self._sorted.items()}

    @cached_property
    def own(self) -> dict[str, str]:
        """The colour word, if any, that names an emoji as it is."""
        return {noun: own for noun, (_, own) in self._sorted.items() if own}

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """One for each sprite of the atlas, in order."""
        shapes = [
            Look(shape, colour, pattern)
            for shape in SHAPES
            for pattern in self.patterns
            if pattern not in NEVER.get(shape, ())
            for colour in COLOURS
        ]
        emoji = [Look(noun, colour) for noun, colours in self.nouns.items() for colour in (None, *colours)]
        return (*shapes, *emoji)

    def atlas(self, side: int) -> np.ndarray:
        """Premultiplied RGBA bytes (s, 4, side, side): every look, filling its square."""
        shapes = [shape_sprite(look, side) for look in self.looks if look.noun in SHAPES]
        emoji = [sprite for noun, colours in self.nouns.items() for sprite in self._emoji(noun, colours, side)]
        return np.stack([*shapes, *emoji]).transpose(0, 3, 1, 2)

    def _emoji(self, noun: str, colours: tuple[str, ...], side: int) -> list[np.ndarray]:
        """An emoji as it is and in some hues, each premultiplied RGBA bytes (side, side, 4)."""
        picture = self.pictures[noun]
        plain = np.asarray(picture.convert("RGBa").resize((side, side), Image.Resampling.BOX))
        alpha = plain[..., 3:] / 255
        tone = tones(plain[..., :3] / np.maximum(alpha, 1e-3), levels(np.asarray(picture)))
        hues = [np.dstack([duotone(tone, COLOURS[name]) * alpha, 255 * alpha]) for name in colours]
        return [plain, *(hue.round().astype(np.uint8) for hue in hues)]

    @cached_property
    def _sorted(self) -> dict[str, tuple[tuple[str, ...], str | None]]:
        """Noun -> the hues it is drawn in, and the name of its own colour."""
        if not self.pictures:
            return {}
        sprites = np.stack([np.stack(self._emoji(noun, TINTS, MEASURED)) for noun in self.pictures])
        seen, cover = as_seen(sprites), rearrange(sprites[:, 0, ..., 3], "p h w -> p (h w)") / 255.0
        natural, same_hue = apart(seen[:, 0], cover), apart(seen[:, 1], cover)
        near = np.sqrt(np.square(seen[:, 1:] - seen[:, :1]).sum(-1) / 2 / cover.sum(1, keepdims=True))
        found, kept = {}, []
        for i, noun in enumerate(self.pictures):
            if (natural[i, kept] < ALIKE).any():
                continue
            own = own_colour(sprites[i, 0])
            hues = (name for name, distance in zip(TINTS, near[i], strict=True) if distance >= NEAR and name != own)
            found[noun] = (() if (same_hue[i, kept] < FORM).any() else tuple(hues), own)
            kept.append(i)
        return found


def as_seen(sprites: np.ndarray) -> np.ndarray:
    """Premultiplied RGBA (..., n, n, 4) in L*a*b* on white and then on black, as one vector (..., 6 * n * n)."""
    clear = 1 - sprites[..., 3:] / 255
    grounds = [lab(sprites[..., :3] + ground * clear) for ground in (255, 0)]
    return rearrange(np.stack(grounds, -1), "... h w lab g -> ... (h w lab g)").astype(np.float32)


def apart(seen: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """How different sprites look, (p, p): root mean square CIE76 difference over the pixels that either covers, of
    what is seen (p, 6 * n * n) and the cover (p, n * n) in 0..1."""
    square, area = np.square(seen).sum(1), cover.sum(1)
    distance = np.maximum(square[:, None] + square - 2 * seen @ seen.T, 0) / 2
    return np.sqrt(distance / (area[:, None] + area - cover @ cover.T))


def own_colour(sprite: np.ndarray) -> str | None:
    """The colour word that most of an emoji deserves; premultiplied RGBA (n, n, 4)."""
    cover = sprite[..., 3] / 255.0
    solid = cover > 0.3
    names = named(sprite[solid][:, :3] / cover[solid][:, None])
    shares = {name: cover[solid][names == name].sum() / cover[solid].sum() for name in TINTS}
    best = max(shares, key=shares.get)
    return best if shares[best] >= MOSTLY else None


def shape_sprite(look: Look, side: int) -> np.ndarray:
    """A shape in its colour and pattern, premultiplied RGBA bytes (side, side, 4)."""
    cover, _ = mask(look.noun, (0, 0, side, side))
    large, _ = mask(look.noun, (0, 0, side * SUPERSAMPLE, side * SUPERSAMPLE))
    main = COLOURS[look.colour]
    pale = mixed(main, (255, 255, 255), 0.9 if look.pattern == "outlined" else 0.62)
    light = PAINTED[look.pattern](np.asarray(large) / 255)
    share = light.reshape(side, SUPERSAMPLE, side, SUPERSAMPLE).mean((1, 3))[..., None]
    alpha = np.asarray(cover)[..., None] / 255
    return (np.dstack([(main + share * (np.array(pale) - main)) * alpha, alpha * 255])).round().astype(np.uint8)


def _grid(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    across = (np.arange(len(cover)) + 0.5) / len(cover)
    return across[None, :], across[:, None]


def _dots(cover: np.ndarray) -> np.ndarray:
    """Staggered rows, a dot in the very middle."""
    x, y = _grid(cover)
    apart, radius = 0.27, 0.08
    row = np.round((y - 0.5) / apart)
    dx = (x - 0.5) / apart - 0.5 * (row % 2)
    return np.hypot((dx - np.round(dx)) * apart, y - 0.5 - row * apart) < radius


def _inside(cover: np.ndarray) -> np.ndarray:
    """What is further than LINE from the outside."""
    reach = round(LINE * len(cover))
    padded = np.pad(cover, reach)
    turns = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    steps = {(round(reach * np.sin(t)), round(reach * np.cos(t))) for t in turns}
    n = len(cover)
    return np.min([padded[reach + dy : reach + dy + n, reach + dx : reach + dx + n] for dy, dx in steps], axis=0)


PAINTED = {  # where a pattern is pale: 0..1 on the supersampled square (n, n)
    "plain": lambda cover: np.zeros_like(cover),
    "striped": lambda cover: np.broadcast_to(_grid(cover)[1] * 5 % 2 >= 1, cover.shape),
    "dotted": _dots,
    "checkered": lambda cover: sum(np.floor(4 * u) for u in _grid(cover)) % 2 == 1,
    "outlined": _inside,
}


def emoji_pictures(count: int | None, font: str | None = None) -> dict[str, Image.Image]:
    """The first `count` emoji (None: all), cut out square, by noun.

    Raises:
        ValueError: the font is nowhere to be found, or it is none of colour bitmaps.
    """
    if count == 0:
        return {}
    glyphs = open_font(font)
    nouns = list(EMOJI)[:count]
    return {noun: square(glyphs, EMOJI[noun]) for noun in nouns}


def open_font(path: str | None) -> ImageFont.FreeTypeFont:
    """Noto Color Emoji, where it usually lies or at a path."""
    found = find_font(path)
    try:
        return ImageFont.truetype(found, STRIKE)
    except OSError as error:
        raise ValueError(f"{found} cannot be used: {error}; give NotoColorEmoji.ttf with bitmaps (CBDT)") from error


def square(font: ImageFont.FreeTypeFont, letter: str) -> Image.Image:
    """A glyph cut out and centred in a square, RGBA, NATIVE pixels."""
    sheet = Image.new("RGBA", (2 * NATIVE, 2 * NATIVE))
    ImageDraw.Draw(sheet).text((NATIVE // 2, NATIVE // 4), letter, font=font, embedded_color=True)
    box = sheet.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
    if box is None:
        raise ValueError(f"the font has no picture of {letter!r} (U+{ord(letter):04X}): give a newer Noto Color Emoji")
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    x, y = (left + right - side) // 2, (top + bottom - side) // 2
    return sheet.crop((x, y, x + side, y + side)).resize((NATIVE, NATIVE), Image.Resampling.BICUBIC)
