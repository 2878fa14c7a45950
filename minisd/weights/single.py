"""One checkpoint file in an original layout.

In: a .safetensors or .ckpt file; a tokenizer folder, which no single file carries; perhaps a VAE of its own. Out: its
`Parts`, and from the parts of any foreign model, by `assemble`, a `Model`. `recognise` tells what a file is from its
header.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import check
from ..model import Model
from ..runtime import pick
from ..text.tokenizer import Tokenizer
from . import vae as vaes
from .detect import UNET, Found, detect, fit
from .diffusers import TOKENIZERS, Parts
from .folder import modules, place
from .keys import first
from .ldm import file_keys, split_fused
from .tensors import Header, read_header, read_tensors

log = logging.getLogger("minisd")


def read_single(
    path: Path,
    tokenizer: str | Path | None = None,
    prediction: str | None = None,
    ema: bool = False,
    vae: str | Path | None = None,
) -> Parts:
    """Read a single file. Without a `tokenizer` the parts have none; with a `vae` they lack it until `vae.swap`.

    Raises:
        ValueError: it is no model that minisd has, damaged, or does not fit; at most six lines say why.
    """
    tensors = read_tensors(path)
    _, found = recognise(path, prediction, guess_prediction(tensors))
    config = found.config
    if ema:
        tensors = use_ema(tensors, found, path)
    aside = {name: tensors[name] for name in found.aside}
    names, used = file_keys(config, found.layout), {k: v for k, v in tensors.items() if k not in aside}
    if vae is not None:
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith("vae.")}
        own = {name for name in used if name.startswith(found.layout.vae)}
        used = {name: tensor for name, tensor in used.items() if name not in own}
        config = config if own else replace(config, vae=vaes.config_of(vae, config.vae))
    with torch.device("meta"):
        like = modules(config).state_dict()
    fitting = fit(path, found.family, split_fused(used), names, like)
    folders = [] if tokenizer is None else tokenizer_folders(tokenizer, len(config.text))
    return Parts(config, fitting, folders, aside, list(found.notes), found.family)


def recognise(path: Path, prediction: str | None = None, guess: str = "eps") -> tuple[Header, Found]:
    """What a single file is, from its header alone.

    Raises:
        ValueError: damaged, or not a checkpoint that minisd has; one line.
    """
    header = read_header(path)
    shapes = {name: entry.shape for name, entry in header.tensors.items()}
    try:
        said = (METADATA.get(header.metadata.get(key, "")) for key in METADATA_KEYS)
        return header, detect(shapes, path.stem, prediction, guess, next(filter(None, said), None))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def guess_prediction(tensors: dict[str, Tensor]) -> str:
    """What an SD 2.x UNet predicts. ComfyUI tells by one bias of the last attention, larger in the v models."""
    bias = next((t for name, t in tensors.items() if name.endswith(LAST_BIAS)), None)
    return "v" if bias is not None and bias.float().std(unbiased=False) > 0.09 else "eps"


def use_ema(tensors: dict[str, Tensor], found: Found, path: Path) -> dict[str, Tensor]:
    """The UNet's averaged copy in its place: model_ema. and the name after `model.`, without its dots."""
    base = found.layout.unet.removesuffix(UNET)
    copies = {
        name: f"{base}model_ema.{name.removeprefix(base + 'model.').replace('.', '')}"
        for name in tensors
        if name.startswith(found.layout.unet)
    }
    missing = [copy for copy in copies.values() if copy not in tensors]
    check(not missing, f"{path} has no averaged (EMA) UNet: it lacks {first(missing)}")
    return {**tensors, **{name: tensors[copy] for name, copy in copies.items()}}


def tokenizer_folders(tokenizer: str | Path, towers: int) -> list[Path]:
    """A tokenizer folder for each tower: the one given, or those inside it. Both of SDXL's are one vocabulary."""
    folder = Path(tokenizer)
    first_one = folder / TOKENIZERS[0] if (folder / TOKENIZERS[0]).is_dir() else folder
    second = folder / TOKENIZERS[1] if (folder / TOKENIZERS[1]).is_dir() else first_one
    return [first_one, second][:towers]


def assemble(parts: Parts, device: str = "auto", dtype: str = "auto") -> Model:
    """Networks on the meta device, filled with the file's own tensors, then moved and cast one by one."""
    with torch.device("meta"):
        networks = modules(parts.config)
    runtime = pick(device, dtype, sum(p.numel() for p in networks.parameters()))
    tokenizers = [Tokenizer(path, text) for path, text in zip(parts.tokenizers, parts.config.text, strict=True)]
    stored = ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in parts.tensors.values()}))
    networks.load_state_dict(parts.tensors, assign=True)
    parts.tensors = {}  # else the file's copy of each tensor would stay beside the cast one
    place(networks, runtime, parts.config.vae)
    left = f"; left aside: {len(parts.aside)} tensors ({first(list(parts.aside))})" if parts.aside else ""
    log.info("%s: %s, stored as %s, %s%s", parts.config.name, parts.family, stored, runtime.reason, left)
    for note in parts.notes:
        log.warning("%s", note)
    origin = {"model": parts.config.name}
    return Model(parts.config, networks["text"], networks["unet"], networks["vae"], tokenizers, runtime, origin)


# https://github.com/Stability-AI/ModelSpec, and the same as ComfyUI writes it
METADATA_KEYS = ("modelspec.prediction_type", "modelspec.predict_key")
METADATA = {"v": "v", "v_prediction": "v", "epsilon": "eps", "eps": "eps", "sample": "x0", "x0": "x0"}
LAST_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
