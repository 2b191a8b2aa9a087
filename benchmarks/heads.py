"""What the bundled heads say of real pictures that they were not trained on, beside simpler ways to the same answer.

    python benchmarks/heads.py --drawn drawn --real ../shared/data/open_sem ../shared/data/more_sem --cache cache

Groups: pictures of the folders' `val` and `test` groups, by the heads as they travel. Sources: each source of the
training pictures left out in turn, by heads fitted anew without further recordings; a verdict counts as said where the
travelling head's calibration and threshold would let it. Foreign: fresh pages, charts, noise and the like, and the
photographs of scikit-image. Majority and texture descriptors with a logistic head are fitted on the same training
pictures. Writes heads.json beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assistant.encoders.texture import texture_descriptors
from assistant.heads import FOREIGN, Head, Heads, held_out, load_heads
from assistant.towers import see
from training.heads import TaughtPicture, drawn, foreign, labelled, real

RESULTS = Path(__file__).with_suffix(".json")
HEADS = Path(__file__).parent.parent / "assistant" / "weights" / "heads"
PHOTOGRAPHS = ("astronaut", "camera", "cat", "coffee", "rocket", "brick", "grass", "gravel", "text", "clock", "page")
FRESH_SEED = 7


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--drawn", type=Path, nargs="+", required=True)
    parser.add_argument("--real", type=Path, nargs="+", required=True)
    parser.add_argument("--cache", type=Path, required=True)
    asked = parser.parse_args(arguments)
    heads = load_heads(HEADS)
    head = heads.head("class")
    assert head is not None
    train = [s for folder in asked.drawn for s in drawn(folder, asked.cache)]
    train += [s for folder in asked.real for s in real(folder, asked.cache)]
    unseen = [s for folder in asked.real for s in real(folder, asked.cache, splits=("val", "test"))]
    record: dict[str, Any] = {
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "trained_on": len(train),
        "groups": {name.name: on_groups(heads, name.name, unseen) for name in heads.heads},
        "baselines": baselines(train, unseen),
        "sources": on_sources(head, train),
        "foreign": on_foreign(heads, unseen),
        "seconds_per_picture": cost(heads, unseen),
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record, indent=1))


def on_groups(heads: Heads, name: str, unseen: Sequence[TaughtPicture]) -> dict[str, Any]:
    """What is said of pictures of new groups, and how often it is right; ECE of the confidence of all verdicts."""
    known = [s for s in unseen if name in s.words]
    if not known:
        return {"pictures": 0}
    rows = [next(v for v in row if v.name == name) for row in heads.verdicts(see(_floats(known)))]
    right = np.asarray([v.word == s.words[name] for v, s in zip(rows, known, strict=True)])
    said = np.asarray([not v.reason for v in rows])
    by_word = Counter(
        (s.words[name], "right" if r else "wrong") for s, r, ok in zip(known, right, said, strict=True) if ok
    )
    return {
        "pictures": len(known),
        "said": int(said.sum()),
        "right_of_said": int((right & said).sum()),
        "accuracy_if_always_said": round(float(right.mean()), 3),
        "ece": round(calibration_error(np.asarray([v.confidence for v in rows]), right), 3),
        "said_by_word": {f"{word}, {verdict}": n for (word, verdict), n in sorted(by_word.items())},
    }


def baselines(train: Sequence[TaughtPicture], unseen: Sequence[TaughtPicture]) -> dict[str, float]:
    """Accuracy on new groups where every picture gets a class."""
    truth = [s.words["class"] for s in unseen]
    taught = [s.words["class"] for s in train]
    majority = Counter(s.words["class"] for s in train if s.source).most_common(1)[0][0]
    return {
        "majority": round(float(np.mean([majority == t for t in truth])), 3),
        "texture_descriptors_logistic": by_descriptors(_floats(train), taught, _floats(unseen), truth),
    }


def by_descriptors(
    train: Sequence[np.ndarray], taught: Sequence[str], unseen: Sequence[np.ndarray], truth: Sequence[str]
) -> float:
    """Accuracy of texture descriptors of pictures [S, S] with a logistic head."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
    fitted.fit([texture_descriptors(x) for x in train], taught)
    said = fitted.predict([texture_descriptors(x) for x in unseen])
    return round(float(np.mean([s == t for s, t in zip(said, truth, strict=True)])), 3)


