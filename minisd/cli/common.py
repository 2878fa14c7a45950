"""What the commands share: a strict parser, number types, notes on stderr. No torch.

argparse alone takes `--steps 1_0`, `--cfg-scale nan` and Arabic digits, and answers an error with ten lines.
"""

import argparse
import difflib
import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

LINE = 300  # the longest message
MAX_THREADS = 1024
NOTE = 4000  # the longest note: it names every word that a long prompt loses


class BadInput(Exception):
    """What the user gave does not fit: one line and exit code 2."""


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, `--num_images` for `--num-images`, hidden other spellings, did-you-mean."""

    def __init__(self, command: str, description: str, epilog: str = "") -> None:
        super().__init__(
            prog=f"minisd {command}",
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        self.aliases: dict[str, str] = {}
        self._negative_number_matcher = re.compile(r"-\.?[0-9]")  # -4,0,0,0 is a value, which its type refuses

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse, or raise BadInput."""
        args, rest = self.parse_known_args(self.spelled(argv))
        flags = [word for word in rest if word.startswith("-") and word != "--"]
        if flags:
            flag = flags[0].partition("=")[0]
            self.error(f"unknown flag {flat(flag, 60)}{near(flag, self._option_string_actions)}")
        if rest:
            self.error(f"{flat(repr(rest[0]), 60)} is one word too many: put a prompt of several words in quotes")
        return args

    def spelled(self, argv: Sequence[str]) -> list[str]:
        """The flags under the spelling that --help shows; what follows a lone -- stays as it is."""
        end = list(argv).index("--") if "--" in argv else len(argv)
        words = []
        for word in argv[:end]:
            head, equals, tail = word.partition("=")
            if head.startswith("--") and " " not in head:
                head = head.replace("_", "-")
                word = self.aliases.get(head, head) + equals + tail
            words.append(word)
        return [*words, *argv[end:]]

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


def add_common(parser: Parser) -> None:
    """The flags every command has."""
    group = parser.add_argument_group("messages")
    loud = group.add_mutually_exclusive_group()
    loud.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no notes")
    loud.add_argument("-v", "--verbose", action="store_true", help="more notes")
    group.add_argument("--debug", action="store_true", help="show the traceback of a failure")


def whole(text: str) -> int:
    """A whole number in ASCII digits."""
    if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
        raise argparse.ArgumentTypeError(f"{flat(repr(text), 60)} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    """A whole number of 1 or more."""
    if whole(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return whole(text)


def threads(text: str) -> int:
    """So many CPU threads."""
    if not 1 <= whole(text) <= MAX_THREADS:
        raise argparse.ArgumentTypeError(f"{text} must be in 1..{MAX_THREADS}")
    return whole(text)


def number(text: str) -> float:
    """A finite number, written with ASCII digits."""
    plain = re.fullmatch(r"[+-]?([0-9]{1,30}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,4})?", text)
    if not plain or not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{flat(repr(text), 60)} is not a finite number")
    return float(text)


def interval(text: str) -> tuple[float, float]:
    """Two numbers with a comma between them."""
    low, comma, high = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"{flat(repr(text), 60)} is not two numbers like 0.2,0.8")
    return number(low), number(high)


def choice(what: str, names: Iterable[str]) -> Callable[[str], str]:
    """A type that takes one of the names, and helps with a misspelt one."""
    names = tuple(names)

    def chosen(text: str) -> str:
        if text not in names:
            said = f"unknown {what} {flat(repr(text), 60)}{near(text, names)}"
            raise argparse.ArgumentTypeError(f"{said}; choose from {', '.join(names)}")
        return text

    return chosen


def add_choice(group: Any, flag: str, names: Sequence[str], default: str | None = None) -> None:
    """A flag that takes one of some names; --help lists them."""
    kind = choice(flag.lstrip("-"), names)
    group.add_argument(flag, type=kind, default=default, metavar="NAME", help=", ".join(names))


def device(text: str) -> str:
    """auto, cpu, cuda or cuda:N. Whether it is there is for torch to say."""
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", text):
        said = f"unknown device {flat(repr(text), 60)}"
        raise argparse.ArgumentTypeError(f"{said}; choose from auto, cpu, cuda, cuda:N")
    return text


def near(word: str, known: Iterable[str]) -> str:
    """ ", did you mean …?" where a known word is close."""
    close = difflib.get_close_matches(word[:60], list(known), 1, 0.6)
    return f", did you mean {close[0]}?" if close else ""


def flat(text: Any, limit: int = LINE) -> str:
    """A message as one line of limited length that any terminal can show."""
    line = " ".join(str(text).split()).encode("utf-8", "backslashreplace").decode("utf-8")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def clean(text: str | None) -> str | None:
    """Text without lone surrogates (bytes of the command line that are no UTF-8), which no file can hold."""
    return text if text is None else text.encode("utf-8", "replace").decode("utf-8")


def lines(text: Any, most: int = 6) -> str:
    """A message as one line, or as a few where it tells tensor by tensor what does not fit."""
    told = str(text).splitlines()[:most]
    if len(told) < 2 or " does not fit: " not in told[0]:
        return flat(text)
    return "\n  ".join(map(flat, told))


@contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Turn what a check raises (by default ValueError and OSError) into BadInput."""
    kinds = kinds or (ValueError, OSError)
    try:
        yield
    except kinds as error:
        if isinstance(error, OSError) and error.strerror:
            name = f"{flat(error.filename, 200)}: " if error.filename else ""
            raise BadInput(f"{name}{error.strerror}") from error
        raise BadInput(str(error)) from error


class Notes(logging.Handler):
    """Shows what the library logs, each line once, without tearing a progress bar apart."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        line = flat(record.getMessage(), NOTE)
        if line not in self.shown:  # a prompt is encoded anew for each picture
            tqdm.write(f"minisd: note: {line}", file=sys.stderr)
        self.shown.add(line)


@contextmanager
def notes(args: argparse.Namespace) -> Iterator[Callable[[str], None]]:
    """Show the library's log on stderr for a while; yields a function for notes of the command's own."""
    log, handler = logging.getLogger("minisd"), Notes()
    kept = log.level
    log.setLevel(logging.ERROR if args.quiet else logging.DEBUG if args.verbose else logging.INFO)
    log.addHandler(handler)
    try:
        yield lambda text: None if args.quiet else print(flat(text), file=sys.stderr, flush=True)
    finally:
        log.removeHandler(handler)
        log.setLevel(kept)
