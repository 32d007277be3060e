"""``mpiflow simulate spin-diffusion``: options, starts, files, and what verify finds in them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from same_files import assert_same

from mpiflow import BinaryChain, Simulation, record
from mpiflow.commands import plot, verify
from mpiflow.core.errors import InputError
from mpiflow.files import checkpoint
from mpiflow.files.schema import BINARY_CHAIN
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.initial import chain as starts
from mpiflow.run.plan import plan
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.simulation.spin_diffusion import options as defaults
from mpiflow.simulation.spin_diffusion.options import SpinDiffusionConfig
from mpiflow.solvers.binary_chain import observables
from mpiflow.solvers.binary_chain.mean_field import MeanFieldChains

ALONE = MPI.COMM_SELF


def config(model: str = "mean-field", out: str | Path = "run.h5", **options: Any) -> Any:
    """A run of milliseconds."""
    short = {"size": 8, "time": 4, "save_every": 1, "seed": 5, "quiet": True, "profile": True}
    return SpinDiffusionConfig(**short | {"model": model, "out": out} | options)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("mean-field", {"size": 7}, "^size=7: allowed is an even number, 6 or more"),
        ("mean-field", {"size": 4}, "^size=4"),
        ("mean-field", {"beta": 0}, "^beta=0"),
        ("mean-field", {"cutoff": 2.6}, r"^cutoff=2.6: allowed is finite, above 2.6"),
        ("mean-field", {"confinement": 2}, "^confinement=2"),
        ("mean-field", {"depth_ab": -1}, "^depth_ab=-1"),
        ("mean-field", {"softening": 1.5}, "^softening=1.5"),
        ("kac", {}, "^model='kac': allowed is 'langevin', 'averaged'"),
        ("free-energy", {"mobility": -1}, "^mobility=-1"),
        ("mean-field", {"mobility": 4}, "^mobility=4.0: allowed is no value with model mean-field"),
        ("master", {"tau": 2}, "^tau=2.0: allowed is no value with model master"),
        ("langevin", {"tau": 0}, "^tau=0"),
        ("langevin", {"tolerance": 1e-6}, "^tolerance=1e-06: .*no value with model langevin"),
        ("averaged", {"integrator": "bdf"}, "^integrator='bdf': .*no value with model averaged"),
        ("averaged", {"epsilon": 0.1}, "^epsilon=0.1: .*no value with model averaged"),
        ("langevin", {"epsilon": -0.1}, "^epsilon=-0.1"),
        ("point", {"rates": "tanh"}, "^rates='tanh': .*no value with model point"),
        ("point", {"dt": 0.1}, "^dt=0.1: .*no value with model point"),
        ("point", {"precondition": False}, "^precondition=False: .*no value but true with model"),
        ("langevin", {"perturb": 1e-3}, "^perturb=0.001: .*no value but 0 with model langevin"),
        ("langevin", {"initial_spin": 0.9}, "^initial_spin=0.9: .*no value with model langevin"),
        ("mean-field", {"initial": "random"}, "^initial='random': .*equations for mean spins"),
        ("free-energy", {"initial_spin": 1}, "^initial_spin=1.0: allowed is below 1 with model"),
        ("mean-field", {"initial_spin": 1.1}, "^initial_spin=1.1"),
        ("mean-field", {"perturb": 1e-3}, "^perturb=0.001: allowed is 0 to 0.0001:"),
        ("mean-field", {"members": 3}, "^members=3: allowed is 1 where all members"),
        ("mean-field", {"device": "cuda"}, "^device='cuda'"),
        ("langevin", {"dt": 0.003, "time": 1}, "^time=1.0: .*multiple of the time step 0.003"),
        ("langevin", {"dt": 1.0}, "^dt=1.0: allowed is .*below .*steps are stable"),
        ("mean-field", {"frames_per_decade": 0}, "^frames_per_decade=0: allowed is 1 to 1000"),
    ],
)
def test_bad_options_are_refused(model: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(model, **options)


def test_defaults_are_those_of_the_model() -> None:
    mean, limited, jumps = (
        config(name) for name in ("mean-field", "free-energy-limited", "langevin")
    )
    assert (mean.tau, mean.integrator, mean.tolerance, mean.mobility) == (1, "rodas3", 1e-5, None)
    assert (limited.tau, limited.mobility, limited.initial_spin) == (None, 1.0, 0.9998)
    assert (jumps.epsilon, jumps.rates, jumps.tolerance) == (0.05, "tanh", None)
    assert jumps.dt == defaults.STEP * 0.05
    assert 0.0025 < config("langevin", precondition=False).dt <= defaults.STEP_OF_ATOMS * 0.05
    assert config("langevin", save_every=0.1, epsilon=0.03).dt == 0.1 / 14  # not 0.0075
    bare = SpinDiffusionConfig(model="langevin", size=8, time=1, epsilon=0.03, out="run.h5")
    assert (bare.dt, bare.save_every) == (1 / 134, 1 / 134)
    assert config("free-energy", integrator="bdf").tolerance == 1e-3
    assert mean.chain() == BinaryChain(8)
    for model, value in (("free-energy", 4.0), ("free-energy-limited", 1.0), ("master", 0.5)):
        assert config(model).mobility == value
        assert MeanFieldChains(BinaryChain(8), model).rate == value
    for integrator, value in defaults.TOLERANCE.items():
        assert MeanFieldChains(BinaryChain(8), integrator=integrator).tolerance == value


# -- starts --------------------------------------------------------------------------------------


def test_shuffled_spins_are_as_many_of_each_between_ends_that_stay() -> None:
    spins = starts.shuffled(12, np.arange(400), seed=3)
    assert (spins[:, 0] == -1).all()
    assert (spins[:, -1] == 1).all()
    assert (spins.sum(axis=1) == 0).all()
    np.testing.assert_array_equal(starts.shuffled(12, np.arange(7, 9), seed=3), spins[7:9])
    # Each inner site is up in half of the members: 5 sigma of 400.
    assert (abs(spins[:, 1:-1].mean(axis=0)) < 5 / math.sqrt(400)).all()


def test_a_perturbation_leaves_ends_and_sum() -> None:
    before = np.tile(BinaryChain(40).alternating(0.9), (2, 1))
    after = starts.perturbed(before, 1e-3, np.arange(2), seed=3)
    change = after - before
    assert (change[:, [0, -1]] == 0).all()
    assert abs(change.sum(axis=1)).max() < 1e-14
    assert 0.5e-3 < abs(change).max() < 2e-3
    assert (change[0] != change[1])[1:-1].all()


def test_runs_start_from_runs_and_arrays(tmp_path: Path) -> None:
    first = config("mean-field", tmp_path / "a.h5", members=3, perturb=1e-4)
    simulate(first, ALONE)
    second = config("free-energy", tmp_path / "b.h5", members=3, initial=str(first.out))
    simulate(second, ALONE)
    with Trajectory(first.out) as a, Trajectory(second.out) as b:
        np.testing.assert_array_equal(b["s"][0], a["s"][-1])
        assert (b["strain"][0] == 0).all()
        np.save(tmp_path / "s.npy", a["s"][-1, 1])
    spins = np.array([-1, -1, 1, 1, -1, 1, -1, 1])
    np.save(tmp_path / "spins.npy", spins)
    simulate(config("point", tmp_path / "c.h5", initial=str(tmp_path / "s.npy")), ALONE)
    jumps = config("langevin", tmp_path / "d.h5", initial=str(tmp_path / "spins.npy"))
    simulate(jumps, ALONE)
    with Trajectory(tmp_path / "c.h5") as c, Trajectory(tmp_path / "d.h5") as d:
        np.testing.assert_array_equal(c["s"][0], np.load(tmp_path / "s.npy"))
        np.testing.assert_array_equal(d["s"][0], spins)
    for model, file, says in (
        ("langevin", "s.npy", "spins of 1 and -1"),
        ("free-energy", "spins.npy", "between -1 and 1"),
    ):
        with pytest.raises(InputError, match=f"^initial=.*{says}"):
            simulate(config(model, tmp_path / "x.h5", initial=str(tmp_path / file)), ALONE)
    assert not (tmp_path / "x.h5").exists()


# -- files -----------------------------------------------------------------------------------------


def test_files_hold_what_the_chains_do(tmp_path: Path) -> None:
    """Also where frames grow, and step by step: where a run is looked at changes no bits."""
    made = config("mean-field", tmp_path / "run.h5", time=100, save_every=0.5, frames_per_decade=3)
    simulate(made, ALONE)
    chains = MeanFieldChains(made.chain(), "mean-field")
    chains.set(made.chain().alternating(0.9998))
    with Trajectory(made.out) as run:
        assert run.time.tolist() == [0, 0.5, 1.07722, 2.32079, 5, 10.7722, 23.2079, 50, 100]
        for frame, time in enumerate(run.time.tolist()):
            chains.advance(time)
            np.testing.assert_array_equal(run["s"][frame], chains.s[0])
            np.testing.assert_array_equal(run["x"][frame], chains.x[0])
            np.testing.assert_array_equal(run["alpha"][frame], np.exp(chains.log_alpha[0]))
            for name in made.scalars:
                assert run[name][frame] == getattr(chains, name)()[0]
        assert run.variables["s"].dims == ("site",)


def test_python_runs_chains(tmp_path: Path) -> None:
    sim = Simulation(BinaryChain(8, beta=160), model="langevin", epsilon=0.3, members=2, comm=ALONE)
    record(sim, tmp_path / "run.h5", time=100 * sim.sim.dt, profile=True, progress=False)
    with Trajectory(tmp_path / "run.h5") as run:
        assert run["s"].dtype == np.int8
        assert run["s"].shape == (2, 2, 8)
    assert verify.verify_file(tmp_path / "run.h5").good
    assert sim.state.shape == (2, 2, 8)
    state = sim.state.copy()
    state[:, 1] = -state[:, 1]
    with pytest.raises(InputError, match=r"^state='positions': allowed is positions that start"):
        sim.set_state(state)
    state[:, 0] = 0.5
    with pytest.raises(InputError, match=r"^state='spins': allowed is spins of 1 and -1"):
        sim.set_state(state)
    with pytest.raises(InputError, match=r"^model=None"):
        Simulation(BinaryChain(8), comm=ALONE)


def test_a_change_on_the_way_is_asked_for(tmp_path: Path) -> None:
    made = config("free-energy", tmp_path / "run.h5")
    simulate(made, ALONE)
    with pytest.raises(InputError, match=r"^beta=160.0: .*was 80.0"):
        simulate(made, ALONE, resume=True, beta=160, time=8)
    resume(made.out, ALONE, beta=160, time=8, quiet=True)
    with Trajectory(made.out) as run:
        assert [part.config["beta"] for part in run.segments] == [80, 160]
    assert verify.verify_file(made.out).good


def test_plans_say_what_there_is(tmp_path: Path) -> None:
    text = plan(config("mean-field", tmp_path / "x.h5", size=2000)).text()
    assert "mean-field equations, rodas3" in text
    assert "as long as their errors allow" in text
    jumps = config("langevin", tmp_path / "x.h5", size=500, members=7, time=10)
    assert f"{round(10 / jumps.dt)} of {jumps.dt:g}" in plan(jumps, 2).text()
    assert "7 systems of 500 sites, 3 to 4 a rank" in plan(jumps, 2).text()
    (spins,) = (s for s in plan(jumps).stored if s.name == "s")
    assert spins.frame == 7 * 500


def test_pictures_have_profiles_over_logarithmic_time(tmp_path: Path) -> None:
    made = config("point", tmp_path / "run.h5", time=100, save_every=0.5, frames_per_decade=5)
    simulate(made, ALONE)
    with Trajectory(made.out) as run:
        text = "\n".join(plot.page(run))
        for name in ("s, ", "x, ", "alpha, "):
            assert f"\n{name}" in text
        assert "logarithmic time 0.5 to 100, site -0.5 to 7.5 upwards" in text
        assert "beta 80" in text


# -- verify ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames() -> dict[str, np.ndarray]:
    """Three frames of a chain that could be."""
    s = np.tile(BinaryChain(8).alternating(0.9), (3, 1))
    s[1:, 1:-1] *= 0.5
    x = 2.3 * np.arange(8) * np.array([1, 1.01, 1.02])[:, None]
    return {
        "s": s,
        "x": x,
        "alpha": np.full((3, 8), 40.0),
        "strain": np.array([0, 0.01, 0.02]),
        "ab_bonds": observables.ab_bonds(s),
        "first_minimum": observables.first_minimum(s),
        "free_energy": np.array([-5.0, -5.1, -5.2]),
        "exchanges": np.array([0, 3, 3]),
    }


def found(path: Path, values: dict[str, np.ndarray], model: str, **changed: np.ndarray) -> str:
    """What ``mpiflow verify`` says of a file with such values."""
    made, values = config(model), values | changed
    names = (*made.scalars, *made.profiles)
    whole = {"s": BINARY_CHAIN["s"].of("int8", "spin")} if made.stochastic else {}
    variables = [(BINARY_CHAIN | whole)[name] for name in names]
    about = {"system": made.system, "config_json": made.model_dump_json(), "seed": 5}
    about |= {"rng": "none", "decomposition_invariant": 1}
    with TrajectoryWriter(
        path, dims={"site": 8}, variables=variables, attributes=about, comm=ALONE
    ) as writer:
        for time in range(3):
            writer.append(time, {name: values[name][time] for name in names})
    return verify.verify_file(path).text


def changed(values: np.ndarray, *place: int, to: float) -> np.ndarray:
    out = values.copy()
    out[place] = to
    return out


def test_values_that_no_chain_can_have_are_found(
    tmp_path: Path, frames: dict[str, np.ndarray]
) -> None:
    assert found(tmp_path / "good.h5", frames, "free-energy").startswith("good")
    rising = np.array([-5.0, -5.2, -5.1])
    assert found(tmp_path / "rise.h5", frames, "arrhenius", free_energy=rising).startswith("good")
    wrong = {
        "frame 2: s is no spin": ("s", (2, 3), 1.2),
        "frame 1: the first of s has changed": ("s", (1, 0), -0.8),
        "frame 2: the last of s has changed": ("s", (2, -1), 0.8),
        "frame 1: the sum of s has changed": ("s", (1, 3), 0.4),
        "frame 1: s does not give ab_bonds": ("ab_bonds", (1,), 5.0),
        "ab_bonds is out of range at frame 1": ("ab_bonds", (1,), 8.0),
        "first_minimum is out of range at frame 2": ("first_minimum", (2,), 9),
        "frame 2: x does not start at 0": ("x", (2, 0), 0.1),
        "frame 1: atoms of x are not in order": ("x", (1, 3), 9.4),
        "frame 2: x does not give strain": ("strain", (2,), 0.021),
        "strain is out of range at frame 1": ("strain", (1,), -1.5),
        "frame 0: alpha is no width": ("alpha", (0, 2), -1.0),
        "frame 2: free_energy rises": ("free_energy", (2,), -5.0),
        "free_energy is not finite at frame 1": ("free_energy", (1,), np.nan),
    }
    for number, (says, (name, place, to)) in enumerate(wrong.items()):
        new = {name: changed(frames[name], *place, to=to)}
        assert says in found(tmp_path / f"{number}.h5", frames, "free-energy", **new)


def test_states_that_the_process_cannot_have_are_found(
    tmp_path: Path, frames: dict[str, np.ndarray]
) -> None:
    s = np.tile(BinaryChain(8).alternating(), (3, 1)).astype(np.int8)
    s[1:, 2:4] = s[1:, 3:1:-1]
    bonds, minimum = observables.ab_bonds(s), observables.first_minimum(s)
    good = frames | {"s": s, "ab_bonds": bonds, "first_minimum": minimum}
    assert found(tmp_path / "good.h5", good, "langevin").startswith("good")
    wrong = {
        "frame 2: s is no spin": ("s", (2, 3), 0),
        "frame 1: the sum of s has changed": ("s", (1, 3), -s[1, 3]),
        "frame 1: s does not give first_minimum": ("first_minimum", (1,), minimum[1] + 1),
        "frame 2: exchanges go back": ("exchanges", (2,), 2),
    }
    for number, (says, (name, place, to)) in enumerate(wrong.items()):
        new = {name: changed(good[name], *place, to=to)}
        assert says in found(tmp_path / f"{number}.h5", good, "averaged", **new)


@pytest.mark.mpi
def test_a_start_that_one_rank_cannot_have_stops_all(
    comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    """The last member of a file of several is none, and only the last rank has it."""
    file = mpi_tmp_path / "many.h5"
    if comm.rank == 0:
        made = config("mean-field", file, members=4, perturb=1e-5)
        simulate(made, ALONE)
        with h5py.File(file, "r+") as run:
            run["s"][-1, 3, 4] = 1.0  # it is no state of a model with a logarithm
    comm.Barrier()
    again = config("free-energy", mpi_tmp_path / "x.h5", members=4, initial=str(file))
    with pytest.raises(InputError, match=r"^initial=.*between -1 and 1"):
        simulate(again, comm)
    assert not (mpi_tmp_path / "x.h5").exists()


@pytest.mark.parametrize("model", ["mean-field", "langevin"])
def test_files_shrink_as_planned(model: str, tmp_path: Path) -> None:
    made = config(model, tmp_path / "run.h5", size=64, time=100, save_every=2, beta=160)
    simulate(made, ALONE)
    assert 0.75 < made.out.stat().st_size / plan(made).disk_bytes < 1.25


@pytest.mark.parametrize("model", ["averaged", "free-energy"])
def test_checkpoints_between_frames_change_nothing(model: str, tmp_path: Path) -> None:
    """Steps that lead to a frame are shortened, not those that lead to a checkpoint."""
    runs = [config(model, tmp_path / f"{n}.h5", time=20, save_every=5) for n in range(2)]
    simulate(runs[0], ALONE)
    simulate(runs[1], ALONE, checkpoint_every=0.7)
    assert_same(*(one.out for one in runs))
    assert len(checkpoint.paths(runs[1].out)) == checkpoint.KEPT
