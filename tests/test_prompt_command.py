"""`minisd prompt`: what it says of a prompt is what `minisd generate` does with it, and it needs no weights."""

import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import save_file
from test_folders import Case, case  # noqa: F401  (case is a fixture)

import minisd
from minisd.cli import main
from minisd.settings import LONG_PROMPT_NAMES
from minisd.text.chunks import lay_out
from minisd.text.editing import phases, stages
from minisd.text.lint import lint, lint_edits

PROMPT = "a (red:1.3) circle, two small blue squares and a large green star, a white background, [grey]"


@pytest.fixture
def ask_all(tiny_model: Path, capsys: pytest.CaptureFixture):
    """What the command answers of the tiny model, as data."""

    def run(prompt: str, *flags: str) -> dict:
        assert main(["prompt", prompt, "--model", str(tiny_model), "--json", *flags]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return run


@pytest.fixture
def ask(ask_all):
    """The same of prompts that are one text throughout: what it says of those."""

    def run(*argv: str) -> dict:
        told = ask_all(*argv)
        assert [len(one["texts"]) for one in told.values()] == [1] * len(told)
        return {name: one["texts"][0] for name, one in told.items()}

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


EDITED = "a [red|blue] [circle:square:0.5] AND a (star:1.2):0.7"


def test_what_holds_when_and_each_text_once(ask_all) -> None:
    told = ask_all(EDITED, "--steps", "9", "-n", "a [x::3] AND b")
    whole, negative = told["prompt"], told["negative_prompt"]
    texts = ["a red circle", "a (star:1.2)", "a blue circle", "a red square", "a blue square"]
    assert [one["text"] for one in whole["texts"]] == texts

    def turn(number: int) -> list[dict]:
        return [{"text": number, "weight": 1.0}, {"text": 2, "weight": 0.7}]

    assert whole["phases"] == [
        {"steps": [1, 4], "turns": [turn(1), turn(3)]},
        {"steps": [5, 9], "turns": [turn(4), turn(5)]},
    ]
    assert {token["weight"] for token in whole["texts"][1]["table"]} == {1.0, 1.2}
    assert [(one["steps"], one["turns"][0][0]["text"]) for one in negative["phases"]] == [([1, 3], 1), ([4, 9], 2)]
    assert [one["text"] for one in negative["texts"]] == ["a x AND b", "a  AND b"]
    assert negative["lint"] == ["the AND at character 10 is a word like others in a negative prompt"]


def test_the_default_number_of_steps_is_what_generate_takes(ask_all, tiny_model: Path, capsys) -> None:
    assert ask_all("x")["prompt"]["steps"] == minisd.load(tiny_model, device="cpu").config.defaults.steps == 4
    assert main(["prompt", "x", "--tokenizer", str(tiny_model / "tokenizer"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["prompt"]["steps"] == 20


@pytest.mark.parametrize("emphasis", ["comfy", "off"])
def test_readings_without_editing_have_one_text(ask_all, emphasis: str) -> None:
    told = ask_all(EDITED, "--emphasis", emphasis)["prompt"]
    assert [one["text"] for one in told["texts"]] == [EDITED] and told["lint"] == []
    assert told["phases"] == [{"steps": [1, 4], "turns": [[{"text": 1, "weight": 1.0}]]}]


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "x", EDITED, "[a|b]", "[a|b|]", "[a|[b|c|d]]", "[[a|b]:c:4]", "[a|[b:c:4]]", "[a:b:0]", "[a:b:99]"),
        *("[a:a:3]", "[[a::2]b:c:4] AND [d|e]", "[a:[b:c:2]:1]e", "[fe|||]male", "[a|b]:[c:d:3]", "[[a|a]:a:3]"),
    ],
)
def test_phases_unrolled_are_the_stages(prompt: str) -> None:
    """Step by step, for every number of steps; and no phase could be told shorter."""
    for steps in range(1, 13):
        script = phases(prompt, steps)
        said = [phase.turns[i % len(phase.turns)] for phase in script for i in range(phase.end - phase.first)]
        changes = [i for i in range(steps) if i == 0 or said[i] != said[i - 1]]
        assert [(stage.first, stage.parts) for stage in stages(prompt, steps)] == [(i, said[i]) for i in changes]
        assert script[0].first == 0 and script[-1].end == steps == len(said)
        for one, two in pairwise(script):
            assert one.end == two.first and (one.turns != two.turns or len(one.turns) > 1)
        assert all(len(phase.turns) == 1 or len(set(phase.turns)) > 1 for phase in script)


def test_alternation_is_told_by_its_pattern_not_step_by_step(tiny_model: Path, capsys) -> None:
    assert main(["prompt", "a [red|blue] star", "-m", str(tiny_model), "--steps", "1000"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("prompt: 2 texts over 1000 steps (emphasis a1111)\n")
    assert "\nsteps 1 to 1000 (0 to 100 %): text 1 | text 2, in turn\n" in out
    assert "\ntext 1, 'a red star': " in out and "\ntext 2, 'a blue star': " in out and "text 3" not in out
    assert len(out.splitlines()) < 40
    assert main(["prompt", "a star AND a ring:0.7 AND [x:y:99]", "-m", str(tiny_model)]) == 0
    out = capsys.readouterr().out
    assert "steps 1 to 4 (0 to 100 %): text 1 AND text 2:0.7 AND text 3\n" in out
    assert "note: '[x:y:99]' at character 27 turns after the last of 4 steps" in out


def test_no_torch_and_no_weights(tiny_model: Path, tmp_path: Path) -> None:
    """minisd's own folder, its weights not even readable; and a tokenizer folder alone."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").write_bytes(b"not weights")
    lines = [["--tokenizer", str(tiny_model / "tokenizer")]]
    more = ([], ["--json", "-n", "y"], ["--long-prompt", "window", "--emphasis", "comfy"])
    lines += [["-m", str(folder), *flags] for flags in more]
    code = f"""
import sys
from minisd.cli import main
for flags in {lines!r}:
    assert main(["prompt", "a (red:1.2) circle " * 9, *flags]) == 0, flags
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False" and done.stderr == ""


def test_a_tokenizer_alone_is_of_a_model_of_77_tokens(tiny_model: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prompt", "a " * 76, "--tokenizer", str(tiny_model / "tokenizer"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["prompt"]["texts"][0]
    assert (told["room"], told["tokens"], told["chunks"]) == (75, 76, 2)


@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_foreign_models(case, family: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:  # noqa: F811
    """A diffusers folder as it is, a single file with a tokenizer."""
    one: Case = case(family)
    prompt = "a (red:1.2) circle " * 4
    wanted = lay_out(minisd.load(one.folder, dtype="fp32").tokenizers, prompt, "a1111", "chunk")
    for source in ([str(one.folder)], [str(one.file), "--tokenizer", str(one.folder / "tokenizer")]):
        assert main(["prompt", prompt, "--json", "--model", *source]) == 0
        told = json.loads(capsys.readouterr().out)["prompt"]["texts"][0]
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


NO_EDIT = "is no edit: [from:to:when] takes a number of steps, or a part of them such as 0.5, at its end"
OPEN = "is no edit: it is never closed, or crosses round ones"
AFTER = "turns after the last of 20 steps: what it turns to is never said"
BEFORE = "turns before the first of 20 steps: what it turns from is never said"
EDIT_SLIPS = [
    ("a [cat:dog:0.5", f"'[cat:dog:0.5' at character 3 {OPEN}"),
    ("a [(x:1.2) cat:0.5", f"'[(x:1.2) cat:0.5' at character 3 {OPEN}"),
    ("a [b:(c:3] d", f"'[b:(c:3]' at character 3 {OPEN}"),
    ("a [cat:dog]", f"'[cat:dog]' at character 3 {NO_EDIT}"),
    ("[a:b:0,5] and then some", f"'[a:b:0,5]' at character 1 {NO_EDIT}"),
    ("[a:b:50%]", f"'[a:b:50%]' at character 1 {NO_EDIT}"),
    ("[a:b:c:0.5]", f"'[a:b:c:0.5]' at character 1 {NO_EDIT}"),
    ("[a:b:21]", f"'[a:b:21]' at character 1 {AFTER}"),
    ("[a:b:1.5]", f"'[a:b:1.5]' at character 1 {AFTER}"),
    ("[a:b:1.0]", f"'[a:b:1.0]' at character 1 {AFTER}"),
    ("x, [at 12:30]", f"'[at 12:30]' at character 4 {AFTER}"),
    ("[a:b:-1]", f"'[a:b:-1]' at character 1 {BEFORE}"),
    ("[a:b:0.04]", f"'[a:b:0.04]' at character 1 {BEFORE}"),
    ("a cat | a dog", "the | at character 7 alternates nothing: it is plain text"),
    ("[a|b:3]", "the | at character 3 alternates nothing: it is plain text"),
    ("(a AND b)", "the AND at character 4 is a word like others inside brackets"),
]


@pytest.mark.parametrize(("prompt", "slip"), EDIT_SLIPS)
def test_every_slip_of_editing_is_told_and_nothing_else(prompt: str, slip: str) -> None:
    assert lint_edits(prompt, 20) == [slip]


@pytest.mark.parametrize(
    "prompt",
    [
        *("", "a red circle", "a [cat:dog:0.5]", "[a:b:1]", "[a::19]", "[a|b]", "[fe|]male", "[[a|b]:c [d::3]:10]"),
        *("a AND b:0.7", "[x] (y:1.2)", r"\[a:b\] x\|y", "{a|b}", "(a:b), 16:9", "[(a:1.2)]", "[a AND b:c:3]"),
    ],
)
def test_good_edits_are_left_alone(prompt: str) -> None:
    assert lint_edits(prompt, 20) == []


@pytest.mark.parametrize(
    "unit",
    [
        *("(", ")", "[x]", "(x:", "{|", "<lora:", "__a", "(a:1.9)", "BREAK(", "++", ":1", "\\", "_"),
        *("[:", "[a:b:9]", "|", " AND ", "(["),
    ],
)
def test_lint_is_linear(unit: str) -> None:
    """100 kB of anything, well inside the test's time limit; quadratic would be many minutes."""
    for emphasis in ("a1111", "comfy"):
        assert len(lint(unit * (100_000 // len(unit)), emphasis)) < 30
    assert len(lint_edits(unit * (100_000 // len(unit)), 20)) < 30
