"""``mpiflow certify``: how to make training pairs whose law is right to a stated error.

Runs of an ensemble give the states. Their terms (:mod:`mpiflow.learn.certificate.terms`) are exact
sums over rates, so that some tens of states are enough, and nothing is trained or sampled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import agreed
from mpiflow.learn.certificate import alloy, spins
from mpiflow.learn.certificate.proposal import Aim, Proposal, best, proposals
from mpiflow.learn.certificate.terms import Terms, joined
from mpiflow.simulation import catalogue
from mpiflow.simulation.base import Motion
from mpiflow.simulation.options import RunConfig
from mpiflow.systems.alloy import Alloy
from mpiflow.systems.ising import Ising
from mpiflow.systems.rule import SpinRule

#: Lattices of a run of which members are not given, and frames that are looked at.
STATES, FRAMES = 32, 16
#: Sites of a lattice at most: all that is found is a mean over sites.
MOST_SITES = 2**20
#: Smallest patch of spins that is proposed.
_LEAST = 4


@dataclass(frozen=True)
class Certificate:
    """What was found; ``print(certificate)`` shows it.

    Attributes
    ----------
    config : of the runs that the states are from
    aim : what was asked for
    names : of the observables
    times : at which there are states
    proposals : one for each way to cut the lattice
    chosen : the one that is proposed
    """

    config: RunConfig
    aim: Aim
    names: tuple[str, ...]
    times: tuple[float, ...]
    proposals: tuple[Proposal, ...]
    chosen: Proposal

    def facts(self) -> dict[str, Any]:
        """All of it as plain numbers, for JSON."""
        rows = [_plain(one) for one in self.proposals]
        return {
            "system": self.config.system,
            **vars(self.aim),
            "observables": list(self.names),
            "times": list(self.times),
            "states": self.config.members * len(self.times),
            "proposals": rows,
            "chosen": rows[self.proposals.index(self.chosen)],
        }

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def certify(
    config: RunConfig, aim: Aim, comm: MPI.Intracomm, patch: int | None = None
) -> Certificate:
    """Propose a short time, a buffer and a number of parts. Collective.

    Parameters
    ----------
    config : of runs whose states are those that a law is learned on; of several members, or
        :data:`STATES` of them
    aim : the error that is allowed
    patch : only patches of this side; of spins

    Raises
    ------
    InputError : on all ranks: a system without terms, a lattice that is too large, no drift
    """
    with agreed(comm):
        config = _of_states(config, comm.size)
        if aim.repeats > aim.pairs:
            raise InputError("repeats", aim.repeats, f"at most {aim.pairs}, the pairs", "Try 16.")
    sim: Any = catalogue.build(config, comm).sim
    system = getattr(sim, "system", None)
    with agreed(comm):
        if not isinstance(system, Ising | SpinRule | Alloy):
            raise InputError(
                "system", config.system, "ising, an alloy, or a rule of a few states",
                "Others have no partial evolution.",
            )  # fmt: skip
        sides = _patches(sim.lattice.shape, patch, isinstance(system, Alloy))
    times, rows = [], []
    for time, states in frames(config, sim):
        with agreed(comm):
            if isinstance(system, Alloy):
                mine = alloy.terms(system, sim.barriers, states)
            else:
                mine = spins.terms(system, states, sides)
        times.append(time)
        rows.append(joined(comm.allgather(mine)))
    found: Terms = joined(rows)
    with agreed(comm):
        made = proposals(found, np.repeat(times, config.members), aim)
        return Certificate(config, aim, found.names, tuple(times), tuple(made), best(made))


def _of_states(config: RunConfig, ranks: int) -> RunConfig:
    """The configuration with some members, for a system that may have terms."""
    options = type(config).options()
    for name in ("schedule", "random_field_std", "field_file"):
        if getattr(config, name, None) is not None:
            allowed = "no value: a law is learned at fixed parameters, the same for all sites"
            raise InputError(name, getattr(config, name), allowed, "Leave it out.")
    if "members" not in options:
        raise InputError("system", config.system, "one that has members", "Try ising.")
    members = config.members if config.members > 1 else max(STATES, ranks)
    if members < ranks:
        allowed = f"at least {ranks}, one for each rank"
        raise InputError("members", members, allowed, "Use fewer ranks.")
    made = config.model_copy(update={"members": members})
    shape = catalogue.plan(made, 1).shape
    if math.prod(shape) > MOST_SITES:
        raise InputError(
            "size", " x ".join(map(str, shape)), f"at most {MOST_SITES} sites",
            "A smaller lattice has the same terms a site, and says the same: try 64.",
        )  # fmt: skip
    return made


def _patches(shape: tuple[int, ...], patch: int | None, atoms: bool) -> list[int]:
    """Sides of patches of spins: even divisors, each about twice the one before."""
    if atoms:
        if patch is not None:
            allowed = "no value for an alloy, whose vacancies go one by one"
            raise InputError("patch", patch, allowed, "Leave it out.")
        return []
    if patch is not None:
        return [patch]
    divisors = [n for n in range(_LEAST, min(shape) + 1, 2) if all(s % n == 0 for s in shape)]
    chosen: list[int] = []
    for side in divisors:
        if not chosen or side >= 1.5 * chosen[-1]:
            chosen.append(side)
    if not chosen:
        allowed = f"sides with an even divisor of {_LEAST} or more"
        raise InputError("size", shape, allowed, "Try 64.")
    return chosen


def frames(config: RunConfig, sim: Any) -> Iterator[tuple[float, np.ndarray]]:
    """Up to :data:`FRAMES` frames of the run: times, and the states of this rank's members."""
    motion = Motion.of(sim, **config.extent())
    last = motion.schedule.last
    for number in np.unique(np.rint(np.linspace(0, last, min(FRAMES, last + 1))).astype(int)):
        motion.move(motion.schedule.target(int(number)))
        yield float(sim.time), sim.state


