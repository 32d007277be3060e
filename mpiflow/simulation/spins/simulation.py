"""What simulations of spins +1 and -1 share: their observables, and what a file holds of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow import observables
from mpiflow.core.guards import is_spins, spin_fault
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Observed, Sample
from mpiflow.simulation.lattice import SquareSimulation


@dataclass(frozen=True)
class Frame(Observed):
    """The state's observables at one time.

    Arrays have one entry for each member that this rank holds; of a single lattice they are
    numbers, those of the whole lattice.
    """

    time: float
    magnetization: Any
    energy: Any
    domain_wall_density: Any
    flips: Any
    single: bool = False

    #: What a file holds of it.
    NAMES = ("magnetization", "energy", "domain_wall_density", "flips")

    def __post_init__(self) -> None:
        self._give_up_members(*self.NAMES)

    def scalars(self) -> dict[str, np.ndarray]:
        """Arrays by name, with the axis of members."""
        return {name: self._with_members(getattr(self, name)) for name in self.NAMES}


class SpinSimulation(SquareSimulation):
    """Spins +1 and -1: their observables, and what a file holds of them."""

    def _check_state(self) -> None:
        self.block.check_spins()

    def _require_values(self, values: np.ndarray) -> None:
        if not is_spins(values):
            raise spin_fault(values)

    def coarse_sums(self, size: int) -> np.ndarray:
        """Sums of spins over coarse blocks, this rank's part, (members, ny, nx) int32."""
        self.require_state()
        return observables.block_sums(self.present, size)

    def site_bits(self) -> np.ndarray:
        return observables.spin_bits(self.block)

    def content(
        self, *, coarse: int | None = None, spins: bool = False, spin_bits: bool = False
    ) -> Content:
        """Magnetization, energy, walls and flips, and fields.

        Parameters
        ----------
        coarse : also means over blocks of this many sites a side; the simulation's
            ``granularity`` must be a multiple of it
        spins : also every spin, a byte each
        spin_bits : also every spin, a bit each; needs a ``granularity`` of a multiple of 8
        """
        if coarse is not None:
            self._require_whole_blocks("coarse", coarse)
        if spin_bits:
            self._require_whole_blocks("spin_bits", 8)
        dims: dict[str, int] = {"member": self.members} if self.members > 1 else {}
        ensemble = tuple(dims)
        coordinates: dict[str, np.ndarray] = {}
        variables = [STANDARD[name].over(*ensemble) for name in Frame.NAMES]
        variables += self._driven_variables()
        fields = [("coarse_magnetization", coarse)] if coarse is not None else []
        for name, unit in [*fields, *([("spin", 1)] if spins else [])]:
            axes = self._axes(dims, coordinates, unit)
            variables.append(STANDARD[name].over(*ensemble, *axes))
        if spin_bits:
            ly, lx = self.lattice.shape
            y = next(name for name in ("y", "site_y") if dims.get(name, ly) == ly)
            variables.append(STANDARD["spin_bits"].over(*ensemble, y, "x_byte"))
            dims |= {y: ly, "x_byte": lx // 8}
            coordinates |= {y: block_centres(ly, 1), "x_byte": np.arange(0.0, lx, 8.0)}

        def frame() -> Sample:
            now = self.measure()
            # With more ranks than members rank 0 may have none.
            m = np.ravel(now.magnetization)
            shown = {"m": float(m[0])} if m.size else {}
            return Sample(now.time, self._values(now, coarse, spins, spin_bits), shown)

        about = self.attributes({"coarse": coarse})
        own, static = self._field_variable(dims, coordinates)
        return Content(dims, coordinates, variables + own, about, frame, static=static)

    def _values(
        self, frame: Frame, coarse: int | None, spins: bool, spin_bits: bool
    ) -> dict[str, Value]:
        """This rank's part of everything that a frame holds."""
        values = {name: self._of_members(value) for name, value in frame.scalars().items()}
        values |= self._driven_values()
        if coarse is not None:
            # Exact sums, divided once: the same bits however the lattice is cut.
            means = self.coarse_sums(coarse) / coarse**2
            values["coarse_magnetization"] = self._of_box(means, *self.local_box(coarse))
        if spins:
            values["spin"] = self._of_box(self.spins(), *self.local_box())
        if spin_bits:
            bits, (rows, columns) = observables.spin_bits(self.present), self.local_box()
            bytes_here = slice(columns.start // 8, columns.stop // 8)
            values["spin_bits"] = self._of_box(bits, rows, bytes_here)
        return values
