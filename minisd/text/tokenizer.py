"""Text to token ids: a careful wrapper around transformers' CLIPTokenizer.

In: strings. Out: ids (b, l), l = max_length = BOS + content + EOS + padding.
transformers hands back a two-token tokenizer without a word when files are missing, so everything is checked here.
Sennrich et al. 2016 (BPE), https://arxiv.org/abs/1508.07909
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..config import TextConfig

FILES = ("vocab.json", "merges.txt")
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


class Tokenizer:
    """One tower's tokenizer, with the ids that its config names.

    Raises:
        ValueError: files are missing, or the vocabulary does not fit the tower's embedding.
    """

    def __init__(self, folder: str | Path, config: TextConfig) -> None:
        from transformers import CLIPTokenizer  # takes most of a second to import

        folder = Path(folder)
        missing = [name for name in FILES if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"the tokenizer folder {folder} lacks {', '.join(missing)}")
        self.config = config
        self.bpe = CLIPTokenizer(vocab=str(folder / FILES[0]), merges=str(folder / FILES[1]))
        if len(self.bpe) != config.vocab_size:
            raise ValueError(
                f"the tokenizer in {folder} has {len(self.bpe)} tokens, the text encoder {config.vocab_size}"
            )
        if self.content("a") in ([], [config.eos_id]):
            raise ValueError(f"the tokenizer in {folder} does not know the letter 'a'")

    def content(self, text: str) -> list[int]:
        """The ids of a text without BOS, EOS and padding. Special tokens typed by hand stay plain text."""
        text = text.encode("utf-8", "replace").decode("utf-8")  # lone surrogates become question marks
        for token in SPECIAL:
            text = text.replace(token, token.replace("|", " | "))
        return self.bpe(text, add_special_tokens=False)["input_ids"]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's own spelling of ids."""
        return self.bpe.convert_ids_to_tokens(list(ids))

    @property
    def room(self) -> int:
        """How many content tokens fit between BOS and EOS."""
        return self.config.max_length - 2

    def frame(self, content: Sequence[int]) -> list[int]:
        """BOS + content + EOS, padded to max_length; content beyond `room` is cut off."""
        c = self.config
        ids = [c.bos_id, *content[: self.room], c.eos_id]
        return ids + [c.pad_id] * (c.max_length - len(ids))

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """ids (b, max_length) int64."""
        return torch.tensor([self.frame(self.content(text)) for text in texts])
