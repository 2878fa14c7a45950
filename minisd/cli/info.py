"""`minisd info PICTURE` prints the recipe inside a picture; `minisd info FOLDER` what a model folder holds."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..config import check
from ..weights.find import count_parameters, find, read_config, recorded_hash
from .common import Parser, add_common, refusing

IMAGE_DESCRIPTION = 0x010E


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    parser = Parser("info", "Print the recipe of a picture, or what a model folder holds, as JSON.")
    parser.add_argument("path", metavar="PATH", help='a picture, a model folder, or "mini" for the bundled model')
    add_common(parser)
    path = Path(parser.parse(argv).path)
    with refusing():
        text = about_picture(path) if path.is_file() else about_model(path)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def about_picture(path: Path) -> str:
    """The recipe as indented JSON; of a picture by another tool its `parameters` text.

    Raises:
        ValueError: no picture, or one without a recipe.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            recipe = image.info.get("minisd") or image.getexif().get(IMAGE_DESCRIPTION)
            text = image.info.get("parameters")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError(f"{path} is not a picture: {error}") from error
    check(bool(recipe or text), f"{path} holds no recipe")
    try:
        return json.dumps(json.loads(recipe), indent=2, ensure_ascii=False) if recipe else text
    except (ValueError, RecursionError):
        return text or recipe


def about_model(path: Path) -> str:
    """Name, hash, number of parameters and config of a model folder, as indented JSON."""
    folder, config = find(str(path)), read_config(str(path))
    said = {"model": config.name, "folder": str(folder), "model_sha256": recorded_hash(folder)}
    return json.dumps(said | {"parameters": count_parameters(folder), "config": config.to_dict()}, indent=2)
