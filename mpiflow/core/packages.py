"""What is said where a package that a command needs is missing, or does not load."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from mpiflow.core.errors import InputError

#: Packages that not everybody installs, what needs them, and what to install for them.
_NEEDED = {
    "torch": ("learning and learned models", "mpiflow[learn]"),
    "matplotlib": ("pictures", "mpiflow[plot]"),
    "xarray": ("data sets of xarray", "mpiflow[plot]"),
    "netCDF4": ("netCDF files", "mpiflow[plot]"),
    "h5netcdf": ("data sets of xarray", "mpiflow[plot]"),
    "ase": ("files of structures", "mpiflow[structures]"),
    # Of every whole installation; those that only read may have left them out.
    "numba": ("verify and simulations", "numba"),
    "scipy": ("verify and simulations", "scipy"),
    "safetensors": ("barrier models and learned models", "safetensors"),
}


class MissingPackage(InputError, ImportError):  # type: ignore[misc]
    """An :class:`InputError` about this machine: a package that is not here, or does not load."""


def missing(error: BaseException) -> MissingPackage | None:
    """What to say of an import that failed; None of any other error, and of packages unknown."""
    if isinstance(error, InputError):
        return None
    said = " ".join(str(error).split())[:200]
    if isinstance(error, ImportError):
        name = (error.name or "").partition(".")[0]
    elif isinstance(error, OSError) and _torch_did_not_load(error):
        name = "torch"
    else:
        return None
    if _came_through(error.__traceback__, "h5py"):
        return MissingPackage(
            "h5py",
            said,
            "an h5py that loads; one built with MPI needs that MPI",
            "To read files without, take the wheel: pip install --force-reinstall --no-deps "
            "--only-binary h5py h5py (docs/install.md).",
        )
    if name not in _NEEDED:
        return None
    needs, package = _NEEDED[name]
    return MissingPackage(
        name, said, f"an installed {name}: {needs} need it", f"Install {package}."
    )


def _torch_did_not_load(error: OSError) -> bool:
    """Whether PyTorch, which loads its libraries itself, failed at that.

    A module whose import failed is not kept: nothing that PyTorch does later is taken for its
    import.
    """
    return "torch" not in sys.modules and _came_through(error.__traceback__, "torch")


def _came_through(trace: TracebackType | None, package: str) -> bool:
    """Whether an error was raised below a module of a package."""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == package:
            return True
        trace = trace.tb_next
    return False


@contextmanager
def explained() -> Iterator[None]:
    """An import inside that fails for want of a package says in one line what to install."""
    try:
        yield
    except (ImportError, OSError) as error:
        if made := missing(error):
            raise made from error
        raise
