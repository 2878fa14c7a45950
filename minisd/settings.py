"""One call's numbers and prompts: every `None` replaced by the model's own default, everything checked. No torch here.

In: a `Config` and what the user said. Out: a frozen `Settings` that the pipeline follows and the picture stores.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

from .config import SAMPLER_NAMES, SCHEDULE_NAMES, Config, Defaults, check, one_of, shown

LONG_PROMPT_NAMES = ("chunk", "window", "truncate", "summarize", "error")
EMPHASIS_NAMES = ("a1111", "no-norm", "comfy", "off")
EDITED = ("a1111", "no-norm")  # the readings of brackets that have [from:to:when], [a|b] and AND
TILING_NAMES = ("auto", "on", "off")
START_NAMES = ("sigma", "total")
UPSCALE_NAMES = ("picture", "latent")
MAX_SEED = 2**64 - 1
MAX_SIDE = 16_384
MAX_IMAGES = 10_000
MAX_BLUR = 1000
MAX_FILE = 2**24  # bytes of a file of prompts, which may be one


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
    dynamic_threshold: float | None
    strength: float
    mask_blur: float
    hires: float | None
    hires_strength: float
    hires_steps: int | None
    hires_upscale: str
    vae_tiling: str
    start_scale: str | None
    variation_seed: int | None
    variation_strength: float

    def seeds(self, i: int) -> dict[str, int | None]:
        """Of image i: seed + i. With a variation the seed stays and the variation's counts, as in AUTOMATIC1111."""
        if self.variation_strength == 0:
            return {"seed": self.seed + i, "variation_seed": self.variation_seed}
        return {"seed": self.seed, "variation_seed": self.variation_seed + i}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a picture's recipe; functions by their names. What plays no part without hires is left out."""
        idle = () if self.hires is not None else HIRES
        fields = {k: v for k, v in vars(self).items() if k not in ("num_images", "batch_size", *idle)}
        return {k: getattr(v, "__name__", v) if callable(v) else v for k, v in fields.items()}


class Options(TypedDict, total=False):
    """What may be said of a call; whatever is left out, or None, is the model's own default."""

    steps: int | None
    cfg_scale: float | None  # guidance; 1 is the prompt alone
    sampler: str | Callable | None  # a name, or a generator function of your own
    schedule: str | Callable | None  # a name, or a function (table, steps) -> sigmas
    eta: float | None  # fresh noise in each step, for the samplers of ETA_SAMPLERS; None: the sampler's own
    seed: int  # 0; up to 2^64 - 1, of which torch's CPU generator reads the low 32 bits
    width: int | None  # pixels
    height: int | None
    num_images: int  # 1, of each prompt
    batch_size: int | None  # images at a time: 1 on a CPU, 8 on CUDA
    clip_skip: int | None  # 1: the text encoder's last block, 2: the one before
    long_prompt: str | None  # "chunk", "window", "truncate", "summarize" or "error": see minisd/text/chunks.py
    emphasis: str | None  # "a1111", "no-norm", "comfy", "off" (brackets are plain text): see minisd/text/emphasis.py
    guidance_rescale: float | None  # 0 to 1
    guidance_interval: tuple[float, float] | None  # parts of the noise table, 1 is all noise
    dynamic_threshold: float | None  # above 0 to 1, such as 0.995: see minisd/diffusion/denoise.py; None: off
    strength: float | None  # 0 to 1, how far an image is drawn anew: the last int(steps * strength) steps are run
    mask_blur: float | None  # pixels, the standard deviation by which a mask's edge is softened; 0
    hires: float | None  # draw small, enlarge both sides so many times, draw over; 1 to 8
    hires_strength: float | None  # 0.5, how far the enlarged picture is drawn anew
    hires_steps: int | None  # steps of the second run before strength is counted; None: as the first
    hires_upscale: str | None  # what is enlarged: "picture" (by Lanczos) or "latent" (bilinear)
    vae_tiling: str | None  # decode in strips, to spare memory: "on", "off", or "auto": beyond 2^20 pixels (CPU 2^19)
    start_scale: str | None  # std of the first x: "sigma" (AUTOMATIC1111) or "total", see `schedule.STARTS`
    variation_seed: int | None  # lean the first noise towards this seed's, 0 (not at all) to 1 (all the way):
    variation_strength: float | None  # above 0 all images share the seed, and image i has variation_seed + i


