"""``mpiflow learn generator`` and ``learn alloy``: from files of runs to models that load."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

import mpiflow
from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.learn.alloy.data import load_pairs, save_pairs
from mpiflow.learn.alloy.from_files import of_run
from mpiflow.learn.paths import OutsideData

SELF = MPI.COMM_SELF


# -- generator -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Solutions of m' = -A m + tanh((J * m + h) / T), J of range 1.5 points, as imported fields."""
    folder = tmp_path_factory.mktemp("fields")
    points, rng = 16, np.random.default_rng(3)
    line = np.minimum(np.arange(points), points - np.arange(points))
    kernel = np.exp(-(line[:, None] ** 2 + line**2) / 2)
    symbol = np.fft.rfft2(0.8 * kernel / kernel.sum()).real

    def rate(m: np.ndarray, t: float, h: float) -> np.ndarray:
        drive = np.fft.irfft2(np.fft.rfft2(m) * symbol, s=m.shape)
        return -m + np.tanh((drive + h) / t)

    for i, (t, h) in enumerate([(1.0, 0.0), (1.0, 0.3), (1.5, 0.0), (1.5, 0.3)] * 2):
        m = np.tanh(0.8 * rng.standard_normal((points, points)))
        frames = [m]
        for step in range(100):
            middle = m + 0.005 * rate(m, t, h)
            m = m + 0.01 * rate(middle, t, h)
            if step % 5 == 4:
                frames.append(m)
        mpiflow.import_array(
            np.array(frames), folder / f"{i}.h5", time_step=0.05, temperature=t, field=h,
            quiet=True, comm=SELF,
        )  # fmt: skip
    np.save(folder / "symbol.npy", symbol)
    return folder


