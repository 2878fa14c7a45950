"""`minisd generate PROMPT`: check everything, then load, draw and save. The model's flags stand in `model.py`."""

import argparse
import secrets
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..config import SAMPLER_NAMES, SCHEDULE_NAMES, Config, check
from ..settings import (
    EMPHASIS_NAMES,
    ETA_SAMPLERS,
    LONG_PROMPT_NAMES,
    MAX_SEED,
    START_NAMES,
    TILING_NAMES,
    Options,
    Settings,
    resolve,
)
from .common import (
    BadInput,
    Parser,
    add_choice,
    add_common,
    choice,
    device,
    interval,
    notes,
    number,
    refusing,
    threads,
    whole,
)
from .like import begin, follow
from .many import MAX_PICTURES, Team, batches, is_drawn, read_prompts, read_team
from .model import add_model_flags, check_model, load_model
from .output import (
    SUFFIXES,
    add_output_flags,
    check_output,
    check_sheet,
    names_of,
    save_numbered,
    save_sheet,
    seeds_of,
    show,
)
from .pictures import ALIASES as PICTURE_ALIASES
from .pictures import add_picture_flags, place_pictures, read_pictures

DTYPES = ("auto", "fp32", "bf16", "fp16")
NUMBERS = tuple(name for name in Options.__annotations__ if name != "seed")

EPILOG = """examples:
  minisd generate "a red circle"
  minisd generate "two blue squares" -n "a triangle" --steps 30 --cfg-scale 5 --seed 7 -N 4
  minisd generate "a green star" -m path/to/model -o star.png
  minisd generate "a castle" -m sd15.safetensors --tokenizer FOLDER --lora film.safetensors:0.8
  minisd generate "a blue star" -i drawing.png --strength 0.6
  minisd generate "a green heart" -i drawing.png --mask white-is-drawn.png
  minisd generate --like star.png --steps 50
  minisd generate --from-file prompts.txt --outdir batch -N 4 --grid

A --from-file batch that was interrupted goes on when the same command is given again. Under torchrun (or with RANK and
WORLD_SIZE set) the processes share the pictures of one call out: torchrun --nproc_per_node 2 -m minisd generate ...

Image i of a call has the seed SEED + i. The seed is always printed, and stored in the picture with all the rest:
minisd info PICTURE shows it. Exit code: 0 done, 2 bad input, 1 a failure while drawing, 130 Ctrl-C."""


def build_parser() -> Parser:
    """The flags, in groups."""
    parser = Parser("generate", "Draw pictures from a prompt.", EPILOG)
    add_flags(parser)
    group = parser.add_argument_group("many")
    many = "how many pictures (default 1; also --images, --n-samples)"
    group.add_argument("-N", "--num-images", type=whole, default=1, metavar="N", help=many)
    group.add_argument("--batch-size", type=whole, metavar="N", help="pictures at a time (default: CPU 1, CUDA 8)")
    file = "a prompt a line (-: stdin; empty lines and # lines are left out), each -N times, from seed 0 on or --seed"
    group.add_argument("--from-file", metavar="FILE", help=file)
    group.add_argument("--grid", action="store_true", help="besides, one sheet of all pictures: grid-00000-SEED.png")
    exact = f"this very file ({', '.join(SUFFIXES)}); of several pictures each is FILE-SEED.png, and FILE the --grid"
    numbered = "names there are 00000-SEED.png and on (default: outputs)"
    add_output_flags(parser, exact, numbered, "with -o and --from-file: the files may exist already")
    add_common(parser)
    return parser


