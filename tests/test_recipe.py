"""A picture's recipe, written and read: what goes in comes out, other tools are understood, nothing is trusted."""

import html
import json
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from minisd import recipe
from minisd.config import SAMPLER_NAMES, SCHEDULE_NAMES, Config, Defaults
from minisd.dialects import name_of, of_text
from minisd.image import save
from minisd.infotext import MAX_TEXT, Infotext, parse, recipe_text, write
from minisd.settings import (
    EMPHASIS_NAMES,
    ETA_SAMPLERS,
    LONG_PROMPT_NAMES,
    MAX_FILE,
    START_NAMES,
    TILING_NAMES,
    UPSCALE_NAMES,
    Options,
    resolve,
)

CONFIGS = Path(__file__).parent.parent / "configs"
SD1, SD2, SDXL = (Config.load(CONFIGS / f"{name}.json") for name in ("sd15", "sd21", "sdxl"))
MANY = settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

# Text of the signs that the syntax is made of, and of some others.
SIGNS = ',:\n"\\[]{}()<>/ a1é😀\0\u2028NS'


def longer(signs: str) -> str:
    return signs.replace("N", "Negative prompt:").replace("S", "Steps: 1, ")


def as_prompt(text: str) -> str:
    """No line of a prompt may begin like a negative prompt."""
    return f"\n{text}".replace("\nN", "\n N")[1:]


TEXT = st.text(SIGNS, max_size=12).map(longer)
PROMPT = TEXT.map(as_prompt)
KEYS = ("Steps", "a", "a-b/c d", "Ein Schlüssel", "1")
FIELDS = st.lists(TEXT, min_size=3, max_size=5).map(lambda values: dict(zip(KEYS, values, strict=False)))
NUMBER = st.floats(0, 1)
RECIPE = st.fixed_dictionaries(
    {
        "prompt": PROMPT,
        "negative_prompt": TEXT | st.none(),
        "steps": st.integers(1, 1000),
        "cfg_scale": st.floats(0, 1000),
        "sampler": st.sampled_from(SAMPLER_NAMES),
        "schedule": st.sampled_from(SCHEDULE_NAMES),
        "eta": NUMBER | st.none(),
        "seed": st.integers(0, 2**64 - 1),
        "width": st.integers(1, 16_384),
        "height": st.integers(1, 16_384),
        "clip_skip": st.integers(1, 24),
        "emphasis": st.sampled_from(EMPHASIS_NAMES),
        "guidance_rescale": NUMBER,
        "guidance_interval": st.tuples(NUMBER, NUMBER).map(list) | st.none(),
        "model": TEXT,
        "model_sha256": st.integers(0, 2**256 - 1).map("{:064x}".format),
    }
)


@MANY
@given(st.builds(Infotext, PROMPT, TEXT, FIELDS))
def test_a_text_taken_apart_is_what_it_was_made_of(text: Infotext) -> None:
    assert parse(write(text)) == text


def test_ten_thousand_texts_taken_apart_are_what_they_were_made_of() -> None:
    draw = random.Random(0)
    for _ in range(10_000):
        prompt, negative, *values = (longer("".join(draw.choices(SIGNS, k=draw.randrange(20)))) for _ in range(7))
        text = Infotext(as_prompt(prompt), negative, dict(zip(KEYS, values, strict=True)))
        assert parse(write(text)) == text


