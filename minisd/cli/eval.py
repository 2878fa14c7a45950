"""`minisd eval`: how much of what it is told does a model draw? GenEval's six categories on the world's own words."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config import check
from ..files import check_writable
from ..weights.find import BUNDLED as MODEL
from .common import (
    BadInput,
    Parser,
    add_common,
    choice,
    flat,
    near,
    notes,
    positive,
    refusing,
    whole,
)
from .flags import add_drawing_flags, add_machine_flags, add_size_flags
from .generate import options_of, settled
from .model import add_model_flags, check_model, load_model

PARTS = {"geneval": 6, "held_out": 2, "shapes": 4, "scenes": 1}  # and how many categories each has
SWEPT = ("steps", "cfg_scale", "sampler", "schedule", "clip_skip", "guidance_rescale", "eta")
QUICK = 20  # prompts in each category, and only the parts of two words
FULL = 300
MAX_PICTURES = 200_000
BUNDLED = MODEL.parent / "judge"
JUDGE = "judge.safetensors"

EPILOG = f"""examples:
  minisd eval                                   # the bundled model: {FULL} prompts a category, all parts
  minisd eval --quick --json                    # {QUICK} prompts a category, {8 * QUICK} in all; a line of JSON, last
  minisd eval -m runs/mini/model --parts geneval,held_out --sheet sheet.png
  minisd eval --parts geneval --count 50 --sweep steps=10,20,30 --sweep sampler=euler,dpmpp_2m --plots plots

