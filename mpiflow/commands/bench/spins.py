"""Speed of the parts of mpiflow, measured on the ranks that are there.

Every number is the median over a few repeats, with the smallest and largest
beside it. With several ranks the work of all of them is divided by the time of
the slowest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from mpiflow import initial
from mpiflow.commands.bench import alloy as alloy_bench
from mpiflow.commands.bench import chains as chains_bench
from mpiflow.commands.bench import field as field_bench
from mpiflow.commands.bench import files as files_bench
from mpiflow.commands.bench import kac as kac_bench
from mpiflow.commands.bench import learning as learning_bench
from mpiflow.commands.bench import ranks as ranks_bench
from mpiflow.commands.bench import start as start_bench
from mpiflow.commands.bench.meter import Meter, Row
from mpiflow.commands.bench.ranks import rows_to_each
from mpiflow.core.block import Block
from mpiflow.core.device import Device, kernel, rule
from mpiflow.core.errors import InputError
from mpiflow.core.gpu import chosen, computing_on
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import stream_key, threefry
from mpiflow.core.packed import BAND, WORD_SITES, PackedBlock
from mpiflow.core.parallel import agreed
from mpiflow.learn.closure.lanes import PAIRS, partial_evolutions
from mpiflow.scaleup.spins import partial_evolution
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.solvers.spins.lane_block import LaneBlock
from mpiflow.solvers.spins.nfold import NFold
from mpiflow.solvers.spins.sublattice import Sublattice
from mpiflow.solvers.spins.tiled import TiledNFold
from mpiflow.systems.ising import Ising

#: Benchmarks that a GPU may take.
ON_GPUS = ("ising", "ising-exact", "partial-evolution", "kac", "alloy", "field", "learning")
REPEATS = 5
#: Seconds that one repeat should take at least.
LONG_ENOUGH = 0.2
CRITICAL = Ising(temperature=2.269, field=0.05)


def run(
    name: str,
    comm: MPI.Intracomm,
    *,
    device: str = "cpu",
    small: bool = False,
    barriers: str | None = None,
) -> list[Row]:
    """All cases of one benchmark. Collective; every rank gets the rows.

    Parameters
    ----------
    name : a key of :data:`BENCHES`
    barriers : of the alloy benchmark, a model as of ``mpiflow simulate alloy``
    small : tiny sizes and a single short repeat, to test the benchmark itself

    Returns
    -------
    rows of ``bench, case, value, unit, min, max``
    """
    if name not in BENCHES:
        raise InputError("bench", name, f"one of {', '.join(BENCHES)}", "Try ising.")
    if device != "cpu" and name not in ON_GPUS:
        raise InputError("device", device, f"'cpu' for the {name} benchmark", "Try ising.")
    if barriers is not None and name != "alloy":
        raise InputError("barriers", barriers, "none but for the alloy benchmark", "Leave it out.")
    meter = Meter(name, comm, repeats=1 if small else REPEATS, seconds=0 if small else LONG_ENOUGH)
    with learning_bench.on(device, comm) if name == "learning" else computing_on(device, comm):
        if name == "alloy":
            _alloy(meter, device, small, barriers or "default")
        else:
            BENCHES[name](meter, device, small)
    return meter.rows


def table(rows: list[Row]) -> str:
    """The rows as aligned text."""
    cells = [["bench", "case", "value", "unit", "min", "max"]]
    cells += [[_cell(row[column]) for column in cells[0]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# -- the benchmarks ------------------------------------------------------------------------


def _ising(meter: Meter, device: str, small: bool) -> None:
    """Updates (attempts) per nanosecond, of large lattices by each kernel and of small ones."""
    on = Device(device, chosen().gpu)
    # Each length of a step has thresholds to be compiled in: a test needs one.
    lengths = (math.inf,) if small else (math.inf, 0.25)
    for side in (128,) if small else (1024, 4096, 32768) if on.is_cuda else (1024, 4096):
        lattice = Lattice((8 * meter.comm.size if small else side, side))
        layout = rows_to_each(lattice, meter.comm.size)
        packed = PackedBlock.tile(layout, meter.comm, device=on)
        initial.independent(packed, seed=1)
        plain = None
        if side <= 4096:  # beyond, its bytes take longer to fill than the others to measure
            plain = Block.tile(layout, meter.comm, device=on)
            initial.independent(plain, seed=1)
        for dt in lengths:
            case = f"{side}^2, dt={dt:g}"
            for field in (CRITICAL, replace(CRITICAL, field=0.0)):
                name = f"{case}, h={field.field:g}, packed"
                _sublattice(meter, name, packed, Sublattice(field, dt, compile_in=True))
            general = Sublattice(CRITICAL, dt, compile_in=False)
            _sublattice(meter, f"{case}, h=0.05, packed, general", packed, general)
            if plain is None:
                continue
            _sublattice(meter, f"{case}, h=0.05, plain", plain, Sublattice(CRITICAL, dt))
            meter.ratio(f"{case}, h=0.05, packed", f"{case}, h=0.05, plain")
    for side, batch in ((4, 16),) if small else ((16, 8192), (64, 1024), (64, 320)):
        states = np.ones((batch, side, side), np.int8)
        boxes = Block.periodic(states, meter.comm.rank * batch + np.arange(batch), device=on)
        initial.independent(boxes, seed=1)
        for dt in lengths:
            solver = Sublattice(CRITICAL, dt, compile_in=True)
            _sublattice(meter, f"{batch} of {side}^2, dt={dt:g}, sliced", boxes, solver)


def _sides(meter: Meter, device: str, small: bool) -> None:
    """Lattices of sides as people type them against those of the next whole word, a site."""
    on, done = Device(device, chosen().gpu), list[int]()
    for side in (64,) if small else (64, 66, 100, 130, 200, 300, 500, 1000, 2000):
        whole = -(-side // WORD_SITES) * WORD_SITES
        for n in [n for n in (side, whole) if n not in done]:
            done.append(n)
            block = PackedBlock.periodic(Lattice((n, n)), np.array([meter.comm.rank]), device=on)
            initial.independent(block, seed=1)
            _sublattice(meter, f"{n}^2", block, Sublattice(CRITICAL, math.inf, compile_in=False))
        meter.ratio(f"{side}^2", f"{whole}^2")


def _sublattice(meter: Meter, case: str, block: Block | PackedBlock, solver: Sublattice) -> None:
    def work(steps: int) -> int:
        solver.chain(block, steps, seed=1, opening=True)
        return steps * block.batch * math.prod(block.shape)

    meter.rate(case, "updates/ns", 1e-9, work)


def _scaling(meter: Meter, device: str, small: bool) -> None:
    """All ranks together against one rank alone, with as many sites on each; and a model."""
    ranks_bench.scaling(meter, CRITICAL, small)


def _ising_exact(meter: Meter, device: str, small: bool) -> None:
    """Events of the n-fold way per microsecond, a lattice of its own on each rank.

    The tiled solver in windows of one unit of time, at Tc and in a cold lattice that coarsens.
    """
    on = Device(device, chosen().gpu)
    for side in () if on.is_cuda else (8,) if small else (64, 256, 1024):
        block = Block.periodic(np.ones((1, side, side), np.int8), np.array([meter.comm.rank]))
        initial.independent(block, seed=1)
        solver = NFold(Ising(temperature=2.269))
        solver.advance(block, seed=1, flips=(2 if small else 20) * side**2)  # forget the start

        def work(rounds: int, block: Block = block, solver: NFold = solver) -> int:
            events = rounds * 20 * math.prod(block.shape)
            solver.advance(block, seed=1, flips=events)
            return events

        meter.rate(f"{side}^2, T=2.269", "events/us", 1e-6, work)
    side, warm = (8, 1) if small else (16384 if on.is_cuda else 2048, 20)
    for temperature in (2.269, 1.0):
        member = np.array([meter.comm.rank])
        block = Block.periodic(np.ones((1, side, side), np.int8), member, device=on)
        initial.independent(block, seed=1)
        tiled = TiledNFold(Ising(temperature), window=1.0, tile=4 if small else 64)
        step = warm
        tiled.advance(block, warm, seed=1)

        def windows(rounds: int, block: Block = block, tiled: TiledNFold = tiled) -> int:
            nonlocal step
            flips = int(tiled.advance(block, rounds, seed=1, first_step=step).sum())
            step += rounds
            return max(1, flips)

        meter.rate(f"tiled, {side}^2, T={temperature}", "events/us", 1e-6, windows)


def _halo(meter: Meter, device: str, small: bool) -> None:
    """Microseconds to fill the halo of a tile from its neighbours, one byte and one bit a spin."""
    ranks = meter.comm.size
    grid = Layout.balanced(Lattice((2**15, 2**15)), ranks).ranks_grid
    for side in (128,) if small else (128, 512, 2048, 8192):
        lattice = Lattice(tuple(side * n for n in grid))
        tall = Lattice((side * ranks, side))
        units = (BAND, WORD_SITES)
        for name, tile in (
            ("bytes", Block.tile(Layout(lattice, grid), meter.comm)),
            ("bits", PackedBlock.tile(Layout(lattice, grid, units), meter.comm)),
            ("bits, rows only", PackedBlock.tile(rows_to_each(tall, ranks), meter.comm)),
        ):

            def work(rounds: int, tile: Block | PackedBlock = tile) -> int:
                for _ in range(rounds):
                    tile.fill_halo()
                return rounds

            meter.cost(f"{side}^2 a rank, {name}", "us/exchange", 1e6, work)


def _partial_evolution(meter: Meter, device: str, small: bool) -> None:
    """Microseconds to cut one patch out of a 64^2 lattice and evolve it."""
    count, side = (4, 16) if small else (4096, 64)
    members = meter.comm.rank * count + np.arange(count)
    block = Block.periodic(np.ones((count, side, side), np.int8), members)
    initial.independent(block, seed=1)
    states = np.ascontiguousarray(block.inner())
    cases: list[tuple[int, Any, float]] = [(8, "frozen", 0.5)]
    if not small:
        cases = [(16, "frozen", t) for t in (0.25, 0.5, 1.0)]
        cases += [(16, "wrap", 0.5), (32, "frozen", 0.5)]
    for patch, halo, duration in cases:

        def work(
            rounds: int, patch: int = patch, halo: Any = halo, duration: float = duration
        ) -> int:
            for _ in range(rounds):
                partial_evolution(
                    states, members, CRITICAL, patch, seed=1, halo=halo, duration=duration, dt=0.25
                )
            return rounds * count

        meter.rate(
            f"{patch}^2 of {side}^2, {halo}, t={duration:g}, dt=0.25", "pairs/us", 1e-6, work
        )
    if device != "cpu":
        lattices = LaneBlock.periodic(states, members, Device(device, chosen().gpu))
        together, patch = 1 if small else PAIRS // count, 8 if small else 16
        keys = members[:, None] * together + np.arange(together)
        of, solver = np.repeat(np.arange(count), together), Sublattice(CRITICAL, 0.25)

        def pairs(rounds: int) -> int:
            for _ in range(rounds):
                partial_evolutions(lattices, of, keys.ravel(), solver, patch, seed=1)
            return rounds * keys.size

        meter.rate(f"{patch}^2 of {side}^2, counts alone, {keys.size}", "pairs/us", 1e-6, pairs)
    for row in meter.rows:
        row |= {
            "value": 1 / row["value"],
            "unit": "us/pair",
            "min": 1 / row["max"],
            "max": 1 / row["min"],
        }


def _alloy(meter: Meter, device: str, small: bool, barriers: str = "default") -> None:
    """Hops of vacancies per second."""
    with agreed(meter.comm):
        model = load_barrier_model(barriers)
    for case, unit, work in alloy_bench.cases(meter.comm, model, device, small):
        meter.rate(case, unit, 1.0, work)


def _kac(meter: Meter, device: str, small: bool) -> None:
    """Steps of a Kac model, fields and flips, and events."""
    for case, unit, scale, work in kac_bench.cases(meter.comm, device, small):
        meter.cost(case, unit, scale, work)


def _field(meter: Meter, device: str, small: bool) -> None:
    """Steps of a stochastic field."""
    for case, unit, scale, work in field_bench.cases(meter.comm, small):
        meter.cost(case, unit, scale, work)


def _spin_diffusion(meter: Meter, device: str, small: bool) -> None:
    """Chains of two species: steps of the stochastic process, runs of the laws of mean spins."""
    for case, unit, scale, work in chains_bench.cases(meter.comm, small):
        meter.cost(case, unit, scale, work)


def _files(meter: Meter, device: str, small: bool) -> None:
    """Seconds of a frame of spins as bits, and of checkpoints, written and read."""
    for case in files_bench.cases(meter.comm, small):
        meter.cost(*case)


def _learning(meter: Meter, device: str, small: bool) -> None:
    """Training and rollouts of a learned SDE, a model of its own on each rank."""
    for case, unit, scale, work in learning_bench.cases(small):
        (meter.cost if unit == "ms/step" else meter.rate)(case, unit, scale, work)


def _start(meter: Meter, device: str, small: bool) -> None:
    """From nothing to the first result of a run, without kernels and with those of a run before."""
    if meter.comm.size > 1:
        raise InputError("ranks", meter.comm.size, "1 for this one", "Use mpiflow bench start.")
    for case in start_bench.cases(small):
        meter.record(*case)


def _noise(meter: Meter, device: str, small: bool) -> None:
    """64-bit words per nanosecond of our generator and of the one we did not choose."""
    sites = np.arange(64 if small else 4096, dtype=np.uint64)
    out = np.empty((2, sites.size), np.uint64)
    key = stream_key(1, "sublattice")

    for name, fill in (("threefry2x64-13", fill_threefry), ("philox4x32-10", fill_philox)):

        def work(rounds: int, fill: Any = fill) -> int:
            fill(key, np.uint64(0), rounds, sites, out)
            return rounds * out.size

        meter.rate(name, "words/ns", 1e-9, work)


BENCHES: dict[str, Callable[[Meter, str, bool], None]] = {
    "ising": _ising,
    "sides": _sides,
    "ising-exact": _ising_exact,
    "halo": _halo,
    "scaling": _scaling,
    "partial-evolution": _partial_evolution,
    "kac": _kac,
    "alloy": _alloy,
    "field": _field,
    "spin-diffusion": _spin_diffusion,
    "files": _files,
    "learning": _learning,
    "start": _start,
    "noise": _noise,
}


# -- generators ----------------------------------------------------------------------------


@kernel
def fill_threefry(
    key: np.ndarray, first: np.uint64, steps: int, sites: np.ndarray, out: np.ndarray
) -> None:
    """Both words of every site, over and over for ``steps`` steps."""
    k0, k1 = key[0], key[1]
    even, odd = out[0], out[1]
    for step in range(steps):
        for i in range(sites.size):
            even[i], odd[i] = threefry(k0, k1, first + np.uint64(step), sites[i])


@rule
def _philox_round(
    x0: np.uint64, x1: np.uint64, x2: np.uint64, x3: np.uint64, key: tuple[np.uint64, np.uint64]
) -> tuple[np.uint64, np.uint64, np.uint64, np.uint64]:
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    p = np.uint64(0xD2511F53) * x0
    q = np.uint64(0xCD9E8D57) * x2
    return (q >> half) ^ x1 ^ key[0], q & low, (p >> half) ^ x3 ^ key[1], p & low


@rule
def _philox_key(k0: np.uint64, k1: np.uint64, number: np.uint64) -> tuple[np.uint64, np.uint64]:
    low = np.uint64(0xFFFFFFFF)
    return (
        (k0 + number * np.uint64(0x9E3779B9)) & low,
        (k1 + number * np.uint64(0xBB67AE85)) & low,
    )


@kernel
def fill_philox(
    key: np.ndarray, first: np.uint64, steps: int, sites: np.ndarray, out: np.ndarray
) -> None:
    """The same amount of noise from Philox4x32-10 [Salmon et al., SC11], to compare speeds.

    Written without a loop over the rounds, as our Threefry, so that it vectorises too.
    """
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    k0, k1 = key[0] & low, key[1] & low
    r0 = _philox_key(k0, k1, np.uint64(0))
    r1 = _philox_key(k0, k1, np.uint64(1))
    r2 = _philox_key(k0, k1, np.uint64(2))
    r3 = _philox_key(k0, k1, np.uint64(3))
    r4 = _philox_key(k0, k1, np.uint64(4))
    r5 = _philox_key(k0, k1, np.uint64(5))
    r6 = _philox_key(k0, k1, np.uint64(6))
    r7 = _philox_key(k0, k1, np.uint64(7))
    r8 = _philox_key(k0, k1, np.uint64(8))
    r9 = _philox_key(k0, k1, np.uint64(9))
    even, odd = out[0], out[1]
    for step in range(steps):
        counter = first + np.uint64(step)
        for i in range(sites.size):
            x0, x1 = counter & low, counter >> half
            x2, x3 = sites[i] & low, sites[i] >> half
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r0)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r1)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r2)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r3)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r4)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r5)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r6)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r7)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r8)
            x0, x1, x2, x3 = _philox_round(x0, x1, x2, x3, r9)
            even[i] = x0 << half | x1
            odd[i] = x2 << half | x3