# -- in words ----------------------------------------------------------------------------------


def _plain(one: Proposal) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(one).items()
    }


def _lines(made: Certificate) -> Iterator[str]:
    aim, chosen = made.aim, made.chosen
    of_what = {
        "generator": "the drift of short times",
        "increment": "the drift of increments over dt, for rollouts with steps of dt",
    }
    unit = " s" if made.config.system == "alloy" else ""
    yield (
        f"{made.config.system}: {made.config.members} states at each of {len(made.times)} times "
        f"from {made.times[0]:g} to {made.times[-1]:g}{unit}"
    )
    yield f"{of_what[aim.drift]}, wrong by {_percent(aim.error)} at most:"
    yield (
        f"{'patch':>6} {'buffer':>6} {'K':>7} {'dt':>9} {'of time':>9} {'of border':>9} "
        f"{'noise':>9} {'pairs':>9} {'lattices':>9}"
    )
    for one in made.proposals:
        mark = " <-" if one is chosen else ""
        yield (
            f"{one.patch:6} {one.buffer:6} {one.parts:7.4g} {one.duration:9.3g} "
            f"{_percent(one.time_error.max()):>9} {_percent(one.surroundings_error.max()):>9} "
            f"{_percent(one.noise.max()):>9} {one.wanted:9.2g} {one.work:9.2g}{mark}"
        )
    yield (
        f"noise: one error bar of a law with {aim.numbers} free numbers from {aim.pairs} pairs, "
        f"{aim.repeats} of a state; pairs, and whole lattices that evolve: for noise of "
        f"{_percent(aim.error)}"
    )
    yield "by observable, of the proposal:"
    for name, error, noise in zip(made.names, chosen.error, chosen.noise, strict=True):
        yield f"  {name:<20} wrong by {_percent(error):>8}, noise {_percent(noise):>8}"
    yield (
        f"proposed: K = {chosen.parts:.4g}, patches of {chosen.patch} with a buffer of "
        f"{chosen.buffer}, evolved for {_rounded(chosen.duration):g}{unit}"
    )


def _percent(share: float) -> str:
    return f"{100.0 * share:.3g} %"


def _rounded(value: float) -> float:
    """Down to three digits, so that the error stays below the stated one."""
    if not (value > 0 and math.isfinite(value)):
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{math.floor(value / unit * (1 + 1e-12)) * unit:.3g}")
