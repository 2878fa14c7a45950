"""Textual inversion: prompts with a trigger word draw what diffusers draws with load_textual_inversion.

The oracle is a tiny whole pipeline. diffusers expands a word of three vectors to three tokens, minisd to three ids.
"""

import logging
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import chain
from pathlib import Path

import pytest
import torch
from oracles import TRUE, deviation
from safetensors.torch import save_file
from test_folders import Case, case, latents  # noqa: F401  (case is a fixture)
from torch import Tensor, nn

from minisd.pipeline import Model, generate
from minisd.text.chunks import lay_out
from minisd.weights.embeddings import add_embedding, read
from minisd.weights.load import load
from minisd.weights.lora import load_loras, unload

PROMPTS = {"prompt": "a red <cat-toy> on a <CAT-toy>, blue circle", "negative_prompt": "<cat-toy>"}
SIZE = {"height": 16, "width": 16}


def vectors(n: int, seed: int = 0, wide: int = 64) -> Tensor:
    return torch.randn(n, wide, generator=torch.Generator().manual_seed(seed))


def written(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, path)
    return path


def a1111(path: Path, tensor: Tensor, name: str | None = "<cat-toy>", module: bool = False) -> Path:
    """As AUTOMATIC1111 (a plain dict) and the original code (a module's) write a .pt."""
    held = nn.ParameterDict({"*": nn.Parameter(tensor)}) if module else {"*": tensor}
    tokens = {"*": torch.tensor(265)} if module else {"*": 265}
    data = {"string_to_token": tokens, "string_to_param": held, "step": 1500, "sd_checkpoint": None}
    torch.save(data | ({"name": name} if name else {}), path)
    return path


@pytest.fixture
def model(case: Callable[[str], Case]) -> Model:  # noqa: F811
    return load(case("sd1").folder, dtype="fp32")


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_trigger_draws_what_diffusers_draws(
    case: Callable[[str], Case],  # noqa: F811
    family: str,
    count: int,
    tmp_path: Path,
) -> None:
    one = case(family)
    pipe = deepcopy(one.pipe)  # its tokenizer and its encoder grow
    ours = load(one.folder, dtype="fp32")
    towers = [("clip_l", vectors(count)), ("clip_g", vectors(count, 1))][: len(one.config.text)]
    if family == "sdxl":
        path = written(tmp_path / "both.safetensors", dict(towers))
        pipe.load_textual_inversion(
            {"": towers[1][1]}, token="<cat-toy>", tokenizer=pipe.tokenizer_2, text_encoder=pipe.text_encoder_2
        )
    else:
        path = written(tmp_path / "learned_embeds.safetensors", {"<cat-toy>": towers[0][1]})
    pipe.load_textual_inversion({"": towers[0][1]}, token="<cat-toy>")
    assert add_embedding(ours, path, "<cat-toy>" if family == "sdxl" else None) == "<cat-toy>"
    options = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent"}
    lower = {k: v.lower() for k, v in PROMPTS.items()}  # diffusers' tokens heed the case
    wanted = pipe(**lower, latents=latents(one), **SIZE, **options).images
    drawn = generate(ours, **PROMPTS, latents=latents(one), output="latent", steps=2, cfg_scale=4.0, **SIZE)
    assert deviation(drawn, wanted) < 1e-5
    theirs = [getattr(pipe, name) for name in ("tokenizer", "tokenizer_2") if hasattr(pipe, name)]
    for mine, other in zip(ours.tokenizers, theirs, strict=True):
        for text in lower.values():
            expanded = pipe.maybe_convert_prompt(text, other)
            assert mine.frame(mine.content(text)) == other(expanded, padding="max_length", truncation=True).input_ids
    plain = load(one.folder, dtype="fp32")
    assert deviation(generate(plain, **PROMPTS, latents=latents(one), output="latent", steps=2, **SIZE), wanted) > 1e-3


