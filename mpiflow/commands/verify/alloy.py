"""What the values of alloys obey: atoms are conserved, and order follows from bonds."""

from __future__ import annotations

import math

import h5py
import numpy as np

from mpiflow.commands.verify.structure import Corrupt
from mpiflow.commands.verify.values import Values
from mpiflow.systems import alloy

# Recomputed from bonds: NaN for an element without atoms.
_FROM_BONDS = ("sro", "warren_cowley", "long_range_order")


class AlloyValues(Values):
    """Species, bonds and order parameters."""

    may_be_nan = _FROM_BONDS
    #: Whether the number of atoms of each kind stays.
    conserved = True

    def _totals(self) -> None:
        if "bonds" in self.file:
            self._atoms()

    def _variable(self, name: str, dataset: h5py.Dataset) -> None:
        if name == "species":
            self._species(dataset)
        else:
            self._read(name, dataset)

    def _atoms(self) -> None:
        """Bonds conserve the atoms, and order parameters follow from bonds."""
        bonds = self.file["bonds"]
        counts = None
        for start in range(0, self.frames, 1024):
            box = slice(start, min(start + 1024, self.frames))
            values = bonds[box]
            if (values < 0).any():
                raise Corrupt("bonds are negative")
            for axis in (-1, -2):
                if (values.sum(axis=axis) % alloy.NEIGHBOURS).any():
                    raise Corrupt("bonds do not add up to eight for each site")
            numbers = alloy.species_numbers(values)
            counts = numbers[0] if counts is None else counts
            if self.conserved and (numbers != counts).any():
                frame = start + int(np.argmax((numbers != counts).reshape(len(numbers), -1).any(1)))
                raise Corrupt(f"frame {frame}: atoms are not conserved")
            rules = (alloy.short_range_order, alloy.warren_cowley, alloy.long_range_order)
            for name, rule in zip(_FROM_BONDS, rules, strict=True):
                if name in self.file:
                    wanted, found = rule(values), self.file[name][box]
                    same = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
                    self._all(same, name, (box,), True, "not what bonds give")
        cells = self.config.get("cells")
        if counts is not None and isinstance(cells, list):
            if (counts.sum(axis=-1) != 2 * math.prod(cells)).any():
                raise Corrupt(f"there are not two sites for each of {cells} cells")

    def _species(self, dataset: h5py.Dataset) -> None:
        """Species are known ones, and their bonds are those of the file."""
        bonds = self.file.get("bonds")
        kinds = 1 + len(self.config.get("elements") or alloy.ELEMENTS)
        cells = tuple(self.config["cells"])
        if dataset.shape[-1] != 2 * math.prod(cells):
            raise Corrupt(f"species has {dataset.shape[-1]} sites, not two for each cell")
        for frame in range(len(dataset)):
            values = dataset[frame]
            if frame >= self.frames:
                continue  # only its checksums
            box = (slice(frame, frame + 1),)
            known = (values >= 0) & (values < kinds)
            self._all(known[None], "species", box, True, "not a known one")
            for lattice, wanted in zip(
                values.reshape(-1, values.shape[-1]),
                [] if bonds is None else bonds[frame].reshape(-1, kinds, kinds),
                strict=bonds is not None,
            ):
                if (alloy.bonds_of(lattice, cells, kinds) != wanted).any():
                    raise Corrupt(f"frame {frame}: species do not give bonds")


class ImportedAlloyValues(AlloyValues):
    """Alloys of another program, which may change the kind of an atom."""

    conserved = False
