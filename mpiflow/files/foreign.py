"""What a file is that is no Trajectory, in words for people."""

from __future__ import annotations

import os

import h5py

from mpiflow.files import footer

#: First bytes of files that people take for runs, and what they are. Not of HDF5.
_KINDS = {
    b"CDF\x01": "a netCDF classic file",
    b"CDF\x02": "a netCDF classic file",
    b"CDF\x05": "a netCDF classic file",
    b"\x93NUMPY": "a NumPy array",
    b"PK\x03\x04": "a zip archive, as .npz files are",
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"\xfd7zXZ": "compressed with xz",
    b"<?xml": "an XML file, as .xdmf files are",
    b"ITEM:": "a LAMMPS dump",
    b"\x89PNG": "a picture",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"


def of_run(path: str | os.PathLike[str]) -> str | None:
    """Empty for the file of a run; else a sentence about it, or None where it may be damaged."""
    try:
        if what := kind(path):
            return what
        footer.examine(path)  # before HDF5 sees a damaged file
        with h5py.File(path, "r", locking=False) as file:
            return "" if "schema_version" in file.attrs else described(file)
    except (OSError, LookupError, RuntimeError, ValueError):
        return None


def kind(path: str | os.PathLike[str]) -> str:
    """A sentence about a file that is no HDF5; empty for one that is, or that may be damaged."""
    with open(path, "rb") as file:
        head = file.read(512)
        file.seek(max(0, file.seek(0, os.SEEK_END) - 128))
        if file.read().startswith(b"mpiflow checkpoint "):
            return "It is a checkpoint: mpiflow verify says what it holds."
    if not head:
        return "It is empty, so corrupt."
    if head[:8] == _HDF5 or h5py.is_hdf5(os.fspath(path)):
        return ""
    for start, what in _KINDS.items():
        if head.startswith(start):
            return f"It is {what}."
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        return f"It is text, and begins with {head.decode().split(chr(10))[0].strip()[:40]!r}."
    return ""


def described(file: h5py.File) -> str:
    """A sentence about an HDF5 file that has no schema_version."""
    names = list(file)
    history = file.attrs.get("history", b"")
    history = history.decode(errors="replace") if isinstance(history, bytes) else str(history)
    if "mpiflow export" in history:
        return "It is a netCDF file that mpiflow export wrote: open it with xarray, or use the run."
    netcdf = any("_Netcdf4Dimid" in file[name].attrs for name in names if name in file)
    what = "a netCDF-4" if netcdf or "_NCProperties" in file.attrs else "an HDF5"
    holds = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"It is {what} file of another program; it holds {holds or 'nothing'}."
