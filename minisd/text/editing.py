"""Prompts that change on the way: what is said at each step, in AUTOMATIC1111's syntax.

In: prompts and a number of steps. Out: stages, each with the texts that hold from its first step on.

    [from:to:when]  `from` in the first `when` steps, then `to`; [to:when] and [from::when] begin or end with nothing.
                    `when` with a point in it is a part of the steps, int(when * steps), else a number of steps.
    [a|b|c]         a, b, c, a ... from step to step; an alternative may be empty.
    a AND b:0.7     several prompts at once, each with its weight (1 where none is said); see diffusion/guidance.py.

All of it nests. Brackets of any other content, (x:1.2), [x], and escapes (a backslash and a sign) are handed on as they
are, for the emphasis parser, and so is whatever does not close. Where AUTOMATIC1111 differs: its sampling loop counts
from 0 against steps from 1, so that its first text holds one look longer; its two-look samplers count looks, not steps;
a `|` that alternates nothing makes it take the whole prompt literally; it splits at AND before all else, through any
bracket, where here [a AND b|c] composes at every second step and (a AND b) says the word; and it reads a weight where
there is no AND ("16:9"). Only its two readings of brackets have this syntax: see settings.EDITED.
https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#prompt-editing
AND: Liu et al. 2022, https://arxiv.org/abs/2206.01714
"""

import math
import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Parts = tuple[tuple[str | None, float], ...]  # texts and their weights; None stands for no text at all

TOKENS = re.compile(r"(\\.|[][()|:]|\bAND\b)", re.DOTALL)
NUMBER = re.compile(r"\s*[+-]?([0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9})\s*")
SIGNS = {"(": "", "[": "", ":": "", "|": "", ")": "(", "]": "["}  # and what a closing one closes


class Stage(NamedTuple):
    """What one prompt says from step `first` on."""

    first: int
    parts: Parts


class Phase(NamedTuple):
    """Steps `first` to `end` - 1, in which the same is said in turn, one after the other from step to step."""

    first: int
    end: int
    turns: tuple[Parts, ...]


class Told(NamedTuple):
    """What a batch of b images is told: as many parts as the richest prompt has, and each image's negative prompt."""

    parts: tuple[tuple[tuple[str | None, ...], tuple[float, ...]], ...]  # of each part: b texts, b weights
    negatives: tuple[str | None, ...]  # (b,)

    @property
    def texts(self) -> list[str | None]:
        """All that is said, over and over."""
        return [*(text for texts, _ in self.parts for text in texts), *self.negatives]


class Script(NamedTuple):
    """A prompt in tokens, to be read from left to right but for choices and jumps; all by place of a token."""

    tokens: list[str]
    choices: dict[int, tuple[int, ...]]  # at an opening bracket: where its alternatives start
    turns: dict[int, int]  # there, of an edit: the step it turns at; without one the alternatives take turns
    jumps: dict[int, int]  # at the end of an alternative: on behind the bracket
    depth: dict[int, int]  # +1 and -1 at the brackets that are handed on


def timeline(
    prompts: Sequence[str], negatives: Sequence[str | None], steps: int, interpreted: bool = True
) -> list[tuple[int, Told]]:
    """The stages of a whole batch: (first step, what is told from there on), first steps rising from 0.

    Args:
        negatives: of each image; None is handed on.
        interpreted: False: brackets and AND are plain text.
    """

    def script(text: str | None, compose: bool) -> list[Stage]:
        plain = text is None or not interpreted
        return [Stage(0, ((text, 1.0),))] if plain else stages(text, steps, compose)

    said = [script(text, compose=True) for text in prompts]
    led_from = [script(text, compose=False) for text in negatives]
    firsts = sorted({stage.first for one in (*said, *led_from) for stage in one})
    return [(first, told(*([at(one, first) for one in some] for some in (said, led_from)))) for first in firsts]


def at(script: list[Stage], step: int) -> Parts:
    """What holds at a step."""
    return script[bisect_right(script, step, key=lambda stage: stage.first) - 1].parts


def told(said: list[Parts], led_from: list[Parts]) -> Told:
    """One stage of a batch; a prompt of fewer parts says its first once more, with weight 0."""
    most = max(map(len, said))
    filled = [(*parts, *[(parts[0][0], 0.0)] * (most - len(parts))) for parts in said]
    parts = tuple(tuple(zip(*column, strict=True)) for column in zip(*filled, strict=True))
    return Told(parts, tuple(parts[0][0] for parts in led_from))


