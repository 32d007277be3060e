"""mpiflow verify: good files pass, and every kind of wrong one is found and called by its name."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from free_law import save_free_law

from mpiflow import cli
from mpiflow.commands import verify
from mpiflow.commands.verify import values
from mpiflow.core.errors import InputError
from mpiflow.files import checkpoint, footer, manifest, possible
from mpiflow.files.trajectory import Trajectory
from mpiflow.run.simulate import simulate
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.kac.options import KacConfig

#: Damages of the test below, a seventh of them zeroed pages and a seventh truncations. All of
#: them: 1400.
DAMAGES = int(os.environ.get("MPIFLOW_DAMAGES", "140"))

RUNS = ("ising", "ensemble", "kac", "alloy", "alloys", "cosh", "langevin")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of finished runs of every kind."""
    folder = tmp_path_factory.mktemp("runs")
    spins: dict[str, Any] = {"quiet": True, "temperature": 2.5, "coarse": 8}
    simulate(IsingConfig(
        **spins, size=(128, 96), field=0.1, time=3.0, spins=True, save_every=0.5,
        out=folder / "ising.h5",
    ))  # fmt: skip
    simulate(IsingConfig(
        **spins, size=16, members=3, coupling=-1.0, time=2.0, spins=True, out=folder / "ensemble.h5"
    ))  # fmt: skip
    simulate(KacConfig(**spins, size=32, gamma=2.0, time=2.0, out=folder / "kac.h5"))
    field: dict[str, Any] = {"quiet": True, "size": 32, "time": 2.0, "initial_magnetization": 0.3}
    field["model"] = save_free_law(tmp_path_factory.mktemp("model"))
    simulate(FieldConfig(**field, members=2, out=folder / "cosh.h5"))
    simulate(FieldConfig(**field, structure="langevin", out=folder / "langevin.h5"))
    alloy: dict[str, Any] = {"quiet": True, "cells": 4, "temperature": 2000.0, "species": True}
    simulate(AlloyConfig(**alloy, hops=50, vacancies=2, out=folder / "alloy.h5"))
    simulate(AlloyConfig(**alloy, time=1e-7, members=2, out=folder / "alloys.h5"))
    return folder


def texts(*paths: Path, quick: bool = False) -> dict[str, str]:
    return {f.path.name: f.text for f in verify.verify(paths, quick)}


@pytest.mark.parametrize("quick", [False, True])
def test_finished_runs_are_good(runs: Path, quick: bool) -> None:
    found = list(verify.verify([runs], quick))
    names = [f.path.name for f in found if f.path.parent == runs]
    assert names == sorted(f"{name}.h5" for name in RUNS)
    assert all(f.good for f in found), found
    assert not any("without checksums" in f.text or "NOT complete" in f.text for f in found)
    assert texts(runs / "ising.h5") == {"ising.h5": "good, 7 frames to time 3"}


def test_large_fields_are_read_in_bands(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(values, "PIECE", 100)
    assert all(f.good for f in verify.verify([runs]))


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((7, 5, 40), (1, 2, 16)),
        ((100,), (8,)),
        ((3, 2, 2), (3, 2, 2)),
        ((0, 4), (1, 4)),
        ((9, 3), None),
    ],
)
def test_pieces_cover_a_dataset_once(
    shape: tuple[int, ...], chunks: tuple[int, ...] | None
) -> None:
    with h5py.File("memory", "w", driver="core", backing_store=False) as file:
        limits = {} if chunks is None else {"maxshape": (None, *shape[1:])}
        dataset = file.create_dataset("x", shape, "i4", chunks=chunks, **limits)
        for limit in (1, 64, 300, 2**20):
            count = np.zeros(shape, int)
            for box in values.pieces(dataset, limit):
                count[box] += 1
                least = shape[-1] * int(np.prod((chunks or (1,) * len(shape))[:-1]))
                assert count[box].size * 4 <= max(limit, 4 * least)
            assert (count == 1).all()


# -- what is wrong -------------------------------------------------------------------------


