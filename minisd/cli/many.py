"""Many pictures in one call: prompts from a file, shared out among processes, gone on with after an interruption.

In: a file of prompts, the environment that torchrun sets, pictures that are there already. Out: which pictures of the
call this process draws. Picture i of a call is of prompt i // num_images and has seed + i, whoever draws it, so that
no process needs to hear of another. No torch up here.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import check
from ..settings import MAX_FILE
from .common import BadInput, flat, refusing

MAX_PICTURES = 100_000  # of one call; their numbers then have five digits
MACHINE = ("device", "minisd", "torch")  # what of a recipe may differ from run to run


@dataclass(frozen=True)
class Team:
    """The processes that draw one call together; this one is number `rank` of `world`."""

    rank: int = 0
    world: int = 1
    local: int | None = None  # its number on this machine

    def share(self, count: int) -> range:
        """Which of so many pictures this process draws: one stretch of them, as long as the others' or by one longer.

        No share hangs on what is drawn already: two processes that look at different times agree.
        """
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def device(self, asked: str) -> str:
        """Under torchrun "auto" is a CUDA device of one's own, as far as there are enough."""
        if asked != "auto" or self.local is None:
            return asked
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return f"cuda:{self.local % count}" if count else asked


def read_team() -> Team:
    """This process's place, by the environment variables of torchrun: RANK, WORLD_SIZE and LOCAL_RANK.

    Raises:
        BadInput: they do not fit.
    """
    said = {name: os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    if not said["RANK"] or not said["WORLD_SIZE"]:
        return Team()
    fits = all(value.isascii() and value.isdecimal() and len(value) < 8 for value in said.values() if value)
    if not fits or int(said["RANK"]) >= int(said["WORLD_SIZE"]):
        shown = ", ".join(f"{name}={value}" for name, value in said.items())
        raise BadInput(f"the environment has {flat(shown, 120)}: RANK must be a number from 0 to WORLD_SIZE - 1")
    return Team(int(said["RANK"]), int(said["WORLD_SIZE"]), int(said["LOCAL_RANK"]) if said["LOCAL_RANK"] else None)


def read_prompts(name: str) -> list[str]:
    """The prompts of a file, or of stdin where `name` is "-": UTF-8, one a line.

    Empty lines are left out, and lines that begin with #; a prompt's own # is written \\#.

    Raises:
        BadInput: no such file, no text, too large, or no prompt in it.
    """
    with refusing():
        text = as_text(name, read_bytes(name))
        lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
        prompts = [line[1:] if line.startswith("\\#") else line for line in lines if line and line[0] != "#"]
        check(len(prompts) > 0, f"--from-file {name} holds no prompt: one a line; a line that begins with # is none")
    return prompts


def read_bytes(name: str) -> bytes:
    """A file, or stdin, up to one byte too many.

    Raises:
        ValueError, OSError: it cannot be read.
    """
    if name == "-":
        check(sys.stdin is not None, "--from-file -: stdin is closed")
        return sys.stdin.buffer.read(MAX_FILE + 1)
    with open(name, "rb") as file:
        return file.read(MAX_FILE + 1)


def as_text(name: str, content: bytes) -> str:
    """Bytes as text.

    Raises:
        ValueError: too many, or no UTF-8.
    """
    check(len(content) <= MAX_FILE, f"--from-file {name} has more than {MAX_FILE} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is {content[error.start]:#x}"
        raise ValueError(f"--from-file {name} is not UTF-8 text: {byte}") from error
    check("\0" not in text, f"--from-file {name} is not text: it holds a zero byte")
    return text


def batches(pictures: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of pictures in lots of at most `size`, each without a gap: the seeds of a call follow each other."""
    lot: list[int] = []
    for i in pictures:
        if lot and (i != lot[-1] + 1 or len(lot) == size):
            yield lot
            lot = []
        lot.append(i)
    if lot:
        yield lot


def is_drawn(path: Path, recipe: dict[str, Any]) -> bool:
    """Whether a picture is there, whole and of this very recipe; device and versions may be others.

    Raises:
        ValueError: the file is there and is something else. It is never overwritten unasked.
    """
    if not path.exists():
        return False
    found = read_recipe(path)
    way_out = "choose another --outdir, or draw all anew with --overwrite"
    check(found is not None, f"{path} exists and is not a whole picture with a recipe: {way_out}")
    wanted = json.loads(json.dumps(recipe))
    names = [name for name in {**wanted, **found} if name not in MACHINE and found.get(name) != wanted.get(name)]
    check(not names, f"{path} exists, drawn with another {', '.join(names)}: {way_out}")
    return True


def read_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe in a PNG, if that is whole."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            recipe = json.loads(image.info["minisd"])
            image.verify()
    except (OSError, ValueError, KeyError, SyntaxError, RecursionError, Image.DecompressionBombError):
        return None
    return recipe if isinstance(recipe, dict) else None
