"""``mpiflow simulate kac``: options, refusals, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI
from same_files import assert_same

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.follow import differences, refuse
from mpiflow.run.simulate import simulate
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.systems.kac import Kac

GOOD: dict[str, Any] = {"size": 32, "gamma": 2, "temperature": 0.8, "time": 2, "out": "run.h5"}


def test_defaults_are_filled_in_and_survive_json() -> None:
    config = KacConfig(**GOOD)
    assert (config.solver, config.tau, config.eps, config.method) == (
        "sublattice", 0.1, None, "steps"
    )  # fmt: skip
    assert config.save_every == pytest.approx(0.1)
    leap = KacConfig(**GOOD, solver="tau-leap")
    assert (leap.tau, leap.eps, leap.save_every) == (None, 0.01, 0.02)
    exact = KacConfig(**GOOD, solver="gillespie")
    assert (exact.tau, exact.eps, exact.save_every) == (None, None, 0.02)
    for one in (config, leap):
        assert KacConfig(**json.loads(one.model_dump_json())) == one


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ({"gamma": -1}, "gamma"), ({"gamma": 0.1}, "gamma"), ({"gamma": 9}, "gamma"),
        ({"gamma": "inf"}, "gamma"), ({"temperature": 0}, "temperature"),
        ({"tau": 0}, "tau"), ({"eps": 0.1}, "eps"), ({"eps": 2, "solver": "tau-leap"}, "eps"),
        ({"tau": 0.1, "eps": 0.1, "solver": "tau-leap"}, "eps"),
        ({"tau": 0.1, "solver": "gillespie"}, "tau"),
        ({"method": "fft", "solver": "gillespie"}, "method"), ({"method": "box"}, "method"),
        ({"solver": "nfold"}, "solver"), ({"coarse": 5}, "coarse"),
        ({"device": "cuda", "method": "fft"}, "device"),
        ({"initial": "up", "initial_magnetization": 0.5}, "initial_magnetization"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be(given: dict[str, Any], name: str) -> None:
    with pytest.raises(InputError, match=f"^{name}="):
        KacConfig(**GOOD | given)


def test_a_gamma_too_large_says_the_bound() -> None:
    with pytest.raises(InputError, match=r"gamma=9.0: .*a side has 32.*below about 4\.57"):
        KacConfig(**GOOD | {"gamma": 9})


@pytest.mark.parametrize("solver", ["sublattice", "midpoint", "tau-leap", "gillespie"])
def test_a_run_and_its_file(solver: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.h5"
    line = f"simulate kac --size 32x48 --gamma 2 --temperature 3 --field 0.3 --solver {solver}"
    line += " --time 1 --save-every 0.5 --coarse 8 --spins --initial-magnetization 0.5 --seed 4"
    invoke([*line.split(), "--out", str(out)])
    told = capfd.readouterr().out
    assert f"{out}: 32 x 48 spins, kernel of 15^2 sites, 0.1 % from the Gaussian, {solver}" in told
    with Trajectory(out) as run:
        assert run.complete
        assert run["time"].tolist() == [0, 0.5, 1]
        spins = run["spin"]
        assert np.array_equal(run["magnetization"], spins.mean((1, 2), dtype=float))
        blocks = spins.reshape(3, 4, 8, 6, 8).mean((2, 4))
        np.testing.assert_allclose(run["coarse_magnetization"], blocks, atol=1e-7)
        assert run["magnetization"][0] == 0.5
        flips = run["flips"]
        assert flips[0] == 0
        # 1536 spins, half a unit of time, at rates of somewhat less than a half.
        assert 250 < flips[1] < 420
        # Far above T_c the energy is that of fields of the mean.
        m = run["magnetization"]
        assert abs(run["energy"] + 0.5 * m**2 + 0.3 * m).max() < 0.05
    with h5py.File(out) as file:
        about = dict(file.attrs)
    assert (about["system"], about["seed"], about["rng"]) == ("kac", 4, "threefry2x64-13")
    assert json.loads(about["config_json"])["gamma"] == 2


@pytest.mark.mpi
@pytest.mark.parametrize("solver", ["sublattice", "tau-leap"])
def test_ranks_and_methods_write_the_same(
    solver: Any, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    """A field of a file, a gaussian start, coarse fields: all that is cut over ranks."""
    if comm.rank == 0:
        wave = np.sin(2 * np.pi * np.arange(32) / 32)
        np.save(mpi_tmp_path / "h.npy", np.outer(wave, wave))
    comm.Barrier()
    given = GOOD | {
        "field_file": mpi_tmp_path / "h.npy", "initial": "gaussian", "correlation_length": 3,
        "solver": solver, "save_every": 0.5, "coarse": 4, "seed": 9, "quiet": True,
    }  # fmt: skip
    simulate(KacConfig(**given | {"out": mpi_tmp_path / "all.h5", "method": "fft"}), comm)
    if comm.rank == 0:
        simulate(KacConfig(**given | {"out": mpi_tmp_path / "one.h5"}), MPI.COMM_SELF)
        assert_same(mpi_tmp_path / "all.h5", mpi_tmp_path / "one.h5")


@pytest.mark.parametrize(
    ("field", "problem"),
    [(np.zeros((4, 4)), "shape"), (np.full((32, 32), np.inf), "finite"), (None, "Reading said"),
     (np.zeros((32, 32), complex), "real")],
)  # fmt: skip
def test_fields_that_cannot_be(field: np.ndarray | None, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "h.npy"
    if field is None:
        path.write_bytes(b"no array")
    else:
        np.save(path, field)
    config = KacConfig(**GOOD | {"field_file": path, "out": tmp_path / "run.h5", "quiet": True})
    with pytest.raises(InputError, match=problem):
        simulate(config, MPI.COMM_SELF)
    assert not (tmp_path / "run.h5").exists()


def test_a_profile_of_means_is_an_initial_state(tmp_path: Path) -> None:
    means = np.zeros((2, 2))
    means[0, 0] = 0.9
    np.save(tmp_path / "m0.npy", means)
    config = KacConfig(
        **GOOD | {"size": 64, "initial": str(tmp_path / "m0.npy"), "coarse": 32, "quiet": True,
                  "out": tmp_path / "run.h5"}
    )  # fmt: skip
    simulate(config, MPI.COMM_SELF)
    with Trajectory(config.out) as run:
        blocks = run["coarse_magnetization"][0]
    # 1024 spins a block; four standard errors
    assert abs(blocks - means).max() < 4 / 32


def test_a_checkpoint_of_other_bits_is_refused() -> None:
    """Before rates had 96 bits, the same seed gave other events."""
    facts = KacSimulation(Kac(0.8, 1.0), 16, comm=MPI.COMM_SELF).facts()
    old = {name: value for name, value in facts.items() if name != "rate_bits"}
    with pytest.raises(InputError, match="rate_bits.*96.*version of then"):
        refuse(differences(old, facts), (), old)
