"""Curie-Weiss: rates, master equation, events, patches, and what is learned from them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from exact import P_FLOOR, Z_CEILING
from mpi4py import MPI
from scipy.linalg import expm
from scipy.special import gammaln
from scipy.stats import chi2

from mpiflow import initial
from mpiflow.core.block import Block
from mpiflow.core.errors import InputError
from mpiflow.learn.closure.curie_weiss import (
    MeanFieldPlan,
    after_flips,
    generate_pairs,
    learn,
    learned_law,
    load_magnetization,
    training_states,
)
from mpiflow.learn.sde import LearnedSDE
from mpiflow.learn.training import Schedule
from mpiflow.scaleup.spins import window_origins
from mpiflow.solvers import master_equation
from mpiflow.solvers.mean_field import MeanField, _in_64_bits, relax_windows
from mpiflow.systems.curie_weiss import CurieWeiss

SYSTEMS = [CurieWeiss(1.1, 0.1), CurieWeiss(0.8, -0.05), CurieWeiss(0.7, 0.2, -1.3)]
WARM = SYSTEMS[0]


def generator(birth: np.ndarray, death: np.ndarray) -> np.ndarray:
    """Q of a chain, rows sum to 0."""
    return np.diag(birth[:-1], 1) + np.diag(death[1:], -1) - np.diag(birth + death)


def fits(counts: np.ndarray, law: np.ndarray) -> bool:
    """Chi square of counts against probabilities; states expected fewer than 8 times together."""
    expected = law * counts.sum()
    rare = expected < 8
    seen = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    if wanted[-1] < 1:
        assert seen[-1] < 10
        seen, wanted = seen[:-1], wanted[:-1]
    statistic = ((seen - wanted) ** 2 / wanted).sum()
    return bool(chi2.sf(statistic, len(seen) - 1) > P_FLOOR)


# -- rates and laws -----------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_rates_are_glaubers_and_in_detailed_balance(system: CurieWeiss) -> None:
    n = 60
    up = np.arange(n + 1)
    energy, beta = system.energy(up, n), 1.0 / system.temperature
    birth, death = system.chain(n)
    change = np.diff(energy)
    np.testing.assert_allclose(birth[:-1], (n - up[:-1]) / (1 + np.exp(beta * change)), rtol=1e-12)
    np.testing.assert_allclose(death[1:], up[1:] / (1 + np.exp(-beta * change)), rtol=1e-12)
    binomial = gammaln(n + 1) - gammaln(up + 1) - gammaln(n - up + 1)
    gibbs = np.exp(binomial - beta * energy - (binomial - beta * energy).max())
    law = master_equation.stationary(birth, death)
    np.testing.assert_allclose(law, gibbs / gibbs.sum(), rtol=1e-10)
    np.testing.assert_allclose(law[:-1] * birth[:-1], law[1:] * death[1:], rtol=1e-10)


def test_the_energy_is_that_of_all_pairs() -> None:
    spins = np.random.default_rng(1).choice([-1, 1], 30)
    pairs = -0.5 * np.outer(spins, spins).sum() / 30 - 0.1 * spins.sum()
    assert WARM.energy(np.count_nonzero(spins > 0), 30) == pytest.approx(pairs)


def test_many_spins_rest_at_the_fixed_point() -> None:
    """At 64^2 spins of T = 1.1, h = 0.1 (FACTS: mean about 0.49, spread about 0.025)."""
    n = 64**2
    law = master_equation.stationary(*WARM.chain(n))
    m = 2.0 * np.arange(n + 1) / n - 1.0
    mean = law @ m
    assert abs(WARM.drift(WARM.fixed_point())) < 1e-12
    assert abs(mean - WARM.fixed_point()) < 4 / n
    # Gaussian fluctuations: susceptibility (1 - m^2) / (T - (1 - m^2)), times T / n.
    slope = 1 - mean**2
    expected = math.sqrt(WARM.temperature * slope / (WARM.temperature - slope) / n)
    assert math.sqrt(law @ m**2 - mean**2) == pytest.approx(expected, rel=0.01)
    gap = master_equation.spectral_gap(*WARM.chain(n))
    assert gap == pytest.approx(1 - slope / WARM.temperature, rel=0.01)


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_master_equation_is_solved(system: CurieWeiss) -> None:
    n = 14
    birth, death = system.chain(n)
    q = generator(birth, death)
    start = np.eye(n + 1)[[0, 5, 14]]
    times = [0.0, 0.3, 0.3, 2.0, 11.0]
    for time, law in zip(times, master_equation.evolve(start, birth, death, times), strict=True):
        np.testing.assert_allclose(law, start @ expm(q * time), atol=1e-10)
    eigenvalues = np.sort(np.real(np.linalg.eigvals(q)))
    assert master_equation.spectral_gap(birth, death) == pytest.approx(-eigenvalues[-2])
    passage = master_equation.passage_times(birth, death)
    for end in (1, 7, 14):
        waiting = np.linalg.solve(q[:end, :end], -np.ones(end))
        assert passage[:end].sum() == pytest.approx(waiting[0])


def test_the_law_of_large_systems_keeps_its_weight_and_comes_to_rest() -> None:
    n = 1024
    birth, death = WARM.chain(n)
    start = np.zeros((2, n + 1))
    start[0, 256] = start[1, 1000] = 1.0
    first, last = master_equation.evolve(start, birth, death, [1.0, 100.0])
    np.testing.assert_allclose(first.sum(axis=1), 1.0, atol=1e-12)
    assert (first >= 0).all()
    rest = master_equation.stationary(birth, death)
    assert abs(last - rest).sum(axis=1).max() < 1e-9


@pytest.mark.parametrize("system", SYSTEMS)
def test_laws_after_flips_are_those_of_the_jump_chain(system: CurieWeiss) -> None:
    """Against powers of its matrix, and against sampled events."""
    n, flips, boxes = 12, 5, 8000
    birth, death = system.chain(n)
    jumps = generator(birth, death) / (birth + death)[:, None] + np.eye(n + 1)
    start = np.eye(n + 1)[[0, 4]]
    laws = after_flips(start, birth, death, flips)
    solver = MeanField(system, n, np.full(boxes, 4), np.arange(boxes))
    for frame in range(4):
        law = next(laws)
        expected = start @ np.linalg.matrix_power(jumps, frame * flips)
        np.testing.assert_allclose(law, expected, atol=1e-14)
        assert frame == 0 or fits(np.bincount(solver.up, minlength=n + 1), law[1])
        solver.advance(seed=21, flips=flips)


# -- events -------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_events_have_the_law_of_the_master_equation(system: CurieWeiss) -> None:
    n, boxes, times = 24, 8000, [0.4, 1.5, 6.0]
    birth, death = system.chain(n)
    start = np.eye(n + 1)[[6]]
    solver = MeanField(system, n, np.full(boxes, 6), np.arange(boxes))
    for time, law in zip(times, master_equation.evolve(start, birth, death, times), strict=True):
        solver.advance(seed=3, until=time)
        assert fits(np.bincount(solver.up, minlength=n + 1), law[0])


def test_mean_and_spread_of_64_squared_spins() -> None:
    n, boxes = 64**2, 400
    birth, death = WARM.chain(n)
    m = 2.0 * np.arange(n + 1) / n - 1.0
    start = np.eye(n + 1)[[n // 4]]
    solver = MeanField(WARM, n, np.full(boxes, n // 4), np.arange(boxes))
    for time, law in zip(
        (2.0, 8.0), master_equation.evolve(start, birth, death, (2.0, 8.0)), strict=True
    ):
        solver.advance(seed=4, until=time)
        mean, variance = law[0] @ m, law[0] @ m**2 - (law[0] @ m) ** 2
        z = (solver.magnetization.mean() - mean) / math.sqrt(variance / boxes)
        assert abs(z) < Z_CEILING
        ratio = solver.magnetization.var(ddof=1) / variance
        assert abs(ratio - 1) < Z_CEILING * math.sqrt(2 / (boxes - 1))


def test_waiting_times_add_up_to_passages() -> None:
    """Below the critical temperature, over the barrier between two phases."""
    system, n, boxes = CurieWeiss(0.8), 10, 2000
    solver = MeanField(system, n, np.zeros(boxes, int), np.arange(boxes))
    arrived = np.full(boxes, np.nan)
    for _ in range(4000):
        solver.advance(seed=5, flips=1)
        new = (solver.up == 8) & np.isnan(arrived)
        arrived[new] = solver.clock[new]
        if not np.isnan(arrived).any():
            break
    expected = master_equation.passage_times(*system.chain(n))[:8].sum()
    z = (arrived.mean() - expected) / (arrived.std(ddof=1) / math.sqrt(boxes))
    assert abs(z) < Z_CEILING


def test_events_are_the_same_in_any_pieces_and_company() -> None:
    up, members = np.arange(10, 50), np.arange(100, 140)
    whole = MeanField(WARM, 60, up, members)
    flips = whole.advance(seed=6, until=5.0)
    assert (flips == whole.events).all()
    pieces = MeanField(WARM, 60, up, members)
    for time in (0.5, 0.51, 3.0, 5.0):
        pieces.advance(seed=6, until=time)
    few = MeanField(WARM, 60, up[7:9], members[7:9])
    few.advance(seed=6, flips=3)
    few.advance(seed=6, until=5.0)
    for name in ("up", "clock", "events"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))
        np.testing.assert_array_equal(getattr(few, name), getattr(whole, name)[7:9])


# -- patches in the mean field ------------------------------------------------------------------


def group_chain(
    system: CurieWeiss, n: int, up: int, group: int, group_up: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rates of the number of up spins of a group, the rest standing still."""
    rise, fall = system.heat_bath(n)
    part = np.arange(group + 1)
    whole = up - group_up + part
    birth = (group - part) * np.append(rise, 0.0)[whole]
    death = part * fall[np.maximum(whole - 1, 0)]
    return birth, death


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_patch_has_the_law_of_its_own_chain(system: CurieWeiss) -> None:
    n, up, group, part, boxes = 64, 40, 16, 7, 8000
    solver = MeanField(
        system,
        n,
        np.full(boxes, up),
        np.arange(boxes),
        group=group,
        group_up=np.full(boxes, part),
    )
    solver.advance(seed=7, until=0.8, stream="mean-field-partial")
    assert (solver.up - solver.group_up == up - part).all()
    chain = group_chain(system, n, up, group, part)
    (law,) = master_equation.evolve(np.eye(group + 1)[[part]], *chain, [0.8])
    assert fits(np.bincount(solver.group_up, minlength=group + 1), law[0])


