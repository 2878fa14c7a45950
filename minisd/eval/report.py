"""What came out of an evaluation, in words and as plain data.

In: a `Report` of `minisd.eval.evaluate`. Out: tables as text; a dict fit for one line of JSON; a sheet of pictures.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..world.mark import WORDS
from .intervals import wilson
from .score import Score

if TYPE_CHECKING:
    from .evaluate import Report

PLACES = 4  # digits behind the point
TOLD = {
    "geneval": "GenEval's categories, read by the judge: exactly the objects told and nothing else, unsaid words free",
    "held_out": "pairs of thing and colour that no training picture showed, read by the judge",
    "shapes": "plain shapes on plain grounds, all told, read by the oracle's rules",
    "scenes": "anything the world has, all told, read by the judge",
}


def accuracy_text(report: "Report") -> str:
    """How far the judge can be trusted."""
    seen = report.accuracy
    n, right = seen["objects"], seen["right"]
    low, high = wilson(right["all"], n)
    words = ", ".join(f"{name} {percent(right[name] / n)}" for name in right if name != "all")
    when = "real pictures, drawn now" if report.measured else "real pictures when it was made (none drawn now)"
    told = f"the judge on {n} unseen objects of {when}: {percent(right['all'] / n)} % all right"
    return f"{told} [{percent(low)}, {percent(high)}] ({words}); {seen['extra']} objects seen that are not there"


def text(report: "Report") -> str:
    """All tables."""
    parts = []
    for part, scores in report.scores.items():
        parts.append(f"{TOLD[part]}\n{table(scores, report.ceilings[part])}")
        if part == "geneval":
            mean, (low, high) = report.overall
            parts[-1] += f"\n{'overall':<24}{percent(mean):>29}   [{percent(low)}, {percent(high)}]   mean of the six"
    parts += figures_text(report.figures)
    parts += [sweep_table(name, rows) for name, rows in report.sweeps.items()]
    return "\n\n".join(parts)


def table(scores: Mapping[str, Score], ceilings: Mapping[str, Score]) -> str:
    """A row a category, in percent."""
    head = " ".join(f"{word:>8}" for word in WORDS)
    real = "   of real pictures" if ceilings else ""
    lines = [f"{'':<24}{'prompts':>8} {'all right':>10}   {'95 %':<14}{head}{real}"]
    for name, score in scores.items():
        low, high = score.interval
        words = " ".join(f"{percent(score.right[word] / score.count):>8}" for word in WORDS)
        between = f"[{percent(low)}, {percent(high)}]"
        real = f"{percent(ceilings[name].share):>19}" if ceilings else ""
        lines.append(f"{name:<24}{score.count:>8} {percent(score.share):>10}   {between:<14}{words}{real}")
    return "\n".join(lines)


def figures_text(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What else was measured."""
    lines = []
    if clip := figures.get("clip_score"):
        low, high = clip["interval"]
        other = f"{clip['with_other_prompts']:.3f} with others' prompts"
        lines.append(f"CLIP score (our own CLIP, 0 to 2.5): {clip['score']:.3f} [{low:.3f}, {high:.3f}]; {other}")
    if distance := figures.get("frechet"):
        low, high = distance["interval"]
        many, real = f"{distance['count']} pictures from {distance['real']} real ones", distance["of_real_pictures"]
        lines.append(
            f"Fréchet distance on the judge's features, of {many}: {distance['distance']:.3f} [{low:.3f}, {high:.3f}]; "
            f"of as many real ones {real:.3f} (few pictures make it larger: compare equal numbers only)"
        )
    if near := figures.get("nearest"):
        lines.append(
            f"distance to the nearest of {near['training_pictures']} training pictures, median of {near['count']}"
        )
        for space in ("features", "pixels"):
            row = near[space]
            ends, real = row["interval"], row["interval_of_real"]
            low, high = row["interval_of_nearer"]
            lines[-1] += (
                f"\n  {space:<9} {row['median']:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]; unseen real pictures "
                f"{row['median_of_real']:.3f} [{real[0]:.3f}, {real[1]:.3f}]; nearer than 99 of 100 of these: "
                f"{percent(row['nearer_than_99_of_100_real'])} % [{percent(low)}, {percent(high)}]"
            )
    return lines


def sweep_table(name: str, rows: list[dict[str, Any]]) -> str:
    """A row a value."""
    columns = [key for key in rows[0] if key not in (name, "interval", "overall", "seconds", "clip_score")]
    clip = f"{'CLIP':>8}" if "clip_score" in rows[0] else ""
    lines = [f"{name:<14}{'overall':>8}   {'95 %':<14}{'s/picture':>10}{clip} " + " ".join(f"{c:>18}" for c in columns)]
    for row in rows:
        between = f"[{percent(row['interval'][0])}, {percent(row['interval'][1])}]"
        clip = f"{row['clip_score']:>8.3f}" if "clip_score" in row else ""
        shares = " ".join(f"{percent(row[c]):>18}" for c in columns)
        lines.append(
            f"{row[name]!s:<14}{percent(row['overall']):>8}   {between:<14}{row['seconds']:>10.2f}{clip} {shares}"
        )
    return "\n".join(lines)


def percent(share: float) -> str:
    """A share as a percentage."""
    return f"{100 * share:.1f}"


def as_data(report: "Report", told: Mapping[str, Any]) -> dict[str, Any]:
    """All figures: `overall` and every category by its name, a share each; then counts, right answers and intervals by
    the same names. `told` is what was done."""
    scores = {name: score for part in report.scores.values() for name, score in part.items()}
    data: dict[str, Any] = {"overall": None, **{name: score.share for name, score in scores.items()}}
    data |= {
        "counts": {name: score.count for name, score in scores.items()},
        "right": {name: score.right["all"] for name, score in scores.items()},
        "intervals": {name: score.interval for name, score in scores.items()},
        "words": {name: {w: score.right[w] / score.count for w in WORDS} for name, score in scores.items()},
        "ceilings": {name: score.share for part in report.ceilings.values() for name, score in part.items()},
    }
    if report.overall:
        data["overall"], data["intervals"]["overall"] = report.overall
        data["counts"]["overall"] = sum(score.count for score in report.scores["geneval"].values())
    seen = report.accuracy
    right = {name: count / seen["objects"] for name, count in seen["right"].items()}
    interval = wilson(seen["right"]["all"], seen["objects"])
    judge = {"objects": seen["objects"], "right": right, "interval": interval, "extra": seen["extra"]}
    return data | {
        "judge": judge | {"measured": report.measured},
        **report.figures,
        "sweeps": report.sweeps,
        "seconds_per_picture": report.seconds,
        **told,
    }


def as_line(data: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(rounded(data))


def rounded(value: Any) -> Any:
    """The same data with figures of a sensible length."""
    if isinstance(value, float):
        return round(value, PLACES)
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value
