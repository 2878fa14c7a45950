"""What LoRA files call the layers of a model, and what they are a LoRA for.

In: a config. Out: `places`, a table {a layer's name in a file, in any naming: minisd's name of its weight}, made from
the key tables of `keys.py` and `ldm.py`. A name is looked up whole and never taken apart: kohya turns dots into
underscores, and which underscore was a dot cannot be told.
https://github.com/kohya-ss/sd-scripts; https://github.com/huggingface/peft
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

from torch import Tensor

from ..config import Config, check
from . import ldm
from .detect import known_as
from .diffusers import TOWERS
from .keys import text_keys, unet_keys


@cache
def places(config: Config) -> Mapping[str, str]:
    """A layer's name in a LoRA file, in every naming -> minisd's name of its weight."""
    found: dict[str, str] = {}
    for stem, ours in stems(config):
        if ours.endswith(".weight") and "embedding." not in ours:
            stem = stem.removesuffix("_weight").removesuffix(".weight")
            check(found.setdefault(stem, ours) == ours, f"{stem} can be read as {ours} and as {found[stem]}")
    return found


def stems(config: Config) -> Iterator[tuple[str, str]]:
    """Every naming of every tensor: (the file's name, minisd's)."""
    new, old = unet_keys(config.unet), unet_keys(config.unet, old=True)
    for names in (new, ldm.unet_keys(config.unet)):  # kohya trains SDXL under the original names
        yield from ((f"lora_unet_{theirs.replace('.', '_')}", f"unet.{ours}") for ours, theirs in names.items())
    yield from ((f"diffusion_model.{theirs}", f"unet.{ours}") for ours, theirs in ldm.unet_keys(config.unet).items())
    for names in (new, old):
        yield from ((f"{p}{theirs}", f"unet.{ours}") for p in UNET_PREFIXES for ours, theirs in names.items())
    for i, tower in enumerate(config.text):
        kohya, dotted = KOHYA_TEXT[len(config.text) - 1][i], f"{TOWERS[i]}."
        for names in (text_keys(tower, prefix, old) for prefix in ("text_model.", "") for old in (False, True)):
            for ours, theirs in names.items():
                yield dotted + theirs, f"text.{i}.{ours}"
                yield from ((p + theirs.replace(".", "_"), f"text.{i}.{ours}") for p in kohya)


def kohya_names(config: Config) -> dict[str, str]:
    """minisd's name of a weight -> the layer's name as kohya's trainer writes it, which every program reads."""
    unet = ldm.unet_keys(config.unet) if len(config.text) > 1 else unet_keys(config.unet)
    found = {f"unet.{ours}": f"lora_unet_{theirs}" for ours, theirs in unet.items()}
    for i, tower in enumerate(config.text):
        prefix = KOHYA_TEXT[len(config.text) - 1][i][0]
        found |= {f"text.{i}.{ours}": prefix + theirs for ours, theirs in text_keys(tower).items()}
    weights = {ours: theirs for ours, theirs in found.items() if ours.endswith(".weight")}
    return {ours: theirs.removesuffix(".weight").replace(".", "_") for ours, theirs in weights.items()}


def role_of(name: str) -> tuple[str, str]:
    """A tensor's name -> the layer's name and the role of the tensor; "" where it is none of a LoRA's."""
    ending = next((e for e in ROLES if name.endswith(e)), "")
    return name.removesuffix(ending), ROLES.get(ending, "")


def other_kind(names: Iterable[str]) -> str:
    """What a file is if it is something else than a plain LoRA; "" where nothing says so."""
    names = list(names)
    return next((kind for pattern, kind in OTHER_KINDS.items() if any(re.search(pattern, n) for n in names)), "")


def trained_for(tensors: Mapping[str, Tensor]) -> tuple[str, int]:
    """The family of the model a LoRA was trained on ("": unknown) and the width of its context (0: unknown)."""
    downs = {name: t.shape[1] for name, t in tensors.items() if role_of(name)[1] == "down" and t.ndim > 1}
    width = next((n for name, n in downs.items() if re.search(r"attn2[._](processor\.)?to_k", name)), 0)
    pair = any(name.startswith(("lora_te2_", "text_encoder_2.")) for name in tensors)
    text = next((n for name, n in downs.items() if re.search(r"self_attn[._](q_proj|to_q)", name)), 0)
    family = "SDXL" if pair else known_as(width or text * (text < 1280)).strip(" ()")
    return family, width


UNET_PREFIXES = ("unet.", "", "base_model.model.")  # diffusers, before it had two parts, PEFT alone
KOHYA_TEXT = (
    (("lora_te_", "lora_te1_"),),  # one tower
    (("lora_te1_",), ("lora_te2_",)),
)
ROLES = {  # how a name ends -> what it is; no ending is part of another
    ".lora_down.weight": "down",  # kohya
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".lora_A.weight": "down",  # PEFT
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",  # diffusers, 2023
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",  # diffusers' processors
    "_lora.up.weight": "up",
}
OTHER_KINDS = {  # a pattern of one name -> what a file with it is
    r"\.hada_": "a LoHa, which minisd does not read",
    r"\.lokr_": "a LoKr, which minisd does not read",
    r"\.dora_scale$|lora_magnitude_vector": "a DoRA, which minisd does not read",
    r"\.b?oft_": "an OFT, which minisd does not read",
    r"\.ia3_|\.on_input$": "an IA3, which minisd does not read",
    r"\.[ab][12]\.weight$": "a GLoRA, which minisd does not read",
    r"\.diff(_b)?$|\.w_norm$": "a LyCORIS of whole differences, which minisd does not read",
    r"^lora_controlnet$|^controlnet_": "a ControlNet, which minisd does not have",
    r"^(lora_)?transformer[._]|double_blocks|single_blocks|joint_blocks|(^|\.)diffusion_model\.(layers|blocks)\.": (
        "a LoRA for a model with a transformer (Flux, SD 3 ...), which minisd does not have"
    ),
    r"^(string_to_param|emb_params$|clip_[lg]$)": "a textual inversion embedding: give it with --embedding",
    r"(^|\.)model\.diffusion_model\.|^first_stage_model\.": "a whole checkpoint, not a LoRA: give it with --model",
}