def stages(prompt: str, steps: int, compose: bool = True) -> list[Stage]:
    """What a prompt says over so many steps; neighbours differ, and a prompt without this syntax is one stage.

    Time is linear in the prompt's length for each stage that is not a repetition. Nothing is an error.

    Args:
        compose: False: AND is a word like any other (a negative prompt is one text).
    """
    script = parse(prompt, steps)
    compose = compose and "AND" in script.tokens
    if not script.choices and not compose:
        return [Stage(0, ((prompt, 1.0),))]
    turns = sorted(set(script.turns.values()))
    period = math.lcm(*{len(starts) for i, starts in script.choices.items() if i not in script.turns})
    known: dict[tuple[int, int], Parts] = {}  # by edits done and place in the round
    found: list[Stage] = []
    for step in range(steps):
        key = bisect_right(turns, step), step % period
        if key not in known:
            known[key] = read(script, step, compose)
        if not found or found[-1].parts != known[key]:
            found.append(Stage(step, known[key]))
    return found


def phases(prompt: str, steps: int, compose: bool = True) -> list[Phase]:
    """What `stages` says, told shorter: from edit to edit one round of what alternates. `minisd prompt` shows it."""
    said = stages(prompt, steps, compose)
    found: list[Phase] = []
    for first, end in pairwise(sorted({0, steps, *parse(prompt, steps).turns.values()})):
        row = [at(said, step) for step in range(first, end)]
        period = next(p for p in range(1, len(row) + 1) if row[p:] == row[:-p])
        if found and found[-1].turns == (row[0],) and period == 1:
            first = found.pop().first
        found.append(Phase(first, end, tuple(row[:period])))
    return found


def parse(prompt: str, steps: int) -> Script:
    """Find the brackets that say something here, in one pass."""
    tokens = [token for token in TOKENS.split(prompt) if token]
    script = Script(tokens, {}, {}, {}, {})
    opened: list[tuple[int, int]] = []  # where, and how many marks came before
    marks: list[int] = []  # colons and bars right inside of open square brackets
    for i, token in enumerate(tokens):
        if token not in SIGNS:
            continue
        if token in ("[", "("):
            opened.append((i, len(marks)))
        elif token in (":", "|"):
            if opened and tokens[opened[-1][0]] == "[":
                marks.append(i)
        elif opened and tokens[opened[-1][0]] == SIGNS[token]:
            start, before = opened.pop()
            if len(marks) == before or not decide(script, start, marks[before:], i, steps):
                script.depth[start], script.depth[i] = 1, -1
            del marks[before:]
        else:  # no pair closes across it: what is open so far is plain text
            opened.clear()
            marks.clear()
    return script


def decide(script: Script, start: int, marks: list[int], end: int, steps: int) -> bool:
    """Note what a pair of square brackets with marks is; False if it is neither an edit nor an alternation."""
    tokens = script.tokens
    colons = [i for i in marks if tokens[i] == ":"]
    bars = [i for i in marks if tokens[i] == "|"]
    if len(colons) in (1, 2) and colons[-1] == end - 2 and NUMBER.fullmatch(tokens[end - 1]):
        script.choices[start] = (start + 1, colons[0] + 1) if len(colons) == 2 else (end + 1, start + 1)
        script.turns[start] = step_of(tokens[end - 1], steps)
        ends = colons
    elif bars:
        script.choices[start] = (start + 1, *[bar + 1 for bar in bars])
        ends = [*bars, end]
    else:
        return False
    for i in ends:
        script.jumps[i] = end + 1
    return True


def step_of(when: str, steps: int) -> int:
    """The step an edit turns at: 0 is at once, `steps` never."""
    value = float(when) * steps if "." in when else float(when)
    return int(max(0, min(steps, value)))


def read(script: Script, step: int, compose: bool) -> Parts:
    """What is said at one step."""
    tokens, choices, turns, jumps, _ = script
    parts: list[list[str]] = [[]]
    i = depth = 0
    while i < len(tokens):
        if i in choices:
            i = choices[i][step >= turns[i] if i in turns else step % len(choices[i])]
            continue
        if i in jumps:
            i = jumps[i]
            continue
        depth += script.depth.get(i, 0)
        if compose and depth == 0 and tokens[i] == "AND":
            parts.append([])
        else:
            parts[-1].append(tokens[i])
        i += 1
    return tuple(map(weighted, parts)) if len(parts) > 1 else (("".join(parts[0]), 1.0),)


def weighted(words: list[str]) -> tuple[str, float]:
    """A part of a composition and its weight, the number behind a last colon."""
    if len(words) > 1 and words[-2] == ":" and NUMBER.fullmatch(words[-1]):
        return "".join(words[:-2]).strip(), float(words[-1])
    return "".join(words).strip(), 1.0
