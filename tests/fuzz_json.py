"""Damaged JSON configs: ours, and those of a diffusers folder. In: a random.Random. Out: what reading them did."""

import json
import random
import shutil
import traceback
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch
from fuzz import mutate

from minisd.config import Config
from minisd.weights.diffusers import read_config
from minisd.weights.find import BUNDLED
from minisd.weights.folder import modules
from minisd.weights.foreign import Fields

OURS = "config.json"
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
THEIRS = {  # a small SDXL-like folder, so that every rule has its field
    "model_index.json": {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True},
    "scheduler/scheduler_config.json": {
        "_class_name": "EulerDiscreteScheduler",
        "prediction_type": "epsilon",
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "use_karras_sigmas": False,
        "set_alpha_to_one": False,
        **NOISE,
    },
    "unet/config.json": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "cross_attention_dim": 64,
        "norm_num_groups": 8,
        "sample_size": 32,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 68,
    },
    "vae/config.json": {
        "block_out_channels": [16, 32],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 8,
        "scaling_factor": 0.13025,
    },
    **{
        f"text_encoder{suffix}/config.json": {
            "vocab_size": 634,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "max_position_embeddings": 20,
            "hidden_act": "gelu",
            "projection_dim": 20,
        }
        for suffix in ("", "_2")
    },
}
ODD = [None, True, False, 0, -1, 1, 3, 7, 2**31, 2**64, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "v", "\0"]
ODD += ["../x", "\ud800", [], {}, [[]], [1] * 40, [0], ["DownBlock2D"], {"a": 1}, "9" * 5000, [2**40, 8]]


def write_folders(home: Path) -> list[Path]:
    """Good configs: one of ours, and a diffusers folder's with the bundled tokenizer. The files to damage."""
    (home / "ours").mkdir()
    shutil.copy(BUNDLED / OURS, home / "ours" / OURS)
    for name, fields in THEIRS.items():
        (home / "theirs" / name).parent.mkdir(parents=True, exist_ok=True)
        (home / "theirs" / name).write_text(json.dumps(fields))
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(BUNDLED / "tokenizer", home / "theirs" / name)
    return [home / "ours" / OURS, *(home / "theirs" / name for name in THEIRS)]


def damage(good: bytes, rng: random.Random) -> bytes:
    """A third of the time wounded bytes; else one to four values that are odd, gone, new or in the wrong place."""
    if rng.random() < 0.33:
        return mutate(good, rng)
    data = json.loads(good)
    for _ in range(rng.choice((1, 1, 2, 4))):
        places = list(slots(data)) or [({"_": 0}, "_")]
        box, key = rng.choice(places)
        kind, odd = rng.randrange(4), deepcopy(rng.choice(ODD))
        if kind == 0:
            box[key] = odd
        elif kind == 1:
            other, name = rng.choice(places)
            box[key] = deepcopy(other[name])
        elif kind == 2 and isinstance(box, dict):
            box[rng.choice((f"{key}_", "_x", "steps", "use_beta_sigmas", "class_embed_type"))] = odd
        else:
            del box[key]
    return json.dumps(data).encode()


def slots(data: object) -> Iterator[tuple]:
    """Every place of a value: (the dict or list that holds it, its key)."""
    for key in list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield data, key
        yield from slots(data[key])


def attempt(path: Path) -> str:
    """Read the config that a damaged file is part of, and build its networks without numbers."""
    try:
        if path.parent.name == "ours":
            config = Config.load(path)
        else:
            home = next(p for p in path.parents if p.name == "theirs")
            config = read_config(home, Fields.of(home, "model_index.json", optional=True), [])
        with torch.device("meta"):
            modules(config)
        return "loaded"
    except ValueError as error:
        line = str(error)
        return "refused" if line.isprintable() and len(line) < 1000 else f"wrong: {line[:300]!r}"
    except Exception:  # whatever else a config can raise is a fault of the reader
        return f"wrong: {traceback.format_exc()[-600:]}"
