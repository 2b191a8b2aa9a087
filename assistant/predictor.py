"""A head on a user's own labels: encoders, fusion and one output per target, calibrated; as a directory and back.

predictor = Predictor.load(Path("runs/strength/head"))
prediction = predictor.predict([{"composition": "Fe0.6Ni0.4", "table": {"anneal_c": 600.0}}])[0]

Knows nothing about files of pictures or tables: a row is a value per modality, absent ones left out.

Letters: B rows, M modalities, C classes, K outputs of a target.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from assistant.conformal import Familiarity, class_set
from assistant.disk import verify_directory, write_directory
from assistant.encoders.composition import CompositionEncoder
from assistant.encoders.crystal import CrystalEncoder
from assistant.encoders.encoder import Encoder, Item
from assistant.encoders.table import TableEncoder
from assistant.encoders.text import FrozenTextEncoder, WordPieceEncoder
from assistant.encoders.vector import VectorEncoder
from assistant.errors import DatasetError, RunError
from assistant.evidence import number_evidence
from assistant.fusion import ClassTexts, Fused, Fusion
from assistant.heads import Heads, load_heads, write_heads
from assistant.inspection import loading
from assistant.plain import FUSED, PlainHead, pooled, softmax, supported

_KINDS: dict[str, type[Encoder]] = {
    kind.kind: kind
    for kind in (VectorEncoder, TableEncoder, CompositionEncoder, CrystalEncoder, WordPieceEncoder, FrozenTextEncoder)
}
_SETTINGS, _WEIGHTS, _SILENCE = "head.json", "head.safetensors", "silence"
_FORMAT = 1
_WIDEST = 1024
ROWS_AT_ONCE = 256
UNKNOWN = "unknown"

Row = Mapping[str, Any]
"""A value per modality; absent ones are left out."""
Items = dict[str, Item]


@dataclass(frozen=True)
class Target:
    """What is predicted: a number with its unit where `classes` is empty, else one of them."""

    name: str
    unit: str = ""
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0
    """Of the training rows' numbers: a head works with (value - mean) / scale."""
    temperature: float = 1.0
    quantile: float = math.inf
    """Conformal: of 1 - the true class's probability, or of |error| in predicted deviations; inf promises nothing."""
    coverage: float = 0.9
    shares: dict[str, float] = field(default_factory=lambda: {FUSED: 1.0})
    """By head, together 1: what the fused one and the plain ones count for in what is said."""
    held_groups: int | None = None
    """Groups that all this was chosen on, which bound how sure it can be; None in what an older version wrote."""

    @property
    def outputs(self) -> int:
        """Width of its head."""
        return len(self.classes) or 4


@dataclass(frozen=True)
class Predicted:
    """One target of one row."""

    target: Target
    value: float | None = None
    low: float | None = None
    high: float | None = None
    """The conformal interval; None where too few groups were held out to promise one."""
    probabilities: tuple[float, ...] = ()
    likely: tuple[str, ...] = ()
    """The conformal set, the most probable class first."""
    verdict: str = ""
    deviation: float | None = None
    """Of a number, as predicted, in its unit."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each modality in what was said of this target."""

    def as_dict(self) -> dict[str, Any]:
        """As `maemi predict --json` prints it."""
        target = self.target
        if not target.classes:
            promised = target.coverage if self.low is not None else None
            known = {"value": self.value, "unit": target.unit, "low": self.low, "high": self.high}
            return {"name": target.name, **known, "coverage": promised}
        ranked = sorted(zip(target.classes, self.probabilities, strict=True), key=lambda pair: -pair[1])
        scores = [{"label": label, "probability": probability} for label, probability in ranked]
        return {"name": target.name, "scores": scores, "set": list(self.likely), "verdict": self.verdict}


@dataclass(frozen=True)
class Prediction:
    """All targets of one row, and how far it lies from what is known."""

    targets: tuple[Predicted, ...]
    distance: float
    """From the training rows, in units of the farthest that is still known."""


@dataclass(frozen=True)
class Design:
    """What a predictor is built from, beside its encoders and targets."""

    dim: int = 64
    strategy: str = "intermediate"
    heads: int = 4
    depth: int = 1
    experts: int = 0
    top_k: int = 2
    dropout: float = 0.1
    """In the heads."""
    attention: bool = True
    """Whether rows and class texts attend to each other."""