SEED = st.integers(0, 2**64 - 1)
FRACTION = NUMBER | st.floats(0, 1, width=16)
OPTIONS = {  # ways to draw SD 1.x
    **{"steps": st.integers(1, 1000), "cfg_scale": st.floats(0, 1000), "seed": SEED, "clip_skip": st.integers(1, 12)},
    **{"sampler": st.sampled_from(SAMPLER_NAMES), "schedule": st.sampled_from(SCHEDULE_NAMES), "eta": FRACTION},
    **{name: st.integers(1, 500).map(lambda n: 8 * n) for name in ("width", "height")},
    **{"long_prompt": st.sampled_from(LONG_PROMPT_NAMES), "emphasis": st.sampled_from(EMPHASIS_NAMES)},
    **{"vae_tiling": st.sampled_from(TILING_NAMES), "start_scale": st.sampled_from(START_NAMES)},
    **{"guidance_rescale": FRACTION, "dynamic_threshold": st.floats(0.001, 1)},
    "guidance_interval": st.tuples(FRACTION, FRACTION).filter(lambda two: two[0] < two[1]),
}
TOGETHER = [  # options that have no meaning without another
    {"variation_seed": SEED, "variation_strength": st.floats(0, 1, exclude_min=True)},
    {
        **{"hires": st.floats(1, 4), "hires_strength": FRACTION, "hires_upscale": st.sampled_from(UPSCALE_NAMES)},
        "hires_steps": st.integers(1, 1000) | st.none(),
    },
    {"image": st.just({"name": "a.png"}), "strength": FRACTION},
    {
        **{"image": st.just({"name": "a.png"}), "strength": FRACTION, "mask_blur": st.floats(0, 1000)},
        **{"mask": st.just({"name": "b.png"})},
    },
    {
        **{"image": st.just({"name": "a.png"}), "strength": FRACTION, "mask_blur": st.floats(0, 1000)},
        **{"outpaint": st.lists(st.integers(0, 99), min_size=4, max_size=4)},
    },
]
MADE = {
    **{"device": st.sampled_from(("cpu", "cuda")), "dtype": st.sampled_from(("float32", "bfloat16"))},
    **{name: TEXT.filter(bool) for name in ("vae", "loras", "embeddings", "variant", "revision")},
    **{"ema": st.just("True"), "prediction": st.just("v")},
}


@st.composite
def drawn(draw: st.DrawFn) -> tuple[dict, dict]:
    """What `generate` is told beside prompts, and the rest of the recipe that comes of it."""
    options = draw(st.fixed_dictionaries({}, optional=OPTIONS))
    for together in draw(st.lists(st.sampled_from(TOGETHER), max_size=2)):
        options |= draw(st.fixed_dictionaries(together))
    if options.get("sampler", SD1.defaults.sampler) not in ETA_SAMPLERS:
        options.pop("eta", None)
    if options.get("hires") is not None:  # which goes with a picture, but not with a mask
        options = {key: value for key, value in options.items() if key not in ("mask", "mask_blur", "outpaint")}
    rest = {key: options.pop(key) for key in ("image", "mask", "outpaint") if key in options}
    return options, rest | draw(st.fixed_dictionaries({}, optional=MADE))


@MANY
@given(PROMPT, TEXT | st.none(), drawn())
def test_the_parameters_text_alone_gives_the_recipe_back(prompt: str, negative: str | None, call: tuple) -> None:
    """Of a file that has lost its JSON: every setting, for a model with other defaults as well."""
    options, rest = call
    said = {"prompt": prompt, "negative_prompt": negative, **resolve(SD1, **options).to_dict(), **rest}
    said = {key: value for key, value in said.items() if rest.get("image") or key not in ("strength", "mask_blur")}
    found = of_text(recipe_text(json.loads(json.dumps(said))))
    assert (found.source, found.prompt, found.negative_prompt) == ("minisd", prompt, negative)
    other = replace(SD1, defaults=Defaults(640, 640, 7, 3.0, "lms", "beta", "karras", 0, None, 0.7, True))
    for model in (SD1, other):
        assert resolve(model, **found.options) == resolve(SD1, **options)
    assert found.made.pop("device") == rest.pop("device", "cpu")
    assert found.made.pop("dtype") == rest.pop("dtype", "float32")
    for picture in {"image", "mask"} & set(rest):
        assert found.made.pop(picture) == {} and rest.pop(picture)
    assert {key: value for key, value in found.made.items() if key != "version"} == rest
    assert found.ignored == () and len(found.notes) == ("strength" in said)


def test_a_text_says_only_what_is_not_usual() -> None:
    """AUTOMATIC1111's fields alone, for a call whose schedule it has."""
    said = resolve(SD1, sampler="euler", schedule="karras").to_dict()
    text = recipe_text({"prompt": "x", "negative_prompt": "", "device": "cpu", "dtype": "float32", **said})
    fields = parse(text).fields
    assert set(fields) == {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "RNG", "Version"}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(said=RECIPE)
