"""The shape of the house: imports go one way, importing does nothing else, names are told before torch is loaded."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "minisd"
# The core in reading order; a file imports only from the entries above its own (or from its own folder).
CORE = ["names", "config", "files", "settings", "picture", "runtime", "noise", "nn", "text", "diffusion", "infotext"]
CORE += ["image", "guards", "inpaint", "hires", "model", "pipeline"]
SATELLITES = ["weights", "world", "train", "eval", "explain", "dialects", "recipe", "sheet", "cli"]


def imported(path: Path) -> set[str]:
    """First-level minisd modules that a file imports, at the top or inside functions."""
    package = path.relative_to(ROOT.parent).with_suffix("").parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if module != "minisd" else [f"minisd.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("minisd.")}
    return found


@pytest.mark.parametrize("path", sorted((ROOT.parent / "scripts").glob("*.py")), ids=lambda p: p.name)
def test_what_a_script_imports_is_there(path: Path) -> None:
    """No test runs the long ones, and a moved name would break them unseen."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "minisd":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{node.module} has no {alias.name}"


def home(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    name = home(path)
    if name in ("__init__", "__main__"):
        return
    assert name in CORE + SATELLITES, f"{name} has no place in the reading order"
    for other in imported(path) - {name, "VERSION"}:
        if name in CORE:
            assert other in CORE, f"the core file {path.name} imports the satellite {other}"
            assert CORE.index(other) < CORE.index(name), f"{path.name} imports {other}, which comes after it"
        if name == "world":
            assert other in ("world", "config", "files"), "the world is drawn without networks"


def test_the_readme_lists_every_core_file_in_reading_order() -> None:
    """Folders' files stand under the folder, or with it."""
    lines = (ROOT.parent / "README.md").read_text(encoding="utf-8").partition("\n    minisd/\n")[2]
    listed, folder = [], ""
    for line in lines.partition("\n    and beside")[0].splitlines():
        name = line.split()[0]
        listed.append(folder + name if line.startswith("        ") else name)
        folder = name if name.endswith("/") else folder if line.startswith("        ") else ""
    files = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if home(path) in CORE]
    assert sorted(name for name in listed if name[-1] != "/") == sorted(
        str(path) for path in files if path.name != "__init__.py"
    )
    places = [CORE.index(name.partition("/")[0].removesuffix(".py")) for name in listed]
    assert places == sorted(places)


def run(code: str, **env: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_loads_no_torch_and_leaves_no_trace(tmp_path: Path) -> None:
    code = f"""
import os, sys
os.chdir({str(tmp_path)!r})
import minisd, minisd.config, minisd.settings
print("torch" in sys.modules, "transformers" in sys.modules, os.listdir("."))
"""
    assert run(code).split() == ["False", "False", "[]"]


def test_import_changes_no_torch_flag() -> None:
    code = """
import torch
flags = lambda: (torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(),
                 torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark, torch.initial_seed())
torch.manual_seed(7)
before = flags()
import minisd.pipeline, minisd.weights.folder, minisd.world.oracle
print(before == flags())
"""
    assert run(code).strip() == "True"


def test_names_told_without_torch_are_the_real_ones() -> None:
    from minisd.config import ACTIVATION_NAMES, NOISE_NAMES, PREDICTION_NAMES, SAMPLER_NAMES, SCHEDULE_NAMES
    from minisd.diffusion.denoise import PREDICTION
    from minisd.diffusion.samplers import SAMPLERS
    from minisd.diffusion.schedule import BETAS
    from minisd.diffusion.spacing import GRIDS, SPACINGS
    from minisd.nn.clip import ACTIVATIONS
    from minisd.settings import ETA_SAMPLERS, SDE_SAMPLERS

    assert tuple(SAMPLERS) == SAMPLER_NAMES
    assert {*SDE_SAMPLERS, *ETA_SAMPLERS} <= set(SAMPLER_NAMES)
    assert (*GRIDS, *SPACINGS) == SCHEDULE_NAMES
    assert set(PREDICTION) == set(PREDICTION_NAMES)
    assert set(BETAS) == set(NOISE_NAMES)
    assert set(ACTIVATIONS) == set(ACTIVATION_NAMES)
