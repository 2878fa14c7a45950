"""The autoencoder between pixels and latents.

Pixels (b, 3, H, W) in [-1, 1] <-> latents (b, c, h, w) in the UNet's space, H = factor * h.
The scale factor is applied here and nowhere else. Every norm has eps 1e-6.
Rombach et al. 2022, https://arxiv.org/abs/2112.10752
"""

import math

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import VAEConfig
from .attention import Attention
from .blocks import Downsample, ResBlock, Upsample

EPS = 1e-6


class PixelAttention(nn.Module):
    """One head of self-attention over all pixels, added to them."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, dim, eps=EPS)
        self.attention = Attention(dim, heads=1, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.norm(x), "b c h w -> b (h w) c")
        return x + rearrange(self.attention(tokens), "b (h w) c -> b c h w", h=x.shape[2])


class Mid(nn.Module):
    """ResBlock, attention, ResBlock at the lowest resolution."""

    def __init__(self, dim: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(dim, dim, groups, EPS) for _ in range(2))
        self.attention = PixelAttention(dim, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attention(self.resnets[0](x)))


class Level(nn.Module):
    """The ResBlocks of one resolution, and the step to the next one where there is one."""

    def __init__(self, dim: int, out: int, blocks: int, groups: int, resample: nn.Module | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResBlock(dim if i == 0 else out, out, groups, EPS) for i in range(blocks))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        if isinstance(self.resample, Upsample):
            return self.resample(x, (2 * x.shape[2], 2 * x.shape[3]))
        return x if self.resample is None else self.resample(x)


class Encoder(nn.Module):
    """Pixels -> the posterior's mean and log-variance, stacked on the channels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        self.conv_in = nn.Conv2d(config.image_channels, channels[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level(
                channels[max(i - 1, 0)],
                out,
                config.blocks_per_level,
                groups,
                Downsample(out, skewed=True) if i < len(channels) - 1 else None,
            )
            for i, out in enumerate(channels)
        )
        self.mid = Mid(channels[-1], groups)
        self.norm_out = nn.GroupNorm(groups, channels[-1], eps=EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Latents -> pixels. `up` is indexed by level and runs from the lowest resolution up."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        channels, groups = config.channels, config.groups
        last = len(channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, channels[-1], 3, padding=1)
        self.mid = Mid(channels[-1], groups)
        self.up = nn.ModuleList(
            Level(
                channels[min(i + 1, last)],
                out,
                config.blocks_per_level + 1,
                groups,
                Upsample(out) if i > 0 else None,
            )
            for i, out in enumerate(channels)
        )
        self.norm_out = nn.GroupNorm(groups, channels[0], eps=EPS)
        self.conv_out = nn.Conv2d(channels[0], config.image_channels, 3, padding=1)

    def bottom(self, z: Tensor) -> Tensor:
        """The part at the latents' own resolution, the attention over all of them included."""
        return self.mid(self.conv_in(z))

    def forward(self, z: Tensor) -> Tensor:
        x = self.bottom(z)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    """Encoder, decoder and the 1x1 convolutions between them and the latent."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (b, 3, H, W) in [-1, 1] -> posterior mean and log-variance, each (b, c, h, w), UNet's space."""
        scale = self.config.scale_factor
        moments = self.quant(self.encoder(image.to(self.quant.weight.dtype)))
        mean, logvar = moments.chunk(2, dim=1)
        return mean * scale, logvar.clamp(-30, 20) + 2 * math.log(scale)

    def decode(self, z: Tensor) -> Tensor:
        """Latents (b, c, h, w) in the UNet's space -> pixels (b, 3, H, W), about [-1, 1], not clamped."""
        return self.decoder(self.unscaled(z))

    def unscaled(self, z: Tensor) -> Tensor:
        """Latents in the UNet's space -> what the decoder takes."""
        return self.post_quant(z.to(self.quant.weight.dtype) / self.config.scale_factor)