def test_a_file_gives_the_recipe_back(tmp_path: Path, suffix: str, said: dict) -> None:
    picture, path = Image.new("RGB", (8, 8)), tmp_path / f"a{suffix}"
    said = said | {"prompt": said["prompt"] + "\nNegative prompt: z\na: 1, b: 2, c: 3"}  # which the text cannot hold
    picture.info["minisd"] = json.dumps(said | {"minisd": "0.1.0", "new": 1}, ensure_ascii=False)
    save(picture, path, overwrite=True)
    found = recipe.read(path)
    assert (found.prompt, found.negative_prompt) == (said["prompt"], said["negative_prompt"])
    rest = {k: v for k, v in said.items() if v is not None and not k.endswith("prompt")}
    assert found.options | found.made == rest | {"minisd": "0.1.0"}
    assert found.ignored == ("new",)


A1111 = """masterpiece, (red hair:1.2), a castle <lora:film:0.8>
on a hill
Negative prompt: lowres, bad anatomy
text
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned, Face restoration: CodeFormer, Clip skip: 2, ENSD: 31337, Lora hashes: "film: abcdef123456", \
Version: v1.6.0"""
A1111_NEW = """a cat
Steps: 20, Sampler: DPM++ 2M SDE, Schedule type: Exponential, CFG scale: 7, Seed: 965400086, Size: 1024x1024, \
Model hash: 31e35c80fc, Model: "sd_xl_base, 1.0", VAE: sdxl.vae, Variation seed: 5, Variation seed strength: 0.25, \
Denoising strength: 0.4, Clip skip: 2, RNG: CPU, \
Hires upscale: 1.5, Hires steps: 10, Hires upscaler: Latent, Emphasis: No norm, Version: v1.10.1"""
IMG2IMG = """a cat (on a mat)
Steps: 30, Sampler: DDIM, Schedule type: Automatic, CFG scale: 5, Seed: 7, Size: 512x512, Model: x, \
Denoising strength: 0.6, Mask blur: 4, RNG: CPU, Eta DDIM: 0.5, Version: v1.9.0"""
SDCPP = """a lovely cat <lora:film:1>
Negative prompt: blurry
Steps: 20, CFG scale: 7.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 42, Size: 512x512, Model: sd-v1-4.ckpt, \
RNG: cpu, Sampler: dpm++2m karras, Skip layers: [7, 8, 9, ], Clip skip: 2, Version: stable-diffusion.cpp, \
SDCPP: {"prompt": {"positive": "a lovely cat, Seed: 9"}, "seed": 42}"""
GPU = "its noise was drawn on a GPU: the same seed gives other noise here, and so another picture"


WAYS = {"long_prompt": "chunk", "start_scale": "sigma"}


def test_an_older_text_of_automatic1111() -> None:
    found = of_text(A1111, SD1)
    assert found.prompt == "masterpiece, (red hair:1.2), a castle \non a hill"
    assert found.negative_prompt == "lowres, bad anatomy\ntext"
    wanted = {"steps": 28, "cfg_scale": 7.5, "seed": 1234567890, "width": 512, "height": 768}
    wanted |= {"sampler": "dpmpp_2m", "schedule": "karras", "clip_skip": 2, "emphasis": "a1111"}
    assert found.options == wanted | WAYS
    assert found.made == {"model": "v1-5-pruned", "model_sha256": "6ce0161689", "version": "v1.6.0"}
    assert found.ignored == ("<lora:film:0.8>", "Face restoration", "ENSD", "Lora hashes")
    assert found.notes == (GPU,) and found.source == "AUTOMATIC1111"


