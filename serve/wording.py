"""The words and digits in which a reader's findings and measured facts are shown to people, the same everywhere.

Knows nothing about terminals, pages or reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from assistant import quantities
from assistant.measurements.facts import LIKELY, SURE
from assistant.micrograph import VENDOR_NAMES

SOURCES = {"tag": "file tag", "sidecar": "side-car file", "banner": "info bar", "user": "you"}
UNCALIBRATED = "not calibrated"
SHOWN_SCORES = (
    ("caption", "bleu2", "bleu2_blind"),
    ("caption", "rougeL", "rougeL_blind"),
    ("vqa", "bleu2", "bleu2_blind"),
    ("vqa", "rougeL", "rougeL_blind"),
    ("classification", "top1", ""),
    ("classification", "coverage", ""),
    ("classification", "named_right", ""),
    ("classification", "likelihood_top1", ""),
    ("factual", "accuracy", "blind"),
    ("matching", "auroc", ""),
)
"""Section, score and blind score of an evaluation that tell most."""


def calibration_words(info: Mapping[str, Any]) -> str:
    """The calibration of an `info` record in words."""
    nm = info["pixel_size_nm"]
    if nm is None:
        return UNCALIBRATED
    source = SOURCES.get(info["pixel_size_source"], info["pixel_size_source"])
    confidence = info["pixel_size_confidence"]
    doubt = f", {confidence:.0%} sure" if confidence is not None and confidence < 1 else ""
    return f"{quantities.typeset(nm, 'nm/px', figures=4)} ({source}{doubt})"


def reading(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and value of everything the reader found; what it did not find is left out, calibration never."""
    maker = " ".join(filter(None, [VENDOR_NAMES.get(info["vendor"], info["vendor"]), info["model"]]))
    banner, window = info["banner"], info["window"]
    rows = [
        ("Pixel size", calibration_words(info)),
        ("Instrument", maker),
        ("Voltage", "" if info["hv_kv"] is None else quantities.typeset(info["hv_kv"], "kV", figures=4)),
        ("Working distance", "" if info["wd_mm"] is None else quantities.typeset(info["wd_mm"], "mm", figures=4)),
        ("Magnification", "" if info["magnification"] is None else f"{info['magnification']:,.0f} ×"),
        ("Detector", info["detector"] or ""),
        ("Frame", f"{info['width']} × {info['height']} px, {info['dtype']}"),
        ("Pages", str(info["pages"]) if info["pages"] > 1 else ""),
        ("Info bar", f"rows {banner[0]}–{banner[1] - 1}, left out" if banner else ""),
        ("Window", " – ".join(f"{v:.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in window.values()) if window else ""),
    ]
    return [(label, value) for label, value in rows if value]


def fact_rows(facts: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value, and method with its certainty of every fact that may be stated, from `Facts.as_dict`."""
    rows = []
    for item in facts["items"]:
        confidence = item.get("confidence", 1.0)
        if confidence < LIKELY or not (item.get("text") or item["value"] is not None):
            continue
        value = item.get("text") or quantities.typeset(item["value"], item["unit"])
        doubt = "" if confidence >= SURE else " (uncertain)"
        how = ", ".join(filter(None, [item.get("method", ""), f"{confidence:.0%} sure"]))
        rows.append((item["name"].replace("_", " "), value + doubt, how))
    return rows


def statement_row(statement: Mapping[str, Any]) -> tuple[str, str, str]:
    """What an answer states, the fact behind it, and how that is known, from `Statement.as_dict`."""
    fact = statement["fact"]
    if fact is None:
        return statement["text"], "not known", "No fact stands behind this."
    name = fact["name"].replace("_", " ")
    figures = 3 if fact["source"] == "measured" else 4
    value = fact["text"] or quantities.typeset(fact["value"], fact["unit"], figures=figures)
    picture = f"image {statement['image']}, " if statement["image"] else ""
    source = SOURCES.get(fact["source"], fact["source"])
    if fact["source"] == "handbook":
        return fact["text"], "MAEMI's handbook", "Written by the makers of MAEMI, not seen in the picture."
    how = fact["method"] if fact["source"] == "measured" else f"from {source}"
    return statement["text"], f"{name} {value}", f"{picture}{how}, {fact['confidence']:.0%} sure"
