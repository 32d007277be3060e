"""Verdicts about files, folders of runs and checkpoints."""

from __future__ import annotations

import json
import os
import re
import time as clock
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from mpiflow.commands.verify.alloy import AlloyValues, ImportedAlloyValues
from mpiflow.commands.verify.chains import ChainValues
from mpiflow.commands.verify.spins import (
    FieldValues,
    ImportedFieldValues,
    LineValues,
    SpinValues,
)
from mpiflow.commands.verify.structure import (
    Corrupt,
    check_attributes,
    check_entry,
    check_links,
    check_parts,
    check_structure,
)
from mpiflow.commands.verify.values import PIECE, MeanValues, Values
from mpiflow.core.errors import InputError
from mpiflow.files import footer, manifest
from mpiflow.files.runs import files_of
from mpiflow.files.schema import plain
from mpiflow.files.trajectory import CHANGED, Trajectory

#: What the values of a system obey; those of others are finite.
_KINDS: dict[str, type[Values]] = {
    **dict.fromkeys(("ising", "kac", "curie-weiss"), SpinValues),
    "onsagerflow": FieldValues,
    **dict.fromkeys(("linear-chain", "predator-prey"), LineValues),
    "alloy": AlloyValues,
    "spin-diffusion": ChainValues,
}
#: The same of files of other programs, by what they hold; states by their fractions alone.
_IMPORTED: dict[str, type[Values]] = {
    "spins": SpinValues,
    "field": ImportedFieldValues,
    "species": ImportedAlloyValues,
}

_UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
_CHECKPOINT = re.compile(r".+\.\d{6,}")


@dataclass(frozen=True)
class Finding:
    """What was found out about a file.

    ``str(finding)`` is the line that ``mpiflow verify`` prints.
    """

    path: Path
    good: bool
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def verify(paths: Sequence[str | os.PathLike[str]], quick: bool = False) -> Iterator[Finding]:
    """Check files, and the runs and checkpoints of folders; a finding for each file.

    Parameters
    ----------
    quick : only the manifest (with sha256) and the structure, no values
    """
    for path in map(Path, paths):
        if path.is_dir():
            yield from _folder(path, quick)
        elif not path.exists():
            yield Finding(path, False, "not found")
        elif path.parent.name == "checkpoints" and _CHECKPOINT.fullmatch(path.name):
            yield _checkpoint(path)
        else:
            entries, broken = _entries(path.parent)
            if broken is not None:
                yield broken
            yield verify_file(path, quick, entries.get(path.name))


def _entries(folder: Path) -> tuple[dict[str, manifest.Entry], Finding | None]:
    try:
        return manifest.read(folder), None
    except InputError as error:
        return {}, Finding(folder / manifest.NAME, False, f"corrupt: {error.remedy}")


def _folder(folder: Path, quick: bool) -> Iterator[Finding]:
    entries, broken = _entries(folder)
    if broken is not None:
        yield broken
    files = sorted({*_runs_of(folder), *(folder / name for name in entries)})
    points = sorted((folder / "checkpoints").glob("*"))
    points = [path for path in points if _CHECKPOINT.fullmatch(path.name)]
    if not files and not points and broken is None:
        yield Finding(folder, False, "not found: there are no runs in this folder")
    for path in files:
        if path.exists():
            finding = verify_file(path, quick, entries.get(path.name))
            extra = finding.good and entries and path.name not in entries
            note = f", not in {manifest.NAME}" if extra else ""
            yield Finding(path, finding.good, finding.text + note)
        else:
            yield Finding(path, False, f"not found, but {manifest.NAME} has an entry for it")
    for path in points:
        yield _checkpoint(path)


def _runs_of(folder: Path) -> list[Path]:
    try:
        return files_of(folder, strict=False)
    except InputError:  # the manifest: reported by itself
        return files_of(folder, listed=False, strict=False)


def _checkpoint(path: Path) -> Finding:
    from mpiflow.files import checkpoint

    try:
        about = checkpoint.verify(path)
        return Finding(path, True, f"good, {about.removeprefix(f'{path}: ')}")
    except InputError as error:
        return Finding(path, False, f"corrupt: {error.remedy}")


