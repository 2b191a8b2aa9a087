"""A fitted head at use: pictures or a table in, predictions out, and what each rests on. Knows nothing about fitting.

Letters: S side of a picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from assistant.errors import DatasetError, MaemiError, MicrographError, RunError
from assistant.explain import Explanation, explain, save_over
from assistant.heads import Judgement, NumberTold, log_odds
from assistant.micrograph import Micrograph, find_micrographs, read_micrograph, to_model_input
from assistant.predictor import UNKNOWN, Items, Predicted, Prediction, Predictor
from assistant.progress import Progress
from assistant.quantities import QUANTITIES
from training.fit import HEAD, fill
from training.labelled import LabelledRow, read_cells, rows_of
from training.pictures import FeatureExtractor, computed, extractor_of

_SIDE = 256
_COUNTS = 0.01
"""Share of a modality in a target from which a sentence names it."""
_METHOD = "head of the fitted run"
_TOO_UNLIKE = "the picture is too unlike those that the classifier was trained on"


class Applied:
    """A predictor with the network that looked at its pictures."""

    def __init__(self, predictor: Predictor, extractor: FeatureExtractor | None) -> None:
        self.predictor, self.extractor = predictor, extractor
        self._last: tuple[Micrograph, Prediction | None] | None = None  # so that a picture is looked at once

    @classmethod
    def load(cls, run: Path) -> Applied:
        """Load what `maemi fit` wrote. Raises RunError, `other_network` where its pictures were seen by another."""
        predictor = Predictor.load(run / HEAD if (run / HEAD).is_dir() else run)
        learned = predictor.about.get("extractor")
        extractor = extractor_of("tower" if learned.startswith("tower") else "student") if learned else None
        if extractor is not None and extractor.name != learned:
            raise RunError("other_network", f"{run} was fitted on what another network saw. Fit again with this one.")
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

    @property
    def words(self) -> Mapping[str, tuple[str, ...]]:
        """The classes that an answer may name, by what is asked: class, shape, surface, arrangement."""
        sayable = {name for name, quantity in QUANTITIES.items() if quantity.source == "predicted"}
        return {target.name: target.classes for target in self.predictor.targets if target.name in sayable}

    def verdicts(self, m: Micrograph) -> tuple[Judgement, ...]:
        """What the run says of a picture alone. A class is said where the set that holds the true one has it alone."""
        told = []
        prediction = self._alone(m)
        for predicted in prediction.targets if prediction else ():
            classes = self.words.get(predicted.target.name)
            if classes is None:
                continue
            reason = ""
            if prediction and prediction.distance > 1.0:
                reason = _TOO_UNLIKE
            elif len(predicted.likely) != 1 or predicted.verdict == UNKNOWN:
                reason = "the classifier is not sure enough of any of its words"
            best = int(np.argmax(predicted.probabilities))
            shares = dict(zip(classes, predicted.probabilities, strict=True))
            told.append(
                Judgement(predicted.target.name, classes[best], predicted.probabilities[best], reason, shares, _METHOD)
            )
        return tuple(told)

    def numbers(self, m: Micrograph) -> tuple[NumberTold, ...]:
        """The numbers that the run tells from a picture alone, each said where an interval can be promised."""
        told = []
        prediction = self._alone(m)
        for one in prediction.targets if prediction else ():
            if one.target.classes or one.value is None:
                continue
            reason = "too few groups were held out to promise an interval" if one.low is None else ""
            if prediction and prediction.distance > 1.0:
                reason = _TOO_UNLIKE
            target = one.target
            told.append(
                NumberTold(target.name, one.value, target.unit, one.low, one.high, target.coverage, _METHOD, reason)
            )
        return tuple(told)

    def _alone(self, m: Micrograph) -> Prediction | None:
        """What is predicted of a picture by itself; None where the run learned nothing that a picture tells."""
        last = self._last
        if last is None or last[0] is not m:
            values = computed(m, self.extractor)
            here = any(values.get(name) is not None for name in self.predictor.modalities)
            self._last = last = m, self.predictor.predict([values])[0] if here else None
        return last[1]

    def explanation(self, row: LabelledRow, prediction: Prediction, overlay: Path | None) -> dict[str, Any]:
        """What a prediction rests on: the weight of each modality, what it changed, and where in the picture."""
        without = {}
        for name in self.predictor.modalities:
            rest = {key: value for key, value in row.values.items() if key != name}
            if row.values.get(name) is not None and any(rest.get(m) is not None for m in self.predictor.modalities):
                without[name] = [target_in_short(t) for t in self.predictor.predict([rest])[0].targets]
        parts = picture = None
        if overlay is not None and row.picture is not None and "texture" in row.values:
            parts = self.carried_by(row, prediction)
            picture = save_over(read_micrograph(row.picture), parts, overlay)
        return {
            "sentence": reason_in_words(prediction, without),
            "weights": {t.target.name: {m: w for m, w in t.weights.items() if w > 0} for t in prediction.targets},
            "without": without,
            "distance": prediction.distance,
            "parts": parts.as_dict() if parts else None,
            "picture": str(picture) if picture else None,
        }

    def carried_by(self, row: LabelledRow, prediction: Prediction) -> Explanation:
        """Which parts of the picture carry the first target: its value, or the log-odds of its likeliest class."""
        assert row.picture is not None
        first = prediction.targets[0]
        best = int(np.argmax(first.probabilities)) if first.target.classes else 0

        def score(squares: Sequence[np.ndarray]) -> np.ndarray:
            seen = [computed(Micrograph(square, sha256=""), self.extractor) for square in squares]
            told = self.predictor.predict(
                [row.values | {name: one[name] for name in one if name != "instrument"} for one in seen]
            )
            if first.target.classes:
                return log_odds(np.array([p.targets[0].probabilities[best] for p in told]), 1e-9)
            return np.array([p.targets[0].value for p in told])

        what = f"{first.target.name}{f' [{first.target.unit}]' if first.target.unit else ''}"
        if first.target.classes:
            what = f"log-odds of {first.target.name} {first.target.classes[best]}"
        return explain(to_model_input(read_micrograph(row.picture), _SIDE)[0], score, what=what)

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


def target_in_short(predicted: Predicted) -> dict[str, Any]:
    """A target in short: its value, or its verdict and the probability of its best class."""
    if not predicted.target.classes:
        return {"name": predicted.target.name, "value": predicted.value, "unit": predicted.target.unit}
    return {
        "name": predicted.target.name,
        "verdict": predicted.verdict,
        "probability": max(predicted.probabilities),
    }


def reason_in_words(prediction: Prediction, without: dict[str, list[dict[str, Any]]]) -> str:
    """What the first target of a prediction rests on, in one sentence."""
    first = prediction.targets[0]
    weights = sorted((item for item in first.weights.items() if item[1] >= _COUNTS), key=lambda item: -item[1])
    *others, last = [f"{name} ({weight:.0%})" for name, weight in weights]
    rests = f"rests on {', '.join(others)}{' and ' if others else ''}{last}"
    if first.target.classes:
        said = f"{first.target.name} {first.verdict}, {max(first.probabilities):.2f}; {rests}"
    else:
        said = f"{first.target.name} {first.value:.4g} {first.target.unit}".rstrip() + f"; {rests}"
    lead = weights[0][0]
    if lead in without:
        rest = without[lead][0]
        other = f"{rest['value']:.4g}" if "value" in rest else f"{rest['verdict']}, {rest['probability']:.2f}"
        said += f"; without {lead} it would be {other}"
    if prediction.distance > 1.0:
        said += f"; it is {prediction.distance:.1f} times as far from all training rows as these are from one another"
    return said + "."
