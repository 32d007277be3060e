"""The species of an alloy: how they are set, what is measured, and what a file holds of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mpiflow import observables
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import split
from mpiflow.core.parallel import agreed
from mpiflow.files.schema import STANDARD, TIME
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Observed, Sample
from mpiflow.simulation.lattice import LatticeSimulation
from mpiflow.solvers.vacancy.absorbing import AbsorbingKMC
from mpiflow.solvers.vacancy.events import check_species
from mpiflow.solvers.vacancy.serial import VacancyKMC
from mpiflow.solvers.vacancy.tiled import TiledKMC
from mpiflow.solvers.vacancy.window_choice import WindowChoice
from mpiflow.systems import alloy
from mpiflow.systems.alloy import Alloy

TIME_IN_S = replace(TIME, units="s", long_name="time")


@dataclass(frozen=True)
class AlloyFrame(Observed):
    """The state's observables at one time; one entry for each member that this rank holds.

    Of a single lattice bonds and hops are those of that lattice, without the axis of members.

    Attributes
    ----------
    time : s
    bonds : (M, S + 1, S + 1) int64, bonds by species of the corner and of the centre
    hops : (M,) int64, since time 0
    window, windows : the last window of the tiled solver in s, and how many there were; 0 if none
    """

    time: float
    bonds: np.ndarray
    hops: Any
    window: float = 0.0
    windows: int = 0
    single: bool = False

    #: What a file holds of it, for each member.
    NAMES = ("sro", "warren_cowley", "long_range_order", "bonds", "hops")

    def __post_init__(self) -> None:
        self._give_up_members("bonds", "hops")

    def scalars(self) -> dict[str, np.ndarray]:
        """What a Trajectory holds of a frame, by name, with a leading member axis."""
        bonds = self._with_members(self.bonds)
        return {
            "sro": alloy.short_range_order(bonds),
            "warren_cowley": alloy.warren_cowley(bonds),
            "long_range_order": alloy.long_range_order(bonds),
            "bonds": bonds,
            "hops": self._with_members(self.hops),
        }


class AlloyState(LatticeSimulation):
    """Atoms and vacancies on a body-centred cubic lattice, whatever moves them."""

    system: Alloy
    block: Block
    sites: int
    solver: VacancyKMC | AbsorbingKMC | TiledKMC
    choice: WindowChoice | None
    step: int
    lattice_constant: float
    knows_windows: bool
    example_time = "1e-8"
    _started: bool
    _hops: np.ndarray
    _counts: np.ndarray | None  # numbers of vacancies and atoms, which never change

    @property
    def window(self) -> float | None:
        """The window of the tiled solver in s that was given, None where there is none."""
        return self.solver.window if isinstance(self.solver, TiledKMC) else None

    @property
    def tiled(self) -> bool:
        """Whether it evolves in windows."""
        return isinstance(self.solver, TiledKMC)

    @property
    def chooses(self) -> bool:
        """Whether windows are chosen from the hops before."""
        return isinstance(self.solver, TiledKMC) and self.solver.window is None

    def set_species(self, fill: Callable[..., float | None], **options: Any) -> None:
        """Set the initial state with a function of :mod:`mpiflow.initial.alloy`.

        Functions that draw random numbers get this simulation's seed. One that reads a file
        returns its lattice constant, which the simulation then has.
        """
        self._counts, self._started = None, True
        constant = self._fill(fill, options)
        if constant is not None:
            self.lattice_constant = constant

    def _check_state(self) -> None:
        check_species(self.block, len(self.system.elements))

    def _require_values(self, values: np.ndarray) -> None:
        """Values are those of a grid of points, of which a quarter are sites."""
        parities = [at % 2 for at in np.ogrid[self.local_box()]]
        site = (parities[0] == parities[1]) & (parities[1] == parities[2])
        elements = len(self.system.elements)
        species = (values >= alloy.VACANCY) & (values <= elements) & (values == np.rint(values))
        wrong = values[~np.where(site, species, values == alloy.NOT_A_SITE)]
        if wrong.size:
            where = f"where coordinates have equal parity, else {alloy.NOT_A_SITE}"
            allowed = f"0 (vacancy) to {elements} {where}"
            raise InputError("species", wrong[0].item(), allowed, "Look at the state.")

    def _put(self, values: np.ndarray) -> None:
        species = np.ascontiguousarray(values, np.int8)
        self.set_species(lambda block: block.load(species))

    def numbers(self) -> np.ndarray:
        """Numbers of vacancies and of atoms of each element, of the first lattice. Collective."""
        self.require_state()
        bonds = observables.bond_counts(self.block, len(self.system.elements) + 1)
        root, size = 0, self.comm.size
        while self.members > 1 and split(self.members, size, root)[1] == 0:  # has no member
            root += 1
        counts = self.comm.bcast(alloy.species_numbers(bonds)[:1], root=root)
        return np.asarray(counts[0])

    def species(self) -> np.ndarray:
        """Species of this rank's sites in C order of their places, (members here, sites) int8.

        To be read: writing to them raises, :meth:`set_species` sets the state.
        """
        if not self._sound:
            self._check_state()
        field = self.block.spins()
        out: np.ndarray = field[:, alloy.is_site(field.shape[1:])]
        out.flags.writeable = False
        return out

    def is_site(self) -> np.ndarray:
        return alloy.is_site(self.block.shape)

    def local_sites(self) -> slice:
        """This rank's part of all sites in C order; ranks must be slabs along x."""
        layout = self.block.layout
        if layout is None:
            return slice(0, self.sites)
        if layout.ranks_grid[1:] != (1, 1):
            raise InputError(
                "ranks_grid",
                layout.ranks_grid,
                "slabs along x, (ranks, 1, 1), to save species",
                "Leave the grid out, use fewer ranks, or do not save species.",
            )
        (start, stop), *_ = layout.bounds(self.comm.rank)
        return slice(
            self.sites * start // self.lattice.shape[0], self.sites * stop // self.lattice.shape[0]
        )

    def measure(self) -> AlloyFrame:
        """Observables of the present state; checks that no atom was lost. Collective."""
        self.require_state(anew=True)
        bonds = observables.bond_counts(self.block, len(self.system.elements) + 1)
        counts = alloy.species_numbers(bonds)
        if self._counts is None:
            self._counts = counts
        if np.any(counts != self._counts) or np.any(counts.sum(axis=-1) != self.sites):
            raise RuntimeError(f"atoms were lost: {self._counts} became {counts}")
        window = self.choice.last if self.choice else self.window or 0.0
        hops, single = self.block.total(self._hops), self.members == 1
        return AlloyFrame(self.time, bonds, hops, window, self.step, single)

    def content(self, *, species: bool = False) -> Content:
        """Order, bonds and hops.

        Parameters
        ----------
        species : also the species of every site
        """
        ensemble: dict[str, int] = {"member": self.members} if self.members > 1 else {}
        names = ("vacancy", *self.system.elements)
        coordinates = {
            "pair": np.array(alloy.pair_names(self.system.elements)),
            "element": np.array(self.system.elements),
            "corner_species": np.array(names),
            "centre_species": np.array(names),
        }
        dims = ensemble | {name: len(values) for name, values in coordinates.items()}
        variables = [
            STANDARD[name].over(*ensemble, *STANDARD[name].dims) for name in AlloyFrame.NAMES
        ]
        if self.knows_windows:
            variables += [STANDARD["window"], STANDARD["windows"]]
        if species:
            with agreed(self.comm):
                self.local_sites()  # ranks may not be slabs
            dims["site"] = self.sites
            variables.append(STANDARD["species"].over(*ensemble, "site"))

        def frame() -> Sample:
            now = self.measure()
            hops = np.ravel(now.hops)
            shown = {"hops": int(hops[0])} if hops.size else {}
            values = self._values(now, species)
            if self.knows_windows:
                values |= {"window": now.window, "windows": now.windows}
            return Sample(now.time, values, shown)

        return Content(dims, coordinates, variables, self.attributes(), frame, TIME_IN_S)

    def _values(self, frame: AlloyFrame, species: bool) -> dict[str, Value]:
        """This rank's part of everything that a frame holds."""
        values = {name: self._of_members(value) for name, value in frame.scalars().items()}
        if species:
            values["species"] = self._of_box(self.species(), self.local_sites())
        return values
