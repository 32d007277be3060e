"""Training data of the alloy: its shapes, its starts, and what it is a function of."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import Z_CEILING
from mpi4py import MPI

import mpiflow.learn.alloy.data as made
from mpiflow.core.errors import InputError
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.learn.alloy.data import AlloyPlan, joined, moving, pairs_at, small_runs
from mpiflow.learn.alloy.model import independent
from mpiflow.scaleup.alloy_partial import whole_bonds
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.systems import barriers
from mpiflow.systems.alloy import VACANCY, Alloy, is_site, short_range_order

SYSTEM = Alloy(2000.0)
CONSTANT = barriers.constant([1.0, 1.0, 1.0])
#: So high that no vacancy ever hops.
STUCK = barriers.constant([200.0, 200.0, 200.0])
#: With eight cells a side, 1023 atoms are three times 341: no site is changed when states are
#: put together.
TINY: dict[str, Any] = {
    "cells": 8, "factor": 2, "seeds": 3, "frames": 10, "states": 12, "repeats": 4, "patch": 16,
    "pair": 20.0,
}  # fmt: skip


def plan(**options: Any) -> AlloyPlan:
    return AlloyPlan(**TINY | options)


def test_sizes_of_a_plan() -> None:
    assert (AlloyPlan().patches, AlloyPlan().sites) == (8, 8192)
    assert (plan(factor=3).patches, plan(factor=3).sites) == (27, 2 * 24**3)
    large = plan(cells=16, factor=4)
    assert (large.vacancies, large.patches, large.sites) == (8, 512, 524288)
    assert (plan().together, large.together) == (256, 32)
    assert (plan().box, plan(patch=32).box, plan(patch=48).box) == (16, 32, 32)


def test_states_know_the_small_lattice_that_they_are_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of all their blocks; -1 where these are of several."""
    repeated = pairs_at(SYSTEM, CONSTANT, plan(), 300, seed=3)  # the default
    assert set(repeated["lattice"]) == {0, 1, 2}
    mixed = pairs_at(SYSTEM, CONSTANT, plan(repeated=False, alike=0.0), 300, seed=3)
    assert set(mixed["lattice"]) == {-1}
    half = pairs_at(SYSTEM, CONSTANT, plan(repeated=False, states=30), 300, seed=3)
    assert -1 in half["lattice"]
    assert set(half["lattice"]) > {-1}
    # A state of one small lattice has the order of it.
    seen = {}

    def kept(*given: Any, **options: Any) -> Any:
        seen["out"] = small_runs(*given, **options)
        return seen["out"]

    monkeypatch.setattr(made, "small_runs", kept)
    monkeypatch.setattr(made, "local_relax", lambda *_, **__: None)
    still = pairs_at(SYSTEM, CONSTANT, plan(factor=1), 300, seed=3)
    snapshots = seen["out"][0]
    order = independent(short_range_order(whole_bonds(snapshots.reshape(-1, 16, 16, 16), 4)))
    order = order.reshape(11, 3, 3)
    for z, lattice in zip(still["z0"], still["lattice"], strict=True):
        assert np.isclose(order[:, lattice], z).all(axis=1).any()


def test_a_lattice_smaller_than_a_patch_is_taken_whole() -> None:
    one = plan(factor=1, patch=32)
    part = pairs_at(SYSTEM, CONSTANT, one, 300, seed=3)
    assert part["increments"].shape == (12, 4, 3)
    same = pairs_at(SYSTEM, CONSTANT, plan(factor=1, patch=16), 300, seed=3)
    assert np.array_equal(part["increments"], same["increments"])


@pytest.mark.parametrize(
    ("options", "name"),
    [({"seeds": 0}, "seeds"), ({"pair": -1.0}, "pair"), ({"relax": 0.0}, "relax"),
     ({"alike": 1.5}, "alike"), ({"alike": -0.1}, "alike"), ({"states": 0}, "states"),
     ({"late": 1.1}, "late"), ({"late": -0.1}, "late")],
)  # fmt: skip
def test_plans_that_cannot_be(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}="):
        plan(**options)