def test_a_newer_text_of_automatic1111_with_two_runs() -> None:
    found = of_text(A1111_NEW, SD1)
    wanted = {"steps": 20, "cfg_scale": 7.0, "seed": 965400086, "width": 1024, "height": 1024, "clip_skip": 2}
    wanted |= {"sampler": "dpmpp_2m_sde", "schedule": "exponential", "emphasis": "no-norm", **WAYS}
    wanted |= {"hires": 1.5, "hires_steps": 25, "hires_strength": 0.4, "hires_upscale": "latent"}  # int(25 * 0.4) = 10
    wanted |= {"variation_seed": 5, "variation_strength": 0.25}
    assert found.options == wanted
    assert found.made["model"] == "sd_xl_base, 1.0" and "image" not in found.made
    assert found.negative_prompt is None
    assert (found.ignored, found.notes) == (("VAE",), ())


def test_a_text_of_image_to_image_says_what_is_missing() -> None:
    found = of_text(IMG2IMG, SD1)
    assert found.options["strength"] == 0.6 and found.options["mask_blur"] == 4.0 and "hires" not in found.options
    assert (found.options["sampler"], found.options["schedule"], found.options["eta"]) == ("ddim", "leading", 0.5)
    assert found.made["image"] == found.made["mask"] == {}
    assert (found.ignored, found.notes) == ((), ())


def test_minisds_own_text_tells_of_pictures_and_second_runs() -> None:
    said = {"prompt": "x", "steps": 20, "sampler": "euler", "schedule": "karras", "cfg_scale": 3.0, "seed": 1}
    said |= {"width": 8, "height": 8, "clip_skip": 1, "strength": 0.6}
    assert "strength" not in of_text(recipe_text(said)).options  # it played no part
    found = of_text(recipe_text(said | {"image": {"name": "a.png"}}))
    assert found.options["strength"] == 0.6 and found.made["image"] == {} and "mask" not in found.made
    found = of_text(recipe_text(said | {"image": {"name": "a.png"}, "mask": {"name": "b.png"}, "mask_blur": 0.0}))
    assert found.options["mask_blur"] == 0.0 and found.made["mask"] == {}
    twice = {"hires": 2.0, "hires_strength": 0.5, "hires_steps": 12, "hires_upscale": "picture"}
    found = of_text(recipe_text(said | twice))
    assert {k: v for k, v in found.options.items() if k in (*twice, "strength")} == twice
    assert "image" not in found.made and found.ignored == ()


def test_a_text_of_stable_diffusion_cpp() -> None:
    found = of_text(SDCPP, SDXL)
    wanted = {"steps": 20, "cfg_scale": 7.0, "seed": 42, "width": 512, "height": 512, "clip_skip": 2}
    assert found.options == wanted | WAYS | {"sampler": "dpmpp_2m", "schedule": "karras", "emphasis": "a1111"}
    assert (found.prompt, found.negative_prompt) == ("a lovely cat ", "blurry")
    assert found.made["model"] == "sd-v1-4.ckpt" and found.source == "stable-diffusion.cpp"
    assert found.ignored == ("<lora:film:1>", "Guidance", "Eta", "Skip layers") and found.notes == ()


def test_what_is_not_there_yet_is_listed_by_name() -> None:
    text = "x\nSteps: 5, Sampler: DPM adaptive, Schedule type: Turbo, Seed: -1, CFG scale: nan, Emphasis: Ignore"
    found = of_text(text)
    assert found.options == {"steps": 5, "clip_skip": 1} | {k: v for k, v in found.options.items() if k in WAYS}
    listed = {"Sampler DPM adaptive", "Schedule type Turbo", "Seed", "CFG scale", "Emphasis Ignore"}
    assert set(found.ignored) == listed


def test_of_two_names_with_one_label_its_own_is_taken() -> None:
    assert name_of("SGM Uniform", {"sgm_uniform": "SGM Uniform", "trailing": "SGM Uniform"}) == "sgm_uniform"
    assert (
        name_of("DDIM", {"leading": "DDIM", "ddim_uniform": "DDIM"}) == "ddim_uniform"
    )  # which comes after the borrower


SAYS = "x\nSteps: 5, {}, Seed: 1, CFG scale: 7, RNG: CPU, Version: {}"


