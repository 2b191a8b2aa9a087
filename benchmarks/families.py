"""What `maemi fit` and few-shot say of real micrographs, beside simpler ways to the same answer.

    python -m benchmarks.families --real ../shared/data/open_sem ../shared/data/more_sem [--parts groups,sources,few]
        [--drawn DRAWN --cache CACHE] [--seeds 3] [--resnet-steps 0] [--out benchmarks/families.json]

The label is the family ("battery cathode" for four recordings of one). Groups: trained on the groups of `train`,
calibrated on those of `val` where there are any, scored on `test`. Sources: each source left out in turn, with the
families that only it has; what is said there counts against purity. Few-shot: five families of which three have
examples, drawn anew 20 times; the space in which pictures are compared is that of the other families and, with
`--drawn` from `maemi synth`, of drawn pictures, as in the heads that travel with MAEMI.
A verdict counts as said where it is not "unknown" and its conformal set holds it alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assistant.config import load_config
from assistant.heads import few_shot, fit_space
from assistant.micrograph import read_micrograph, to_model_input
from assistant.towers import see
from training.fit import fit_rows
from training.heads import CLASS_OF, drawn
from training.labelled import LabelledRow, LabelledSet
from training.metrics import expected_calibration_error
from training.pictures import computed, extractor_of

Array = np.ndarray[Any, np.dtype[Any]]
TARGET = "family"
EPISODES, HELD, KNOWN, ASKED = 20, 5, 3, 10
SHOTS = (1, 3, 5, 10)
SIDE = 16
"""Of a thumbnail [px]."""
RESNET_SIDE = 112
_ECE_BINS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, nargs="+", required=True)
    parser.add_argument("--parts", default="groups,sources,few")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--drawn", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    parser.add_argument("--resnet-steps", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    pictures = [picture for folder in args.real for picture in read(folder)]
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    report["machine"] = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    report["pictures"], report["reading_cpu_s"] = len(pictures), time.process_time() - began
    for part in args.parts.split(","):
        if part == "groups":
            report[part] = on_groups(pictures, args.seeds, args.resnet_steps)
        elif part == "sources":
            report[part] = on_sources(pictures)
        else:
            others = [s.pixels.astype(np.float32) / 255 for s in drawn(args.drawn, args.cache)] if args.drawn else []
            report[part] = on_few(pictures, others)
        print(json.dumps({part: report[part]}, indent=1), flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def read(folder: Path) -> list[tuple[LabelledRow, str, Array]]:
    """Pictures with their values, source and thumbnail."""
    looks, found = extractor_of("tower"), []
    with (folder / "index.csv").open(newline="", encoding="utf-8") as table:
        for row in csv.DictReader(table):
            if row["label"] not in CLASS_OF:
                continue
            file = folder / row["path"]
            micrograph = read_micrograph(file)
            values = computed(micrograph, looks)
            values.pop("instrument")  # a voltage tells the laboratory
            truth = {TARGET: CLASS_OF[row["label"]]}
            small, _ = to_model_input(micrograph, RESNET_SIDE)
            found.append(
                (LabelledRow(row["path"], file, values, truth, row["group"], row["split"]), row["source"], small)
            )
    return found


def on_groups(pictures: Sequence[tuple[LabelledRow, str, Array]], seeds: int, resnet_steps: int) -> dict[str, Any]:
    train, held, test = ([p for p in pictures if p[0].split == split] for split in ("train", "val", "test"))
    known = {row.truth[TARGET] for row, *_ in train}
    test = [p for p in test if p[0].truth[TARGET] in known]
    held = [p for p in held if p[0].truth[TARGET] in known]
    results: dict[str, Any] = {"train": len(train), "calibration": len(held), "test": len(test)}
    results["ours"] = [ours(train, held, test, seed) for seed in range(seeds)]
    results |= {name: top(way(train, test), test) for name, way in WAYS.items()}
    if resnet_steps:
        results["ResNet-18 from nothing"] = top(resnet(train, test, resnet_steps), test)
    return results


def on_sources(pictures: Sequence[tuple[LabelledRow, str, Array]]) -> dict[str, Any]:
    """What is said of pictures of a source that was left out; right only where another source has the family."""
    results: dict[str, Any] = {}
    for source in sorted({source for _, source, _ in pictures}):
        rest = [p for p in pictures if p[1] != source]
        groups = sorted({row.group for row, *_ in rest})
        held = set(groups[::6])
        results[source] = ours(
            [p for p in rest if p[0].group not in held],
            [p for p in rest if p[0].group in held],
            [p for p in pictures if p[1] == source],
            0,
        )
    said = sum(result["said"] for result in results.values())
    right = sum(result["said_right"] for result in results.values())
    of = sum(result["n"] for result in results.values())
    return {"said": said, "right": right, "of": of, "by_source": results}


def ours(
    train: Sequence[tuple[LabelledRow, str, Array]],
    held: Sequence[tuple[LabelledRow, str, Array]],
    test: Sequence[tuple[LabelledRow, str, Array]],
    seed: int,
) -> dict[str, Any]:
    began = time.process_time()
    rows = [row for row, *_ in train]
    classes = tuple(sorted({str(row.truth[TARGET]) for row in rows}))
    held_rows = [row for row, *_ in held if row.truth[TARGET] in classes]
    labelled = LabelledSet(rows, {TARGET: ""}, {TARGET: classes}, {}, [], [])
    predictor = fit_rows(labelled, {"train": rows, "calibration": held_rows}, load_config(None, [f"seed={seed}"]))
    fitted = time.process_time()
    predictions = [p.targets[0] for p in predictor.predict([row.values for row, *_ in test])]
    truth = [str(row.truth[TARGET]) for row, *_ in test]
    shares = np.array([p.probabilities for p in predictions])
    said = np.array([p.verdict != "unknown" and len(p.likely) == 1 for p in predictions])
    right = np.array([p.verdict == word for p, word in zip(predictions, truth, strict=True)])
    order = [[classes[c] for c in np.argsort(-row)] for row in shares]
    likeliest = np.array([ranked[0] == word for ranked, word in zip(order, truth, strict=True)])
    return {
        "n": len(test),
        **{f"top{k}": float(np.mean([w in o[:k] for o, w in zip(order, truth, strict=True)])) for k in (1, 2, 3, 5)},
        "macro_f1": macro_f1([ranked[0] for ranked in order], truth),
        "ece": expected_calibration_error(shares.max(axis=1), likeliest, bins=_ECE_BINS),
        "said": int(said.sum()),
        "said_right": int((said & right).sum()),
        "shares": predictor.targets[0].shares,
        "fit_cpu_s": fitted - began,
        "predict_cpu_s": time.process_time() - fitted,
    }


def on_few(pictures: Sequence[tuple[LabelledRow, str, Array]], others: Sequence[Array]) -> dict[str, Any]:
    """`others` are pictures [S, S] that shape the space and are asked nothing."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    labels = np.array([str(row.truth[TARGET]) for row, *_ in pictures])
    groups = np.array([row.group for row, *_ in pictures])
    seen = np.stack([row.values["image"] for row, *_ in pictures])
    texture = np.stack([row.values["texture"] for row, *_ in pictures])
    enough = sorted(label for label, count in Counter(labels.tolist()).items() if count >= SHOTS[-1] + 1)
    beside = see(others) if others else np.zeros((0, seen.shape[1]), np.float32)
    results: dict[str, Any] = {"families": enough, "drawn": len(others)}
    for shots in SHOTS:
        rng, right, plain, known, sure = np.random.default_rng(shots), [], [], [], []
        for _ in range(EPISODES):
            held = rng.permutation(enough)[:HELD].tolist()
            space = fit_space(np.concatenate([seen[~np.isin(labels, held)], beside]))
            shown, asked = {}, []
            for label in held[:KNOWN]:
                own = rng.permutation(np.flatnonzero(labels == label))
                shown[label] = own[:shots]
                others = [n for n in own[shots:] if groups[n] not in set(groups[own[:shots]])]
                asked += (others or own[shots:].tolist())[:ASKED]
            for label in held[KNOWN:]:
                asked += rng.permutation(np.flatnonzero(labels == label))[:ASKED].tolist()
            told = few_shot({label: seen[rows] for label, rows in shown.items()}, seen[asked], space)
            is_known = np.isin(labels[asked], held[:KNOWN])
            best = [held[int(shares.argmax())] for shares, _ in told]
            right += (np.array(best) == labels[asked])[is_known].tolist()
            known += is_known.tolist()
            sure += [confidence for _, confidence in told]
            rows = np.concatenate(list(shown.values()))
            mean, spread = texture[rows].mean(axis=0), texture[rows].std(axis=0) + 1e-3
            fitted = LogisticRegression(C=10, max_iter=1000).fit((texture[rows] - mean) / spread, labels[rows])
            guessed = fitted.predict((texture[asked] - mean) / spread)
            plain += (guessed == labels[asked])[is_known].tolist()
        calls = np.array(sure) >= 0.5
        results[str(shots)] = {
            "accuracy": float(np.mean(right)),
            "descriptors + logistic": float(np.mean(plain)),
            "unknown_auroc": float(roc_auc_score(known, sure)),
            "called_known_of_known": float(calls[np.array(known)].mean()),
            "called_known_of_unknown": float(calls[~np.array(known)].mean()),
        }
    return results


