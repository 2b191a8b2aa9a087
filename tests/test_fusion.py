"""Fusion: absent modalities are not read, gates sum to one, every presence pattern works, classes have no place."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from assistant.attention import CrossAttention
from assistant.errors import ConfigError
from assistant.fusion import (
    STRATEGIES,
    ClassTexts,
    CrossModalBlock,
    Fused,
    Fusion,
    ModalityGate,
    NoisyExperts,
    disorder,
    drop_probability,
    surviving,
)

F64 = torch.float64
B, M, C, D = 3, 3, 5, 8


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def fusion(strategy: str, **options: Any) -> Fusion:
    return Fusion(D, M, strategy, heads=2, **options).double().eval()


def vectors() -> Tensor:
    return torch.randn(B, M, D, dtype=F64)


EVERYONE = torch.ones(B, M, dtype=torch.bool)
PATTERNS = [pattern for pattern in itertools.product([True, False], repeat=M) if any(pattern)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_presence_pattern_works(strategy: str, pattern: tuple[bool, ...]) -> None:
    """Absent vectors hold NaN; nothing of it arrives, neither forward nor backward, and weights are a distribution."""
    model, given = fusion(strategy, experts=3), vectors()
    present = torch.tensor([pattern, [True] * M, pattern])
    given[~present] = float("nan")
    fused = model(given, present)
    assert fused.vector.shape == (B, D)
    assert torch.allclose(fused.weights.sum(1), torch.ones(B, dtype=F64))
    assert torch.allclose(fused.shares.sum(1), torch.ones(B, dtype=F64))
    assert (fused.weights[~present] == 0).all()
    fused.vector.sum().backward()
    assert fused.vector.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_absent_modality_says_nothing(strategy: str) -> None:
    model, given, present = fusion(strategy), vectors(), torch.tensor([[True, False, True]] * B)
    before = model(given, present).vector
    given[:, 1] = 1e6 * torch.randn(B, D, dtype=F64)
    assert torch.equal(model(given, present).vector, before)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_present_modality_is_heard(strategy: str) -> None:
    model, given = fusion(strategy), vectors()
    before = model(given, EVERYONE).vector
    for m in range(M):
        other = given.clone()
        other[:, m] = torch.randn(B, D, dtype=F64)
        assert (model(other, EVERYONE).vector - before).abs().amax(dim=1).min() > 1e-4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batch_mates_change_nothing(strategy: str) -> None:
    model, given, present = (
        fusion(strategy, experts=2),
        vectors(),
        torch.tensor([PATTERNS[0], PATTERNS[3], PATTERNS[5]]),
    )
    alone = torch.cat([model(given[i : i + 1], present[i : i + 1]).vector for i in range(B)])
    assert torch.allclose(model(given, present).vector, alone, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradient_reaches_every_parameter(strategy: str) -> None:
    """Parts that a strategy does not use must not leave weights behind that never train."""
    model = Fusion(D, M, strategy, heads=2, experts=2, top_k=2).double().train()
    present = torch.tensor([[True, True, True], [False, True, True], [True, False, True]])
    for _ in range(8):  # dropping is drawn: often enough that each modality is dropped once
        fused: Fused = model(vectors(), present, drop=0.5)
        (fused.vector.square().sum() + fused.reconstruction + fused.disorder).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in model.named_parameters() if not p.grad.isfinite().all()] == []


# ---- the parts, in closed form


def test_gate_in_closed_form() -> None:
    gate, given = ModalityGate(D, M).double(), vectors()
    present = torch.tensor([[True, True, True], [True, False, True], [True, False, False]])
    mixture, shares, weights = gate(given, present)
    scores = [gate.weight[m] @ given[1, m] + gate.bias[m] for m in (0, 2)]
    assert torch.allclose(weights[1, [0, 2]], torch.stack(scores).softmax(0))
    assert torch.allclose(mixture[:, 0], (weights[..., None] * given).sum(1))
    assert torch.allclose(mixture[2, 0], given[2, 0])
    assert torch.equal(shares, torch.ones(B, 1, dtype=F64))


def test_two_modalities_attend_in_both_directions_as_torch_does() -> None:
    layer, given = CrossModalBlock(D, 2, 2).double(), torch.randn(B, 2, D, dtype=F64)
    normed, seen = layer.before(given), []
    for m, cross in enumerate(layer.cross):
        theirs = torch.nn.MultiheadAttention(D, 2, batch_first=True).double()
        theirs.load_state_dict(
            {
                "in_proj_weight": torch.cat([cross.q.weight, cross.kv.weight]),
                "in_proj_bias": torch.cat([cross.q.bias, cross.kv.bias]),
                "out_proj.weight": cross.out.weight,
                "out_proj.bias": cross.out.bias,
            }
        )
        seen.append(theirs(normed[:, m, None], normed[:, 1 - m, None], normed[:, 1 - m, None])[0])
    x = given + torch.cat(seen, dim=1)
    expected = x + layer.mlp(layer.norm(x))
    assert torch.allclose(layer(given, torch.ones(B, 2, dtype=torch.bool)), expected, atol=1e-12)


def test_late_fusion_averages_what_each_alone_would_say() -> None:
    model, given = fusion("late"), vectors()
    alone = [model(given, torch.eye(M, dtype=torch.bool)[m].expand(B, M)).vector for m in range(M)]
    assert torch.allclose(model(given, EVERYONE).vector, torch.stack(alone).mean(0), atol=1e-12)


def test_experts_use_the_best_k_and_noise_only_in_training() -> None:
    experts, x = NoisyExperts(D, 5, 2).double().eval(), torch.randn(64, D, dtype=F64)
    gates = experts.gates(x)
    assert ((gates > 0).sum(-1) == 2).all()
    assert torch.allclose(gates.sum(-1), torch.ones(64, dtype=F64))
    best = experts.router(x).topk(2).indices
    assert (gates.gather(-1, best) > 0).all()
    assert torch.equal(experts.gates(x), gates)
    experts.train()
    assert not torch.equal(experts.gates(x), gates)


def test_disorder_is_0_for_even_weights_and_1_for_one_alone() -> None:
    pair = torch.tensor([[True, True, False]])
    assert float(disorder(torch.tensor([[0.5, 0.5, 0.0]]), pair)) == pytest.approx(0.0, abs=1e-6)
    assert float(disorder(torch.tensor([[1.0, 0.0, 0.0]]), pair)) == pytest.approx(1.0)
    assert float(disorder(torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[True, False, False]]))) == 0.0


def test_dropping_follows_its_schedule_and_never_takes_all() -> None:
    assert [drop_probability(p, 0.3) for p in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([0.0, 0.15, 0.3, 0.3])
    present = torch.tensor([[True, True, False]]).expand(4000, 3)
    kept = surviving(present, 0.3) & present
    assert kept.any(1).all()
    # Of each modality 30 % is dropped, less the 9 % of rows that would have lost both.
    assert float((~kept[:, 0]).float().mean()) == pytest.approx(0.3 - 0.09, abs=0.03)


def test_only_what_was_dropped_is_reconstructed() -> None:
    model = fusion("intermediate").train()
    assert model(vectors(), EVERYONE).reconstruction.item() == 0.0
    assert model(vectors(), EVERYONE, drop=0.9).reconstruction.item() > 0.0
    assert torch.equal(model.eval()(vectors(), EVERYONE, drop=0.9).present, EVERYONE)


def test_reconstruction_can_be_learned() -> None:
    """One modality tells the other: after training a dropped one is told from what stayed."""
    model = Fusion(D, 2, "gated", heads=2).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    turn, losses = torch.randn(D, D), []
    for _ in range(150):
        one = torch.randn(64, D)
        fused = model(torch.stack([one, one @ turn], dim=1), torch.ones(64, 2, dtype=torch.bool), drop=0.4)
        optimizer.zero_grad()
        fused.reconstruction.backward()
        optimizer.step()
        losses.append(fused.reconstruction.item())
    assert sum(losses[-20:]) < 0.7 * sum(losses[:20])


# ---- the texts of all classes


def texts_and_row(**options: Any) -> tuple[ClassTexts, Tensor, Tensor, Tensor]:
    return ClassTexts(D, 2, **options).double(), torch.randn(B, D, dtype=F64), vectors(), torch.randn(C, D, dtype=F64)


@pytest.mark.parametrize("attention", [True, False])
def test_permuting_the_classes_permutes_the_logits_and_nothing_else(attention: bool) -> None:
    """A head that knows a class by its place would carry the label in, and could not take a new class."""
    model, row, tokens, texts = texts_and_row(attention=attention)
    order = torch.tensor([3, 0, 4, 2, 1])
    logits = model(row, tokens, EVERYONE, texts)
    assert torch.allclose(model(row, tokens, EVERYONE, texts[order]), logits[:, order], atol=1e-12)
    assert (logits.std(dim=1) > 1e-4).all()
    assert model(row, tokens, EVERYONE, torch.cat([texts, texts[:2] + 1])).shape == (B, C + 2)


def test_class_logits_depend_on_row_modalities_and_text() -> None:
    model, row, tokens, texts = texts_and_row()
    logits = model(row, tokens, EVERYONE, texts)
    for other in (
        model(row + torch.randn_like(row), tokens, EVERYONE, texts),
        model(row, tokens + torch.randn_like(tokens), EVERYONE, texts),
        model(row, tokens, EVERYONE, texts + torch.randn_like(texts)),
    ):
        assert (other - logits).abs().max() > 1e-4


def test_class_texts_do_not_look_at_absent_modalities() -> None:
    model, row, tokens, texts = texts_and_row()
    present = torch.tensor([[True, False, True]] * B)
    logits = model(row, tokens, present, texts)
    tokens[:, 1] = 1e3
    assert torch.equal(model(row, tokens, present, texts), logits)


@pytest.mark.parametrize("attention", [True, False])
def test_class_texts_leave_no_weights_untrained(attention: bool) -> None:
    model, row, tokens, texts = texts_and_row(attention=attention)
    model(row, tokens, EVERYONE, texts).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


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


@pytest.mark.parametrize(
    ("options", "code"),
    [({"strategy": "soon"}, "strategy"), ({"heads": 3}, "heads"), ({"experts": 2, "top_k": 3}, "experts")],
    ids=str,
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Fusion(D, M, **options)
    assert refused.value.code == code
