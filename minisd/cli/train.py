"""`minisd train STAGE`: tokenizer, clip, vae, unet, export, one after another into one run folder."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..config import Config, check
from ..files import check_writable
from ..train.recipe import Recipe
from ..weights.find import find
from .common import Parser, add_common, choice, device, notes, refusing, threads

# What each stage finds in the run folder from the stages before it. The names stand here so that --help needs no torch.
NEEDS = {
    "tokenizer": (),
    "clip": ("tokenizer",),
    "vae": (),
    "unet": ("tokenizer", "clip", "vae"),
    "export": ("tokenizer", "clip", "vae", "unet"),
}

EPILOG = """example, the bundled model:
  for stage in tokenizer clip vae unet export; do minisd train $stage --out runs/mini; done
  minisd generate "a red circle" -m runs/mini/model

An interrupted stage goes on from its last checkpoint with --resume. Exit code: 0 done, 2 bad input, 1 a failure,
130 Ctrl-C."""


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("train", "Train a model, stage by stage.", EPILOG)
    parser.add_argument("stage", type=choice("stage", NEEDS), metavar="STAGE", help=", ".join(NEEDS))
    recipe = "a TOML recipe (default: that of the bundled model)"
    parser.add_argument("--recipe", type=Path, default=default_recipe(), metavar="FILE", help=recipe)
    out = "the run folder (default: runs/mini)"
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), metavar="FOLDER", help=out)
    start = "a model folder, or mini: train on from its weights in a new run folder"
    parser.add_argument("--init", metavar="MODEL", help=start)
    parser.add_argument("--resume", action="store_true", help="go on from the stage's checkpoint")
    parser.add_argument("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: torch's choice)")
    add_common(parser)
    return parser


def default_recipe() -> Path:
    """The bundled model's recipe: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside, beside = (folder / "configs" / "train" / "mini.toml" for folder in (package, package.parent))
    return inside if inside.exists() else beside


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    args = build_parser().parse(argv)
    with notes(args) as say:
        with refusing():
            if args.init:
                from ..train.export import unpack

                unpack(find(args.init), args.out)
                args.resume = True
            recipe, base = checked(args)

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
        stages.STAGES[args.stage](stages.Run(recipe, args.out, base, chosen, args.resume))
    return 0


def checked(args: argparse.Namespace) -> tuple[Recipe, Config]:
    """The recipe and its model config, once all that can be known without torch is known to fit.

    Raises:
        ValueError, OSError: the first thing that does not fit.
    """
    recipe = Recipe.load(args.recipe)
    base = Config.load(args.recipe.parent / recipe.config)
    for stage in NEEDS[args.stage]:
        there = made_by(args.out, stage).exists()
        check(there, f"{args.stage} needs {made_by(args.out, stage)}: run minisd train {stage} first")
    done = args.stage in ("clip", "vae", "unet") and made_by(args.out, args.stage).exists()
    again = f"{made_by(args.out, args.stage)} exists: add --resume to go on from it, or choose another --out"
    check(args.resume or not done, again)
    args.out.mkdir(parents=True, exist_ok=True)
    check_writable(args.out / "config.json")
    return recipe, base


def made_by(out: Path, stage: str) -> Path:
    """What a stage leaves in the run folder."""
    return out / "tokenizer" / "vocab.json" if stage == "tokenizer" else out / f"{stage}.safetensors"
