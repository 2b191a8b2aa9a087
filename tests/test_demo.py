"""`maemi demo`, small: the whole loop on real parts ends in a report that needs nothing else."""

import json
import re
from pathlib import Path

import pytest

from assistant.checkpoint import BUNDLED
from assistant.disk import MANIFEST
from serve.verbs.demo import run_demo


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")
def test_the_loop_closes(tmp_path: Path) -> None:
    assert (BUNDLED / MANIFEST).exists()
    told: list[str] = []
    summary = run_demo(tmp_path, per_class=12, steps=10, tell=lambda part, done, of, text: told.append(part))
    assert summary["before"]["caption"].keys() == summary["after"]["caption"].keys()
    assert summary["captions"] > 0
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {frozenset({"loss", "validation_loss"} & entry.keys()) for entry in logged} == {
        frozenset({"loss"}),
        frozenset({"validation_loss"}),
    }, "the report must cope with both"
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:|#)[^"]+"', page), "the report must need nothing else"
    assert {"Drawing micrographs", "Teaching offline", "Fine-tuning adapters", "Captioning a folder"} <= set(told)
