"""Prompts longer than the encoder reads at once: where they are cut, what is said of it, and what the UNet is told.

The encodings are transformers', of rows laid out here by hand.
"""

import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import close, shallow
from text_case import Encoders, TextCase, text_case  # noqa: F401  (text_case is a fixture)
from torch import Tensor

import minisd
from minisd.config import Config
from minisd.diffusion.guidance import guided
from minisd.nn.clip import CLIPText
from minisd.nn.conditioning import Conditioning
from minisd.nn.unet import UNet
from minisd.pipeline import Model
from minisd.settings import EMPHASIS_NAMES, LONG_PROMPT_NAMES
from minisd.text.chunks import BEGINS, LONG_PROMPT, Unit, chunk, lay_out, shares, summarize, window
from minisd.text.emphasis import Span, parse
from minisd.text.encode import encode
from minisd.text.summary import phrases
from minisd.text.tokenizer import Tokenizer

WAYS = [name for name in LONG_PROMPT_NAMES if name != "error"]
LONG = "a red circle, two small blue squares and a large green star, a (white:1.3) background"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return minisd.load(tiny_model, device="cpu")


def units(text: str) -> list[Unit]:
    """One unit for each letter: `,` is a comma, `.` ends a sentence, a digit is an embedding of so many tokens."""
    return [
        Unit((tuple(range(int(c) if c.isdigit() else 1)),), 1.0, word=i, comma=c == ",", stop=c in ",.")
        for i, c in enumerate(text)
    ]


def cut(text: str, room: int = 75) -> list[str]:
    """The chunks of such a text, as texts."""
    blocks, _ = chunk(units(text), room)
    return ["".join(text[unit.word] for unit in block.units) for block in blocks]


def contents(tokenizer: Tokenizer, prompt: str, long_prompt: str = "chunk") -> list[list[int]]:
    blocks = lay_out([tokenizer], prompt, "off", long_prompt).blocks
    return [[id for unit in block.units for id in unit.ids[0]] for block in blocks]


def test_names_told_without_torch_are_the_real_ones() -> None:
    assert tuple(LONG_PROMPT) == LONG_PROMPT_NAMES


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x" * 75, [75]),
        ("x" * 76, [75, 1]),
        ("x" * 150, [75, 75]),
        ("x" * 55 + "," + "x" * 30, [56, 30]),  # the comma is 20 tokens before the end: what follows it moves
        ("x" * 54 + "," + "x" * 30, [75, 10]),  # 21: too far
        ("x" * 74 + "," + "x" * 5, [75, 5]),  # the comma is last: nothing to move
        ("x" * 75 + "," + "x" * 74, [75, 75]),  # it begins a chunk,
        ("x" * 75 + "," + "x" * 75, [75, 75, 1]),  # and is not remembered there
        ("x" * 60 + "," + "x" * 5 + "," + "x" * 20, [67, 20]),  # the last one counts
        ("x" * 60 + "," + "x" * 14 + ",", [75, 1]),  # a comma is not moved away from
        ("x" * 70 + "9" + "xx", [70, 11]),  # an embedding is not torn, nor does it look back for a comma
        ("x" * 60 + "," + "x" * 7 + "9" + "x", [68, 10]),
        ("x" * 60 + "," + "x" * 14 + "9" + "x", [61, 24]),  # in a full chunk it does
        ("9" * 17, [72, 72, 9]),
    ],
)
def test_chunks_end_where_automatic1111_ends_them(text: str, expected: list[int]) -> None:
    assert [sum(int(c) if c.isdigit() else 1 for c in part) for part in cut(text)] == expected
    assert "".join(cut(text)) == text


def test_a_comma_that_begins_a_chunk_does_not_end_it() -> None:
    """In rows as short as the backtracking, which AUTOMATIC1111 has none of."""
    assert [len(part) for part in cut("x" * 14 + "," + "x" * 20, room=14)] == [14, 14, 7]
    assert [len(part) for part in cut("x" * 4 + "," + "x" * 20, room=14)] == [5, 14, 6]


@given(st.text("xx,,.123", max_size=120), st.integers(3, 30))
def test_chunks_put_together_are_the_prompt(text: str, room: int) -> None:
    blocks, moved = chunk(units(text), room)
    assert [unit for block in blocks for unit in block.units] == units(text)
    assert all(sum(map(len, block.units)) <= room for block in blocks)
    assert all(block.units for block in blocks) or not text
    assert moved == sorted(moved) and {block.begins for block in blocks} <= set(BEGINS)


