"""Fits what speaks for one body where bodies touch (`assistant.measurements.touching`) on outlined pictures.

    python benchmarks/joining.py [--per-class 40] [--rounds 3]

Each picture is cut into parts, and its parts are joined round by round as the last fit says; every pair of neighbours
that comes up on the way is an example, with the outlines as the answer. Logistic regression, each picture as heavy as
any other. Learnt from: the four powders of the training split and drawn scenes of the development seeds whose parts
could at all be joined to the true bodies. The last table leaves each real picture out in turn.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from assistant.measurements import touching
from assistant.measurements.picture import F64, I32, grey_window, picture_of
from assistant.measurements.touching import Parts, cut_apart, ground_of, seams_of, terms
from benchmarks.annotated import Annotated, drawn, powder

CLASSES = ("powder", "particles", "biological")
REAL_WEIGHT = 6.0
REACHABLE = 0.6
"""Share of the true bodies that the best joining of the parts finds, from which a drawn scene is learnt from."""
ROUNDS_PER_EXAMPLE = 3
DEMANDS = (0.0, 0.5, 1.0, 1.5, 2.0)
"""Log-odds from which two parts are joined; 1.5 leaves the counts of the left-out pictures unbiased, see `touching`."""
Policy = Callable[[Parts], F64]


@dataclass(eq=False)
class Case:
    """One picture cut into parts."""

    name: str
    labels: I32
    count: int
    true: I32
    """[h, w] the outlines in the small copy"""
    owner: np.ndarray
    """[count] the true body that most of each part lies in, 0 for the ground"""
    fresh: Callable[[], Parts]
    weight: float


def case_of(item: Annotated) -> Case | None:
    """Cut a picture; None where no ground is found in it."""
    picture = picture_of(item.pixels, *grey_window(item.pixels))
    if picture is None or item.labels is None:
        return None
    calm = picture.calm
    slope, seams = picture.slope, seams_of(calm)
    ground = ground_of(calm, slope)
    if ground is None:
        return None
    labels, count = cut_apart(ground, seams)
    if count < 2:
        return None
    true = item.labels[:: picture.factor, :: picture.factor][: calm.shape[0], : calm.shape[1]]
    overlap, size = np.unique(np.stack([labels.ravel(), true.ravel()]), axis=1, return_counts=True)
    owner = np.zeros(count + 1, np.int64)
    order = np.argsort(size)
    owner[overlap[0, order]] = overlap[1, order]

    def fresh() -> Parts:
        return Parts(labels, count, calm=calm, slope=slope, seams=seams, contrast=ground.contrast)

    return Case(item.name, labels, count, true, owner[1:], fresh, REAL_WEIGHT if "/Sc" in item.name else 1.0)


def found(labels: I32, true: I32) -> float:
    """Share of the true bodies of at least 12 px2 that a body overlaps by more than half of both together."""
    both = (labels > 0) & (true > 0)
    pairs, size = np.unique(np.stack([labels[both], true[both]]), axis=1, return_counts=True)
    a, b = np.bincount(labels.ravel()), np.bincount(true.ravel())
    matched = size > 0.5 * (a[pairs[0]] + b[pairs[1]] - size)
    return float(matched.sum() / max(int((b[1:] >= touching.SMALLEST_AREA).sum()), 1))


def reachable(case: Case) -> float:
    return found(np.concatenate([[0], case.owner]).astype(np.int32)[case.labels], case.true)


def examples(case: Case, policy: Policy) -> tuple[F64, np.ndarray, np.ndarray]:
    """The terms of every pair that comes up while the policy joins, whether the two are one body, and its weight.

    Every round is as heavy as any other: the last ones have few pairs left, and decide.
    """
    parts, seen, same, heavy = case.fresh(), [], [], []
    for turn in range(200):
        going = parts.join(policy(parts))
        if not len(parts.a):
            break
        if turn % ROUNDS_PER_EXAMPLE == 0 or not going:
            one, other = case.owner[parts.a], case.owner[parts.b]
            known = (one > 0) | (other > 0)
            seen.append(terms(parts.evidence())[:, known])
            same.append((one == other)[known])
            heavy.append(np.full(int(known.sum()), 1 / max(int(known.sum()), 1)))
        if not going:
            break
    weight = np.concatenate(heavy)
    return np.concatenate(seen, axis=1), np.concatenate(same), case.weight * weight / weight.sum()


def fitted(cases: list[Case], rounds: int) -> Policy:
    """Fit, join by the fit, fit again. The weights are left in `touching`."""
    from sklearn.linear_model import LogisticRegression

    def by_shape(parts: Parts) -> F64:
        e = parts.evidence()
        return np.asarray(0.2 - e[0] - 0.6 * np.minimum(e[1], 2) + 0.6 * np.minimum(e[3], 1))

    policy: Policy = by_shape
    for _ in range(rounds):
        found = [examples(case, policy) for case in cases]
        x, y, weight = (np.concatenate(part, axis=-1) for part in zip(*found, strict=True))
        model = LogisticRegression(C=10, max_iter=3000).fit(x.T, y, sample_weight=weight / weight.mean())
        touching.SEAM_WEIGHTS, touching.BIAS = model.coef_[0], float(model.intercept_[0])
        policy = touching.seam_log_odds
    return policy


def main() -> None:
    """Fit on all cases, print the weights, then leave each real picture out in turn."""
    parser = argparse.ArgumentParser(description="Fit the joining of touching bodies.")
    parser.add_argument("--per-class", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    scenes = drawn("development", classes=CLASSES, scenes=range(args.per_class))
    cases = [case for item in (*powder("train"), *scenes) if (case := case_of(item)) is not None]
    learnt = [case for case in cases if case.weight > 1 or reachable(case) > REACHABLE]
    print(len(cases), "cases,", len(learnt), "learnt from")
    for left_out in [case for case in learnt if case.weight > 1]:
        fitted([case for case in learnt if case is not left_out], args.rounds)
        show(left_out)
    fitted(learnt, args.rounds)
    for case in learnt:
        show(case)
    print("WEIGHTS =", np.round(touching.SEAM_WEIGHTS, 2).tolist(), "BIAS =", round(touching.BIAS, 2))


def show(case: Case) -> None:
    text = ""
    for demand in (2.0, 1.5, 1.0, 0.5, 0.0):
        parts = case.fresh()
        while parts.join(touching.seam_log_odds(parts) - demand):
            pass
        labels = np.concatenate([[0], parts.joined + 1]).astype(np.int32)[case.labels]
        text += f" {parts.bodies()}:{found(labels, case.true):.2f}"
    print(text)
    labels = np.concatenate([[0], parts.joined + 1]).astype(np.int32)[case.labels]
    true = int((np.bincount(case.true.ravel())[1:] >= touching.SMALLEST_AREA).sum())
    print(f"{case.name:45s} reachable {reachable(case):.2f} found {found(labels, case.true):.2f}", parts.bodies(), true)


if __name__ == "__main__":
    main()
