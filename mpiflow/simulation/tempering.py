"""Parallel tempering: copies of a lattice at several temperatures that exchange their states.

    Geyer, Computing Science and Statistics: Proc. 23rd Symp. Interface (1991) 156;
    Hukushima and Nemoto, J. Phys. Soc. Japan 65 (1996) 1604.

After each time ``every`` the copies at temperatures T_i and T_(i+1), i even and odd in turn,
exchange their states with probability

    min(1, exp((1 / T_i - 1 / T_(i+1)) (E_i - E_(i+1)))),

which keeps the product of their Boltzmann distributions. Between exchanges each copy is a run of
its own with its own noise. Copies are the members of a run: dealt to the ranks, the same bits on
any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import split
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import uniforms, words
from mpiflow.core.parallel import agreed
from mpiflow.core.schedule import Number, Schedule, State, whole_steps
from mpiflow.files.schema import STANDARD
from mpiflow.files.writer import Value
from mpiflow.simulation.base import Content, Rows, Sample, Simulated

_SEEDS = 2**63


if TYPE_CHECKING:
    #: Of a temperature, a seed and a communicator: one whole lattice in its initial state.
    Maker = Callable[[float, int, MPI.Intracomm], Any]


class Tempering(Simulated):
    """Copies of a lattice that exchange states; a simulation like any other.

    >>> def copy(temperature, seed, comm):
    ...     sim = Simulation(Ising(temperature), 16, seed=seed, comm=comm)
    ...     sim.set_spins(initial.shuffled)
    ...     return sim
    >>> record(Tempering(copy, [1.5, 2.0, 2.5], every=5), "tempering.h5", time=1000, save_every=5)

    Parameters
    ----------
    make : makes a copy from a temperature, a seed and a communicator. Its frames must have an
        ``energy`` per site in which the temperature is one factor, k_B T in units of J
    temperatures : of the copies, rising or falling, two or more
    every : time between exchanges, a multiple of the step of the copies if they have one
    seed : the copies and the exchanges have seeds made from it

    Raises
    ------
    InputError : on all ranks: temperatures, or copies that are not of one kind
    """

    def __init__(
        self,
        make: Maker,
        temperatures: Sequence[float],
        *,
        every: float,
        seed: int = 0,
        comm: MPI.Intracomm | None = None,
    ) -> None:
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.temperatures = np.asarray(temperatures, float)
        steps = np.diff(self.temperatures)
        in_order = (steps > 0).all() or (steps < 0).all()
        if self.temperatures.ndim != 1 or not steps.size or not in_order:
            allowed = "two or more that rise, or that fall"
            raise InputError("temperatures", list(temperatures), allowed, "Sort them.")
        self.members, self.seed, self.every = len(self.temperatures), seed, float(every)
        mine = range(self.members)[self.local_members]
        seeds = words(seed, "tempering", 0, _SEEDS, np.arange(self.members))[:, 0] >> np.uint64(1)
        alone = MPI.COMM_SELF
        with agreed(self.comm):
            self.sims = [make(float(self.temperatures[i]), int(seeds[i]), alone) for i in mine]
            # What a rank without copies knows of them.
            self.one = self.sims[0] if self.sims else make(float(self.temperatures[0]), 0, alone)
            if self.one.members != 1 or not hasattr(self.one.system, "temperature"):
                shown = f"{type(self.one).__name__} of {self.one.members}"
                allowed = "one lattice of a system with a temperature"
                raise InputError("make", shown, allowed, "Return such a simulation.")
            if not whole_steps("every", self.every, self.one.stop_interval or None):
                raise InputError("every", every, "a number above 0", "Try 1.")
        self.lattice = self.one.lattice
        self.block = Rows(self._states, self._store)
        self.step, self.replica = 0, np.arange(self.members)[self.local_members]
        self.accepted = np.zeros(len(self.sims), np.int64)

    @property
    def time(self) -> float:  # type: ignore[override]  # that of the copies
        """The time of the copies, which all have the same."""
        return float(self.one.time) if self.sims else self._time

    _time = 0.0

    def describe(self) -> str:
        low, high = self.temperatures[[0, -1]]
        ranks = f"{self.comm.size} rank{'s' * (self.comm.size > 1)}"
        return (
            f"{self.members} copies from T = {low:g} to {high:g} that exchange states every "
            f"{self.every:g}, {ranks}; each {self.one.describe()}"
        )

    def remarks(self) -> list[str]:
        return list(self.one.remarks())

    def closing(self) -> list[str]:
        """Rates of exchange between neighbours. Collective."""
        if not self.step:
            return []
        rates = ", ".join(f"{rate:.2f}" for rate in self.exchange_rates())
        return [f"accepted exchanges between neighbouring temperatures: {rates}"]

    def exchange_rates(self) -> np.ndarray:
        """Share of proposed exchanges that were accepted, (members - 1,). Collective."""
        accepted = np.concatenate(self.comm.allgather(self.accepted))[:-1]
        even = (self.step + 1) // 2
        proposed = np.where(np.arange(self.members - 1) % 2 == 0, even, self.step - even)
        return accepted / np.maximum(proposed, 1)

    def facts(self) -> dict[str, Any]:
        of_copy = {n: v for n, v in self.one.facts().items() if n not in ("temperature", "seed")}
        return of_copy | {
            "members": self.members,
            "seed": self.seed,
            "temperatures": self.temperatures.tolist(),
            "exchange_every": self.every,
        }

    def attributes(self, saved: Any = None) -> dict[str, Any]:
        return super().attributes(saved) | {"exchange_every": self.every}

    @property
    def rng(self) -> str:
        return str(self.one.rng)

    # -- state ---------------------------------------------------------------------------------

    def _check_state(self) -> None:
        for sim in self.sims:
            sim.require_state()

    def _states(self) -> np.ndarray:
        if not self.sims:
            return np.zeros((0, *self.lattice.shape), self.one.state.dtype)
        return np.concatenate([sim.state for sim in self.sims])

    def _store(self, rows: slice, values: np.ndarray) -> None:
        for sim, own in zip(self.sims, values, strict=True):
            sim.block.store(rows, own[None])
            if rows.stop == self.lattice.shape[0]:
                sim.block.fill_halo()

    def _require_values(self, values: np.ndarray) -> None:
        for own in values:
            self.one._require_values(own[None])

    def _put(self, values: np.ndarray) -> None:
        for sim, own in zip(self.sims, values, strict=True):
            sim.set_state(own)

    # -- dynamics ------------------------------------------------------------------------------

    @property
    def stop_interval(self) -> float:
        return self.every

    def schedule(self, time: float, every: float, begun: bool = False) -> Schedule:
        for name, value in (("time", every if begun else time), ("save_every", every)):
            if not whole_steps(name, value, self.every, other="another time between exchanges"):
                raise InputError(name, value, "a number above 0", "Try 1.")
        return Schedule.of(self.time, time, every)

    def advance_to(self, time: float) -> None:
        """Advance all copies and exchange their states, as often as is due. Collective."""
        self.require_state()
        begin, due = self.time, round((time - self.time) / self.every)
        for number in range(1, due + 1):
            self._time = begin + number * self.every if number < due else time
            for sim in self.sims:
                sim.advance_to(self._time)
            self._exchange()

    def _energies(self) -> np.ndarray:
        """Of all copies, (members,), of the whole lattice. Collective."""
        own = [float(np.ravel(sim.measure().energy)[0]) * self.lattice.sites for sim in self.sims]
        return np.concatenate(self.comm.allgather(np.array(own, float)))

    def _exchange(self) -> None:
        """Propose an exchange to every other pair of neighbours; begin anew from what they have."""
        energies, first = self._energies(), self.step % 2
        pairs = np.arange(first, self.members - 1, 2)
        chance = uniforms(self.seed, "tempering", 0, self.step, pairs)[:, 0]
        cold = 1.0 / self.temperatures
        gain = (cold[pairs] - cold[pairs + 1]) * (energies[pairs] - energies[pairs + 1])
        place = self.local_members
        states = [np.array(sim.state[0]) for sim in self.sims]
        for i in pairs[np.log(chance) < gain]:
            inside = [k - place.start for k in (i, i + 1) if place.start <= k < place.stop]
            if len(inside) == 2:
                a, b = inside
                states[a], states[b] = states[b], states[a]
                self.replica[[a, b]] = self.replica[[b, a]]
            elif inside:
                mine = inside[0]
                self._swap_with_neighbour(states, mine, 2 * i + 1 - (mine + place.start))
            if place.start <= i < place.stop:
                self.accepted[i - place.start] += 1
        for sim, state in zip(self.sims, states, strict=True):
            sim.set_state(state)
        self.step += 1

    def _swap_with_neighbour(self, states: list[np.ndarray], mine: int, partner: int) -> None:
        """Exchange a state with the copy of another rank."""
        other = self._owner(partner)
        theirs = np.empty_like(states[mine])
        state = np.ascontiguousarray(states[mine])
        self.comm.Sendrecv([state, MPI.BYTE], other, 3, [theirs, MPI.BYTE], other, 3)
        states[mine] = theirs
        self.replica[mine] = self.comm.sendrecv(int(self.replica[mine]), other, 4, None, other, 4)

    def _owner(self, member: int) -> int:
        size = self.comm.size
        return next(r for r in range(size) if split(self.members, size, r)[1] > member)

    # -- its file ------------------------------------------------------------------------------

    def content(self, **saved: Any) -> Content:
        """What each copy holds, over the copies, their temperatures, and who is where."""
        copies = [sim.content(**saved) for sim in (self.sims or [self.one])]
        first = copies[0]
        variables = [v.over("member", *v.dims) if v.per_frame else v for v in first.variables]
        own_variables = ("copy_temperature", "replica", "exchanges")
        variables += [STANDARD[name].over("member") for name in own_variables]
        place = self.local_members

        def frame() -> Sample:
            parts = [copy.frame().values for copy in copies][: len(self.sims)]
            values: dict[str, Value] = {
                "copy_temperature": (self.temperatures[place], (place,)),
                "replica": (self.replica, (place,)),
                "exchanges": (self.accepted, (place,)),
            }
            sizes = first.dims
            for v in first.variables:
                if v.per_frame:
                    shape = tuple(sizes[d] for d in v.dims)
                    own = [np.reshape(_array(part[v.name]), shape) for part in parts]
                    whole = np.array(own) if own else np.zeros((0, *shape), v.dtype)
                    values[v.name] = (whole, (place, *(slice(0, n) for n in shape)))
            return Sample(self.time, values, {})

        dims = {"member": self.members, **first.dims}
        about = self.attributes(saved)
        # Of all copies the same.
        static: dict[str, Value] = {name: _array(value) for name, value in first.static.items()}
        return Content(dims, first.coordinates, variables, about, frame, first.time, static)

    # -- to go on later ------------------------------------------------------------------------

    def site_bits(self) -> np.ndarray | None:
        bits = [sim.site_bits() for sim in self.sims] or [self.one.site_bits()]
        if any(part is None for part in bits):
            return None
        return np.concatenate(bits)[: len(self.sims)]

    def state_of(self) -> State:
        self.require_state()
        states = [sim.state_of() for sim in self.sims]
        own = _clock_of(self.one, states[0].numbers) if states else None
        shared = next(found for found in self.comm.allgather(own) if found is not None)
        arrays = {"replica": self.replica, "accepted": self.accepted}
        for name, example in (states[0] if states else self.one.state_of()).arrays.items():
            parts = [state.arrays[name] for state in states] or [example[:0]]
            arrays[f"copy_{name}"] = np.concatenate(parts)
        mine: dict[str, Number] = {"time": self.time, "step": self.step}
        return State({**{f"copy_{n}": v for n, v in shared.items()}, **mine}, arrays)

    def restore(self, state: State) -> None:
        numbers = _of_copies(state.numbers)
        self.step, self._time = int(state.numbers["step"]), float(state.numbers["time"])
        self.replica = np.asarray(state.arrays["replica"], np.int64)
        self.accepted = np.asarray(state.arrays["accepted"], np.int64)
        self._sound = False
        for k, sim in enumerate(self.sims):
            arrays = {name: rows[k : k + 1] for name, rows in _of_copies(state.arrays).items()}
            sim.restore(State({**_parameters_of(sim), **numbers}, arrays))


def _of_copies(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint has of the copies, by the names that they know."""
    prefix = "copy_"
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _parameters_of(sim: Any) -> dict[str, Number]:
    """What is each copy's own among the numbers that it goes on from."""
    own = {**asdict(sim.system), "seed": sim.seed}
    return {name: value for name, value in own.items() if isinstance(value, int | float)}


def _clock_of(sim: Any, numbers: Any) -> dict[str, Number]:
    """The numbers that all copies share."""
    return {name: value for name, value in numbers.items() if name not in _parameters_of(sim)}


def _array(value: Value) -> np.ndarray:
    return np.asarray(value[0] if isinstance(value, tuple) else value)
