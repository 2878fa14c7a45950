"""The one door for models: minisd's own folders, diffusers folders, original single files and the hub's models.

In: what a user calls a model. Out: `load` gives a `Model`, `read` its `Parts` before a network is built of them.
A folder or file is told by its content, never by its name.
"""

from dataclasses import replace
from pathlib import Path

import torch

from ..config import Config
from ..model import Model
from . import folder
from . import vae as vaes
from .detect import fit
from .diffusers import TOKENIZERS, Fields, Parts, read_folder
from .diffusers import read_config as diffusers_config
from .find import WEIGHTS, check_options, is_hub_id, locate
from .hub import find_tokenizers
from .single import assemble, read_single, recognise
from .tensors import read_tensors


def load(
    model: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    *,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    ema: bool = False,
    revision: str | None = None,
    offline: bool = False,
) -> Model:
    """Load a model.

    Args:
        model: a folder (minisd's own or diffusers'), a .safetensors or .ckpt file, or owner/name of the hub (only
            its .json, .txt and .safetensors are fetched); None or "mini": the bundled one.
        device: "auto", "cpu", "cuda" or "cuda:N".
        dtype: "auto", "fp32", "bf16" or "fp16".
        tokenizer: for a single file, which carries none: a tokenizer folder; None: from the hub's cache, or the hub.
        prediction: "eps", "v" or "x0" where a foreign model does not say.
        variant: for a diffusers folder: which of its weights, such as "fp16".
        vae: a file or folder whose VAE takes the place of the model's own.
        ema: of a single file: the averaged copy of its UNet, which some carry for training on.
        revision: of a model on the hub: a branch, tag or commit.
        offline: never ask the hub, its cache only.

    Raises:
        ValueError: no model there, damaged or of a kind minisd does not have, or a device that is not there.
    """
    asked = {"tokenizer": tokenizer, "prediction": prediction, "variant": variant, "ema": ema}
    kind, path = locate(model, revision=revision, variant=variant, offline=offline)
    check_options(kind, path, **asked)
    if kind == "minisd" and vae is None:
        return folder.load(path, device, dtype)
    parts = named(read_parts(kind, path, vae=vae, **asked), model)
    parts.tokenizers = parts.tokenizers or find_tokenizers(parts.config, offline)
    found = assemble(parts, device, dtype)
    # What another load would have to say too, for the pictures' recipes.
    told = {"prediction": prediction, "variant": variant, "ema": ema or None, "revision": revision}
    told["vae"] = None if vae is None else Path(vae).name
    found.origin |= {name: str(value) for name, value in told.items() if value is not None}
    return found


def read_parts(
    kind: str,
    path: Path,
    *,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
    variant: str | None = None,
    vae: str | Path | None = None,
    ema: bool = False,
) -> Parts:
    """The parts of a model that `locate` has found. Those of a single file have no tokenizers, unless one is given.

    Raises:
        ValueError: as `load`.
    """
    if kind == "file":
        parts = read_single(path, tokenizer, prediction, ema, vae)
    else:
        parts = read_own(path) if kind == "minisd" else read_folder(path, variant, prediction)
    if vae is not None:
        vaes.swap(parts, vae)
    return parts


def named(parts: Parts, model: str | Path | None) -> Parts:
    """A model of the hub is called by its owner/name; its folder in the cache is called by a commit."""
    if model is not None and is_hub_id(model):
        parts.config = replace(parts.config, name=str(model))
    return parts


def read_own(path: Path) -> Parts:
    """The parts of minisd's own folder.

    Raises:
        ValueError: its weights are damaged or do not fit its config.
    """
    config = Config.load(path / "config.json")
    with torch.device("meta"):
        like = folder.modules(config).state_dict()
    tensors = fit(path / WEIGHTS, "what its config says", read_tensors(path / WEIGHTS), {k: k for k in like}, like)
    return Parts(config, tensors, [path / name for name in TOKENIZERS[: len(config.text)]], family="minisd's own")


def read_config(kind: str, path: Path, prediction: str | None = None) -> Config:
    """The config of a foreign model that `locate` has found, without its tensors: to check a call before loading.

    A single file of SD 2.x that does not say what it predicts is taken for "eps" here.

    Raises:
        ValueError: as `load`.
    """
    if kind == "file":
        return recognise(path, prediction)[1].config
    return diffusers_config(path, Fields.of(path, "model_index.json", optional=True), [], prediction)
