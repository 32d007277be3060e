"""What the values of chains of two species obey."""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np

from mpiflow.commands.verify.structure import Corrupt
from mpiflow.commands.verify.values import Values, pieces
from mpiflow.solvers.binary_chain.observables import ab_bonds, first_minimum

#: Models along which the free energy falls, and what integration may add to it, relative.
_FALLS, _SLACK = ("free-energy", "free-energy-limited", "master"), 1e-6
#: Sums over the sites of frames far apart, for each site; and numbers that follow from one frame.
_DRIFT, _ROUNDING = 1e-8, 1e-12

Place = tuple[slice, ...]


class ChainValues(Values):
    """Spins from -1 to 1 between ends that stay, whose sum stays, and atoms in their order."""

    def _variable(self, name: str, dataset: h5py.Dataset) -> None:
        look = {"s": self._spins, "x": self._positions, "alpha": self._widths}.get(name)
        if look is None:
            self._read(name, dataset)
            return
        for place, values in self._chains(name, dataset):
            look(place, values)

    def _totals(self) -> None:
        sites = int(self.config["size"])
        ranges = {"strain": (-1.0, np.inf), "ab_bonds": (0.0, sites - 1.0)}
        for name, (least, most) in {**ranges, "first_minimum": (0, sites - 1)}.items():
            values = self._series(name)
            if values is not None:
                good = (values >= least) & (values <= most)
                self._all(good, name, (slice(0, 0),), True, "out of range")

    def _counters(self) -> None:
        exchanges = self._series("exchanges")
        if exchanges is not None:
            good = exchanges >= 0
            good[1:] &= np.diff(exchanges, axis=0) >= 0
            self._equal(good, np.ones_like(good), "exchanges go back")

    def _states(self) -> None:
        energy = self._series("free_energy")
        for part in self.parts:
            if energy is None or part.config.get("model") not in _FALLS:
                continue
            here = slice(part.frames.start, part.frames.stop)
            rise, good = np.diff(energy[here], axis=0), np.ones(energy.shape, bool)
            good[here][1:] = rise <= _SLACK * abs(energy[here][1:])
            self._equal(good, np.ones_like(good), "free_energy rises")

    def _chains(self, name: str, dataset: h5py.Dataset) -> Iterator[tuple[Place, np.ndarray]]:
        """Whole chains, a few at a time: which frames and members, and (..., sites) of them."""
        for box in pieces(dataset):
            values = self._plain(name, box, dataset[box])
            yield (slice(box[0].start, box[0].start + len(values)), *box[1:-1]), values

    def _require(self, place: Place, good: np.ndarray, what: str) -> None:
        """Raise unless all is good, with the first frame where something is not."""
        wrong = np.flatnonzero(~good.reshape(len(good), -1).all(axis=1))
        if wrong.size:
            raise Corrupt(f"frame {place[0].start + wrong[0]}: {what}")

    def _spins(self, place: Place, s: np.ndarray) -> None:
        whole = s.dtype.kind == "i"
        self._require(place, (abs(s) == 1) if whole else (abs(s) <= 1), "s is no spin")
        first = self.file["s"][(0, *place[1:])]
        for end, what in ((0, "first"), (-1, "last")):
            self._require(place, s[..., end] == first[..., end], f"the {what} of s has changed")
        drift = abs(s.sum(axis=-1, dtype=float) - first.sum(axis=-1, dtype=float))
        self._require(
            place, drift <= _DRIFT * s.shape[-1] * (not whole), "the sum of s has changed"
        )
        chains = s.reshape(-1, s.shape[-1])
        bonds, minimum = self._series("ab_bonds"), self._series("first_minimum")
        if bonds is not None:
            off = abs(bonds[place] - ab_bonds(chains).reshape(s.shape[:-1]))
            self._require(place, off <= _ROUNDING * s.shape[-1], "s does not give ab_bonds")
        if minimum is not None and whole:  # of real numbers rounding may choose another one
            good = minimum[place] == first_minimum(chains).reshape(s.shape[:-1])
            self._require(place, good, "s does not give first_minimum")

    def _positions(self, place: Place, x: np.ndarray) -> None:
        self._require(place, x[..., 0] == 0, "x does not start at 0")
        self._require(place, np.diff(x, axis=-1) > 0, "atoms of x are not in order")
        strain = self._series("strain")
        if strain is not None:
            start = self.file["x"][(0, *place[1:])][..., -1]
            off = (1 + strain[place]) * start - (1 + strain[0][place[1:]]) * x[..., -1]
            self._require(place, abs(off) <= _ROUNDING * x[..., -1], "x does not give strain")

    def _widths(self, place: Place, alpha: np.ndarray) -> None:
        self._require(place, alpha > 0, "alpha is no width")
