"""Text to token ids: a careful wrapper around transformers' CLIPTokenizer.

In: strings. Out: ids (b, l), l = max_length = BOS + content + EOS + padding.
transformers hands back a two-token tokenizer without a word when files are missing, so everything is checked here.
Sennrich et al. 2016 (BPE), https://arxiv.org/abs/1508.07909
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TextConfig, check

if TYPE_CHECKING:
    from torch import Tensor  # the command line explains a prompt without it

FILES = ("vocab.json", "merges.txt")
JOINED = "tokenizer.json"  # both in one, as transformers 5 writes them
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
MAX_BYTES = 20_000_000


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer folder holds: the ids of tokens, the merges in order, and the three special ids."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    bos_id: int
    eos_id: int
    pad_id: int


def read_vocabulary(folder: str | Path) -> Vocabulary:
    """Read a tokenizer folder in either form: vocab.json and merges.txt, or tokenizer.json.

    Raises:
        ValueError: files are missing or are not what their names say.
    """
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    joined = (folder / JOINED).is_file()
    check(joined or not missing, f"the tokenizer folder {folder} lacks {', '.join(missing)}")
    try:
        ids, merges = read_joined(folder / JOINED) if missing else read_pair(*(folder / name for name in FILES))
        ok = all(isinstance(i, int) for i in ids.values()) and all(len(pair) == 2 for pair in merges)
        check(ok, "an id is not a number, or a merge not a pair")
        bos, eos = (ids[token] for token in SPECIAL)
        return Vocabulary(ids, merges, bos, eos, ids.get(pad_token(folder), eos))
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"the tokenizer in {folder} cannot be read: {reason}") from error


def read_pair(vocab: Path, merges: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The older form. The first line of merges.txt names a version."""
    lines = read_text(merges).split("\n")
    return json.loads(read_text(vocab)), [
        tuple(line.split()) for line in lines if line.strip() and not line.startswith("#version")
    ]


def read_joined(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """The newer form. A merge is a pair, or a string in files of before 2024."""
    data = json.loads(read_text(path))
    added = {token["content"]: token["id"] for token in data.get("added_tokens", [])}
    merges = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in data["model"]["merges"]]
    return {**data["model"]["vocab"], **added}, merges


def pad_token(folder: Path) -> str:
    """The token that fills a row up; transformers lets special_tokens_map.json win over tokenizer_config.json."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            token = json.loads(read_text(folder / name)).get("pad_token")
            if token is not None:
                return token["content"] if isinstance(token, dict) else token
    return SPECIAL[1]


def read_text(path: Path) -> str:
    """A text file of sensible size."""
    check(path.stat().st_size <= MAX_BYTES, f"{path.name} has more than {MAX_BYTES} bytes")
    return path.read_text(encoding="utf-8")


def literal(text: str) -> str:
    """Text that holds nothing but itself: special tokens typed by hand, and halves of letters, are made harmless."""
    text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates become question marks
    for token in SPECIAL:
        text = text.replace(token, token.replace("|", " | "))
    return text


def segments(text: str, words: Iterable[str]) -> Iterator[tuple[str, str | None]]:
    """Text cut where one of the words stands, the first that fits: each piece, and the word that it is."""
    words, done = list(words), 0
    for match in re.finditer("|".join(map(whole, words)), text, re.IGNORECASE) if words else ():
        yield text[done : match.start()], None
        yield match[0], words[match.lastindex - 1]
        done = match.end()
    yield text[done:], None


def whole(word: str) -> str:
    """A pattern of a word that is not a part of a longer one."""
    before, after = (
        end if re.match(r"\w", sign) else "" for end, sign in ((r"(?<!\w)", word[0]), (r"(?!\w)", word[-1]))
    )
    return f"{before}({re.escape(word)}){after}"


class Tokenizer:
    """One tower's tokenizer, with the ids that its config names.

    Raises:
        ValueError: files are missing, or the vocabulary does not fit the tower's embedding.
    """

    def __init__(self, folder: str | Path, config: TextConfig) -> None:
        from transformers import CLIPTokenizer  # takes most of a second to import

        vocabulary = read_vocabulary(folder)
        self.config = config
        self.triggers: dict[str, list[int]] = {}  # words of embeddings and their ids, the longest word first
        self.bpe = CLIPTokenizer(vocab=vocabulary.ids, merges=vocabulary.merges)
        if len(self.bpe) != config.vocab_size:
            raise ValueError(
                f"the tokenizer in {folder} has {len(self.bpe)} tokens, the text encoder {config.vocab_size}"
            )
        if self.content("a") in ([], [config.eos_id]):
            raise ValueError(f"the tokenizer in {folder} does not know the letter 'a'")

    def content(self, text: str) -> list[int]:
        """The ids of a text without BOS, EOS and padding. Special tokens typed by hand stay plain text."""
        found = []
        for piece, word in segments(literal(text), self.triggers):
            found += self.plain(piece) if word is None else self.triggers[word]
        return found

    def plain(self, text: str) -> list[int]:
        """The ids of a text without trigger words."""
        return self.bpe(text, add_special_tokens=False)["input_ids"]

    def placed(self, text: str) -> Iterator[tuple[int, int, int, bool]]:
        """The same ids, each with the first and the last letter it stands for, and whether a word ends with it."""
        found = self.bpe(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = found["input_ids"]
        for id, piece, (start, end) in zip(
            ids, self.bpe.convert_ids_to_tokens(ids), found["offset_mapping"], strict=True
        ):
            yield id, start, end, piece.endswith("</w>")

    def check_trigger(self, word: str) -> None:
        """Refuse a trigger word that cannot be told from other words.

        Raises:
            ValueError: another embedding has it, or it is a word (or no word) of the model's own.
        """
        taken = word.lower() in (known.lower() for known in self.triggers)
        check(not taken, f"the trigger word {word!r} is taken by another embedding: choose another")
        special = any(token in word.lower() for token in SPECIAL)
        check(not special, f"the trigger word {word!r} holds a special token: choose another")
        own = len(self.plain(word)) < 2
        check(not own, f"the trigger word {word!r} is one of the model's own words: choose another")

    def add_trigger(self, word: str, ids: Sequence[int]) -> None:
        """Let a word stand for ids, which the tower's embedding must have. Upper and lower case are one.

        It counts where it stands as a whole word; what begins or ends with a sign, such as <cat>, counts anywhere.

        Raises:
            ValueError: as `check_trigger`.
        """
        self.check_trigger(word)
        triggers = {**self.triggers, word: list(ids)}
        self.triggers = dict(sorted(triggers.items(), key=lambda item: -len(item[0])))

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of ids; of an embedding's: its word, word_1, word_2 ..."""
        own = {id: f"{word}_{i}" if i else word for word, ids in self.triggers.items() for i, id in enumerate(ids)}
        return [f"{own[id]}</w>" if id in own else self.bpe.convert_ids_to_tokens(id) for id in ids]

    @property
    def room(self) -> int:
        """How many content tokens fit between BOS and EOS."""
        return self.config.max_length - 2

    def frame(self, content: Sequence[int]) -> list[int]:
        """BOS + content + EOS, padded to max_length; content beyond `room` is cut off."""
        c = self.config
        ids = [c.bos_id, *content[: self.room], c.eos_id]
        return ids + [c.pad_id] * (c.max_length - len(ids))

    def __call__(self, texts: Sequence[str]) -> "Tensor":
        """ids (b, max_length) int64."""
        import torch

        return torch.tensor([self.frame(self.content(text)) for text in texts])