def add_flags(parser: Parser) -> None:
    """What to draw, how, with which model and where: the flags of every command that draws."""
    parser.aliases = ALIASES
    group = parser.add_argument_group("what")
    group.add_argument("words", nargs="?", metavar="PROMPT", help="what to draw")
    group.add_argument("-p", "--prompt", metavar="PROMPT", help="the same as a flag")
    group.add_argument("-n", "--negative-prompt", metavar="TEXT", help="what to lead away from")
    like = "draw by the recipe in this picture, by minisd, AUTOMATIC1111 or stable-diffusion.cpp; other flags win"
    group.add_argument("--like", metavar="PICTURE", help=like)
    group = parser.add_argument_group("how (default: the model's own)")
    group.add_argument("--steps", type=whole, metavar="N", help="denoising steps")
    group.add_argument("--cfg-scale", type=number, metavar="X", help="guidance; 1 is none (also --cfg, --scale)")
    add_choice(group, "--sampler", SAMPLER_NAMES)
    add_choice(group, "--schedule", SCHEDULE_NAMES)
    eta = f"fresh noise a step, 0 to 1, for {', '.join(ETA_SAMPLERS)}"
    group.add_argument("--eta", type=number, metavar="X", help=eta)
    group.add_argument("--guidance-rescale", type=number, metavar="X", help="0 to 1, against over-exposure")
    start = "how strong the first noise is: sigma (AUTOMATIC1111) or total (default: diffusers' way of the sampler)"
    group.add_argument("--start-scale", type=choice("start scale", START_NAMES), metavar="NAME", help=start)
    when = "guide only in this part of the noise, 1 is all noise; outside it a step costs half"
    group.add_argument("--guidance-interval", type=interval, metavar="LOW,HIGH", help=when)
    against = "percentile, such as 0.995: cut and rescale estimates that grow beyond it, against high --cfg-scale"
    group.add_argument("--dynamic-threshold", type=number, metavar="X", help=against)
    seed = "0 to 2^64 - 1 (N and N + 2^32 begin with the same noise); -1 or none: a random one"
    group.add_argument("--seed", type=whole, metavar="N", help=seed)
    strength = "0 to 1: lean the first noise towards that of the variation seed; image i has SEED, VARIATION SEED + i"
    group.add_argument("--variation-strength", type=number, metavar="X", help=strength)
    group.add_argument("--variation-seed", type=whole, metavar="N", help="-1 or none, with a strength: a random one")
    clip_skip = "1: the last block of the text encoder, 2: the one before (AUTOMATIC1111's count; diffusers' + 1)"
    group.add_argument("--clip-skip", type=whole, metavar="N", help=clip_skip)
    add_text_flags(group)
    group = parser.add_argument_group("size")
    group.add_argument("-W", "--width", type=whole, metavar="N", help="pixels")
    group.add_argument("-H", "--height", type=whole, metavar="N", help="pixels")
    add_picture_flags(parser)
    add_model_flags(parser)
    group = parser.add_argument_group("machine")
    group.add_argument("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N")
    add_choice(group, "--dtype", DTYPES, "auto")
    tiling = "decode in strips, to spare memory: on, off, auto (default: beyond 1024 x 1024 pixels)"
    group.add_argument("--vae-tiling", type=choice("way", TILING_NAMES), metavar="WHEN", help=tiling)
    group.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: torch's choice)")


def add_text_flags(group: Any) -> None:
    """How a prompt is read."""
    emphasis = f"how brackets like (this:1.3) are applied: {', '.join(EMPHASIS_NAMES)} (plain text)"
    group.add_argument("--emphasis", type=choice("emphasis", EMPHASIS_NAMES), metavar="WAY", help=emphasis)
    long_prompt = f"what to do with a prompt that is too long: {', '.join(LONG_PROMPT_NAMES)}"
    group.add_argument("--long-prompt", type=choice("way", LONG_PROMPT_NAMES), metavar="WAY", help=long_prompt)


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    args, team = build_parser().parse(argv), read_team()
    first = team.rank == 0
    with notes(args if first else argparse.Namespace(**vars(args) | {"quiet": True})) as say:  # one process says it
        settings = checked(args, team)
        args.device = team.device(args.device)
        model = load_model(args, say)
        if first:
            leaning = f", variation seed {settings.variation_seed}" if settings.variation_strength else ""
            print(f"seed {settings.seed}{leaning}", file=sys.stderr, flush=True)  # even with --quiet
    with notes(args) as say:
        started = time.perf_counter()
        names = names_of(args, settings)
        share, left = remaining(args, settings, model, team, names)
        for lot in batches(left, model.batch_size(settings.batch_size)):
            draw(args, settings, model, lot, names, progress=first and not args.quiet)
        if args.grid:
            from ..sheet import plain_sheet, read_picture

            show(save_sheet(plain_sheet([read_picture(path) for path in names]), args, seeds_of(settings, 0)))
        count = f"{len(left)} pictures" if len(left) != 1 else "1 picture"
        there = f", {len(share) - len(left)} were there already" if len(left) < len(share) else ""
        whose = f"process {team.rank} of {team.world}: " if team.world > 1 else ""
        say(f"{whose}{count} in {time.perf_counter() - started:.1f} s{there}")
    return 0


def checked(args: argparse.Namespace, team: Team) -> Settings:
    """All that can be known without torch: prompts, model folder, numbers, output.

    Raises:
        BadInput: the first thing that does not fit.
    """
    args.prompts = given_prompts(args, team)
    args.seed = given_seed(args, "seed", team)
    if args.variation_strength:
        args.variation_seed = given_seed(args, "variation_seed", team)
    config = check_all(args)
    settings = settled(args, config)
    count = len(args.prompts) * settings.num_images
    with refusing():
        check(count <= MAX_PICTURES, f"{count} pictures are asked for: one call draws at most {MAX_PICTURES}")
        last = max(seed or 0 for seed in settings.seeds(count - 1).values())
        check(last <= MAX_SEED, f"the seeds of {count} pictures go beyond {MAX_SEED}: the last is {last}")
        check_sheet(args, settings, count, team)
        check_output(args, settings, team)
    if settings.long_prompt == "error":
        from .prompt import check_lengths

        check_lengths(args, ((prompt, args.negative_prompt, settings) for prompt in args.prompts))
    return settings


def check_all(args: argparse.Namespace, axes: Collection[str] = ()) -> Config:
    """The pictures and the model that flags or --like name.

    Args:
        axes: options that count as given, whatever their value in a picture.

    Raises:
        BadInput: the first thing that does not fit.
    """
    read_pictures(args, axes)
    config = check_model(args)
    place_pictures(args, config)
    if args.like is not None:
        follow(args, config)
    return config


