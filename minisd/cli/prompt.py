"""`minisd prompt PROMPT` shows how a prompt is read: its tokens, where it breaks, what may be a slip.

In: a prompt and a model's tokenizer; no weights. Out: a table for people, or JSON. A prompt that changes over the
steps, or is several at once, is told in two parts: which texts hold when, and each text once, token by token.
"""

import json
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config import Defaults, NoiseConfig, TextConfig
from ..settings import EDITED, OWN, Settings, integer
from ..text.chunks import BEGINS, Layout, lay_out
from ..text.editing import Phase, phases
from ..text.lint import lint, lint_edits
from ..text.rows import Block, Row
from ..text.tokenizer import Tokenizer, read_vocabulary
from ..weights.find import TOKENIZERS, check_options, locate
from ..weights.find import read_config as own_config
from .common import Parser, add_common, clean, refusing, whole
from .flags import add_text_flags

EPILOG = """examples:
  minisd prompt "a (red:1.3) circle BREAK on a white background"
  minisd prompt "a castle, ..." -n "blurry" -m sd15.safetensors --tokenizer FOLDER
  minisd prompt "a castle, ..." --tokenizer FOLDER       (any model of 77 tokens; --json for programs)
  minisd prompt "a [red:blue:0.5] circle AND a star:0.7" --steps 30

No weights are loaded. Exit code: 0 read, whatever there is to say of it, 2 bad input."""