def test_small_runs_go_on_for_the_same_time() -> None:
    """Frames at times that grow as k^2, all lattices at the same ones, one vacancy in each."""
    snapshots, times, waiting = small_runs(SYSTEM, CONSTANT, plan(), 2000, seed=1)
    assert snapshots.shape == (11, 3, 16, 16, 16)
    np.testing.assert_allclose(times, times[-1] * (np.arange(11) / 10) ** 2)
    sites = snapshots[:, :, is_site((16, 16, 16))]
    assert np.all((sites == VACANCY).sum(axis=-1) == 1)
    for kind in (1, 2, 3):
        assert np.all((sites == kind).sum(axis=-1) == 341)
    assert len(np.unique(sites.reshape(33, -1), axis=0)) == 33
    # Over barriers of 1 eV the rate is known: 2000 hops of the fastest lattice in all, and of
    # three lattices in the last half, three quarters of the time.
    hop = np.exp(SYSTEM.beta) / 8e13
    assert -(Z_CEILING + 1) * np.sqrt(2000) < times[-1] / hop - 2000 < Z_CEILING * np.sqrt(2000)
    assert abs(waiting / hop - 1) < Z_CEILING / np.sqrt(3 * 0.75 * 2000)
    # Snapshots are states of the simulation at those times.
    sim = AlloySimulation(SYSTEM, CONSTANT, 8, seed=1, members=3, comm=MPI.COMM_SELF)
    sim.set_species(random_alloy, counts=(1, 341, 341, 341))
    for time, snapshot in zip(times[[0, 4, 9]], snapshots[[0, 4, 9]], strict=True):
        sim.advance(time - sim.time)
        assert np.array_equal(sim.block.spins(), snapshot)
    sim.advance(times[-1] - sim.time)
    # The end was chosen in runs of other seeds: these are not just after a hop of theirs.
    made = sim.measure().hops
    assert np.all(abs(made - 2000) < (Z_CEILING + 1) * np.sqrt(2 * 2000))
    assert made.max() not in (1999, 2000)


def test_small_lattices_have_a_vacancy_for_each_1024_sites() -> None:
    """Three in 12 cells a side, and hops and waiting times are those of one of them."""
    chosen = plan(cells=12, factor=1)
    snapshots, times, waiting = small_runs(SYSTEM, CONSTANT, chosen, 500, seed=1)
    assert ((snapshots == VACANCY).sum(axis=(2, 3, 4)) == 3).all()
    hop = np.exp(SYSTEM.beta) / 8e13
    assert -(Z_CEILING + 1) * np.sqrt(500 / 3) < times[-1] / hop - 500 < Z_CEILING * np.sqrt(500)
    assert abs(waiting / hop - 1) < Z_CEILING / np.sqrt(9 * 0.75 * 500)
    pairs = pairs_at(SYSTEM, CONSTANT, chosen, 500, seed=1)
    steps = pairs["increments"] / (2 * 3 / 1151)  # of V vacancies whole bonds
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)


def test_small_runs_without_hops_are_refused() -> None:
    with pytest.raises(InputError, match="hops"):
        small_runs(SYSTEM, STUCK, plan(), 10, seed=2)


def test_arrays_of_one_temperature() -> None:
    chosen = plan()
    out = pairs_at(SYSTEM, CONSTANT, chosen, 2000, seed=1)
    shapes = {name: array.shape for name, array in out.items()}
    assert shapes == {
        "z0": (12, 3),
        "increments": (12, 4, 3),
        "dt": (12, 4),
        "temperature": (12,),
        "vacancy_neighbours": (3,),
        "path": (11, 6),
        "lattice": (12,),
        "times": (11,),
    }
    assert all(np.isfinite(array).all() for array in out.values())
    assert np.all(out["temperature"] == 2000.0)
    _, times, waiting = small_runs(SYSTEM, CONSTANT, chosen, 2000, seed=1)
    assert np.array_equal(out["times"], times)
    np.testing.assert_allclose(out["dt"], chosen.pair * waiting, rtol=1e-14)
    # Each of V vacancies changes whole bonds: steps of 2 V / n_i of a like pair.
    steps = out["increments"] / (2 * 8 / 2728)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert (steps != 0).mean() > 0.5
    # Eight vacancies have at most eight times eight neighbours among three times 2728 atoms.
    near = out["vacancy_neighbours"]
    assert np.all(near > 0)
    assert 2728 * near.sum() <= 64 + 1e-9


