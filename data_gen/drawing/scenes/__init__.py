"""The ten classes of micrograph, two more that only test measurements, and the generator of each.

Knows nothing about optics, files or vendors.

A generator is `draw(sample, view, size) -> Scene`: `sample` is a generator of random numbers shared by all fields
of view of one sample (what the specimen is), `view` belongs to one field of view (where things lie in it). Each
generator is imported when it is first asked for, so that naming the classes costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np

    from data_gen.drawing.scenes.imaging import Scene

CLASSES = (
    "biological",
    "fibres",
    "films_coated_surface",
    "mems_devices_electrodes",
    "nanowires",
    "particles",
    "patterned_surface",
    "porous_sponge",
    "powder",
    "tips",
)
UNTAUGHT = ("plant_tissue", "two_phase")
"""Drawn to hold measurements against; no student is taught them."""


class Draw(Protocol):
    """A class generator: specimen and field of view to geometry."""

    def __call__(self, sample: np.random.Generator, view: np.random.Generator, size: tuple[int, int]) -> Scene: ...


def generator_of(label: str) -> Draw:
    """Return the generator of one class; the module bears the name of the class.

    Raises:
        KeyError: the label is none of CLASSES and UNTAUGHT.
    """
    if label not in CLASSES + UNTAUGHT:
        raise KeyError(label)
    draw: Draw = import_module(f"data_gen.drawing.scenes.{label}").draw
    return draw
