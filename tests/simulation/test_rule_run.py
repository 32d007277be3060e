"""``mpiflow simulate potts | blume-capel``: spin rules from their options to their files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from mpi4py import MPI

from mpiflow import Simulation, initial
from mpiflow.cli import invoke
from mpiflow.commands import verify
from mpiflow.commands.verify import rules as verify_rules
from mpiflow.core.errors import InputError
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.resume import resume
from mpiflow.run.simulate import simulate
from mpiflow.simulation import catalogue
from mpiflow.systems.blume_capel import BlumeCapel
from mpiflow.systems.potts import Potts

ALONE = MPI.COMM_SELF


def config(system: str, out: str | Path = "run.h5", **options: Any) -> Any:
    """A short run of everything that can be saved."""
    short: dict[str, dict[str, Any]] = {
        "potts": {"states": 3, "temperature": 1.1, "field": 0.1},
        "blume-capel": {"temperature": 0.7, "crystal_field": 1.2, "field": 0.05},
    }
    common = {"size": "16x20", "time": 2, "save_every": 1, "coarse": 4, "spins": True, "seed": 5}
    given = {**short[system], **common, **options, "quiet": True, "out": out}
    return catalogue.options(system)(**given)


#: On any number of ranks, then those that are whole on a rank.
CUT: dict[str, tuple[str, dict[str, Any]]] = {
    "potts": ("potts", {}),
    "sweeps": ("potts", {"states": 4, "dt": "inf", "coarse": None, "initial": "random"}),
    "blume-capel": ("blume-capel", {"dt": 0.5, "initial_fractions": "0.2,0.5,0.3"}),
}
WHOLE: dict[str, tuple[str, dict[str, Any]]] = {
    "members": ("potts", {"members": 3, "initial": "random", "initial_fractions": "0.5,0.3,0.2"}),
    "nfold": ("potts", {"solver": "nfold", "members": 3, "size": "9x12", "coarse": 3}),
    "nfold of blume-capel": ("blume-capel", {"solver": "nfold", "members": 2}),
}
RUNS = CUT | WHOLE
by_run = pytest.mark.parametrize(("system", "options"), RUNS.values(), ids=RUNS)


# -- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "options", "says"),
    [
        ("potts", {"states": 1}, r"^states=1: .*2 to 127"),
        ("potts", {"states": 128}, r"^states=128: .*2 to 127"),
        ("potts", {"states": 20, "solver": "nfold"}, r"^states=20: .*at most 12.*sublattice"),
        ("potts", {"initial_fractions": "0.5,0.5"}, r"^initial_fractions=.*3 numbers"),
        ("potts", {"initial_fractions": "0.5,0.5,0.1"}, r"^initial_fractions=.*add up to 1"),
        ("potts", {"initial_fractions": "1.5,-0.5,0"}, r"^initial_fractions=.*0 or more"),
        ("potts", {"initial": "random", "initial_fractions": "a"}, r"^initial_fractions='a'"),
        ("potts", {"initial_fractions": "1,0,0", "initial": "ordered"}, r"^initial_fractions=.*no"),
        ("potts", {"initial": "ordered", "initial_state": 3}, r"^initial_state=3: .*0 to 2"),
        ("potts", {"initial_state": 1}, r"^initial_state=1: .*with initial shuffled"),
        ("potts", {"initial": "orderd"}, r"^initial='orderd': .*Did you mean ordered"),
        ("potts", {"initial": "none.h5"}, r"^initial=.*none.h5': .*existing file"),
        ("potts", {"size": "9x12", "coarse": None}, r"^size=.*even number"),
        ("potts", {"coarse": 5}, r"^coarse=5: .*divisor"),
        ("potts", {"temperature": 1e-3}, r"^temperature=0.001: .*at least"),
        ("potts", {"field": float("nan")}, r"^field=nan: .*finite"),
        ("potts", {"coupling": float("inf")}, r"^coupling=inf: .*finite"),
        ("potts", {"dt": 0}, r"^dt=0: .*above 0, or inf"),
        ("potts", {"dt": 0.5, "solver": "nfold"}, r"^dt=0.5: .*no step"),
        ("potts", {"ranks_grid": "1,1", "members": 2}, r"^ranks_grid=.*dealt"),
        ("blume-capel", {"initial": "ordered", "initial_state": 2}, r"^initial_state=2: .*-1 to 1"),
        ("blume-capel", {"crystal_field": float("nan")}, r"^crystal_field=nan: .*finite"),
        ("blume-capel", {"temperature": 0}, r"^temperature=0: .*above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    system: str, options: dict[str, Any], says: str
) -> None:
    """Where they are read, so that a plan refuses them too."""
    with pytest.raises(InputError, match=says):
        config(system, **options)


@pytest.mark.mpi
def test_bad_files_are_refused_by_all_ranks(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    if comm.rank == 0:
        np.save(mpi_tmp_path / "wrong.npy", np.full((16, 20), 3))
        np.save(mpi_tmp_path / "small.npy", np.zeros((6, 8), np.int8))
        simulate(config("blume-capel", mpi_tmp_path / "other.h5"), ALONE)
        simulate(config("potts", mpi_tmp_path / "none.h5", spins=False), ALONE)
    comm.Barrier()
    for name, says in (
        ("wrong.npy", "with 3.*states 0 to 2 only"),
        ("small.npy", r"shape \(16, 20\)"),
        ("other.h5", "with -1.*states 0 to 2 only"),
        ("none.h5", "spins"),
    ):
        with pytest.raises(InputError, match=rf"^initial=.*{says}"):
            simulate(config("potts", mpi_tmp_path / "x.h5", initial=str(mpi_tmp_path / name)), comm)
    assert not (mpi_tmp_path / "x.h5").exists()


# -- what the file holds -------------------------------------------------------------------------


@by_run
@pytest.mark.mpi
def test_values_agree_with_the_states(
    system: str, options: dict[str, Any], comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    made = config(system, mpi_tmp_path / "run.h5", **options)
    simulate(made, comm)
    with Trajectory(made.out) as run:
        states, sites = run["site_state"].astype(float), np.prod(made.size)
        values = run["state"]
        of_each = states[..., None, :, :] == values[:, None, None]
        np.testing.assert_array_equal(run["fraction"], of_each.sum(axis=(-2, -1)) / sites)
        fraction, pairs = run["fraction"], [np.roll(states, -1, axis) for axis in (-1, -2)]
        if system == "potts":
            q = made.states
            order = (q * fraction.max(axis=-1) - 1) / (q - 1)
            energy = -sum((states == other).sum(axis=(-2, -1)) for other in pairs) / sites
            energy = energy - made.field * fraction[..., 0]
        else:
            order = states.mean(axis=(-2, -1))
            energy = -sum((states * other).mean(axis=(-2, -1)) for other in pairs)
            np.testing.assert_allclose(run["density"], (states**2).mean(axis=(-2, -1)), rtol=1e-13)
            energy = energy + made.crystal_field * run["density"] - made.field * order
        np.testing.assert_allclose(run["magnetization"], order, atol=1e-13)
        np.testing.assert_allclose(run["energy"], energy, atol=1e-12)
        if made.coarse:
            side, (ly, lx) = made.coarse, made.size
            shape = (*of_each.shape[:-2], ly // side, side, lx // side, side)
            blocks = of_each.reshape(shape).mean(axis=(-3, -1))
            np.testing.assert_array_equal(run["coarse_fraction"], blocks.astype(np.float32))
        changed = (np.diff(states, axis=0) != 0).sum(axis=(-2, -1))
        assert (np.diff(run["flips"], axis=0) >= changed).all()
        assert run["flips"].min() == 0
        if made.initial == "shuffled":
            wanted = made.initial_fractions or [1 / len(values)] * len(values)
            near = abs(run["fraction"][0] - np.asarray(wanted)) <= 1 / sites
            assert near.all()


@pytest.mark.mpi
def test_ordered_starts(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    for name, system, options, value in (
        ("a", "potts", {}, 0),
        ("b", "potts", {"initial_state": 2}, 2),
        ("c", "blume-capel", {}, -1),
        ("d", "blume-capel", {"initial_state": 0}, 0),
    ):
        made = config(system, mpi_tmp_path / f"{name}.h5", initial="ordered", **options)
        simulate(made, comm)
        with Trajectory(made.out) as run:
            assert (run.read("site_state", 0) == value).all()
            assert run["fraction"][0][list(run["state"]).index(value)] == 1


@pytest.mark.mpi
def test_it_starts_from_its_own_run_and_from_arrays(
    comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    first = config("potts", mpi_tmp_path / "first.h5", members=3)
    simulate(first, comm)
    with Trajectory(first.out) as run:
        states = run["site_state"]
    if comm.rank == 0:
        np.save(mpi_tmp_path / "states.npy", states[1, 2])
    comm.Barrier()
    for number, (options, wanted) in enumerate((
        ({"initial": str(first.out), "initial_frame": 1, "initial_member": 2}, states[1, 2]),
        ({"initial": str(first.out), "initial_time": 1, "initial_member": -1}, states[1, 2]),
        ({"initial": str(mpi_tmp_path / "states.npy")}, states[1, 2]),
        ({"initial": str(first.out), "members": 3}, states[2]),
    )):  # fmt: skip
        made = config("potts", mpi_tmp_path / f"{number}.h5", **options)
        simulate(made, comm)
        with Trajectory(made.out) as run:
            np.testing.assert_array_equal(run.read("site_state", 0), wanted)


# -- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.mpi
@pytest.mark.parametrize("system", [Potts(1.1, 3), BlumeCapel(0.7, 1.2), Potts(1.1, 127)])
def test_a_checkpoint_keeps_every_state_of_a_site(
    system: Any, comm: MPI.Intracomm, mpi_tmp_path: Path
) -> None:
    """Values 0, 1 and 2 too, which a bit a site would not hold; read by fewer ranks as well."""
    saved, other = (Simulation(system, (12, 16), seed=3, comm=comm) for _ in range(2))
    alone = Simulation(system, (12, 16), seed=3, comm=ALONE)
    saved.set_states(initial.rule.independent)
    saved.advance(0.5)
    point = checkpoint.read(checkpoint.write(mpi_tmp_path / "run.h5", saved, TEXTS, {}))
    checkpoint.load(point, other)
    checkpoint.load(point, alone)
    whole = saved.gather()
    if whole is not None:
        assert set(whole.ravel()) <= set(system.values)
        assert len(np.unique(whole)) > 2
        np.testing.assert_array_equal(alone.spins(), whole)
    np.testing.assert_array_equal(other.spins(), saved.spins())
    assert (other.time, other.step) == (alone.time, alone.step) == (0.5, 2)
    other.advance(1)
    saved.advance(1)
    np.testing.assert_array_equal(other.spins(), saved.spins())


TEXTS = {"config_json": "{}", "facts_json": "{}", "run": "0" * 16}
#: Numbers that a file of fewer bits, or of text, would not keep.
ODD = (-0.0, 5e-324, 1e300, np.nextafter(1.0, 2.0), 1 / 3, -1e-17)


@pytest.mark.mpi
def test_a_checkpoint_keeps_every_bit_of_a_number(comm: MPI.Intracomm, mpi_tmp_path: Path) -> None:
    options = {"size": len(ODD), "members": 3, "time": 1, "save_every": 0.5, "out": "run.h5"}
    made = catalogue.options("linear-chain")(**options)
    saved, other = (catalogue.build(made, comm).sim for _ in range(2))
    numbers = np.arange(3)[saved.local_members]
    saved.block.store(slice(0, len(ODD)), np.stack([np.roll(ODD, n) for n in range(3)])[numbers])
    point = checkpoint.read(checkpoint.write(mpi_tmp_path / "run.h5", saved, TEXTS, {}))
    checkpoint.load(point, other)
    wanted = np.stack([np.roll(ODD, n) for n in range(3)])[numbers]
    assert other.block.spins().tobytes() == wanted.tobytes()


# -- other commands ------------------------------------------------------------------------------


def test_fields_are_asked_for_in_the_words_of_the_options(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    simulate(config("potts", out, spins=False, coarse=None), ALONE)
    with pytest.raises(InputError, match="--spins"):
        invoke(["export", str(out), "--to", "xdmf"])


@pytest.mark.parametrize(
    ("name", "place", "value", "says"),
    [
        ("fraction", (1, 0), 0.5, "frame 1: fractions do not add up to 1"),
        ("fraction", (1, 0), 0.5001, "frame 1: fraction is no share of whole sites"),
        ("magnetization", (1,), 0.123, "frame 1: magnetization does not follow from fraction"),
        ("energy", (2,), -1.0, "frame 2: energy does not follow from the states of the sites"),
        ("flips", (2,), 0, "flips"),
        ("site_state", (1, 3, 4), 9, "frame 1: site_state is no state of the system"),
        ("site_state", (1, 3, 4), None, "frame 1: the states of the sites do not give fraction"),
        ("coarse_fraction", (2, 0, 1, 1), None, "frame 2: coarse_fraction is no share"),
        ("coarse_fraction", (2, 0, 1, 1), 0.3, "frame 2: coarse_fraction is no share"),
    ],
)
@pytest.mark.parametrize("system", ["potts", "blume-capel"])
def test_wrong_values_are_found(
    system: str,
    name: str,
    place: tuple[int, ...],
    value: float | None,
    says: str,
    recorded: dict[str, Path],
    tmp_path: Path,
) -> None:
    """One number of a good file is another one; None stands for that of another place."""
    out = shutil.copy(recorded[system], tmp_path / "run.h5")
    with h5py.File(out, "r+") as file:
        if value is None:
            others = file[name][place[0]]
            value = next(v for v in others.ravel() if v != file[name][place])
        file[name][place] = value
    assert says in verify.verify_file(out).text


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A good file of each system."""
    folder = tmp_path_factory.mktemp("recorded")
    for system in ("potts", "blume-capel"):
        simulate(config(system, folder / f"{system}.h5"), ALONE)
        assert verify.verify_file(folder / f"{system}.h5").good
    return {system: folder / f"{system}.h5" for system in ("potts", "blume-capel")}