def resolve(config: Config, **options: Unpack[Options]) -> Settings:
    """Fill in the model's defaults and check every number.

    Raises:
        ValueError: the first thing that is wrong, with its value and the way out.
    """
    unknown = sorted(set(options) - set(Options.__annotations__))
    if unknown:
        raise TypeError(f"unknown options {unknown}: choose from {', '.join(Options.__annotations__)}")
    given = {key: value for key, value in options.items() if value is not None}

    # A UNet made for inpainting sees what stays: it may draw the rest from nothing.
    own = OWN | ({"strength": 1.0} if config.unet.in_channels > config.unet.out_channels else {})

    def said(key: str) -> Any:
        return given.get(key, own.get(key, getattr(config.defaults, key, None)))

    schedule = given.get("schedule", own_schedule(config.defaults, said("sampler")))
    if schedule == "align_your_steps" and config.unet.vector_dim:  # a table was published for each of the two
        schedule = "align_your_steps_sdxl"
    most = config.noise.steps
    settings = Settings(
        steps=integer("steps", said("steps"), 1, most),
        cfg_scale=real("cfg_scale", said("cfg_scale"), 0, 1000),
        sampler=name("sampler", said("sampler"), SAMPLER_NAMES),
        schedule=name("schedule", schedule, SCHEDULE_NAMES),
        eta=None if said("eta") is None else real("eta", said("eta"), 0, 1),
        seed=integer("seed", said("seed"), 0, MAX_SEED),
        width=side("width", said("width"), config.vae.factor),
        height=side("height", said("height"), config.vae.factor),
        num_images=integer("num_images", said("num_images"), 1, MAX_IMAGES),
        batch_size=None if said("batch_size") is None else integer("batch_size", said("batch_size"), 1, MAX_IMAGES),
        clip_skip=config.check_clip_skip(said("clip_skip")),
        long_prompt=name("long_prompt", said("long_prompt"), LONG_PROMPT_NAMES),
        emphasis=name("emphasis", said("emphasis"), EMPHASIS_NAMES),
        guidance_rescale=real("guidance_rescale", said("guidance_rescale"), 0, 1),
        guidance_interval=interval(said("guidance_interval")),
        dynamic_threshold=threshold(said("dynamic_threshold")),
        strength=real("strength", said("strength"), 0, 1),
        mask_blur=real("mask_blur", said("mask_blur"), 0, MAX_BLUR),
        hires=None if said("hires") is None else real("hires", said("hires"), 1, 8),
        hires_strength=real("hires_strength", said("hires_strength"), 0, 1),
        hires_steps=None if said("hires_steps") is None else integer("hires_steps", said("hires_steps"), 1, most),
        hires_upscale=said("hires_upscale"),
        vae_tiling=said("vae_tiling"),
        start_scale=said("start_scale"),
        variation_seed=variation(given),
        variation_strength=real("variation_strength", said("variation_strength"), 0, 1),
    )
    one_of("vae_tiling", settings.vae_tiling, TILING_NAMES)
    if settings.start_scale is not None:
        one_of("start_scale", settings.start_scale, START_NAMES)
    one_of("hires_upscale", settings.hires_upscale, UPSCALE_NAMES)
    largest = max(settings.width, settings.height) * (settings.hires or 1)
    check(largest <= MAX_SIDE, f"hires {settings.hires} makes a side of {largest:.0f} pixels: {MAX_SIDE} are the most")
    if settings.eta is not None and settings.sampler not in ETA_SAMPLERS and not callable(settings.sampler):
        raise ValueError(f"eta means nothing to the sampler {settings.sampler}: it is for {', '.join(ETA_SAMPLERS)}")
    for key, last in settings.seeds(settings.num_images - 1).items():
        first = getattr(settings, key)
        check((last or 0) <= MAX_SEED, f"{key} {first} + {settings.num_images} images goes beyond {MAX_SEED}")
    return settings


