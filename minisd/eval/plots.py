"""Sweeps as pictures: the overall score over one setting, with its interval, and the six categories.

In: the rows of a sweep. Out: a PNG. It needs matplotlib (the extra `eval`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import atomic
from .prompts import GENEVAL


def plot_sweep(name: str, rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw one sweep; numbers lie on an axis, names side by side.

    Raises:
        ModuleNotFoundError: matplotlib is not there.
        OSError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    values = [row[name] for row in rows]
    numbers = all(isinstance(value, int | float) for value in values)
    places = values if numbers else list(range(len(values)))
    style = "-" if numbers else ""
    overall = [row["overall"] for row in rows]
    around = [[abs(row["interval"][k] - row["overall"]) for row in rows] for k in (0, 1)]

    picture = Figure(figsize=(7, 4.2), layout="constrained")
    panel = picture.subplots()
    for category in GENEVAL:
        label = category.replace("_", " ")
        panel.plot(places, [row[category] for row in rows], f"o{style}", alpha=0.45, markersize=3, label=label)
    panel.errorbar(places, overall, around, fmt=f"ko{style}", capsize=3, linewidth=2, label="overall, 95 %")
    panel.set_xticks(places, [str(value) for value in values], rotation=0 if numbers else 30)
    panel.set_ylim(0, 1)
    panel.set_xlabel(name.replace("_", " "))
    panel.set_ylabel("pictures that are right")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    with atomic(path) as temporary:
        picture.savefig(temporary, format="png", dpi=120)