@pytest.mark.parametrize("system", SYSTEMS)
def test_patches_have_the_drift_and_noise_of_the_whole_to_first_order(system: CurieWeiss) -> None:
    """K E[dM_I] and K Var[dM_I], mean over the patches, against those of the whole system.

    Exact laws of both; the difference per unit of time halves with the duration.
    """
    n, parts, size = 64, [3, 9, 12, 16], 16
    up = sum(parts)

    def rates(chain: tuple[np.ndarray, np.ndarray], at: int, dt: float) -> np.ndarray:
        (law,) = master_equation.evolve(np.eye(len(chain[0]))[[at]], *chain, [dt])
        change = np.arange(len(chain[0])) - at
        mean = law[0] @ change
        return np.array([mean, law[0] @ change**2 - mean**2]) / dt

    def difference(dt: float) -> np.ndarray:
        own = [rates(group_chain(system, n, up, size, part), part, dt) for part in parts]
        return abs(np.sum(own, axis=0) - rates(system.chain(n), up, dt))

    far, near, nearer = difference(0.02), difference(0.01), difference(0.005)
    birth, death = system.chain(n)
    assert (nearer < 0.02 * (birth + death)[up]).all()
    np.testing.assert_allclose(far / near, 2.0, rtol=0.1)
    np.testing.assert_allclose(near / nearer, 2.0, rtol=0.05)


