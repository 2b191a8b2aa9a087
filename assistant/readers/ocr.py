"""Reads the lines of text in a picture with RapidOCR, where the user installed the optional `ocr` extra.

Knows nothing about scale bars. The models are those in RapidOCR's own wheel and are named by path, so that nothing is
ever fetched.
"""

import importlib.util
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, np.dtype[Any]]

LOWEST_SCORE = 0.6
SMALLEST_HEIGHT = 48  # a strip of fewer rows is enlarged first: the recogniser works on lines 48 px high
LONGEST_SIDE = 4096
_one_at_a_time = threading.Lock()  # the engine keeps its settings for a call in itself


@dataclass(frozen=True)
class Line:
    """One line of text and the box it lies in [px]."""

    text: str
    left: int
    top: int
    right: int
    bottom: int


def available() -> bool:
    """True where the extra is installed with its models."""
    return _models() is not None


def read_lines(grey: Pixels) -> list[Line]:
    """The lines of text in uint8 [R, W] pixels, in reading order; empty without the extra."""
    if not available() or grey.size == 0:
        return []
    zoom = min(-(-SMALLEST_HEIGHT // grey.shape[0]), max(1, LONGEST_SIDE // grey.shape[1]))
    with _one_at_a_time:
        found = _engine()(_enlarged(grey, zoom), use_det=True)
    if found.txts is None:
        return []
    lines = []
    for text, score, box in zip(found.txts, found.scores, found.boxes, strict=True):
        (left, top), (right, bottom) = np.min(box, axis=0) / zoom, np.max(box, axis=0) / zoom
        if score >= LOWEST_SCORE:
            lines.append(Line(text.strip(), int(left), int(top), int(right), int(bottom)))
    return lines


def read_line(grey: Pixels) -> str:
    """The text of one line that fills uint8 [R, W] pixels; empty where it is not readable."""
    if not available() or grey.size == 0:
        return ""
    with _one_at_a_time:
        found = _engine()(_enlarged(grey, 2), use_det=False)
    return str(found.txts[0]).strip() if found.txts and found.scores[0] >= LOWEST_SCORE else ""


def _enlarged(grey: Pixels, zoom: int) -> Pixels:
    """[R, W] -> [R x zoom, W x zoom, 3], as the engine wants it."""
    from PIL import Image

    image = Image.fromarray(grey)
    if zoom > 1:
        image = image.resize((grey.shape[1] * zoom, grey.shape[0] * zoom), Image.Resampling.BICUBIC)
    return np.asarray(image.convert("RGB"))


@cache
def _models() -> tuple[str, str] | None:
    """The detector and recogniser in RapidOCR's wheel, or None."""
    found = importlib.util.find_spec("rapidocr")
    if found is None or found.origin is None or importlib.util.find_spec("onnxruntime") is None:
        return None
    folder = Path(found.origin).parent / "models"
    named = [sorted(folder.glob(f"*_{task}_*.onnx")) for task in ("det", "rec")]
    return (str(named[0][0]), str(named[1][0])) if all(named) else None


@cache
def _engine() -> Any:
    from rapidocr import RapidOCR

    models = _models()
    assert models is not None
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,  # text in an info bar is upright
            "Global.max_side_len": LONGEST_SIDE,
            "Det.model_path": models[0],
            "Det.limit_side_len": 32,  # by default strips are blown up to 736 rows, ten times the work
            "Rec.model_path": models[1],
            "Rec.rec_batch_num": 1,  # a batch is padded to its longest line
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        }
    )
