"""Laws of any observables: an Ornstein-Uhlenbeck process that is known, in every form of data."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI
from scipy.linalg import expm, solve_continuous_lyapunov

import mpiflow
from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.learn.closure import observed
from mpiflow.learn.closure.observed import local_statistics
from mpiflow.learn.closure.series import pairs_of
from mpiflow.learn.closure.sources import read
from mpiflow.learn.paths import OutsideData
from mpiflow.learn.together import explained_drift

SELF = MPI.COMM_SELF
#: dz = A z dt + S^(1/2) dB, seen every DT.
A, S = np.array([[-1.0, 0.5], [-0.3, -0.6]]), np.array([[0.5, 0.1], [0.1, 0.3]])
DT = 0.1


def process(members: int, frames: int, seed: int = 1) -> np.ndarray:
    """(members, frames, 3), the time and z1, z2, without an error of its step."""
    step, rest = expm(A * DT), solve_continuous_lyapunov(A, -S)
    root = np.linalg.cholesky(rest - step @ rest @ step.T)
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((members, 2))
    out = np.empty((members, frames, 3))
    for frame in range(frames):
        out[:, frame, 0], out[:, frame, 1:] = frame * DT, z
        z = z @ step.T + rng.standard_normal((members, 2)) @ root.T
    return out


@pytest.fixture(scope="module")
def short() -> np.ndarray:
    return process(4, 60)


def learn(data: Any, out: Path, **options: Any) -> Any:
    return mpiflow.learn_closure(data, out, comm=SELF, **{"epochs": 1, "width": 8} | options)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_a_known_law_is_found(tmp_path: Path) -> None:
    """Increments over DT have the mean (e^(A DT) - 1) z and a known covariance.

    The seed is fixed. 1600 units of time know a slope to sqrt(S / 1600 <z^2>), 0.03 at most, and
    the network adds a little: 0.12 is four of that. 15920 pairs know a variance to 1 %; networks
    of z vary by more, so their mean is compared.
    """
    model = learn(process(80, 200), tmp_path / "law", epochs=5, width=64)
    grid = np.stack(np.meshgrid(*[np.linspace(-0.8, 0.8, 5)] * 2), axis=-1).reshape(-1, 2)
    columns = np.hstack([grid, np.ones((25, 1))])
    found = np.linalg.lstsq(columns, model.drift(grid), rcond=None)[0].T
    step, rest = expm(A * DT), solve_continuous_lyapunov(A, -S)
    assert np.abs(found[:, :2] - (step - np.eye(2)) / DT).max() < 0.12
    assert np.abs(found[:, 2]).max() < 0.08
    covariance = (rest - step @ rest @ step.T) / DT
    np.testing.assert_allclose(model.covariance(grid).mean(axis=0), covariance, atol=0.04)
    assert not model.card["doubts"]
    assert model.names == ("z1", "z2")
    assert model.card["goodness"]["explained_drift"][0] > 0.95
    assert explained_drift({"explained_drift": [1.0, 9e20]}) == "drift explained unknown"
    # A rollout forgets where it began, and has the spread of the process.
    path, held = model.rollout(np.zeros((2000, 2)), np.array([0.0, 8.0]), seed=2)
    assert held == 0
    np.testing.assert_allclose(np.cov(path[1].T), rest, atol=0.08)


def test_all_forms_of_data_give_the_same_bits(short: np.ndarray, tmp_path: Path) -> None:
    """Arrays, tables in files, arrays by name, and the pairs that the series are made of."""
    paths = [tmp_path / f"{i}.csv" for i in range(4)]
    for path, one in zip(paths, short, strict=True):
        np.savetxt(path, one, "%.17g", delimiter=",", header="time,z1,z2", comments="")
    np.save(tmp_path / "all.npy", short)
    np.savez(tmp_path / "named.npz", time=short[0, :, 0], z1=short[..., 1], z2=short[..., 2])
    pairs = pairs_of(read(short))
    np.savez(tmp_path / "pairs.npz", z=pairs.z, dz=pairs.increments[:, 0], dt=pairs.dt[:, 0])
    forms: dict[str, Any] = {
        "array": short, "several": list(short), "csv": paths, "npy": tmp_path / "all.npy",
        "npz": tmp_path / "named.npz", "pairs": str(tmp_path / "pairs.npz"),
    }  # fmt: skip
    digests = {}
    for name, data in forms.items():
        learn(data, tmp_path / name)
        digests[name] = digest(tmp_path / name)
    assert len(set(digests.values())) == 1, digests
    learn(short, tmp_path / "array", overwrite=True)
    assert digest(tmp_path / "array") == digests["array"]
    learn(short, tmp_path / "other", seed=1)
    assert digest(tmp_path / "other") != digests["array"]


def test_tables_of_pandas_are_tables(short: np.ndarray) -> None:
    pandas = pytest.importorskip("pandas")
    (series,) = read(pandas.DataFrame(short[0][:, [1, 0, 2]], columns=["x", "time", "y"]))
    assert series.names == ("x", "y")
    np.testing.assert_array_equal(series.values, short[0, :, 1:])


@pytest.mark.mpi
def test_ranks_learn_the_same(short: np.ndarray, comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    """And an error of the data, which rank 0 reads, is one of all."""
    options: dict[str, Any] = {"epochs": 1, "width": 8}
    model = mpiflow.learn_closure(short, mpi_tmp_path / "law", comm=comm, **options)
    slopes = comm.allgather(model.drift(np.eye(2)).tolist())
    assert all(one == slopes[0] for one in slopes)
    if comm.rank == 0:
        learn(short, mpi_tmp_path / "alone")
        assert digest(mpi_tmp_path / "law") == digest(mpi_tmp_path / "alone")
    comm.barrier()
    with pytest.raises(InputError, match="^out="):
        mpiflow.learn_closure(short, mpi_tmp_path / "law", comm=comm, **options)
    with pytest.raises(InputError, match="^data="):
        mpiflow.learn_closure(mpi_tmp_path / "no.csv", mpi_tmp_path / "x", comm=comm, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two temperatures of three lattices each, with block means."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        mpiflow.simulate(
            "ising", SELF, size=32, temperature=t, time=15, save_every=0.5, coarse=4, members=3,
            seed=1, dt=0.25, quiet=True, out=folder / f"{t:g}.h5",
        )
        for t in (3.0, 4.0)
    ]  # fmt: skip


def test_runs_of_several_temperatures(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """With closures of their coarse fields, from the command line; and back from its file."""
    monkeypatch.chdir(tmp_path)
    names = " ".join(map(str, runs))
    line = f"learn closure {names} --observables magnetization,energy --latents 1 --patch 4"
    invoke(f"{line} --epochs 2 --width 8 --out law".split())
    said = capsys.readouterr().out
    assert "of magnetization, energy, closure1 from 180 pairs of 6 trajectories over 0.5" in said
    assert "depends on: temperature 3 to 4" in said
    assert "left out: statistics of patches, as densities of rate classes" in said
    model = mpiflow.load_model("law")
    assert model.parameters == ("temperature",)
    with mpiflow.open(runs[0]) as run:
        seen = np.stack([run["magnetization"][:, 0], run["energy"][:, 0]], axis=1)
        z = model.latents(seen, run["coarse_magnetization"][:, 0])
    assert z.shape == (31, 3)
    warm, hot = (model.drift(z, {"temperature": t}) for t in (3.0, 4.0))
    assert not np.array_equal(warm, hot)
    path, _ = model.rollout(z[-2:], np.arange(3.0), seed=1, parameters={"temperature": 3.5})
    assert path.shape == (3, 2, 3)
    ranges = model.validity["latents"]
    low, high = ranges["magnetization"]
    assert low < seen[:, 0].min() < seen[:, 0].max() < high
    for parameters in (None, {"temperature": 5.0}):
        with pytest.raises(InputError, match="^temperature=.*3 to 4"):
            model.rollout(z[:1], np.arange(2.0), seed=1, parameters=parameters)
    # One temperature is no parameter, and needs not be said.
    alone = learn(runs[0], tmp_path / "one")
    assert (alone.names, alone.parameters) == (("magnetization",), ())
    assert alone.conditions["temperature"] == [3.0, 3.0]
    alone.drift(np.zeros((1, 1)))


def test_closures_of_statistics_of_patches(tmp_path: Path) -> None:
    """K patches with numbers of their own, of which one of each state evolves: lambda is K.

    The first number of a patch is its part of the observable; the third, which is hidden, drives
    it. A law with a closure explains what one without cannot.
    """
    rng, states, patches, dt = np.random.default_rng(5), 3000, 4, 0.1
    hidden = rng.standard_normal((states, patches)) + rng.standard_normal((states, 1))
    seen = rng.standard_normal((states, patches))
    whole = np.stack([seen, seen**2, hidden], axis=-1)
    at = np.arange(states), rng.integers(patches, size=states)
    noise = 0.3 * np.sqrt(dt) * rng.standard_normal((2, states))
    moved = seen[at] + (hidden[at] - seen[at]) * dt + noise[0]
    drawn = hidden[at] * (1 - dt) + noise[1]
    data = {
        "z": seen.mean(axis=1), "dz": moved - seen[at], "dt": dt, "names": ["m"],
        "statistics": whole, "before": whole[at], "after": np.stack([moved, moved**2, drawn], -1),
    }  # fmt: skip
    options: dict[str, Any] = {"epochs": 12, "width": 16, "latents": 1}
    model = learn(data, tmp_path / "law", **options)
    assert (model.names, model.sde.factor) == (("m", "closure1"), 4.0)
    assert not model.card["left_out"]
    again = mpiflow.load_model(tmp_path / "law")
    z = again.latents(seen.mean(axis=1)[:, None], statistics=whole)
    np.testing.assert_array_equal(z[:5], model.latents(z[:5, :1], statistics=whole[:5]))
    # The drift of m is the mean of hidden less m: 3000 pairs of 0.1 know it to about 0.1.
    wanted = hidden.mean(axis=1) - seen.mean(axis=1)
    rest = np.mean((model.drift(z)[:, 0] - wanted) ** 2) / np.mean(wanted**2)
    bare = learn(data, tmp_path / "bare", **options | {"latents": 0})
    blind = np.mean((bare.drift(z[:, :1])[:, 0] - wanted) ** 2) / np.mean(wanted**2)
    assert rest < 0.1 < 0.5 < blind
    with pytest.raises(InputError, match="^statistics="):
        model.latents(z[:5, :1])
    for name, value, message in (
        ("after", None, "statistics, before alone"),
        ("after", whole, "statistics .3000, 4, 3."),
        ("before", whole[at] * np.nan, "before with nan"),
    ):
        broken_data = {k: v for k, v in (data | {name: value}).items() if v is not None}
        with pytest.raises(InputError, match=f"^data=.*{message}"):
            learn(broken_data, tmp_path / "x", latents=1)


def test_a_schedule_is_a_parameter(tmp_path: Path) -> None:
    """Of a ramp of the temperature each pair has the mean of its ends."""
    run = mpiflow.simulate(
        "ising", SELF, size=16, temperature=4, schedule="temperature ramp 4 3 over 10", time=10,
        save_every=0.5, dt=0.25, members=2, seed=1, quiet=True, out=tmp_path / "ramp.h5",
    )  # fmt: skip
    model = learn(run, tmp_path / "law")
    assert model.parameters == ("temperature",)
    with mpiflow.open(run) as opened:
        kelvin = opened["temperature"]
    assert model.conditions["temperature"] == [kelvin.min(), kelvin.max()]
    pairs = pairs_of(read(run), 2, ("temperature",))
    np.testing.assert_allclose(pairs.context[:19, 0], 0.5 * (kelvin[:-2] + kelvin[2:]))
    model.drift(np.zeros((1, 1)), {"temperature": 3.5})
    # The table is one of all members, and an observable like others.
    (first, _) = read(run, ["magnetization", "temperature"])
    np.testing.assert_array_equal(first.values[:, 1], kelvin)
    table = np.stack([np.arange(30.0), np.arange(30.0)], axis=1)
    with pytest.raises(InputError, match="^(data|parameters)="):
        learn([run, table], tmp_path / "x")


def test_statistics_of_patches_are_means_over_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the definition, in any number of frames at a time."""
    m = np.random.default_rng(1).uniform(-1, 1, (5, 4, 8)).astype(np.float32)
    found = local_statistics(m, 4)
    around = sum(np.roll(m, by, axis) for by in (1, -1) for axis in (1, 2)) / 4
    for term, values in ((0, m), (3, m**4), (4, m * around), (6, (m * around) ** 2)):
        patches = values.reshape(5, 1, 4, 2, 4).mean(axis=(2, 4)).reshape(5, 2)
        np.testing.assert_allclose(found[:, :, term], patches, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(observed, "CHUNK", 1)
    np.testing.assert_array_equal(local_statistics(m, 4), found)


def test_a_rollout_says_where_it_leaves_the_data(short: np.ndarray, tmp_path: Path) -> None:
    model = learn(short, tmp_path / "law")
    far = np.array([[0.0, 0.0], [99.0, 0.0]])
    with pytest.warns(OutsideData, match=r"1 of 2 .* first at time 0 with z1 = 99; it is held in"):
        path, held = model.rollout(far, np.array([0.0, DT]), seed=1)
    assert held >= 0
    assert path[1, 1, 0] <= model.validity["latents"]["z1"][1]
    with pytest.warns(OutsideData) as caught:
        model.rollout(np.zeros((50, 2)), np.array([0.0, 40.0]), seed=1)
    assert len(caught) == 1


TIMES = np.arange(30.0)
LINE = np.stack([TIMES, np.sin(TIMES)], axis=1)


def broken(row: int, column: int, value: float) -> np.ndarray:
    out = LINE.copy()
    out[row, column] = value
    return out


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (broken(3, 1, np.nan), {}, "data='array 0: z1 is nan in frame 3'.*finite"),
        (broken(3, 0, 3.5), {}, "data='array 0: steps of 0.5 to 1.5'.*equal steps.*pairs"),
        (broken(3, 0, 1.0), {}, "data='array 0: time 2, then 1'.*rising"),
        (LINE[:1], {}, "data='array 0: 1 frames'.*2 or more"),
        (LINE[:9], {}, "data='8 pairs'.*20 or more"),
        (LINE, {"lag": 40}, "data='array 0: 30 frames'.*more than 40"),
        (LINE[:, :1], {}, r"data='array 0: float64 of shape \(30, 1\)'"),
        (LINE.astype(str), {}, "data='array 0: <U.*numbers of shape"),
        ({"z": TIMES, "dt": 1.0}, {}, "data='mapping.*z, dt'.*or z, dz and dt"),
        ({"z": TIMES, "dz": TIMES}, {}, "data=.*no dt"),
        ({"z": TIMES, "dz": TIMES[1:], "dt": 1.0}, {}, "data=.*z .30, 1., dz .29"),
        ({"z": TIMES, "dz": TIMES, "dt": 0.0}, {}, "data=.*dt of 0"),
        ({"time": TIMES, "a": TIMES[1:]}, {}, "data=.*a is float64 of shape .29"),
        (LINE, {"observables": "m"}, "observables='m'.*some of z1"),
        (LINE, {"observables": "z1,z1"}, "observables='z1,z1'"),
        (LINE, {"latents": 1}, "latents=.*coarse"),
        (LINE, {"patch": 2}, "patch=2"),
        (LINE, {"parameters": "temperature"}, "parameters='temperature'"),
        (LINE, {"factor": 0}, "factor=0"),
        (LINE, {"epochs": 0}, "epochs=0"),
        (np.hstack([LINE, LINE[:, 1:] * 2]), {}, "observables='z1,z2'.*follows"),
        (np.hstack([LINE, 0 * LINE[:, 1:]]), {}, "observables='z2'.*changes"),
        ([LINE, {"z": TIMES, "dz": TIMES, "dt": 1.0}], {}, "data='pairs and series'"),
        ("no.csv", {}, "data='no.csv'.*existing"),
        ("no.h5", {}, "runs='no.h5'.*existing"),
    ],
)
def test_what_cannot_be_learned_from_is_said(
    data: Any, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    data = {k: v for k, v in data.items()} if isinstance(data, dict) else data
    with pytest.raises(InputError, match=f"^{message}"):
        learn(data, tmp_path / "law", **options)
    assert not (tmp_path / "law").exists()


def test_broken_tables_are_said(tmp_path: Path) -> None:
    for name, text in (
        ("words.csv", "time,z1\n0,1\n1,two\n"),
        ("uneven.csv", "0,1\n1,2,3\n"),
        ("empty.csv", ""),
        ("no.npy", "no"),
        ("no.npz", "no"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(InputError, match=f"^data='.*{name}"):
            learn(path, tmp_path / "law")


def test_without_torch_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in [n for n in sys.modules if n.startswith("mpiflow.learn.closure.from_data")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"^torch=.*mpiflow\[learn\]"):
        learn(LINE, tmp_path / "law")
