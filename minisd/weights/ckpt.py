"""torch's .ckpt files (zip, torch >= 1.6), tensors only: no code in a file can run.

In: the mapped file. Out: its tensors' places, checked (`parse`); tensors of these places (`tensors`), views of the
file, which is never copied and must not be cut while in use. `tensors.py` is the door to both kinds of files.

A .ckpt is a zip archive of stored records: data.pkl, the program of a pickle (see unpickle.py), and one record of
numbers per storage. Whatever the file says is checked here before a tensor is made of it.
https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..config import check
from .unpickle import MAX_NAME, MAX_STEPS, Dense, Inert, Machine, Storage

# Bounds: ten times what real checkpoints need, and harmless to reach.
MAX_RECORDS = MAX_TENSORS = 50_000
MAX_DIRECTORY = MAX_PICKLE = 1 << 25  # bytes
MAX_NUMBER = 1 << 48  # of elements, dimensions, strides
MAX_DIMS = 16
OWN_MAP = 1 << 20  # bytes; from this size on a storage is mapped by itself
MAX_VIEWS = 4  # all tensors together over the file's size: tied weights pass, one storage under 1,000 names does not


class BadFile(ValueError):
    """A file that holds no readable tensors; one line that names it and says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies: `shape` and `stride` from `offset` on among the `count` elements at byte `start`."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int
    count: int
    offset: int = 0


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever a damaged file makes Python or torch raise into one BadFile of one line."""
    try:
        yield
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(f"{path}: {error.strerror or error}") from error
    except (ValueError, LookupError, OverflowError, RecursionError, RuntimeError, struct.error) as error:
        fault = "" if type(error) is ValueError else "damaged: "  # ours say so themselves where it is so
        raise BadFile(f"{path}: {fault}{' '.join(str(error).split())[:300]}") from error


def mapped(path: str | Path, access: int = mmap.ACCESS_COPY) -> mmap.mmap:
    """The file as bytes in memory, read as they are touched; writing to them does not reach the file.

    Tensors need ACCESS_COPY, which a system may refuse for a file beyond its memory; a header does with ACCESS_READ.
    """
    kind = os.stat(path).st_mode
    check(not stat.S_ISDIR(kind), "this is a folder, not a file")
    check(stat.S_ISREG(kind), "this is a pipe or a device, not a file")  # opening a pipe would wait for ever
    with open(path, "rb") as file:
        check(os.fstat(file.fileno()).st_size > 0, "the file is empty")
        return mmap.mmap(file.fileno(), 0, access=access)


def tensors(path: str | Path, data: mmap.mmap, entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """Checked entries -> tensors; those of one storage share it, as they did when they were saved."""
    flats: dict[tuple[int, torch.dtype], Tensor] = {}
    found = {}
    with open(path, "rb") as file:
        for name, e in entries.items():
            key = (e.start, e.dtype)
            if prod(e.shape) == 0:
                found[name] = torch.empty_strided(e.shape, e.stride, dtype=e.dtype)
                continue
            if key not in flats:
                flats[key] = flat(file, data, e)
            found[name] = flats[key].as_strided(e.shape, e.stride, e.offset)
    return found


def flat(file: BinaryIO, data: mmap.mmap, e: Entry) -> Tensor:
    """The elements at e.start, in place; copied only where they do not lie on a multiple of their size.

    A large one is mapped by itself: its memory goes back as soon as it has been cast or moved, and a model that is
    loaded never holds the whole file beside its own weights.
    """
    size = e.dtype.itemsize
    if e.start % size:
        return torch.frombuffer(bytearray(data[e.start : e.start + e.count * size]), dtype=e.dtype)
    begin = 0
    if e.count * size >= OWN_MAP:
        begin = e.start // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        length = e.start - begin + e.count * size
        data = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY, offset=begin)
    return torch.frombuffer(data, dtype=e.dtype, count=e.count, offset=e.start - begin)


def parse(data: mmap.mmap) -> tuple[dict[str, Entry], dict[str, str]]:
    """The bytes of a .ckpt -> its tensors' places, and the words and numbers that stand beside them.

    A `state_dict` is unwrapped; of other dicts inside a dict, the tensors are named outer.inner.
    """
    found = records(data)
    pickles = [name for name in found if name.rpartition("/")[2] == "data.pkl"]
    check(len(pickles) == 1, f"a zip archive with {len(pickles) or 'no'} data.pkl, which is not a torch checkpoint")
    top = pickles[0].removesuffix("data.pkl")
    check(f"{top}constants.pkl" not in found, "a TorchScript program, which is not a checkpoint of tensors")
    start, size, crc = found[pickles[0]]
    check(size <= MAX_PICKLE, f"its data.pkl has {size:,} bytes, more than {MAX_PICKLE:,}")
    program = data[start : start + size]
    check(crc in (0, zlib.crc32(program)), "damaged: the checksum of its data.pkl is wrong")  # torch can write 0
    at, size, _ = found.get(f"{top}byteorder", (0, 0, 0))
    check(data[at : at + min(size, 9)] in (b"", b"little"), "written on a big-endian machine: convert it there")
    root = Machine().run(program)
    values = named(root)
    entries = {name: locate(name, value, found, top) for name, value in values.items()}
    check_entries(entries, len(data))
    beside = {key: str(value) for key, value in root.items() if plain(key) and plain(value)}
    return entries, beside


def plain(value: object) -> bool:
    """A word or a number that can be printed."""
    if type(value) is str:
        return len(value) <= MAX_NAME and value.isprintable()
    return type(value) is float or (type(value) is int and abs(value) < MAX_NUMBER)


def check_entries(entries: Mapping[str, Entry], size: int) -> None:
    """The bounds that all formats share; names are fit to be printed."""
    check(bool(entries), "it holds no tensors")
    check(len(entries) <= MAX_TENSORS, f"it holds more than {MAX_TENSORS:,} tensors")
    bad = next((name for name in entries if not plain(name)), "")
    check(not bad, f"a tensor has a name that cannot be printed: {bad[:60]!r}")
    total = sum(prod(e.shape) * e.dtype.itemsize for e in entries.values())
    check(total <= MAX_VIEWS * size, f"its tensors would take {total:,} bytes, the file has {size:,}")


def named(root: object) -> dict[str, object]:
    """What may be a tensor in the outermost dict, or in its state_dict, by name."""
    check(type(root) is dict, "it holds something else than a dict of tensors")
    inner = root.get("state_dict", root)
    check(type(inner) is dict, "its state_dict is not a dict of tensors")
    check(inner is root or type(inner.get("state_dict")) is not dict, "its state_dict holds a state_dict again")
    found = {}
    for step, (name, value) in enumerate(leaves(inner)):
        check(step < MAX_STEPS, "its dicts hold each other too often")
        if isinstance(value, Dense) or (
            isinstance(value, Inert) and ".".join(value.name.split(".")[:-1]) in REBUILDERS
        ):
            check(name not in found, f"two tensors are called {name!r}")
            found[name] = value
    return found


def leaves(inner: dict[str, object]) -> Iterator[tuple[str, object]]:
    """Names and values; those of a dict inside are called outer.inner. No deeper: a file can tie dicts into a knot."""
    for name, value in inner.items():
        if isinstance(value, Inert) and isinstance(value.state, dict):
            value = value.state.get("_parameters")  # of torch.nn.ParameterDict, in textual inversion files
        check(value is not inner, f"{name!r} is a dict that holds itself")
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", item) for key, item in value.items())
        else:
            yield name, value


def locate(name: str, value: object, found: Mapping[str, tuple[int, int, int]], top: str) -> Entry:
    """Check one tensor: its numbers are numbers, its storage is there, and it stays within it without blowing up."""
    odd = getattr(value, "name", "")
    check(isinstance(value, Dense), f"{name!r} is a tensor of a kind minisd does not read: {odd!r}")
    storage, shape, stride = value.storage, value.shape, value.stride
    kind = getattr(getattr(storage, "kind", None), "name", "")
    check(isinstance(storage, Storage) and kind in DTYPES, f"{name!r} has numbers of an unknown kind: {kind[:60]!r}")
    # Any other key than a word could be a knot of tuples, endless when it is turned into text.
    key = storage.key if isinstance(storage.key, str) else ""
    start, length, _ = found.get(f"{top}data/{key[:MAX_NAME]}", (0, -1, 0))
    check(length >= 0, f"cut short: the numbers of {name!r} are missing")
    check(type(shape) is tuple and type(stride) is tuple, f"{name!r} has no shape")
    check(len(shape) == len(stride) <= MAX_DIMS, f"{name!r} has {len(shape)} dimensions and {len(stride)} strides")
    numbers = (storage.count, value.offset, *shape, *stride)
    check(all(type(n) is int and 0 <= n < MAX_NUMBER for n in numbers), f"{name!r} has an absurd shape or place")
    count, offset, total, dtype = storage.count, value.offset, prod(shape), DTYPES[kind]
    check(count * dtype.itemsize <= length, f"{name!r} has {length:,} bytes, not {count:,} numbers of {dtype}")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    check(not total or last < count, f"{name!r} reaches beyond its {count:,} numbers")
    check(total <= count, f"{name!r} blows {count:,} numbers up to {total:,}")
    return Entry(dtype, shape, stride, start, count, offset)


def records(data: mmap.mmap) -> dict[str, tuple[int, int, int]]:
    """The records of a zip archive: name -> (start, size, checksum). Stored, whole, each in its own place, or refused.

    https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
    """
    count, size, start = directory(data)
    check(count <= MAX_RECORDS and size <= MAX_DIRECTORY, f"its zip directory has {count:,} entries of {size:,} bytes")
    found, spans, at = {}, [], start
    for _ in range(count):
        name, lies, length, crc, at = record(data, at, start + size)
        check(name not in found, f"two records are called {name[:60]!r}")
        body = body_of(data, name, lies)
        found[name] = (body, length, crc)
        spans.append((lies, body + length))
    check(at == start + size, "damaged: its zip directory has bytes left over")
    spans.sort()
    check(all(end <= lies for (_, end), (lies, _) in pairwise([*spans, (start, 0)])), "two of its records overlap")
    return found


def directory(data: mmap.mmap) -> tuple[int, int, int]:
    """Number of entries, size and start of the list of records, which stands at the archive's end."""
    end = data.rfind(b"PK\5\6", max(0, len(data) - END.size - 0xFFFF))
    check(end >= 0 and end + END.size <= len(data), "cut short: the zip directory at its end is missing")
    *_, count, size, start, comment = END.unpack_from(data, end)
    check(end + END.size + comment == len(data), "damaged: bytes follow the end of the zip archive")
    if (
        end > LOCATOR.size and data[end - LOCATOR.size : end - LOCATOR.size + 4] == b"PK\6\7"
    ):  # zip64: files and offsets beyond 4 GB
        end = LOCATOR.unpack_from(data, end - LOCATOR.size)[2]
        check(
            data[end : end + 4] == b"PK\6\6" and end + END64.size <= len(data),
            "damaged: its zip64 directory is missing",
        )
        count, size, start = END64.unpack_from(data, end)[-3:]
    check(start + size == end, "damaged: its zip directory is not where it should be")
    return count, size, start


