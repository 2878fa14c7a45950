"""The whole story: a prompt in, pictures out. Here all parts meet, and nowhere else.

prompt -> text/ -> Conditioning -> guided UNet -> denoiser -> sampler -> latent -> VAE -> picture.
Rombach et al. 2022, https://arxiv.org/abs/2112.10752
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Unpack

import torch
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from .config import VERSION, Config, check, one_of
from .diffusion.denoise import denoiser
from .diffusion.guidance import guided, table_times
from .diffusion.samplers import Step, final, get_sampler
from .diffusion.schedule import NoiseTable, Plan, make_plan, noise_table
from .guards import decode, finite, in_batches
from .image import to_pil
from .inpaint import keep_outside, start_from
from .nn.conditioning import Conditioning
from .nn.unet import UNet
from .nn.vae import VAE
from .runtime import ImageNoise, Runtime
from .settings import Options, Settings, resolve
from .text.encode import encode
from .text.tokenizer import Tokenizer

OUTPUTS = ("pil", "latent", "tensor")


@dataclass
class Model:
    """The parts of a model, ready to draw. `text` holds one CLIP tower, or two (SDXL)."""

    config: Config
    text: nn.ModuleList
    unet: UNet
    vae: VAE
    tokenizers: list[Tokenizer]
    runtime: Runtime
    origin: dict[str, str] = field(default_factory=dict)  # name and hash, for a picture's recipe
    originals: dict[str, Tensor] = field(default_factory=dict)  # weights as they were before a LoRA was merged

    @cached_property
    def table(self) -> NoiseTable:
        """The noise table the UNet was trained on."""
        return noise_table(self.config.noise)

    def batch_size(self, asked: int | None) -> int:
        """Images at a time. On a CPU one: the picture of seed + i is then the same in every call, bit for bit."""
        return asked or (1 if self.runtime.device.type == "cpu" else 8)

    @torch.no_grad()
    def encode(
        self,
        prompts: Sequence[str],
        clip_skip: int | None = None,
        emphasis: str | None = None,
        long_prompt: str | None = None,
        size: tuple[int, int] | None = None,
    ) -> Conditioning:
        """Prompts to `Conditioning`: context (b, l, e), and a vector (b, v) where the UNet takes one.

        Args:
            clip_skip: 1 is the last block, 2 the one before; None: the model's own.
            emphasis: how brackets are read and applied: "a1111", "no-norm", "comfy", or "off": they are plain text.
            long_prompt: of a prompt that is too long: "chunk", "window", "truncate", "summarize" or "error".
            size: (height, width) in pixels, for models that are told.

        Raises:
            ValueError: a number or name that does not fit the model.
        """
        check(not isinstance(prompts, str), "encode takes a list of prompts")
        s = resolve(self.config, clip_skip=clip_skip, emphasis=emphasis, long_prompt=long_prompt)
        size = size or (s.height, s.width)
        return encode(self.text, self.tokenizers, prompts, self.config, s.clip_skip, s.long_prompt, size, s.emphasis)


def generate(
    model: Model,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    image: Image | Tensor | None = None,
    mask: Image | Tensor | None = None,
    latents: Tensor | None = None,
    output: str = "pil",
    progress: bool = False,
    **options: Unpack[Options],
) -> list[Image] | Tensor:
    """Draw pictures.

    Args:
        prompt: one, or a list; each is drawn `num_images` times. Image i of the call has seed + i.
        negative_prompt: what to lead away from; None: the model's own rule (the empty prompt; SDXL folders: zeros).
        image: start from this picture (img2img) as far as `strength` says.
        mask: with `image`: white is drawn anew, black stays.
        latents: unit-variance noise (b, c, h, w) in place of the seeded one.
        output: "pil" for RGB pictures with their recipe in `.info`; "latent" (b, c, h, w) in the UNet's space;
            "tensor" pixels (b, 3, H, W) in [-1, 1]. Tensors are float32 on the CPU.
        progress: show a bar on stderr.
        options: steps, cfg_scale, sampler, seed, width, height, num_images and the rest of `minisd.settings.Options`.

    Raises:
        ValueError: something that does not fit, before anything is drawn.
        FloatingPointError: the model gave numbers that are not finite.
        torch.OutOfMemoryError: not even one picture fits; before that larger batches were halved, which is logged.
    """
    one_of("output", output, OUTPUTS)
    job = Job(model, prompt, negative_prompt, resolve(model.config, **options), image, mask, latents)
    results: list = []
    with tqdm(total=len(job) * len(job.plan.t), unit="step", disable=not progress) as bar:
        size = model.batch_size(job.settings.batch_size)
        for batch, z in in_batches(len(job), size, partial(job.draw, bar=bar)):
            results.append(job.finish(z, batch, output))
    if output != "pil":
        return torch.cat(results)
    pictures = [picture for batch in results for picture in batch]
    for i, picture in enumerate(pictures):
        picture.info["minisd"] = json.dumps(job.recipe(i), ensure_ascii=False)
    return pictures


def sample(
    model: Model,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    image: Image | Tensor | None = None,
    mask: Image | Tensor | None = None,
    latents: Tensor | None = None,
    **options: Unpack[Options],
) -> Iterator[Step]:
    """The glass box: the same as `generate`, one `Step(i, sigma, x, denoised)` at a time, all images in one batch.

    x and denoised are (b, c, h, w) in sigma space on the model's device; `model.vae.decode(step.denoised)` shows
    what the model believes so far.
    """
    job = Job(model, prompt, negative_prompt, resolve(model.config, **options), image, mask, latents)
    return job.steps(slice(0, len(job)))


class Job:
    """One call: its prompts, seeds and plan, and how a batch of it is drawn."""

    def __init__(
        self,
        model: Model,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None,
        settings: Settings,
        image: Image | Tensor | None,
        mask: Image | Tensor | None,
        latents: Tensor | None,
    ) -> None:
        self.model, self.settings, self.latents = model, settings, latents
        self.prompts, self.negatives = pair(prompt, negative_prompt, settings.num_images)
        # The model's own rule for no negative prompt: most encode "", SDXL's folders ask for zeros.
        self.zero_negative = negative_prompt is None and model.config.defaults.zero_negative
        self.seeds = [settings.seed + i for i in range(len(self.prompts))]
        factor = model.config.vae.factor
        self.shape = (model.config.unet.out_channels, settings.height // factor, settings.width // factor)
        if latents is not None:
            wanted, given = [len(self), *self.shape], list(latents.shape)
            check(given == wanted, f"latents must have the shape {wanted}, not {given}")
        size = (settings.height, settings.width)
        self.given = start_from(model.vae, model.config.unet, image, mask, size, settings.strength)
        self.plan = self.make_plan()

    def __len__(self) -> int:
        return len(self.prompts)

    def make_plan(self) -> Plan:
        """The levels of the run; img2img keeps the last int(steps * strength) of them, as diffusers does."""
        s, default = self.settings, self.model.config.defaults
        plan = make_plan(
            self.model.table, s.steps, s.sampler, s.schedule, default.steps_offset, default.final_table_sigma
        )
        return plan if self.given.original is None else plan.tail(int(s.steps * s.strength))

    def draw(self, batch: slice, bar: tqdm) -> Tensor:
        """The final latents of one batch (b, c, h, w), float32; where no step is run, the original's."""
        bar.update(batch.start * len(self.plan.t) - bar.n)  # a batch that did not fit left the bar too far
        x = None
        for step in self.steps(batch):
            x = step.x
            bar.update(batch.stop - batch.start)
        return self.given.original.repeat(batch.stop - batch.start, 1, 1, 1) if x is None else final(x, self.plan)

    @torch.no_grad()
    def steps(self, batch: slice) -> Iterator[Step]:
        """Draw one batch, step by step: the heart of minisd."""
        model, s = self.model, self.settings
        noise = ImageNoise(self.seeds[batch], self.shape, model.runtime.device)
        x = self.start(batch, noise)
        cond, uncond = self.encode(self.prompts[batch]), self.encode(self.negatives[batch])
        finite(torch.cat([cond.context, uncond.context], dim=1), "the text encoder", self.seeds[batch])
        if self.zero_negative:
            uncond = without_text(uncond, model.config.text[-1].projection)
        interval = table_times(s.guidance_interval, model.config.noise.steps)
        predict = guided(model.unet, cond, uncond, s.cfg_scale, s.guidance_rescale, interval)
        denoise = denoiser(predict, self.plan, model.config.noise.prediction)
        if self.given.mask is not None:
            denoise = keep_outside(self.given.mask, self.given.original, denoise)
        options = {} if s.eta is None else {"eta": s.eta}
        yield from get_sampler(s.sampler)(denoise, x, self.plan, noise=noise, **options)

    def encode(self, texts: list[str]) -> Conditioning:
        """Prompts of one batch to what the UNet is told."""
        model, s = self.model, self.settings
        how = (s.clip_skip, s.long_prompt, (s.height, s.width), s.emphasis)
        cond = encode(model.text, model.tokenizers, texts, model.config, *how)
        extra = self.given.extra
        return cond if extra is None else replace(cond, concat=extra.expand(len(texts), -1, -1, -1))

    def start(self, batch: slice, noise: ImageNoise) -> Tensor:
        """x at the plan's first level: noise alone, or the original with noise added."""
        first = noise() if self.latents is None else self.latents[batch].float().to(noise.device)
        if self.given.original is None:
            return first * self.plan.start
        return self.given.original + first * float(self.plan.sigmas[0])

    @torch.no_grad()
    def finish(self, z: Tensor, batch: slice, output: str) -> list[Image] | Tensor:
        """Final latents to what the caller asked for."""
        finite(z, "the UNet", self.seeds[batch])
        if output == "latent":
            return z.cpu()
        pixels = decode(self.model.vae, z, self.settings.vae_tiling, self.seeds[batch])
        return to_pil(pixels) if output == "pil" else pixels.cpu()

    def recipe(self, i: int) -> dict[str, Any]:
        """All that drawing image i again takes, as plain data."""
        return {
            "prompt": self.prompts[i],
            "negative_prompt": None if self.zero_negative else self.negatives[i],
            **self.settings.to_dict(),
            "seed": self.seeds[i],
            **self.model.origin,
            "device": self.model.runtime.device.type,
            "dtype": str(self.model.runtime.dtype).removeprefix("torch."),
            "minisd": VERSION,
            "torch": torch.__version__,
        }


def pair(prompt: str | Sequence[str], negative: str | Sequence[str] | None, n: int) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts of the same number, each prompt n times in a row.

    Raises:
        ValueError: no prompt, or lists that do not pair up.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    check(len(prompts) > 0, "no prompt was given")
    single = negative is None or isinstance(negative, str)
    negatives = [negative or ""] * len(prompts) if single else list(negative)
    counts = f"{len(prompts)} prompts and {len(negatives)} negative prompts"
    check(len(prompts) == len(negatives), f"{counts} do not pair up")
    for text in (*prompts, *negatives):
        check(isinstance(text, str), f"a prompt must be text, not {text!r}")
    return [p for p in prompts for _ in range(n)], [p for p in negatives for _ in range(n)]


def without_text(cond: Conditioning, pooled: int) -> Conditioning:
    """Zeros in place of the context and of the vector's first `pooled` numbers; the sizes behind them stay."""
    vector = None if cond.vector is None else cond.vector.clone()
    if vector is not None:
        vector[:, :pooled] = 0
    return Conditioning(torch.zeros_like(cond.context), vector, cond.concat)
