"""Fits heads on a user's own labels: every modality a row has, fused, calibrated on held-out groups, and tested.

Knows nothing about the command line; what a table holds is read by labelled.py, a picture by pictures.py.

Letters: I rows, B rows of a step, T targets.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from assistant.config import Config, FitConfig
from assistant.conformal import Familiarity, class_scores, groups_needed, number_scores, quantile_by_group
from assistant.disk import fingerprint, write_file
from assistant.encoders.composition import CompositionEncoder
from assistant.encoders.crystal import Crystal, CrystalEncoder, read_crystal
from assistant.encoders.encoder import Encoder
from assistant.encoders.table import TableEncoder
from assistant.encoders.text import FrozenTextEncoder, WordPieceEncoder
from assistant.encoders.vector import VectorEncoder
from assistant.errors import DatasetError, MaemiError, RunError
from assistant.evidence import evidential_loss, number_evidence, number_loss
from assistant.fusion import drop_probability
from assistant.heads import NEVER, Heads, LabelledFeatures, fit_heads
from assistant.plain import FUSED, fit_plain, supported
from assistant.predictor import Design, Items, Predicted, Predictor, Target
from assistant.progress import Progress
from training.kept import Kept, key_of
from training.labelled import LabelledRow, LabelledSet, find_leaks, read_labelled
from training.metrics import classification_scores
from training.pictures import FeatureExtractor, picture_values
from training.trust import crossed, trusted

HEAD, REPORT, STATE = "head", "report.json", "training"
ENCODERS: dict[str, type[Encoder]] = {
    "texture": VectorEncoder,
    "image": VectorEncoder,
    "instrument": TableEncoder,
    "table": TableEncoder,
    "text": WordPieceEncoder,
    "composition": CompositionEncoder,
    "cell": TableEncoder,
    "crystal": CrystalEncoder,
}
"""Modalities in the order in which they are fused, each with its encoder."""
SHARE_PRESENT = 0.05
"""A modality that fewer of the training rows have is left out."""
READERS = 4
"""Pictures that are read at once, at most: each is held whole in memory."""
RISE = 0.05
"""Share of the steps over which the learning rate rises."""
AVERAGE = 0.995
"""Decay of the running mean of the weights, which is what is kept."""
log = logging.getLogger("maemi.training")


@dataclass(frozen=True)
class Choices:
    """What the person who fits has decided, beside the settings."""

    targets: Sequence[str] = ()
    ignore: Sequence[str] = ()
    """Columns and modalities that are left out."""
    group: str | None = None
    knowledge: Path | None = None
    """Folder with a text about every class, `<class>.txt`."""
    text_encoder: Path | None = None
    """A local Hugging Face encoder of texts."""


def fit(
    source: Path,
    out: Path,
    config: Config,
    choices: Choices = Choices(),
    *,
    extractor: Callable[[], FeatureExtractor] | None = None,
    found: Callable[[LabelledSet], None] = lambda labelled: None,
    progress: Progress = lambda done, total, text: None,
) -> dict[str, Any]:
    """Fit heads and write them to `out/head`, with `out/report.json`; the report.

    The same call after an interruption goes on where a state was last kept, in `out/training`, to the same end.
    `found` is told what the table holds before anything is trained; `extractor` is loaded where there are pictures.
    Raises ConfigError, DatasetError, and RunError `other_run` where `out` holds something else.
    """
    held = [path.name.lstrip(".") for path in out.iterdir()] if out.exists() else []
    if held and not any(name.startswith((HEAD, REPORT, STATE)) for name in held):
        raise RunError("other_run", f"{out} holds something else. Choose another --out.")
    columns = [name for name in choices.ignore if name not in ENCODERS]
    labelled = read_labelled(source, choices.targets, ignore=columns, group=choices.group)
    looks = extractor() if extractor and any(row.picture for row in labelled.rows) else None
    failed = fill(labelled.rows, looks, progress)
    labelled.warnings += [f"{name}: {error.message}" for name, error in failed.items()]
    labelled.rows = [row for row in labelled.rows if row.name not in failed]
    for row in labelled.rows:
        row.values = {name: value for name, value in row.values.items() if name not in choices.ignore}
    find_leaks(labelled, "instrument")
    parts = split_rows(labelled, config.fit, seed=config.seed)
    _say_parts(labelled, parts, config.fit)
    found(labelled)
    key = key_of(labelled.rows, config.fit, config.seed, choices, labelled.units)
    kept = Kept(out / STATE, key, config.fit.save_every)
    predictor = fit_rows(labelled, parts, config, choices, progress=progress, kept=kept)
    report = {
        "findings": labelled.findings,
        "warnings": labelled.warnings,
        "groups": {name: len({row.group for row in rows}) for name, rows in parts.items()},
        "rows": {name: len(rows) for name, rows in parts.items()},
        "modalities": list(predictor.modalities),
        "heads": predictor.about["heads"],
        "settings": config.fit.model_dump(mode="json"),
        "seed": config.seed,
        "test": score(predictor, parts["test"], parts["train"]) if parts["test"] else None,
    }
    seen = [fingerprint(row.picture) for row in labelled.rows if row.picture]
    about = predictor.about | {
        "roles": labelled.roles,
        "extractor": looks.name if looks else None,
        "units": labelled.units,
        "labelled": seen,  # what has a label is not asked for again
    }
    predictor.save(out / HEAD, about)
    write_file(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    kept.forget()
    return report


def fill(rows: Sequence[LabelledRow], extractor: FeatureExtractor | None, progress: Progress) -> dict[str, MaemiError]:
    """Read what rows point to: pictures become vectors and instrument columns, a CIF becomes all it tells.

    Rows that cannot be read are left as they are, and named with what is wrong with them. Pictures are read side by
    side: decoding, texture and the network that looks all work without Python's lock.
    """

    def seen(row: LabelledRow) -> dict[str, Any] | MaemiError:
        try:
            return {} if row.picture is None else picture_values(row.picture, extractor)
        except MaemiError as error:
            return error

    failed: dict[str, MaemiError] = {}
    with ThreadPoolExecutor(min(os.cpu_count() or 1, READERS), thread_name_prefix="maemi-fit-read") as pool:
        for done, (row, told) in enumerate(zip(rows, pool.map(seen, rows), strict=True)):
            try:
                if isinstance(told, MaemiError):
                    raise told
                row.values = {**told, **row.values}
                if row.values.get("crystal") is not None:
                    row.values = {**crystal_values(read_crystal(row.values["crystal"])), **row.values}
                    row.values["crystal"] = row.values.pop("structure")
            except MaemiError as error:
                failed[row.name] = error
            if row.picture is not None or "crystal" in row.values:
                progress(done + 1, len(rows), "reading")
    return failed


def crystal_values(crystal: Crystal) -> dict[str, Any]:
    """What a crystal tells by modality: its graph, its sentence, its composition, its cell."""
    names = ("a", "b", "c", "alpha", "beta", "gamma")
    cell = dict(zip(names, crystal.lattice, strict=True)) | {"volume_per_atom": crystal.volume / len(crystal.numbers)}
    return {
        "structure": crystal,
        "text": f"{crystal.formula}: {crystal.sentence}",
        "composition": crystal.formula,
        "cell": cell,
    }


def split_rows(labelled: LabelledSet, settings: FitConfig, *, seed: int) -> dict[str, list[LabelledRow]]:
    """Rows in train, calibration and test, by group; a split column decides where it is filled.

    Groups are dealt out by hash, class by class, so that a class with enough groups is in every part.
    """
    parts: dict[str, list[LabelledRow]] = {"train": [], "calibration": [], "test": []}
    named = {row.group: row.split for row in labelled.rows if row.split}
    tested = 0.0 if "test" in named.values() else settings.test
    calibrated = 0.0 if "calibration" in named.values() else settings.calibration
    by_label: dict[Any, set[str]] = defaultdict(set)
    target = next(iter(labelled.classes), None)
    for row in labelled.rows:
        if named.get(row.group, "train") == "train":
            by_label[row.truth[target] if target else None].add(row.group)
    dealt: dict[str, str] = {}
    for groups in by_label.values():
        order = sorted(groups - dealt.keys(), key=lambda g: hashlib.sha256(f"{seed}\0{g}".encode()).digest())
        tests = round(len(order) * tested)
        held = tests + round(len(order) * calibrated)
        for place, group in enumerate(order):
            dealt[group] = "test" if place < tests else "calibration" if place < held else "train"
    for row in labelled.rows:
        parts[dealt.get(row.group) or str(named[row.group])].append(row)
    return parts


def fit_rows(
    labelled: LabelledSet,
    parts: Mapping[str, Sequence[LabelledRow]],
    config: Config,
    choices: Choices = Choices(),
    *,
    progress: Progress = lambda done, total, text: None,
    kept: Kept | None = None,
) -> Predictor:
    """Build, train and calibrate a predictor on rows whose values are filled. The same seed gives the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        predictor = build(labelled, parts["train"], config.fit, choices)
        items = [predictor.items(row.values) for row in parts["train"]]
        train_heads(predictor, items, truths(predictor.targets, parts["train"]), config.fit, progress, kept)
    return calibrate_heads(predictor, parts["train"], parts["calibration"], items, config.fit)


