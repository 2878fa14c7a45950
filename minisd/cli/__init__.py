"""The command line: `minisd generate`, `grid`, `prompt`, `convert`, `info`, `train`, `plot`, `eval`. One module a
command.

Paths of what was made go to stdout, everything else to stderr. Exit codes: 0 done, 2 bad input (one line; at most six
on weights that do not fit), 1 a failure while running, 130 Ctrl-C. Nothing here imports torch before the flags have
been checked.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from ..config import VERSION
from .common import BadInput, flat, lines, near

COMMANDS = {
    "generate": "draw pictures from a prompt",
    "grid": "draw one sheet of pictures over one or two settings",
    "prompt": "explain how a prompt is read, token by token",
    "train": "train a model, stage by stage",
    "plot": "draw the curves of training runs",
    "eval": "measure how much of what it is told a model draws",
    "info": "print the recipe of a picture, or what a model's file or folder holds",
    "convert": "turn a model from one file layout into another",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        code = dispatch(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except SystemExit as done:  # argparse after --help
        return int(done.code or 0)
    except KeyboardInterrupt:
        return fail("interrupted", 130, argv)
    except BadInput as error:
        return fail(lines(error), 2, argv)
    except Exception as error:
        return fail(explain(error), 1, argv)


def dispatch(argv: list[str]) -> int:
    """Find the command and hand it the rest of the line."""
    name = argv[0] if argv else ""
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"minisd {VERSION}")
        return 0
    if name not in COMMANDS:
        commands = f"the commands are {', '.join(COMMANDS)}"
        said = f"unknown command {flat(repr(name), 60)}{near(name, COMMANDS)}" if argv else "no command was given"
        raise BadInput(f"{said}; {commands} (see minisd --help)")
    return import_module(f".{name}", __name__).run(argv[1:])


def usage() -> str:
    """The help of `minisd` itself."""
    lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: minisd COMMAND ...",
            "",
            "Text to image from scratch, with a trained model inside.",
            "",
            *lines,
            "",
            "Each has its own --help. Try: minisd generate 'a red circle'",
        ]
    )


def fail(message: str, code: int, argv: list[str]) -> int:
    """Say what went wrong in one line; the traceback only where it is asked for."""
    if "--debug" in argv or os.environ.get("MINISD_DEBUG"):
        traceback.print_exc()
    print(f"minisd: {message}", file=sys.stderr)
    drain()
    return code


def explain(error: Exception) -> str:
    """A failure while running, in one line."""
    text = flat(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in text:
        return "out of memory: try a smaller --width and --height, or --batch-size 1"
    if isinstance(error, BrokenPipeError):
        return "stdout was closed"
    if isinstance(error, OSError | FloatingPointError):
        return text
    return f"{type(error).__name__}: {text} (--debug shows where)"


def drain() -> None:
    """Empty stdout; where that fails, send it nowhere, or Python complains once more when it ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