# ---------------------------------------------------------------------------------- simpler ways


def by_logistic(vector: Callable[[tuple[LabelledRow, str, Array]], Array]) -> Callable[..., list[str]]:
    def way(train: Sequence[Any], test: Sequence[Any]) -> list[str]:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        fitted = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, class_weight="balanced"))
        fitted.fit(np.stack([vector(p) for p in train]), [p[0].truth[TARGET] for p in train])
        told: list[str] = fitted.predict(np.stack([vector(p) for p in test])).tolist()
        return told

    return way


def majority(train: Sequence[Any], test: Sequence[Any]) -> list[str]:
    most = Counter(p[0].truth[TARGET] for p in train).most_common(1)[0][0]
    return [most] * len(test)


WAYS: dict[str, Callable[..., list[str]]] = {
    "majority": majority,
    "intensity": by_logistic(lambda p: np.array([p[2].mean(), p[2].std(), *np.quantile(p[2], (0.1, 0.5, 0.9))])),
    "thumbnail": by_logistic(lambda p: p[2].reshape(SIDE, -1, SIDE, RESNET_SIDE // SIDE).mean(axis=(1, 3)).ravel()),
    "descriptors + logistic": by_logistic(lambda p: p[0].values["texture"]),
    "tower + logistic": by_logistic(lambda p: p[0].values["image"]),
}


def resnet(train: Sequence[Any], test: Sequence[Any], steps: int) -> list[str]:
    """ResNet-18 from random weights, turned and mirrored pictures of 112 px."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    classes = sorted({p[0].truth[TARGET] for p in train})
    shape = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
    net = ResNetForImageClassification(ResNetConfig(num_channels=1, num_labels=len(classes), **shape)).train()
    pixels = torch.from_numpy(np.stack([p[2] for p in train]))[:, None]
    wanted = torch.tensor([classes.index(p[0].truth[TARGET]) for p in train])
    weights = 1 / torch.bincount(wanted, minlength=len(classes)).clamp(min=1)[wanted].double()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for _ in range(steps):
        rows = torch.multinomial(weights, 32, replacement=True)
        batch = torch.rot90(pixels[rows], int(torch.randint(4, ()).item()), (2, 3))
        batch = batch.flip(3) if torch.rand(()) < 0.5 else batch
        loss = torch.nn.functional.cross_entropy(net((batch - 0.5) / 0.25).logits, wanted[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    with torch.inference_mode():
        held = torch.from_numpy(np.stack([p[2] for p in test]))[:, None]
        logits = torch.cat([net.eval()((part - 0.5) / 0.25).logits for part in held.split(32)])
    return [classes[int(n)] for n in logits.argmax(1)]


def top(told: Sequence[str], test: Sequence[Any]) -> dict[str, float]:
    truth = [p[0].truth[TARGET] for p in test]
    right = float(np.mean([a == b for a, b in zip(told, truth, strict=True)]))
    return {"top1": right, "macro_f1": macro_f1(told, truth)}


def macro_f1(told: Sequence[str], truth: Sequence[str]) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(truth, told, average="macro", labels=sorted(set(truth)), zero_division=0))


if __name__ == "__main__":
    main()
