"""Gated cross-attention on a real tiny Llama: closed gates change nothing, masks hide what they should."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from assistant.decoder import (
    ANY_TURN,
    PADDING,
    Decoder,
    VisualContext,
    VisualMemory,
    align_index,
    decoder_layers,
    load_language_model,
)
from assistant.errors import ConfigError, RunError


def tiny_llama(**overrides: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shapes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, max_position_embeddings=64, **(shapes | overrides))).eval()


def tiny_decoder(*, every: int = 2, open_gates: bool = True) -> Decoder:
    decoder = Decoder(tiny_llama(), memory_dim=24, width=16, heads=2, every=every, max_images=4).eval()
    if open_gates:
        for block in decoder.blocks:
            block.gate.data.fill_(1.0)
            block.feed_forward_gate.data.fill_(1.0)
    return decoder


def memory(tokens: torch.Tensor, image: list[int], turn: list[int]) -> VisualMemory:
    b = len(tokens)
    return VisualMemory(tokens, torch.tensor([image] * b), torch.tensor([turn] * b))


IDS = torch.tensor([[3, 9, 4, 7, 7, 2]])
IMAGES = torch.tensor([[0, 1, 1, 2, 2, 2]])
TURNS = torch.tensor([[1, 1, 1, 2, 2, 2]])


def logits(decoder: Decoder, seen: VisualMemory | None) -> torch.Tensor:
    context = None if seen is None else decoder.context(seen)
    with torch.no_grad():
        return decoder(IDS, context=context, image_index=IMAGES, turn_index=TURNS).logits


def test_closed_gates_equal_the_base_model_bitwise() -> None:
    decoder = tiny_decoder(open_gates=False)
    base = decoder.lm(IDS).logits
    seen = memory(torch.randn(1, 5, 24), [1, 1, 2, 2, 2], [ANY_TURN] * 5)
    assert torch.equal(logits(decoder, seen), base)
    assert torch.equal(logits(decoder, None), base)


def test_open_gates_look_at_the_memory() -> None:
    decoder = tiny_decoder()
    one, other = (memory(torch.randn(1, 2, 24), [1, 1], [ANY_TURN] * 2) for _ in range(2))
    assert not torch.allclose(logits(decoder, one), logits(decoder, other))


def test_text_before_an_image_does_not_see_it() -> None:
    decoder = tiny_decoder()
    first = torch.randn(1, 1, 24)
    changed = [memory(torch.cat([first, torch.randn(1, 1, 24)], 1), [1, 2], [ANY_TURN] * 2) for _ in range(2)]
    one, other = (logits(decoder, seen) for seen in changed)
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_question_states_are_seen_in_their_own_turn_only() -> None:
    """Turn 2's question states must not reach turn 1's answer, nor turn 1's states turn 2."""
    decoder = tiny_decoder()
    states = torch.randn(1, 2, 24)
    later = states.clone()
    later[:, 1] += 1
    one, other = (logits(decoder, memory(s, [0, 0], [1, 2])) for s in (states, later))
    assert torch.equal(one[:, :3], other[:, :3])
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_padding_is_never_seen() -> None:
    decoder = tiny_decoder()
    tokens = torch.randn(1, 3, 24)
    padded = tokens.clone()
    padded[:, 2] = 1e3
    one, other = (logits(decoder, memory(t, [1, 1, PADDING], [ANY_TURN] * 3)) for t in (tokens, padded))
    assert torch.equal(one, other)


def test_nothing_to_see_gives_finite_numbers() -> None:
    """Without the sink a text token that sees no memory would attend to nothing and become NaN."""
    decoder = tiny_decoder()
    assert logits(decoder, memory(torch.randn(1, 2, 24), [PADDING] * 2, [ANY_TURN] * 2)).isfinite().all()


def test_the_order_of_images_matters_through_the_index() -> None:
    decoder = tiny_decoder()
    tokens = torch.randn(1, 2, 24)
    one, other = (logits(decoder, memory(tokens, order, [ANY_TURN] * 2)) for order in ([1, 2], [2, 1]))
    assert not torch.allclose(one[:, 3:], other[:, 3:])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    """A context held as state would be gone when the layer is recomputed."""
    gradients = []
    for checkpointed in (False, True):
        decoder = tiny_decoder().train()
        if checkpointed:
            decoder.lm.activation_checkpointing_enable()
        torch.manual_seed(1)
        tokens = torch.randn(1, 4, 24, requires_grad=True)
        context = decoder.context(memory(tokens, [1, 1, 2, 2], [ANY_TURN] * 4))
        decoder(IDS, context=context, image_index=IMAGES, turn_index=TURNS).logits.square().sum().backward()
        gradients.append((tokens.grad, decoder.blocks[0].query.weight.grad))
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_rows_of_contexts_are_selected_and_joined() -> None:
    """A joined row sees what it saw alone. Seen failing with padding that counts as image 0."""
    decoder = tiny_decoder()
    short = decoder.context(memory(torch.randn(1, 2, 24), [1, 2], [ANY_TURN] * 2))
    long = decoder.context(memory(torch.randn(2, 5, 24), [1, 1, 2, 2, 2], [ANY_TURN] * 5))
    joined = short.joined(long)
    assert joined.image_index.tolist()[0] == [1, 2, PADDING, PADDING, PADDING]

    def logits_of(context: VisualContext) -> torch.Tensor:
        rows = len(context.image_index)
        given = [t.expand(rows, -1) for t in (IDS, IMAGES, TURNS)]
        with torch.no_grad():
            return decoder(given[0], context=context, image_index=given[1], turn_index=given[2]).logits

    together = logits_of(joined.select(torch.tensor([2, 0, 0])))
    torch.testing.assert_close(together[1:], logits_of(short).expand(2, -1, -1))
    torch.testing.assert_close(together[0], logits_of(long)[1])


def test_align_index_extends_the_last_value() -> None:
    index = torch.tensor([[0, 1, 2]])
    assert align_index(index, past=0, length=3).tolist() == [[0, 1, 2]]
    assert align_index(index, past=3, length=1).tolist() == [[2]]
    assert align_index(index, past=2, length=3).tolist() == [[2, 2, 2]]


def test_cross_attention_every_n_layers() -> None:
    assert [len(tiny_decoder(every=n).blocks) for n in (1, 2, 3, 4)] == [4, 2, 2, 1]


def test_a_model_of_another_family_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown_family"):
        decoder_layers(torch.nn.Linear(2, 2))


def test_a_missing_model_is_refused(tmp_path) -> None:
    with pytest.raises(RunError, match="no_model"):
        load_language_model(str(tmp_path), quantization="none", device="cpu", dtype=torch.float32)


def test_nf4_loading_quantises_the_decoder_layers_only(tmp_path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    lm = load_language_model(str(tmp_path), quantization="nf4", device="cpu", dtype=torch.float32)
    kinds = {type(lm.model.layers[0].self_attn.q_proj).__name__, type(lm.model.layers[0].mlp.up_proj).__name__}
    assert kinds == {"Linear4bit"}
    assert type(lm.lm_head).__name__ == "Linear"
    assert not any(p.requires_grad for p in lm.parameters())
