"""Weights of words: how brackets are read, and what they do to what the text encoder says.

The expected weights are products worked out here; the encodings to mix are transformers'.
"""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from text_case import TextCase, text_case  # noqa: F401  (text_case is a fixture)

from minisd.settings import EMPHASIS_NAMES
from minisd.text.emphasis import EMPHASIS, MAX_WEIGHT, Break, Span, escape, parse

UP, DOWN = 1.1, 1 / 1.1
SIGNS = "()[]:\\"
MILLION = 10**6


def spans(prompt: str, emphasis: str = "a1111") -> list:
    """Texts and weights; None for a BREAK."""
    found = parse(prompt, emphasis)
    return [None if isinstance(s, Break) else (s.text, pytest.approx(s.weight, rel=1e-12)) for s in found]


def text_of(prompt: str, emphasis: str) -> str:
    return "".join(s.text for s in parse(prompt, emphasis) if isinstance(s, Span))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", UP), (" word", 1)]),
        ("an [unimportant] word", [("an ", 1), ("unimportant", DOWN), (" word", 1)]),
        ("(red:1.3)", [("red", 1.3)]),
        ("(red: 1.3 )(blue:.5)(green:2.)(none:0)(anti:-1)(plus:+2)",
         [("red", 1.3), ("blue", 0.5), ("green", 2), ("none", 0), ("anti", -1), ("plus", 2)]),
        ("((x:1.3))", [("x", 1.3 * UP)]),
        ("(a [b (c) d] e)", [("a ", UP), ("b ", 1), ("c", UP), (" d", 1), (" e", UP)]),
        ("a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",  # one bracket is never closed
         [("a ", 1), ("house", 1.3 * UP**2), (" ", UP), ("on", UP * DOWN), (" a ", UP), ("hill", 0.5 * UP),
          (", sun, ", UP), ("sky", UP**4), (".", UP)]),
        ("(unbalanced", [("unbalanced", UP)]),
        ("[[both (kinds", [("both ", DOWN**2), ("kinds", DOWN**2 * UP)]),
        ("stray) ones] and:1.3)", [("stray) ones] and:1.3)", 1)]),
        ("(a [b) c]", [("a ", UP), ("b", 1), (" c", DOWN)]),  # they overlap
        ("(unnecessary)(parens)", [("unnecessaryparens", UP)]),
        (r"\(literal\] \\ back\slash", [(r"(literal] \ backslash", 1)]),
        (r"(a \(b\):1.2)", [("a (b)", 1.2)]),
        ("(x:abc)(x:1,3)(x:1.2.3)(x:nan)(x:1e3)", [("x:abcx:1,3x:1.2.3x:nanx:1e3", UP)]),
        ("(::1.5)", [(":", 1.5)]),
        ("()[](:1.3)", []),
        ("", []),
    ],
)  # fmt: skip
def test_brackets_as_automatic1111_reads_them(prompt: str, expected: list) -> None:
    assert spans(prompt) == spans(prompt, "no-norm") == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("an (important) word", [("an ", 1), ("important", UP), (" word", 1)]),
        ("((x:1.3))", [("x", 1.3)]),  # sets
        ("(a (b) c:1.5)", [("a ", 1.5), ("b", 1.5 * UP), (" c", 1.5)]),
        ("(a (b:0.5) c)", [("a ", UP), ("b", 0.5), (" c", UP)]),
        ("(((sky)))", [("sky", UP**3)]),
        ("[x] [(y)]", [("[x] [", 1), ("y", UP), ("]", 1)]),
        (r"\(a\) \[b\] \\", [(r"(a) \[b\] \\", 1)]),
        ("(x:1e0)(x: -.5 )", [("x", 1), ("x", -0.5)]),
        ("(a:b:1.2)(x:abc)(:1.3)", [("a:b", 1.2), ("x:abc", UP), (":1.3", UP)]),
        ("(one)(word)", [("one", UP), ("word", UP)]),
        ("a (b) (never (c:1.3)", [("a ", 1), ("b", UP), (" ", 1), ("(never (c:1.3)", 1)]),
        ("a) (plain) (b)", [("a) (plain) (b)", 1)]),  # depth is counted: one too many makes the next one plain
        ("a)( (b)", [("a)( ", 1), ("b", UP)]),
    ],
)
def test_brackets_as_comfyui_reads_them(prompt: str, expected: list) -> None:
    assert spans(prompt, "comfy") == expected


def test_off_reads_nothing() -> None:
    hard = r"(a:1.3) [b] \( BREAK ((("
    assert parse(hard, "off") == [Span(hard, 1.0)]
    assert parse("", "off") == []


