"""What a single file is, found from the names and shapes of its tensors, never from its own name.

In: {name: shape}. Out: `Found` (family, config, layout, what is left aside), or a ValueError that says in one
line what the file is instead. `misfit` puts into at most six lines why tensors do not fit.

Widths and depths can be read off the shapes; three things cannot, and follow the family's rule: the number of
heads (SD 1.x: 8 everywhere; else 64 channels each), the groups of the norms (32) and the noise table.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..config import Config, Defaults, NoiseConfig, TextConfig, UNetConfig, VAEConfig, check
from .keys import Table, faults, first
from .ldm import LAYOUTS, Layout, is_openclip

Shapes = Mapping[str, Collection[int]]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Found:
    """A checkpoint that minisd can draw with."""

    family: str  # in words
    config: Config
    layout: Layout
    aside: tuple[str, ...]  # names that no network of ours takes: position_ids, EMA copies, logit_scale ...
    notes: tuple[str, ...]  # what was guessed


def detect(
    shapes: Shapes, name: str, prediction: str | None = None, guess: str = "eps", told: str | None = None
) -> Found:
    """Find out what a file is.

    Args:
        shapes: every tensor's shape, under the file's own names.
        name: what to call the model.
        prediction: "eps", "v" or "x0" where the caller knows; None: from marker keys, else `told`, else `guess`.
        guess: for an SD 2.x UNet that says nothing.
        told: by the file's metadata.

    Raises:
        ValueError: it is not an SD 1.x, SD 2.x or SDXL checkpoint; one line that says what it seems to be.
    """
    check(bool(shapes), f"{name} holds no tensors")
    kind = next((kind for pattern, kind in OTHER_KINDS.items() if any(re.search(pattern, k) for k in shapes)), None)
    check(kind is None, f"{name} is not a whole checkpoint but {kind}")
    layout, family = find_layout(shapes, name)
    unet = unet_config(part(shapes, layout.unet), family)
    text = tuple(text_config(part(shapes, prefix), family, i, prefix) for i, prefix in enumerate(layout.text))
    width = sum(tower.width for tower in text)
    parts = f"its text encoder is {width} wide, its UNet wants {unet.context_dim}{known_as(unet.context_dim)}"
    check(width == unet.context_dim, f"{name} joins parts of two models: {parts}")
    vae = vae_config(part(shapes, layout.vae), family)
    bare = {key.rsplit(".", 1)[-1] for key in shapes if key.count(".") <= 1}
    # SD 2.x inpainting models predict eps; the guess is not for them.
    unsure = family == "sd2" and unet.in_channels == unet.out_channels
    prediction, notes = choose_prediction(prediction, told, guess if unsure else None, bare)
    noise = NoiseConfig(prediction=prediction, zero_snr="ztsnr" in bare)
    config = Config(name, text, unet, vae, noise, defaults(family, vae, noise))
    extra = ", inpainting" if unet.in_channels == 2 * vae.latent_channels + 1 else ""
    words = f"{FAMILIES[family]} (context {unet.context_dim}, {prediction}{extra})"
    return Found(words, config, layout, aside(shapes, layout, text), notes)


def choose_prediction(
    asked: str | None, told: str | None, guess: str | None, bare: Collection[str]
) -> tuple[str, tuple[str, ...]]:
    """What the UNet predicts, and a note where it is a guess: SD 2.x has both kinds in one shape."""
    marked = "v" if "v_pred" in bare or "ztsnr" in bare else None
    said = asked or marked or told
    if said or guess is None:
        return said or "eps", ()
    return guess, (f"an SD 2.x file does not say what its UNet predicts: {guess} is a guess from its weights",)


def find_layout(shapes: Shapes, name: str) -> tuple[Layout, str]:
    """The prefixes of this file and its family.

    Some tools write all names behind one more word ("state_dict."), some SD 1.x merges lack "text_model.".
    """
    unet = next((match[0] for match in map(UNET_PREFIX.match, shapes) if match), None)
    check(unet is not None, f"{name} is not an SD 1.x, SD 2.x or SDXL checkpoint: it holds {first(list(shapes))}")
    base = unet.removesuffix(UNET)
    vae = next((base + p for p in VAE_PREFIXES if part(shapes, base + p)), base + VAE_PREFIXES[0])
    for family in ("sdxl", "sd2", "sd1"):
        prefixes = tuple(base + prefix for prefix in LAYOUTS[family].text)
        if part(shapes, prefixes[-1]):
            return Layout(prefixes, unet, vae), family
    short = prefixes[0].removesuffix("text_model.")
    check(bool(part(shapes, short)), f"{name} holds a UNet alone: minisd needs its text encoder in the same file")
    return Layout((short,), unet, vae), "sd1"


def part(shapes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    """The tensors behind a prefix, without it."""
    return {key.removeprefix(prefix): tuple(shape) for key, shape in shapes.items() if key.startswith(prefix)}


def unet_config(shapes: Shapes, family: str) -> UNetConfig:
    """Read a UNet's config off its shapes; where they make no sense, the family's own (`misfit` then explains)."""
    try:
        levels: list[list[tuple[int, int]]] = [[]]
        i = 1
        while (key := f"input_blocks.{i}.0.") and (f"{key}op.weight" in shapes or f"{key}in_layers.2.weight" in shapes):
            if f"{key}op.weight" in shapes:
                levels.append([])
            else:
                depth = count(shapes, f"input_blocks.{i}.1.transformer_blocks.{{}}.attn1.to_q.weight")
                levels[-1].append((shapes[f"{key}in_layers.2.weight"][0], depth))
            i += 1
        channels, depths = zip(*(level[0] for level in levels), strict=True)
        return UNetConfig(
            in_channels=shapes["input_blocks.0.0.weight"][1],
            out_channels=shapes["out.2.weight"][0],
            channels=channels,
            blocks_per_level=len(levels[0]),
            depth=depths,
            mid_depth=count(shapes, "middle_block.1.transformer_blocks.{}.attn1.to_q.weight"),
            heads=tuple(8 if family == "sd1" else max(1, c // 64) for c in channels),
            context_dim=next(s[1] for k, s in shapes.items() if k.endswith("attn2.to_k.weight")),
            vector_dim=shapes["label_emb.0.0.weight"][1] if "label_emb.0.0.weight" in shapes else 0,
            groups=norm_groups(channels),
        )
    except (KeyError, IndexError, ValueError, StopIteration):
        return PRESETS[family]


def vae_config(shapes: Shapes, family: str) -> VAEConfig:
    """Read a VAE's config off its shapes; where they make no sense, the published one."""
    scale = 0.13025 if family == "sdxl" else 0.18215
    try:
        levels = count(shapes, "encoder.down.{}.block.0.conv1.weight")
        channels = tuple(shapes[f"encoder.down.{i}.block.0.conv1.weight"][0] for i in range(levels))
        return VAEConfig(
            channels=channels,
            blocks_per_level=count(shapes, "encoder.down.0.block.{}.conv1.weight"),
            latent_channels=shapes["decoder.conv_in.weight"][1],
            image_channels=shapes["encoder.conv_in.weight"][1],
            groups=norm_groups(channels),
            scale_factor=scale,
            force_upcast=family == "sdxl",
        )
    except (KeyError, IndexError, ValueError):
        return VAEConfig(scale_factor=scale, force_upcast=family == "sdxl")


