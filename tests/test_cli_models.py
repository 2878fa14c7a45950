"""Foreign models on the command line: what is put into them, what is refused first, and what `minisd info` tells."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_folders import Case, case, copy, edit, same  # noqa: F401  (a fixture)
from torch import Tensor

import minisd
from minisd.cli import main
from minisd.cli.common import BadInput, lines
from minisd.cli.model import parse_lora
from minisd.pipeline import Model, generate
from minisd.weights import about
from minisd.weights.keys import vae_keys
from minisd.weights.ldm import vae_keys as original_vae_keys

Make = Callable[[str], Case]
SMALL = ["--steps", "2", "-W", "16", "-H", "16", "--seed", "1", "--device", "cpu"]


@pytest.fixture
def draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """`minisd generate` in an empty folder: the picture, and what was said."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object) -> tuple[Image.Image, str]:
        path = tmp_path / f"{len(list(tmp_path.glob('*.png')))}.png"
        assert main(["generate", "a red circle", *SMALL, "-o", str(path), *map(str, argv)]) == 0
        with Image.open(path) as image:
            image.load()
        return image, capsys.readouterr().err

    return run


def pixels(model: Model) -> Tensor:
    return generate(model, "a red circle", steps=2, width=16, height=16, output="tensor")


def weights(folder: Path) -> Path:
    return folder / "vae" / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vaes(case: Make, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:  # noqa: F811
    """One other VAE in every form, and under "model" a folder of SD 1.x that has it."""
    home, one = tmp_path_factory.mktemp("vaes"), case("sd1")
    folder = copy(one, home)
    tensors = {k: 1.1 * v for k, v in load_file(weights(one.folder)).items()}
    save_file(tensors, weights(folder))
    config = one.config.vae
    ours = {name: tensors[theirs] for name, theirs in vae_keys(config).items()}
    original = {theirs: ours[name] for name, theirs in original_vae_keys(config).items()}
    for name in (n for n in original if ".attn_1." in n and original[n].ndim == 2):
        original[name] = original[name][..., None, None]
    shutil.copyfile(weights(folder), home / "diffusers.safetensors")
    save_file({theirs: ours[name] for name, theirs in vae_keys(config, old=True).items()}, home / "old.safetensors")
    save_file({**original, "loss.logvar": torch.zeros(())}, home / "bare.safetensors")
    whole = {k: v for k, v in load_file(one.file).items() if not k.startswith("first_stage_model.")}
    save_file(whole | {f"first_stage_model.{k}": v for k, v in original.items()}, home / "checkpoint.safetensors")
    torch.save({"state_dict": original, "epoch": 3}, home / "pickled.ckpt")
    names = ("diffusers.safetensors", "old.safetensors", "bare.safetensors", "checkpoint.safetensors", "pickled.ckpt")
    return {"model": folder, "pipeline": folder, "part": folder / "vae", **{name: home / name for name in names}}


FORMS = ["pipeline", "part", "diffusers.safetensors", "old.safetensors", "bare.safetensors", "checkpoint.safetensors"]


@pytest.mark.parametrize("form", [*FORMS, "pickled.ckpt"])
def test_a_vae_of_its_own_draws_as_a_folder_that_has_it(case: Make, vaes: dict[str, Path], form: str) -> None:  # noqa: F811
    one = case("sd1")
    one.schedule("ddim")
    wanted = minisd.load(vaes["model"], "cpu", "fp32")
    found = minisd.load(one.folder, "cpu", "fp32", vae=vaes[form])
    assert same(found, wanted)
    assert not torch.equal(pixels(found), pixels(minisd.load(one.folder, "cpu", "fp32")))
    assert found.origin["vae"] == vaes[form].name
    single = minisd.load(one.file, "cpu", "fp32", tokenizer=one.folder, vae=vaes[form])
    assert same(single, wanted)


def test_the_picture_is_that_of_a_folder_with_that_vae(case: Make, vaes: dict[str, Path], draw) -> None:  # noqa: F811
    one = case("sd1")
    one.schedule("ddim")
    shutil.copytree(one.folder / "scheduler", vaes["model"] / "scheduler", dirs_exist_ok=True)
    wanted, _ = draw("-m", vaes["model"])
    found, _ = draw("-m", one.folder, "--vae", vaes["bare.safetensors"])
    assert found.tobytes() == wanted.tobytes()
    assert json.loads(found.info["minisd"])["vae"] == "bare.safetensors"


@pytest.mark.parametrize("form", ["part", "bare.safetensors", "diffusers.safetensors"])
def test_a_file_without_a_vae_takes_one(case: Make, vaes: dict[str, Path], form: str, tmp_path: Path, capsys) -> None:  # noqa: F811
    one = case("sd1")
    pruned = {k: v for k, v in load_file(one.file).items() if not k.startswith("first_stage_model.")}
    save_file(pruned, tmp_path / "pruned.safetensors")
    assert main(["generate", "x", *SMALL, "-m", f"{tmp_path}/pruned.safetensors", "--tokenizer", str(one.folder)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) <= 6 and "without its VAE" in told[-1]
    if form == "diffusers.safetensors":  # its config stands nowhere, so it is taken for the published one
        with pytest.raises(ValueError, match="does not fit"):
            minisd.load(tmp_path / "pruned.safetensors", tokenizer=one.folder, vae=vaes[form])
        return
    found = minisd.load(tmp_path / "pruned.safetensors", "cpu", "fp32", tokenizer=one.folder, vae=vaes[form])
    assert same(found, minisd.load(vaes["model"], "cpu", "fp32"))


def test_minisds_own_models_take_a_vae_too(tiny_model: Path, vaes: dict[str, Path], tmp_path: Path) -> None:
    model = minisd.load(tiny_model, "cpu")
    state, names = model.vae.state_dict(), original_vae_keys(model.config.vae)
    tensors = {theirs: (1.1 * state[name]).contiguous() for name, theirs in names.items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    found = minisd.load(tiny_model, "cpu", vae=tmp_path / "vae.safetensors")
    for name, tensor in model.vae.state_dict().items():
        assert torch.equal(found.vae.state_dict()[name], 1.1 * tensor)
    assert "model_sha256" not in found.origin  # it is no longer the model of that hash


def test_a_vae_of_another_family_or_shape_is_refused(case: Make, vaes: dict[str, Path], tmp_path, capsys) -> None:  # noqa: F811
    one = case("sd1")
    with pytest.raises(ValueError, match=r"scaled by 0\.13025, those of folder by 0\.18215 \(a VAE of SDXL\)"):
        minisd.load(one.folder, vae=case("sdxl").folder)
    tensors = {k: v[:16] if v.shape[:1] == (32,) else v for k, v in load_file(vaes["bare.safetensors"]).items()}
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "small.safetensors")
    argv = ["generate", "x", *SMALL, "-m", str(one.folder), "--vae", str(tmp_path / "small.safetensors")]
    assert main([*argv, "--outdir", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()
    told = told[next(i for i, line in enumerate(told) if "does not fit" in line) :]
    assert 2 < len(told) <= 6 and "likely cause" in told[-1]


def test_every_kind_of_model_draws_and_is_told_in_one_line(case: Make, draw) -> None:  # noqa: F811
    one = case("sd2-v")
    one.schedule("ddim")
    folder, said = draw("-m", one.folder)
    assert "minisd: note: folder: SD 2.x (context 64, v), stored as float32, cpu fp32: " in said
    flags = ["--tokenizer", one.folder, "--sampler", "ddim", "--schedule", "leading"]
    file, said = draw("-m", one.file, "--prediction", "v", *flags)
    assert "minisd: note: file: SD 2.x (context 64, v), stored as float32, cpu fp32: " in said
    assert file.tobytes() == folder.tobytes()
    eps, said = draw("-m", one.file, *flags)
    assert "is a guess from its weights" in said and eps.tobytes() != file.tobytes()


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ("-m {folder} --steps 0", "--steps 0"),
        ("-m {folder} -W 17", "--width 17 is not a multiple of 2"),
        ("-m {file} --tokenizer {folder} --clip-skip 7", "--clip-skip 7"),
        ("-m {file} --tokenizer {home}/none", "there is no tokenizer folder"),
        ("-m {file} --prediction velocity", "choose from eps, v, x0"),
        ("-m {file} --tokenizer {folder} --variant fp16", "variant is for a diffusers folder"),
        ("-m {file} --tokenizer {folder} --revision main", "a revision is for a model on the hub"),
        ("-m {folder} --tokenizer {folder}", "tokenizer is for a single file"),
        ("--prediction v", "prediction is for foreign models"),
        ("--variant fp16", "variant is for a diffusers folder"),
        ("-m {folder} --vae {home}/none", "there is no VAE at"),
        ("-m {folder} --vae {home}", "holds no VAE"),
        ("-m {folder} --vae {lora}", "holds no VAE"),
        ("-m {folder} --vae {text}", "this is a text file"),
        ("-m {folder} --lora {home}/none", "there is no file"),
        ("-m {folder} --lora {lora}:nan", "is not a finite number"),
        ("-m {folder} --lora {lora}:inf", "is not a finite number"),
        ("-m {folder} --lora {lora}:", "is not a finite number"),
        ("-m {folder} --lora {text}:0.5", "this is a text file"),
        ("-m {folder} --embedding {home}/none", "there is no file"),
        ("-m {folder} --embedding {text}", "this is a text file"),
        ("-m {lora}", "is not a whole checkpoint but a LoRA: give it with --lora"),
        ("-m {text}", "this is a text file"),
        ("-m {config}", "down_block_types"),
        ("-m {refiner}", "is the SDXL refiner"),
    ],
)
def test_what_does_not_fit_is_one_line_before_a_tensor_is_read(
    case: Make,  # noqa: F811
    argv: str,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    one = case("sd1")
    (tmp_path / "t.safetensors").write_text("a text\n")
    save_file(lora(), tmp_path / "lora.safetensors")
    config, refiner = copy(one, tmp_path).rename(tmp_path / "config"), copy(one, tmp_path)
    edit(config / "unet" / "config.json", down_block_types=["SomeBlock2D", "DownBlock2D"])
    shutil.move(refiner / "text_encoder", refiner / "text_encoder_2")
    fill = {"folder": one.folder, "file": one.file, "home": tmp_path, "lora": tmp_path / "lora.safetensors"}
    fill |= {"text": tmp_path / "t.safetensors", "config": config, "refiner": refiner}
    monkeypatch.setattr("minisd.weights.load.load", lambda *args, **kwargs: pytest.fail("reached the model"))
    capsys.readouterr()  # what was said while the model was made
    assert main(["generate", "x", "--device", "cpu", *argv.format(**fill).split()]) == 2
    out, err = capsys.readouterr()
    assert out == "" and told in err and len(err.splitlines()) == 1


def lora() -> dict[str, Tensor]:
    """One of kohya's, of rank 4, for the first cross-attention of the tiny SD 1.x."""
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    draw = torch.Generator().manual_seed(0)
    down, up = torch.randn(4, 64, generator=draw), torch.randn(64, 4, generator=draw)
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(4.0)}


def test_a_lora_and_an_embedding_change_the_picture(case: Make, draw, tmp_path: Path) -> None:  # noqa: F811
    one = case("sd1")
    save_file(lora(), tmp_path / "some:lora.safetensors")
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    save_file({"emb_params": vectors}, tmp_path / "zz.safetensors")
    plain, _ = draw("-m", one.folder)
    whole, said = draw("-m", one.folder, "--lora", tmp_path / "some:lora.safetensors")
    assert "rank 4" in said
    half, _ = draw("-m", one.folder, "--lora", f"{tmp_path}/some:lora.safetensors:0.5")
    twice = ["--lora", f"{tmp_path}/some:lora.safetensors:0.25"] * 2
    again, _ = draw("-m", one.folder, *twice)
    none, _ = draw("-m", one.folder, "--lora", f"{tmp_path}/some:lora.safetensors:0")
    assert none.tobytes() == plain.tobytes()
    assert len({plain.tobytes(), whole.tobytes(), half.tobytes()}) == 3
    assert again.tobytes() == half.tobytes()
    word, said = draw("-m", one.folder, "--embedding", tmp_path / "zz.safetensors", "-n", "zz")
    bare, _ = draw("-m", one.folder, "-n", "zz")
    assert "called by the word zz" in said and word.tobytes() != bare.tobytes()


def test_the_weight_of_a_lora_stands_behind_the_last_colon(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b:0.5", "c:d.safetensors"):
        (tmp_path / name).touch()
    wanted = {
        "a.safetensors": ("a.safetensors", 1.0),
        "a.safetensors:0.8": ("a.safetensors", 0.8),
        "a.safetensors:-1": ("a.safetensors", -1.0),
        "b:0.5": ("b:0.5", 1.0),
        "b:0.5:2": ("b:0.5", 2.0),
        "c:d.safetensors": ("c:d.safetensors", 1.0),
        "c:d.safetensors:.5": ("c:d.safetensors", 0.5),
        "none": ("none", 1.0),
    }
    assert {text: parse_lora(text) for text in wanted} == wanted
    for text in ("a.safetensors:nan", "a.safetensors:-inf", "a.safetensors:1e999", "a.safetensors:", "C:\\x"):
        with pytest.raises(BadInput, match="is not a finite number"):
            parse_lora(text)


def test_a_misfit_keeps_its_lines_and_nothing_else_does() -> None:
    assert lines("x does not fit: taken for y\n  3 missing: a\n  likely cause: b") == (
        "x does not fit: taken for y\n  3 missing: a\n  likely cause: b"
    )
    assert lines("one\ntwo") == "one two"
    assert len(lines("x does not fit: y\n" + "z\n" * 50).splitlines()) == 6


@pytest.mark.parametrize("kind", ["safetensors", "ckpt"])
@pytest.mark.parametrize("family", ["sd1", "sd2-v", "sdxl"])
def test_info_tells_a_checkpoint_from_its_header(
    case: Make,  # noqa: F811
    family: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    one = case(family)
    tensors = {k: v.half() if k.startswith("model.") else v for k, v in load_file(one.file).items()}
    path = tmp_path / f"file.{kind}"
    if kind == "ckpt":
        torch.save({"state_dict": tensors, "global_step": 5}, path)
    else:
        save_file(tensors, path, metadata={"modelspec.title": "Tiny"})
    for module in (about, minisd.weights.single):
        monkeypatch.setattr(module, "read_tensors", lambda path: pytest.fail("read the tensors"))
    assert main(["info", str(path)]) == 0
    said = json.loads(capsys.readouterr().out)
    networks = minisd.weights.folder.modules(minisd.Config.from_dict(said["config"]))
    counts = {name: sum(p.numel() for p in networks[name].parameters()) for name in ("unet", "vae")}
    assert said["parameters"] | counts == said["parameters"]
    towers = [sum(p.numel() for p in tower.parameters()) for tower in networks["text"]]
    assert [said["parameters"][name] for name in ("text_encoder", "text_encoder_2")[: len(towers)]] == towers
    assert said["dtype"]["unet"] == "float16" and said["dtype"]["vae"] == "float32"
    assert said["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert said["metadata"] == ({"global_step": "5"} if kind == "ckpt" else {"modelspec.title": "Tiny"})
    words = {"sd1": "SD 1.x (", "sd2-v": "SD 2.x (", "sdxl": "SDXL ("}
    assert said["format"] == kind and said["family"].startswith(words[family])
    assert said["left_aside"]["tensors"] > 0 and bool(said["notes"]) == (family == "sd2-v")


def test_info_tells_a_folder_from_its_headers(case: Make, monkeypatch, capsys) -> None:  # noqa: F811
    one = case("sdxl")
    monkeypatch.setattr("minisd.weights.diffusers.read_tensors", lambda path: pytest.fail("read the tensors"))
    assert main(["info", str(one.folder)]) == 0
    said = json.loads(capsys.readouterr().out)
    parts = {"text_encoder": one.pipe.text_encoder, "text_encoder_2": one.pipe.text_encoder_2}
    parts |= {"unet": one.pipe.unet, "vae": one.pipe.vae}
    assert said["parameters"] == {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert set(said["dtype"].values()) == {"float32"} and said["prediction"] == "eps"
    name = "unet/diffusion_pytorch_model.safetensors"
    assert said["sha256"][name] == hashlib.sha256((one.folder / name).read_bytes()).hexdigest()
    assert said["config"]["unet"]["context_dim"] == 128


def test_info_tells_what_else_a_file_is(case: Make, vaes: dict[str, Path], tmp_path: Path, capsys) -> None:  # noqa: F811
    wide = {k: torch.zeros(4, 768) if "down" in k else v for k, v in lora().items()}
    save_file(wide, tmp_path / "lora.safetensors", metadata={"ss_network_dim": "4"})
    save_file({"emb_params": torch.zeros(2, 768)}, tmp_path / "word.safetensors")
    kinds = {}
    for path in (tmp_path / "lora.safetensors", tmp_path / "word.safetensors", vaes["bare.safetensors"]):
        assert main(["info", str(path)]) == 0
        kinds[path.stem] = json.loads(capsys.readouterr().out)
    found = kinds["lora"]
    assert (found["family"], found["rank"], found["context"]) == ("SD 1.x", 4, 768)
    assert found["layers"] == {"unet": 1, "text_encoder": 0} and found["metadata"] == {"ss_network_dim": "4"}
    assert "textual inversion" in kinds["word"]["kind"] and kinds["word"]["parameters"] == 2 * 768
    assert "a VAE alone: give it with --vae" in kinds["bare"]["kind"]
    (tmp_path / "page.ckpt").write_text("<!DOCTYPE html><title>Sign in</title>")
    assert main(["info", str(tmp_path / "page.ckpt")]) == 2
    assert "web page" in capsys.readouterr().err


def test_the_library_says_nothing_unless_asked(case: Make, capsys) -> None:  # noqa: F811
    minisd.load(case("sd1").folder)
    assert capsys.readouterr() == ("", "") and logging.getLogger("minisd").handlers == []
