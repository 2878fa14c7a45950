"""A folder in diffusers' layout, read as its own library would read it.

In: a folder with unet/, vae/, text_encoder/ (text_encoder_2/), tokenizer/ (tokenizer_2/) and scheduler/, each with
its config. Out: `Parts`: our config, the tensors under our names, what was left out, and notes.
Its configs are foreign: fields that minisd does not know are told and ignored; values it cannot follow are refused.
https://huggingface.co/docs/diffusers/using-diffusers/other-formats
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config, TextConfig, UNetConfig, VAEConfig, build, check, shown
from ..text.tokenizer import read_vocabulary
from .detect import FAMILIES, fit
from .find import TOKENIZERS, is_diffusers  # noqa: F401  (handed on)
from .folder import modules
from .foreign import Fields, default_settings, noise_config
from .keys import text_keys, unet_keys, vae_keys
from .ldm import family_of
from .tensors import read_tensors

MAX_INDEX = 10_000_000  # bytes of an index of shards


@dataclass
class Parts:
    """What `assemble` makes a model of."""

    config: Config
    tensors: dict[str, Tensor]  # under minisd's names
    tokenizers: list[Path]
    aside: dict[str, Tensor] = field(default_factory=dict)  # what minisd has no place for, under their names
    notes: list[str] = field(default_factory=list)
    family: str = ""


def read_folder(folder: Path, variant: str | None = None, prediction: str | None = None) -> Parts:
    """Read a diffusers folder.

    Args:
        variant: prefer files such as diffusion_pytorch_model.fp16.safetensors.
        prediction: "eps", "v" or "x0"; None: as scheduler_config.json says.

    Raises:
        ValueError: files are missing, damaged, or describe a model that minisd does not have.
    """
    index = Fields.of(folder, "model_index.json", optional=True)
    notes: list[str] = []
    config = read_config(folder, index, notes, prediction)
    with torch.device("meta"):
        like = modules(config).state_dict()
    family = f"{FAMILIES[family_of(config)]} (context {config.unet.context_dim}, {config.noise.prediction})"
    parts = Parts(config, {}, [folder / name for name in TOKENIZERS[: len(config.text)]], notes=notes, family=family)
    for i, tower in enumerate(config.text):
        add(parts, folder / TOWERS[i], f"text.{i}.", like, variant, tower)
    add(parts, folder / "unet", "unet.", like, variant, config.unet)
    add(parts, folder / "vae", "vae.", like, variant, config.vae)
    return parts


def read_config(folder: Path, index: Fields, notes: list[str], prediction: str | None = None) -> Config:
    """The whole config of a folder, from six of its JSON files."""
    has = [(folder / name / "config.json").is_file() for name in (*TOWERS, "unet", "vae")]
    check(not (folder / "transformer").is_dir(), f"{folder} is a model with a transformer, not a UNet (SD 3, Flux ...)")
    check(has[0] or not has[1], f"{folder} is the SDXL refiner, which minisd does not have: use the base model")
    lacking = [name for name, there in zip((TOWERS[0], "unet", "vae"), (has[0], *has[2:]), strict=True) if not there]
    check(not lacking, f"{folder} is not a whole diffusers folder: it lacks {', '.join(lacking)}/config.json")
    unet_fields, vae_fields = Fields.of(folder, "unet/config.json"), Fields.of(folder, "vae/config.json")
    unet, vae = unet_config(unet_fields), vae_config(vae_fields, has[1])
    texts = [Fields.of(folder, f"{name}/config.json") for name in TOWERS[: sum(has[:2])]]
    towers = tuple(text_config(f, folder, i, len(texts)) for i, f in enumerate(texts))
    if unet.vector_dim:
        wide = (unet.vector_dim - towers[-1].projection) / 6
        given = unet_fields.take("addition_time_embed_dim", int)
        check(wide == given, f"{unet_fields.where}: addition_time_embed_dim {given} does not fit: {wide} is left")
    scheduler = Fields.of(folder, "scheduler/scheduler_config.json")
    noise = noise_config(scheduler, prediction)
    sizes = unet_fields.take("sample_size", (int, list, type(None)), None) or (128 if len(towers) > 1 else 64)
    defaults = default_settings(scheduler, index, sizes, vae.factor, len(towers) > 1, notes)
    for fields in (unet_fields, vae_fields, *texts, scheduler):
        notes += fields.untaken()
    return Config(folder.resolve().name, towers, unet, vae, noise, defaults)


def unet_config(f: Fields) -> UNetConfig:
    """unet/config.json. `attention_head_dim` means the number of heads, unless num_attention_heads is there."""
    f.only(UNET_ONLY)
    channels = f.take("block_out_channels", list, [320, 640, 1280, 1280])
    down = f.take("down_block_types", list, ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    up = f.take("up_block_types", list, ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    check(bool(channels), f"{f.where}: block_out_channels is empty")
    n = len(channels)
    check(len(down) == n, f"{f.where}: {len(down)} down_block_types do not fit {n} block_out_channels")
    known = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
    ok = all(isinstance(b, str) and b in known for b in down)
    check(ok, f"{f.where}: down_block_types {shown(down)} are not supported")
    mirrored = [block.replace("Down", "Up") for block in reversed(down)]
    check(up == mirrored, f"{f.where}: up_block_types {shown(up)} do not mirror down_block_types")
    depth = per_level(f, "transformer_layers_per_block", f.take("transformer_layers_per_block", (int, list), 1), n)
    heads = f.take("num_attention_heads", (int, list, type(None)), None)
    one = f.take("attention_head_dim", (int, list), 8)
    data = {
        "in_channels": f.take("in_channels", int, 4),
        "out_channels": f.take("out_channels", int, 4),
        "channels": channels,
        "blocks_per_level": f.take("layers_per_block", int, 2),
        "depth": [d * known[block] for d, block in zip(depth, down, strict=True)],
        "mid_depth": depth[-1],
        "heads": per_level(f, "attention_head_dim", one if heads is None else heads, n),
        "context_dim": f.take("cross_attention_dim", int, 1280),
        "groups": f.take("norm_num_groups", int, 32),
    }
    if f.take("addition_embed_type", (str, type(None)), None) is not None:
        data["vector_dim"] = f.take("projection_class_embeddings_input_dim", int)
    return build(UNetConfig, data, f.where)


def per_level(f: Fields, name: str, value: int | list, levels: int) -> list:
    """A number for all levels, or a list of one for each."""
    values = value if isinstance(value, list) else [value] * levels
    ok = len(values) == levels and all(isinstance(v, int) for v in values)
    check(ok, f"{f.where}: {name} {shown(value)} must be a whole number, or {levels} of them")
    return values


def vae_config(f: Fields, pair: bool = False) -> VAEConfig:
    """vae/config.json. Where it does not say force_upcast, only the pipeline of a `pair` of towers (SDXL) takes it."""
    channels = f.take("block_out_channels", list, [64])
    blocks = (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D"))
    f.only({**VAE_ONLY, **{name: ([block] * len(channels),) for name, block in blocks}})
    data = {
        "channels": channels,
        "blocks_per_level": f.take("layers_per_block", int, 1),
        "latent_channels": f.take("latent_channels", int, 4),
        "image_channels": f.take("in_channels", int, 3),
        "groups": f.take("norm_num_groups", int, 32),
        "scale_factor": f.take("scaling_factor", (int, float), 0.18215),
        "force_upcast": f.take("force_upcast", bool, pair),
    }
    return build(VAEConfig, data, f.where)


def text_config(f: Fields, folder: Path, tower: int, towers: int) -> TextConfig:
    """text_encoder/config.json. Its own bos, eos and pad ids are wrong in many folders: the tokenizer's count."""
    f.only(TEXT_ONLY)
    vocabulary = read_vocabulary(folder / TOKENIZERS[tower])
    width, pooled = f.take("hidden_size", int, 512), tower > 0
    projection = f.take("projection_dim", (int, type(None)), 512)
    data = {
        "vocab_size": f.take("vocab_size", int, 49408),
        "width": width,
        "layers": f.take("num_hidden_layers", int, 12),
        "heads": f.take("num_attention_heads", int, 8),
        "hidden": f.take("intermediate_size", int, 2048),
        "max_length": f.take("max_position_embeddings", int, 77),
        "activation": f.take("hidden_act", str, "quick_gelu"),
        "projection": projection or width if pooled else 0,
        "pooled": pooled,
        "final_norm": towers == 1,
        "bos_id": vocabulary.bos_id,
        "eos_id": vocabulary.eos_id,
        "pad_id": vocabulary.pad_id,
    }
    return build(TextConfig, data, f.where)


