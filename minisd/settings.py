"""One call's numbers: every `None` replaced by the model's own default, everything checked. No torch here.

In: a `Config` and what the user said. Out: a frozen `Settings` that the pipeline follows and the picture stores.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .config import SAMPLER_NAMES, SCHEDULE_NAMES, Config, check, one_of

LONG_PROMPT_NAMES = ("truncate", "error")
EMPHASIS_NAMES = ("off",)
MAX_SEED = 2**64 - 1
MAX_SIDE = 16_384
MAX_IMAGES = 10_000


@dataclass(frozen=True)
class Settings:
    """How one call draws. Names and meanings are those of `minisd.generate`."""

    steps: int
    cfg_scale: float
    sampler: str | Callable
    schedule: str | Callable
    eta: float | None
    seed: int
    width: int
    height: int
    num_images: int
    batch_size: int | None
    clip_skip: int
    long_prompt: str
    emphasis: str
    guidance_rescale: float
    guidance_interval: tuple[float, float] | None
    strength: float

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a picture's recipe; functions by their names."""
        fields = {k: v for k, v in vars(self).items() if k not in ("num_images", "batch_size")}
        return {k: getattr(v, "__name__", v) if callable(v) else v for k, v in fields.items()}


def resolve(
    config: Config,
    *,
    steps: int | None = None,
    cfg_scale: float | None = None,
    sampler: str | Callable | None = None,
    schedule: str | Callable | None = None,
    eta: float | None = None,
    seed: int = 0,
    width: int | None = None,
    height: int | None = None,
    num_images: int = 1,
    batch_size: int | None = None,
    clip_skip: int | None = None,
    long_prompt: str | None = None,
    emphasis: str | None = None,
    guidance_rescale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    strength: float | None = None,
) -> Settings:
    """Fill in the model's defaults and check every number.

    Raises:
        ValueError: the first thing that is wrong, with its value and the way out.
    """
    default = config.defaults
    settings = Settings(
        steps=integer("steps", default.steps if steps is None else steps, 1, config.noise.steps),
        cfg_scale=real("cfg_scale", default.cfg_scale if cfg_scale is None else cfg_scale, 0, 1000),
        sampler=name("sampler", default.sampler if sampler is None else sampler, SAMPLER_NAMES),
        schedule=name("schedule", default.schedule if schedule is None else schedule, SCHEDULE_NAMES),
        eta=None if eta is None else real("eta", eta, 0, 1),
        seed=integer("seed", seed, 0, MAX_SEED),
        width=side("width", default.width if width is None else width, config.vae.factor),
        height=side("height", default.height if height is None else height, config.vae.factor),
        num_images=integer("num_images", num_images, 1, MAX_IMAGES),
        batch_size=None if batch_size is None else integer("batch_size", batch_size, 1, MAX_IMAGES),
        clip_skip=config.check_clip_skip(clip_skip),
        long_prompt=name("long_prompt", long_prompt or "truncate", LONG_PROMPT_NAMES),
        emphasis=name("emphasis", emphasis or "off", EMPHASIS_NAMES),
        guidance_rescale=real(
            "guidance_rescale", default.guidance_rescale if guidance_rescale is None else guidance_rescale, 0, 1
        ),
        guidance_interval=interval(guidance_interval),
        strength=real("strength", 0.75 if strength is None else strength, 0, 1),
    )
    if settings.eta is not None and settings.sampler not in ETA_SAMPLERS and not callable(settings.sampler):
        raise ValueError(f"eta means nothing to the sampler {settings.sampler}: it is for {', '.join(ETA_SAMPLERS)}")
    check(settings.seed + num_images - 1 <= MAX_SEED, f"seed {seed} + {num_images} images goes beyond {MAX_SEED}")
    return settings


def integer(what: str, value: Any, low: int, high: int) -> int:
    """A whole number in low..high; True is not a number."""
    ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    check(ok, f"{what} {value!r} must be a whole number in {low}..{high}")
    return value


def real(what: str, value: Any, low: float, high: float) -> float:
    """A finite number in low..high."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    check(ok and low <= value <= high, f"{what} {value!r} must be a number in {low}..{high}")
    return float(value)


def side(what: str, value: Any, factor: int) -> int:
    """A side in pixels that the VAE can halve down to whole latents."""
    integer(what, value, factor, MAX_SIDE)
    below = value // factor * factor
    nearest = f"{below} and {below + factor}"
    check(value % factor == 0, f"{what} {value} is not a multiple of {factor}: the nearest are {nearest}")
    return value


def name(what: str, value: Any, choices: tuple[str, ...]) -> Any:
    """One of the choices; a function of the user's own passes."""
    if not callable(value):
        one_of(what, value, choices)
    return value


def interval(value: Any) -> tuple[float, float] | None:
    """(low, high) in parts of the noise table, 1 being all noise."""
    if value is None:
        return None
    check(len(value) == 2, f"guidance_interval {value!r} must be two numbers, low and high")
    low, high = (real("guidance_interval", v, 0, 1) for v in value)
    check(low < high, f"guidance_interval {low}, {high}: low must be below high")
    return low, high


ETA_SAMPLERS = ("ddim", "euler_a")
