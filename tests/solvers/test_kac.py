"""The Kac model: its kernel, fields, and the laws and orders of the step solvers."""

from __future__ import annotations

import math
import re
from functools import cache
from typing import Any

import kac_law
import numpy as np
import pytest
from exact import P_FLOOR, Z_CEILING, chi_square, has_cuda, threefry
from mpi4py import MPI
from scipy.linalg import expm

from mpiflow import initial
from mpiflow.core.errors import InputError
from mpiflow.core.slabs import Slabs
from mpiflow.simulation.kac.simulation import ERRORS, KacSimulation
from mpiflow.solvers.kac.fields import Fields, Sums
from mpiflow.solvers.kac.steps import KacSteps
from mpiflow.solvers.kac.tables import Table, digits_at, falls_below, flip_table
from mpiflow.systems.kac import Kac, KacKernel, kac_kernel, lookup

GAMMAS = [0.0, 0.3, 0.5, 1.0, 1.7, 3.0, 6.5]
SMALL = (3, 3)
LAWS = [Kac(0.7, 0.0, 0.1), Kac(0.6, 0.42, -0.2), Kac(2.0, 0.0, 0.1), Kac(1.6, 0.42, -0.2)]
#: Nearest neighbours without a field, from cold to warm.
NEAREST = [4, 5, 6]
LAWS += [Kac(0.6, 0.0), Kac(0.8, 0.0), Kac(1.5, 0.0)]
#: The order of midpoint needs 4 beta max J <= ln 2, on so small a lattice.
WARM = [2, 3]
needs_cuda = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
STEPS = ["sublattice", "tau-leap", "midpoint"]


def random_spins(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array([-1, 1], np.int8), shape)


# -- the kernel ---------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 2.0, 5.3, 16.0, 64.0, 200.0, 1000.0])
def test_the_kernel_is_a_gaussian_of_integers(gamma: float) -> None:
    kernel = kac_kernel(gamma)
    w, k = kernel.weights, np.arange(kernel.reach + 1)
    assert w.dtype == np.int64
    assert (np.diff(w) <= 0).all()
    assert w[-1] > 0
    assert kernel.sum == w[0] + 2 * w[1:].sum() < 2**15
    assert kernel.norm == kernel.sum**2 - w[0] ** 2 < 2**30
    assert 2 * (k**2 * w).sum() / kernel.sum == pytest.approx(gamma**2, rel=3e-3)
    # Rounding to P levels is wrong by a quarter of a level on average, on 5.9 gamma sites of an
    # axis: 2 axes, half the sum of |differences|; sigma is not gamma, tails are cut.
    if gamma <= 200:
        assert kernel.distance() < 1.5 * 0.25 * 5.9 / (math.sqrt(2 * math.pi) * w[0]) + 2e-3


@pytest.mark.parametrize("gamma", GAMMAS)
def test_j_adds_up_to_one_without_its_centre(gamma: float) -> None:
    kernel = kac_kernel(gamma)
    dense = kernel.dense()
    assert dense.sum() == pytest.approx(1.0, abs=1e-14)
    assert dense[kernel.reach, kernel.reach] == 0
    assert np.array_equal(dense, dense.T)
    assert np.array_equal(dense, dense[::-1, ::-1])
    k = np.arange(-kernel.reach, kernel.reach + 1)
    assert (k**2 * dense.sum(0)).sum() == pytest.approx(kernel.second_moment, rel=1e-12)


def test_short_kernels_tend_to_nearest_neighbours() -> None:
    """Diagonal neighbours have e^(-1 / 2 gamma^2) of the weight of nearest ones."""
    nearest = kac_kernel(0.0).dense()
    for gamma in (0.26, 0.3, 0.4):
        share = math.exp(-0.5 / gamma**2)
        dense = kac_kernel(gamma).dense()
        middle = dense.shape[0] // 2
        near = dense[middle - 1 : middle + 2, middle - 1 : middle + 2]
        assert near[0, 0] / near[0, 1] == pytest.approx(share, abs=2 / 4095)
        assert abs(near - nearest).max() < share


@pytest.mark.parametrize("gamma", [-1.0, 0.1, 5000.0, math.nan, math.inf])
def test_kernels_that_cannot_be(gamma: float) -> None:
    with pytest.raises(InputError, match="^gamma="):
        kac_kernel(gamma)


