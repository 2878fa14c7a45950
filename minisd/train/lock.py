"""One run, one folder, one process that writes. The system frees the lock when the process ends, however it ends."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = ".lock"
HALF = re.compile(r"\..+\.[0-9]+\.tmp")  # the names that minisd.files writes under


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder, which is made where it is missing; what a killed run left half written is removed.

    Raises:
        ValueError: another process holds it.
        OSError: it cannot be made or written.
    """
    import fcntl  # not on Windows, where the rest of minisd runs

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / NAME, "a+", encoding="ascii") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            said = f"{folder} is in use: process {owner} trains in it; wait for it, or choose another --out"
            raise ValueError(said) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        for left in (*folder.glob(".*.tmp"), *folder.glob("*/.*.tmp")):
            if HALF.fullmatch(left.name) and left.is_file():
                left.unlink()
        yield
