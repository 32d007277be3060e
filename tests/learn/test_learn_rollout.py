"""``mpiflow predict`` of closures and of an alloy's order: a file of trajectories of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mpi4py import MPI

import mpiflow
from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.learn.alloy.model import AlloyModel, TimeScale
from mpiflow.learn.alloy.onsager_net import OnsagerSDE
from mpiflow.learn.closure.closure import ClosureAutoencoder
from mpiflow.learn.closure.dataset import DataPlan
from mpiflow.learn.closure.model import MacroscopicModel
from mpiflow.learn.paths import OutsideData
from mpiflow.learn.sde import MacroscopicSDE

SELF = MPI.COMM_SELF


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run.h5`` of three lattices, and ``law``, the closure of its magnetization and energy."""
    folder = tmp_path_factory.mktemp("rollout")
    run = mpiflow.simulate(
        "ising", SELF, size=32, temperature=4, time=15, save_every=0.5, coarse=4, members=3,
        spins=True, seed=1, dt=0.25, quiet=True, out=folder / "run.h5",
    )  # fmt: skip
    names = ("magnetization", "energy")
    options: dict[str, Any] = {"latents": 1, "epochs": 1, "width": 8}
    mpiflow.learn_closure(run, folder / "law", observables=names, comm=SELF, **options)
    return folder


