"""Prompts that change on the way: what is said at each step, who hears it at which noise level, and how often."""

import random
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from oracles import deviation
from torch import Tensor

import minisd
from minisd import pipeline
from minisd.config import SAMPLER_NAMES
from minisd.diffusion.samplers import SAMPLERS, Sampler, Step
from minisd.diffusion.schedule import Plan, make_plan
from minisd.image import to_tensor
from minisd.nn.conditioning import Prepared
from minisd.pipeline import Model
from minisd.settings import own_schedule
from minisd.text.editing import Parts, stages, timeline

BATCHED = 1e-5  # the same sums in another batch size, over a whole run
HOSTILE = [
    *("[", "]", "(", ")", ":", "|", "\\", "AND", " AND ", "BREAK", "a", " ", "0.5", "3", "-1", ".", "1e9", "9" * 400),
    *("٣", "👩\u200d👩\u200d👧", "אבג", "\u202e", "\0", "\ud800", "<|endoftext|>", "\n", "[:]", "[a:b:", ":1.3)", "|]"),
]
deterministic = budget(max_examples=150, deadline=None, derandomize=True, database=None)


def said(prompt: str, steps: int = 10) -> list[tuple[int, str]]:
    """Stages of a prompt that is one part throughout."""
    found = stages(prompt, steps)
    assert all(len(stage.parts) == 1 and stage.parts[0][1] == 1 for stage in found)
    return [(stage.first, stage.parts[0][0]) for stage in found]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a cat", [(0, "a cat")]),
        ("", [(0, "")]),
        ("a [b:3]", [(0, "a "), (3, "a b")]),
        ("a [b: 3 ]", [(0, "a "), (3, "a b")]),
        ("a [b::3]", [(0, "a b"), (3, "a ")]),
        ("a [b:c:3]", [(0, "a b"), (3, "a c")]),
        ("a [b : c : 1] d", [(0, "a b  d"), (1, "a  c  d")]),
        ("a [b:.5] c", [(0, "a  c"), (5, "a b c")]),
        ("a [b:c:0.29] d", [(0, "a b d"), (2, "a c d")]),  # int(2.9)
        ("a [b:c:0]", [(0, "a c")]),
        ("a [b:c:-3]", [(0, "a c")]),
        ("a [b:c:1]", [(0, "a b"), (1, "a c")]),  # a step ...
        ("a [b:c:1.0]", [(0, "a b")]),  # ... and all of them
        ("a [b:c:1.5]", [(0, "a b")]),
        ("a [b:c:10]", [(0, "a b")]),
        ("a [b:c:999]", [(0, "a b")]),
        ("a[b:[c:d:2]:1]e", [(0, "abe"), (1, "ace"), (2, "ade")]),
        ("[[a::2]b:c:4]", [(0, "ab"), (2, "b"), (4, "c")]),
        ("a [[[b]]:2]", [(0, "a "), (2, "a [[b]]")]),
        ("[(a:2):3]", [(0, ""), (3, "(a:2)")]),
        ("([a:b:3]:1.2)", [(0, "(a:1.2)"), (3, "(b:1.2)")]),
        ("[(a:b):(c|d):3]", [(0, "(a:b)"), (3, "(c|d)")]),
        ("[::3]x", [(0, "x")]),
        ("[a:a:3]", [(0, "a")]),
        ("[fe|]male", [(i, ("female", "male")[i % 2]) for i in range(10)]),
        ("[fe|||]male", [(0, "female"), (1, "male"), (4, "female"), (5, "male"), (8, "female"), (9, "male")]),
        ("[a|(b:1.1)]", [(i, ("a", "(b:1.1)")[i % 2]) for i in range(10)]),
        ("[a|[b|c]]", [(i, ("a", "c")[i % 2]) for i in range(10)]),  # each counts the steps of the run
        ("[[a|b]:c:4]", [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "c")]),
        ("[a|[b:c:4]]", [(i, "a" if i % 2 == 0 else "b" if i < 4 else "c") for i in range(10)]),
        ("[a: b|c]", [(i, ("a: b", "c")[i % 2]) for i in range(10)]),
        # not this syntax, or not closed: the text stays as it is
        ("a [b] (c:1.2) ((d))", [(0, "a [b] (c:1.2) ((d))")]),
        ("16:9 a|b", [(0, "16:9 a|b")]),
        ("[a:b]", [(0, "[a:b]")]),
        ("[a:b:c:3]", [(0, "[a:b:c:3]")]),
        ("[a:b:3e0]", [(0, "[a:b:3e0]")]),
        ("[a:b:٣]", [(0, "[a:b:٣]")]),
        (r"\[a:b:3\] \(c\|d\) \\", [(0, r"\[a:b:3\] \(c\|d\) \\")]),
        (r"[a\:b:c\]:3]", [(0, r"a\:b"), (3, r"c\]")]),
        (r"[a\|b|c]", [(i, (r"a\|b", "c")[i % 2]) for i in range(10)]),
        ("a [unbalanced", [(0, "a [unbalanced")]),
        ("a [b:(c:3] d", [(0, "a [b:(c:3] d")]),
        ("[a:(b] c):3]", [(0, "[a:(b] c):3]")]),  # the two kinds of bracket cross
        ("((a][:b:c [d:3]", [(0, "((a][:b:c "), (3, "((a][:b:c d")]),
        ("a [{b|d{:.5] c", [(0, "a  c"), (5, "a {b|d{ c")]),
        ("a\\", [(0, "a\\")]),
    ],
)
def test_by_hand(prompt: str, wanted: list[tuple[int, str]]) -> None:
    """Many of the cases are those that AUTOMATIC1111's documentation shows."""
    assert said(prompt) == wanted


