"""The hub without the hub: a cache in its layout on disk, and what would be asked for online. No network is used."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from safetensors.torch import save_file
from test_folders import Case, case, configs, same  # noqa: F401  (a fixture)
from tiny_world import shape_captions

import minisd
from minisd.cli import main
from minisd.config import Config
from minisd.text.tokenizer import SPECIAL
from minisd.train.tokenizer import train_tokenizer
from minisd.weights import hub
from minisd.weights.find import is_hub_id, locate
from minisd.weights.folder import modules
from minisd.weights.ldm import to_file

Make = Callable[[str], Case]
SHA = "0123456789abcdef0123456789abcdef01234567"
XL = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that must not be asked unless a test says what it answers."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail("asked the network")

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", refuse)
    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.repo_info", refuse)
    return folder


def put(cache: Path, repo: str, source: Path, inside: str = "") -> Path:
    """A repository as the hub's library keeps it: blobs, and links to them in a snapshot."""
    home = cache / f"models--{repo.replace('/', '--')}"
    snapshot = home / "snapshots" / SHA
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(SHA)
    (home / "blobs").mkdir()
    for i, path in enumerate(p for p in sorted(source.rglob("*")) if p.is_file()):
        link = snapshot / inside / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, home / "blobs" / f"blob{i}")
        link.symlink_to(home / "blobs" / f"blob{i}")
    return snapshot


def test_a_model_of_the_cache_is_loaded_offline(case: Make, cache: Path, tmp_path, monkeypatch, capsys) -> None:  # noqa: F811
    one = case("sd1")
    one.schedule("ddim")
    put(cache, "owner/tiny", one.folder)
    model = minisd.load("owner/tiny", "cpu", "fp32", offline=True)
    assert same(model, minisd.load(one.folder, "cpu", "fp32"))
    assert model.origin["model"] == "owner/tiny"
    monkeypatch.chdir(tmp_path)
    flags = ["-m", "owner/tiny", "--offline", "--steps", "1", "-W", "16", "-H", "16", "-o", "a.png"]
    assert main(["generate", "x", *flags]) == 0
    assert "owner/tiny: SD 1.x (context 64, eps)" in capsys.readouterr().err
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # the same by the library's own switch
    assert same(minisd.load("owner/tiny", "cpu", "fp32", revision="main"), model)


def test_minisds_own_folder_can_lie_on_the_hub(cache: Path, tiny_model: Path) -> None:
    put(cache, "owner/own", tiny_model)
    assert same(minisd.load("owner/own", "cpu", offline=True), minisd.load(tiny_model, "cpu"))


REPO = [  # as published: two variants, other libraries' files, single files beside the folders
    *("README.md", "model_index.json", "sd_xl_base.safetensors", "weights.ckpt", "scheduler/scheduler_config.json"),
    *("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer_config.json", "text_encoder/config.json"),
    *("text_encoder/model.safetensors", "text_encoder/model.fp16.safetensors", "text_encoder/pytorch_model.bin"),
    *("unet/config.json", "unet/diffusion_pytorch_model.safetensors.index.json"),
    *("unet/diffusion_pytorch_model-00001-of-00002.safetensors", "unet/diffusion_flax_model.msgpack"),
    *("unet/diffusion_pytorch_model-00002-of-00002.safetensors", "unet/model.onnx", "unet/run.py"),
    *("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin.index.json"),
    *("unet/diffusion_pytorch_model.non_ema.safetensors", "unet/diffusion_pytorch_model.fp16.bin"),
    *("vae/config.json", "vae/diffusion_pytorch_model.safetensors", "vae_1_0/config.json"),
    *("safety_checker/config.json", "safety_checker/model.safetensors", "vae_decoder/model.onnx"),
]
SMALL = {
    *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"),
    *("tokenizer/tokenizer_config.json", "text_encoder/config.json", "unet/config.json", "vae/config.json"),
    "unet/diffusion_pytorch_model.safetensors.index.json",
}
PLAIN = {
    *("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    *(f"unet/diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)),
}
FP16 = {
    *("text_encoder/model.fp16.safetensors", "vae/diffusion_pytorch_model.safetensors"),
    "unet/diffusion_pytorch_model.fp16.safetensors",
}


