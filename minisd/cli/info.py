"""`minisd info PATH` prints the recipe inside a picture, or what the file or folder of a model holds."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..weights.find import SUFFIXES, count_parameters, locate, read_config, recorded_hash
from .common import Parser, add_common, refusing


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    parser = Parser("info", "Print the recipe of a picture, or what the file or folder of a model holds, as JSON.")
    kinds = 'a picture, a model\'s file (also a LoRA), a model folder, or "mini" for the bundled model'
    parser.add_argument("path", metavar="PATH", help=kinds)
    add_common(parser)
    path = Path(parser.parse(argv).path)
    with refusing():
        text = about_model(path) if not path.is_file() or holds_tensors(path) else about_picture(path)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def holds_tensors(path: Path) -> bool:
    """Whether a file is one of weights, or is called like one: by its first bytes, as the reader tells them."""
    with open(path, "rb") as file:
        start = file.read(9)
    return start[8:] == b"{" or start.startswith(b"PK\3\4") or path.suffix.lower() in SUFFIXES


def about_picture(path: Path) -> str:
    """The recipe as indented JSON: minisd's own as it is, of another tool what minisd would do of it.

    Raises:
        ValueError: no picture, or one without a recipe.
    """
    from ..recipe import find, own_recipe, plain, read

    held = find(path)
    try:
        own = own_recipe(held.own) if held.own else plain(held.sheet) if held.sheet else None
        said = own or read(path).to_dict()
    except ValueError:
        if not (held.own or held.text or held.sheet):
            raise
        return held.text or held.own or held.sheet
    return json.dumps(said, indent=2, ensure_ascii=False)


def about_model(model: Path) -> str:
    """What a model is and holds, as indented JSON, from its headers and small files; nothing is downloaded.

    Raises:
        ValueError: it is none, or damaged.
    """
    kind, path = locate(str(model), offline=True)
    if kind == "minisd":
        config = read_config(path)
        said = {"model": config.name, "folder": str(path), "model_sha256": recorded_hash(path)}
        said |= {"parameters": count_parameters(path), "config": config.to_dict()}
    else:
        from ..weights.about import about_file, about_folder

        said = about_file(path) if kind == "file" else about_folder(path)
    return json.dumps(said, indent=2, ensure_ascii=False)
