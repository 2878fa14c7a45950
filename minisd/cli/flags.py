"""The flags of `minisd generate`, of which `grid` and `prompt` take what they need. No torch.

Those that say which model stand in `model.py`, those for pictures that come in in `pictures.py`.
"""

from typing import Any

from ..config import SAMPLER_NAMES, SCHEDULE_NAMES
from ..settings import EMPHASIS_NAMES, ETA_SAMPLERS, LONG_PROMPT_NAMES, START_NAMES, TILING_NAMES
from .common import Parser, add_choice, add_common, choice, device, interval, number, threads, whole
from .model import add_model_flags
from .output import SUFFIXES, add_output_flags
from .pictures import ALIASES as PICTURE_ALIASES
from .pictures import add_picture_flags

DTYPES = ("auto", "fp32", "bf16", "fp16")

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
    add_drawing_flags(group)
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
    add_text_flags(group)
    group = parser.add_argument_group("size")
    add_size_flags(group)
    add_picture_flags(parser)
    add_model_flags(parser)
    group = add_machine_flags(parser)
    tiling = "decode in strips, to spare memory: on, off, auto (default: beyond 1024 x 1024 pixels)"
    group.add_argument("--vae-tiling", type=choice("way", TILING_NAMES), metavar="WHEN", help=tiling)


def add_drawing_flags(group: Any) -> None:
    """The settings of any picture, however it comes about."""
    group.add_argument("--steps", type=whole, metavar="N", help="denoising steps")
    group.add_argument("--cfg-scale", type=number, metavar="X", help="guidance; 1 is none (also --cfg, --scale)")
    add_choice(group, "--sampler", SAMPLER_NAMES)
    add_choice(group, "--schedule", SCHEDULE_NAMES)
    eta = f"fresh noise a step, 0 to 1, for {', '.join(ETA_SAMPLERS)}"
    group.add_argument("--eta", type=number, metavar="X", help=eta)
    group.add_argument("--guidance-rescale", type=number, metavar="X", help="0 to 1, against over-exposure")
    clip_skip = "1: the last block of the text encoder, 2: the one before (AUTOMATIC1111's count; diffusers' + 1)"
    group.add_argument("--clip-skip", type=whole, metavar="N", help=clip_skip)


def add_size_flags(group: Any) -> None:
    """Of a picture."""
    group.add_argument("-W", "--width", type=whole, metavar="N", help="pixels")
    group.add_argument("-H", "--height", type=whole, metavar="N", help="pixels")


def add_machine_flags(parser: Parser) -> Any:
    """Where it runs; returns the group."""
    group = parser.add_argument_group("machine")
    group.add_argument("--device", type=device, default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:N")
    add_choice(group, "--dtype", DTYPES, "auto")
    group.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: torch's choice)")
    return group


def add_text_flags(group: Any) -> None:
    """How a prompt is read."""
    emphasis = f"how brackets like (this:1.3) are applied: {', '.join(EMPHASIS_NAMES)} (plain text)"
    group.add_argument("--emphasis", type=choice("emphasis", EMPHASIS_NAMES), metavar="WAY", help=emphasis)
    long_prompt = f"what to do with a prompt that is too long: {', '.join(LONG_PROMPT_NAMES)}"
    group.add_argument("--long-prompt", type=choice("way", LONG_PROMPT_NAMES), metavar="WAY", help=long_prompt)


ALIASES = {
    **dict.fromkeys(("--cfg", "--scale", "--guidance-scale"), "--cfg-scale"),
    **dict.fromkeys(("--images", "--n-images", "--n-samples"), "--num-images"),
    **PICTURE_ALIASES,
    **{"--ddim-steps": "--steps", "--ckpt": "--model", "--W": "--width", "--H": "--height"},
}
