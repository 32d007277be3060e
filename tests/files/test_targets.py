"""Files that are written: refused before the work where they cannot be; modes stay."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.experiments import results as report
from mpiflow.files import checkpoint, storage

RUN = "simulate ising --size 8x6 --temperature 2.3 --time 2 --save-every 0.25 --spins --quiet"


def run(out: Path | str, *more: str) -> None:
    invoke([*RUN.split(), "--out", str(out), *more])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    path = tmp_path_factory.mktemp("done") / "run.h5"
    run(path)
    return path


# -- modes -------------------------------------------------------------------------------------


def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    storage.commit(path, lambda file: file.write(b"new"))
    assert mode(path) == 0o640
    for wanted in (0o600, 0o664, 0o606):
        path.chmod(wanted)
        storage.commit(path, lambda file: file.write(b"newer"))
        assert mode(path) == wanted
        with storage.whole_file(path, overwrite=True) as target:
            assert mode(target) == wanted, "private from its first byte on"
            target.write_bytes(b"newest")
        assert mode(path) == wanted


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_owner_and_group_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.chown(path, 1234, 4321)
    storage.commit(path, lambda file: file.write(b"new"))
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_run_keeps_its_mode_at_every_step_of_its_life(tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    run(path)
    files = [path, tmp_path / "manifest.json", *checkpoint.paths(path)]
    assert {mode(file) for file in files} == {0o640}
    for file in files:
        file.chmod(0o660)
    invoke(["resume", str(path), "--time", "4", "--quiet"])
    assert [mode(file) for file in (*files[:2], *checkpoint.paths(path)[:1])] == [0o660] * 3
    path.chmod(0o604)
    run(path, "--overwrite")
    assert mode(path) == 0o604


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    real, link = tmp_path / "scratch" / "real.h5", tmp_path / "link.h5"
    link.symlink_to(real)  # nothing is there yet
    run(link)
    real.chmod(0o600)
    invoke(["resume", str(link), "--time", "3", "--quiet"])
    run(link, "--overwrite")
    assert link.is_symlink()
    assert mode(real) == 0o600
    text = tmp_path / "run.nc"
    text.symlink_to(tmp_path / "scratch" / "other.nc")
    invoke(["export", str(link), "--to", "netcdf", "--out", str(text)])
    invoke(["export", str(link), "--to", "netcdf", "--out", str(text), "--overwrite"])
    assert text.is_symlink()
    assert text.resolve().is_file()


@pytest.mark.parametrize("to", ["netcdf", "xdmf", "png"])
def test_what_is_made_from_a_run_keeps_its_mode(done: Path, to: str, tmp_path: Path) -> None:
    out = tmp_path / f"out.{to}"
    line = ["plot"] if to == "png" else ["export", "--to", to]
    invoke([*line, str(done), "--out", str(out)])
    assert mode(out) == 0o640
    out.chmod(0o646)
    invoke([*line, str(done), "--out", str(out), "--overwrite"])
    assert mode(out) == 0o646


def test_models_tables_and_parts_keep_their_modes(tmp_path: Path) -> None:
    from free_law import save_free_law

    folder = save_free_law(tmp_path / "model")
    report.Report(folder).write()
    kept = report.FinishedParts(folder, {})
    kept.put("part", value=1.0)
    files = [folder / name for name in ("model.safetensors", "model.json", "table.md", "part.npz")]
    assert {mode(file) for file in files} == {0o640}, "safetensors would make its own private"
    for file in files:
        file.chmod(0o664)
    save_free_law(folder)
    report.Report(folder).write()
    kept.put("part", value=2.0)
    assert {mode(file) for file in files} == {0o664}


# -- targets -----------------------------------------------------------------------------------


def targets(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    """Names that no file can have here, and what is said."""
    (tmp_path / "file").write_bytes(b"")
    bad = {
        "long": (tmp_path / ("n" * 300), "too long. Choose a shorter one"),
        "parent": (tmp_path / "none" / "x", "No such file or directory. Create .*none first"),
        "file": (tmp_path / "file" / "x", "Not a directory. A part of the path is a file"),
        "folder": (tmp_path, "not a regular file, but a directory"),
        "device": (Path("/dev/null"), "not a regular file"),
        "read-only": (Path("/proc/x"), "No such file|not permitted|denied|Read-only"),
    }
    (tmp_path / "loop").symlink_to("loop")
    return bad | {"loop": (tmp_path / "loop", "symbolic links. A part of the path")}


COMMANDS = {
    "simulate": RUN,
    "alloy": "simulate alloy --cells 4 --temperature 1000 --hops 9 --quiet",
    "kac": "simulate kac --size 16 --gamma 2 --temperature 1 --time 1 --quiet",
    "curie-weiss": "simulate curie-weiss --size 16 --temperature 1 --time 1 --quiet",
    "netcdf": "export DONE --to netcdf",
    "xdmf": "export DONE --to xdmf",
    "plot": "plot DONE",
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    "kind", ["long", "parent", "file", "folder", "device", "read-only", "loop"]
)
def test_targets_are_probed_before_the_work(
    name: str, kind: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work has begun")

    of_commands = ("export._xdmf", "netcdf._fill_file", "plot.series_of")
    for place in ("simulation.catalogue.build", *(f"commands.{name}" for name in of_commands)):
        monkeypatch.setattr(f"mpiflow.{place}", work)
    out, says = targets(tmp_path)[kind]
    line = [*COMMANDS[name].replace("DONE", str(done)).split(), "--out", str(out)]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as caught:
        invoke(line)
    assert caught.value.name == "out"
    assert str(out) in str(caught.value)
    assert re.search(says, str(caught.value))
    assert sorted(tmp_path.iterdir()) == before


def test_inputs_are_not_written_over(done: Path) -> None:
    for line in ("export --to netcdf", "export --to xdmf", "plot"):
        with pytest.raises(InputError, match="another file than the input"):
            invoke([*line.split(), str(done), "--out", str(done), "--overwrite"])


def test_a_run_has_room_for_its_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_bytes(b"a file")
    with pytest.raises(InputError, match="checkpoints.*A part of the path is a file"):
        run(tmp_path / "run.h5")
    name = "n" * 250  # of 255, and a checkpoint adds seven
    with pytest.raises(InputError, match="too long"):
        run(tmp_path / name)
    run(tmp_path / name[:240], "--no-checkpoints")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_places_without_permission(done: Path, tmp_path: Path) -> None:
    (tmp_path / "old.h5").write_bytes(b"protected")
    (tmp_path / "old.h5").chmod(0o444)
    with pytest.raises(InputError, match="denied"):
        run(tmp_path / "old.h5", "--overwrite")
    tmp_path.chmod(0o555)
    with pytest.raises(InputError, match="denied"):
        run(tmp_path / "run.h5")
    tmp_path.chmod(0o755)


def test_folders_are_probed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path, says in (
        (tmp_path / "file", "A part of the path is a file"),
        (tmp_path / "a" / ("n" * 300) / "b", "too long"),
        (Path("/proc/x/y"), "No such file|not permitted|denied|Read-only"),
    ):
        with pytest.raises(InputError, match=says):
            storage.probe_folder(path)
        with pytest.raises(InputError, match=says):
            invoke(["learn", "onsagerflow", "--runs", str(tmp_path), "--out", str(path)])
    storage.probe_folder(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
