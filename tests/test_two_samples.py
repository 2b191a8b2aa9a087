"""Two samples of grouped rows: p is exact where all ways are tried, uniform under the null, and small for a shift."""

from itertools import combinations

import numpy as np
import pytest
from scipy.stats import energy_distance, kstest

from assistant.two_samples import difference, holm


def grouped(random: np.random.Generator, groups: int, rows: int, *, shift: float = 0.0) -> tuple[np.ndarray, list[int]]:
    """Rows [groups * rows, 4] that are alike within their group, with the group of each."""
    centres = random.normal(shift, 1, (groups, 1, 4))
    drawn = centres + random.normal(0, 0.2, (groups, rows, 4))
    return drawn.reshape(-1, 4), np.repeat(np.arange(groups), rows).tolist()


def test_the_exact_p_takes_every_value_once() -> None:
    """Closed form: over all 56 ways to call three of eight groups ours, p runs through 1/56, 2/56 ... 1."""
    rows, groups = grouped(np.random.default_rng(0), 8, 3)
    of = np.array(groups)
    told = []
    for chosen in combinations(range(8), 3):
        ours = np.isin(of, chosen)
        found = difference(rows[ours], of[ours].tolist(), rows[~ours], of[~ours].tolist())
        assert found.least == pytest.approx(1 / 56)
        told.append(found.p)
    assert sorted(told) == pytest.approx([(k + 1) / 56 for k in range(56)])


def test_the_distance_is_the_energy_distance() -> None:
    """In one dimension SciPy has it: the square of its distance, of rows scaled by the spread of both."""
    random = np.random.default_rng(1)
    ours, theirs = random.normal(0, 1, 30), random.normal(0.7, 2, 40)
    found = difference(ours[:, None], range(30), theirs[:, None], range(40), permutations=9)
    spread = np.concatenate([ours, theirs]).std()
    assert found.distance == pytest.approx(energy_distance(ours / spread, theirs / spread) ** 2)


def test_p_is_uniform_under_the_null_though_rows_of_a_group_are_alike() -> None:
    """Seen failing with rows permuted one by one: then nine of ten new lots of the same source seem to differ."""
    told, by_row = [], []
    for seed in range(150):
        random = np.random.default_rng(seed)
        ours, our_groups = grouped(random, 3, 6)
        theirs, their_groups = grouped(random, 14, 6)
        told.append(difference(ours, our_groups, theirs, their_groups, seed=seed, permutations=199).p)
        by_row.append(difference(ours, range(len(ours)), theirs, range(len(theirs)), seed=seed, permutations=99).p)
    assert kstest(told, "uniform").pvalue > 0.01
    assert np.mean(np.array(by_row) < 0.05) > 0.5


def test_a_shifted_sample_is_found() -> None:
    random = np.random.default_rng(2)
    found = difference(*grouped(random, 4, 5, shift=2.5), *grouped(random, 16, 5))
    assert found.p < 0.01


def test_one_new_group_cannot_be_stranger_than_one_of_all() -> None:
    random = np.random.default_rng(3)
    found = difference(*grouped(random, 1, 5, shift=9), *grouped(random, 9, 5))
    assert found.p == found.least == pytest.approx(0.1)


def test_features_that_never_change_do_not_count() -> None:
    random = np.random.default_rng(4)
    ours, our_groups = grouped(random, 3, 4)
    theirs, their_groups = grouped(random, 6, 4)
    plain = difference(ours, our_groups, theirs, their_groups)
    more, others = np.c_[ours, np.ones(len(ours))], np.c_[theirs, np.ones(len(theirs))]
    assert difference(more, our_groups, others, their_groups).p == plain.p


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
