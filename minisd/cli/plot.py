"""`minisd plot RUN …` draws the curves of training runs: loss, learning rate, gradient norm, speed, measures."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from ..config import check
from ..files import check_writable
from .common import Parser, add_common, refusing

EPILOG = """examples:
  minisd plot runs/mini                          # runs/mini/curves.png
  minisd plot runs/a runs/b -o both.png          # two runs in one picture
  minisd plot runs/mini --text                   # in the terminal

Each curve is the mean over a fortieth of the steps, with the raw one pale behind it. The picture needs matplotlib:
pip install 'minisd[train]'."""


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("plot", "Draw the curves of training runs.", EPILOG)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run folder of minisd train; several: overlaid"
    )
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="the PNG (default: curves.png in the first run)"
    )
    parser.add_argument("--text", action="store_true", help="print the curves, draw no picture")
    add_common(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    args = build_parser().parse(argv)
    from ..train.curves import BLOCKS, PLAIN, curves, draw, text

    with refusing():
        path = place(args)
        runs = {str(folder): curves(folder) for folder in args.runs}
        if not args.text:
            check_writable(path)
    if args.text:
        print(text(runs, BLOCKS if can_print(BLOCKS) else PLAIN))
        return 0
    draw(runs, path)
    print(path)
    return 0


def place(args: argparse.Namespace) -> Path:
    """Where the picture goes, if there is one.

    Raises:
        ValueError: it cannot be drawn, or is asked for together with text.
    """
    check(not (args.text and args.output), "--text draws no picture: leave out -o, or --text")
    path = args.output or args.runs[0] / "curves.png"
    check(path.suffix.lower() == ".png", f"{path} must end in .png")
    there = args.text or find_spec("matplotlib") is not None
    check(there, "the picture is drawn by matplotlib, which is not here: pip install 'minisd[train]', or --text")
    return path


def can_print(text: str) -> bool:
    """Whether stdout has these letters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True
