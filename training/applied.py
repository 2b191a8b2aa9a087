"""A fitted head at use: pictures or a table in, predictions out, and what each rests on. Knows nothing about fitting.

Letters: S side of a picture, T tiles of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import DatasetError, MaemiError, MicrographError, RunError
from assistant.micrograph import Micrograph, find_micrographs, read_micrograph, to_model_input
from assistant.predictor import Items, Predicted, Prediction, Predictor
from assistant.progress import Progress
from training.fit import HEAD, fill
from training.labelled import LabelledRow, read_cells, rows_of
from training.pictures import FeatureExtractor, computed, student_features

TILES = 6
_SIDE = 256


class Applied:
    """A predictor with the network that looked at its pictures."""

    def __init__(self, predictor: Predictor, extractor: FeatureExtractor | None) -> None:
        self.predictor, self.extractor = predictor, extractor

    @classmethod
    def load(cls, run: Path) -> Applied:
        """Load what `maemi fit` wrote. Raises RunError, `other_student` where its pictures were seen by another."""
        predictor = Predictor.load(run / HEAD if (run / HEAD).is_dir() else run)
        learned = predictor.about.get("extractor")
        extractor = student_features() if learned else None
        if extractor is not None and extractor.name != learned:
            raise RunError("other_student", f"{run} was fitted on what another student saw. Fit again with this one.")
        return cls(predictor, extractor)

    def predict(
        self,
        inputs: Sequence[Path],
        *,
        explain: bool = False,
        overlay: Path | None = None,
        progress: Progress = lambda done, total, text: None,
    ) -> list[dict[str, Any]]:
        """A row per picture or line of a table, in order, each with its targets or its error."""
        rows, items, errors = self.read(inputs, progress)
        predictions = dict(zip(items, self.predictor.predict_items(list(items.values())), strict=True))
        results = []
        for place, row in enumerate(rows):
            result: dict[str, Any] = {"path": row.name, "targets": [], "error": None}
            if place in predictions:
                result["targets"] = [predicted.as_dict() for predicted in predictions[place].targets]
                if explain:
                    result["explanation"] = self.explanation(row, predictions[place], overlay)
            else:
                result["error"] = {"code": errors[row.name].code, "message": errors[row.name].message}
            results.append(result)
            progress(place + 1, len(rows), "")
        return results

    def read(
        self, inputs: Sequence[Path], progress: Progress = lambda done, total, text: None
    ) -> tuple[list[LabelledRow], dict[int, Items], dict[str, MaemiError]]:
        """Rows of pictures or of a table; the values of those that can be read, by place; what is wrong with others."""
        rows = self._rows(inputs)
        errors = fill(rows, self.extractor, progress)
        items: dict[int, Items] = {}
        for place, row in enumerate(rows):
            try:
                if row.name not in errors:
                    items[place] = self.predictor.items(row.values)
            except MaemiError as error:
                errors[row.name] = error
        return rows, items, errors

    def explanation(self, row: LabelledRow, prediction: Prediction, overlay: Path | None) -> dict[str, Any]:
        """What a prediction rests on: the weight of each modality, what it changed, and where in the picture."""
        without = {}
        for name in self.predictor.modalities:
            rest = {key: value for key, value in row.values.items() if key != name}
            if row.values.get(name) is not None and any(rest.get(m) is not None for m in self.predictor.modalities):
                without[name] = [told(t) for t in self.predictor.predict([rest])[0].targets]
        picture = None
        if overlay is not None and row.picture is not None and "texture" in row.values:
            picture = overlay / f"{row.picture.stem}-why.png"
            self._draw(row, prediction, picture)
        return {
            "sentence": sentence(prediction, without),
            "weights": {name: weight for name, weight in prediction.weights.items() if weight > 0},
            "without": without,
            "distance": prediction.distance,
            "picture": str(picture) if picture else None,
        }

    def carried_by(self, row: LabelledRow, prediction: Prediction) -> np.ndarray:
        """How much less sure, or how much other, the first target is with each tile of the picture covered [T, T]."""
        assert row.picture is not None
        square, _ = to_model_input(read_micrograph(row.picture), _SIDE)
        edges = np.linspace(0, _SIDE, TILES + 1).astype(int)
        carried = np.zeros((TILES, TILES))
        for i in range(TILES):
            for j in range(TILES):
                covered = square.copy()
                # A copy of the tile opposite: a flat patch would be a texture of its own.
                k, m = TILES - 1 - i, TILES - 1 - j
                height, width = edges[i + 1] - edges[i], edges[j + 1] - edges[j]
                other = square[edges[k] :, edges[m] :][:height, :width]
                covered[edges[i] : edges[i] + other.shape[0], edges[j] : edges[j] + other.shape[1]] = other
                seen = computed(Micrograph(covered, sha256=""), self.extractor)
                values = row.values | {name: seen[name] for name in seen if name != "instrument"}
                carried[i, j] = departure(prediction.targets[0], self.predictor.predict([values])[0].targets[0])
        return carried

    def _draw(self, row: LabelledRow, prediction: Prediction, file: Path) -> None:
        from PIL import Image

        assert row.picture is not None
        square, _ = to_model_input(read_micrograph(row.picture), 2 * _SIDE)
        carried = np.maximum(self.carried_by(row, prediction), 0.0)
        heat = Image.fromarray((carried / max(carried.max(), 1e-12)).astype(np.float32))
        shade = np.asarray(heat.resize((2 * _SIDE, 2 * _SIDE), Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
        grey = np.repeat(square[..., None], 3, axis=2)
        drawn = grey * (1 - 0.5 * shade) + 0.5 * shade * np.array([1.0, 0.55, 0.0])
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((drawn * 255).round().astype(np.uint8)).save(file)

    def _rows(self, inputs: Sequence[Path]) -> list[LabelledRow]:
        tables = [path for path in inputs if path.suffix.lower() == ".csv"]
        if tables and len(inputs) > 1:
            raise DatasetError("no_table", f"{tables[0]} stands beside other inputs. Give one CSV, or pictures.")
        if tables:
            header, cells = read_cells(tables[0])
            roles = {name: role for name, role in self.predictor.about["roles"].items() if name in header}
            return list(rows_of(tables[0], header, cells, roles))
        found: list[LabelledRow] = []
        for path in inputs:
            files = find_micrographs(path) if path.is_dir() else [path]
            if not files:
                raise MicrographError("no_images", f"{path} holds no micrographs. Name a folder with TIFF or PNG.")
            found += [LabelledRow(str(file), file) for file in files]
        return found


def told(predicted: Predicted) -> dict[str, Any]:
    """A target in short: its value, or its verdict and the probability of its best class."""
    if not predicted.target.classes:
        return {"name": predicted.target.name, "value": predicted.value, "unit": predicted.target.unit}
    return {
        "name": predicted.target.name,
        "verdict": predicted.verdict,
        "probability": max(predicted.probabilities),
    }


def departure(whole: Predicted, other: Predicted) -> float:
    """How far a prediction moved: a number in its training deviations, a class by the probability it lost."""
    if not whole.target.classes:
        return abs((other.value or 0.0) - (whole.value or 0.0)) / whole.target.scale
    best = int(np.argmax(whole.probabilities))
    return whole.probabilities[best] - other.probabilities[best]


def sentence(prediction: Prediction, without: dict[str, list[dict[str, Any]]]) -> str:
    """What a prediction rests on, in one sentence."""
    first = prediction.targets[0]
    weights = sorted(((w, name) for name, w in prediction.weights.items() if w > 0), reverse=True)
    rests = f"rests on {' and '.join(f'{name} ({weight:.0%})' for weight, name in weights[:2])}"
    if first.target.classes:
        said = f"{first.target.name} {first.verdict}, {max(first.probabilities):.2f}; {rests}"
    else:
        said = f"{first.target.name} {first.value:.4g} {first.target.unit}".rstrip() + f"; {rests}"
    lead = weights[0][1]
    if lead in without:
        rest = without[lead][0]
        other = f"{rest['value']:.4g}" if "value" in rest else f"{rest['verdict']}, {rest['probability']:.2f}"
        said += f"; without {lead} it would be {other}"
    if prediction.distance > 1.0:
        said += f"; it is {prediction.distance:.1f} times as far from all training rows as these are from one another"
    return said + "."
