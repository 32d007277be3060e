"""What a Trajectory file holds: its variables, dimensions and attributes.

The schema is written in one place, so that both writers of
:mod:`mpiflow.files.writer` make the same file. docs/file-format.md describes it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiflow._version import COMMIT, __version__
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Shape

SCHEMA_VERSION = 1

_REQUIRED = ("system", "config_json", "seed", "rng", "decomposition_invariant")
# Smaller frames go unfiltered, many to a chunk; larger ones are compressed, one to a chunk.
_FIELD_BYTES = 4096
_CHUNK_BYTES = 2**20
# Twice as fast as the default level 4, for a tenth to a third more bytes.
_GZIP_LEVEL = 1


@dataclass(frozen=True)
class Variable:
    """A variable of the file.

    Parameters
    ----------
    dims : names of the dimensions, without the leading ``time`` of per-frame variables
    dtype : NumPy name
    units : as UDUNITS writes them, "1" if dimensionless
    per_frame : whether there is one value (or field) for every frame
    attributes : more CF attributes, ``cell_methods`` for example
    """

    name: str
    dims: tuple[str, ...] = ()
    dtype: str = "float64"
    units: str = "1"
    long_name: str = ""
    per_frame: bool = True
    attributes: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def of(self, dtype: str, long_name: str) -> Variable:
        """The same quantity as numbers of another kind."""
        return replace(self, dtype=dtype, long_name=long_name)

    def over(self, *dims: str) -> Variable:
        """The same quantity over other dimensions, ``over("member")`` for an ensemble."""
        return replace(self, dims=dims)


_MEAN = {"cell_methods": "time: point area: mean"}
_POINT = {"cell_methods": "time: point"}

TIME = Variable("time", long_name="time in attempts per spin", attributes={"axis": "T"})
#: Of systems whose equations have a unit of time of their own.
CLOCK = replace(TIME, long_name="time")

# Coarse fields are float32: a block sum over fewer than 2^24 sites (blocks up to 4095 sites
# a side) comes back exactly as rint(mean * sites), and files and training data are half as
# large. Whole-lattice means are float64, exact in this sense for every lattice we can hold.
STANDARD: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable("magnetization", long_name="magnetization per site", attributes=_MEAN),
        Variable("energy", long_name="energy per site in units of J", attributes=_MEAN),
        Variable("free_energy", long_name="free energy per spin, s(0) = 0", attributes=_MEAN),
        Variable("domain_wall_density", long_name="fraction of broken bonds", attributes=_MEAN),
        Variable("flips", (), "int64", long_name="spin flips since time 0"),
        Variable(
            "coarse_magnetization",
            ("y", "x"),
            "float32",
            long_name="mean spin of a block of sites",
            attributes={"cell_methods": "time: point y: mean x: mean"},
        ),
        Variable("spin", ("y", "x"), "int8", long_name="spin, -1 or 1", attributes=_POINT),
        Variable(
            "coarse_fraction",
            ("state", "y", "x"),
            "float32",
            long_name="fraction of the sites of a block in each state",
            attributes={"cell_methods": "time: point y: mean x: mean"},
        ),
        Variable("site_state", ("y", "x"), "int8", long_name="state of a site", attributes=_POINT),
        Variable(
            "spin_bits",
            ("y", "x_byte"),
            "uint8",
            long_name="spins of 8 sites along x, the first in the highest bit; 1 is up",
            attributes=_POINT,
        ),
        Variable(
            "copy_temperature",
            ("member",),
            long_name="temperature k_B T of a copy in units of J",
            attributes=_POINT,
        ),
        Variable(
            "replica",
            ("member",),
            "int64",
            long_name="which of the initial states a copy has by exchanges",
            attributes=_POINT,
        ),
        Variable(
            "exchanges",
            ("member",),
            "int64",
            long_name="accepted exchanges so far with the next copy",
            attributes={"cell_methods": "time: sum"},
        ),
        Variable(
            "initial_magnetization",
            ("member",),
            long_name="magnetization per site that the member was started from",
            per_frame=False,
        ),
        Variable(
            "sro",
            ("pair",),
            long_name="neighbours of the second kind around an atom of the first, beyond 8 / S",
            attributes=_POINT
            | {
                "comment": "delta_ij = N_ij / n_i - 8 / S. With equal numbers of atoms of all S "
                "elements: 0 in a random mixture, positive where i and j attract each other. "
                "Otherwise a random mixture has 8 (c_j - 1 / S): see warren_cowley."
            },
        ),
        Variable(
            "warren_cowley",
            ("pair",),
            long_name="Warren-Cowley short-range order parameter",
            attributes=_POINT
            | {
                "comment": "alpha_ij = 1 - N_ij / (8 n_i c_j): for any composition 0 in a random "
                "mixture, negative where i and j attract each other, at most 1."
            },
        ),
        Variable(
            "long_range_order",
            ("element",),
            long_name="B2 order: (corners - centres) / (corners + centres)",
            attributes=_POINT,
        ),
        Variable(
            "bonds",
            ("corner_species", "centre_species"),
            "int64",
            long_name="nearest-neighbour bonds",
            attributes=_POINT,
        ),
        Variable("hops", (), "int64", long_name="vacancy hops since time 0"),
        Variable("window", units="s", long_name="last window of the tiled solver"),
        Variable("windows", (), "int64", long_name="windows since time 0"),
        Variable("species", ("site",), "int8", long_name="species of a site", attributes=_POINT),
        Variable("displacement", long_name="mean displacement of a site", attributes=_POINT),
        Variable(
            "displacement_profile",
            ("site",),
            long_name="displacement of a site",
            attributes=_POINT,
        ),
        Variable("prey", long_name="mean of the prey", attributes=_POINT),
        Variable("predator", long_name="mean of the predators", attributes=_POINT),
        Variable("prey_profile", ("position",), long_name="prey of a cell", attributes=_POINT),
        Variable(
            "predator_profile",
            ("position",),
            long_name="predators of a cell",
            attributes=_POINT,
        ),
    )
}


#: Of chains of two species; some names are those of other quantities in other systems.
BINARY_CHAIN: dict[str, Variable] = {
    v.name: v
    for v in (
        Variable("strain", long_name="mean bond relative to that at time 0, less 1"),
        Variable("ab_bonds", long_name="bonds of unlike neighbours, sum of (1 - s_i s_i+1) / 2"),
        Variable(
            "first_minimum",
            (),
            "int64",
            long_name="first minimum of the autocorrelation of s along the chain, in sites",
            attributes={"comment": "Half the period of the pattern; 0 where there is none."},
        ),
        Variable("free_energy", long_name="variational Gaussian free energy of the chain"),
        Variable("exchanges", (), "int64", long_name="exchanges of unlike neighbours since time 0"),
        Variable("s", ("site",), long_name="mean spin of a site, 1 is A and -1 is B"),
        Variable("x", ("site",), long_name="position, or mean position, of an atom"),
        Variable(
            "alpha",
            ("site",),
            long_name="width of an atom: its position has the variance 1 / (2 alpha)",
        ),
    )
}


def parameter(name: str) -> Variable:
    """A parameter of a system that changes in time: its value from the time of a frame on."""
    about = {"comment": "It goes as the schedule of config_json says."}
    words = name.replace("_", " ")
    return Variable(name, long_name=f"{words} of the system", attributes={**_POINT, **about})


_COORDINATES: dict[str, dict[str, str]] = {
    **{
        prefix + name: {"axis": name.upper(), "units": "1", "long_name": f"{name} in sites"}
        for name in "xyz"
        for prefix in ("", "site_")
    },
    "x_byte": {"units": "1", "long_name": "x of the first of 8 sites"},
    "member": {"standard_name": "realization", "units": "1", "long_name": "ensemble member"},
    "state": {"units": "1", "long_name": "state of a site"},
    "position": {"axis": "X", "units": "1", "long_name": "centre of a cell on a line from 0 to 1"},
    "pair": {"long_name": "pair of elements"},
    "element": {"long_name": "element"},
    "corner_species": {"long_name": "species of the corner of a cell"},
    "centre_species": {"long_name": "species of the centre of a cell"},
}


def block_centres(side: int, block: int) -> np.ndarray:
    """Centres of the coarse blocks along a side, in sites (site i is at i).

    Parameters
    ----------
    side : of the lattice, in sites
    block : side of a block in sites, which divides it

    Returns
    -------
    (side / block,) float64
    """
    return (np.arange(side // block) + 0.5) * block - 0.5


@dataclass
class Schema:
    """Everything about a file but its frames."""

    dims: dict[str, int]
    variables: Sequence[Variable]
    time: Variable
    coordinates: Mapping[str, np.ndarray]
    attributes: Mapping[str, Any]

    def check(self) -> None:
        if missing := [name for name in _REQUIRED if name not in self.attributes]:
            raise InputError("attributes", missing, f"all of {_REQUIRED}", "Add them.")
        if "time" in self.dims or min(self.dims.values(), default=1) < 1:
            raise InputError("dims", self.dims, "positive sizes, time left out", "Correct it.")
        taken = {"time", *self.dims}
        for v in self.variables:
            if v.name in taken or not set(v.dims) <= set(self.dims):
                allowed = f"dimensions among {list(self.dims)}, each name once"
                raise InputError(
                    "variables", f"{v.name}{v.dims}", allowed, "Rename, or add to dims."
                )
            taken.add(v.name)
        for name, values in self.coordinates.items():
            if np.shape(values) != (self.dims.get(name),):
                allowed = f"a value for each index of a dimension of {self.dims}"
                raise InputError(f"coordinate {name}", np.shape(values), allowed, "Correct it.")

    @classmethod
    def of(cls, file: h5py.File) -> Schema:
        """The schema of a Trajectory that exists."""
        # Not items(), which leaves out what it cannot open.
        objects = {name: file[name] for name in file}
        datasets = {k: v for k, v in objects.items() if isinstance(v, h5py.Dataset)}
        variables = [describe(v) for v in datasets.values() if not v.is_scale]
        scales = {k: v for k, v in datasets.items() if v.is_scale and k != "time"}
        coordinates = {
            k: v.asstr()[()] if h5py.check_string_dtype(v.dtype) else v[()]
            for k, v in scales.items()
        }
        time = replace(describe(file["time"]), dims=(), per_frame=True)
        attributes = {name: plain(value) for name, value in file.attrs.items()}
        sizes = {k: v.size for k, v in scales.items()}
        return cls(sizes, variables, time, coordinates, attributes)

    def layout(self) -> dict[str, Any]:
        """What must agree for the frames of one file to fit into the other."""
        shapes = {v.name: (v.dims, np.dtype(v.dtype).str, v.per_frame) for v in self.variables}
        return {"dimensions": self.dims, "variables": shapes, "time": self.time.units}

    def image(self) -> bytes:
        """The bytes of the file without frames."""
        with h5py.File("image", "w", driver="core", backing_store=False) as file:
            self.create(file)
            file.flush()
            return file.id.get_file_image()

    def create(self, file: h5py.File, sealed: bool = False) -> None:
        """Everything but the frames.

        A sealed file has a checksum on each of its parts, and does not grow any more.
        """
        for name, value in self.attributes.items():
            file.attrs[name] = storable(name, value)
        self._create(file, self.time, sealed).make_scale("time")
        for name, size in self.dims.items():
            values = np.asarray(self.coordinates.get(name, np.arange(size)))
            checks: dict[str, Any] = {}
            if values.dtype.kind in "OSU":
                values = values.astype(h5py.string_dtype())
            elif sealed:
                checks = {"chunks": values.shape, "fletcher32": True}
            scale = file.create_dataset(name, data=values, **checks)
            scale.make_scale(name)
            scale.attrs.update(_COORDINATES.get(name, {"long_name": name}))
        for v in self.variables:
            dataset = self._create(file, v, sealed)
            for axis, name in enumerate((*["time"] * v.per_frame, *v.dims)):
                dataset.dims[axis].attach_scale(file[name])

    def _create(self, file: h5py.File, v: Variable, sealed: bool) -> h5py.Dataset:
        shape, dtype = tuple(self.dims[name] for name in v.dims), np.dtype(v.dtype)
        packing = {"compression": "gzip", "compression_opts": _GZIP_LEVEL, "shuffle": True}
        if v.dtype == "uint8" and not sealed:  # bits: whether it pays is seen when they are sealed
            packing = {}
        packing |= {"fletcher32": True}
        options: dict[str, Any] = {}
        if v.per_frame:
            frame = math.prod(shape) * dtype.itemsize
            if frame < _FIELD_BYTES:
                options["chunks"] = (min(1024, 2**16 // frame), *shape)
                options |= packing if sealed else {}
            else:
                options["chunks"] = (1, *_chunk(shape, dtype.itemsize))
                options |= packing
            options["maxshape"], shape = (None, *shape), (0, *shape)
            # Parallel HDF5 writes only into chunks that exist.
            options["dcpl"] = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            options["dcpl"].set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        elif sealed and shape:
            options = {"chunks": _chunk(shape, dtype.itemsize), **packing}
        # What a dying run left out must read as a hole, not as a number.
        fill = np.nan if dtype.kind == "f" else None
        dataset = file.create_dataset(v.name, shape, dtype, fillvalue=fill, **options)
        for name, value in {"units": v.units, "long_name": v.long_name, **v.attributes}.items():
            dataset.attrs[name] = storable(name, value)
        return dataset


def _chunk(shape: Shape, itemsize: int) -> Shape:
    """Halve the longest side until a chunk is small enough. Must not depend on ranks."""
    sides = list(shape)
    while math.prod(sides) * itemsize > _CHUNK_BYTES:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    return tuple(sides)


def plain(value: Any) -> Any:
    """An attribute as plain Python."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.item() if value.shape == (1,) else value.tolist()  # netCDF has no other
    return value.decode() if isinstance(value, bytes) else value


