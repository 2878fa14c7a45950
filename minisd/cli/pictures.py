"""The flags for pictures that come in, and for drawing in two runs; all checked before a model is loaded. No torch."""

import argparse
import logging
import re
from collections.abc import Collection

from ..config import Config, check
from ..settings import UPSCALE_NAMES
from .common import Parser, choice, flat, number, refusing, whole

log = logging.getLogger("minisd")

# What goes on to `generate` under its own name.
OPTIONS = ("strength", "mask_blur", "hires", "hires_strength", "hires_steps", "hires_upscale")
ALIASES = dict.fromkeys(("--image", "--init-image"), "--init-img")
NEEDS = {  # a flag: those of which one must be there too
    **dict.fromkeys(("mask", "outpaint", "strength"), ("init_img",)),
    "mask_blur": ("mask", "outpaint"),
    **dict.fromkeys(("hires_strength", "hires_steps", "hires_upscale"), ("hires",)),
}
NEVER = (("mask", "outpaint"), ("hires", "mask"), ("hires", "outpaint"))


def add_picture_flags(parser: Parser) -> None:
    """A picture to start from, a mask, room around it; and two runs."""
    group = parser.add_argument_group("from a picture")
    size = "the picture to start from (also --image); without -W and -H it keeps its size, or a large one its shape"
    group.add_argument("-i", "--init-img", metavar="FILE", help=size)
    strength = "0 to 1, how far it is drawn anew: the last STEPS * X steps are run (default 0.75; all with --outpaint)"
    group.add_argument("--strength", type=number, metavar="X", help=strength)
    mask = "a picture of the same size: white is drawn anew, black and transparent stay"
    group.add_argument("--mask", metavar="FILE", help=mask)
    blur = "pixels by which the mask's edge is softened (default 0)"
    group.add_argument("--mask-blur", type=number, metavar="X", help=blur)
    margins = "pixels to add on each side and to draw, as 0,0,32,0; -W and -H are the whole picture's then"
    group.add_argument("--outpaint", type=sides, metavar="LEFT,TOP,RIGHT,BOTTOM", help=margins)
    group = parser.add_argument_group("in two runs")
    scale = "draw small, enlarge both sides so many times (1 to 8), draw over"
    group.add_argument("--hires", type=number, metavar="X", help=scale)
    over = "how far the enlarged picture is drawn anew (default 0.5)"
    group.add_argument("--hires-strength", type=number, metavar="X", help=over)
    steps = "steps of the second run, before the strength is counted (default: as the first)"
    group.add_argument("--hires-steps", type=whole, metavar="N", help=steps)
    ways = f"what is enlarged: {', '.join(UPSCALE_NAMES)} (default {UPSCALE_NAMES[0]})"
    group.add_argument("--hires-upscale", type=choice("way", UPSCALE_NAMES), metavar="WAY", help=ways)


def sides(text: str) -> tuple[int, ...]:
    """LEFT,TOP,RIGHT,BOTTOM in pixels, not all of them 0."""
    if not re.fullmatch(r"[0-9]{1,5}(,[0-9]{1,5}){3}", text) or not text.strip("0,"):
        said = f"{flat(repr(text), 60)} is not LEFT,TOP,RIGHT,BOTTOM"
        raise argparse.ArgumentTypeError(f"{said}, four numbers of pixels such as 0,0,32,0")
    return tuple(map(int, text.split(",")))


def read_pictures(args: argparse.Namespace, axes: Collection[str] = ()) -> None:
    """Check which flags go together, and read the files: into `args.image` and `args.mask_image`.

    Args:
        axes: names that will have values, one a picture.

    Raises:
        BadInput: the first thing that does not fit.
    """
    args.image, args.mask_image = None, None
    given = {name for name in (*NEEDS, "init_img", "hires") if getattr(args, name) is not None or name in axes}
    with refusing():
        for name, needed in NEEDS.items():
            check(
                name not in given or given & {*needed},
                f"{flag(name)} means nothing without {' or '.join(map(flag, needed))}",
            )
        for one, other in NEVER:
            check(not {one, other} <= given, f"{flag(one)} does not go with {flag(other)}")
        if args.init_img is None:
            return
        from ..picture import read_mask, read_picture

        args.image = read_picture(args.init_img)
        if args.mask is not None:
            args.mask_image = read_mask(args.mask)
            its, own = (f"{picture.width} x {picture.height} pixels" for picture in (args.mask_image, args.image))
            check(its == own, f"--mask {args.mask} has {its}, the picture {own}: make them the same")


def place_pictures(args: argparse.Namespace, config: Config) -> None:
    """The size to draw the picture at, where none is named, and the room around it.

    Raises:
        BadInput: room that is no whole number of latents, or leaves none for the picture.
    """
    if args.image is None:
        return
    from ..picture import describe, fit, outpaint, own_size

    left, top, right, bottom = args.outpaint or (0, 0, 0, 0)
    factor, default = config.vae.factor, config.defaults
    if args.width is None and args.height is None:
        width, height = own_size(config, args.image.width, args.image.height)
        args.width, args.height = left + width + right, top + height + bottom
        if (width, height) != args.image.size:
            log.info("the picture of %d x %d pixels is drawn at %d x %d", *args.image.size, width, height)
    if args.outpaint is None:
        return
    with refusing():
        for side in args.outpaint:
            nearest = f"{side // factor * factor} and {side // factor * factor + factor}"
            check(side % factor == 0, f"--outpaint {side} is not a multiple of {factor}: the nearest are {nearest}")
        width = (args.width or default.width) - left - right
        height = (args.height or default.height) - top - bottom
        room = f"--outpaint leaves {width} x {height} pixels for the picture: name a larger --width and --height"
        check(min(width, height) >= factor, room)
        args.image.info["about"] = describe(args.image)  # as it was read, not as it is fitted
        args.image, args.mask_image = outpaint(fit(args.image, width, height), left, top, right, bottom)


def flag(name: str) -> str:
    """An argument's name as it is typed."""
    return f"--{name.replace('_', '-')}"
