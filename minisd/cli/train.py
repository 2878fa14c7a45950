"""`minisd train STAGE`: tokenizer, clip, vae, unet, export, one after another into one run folder; lora; judge."""

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
from typing import Any

from ..config import Config, check
from ..files import check_writable
from ..train.lock import locked
from ..train.recipe import Recipe
from ..weights.find import check_options, locate
from .common import Parser, add_common, choice, device, notes, number, refusing, threads, whole
from .model import add_source_flags, told

# What each stage finds in the run folder from the stages before it. The names stand here so that --help needs no torch.
NEEDS = {
    "tokenizer": (),
    "clip": ("tokenizer",),
    "vae": (),
    "unet": ("tokenizer", "clip", "vae"),
    "lora": (),
    "export": ("tokenizer", "clip", "vae", "unet"),
    "judge": (),
}
NETWORKS = ("clip", "vae", "unet", "judge")

EPILOG = """example, the bundled model:
  minisd train all --out runs/mini
  minisd generate "a red circle" -m runs/mini/model

pictures of your own, in a folder with metadata.jsonl (docs/training.md):
  minisd train lora --data pictures -m MODEL --out runs/mine      # -m: Stable Diffusion, or leave it out for mini
  minisd train unet --data pictures --init MODEL --out runs/mine  # all weights of the UNet

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
    recipe = "a TOML file, or one of minisd's own: cpu (the default), gpu, shapes, finetune (with --data and a model)"
    parser.add_argument("--recipe", type=recipe_file, metavar="FILE", help=recipe)
    change = "a field of the recipe, such as unet.steps=500; may be given several times"
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=change)
    data = "a folder of pictures with metadata.jsonl, one {file_name, text} a line (default: the procedural world)"
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=data)
    out = "the run folder (default: runs/mini)"
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), metavar="FOLDER", help=out)
    parser.add_argument("--rank", type=whole, metavar="N", help="of a LoRA: --set lora.rank=N")
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
    group = parser.add_argument_group("model to start from")
    start = "a folder, a file, owner/name of the hub, or mini: train on from its weights in a new run folder, or for it"
    group.add_argument("-m", "--init", "--model", dest="init", metavar="MODEL", help=start)
    add_source_flags(group)
    add_common(parser)
    return parser


def minutes(text: str) -> float:
    """A time span above 0."""
    if number(text) <= 0:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return number(text)


def chief() -> bool:
    """Of torchrun's processes the one that speaks; the others wait for what it finds and makes."""
    return os.environ.get("RANK", "0") == "0"


def recipe_file(text: str) -> Path:
    """A file, or one of minisd's own recipes by its name."""
    own = default_recipe(text)
    return own if own.exists() and not Path(text).is_file() else Path(text)


def default_recipe(name: str = "cpu") -> Path:
    """A recipe of minisd's own: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent.parent
    inside, beside = (folder / "configs" / "train" / f"{name}.toml" for folder in (package, package.parent))
    return inside if inside.exists() else beside


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    started = time.monotonic()
    args = build_parser().parse(argv)
    args.quiet = args.quiet or not chief()
    with notes(args) as say, terminated(), ExitStack() as stack:
        with refusing():
            there = not args.tensorboard or find_spec("tensorboard") is not None
            check(there, "--tensorboard: the package is not here: pip install 'minisd[train]'")
            recipe, data = read_recipe(args), read_data(args)
            if data is not None:
                say(f"{len(data.entries)} pictures in {data.root}")
            elif args.stage != "export":
                recipe.world.check_font()
            base = None if recipe.config is None else Config.load(args.recipe.parent / recipe.config)
            check_model(args)
            check_shares(args, recipe, int(os.environ.get("WORLD_SIZE", 1)))
            args.resume = bool(args.resume) or args.stage == "all"
            fresh = args.init and args.stage != "lora" and not (args.resume and begun(args.out))
            if chief():
                if not fresh:
                    check_ready(args, base)
                check_place(args.out)
                stack.enter_context(locked(args.out))
                if fresh:
                    begin(args, base, say)
        model = {"model": args.init, **source(args)} if args.stage == "lora" else {}
        until = started + 60 * args.minutes
        return work(args, say, recipe=recipe, base=base, until=until, data=data, model=model)


def work(args: argparse.Namespace, say: Callable[[str], None], **job: Any) -> int:
    """The training itself; `job` is what `Run` is told besides the flags."""
    import torch

    from ..runtime import pick_device
    from ..train import processes, stages
    from ..train.job import Run
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
    flags = {"resume": args.resume, "quiet": args.quiet, "tensorboard": args.tensorboard}
    run = Run(folder=args.out, device=chosen, **flags, **job)
    try:
        # Some things only a stage can see: a picture that is damaged further down, a checkpoint of another network.
        with refusing(ValueError), processes.joined(chosen):
            processes.wait()
            stages.every(run) if args.stage == "all" else stages.one(run, args.stage)
    except Stopped as stopped:
        if chief():
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


def read_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that is asked for, or the one that suits the call, with what is set otherwise."""
    fine = args.stage == "lora" or (args.data and (args.init or begun(args.out)))
    args.recipe = args.recipe or default_recipe("finetune" if fine else "cpu")
    rank = [] if args.rank is None else [f"lora.rank={args.rank}"]
    recipe = Recipe.load(args.recipe, [*args.set, *rank])
    return replace(recipe, world=replace(recipe.world, font=args.font)) if args.font else recipe


