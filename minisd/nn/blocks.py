"""The parts that the UNet and the VAE are built from.

In and out: feature maps (b, c, h, w). Every GroupNorm is given its eps by name: 1e-5 in the UNet's ResBlocks,
1e-6 at the entry of a transformer and everywhere in the VAE.
He et al. 2015, https://arxiv.org/abs/1512.03385; Shazeer 2020 (GEGLU), https://arxiv.org/abs/2002.05202
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .attention import Attention, KeyValue


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of numbers t (...,) -> (..., dim), cosines first, in float32.

    Frequencies 10000 ** (-i / (dim / 2)); Ho et al. 2020, https://arxiv.org/abs/2006.11239
    """
    half = dim // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t.float()[..., None] * torch.exp(index * (-math.log(10_000) / half))
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


class MLP(nn.Module):
    """Two linear layers with SiLU between: for times and for pooled vectors."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(F.silu(self.linear1(x)))


class ResBlock(nn.Module):
    """norm, SiLU, conv, (+ time), norm, SiLU, conv, + x."""

    def __init__(self, dim: int, out: int, groups: int, eps: float, time_dim: int = 0) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, dim, eps=eps)
        self.conv1 = nn.Conv2d(dim, out, 3, padding=1)
        self.time = nn.Linear(time_dim, out) if time_dim else None
        self.norm2 = nn.GroupNorm(groups, out, eps=eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.shortcut = nn.Conv2d(dim, out, 1) if dim != out else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time is not None:
            h = h + rearrange(self.time(F.silu(temb)), "b c -> b c 1 1")
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class FeedForward(nn.Module):
    """GEGLU: one linear to twice the width; the first half is the value, the second half the gate."""

    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        self.proj_in = nn.Linear(dim, 2 * mult * dim)
        self.proj_out = nn.Linear(mult * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj_in(x).chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward; each pre-normed and added."""

    def __init__(self, dim: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, kv: KeyValue) -> Tensor:
        x = x + self.self_attention(self.norm1(x))
        x = x + self.cross_attention(self.norm2(x), kv)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, added to it.

    SD 1.x stores the two projections as 1x1 convolutions, SD 2.x and SDXL as linear layers: the same map.
    """

    def __init__(self, dim: int, heads: int, context_dim: int, depth: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=1e-6)
        self.proj_in = nn.Linear(dim, dim)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, context_dim) for _ in range(depth))
        self.proj_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, kv: Iterator[KeyValue]) -> Tensor:
        """x (b, c, h, w); `kv` yields one pair of keys and values for each block."""
        tokens = self.proj_in(rearrange(self.norm(x), "b c h w -> b (h w) c"))
        for block in self.blocks:
            tokens = block(tokens, next(kv))
        return x + rearrange(self.proj_out(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class Downsample(nn.Module):
    """Halve h and w. The UNet pads by one on every side; the VAE only right and below (`skewed`)."""

    def __init__(self, dim: int, skewed: bool = False) -> None:
        super().__init__()
        self.skewed = skewed
        self.conv = nn.Conv2d(dim, dim, 3, stride=2, padding=0 if skewed else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.skewed else x)


class Upsample(nn.Module):
    """Nearest-neighbour enlargement to a given size, then a convolution."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
