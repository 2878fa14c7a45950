"""Pictures as a model might have drawn them: softer, bent, of slightly other colours, a little noisy.

In: pictures (b, 3, H, W) in [-1, 1]. Out: the same, worn. All lengths are fractions of the picture's width. A decoder
loses colour before it loses light, so that the two are blurred apart.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
SOFT = 0.017  # sigma of the strongest blur of light
LOST = (0.05, 0.08)  # ... of one that leaves nothing to tell
BEND = 0.012  # how far things are moved from their places
KNOTS = 5  # of a bend, across
NOISE = 0.05
CAST = 0.06  # of a colour, added
GAIN = 0.1  # of contrast


def worn(pictures: Tensor, lost: Tensor, draw: torch.Generator) -> Tensor:
    """Worn pictures (b, 3, H, W); those `lost` (b,) are blurred beyond telling."""
    b, device = len(pictures), pictures.device

    def uniform(*shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=draw)

    light = SOFT * uniform(1) * (uniform(1) < 0.7)
    colour = light + SOFT * uniform(1)
    strong = LOST[0] + (LOST[1] - LOST[0]) * uniform(1)
    light, colour = (torch.where(lost[:, None], strong, sigma).to(device) for sigma in (light, colour))
    move = BEND * uniform(1, 1, 1) * torch.randn(b, 2, KNOTS, KNOTS, generator=draw)
    gain = 1 + GAIN * (2 * uniform(3, 1, 1) - 1) * uniform(1, 1, 1)
    cast = CAST * (2 * uniform(3, 1, 1) - 1) * uniform(1, 1, 1)
    noise = NOISE * uniform(1, 1, 1) * torch.randn(pictures.shape, generator=draw)

    x = bent(pictures, move.to(device))
    grey = (x * torch.tensor(LUMA, device=device).view(3, 1, 1)).sum(1, keepdim=True)
    x = blurred(grey, light) + blurred(x - grey, colour)
    return (x * gain.to(device) + cast.to(device) + noise.to(device)).clamp(-1, 1)


def nothing(count: int, size: int, draw: torch.Generator) -> Tensor:
    """Pictures of coloured patches with nothing in them, (count, 3, size, size), finer and coarser ones by turns."""
    sides = (3, 6, 12, size)
    patches = (2 * torch.rand(1, 3, sides[i % 4], sides[i % 4], generator=draw) - 1 for i in range(count))
    return torch.cat([torch.empty(0, 3, size, size), *(F.interpolate(x, size, mode="bicubic") for x in patches)])


def bent(pictures: Tensor, move: Tensor) -> Tensor:
    """Pictures whose points are moved by (b, 2, k, k), of the width, smoothly in between."""
    b, _, h, w = pictures.shape
    still = F.affine_grid(torch.eye(2, 3, device=pictures.device).expand(b, 2, 3), (b, 1, h, w), align_corners=False)
    move = F.interpolate(move, (h, w), mode="bicubic", align_corners=True)
    grid = still + 2 * rearrange(move, "b c h w -> b h w c")
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Pictures (b, c, H, W) under Gaussian blurs of sigma (b, 1), of the width: as matrices, so that any is as fast."""
    size = x.shape[-1]
    at = torch.arange(size, device=x.device)
    square = (at[:, None] - at) ** 2
    kernel = (-square / (2 * (sigma[..., None] * size).clamp(min=0.2) ** 2)).exp()  # 0.2 pixels blur nothing
    kernel = (kernel / kernel.sum(-1, keepdim=True))[:, None]
    return kernel @ x @ kernel.mT
