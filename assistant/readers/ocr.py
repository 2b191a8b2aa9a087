"""Reads the lines of text in a picture: PP-OCR's two networks on onnxruntime. Knows nothing about scale bars.

The two models are those in RapidOCR's wheel, named by path, so that nothing is ever fetched. RapidOCR itself is not
imported: with OpenCV and its settings it costs 0.8 s of every process, its two models 0.15 s.
"""

import hashlib
import importlib.util
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from assistant.arrays import Pixels

LOWEST_SCORE = 0.6
SMALLEST_HEIGHT = 48  # a strip of fewer rows is enlarged first: the recogniser works on lines 48 px high
LONGEST_SIDE = 4096
LINE_HEIGHT = 48  # [px] as the recogniser was trained
DETECTOR_STEP = 32  # [px] its sides must be multiples of
_INK, _SURE = 0.3, 0.5  # probability from which a pixel belongs to a line, and the least mean of a whole line
SHRUNK = 0.6  # the detector marks the core of a line; so many core heights are missing above and below
SMALLEST_CORE = 3  # [px]
MOST_LINES = 60
REMEMBERED = 256  # strips whose lines are kept: the same picture is often read again

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet's
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Line:
    """One line of text and the box it lies in [px]."""

    text: str
    left: int
    top: int
    right: int
    bottom: int


def available() -> bool:
    """True where onnxruntime and the models are installed."""
    return _models() is not None


def read_lines(grey: Pixels) -> list[Line]:
    """The lines of text in uint8 [R, W] pixels, from top to bottom; empty where nothing can be read."""
    if not available() or min(grey.shape) < SMALLEST_CORE:
        return []
    return list(_remembered("lines", grey, _lines))


def read_line(grey: Pixels) -> str:
    """The text of one line that fills uint8 [R, W] pixels; empty where it is not readable."""
    if not available() or min(grey.shape) < SMALLEST_CORE:
        return ""
    return str(_remembered("line", grey, lambda pixels: _recognised(_enlarged(pixels, 2))))


_memory: "OrderedDict[bytes, Any]" = OrderedDict()
_memory_lock = threading.Lock()


def _remembered(what: str, grey: Pixels, read: Callable[[Pixels], Any]) -> Any:
    digest = hashlib.blake2b(np.ascontiguousarray(grey).tobytes(), digest_size=16)
    digest.update(f"{what} {grey.shape}".encode())
    key = digest.digest()
    with _memory_lock:
        if key in _memory:
            _memory.move_to_end(key)
            return _memory[key]
    found = read(grey)
    with _memory_lock:
        _memory[key] = found
        if len(_memory) > REMEMBERED:
            _memory.popitem(last=False)
    return found


def _lines(grey: Pixels) -> list[Line]:
    zoom = min(-(-SMALLEST_HEIGHT // grey.shape[0]), max(1, LONGEST_SIDE // grey.shape[1]))
    large = _enlarged(grey, zoom)
    found = []
    for left, top, right, bottom in _boxes(large):
        if text := _recognised(large[top:bottom, left:right]):
            found.append(Line(text, left // zoom, top // zoom, -(-right // zoom), -(-bottom // zoom)))
    return found


def _boxes(grey: Pixels) -> list[tuple[int, int, int, int]]:
    """Left, top, right, bottom of every line of upright text, from top to bottom."""
    from scipy import ndimage

    height, width = grey.shape
    shrink = min(1.0, LONGEST_SIDE / max(height, width))
    sides = [max(DETECTOR_STEP, round(side * shrink / DETECTOR_STEP) * DETECTOR_STEP) for side in (width, height)]
    resized = np.asarray(_resized(grey, sides[0], sides[1]), np.float32) / 255
    batch = ((resized[..., None] - _MEAN) / _DEVIATION).transpose(2, 0, 1)[None]
    chance = _session(0).run(None, {"x": batch})[0][0, 0]  # [h, w]
    names, _ = ndimage.label(chance > _INK)
    found = []
    for name, box in enumerate(ndimage.find_objects(names)[:MOST_LINES], start=1):
        core = box[0].stop - box[0].start
        if core < SMALLEST_CORE or chance[box][names[box] == name].mean() < _SURE:
            continue
        missing = SHRUNK * core
        edges = (box[1].start - missing, box[0].start - missing, box[1].stop + missing, box[0].stop + missing)
        scales = (width / sides[0], height / sides[1]) * 2
        left, top, right, bottom = (round(edge * scale) for edge, scale in zip(edges, scales, strict=True))
        found.append((max(0, left), max(0, top), min(width, right), min(height, bottom)))
    return sorted(found, key=lambda box: (box[1], box[0]))


def _recognised(grey: Pixels) -> str:
    """The text of one line; empty below the lowest score."""
    if min(grey.shape) < SMALLEST_CORE:
        return ""
    width = min(max(16, round(grey.shape[1] * LINE_HEIGHT / grey.shape[0])), LONGEST_SIDE)
    line = np.asarray(_resized(grey, width, LINE_HEIGHT), np.float32) / 127.5 - 1
    chances = _session(1).run(None, {"x": np.broadcast_to(line, (1, 3, *line.shape))})[0][0]  # [steps, letters]
    best = chances.argmax(axis=1)
    said = (best > 0) & np.concatenate([[True], best[1:] != best[:-1]])  # 0 is "no letter"; repeats are one letter
    if not said.any() or chances.max(axis=1)[said].mean() < LOWEST_SCORE:
        return ""
    return "".join(_letters()[index] for index in best[said]).strip()


def _enlarged(grey: Pixels, zoom: int) -> Pixels:
    return grey if zoom == 1 else _resized(grey, grey.shape[1] * zoom, grey.shape[0] * zoom)


def _resized(grey: Pixels, width: int, height: int) -> Pixels:
    from PIL import Image

    if grey.shape == (height, width):
        return grey
    return np.asarray(Image.fromarray(np.ascontiguousarray(grey)).resize((width, height), Image.Resampling.BICUBIC))


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
def _session(which: int) -> Any:
    """The detector (0) or the recogniser (1), on one thread; a session may be used by several threads at a time."""
    import onnxruntime

    models = _models()
    assert models is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(models[which], options, providers=["CPUExecutionProvider"])


@cache
def _letters() -> tuple[str, ...]:
    """What each output of the recogniser stands for."""
    stored = _session(1).get_modelmeta().custom_metadata_map["character"]
    return ("", *stored.splitlines(), " ")
