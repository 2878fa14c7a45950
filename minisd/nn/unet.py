"""The UNet: a noisy latent, a time and a text in, the network's raw prediction F out.

x (b, c, h, w), t (b,), conditioning -> F (b, c, h, w). It knows nothing of sigmas, guidance or prompts.
Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; Rombach et al. 2022, https://arxiv.org/abs/2112.10752
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig
from .attention import KeyValue
from .blocks import MLP, Downsample, ResBlock, SpatialTransformer, Upsample, sinusoids
from .conditioning import Conditioning, Prepared

EPS = 1e-5  # of every GroupNorm but the transformers' entry


class Level(nn.Module):
    """The blocks of one resolution, on the way down or up: ResBlocks, each with its transformer where there is one."""

    def __init__(self, config: UNetConfig, level: int, dims: list[int]) -> None:
        super().__init__()
        out, depth = config.channels[level], config.depth[level]
        self.resnets = nn.ModuleList(
            ResBlock(dim, out, config.groups, EPS, time_dim=4 * config.channels[0]) for dim in dims
        )
        self.transformers = nn.ModuleList(
            SpatialTransformer(out, config.heads[level], config.context_dim, depth, config.groups)
            for _ in dims
            if depth
        )

    def step(self, i: int, x: Tensor, temb: Tensor, kv: Iterator[KeyValue]) -> Tensor:
        """ResBlock i and its transformer."""
        x = self.resnets[i](x, temb)
        return self.transformers[i](x, kv) if self.transformers else x


class Down(Level):
    """A level on the way down; every result is kept as a skip."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        before, out = config.channels[max(level - 1, 0)], config.channels[level]
        super().__init__(config, level, [before] + [out] * (config.blocks_per_level - 1))
        last = level == len(config.channels) - 1
        self.downsample = None if last else Downsample(out)

    def forward(self, x: Tensor, temb: Tensor, kv: Iterator[KeyValue], skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.step(i, x, temb, kv)
            skips.append(x)
        if self.downsample is not None:
            x = self.downsample(x)
            skips.append(x)
        return x


class Mid(nn.Module):
    """ResBlock, transformer, ResBlock at the lowest resolution."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        dim, groups = config.channels[-1], config.groups
        time_dim = 4 * config.channels[0]
        self.resnets = nn.ModuleList(ResBlock(dim, dim, groups, EPS, time_dim) for _ in range(2))
        self.transformers = nn.ModuleList(
            SpatialTransformer(dim, config.heads[-1], config.context_dim, config.mid_depth, groups)
            for _ in range(1 if config.mid_depth else 0)
        )

    def forward(self, x: Tensor, temb: Tensor, kv: Iterator[KeyValue]) -> Tensor:
        x = self.resnets[0](x, temb)
        for transformer in self.transformers:
            x = transformer(x, kv)
        return self.resnets[1](x, temb)


class Up(Level):
    """A level on the way up; each block takes one skip back in."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        channels, n = config.channels, config.blocks_per_level
        out = channels[level]
        entry = channels[min(level + 1, len(channels) - 1)]
        skips = [out] * n + [channels[max(level - 1, 0)]]
        super().__init__(config, level, [c + s for c, s in zip([entry] + [out] * n, skips, strict=True)])
        self.upsample = Upsample(out) if level > 0 else None

    def forward(self, x: Tensor, temb: Tensor, kv: Iterator[KeyValue], skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.step(i, torch.cat([x, skips.pop()], dim=1), temb, kv)
        if self.upsample is not None:
            x = self.upsample(x, skips[-1].shape[-2:])  # the next skip's own size: odd sizes stay exact
        return x


class UNet(nn.Module):
    """One class for SD 1.x, SD 2.x, SDXL and mini. `up` is indexed by level and runs from the lowest up."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, time_dim = config.channels, 4 * config.channels[0]
        self.time = MLP(channels[0], time_dim)
        self.vector = MLP(config.vector_dim, time_dim) if config.vector_dim else None
        self.conv_in = nn.Conv2d(config.in_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(Down(config, level) for level in range(len(channels)))
        self.mid = Mid(config)
        self.up = nn.ModuleList(Up(config, level) for level in range(len(channels)))
        self.norm_out = nn.GroupNorm(config.groups, channels[0], eps=EPS)
        self.conv_out = nn.Conv2d(channels[0], config.out_channels, 3, padding=1)

    def prepare(self, cond: Conditioning) -> Prepared:
        """All that does not change over the steps: keys and values of the text, the vector's embedding."""
        dtype = self.conv_in.weight.dtype
        cond = cond.to(dtype=dtype)
        kv = tuple(
            block.cross_attention.key_value(cond.context)
            for transformer in self.transformers()
            for block in transformer.blocks
        )
        if (self.vector is None) != (cond.vector is None):
            raise ValueError(f"this UNet has vector_dim {self.config.vector_dim}: the conditioning must fit")
        vector = None if self.vector is None else self.vector(cond.vector)
        return Prepared(kv, vector, cond.concat, len(cond))

    def transformers(self) -> Iterator[SpatialTransformer]:
        """Every SpatialTransformer in running order, the order of `Prepared.kv`."""
        for part in (*self.down, self.mid, *reversed(self.up)):
            yield from part.transformers

    def forward(self, x: Tensor, t: Tensor, cond: Conditioning | Prepared) -> Tensor:
        """Predict F (b, c, h, w) from x (b, c, h, w), t (b,) in table steps (may be fractional) and the text.

        Any h and w will do. `cond` is prepared here if it is not yet (training needs the gradients).
        """
        prepared = cond if isinstance(cond, Prepared) else self.prepare(cond)
        dtype = self.conv_in.weight.dtype
        temb = self.time(sinusoids(t, self.config.channels[0]).to(dtype))
        if prepared.vector is not None:
            temb = temb + prepared.vector
        if prepared.concat is not None:
            x = torch.cat([x, prepared.concat.to(x.dtype)], dim=1)
        kv = iter(prepared.kv)

        x = self.conv_in(x.to(dtype))
        skips = [x]
        for level in self.down:
            x = level(x, temb, kv, skips)
        x = self.mid(x, temb, kv)
        for level in reversed(self.up):
            x = level(x, temb, kv, skips)
        return self.conv_out(F.silu(self.norm_out(x)))