def record(data: mmap.mmap, at: int, end: int) -> tuple[str, int, int, int, int]:
    """One entry of the list at `at`: name, where the record lies, its size, its checksum, where the next entry is."""
    check(at + ENTRY.size <= end, "damaged: its zip directory lacks entries")
    mark, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, lies = ENTRY.unpack_from(data, at)
    name_end = at + ENTRY.size + lengths[0]
    check(mark == b"PK\1\2" and name_end + lengths[1] + lengths[2] <= end, "damaged: its zip directory is broken")
    name = data[at + ENTRY.size : name_end].decode()
    large = extra64(data[name_end : name_end + lengths[1]])
    size, packed, lies = (next(large) if n == 0xFFFFFFFF else n for n in (size, packed, lies))
    check(not flags & 1 and method == 0 and size == packed, f"its record {name[:60]!r} is compressed or encrypted")
    return name, lies, size, crc, name_end + lengths[1] + lengths[2]


def extra64(extra: bytes) -> Iterator[int]:
    """The 64-bit numbers that stand in an entry's extra field for those that do not fit into 32 bits."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            yield from (number for (number,) in struct.iter_unpack("<Q", extra[at + 4 : at + 4 + length]))
        at += 4 + length
    raise ValueError("damaged: a size of its zip directory is missing")


def body_of(data: mmap.mmap, name: str, lies: int) -> int:
    """Where a record's bytes begin; its own header must give it the same name as the list does."""
    check(lies + LOCAL.size <= len(data), f"cut short: its record {name[:60]!r} is missing")
    mark, *_, name_length, extra = LOCAL.unpack_from(data, lies)
    known = mark == b"PK\3\4" and data[lies + LOCAL.size : lies + LOCAL.size + name_length] == name.encode()
    check(known, f"damaged: its record {name[:60]!r} has another name in its own header")
    return lies + LOCAL.size + name_length + extra


END, END64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")
ENTRY, LOCAL, LOCATOR = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H"), struct.Struct("<4sLQL")
DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
REBUILDERS = ("torch._utils", "torch._tensor", "torch.nn.parameter", "torch.sparse")
