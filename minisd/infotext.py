"""AUTOMATIC1111's `parameters` text, which many tools write and read: made of a recipe, and taken apart again.

In: a recipe as plain data, or a text by anyone. Out: the text, or its prompts and fields. This is syntax; what another
tool's fields mean stands in dialects.py.
https://github.com/AUTOMATIC1111/stable-diffusion-webui/blob/master/modules/processing.py (create_infotext)

    the prompt, on as many lines as it has
    Negative prompt: likewise; left out where it is empty
    Steps: 20, Sampler: Euler a, Size: 512x512, Model: "a name, with a comma"
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from .config import VERSION, check


@dataclass(frozen=True)
class Infotext:
    """The three parts of a text; what a field says is kept as text."""

    prompt: str
    negative_prompt: str = ""
    fields: dict[str, str] = field(default_factory=dict)


def write(text: Infotext) -> str:
    """The text. `parse` gives the parts back, if no line of the prompt begins like a negative prompt."""
    pairs = ", ".join(f"{key}: {quoted(value)}" for key, value in text.fields.items())
    negative = [f"{NEGATIVE} {text.negative_prompt}"] if text.negative_prompt else []
    return "\n".join([text.prompt, *negative, pairs])


def quoted(value: str) -> str:
    """A value that could be misread is written as a JSON string."""
    unclear = any(mark in value for mark in ",:\n") or value != value.strip() or value[:1] in ('"', "[")
    return json.dumps(value, ensure_ascii=False) if unclear else value


def parse(text: str) -> Infotext:
    """Take a text apart, in one pass. Its last line holds fields if there are three pairs or more on it.

    Raises:
        ValueError: the text is longer than any tool writes.
    """
    check(len(text) <= MAX_TEXT, f"a parameters text of {len(text)} characters is refused: at most {MAX_TEXT} are read")
    head, _, last = text.rstrip().rpartition("\n")
    pairs = read_pairs(last)
    if len(pairs) < 3:
        head, pairs = text.rstrip(), []
    start = 0 if head.startswith(NEGATIVE) else head.find(f"\n{NEGATIVE}")
    if start < 0:
        return Infotext(head, "", dict(pairs))
    negative = head[start:].removeprefix("\n").removeprefix(NEGATIVE).removeprefix(" ")
    return Infotext(head[:start], negative, dict(pairs))


def read_pairs(line: str) -> list[tuple[str, str]]:
    """The `key: value` pairs of a line, in order; what lies between them is passed over."""
    pairs, at = [], GAP.match(line).end()
    while at < len(line):
        key = KEY.match(line, at)
        if key:
            value, at = read_value(line, key.end(), key[1].strip())
            pairs.append((key[1].strip(), value))
        else:
            at = end_of_value(line, at)
        at = GAP.match(line, at).end()
    return pairs


def read_value(line: str, at: int, key: str) -> tuple[str, int]:
    """A value from `at` on, and where it ends: a JSON string, a list of numbers, or all up to the next comma."""
    if key == "SDCPP":  # stable-diffusion.cpp ends its line with a whole JSON object
        return line[at:].strip(), len(line)
    whole = QUOTED.match(line, at) or LIST.match(line, at)
    end = whole.end() if whole else end_of_value(line, at)
    value = line[at:end].strip()
    if whole and value[0] == '"':
        with suppress(ValueError):  # of an escape that JSON does not have: the text stays as it is
            value = json.loads(value, strict=False)
    return value, end


def end_of_value(line: str, at: int) -> int:
    """The place of the next comma, else the end."""
    comma = line.find(",", at)
    return len(line) if comma < 0 else comma


def recipe_text(recipe: dict[str, Any]) -> str:
    """A picture's recipe as such a text: AUTOMATIC1111's fields in its order, what is at its default there left out.

    What it has no field for follows under the recipe's own names, so that the text alone draws the picture again.
    Noise is always drawn on the CPU.
    """
    get = recipe.get
    twice = get("hires") is not None
    strength = get("hires_strength") if twice else get("strength") if get("image") else None
    again = int(get("hires_steps", 0) * strength) if twice and get("hires_steps") else None  # those that are run
    fields = {
        "Steps": recipe["steps"],
        "Sampler": SAMPLER_LABELS.get(recipe["sampler"], recipe["sampler"]),
        "Schedule type": SCHEDULE_LABELS.get(recipe["schedule"], recipe["schedule"]),
        "CFG scale": recipe["cfg_scale"],
        "Seed": recipe["seed"],
        "Size": f"{recipe['width']}x{recipe['height']}",
        "Model hash": (get("model_sha256") or "")[:10],
        "Model": get("model"),
        "VAE": get("vae"),
        "Variation seed": get("variation_seed") if get("variation_strength") else None,
        "Variation seed strength": get("variation_strength") or None,
        "Denoising strength": strength,
        "Mask blur": get("mask_blur") if get("mask") else None,
        "Clip skip": recipe["clip_skip"] if recipe["clip_skip"] != 1 else None,
        "RNG": "CPU",
        "Emphasis": EMPHASIS_LABELS.get(get("emphasis")) if get("emphasis") != "a1111" else None,
        "Hires upscale": get("hires"),
        "Hires steps": again,
        "Hires upscaler": UPSCALE_LABELS.get(get("hires_upscale")) if twice else None,
        "Eta": get("eta"),
        **own_fields(recipe),
        "Version": f"minisd {get('minisd', VERSION)}",
    }
    prompts = recipe["prompt"], get("negative_prompt") or ""
    return write(Infotext(*prompts, {k: plain(v) for k, v in fields.items() if v not in (None, "")}))


def own_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    """What AUTOMATIC1111 has no field for, or says in too few words, where it is not what LEFT_OUT says."""
    get, told = recipe.get, {key: recipe.get(key) for key in OWN_FIELDS}
    label = SCHEDULE_LABELS.get(recipe["schedule"])
    told["schedule"] = recipe["schedule"] if label and name_of(label, SCHEDULE_LABELS) != recipe["schedule"] else None
    told["strength"] = get("strength") if get("image") and get("hires") is not None else None  # of the first run
    told["mask_blur"] = get("mask_blur") if get("outpaint") else None
    told["negative"] = "zeros" if get("negative_prompt", "") is None else None
    return {key: value for key, value in told.items() if value != LEFT_OUT.get(key)}


def name_of(label: str, labels: dict[str, str]) -> str | None:
    """The name of a label: of several the one spelled like it, else the last (others borrow a label before it)."""
    said = label.lower()
    names = [name for name, label in labels.items() if said in (label.lower(), name.replace("_", " "))]
    return max(reversed(names), key=lambda name: name.replace("_", " ") == said, default=None)


def plain(value: Any) -> str:
    """A whole number without `.0`; anything else as Python writes it."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


