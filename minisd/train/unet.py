"""The UNet stage: denoise cached latents, told by the text tower what they show.

In: the CLIP text tower, the VAE, pictures with captions. Out: the UNet (and the text tower, where it is tuned on).
The loss is |denoised - x0|^2 through the sampler's own scalings, weighted so that it is the error of what the network
predicts (eps or v), capped where there is hardly any noise (min-SNR, Hang et al. 2023,
https://arxiv.org/abs/2303.09556).
"""

from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm

from ..config import Config
from ..diffusion.denoise import PREDICTION, c_in, denoiser
from ..diffusion.guidance import guided
from ..diffusion.samplers import SAMPLERS, final
from ..diffusion.schedule import make_plan, noise_table
from ..image import grid, to_pil
from ..nn.attention import Attention
from ..nn.blocks import ResBlock, TransformerBlock
from ..nn.conditioning import Conditioning
from ..nn.unet import UNet
from ..nn.vae import VAE
from ..noise import ImageNoise
from ..text.tokenizer import Tokenizer
from .data import Examples
from .loop import fast_core, generator
from .recipe import UnetRecipe


class UnetStage:
    """Diffusion training on latents made once."""

    name = "unet"

    def __init__(
        self,
        recipe: UnetRecipe,
        config: Config,
        tokenizer: Tokenizer | None,
        text: nn.Module,
        vae: VAE,
        latents: Tensor,
        examples: Examples,
        unet: UNet | None = None,
    ) -> None:
        """`latents` are those of the first training pictures; `unet` is trained on, None: a fresh one.

        Raises:
            ValueError: the recipe names a clip skip that the text tower does not have.
        """
        for skip in recipe.clip_skips:
            config.check_clip_skip(skip)
        self.recipe, self.config, self.tokenizer, self.vae = recipe, config, tokenizer, vae
        self.table = noise_table(config.noise)
        self.latents, self.examples = latents, examples  # latent i is that of training picture i
        torch.manual_seed(recipe.seed)
        unet = (initialise(UNet(config.unet)) if unet is None else unet).to(memory_format=torch.channels_last)
        if recipe.checkpointing:
            compute_twice(unet)
        text.requires_grad_(recipe.text_lr > 0)
        self.module = nn.ModuleDict({"unet": unet, "text": text})
        for module in self.module.modules():
            if isinstance(module, Attention):
                module.core = fast_core()

    def groups(self) -> list[dict]:
        groups = [{"params": list(self.module["unet"].parameters()), "scale": 1.0}]
        if self.recipe.text_lr > 0:
            groups.append({"params": list(self.module["text"].parameters()), "scale": self.recipe.text_lr})
        return groups

    def prepare(self, step: int, part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, int | None]:
        """Latents (b, c, h, w), ids (b, l) of their prompts, table times (b,), noise (b, c, h, w) and the clip skip."""
        # The whole batch is drawn by every process, so that its parts are the same however many share it.
        draw, b = generator(self.recipe.seed, step), self.recipe.batch
        chosen = torch.randint(len(self.latents), (b,), generator=draw)
        texts = self.examples.captions(chosen.tolist(), step)
        dropped = torch.rand(b, generator=draw) < self.recipe.drop_prompt
        texts = ["" if drop else text for text, drop in zip(texts, dropped, strict=True)]
        # One number from each of b equal stretches of 0..1: every step sees all noise levels. A power below 1 moves
        # them towards high noise, where shapes and places are decided and most is left to learn.
        u = (torch.arange(b) + torch.rand(b, generator=draw)) / b
        last = len(self.table.sigmas) - 1  # a u next to 1 is rounded to 1, once in 100,000 steps
        t = (u**self.recipe.time_power * (last + 1)).long().clamp(max=last)
        x0 = self.latents[chosen].float()
        noise = torch.randn(x0.shape, generator=draw)
        skips = self.recipe.clip_skips or (None,)
        skip = skips[int(torch.randint(len(skips), (), generator=draw))]
        return x0[part], self.ids(texts[part]), t[part], noise[part], skip

    def loss(
        self, x0: Tensor, ids: Tensor, t: Tensor, noise: Tensor, skip: int | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.denoising_loss(x0, ids, t, noise, skip)
        # What cannot be known (where an object will be) makes the loss grow about with the square of the time, and
        # its noise drowns the middle times, where shapes are drawn. Divided by it, all levels have the same say.
        share = (t / len(self.table.sigmas)).clamp(min=0.15).to(loss.device) ** -self.recipe.time_balance
        return (share * loss).mean(), {}

    def denoising_loss(self, x0: Tensor, ids: Tensor, t: Tensor, noise: Tensor, skip: int | None = None) -> Tensor:
        """Weighted squared error (b,) of the estimate of x0 (b, c, h, w) at table times t (b,), by a clip skip."""
        device = self.device
        sigma = self.table.sigmas[t].float().to(device).view(-1, 1, 1, 1)
        x0, noise = x0.to(device), noise.to(device)
        x = (x0 + sigma * noise) * c_in(sigma)
        cond = self.told(ids.to(device), skip)
        f = self.module["unet"](x.contiguous(memory_format=torch.channels_last), t.to(device), cond)
        c_skip, c_out = PREDICTION[self.config.noise.prediction](sigma)
        denoised = c_skip * (x / c_in(sigma)) + c_out * f.float()
        weight = (sigma**-2 + PLAIN[self.config.noise.prediction]).clamp(max=self.recipe.snr_gamma)
        return (weight * (denoised - x0) ** 2).mean(dim=(1, 2, 3))

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def ids(self, texts: list[str]) -> Tensor:
        """What `told` takes of some captions, (b, ...)."""
        return self.tokenizer(texts)

    def told(self, ids: Tensor, skip: int | None = None) -> Conditioning:
        """What the UNet is told of some captions, by a clip skip; None: the model's own."""
        return Conditioning(self.module["text"](ids, skip)[0])

    def grid(self) -> Image:
        """Unseen prompts drawn with the model's default steps; prints the loss on unseen examples."""
        recipe, count = self.recipe, self.recipe.unseen
        texts, losses = self.examples.captions(range(count), 0, "test"), []
        t = ((torch.arange(count) + 0.5) / count * len(self.table.sigmas)).long()
        noise = torch.randn(count, *self.latents.shape[1:], generator=generator(recipe.seed, -1))
        for i in range(0, count, recipe.batch):
            part = slice(i, min(i + recipe.batch, count))
            x0 = self.vae.encode(self.examples.pictures(range(count)[part], "test").to(self.device))[0].float()
            losses.append(self.denoising_loss(x0, self.ids(texts[part]), t[part], noise[part]))
        tqdm.write(f"{self.name}: loss on {count} unseen examples {torch.cat(losses).mean().item():.5f}")
        return grid(to_pil(self.vae.decode(self.draw(texts[: recipe.shown]))), columns=8)

    def draw(self, texts: list[str]) -> Tensor:
        """Latents (b, c, h, w) of some prompts, by the config's own defaults."""
        defaults = self.config.defaults
        cond, uncond = (self.told(self.ids(t).to(self.device)) for t in (texts, [""] * len(texts)))
        plan = make_plan(self.table, defaults.steps, defaults.sampler, defaults.schedule, defaults.steps_offset)
        predict = guided(self.module["unet"], cond, uncond, defaults.cfg_scale)
        denoise = denoiser(predict, plan, self.config.noise.prediction)
        noise = ImageNoise(range(len(texts)), tuple(self.latents.shape[1:]), self.device)
        x = noise() * plan.start
        for step in SAMPLERS[defaults.sampler](denoise, x, plan, noise=noise):
            x = step.x
        return final(x, plan)


def compute_twice(unet: UNet) -> None:
    """Let the backward pass compute what happens inside the blocks again, in place of keeping it."""
    for module in unet.modules():
        if isinstance(module, ResBlock | TransformerBlock):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def initialise(unet: UNet) -> UNet:
    """Every residual branch and the output start at zero, so that the network starts as the identity."""
    ends = [unet.conv_out]
    for module in unet.modules():
        ends += [getattr(module, name) for name in ("conv2", "proj_out") if hasattr(module, name)]
    for end in ends:
        nn.init.zeros_(end.weight)
        nn.init.zeros_(end.bias)
    return unet


# (SNR + this) * |denoised - x0|^2 is the squared error of eps or of v itself; what predicts x0 is trained as eps is.
PLAIN = {"eps": 0.0, "v": 1.0, "x0": 0.0}
