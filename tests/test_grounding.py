"""Text and image-grounded encoders against torch's own layers; negatives that are legal, losses in closed form;
and a student that is asked as it was taught and needs the image to answer."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from instruction_data import write_dataset
from students import conversation, open_gates, picture, tiny_run
from torch import Tensor, nn

from assistant.attention import Block, CrossAttention
from assistant.chat import CLASSIFY_PROMPT, Conversation, Message, class_answer
from assistant.checkpoint import Run, load_run
from assistant.config import LossConfig, TeachConfig, load_config
from assistant.errors import ConfigError
from assistant.grounding import (
    CLS,
    ENC,
    GroundedEncoder,
    GroundedTextEncoder,
    MatchingHead,
    contrastive_loss,
    hard_negatives,
    matching_loss,
    similarity_of,
)
from assistant.inference import Assistant
from assistant.micrograph import Micrograph, to_model_input
from assistant.model import MaemiProcessor
from data_gen.drawing.synth import render, write_synthetic
from data_gen.pipeline import teach
from training.data import Collator, TrainingSet, keys_of_the_same, load_split, matched_text
from training.stages import InstructionStage

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def text_encoder() -> GroundedTextEncoder:
    return GroundedTextEncoder(30, 8, 2, 2, max_tokens=12, pad_id=0).double()


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
    block, x = Block(8, 2).double(), torch.randn(2, 5, 8, dtype=F64)
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
        GroundedTextEncoder(30, 9, 1, 2)
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


def test_attention_is_what_the_blocks_use() -> None:
    """The last block's map, taken by hand, gives its output; hidden tokens get nothing. Seen failing with the map of
    the block's input instead of its attended text, and without the mask.
    """
    encoder, (text, mask, visual) = grounded_encoder(), inputs()
    shown = torch.tensor([[True] * 4 + [False] * 3, [False] * 7])
    maps = encoder.attention(text, mask, visual, shown)
    assert maps.shape == (2, 2, 2, 5, 7)  # [B, blocks, h, T, N]
    assert torch.allclose(maps[0].sum(-1), torch.ones((), dtype=F64))
    assert not maps[0, ..., 4:].any()
    assert not maps[1].any()  # an image that is hidden whole
    first, last = encoder.blocks
    keys = encoder.visual_norm(visual)
    x = first(text, mask, keys, shown)
    x = x + last.attention(last.attention_norm(x), mask)
    values = last.cross.kv(keys).unflatten(-1, (2, 2, 4))[:, :, 1].transpose(1, 2)  # [B, h, N, D / h]
    looked = last.cross.out((maps[:, 1] @ values).transpose(1, 2).flatten(2))
    x = x + last.cross_gate.tanh() * looked
    expected = encoder.norm(x + last.mlp_gate.tanh() * last.mlp(last.mlp_norm(x)))
    assert torch.allclose(encoder(text, mask, visual, shown)[0], expected[0], atol=1e-12)


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


# ---- matching, in a training step


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A fresh student with its gates opened."""
    run = tiny_run(tmp_path_factory.mktemp("base"))
    open_gates(run.student)
    return run


def batch_of(run: Run, dataset: Path, *, match_text: Any = "question_answer") -> dict[str, Tensor]:
    """Two images of either class, each with the question for it."""
    examples = [e for e in load_split(dataset, "train") if e.task == "classification"]
    items = TrainingSet(examples, image_size=32, settings=run.config.training, seed=0, match_text=match_text)
    return Collator(run.processor, max_tokens=200)([items[i] for i in range(4)])


def losses_of(*overrides: str) -> LossConfig:
    return load_config(None, list(overrides)).loss


