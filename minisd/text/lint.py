"""What looks like a slip in a prompt. Every such prompt is drawn; this says what it may not have meant.

In: a prompt. Out: one sentence for each thing, in plain English. Characters are counted from 1. No torch here.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice

from . import editing
from .emphasis import COMFY_SIGNS, MAX_WEIGHT, SIGNS, Brackets, Break, Span, match_a1111, match_comfy, parse

LOUD, QUIET = 1.5, 0.5  # beyond these a weight breaks pictures more often than it helps
SHOWN = 3  # of one kind


def lint(prompt: str, emphasis: str) -> list[str]:
    """Everything worth a second look, the most likely slip first. Linear in the prompt.

    Args:
        emphasis: how the prompt is read, see `minisd.text.emphasis.parse`.
    """
    found = list(foreign(prompt, emphasis))
    if emphasis == "off":
        return found
    pieces = (COMFY_SIGNS if emphasis == "comfy" else SIGNS).split(prompt)
    places = list(accumulate(map(len, pieces), initial=1))[1:-1:2]  # of the signs
    signs = pieces[1::2]
    brackets = match_comfy(pieces) if emphasis == "comfy" else match_a1111(signs)
    spans = parse(prompt, emphasis)
    return [
        *few(unbalanced(signs, places, brackets, emphasis)),
        *few(no_numbers(pieces, places, brackets)),
        *few(breaks(spans)),
        *few(weights(spans)),
        *few(backslashes(signs, places)),
        *found,
    ]


def lint_edits(prompt: str, steps: int, compose: bool = True) -> list[str]:
    """What looks like a slip in [from:to:when], [a|b] and AND, over so many steps. Linear in the prompt.

    Args:
        compose: False: a negative prompt, which has no AND.
    """
    script = editing.parse(prompt, steps)
    places = list(accumulate(map(len, script.tokens), initial=1))
    return [
        *few(half_edits(prompt, script, places)),
        *few(untimely(prompt, script, places, steps)),
        *few(lone_bars(script, places)),
        *few(lone_ands(script, places, compose)),
    ]


def half_edits(prompt: str, script: editing.Script, places: list[int]) -> list[str]:
    """Square brackets with a colon or a bar right inside that change nothing."""
    found, marked, outside = [], False, []  # from right to left; a bracket sets aside what was seen right of it
    for i in range(len(script.tokens) - 1, -1, -1):
        token = script.tokens[i]
        if token in (")", "]"):
            outside.append(marked)
            marked = False
        elif token in ("(", "["):
            if token == "[" and marked and i not in script.choices:
                why = NO_WHEN if i in script.depth else "it is never closed, or crosses round ones"
                found.append(f"{bracket(prompt, places[i])} at character {places[i]} is no edit: {why}")
            marked = bool(outside) and outside.pop()
        marked = marked or token in (":", "|")
    return found[::-1]


def untimely(prompt: str, script: editing.Script, places: list[int], steps: int) -> Iterator[str]:
    """Edits that turn before the first step or after the last."""
    for i, turn in script.turns.items():
        if turn in (0, steps):
            when = f"before the first of {steps} steps" if turn == 0 else f"after the last of {steps} steps"
            told = "what it turns from is never said" if turn == 0 else "what it turns to is never said"
            yield f"{bracket(prompt, places[i])} at character {places[i]} turns {when}: {told}"


def lone_bars(script: editing.Script, places: list[int]) -> Iterator[str]:
    """A | outside of alternatives; {a|b} is told of elsewhere."""
    braces = 0
    for i, token in enumerate(script.tokens):
        braces = max(0, braces + token.count("{") - token.count("}"))
        if token == "|" and i not in script.jumps and not braces:
            yield f"the | at character {places[i]} alternates nothing: it is plain text"


def lone_ands(script: editing.Script, places: list[int], compose: bool) -> Iterator[str]:
    """AND where it is a word like others."""
    depth = 0
    for i, token in enumerate(script.tokens):
        depth += script.depth.get(i, 0)
        if token == "AND" and (depth or not compose):
            where = "inside brackets" if compose else "in a negative prompt"
            yield f"the AND at character {places[i]} is a word like others {where}"


def bracket(prompt: str, place: int) -> str:
    """What begins there, up to the next closing bracket, a long one cut."""
    return shown(BRACKET.match(prompt, place - 1)[0])


def few(found: Iterable[str]) -> list[str]:
    """The first of them, and how many more there are."""
    found = iter(found)
    shown = list(islice(found, SHOWN))
    more = sum(1 for _ in found)
    return [*shown, f"... and {more} more like this"] if more else shown


def unbalanced(signs: list[str], places: list[int], brackets: Brackets, emphasis: str) -> Iterator[str]:
    """Brackets without a partner."""
    if emphasis == "comfy" and brackets.unclosed:
        first = brackets.unclosed[0]
        yield f"the ( at character {places[first]} is never closed: from there on everything is plain text"
        signs = signs[:first]
    elif emphasis != "comfy":
        for i in brackets.unclosed:
            yield f"the {signs[i]} at character {places[i]} is never closed: it goes on to the end"
    for i, sign in enumerate(signs):
        if sign[-1] in ")]" and sign[0] != "\\" and i not in brackets.closing:
            yield f"the {sign[-1]} at character {places[i] + len(sign) - 1} closes nothing: it is plain text"


def no_numbers(pieces: list[str], places: list[int], brackets: Brackets) -> Iterator[str]:
    """(x:1,3) and the like: what stands behind a bracket's last colon looks as if it were meant for a weight."""
    for i, opening in brackets.closing.items():
        if pieces[2 * i + 1] == ")" and opening not in brackets.fixed:
            _, colon, told = pieces[2 * i].rpartition(":")
            if colon and len(told.split()) < 2:
                yield f"{shown(told)} before the ) at character {places[i]} is no number: it is read as text, times 1.1"


