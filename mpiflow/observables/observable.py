"""What a run measures besides what its system always does: a function, and what its numbers are."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from mpiflow.core.errors import InputError

Kind = Literal["auto", "mean", "sum", "field"]
Of = Literal["sites", "coarse", "part"]
#: Sizes of dimensions, or their coordinates; also as a function of the sides of what is measured
#: and of the sites a side of its points.
Dims = Mapping[str, int | Sequence[Any] | np.ndarray]


@dataclass(frozen=True)
class Observable:
    """A function of the state that a run writes into its file at every frame.

    The function gets an array, to be read, and must not communicate. What it gets is named by
    ``of``, what it returns by ``kind``; M are the members that a rank holds, D the sizes of
    ``dims``.

    ==========  =======================================================================
    ``of``      what the function gets
    ==========  =======================================================================
    ``sites``   this rank's part of the state, (M, *sides here), with ``halo`` sites of
                its periodic surroundings on every side
    ``coarse``  means over blocks of ``coarse`` sites a side, (M, *sides / coarse)
                float64; with blocks of one site the state itself. A lattice that is cut
                over ranks is gathered on rank 0, where the function is called
    ``part``    a :class:`mpiflow.core.parts.Part`, on all ranks together: for functions
                that send messages, with its methods
    ==========  =======================================================================

    Of ``coarse`` and ``part`` it returns numbers of whole members, (M, *D). Of ``sites``:

    ==========  =======================================================================
    ``kind``    what the function returns, and what the file holds
    ==========  =======================================================================
    ``mean``    values of sites, (M, *D, *sides here): their mean, (*D) float64
    ``sum``     such values, or sums of integers, (M, *D): their sum, int64 or float64
    ``field``   values of blocks, (M, *D, *sides here / coarse): as they are
    ``auto``    ``mean`` of values of sites, ``sum`` of sums of integers
    ==========  =======================================================================

    The file holds the same bits on any number of ranks: values of sites are added up exactly,
    whatever the ranks. Sums of real numbers are refused of a lattice that is cut, as their last
    bits would depend on the tiles: return values of sites instead.

    Parameters
    ----------
    function : what measures
    halo : sites of surroundings, at most the shortest side of a rank's part
    coarse : sites a side of a block; unless given that of the run, or 1
    dims : dimensions of what it returns behind the members, each with its size or its coordinates
    units : as UDUNITS writes them, "1" if dimensionless
    long_name : what it is, for people; unless given the first line of the function's docstring
    pooled : sums of integers are added over the members, too

    Raises
    ------
    InputError : these do not fit together

    Examples
    --------
    >>> def pairs(spins):  # (M, ny + 2, nx + 2) with halo=1
    ...     return spins[:, 1:-1, 1:-1] * spins[:, 1:-1, 2:]
    >>> record(sim, "run.h5", time=10, observables={"pairs": Observable(pairs, halo=1)})
    """

    function: Callable[..., Any]
    kind: Kind = "auto"
    of: Of = "sites"
    halo: int = 0
    coarse: int | None = None
    dims: Dims | Callable[..., Dims] = field(default_factory=dict)
    units: str = "1"
    long_name: str = ""
    pooled: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError("function", self.function, "a function of an array", "Pass one.")
        for name, literal in (("kind", Kind), ("of", Of)):
            if (word := getattr(self, name)) not in get_args(literal):
                raise InputError(name, word, f"one of {get_args(literal)}", "Choose one.")
        for name, least in (("halo", 0), ("coarse", 1)):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int | np.integer) or number < least):
                raise InputError(name, number, f"a whole number from {least} on", "Leave it out.")
        reads_sites = self.of == "sites"
        for name, value, fits in (
            ("halo", self.halo, reads_sites),
            ("kind", self.kind, reads_sites or self.kind in ("auto", "sum")),
            ("coarse", self.coarse, self.of == "coarse" or self.kind == "field"),
            ("pooled", self.pooled, self.kind in ("auto", "sum")),
        ):
            if value and not fits:
                why = f"no value with of={self.of!r} and kind={self.kind!r}"
                raise InputError(name, value, why, "Leave it out.")

    def described(self, name: str) -> str:
        """What it is, for people; its name in the file where nothing else is known."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        text = self.long_name or getattr(function, "__doc__", None) or ""
        return text.strip().partition("\n")[0].rstrip(".") or name

    def sizes(self, shape: tuple[int, ...], side: int) -> dict[str, int | np.ndarray]:
        """Its dimensions, for sides of so many points, each of ``side`` sites."""
        dims = self.dims(shape, side) if callable(self.dims) else self.dims
        out: dict[str, int | np.ndarray] = {}
        for name, given in dims.items():
            size = np.asarray(given)
            whole = size.ndim == 0 and size.dtype.kind in "iu" and size > 0
            if not whole and not (size.ndim == 1 and size.size and size.dtype.kind in "iufU"):
                allowed = "a size above 0, or its coordinates: numbers or texts in a row"
                raise InputError(f"dims {name}", given, allowed, "Correct it.")
            out[name] = int(size) if whole else size
        return out

    def definition(self) -> dict[str, Any]:
        """What must be the same where a run goes on."""
        about: dict[str, Any] = {"kind": self.kind, "of": self.of, "halo": int(self.halo)}
        coarse = None if self.coarse is None else int(self.coarse)
        about |= {"coarse": coarse, "pooled": bool(self.pooled)}
        return {"function": name_of(self.function), **about}


def name_of(function: Any) -> str:
    """A function in words: its name, with the parameters of one that has some."""
    if dataclasses.is_dataclass(function) and not isinstance(function, type):
        listed = ", ".join(f"{n}={v!r}" for n, v in dataclasses.asdict(function).items())
        return f"{type(function).__name__}({listed})"
    if isinstance(function, functools.partial):
        words = [*map(repr, function.args), *(f"{n}={v!r}" for n, v in function.keywords.items())]
        return f"{name_of(function.func)}({', '.join(words)})"
    name = getattr(function, "__name__", None) or type(function).__name__
    return str(name)
