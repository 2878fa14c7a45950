"""The text tower against transformers, and the clip-skip contract."""

import dataclasses
from pathlib import Path

import pytest
import torch
from oracles import BIG_G, TINY, TRUE, close, text_oracle, token_ids, twin
from torch import Tensor, nn

import minisd
from minisd.config import TextConfig
from minisd.nn.clip import CLIPText
from minisd.weights.keys import text_keys, to_ours

QUICK = TINY["sd1"].text[0]
GELU = TINY["sd2"].text[0]
PROJECTED = TINY["sdxl"].text[1]


def final_normed(theirs: nn.Module, ids: Tensor) -> Tensor:
    """Their context, final LayerNorm applied."""
    return theirs(ids).last_hidden_state


def hidden(theirs: nn.Module, ids: Tensor, skip: int) -> Tensor:
    """Their output of block N + 1 - skip, before any final norm; hidden_states[0] is the embedding."""
    return theirs(ids, output_hidden_states=True).hidden_states[-skip]


def calls(model: CLIPText) -> list[int]:
    """A list that grows by the index of every block that is run."""
    ran = []
    for i, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    return ran


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("config", [QUICK, GELU], ids=["pads with eos", "pads with 0"])
def test_context_and_pooled_equal_clip_text_model(config: TextConfig, activation: str) -> None:
    config = dataclasses.replace(config, activation=activation)
    theirs = text_oracle(config)
    ids = token_ids(config)
    context, pooled = twin(config, theirs)(ids, pooled=True)
    wanted = theirs(ids)
    assert close(context, wanted.last_hidden_state)
    assert close(pooled, wanted.pooler_output)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_context_and_pooled_equal_clip_text_model_with_projection(activation: str) -> None:
    config = dataclasses.replace(PROJECTED, activation=activation, final_norm=True)
    theirs = text_oracle(config)
    ids = token_ids(config)
    context, pooled = twin(config, theirs)(ids)
    wanted = theirs(ids)
    assert close(context, wanted.last_hidden_state)
    assert close(pooled, wanted.text_embeds)


def test_the_activations_differ() -> None:
    theirs = text_oracle(dataclasses.replace(QUICK, activation="gelu"))
    ids = token_ids(QUICK)
    assert not close(twin(QUICK, theirs)(ids)[0], final_normed(theirs, ids), tol=1e-4)


@pytest.mark.parametrize("config", [QUICK, PROJECTED], ids=["model", "with projection"])
@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_spellings_of_the_names_load(config: TextConfig, prefix: str) -> None:
    theirs = text_oracle(config)
    state = {
        name if name.startswith("text_projection") else prefix + name.removeprefix("text_model."): tensor
        for name, tensor in theirs.state_dict().items()
    }
    wanted = twin(config, theirs).state_dict()
    got = to_ours(state, text_keys(config, prefix), wanted)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("final_norm", [True, False])
@pytest.mark.parametrize("skip", [1, 2, 3, 4])
def test_clip_skip_keeps_block_n_plus_1_minus_s(skip: int, final_norm: bool) -> None:
    config = dataclasses.replace(PROJECTED, final_norm=final_norm)
    theirs = text_oracle(config)
    ids = token_ids(config)
    context, pooled = twin(config, theirs)(ids, clip_skip=skip)
    wanted = hidden(theirs, ids, skip)
    assert close(context, theirs.text_model.final_layer_norm(wanted) if final_norm else wanted)
    assert close(pooled, theirs(ids).text_embeds)  # always from the full depth


@pytest.mark.parametrize("skip", [1, 2, 3, 4])
def test_skipped_blocks_are_not_computed(skip: int) -> None:
    model = CLIPText(GELU)
    ran = calls(model)
    model(token_ids(GELU), clip_skip=skip)
    assert ran == list(range(5 - skip))
    ran.clear()
    model(token_ids(GELU), clip_skip=skip, pooled=True)
    assert ran == [0, 1, 2, 3]


def slim(config: TextConfig, layers: int) -> CLIPText:
    """The encoder at its true width and number of blocks, little else; all blocks are one, so that it stays small."""
    torch.manual_seed(0)
    config = dataclasses.replace(config, vocab_size=99, bos_id=97, eos_id=98, pad_id=0, hidden=64, max_length=16)
    model = CLIPText(dataclasses.replace(config, layers=1)).eval().requires_grad_(False)
    model.config = dataclasses.replace(config, layers=layers)
    model.blocks = nn.ModuleList([model.blocks[0]] * layers)
    return model


