"""The whole story: a prompt in, pictures out. Here all parts meet, and nowhere else.

prompt -> text/ -> Conditioning -> guided UNet -> denoiser -> sampler -> latent -> VAE -> picture.
Rombach et al. 2022, https://arxiv.org/abs/2112.10752
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import torch
from PIL.Image import Image
from torch import Tensor
from tqdm import tqdm

from .config import VERSION, check, one_of
from .diffusion.denoise import Denoise, changing, denoiser, thresholded
from .diffusion.guidance import guided, table_times
from .diffusion.samplers import Step, final, get_sampler
from .diffusion.schedule import Plan, make_plan
from .guards import decode, finite, in_batches
from .hires import FIRST_OUTPUT, enlarge, second_run
from .image import to_pil
from .inpaint import check_numbers, settle, start_from
from .model import Model
from .nn.conditioning import Conditioning, Prepared, join_prepared, without_text
from .noise import Brownian, ImageNoise, toward
from .settings import EDITED, MAX_SEED, SDE_SAMPLERS, Options, Settings, known_name, pair
from .text.editing import Told, timeline
from .text.encode import encode

OUTPUTS = ("pil", "latent", "tensor")


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
        prompt: one, or a list; each is drawn `num_images` times. Image i of the call has seed + i. Seeds are 0 to
            2^64 - 1, but torch's CPU generator reads their low 32 bits: s and s + 2^32 have the same first noise.
        negative_prompt: what to lead away from; None: the model's own rule (the empty prompt; SDXL folders: zeros).
        image: start from this picture (img2img): 0 gives it back as the VAE has it, 1 is text-to-image. One picture
            for all, scaled to cover width x height and cut to it (neither named: see `picture.own_size`); or pixels
            (b, 3, H, W) in [-1, 1] or latents (b, c, h, w), one for all or each its own.
        mask: with `image`, and of its size: white is drawn anew, black stays, to the pixel.
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
    first = job = Job(model, prompt, negative_prompt, settle(model.config, image, mask, options), image, mask, latents)
    if first.settings.hires is not None:
        job = first.larger(run(first, FIRST_OUTPUT[first.settings.hires_upscale], progress))
    results = run(job, output, progress)
    if output == "pil":
        for i, picture in enumerate(results):
            picture.info["minisd"] = json.dumps(first.recipe(i), ensure_ascii=False)
    return results


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
    job = Job(model, prompt, negative_prompt, settle(model.config, image, mask, options), image, mask, latents)
    check(job.settings.hires is None, "sample shows one run: for hires call it twice, or take generate")
    return job.steps(slice(0, len(job)))


def recipes(
    model: Model,
    prompt: str | Sequence[str],
    *,
    negative_prompt: str | Sequence[str] | None = None,
    image: Image | Tensor | None = None,
    mask: Image | Tensor | None = None,
    latents: Tensor | None = None,
    **options: Unpack[Options],
) -> list[dict[str, Any]]:
    """The recipe of each picture that `generate` would draw, told without drawing."""
    job = Job(model, prompt, negative_prompt, settle(model.config, image, mask, options), image, mask, latents)
    return [job.recipe(i) for i in range(len(job))]


def run(job: "Job", output: str, progress: bool) -> list[Image] | Tensor:
    """Every batch of a job, drawn and finished."""
    results: list = []
    with tqdm(total=len(job) * len(job.plan.t), unit="step", disable=not progress) as bar:
        size = job.model.batch_size(job.settings.batch_size)
        for batch, z in in_batches(len(job), size, partial(job.draw, bar=bar)):
            results.append(job.finish(z, batch, output))
    return [picture for batch in results for picture in batch] if output == "pil" else torch.cat(results)


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
        # The model's own rule for no negative prompt: most encode "", SDXL's folders ask for zeros (here None).
        if negative_prompt is None and model.config.defaults.zero_negative:
            self.negatives = [None] * len(self.negatives)
        seeds = [settings.seeds(i) for i in range(len(self.prompts))]
        self.seeds, self.variations = ([of[name] for of in seeds] for name in ("seed", "variation_seed"))
        last = max(seed or 0 for seed in seeds[-1].values())
        check(last <= MAX_SEED, f"the seeds of {len(self)} images go beyond {MAX_SEED}: the last is {last}")
        factor = model.config.vae.factor
        self.shape = (model.config.unet.out_channels, settings.height // factor, settings.width // factor)
        if latents is not None:
            check(isinstance(latents, Tensor), f"latents must be a tensor, not {type(latents).__name__}")
            wanted, given = [len(self), *self.shape], list(latents.shape)
            check(given == wanted, f"latents must have the shape {wanted}, not {given}")
            check_numbers("latents", latents)
        self.given = start_from(model.vae, model.config, settings, image, mask, len(self))
        self.plan = self.make_plan()

    def __len__(self) -> int:
        return len(self.prompts)

    def make_plan(self) -> Plan:
        """The levels of the run; img2img keeps the last int(steps * strength) of them, as diffusers does."""
        s, default = self.settings, self.model.config.defaults
        told = (default.steps_offset, default.final_table_sigma, s.start_scale)
        plan = make_plan(self.model.table, s.steps, s.sampler, s.schedule, *told)
        return plan if self.given.original is None else plan.tail(int(s.steps * s.strength))

    def draw(self, batch: slice, bar: tqdm) -> Tensor:
        """The final latents of one batch (b, c, h, w), float32; where no step is run, the original's."""
        bar.update(batch.start * len(self.plan.t) - bar.n)  # a batch that did not fit left the bar too far
        if not len(self.plan.t):
            return self.given.original[batch]
        x = None
        for step in self.steps(batch):
            x = step.x
            bar.update(batch.stop - batch.start)
        check(x is not None, f"the sampler {known_name(self.settings.sampler)} yielded no step")
        return self.given.finish(final(x, self.plan))

    @torch.no_grad()
    def steps(self, batch: slice) -> Iterator[Step]:
        """Draw one batch, step by step: the heart of minisd."""
        if not len(self.plan.t):
            return
        model, s = self.model, self.settings
        noise = ImageNoise(self.seeds[batch], self.shape, model.runtime.device)
        x = self.start(batch, noise)
        options = {} if s.eta is None else {"eta": s.eta}
        noise = Brownian(noise) if known_name(s.sampler) in SDE_SAMPLERS else noise
        yield from get_sampler(s.sampler)(self.denoise(batch), x, self.plan, noise=noise, **options)

    def denoise(self, batch: slice) -> Denoise:
        """What the model believes of one batch, level by level; each text is encoded and prepared once."""
        s = self.settings
        script = timeline(self.prompts[batch], self.negatives[batch], s.steps, s.emphasis in EDITED)
        script = [(first, told) for first, told in script if first < len(self.plan.t)]  # img2img: steps that are run
        texts = dict.fromkeys(text for _, told in script for text in told.texts)
        prepared = {text: self.model.unet.prepare(self.encode(text, self.seeds[batch])) for text in texts}
        denoisers = {told: self.listen(told, prepared) for told in dict.fromkeys(told for _, told in script)}
        denoise = changing([(float(self.plan.sigmas[first]), denoisers[told]) for first, told in script])
        if s.dynamic_threshold is not None:
            denoise = thresholded(denoise, s.dynamic_threshold)
        return self.given.keep_outside(denoise)

    def listen(self, told: Told, prepared: dict[str | None, Prepared]) -> Denoise:
        """A denoiser that is told one thing throughout."""
        s, noise = self.settings, self.model.config.noise
        parts = [(join_prepared([prepared[text] for text in texts]), weights) for texts, weights in told.parts]
        uncond = join_prepared([prepared[text] for text in told.negatives])
        interval = table_times(s.guidance_interval, noise.steps)
        predict = guided(self.model.unet, parts, uncond, s.cfg_scale, s.guidance_rescale, interval)
        return denoiser(predict, self.plan, noise.prediction)

    def encode(self, text: str | None, seeds: Sequence[int]) -> Conditioning:
        """What the UNet is told of one text (1, ...); None: of no text."""
        model, s = self.model, self.settings
        how = (s.clip_skip, s.long_prompt, (s.height, s.width), s.emphasis)
        cond = encode(model.text, model.tokenizers, [text or ""], model.config, *how)
        finite(cond.context.expand(len(seeds), -1, -1), "the text encoder", seeds)
        if text is None:
            cond = without_text(cond, model.config.text[-1].projection)
        return replace(cond, concat=self.given.extra)

    def start(self, batch: slice, noise: ImageNoise) -> Tensor:
        """x at the plan's first level: noise alone, or the original with noise added."""
        first = noise.draw()  # also where latents take its place: the later draws are then the same
        if self.latents is not None:
            first = self.latents[batch].float().cpu()
        if self.settings.variation_strength > 0:
            other = ImageNoise(self.variations[batch], self.shape, noise.device)
            first = toward(first, other.draw(), self.settings.variation_strength)
        first = first.to(noise.device)
        added = first * float(self.plan.sigmas[0])
        return self.given.start(first * self.plan.start, added, batch, self.settings.strength)

    @torch.no_grad()
    def finish(self, z: Tensor, batch: slice, output: str) -> list[Image] | Tensor:
        """Final latents to what the caller asked for."""
        finite(z, "the UNet", self.seeds[batch])
        if output == "latent":
            return z.cpu()
        pixels = self.given.put_back(decode(self.model.vae, z, self.settings.vae_tiling, self.seeds[batch]))
        return to_pil(pixels) if output == "pil" else pixels.cpu()

    def larger(self, small: list[Image] | Tensor) -> "Job":
        """The second run of hires, which starts from the pictures of this one."""
        factor = self.model.config.vae.factor
        settings = second_run(self.settings, factor)
        start = enlarge(small, settings.width, settings.height, factor)
        negatives = None if self.negatives[0] is None else self.negatives
        return Job(self.model, self.prompts, negatives, settings, start, None, None)

    def recipe(self, i: int) -> dict[str, Any]:
        """All that drawing image i again takes, as plain data."""
        return {
            "prompt": self.prompts[i],
            "negative_prompt": self.negatives[i],
            **self.given.recipe(self.settings),
            **self.settings.seeds(i),
            **self.model.origin,
            "device": self.model.runtime.device.type,
            "dtype": str(self.model.runtime.dtype).removeprefix("torch."),
            "minisd": VERSION,
            "torch": torch.__version__,
        }
