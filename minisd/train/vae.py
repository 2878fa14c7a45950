"""The VAE stage: pixels to latents and back.

In: pictures. Out: encoder and decoder, and the scale factor that gives latents unit variance.
Kingma & Welling 2013, https://arxiv.org/abs/1312.6114
"""

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from ..config import VAEConfig
from ..image import grid, to_pil
from ..nn.vae import VAE
from .data import Examples, batch_indices
from .loop import generator
from .recipe import VaeRecipe

# L1 is smooth below two grey levels. Its gradient is a sign, and in flat ground it was the rounding that decided which:
# two processes were off from one by up to 4e-4 of the loss after 50 steps, and are by 1e-6.
SOFT = 4 / 255


class VaeStage:
    """L1 and squared error on pixels, L1 on their differences (edges), and a light KL term."""

    name = "vae"

    def __init__(self, recipe: VaeRecipe, config: VAEConfig, examples: Examples, start: dict[str, Tensor]) -> None:
        self.recipe, self.examples = recipe, examples
        torch.manual_seed(recipe.seed)
        self.module = VAE(config).to(memory_format=torch.channels_last)
        with torch.no_grad():  # start almost without noise, or the encoder must first outgrow it
            self.module.quant.bias[config.latent_channels :] = -6.0
        if start:
            self.module.load_state_dict(start)
        if recipe.decoder_only:
            self.module.encoder.requires_grad_(False)
            self.module.quant.requires_grad_(False)

    def groups(self) -> list[dict]:
        return [{"params": [p for p in self.module.parameters() if p.requires_grad], "scale": 1.0}]

    def prepare(self, step: int, part: slice) -> tuple[Tensor, Tensor]:
        """Pictures (b, 3, H, W) and the noise (b, c, h, w) of their latents."""
        recipe, config = self.recipe, self.module.config
        images = self.images(batch_indices(step, recipe.batch)[part], "train")
        side = self.examples.size // config.factor
        noise = torch.randn(recipe.batch, config.latent_channels, side, side, generator=generator(recipe.seed, step))
        return images, noise[part].to(images.device)

    def loss(self, images: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        recipe = self.recipe
        mean, logvar = (x.float() for x in self.module.encode(images))
        out = self.module.decode(mean + noise * (logvar / 2).exp()).float()
        pixel = F.smooth_l1_loss(out, images, beta=SOFT)
        edge = sum(F.smooth_l1_loss(out.diff(dim=d), images.diff(dim=d), beta=SOFT) for d in (2, 3))
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).mean()
        square = F.mse_loss(out, images)  # L1 alone is slow to see that there is anything but background
        errors = (out.detach().clamp(-1, 1) - images).square().mean(dim=(1, 2, 3))
        psnr = -10 * torch.log10(errors / 4).mean()  # of each picture: their mean does not depend on who has which
        return pixel + square + recipe.gradient * edge + recipe.kl * kl, {"psnr": psnr, "kl": kl.detach()}

    def images(self, indices: range, split: str) -> Tensor:
        x = self.examples.pictures(indices, split)
        return x.to(next(self.module.parameters()).device, memory_format=torch.channels_last)

    def grid(self) -> Image:
        """Unseen pictures above, their reconstructions below."""
        images = self.images(range(16), "test")
        out = self.module.decode(self.module.encode(images)[0])
        psnr = -10 * torch.log10(F.mse_loss(out.clamp(-1, 1), images) / 4)
        tqdm.write(f"vae: PSNR on 16 unseen pictures {psnr:.1f} dB")
        rows = torch.stack([images.view(2, 8, *images.shape[1:]), out.view(2, 8, *out.shape[1:])], dim=1)
        return grid(to_pil(rows.flatten(0, 2)), columns=8)

    @torch.no_grad()
    def unit_scale(self) -> float:
        """1 / standard deviation of the latents of 512 pictures; the stage's config has scale_factor 1."""
        latents = [self.module.encode(self.images(range(i, i + 32), "train"))[0] for i in range(0, 512, 32)]
        return 1 / torch.cat(latents).float().std().item()
