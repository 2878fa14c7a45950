"""`minisd train STAGE`: tokenizer, clip, vae, unet, export, one after another into one run folder; or lora, export."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import Config, check
from ..files import check_writable
from ..train.recipe import Recipe
from ..weights.find import check_options, locate
from .common import Parser, add_common, choice, device, notes, positive, refusing
from .model import add_source_flags, told

# What each stage finds in the run folder from the stages before it. The names stand here so that --help needs no torch.
NEEDS = {
    "tokenizer": (),
    "clip": ("tokenizer",),
    "vae": (),
    "unet": ("tokenizer", "clip", "vae"),
    "lora": (),
    "export": ("tokenizer", "clip", "vae", "unet"),
}

EPILOG = """example, the bundled model:
  for stage in tokenizer clip vae unet export; do minisd train $stage --out runs/mini; done
  minisd generate "a red circle" -m runs/mini/model

pictures of your own, in a folder with metadata.jsonl (docs/training.md):
  minisd train lora --data pictures -m MODEL --out runs/mine      # -m: Stable Diffusion, or leave it out for mini
  minisd train unet --data pictures --init MODEL --out runs/mine  # all weights of the UNet

An interrupted stage goes on from its last checkpoint with --resume. Exit code: 0 done, 2 bad input, 1 a failure,
130 Ctrl-C."""


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("train", "Train a model, stage by stage.", EPILOG)
    parser.add_argument("stage", type=choice("stage", NEEDS), metavar="STAGE", help=", ".join(NEEDS))
    recipe = "a TOML recipe (default: that of the bundled model; with -m and --data finetune.toml)"
    parser.add_argument("--recipe", type=Path, metavar="FILE", help=recipe)
    change = "a field of the recipe, such as unet.steps=500; may be given several times"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=change)
    data = "a folder of pictures with metadata.jsonl, one {file_name, text} a line (default: the procedural world)"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data)
    out = "the run folder (default: runs/mini)"
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), metavar="FOLDER", help=out)
    group = parser.add_argument_group("model to start from")
    start = "a folder, file or hub id, or mini: train on from its weights in a new run folder; lora: train for it"
    group.add_argument("-m", "--init", "--model", dest="init", metavar="MODEL", help=start)
    add_source_flags(group)
    parser.add_argument("--rank", type=positive, metavar="N", help="of a LoRA: --set lora.rank=N")
    parser.add_argument("--resume", action="store_true", help="go on from the stage's checkpoint")
    parser.add_argument("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    add_common(parser)
    return parser


def default_recipe(name: str = "mini") -> Path:
    """A recipe of minisd's own: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside, beside = (folder / "configs" / "train" / f"{name}.toml" for folder in (package, package.parent))
    return inside if inside.exists() else beside


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    args = build_parser().parse(argv)
    with notes(args) as say:
        with refusing():
            recipe = read_recipe(args)
            data = read_data(args)
            if data is not None:
                say(f"{len(data.entries)} pictures in {data.root}")
            begin(args)
            base = checked(args, recipe)

        import torch

        from ..runtime import pick_device
        from ..train import stages

        with refusing():
            chosen, reason = pick_device(args.device)
        if chosen.type == "cuda" and "LOCAL_RANK" in os.environ:  # torchrun: one device a process
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        if args.threads:
            torch.set_num_threads(args.threads)
        say(f"{chosen}: {reason}; {args.stage} by {args.recipe} into {args.out}")
        model = {"model": args.init, **source(args)} if args.stage == "lora" else {}
        with refusing(ValueError):  # what only the stage can see, such as a picture that is damaged further down
            stages.STAGES[args.stage](stages.Run(recipe, args.out, base, chosen, args.resume, data, model))
    return 0


