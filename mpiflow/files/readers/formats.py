"""The one table of formats: how a file is known, and who reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import h5py

from mpiflow._version import __version__
from mpiflow.core import inputs
from mpiflow.files import foreign
from mpiflow.files.readers import arrays, atoms, gridded, ovf
from mpiflow.files.readers.frames import Frame, Wanted
from mpiflow.files.structure_files import Unfit, kind_of, opened

Read = Callable[[Path, Wanted], Iterator[Frame]]
#: Files in the folder of a zarr store.
_ZARR = (".zgroup", ".zarray", ".zmetadata", "zarr.json")
_KNOWN = (
    "a file of NumPy (.npy, .npz), OVF, a LAMMPS or SPPARKS dump, LAMMPS data, extended XYZ, "
    "POSCAR, CIF, netCDF or zarr"
)
_TITLES = {
    "dump": "LAMMPS dump",
    "xyz": "extended XYZ",
    "lammps-data": "LAMMPS data",
    "vasp": "POSCAR",
    "cif": "CIF",
}


@dataclass(frozen=True)
class Format:
    """A format, who reads it, and the programs that do, with their versions."""

    name: str
    read: Read
    reader: str


def format_of(path: Path) -> Format:
    """The format of a file or folder, by its first bytes, or Unfit."""
    own = f"mpiflow {__version__}"
    if path.is_dir():
        if not any((path / name).exists() for name in _ZARR):
            raise Unfit(_KNOWN, "It is a folder, and no zarr store: name the files in it.")
        return Format("zarr", gridded.read_zarr, _version(gridded.library, "zarr"))
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"\x93NUMPY"):
        return Format("npy", arrays.read_npy, own)
    if head.startswith(b"PK"):
        return Format("npz", arrays.read_npz, own)
    if head.startswith(ovf.MAGIC):
        return Format("OVF", ovf.read_ovf, own)
    if head.startswith(b"CDF") or h5py.is_hdf5(path):
        if foreign.of_run(path) == "":
            raise Unfit("a file of another program", "It is the file of a run already: use it.")
        return Format("netCDF", gridded.read_netcdf, _version(gridded.library, "netCDF"))
    if not head:
        raise Unfit(_KNOWN, "It is empty.")
    try:
        with opened(path) as (text, _):
            kind = kind_of(text)
    except UnicodeDecodeError:
        raise Unfit(_KNOWN, f"It begins with the bytes {head[:8].hex(' ')}.") from None
    except Unfit as error:
        raise Unfit(_KNOWN, error.remedy) from None
    reader = own if kind in ("dump", "xyz") else f"{own} {_version(_ase, 'ase')}"
    return Format(_TITLES[kind], atoms.read_atoms_of, reader)


def _ase(name: str) -> str:
    return f"{name} {version(name)}"


def _version(library: Callable[[str], str], name: str) -> str:
    try:
        return library(name)
    except PackageNotFoundError:  # the reader says so
        return ""


def digest(path: Path) -> str:
    """SHA-256 of a file; of a folder that of the names and digests of all files in it."""
    if not path.is_dir():
        return inputs.sha256(path)
    lines = (
        f"{inputs.sha256(file)}  {file.relative_to(path)}\n"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    )
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def digest_of(digests: Sequence[str]) -> str:
    """One for all: that of a file, or of the digests of several."""
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
