"""Where a model lies and what its files say, read without torch, so that a command line can check first.

In: what a user calls a model: a bundled name, a folder, a file, a hub id. Out (`locate`): its kind and its path. Of
minisd's own folders: config, hash and number of parameters.
"""

import hashlib
import json
import math
import re
from pathlib import Path

from ..config import PREDICTION_NAMES, Config, check, one_of

WEIGHTS = "model.safetensors"
TOKENIZERS = ("tokenizer", "tokenizer_2")  # folders inside, of minisd's own and of diffusers'
BUNDLED = Path(__file__).parent.parent / "models" / "mini"
MAX_HEADER = 1 << 23  # bytes; SDXL's has 300 kB, and as Python's objects a header is a hundred times as large
MAX_INDEX = 1_000_000
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")  # of files with weights
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")  # owner/name


def locate(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    offline: bool = False,
    weights: bool = True,
) -> tuple[str, Path]:
    """What kind of thing a model is, "minisd" or "diffusers" for a folder or "file", and where it lies.

    Args:
        model: a bundled name, a folder, a file, or owner/name of the hub where nothing lies under that path.
        revision, variant, offline: of a hub id, see `minisd.weights.hub.fetch`.
        weights: False: of a diffusers model on the hub, the JSON files alone.

    Raises:
        ValueError: there is no such model, or it cannot be fetched.
    """
    check(model != "", "the model's name is empty: give a folder, a file or the hub's owner/name, or leave it out")
    path = BUNDLED if model is None or str(model) == "mini" else Path(model)
    if model is not None and is_hub_id(model):
        from .hub import fetch

        path = fetch(str(model), revision, variant, offline, weights)
    else:
        check(revision is None, f"a revision is for a model on the hub (owner/name), not for {str(path)!r}")
    if path.is_file():
        return "file", path
    return ("diffusers", path) if is_diffusers(path) else ("minisd", find(path))


def check_options(
    kind: str, path: Path, tokenizer: str | Path | None, prediction: str | None, variant: str | None, ema: bool
) -> None:
    """Refuse what means nothing to a model of this kind.

    Raises:
        ValueError: naming it.
    """
    if prediction is not None:
        one_of("prediction", prediction, PREDICTION_NAMES)
    told = {"minisd": "a minisd folder says it itself", "diffusers": "a diffusers folder has its own"}.get(kind, "")
    check(tokenizer is None or kind == "file", f"tokenizer is for a single file, not for {path}: {told}")
    check(prediction is None or kind != "minisd", f"prediction is for foreign models, not for {path}: {told}")
    check(not ema or kind == "file", f"ema is for a single file, not for {path}")
    check(variant is None or kind == "diffusers", f"variant is for a diffusers folder, not for {path}")


def is_hub_id(model: str | Path) -> bool:
    """Whether a model is meant by owner/name: it looks like that, and no file or folder is called so."""
    named = HUB_ID.fullmatch(str(model)) is not None and not str(model).lower().endswith(SUFFIXES)
    return named and not Path(model).exists()


def is_diffusers(folder: Path) -> bool:
    """Whether a folder is a diffusers pipeline."""
    return (folder / "model_index.json").is_file() or (folder / "unet" / "config.json").is_file()


def find(model: str | Path | None) -> Path:
    """The folder of a model: None or "mini" is the bundled one.

    Raises:
        ValueError: there is no such folder, or it is not a minisd model.
    """
    bundled = model is None or str(model) == "mini"
    folder = BUNDLED if bundled else Path(model)
    way = "give a folder, a file or the hub's owner/name, or leave it out for mini"
    way = "the bundled model is not installed" if bundled else way
    check(folder.exists(), f"there is no model at {str(folder)!r}: {way}")
    missing = [name for name in ("config.json", WEIGHTS) if not (folder / name).is_file()]
    why = f"it lacks {', '.join(missing)} (a diffusers folder has model_index.json)"
    check(not missing, f"{folder} is not a model folder: {why}")
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
    entries = header(folder / WEIGHTS)
    try:
        return sum(math.prod(entry["shape"]) for entry in entries.values())
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / WEIGHTS} is damaged: a tensor in its header has no shape") from error


def sha256(path: Path) -> str:
    """The hash of a whole file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def recorded_hash(folder: Path) -> str:
    """The weights' hash as index.json has it; computed where there is none."""
    index = folder / "index.json"
    if not index.is_file():
        return sha256(folder / WEIGHTS)
    check(index.stat().st_size <= MAX_INDEX, f"{index} has more than {MAX_INDEX} bytes")
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["sha256"][WEIGHTS])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{index} does not hold the hash of {WEIGHTS}") from error


OTHER_KINDS = {
    b"version ": "a git-lfs pointer: fetch the file itself with git lfs pull",
    b"<!DOCTYP": "a web page: download the file itself",
    b"<!doctyp": "a web page: download the file itself",
    b"<html": "a web page: download the file itself",
    b"PK\x03\x04": "a zip archive, perhaps a .ckpt",
}