@given(st.text("xx,,.123", min_size=1, max_size=120), st.integers(3, 30))
def test_windows_overlap_and_fade(text: str, room: int) -> None:
    """Every unit is read; the shares are 1 in sum, fall towards a window's end and rise from its start."""
    ((block,), _) = window(units(text), room)
    total = np.zeros(len(text))
    for (start, end), part in zip(block.rows, shares(block.rows), strict=True):
        assert sum(map(len, block.units[start:end])) <= room
        total[start:end] += part
    assert np.allclose(total, 1, rtol=0, atol=1e-12)
    assert block.rows[0][0] == 0 and block.rows[-1][1] == len(text)
    for (a, b), (c, d) in pairwise(block.rows):
        assert a < c <= b < d
    if set(text).isdisjoint("123"):
        assert all(end - start == min(room, len(text)) for start, end in block.rows)
        assert all(b - c >= room // 3 for (_, b), (c, _) in pairwise(block.rows))


def test_two_windows_cross_fade_linearly() -> None:
    ((block,), _) = window(units("x" * 125), 75)
    assert block.rows == ((0, 75), (50, 125))
    left, right = shares(block.rows)
    assert left[:50] == [1.0] * 50 and right[25:] == [1.0] * 50
    assert left[50:] == pytest.approx([1 - i / 26 for i in range(1, 26)])
    assert right[:25] == pytest.approx([i / 26 for i in range(1, 26)])


@pytest.mark.parametrize("way", LONG_PROMPT_NAMES)
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_a_prompt_that_fits_is_encoded_as_it_ever_was(text_case: TextCase, family: str, way: str) -> None:  # noqa: F811
    """Bit for bit what the towers say of the tokenizers' rows."""
    case = text_case(family)
    prompts = ["", "a red circle", "a " * case.tokenizers[0].room]
    skip = case.config.default_clip_skip
    with torch.no_grad():
        told = [tower(tok(prompts), skip) for tower, tok in zip(case.towers, case.tokenizers, strict=True)]
    cond = case.encode(prompts, long_prompt=way)
    assert torch.equal(cond.context, torch.cat([context for context, _ in told], dim=-1))
    assert cond.vector is None or torch.equal(cond.vector[:, : told[-1][1].shape[1]], told[-1][1])


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_chunks_are_transformers_encodings_one_after_the_other(text_case: TextCase, family: str) -> None:  # noqa: F811
    case = text_case(family)
    ids = case.content(LONG)
    rows = contents(case.tokenizers[0], LONG)
    assert [*chain(*rows)] == ids and len(rows) > 2
    wanted = np.concatenate([case.hidden(i, rows, 2) for i in range(len(case.towers))], axis=-1)
    cond = case.encode([LONG], clip_skip=2, emphasis="off")
    assert close(cond.context[0], torch.from_numpy(np.concatenate(wanted)).float(), tol=1e-6)
    if cond.vector is not None:  # the first chunk's, from the full depth
        row = torch.tensor([case.tokenizers[1].frame(rows[0])])
        with torch.no_grad():
            wanted = case.theirs[1](row).text_embeds
        assert close(cond.vector[:, : wanted.shape[1]], wanted, tol=1e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_break_begins_a_new_chunk(text_case: TextCase, family: str, way: str) -> None:  # noqa: F811
    """In every mode; one that leads gives the empty prompt, as does a second one; one at the end gives nothing."""
    case = text_case(family)

    def context(prompt: str) -> Tensor:
        return case.encode([prompt], long_prompt=way).context[0]

    a, b, empty = context("a star"), context("two rings"), context("")
    assert close(context("a star BREAK two rings"), torch.cat([a, b]), tol=1e-6)
    assert close(context("BREAK a star BREAK BREAK (two:1.0) rings BREAK"), torch.cat([empty, a, empty, b]), tol=1e-6)
    vectors = case.encode(["a star BREAK two rings", "a star"], long_prompt=way).vector
    assert vectors is None or close(vectors[:1], vectors[1:], tol=1e-6)


@pytest.mark.parametrize("family", ["sd1", "sd2"])
def test_a_window_context_is_put_together_by_hand(text_case: TextCase, family: str) -> None:  # noqa: F811
    """BOS of the first row, each token once, EOS of the last row, repeated."""
    case = text_case(family)
    room, length = case.tokenizers[0].room, case.length
    prompt = "a red circle and a blue square in a ring"
    ids = case.content(prompt)
    n = len(ids)
    assert room < n < 2 * room - room // 3
    first, last = case.hidden(0, [ids[:room], ids[n - room :]])
    wanted = np.zeros((2 * length, first.shape[1]))
    wanted[0], wanted[n + 1 :] = first[0], last[-1]
    shared = 2 * room - n
    for j in range(n):
        fade = np.clip((j - (n - room) + 1) / (shared + 1), 0, 1)
        left = first[1 + j] if j < room else 0
        right = last[1 + j - (n - room)] if j >= n - room else 0
        wanted[1 + j] = (1 - fade) * left + fade * right
    found = case.encode([prompt], long_prompt="window", emphasis="off").context[0]
    assert close(found, torch.from_numpy(wanted).float(), tol=1e-6)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_truncate_is_what_the_tokenizer_alone_does(text_case: TextCase, family: str) -> None:  # noqa: F811
    case = text_case(family)
    skip = case.config.default_clip_skip
    with torch.no_grad():
        told = [tower(tok([LONG]), skip)[0] for tower, tok in zip(case.towers, case.tokenizers, strict=True)]
    assert torch.equal(case.encode([LONG], long_prompt="truncate", emphasis="off").context, torch.cat(told, dim=-1))


def bag(rows: Sequence[Sequence[Unit]]) -> list[list[float]]:
    """Pooled vectors that count letters: `a` to `e` on an axis each."""
    counts = [[sum(unit.ids[0][0] == axis for unit in row) for axis in range(5)] for row in rows]
    return [[x / max(1e-9, np.linalg.norm(row)) for x in row] for row in counts]


def lettered(text: str) -> list[Unit]:
    return [Unit((("abcde".find(c),),), 1.0, i, c == ",", c == ",") for i, c in enumerate(text)]


@pytest.mark.parametrize(
    ("text", "room", "expected"),
    [
        ("aaa,bbb,aaa,ccc", 8, "aaa,bbb,"),  # aa and one other is nearest to 2 a + b + c; then the first of equals
        ("bbb,aaa,ccc,aaa", 12, "bbb,aaa,ccc,"),  # in their order
        ("ab,ab,ab,ab,c", 6, "ab,ab,"),
        ("aaaaaaaa,b", 4, "aaab"),  # a phrase longer than a row is cut at words, here letters
    ],
)
def test_a_summary_is_made_of_the_nearest_phrases(text: str, room: int, expected: str) -> None:
    ((block,), moved) = summarize(lettered(text), room, bag)
    assert "".join(text[unit.word] for unit in block.units) == expected
    assert moved == []


@settings(max_examples=60)
@given(st.text("aabbcde,,", min_size=20, max_size=80), st.integers(4, 16))
def test_a_summary_is_whole_phrases_in_their_order(text: str, room: int) -> None:
    ((block,), _) = summarize(lettered(text), room, bag)
    places = [unit.word for unit in block.units]
    assert places == sorted(set(places)) and 0 < len(places) <= room
    parts = [[unit.word for unit in part] for part in phrases(lettered(text), room)]
    assert [*chain(*parts)] == list(range(len(text)))
    assert places == [*chain(*(part for part in parts if part[0] in places))]
    left_out = [part for part in parts if part[0] not in places]
    assert all(len(part) > room - len(places) for part in left_out)  # no room is left over


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_a_summary_is_chosen_by_the_encoder_and_encoded_as_its_own_text(text_case: TextCase, family: str) -> None:  # noqa: F811
    """The pooled vectors that choose are transformers' here; those of `encode` must choose alike."""
    case = text_case(family)
    last = len(case.towers) - 1

    def pooled(rows: Sequence[Sequence[Unit]]) -> list[list[float]]:
        ids = [case.tokenizers[last].frame([id for unit in row for id in unit.ids[last]]) for row in rows]
        with torch.no_grad():
            told = case.theirs[last](torch.tensor(ids))
        vectors = told.text_embeds if last else told.pooler_output
        return torch.nn.functional.normalize(vectors, dim=-1).tolist()

    shortened = []
    for prompt in (
        LONG,
        "two rings, a star, a red circle, a cross and a heart. a thing",
        "a b c d e f g h i j k l m n o p",
    ):
        layout = lay_out(case.tokenizers, prompt, "off", "summarize", pooled)
        text = " ".join(layout.report.kept)
        shortened.append(lay_out(case.tokenizers, prompt, "off", "truncate").report.kept == layout.report.kept)
        assert 0 < len(case.content(text)) <= case.tokenizers[0].room
        assert layout.report.dropped
        summary = case.encode([prompt], long_prompt="summarize", emphasis="off")
        assert torch.equal(summary.context, case.encode([text], emphasis="off").context)
    assert not all(shortened)  # it is not just the beginning


def test_summarize_without_an_encoder_is_refused(text_case: TextCase) -> None:  # noqa: F811
    with pytest.raises(ValueError, match="summarize asks the text encoder"):
        lay_out(text_case("sd1").tokenizers, LONG, "off", "summarize")


WORDS = ["red", "circle", "extraordinary", ",", "1.5", "(it's:1.2)", "BREAK", "naïve", "端"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS)).map(" ".join), st.sampled_from(WAYS), st.sampled_from(["a1111", "off"]))
def test_every_word_is_accounted_for(
    text_case: TextCase,  # noqa: F811
    prompt: str,
    way: str,
    emphasis: str,
) -> None:
    """Once and in order, as it was typed; moved and split ones are among those kept."""
    case = text_case("sd1")
    report = lay_out(case.tokenizers, prompt, emphasis, way, lambda rows: [[1.0]] * len(rows)).report
    whole = lay_out(case.tokenizers, prompt, emphasis, "chunk").report
    parts = [report.kept, report.cut, report.dropped]
    assert Counter(sum(parts, ())) == Counter(whole.kept)
    for words in (*parts, report.moved, report.split):
        all_words = iter(whole.kept)
        assert all(word in all_words for word in words)
    assert set(report.moved) | set(report.split) <= set(report.kept)
    letters = "".join(whole.kept)
    signs = "()" if emphasis == "a1111" else ""
    typed = prompt.replace("BREAK", "").replace(":1.2", "") if signs else prompt
    assert letters == "".join(c for c in typed if c not in f"{signs} ")
    if way in ("chunk", "window"):
        assert not report.dropped and not report.cut
    if way == "chunk" and emphasis == "off":
        assert [*chain(*contents(case.tokenizers[0], prompt))] == case.content(prompt)


