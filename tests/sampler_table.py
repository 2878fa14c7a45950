"""The table sampler x schedule: the worst difference of each cell from its oracle.

`python tests/sampler_table.py > docs/samplers.md` writes the page; the tests hold every cell of it.
"""

import inspect

import diffusers
import torch
from gaussian import bare_plan, misses
from oracles import deviation
from sampler_runs import KINDS, on_levels, on_table, ours, run, single_steps, three_estimates
from test_schedule import CELLS, SCHEDULERS, TABLE, theirs
from torch import Tensor

from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES
from minisd.diffusion.samplers import SAMPLERS
from minisd.diffusion.schedule import make_plan
from minisd.infotext import SAMPLER_LABELS

STEPS = (10, 20, 7)  # 7 does not divide 1000
OWN_RUNS = (("eps", 10), ("v", 7), ("v", 20))  # prediction and steps, of a class over its own schedule
RUNS = (("eps", 5), ("v", 9))  # prediction and steps, of a cell over our levels
DEIS_RUNS = (("eps", 8), ("v", 17))  # which ends otherwise from 15 steps on
EXACT = ("restart",)  # held to the exact Gaussian
SOLVER, EXACTLY = 1e-5, 5e-3  # what a cell over our levels may come to

ONE_X_TWO_LEVELS = "it leaves x at the level of t - 1000 // n, and takes it up at the level of the next t"
TWO_TIMES = "its look midway falls on the next level, and it tells the network another time of it, not rounded"
CONTRADICTIONS = {  # (sampler, schedule, n): the reason why diffusers contradicts itself
    **{(sampler, "linspace", n): ONE_X_TWO_LEVELS for sampler in ("ddim", "plms") for n in STEPS},
    **{(sampler, "trailing", 7): ONE_X_TWO_LEVELS for sampler in ("ddim", "plms")},
    **{("dpm2_a", "karras", n): TWO_TIMES for n in STEPS},
}
PLMS_V = ("plms", "v")  # mixes v of several levels as if of one: see test_plms.py


def on_our_levels(sampler: str, schedule: str) -> float:
    """The solver alone: worst relative difference from diffusers' arithmetic over the levels of any schedule.

    Of the samplers of EXACT: how far mean and spread are from the exact ones at the last of 100 levels above 0.
    """
    if sampler in EXACT:
        return misses(sampler, bare_plan(make_plan(TABLE, 100, sampler, schedule).sigmas[:-1]))
    worst = 0.0
    for kind, n in DEIS_RUNS if sampler == "deis" else RUNS:
        kind = "eps" if (sampler, kind) == PLMS_V else kind
        plan = make_plan(TABLE, n, sampler, schedule)
        if sampler == "dpmpp_3m_sde":
            worst = max(worst, deviation(*three_estimates(plan, kind)))
            continue
        options = {"eta": 0.0} if sampler == "tcd" else {}  # above 0 it asks for levels that are not the plan's
        oracle = single_steps if sampler == "dpmpp_2s_a" else on_levels
        worst = max(worst, deviation(ours(sampler, plan, kind, **options), oracle(sampler, plan, kind, **options)))
    return worst


def own_runs(sampler: str, schedule: str) -> list[tuple[str, int]]:
    """The runs in which diffusers does not contradict itself."""
    runs = [("eps" if (sampler, kind) == PLMS_V else kind, n) for kind, n in OWN_RUNS]
    return [(kind, n) for kind, n in runs if (sampler, schedule, n) not in CONTRADICTIONS]


def on_its_own(sampler: str, schedule: str, exact: bool = False) -> float:
    """The whole class: worst relative difference from diffusers with its own times, levels and start; 0 where it
    contradicts itself in all runs.

    Args:
        exact: on our float64 table; its own is float32.
    """
    worst = 0.0
    for kind, n in own_runs(sampler, schedule):
        result = ours(sampler, make_plan(TABLE, n, sampler, schedule), kind)
        scheduler = theirs(sampler, schedule, n, prediction_type=KINDS[kind])
        worst = max(worst, deviation(result, run(on_table(scheduler, TABLE) if exact else scheduler)))
    return worst


def oracle_of(sampler: str) -> str:
    """What a row is held to, in words."""
    if sampler in EXACT:
        return "exact Gaussian"
    if sampler == "dpmpp_3m_sde":
        return "`UniPCMultistepScheduler`, `solver_order` 3, predictor"
    kind, fields = SCHEDULERS.get(sampler, (diffusers.DPMSolverSinglestepScheduler, {}))
    algorithm = fields.get("algorithm_type")
    return f"`{kind.__name__}`{f', `{algorithm}`' if algorithm else ''}"


