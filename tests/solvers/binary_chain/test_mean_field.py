"""Mean-field models in time: conservation, order, known times of known events, what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.solvers.binary_chain.fluxes import MODELS
from mpiflow.solvers.binary_chain.free_energy import A, S, X
from mpiflow.solvers.binary_chain.mean_field import MeanFieldChains
from mpiflow.solvers.binary_chain.observables import first_minimum
from mpiflow.solvers.binary_chain.stiff import rodas3
from mpiflow.systems.binary_chain import BinaryChain

PAPER = BinaryChain(32, 80.0)


def chains(system: BinaryChain = PAPER, model: str = "mean-field", **options: Any) -> Any:
    """At the start of the paper."""
    made = MeanFieldChains(system, model, **options)
    made.set(system.alternating(0.9998))
    return made


def has_left_1(s: np.ndarray) -> bool:
    return first_minimum(s[None])[0] != 1


# -- the paper's protocol ------------------------------------------------------------------


LONG = pytest.mark.validate


@pytest.mark.parametrize(
    ("beta", "sites", "times", "printed"),
    [
        (80.0, 32, (2.437, 2.012, 1.207, 19.02, 55.19), (33, 24)),
        (160.0, 32, (2.268, 1.979, 1.089, 28.21, 78.54), (52, 36)),
        (160.0, 500, (2.945, 2.624, 1.414, 33.32, 99.54), (46, 36)),
        pytest.param(80.0, 500, (2.735, 2.379, 1.357, 20.67, 63.07), (31, 25), marks=LONG),
        pytest.param(80.0, 1000, (2.860, 2.512, 1.420, 21.48, 66.57), (32, 25), marks=LONG),
        pytest.param(80.0, 2000, (3.000, 2.655, 1.490, 22.43, 70.63), (31, 26), marks=LONG),
        pytest.param(160.0, 1000, (3.140, 2.806, 1.510, 35.21, 107.1), (47, 36), marks=LONG),
        pytest.param(160.0, 2000, (3.340, 2.993, 1.608, 37.23, 115.3), (46, 37), marks=LONG),
    ],
)
def test_times_of_the_feature(
    beta: float, sites: int, times: tuple[float, ...], printed: tuple[int, int]
) -> None:
    """First minimum of the autocorrelation leaves 1: converged values of an independent program,
    to the 0.2 % to which it gave them, and with 4 t_FEc / t_MF and t_FEr / t_MF what is printed in
    Tables 5.1 and 5.2, whose solver took steps of 10 % there."""
    found = []
    for model, expected in zip(MODELS, times, strict=False):
        run = chains(BinaryChain(sites, beta), model)
        found.append(run.first_time(has_left_1, 200.0)[0])
        assert found[-1] == pytest.approx(expected, rel=2e-3)
        assert run.clock[0] == found[-1]
        assert run.first_minimum()[0] == 3
    assert (4 * found[3] / found[0], found[4] / found[0]) == pytest.approx(printed, rel=0.1)


def test_a_feature_that_does_not_come() -> None:
    run = chains()
    assert np.isnan(run.first_time(has_left_1, 1.0)[0])
    assert run.clock[0] == 1.0


def test_the_coarsening_event() -> None:
    """Six phases to 2e3, fewer at 5e3, and nothing more to 1e5 (figures 5.2 and 5.4)."""
    run = chains(BinaryChain(32, 160.0))
    minima = []
    for time in (40.0, 2e3, 5e3, 1e5):
        run.advance(time)
        minima.append(int(run.first_minimum()[0]))
    assert minima == [6, 6, 9, 9]
    assert run.strain()[0] == pytest.approx(0.0296, abs=1e-4)
    assert run.ab_bonds()[0] == pytest.approx(5.80, abs=0.01)
    assert run.steps[0] < 500
    free = chains(BinaryChain(32, 160.0), "free-energy", mobility=50.0)
    free.advance(1e5)
    assert free.strain()[0] == pytest.approx(0.0295, abs=1e-4)
    assert free.ab_bonds()[0] == pytest.approx(4.30, abs=0.01)


@pytest.mark.parametrize(("model", "phases"), [("mean-field", 4), ("free-energy", 2)])
def test_phases_at_the_higher_temperature(model: str, phases: int) -> None:
    """Figure 5.5."""
    run = chains(model=model, mobility=31.2 if model == "free-energy" else None)
    run.advance(1e5)
    s = run.s[0][abs(run.s[0]) > 0.3]
    assert np.count_nonzero(s[1:] * s[:-1] < 0) + 1 == phases


# -- laws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_mass_to_rounding(model: str) -> None:
    run = chains(model=model)
    run.set(np.random.default_rng(3).uniform(-0.9, 0.9, 32))
    before = run.s.sum()
    ends = run.s[0, [0, -1]].copy()
    run.advance(1e4)
    assert run.s.sum() == pytest.approx(before, abs=1e-13)
    assert (run.s[0, [0, -1]] == ends).all()
    assert abs(run.derivative(run.y[0])[1:]).max() < 1e-6  # at rest in X and a


@pytest.mark.parametrize("model", ["free-energy", "free-energy-limited", "master"])
def test_the_free_energy_falls(model: str) -> None:
    """Along (1.2) and (3.16), at every step."""
    run = chains(model=model)
    last = run.free_energy()[0]
    falls = []
    while run.clock[0] < 1e3:
        run.advance(1e3, most=1)
        falls.append(last - run.free_energy()[0])
        last -= falls[-1]
    assert len(falls) > 60
    assert min(falls) > -1e-10
    assert sum(falls) > 0.2


def test_the_free_energy_may_rise_in_the_mean_field_model() -> None:
    """(4.35) lacks the term J_ij (s_j - s_i) of (1.2): from where F is least it moves away."""
    free = chains(model="free-energy", mobility=40.0)
    free.advance(1e5)
    run = chains()
    run.set(free.s[0])
    assert run.free_energy() == pytest.approx(free.free_energy(), abs=1e-9)
    run.advance(1e3)
    assert run.free_energy()[0] > free.free_energy()[0] + 1e-3


@pytest.mark.parametrize(
    ("models", "rest"),
    [(("free-energy", "free-energy-limited", "master"), "g"), (("mean-field", "arrhenius"), "")],
)
def test_models_that_rest_at_the_same_states(models: tuple[str, ...], rest: str) -> None:
    """(1.2) and (3.16) where all g_i are equal, both mean-field laws where no bond has a flux."""
    system = BinaryChain(10, 80.0)
    states = []
    for model in models:
        run = MeanFieldChains(system, model, tolerance=1e-7)
        run.set(np.array([-0.9, 0.6, 0.5, 0.1, 0.3, -0.2, -0.3, -0.6, -0.4, 0.9]))
        run.advance(1e6)
        states.append(run.y[0])
        assert abs(run.derivative(run.y[0])).max() < 1e-10
    for other in states[1:]:
        np.testing.assert_allclose(other, states[0], atol=1e-6)
    if rest:
        g = run.energy.gradient(states[0])[S, 1:-1]
        assert np.ptp(g) < 1e-8


def test_a_wave_grows_by_its_rate_in_time() -> None:
    """A small wave in a long chain, before what happens at the ends comes near."""
    system = BinaryChain(96, 160.0)
    s = 1e-5 * np.cos(0.56 * (np.arange(96) - 48))
    run = MeanFieldChains(system, tolerance=1e-11)
    run.set(s)
    rate = run.derivative(run.y[0])[S, 48] / s[48]
    run.advance(2.0)
    assert run.s[0, 48] / s[48] == pytest.approx(math.exp(2.0 * rate), rel=1e-3)
    assert rate == pytest.approx(0.146, abs=1e-3)


def test_models_agree_where_it_is_hot() -> None:
    """To leading order in beta, with the mobilities (4.46), (4.47) and (4.49) about s = 0, and with
    twice the rate where the exponential stands for the tanh."""
    system = BinaryChain(32, 10.0)
    s = 0.2 * system.alternating(1.0) + np.linspace(-0.5, 0.5, 32)
    half = system.beta / 2
    ends = {}
    for model, mobility, time in (
        ("mean-field", None, 4.0),
        ("point", None, 4.0),
        ("arrhenius", None, 2.0),
        ("free-energy", half, 4.0),
        ("free-energy-limited", half, 4.0),
        ("master", None, 2.0),
    ):
        run = MeanFieldChains(system, model, mobility=mobility)
        run.set(s)
        run.advance(time)
        ends[model] = run.s[0]
    for model, found in ends.items():
        np.testing.assert_allclose(found, ends["mean-field"], atol=0.02, err_msg=model)
    assert abs(ends["mean-field"] - s).max() > 0.2  # which is far more


# -- numerics --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mean-field", "free-energy"])
def test_rodas3_is_of_order_3(model: str) -> None:
    """In spins and in what is constrained, with equal steps."""
    system = BinaryChain(8, 80.0)
    start = chains(system, model, tolerance=1e-8)
    start.advance(0.5)

    def after(steps: int) -> np.ndarray:
        y, h, law = start.y[0].copy(), 1.0 / steps, start.energy.law
        for k in range(steps):
            end = (k + 1) * h
            rodas3(y, law, start._dynamics, start._pairs, 1e9, k * h, h, end, end, 1)
        return y

    exact = after(640)
    counts = np.array([10, 20, 40, 80])
    for row in (S, X, A):
        errors = [abs(after(n) - exact)[row].max() for n in counts]
        order = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert order == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("model", MODELS)
def test_errors_follow_the_tolerance(model: str) -> None:
    exact = chains(model=model, tolerance=1e-9)
    exact.advance(30.0)
    errors = []
    for tolerance in (1e-4, 1e-6):
        run = chains(model=model, tolerance=tolerance)
        run.advance(30.0)
        errors.append(abs(run.y - exact.y).max())
    assert errors[0] < 3e-3
    assert errors[1] < errors[0] / 20


@pytest.mark.parametrize("model", MODELS)
def test_the_stiff_equations_of_the_paper_have_the_same_states(model: str) -> None:
    """(5.2) with a rate of 1e9, by scipy, at a tolerance below what is compared."""
    system = BinaryChain(32, 160.0)
    ours = chains(system, model)
    theirs = chains(system, model, integrator="bdf", tolerance=1e-5)
    for time in (3.0, 1e3):
        ours.advance(time)
        theirs.advance(time)
        np.testing.assert_allclose(theirs.s, ours.s, atol=1e-3)
        np.testing.assert_allclose(np.diff(theirs.x), np.diff(ours.x), atol=1e-3)
    assert 50 < theirs.steps[0] < 1000


def test_the_paper_s_tolerances() -> None:
    run = chains(BinaryChain(32, 160.0), integrator="bdf")
    run.advance(1e4)
    assert run.steps[0] < 150
    assert run.first_minimum()[0] == 9
    assert abs(run.s.sum()) < 1e-6


def test_where_a_run_is_interrupted_changes_no_bits() -> None:
    whole, parts = chains(), chains()
    whole.advance(7.0)
    whole.advance(100.0)
    made = parts.advance(2.0, target=7.0)[0]
    assert 2.0 <= parts.clock[0] < 7.0
    while parts.clock[0] < 7.0:
        made += parts.advance(7.0, most=3)[0]
    assert parts.clock[0] == 7.0
    taken = chains(members=3)  # another process takes the arrays over
    for name in ("y", "clock", "next_step", "steps", "reference"):
        getattr(taken, name)[1] = getattr(parts, name)[0]
    taken.advance(100.0, target=100.0)
    for name in ("y", "clock", "next_step", "steps", "reference"):
        assert (getattr(taken, name)[1] == getattr(whole, name)[0]).all(), name
    assert taken.strain()[1] == whole.strain()[0]


def test_a_frame_does_not_shorten_later_steps() -> None:
    run = chains()
    run.advance(50.0, most=40)
    size, now = run.next_step[0], run.clock[0]
    run.advance(now + 1e-3 * size)
    assert run.clock[0] == now + 1e-3 * size
    assert run.next_step[0] == size


def test_without_mobility_nothing_moves() -> None:
    run = chains(model="free-energy", mobility=0.0)
    before = run.s.copy()
    run.advance(1e3)
    assert (run.s == before).all()


@pytest.mark.mpi
def test_same_bits_on_any_number_of_ranks(comm: MPI.Intracomm) -> None:
    starts = np.random.default_rng(5).uniform(-0.9, 0.9, (5, 8))

    def run(where: MPI.Intracomm | None) -> np.ndarray:
        made = MeanFieldChains(BinaryChain(8, 80.0), members=5, first=3, comm=where)
        made.set(starts[made.numbers - 3])
        made.advance(5.0)
        return np.concatenate([made.y.reshape(len(made.y), -1), made.numbers[:, None]], axis=1)

    rows = gather_records(run(comm), comm)
    if comm.rank == 0:
        np.testing.assert_array_equal(rows, run(None))


@pytest.mark.mpi
def test_all_ranks_refuse_what_one_cannot_start_from(comm: MPI.Intracomm) -> None:
    made = MeanFieldChains(BinaryChain(8), members=2 * comm.size, comm=comm)
    spins = np.zeros(made.s.shape)
    if comm.rank == comm.size - 1:
        spins[-1, 3] = 1.5
    with pytest.raises(InputError, match=r"s=1.5.*-1 to 1"):
        made.set(spins)


# -- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "arhenius"}, "model='arhenius'.*Did you mean arrhenius"),
        ({"integrator": "euler"}, "integrator='euler'.*rodas3 or bdf"),
        ({"members": 0}, "members=0"),
        ({"tolerance": 0.0}, "tolerance=0.0"),
        ({"tolerance": math.nan}, "tolerance=nan"),
        ({"tau": 0.0}, "tau=0.0"),
        ({"tau": math.inf}, "tau=inf"),
        ({"model": "free-energy", "mobility": -1.0}, "mobility=-1.0.*0 or more"),
        ({"model": "master", "mobility": math.inf}, "mobility=inf.*finite"),
        ({"model": "free-energy-limited", "mobility": math.nan}, "mobility=nan"),
        ({"mobility": 3.0}, "mobility=3.0.*none for the model mean-field"),
    ],
)
def test_impossible_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        MeanFieldChains(PAPER, **options)


@pytest.mark.parametrize(
    ("model", "spin", "message"),
    [
        ("mean-field", 1.01, "s=1.01.*from -1 to 1"),
        ("mean-field", math.nan, "s=.*finite numbers"),
        ("free-energy", 1.0, "s=1.0.*logarithm"),
        ("free-energy-limited", -1.0, "s=1.0.*logarithm"),
    ],
)
def test_impossible_spins(model: str, spin: float, message: str) -> None:
    run = MeanFieldChains(PAPER, model)
    s = PAPER.alternating(0.5)
    s[7] = spin
    with pytest.raises(InputError, match=message):
        run.set(s)


@pytest.mark.parametrize("model", ["mean-field", "arrhenius", "master"])
def test_pure_sites_where_no_logarithm_is_taken(model: str) -> None:
    run = MeanFieldChains(PAPER, model)
    run.set(PAPER.alternating())
    run.advance(0.1)
    assert (abs(run.s[0, 1:-1]) < 1).all()


def test_states_that_cannot_be_followed() -> None:
    run = MeanFieldChains(PAPER)
    with pytest.raises(InputError, match="initial state"):
        run.advance(1.0)
    with pytest.raises(InputError, match=r"s=\(31,\)"):
        run.set(np.zeros(31))
    run.set(PAPER.alternating(0.5))
    with pytest.raises(InputError, match="target"):
        run.advance(2.0, target=1.0)
    run.x[0, 9] = run.x[0, 10]
    with pytest.raises(InputError, match=r"x=0.0.*none overlap"):
        run.advance(1.0)
    run.set(PAPER.alternating(0.5))
    run.log_alpha[0] -= 3.0
    with pytest.raises(InputError, match="alpha"):
        run.advance(1.0)
    hot = MeanFieldChains(BinaryChain(32, 0.5))
    with pytest.raises(InputError, match=r"beta=0.5.*alpha"):
        hot.set(PAPER.alternating(0.5))
