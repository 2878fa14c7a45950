"""Tiny random text encoders as transformers has them, their minisd twins, and tokenizers for both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import TINY, text_oracle, twin
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from minisd.config import Config
from minisd.nn.clip import CLIPText
from minisd.nn.conditioning import Conditioning
from minisd.text.encode import encode
from minisd.text.tokenizer import Tokenizer

TextCase = Callable[[str], "Encoders"]


@dataclass
class Encoders:
    """The text side of one family."""

    config: Config
    theirs: list[CLIPTextModel | CLIPTextModelWithProjection]
    towers: list[CLIPText]
    tokenizers: list[Tokenizer]

    @property
    def length(self) -> int:
        return self.config.text[0].max_length

    def content(self, text: str) -> list[int]:
        return self.tokenizers[0].content(text)

    def encode(
        self,
        prompts: Sequence[str],
        clip_skip: int | None = None,
        long_prompt: str = "chunk",
        emphasis: str = "a1111",
    ) -> Conditioning:
        skip = self.config.check_clip_skip(clip_skip)
        with torch.no_grad():
            return encode(self.towers, self.tokenizers, prompts, self.config, skip, long_prompt, (64, 64), emphasis)

    def hidden(self, i: int, contents: Sequence[Sequence[int]], clip_skip: int | None = None) -> np.ndarray:
        """What transformers' tower i says of rows (rows, l, e), in float64; final-normed where the family is."""
        config, theirs = self.config.text[i], self.theirs[i]
        rows = [[config.bos_id, *content, config.eos_id] for content in contents]
        ids = torch.tensor([row + [config.pad_id] * (config.max_length - len(row)) for row in rows])
        with torch.no_grad():
            z = theirs(ids, output_hidden_states=True).hidden_states[-self.config.check_clip_skip(clip_skip)]
            norm = getattr(theirs, "text_model", theirs).final_layer_norm
            return (norm(z) if config.final_norm else z).double().numpy()


@pytest.fixture(scope="session")
def text_case(tiny_model: Path) -> TextCase:
    """Make each family once, with the tiny model's tokenizer."""
    made: dict[str, Encoders] = {}
    words = tiny_model / "tokenizer"
    size = len(Tokenizer(words, Config.load(tiny_model / "config.json").text[0]).bpe)

    def make(family: str) -> Encoders:
        if family not in made:
            ids = {"vocab_size": size, "bos_id": size - 2, "eos_id": size - 1}
            text = [replace(t, **ids, pad_id=t.pad_id and size - 1) for t in TINY[family].text]
            config = replace(TINY[family], text=tuple(text))
            theirs = [text_oracle(tower, seed=i) for i, tower in enumerate(text)]
            towers = [twin(tower, model) for tower, model in zip(text, theirs, strict=True)]
            made[family] = Encoders(config, theirs, towers, [Tokenizer(words, tower) for tower in text])
        return made[family]

    return make