def test_the_report_names_what_is_dropped_moved_and_split(text_case: TextCase) -> None:  # noqa: F811
    case = text_case("sd1")
    room = case.tokenizers[0].room
    pieces = len(case.content("extraordinary"))
    assert 3 < pieces < room

    def report(prompt: str, way: str) -> object:
        return lay_out(case.tokenizers, prompt, "off", way, lambda rows: [[1.0]] * len(rows)).report

    moved = report("a " * (room - 3) + ", a red star", "chunk")
    assert moved.moved == ("a", "red") and moved.dropped == moved.split == ()
    split = report("a " * (room - 2) + "extraordinary end", "chunk")
    assert split.split == ("extraordinary",) and split.moved == split.dropped == ()
    lost = report("a " * (room - 2) + "extraordinary end", "truncate")
    assert lost.cut == ("extraordinary",) and lost.dropped == ("end",)
    assert (split.tokens, split.room, split.chunks) == (room - 2 + pieces + len(case.content("end")), room, 2)
    assert "dropped: 'end'; cut short: 'extraordinary'" in lost.losses
    assert split.losses == lost.changes == ""
    assert "split over two chunks: 'extraordinary'" in split.changes


def test_prompt_and_negative_prompt_are_told_alike(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    long = "a " * model.tokenizers[0].room
    options = {"steps": 1, "output": "latent"}
    with caplog.at_level(logging.INFO, "minisd"):
        minisd.generate(model, long + "zebra", negative_prompt=long + "giraffe", long_prompt="truncate", **options)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "dropped: 'zebra'" in warnings[0] and "dropped: 'giraffe'" in warnings[1]
    caplog.clear()
    with caplog.at_level(logging.INFO, "minisd"):
        minisd.generate(model, "a red circle", negative_prompt="a " * 20 + "BREAK zebra", **options)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    for words in ({"prompt": long + "zebra"}, {"prompt": "a", "negative_prompt": long + "zebra"}):
        with pytest.raises(ValueError, match=f"too long: .*{model.tokenizers[0].room} fit; dropped: 'zebra'"):
            minisd.generate(model, **words, long_prompt="error", **options)


MANY = ["a star", LONG, "two rings BREAK a cross", "a (red:1.4) circle, " * 6]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_prompts_of_different_length_in_one_batch(text_case: TextCase, family: str, way: str) -> None:  # noqa: F811
    """What the UNet answers to each is what it answers to it alone; so with a longer and a shorter negative prompt."""
    case = text_case(family)
    torch.manual_seed(0)
    unet = UNet(case.config.unet).eval().requires_grad_(False)
    x, t = torch.randn(len(MANY), 4, 8, 8), torch.full((len(MANY),), 500.0)
    together = case.encode(MANY, long_prompt=way)
    lengths = {case.encode([prompt], long_prompt=way).context.shape[1] for prompt in MANY}
    assert together.context.shape[1] == np.lcm.reduce([*lengths]) and len(lengths) > 1
    answer = unet(x, t, together)
    for i, prompt in enumerate(MANY):
        alone = case.encode([prompt], long_prompt=way)
        assert close(answer[i : i + 1], unet(x[i : i + 1], t[:1], alone), tol=1e-5)
        negative = case.encode([MANY[i - 1]], long_prompt=way)
        both = [unet(x[i : i + 1], t[:1], one) for one in (alone, negative)]
        wanted = both[1] + 5 * (both[0] - both[1])
        assert close(guided(unet, alone, negative, 5.0)(x[i : i + 1], t[:1]), wanted, tol=1e-5)


def test_encode_tells_what_generate_uses(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, Tensor] = {}

    def listening(towers: object, tokenizers: object, prompts: Sequence[str], *how: object) -> Conditioning:
        cond = encode(towers, tokenizers, prompts, *how)
        told.update(zip(prompts, cond.context, strict=True))
        return cond

    monkeypatch.setattr("minisd.pipeline.encode", listening)
    texts = [LONG, "(blurry) BREAK grey"]
    for way in WAYS:
        for emphasis in EMPHASIS_NAMES:
            how = {"long_prompt": way, "emphasis": emphasis, "clip_skip": 2}
            minisd.generate(model, texts[0], negative_prompt=texts[1], steps=1, output="latent", **how)
            drawn = [told.pop(text) for text in texts]
            assert not told
            for text, context in zip(texts, drawn, strict=True):
                assert torch.equal(model.encode([text], **how).context[0], context)
            told.clear()
    monkeypatch.undo()
    (picture,) = minisd.generate(model, LONG, long_prompt="window", emphasis="comfy", steps=1)
    recipe = json.loads(picture.info["minisd"])
    assert (recipe["long_prompt"], recipe["emphasis"]) == ("window", "comfy")
    (plain,) = minisd.generate(model, LONG, steps=1)
    assert {"long_prompt": "chunk", "emphasis": "a1111"}.items() <= json.loads(plain.info["minisd"]).items()
    assert plain.tobytes() != picture.tobytes()


def test_an_embedding_in_one_tower_alone(text_case: TextCase) -> None:  # noqa: F811
    """The other tower reads the word; both are cut at the same places, where the longer reading ends."""
    case = text_case("sdxl")
    first, second = (Tokenizer.__new__(Tokenizer) for _ in range(2))
    for new, old in zip((first, second), case.tokenizers, strict=True):
        new.__dict__.update(old.__dict__ | {"triggers": {}})
    second.add_trigger("<zorp>", [7, 8])
    word, room = len(first.content("<zorp>")), first.room
    assert word > 2
    own = Encoders(case.config, case.theirs, case.towers, [first, second])
    for way in WAYS:
        for prompt in ("a <zorp>", "a " * (room - 2) + "<ZORP> red", "<zorp> " * 9):
            layout = lay_out([first, second], prompt, "off", way, lambda rows: [[1.0]] * len(rows))
            for block in layout.blocks:
                for start, end in block.rows:
                    row = block.units[start:end]
                    assert max(sum(len(unit.ids[i]) for unit in row) for i in (0, 1)) <= room
            context = own.encode([prompt], long_prompt=way, emphasis="off").context
            assert torch.isfinite(context).all() and context.shape[1] % case.length == 0
    (found,) = own.encode(["a <zorp>"]).context
    wanted = [case.hidden(0, [first.content("a <zorp>")], 2)[0], case.hidden(1, [[*first.content("a"), 7, 8]], 2)[0]]
    assert close(found, torch.from_numpy(np.concatenate(wanted, axis=-1)).float(), tol=1e-6)
    with pytest.raises(ValueError, match="more tokens than a row"):
        second.add_trigger("<long>", range(room + 1))
        lay_out([first, second], "a <long>", "off", "chunk")


@pytest.mark.parametrize("emphasis", ["a1111", "comfy"])
@pytest.mark.parametrize("preset", ["sd15", "sdxl"])
def test_long_and_weighted_prompts_on_another_device(preset: str, emphasis: str, model: Model) -> None:
    """On the meta device a stray CPU tensor raises."""
    config = shallow(Config.load(Path(__file__).parent.parent / "configs" / f"{preset}.json"))
    with torch.device("meta"):
        text = [CLIPText(tower) for tower in config.text]
    tokenizers = [model.tokenizers[0]] * len(config.text)
    for way in ("chunk", "window"):
        cond = encode(text, tokenizers, [LONG, "a"], config, config.default_clip_skip, way, (64, 64), emphasis)
        assert cond.context.device.type == "meta" and cond.context.shape[2] == config.unet.context_dim


PIECES = [
    *(
        "a red circle",
        ",",
        " ",
        "\n",
        "\0",
        "😀",
        "👩‍👩‍👧‍👦",
        "🏳️‍🌈",
        "\u200d",
        "\u202e",
        "שלום",
        "مرحبا",
        "ﷺ",
        "e\u0301\u0302",
        "𝕬",
    ),
    *(
        "\ud800",
        "\udfff",
        "\uffff",
        "\U0010ffff",
        "İ",
        "ſ",
        "<|endoftext|>",
        "<|startoftext|>",
        "<|ENDOFTEXT|>",
        "</w>",
    ),
    *("(", ")", "[", "]", "((", "))", ":", ":1.3)", "(x:1e9)", "(y:-3)", "(z:0)", ":nan)", "\\", "\\(", "BREAK", "AND"),
    *(
        "{a|b}",
        "[a:b:0.5]",
        "<lora:x:1>",
        "++",
        "!",
        "'s",
        "1.5",
        "%s %(x)s {} {0}",
        "\x1b[31m",
        "\r",
        "\t",
        "\u3000",
        "。",
    ),
]


def hostile(count: int) -> list[str]:
    """Random mixtures; some of 30 kB, of one kind or of all."""
    dice = random.Random(0)
    large = ["😀" * 7500, "x" * 30_000, "(" * 30_000, " " * 30_000, "".join(dice.choices(PIECES, k=6000))]
    return ["".join(dice.choices(PIECES, k=dice.randrange(1, 60))) for _ in range(count - len(large))] + large


def test_five_hundred_hostile_prompts_are_encoded(model: Model) -> None:
    """In every mode and by every reading; no special token comes in, and nothing is lost."""
    tokenizer, text = model.tokenizers[0], model.config.text[0]
    for number, prompt in enumerate(hostile(500)):
        emphasis, small = EMPHASIS_NAMES[number % 4], len(prompt) < 5000
        way = WAYS[number // 4 % 4] if small else "chunk"
        context = model.encode([prompt], emphasis=emphasis, long_prompt=way).context
        assert torch.isfinite(context).all() and context.shape[1] % text.max_length == 0
        if small:
            layout = lay_out([tokenizer], prompt, emphasis, "chunk")
            ids = {id for block in layout.blocks for unit in block.units for id in unit.ids[0]}
            assert ids.isdisjoint((text.bos_id, text.eos_id))
            assert layout.report.dropped == layout.report.cut == ()
            assert layout.report.tokens == sum(len(tokenizer.content(span.text)) for span in spoken(prompt, emphasis))


def spoken(prompt: str, emphasis: str) -> list[Span]:
    return [span for span in parse(prompt, emphasis) if isinstance(span, Span)]
