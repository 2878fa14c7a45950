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
from itertools import accumulate, groupby, pairwise
from operator import attrgetter, mul

from ..config import check
from .emphasis import Break, Span, parse
from .tokenizer import Tokenizer, literal, segments

BACKTRACK = 20  # tokens; a comma as near as this to a chunk's end ends it (AUTOMATIC1111's default)
MAX_PHRASES = 64  # of a summary's candidates; each round encodes them all


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


Row = Sequence[Unit]
Pooled = Callable[[list[Row]], list[list[float]]]  # rows to the pooled vectors of the encoder, each of length 1
Laid = tuple[list[Block], list[int]]  # blocks, and the numbers of the words that were moved


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
