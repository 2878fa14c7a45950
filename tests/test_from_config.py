"""Any sampler on any folder: the picture of diffusers' `Class.from_config(pipe.scheduler.config)`.

The folders' scheduler files are written out as they are published, with what they leave out, because a field that
is there holds for every class and one that is not leaves the class its own default.
"""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
from oracles import deviation
from test_folders import BETAS, Case, case, copy, edit, ours, theirs  # noqa: F401  (case is a fixture)

from minisd.config import SAMPLER_NAMES, Config, Defaults
from minisd.pipeline import Model
from minisd.settings import OWN_GRID, own_schedule, resolve
from minisd.weights.foreign import Fields, sampler_of
from minisd.weights.load import load
from minisd.weights.to_diffusers import scheduler_json

OWN = 1e-5
SCHEDULER = "scheduler/scheduler_config.json"
FILES = {
    "SD 1.x": {
        "_class_name": "PNDMScheduler",
        **{"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1},
    },
    "SDXL": {
        "_class_name": "EulerDiscreteScheduler",
        **{"clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1},
        **{"timestep_spacing": "leading", "use_karras_sigmas": False, "interpolation_type": "linear"},
    },
    "karras": {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "steps_offset": 1},
    "ddim to zero": {
        "_class_name": "DDIMScheduler",
        **{"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1},
    },
    "exponential": {"_class_name": "HeunDiscreteScheduler", "use_exponential_sigmas": True, "steps_offset": 1},
    "beta": {"_class_name": "EulerDiscreteScheduler", "use_beta_sigmas": True, "steps_offset": 1},
    "bare": {"_class_name": "EulerDiscreteScheduler"},
}
CLASSES = {
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),  # its default is a clipped latent, 0.5 off
    "ddpm": (diffusers.DDPMScheduler, {"clip_sample": False}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpmpp_2m": (diffusers.DPMSolverMultistepScheduler, {}),
    "plms": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),  # its default is another solver
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "dpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "dpmpp_sde": (diffusers.DPMSolverSDEScheduler, {}),
    "dpmpp_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}
SILENT = {"steps_offset": 1}  # mended by the pipeline of one tower, and forgotten by from_config
DRAWN = [  # folders, and what is named on them beside nothing
    ("sd1", "SD 1.x", ("ddim", "euler", "dpmpp_2m", "plms", "dpm2", "lms", "unipc", "deis")),
    ("sd1", "karras", ("ddim", "euler", "heun", "lms", "unipc", "deis")),
    ("sd1", "exponential", ("ddim", "euler")),
    ("sd1", "beta", ("heun",)),
    ("sd1", "bare", ("ddim", "plms")),
    ("sdxl", "SDXL", ("ddim", "euler", "dpmpp_2m", "plms")),
    ("sdxl", "ddim to zero", ("ddim", "plms")),
]


def told(one: Case, file: str) -> Model:
    """Put a scheduler's file into the folder and into diffusers' pipeline; hand back ours of it."""
    data = {"num_train_timesteps": 1000, **BETAS, **FILES[file]}
    (one.folder / SCHEDULER).write_text(json.dumps(data))
    kind = getattr(diffusers, data["_class_name"])
    scheduler = kind.from_pretrained(one.folder / "scheduler")
    none = {} if len(one.config.text) > 1 else {"requires_safety_checker": False}
    one.pipe = type(one.pipe)(**{**one.pipe.components, "scheduler": scheduler}, **none)
    one.pipe.set_progress_bar_config(disable=True)
    return load(one.folder, dtype="fp32")


@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")  # the mending of "bare"
@pytest.mark.parametrize("family, file, samplers", DRAWN)
def test_every_sampler_draws_what_from_config_draws(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    file: str,
    samplers: tuple[str, ...],
) -> None:
    one = case(family)
    model = told(one, file)
    assert deviation(ours(one, model), theirs(one)) < OWN  # nothing named: the folder's own
    silent = SILENT if file == "bare" else {}
    config = one.pipe.scheduler.config
    for sampler in samplers:
        kind, options = CLASSES[sampler]
        one.pipe.scheduler = kind.from_config(config, **options, **silent)
        assert deviation(ours(one, model, sampler=sampler), theirs(one)) < OWN, sampler
    if silent:
        one.pipe.scheduler = diffusers.DDIMScheduler.from_config(config, clip_sample=False)
        assert one.pipe.scheduler.config.steps_offset == 0
        assert deviation(ours(one, model, sampler="ddim"), theirs(one)) > 1e-3


def test_a_named_schedule_stands_before_the_folders(case: Callable[[str], Case]) -> None:  # noqa: F811
    model = told(case("sd1"), "karras")
    assert resolve(model.config).schedule == "karras"
    assert resolve(model.config, sampler="euler").schedule == "karras"
    assert resolve(model.config, sampler="euler_a").schedule == "linspace"
    assert resolve(model.config, sampler="ddim").schedule == "leading"
    assert resolve(model.config, sampler="ddim", schedule="trailing").schedule == "trailing"
    assert resolve(model.config, sampler=lambda denoise, x, plan, noise=None: None).schedule == "karras"


def test_no_class_is_forgotten() -> None:
    assert set(SAMPLER_NAMES) - set(CLASSES) == {"restart", "dpmpp_2s_a", "dpmpp_3m_sde"}  # diffusers has none


@pytest.mark.parametrize("sampler", CLASSES)
def test_a_samplers_own_schedule_is_its_classs(sampler: str) -> None:
    parameters = inspect.signature(CLASSES[sampler][0]).parameters
    silent = Defaults(schedule=None, sigma_schedule="karras")
    if sampler in OWN_GRID:  # the class has the parameter, and does not look at it
        assert {own_schedule(d, sampler) for d in (silent, Defaults(schedule="trailing"))} == {OWN_GRID[sampler]}
        return
    if "use_karras_sigmas" in parameters:
        assert own_schedule(silent, sampler) == "karras"
    else:
        assert own_schedule(silent, sampler) == parameters["timestep_spacing"].default
        assert own_schedule(Defaults(schedule="trailing", sigma_schedule="karras"), sampler) == "trailing"
    assert own_schedule(Defaults(schedule=None), sampler) == parameters["timestep_spacing"].default
    assert own_schedule(Defaults(schedule="trailing"), sampler) == "trailing"


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_the_scheduler_that_is_written_names_the_sampler(sampler: str) -> None:
    """And diffusers takes it. Where it has no class, dpmpp_2m's stands there."""
    written = scheduler_json(
        Config("any", defaults=Defaults(sampler=sampler, schedule=OWN_GRID.get(sampler, "leading")))
    )
    getattr(diffusers, written["_class_name"]).from_config(written).set_timesteps(4)
    assert sampler_of(Fields(written, "here"), []) == ("dpmpp_2m" if sampler in ("restart", "dpmpp_2s_a") else sampler)


TOLD = [
    ({"_class_name": "PNDMScheduler", "skip_prk_steps": False}, "the Runge-Kutta steps of PNDMScheduler"),
    ({"_class_name": "PNDMScheduler"}, "the Runge-Kutta steps of PNDMScheduler"),
    ({"final_sigmas_type": "sigma_min"}, 'final_sigmas_type "sigma_min" is not supported'),
    ({"thresholding": True}, "thresholding true is not supported"),
    ({"_class_name": "DPMSolverSinglestepScheduler"}, "draws with DPMSolverSinglestepScheduler, which minisd does not"),
    ({"_class_name": "UniPCMultistepScheduler", "solver_order": 3}, "UniPCMultistepScheduler of solver_order 3, which"),
    ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "of solver_type 'bh1', which minisd does not"),
    ({"_class_name": "DEISMultistepScheduler", "solver_order": 3}, "of solver_order 3, which minisd does not have"),
    ({"_class_name": "LCMScheduler", "original_inference_steps": 100}, "of original_inference_steps 100, which"),
    (
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_order": 3},
        "diffusers' formula of solver_order 3 with noise is not third order",
    ),
]


@pytest.mark.parametrize("fields, line", TOLD)
def test_what_is_not_followed_is_told(
    case: Callable[[str], Case],  # noqa: F811
    fields: dict,
    line: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    told(case("sd1"), "SD 1.x")
    folder = copy(case("sd1"), tmp_path)
    edit(folder / SCHEDULER, skip_prk_steps=None, _class_name="EulerDiscreteScheduler")
    load(folder)
    assert not caplog.text
    edit(folder / SCHEDULER, **fields)
    load(folder)
    assert line in caplog.text


def test_a_clipped_latent_is_told_for_two_towers(
    case: Callable[[str], Case],  # noqa: F811
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pipeline of one tower sets clip_sample to false; SDXL's follows the class, which clips unless told."""
    for family in ("sd1", "sdxl"):
        assert told(case(family), "ddim to zero").config.defaults.final_table_sigma is False
        folder = copy(case(family), tmp_path / family)
        edit(folder / SCHEDULER, clip_sample=None)
        load(folder)
        assert ("clip_sample true is not supported" in caplog.text) == (family == "sdxl")


@pytest.mark.parametrize("name", ["squaredcos_cap_v2", "sigmoid", "laplace", "", "Linear"])
def test_an_unknown_beta_schedule_is_refused(
    case: Callable[[str], Case],  # noqa: F811
    name: str,
    tmp_path: Path,
) -> None:
    """One line that names the file, the value and what there is."""
    told(case("sd1"), "SD 1.x")
    folder = copy(case("sd1"), tmp_path)
    edit(folder / SCHEDULER, beta_schedule=name)
    with pytest.raises(ValueError, match="unknown beta_schedule") as error:
        load(folder)
    line = str(error.value)
    assert str(folder / SCHEDULER) in line and repr(name) in line and "\n" not in line
    assert line.endswith("choose from linear, scaled_linear")
