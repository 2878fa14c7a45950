"""`minisd generate PROMPT`: check everything, then load, draw and save. Its flags stand in `flags.py`."""

import argparse
import secrets
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..config import Config, check
from ..settings import MAX_SEED, Options, Settings, resolve
from .common import BadInput, clean, notes, refusing
from .flags import build_parser
from .like import begin, follow
from .many import MAX_PICTURES, Team, batches, is_drawn, read_prompts, read_team
from .model import check_model, load_model
from .output import check_output, check_sheet, names_of, save_numbered, save_sheet, seeds_of, show
from .pictures import place_pictures, read_pictures
from .prompt import check_lengths

NUMBERS = tuple(name for name in Options.__annotations__ if name != "seed")


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
