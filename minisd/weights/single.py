"""One checkpoint file in an original layout, and the door to every foreign model.

In: a .safetensors or .ckpt file and a tokenizer folder, which no single file carries. Out: a `Model`.
`load_foreign` takes such a file or a diffusers folder; both become `Parts`, and `assemble` makes a model of them.
"""

import logging
from pathlib import Path

import torch
from torch import Tensor

from ..config import PREDICTION_NAMES, check, one_of
from ..pipeline import Model
from ..runtime import pick
from ..text.tokenizer import Tokenizer
from .detect import UNET, Found, detect, fit
from .diffusers import TOKENIZERS, Parts, is_diffusers, read_folder
from .folder import modules
from .keys import first
from .ldm import file_keys, split_fused
from .tensors import read_header, read_tensors

log = logging.getLogger("minisd")


def load_foreign(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    *,
    prediction: str | None = None,
    tokenizer: str | Path | None = None,
    variant: str | None = None,
    ema: bool = False,
) -> Model:
    """Load a diffusers folder or an original single file; what was found is logged in one line.

    Args:
        prediction: "eps", "v" or "x0" for a model that does not say (SD 2.x single files); None: as found.
        tokenizer: for a single file: a tokenizer folder, or one that holds tokenizer/ (and tokenizer_2/).
        variant: for a folder: which files, such as "fp16"; None: the plain ones where they are there.
        ema: for a single file: the averaged UNet, where the file has it.

    Raises:
        ValueError: it is no model that minisd has, damaged, or does not fit; at most six lines say why.
    """
    path = Path(path)
    if prediction is not None:
        one_of("prediction", prediction, PREDICTION_NAMES)
    check(path.exists(), f"there is no model at {str(path)!r}")
    if path.is_dir():
        check(is_diffusers(path), f"{path} is not a diffusers folder: it has no model_index.json")
        parts = read_folder(path, variant, prediction)
    else:
        parts = read_single(path, tokenizer, prediction, ema)
    return assemble(parts, device, dtype)


def read_single(path: Path, tokenizer: str | Path | None, prediction: str | None = None, ema: bool = False) -> Parts:
    """Read a single file.

    Raises:
        ValueError: as `load_foreign`.
    """
    tensors = read_tensors(path)
    metadata = read_header(path).metadata
    prediction = prediction or METADATA.get(metadata.get("modelspec.prediction_type", ""))
    try:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        found = detect(shapes, path.stem, prediction, guess=guess_prediction(tensors))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if ema:
        tensors = use_ema(tensors, found, path)
    aside = {name: tensors[name] for name in found.aside}
    used = split_fused({name: tensor for name, tensor in tensors.items() if name not in aside})
    with torch.device("meta"):
        like = modules(found.config).state_dict()
    fitting = fit(path, found.family, used, file_keys(found.config, found.layout), like)
    folders = tokenizer_folders(tokenizer, len(found.config.text))
    return Parts(found.config, fitting, folders, aside, list(found.notes), found.family)


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


def tokenizer_folders(tokenizer: str | Path | None, towers: int) -> list[Path]:
    """A tokenizer folder for each tower: the one given, or those inside it. Both of SDXL's are one vocabulary."""
    check(tokenizer is not None, "a single file carries no tokenizer: give one with --tokenizer DIR")
    folder = Path(tokenizer)
    first_one = folder / TOKENIZERS[0] if (folder / TOKENIZERS[0]).is_dir() else folder
    second = folder / TOKENIZERS[1] if (folder / TOKENIZERS[1]).is_dir() else first_one
    return [first_one, second][:towers]


def assemble(parts: Parts, device: str = "auto", dtype: str = "auto") -> Model:
    """Networks on the meta device, filled with the file's own tensors, then moved and cast one by one.

    The VAE is kept in fp32 where the rest is fp16: SDXL's gives NaN in it.
    """
    with torch.device("meta"):
        networks = modules(parts.config)
    runtime = pick(device, dtype, sum(p.numel() for p in networks.parameters()))
    tokenizers = [Tokenizer(path, text) for path, text in zip(parts.tokenizers, parts.config.text, strict=True)]
    networks.load_state_dict(parts.tensors, assign=True)
    parts.tensors = {}  # else the file's copy of each tensor would stay beside the cast one
    for name, network in networks.items():
        exact = name == "vae" and runtime.dtype == torch.float16
        network.to(runtime.device, torch.float32 if exact else runtime.dtype, memory_format=torch.channels_last)
    networks.eval().requires_grad_(False)
    left = f"; left aside: {len(parts.aside)} tensors ({first(list(parts.aside))})" if parts.aside else ""
    log.info("%s: %s, %s%s", parts.config.name, parts.family, runtime.reason, left)
    for note in parts.notes:
        log.warning("%s", note)
    origin = {"model": parts.config.name}
    return Model(parts.config, networks["text"], networks["unet"], networks["vae"], tokenizers, runtime, origin)


METADATA = {"v": "v", "v_prediction": "v", "epsilon": "eps", "eps": "eps"}  # modelspec.prediction_type
LAST_BIAS = "output_blocks.11.1.transformer_blocks.0.norm1.bias"
