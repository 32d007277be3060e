"""What simulations of lattices share where each site has a field of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpiflow.core.lattice import Lattice
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.files.schema import Variable
from mpiflow.files.writer import Value
from mpiflow.systems.site_field import SiteField, fields_in, fingerprint, fingerprint_text, sums

#: Bits of the sums of fields: their integers add up in any order.
_BITS = 62


class InSiteField:
    """A simulation whose sites may have fields of their own.

    Attributes
    ----------
    site_field : h of this rank's sites, (ny, nx) float64; None if there is only the uniform one
    """

    comm: MPI.Intracomm
    members: int
    lattice: Lattice
    block: Any
    site_field: np.ndarray | None = None
    _fingerprint = ""
    _unit = 1.0

    def _set_site_field(self, given: SiteField | None, name: str = "site_field") -> None:
        """Take this rank's part of a field. Collective."""
        if given is None:
            return
        with agreed(self.comm):
            box = self._sites_here()
            self.site_field = fields_in(given, self.lattice.shape, box, name)
        one = self.members == 1
        largest = float(np.abs(self.site_field).max(initial=0.0))
        words = np.array(fingerprint(self.site_field, box[0].start, box[1].start), np.uint64)
        if one:
            largest = self.comm.allreduce(largest, op=MPI.MAX)
            words = self.comm.allreduce(words, op=MPI.SUM)
        self._fingerprint = fingerprint_text(words)
        most = math.log2(self.lattice.sites * largest) if largest > 0 else 0.0
        self._unit = 2.0 ** min(52, math.floor(_BITS - most))

    def _sites_here(self) -> tuple[slice, ...]:
        layout = self.block.layout
        if layout is None:
            return tuple(slice(0, side) for side in self.lattice.shape)
        return tuple(layout.slices(self.comm.rank, 1))

    def _site_sums(self, spins: np.ndarray, lowest: int, stride: int, states: int) -> np.ndarray:
        """Sum of h over the sites in each state, (B, states) float64, exact. Collective."""
        assert self.site_field is not None  # noqa: S101 - for the type checker
        total = np.zeros((len(spins), states), np.int64)
        sums(spins, self.site_field, self._unit, lowest, stride, total)
        return np.asarray(self.block.total(total) / self._unit)

    def _field_facts(self) -> dict[str, Any]:
        """What tells one field from another."""
        return {"site_field": self._fingerprint or None}

    def _field_variable(
        self, dims: dict[str, int], coordinates: dict[str, np.ndarray]
    ) -> tuple[list[Variable], Mapping[str, Value]]:
        """The variable of the field, over the axes of sites, and its values."""
        if self.site_field is None:
            return [], {}
        for axes in (("y", "x"), ("site_y", "site_x")):
            if tuple(dims.get(axis) for axis in axes) == self.lattice.shape:
                break
        else:
            axes = tuple(self._axes(dims, coordinates, 1))  # type: ignore[attr-defined]
        variable = Variable(
            "site_field",
            axes,
            long_name="external field of a site, beside the uniform one",
            per_frame=False,
            attributes={"fingerprint": self._fingerprint},
        )
        return [variable], {"site_field": (self.site_field, self._sites_here())}
