"""Where pictures go: one exact file, or the next free number in a folder. No torch up here.

In: the output flags. Out: names that are checked before the model is loaded, files that are whole or not there.
"""

import argparse
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..config import check
from ..files import check_writable
from ..settings import Settings
from .common import Parser
from .many import Team

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
MAX_SHEET = 80_000_000  # pixels; Pillow warns of a picture of more than 89 million


def add_output_flags(parser: Parser, exact: str, numbered: str, overwrite: str) -> Any:
    """Where to. The texts say what the names are; the group is handed back for more."""
    group = parser.add_argument_group("output")
    where = group.add_mutually_exclusive_group()
    where.add_argument("-o", "--output", type=Path, metavar="FILE", help=exact)
    where.add_argument("--outdir", type=Path, default=Path("outputs"), metavar="FOLDER", help=numbered)
    group.add_argument("--overwrite", action="store_true", help=overwrite)
    return group


def check_folder(folder: Path, name: str) -> None:
    """Make a folder for numbered pictures; refuse one that cannot be written.

    Raises:
        OSError: what is wrong with it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_writable(folder / name)


def check_exact(args: argparse.Namespace, paths: Iterable[Path], kinds: tuple[str, ...] = SUFFIXES) -> None:
    """Refuse an --output that cannot be written, or whose pictures (`paths`) would take a name that is not free.

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    folder = args.output.parent
    check(not args.output.is_dir(), f"--output {args.output} is a folder: name a file, or use --outdir")
    check(args.output.suffix.lower() in kinds, f"--output {args.output} must end in one of {', '.join(kinds)}")
    check(folder.is_dir(), f"--output {args.output}: there is no folder {str(folder)!r}")
    for path in paths:
        free = args.overwrite or not path.exists()
        check(free, f"{path} exists: choose another name, or add --overwrite")
        check_writable(path)


def check_area(count: int, width: int, height: int) -> None:
    """Refuse a sheet of more pixels than other programs read without a murmur.

    Raises:
        ValueError: it has.
    """
    area = f"a sheet of {count} pictures of {width} x {height} has more than {MAX_SHEET} pixels"
    check(count * width * height <= MAX_SHEET, f"{area}: draw fewer or smaller ones")


def check_sheet(args: argparse.Namespace, settings: Settings, count: int, team: Team) -> None:
    """Refuse a --grid that cannot be.

    Raises:
        ValueError: why.
    """
    if not args.grid:
        return
    later = "with --from-file the same command without torchrun adds the sheet afterwards"
    check(team.world == 1, f"--grid: no process of several sees all pictures; {later}")
    check(count > 1, "--grid needs more than one picture: add --num-images")
    check_area(count, settings.width, settings.height)


def check_output(args: argparse.Namespace, settings: Settings, team: Team) -> None:
    """Refuse an output that cannot be written, and make the folder of numbered pictures.

    Raises:
        ValueError, OSError: what is wrong with it.
    """
    if args.output is None:
        check_folder(args.outdir, f"00000-{seeds_of(settings, 0)}.png")
        return
    names = names_of(args, settings)
    own = [names[i] for i in team.share(len(names))]
    check_exact(args, [*own, *([args.output] if args.grid else [])], (".png",) if args.grid else SUFFIXES)


def names_of(args: argparse.Namespace, settings: Settings) -> list[Path | None]:
    """The file of each picture of the call; None: the next free number, found when it is saved."""
    seeds = [seeds_of(settings, i) for i in range(len(args.prompts) * settings.num_images)]
    if args.from_file is not None:
        return [args.outdir / f"{i:05d}-{seed}.png" for i, seed in enumerate(seeds)]
    if args.output is None:
        return [None] * len(seeds)
    path = args.output
    return [path] if len(seeds) == 1 else [path.with_name(f"{path.stem}-{seed}{path.suffix}") for seed in seeds]


def seeds_of(settings: Settings, i: int) -> str:
    """The seed of image i as names tell it, and the variation seed where it counts."""
    seeds = settings.seeds(i)
    return "{seed}-{variation_seed}".format(**seeds) if settings.variation_strength else str(seeds["seed"])


def save_numbered(picture: Any, folder: Path, seed: str | int, prefix: str = "") -> Path:
    """Save under the next free number; another process may take it first, then the next one."""
    from ..image import save

    while True:
        names = (re.match(re.escape(prefix) + r"([0-9]{5,9})-", path.name) for path in folder.iterdir())
        last = max((int(name[1]) for name in names if name), default=-1)
        path = folder / f"{prefix}{last + 1:05d}-{seed}.png"
        try:
            save(picture, path)
        except FileExistsError:
            continue
        return path


def save_sheet(sheet: Any, args: argparse.Namespace, seed: str | int) -> Path:
    """Save a sheet as --output, or under the next free number of sheets; its path."""
    from ..image import save

    if args.output is None:
        return save_numbered(sheet, args.outdir, seed, "grid-")
    save(sheet, args.output, args.overwrite)
    return args.output


def show(path: Path) -> None:
    """The path of a finished picture on stdout, at once."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(str(path).encode(encoding, "backslashreplace").decode(encoding), flush=True)
