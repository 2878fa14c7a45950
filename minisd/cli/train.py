"""`minisd train STAGE`: tokenizer, clip, vae, unet, export, one after another into one run folder; or judge."""

import argparse
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from ..config import Config, check
from ..files import check_writable
from ..train.lock import locked
from ..train.recipe import Recipe
from ..weights.find import find
from .common import Parser, add_common, choice, device, notes, number, refusing, threads

# What each stage finds in the run folder from the stages before it. The names stand here so that --help needs no torch.
NEEDS = {
    "tokenizer": (),
    "clip": ("tokenizer",),
    "vae": (),
    "unet": ("tokenizer", "clip", "vae"),
    "export": ("tokenizer", "clip", "vae", "unet"),
    "judge": (),
}
NETWORKS = ("clip", "vae", "unet", "judge")

EPILOG = """example, the bundled model:
  minisd train all --out runs/mini
  minisd generate "a red circle" -m runs/mini/model

The same in slices of nine minutes, each one going on where the one before stopped:
  minisd train all --out runs/mini --minutes 9

Several processes that train as one, each with its part of every batch (the run folder must be one that all see):
  torchrun --nproc_per_node 2 -m minisd train unet --out runs/mini

Ctrl-C and SIGTERM save a checkpoint first; once more stops at once. A run that was killed goes on from its last
checkpoint. Exit code: 0 done or its time is over, 2 bad input, 1 a failure, 130 Ctrl-C, 143 SIGTERM."""


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("train", "Train a model, stage by stage.", EPILOG)
    stages = (*NEEDS, "all")
    about = f"{', '.join(NEEDS)}; all: those of a model that are not finished, in this order"
    parser.add_argument("stage", type=choice("stage", stages), metavar="STAGE", help=about)
    recipe = "a TOML recipe (default: that of the bundled model)"
    parser.add_argument("--recipe", type=Path, default=default_recipe(), metavar="FILE", help=recipe)
    out = "the run folder (default: runs/mini)"
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), metavar="FOLDER", help=out)
    start = "a model folder, or mini: train on from its weights in a new run folder"
    parser.add_argument("--init", metavar="MODEL", help=start)
    font = "Noto Color Emoji, to draw the world's emoji (default: the recipe's, or where systems keep it)"
    parser.add_argument("--font", metavar="FILE", help=font)
    again = "go on from the stage's checkpoint; where there is none, start (`all` does so unasked)"
    kind = choice("--resume", ("auto",))
    parser.add_argument("--resume", nargs="?", type=kind, const="auto", metavar="auto", help=again)
    slice_ = "stop with a checkpoint after N minutes"
    parser.add_argument("--minutes", type=minutes, default=math.inf, metavar="N", help=slice_)
    board = "log to TensorBoard too, in RUN/tensorboard (the JSONL log is always written)"
    parser.add_argument("--tensorboard", action="store_true", help=board)
    parser.add_argument("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: torch's choice)")
    add_common(parser)
    return parser


def minutes(text: str) -> float:
    """A time span above 0."""
    if number(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number(text)


def default_recipe() -> Path:
    """The bundled model's recipe: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside, beside = (folder / "configs" / "train" / "mini.toml" for folder in (package, package.parent))
    return inside if inside.exists() else beside


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    started = time.monotonic()
    args = build_parser().parse(argv)
    chief = os.environ.get("RANK", "0") == "0"  # torchrun: the others wait for what this one finds and makes
    with notes(args) as say, terminated(), ExitStack() as stack:
        with refusing():
            there = not args.tensorboard or find_spec("tensorboard") is not None
            check(there, "--tensorboard: the package is not here: pip install 'minisd[train]'")
            recipe = Recipe.load(args.recipe)
            if args.font:
                recipe = replace(recipe, world=replace(recipe.world, font=args.font))
            if args.stage != "export":
                recipe.world.check_font()
            base = Config.load(args.recipe.parent / recipe.config)
            check_shares(args.stage, recipe, int(os.environ.get("WORLD_SIZE", 1)))
            fresh = args.init and not (args.resume and (args.out / "config.json").exists())
            if chief:
                if not fresh:
                    check_ready(args)
                check_place(args.out)
                stack.enter_context(locked(args.out))
                if fresh:
                    unpack_model(args.init, args.out)
        args.resume = args.resume or args.init or args.stage == "all"
        return work(args, recipe, base, started + 60 * args.minutes, say)


def work(args: argparse.Namespace, recipe: Recipe, base: Config, until: float, say: Callable[[str], None]) -> int:
    """The training itself."""
    import torch

    from ..runtime import pick_device
    from ..train import processes, stages
    from ..train.stop import Stopped

    with refusing():
        chosen, reason = pick_device(args.device)
    if chosen.type == "cuda":
        if "LOCAL_RANK" in os.environ:  # torchrun: one device a process
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        # What autocast leaves in fp32 may use the tensor cores; shapes stay the same, so a search for kernels pays.
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
    if args.threads:
        torch.set_num_threads(args.threads)
    say(f"{chosen}: {reason}; {args.stage} by {args.recipe} into {args.out}")
    job = stages.Run(recipe, args.out, base, chosen, bool(args.resume), until, args.quiet, args.tensorboard)
    try:
        with processes.joined(chosen):
            processes.wait()
            stages.every(job) if args.stage == "all" else stages.one(job, args.stage)
    except Stopped as stopped:
        print(f"minisd: {stopped}", file=sys.stderr if stopped.signal else sys.stdout)
        return 128 + stopped.signal if stopped.signal else 0
    return 0


@contextmanager
def terminated() -> Iterator[None]:
    """SIGTERM ends the command in good order, half-written files removed, with exit code 143."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if main else None
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)


def check_shares(stage: str, recipe: Recipe, world: int) -> None:
    """Refuse a batch that the processes cannot share evenly."""
    for name in NETWORKS if stage == "all" else {stage} & {*NETWORKS}:
        batch = getattr(recipe, name).batch
        said = f"the batch of {batch} of the {name} stage cannot be shared by {world} processes"
        check(batch % world == 0, f"{said}: choose a multiple of {world} in the recipe")


def check_ready(args: argparse.Namespace) -> None:
    """Refuse a stage whose forerunners are missing, or that would run over what is there."""
    for stage in NEEDS.get(args.stage, ()):
        there = made_by(args.out, stage).exists()
        check(there, f"{args.stage} needs {made_by(args.out, stage)}: run minisd train {stage} first")
    done = args.stage in NETWORKS and made_by(args.out, args.stage).exists()
    again = f"{made_by(args.out, args.stage)} exists: add --resume to go on from it, or choose another --out"
    check(args.resume or not done, again)


def check_place(out: Path) -> None:
    """Refuse a run folder that cannot be made or written."""
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "config.json")


def unpack_model(model: str, out: Path) -> None:
    """Begin a run folder from a model's weights."""
    from ..train.export import unpack  # with torch

    unpack(find(model), out)


def made_by(out: Path, stage: str) -> Path:
    """What a stage leaves in the run folder."""
    return out / "tokenizer" / "vocab.json" if stage == "tokenizer" else out / f"{stage}.safetensors"
