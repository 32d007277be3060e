"""The fluctuating field against exact laws of its structures, and of its steps."""

from __future__ import annotations

import math
import warnings
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from numpy.polynomial import legendre
from scipy import fft, stats
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from mpiflow.core.errors import InputError
from mpiflow.simulation.field.law_files import TableLaw
from mpiflow.solvers.field.langevin import LangevinSteps
from mpiflow.solvers.field.mesoscopic import NonlocalEquation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw, FiniteLaw, Law, Structure
from mpiflow.systems.kac import kac_kernel

SELF = MPI.COMM_SELF
BOTH: Any = pytest.mark.parametrize("structure", ["langevin", "cosh"])
#: Of a 2 x 2 grid: self, side by side, above one another, diagonal.
SMALL = np.array([[0.3, 0.35], [0.2, 0.15]])


def symbol(dense: np.ndarray) -> np.ndarray:
    return fft.rfft2(dense).real


def bent(structure: Structure, beta: float = 1.25) -> TableLaw:
    """A law far from the exact one: tilted, with another mobility, entropy and prefactor."""
    m = np.linspace(-0.9, 0.94, 30)
    ratio = 1 - 0.5 * m**2 + 0.3 * m
    slope = (1.2 * np.arctanh(m) + 0.4 * m) / beta + 0.05
    return TableLaw(
        beta, m, beta * (1 - m**2) * ratio, slope, 0.8 + 0.3 * m**2 - 0.2 * m, structure=structure
    )


def law_of(name: str, structure: Structure, beta: float = 1.25) -> Law:
    if name == "finite":
        return FiniteLaw(bent(structure, beta), 4, 0.9)
    return ExactLaw(beta, structure) if name == "exact" else bent(structure, beta)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Laws are asked beyond their tables all the time here; one test looks at the warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*learned")
        yield


def sigmas(values: np.ndarray, expected: float) -> float:
    """How far the mean of independent values is off, in its standard errors."""
    return float(abs(values.mean() - expected) / (values.std() / math.sqrt(values.size)))


