"""``mpiflow learn onsagerflow`` and ``mpiflow predict``: from runs to a law, from a law to runs."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from exact import has_cuda
from free_law import BLOCK, save_free_law
from mpi4py import MPI

import mpiflow
from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.core.noise import RNG
from mpiflow.files import checkpoint
from mpiflow.files.moments import Moment
from mpiflow.files.trajectory import Trajectory
from mpiflow.initial.block_means import means_of_file
from mpiflow.learn.models import KINDS
from mpiflow.learn.onsagerflow.build import build
from mpiflow.learn.onsagerflow.from_files import learn_from_files
from mpiflow.learn.onsagerflow.increments import runs_from_files
from mpiflow.learn.onsagerflow.model import OnsagerFlow
from mpiflow.run import follow as recording
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.run.stopping import Stopped, Verdict, Watch
from mpiflow.simulation.field.law_files import TableLaw
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.field.simulation import FieldSimulation
from mpiflow.simulation.field.sizes import plan as plan_field
from mpiflow.solvers.field import transforms
from mpiflow.systems.field_law import ExactLaw

GOOD: dict[str, Any] = {
    "size": "32x48", "time": 3, "save_every": 0.5, "dt": 0.25, "seed": 5, "quiet": True,
    "initial_magnetization": 0.3,
}  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_free_law(tmp_path / "model")


# -- from the command line -------------------------------------------------------------------

TEMPERATURE = 1.25


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three microscopic runs and ``model``, learned from them."""
    folder = tmp_path_factory.mktemp("learned")
    line = f"simulate kac --size 96 --gamma 8 --temperature {TEMPERATURE} --time 10 --quiet"
    line += " --save-every 0.1 --tau 0.1 --solver midpoint --coarse 8 --initial gaussian"
    for seed, m in enumerate((-0.6, 0.0, 0.6)):
        start = f"--initial-magnetization {m} --correlation-length 12 --seed {seed}"
        invoke([*line.split(), *start.split(), "--out", str(folder / f"run{seed}.h5")])
    runs = [str(folder / f"run{seed}.h5") for seed in range(3)]
    options = ["--out", str(folder / "model"), "--mobility-terms", "2", "--entropy-terms", "1"]
    invoke(["learn", "onsagerflow", "--runs", *runs, *options, "--radius", "4"])
    return folder


def test_a_learned_law_relaxes_as_its_spins_do(learned: Path) -> None:
    common = "--size 96 --time 3 --save-every 0.5 --initial-magnetization 0.5 --quiet"
    kac = f"simulate kac --gamma 8 --temperature {TEMPERATURE} --members 24 --seed 9 "
    kac += "--tau 0.1 --solver midpoint --initial random"
    invoke([*kac.split(), *common.split(), "--out", str(learned / "kac.h5")])
    line = ["predict", str(learned / "model"), *common.split(), "--members", "64"]
    means, errors = [], []
    ways = {
        "cosh": "", "langevin": "--structure langevin", "merged": "--block 16",
        "stretched": "--size 192 --stretch 2",
    }  # fmt: skip
    for name, options in ways.items():
        invoke([*line, *options.split(), "--out", str(learned / f"{name}.h5")])
    for name in ("kac", *ways):
        with Trajectory(learned / f"{name}.h5") as run:
            m = run["magnetization"][1:]
        means.append(m.mean(axis=1))
        errors.append(m.std(axis=1, ddof=1) / np.sqrt(m.shape[1]))
    assert means[0][-1] < 0.35  # it has moved by many errors
    learned_model = mpiflow.load_model(learned / "model")
    k, s = learned_model.errors(np.array([0.3]), TEMPERATURE)
    slope = k[0] / learned_model.mobility(np.array([0.3]), TEMPERATURE)[0] + s[0] / 0.3
    for mean, error in zip(means[1:], errors[1:], strict=True):
        # Of both ensembles, and of the law: that of its rate makes one of what has decayed.
        total = np.sqrt(errors[0] ** 2 + error**2 + (slope * (0.5 - means[0])) ** 2)
        assert abs(mean - means[0]).max() < 0.02
        assert (abs(mean - means[0]) < 4 * total).all(), (mean - means[0]) / total