def kinds() -> list[list[str]]:
    """Of each sampler: its label in a picture, its looks in 20 steps, its eta where it takes one, whether it draws."""
    lines = []
    for sampler in SAMPLER_NAMES:
        looks, drawn, plan = [], [], make_plan(TABLE, 20, sampler, "karras")

        def denoise(x: Tensor, sigma: Tensor, looks: list = looks) -> Tensor:
            looks.append(sigma)
            return 0 * x

        def noise(*levels: Tensor, drawn: list = drawn) -> Tensor:
            drawn.append(levels)
            return torch.zeros(1, 1, 1, 1)

        list(SAMPLERS[sampler](denoise, torch.ones(1, 1, 1, 1), plan, noise))
        eta = inspect.signature(SAMPLERS[sampler]).parameters.get("eta")
        first = inspect.getdoc(SAMPLERS[sampler]).split("https://")[1].split()[0].rstrip(".,;)")
        eta, draws = f"{eta.default:g}" if eta else "", "yes" if drawn else ""
        lines.append([f"`{sampler}`", SAMPLER_LABELS[sampler], str(len(looks)), draws, eta, f"<https://{first}>"])
    return lines


def rows(header: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *lines])


def page() -> str:
    """docs/samplers.md."""
    solver = [
        [f"`{sampler}`", *(f"{on_our_levels(sampler, name):.0e}" for name in SCHEDULE_NAMES), oracle_of(sampler)]
        for sampler in SAMPLER_NAMES
    ]
    native: dict[str, dict[str, str]] = {}
    for sampler, schedule in CELLS:
        held = len(own_runs(sampler, schedule))
        worst = f"{on_its_own(sampler, schedule):.0e}" if held else "no"
        native.setdefault(sampler, {})[schedule] = worst + (" *" if held < len(OWN_RUNS) else "")
    names = [name for name in SCHEDULE_NAMES if any(name in cells for cells in native.values())]
    whole = [[f"`{sampler}`", *(cells.get(name, "") for name in names)] for sampler, cells in native.items()]
    reasons: dict[str, set[str]] = {}
    for (sampler, schedule, n), reason in CONTRADICTIONS.items():
        reasons.setdefault(reason, set()).add(f"`{sampler}` {schedule}{'' if schedule != 'trailing' else f' n = {n}'}")
    told = "\n".join(f"- {', '.join(sorted(cells))}: {reason}." for reason, cells in reasons.items())
    return PAGE.format(
        kinds=rows(["sampler", "label", "looks in 20 steps", "draws noise", "eta", "source"], kinds()),
        solver=rows(["sampler", *SCHEDULE_NAMES, "oracle"], solver),
        native=rows(["sampler", *names], whole),
        contradictions=told,
        version=diffusers.__version__,
    )


PAGE = """# Samplers and schedules, measured

Written by `python tests/sampler_table.py`; `tests/test_samplers.py` holds every cell. Any sampler runs with any
schedule. A look is one call of the UNet (with its prompts in one batch); eta is the default, 0 draws no noise.

{kinds}

## The solver, over the levels of every schedule

Worst relative difference (largest difference / largest value of the final latent, float32) from diffusers {version}
over the same levels, told the same times, with the same noise, on a small network that is not linear; eps with 5 and v
with 9 steps (`deis` 8 and 17). `restart`: how far mean and standard deviation of the result are from the exact ones of
a Gaussian at the last of 100 levels above 0, in standard deviations; that is its discretisation error.
`dpmpp_3m_sde`: eta 0, no guard, from the third step on, as diffusers has no right third order with noise; with noise
it is held to the Gaussian. Orders of convergence, mean and spread of all: `tests/test_samplers_exact.py`. `dpmpp_2s_a`:
each step down by the class, the noise on the way up by DDIM's formula. `tcd`: eta 0 here, 0.3 below. `plms`: eps alone,
diffusers adds the v of several levels.

{solver}

## The whole class, over its own schedules

The same with diffusers' own times, levels and start; eps with 10, v with 7 and 20 steps. What is above 1e-5 is a time
that it works out from float32 logarithms; on our float64 table these cells too are below 1e-5 (`dpm2_a` on linspace
8e-5, see below).

{native}

\\* where diffusers contradicts itself:

{contradictions}
- `heun`, `dpm2`, `dpm2_a` and `plms` from zero-terminal SNR: their second look is left out at the level that stands for
  "no signal", where its weight would be a number of our choosing.
"""

if __name__ == "__main__":
    diffusers.utils.logging.set_verbosity_error()
    print(page(), end="")
