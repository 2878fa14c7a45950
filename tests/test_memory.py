"""What a file's tensors hold in memory goes back tensor by tensor, so that a model is never there twice."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minisd.weights.tensors import read_tensors

MB = 1 << 20


def mapped() -> int:
    """Bytes of mapped files that this process has in memory."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_a_tensor_that_is_cast_gives_its_pages_back(tmp_path: Path, suffix: str) -> None:
    """8 tensors of 16 MB, cast one by one: never two of them in the file's own pages."""
    path = tmp_path / f"model{suffix}"
    made = {f"{i}.weight": torch.full((8 * MB,), i, dtype=torch.half) for i in range(8)}
    save_file(made, path) if suffix == ".safetensors" else torch.save(made, path)
    del made
    tensors = read_tensors(path)
    start = mapped()
    for name in list(tensors):
        tensors[name] = tensors[name].bfloat16()
        assert mapped() - start < 20 * MB
    assert all((tensors[f"{i}.weight"] == i).all() for i in range(8))