FAMILIES = {
    "mini": (TextConfig(width=128, heads=4, activation="gelu"), 4, 1),
    "sd1": (TRUE["sd15"].text[0], 12, 1),
    "sd2, 23 blocks": (TRUE["sd21"].text[0], 23, 2),
    "sd2, 24 blocks": (TRUE["sd21"].text[0], 24, 1),
    "sdxl, first": (TRUE["sdxl"].text[0], 12, 1),
    "sdxl, second": (BIG_G, 32, 1),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_is_indexed_bit_for_bit(family: str) -> None:
    """What leaves early is the state of a full pass, and no block behind it ran; the pooled vector does not change."""
    config, layers, first = FAMILIES[family]
    model = slim(config, layers)
    ids = token_ids(model.config)[:1]
    states = [model.token_embedding(ids) + model.position_embedding.weight]
    for block in model.blocks:
        states.append(block(states[-1]))
    pooled = model.pool(model.final_norm(states[-1]), ids)
    ran = []
    model.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    skips = range(first, model.config.depth + 1)
    for skip in skips if layers <= 12 else (*skips[:2], 12, skips[-1]):
        state = states[model.config.depth + 1 - skip]
        context, vector = model(ids, clip_skip=skip, pooled=True)
        assert torch.equal(context, model.final_norm(state) if config.final_norm else state)
        assert torch.equal(vector, pooled)
        assert len(ran) == layers  # for the pooled vector
        ran.clear()
        assert torch.equal(model(ids, clip_skip=skip, pooled=False)[0], context)
        assert len(ran) == model.config.depth + 1 - skip
        ran.clear()
    with pytest.raises(ValueError, match="out of range"):
        model(ids, clip_skip=first - 1)


def test_prompt_and_negative_prompt_skip_alike(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both through the same number of blocks, in `generate` as in `encode`."""
    model = minisd.load(tiny_model, device="cpu")
    seen = []
    forward = CLIPText.forward
    monkeypatch.setattr(CLIPText, "forward", lambda *args: seen.append(args[2]) or forward(*args))
    minisd.generate(model, "a red circle", negative_prompt="(blurry)", clip_skip=2, steps=1, output="latent")
    assert len(seen) >= 2 and set(seen) == {2}
    both, plain = (model.encode(["a red circle", "blurry"], clip_skip=skip).context for skip in (2, None))
    assert all(not close(changed, kept, tol=1e-3) for changed, kept in zip(both, plain, strict=True))


@pytest.mark.parametrize("skip", [0, 5, -1, 100])
def test_clip_skip_out_of_range_is_refused(skip: int) -> None:
    with pytest.raises(ValueError, match=rf"clip_skip {skip} is out of range 1\.\.4"):
        CLIPText(GELU)(token_ids(GELU), clip_skip=skip)


def test_23_stored_blocks_of_width_1024_count_as_24() -> None:
    config = TRUE["sd21"].text[0]
    assert (config.layers, config.width, config.depth) == (23, 1024, 24)
    assert dataclasses.replace(config, layers=24).depth == 24
    assert TextConfig(layers=23).depth == 23
    assert TRUE["sd21"].default_clip_skip == 2
    with torch.device("meta"):
        model, ids = CLIPText(config), torch.zeros(1, 77, dtype=torch.long)
    ran = calls(model)
    for skip, blocks in ((None, 23), (2, 23), (3, 22), (24, 1)):
        ran.clear()
        assert model(ids, clip_skip=skip)[0].shape == (1, 77, 1024)
        assert len(ran) == blocks
    for skip in (1, 25):
        with pytest.raises(ValueError, match=rf"clip_skip {skip} is out of range 2\.\.24"):
            model(ids, clip_skip=skip)


def test_sdxl_pair_on_the_meta_device_has_context_2048_and_pooled_1280() -> None:
    contexts = []
    for config in TRUE["sdxl"].text:
        with torch.device("meta"):
            context, pooled = CLIPText(config)(torch.zeros(1, 77, dtype=torch.long), clip_skip=2)
        contexts.append(context)
        assert (pooled is None) == (config is not BIG_G)
    assert torch.cat(contexts, dim=-1).shape == (1, 77, 2048)
    assert pooled.shape == (1, 1280)


@pytest.mark.parametrize("at", [1, 7, 15])
def test_a_later_token_does_not_change_earlier_outputs(at: int) -> None:
    model = twin(GELU, text_oracle(GELU))
    ids = token_ids(GELU)
    other = ids.clone()
    other[:, at] = (ids[:, at] + 1) % GELU.bos_id
    before, after = model(ids)[0], model(other)[0]
    assert close(after[:, :at], before[:, :at], tol=1e-6)
    assert ((after - before)[:, at:].abs().amax(dim=-1) > 1e-4).all()


def test_pooled_is_taken_at_the_first_eos() -> None:
    model = twin(QUICK, text_oracle(QUICK))
    ids = token_ids(QUICK, lengths=(3, 9))
    _, pooled = model(ids, pooled=True)
    context, none = model(ids)
    assert none is None
    assert torch.equal(pooled, torch.stack([context[0, 4], context[1, 10]]))


def test_shorter_prompts_are_the_start_of_longer_ones_and_too_long_is_refused() -> None:
    model = twin(QUICK, text_oracle(QUICK))
    ids = token_ids(QUICK)
    assert close(model(ids[:, :7])[0], model(ids)[0][:, :7], tol=1e-6)
    with pytest.raises(ValueError, match="17 tokens do not fit the encoder's 16"):
        model(torch.zeros(1, 17, dtype=torch.long))
