"""Training data for the short-range order of an alloy, from small lattices.

At each temperature: small lattices run from random states; large states are made of their
snapshots, one over and over or different ones, and relaxed in windows; one vacancy of each hops for
a short time (:mod:`mpiflow.scaleup.alloy_partial`). Everything is stopped by time, never by a
number of hops: states seen after so many hops are those that a vacancy leaves fast, too often by
their rates.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import to_half_open_unit, words
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.learn.alloy.model import PairsData, independent
from mpiflow.scaleup.alloy import assemble, local_relax
from mpiflow.scaleup.alloy_partial import partial_evolution, whole_bonds
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.solvers.vacancy.serial import VacancyKMC
from mpiflow.systems.alloy import Alloy, neighbour_numbers, short_range_order, species_numbers
from mpiflow.systems.barriers import Barriers

#: Hops of a vacancy in the pilot runs that set how long small lattices run, at most: those that are
#: to run for longer do so in proportion.
PILOT = 4_000_000


@dataclass(frozen=True)
class AlloyPlan:
    """What data to make at each temperature.

    Parameters
    ----------
    cells : a side of the small lattice, which has a vacancy for each 1024 sites. Of the bonds of a
        large state 3 / (2 cells) lie across faces of its blocks and are without order at first.
    factor : large lattice / small lattice, a side
    seeds : independent small lattices: with 10 half-times came out up to 15 % off. Let them run
        several times as long as they need to come to rest: frames before that, with the order of
        equilibrium but not what lies behind it, pull the end of the drift to weaker order.
    frames : snapshots of each; the k-th at a time that grows as k^2
    states : large states
    repeats : pairs of each state
    alike : where blocks are not repeated, share of the states whose blocks are one snapshot,
        differently shifted. They fluctuate as the small lattice does, so that pairs cover more
        than the large one's path.
    repeated : blocks of a state are all the same, which joins them without faces; the order of
        states then spreads as that of small lattices. Otherwise blocks are different snapshots.
    patch : points a side of the box that a vacancy may hop in. At 2000 K a vacancy turned back
        at the edge of 16 points orders its surroundings 18 % too slowly over 124 hops, 24 points
        8 %; 32 points are the whole lattice of 8192 sites. A smaller lattice is taken whole.
    pair, relax : duration of a pair, and of a window of local relaxation, in mean times
        between hops of one vacancy
    near : blocks of states of different snapshots are of so many frames before and after a
        common one
    late : share of the states whose snapshots are of the second half of the time, and not of any
        time. Pairs on the way to rest, which most others are, pull the end of the drift with them
        where the cold makes the way long; but without any of them the path is not learned.
    """

    cells: int = 8
    factor: int = 2
    seeds: int = 40
    frames: int = 100
    states: int = 8000
    repeats: int = 24
    patch: int = 32
    alike: float = 0.5
    repeated: bool = True
    pair: float = 124.0
    relax: float = 8.0
    near: int = 2
    late: float = 0.7

    def __post_init__(self) -> None:
        for name in ("cells", "factor", "seeds", "frames", "states", "repeats", "pair", "relax"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "above 0", "Leave it out.")
        for name in ("alike", "late"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(name, getattr(self, name), "0 to 1", "Leave it out.")

    @property
    def vacancies(self) -> int:
        """Of a small lattice."""
        return max(1, 2 * self.cells**3 // 1024)

    @property
    def patches(self) -> int:
        """K, vacancies of a large lattice."""
        return self.vacancies * self.factor**3

    @property
    def box(self) -> int:
        """Points a side of the box of a pair: a patch, or the whole lattice."""
        return min(self.patch, 2 * self.cells * self.factor)

    @property
    def together(self) -> int:
        """Large states that are made at a time, for the memory that they take."""
        return max(1, min(256, 2**26 // (4 * self.sites)))

    @property
    def sites(self) -> int:
        """Sites of a large lattice."""
        return 2 * (self.cells * self.factor) ** 3


def small_runs(
    system: Alloy, model: Barriers, plan: AlloyPlan, hops: int, seed: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Snapshots of small lattices from random states on.

    Parameters
    ----------
    hops : of a vacancy: the runs last until the first of as many other lattices has made so many,
        or, above ``PILOT``, in proportion to the time of the first that made these. Where it is
        cold, a vacancy that flickers makes as many in a moment as another in an age, and only this
        bounds the work.

    Returns
    -------
    snapshots (frames + 1, seeds, nx, ny, nz) int8, times (frames + 1,) in s, and the mean time
    between hops of a vacancy in s, over the last half
    """

    def start(seed: int) -> AlloySimulation:
        sim = AlloySimulation(
            system, model, plan.cells, seed=seed, members=plan.seeds, comm=MPI.COMM_SELF
        )
        counts = counts_of(sim.sites, plan.vacancies, elements=len(system.elements))
        sim.set_species(random_alloy, counts=counts)
        return sim

    pilot = start(seed ^ 2**62)  # of its own: the runs must not end just after one of their hops
    if not isinstance(pilot.solver, VacancyKMC):
        raise AssertionError("small lattices are serial")
    tried = min(hops, PILOT)
    pilot.solver.advance(pilot.block, seed=pilot.seed, hops=tried * plan.vacancies)
    end = float(pilot.solver.clock.min()) * hops / tried
    times = end * (np.arange(plan.frames + 1) / plan.frames) ** 2
    sim = start(seed)
    shape = (plan.frames + 1, plan.seeds, *sim.lattice.shape)
    snapshots = np.empty(shape, np.int8)
    counted = np.zeros(plan.frames + 1)
    for k, time in enumerate(times):
        if time > sim.time:
            sim.advance(time - sim.time)
        snapshots[k] = sim.block.spins()
        counted[k] = sim.measure().hops.sum()
    half = len(times) // 2
    late = counted[-1] - counted[half]
    if late == 0:
        raise InputError("hops", hops, "more, so that vacancies move", "Raise it.")
    return snapshots, times, float((times[-1] - times[half]) * plan.seeds * plan.vacancies / late)