def given_prompts(args: argparse.Namespace, team: Team) -> list[str]:
    """The prompt, or those of a file.

    Raises:
        BadInput: none was given, or two.
    """
    if args.from_file is None:
        return [given_prompt(args)]
    if args.words is not None or args.prompt is not None:
        raise BadInput("a prompt was given, and --from-file too: one of them")
    if args.from_file == "-" and team.world > 1:
        raise BadInput("--from-file -: several processes cannot share one stdin, name a file")
    if args.output is not None:
        raise BadInput("--from-file names its pictures by number and seed: --outdir says where, not --output")
    if args.like is not None:
        begin(args)
    args.negative_prompt = clean(args.negative_prompt)
    return read_prompts(args.from_file)


def given_prompt(args: argparse.Namespace) -> str:
    """The one prompt.

    Raises:
        BadInput: none was given, or two.
    """
    if args.words is not None and args.prompt is not None:
        raise BadInput("the prompt was given twice, as PROMPT and as --prompt")
    if args.like is not None:
        begin(args)
    given = args.words if args.prompt is None else args.prompt
    if given is None:
        raise BadInput('no prompt was given: say what to draw in quotes, such as "a red circle"')
    args.prompt, args.negative_prompt = clean(given), clean(args.negative_prompt)
    return args.prompt


def given_seed(args: argparse.Namespace, name: str, team: Team) -> int:
    """The first picture's seed, or variation seed. A file of prompts begins at 0: the same command again goes on.

    Raises:
        BadInput: a random one for several processes, which have no way to agree on it.
    """
    given = getattr(args, name)
    if given is None and args.from_file is not None:
        return 0
    if given not in (None, -1):
        return given
    if team.world > 1:
        raise BadInput(f"give a --{name.replace('_', '-')}: {team.world} processes cannot agree on a random one")
    return secrets.randbelow(2**32)


def settled(args: argparse.Namespace, config: Config) -> Settings:
    """The numbers of the flags, checked, with the model's own where none was given.

    Raises:
        BadInput: the first that does not fit, under its flag's name.
    """
    try:
        return resolve(config, seed=args.seed, **options_of(args))
    except ValueError as error:
        raise BadInput(as_flag(str(error))) from error


def keywords(args: argparse.Namespace) -> dict[str, Any]:
    """What the flags say, as `minisd.generate` takes it; without prompt and seed."""
    given = {"negative_prompt": args.negative_prompt, "image": args.image, "mask": args.mask_image}
    return given | options_of(args)


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """What is asked of a call but its seed, by flags or by --like; what neither knows is None."""
    return {name: getattr(args, name, None) for name in NUMBERS}


def clean(text: str | None) -> str | None:
    """Text without lone surrogates (bytes of the command line that are no UTF-8), which no file can hold."""
    return text if text is None else text.encode("utf-8", "replace").decode("utf-8")


def as_flag(message: str) -> str:
    """A message about `clip_skip` as one about --clip-skip."""
    name, space, rest = message.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest}" if name in (*NUMBERS, "seed") else message


def remaining(
    args: argparse.Namespace, settings: Settings, model: Any, team: Team, names: list[Path | None]
) -> tuple[range, Sequence[int]]:
    """The pictures that fall to this process, and those of them that it still has to draw.

    Raises:
        BadInput: a picture of --from-file has the name of another that is there.
    """
    from ..pipeline import recipes

    share = team.share(len(names))
    if args.from_file is None or args.overwrite:
        return share, share
    with refusing():
        wanted = recipes(model, args.prompts, seed=settings.seed, **keywords(args))
        return share, [i for i in share if not is_drawn(names[i], wanted[i])]


def draw(
    args: argparse.Namespace,
    settings: Settings,
    model: Any,
    lot: list[int],
    names: list[Path | None],
    progress: bool,
) -> None:
    """Draw some pictures of the call, print their paths, and fill in those of `names` that were open.

    Args:
        lot: their numbers, without a gap.
    """
    from ..image import save
    from ..pipeline import generate

    prompts = [args.prompts[i // settings.num_images] for i in lot]
    options = keywords(args) | settings.seeds(lot[0]) | {"num_images": 1, "batch_size": len(lot)}
    with refusing(ValueError):
        pictures = generate(model, prompts, progress=progress, **options)
    for i, picture in zip(lot, pictures, strict=True):
        if names[i] is None:
            names[i] = save_numbered(picture, args.outdir, seeds_of(settings, i))
        else:
            save(picture, names[i], args.overwrite)
        show(names[i])


ALIASES = {
    **dict.fromkeys(("--cfg", "--scale", "--guidance-scale"), "--cfg-scale"),
    **dict.fromkeys(("--images", "--n-images", "--n-samples"), "--num-images"),
    **PICTURE_ALIASES,
    **{"--ddim-steps": "--steps", "--ckpt": "--model", "--W": "--width", "--H": "--height"},
}
