"""Where a model lies and what its files say, read without torch, so that a command line can check first.

In: a model folder, or None for the bundled one. Out: its path, config, hash and number of parameters.
"""

import hashlib
import json
import math
from pathlib import Path

from ..config import Config, check

WEIGHTS = "model.safetensors"
BUNDLED = Path(__file__).parent.parent / "models" / "mini"
MAX_HEADER = 100_000_000  # bytes, the safetensors format's own limit


def find(model: str | Path | None) -> Path:
    """The folder of a model: None or "mini" is the bundled one.

    Raises:
        ValueError: there is no such folder, or it is not a minisd model.
    """
    bundled = model is None or str(model) == "mini"
    folder = BUNDLED if bundled else Path(model)
    way = "the bundled model is not installed" if bundled else "give a model folder, or leave it out for mini"
    check(folder.exists(), f"there is no model at {str(folder)!r}: {way}")
    missing = [name for name in ("config.json", WEIGHTS) if not (folder / name).is_file()]
    check(not missing, f"{folder} is not a minisd model folder: it lacks {', '.join(missing)}")
    return folder


def read_config(model: str | Path | None = None) -> Config:
    """The config alone, without loading a tensor."""
    return Config.load(find(model) / "config.json")


def header(path: Path) -> dict[str, dict]:
    """What a safetensors file holds: name -> dtype, shape, data_offsets. https://github.com/huggingface/safetensors

    Raises:
        ValueError: it is another kind of file, or cut short.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        kind = next((kind for mark, kind in OTHER_KINDS.items() if start.startswith(mark)), "")
        check(size > 0, f"{path} is empty")
        check(not kind, f"{path} is not a safetensors file but {kind}")
        length = int.from_bytes(start, "little")
        check(length <= min(size - 8, MAX_HEADER), f"{path} is not a safetensors file, or it is cut short")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file: its header cannot be read") from error
    check(end == size - 8 - length, f"{path} is cut short: {size} bytes of {end + 8 + length}")
    return entries


def count_parameters(folder: Path) -> int:
    """How many numbers the weights of a model folder hold."""
    return sum(math.prod(entry["shape"]) for entry in header(folder / WEIGHTS).values())


def sha256(path: Path) -> str:
    """The hash of a whole file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_hash(folder: Path) -> str:
    """The weights' hash as index.json has it; computed where there is none."""
    index = folder / "index.json"
    if index.is_file():
        return json.loads(index.read_text(encoding="utf-8"))["sha256"][WEIGHTS]
    return sha256(folder / WEIGHTS)


OTHER_KINDS = {
    b"version ": "a git-lfs pointer: fetch the file itself with git lfs pull",
    b"<!DOCTYP": "a web page: download the file itself",
    b"<!doctyp": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
    b"PK\x03\x04": "a zip archive, perhaps a .ckpt",
}
