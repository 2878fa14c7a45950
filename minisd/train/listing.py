"""A folder of captioned pictures, listed and checked before anything is trained. No torch in this file.

In: a folder in the imagefolder convention: pictures, and metadata.jsonl with one object a line, `file_name` (a path
inside the folder) and `text` (a caption, or a list of phrasings of it); or metadata.csv with these columns.
Out: a `Listing`: every picture is there and begins like one (its size is read, its pixels are not yet).
https://huggingface.co/docs/datasets/image_dataset
"""

import csv
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import check, shown
from ..picture import read

log = logging.getLogger("minisd")

NAMES = ("metadata.jsonl", "metadata.csv")
TEST = 5  # in a hundred files are never trained on
TINY = 100  # fewer pictures than this are trained on and tested on alike


@dataclass(frozen=True)
class Entry:
    """One captioned picture: where it lies, its size as stored, what of its file would change if it were replaced."""

    name: str
    path: Path
    captions: tuple[str, ...]
    size: tuple[int, int]
    stamp: tuple[int, int]  # bytes, nanoseconds of its last change


@dataclass(frozen=True)
class Listing:
    """All of a folder, in the order of its metadata."""

    root: Path
    entries: tuple[Entry, ...]

    def split(self, name: str) -> list[Entry]:
        """The pictures to train on ("train") or never to train on ("test").

        A file is for testing if the hash of its name says so, about one in twenty; so adding pictures moves none of
        the others. A folder of fewer than 100 has none to spare: all are trained on, and tested on as well.
        """
        tests = [entry for entry in self.entries if for_test(entry.name)]
        if len(self.entries) < TINY or not tests:
            return list(self.entries)
        return tests if name == "test" else [entry for entry in self.entries if not for_test(entry.name)]

    def captions(self) -> Iterator[str]:
        """Every phrasing of what is trained on."""
        return (text for entry in self.split("train") for text in entry.captions)

    @property
    def key(self) -> str:
        """A hash of what is listed; another one if a picture or a caption is changed."""
        told = [[entry.name, entry.captions, entry.stamp] for entry in self.entries]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def smaller_than(self, size: int) -> int:
        """How many pictures have a side below `size` pixels and are enlarged."""
        return sum(min(entry.size) < size for entry in self.entries)


def for_test(name: str) -> bool:
    """Whether a file of this name is kept from training."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100 < TEST


def list_folder(folder: str | Path) -> Listing:
    """Read a folder's metadata and the first bytes of each picture.

    Raises:
        ValueError: the first thing that does not fit, with its file and line.
        OSError: the folder or its metadata cannot be read.
    """
    root = Path(folder)
    check(root.exists(), f"there is no folder {str(root)!r}")
    check(root.is_dir(), f"{root} is not a folder: --data takes a folder with pictures and {NAMES[0]}")
    path = next((root / name for name in NAMES if (root / name).is_file()), None)
    if path is None:
        deeper = sorted(found for name in NAMES for found in root.glob(f"*/{name}"))
        way = f"there is one in {deeper[0].parent}" if deeper else 'lines such as {"file_name": "a.png", "text": "…"}'
        raise ValueError(f"{root} has no {NAMES[0]} (and no {NAMES[1]}): {way}")
    inside, entries = root.resolve(), []
    for number, row in ROWS[path.suffix](path):
        try:
            entries.append(entry(root, inside, row))
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        except OSError as error:
            raise ValueError(f"{path}:{number}: {error.strerror}: {error.filename}") from error
    check(len(entries) > 0, f"{path} lists no pictures")
    blank = sum(not all(caption.strip() for caption in entry.captions) for entry in entries)
    if blank:
        log.warning("%d of %d pictures have an empty caption", blank, len(entries))
    return Listing(root, tuple(entries))


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, value) of each line that is not empty."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else f"not valid JSON: {error}"
                raise ValueError(f"{path}:{number}: {reason}") from error


def csv_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The same of a table whose first line names its columns."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            yield from ((rows.line_num, row) for row in rows)
        except (UnicodeDecodeError, csv.Error) as error:
            said = f"not a table of UTF-8 text after line {rows.line_num}"
            raise ValueError(f"{path}: {said}: {error}") from error


def entry(root: Path, inside: Path, row: Any) -> Entry:
    """One line of the metadata, checked.

    Args:
        inside: the folder without links, which the picture must lie in.
    """
    check(isinstance(row, dict), f"an object with file_name and text is wanted, not {shown(row)}")
    extra = row.get(None)  # cells beyond the last column of a table
    check(extra is None, f"{shown(extra)} lies beyond the last column: put a text with commas in quotes")
    for key in ("file_name", "text"):
        check(row.get(key) is not None, f"{key!r} is missing: there is {', '.join(map(str, row)) or 'nothing'}")
    name, text = row["file_name"], row["text"]
    check(isinstance(name, str) and name.strip() != "", f"file_name must be a path, not {shown(name)}")
    check("\0" not in name and name == whole(name), f"file_name must be a path, not {shown(name)}")
    captions = text if isinstance(text, list) and text else [text]
    ok = all(isinstance(caption, str) for caption in captions)
    check(ok, f"text must be a caption, or a list of phrasings, not {shown(text)}")
    path = root / name
    real = Path(os.path.realpath(path))
    check(inside in real.parents, f"{shown(name)} lies outside the folder {root}")
    size = read(path, header_only).size
    about = real.stat()
    told = tuple(map(whole, captions))
    return Entry(Path(name).as_posix(), path, told, size, (about.st_size, about.st_mtime_ns))


def whole(text: str) -> str:
    """Without halves of letters (JSON can name a lone surrogate), which nothing takes on from here."""
    return text.encode("utf-8", "replace").decode("utf-8")


def header_only(picture: Any) -> Any:
    """A picture whose pixels are not read."""
    return picture


ROWS = {".jsonl": json_rows, ".csv": csv_rows}
