"""A Kac model on a CUDA device: the bits of the CPU. ``make test-cudasim``, or a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import simulator
from exact import has_cuda
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.device import Device, simulated
from mpiflow.core.errors import InputError
from mpiflow.core.slabs import Slabs
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.solvers.kac.cuda import CudaSites, edge_rows
from mpiflow.solvers.kac.fields import Fields
from mpiflow.systems import kac
from mpiflow.systems.kac import Kac, KacKernel

Run = Callable[..., subprocess.CompletedProcess[str]]

SUITE = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__)

needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")


def made(device: str, gamma: float, size: tuple[int, int], **options: Any) -> KacSimulation:
    options = {"seed": 2**61 + 3, "solver": "sublattice", **options}
    sim = KacSimulation(Kac(0.8, gamma, 0.1), size, device=device, **options)
    sim.set_spins(initial.independent, magnetization=0.2)
    return sim


def result(sim: KacSimulation, durations: tuple[float, ...]) -> dict[str, Any]:
    """All that a run leaves: in pieces, as between frames."""
    for duration in durations:
        sim.advance(duration)
    return {"spins": sim.spins().copy(), "operations": sim.operations} | sim.measure().scalars()


def require_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    for name, values in one.items():
        assert np.array_equal(values, other[name]), name


SOLVERS = {
    "sublattice": ({"solver": "sublattice", "tau": 0.5}, (1.0, 0.5)),
    "midpoint": ({"solver": "midpoint", "tau": 0.4}, (0.4, 0.4)),
    "tau-leap": ({"solver": "tau-leap", "tau": 0.4}, (0.4, 0.4)),
    "eps": ({"solver": "tau-leap", "eps": 0.4}, (0.7, 0.4)),
}


@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_bits_of_the_cpu(solver: str, gamma: float) -> None:
    """Lattices whose sides no group of four divides, one as narrow as the kernel; several calls."""
    options, durations = SOLVERS[solver]
    size = (17, 15) if gamma == 2 else (10, 13)
    sims = [made(device, gamma, size, **options) for device in ("cpu", "cuda")]
    start = sims[0].spins().copy()
    there, here = (result(sim, durations) for sim in sims)
    require_same(there, here)
    assert (sims[0].step, sims[0].time) == (sims[1].step, sims[1].time)
    assert (here["spins"] != start).any()
    assert (here["flips"] >= (here["spins"] != start).sum(axis=(1, 2))).all()


@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_bits_of_members_in_a_field_of_the_site(solver: str) -> None:
    """Each member has noise, and leaps, of its own; h(x) decides half of the sites."""
    options, durations = SOLVERS[solver]
    size = (9, 10)
    field = np.random.default_rng(1).normal(0, 1.5, size)
    sims = [
        made(device, 0.5, size, members=3, site_field=field, comm=MPI.COMM_SELF, **options)
        for device in ("cpu", "cuda")
    ]
    there, here = (result(sim, durations[:1]) for sim in sims)
    require_same(there, here)
    assert not np.array_equal(here["spins"][0], here["spins"][1])
    assert np.array_equal(*(sim.solver.steps for sim in sims))  # type: ignore[union-attr]


@pytest.mark.validate
def test_three_ranks_in_the_simulator(mpirun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slabs of five and six rows: less than the widest kernel reaches."""
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    done = mpirun(3, *SUITE, "-m", "mpi and kernel", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.mark.mpi
@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize(
    ("solver", "gamma"),
    [("sublattice", 0), ("sublattice", 2), ("midpoint", 0.5), ("tau-leap", 1), ("eps", 2)],
)
def test_the_bits_of_one_lattice_on_all_ranks(
    comm: MPI.Intracomm, solver: str, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of some slabs an inside is added up while rows travel: before they are there, or later."""
    if solver == "midpoint":
        simulator.hold_back_insides(monkeypatch)
    options, durations = SOLVERS[solver]
    size = (17, 16)
    field = np.random.default_rng(2).normal(0, 0.5, size)
    cut = made("cuda", gamma, size, comm=comm, site_field=field, **options)
    whole = made("cpu", gamma, size, comm=MPI.COMM_SELF, site_field=field, **options)
    here, there = result(cut, durations), result(whole, durations)
    rows = cut.local_box()[0]
    there["spins"] = there["spins"][:, rows]
    there["operations"] = there["operations"] // 17 * (rows.stop - rows.start)
    require_same(there, here)


@pytest.mark.mpi(min_size=2)
@pytest.mark.parametrize("reach", [1, 3, 7])
def test_edge_rows_are_all_that_others_need(comm: MPI.Intracomm, reach: int) -> None:
    """Slabs of many rows and of one."""
    heights = [(1, 30, 9, 14, 2)[r % 5] for r in range(comm.size)]
    edges = np.concatenate([[0], np.cumsum(heights)])
    slabs = Slabs(comm, (int(edges[-1]), 3), edges.tolist())
    field = np.arange(3 * edges[-1]).reshape(-1, 3)[slabs.rows]
    full = slabs.around(field, reach, reach)
    few = edge_rows(slabs, reach)
    n, kept = len(field), few.local[0]
    assert kept == min(n, 2 * reach)
    mine = field if kept == n else np.concatenate([field[:reach], field[-reach:]])
    around = few.around(mine, reach, reach)
    assert np.array_equal(around[:reach], full[:reach])
    assert np.array_equal(around[reach + kept :], full[reach + n :])


# -- parts -------------------------------------------------------------------------------------


def weighted(spins: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Sums of w_|dy| w_|dx| s over all sites, that at the centre too; (B, n, nx) int64."""
    reach = len(weights) - 1
    for axis in (1, 2):
        spins = sum(
            int(weights[abs(k)]) * np.roll(spins.astype(np.int64), -k, axis)
            for k in range(-reach, reach + 1)
        )
    return spins


@pytest.mark.kernel
@needs_cuda
@pytest.mark.parametrize(
    "weights", [[10923, 10922], [5, 5, 5, 1, 1], [9, 7, 4, 4, 2, 1]], ids=["largest", "box", "any"]
)
@pytest.mark.parametrize("aligned", [False, True])
def test_sums_over_chunks_of_rows(
    monkeypatch: pytest.MonkeyPatch, weights: list[int], aligned: bool
) -> None:
    """The largest weights there may be, of aligned spins too; a last chunk that is not full."""
    kernel = KacKernel(1.0, np.array(weights))
    monkeypatch.setattr(kac, "kac_kernel", lambda gamma: kernel)
    spins = np.random.default_rng(3).choice(np.array([-1, 1], np.int8), (2, 14, 11))
    if aligned:
        spins = np.ones_like(spins)
        spins[:, 7:] = -1
    block = Block.periodic(spins, np.arange(2), device=Device("cuda"))
    sites = CudaSites(Fields(Kac(1.0, 1.0)), block, 1, 0)
    sites._chunk = 8
    sites.begin(np.zeros(2, np.int64), np.zeros(2, np.uint64))
    sites.add_up(sites.spins)
    assert np.array_equal(block.device.get(sites._sums), weighted(spins, kernel.weights))


@pytest.mark.kernel
@needs_cuda
def test_what_a_device_cannot_do() -> None:
    with pytest.raises(InputError, match=r"^method='fft'.*'steps'"):
        made("cuda", 1, (16, 16), method="fft")
    with pytest.raises(InputError, match=r"^device='cuda'.*Gillespie"):
        made("cuda", 1, (16, 16), solver="gillespie")


@pytest.mark.kernel
@needs_cuda
@pytest.mark.skipif(simulated(), reason="too large for the simulator")
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gamma", [16, 64])
def test_large_lattices_on_a_gpu(solver: str, gamma: float) -> None:
    """Many chunks and blocks of threads."""
    options, durations = SOLVERS[solver]
    sims = [made(device, gamma, (1001, 2050), **options) for device in ("cpu", "cuda")]
    require_same(*(result(sim, durations) for sim in sims))
