"""The simulation loop: a system on a lattice or on an ensemble of lattices, over MPI ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np

from mpiflow import observables
from mpiflow.core import signals
from mpiflow.core.block import Block
from mpiflow.core.device import threads
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Lattice, Shape
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import BIT_RNG, RNG
from mpiflow.core.packed import BAND, LEAST_COLUMNS, PackedBlock, cut_of, fits, runs_on
from mpiflow.core.parallel import left_out
from mpiflow.core.schedule import Clock, Number, State
from mpiflow.simulation import catalogue
from mpiflow.simulation.rules.simulation import RuleSimulation
from mpiflow.simulation.spins.simulation import Frame, SpinSimulation
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.site_field import SiteFieldSublattice, require_steps
from mpiflow.solvers.spins.sublattice import (
    LONG_STEP,
    LONG_STEP_ERROR,
    SLICED_SITES,
    Sublattice,
)
from mpiflow.solvers.spins.tiled import LONG_WINDOW, LONG_WINDOW_ERROR, TiledNFold
from mpiflow.systems.drive import Drive, stretches
from mpiflow.systems.ising import Ising
from mpiflow.systems.rule import SpinRule
from mpiflow.systems.site_field import SiteField

SolverName = Literal["sublattice", "nfold", "tiled-nfold"]
KernelName = Literal["auto", "packed", "sliced", "plain"]
#: Members of a small lattice from which on 64 of them in a word are faster than words of each.
MANY_MEMBERS = 256
#: What makes the unit smaller that tiles are cut in, by the kernel.
SMALLER_UNITS = {"packed": "kernel='plain'", "tiled-nfold": "a smaller tile"}


class Simulation(SpinSimulation):
    """Glauber dynamics of one lattice cut into tiles, or of many lattices dealt to ranks.

    With ``members=1`` the lattice is cut into one tile per rank with halo
    exchange. With more members every rank holds whole periodic lattices, its
    share of the ensemble; member ``i`` is the same trajectory whatever the others are.

    Parameters
    ----------
    system : the model. Of another one than Ising this makes the simulation of that, whose options
        are those of its class: of Kac a :class:`~mpiflow.simulation.kac.simulation.KacSimulation`,
        of Potts, Blume-Capel and any :class:`~mpiflow.systems.rule.SpinRule` a
        :class:`~mpiflow.simulation.rules.simulation.RuleSimulation`, of an Alloy an
        :class:`~mpiflow.simulation.alloy.simulation.AlloySimulation` with ``barriers="default"``
        unless given, of linear chains, Curie-Weiss spins, and prey and predators an
        :class:`~mpiflow.simulation.ensemble.simulation.Ensemble`
    arguments, options : of that class; here
    size : sites a side, or (Ly, Lx)
    dt : step of the sublattice solver, ``math.inf`` for full sweeps (time counts sweeps);
        window of tiled-nfold
    solver : ``sublattice`` (fixed step, any number of ranks), ``nfold`` (exact) or
        ``tiled-nfold`` (fixed window, any number of ranks, for low temperature)
    seed : a trajectory is its seed
    members : number of independent replicas
    comm : communicator, ``COMM_WORLD`` unless given; every method is collective on it
    ranks_grid : ranks along each axis, chosen if left out
    granularity : tiles are cut in multiples of this many sites (coarse blocks)
    device : ``cpu`` or ``cuda`` (simulated and assembled, not yet run on a GPU); as the program has
        chosen (:mod:`mpiflow.core.gpu`) if the solver has a path for GPUs, or the CPU, unless given
    kernel : of the sublattice solver. ``auto`` takes ``packed`` for even sides from 8 rows and 64
        columns on, ``sliced`` for several smaller lattices or very many small ones, else
        ``plain``; all have the same law, each its own bits. It depends on the size and on the
        number of members, not on the ranks.
    tile : side of the tiles of tiled-nfold
    schedule : parameters that change in time, a :class:`mpiflow.Drive` or its text. Each pass has
        the values of the middle of its time, and so has each window of tiled-nfold; nfold holds
        them for times of ``dt``
    site_field : a field of each site's own beside the uniform one, the same for all members: an
        array (Ly, Lx), of which each rank reads its part, or a function of the rows and columns of
        sites, as :class:`mpiflow.RandomField`. For the sublattice solver, which then has a plain
        kernel

    Raises
    ------
    InputError : on all ranks: options that do not fit each other, the lattice or the ranks

    Examples
    --------
    >>> sim = Simulation(Ising(temperature=2.5, field=0.1), size=64, seed=7)
    >>> sim.set_spins(initial.shuffled, magnetization=0.5)
    >>> for frame in sim.frames(time=10, every=1):
    ...     ...
    """

    window_option = "dt"

    if not TYPE_CHECKING:  # for which it makes a Simulation

        def __new__(cls, system: Any, *arguments: Any, **options: Any) -> Any:
            """Another system gets a simulation of its own, with the options of that."""
            if cls is Simulation and not isinstance(system, Ising):
                made = catalogue.simulation_of(system)
                if made is None and isinstance(system, SpinRule):
                    made = RuleSimulation
                if made is not None:
                    return made(system, *arguments, **options)
            return super().__new__(cls)

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
        device: str | None = None,
        kernel: KernelName = "auto",
        tile: int = 64,
        schedule: Drive | str | None = None,
        site_field: SiteField | None = None,
    ) -> None:
        require_rule(system, Ising)
        self._set_drive(system, schedule)
        system, drive = self.system, self.drive
        self._set_up_square(size, seed, members, comm, device, solver != "nfold")
        self.solver: Sublattice | NFold | TiledNFold | SiteFieldSublattice
        if solver == "sublattice":
            self.lattice.require_bipartite()
            self.solver = Sublattice(system, dt, plain=kernel == "plain", drive=drive)
        elif solver == "tiled-nfold":
            self.solver = TiledNFold(system, dt, tile, drive=drive)
        elif solver != "nfold":
            raise InputError(
                "solver", solver, "'sublattice', 'nfold' or 'tiled-nfold'", "Use sublattice."
            )
        if site_field is not None:
            require_steps(solver)
            kernel = _plain(kernel)
        packed = solver == "sublattice" and packs(kernel, self.lattice, members)
        unit: Shape = (1, 1)
        if packed:
            unit = cut_of(self.lattice)
        elif solver == "tiled-nfold" and not any(n % (2 * tile) for n in self.lattice.shape):
            unit = (tile, tile)  # else the solver says what is wrong
        self.block: Block | PackedBlock
        smaller = SMALLER_UNITS.get("packed" if packed else solver, "")
        layout = self._layout(granularity, ranks_grid=ranks_grid, unit=unit, smaller=smaller)
        if not packed:
            self.block = self._make_block(layout, halo=system.halo, device=self.device)
        elif layout is not None:
            self.block = PackedBlock.tile(layout, self.comm, device=self.device)
        else:
            numbers = self._member_numbers()
            self.block = PackedBlock.periodic(self.lattice, numbers, device=self.device)
        if solver == "nfold":
            self._set_hold("dt", dt)
            self.solver = NFold(self._held(), self.block.batch)
        self._set_site_field(site_field)
        if self.site_field is not None:
            self.solver = SiteFieldSublattice(system, dt, self.site_field)
        elif not isinstance(self.solver, Sublattice):
            self.solver.check(cast(Block, self.block))
        elif kernel not in ("auto", self.kernel):
            raise InputError(
                "kernel",
                kernel,
                "another kernel here: sliced takes several members of small lattices",
                "Leave it out.",
            )
        self._start_clock()
        self._opening, self._writes = 0, 0
        self._view: Block | PackedBlock | None = None
        self._looked = -1
        self._view_flips = self._flips

    @property
    def kernel(self) -> str:
        """What advances the spins: ``packed``, ``sliced`` or ``plain``, else the solver's name."""
        if isinstance(self.solver, Sublattice):
            return self.solver.kernel_for(self.block)
        return "plain" if self.site_field is not None else self.solver.name

    def _set_clock(self, clock: Clock) -> None:
        self._clock = clock
        if isinstance(self.solver, Sublattice | TiledNFold):
            self.solver.clock = clock

    @property
    def dt(self) -> float | None:
        """Time step, or window; of the n-fold way that for which it holds what changes, or None."""
        if isinstance(self.solver, NFold):
            return None if self.drive is None else self.hold
        return self.solver.window if isinstance(self.solver, TiledNFold) else self.solver.dt

    def describe(self) -> str:
        """One line: size, kernel and how the work is divided."""
        what = self._lattices_in_words("spins")
        kernel = f"{self.kernel} kernel" if isinstance(self.solver, Sublattice) else self.kernel
        if self.site_field is not None:
            kernel = "plain kernel for fields of sites"
        elif self.kernel == "plain" and not fits(self.lattice):
            kernel += f" (packed takes even sides from {BAND} rows and {LEAST_COLUMNS} columns on)"
        workers = threads() if self.kernel == "packed" and not self.device.is_cuda else 1
        return (
            f"{what}, {kernel} on {self.device.name}, {self._tiles_in_words()}, threads {workers}"
        )

    def remarks(self) -> list[str]:
        dt = self.dt
        steps = isinstance(self.solver, Sublattice | SiteFieldSublattice)
        if steps and dt is not None and dt > LONG_STEP:
            if math.isinf(dt):
                return [
                    "dt inf is the classic checkerboard: right in equilibrium, but its sweeps are "
                    "no time of Glauber dynamics"
                ]
            return [f"dt {dt:g} is long: {LONG_STEP_ERROR}"]
        if isinstance(self.solver, TiledNFold) and self.solver.window > LONG_WINDOW:
            return [f"window {self.solver.window:g} is long: {LONG_WINDOW_ERROR}"]
        return []

    # -- state ---------------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        return {
            "system": "ising",
            "size": self.lattice.shape,
            **asdict(self.system),
            **self._driven_facts(),
            **self._field_facts(),
            "solver": self.solver.name,
            "kernel": self.kernel,
            "dt": self.dt,
            "members": self.members,
            "seed": self.seed,
        }

    @property
    def rng(self) -> str:
        if self.kernel not in ("packed", "sliced"):
            return RNG
        name = f"{BIT_RNG}, spins set" if self.dt == math.inf else BIT_RNG
        in_order = self.kernel == "packed" and runs_on(self.lattice)
        return f"{name}, in the order of sites" if in_order else name

    def set_spins(self, fill: Callable[..., None], **options: Any) -> None:
        super().set_spins(fill, **options)
        self._begin()

    def _begin(self) -> None:
        self._opening, self._looked, self._sound = self.step, -1, False
        self._writes = self.block.writes

    def require_state(self, anew: bool = False) -> None:
        if self.block.writes != self._writes:  # spins stored in the block are a new beginning
            self._begin()
        super().require_state(anew)

    @property
    def step_length(self) -> float | None:
        return None if isinstance(self.solver, NFold) else self.solver.time_per_step

    @property
    def present(self) -> Block | PackedBlock:
        """The spins at the present time. Collective.

        Of the sublattice solver it is a copy, to be read: the block itself waits before its next
        pass, in the middle of which the present lies. Of a packed copy the black halo is not
        current.
        """
        if self.block.writes != self._writes:
            self._begin()
        if not isinstance(self.solver, Sublattice) or self.step == self._opening:
            return self.block
        if math.isinf(self.solver.dt):
            return self.block
        view = self._view = self._view or self.block.copy()
        view.read_only = True
        if self._looked != self.step:
            view.copy_from(self.block)  # type: ignore[arg-type]
            self._view_flips = self.solver.look(view, self.step, seed=self.seed)
            self._looked = self.step
        return view

    @property
    def flips(self) -> np.ndarray:
        """Flips so far of each box on this rank, (B,) int64. Collective.

        The sublattice solver compares the spins before and after a pass, and at a frame also with
        the middle of the pending one: a spin that has flipped there and is back by the end of the
        pass is counted at that frame only, so the count may fall by a few of these.
        """
        return self._flips + self._view_flips if self.present is not self.block else self._flips

    # -- dynamics ------------------------------------------------------------------

    @property
    def events(self) -> NFold | None:
        """The solver of exact events, None if this one takes steps."""
        return self.solver if isinstance(self.solver, NFold) else None

    def _make_steps(self, steps: int) -> np.ndarray:
        if isinstance(self.solver, Sublattice):
            return self.solver.chain(
                self.block,
                steps,
                seed=self.seed,
                first_step=self.step,
                opening=self.step == self._opening,
            )
        if isinstance(self.solver, TiledNFold):
            return self.solver.advance(
                cast(Block, self.block), steps, seed=self.seed, first_step=self.step
            )
        assert isinstance(self.solver, SiteFieldSublattice)  # noqa: S101 - for the type checker
        return self._in_field(self.solver, steps)

    def _in_field(self, solver: SiteFieldSublattice, steps: int) -> np.ndarray:
        flips, block = np.zeros(self.block.batch, np.int64), cast(Block, self.block)
        for law, first, count in stretches(self.drive, self.system, self._clock, self.step, steps):
            solver.become(law)
            flips += solver.advance(block, count, seed=self.seed, first_step=first)
        return flips

    @property
    def counts_events(self) -> bool:
        return isinstance(self.solver, NFold | TiledNFold)

    def advance_some(self, time: float, most: int, target: float) -> int:
        """As of any simulation of spins; windows of tiled-nfold count as events.

        Those of a call are taken back together if :func:`mpiflow.core.signals.over` says so.
        """
        if not isinstance(self.solver, TiledNFold):
            return super().advance_some(time, most, target)
        self.require_state()
        return self._some_windows(self.solver, time, most, target)

    def _some_windows(self, solver: TiledNFold, time: float, most: int, target: float) -> int:
        block, due = cast(Block, self.block), self._clock.step(target)
        ahead = max(1, math.ceil((time - self.time) / solver.window * (1 - 1e-9)))
        steps, over = min(most, ahead, due - self.step), partial(signals.over, monotonic())
        flips = solver.attempt(block, steps, over=over, seed=self.seed, first_step=self.step)
        self.taken_back = left_out(self.comm, flips.sum(), solver.abandoned)
        solver.settle(block, back=self.taken_back is not None)
        if self.taken_back is not None:
            return 0
        self._made(steps, flips)
        if self.step >= due:
            self.time = max(self.time, target)  # whole windows may end a rounding before it
        return steps

    def state_of(self) -> State:
        state = super().state_of()
        pending = self._pending(self.solver) if isinstance(self.solver, Sublattice) else {}
        return State({**state.numbers, "opening": self._opening, **pending}, state.arrays)

    def restore(self, state: State) -> None:
        super().restore(state)
        self._opening, self._looked = int(state.numbers["opening"]), -1
        self._writes = self.block.writes
        if isinstance(self.solver, Sublattice):
            self._settle(self.solver, state.numbers)

    def _pending(self, solver: Sublattice) -> dict[str, Number]:
        """What the pass is made with in the middle of which the present lies."""
        return {**asdict(solver.pending(self.step)), "dt": solver.dt, "seed": self.seed}

    def _settle(self, solver: Sublattice, numbers: Mapping[str, Number]) -> None:
        """Where the law has changed, end that pass as it was begun and open another. Collective."""
        mine = self._pending(solver)
        old = {name: numbers.get(name, value) for name, value in mine.items()}
        if old == mine or self.step == self._opening:
            return
        dt, seed = float(old.pop("dt")), int(old.pop("seed"))
        before = Sublattice(replace(self.system, **old), dt, plain=solver.plain)
        self._flips = self._flips + before.look(self.block, self.step, seed=seed)
        self.block.fill_halo()
        self._opening = self.step

    def measure(self) -> Frame:
        """Observables of the present state. Collective."""
        self.require_state(anew=True)
        sums = observables.spin_sums(self.present)
        spins, bonds = sums[:, 0], sums[:, 1]
        sites = self.lattice.sites
        energy = self.law.energy(bonds, spins)
        if self.site_field is not None:
            energy = energy - self._site_sums(self.block.spins(), -1, 2, 2) @ np.array([-1.0, 1.0])
        return Frame(
            time=self.time,
            magnetization=spins / sites,
            energy=energy / sites,
            domain_wall_density=observables.domain_wall_density(bonds, sites),
            flips=self.block.total(self.flips),
            single=self.members == 1,
        )


def _plain(kernel: KernelName) -> KernelName:
    """The kernel of fields of sites."""
    if kernel not in ("auto", "plain"):
        allowed = "auto or plain with fields of sites: thresholds of others are those of one field"
        raise InputError("kernel", kernel, allowed, "Leave it out.")
    return "plain"


def packs(kernel: KernelName, lattice: Lattice, members: int) -> bool:
    """Whether spins are packed; raises where they are to be and cannot.

    Of many small lattices 64 are in the bits of a word instead, with none of it empty.
    """
    if kernel not in get_args(KernelName):
        raise InputError("kernel", kernel, f"one of {get_args(KernelName)}", "Leave it out.")
    if kernel == "packed" and not fits(lattice):
        raise InputError(
            "size",
            lattice.shape,
            f"even sides of at least {BAND} rows and {LEAST_COLUMNS} columns for the packed kernel",
            "Leave the kernel out.",
        )
    if kernel == "auto":
        many = members >= MANY_MEMBERS and math.prod(n + 2 for n in lattice.shape) <= SLICED_SITES
        return fits(lattice) and not many
    return kernel == "packed"
