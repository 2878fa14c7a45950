"""What the fields of a `parameters` text mean, by the tool that wrote it: AUTOMATIC1111, stable-diffusion.cpp, minisd.

In: a text. Out: a `Reading`: options for `generate`, what of the text is not honoured, and why the picture may differ.
AUTOMATIC1111's names and defaults stand in its modules/sd_samplers_kdiffusion.py and modules/sd_schedulers.py, those of
the other in https://github.com/leejet/stable-diffusion.cpp (examples/common/common.cpp); no file of either was tried.
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from . import settings
from .config import Config, check
from .infotext import (
    EMPHASIS_LABELS,
    LEFT_OUT,
    OWN_FIELDS,
    SAMPLER_LABELS,
    SCHEDULE_LABELS,
    UPSCALE_LABELS,
    name_of,
    parse,
)


@dataclass(frozen=True)
class Reading:
    """How a picture was drawn, as far as its file says and minisd can do it."""

    source: str  # the tool that wrote it
    prompt: str
    negative_prompt: str | None  # None: the model's own rule
    options: dict[str, Any]  # of `minisd.settings.Options`
    made: dict[str, Any]  # the rest: model and its hash, device, dtype, LoRAs, versions
    ignored: tuple[str, ...] = ()  # what is not honoured, by the file's own names
    notes: tuple[str, ...] = ()  # why the picture may differ all the same

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for `minisd info`."""
        return asdict(self)


def of_text(text: str, config: Config | None = None) -> Reading:
    """Read a text by the rules of the tool that wrote it.

    Args:
        config: of the model that is to draw it, on which AUTOMATIC1111's clip skip depends.

    Raises:
        ValueError: the text is too long, or ends in no line of settings.
    """
    parts = parse(text)
    kind = "is JSON by another tool" if text.lstrip().startswith("{") else "ends in no line of settings"
    check(bool(parts.fields), f"its parameters text {kind}")
    sheet = Sheet(parts.prompt, parts.negative_prompt, dict(parts.fields), config)
    version = sheet.left.pop("Version", "")
    source = next((tool for tool in DIALECTS if version.startswith(tool)), "AUTOMATIC1111")
    sheet.read_numbers()
    DIALECTS[source](sheet)
    told = {"model": sheet.left.pop("Model", ""), "model_sha256": sheet.left.pop("Model hash", ""), "version": version}
    made = {key: value for key, value in told.items() if value} | sheet.made
    names = [f"{key} {value}" if key in NAMED else key for key, value in sheet.left.items()]
    ignored, notes = (*sheet.tags, *names), tuple(sheet.notes)
    return Reading(source, sheet.prompt, sheet.negative, sheet.options, made, ignored, notes)


class Sheet:
    """A text on its way: each field that is understood goes from `left` into `options`."""

    def __init__(self, prompt: str, negative: str | None, left: dict[str, str], config: Config | None) -> None:
        self.prompt, self.negative, self.left, self.config = prompt, negative, left, config
        self.options: dict[str, Any] = {}
        self.notes: list[str] = []
        self.tags: list[str] = []
        self.made: dict[str, Any] = {}  # how else it was drawn; of pictures it was drawn from, that they were there

    def read_numbers(self) -> None:
        """What every tool writes alike. Noise of a GPU cannot be drawn here."""
        for key, (option, kind) in NUMBERS.items():
            self.take(key, option, kind(self.left.get(key, "")))
        width, _, height = self.left.get("Size", "").partition("x")
        if whole(width) and whole(height):
            self.options |= {"width": whole(width), "height": whole(height)}
            del self.left["Size"]

    def take(self, key: str, option: str, value: Any) -> None:
        """Make a field an option, if it says something and there is such an option; else it stays where it is."""
        if value is not None and option in settings.Options.__annotations__:
            self.options[option] = value
            self.left.pop(key, None)

    def take_name(self, key: str, option: str, name: str | None) -> None:
        """The same for a name that minisd may not have."""
        self.take(key, option, name if name in CHOICES[option] else None)

    def take_noise(self, ours: str, default: str) -> None:
        """Which kind of machine the noise was drawn on."""
        if self.left.pop("RNG", default) != ours:
            note = "its noise was drawn on a GPU: the same seed gives other noise here, and so another picture"
            self.notes.append(note)

    def take_emphasis(self) -> None:
        """How brackets were read; that is said only where it is not AUTOMATIC1111's default."""
        label = self.left.get("Emphasis", "Original")
        self.take_name("Emphasis", "emphasis", name_of(label, EMPHASIS_LABELS))
        weighted = any(mark in self.prompt + self.negative for mark in "([")
        if weighted and "emphasis" not in self.options:
            self.notes.append(f"its brackets are emphasis there ({label}), plain text here")

    def take_tags(self) -> None:
        """<lora:name:weight> is an order to the tool, not a part of the prompt. Without a negative one: the model's."""
        self.tags = TAG.findall(self.prompt + self.negative)
        self.prompt, self.negative = TAG.sub("", self.prompt), TAG.sub("", self.negative) or None


