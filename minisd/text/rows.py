"""What the text encoder reads at once: rows of units, none of which is ever torn apart.

In: units, the tokens of a prompt. Out (`chunk`): blocks of one row each. A row holds BOS, `room` tokens and EOS.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

BACKTRACK = 20  # tokens; a comma as near as this to a chunk's end ends it (AUTOMATIC1111's default)


@dataclass(frozen=True, slots=True)
class Unit:
    """What is never torn apart: one token, or all tokens that an embedding's word stands for."""

    ids: tuple[tuple[int, ...], ...]  # for each tower
    weight: float
    word: int  # its number in the prompt
    comma: bool = False  # a comma by itself
    stop: bool = False  # a phrase ends with it

    def __len__(self) -> int:
        """Tokens, in the tower where it has most of them."""
        return max(map(len, self.ids))


@dataclass(frozen=True)
class Block:
    """A stretch of the context: its units, and the rows of the encoder that read them, as (first, behind the last)."""

    units: tuple[Unit, ...]
    rows: tuple[tuple[int, int], ...]  # one, unless windows overlap
    begins: str = ""  # why it begins where it does, a key of BEGINS


Row = Sequence[Unit]
Pooled = Callable[[list[Row]], list[list[float]]]  # rows to the pooled vectors of the encoder, each of length 1
Laid = tuple[list[Block], list[int]]  # blocks, and the numbers of the words that were moved


def size(units: Iterable[Unit]) -> int:
    """Tokens."""
    return sum(map(len, units))


def one_row(units: Row, begins: str = "") -> Block:
    """A block that the encoder reads in one row."""
    return Block(tuple(units), ((0, len(units)),), begins)


def chunk(units: Row, room: int, pooled: Pooled | None = None) -> Laid:
    """Rows one after the other, as AUTOMATIC1111 does: a full one ends behind its last comma, if that is near."""
    blocks, moved = [], []
    start, filled, comma, begins = 0, 0, None, ""  # comma: the last one of the row, and the tokens before it
    for i, unit in enumerate(units):
        fits = filled + len(unit) <= room
        while filled + len(unit) > room:
            near = comma is not None and filled == room and not unit.comma and filled - comma[1] <= BACKTRACK
            end = comma[0] + 1 if near else i
            blocks.append(one_row(units[start:end], begins))
            begins = "comma" if near else "full" if filled == room else "embedding"
            moved += [tail.word for tail in units[end : i + (begins == "embedding")]]
            start, filled, comma = end, size(units[end:i]), None
        if unit.comma and fits:  # one that begins a row is not remembered
            comma = i, filled
        filled += len(unit)
    return [*blocks, one_row(units[start:], begins)], moved
