"""How much of what is told a model draws: its pictures of some prompts, read and marked.

In: a model, questions, a reader. Out: for each category how many pictures are right, word by word, with intervals; and
of the same pictures what else is measured on them: features, CLIP scores.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..image import to_pil
from ..pipeline import Model, generate
from ..world import oracle
from ..world.judge import squared
from ..world.mark import WORDS, mark
from ..world.oracle import Reading
from ..world.world import World
from .intervals import of_mean_share, wilson
from .prompts import Question

LOT = 32  # prompts drawn at a time
ORACLE = (64, 128)  # pixels: the smallest and the largest side that the oracle is given

Reader = Callable[[Tensor], list[Reading]]


@dataclass(frozen=True)
class Score:
    """Right answers to some questions, by word."""

    count: int
    right: dict[str, int]

    @property
    def share(self) -> float:
        """Of the pictures, those in which all is right."""
        return self.right["all"] / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % of `share`."""
        return wilson(self.right["all"], self.count)


@dataclass(frozen=True)
class Answers:
    """A model's pictures of some questions, as far as they are kept."""

    questions: list[Question]
    pictures: Tensor  # (n, 3, size, size) bytes, on the CPU
    verdicts: list[dict[str, bool]]

    @property
    def score(self) -> Score:
        """How many are right."""
        return Score(len(self.verdicts), {w: sum(v[w] for v in self.verdicts) for w in (*WORDS, "all")})


def answered(questions: Sequence[Question], lots: Iterable[Tensor], read: Reader, size: int) -> Answers:
    """Read and mark the pictures of some questions, which come lot by lot, (b, 3, H, W) in [-1, 1]; they are kept in
    one size."""
    readings, kept = [], []
    for pictures in lots:
        readings += read(pictures)
        kept.append(to_bytes(pictures, size))
    verdicts = [mark(reading, question.told) for reading, question in zip(readings, questions, strict=True)]
    return Answers(list(questions), torch.cat(kept), verdicts)


def drawn(
    model: Model, questions: Sequence[Question], seed: int, options: dict[str, Any], bar: tqdm
) -> Iterator[Tensor]:
    """The model's pictures, lot by lot; that of question i has the seed `seed` + i."""
    for i in range(0, len(questions), LOT):
        prompts = [question.prompt for question in questions[i : i + LOT]]
        yield generate(model, prompts, seed=seed + i, output="tensor", **options)
        bar.update(len(prompts))


def to_bytes(pictures: Tensor, size: int) -> Tensor:
    """Pictures (b, 3, H, W) in [-1, 1] as bytes of one size, on the CPU."""
    return ((squared(pictures, size).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def from_bytes(pictures: Tensor) -> Tensor:
    """The inverse of `to_bytes`."""
    return pictures.float() / 127.5 - 1


def real(world: World, questions: Sequence[Question]) -> Iterator[Tensor]:
    """The world's own pictures of the questions' scenes, lot by lot."""
    for i in range(0, len(questions), LOT):
        yield world.draw([question.scene for question in questions[i : i + LOT]])


def by_oracle(pictures: Tensor) -> list[Reading]:
    """The reader by rules: plain shapes on plain grounds. It takes squares; of large ones it would see no more."""
    low, high = ORACLE
    return [oracle.read(image) for image in to_pil(squared(pictures, min(max(pictures.shape[-1], low), high)))]


def overall(scores: Sequence[Score]) -> tuple[float, tuple[float, float]]:
    """The mean of the shares of some categories, and its interval."""
    parts = [(score.right["all"], score.count) for score in scores]
    return sum(score.share for score in scores) / len(scores), of_mean_share(parts)
