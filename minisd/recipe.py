"""A picture's recipe, read back from its file.

In: a PNG, JPEG or WebP by minisd, AUTOMATIC1111 or stable-diffusion.cpp. Out: a `Reading`, to draw it again:

    again = recipe.read("picture.png", model.config)
    minisd.generate(model, again.prompt, negative_prompt=again.negative_prompt, **again.options)

Nothing in a file is trusted: what is taken out is plain data of limited size, and `settings.resolve` checks all of it.
"""

import html
import json
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from .config import Config, check
from .dialects import Reading, of_text
from .infotext import EXIF_IFD, IMAGE_DESCRIPTION, USER_COMMENT
from .settings import MAX_FILE, Options


class Held(NamedTuple):
    """The texts in a file that may be a recipe; "" where there is none."""

    own: str  # minisd's JSON
    text: str  # `parameters`
    tool: str  # a tool with a format of its own
    sheet: str  # what the pictures on a sheet are, JSON


def read(path: str | Path, config: Config | None = None) -> Reading:
    """Read the recipe of a picture: minisd's own JSON, else AUTOMATIC1111's or stable-diffusion.cpp's text.

    Args:
        config: of the model that is to draw it, on which AUTOMATIC1111's clip skip depends.

    Raises:
        ValueError: no picture, no recipe in it, a damaged one, or one in another tool's format.
        OSError: the file cannot be read.
    """
    held = find(path)
    try:
        if held.own:
            return of_recipe(own_recipe(held.own))
        if held.text:
            return of_text(held.text, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check(not held.sheet, f"{path} is a sheet of several pictures, not one of them")
    check(not held.tool, f"{path} holds a workflow of {held.tool}, which minisd does not read")
    raise ValueError(f"{path} holds no recipe")


def find(path: str | Path) -> Held:
    """Look for the texts in a picture's file; no pixel is decoded.

    Raises:
        ValueError: it is no picture.
    """
    check(Path(path).is_file(), f"there is no picture {str(path)!r}")
    with open(path, "rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a large picture, or an odd tag
        try:
            image = Image.open(file, formats=FORMATS)
            info, exif = image.info, image.getexif()
            description, comment = exif.get(IMAGE_DESCRIPTION), exif.get_ifd(EXIF_IFD).get(USER_COMMENT)
        except UnidentifiedImageError as error:
            raise ValueError(f"{path} is not a picture in one of {', '.join(FORMATS)}") from error
        except DAMAGED as error:
            raise ValueError(f"{path} is a damaged picture: {error}") from error
    told = decoded(description)
    own = decoded(info.get("minisd")) or (told if '"minisd":' in told else "")
    texts = (decoded(info.get("parameters")), decoded(comment), *of_sdcpp(info))
    tool = next((tool for key, tool in OTHER_TOOLS.items() if key in info), "")
    text = next(filter(None, texts), "")
    return Held(own, as_utf8(text) if "stable-diffusion.cpp" in text else text, tool, decoded(info.get("minisd_grid")))


def decoded(tag: Any) -> str:
    """A text of a file. An EXIF comment says its encoding in 8 bytes, but not in which order UTF-16's two come."""
    if not isinstance(tag, bytes):
        return tag if isinstance(tag, str) else ""
    code, body = tag[:8], tag[8:]
    if code == b"UNICODE\0":
        orders = (body.decode(f"utf-16-{order}", "replace") for order in ("be", "le"))
        return max(orders, key=lambda text: sum(map(str.isascii, text)))
    return (body if code in (b"ASCII\0\0\0", bytes(8)) else tag).decode("utf-8", "replace")


def of_sdcpp(info: dict[str, Any]) -> tuple[str, str]:
    """Where stable-diffusion.cpp puts its text in a WebP (XMP) and in a JPEG (a comment)."""
    packet, comment = decoded(info.get("xmp")), decoded(info.get("comment"))
    text = packet.partition("<sdcpp:parameters>")[2].partition("</sdcpp:parameters>")[0]
    return html.unescape(text), comment.removeprefix("parameters\0").strip("\0") if "Steps: " in comment else ""


def as_utf8(text: str) -> str:
    """stable-diffusion.cpp puts UTF-8 into a PNG's chunk that is Latin-1 by the standard."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def own_recipe(text: str) -> dict[str, Any]:
    """minisd's JSON as plain data.

    Raises:
        ValueError: it is too long or too deep, not JSON, or no recipe.
    """
    recipe = plain(text)
    check(isinstance(recipe.get("prompt"), str), "its recipe is damaged: it is not what minisd writes")
    check(isinstance(recipe.get("negative_prompt"), str | None), "its recipe is damaged: negative_prompt is no text")
    return recipe


def plain(text: str) -> dict[str, Any]:
    """A JSON object of limited size and depth.

    Raises:
        ValueError: it is none.
    """
    check(len(text) <= MAX_JSON, f"a recipe of {len(text)} characters is refused: at most {MAX_JSON} are read")
    try:
        recipe = json.loads(text, parse_constant=refused)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its recipe is damaged: {error}") from error
    whole = isinstance(recipe, dict) and shallow(recipe, MAX_DEPTH)
    check(whole, "its recipe is damaged: it is not what minisd writes")
    return recipe


def refused(constant: str) -> None:
    """NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(f"{constant} is no number")


def shallow(value: Any, levels: int) -> bool:
    """Whether lists and objects lie at most so many deep in one another."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inside is None or (levels > 0 and all(shallow(one, levels - 1) for one in inside))


def of_recipe(recipe: dict[str, Any]) -> Reading:
    """minisd's own recipe; whatever option `generate` has is taken from it."""
    told = {key: value for key, value in recipe.items() if value is not None and key not in PROMPTS}
    options = {key: value for key, value in told.items() if key in Options.__annotations__ and key not in PER_CALL}
    made = {key: value for key, value in told.items() if isinstance(value, MADE.get(key, ()))}
    ignored = tuple(key for key in told if key not in options and key not in made)
    return Reading("minisd", recipe["prompt"], recipe.get("negative_prompt"), options, made, ignored)


PROMPTS = ("prompt", "negative_prompt")
PER_CALL = ("num_images", "batch_size")  # a file holds one picture
MADE = {  # what else a recipe holds, beside options
    **dict.fromkeys(("model", "model_sha256", "prediction", "variant", "ema", "revision"), str),
    **dict.fromkeys(("vae", "loras", "embeddings", "device", "dtype", "minisd", "torch"), str),
    **{"image": dict, "mask": dict, "outpaint": list},
}
OTHER_TOOLS = {
    **dict.fromkeys(("workflow", "prompt"), "ComfyUI"),
    **dict.fromkeys(("invokeai_metadata", "invokeai_graph", "sd-metadata", "Dream"), "InvokeAI"),
}
MAX_JSON = 2 * MAX_FILE + 2**20  # characters: the longest prompt, each of them escaped, and the rest
MAX_DEPTH = 4
FORMATS = ("PNG", "JPEG", "WEBP")
DAMAGED = (  # what Pillow raises of broken files
    *(Image.DecompressionBombError, OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, EOFError, struct.error),
)
