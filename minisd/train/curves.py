"""The curves of training runs, drawn from their logs.

In: run folders. Out: one picture, a row for each stage and a column for each figure, the smoothed curve over the raw
one, one colour a run; or the same as text. No torch; matplotlib only for the picture.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..config import check
from ..files import atomic
from .log import read

FIRST = ("clip", "vae", "unet")  # the order of the stages; others follow by name
FIGURES = ("loss", "lr", "norm", "images_per_second", "accuracy", "psnr")  # and others by name
HIDDEN = ("step", "images", "skipped")
LOGARITHMIC = ("loss", "norm")
BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-~=+*#"
WIDTH = 60  # of a curve as text

Curves = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]  # stage -> figure -> steps (n,), values (n,)


def curves(run: Path) -> Curves:
    """The figures of every log in a run folder.

    Raises:
        ValueError: there is no log in it.
    """
    check(run.is_dir(), f"{run} is no folder")
    found = {path.stem: read(path) for path in sorted(run.glob("*.jsonl"))}
    stages = {stage: told for stage, rows in found.items() if (told := figures(rows))}
    check(bool(stages), f"{run} holds no log of a training run (a stage writes clip.jsonl, vae.jsonl or unet.jsonl)")
    return {stage: stages[stage] for stage in in_order(stages, FIRST)}


def figures(rows: Sequence[Mapping[str, float]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each figure that some row has: a step that was skipped has no loss."""
    names = in_order({name for row in rows for name in row if name not in HIDDEN}, FIGURES)
    having = {name: [row for row in rows if name in row] for name in names}
    return {n: tuple(np.array([row[k] for row in some]) for k in ("step", n)) for n, some in having.items()}


def in_order(names: Sequence[str], first: Sequence[str]) -> list[str]:
    """The names, those that have a place in it first."""
    return [name for name in first if name in names] + sorted(set(names) - set(first))


def smooth(values: np.ndarray) -> np.ndarray:
    """The mean over a window of a fortieth of all values around each; at the ends the window is cut off."""
    width = min(2 * (len(values) // 80) + 1, len(values))
    window = np.ones(width)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def draw(runs: Mapping[str, Curves], path: Path) -> None:
    """Write the picture.

    Raises:
        ModuleNotFoundError: matplotlib is not there.
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    stages = in_order({stage for run in runs.values() for stage in run}, FIRST)
    names = in_order({name for run in runs.values() for some in run.values() for name in some}, FIGURES)
    picture = Figure(figsize=(4 * len(names), 3 * len(stages)), layout="constrained")
    panels = picture.subplots(len(stages), len(names), squeeze=False)
    for stage, row in zip(stages, panels, strict=True):
        for name, panel in zip(names, row, strict=True):
            told = {run: some[stage][name] for run, some in runs.items() if name in some.get(stage, {})}
            if not told:
                panel.set_axis_off()
                continue
            for i, run in enumerate(runs):
                if run in told:
                    steps, values = told[run]
                    panel.plot(steps, values, color=f"C{i}", alpha=0.25, linewidth=0.8)
                    panel.plot(steps, smooth(values), color=f"C{i}", linewidth=1.5, label=run)
            panel.set_title(f"{stage}: {name.replace('_', ' ')}")
            panel.grid(alpha=0.3)
            if name in LOGARITHMIC and all((values > 0).all() for _, values in told.values()):
                panel.set_yscale("log")
            if len(runs) > 1:
                panel.legend(fontsize="small")
    with atomic(path) as temporary:
        picture.savefig(temporary, format="png", dpi=100)


def text(runs: Mapping[str, Curves], levels: str = BLOCKS) -> str:
    """Each smoothed curve as a line of blocks, with its first value and its last."""
    lines = []
    for stage in in_order({stage for run in runs.values() for stage in run}, FIRST):
        for run, some in runs.items():
            for name, (steps, values) in some.get(stage, {}).items():
                line = smooth(values)
                ends = f"{line[0]:10.4g} {spark(line, levels)} {line[-1]:<10.4g}"
                label = f"{stage} {name}" + (f" ({run})" if len(runs) > 1 else "")
                lines.append(f"{label:32} {ends} {len(steps)} steps")
    return "\n".join(lines)


def spark(values: np.ndarray, levels: str) -> str:
    """A curve as WIDTH characters at most, from the lowest level to the highest."""
    parts = np.array_split(values, min(WIDTH, len(values)))
    means = np.array([part.mean() for part in parts])
    scaled = (means - means.min()) / (np.ptp(means) or 1.0)
    return "".join(levels[i] for i in np.rint(scaled * (len(levels) - 1)).astype(int))
