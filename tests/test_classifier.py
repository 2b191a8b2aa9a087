"""MultiFusion: classes are scored by their texts, in any order; absent modalities are not read; evidence adds up."""

from typing import Any

import pytest
import torch
from torch import Tensor

from assistant.attention import CrossAttention
from assistant.classifier import (
    UNKNOWN,
    AttentionPooling,
    ModalityGate,
    MultiFusion,
    divergence_from_uniform,
    evidence,
    evidential_loss,
)
from assistant.errors import ConfigError

F64 = torch.float64
B, L, C, T, D, DT = 3, 2, 5, 6, 8, 10


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def head(**options: Any) -> MultiFusion:
    return MultiFusion(D, DT, C, 2, **options).double()


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.randn(B, D, dtype=F64),
        torch.randn(B, L, D, dtype=F64),
        torch.randn(C, T, DT, dtype=F64),
    )


def test_pooling_in_closed_form() -> None:
    pooling, tokens = AttentionPooling(DT).double(), torch.randn(1, T, DT, dtype=F64)
    scores = torch.stack([pooling.query.weight[0] @ torch.tanh(pooling.key.weight @ t) for t in tokens[0]])
    assert torch.allclose(pooling(tokens)[0], scores.softmax(0) @ tokens[0])


def test_pooling_does_not_see_padding() -> None:
    pooling, tokens = AttentionPooling(DT).double(), torch.randn(2, T, DT, dtype=F64)
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    assert torch.allclose(pooling(tokens, mask), pooling(tokens[:, :4]), atol=1e-12)


def test_cross_attention_equals_torch() -> None:
    cross = CrossAttention(D, 2).double()
    queries, context = torch.randn(B, 1, D, dtype=F64), torch.randn(B, C, D, dtype=F64)
    theirs = torch.nn.MultiheadAttention(D, 2, batch_first=True).double()
    theirs.load_state_dict(
        {
            "in_proj_weight": torch.cat([cross.q.weight, cross.kv.weight]),
            "in_proj_bias": torch.cat([cross.q.bias, cross.kv.bias]),
            "out_proj.weight": cross.out.weight,
            "out_proj.bias": cross.out.bias,
        }
    )
    assert torch.allclose(cross(queries, context), theirs(queries, context, context)[0], atol=1e-12)


@pytest.mark.parametrize("use_mha", [True, False])
def test_order_of_the_classes_does_not_matter(use_mha: bool) -> None:
    """A head that knows a class by its place would carry the label in, and could not take a new class."""
    model, (fused, scales, knowledge) = head(use_mha=use_mha), inputs()
    order = torch.tensor([3, 0, 4, 2, 1])
    logits = model(fused, scales, knowledge)
    assert logits.shape == (B, C)
    assert torch.allclose(model(fused, scales, knowledge[order]), logits[:, order], atol=1e-12)
    assert (logits.std(dim=1) > 1e-4).all()


def test_a_class_can_be_added_by_its_text() -> None:
    model, (fused, scales, knowledge) = head(), inputs()
    more = torch.cat([knowledge, torch.randn(2, T, DT, dtype=F64)])
    assert model(fused, scales, more).shape == (B, C + 2)


def test_logits_depend_on_image_scales_and_text() -> None:
    model, (fused, scales, knowledge) = head(), inputs()
    logits = model(fused, scales, knowledge)
    for other in (
        model(fused + 1.0 * torch.randn_like(fused), scales, knowledge),
        model(fused, scales + torch.randn_like(scales), knowledge),
        model(fused, scales, knowledge + torch.randn_like(knowledge)),
    ):
        assert (other - logits).abs().max() > 1e-4


def test_batch_mates_change_nothing() -> None:
    model, (fused, scales, knowledge) = head(), inputs()
    alone = model(fused[:1], scales[:1], knowledge)
    assert torch.allclose(model(fused, scales, knowledge)[:1], alone, atol=1e-12)


@pytest.mark.parametrize(
    "options", [{}, {"use_hnf": False}, {"use_text": False}, {"use_mha": False}, {"modalities": 2}], ids=str
)
def test_gradient_reaches_every_parameter(options: dict[str, Any]) -> None:
    """Switched-off parts must not leave weights behind that never train."""
    model, (fused, scales, knowledge) = head(**options), inputs()
    extras = [torch.randn(B, D, dtype=F64) for _ in range(model.modalities)]
    model(fused, scales, knowledge, extras=extras).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_without_hnf_the_hierarchy_is_not_read() -> None:
    model, (fused, scales, knowledge) = head(use_hnf=False), inputs()
    assert torch.equal(model(fused, scales, knowledge), model(fused, scales * float("nan"), knowledge))


def test_without_text_the_knowledge_is_not_read() -> None:
    model, (fused, scales, knowledge) = head(use_text=False), inputs()
    logits = model(fused, scales, knowledge * float("nan"))
    assert logits.shape == (B, C)
    assert logits.isfinite().all()