def build(labelled: LabelledSet, rows: Sequence[LabelledRow], settings: FitConfig, choices: Choices) -> Predictor:
    """Encoders for what the training rows have, heads for the targets; weights are random but those of texts."""
    if not rows:
        raise DatasetError("too_few", "No rows are left to train on. Label more groups, or hold fewer out.")
    encoders: dict[str, Encoder] = {}
    for name, kind in ENCODERS.items():
        values = [row.values[name] for row in rows if row.values.get(name) is not None]
        if name in ("table", "instrument"):
            values = [value for value in values if value]
        if len(values) < max(1, SHARE_PRESENT * len(rows)):
            continue
        if name == "text" and choices.text_encoder is not None:
            encoders[name] = FrozenTextEncoder(str(choices.text_encoder), settings.dim)
        elif name == "text":
            encoders[name] = WordPieceEncoder.fit(values, settings.dim, settings.text_steps)
        else:
            encoders[name] = kind.fit(values, settings.dim)
    if not encoders:
        raise DatasetError(
            "nothing_known", "The rows have nothing to tell their targets from. Add columns or pictures."
        )
    targets = []
    for name, unit in labelled.units.items():
        classes = labelled.classes.get(name, ())
        numbers = [value for row in rows if isinstance(value := row.truth[name], float)]
        if classes:
            targets.append(Target(name, classes=classes, coverage=settings.coverage))
        else:
            mean, scale = float(np.mean(numbers)), float(np.std(numbers)) or 1.0
            targets.append(Target(name, unit, mean=mean, scale=scale, coverage=settings.coverage))
    design = Design(
        settings.dim,
        settings.strategy,
        settings.heads,
        settings.depth,
        settings.experts,
        settings.top_k,
        settings.dropout,
        settings.class_attention,
    )
    return Predictor(encoders, targets, design, _knowledge(labelled, settings, choices))