LAYOUTS = {
    "named.safetensors": lambda p, t: written(p, {"<cat-toy>": t}),
    "<cat-toy>.safetensors": lambda p, t: written(p, {"emb_params": t}),
    "dict.pt": lambda p, t: a1111(p, t),
    "module.pt": lambda p, t: a1111(p, t, module=True),
    "<cat-toy>.pt": lambda p, t: a1111(p, t, name=None),
    "learned_embeds.bin": lambda p, t: torch.save({"<cat-toy>": nn.Parameter(t)}, p) or p,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_same_vectors(model: Model, name: str, tmp_path: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "minisd")
    before, rows = model.config, vectors(2)
    size = before.text[0].vocab_size
    table = model.text[0].token_embedding.weight.clone()
    caplog.clear()
    assert add_embedding(model, LAYOUTS[name](tmp_path / name, rows)) == "<cat-toy>"
    assert torch.equal(model.text[0].token_embedding.weight, torch.cat([table, rows]))
    assert model.config == before and model.origin["embeddings"] == "<cat-toy>"
    assert model.tokenizers[0].content("<cat-toy>") == [size, size + 1]
    assert len(caplog.records) == 1 and "2 vectors, called by the word <cat-toy>" in caplog.text


def test_one_vector_may_stand_alone_and_a_word_may_be_given(model: Model, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"<cat-toy>": vectors(1)[0].half()})
    assert add_embedding(model, path, "MyStyle 2") == "MyStyle 2"
    size = model.config.text[0].vocab_size
    plain = model.tokenizers[0].plain
    assert model.tokenizers[0].content("a mystyle 2, red") == [*plain("a"), size, *plain(", red")]
    assert model.text[0].token_embedding.weight.dtype == torch.float32


def split(model: Model, *words: tuple[str, int], home: Path) -> Callable[[str], list]:
    """Add embeddings and return a tokenizer that shows their ids by word, other ids as they are."""
    for i, (word, count) in enumerate(words):
        add_embedding(model, written(home / f"{i}.safetensors", {"x": vectors(count)}), word)
    tokenizer, size = model.tokenizers[0], model.config.text[0].vocab_size

    def show(text: str) -> list:
        ids = tokenizer.content(text)
        return [piece if i >= size else i for i, piece in zip(ids, tokenizer.pieces(ids), strict=True)]

    return show


def test_only_whole_words_count(model: Model, tmp_path: Path) -> None:
    words = (("zorp", 1), ("<zorp>", 2), ("zorp-x", 1), ("ünzig", 1))
    plain = model.tokenizers[0].plain
    show = split(model, *words, home=tmp_path)
    zorp, toy = ["zorp</w>"], ["<zorp></w>", "<zorp>_1</w>"]
    assert show("zorp") == show("ZORP") == show(" \t zorp\n") == zorp
    assert show("a zorp, (zorp) red") == [*plain("a"), *zorp, *plain(", ("), *zorp, *plain(") red")]
    for text in ("zorps", "azorp", "zorp_1", "zörp", "<zor p>", "zorp9"):
        assert show(text) == plain(text)
    assert show("zorp's") == [*zorp, *plain("'s")]
    assert show("a<ZORP>b <zorp><zorp>") == [*plain("a"), *toy, *plain("b"), *toy, *toy]  # a sign ends it anywhere
    assert show("zorp-x zorp-y") == ["zorp-x</w>", *zorp, *plain("-y")]  # the longest
    assert show("ÜNZIG") == ["ünzig</w>"]
    assert show("") == [] and show("a red circle") == plain("a red circle")


def test_special_tokens_stay_plain_text(model: Model, tmp_path: Path) -> None:
    tokenizer, text = model.tokenizers[0], model.config.text[0]
    hard = ["<|endoftext|>", "a <|startoftext|> b", "<|endof<zorp>text|>", "<zorp><|endoftext|><zorp>", "\ud800 zorp"]
    split(model, ("<zorp>", 1), ("endoftext", 1), home=tmp_path)
    for words in hard:
        ids = tokenizer.content(words)
        assert text.bos_id not in ids and text.eos_id not in ids
    assert tokenizer.content("<zorp>x<|endoftext|>").count(text.vocab_size) == 1
    (row,) = tokenizer(["<zorp> red"]).tolist()
    assert row[:2] == [text.bos_id, text.vocab_size] and row[-1] == text.pad_id and len(row) == text.max_length


