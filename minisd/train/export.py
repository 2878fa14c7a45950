"""The last stage: what was trained, as a model folder that `minisd.load` reads; of a LoRA run, the LoRA's file.

In: a run folder. Out: config.json, tokenizer/, model.safetensors (EMA weights, fp16), index.json with the sha256 of
each file and a summary of the training log.
"""

import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..config import Config, TextConfig
from ..weights.folder import save
from ..weights.write import write_tensors
from .checkpoint import trained
from .log import read
from .start import network, started_from

NETWORKS = ("clip", "vae", "unet")


def export(run: Path, config: Config, folder: Path) -> None:
    """Write the model of a run folder.

    Raises:
        FileNotFoundError: a stage has not been trained yet, and the run has not started from a model.
    """
    tensors: dict[str, Tensor] = {}
    for name, prefix in (("vae", "vae."), ("unet", "unet."), ("text", "text.0.")):
        tensors |= {f"{prefix}{k}": v for k, v in network(run, name).items()}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    logs = {stage: run / f"{stage}.jsonl" for stage in NETWORKS}
    made: dict[str, Any] = {"stages": {stage: summary(log) for stage, log in logs.items() if log.exists()}}
    if started_from(run):
        made["started_from"] = started_from(run)
    save(folder, config, {k: v.to(torch.float16) for k, v in tensors.items()}, made)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(f"export: {sum(v.numel() for v in tensors.values()):,} parameters, {size / 1e6:.1f} MB in {folder}")


def keep_clip(run: Path, config: TextConfig, folder: Path) -> None:
    """Keep both towers of the clip stage, in fp16, to score pictures by (`minisd eval`); nothing where the run folder
    began with a model, which has no image tower.

    Raises:
        OSError: they cannot be written.
    """
    path = run / "clip.safetensors"
    if not path.exists():
        return
    tensors = {part + k: v for part in ("text.", "image.") for k, v in trained(path, part)}
    if "image.position" not in tensors:
        return
    with safe_open(path, "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    size = 8 * math.isqrt(len(tensors["image.position"]))
    tower = {"size": size} | {name: recipe[name] for name in ("width", "layers", "heads")}
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    metadata = {"text": json.dumps(asdict(config)), "image": json.dumps(tower)}
    write_tensors(folder / path.name, tensors, metadata, torch.float16)


def summary(log: Path) -> dict[str, Any]:
    """Ten points of a stage's log, each the mean of a stretch of steps, and the hours it took."""
    rows = [row for row in read(log) if "loss" in row]  # without the steps that were skipped
    images = sum(row["images"] for row in rows)
    hours = sum(row["images"] / row["images_per_second"] for row in rows) / 3600
    stretch = max(len(rows) // 10, 1)
    points = [mean(rows[i : i + stretch]) for i in range(0, len(rows), stretch)]
    return {"steps": len(rows), "images": int(images), "hours": round(hours, 2), "log": points}


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The mean of every figure that all of some rows of a log have; `step` is the last one's."""
    keys = [k for k in rows[0] if k not in ("step", "lr", "images") and all(k in row for row in rows)]
    return {"step": int(rows[-1]["step"])} | {k: float(f"{sum(row[k] for row in rows) / len(rows):.4g}") for k in keys}
