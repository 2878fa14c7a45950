"""`minisd plot`: curves from logs. The picture's own library is stood in for; what it is told to draw is looked at."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from minisd.cli import main
from minisd.train.curves import curves, smooth, spark


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Two stages; the unet's fourth step was skipped, its accuracy begins late, and its last line is cut off."""
    folder = tmp_path / "run"
    folder.mkdir()
    rows = [{"step": i, "loss": 2.0**-i, "lr": 1e-3, "images": 4, "images_per_second": 50.0 + i} for i in range(100)]
    rows[3] = {"step": 3, "skipped": 1, "images": 4, "images_per_second": 50.0}
    for row in rows[90:]:
        row["accuracy"] = 0.5
    (folder / "unet.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 100, "lo')
    (folder / "clip.jsonl").write_text('{"step": 0, "loss": 3.0, "sketch": 0.5}\n')
    (folder / "notes.jsonl").write_text('{"file_name": "a.png"}\n')
    return folder


def test_curves_are_what_the_logs_hold(run: Path) -> None:
    found = curves(run)
    assert list(found) == ["clip", "unet"]
    assert list(found["clip"]) == ["loss", "sketch"]
    assert list(found["unet"]) == ["loss", "lr", "images_per_second", "accuracy"]
    steps, losses = found["unet"]["loss"]
    assert steps.tolist() == [i for i in range(100) if i != 3]
    assert losses.tolist() == [2.0**-i for i in range(100) if i != 3]
    assert found["unet"]["accuracy"][0].tolist() == list(range(90, 100))


def test_steps_that_were_all_skipped_are_no_curve(run: Path) -> None:
    (run / "vae.jsonl").write_text('{"step": 0, "skipped": 1, "images": 4}\n')
    assert list(curves(run)) == ["clip", "unet"]


def test_smoothing_is_a_mean_that_keeps_lines_straight_and_noise_small() -> None:
    line = np.arange(400.0)
    assert np.abs(smooth(line) - line)[5:-5].max() < 1e-9
    assert smooth(np.full(7, 3.0)).tolist() == [3.0] * 7
    noise = np.random.default_rng(0).normal(size=4000)
    assert smooth(noise).std() == pytest.approx(101**-0.5, rel=0.25)  # a window of 101 values
    assert smooth(np.array([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_a_sparkline_rises_and_falls_with_its_curve() -> None:
    assert spark(np.arange(8.0), "01234567") == "01234567"
    assert spark(np.repeat([3.0, 9.0], 300), "ab") == "a" * 30 + "b" * 30
    assert spark(np.full(5, 2.0), "ab") == "aaaaa"


def test_text_needs_no_library(run: Path, capsys) -> None:
    assert main(["plot", str(run), "--text"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines][:3] == [["clip", "loss"], ["clip", "sketch"], ["unet", "loss"]]
    loss = next(line for line in lines if line.startswith("unet loss"))
    assert "▁" in loss and loss.split()[2] == "0.75" and loss.endswith("99 steps")  # the mean of 1 and 1/2 ...
    assert not (run / "curves.png").exists()


class Panel:
    """One panel of the picture, as it was told to be."""

    def __init__(self) -> None:
        self.lines, self.title, self.scale, self.off, self.named = [], "", "linear", False, False

    def plot(self, steps, values, **how) -> None:
        self.lines.append((np.asarray(steps), np.asarray(values), how))

    def set_title(self, title: str) -> None:
        self.title = title

    def set_yscale(self, scale: str) -> None:
        self.scale = scale

    def set_axis_off(self) -> None:
        self.off = True

    def legend(self, **how) -> None:
        self.named = True

    def grid(self, **how) -> None:
        pass


@pytest.fixture
def pictures(monkeypatch: pytest.MonkeyPatch) -> list:
    """A stand-in for matplotlib.figure; what is drawn lands in the list."""
    drawn = []

    class Figure:
        def __init__(self, figsize, layout) -> None:
            drawn.append(self)

        def subplots(self, rows, columns, squeeze):
            self.panels = [[Panel() for _ in range(columns)] for _ in range(rows)]
            return self.panels

        def savefig(self, path, format, dpi) -> None:
            Path(path).write_bytes(b"picture")

    package = ModuleType("matplotlib")
    package.__spec__ = SimpleNamespace(name="matplotlib")
    monkeypatch.setitem(sys.modules, "matplotlib", package)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", SimpleNamespace(Figure=Figure))
    return drawn


def test_the_picture_has_a_panel_for_every_figure_of_every_stage(run: Path, pictures: list, capsys) -> None:
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out == f"{run}/curves.png\n"
    assert (run / "curves.png").read_bytes() == b"picture"
    clip, unet = pictures[0].panels
    assert [panel.title for panel in unet if not panel.off][:2] == ["unet: loss", "unet: lr"]
    assert [panel.off for panel in clip] == [False, True, True, True, False]
    pale, bold = unet[0].lines
    assert pale[1].tolist() == [2.0**-i for i in range(100) if i != 3] and pale[2]["alpha"] < 0.5
    assert bold[1].tolist() == smooth(pale[1]).tolist() and "alpha" not in bold[2]
    assert (unet[0].scale, unet[1].scale, unet[0].named) == ("log", "linear", False)


def test_two_runs_share_the_panels(run: Path, tmp_path: Path, pictures: list, capsys) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "vae.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    (other / "unet.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    assert main(["plot", str(run), str(other), "-o", str(tmp_path / "both.png")]) == 0
    _, vae, unet = pictures[0].panels
    assert [how["label"] for *_, how in unet[0].lines if "label" in how] == [str(run), str(other)]
    assert {how["color"] for *_, how in unet[0].lines} == {"C0", "C1"}
    assert [how["color"] for *_, how in vae[0].lines] == ["C1", "C1"]  # a run keeps its colour
    assert unet[0].named


def test_without_matplotlib_the_extra_is_named(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("minisd.cli.plot.find_spec", lambda name: None)
    assert main(["plot", str(run)]) == 2
    assert capsys.readouterr().err.strip().endswith("which is not here: pip install 'minisd[train]', or --text")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("plot", "RUN"),
        ("plot {home}/missing --text", "missing is no folder"),
        ("plot {home} --text", "holds no log of a training run"),
        ("plot {run} --text -o x.png", "leave out -o"),
        ("plot {run} -o {home}/curves.pdf", "must end in .png"),
        ("plot {run} -o {home}/missing/curves.png", "No such file"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(line: str, hint: str, run: Path, pictures: list, capsys) -> None:
    assert main(line.format(home=run.parent, run=run).split()) == 2
    err = capsys.readouterr().err
    assert hint in err and len(err.splitlines()) == 1
    assert not pictures
