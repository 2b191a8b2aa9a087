"""The `maemi` command: every verb reads its arguments, calls one function and prints what came out.

Knows nothing about images, models or servers; what does is imported inside the verb that needs it, so `maemi --help`
is instant.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import Abort, TyperException

from assistant.errors import ConfigError, MaemiError, MicrographError, RunError
from serve import terminal

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_ANALYTICS_MAX_EVENTS": "100",
    "TRANSFORMERS_VERBOSITY": "error",
    "BITSANDBYTES_NOWELCOME": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
SHOWN_SCORES = (
    ("caption", "bleu2", "bleu2_blind"),
    ("caption", "rougeL", "rougeL_blind"),
    ("vqa", "bleu2", "bleu2_blind"),
    ("vqa", "rougeL", "rougeL_blind"),
    ("classification", "top1", ""),
    ("classification", "macro_f1", ""),
    ("factual", "accuracy", "blind"),
)
ALL_FAILED = -1
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0"}

app = typer.Typer(
    name="maemi",
    help="Ask, caption, classify and fine-tune on electron micrographs, on this machine alone.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Run = Annotated[Path | None, typer.Option(help="Run directory or model; the bundled tiny student if absent.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
PixelSize = Annotated[str | None, typer.Option(help="Pixel size, as in '4.2 nm', instead of what the file says.")]
Data = Annotated[Path, typer.Option(help="Data set directory that `maemi teach` wrote.")]
ConfigFile = Annotated[Path | None, typer.Option(help="YAML file; what it does not name keeps its default.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override a setting, as in training.steps=50.")]


@app.callback()
def everywhere(
    online: Annotated[bool, typer.Option("--online", help="Allow downloads that a config names.")] = False,
) -> None:
    """Ask, caption, classify and fine-tune on electron micrographs, on this machine alone."""
    os.environ.update(ENVIRONMENT | (ONLINE if online else {}))


@app.command(short_help="What the reader finds in micrographs.")
def info(
    files: Annotated[list[Path], typer.Argument(help="Micrographs.")],
    page: Annotated[
        int | None, typer.Option(help="Page of a multi-page file; the deepest largest one if absent.")
    ] = None,
    pixel_size: PixelSize = None,
    json: Json = False,
) -> None:
    """Show what the reader finds in micrographs: pixel size and its source, instrument, info bar, warnings.

    \b
    Example:
      maemi info wafer_07.tif --json
    """
    from assistant.micrograph import read_micrograph

    from serve.answering import parse_pixel_size

    nm = parse_pixel_size(pixel_size)
    records = []
    for path in files:
        try:
            records.append(read_micrograph(path, page=page, pixel_size_nm=nm).info() | {"path": str(path)})
        except MicrographError as error:
            records.append({"path": str(path), "error": {"code": error.code, "message": error.message}})
    if json:
        terminal.print_json(records)
    failed = [record for record in records if "error" in record]
    for record in records:
        if "error" in record:
            terminal.print_error(record["error"]["code"], f"{record['path']}: {record['error']['message']}")
        elif not json:
            _print_info(record)
    _finish(ALL_FAILED if len(failed) == len(records) else len(failed))


@app.command(short_help="Draw micrographs with exact ground truth.")
def synth(
    out: Annotated[Path, typer.Option(help="Directory to write to.")],
    classes: Annotated[str | None, typer.Option(help="Some of the ten classes, as in particles,fibres.")] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Images of each class.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    style: Annotated[str, typer.Option(help="house, or site for a different instrument.")] = "house",
    json: Json = False,
) -> None:
    """Draw micrographs of the ten classes with exact ground truth, vendor tags and info bars.

    \b
    Example:
      maemi synth --out drawn --classes particles,fibres --per-class 20
    """
    from data_gen.synth import CLASSES, write_synthetic

    chosen = tuple(name.strip() for name in classes.split(",") if name.strip()) if classes else CLASSES
    truth = write_synthetic(out, classes=chosen, per_class=per_class, seed=seed, style=style)
    _tell({"truth": str(truth), "images": len(chosen) * per_class}, json, f"{len(chosen) * per_class} images, {truth}")


@app.command(short_help="Turn micrographs into instruction data.")
def teach(
    images: Annotated[Path, typer.Argument(help="Folder of micrographs, with truth.jsonl if they were drawn.")],
    out: Annotated[Path, typer.Option(help="Data set directory to write or to go on with.")],
    teacher: Annotated[str | None, typer.Option(help="offline (nothing leaves the machine) or openai.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Hard limit for a hosted teacher [USD].")] = None,
    allow_egress: Annotated[bool, typer.Option(help="Allow sending redacted images, after a listing.")] = False,
    json: Json = False,
) -> None:
    """Turn micrographs into instruction data; the same command goes on after an interruption.

    \b
    Example:
      maemi teach images/ --out data/
    """
    from data_gen.pipeline import teach as run_teacher

    from assistant.config import load_config

    chosen = [*(overrides or []), *([f"teach.teacher={teacher}"] if teacher else [])]
    settings = load_config(config, chosen).teach
    with _quiet(json), terminal.progress("Teaching") as tell:
        report = run_teacher(images, out, config=settings, budget_usd=budget, allow_egress=allow_egress, progress=tell)
    _tell(report, json, str(report))


@app.command(short_help="Fine-tune a student.")
def train(
    data: Data,
    out: Annotated[Path, typer.Option(help="Run directory to write or to go on with.")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    json: Json = False,
) -> None:
    """Fine-tune a student; the same command resumes after any interruption.

    \b
    Example:
      maemi train --config configs/tiny.yaml --data data/ --out runs/first --set training.steps=200
    """
    from assistant.config import load_config
    from training.trainer import train as run_training

    settings = load_config(config, overrides or ())
    with _quiet(json), terminal.progress("Fine-tuning") as tell:
        run = run_training(settings, data, out, progress=tell)
    _tell({"run": str(run)}, json, f"run: {run}")


@app.command(short_help="Score a student on the test split.")
def evaluate(
    data: Data,
    run: Run = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many rows of each task.")] = None,
    baselines: Annotated[bool, typer.Option(help="Also train the plain classifiers to compare with.")] = True,
    json: Json = False,
) -> None:
    """Score a student on the test split, beside blind scores and baselines.

    \b
    Example:
      maemi evaluate --run runs/first --data data/ --json
    """
    from training.evaluate import evaluate as run_evaluation

    with _quiet(json), terminal.progress("Evaluating") as tell:
        report = run_evaluation(run, data, limit=limit, baselines=baselines, progress=tell)
    if json:
        terminal.print_json(report)
    else:
        _print_scores(report)


@app.command(short_help="Ask a question about micrographs.")
def ask(
    words: Annotated[list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Images, then the question.")],
    run: Run = None,
    pixel_size: PixelSize = None,
    context: Annotated[str | None, typer.Option(help="What you know of the sample, in your own words.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Longest answer [tokens].")] = 128,
    json: Json = False,
) -> None:
    """Ask one question about one or more micrographs; the answer is streamed.

    \b
    Example:
      maemi ask wafer_07.tif "How large are the particles?"
    """
    from serve.answering import Evidence, Question, answer, parse_pixel_size, read_images

    *paths, question = words
    if not paths or Path(question).is_file():
        _usage("Give one or more images first and the question last, as in: maemi ask wafer.tif 'What is shown?'")
    micrographs = read_images([Path(path) for path in paths], pixel_size_nm=parse_pixel_size(pixel_size))
    said = ""
    with _quiet(json):
        assistant = _load(run)
        for item in answer(assistant, Question(micrographs, question, aux=context, max_new_tokens=max_tokens)):
            if isinstance(item, Evidence):
                evidence = item
                break
            said += item
            if not json:
                terminal.write_piece(item)
    if json:
        terminal.print_json({"answer": said.strip()} | evidence.as_dict())
        return
    terminal.say("")
    for micrograph in micrographs:
        terminal.note(assistant.facts_of(micrograph).line())
    for warning in evidence.warnings:
        terminal.note(f"warning: {warning}")


@app.command(short_help="Caption a folder, one row per image.")
def caption(
    folder: Annotated[Path, typer.Argument(help="Folder of micrographs, searched with its sub-folders.")],
    out: Annotated[Path, typer.Option(help="File to write: .jsonl, .csv or .parquet.")],
    run: Run = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; a crash in one costs one image.")] = 1,
    ray: Annotated[str | None, typer.Option(help="Address of a Ray cluster, or 'local'.")] = None,
    pixel_size: PixelSize = None,
    json: Json = False,
) -> None:
    """Caption every micrograph of a folder, one row each; the same command goes on after an interruption.

    \b
    Example:
      maemi caption night_shift/ --out captions.jsonl --workers 4
    """
    from serve.answering import parse_pixel_size
    from serve.batch import caption_folder

    with _quiet(json), terminal.progress("Captioning") as tell:
        summary = caption_folder(
            folder, out, run=run, workers=workers, ray=ray, pixel_size_nm=parse_pixel_size(pixel_size), progress=tell
        )
    for path, error in summary.failures:
        code, _, message = error.partition(": ")
        terminal.print_error(code, f"{path}: {message}")
    done = {"out": str(out), "total": summary.total, "captioned": summary.captioned, "reused": summary.reused}
    told = f"{summary.captioned + summary.reused} of {summary.total} captioned ({summary.reused} before), {out}"
    _tell(done | {"failed": len(summary.failures)}, json, told)
    _finish(len(summary.failures))


@app.command(short_help="Classify micrographs, zero- or few-shot.")
def classify(
    images: Annotated[list[Path], typer.Argument(help="Micrographs or folders of them.")],
    labels: Annotated[str | None, typer.Option(help="Two or more labels, as in particles,fibres,pores.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Few-shot: a directory with one folder of images per label.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to report per image.")] = 5,
    run: Run = None,
    pixel_size: PixelSize = None,
    json: Json = False,
) -> None:
    """Classify micrographs, zero-shot by the words of the labels or few-shot by examples.

    \b
    Example:
      maemi classify new/ --labels particles,fibres --examples known/ --top 2
    """
    from serve.answering import classify_files, parse_labels, parse_pixel_size

    shots = _examples(examples) if examples else None
    names = parse_labels(labels if labels is not None else ",".join(shots or ()))
    nm, paths = parse_pixel_size(pixel_size), list(_expand(images))
    with _quiet(json), terminal.progress("Classifying") as tell:
        results = []
        for row in classify_files(_load(run), paths, names, examples=shots, top=top, pixel_size_nm=nm):
            results.append(row)
            tell(len(results), len(paths), "")
    failed = [row for row in results if row["error"]]
    if json:
        terminal.print_json(results)
    elif len(failed) < len(results):
        terminal.print_table(
            "", ("image", "verdict", "labels"), [_class_row(row) for row in results if not row["error"]]
        )
    for row in failed:
        terminal.print_error(row["error"]["code"], f"{row['path']}: {row['error']['message']}")
    _finish(ALL_FAILED if len(failed) == len(results) else len(failed))


@app.command(short_help="Serve the page and the API.")
def serve(
    run: Run = None,
    host: Annotated[str, typer.Option(help="Address to bind to; other than loopback only with --auth.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
    auth: Annotated[Path | None, typer.Option(help="File with one user:password or key per line.")] = None,
    store: Annotated[Path | None, typer.Option(help="SQLite file that keeps every answer.")] = None,
) -> None:
    """Serve the page at /, the OpenAI-compatible API at /v1, and /healthz.

    \b
    Example:
      maemi serve --host 0.0.0.0 --auth logins.txt
    """
    from serve.server import admit

    credentials = admit(host, auth)
    from serve.api import Desk
    from serve.app import build_app
    from serve.gate import Gate
    from serve.server import run_server
    from serve.store import AnswerStore

    assistant = _load(run)
    book = AnswerStore(store or _state_folder() / "answers.sqlite")
    tokenizer = assistant.processor.tokenizer
    desk = Desk(assistant, Gate(), lambda text: len(tokenizer.encode(text, add_special_tokens=False)), book)
    uploads = tempfile.TemporaryDirectory(prefix="maemi-uploads-")
    os.environ["GRADIO_TEMP_DIR"] = uploads.name  # the default is a folder that all users of the machine share
    terminal.note(f"{assistant.name} at http://{f'[{host}]' if ':' in host else host}:{port}  (Ctrl-C stops)")
    with uploads:
        run_server(build_app(desk, credentials=credentials), host=host, port=port)


@app.command(short_help="Predict the memory of fine-tuning.")
def plan(
    config: ConfigFile = None,
    overrides: Overrides = None,
    gpu_gib: Annotated[float | None, typer.Option(min=0.1, help="Memory of your card [GiB].")] = None,
    json: Json = False,
) -> None:
    """Predict the memory of fine-tuning, part by part, and which settings would fit a card.

    \b
    Example:
      maemi plan --config configs/llama2-7b.yaml --gpu-gib 12
    """
    from assistant.config import load_config
    from training.memory import plan_memory

    predicted = plan_memory(load_config(config, overrides or ()), gpu_gib=gpu_gib)
    if json:
        terminal.print_json(predicted.as_dict())
        return
    rows = [(part, f"{size / 2**30:.2f}") for part, size in predicted.parts.items() if size]
    total = sum(predicted.parts.values()) / 2**30
    terminal.print_table("One fine-tuning step", ("part", ">GiB"), [*rows, ("together", f"{total:.2f}")])
    for card in predicted.cards:
        fix = "no setting helps" if card.settings is None else "fits with --set " + " --set ".join(card.settings)
        terminal.say(f"{card.gib:g} GiB: {'fits' if card.fits else fix}")


@app.command(short_help="Write a stock PEFT LoRA adapter.")
def export(
    run: Annotated[Path, typer.Option(help="Run directory of a DyQLoRA-FA student.")],
    rank: Annotated[int, typer.Option(min=1, help="Rank of the exported adapter.")],
    out: Annotated[Path, typer.Option(help="Directory to write to.")],
) -> None:
    """Write a stock PEFT LoRA adapter of a chosen rank.

    \b
    Example:
      maemi export --run runs/first --rank 8 --out lora_r8
    """
    from assistant.adapters import export_lora
    from assistant.checkpoint import load_run

    student = load_run(run).student
    try:
        export_lora(student.decoder.lm, rank, out)
    except ValueError as error:
        raise RunError("cannot_export", f"{run}: {error}") from None
    terminal.say(f"adapter: {out}")


@app.command(short_help="Check this machine, with the network cut.")
def doctor(run: Run = None, json: Json = False) -> None:
    """Check the machine and run every feature with the network cut.

    \b
    Example:
      maemi doctor
    """
    from serve.doctor import examine

    with _quiet(json):
        checks = list(examine(run))
    if json:
        terminal.print_json([vars(check) for check in checks])
    else:
        rows = [("ok" if c.ok else "FAILED", c.name, c.found, f"{c.seconds:.1f} s") for c in checks]
        terminal.print_table("", ("", "check", "found", ">time"), rows)
    _finish(sum(not check.ok for check in checks))


@app.command(short_help="Run the whole loop in minutes on a CPU.")
def demo(
    out: Annotated[Path, typer.Option(help="Directory to write to or to go on with.")] = Path("demo"),
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 7,
    json: Json = False,
) -> None:
    """Run the whole loop on a CPU: teach, fine-tune, evaluate before and after, caption, report.

    \b
    Example:
      maemi demo --out demo
    """
    from serve.demo import run_demo

    with _quiet(json), terminal.parts() as tell:
        summary = run_demo(out, seed=seed, tell=tell)
    if json:
        terminal.print_json(summary)
        return
    for name in ("before", "after"):
        _print_scores(summary[name], title=name.capitalize())
    terminal.say(f"report: {out / 'report.html'}  ({summary['total_s']:.0f} s)")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command; whatever goes wrong becomes one line on stderr and an exit code."""
    os.environ.update(ENVIRONMENT)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    sys.exit(_run(list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    if "--online" in arguments:
        arguments.remove("--online")
        arguments.insert(0, "--online")
    try:
        code = app(arguments or ["--help"], prog_name="maemi", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MaemiError as error:
        terminal.print_error(error.code, error.message)
    except TyperException as error:
        terminal.print_error("usage", f"{error.format_message()} See: maemi --help")
    except (KeyboardInterrupt, Abort):
        terminal.print_error("interrupted", "Stopped. The same command goes on where it stopped.")
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the flush at exit must not fail again
        return 0
    except OSError as error:
        terminal.print_error("os", f"{error.filename or 'A file'}: {error.strerror or type(error).__name__}.")
    except Exception as error:  # the boundary of the program: a fault of ours is one line too, unless asked for more
        if os.environ.get("MAEMI_TRACEBACK"):
            raise
        told = f"{type(error).__name__}: {error}. This is a fault in maemi; MAEMI_TRACEBACK=1 shows where."
        terminal.print_error("internal", told)
    return 2


@contextmanager
def _quiet(json: bool) -> Iterator[None]:
    """Keep what libraries print away from the JSON on stdout."""
    with redirect_stdout(sys.stderr) if json else nullcontext():
        yield


def _finish(failed: int) -> None:
    """Leave with 0 when nothing failed, 1 when something did, 2 when `failed` says that everything did."""
    if failed:
        raise typer.Exit(2 if failed == ALL_FAILED else 1)


def _usage(message: str) -> NoReturn:
    raise ConfigError("usage", message)


def _tell(document: Any, json: bool, text: str) -> None:
    terminal.print_json(document) if json else terminal.say(text)


def _load(run: Path | None) -> Any:
    from assistant.inference import Assistant

    return Assistant.load(run)


def _expand(paths: Iterable[Path]) -> Iterator[Path]:
    """Files as they are, folders as the micrographs in them."""
    from assistant.micrograph import find_micrographs

    for path in paths:
        if not path.is_dir():
            yield path
        elif found := find_micrographs(path):
            yield from found
        else:
            raise ConfigError("no_images", f"{path} holds no micrographs. Name a folder with TIFF, PNG, JPEG or BMP.")


def _examples(folder: Path) -> dict[str, list[Path]]:
    from assistant.micrograph import find_micrographs

    labels = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = {label.name: list(find_micrographs(label)) for label in labels}
    if not any(found.values()):
        raise ConfigError("no_examples", f"{folder} has no folders with images. Make one folder per label.")
    return {label: files for label, files in found.items() if files}


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "maemi"


def _print_info(record: Mapping[str, Any]) -> None:
    from serve import wording

    rows = [*wording.reading(record), *(("Warning", text) for text in record["warnings"])]
    terminal.print_table(record["path"], ("", ""), rows)


def _class_row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    scores = ", ".join(f"{score['label']} {score['probability']:.3f}" for score in row["scores"])
    return row["path"], row["verdict"], scores


def _print_scores(report: Mapping[str, Any], title: str = "") -> None:
    def cell(scores: Mapping[str, Any], name: str) -> str:
        return f"{scores[name]:.3f}" if isinstance(scores.get(name), float) else "-"

    rows = [
        (section, metric, cell(report[section], metric), cell(report[section], blind))
        for section, metric, blind in SHOWN_SCORES
        if section in report
    ]
    terminal.print_table(title, ("", "score", ">value", ">blind"), rows)


if __name__ == "__main__":
    main()
