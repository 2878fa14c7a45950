"""A model from one layout into another: diffusers folder, original single file, minisd folder.

In: what `minisd.load` takes, and where to. Out: files with the same tensors, bit for bit, and a list of what the new
layout has no place for. The config is read back from what is written, and a model that would come back as another one
is refused. No network is run; beside the source, which is mapped, only joined and turned tensors are held in memory.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..config import Config, check, one_of
from ..runtime import DTYPES
from ..text.tokenizer import FILES, JOINED
from . import aside as asides
from .detect import detect
from .diffusers import TOKENIZERS, Parts, is_diffusers
from .diffusers import read_config as diffusers_config
from .find import SUFFIXES, WEIGHTS, check_options, locate, sha256
from .foreign import Fields, noise_config
from .hub import find_tokenizers
from .keys import first
from .ldm import family_of, to_file
from .load import named, read_parts
from .single import METADATA
from .tensors import read_header
from .to_diffusers import save, write_configs, write_weights
from .write import whole_folder, write_tensors


@dataclass
class Job:
    """One conversion: from where, what was read there, where to, and what is to be said of it."""

    kind: str  # of the source: "diffusers", "file" or "minisd"
    source: Path
    target: Path
    parts: Parts
    dtype: torch.dtype | None
    overwrite: bool
    guessed: bool  # what the UNet predicts
    notes: list[str] = field(default_factory=list)

    def left_out(self, names: list[str]) -> None:
        """Note tensors that have no place in the new layout."""
        if names:
            self.notes.append(f"left out, the new layout has no place for them: {len(names)} tensors ({first(names)})")


def convert(
    source: str | Path | None,
    target: str | Path,
    *,
    to: str | None = None,
    dtype: str = "keep",
    overwrite: bool = False,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    ema: bool = False,
    revision: str | None = None,
    offline: bool = False,
) -> list[str]:
    """Write a model in another layout.

    Args:
        source: as `minisd.load` takes it.
        target: a name ending in .safetensors, or a folder's name.
        to: "ldm" (the original single file), "diffusers" or "minisd"; None: ldm for a file, diffusers for a folder.
        dtype: "fp32", "fp16", "bf16", or "keep" for the source's own.
        overwrite: the target may exist; a folder is replaced only where it is a model.
        tokenizer, prediction, variant, vae, ema, revision, offline: as in `minisd.load`.

    Returns:
        Notes: what the new layout has no place for.

    Raises:
        ValueError: the source is no model, or one that the new layout cannot hold; the target is taken.
    """
    target = Path(target)
    to = check_target(target, to, dtype, overwrite)
    check(to != "ldm" or tokenizer is None, "a single file carries no tokenizer: leave it out")
    kind, path = locate(source, revision=revision, variant=variant, offline=offline)
    check(apart(path.resolve(), target.resolve()), f"{target} and {path} are one, or one lies in the other")
    asked = {"tokenizer": tokenizer, "prediction": prediction, "variant": variant, "ema": ema}
    check_options(kind, path, **asked)
    parts = named(read_parts(kind, path, vae=vae, **asked), source)
    if to != "ldm":
        parts.tokenizers = parts.tokenizers or find_tokenizers(parts.config, offline)
    guessed = kind == "file" and prediction is None and bool(parts.notes)
    job = Job(kind, path, target, parts, DTYPES.get(dtype), overwrite, guessed, list(parts.notes))
    WRITERS[to](job)
    return job.notes


def apart(one: Path, other: Path) -> bool:
    """Whether neither path is the other or lies in it."""
    return one != other and one not in other.parents and other not in one.parents


def check_target(target: Path, to: str | None = None, dtype: str = "keep", overwrite: bool = False) -> str:
    """The layout that is asked for, once its place is known to be free.

    Raises:
        ValueError: an unknown layout or dtype, a name that does not fit the layout, a place that is taken.
    """
    file = target.suffix.lower() in SUFFIXES
    to = ("ldm" if file else "diffusers") if to is None else to
    one_of("layout", to, WRITERS)
    one_of("dtype", dtype, ("keep", *DTYPES))
    known = not file or target.suffix.lower() == ".safetensors"
    check(known, f"{target}: minisd writes .safetensors and no other kind of file")
    kind = "a file, whose name ends in .safetensors" if to == "ldm" else "a folder"
    check(file == (to == "ldm"), f"{target}: the layout {to} is {kind}")
    check(target.parent.is_dir(), f"{target}: there is no folder {str(target.parent)!r}")
    check(overwrite or not target.exists(), f"{target} exists: choose another name, or add --overwrite")
    model = is_diffusers(target) or all((target / name).is_file() for name in ("config.json", WEIGHTS))
    there = target.exists() and not (target.is_file() if file else model)
    check(not there, f"{target} is no model {'file' if file else 'folder'}, and is not overwritten")
    return to


def to_diffusers(job: Job) -> None:
    """Write a diffusers folder; the scheduler's config is the source's own where it has one."""
    parts = without_projection(job)
    config = parts.config
    aside, left = asides.translate(parts.aside, job.kind, "diffusers", config)
    job.left_out(left)
    name = "scheduler/scheduler_config.json"
    own = job.kind == "diffusers" and noise_config(Fields.of(job.source, name)) == config.noise
    with whole_folder(job.target) as folder:
        write_configs(folder, parts, job.source / name if own else None)
        compare(job, config, diffusers_config(folder, Fields.of(folder, "model_index.json"), []))
        write_weights(folder, parts, aside, job.dtype)


def without_projection(job: Job) -> Parts:
    """A tower whose pooled vector nobody takes has no projection in transformers."""
    parts, config = job.parts, job.parts.config
    towers = tuple(tower if tower.pooled else replace(tower, projection=0) for tower in config.text)
    gone = [f"text.{i}.projection.weight" for i, tower in enumerate(config.text) if tower != towers[i]]
    job.left_out(gone)
    tensors = {name: tensor for name, tensor in parts.tensors.items() if name not in gone}
    return replace(parts, config=replace(config, text=towers), tensors=tensors)


def to_single(job: Job) -> None:
    """Write an original single file."""
    config, tensors = job.parts.config, job.parts.tensors
    aside, left = asides.translate(job.parts.aside, job.kind, "file", config)
    job.left_out(left)
    whole, layers = config, config.text[0].layers
    if family_of(config) == "sd2" and not any(f".resblocks.{layers}." in name for name in aside):
        whole = replace(config, text=(replace(config.text[0], layers=layers + 1),))
        tensors = {**tensors, **asides.last_block(tensors, layers)}
        job.notes.append("added: the text encoder's last block, which these files have and nothing uses, as zeros")
    found = {**to_file(tensors, whole), **aside}
    marked = {"ztsnr": config.noise.zero_snr, "v_pred": config.noise.prediction == "v" and family_of(config) != "sd2"}
    found |= {name: torch.zeros(0) for name, there in marked.items() if there}
    metadata = metadata_of(job)
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    told = METADATA.get(metadata.get("modelspec.prediction_type", ""))
    compare(job, config, detect(shapes, config.name, told, guess=config.noise.prediction).config)
    write_tensors(job.target, found, metadata, job.dtype, aside, job.overwrite)


def metadata_of(job: Job) -> dict[str, str]:
    """The words of the source, and what the UNet predicts unless that was only guessed."""
    words = read_header(job.source).metadata if job.kind == "file" else {}
    kind = {"eps": "epsilon", "v": "v", "x0": "sample"}[job.parts.config.noise.prediction]
    return {**words, "format": "pt"} | ({} if job.guessed else {"modelspec.prediction_type": kind})


def to_minisd(job: Job) -> None:
    """Write minisd's own folder."""
    parts = job.parts
    job.left_out(list(parts.aside))
    with whole_folder(job.target) as folder:
        (folder / "config.json").write_text(parts.config.to_json(), encoding="utf-8")
        for name, source in zip(TOKENIZERS[: len(parts.tokenizers)], parts.tokenizers, strict=True):
            (folder / name).mkdir()
            for file in TOKENIZER_FILES:
                if (source / file).is_file():
                    shutil.copyfile(source / file, folder / name / file)
        write_tensors(folder / WEIGHTS, parts.tensors, {"format": "pt"}, job.dtype)
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        made = {"converted_from": parts.config.name, "layout": job.kind}
        save(folder / "index.json", {"sha256": {str(p.relative_to(folder)): sha256(p) for p in files}, "made": made})


