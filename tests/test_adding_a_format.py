"""The page on adding a vendor is code that runs: its reader, put into the tuple it names, reads a file."""

import ast
import re
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assistant import micrograph

PAGE = Path(__file__).parents[1] / "docs" / "adding-a-format.md"


@pytest.mark.parametrize(("entry", "nm"), [("4.2 nm", 4.2), ("0.5 µm", 500.0), ("4.2", None), ("4.2 px", None)])
def test_the_reader_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: str, nm: float | None) -> None:
    """One file plus one line. Fails if the page's parsers are renamed or the tuple is."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    acme = types.ModuleType("acme")
    exec(compile(source, str(PAGE), "exec"), acme.__dict__)
    readers = (*micrograph._SIDECAR_READERS, acme)
    monkeypatch.setattr(micrograph, "_SIDECAR_READERS", readers)
    Image.fromarray(np.zeros((60, 80), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(f"[Acme]\nModel = Rocket 9\nPixel = {entry}\n", encoding="utf-8")
    m = micrograph.read_micrograph(tmp_path / "a.png")
    assert (m.calibration and m.calibration.nm_per_pixel) == nm
    assert (m.instrument.vendor, m.instrument.model) == ("acme", "Rocket 9")
    assert acme.VENDOR == ("acme", "Acme")


def test_a_vendor_is_named_in_its_own_file_alone() -> None:
    """Fails if a table of names grows beside the readers again: the key of a vendor stands in no other module."""
    root = PAGE.parents[1]
    keys = set(micrograph.VENDOR_NAMES)
    assert {"thermo", "zeiss", "jeol"} <= keys
    for path in sorted((root / "assistant").rglob("*.py")) + sorted((root / "serve").rglob("*.py")):
        if path.parent.name != "readers":
            words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
            assert not keys & {word for word in words if isinstance(word, str)}, path