class Predictor(nn.Module):
    """Encoders by modality, in order; `knowledge` has an encoder of texts and, per target, the text of every class."""

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        targets: Sequence[Target],
        design: Design = Design(),
        knowledge: tuple[Encoder, Mapping[str, Mapping[str, str]]] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(encoders)
        self.encoders = nn.ModuleList(encoders.values())
        self.targets, self.design = tuple(targets), design
        self.fusion = Fusion(
            design.dim,
            len(encoders),
            design.strategy,
            heads=design.heads,
            depth=design.depth,
            experts=design.experts,
            top_k=design.top_k,
        )
        self.class_texts = dict(knowledge[1]) if knowledge else {}
        self.knowledge = knowledge[0] if knowledge else None
        self.heads = nn.ModuleList(
            ClassTexts(design.dim, design.heads, attention=design.attention)
            if target.name in self.class_texts
            else nn.Sequential(
                nn.Linear(design.dim, design.dim),
                nn.SiLU(),
                nn.Dropout(design.dropout),
                nn.Linear(design.dim, target.outputs),
            )
            for target in self.targets
        )
        self.plain: dict[str, dict[str, PlainHead]] = {target.name: {} for target in targets}
        """Linear heads by target and by what they look at; their logits have their temperature in them."""
        self.familiarity: Familiarity | None = None
        self.silence: Heads | None = None
        """Which verdicts are not said: calibrated on classes left out in turn, so it knows a stranger from a class."""
        self.about: dict[str, Any] = {}

    def items(self, row: Row) -> Items:
        """The values of a row as tensors, absent ones left out. Raises DatasetError, also where nothing is there."""
        present = {name: row[name] for name in self.modalities if row.get(name) is not None}
        if not present:
            raise DatasetError("nothing_known", f"The row has none of {', '.join(self.modalities)}. Give one at least.")
        return {
            name: encoder.item(present[name])  # type: ignore[operator]
            for name, encoder in zip(self.modalities, self.encoders, strict=True)
            if name in present
        }

    def forward(self, rows: Sequence[Items], *, drop: float = 0.0) -> tuple[list[Tensor], Fused]:
        """Rows of items -> outputs [B, K] of each target, and the fusion."""
        vectors = torch.zeros(len(rows), len(self.modalities), self.design.dim)
        present = torch.tensor([[name in row for name in self.modalities] for row in rows])
        for m, (name, encoder) in enumerate(zip(self.modalities, self.encoders, strict=True)):
            here = present[:, m].nonzero().squeeze(1)
            if len(here):
                vectors = vectors.index_put((here, torch.tensor(m)), encoder([rows[i][name] for i in here.tolist()]))
        fused = self.fusion(vectors, present, drop=drop)
        outputs = []
        for target, head in zip(self.targets, self.heads, strict=True):
            if isinstance(head, ClassTexts):
                assert self.knowledge is not None
                texts = self.class_texts[target.name]
                known = self.knowledge([self.knowledge.item(texts[label]) for label in target.classes])
                outputs.append(head(fused.vector, fused.tokens, fused.present, known))
            else:
                outputs.append((fused.shares[:, None] @ head(fused.streams)).squeeze(1))
        return outputs, fused

    def fixed(self, rows: Sequence[Items]) -> np.ndarray:
        """What is known of rows before anything was learned [B, F], zeros where absent: by it strangers are told."""
        parts = [*self.vectors(rows).values(), np.zeros((len(rows), 0))]
        known: np.ndarray = np.nan_to_num(np.concatenate(parts, axis=1))
        return known

    def vectors(self, rows: Sequence[Items]) -> dict[str, np.ndarray]:
        """`fixed` by modality, those that have such vectors [B, F]; NaN in rows without it."""
        found = {}
        for name, encoder in zip(self.modalities, self.encoders, strict=True):
            assert isinstance(encoder, Encoder)
            if encoder.fixed_width:
                part = torch.full((len(rows), encoder.fixed_width), math.nan, dtype=torch.float64)
                here = [i for i, row in enumerate(rows) if name in row]
                if here:
                    part[here] = encoder.fixed([rows[i][name] for i in here]).double()
                found[name] = part.numpy()
        return found

    def told(self, rows: Sequence[Items], outputs: Sequence[Tensor]) -> list[dict[str, np.ndarray]]:
        """Per target what each of its heads says [B, C or 1]: logits before any temperature, or scaled numbers."""
        vectors = self.vectors(rows)
        said = []
        for target, out in zip(self.targets, outputs, strict=True):
            fused = out.double() if target.classes else number_evidence(out.double()).mean[:, None]
            plain = {name: head.outputs(vectors, len(rows)) for name, head in self.plain[target.name].items()}
            said.append({FUSED: fused.numpy(), **plain})
        return said

    @torch.inference_mode()
    def outputs(self, rows: Sequence[Items]) -> tuple[list[Tensor], Tensor]:
        """Outputs [B, K] of each target and modality weights [B, M], batch by batch, as at use."""
        self.eval()
        parts = [self(rows[start : start + ROWS_AT_ONCE]) for start in range(0, len(rows), ROWS_AT_ONCE)]
        by_target = [torch.cat([part[0][t] for part in parts]) for t in range(len(self.targets))]
        return by_target, torch.cat([part[1].weights for part in parts])

    def predict(self, rows: Iterable[Row]) -> list[Prediction]:
        """Every target of rows. Raises DatasetError for the first that cannot be read."""
        return self.predict_items([self.items(row) for row in rows])

    def predict_items(self, rows: Sequence[Items]) -> list[Prediction]:
        """`predict` for rows whose values are tensors already."""
        if not rows:
            return []
        outputs, weights = self.outputs(rows)
        fixed = self.fixed(rows)
        distances = self.familiarity.distances(fixed) if self.familiarity else np.zeros(len(rows))
        told = self.silence.verdicts(fixed) if self.silence else [[] for _ in rows]
        said = [{verdict.name: "" if verdict.reason else verdict.word for verdict in row} for row in told]
        gate = weights.double().numpy()
        columns = []
        for target, out, opinions in zip(self.targets, outputs, self.told(rows, outputs), strict=True):
            words = [of_row.get(target.name) for of_row in said]
            predicted = self._predicted(target, out, opinions, distances, words)
            rests = (dict(zip(self.modalities, row, strict=True)) for row in self._weights(target, rows, gate).tolist())
            columns.append([replace(one, weights=on) for one, on in zip(predicted, rests, strict=True)])
        return [
            Prediction(targets, float(distance))
            for targets, distance in zip(zip(*columns, strict=True), distances, strict=True)
        ]

    def _weights(self, target: Target, rows: Sequence[Items], gate: np.ndarray) -> np.ndarray:
        """What each modality counts for in a target [B, M]: by the gate [B, M] of the fused head, and by what the
        plain heads with a share look at, as far as a row has it."""
        present = np.array([[name in row for name in self.modalities] for row in rows])
        counted = np.zeros_like(gate)
        for name, share in target.shares.items():
            looks = self.plain[target.name][name].modalities if name != FUSED else ()
            seen = np.array([modality in looks for modality in self.modalities])
            heard = np.all(present[:, seen], axis=1, keepdims=True)  # a head that lacks a modality has no say
            counted += share * (gate if name == FUSED else heard * seen / max(len(looks), 1))
        total = counted.sum(axis=1, keepdims=True)
        return np.where(total > 0, counted / np.maximum(total, 1e-12), gate)

    def _predicted(
        self,
        target: Target,
        outputs: Tensor,
        opinions: Mapping[str, np.ndarray],
        distances: np.ndarray,
        said: Sequence[str | None],
    ) -> list[Predicted]:
        """A target of rows; `said` is what may be said of each: another word than the likeliest makes it unknown."""
        if not target.classes:
            values = (pooled(opinions, target.shares)[:, 0] * target.scale + target.mean).tolist()
            numbers = []
            deviations = number_evidence(outputs.double()).deviation * target.scale
            for value, deviation in zip(values, deviations.tolist(), strict=True):
                half = deviation * target.quantile
                low, high = (value - half, value + half) if math.isfinite(half) else (None, None)
                numbers.append(Predicted(target, value, low, high, deviation=deviation))
            return numbers
        probable = {name: softmax(logits) for name, logits in opinions.items()}
        probable[FUSED] = softmax(opinions[FUSED] / target.temperature)
        rows = pooled(probable, target.shares)
        if target.held_groups is not None:
            rows = supported(rows, target.held_groups)
        predicted = []
        for row, distance, word in zip(rows, distances, said, strict=True):
            likely = tuple(target.classes[c] for c in class_set(row, target.quantile))
            verdict = target.classes[int(row.argmax())]
            if distance > 1.0 or not likely or word not in (None, verdict):
                verdict = UNKNOWN
            predicted.append(Predicted(target, probabilities=tuple(row.tolist()), likely=likely, verdict=verdict))
        return predicted

    def calibrated(
        self, targets: Sequence[Target], familiarity: Familiarity | None, silence: Heads | None = None
    ) -> Predictor:
        """This predictor with temperatures and quantiles in its targets, what it knows, and when it is silent."""
        self.targets, self.familiarity, self.silence = tuple(targets), familiarity, silence
        return self

    def save(self, directory: Path, about: Mapping[str, Any]) -> None:
        """Write settings, weights and `about`, what made the rows: whole or not at all.

        Raises RunError `disk_full` or `disk`.
        """
        from safetensors.torch import save_file

        known: dict[str, Any] = {}
        if self.familiarity is not None:
            known = {name: np.ascontiguousarray(value, np.float32) for name, value in asdict(self.familiarity).items()}
        document = {
            "format": _FORMAT,
            "about": dict(about),
            "modalities": [
                {"name": name, **_described(encoder)}
                for name, encoder in zip(self.modalities, self.encoders, strict=True)
            ],
            "targets": [
                asdict(t) | {"quantile": t.quantile if math.isfinite(t.quantile) else None} for t in self.targets
            ],
            "design": asdict(self.design),
            "knowledge": _described(self.knowledge) if self.knowledge is not None else None,
            "class_texts": self.class_texts,
            "plain": {
                target: {name: list(head.modalities) for name, head in heads.items()}
                for target, heads in self.plain.items()
            },
        }

        def write(staging: Path) -> None:
            (staging / _SETTINGS).write_text(
                json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
            tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
            tensors |= {f"familiarity.{name}": torch.from_numpy(value) for name, value in known.items()}
            for place, heads in enumerate(self.plain.values()):
                for name, head in heads.items():
                    tensors[f"plain.{place}.{name}.weight"] = torch.from_numpy(head.weight).contiguous()
                    tensors[f"plain.{place}.{name}.bias"] = torch.from_numpy(head.bias).contiguous()
            save_file(tensors, staging / _WEIGHTS)
            if self.silence is not None:
                (staging / _SILENCE).mkdir()
                write_heads(self.silence, staging / _SILENCE, about={})

        write_directory(directory, write)

    @classmethod
    def load(cls, directory: Path) -> Predictor:
        """Read what `save` wrote. Raises RunError `no_run`, `damaged_run` or `unknown_format`."""
        from safetensors.torch import load_file

        verify_directory(directory)
        with loading(directory):
            document = json.loads((directory / _SETTINGS).read_bytes())
            if document["format"] != _FORMAT:
                raise RunError("unknown_format", f"{directory} is of another version. Fit again.")
            design = Design(**document["design"])
            if not 0 < design.dim <= _WIDEST or max(design.depth, design.experts, design.heads) > _WIDEST:
                raise RunError("damaged_run", f"{directory}: {design.dim} is no width. Fit again.")
            targets = [
                Target(
                    **{
                        **t,
                        "classes": tuple(t["classes"]),
                        "quantile": math.inf if t["quantile"] is None else float(t["quantile"]),
                    }
                )
                for t in document["targets"]
            ]
            encoders = {part["name"]: _KINDS[part["kind"]](**part["settings"]) for part in document["modalities"]}
            about = document["knowledge"]
            knowledge = (_KINDS[about["kind"]](**about["settings"]), document["class_texts"]) if about else None
            predictor = cls(encoders, targets, design, knowledge)
            tensors = load_file(directory / _WEIGHTS)
            known = {
                name.partition(".")[2]: tensors.pop(name).double().numpy()
                for name in list(tensors)
                if name.startswith("familiarity.")
            }
            for place, (target, heads) in enumerate(document.get("plain", {}).items()):
                for name, used in heads.items():
                    weight, bias = (tensors.pop(f"plain.{place}.{name}.{part}") for part in ("weight", "bias"))
                    predictor.plain[target][name] = PlainHead(tuple(used), weight.numpy(), bias.numpy())
            predictor.load_state_dict(tensors)
            predictor.about = dict(document["about"])
            if known:
                limit = known.pop("limit").item()
                predictor.familiarity = Familiarity(**known, limit=limit)
            if (directory / _SILENCE).is_dir():
                predictor.silence = load_heads(directory / _SILENCE)
        return predictor.eval()


def _described(encoder: nn.Module) -> dict[str, Any]:
    assert isinstance(encoder, Encoder)
    return {"kind": encoder.kind, "settings": encoder.settings()}