def test_new_ids_do_not_lead_the_pooling_astray(case: Callable[[str], Case], tmp_path: Path) -> None:  # noqa: F811
    """They are higher than EOS: a search for the highest id would take their place for the end."""
    model = load(case("sdxl").folder, dtype="fp32")
    tower, tokenizer = model.text[1], model.tokenizers[1]
    tower.final_norm.weight.data.fill_(1.0)
    add_embedding(model, written(tmp_path / "e.safetensors", {"clip_l": vectors(2), "clip_g": vectors(2, 1)}), "<e>")
    ids = tokenizer(["a <e> red circle"])
    end = ids[0].tolist().index(tower.config.eos_id)
    assert ids[0].argmax() < end
    seen = []
    tower.projection.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        tower(ids)
        x = tower.token_embedding(ids) + tower.position_embedding.weight
        for block in tower.blocks:
            x = block(x)
    assert torch.equal(seen[0], tower.final_norm(x)[:, end])


def test_an_embedding_is_never_cut_in_two(model: Model, tmp_path: Path) -> None:
    add_embedding(model, written(tmp_path / "x.safetensors", {"<zorp>": vectors(3)}))
    room, size = model.tokenizers[0].room, model.config.text[0].vocab_size
    for before in range(2 * room):
        prompt = "a " * before + "<ZORP> red"
        blocks = lay_out(model.tokenizers, prompt, "off", "chunk").blocks
        chunks = [[id for unit in block.units for id in unit.ids[0]] for block in blocks]
        assert [*chain(*chunks)] == model.tokenizers[0].content(prompt) and max(map(len, chunks)) <= room
        (home,) = [chunk for chunk in chunks if size in chunk]
        assert home[home.index(size) :][:3] == [size, size + 1, size + 2]
    report = lay_out(model.tokenizers, "a " * (room - 1) + "<zorp> red", "off", "truncate").report
    assert report.dropped == ("<zorp>", "red") and report.cut == ()


def refusal(model: Model, path: Path, trigger: str | None = None) -> str:
    """One line, and nothing has changed."""
    before = [tower.token_embedding.weight for tower in model.text]
    triggers = [tokenizer.triggers for tokenizer in model.tokenizers]
    with pytest.raises(ValueError) as error:
        add_embedding(model, path, trigger)
    assert all(tower.token_embedding.weight is w for tower, w in zip(model.text, before, strict=True))
    assert triggers == [tokenizer.triggers for tokenizer in model.tokenizers]
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_trigger_that_is_taken_is_refused(model: Model, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"<Zorp>": vectors(1)})
    add_embedding(model, path)
    for trigger in (None, "<zorp>", " <ZORP> "):
        assert "is taken by another embedding: choose another" in refusal(model, path, trigger)
    own = next(t for t in model.tokenizers[0].bpe.get_vocab() if t.endswith("</w>") and t[:-4].isalpha() and len(t) > 6)
    for trigger in ("a", "A", own.removesuffix("</w>")):
        assert f"the trigger word {trigger!r} is one of the model's own words" in refusal(model, path, trigger)
    for trigger in ("<|endoftext|>", "x<|StartOfText|>"):
        assert "holds a special token" in refusal(model, path, trigger)
    for trigger in (" ", "a\0b", "zorp" * 26, "a\nb"):
        assert "is no trigger word" in refusal(model, path, trigger)
    add_embedding(model, path, "<zorp2>")
    size = model.config.text[0].vocab_size
    assert model.tokenizers[0].content("<zorp2><zorp>") == [size + 1, size]