def on_sources(head: Head, train: Sequence[TaughtPicture]) -> dict[str, Any]:
    """Verdicts on sources that were left out, with the classes that only they have."""
    data = labelled([*train, *foreign(0, each=10)], seed=0, copies=0)
    rows = [row for row in held_out(data, "class") if row.kind == "sources"]
    likeliest = np.asarray([[1 / (1 + np.exp(-r.log_odds))] for r in rows])
    confidence = head.confidence(likeliest, np.asarray([r.distance for r in rows]))
    said = np.asarray(
        [
            r.said != FOREIGN and r.distance <= head.reach and p >= head.threshold
            for r, p in zip(rows, confidence, strict=True)
        ]
    )
    right = np.asarray([r.right for r in rows])
    return {
        "pictures": len(rows),
        "said": int(said.sum()),
        "right_of_said": int((right & said).sum()),
        "accuracy_if_always_said": round(float(right.mean()), 3),
    }


def on_foreign(heads: Heads, unseen: Sequence[TaughtPicture]) -> dict[str, Any]:
    """How well confidence tells pictures that are no micrographs from micrographs of new groups."""
    from skimage import data
    from skimage.color import rgb2gray
    from skimage.transform import resize

    photographs = []
    for name in PHOTOGRAPHS:
        image = np.asarray(getattr(data, name)())
        grey = rgb2gray(image[..., :3]) if image.ndim == 3 else image / image.max()
        side = min(grey.shape)
        photographs.append(resize(grey[:side, :side], (224, 224), anti_aliasing=True).astype(np.float32))
    groups = {"drawn": _floats(foreign(FRESH_SEED, each=20)), "photographs": photographs}
    home = _confidence(heads, see(_floats(unseen)))
    report: dict[str, Any] = {}
    for name, pictures in groups.items():
        features = see(pictures)
        away = _confidence(heads, features)
        wins = (home[:, None] > away[None]).mean() + 0.5 * (home[:, None] == away[None]).mean()
        verdicts = [next(v for v in row if v.name == "class") for row in heads.verdicts(features)]
        named = sum(not v.reason for v in verdicts)
        report[name] = {"pictures": len(pictures), "auroc": round(float(wins), 3), "named": named}
    return report


def cost(heads: Heads, unseen: Sequence[TaughtPicture]) -> dict[str, float]:
    """CPU seconds of the tower and of the heads for one picture."""
    pictures = _floats(unseen[:20])
    began = time.process_time()
    features = see(pictures)
    seen = time.process_time()
    heads.verdicts(features)
    done = time.process_time()
    return {"tower": round((seen - began) / len(pictures), 4), "heads": round((done - seen) / len(pictures), 5)}


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """Expected calibration error over equal bins of confidence."""
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    errors = [abs(confidence[place == n].mean() - right[place == n].mean()) * (place == n).mean() for n in set(place)]
    return float(sum(errors))


def _confidence(heads: Heads, features: np.ndarray) -> np.ndarray:
    """Confidence of the class verdict [N]; 0 where the picture is taken for no micrograph, or lies out of reach."""
    head = heads.head("class")
    assert head is not None
    embedded = heads.space.embed(features)
    probabilities, distance = head.judge(embedded, heads.space.spread)
    words = [head.words[n] for n in probabilities.argmax(axis=1)]
    sure = head.confidence(probabilities, distance)
    out = np.asarray([word == FOREIGN for word in words]) | (distance > head.reach)
    told: np.ndarray = np.where(out, -distance, sure)
    return told


def _floats(specimens: Sequence[TaughtPicture]) -> list[np.ndarray]:
    return [s.pixels.astype(np.float32) / 255 for s in specimens]


if __name__ == "__main__":
    main()
