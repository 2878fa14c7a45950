"""A picture to start from and a mask: what stays, and what is drawn anew.

In: a picture, pixels or latents, and a mask (white is drawn anew). Out: `Given`: latents to start from, a mask to blend
with, or the extra channels of a UNet made for inpainting. Rombach et al. 2022, https://arxiv.org/abs/2112.10752
"""

import hashlib
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL.Image import Image
from torch import Tensor

from .config import Config, check
from .diffusion.denoise import Denoise
from .guards import encode
from .image import to_tensor
from .nn.vae import VAE
from .picture import as_mask, as_rgb, describe, fit, known, own_size
from .settings import HIRES, Options, Settings, resolve

log = logging.getLogger("minisd")

Picture = Image | Tensor | None
FARTHEST = 2.0  # of pixels that a VAE decoded and nobody cut off


@dataclass(frozen=True)
class Given:
    """What a picture and a mask come to, float32 on the model's device; None where there is none."""

    original: Tensor | None = None  # (b, c, h, w): the latents to start from
    mask: Tensor | None = None  # (1, 1, h, w): 1 is drawn anew, 0 blended back to the original at every step
    extra: Tensor | None = None  # (1, 1 + c, h, w): mask and masked picture, for a UNet that is told
    pixels: Tensor | None = None  # (1, 3, H, W): the picture itself, put back at the end
    area: Tensor | None = None  # (1, 1, H, W): where it is not
    told: dict[str, Any] = field(default_factory=dict)  # what a recipe says of picture and mask

    def start(self, alone: Tensor, noise: Tensor, batch: slice, strength: float) -> Tensor:
        """x (b, c, h, w) at the run's first level: noise alone, or the original with noise added.

        Args:
            alone: what a run without a picture starts from. At strength 1 this one does too, inside its mask.
            noise: as strong as the first level.
        """
        if self.original is None:
            return alone
        noised = self.original[batch] + noise
        return noised if strength < 1 else blend(self.mask, alone, noised)

    def keep_outside(self, denoise: Denoise) -> Denoise:
        """Inpainting by blending: outside the mask the estimate of x0 is the original itself."""
        if self.mask is None:
            return denoise
        return lambda x, sigma: blend(self.mask, denoise(x, sigma), self.original[:1])

    def finish(self, z: Tensor) -> Tensor:
        """The final latents: outside the mask the original's, also where a run ends above sigma 0."""
        return z if self.mask is None else blend(self.mask, z, self.original[:1])

    def put_back(self, pixels: Tensor) -> Tensor:
        """Pixels (b, 3, H, W): outside the mask the picture's own, which the VAE does not give back as they were."""
        return pixels if self.area is None else blend(self.area, pixels, self.pixels)

    def recipe(self, settings: Settings) -> dict[str, Any]:
        """The settings as plain data, without those that play no part, and what was given."""
        needs = {"strength": "image" in self.told, "mask_blur": self.area is not None}
        return {key: value for key, value in settings.to_dict().items() if needs.get(key, True)} | self.told


