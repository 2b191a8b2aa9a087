"""The report of an evaluation: one HTML file that needs nothing else. Knows nothing about how scores come about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assistant.disk import replacing
from serve.verbs.report import METRICS, SECTIONS
from training.charts import Series, chart

if TYPE_CHECKING:
    from training.data import Example

_HERE = Path(__file__).parent
_PEERS = {
    "likelihood_top1": "The class that its language model is likeliest to say, which nobody is told",
    "top1_texture": "Texture descriptors with a logistic head",
    "top1_linear_probe_vit": "Linear probe on the frozen image encoder",
    "top1_cnn": "Small convolutional network trained on the same split",
    "top1_majority": "Always the largest class",
}
_PICTURE_WIDTH = 420
"""Width of a picture beside an answer [px]."""


def write_evaluation(out: Path, report: Mapping[str, Any], rows: Iterable[Example]) -> Path:
    """Write a result of `evaluate` as a page; `rows`, those it was made on, have the pictures of the worst answers."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    others = report.get("others", [])
    pictures = {row.id: row.images for row in rows}
    tables = (_table(report, section, title, others) for section, title in SECTIONS.items())
    cuts = (("By facet", report["facets"]), ("By class", report["classes"]))
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string((_HERE / "evaluation.html.jinja").read_text(encoding="utf-8")).render(
        report=report,
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),  # our own
        others=others,
        statements=_statements(report, others),
        tables=[table for table in tables if table],
        peers=_peers(report, others),
        **{name: Markup(drawn) for name, drawn in _charts(report["classification"]).items()},
        cuts=[(title, table) for title, table in cuts if table],
        worst=[one | {"pictures": [_uri(png) for png in pictures.get(one["id"], ())]} for one in report["worst"]],
        particulars=_particulars(report["provenance"], others),
    )
    with replacing(out) as partial:
        partial.write_text(page, encoding="utf-8")
    return out


def _charts(scores: Mapping[str, Any]) -> dict[str, str]:
    """The reliability diagram, and the risk over coverage."""
    whole: dict[str, Any] = {"x_range": (0.0, 1.0), "y_range": (0.0, 1.0), "width": 460, "height": 320}
    sure = [(one["confidence"], one["accuracy"]) for one in scores.get("reliability", [])]
    risk = [(share, wrong) for share, wrong in scores.get("risk_coverage", [])]
    bars = Series("right", sure, bars=0.08)
    return {
        "reliability": chart(
            [bars], title="Reliability", x_label="confidence", y_label="share that is right", diagonal=True, **whole
        ),
        "risk": chart([Series("", risk)], title="Risk over coverage", x_label="coverage", y_label="wrong", **whole),
    }


def _statements(report: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Ours as shown and as drafted, then those of others, who show what they word."""
    ours = [("As shown", report["statements"]), ("As drafted", report["statements"]["drafted"])]
    return ours + [(other["model"], other["statements"]) for other in others]


def _table(
    report: Mapping[str, Any], section: str, title: str, others: Sequence[Mapping[str, Any]]
) -> tuple[str, str, list[dict[str, Any]]] | None:
    """The rows of one section of scores; None where it has none."""
    scores, baselines = report[section], report["baselines"]
    rows = [
        {
            "name": name,
            "score": scores[metric],
            "interval": scores.get(f"{metric}_interval") or (scores.get("interval") if metric == "accuracy" else None),
            "without": scores.get("without_aux" if metric == "accuracy" else f"{metric}_without_aux"),
            "blind": scores.get("blind" if metric == "accuracy" else f"{metric}_blind"),
            "majority": baselines.get("factual_majority" if metric == "accuracy" else f"{section}_{metric}_majority")
            or (baselines.get("top1_majority") if metric == "top1" else None),
            "nearest": baselines.get(
                "factual_nearest_text" if metric == "accuracy" else f"{section}_{metric}_nearest_text"
            ),
            "others": [other.get(section, {}).get(metric) for other in others],
        }
        for metric, name in METRICS.items()
        if isinstance(scores.get(metric), float)
    ]
    return (section, title, rows) if rows else None


def _peers(report: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    scores = report["classification"] | report["baselines"]
    plain = [(name, scores[key]) for key, name in _PEERS.items() if key in scores]
    asked = [(other["model"], other.get("classification", {}).get("top1")) for other in others]
    return plain + [(name, score) for name, score in asked if score is not None]


def _particulars(provenance: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    named = {
        name.replace("_", " "): ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        for name, value in provenance.items()
        if value is not None
    }
    return [(name, str(value)) for name, value in named.items()] + [
        ("beside it", f"{other['model']} ({other['source']})") for other in others
    ]


def _uri(png: bytes) -> str:
    from serve.verbs.report import picture_uri
    from training.data import decode_image

    return picture_uri(decode_image(png).pixels, _PICTURE_WIDTH)
