"""Files that are whole or not there: written beside their place, then moved into it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic(path: str | Path, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it takes the place of `path`, on failure it goes.

    Raises:
        OSError: the folder is missing or cannot be written.
        FileExistsError: `path` is taken and `overwrite` is False; of two processes that race, one gets the name.
    """
    path = Path(path)
    temporary = beside(path)
    try:
        with open(temporary, "wb") as file:
            mode = os.fstat(file.fileno()).st_mode
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # safetensors writes files that only their owner can read
        if not overwrite:
            claim(temporary, path)
        if temporary.exists():
            os.replace(temporary, path)
    except OSError as error:
        if error.filename is None and error.errno:  # a write that finds the disk full does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """The temporary name of `path`, in the same folder and of this process."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def claim(temporary: Path, path: Path) -> None:
    """Give a finished file its name, if that is free.

    A hard link does it in one step. Where the file system has none, an empty file holds the name for a moment.
    """
    try:
        os.link(temporary, path)
        temporary.unlink()
    except FileExistsError:
        raise
    except OSError:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def check_writable(path: Path) -> None:
    """Raise an OSError now if a file of that name could not be written later."""
    temporary = beside(path)
    try:
        with open(temporary, "wb"):
            pass
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