def blend(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Exactly `inside` where the mask is 1, exactly `outside` where it is 0."""
    return mask * inside + (1 - mask) * outside


def settle(config: Config, image: Picture, mask: Picture, options: Options) -> Settings:
    """The settings of a call. An image brings its size along, unless width or height are named.

    Raises:
        ValueError: as `resolve`, and for an option that plays no part.
    """
    needs = [("strength", "an image", image), ("mask_blur", "a mask", mask)]
    needs += [(option, "hires", options.get("hires")) for option in HIRES if option != "hires"]
    for option, what, given in needs:
        check(given is not None or options.get(option) is None, f"{option} means nothing without {what}")
    both = mask is not None and options.get("hires") is not None
    check(not both, "hires draws all of the picture over: it does not go with a mask")
    own: Options = {}
    if image is not None and options.get("width") is None and options.get("height") is None:
        own["width"], own["height"] = size_of(image, config)
    if isinstance(image, Image) and "outpaint" in known(image) and options.get("strength") is None:
        own["strength"] = 1.0  # what is new has nothing to start from
    settings = resolve(config, **{**options, **own})
    steps, strength = settings.steps, settings.strength
    if image is not None and strength > 0 and int(steps * strength) == 0:
        log.info("strength %g of %d steps runs none: the picture is only encoded and decoded", strength, steps)
    return settings


def size_of(image: Image | Tensor, config: Config) -> tuple[int, int]:
    """The width and height that an image is drawn at where the caller names none."""
    if isinstance(image, Image):
        return own_size(config, *as_rgb(image).size)
    check(isinstance(image, Tensor) and image.ndim == 4, "image must be a PIL image or a tensor (b, c, h, w)")
    scale = 1 if image.shape[1] == 3 else config.vae.factor
    return image.shape[3] * scale, image.shape[2] * scale


@torch.no_grad()
def start_from(vae: VAE, config: Config, settings: Settings, image: Picture, mask: Picture, count: int) -> Given:
    """Read a picture and a mask for a model.

    A UNet with 1 + c channels more than it gives back is told mask and masked picture, as diffusers does it (the
    posterior's mean in place of a sample); nothing is blended then, and at strength 1 it starts from noise alone.
    Without a picture it draws all of it.

    Args:
        image: a picture (see `fit`), pixels (1 or count, 3, H, W) in [-1, 1], or latents (1 or count, c, h, w).
        mask: a picture of the image's size, or (1, 1, H, W) in [0, 1]; 1 is drawn anew.

    Raises:
        ValueError: shapes that do not fit, or a mask without a picture.
        FloatingPointError: the VAE's numbers are not finite.
    """
    check(mask is None or image is not None, "a mask says what to redraw of an image: give the image too")
    image = as_rgb(image) if isinstance(image, Image) else image
    mask = as_mask(mask) if isinstance(mask, Image) else mask
    device, is_told = next(vae.parameters()).device, config.unet.in_channels > config.unet.out_channels
    pixels, original, area, kept = None, None, None, None
    if image is not None:
        pixels, original = read_image(image, config, settings, count)
    if mask is not None:
        check(pixels is not None and len(pixels) == 1, "a mask goes with one image, in pixels")
        kept, area = pixels.to(device), read_mask(mask, image, settings).to(device)
    if settings.strength == 1 and (area is None or is_told):
        original = None
    elif image is not None:
        original = (encode(vae, pixels) if original is None else original.to(device)).expand(count, -1, -1, -1)
    told = told_of(image=image, mask=mask)
    if is_told:
        return Given(original, None, told_channels(vae, settings, kept, area), kept, area, told)
    # A latent with any pixel to be drawn anew is drawn anew: what that changes beyond the mask is put back.
    return Given(original, None if area is None else F.max_pool2d(area, config.vae.factor), None, kept, area, told)


def told_channels(vae: VAE, settings: Settings, pixels: Tensor | None, area: Tensor | None) -> Tensor:
    """Mask and masked picture (1, 1 + c, h, w). Without a mask all is drawn anew, and there is nothing to see."""
    size = (settings.height, settings.width)
    hard = torch.ones(1, 1, *size, device=next(vae.parameters()).device) if area is None else (area >= 0.5).float()
    seen = hard.new_zeros(1, 3, *size) if area is None else pixels * (hard < 0.5)
    return torch.cat([F.interpolate(hard, scale_factor=1 / vae.config.factor), encode(vae, seen)], dim=1)


def read_image(
    image: Image | Tensor, config: Config, settings: Settings, count: int
) -> tuple[Tensor | None, Tensor | None]:
    """(pixels, None) or (None, latents), float32.

    Raises:
        ValueError: a shape that does not fit, or numbers that are no picture.
    """
    if isinstance(image, Image):
        return to_tensor(fit(image, settings.width, settings.height)), None
    check(isinstance(image, Tensor), f"image must be a PIL image or a tensor, not {type(image).__name__}")
    size, factor, shape = (settings.height, settings.width), config.vae.factor, list(image.shape)
    pixels, latents = [3, *size], [config.unet.out_channels, *(side // factor for side in size)]
    number = "1" if count == 1 else f"1 or {count}"
    fits = shape[1:] in (pixels, latents) and shape[0] in (1, count)
    check(fits, f"the image must be {number} of the shape {pixels} in pixels, or {latents} in latents, not {shape}")
    check_numbers("image", image)
    if shape[1:] != pixels:
        return None, image.float()
    far = float(image.abs().max())
    check(far <= FARTHEST, f"the image must be in -1..1, black to white, and goes to {far:g}: 0..255 is x / 127.5 - 1")
    return image.float(), None


def check_numbers(what: str, values: Tensor) -> None:
    """Refuse a tensor of whole numbers, or one that holds NaN or infinity."""
    check(values.is_floating_point(), f"{what} must be a tensor of floats, not of {values.dtype}")
    check(bool(values.isfinite().all()), f"there are numbers in {what} that are not finite")


def read_mask(mask: Image | Tensor, image: Image | Tensor, settings: Settings) -> Tensor:
    """A mask (1, 1, H, W) in [0, 1], its edge softened."""
    size = settings.width, settings.height
    if isinstance(mask, Image):
        own, its = (f"{w} x {h} pixels" for w, h in (image.size if isinstance(image, Image) else size, mask.size))
        check(own == its, f"the mask has {its}, the image {own}: they must be the same")
        area = (to_tensor(fit(mask, *size))[:, :1] + 1) / 2
    else:
        check(isinstance(mask, Tensor), f"mask must be a PIL image or a tensor, not {type(mask).__name__}")
        wanted, shape = [1, 1, *size[::-1]], list(mask.shape)
        check(shape == wanted, f"the mask must have the shape {wanted}, not {shape}")
        area = mask.float()
        check(bool(((area >= 0) & (area <= 1)).all()), "the mask must be in 0..1: 1 is drawn anew")
    return soften(area, settings.mask_blur) if settings.mask_blur else area


def soften(area: Tensor, deviation: float) -> Tensor:
    """A Gaussian over (1, 1, H, W), cut off at three deviations; beyond the edge it goes on as it ends."""
    reach = math.ceil(3 * deviation)
    bell = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=area.device) / deviation) ** 2)
    bell = bell / bell.sum()
    # One axis after the other: padded on all sides at once, a large deviation would have millions of pixels to blur.
    high = F.conv2d(F.pad(area, (0, 0, reach, reach), mode="replicate"), rearrange(bell, "n -> 1 1 n 1"))
    wide = F.pad(high, (reach, reach, 0, 0), mode="replicate")
    return F.conv2d(wide, rearrange(bell, "n -> 1 1 1 n")).clamp(0, 1)


def told_of(**given: Picture) -> dict[str, Any]:
    """What a recipe says of image and mask: not their pixels, but a hash by which the right ones are known."""
    said = {key: describe(x) if isinstance(x, Image) else digest(x) for key, x in given.items() if x is not None}
    margins = said.get("image", {}).get("outpaint")
    if margins and said.get("mask", {}).get("outpaint") == margins:  # one flag makes both again
        return {"image": {k: v for k, v in said["image"].items() if k != "outpaint"}, "outpaint": margins}
    return said


def digest(values: Tensor) -> dict[str, Any]:
    """The same of a tensor."""
    return {"sha256": hashlib.sha256(values.float().contiguous().cpu().numpy().tobytes()).hexdigest()}