def _pools(plan: AlloyPlan, members: np.ndarray, seed: int) -> np.ndarray:
    """First and one past the last snapshot that each state may use, (B, 2) int64."""
    word = words(seed, "sample", 0, 0, members.astype(np.uint64))
    number, kind = to_half_open_unit.py_func(word).T
    frames, seeds = plan.frames + 1, plan.seeds
    # The k-th frame is at k^2 of the time, and the second half of it begins with this one.
    half = math.ceil(plan.frames / math.sqrt(2))
    late = number < plan.late
    first = np.where(late, half * seeds, 0)
    share = (number - np.where(late, 0, plan.late)) / np.where(late, plan.late, 1 - plan.late)
    chosen = first + (share * (frames * seeds - first)).astype(np.int64)
    frame = chosen // seeds
    common = np.stack(
        [
            np.maximum(frame - plan.near, 0) * seeds,
            np.minimum(frame + plan.near + 1, frames) * seeds,
        ],
        axis=1,
    )
    alone = np.stack([chosen, chosen + 1], axis=1)
    return np.where((kind < plan.alike)[:, None], alone, common)


def pairs_at(
    system: Alloy, model: Barriers, plan: AlloyPlan, hops: int, seed: int
) -> dict[str, np.ndarray]:
    """The pairs of one temperature, named as in :class:`~mpiflow.learn.alloy.model.PairsData`.

    Also ``path`` (frames + 1, 6) and ``times``: mean order of the small lattices in time; and
    ``vacancy_neighbours`` (elements,) of the large states.
    """
    snapshots, times, waiting = small_runs(system, model, plan, hops, seed)
    members = np.arange(plan.states)
    flat = snapshots.reshape(-1, *snapshots.shape[2:])
    names = ("z0", "increments", "dt", "near", "lattice")
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for i in range(0, plan.states, plan.together):
        some = members[i : i + plan.together]
        pool = _pools(plan, some, seed)
        made = assemble(flat, plan.factor, some, seed=seed, pool=pool, repeated=plan.repeated)
        states = made.states
        local_relax(states, some, system, model, seed=seed, duration=plan.relax * waiting)
        pairs = partial_evolution(
            states,
            some,
            system,
            model,
            seed=seed,
            duration=plan.pair * waiting,
            patch=plan.box,
            repeats=plan.repeats,
        )
        # Snapshots are numbered by frame and then by lattice.
        lattices = made.sources % plan.seeds
        one = (lattices == lattices[:, :1]).all(axis=1)
        parts["lattice"].append(np.where(one, lattices[:, 0], -1))
        parts["z0"].append(independent(pairs.sro()))
        parts["increments"].append(independent(pairs.increments()))
        parts["dt"].append(pairs.elapsed)
        near, counts = neighbour_numbers(pairs.bonds_before), species_numbers(pairs.bonds_before)
        parts["near"].append(near[:, 1:, 0] / counts[:, 1:])
    out = {name: np.concatenate(arrays) for name, arrays in parts.items()}
    out["vacancy_neighbours"] = out.pop("near").mean(axis=0)
    out["temperature"] = np.full(plan.states, system.temperature)
    order = short_range_order(whole_bonds(flat, len(system.elements) + 1))
    out["path"] = order.reshape(*snapshots.shape[:2], -1).mean(axis=1)
    out["times"] = times
    return out


