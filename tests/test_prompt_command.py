"""`minisd prompt`: what it says of a prompt is what `minisd generate` does with it, and it needs no weights."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file
from test_folders import Case, case  # noqa: F401  (case is a fixture)

import minisd
from minisd.cli import main
from minisd.settings import LONG_PROMPT_NAMES
from minisd.text.chunks import lay_out
from minisd.text.lint import lint

PROMPT = "a (red:1.3) circle, two small blue squares and a large green star, a white background, [grey]"


@pytest.fixture
def ask(tiny_model: Path, capsys: pytest.CaptureFixture):
    """What the command answers of the tiny model, as data."""

    def run(prompt: str, *flags: str) -> dict:
        assert main(["prompt", prompt, "--model", str(tiny_model), "--json", *flags]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return run


@pytest.mark.parametrize("way", LONG_PROMPT_NAMES[:3])
def test_the_table_is_what_the_encoder_reads(ask, tiny_model: Path, way: str) -> None:
    """Row by row the ids that go into the text encoder, with their weights."""
    model = minisd.load(tiny_model, device="cpu")
    seen = []
    model.text[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.encode([PROMPT], long_prompt=way, emphasis="no-norm")
    told = ask(PROMPT, "--long-prompt", way, "--emphasis", "no-norm")["prompt"]
    rows = seen[0].tolist()
    assert told["chunks"] == len(rows) and told["room"] == model.tokenizers[0].room
    for token in told["table"]:
        assert rows[token["chunk"] - 1][token["position"]] == token["id"]
        assert token["piece"] == model.tokenizers[0].pieces([token["id"]])[0]
    length = {token["chunk"]: token["position"] for token in told["table"]}
    pad = model.config.text[0].pad_id
    assert all(set(row[length[i] + 1 :]) <= {pad} for i, row in enumerate(rows, start=1))
    weights = {piece: {t["weight"] for t in told["table"] if t["piece"] == piece} for piece in ("red</w>", "a</w>")}
    assert weights in ({"red</w>": {1.3}, "a</w>": {1.0}}, {"red</w>": set(), "a</w>": {1.0}})
    assert {t["weight"] for t in told["table"]} >= {1.0, 1.3}


def test_breaks_and_their_reasons(ask) -> None:
    told = ask("a " * 10 + ", a star b BREAK two rings", "-n", "a " * 20)
    assert [(b["chunk"], b["begins_with"], b["why"]) for b in told["prompt"]["breaks"]] == [
        (2, "a", "the chunk before is full, and this stood behind its last comma"),
        (3, told["prompt"]["breaks"][1]["begins_with"], "BREAK"),
    ]
    assert told["prompt"]["moved"][0] == "a" and told["prompt"]["dropped"] == []
    assert [b["why"] for b in told["negative_prompt"]["breaks"]] == ["the chunk before is full"]
    assert ask("a red circle")["prompt"]["breaks"] == []
    window = ask("a " * 20, "--long-prompt", "window")["prompt"]
    assert [b["why"] for b in window["breaks"]] == ["windows overlap, what two of them read is mixed"]


def test_dropped_words_are_named_for_both_prompts(ask) -> None:
    told = ask("a " * 14 + "zebra", "-n", "a " * 14 + "giraffe", "--long-prompt", "truncate")
    assert told["prompt"]["dropped"] == ["zebra"] and told["negative_prompt"]["dropped"] == ["giraffe"]
    assert any("dropped: 'giraffe'" in slip for slip in told["negative_prompt"]["lint"])
    for way, said in (("summarize", "asks the text encoder"), ("error", "refuses it")):
        assert any(said in slip for slip in ask("a " * 15, "--long-prompt", way)["prompt"]["lint"])
        assert ask("a red circle", "--long-prompt", way)["prompt"]["lint"] == []


def test_the_page_for_people(tiny_model: Path, capsys: pytest.CaptureFixture) -> None:
    argv = ["prompt", "a (red:1.7) ci\u0301rcle 😀 (x BREAK y", "-n", "\ud800", "-m", str(tiny_model)]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert err == ""
    head = r"prompt: \d+ tokens in 2 chunks of 14 \(emphasis a1111\)\nchunk  position +id +weight  piece\n"
    assert re.match(head, out)
    assert re.search(r"^ +1 +0 +\d+ +1  <\|startoftext\|>$", out, re.M)
    assert re.search(r"^ +1 +2 +\d+ +1\.7  \w+(</w>)?$", out, re.M)
    for note in ("chunk 2 begins with 'y': BREAK", "is never closed", "BREAK inside brackets", "is above 1.5"):
        assert note in out
    assert "\nnegative prompt: 1 token in 1 chunk of 14" in out


@pytest.mark.parametrize("flags", [[], ["--json", "-n", "y"], ["--long-prompt", "window", "--emphasis", "comfy"]])
def test_no_torch_and_no_weights(tiny_model: Path, tmp_path: Path, flags: list[str]) -> None:
    """minisd's own folder, its weights not even readable; and a tokenizer folder alone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    for source in (["-m", str(folder)], ["--tokenizer", str(tiny_model / "tokenizer")])[: 1 + (not flags)]:
        code = f"""
import sys
from minisd.cli import main
assert main(["prompt", "a (red:1.2) circle " * 9, *{source + flags!r}]) == 0
print("torch" in sys.modules)
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "False" and done.stderr == ""


def test_a_tokenizer_alone_is_of_a_model_of_77_tokens(tiny_model: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prompt", "a " * 76, "--tokenizer", str(tiny_model / "tokenizer"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["prompt"]
    assert (told["room"], told["tokens"], told["chunks"]) == (75, 76, 2)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_foreign_models(case, family: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    """A diffusers folder as it is, a single file with a tokenizer."""
    one: Case = case(family)
    prompt = "a (red:1.2) circle " * 4
    wanted = lay_out(minisd.load(one.folder, dtype="fp32").tokenizers, prompt, "a1111", "chunk")
    for source in ([str(one.folder)], [str(one.file), "--tokenizer", str(one.folder / "tokenizer")]):
        assert main(["prompt", prompt, "--json", "--model", *source]) == 0
        told = json.loads(capsys.readouterr().out)["prompt"]
        ids = [token["id"] for token in told["table"] if token["piece"] not in ("<|startoftext|>", "<|endoftext|>")]
        assert ids == [id for block in wanted.blocks for unit in block.units for id in unit.ids[0]]
    save_file({}, tmp_path / "empty.safetensors")
    assert main(["prompt", prompt, "--model", str(tmp_path / "empty.safetensors")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


SLIPS = [
    ("a (red circle", "the ( at character 3 is never closed: it goes on to the end"),
    ("a [red circle", "the [ at character 3 is never closed: it goes on to the end"),
    ("a red) circle", "the ) at character 6 closes nothing: it is plain text"),
    ("a red:1.3) circle", "the ) at character 10 closes nothing: it is plain text"),
    ("(x BREAK y)", "BREAK inside brackets: it begins a new chunk and they go on; elsewhere it may be read as a word"),
    ("(x:1.6)", "the weight 1.6 of 'x' is above 1.5: pictures tend to break"),
    ("((((((x))))))", "the weight 1.772 of 'x' is above 1.5: pictures tend to break"),
    ("(x:0.4)", "the weight 0.4 of 'x' is below 0.5: leaving it out may do the same"),
    ("(x:0)", "the weight 0 of 'x': its tokens still take their places"),
    ("(x:-1)", "the weight -1 of 'x' is negative: a negative prompt leads away more reliably"),
    ("(x:1e)", "'1e' before the ) at character 6 is no number: it is read as text, times 1.1"),
    ("(x:1,3)", "'1,3' before the ) at character 7 is no number: it is read as text, times 1.1"),
    ("(x:)", "'' before the ) at character 4 is no number: it is read as text, times 1.1"),
    ("(x:9999)", "the weight 100 of 'x' is the largest there is: brackets beyond it count for nothing"),
    (r"a\b", "the backslash at character 2 is left out: write two for one"),
    ("a <lora:x:1>", "'<lora:x:1>' is plain text and does nothing here: use --lora FILE[:WEIGHT]"),
    ("embedding:cat", "'embedding:cat' is ComfyUI's: use --embedding FILE[:WORD], and the word alone"),
    ("ball++", "'++' is compel's: here write (this:1.1) or [this]"),
    ("(a ball)-", "'-' is compel's: here write (this:1.1) or [this]"),
    ('("a", "b").and()', "').and(' is compel's and plain text here"),
    ("{a|b}", "'{a|b}' is a choice of other tools and plain text here"),
    ("a __colour__", "'__colour__' is a wildcard of other tools and plain text here"),
    ("a<|endoftext|>b", "'<|endoftext|>' is plain text, not the special token"),
]


@pytest.mark.parametrize(("prompt", "slip"), SLIPS)
def test_every_slip_is_told_and_nothing_else(prompt: str, slip: str) -> None:
    assert lint(prompt, "a1111") == [slip]


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "a red circle",
        "a (red:1.3) [circle] BREAK on white",
        r"\(a\) \\",
        "time: 12:30, (note: a nice day)",
        "well-known",
    ],
)
def test_good_prompts_are_left_alone(prompt: str) -> None:
    assert lint(prompt, "a1111") == lint(prompt, "off") == []


def test_each_reading_has_its_own_slips() -> None:
    for prompt, _ in SLIPS[:15]:
        assert lint(prompt, "off") == []
    assert lint("(open (x:9)", "comfy") == [
        "the ( at character 1 is never closed: from there on everything is plain text"
    ]
    assert lint("[x] (y:1.2)", "comfy") == ["'[x]' is plain text with --emphasis comfy"]
    assert lint(r"a\b", "comfy") == lint("(a:b:1.2)", "comfy") == []
    many = lint("(" * 10, "a1111")
    assert len(many) == 4 and many[-1] == "... and 7 more like this"


@pytest.mark.parametrize(
    "unit", ["(", ")", "[x]", "(x:", "{|", "<lora:", "__a", "(a:1.9)", "BREAK(", "++", ":1", "\\", "_"]
)
def test_lint_is_linear(unit: str) -> None:
    """100 kB of anything, well inside the test's time limit; quadratic would be many minutes."""
    for emphasis in ("a1111", "comfy"):
        assert len(lint(unit * (100_000 // len(unit)), emphasis)) < 30
