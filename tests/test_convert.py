"""A model goes from layout to layout and comes back bit for bit; diffusers draws the same from what is written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from oracles import deviation
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_folders import PROMPTS, STEPS, TOL, Case, case, edit, ours, same, theirs  # noqa: F401  (a fixture)

import minisd
from minisd.cli import convert as command
from minisd.cli import main
from minisd.pipeline import generate
from minisd.runtime import DTYPES
from minisd.weights import convert as converter
from minisd.weights.convert import convert
from minisd.weights.write import whole_folder

Make = Callable[[str], Case]
FAMILIES = ["sd1", "sd2-v", "sdxl", "inpainting"]


def model_of(path: Path, tokenizer: Path | None = None) -> minisd.Model:
    return minisd.load(path, "cpu", "fp32", tokenizer=tokenizer)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_every_layout_and_back_is_the_same_bit_for_bit(case: Make, family: str, tmp_path: Path) -> None:  # noqa: F811
    one = case(family)
    wanted = model_of(one.folder)
    file, folder, own = tmp_path / "file.safetensors", tmp_path / "folder", tmp_path / "own"
    convert(one.folder, file)
    convert(file, folder, tokenizer=one.folder)
    convert(folder, own, to="minisd")
    convert(own, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    for path in (file, folder, own):
        found = model_of(path, one.folder if path == file else None)
        assert same(found, wanted)
        vae = replace(wanted.config.vae, force_upcast=found.config.vae.force_upcast)  # a file has its family's
        assert found.config == replace(wanted.config, name=found.config.name, vae=vae, defaults=found.config.defaults)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_published_file_is_kept_whole(case: Make, family: str, tmp_path: Path) -> None:  # noqa: F811
    """ckpt -> safetensors: the same names and numbers, also those that no network takes."""
    one = case(family)
    tensors = load_file(one.file)
    torch.save({"state_dict": tensors, "global_step": 7}, tmp_path / "old.ckpt")
    notes = convert(tmp_path / "old.ckpt", tmp_path / "new.safetensors", prediction=one.config.noise.prediction)
    found = load_file(tmp_path / "new.safetensors")
    assert notes == []
    assert {name: t.dtype for name, t in found.items()} == {name: t.dtype for name, t in tensors.items()}
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("family", FAMILIES[:3])
def test_diffusers_draws_the_same_from_a_folder_of_ours(case: Make, family: str, tmp_path: Path) -> None:  # noqa: F811
    """Of a file, and of a folder: its scheduler's config is copied then, so nothing has to be named."""
    one = case(family)
    one.schedule("euler")
    wanted = theirs(one)
    convert(one.folder, tmp_path / "copy")
    convert(one.file, tmp_path / "new", tokenizer=one.folder, prediction=one.config.noise.prediction)
    for name in ("copy", "new"):
        pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / name)
        pipe.set_progress_bar_config(disable=True)
        assert type(pipe) is type(one.pipe)
        if name == "new":
            pipe.scheduler = one.pipe.scheduler
        assert deviation(theirs(replace(one, pipe=pipe)), wanted) < 1e-6


@pytest.mark.parametrize("family", FAMILIES[1:3])
def test_a_file_draws_in_diffusers_by_the_scheduler_that_convert_writes(
    case: Make,  # noqa: F811
    family: str,
    tmp_path: Path,
) -> None:
    one = case(family)
    convert(one.file, tmp_path / "new", tokenizer=one.folder, prediction=one.config.noise.prediction)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "new")
    pipe.set_progress_bar_config(disable=True)
    file = minisd.load(one.file, "cpu", "fp32", tokenizer=one.folder, prediction=one.config.noise.prediction)
    wanted = theirs(replace(one, pipe=pipe))
    assert deviation(ours(one, file), wanted) < TOL
    folder = model_of(tmp_path / "new")
    assert deviation(ours(one, folder), wanted) < TOL
    assert folder.config.defaults == replace(file.config.defaults, steps=folder.config.defaults.steps)


def test_the_bundled_model_draws_in_diffusers(tmp_path: Path) -> None:
    """Trained weights, trailing spacing, zero-terminal SNR (which diffusers' DDIM holds to), a small vocabulary."""
    notes = convert("mini", tmp_path / "mini", dtype="fp32")
    assert any("text.0.projection.weight" in note for note in notes)
    assert any("cfg_scale 3.0 (there: 7.5)" in note for note in notes)
    pipe = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "mini")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    model, start = minisd.load(), torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    options = {"guidance_scale": 3.0, "height": 64, "width": 64, "latents": start, "output_type": "latent"}
    wanted = pipe(**PROMPTS, num_inference_steps=5, **options).images
    found = generate(model, **PROMPTS, steps=5, sampler="ddim", latents=start, output="latent", emphasis="off")
    assert deviation(found, wanted) < TOL
    assert same(model_of(tmp_path / "mini"), without_projection(model))