parts: geneval (single object, two objects, counting, colors, position, color attribution: overall is their mean),
held_out (pairs of thing and colour that no training picture showed), shapes (plain shapes told in full, read by the
oracle's rules), scenes (all the world has, told in full; with Frechet distance and nearest training pictures).

A picture is right when exactly the objects that were told are there and nothing else, and every word that was told of
them is right; what was not told is free. All but the shapes is read by a judge, a network trained apart from the model;
its own accuracy on real pictures stands first. Tables go to stdout; with --json to stderr, and stdout has one line.
Exit code: 0 done, 2 bad input, 1 a failure while running, 130 Ctrl-C."""


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("eval", "Measure how much of what it is told a model draws.", EPILOG)
    parser.aliases = {"--cfg": "--cfg-scale", "--scale": "--cfg-scale", "--guidance-scale": "--cfg-scale"}
    group = parser.add_argument_group("what")
    group.add_argument("--count", type=positive, metavar="N", help=f"prompts in each category (default {FULL})")
    quick = f"{QUICK} prompts a category, of geneval and held_out: about two minutes on two cores"
    group.add_argument("--quick", action="store_true", help=quick)
    parts = f"some of {', '.join(PARTS)} (default: all)"
    group.add_argument("--parts", type=parts_of, metavar="NAMES", help=parts)
    sweep = f"the six categories again for each value of one of {', '.join(SWEPT)}; may be given several times"
    group.add_argument("--sweep", type=str, action="append", default=[], metavar="NAME=V1,V2", help=sweep)
    group.add_argument("--seed", type=whole, default=0, metavar="N", help="of the prompts and the pictures (default 0)")
    judge = "another judge than the bundled one, such as RUN/judge"
    group.add_argument("--judge", type=Path, default=BUNDLED, metavar="FOLDER", help=judge)
    font = "Noto Color Emoji, to draw real pictures (default: where systems keep it; without it those rows are missing)"
    group.add_argument("--font", metavar="FILE", help=font)
    group = parser.add_argument_group("how (default: the model's own)")
    add_drawing_flags(group)
    add_size_flags(group)
    group.add_argument("--batch-size", type=whole, default=16, metavar="N", help="pictures at a time (default 16)")
    add_model_flags(parser)
    add_machine_flags(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="one line of JSON on stdout, the tables on stderr")
    group.add_argument("--sheet", type=Path, metavar="FILE", help="a PNG of the first 32 pictures of each category")
    group.add_argument("--plots", type=Path, metavar="FOLDER", help="each sweep as sweep-NAME.png (needs matplotlib)")
    add_common(parser)
    parser.set_defaults(init_img=None)  # a flag of `generate` alone
    return parser


def parts_of(text: str) -> tuple[str, ...]:
    """Names of parts, in their own order."""
    named = [choice("part", PARTS)(word.strip()) for word in text.split(",")]
    return tuple(part for part in PARTS if part in named)


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    started = time.perf_counter()
    parser = build_parser()
    args = parser.parse(argv)
    args.sweeps = {}
    for name, values in (read_sweep(parser, text) for text in args.sweep):
        args.sweeps[name] = tuple(dict.fromkeys((*args.sweeps.get(name, ()), *values)))
    checked(args)
    with notes(args) as say:
        kept, world = load_kept(args, say)
        model = load_model(args, say)
        report = evaluate(args, model, kept, world)
        write(args, report)
        say(f"done in {time.perf_counter() - started:.0f} s, {report.seconds:.2f} s a picture")
        if args.json:
            from ..eval.report import as_data, as_line

            print(as_line(as_data(report, told(args, model))), flush=True)
    return 0


def read_sweep(parser: Parser, text: str) -> tuple[str, tuple]:
    """NAME=VALUE,VALUE as the flag of that name reads its values.

    Raises:
        BadInput: no such setting, or a value that its flag does not take.
    """
    said, equals, values = text.partition("=")
    option = parser.spelled([f"--{said.strip()}"])[0]
    name = option.removeprefix("--").replace("-", "_")
    if name not in SWEPT or not equals:
        wrong = (
            f"no setting {flat(repr(name), 60)}{near(name, SWEPT)}" if equals else f"{flat(repr(text), 60)} has no ="
        )
        raise BadInput(f"--sweep: {wrong}; it is NAME=VALUE,VALUE with one of {', '.join(SWEPT)}")
    kind = parser._option_string_actions[option].type
    try:
        found = tuple(kind(value.strip()) for value in values.split(","))
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"--sweep {name}: {error}") from error
    return name, found


def checked(args: argparse.Namespace) -> None:
    """All that can be known without torch: model, settings, judge, where files go.

    Raises:
        BadInput: the first thing that does not fit.
    """
    args.count = args.count or (QUICK if args.quick else FULL)
    args.parts = args.parts or tuple(PARTS)[: 2 if args.quick else None]
    config = check_model(args)
    settled(args, config)
    for name, values in args.sweeps.items():
        for value in values:
            settled(argparse.Namespace(**vars(args) | {name: value}), config)
    with refusing():
        swept = sum(len(values) for values in args.sweeps.values())
        pictures = args.count * (sum(PARTS[part] for part in args.parts) + PARTS["geneval"] * swept)
        check(pictures <= MAX_PICTURES, f"--count {args.count} makes {pictures} pictures: {MAX_PICTURES} are the most")
        check((args.judge / JUDGE).is_file(), f"{args.judge} is no folder with {JUDGE}: minisd train judge makes one")
        check(args.font is None or Path(args.font).is_file(), f"there is no font {args.font!r}")
        check(not args.plots or args.sweeps, "--plots draws sweeps: give a --sweep")
        drawable = not args.plots or find_spec("matplotlib") is not None
        check(drawable, "--plots: matplotlib is not here: pip install 'minisd[eval]'")
        check(args.sheet is None or args.sheet.suffix.lower() == ".png", f"--sheet {args.sheet} must end in .png")
        if args.sheet:
            check_writable(args.sheet)
        if args.plots:
            args.plots.mkdir(parents=True, exist_ok=True)
            check_writable(args.plots / "sweep.png")


def load_kept(args: argparse.Namespace, say: Callable[[str], None]) -> tuple[Any, Any]:
    """The judge, and its world where it can be drawn.

    Raises:
        BadInput: there is no judge, or a font was named that does not draw its world.
    """
    from ..eval.kept import load_kept
    from ..runtime import pick_device

    with refusing():
        kept = load_kept(args.judge, pick_device(args.device)[0])
    try:
        return kept, kept.world(args.font)
    except ValueError as error:
        if args.font:
            raise BadInput(str(error)) from error
        say(f"{error}; no real pictures are drawn")
        return kept, None


def evaluate(args: argparse.Namespace, model: Any, kept: Any, world: Any) -> Any:
    """Do it, telling first how well the judge sees."""
    from ..eval.evaluate import Evaluation, Plan
    from ..eval.report import accuracy_text

    size = {"looked_at": 256, "learned": 1024} if args.quick else {}
    plan = Plan(args.count, args.parts, args.seed, options_of(args), args.sweeps, progress=not args.quiet, **size)
    with refusing(ValueError):
        return Evaluation(model, kept, world, plan).run(lambda report: show(args, accuracy_text(report) + "\n"))


def write(args: argparse.Namespace, report: Any) -> None:
    """Tables, sheet and plots."""
    from ..eval.report import text
    from ..eval.sheet import sheet

    show(args, text(report))
    if args.sheet:
        from ..image import save

        save(sheet(report), args.sheet, overwrite=True)
    for name, rows in report.sweeps.items() if args.plots else ():
        from ..eval.plots import plot_sweep

        plot_sweep(name, rows, args.plots / f"sweep-{name}.png")


def show(args: argparse.Namespace, words: str) -> None:
    """Where a reader looks for tables."""
    print(words, file=sys.stderr if args.json else sys.stdout, flush=True)


def told(args: argparse.Namespace, model: Any) -> dict[str, Any]:
    """What was done, for the line of JSON."""
    settings = {name: value for name, value in options_of(args).items() if value is not None}
    return {"model": model.config.name, **model.origin, "quick": args.quick, "seed": args.seed, "settings": settings}
