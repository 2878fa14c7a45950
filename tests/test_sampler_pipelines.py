"""Every sampler once on small SD 1.x, SD 2.x (v) and SDXL models: whole pipelines, diffusers' is the oracle.

Folders, prompts and networks are those of test_folders.py. Stochastic samplers get the same noise on both sides.
"""

from collections.abc import Callable

import pytest
import torch
from diffusers.schedulers import scheduling_dpmsolver_sde
from oracles import deviation
from sampler_runs import KINDS
from test_folders import BETAS, PROMPTS, TOL, Case, case, latents  # noqa: F401  (case is a fixture)
from test_from_config import CLASSES
from torch import Tensor

import minisd.pipeline
from minisd.pipeline import Model, generate
from minisd.settings import OWN_GRID
from minisd.weights.load import load

STEPS, SEED = 4, 11
SIZE = {"height": 16, "width": 16}


class Plain:
    """In place of `ImageNoise` and of diffusers' Brownian tree: one draw after another from a generator."""

    def __init__(self, *_: object, **__: object) -> None:
        self.device, self.generator = torch.device("cpu"), torch.Generator().manual_seed(SEED)

    def __call__(self, *levels: Tensor) -> Tensor:
        return torch.randn(1, 4, 8, 8, generator=self.generator)

    def draw(self) -> Tensor:
        """The first noise, which `latents` takes the place of."""
        return torch.zeros(1, 4, 8, 8)


@pytest.fixture(scope="module")
def models(case: Callable[[str], Case]) -> Callable[[str], tuple[Case, Model]]:  # noqa: F811
    """Load each family once; sampler and schedule are named in the calls."""
    loaded: dict[str, Model] = {}

    def make(family: str) -> tuple[Case, Model]:
        one = case(family)
        if family not in loaded:
            one.schedule("ddim")
            loaded[family] = load(one.folder, dtype="fp32")
        return one, loaded[family]

    return make


@pytest.mark.parametrize("sampler", [s for s in CLASSES if s != "plms"])  # plms: test_folders.py
@pytest.mark.parametrize("family", ["sd1", "sd2-v", "sdxl"])
def test_every_sampler_draws_what_diffusers_draws(
    models: Callable[[str], tuple[Case, Model]], family: str, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, model = models(family)
    monkeypatch.setattr(minisd.pipeline, "ImageNoise", Plain)
    monkeypatch.setattr(minisd.pipeline, "Brownian", lambda noise: noise)
    monkeypatch.setattr(scheduling_dpmsolver_sde, "BrownianTreeNoiseSampler", Plain)
    kind, fields = CLASSES[sampler]
    fields = {**BETAS, **fields, "timestep_spacing": "leading", "steps_offset": 1}
    fields |= {"set_alpha_to_one": False} if sampler == "ddim" else {}
    one.pipe.scheduler = kind(**fields, prediction_type=KINDS[one.config.noise.prediction])
    more = {"num_inference_steps": STEPS, "guidance_scale": 4.0, "output_type": "latent", "latents": latents(one)}
    eta = {"eta": 0.3} if sampler == "tcd" else {}  # which diffusers' pipeline sets to 0
    wanted = one.pipe(**PROMPTS, **SIZE, **more, **eta, generator=torch.Generator().manual_seed(SEED)).images
    own = {"steps": STEPS, "cfg_scale": 4.0, "sampler": sampler, "schedule": OWN_GRID.get(sampler, "leading")}
    found = generate(model, **PROMPTS, **SIZE, **own, latents=latents(one), output="latent", emphasis="off")
    assert deviation(found, wanted) < TOL