def test_a_generator_of_foreign_fields(
    fields: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the true form, without noise: A and the kernel to a few parts in a thousand."""
    runs, out = str(fields / "*.h5"), tmp_path / "law"
    line = ["learn", "generator", runs, "--noise", "none", "--kernel", "free", "--radius", "5"]
    invoke([*line, "--out", str(out)])
    said = capsys.readouterr().out
    assert "prior strong, kernel free of reach 5 from 8 runs" in said
    assert "range: temperature 1 to 1.5" in said
    model = mpiflow.load_model(out)
    assert model.constants[0].item() == pytest.approx(1.0, abs=0.01)
    wanted = np.fft.irfft2(np.load(fields / "symbol.npy"), s=(16, 16))
    error = np.linalg.norm(model.kernel_array() - wanted) / np.linalg.norm(wanted)
    assert error < 0.02
    with mpiflow.open(fields / "0.h5") as run:
        m, times = run["coarse_magnetization"], run.time
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutsideData)
        guess = model.rollout(m[:1], times, 1.0, 0.0)
    np.testing.assert_allclose(guess[0], m, atol=2e-3)
    with pytest.warns(OutsideData, match="temperature 3 is outside"):
        model.rollout(m[:1], times[:2], 3.0, 0.0)
    with pytest.warns(OutsideData, match=r"at time 0 with m = 2; that is -"):
        model.rollout(np.full((1, 16, 16), 2.0), times[:2], 1.0, 0.0)
    first = (out / "model.safetensors").read_bytes()
    mpiflow.learn_generator(
        runs, out, noise="none", kernel="free", radius=5, overwrite=True, comm=SELF
    )  # the same as the command
    assert (out / "model.safetensors").read_bytes() == first


@pytest.mark.mpi
def test_ranks_have_the_generator(fields: Path, comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    where = comm.bcast(str(fields / "*.h5"))
    model = mpiflow.learn_generator(where, mpi_tmp_path / "law", noise="none", radius=3, comm=comm)
    kernels = comm.allgather(model.kernel_array().tolist())
    assert all(one == kernels[0] for one in kernels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 3}, "epochs=3.*prior strong"),
        ({"mirror": True}, "mirror=True"),
        ({"window": 7}, "window=7.*noise dynamic"),
        ({"radius": 1}, "radius=1"),
        ({"radius": 99}, "radius=99"),
        ({"prior": "weak"}, "prior='weak'"),
        ({"prior": "linear"}, "temperature='several'"),
    ],
)
def test_generators_that_cannot_be(
    options: dict[str, Any], message: str, fields: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        mpiflow.learn_generator(fields / "*.h5", tmp_path / "law", comm=SELF, **options)


def test_fields_that_a_generator_cannot_learn_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bare = mpiflow.import_array(
        rng.uniform(-1, 1, (5, 8, 8)), tmp_path / "bare.h5", time_step=1.0, quiet=True, comm=SELF
    )
    with pytest.raises(InputError, match="^files=.*temperature and field"):
        mpiflow.learn_generator(bare, tmp_path / "law", comm=SELF)
    with pytest.raises(InputError, match="^runs=.*existing"):
        mpiflow.learn_generator(tmp_path / "no.h5", tmp_path / "law", comm=SELF)


# -- alloy ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alloys(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("alloys")
    return [
        mpiflow.simulate(
            "alloy", SELF, cells=4, temperature=t, time=100 * every, save_every=every, seed=1,
            members=2, quiet=True, out=folder / f"{t}.h5",
        )
        for t, every in ((2000, 1e-9), (2500, 4e-10))
    ]  # fmt: skip


def test_an_alloy_of_runs(
    alloys: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the command and of Python, of runs and of the pairs that they are: the same bits."""
    out = tmp_path / "law"
    line = ["learn", "alloy", *map(str, alloys), "--epochs", "2", "--width", "8"]
    invoke([*line, "--out", str(out)])
    said = capsys.readouterr().out
    assert "short-range order of 128 sites from 400 pairs, lambda = 1" in said
    assert "range: temperature 2000 to 2500 K" in said
    model = mpiflow.load_model(out)
    (one,) = of_run(alloys[0])
    with mpiflow.open(alloys[0]) as run:
        np.testing.assert_allclose(one.z0[:2], run["sro"][0][:, [0, 3, 5]])
        np.testing.assert_allclose(
            one.increments[:2, 0], (run["sro"][1] - run["sro"][0])[:, [0, 3, 5]]
        )
        full = run["sro"][0]
    # The other three pairs follow from the atoms and the vacancies around them.
    np.testing.assert_allclose(model.expand(one.z0[:2]), full, atol=0.2)
    times = np.array([0.0, 1e-9])
    path, _ = model.rollout(2200.0, None, times, size=128, seed=1, members=3)
    assert path.shape == (2, 3, 6)
    far = model.random_start() + 99.0
    with pytest.warns(OutsideData, match=r"first at time 0 with sro NbNb = 9\d"):
        model.rollout(2200.0, far, times, size=128, seed=1)
    first = (out / "model.safetensors").read_bytes()
    mpiflow.learn_alloy(alloys, out, epochs=2, width=8, overwrite=True, comm=SELF)
    assert (out / "model.safetensors").read_bytes() == first
    save_pairs(tmp_path / "pairs.npz", one)
    again = load_pairs(tmp_path / "pairs.npz")
    for name, value in vars(one).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    with np.load(tmp_path / "pairs.npz") as file:  # one of before lattices were kept
        np.savez(tmp_path / "old.npz", **{n: file[n] for n in file.files if n != "lattice"})
    assert (load_pairs(tmp_path / "old.npz").lattice == -1).all()
    mpiflow.learn_alloy(tmp_path / "pairs.npz", tmp_path / "b", epochs=1, width=8, comm=SELF)
    # One temperature is a range, too; 0 / 0 made it none.
    assert mpiflow.load_model(tmp_path / "b").temperatures == (2000.0, 2000.0)


def test_alloys_that_cannot_be_learned_from(alloys: list[Path], tmp_path: Path) -> None:
    (tmp_path / "no.npz").write_text("no")
    spins = mpiflow.simulate(
        "ising", SELF, size=8, temperature=2, time=1, quiet=True, out=tmp_path / "spins.h5"
    )
    for data, options, message in (
        (tmp_path / "no.npz", {}, "data=.*no.npz"),
        ([tmp_path / "no.npz", alloys[0]], {}, "data=.*by itself"),
        (spins, {}, "data=.*no bonds"),
        (alloys, {"lag": 999}, "data=.*more than 999"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            mpiflow.learn_alloy(data, tmp_path / "law", comm=SELF, **options)
