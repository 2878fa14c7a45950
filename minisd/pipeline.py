"""The whole story: a prompt in, pictures out. Here all parts meet, and nowhere else.

prompt -> text/ -> Conditioning -> guided UNet -> denoiser -> sampler -> latent -> VAE -> picture.
Rombach et al. 2022, https://arxiv.org/abs/2112.10752
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor, nn
from tqdm import tqdm

from .config import VERSION, Config, check, one_of
from .diffusion.denoise import Denoise, denoiser
from .diffusion.guidance import guided, table_times
from .diffusion.samplers import Step, final, get_sampler
from .diffusion.schedule import NoiseTable, Plan, make_plan, noise_table
from .image import to_pil, to_tensor
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
            emphasis: "off": brackets are plain text.
            long_prompt: "truncate" (logged) or "error".
            size: (height, width) in pixels, for models that are told.

        Raises:
            ValueError: a number or name that does not fit the model.
        """
        check(not isinstance(prompts, str), "encode takes a list of prompts")
        s = resolve(self.config, clip_skip=clip_skip, emphasis=emphasis, long_prompt=long_prompt)
        size = size or (s.height, s.width)
        return encode(self.text, self.tokenizers, prompts, self.config, s.clip_skip, s.long_prompt, size)


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
        options: steps, cfg_scale, sampler, schedule, eta, seed, width, height, num_images, batch_size, clip_skip,
            long_prompt, emphasis, guidance_rescale, guidance_interval, strength; see `minisd.settings.Options`.

    Raises:
        ValueError: something that does not fit, before anything is drawn.
        FloatingPointError: the model gave numbers that are not finite.
    """
    one_of("output", output, OUTPUTS)
    job = Job(model, prompt, negative_prompt, resolve(model.config, **options), image, mask, latents)
    results: list = []
    with tqdm(total=len(job) * len(job.plan.t), unit="step", disable=not progress) as bar:
        for batch in job.batches():
            x = None
            for step in job.steps(batch):
                x = step.x
                bar.update(batch.stop - batch.start)
            results.append(job.finish(x, batch, output))
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
        check(mask is None or image is not None, "a mask says what to redraw of an image: give the image too")
        self.original = None if image is None else self.encode_image(image)
        self.mask = None if mask is None else self.latent_mask(mask)
        self.plan = self.make_plan()

    def __len__(self) -> int:
        return len(self.prompts)

    def batches(self) -> list[slice]:
        """How the images are taken together."""
        size = self.model.batch_size(self.settings.batch_size)
        return [slice(i, min(i + size, len(self))) for i in range(0, len(self), size)]

    def make_plan(self) -> Plan:
        """The levels of the run; img2img keeps the last int(steps * strength) of them, as diffusers does."""
        s, default = self.settings, self.model.config.defaults
        plan = make_plan(
            self.model.table, s.steps, s.sampler, s.schedule, default.steps_offset, default.final_table_sigma
        )
        return plan if self.original is None else plan.tail(int(s.steps * s.strength))

    @torch.no_grad()
    def steps(self, batch: slice) -> Iterator[Step]:
        """Draw one batch, step by step: the heart of minisd."""
        model, s = self.model, self.settings
        noise = ImageNoise(self.seeds[batch], self.shape, model.runtime.device)
        x = self.start(batch, noise)
        cond, uncond = self.encode(self.prompts[batch]), self.encode(self.negatives[batch])
        if self.zero_negative:
            uncond = without_text(uncond, model.config.text[-1].projection)
        interval = table_times(s.guidance_interval, model.config.noise.steps)
        predict = guided(model.unet, cond, uncond, s.cfg_scale, s.guidance_rescale, interval)
        denoise = denoiser(predict, self.plan, model.config.noise.prediction)
        if self.mask is not None:
            denoise = keep_outside(self.mask, self.original, denoise)
        options = {} if s.eta is None else {"eta": s.eta}
        yield from get_sampler(s.sampler)(denoise, x, self.plan, noise=noise, **options)

    def encode(self, texts: list[str]) -> Conditioning:
        """Prompts of one batch to what the UNet is told."""
        model, s = self.model, self.settings
        size = (s.height, s.width)
        return encode(model.text, model.tokenizers, texts, model.config, s.clip_skip, s.long_prompt, size)

    def start(self, batch: slice, noise: ImageNoise) -> Tensor:
        """x at the plan's first level: noise alone, or the original with noise added."""
        first = noise() if self.latents is None else self.latents[batch].float().to(noise.device)
        if self.original is None:
            return first * self.plan.start
        return self.original + first * float(self.plan.sigmas[0])

    @torch.no_grad()
    def finish(self, x: Tensor | None, batch: slice, output: str) -> list[Image] | Tensor:
        """The last x to what the caller asked for; None (no step was run) stands for the original."""
        z = self.original.repeat(batch.stop - batch.start, 1, 1, 1) if x is None else final(x, self.plan)
        finite(z, f"the UNet (seeds {self.seeds[batch]})")
        if output == "latent":
            return z.cpu()
        pixels = self.model.vae.decode(z).float()
        finite(pixels, f"the VAE (seeds {self.seeds[batch]})")
        return to_pil(pixels) if output == "pil" else pixels.cpu()

    @torch.no_grad()
    def encode_image(self, image: Image | Tensor) -> Tensor:
        """A picture, or pixels (1, 3, H, W) in [-1, 1], as the posterior's mean (1, c, h, w), float32."""
        size = (self.settings.width, self.settings.height)
        pixels = image if isinstance(image, Tensor) else to_tensor(image.convert("RGB").resize(size))
        wanted, given = [1, 3, *reversed(size)], list(pixels.shape)
        check(given == wanted, f"the image must have the shape {wanted}, not {given}")
        return self.model.vae.encode(pixels.to(self.model.runtime.device))[0].float()

    def latent_mask(self, mask: Image | Tensor) -> Tensor:
        """White (1) is drawn anew, black (0) stays: (1, 1, h, w)."""
        if not isinstance(mask, Tensor):
            size = (self.settings.width, self.settings.height)
            mask = (to_tensor(mask.convert("L").resize(size))[:, :1] + 1) / 2
        return F.interpolate(mask.float(), size=self.shape[1:], mode="area").to(self.model.runtime.device)

    def recipe(self, i: int) -> dict[str, Any]:
        """All that drawing image i again takes, as plain data."""
        runtime = self.model.runtime
        dtype = str(runtime.dtype).removeprefix("torch.")
        return {
            "prompt": self.prompts[i],
            "negative_prompt": None if self.zero_negative else self.negatives[i],
            **self.settings.to_dict(),
            "seed": self.seeds[i],
            **self.model.origin,
            "device": runtime.device.type,
            "dtype": dtype,
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


def keep_outside(mask: Tensor, original: Tensor, denoise: Denoise) -> Denoise:
    """Inpainting by blending: outside the mask the estimate of x0 is the original itself."""

    def blended(x: Tensor, sigma: Tensor) -> Tensor:
        return original + mask * (denoise(x, sigma) - original)

    return blended


def finite(x: Tensor, where: str) -> None:
    """Refuse to go on with NaN or infinity; no picture is made of them."""
    if not torch.isfinite(x).all():
        raise FloatingPointError(f"{where} gave numbers that are not finite: try --dtype fp32")
