"""Configs that other libraries wrote: JSON fields taken one by one, and diffusers' schedulers in our words.

In: a folder's JSON files. Out: `NoiseConfig` and `Defaults`, so that a call that names nothing draws as the folder
does. What is unknown is told and ignored (`untaken`), what would change the picture and cannot be followed is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import SAMPLER_NAMES, Defaults, NoiseConfig, build, check, one_of, shown

MAX_BYTES = 1_000_000
REQUIRED = object()


class Fields:
    """A foreign config: its fields are taken one by one, so that it is known what nobody took."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self.data, self.where, self.taken = data, where, set(HARMLESS)

    @staticmethod
    def of(folder: Path, name: str, optional: bool = False) -> "Fields":
        """Read a JSON file of a folder.

        Raises:
            ValueError: it is missing (unless `optional`), too large, or no JSON object.
        """
        path = folder / name
        if optional and not path.is_file():
            return Fields({}, str(path))
        check(path.is_file(), f"{folder} lacks {name}")
        check(path.stat().st_size <= MAX_BYTES, f"{path} has more than {MAX_BYTES} bytes")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        check(isinstance(data, dict), f"{path} must hold an object, not {type(data).__name__}")
        return Fields(data, str(path))

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = REQUIRED) -> Any:
        """The value of a field, of one of these types; its default where it is not there.

        Raises:
            ValueError: it is of another type, or not there and has no default.
        """
        self.taken.add(name)
        check(name in self.data or default is not REQUIRED, f"{self.where} lacks {name}")
        value = self.data.get(name, default)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        ok = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
        check(ok, f"{self.where}: {name} {shown(value)} must be {' or '.join(k.__name__ for k in kinds)}")
        return value

    def only(self, rules: Mapping[str, tuple]) -> None:
        """Refuse a field that has another value than these; not to be there is fine.

        Raises:
            ValueError: naming the field and what it should be.
        """
        for name, allowed in rules.items():
            self.taken.add(name)
            value = self.data.get(name, allowed[0])
            wanted = " or ".join(json.dumps(a) for a in allowed)
            check(
                value in allowed,
                f"{self.where}: {name} {shown(value)} is not supported{WHY.get(name, '')}, only {wanted}",
            )

    def untaken(self) -> list[str]:
        """A line on the fields that nobody took."""
        names = sorted(name for name in self.data if name not in self.taken and not name.startswith("_"))
        return [f"{self.where} has fields that minisd does not know: {', '.join(names)[:200]}"] if names else []


def noise_config(f: Fields, prediction: str | None = None) -> NoiseConfig:
    """scheduler_config.json -> the noise table and what the UNet predicts.

    Raises:
        ValueError: a table or a prediction that minisd does not have.
    """
    kind = f.take("_class_name", str, "")
    continuous = kind.startswith(("EDM", "FlowMatch", "Cosine"))
    check(not continuous, f"{f.where}: the noise levels of {kind} are not supported")
    f.only({"trained_betas": (None,), "use_flow_sigmas": (False, None)})
    one_of(f"beta_schedule in {f.where}", f.take("beta_schedule", str, "linear"), NOISE_OF)
    low, high = (0.00085, 0.012) if kind in NARROW else (0.0001, 0.02)
    said = f.take("prediction_type", str, "epsilon")
    one_of(f"prediction_type in {f.where}", said, PREDICTION_OF)
    data = {
        "schedule": NOISE_OF[f.data.get("beta_schedule", "linear")],
        "beta_start": f.take("beta_start", (int, float), low),
        "beta_end": f.take("beta_end", (int, float), high),
        "steps": f.take("num_train_timesteps", int, 1000),
        "zero_snr": f.take("rescale_betas_zero_snr", (bool, type(None)), False) or False,
        "prediction": prediction or PREDICTION_OF[said],
    }
    return build(NoiseConfig, data, f.where)