@pytest.mark.parametrize(("length", "seed"), [({"duration": 0.05}, 8), ({"flips": 4}, 9)])
def test_increments_of_pairs_have_the_right_moments(length: dict[str, float], seed: int) -> None:
    """Mean and variance of K dM over time, of sampled pairs, within error bars and the bias."""
    plan = MeanFieldPlan(large=32, patch=8, states=400, repeats=64, **length)  # type: ignore[arg-type]
    pairs = generate_pairs(WARM, plan, seed=seed)
    assert pairs is not None
    n, k = plan.large**2, plan.patches
    birth, death = WARM.chain(n)
    # K times the increment of M is K 2 / n times that of the patch's number of spins.
    increment, time = pairs.increments("partial"), pairs.elapsed
    drift = 2.0 / n * (birth - death)[pairs.up][:, None]
    noise = (2.0 / n) ** 2 * (birth + death)[pairs.up][:, None]
    # Ratios of sums: times of a given number of flips are random, their inverses have other means.
    scatter = (k * noise * time).sum()
    rest, slack = increment - drift * time, time.mean()  # relative bias of first order
    bias = slack * abs(drift * time).sum()
    assert abs(rest.sum()) < Z_CEILING * math.sqrt(scatter) + bias
    # Patches of a state differ too; that share of the variance is of the order of time.
    square = rest**2
    error = Z_CEILING * square.std() * math.sqrt(rest.size) / scatter
    assert abs(square.sum() / scatter - 1) < error + slack
    np.testing.assert_allclose(
        pairs.increments("naive"),
        2.0 * pairs.after / plan.patch**2 - 2.0 * pairs.up[:, None] / n,
        atol=1e-14,
    )


