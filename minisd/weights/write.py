"""Tensors and folders written whole or not at all, without holding them in memory twice.

In: {name: tensor}, views of other files perhaps. Out: a .safetensors file, written and cast tensor by tensor.
https://huggingface.co/docs/safetensors
"""

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ..config import check
from ..files import atomic, beside
from . import tensors as reader

KINDS = {dtype: kind for kind, dtype in reader.DTYPES.items()}


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    dtype: torch.dtype | None = None,
    as_they_are: Collection[str] = (),
    overwrite: bool = True,
) -> None:
    """Write a .safetensors file; the largest elements come first, so that each lies on a multiple of its size.

    Args:
        metadata: words that stand beside.
        dtype: what numbers with a fraction become; None: what they are.
        as_they_are: names that `dtype` does not touch.

    Raises:
        ValueError: a number becomes too large for the dtype.
        OSError: it cannot be written, or is there already and `overwrite` is False.
    """
    kinds = {
        name: dtype if dtype and t.is_floating_point() and name not in as_they_are else t.dtype
        for name, t in tensors.items()
    }
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    order, at = sorted(tensors, key=lambda name: (-kinds[name].itemsize, name)), 0
    for name in order:
        end = at + tensors[name].numel() * kinds[name].itemsize
        header[name] = {"dtype": KINDS[kinds[name]], "shape": list(tensors[name].shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic(path, overwrite) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            file.write(numbers(name, tensors[name], kinds[name]))


def numbers(name: str, tensor: Tensor, dtype: torch.dtype) -> memoryview:
    """One tensor's bytes, little-endian as torch has them on every machine it runs on."""
    cast = tensor.to(dtype).contiguous()
    if cast.dtype != tensor.dtype:
        fits = bool(torch.isfinite(cast).all()) or not bool(torch.isfinite(tensor).all())
        check(fits, f"{name} holds numbers too large for {dtype}: choose bf16, fp32 or keep")
    return memoryview(cast.reshape(-1).view(torch.uint8).numpy())


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it takes its place, on failure it goes.

    Raises:
        OSError: it cannot be written.
    """
    temporary, old = beside(path), beside(path).with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(old, ignore_errors=True)
