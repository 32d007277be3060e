"""What the values of spins, of learned laws of their means and of lines of sites obey."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from mpiflow.commands.verify.structure import Corrupt
from mpiflow.commands.verify.values import MeanValues, Values, pieces
from mpiflow.files import possible
from mpiflow.systems.curie_weiss import CurieWeiss
from mpiflow.systems.ising import Ising

# Exact sums divided once agree to the last bit; the energy is a sum of two products.
_ROUNDING = 1e-12
# The mean of float32 of -1 to 1: each is off by half of its last bit, at most this.
_FLOAT32 = 2.0**-25


class SpinValues(MeanValues):
    """Spins of Ising, Kac and Curie-Weiss models, whose values and sums obey laws."""

    spins: np.ndarray | None = None
    bonds: np.ndarray | None = None

    def _variable(self, name: str, dataset: h5py.Dataset) -> None:
        if name == "coarse_magnetization":
            self._blocks(dataset)
        elif name in ("spin", "spin_bits"):
            self._sites(name, dataset)
        else:
            self._read(name, dataset)

    def _totals(self) -> None:
        """Sums of spins and of bonds of every frame, from the means in the file."""
        self.sides = self._size()
        sites = self.sites = math.prod(self.sides)
        m, walls = map(self._series, ("magnetization", "domain_wall_density"))
        if m is not None:
            self._all(np.isfinite(m), "magnetization", (slice(0, 0),), True, "not finite")
            self.spins = np.rint(m * sites)
            self._equal(self.spins / sites, m, "magnetization is no mean of spins")
            self._equal(
                self.spins % 2, np.full_like(m, sites % 2), "magnetization is no mean of ±1"
            )
        if walls is not None:
            self._all(np.isfinite(walls), "domain_wall_density", (slice(0, 0),), True, "not finite")
            self.bonds = np.rint(2 * sites * (1.0 - 2.0 * walls))
            mean = 0.5 * (1.0 - self.bonds / (2.0 * sites))
            self._equal(mean, walls, "domain_wall_density is no fraction of the bonds")
        self._energies()

    def _energies(self) -> None:
        """The energy follows from sums, by the law of the part of the run."""
        energy, spins, sites = self._series("energy"), self.spins, self.sites
        if energy is None or spins is None or "site_field" in self.file:
            return
        good = np.ones(energy.shape, bool)
        for part in self.parts:
            here = slice(part.frames.start, part.frames.stop)
            names = ("temperature", "field", "coupling")
            options = {n: part.config[n] for n in names if n in part.config}
            system: Ising | CurieWeiss
            if len(options) < len(names):
                continue
            changing = {n: self.file[n][: self.frames][here] for n in names if n in self.file}
            if self.system in ("ising", "imported") and self.bonds is not None:
                system = Ising(**options)
                wanted = system.energy(self.bonds[here], spins[here]) / sites
                if changing:
                    wanted = _energy(self.bonds[here], spins[here], {**options, **changing}) / sites
            elif self.system == "curie-weiss":
                system = CurieWeiss(**options)
                wanted = system.energy((spins[here] + sites) / 2, sites) / sites
            else:
                continue
            rounding = _ROUNDING * (2 * abs(system.coupling) + abs(system.field))
            rounding *= 1 + max([float(abs(v).max(initial=0)) for v in changing.values()] or [0])
            good[here] = np.abs(energy[here] - wanted) <= rounding
        what = "energy does not follow from magnetization and domain_wall_density"
        self._equal(good, np.ones_like(good), what)

    def _blocks(self, dataset: h5py.Dataset) -> None:
        """Block means are of whole numbers of spins, and add up to the total."""
        rows, columns = self.sides[0] / dataset.shape[-2], self.sides[1] / dataset.shape[-1]
        block = rows * columns
        if not rows.is_integer() or not columns.is_integer():
            raise Corrupt("blocks of coarse_magnetization do not divide the lattice")
        total = np.zeros((len(dataset), *dataset.shape[1:-2]), np.int64)
        for box in pieces(dataset):
            means = self._plain(dataset.name[1:], box, dataset[box])
            sums = np.rint(means.astype(np.float64) * block)
            if block < 2**24:  # float32 holds such sums exactly
                whole = ((sums / block).astype(np.float32) == means) & (sums % 2 == block % 2)
                self._all(whole, "coarse_magnetization", box, True, "no mean of spins")
            total[_lead(box, len(means))] += sums.sum(axis=(-2, -1)).astype(np.int64)
        if self.spins is not None and block < 2**24:
            what = "block sums of coarse_magnetization do not add up to magnetization"
            self._equal(total[: self.frames], self.spins, what)

    def _sites(self, name: str, dataset: h5py.Dataset) -> None:
        """Spins are ±1, and give magnetization and broken bonds."""
        over = dataset.shape[-2], dataset.shape[-1] * (8 if name == "spin_bits" else 1)
        if over != self.sides:
            raise Corrupt(f"{name} is over {over}, the lattice is {self.sides}")
        shape = (len(dataset), *dataset.shape[1:-2])
        total, bonds = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        first = above = np.empty(0, np.int8)
        for box in pieces(dataset):
            s = self._plain(name, box, dataset[box])
            if name == "spin_bits":
                s = 2 * np.unpackbits(s, axis=-1).view(np.int8) - 1
            self._all(s != 0, name, box, True, "not 1 or -1")
            lead = _lead(box, len(s))
            total[lead] += s.sum(axis=(-2, -1), dtype=np.int64)
            bonds[lead] += _pairs(s, np.roll(s, -1, axis=-1))
            bonds[lead] += _pairs(s[..., 1:, :], s[..., :-1, :])
            # Bands of rows follow one another: pieces are whole along x, and y comes next.
            if box[-2].start == 0:
                first = s[..., :1, :]
            else:
                bonds[lead] += _pairs(s[..., :1, :], above)
            above = s[..., -1:, :]
            if box[-2].stop == dataset.shape[-2]:
                bonds[lead] += _pairs(above, first)
        for found, wanted, name in (
            (total, self.spins, "magnetization"),
            (bonds, self.bonds, "domain_wall_density"),
        ):
            if wanted is not None:
                self._equal(found[: self.frames], wanted, f"spins do not give {name}")

    def _counters(self) -> None:
        if self.system == "curie-weiss":
            self._exact_flips()
        else:
            self.slack = self.sites // 2
        super()._counters()

    def _exact_flips(self) -> None:
        """Every flip changes the sum of the spins by 2."""
        flips = self._series("flips")
        if flips is not None and self.spins is not None and self.frames:
            made = abs(self.spins - self.spins[0]) / 2
            possible = (made <= flips - flips[0]) & ((made - flips + flips[0]) % 2 == 0)
            self._equal(possible, np.ones(flips.shape, bool), "flips do not give magnetization")

    def _states(self) -> None:
        if self.spins is not None and self.bonds is not None:
            self._hold(possible.of_spins(self.spins, self.bonds, self.sites))
        for part in self.parts:
            here = slice(part.frames.start, part.frames.stop)
            for good, what in self._laws_of_part(here, part.config):
                same = np.ones((self.frames, *good.shape[1:]), bool)
                same[here] = good
                self._equal(same, np.ones_like(same), what)

    def _laws_of_part(self, here: slice, config: Mapping[str, Any]) -> possible.Laws:
        """What the options of a part of the run say about its frames."""
        energy, flips, sites = self._series("energy"), self._series("flips"), self.sites
        if self.system == "kac" and self.spins is not None and energy is not None:
            bonds = None if self.bonds is None else self.bonds[here]
            m = self.spins[here] / sites
            field = self.file["field"][: self.frames][here] if "field" in self.file else None
            yield from possible.of_kac(energy[here], m, bonds, config, sites, field)
        if flips is not None:
            times = self.file["time"][: self.frames][here]
            yield from possible.of_flips(flips[here], times, self.system, config, sites)


class FieldValues(MeanValues):
    """Means of blocks of a learned law."""

    def _variable(self, name: str, dataset: h5py.Dataset) -> None:
        if name == "coarse_magnetization":
            self._field(dataset)
        else:
            self._read(name, dataset)

    def _field(self, dataset: h5py.Dataset) -> None:
        """Means of blocks of a learned law: their mean is the total, those of spins are such."""
        spins = (self.config.get("coarse") or self.config["block"]) ** 2
        total, largest = np.zeros((2, len(dataset), *dataset.shape[1:-2]))
        for box in pieces(dataset):
            means = self._plain("coarse_magnetization", box, dataset[box]).astype(np.float64)
            if self.kernel == "cosh" and spins < 2**24:
                up = np.rint((means + 1) * (spins / 2))
                whole = (2 * up / spins - 1).astype(np.float32) == means.astype(np.float32)
                self._all(whole, "coarse_magnetization", box, True, "no mean of spins")
            lead = _lead(box, len(means))
            total[lead] += means.sum(axis=(-2, -1))
            largest[lead] = np.maximum(largest[lead], abs(means).max(axis=(-2, -1), initial=0))
        m = self._series("magnetization")
        if m is not None:
            found = total[: self.frames] / math.prod(dataset.shape[-2:])
            size = np.maximum(largest[: self.frames], 1.0)
            near = abs(found - m) <= (_FLOAT32 + _ROUNDING) * size
            self._equal(near, np.ones(m.shape, bool), "means of blocks do not give magnetization")


class ImportedFieldValues(FieldValues):
    """Means of blocks of a field of another program, of any size."""

    bounded = False


class LineValues(Values):
    """Systems on a line: what lies along it has the mean that the file holds too."""

    def _variable(self, name: str, dataset: h5py.Dataset) -> None:
        if name.endswith("_profile"):
            self._profile(name, dataset)
        else:
            self._read(name, dataset)

    def _profile(self, name: str, dataset: h5py.Dataset) -> None:
        """The mean along a line is the number that the file has too."""
        total, largest = np.zeros((2, len(dataset), *dataset.shape[1:-1]))
        for box in pieces(dataset):
            values = self._plain(name, box, dataset[box])
            lead = (slice(box[0].start, box[0].start + len(values)), *box[1:-1])
            total[lead] += values.sum(axis=-1)
            largest[lead] = np.maximum(largest[lead], abs(values).max(axis=-1))
        mean = self._series(name.removesuffix("_profile"))
        far = abs(total[: self.frames] / dataset.shape[-1] - mean)
        near = far <= _ROUNDING * largest[: self.frames]
        self._equal(near, np.ones(near.shape, bool), f"{name} does not give its mean")

    def _states(self) -> None:
        for name in ("prey", "predator") if self.system == "predator-prey" else ():
            if (means := self._series(name)) is not None:
                self._hold(possible.of_lines(means), f"{name} ")


def _energy(bonds: np.ndarray, spins: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """Of an Ising model whose parameters may be series over the frames."""
    coupling, field = (
        np.reshape(options[name], (-1, *[1] * (bonds.ndim - 1))) for name in ("coupling", "field")
    )
    return np.asarray(-coupling * bonds - field * spins)


def _lead(box: tuple[slice, ...], frames: int) -> tuple[slice, ...]:
    """The box without y and x, and without frames that do not count."""
    return (slice(box[0].start, box[0].start + frames), *box[1:-2])


def _pairs(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(axis=(-2, -1), dtype=np.int64)
