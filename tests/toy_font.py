"""A colour font of a few square pictures in Noto Color Emoji's own format (CBDT and CBLC bitmaps of 109 pixels), made
by hand: tests must not need the real one. https://learn.microsoft.com/en-us/typography/opentype/spec/cbdt"""

import io
import struct
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from minisd.world.sprites import STRIKE

SIDE = 100  # pixels of a picture


def write_font(path: Path, glyphs: dict[str, Image.Image]) -> Path:
    """A font with one glyph a letter; the pictures are RGBA, SIDE pixels square."""
    letters = sorted(glyphs)
    pngs = [png(glyphs[letter]) for letter in letters]
    count = 1 + len(letters)  # glyph 0 is the one of unknown letters
    tables = {
        "CBDT": struct.pack(">HH", 3, 0) + b"".join(pngs),
        "CBLC": bitmap_locations([len(p) for p in pngs]),
        "cmap": letter_map(letters),
        "head": struct.pack(
            ">HHIIIHHqqhhhhHHhhh", 1, 0, 0, 0, 0x5F0F3CF5, 0, 2048, 0, 0, 0, 0, 2048, 2048, 0, 8, 2, 0, 0
        ),
        "hhea": struct.pack(">HHhhhHhhhhhhhhhhhH", 1, 0, 1900, -500, 0, 2400, *[0] * 11, count),
        "hmtx": struct.pack(">Hh", 2400, 0) * count,
        "maxp": struct.pack(">IH", 0x00005000, count),
        "name": struct.pack(">HHH", 0, 0, 6),
        "post": struct.pack(">IIhhIIIII", 0x00030000, *[0] * 8),
    }
    start = 12 + 16 * len(tables)
    directory, body = struct.pack(">IHHHH", 0x00010000, len(tables), 128, 3, 16 * len(tables) - 128), b""
    for name, data in sorted(tables.items()):
        directory += struct.pack(">4sIII", name.encode(), 0, start + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    path.write_bytes(directory + body)
    return path


def png(picture: Image.Image) -> bytes:
    """A bitmap of format 17: small metrics, length, PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return struct.pack(">BBbbBI", SIDE, SIDE, 4, SIDE, STRIKE, len(file.getvalue())) + file.getvalue()


def bitmap_locations(lengths: Sequence[int]) -> bytes:
    """CBLC: one strike of 32-bit bitmaps, whose offsets into CBDT are listed (index format 1, image format 17)."""
    offsets = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    index = struct.pack(">HHI", 1, 17, 4) + struct.pack(f">{len(offsets)}I", *offsets)
    line = struct.pack(">12b", STRIKE, 0, STRIKE, *[0] * 9)
    strike = struct.pack(">IIII", 56, 8 + len(index), 1, 0) + line + line
    strike += struct.pack(">HHBBBb", 1, len(lengths), STRIKE, STRIKE, 32, 1)
    return struct.pack(">HHI", 3, 0, 1) + strike + struct.pack(">HHI", 1, len(lengths), 8) + index


def letter_map(letters: Sequence[str]) -> bytes:
    """cmap, format 12: any code point to its glyph."""
    groups = b"".join(struct.pack(">III", ord(letter), ord(letter), 1 + i) for i, letter in enumerate(letters))
    body = struct.pack(">HHIII", 12, 0, 16 + len(groups), 0, len(letters)) + groups
    return struct.pack(">HHHHI", 0, 1, 3, 10, 12) + body


def picture(*parts: tuple[str, tuple[float, ...], tuple[int, int, int]]) -> Image.Image:
    """A picture of ellipses, rectangles and polygons: (kind, corners in 0..1, colour)."""
    large = Image.new("RGBA", (4 * SIDE, 4 * SIDE))
    pen = ImageDraw.Draw(large)
    for kind, corners, colour in parts:
        getattr(pen, kind)([4 * SIDE * u for u in corners], fill=colour)
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


RED, GREEN, GOLD, SNOW, NIGHT, SKIN = (
    (225, 35, 40),
    (40, 165, 70),
    (250, 205, 60),
    (245, 245, 245),
    (35, 35, 45),
    (120, 170, 200),
)
# Under the names of the first emoji: each is one piece, and what becomes of it can be told beforehand.
TOYS = {
    "fox": picture(
        ("polygon", (0, 0, 1, 0.2, 0.9, 1, 0.3, 0.9), (245, 130, 25)), ("ellipse", (0.3, 0.4, 0.7, 0.8), SNOW)
    ),
    "cat": picture(("rectangle", (0, 0.3, 1, 0.9), SKIN), ("rectangle", (0.4, 0, 0.6, 0.4), NIGHT)),
    "dog": picture(("rectangle", (0.3, 0, 0.7, 1), (150, 100, 60)), ("ellipse", (0.05, 0.05, 0.6, 0.5), GOLD)),
    "frog": picture(("ellipse", (0, 0.1, 1, 0.95), GREEN), ("ellipse", (0.2, 0.3, 0.4, 0.5), NIGHT)),
    "panda": picture(("polygon", (0.5, 0, 1, 1, 0, 1), SNOW), ("rectangle", (0.4, 0.5, 0.6, 1), NIGHT)),
    "penguin": picture(("polygon", (0.5, 0, 1, 1, 0, 1), SNOW), ("rectangle", (0.4, 0.52, 0.6, 1), NIGHT)),  # a panda
    "butterfly": picture(("ellipse", (0, 0.1, 1, 0.95), RED), ("ellipse", (0.2, 0.3, 0.4, 0.5), NIGHT)),  # a red frog
}
