"""Two runs for a large picture: drawn small, where a model composes best, then enlarged and drawn over.

In: the settings of the call and its small pictures. Out: the settings of the second run and what it starts from.
The second run is image-to-image with the same prompts, seeds, sampler and schedule.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from PIL.Image import Image, Resampling
from torch import Tensor

from .image import to_tensor
from .settings import Settings

FIRST_OUTPUT = {"picture": "pil", "latent": "latent"}  # hires_upscale: what the first run has to hand over


def second_run(first: Settings, factor: int) -> Settings:
    """The settings of the second run. Its sides are whole latents, as near as can be to the scale."""
    width, height = (round(side * first.hires / factor) * factor for side in (first.width, first.height))
    steps = first.hires_steps or first.steps
    once = {"num_images": 1, "hires": None}  # its prompts come as many times as they are drawn
    return replace(first, width=width, height=height, steps=steps, strength=first.hires_strength, **once)


def enlarge(small: Sequence[Image] | Tensor, width: int, height: int, factor: int) -> Tensor:
    """Small pictures to pixels (b, 3, height, width) in [-1, 1], or their latents to (b, c, h, w)."""
    if isinstance(small, Tensor):
        return F.interpolate(small, size=(height // factor, width // factor), mode="bilinear")
    return torch.cat([to_tensor(picture.resize((width, height), Resampling.LANCZOS)) for picture in small])