def add(parts: Parts, folder: Path, ours: str, like: dict[str, Tensor], variant: str | None, config: object) -> None:
    """Read the weights of one network and put them into `parts` under our names."""
    tensors, said = read_weights(folder, variant)
    if isinstance(config, TextConfig):
        prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
        table = text_keys(config, prefix)
        strays = {f"{prefix}embeddings.position_ids", "logit_scale", "text_projection.weight"} - set(table.values())
    else:
        old = any(".query." in name for name in tensors)
        table = unet_keys(config) if isinstance(config, UNetConfig) else vae_keys(config, old)
        strays = set()
    parts.aside |= {f"{folder.name}/{name}": t for name, t in tensors.items() if name in strays}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in strays}
    shapes = {name.removeprefix(ours): tensor for name, tensor in like.items() if name.startswith(ours)}
    fitting = fit(folder, parts.family, tensors, table, shapes)
    parts.tensors |= {ours + name: tensor for name, tensor in fitting.items()}
    parts.notes += said


def read_weights(folder: Path, variant: str | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of one network's folder, and notes.

    Raises:
        ValueError: as `weight_files`, or one of them is damaged.
    """
    files, said = weight_files(folder, variant)
    tensors: dict[str, Tensor] = {}
    for path in files:
        tensors |= read_tensors(path)
    return tensors, said


def weight_files(folder: Path, variant: str | None = None) -> tuple[list[Path], list[str]]:
    """Where one network's tensors lie, and notes: one file, or shards with an index; plain, or a variant.

    Raises:
        ValueError: there are none, or the index names files that are not there.
    """
    names = (path.name for path in folder.iterdir() if path.is_file())
    matches = [match for match in map(WEIGHTS.fullmatch, names) if match]
    matches.sort(key=lambda match: (".safetensors" in match[0], not match[0].endswith(".json")))  # the best is last
    found = {match[1] or match[2] or "": match[0] for match in matches}
    check(bool(found), f"{folder} holds no weights: no model.safetensors, diffusion_pytorch_model.safetensors or .bin")
    wanted = [variant or "", "", "fp16", *sorted(found)]
    choice = next(kind for kind in wanted if kind in found)
    said = [f"{folder.name}: read {found[choice]}"] if choice != (variant or "") else []
    if not found[choice].endswith(".json"):
        return [inside(folder, found[choice])], said
    text = read_index(folder / found[choice])
    return [inside(folder, shard) for shard in sorted({str(name) for name in text.values()})], said


def read_index(path: Path) -> dict[str, str]:
    """The table {tensor: file} of a sharded network."""
    check(path.stat().st_size <= MAX_INDEX, f"{path} has more than {MAX_INDEX} bytes")
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not an index of shards: {error}") from error
    check(isinstance(files, dict) and bool(files), f"{path} is not an index of shards: its weight_map is empty")
    return files


def inside(folder: Path, name: str) -> Path:
    """A file of the folder, named without a path.

    Raises:
        ValueError: it is named by one, or not there.
    """
    check(Path(name).name == name and "\\" not in name, f"{folder} names a file outside itself: {shown(name)}")
    check((folder / name).is_file(), f"{folder} lacks {name}, which its index names")
    return folder / name


TOWERS = ("text_encoder", "text_encoder_2")
STEM = r"(?:model|diffusion_pytorch_model|pytorch_model)"
WEIGHTS = re.compile(  # one file, or an index of shards: they put the variant in two places
    rf"{STEM}(?:\.([\w-]+))?\.(?:safetensors|bin)|{STEM}\.(?:safetensors|bin)\.index(?:\.([\w-]+))?\.json"
)
UNET_ONLY = {  # what minisd's UNet is; anything else is another network
    "act_fn": ("silu",),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
VAE_ONLY = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "out_channels": (3,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
TEXT_ONLY = {"layer_norm_eps": (1e-5,), "model_type": ("clip_text_model", "clip")}
