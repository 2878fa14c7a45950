"""`minisd generate PROMPT`: check everything, then load, draw and save. The model's flags stand in `model.py`."""

import argparse
import re
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import SAMPLER_NAMES, SCHEDULE_NAMES, check
from ..files import check_writable
from ..settings import EMPHASIS_NAMES, LONG_PROMPT_NAMES, TILING_NAMES, Settings, resolve
from .common import (
    BadInput,
    Parser,
    add_choice,
    add_common,
    choice,
    device,
    notes,
    number,
    positive,
    refusing,
    whole,
)
from .model import add_model_flags, check_model, load_model

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
DTYPES = ("auto", "fp32", "bf16", "fp16")
NUMBERS = ("steps", "cfg_scale", "sampler", "schedule", "eta", "width", "height", "num_images", "batch_size")
NUMBERS += ("clip_skip", "long_prompt", "emphasis", "guidance_rescale", "vae_tiling")

EPILOG = """examples:
  minisd generate "a red circle"
  minisd generate "two blue squares" -n "a triangle" --steps 30 --cfg-scale 5 --seed 7 -N 4
  minisd generate "a green star" -m path/to/model -o star.png
  minisd generate "a castle" -m sd15.safetensors --tokenizer FOLDER --lora film.safetensors:0.8

Image i of a call has the seed SEED + i. The seed is always printed, and stored in the picture with all the rest:
minisd info PICTURE shows it. Exit code: 0 done, 2 bad input, 1 a failure while drawing, 130 Ctrl-C."""


def build_parser() -> Parser:
    """The flags, in groups."""
    parser = Parser("generate", "Draw pictures from a prompt.", EPILOG)
    group = parser.add_argument_group("what")
    group.add_argument("words", nargs="?", metavar="PROMPT", help="what to draw")
    group.add_argument("-p", "--prompt", metavar="PROMPT", help="the same as a flag")
    group.add_argument("-n", "--negative-prompt", metavar="TEXT", help="what to lead away from")
    group = parser.add_argument_group("how (default: the model's own)")
    group.add_argument("--steps", type=whole, metavar="N", help="denoising steps")
    group.add_argument("--cfg-scale", type=number, metavar="X", help="guidance; 1 is none (also --cfg, --scale)")
    add_choice(group, "--sampler", SAMPLER_NAMES)
    add_choice(group, "--schedule", SCHEDULE_NAMES)
    group.add_argument("--eta", type=number, metavar="X", help="fresh noise a step, 0 to 1, for ddim and euler_a")
    group.add_argument("--guidance-rescale", type=number, metavar="X", help="0 to 1, against over-exposure")
    group.add_argument("--seed", type=whole, metavar="N", help="0 to 2^64 - 1; -1 or none: a random one")
    clip_skip = "1: the last block of the text encoder, 2: the one before (AUTOMATIC1111's count; diffusers' + 1)"
    group.add_argument("--clip-skip", type=whole, metavar="N", help=clip_skip)
    add_text_flags(group)
    group = parser.add_argument_group("size")
    group.add_argument("-W", "--width", type=whole, metavar="N", help="pixels")
    group.add_argument("-H", "--height", type=whole, metavar="N", help="pixels")
    many = "how many pictures (default 1; also --images, --n-samples)"
    group.add_argument("-N", "--num-images", type=whole, default=1, metavar="N", help=many)
    group.add_argument("--batch-size", type=whole, metavar="N", help="pictures at a time (default: CPU 1, CUDA 8)")
    add_model_flags(parser)
    group = parser.add_argument_group("machine")
    group.add_argument("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N")
    add_choice(group, "--dtype", DTYPES, "auto")
    tiling = "decode in strips, to spare memory: on, off, auto (default: beyond 1024 x 1024 pixels)"
    group.add_argument("--vae-tiling", type=choice("way", TILING_NAMES), metavar="WHEN", help=tiling)
    group.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    group = parser.add_argument_group("output")
    where = group.add_mutually_exclusive_group()
    exact = f"this very file ({', '.join(SUFFIXES)}); of several pictures each is FILE-SEED.png"
    where.add_argument("-o", "--output", type=Path, metavar="FILE", help=exact)
    numbered = "names there are 00000-SEED.png and on (default: outputs)"
    where.add_argument("--outdir", type=Path, default=Path("outputs"), metavar="FOLDER", help=numbered)
    group.add_argument("--overwrite", action="store_true", help="with -o: the file may exist already")
    add_common(parser)
    parser.aliases = ALIASES
    return parser


