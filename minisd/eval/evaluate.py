"""The whole evaluation: what is asked, drawn, read and measured, part by part.

In: a model, what is kept to score it by, and a `Plan`. Out: a `Report`.

    geneval   GenEval's six categories, read by the judge; their mean is the overall score
    held_out  pairs of thing and colour that no training picture showed, read by the judge
    shapes    plain shapes on plain grounds, all told, read by the oracle's rules
    scenes    anything that the world has, all told, read by the judge; on these pictures are measured the Fréchet
              distance and, where the world can be drawn, the distance to the nearest training picture
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from tqdm import tqdm

from ..pipeline import Model
from ..train.judge import unseen
from ..world.accuracy import accuracy
from ..world.recipe import WorldRecipe
from ..world.world import World
from .figures import clip_figures, frechet_figures, nearest_figures
from .kept import Kept
from .prompts import GENEVAL, HELD_OUT, Question, described, questions
from .score import Answers, Score, answered, by_oracle, drawn, overall, real

PARTS = ("geneval", "held_out", "shapes", "scenes")
SHAPES = WorldRecipe(emoji=0, patterns=("plain",), grounds=("plain",))  # what the oracle reads
TOLD_SHAPES = {  # category -> split of the world, kind of scene
    "one_shape": ("test", "single"),
    "two_shapes": ("test", "relation"),
    "held_out_shape": ("held_out", "single"),
    "held_out_shape_of_two": ("held_out", "relation"),
}


@dataclass(frozen=True)
class Plan:
    """What to do."""

    count: int = 300  # prompts in each category
    parts: tuple[str, ...] = PARTS
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)  # of `generate`
    sweeps: dict[str, tuple] = field(default_factory=dict)  # option -> its values
    looked_at: int = 1024  # real pictures that the judge is measured on
    learned: int = 8192  # training pictures that the nearest are looked for among
    progress: bool = False


@dataclass
class Report:
    """What came out; empty what was not asked for or could not be done."""

    accuracy: dict[str, Any]  # the judge's own, see `Accuracy`
    measured: bool  # just now, on real pictures; else when the judge was made
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)  # part -> category -> of the model's pictures
    ceilings: dict[str, dict[str, Score]] = field(default_factory=dict)  # ... of real pictures of the same scenes
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)  # clip_score, frechet, nearest
    sweeps: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    answers: dict[str, dict[str, Answers]] = field(default_factory=dict)
    seconds: float = 0.0  # to draw and to read a picture, on average

    @property
    def overall(self) -> tuple[float, tuple[float, float]] | None:
        """The mean of the six categories and its interval."""
        return overall(list(self.scores["geneval"].values())) if "geneval" in self.scores else None


class Evaluation:
    """One model under one plan."""

    def __init__(self, model: Model, kept: Kept, world: World | None, plan: Plan) -> None:
        """`world` draws real pictures; None: its font is not there."""
        self.model, self.kept, self.world, self.plan = model, kept, world, plan
        self.size = kept.judge.words.size

    def run(self, say: Callable[[Report], None]) -> Report:
        """Do all of it. `say` is told what is found out about the judge, before anything is drawn."""
        report, plan = Report(*self.judged()), self.plan
        say(report)
        asked = {part: self.asked(part) for part in plan.parts}
        total = sum(len(some) for part in asked.values() for some in part.values())
        sweeping = sum(len(values) for values in plan.sweeps.values())
        six = {name: questions(self.kept.words, name, plan.count, plan.seed) for name in GENEVAL} if sweeping else {}
        total += sweeping * sum(len(some) for some in six.values())
        with tqdm(total=total, desc="drawn", unit="picture", disable=not plan.progress) as bar:
            for part, categories in asked.items():
                answers, seconds = self.answers(categories, plan.options, bar)
                report.answers[part], report.seconds = answers, report.seconds + seconds
                report.scores[part] = {name: some.score for name, some in answers.items()}
                report.ceilings[part] = self.ceilings(part, categories)
            report.seconds /= max(bar.n, 1)
            report.figures = self.figures(report.answers)
            for name, values in plan.sweeps.items():
                report.sweeps[name] = [self.swept(six, name, value, bar) for value in values]
        return report

    def judged(self) -> tuple[dict[str, Any], bool]:
        """How well the judge sees, and whether that was measured now."""
        if self.world is None:
            return self.kept.accuracy, False
        scenes = unseen(self.world, self.plan.looked_at)
        lots = (scenes[i : i + 64] for i in range(0, len(scenes), 64))
        readings = [reading for lot in lots for reading in self.kept.judge.read(self.world.draw(lot))]
        return asdict(accuracy(readings, scenes)), True

    def asked(self, part: str) -> dict[str, list[Question]]:
        """The questions of a part, by category."""
        words, plan = self.kept.words, self.plan
        if part == "scenes":
            return {"scenes": described(words, plan.count, plan.seed)}
        if part == "shapes":
            shapes = World(SHAPES).vocabulary
            return {name: described(shapes, plan.count, plan.seed, *way) for name, way in TOLD_SHAPES.items()}
        names = GENEVAL if part == "geneval" else HELD_OUT
        return {name: questions(words, name, plan.count, plan.seed) for name in names}

    def answers(
        self, categories: dict[str, list[Question]], options: dict[str, Any], bar: tqdm
    ) -> tuple[dict[str, Answers], float]:
        """The model's answers by category, and the seconds that they took to draw and to read."""
        found, started = {}, perf_counter()
        for name, some in categories.items():
            lots = drawn(self.model, some, self.plan.seed, options, bar)
            found[name] = answered(some, lots, self.reader(name), self.size)
        return found, perf_counter() - started

    def reader(self, name: str) -> Callable:
        """The oracle reads what is told of plain shapes on plain grounds, the judge all else."""
        return by_oracle if name in TOLD_SHAPES else self.kept.judge.read

    def ceilings(self, part: str, categories: dict[str, list[Question]]) -> dict[str, Score]:
        """The scores that real pictures of the same scenes get: what the readers' own eyesight allows."""
        world = self.world if part != "shapes" else World(SHAPES, self.size)
        if world is None:
            return {}
        return {
            name: answered(some, real(world, some), self.reader(name), self.size).score
            for name, some in categories.items()
        }

    def figures(self, answers: dict[str, dict[str, Answers]]) -> dict[str, dict[str, Any]]:
        """What else is measured on the pictures."""
        found, kept = {}, self.kept
        if kept.clip and "geneval" in answers:
            found["clip_score"] = clip_figures(kept.clip, list(answers["geneval"].values()))
        if "scenes" in answers:
            scenes = answers["scenes"]["scenes"]
            if len(scenes.questions) > 2:  # with one left out there has to be a covariance
                found["frechet"] = frechet_figures(kept, scenes)
            if self.world is not None:
                found["nearest"] = nearest_figures(kept, self.world, scenes, self.plan.learned)
        return found

    def swept(self, six: dict[str, list[Question]], name: str, value: Any, bar: tqdm) -> dict[str, Any]:
        """One row of a sweep: the six categories with one option set otherwise."""
        answers, seconds = self.answers(six, self.plan.options | {name: value}, bar)
        scores = {category: some.score for category, some in answers.items()}
        mean, interval = overall(list(scores.values()))
        each = seconds / sum(score.count for score in scores.values())
        row = {name: value, "overall": mean, "interval": interval, "seconds": each}
        row |= {category: score.share for category, score in scores.items()}
        if self.kept.clip:
            row["clip_score"] = clip_figures(self.kept.clip, list(answers.values()))["score"]
        return row