def of_a1111(sheet: Sheet) -> None:
    """AUTOMATIC1111 and its forks."""
    label, schedule = split(sheet.left.get("Sampler", ""))
    sampler = name_of(label, SAMPLER_LABELS)
    sheet.take_name("Sampler", "sampler", sampler)
    silent = schedule is None and "Schedule type" not in sheet.left
    schedule = sheet.left.pop("Schedule type", schedule or "Automatic")
    if schedule != "Automatic":
        sheet.left["Schedule type"] = schedule
        name = "normal" if schedule.lower() == "uniform" else name_of(schedule, SCHEDULE_LABELS)
        sheet.take_name("Schedule type", "schedule", name)
    elif sampler is not None:
        schedule = AUTOMATIC.get(sampler, "normal")
        sheet.left["Schedule type"] = f"Automatic ({schedule})"
        sheet.take_name("Schedule type", "schedule", schedule)
        if silent and schedule in ("karras", "exponential"):
            sheet.notes.append(f"it names no schedule: {schedule}, {label}'s own since version 1.9 of {A1111}")
    if sampler in settings.ETA_SAMPLERS:
        key = "Eta DDIM" if sampler == "ddim" else "Eta"
        sheet.take(key, "eta", decimal(sheet.left.get(key, "")))
    take_clip_skip(sheet)
    take_pictures(sheet)
    take_ways(sheet)
    sheet.take_noise("CPU", "GPU")


def split(said: str) -> tuple[str, str | None]:
    """Sampler and schedule of older files, which have both in one name: "DPM++ 2M Karras"."""
    if name_of(said, SAMPLER_LABELS) is None:
        for schedule in sorted(SCHEDULE_LABELS.values(), key=len, reverse=True):  # "SGM Uniform" before "Uniform"
            if said.lower().endswith(f" {schedule.lower()}"):
                return said[: -len(schedule) - 1], schedule
    return said, None


def take_clip_skip(sheet: Sheet) -> None:
    """AUTOMATIC1111's clip skip is written whatever the model, and reaches one CLIP-L tower: SD 1.x alone."""
    said, config = whole(sheet.left.get("Clip skip", "1")), sheet.config
    if config is None or (len(config.text) == 1 and config.text[0].width != 1024):
        sheet.take("Clip skip", "clip_skip", said)
    elif sheet.left.pop("Clip skip", None):
        default = config.default_clip_skip
        sheet.notes.append(f"its clip skip {said} did nothing on a model of this family: it stays {default}")


def take_pictures(sheet: Sheet) -> None:
    """A picture to start from, a mask, or two runs: one denoising strength serves the first and the last."""
    left, strength = sheet.left, decimal(sheet.left.get("Denoising strength", ""))
    sheet.take("Hires upscale", "hires", decimal(left.get("Hires upscale", "")))
    if "hires" in sheet.options:
        steps = whole(left.get("Hires steps", "")) or 0  # all of them are run there; 0: as the first run
        sheet.take("Hires steps", "hires_steps", math.ceil(steps / strength) if steps and strength else None)
        sheet.take("Hires upscaler", "hires_upscale", HIRES_UPSCALERS.get(left.get("Hires upscaler", "")))
        sheet.take("Denoising strength", "hires_strength", strength)
    elif strength is not None and not any(key.startswith("Hires") for key in left):
        sheet.take("Denoising strength", "strength", strength)
        sheet.made["image"] = {}
        if "Mask blur" in left:
            sheet.take("Mask blur", "mask_blur", decimal(left["Mask blur"]))
            sheet.made["mask"] = {}


def take_ways(sheet: Sheet) -> None:
    """What both tools do: prompts in chunks, brackets weigh; the first noise is as strong as its level, no stronger."""
    for option, value in {"long_prompt": "chunk", "start_scale": "sigma"}.items():
        sheet.take_name("", option, value)
    sheet.take_emphasis()
    sheet.take_tags()


def of_minisd(sheet: Sheet) -> None:
    """minisd's own text, of a file that has lost its JSON: nothing is left to the model, whichever is to draw it."""
    sheet.take_name("Sampler", "sampler", name_of(sheet.left.get("Sampler", ""), SAMPLER_LABELS))
    sheet.take_name("Schedule type", "schedule", name_of(sheet.left.get("Schedule type", ""), SCHEDULE_LABELS))
    sheet.take("Clip skip", "clip_skip", whole(sheet.left.get("Clip skip", "1")))
    sheet.take("Eta", "eta", decimal(sheet.left.get("Eta", "")))
    sheet.take_emphasis()
    sheet.take_noise("CPU", "CPU")
    take_pictures(sheet)
    take_own_fields(sheet)
    if "VAE" in sheet.left:
        sheet.made["vae"] = sheet.left.pop("VAE")