def add_text_flags(group: Any) -> None:
    """How a prompt is read."""
    emphasis = f"how brackets like (this:1.3) are applied: {', '.join(EMPHASIS_NAMES)} (plain text)"
    group.add_argument("--emphasis", type=choice("emphasis", EMPHASIS_NAMES), metavar="WAY", help=emphasis)
    long_prompt = f"what to do with a prompt that is too long: {', '.join(LONG_PROMPT_NAMES)}"
    group.add_argument("--long-prompt", type=choice("way", LONG_PROMPT_NAMES), metavar="WAY", help=long_prompt)


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    args = build_parser().parse(argv)
    with notes(args) as say:
        settings = checked(args)
        model = load_model(args, say)
        print(f"seed {settings.seed}", file=sys.stderr, flush=True)  # even with --quiet
        started = time.perf_counter()
        for first in range(0, settings.num_images, model.batch_size(settings.batch_size)):
            draw(args, settings, model, first)
        count = f"{settings.num_images} pictures" if settings.num_images > 1 else "1 picture"
        say(f"{count} in {time.perf_counter() - started:.1f} s")
    return 0


def checked(args: argparse.Namespace) -> Settings:
    """All that can be known without torch: prompt, model folder, numbers, output.

    Raises:
        BadInput: the first thing that does not fit.
    """
    if args.words is not None and args.prompt is not None:
        raise BadInput("the prompt was given twice, as PROMPT and as --prompt")
    given = args.words if args.prompt is None else args.prompt
    if given is None:
        raise BadInput('no prompt was given: minisd generate "a red circle" (see minisd generate --help)')
    args.prompt, args.negative_prompt = clean(given), clean(args.negative_prompt)
    if args.seed in (None, -1):
        args.seed = secrets.randbelow(2**32)
    config = check_model(args)
    with refusing():
        try:
            settings = resolve(config, seed=args.seed, **{name: getattr(args, name) for name in NUMBERS})
        except ValueError as error:
            raise ValueError(as_flag(str(error))) from error
        check_output(args, settings)
    return settings


def clean(text: str | None) -> str | None:
    """Text without lone surrogates (bytes of the command line that are no UTF-8), which no file can hold."""
    return text if text is None else text.encode("utf-8", "replace").decode("utf-8")


def as_flag(message: str) -> str:
    """A message about `clip_skip` as one about --clip-skip."""
    name, space, rest = message.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest}" if name in (*NUMBERS, "seed") else message


def check_output(args: argparse.Namespace, settings: Settings) -> None:
    """Refuse an output that cannot be written, and make the folder of numbered pictures.

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    if args.output is None:
        args.outdir.mkdir(parents=True, exist_ok=True)
        check_writable(args.outdir / f"00000-{settings.seed}.png")
        return
    kinds, folder = ", ".join(SUFFIXES), args.output.parent
    check(not args.output.is_dir(), f"--output {args.output} is a folder: name a file, or use --outdir")
    check(args.output.suffix.lower() in SUFFIXES, f"--output {args.output} must end in one of {kinds}")
    check(folder.is_dir(), f"--output {args.output}: there is no folder {str(folder)!r}")
    for path in exact_names(args, settings):
        free = args.overwrite or not path.exists()
        check(free, f"{path} exists: choose another name, or add --overwrite")
        check_writable(path)


def exact_names(args: argparse.Namespace, settings: Settings) -> list[Path]:
    """-o FILE: that name for one picture, FILE-SEED for each of several."""
    path, count = args.output, settings.num_images
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{settings.seed + i}{path.suffix}") for i in range(count)]


def draw(args: argparse.Namespace, settings: Settings, model: Any, first: int) -> None:
    """Draw one lot of pictures, from number `first` on, and print their paths."""
    from ..image import save
    from ..pipeline import generate

    count = min(model.batch_size(settings.batch_size), settings.num_images - first)
    options = {name: getattr(args, name) for name in NUMBERS}
    options |= {"seed": settings.seed + first, "num_images": count, "batch_size": count}
    with refusing(ValueError):
        pictures = generate(
            model, args.prompt, negative_prompt=args.negative_prompt, progress=not args.quiet, **options
        )
    for i, picture in enumerate(pictures, start=first):
        if args.output is None:
            path = save_numbered(picture, args.outdir, settings.seed + i)
        else:
            path = exact_names(args, settings)[i]
            save(picture, path, args.overwrite)
        show(path)


def save_numbered(picture: Any, folder: Path, seed: int) -> Path:
    """Save under the next free number; another process may take it first, then the next one."""
    from ..image import save

    while True:
        taken = [int(m[1]) for path in folder.iterdir() if (m := re.match(r"([0-9]{5,9})-", path.name))]
        path = folder / f"{max(taken, default=-1) + 1:05d}-{seed}.png"
        try:
            save(picture, path)
        except FileExistsError:
            continue
        return path


def show(path: Path) -> None:
    """The path of a finished picture on stdout, at once."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(str(path).encode(encoding, "backslashreplace").decode(encoding), flush=True)


ALIASES = {
    **dict.fromkeys(("--cfg", "--scale", "--guidance-scale"), "--cfg-scale"),
    **dict.fromkeys(("--images", "--n-images", "--n-samples"), "--num-images"),
    **{"--ddim-steps": "--steps", "--ckpt": "--model", "--W": "--width", "--H": "--height"},
}
