"""A VAE of its own file or folder, in place of the one that a model carries.

In: a diffusers folder (one that holds vae/, or the VAE's own), or a .safetensors or .ckpt file in the original or the
diffusers layout; of a whole checkpoint its VAE is taken. Out: the tensors under minisd's names, if they fit.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import VAEConfig, check
from ..nn.vae import VAE
from . import keys, ldm
from .detect import fit, vae_config
from .diffusers import Parts, read_weights, weight_files
from .diffusers import vae_config as folder_config
from .foreign import Fields
from .tensors import read_header, read_tensors


def swap(parts: Parts, path: str | Path) -> None:
    """Put the VAE of a file or folder into a model's parts.

    Raises:
        ValueError: it is none, is damaged, or does not fit the model's config; at most six lines.
    """
    config = parts.config
    tensors = read_vae(path, config.vae, config.name)
    if (folder := home(path)) is not None:  # in which dtype it runs is its own matter
        upcast = folder_config(Fields.of(folder, "config.json"), len(config.text) > 1).force_upcast
        parts.config = replace(config, vae=replace(config.vae, force_upcast=upcast))
    kept = {name: tensor for name, tensor in parts.tensors.items() if not name.startswith("vae.")}
    parts.tensors = kept | {f"vae.{name}": tensor for name, tensor in tensors.items()}


def read_vae(path: str | Path, config: VAEConfig, model: str) -> dict[str, Tensor]:
    """The tensors of a VAE, under the names of `minisd.nn.vae.VAE` and in its shapes.

    Args:
        config: what the model's VAE is. Its scale factor belongs to the UNet, so another one is refused.
        model: the model's name, for messages.

    Raises:
        ValueError: as `swap`.
    """
    folder = home(path)
    if folder is None:
        tensors = behind_prefix(read_tensors(path), path)
    else:
        scale = folder_config(Fields.of(folder, "config.json")).scale_factor
        other = f"{path} does not fit: its latents are scaled by {scale:g}, those of {model} by {config.scale_factor:g}"
        known = " (a VAE of SDXL)" if scale == SDXL_SCALE else " (a VAE of SD 1.x or 2.x)" if scale == SD_SCALE else ""
        check(scale == config.scale_factor, other + known)
        tensors, _ = read_weights(folder)
    with torch.device("meta"):
        like = VAE(config).state_dict()
    return fit(path, f"a VAE as {model} has", tensors, table(tensors, config), like)


def config_of(path: str | Path, default: VAEConfig) -> VAEConfig:
    """What a VAE is, from its config.json or its shapes, for a model that comes without one.

    Args:
        default: the scale factor of a file, and the whole where the file does not tell.
    """
    folder = home(path)
    if folder is not None:
        return folder_config(Fields.of(folder, "config.json"))
    found = behind_prefix(read_header(path).tensors, path)
    shapes = {name: entry.shape for name, entry in found.items()}
    return vae_config(shapes, "sdxl" if default.scale_factor == SDXL_SCALE else "") if is_original(found) else default


def check_vae(path: str | Path) -> None:
    """Refuse, from its header alone, what is no VAE.

    Raises:
        ValueError: one line that says why.
    """
    folder = home(path)
    if folder is None:
        config_of(path, VAEConfig())
    else:
        folder_config(Fields.of(folder, "config.json"))
        for file in weight_files(folder)[0]:
            read_header(file)


def home(path: str | Path) -> Path | None:
    """The folder that holds the VAE's config.json; None for a file.

    Raises:
        ValueError: there is nothing, or a folder without one.
    """
    path = Path(path)
    check(path.exists(), f"there is no VAE at {str(path)!r}: give a file or a folder")
    if not path.is_dir():
        return None
    folder = path / "vae" if (path / "vae" / "config.json").is_file() else path
    check((folder / "config.json").is_file(), f"{path} holds no VAE: it has neither vae/config.json nor config.json")
    return folder


def behind_prefix(tensors: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """A VAE's tensors without what stands before their names; the rest of the file is left.

    Raises:
        ValueError: there are none.
    """
    prefixes = sorted((name.removesuffix(FIRST) for name in tensors if name.endswith(FIRST)), key=len)
    prefixes = [p for p in prefixes if p == "" or p.endswith(".")]
    check(bool(prefixes), f"{path} holds no VAE: it has no tensor called {FIRST}")
    starts = tuple(f"{prefixes[0]}{part}" for part in PARTS)
    return {name.removeprefix(prefixes[0]): t for name, t in tensors.items() if name.startswith(starts)}


def table(tensors: dict[str, Tensor], config: VAEConfig) -> keys.Table:
    """minisd name -> name in the layout that these tensors have."""
    if is_original(tensors):
        return ldm.vae_keys(config)
    return keys.vae_keys(config, old=any(".query." in name for name in tensors))


def is_original(tensors: Iterable[str]) -> bool:
    """CompVis' layout and not diffusers'."""
    return any(name.startswith("encoder.down.") for name in tensors)


FIRST = "encoder.conv_in.weight"
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
SD_SCALE, SDXL_SCALE = 0.18215, 0.13025