def damaged(home: Path) -> Iterator[tuple[Path, str]]:
    """Files and what is said of them."""
    tensors = {
        "nan": ({"emb_params": torch.full((1, 64), float("nan"))}, "is damaged: it holds NaN or infinity"),
        "whole": ({"emb_params": torch.ones(1, 64, dtype=torch.int32)}, "does not hold vectors but (1, 64)"),
        "none": ({"emb_params": torch.ones(0, 64)}, "does not hold vectors but (0, 64)"),
        "deep": ({"emb_params": torch.ones(1, 1, 64)}, "does not hold vectors but (1, 1, 64)"),
        "point": ({"emb_params": torch.ones(())}, "does not hold vectors but ()"),
        "wide": ({"emb_params": torch.ones(1, 48)}, "is for another model (48), the model's text encoder is 64 wide"),
        "sd2": ({"emb_params": torch.ones(1, 1024)}, "this embedding is for SD 2.x (1024), the model's text encoder"),
        "many": ({"emb_params": torch.ones(19, 64)}, "holds 19 vectors, a prompt has room for 18"),
        "other": ({"a": torch.ones(1, 64), "b": torch.ones(64)}, "is not a textual inversion embedding: it holds a, b"),
        "half": ({"clip_l": torch.ones(1, 64), "b": torch.ones(64)}, "is not a textual inversion embedding"),
        "pair": ({"clip_l": torch.ones(1, 64), "clip_g": torch.ones(1, 64)}, "this embedding is for SDXL (64 and 64)"),
    }
    for name, (content, told) in tensors.items():
        yield written(home / f"{name}.safetensors", content), told
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "name": "x"}, home / "empty.pt")
    yield home / "empty.pt", "holds no vectors"
    yield home / "missing.pt", "No such file"


def test_what_is_no_embedding_for_this_model_is_refused(model: Model, tmp_path: Path) -> None:
    for path, told in damaged(tmp_path):
        message = refusal(model, path, "<zorp>")
        assert told in message and str(path) in message, message


def test_published_families_are_told_apart(tmp_path: Path) -> None:
    """The true widths; no network is built."""
    one = written(tmp_path / "one.safetensors", {"emb_params": torch.zeros(8, 768)})
    two = written(tmp_path / "two.safetensors", {"clip_l": torch.zeros(8, 768), "clip_g": torch.zeros(8, 1280)})
    uneven = written(tmp_path / "three.safetensors", {"clip_l": torch.zeros(8, 768), "clip_g": torch.zeros(7, 1280)})
    assert [len(t) for t in read(one, TRUE["sd15"])[1]] == [8]
    assert [t.shape[1] for t in read(two, TRUE["sdxl"])[1]] == [768, 1280]
    cases = [
        (one, "sd21", "this embedding is for SD 1.x (768), the model's text encoder is 1024 wide"),
        (one, "sdxl", "this embedding is for SD 1.x (768), the model's text encoders are 768 and 1280 wide"),
        (two, "sd15", "this embedding is for SDXL (768 and 1280), the model's text encoder is 768 wide"),
        (uneven, "sdxl", "holds 8 vectors for one tower, 7 for the other"),
    ]
    for path, family, told in cases:
        with pytest.raises(ValueError) as error:
            read(path, TRUE[family])
        assert told in str(error.value) and "\n" not in str(error.value)


def test_a_lora_and_an_embedding_do_not_disturb_each_other(model: Model, tmp_path: Path) -> None:
    stem = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    lora = {f"{stem}.lora_down.weight": vectors(1), f"{stem}.lora_up.weight": vectors(96, 1, 1)}
    path, row = written(tmp_path / "l.safetensors", lora), written(tmp_path / "e.safetensors", {"<zorp>": vectors(2)})
    load_loras(model, [(path, 1.0)])
    add_embedding(model, row)
    table, merged = model.text[0].token_embedding.weight.clone(), model.text[0].blocks[0].fc1.weight.clone()
    unload(model)
    assert torch.equal(model.text[0].token_embedding.weight, table)
    load_loras(model, [(path, 1.0)])
    assert torch.equal(model.text[0].blocks[0].fc1.weight, merged)
