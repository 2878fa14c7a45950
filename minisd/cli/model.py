"""The flags that say which model, for every command that reads one: checked first, loaded later. No torch up here."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..config import PREDICTION_NAMES, Config, check
from ..weights.find import check_options, count_parameters, locate
from ..weights.find import read_config as own_config
from .common import BadInput, Parser, add_choice, number, refusing


def add_model_flags(parser: Parser) -> None:
    """Which model, and what is put into it."""
    group = parser.add_argument_group("model")
    kinds = "a model folder, a .safetensors or .ckpt file, or owner/name of the hub (default: the bundled mini)"
    group.add_argument("-m", "--model", metavar="MODEL", help=kinds)
    add_source_flags(group)
    lora = "a LoRA, at its own strength or times WEIGHT; may be given several times"
    group.add_argument("--lora", action="append", default=[], metavar="FILE[:WEIGHT]", help=lora)
    embedding = "a textual inversion, called in the prompt by WORD or by its own; may be given several times"
    group.add_argument("--embedding", action="append", default=[], metavar="FILE[:WORD]", help=embedding)


def add_source_flags(group: Any) -> None:
    """How a model is read."""
    group.add_argument("--vae", metavar="PATH", help="a file or folder whose VAE takes the place of the model's own")
    own = "for a single file, which carries none: a tokenizer folder (default: the hub's cache, then the hub)"
    group.add_argument("--tokenizer", metavar="FOLDER", help=own)
    add_choice(group, "--prediction", PREDICTION_NAMES)
    group.add_argument("--ema", action="store_true", help="of a single file that has it: the averaged UNet")
    group.add_argument("--variant", metavar="NAME", help="which weights of a diffusers folder, such as fp16")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a model on the hub")
    group.add_argument("--offline", action="store_true", help="never ask the hub; what its cache has is taken")


def check_model(args: argparse.Namespace) -> Config:
    """All that can be known of the model without reading a tensor; a hub's model gives its small files.

    Of minisd's own folders torch is not needed for it.

    Raises:
        BadInput: the first thing that does not fit.
    """
    args.loras = [parse_lora(text) for text in args.lora]
    args.embeddings = [parse_embedding(text) for text in args.embedding]
    with refusing():
        source = {"revision": args.revision, "variant": args.variant, "offline": args.offline}
        kind, path = locate(args.model, **source, weights=False)
        check_options(kind, path, **told(args))
        args.parameters = count_parameters(path) if kind == "minisd" else None
        config = own_config(path) if kind == "minisd" else foreign_config(kind, path, args)
        check_parts(args)
    return config


def told(args: argparse.Namespace) -> dict[str, Any]:
    """What `read_parts` and `check_options` want to know."""
    return {"tokenizer": args.tokenizer, "prediction": args.prediction, "variant": args.variant, "ema": args.ema}


def foreign_config(kind: str, path: Path, args: argparse.Namespace) -> Config:
    """The config of another library's model."""
    from ..weights.load import read_config

    return read_config(kind, path, args.prediction)


def check_parts(args: argparse.Namespace) -> None:
    """Refuse a VAE, LoRA, embedding or tokenizer that is not there, or whose file is damaged.

    Raises:
        ValueError: the first one.
    """
    files = [Path(path) for path in (*(path for path, _ in args.loras), *(path for path, _ in args.embeddings))]
    for path in files:
        check(path.is_file(), f"there is no file {str(path)!r}")
    check(args.tokenizer is None or Path(args.tokenizer).is_dir(), f"there is no tokenizer folder {args.tokenizer!r}")
    if files or args.vae is not None:
        from ..weights.tensors import read_header
        from ..weights.vae import check_vae

        for path in files:
            read_header(path)
        if args.vae is not None:
            check_vae(args.vae)


def parse_lora(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT. A file whose own name has a colon is taken whole where it is there.

    Raises:
        BadInput: the weight is no finite number.
    """
    path, colon, weight = text.rpartition(":")
    if not colon or Path(text).is_file():
        return text, 1.0
    try:
        return path, number(weight)
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"--lora {text}: there is no such file, and behind the colon {error}") from error


def parse_embedding(text: str) -> tuple[str, str | None]:
    """FILE or FILE:WORD; None: the file's own word."""
    path, colon, word = text.rpartition(":")
    return (path, word) if colon and not Path(text).is_file() and Path(path).is_file() else (text, None)


def load_model(args: argparse.Namespace, say: Callable[[str], None]) -> Any:
    """Choose the device, say why, load, and put in what else was asked for. Foreign models are told by the log."""
    import torch

    from ..runtime import pick
    from ..weights.load import load

    if args.threads:
        torch.set_num_threads(args.threads)
    with refusing():
        reason = pick(args.device, args.dtype, args.parameters or 0).reason
        if args.parameters and args.vae is None:
            say(reason)
        source = {"vae": args.vae, "revision": args.revision, "offline": args.offline}
        model = load(args.model, args.device, args.dtype, **source, **told(args))
        for path, word in args.embeddings:
            from ..weights.embeddings import add_embedding

            add_embedding(model, path, word)
        if args.loras:
            from ..weights.lora import load_loras

            load_loras(model, args.loras)
    if model.config.unet.in_channels > model.config.unet.out_channels and args.init_img is None:
        say("minisd: note: a model made for inpainting, which is given no picture here: it draws all of it")
    return model