def test_a_closure_goes_on_from_a_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a frame of each member; the command, Python and a file of options say the same."""
    out = tmp_path / "out.h5"
    line = f"predict {folder}/law --initial {folder}/run.h5 --initial-frame 4 --time 3"
    invoke(f"{line} --save-every 0.5 --members 6 --seed 3 --out {out}".split())
    assert f"wrote {out}" in capsys.readouterr().out
    model = mpiflow.load_model(folder / "law")
    with mpiflow.open(out) as made, mpiflow.open(folder / "run.h5") as run:
        assert made["closure1"].shape == (7, 6)
        np.testing.assert_array_equal(made["magnetization"][0, :3], np.float32(
            run["magnetization"][4]))  # fmt: skip
        np.testing.assert_array_equal(made["magnetization"][0, 3:], made["magnetization"][0, :3])
        observed = np.stack([run["magnetization"][4], run["energy"][4]], axis=-1)
        z = model.latents(observed, run["coarse_magnetization"][4])
        whole = model.rollout(np.tile(z, (2, 1)), made.time, seed=3)[0]
        np.testing.assert_array_equal(made["energy"], whole[..., 1])
    (finding,) = mpiflow.verify(out)
    assert finding.good, str(finding)
    assert "closure1" in mpiflow.info(out)
    toml = tmp_path / "out.toml"
    toml.write_text(
        f'model = "{folder}/law"\ninitial = "{folder}/run.h5"\ninitial_frame = 4\ntime = 3\n'
        "save_every = 0.5\nmembers = 6\n"
    )
    again = ["predict", "--config", str(toml), "--seed", "3", "--quiet"]
    invoke([*again, "--out", str(tmp_path / "b.h5")])
    mpiflow.predict(
        folder / "law", SELF, out=tmp_path / "c.h5", initial=str(folder / "run.h5"),
        initial_frame=4, time=3, save_every=0.5, members=6, seed=3,
    )  # fmt: skip
    for name in ("b.h5", "c.h5"):
        with mpiflow.open(tmp_path / name) as other:
            np.testing.assert_array_equal(other["closure1"], whole[..., 2])


@pytest.mark.mpi
def test_ranks_predict_the_same(comm: MPI.Intracomm, mpi_tmp_path: Path, folder: Path) -> None:
    options: dict[str, Any] = {"initial": "0.1,-1,0", "time": 2, "members": 3}
    law = comm.bcast(str(folder / "law"))
    mpiflow.predict(law, comm, out=mpi_tmp_path / "all.h5", **options)
    if comm.rank == 0:
        mpiflow.predict(law, SELF, out=mpi_tmp_path / "one.h5", **options)
        with mpiflow.open(mpi_tmp_path / "all.h5") as a, mpiflow.open(mpi_tmp_path / "one.h5") as b:
            np.testing.assert_array_equal(a["energy"], b["energy"])
    comm.barrier()
    with pytest.raises(InputError, match="^out="):
        mpiflow.predict(law, comm, out=mpi_tmp_path / "all.h5", **options)


def test_a_prediction_says_where_it_leaves_the_data(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(OutsideData, match="1 of 1 .* first at time 0 with magnetization = 0.9;"):
        mpiflow.predict(folder / "law", SELF, out=tmp_path / "o.h5", initial="0.9,-1,0", time=1)
    with mpiflow.open(tmp_path / "o.h5") as run:
        assert run["magnetization"].shape == (101,)
    line = f"predict {folder}/law --initial 0.9,-1,0 --time 1 --overwrite --out {tmp_path}/o.h5"
    invoke(line.split())
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("mpiflow: warning: 1 of 1 trajectories leave the range")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "initial=None.*magnetization,energy,closure1"),
        ({"initial": "0.1"}, "initial='0.1'.*3 finite numbers"),
        ({"initial": "0.1,nan,0"}, "initial='0.1,nan,0'"),
        ({"initial": "no.h5"}, "file='no.h5'"),
        ({"initial": "RUN", "initial_frame": 99}, "initial_frame=99"),
        ({"initial": "RUN", "members": 4}, "members=4.*multiple of the 3"),
        ({"initial_frame": 1}, "initial_frame=1"),
        ({"initial": "0,0,0", "temperature": 5}, "temperature=5.*4 to 4"),
        ({"initial": "0,0,0", "field": 1}, "field=1"),
        ({"initial": "0,0,0", "size": 8}, "size=8"),
        ({"initial": "0,0,0", "block": 8}, "block=8"),
        ({"initial": "0,0,0", "dt": 0}, "dt=0"),
        ({"initial": "0,0,0", "save_every": 1e-12}, "save_every=1e-12"),
    ],
)
def test_predictions_that_cannot_be(
    options: dict[str, Any], message: str, folder: Path, tmp_path: Path
) -> None:
    given = {k: str(folder / "run.h5") if v == "RUN" else v for k, v in options.items()}
    with pytest.raises(InputError, match=f"^({message})"):
        mpiflow.predict(folder / "law", SELF, out=tmp_path / "o.h5", **{"time": 1} | given)
    assert not (tmp_path / "o.h5").exists()


def test_an_ising_closure_goes_on_from_spins(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    sde = MacroscopicSDE(3, 8)
    sde.low.fill_(-9.0), sde.high.fill_(9.0)
    plan = DataPlan(large=32, patch=8)
    model = MacroscopicModel(ClosureAutoencoder(1, 8), sde, plan, 0.5, {
        "system": {"temperature": 4.0, "field": 0.0}})  # fmt: skip
    model.save(tmp_path / "law")
    assert mpiflow.load_model(tmp_path / "law").validity == {
        "latents": {n: [-9.0, 9.0] for n in ("magnetization", "domain_wall_density", "closure1")},
        "parameters": {"temperature": [4.0, 4.0], "field": [0.0, 0.0]},
    }
    start: dict[str, Any] = {"initial": str(folder / "run.h5"), "time": 1}
    mpiflow.predict(tmp_path / "law", SELF, out=tmp_path / "o.h5", **start)
    with mpiflow.open(tmp_path / "o.h5") as made, mpiflow.open(folder / "run.h5") as run:
        for name in ("magnetization", "domain_wall_density"):
            np.testing.assert_allclose(made[name][0], run[name][-1], atol=1e-6)
        assert made["closure1"].shape == (101, 3)
    with pytest.raises(InputError, match="^temperature=3"):
        mpiflow.predict(tmp_path / "law", SELF, out=tmp_path / "p.h5", temperature=3, **start)


def test_an_alloy_begins_at_random(tmp_path: Path) -> None:
    torch.manual_seed(1)
    sde = OnsagerSDE(3, 8)
    sde.low.fill_(-9.0), sde.high.fill_(9.0)
    model = AlloyModel(sde, TimeScale((np.log(1e-9),), 1000.0, 2000.0), 8192)
    model.save(tmp_path / "law")
    line = f"predict {tmp_path}/law --time 5e-9 --save-every 1e-9 --members 2 --quiet"
    invoke([*line.split(), "--temperature", "1500", "--out", str(tmp_path / "o.h5")])
    with mpiflow.open(tmp_path / "o.h5") as made:
        assert made["sro"].shape == (6, 2, 6)
        np.testing.assert_allclose(made["sro"][0], np.tile(model.random_start(), (2, 1)), atol=1e-6)
        kept = made["sro"]
    (finding,) = mpiflow.verify(tmp_path / "o.h5")
    assert finding.good, str(finding)
    for options, message in (
        ([], "temperature=None.*1000 to 2000"),
        (["--temperature", "500"], "temperature=500.*1000 to 2000"),
        (["--temperature", "1500", "--dt", "1"], "dt=1"),
        (["--temperature", "1500", "--initial", "0,0"], "initial='0,0'.*6 finite"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            invoke([*line.split(), *options, "--out", str(tmp_path / "p.h5")])
    again = f"{line} --temperature 1500 --initial {tmp_path}/o.h5 --initial-frame 0 --overwrite"
    invoke([*again.split(), "--out", str(tmp_path / "p.h5")])
    with mpiflow.open(tmp_path / "p.h5") as made:
        np.testing.assert_allclose(made["sro"], kept, atol=1e-5)


def test_what_predict_cannot_run_says_what_can(tmp_path: Path) -> None:
    from mpiflow.learn.generator.model import Generator

    Generator(points=8, radius=2).save(tmp_path / "law")
    with pytest.raises(InputError, match=r"^model=.*field-generator.*load_model.*rollout"):
        mpiflow.predict(tmp_path / "law", SELF, size=64, time=1, out=tmp_path / "o.h5")