def read_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that is asked for, or the one that suits the call.

    Raises:
        ValueError, OSError: it is not there, or holds what no recipe does.
    """
    check(args.rank is None or args.stage == "lora", f"--rank is for lora, not for {args.stage}")
    fits = args.stage not in WHY_NOT or not (args.init or started(args.out))
    check(fits, f"{args.stage} cannot start from a model: {WHY_NOT.get(args.stage)}")
    fine = args.stage == "lora" or (args.data and (args.init or started(args.out)))
    args.recipe = args.recipe or default_recipe("finetune" if fine else "mini")
    rank = [] if args.rank is None else [f"lora.rank={args.rank}"]
    recipe = Recipe.load(args.recipe, [*args.set, *rank])
    check(getattr(recipe, args.stage, True) is not None, f"{args.recipe} has no section [{args.stage}]")
    return recipe


def read_data(args: argparse.Namespace) -> Any:
    """What lies in the folder of pictures, each found to be there.

    Raises:
        ValueError, OSError: the first thing that does not fit.
    """
    if args.data is None:
        check(args.stage != "lora", "lora needs pictures: --data FOLDER, with a metadata.jsonl in it")
        return None
    from ..train.listing import list_folder

    return list_folder(args.data)


def begin(args: argparse.Namespace) -> None:
    """Put the model to start from into the run folder, unless a run that goes on has it already.

    Raises:
        ValueError, OSError: it cannot be read, or cannot be trained on.
    """
    given = [flag for flag, value in source(args).items() if value]
    check(args.init is not None or not given, f"--{given[0] if given else ''} says how a model is read: name it, -m")
    if args.init is None or args.stage == "lora" or (args.resume and started(args.out)):
        return
    if os.environ.get("RANK", "0") != "0":  # torchrun: the first process does it
        while not (args.out / "config.json").exists():
            time.sleep(0.1)
        return
    from ..train.start import start_from

    start_from(args.init, args.out, **source(args))


def source(args: argparse.Namespace) -> dict[str, Any]:
    """How the model to start from is read."""
    return {"vae": args.vae, "revision": args.revision, "offline": args.offline, **told(args)}


def checked(args: argparse.Namespace, recipe: Recipe) -> Config | None:
    """The config to begin with, once all that can be known without torch is known to fit. A LoRA's is the model's.

    Raises:
        ValueError, OSError: the first thing that does not fit.
    """
    own = args.out / "config.json"
    if args.stage == "lora":
        hub = {"revision": args.revision, "variant": args.variant, "offline": args.offline}
        kind, path = locate(args.init, **hub, weights=False)
        check_options(kind, path, **told(args))
        base = None
    elif recipe.config is not None and not own.exists():
        base = Config.load(args.recipe.parent / recipe.config)
    else:
        check(own.exists(), f"{args.recipe} names no model config: start from a model, --init MODEL")
        base = Config.load(own)
    enough = started(args.out) or (args.stage == "export" and made_by(args.out, "lora").exists())
    for stage in NEEDS[args.stage]:
        there = enough or made_by(args.out, stage).exists()
        check(there, f"{args.stage} needs {made_by(args.out, stage)}: run minisd train {stage} first")
    done = args.stage in ("clip", "vae", "unet", "lora") and made_by(args.out, args.stage).exists()
    again = f"{made_by(args.out, args.stage)} exists: add --resume to go on from it, or choose another --out"
    check(args.resume or not done, again)
    args.out.mkdir(parents=True, exist_ok=True)
    check_writable(own)
    return base


def started(out: Path) -> bool:
    """Whether a run has started from a model."""
    return (out / "init" / "model.safetensors").exists() and (out / "config.json").exists()


def made_by(out: Path, stage: str) -> Path:
    """What a stage leaves in the run folder."""
    return out / "tokenizer" / "vocab.json" if stage == "tokenizer" else out / f"{stage}.safetensors"


WHY_NOT = {
    "tokenizer": "its networks know the words they have",
    "clip": "a model holds no image tower; its text tower is tuned on with the UNet, unet.text_lr",
}
