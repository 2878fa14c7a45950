"""`--like PICTURE`: what no flag says is taken from the recipe inside a picture.

Torch is asked only whether CUDA is there, of a picture that was drawn on it.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

from ..config import VERSION, Config, check
from ..settings import ETA_SAMPLERS, Options
from ..weights.find import is_hub_id, locate, recorded_hash, sha256
from .common import BadInput, refusing

log = logging.getLogger("minisd")


def begin(args: argparse.Namespace) -> None:
    """Prompts, model and options, where no flag says them.

    Raises:
        BadInput: no recipe there, or one of a model or a picture that must be given.
    """
    reading = read_like(args)
    options, made = dict(reading.options), reading.made
    if args.words is None and args.prompt is None and getattr(args, "from_file", None) is None:
        args.prompt = reading.prompt
    if args.negative_prompt is None:
        args.negative_prompt = reading.negative_prompt
    if args.model is None:
        choose_model(args, reading.source, made)
    if args.sampler not in (None, options.get("sampler"), *ETA_SAMPLERS):
        options.pop("eta", None)  # it was for the other sampler
    for name in Options.__annotations__:
        if name != "clip_skip" and getattr(args, name, None) is None:  # that hangs on the model
            setattr(args, name, options.get(name))
    need_pictures(args, made)


def read_like(args: argparse.Namespace, config: Config | None = None) -> Any:
    """The picture's `Reading`."""
    from ..recipe import read

    with refusing():
        return read(args.like, config)


def choose_model(args: argparse.Namespace, source: str, made: dict[str, Any]) -> None:
    """The recorded model: mini, or what lies here under its name. Of the hub's only what is in the cache.

    A picture from anywhere must not start a download.

    Raises:
        BadInput: it must be given.
    """
    name = made.get("model", "")
    with refusing():
        known = name == "mini" or (name and Path(name).exists()) or is_hub_id(name)
    if source != "minisd" or not known:
        which = f"the model {name!r}" if name else "a model it does not name"
        raise BadInput(f"{args.like} was drawn by {which}: say where that is, with -m MODEL")
    args.model, args.offline = name, args.offline or is_hub_id(name)
    for flag in HOW_READ:
        if flag in made and not getattr(args, flag):
            setattr(args, flag, made[flag] == "True" if flag == "ema" else made[flag])


def need_pictures(args: argparse.Namespace, made: dict[str, Any]) -> None:
    """A picture and a mask that it was drawn with are not inside it.

    Raises:
        BadInput: it was not given.
    """
    for key, name, flag in (("image", "init_img", "-i"), ("mask", "mask", "--mask")):
        if key in made and getattr(args, name, None) is None:
            known = made[key].get("name")
            which = f"the {key} {str(known)!r}" if known else f"{'an' if key == 'image' else 'a'} {key}"
            raise BadInput(f"{args.like} was drawn with {which}: give it, {flag} FILE")
    if "outpaint" in made and getattr(args, "outpaint", None) is None:
        whole = len(made["outpaint"]) == 4 and all(type(side) is int and side >= 0 for side in made["outpaint"])
        with refusing():
            check(whole, f"{args.like}: its recipe is damaged: outpaint {made['outpaint']}")
        args.outpaint = tuple(made["outpaint"])


def follow(args: argparse.Namespace, config: Config) -> None:
    """The rest, once the model is known. What is not honoured, and where the picture may differ, is noted."""
    reading = read_like(args, config)
    if args.clip_skip is None:
        args.clip_skip = reading.options.get("clip_skip")
    choose_machine(args, reading.made)
    for note in (*reading.notes, *compared(args, reading.made), *other_pictures(args, reading.made)):
        log.info("%s: %s", args.like, note)
    if reading.ignored:
        log.info("%s: not honoured: %s", args.like, ", ".join(reading.ignored))
    if log.isEnabledFor(logging.DEBUG):
        compare_versions(args, reading.made)


def choose_machine(args: argparse.Namespace, made: dict[str, Any]) -> None:
    """The recorded device and dtype, where they are here."""
    device, dtype = made.get("device"), DTYPES.get(made.get("dtype"))
    if args.device == "auto" and device == "cpu":
        args.device = "cpu"
    if args.device == "auto" and device == "cuda":
        if cuda():
            args.device = "cuda"
        else:
            log.info("%s: drawn on CUDA, which is not here: the pixels may differ", args.like)
    if args.dtype != "auto" or dtype is None:
        return
    if dtype == "fp16" and (args.device == "cpu" or not cuda()):
        log.info("%s: drawn in fp16, which is not for the CPU: the pixels may differ", args.like)
    else:
        args.dtype = dtype


def cuda() -> bool:
    """Whether torch sees a CUDA device."""
    import torch

    return torch.cuda.is_available()


def compared(args: argparse.Namespace, made: dict[str, Any]) -> list[str]:
    """Where the model at hand is not the recorded one."""
    told = {flag: made[flag] for flag in (*HOW_READ, *PUT_IN) if made.get(flag)}
    missing = (f"{flag} {value}" for flag, value in told.items() if not getattr(args, flag, None))
    notes = [f"drawn with {what}, which no flag gives here" for what in missing]
    wanted = made.get("model_sha256", "").lower()
    here = hash_here(args) if len(wanted) >= 10 else ""  # 8 digits are of a kind that is no longer in use
    if here and not here.startswith(wanted):
        name = made.get("model", "the model")
        notes.append(f"drawn by other weights of {name}: their hash is {wanted[:10]}, not {here[:10]}")
    return notes


def other_pictures(args: argparse.Namespace, made: dict[str, Any]) -> list[str]:
    """Where the picture or mask given is not the recorded one."""
    notes = []
    for key, name in (("image", "image"), ("mask", "mask_image")):
        given, wanted = getattr(args, name, None), made.get(key, {}).get("sha256")
        if given is not None and wanted is not None:
            from ..picture import describe

            if describe(given)["sha256"] != wanted:
                notes.append(f"drawn with another {key} than the one given here")
    return notes


def hash_here(args: argparse.Namespace) -> str:
    """The hash a picture of this model would carry; "" where it would carry none."""
    if args.vae is not None or is_hub_id(args.model or "mini"):
        return ""
    kind, path = locate(args.model)
    with refusing():
        return {"minisd": recorded_hash, "file": sha256}.get(kind, lambda _: "")(path)


def compare_versions(args: argparse.Namespace, made: dict[str, Any]) -> None:
    """The last bits of a pixel may change with either."""
    import torch

    for name, here in {"minisd": VERSION, "torch": torch.__version__}.items():
        if made.get(name, here) != here:
            log.debug("%s: drawn by %s %s, here is %s", args.like, name, made[name], here)


HOW_READ = ("prediction", "variant", "ema", "revision")
PUT_IN = ("vae", "loras", "embeddings")
DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
