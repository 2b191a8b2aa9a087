"""Encoder of a crystal: gated graph convolutions over periodic neighbours (CGCNN), and the crystal in one sentence.

Xie and Grossman 2018. CIF files are read by pymatgen, symmetry is found by spglib: both come with the extra [crystal].
Knows nothing about pictures or tables.

Letters: B crystals, A atoms of all of them, E pairs of an atom and a neighbour, R distance bins, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.encoders.composition import BY_NAME, element_table
from assistant.encoders.encoder import Encoder, Item
from assistant.errors import DatasetError
from assistant.remarks import heard

_NEIGHBOURS, RADIUS, BIN = 12, 8.0, 0.4
"""Neighbours of an atom that are looked at, how far they are looked for [A], and width of the distance bins [A]."""
_SHELL, _ALIKE = 0.1, 0.01
"""How much farther than the last of them another is looked at too, so that no shell is cut through, and how far apart
the distances of the same neighbour may lie that count as one [A]."""
_REACH = 20.0
"""Square of the distance from a bin, in its widths, beyond which a distance is not in it: e^-20 is below rounding."""
_DEPTH = 3
MOST_ATOMS = 400
_LARGEST = 2**20
"""Largest CIF that is read [byte]."""
_TOLERANCE = 0.01
"""How far an atom may lie off its symmetric place [A]."""
_SYSTEMS = (
    (2, "triclinic"),
    (15, "monoclinic"),
    (74, "orthorhombic"),
    (142, "tetragonal"),
    (167, "trigonal"),
    (194, "hexagonal"),
    (230, "cubic"),
)
"""Last space group of each crystal system."""


@dataclass(frozen=True, eq=False)
class Crystal:
    """A unit cell as a periodic graph: pairs of an atom and a neighbour, images that lie as far off counted in one."""

    formula: str
    """With spaces: "Sr1 Ti1 O3"."""
    numbers: np.ndarray  # [A]
    pairs: np.ndarray  # [E, 2], places in the cell of an atom and of its neighbour
    distances: np.ndarray  # [E] [A]
    counts: np.ndarray  # [E], how many images of the neighbour lie there
    lattice: tuple[float, float, float, float, float, float]
    """a, b, c [A] and alpha, beta, gamma [degree]."""
    volume: float
    """Of the cell [A3]."""
    sentence: str
    """Space group, system, number of atoms, lengths: what an encoder of text can read."""


def read_crystal(cif: str | Path) -> Crystal:
    """Read the first structure of a CIF, its text or its path.

    Raises DatasetError `needs_extra` or `bad_crystal`.
    """
    try:
        from pymatgen.io.cif import CifParser
    except ImportError:
        raise DatasetError("needs_extra", 'Crystals need the extra: pip install "maemi[crystal]".') from None
    text = _read(cif) if isinstance(cif, Path) else cif
    try:
        with heard([]):  # warnings of rounded coordinates, and of ways of calling that will go
            structure = CifParser.from_str(text).parse_structures(primitive=False)[0]
            if not 0 < len(structure) <= MOST_ATOMS or not structure.is_ordered:
                raise ValueError(f"{len(structure)} atoms, or places shared by elements")
            numbers, cell = np.array(structure.atomic_numbers), structure.lattice
            return Crystal(
                structure.composition.formula,
                numbers,
                *nearest(structure),
                tuple(cell.parameters),
                float(cell.volume),
                sentence(cell.matrix, structure.frac_coords, numbers, cell.parameters),
            )
    except Exception as error:  # whatever a parser of text meets in a stranger's file
        name = cif if isinstance(cif, Path) else text[:40]
        reason = str(error).split("\n")[0][:120]
        raise DatasetError("bad_crystal", f"{str(name)!r} is no crystal that can be read ({reason}).") from None


def nearest(structure: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs [E, 2] of every atom of a pymatgen structure with its nearest neighbours, distances [A], and counts."""
    centres, places, _, lengths = structure.get_neighbor_list(RADIUS)
    order = np.lexsort((lengths, centres))
    centres, places, lengths = centres[order], places[order], lengths[order]
    starts = np.searchsorted(centres, np.arange(len(structure)))
    last = np.minimum(starts + _NEIGHBOURS, np.searchsorted(centres, np.arange(len(structure)), "right")) - 1
    near = lengths <= lengths[last][centres] + _SHELL if len(lengths) else np.zeros(0, bool)
    steps = (lengths[near] / _ALIKE).round().astype(int)
    alike, owner, counts = np.unique(
        np.stack([centres[near], places[near], steps], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    distances = np.bincount(owner.ravel(), lengths[near], len(alike)) / counts
    return alike[:, :2], distances.astype(np.float32), counts.astype(np.float32)


def sentence(matrix: np.ndarray, places: np.ndarray, numbers: np.ndarray, lattice: Sequence[float]) -> str:
    """A cell in words: "Pm-3m, cubic, 5 atoms, a = 4.06 A"; lengths and angles that repeat are said once."""
    import spglib

    found = spglib.get_symmetry_dataset((matrix, places, numbers), symprec=_TOLERANCE)
    group = 1 if found is None else found.number
    symbol = "P1" if found is None else found.international
    system = next(name for last, name in _SYSTEMS if group <= last)
    parts = [symbol, system, f"{len(numbers)} atoms"]
    said: list[str] = []
    for name, length in zip("abc", lattice[:3], strict=True):
        if f"{length:.2f}" not in said:
            parts.append(f"{name} = {length:.2f} A")
            said.append(f"{length:.2f}")
    right = "90"
    for name, angle in zip(("alpha", "beta", "gamma"), lattice[3:], strict=True):
        if f"{angle:.0f}" != right:
            parts.append(f"{name} = {angle:.0f} degrees")
    return ", ".join(parts)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST:
            raise DatasetError("bad_crystal", f"{path} has more than {_LARGEST} bytes. Give one structure per file.")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DatasetError("bad_crystal", f"{path} cannot be read ({error.strerror}). Correct the path.") from None


class GatedConvolution(nn.Module):
    """v_i + W sum_j sigmoid(z_ij) * softplus(z'_ij), z and z' of v_i, v_j, u_ij; CGCNN equation 5, and two changes.

    What is normalised is v before the sum, in place of the sum: how many neighbours tell what is not lost. And to what
    they have of v_i and of v_j comes its product: a bond is of elements that differ or are alike, which no sum tells.
    """

    def __init__(self, dim: int, bins: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        # One matrix on [v_i, v_j, u_ij] is three: on atoms it then works once per atom, not once per pair.
        self.centre, self.neighbour = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim, bias=False)
        self.edge, self.out = nn.Linear(bins, 2 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, atoms: Tensor, pairs: Tensor, edges: Tensor, counts: Tensor) -> Tensor:
        """Atoms [A, D], pairs [2, E], their distances in bins [E, R] and how often each is there [E] -> [A, D]."""
        x, (centres, neighbours) = self.norm(atoms), pairs
        # Chosen by index_select: the gradient of indexing by a tensor is several times as slow on a CPU.
        here, there = self.centre(x).index_select(0, centres), self.neighbour(x).index_select(0, neighbours)
        gate, core = (here + there + here * there + self.edge(edges)).chunk(2, dim=-1)  # [E, D] each
        messages = gate.sigmoid() * F.softplus(core) * (counts / _NEIGHBOURS)[:, None]
        summed: Tensor = atoms + self.out(torch.zeros_like(atoms).index_add(0, centres, messages))
        return summed


class CrystalEncoder(Encoder):
    """Atoms by element and properties, gated convolutions, the mean over the cell."""

    kind = "crystal"

    def __init__(self, dim: int) -> None:
        super().__init__()
        _, table = element_table()
        self.dim = dim
        self.register_buffer("properties", torch.tensor(table, dtype=torch.float32), persistent=False)
        self.register_buffer("centres", torch.arange(0, RADIUS + BIN, BIN), persistent=False)
        self.properties: Tensor
        self.centres: Tensor
        self.element, self.name = nn.Linear(table.shape[1], dim), nn.Embedding(len(table), dim)
        nn.init.normal_(self.name.weight, std=BY_NAME)
        self.layers = nn.ModuleList(GatedConvolution(dim, len(self.centres)) for _ in range(_DEPTH))
        self.out = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim), nn.LayerNorm(dim))

    @classmethod
    def fit(cls, values: Sequence[Any], dim: int) -> Self:
        """Nothing of a crystal needs to be learned beforehand."""
        return cls(dim)

    def item(self, value: Any) -> Item:
        """A crystal, or its CIF, as tensors. Raises DatasetError `bad_crystal` or `needs_extra`."""
        crystal = value if isinstance(value, Crystal) else read_crystal(value)
        return {
            "numbers": torch.from_numpy(crystal.numbers).long().clamp_max(len(self.properties) - 1),
            "pairs": torch.from_numpy(crystal.pairs.T).long(),
            "distances": torch.from_numpy(crystal.distances),
            "counts": torch.from_numpy(crystal.counts),
        }

    def forward(self, items: Sequence[Item]) -> Tensor:
        """[B, D]."""
        sizes = torch.tensor([len(item["numbers"]) for item in items])
        starts = (sizes.cumsum(0) - sizes).tolist()
        numbers, distances, counts = (
            torch.cat([item[name] for item in items]) for name in ("numbers", "distances", "counts")
        )
        pairs = torch.cat([item["pairs"] + start for item, start in zip(items, starts, strict=True)], dim=1)  # [2, E]
        off = ((distances[:, None] - self.centres) / BIN).square()
        # Cut where nothing is left: numbers too small for a float's range halve the speed of a product.
        edges = torch.exp(-off).where(off < _REACH, 0.0)  # [E, R]
        atoms = self.element(self.properties[numbers]) + self.name(numbers)
        for layer in self.layers:
            atoms = layer(atoms, pairs, edges, counts)
        cell = torch.repeat_interleave(torch.arange(len(items)), sizes)
        sums = torch.zeros(len(items), self.dim, dtype=atoms.dtype).index_add(0, cell, atoms)
        vectors: Tensor = self.out(sums / sizes[:, None])
        return vectors

    def settings(self) -> dict[str, Any]:
        """Width."""
        return {"dim": self.dim}