def without_projection(model: minisd.Model) -> minisd.Model:
    model.text[0].projection = torch.nn.Identity()
    return model


def test_what_a_layout_has_no_place_for_is_told(case: Make, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd2-v")
    notes = convert(one.file, tmp_path / "folder", tokenizer=one.folder, prediction="v")
    (left,) = [note for note in notes if note.startswith("left out")]
    names = json.loads((tmp_path / "folder" / "text_encoder" / "config.json").read_text())
    assert names["num_hidden_layers"] == 2
    assert "16 tensors" in left and "cond_stage_model.model.text_projection" in left
    notes = convert(tmp_path / "folder", tmp_path / "file.safetensors")
    assert any("as zeros" in note for note in notes)
    added = load_file(tmp_path / "file.safetensors")
    last = {name: t for name, t in added.items() if ".resblocks.2." in name}
    assert last.keys() == {name for name in load_file(one.file) if ".resblocks.2." in name}
    assert all(not t.any() for t in last.values())


def test_position_ids_find_their_place_in_both_layouts(case: Make, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    name = "embeddings.position_ids"
    convert(one.file, tmp_path / "folder", tokenizer=one.folder)
    inside = load_file(tmp_path / "folder" / "text_encoder" / "model.safetensors")
    assert torch.equal(inside[f"text_model.{name}"], torch.arange(20)[None])
    convert(tmp_path / "folder", tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert torch.equal(back[f"cond_stage_model.transformer.text_model.{name}"], torch.arange(20)[None])
    convert(tmp_path / "folder", tmp_path / "folder2")
    assert load_file(tmp_path / "folder2" / "text_encoder" / "model.safetensors").keys() == inside.keys()


def test_openclips_projection_and_scale_are_kept_where_a_folder_has_them(case: Make, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd2-v")
    convert(one.folder, tmp_path / "folder")
    path = tmp_path / "folder" / "text_encoder" / "model.safetensors"
    more = {"text_projection.weight": torch.randn(20, 64), "logit_scale": torch.tensor(4.6)}
    save_file({**load_file(path), **more}, path)
    convert(tmp_path / "folder", tmp_path / "file.safetensors")
    found = load_file(tmp_path / "file.safetensors")
    assert torch.equal(found["cond_stage_model.model.text_projection"], more["text_projection.weight"].T)
    assert torch.equal(found["cond_stage_model.model.logit_scale"], more["logit_scale"])


def test_the_prediction_is_written_unless_it_is_a_guess(case: Make, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd2-v")
    convert(one.file, tmp_path / "guessed.safetensors")
    convert(one.file, tmp_path / "told.safetensors", prediction="v")
    convert(one.folder, tmp_path / "folder.safetensors")
    convert(tmp_path / "told.safetensors", tmp_path / "again.safetensors")
    words = {}
    for path in tmp_path.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            words[path.stem] = file.metadata().get("modelspec.prediction_type")
    assert words == {"guessed": None, "told": "v", "folder": "v", "again": "v"}
    assert model_of(tmp_path / "again.safetensors", one.folder).config.noise.prediction == "v"


@pytest.mark.parametrize("zero_snr", [False, True])
def test_a_v_model_of_sd1_carries_the_usual_markers(case: Make, zero_snr: bool, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    convert(one.folder, tmp_path / "folder")
    edit(tmp_path / "folder/scheduler/scheduler_config.json", prediction_type="v_prediction")
    edit(tmp_path / "folder/scheduler/scheduler_config.json", rescale_betas_zero_snr=zero_snr)
    convert(tmp_path / "folder", tmp_path / "v.safetensors")
    tensors = load_file(tmp_path / "v.safetensors")
    assert ("v_pred" in tensors, "ztsnr" in tensors) == (True, zero_snr)
    save_file(tensors, tmp_path / "bare.safetensors")  # without the words of the header
    noise = model_of(tmp_path / "bare.safetensors", one.folder).config.noise
    assert (noise.prediction, noise.zero_snr) == ("v", zero_snr)
    convert(tmp_path / "v.safetensors", tmp_path / "eps.safetensors", prediction="eps")
    assert "v_pred" not in load_file(tmp_path / "eps.safetensors")


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_dtype_casts_the_networks_and_nothing_else(case: Make, dtype: str, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    convert(one.file, tmp_path / "cast.safetensors", dtype=dtype)
    before, after = load_file(one.file), load_file(tmp_path / "cast.safetensors")
    for name, tensor in before.items():
        known = name.startswith(("model.diffusion_model.", "first_stage_model.", "cond_stage_model."))
        wanted = DTYPES[dtype] if known and tensor.is_floating_point() else tensor.dtype
        assert after[name].dtype == wanted and torch.equal(after[name], tensor.to(wanted))


def test_a_number_too_large_for_fp16_is_refused(case: Make, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    tensors = load_file(one.file)
    tensors["model.diffusion_model.out.2.bias"][0] = 1e5
    save_file(tensors, tmp_path / "large.safetensors")
    with pytest.raises(ValueError, match=r"out\.2\.bias holds numbers too large"):
        convert(tmp_path / "large.safetensors", tmp_path / "half.safetensors", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["large.safetensors"]


def test_a_model_that_a_layout_cannot_hold_is_refused(case: Make, tmp_path: Path) -> None:  # noqa: F811
    """The bundled model's heads and scale factor stand in no single file."""
    with pytest.raises(ValueError, match=r"cannot hold the model; it would come back with .*(heads|scale)"):
        convert("mini", tmp_path / "mini.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_separate_vae_is_baked_in(case: Make, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    vae = {k: 2 * v for k, v in load_file(one.folder / "vae" / "diffusion_pytorch_model.safetensors").items()}
    save_file(vae, tmp_path / "vae.safetensors")
    convert(one.file, tmp_path / "baked.safetensors", vae=tmp_path / "vae.safetensors")
    before, after = load_file(one.file), load_file(tmp_path / "baked.safetensors")
    name = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(after[name], vae["decoder.conv_in.weight"]) and before.keys() == after.keys()


def test_what_is_there_is_kept_unless_told(case: Make, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    (tmp_path / "taken.safetensors").write_text("mine")
    for target, option in (("taken.safetensors", {}), ("home", {"overwrite": True}), (".", {"overwrite": True})):
        (tmp_path / "home").mkdir(exist_ok=True)
        (tmp_path / "home" / "letter.txt").write_text("mine")
        with pytest.raises(ValueError, match=r"exists|no model folder"):
            convert(one.folder, tmp_path / target, **option)
    assert (tmp_path / "taken.safetensors").read_text() == (tmp_path / "home" / "letter.txt").read_text() == "mine"
    convert(one.folder, tmp_path / "taken.safetensors", overwrite=True)
    convert(one.folder, tmp_path / "out")
    (tmp_path / "out" / "old.txt").touch()
    convert(tmp_path / "taken.safetensors", tmp_path / "out", overwrite=True, tokenizer=one.folder)
    assert not (tmp_path / "out" / "old.txt").exists() and same(model_of(tmp_path / "out"), model_of(one.folder))
    for inside in ("x", "."):
        with pytest.raises(ValueError, match=r"lies in the other|exists"):
            convert(tmp_path / "out", tmp_path / "out" / inside)


def test_a_failure_leaves_the_old_folder_and_nothing_else(
    case: Make,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = case("sd1")
    convert(one.folder, tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").rglob("*"))

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(converter, "write_weights", full)
    with pytest.raises(OSError):
        convert(one.file, tmp_path / "out", overwrite=True, tokenizer=one.folder)
    assert sorted(path.name for path in (tmp_path / "out").rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(KeyError), whole_folder(tmp_path / "new"):
        raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("{file} {out}/a.ckpt", "writes .safetensors and no other"),
        ("{file} {out}/a.safetensors --to diffusers", "the layout diffusers is a folder"),
        ("{file} {out}/a --to ldm", "a file, whose name ends in .safetensors"),
        ("{file} {out}/missing/a.safetensors", "there is no folder"),
        ("{file} {out}/a.safetensors --tokenizer {out}", "carries no tokenizer"),
        ("{file} {out}/folder", "a single file carries no tokenizer"),
        ("{out}/nothing {out}/a.safetensors", "there is no model at"),
        ("{file} {out}/a.safetensors --dtype int8", "choose from keep, fp32"),
        ("{file} {out}/a.safetensors --to compvis", "choose from diffusers, ldm, minisd"),
        ("{file} {out}/a.safetensors --variant fp16", "variant is for a diffusers folder"),
        ("{file}", "OUT"),
    ],
)
def test_bad_conversions_are_one_line_and_write_nothing(case: Make, argv: str, told: str, tmp_path, capsys) -> None:  # noqa: F811
    words = argv.format(file=case("sd1").file, out=tmp_path).split()
    assert main(["convert", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_the_path_and_what_was_left(case: Make, tmp_path: Path, capsys) -> None:  # noqa: F811
    one = case("sdxl")
    assert main(["convert", str(one.file), str(tmp_path / "out"), "--tokenizer", str(one.folder)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'out'}\n"
    assert "minisd: note: left out" in err and "logit_scale" in err
    assert set(command.LAYOUTS) == set(converter.WRITERS) and set(command.DTYPES) == {"keep", *DTYPES}