def gradients(stage: InstructionStage, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run a step and return the gradient of every parameter that got one."""
    stage.zero_grad()
    stage.student.requires_grad_(True)
    torch.manual_seed(3)
    stage(**batch)["loss"].backward()
    return {name: p.grad.clone() for name, p in stage.student.named_parameters() if p.grad is not None}


def test_weights_of_the_losses_from_the_settings(run: Run, dataset: Path) -> None:
    """Seen failing with the contrast always in the sum."""
    batch = batch_of(run, dataset)
    for overrides, itm, itc in (
        ([], 1.0, 0.0),
        (["loss.itm.weight=0.5", "loss.itc.weight=2"], 0.5, 2.0),
        (["loss.itm=0", "loss.itc=1"], 0.0, 1.0),  # a bare number is a weight
    ):
        out = InstructionStage(run.student, losses_of(*overrides))(**batch)
        assert out["loss"].item() == pytest.approx((out["lm"] + itm * out["itm"] + itc * out["itc"]).item(), rel=1e-6)
    assert "itm" not in InstructionStage(run.student, losses_of("loss.itm=0"))(**batch)


def test_without_weight_the_contrast_teaches_its_projections_alone(run: Run, dataset: Path) -> None:
    """They tell which negatives are hard, and must learn that even where the objective has no contrast.

    Seen failing with untrained projections, and with states that are not detached.
    """
    batch = batch_of(run, dataset)
    plain = gradients(InstructionStage(run.student, losses_of()), batch)
    heads = {name for name in plain if name.startswith(("image_match", "text_match"))}
    assert all(plain[name].any() for name in heads if name.endswith("weight"))
    colder = gradients(
        InstructionStage(run.student, losses_of("loss.itc.temperature=0.5", "loss.itm.negatives=random")), batch
    )
    same_draw = gradients(InstructionStage(run.student, losses_of("loss.itm.negatives=random")), batch)
    changed = {name for name in plain if not torch.equal(same_draw[name], colder[name])}
    assert changed <= heads
    assert changed


def test_hard_negatives_are_drawn_by_similarity_and_random_ones_are_not(
    run: Run, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cosines over the temperature, as BLIP draws them. Seen failing with bare cosines."""
    seen: list[Tensor] = []

    def spy(similarity: Tensor, same: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen.append(similarity)
        return hard_negatives(similarity, same)

    monkeypatch.setattr("training.stages.hard_negatives", spy)
    batch, student = batch_of(run, dataset), run.student
    for kind in ("hard", "random"):
        InstructionStage(student, losses_of(f"loss.itm.negatives={kind}", "loss.itc.temperature=0.1"))(**batch)
    image = student.image_match(student.encode_images(batch["pixel_values"][batch["image_mask"]]).cls)
    text = student.text_match(student.text_encoder(batch["match_ids"], batch["match_mask"])[:, CLS])
    assert torch.allclose(seen[0], F.cosine_similarity(image[:, None], text[None], dim=-1) / 0.1, atol=1e-4)
    assert not seen[1].any()


def test_a_batch_that_says_one_thing_teaches_no_matching(run: Run, dataset: Path) -> None:
    """True pairs alone would teach the head to say yes. Seen failing with true pairs always counted."""
    batch = batch_of(run, dataset)
    batch["match_key"] = torch.zeros_like(batch["match_key"])
    out = InstructionStage(run.student, losses_of())(**batch)
    assert out["itm"].item() == 0.0
    assert out["itc"].item() == pytest.approx(0.0, abs=1e-6)
    assert out["loss"].isfinite()


def test_matching_needs_no_single_images(run: Run) -> None:
    """A batch of comparisons has nothing to match; its loss is the language model's. Seen failing with a draw of
    negatives from no pairs.
    """
    pair = Conversation((Message("user", "Compare the two images, please.", 2), Message("assistant", "Finer.")))
    batch = run.processor([pair] * 2, [[picture(0), picture(1)], [picture(2), picture(3)]])
    more = {
        "match_ids": torch.ones(2, 4, dtype=torch.long),
        "match_mask": torch.ones(2, 4, dtype=torch.bool),
        "match_key": torch.tensor([0, 1]),
        "class_index": torch.full((2,), -100),
    }
    out = InstructionStage(run.student, losses_of())(**batch, **more)
    assert out["loss"].item() == out["lm"].item()
    out["loss"].backward()


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("question_answer", "Which class does this micrograph belong to? It shows {}."),
        ("answer", "It shows {}."),
        ("auxiliary", "5 kV; count 12"),
    ],
)
def test_matched_text_from_the_settings(run: Run, dataset: Path, kind: str, text: str) -> None:
    batch = batch_of(run, dataset, match_text=losses_of(f"loss.itm.text={kind}").itm.text)
    read = [
        run.processor.tokenizer.decode(ids[mask]).strip()
        for ids, mask in zip(batch["match_ids"], batch["match_mask"], strict=True)
    ]
    assert set(read) == {text.format(label) for label in ("nanowires", "powder")}
    groups = 1 if kind == "auxiliary" else 2
    assert len(set(batch["match_key"].tolist())) == groups


def test_texts_that_say_the_same_share_a_key() -> None:
    """Another wording of the same facts is no negative. Seen failing with keys of the whole text."""
    said = [{"it shows tips."}, {"a b"}, {"the class is tips.", "it shows tips."}, {"c"}, {"the class is tips."}]
    keys = keys_of_the_same([frozenset(words) for words in said])
    assert keys[0] == keys[2] == keys[4]
    assert len({keys[0], keys[1], keys[3]}) == 3
    assert keys_of_the_same([]) == []


