"""`minisd grid PROMPT --x steps=10,20 --y clip_skip=1,2`: a sheet of pictures, each drawn with other settings.

Every cell is a whole call of `generate` whose flags (`flags.py`) differ in one or two values, checked as there. All
cells are checked before the model is loaded.
"""

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import Config, check
from ..settings import ETA_SAMPLERS, Settings
from .common import BadInput, Parser, add_common, clean, flat, near, notes, refusing
from .flags import add_flags
from .generate import NUMBERS, check_all, given_prompt, given_seed, keywords, settled
from .many import Team, read_team
from .model import load_model
from .output import add_output_flags, check_area, check_exact, check_folder, save_numbered, save_sheet, show
from .prompt import check_lengths

AXES = ("prompt", "negative_prompt", "seed", *(name for name in NUMBERS if name not in ("num_images", "batch_size")))
SEEDS = ("seed", "variation_seed")  # of which -1 is a random one
MAX_CELLS = 400

EPILOG = """examples:
  minisd grid "a red circle" --x steps=10,20,40 --y clip_skip=1,2,4
  minisd grid "a red circle" --x seed=1,2,3,4 --y sampler=euler,heun --steps 10 -o sheet.png
  minisd grid --x "prompt=a red circle; two red, round circles" --y cfg_scale=1,3,7 --seed 1

Values are separated by ";", or by "," where there is no ";"; those of prompt and negative_prompt by ";" alone. What is
no axis is the same in all cells, the seed too. A sheet holds what each cell is: minisd info SHEET shows it.
Exit code: 0 done, 2 bad input, 1 a failure while drawing, 130 Ctrl-C."""


@dataclass(frozen=True)
class Axis:
    """One setting and its values, one a column or a row. No name: an axis of one cell that changes nothing."""

    name: str = ""
    values: tuple = (None,)

    def labels(self) -> list[str]:
        """What stands beside the cells."""
        if self.name in ("", "prompt"):
            return [value or "" for value in self.values]
        return [f"{self.name.replace('_', ' ')} {shown(value)}" for value in self.values]

    def set(self, args: argparse.Namespace, value: Any) -> argparse.Namespace:
        """The flags with this value."""
        return argparse.Namespace(**vars(args) | ({self.name: value} if self.name else {}))


def build_parser() -> Parser:
    """The flags of `generate`, and the axes."""
    parser = Parser("grid", "Draw one sheet of pictures over one or two settings.", EPILOG)
    group = parser.add_argument_group("axes")
    group.add_argument("--x", metavar="NAME=VALUES", help=f"one column a value; NAME is one of {', '.join(AXES)}")
    group.add_argument("--y", metavar="NAME=VALUES", help="one row a value")
    add_flags(parser)
    exact = "this very file (.png)"
    numbered = "the sheet's name there is grid-00000-SEED.png (default: outputs)"
    group = add_output_flags(parser, exact, numbered, "with -o: the file may exist already")
    group.add_argument("--cells", type=Path, metavar="FOLDER", help="save each picture too: 00000-SEED.png and on")
    add_common(parser)
    parser.set_defaults(num_images=1, batch_size=None, from_file=None)  # flags of `generate` alone
    return parser


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    parser = build_parser()
    args = parser.parse(argv)
    with notes(args) as say:
        x, y = read_axes(parser, args)
        cells = checked(args, x, y)
        model = load_model(args, say)
        print(f"seed {args.seed}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        pictures = [draw(cell, model) for cell in cells]
        show(save_sheet(labelled(pictures, x, y), args, args.seed))
        say(f"{len(cells)} pictures in {time.perf_counter() - started:.1f} s")
    return 0


def read_axes(parser: Parser, args: argparse.Namespace) -> tuple[Axis, Axis]:
    """Both axes, as the flags of the same names read their values.

    Raises:
        BadInput: none is given, both are the same, or one is a flag too.
    """
    if args.x is None and args.y is None:
        raise BadInput('no axis was given: minisd grid "a red circle" --x steps=10,20 (see minisd grid --help)')
    x, y = read_axis(parser, "--x", args.x), read_axis(parser, "--y", args.y)
    if x.name == y.name:
        raise BadInput(f"--x and --y are both {x.name}: a sheet has two different axes")
    for axis in (x, y):
        given = axis.name and getattr(args, axis.name) != parser.get_default(axis.name)
        if given or (axis.name == "prompt" and args.words is not None):
            raise BadInput(f"{axis.name} is an axis and was given besides: leave one out")
    return x, y


def read_axis(parser: Parser, flag: str, text: str | None) -> Axis:
    """NAME=VALUES of --x or --y; None: no axis.

    Raises:
        BadInput: no such setting, or a value that its flag does not take.
    """
    if text is None:
        return Axis()
    said, equals, values = text.partition("=")
    option = parser.spelled([f"--{said.strip()}"])[0]
    name = option.removeprefix("--").replace("-", "_")
    if name not in AXES or not equals:
        wrong = f"no axis {flat(repr(name), 60)}{near(name, AXES)}" if equals else f"{flat(repr(text), 60)} has no ="
        raise BadInput(f"{flag}: {wrong}; it is NAME=VALUE,VALUE with one of {', '.join(AXES)}")
    mark = ";" if ";" in values or name in ("prompt", "negative_prompt") else ","
    kind = parser._option_string_actions[option].type or clean
    try:
        read = [kind(part.strip()) for part in values.split(mark)]
        return Axis(name, tuple(secrets.randbelow(2**32) if name in SEEDS and v == -1 else v for v in read))
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"{flag} {name}: {error}") from error