def test_values_are_checked_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of five members, and a row of sites, at once: what is found is the same."""
    monkeypatch.setattr(verify_rules, "_COUNTS", 2 * 3**2)
    monkeypatch.setattr(verify_rules, "_VALUES", 2 * 20)
    out = tmp_path / "run.h5"
    simulate(config("blume-capel", out, members=5), ALONE)
    assert verify.verify_file(out).good
    for name, place, says in (
        ("magnetization", (1, 4), "frame 1: magnetization does not follow from fraction"),
        ("energy", (2, 3), "frame 2: energy does not follow from the states of the sites"),
    ):
        shutil.copy(out, tmp_path / "bad.h5")
        with h5py.File(tmp_path / "bad.h5", "r+") as file:
            file[name][place] = 0.123
        assert says in verify.verify_file(tmp_path / "bad.h5").text


def test_parts_with_other_options_are_checked_by_their_own(tmp_path: Path) -> None:
    out = tmp_path / "run.h5"
    simulate(config("potts", out), ALONE)
    resume(out, ALONE, {"time": 4, "field": 0.7, "quiet": True})
    assert verify.verify_file(out).good


# -- in a script ---------------------------------------------------------------------------------


def test_a_simulation_of_a_rule_is_the_run(tmp_path: Path) -> None:
    made = config("potts", tmp_path / "run.h5")
    simulate(made, ALONE)
    sim = Simulation(made.rule(), made.size, seed=5, comm=ALONE)
    sim.set_states(initial.rule.shuffled)
    with Trajectory(made.out) as run:
        for frame, values in enumerate(sim.frames(time=2, every=1)):
            for name in ("energy", "magnetization", "fraction", "flips"):
                np.testing.assert_array_equal(run.read(name, frame), getattr(values, name))
