"""Prompts that are longer than the text encoder reads at once: what goes into which row of it.

In: the spans of a prompt and the towers' tokenizers. Out (`lay_out`): a `Layout`: blocks of tokens, each of which gives
one stretch of the context, and a `Report` that accounts for every word. A row holds BOS, `room` tokens and EOS.
A BREAK ends a section. A section that fits one row is one block, in every mode; what a longer one becomes stands in
LONG_PROMPT at the end. No torch here.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..config import check
from .emphasis import Break, Span, parse
from .rows import Block, Laid, Pooled, Row, Unit, chunk, one_row, size
from .summary import summarize
from .tokenizer import Tokenizer, literal, segments


@dataclass(frozen=True)
class Report:
    """What became of a prompt's words, in their order. Each is in one of kept, cut and dropped."""

    tokens: int
    room: int  # of one chunk, or window
    chunks: int
    kept: tuple[str, ...] = ()
    cut: tuple[str, ...] = ()  # their ends are dropped
    dropped: tuple[str, ...] = ()
    moved: tuple[str, ...] = ()  # of those kept: from a chunk's end into the next chunk
    split: tuple[str, ...] = ()  # of those kept: over two chunks or more

    @property
    def losses(self) -> str:
        """What the picture will not know of, in words; "": nothing."""
        lost = {"dropped": self.dropped, "cut short": self.cut}
        named = [f"{what}: {' '.join(words)!r}" for what, words in lost.items() if words]
        return "; ".join([f"{self.tokens} tokens, {self.room} fit", *named]) if named else ""

    @property
    def changes(self) -> str:
        """How a long prompt is laid out, in words; "": it fits."""
        if self.chunks == 1:
            return ""
        done = {"moved to the next chunk": self.moved, "split over two chunks": self.split}
        named = [f"{what}: {' '.join(words)!r}" for what, words in done.items() if words]
        return "; ".join([f"{self.tokens} tokens in {self.chunks} chunks of {self.room}", *named])


@dataclass(frozen=True)
class Layout:
    """A prompt ready for the encoder."""

    blocks: tuple[Block, ...]
    report: Report


def lay_out(
    tokenizers: Sequence[Tokenizer], prompt: str, emphasis: str, long_prompt: str, pooled: Pooled | None = None
) -> Layout:
    """Read a prompt and lay it out.

    Args:
        tokenizers: one for each tower. All towers are cut at the same places.
        emphasis: how brackets are read, see `minisd.text.emphasis.parse`.
        long_prompt: a key of LONG_PROMPT.
        pooled: what "summarize" asks.

    Raises:
        ValueError: the prompt is too long and `long_prompt` is "error"; or an embedding is longer than a row.
    """
    sections, words = tokenise(tokenizers, parse(prompt, emphasis))
    room = tokenizers[0].room
    blocks: list[Block] = []
    moved: set[int] = set()
    for i, units in enumerate(sections):
        if size(units) <= room:
            made = [Block(tuple(units), ((0, len(units)),))]
        else:
            made, those = LONG_PROMPT[long_prompt](units, room, pooled)
            moved.update(those)
        blocks += [replace(made[0], begins="BREAK" if i else ""), *made[1:]]
    report = account(sections, blocks, moved, words, room)
    check(long_prompt != "error" or not report.losses, f"{short(prompt)} is too long: {report.losses}")
    return Layout(tuple(blocks), report)


def short(prompt: str) -> str:
    """A prompt or negative prompt in a message: its beginning."""
    return f"the text {prompt if len(prompt) <= 40 else prompt[:39] + '…'!r}"


def tokenise(tokenizers: Sequence[Tokenizer], spans: Iterable[Span | Break]) -> tuple[list[list[Unit]], list[str]]:
    """The units between BREAKs, and the words as they were written. Each span is tokenised by itself.

    A word that is an embedding's in one tower alone is plain text to the others.

    Raises:
        ValueError: an embedding that no row holds, or tokenizers that do not agree.
    """
    sections: list[list[Unit]] = [[]]
    words: list[str] = []
    triggers = {word.lower(): word for tokenizer in tokenizers for word in tokenizer.triggers}
    for span in spans:
        if isinstance(span, Break):
            sections.append([])
            continue
        for piece, word in segments(literal(span.text), sorted(triggers.values(), key=len, reverse=True)):
            if word is None:
                sections[-1] += plain_units(tokenizers, piece, span.weight, words)
            else:
                ids = tuple(tuple(embedded(tokenizer, word)) for tokenizer in tokenizers)
                sections[-1].append(Unit(ids, span.weight, len(words)))
                words.append(piece)
                room = tokenizers[0].room
                check(len(sections[-1][-1]) <= room, f"the embedding {word!r} has more tokens than a row: {room}")
    if len(sections) > 1 and not sections[-1]:
        sections.pop()  # nothing follows the last BREAK
    return sections, words