def test_when_counts_steps_or_is_a_part_of_them() -> None:
    for steps in range(1, 60):
        for when in ("0", "1", "7", "59", "0.0", ".1", "0.29", "0.5", "0.57", "0.999", "1.", "1.0"):
            count = int(float(when) * steps) if "." in when else int(when)
            seen = said(f"[a:b:{when}]", steps)
            assert seen == [(0, "a"), (count, "b")] if 0 < count < steps else [(0, "b" if count == 0 else "a")]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a AND b", [("a", 1), ("b", 1)]),
        ("a:2 AND b:0.7 AND c : -.5 ", [("a", 2), ("b", 0.7), ("c", -0.5)]),
        ("(a:1.2) AND [b]:0.5", [("(a:1.2)", 1), ("[b]", 0.5)]),
        ("a AND b:c", [("a", 1), ("b:c", 1)]),
        (r"a AND b\:2", [("a", 1), (r"b\:2", 1)]),
        ("a 16:9 AND b:2:3", [("a 16", 9), ("b:2", 3)]),
        ("AND", [("", 1), ("", 1)]),
        ("a (b AND c", [("a (b", 1), ("c", 1)]),  # a bracket that never closes is none
        ("sAND and AND_ a", [("sAND and AND_ a", 1)]),
        ("(a AND b) [c AND d]", [("(a AND b) [c AND d]", 1)]),
        (r"a \AND b", [(r"a \AND b", 1)]),
        ("a:0.7", [("a:0.7", 1)]),  # no weight without AND
        ("a AND b:" + "9" * 400, [("a", 1), ("b:" + "9" * 400, 1)]),
    ],
)
def test_composition_by_hand(prompt: str, wanted: Parts) -> None:
    ((first, parts),) = stages(prompt, 5)
    assert (first, list(parts)) == (0, wanted)
    ((_, whole),) = stages(prompt, 5, compose=False)
    assert whole == ((prompt, 1.0),)


def test_editing_may_make_parts_and_weights() -> None:
    assert stages("a AND b:[0.2:0.8:2]", 4) == [(0, (("a", 1), ("b", 0.2))), (2, (("a", 1), ("b", 0.8)))]
    assert stages("[a AND b:c:2]", 4) == [(0, (("a", 1), ("b", 1))), (2, (("c", 1),))]
    assert stages("[a AND b|c]", 2, compose=False) == [(0, (("a AND b", 1),)), (1, (("c", 1),))]


class Node:
    """A prompt whose meaning is known, because it is written from its meaning."""

    def __init__(self, text: str, at: Callable[[int], str]) -> None:
        self.text, self.at = text, at


STEPS = 12
words = st.text(st.sampled_from("ab ,é👍AN"), max_size=6).filter(lambda s: "AND" not in s)
escapes = st.sampled_from([r"\(", r"\)", r"\[", r"\]", r"\:", r"\|", r"\\"])


