"""What the files of a model hold, told from their headers: no tensor is read.

In: a checkpoint file, a LoRA, a VAE ..., or a diffusers folder. Out: plain data for `minisd info`.
"""

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from .ckpt import Entry
from .detect import FAMILIES, Found, detect
from .diffusers import TOWERS, Fields, read_config, weight_files
from .find import sha256
from .ldm import family_of
from .lora_names import other_kind, role_of, trained_for
from .single import LAST_BIAS, guess_prediction, recognise
from .tensors import read_header, read_tensors

Entries = Mapping[str, Entry]


class Shaped(NamedTuple):
    """What a tensor says of itself, without the tensor."""

    shape: tuple[int, ...]
    ndim: int


def about_file(path: Path) -> dict[str, Any]:
    """A .safetensors or .ckpt file: family, parameters, dtypes, hash and metadata, or what else it is.

    Raises:
        ValueError: it is damaged, or no such file.
    """
    header = read_header(path)
    entries = header.tensors
    said: dict[str, Any] = {"file": str(path), "bytes": path.stat().st_size, "format": header.kind}
    try:
        detect({name: entry.shape for name, entry in entries.items()}, path.stem)
    except ValueError as error:
        said |= about_lora(entries) or {"kind": str(error)}
        said |= {"parameters": count(entries), "dtype": dtypes(entries)}
    else:
        said |= about_checkpoint(path, entries)
    return said | {"metadata": header.metadata, "sha256": sha256(path)}


def about_checkpoint(path: Path, entries: Entries) -> dict[str, Any]:
    """Family, prediction, parameters and dtype of each network, what is left aside, and the config."""
    guess = "eps"
    if any(name.endswith(LAST_BIAS) for name in entries):  # a few hundred numbers tell the kinds of SD 2.x apart
        guess = guess_prediction(read_tensors(path))
    found = recognise(path, guess=guess)[1]
    networks = {name: of_network(entries, found, prefix) for name, prefix in prefixes(found).items()}
    return {
        "kind": "a checkpoint",
        "family": found.family,
        "prediction": found.config.noise.prediction,
        "parameters": {name: count(part) for name, part in networks.items()},
        "dtype": {name: dtypes(part) for name, part in networks.items()},
        "left_aside": {"tensors": len(found.aside), "first": list(found.aside[:3])},
        "notes": list(found.notes),
        "config": found.config.to_dict(),
    }


def prefixes(found: Found) -> dict[str, str]:
    """Where the names of each network begin."""
    towers = {TOWERS[i]: prefix for i, prefix in enumerate(found.layout.text)}
    return {**towers, "unet": found.layout.unet, "vae": found.layout.vae}


def of_network(entries: Entries, found: Found, prefix: str) -> Entries:
    """A network's own tensors."""
    aside = set(found.aside)
    return {name: entry for name, entry in entries.items() if name.startswith(prefix) and name not in aside}


def about_lora(entries: Entries) -> dict[str, Any]:
    """A LoRA: its rank, what it changes and for which family; {} where the file is none."""
    downs = {name: entry for name, entry in entries.items() if role_of(name)[1] == "down" and entry.shape}
    kind = other_kind(entries)
    if kind or not downs:
        return {"kind": kind} if kind else {}
    ranks = Counter(entry.shape[0] for entry in downs.values())
    text = sum(name.startswith(("lora_te", "text_encoder")) for name in downs)
    family, width = trained_for({name: Shaped(entry.shape, len(entry.shape)) for name, entry in downs.items()})
    return {
        "kind": "a LoRA: give it with --lora, beside a model",
        "family": family or "unknown",
        "context": width or None,
        "rank": sorted(ranks) if len(ranks) > 1 else next(iter(ranks)),
        "layers": {"unet": len(downs) - text, "text_encoder": text},
    }


def about_folder(folder: Path) -> dict[str, Any]:
    """A diffusers folder: the same, network by network.

    Raises:
        ValueError: as `minisd.weights.diffusers.read_folder`.
    """
    notes: list[str] = []
    config = read_config(folder, Fields.of(folder, "model_index.json", optional=True), notes)
    family = f"{FAMILIES[family_of(config)]} (context {config.unet.context_dim}, {config.noise.prediction})"
    said: dict[str, Any] = {"folder": str(folder), "kind": "a diffusers folder", "family": family}
    said["prediction"] = config.noise.prediction
    parts: dict[str, dict[str, Any]] = {"parameters": {}, "dtype": {}, "sha256": {}}
    for name in (*TOWERS[: len(config.text)], "unet", "vae"):
        files, told = weight_files(folder / name)
        entries = {key: entry for file in files for key, entry in read_header(file).tensors.items()}
        parts["parameters"][name], parts["dtype"][name] = count(entries), dtypes(entries)
        parts["sha256"] |= {f"{name}/{file.name}": sha256(file) for file in files}
        notes += told
    return said | parts | {"notes": notes, "config": config.to_dict()}


def count(entries: Entries) -> int:
    """How many numbers with a fraction; position_ids and the like are no parameters."""
    return sum(prod(entry.shape) for entry in entries.values() if entry.dtype.is_floating_point)


def dtypes(entries: Entries) -> str:
    """The dtypes of the parameters, the most frequent first."""
    found = Counter(entry.dtype for entry in entries.values() if entry.dtype.is_floating_point)
    return ", ".join(str(dtype).removeprefix("torch.") for dtype, _ in found.most_common())
