"""A model as a folder in diffusers' layout, with configs from which diffusers draws as minisd does.

In: `Parts` and the minisd config. Out: model_index.json, unet/, vae/, text_encoder/ (text_encoder_2/), tokenizer/
(tokenizer_2/), scheduler/. `diffusers.py` reads the configs back, which is how `convert` checks what they say.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config, TextConfig, VAEConfig, check
from ..text.tokenizer import FILES, JOINED, SPECIAL, read_vocabulary
from .diffusers import TOKENIZERS, TOWERS, Parts
from .foreign import GRIDS_OF, MULTISTEP_OF, NOISE_OF, PREDICTION_OF, SAMPLERS_OF, SPACINGS_OF
from .keys import text_keys, to_theirs, unet_keys, vae_keys
from .ldm import family_of
from .write import write_tensors

DIFFUSERS = "0.35.0"  # the version whose fields these are


def write_configs(folder: Path, parts: Parts, scheduler: Path | None) -> None:
    """All files but the weights.

    Args:
        scheduler: a scheduler_config.json to copy; None: one is made from the config.

    Raises:
        ValueError: a network that diffusers cannot be told of.
    """
    config = parts.config
    for i, (tower, tokenizer) in enumerate(zip(config.text, parts.tokenizers, strict=True)):
        save(folder / TOWERS[i] / "config.json", text_json(tower))
        write_tokenizer(folder / TOKENIZERS[i], tokenizer, tower)
    save(folder / "unet" / "config.json", unet_json(config))
    save(folder / "vae" / "config.json", vae_json(config.vae))
    target = folder / "scheduler" / "scheduler_config.json"
    if scheduler is None:
        save(target, scheduler_json(config))
    else:
        target.parent.mkdir()
        shutil.copyfile(scheduler, target)
    kind = json.loads(target.read_text(encoding="utf-8")).get("_class_name", SOLVER)
    save(folder / "model_index.json", index_json(config, kind))


def write_weights(folder: Path, parts: Parts, aside: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    """The networks' .safetensors.

    Args:
        aside: tensors that minisd has no place for, as folder/name.
    """
    config, conv = parts.config, family_of(parts.config) == "sd1"
    tables = {"unet": ("unet.", unet_keys(config.unet)), "vae": ("vae.", vae_keys(config.vae))}
    for i, tower in enumerate(config.text):
        tables[TOWERS[i]] = (f"text.{i}.", text_keys(tower))
    for name, (ours, table) in tables.items():
        tensors = {k.removeprefix(ours): t for k, t in parts.tensors.items() if k.startswith(ours)}
        if name == "unet" and conv:  # SD 1.x keeps its projections as 1x1 convolutions
            tensors = {k: t[..., None, None] if projection(k) else t for k, t in tensors.items()}
        own = {k.removeprefix(f"{name}/"): t for k, t in aside.items() if k.startswith(f"{name}/")}
        stem = "model" if name in TOWERS else "diffusion_pytorch_model"
        found = {**to_theirs(tensors, table), **own}
        write_tensors(folder / name / f"{stem}.safetensors", found, {"format": "pt"}, dtype, own)


def projection(name: str) -> bool:
    """Whether a tensor is the way into or out of a transformer, not of a block within."""
    return ".transformers." in name and ".blocks." not in name and name.endswith(("proj_in.weight", "proj_out.weight"))


def unet_json(config: Config) -> dict[str, Any]:
    """unet/config.json.

    Raises:
        ValueError: attention in the middle that the last level's fields cannot tell of.
    """
    u, d = config.unet, config.defaults
    told = u.mid_depth > 0 and u.depth[-1] in (0, u.mid_depth)
    check(told, f"diffusers has one depth for the last level and the middle, this UNet {u.depth[-1]} and {u.mid_depth}")
    side = [d.height // config.vae.factor, d.width // config.vae.factor]
    found = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "attention_head_dim": alike(u.heads),  # the number of heads, in spite of its name
        "block_out_channels": list(u.channels),
        "center_input_sample": False,
        "cross_attention_dim": u.context_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in u.depth],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": u.in_channels,
        "layers_per_block": u.blocks_per_level,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-5,
        "norm_num_groups": u.groups,
        "out_channels": u.out_channels,
        "sample_size": side[0] if side[0] == side[1] else side,
        "transformer_layers_per_block": alike([*(depth or 1 for depth in u.depth[:-1]), u.mid_depth]),
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(u.depth)],
        "use_linear_projection": family_of(config) != "sd1",
    }
    if u.vector_dim:
        found["addition_embed_type"] = "text_time"
        found["addition_time_embed_dim"] = (u.vector_dim - config.text[-1].projection) // 6
        found["projection_class_embeddings_input_dim"] = u.vector_dim
    return found


def alike(values: tuple[int, ...] | list[int]) -> int | list[int]:
    """One number where all are the same."""
    return values[0] if len(set(values)) == 1 else list(values)


def vae_json(v: VAEConfig) -> dict[str, Any]:
    """vae/config.json."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": list(v.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(v.channels),
        "force_upcast": v.force_upcast,
        "in_channels": v.image_channels,
        "latent_channels": v.latent_channels,
        "layers_per_block": v.blocks_per_level,
        "norm_num_groups": v.groups,
        "out_channels": v.image_channels,
        "scaling_factor": v.scale_factor,
        "up_block_types": ["UpDecoderBlock2D"] * len(v.channels),
    }