def build_parser() -> Parser:
    """The flags."""
    parser = Parser("prompt", "Explain how a prompt is read: its tokens, where it breaks, what may be a slip.", EPILOG)
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt")
    parser.add_argument("-n", "--negative-prompt", metavar="TEXT", help="a negative prompt to explain as well")
    add_text_flags(parser)
    steps = "of [a:b:0.5] and [a|b] (default: the model's own, what generate takes; with --tokenizer alone 20)"
    parser.add_argument("--steps", type=whole, metavar="N", help=steps)
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", metavar="MODEL", help="whose tokens these are (default: the bundled mini)")
    own = "of a single file, which carries none; or, without --model, of any model of 77 tokens"
    group.add_argument("--tokenizer", metavar="FOLDER", help=f"a tokenizer folder {own}")
    group.add_argument("--offline", action="store_true", help="never ask the hub; what its cache has is taken")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_common(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """The whole command; returns its exit code."""
    args = build_parser().parse(argv)
    prompts = {"prompt": clean(args.prompt), "negative_prompt": clean(args.negative_prompt)}
    with refusing():
        tokenizers, own = read_tokenizers(args)
        steps = own if args.steps is None else integer("--steps", args.steps, 1, NoiseConfig().steps)
        told = {
            name: explain(tokenizers, name, text, steps, args) for name, text in prompts.items() if text is not None
        }
    if args.json:
        text = json.dumps(told, indent=2, ensure_ascii=False)
    else:
        text = "\n\n".join(page(name.replace("_", " "), one) for name, one in told.items())
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return 0


def read_tokenizers(args: Namespace) -> tuple[list[Tokenizer], int]:
    """The tokenizers of a model's towers, and its own number of steps.

    Of minisd's own folders, or a tokenizer folder alone, without torch.

    Raises:
        ValueError: there is no such model, or its tokenizer is damaged.
    """
    if args.model is None and args.tokenizer is not None:
        v = read_vocabulary(args.tokenizer)
        config = TextConfig(vocab_size=len(v.ids), bos_id=v.bos_id, eos_id=v.eos_id, pad_id=v.pad_id)
        return [Tokenizer(args.tokenizer, config)], Defaults().steps
    source = {"revision": getattr(args, "revision", None), "variant": getattr(args, "variant", None)}
    kind, path = locate(args.model, offline=args.offline, weights=False, **source)
    check_options(kind, path, args.tokenizer, prediction=None, variant=None, ema=False)
    if kind == "minisd":
        config = own_config(path)
    else:
        from ..weights.load import read_config

        config = read_config(kind, path)
    folders = [path / name for name in TOKENIZERS]
    if kind == "file" and args.tokenizer is not None:
        folders = [Path(args.tokenizer)] * len(TOKENIZERS)
    elif kind == "file":
        from ..weights.hub import find_tokenizers

        folders = find_tokenizers(config, args.offline)
    tokenizers = [Tokenizer(folder, tower) for folder, tower in zip(folders, config.text, strict=False)]
    return tokenizers, config.defaults.steps


def check_lengths(args: Namespace, calls: Iterable[tuple[str, str | None, Settings]]) -> None:
    """Refuse what long_prompt "error" will, before the model is loaded: of each call prompt, negative and settings.

    Not where there are embeddings: how many tokens their words are only their files say.

    Raises:
        BadInput: which text is too long, and what does not fit.
    """
    calls = [call for call in calls if call[2].long_prompt == "error"]
    if not calls or args.embedding:
        return
    with refusing():
        tokenizers, _ = read_tokenizers(args)
        for *prompts, settings in calls:
            for compose, prompt in zip((True, False), prompts, strict=True):
                script = script_of(prompt or "", settings.steps, settings.emphasis, compose)
                for text in dict.fromkeys(texts_of(script)):
                    lay_out(tokenizers, text, settings.emphasis, "error")


def script_of(prompt: str, steps: int, emphasis: str, compose: bool) -> list[Phase]:
    """What is said when."""
    return phases(prompt, steps, compose) if emphasis in EDITED else [Phase(0, steps, (((prompt, 1.0),),))]


def explain(tokenizers: list[Tokenizer], name: str, prompt: str, steps: int, args: Namespace) -> dict[str, Any]:
    """Everything there is to say of a prompt, as plain data. Steps and texts are counted from 1."""
    emphasis, long_prompt = args.emphasis or OWN["emphasis"], args.long_prompt or OWN["long_prompt"]
    compose = name == "prompt"
    script = script_of(prompt, steps, emphasis, compose)
    said = {text: i for i, text in enumerate(dict.fromkeys(texts_of(script)), start=1)}
    return {
        "text": prompt,
        "emphasis": emphasis,
        "long_prompt": long_prompt,
        "steps": steps,
        "phases": [
            {
                "steps": [phase.first + 1, phase.end],
                "turns": [[{"text": said[text], "weight": w} for text, w in parts] for parts in phase.turns],
            }
            for phase in script
        ],
        "texts": [explain_text(tokenizers, text, emphasis, long_prompt) for text in said],
        "lint": lint_edits(prompt, steps, compose) if emphasis in EDITED else [],
    }


def texts_of(script: list[Phase]) -> Iterator[str]:
    """What is said in some phases, over and over, in the order it is said."""
    for phase in script:
        for parts in phase.turns:
            yield from (text for text, _ in parts)


def explain_text(tokenizers: list[Tokenizer], prompt: str, emphasis: str, long_prompt: str) -> dict[str, Any]:
    """The same of one text, which stays as it is."""
    layout, slips = lay_out(tokenizers, prompt, emphasis, "chunk"), lint(prompt, emphasis)
    too_long = any(block.begins in ("full", "comma", "embedding") for block in layout.blocks)
    if too_long and long_prompt in UNSEEN:
        slips.append(UNSEEN[long_prompt])
    elif too_long:
        layout = lay_out(tokenizers, prompt, emphasis, long_prompt)
    report = layout.report
    slips += [told for told in (report.losses, report.changes) if told]
    return {
        "text": prompt,
        **{name: getattr(report, name) for name in ("tokens", "room", "chunks")},
        "table": list(table(layout, tokenizers[0])),
        "breaks": list(breaks(layout, tokenizers[0])),
        **{name: getattr(report, name) for name in ("kept", "cut", "dropped", "moved", "split")},
        "lint": slips,
    }


def numbered(layout: Layout) -> Iterator[tuple[int, Block, Row]]:
    """Every row of the encoder: its number from 1, the block it is of, and what it reads."""
    rows = ((block, block.units[start:end]) for block in layout.blocks for start, end in block.rows)
    for number, (block, row) in enumerate(rows, start=1):
        yield number, block, row


def table(layout: Layout, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """One line for each token of each row, BOS and EOS as well; what follows EOS is padding. Ids of the first tower."""
    for number, _, row in numbered(layout):
        ids = [id for unit in row for id in unit.ids[0]]
        weights = [1.0, *(unit.weight for unit in row for _ in unit.ids[0]), 1.0]
        ids = tokenizer.frame(ids)[: len(weights)]
        for position, told in enumerate(zip(ids, tokenizer.pieces(ids), weights, strict=True)):
            yield {"chunk": number, "position": position} | dict(zip(("id", "piece", "weight"), told, strict=True))


def breaks(layout: Layout, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """Where each chunk but the first begins, and why."""
    before = None
    for number, block, row in numbered(layout):
        if before is not None:
            piece = tokenizer.pieces(row[0].ids[0])[0].removesuffix("</w>") if row else ""
            yield {"chunk": number, "begins_with": piece, "why": OVERLAP if block is before else BEGINS[block.begins]}
        before = block


def page(name: str, told: dict[str, Any]) -> str:
    """The same for people."""
    texts, reading, steps = told["texts"], f" (emphasis {told['emphasis']})", told["steps"]
    edits = [f"note: {slip}" for slip in told["lint"]]
    if [text["text"] for text in texts] == [told["text"]]:
        return "\n".join([*page_of(name, texts[0], reading), *edits])
    lines = [f"{name}: {counted(len(texts), 'text')} over {counted(steps, 'step')}{reading}"]
    for phase in told["phases"]:
        first, last = phase["steps"]
        turns = " | ".join(" AND ".join(map(part, parts)) for parts in phase["turns"])
        share = f"{100 * (first - 1) / steps:.0f} to {100 * last / steps:.0f} %"
        lines.append(f"steps {first} to {last} ({share}): {turns}{', in turn' if ' | ' in turns else ''}")
    lines += edits
    for i, one in enumerate(texts, start=1):
        lines += ["", *page_of(f"text {i}, {one['text']!r}", one)]
    return "\n".join(lines)


def part(said: dict[str, Any]) -> str:
    """A part of a composition, as it would be written."""
    weight = f":{said['weight']:g}" if said["weight"] != 1 else ""
    return f"text {said['text']}{weight}"


def page_of(name: str, told: dict[str, Any], reading: str = "") -> list[str]:
    """One text for people."""
    size = f"{counted(told['tokens'], 'token')} in {counted(told['chunks'], 'chunk')} of {told['room']}"
    lines = [f"{name}: {size}{reading}", f"{'chunk':>5}{'position':>10}{'id':>8}{'weight':>9}  piece"]
    for token in told["table"]:
        numbers = f"{token['chunk']:5}{token['position']:10}{token['id']:8}{token['weight']:9.4g}"
        lines.append(f"{numbers}  {token['piece']}")
    lines += [f"chunk {b['chunk']} begins with {b['begins_with']!r}: {b['why']}" for b in told["breaks"]]
    return [*lines, *(f"note: {slip}" for slip in told["lint"])]


def counted(count: int, what: str) -> str:
    """`1 text`, `2 texts`."""
    return f"{count} {what}{'s' if count != 1 else ''}"


OVERLAP = "windows overlap, what two of them read is mixed"
UNSEEN = {
    "summarize": "summarize asks the text encoder, which is not loaded here: shown is what chunk would do",
    "error": "too long: minisd generate refuses it with --long-prompt error; shown is what chunk would do",
}
