"""Evidence adds up: for classes, for numbers; temperatures are found."""

import math

import pytest
import torch

from assistant.evidence import (
    MISSING,
    divergence_from_uniform,
    evidence,
    evidential_loss,
    fit_temperature,
    number_evidence,
    number_likelihood_loss,
    number_loss,
)

F64 = torch.float64


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_evidence_in_closed_form() -> None:
    """u = C / S: near 1 without evidence, near 0 with much."""
    logits = torch.tensor([[-50.0, -50.0, -50.0, -50.0], [96.0, -50.0, -50.0, -50.0]], dtype=F64)
    given = evidence(logits)
    assert given.uncertainty.tolist() == pytest.approx([1.0, 4 / 100])
    assert given.probability[0].tolist() == pytest.approx([0.25] * 4)
    assert given.probability[1].tolist() == pytest.approx([0.97, 0.01, 0.01, 0.01])
    assert given.verdict(0.5).tolist() == [MISSING, 0]
    assert given.verdict(1.0).tolist()[1] == 0
    assert given.verdict(0.01).tolist() == [MISSING, MISSING]


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


# ---- numbers


def test_likelihood_is_that_of_students_t() -> None:
    """A value under a normal-inverse-gamma is Student t with 2 alpha degrees of freedom."""
    given, truth = number_evidence(torch.randn(6, 4, dtype=F64)), torch.randn(6, dtype=F64)
    scale = (given.beta * (1 + given.v) / (given.v * given.alpha)).sqrt()
    theirs = torch.distributions.StudentT(2 * given.alpha, given.mean, scale)
    assert torch.allclose(number_likelihood_loss(given, truth), -theirs.log_prob(truth))


def test_deviation_is_that_of_drawn_values() -> None:
    given = number_evidence(torch.tensor([[1.0, 0.5, 6.0, 2.0]], dtype=F64))
    precision = torch.distributions.Gamma(given.alpha, given.beta).sample((400_000,))
    mean = given.mean + torch.randn(precision.shape, dtype=F64) / (given.v * precision).sqrt()
    values = mean + torch.randn(precision.shape, dtype=F64) / precision.sqrt()
    assert float(values.std() / given.deviation) == pytest.approx(1.0, abs=0.02)


def test_number_loss_learns_the_median_and_the_spread() -> None:
    """Two groups with different noise: the head finds both means, and which is the noisier."""
    raw = torch.zeros(2, 4, dtype=F64, requires_grad=True)
    optimizer = torch.optim.Adam([raw], lr=0.02)
    for _ in range(600):
        rows = torch.arange(2).repeat_interleave(128)
        truth = torch.tensor([3.0, -1.0], dtype=F64)[rows] + torch.tensor([0.1, 1.0], dtype=F64)[rows] * torch.randn(
            256, dtype=F64
        )
        optimizer.zero_grad()
        number_loss(raw[rows], truth).backward()
        optimizer.step()
    with torch.no_grad():
        found = number_evidence(raw)
    assert found.mean.tolist() == pytest.approx([3.0, -1.0], abs=0.15)
    assert 5 < float(found.noise[1].sqrt() / found.noise[0].sqrt()) < 20


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_is_found(true: float) -> None:
    logits = 2.0 * torch.randn(20_000, 4, dtype=F64)
    labels = torch.distributions.Categorical(logits=logits).sample()
    assert math.log(fit_temperature(logits * true, labels) / true) == pytest.approx(0.0, abs=0.05)
