"""``mpiflow simulate linear-chain | curie-weiss | predator-prey``: systems whole on a rank."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpiflow.cli import invoke
from mpiflow.commands import verify
from mpiflow.core.errors import InputError
from mpiflow.files.schema import STANDARD
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.run.plan import plan
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.simulation import catalogue
from mpiflow.simulation.ensemble.options import (
    ChainConfig,
    CurieWeissConfig,
    EnsembleConfig,
    PredatorPreyConfig,
)
from mpiflow.solvers import master_equation
from mpiflow.solvers.lines.chain import ChainSimulation

ALONE = MPI.COMM_SELF
#: Of a mean of many: chance of a false alarm 6e-5.
Z = 4.0


def config(system: str, out: str | Path = "run.h5", **options: Any) -> Any:
    """A short run of a system."""
    short: dict[str, dict[str, Any]] = {
        "linear-chain": {"size": 10, "dt": 0.05, "time": 3, "save_every": 0.5, "profile": True},
        "curie-weiss": {"size": "6x8", "temperature": 1.1, "field": 0.1, "time": 3},
        "predator-prey": {"size": 40, "time": 1, "save_every": 0.25, "profile": True},
    }
    common = {"seed": 5, "quiet": True, "out": out}
    return catalogue.options(system)(**short[system] | common | options)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "options", "says"),
    [
        ("linear-chain", {"size": 1}, r"^size=1: allowed is 2 to 2\*\*31"),
        ("linear-chain", {"friction": 0}, "^friction=0"),
        ("linear-chain", {"coupling": -1}, "^coupling=-1"),
        ("linear-chain", {"noise": -1}, "^noise=-1"),
        ("linear-chain", {"force": math.inf}, "^force=inf"),
        ("linear-chain", {"dt": 0.5}, r"^dt=0.5: .*below 0.4878"),
        ("linear-chain", {"time": 3.02}, r"^time=3.02: .*multiple of the time step 0.05.*Use 3,"),
        ("linear-chain", {"save_every": 0.01}, "^save_every=0.01"),
        ("linear-chain", {"device": "cuda"}, "^device='cuda'"),
        ("linear-chain", {"members": 0}, "^members=0"),
        ("linear-chain", {"coarse": 2}, "^coarse=2: allowed is one of"),
        ("linear-chain", {"checkpoints": False, "walltime": 9}, "^walltime=9"),
        ("curie-weiss", {"size": 1}, r"^size=\(1, 1\)"),
        ("curie-weiss", {"temperature": 0}, "^temperature=0"),
        ("curie-weiss", {"initial_magnetization": 1.1}, "^initial_magnetization=1.1"),
        ("curie-weiss", {"dt": 0.1}, "^dt=0.1: allowed is one of"),
        ("curie-weiss", {"profile": True}, "^profile=True: allowed is one of"),
        ("predator-prey", {"dt": 0.5}, r"^dt=0.5: .*below 0.5"),
        ("predator-prey", {"dt": 1, "form": "pde"}, r"^dt=1.0: .*below 1"),
        ("predator-prey", {"initial_wave": 0.6}, "^initial_wave=0.6: allowed is 0 to 0.5"),
        ("predator-prey", {"form": "paper"}, "^form='paper'"),
        ("predator-prey", {"death": -1}, "^death=-1"),
    ],
)
def test_bad_options_are_refused(system: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        config(system, **options)


def test_defaults_are_the_published_ones() -> None:
    chain = ChainConfig(size=10, time=20, out="x.h5")
    assert (chain.dt, chain.save_every, chain.members) == (0.01, 0.2, 1)
    assert chain.chain().macroscopic() == pytest.approx((-0.1, 1.5, 0.1**0.5))
    spins = CurieWeissConfig(size=64, temperature=1.1, time=20, out="x.h5")
    assert (spins.sites, spins.save_every, spins.model().coupling) == (4096, 0.2, 1.0)
    line = PredatorPreyConfig(size=200, time=30, out="x.h5").line()
    assert (line.form, line.growth, line.death, line.noise) == ("published", 3.0, 0.4, 0.02)


def test_options_of_a_file_and_of_the_command_line(tmp_path: Path) -> None:
    file, out = tmp_path / "run.toml", tmp_path / "run.h5"
    file.write_text("size = 8\ntemperature = 2.5\ntime = 2\nmembers = 2\n")
    line = ["simulate", "curie-weiss", "--config", str(file), "--out", str(out)]
    line += ["--quiet", "--temperature", "1.5"]
    invoke(line)
    with Trajectory(out) as run:
        assert (run.config["temperature"], run.config["members"], len(run)) == (1.5, 2, 101)
    with pytest.raises(InputError, match=r"^out=.*--overwrite"):
        invoke(line)
    invoke([*line, "--overwrite", "--save-every", "0.5"])
    with Trajectory(out) as run:
        assert len(run) == 5


@pytest.mark.parametrize("system", ["linear-chain", "curie-weiss", "predator-prey"])
def test_help_lists_every_option(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["simulate", system, "--help"])
    text = capsys.readouterr().out
    for name in catalogue.options(system).options():
        assert f"--{name.replace('_', '-')} " in text, name


# -- going on --------------------------------------------------------------------------------


def test_a_change_on_the_way_is_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    simulate(config("linear-chain", out, noise=0.0, force=0.0,
                             initial_displacement=1.0), ALONE)  # fmt: skip
    again = {"noise": 0.0, "initial_displacement": 1.0, "resume": True}
    with pytest.raises(InputError, match=r"^force=15.0: .*was 0.0.*--override force="):
        simulate(config("linear-chain", out, **again, time=4), ALONE)
    # Another step: time goes on from where it was, and is as long as before.
    resume(out, ALONE, {"time": 4, "dt": 0.1, "quiet": True})
    with pytest.raises(InputError, match=r"^profile"):
        simulate(
            config("linear-chain", out, **again, force=0.0, dt=0.1, time=5, profile=False), ALONE
        )
    resume(out, ALONE, {"time": 5, "dt": 0.05, "quiet": True})
    with Trajectory(out) as run:
        np.testing.assert_allclose(run["time"], 0.5 * np.arange(11), atol=1e-12)
        left = (1 - 0.005) ** (60 + 20) * (1 - 0.01) ** 10
        assert run["displacement"][-1] == pytest.approx(left, rel=1e-12)


@pytest.mark.mpi
def test_a_line_that_runs_to_infinity_stops_all_ranks(
    comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    wild = config("predator-prey", mpi_tmp_path / "x.h5", form="pde", noise=1.0, members=2, time=50)
    with pytest.raises(InputError, match=r"^noise=1.0: .*infinite.*prey diffusion"):
        simulate(wild, comm)


# -- physics ---------------------------------------------------------------------------------------


def test_a_chain_has_the_moments_of_its_equation(tmp_path: Path) -> None:
    """From a pushed start and from rest; of steps: (1 - gamma dt)^k in place of exp(-gamma t)."""
    for start, name in ((3.0, "a.h5"), (None, "b.h5")):
        made = config("linear-chain", tmp_path / name, members=1000, time=40, save_every=10,
                      initial_displacement=start, profile=False, dt=0.1)  # fmt: skip
        simulate(made, ALONE)
        with Trajectory(made.out) as run:
            times, m = run["time"], run["displacement"]
        slope, bias, width = made.chain().macroscopic()
        rest, left = -bias / slope, (1 + slope * made.dt) ** np.rint(times / made.dt)
        mean = rest + ((rest if start is None else start) - rest) * left
        variance = width**2 * made.dt * (1 - left**2) / (1 - (1 + slope * made.dt) ** 2)
        assert mean[-1] == pytest.approx(15.0, abs=0.25)
        np.testing.assert_allclose(m[0], mean[0], rtol=1e-12)
        z = (m.mean(axis=1) - mean)[1:] / np.sqrt(variance[1:] / 1000)
        assert (abs(z) < Z).all(), z
        z = (m[1:].var(axis=1) / variance[1:] - 1) / math.sqrt(2 / 1000)
        assert (abs(z) < Z).all(), z


def test_files_hold_what_the_simulation_does(tmp_path: Path) -> None:
    made = config("linear-chain", tmp_path / "run.h5", members=3)
    simulate(made, ALONE)
    sim = ChainSimulation(made.chain(), dt=made.dt, seed=5, members=3)
    sim.set(made.chain().resting())
    with Trajectory(made.out) as run:
        for frame in range(7):
            np.testing.assert_array_equal(run.read("displacement_profile", frame), sim.x)
            np.testing.assert_array_equal(run.read("displacement", frame), sim.mean_displacement())
            assert run.time[frame] == sim.time
            sim.advance(10)
        assert run.variables["displacement_profile"].dims == ("member", "site")


def test_spins_obey_their_master_equation(tmp_path: Path) -> None:
    members = 4000
    made = config("curie-weiss", tmp_path / "run.h5", members=members, time=4, save_every=1,
                  initial_magnetization=-0.4, seed=7)  # fmt: skip
    simulate(made, ALONE)
    n, system = made.sites, made.model()
    with Trajectory(made.out) as run:
        values = {name: run[name] for name in ("magnetization", "energy", "flips")}
        times = run["time"]
    up = np.arange(n + 1)
    law = np.zeros((1, n + 1))
    law[0, round(0.3 * n)] = 1.0
    observed = {"magnetization": 2 * up / n - 1, "energy": system.energy(up, n) / n}
    np.testing.assert_allclose(values["magnetization"][0], -20 / 48)
    rates = system.chain(n)
    for frame, laws in enumerate(master_equation.evolve(law, rates[0], rates[1], times)):
        for name, observable in observed.items():
            mean = laws[0] @ observable
            spread = math.sqrt(max(0.0, laws[0] @ observable**2 - mean**2))
            if frame:
                z = (values[name][frame].mean() - mean) / (spread / math.sqrt(members))
                assert abs(z) < Z, (name, frame, z)
    made_flips = abs(np.diff(values["magnetization"], axis=0)) * n / 2
    assert (np.diff(values["flips"], axis=0) >= made_flips - 1e-9).all()
    # Each flip changes the number of spins that are up by one; on average a rate adds up.
    many = master_equation.evolve(law, rates[0], rates[1], np.linspace(0, 4, 401))
    wanted = np.trapezoid([float(laws[0] @ (rates[0] + rates[1])) for laws in many], dx=0.01)
    flips = values["flips"][-1]
    assert abs(flips.mean() - wanted) < Z * flips.std() / math.sqrt(members)


def test_prey_and_predators_settle_where_both_live(tmp_path: Path) -> None:
    """Without noise and without a wave every cell is the same ordinary equation."""
    made = config("predator-prey", tmp_path / "run.h5", noise=0.0, time=80, save_every=20,
                  initial_wave=0.0)  # fmt: skip
    simulate(made, ALONE)
    with Trajectory(made.out) as run:
        assert (run["prey"][0], run["predator"][0]) == (0.5, 0.5)
        assert run["prey"][-1] == pytest.approx(0.4, abs=1e-5)
        assert run["predator"][-1] == pytest.approx(0.6, abs=1e-5)
        np.testing.assert_allclose(run["prey_profile"], run["prey"][:, None] * np.ones(40))
        np.testing.assert_array_equal(run["position"], (np.arange(40) + 0.5) / 40)
        assert run.variables["predator_profile"].dims == ("position",)


# -- other commands ----------------------------------------------------------------------------


@pytest.mark.parametrize("system", ["linear-chain", "predator-prey"])
def test_profiles_shrink_as_planned(system: str, tmp_path: Path) -> None:
    made = config(system, tmp_path / "run.h5", size=1000, time=4, save_every=0.5)
    simulate(made, ALONE)
    planned = {s.name: s.compressed for s in plan(made).stored}
    with h5py.File(made.out) as file:
        for name in made.profiles:
            assert 0.7 < file[name].id.get_storage_size() / planned[name] < 1.3


def written(path: Path, made: EnsembleConfig, frames: list[dict[str, Any]]) -> str:
    """What ``mpiflow verify`` says of a file with such values."""
    dims = {made.axis: made.shape[-1]} if made.saves_profiles else {}
    names = [*made.scalars, *(made.profiles if made.saves_profiles else ())]
    variables = [STANDARD[n].over(*(dims if n in made.profiles else ())) for n in names]
    about = {"system": made.system, "config_json": made.model_dump_json(), "seed": 5}
    about |= {"rng": "none", "decomposition_invariant": 1}
    with TrajectoryWriter(
        path, dims=dims, variables=variables, attributes=about, comm=ALONE
    ) as writer:
        for time, values in enumerate(frames):
            writer.append(time, values)
    return verify.verify_file(path).text


def test_wrong_values_are_found(tmp_path: Path) -> None:
    spins = config("curie-weiss", size=4, temperature=2.0, field=0.5)

    def frame(up: int, flips: int, more: float = 0.0) -> dict[str, Any]:
        energy = spins.model().energy(up, 16) / 16 + more
        return {"magnetization": (2 * up - 16) / 16, "energy": energy, "flips": flips}

    for number, (last, says) in enumerate((
        (frame(11, 5), "good"),
        (frame(11, 4), "frame 1: flips do not give magnetization"),
        (frame(11, 1), "frame 1: flips do not give magnetization"),
        (frame(11, 5, 1e-9), "frame 1: energy does not follow"),
        (frame(11, 5) | {"magnetization": 0.3}, "frame 1: magnetization is no mean of spins"),
        (frame(8, -2), "flips"),
    )):  # fmt: skip
        assert says in written(tmp_path / f"{number}.h5", spins, [frame(8, 0), last])
    line = config("predator-prey", size=4)
    for name, more, says in (("good", 0.0, "good"), ("bad", 1e-9, "frame 1: prey_profile does")):
        u = np.array([0.1, 0.5, 0.3, 0.3])
        values = {"prey": 0.3, "predator": 0.7, "prey_profile": u, "predator_profile": 1 - u}
        text = written(tmp_path / f"{name}.h5", line, [values, values | {"prey": 0.3 + more}])
        assert says in text