def verify_file(
    path: str | os.PathLike[str], quick: bool = False, entry: manifest.Entry | None = None
) -> Finding:
    """Check a Trajectory file, also against its entry in a manifest."""
    path = Path(path)
    if not path.exists():
        return Finding(path, False, "not found")
    for patience in (0.2, 0.5, 0.0):
        try:
            return Finding(path, True, _check(path, quick, entry))
        except Corrupt as error:
            finding = Finding(path, False, f"corrupt: {error}")
        except PermissionError as error:
            return Finding(path, False, f"cannot be read: {error.strerror}")
        except InputError as error:
            return Finding(path, False, error.remedy)
        except _UNREADABLE as error:
            finding = Finding(path, False, f"corrupt: {_one_line(error)}")
        # A reader that meets the middle of a writer's flush may see nonsense.
        if not path.with_name(f".{path.name}.lock").exists():
            break
        clock.sleep(patience)
    return finding


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _check(path: Path, quick: bool, entry: manifest.Entry | None) -> str:
    with open(path, "rb") as bits:
        if entry is None:
            return _check_content(path, quick, None)
        digest, size = manifest.fingerprint(bits)
    if (digest, size) == (entry.sha256, entry.bytes):
        return _check_content(path, quick, entry)
    if (state := _state(path)) == "running":
        raise InputError(
            "manifest",
            str(path),
            "no entry for a file that is not complete",
            f"stale entry in {manifest.NAME}: the file is not complete, a run started over it",
        )
    if state == "open":
        footer.check(path)
    if state in ("changed", "complete"):
        text = _check_content(path, quick, entry)
        raise InputError("file", str(path), "the file of the manifest", _changed(path, text))
    if size != entry.bytes:
        raise Corrupt(f"{size} bytes, but {entry.bytes} in {manifest.NAME}")
    raise Corrupt(f"sha256 is not that of {manifest.NAME}")


def _state(path: Path) -> str:
    """That of :func:`footer.examine`, or running, or complete for a live file that is."""
    try:
        if (state := footer.examine(path)) != "live":
            return state
        with h5py.File(path, "r", locking=False) as file:
            return "complete" if plain(file.attrs["complete"]) else "running"
    except _UNREADABLE:
        return "corrupt"


def _check_content(path: Path, quick: bool, entry: manifest.Entry | None) -> str:
    try:
        state = footer.examine(path)  # before HDF5, which damage can crash
    except InputError as error:
        raise Corrupt(error.remedy.removeprefix("It is corrupt: ")) from error
    footer.check(path)  # not open elsewhere
    with h5py.File(path, "r", locking=False) as file:
        check_links(file)
        about = check_attributes(file)
    try:
        with warnings.catch_warnings(action="ignore"), Trajectory(path) as run:
            frames, last, complete = len(run), run.time[-1:].tolist(), run.complete
            parts = run.segments
            check_parts(parts, run.time)
    except InputError as error:
        raise Corrupt(error.remedy) from error
    # Room for the chunks of a row of large fields.
    with h5py.File(path, "r", locking=False, rdcc_nbytes=2 * PIECE) as file:
        check_structure(file, frames, complete)
        if entry is not None:
            check_entry(about, file["time"][:frames], entry)
        remark = ""
        if not quick:
            values = _values_of(about)(file, about, frames, complete, parts)
            values.check()
            remark = values.remark
    text = f"good, {frames} frame{'s' * (frames != 1)}"
    text += f" to time {last[0]:g}" if last else ""
    text += "" if complete else ", NOT complete"
    if state == "changed" and entry is None:
        raise InputError("file", str(path), "a file as it was sealed", _changed(path, text))
    return text + ("" if state == "sealed" else ", without checksums") + remark


def _values_of(about: Mapping[str, Any]) -> type[Values]:
    """What the values of a file obey, by its attributes."""
    config, system = json.loads(about["config_json"]), about["system"]
    if system == "imported":
        return _IMPORTED.get(config.get("kind"), Values)
    kind = _KINDS.get(system, Values)
    if kind is SpinValues and "size" not in config:
        return MeanValues  # of another program: its sums are of nobody knows how many
    return kind


def _changed(path: Path, text: str) -> str:
    what = text.removeprefix("good, ").removesuffix(", without checksums")
    return f"changed: {CHANGED.format(path)}. All that can be checked is right: {what}"
