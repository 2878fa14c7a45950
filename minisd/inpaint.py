"""A picture to start from and a mask: what stays, and what is drawn anew.

In: pixels or pictures, a mask (white is drawn anew). Out: `Given`: latents to start from, a mask to blend with, or the
extra channels of a UNet made for inpainting. Rombach et al. 2022, https://arxiv.org/abs/2112.10752
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from .config import UNetConfig, check
from .diffusion.denoise import Denoise
from .image import to_tensor
from .nn.vae import VAE

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Given:
    """What a picture and a mask come to, float32 on the model's device; None where there is none."""

    original: Tensor | None = None  # (1, c, h, w): the picture to start from
    mask: Tensor | None = None  # (1, 1, h, w): 1 is drawn anew, 0 blended back to the original at every step
    extra: Tensor | None = None  # (1, 1 + c, h, w): mask and masked picture, for a UNet that is told


@torch.no_grad()
def start_from(
    vae: VAE, unet: UNetConfig, image: Image | Tensor | None, mask: Image | Tensor | None, size: Size, strength: float
) -> Given:
    """Read a picture and a mask for a model.

    A UNet with 1 + c channels more than it gives back is told mask and masked picture, as diffusers does it (the
    posterior's mean in place of a sample); nothing is blended then, and at strength 1 it starts from noise alone.
    Without a picture it draws all of it.

    Raises:
        ValueError: shapes that do not fit, or a mask without a picture.
    """
    check(mask is None or image is not None, "a mask says what to redraw of an image: give the image too")
    device, factor = next(vae.parameters()).device, vae.config.factor
    told = unet.in_channels != unet.out_channels
    pixels = None if image is None else pixels_of(image, size).to(device)
    area = None if mask is None else mask_of(mask, size).to(device)
    original = None if pixels is None else vae.encode(pixels)[0].float()
    if not told:
        return Given(original, None if area is None else F.interpolate(area, scale_factor=1 / factor, mode="area"))
    area = torch.ones(1, 1, *size, device=device) if area is None else (area >= 0.5).float()
    seen = torch.zeros(1, 3, *size, device=device) if pixels is None else pixels
    masked = vae.encode(seen * (area < 0.5))[0].float()
    extra = torch.cat([F.interpolate(area, scale_factor=1 / factor), masked], dim=1)
    return Given(None if strength == 1 else original, None, extra)


def pixels_of(image: Image | Tensor, size: Size) -> Tensor:
    """A picture, resized, or pixels (1, 3, H, W) in [-1, 1], as they are."""
    pixels = image if isinstance(image, Tensor) else to_tensor(image.convert("RGB").resize(size[::-1]))
    wanted, shape = [1, 3, *size], list(pixels.shape)
    check(shape == wanted, f"the image must have the shape {wanted}, not {shape}")
    return pixels.float()


def mask_of(mask: Image | Tensor, size: Size) -> Tensor:
    """A picture, resized, or a mask (1, 1, H, W) in [0, 1]: (1, 1, H, W), 1 is drawn anew."""
    if isinstance(mask, Tensor):
        return F.interpolate(mask.float(), size=size, mode="area")
    return (to_tensor(mask.convert("L").resize(size[::-1]))[:, :1] + 1) / 2


def keep_outside(mask: Tensor, original: Tensor, denoise: Denoise) -> Denoise:
    """Inpainting by blending: outside the mask the estimate of x0 is the original itself."""

    def blended(x: Tensor, sigma: Tensor) -> Tensor:
        return original + mask * (denoise(x, sigma) - original)

    return blended