def nodes(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    """Longer prompts from shorter ones."""
    turns = st.one_of(
        st.integers(0, STEPS + 2).map(lambda n: (str(n), n)),
        st.integers(0, 4).map(lambda n: (f"{n / 4:.2f}", STEPS * n // 4)),
    )
    chosen = st.lists(inner, min_size=2, max_size=4)
    return st.one_of(
        st.lists(inner, max_size=3).map(lambda some: Node(join(some), lambda i: "".join(n.at(i) for n in some))),
        inner.map(lambda n: Node(f"({n.text}:1.2)", lambda i: f"({n.at(i)}:1.2)")),
        inner.map(lambda n: Node(f"[{n.text}]", lambda i: f"[{n.at(i)}]")),
        chosen.map(lambda some: Node(f"[{join(some, '|')}]", lambda i: some[i % len(some)].at(i))),
        st.tuples(inner, inner, turns).map(
            lambda e: Node(f"[{e[0].text}:{e[1].text}:{e[2][0]}]", lambda i: e[i >= e[2][1]].at(i))
        ),
        st.tuples(inner, turns).map(
            lambda e: Node(f"[{e[0].text}:{e[1][0]}]", lambda i: e[0].at(i) if i >= e[1][1] else "")
        ),
    )


def join(some: list[Node], mark: str = "") -> str:
    return mark.join(node.text for node in some)


@deterministic
@given(st.recursive(st.one_of(words, escapes).map(lambda s: Node(s, lambda i: s)), nodes, max_leaves=12))
def test_a_prompt_says_what_it_was_written_to_say(node: Node) -> None:
    found = said(node.text, STEPS)
    assert [next(text for first, text in reversed(found) if first <= i) for i in range(STEPS)] == [
        node.at(i) for i in range(STEPS)
    ]
    assert all(a[1] != b[1] for a, b in pairwise(found))  # neighbours differ


@deterministic
@given(st.lists(st.sampled_from(HOSTILE), max_size=30).map("".join))
def test_escaped_or_without_square_brackets_nothing_is_said_here(text: str) -> None:
    escaped = re.sub(r"[][()|:\\]", r"\\\g<0>", text)
    assert stages(escaped, 7, compose=False) == [(0, ((escaped, 1.0),))]
    plain = text.replace("[", "").replace("]", "")
    assert stages(plain, 7, compose=False) == [(0, ((plain, 1.0),))]


def test_five_hundred_hostile_prompts() -> None:
    draw = random.Random(0)
    for i in range(500):
        prompt = "".join(draw.choices(HOSTILE, k=draw.randrange(1, 60)))
        found = stages(prompt, 1 + i % 30)
        assert found[0].first == 0
        assert all(a.first < b.first and a.parts != b.parts for a, b in pairwise(found))
        assert all(set(text) <= set(prompt) and abs(w) < 1e10 for stage in found for text, w in stage.parts)


@pytest.mark.parametrize("piece", ["[", "]", "(", "[]", "([", "(]", "[(a:1.2)]", "[a:", "|", "AND "])
def test_a_megabyte_of_brackets_in_under_a_second(piece: str) -> None:
    prompt = piece * (1_000_000 // len(piece))
    start = time.process_time()
    stages(prompt, 20)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(("before", "behind"), [("[a:", "b:7]"), ("[a|", "]"), ("([", "|b])")])
def test_time_is_linear_and_depth_has_no_limit(before: str, behind: str, deep: bool) -> None:
    def spent(n: int) -> float:
        start = time.process_time()
        assert len(stages(before * n + behind * n if deep else (before + behind) * n, 20)) > 1
        return time.process_time() - start

    spent(1000)
    assert spent(20_000) < 5 * 10 * max(spent(2000), 1e-3)


def test_a_batch_has_the_stages_of_all_its_prompts() -> None:
    found = timeline(["[a:b:2]", "c AND d:0.5", "e"], [None, "f", "[g::3]"], 4)
    assert [first for first, _ in found] == [0, 2, 3]
    assert found[0][1].parts == ((("a", "c", "e"), (1, 1, 1)), (("a", "d", "e"), (0, 0.5, 0)))
    assert [told.parts[0][0][0] for _, told in found] == ["a", "b", "b"]
    assert [told.negatives for _, told in found] == [(None, "f", "g"), (None, "f", "g"), (None, "f", "")]


def test_a_negative_prompt_has_no_parts_and_plain_text_no_stages() -> None:
    assert timeline(["a"], ["b AND c:2"], 4)[0][1].negatives == ("b AND c:2",)
    ((first, told),) = timeline(["[a:b:2] AND c"], ["[d|e]"], 4, interpreted=False)
    assert (first, told.parts, told.negatives) == (0, ((("[a:b:2] AND c",), (1.0,)),), ("[d|e]",))


# From here on pictures of the tiny model.


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return minisd.load(tiny_model, device="cpu")


def latent(model: Model, prompt: str | list[str], **options: object) -> Tensor:
    return minisd.generate(model, prompt, output="latent", **options)


@pytest.fixture(scope="module")
def keys(model: Model) -> list[tuple[str, Tensor]]:
    """Texts, each with the first of the keys that the UNet makes of it."""
    texts = ["", "red", "blue", "star", "[red:blue:2]", "red AND blue"]
    told = [(text, way) for text in texts for way in ("a1111", "off")]
    return [(text, model.unet.prepare(model.encode([text], emphasis=way)).kv[0][0][0]) for text, way in told]


@pytest.fixture
def heard(model: Model, keys: list[tuple[str, Tensor]], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Of each UNet call the texts that were told, item by item, as far as `keys` knows them."""
    calls, true = [], model.unet.forward

    def forward(x: Tensor, t: Tensor, cond: Prepared) -> Tensor:
        calls.append([next((text for text, key in keys if key.equal(item)), "?") for item in cond.kv[0][0]])
        return true(x, t, cond)

    monkeypatch.setattr(model.unet, "forward", forward)
    return calls


def watched(name: str, levels: list[float]) -> Sampler:
    """A sampler that notes the levels it looks at."""

    def sampler(denoise: Callable, x: Tensor, plan: Plan, **options: object) -> Iterator[Step]:
        def look(x: Tensor, sigma: Tensor) -> Tensor:
            levels.append(float(sigma))
            return denoise(x, sigma)

        yield from SAMPLERS[name](look, x, plan, **options)

    sampler.__name__ = name
    return sampler


def expected(plan: Plan, levels: list[float], texts: str) -> list[str]:
    """By hand: the text of the last of the plan's levels that is not below the look's."""
    steps = [max(i for i, sigma in enumerate(plan.sigmas[:-1]) if i == 0 or level <= sigma) for level in levels]
    return [texts.split()[i] for i in steps]


@pytest.mark.parametrize("sampler", SAMPLER_NAMES)
def test_the_prompt_follows_sigma(model: Model, heard: list, sampler: str) -> None:
    """Every look, also the second one of a step, hears what holds at its own level; both prompts change."""
    levels: list[float] = []
    z = latent(model, "[red:blue:3]", negative_prompt="[star|]", steps=6, sampler=watched(sampler, levels))
    defaults = model.config.defaults
    schedule = own_schedule(defaults, sampler)
    plan = make_plan(model.table, 6, sampler, schedule, defaults.steps_offset, defaults.final_table_sigma)
    assert [call[0] for call in heard] == expected(plan, levels, "red red red blue blue blue")
    negatives = expected(plan, levels, "star - star - star -")
    assert [call[1] or "-" for call in heard] == negatives
    assert len(levels) >= 6
    assert torch.equal(z, latent(model, "[red:blue:0.5]", negative_prompt="[star|]", steps=6, sampler=sampler))


def test_a_look_ahead_belongs_to_the_level_it_lands_on(model: Model, heard: list) -> None:
    latent(model, "[red:blue:1]", steps=3, sampler="heun")
    assert [call[0] for call in heard] == ["red", "blue", "blue", "blue", "blue"]


def test_a_sampler_that_goes_back_in_noise_hears_the_earlier_text_again(model: Model, heard: list) -> None:
    def back_and_forth(denoise: Callable, x: Tensor, plan: Plan, noise: object = None) -> Iterator[Step]:
        for i in (0, 3, 1, 2, 0):
            yield Step(i, plan.sigmas[i], x, denoise(x, plan.sigmas[i].float() * (1 - 1e-4 * (i == 1))))

    list(minisd.sample(model, "[red:blue:2]", steps=4, sampler=back_and_forth))
    assert [call[0] for call in heard] == ["red", "blue", "red", "blue", "red"]


def test_each_text_is_encoded_and_prepared_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded, prepared = [], []
    encode, prepare = pipeline.encode, model.unet.prepare
    monkeypatch.setattr(pipeline, "encode", lambda *a: encoded.extend(a[2]) or encode(*a))
    monkeypatch.setattr(model.unet, "prepare", lambda cond: prepared.append(len(cond)) or prepare(cond))
    latent(model, "[red|blue] AND [red:star:6]", negative_prompt="[blue:star:3]", steps=8)
    assert sorted(encoded) == ["blue", "red", "star"]
    assert prepared == [1, 1, 1]


@pytest.mark.parametrize(
    ("prompt", "same"),
    [
        ("a [red:blue:0]", "a blue"),
        ("a [red:blue:1.0]", "a red"),
        ("a [red:blue:4]", "a red"),
        ("a [red:blue:40]", "a red"),
        ("a [red:red:2]", "a red"),
        ("a [red|red]", "a red"),
        ("a [:red:2]", "a [red:2]"),
        ("[red:blue:2]", "[red:blue:0.5]"),
    ],
)
def test_pictures_that_are_the_same_bit_for_bit(model: Model, prompt: str, same: str) -> None:
    assert torch.equal(latent(model, prompt), latent(model, same))
    negative = latent(model, "a circle", negative_prompt=prompt)
    assert torch.equal(negative, latent(model, "a circle", negative_prompt=same))


def test_pictures_that_differ(model: Model) -> None:
    prompts = ("red", "blue", "[red:blue:1]", "[red:blue:2]", "[red|blue]", "red AND blue", "red AND blue:0.5")
    drawn = [latent(model, prompt) for prompt in prompts]
    drawn += [latent(model, "red", negative_prompt=negative) for negative in ("blue", "[blue:2]")]
    assert min(deviation(a, b) for i, a in enumerate(drawn) for b in drawn[:i]) > 1e-3


def test_parts_add_up(model: Model) -> None:
    """The same part twice is one of twice the scale, weight 0 is silent, and weights multiply the scale."""
    assert deviation(latent(model, "red AND red", cfg_scale=2.0), latent(model, "red", cfg_scale=4.0)) < BATCHED
    assert deviation(latent(model, "red:1.5 AND blue:0", cfg_scale=2.0), latent(model, "red", cfg_scale=3.0)) < BATCHED
    assert deviation(latent(model, "red AND blue"), latent(model, "blue AND red")) < BATCHED
    apart = latent(model, "red AND blue:-1", cfg_scale=1.0, negative_prompt="blue")
    assert deviation(apart, latent(model, "red", cfg_scale=1.0)) < BATCHED


@pytest.mark.parametrize("emphasis", ["off", "comfy"])
def test_other_readings_of_brackets_take_it_as_text(model: Model, heard: list, emphasis: str) -> None:
    latent(model, "red AND blue", negative_prompt="[red:blue:2]", steps=4, emphasis=emphasis)
    if emphasis == "off":
        assert heard == [["red AND blue", "[red:blue:2]"]] * 4
    assert len({tuple(call) for call in heard}) == 1 and len(heard[0]) == 2


def test_image_to_image_counts_the_steps_that_are_run(model: Model) -> None:
    """As AUTOMATIC1111: a part is one of all steps, and the first that is run is the first."""
    options = {"image": to_tensor(minisd.generate(model, "red", seed=3)[0]), "strength": 0.5, "steps": 8}
    assert torch.equal(latent(model, "[red:blue:0.5]", **options), latent(model, "red", **options))
    turned = latent(model, "[red:blue:2]", **options)
    assert torch.equal(turned, latent(model, "[red:blue:0.25]", **options))
    assert not torch.equal(turned, latent(model, "red", **options))
    assert torch.equal(latent(model, "[red:blue:0]", **options), latent(model, "blue", **options))
    none = options | {"strength": 0.0}
    assert torch.equal(latent(model, "[red:blue:2]", **none), latent(model, "blue", **none))


def test_a_batch_of_unlike_prompts(model: Model) -> None:
    """Parts and turns of one image leave the others as they are alone."""
    prompts = ["red", "[red:blue:2]", "red AND star:0.5", "[blue|star]"]
    negatives = ["", "[star:2]", "blue", ""]
    together = latent(model, prompts, negative_prompt=negatives, batch_size=4, seed=5)
    for i, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        alone = latent(model, prompt, negative_prompt=negative, seed=5 + i)
        assert deviation(together[i : i + 1], alone) < BATCHED
    assert torch.equal(latent(model, prompts, negative_prompt=negatives, seed=5)[:1], latent(model, "red", seed=5))


def test_the_picture_remembers_the_prompt_as_it_was_written(model: Model) -> None:
    (picture,) = minisd.generate(model, "[red:blue:2] AND star:0.5", steps=2)
    assert '"prompt": "[red:blue:2] AND star:0.5"' in picture.info["minisd"]
