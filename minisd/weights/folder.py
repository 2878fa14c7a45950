"""minisd's own model folder, read and written.

config.json          the Config
tokenizer/           vocab.json, merges.txt (tokenizer_2/ for a second tower)
model.safetensors    text.*, unet.*, vae.* under minisd's own names
index.json           sha256 of every file, how the model was made
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import Config, VAEConfig, check
from ..files import atomic
from ..model import Model
from ..nn.clip import CLIPText
from ..nn.unet import UNet
from ..nn.vae import VAE
from ..runtime import Runtime, pick
from ..text.tokenizer import Tokenizer
from .find import BUNDLED, TOKENIZERS, WEIGHTS, find, read_config, recorded_hash, sha256  # noqa: F401  (handed on)
from .tensors import read_tensors


def load(model: str | Path | None = None, device: str = "auto", dtype: str = "auto") -> Model:
    """Load a model.

    Args:
        model: a model folder; None: the bundled one.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "fp32", "bf16" or "fp16".

    Raises:
        ValueError: no model there, weights that do not fit its config, or a device that is not there.
    """
    folder = find(model)
    config = Config.load(folder / "config.json")
    with torch.device("meta"):
        parts = modules(config)
    runtime = pick(device, dtype, sum(p.numel() for p in parts.parameters()))
    fill(parts, read_tensors(folder / WEIGHTS), f"{folder / WEIGHTS}")
    place(parts, runtime, config.vae)
    tokenizers = [Tokenizer(folder / TOKENIZERS[i], text) for i, text in enumerate(config.text)]
    origin = {"model": config.name, "model_sha256": recorded_hash(folder)}
    return Model(config, parts["text"], parts["unet"], parts["vae"], tokenizers, runtime, origin)


def modules(config: Config) -> nn.ModuleDict:
    """The three networks of a config, freshly made."""
    text = nn.ModuleList(CLIPText(tower) for tower in config.text)
    return nn.ModuleDict({"text": text, "unet": UNet(config.unet), "vae": VAE(config.vae)})


def place(networks: nn.ModuleDict, runtime: Runtime, config: VAEConfig) -> None:
    """Move and cast the networks one by one, for drawing.

    A VAE that asks for it (force_upcast) is kept in fp32 where the rest is fp16. Not where it is bf16, whose range is
    that of fp32: diffusers does the same.
    """
    for name, network in networks.items():
        exact = name == "vae" and runtime.dtype == torch.float16 and config.force_upcast
        network.to(runtime.device, torch.float32 if exact else runtime.dtype, memory_format=torch.channels_last)
    networks.eval().requires_grad_(False)


def fill(parts: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Assign tensors to modules on the meta device; every name and shape must fit.

    Raises:
        ValueError: what is missing, unexpected or mis-shaped, counted and with the first names.
    """
    wanted = parts.state_dict()
    faults = {
        "missing": [k for k in wanted if k not in tensors],
        "unexpected": [k for k in tensors if k not in wanted],
        "mis-shaped": [k for k in wanted if k in tensors and wanted[k].shape != tensors[k].shape],
        "of whole numbers": [k for k in tensors if not tensors[k].is_floating_point()],
    }
    said = [f"{len(names)} {kind} ({', '.join(names[:3])}…)" for kind, names in faults.items() if names]
    check(not said, f"{where} does not fit its config: {'; '.join(said)}")
    parts.load_state_dict(tensors, assign=True)


def save(folder: Path, config: Config, tensors: dict[str, Tensor], made: dict[str, Any]) -> None:
    """Write config, weights and index.json; the tokenizer's files must lie in the folder already.

    Args:
        tensors: text.*, unet.* and vae.*, in the dtype they are kept in.
        made: how the model came to be, plain data for index.json.
    """
    with atomic(folder / "config.json") as path:
        path.write_text(config.to_json(), encoding="utf-8")
    with atomic(folder / WEIGHTS) as path:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "index.json" and p.name[0] != ".")
    index = {"sha256": {str(p.relative_to(folder)): sha256(p) for p in files}, "made": made}
    with atomic(folder / "index.json") as path:
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
