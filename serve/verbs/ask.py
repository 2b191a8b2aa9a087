"""`maemi ask`: one question about micrographs, answered while you read. Knows nothing about how it is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serve.verbs import terminal
from serve.verbs.command import Json, PixelSize, RunOption, app, load, quiet, usage


@app.command(short_help="Ask a question about micrographs.")
def ask(
    words: Annotated[list[str], typer.Argument(metavar="IMAGE... QUESTION", help="Images, then the question.")],
    run: RunOption = None,
    pixel_size: PixelSize = None,
    context: Annotated[str | None, typer.Option(help="What you know about the sample, in your own words.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Longest answer, in tokens.")] = 128,
    json: Json = False,
) -> None:
    """Ask one question about one or more micrographs. The answer appears as it is written.

    \b
    Example:
      maemi ask examples/gelatine_fibres.tif "At which voltage was this taken?"
    """
    from serve import wording
    from serve.desk.answering import Proof, Question, answer, parse_pixel_size, read_images

    *paths, question = words
    if not paths or Path(question).is_file():
        usage("Give one or more images first and the question last, as in: maemi ask wafer.tif 'What is shown?'")
    micrographs = read_images([Path(path) for path in paths], pixel_size_nm=parse_pixel_size(pixel_size))
    said = ""
    with quiet(json):
        assistant = load(run)
        for item in answer(assistant, Question(micrographs, question, aux=context, max_new_tokens=max_tokens)):
            if isinstance(item, Proof):
                evidence = item
                break
            said += item
            if not json:
                terminal.write_piece(item)
    if json:
        terminal.print_json({"answer": said.strip()} | evidence.as_dict())
        return
    terminal.say("")
    for facts in evidence.facts:
        terminal.note("; ".join(f"{name} {value}" for name, value, _ in wording.fact_rows(facts)))
    for warning in evidence.warnings:
        terminal.note(f"warning: {warning}")
