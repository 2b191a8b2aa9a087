"""`maemi demo`: the whole loop on real parts, in minutes on a CPU.

A new instrument arrives: back-scattered contrast the bundled student has never seen. Its micrographs are drawn with
exact ground truth, taught offline from measured facts, and the student's adapters are fine-tuned on them; the held-out
samples are answered before and after. Knows nothing about how any of the parts work.
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from assistant.config import Config, load_config
from assistant.disk import write_file
from serve.verbs import terminal
from serve.verbs.command import Json, app, quiet
from serve.verbs.evaluate import print_scores
from serve.verbs.terminal import TellPart

"""Called with the name of a part, how much of it is done, how much there is, and a short text."""

PER_CLASS = 24
_STEPS = 200
ROWS_PER_TASK = 60
CAPTIONED = 20
SHOWN = 10
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "scikit-image", "gradio")


@dataclass
class Clock:
    """Seconds spent per part."""

    seconds: dict[str, float] = field(default_factory=dict)
    _start: float = field(default_factory=time.monotonic)

    def lap(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = round(now - self._start, 1)
        self._start = now


@app.command(short_help="Run the whole loop in minutes on a CPU.")
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write or continue.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 7,
    json: Json = False,
) -> None:
    """Run the whole loop on a CPU: teach, fine-tune, evaluate before and after, caption, report.

    \b
    Example:
      maemi demo --out demo
    """
    with quiet(json), terminal.parts() as tell:
        summary = run_demo(out, seed=seed, tell=tell)
    if json:
        terminal.print_json(summary)
        return
    for name in ("before", "after"):
        print_scores(summary[name], title=name.capitalize())
    terminal.say(f"report: {out / 'report.html'}  ({summary['total_s']:.0f} s)")


def run_demo(
    out: Path, *, per_class: int = PER_CLASS, steps: int = _STEPS, seed: int = 7, tell: TellPart | None = None
) -> dict[str, Any]:
    """Run the loop into `out` and return the summary that is also written to `out/summary.json`.

    Every part resumes: the same call after an interruption goes on where it stopped. Raises MaemiError.
    """
    from data_gen.drawing.synth import write_synthetic
    from data_gen.pipeline import teach
    from training.evaluate import evaluate
    from training.trainer import train

    say = tell or (lambda part, done, total, text: None)
    # The tiny student's products are too small for bfloat16 to pay: 40 steps took 45 s with it and 33 s without on a
    # processor with AMX. In float32 the demo also comes out the same on every machine.
    config = load_config(None, [f"training.steps={steps}", f"seed={seed}", "training.precision=fp32"])
    images, data, run = out / "micrographs", out / "dataset", out / "run"
    clock = Clock()

    say("Drawing micrographs", 0, 1, f"{per_class} of each class")
    if not (images / "truth.jsonl").exists():
        write_synthetic(images, per_class=per_class, seed=seed, style="site")
    say("Drawing micrographs", 1, 1, "")
    clock.lap("draw")
    teach(images, data, config=config.teach, progress=lambda n, of, text: say("Teaching offline", n, of, text))
    clock.lap("teach")
    before = evaluate(
        None,
        data,
        limit=ROWS_PER_TASK,
        baselines=False,
        progress=lambda n, of, text: say("Evaluating before", n, of, text),
    )
    clock.lap("evaluate before")
    train(config, data, run, progress=lambda n, of, text: say("Fine-tuning adapters", n, of, text))
    clock.lap("fine-tune")
    after = evaluate(run, data, limit=ROWS_PER_TASK, progress=lambda n, of, text: say("Evaluating after", n, of, text))
    clock.lap("evaluate after")
    captions = _caption_held_out(run, data, images, out / "captions.jsonl", say)
    clock.lap("caption")
    summary = _summarise(config, data, before, after, captions, clock)
    write_file(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    _report(out, run, data, images, summary, say)
    return summary


def _caption_held_out(run: Path, data: Path, images: Path, file: Path, say: TellPart) -> int:
    """Caption some held-out micrographs as a folder, the way an overnight job would."""
    from serve.batch.journal import caption_folder

    folder = file.parent / "held_out"
    folder.mkdir(exist_ok=True)
    for source in _held_out(data, images)[:CAPTIONED]:
        for part in (source, source.with_name(source.name + ".txt"), source.with_suffix(".txt")):
            target = folder / part.name
            if part.exists() and not target.exists():
                target.write_bytes(part.read_bytes())
    report = caption_folder(folder, file, run=run, progress=lambda n, of, text: say("Captioning a folder", n, of, text))
    return report.captioned


def _held_out(data: Path, images: Path) -> list[Path]:
    """Files of the test split, each once, spread over the classes."""
    from training.data import load_split

    by_label: dict[str, list[Path]] = {}
    for row in load_split(data, "test"):
        path = images / Path(row.source).name if not (images / row.source).exists() else images / row.source
        files = by_label.setdefault(row.label or "", [])
        if len(row.images) == 1 and path.exists() and path not in files:
            files.append(path)
    rounds = max(map(len, by_label.values()), default=0)
    return [files[i] for i in range(rounds) for files in by_label.values() if i < len(files)]


def _summarise(
    config: Config, data: Path, before: dict[str, Any], after: dict[str, Any], captions: int, clock: Clock
) -> dict[str, Any]:
    import resource

    from training.data import held_out_split

    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    rows = {split: len(held_out_split(data, split)) for split in ("train", "validation", "test")}
    return {
        "dataset": {"rows": rows, "teacher": config.teach.teacher},
        "before": before,
        "after": after,
        "captions": captions,
        "seconds": clock.seconds,
        "total_s": round(sum(clock.seconds.values()), 1),
        "peak_memory_gib": round(most / 1024**2, 2),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


def _report(out: Path, run: Path, data: Path, images: Path, summary: dict[str, Any], say: TellPart) -> None:
    from assistant.inference import Assistant
    from serve.verbs.report import ReportImage, write_report
    from training.data import load_split

    assistant = Assistant.load(run)
    tests = load_split(data, "test")
    shown = []
    chosen = _held_out(data, images)[:SHOWN]
    for number, path in enumerate(chosen):
        say("Writing the report", number, len(chosen), path.name)
        look = assistant.look(path)
        rows = [row for row in tests if Path(row.source).name == path.name and len(row.images) == 1]
        asked = [row for row in rows if row.task != "caption"][:5]
        answers = assistant.answer_all([(look, row.question) for row in asked])
        shown.append(
            ReportImage(
                name=path.name,
                pixels=look.micrograph.to_display(),
                info=look.micrograph.info(),
                facts=look.facts.as_dict(),
                caption=assistant.caption([path])[0],
                answers=[(row.question, text, row.answer) for row, text in zip(asked, answers, strict=True)],
            )
        )
    log = run / "metrics.jsonl"  # nothing is logged of a run of few steps
    steps = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []
    write_report(
        out / "report.html",
        title="MAEMI: one loop, from images to a fine-tuned assistant",
        dataset=summary["dataset"],
        before=summary["before"],
        after=summary["after"],
        losses=[(entry["step"], entry["loss"]) for entry in steps if "loss" in entry],
        images=shown,
        timing=summary["seconds"],
        versions=summary["versions"],
    )
    say("Writing the report", len(chosen), len(chosen), str(out / "report.html"))
