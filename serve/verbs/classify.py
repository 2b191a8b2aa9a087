"""`maemi classify`: which of a few labels, by their words or by examples. Knows nothing about how it is decided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from assistant.errors import ConfigError
from serve.verbs import terminal
from serve.verbs.command import ALL_FAILED, Json, PixelSize, RunOption, app, finish, load, quiet


@app.command(short_help="Classify micrographs, zero- or few-shot.")
def classify(
    images: Annotated[list[Path], typer.Argument(help="Micrographs or folders of them.")],
    labels: Annotated[str | None, typer.Option(help="Two or more labels, such as particles,fibres,pores.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="For few-shot: a folder with one sub-folder of images per label.")
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Show this many examples in the question itself, the labels in turn.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to report per image.")] = 5,
    explain: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for pictures of what carries each label.")
    ] = None,
    run: RunOption = None,
    pixel_size: PixelSize = None,
    json: Json = False,
) -> None:
    """Classify micrographs: zero-shot by the words of the labels, or few-shot by examples.

    \b
    Example:
      maemi classify new/ --labels particles,fibres --examples known/ --top 2
      maemi classify new/ --examples known/ --shots 4
      maemi classify wafer.tif --examples known/ --explain why/
    """
    from assistant.demonstrations import Shots
    from assistant.explain import save_over
    from assistant.micrograph import read_micrograph
    from serve.desk.answering import classify_files, parse_labels, parse_pixel_size

    if shots is not None and examples is None:
        raise ConfigError("no_examples", "--shots shows examples, and there are none. Name a folder by --examples.")
    if shots is not None and explain is not None:
        raise ConfigError(
            "usage", "--explain shows what heads and examples rest on, not --shots. Leave one of them out."
        )
    known = _examples(examples) if examples else None
    names = parse_labels(labels if labels is not None else ",".join(known or ()))
    nm, paths = parse_pixel_size(pixel_size), list(_expand(images))
    told = Shots(shots) if shots else None
    with quiet(json), terminal.progress("Classifying") as tell:
        assistant, results = load(run), []
        for row in classify_files(assistant, paths, names, examples=known, shots=told, top=top, pixel_size_nm=nm):
            if explain is not None and not row["error"]:
                m = read_micrograph(Path(row["path"]), pixel_size_nm=nm)
                found = assistant.explain_label(m, names, examples=known)
                row["explanation"] = found.as_dict() | {"picture": str(save_over(m, found, explain))}
            results.append(row)
            tell(len(results), len(paths), "")
    failed = [row for row in results if row["error"]]
    if known is None and (strange := assistant.labels_not_known(names)):
        terminal.note(f"not known to this student: {', '.join(strange)}. Show pictures of each by --examples.")
    if json:
        terminal.print_json(results)
    elif len(failed) < len(results):
        table = []
        for row in results:
            scores = ", ".join(f"{score['label']} {score['probability']:.3f}" for score in row["scores"] or ())
            table += [(row["path"], row["verdict"], scores)] if not row["error"] else []
        terminal.print_table("", ("image", "verdict", "labels"), table)
        for row in results if explain is not None else ():
            if not row["error"]:
                terminal.say(f"{row['path']}: {row['explanation']['sentence']}")
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
