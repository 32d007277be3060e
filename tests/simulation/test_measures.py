"""Observables of one's own, of every system, with the same bits on any number of ranks."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

import mpiflow
from mpiflow import Observable, Trajectory, observables, record
from mpiflow.commands import verify
from mpiflow.core.errors import InputError
from mpiflow.core.parts import exact_sum
from mpiflow.files import checkpoint
from mpiflow.run.stopping import Keep
from mpiflow.simulation import catalogue
from mpiflow.simulation.base import Simulated
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw
from mpiflow.systems.kac import kac_kernel

#: Small systems of each kind: options, and how far they run. Sides are no powers of 2, so that
#: tiles of ranks differ.
SYSTEMS: dict[str, dict[str, Any]] = {
    "plain": {"system": "ising", "size": "24x18", "kernel": "plain"},
    "packed": {"system": "ising", "size": "40x256"},
    "sliced": {"system": "ising", "size": 8, "members": 9},
    "tiled": {"system": "ising", "size": 32, "solver": "tiled-nfold", "tile": 8, "dt": 0.5},
    "many": {"system": "ising", "size": 6, "solver": "nfold", "members": 3},
    "kac": {"system": "kac", "size": "20x18", "gamma": 2, "tau": 0.5},
    "potts": {"system": "potts", "size": "14x18", "states": 3},
    "blume-capel": {"system": "blume-capel", "size": "14x18", "members": 2},
    "alloy": {"system": "alloy", "cells": "16x4x4", "vacancies": 4, "tile": "8x8x8",
              "solver": "tiled", "temperature": 2000},
    "curie-weiss": {"system": "curie-weiss", "size": 8, "members": 2},
    "chain": {"system": "linear-chain", "size": 9},
    "lines": {"system": "predator-prey", "size": 10, "members": 3},
    "field": {},
    "fields": {"members": 3},
}  # fmt: skip
ENDS = {"alloy": 2e-11, "chain": 0.02, "lines": 0.01}
#: Those whose states are whole numbers on a square lattice.
SPINS = ("plain", "packed", "sliced", "tiled", "many", "kac", "potts", "blume-capel")
FIELDS = ("field", "fields")


def made(name: str, comm: MPI.Intracomm) -> Simulated:
    if name in FIELDS:
        law, kernel, members = ExactLaw(1.25), kac_kernel(2.0), SYSTEMS[name].get("members", 1)
        field = StochasticField(law, kernel, (12, 10), block=4, members=members, comm=comm)
        field.set(0.25)
        return FieldSimulation(field, 0, members)
    options = {"out": "unused.h5", "time": ENDS.get(name, 1.0), "seed": 5, **SYSTEMS[name]}
    if options["system"] not in ("linear-chain", "predator-prey"):
        options.setdefault("temperature", 2.0)
    config = catalogue.options(options["system"])(**options)
    return catalogue.build(config, comm).sim


def of_anything(name: str) -> dict[str, Any]:
    """Observables that any system can have."""
    chosen: dict[str, Any] = {
        "wave": Observable(wave, units="m", long_name="mean of a sine"),
        "waves": Observable(wave, kind="sum"),
        "positive": positive,
        "both": Observable(both, dims={"sign": ["up", "down"]}),
    }
    if name not in ("curie-weiss", "chain", "lines"):
        chosen["product"] = Observable(product, halo=2)
        chosen["copy"] = Observable(lambda state: state, kind="field")
    if name in FIELDS:
        chosen |= {"S": "structure_factor", "C": "correlation:coarse=1"}
    if name in SPINS:
        names = "structure_factor", "correlation", "clusters", "cluster_sizes", "interface_length"
        chosen |= dict(zip(names, names, strict=True))
        chosen["histogram"] = observables.magnetization_histogram(bins=7)
        chosen["blocks"] = "structure_factor:coarse=2:full=true"
    return chosen


def wave(state: np.ndarray) -> np.ndarray:
    return np.sin(0.7 * state + 0.1)


def positive(state: np.ndarray) -> np.ndarray:
    return np.count_nonzero(state > 0, axis=tuple(range(1, state.ndim)))


def both(state: np.ndarray) -> np.ndarray:
    return np.stack([state > 0, state < 0], axis=1)


def product(state: np.ndarray) -> np.ndarray:
    """Of a site and the one two steps along the last axis."""
    inner = (slice(None), *[slice(2, -2)] * (state.ndim - 1))
    return state[inner] * state[(*inner[:-1], slice(4, None))]


def saved(path: Path) -> dict[str, np.ndarray]:
    with Trajectory(path) as run:
        return {name: run[name] for name in run}


@pytest.mark.mpi
@pytest.mark.parametrize("name", SYSTEMS)
def test_files_have_the_same_bits_on_any_ranks(
    name: str, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    end, chosen = ENDS.get(name, 1.0), of_anything(name)
    run = functools.partial(record, time=end, observables=chosen, progress=False)
    path = mpi_tmp_path / "many.h5"
    sim = made(name, comm)
    run(sim, path)
    state = sim.gather()
    if comm.rank > 0:
        return
    run(made(name, MPI.COMM_SELF), mpi_tmp_path / "one.h5")
    many, one = saved(path), saved(mpi_tmp_path / "one.h5")
    assert many.keys() == one.keys()
    for variable, values in one.items():
        assert many[variable].dtype == values.dtype
        assert many[variable].tobytes() == values.tobytes(), variable
    assert state is not None
    _check_values(state, {n: values[-1] for n, values in many.items()}, sim)
    assert verify.verify_file(path).good


def _check_values(state: np.ndarray, found: dict[str, np.ndarray], sim: Simulated) -> None:
    """Against the whole state, by hand."""
    sites = np.ones(sim.lattice.shape, bool)
    if sim.lattice.ndim == 3:
        x, y, z = np.indices(sim.lattice.shape)
        sites = ((x - y) % 2 == 0) & ((x - z) % 2 == 0)
    rows = state[:, sites]
    sums = exact_sum(wave(rows), int(sites.sum()))
    axes = tuple(range(1, state.ndim))
    shift = np.roll(state, -2, axis=-1)
    wanted = {
        "wave": sums / sites.sum(),
        "waves": sums,
        "positive": positive(state),
        "both": np.stack([rows > 0, rows < 0], 1).sum(2) / sites.sum(),
        "product": exact_sum((state * shift)[:, sites], int(sites.sum())) / sites.sum(),
        "copy": state,
    }
    if "interface_length" in found:
        down, right = (np.roll(state, -1, axis) for axis in (1, 2))
        wanted["interface_length"] = (state != down).sum(axes) + (state != right).sum(axes)
        wanted["clusters"] = np.array([clusters_by_hand(one)[0] for one in state])
        wanted["cluster_sizes"] = np.array([clusters_by_hand(one)[1] for one in state])
        means = state.mean(axes)
        place = np.floor((means + 1) * 3.5).clip(0, 6)
        wanted["histogram"] = np.bincount(place.astype(int), minlength=7)
    for name, values in wanted.items():
        if name in found:
            one = values[0] if sim.members == 1 and name != "histogram" else values
            assert np.array_equal(found[name], one), name
    if "blocks" in found:  # Parseval
        b, ly, lx = state.shape
        blocks = state.reshape(b, ly // 2, 2, lx // 2, 2).mean((2, 4))
        power = found["blocks"].reshape(b, ly // 2, lx // 2)
        np.testing.assert_allclose(power.mean((1, 2)), (blocks**2).mean((1, 2)), rtol=1e-12)


def clusters_by_hand(state: np.ndarray) -> tuple[list[float], np.ndarray]:
    """From the graph of all bonds between equal neighbours of a periodic lattice."""
    number = np.arange(state.size).reshape(state.shape)
    ends = []
    for axis in (0, 1):
        same = state == np.roll(state, -1, axis)
        ends.append((number[same], np.roll(number, -1, axis)[same]))
    a, b = (np.concatenate(e) for e in zip(*ends, strict=True))
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(state.size,) * 2)
    count, labels = connected_components(graph, directed=False)
    sizes = np.bincount(labels)
    bins = np.zeros(32, np.int64)
    np.add.at(bins, np.floor(np.log2(sizes) + 1e-9).astype(int), 1)
    return [count, sizes.max(), float((sizes**2).sum()) / state.size], bins


def test_the_file_says_what_observables_are(tmp_path: Path) -> None:
    sim, out = made("plain", MPI.COMM_SELF), tmp_path / "run.h5"
    record(sim, out, time=1, observables=of_anything("plain"), progress=False)
    with Trajectory(out) as run:
        wave = run.variables["wave"]
        assert (wave.units, wave.long_name) == ("m", "mean of a sine")
        assert run.variables["product"].long_name.startswith("Of a site and the one two steps")
        assert run.variables["both"].dims == ("sign",)
        assert run["sign"].tolist() == ["up", "down"]
        assert "mean of a sine (m)" in run.summary()
        k = run["k"]
        assert k[0] == pytest.approx(2 * math.pi / 18)
        assert run.attributes["decomposition_invariant"] == 1


# -- mistakes ---------------------------------------------------------------------------------


def fails(state: np.ndarray) -> np.ndarray:
    raise ZeroDivisionError("of one's own")


MISTAKES: dict[str, tuple[Any, str]] = {
    "nothing": (lambda s: None, "None.*numbers of shape"),
    "text": (lambda s: "m", "numbers of shape"),
    "shape": (lambda s: s[:, :3], r"int8\(1, 3, .*numbers of shape .*of sites"),
    "float": (lambda s: s.mean((1, 2)), "added up exactly"),
    "nan": (lambda s: s / 0.0, "finite numbers"),
    "raises": (fails, "ZeroDivisionError: of one's own in .*test_measures.py"),
    "dims": (Observable(positive, dims={"two": 2}), r"numbers of shape \(1, 2"),
    "complex": (lambda s: s * 1j, "complex128"),
    "blocks": (Observable(lambda s: s[:, ::2], kind="field", coarse=2), "of sites"),
    "halo": (Observable(wave, halo=100), "observable halo='halo=100'"),
    "coarse": (Observable(wave, of="coarse", coarse=5), "coarse"),
    "energy": (wave, "not mpiflow's own"),
    "temperature": (wave, "not mpiflow's own"),
    "my_profile": (wave, "not mpiflow's own"),
    "no name": (wave, "letter"),
    "clusterz": ("clusterz", "Did you mean clusters"),
    "option": ("clusters:bins=2", "no options"),
    "number": (7, "a function, an Observable"),
}


@pytest.mark.mpi
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_said_on_all_ranks_before_there_is_a_file(
    name: str, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    observable, said = MISTAKES[name]
    sim, out = made("plain", comm), mpi_tmp_path / "run.h5"
    with (
        np.errstate(divide="ignore", invalid="ignore"),
        pytest.raises(InputError, match=said) as caught,
    ):
        record(sim, out, time=1, observables={name: observable}, progress=False)
    everyone = comm.allgather(str(caught.value))
    assert set(everyone) == {everyone[0]}
    assert not out.exists()


@pytest.mark.mpi
def test_a_later_mistake_leaves_the_frames_before(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    calls: list[int] = []

    def tires(state: np.ndarray) -> np.ndarray:
        calls.append(1)
        if len(calls) > 2 and comm.rank == comm.size - 1:
            raise ValueError("tired")
        return state

    out = mpi_tmp_path / "run.h5"
    with pytest.raises(InputError, match="ValueError: tired"):
        record(made("plain", comm), out, time=4, save_every=1, progress=False,
               observables={"m": tires})  # fmt: skip
    comm.Barrier()
    with Trajectory(out) as run:
        assert (len(run), run.complete) == (2, False)


def test_reals_of_whole_members_are_taken_where_no_member_is_cut(tmp_path: Path) -> None:
    def mean(state: np.ndarray) -> np.ndarray:
        return state.mean(axis=tuple(range(1, state.ndim)))

    for name in ("lines", "many", "chain"):
        out = tmp_path / f"{name}.h5"
        observable = {"average": mean}
        record(made(name, MPI.COMM_SELF), out, time=ENDS.get(name, 1.0), observables=observable,
               progress=False)  # fmt: skip
        assert saved(out)["average"].dtype == np.float64


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"kind": "mode"}, "kind"),
        ({"of": "spins"}, "of"),
        ({"halo": -1}, "halo"),
        ({"halo": 1, "of": "coarse"}, "halo"),
        ({"coarse": 2}, "coarse"),
        ({"pooled": True, "kind": "mean"}, "pooled"),
        ({"kind": "field", "of": "coarse"}, "kind"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError) as caught:
        Observable(wave, **options)
    assert caught.value.name == name


# -- to go on ---------------------------------------------------------------------------------


def stopped(out: Path, comm: MPI.Intracomm, chosen: Any, **options: Any) -> None:
    """A run to time 2, with its checkpoint."""
    record(made("plain", comm), out, time=2, save_every=1, observables=chosen, keep=Keep(),
           progress=False, **options)  # fmt: skip


@pytest.mark.mpi
def test_a_resumed_run_is_the_one_that_was_not_stopped(
    comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    chosen = of_anything("plain")
    out, whole = mpi_tmp_path / "run.h5", mpi_tmp_path / "whole.h5"
    stopped(out, comm, chosen)
    point = checkpoint.newest(out, comm)
    record(made("plain", comm), out, time=4, save_every=1, observables=chosen, point=point,
           progress=False)  # fmt: skip
    record(made("plain", comm), whole, time=4, save_every=1, observables=chosen, progress=False)
    one, other = saved(out), saved(whole)
    assert one.keys() == other.keys()
    assert all(one[n].tobytes() == other[n].tobytes() for n in one)


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "none": lambda chosen: None,
    "fewer": lambda chosen: {"wave": chosen["wave"]},
    "more": lambda chosen: {**chosen, "other": positive},
    "another function": lambda chosen: {**chosen, "wave": positive},
    "another option": lambda chosen: {**chosen, "histogram": "magnetization_histogram:bins=8"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_goes_on_with_its_own_observables_only(tmp_path: Path, change: str) -> None:
    chosen, out = of_anything("plain"), tmp_path / "run.h5"
    stopped(out, MPI.COMM_SELF, chosen)
    point = checkpoint.newest(out, MPI.COMM_SELF)
    before = out.read_bytes()
    with pytest.raises(InputError, match="the observables that the run was started with"):
        record(made("plain", MPI.COMM_SELF), out, time=4, save_every=1, point=point,
               observables=CHANGES[change](chosen), progress=False)  # fmt: skip
    assert out.read_bytes() == before


def test_options_name_observables(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    options = catalogue.options("ising")
    given = "clusters,structure_factor:coarse=2"
    config = options(
        size=16, temperature=2, time=2, save_every=1, out=out, quiet=True, observables=given
    )
    mpiflow.simulate(config, MPI.COMM_SELF)
    longer = config.model_copy(update={"time": 3, "resume": True})
    mpiflow.simulate(longer, MPI.COMM_SELF, changed={"time"})
    with Trajectory(out) as run:
        assert len(run) == 4
        assert run["structure_factor"].shape == (4, 4)
        assert run.config["observables"] == ["clusters", "structure_factor:coarse=2"]
    with pytest.raises(InputError, match="a name of its own for each"):
        options(size=16, temperature=2, time=2, out=out, observables="clusters,clusters")
    two = "correlation,half=correlation:coarse=2"
    assert options(size=16, temperature=2, time=2, out=out, observables=two).observables
    with pytest.raises(InputError, match="Did you mean clusters"):
        options(size=16, temperature=2, time=2, out=out, observables="cluster")


def test_twins_of_commands_take_functions(tmp_path: Path) -> None:
    out, whole, seen = tmp_path / "run.h5", tmp_path / "whole.h5", []
    options = {"size": 8, "temperature": 2, "save_every": 1, "kernel": "plain", "quiet": True}
    own = {"observables": {"wave": wave}, "callbacks": [lambda sim, s: seen.append(s.time)]}
    mpiflow.simulate("ising", MPI.COMM_SELF, time=2, out=out, **options, **own)
    with pytest.raises(InputError, match="the observables that the run was started with"):
        mpiflow.resume(out, MPI.COMM_SELF, time=4)
    mpiflow.resume(out, MPI.COMM_SELF, time=4, **own)
    assert seen == [0, 1, 2, 3, 4]
    mpiflow.simulate("ising", MPI.COMM_SELF, time=4, out=whole, **options, **own)
    assert saved(out)["wave"].tobytes() == saved(whole)["wave"].tobytes()
