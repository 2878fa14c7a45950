"""A small BPE vocabulary in CLIP's own layout.

In: captions. Out: vocab.json and merges.txt. The trainer's own dump would hold only the letters it saw, so the
vocabulary is laid out anew: 256 bytes, the same with </w>, the merges in order, BOS, and EOS with the highest id.
Sennrich et al. 2016, https://arxiv.org/abs/1508.07909
"""

import json
from collections.abc import Iterable
from pathlib import Path

from ..files import atomic
from ..text.tokenizer import SPECIAL

END = "</w>"


def train_tokenizer(folder: Path, captions: Iterable[str], merges: int) -> int:
    """Learn the merges from captions and write the two files; returns the size of the vocabulary.

    The merges learned may be fewer than `merges` when every word is whole before.
    """
    learned = learn(captions, merges)
    alphabet = byte_alphabet()
    tokens = [*alphabet, *(letter + END for letter in alphabet), *("".join(pair) for pair in learned), *SPECIAL]
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / "vocab.json") as path:
        vocab = {token: i for i, token in enumerate(tokens)}
        path.write_text(json.dumps(vocab, ensure_ascii=False, indent=0), encoding="utf-8")
    with atomic(folder / "merges.txt") as path:
        lines = ["#version: 0.2", *(" ".join(pair) for pair in learned)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(tokens)


def learn(captions: Iterable[str], merges: int) -> list[tuple[str, str]]:
    """The merges of BPE, in order, under CLIP's own normalizer and pre-tokenizer."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    alphabet = byte_alphabet()
    letters = [*alphabet, *(letter + END for letter in alphabet), *SPECIAL]
    clip = CLIPTokenizer(vocab={t: i for i, t in enumerate(letters)}, merges=[]).backend_tokenizer
    bpe = Tokenizer(models.BPE(unk_token=SPECIAL[1], end_of_word_suffix=END))
    bpe.normalizer, bpe.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=len(letters) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix=END,
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(captions, trainer)
    return [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]][:merges]


def byte_alphabet() -> list[str]:
    """The 256 letters that stand for bytes, in CLIP's order: printable ones first, then the shifted rest."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]