def default_settings(f: Fields, index: Fields, size: int | list, factor: int, pair: bool, notes: list[str]) -> Defaults:
    """scheduler_config.json and model_index.json -> how the folder draws where nothing else is said.

    A call that names another sampler than the folder gets what `Class.from_config(pipe.scheduler.config)` gives in
    diffusers: what the file says holds for it too, what the file leaves out is that sampler's own default (see
    `minisd.settings.own_schedule`). So None stands here for a field that is not there. One exception: diffusers
    mends a missing steps_offset to 1 (one tower) but forgets so in from_config; here 1 holds for every sampler.

    Args:
        size: the UNet's sample_size, in latents, one number or (height, width).
        pair: two text encoders (SDXL), whose pipeline has other defaults and does not correct steps_offset.
        notes: what cannot be followed is added here.
    """
    sides = size if isinstance(size, list) else [size, size]
    check(
        len(sides) == 2 and all(type(s) is int for s in sides),
        f"sample_size {shown(size)} must be one or two whole numbers",
    )
    offset = f.take("steps_offset", int, 0)
    to_zero = f.take("set_alpha_to_one", (bool, type(None)), None)
    unfollowed(f, pair, notes)
    data = {
        "height": sides[0] * factor,
        "width": sides[1] * factor,
        "cfg_scale": 5.0 if pair and "Inpaint" not in index.take("_class_name", str, "") else 7.5,
        "sampler": sampler_of(f, notes),
        "schedule": spacing_of(f),
        "sigma_schedule": sigma_schedule_of(f),
        "steps_offset": offset if pair else 1,  # diffusers' pipeline of one tower sets it so, whatever is there
        "final_table_sigma": None if to_zero is None else not to_zero,
        "zero_negative": pair and index.take("force_zeros_for_empty_prompt", bool, True),
    }
    return build(Defaults, data, f.where)


def sampler_of(f: Fields, notes: list[str]) -> str:
    """Our name of the folder's solver."""
    kind = f.take("_class_name", str, "")
    order = f.take("solver_order", int, 2)
    algorithm = f.take("algorithm_type", str, "dpmsolver++")
    name = SAMPLERS_OF.get(kind, "")
    if name == "plms" and not f.take("skip_prk_steps", bool, False):
        notes.append(f"{f.where}: the Runge-Kutta steps of PNDMScheduler are not supported: plms goes without them")
    if kind == "DPMSolverMultistepScheduler":
        name = MULTISTEP_OF.get((algorithm, order), "")
    rules = SOLVERS_KEPT.get(name, {}).items()
    odd = [f"{field} {shown(f.data[field])}" for field, kept in rules if f.data.get(field, kept[0]) not in kept]
    if name not in SAMPLER_NAMES or odd:
        solver = f"{kind or 'no scheduler'}{' of ' if odd else ''}{', '.join(odd)}"
        notes.append(f"the folder draws with {solver}, which minisd does not have: it takes dpmpp_2m")
        return "dpmpp_2m"
    if name == "dpmpp_3m_sde":
        notes.append(f"{f.where}: diffusers' formula of solver_order 3 with noise is not third order: dpmpp_3m_sde is")
    return name


def spacing_of(f: Fields) -> str | None:
    """Our name of the folder's spacing; None: it leaves that to the sampler."""
    spacing = f.take("timestep_spacing", (str, type(None)), None)
    if spacing is not None:
        one_of(f"timestep_spacing in {f.where}", spacing, GRIDS_OF)
    return spacing


def sigma_schedule_of(f: Fields) -> str | None:
    """Our name of the folder's levels, for the samplers that can be told them; None: they follow the spacing."""
    for field, name in SPACINGS_OF.items():
        if f.take(field, (bool, type(None)), False):
            return name
    return None