def test_a_kernel_wider_than_the_lattice_is_refused() -> None:
    kernel = kac_kernel(4.0)
    side = 2 * kernel.reach + 1
    kernel.require_room((side, 100))
    with pytest.raises(InputError, match=f"^gamma=4.0.*{side} sites a side"):
        KacSimulation(Kac(1.0, 4.0), (side - 1, 100))


@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.7])
def test_the_symbol_is_the_mean_over_pairs_of_blocks(gamma: float, block: int) -> None:
    kernel, (ny, nx) = kac_kernel(gamma), (24, 16)
    field = np.random.default_rng(3).normal(size=(ny // block, nx // block))
    fine = np.kron(field, np.ones((block, block)))
    dense, reach = kernel.dense(), kernel.reach
    around = range(-reach, reach + 1)
    felt = sum(
        dense[dy + reach, dx + reach] * np.roll(fine, (dy, dx), (0, 1))
        for dy in around
        for dx in around
    )
    expected = felt.reshape(ny // block, block, nx // block, block).mean((1, 3))
    a_y, a_x, c = kernel.symbol(field.shape, block)
    both = a_y[:, None] + a_x if kernel.nearest else a_y[:, None] * a_x
    found = np.fft.irfft2(np.fft.rfft2(field) * (both - c), field.shape)
    np.testing.assert_allclose(found, expected, atol=1e-14)


# -- fields -------------------------------------------------------------------------------------


def direct(kernel: KacKernel, spins: np.ndarray) -> np.ndarray:
    """Integer sums over neighbours by their definition."""
    whole = np.rint(kernel.dense() * kernel.norm).astype(np.int64)
    reach, out = kernel.reach, np.zeros(spins.shape, np.int64)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            out += whole[dy + reach, dx + reach] * np.roll(spins, (-dy, -dx), (1, 2))
    return out


@pytest.mark.parametrize("method", ["steps", "fft"])
@pytest.mark.parametrize("gamma", GAMMAS)
def test_sums_over_neighbours_are_exact(gamma: float, method: Any) -> None:
    kernel = kac_kernel(gamma)
    side = 2 * kernel.reach + 1
    spins = random_spins(1, 2, side + 3, max(side, 70))
    spins[1, : side // 2] = 1  # far from a mean of 0
    sums = Sums(kernel, method)
    padded = np.concatenate([spins[:, -kernel.reach :], spins, spins[:, : kernel.reach]], axis=1)
    out = np.concatenate([part.copy() for _, part in sums.of(padded)], axis=1)
    assert out.dtype == np.int32
    assert np.array_equal(out, direct(kernel, spins))


@pytest.mark.parametrize("gamma", [16.0, 60.0])
def test_wide_kernels_by_both_methods_in_many_bands(
    gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpiflow.solvers.kac.fields._BAND", 1)
    monkeypatch.setattr("mpiflow.solvers.kac.fields._CACHE", 2**14)  # many strips
    kernel = kac_kernel(gamma)
    spins = random_spins(2, 1, 1000, 2 * kernel.reach + 90)
    spins[0, 300:600] = -1
    padded = np.concatenate([spins[:, -kernel.reach :], spins, spins[:, : kernel.reach]], axis=1)
    parts = [(rows, part.copy()) for rows, part in Sums(kernel).bands(padded)]
    assert len(parts) > 2
    assert [rows.start for rows, _ in parts[1:]] == [rows.stop for rows, _ in parts[:-1]]
    out = np.concatenate([part for _, part in parts], axis=1)
    assert np.array_equal(out, Sums(kernel, "fft").by_fft(spins, None))


@pytest.mark.mpi
@pytest.mark.parametrize("method", ["steps", "fft"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_sums_on_slabs_are_those_of_the_whole(
    gamma: float, method: Any, comm: MPI.Intracomm
) -> None:
    """Slabs of 6 rows and fewer, a reach of 7."""
    spins = random_spins(4, 1, 24, 20)
    whole = direct(kac_kernel(gamma), spins)
    slabs = Slabs(comm, (24, 20))
    fields = Fields(Kac(1.0, gamma), method=method, slabs=slabs)
    mine = np.ascontiguousarray(spins[:, slabs.rows])
    for rows, sums in fields.bands(fields.surrounded(mine)):
        assert np.array_equal(sums, whole[:, slabs.rows][:, rows])
    assert fields.computed == mine.size


def probability(table: Table, shift: int, offset: int, v: int) -> float:
    """What a table says at an integer, of all its 96 bits."""
    parts = [int(part) for part in digits_at(table.digits, shift, offset, v)]
    return math.ldexp((parts[0] << 64) + (parts[1] << 32) + parts[2], -96 - 16)


@pytest.mark.parametrize("temperature", [1e-10, 0.002, 0.05, 1.0, 50.0])
def test_the_table_of_rates_is_accurate_and_symmetric(temperature: float) -> None:
    """7e-5 of a rate, and two opposite fields add up to 1: heat bath, detailed balance."""
    system = Kac(temperature, 4.0, 0.5)
    scale = system.scale(0.5)
    table, shift, offset = flip_table(system, scale)
    rng = np.random.default_rng(0)
    near = rng.uniform(-60, 60, 2000) * temperature / 2 * scale.unit
    values = np.concatenate([rng.integers(-(2**30), 2**30, 1000), np.clip(near, -(2**30), 2**30)])
    values = values.astype(np.int64)
    found = np.array([probability(table, shift, offset, int(v)) for v in values])
    exact = system.rates(values / scale.unit)
    # Straight lines between points that are up to 0.0235 of an exponent apart; the last bit.
    assert (abs(found - exact) < 7e-5 * exact + 2.0**-95).all()
    opposite = np.array([probability(table, shift, offset, -int(v)) for v in values])
    # A fraction has 16 bits: of the largest difference of entries.
    assert abs(found + opposite - 1).max() < abs(np.diff(table.bounds)).max() * 2.0**-48 + 2.0**-30
    for v, rate in zip(values, found, strict=True):
        bound = lookup(table.bounds, shift, offset, int(v)) / 2**32
        assert rate <= bound <= rate + 2.0**-31 or rate < 2.0**-95


TAUS = [1.0, 0.1, 0.01, 0.001, 1e-6]


@pytest.mark.parametrize("temperature", [0.058, 0.07, 0.085, 0.088, 0.09, 0.12, 0.3, 1.0])
def test_rare_flips_are_as_right_as_others(temperature: float) -> None:
    """Chances of all solvers against the law, down to rates of 1e-15, to 0.5 %.

    In units of 2^-32 they were 0, or up to 75 % too large, at T = 0.09 and below.
    """
    system = Kac(temperature, 0.0)
    spins = np.array([-1, -0.5, 0, 0.5, 1])  # fields of nearest neighbours
    rates = system.rates(spins)
    fields = Fields(system)
    values = np.rint(spins * fields.scale.unit).astype(int).tolist()
    table, shift, offset = flip_table(system, fields.scale)
    found = [probability(table, shift, offset, v) for v in values]
    np.testing.assert_allclose(found, rates, rtol=1e-4)
    for solver in STEPS:
        for tau in TAUS:
            table = KacSteps(fields, solver, tau=tau)._table_of(tau)  # type: ignore[arg-type]
            exact = -np.expm1(-tau) * rates
            if solver == "tau-leap":
                exact = -0.5 * np.expm1(-2 * tau * rates)
            found = [probability(table, shift, offset, v) for v in values]
            np.testing.assert_allclose(found, exact, rtol=1e-4)


def test_all_bits_decide() -> None:
    """96 bits of a number against digits that may be sums, by Python's integers."""
    rng = np.random.default_rng(4)
    for _ in range(3000):
        digits = rng.integers(-(2**48), 2**49, 3)
        digits[: rng.integers(0, 3)] = 0
        limit = (int(digits[0]) << 64) + (int(digits[1]) << 32) + int(digits[2])
        number = min(max((limit >> 16) + int(rng.integers(-1, 2)), 0), 2**96 - 1)
        word, more = number >> 64, number & (2**64 - 1)
        assert falls_below(word, np.uint64(more), *digits) == (number << 16 < limit)


#: Seed, step, half of it, and site of a word of 32 bits that is this small.
SMALL_WORD = {0: (6, 74975, 0, 26, 3), 1: (5, 2543, 16, 31, 0)}


@pytest.mark.kernel
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize(
    ("solver", "half"), [("sublattice", 0), ("tau-leap", 0), ("midpoint", 0), ("midpoint", 1)]
)
def test_rare_flips_need_more_bits(solver: Any, half: int, device: str) -> None:
    """A spin at T = 0.12 flips in a step if 96 bits are below its chance, one in a thousand apart.

    With 32 bits of words and chances both steps do the same.
    """
    seed, step, y, x, word = SMALL_WORD[half]
    more = threefry((seed, 21 << 48), (2 * step + half + 2**63, y << 32 | x))[0]
    chance = (word + more / 2**64) / 2**32
    system = Kac(0.12, 0.0)
    rate = float(system.rates(1.0))
    for factor in (0.999, 1.001):
        tau = -math.log1p(-factor * chance / rate)
        if solver == "tau-leap":
            tau = -math.log1p(-2 * factor * chance) / (2 * rate)
        if solver == "midpoint":
            tau *= 2
        sim = KacSimulation(
            system, (y + 3, x // 4 * 4 + 4), solver=solver, tau=tau, seed=seed, device=device,
            comm=MPI.COMM_SELF,
        )  # fmt: skip
        sim.set_spins(initial.uniform_up)
        assert isinstance(sim.solver, KacSteps)
        sim.solver.steps = np.array([step])
        sim.advance(tau)
        turned = np.argwhere(sim.spins()[0] < 0).tolist()
        assert turned == ([[y, x]] if factor > 1 else []), factor


def test_the_energy_is_that_of_the_hamiltonian() -> None:
    rng = np.random.default_rng(5)
    external = rng.normal(size=SMALL)
    for system in LAWS[:2]:
        spins = random_spins(6, 20, *SMALL)
        states = spins.reshape(20, -1)
        given = kac_law.energies(system, states, SMALL)
        np.testing.assert_allclose(Fields(system).energy(spins), given, atol=1e-6)
        h = external.ravel() + system.field
        given = kac_law.energies(system, states, SMALL, h)
        fields = Fields(system, external=external)
        np.testing.assert_allclose(fields.energy(spins), given, atol=1e-6)


# -- laws of the steps --------------------------------------------------------------------------


@cache
def rates_of(law: int, external: tuple[float, ...] | None = None) -> np.ndarray:
    """r_x of every state, (2^9, 9)."""
    every = kac_law.states(9)
    h = None if external is None else np.array(external)
    u = kac_law.fields(LAWS[law], every, SMALL, h)
    return np.asarray(1 / (1 + np.exp(2 * every * u / LAWS[law].temperature)))


def product(flips: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Laws (M, 2^9) of states ``starts`` (M,) whose site i flips with probability flips[:, i]."""
    out = np.ones((len(flips), 1))
    for site in range(9):
        up = (starts >> site & 1)[:, None]
        chance = flips[:, site : site + 1]
        first = np.where(up == 0, 1 - chance, chance)  # that the bit is 0
        out = np.concatenate([out * first, out * (1 - first)], axis=1)
    return out


def matrix(solver: str, law: int, tau: float) -> np.ndarray:
    """The law of one step from each state, P[from, to], by the definition of the solver."""
    r = rates_of(law)
    numbers = np.arange(512)
    if solver == "sublattice":
        return product(-math.expm1(-tau) * r, numbers)
    if solver == "tau-leap":
        return product(-0.5 * np.expm1(-2 * tau * r), numbers)
    q = -math.expm1(-tau / 2)
    every = kac_law.states(9)
    u = kac_law.fields(LAWS[law], every, SMALL)
    out = np.empty((512, 512))
    for x in range(512):
        then = 1 / (1 + np.exp(2 * every * u[x] / LAWS[law].temperature))  # spins y, fields of x
        second = product(np.clip(q * (2 * r - then), 0, 1), numbers)
        out[x] = product(q * r[[x]], np.array([x]))[0] @ second
    return out


@pytest.mark.parametrize(("solver", "order"), [("sublattice", 1), ("tau-leap", 1), ("midpoint", 2)])
@pytest.mark.parametrize("law", WARM)
def test_orders_of_the_solvers_in_law(solver: str, order: int, law: int) -> None:
    """Total variation of the law at t = 1 from every state: halving tau divides it by 2^order."""
    exact = expm(kac_law.generator(LAWS[law], SMALL))
    np.testing.assert_allclose(matrix(solver, law, 0.25).sum(1), 1)
    errors = []
    for n in (4, 8, 16):
        after = np.linalg.matrix_power(matrix(solver, law, 1 / n), n)
        errors.append(0.5 * abs(after - exact).sum(1).max())
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    assert errors[-1] > 1e-6
    assert abs(measured - order).max() < 0.3, (errors, measured)
    assert abs(measured[-1] - order) < 0.15


def test_which_solver_has_the_smallest_error_in_equilibrium() -> None:
    """Energies of the stationary laws at the same cost, as docs/kac.md and the remarks have them.

    Printed with ``-s``. Nearest neighbours: midpoint is the best where 4 beta max J <= ln 2, only.
    """
    found = {}
    for law in NEAREST:
        system = LAWS[law]
        every = kac_law.states(9)
        energies = kac_law.energies(system, every, SMALL)
        exact = kac_law.gibbs(system, SMALL) @ energies
        for solver, tau in (("sublattice", 0.1), ("midpoint", 0.2), ("tau-leap", 0.1)):
            power = matrix(solver, law, tau)
            for _ in range(15):
                power = power @ power
            found[law, solver] = error = 100 * float(power[0] @ energies / exact - 1)
            print(f"T={system.temperature:g} {solver} tau={tau:g}: {error:+.2f} %")
            bound = ERRORS[solver] * tau
            assert -1.1 * bound < error < 0
    cold, tepid, warm = NEAREST
    assert abs(found[cold, "sublattice"]) < abs(found[cold, "midpoint"]) < 1
    assert abs(found[tepid, "midpoint"]) < abs(found[tepid, "sublattice"])
    assert abs(found[warm, "midpoint"]) < 0.05 * abs(found[warm, "sublattice"])
    assert found[warm, "tau-leap"] < 0.9 * -ERRORS["tau-leap"] * 0.1


@pytest.mark.parametrize(
    ("system", "options", "told"),
    [
        (Kac(0.6, 0.0), {"solver": "tau-leap", "eps": 0.1}, "steps of 0.1 .* up to 10 %.*--eps"),
        (Kac(0.6, 0.0), {"solver": "tau-leap", "tau": 0.05}, "up to 5 %.*--tau"),
        (Kac(0.6, 0.0), {"solver": "tau-leap"}, ""),
        (Kac(2.0, 1.0), {}, "sublattice is of first order: steps of 0.1 .* up to 5 %"),
        (Kac(2.0, 1.0), {"tau": 0.02}, ""),
        (Kac(2.0, 1.0), {"solver": "midpoint", "tau": 1.0}, ""),
        (Kac(0.6, 0.0), {"solver": "midpoint", "tau": 0.4}, "4 beta max J = 1.7 .* up to 4.8 %"),
        (Kac(0.6, 0.0), {"solver": "gillespie"}, ""),
    ],
    ids=str,
)
def test_errors_of_steps_are_said(system: Kac, options: dict[str, Any], told: str) -> None:
    remarks = KacSimulation(system, 16, comm=MPI.COMM_SELF, **options).remarks()
    assert len(remarks) == bool(told)
    for line in remarks:
        assert re.search(told, line), line


@pytest.mark.parametrize("law", [0, 1])  # cold: rates are cut at 0
@pytest.mark.parametrize("solver", STEPS)
def test_a_step_has_the_law_of_its_solver(solver: Any, law: int) -> None:
    """40,000 lattices from one state, one long step."""
    start, tau, members = 0b101001110, 0.8, 40_000
    sim = KacSimulation(
        LAWS[law], SMALL, solver=solver, tau=tau, seed=11, members=members, comm=MPI.COMM_SELF
    )
    sim.block.load(np.repeat(kac_law.states(9)[start].reshape(1, *SMALL), members, axis=0))
    sim.advance(tau)
    bits = (sim.spins().reshape(members, 9) > 0) @ (1 << np.arange(9))
    observed = np.bincount(bits, minlength=512)
    chances = matrix(solver, law, tau)[start]
    assert chi_square(observed, members * chances) > P_FLOOR
    # The mean number of flips is a sharper test of a rate than 512 cells are.
    flips = np.array([(b ^ start).bit_count() for b in range(512)])
    mean = chances @ flips
    error = math.sqrt((chances @ flips**2 - mean**2) / members)
    assert abs(observed @ flips / members - mean) < Z_CEILING * error
    # and the flips are counted, those of the whole step
    assert np.array_equal(sim.measure().flips, [(b ^ start).bit_count() for b in bits.tolist()])


def test_leaps_take_the_time_that_the_fastest_spin_allows() -> None:
    """tau = eps / max r: one spin against all others of nearest neighbours is the fastest."""
    system, eps = Kac(0.5, 0.0), 0.2
    sim = KacSimulation(system, 8, solver="tau-leap", eps=eps, comm=MPI.COMM_SELF)
    spins = np.ones((1, 8, 8), np.int8)
    spins[0, 3, 4] = -1
    sim.block.load(spins)
    fastest = float(system.rates(-1.0))
    sim.advance(0.999 * eps / fastest)
    assert sim.operations == 64
    sim.block.load(spins)
    sim.advance(1.001 * eps / fastest)
    assert sim.operations == 3 * 64


@pytest.mark.mpi
@pytest.mark.parametrize("members", [1, 3])
def test_leaps_may_be_interrupted_anywhere(members: int, comm: MPI.Intracomm) -> None:
    """On the way to a frame, with what a checkpoint keeps: the trajectory of whole leaps."""

    def made() -> KacSimulation:
        sim = KacSimulation(
            Kac(0.8, 1.0, 0.1), (24, 22), solver="tau-leap", eps=0.3, seed=5, members=members,
            comm=comm,
        )  # fmt: skip
        sim.set_spins(initial.independent, magnetization=0.2)
        return sim

    whole, parts = made(), made()
    for target in (2.0, 3.5):
        whole.advance_to(target)
        looks = 0
        while parts.time < target:
            place, most = [(target, 1), (target - 0.7, 5), (target, 3)][looks % 3]
            leaps = parts.advance_some(max(place, parts.time), most, target)
            assert leaps <= most
            kept, old, looks = parts.state_of(), parts, looks + 1
            parts = made()
            parts.block.load(old.spins())
            parts.restore(kept)
        assert looks > 2
        assert parts.time == whole.time == target
        assert np.array_equal(parts.spins(), whole.spins())
        assert np.array_equal(parts.measure().flips, whole.measure().flips)
        assert isinstance(whole.solver, KacSteps)
        assert isinstance(parts.solver, KacSteps)
        assert np.array_equal(parts.solver.steps, whole.solver.steps)
        assert (parts.solver.clock == target).all()


# -- what must not matter -----------------------------------------------------------------------


def run(comm: MPI.Intracomm, **options: Any) -> tuple[np.ndarray, list[float], list[float]]:
    """All spins after a while, and the observables on the way."""
    given: dict[str, Any] = {"system": Kac(0.8, 1.5, 0.1), "size": (24, 22), "seed": 5} | options
    sim = KacSimulation(comm=comm, **given)
    sim.set_spins(initial.gaussian, magnetization=0.1, correlation_length=2.0)
    frames = list(sim.frames(0.8, 0.4))
    spins = sim.gather()
    if sim.members > 1:
        return np.empty(0), [], []
    return (
        comm.bcast(spins),
        [float(f.magnetization) for f in frames],
        [float(f.energy) for f in frames],
    )


@pytest.mark.mpi
@pytest.mark.parametrize(
    "options",
    [
        {"tau": 0.1},
        {"tau": 0.1, "method": "fft"},
        {"tau": 0.2, "solver": "midpoint"},
        {"tau": 0.2, "solver": "tau-leap"},
        {"eps": 0.2, "solver": "tau-leap"},
        {"tau": 0.2, "system": Kac(0.5, 0.0)},
        {"tau": 0.2, "site_field": np.random.default_rng(1).normal(size=(24, 22))},
    ],
    ids=["sublattice", "fft", "midpoint", "tau-leap", "eps", "nearest", "h(x)"],
)
def test_ranks_change_nothing(options: dict[str, Any], comm: MPI.Intracomm) -> None:
    one, many = run(MPI.COMM_SELF, **options), run(comm, **options)
    assert np.array_equal(one[0], many[0])
    assert one[1:] == many[1:]


@pytest.mark.parametrize("solver", [*STEPS, "gillespie"])
def test_members_do_not_see_each_other(solver: Any) -> None:
    """Member 2 of 3 is member 2 of 5; calls may be cut anywhere."""

    def spins(members: int, cuts: int) -> np.ndarray:
        sim = KacSimulation(
            Kac(0.8, 1.5), 16, solver=solver, seed=3, members=members, comm=MPI.COMM_SELF
        )
        sim.set_spins(initial.independent, magnetization=0.2)
        for _ in range(cuts):
            sim.advance(0.8 / cuts)
        return np.array(sim.spins())

    three = spins(3, 1)
    assert np.array_equal(three, spins(5, 1)[:3])
    assert np.array_equal(three, spins(3, 4))
    assert not np.array_equal(three[0], three[1])


@pytest.mark.mpi
@pytest.mark.parametrize("solver", [*STEPS, "gillespie"])
def test_ranks_without_members_have_nothing_to_do(solver: Any, comm: MPI.Intracomm) -> None:
    """Two members on up to four ranks, and those of one rank."""

    def spins(where: MPI.Intracomm) -> np.ndarray:
        sim = KacSimulation(Kac(0.8, 1.5), 16, solver=solver, seed=3, members=2, comm=where)
        sim.set_spins(initial.independent, magnetization=0.2)
        for frame in sim.frames(0.4, 0.2):
            assert np.size(frame.energy) == np.size(frame.flips) == sim.block.batch
        return np.array(sim.spins()) if where is MPI.COMM_SELF else where.bcast(sim.gather())

    assert np.array_equal(spins(comm), spins(MPI.COMM_SELF))


def test_a_field_of_the_same_value_everywhere_is_the_uniform_field() -> None:
    common: dict[str, Any] = {"size": 16, "solver": "tau-leap", "tau": 0.2}
    uniform = run(MPI.COMM_SELF, system=Kac(0.9, 1.0, 0.5), **common)
    spread = run(MPI.COMM_SELF, system=Kac(0.9, 1.0), site_field=np.full((16, 16), 0.5), **common)
    assert np.array_equal(uniform[0], spread[0])
    np.testing.assert_allclose(uniform[2], spread[2], rtol=1e-12)


def test_a_field_that_varies_turns_spins_where_it_is_strong() -> None:
    """Far above T_c without coupling of halves: m -> tanh(beta h) on each."""
    side = 128
    external = np.where(np.arange(side) < side // 2, 2.0, -2.0)[:, None] * np.ones((1, side))
    system = Kac(50.0, 1.0)
    sim = KacSimulation(system, side, tau=0.5, site_field=external, comm=MPI.COMM_SELF)
    sim.set_spins(initial.independent)
    sim.advance(15)
    halves = sim.spins()[0].reshape(2, -1).mean(1)
    m = math.tanh(2 / (50 - 1))  # with the mean field of the half itself, to first order
    assert abs(halves - [m, -m]).max() < Z_CEILING * math.sqrt(2) / side


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"tau": 0.0}, "tau"), ({"tau": 1.5}, "tau"), ({"tau": math.nan}, "tau"),
        ({"tau": 2.0, "solver": "tau-leap"}, "tau"), ({"eps": 0.1}, "eps"),
        ({"eps": 1.5, "solver": "tau-leap"}, "eps"), ({"eps": 0.0, "solver": "tau-leap"}, "eps"),
        ({"eps": 0.1, "tau": 0.1, "solver": "tau-leap"}, "tau, eps"),
        ({"tau": 0.1, "solver": "gillespie"}, "tau, eps"), ({"solver": "heun"}, "solver"),
        ({"members": 0}, "members"), ({"granularity": 5}, "coarse"),
        ({"site_field": np.zeros((8, 16))}, "site_field"),
        ({"site_field": np.full((16, 16), np.nan)}, "site_field"), ({"device": "tpu"}, "device"),
    ],
    ids=str,
)  # fmt: skip
def test_runs_that_cannot_be(options: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}="):
        KacSimulation(Kac(1.0, 1.0), 16, comm=MPI.COMM_SELF, **options)


def test_a_leap_too_long_for_the_rates_says_the_bound() -> None:
    """Of a cold system with h = 0 no rate exceeds 1 / (1 + e^(-2 / T))."""
    bound = 1 + math.exp(-2 / 0.5)
    with pytest.raises(InputError, match=f"at most {bound:.4g}"):
        KacSimulation(Kac(0.5, 1.0), 16, solver="tau-leap", tau=1.1, comm=MPI.COMM_SELF)


@pytest.mark.parametrize(
    ("given", "name"),
    [((0.0, 1.0, 0.0), "temperature"), ((math.inf, 1.0, 0.0), "temperature"),
     ((1.0, 1.0, math.nan), "field"), ((1.0, -2.0, 0.0), "gamma")],
)  # fmt: skip
def test_models_that_cannot_be(given: tuple[float, float, float], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}="):
        Kac(*given)