@pytest.mark.parametrize("emphasis", ["a1111", "no-norm", "comfy"])
def test_break_is_no_weight_and_works_inside_brackets(emphasis: str) -> None:
    assert spans("a BREAK b", emphasis) == [("a", 1), None, ("b", 1)]
    assert spans(" BREAK\n\nBREAK b BREAK ", emphasis) == [None, None, ("b", 1), None]
    assert spans("(a BREAK b:1.2) c", emphasis) == [("a", 1.2), None, ("b", 1.2), (" c", 1)]
    assert [s.inside for s in parse("BREAK (BREAK) BREAK", emphasis) if isinstance(s, Break)] == [False, True, False]
    assert spans("BREAKS unBREAK break BREAK_", emphasis) == [("BREAKS unBREAK break BREAK_", 1)]
    assert spans("(x:-1)BREAK", emphasis) == [("x", -1), None]


@given(st.text(st.one_of(st.sampled_from(SIGNS + "BREAK "), st.characters())))
def test_escaped_text_comes_back(text: str) -> None:
    assert parse(escape(text), "a1111") == ([Span(text, 1.0)] if text else [])


@given(
    st.text().filter(lambda text: not set(text) & set("()[]\\") and "BREAK" not in text),
    st.sampled_from(EMPHASIS_NAMES),
)
def test_text_without_signs_is_itself(text: str, emphasis: str) -> None:
    assert parse(text, emphasis) == ([Span(text, 1.0)] if text else [])


def slowly(prompt: str) -> list[tuple[str, float]]:
    """Each letter and its weight, by another way: every bracket multiplies the letters it holds. Quadratic."""
    letters, rounds, squares, i = [], [], [], 0

    def multiply(start: int, factor: float) -> None:
        letters[start:] = [(letter, weight * factor) for letter, weight in letters[start:]]

    while i < len(prompt):
        sign, rest = prompt[i], prompt[i + 1 :]
        number, bracket, _ = rest.partition(")")
        if sign == "\\":
            letters += [(rest[0], 1.0)] if rest[:1] and rest[0] in "()[]\\" else []
            i += 1 + bool(rest[:1] and rest[0] in "()[]\\")
            continue
        if sign in "([":
            (rounds if sign == "(" else squares).append(len(letters))
        elif sign == ")" and rounds:
            multiply(rounds.pop(), UP)
        elif sign == "]" and squares:
            multiply(squares.pop(), DOWN)
        elif sign == ":" and bracket and rounds and number.strip() in ("1", "2", ".5", "1.", "-2"):
            multiply(rounds.pop(), float(number))
            i += len(number) + 1
        else:
            letters.append((sign, 1.0))
        i += 1
    for start, factor in [(s, UP) for s in rounds] + [(s, DOWN) for s in squares]:
        multiply(start, factor)
    return letters


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from([*SIGNS, *"([)]", ":2)", ":.5)", ": 1. )", ":-2)", "a", "b", " "]), max_size=24).map(
        "".join
    )
)
def test_weights_are_the_products_of_the_brackets_around(prompt: str) -> None:
    found = [(letter, span.weight) for span in parse(prompt, "a1111") for letter in span.text]
    wanted = slowly(prompt)
    assert [letter for letter, _ in found] == [letter for letter, _ in wanted]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in wanted], rel=1e-9)


@settings(max_examples=400)
@given(st.lists(st.sampled_from([*SIGNS, *"(())", ":2)", ":.5)", "BREAK", "a", " "]), max_size=40).map("".join))
def test_what_comfy_reads_is_a_part_of_the_prompt_in_order(prompt: str) -> None:
    left = iter(prompt)
    assert all(letter in left for letter in text_of(prompt, "comfy"))
    assert text_of(prompt, "comfy").count("a") == prompt.count("a")


