"""The page of an evaluation: everything on it is what was scored, and text from data or models is only text."""

import re
from dataclasses import replace

import pytest
from instruction_data import write_dataset
from students import tiny_run

from assistant.inference import Assistant
from serve.verbs.evaluation_report import write_evaluation
from training.charts import Series, chart
from training.data import load_split
from training.evaluate import evaluate_assistant
from training.scores import verdict_report


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    """A page with two worst answers, one of which tries to be markup, beside another model."""
    folder = tmp_path_factory.mktemp("report")
    data = write_dataset(folder / "data", per_class=2)
    report = evaluate_assistant(Assistant(tiny_run(folder / "base")), data, baselines=False)
    rows = load_split(data, "test")
    wrong = {"id": rows[0].id, "source": "a.tif", "group": "g", "facet": "caption", "class": "powder", "false": 1,
             "unsupported": 0, "drafted_false": 2, "agrees": False, "question": "W?", "reference": "It shows powder.",
             "shown": "<script>alert(1)</script>", "drafted": "<b>It</b> shows nanowires."}  # fmt: skip
    report["worst"] = [wrong, wrong | {"id": rows[3].id, "false": 0, "unsupported": 1}]
    other = {name: report[name] for name in ("caption", "vqa", "classification", "factual", "statements")}
    ranked = [
        [("powder", 0.8), ("unknown", 0.2), ("nanowires", 0.0)],
        [("unknown", 1.0), ("powder", 0), ("nanowires", 0)],
    ]
    labels = ["nanowires", "powder"]
    report["classification"] |= verdict_report(ranked, ["powder", "nanowires"], labels, ["1", "2"])
    report["others"] = [other | {"model": "a & b", "source": "answers.csv"}]
    file = write_evaluation(folder / "report.html", report, [replace(row) for row in rows])
    return file.read_text(), report


def test_the_page_needs_nothing_else_and_runs_nothing(page: tuple[str, dict]) -> None:
    html, _ = page
    assert "<script" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;b&gt;It&lt;/b&gt; shows nanowires." in html
    assert re.findall(r'(?:src|href)="(?!data:image/png;base64,)', html) == []
    assert "default-src 'none'" in html


def test_the_page_shows_every_part(page: tuple[str, dict]) -> None:
    html, report = page
    for heading in ("Statements", "Scores", "Classification", "By facet", "By class", "Worst answers", "Provenance"):
        assert f"<h2>{heading}</h2>" in html
    assert html.count("<img ") == 2
    assert html.count("false as shown") == html.count("unsupported as shown") == 1
    assert html.count("<svg ") == 2
    assert report["provenance"]["data_fingerprint"] in html
    assert html.count("a &amp; b") >= 3
    bleu = f"{report['vqa']['bleu2']:.3f}"
    low, high = report["vqa"]["bleu2_interval"]
    assert re.search(rf"{bleu} <span class=\"interval\">{low:.2f}–{high:.2f}</span>", html)


def test_the_confusion_matrix_is_the_report_s(page: tuple[str, dict]) -> None:
    html, report = page
    cells = re.findall(r'<td class="(?:hit|miss)"[^>]*>([^<]+)</td>', html)
    assert [0 if cell == "·" else int(cell) for cell in cells] == [
        n for row in report["classification"]["confusion"][:2] for n in row
    ]


def test_charts_place_their_points() -> None:
    """Corners of the axes are corners of the picture; nothing is drawn of what is not finite."""
    svg = chart([Series("a", [(0, 0), (1, float("nan")), (2, 4)])], title="t<", x_label="x", y_label="y")
    assert 'points="58.0,254.0 702.0,34.0"' in svg
    assert "t&lt;" in svg
    assert chart([Series("a", [(0, float("inf"))])], title="t", x_label="x", y_label="y") == ""
    assert "<circle" in chart([Series("a", [(3, 3)])], title="t", x_label="x", y_label="y")
    bar = chart([Series("a", [(1, 1)], bars=0.2)], title="t", x_label="x", y_label="y", x_range=(0, 1))
    x, wide = map(float, re.findall(r'<rect x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', bar)[0])
    assert (x + wide, wide) == (702.0, pytest.approx(64.4))  # half of it would lie beyond the axis