def test_the_table_says_what_was_learned(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["learn", "onsagerflow", "--runs", str(learned / "run*.h5"), "--radius", "2"]
    line += ["--mobility-terms", "1", "--entropy-terms", "0", "--lags", "1,2"]
    out = learned / "again"
    invoke([*line, "--out", str(out)])
    told = capsys.readouterr().out
    assert "cosh from 3 runs with blocks of 8 x 8 sites" in told
    assert f"saved to {out}" in told
    row = next(text.split() for text in told.splitlines() if text.split()[0] == "1.25")
    assert int(row[1]) == 3 * 99 * 144
    with pytest.raises(InputError, match=r"^out=.*--overwrite"):
        invoke([*line, "--out", str(out)])
    invoke([*line, "--out", str(out), "--overwrite", "--structure", "langevin"])
    assert mpiflow.load_model(out).form.structure == "langevin"


def test_networks_are_learned_too(learned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["learn", "onsagerflow", "--runs", str(learned / "run0.h5"), "--radius", "2"]
    line += ["--out", str(learned / "network"), "--network"]
    invoke(line)
    assert "unknown" in capsys.readouterr().out  # their errors
    model = mpiflow.load_model(learned / "network")
    assert model.networks is not None
    m = np.linspace(-0.5, 0.5, 11)
    assert abs(model.mobility(m, TEMPERATURE) * TEMPERATURE / (1 - m * m) - 1).max() < 0.15
    with pytest.raises(InputError, match=r"^mobility_terms='?3.*--network"):
        invoke([*line, "--overwrite", "--mobility-terms", "3"])
    with pytest.raises(InputError, match=r"^kernel='radial'.*--network"):
        invoke([*line, "--overwrite", "--kernel", "radial"])


def test_what_is_predicted_can_be_learned_from(learned: Path) -> None:
    """The law of the law: the field in place of the spins, on another lattice."""
    out = learned / "field.h5"
    options = "--frame 0 --size 192 --time 10 --save-every 0.1 --quiet".split()
    start = ["--initial", str(learned / "run2.h5"), *options]
    invoke(["predict", str(learned / "model"), *start, "--out", str(out)])
    (run,) = runs_from_files(out)
    assert (run.spins, run.temperature, run.fields.shape) == (64, TEMPERATURE, (101, 24, 24))
    again = learn_from_files(out, learned / "third", radius=4, mobility_terms=2, entropy_terms=1)
    first = mpiflow.load_model(learned / "model")
    m = np.array([-0.4, 0.1, 0.4])
    k, s = again.errors(m, TEMPERATURE)
    far = again.mobility(m, TEMPERATURE) - first.mobility(m, TEMPERATURE)
    assert (abs(far) < 5 * k).all(), far / k
    far = again.entropy_derivative(m, TEMPERATURE) - first.entropy_derivative(m, TEMPERATURE)
    assert (abs(far) < 5 * s).all(), far / s


def test_a_file_holds_what_the_law_says(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    simulate(FieldConfig(**GOOD, model=model, out=out), MPI.COMM_SELF)
    with Trajectory(out) as run:
        assert run["y"].tolist() == [1.5 + 4 * i for i in range(8)]
        assert run.config["coarse"] == BLOCK
        assert run.attributes["kernel"] == "cosh"
        np.testing.assert_allclose(run["magnetization"][0], 0.3, atol=1 / 16)
        # F = T (m artanh m + ln sqrt(1 - m^2)) - m u / 2, u = J * m, the mean over blocks
        m = run["coarse_magnetization"][0].astype(float)
        assert set(m.flat) == {2 / 8, 3 / 8}  # as near to 0.3 as 16 spins are
        j = mpiflow.load_model(model).kernel
        u = sum(
            j[y, x] * np.roll(m, (y - len(j) // 2, x - len(j) // 2), (0, 1))
            for y, x in np.ndindex(j.shape)
        )
        free = 0.8 * (m * np.arctanh(m) + 0.5 * np.log(1 - m * m)) - 0.5 * m * u
        assert run["free_energy"][0] == pytest.approx(free.mean(), abs=1e-12)


# -- going on -----------------------------------------------------------------------


@pytest.mark.parametrize("structure", ["cosh", "langevin"])
def test_a_checkpoint_holds_sums_of_spins_or_means(
    structure: str, model: Path, tmp_path: Path
) -> None:
    given = GOOD | {"structure": structure, "model": model, "members": 3}
    simulate(FieldConfig(**given, out=tmp_path / "run.h5"), MPI.COMM_SELF)
    with h5py.File(checkpoint.paths(tmp_path / "run.h5")[0]) as file:
        assert file["sites"].shape == (3, 8, 12)
        assert file["sites"].dtype == ("f8" if structure == "langevin" else "i4")


class Interrupted(Watch):
    """Looks at every step, and stops after a number of looks."""

    left = 0

    def ahead(self, position: float) -> float:
        return 1e-30

    def look(self, position: float, events: float | None = None) -> Verdict:
        type(self).left -= 1
        return Verdict("SIGUSR1" if self.left < 0 else "", False, self.stride)


def test_it_stops_inside_of_a_step(model: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A step of thousands of inner ones may take minutes. Another dt holds from there on."""
    monkeypatch.setattr(recording, "Watch", Interrupted)
    given = GOOD | {"structure": "langevin", "dt": 0.5, "model": model}
    for name, dt in (("same", 0.5), ("other", 0.25)):
        config = FieldConfig(**given, out=tmp_path / f"{name}.h5")
        Interrupted.left = 4
        with pytest.raises(Stopped):
            simulate(config, MPI.COMM_SELF)
        point = checkpoint.newest(config.out, MPI.COMM_SELF)
        assert point is not None
        assert point.numbers["frames"] == 1
        assert 0 < point.numbers["begun"] == 4 < point.numbers["parts"]
        here = 4 * 0.5 / point.numbers["parts"]
        Interrupted.left = 10**9
        end = 3.0 if dt == 0.5 else here + 2.0
        resume(config.out, MPI.COMM_SELF, {"dt": dt, "time": end, "quiet": True})
        with Trajectory(config.out) as run:
            assert run["time"][-1] == pytest.approx(end, rel=1e-12)
            times = run["time"][1:]
            assert times == pytest.approx(times[0] + 0.5 * np.arange(len(times)), rel=1e-12)


def test_time_goes_on_with_another_step(model: Path, tmp_path: Path) -> None:
    config = FieldConfig(**GOOD, model=model, out=tmp_path / "run.h5")
    simulate(config, MPI.COMM_SELF)
    resume(config.out, MPI.COMM_SELF, {"time": 4, "dt": 0.05, "quiet": True})
    resume(config.out, MPI.COMM_SELF, {"time": 6, "dt": 0.25, "quiet": True})
    with Trajectory(config.out) as run:
        np.testing.assert_allclose(run["time"], 0.5 * np.arange(13), atol=1e-9)


def test_another_model_is_refused_where_a_run_goes_on(model: Path, tmp_path: Path) -> None:
    given = GOOD | {"out": tmp_path / "run.h5"}
    config = FieldConfig(**given, model=model)
    simulate(config, MPI.COMM_SELF)
    moved = model.rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"^model=.*SHA-256 .*not there.*--override model=PATH"):
        resume(config.out, MPI.COMM_SELF, {"time": 4})
    resume(config.out, MPI.COMM_SELF, {"time": 4, "model": str(moved)})
    for other in ({"rate": 1.1}, {"temperatures": (0.8, 0.9)}):
        save_free_law(moved, **other)
        with pytest.raises(InputError, match=r"^model=.*It has changed"):
            resume(config.out, MPI.COMM_SELF, {"time": 5, "model": str(moved)})
    save_free_law(moved)
    with pytest.raises(InputError, match=r"^temperature=0.9: .*was 0.8"):
        simulate(FieldConfig(**given, model=moved, temperature=0.9, resume=True), MPI.COMM_SELF)


def test_runs_of_the_first_noise_are_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps once made other numbers of the same random words."""
    config = FieldConfig(**GOOD, model=model, out=tmp_path / "run.h5")
    with monkeypatch.context() as before:
        before.setattr(FieldSimulation, "rng", RNG)
        simulate(config, MPI.COMM_SELF)
    with pytest.raises(InputError, match=f"^rng=.*rng was '{RNG}'.*version of then"):
        resume(config.out, MPI.COMM_SELF, {"time": 4, "quiet": True})


# -- initial states ------------------------------------------------------------------------------


def means(path: Path, block: int, shape: tuple[int, int], **options: Any) -> np.ndarray:
    with means_of_file(path, Moment(options.get("frame")), block, shape) as read:
        return read(options.get("member", 0), options.get("rows", slice(0, shape[0])))


@pytest.fixture(scope="module")
def kac(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kac")
    line = "simulate kac --gamma 1 --temperature 2 --time 1 --save-every 0.5 --quiet --size 16x24"
    for name, options in {
        "coarse": "--coarse 4", "spins": "--spins", "bits": "--spin-bits",
        "members": "--coarse 4 --members 2", "square": "--size 24 --coarse 4",
        "few": "--size 16 --coarse 4",
    }.items():  # fmt: skip
        invoke([*line.split(), *options.split(), "--out", str(folder / f"{name}.h5")])
    return folder


@pytest.mark.parametrize("name", ["coarse", "spins", "bits"])
def test_means_of_a_run(name: str, kac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, bytes and bits of the same run give the same means, in bands and with repeats."""
    with Trajectory(kac / "spins.h5") as run:
        spins = run["spin"].astype(float)
    for block in (4, 8):
        whole = spins.reshape(3, 16 // block, block, 24 // block, block).mean(axis=(2, 4))
        ny, nx = whole.shape[1:]
        for frame in (-1, 0, 1):
            got = means(kac / f"{name}.h5", block, (ny, nx), frame=frame)
            np.testing.assert_allclose(got, whole[frame], atol=1e-7)
        many = np.tile(whole[-1], (3, 2))
        monkeypatch.setattr("mpiflow.initial.block_means.VALUES", 100)
        np.testing.assert_allclose(
            means(kac / f"{name}.h5", block, (3 * ny, 2 * nx)), many, atol=1e-7
        )
        for rows in (slice(1, 2 * ny + 1), slice(ny - 1, ny + 1), slice(2, 2)):
            got = means(kac / f"{name}.h5", block, (3 * ny, 2 * nx), rows=rows)
            np.testing.assert_allclose(got, many[rows], atol=1e-7)


def test_members_start_from_their_own_or_from_the_same(
    kac: Path, model: Path, tmp_path: Path
) -> None:
    given = GOOD | {"size": "32x24", "model": model, "members": 2, "initial_magnetization": 0}
    for name in ("members", "coarse"):
        path = kac / f"{name}.h5"
        config = FieldConfig(**given, initial=str(path), out=tmp_path / f"{name}.h5")
        simulate(config, MPI.COMM_SELF)
        with Trajectory(path) as run, Trajectory(config.out) as field:
            start = run["coarse_magnetization"][-1]
            m = field["coarse_magnetization"]
        wanted = np.tile(start, (1, 2, 1)) if name == "members" else np.tile(start, (2, 2, 1))
        np.testing.assert_allclose(m[0], wanted, atol=1e-7)
        assert (m[-1, 0] != m[-1, 1]).any()
        # Copies of the smaller lattice part ways.
        assert (m[-1, 0, :4] != m[-1, 0, 4:]).any()
    config = FieldConfig(**given | {"members": 3}, initial=str(kac / "members.h5"), out="x.h5")
    with pytest.raises(InputError, match=r"^members=3.*up to 2"):
        simulate(config, MPI.COMM_SELF)


def test_blocks_are_merged_and_stretched(model: Path, tmp_path: Path) -> None:
    base = GOOD | {"model": model, "out": tmp_path / "run.h5"}
    for given, wanted in (
        ({}, (4, 1)), ({"block": 8}, (8, 2)), ({"stretch": 2}, (8, 1)),
        ({"stretch": 2, "block": 16}, (16, 2)),
    ):  # fmt: skip
        config = FieldConfig(**base | given)
        assert (config.block, config.merge) == wanted
        assert config.coarse == config.block
        assert FieldConfig(**json.loads(config.model_dump_json())) == config
    # Merged blocks feel J of twice the reach: the field of a wave is nearly that of small blocks.
    law = mpiflow.load_model(model)
    fine = law.field(0.8, (64, 64), block=4, comm=MPI.COMM_SELF)
    rough = law.field(0.8, (32, 32), block=8, merge=2, comm=MPI.COMM_SELF)
    wave = np.cos(2 * np.pi * (np.arange(64) + 0.5) / 64) * np.ones((64, 1))
    half = wave.reshape(32, 2, 32, 2).mean(axis=(1, 3))
    u = fine.convolve(wave[None])[0].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(rough.convolve(half[None])[0], u, atol=5e-3)


def test_blocks_of_several_sizes_must_be_named(tmp_path: Path) -> None:
    base = GOOD | {
        "model": save_free_law(tmp_path / "m", spins=(16, 64)),
        "out": tmp_path / "run.h5",
    }
    with pytest.raises(InputError, match=r"^block=None.*16, 64"):
        FieldConfig(**base)
    with pytest.raises(InputError, match=r"^stretch=2"):
        FieldConfig(**base, block=8, stretch=2)
    config = FieldConfig(**base, block=8)
    assert (config.block, config.merge) == (8, 1)


@pytest.mark.kernel
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
def test_a_device_has_the_same_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the transforms of the host; made anew from a checkpoint of the other device."""
    monkeypatch.setenv(transforms.HOST, "1")
    given = GOOD | {"size": "8x12", "time": 0.5, "structure": "langevin", "model": model}
    frames = {}
    for device, then in (("cpu", "cuda"), ("cuda", "cpu")):
        config = FieldConfig(**given, device=device, out=tmp_path / f"{device}.h5")
        planned = plan_field(config, 1).on_device
        assert bool(planned) == (device == "cuda")
        simulate(config, MPI.COMM_SELF)
        resume(config.out, MPI.COMM_SELF, {"time": 1, "device": then, "quiet": True})
        with Trajectory(config.out) as run:
            frames[device] = run["coarse_magnetization"][:]
    field = build(config, MPI.COMM_SELF).sim.field  # type: ignore[attr-defined]
    field.advance_some(1)
    arrays = field._motion_there._space.of(field.local)
    assert planned["field"] == field._there.nbytes
    assert planned["step"] == sum(a.nbytes for a in arrays)
    assert len(frames["cpu"]) == 3
    assert np.array_equal(frames["cpu"], frames["cuda"])


# -- refusals and remarks ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"size": 30}, r"^size=\(30, 30\).*multiple of the block of 4.*Try 32x32"),
        ({"size": 4}, r"^size=.*two or more"),
        ({"block": 6}, r"^block=6: .*multiple of the learned block of 4 sites. Try 4"),
        ({"stretch": 3, "block": 4}, r"^block=4: .*learned block of 12 = 4 x 3 sites"),
        ({"stretch": 0}, r"^stretch=0"), ({"dt": 2}, r"^dt=2"), ({"time": -1}, r"^time=-1"),
        ({"temperature": 0}, r"^temperature=0"), ({"structure": "ito"}, r"^structure="),
        ({"device": "tpu"}, r"^device='tpu'"), ({"coarse": 8}, r"^coarse=8"),
        ({"frame": 0}, r"^initial_frame=0.*uniform"),
        ({"initial": "no.h5"}, r"^initial_magnetization"),
        ({"initial": "no.h5", "initial_magnetization": 0}, r"^initial='no.h5'"),
        ({"model": "nowhere"}, r"^model=.*no model.json"), ({"gamma": 1}, r"^gamma=1"),
    ],
    ids=str,
)  # fmt: skip
def test_options_that_cannot_be(
    given: dict[str, Any], says: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        FieldConfig(**GOOD | {"model": model, "out": tmp_path / "x.h5"} | given)


def test_models_that_cannot_be(tmp_path: Path) -> None:
    given = GOOD | {"out": tmp_path / "x.h5"}
    with pytest.raises(InputError, match=r"^temperature=None.*0.7, 0.8"):
        FieldConfig(**given, model=save_free_law(tmp_path / "two", temperatures=(0.7, 0.8)))
    for text, says in (("{", "Reading said"), ('{"kind": "field-law"}', "It has kind 'field-law'")):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(InputError, match=f"^model=.*{says}"):
            FieldConfig(**given, model=tmp_path)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"time": 0.3, "save_every": 0.1}, r"^time=0.3: .*multiple of the time step 0.25"),
        ({"save_every": 0.3}, r"^save_every=0.3: .*multiple"),
        ({"initial": "coarse.h5", "frame": 3}, r"^initial_frame=3: .*-3 to 2"),
        ({"initial": "coarse.h5", "size": 32}, r"^size=\(32, 32\): .*multiple of \(16, 24\)"),
        ({"initial": "coarse.h5", "size": 48, "block": 12}, r"^initial=.*in blocks of 12 sites"),
        ({"initial": "flat.npy"}, r"^initial=.*means of blocks"),
        ({"initial": "large.npy"}, r"^initial=.*-1 to 1"),
        ({"initial": "text.npy"}, r"^initial=.*Reading said"),
        ({"initial": "text.h5"}, r"It is text"),
        ({"initial": "none.h5"}, r"^initial=.*--coarse 8"),
    ],
    ids=str,
)
def test_nothing_is_written_for_what_cannot_be(
    given: dict[str, Any], says: str, model: Path, kac: Path, tmp_path: Path
) -> None:
    np.save(kac / "flat.npy", np.zeros(4))
    np.save(kac / "large.npy", np.full((8, 12), 1.5))
    for name in ("text.npy", "text.h5"):
        (kac / name).write_text("no numbers")
    if not (kac / "none.h5").exists():
        line = "simulate ising --size 16 --temperature 2 --time 1 --quiet --out"
        invoke([*line.split(), str(kac / "none.h5")])
    if "initial" in given:
        given = {"initial_magnetization": 0} | given | {"initial": str(kac / given["initial"])}
    config = FieldConfig(**GOOD | {"model": model, "out": tmp_path / "x.h5"} | given)
    with pytest.raises(InputError, match=says):
        simulate(config, MPI.COMM_SELF)
    assert not (tmp_path / "x.h5").exists()


def test_blocks_of_a_file_that_are_larger(kac: Path, tmp_path: Path) -> None:
    small = save_free_law(tmp_path / "small", spins=(4,))
    given = GOOD | {"initial": str(kac / "coarse.h5"), "initial_magnetization": 0}
    with pytest.raises(InputError, match=r"^block=2: .*multiple of the 4 sites a side"):
        simulate(FieldConfig(**given, model=small, out=tmp_path / "x.h5"), MPI.COMM_SELF)


def test_what_was_not_learned_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = save_free_law(tmp_path / "model", largest=0.4)
    given = GOOD | {"model": model, "quiet": False, "temperature": 0.7}
    simulate(FieldConfig(**given, out=tmp_path / "a.h5"), MPI.COMM_SELF)
    said = "".join(capfd.readouterr())
    assert said.count("learned from 0.8 to 0.8") == 1
    assert said.count("of 96 blocks is beyond -0.4 to 0.4, where the law was learned") == 1
    assert "site-packages" not in said
    assert "Warning" not in said
    simulate(FieldConfig(**given | {"quiet": True}, out=tmp_path / "b.h5"), MPI.COMM_SELF)
    assert "".join(capfd.readouterr()) == ""


def test_runs_that_cannot_be_learned_from(kac: Path, tmp_path: Path) -> None:
    line = ["learn", "onsagerflow", "--out", str(tmp_path / "m"), "--runs"]
    for more, says in (
        ([str(kac / "spins.h5")], r"^runs=.*--coarse 8"),
        ([str(kac / "square.h5")], r"^runs=.*3 frames.*more than 3"),
        ([str(kac / "few.h5"), "--lags", "1"], r"^runs='4 blocks'"),
        ([str(tmp_path / "no.h5")], r"^runs=.*not found"),
        ([str(kac / "square.h5"), "--lags", "1;2"], r"^lags='1;2'"),
        ([str(kac / "square.h5"), "--lags", "2,1"], r"^lags="),
        ([str(kac / "square.h5"), "--lags", "1", "--structure", "ito"], r"^structure='ito'"),
        ([str(kac / "square.h5"), "--lags", "1", "--kernel", "box"], r"^kernel='box'"),
        ([str(kac / "square.h5"), "--lags", "1", "--radius", "3"], r"^radius=3"),
    ):
        with pytest.raises(InputError, match=says):
            invoke([*line, *more])
    assert not (tmp_path / "m").exists()


# -- models of all kinds -------------------------------------------------------------------------


def test_models_of_all_kinds_are_loaded(tmp_path: Path) -> None:
    from mpiflow.learn.generator.model import Generator

    save_free_law(tmp_path / "onsagerflow")
    m = np.linspace(-0.9, 0.9, 19)
    exact = ExactLaw(1.0)
    TableLaw(1.0, m, exact.mobility(m), exact.entropy_derivative(m)).save(tmp_path / "law")
    generator = Generator("strong", "free", 8, 2)
    generator.save(tmp_path / "generator")
    for name, kind in (("onsagerflow", OnsagerFlow), ("law", TableLaw), ("generator", Generator)):
        assert type(mpiflow.load_model(tmp_path / name)) is kind
        assert type(mpiflow.load_model(str(tmp_path / name))) is kind
    law = mpiflow.load_model(tmp_path / "onsagerflow")
    assert law.kernel.shape == (5, 5)
    assert law.kernel.sum() == pytest.approx(1)
    for values in (0.5, [0.1, 0.2], np.zeros((2, 3))):
        for function in (law.mobility, law.entropy_derivative):
            assert np.shape(function(values, 0.8)) == np.shape(values)


def test_kinds_are_those_of_their_modules() -> None:
    for kind, (module, function) in KINDS.items():
        assert import_module(module).KIND == kind
        assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "no model.json"), ("{", "Reading its kind"), ("[]", "Reading its kind"),
     ('{"kind": "frog"}', "frog"), ('{"kind": []}', "Reading its kind")],
)  # fmt: skip
def test_other_folders_are_refused(text: str | None, says: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "model.json").write_text(text)
    with pytest.raises(InputError, match=r"^model=.*ising-closure, onsagerflow.*" + says):
        mpiflow.load_model(tmp_path)