@pytest.mark.parametrize(
    ("prompt", "emphasis"),
    [("(" * MILLION, "a1111"), ("([)]" * (MILLION // 4), "a1111"), ("a)" * (MILLION // 2), "a1111")]
    + [("(a" * (MILLION // 4) + ")b" * (MILLION // 4), emphasis) for emphasis in ("a1111", "comfy")],
    ids=["open", "crossed", "closed", "nested", "nested comfy"],
)
def test_a_megabyte_of_brackets_is_read_in_about_a_second(prompt: str, emphasis: str) -> None:
    """Linear, without recursion. The bound is loose because another process may share the core."""
    started = time.process_time()
    found = parse(prompt, emphasis)
    assert time.process_time() - started < 3
    assert all(abs(span.weight) <= MAX_WEIGHT for span in found)


@pytest.mark.parametrize("emphasis", ["a1111", "comfy"])
def test_no_weight_is_without_bounds(emphasis: str) -> None:
    (loud,) = parse("(" * 5000 + "x" + ")" * 5000, emphasis)
    assert loud == Span("x", MAX_WEIGHT)
    assert parse(f"(x:{'9' * 400})", emphasis) == [Span("x", MAX_WEIGHT)]
    assert parse("(" * 9000 + "(x:0)" + ")" * 9000, emphasis) == [Span("x", 0.0)]
    if emphasis == "a1111":
        assert parse("(" * 9 + "[" * 9 + "x", emphasis)[0].weight == pytest.approx(1)
        assert parse("[" * 9000 + "x", emphasis)[0].weight < 1e-29


def test_names_told_without_torch_are_the_real_ones() -> None:
    assert tuple(EMPHASIS) == EMPHASIS_NAMES


PROMPT = "a (red:1.3) circle, [small]"
PARTS = [("a", 1.0), ("red", 1.3), ("circle,", 1.0), ("small", DOWN)]


def mixed(z: np.ndarray, e: np.ndarray, w: np.ndarray, emphasis: str) -> np.ndarray:
    """The formulae on one chunk: z, e (l, d), w (l,)."""
    if emphasis == "comfy":
        return e + w[:, None] * (z - e)
    louder = w[:, None] * z
    return louder * z.mean() / louder.mean() if emphasis == "a1111" else louder


def cancelled(z: np.ndarray, e: np.ndarray, w: np.ndarray) -> float:
    """How many times smaller the means in the ratio of `a1111` are than what they are the means of."""
    return 1 + sum(np.abs(x).mean() / abs(x.mean()) for x in (z, w[:, None] * z))


@pytest.mark.parametrize("clip_skip", [1, 2])
@pytest.mark.parametrize("emphasis", ["a1111", "no-norm", "comfy"])
@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_encodings_are_transformers_mixed_by_the_formula(
    text_case: TextCase,  # noqa: F811
    family: str,
    emphasis: str,
    clip_skip: int,
) -> None:
    case = text_case(family)
    parts = PARTS if emphasis != "comfy" else [*PARTS[:3], ("[small]", 1.0)]
    cond = case.encode([PROMPT, "a red circle"], clip_skip=clip_skip, emphasis=emphasis)
    ids = [[id for text, _ in parts for id in case.content(text)], []]
    weights = [1.0, *(weight for text, weight in parts for _ in case.content(text))]
    w = np.array([*weights, *[1.0] * (case.length - len(weights))])
    wanted = [mixed(*case.hidden(i, ids, clip_skip), w, emphasis) for i in range(len(case.towers))]
    wanted = torch.from_numpy(np.concatenate(wanted, axis=-1))
    tolerance = 5e-7
    if emphasis == "a1111":  # a mean near 0 keeps the rounding of what it is the mean of
        tolerance *= max(cancelled(*case.hidden(i, ids, clip_skip), w) for i in range(len(case.towers)))
    assert (cond.context[0] - wanted).abs().max() < tolerance * wanted.abs().max()
    alone = case.encode(["a red circle"], clip_skip=clip_skip, emphasis="off")
    assert torch.equal(cond.context[1], alone.context[0])
    plain = case.encode([" ".join(text for text, _ in parts)] * 2, clip_skip=clip_skip, emphasis="off")
    assert (cond.context[0] - plain.context[0]).abs().max() > 1e-2
    assert cond.vector is None or torch.equal(cond.vector[0], plain.vector[0])  # the pooled vector knows no weights


@pytest.mark.parametrize("emphasis", EMPHASIS_NAMES)
def test_weight_one_changes_nothing(text_case: TextCase, emphasis: str) -> None:  # noqa: F811
    case = text_case("sd1")
    plain = case.encode(["a red circle"], emphasis="off").context
    assert torch.equal(case.encode(["a red circle"], emphasis=emphasis).context, plain)
    if emphasis != "off":
        assert torch.equal(case.encode(["a (red:1.0) (circle:1)"], emphasis=emphasis).context, plain)


def test_a_mean_is_each_chunks_own(text_case: TextCase) -> None:  # noqa: F811
    """AUTOMATIC1111 takes it over the batch; here a prompt does not feel its neighbours, nor its other chunks."""
    case = text_case("sd1")
    prompts = ["a (red:1.5) circle", "(blue:0.3) squares", "a star BREAK a (ring:3)"]
    alone = [case.encode([p]).context for p in prompts]
    together = case.encode(prompts).context
    assert (together[:1, : case.length] - alone[0]).abs().max() < 1e-5
    assert (together[1:2, : case.length] - alone[1]).abs().max() < 1e-5
    assert (together[2:] - alone[2]).abs().max() < 1e-5
    assert (alone[2][:, : case.length] - case.encode(["a star"]).context).abs().max() < 1e-5
    mean = case.encode(["a ring"]).context.mean()
    assert alone[2][:, case.length :].mean().item() == pytest.approx(mean.item(), rel=1e-3, abs=1e-6)


def test_weights_reach_the_unet_in_order(text_case: TextCase) -> None:  # noqa: F811
    """The further from 1, the further the context moves; both ways."""
    case = text_case("sd1")
    plain = case.encode(["a red circle"]).context
    for emphasis in ("a1111", "no-norm", "comfy"):
        for weights in ((1.1, 1.3, 2.0), (0.9, 0.6, 0.0)):
            moved = [(case.encode([f"a (red:{w}) circle"], emphasis=emphasis).context - plain).norm() for w in weights]
            assert moved == sorted(moved) and moved[0] > 0
