"""Tensors from a file of either kind, told by its first bytes and not by its name.

In: a path. Out: {name: Tensor}, views of the mapped file; or what it holds, read from its header alone.

.safetensors: 8 bytes length of the header, little-endian; the header, JSON {name: dtype, shape, data_offsets}; numbers.
The header is checked here in full and the numbers are mapped as those of a .ckpt are, so a damaged file meets one set
of checks. https://github.com/huggingface/safetensors  https://huggingface.co/docs/safetensors
"""

import json
import mmap
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import check
from . import ckpt
from .ckpt import MAX_DIMS, MAX_NUMBER, MAX_TENSORS, BadFile, Entry, check_entries, mapped, reading

__all__ = ["BadFile", "Header", "read_header", "read_tensors"]

MAX_HEADER = 1 << 23  # bytes; SDXL takes 250,000. The format's own limit, 100 MB, would let a header take gigabytes


@dataclass(frozen=True)
class Header:
    """What a file holds: its kind, "safetensors" or "ckpt"; dtype and shape of each tensor; words that stand beside."""

    kind: str
    tensors: dict[str, Entry]
    metadata: dict[str, str]


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .ckpt file. Values are not looked at: they may be NaN.

    Raises:
        BadFile: it is neither, or damaged; one line with the file, the reason and, if there is one, the way out.
    """
    with reading(path):
        data = mapped(path)
        return ckpt.tensors(path, data, parse(data).tensors)


def read_header(path: str | Path) -> Header:
    """What a .safetensors or .ckpt file holds, without reading a tensor's numbers.

    Raises:
        BadFile: as `read_tensors`.
    """
    with reading(path):
        return parse(mapped(path, mmap.ACCESS_READ))


def parse(data: mmap.mmap) -> Header:
    """Tell the kind of a file and read its header."""
    kind = told(data)
    return Header(kind, *(ckpt.parse(data) if kind == "ckpt" else parse_safetensors(data)))


def told(data: mmap.mmap) -> str:
    """The kind of a file, "safetensors" or "ckpt", by its first bytes; of any other kind, say which it is."""
    start = data[:512]
    if start[8:9] == b"{":  # a safetensors header opens here; no other file that goes by these names does
        return "safetensors"
    if start.startswith(b"PK\3\4"):
        return "ckpt"
    known = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    kind = next((kind for mark, kind in OTHER_KINDS.items() if known.startswith(mark.lower())), "")
    check(not kind, f"this is {kind}")
    check(any(start), "cut short: the file begins with zeros, as an unfinished download does")
    text = all(byte in b"\t\r\n" or 32 <= byte < 127 for byte in start)
    check(not text, "this is a text file, not a model's weights")
    raise ValueError(f"neither a .safetensors nor a .ckpt file: it begins with {start[:8]!r}")


def parse_safetensors(data: mmap.mmap) -> tuple[dict[str, Entry], dict[str, str]]:
    """The bytes of a .safetensors -> its tensors' places and its metadata."""
    length = int.from_bytes(data[:8], "little")
    check(length <= MAX_HEADER, f"its header would have {length:,} bytes, more than {MAX_HEADER:,}")
    begin = 8 + length
    check(begin <= len(data), f"cut short: its header alone has {length:,} bytes, the file {len(data):,}")
    text = data[8:begin]
    tables = text.count(b"{") + text.count(b"[")  # Python's take twenty times the bytes of the text
    check(tables <= 4 * MAX_TENSORS, f"its header has {tables:,} tables, more than tensors need")
    header = json.loads(text.decode(), object_pairs_hook=unique)
    check(type(header) is dict, "its header is no table of tensors")
    metadata = header.pop("__metadata__", {})
    good = type(metadata) is dict and all(type(word) is str for word in metadata.values())
    check(good, "its metadata are not all words")
    json.dumps(metadata, ensure_ascii=False).encode()  # half a surrogate pair cannot be printed
    entries = {name: entry(name, value, begin) for name, value in header.items()}
    check_entries(entries, len(data))
    at = begin
    for name, e in sorted(entries.items(), key=lambda item: (item[1].start, item[1].count)):
        check(e.start == at, f"{name!r} begins at byte {e.start:,} instead of {at:,}: tensors overlap or leave a hole")
        at += e.count * e.dtype.itemsize
    check(at <= len(data), f"cut short: the file has {len(data):,} bytes of {at:,}")
    check(at == len(data), f"damaged: {len(data) - at:,} bytes follow the last tensor")
    return entries, metadata


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two equal keys json would keep the last without a word."""
    found = dict(pairs)
    check(len(found) == len(pairs), "its header has a name twice")
    return found


def entry(name: str, value: object, begin: int) -> Entry:
    """Check one tensor of the header: known dtype, whole numbers, and as many bytes as its shape needs."""
    name = name[:60]
    check(type(value) is dict, f"{name!r} is described by something else than a table")
    kind, shape, place = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    dtype = DTYPES.get(kind) if type(kind) is str else None
    check(dtype is not None, f"{name!r} has numbers of an unknown kind: {str(kind)[:60]!r}")
    check(type(shape) is list and len(shape) <= MAX_DIMS, f"{name!r} has no shape, or more than {MAX_DIMS} dimensions")
    check(type(place) is list and len(place) == 2, f"{name!r} has no place in the file")
    whole = all(type(n) is int and 0 <= n < MAX_NUMBER for n in (*shape, *place))
    check(whole, f"{name!r} has an absurd shape or place")
    count, size = prod(shape), place[1] - place[0]
    check(count * dtype.itemsize == size, f"{name!r} has {size:,} bytes, not {count:,} numbers of {kind}")
    stride = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Entry(dtype, tuple(shape), stride, begin + place[0], count)


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
OTHER_KINDS = {
    b"version https://git-lfs": "a git-lfs pointer, not the file itself: fetch it with git lfs pull",
    b"<!doctype": "a web page, not the file itself: download it from the page's download link",
    b"<html": "a web page, not the file itself: download it from the page's download link",
    b"<?xml": "an XML page, perhaps an error of the server: download the file again",
    b"GGUF": "a GGUF file, which minisd does not read: take the .safetensors of the model",
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9": (
        "a checkpoint in torch's format before 1.6, which can hide anything: where you trust it, "
        "convert it by torch.save(torch.load('old.ckpt', weights_only=True), 'new.ckpt')"
    ),
    b"\x80": "a bare pickle, which can hide anything: minisd reads torch's zip files and .safetensors",
    b"PK\5\6": "an empty zip archive",
    b"\x89HDF": "an HDF5 file, perhaps of Keras: take the .safetensors of the model",
    b"\x89PNG": "a picture, not a model's weights",
    b"\xff\xd8\xff": "a picture, not a model's weights",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"{": "a JSON file, perhaps the index or the config: give the weights themselves",
}
