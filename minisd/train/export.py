"""The last stage: what was trained, as a model folder that `minisd.load` reads. And the way back, to train on.

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
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config import Config, TextConfig
from ..files import atomic
from ..weights.folder import WEIGHTS, save
from .checkpoint import trained
from .log import read

NETWORKS = ("clip", "vae", "unet")
FINISHED = "stages.json"


def export(run: Path, config: Config, folder: Path) -> None:
    """Write the model of a run folder.

    Raises:
        FileNotFoundError: a stage has not been trained yet.
    """
    tensors: dict[str, Tensor] = {f"vae.{k}": v for k, v in trained(run / "vae.safetensors")}
    tensors |= {f"unet.{k}": v for k, v in trained(run / "unet.safetensors", "unet.")}
    # A text tower tuned on with the UNet is in its checkpoint; a frozen one is still CLIP's.
    text = dict(trained(run / "unet.safetensors", "text.")) or dict(trained(run / "clip.safetensors", "text."))
    tensors |= {f"text.0.{k}": v for k, v in text.items()}
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    made = {"stages": {stage: summary(run / f"{stage}.jsonl") for stage in NETWORKS}}
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
    tensors = {part + k: v for part in ("text.", "image.") for k, v in trained(path, part)}
    if "image.position" not in tensors:
        return
    with safe_open(path, "pt") as file:
        recipe = json.loads(file.metadata()["recipe"])
    size = 8 * math.isqrt(len(tensors["image.position"]))
    tower = {"size": size} | {name: recipe[name] for name in ("width", "layers", "heads")}
    shutil.copytree(run / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    metadata = {"text": json.dumps(asdict(config)), "image": json.dumps(tower)}
    with atomic(folder / path.name) as temporary:
        save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, temporary, metadata)


def unpack(model: Path, run: Path) -> None:
    """A model folder as a run folder whose stages stand at step 0: `--resume` trains on from its weights.

    The clip stage's image tower is not in a model, so that stage cannot be trained on; the others do not need it. So it
    counts as finished, and so does the tokenizer.

    Raises:
        FileExistsError: the run folder holds a run already.
    """
    run.mkdir(parents=True, exist_ok=True)
    if (run / "config.json").exists():
        raise FileExistsError(f"{run} holds a run already: resume it without --init, or choose another --out")
    shutil.copytree(model / "tokenizer", run / "tokenizer", dirs_exist_ok=True)
    weights = {name: tensor.float() for name, tensor in load_file(model / WEIGHTS).items()}
    parts: dict[str, dict[str, Tensor]] = {"vae": {}, "unet": {}, "clip": {}}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".")
        if part == "text":  # tuned on with the UNet, or frozen: both places may be asked for it
            parts["clip"][f"text.{rest.partition('.')[2]}"] = tensor
        else:
            parts[part][rest if part == "vae" else name] = tensor
    parts["unet"] |= parts["clip"]
    for stage, tensors in parts.items():
        state = {f"{kind}.{name}": tensor.clone() for name, tensor in tensors.items() for kind in ("model", "ema")}
        with atomic(run / f"{stage}.safetensors") as path:
            save_file(state, path, metadata={"step": "0"})
    with atomic(run / FINISHED) as path:
        path.write_text(json.dumps({"tokenizer": None, "clip": None}) + "\n", encoding="utf-8")
    with atomic(run / "config.json") as path:  # last: a run folder with a config is whole
        shutil.copyfile(model / "config.json", path)


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