def text_config(shapes: Shapes, family: str, tower: int, prefix: str) -> TextConfig:
    """Read a text tower's config off its shapes. SD 2.x was trained on the last block but one of 24: the last is left
    out here, as it is in files made from diffusers folders."""
    openclip = is_openclip(prefix)
    names = OPENCLIP_NAMES if openclip else HF_NAMES
    try:
        (vocab, width), length = shapes[f"{names[0]}token_embedding.weight"], shapes[names[1]][0]
        layers, hidden = count(shapes, names[2] + ".weight"), shapes[names[2].format(0) + ".weight"][0]
    except (KeyError, IndexError, ValueError):
        vocab, length = 49408, 77
        width, layers, hidden = TEXT_SIZES[family][tower]
    return TextConfig(
        vocab_size=vocab,
        width=width,
        layers=layers if family != "sd2" else min(layers, 23) if width == 1024 else max(1, layers - 1),
        heads=max(1, width // 64),
        hidden=hidden,
        max_length=length,
        activation="gelu" if openclip else "quick_gelu",
        projection=projection_width(shapes, width) if tower else 0,
        pooled=tower > 0,
        final_norm=family != "sdxl",
        bos_id=vocab - 2,
        eos_id=vocab - 1,
        pad_id=0 if openclip else vocab - 1,
    )


def projection_width(shapes: Shapes, width: int) -> int:
    """Of a pooled vector: OpenCLIP's matrix is (width, projection), a linear layer's (projection, width)."""
    return shapes.get("text_projection.weight", shapes.get("text_projection", (0, width))[::-1])[0]


def count(shapes: Shapes, pattern: str) -> int:
    """How many blocks: one more than the highest number that makes a name of the pattern."""
    return max((i + 1 for i in range(64) if pattern.format(i) in shapes), default=0)


def norm_groups(channels: Collection[int]) -> int:
    """32 in every published model; a tiny one may not have the channels."""
    return next(g for g in (32, 16, 8, 4, 2, 1) if all(c % g == 0 for c in channels))


def defaults(family: str, vae: VAEConfig, noise: NoiseConfig) -> Defaults:
    """The size the family was trained at, in latents, its usual guidance, and the level without signal where it has
    learnt one: leading spacing never gets there."""
    side = vae.factor * (128 if family == "sdxl" else 96 if (family, noise.prediction) == ("sd2", "v") else 64)
    schedule = "trailing" if noise.zero_snr else "leading"
    return Defaults(width=side, height=side, cfg_scale=5.0 if family == "sdxl" else 7.5, schedule=schedule)


def aside(shapes: Shapes, layout: Layout, text: tuple[TextConfig, ...]) -> tuple[str, ...]:
    """Names that no network takes and that may well be there: what is behind no prefix, and the known strays."""
    prefixes = (layout.unet, layout.vae, *layout.text)
    strays = [f"{layout.vae}loss."]
    for prefix, tower in zip(layout.text, text, strict=True):
        strays += [prefix + name for name in ("logit_scale", "attn_mask")]
        if is_openclip(prefix) and not tower.pooled:
            strays += [f"{prefix}transformer.resblocks.{tower.layers}.", f"{prefix}text_projection"]
    known = (*strays,)
    return tuple(k for k in shapes if not k.startswith(prefixes) or k.startswith(known) or k.endswith("position_ids"))


def fit(path: str | Path, family: str, tensors: Tensors, table: Table, like: Tensors) -> dict[str, Tensor]:
    """Tensors under their names -> the same under ours, in the shapes of `like`; nothing is copied.

    Raises:
        ValueError: they are not exactly those of the table in these shapes (`misfit`), or not numbers with a fraction.
    """
    shapes = {theirs: like[ours].shape for ours, theirs in table.items()}
    message = misfit(path, family, faults(tensors, shapes, shapes))
    check(not message, message)
    whole = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    check(not whole, f"{path} is quantised to whole numbers ({first(whole)}), which minisd does not read")
    return {ours: tensors[theirs].reshape(like[ours].shape) for ours, theirs in table.items()}


def misfit(path: str | Path, family: str, found: Mapping[str, list[str]]) -> str:
    """At most six lines on tensors that do not fit, with the likely cause. "" where there are no faults."""
    told = [f"  {len(names)} {kind}: {first(names)}" for kind, names in found.items() if names]
    lines = [f"{path} does not fit: taken for {family}", *told, f"  likely cause: {cause(found)}"]
    return "\n".join(lines) if told else ""


def cause(found: Mapping[str, list[str]]) -> str:
    """What most often leads to such faults."""
    missing, unexpected, shaped = (found.get(k, []) for k in ("missing", "unexpected", "of another shape"))
    widths = {
        int(n) for name in shaped if "to_k" in name or "attn2" in name for n in re.findall(r"\d+(?=\) instead)", name)
    }
    known = [known_as(n) for n in sorted(widths) if known_as(n)]
    if known:
        return f"these tensors belong to another family{known[0]}"
    if shaped:
        return "parts of two models were merged, or the file is damaged"
    if missing and unexpected:
        return "a variant of this family whose networks are built otherwise, or names that a tool has changed"
    if missing and all(re.search(r"first_stage_model\.|(^|[./])vae[./]", name) for name in missing):
        return "the file was saved without its VAE, or with only a part of it"
    if missing and all(re.search(r"cond_stage_model\.|conditioner\.|text_encoder", name) for name in missing):
        return "the file was saved without a whole text encoder"
    return "the file is incomplete" if missing else "a variant with parts that minisd does not have"


def known_as(context: int) -> str:
    """The family of a context width, in brackets."""
    return {768: " (SD 1.x)", 1024: " (SD 2.x)", 2048: " (SDXL)", 1280: " (the SDXL refiner)"}.get(context, "")


UNET = "model.diffusion_model."
UNET_PREFIX = re.compile(r"(|.*\.)model\.diffusion_model\.(?=input_blocks|middle|output|time|out\.|label)")
VAE_PREFIXES = ("first_stage_model.", "vae.")
FAMILIES = {"sd1": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}
PRESETS = {
    "sd1": UNetConfig(),
    "sd2": UNetConfig(heads=(5, 10, 20, 20), context_dim=1024),
    "sdxl": UNetConfig(4, 4, (320, 640, 1280), 2, (0, 2, 10), 10, (5, 10, 20), context_dim=2048, vector_dim=2816),
}
TEXT_SIZES = {  # width, layers in the file, hidden
    "sd1": [(768, 12, 3072)],
    "sd2": [(1024, 24, 4096)],
    "sdxl": [(768, 12, 3072), (1280, 32, 5120)],
}
HF_NAMES = ("embeddings.", "embeddings.position_embedding.weight", "encoder.layers.{}.mlp.fc1")
OPENCLIP_NAMES = ("", "positional_embedding", "transformer.resblocks.{}.mlp.c_fc")
OTHER_KINDS = {  # a pattern of one name -> what a file with it is
    r"\.hada_w1_a$": "a LoHa, which minisd does not read",
    r"\.lokr_w1": "a LoKr, which minisd does not read",
    r"\.dora_scale$|lora_magnitude_vector": "a DoRA, which minisd does not read",
    r"lora_(down|up|A|B)\b|\.lora\.(down|up)\.|to_k_lora": "a LoRA: give it with --lora, beside a model",
    r"^(string_to_param|emb_params|clip_[lg])($|\.)": "a textual inversion embedding: give it with --embedding",
    r"(^|\.)joint_blocks\.": "Stable Diffusion 3, which minisd does not have",
    r"(^|\.)double_blocks\.": "Flux, which minisd does not have",
    r"^control_model\.|input_hint_block|controlnet_cond_embedding": "a ControlNet, which minisd does not have",
    r"motion_modules\.": "a motion module of AnimateDiff, which minisd does not have",
    r"\.time_stack\.|\.time_mixer": "Stable Video Diffusion, which minisd does not have",
    r"(^|\.)conditioner\.embedders\.0\.model\.": "the SDXL refiner, which minisd does not have: use the base model",
    r"^edm_mean$|^edm_vpred\.": "an SDXL model trained on another noise table (EDM), which minisd does not have",
    r"^(unet\.)?down_blocks\.": "a diffusers UNet alone: give the folder that it comes from",
    r"\.time_embed\.cond_proj\.": "an LCM UNet (time_cond_proj_dim), which minisd does not have",
    r"\.label_emb\.weight$": "an upscaler with class embeddings, which minisd does not have",
    r"^(encoder\.down\.|decoder\.up\.|encoder\.down_blocks\.)": "a VAE alone: give it with --vae, beside a model",
    r"^(text_model\.)?encoder\.layers\.": "a text encoder alone",
    r"^(input_blocks|output_blocks)\.": "a UNet alone: minisd needs its text encoder and VAE in the same file",
}