@pytest.mark.parametrize(
    ("sampler", "version", "wanted"),
    [
        ("Sampler: Euler a", "v1.9.0", ("euler_a", "normal")),
        ("Sampler: Euler, Schedule type: Automatic", "v1.9.0", ("euler", "normal")),
        ("Sampler: DPM++ 2M, Schedule type: Automatic", "v1.9.0", ("dpmpp_2m", "karras")),
        ("Sampler: DPM++ 2M, Schedule type: Uniform", "v1.9.0", ("dpmpp_2m", "normal")),
        ("Sampler: DPM++ 2M SDE Exponential", "v1.6.0", ("dpmpp_2m_sde", "exponential")),
        ("Sampler: DPM++ 2M SDE, Schedule type: Automatic", "v1.9.0", ("dpmpp_2m_sde", "exponential")),
        ("Sampler: dpm++ 2m karras", "v1.6.0", ("dpmpp_2m", "karras")),
        ("Sampler: PLMS", "v1.6.0", ("plms", "leading")),
        ("Sampler: euler_a karras", "stable-diffusion.cpp", ("euler_a", "karras")),
        ("Sampler: euler", "stable-diffusion.cpp", ("euler", "normal")),
        ("Sampler: heun discrete", "stable-diffusion.cpp", ("heun", "normal")),
        ("Sampler: dpm++2m_sde exponential", "stable-diffusion.cpp", ("dpmpp_2m_sde", "exponential")),
        ("Sampler: ddim_trailing simple", "stable-diffusion.cpp", ("ddim", "trailing")),
        ("Sampler: ipndm gits", "stable-diffusion.cpp", (None, None)),
    ],
)
def test_samplers_and_schedules_under_their_many_names(sampler: str, version: str, wanted: tuple) -> None:
    found = of_text(SAYS.format(sampler, version))
    assert (found.options.get("sampler"), found.options.get("schedule")) == wanted
    assert found.ignored == (() if wanted[0] else ("Sampler ipndm gits", "Schedule type gits"))


A1111_SAMPLERS = {  # and the schedule that Automatic stands for
    **{"Euler": ("euler", "normal"), "Euler a": ("euler_a", "normal"), "Heun": ("heun", "normal")},
    **{"LMS": ("lms", "normal"), "DPM2": ("dpm2", "karras"), "DPM2 a": ("dpm2_a", "karras")},
    **{"DPM++ 2M": ("dpmpp_2m", "karras"), "DPM++ SDE": ("dpmpp_sde", "karras")},
    **{"DPM++ 2S a": ("dpmpp_2s_a", "karras"), "DPM++ 2M SDE": ("dpmpp_2m_sde", "exponential")},
    **{"DPM++ 3M SDE": ("dpmpp_3m_sde", "exponential"), "Restart": ("restart", "karras"), "LCM": ("lcm", "lcm")},
    **{"DDIM": ("ddim", "leading"), "PLMS": ("plms", "leading"), "UniPC": ("unipc", "leading")},
    **dict.fromkeys(("DPM fast", "DPM adaptive", "DPM++ 2M SDE Heun", "DDIM CFG++"), (None, None)),
}
A1111_SCHEDULES = {
    **{"Uniform": "normal", "Karras": "karras", "Exponential": "exponential", "Polyexponential": "polyexponential"},
    **{"SGM Uniform": "sgm_uniform", "KL Optimal": "kl_optimal", "Align Your Steps": "align_your_steps"},
    **{"Simple": "simple", "Normal": "normal", "DDIM": "ddim_uniform", "Beta": "beta"},
}


@pytest.mark.parametrize(("label", "wanted"), A1111_SAMPLERS.items())
def test_every_sampler_of_automatic1111(label: str, wanted: tuple) -> None:
    found = of_text(SAYS.format(f"Sampler: {label}, Schedule type: Automatic", "v1.10.1"), SD1)
    assert (found.options.get("sampler"), found.options.get("schedule")) == wanted
    assert found.ignored == (() if wanted[0] else (f"Sampler {label}",))