def take_own_fields(sheet: Sheet) -> None:
    """What minisd writes under the recipe's own names."""
    sheet.negative = None if sheet.left.pop("negative", "") == "zeros" else sheet.negative
    for key in OWN_FIELDS:
        said = sheet.left.get(key)
        value = LEFT_OUT.get(key) if said is None else READ.get(key, str)(said)
        if key in CHOICES:
            sheet.take_name(key, key, value)
        elif key in settings.Options.__annotations__:
            sheet.take(key, key, value)
        elif value is not None:
            sheet.made[key] = value
            sheet.left.pop(key, None)
    if "hires_steps" in sheet.options:
        sheet.left.pop("Hires steps", None)  # the same, less exact
    if {"strength", "outpaint"} & {*sheet.options, *sheet.made}:
        sheet.made.setdefault("image", {})
        sheet.notes.append("its text does not say which picture it was drawn from: only that one gives it again")


def of_sdcpp(sheet: Sheet) -> None:
    """stable-diffusion.cpp: the names of its command line, sampler and schedule in one field."""
    sampler, _, schedule = sheet.left.get("Sampler", "").partition(" ")
    if sampler == "ddim_trailing":
        sampler, schedule = "ddim", "trailing"
    sheet.take_name("Sampler", "sampler", sampler.replace("dpm++", "dpmpp_"))
    sheet.left["Schedule type"] = schedule or "discrete"
    sheet.take_name("Schedule type", "schedule", SDCPP_SCHEDULES.get(schedule, schedule))
    if sheet.options.get("sampler") in ("ddim", "tcd"):
        sheet.take("Eta", "eta", decimal(sheet.left.get("Eta", "")))
    if "Clip skip" in sheet.left:  # left out: the model's own
        sheet.take("Clip skip", "clip_skip", whole(sheet.left["Clip skip"]))
    sheet.left.pop("SDCPP", None)  # the same once more, as JSON
    sheet.take_noise("cpu", "cuda")
    take_ways(sheet)


def whole(text: str) -> int | None:
    """A whole number in ASCII digits."""
    return int(text) if re.fullmatch(r"[0-9]{1,30}", text) else None


def several(text: str, kind: Callable[[str], Any]) -> list[Any] | None:
    """Numbers as Python writes a list of them."""
    values = [kind(part.strip()) for part in text.removeprefix("[").removesuffix("]").split(",")]
    return None if None in values else values


def decimal(text: str) -> float | None:
    """A finite number in ASCII digits."""
    plain = re.fullmatch(r"-?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,4})?", text)
    return float(text) if plain and math.isfinite(float(text)) else None


A1111 = "AUTOMATIC1111"
TAG = re.compile(r"<(?:lora|lyco|hypernet):[^<>\n]*>")
NAMED = ("Sampler", "Schedule type", "Emphasis")  # not honoured: told with the value
NUMBERS = {
    "Steps": ("steps", whole),
    "CFG scale": ("cfg_scale", decimal),
    "Seed": ("seed", whole),
    "Variation seed": ("variation_seed", whole),
    "Variation seed strength": ("variation_strength", decimal),
}
READ = {  # of infotext.OWN_FIELDS; the others are text
    **dict.fromkeys(("guidance_rescale", "dynamic_threshold", "strength", "mask_blur"), decimal),
    **{"hires_steps": whole, "guidance_interval": partial(several, kind=decimal)},
    "outpaint": partial(several, kind=whole),
}
CHOICES = {
    "sampler": settings.SAMPLER_NAMES,
    "schedule": settings.SCHEDULE_NAMES,
    "emphasis": settings.EMPHASIS_NAMES,
    "long_prompt": settings.LONG_PROMPT_NAMES,
    "start_scale": settings.START_NAMES,
    "vae_tiling": settings.TILING_NAMES,
}
AUTOMATIC = {  # the schedule that samplers of AUTOMATIC1111 have of their own; the others: Uniform, our normal
    **dict.fromkeys(("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpm2", "dpm2_a", "restart"), "karras"),
    **dict.fromkeys(("dpmpp_2m_sde", "dpmpp_3m_sde"), "exponential"),
    **dict.fromkeys(("ddim", "plms", "unipc"), "leading"),
    "lcm": "lcm",
}
SDCPP_SCHEDULES = {"": "normal", "discrete": "normal", "ays": "align_your_steps"}
HIRES_UPSCALERS = {label: name for name, label in UPSCALE_LABELS.items()}
DIALECTS = {"stable-diffusion.cpp": of_sdcpp, "minisd": of_minisd, A1111: of_a1111}
