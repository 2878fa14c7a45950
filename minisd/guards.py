"""When memory runs out or numbers overflow: another way to the same pictures, and a line that says so.

In: what was to be done, smaller pieces of it to fall back on. Out: its result, or one error with the way out.
Each image has its own seed and noise, so that smaller batches draw the same pictures.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .nn.tiling import PIXELS, decode_tiled
from .nn.vae import VAE

log = logging.getLogger("minisd")

TILE_FROM = 1024 * 1024  # pixels; a larger picture is decoded in tiles unless the caller says otherwise,
TILE_FROM_CPU = TILE_FROM // 2  # and on a CPU one half as large: there the system ends a process that takes too much


def in_batches(count: int, size: int, draw: Callable[[slice], Tensor]) -> Iterator[tuple[slice, Tensor]]:
    """Draw images 0 to count - 1, `size` at a time; from where memory runs out on, half as many.

    Yields:
        Which images, and what `draw` made of them.

    Raises:
        torch.OutOfMemoryError: not even one image fits.
    """
    start = 0
    while start < count:
        batch = slice(start, min(start + size, count))
        drawn = attempt(lambda batch=batch: draw(batch))
        if drawn is None:
            size = halved(batch.stop - batch.start, "while drawing", "a smaller width and height")
            continue
        yield batch, drawn
        start = batch.stop


def decode(vae: VAE, z: Tensor, tiling: str, seeds: Sequence[int]) -> Tensor:
    """Latents (b, c, h, w) in the UNet's space -> finite pixels (b, 3, H, W), float32.

    An image that overflows in fp16 or bf16 is decoded once more in fp32.

    Args:
        tiling: "on", "off", or "auto": tiles for a picture of more than `TILE_FROM` pixels (on a CPU `TILE_FROM_CPU`).
        seeds: of these images, for messages.

    Raises:
        FloatingPointError: the pixels are not finite in fp32 either.
        torch.OutOfMemoryError: not even one image fits.
    """
    area = z.shape[2] * z.shape[3] * vae.config.factor**2
    border = TILE_FROM_CPU if z.device.type == "cpu" else TILE_FROM
    tiled = tiling == "on" or (tiling == "auto" and area > border)
    pixels = decode_fitting(vae, z, PIXELS if tiled else 0, tiling != "off")
    bad = broken(pixels)
    if bad.any() and next(vae.parameters()).dtype != torch.float32:
        log.warning("%s: decoding again in fp32", overflow("the VAE", seeds, bad))
        with kept_in_fp32(vae):
            pixels[bad] = decode_fitting(vae, z[bad], PIXELS if tiled else 0, tiling != "off")
    finite(pixels, "the VAE", seeds)
    return pixels


def encode(vae: VAE, pixels: Tensor) -> Tensor:
    """Pixels (b, 3, H, W) -> finite latents (b, c, h, w) in the UNet's space, float32: the posterior's mean.

    One picture at a time, so that none feels its neighbours; one that overflows is encoded once more in fp32.

    Raises:
        FloatingPointError: the latents are not finite in fp32 either.
    """
    weight = next(vae.parameters())
    latents = torch.cat([vae.encode(one.to(weight.device))[0].float() for one in pixels.split(1)])
    if broken(latents).any() and weight.dtype != torch.float32:
        log.warning("the VAE gave numbers that are not finite for the image: encoding again in fp32")
        with kept_in_fp32(vae):
            return encode(vae, pixels)
    if broken(latents).any():
        raise FloatingPointError("the VAE gave numbers that are not finite for the image: its weights are damaged")
    return latents


def decode_fitting(vae: VAE, z: Tensor, strip: int, may_tile: bool) -> Tensor:
    """Decode in strips of so many pixels (0: whole); where memory runs out in strips after all, then fewer images."""
    pixels = attempt(lambda: (decode_tiled(vae, z, strip) if strip else vae.decode(z)).float())
    if pixels is not None:
        return pixels
    if may_tile and not strip:
        log.warning("out of memory in the VAE: decoding in tiles")
        quarter = z.shape[2] * z.shape[3] * vae.config.factor**2 // 4  # a small picture would be one strip
        return decode_fitting(vae, z, min(PIXELS, quarter), may_tile)
    size = halved(len(z), "in the VAE", "a smaller width and height" if may_tile else "vae_tiling auto")
    return torch.cat([decode_fitting(vae, part, strip, may_tile) for part in z.split(size)])


def attempt(work: Callable[[], Tensor]) -> Tensor | None:
    """work(), or None where memory ran out; what it held has then been let go."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    torch.cuda.empty_cache()
    return None


def out_of_memory(error: BaseException) -> bool:
    """CUDA has an error of its own for it, the CPU's allocator a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def halved(size: int, where: str, way_out: str) -> int:
    """Half as many images at a time, and say so.

    Raises:
        torch.OutOfMemoryError: it was one already.
    """
    if size == 1:
        raise torch.OutOfMemoryError(f"out of memory {where} with one image at a time: try {way_out}")
    log.warning("out of memory %s with %d images at a time: going on with %d", where, size, size // 2)
    return size // 2


def finite(x: Tensor, where: str, seeds: Sequence[int]) -> None:
    """Refuse to go on with NaN or infinity; no picture is made of them.

    Raises:
        FloatingPointError: naming the stage and the seeds of the images (b, ...) that are not finite.
    """
    bad = broken(x)
    if bad.any():
        way_out = "try --dtype fp32; if it ran in fp32, its weights are damaged or cfg_scale is too high"
        raise FloatingPointError(f"{overflow(where, seeds, bad)}: {way_out}")


def overflow(where: str, seeds: Sequence[int], bad: Tensor) -> str:
    """Which stage gave which images numbers that are not finite."""
    named = ", ".join(str(seed) for seed, is_bad in zip(seeds, bad.tolist(), strict=True) if is_bad)
    return f"{where} gave numbers that are not finite (seeds {named})"


def broken(x: Tensor) -> Tensor:
    """Which images of x (b, ...) hold NaN or infinity: (b,)."""
    return ~torch.isfinite(x).flatten(1).all(1)


@contextmanager
def kept_in_fp32(network: nn.Module) -> Iterator[None]:
    """Run a network in fp32 for a while; its weights come back bit for bit, fp32 holds each of them."""
    dtype = next(network.parameters()).dtype
    try:
        yield network.to(torch.float32)
    finally:
        network.to(dtype)
