"""The simulation loop: a system on a lattice or on an ensemble of lattices, over MPI ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from mpi4py import MPI

from mpiflow import observables
from mpiflow.block import Block
from mpiflow.device import Device
from mpiflow.errors import InputError
from mpiflow.lattice import Lattice, Layout, Shape, split
from mpiflow.solvers.nfold import NFold
from mpiflow.solvers.sublattice import Sublattice
from mpiflow.systems.ising import Ising

SolverName = Literal["sublattice", "nfold"]


@dataclass(frozen=True)
class Frame:
    """The state's observables at one time.

    Arrays have one entry for each member that this rank holds; for a single
    distributed lattice (one member) they are the values of the whole lattice.
    """

    time: float
    magnetization: np.ndarray
    energy: np.ndarray
    domain_wall_density: np.ndarray
    flips: np.ndarray

    def scalars(self) -> dict[str, np.ndarray]:
        return {
            name: getattr(self, name)
            for name in ("magnetization", "energy", "domain_wall_density", "flips")
        }


class Simulation:
    """Glauber dynamics of one lattice cut into tiles, or of many lattices dealt to ranks.

    With ``members=1`` the lattice is cut into one tile per rank with halo
    exchange. With more members every rank holds whole periodic lattices, its
    share of the ensemble. Member ``i`` is the same trajectory either way.

    Parameters
    ----------
    system : the model
    size : sites a side, or (Ly, Lx)
    dt : step of the sublattice solver; ``math.inf`` for full sweeps (time counts sweeps)
    solver : ``sublattice`` (fixed step, any number of ranks) or ``nfold`` (exact)
    seed : a trajectory is its seed
    members : number of independent replicas
    comm : communicator, ``COMM_WORLD`` unless given; every method is collective on it
    ranks_grid : ranks along each axis, chosen if left out
    granularity : tiles are cut in multiples of this many sites (coarse blocks)
    device : ``cpu`` or ``cuda``

    Examples
    --------
    >>> sim = Simulation(Ising(temperature=2.5, field=0.1), size=64, seed=7)
    >>> sim.set_spins(initial.shuffled, magnetization=0.5)
    >>> for frame in sim.frames(time=10, every=1):
    ...     ...
    """

    def __init__(
        self,
        system: Ising,
        size: int | Shape,
        *,
        dt: float = 0.25,
        solver: SolverName = "sublattice",
        seed: int = 0,
        members: int = 1,
        comm: MPI.Intracomm | None = None,
        ranks_grid: Shape | None = None,
        granularity: int = 1,
        device: str = "cpu",
    ) -> None:
        self.system, self.seed, self.members = system, seed, members
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.lattice = Lattice((size, size) if isinstance(size, int) else tuple(size))
        self.device = Device(device, _local_rank(self.comm) if device == "cuda" else 0)
        if members < 1:
            raise InputError("members", members, "1 or more", "Leave it out for one lattice.")
        if members == 1:
            layout = (
                Layout.balanced(self.lattice, self.comm.size, granularity)
                if ranks_grid is None
                else Layout(self.lattice, tuple(ranks_grid), granularity)
            )
            if layout.ranks != self.comm.size:
                raise InputError(
                    "ranks_grid",
                    layout.ranks_grid,
                    f"a grid of {self.comm.size} ranks",
                    "Start as many ranks as the grid has.",
                )
            self.block = Block.tile(layout, self.comm, halo=system.halo, device=self.device)
        else:
            Layout(self.lattice, (1,) * self.lattice.ndim, granularity)  # checks divisibility
            start, stop = split(members, self.comm.size, self.comm.rank)
            zeros = np.zeros((stop - start, *self.lattice.shape), np.int8)
            self.block = Block.periodic(
                zeros, np.arange(start, stop), halo=system.halo, device=self.device
            )
        self.solver: Sublattice | NFold
        if solver == "sublattice":
            self.lattice.require_bipartite()
            self.solver = Sublattice(system, dt)
        elif solver == "nfold":
            self.solver = NFold(system, self.block.batch)
            NFold.check(self.block)
        else:
            raise InputError("solver", solver, "'sublattice' or 'nfold'", "Use sublattice.")
        self.time = 0.0
        self.step = 0
        self.flips = np.zeros(self.block.batch, np.int64)

    # -- state ---------------------------------------------------------------------

    def set_spins(self, fill: Callable[..., None], **options: Any) -> None:
        """Set the initial state with a function of :mod:`mpiflow.initial`.

        Functions that draw random numbers get this simulation's seed.
        """
        if "seed" in fill.__code__.co_varnames[: fill.__code__.co_argcount]:
            options.setdefault("seed", self.seed)
        fill(self.block, **options)

    @property
    def local_members(self) -> slice:
        """The members that this rank holds."""
        if self.members == 1:
            return slice(0, 1)
        return slice(*split(self.members, self.comm.size, self.comm.rank))

    def local_box(self, unit: int = 1) -> tuple[slice, ...]:
        """This rank's box as slices of a global array with one entry per ``unit`` sites."""
        if self.block.layout is not None:
            return self.block.layout.slices(self.comm.rank, unit)
        return tuple(slice(0, side // unit) for side in self.lattice.shape)

    def spins(self) -> np.ndarray:
        """A host view or copy of this rank's spins, (members here, ny, nx) int8."""
        return np.asarray(self.block.inner(self.block.host()))

    def gather(self, root: int = 0) -> np.ndarray | None:
        """All spins (members, Ly, Lx) int8 on rank ``root``, None elsewhere.

        For small systems and tests: one rank holds everything.
        """
        pieces = self.comm.gather(
            (self.local_members, self.local_box(), self.spins().copy()), root=root
        )
        if pieces is None:
            return None
        out = np.empty((self.members, *self.lattice.shape), np.int8)
        for members, box, spins in pieces:
            out[(members, *box)] = spins
        return out

    # -- dynamics ------------------------------------------------------------------

    def steps_in(self, duration: float, name: str = "time") -> int:
        """Whole steps in ``duration``; raises if it is not a multiple of the step."""
        step = self.solver.time_per_step if isinstance(self.solver, Sublattice) else duration
        if not (duration >= 0 and math.isfinite(duration)):
            raise InputError(name, duration, "a finite number, 0 or more", "Try 10.")
        if duration == 0:
            return 0
        steps = round(duration / step)
        rounding = 1e-12 * self.time  # of a difference of two late times
        if steps < 1 or not math.isclose(steps * step, duration, rel_tol=1e-9, abs_tol=rounding):
            raise InputError(
                name,
                duration,
                f"a multiple of the time step {step:g}",
                f"Use {max(1, steps) * step:.12g}, or another --dt.",
            )
        return steps

    def advance(self, duration: float) -> None:
        """Advance the state by ``duration``, a multiple of dt for the sublattice solver."""
        if isinstance(self.solver, Sublattice):
            steps = self.steps_in(duration)
            flips = self.solver.advance(self.block, steps, seed=self.seed, first_step=self.step)
            self.step += steps
            self.time = self.step * self.solver.time_per_step
        else:
            self.time += duration
            flips = self.solver.advance(self.block, seed=self.seed, until=self.time)
        self.flips = self.flips + flips  # a new array: frames keep theirs

    def measure(self) -> Frame:
        """Observables of the present state. Collective."""
        sums = observables.spin_sums(self.block)
        spins, bonds = sums[:, 0], sums[:, 1]
        sites = self.lattice.sites
        return Frame(
            time=self.time,
            magnetization=spins / sites,
            energy=self.system.energy(bonds, spins) / sites,
            domain_wall_density=observables.domain_wall_density(bonds, sites),
            flips=self.block.total(self.flips),
        )

    def coarse_sums(self, size: int) -> np.ndarray:
        """Sums of spins over coarse blocks, this rank's part, (members, ny, nx) int32."""
        return observables.block_sums(self.block, size)

    def frames(self, time: float, every: float) -> Iterator[Frame]:
        """Run to ``time``, yielding the observables now, every ``every``, and at the end."""
        self.steps_in(time, "time")
        if self.steps_in(every, "save_every") == 0:
            raise InputError("save_every", every, "a number above 0", "Try 1.")
        count = math.floor(time / every * (1 + 1e-12))
        start = self.time
        yield self.measure()
        for i in range(1, count + 1):
            self.advance(start + i * every - self.time)
            yield self.measure()
        if not math.isclose(self.time, start + time, rel_tol=1e-12):
            self.advance(start + time - self.time)
            yield self.measure()


def _local_rank(comm: MPI.Intracomm) -> int:
    """This rank's number among those on the same machine."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    rank = node.rank
    node.Free()
    return rank
