"""The latents of the training pictures, made once.

In: the trained VAE and the pictures. Out: posterior means in fp16, (count, c, h, w), kept in the run folder in files of
`BATCHES` batches each. A file is whole or not there, so what was interrupted goes on with the next one, and many
processes take turns. Each tells by which VAE it was made; those of another one are made anew.
"""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ..nn.vae import VAE
from ..weights.write import write_tensors
from . import processes
from .checkpoint import opened
from .data import Examples
from .stop import Stopped, now

BATCH, PIXELS = 64, 1 << 20  # that the encoder reads at a time, at most: 64 pictures of 128 x 128, or 4 of 512 x 512
BATCHES = 64  # in a file


def cached_latents(
    folder: Path, vae: VAE, count: int, examples: Examples, source: str, until: float, quiet: bool = False
) -> Tensor:
    """Posterior means of the first `count` training pictures, fp16 (count, c, h, w).

    Args:
        source: what the pictures are, in words that change when they do.
        until, quiet: as in `loop.run`.

    Raises:
        Stopped: the time is over; the files made so far are kept.
    """
    tag, batch = fingerprint(vae, source), max(1, min(BATCH, PIXELS // examples.size**2))
    shard = BATCHES * batch
    parts = [(folder / f"{i:08d}.safetensors", range(i, min(i + shard, count))) for i in range(0, count, shard)]
    missing = [part for part in parts if not covers(*part, tag)]
    processes.wait()  # nobody writes before all have looked
    folder.mkdir(parents=True, exist_ok=True)
    mute = quiet or not (missing and processes.chief())
    for mine in tqdm(list(turns(missing)), desc="latents", unit="file", disable=mute):
        if mine is not None:
            path, indices = mine
            batches = (indices[i : i + batch] for i in range(0, len(indices), batch))
            latents = torch.cat([encoded(vae, examples.pictures(some)) for some in batches])
            write_tensors(path, {"latents": latents}, {"made": tag})
        if processes.together(now() > until):
            raise Stopped("latents: stopped; the same command goes on with the next file")
    processes.wait()
    return torch.cat([stored(path)[: len(indices)] for path, indices in parts])


def turns(parts: list) -> Iterator:
    """This process's parts; None where the others have one more, so that all of them count the same rounds."""
    world, rank = processes.count(), processes.rank()
    for i in range(0, len(parts), world):
        yield parts[i + rank] if i + rank < len(parts) else None


@torch.no_grad()
def encoded(vae: VAE, images: Tensor) -> Tensor:
    """Posterior means of pictures (b, 3, H, W), fp16 on the CPU."""
    images = images.to(next(vae.parameters()).device, memory_format=torch.channels_last)
    return vae.encode(images)[0].half().contiguous().cpu()


def covers(path: Path, indices: range, tag: str) -> bool:
    """The file is there and whole, made by this VAE, and holds at least these pictures."""
    if not path.exists():
        return False
    try:
        with opened(path) as file:
            return file.metadata().get("made") == tag and file.get_slice("latents").get_shape()[0] >= len(indices)
    except ValueError:  # damaged: it is made anew
        return False


def stored(path: Path) -> Tensor:
    with opened(path) as file:
        return file.get_tensor("latents")


def fingerprint(vae: VAE, source: str) -> str:
    """A name for what latents depend on: the pictures, the encoder's weights and the scale factor."""
    digest = sha256(f"{source} {vae.config}".encode())
    for tensor in vae.state_dict().values():
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