NEGATIVE = "Negative prompt:"
MAX_TEXT = 65_536  # characters
EXIF_IFD, USER_COMMENT, IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
# None of these can go over a part of the line more than once or twice, whatever is on it.
GAP = re.compile(r"[\s,]*")
KEY = re.compile(r"(\w[\w \-/]*):\s*")
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"(?=\s*(?:,|$))')
LIST = re.compile(r"\[[-0-9., ]*\]")
SAMPLER_LABELS = {
    **{"ddim": "DDIM", "ddpm": "DDPM", "euler": "Euler", "euler_a": "Euler a", "heun": "Heun", "restart": "Restart"},
    **{"dpm2": "DPM2", "dpm2_a": "DPM2 a", "dpmpp_2s_a": "DPM++ 2S a", "dpmpp_sde": "DPM++ SDE", "plms": "PLMS"},
    **{"lms": "LMS", "deis": "DEIS", "dpmpp_2m": "DPM++ 2M", "dpmpp_2m_sde": "DPM++ 2M SDE"},
    **{"dpmpp_3m_sde": "DPM++ 3M SDE", "unipc": "UniPC", "lcm": "LCM", "tcd": "TCD"},
}
SCHEDULE_LABELS = {  # the first three have none of their own: the nearest, which further down is its owner's again
    **{"linspace": "Uniform", "leading": "DDIM", "trailing": "SGM Uniform", "lcm": "LCM"},
    **{"karras": "Karras", "exponential": "Exponential", "polyexponential": "Polyexponential", "normal": "Normal"},
    **{"sgm_uniform": "SGM Uniform", "simple": "Simple", "ddim_uniform": "DDIM", "beta": "Beta"},
    **{"kl_optimal": "KL Optimal", "align_your_steps_sdxl": "Align Your Steps", "align_your_steps": "Align Your Steps"},
}
EMPHASIS_LABELS = {"a1111": "Original", "no-norm": "No norm", "comfy": "Comfy", "off": "None"}
UPSCALE_LABELS = {"latent": "Latent", "picture": "Lanczos"}
OWN_FIELDS = (
    *(
        "schedule",
        "guidance_rescale",
        "guidance_interval",
        "dynamic_threshold",
        "start_scale",
        "long_prompt",
        "strength",
    ),
    *("mask_blur", "outpaint", "hires_steps", "vae_tiling", "negative", "device", "dtype", "prediction", "variant"),
    *("ema", "revision", "loras", "embeddings"),
)
LEFT_OUT = {  # what a text by minisd means that does not say it
    **{"guidance_rescale": 0.0, "long_prompt": "chunk", "vae_tiling": "auto", "device": "cpu", "dtype": "float32"},
}
