"""`maemi info`: what is read from micrographs. Knows nothing about models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from assistant.disk import disk_errors
from assistant.errors import ConfigError, MicrographError
from serve.verbs import terminal
from serve.verbs.command import ALL_FAILED, Json, PixelSize, app, finish

if TYPE_CHECKING:
    from assistant.measurements.findings import Findings
    from assistant.measurements.objects import Body
    from assistant.micrograph import Micrograph

    Tabled = tuple[str, list[Body], float | None]


@app.command(short_help="Show what is read from micrographs.")
def info(
    files: Annotated[list[Path], typer.Argument(help="Micrographs.")],
    page: Annotated[int | None, typer.Option(help="Page of a file; else the deepest of the largest size.")] = None,
    pixel_size: PixelSize = None,
    read_bar: Annotated[bool | None, typer.Option(help="Always or never read the scale bar; else when needed.")] = None,
    overlay: Annotated[Path | None, typer.Option(help="Folder for figures of what was measured.")] = None,
    objects: Annotated[Path | None, typer.Option(help="CSV file for the bodies: size, shape, place.")] = None,
    rois: Annotated[Path | None, typer.Option(help="Zip file for their outlines, as ImageJ opens them.")] = None,
    json: Json = False,
) -> None:
    """Show what is read from micrographs: pixel size and its source, instrument, info bar, warnings.

    \b
    Example:
      maemi info examples/gelatine_fibres.tif --json
      maemi info examples/powder.png --objects powder.csv --rois powder.zip
    """
    from assistant.measure import bodies, found_in
    from assistant.micrograph import read_micrograph
    from serve import wording
    from serve.desk.answering import parse_pixel_size

    if rois is not None and len(files) != 1:
        raise ConfigError("one_file_only", "--rois writes the outlines of one micrograph. Name one file.")
    nm = parse_pixel_size(pixel_size)
    records = []
    tabled: list[Tabled] = []
    for path in files:
        try:
            m = read_micrograph(path, page=page, pixel_size_nm=nm, read_bar=read_bar)
            records.append(m.info() | {"path": str(path)})
            found = found_in(m) if overlay or objects or rois else None
            if overlay is not None:
                _write_figures(m, found, overlay / path.name)
            if objects is not None or rois is not None:
                size = None if m.calibration is None else m.calibration.nm_per_pixel
                tabled.append((str(path), bodies(m, found), size))
        except MicrographError as error:
            records.append({"path": str(path), "error": {"code": error.code, "message": error.message}})
    if objects is not None or rois is not None:
        _write_bodies(tabled, objects, rois)
    if json:
        terminal.print_json(records)
    failed = [record for record in records if "error" in record]
    for record in records:
        if "error" in record:
            terminal.print_error(record["error"]["code"], f"{record['path']}: {record['error']['message']}")
        elif not json:
            found_in = [*wording.reading(record), *(("Warning", text) for text in record["warnings"])]
            terminal.print_table(record["path"], ("", ""), found_in)
    finish(ALL_FAILED if len(failed) == len(records) else len(failed))


def _write_figures(m: Micrograph, found: Findings | None, path: Path) -> None:
    """One PNG per measurement that applies, `PATH.figure.png`."""
    from assistant.measure import figures

    with disk_errors(path.parent, ConfigError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for figure, image in figures(m, found).items():
            image.save(path.with_name(f"{path.name}.{figure}.png"))


def _write_bodies(tabled: list[Tabled], table: Path | None, rois: Path | None) -> None:
    """The bodies of all files as a table, those of the only one as regions of interest."""
    from assistant.measurements.objects import write_rois, write_table

    if table is not None:
        with disk_errors(table, ConfigError):
            write_table(table, tabled)
    if rois is not None and tabled:
        with disk_errors(rois, ConfigError):
            write_rois(rois, tabled[0][1])