def text_json(t: TextConfig) -> dict[str, Any]:
    """text_encoder/config.json."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if t.pooled else "CLIPTextModel"],
        "attention_dropout": 0.0,
        "bos_token_id": t.bos_id,
        "eos_token_id": t.eos_id,
        "hidden_act": t.activation,
        "hidden_size": t.width,
        "intermediate_size": t.hidden,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": t.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": t.heads,
        "num_hidden_layers": t.layers,
        "pad_token_id": t.pad_id,
        "projection_dim": t.projection or t.width,
        "vocab_size": t.vocab_size,
    }


def scheduler_json(config: Config) -> dict[str, Any]:
    """scheduler/scheduler_config.json, as in published ones with fields that only some classes have: from_config of
    another class then draws as minisd's sampler of that name does.
    """
    n, d = config.noise, config.defaults
    kinds = {ours: theirs for theirs, ours in SAMPLERS_OF.items()}
    kind = kinds.get(d.sampler, SOLVER)
    found = {
        "_class_name": kind,
        "_diffusers_version": DIFFUSERS,
        "beta_end": n.beta_end,
        "beta_schedule": {ours: theirs for theirs, ours in NOISE_OF.items()}[n.schedule],
        "beta_start": n.beta_start,
        "clip_sample": False,
        "num_train_timesteps": n.steps,
        "prediction_type": {ours: theirs for theirs, ours in PREDICTION_OF.items()}[n.prediction],
        "skip_prk_steps": True,
        "steps_offset": d.steps_offset if len(config.text) > 1 else 1,  # diffusers wants 1 of one tower
    }
    if n.zero_snr:
        found["rescale_betas_zero_snr"] = True
    levels = {ours: theirs for theirs, ours in SPACINGS_OF.items()}
    spacing = d.schedule if d.schedule in GRIDS_OF else None
    sigmas = d.schedule if d.schedule in levels else d.sigma_schedule
    if spacing is not None:
        found["timestep_spacing"] = spacing
    if sigmas in levels:
        found[levels[sigmas]] = True
    if d.final_table_sigma is not None:
        found["set_alpha_to_one"] = not d.final_table_sigma
    if kind == SOLVER:
        solvers = {ours: theirs for theirs, ours in MULTISTEP_OF.items()}
        algorithm, order = solvers.get(d.sampler, solvers["dpmpp_2m"])
        found |= {"algorithm_type": algorithm, "solver_order": order, "solver_type": "midpoint"}
    return found


def index_json(config: Config, scheduler: str) -> dict[str, Any]:
    """model_index.json: which classes of which libraries the parts are."""
    pair = len(config.text) > 1
    inpaint = "Inpaint" if config.unet.in_channels == 2 * config.vae.latent_channels + 1 else ""
    found: dict[str, Any] = {
        "_class_name": f"StableDiffusion{'XL' if pair else ''}{inpaint}Pipeline",
        "_diffusers_version": DIFFUSERS,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", scheduler],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for i, tower in enumerate(config.text):
        found[TOWERS[i]] = ["transformers", text_json(tower)["architectures"][0]]
        found[TOKENIZERS[i]] = ["transformers", "CLIPTokenizer"]
    if pair:
        return found | {"force_zeros_for_empty_prompt": config.defaults.zero_negative}
    return found | {"safety_checker": [None, None], "requires_safety_checker": False}


def write_tokenizer(folder: Path, source: Path, tower: TextConfig) -> None:
    """Copy a vocabulary, and write beside it what fills a row up: OpenCLIP's tower may come with OpenAI's files."""
    folder.mkdir(parents=True)
    both = all((source / name).is_file() for name in FILES)
    for name in FILES if both else (JOINED,):
        shutil.copyfile(source / name, folder / name)
    pad = next(word for word, i in read_vocabulary(source).ids.items() if i == tower.pad_id)
    bos, eos = SPECIAL
    words = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": pad}
    save(folder / "special_tokens_map.json", words)
    more = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tower.max_length, "do_lower_case": True}
    save(folder / "tokenizer_config.json", words | more)


def save(path: Path, data: dict[str, Any]) -> None:
    """Indented JSON, in a folder made for it."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


SOLVER = "DPMSolverMultistepScheduler"  # for dpmpp_2m, and where diffusers has no class