def read_data(args: argparse.Namespace) -> Any:
    """What lies in the folder of pictures, each found to be there; None: there is no such folder."""
    if args.data is None:
        check(args.stage != "lora", "lora needs pictures: --data FOLDER, with a metadata.jsonl in it")
        return None
    from ..train.listing import list_folder

    return list_folder(args.data)


def check_shares(args: argparse.Namespace, recipe: Recipe, world: int) -> None:
    """Refuse a recipe without the stage that is asked for, or a batch that the processes cannot share evenly."""
    whole = ("unet",) if args.init or begun(args.out) else ("clip", "vae", "unet")
    for name in whole if args.stage == "all" else {args.stage} & {*NETWORKS, "lora"}:
        part = getattr(recipe, name)
        check(part is not None, f"{args.recipe} has no section [{name}]")
        said = f"the batch of {part.batch} of the {name} stage cannot be shared by {world} processes"
        check(part.batch % world == 0, f"{said}: choose a multiple of {world} in the recipe")


def check_model(args: argparse.Namespace) -> None:
    """Refuse a model that is not there or that this stage cannot start from, and flags that mean nothing to it."""
    check(args.rank is None or args.stage == "lora", f"--rank is for lora, not for {args.stage}")
    given = [name for name, value in source(args).items() if value]
    check(args.init is not None or not given, f"--{given[0] if given else ''} says how a model is read: name it, -m")
    fits = args.stage not in WHY_NOT or not (args.init or begun(args.out))
    check(fits, f"{args.stage} cannot start from a model: {WHY_NOT.get(args.stage)}")
    if args.init or args.stage == "lora":
        hub = {"revision": args.revision, "variant": args.variant, "offline": args.offline}
        check_options(*locate(args.init, **hub, weights=False), **told(args))


def source(args: argparse.Namespace) -> dict[str, Any]:
    """How the model to start from is read."""
    return {"vae": args.vae, "revision": args.revision, "offline": args.offline, **told(args)}


def begin(args: argparse.Namespace, base: Config | None, say: Callable[[str], None]) -> None:
    """Begin a run folder from a model; its networks count, not those of the recipe's config."""
    from ..train.start import start_from  # with torch

    start_from(args.init, args.out, **source(args))
    own = Config.load(args.out / "config.json")
    if base is not None and (base.text, base.unet, base.noise) != (own.text, own.unet, own.noise):
        say(f"the networks are those of {args.init}, not those of {args.recipe}")


def begun(out: Path) -> bool:
    """Whether a run has started from a model."""
    return (out / "init" / "model.safetensors").exists() and (out / "config.json").exists()


def check_ready(args: argparse.Namespace, base: Config | None) -> None:
    """Refuse a stage whose forerunners are missing, or that would run over what is there."""
    lora = (args.out / "lora.json").exists()
    other = f"{args.out} holds {'a LoRA' if lora else 'a model in training'}: choose another --out"
    check(args.stage == "export" or not (holds_model(args.out) if args.stage == "lora" else lora), other)
    there = base is not None or args.stage == "lora" or (args.out / "config.json").exists()
    check(there, f"{args.recipe} names no model config: start from a model, --init MODEL")
    for stage in ("lora",) if lora and args.stage == "export" else NEEDS.get(args.stage, ()):
        there = begun(args.out) or made_by(args.out, stage).exists()
        check(there, f"{args.stage} needs {made_by(args.out, stage)}: run minisd train {stage} first")
    done = args.stage in (*NETWORKS, "lora") and made_by(args.out, args.stage).exists()
    again = f"{made_by(args.out, args.stage)} exists: add --resume to go on from it, or choose another --out"
    check(args.resume or not done, again)


def holds_model(out: Path) -> bool:
    """Whether some part of a model has been trained there, or a run has started from one."""
    return begun(out) or any(made_by(out, stage).exists() for stage in ("tokenizer", *NETWORKS))


def check_place(out: Path) -> None:
    """Refuse a run folder that cannot be made or written."""
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out / "config.json")


def made_by(out: Path, stage: str) -> Path:
    """What a stage leaves in the run folder."""
    return out / "tokenizer" / "vocab.json" if stage == "tokenizer" else out / f"{stage}.safetensors"


WHY_NOT = {
    "tokenizer": "its networks know the words they have",
    "clip": "a model holds no image tower; its text tower is tuned on with the UNet, unet.text_lr",
}
