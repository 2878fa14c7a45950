"""The training loop on a toy stage: stopping, going on, full disks, figures that are not finite, one run a folder."""

import errno
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from minisd.train import checkpoint, loop
from minisd.train.lock import locked
from minisd.train.log import Log, read
from minisd.train.loop import PATIENCE, generator, run
from minisd.train.recipe import StageRecipe
from minisd.train.stop import Stopped, now, stopping
from minisd.weights import write

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
RECIPE = {"steps": 12, "batch": 4, "lr": 1e-2, "warmup": 2, "autocast": False, "save_every": 4, "grid_every": 6}


class Toy:
    """A stage that learns a random linear map; `spoil` may change the loss of a step."""

    name = "toy"

    def __init__(self, spoil: Any = lambda step, loss: loss, **recipe: Any) -> None:
        self.recipe, self.spoil = StageRecipe(**RECIPE | recipe), spoil
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(20, 24), nn.GELU(), nn.Linear(24, 3))
        self.target = torch.randn(20, 3)

    def groups(self) -> list[dict]:
        return [{"params": list(self.module.parameters()), "scale": 1.0}]

    def prepare(self, step: int, part: slice) -> tuple[int, Tensor]:
        return step, torch.randn(self.recipe.batch, 20, generator=generator(self.recipe.seed, step))[part]

    def loss(self, step: int, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.module(x) - x @ self.target).square().mean()
        return self.spoil(step, error), {"error": error.detach()}

    def grid(self) -> Image.Image:
        return Image.new("RGB", (4, 4))


def rows(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in read(folder / "toy.jsonl")]


def same(one: Path, other: Path) -> bool:
    return (
        rows(one) == rows(other) and (one / "toy.safetensors").read_bytes() == (other / "toy.safetensors").read_bytes()
    )


