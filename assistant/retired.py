"""Settings that are no more, and the one value that older runs may still give them. Knows nothing about the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RETIRED: Mapping[str, Mapping[str, Any]] = {
    "hnf": {"merge": "project", "edge_weights": "binary"},
    "adapter": {"rslora": False, "rank_per_layer": False, "expert_dropout": 0.0, "router_std": 0.02},
}
"""By section; what stands here is how it is done now."""


def without_retired(section: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a section that still are. Raises ValueError where a retired one was set to anything else."""
    for key, value in RETIRED[section].items():
        if given.get(key, value) != value:
            raise ValueError(f"{section}.{key} is no setting any more, it is always {value!r}. Leave it out")
    return {key: value for key, value in given.items() if key not in RETIRED[section]}