def unfollowed(f: Fields, pair: bool, notes: list[str]) -> None:
    """Tell what changes the picture in diffusers and is not followed; the rest of HARMLESS does not."""
    said = [(name, value) for name, value in UNFOLLOWED.items() if f.data.get(name) == value]
    said += [(name, f.data[name]) for name in ("sigma_min", "sigma_max") if f.data.get(name) is not None]
    # The pipeline of one tower sets it to false; else these classes clip where the file does not say.
    if pair and f.data.get("_class_name") in CLIPPING and f.data.get("clip_sample", True):
        said.append(("clip_sample", True))
    notes += [f"{f.where}: {name} {json.dumps(value)} is not supported and left out" for name, value in said]


NOISE_OF = {"linear": "linear", "scaled_linear": "scaled_linear"}
PREDICTION_OF = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
NARROW = ("HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "LCMScheduler")
CLIPPING = ("DDIMScheduler", "DDPMScheduler")
UNFOLLOWED = {
    "final_sigmas_type": "sigma_min",
    "interpolation_type": "log_linear",
    "solver_type": "heun",
    "thresholding": True,
    "timestep_type": "continuous",
    "use_lu_lambdas": True,
    "variance_type": "fixed_large",
}
GRIDS_OF = ("linspace", "leading", "trailing")  # timestep_spacing, by the same names
SPACINGS_OF = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
SAMPLERS_OF = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "DPMSolverSDEScheduler": "dpmpp_sde",
    "DEISMultistepScheduler": "deis",
    "EulerAncestralDiscreteScheduler": "euler_a",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "KDPM2AncestralDiscreteScheduler": "dpm2_a",
    "KDPM2DiscreteScheduler": "dpm2",
    "LCMScheduler": "lcm",
    "LMSDiscreteScheduler": "lms",
    "PNDMScheduler": "plms",
    "TCDScheduler": "tcd",
    "UniPCMultistepScheduler": "unipc",
}
MULTISTEP_OF = {  # algorithm_type and solver_order of DPMSolverMultistepScheduler
    ("dpmsolver++", 2): "dpmpp_2m",
    ("sde-dpmsolver++", 2): "dpmpp_2m_sde",
    ("sde-dpmsolver++", 3): "dpmpp_3m_sde",
}
SOLVERS_KEPT = {  # fields that make another solver of a class: the values that keep ours, its default first
    "deis": {"solver_order": (2,)},
    "lcm": {"original_inference_steps": (50,), "timestep_scaling": (10.0,)},
    "tcd": {"original_inference_steps": (50,)},
    "unipc": {
        **{"solver_order": (2,), "solver_type": ("bh2", "midpoint", "heun", "logrho"), "predict_x0": (True,)},
        **{"disable_corrector": ([],), "solver_p": (None,)},
    },
}
WHY = {
    "time_cond_proj_dim": " (an LCM UNet)",
    "class_embed_type": " (class embeddings)",
    "num_class_embeds": " (class embeddings)",
    "trained_betas": " (a noise table of its own)",
}
HARMLESS = (  # known, and of no meaning here: how the model was trained, stored or made fast
    *("addition_embed_type_num_heads", "dropout", "upcast_attention", "use_linear_projection"),
    *("addition_time_embed_dim", "projection_class_embeddings_input_dim", "sample_size", "dtype", "torch_dtype"),
    *("architectures", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "initializer_factor"),
    *("initializer_range", "transformers_version", "tie_word_embeddings", "projection_dim", "clip_sample"),
    *("clip_sample_range", "skip_prk_steps", "interpolation_type", "timestep_type", "final_sigmas_type"),
    *("dynamic_thresholding_ratio", "sample_max_value", "lower_order_final", "lambda_min_clipped", "variance_type"),
    *("solver_type", "thresholding", "sigma_min", "sigma_max", "euler_at_final", "use_lu_lambdas", "flow_shift"),
    *("use_dynamic_shifting", "time_shift_type", "output_hidden_states", "chunk_size_feed_forward", "is_decoder"),
    *("predict_x0", "disable_corrector", "solver_p", "original_inference_steps", "timestep_scaling"),  # SOLVERS_KEPT
    *("id2label", "label2id", "problem_type", "return_dict", "output_attentions", "is_encoder_decoder"),
)