@pytest.mark.parametrize(
    ("variant", "weights", "wanted"),
    [(None, True, SMALL | PLAIN), ("fp16", True, SMALL | FP16), (None, False, SMALL)],
)
def test_only_a_models_own_files_are_asked_for(
    variant: str | None, weights: bool, wanted: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never .bin, .ckpt or code; one variant of each network, the plain one where it has no other."""
    asked = []

    def download(repo: str, **options: object) -> str:
        asked.append((repo, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: REPO)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.fetch("owner/name", "v1", variant, weights=weights) == tmp_path
    (repo, options), *more = asked
    assert not more and repo == "owner/name"
    assert options.keys() == {"revision", "allow_patterns"} and options["revision"] == "v1"
    assert set(options["allow_patterns"]) == wanted and len(options["allow_patterns"]) == len(wanted)


def test_generate_asks_for_small_files_first_and_not_for_weights_that_cannot_be_used(
    case: Make,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys,
) -> None:
    """A size that the model cannot draw is refused before gigabytes are fetched."""
    one, asked = case("sd1"), []
    small = shutil.copytree(one.folder, tmp_path / "small", ignore=shutil.ignore_patterns("*.safetensors"))
    names = [str(p.relative_to(one.folder)) for p in one.folder.rglob("*") if p.is_file()]

    def download(repo: str, **options: object) -> str:
        asked.append(options["allow_patterns"])
        return str(small)

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repo, revision: names)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert main(["generate", "x", "-m", "owner/name", "-W", "17"]) == 2
    assert "--width 17 is not a multiple of 2" in capsys.readouterr().err
    assert len(asked) == 1 and not any(name.endswith(".safetensors") for name in asked[0])


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["model.ckpt", "a.safetensors"], "no model_index.json: download one of a.safetensors, model.ckpt"),
        (["README.md"], "no model_index.json"),
        (["config.json", "model.safetensors"], "not a diffusers model"),
        (["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.bin"], "unet is not there as .safeten"),
    ],
)
def test_a_repository_without_a_model_is_told(names: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        hub.wanted(names, "owner/name", None, True)


def gated(kind: type[Exception]) -> Exception:
    """An error as the library raises it, without the HTTP answer that its constructor wants."""
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error.\n\nRepository Not Found for url: https://huggingface.co/api")
    return error


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (gated(errors.GatedRepoError), "is gated: accept its terms at https://huggingface.co/owner/name"),
        (gated(errors.RepositoryNotFoundError), "is not on the hub, or private"),
        (gated(errors.RevisionNotFoundError), "has no such revision"),
        (gated(errors.HfHubHTTPError), "cannot be reached (--offline takes"),
        (errors.HfHubHTTPError.__bases__[0]("name or service not known\nat all"), "cannot be reached (--offline takes"),
        (ConnectionError("refused"), "cannot be reached (--offline takes"),
        (errors.LocalEntryNotFoundError("nothing"), "the hub cannot be reached"),
        (errors.HFValidationError("Repo id must be so"), "Repo id must be so"),
    ],
)
def test_every_failure_of_the_hub_is_one_line_and_exit_2(error: Exception, told: str, monkeypatch, capsys) -> None:
    def fail(repo: str, revision: str | None) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "list_repo_files", fail)
    assert main(["generate", "x", "-m", "owner/name"]) == 2
    err = capsys.readouterr().err
    assert told in err and len(err.splitlines()) == 1


def test_what_is_not_in_the_cache_is_told_offline_without_torch(cache: Path) -> None:
    """In a process of its own: nothing has imported the library's parts before."""
    script = """if True:
        import sys
        from minisd.cli import main
        code = main(["generate", "x", "-m", "owner/name", "--offline"])
        sys.exit(f"{code} {'torch' in sys.modules}")
    """
    env = {**os.environ, "HF_HUB_CACHE": str(cache)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=env)
    err, state = done.stderr.splitlines()
    assert "not (whole) in the hub's cache" in err and "without --offline" in err and state == "2 False"


def test_without_the_library_the_extra_is_named(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert main(["generate", "x", "-m", "owner/name"]) == 2
    assert "pip install huggingface_hub" in capsys.readouterr().err


def test_what_is_a_hub_id_and_what_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert is_hub_id("owner/name") and is_hub_id("stable-diffusion-v1-5/stable-diffusion-v1-5") and is_hub_id(XL)
    for path in (
        "here/model",
        "name",
        "a/b/c",
        "/a/b",
        "./a",
        "../b",
        "a/",
        "models/x.safetensors",
        "a/b.ckpt",
        "a b/c",
    ):
        assert not is_hub_id(path)
    with pytest.raises(ValueError, match="a revision is for a model on the hub"):
        locate("here/model", revision="v1")


def vocabulary(folder: Path, size: int) -> Path:
    """A tokenizer folder of so many tokens; most of them never occur."""
    words = train_tokenizer(folder, shape_captions(50), merges=32)
    ids = json.loads((folder / "vocab.json").read_text())
    plain = [word for word in ids if word not in SPECIAL]
    more = [f"@@{i}" for i in range(size - words)]
    vocab = {word: i for i, word in enumerate([*plain, *more, *SPECIAL])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Single files whose text encoders have CLIP's number of tokens, and such a tokenizer."""
    home = tmp_path_factory.mktemp("published")
    paths = {"tokenizer": vocabulary(home / "tokenizer", hub.CLIP)}
    for family in ("sd1", "sdxl"):
        config = wide(configs(hub.CLIP)[family])
        save_file(to_file(modules(config).state_dict(), config), home / f"{family}.safetensors")
        paths[family] = home / f"{family}.safetensors"
    return paths


def wide(config: Config) -> Config:
    """Narrow rows, so that 49,408 of them are small. Heads are 64 wide in every family, so this is the least."""
    return replace(config, text=tuple(replace(tower, layers=1) for tower in config.text))


@pytest.mark.parametrize(("repo", "inside"), [("openai/clip-vit-large-patch14", ""), (XL, "tokenizer")])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_single_file_takes_its_tokenizer_from_the_cache(
    published: dict[str, Path], cache: Path, repo: str, inside: str, family: str
) -> None:
    put(cache, repo, published["tokenizer"], inside)
    model = minisd.load(published[family], "cpu", "fp32", offline=True)
    given = minisd.load(published[family], "cpu", "fp32", tokenizer=published["tokenizer"])
    for found, wanted in zip(model.tokenizers, given.tokenizers, strict=True):
        assert found(["a red circle"]).tolist() == wanted(["a red circle"]).tolist()
    pads = [tokenizer([""])[0, -1].item() for tokenizer in model.tokenizers]
    assert pads == [hub.CLIP - 1, 0][: len(pads)]  # OpenAI's tower pads with the end, OpenCLIP's with 0


def test_else_openais_is_downloaded_and_nothing_else(
    published: dict[str, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, real = [], huggingface_hub.snapshot_download

    def download(repo: str, **options: object) -> str:
        if options.get("local_files_only"):
            return real(repo, **options)
        asked.append((repo, tuple(options["allow_patterns"])))
        return str(published["tokenizer"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    minisd.load(published["sd1"], "cpu", "fp32")
    files = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
    assert asked == [("openai/clip-vit-large-patch14", files)]


def test_where_there_is_none_one_line_says_what_to_download(published: dict[str, Path], capsys) -> None:
    assert main(["generate", "x", "-m", str(published["sd1"]), "--offline", "-W", "16", "-H", "16"]) == 2
    err = capsys.readouterr().err
    assert "download vocab.json and merges.txt of openai/clip-vit-large-patch14" in err and "--tokenizer" in err
    assert len(err.splitlines()) == 1


def test_a_snapshot_without_the_files_is_passed_over(published: dict[str, Path], cache: Path, tmp_path: Path) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "config.json").write_text("{}")
    put(cache, "openai/clip-vit-large-patch14", tmp_path / "few")
    put(cache, XL, published["tokenizer"], "tokenizer")
    assert minisd.load(published["sd1"], "cpu", offline=True).tokenizers
