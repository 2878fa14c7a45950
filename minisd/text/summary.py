"""A prompt that is too long, cut down to the phrases that say most of it.

In: units, and an encoder to ask for pooled vectors. Out (`summarize`): one row of whole phrases, in their order.
"""

from itertools import groupby, pairwise
from operator import attrgetter, mul

from ..config import check
from .rows import Laid, Pooled, Row, Unit, chunk, one_row, size

MAX_PHRASES = 64  # of a summary's candidates; each round encodes them all


def summarize(units: Row, room: int, pooled: Pooled | None = None) -> Laid:
    """One row of whole phrases, in their order, near in meaning to the whole prompt.

    The whole prompt's vector is the mean of its chunks' pooled vectors, each counted by its tokens. From nothing on,
    the phrase is added with which the row's pooled vector has the highest cosine to it, while one fits. Phrases end
    with commas and sentences; one that fills more than a row is cut at words, into quarters of a row.

    Raises:
        ValueError: there is no encoder to ask.
    """
    check(pooled is not None, "summarize asks the text encoder, which is not there")
    rows = [block.units for block in chunk(units, room)[0]]
    weighted = [[size(row) * x for x in vector] for row, vector in zip(rows, pooled(rows), strict=True)]
    whole = [sum(column) for column in zip(*weighted, strict=True)]

    def nearness(candidates: list[Row]) -> list[float]:
        return [sum(map(mul, whole, vector)) for vector in pooled(candidates)]

    parts = phrases(units, room)
    alone = nearness(parts)
    best = sorted(range(len(parts)), key=lambda i: -alone[i])[:MAX_PHRASES]
    chosen: list[int] = []
    while True:
        left = room - sum(size(parts[i]) for i in chosen)
        options = [sorted([*chosen, i]) for i in best if i not in chosen and size(parts[i]) <= left]
        if not options:
            return [one_row([unit for i in chosen for unit in parts[i]])], []
        scores = nearness([[unit for i in option for unit in parts[i]] for option in options])
        chosen = options[scores.index(max(scores))]


def phrases(units: Row, room: int) -> list[Row]:
    """Units cut behind commas and sentences; what fills more than a row is cut further."""
    ends = [0, *(i for i, unit in enumerate(units, start=1) if unit.stop), len(units)]
    found = [units[start:end] for start, end in pairwise(ends) if end > start]
    return [part for phrase in found for part in ([phrase] if size(phrase) <= room else pieces(phrase, room))]


def pieces(phrase: Row, room: int) -> list[Row]:
    """Runs of words of at most a quarter of a row; a word longer than that is one run, or some if no row holds it."""
    runs: list[list[Unit]] = [[]]
    for _, group in groupby(phrase, attrgetter("word")):
        word = list(group)
        if runs[-1] and size(runs[-1]) + size(word) > room // 4:
            runs.append([])
        runs[-1] += word
    return [block.units for run in runs for block in chunk(run, room)[0]]