def own_schedule(defaults: Defaults, sampler: str | Callable) -> str:
    """The schedule of a call that names none, by the rule that diffusers' `Class.from_config` follows.

    What the model's folder says holds for every sampler that can be told so: karras levels where the sampler's class
    in diffusers has them, else the spacing. A folder that says no spacing leaves it to the class, whatever sampler
    the folder itself names: SD 1.x folders are drawn by leading with plms and ddim, by linspace with dpmpp_2m.
    lcm and tcd have levels of their own, whatever a folder says.
    """
    known = known_name(sampler)
    if known in OWN_GRID:
        return OWN_GRID[known]
    if defaults.sigma_schedule is not None and known not in GRID_ONLY:
        return defaults.sigma_schedule
    return defaults.schedule or GRID_ONLY.get(known, "linspace")


def known_name(sampler: str | Callable) -> str:
    """A sampler's name; a function of the user's own that bears a known one is treated as that."""
    return sampler if isinstance(sampler, str) else getattr(sampler, "__name__", "")


def variation(given: dict[str, Any]) -> int | None:
    """The variation seed, refused where it or the strength would silently do nothing alone."""
    seed, strength = given.get("variation_seed"), given.get("variation_strength")
    if seed is None:
        check(not strength, f"variation_strength {strength!r} needs a variation_seed, whose noise to lean towards")
        return None
    check(strength is not None, f"variation_seed {seed!r} needs a variation_strength: how far to lean, 0 to 1")
    return integer("variation_seed", seed, 0, MAX_SEED)


def texts(what: str, given: Sequence[str]) -> list[str]:
    """Several texts, at least one.

    Raises:
        ValueError: none, or something else.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    check(several, f"{what} must be text or a list of texts, not {shown(given)}")
    check(len(given) > 0, f"{what} is an empty list: there is nothing to draw")
    for text in given:
        check(isinstance(text, str), f"{what} must be text or a list of texts, not a list with {shown(text)}")
    return list(given)


def pair(prompt: str | Sequence[str], negative: str | Sequence[str] | None, n: int) -> tuple[list[str], list[str]]:
    """Prompts and negative prompts of the same number, each prompt n times in a row.

    Raises:
        ValueError: no prompt, or lists that do not pair up.
    """
    prompts = texts("prompt", [prompt] if isinstance(prompt, str) else prompt)
    single = negative is None or isinstance(negative, str)
    negatives = texts("negative_prompt", [negative or ""] * len(prompts) if single else negative)
    counts = f"{len(prompts)} prompts and {len(negatives)} negative prompts"
    check(len(prompts) == len(negatives), f"{counts} do not pair up")
    return [p for p in prompts for _ in range(n)], [p for p in negatives for _ in range(n)]


def integer(what: str, value: Any, low: int, high: int) -> int:
    """A whole number in low..high; True is not a number."""
    ok = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    check(ok, f"{what} {value!r} must be a whole number in {low}..{high}")
    return value


def real(what: str, value: Any, low: float, high: float) -> float:
    """A finite number in low..high."""
    ok = isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high  # no NaN is
    check(ok, f"{what} {value!r} must be a number in {low}..{high}")
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
    two = isinstance(value, tuple | list) and len(value) == 2
    check(two, f"guidance_interval {value!r} must be two numbers, low and high")
    low, high = (real("guidance_interval", v, 0, 1) for v in value)
    check(low < high, f"guidance_interval {low}, {high}: low must be below high")
    return low, high


def threshold(value: Any) -> float | None:
    """A percentile above 0, or None."""
    if value is None:
        return None
    check(real("dynamic_threshold", value, 0, 1) > 0, "dynamic_threshold 0 would leave nothing: 0.995 is usual")
    return float(value)


ETA_SAMPLERS = ("ddim", "euler_a", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "tcd")
SDE_SAMPLERS = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")  # their noise is one Brownian path, see noise.py
# Samplers whose class in diffusers has no karras, and the spacing it takes when not told. The others: linspace.
GRID_ONLY = {"ddim": "leading", "ddpm": "leading", "euler_a": "linspace", "plms": "leading"}
OWN_GRID = {"lcm": "lcm", "tcd": "lcm"}  # samplers whose class in diffusers takes no spacing at all
# Defaults that are no model's own matter; the rest stand in its config.
OWN = {
    **{"seed": 0, "num_images": 1, "long_prompt": "chunk", "emphasis": "a1111", "vae_tiling": "auto"},
    **{"strength": 0.75, "mask_blur": 0.0, "hires_strength": 0.5, "hires_upscale": "picture"},
    **{"variation_strength": 0.0},
}
HIRES = ("hires", "hires_strength", "hires_steps", "hires_upscale")
