"""Pictures to start from: whatever a file or an image holds, upright, 8 bits deep and of the size that is drawn.

In: a file's path, or a PIL image of any mode. Out: RGB images to draw from, "L" images as masks: white is drawn anew.
No torch in this file: the command line reads pictures before it loads anything. Colour profiles are not applied.
"""

import hashlib
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .config import Config, check

log = logging.getLogger("minisd")

MAX_PIXELS = 64_000_000  # of a file; its size is read before its pixels are
SLACK = 16  # a picture that is larger by less is cut, not scaled: what rounding down to whole latents takes away
# What Pillow is let near. It knows forty formats more, and starts another program for some of them.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, struct.error, zlib.error)


def read_picture(path: str | Path) -> Image.Image:
    """A file as an RGB image: turned as its EXIF says, the first frame of many, what is transparent on white.

    Raises:
        ValueError: not there, no picture, damaged, or of more than `MAX_PIXELS`.
        OSError: it cannot be read.
    """
    return read(Path(path), as_rgb)


def read_mask(path: str | Path) -> Image.Image:
    """A file as a mask, "L": white is drawn anew, black stays, and so does what is transparent.

    Raises:
        ValueError, OSError: as `read_picture`.
    """
    return read(Path(path), as_mask)


def read(path: Path, form: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """A file in one of two forms; `describe` knows it by its name."""
    check(path.exists(), f"there is no file {str(path)!r}")
    check(path.is_file(), f"{path} is a folder or a device, not a file")
    with open(path, "rb") as file:
        start = file.read(1000)
        check(len(start) > 0, f"{path} is empty")
        check(b"<svg" not in start, f"{path} is an SVG drawing, which has no pixels: save it as a PNG")
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of bombs, which are refused here, and of odd metadata
                picture = Image.open(file, formats=FORMATS)
                size, most = f"{picture.width} x {picture.height} pixels", f"{MAX_PIXELS / 1e6:g} million"
                check(picture.width * picture.height <= MAX_PIXELS, f"{size} are more than {most}")
                if getattr(picture, "is_animated", False) and picture.format != "MPO":  # a phone's JPEG with a preview
                    log.info("%s has several frames: the first is taken", path)
                picture = form(picture)
        except Image.UnidentifiedImageError as error:
            raise ValueError(f"{path} is not a picture in one of {', '.join(FORMATS)}") from error
        except (*DAMAGE, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    picture.info["about"] = {"name": path.name}
    return picture


def as_rgb(picture: Image.Image) -> Image.Image:
    """Any image as RGB, upright, what is transparent on white. It keeps what `describe` knows."""
    return upright(picture, "white")


def as_mask(picture: Image.Image) -> Image.Image:
    """Any image as a mask, "L": its lightness. What is transparent is black."""
    flat = upright(picture, "black")
    mask = flat.convert("L")
    mask.info = flat.info
    return mask


def upright(picture: Image.Image, ground: str) -> Image.Image:
    """Turned as EXIF says, 8 bits deep, RGB, on a ground.

    Raises:
        ValueError: pixels of 32 bits, whose range nobody knows.
    """
    about = known(picture)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16 bits, which Pillow itself would cut off at 255
        levels = np.asarray(picture).astype(np.int64)
        check(levels.min() >= 0 and levels.max() <= 65535, "it has pixels of 32 bits: save it with 8 or 16")
        picture = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    check(picture.mode != "F", "its pixels are fractions of no known range: save it with 8 or 16 bits")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, ground), over)
    picture = picture.convert("RGB")
    picture.info = {"about": about} if about else {}
    return picture


def fit(picture: Image.Image, width: int, height: int) -> Image.Image:
    """A picture or mask scaled until it covers width x height, and cut centrally to it. Its own size: as it is."""
    beyond = picture.width - width, picture.height - height
    if all(0 <= pixels < SLACK for pixels in beyond):
        left, top = (pixels // 2 for pixels in beyond)
        return picture.crop((left, top, left + width, top + height))
    soft = Image.Resampling.BILINEAR if picture.mode == "L" else Image.Resampling.LANCZOS  # a mask may not ring
    return ImageOps.fit(picture, (width, height), soft)


def own_size(config: Config, width: int, height: int) -> tuple[int, int]:
    """The width and height that a picture is drawn at where nobody names another.

    From a quarter to four times the model's own area it keeps its size, cut to whole latents. Any other, such as a
    photo before a small model, is scaled to the model's own area and keeps its shape.
    """
    own, factor = config.defaults.width * config.defaults.height, config.vae.factor
    scale = 1.0 if own / 4 <= width * height <= 4 * own else math.sqrt(own / (width * height))
    wide, high = (max(factor, int(side * scale) // factor * factor) for side in (width, height))
    return wide, high


def outpaint(picture: Image.Image, left: int, top: int, right: int, bottom: int) -> tuple[Image.Image, Image.Image]:
    """A picture made larger by so many pixels, and the mask of what is new: to be drawn at strength 1.

    The picture's edge is carried on into the new parts, so that no false edge is there for the VAE to see. Sides must
    come to multiples of the VAE's factor.

    Raises:
        ValueError: a negative number, or nothing to add.
    """
    margins = (left, top, right, bottom)
    check(min(margins) >= 0 and max(margins) > 0, f"outpaint {margins}: pixels to add, 0 or more, not all of them 0")
    picture = as_rgb(picture)
    padded = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), mode="edge")
    mask = Image.new("L", (padded.shape[1], padded.shape[0]), 255)
    mask.paste(0, (left, top, left + picture.width, top + picture.height))
    large = Image.fromarray(padded)
    large.info["about"] = {**describe(picture), "outpaint": list(margins)}
    mask.info["about"] = {"outpaint": list(margins)}
    return large, mask


def describe(picture: Image.Image) -> dict[str, Any]:
    """What a recipe says of a picture that was given: its file's name, and a hash of its pixels as read."""
    size = f"{picture.mode} {picture.width}x{picture.height} "
    return {"sha256": hashlib.sha256(size.encode() + picture.tobytes()).hexdigest(), **known(picture)}


def known(picture: Image.Image) -> dict[str, Any]:
    """What was said of a picture before; a text of that name inside a file is not meant."""
    about = picture.info.get("about")
    name = Path(getattr(picture, "filename", None) or "").name
    return about if isinstance(about, dict) else {"name": name} if name else {}
