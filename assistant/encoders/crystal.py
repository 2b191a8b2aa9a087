"""Encoder of a crystal: gated graph convolutions over periodic neighbours (CGCNN), and the crystal in one sentence.

Xie and Grossman 2018. CIF files are read by pymatgen, symmetry is found by spglib: both come with the extra [crystal].
Knows nothing about pictures or tables.

Letters: B crystals, A atoms of all of them, K neighbours of an atom, R distance bins, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assistant.encoders.composition import element_table
from assistant.encoders.encoder import Encoder, Item
from assistant.errors import DatasetError

_NEIGHBOURS, RADIUS, BIN = 12, 8.0, 0.4
"""Neighbours of an atom that are looked at, how far they are looked for [A], and width of the distance bins [A]."""
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
    """A unit cell as a periodic graph; atoms with fewer than K neighbours in reach have distance inf for the rest."""

    formula: str
    """With spaces: "Sr1 Ti1 O3"."""
    numbers: np.ndarray  # [A]
    neighbours: np.ndarray  # [A, K], places of atoms in the cell
    distances: np.ndarray  # [A, K] [A]
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rounded coordinates, and of ways of calling that will go
            structure = CifParser.from_str(text).parse_structures(primitive=False)[0]
            if not 0 < len(structure) <= MOST_ATOMS or not structure.is_ordered:
                raise ValueError(f"{len(structure)} atoms, or places shared by elements")
            numbers, cell = np.array(structure.atomic_numbers), structure.lattice
            neighbours, distances = nearest(structure)
            return Crystal(
                structure.composition.formula,
                numbers,
                neighbours,
                distances,
                tuple(cell.parameters),
                float(cell.volume),
                sentence(cell.matrix, structure.frac_coords, numbers, cell.parameters),
            )
    except Exception as error:  # whatever a parser of text meets in a stranger's file
        name = cif if isinstance(cif, Path) else text[:40]
        reason = str(error).split("\n")[0][:120]
        raise DatasetError("bad_crystal", f"{str(name)!r} is no crystal that can be read ({reason}).") from None


def nearest(structure: Any) -> tuple[np.ndarray, np.ndarray]:
    """The K nearest neighbours of every atom of a pymatgen structure, images in other cells too: places, distances."""
    count = len(structure)
    centres, places, _, lengths = structure.get_neighbor_list(RADIUS)
    neighbours = np.tile(np.arange(count)[:, None], (1, _NEIGHBOURS))
    distances = np.full((count, _NEIGHBOURS), np.inf, dtype=np.float32)
    order = np.lexsort((places, lengths.round(4), centres))  # equal lengths by place, so that a file reads alike
    for atom in range(count):
        chosen = order[centres[order] == atom][:_NEIGHBOURS]
        neighbours[atom, : len(chosen)], distances[atom, : len(chosen)] = places[chosen], lengths[chosen]
    return neighbours, distances


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
    """v_i + sum_j sigmoid(z_ij W_f) * softplus(z_ij W_s) with z_ij = [v_i, v_j, u_ij], normalised; CGCNN equation 5."""

    def __init__(self, dim: int, bins: int) -> None:
        super().__init__()
        # One matrix on [v_i, v_j, u_ij] is three: on atoms it then works once per atom, not once per pair.
        self.centre, self.neighbour = nn.Linear(dim, 2 * dim), nn.Linear(dim, 2 * dim, bias=False)
        self.edge = nn.Linear(bins, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, atoms: Tensor, neighbours: Tensor, edges: Tensor, near: Tensor) -> Tensor:
        """Atoms [A, D], places [A, K], edges [A, K, R] and which are there [A, K] -> [A, D]."""
        z = self.centre(atoms)[:, None] + self.neighbour(atoms)[neighbours] + self.edge(edges)  # [A, K, 2 D]
        gate, core = z.chunk(2, dim=-1)
        messages = gate.sigmoid() * F.softplus(core) * near[..., None]
        x: Tensor = F.softplus(atoms + self.norm(messages.sum(dim=1)))
        return x


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
            "numbers": torch.from_numpy(crystal.numbers).long(),
            "neighbours": torch.from_numpy(crystal.neighbours).long(),
            "distances": torch.from_numpy(crystal.distances),
        }

    def forward(self, items: Sequence[Item]) -> Tensor:
        """[B, D]."""
        counts = torch.tensor([len(item["numbers"]) for item in items])
        starts = counts.cumsum(0) - counts
        numbers = torch.cat([item["numbers"] for item in items]).clamp_max(len(self.properties) - 1)  # [A]
        neighbours = torch.cat([item["neighbours"] + start for item, start in zip(items, starts, strict=True)])
        distances = torch.cat([item["distances"] for item in items])[..., None]  # [A, K, 1]
        near = distances.isfinite()
        edges = torch.exp(-(((distances.where(near, 0.0) - self.centres) / BIN) ** 2)) * near  # [A, K, R]
        atoms = self.element(self.properties[numbers]) + self.name(numbers)
        for layer in self.layers:
            atoms = layer(atoms, neighbours, edges, near[..., 0])
        cell = torch.repeat_interleave(torch.arange(len(items)), counts)
        sums = torch.zeros(len(items), self.dim, dtype=atoms.dtype).index_add(0, cell, atoms)
        vectors: Tensor = self.out(sums / counts[:, None])
        return vectors

    def settings(self) -> dict[str, Any]:
        """Width."""
        return {"dim": self.dim}