def embedded(tokenizer: Tokenizer, word: str) -> list[int]:
    """The ids of an embedding's word, upper and lower case alike."""
    known = (ids for trigger, ids in tokenizer.triggers.items() if trigger.lower() == word.lower())
    return next(known, None) or tokenizer.plain(word)


def plain_units(tokenizers: Sequence[Tokenizer], text: str, weight: float, words: list[str]) -> list[Unit]:
    """The tokens of a text without embeddings. Its words are added to `words`."""
    placed = [list(tokenizer.placed(text)) for tokenizer in tokenizers]
    check(len(set(map(len, placed))) == 1, f"the towers' tokenizers do not agree about {text[:60]!r}")
    units, start = [], None
    for column in zip(*placed, strict=True):
        _, first, last, ends = column[0]
        start = first if start is None else start
        unit = Unit(tuple((place[0],) for place in column), weight, len(words))
        if ends:
            word, start = text[start:last], None
            words.append(word)
            sentence = word[-1:] in SENTENCE_ENDS and not text[last : last + 1].strip()
            unit = replace(unit, comma=word == ",", stop=sentence or word in PHRASE_ENDS)
        units.append(unit)
    return units


def window(units: Row, room: int, pooled: Pooled | None = None) -> Laid:
    """One block that overlapping rows read; each token's vector is a mix of those rows' (see `shares`).

    The context is BOS of the first row, every token once, and EOS of the last row, which is repeated up to a multiple
    of a row's length in place of padding. A third of a row is read twice; the last row is shifted back to be full.
    """
    ends = [0, *accumulate(map(len, units))]  # tokens before each unit
    rows, start = [], 0
    while ends[-1] - ends[start] > room:
        end = bisect_right(ends, ends[start] + room) - 1
        rows.append((start, end))
        start = max(bisect_left(ends, ends[end] - room // 3), bisect_left(ends, ends[end + 1] - room))
    rows.append((bisect_left(ends, ends[-1] - room), len(units)))
    return [Block(tuple(units), tuple(rows))], []


def shares(rows: Sequence[tuple[int, int]]) -> list[list[float]]:
    """How much of each unit's vector comes from each row that reads it: 1 in sum, and less towards a row's ends.

    Of two rows one fades out by equal steps while the other fades in.
    """
    total: Counter[int] = Counter()
    for start, end in rows:
        total.update({j: min(j - start + 1, end - j) for j in range(start, end)})
    return [[min(j - start + 1, end - j) / total[j] for j in range(start, end)] for start, end in rows]


def truncate(units: Row, room: int, pooled: Pooled | None = None) -> Laid:
    """One row; what does not fit is dropped."""
    ends = [*accumulate(map(len, units))]
    return [one_row(units[: bisect_right(ends, room)])], []


def account(
    sections: Sequence[Row], blocks: Sequence[Block], moved: set[int], words: Sequence[str], room: int
) -> Report:
    """Where each word's units are found."""
    wanted = Counter(unit.word for units in sections for unit in units)
    held = Counter(unit.word for block in blocks for unit in block.units)
    homes = Counter(word for block in blocks for word in {unit.word for unit in block.units})

    def named(which: Callable[[int], bool]) -> tuple[str, ...]:
        return tuple(word for i, word in enumerate(words) if which(i))

    return Report(
        tokens=sum(map(size, sections)),
        room=room,
        chunks=sum(len(block.rows) for block in blocks),
        kept=named(lambda i: held[i] == wanted[i]),
        cut=named(lambda i: 0 < held[i] < wanted[i]),
        dropped=named(lambda i: held[i] == 0),
        moved=named(lambda i: i in moved),
        split=named(lambda i: held[i] == wanted[i] and homes[i] > 1),
    )


SENTENCE_ENDS = frozenset(".!?")  # where a space follows, so that 1.5 stays whole
PHRASE_ENDS = frozenset((",", ";"))
BEGINS = {
    "": "the prompt begins",
    "BREAK": "BREAK",
    "full": "the chunk before is full",
    "comma": "the chunk before is full, and this stood behind its last comma",
    "embedding": "an embedding did not fit into the chunk before",
}
LONG_PROMPT = {"chunk": chunk, "window": window, "truncate": truncate, "summarize": summarize, "error": truncate}