@pytest.fixture(scope="module", params=["adamw", "muon"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An unbroken run by each optimizer."""
    folder = tmp_path_factory.mktemp(request.param)
    run(Toy(optimizer=request.param), folder, CPU)
    return request.param, folder


def test_a_run_learns_and_logs_every_step_once(whole: tuple[str, Path]) -> None:
    said = rows(whole[1])
    assert [row["step"] for row in said] == list(range(12))
    assert said[-1]["loss"] < 0.9 * said[0]["loss"]
    assert set(said[0]) == {"step", "lr", "loss", "error", "norm", "images"}
    assert sorted(p.name for p in whole[1].glob("*.png")) == ["toy-000006.png", "toy-000012.png"]


@pytest.mark.parametrize("last", [0, 3, 4, 6, 10])
def test_a_run_that_dies_goes_on_as_if_it_had_not(whole: tuple[str, Path], tmp_path: Path, last: int) -> None:
    """Cut off in step `last`, again two steps after that, and a line of the log cut in half."""

    class Cut(Exception):
        pass

    def cut(at: int, step: int, loss: Tensor) -> Tensor:
        if step == at:
            raise Cut
        return loss

    for at in (last, min(last + 2, 11)):
        with pytest.raises(Cut):
            run(Toy(partial(cut, at), optimizer=whole[0]), tmp_path, CPU, resume=True)
        with open(tmp_path / "toy.jsonl", "a") as log:
            log.write('{"step": 11, "lo')
    run(Toy(optimizer=whole[0]), tmp_path, CPU, resume=True)
    assert same(whole[1], tmp_path)


def test_muon_moves_the_matrices_and_adamw_the_rest(whole: tuple[str, Path]) -> None:
    kinds = {
        key.split(".", 2)[1] + " " + key.split(".", 2)[2]
        for key in load_file(whole[1] / "toy.safetensors")
        if key.startswith("optim")
    }
    adam = {f"{kind} {name}" for kind in ("step", "exp_avg", "exp_avg_sq") for name in ("0.bias", "2.weight", "2.bias")}
    first = {"step 0.weight", "exp_avg 0.weight", "exp_avg_sq 0.weight"}
    assert kinds == adam | (first if whole[0] == "adamw" else {"momentum_buffer 0.weight"})  # 2.weight is too thin


def test_another_optimizer_begins_with_an_empty_memory(whole: tuple[str, Path], tmp_path: Path, caplog) -> None:
    run(Toy(optimizer=whole[0], steps=4), tmp_path, CPU)
    other = {"adamw": "muon", "muon": "adamw"}[whole[0]]
    with caplog.at_level("INFO", "minisd"):
        run(Toy(optimizer=other, steps=8), tmp_path, CPU, resume=True)
    assert f"steps 4 -> 8, optimizer {whole[0]} -> {other}" in caplog.text
    steps = {k: v.item() for k, v in load_file(tmp_path / "toy.safetensors").items() if k.startswith("optim.step.")}
    assert set(steps.values()) == {4}


def test_a_checkpoint_of_another_network_is_refused(whole: tuple[str, Path], tmp_path: Path) -> None:
    (tmp_path / "toy.safetensors").write_bytes((whole[1] / "toy.safetensors").read_bytes())
    stage = Toy()
    stage.module[2] = nn.Linear(24, 1)  # a copy would be spread over the three
    with pytest.raises(ValueError, match=r"2\.weight is \(3, 24\), not \(1, 24\)"):
        run(stage, tmp_path, CPU, resume=True)


@pytest.mark.parametrize("kept", [0, 8, 9, 4000, -1])
def test_a_damaged_checkpoint_is_named(whole: tuple[str, Path], tmp_path: Path, kept: int) -> None:
    """Empty, cut off at one place or another; it stays as it is."""
    path, data = tmp_path / "toy.safetensors", (whole[1] / "toy.safetensors").read_bytes()[:kept]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path} is damaged \(.*\): put a copy in its place, or remove it"):
        run(Toy(optimizer=whole[0]), tmp_path, CPU, resume=True)
    assert path.read_bytes() == data


def test_what_was_trained_is_not_left_behind(whole: tuple[str, Path], tmp_path: Path) -> None:
    """A checkpoint holds what is trained; a part that no longer is would fall back to what it was at the start."""
    (tmp_path / "toy.safetensors").write_bytes((whole[1] / "toy.safetensors").read_bytes())
    stage = Toy(optimizer=whole[0])
    stage.module[0].requires_grad_(False)
    stage.groups = lambda: [{"params": list(stage.module[2].parameters()), "scale": 1.0}]
    with pytest.raises(ValueError, match=r"2 tensors were trained before \(0\.bias, \.\.\.\) that are now to stay"):
        run(stage, tmp_path, CPU, resume=True)


def test_the_time_is_over(whole: tuple[str, Path], tmp_path: Path) -> None:
    """Each slice does at least one step and ends with a checkpoint; together they are the unbroken run."""
    slices = 0
    while slices < 20:
        slices += 1
        try:
            run(Toy(optimizer=whole[0]), tmp_path, CPU, resume=True, until=now() - 1)
        except Stopped as stopped:
            assert str(stopped) == f"toy: stopped at step {slices} of 12; --resume goes on from there"
            assert stopped.signal == 0
            assert checkpoint.steps_done(tmp_path / "toy.safetensors") == slices
        else:
            break
    assert slices == 13
    assert same(whole[1], tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_run_behind_its_step(tmp_path: Path, number: int, capfd) -> None:
    def kill(step: int, loss: Tensor) -> Tensor:
        if step == 5:
            os.kill(os.getpid(), number)
        return loss

    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        run(Toy(kill), tmp_path, CPU)
    assert stopped.value.signal == number
    assert "stopping after this step" in capfd.readouterr().err
    assert checkpoint.steps_done(tmp_path / "toy.safetensors") == len(rows(tmp_path)) in (6, 7)
    assert signal.getsignal(number) is before


def test_a_signal_in_the_last_save_is_answered(tmp_path: Path) -> None:
    """After it there is no step to stop behind, but another stage may follow."""
    stage = Toy(grid_every=12)
    stage.grid = lambda: os.kill(os.getpid(), signal.SIGTERM) or Image.new("RGB", (4, 4))
    with pytest.raises(Stopped, match="toy: stopped at its end") as stopped:
        run(stage, tmp_path, CPU)
    assert stopped.value.signal == signal.SIGTERM
    assert checkpoint.steps_done(tmp_path / "toy.safetensors") == 12


def test_a_second_signal_ends_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), stopping() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(SystemExit, match="143"), stopping():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)


def test_steps_that_are_not_finite_change_nothing_and_are_counted(tmp_path: Path) -> None:
    """A loss of nan, one of inf, and a finite one whose gradient is not; a run in slices counts on."""

    def spoil(step: int, loss: Tensor) -> Tensor:
        bad = {3: loss * float("nan"), 4: loss * float("inf"), 8: loss + (loss - loss.detach()).abs().sqrt()}
        return bad.get(step, loss)

    weights = {}

    def watched(step: int, loss: Tensor) -> Tensor:
        weights[step] = stage.module[0].weight.detach().clone()
        return spoil(step, loss)

    stage = Toy(watched)
    run(stage, tmp_path / "whole", CPU)
    skipped = {row["step"]: row["skipped"] for row in rows(tmp_path / "whole") if "skipped" in row}
    assert skipped == {3: 1, 4: 2, 8: 3}
    assert "loss" not in rows(tmp_path / "whole")[8]
    still = {step for step in range(11) if torch.equal(weights[step], weights[step + 1])}
    assert still == {3, 4, 8}
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "whole/toy.safetensors").values())
    for _ in range(3):
        with pytest.raises(Stopped):
            run(Toy(spoil), tmp_path / "cut", CPU, resume=True, until=now() - 1)
    run(Toy(spoil), tmp_path / "cut", CPU, resume=True)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_loss_that_stays_bad_stops_the_run(tmp_path: Path) -> None:
    stage = Toy(lambda step, loss: loss * float("nan") if step >= 5 else loss, steps=40)
    with pytest.raises(FloatingPointError, match=rf"toy: .* not finite {PATIENCE} times in a row, up to step 15: try"):
        run(stage, tmp_path, CPU)
    assert all(torch.isfinite(t).all() for t in load_file(tmp_path / "toy.safetensors").values())


def full_at(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """No room for the tensor of that number."""
    real, written = write.numbers, []

    def numbers(*args: Any) -> Any:
        written.append(args)
        if len(written) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(write, "numbers", numbers)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch) -> None:
    run(Toy(steps=4, decay=0.0), tmp_path, CPU)
    before = (tmp_path / "toy.safetensors").read_bytes()
    full_at(monkeypatch, 5)
    said = r"the checkpoint of step 8 cannot be written \(No space left on device\); .*toy.safetensors holds step 4 as"
    with pytest.raises(OSError, match=said):
        run(Toy(decay=0.0), tmp_path, CPU, resume=True)
    assert (tmp_path / "toy.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".png") == ["toy.jsonl", "toy.safetensors"]
    monkeypatch.undo()
    run(Toy(decay=0.0), tmp_path, CPU, resume=True)
    run(Toy(decay=0.0), tmp_path / "whole", CPU)
    assert rows(tmp_path) == rows(tmp_path / "whole")


def test_a_log_takes_back_the_steps_that_are_done_again(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Log(path, 0)
    for step in range(5):
        log.write({"step": step, "loss": 1 / 3})
    log.close()
    with open(path, "ab") as file:
        file.write(b'{"step": 5, "loss"')
    assert [row["step"] for row in read(path)] == list(range(5))
    log = Log(path, 3)
    log.write({"step": 3, "loss": 2e-9 / 3})
    log.close()
    assert path.read_text().splitlines()[2:] == ['{"step": 2, "loss": 0.3333333}', '{"step": 3, "loss": 6.666667e-10}']


def test_the_next_batch_is_prepared_before_the_device_is_waited_for(tmp_path: Path, monkeypatch) -> None:
    events = []

    def watch(owner: Any, name: str, told: Any) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (events.append(f"{name} {told(*args)}"), real(*args))[1])

    stage = Toy(steps=2)
    watch(stage, "prepare", lambda step, part: step)
    watch(loop, "attempt", lambda stage, prepared, *rest: prepared[0])
    watch(loop, "advance", lambda state, *rest: state.step)
    run(stage, tmp_path, CPU)
    assert events == ["prepare 0", "attempt 0", "prepare 1", "advance 0", "attempt 1", "advance 1"]


def test_a_folder_has_one_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    code = f"""if True:
        from pathlib import Path
        from minisd.train.lock import locked
        with locked(Path({str(tmp_path)!r})):
            print("held", flush=True)
            input()
    """
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1)
    assert holder.stdout.readline() == b"held\n"
    (tmp_path / ".unet.safetensors.123.tmp").write_text("half")
    (tmp_path / ".notes.tmp").write_text("someone's own")
    with pytest.raises(ValueError, match=rf"in use: process {holder.pid} trains in it"), locked(tmp_path):
        pass
    assert (tmp_path / ".unet.safetensors.123.tmp").exists()
    holder.kill()
    holder.communicate()
    for _ in range(2):
        with locked(tmp_path):
            assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", ".notes.tmp"]


def test_compiled_steps_are_the_same_steps(tmp_path: Path, monkeypatch) -> None:
    """Names and values of the checkpoint are those of the run that was not compiled; each layer was."""
    compiled, real = [], nn.Module.compile

    def compile_by_graph(module: nn.Module) -> None:
        compiled.append(module)
        real(module, backend="aot_eager")  # the graphs as they are, without a compiler's own rounding

    monkeypatch.setattr(nn.Module, "compile", compile_by_graph)
    stage = Toy(steps=4, compile=True)
    run(stage, tmp_path / "compiled", CPU)
    run(Toy(steps=4), tmp_path / "plain", CPU)
    assert compiled == list(stage.module)
    one, two = (load_file(tmp_path / name / "toy.safetensors") for name in ("compiled", "plain"))
    assert one.keys() == two.keys()
    assert all(torch.allclose(one[k], two[k], rtol=1e-6, atol=1e-7) for k in one)