# -- windows and training states ----------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_windows_keep_equilibrium(system: CurieWeiss) -> None:
    n, boxes = 16, 6000
    law = master_equation.stationary(*system.chain(n))
    up = np.random.default_rng(10).choice(n + 1, boxes, p=law)
    block = Block.periodic(np.zeros((boxes, 4, 4), np.int8), np.arange(boxes))
    initial.shuffled(block, 11, 2.0 * up / n - 1.0)
    states = np.array(block.inner())
    corners = np.array(list(window_origins((4, 4), 2, 1)))
    before = states.copy()
    relax_windows(states, np.arange(boxes), system, corners, seed=12, window=2, duration=1.0)
    assert 0.05 < (before != states).mean()
    assert fits(np.bincount((states > 0).sum(axis=(1, 2)), minlength=n + 1), law)


def test_rare_attempts_in_windows_are_as_right_as_others() -> None:
    """Limits of 64 bits: 52 were 11 % off at 1e-15."""
    chances = np.array([0.0, 1e-15, 3e-12, 0.25, 1.0])
    limits = _in_64_bits(chances)
    np.testing.assert_allclose(limits * 2.0**-64, chances, rtol=1e-4)


def test_windows_that_cover_the_lattice_bring_it_to_equilibrium() -> None:
    n, boxes = 16, 6000
    states = np.ones((boxes, 4, 4), np.int8)
    corners = np.array(list(window_origins((4, 4), 2, 1)))
    members = np.arange(boxes)
    for level in range(12):  # each site is in four windows of a level
        relax_windows(states, members, WARM, corners, seed=13, window=2, duration=1.0, level=level)
    law = master_equation.stationary(*WARM.chain(n))
    assert fits(np.bincount((states > 0).sum(axis=(1, 2)), minlength=n + 1), law)
    # No site is left out or preferred: every one has the same mean.
    mean = (law @ np.arange(n + 1)) * 2 / n - 1
    z = (states.mean(axis=0) - mean) / math.sqrt((1 - mean**2) / boxes)
    assert abs(z).max() < Z_CEILING


