"""Pictures: tensors to PIL and back, grids, files that hold their own recipe.

In: pixels (b, 3, H, W) in [-1, 1]. Out: RGB PIL images; PNG, JPEG or WebP files. recipe.py reads the recipe back.
"""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .files import atomic
from .infotext import EXIF_IFD, IMAGE_DESCRIPTION, USER_COMMENT, recipe_text

log = logging.getLogger("minisd")


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pixels (b, 3, H, W), about [-1, 1], to RGB pictures; clamped and rounded, not cut."""
    levels = ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(a) for a in rearrange(levels, "b c h w -> b h w c").cpu().numpy()]


def to_tensor(image: Image.Image) -> Tensor:
    """A picture as pixels (1, 3, H, W) in [-1, 1], float32."""
    array = torch.from_numpy(np.array(image.convert("RGB")))
    return rearrange(array, "h w c -> 1 c h w").float() / 127.5 - 1


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Pictures of one size side by side, row by row, on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet.paste(image, (gap + column * (width + gap), gap + row * (height + gap)))
    return sheet


def save(image: Image.Image, path: Path, overwrite: bool = False) -> None:
    """Write a picture of `generate` with its recipe, or a sheet of them; the file is whole or not there.

    Args:
        path: its suffix chooses the format, see FORMATS.

    Raises:
        ValueError: another suffix.
        FileExistsError: the name is taken and `overwrite` is False.
        OSError: it cannot be written.
    """
    kind, options = FORMATS.get(path.suffix.lower(), (None, {}))
    if kind is None:
        raise ValueError(f"unknown picture format {path.suffix!r}: choose from {', '.join(FORMATS)}")
    if "minisd" in image.info:
        recipe = image.info["minisd"].encode("utf-8", "replace").decode("utf-8")  # Pillow fails on lone surrogates
        options = options | (png_text(recipe) if kind == "PNG" else exif(recipe))
    elif "minisd_grid" in image.info and kind == "PNG":
        info = PngInfo()
        info.add_text("minisd_grid", image.info["minisd_grid"])
        options = options | {"pnginfo": info}
    with atomic(path, overwrite) as temporary:
        image.save(temporary, kind, **options)


def png_text(recipe: str) -> dict[str, Any]:
    """The two text chunks of a PNG."""
    info = PngInfo()
    info.add_text("parameters", recipe_text(json.loads(recipe)))
    info.add_text("minisd", recipe)
    return {"pnginfo": info}


def exif(recipe: str) -> dict[str, Any]:
    """The same for JPEG and WebP: the text as EXIF UserComment, the JSON as ImageDescription."""
    data = Image.Exif()
    text = recipe_text(json.loads(recipe))
    data.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    data[IMAGE_DESCRIPTION] = json.dumps(json.loads(recipe))
    if len(data.tobytes()) > MAX_EXIF:
        log.warning("the recipe is too long for EXIF and is left out: a PNG takes it")
        return {}
    return {"exif": data}


MAX_EXIF = 65_000  # bytes; a JPEG segment holds no more
FORMATS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}