def test_wordings_of_a_row(dataset: Path) -> None:
    """All references say what the answer says; those of an earlier turn of the row do not."""
    example = replace(
        load_split(dataset, "train")[0],
        question="Which?",
        answer="It shows tips.",
        references=("It  shows TIPS.", "Tips."),
    )
    assert matched_text(example, "question_answer") == ("Which? It shows tips.", frozenset({"it shows tips.", "tips."}))
    later = replace(example, history=(("Is it rough?", "Yes."),))
    assert matched_text(later, "answer") == ("Yes.", frozenset({"yes."}))


# ---- what the decoder attends to


@pytest.mark.parametrize(
    ("kind", "tokens"), [("image", lambda n, q: n), ("fused", lambda n, q: q), ("both", lambda n, q: n + q)]
)
def test_decoder_memory_from_the_settings(kind: str, tokens: Any, tmp_path: Path) -> None:
    """Image tokens, grounded question states with their two summaries, or both."""
    run = tiny_run(tmp_path, f"decoder.memory={kind}")
    batch = run.processor([conversation("What is it?", "Wires.")], [[picture(0)]])
    parts = ("pixel_values", "image_mask", "question_ids", "question_mask", "turn_images")
    context = run.student.visual_context(**{name: batch[name] for name in parts})
    image = run.student.encode_images(batch["pixel_values"][0]).memory.shape[1]
    asked = int(batch["question_mask"].sum()) + 2
    assert context.image_index.shape[1] == tokens(image, asked)


# ---- the auxiliary text


def test_a_question_is_asked_as_it_was_taught(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From one file: what training reads of it and what serving asks about it are the same tokens, facts included.

    Seen failing with the facts before the metadata in serving, and with training that drops them.
    """
    write_synthetic(tmp_path / "images", classes=("particles",), per_class=2, size=(96, 128), workers=1)
    teach(tmp_path / "images", tmp_path / "data", config=TeachConfig(), workers=1)
    examples = [e for e in load_split(tmp_path / "data", "train") if len(e.images) == 1 and not e.history]
    settings = run.config.training.model_copy(update={"aux_dropout": 0.0, "turns": 1})
    taught = TrainingSet(examples[:1], image_size=32, settings=settings, seed=0)[0].conversation
    assert "kV" in taught.messages[0].aux
    asked: list[Conversation] = []
    encode = MaemiProcessor.encode

    def record(processor: MaemiProcessor, told: Conversation) -> Any:
        asked.append(told)
        return encode(processor, told)

    monkeypatch.setattr(MaemiProcessor, "encode", record)
    question = taught.messages[0].text
    next(Assistant(run).ask([tmp_path / "images" / examples[0].source], question, max_new_tokens=1), None)
    prompt, lesson = encode(run.processor, asked[0]), encode(run.processor, taught)
    assert prompt.input_ids == lesson.input_ids[: len(prompt.input_ids)]
    assert prompt.questions == lesson.questions
    assert sum(lesson.is_answer) == len(lesson.input_ids) - len(prompt.input_ids)


# ---- a trained student


CLASSES = ("biological", "fibres", "particles", "porous_sponge", "powder", "tips")


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*")
def test_a_trained_student_needs_the_image() -> None:
    """The right answer becomes less likely without the image, with a blank one, and with one of another class.

    Held on six classes; the bundled student does not need the image for every class. Seen failing with closed gates.
    """
    run = load_run(None, device="cpu")
    pixels = [np.asarray(render(label, seed=11, size=(192, 192)).pixels) for label in CLASSES]
    images = [to_model_input(Micrograph(p, "0" * 64), run.processor.image_size)[0] for p in pixels]
    talks = [conversation(CLASSIFY_PROMPT, class_answer(label), aux="") for label in CLASSES]

    def cost(shown: list[np.ndarray] | None) -> np.ndarray:
        """Negative log-likelihood of every right answer [nats]."""
        batch = run.processor(talks, [[image] for image in shown] if shown else None)
        labels = batch.pop("labels")[:, 1:]
        seen = batch if shown else {name: batch[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            logits = run.student(**seen).logits[:, :-1].float()
        nats = F.cross_entropy(logits.mT, labels, ignore_index=-100, reduction="none").sum(-1)  # [B]
        return nats.numpy()

    own = cost(images)
    for other in (None, [np.full_like(image, 0.5) for image in images], images[1:] + images[:1]):
        assert (np.abs(cost(other) - own) > 0.01).all()
        assert (cost(other) - own).mean() > 0.3