def test_training_states_cover_the_magnetizations() -> None:
    plan = MeanFieldPlan(large=32, patch=8, states=600)
    states = training_states(WARM, plan, np.arange(600), 14)
    assert set(np.unique(states)) == {-1, 1}
    m = states.mean(axis=(1, 2))
    # Half of them are uniform, so every quarter of the range has an eighth or more.
    shares = np.histogram(m, 4, (-1.0, 1.0))[0] / 600
    assert (shares > 0.125 - Z_CEILING * math.sqrt(0.125 * 0.875 / 600)).all()


@pytest.mark.mpi
def test_pairs_are_the_same_on_any_ranks(comm: MPI.Intracomm) -> None:
    plan = MeanFieldPlan(large=32, patch=8, states=50, repeats=3)
    pairs = generate_pairs(WARM, plan, seed=15, comm=comm, chunk=7)
    alone = generate_pairs(WARM, plan, seed=15)
    assert (pairs is None) == (comm.rank > 0)
    assert alone is not None
    if pairs is not None:
        for name in ("up", "before", "after", "elapsed"):
            np.testing.assert_array_equal(getattr(pairs, name), getattr(alone, name))


# -- learning -----------------------------------------------------------------------------------


class Linear(LearnedSDE):
    """dz = -z / 2 dt + 0.3 dB."""

    def __init__(self) -> None:
        super().__init__(1)
        self.mean.zero_()
        self.low.fill_(-2.5)
        self.high.fill_(2.5)

    def drift(self, z: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return -0.5 * z

    def cholesky(self, z: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return torch.full((len(z), 1, 1), 0.3)


def test_the_law_of_a_linear_sde() -> None:
    dt, steps, starts = 0.2, 3, np.array([-1.0, 0.4])
    law = learned_law(Linear(), starts, dt=dt, steps=steps, frames=8)
    k, a = steps * np.arange(9), 1.0 - 0.5 * dt
    rest = 0.3**2 * dt / (1 - a**2)
    np.testing.assert_allclose(law.mean, starts * a ** k[:, None], atol=1e-6)
    np.testing.assert_allclose(law.std[:, 0], np.sqrt(rest * (1 - a ** (2 * k))), atol=1e-6)
    assert law.stationary == pytest.approx((0.0, math.sqrt(rest)), abs=1e-6)
    assert law.gap == pytest.approx(-math.log(a) / dt, rel=1e-5)


def test_what_is_learned_from_patches_is_the_drift_and_the_noise_of_the_whole() -> None:
    """Against the chain of the whole; and its rollouts have the law that quadrature says."""
    plan = MeanFieldPlan(large=32, patch=16, states=3000, repeats=32, duration=0.1)
    pairs = generate_pairs(WARM, plan, seed=16)
    assert pairs is not None
    model = learn(WARM, pairs, seed=16, schedule=Schedule(epochs=40))
    sde, of = model.sde, model.card["goodness"]
    # M is a closure, so that its equation holds (pair_goodness.py); 0.01 is left to the training.
    assert 1 - of["explained_drift"][0] < 0.01 + of["sure"] * of["explained_drift"][1]
    assert abs(of["variance"][0][0] - 1) < 0.01 + of["sure"] * of["variance"][0][1]
    assert abs(of["state_correlation"][0]) < 0.01 + of["sure"] * of["state_correlation"][1]
    assert not any("predictable drift" in text for text in model.card["doubts"])
    n = plan.large**2
    m = np.array([-0.5, 0.0, 0.3, 0.5, 0.7])
    up = np.rint(0.5 * n * (1 + m)).astype(int)
    birth, death = WARM.chain(n)
    with torch.no_grad():
        z = torch.as_tensor(m, dtype=torch.float32)[:, None]
        drift, noise = sde.drift(z)[:, 0].numpy(), sde.cholesky(z)[:, 0, 0].numpy()
    # Of 96000 pairs about a tenth decide the drift near a point.
    near = 0.1 * pairs.elapsed.sum()
    exact = (2.0 / n) ** 2 * (birth + death)[up]
    error = np.sqrt(plan.patches * exact / near)
    wanted = 2.0 / n * (birth - death)[up]
    assert (abs(drift - wanted) < Z_CEILING * error + 0.1 * abs(wanted)).all()
    np.testing.assert_allclose(noise, np.sqrt(exact), rtol=0.1)

    starts = np.array([-0.5, 0.5])
    law = learned_law(sde, starts, dt=0.1, steps=10, frames=4)
    runs, clipped = sde.rollout(
        np.repeat(starts, 300)[:, None],
        np.arange(600),
        dt=0.1,
        steps=40,
        save=10 * np.arange(5),
        seed=17,
    )
    runs = runs.reshape(5, 2, 300)
    assert clipped == 0
    z_mean = (runs.mean(axis=2) - law.mean)[1:] / (law.std[1:] / math.sqrt(300))
    assert abs(z_mean).max() < Z_CEILING
    ratio = runs.var(axis=2, ddof=1)[1:] / law.std[1:] ** 2
    assert abs(ratio - 1).max() < Z_CEILING * math.sqrt(2 / 299)


def test_a_saved_model_predicts_the_same_bits(tmp_path: Path) -> None:
    plan = MeanFieldPlan(large=32, patch=8, states=60, repeats=4)
    pairs = generate_pairs(WARM, plan, seed=18)
    assert pairs is not None
    model = learn(WARM, pairs, seed=18, schedule=Schedule(epochs=2))
    sde = model.sde
    model.save(tmp_path)
    loaded = load_magnetization(tmp_path)
    assert (loaded.plan, loaded.dt, loaded.card) == (plan, 0.25, model.card)
    assert loaded.card["system"] == {"temperature": WARM.temperature, "field": WARM.field}
    assert {"goodness", "doubts", "factor", "validation_loss"} <= set(loaded.card)
    args = np.array([[-0.4], [0.3]]), np.arange(2), np.arange(5.0)
    for a, b in zip(
        sde.rollout_at(*args, dt=0.25, seed=1), loaded.sde.rollout_at(*args, dt=0.25, seed=1),
        strict=True,
    ):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="^model="):
        load_magnetization(tmp_path)


# -- what cannot be -----------------------------------------------------------------------------


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="^temperature="):
        CurieWeiss(0.0)
    with pytest.raises(InputError, match="^field="):
        CurieWeiss(1.0, math.nan)
    with pytest.raises(InputError, match="^sites="):
        WARM.heat_bath(0)
    one = np.array([1])
    with pytest.raises(InputError, match="^up, group_up="):
        MeanField(WARM, 4, np.array([5]), one)
    with pytest.raises(InputError, match="^group="):
        MeanField(WARM, 4, one, one, group=2)
    with pytest.raises(InputError, match="^up, group_up="):
        MeanField(WARM, 4, np.array([3]), one, group=2, group_up=np.array([0]))
    with pytest.raises(InputError, match="^until="):
        MeanField(WARM, 4, one, one).advance(seed=1)
    with pytest.raises(InputError, match="^patch="):
        MeanFieldPlan(patch=12)
    with pytest.raises(InputError, match="^birth, death="):
        master_equation.stationary(np.ones(3), np.ones(3))
    with pytest.raises(InputError, match="^times="):
        list(master_equation.evolve(np.eye(5), *WARM.chain(4), [1.0, 0.5]))
