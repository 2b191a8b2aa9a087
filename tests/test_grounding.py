"""Text and image-grounded encoders against torch's own layers; negatives that are legal, losses in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.errors import ConfigError
from assistant.grounding import (
    CLS,
    ENC,
    CrossAttention,
    GroundedEncoder,
    MatchingHead,
    TextBlock,
    TextEncoder,
    contrastive_loss,
    hard_negatives,
    matching_loss,
    similarity_of,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def text_encoder() -> TextEncoder:
    return TextEncoder(30, 8, 2, 2, max_tokens=12, pad_id=0).double()


def grounded_encoder(*, gates: float = 0.7) -> GroundedEncoder:
    encoder = GroundedEncoder(8, 2, 2, image_dim=6).double()
    for block in encoder.blocks:
        block.cross_gate.data.fill_(gates)
        block.mlp_gate.data.fill_(gates)
    return encoder


def inputs(batch: int = 2, text: int = 5, visual: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, text, 8, dtype=F64),
        torch.ones(batch, text, dtype=torch.bool),
        torch.randn(batch, visual, 6, dtype=F64),
    )


# ---- text encoder


def test_text_block_equals_torch_layer_with_padding() -> None:
    block, x = TextBlock(8, 2).double(), torch.randn(2, 5, 8, dtype=F64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    layer = nn.TransformerEncoderLayer(
        8, 2, 32, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    pairs = {
        "self_attn.in_proj_": block.attention.qkv,
        "self_attn.out_proj.": block.attention.out,
        "linear1.": block.mlp[0],
        "linear2.": block.mlp[2],
        "norm1.": block.attention_norm,
        "norm2.": block.mlp_norm,
    }
    layer.load_state_dict({f"{name}{k}": getattr(part, k) for name, part in pairs.items() for k in ("weight", "bias")})
    expected = layer(x, src_key_padding_mask=~mask)
    assert torch.allclose(block(x, mask)[mask], expected[mask], atol=1e-12)


def test_text_has_two_states_in_front() -> None:
    encoder = text_encoder()
    ids = torch.randint(1, 30, (3, 5))
    states = encoder(ids, torch.ones_like(ids, dtype=torch.bool))
    assert states.shape == (3, 7, 8)
    assert (CLS, ENC) == (0, 1)
    assert not torch.allclose(states[:, CLS], states[:, ENC])
    (gradient,) = torch.autograd.grad(states[:, CLS].square().sum(), encoder.states)
    assert (gradient[0].abs().sum(-1) > 0).all()  # they see each other


def test_padding_changes_nothing() -> None:
    """A state that sees padding depends on the longest text of its batch."""
    encoder = text_encoder()
    short = torch.randint(1, 30, (1, 4))
    alone = encoder(short, torch.ones(1, 4, dtype=torch.bool))
    padded = torch.cat([F.pad(short, (0, 3)), torch.randint(1, 30, (1, 7))])
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    assert torch.allclose(encoder(padded, mask)[0, :6], alone[0], atol=1e-12)


def test_text_is_read_in_both_directions_and_in_order() -> None:
    encoder, ids, mask = text_encoder(), torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.bool)
    states = encoder(ids, mask)
    assert not torch.allclose(encoder(torch.tensor([[3, 4, 5, 7]]), mask)[:, :3], states[:, :3])
    assert not torch.allclose(encoder(torch.tensor([[4, 3, 5, 6]]), mask)[:, CLS], states[:, CLS])


def test_text_without_tokens_gives_its_states() -> None:
    """An image without a question still has [CLS] and [ENC]."""
    states = text_encoder()(torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, dtype=torch.bool))
    assert states.shape == (2, 2, 8)
    assert states.isfinite().all()


def test_text_that_is_too_long_is_refused() -> None:
    ids = torch.ones(1, 13, dtype=torch.long)
    with pytest.raises(ConfigError, match="13 tokens and takes 12") as refused:
        text_encoder()(ids, ids.bool())
    assert refused.value.code == "text_too_long"


def test_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError):
        TextEncoder(30, 9, 1, 2)
    with pytest.raises(ConfigError):
        GroundedEncoder(9, 1, 2, image_dim=6)


# ---- image-grounded text encoder


def test_cross_attention_equals_torch() -> None:
    cross, (text, _, visual) = CrossAttention(8, 2, 6).double(), inputs()
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    torch_cross = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True).double()
    k, v = cross.kv.weight.chunk(2)
    torch_cross.load_state_dict(
        {
            "q_proj_weight": cross.q.weight,
            "k_proj_weight": k,
            "v_proj_weight": v,
            "in_proj_bias": torch.cat([cross.q.bias, cross.kv.bias]),
            "out_proj.weight": cross.out.weight,
            "out_proj.bias": cross.out.bias,
        }
    )
    expected, _ = torch_cross(text, visual, visual, key_padding_mask=~mask)
    assert torch.allclose(cross(text, visual, mask), expected, atol=1e-12)


def test_fresh_encoder_ignores_the_image() -> None:
    """Closed gates: training starts from the text alone, and the image enters as far as it helps."""
    text, mask, visual = inputs()
    fresh = GroundedEncoder(8, 2, 2, image_dim=6).double()
    states = fresh(text, mask, visual)
    assert torch.equal(states, fresh(text, mask, 100 * torch.randn_like(visual)))
    x = text
    for block in fresh.blocks:
        x = x + block.attention(block.attention_norm(x), mask)
    assert torch.equal(states, fresh.norm(x))


def test_closed_gates_still_learn() -> None:
    """tanh has slope 1 at zero; a gate multiplied by another zero would stay shut for ever."""
    text, mask, visual = inputs()
    fresh = GroundedEncoder(8, 2, 2, image_dim=6).double()
    fresh(text, mask, visual)[:, ENC].square().sum().backward()
    for block in fresh.blocks:
        assert block.cross_gate.grad != 0
        assert block.mlp_gate.grad != 0


def test_open_gates_follow_the_formula() -> None:
    text, mask, visual = inputs()
    encoder = GroundedEncoder(8, 1, 2, image_dim=6).double()
    (block,) = encoder.blocks
    block.cross_gate.data.fill_(0.3)
    block.mlp_gate.data.fill_(-0.8)
    s = text + block.attention(block.attention_norm(text), mask)
    c = s + math.tanh(0.3) * block.cross(block.cross_norm(s), encoder.visual_norm(visual), None)
    expected = encoder.norm(c + math.tanh(-0.8) * block.mlp(block.mlp_norm(c)))
    assert torch.allclose(encoder(text, mask, visual), expected, atol=1e-12)


def test_masked_visual_tokens_are_not_seen() -> None:
    """Later images of a conversation must not answer earlier questions."""
    encoder, (text, mask, visual) = grounded_encoder(), inputs()
    shown = torch.tensor([[True] * 4 + [False] * 3] * 2)
    changed = visual.clone()
    changed[:, 4:] = 50.0
    assert torch.equal(encoder(text, mask, visual, shown), encoder(text, mask, changed, shown))
    assert torch.allclose(encoder(text, mask, visual, shown), encoder(text, mask, visual[:, :4]), atol=1e-12)
    assert not torch.allclose(encoder(text, mask, visual), encoder(text, mask, changed))


def test_text_without_any_image_stays_finite() -> None:
    """Softmax over nothing is NaN where it is not guarded."""
    encoder, (text, mask, visual) = grounded_encoder(), inputs()
    states = encoder(text, mask, visual, torch.zeros(2, 7, dtype=torch.bool))
    states.sum().backward()
    assert states.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in encoder.parameters())


def test_gradient_reaches_every_parameter() -> None:
    encoder, grounded, head = text_encoder(), grounded_encoder(), MatchingHead(8).double()
    ids = torch.randint(1, 30, (2, 12))
    mask = torch.ones_like(ids, dtype=torch.bool)
    states = grounded(encoder(ids, mask), F.pad(mask, (2, 0), value=True), torch.randn(2, 7, 6, dtype=F64))
    head(states).square().sum().backward()
    modules = nn.ModuleList([encoder, grounded, head])
    assert [name for name, p in modules.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_batch_mates_change_nothing() -> None:
    encoder, (text, mask, visual) = grounded_encoder().float(), inputs(batch=4)
    text, visual = text.float(), visual.float()
    changed = [torch.cat([x[:1], torch.randn_like(x[1:])]) for x in (text, visual)]
    assert torch.equal(encoder(text, mask, visual)[0], encoder(changed[0], mask, changed[1])[0])


# ---- matching


def test_matching_reads_the_enc_state() -> None:
    head, states = MatchingHead(8).double(), torch.randn(3, 5, 8, dtype=F64)
    expected = states[:, 1] @ head.score.weight[0] + head.score.bias
    assert torch.allclose(head(states), expected)


def test_matching_loss_in_closed_form() -> None:
    logits, labels = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([1.0, 0.0, 0.0])
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(-1)), math.log1p(math.exp(0.5))]
    assert float(matching_loss(logits, labels)) == pytest.approx(sum(losses) / 3)
    mask = torch.tensor([True, False, True])
    assert float(matching_loss(logits, labels, mask)) == pytest.approx((losses[0] + losses[2]) / 2)


def test_matching_loss_of_no_pairs_is_zero_and_trains() -> None:
    """A batch of equal captions has no negatives; 0 / 0 would end the run with NaN."""
    logits = torch.randn(3, requires_grad=True)
    loss = matching_loss(logits, torch.ones(3), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_negatives_are_never_pairs_or_equal_captions() -> None:
    """A false negative teaches the head that a true caption is wrong."""
    captions = torch.tensor([0, 1, 0, 2, 1, 3])
    same = captions[:, None] == captions[None]
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        images, texts, valid = hard_negatives(torch.randn(6, 6), same, generator)
        assert valid.all()
        assert not (captions[images] == captions).any()
        assert not (captions[texts] == captions).any()


def test_a_pair_is_no_negative_of_itself_even_if_not_marked() -> None:
    similarity = 30 * torch.eye(4)
    images, texts, valid = hard_negatives(similarity, torch.zeros(4, 4, dtype=torch.bool))
    assert valid.all()
    assert (images != torch.arange(4)).all()
    assert (texts != torch.arange(4)).all()


def test_rows_without_a_legal_negative_are_marked() -> None:
    same = torch.tensor([[True, True, False], [True, True, True], [False, True, True]])
    images, texts, valid = hard_negatives(torch.randn(3, 3), same)
    assert valid.tolist() == [True, False, True]
    assert images.tolist() == texts.tolist() == [2, 1, 0]
    everything = torch.ones(4, 4, dtype=torch.bool)
    assert not hard_negatives(torch.randn(4, 4), everything)[2].any()
    assert not hard_negatives(torch.randn(1, 1), torch.eye(1, dtype=torch.bool))[2].any()


def test_one_sided_caption_marks_hold_for_both_directions() -> None:
    same = torch.eye(3, dtype=torch.bool)
    same[0, 1] = True  # and not same[1, 0]
    for _ in range(50):
        images, texts, _ = hard_negatives(torch.randn(3, 3), same)
        assert images[0] == texts[0] == 2
        assert images[1] == texts[1] == 2


def test_rows_are_images_and_columns_are_texts() -> None:
    """Transposed, both negatives would still be legal and no longer hard."""
    similarity = torch.zeros(4, 4)
    for image, text in enumerate([1, 2, 3, 0]):
        similarity[image, text] = 40.0
    generator = torch.Generator().manual_seed(0)
    images, texts, _ = hard_negatives(similarity, torch.eye(4, dtype=torch.bool), generator)
    assert texts.tolist() == [1, 2, 3, 0]
    assert images.tolist() == [3, 0, 1, 2]


def test_negatives_are_drawn_by_softmax_plus_floor() -> None:
    similarity = torch.tensor([[9.0, 1.0, 0.0, -60.0]] * 4)
    generator, counts, draws = torch.Generator().manual_seed(0), torch.zeros(4), 4000
    for _ in range(draws):
        counts[hard_negatives(similarity, torch.eye(4, dtype=torch.bool), generator)[1][0]] += 1
    weights = similarity[0].softmax(-1) + 1e-4
    weights[0] = 0.0
    expected = weights / weights.sum()
    assert torch.allclose(counts / draws, expected, atol=0.03)
    assert expected[3] > 0.05  # the floor: an image that is far away is still tried
    assert counts[3] > 0


def test_negatives_repeat_with_the_generator() -> None:
    similarity, same = torch.randn(16, 16), torch.eye(16, dtype=torch.bool)
    draws = [hard_negatives(similarity, same, torch.Generator().manual_seed(s))[0].tolist() for s in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_contrastive_loss_in_closed_form() -> None:
    """Orthonormal pairs: every row is log(1 + (B - 1) exp(-1 / temperature)), whatever the length of the vectors."""
    vectors, alone = torch.eye(3, dtype=F64), torch.eye(3, dtype=torch.bool)
    expected = math.log1p(2 * math.exp(-1 / 0.5))
    assert float(contrastive_loss(similarity_of(vectors, 5 * vectors, 0.5), alone)) == pytest.approx(expected)
    off = vectors.roll(1, 0)  # texts of the wrong images
    assert float(contrastive_loss(similarity_of(vectors, off, 0.5), alone)) == pytest.approx(
        math.log(2 + math.exp(1 / 0.5))
    )


def test_equal_captions_are_no_negatives_in_the_contrast() -> None:
    vectors = torch.randn(4, 8, dtype=F64)
    same = torch.ones(4, 4, dtype=torch.bool)
    assert float(contrastive_loss(similarity_of(vectors, vectors.flip(0), 0.1), same)) == pytest.approx(0.0)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 2] = True  # one-sided, and holds for both directions
    similarity = torch.randn(4, 4, dtype=F64)
    kept = [[0, 1, 3], [0, 1, 2, 3], [1, 2, 3], [0, 1, 2, 3]]
    rows = [similarity[i, kept[i]].logsumexp(0) - similarity[i, i] for i in range(4)]
    columns = [similarity[kept[i], i].logsumexp(0) - similarity[i, i] for i in range(4)]
    assert float(contrastive_loss(similarity, same)) == pytest.approx(float(sum(rows + columns)) / 8)


def test_contrast_of_no_pairs_is_zero() -> None:
    """A batch of comparisons alone has none; a mean over nothing is NaN."""
    none = torch.zeros(0, 0, requires_grad=True)
    loss = contrastive_loss(none, none.bool())
    loss.backward()
    assert loss.item() == 0.0