@pytest.mark.parametrize(("label", "wanted"), A1111_SCHEDULES.items())
def test_every_schedule_of_automatic1111(label: str, wanted: str) -> None:
    """Its "Uniform" is our `normal`; the same label in minisd's own text is `linspace`, which has none of its own."""
    for sampler in (f"Sampler: Euler, Schedule type: {label}", f"Sampler: Euler {label}"):
        found = of_text(SAYS.format(sampler, "v1.10.1"), SD1)
        assert (found.options["sampler"], found.options["schedule"], found.ignored) == ("euler", wanted, ())
    own = of_text(SAYS.format(f"Schedule type: {label}", "minisd 0.1.0")).options["schedule"]
    assert own == ("linspace" if label == "Uniform" else wanted)


@pytest.mark.parametrize(
    ("config", "version", "said", "taken"),
    [
        (SD1, "v1.6.0", "Clip skip: 2", 2),
        (SD1, "v1.6.0", "RNG: CPU", 1),
        (SD2, "v1.6.0", "Clip skip: 3", None),
        (SDXL, "v1.6.0", "Clip skip: 3", None),
        (SDXL, "v1.6.0", "RNG: CPU", None),
        (None, "v1.6.0", "Clip skip: 3", 3),
        (SDXL, "stable-diffusion.cpp", "Clip skip: 3", 3),
        (SDXL, "stable-diffusion.cpp", "RNG: cpu", None),
        (SDXL, "minisd 0.1.0", "Clip skip: 3", 3),
        (SDXL, "minisd 0.1.0", "RNG: CPU", 1),
    ],
)
def test_clip_skip_counts_where_it_did(config: Config | None, version: str, said: str, taken: int | None) -> None:
    found = of_text(f"x\nSteps: 5, Sampler: Euler, Seed: 1, {said}, Version: {version}", config)
    assert found.options.get("clip_skip") == taken
    dropped = taken is None and "skip" in said
    assert [note for note in found.notes if "clip skip 3 did nothing" in note] == ([found.notes[0]] if dropped else [])
    assert "Clip skip" not in found.ignored


def test_where_the_noise_came_from_is_said() -> None:
    noted = {
        **{"v1.6.0": ("", "RNG: NV, "), "v1.6.0 ": ("RNG: CPU, ",)},
        **{"stable-diffusion.cpp": ("", "RNG: cuda, ", "RNG: std_default, "), "stable-diffusion.cpp ": ("RNG: cpu, ",)},
        "minisd 0.1.0 ": ("", "RNG: CPU, "),
    }
    for version, ways in noted.items():
        for rng in ways:
            found = of_text(f"x\nSteps: 5, Sampler: Euler a, Seed: 1, {rng}Version: {version}")
            assert (GPU in found.notes) == (not version.endswith(" ")), (version, rng)


def test_a_line_counts_as_settings_from_three_pairs_on() -> None:
    assert parse("a, b: 1\nc: 1, d: 2") == Infotext("a, b: 1\nc: 1, d: 2")
    assert parse("a\nb: 1, c: 2, d: 3\n\n") == Infotext("a", "", {"b": "1", "c": "2", "d": "3"})
    assert parse("(b: 1), (c: 2), (d: 3)").fields == {}
    assert parse('a: "1, b: 2", c: 3, d: "\\"4\\"", e: "x').fields == {"a": "1, b: 2", "c": "3", "d": '"4"', "e": '"x'}
    assert parse('a: "x" y, b: "", c: [1, 2], d: [z, e: 1').fields == {
        "a": '"x" y',
        "b": "",
        "c": "[1, 2]",
        "d": "[z",
        "e": "1",
    }
    assert parse("Negative prompt: no\nSteps: 1, b: 2, c: 3") == Infotext("", "no", {"Steps": "1", "b": "2", "c": "3"})
    for text in ("just a prompt", "", '{"sui_image_params": {}}'):
        with pytest.raises(ValueError, match=r"no line of settings|JSON by another tool"):
            of_text(text)


BAITS = [
    *("a: ", "a: a: ", 'a: "b, ', 'a: "\\", ', "a ", "a", " ", ",", ":", "a, ", "a: [,", "a: [1, ", 'a: "x" b, '),
    *("Negative prompt:", "\nNegative prompt:", "<lora:", "<lora:a", "Steps: 1, ", "SDCPP: ", '"', "\\", "é ", "-"),
]