def checked(args: argparse.Namespace, x: Axis, y: Axis) -> list[argparse.Namespace]:
    """The flags of each cell, row by row, all that can be known without torch checked.

    Raises:
        BadInput: the first thing that does not fit.
    """
    if read_team().world > 1:
        raise BadInput("minisd grid draws in one process: start it without torchrun")
    if "prompt" in (x.name, y.name):
        args.prompt = ""
    eta = args.eta
    given_prompt(args)
    axes = {axis.name: axis.values for axis in (x, y)}
    args.seed = axes["seed"][0] if "seed" in axes else given_seed(args, "seed", Team())
    if args.variation_strength or "variation_strength" in axes:
        args.variation_seed = given_seed(args, "variation_seed", Team())
    with refusing():
        count = len(x.values) * len(y.values)
        check(count <= MAX_CELLS, f"{count} cells are asked for: a sheet has at most {MAX_CELLS}")
    config = check_all(args, axes)
    cells = [y.set(x.set(args, column), row) for row in y.values for column in x.values]
    for cell in cells:
        if "sampler" in axes and eta is None and "eta" not in axes and cell.sampler not in ETA_SAMPLERS:
            cell.eta = None  # of --like, for its own sampler
    settings = [settled_cell(cell, config, x, y) for cell in cells]
    with refusing():
        check_area(count, max(s.width for s in settings), max(s.height for s in settings))
        if args.output is None:
            check_folder(args.outdir, f"grid-00000-{args.seed}.png")
        else:
            check_exact(args, [args.output], (".png",))
        if args.cells is not None:
            check_folder(args.cells, f"00000-{args.seed}.png")
    check_lengths(args, ((c.prompt, c.negative_prompt, s) for c, s in zip(cells, settings, strict=True)))
    return cells


def settled_cell(cell: argparse.Namespace, config: Config, x: Axis, y: Axis) -> Settings:
    """One cell's numbers.

    Raises:
        BadInput: which cell's do not fit, and why.
    """
    try:
        return settled(cell, config)
    except BadInput as error:
        where = ", ".join(f"{axis.name}={shown(getattr(cell, axis.name))}" for axis in (x, y) if axis.name)
        raise BadInput(f"{error} (cell {flat(where, 100)})") from error


def draw(cell: argparse.Namespace, model: Any) -> Any:
    """The picture of one cell."""
    from ..pipeline import generate

    with refusing(ValueError):
        (picture,) = generate(model, cell.prompt, seed=cell.seed, progress=not cell.quiet, **keywords(cell))
    if cell.cells is not None:
        show(save_numbered(picture, cell.cells, cell.seed))
    return picture


def labelled(pictures: list[Any], x: Axis, y: Axis) -> Any:
    """All cells under their labels."""
    from ..sheet import labelled_sheet

    axes = {flag: {"name": axis.name, "values": axis.values} for flag, axis in (("x", x), ("y", y)) if axis.name}
    return labelled_sheet(pictures, x.labels(), y.labels(), axes)


def shown(value: Any) -> str:
    """A value as short as it can be said; an empty prompt is said to be one."""
    return f"{value:g}" if isinstance(value, float) else str(value) or "(none)"
