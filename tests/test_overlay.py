"""Figures of what was measured: there is one for each measurement that applies, and what it shows is where it is."""

import numpy as np
import pytest
from measuring import discs
from PIL import Image
from test_measure import grating, noisy, rods

from assistant.measure import figures, measure
from assistant.measurements import canvas, overlay
from assistant.micrograph import Calibration, Micrograph


def micrograph(grey: np.ndarray, nm: float | None = 4.0) -> Micrograph:
    return Micrograph(grey, "0" * 64, calibration=None if nm is None else Calibration(nm, "user", 1.0))


def coloured(image: Image.Image) -> np.ndarray:
    """Where a figure is not grey. [H, W]"""
    rgb = np.asarray(image).astype(int)
    return np.ptp(rgb, axis=2) > 40


PICTURES = {
    "particles": discs(size=(200, 260)),
    "lines": noisy(grating((200, 260), pitch=20, width=9, angle=90)),
    "fibres": noisy(rods((200, 260), angle=30, length=150, width=8, count=14)),
    "uniform": np.full((200, 260), 7, np.uint8),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_measurement_that_applies_has_a_figure(kind: str) -> None:
    """Seen failing with a fact left out of FIGURES, and with a figure drawn for one that does not apply."""
    m = micrograph(PICTURES[kind])
    facts = measure(m)
    assert facts.kind == kind
    made = figures(m)
    shown = {name for figure in made for name in overlay.FIGURES[figure]}
    assert {fact.name for fact in facts.applicable()} <= shown
    for figure, image in made.items():
        assert any(facts[name].applies for name in overlay.FIGURES[figure])
        assert max(image.size) == canvas.FIGURE_SIDE
        assert image.mode == "RGB"
    assert set(overlay.FIGURES) == set(overlay.DRAWN)


def test_outlines_lie_on_the_edges_of_the_discs() -> None:
    """Half a pixel of the small copy is two of the figure here; a swap of x and y puts them far off."""
    m = micrograph(PICTURES["particles"])
    image = figures(m)["objects"]
    rows, columns = np.nonzero(coloured(image))
    scale = canvas.FIGURE_SIDE / 260
    centres = [(260 * (1 + k % 3) / 4, 200 * (1 + k // 3) / 4) for k in range(9)]
    near = [min(abs(np.hypot(x / scale - cx, y / scale - cy) - 8) for cx, cy in centres)
            for y, x in zip(rows, columns, strict=True) if y > 60]  # fmt: skip
    assert len(near) > 500
    assert np.percentile(near, 95) < 1.5


def test_edges_of_lines_lie_on_the_lines() -> None:
    """Seen failing with the sample turned the wrong way back."""
    for angle in (90.0, 60.0, 137.0):
        ideal = grating((200, 260), pitch=20, width=9, angle=angle)
        m = micrograph(noisy(ideal, sigma=0.01))
        from assistant.measure import _find

        window = m.window()
        found = _find(m.content, window.low, window.high)
        assert found is not None
        assert found.lines is not None
        xy = np.concatenate(found.lines.edges)
        x, y = np.rint(xy).astype(int).T
        around = np.stack([ideal[np.clip(y + dy, 0, 199), np.clip(x + dx, 0, 259)]
                           for dy in (-2, 0, 2) for dx in (-2, 0, 2)])  # fmt: skip
        assert np.mean((around.max(axis=0) > 0.9) & (around.min(axis=0) < 0.1)) > 0.95


def test_the_scale_bar_has_a_round_length_and_its_true_size() -> None:
    """Seen failing with a bar in px of the picture on a figure of another size."""
    surface = canvas.Canvas(np.zeros((256, 512), np.uint8))
    surface.scale_bar("nm", 4.0)
    white = np.asarray(surface.finished()).min(axis=2) > 235
    bar = max(int(white[row].sum()) for row in range(canvas.MARGIN + 32, canvas.MARGIN + 37))
    nm = bar / surface.scale * 4.0
    assert nm == pytest.approx(200, rel=0.02)  # a fifth of 512 px of 4 nm, rounded down


@pytest.mark.parametrize(("target", "length"), [(1.0, 1.0), (1.99, 1.0), (4.9, 2.0), (5.0, 5.0), (730.0, 500.0)])
def test_round_lengths(target: float, length: float) -> None:
    assert canvas.round_length(target) == pytest.approx(length)


def test_figures_of_any_shape_do_not_crash() -> None:
    for shape in ((33, 500), (400, 40), (64, 64)):
        grey = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
        figures(micrograph(grey, None))