@pytest.mark.parametrize("bait", BAITS)
def test_the_time_to_read_a_text_grows_with_its_length_alone(bait: str) -> None:
    """A second for 64 kB is what one pass over the line for each of its characters would take at the very least."""
    for text in ((bait * MAX_TEXT)[:MAX_TEXT], (bait * MAX_TEXT)[: MAX_TEXT - 40] + "\nSteps: 1, Seed: 2, Size: 8x8"):
        start = time.process_time()
        try:
            of_text(text)
        except ValueError as error:
            assert "its parameters text" in str(error)
        assert time.process_time() - start < 0.3
    with pytest.raises(ValueError, match="at most 65536"):
        of_text(bait * 1_000_000)


ODD = [
    None,
    True,
    0,
    -1,
    2**64,
    10**400,
    0.5,
    -1e308,
    "",
    "euler",
    "nan",
    "x" * 10_000,
    [],
    [0.2, 0.8],
    [[1], {}],
    {"a": 1},
]


@pytest.mark.parametrize("name", Options.__annotations__)
def test_whatever_type_an_option_has_in_a_file_is_taken_or_refused_in_words(name: str) -> None:
    for value in ODD:
        text = json.dumps({"prompt": "x", "minisd": "0.1.0", name: value})
        options = recipe.of_recipe(recipe.own_recipe(text)).options
        assert not {"num_images", "batch_size"} & set(options)  # a picture is one
        try:
            resolve(SD1, **options)
        except ValueError as error:
            assert name in str(error) or name.split("_")[0] in str(error)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("null", "not what minisd writes"),
        ("[]", "not what minisd writes"),
        ("{}", "not what minisd writes"),
        ('{"prompt": 5}', "not what minisd writes"),
        ('{"prompt": "x", "negative_prompt": ["y"]}', "negative_prompt is no text"),
        ('{"prompt": "x", "cfg_scale": NaN}', "NaN is no number"),
        ('{"prompt": "x", "cfg_scale": -Infinity}', "Infinity is no number"),
        ('{"prompt": "x", "steps": 1' + "0" * 5000 + "}", "damaged"),
        ('{"prompt": "x", "a": ' + "[" * 100_000 + "]" * 100_000 + "}", "damaged"),
        ('{"prompt": "x", "a": ' + "[" * 10 + "]" * 10 + "}", "not what minisd writes"),
        ('{"prompt": "' + "x" * recipe.MAX_JSON + '"}', f"at most {recipe.MAX_JSON}"),
    ],
)
def test_a_damaged_recipe_is_refused_in_words(tmp_path: Path, text: str, said: str) -> None:
    info = PngInfo()
    info.add_text("minisd", text)
    info.add_text("parameters", A1111)  # is not read in its place: it would be another picture
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    with pytest.raises(ValueError, match=said) as caught:
        recipe.read(tmp_path / "a.png")
    assert str(caught.value).startswith(f"{tmp_path}/a.png: ")


def test_the_longest_prompt_of_a_file_is_read_back(tmp_path: Path) -> None:
    picture, prompt = Image.new("RGB", (8, 8)), '"' * MAX_FILE
    said = {"prompt": prompt, "negative_prompt": "", **resolve(SD1).to_dict()}
    picture.info["minisd"] = json.dumps(said)
    save(picture, tmp_path / "a.png")
    assert recipe.read(tmp_path / "a.png").prompt == prompt


RØD = "en rød cirkel 😀\nNegative prompt: blå\nSteps: 4, Sampler: euler, Seed: 3, RNG: CPU, Version: {}"


def png_of_sdcpp(path: Path, text: str) -> None:
    """It puts UTF-8 where a PNG has Latin-1."""
    info = PngInfo()
    info.add(b"tEXt", b"parameters\0" + text.encode())
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def webp_of_sdcpp(path: Path, text: str) -> None:
    packet = f"<x:xmpmeta><sdcpp:parameters>{html.escape(text)}</sdcpp:parameters></x:xmpmeta>"
    Image.new("RGB", (8, 8)).save(path, xmp=packet.encode())