def altered(source: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> str:
    """What is found in a file with other values: neither checksums nor sha256 are in the way."""
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        data = {name: dataset[()] for name, dataset in old.items()}
        data["attributes"] = {**old.attrs}
        change(data)
        new.attrs.update(data["attributes"])
        for name, dataset in old.items():
            if name in data:
                new.create_dataset(name, data=data[name], dtype=dataset.dtype)
                new[name].attrs["long_name"] = "some"
        for name in data:
            if name in old and old[name].is_scale:
                new[name].make_scale(name)
        for name in data:
            if name in old and not old[name].is_scale:
                for axis, scales in enumerate(old[name].dims):
                    if axis < new[name].ndim:
                        new[name].dims[axis].attach_scale(new[scales[0].name])
    finding = verify.verify_file(target)
    assert finding.good == finding.text.startswith("good")
    return finding.text


def setting(name: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[name][index] = value

    return change


def adding(name: str, index: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[name][index] += value

    return change


def swapped(name: str, one: Any, other: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        values = data[name]
        values[one], values[other] = values[other].copy(), values[one].copy()

    return change


def move_vacancy(data: dict[str, Any]) -> None:
    """Swap a vacancy and an atom that are not neighbours, or are: bonds must say so."""
    species = data["species"][3]
    vacancy, atom = np.flatnonzero(species == 0)[0], np.flatnonzero(species == 2)[0]
    species[vacancy], species[atom] = 2, 0


def lose_atom(data: dict[str, Any]) -> None:
    bonds = data["bonds"][3]
    bonds[1, :], bonds[2, :] = bonds[1] + bonds[2], 0


def attribute(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        if value is None:
            del data["attributes"][name]
        else:
            data["attributes"][name] = value

    return change


def shorter(name: str) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        data[name] = data[name][:-1]

    return change


def spins_of_zero(data: dict[str, Any]) -> None:
    """What a simulation without an initial state wrote once."""
    for name, value in (("magnetization", 0), ("domain_wall_density", 0.5), ("energy", 0),
                        ("coarse_magnetization", 0), ("flips", 0)):  # fmt: skip
        data[name][...] = value
    del data["spin"]


def without_size(data: dict[str, Any]) -> None:
    data["attributes"]["config_json"] = "{}"
    data["magnetization"][2] = 1.5


SITES = 128 * 96


def another_mean(data: dict[str, Any]) -> None:
    """That of one spin more that is up, to the last bit."""
    data["magnetization"][2] = (round(data["magnetization"][2] * SITES) + 2) / SITES


WRONG: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "flipped spin": ("ising", lambda d: d["spin"].__setitem__((2, 3, 4), -d["spin"][2, 3, 4]),
                     "frame 2: spins do not give magnetization"),
    "moved spins": ("ising", lambda d: d["spin"][2].sort(axis=0),
                    "frame 2: spins do not give domain_wall_density"),
    "no spin": ("ising", setting("spin", (1, 0, 0), 0), "spin is not 1 or -1 at frame 1"),
    "large spin": ("ising", setting("spin", (1, 0, 0), 3), "spin is out of range at frame 1"),
    "member's spin": ("ensemble", lambda d: d["spin"][2, 1].sort(axis=0), "spins do not give"),
    "magnetization": ("ising", another_mean, "frame 2: energy does not"),
    "odd magnetization": ("ising", adding("magnetization", 2, 1 / SITES), "no mean of"),
    "last bit": ("ising", lambda d: d["magnetization"].__setitem__(
        2, np.nextafter(d["magnetization"][2], 2)), "no mean of spins"),
    "magnetization of kac": ("kac", adding("magnetization", 2, 2 / 1024), "block sums"),
    "magnetization NaN": ("kac", setting("magnetization", 2, np.nan), "not finite at frame 2"),
    "block": ("kac", adding("coarse_magnetization", (3, 1, 1), 2 / 64), "frame 3: block sums"),
    "blocks": ("kac", swapped("coarse_magnetization", 3, 4), "frame 3: block sums"),
    "odd block": ("kac", adding("coarse_magnetization", (3, 1, 1), 1 / 64), "no mean of spins"),
    "walls": ("kac", setting("domain_wall_density", 1, 0.3), "no fraction of the bonds"),
    "large walls": ("kac", setting("domain_wall_density", 1, 1.5), "out of range at frame 1"),
    "energy": ("ising", adding("energy", 4, 1e-6), "frame 4: energy does not follow"),
    "energy of a member": ("ensemble", adding("energy", (4, 2), 1e-6), "frame 4: energy does not"),
    "infinite energy": ("kac", setting("energy", 4, np.inf), "energy is not finite at frame 4"),
    "spins of zero": ("ising", spins_of_zero, "nothing flips, where 1"),
    "no size": ("kac", without_size, "magnetization is out of range at frame 2"),
    "odd walls": ("kac", adding("domain_wall_density", 2, 1 / 2048), "of no periodic lattice"),
    "no walls": ("kac", setting("domain_wall_density", 2, 0.0), "frame 2: no spins have"),
    "energy of kac": ("kac", setting("energy", 4, -0.6), "frame 4: energy is out of range"),
    "large block": ("kac", setting("coarse_magnetization", (3, 1, 1), -1.5), "out of range"),
    "time back": ("kac", swapped("time", 3, 4), "times are not finite and increasing"),
    "time twice": ("kac", lambda d: d["time"].__setitem__(3, d["time"][2]), "times are not"),
    "flips back": ("ising", setting("flips", 5, 0), "flips go back"),
    "flips below 0": ("ising", setting("flips", 0, -1), "flips go back"),
    "predicted block": ("cosh", adding("coarse_magnetization", (3, 1, 1, 1), 1 / 8),
                        "frame 3: means of blocks do not give magnetization"),
    "no mean of spins": ("cosh", adding("coarse_magnetization", (3, 1, 1, 1), 1e-6),
                         "no mean of spins at frame 3"),
    "predicted magnetization": ("langevin", adding("magnetization", 3, -1e-7), "frame 3: means"),
    "large predicted block": ("langevin", setting("coarse_magnetization", (3, 1, 1), 1.01),
                              "coarse_magnetization is out of range at frame 3"),
    "free energy NaN": ("langevin", setting("free_energy", 3, np.nan), "not finite at frame 3"),
    "predicted fields": ("langevin", swapped("coarse_magnetization", 3, 4), "frame 3: means"),
    "hops back": ("alloy", swapped("hops", 3, 4), "hops go back"),
    "two vacancies": ("alloy", move_vacancy, "frame 3: species do not give bonds"),
    "unknown species": ("alloys", setting("species", (3, 1, 5), 4), "species is not a known one"),
    "species below 0": ("alloy", setting("species", (3, 5), -1), "species is not a known one"),
    "bond": ("alloy", adding("bonds", (3, 1, 2), 1), "do not add up to eight"),
    "negative bond": ("alloy", setting("bonds", (3, 0, 0), -8), "bonds are negative"),
    "lost atoms": ("alloy", lose_atom, "frame 3: atoms are not conserved"),
    "order": ("alloys", adding("sro", (3, 1, 0), 1e-12), "sro is not what bonds give at frame 3"),
    "order NaN": ("alloy", setting("warren_cowley", (3, 0), np.nan), "not what bonds give"),
    "cells": ("alloy", lambda d: d["attributes"].__setitem__(
        "config_json", d["attributes"]["config_json"].replace(b"[4,4,4]", b"[4,4,5]")
        if isinstance(d["attributes"]["config_json"], bytes)
        else d["attributes"]["config_json"].replace("[4,4,4]", "[4,4,5]")), "two"),
    "a variable too short": ("kac", shorter("energy"), "21 times, but 20 frames"),
    "time too short": ("kac", shorter("time"), "values along time, not 20"),
    "no seed": ("kac", attribute("seed", None), "attributes seed are missing"),
    "seed of text": ("kac", attribute("seed", "7"), "attribute seed is"),
    "complete 3": ("kac", attribute("complete", np.int8(3)), "attribute complete is 3"),
    "config no JSON": ("kac", attribute("config_json", "{"), "JSONDecodeError"),
    "config a list": ("kac", attribute("config_json", "[]"), "config_json is no object"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_values_are_corrupt(kind: str, runs: Path, tmp_path: Path) -> None:
    name, change, message = WRONG[kind]
    text = altered(runs / f"{name}.h5", tmp_path / "wrong.h5", change)
    assert text.startswith("corrupt: ")
    assert message in text


def test_each_part_of_a_run_has_its_law(runs: Path, tmp_path: Path) -> None:
    """Of the second one, in a field of 1, energies are good that those of the first are not."""

    def parted(data: dict[str, Any]) -> None:
        config = json.loads(data["attributes"]["config_json"])
        times, every = data["time"], config["save_every"]
        parts = [
            {"frame": n, "time": float(times[max(0, n - 1)]), "save_every": every, "unit": "time",
             "config": config | {"field": field}}
            for n, field in ((0, 0.0), (10, 1.0))
        ]  # fmt: skip
        data["attributes"]["segments_json"] = json.dumps(parts)
        data["magnetization"][10:], data["domain_wall_density"][10:] = 1.0, 0.0
        data["coarse_magnetization"][10:], data["energy"][10:] = 1.0, -1.5

    def wrong(data: dict[str, Any]) -> None:
        parted(data)
        data["energy"][14] = -1.6

    good = altered(runs / "kac.h5", tmp_path / "good.h5", parted)
    assert good == "good, 21 frames to time 2, without checksums"
    text = altered(runs / "kac.h5", tmp_path / "wrong.h5", wrong)
    assert text == "corrupt: frame 14: energy is out of range"


def test_possible_values() -> None:
    """Bounds are met by spins at them, and by random ones; the energy of gamma = 0 follows."""
    up = np.ones((6, 8), int)
    one, board, stripe = up.copy(), up.copy(), up.copy()
    one[2, 3] = -1
    board[np.add.outer(np.arange(6), np.arange(8)) % 2 == 0] = -1
    stripe[:, :3] = -1
    noise = np.random.default_rng(1).choice([-1, 1], (50, 6, 8))
    for s in (up, -up, one, board, stripe, *noise):
        bonds = (s * np.roll(s, 1, 0) + s * np.roll(s, 1, 1)).sum()
        spins = np.array([float(s.sum())])
        assert all(good.all() for good, _ in possible.of_spins(spins, np.array([1.0 * bonds]), 48))
        about, energy = {"field": 0.3, "gamma": 0}, np.array([-bonds / 192 - 0.3 * s.mean()])
        for shift in (0.0, 1e-3):
            laws = possible.of_kac(energy + shift, spins / 48, np.array([bonds]), about, 48)
            assert [bool(good.all()) for good, _ in laws][1] == (shift == 0)
    (found,) = possible.of_lines(np.array([[0.1, -0.1], [-0.1, 0.2]]))
    assert found[0].tolist() == [[True, False], [True, True]]
    times, none = np.array([0.0, 1.0]), np.zeros((2, 1), int)
    assert not list(possible.of_flips(none, times, "ising", {"temperature": 0.1, "field": 0}, 48))


@pytest.mark.parametrize("name", RUNS)
def test_the_same_values_are_good(name: str, runs: Path, tmp_path: Path) -> None:
    text = altered(runs / f"{name}.h5", tmp_path / "same.h5", lambda data: None)
    assert text.startswith("good")
    assert text.endswith(", without checksums")


def test_other_systems_obey_no_laws_of_spins(runs: Path, tmp_path: Path) -> None:
    def learned(data: dict[str, Any]) -> None:
        data["attributes"]["system"] = "macroscopic ising"
        data["magnetization"][3] = 1.01

    assert altered(runs / "ising.h5", tmp_path / "learned.h5", learned).startswith("good")


def test_nothing_leads_out_of_a_file(runs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(3)
    path = tmp_path / "hostile.h5"
    for make in (
        lambda file: file.__setitem__("extra", h5py.ExternalLink(str(secret), "/x")),
        lambda file: file.__setitem__("extra", h5py.SoftLink("/time")),
        lambda file: file.create_dataset("extra", (3,), "i8", external=[(str(secret), 0, 24)]),
        lambda file: file.create_group("extra"),
    ):
        altered(runs / "kac.h5", path, lambda data: None)
        with h5py.File(path, "r+") as file:
            make(file)
        finding = verify.verify_file(path)
        assert not finding.good
        assert "extra" in finding.text


def test_a_running_file_is_good_as_far_as_it_is(runs: Path, tmp_path: Path) -> None:
    def running(data: dict[str, Any]) -> None:
        data["attributes"]["complete"] = np.int8(0)
        for name in ("energy", "flips", "time"):  # died inside a flush
            data[name] = data[name][:-2]

    text = altered(runs / "kac.h5", tmp_path / "run.h5", running)
    assert text == "good, 19 frames to time 1.8, NOT complete, without checksums"


def test_what_is_not_a_run(tmp_path: Path, runs: Path) -> None:
    missing, empty, text, other = (
        tmp_path / f"{n}.h5" for n in ("missing", "empty", "text", "other")
    )
    empty.touch()
    text.write_text("hello " * 1000)
    with h5py.File(other, "w") as file:
        file["x"] = np.arange(3)
    found = texts(missing, empty, text, other)
    assert found["missing.h5"] == "not found"
    assert found["empty.h5"].startswith("corrupt")
    assert found["text.h5"].startswith("corrupt")
    assert found["other.h5"] == "no trajectory of mpiflow"
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "no runs" in texts(bare)["bare"]


# -- manifests, checkpoints, the command ---------------------------------------------------


@pytest.fixture
def folder(runs: Path, tmp_path: Path) -> Path:
    """A folder with a manifest and two runs, to be spoiled."""
    for name in ("ising.h5", "kac.h5"):
        shutil.copy(runs / name, tmp_path / name)
        manifest.enter(tmp_path / name)
    assert all(f.good for f in verify.verify([tmp_path]))
    return tmp_path


def test_a_flipped_bit_anywhere_contradicts_the_manifest(folder: Path) -> None:
    path = folder / "kac.h5"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for where in (folder, path):
        assert texts(where, quick=True)["kac.h5"] == "corrupt: sha256 is not that of manifest.json"
    path.write_bytes(data + b"x")
    assert "bytes, but" in texts(path)["kac.h5"]


def test_missing_and_extra_files(folder: Path) -> None:
    (folder / "kac.h5").rename(folder / "renamed.h5")
    (folder / ".hidden.h5").touch()
    (folder / "notes.txt").touch()
    found = texts(folder)
    assert found == {
        "ising.h5": "good, 7 frames to time 3",
        "kac.h5": "not found, but manifest.json has an entry for it",
        "renamed.h5": "good, 21 frames to time 2, not in manifest.json",
    }


def test_a_stale_entry_of_a_run_that_started_again(folder: Path) -> None:
    def running(data: dict[str, Any]) -> None:
        data["attributes"]["complete"] = np.int8(0)

    altered(folder / "ising.h5", folder / "kac.h5", running)
    assert texts(folder)["kac.h5"].startswith("stale entry in manifest.json")


def test_an_entry_that_lies(folder: Path) -> None:
    path = folder / manifest.NAME
    document = json.loads(path.read_text())
    document["runs"]["kac.h5"]["frames"] = 20
    path.write_text(json.dumps(document))
    assert texts(folder)["kac.h5"] == "corrupt: frames is 21, but 20 in manifest.json"


def test_a_broken_manifest_is_one_of_the_findings(folder: Path) -> None:
    (folder / manifest.NAME).write_text("{")
    found = texts(folder)
    assert found["manifest.json"].startswith("corrupt")
    assert found["kac.h5"].startswith("good")
    assert texts(folder / "kac.h5")["kac.h5"].startswith("good")


def test_checkpoints_of_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = folder / "checkpoints"
    points.mkdir()
    (points / "kac.h5.000012").write_bytes(b"nothing")
    (points / ".kac.h5.000013.new").write_bytes(b"nothing")
    found = texts(folder)
    assert found["kac.h5.000012"].startswith("corrupt")
    assert len(found) == 3
    monkeypatch.setattr(checkpoint, "verify", lambda path: f"step 5 of {Path(path).name}")
    assert texts(points / "kac.h5.000012") == {"kac.h5.000012": "good, step 5 of kac.h5.000012"}


def test_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.invoke(["verify", str(folder)])
    good = capsys.readouterr().out.splitlines()
    assert good[0] == f"{folder / 'ising.h5'}: good, 7 frames to time 3"
    with pytest.raises(SystemExit) as error:
        cli.invoke(["verify", "--quick", str(folder / "kac.h5"), str(folder / "none.h5")])
    assert error.value.code == 1
    assert capsys.readouterr().out.splitlines()[1] == f"{folder / 'none.h5'}: not found"
    with pytest.raises(InputError):  # exit code 2
        cli.invoke(["verify"])


# -- damage --------------------------------------------------------------------------------


def content(path: Path) -> dict[str, Any]:
    """All that a reader can get from a file."""
    with Trajectory(path) as run:
        values = {name: run[name] for name in (*run.variables, *run.sizes)}
        return {
            "about": repr((run.attributes, run.variables, run.sizes, run.complete)),
            **{name: (v.dtype.str, v.shape, v.tobytes()) for name, v in values.items()},
        }


def damages(data: bytes, number: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(f"{len(data)} {number}")  # noqa: S311 - not a secret
    for i in range(number):
        at = rng.randrange(len(data))
        if i % 7 == 0:
            page = at // 4096 * 4096
            end = min(page + 4096, len(data))
            yield f"page at {page}", data[:page] + bytes(end - page) + data[end:]
        elif i % 7 == 1:
            yield f"cut at {at}", data[:at]
        else:
            bit = rng.randrange(8)
            spoiled = bytearray(data)
            spoiled[at] ^= 1 << bit
            yield f"bit {bit} of byte {at}", bytes(spoiled)


def outcome(path: Path, read: Callable[[Path], object], wanted: object) -> str:
    try:
        return "same" if read(path) == wanted else "SILENTLY WRONG"
    except InputError as error:
        return "refused" if "corrupt" in str(error) else f"UNCLEAR {error}"


def verified(path: Path) -> str:
    finding = verify.verify_file(path)
    if not finding.good:
        raise InputError("file", str(path), "a good file", finding.text)
    return "good"


def spoil(source: Path, place: Path, number: int) -> None:
    """Damage a copy again and again, and print what readers made of it; run in a process."""
    data, wanted = source.read_bytes(), content(source)
    for what, spoiled in damages(data, number):
        if spoiled == data:
            continue  # a page of zeros
        place.write_bytes(spoiled)
        print(f"{what}:", end=" ", flush=True)  # remains if the process crashes
        read, judged = outcome(place, content, wanted), outcome(place, verified, "good")
        # If all that can be read is the same, verify may say so, too.
        fine = read in ("same", "refused") and judged in ("refused", read)
        print("fine" if fine else f"Trajectory: {read}; verify: {judged}", read, flush=True)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["ising", "alloy"])
def test_no_damage_to_a_sealed_file_goes_unseen(name: str, runs: Path, tmp_path: Path) -> None:
    assert footer.check(runs / f"{name}.h5")
    number = DAMAGES // 2
    done = subprocess.run(
        [sys.executable, __file__, runs / f"{name}.h5", tmp_path / "run.h5", str(number)],
        capture_output=True, text=True, check=False, timeout=1100,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"crashed at {lines[-1:]}\n{done.stderr[-2000:]}"
    assert [line for line in lines if ": fine " not in line] == []
    kinds = Counter((line.split()[0], line.split()[-1]) for line in lines)
    print(f"damages to {name}.h5 of {(runs / f'{name}.h5').stat().st_size} bytes: {dict(kinds)}")
    assert len(lines) > 0.9 * number
    assert sum(n for (_, read), n in kinds.items() if read == "refused") > 0.9 * len(lines)


if __name__ == "__main__":
    spoil(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