def compare(job: Job, config: Config, again: Config) -> None:
    """Hold what comes back against what was to be written. What only says how to draw with it is noted.

    Raises:
        ValueError: the model itself would come back as another one.
    """
    before, after = dict(flattened(config.to_dict())), dict(flattened(again.to_dict()))
    other = [name for name in before | after if name != "name" and before.get(name) != after.get(name)]
    soft = [name for name in other if name.startswith("defaults.") or name == "vae.force_upcast"]
    model = [f"{name} {after.get(name)}, not {before.get(name)}" for name in other if name not in soft]
    check(not model, f"{job.target}: this layout cannot hold the model; it would come back with {first(model)}")
    said = [f"{name.removeprefix('defaults.')} {before.get(name)} (there: {after.get(name)})" for name in soft]
    if said:
        job.notes.append(f"not kept, the new layout has its own: {', '.join(said)}")


def flattened(data: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Plain data as pairs such as ("text.0.width", 768)."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from flattened(value, f"{name}.{key}" if name else key)
    elif isinstance(data, list) and data and isinstance(data[0], dict):
        for i, value in enumerate(data):
            yield from flattened(value, f"{name}.{i}")
    else:
        yield name, data


TOKENIZER_FILES = (*FILES, JOINED, "special_tokens_map.json", "tokenizer_config.json")
WRITERS = {"diffusers": to_diffusers, "ldm": to_single, "minisd": to_minisd}