def power(x: list[float], y: list[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def chi_square(counts: np.ndarray, chances: np.ndarray) -> float:
    """The p-value of counts; rare outcomes are taken together."""
    order = np.argsort(chances)
    expected, seen = chances[order] * counts.sum(), counts[order]
    rare = int(np.searchsorted(np.cumsum(expected), 10.0)) + 1
    groups = np.r_[0, np.arange(rare, len(expected))]
    expected, seen = np.add.reduceat(expected, groups), np.add.reduceat(seen, groups)
    return float(stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue)


# -- langevin: one block ---------------------------------------------------------------------


class OneBlock:
    """The exact law of one block, K = beta (1 - m^2), in Legendre polynomials of m.

    ``step(dt)`` is that of the scheme, written down anew: rows and columns act on the
    coefficients of functions of m, ``f -> E f(m after)``.
    """

    def __init__(self, beta: float, spins: int, j: float, h: float, terms: int = 60) -> None:
        self.beta, self.spins, self.j, self.h = beta, spins, j, h
        self.terms = terms
        self.z, self.weights = legendre.leggauss(400)
        degree = np.arange(terms)
        self.basis = legendre.legvander(self.z, terms - 1)
        self.project = (self.basis * self.weights[:, None]).T * (degree[:, None] + 0.5)
        self.decay = degree * (degree + 1.0)

    def pull(self, m: np.ndarray) -> np.ndarray:
        return -np.arctanh(m) + self.beta * (self.j * m + self.h)

    def generator(self) -> np.ndarray:
        slopes = legendre.legval(self.z, legendre.legder(np.eye(self.terms), axis=0)).T
        drift = (1 - self.z**2) * self.pull(self.z)
        return self.project @ (drift[:, None] * slopes) - np.diag(self.decay / self.spins)

    def step(self, dt: float) -> np.ndarray:
        t = dt / (2 * self.spins)
        r = np.linspace(0, 12, 6001)
        angles = np.cos(math.sqrt(2 * t * (1 - t / 3)) * r)
        turn = legendre.legvander(angles, self.terms - 1).T @ (r * np.exp(-r * r / 2)) * 0.002
        b = np.arctanh(self.z)
        middle = np.tanh(b + dt / 2 * self.pull(self.z))
        moved = np.tanh(b + dt * self.pull(middle))
        drift = self.project @ legendre.legvander(moved, self.terms - 1)
        return turn[:, None] * drift * turn

    def stationary(self, of: np.ndarray) -> np.ndarray:
        """E m and E m^2 of the stationary law of a step."""
        values, vectors = np.linalg.eig(of.T)
        first = vectors[:, np.argmin(abs(values - 1))].real
        return self._moments(first / first[0])

    def after(self, of: np.ndarray, m: float) -> np.ndarray:
        """E m and E m^2 from m."""
        return self._moments(legendre.legvander(np.array([m]), self.terms - 1)[0] @ of)

    @staticmethod
    def _moments(means: np.ndarray) -> np.ndarray:
        return np.array([means[1], (2 * means[2] + 1) / 3])

    def exact(self) -> np.ndarray:
        entropy = ExactLaw(self.beta).entropy(self.z)
        energy = entropy - self.j * self.z**2 / 2 - self.h * self.z
        density = self.weights * np.exp(-self.beta * self.spins * (energy - energy.min()))
        density /= density.sum()
        return np.array([density @ self.z, density @ self.z**2])


def test_langevin_steps_are_of_second_order() -> None:
    """In law at t = 1.6, and of the stationary law; block of 4 spins, where noise is strong."""
    law = OneBlock(1.25, 4, 0.8, 0.1)
    late = law.after(expm(1.6 * law.generator()), -0.5)
    assert np.abs(law.stationary(expm(0.1 * law.generator())) - law.exact()).max() < 1e-6
    times = [0.2, 0.1, 0.05]
    steps = [law.step(dt) for dt in times]
    rest = [float(np.abs(law.stationary(step) - law.exact()).max()) for step in steps]
    powers = [
        np.linalg.matrix_power(s, round(1.6 / dt)) for s, dt in zip(steps, times, strict=True)
    ]
    at_time = [float(np.abs(law.after(p, -0.5) - late).max()) for p in powers]
    assert power(times, rest) == pytest.approx(2, abs=0.15)
    assert power(times, at_time) == pytest.approx(2, abs=0.15)
    assert max(rest[1], at_time[1]) < 1e-4


def test_langevin_steps_have_the_law_they_should() -> None:
    """The moments of the scheme, at a step so long that they are not those of the equation."""
    law, dt = OneBlock(1.25, 4, 0.8, 0.1), 0.8
    field = StochasticField(
        ExactLaw(1.25), np.array([[0.8]]), (1, 1), block=2, field=0.1, dt=dt, members=150_000,
        seed=3, comm=SELF,
    )  # fmt: skip
    assert field.inner > 1
    field.inner = 1  # of the scheme as it is
    field.set(-0.5)
    step = law.step(dt)
    worst = 0.0
    for n in (1, 2, 12):
        field.advance(n - field.step)
        expected, m = law.after(np.linalg.matrix_power(step, n), -0.5), field.m
        assert sigmas(m, expected[0]) < 4
        assert sigmas(m**2, expected[1]) < 4
        exact = law.after(expm(n * dt * law.generator()), -0.5)
        worst = max(worst, sigmas(m, exact[0]), sigmas(m**2, exact[1]))
    assert worst > 5  # the test sees what a step of this length does


@pytest.mark.parametrize(("name", "spins"), [("exact", 4), ("finite", 4), ("bent", 25)])
def test_one_block_has_its_density(name: str, spins: int) -> None:
    """exp(-beta N F) over m, in 20 bins, whatever K is."""
    law, j, h = law_of(name, "langevin"), 0.9, 0.05
    nodes, weights = legendre.leggauss(2000)
    energy = law.entropy(nodes) - j * nodes**2 / 2 - h * nodes
    density = weights * np.exp(-law.beta * spins * (energy - energy.min()))
    edges = np.interp(np.arange(1, 20) / 20, np.cumsum(density) / density.sum(), nodes)
    chances = np.histogram(nodes, [-1, *edges, 1], weights=density / density.sum())[0]
    field = StochasticField(
        law, np.array([[j]]), (1, 1), block=math.isqrt(spins), field=h, dt=0.05, members=25_000,
        seed=5, comm=SELF,
    )  # fmt: skip
    # From the density itself: then only what the steps make of it counts, not how long they take.
    start = np.random.default_rng(1).choice(nodes, 25_000, p=density / density.sum())
    field.set(start[:, None, None])
    field.advance(100)
    assert abs(field.m).max() < 1
    assert chi_square(np.histogram(field.m, [-1, *edges, 1])[0], chances) > 1e-3


def test_a_wrong_mobility_in_the_noise_would_be_seen() -> None:
    """Without the slope of K the density is another; the test above tells them apart."""
    law = bent("langevin")
    whole, flat = LangevinSteps(law, 4), LangevinSteps(law, 4)
    flat.table[:, 0] = -flat.table[:, 1] * law.entropy_derivative(
        np.tanh(np.linspace(-8, 8, 4097)) + flat.table[:, 2]
    )
    assert np.abs(whole.table - flat.table)[1000:3000, 0].max() > 0.02


def test_the_chart_of_a_law() -> None:
    """K = beta c (1 - z^2) (dm/dz)^2 along the table, and m there and back."""
    law = bent("langevin")
    turning = LangevinSteps(law, 16)
    b = np.linspace(-3, 3, 101)[:, None, None]
    m = turning.means(np.tanh(b))
    slope = (turning.means(np.tanh(b + 1e-4)) - turning.means(np.tanh(b - 1e-4))) / 2e-4
    c = turning.rate * 16
    assert np.allclose(law.beta * c * slope**2 * np.cosh(b) ** 2, law.mobility(m), rtol=5e-5)
    values = np.linspace(-1, 1, 201)[:, None, None]
    again = turning.means(turning.state(values))
    assert np.abs(again - values).max() < 1e-8
    assert again[[0, -1], 0, 0] == pytest.approx([-1, 1], abs=1e-15)
    exact = LangevinSteps(ExactLaw(0.7), 16)
    assert exact.rate == pytest.approx(1 / 16, rel=1e-12)
    assert np.abs(exact.means(np.tanh(b)) - np.tanh(b)).max() < 1e-12
    table = exact.table
    off = np.abs(table[:, 0] + np.linspace(-8, 8, 4097))
    assert off[512:-512].max() < 1e-6  # up to |b| = 6, m = 0.99999
    assert off.max() < 1e-3
    assert np.abs(table[:, 1] - 0.7).max() < 1e-8


# -- langevin: fields ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["exact", "bent"])
def test_a_small_field_has_its_density(name: str) -> None:
    """Moments of 2 x 2 coupled blocks of 9 spins against quadrature in four dimensions."""
    law = law_of(name, "langevin")
    nodes, weights = legendre.leggauss(32)
    h = np.array([[0.1, -0.1], [0.0, 0.05]])
    grid = np.stack(np.meshgrid(*[nodes] * 4, indexing="ij")).reshape(2, 2, -1)
    coupled = fft.irfft2(
        fft.rfft2(grid, axes=(0, 1)) * symbol(SMALL)[..., None], (2, 2), axes=(0, 1)
    )
    energy = (law.entropy(grid) - grid * coupled / 2 - h[..., None] * grid).sum(axis=(0, 1))
    density = np.exp(-law.beta * 9 * (energy - energy.min()))
    density *= reduce(np.multiply.outer, [weights] * 4).ravel()
    density /= density.sum()
    field = StochasticField(
        law, symbol(SMALL), (2, 2), block=3, field=h, dt=0.1, members=12_000, seed=6, comm=SELF
    )
    rng = np.random.default_rng(2)
    field.set(grid[..., rng.choice(density.size, 12_000, p=density)].transpose(2, 0, 1))
    field.advance(60)
    m = field.m
    for of in (
        lambda f: f[0, 0],
        lambda f: f[0, 0] ** 2,
        lambda f: f[1, 1],
        lambda f: f[0, 0] * f[0, 1],
        lambda f: f[0, 0] * f[1, 0],
        lambda f: f[0, 1] * f[1, 0],
        lambda f: f.sum(axis=(0, 1)) ** 4,
    ):
        assert sigmas(of(m.transpose(1, 2, 0)), float(density @ of(grid))) < 4
    assert sigmas(field.free_energy() * 4, float(density @ energy)) < 4


def test_langevin_without_noise_is_gradient_flow_of_second_order() -> None:
    """N -> infinity: d_t m = -K mu, for a field of many modes."""
    law, shape, kernel = bent("langevin"), (9, 10), kac_kernel(1.0)
    rng = np.random.default_rng(7)
    start, h = rng.uniform(-0.8, 0.8, shape), rng.normal(0, 0.2, shape)
    coupling = NonlocalEquation(kernel, 1.0, shape, comm=SELF)

    def rate(_: float, m: np.ndarray) -> np.ndarray:
        m = m.reshape(shape)
        mu = law.entropy_derivative(m) - coupling.convolve(m) - h
        return (-law.mobility(m) * mu).ravel()

    exact = solve_ivp(rate, (0, 2), start.ravel(), "DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    errors, times = [], [0.2, 0.1, 0.05]
    for dt in times:
        field = StochasticField(
            law, coupling._symbol, shape, block=10**9, field=h, dt=dt, comm=SELF
        )
        field.inner = 1
        field.set(start)
        field.advance(round(2 / dt))
        errors.append(float(abs(field.m[0].ravel() - exact).max()))
    assert power(times, errors) == pytest.approx(2, abs=0.25)
    assert errors[1] < 2e-3


# -- cosh: one block -------------------------------------------------------------------------


class Counts:
    """Blocks of N spins as chains of their counts, from the equations of the module's text."""

    def __init__(self, law: Law, spins: int, dense: np.ndarray, h: float) -> None:
        self.law, self.spins, self.h = law, spins, h
        cells = dense.size
        self.states = np.array(list(product(range(spins + 1), repeat=cells)))
        ny, nx = dense.shape
        at = list(np.ndindex(dense.shape))
        self.matrix = np.array([[dense[(y - v) % ny, (x - w) % nx] for v, w in at] for y, x in at])
        self.own = float(dense[0, 0])
        halfway = (2 * np.arange(spins) + 1) / spins - 1
        self.tilt = np.arctanh(halfway) - law.beta * law.entropy_derivative(halfway)
        self.kappa = law.prefactor(halfway)

    def rates(self) -> tuple[np.ndarray, np.ndarray]:
        """a and b of every block in every state, (states, blocks)."""
        k, n = self.states, self.spins
        m = 2 * k / n - 1
        u = m @ self.matrix + self.h
        over, under = np.minimum(k, n - 1), np.maximum(k - 1, 0)
        beta, own = self.law.beta, self.own / max(1, n - 1)
        if n == 1:  # a spin that does not feel itself
            u, own = u - self.own * m, 0.0
        a = self.kappa[over] * (1 + np.tanh(self.tilt[over] + beta * (u + own * (1 + m)))) / 2
        b = self.kappa[under] * (1 - np.tanh(self.tilt[under] + beta * (u - own * (1 - m)))) / 2
        return a, b

    def generator(self) -> np.ndarray:
        """Q[from, to]."""
        (a, b), n, cells = self.rates(), self.spins, self.states.shape[1]
        out = np.zeros((len(self.states),) * 2)
        here = np.arange(len(self.states))
        for cell in range(cells):
            stride = (n + 1) ** (cells - 1 - cell)
            k = self.states[:, cell]
            up, down = k < n, k > 0
            out[here[up], here[up] + stride] = (n - k[up]) * a[up, cell]
            out[here[down], here[down] - stride] = k[down] * b[down, cell]
        out[here, here] = -out.sum(axis=1)
        return out

    def gibbs(self) -> np.ndarray:
        k, n = self.states, self.spins
        m, beta = 2 * k / n - 1, self.law.beta
        energy = 0.5 * (m * (m @ self.matrix)).sum(1) + self.h * m.sum(1)
        energy += 0.5 * self.own / max(1, n - 1) * (m**2).sum(1)
        tilts = np.append(0, np.cumsum(2 * self.tilt))
        log = stats.binom(n, 0.5).logpmf(k).sum(1) + tilts[k].sum(1) + beta * n * energy
        out = np.exp(log - log.max())
        return out / out.sum()

    def step(self, dt: float) -> np.ndarray:
        """The scheme's transition matrix."""
        a, b = self.rates()
        half = np.array([self._frozen(p, q, k, dt / 2) for p, q, k in zip(a, b, self.states)])  # noqa: B905
        out = np.zeros_like(half)
        for i in range(len(half)):
            for j in range(len(half)):
                ahead = (np.maximum(0, 2 * r[j] - r[i]) for r in (a, b))
                out[i] += half[i, j] * self._frozen(*ahead, self.states[j], dt / 2)
        return out

    def _frozen(self, a: np.ndarray, b: np.ndarray, k: np.ndarray, dt: float) -> np.ndarray:
        share = (1 - np.exp(-(a + b) * dt)) / (a + b)
        every = np.arange(self.spins + 1)
        cells = [
            np.convolve(
                stats.binom.pmf(every[: self.spins - up + 1], self.spins - up, p),
                stats.binom.pmf(every[: up + 1], up, 1 - q),
            )
            for up, p, q in zip(k, a * share, b * share, strict=True)
        ]
        return reduce(np.multiply.outer, cells).ravel()

    def field(self, dense: np.ndarray, **options: Any) -> StochasticField:
        field = StochasticField(
            self.law, symbol(dense), dense.shape, block=math.isqrt(self.spins), field=self.h,
            comm=SELF, **options,
        )  # fmt: skip
        return field

    def counted(self, field: StochasticField) -> np.ndarray:
        """How many members are in each state."""
        k = field.state.reshape(len(field.state), -1)
        place = np.zeros(len(k), np.int64)
        for column in k.T:
            place = place * (self.spins + 1) + column
        return np.bincount(place, minlength=len(self.states))


ONE, TWO = np.array([[1.1]]), np.array([[0.3], [0.5]])
CHAINS: Any = pytest.mark.parametrize(
    ("name", "spins", "dense"),
    [("exact", 9, ONE), ("bent", 9, ONE), ("exact", 4, TWO), ("bent", 4, TWO)],
)


@pytest.mark.parametrize(
    ("name", "spins", "dense"), [*CHAINS.args[1], ("exact", 1, ONE), ("exact", 1, TWO)]
)
def test_jumps_are_in_detailed_balance(name: str, spins: int, dense: np.ndarray) -> None:
    chain = Counts(law_of(name, "cosh"), spins, dense, 0.1)
    flow = chain.gibbs()[:, None] * chain.generator()
    assert np.abs(flow - flow.T).max() < 1e-14
    assert abs(flow).max() > 1e-3


@pytest.mark.parametrize("spins", [64, 1024])
def test_jumps_have_drift_and_variance_of_the_law(spins: int) -> None:
    """-m + tanh(beta u) and (2 / N)(1 - m tanh(beta u)), up to 1 / N^2 and 1 / N of each."""
    j, beta = 0.9, 1.25
    chain = Counts(ExactLaw(beta, "cosh"), spins, np.array([[j]]), 0.1)
    (a, b), k = (r[:, 0] for r in chain.rates()), chain.states[:, 0]
    up, down, m = (spins - k) * a, k * b, 2 * k / spins - 1
    pull = np.tanh(beta * (j * m + 0.1))
    assert np.abs((up - down) * 2 / spins - (pull - m)).max() < 1 / spins**2
    variance = (up + down) * 2 / spins
    assert np.abs(variance - (1 - m * pull)).max() < 1.5 / spins


@CHAINS
def test_cosh_steps_are_of_second_order(name: str, spins: int, dense: np.ndarray) -> None:
    """Total variation at t = 1 from the master equation, and of the stationary law."""
    chain = Counts(law_of(name, "cosh"), spins, dense, 0.1)
    exact, times = expm(chain.generator()), [0.5, 0.25, 0.125]
    steps = [chain.step(dt) for dt in times]
    ends = [np.linalg.matrix_power(s, round(1 / dt)) for s, dt in zip(steps, times, strict=True)]
    errors = [0.5 * float(abs(end - exact).sum(1).max()) for end in ends]
    assert power(times, errors) == pytest.approx(2, abs=0.3)
    rest = [chain.gibbs() @ np.linalg.matrix_power(s, 200) for s in steps]
    errors = [0.5 * float(abs(p - chain.gibbs()).sum()) for p in rest]
    assert power(times, errors) == pytest.approx(2, abs=0.3)


@CHAINS
def test_cosh_steps_have_the_law_they_should(name: str, spins: int, dense: np.ndarray) -> None:
    """The scheme's own distribution at long steps, the master equation's at short ones."""
    chain = Counts(law_of(name, "cosh"), spins, dense, 0.1)
    start = np.zeros(len(chain.states))
    start[-1] = 1.0  # all up
    field = chain.field(dense, dt=0.5, members=60_000, seed=8)
    field.inner = 1
    field.set(1.0)
    field.advance(1)
    step = chain.step(0.5)
    assert chi_square(chain.counted(field), start @ step) > 1e-3
    field.advance(1)
    assert chi_square(chain.counted(field), start @ step @ step) > 1e-3
    field = chain.field(dense, dt=0.1, members=60_000, seed=9)
    field.set(1.0)
    field.advance(10)
    assert chi_square(chain.counted(field), start @ expm(chain.generator())) > 1e-3
    # From the stationary law: then it only matters whether it stays.
    drawn = np.random.default_rng(3).choice(len(start), 60_000, p=chain.gibbs())
    field.set(2 * chain.states[drawn].reshape(-1, *dense.shape) / spins - 1)
    field.step = 10  # other noise
    field.advance(20)
    assert chi_square(chain.counted(field), chain.gibbs()) > 1e-3


@pytest.mark.parametrize("dt", [0.1, 1.0])
def test_free_spins_in_a_field_are_exact_at_any_step(dt: float) -> None:
    """Mean m, its variance and its correlation in time, of blocks of 64^2 spins."""
    beta, h, spins, shape = 1.25, 0.3, 64**2, (60, 64)
    field = StochasticField(
        ExactLaw(beta, "cosh"), np.zeros((60, 33)), shape, block=64, field=h, dt=dt, seed=10,
        comm=SELF,
    )  # fmt: skip
    field.set(-0.5)
    end, cells = math.tanh(beta * h), math.prod(shape)

    def moments(t: float) -> tuple[float, float]:
        """Of spins that all start with the mean -1/2: up or down, each a chain of two states."""
        kept = math.exp(-t)
        means = [s * kept + end * (1 - kept) for s in (1, -1)]
        return 0.25 * means[0] + 0.75 * means[1], (
            0.25 * (1 - means[0] ** 2) + 0.75 * (1 - means[1] ** 2)
        ) / spins

    for t in (1.0, 2.0):
        field.advance(round(t / dt) - field.step)
        mean, variance = moments(t)
        m = field.m.ravel()
        assert abs(m.mean() - mean) < 4 * math.sqrt(variance / cells)
        assert abs(m.var() / variance - 1) < 4 * math.sqrt(2 / cells)
    assert np.array_equal(field.state, np.rint((field.m + 1) * spins / 2))
    field.advance(round(8 / dt))
    before = field.m.ravel() - end
    field.advance(round(1 / dt))
    after = field.m.ravel() - end
    correlation = (before * after).mean() * spins / (1 - end**2)
    assert abs(correlation - math.exp(-1)) < 4 / math.sqrt(cells)
    neighbours = (after.reshape(shape) * np.roll(after.reshape(shape), 1, 0)).mean()
    assert abs(neighbours * spins / (1 - end**2)) < 4 / math.sqrt(cells)


# -- cosh: fields ----------------------------------------------------------------------------


def test_cosh_tends_to_the_nonlocal_equation() -> None:
    """Differences as 1 / sqrt(N): fluctuations, and no drift beside them."""
    kernel, shape, beta, block = kac_kernel(1200), (24, 24), 1.25, 512
    coupling = NonlocalEquation(kernel, 1 / beta, shape, block=block, field=0.05, comm=SELF)
    y, x = np.indices(shape) * 2 * np.pi / 24
    start = 0.2 + 0.4 * np.sin(y) * np.cos(x)
    ((_, exact),) = coupling.evolve(start, [2.0], 1e-9)
    spreads = []
    for side in (64, 512):
        field = StochasticField(
            ExactLaw(beta, "cosh"), coupling._symbol, shape, block=side, field=0.05, dt=0.05,
            seed=11, comm=SELF,
        )  # fmt: skip
        field.set(start)
        field.advance(40)
        difference = field.m[0] - exact
        spreads.append(difference.std() * side)
        # Spins of one block have a variance below 1; the mean of the field has grown some.
        assert abs(difference.mean()) < 4 * 1.5 / (side * 24)
    assert 0.7 < spreads[0] < 1.3
    assert spreads[1] == pytest.approx(spreads[0], rel=0.15)


@BOTH
def test_free_energy(structure: Structure) -> None:
    """As the nonlocal equation's, but for T ln 2."""
    kernel, shape, beta = kac_kernel(8), (16, 18), 1.25
    h = np.random.default_rng(12).normal(0, 0.3, shape)
    equation = NonlocalEquation(kernel, 1 / beta, shape, block=4, field=h, comm=SELF)
    field = StochasticField(ExactLaw(beta, structure), kernel, shape, block=4, field=h, comm=SELF)
    field.set(np.tile(np.sin(np.arange(18)), (16, 1)))
    sample, m = field.measure(), field.m
    assert sample.time == 0
    expected = equation.free_energy(m[0]) + math.log(2) / beta
    assert sample.free_energy[0] == pytest.approx(expected, abs=1e-12)
    assert sample.magnetization[0] == pytest.approx(m.mean(), abs=1e-14)
    assert np.allclose(field.convolve(m)[0], equation.convolve(m[0]), atol=1e-14)


@pytest.mark.parametrize("value", [1.0, -1.0])
@BOTH
def test_saturated_fields_stay_within_one(structure: Structure, value: float) -> None:
    """Strong fields, cold, few spins, long steps: nothing leaves [-1, 1], nothing is lost."""
    for law in (ExactLaw(20.0, structure), bent(structure, 20.0)):
        field = StochasticField(
            law, symbol(SMALL), (2, 2), block=2, field=2.0, dt=0.5, members=50, comm=SELF
        )
        field.set(value)
        field.advance(8)
        assert abs(field.m).max() <= 1
        assert field.m.mean() > 0.7
        assert np.isfinite(field.measure().free_energy).all()


# -- bits ------------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("shape", [(16, 16), (13, 15)])
@pytest.mark.parametrize("name", ["exact", "bent"])
@BOTH
def test_same_bits_on_any_number_of_ranks(
    comm: MPI.Intracomm, structure: Structure, name: str, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(13)
    h, start = rng.normal(0, 0.2, shape), rng.uniform(-0.9, 0.9, shape)
    whole = StochasticField(
        law_of(name, structure), kac_kernel(4), shape, block=6, field=h, seed=14, comm=SELF
    )
    rows = slice(shape[0] * comm.rank // comm.size, shape[0] * (comm.rank + 1) // comm.size)
    many = StochasticField(
        law_of(name, structure), kac_kernel(4), shape, block=6, field=h[rows], seed=14, comm=comm
    )
    whole.set(start)
    many.set(start[rows])
    times = [0.0, 0.1, 1.5]
    for (t, own), (_, expected) in zip(many.run(times), whole.run(times), strict=True):
        assert np.array_equal(own[0], expected[0, rows]), t
        here, there = many.measure(), whole.measure()
        assert here.magnetization == there.magnetization
        assert here.free_energy == there.free_energy
    assert np.array_equal(many.state[0], whole.state[0, rows])


@pytest.mark.mpi
@BOTH
def test_members_have_the_same_bits_wherever_they_are(
    comm: MPI.Intracomm, structure: Structure
) -> None:
    def made(members: int, where: MPI.Intracomm) -> StochasticField:
        field = StochasticField(
            bent(structure), symbol(SMALL), (2, 2), block=3, field=0.1, members=members, seed=15,
            comm=where,
        )  # fmt: skip
        field.set(0.2)
        field.advance(20)
        return field

    seven, all_here = made(7, comm), made(7, SELF)
    assert np.array_equal(seven.m, all_here.m[seven.numbers])
    assert np.array_equal(
        seven.measure().free_energy, all_here.measure().free_energy[seven.numbers]
    )
    assert np.array_equal(made(1, SELF).m[0], all_here.m[0])  # member 0 is the single field
    assert len({m.tobytes() for m in all_here.m}) == 7


@BOTH
def test_steps_may_be_cut_anywhere(structure: Structure) -> None:
    def made(seed: int = 16) -> StochasticField:
        field = StochasticField(
            bent(structure), kac_kernel(1), (8, 9), block=4, seed=seed, comm=SELF
        )
        field.set(0.3)
        return field

    once, twice, later, other = made(), made(), made(), made(17)
    once.advance(6)
    twice.advance(2)
    later.state, later.step = twice.state.copy(), twice.step
    twice.advance(4)
    later.advance(4)
    other.advance(6)
    assert np.array_equal(once.m, twice.m)
    assert np.array_equal(once.m, later.m)
    assert not np.array_equal(once.m, other.m)
    assert later.time == pytest.approx(0.6)
    once.set(0.3)
    assert once.time == 0
    assert np.abs(once.m - 0.3).max() < 0.1 / 16 * 20


@BOTH
def test_a_step_may_be_cut_between_its_inner_ones(structure: Structure) -> None:
    """And goes on in finer ones where the law has become stiffer; their noise is fresh."""

    def made(coupling: float, step: int = 0, begun: int = 0, parts: int = 1) -> StochasticField:
        field = StochasticField(
            bent(structure), coupling * np.ones((4, 3)), (4, 4), block=4, dt=0.9, comm=SELF
        )
        field.set(0.3)
        field.go_on(step, begun, parts)
        return field

    once, cut = made(1.0), made(1.0)
    assert once.inner > 3
    once.advance(2)
    for _ in range(2 * once.inner):
        later = made(1.0, cut.step, cut.begun, cut.parts)
        later.state = cut.state.copy()
        later.advance_some(1)
        cut = later
    assert (cut.step, cut.begun) == (2, 0)
    assert np.array_equal(once.m, cut.m)
    stiff = made(3.0, 5, 2, once.inner)
    assert stiff.inner > once.inner
    assert stiff.parts % once.inner == 0
    assert stiff.parts >= stiff.inner
    assert stiff.begun / stiff.parts == 2 / once.inner
    stiff.advance(2)
    assert (stiff.step, stiff.begun, stiff.parts) == (7, 0, stiff.inner)


# -- range and bad input ---------------------------------------------------------------------


@BOTH
def test_blocks_beyond_the_law_are_counted(structure: Structure) -> None:
    m = np.linspace(-0.5, 0.5, 9)
    law = TableLaw(1.0, m, 1 - m**2, np.arctanh(m), structure=structure)
    field = StochasticField(law, np.zeros((4, 3)), (4, 4), block=10, dt=0.1, comm=SELF)
    field.set(0.0)
    field.advance(1)
    assert (field.outside, law.outside) == (0, 0)  # making tables does not count
    field.field = np.array(3.0)
    with pytest.warns(UserWarning, match="16 blocks have m beyond -0.5 to 0.5"):
        field.advance(20)
    assert field.outside == 16


@BOTH
def test_what_cannot_work_is_named(structure: Structure) -> None:
    law, kernel = ExactLaw(1.0, structure), kac_kernel(2.0)

    def refused(name: str, coupling: Any = kernel, **options: Any) -> None:
        given = {"block": 4, "comm": SELF} | options
        with pytest.raises(InputError, match=f"^{name}="):
            StochasticField(given.pop("law", law), coupling, given.pop("shape", (8, 8)), **given)

    refused("shape", shape=(0, 8))
    refused("block", block=0)
    refused("gamma", block=1)
    for dt in (0.0, -0.1, 1.5, math.nan):
        refused("dt", dt=dt)
    refused("members", members=0)
    refused("seed", seed=-1)
    refused("field", field=np.zeros((7, 8)))
    refused("field", field=math.nan)
    for bad in (np.zeros((8, 8)), np.zeros((8, 5), complex), np.full((8, 5), np.nan)):
        refused("coupling", bad)
    if structure == "cosh":
        refused("block", np.zeros((8, 5)), block=5000)

    class Negative(ExactLaw):
        def mobility(self, m: np.ndarray) -> np.ndarray:
            return -super().mobility(m)

        prefactor = mobility

    refused("law", law=Negative(1.0, structure))
    field = StochasticField(law, kernel, (8, 8), block=4, comm=SELF)
    for m in (1.1, math.nan, np.zeros((8, 7))):
        with pytest.raises(InputError, match="^m="):
            field.set(m)
    for times in ([0.05], [0.2, 0.1], [-0.1], [math.nan]):
        with pytest.raises(InputError, match="^times="):
            field.run(times)
    field.set(0.0)
    field.advance(2)
    with pytest.raises(InputError, match="^times="):
        field.run([0.1])
    assert [t for t, _ in field.run([0.2, 0.5])] == pytest.approx([0.2, 0.5])


@pytest.mark.mpi
def test_counted_fields_have_the_mean_to_one_spin(comm: MPI.Intracomm) -> None:
    """0.3 of blocks of four spins was 0.5; the same numbers on any ranks, and whole ones stay."""
    law, kernel, shape = ExactLaw(1.0, "cosh"), kac_kernel(0.5), (12, 10)

    def counts(m: Any, comm: MPI.Intracomm, members: int = 1) -> np.ndarray:
        field = StochasticField(law, kernel, shape, block=2, members=members, comm=comm)
        cut = m if np.ndim(m) == 0 or members > 1 or comm.size == 1 else m[field.slabs.rows]
        field.set(cut)
        return np.concatenate(comm.allgather(field.state), axis=1 if members == 1 else 0)

    smooth = 0.9 * np.cos(np.arange(120.0).reshape(shape) / 20)
    for m in (-1.0, -0.37, 0.0, 0.3, 1.0, smooth):
        found = counts(m, comm)
        up = 2 * (np.broadcast_to(m, shape) + 1)
        assert abs(found.sum() - up.sum()) <= 0.5 + 1e-6
        assert abs(found[0] - up).max() < 1 + 1e-6
        assert (found == counts(m, SELF)).all()
        assert (counts(np.broadcast_to(m, shape), SELF, members=2) == found).all()
        assert (counts(found[0] / 2 - 1, comm) == found).all()


@pytest.mark.mpi(min_size=2)
def test_a_bad_slab_on_one_rank_is_refused_on_all(comm: MPI.Intracomm) -> None:
    field = StochasticField(ExactLaw(1.0), kac_kernel(1.0), (16, 16), block=1, comm=comm)
    m = np.full(field.slabs.local, 2.0 if comm.rank == comm.size - 1 else 0.0)
    with pytest.raises(InputError, match="m=2"):
        field.set(m)
