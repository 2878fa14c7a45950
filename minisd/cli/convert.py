"""`minisd convert IN OUT`: a model from one file layout into another, the numbers as they are."""

from collections.abc import Sequence
from pathlib import Path

from .common import Parser, add_choice, add_common, notes, refusing
from .generate import show
from .model import add_source_flags

LAYOUTS = ("diffusers", "ldm", "minisd")
DTYPES = ("keep", "fp32", "bf16", "fp16")

EPILOG = """examples:
  minisd convert old.ckpt new.safetensors
  minisd convert sd15.safetensors sd15-folder --tokenizer FOLDER
  minisd convert owner/name model.safetensors --dtype fp16

OUT ending in .safetensors is one file in the original (LDM) layout, any other name a diffusers folder, or with
--to minisd one of minisd's own. The numbers are kept bit for bit unless --dtype says otherwise; what the new layout
has no place for is told. Exit code: 0 done, 2 bad input, 1 a failure while writing, 130 Ctrl-C."""


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("convert", "Turn a model from one file layout into another.", EPILOG)
    source = "a model folder, a .safetensors or .ckpt file, owner/name of the hub, or mini"
    parser.add_argument("source", metavar="IN", help=source)
    parser.add_argument("target", metavar="OUT", type=Path, help="a folder, or a name ending in .safetensors")
    group = parser.add_argument_group("what is written")
    add_choice(group, "--to", LAYOUTS)
    add_choice(group, "--dtype", DTYPES, "keep")
    group.add_argument("--overwrite", action="store_true", help="OUT may be there already, if it is a model")
    add_source_flags(parser.add_argument_group("how IN is read"))
    add_common(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    args = build_parser().parse(argv)
    with notes(args) as say:
        from ..weights.convert import convert

        names = ("to", "dtype", "overwrite", "tokenizer", "prediction", "variant", "vae", "ema", "revision", "offline")
        with refusing(ValueError):
            told = convert(args.source, args.target, **{name: getattr(args, name) for name in names})
        for note in told:
            say(f"minisd: note: {note}")
        show(args.target)
    return 0
