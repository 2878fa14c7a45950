"""Training: the tokenizer's layout, each stage on a tiny recipe, and runs that go on exactly where they stopped."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import minisd
from minisd.config import Config
from minisd.nn.clip import CLIPText
from minisd.text.tokenizer import Tokenizer
from minisd.train import stages
from minisd.train.export import export, keep_clip
from minisd.train.job import Run
from minisd.train.loop import run
from minisd.train.recipe import Recipe
from minisd.train.stages import STAGES
from minisd.train.start import start_from

ROOT = Path(__file__).parent.parent
SHORT = {"batch": 4, "save_every": 2, "grid_every": 4, "warmup": 2, "autocast": False}


def tiny_recipe() -> Recipe:
    recipe = Recipe.load(ROOT / "configs/train/shapes.toml")
    return dataclasses.replace(
        recipe,
        tokenizer=dataclasses.replace(recipe.tokenizer, captions=200),
        clip=dataclasses.replace(recipe.clip, steps=4, width=32, layers=1, **SHORT),
        vae=dataclasses.replace(recipe.vae, steps=4, **SHORT),
        unet=dataclasses.replace(recipe.unet, steps=4, latents=8, **SHORT),
        judge=dataclasses.replace(recipe.judge, steps=4, widths=(8, 16, 24), feature=16, **SHORT),
    )


def tiny_config() -> Config:
    data = Config.load(ROOT / "configs/shapes.json").to_dict()
    data["text"][0] |= {"width": 32, "layers": 2, "hidden": 64, "projection": 16}
    data["unet"] |= {"channels": [16, 32], "depth": [0, 1], "heads": [1, 2], "context_dim": 32, "groups": 8}
    data["vae"] |= {"channels": [8, 8, 16], "groups": 4}
    data["defaults"] |= {"steps": 2}
    return Config.from_dict(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """All stages of a tiny model, run once."""
    job = Run(tiny_recipe(), tmp_path_factory.mktemp("run"), tiny_config(), torch.device("cpu"))
    for name in STAGES:
        if name != "lora":
            STAGES[name](job)
    return job


def test_every_stage_leaves_its_files(finished: Run) -> None:
    for stage in ("clip", "vae", "unet"):
        rows = [json.loads(line) for line in (finished.folder / f"{stage}.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        assert (finished.folder / f"{stage}-000004.png").exists()
    index = json.loads((finished.folder / "model/index.json").read_text())
    assert set(index["sha256"]) == {"config.json", "model.safetensors", "tokenizer/merges.txt", "tokenizer/vocab.json"}
    assert not list(finished.folder.rglob("*.tmp"))


def test_an_export_is_the_same_bytes_each_time(finished: Run, tmp_path: Path) -> None:
    """Words beside the tensors too: a writer that hashes them puts them in another order now and then."""
    (tmp_path / "tokenizer").symlink_to(finished.folder / "tokenizer")
    for name in ("clip", "vae", "unet"):
        (tmp_path / f"{name}.safetensors").symlink_to(finished.folder / f"{name}.safetensors")
    for _ in range(12):
        export(tmp_path, finished.config, tmp_path / "model")
        keep_clip(tmp_path, finished.config.text[0], tmp_path / "judge")
        for name in ("model/model.safetensors", "judge/clip.safetensors"):
            assert (tmp_path / name).read_bytes() == (finished.folder / name).read_bytes()


def test_the_exported_model_draws(finished: Run) -> None:
    model = minisd.load(finished.folder / "model", device="cpu")
    assert model.config.vae.scale_factor != 1.0
    first, again = (minisd.generate(model, "a red circle", seed=5, output="tensor") for _ in range(2))
    assert first.shape == (1, 3, 64, 64)
    assert torch.equal(first, again)


def test_latents_have_unit_variance(finished: Run) -> None:
    model = minisd.load(finished.folder / "model", device="cpu")
    mean, _ = model.vae.encode(finished.examples.pictures(range(64)))
    assert mean.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("stage", ["clip", "vae", "unet"])
def test_a_run_cut_off_goes_on_exactly(finished: Run, tmp_path: Path, stage: str, monkeypatch) -> None:
    """Stopped after step 2 and resumed: weights, EMA and optimizer equal those of the unbroken run bit for bit."""
    needs = {"unet": ["clip.safetensors", "vae.safetensors"]}.get(stage, [])
    (tmp_path / "tokenizer").symlink_to(finished.folder / "tokenizer")
    for name in ["config.json", *needs]:
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    job = dataclasses.replace(finished, folder=tmp_path)

    class Cut(Exception):
        pass

    def cut_at_step_three(stage_object, out, device, resume, *rest) -> None:
        steps, original = [], stage_object.loss

        def loss(*prepared):
            if len(steps) == 3 and not resume:
                raise Cut
            steps.append(prepared)
            return original(*prepared)

        stage_object.loss = loss
        run(stage_object, out, device, resume, *rest)

    monkeypatch.setattr(stages, "run", cut_at_step_three)
    with pytest.raises(Cut):
        STAGES[stage](job)
    STAGES[stage](dataclasses.replace(job, resume=True))
    whole, pieces = (load_file(folder / f"{stage}.safetensors") for folder in (finished.folder, tmp_path))
    assert whole.keys() == pieces.keys()
    assert [key for key in whole if not torch.equal(whole[key], pieces[key])] == []


def test_each_step_draws_its_clip_skip(finished: Run, tmp_path: Path, monkeypatch) -> None:
    """The skips asked for, all of them, are what the text tower is told; with none it is the model's own."""
    (tmp_path / "tokenizer").symlink_to(finished.folder / "tokenizer")
    for name in ("config.json", "clip.safetensors", "vae.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    told: list[int | None] = []
    forward = CLIPText.forward

    def spy(self, ids, clip_skip=None, pooled=None):
        told.append(clip_skip)
        return forward(self, ids, clip_skip, pooled)

    monkeypatch.setattr(CLIPText, "forward", spy)
    for skips in ((), (1, 2)):
        told.clear()
        unet = dataclasses.replace(finished.recipe.unet, steps=12, grid_every=99, clip_skips=skips)
        job = dataclasses.replace(finished, recipe=dataclasses.replace(finished.recipe, unet=unet), folder=tmp_path)
        STAGES["unet"](job)
        assert set(told[:12]) == (set(skips) or {None})
        (tmp_path / "unet.safetensors").unlink()


def test_a_clip_skip_that_is_not_there_is_refused_at_once(finished: Run, tmp_path: Path) -> None:
    """And not at the step that happens to draw it."""
    (tmp_path / "tokenizer").symlink_to(finished.folder / "tokenizer")
    for name in ("config.json", "clip.safetensors", "vae.safetensors"):
        (tmp_path / name).write_bytes((finished.folder / name).read_bytes())
    unet = dataclasses.replace(finished.recipe.unet, clip_skips=(1, 9))
    job = dataclasses.replace(finished, recipe=dataclasses.replace(finished.recipe, unet=unet), folder=tmp_path)
    with pytest.raises(ValueError, match="9"):
        STAGES["unet"](job)
    assert not (tmp_path / "unet.jsonl").exists()


def test_a_checkpoint_is_never_overwritten_by_accident(finished: Run) -> None:
    with pytest.raises(FileExistsError, match="--resume"):
        STAGES["vae"](finished)


def test_a_model_can_be_trained_on(finished: Run, tmp_path: Path) -> None:
    """A stage starts at step 0 from the model's own weights; what is not trained is exported as it was."""
    start_from(str(finished.folder / "model"), tmp_path)
    with pytest.raises(FileExistsError, match="--init"):
        start_from(str(finished.folder / "model"), tmp_path)
    model = load_file(finished.folder / "model/model.safetensors")
    STAGES["unet"](dataclasses.replace(finished, folder=tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "unet.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    STAGES["export"](dataclasses.replace(finished, folder=tmp_path))
    after = load_file(tmp_path / "model/model.safetensors")
    assert model.keys() == after.keys()
    moved = {name.partition(".")[0] for name in model if not torch.equal(model[name], after[name])}
    assert moved == {"unet", "text"}  # text_lr is above 0 here
    far = max((after[k].float() - model[k].float()).abs().max() for k in model)
    assert 0 < far < 0.1


def test_vocabulary_has_clips_own_layout(finished: Run) -> None:
    folder = finished.folder / "tokenizer"
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(vocab, key=vocab.get)
    assert list(vocab.values()) == list(range(len(vocab)))
    assert tokens[:3] == ["!", '"', "#"]
    assert all(a + "</w>" == b for a, b in zip(tokens[:256], tokens[256:512], strict=True))
    assert tokens[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert merges[0].startswith("#version")
    assert ["".join(line.split()) for line in merges[1:]] == tokens[512:-2]


def test_tokenizer_keeps_every_text(finished: Run) -> None:
    tokenizer = Tokenizer(finished.folder / "tokenizer", finished.config.text[0])
    eos = finished.config.text[0].eos_id
    for text in ["zebra qqq", "héllo 🙂", "Z", "a large red circle", "١ 火"]:
        ids = tokenizer.content(text)
        assert eos not in ids, text
        assert tokenizer.bpe.decode(ids) == text.lower()
    assert all(
        len(tokenizer.content(word)) == 1
        for caption in finished.examples.captions(range(50), 0)
        for word in caption.split()
        if word.isalpha()
    )
    typed = tokenizer(["a <|endoftext|> b \ud800", ""])
    assert typed.shape == (2, 32)
    assert (typed[0] == eos).sum() == 32 - 1 - len(tokenizer.content("a <|endoftext|> b \ud800"))
    assert typed[1].tolist() == [finished.config.text[0].bos_id] + [eos] * 31


def test_tokenizer_refuses_what_does_not_fit(finished: Run, tmp_path: Path) -> None:
    config = finished.config.text[0]
    with pytest.raises(ValueError, match=r"lacks vocab\.json, merges\.txt"):
        Tokenizer(tmp_path, config)
    with pytest.raises(ValueError, match=r"tokens, the text encoder"):
        Tokenizer(finished.folder / "tokenizer", dataclasses.replace(config, vocab_size=config.vocab_size + 1))


@pytest.mark.parametrize("line", ["stepz = 3", "steps = 0", 'steps = "many"', "lr = nan"])
def test_recipes_refuse_what_they_do_not_know(tmp_path: Path, line: str) -> None:
    text = (ROOT / "configs/train/shapes.toml").read_text()
    key = line.split()[0]
    lines = [row for row in text.split("[vae]")[1].splitlines() if not row.startswith(f"{key} ")]
    path = tmp_path / "recipe.toml"
    path.write_text(text.split("[vae]")[0] + "[vae]\n" + line + "\n" + "\n".join(lines))
    with pytest.raises(ValueError, match=key):
        Recipe.load(path)
