"""Pictures: tensors to PIL and back, grids, files that hold their own recipe.

In: pixels (b, 3, H, W) in [-1, 1]. Out: RGB PIL images; PNG, JPEG or WebP files.
The `parameters` text is AUTOMATIC1111's, which many tools read:
https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/processing.py (create_infotext)
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

from .config import VERSION
from .files import atomic

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
    """Write a picture of `generate` with its recipe; the file is whole or not there.

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


def recipe_text(recipe: dict[str, Any]) -> str:
    """A recipe as AUTOMATIC1111 writes it: the prompts, then one line of `key: value` pairs.

    What is at its default (clip skip 1, no eta) is left out. Noise is always drawn on the CPU.
    """
    negative = recipe.get("negative_prompt")
    values = {
        "Steps": recipe["steps"],
        "Sampler": SAMPLER_LABELS.get(recipe["sampler"], recipe["sampler"]),
        "Schedule type": SCHEDULE_LABELS.get(recipe["schedule"], recipe["schedule"]),
        "CFG scale": f"{recipe['cfg_scale']:g}",
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Model hash": (recipe.get("model_sha256") or "")[:10],
        "Model": recipe.get("model"),
        "Clip skip": recipe["clip_skip"] if recipe["clip_skip"] != 1 else None,
        "RNG": "CPU",
        "Eta": recipe.get("eta"),
        "Version": f"minisd {recipe.get('minisd', VERSION)}",
    }
    pairs = [f"{key}: {quoted(value)}" for key, value in values.items() if value not in (None, "")]
    lines = [recipe["prompt"], f"Negative prompt: {negative}" if negative else "", ", ".join(pairs)]
    return "\n".join(line for i, line in enumerate(lines) if line or i == 0)


def quoted(value: Any) -> str:
    """A value that holds a separator is written as a JSON string."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
MAX_EXIF = 65_000  # bytes; a JPEG segment holds no more
SAMPLER_LABELS = {
    **{"ddim": "DDIM", "ddpm": "DDPM", "euler": "Euler", "euler_a": "Euler a", "heun": "Heun", "restart": "Restart"},
    **{"dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpmpp_2s_a": "DPM++ 2S a", "dpmpp_sde": "DPM++ SDE", "plms": "PLMS"},
    **{"lms": "LMS", "deis": "DEIS", "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE"},
    **{"dpmpp_3m_sde": "DPM++ 3M SDE", "unipc": "UniPC", "lcm": "LCM", "tcd": "TCD"},
}
SCHEDULE_LABELS = {
    **{"linspace": "Uniform", "leading": "DDIM", "trailing": "SGM Uniform", "lcm": "LCM", "karras": "Karras"},
}
FORMATS = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
}