def describe(dataset: h5py.Dataset) -> Variable:
    """The Variable that a dataset was made from."""
    internal = {"DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME", "_Netcdf4Dimid"}
    internal |= {"_Netcdf4Coordinates"}
    about = {k: plain(v) for k, v in dataset.attrs.items() if k not in internal}
    dims = [d[0].name.removeprefix("/") for d in dataset.dims] if not dataset.is_scale else []
    per_frame = dims[:1] == ["time"]
    return Variable(
        dataset.name.removeprefix("/"),
        tuple(dims[per_frame:]),
        str(dataset.dtype),
        about.pop("units", "1"),
        about.pop("long_name", ""),
        per_frame,
        about,
    )


def storable(name: str, value: Any) -> Any:
    """An attribute that HDF5 and netCDF both know: no HDF5 booleans, no pickles."""
    if isinstance(value, bool | np.bool_):
        return np.int8(value)
    if np.asarray(value).dtype.kind not in "iufU":
        raise InputError(
            f"attribute {name}", value, "text, numbers or lists of them", "Convert it."
        )
    return value


def git_hash() -> str:
    """Commit of the source tree that runs, or that an installed package was built from, if known.

    Read from the files of git: starting a process under MPI can be refused or slow.
    """
    try:
        folder = Path(__file__).resolve().parents[2] / ".git"
        if folder.is_file():  # a work tree
            folder = folder.parent / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        if (folder / "commondir").exists():
            folder = folder / (folder / "commondir").read_text().strip()
        if (folder / name).exists():
            return (folder / name).read_text().strip()
        packed = (folder / "packed-refs").read_text().splitlines()
        return next(line.split()[0] for line in packed if line.endswith(f" {name}"))
    except (OSError, StopIteration):
        return COMMIT


def own_attributes(ranks: int) -> dict[str, Any]:
    """Root attributes that the writer sets."""
    return {
        "Conventions": "CF-1.11",
        "mpiflow_version": __version__,
        "git_hash": git_hash(),
        "schema_version": SCHEMA_VERSION,
        "ranks": ranks,
        "run": secrets.token_hex(8),  # checkpoints have it too: those of another run do not fit
        "complete": False,
    }
