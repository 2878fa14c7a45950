"""Emphasis: how loudly each part of a prompt is said.

In: a prompt such as `a (red:1.3) circle BREAK on white`. Out (`parse`): `Span`s of text, each with its weight, and
`Break`s. Three ways to apply the weights stand at the end: z (b, l, e), w (b, l, 1) -> z' (b, l, e).
Syntax: https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#attentionemphasis
No torch here, so that the command line explains a prompt without it: the formulae are methods of the tensors.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

ROUND, SQUARE = 1.1, 1 / 1.1  # what a bare bracket multiplies by
MAX_WEIGHT = 100.0  # no weight goes beyond: a thousand brackets would make infinities, and a picture of nothing
HUGE = 1e30  # of nested products, so that a product of two stays finite

NUMBER = r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
# Escaped brackets, brackets, and the end of a weighted one. Linear: no part can be matched in two ways.
SIGNS = re.compile(rf"(\\[()\[\]\\]|\\|[()\[\]]|:\s*{NUMBER}\s*\))")
COMFY_SIGNS = re.compile(r"(\\[()]|[()])")
COMFY_NUMBER = re.compile(rf"{NUMBER}(?:[eE][+-]?[0-9]{{1,4}})?")
BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Span:
    """A piece of a prompt said with one weight."""

    text: str
    weight: float


@dataclass(frozen=True)
class Break:
    """The word BREAK: what follows begins a new chunk."""

    inside: bool = False  # it stands in a bracket, where it works all the same


@dataclass
class Brackets:
    """Which signs of a prompt are brackets that do something, by their number; the others are plain text."""

    opening: dict[int, float] = field(default_factory=dict)  # what an opening one multiplies by, or in `fixed` sets
    closing: dict[int, int] = field(default_factory=dict)  # closing ones, and which one each closes
    fixed: set[int] = field(default_factory=set)
    unclosed: list[int] = field(default_factory=list)


Part = tuple[str, float] | Break | None  # text and its weight; None: what follows is tokenised by itself


def parse(prompt: str, emphasis: str) -> list[Span | Break]:
    """Split a prompt into spans of one weight, in linear time.

    Args:
        emphasis: a key of EMPHASIS.
            "a1111", "no-norm": `(x)` times 1.1, `[x]` divided by 1.1, `(x:1.3)` times 1.3, nested ones multiply;
            `\\(` `\\)` `\\[` `\\]` `\\\\` are plain, a lone backslash is left out, an open bracket runs to the end.
            "comfy": `(x:1.3)` is 1.3 whatever stands outside, `(x)` times 1.1; `[x]` is plain, as are `\\(` and `\\)`,
            and everything from a bracket on that is never closed.
            "off": everything is plain.

    Returns:
        Spans, none of them empty, and Breaks. BREAK is read by all but "off", though ComfyUI itself has none.
    """
    if emphasis == "off":
        return [Span(prompt, 1.0)] if prompt else []
    return merged(read_comfy(prompt) if emphasis == "comfy" else read_a1111(prompt))


def escape(text: str) -> str:
    """Text that `parse(..., "a1111")` reads back as it is: brackets, backslashes and BREAK lose their power."""
    return re.sub(r"[\\()\[\]]", r"\\\g<0>", text).replace("BREAK", "BREA\\K")


def merged(parts: Iterator[Part]) -> list[Span | Break]:
    """Neighbours of one weight become one span: `(un)(even)` is the word uneven."""
    found: list[Span | Break] = []
    held, weight = [], 1.0
    for part in (*parts, None):
        if isinstance(part, tuple) and part[1] == weight:
            held.append(part[0])
            continue
        text, held = "".join(held), []
        if text:
            found.append(Span(text, weight))
        if isinstance(part, tuple):
            held, weight = [part[0]], part[1]
        elif part is not None:
            found.append(part)
    return found


def read_a1111(prompt: str) -> Iterator[Part]:
    """Text with the product of the brackets around it."""
    pieces = SIGNS.split(prompt)  # text and signs in turn
    brackets = match_a1111(pieces[1::2])
    levels = {"(": [1.0], "[": [1.0]}  # products of the brackets of a kind that are open
    for i, (text, sign) in enumerate(zip(pieces[::2], [*pieces[1::2], ""], strict=True)):
        if text:
            yield from broken(text, product(levels), len(levels["("]) + len(levels["["]) > 2)
        if i in brackets.opening:
            levels[sign].append(bounded(levels[sign][-1] * brackets.opening[i], HUGE))
        elif i in brackets.closing:
            levels["[" if sign == "]" else "("].pop()
        elif sign:
            yield sign[1:] if sign[0] == "\\" else sign, product(levels)


def product(levels: dict[str, list[float]]) -> float:
    """The weight inside all brackets that are open."""
    return bounded(levels["("][-1] * levels["["][-1], MAX_WEIGHT)


def match_a1111(signs: list[str]) -> Brackets:
    """Pair the brackets. Round and square ones do not see each other: `(a [b) c]` overlap."""
    found, rounds, squares = Brackets(), [], []
    for i, sign in enumerate(signs):
        if sign == "(":
            rounds.append(i)
        elif sign == "[":
            squares.append(i)
        elif sign == "]" and squares:
            found.closing[i] = squares.pop()
            found.opening[found.closing[i]] = SQUARE
        elif sign[-1] == ")" and sign[0] != "\\" and rounds:
            found.closing[i] = rounds.pop()
            found.opening[found.closing[i]] = ROUND if sign == ")" else float(sign[1:-1])
    found.opening |= dict.fromkeys(rounds, ROUND) | dict.fromkeys(squares, SQUARE)
    found.unclosed = sorted(rounds + squares)
    return found


def read_comfy(prompt: str) -> Iterator[Part]:
    """Text with the weight of the innermost bracket that says one, times 1.1 for each bare one inside it."""
    pieces = COMFY_SIGNS.split(prompt)
    brackets = match_comfy(pieces)
    levels = [1.0]
    for i, (text, sign) in enumerate(zip(pieces[::2], [*pieces[1::2], ""], strict=True)):
        if text:
            yield from broken(text, levels[-1], len(levels) > 1)
        if i in brackets.opening:
            outside = 1.0 if i in brackets.fixed else levels[-1]
            levels.append(bounded(outside * brackets.opening[i], MAX_WEIGHT))
            yield None
        elif i in brackets.closing:
            levels.pop()
            yield None
        elif sign:
            if i in brackets.unclosed[:1]:
                yield None
            yield sign[1:] if sign[0] == "\\" else sign, levels[-1]


def match_comfy(pieces: list[str]) -> Brackets:
    """Pair the brackets, and take the weight out of the text before a closing one.

    ComfyUI counts depth: a closing bracket too many makes the next opening one plain.
    """
    found, pairs, depth = Brackets(), [], 0
    for i, sign in enumerate(pieces[1::2]):
        if sign == "(":
            if depth >= 0:
                found.unclosed.append(i)
            depth += 1
        elif sign == ")":
            depth -= 1
            if depth >= 0:
                pairs.append((found.unclosed.pop(), i))
    end = min(found.unclosed, default=len(pieces))
    for start, i in pairs:
        if start > end:
            continue
        text, colon, number = pieces[2 * i].rpartition(":")
        says = bool(colon and (text or start < i - 1) and COMFY_NUMBER.fullmatch(number.strip()))
        found.opening[start] = float(number) if says else ROUND
        found.closing[i] = start
        if says:
            pieces[2 * i] = text
            found.fixed.add(start)
    return found


def broken(text: str, weight: float, inside: bool) -> Iterator[Part]:
    """Text cut where the word BREAK stands, which takes the space around it along."""
    first, *others = BREAK.split(text) if "BREAK" in text else [text]
    yield (first.rstrip() if others else first), weight
    for i, other in enumerate(others, start=1):
        yield Break(inside)
        yield (other.strip() if i < len(others) else other.lstrip()), weight


def bounded(x: float, limit: float) -> float:
    """x in -limit..limit."""
    return min(max(x, -limit), limit)


def a1111(z: "Tensor", w: "Tensor", empty: "Tensor") -> "Tensor":
    """z' = w z, then z'' = z' mean(z) / mean(z'): AUTOMATIC1111's "Original".

    Every token's vector is made longer or shorter, and the whole is scaled so that its mean over l and e is what it
    was. A chunk is whole by itself: its mean is its own, not its prompt's nor (as there) its batch's.
    """
    louder = w * z
    ratio = z.mean((1, 2), keepdim=True) / louder.mean((1, 2), keepdim=True)
    return louder * ratio.nan_to_num(nan=1.0, posinf=1.0, neginf=1.0)  # a mean of 0 cannot be restored


def no_norm(z: "Tensor", w: "Tensor", empty: "Tensor") -> "Tensor":
    """z' = w z: AUTOMATIC1111's "No norm".

    The mean is left as it comes out, so that words nobody weighted keep their length: one loud word does not make the
    others quieter. Many find it better with SDXL.
    """
    return w * z


def comfy(z: "Tensor", w: "Tensor", empty: "Tensor") -> "Tensor":
    """z' = e + w (z - e), e the encoding of the empty prompt, at the same place and with the same clip skip: ComfyUI's.

    The weight scales what the word adds to saying nothing: 0 says nothing there, below 0 leads away from the word.
    A weight moves a vector less than in `a1111`, where it also scales what all prompts have in common.
    """
    return z.where(w == 1, empty + w * (z - empty))


def off(z: "Tensor", w: "Tensor", empty: "Tensor") -> "Tensor":
    """z' = z: brackets are text, and all weights are 1."""
    return z


EMPHASIS = {"a1111": a1111, "no-norm": no_norm, "comfy": comfy, "off": off}
