"""The VAE's decoder in tiles: the same picture from a part of the memory.

Latents (b, c, h, w) in the UNet's space -> pixels (b, 3, H, W), as `VAE.decode`. A tile is a strip of rows.

What makes tiles show is that each is normed by its own statistics and ends in zeros. Here neither happens: a strip
takes along as many rows of its neighbours as its convolutions reach, and every GroupNorm has the statistics of the
whole picture, found in a first pass over all strips. So nothing overlaps, nothing has to be blended, and what is left
is rounding. The price is work, at most a third again: the first convolution of each ResBlock runs in both passes.
Only one feature map on its way in and one on its way out are ever whole; beside a GPU they lie in the computer's
memory. The attention at the bottom of the decoder sees all latents at once: there the maps are small.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .blocks import ResBlock
from .vae import VAE

Act = Callable[[Tensor], Tensor]

PIXELS = 2**17  # of a strip, at any resolution: 1024 x 128; what it holds at once takes 0.4 GB in SDXL's VAE in fp32
MIN_ROWS = 8


def decode_tiled(vae: VAE, z: Tensor, pixels: int = PIXELS) -> Tensor:
    """Latents (b, c, h, w) in the UNet's space -> pixels (b, 3, H, W), about [-1, 1], not clamped.

    Args:
        pixels: how large a strip is; a picture that is no larger is decoded whole, bit for bit as by `vae.decode`.
    """
    if z.shape[2] * z.shape[3] * vae.config.factor**2 <= pixels:
        return vae.decode(z)
    decoder = vae.decoder
    strips = Strips(z.device, pixels)
    x = strips.collect(decoder.bottom(vae.unscaled(z)), lambda y: y, 0)
    for level in reversed(decoder.up):
        for block in level.resnets:
            x = strips.res_block(block, x)
        if level.resample is not None:
            x = strips.enlarge(level.resample, x)
    norm_out = strips.norm(decoder.norm_out, x)
    return strips.collect(x, lambda y: decoder.conv_out(F.silu(norm_out(y))), 1).to(z.device)


@dataclass(frozen=True)
class Strips:
    """Parts of a network on feature maps (b, c, h, w), some rows at a time."""

    device: torch.device  # where the network is
    pixels: int  # h * w of a strip

    @property
    def home(self) -> torch.device:
        """Where whole maps lie."""
        return torch.device("cpu") if self.device.type == "cuda" else self.device

    def each(self, x: Tensor, act: Act, halo: int) -> Iterator[Tensor]:
        """`act` on x, strip by strip from the top; it may enlarge, and looks `halo` rows of x up and down."""
        height, width = x.shape[2:]
        rows = max(MIN_ROWS, self.pixels // width)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            first, last = max(top - halo, 0), min(bottom + halo, height)
            y = act(x[:, :, first:last].to(self.device))
            scale = y.shape[2] // (last - first)
            yield y[:, :, (top - first) * scale : (bottom - first) * scale]

    def collect(self, x: Tensor, act: Act, halo: int) -> Tensor:
        """The same as one map."""
        whole, end = None, 0
        for y in self.each(x, act, halo):
            if whole is None:
                size = (*y.shape[:2], x.shape[2] * y.shape[3] // x.shape[3], y.shape[3])
                whole = torch.empty(size, dtype=y.dtype, device=self.home, memory_format=torch.channels_last)
            begin, end = end, end + y.shape[2]
            whole[:, :, begin:end] = y
        return whole

    def norm(self, norm: nn.GroupNorm, x: Tensor, act: Act = lambda y: y, halo: int = 0) -> Act:
        """A GroupNorm with the statistics of the whole act(x), as a function of any of its strips."""
        moments = []
        for y in self.each(x, act, halo):
            groups = rearrange(y, "b (g c) h w -> b g (c h w)", g=norm.num_groups).float()
            variance, mean = torch.var_mean(groups, dim=-1, correction=0)
            moments.append((torch.full_like(mean, groups.shape[-1]), mean, variance))
        count, mean, variance = (torch.stack(m).double() for m in zip(*moments, strict=True))
        part = count / count.sum(0)
        middle = (part * mean).sum(0)
        spread = (part * (variance + (mean - middle) ** 2)).sum(0)

        def wide(of_group: Tensor) -> Tensor:
            return repeat(of_group.float(), "b g -> b (g c) 1 1", c=norm.num_channels // norm.num_groups)

        weight, bias = (rearrange(p.float(), "c -> 1 c 1 1") for p in (norm.weight, norm.bias))
        middle, scale = wide(middle), wide((spread + norm.eps).rsqrt()) * weight
        return lambda y: ((y - middle) * scale + bias).to(y.dtype)

    def res_block(self, block: ResBlock, x: Tensor) -> Tensor:
        """A ResBlock. Each of its two convolutions looks one row further."""
        norm1 = self.norm(block.norm1, x)

        def conv1(y: Tensor) -> Tensor:
            return block.conv1(F.silu(norm1(y)))

        norm2 = self.norm(block.norm2, x, conv1, halo=1)
        return self.collect(x, lambda y: block.shortcut(y) + block.conv2(F.silu(norm2(conv1(y)))), halo=2)

    def enlarge(self, resample: nn.Module, x: Tensor) -> Tensor:
        """An Upsample, whose output is four times its input: the strips are made smaller beforehand."""
        smaller = Strips(self.device, self.pixels // 4)
        return smaller.collect(x, lambda y: resample(y, (2 * y.shape[2], 2 * y.shape[3])), halo=1)