def train_heads(
    predictor: Predictor,
    rows: Sequence[Items],
    truth: Sequence[Tensor],
    settings: FitConfig,
    progress: Progress,
    kept: Kept | None = None,
) -> None:
    """Minimise the losses of all targets; the predictor ends with the running mean of its weights.

    With `kept`, the state is written there now and then, and a training that was killed goes on bit for bit.
    """
    steps = min(max(settings.epochs * len(rows) // settings.batch_size, settings.least_steps), settings.most_steps)
    parameters = [p for p in predictor.parameters() if p.requires_grad]
    rate, decay = settings.learning_rate, settings.weight_decay
    # Fused: one tensor after the other, a step would take half as long as a backward pass.
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
    means = [p.detach().clone() for p in parameters]
    order: list[int] = []
    first = 0
    if kept is not None:
        first, order = kept.load(parameters, means, optimizer, schedule)
    predictor.train()
    for step in range(first, steps):
        if len(order) < min(settings.batch_size, len(rows)):
            order = torch.randperm(len(rows)).tolist()
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        done = step / steps
        drop = drop_probability(done, settings.modality_dropout) if len(predictor.modalities) > 1 else 0.0
        outputs, fused = predictor([rows[i] for i in chosen], drop=drop)
        loss = settings.entropy * fused.disorder + settings.reconstruction * fused.reconstruction
        for target, out, wanted in zip(predictor.targets, outputs, truth, strict=True):
            loss = loss + _target_loss(target, out, wanted[chosen], settings, progressed=done)
        if not loss.isfinite():
            raise RunError("diverged", f"The loss is no number at step {step}. Lower fit.learning_rate.")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        torch._foreach_lerp_(means, [p.detach() for p in parameters], 1.0 - min(AVERAGE, (1 + step) / (10 + step)))
        if step % 20 == 0 or step + 1 == steps:
            progress(step + 1, steps, f"loss {loss.item():.3f}")
        if kept is not None and (step + 1) % kept.every == 0 and step + 1 < steps:
            kept.save(step + 1, order, parameters, means, optimizer, schedule)
    with torch.no_grad():
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.copy_(mean)
    predictor.eval()


def _rate(done: float) -> float:
    """Share of the learning rate: it rises, then falls to 0 along a cosine."""
    return max(done / RISE, 0.01) if done < RISE else 0.5 * (1.0 + math.cos(math.pi * (done - RISE) / (1.0 - RISE)))


def truths(targets: Sequence[Target], rows: Sequence[LabelledRow]) -> list[Tensor]:
    """Per target the truth of rows [I]: z-scored numbers with NaN, or places of classes with -1, where unlabelled."""
    columns = []
    for target in targets:
        held = [row.truth[target.name] for row in rows]
        if target.classes:
            columns.append(torch.tensor([-1 if word is None else target.classes.index(str(word)) for word in held]))
        else:
            numbers = [float(value) if isinstance(value, float) else math.nan for value in held]
            columns.append((torch.tensor(numbers) - target.mean) / target.scale)
    return columns


def calibrate_heads(
    predictor: Predictor,
    known: Sequence[LabelledRow],
    held: Sequence[LabelledRow],
    items: Sequence[Items],
    settings: FitConfig,
) -> Predictor:
    """Plain heads beside the fused one; shares, temperatures and conformal quantiles from held-out groups.

    What was chosen is in `about["heads"]`, by target.
    """
    fixed, vectors = predictor.fixed(items), predictor.vectors(items)
    for target, truth in zip(predictor.targets, truths(predictor.targets, known), strict=True):
        here = (truth >= 0 if target.classes else truth.isfinite()).numpy()
        taught = {name: part[here] for name, part in vectors.items()}
        predictor.plain[target.name] = fit_plain(taught, truth.numpy()[here], len(target.classes))
    held_items = [predictor.items(row.values) for row in held]
    outputs = predictor.outputs(held_items)[0] if held else []
    opinions = predictor.told(held_items, outputs) if held else []
    targets, chosen = [], {}
    for target, out, told, truth in zip(
        predictor.targets, outputs, opinions, truths(predictor.targets, held), strict=bool(held)
    ):
        here = (truth >= 0 if target.classes else truth.isfinite()).numpy()
        groups = [row.group for row, labelled in zip(held, here.tolist(), strict=True) if labelled]
        if not groups:
            targets.append(target)
            continue
        told, true, count = {name: said[here] for name, said in told.items()}, truth.numpy()[here], len(set(groups))
        trust, said = trusted(told, true, groups), crossed(told, true, groups)
        if target.classes:
            scores = class_scores(supported(said, count), true)
        else:
            deviations = number_evidence(out[torch.from_numpy(here)].double()).deviation.numpy()
            scores = number_scores(said[:, 0], deviations, true)
        targets.append(
            replace(
                target,
                temperature=trust.temperatures.get(FUSED, 1.0),
                quantile=quantile_by_group(scores, groups, settings.coverage),
                shares=trust.shares,
                held_groups=count,
            )
        )
        plain = predictor.plain[target.name]
        predictor.plain[target.name] = {
            name: head.softened(trust.temperatures.get(name, 1.0)) for name, head in plain.items()
        }
        chosen[target.name] = {"shares": trust.shares, "held_out_loss": trust.losses, "sentence": trust.sentence}
    predictor.about["heads"] = chosen
    familiarity = Familiarity.of(fixed, [row.group for row in known]) if fixed.shape[1] else None
    return predictor.calibrated(targets or predictor.targets, familiarity, silence(predictor, known, fixed))


def silence(predictor: Predictor, rows: Sequence[LabelledRow], fixed: np.ndarray) -> Heads | None:
    """Heads that know when not to speak: calibrated on groups, and on whole classes, left out in turn.

    A distance alone does not do: pictures of another laboratory lie no farther off than new groups of one's own. None
    without three classes, or where too few groups were left out to tell.
    """
    words = {
        target.name: tuple(None if (word := row.truth[target.name]) is None else str(word) for row in rows)
        for target in predictor.targets
        if len(target.classes) > 2
    }
    if not words or not fixed.shape[1]:
        return None
    groups, own = tuple(row.group for row in rows), ("own",) * len(rows)
    heads = fit_heads(LabelledFeatures(fixed, groups, own, words, (False,) * len(rows)), origin="fit")
    calibrated = tuple(head for head in heads.heads if head.threshold < NEVER)
    return replace(heads, heads=calibrated) if calibrated else None


def score(predictor: Predictor, rows: Sequence[LabelledRow], known: Sequence[LabelledRow]) -> dict[str, Any]:
    """What the predictor reaches on rows it has not seen, beside what no model needs, and without each modality."""
    items = [predictor.items(row.values) for row in rows]
    whole = _scores(predictor, items, rows, known)
    without: dict[str, Any] = {}
    alone: dict[str, Any] = {}
    if len(predictor.modalities) > 1:
        for name in predictor.modalities:
            pairs = [(row, item) for row, item in zip(rows, items, strict=True) if name in item]
            rest = [({k: v for k, v in item.items() if k != name}, row) for row, item in pairs]
            rest = [(item, row) for item, row in rest if item]
            if rest:
                without[name] = _scores(predictor, *_unzipped(rest), known, brief=True)
            if pairs:
                alone[name] = _scores(
                    predictor, *_unzipped([({name: i[name]}, r) for r, i in pairs]), known, brief=True
                )
    return {"targets": whole, "without": without, "alone": alone, "heads": _by_head(predictor, items, rows)}


def _by_head(predictor: Predictor, items: Sequence[Items], rows: Sequence[LabelledRow]) -> dict[str, dict[str, float]]:
    """What each head alone reaches, by target: the share that is right, or the mean absolute error in its unit."""
    reached: dict[str, dict[str, float]] = {}
    opinions = predictor.told(items, predictor.outputs(items)[0])
    for target, told, truth in zip(predictor.targets, opinions, truths(predictor.targets, rows), strict=True):
        true, own = truth.numpy(), reached.setdefault(target.name, {})
        for name, said in told.items():
            here = np.isfinite(said).all(axis=1) & (true >= 0 if target.classes else np.isfinite(true))
            if here.any() and target.classes:
                own[name] = float((said[here].argmax(axis=1) == true[here]).mean())
            elif here.any():
                own[name] = float(np.abs(said[here, 0] - true[here]).mean() * target.scale)
    return reached


def _scores(
    predictor: Predictor,
    items: Sequence[Items],
    rows: Sequence[LabelledRow],
    known: Sequence[LabelledRow],
    *,
    brief: bool = False,
) -> dict[str, Any]:
    predictions = predictor.predict_items(items)
    scores: dict[str, Any] = {}
    for place, target in enumerate(predictor.targets):
        pairs = [
            (p.targets[place], row.truth[target.name])
            for p, row in zip(predictions, rows, strict=True)
            if row.truth[target.name] is not None
        ]
        if pairs:
            measure = _class_scores if target.classes else _number_scores
            full = measure(
                target, pairs, [row.truth[target.name] for row in known if row.truth[target.name] is not None]
            )
            scores[target.name] = {k: v for k, v in full.items() if not brief or k in ("mae", "top1", "n")}
    return scores


def _number_scores(target: Target, pairs: Sequence[tuple[Predicted, Any]], known: Sequence[Any]) -> dict[str, Any]:
    values = np.array([predicted.value for predicted, _ in pairs], dtype=float)
    truth = np.array([true for _, true in pairs], dtype=float)
    error = np.abs(values - truth)
    promised = [(p.low, t, p.high) for p, t in pairs if p.low is not None and p.high is not None]
    return {
        "n": len(pairs),
        "unit": target.unit,
        "mae": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": float(1.0 - (error**2).sum() / max(((truth - truth.mean()) ** 2).sum(), 1e-12)),
        "mean_mae": float(np.abs(truth - np.mean(known)).mean()),
        "coverage": float(np.mean([low <= true <= high for low, true, high in promised])) if promised else None,
        "width": float(np.mean([high - low for low, _, high in promised])) if promised else None,
    }


def _class_scores(target: Target, pairs: Sequence[tuple[Predicted, Any]], known: Sequence[Any]) -> dict[str, Any]:
    probabilities = np.array([predicted.probabilities for predicted, _ in pairs])
    truth = np.array([target.classes.index(str(true)) for _, true in pairs])
    found = classification_scores(probabilities, truth, classes=target.classes).as_dict()
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    order = np.argsort(-sure, kind="stable")
    risks = np.cumsum(~right[order]) / np.arange(1, len(right) + 1)
    majority = Counter(map(str, known)).most_common(1)[0][0]
    named = [(p.verdict, str(t)) for p, t in pairs if p.verdict != "unknown"]
    return found | {
        "majority": float(np.mean([str(true) == majority for _, true in pairs])),
        "coverage": float(np.mean([str(true) in predicted.likely for predicted, true in pairs])),
        "set_size": float(np.mean([len(predicted.likely) for predicted, _ in pairs])),
        "named": len(named) / len(pairs),
        "purity_of_named": float(np.mean([verdict == true for verdict, true in named])) if named else None,
        "risk_coverage": [
            [share, float(risks[max(1, round(share * len(risks))) - 1])] for share in (0.25, 0.5, 0.75, 0.9, 1.0)
        ],
        "area_under_risk": float(risks.mean()),
    }


def _target_loss(target: Target, out: Tensor, truth: Tensor, settings: FitConfig, *, progressed: float) -> Tensor:
    here = truth >= 0 if target.classes else truth.isfinite()
    if not here.any():
        return out.sum() * 0.0
    out, truth = out[here], truth[here]
    if not target.classes:
        return number_loss(out, truth)
    if settings.evidential:
        return evidential_loss(out, truth, annealing=0.1 * min(1.0, 2.0 * progressed))
    return F.cross_entropy(out, truth)


def _knowledge(
    labelled: LabelledSet, settings: FitConfig, choices: Choices
) -> tuple[Encoder, dict[str, dict[str, str]]] | None:
    """The texts of all classes with an encoder trained on them, where a folder of them was named."""
    if choices.knowledge is None:
        return None
    texts: dict[str, dict[str, str]] = {}
    for name, classes in labelled.classes.items():
        files = {label: choices.knowledge / f"{label}.txt" for label in classes}
        absent = [str(file) for file in files.values() if not file.is_file()]
        if absent:
            raise DatasetError("no_sheet", f"{absent[0]} is missing: every class needs its text. Write it.")
        texts[name] = {label: file.read_text(encoding="utf-8") for label, file in files.items()}
    held = [text for target in texts.values() for text in target.values()]
    if not held:
        raise DatasetError("no_sheet", "No target is a class, so no texts of classes are needed. Drop --knowledge.")
    if choices.text_encoder is not None:
        return FrozenTextEncoder(str(choices.text_encoder), settings.dim), texts
    lines = [line for text in held for line in text.splitlines() if line.strip()]
    lines += [row.values["text"] for row in labelled.rows if "text" in row.values]
    return WordPieceEncoder.fit(lines, settings.dim, settings.text_steps), texts


def _say_parts(labelled: LabelledSet, parts: Mapping[str, Sequence[LabelledRow]], settings: FitConfig) -> None:
    shares = ", ".join(f"{name} {len(rows)}" for name, rows in parts.items())
    labelled.findings.append(f"split by group: {shares} rows")
    held, needed = len({row.group for row in parts["calibration"]}), groups_needed(settings.coverage)
    if held < needed:
        labelled.warnings.append(
            f"{held} group(s) are held out for calibration; a coverage of {settings.coverage:.0%} needs {needed}, so "
            "no intervals are promised and sets hold all classes. Label more groups."
        )
    for name, classes in labelled.classes.items():
        unseen = set(classes) - {row.truth[name] for row in parts["train"]}
        if unseen:
            labelled.warnings.append(f"{name}: {', '.join(sorted(unseen))} is of too few groups to be trained on.")


def _unzipped(pairs: Sequence[tuple[Items, LabelledRow]]) -> tuple[list[Items], list[LabelledRow]]:
    return [item for item, _ in pairs], [row for _, row in pairs]
