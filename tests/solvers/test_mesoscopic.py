"""The mesoscopic equations against exact solutions, linear growth and the decay of F."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from scipy import fft
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from mpiflow.core.errors import InputError
from mpiflow.solvers.field.mesoscopic import (
    Equation,
    LocalEquation,
    NonlocalEquation,
    phi_functions,
)
from mpiflow.systems.kac import kac_kernel

BOTH: Any = pytest.mark.parametrize("kind", [NonlocalEquation, LocalEquation])
SELF = MPI.COMM_SELF


def smooth(shape: tuple[int, int], length: float, size: float, seed: int = 0) -> np.ndarray:
    """A periodic random field of largest absolute value ``size``."""
    white = np.random.default_rng(seed).standard_normal(shape)
    k = np.hypot(fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])) * 2 * math.pi
    out = fft.irfft2(fft.rfft2(white) * np.exp(-0.5 * (k * length) ** 2), shape)
    return out * size / abs(out).max()


def last(equation: Equation, m: np.ndarray, t: float, tolerance: float) -> np.ndarray:
    ((_, out),) = equation.evolve(m, [t], tolerance)
    return out


def mode(shape: tuple[int, int], waves: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(shape)
    return np.cos(2 * math.pi * (waves[0] * y / shape[0] + waves[1] * x / shape[1]) + 0.3)


def power(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# -- the coupling ----------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, 0.6, 2.0, 3.5])
def test_convolution_is_the_sum_over_neighbours(gamma: float) -> None:
    kernel = kac_kernel(gamma)
    m = np.random.default_rng(1).uniform(-1, 1, (36, 29))
    reach = kernel.reach
    dense = sum(
        weight * np.roll(m, (i - reach, j - reach), (0, 1))
        for (i, j), weight in np.ndenumerate(kernel.dense())
    )
    equation = NonlocalEquation(kernel, 1.0, m.shape, comm=SELF)
    assert np.abs(equation.convolve(m) - dense).max() < 1e-14


@pytest.mark.parametrize(("gamma", "block"), [(0, 4), (2.0, 2), (2.0, 3), (2.5, 8)])
def test_blocks_feel_the_mean_over_their_sites(gamma: float, block: int) -> None:
    """Exact for a field that is constant on blocks, reaches within and beyond a block."""
    kernel = kac_kernel(gamma)
    shape = (8, 10) if block > 2 else (12, 14)
    m = np.random.default_rng(2).uniform(-1, 1, shape)
    sites = np.kron(m, np.ones((block, block)))
    fine = NonlocalEquation(kernel, 1.0, sites.shape, comm=SELF).convolve(sites)
    means = fine.reshape(shape[0], block, shape[1], block).mean(axis=(1, 3))
    coarse = NonlocalEquation(kernel, 1.0, shape, block=block, comm=SELF)
    assert np.abs(coarse.convolve(m) - means).max() < 1e-14


@pytest.mark.parametrize(("gamma", "block"), [(0, 4), (2.0, 3), (2.5, 8)])
def test_smooth_blocks_feel_the_mean_over_their_sites(gamma: float, block: int) -> None:
    """Exact for a field of the grid's Fourier modes; the kernel of blocks is another one."""
    kernel, shape = kac_kernel(gamma), (11, 12)
    sites = (shape[0] * block, shape[1] * block)
    spectrum = np.zeros((sites[0], sites[1] // 2 + 1), complex)
    spectrum[np.r_[0:6, -5:0], :6] = fft.rfft2(smooth((11, 12), 0.0, 1.0, seed=13))[:, :6]
    m = fft.irfft2(spectrum, sites) * block**2

    def means(field: np.ndarray) -> np.ndarray:
        return field.reshape(shape[0], block, shape[1], block).mean(axis=(1, 3))

    expected = means(NonlocalEquation(kernel, 1.0, sites, comm=SELF).convolve(m))
    errors = [
        np.abs(
            NonlocalEquation(kernel, 1.0, shape, block=block, comm=SELF, smooth=as_modes).convolve(
                means(m)
            )
            - expected
        ).max()
        for as_modes in (True, False)
    ]
    assert errors[0] < 1e-14
    assert errors[1] > 1e-3


# -- exact solutions -------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0, 2.0])
@pytest.mark.parametrize(("temperature", "h"), [(4.0, 0.0), (1.0, 1.0), (0.4, -0.3)])
@BOTH
def test_a_uniform_field_follows_the_scalar_equation(
    kind: type[Equation], temperature: float, h: float, gamma: float
) -> None:
    beta = 1 / temperature

    def nonlocal_rate(_: float, m: np.ndarray) -> np.ndarray:
        return -m + np.tanh(beta * (m + h))

    def local_rate(_: float, m: np.ndarray) -> np.ndarray:
        return -(1 - beta) * m - beta**3 / 3 * m**3 + beta * h

    rate = nonlocal_rate if kind is NonlocalEquation else local_rate
    times = [0.0, 0.4, 1.0, 5.0]
    exact = solve_ivp(rate, (0, 5), [0.7], "DOP853", times, rtol=1e-12, atol=1e-13).y[0]
    equation = kind(kac_kernel(gamma), temperature, (16, 20), field=h, comm=SELF)
    for (t, m), expected, asked in zip(
        equation.evolve(np.full((16, 20), 0.7), times, 1e-9), exact, times, strict=True
    ):
        assert t == asked
        assert np.abs(m - expected).max() < 1e-8
    assert abs(equation.magnetization(m) - exact[-1]) < 1e-8


@pytest.mark.parametrize("temperature", [4.0, 1.0, 0.5])
@pytest.mark.parametrize(("gamma", "block"), [(0, 1), (2.0, 1), (6.0, 2)])
@pytest.mark.parametrize("waves", [(1, 0), (0, 2), (3, -2), (16, 20)])
def test_small_waves_grow_at_the_linear_rate(
    gamma: float, block: int, waves: tuple[int, int], temperature: float
) -> None:
    shape, t, beta = (32, 40), 1.5, 1 / temperature
    kernel = kac_kernel(gamma)
    wave = mode(shape, waves)
    # J^(k) from the sum over neighbours; on blocks, from the means over them.
    sites = np.kron(wave, np.ones((block, block)))
    k = 2 * math.pi * np.array(waves) / np.array(shape)
    coupling = (kernel.dense() * _coupling_phases(kernel.reach, waves, sites.shape)).sum()
    if block > 1:  # blocks against blocks: the kernel's mean, by one plain sum
        coupling = _block_symbol(kernel.dense(), k, block)
    for kind, rate in (
        (NonlocalEquation, -1 + beta * coupling),
        (
            LocalEquation,
            -(1 - beta) - beta * kernel.second_moment / 2 / block**2 * float(k @ k),
        ),
    ):
        m = last(kind(kernel, temperature, shape, block=block, comm=SELF), 1e-5 * wave, t, 1e-13)
        assert np.abs(m - 1e-5 * math.exp(rate * t) * wave).max() < 3e-7 * 1e-5 * math.exp(
            max(0, rate) * t
        )


def _coupling_phases(reach: int, waves: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    z = np.arange(-reach, reach + 1)
    y, x = (2 * math.pi * n / side * z for n, side in zip(waves, shape, strict=True))
    return np.cos(y[:, None] + x)


def _block_symbol(dense: np.ndarray, k: np.ndarray, block: int) -> float:
    reach = len(dense) // 2
    total = 0.0
    for i in range(block):
        for j in range(block):
            y = (np.arange(-reach, reach + 1) + i) // block
            x = (np.arange(-reach, reach + 1) + j) // block
            total += (dense * np.cos(k[0] * y[:, None] + k[1] * x)).sum()
    return total / block**2


@pytest.mark.parametrize(("temperature", "h"), [(4.0, 0.5), (0.8, 0.0), (0.5, 0.1), (0.3, -0.2)])
def test_fixed_points(temperature: float, h: float) -> None:
    """m = tanh(beta (m + h)) stays, and what starts near the stable ones ends there."""
    beta, shape = 1 / temperature, (24, 24)
    equation = NonlocalEquation(kac_kernel(2.0), temperature, shape, field=h, comm=SELF)
    grid = np.linspace(-1, 1, 2001) + 1e-5

    def mismatch(m: float) -> float:
        return math.tanh(beta * (m + h)) - m

    roots = [
        brentq(mismatch, a, b, xtol=1e-15)
        for a, b in pairwise(grid)
        if mismatch(a) * mismatch(b) < 0
    ]
    assert len(roots) == (1 if temperature > 1 else 3)
    for root in roots:
        assert np.abs(equation.rhs(np.full(shape, root))).max() < 1e-14
    for root in {roots[0], roots[-1]}:
        near = root + smooth(shape, 3.0, 0.05)
        inside = np.clip(near, -1, 1)
        assert np.abs(last(equation, inside, 60.0, 1e-10) - root).max() < 1e-8


def test_a_wall_of_the_local_equation_stands_and_has_its_energy() -> None:
    """m0 tanh(x / xi): xi^2 = 2 kappa / -r, energy 4 kappa m0^2 / (3 xi) / beta a unit length."""
    kernel, temperature, shape = kac_kernel(6.0), 0.7, (2, 512)
    equation = LocalEquation(kernel, temperature, shape, block=24, comm=SELF)
    equation.kappa, before = 9.0, equation.kappa  # walls of many points, far apart
    equation._linear = (equation._linear + equation.r) * (9.0 / before) - equation.r
    r, u = equation.r, equation.u
    size, xi = math.sqrt(-r / u), math.sqrt(18.0 / -r)
    x = np.arange(512) + 0.5
    walls = size * (np.tanh((x - 128) / xi) - np.tanh((x - 384) / xi) - 1)
    m = np.tile(walls, (2, 1))
    assert np.abs(equation.rhs(m)).max() < 1e-12
    assert np.abs(last(equation, m, 5.0, 1e-11) - m).max() < 1e-10
    bulk = equation.free_energy(np.full(shape, size))
    assert bulk == pytest.approx(temperature * (r * size**2 / 4 - math.log(2)), rel=1e-13)
    tension = temperature * 4 * 9.0 * size**2 / (3 * xi)
    assert 512 * (equation.free_energy(m) - bulk) == pytest.approx(2 * tension, rel=1e-10)


# -- energy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [4.0, 1.0, 0.5])
@pytest.mark.parametrize("h", [0.0, 1.0, "h(x)"])
@pytest.mark.parametrize("gamma", [0, 2.0])
@BOTH
def test_energy_never_increases(
    kind: type[Equation], gamma: float, h: float | str, temperature: float
) -> None:
    shape = (32, 36)
    field = smooth(shape, 2.0, 0.8, seed=3) if isinstance(h, str) else h
    equation = kind(kac_kernel(gamma), temperature, shape, field=field, comm=SELF)
    rough = np.random.default_rng(4).uniform(-1, 1, shape)
    start = np.clip(smooth(shape, 2.0, 0.9, seed=5) + 0.1 * rough, -1, 1)
    times = np.linspace(0, 12, 61)
    energies = [equation.free_energy(m) for _, m in equation.evolve(start, list(times), 1e-8)]
    drops = -np.diff(energies)
    assert (drops > -1e-14).all()
    assert drops[0] > 1e-4


@pytest.mark.parametrize("temperature", [0.3, 4.0])
@BOTH
def test_equilibrium_is_quiet(kind: type[Equation], temperature: float) -> None:
    """Steps do not grow until they shake what has come to rest, however loose the tolerance."""
    shape = (16, 16)
    equation = kind(kac_kernel(1.0), temperature, shape, field=0.1, comm=SELF)
    start = np.clip(0.3 + smooth(shape, 2.0, 0.3), -1, 1)
    states = [m for _, m in equation.evolve(start, [100.0, 130.0, 160.0, 190.0], 1e-3)]
    assert max(abs(equation.rhs(m)).max() for m in states) < 1e-12
    assert equation.evaluations < 11 * 190 / min(1.5, temperature) + 1000


@BOTH
def test_energy_is_the_one_whose_slope_drives(kind: type[Equation]) -> None:
    """dF/dm by differences at one point: -d_t m / beta, and artanh(m) / beta - J*m - h."""
    shape, temperature, i = (16, 18), 0.8, (5, 7)
    field = smooth(shape, 2.0, 0.3, seed=6)
    equation = kind(kac_kernel(1.0), temperature, shape, field=field, comm=SELF)
    m = smooth(shape, 1.5, 0.8, seed=7)
    up, down = m.copy(), m.copy()
    up[i] += 1e-4
    down[i] -= 1e-4
    slope = (equation.free_energy(up) - equation.free_energy(down)) / 2e-4 * m.size
    if isinstance(equation, NonlocalEquation):
        expected = -equation.convolve(m) - field + np.arctanh(m) * temperature
    else:
        expected = -equation.rhs(m) * temperature
    assert slope == pytest.approx(expected[i], abs=1e-6)


def test_energies_of_known_states() -> None:
    shape = (20, 20)
    one = NonlocalEquation(kac_kernel(2.0), 0.5, shape, field=0.2, comm=SELF)
    assert one.free_energy(np.ones(shape)) == pytest.approx(-0.5 - 0.2, abs=1e-14)
    assert one.free_energy(np.zeros(shape)) == pytest.approx(-0.5 * math.log(2), abs=1e-14)
    # Up to m^2 and two derivatives both energies are the same.
    both = [
        kind(kac_kernel(1.0), 0.8, (64, 64), comm=SELF)
        for kind in (NonlocalEquation, LocalEquation)
    ]
    m = 1e-3 * mode((64, 64), (1, 1))
    gains = [equation.free_energy(m) + 0.8 * math.log(2) for equation in both]
    assert gains[0] == pytest.approx(gains[1], rel=1e-3)


def test_phase_fraction() -> None:
    equation = LocalEquation(kac_kernel(0), 1.0, (8, 10), comm=SELF)
    m = np.zeros((8, 10))
    m[:3, :5] = 0.1
    m[5:] = -0.3
    assert equation.phase_fraction(m) == 15 / 80


# -- steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "order"), [(NonlocalEquation, 5), (LocalEquation, 4)])
def test_order_of_the_steps(kind: type[Equation], order: int) -> None:
    shape = (24, 24)
    field = smooth(shape, 2.0, 0.5, seed=8)
    equation = kind(kac_kernel(1.5), 0.7, shape, field=field, comm=SELF)
    m = smooth(shape, 3.0, 0.9, seed=9)  # smooth: of stiff modes the order is less

    def stepped(steps: int) -> tuple[np.ndarray, float]:
        now, start, worst = m, equation._start(m), 0.0
        for _ in range(steps):
            now, start, error = equation._step(now, start, 2.0 / steps)
            worst = max(worst, error)
        return now, worst

    exact = stepped(512)[0]
    counts = [8, 16, 32]
    results = [stepped(n) for n in counts]
    errors = [float(abs(now - exact).max()) for now, _ in results]
    assert power([2.0 / n for n in counts], errors) == pytest.approx(order, abs=0.3)
    # The estimate is that of a step, of fifth order in either case.
    assert power([2.0 / n for n in counts], [e for _, e in results]) == pytest.approx(5, abs=0.5)


@BOTH
def test_tolerance_bounds_the_error(kind: type[Equation]) -> None:
    shape = (32, 32)
    m = smooth(shape, 2.0, 0.9, seed=10)

    def run(tolerance: float) -> tuple[np.ndarray, int]:
        equation = kind(kac_kernel(2.0), 0.6, shape, field=0.1, comm=SELF)
        return last(equation, m, 5.0, tolerance), equation.evaluations

    exact, _ = run(1e-12)
    work = []
    for tolerance in (1e-4, 1e-6, 1e-8):
        found, evaluations = run(tolerance)
        assert abs(found - exact).max() < 10 * tolerance
        work.append(evaluations)
    # Fifth order: a hundredth of the error for 100^(1/5) = 2.5 times the steps.
    assert 1.5 < work[2] / work[1] < 4


def test_stiffness_costs_the_local_equation_no_steps() -> None:
    """kappa k^2 up to 40 and to 40,000: about as many evaluations."""
    work = []
    for gamma, shape in ((2.0, (32, 32)), (60.0, (480, 480))):
        equation = LocalEquation(kac_kernel(gamma), 0.8, shape, comm=SELF)
        assert -equation._linear.min() == pytest.approx(10 * gamma**2 / 0.8, rel=0.1)
        last(equation, smooth(shape, gamma, 0.5), 2.0, 1e-6)
        work.append(equation.evaluations)
    assert work[1] < 1.5 * work[0]


def test_phi_functions() -> None:
    getcontext().prec = 50
    z = np.concatenate([-np.logspace(-9, 3, 60), [0.0], np.logspace(-9, 1, 30), [1.0, -1.0]])
    got = phi_functions(z)
    for i, value in enumerate(map(Decimal, z.tolist())):
        phi = [value.exp()]
        if value:
            for k in range(3):
                phi.append((phi[-1] - 1 / Decimal(math.factorial(k))) / value)
        else:
            phi += [Decimal(1), Decimal(1) / 2, Decimal(1) / 6]
        for function, exact in zip(got, phi, strict=True):
            assert function[i] == pytest.approx(float(exact), rel=5e-15, abs=1e-300)


@pytest.mark.parametrize("h", [-3.0, 0.0, 3.0])
def test_m_stays_within_one(h: float) -> None:
    """Saturated fields and checkerboards at low temperature, with a tolerance that would allow."""
    shape = (24, 24)
    m = np.sign(smooth(shape, 1.0, 1.0))
    equation = NonlocalEquation(kac_kernel(1.0), 0.02, shape, field=h, comm=SELF)
    for start in (m, -np.ones(shape), (-1.0) ** np.indices(shape).sum(0)):
        for _, state in equation.evolve(start, [0.1, 1.0, 10.0, 100.0], 1e-3):
            assert abs(state).max() <= 1


def test_a_step_beyond_one_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start found by search: some of its steps overshoot by 0.005, which 0.01 would allow."""
    rng = np.random.default_rng(2)
    start = np.sign(rng.uniform(-1, 1, (12, 12)) - 0.2) * rng.choice([1, 0.999, 0.9])

    def largest() -> float:
        equation = NonlocalEquation(kac_kernel(1.0), 0.02, (12, 12), field=0.5, comm=SELF)
        run = equation.evolve(start, list(np.linspace(0.1, 5, 50)), 1e-2)
        return max(float(abs(m).max()) for _, m in run)

    assert largest() <= 1
    monkeypatch.setattr(NonlocalEquation, "bound", 1.5)
    assert largest() > 1.001


# -- one equation and the other --------------------------------------------------------------


def test_local_tends_to_nonlocal_as_gamma_to_the_fourth() -> None:
    """For m small, the first term left out is beta gamma^4 k^4 / 8 of a Gaussian."""
    shape, t, beta, size = (1024, 128), 1.0, 0.8, 3e-4
    wave, k = mode(shape, (1, 0)), 2 * math.pi / 1024
    gammas = [4.0, 8.0, 16.0]
    differences = []
    for gamma in gammas:
        nonlocal_end, local_end = (
            last(kind(kac_kernel(gamma), 1 / beta, shape, comm=SELF), size * wave, t, 1e-13)
            for kind in (NonlocalEquation, LocalEquation)
        )
        differences.append(float(abs(nonlocal_end - local_end).max()))
    assert power(gammas, differences) == pytest.approx(4, abs=0.05)
    decay = math.exp((-1 + beta - beta * (4 * k) ** 2 / 2) * t)
    expected = size * decay * beta * (4 * k) ** 4 / 8 * t
    assert differences[0] == pytest.approx(expected, rel=0.05)


# -- ranks -----------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("shape", [(32, 32), (27, 30), (19, 17)])
@BOTH
def test_same_bits_on_any_number_of_ranks(
    comm: MPI.Intracomm, kind: type[Equation], shape: tuple[int, int]
) -> None:
    h, m = smooth(shape, 2.0, 0.5, seed=11), smooth(shape, 1.0, 0.95, seed=12)
    whole = kind(kac_kernel(2.0), 0.8, shape, field=h, comm=SELF)
    many = kind(kac_kernel(2.0), 0.8, shape, field=h[whole_rows(comm, shape)], comm=comm)
    rows = many.slabs.rows
    assert np.array_equal(many.rhs(m[rows]), whole.rhs(m)[rows])
    times = [0.0, 0.3, 2.0]
    for (t, own), (_, expected) in zip(
        many.evolve(m[rows], times), whole.evolve(m, times), strict=True
    ):
        assert np.array_equal(own, expected[rows]), t
        assert many.free_energy(own) == whole.free_energy(expected)
        assert many.magnetization(own) == whole.magnetization(expected)
        assert many.phase_fraction(own) == whole.phase_fraction(expected)
    assert many.evaluations == whole.evaluations


def whole_rows(comm: MPI.Intracomm, shape: tuple[int, int]) -> slice:
    return slice(shape[0] * comm.rank // comm.size, shape[0] * (comm.rank + 1) // comm.size)


# -- bad input -------------------------------------------------------------------------------


@BOTH
def test_options_that_cannot_work_are_named(kind: type[Equation]) -> None:
    def refused(match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(InputError, match=match):
            kind(*args, comm=SELF, **options)

    kernel = kac_kernel(2.0)
    for temperature in (0.0, -1.0, math.nan, math.inf):
        refused("temperature", kernel, temperature, (32, 32))
    refused("block", kernel, 1.0, (32, 32), block=0)
    refused("gamma", kernel, 1.0, (2 * kernel.reach, 32))
    kind(kernel, 1.0, (2 * kernel.reach + 1, 32), comm=SELF)
    refused("gamma", kernel, 1.0, (4, 4), block=3)
    kind(kernel, 1.0, (4, 4), block=4, comm=SELF)
    refused("field", kernel, 1.0, (32, 32), field=np.zeros((31, 32)))
    refused("field", kernel, 1.0, (32, 32), field=math.inf)
    refused("field", kernel, 1.0, (32, 32), field=np.full((32, 32), math.nan))


@BOTH
def test_runs_that_cannot_work_are_named(kind: type[Equation]) -> None:
    shape = (16, 16)
    equation = kind(kac_kernel(1.0), 1.0, shape, comm=SELF)
    zero = np.zeros(shape)
    for times in ([1.0, 1.0], [2.0, 1.0], [-1.0], [math.nan], [math.inf]):
        with pytest.raises(InputError, match="times"):
            equation.evolve(zero, times)
    for tolerance in (0.0, -1e-6, math.nan, 1.0, 1e-15):
        with pytest.raises(InputError, match="tolerance"):
            equation.evolve(zero, [1.0], tolerance)
    too_much = math.inf if kind is LocalEquation else 1 + 1e-12
    bad: list[Callable[[np.ndarray], Any]] = [
        equation.free_energy,
        lambda m: equation.evolve(m, [1.0]),
    ]
    assert list(equation.evolve(zero, [])) == []
    for call in bad:
        for value in (math.nan, too_much, -too_much):
            m = zero.copy()
            m[3, 4] = value
            with pytest.raises(InputError, match=r"m="):
                call(m)
        with pytest.raises(InputError, match=r"m="):
            call(np.zeros((8, 16)))


@pytest.mark.mpi(min_size=2)
def test_a_bad_slab_on_one_rank_is_refused_on_all(comm: MPI.Intracomm) -> None:
    equation = NonlocalEquation(kac_kernel(1.0), 1.0, (16, 16), comm=comm)
    m = np.full(equation.slabs.local, 2.0 if comm.rank == comm.size - 1 else 0.0)
    with pytest.raises(InputError, match="m=2"):
        equation.evolve(m, [1.0])
    with pytest.raises(InputError, match="field"):
        NonlocalEquation(
            kac_kernel(1.0), 1.0, (16, 16), comm=comm, field=math.nan if comm.rank else 0.0
        )


def test_what_is_given_and_yielded_is_the_callers() -> None:
    shape = (16, 16)
    m = smooth(shape, 2.0, 0.5)
    kept = m.copy()
    equation = NonlocalEquation(kac_kernel(1.0), 1.0, shape, comm=SELF)
    plain = [state for _, state in equation.evolve(m, [0.0, 1.0, 2.0])]
    spoiled = []
    for _, state in equation.evolve(m, [0.0, 1.0, 2.0]):
        spoiled.append(state.copy())
        state[:] = 7.0
    assert np.array_equal(m, kept)
    assert np.array_equal(plain, spoiled)
    assert np.array_equal(plain[0], kept)
    later = equation.evolve(m, [0.0, 1.0, 2.0])
    m[:] = 7.0
    assert np.array_equal(plain, [state for _, state in later])
