"""The verbs that look at micrographs: info, ask, caption, classify.

Knows nothing about training or serving.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from assistant.errors import ConfigError, MicrographError
from serve import terminal
from serve.command import ALL_FAILED, Json, PixelSize, Run, app, finish, load, print_result, quiet, usage

if TYPE_CHECKING:
    from assistant.micrograph import Micrograph


@app.command(short_help="What the reader finds in micrographs.")
def info(
    files: Annotated[list[Path], typer.Argument(help="Micrographs.")],
    page: Annotated[
        int | None, typer.Option(help="Page of a multi-page file; the deepest largest one if absent.")
    ] = None,
    pixel_size: PixelSize = None,
    read_bar: Annotated[
        bool | None,
        typer.Option(help="Read the burnt-in scale bar always or never; where it is needed if absent."),
    ] = None,
    overlay: Annotated[
        Path | None, typer.Option(help="Folder for figures: what can be measured, drawn over each micrograph.")
    ] = None,
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
            found = read_micrograph(path, page=page, pixel_size_nm=nm, read_bar=read_bar)
            records.append(found.info() | {"path": str(path)})
            if overlay is not None:
                _write_figures(found, overlay, path.name)
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
    finish(ALL_FAILED if len(failed) == len(records) else len(failed))


def _write_figures(micrograph: Micrograph, folder: Path, name: str) -> None:
    """One PNG per measurement that applies, `NAME.figure.png`."""
    from assistant.measure import figures

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for figure, image in figures(micrograph).items():
            image.save(folder / f"{name}.{figure}.png")
    except OSError as error:
        message = (
            f"{error.filename or folder} cannot be written: {error.strerror}. Choose another folder for --overlay."
        )
        raise ConfigError("cannot_write", message) from error


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
        usage("Give one or more images first and the question last, as in: maemi ask wafer.tif 'What is shown?'")
    micrographs = read_images([Path(path) for path in paths], pixel_size_nm=parse_pixel_size(pixel_size))
    said = ""
    with quiet(json):
        assistant = load(run)
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

    with quiet(json), terminal.progress("Captioning") as tell:
        summary = caption_folder(
            folder, out, run=run, workers=workers, ray=ray, pixel_size_nm=parse_pixel_size(pixel_size), progress=tell
        )
    for path, error in summary.failures:
        code, _, message = error.partition(": ")
        terminal.print_error(code, f"{path}: {message}")
    done = {"out": str(out), "total": summary.total, "captioned": summary.captioned, "reused": summary.reused}
    told = f"{summary.captioned} of {summary.total} captioned ({summary.reused} before), {out}"
    print_result(done | {"failed": len(summary.failures)}, json, told)
    finish(len(summary.failures))


@app.command(short_help="Classify micrographs, zero- or few-shot.")
def classify(
    images: Annotated[list[Path], typer.Argument(help="Micrographs or folders of them.")],
    labels: Annotated[str | None, typer.Option(help="Two or more labels, as in particles,fibres,pores.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Few-shot: a directory with one folder of images per label.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Show so many examples, the most similar, in the question itself.")
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
      maemi classify new/ --examples known/ --shots 4
    """
    from assistant.demonstrations import Shots
    from serve.answering import classify_files, parse_labels, parse_pixel_size

    if shots is not None and examples is None:
        raise ConfigError("no_examples", "--shots shows examples, and there are none. Name a folder by --examples.")
    known = _examples(examples) if examples else None
    names = parse_labels(labels if labels is not None else ",".join(known or ()))
    nm, paths = parse_pixel_size(pixel_size), list(_expand(images))
    told = Shots(shots) if shots else None
    with quiet(json), terminal.progress("Classifying") as tell:
        results = []
        for row in classify_files(load(run), paths, names, examples=known, shots=told, top=top, pixel_size_nm=nm):
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
    finish(ALL_FAILED if len(failed) == len(results) else len(failed))


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


def _print_info(record: Mapping[str, Any]) -> None:
    from serve import wording

    rows = [*wording.reading(record), *(("Warning", text) for text in record["warnings"])]
    terminal.print_table(record["path"], ("", ""), rows)


def _class_row(row: Mapping[str, Any]) -> tuple[str, str, str]:
    scores = ", ".join(f"{score['label']} {score['probability']:.3f}" for score in row["scores"])
    return row["path"], row["verdict"], scores