def breaks(spans: list[Span | Break]) -> Iterator[str]:
    """BREAK inside brackets."""
    for span in spans:
        if isinstance(span, Break) and span.inside:
            yield "BREAK inside brackets: it begins a new chunk and they go on; elsewhere it may be read as a word"


def weights(spans: list[Span | Break]) -> Iterator[str]:
    """Weights that seldom do good."""
    for span in spans:
        if isinstance(span, Break) or QUIET <= span.weight <= LOUD or not span.text.strip():
            continue
        what = f"the weight {span.weight:.4g} of {shown(span.text)}"
        if abs(span.weight) == MAX_WEIGHT:
            yield f"{what} is the largest there is: brackets beyond it count for nothing"
        elif span.weight > LOUD:
            yield f"{what} is above {LOUD}: pictures tend to break"
        elif span.weight > 0:
            yield f"{what} is below {QUIET}: leaving it out may do the same"
        elif span.weight == 0:
            yield f"{what}: its tokens still take their places"
        else:
            yield f"{what} is negative: a negative prompt leads away more reliably"


def backslashes(signs: list[str], places: list[int]) -> Iterator[str]:
    """A backslash that protects nothing."""
    for sign, place in zip(signs, places, strict=True):
        if sign == "\\":
            yield f"the backslash at character {place} is left out: write two for one"


def foreign(prompt: str, emphasis: str) -> Iterator[str]:
    """What other tools give a meaning to."""
    for pattern, told in FOREIGN:
        match = pattern.search(prompt)
        if match:
            yield f"{shown(match[0])} {told}"
    square = re.search(r"\[[^\[\]]*\]", prompt) if emphasis == "comfy" else None
    if square:
        yield f"{shown(square[0])} is plain text with --emphasis comfy"


def shown(text: str) -> str:
    """A part of the prompt, quoted, the end of a long one left out."""
    text = text.strip()
    return repr(text if len(text) <= 40 else text[:39] + "…")


BRACKET = re.compile(r"\[[^\]]{0,40}\]?")
NO_WHEN = "[from:to:when] takes a number of steps, or a part of them such as 0.5, at its end"
FOREIGN = (  # none of these patterns goes over the same text twice
    (
        re.compile(r"<(?:lora|lyco|hypernet):[^<>]*>", re.I),
        "is plain text and does nothing here: use --lora FILE[:WEIGHT]",
    ),
    (re.compile(r"\bembedding:[^\s,()]+", re.I), "is ComfyUI's: use --embedding FILE[:WORD], and the word alone"),
    (re.compile(r"(?<=[\w)\"'])(?:\+\++|--+|(?<=\))[+-])(?![\w+-])"), "is compel's: here write (this:1.1) or [this]"),
    (re.compile(r"\)\.?(?:and|blend|swap)\("), "is compel's and plain text here"),
    (re.compile(r"\{[^{}|]*\|[^{}]*\}"), "is a choice of other tools and plain text here"),
    (re.compile(r"(?<!_)__[A-Za-z0-9][A-Za-z0-9/-]*__(?!_)"), "is a wildcard of other tools and plain text here"),
    (re.compile(r"<\|(?:start|end)oftext\|>"), "is plain text, not the special token"),
)