def test_without_attention_the_scales_do_not_matter() -> None:
    model, (fused, scales, knowledge) = head(use_mha=False), inputs()
    assert torch.equal(model(fused, scales, knowledge), model(fused, torch.randn_like(scales), knowledge))


# ---- further modalities


def test_gate_weights_sum_to_one_over_what_is_present() -> None:
    gate, vectors = ModalityGate(D, 3).double(), torch.randn(B, 3, D, dtype=F64)
    present = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    mixture, weights = gate(vectors, present)
    assert torch.allclose(weights.sum(1), torch.ones(B, dtype=F64))
    assert (weights[~present] == 0).all()
    assert (weights[present] > 0).all()
    assert torch.allclose(mixture[2], vectors[2, 0])
    assert torch.allclose(mixture, (weights[..., None] * vectors).sum(1))


def test_absent_modalities_are_not_read() -> None:
    """Missing metadata arrives as zeros or NaN; neither the answer nor a gradient may show it."""
    model, (fused, scales, knowledge) = head(modalities=2), inputs()
    metadata, text = torch.randn(B, D, dtype=F64), torch.randn(B, D, dtype=F64)
    present = torch.tensor([[True, True], [False, True], [False, False]])
    logits = model(fused, scales, knowledge, extras=[metadata, text], present=present)
    metadata[1:], text[2:] = float("nan"), float("inf")
    again = model(fused, scales, knowledge, extras=[metadata, text], present=present)
    assert torch.equal(again, logits)
    again.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_image_alone_is_passed_through() -> None:
    model, (fused, _, _) = head(modalities=1), inputs()
    mixed, weights = model.mix(fused, [torch.randn(B, D, dtype=F64)], torch.zeros(B, 1, dtype=torch.bool))
    assert torch.equal(mixed, fused)
    assert torch.equal(weights, torch.tensor([[1.0, 0.0]] * B, dtype=F64))
    assert torch.equal(head().mix(fused, [], None)[0], fused)


def test_wrong_number_of_modalities_is_refused() -> None:
    fused, scales, knowledge = inputs()
    with pytest.raises(ConfigError) as refused:
        head(modalities=2)(fused, scales, knowledge, extras=[fused])
    assert refused.value.code == "modalities"
    with pytest.raises(ConfigError):
        MultiFusion(9, DT, C, 2)


# ---- evidence


def test_evidence_in_closed_form() -> None:
    """u = C / S: near 1 without evidence, near 0 with much."""
    logits = torch.tensor([[-50.0, -50.0, -50.0, -50.0], [96.0, -50.0, -50.0, -50.0]], dtype=F64)
    given = evidence(logits)
    assert given.uncertainty.tolist() == pytest.approx([1.0, 4 / 100])
    assert given.probability[0].tolist() == pytest.approx([0.25] * 4)
    assert given.probability[1].tolist() == pytest.approx([0.97, 0.01, 0.01, 0.01])
    assert given.verdict(0.5).tolist() == [UNKNOWN, 0]
    assert given.verdict(1.0).tolist()[1] == 0
    assert given.verdict(0.01).tolist() == [UNKNOWN, UNKNOWN]


def test_divergence_equals_torch() -> None:
    alpha = 1.0 + 5 * torch.rand(6, 4, dtype=F64)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Dirichlet(alpha), torch.distributions.Dirichlet(torch.ones_like(alpha))
    )
    assert torch.allclose(divergence_from_uniform(alpha), expected)


def test_evidential_loss_is_the_expected_squared_error() -> None:
    logits, labels = torch.randn(5, 4, dtype=F64), torch.tensor([0, 1, 2, 3, 1])
    dirichlet = torch.distributions.Dirichlet(evidence(logits).alpha)
    target = torch.nn.functional.one_hot(labels, 4)
    expected = ((target - dirichlet.mean) ** 2 + dirichlet.variance).sum(1).mean()
    assert torch.allclose(evidential_loss(logits, labels, annealing=0.0), expected)


def test_annealing_punishes_evidence_for_wrong_classes_only() -> None:
    labels = torch.tensor([0])
    for logits, punished in [([9.0, -60.0, -60.0], False), ([-60.0, 9.0, -60.0], True)]:
        row = torch.tensor([logits], dtype=F64)
        extra = evidential_loss(row, labels, annealing=1.0) - evidential_loss(row, labels, annealing=0.0)
        assert bool(extra > 0.1) == punished
        assert float(extra) >= -1e-12


def test_evidence_learns_to_doubt_what_it_never_saw() -> None:
    """Trained on two of three clusters, the head is sure of those and calls the rest unknown."""
    centres = 4 * torch.eye(3, 8)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    labels = torch.arange(2).repeat(32)
    for step in range(150):
        seen = centres[labels] + 0.3 * torch.randn(64, 8)
        optimizer.zero_grad()
        evidential_loss(model(seen), labels, annealing=min(1.0, step / 100) * 0.1).backward()
        optimizer.step()
    with torch.no_grad():
        given = evidence(model(centres))
    assert given.probability[:2].argmax(1).tolist() == [0, 1]
    assert given.uncertainty[2] > 1.5 * given.uncertainty[:2].max()
