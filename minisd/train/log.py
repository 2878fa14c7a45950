"""The log of a stage: one JSON object a line, one line a step.

    {"step": 7, "loss": 0.31, "lr": 0.001, "norm": 0.9, "images": 64, "images_per_second": 70.2, ...}
    {"step": 8, "skipped": 1}      the loss was not finite: how many steps were skipped so far

A run that was cut off and goes on from step n first takes back the lines of step n and after, so that each step is
there once. Two logs are the same when they agree in all but the fields in TIMING. No torch here.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..files import atomic

TIMING = ("images_per_second",)


class Log:
    """Appends rows. Each is with the system when `write` returns: a process killed after it has lost nothing."""

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        if path.exists():
            with atomic(path) as temporary:
                temporary.write_bytes(b"".join(kept(path.read_bytes().splitlines(keepends=True), step)))
        # Without a buffer: a row that finds the disk full is an error here and not once more when the file is closed.
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115

    def write(self, row: Mapping[str, float]) -> None:
        """Append a row; seven digits of each figure.

        Raises:
            OSError: it cannot be written.
        """
        plain = {k: v if isinstance(v, int) else float(f"{v:.7g}") for k, v in row.items()}
        line = (json.dumps(plain) + "\n").encode()
        try:
            if self.file.write(line) < len(line):
                raise OSError("the disk is full")
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def sync(self) -> None:
        """On the disk, before a checkpoint says that these steps are done."""
        os.fsync(self.file.fileno())

    def close(self) -> None:
        self.file.close()


def kept(lines: Iterable[bytes], step: int) -> list[bytes]:
    """The whole lines of steps before `step`."""
    rows = ((line, parsed(line)) for line in lines)
    return [line for line, row in rows if row is not None and row["step"] < step]


def parsed(line: bytes) -> dict[str, Any] | None:
    """A row, or None where a line was cut off."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if line.endswith(b"\n") and isinstance(row, dict) and "step" in row else None


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of a log; a last line that was cut off is left out. No file: no rows."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [row for line in lines if (row := parsed(line)) is not None]