@pytest.mark.parametrize(
    ("name", "version", "write"),
    [
        ("a.png", "v1.6.0", lambda path, text: save_png(path, parameters=text)),
        ("a.jpg", "v1.6.0", lambda path, text: save_exif(path, b"UNICODE\0" + text.encode("utf-16-be"))),
        ("a.webp", "v1.6.0", lambda path, text: save_exif(path, b"UNICODE\0" + text.encode("utf-16-be"))),
        ("b.jpg", "v1.6.0", lambda path, text: save_exif(path, b"UNICODE\0" + text.encode("utf-16-le"))),
        ("c.jpg", "v1.6.0", lambda path, text: save_exif(path, b"ASCII\0\0\0" + text.encode())),
        ("b.png", "stable-diffusion.cpp", png_of_sdcpp),
        ("b.webp", "stable-diffusion.cpp", webp_of_sdcpp),
        (
            "d.jpg",
            "stable-diffusion.cpp",
            lambda p, t: Image.new("L", (8, 8)).save(p, comment=f"parameters\0{t}\0".encode()),
        ),
    ],
)
def test_the_text_is_found_wherever_a_tool_puts_it(tmp_path: Path, name: str, version: str, write: Callable) -> None:
    write(tmp_path / name, RØD.format(version))
    found = recipe.read(tmp_path / name)
    assert (found.prompt, found.negative_prompt) == ("en rød cirkel 😀", "blå")
    assert (found.options["seed"], found.options["sampler"]) == (3, "euler")
    assert found.source == {"v1.6.0": "AUTOMATIC1111"}.get(version, version)


def save_png(path: Path, **texts: str) -> None:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def save_exif(path: Path, comment: bytes) -> None:
    data = Image.Exif()
    data.get_ifd(0x8769)[0x9286] = comment
    Image.new("RGB", (8, 8)).save(path, exif=data)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"prompt": '{"3": {}}', "workflow": "{}"}, "a workflow of ComfyUI"),
        ({"invokeai_metadata": "{}"}, "a workflow of InvokeAI"),
        ({"parameters": '{"sui_image_params": {}}'}, "JSON by another tool"),
        ({"parameters": "only words"}, "no line of settings"),
        ({"Software": "GIMP"}, "holds no recipe"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path: Path, texts: dict, said: str) -> None:
    save_png(tmp_path / "a.png", **texts)
    with pytest.raises(ValueError, match=said):
        recipe.read(tmp_path / "a.png")


def test_a_description_of_something_else_is_no_recipe(tmp_path: Path) -> None:
    data = Image.Exif()
    data[0x010E] = '{"camera": "minisd"}'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=data)
    with pytest.raises(ValueError, match="holds no recipe"):
        recipe.read(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_damaged_files_are_refused_in_words(tmp_path: Path, suffix: str) -> None:
    """Bytes changed, cut out, doubled: a ValueError, or a Reading where a recipe is left; nothing else."""
    draw, picture, path = random.Random(0), Image.new("RGB", (8, 8)), tmp_path / f"a{suffix}"
    said = {"prompt": "x", "steps": 4, "sampler": "euler", "schedule": "karras", "cfg_scale": 3.0, "seed": 1}
    said |= {"width": 8, "height": 8, "clip_skip": 1, "minisd": "0.1.0"}
    picture.info["minisd"] = json.dumps(said)
    save(picture, path)
    whole, outcomes = path.read_bytes(), set()
    for _ in range(300):
        start, end = sorted(draw.choices(range(len(whole)), k=2))
        end = min(end, start + draw.choice((1, 4, 100)))
        put = draw.choice((b"", draw.randbytes(end - start), b"\xff" * (end - start), whole[start:end] * 2))
        path.write_bytes(whole[:start] + put + whole[end:])
        try:
            outcomes.add(type(recipe.read(path)))
        except ValueError:
            outcomes.add(ValueError)
    assert ValueError in outcomes <= {ValueError, recipe.Reading}