def test_the_same_seed_gives_the_same_arrays() -> None:
    first, again, other = (pairs_at(SYSTEM, CONSTANT, plan(), 500, seed=s) for s in (4, 4, 5))
    for name, array in first.items():
        assert np.array_equal(array, again[name]), name
    for name in ("z0", "increments", "dt", "path"):
        assert not np.array_equal(first[name], other[name]), name
    # A state depends on its number, not on how many there are.
    more = pairs_at(SYSTEM, CONSTANT, plan(states=20), 500, seed=4)
    for name in ("z0", "increments", "dt"):
        assert np.array_equal(more[name][:12], first[name]), name


def test_z0_is_the_order_of_the_states(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the relaxed large states, caught on their way, counted bond by bond."""
    seen: list[np.ndarray] = []
    evolve = made.partial_evolution

    def spy(states: np.ndarray, *rest: Any, **options: Any) -> Any:
        seen.append(states.copy())
        assert (options["patch"], options["repeats"]) == (16, 4)
        return evolve(states, *rest, **options)

    monkeypatch.setattr(made, "partial_evolution", spy)
    out = pairs_at(SYSTEM, CONSTANT, plan(), 500, seed=3)
    (states,) = seen
    sites = states[:, is_site((32, 32, 32))]
    counts = [np.bincount(row, minlength=4).tolist() for row in sites]
    assert counts == [list(counts_of(8192, 8))] * 12 == [[8, 2728, 2728, 2728]] * 12
    sro = short_range_order(whole_bonds(states, 4))
    np.testing.assert_allclose(out["z0"], independent(sro), rtol=1e-14)
    # The definition, for one of them.
    grid, like = states[7], 0
    for step in np.argwhere(np.ones((2, 2, 2))) * 2 - 1:
        other = np.roll(grid, tuple(step), (0, 1, 2))
        like += ((grid == 2) & (other == 2)).sum()
    assert out["z0"][7, 1] == pytest.approx(like / 2728 - 8 / 3)


def test_starts_and_changes_without_a_preference_have_none() -> None:
    """Where all barriers are equal, all arrangements are equally likely at any time.

    Random states then stay random. Two sites of shifted blocks of one small state hold the same
    element as often as two sites of that state do: 341 340 / (1024 1023) times. Increments have
    mean zero but for what the patches of one state forget: nothing.
    """
    starts, changes = [], []
    for seed in range(20):
        out = pairs_at(SYSTEM, CONSTANT, plan(alike=1.0, seeds=8, states=30), 5000, seed=seed)
        starts.append(out["z0"].mean(axis=0))
        changes.append(out["increments"].mean(axis=(0, 1)))
    # Relaxation brings them towards random states of 8192 sites, which differ little.
    small, large = 8 * 340 / 1023 - 8 / 3, 8 * 2727 / 8191 - 8 / 3
    for values, low, high in ((starts, small, large), (changes, 0.0, 0.0)):
        error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
        mean = np.mean(values, axis=0)
        assert np.all(mean > low - Z_CEILING * error)
        assert np.all(mean < high + Z_CEILING * error)
    assert np.all(np.std(starts, axis=0) < 0.1)


@pytest.mark.parametrize(("alike", "near"), [(1.0, 2), (0.0, 2), (0.0, 0), (0.4, 3)])
def test_pools_of_snapshots(alike: float, near: int) -> None:
    """One snapshot, or all lattices at so many frames before and after a common one."""
    chosen, members = plan(alike=alike, near=near, frames=20), np.arange(3000)
    pools = made._pools(chosen, members, seed=1)
    assert pools.shape == (3000, 2)
    start, stop = pools.T
    assert start.min() >= 0
    assert stop.max() <= 21 * 3
    assert np.all(start < stop)
    one = stop - start == 1
    assert abs(one.mean() - alike) < Z_CEILING * np.sqrt(alike * (1 - alike) / 3000) + 1e-9
    assert len(np.unique(start[one])) == (63 if alike else 0)
    frames = np.stack([start[~one] // 3, stop[~one] // 3 - 1])
    assert np.all(start[~one] % 3 == 0)
    assert np.all(stop[~one] % 3 == 0)
    assert np.all(frames[1] - frames[0] <= 2 * near)
    inside = (frames[0] > 0) & (frames[1] < 20)
    assert np.all((frames[1] - frames[0])[inside] == 2 * near)
    if alike < 1:
        middle = np.where(frames[0] > 0, frames[0] + near, frames[1] - near)
        assert set(middle) == set(range(21))  # any frame, first and last too
    assert np.array_equal(made._pools(chosen, members[7:9], seed=1), pools[7:9])


@pytest.mark.parametrize("late", [0.0, 0.7, 1.0])
def test_a_share_of_the_states_is_late(late: float) -> None:
    """Of the second half of the time, the k-th of 20 frames being at k^2 / 400: from the 15th on.

    The others are of any time, six of its 21 frames late ones as well, and all frames of either
    kind are equally likely.
    """
    chosen, members = plan(alike=1.0, late=late, frames=20), np.arange(30_000)
    frames = made._pools(chosen, members, seed=2)[:, 0] // 3
    share = (late * np.repeat([0, 1 / 6], [15, 6]) + (1 - late) / 21) * len(members)
    seen = np.bincount(frames, minlength=21)
    assert np.all(abs(seen - share) <= Z_CEILING * np.sqrt(share))


def test_runs_longer_than_their_pilot_last_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2000 hops each, by pilots of 500 hops: as long as those of 500 hops, four times."""
    short = small_runs(SYSTEM, CONSTANT, plan(), 500, seed=1)[1]
    monkeypatch.setattr(made, "PILOT", 500)
    assert np.array_equal(small_runs(SYSTEM, CONSTANT, plan(), 500, seed=1)[1], short)
    np.testing.assert_allclose(small_runs(SYSTEM, CONSTANT, plan(), 2000, seed=1)[1], 4 * short)


def test_blocks_come_from_their_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alike: all eight blocks of a state are one snapshot, so their orders agree."""
    seen: list[np.ndarray] = []
    relax = made.local_relax

    def spy(states: np.ndarray, *rest: Any, **options: Any) -> Any:
        seen.append(states.copy())
        return relax(states, *rest, **options)

    monkeypatch.setattr(made, "local_relax", spy)
    chosen = plan(alike=1.0)
    pairs_at(SYSTEM, CONSTANT, chosen, 500, seed=3)
    snapshots, *_ = small_runs(SYSTEM, CONSTANT, chosen, 500, seed=3)
    known = whole_bonds(snapshots.reshape(-1, 16, 16, 16), 4)
    for state in seen[0]:
        blocks = state.reshape(2, 16, 2, 16, 2, 16).transpose(0, 2, 4, 1, 3, 5)
        bonds = whole_bonds(np.ascontiguousarray(blocks).reshape(8, 16, 16, 16), 4)
        assert np.all(bonds == bonds[0])
        assert (known == bonds[0]).all(axis=(1, 2)).any()


def test_temperatures_together() -> None:
    chosen = plan(states=5)
    data = {t: pairs_at(Alloy(t), CONSTANT, chosen, 500, seed=1) for t in (1500.0, 2000.0, 2500.0)}
    pairs = joined(data, chosen)
    assert pairs.z0.shape == (15, 3)
    assert pairs.increments.shape == (15, 4, 3)
    assert pairs.temperature.tolist() == [1500.0] * 5 + [2000.0] * 5 + [2500.0] * 5
    for i, (t, part) in enumerate(data.items()):
        assert np.array_equal(pairs.z0[5 * i : 5 * i + 5], part["z0"]), t
        assert np.array_equal(pairs.dt[5 * i : 5 * i + 5], part["dt"]), t
    assert (pairs.patches, pairs.sites) == (8, 8192)
    assert pairs.counts == (2728.0, 2728.0, 2728.0)
    mean = np.mean([part["vacancy_neighbours"] for part in data.values()], axis=0)
    np.testing.assert_allclose(pairs.vacancy_neighbours, mean)


def test_temperatures_without_moves_are_left_out() -> None:
    still = np.zeros((10, 2, 3))
    moved = still.copy()
    moved[:7] = 0.1
    data = {300.0: {"increments": still}, 2000.0: {"increments": moved}}
    assert list(moving(data)) == [2000.0]