#: Temperatures at which more of the pairs show no change are not learned from.
STILL = 0.35


def moving(data: Mapping[float, Mapping[str, np.ndarray]]) -> dict[float, Mapping[str, np.ndarray]]:
    """The temperatures at which vacancies get away from their place within a pair's time.

    Where they only flicker, increments are mostly 0 and now and then large: no Gaussian, and no
    information on the drift, but in one model with the others it spoils those.
    """
    return {
        t: part for t, part in data.items() if np.mean((part["increments"] == 0).all(-1)) < STILL
    }


def save_pairs(path: str | Path, pairs: PairsData) -> None:
    """Write pairs to a ``.npz``, for :func:`load_pairs`."""
    arrays: dict[str, Any] = {f.name: np.asarray(getattr(pairs, f.name)) for f in fields(pairs)}
    np.savez_compressed(path, **arrays)


def load_pairs(path: str | Path) -> PairsData:
    """The pairs of a file of :func:`save_pairs`.

    Raises
    ------
    InputError : it is no such file
    """
    allowed = "a .npz of pairs as drivers/alloy_learn.py writes"
    try:
        with np.load(path, allow_pickle=False) as file:
            wanted = [f.name for f in fields(PairsData)]
            if "lattice" not in file.files:  # written before it was kept
                wanted.remove("lattice")
            known = {name: file[name] for name in wanted}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError("data", str(path), allowed, f"Reading said: {error}.") from error
    known |= {name: int(known[name]) for name in ("patches", "sites")}
    for name in ("counts", "vacancy_neighbours"):
        known[name] = tuple(known[name].tolist())
    return PairsData(**known)


def joined(data: Mapping[float, Mapping[str, np.ndarray]], plan: AlloyPlan) -> PairsData:
    """The pairs of all temperatures together."""
    names = ("z0", "increments", "dt", "temperature", "lattice")
    whole = {name: np.concatenate([part[name] for part in data.values()]) for name in names}
    atoms = tuple(float(n) for n in counts_of(plan.sites, plan.patches)[1:])
    near = np.mean([part["vacancy_neighbours"] for part in data.values()], axis=0)
    return PairsData(
        **whole,
        patches=plan.patches,
        sites=plan.sites,
        counts=(atoms[0], atoms[1], atoms[2]),
        vacancy_neighbours=(float(near[0]), float(near[1]), float(near[2])),
    )
