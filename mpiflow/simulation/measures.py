"""Observables of one's own in the file of any simulation.

:func:`observed` adds them to what a file holds. Before the file is made every function is
called once, so that a mistake in what it returns is said before anything is written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.errors import InputError, place_of
from mpiflow.core.lattice import divisors
from mpiflow.core.parallel import agreed
from mpiflow.core.parts import Part
from mpiflow.files.schema import STANDARD, Variable, block_centres
from mpiflow.files.writer import Value
from mpiflow.observables.choice import definitions
from mpiflow.observables.observable import Observable
from mpiflow.simulation.base import Content, Rows, Sample, Simulated

_REMEDY = "See docs/observables.md."


@contextmanager
def observed(
    sim: Simulated,
    content: Content,
    observables: Mapping[str, Observable],
    coarse: int | None = None,
) -> Iterator[Content]:
    """What a file holds of a simulation, with observables besides, in a ``with`` block. Collective.

    Parameters
    ----------
    coarse : sites a side of the blocks of the run, if it has any

    Raises
    ------
    InputError : on all ranks: a name is taken, or a function does not return what it should
    """
    if not observables:
        yield content
        return
    part = _part_of(sim)
    dims, coordinates = dict(content.dims), dict(content.coordinates)
    taken = {"time", "fraction", *dims, *STANDARD, *(v.name for v in content.variables)}
    taken |= sim.facts().keys()  # what files say of a temperature that changes has its name
    measures, variables = [], list(content.variables)
    for name, observable in observables.items():
        if name in taken or name.endswith("_profile"):
            allowed = "a name that is not mpiflow's own"
            own = f"own_{name.removesuffix('_profile')}"
            raise InputError("observables", name, allowed, f"Try {own}.")
        side = observable.coarse or (coarse if observable.of == "coarse" else 1) or 1
        measure = Measure(name, observable, part, side, sim)
        variables.append(measure.variable(dims, coordinates))
        measures.append(measure)
    first: dict[float, dict[str, Value]] = {sim.time: {m.name: m.first for m in measures}}

    def frame() -> Sample:
        sample = content.frame()
        part.state = sim.state
        values = first.pop(sim.time, None)
        first.clear()
        if values is None:
            values = {measure.name: measure.value() for measure in measures}
        return sample._replace(values={**sample.values, **values})

    about = json.dumps(definitions(observables))
    attributes = {**content.attributes, "observables_json": about}
    yield replace(
        content,
        dims=dims,
        coordinates=coordinates,
        variables=variables,
        attributes=attributes,
        frame=frame,
    )
    part.free()  # not after an error: other ranks may be elsewhere


def _part_of(sim: Simulated) -> Part:
    part = Part(
        sim.comm,
        sim.lattice.shape,
        sim.local_box(),
        cut=sim.block.layout is not None,
        members=sim.members,
        is_site=sim.is_site(),
        periodic=not isinstance(sim.block, Rows),
    )
    part.state = sim.state
    return part


class _Form(NamedTuple):
    """What a function has returned: of sites, or sums of whole parts; and of what type."""

    of_sites: bool
    dtype: str


class Measure:
    """An observable of a simulation, on its ranks.

    Parameters
    ----------
    part : whose state is the present one whenever something is measured
    side : sites a side of its blocks

    Attributes
    ----------
    first : its value in the present state, found when it was made
    """

    def __init__(
        self, name: str, observable: Observable, part: Part, side: int, sim: Simulated
    ) -> None:
        self.name, self.observable, self.part, self.side = name, observable, part, side
        self.members, self.local_members = sim.members, sim.local_members
        self.form: _Form | None = None
        self._check()
        points = tuple(n // side for n in part.shape)
        self.dims = observable.sizes(points, side)
        self.sizes = tuple(n if isinstance(n, int) else len(n) for n in self.dims.values())
        self.first = self.value()

    def _check(self) -> None:
        part, observable, side = self.part, self.observable, self.side
        try:
            part.require_halo(observable.halo)
        except InputError as error:
            raise self._error(f"halo={error.value}", error.allowed, error.remedy) from None
        if side == 1:
            return
        got = f"coarse={side}"
        if not part.periodic or part.is_site is not None:
            raise self._error(got, "1", "Leave it out.")
        if any(n % side for n in part.shape):
            allowed = "a divisor of the sides of the lattice"
            raise self._error(got, allowed, f"Use one of {divisors(math.gcd(*part.shape))}.")
        cut = part.boxes if observable.kind == "field" or part.state.dtype.kind == "f" else []
        if any(n % side for box in cut for e in box for n in (e.start, e.stop)):
            allowed = "a divisor of the sides of all ranks' parts"
            raise self._error(got, allowed, f"Make the simulation with granularity={side}.")

    def _error(self, got: object, allowed: str, remedy: str) -> InputError:
        return InputError(f"observable {self.name}", got, allowed, remedy)

    # -- its variable ----------------------------------------------------------------

    def variable(self, dims: dict[str, int], coordinates: dict[str, np.ndarray]) -> Variable:
        """The variable of the file; its dimensions are added to those that there are."""
        observable, form = self.observable, self.form
        assert form is not None  # noqa: S101 - for the type checker
        names, method = [], "time: point"
        for name, given in self.dims.items():
            size = given if isinstance(given, int) else len(given)
            own = np.arange(size) if isinstance(given, int) else given
            for free in (name, f"{self.name}_{name}"):
                known = coordinates.get(free, np.arange(dims.get(free, 0)))
                alike = free not in dims or np.array_equal(known, own)
                if alike and free not in ("time", "member"):
                    break
            else:
                allowed = "dimensions with the coordinates that others have, or other names"
                raise self._error(f"dims {name}", allowed, "Rename the dimension.")
            dims[free] = size
            names.append(free)
            if not isinstance(given, int):
                coordinates[free] = given
        if observable.kind == "field":
            names += self._axes(dims, coordinates)
        elif self.kind in ("mean", "sum"):
            method += f" area: {self.kind}"
        member = self.members > 1 and not observable.pooled
        return Variable(
            self.name,
            (*["member"] * member, *names),
            form.dtype,
            observable.units,
            observable.described(self.name),
            attributes={"cell_methods": method},
        )

    @property
    def kind(self) -> str:
        """What becomes of what the function returns."""
        if self.observable.kind == "auto" and self.observable.of == "sites" and self.form:
            return "mean" if self.form.of_sites else "sum"
        return self.observable.kind

    def _axes(self, dims: dict[str, int], coordinates: dict[str, np.ndarray]) -> list[str]:
        """Dimensions of a field over blocks: those of another one over the same blocks, or new."""
        shape, side = self.part.shape, self.side
        named = {1: ["position"], 2: ["y", "x"], 3: ["x", "y", "z"]}[len(shape)]
        before = ["", "site_" if side == 1 else f"block{side}_"]
        out = []
        for axis, length in zip(named, shape, strict=True):
            centres = block_centres(length, side)
            for name in (prefix + axis for prefix in before):
                known = coordinates.get(name, np.arange(dims.get(name, 0)))
                if name not in dims or np.array_equal(known, centres):
                    dims[name], coordinates[name] = length // side, centres
                    out.append(name)
                    break
            else:
                raise self._error(axis, "dimensions that are not taken", "Rename yours.")
        return out

    # -- its values ------------------------------------------------------------------

    def value(self) -> Value:
        """Its value in the present state, as a frame of the file takes it. Collective."""
        observable, part = self.observable, self.part
        if observable.of == "coarse":
            numbers = self._of_coarse()
        elif observable.of == "part":
            with agreed(part.comm, alone=True):
                numbers = self._checked(self._call(part), counts=True)
            self._agree(numbers, counts=True)
        else:
            numbers = self._of_sites()
        if numbers.dtype.kind == "f":
            with agreed(part.comm):
                self._require_finite(numbers)
        if observable.pooled:
            return part.of_all_members(numbers)
        lead = () if self.members == 1 else (self.local_members,)
        place = (*lead, *(slice(0, n) for n in self.sizes))
        inside = numbers[0] if self.members == 1 else numbers
        if observable.kind == "field":
            box = (slice(e.start // self.side, e.stop // self.side) for e in part.box)
            return inside, (*place, *box)
        return (inside, place) if self.members > 1 else inside

    def _of_sites(self) -> np.ndarray:
        observable, part = self.observable, self.part
        state = part.padded(observable.halo)
        values = None
        with agreed(part.comm):
            if len(state):
                values = self._checked(self._call(state))
        form = self._agree(values)
        if values is None:  # more ranks than members leave some with none
            shape = (0, *self.sizes, *(self._sides() if form.of_sites else ()))
            values = np.zeros(shape, form.dtype)
        if observable.kind == "field":
            return values
        if not form.of_sites:
            return part.total(values) if part.cut and values.dtype.kind != "f" else values
        with agreed(part.comm):
            if values.dtype.kind in "iu" and values.dtype.itemsize > 4 and values.size:
                most = max(abs(int(values.max())), abs(int(values.min())))
                if most * part.sites >= 2**63:
                    raise self._error(most, "integers whose sum is below 2^63", "Return real ones.")
        sums = part.sum_of(values)
        return sums / part.sites if self.kind == "mean" else sums

    def _of_coarse(self) -> np.ndarray:
        part = self.part
        field = part.coarse(self.side)
        numbers = None
        with agreed(part.comm):
            if field is not None and len(field):
                field.flags.writeable = False
                numbers = self._checked(self._call(field), counts=True)
        if part.cart is not None:
            numbers = part.comm.bcast(numbers)
        self._agree(numbers, counts=True)
        if numbers is None:
            assert self.form is not None  # noqa: S101 - for the type checker
            numbers = np.zeros((0, *self.sizes), self.form.dtype)
        return numbers

    def _call(self, given: Any) -> Any:
        try:
            return self.observable.function(given)
        except InputError:
            raise
        except Exception as error:
            remedy = "Correct the function; nothing of this frame was written."
            got = f"{type(error).__name__}: {error}{place_of(error)}"
            raise self._error(got, "a function that returns", remedy) from error

    def _sides(self) -> tuple[int, ...]:
        """Of this rank's part, in blocks of a field."""
        return tuple(n // self.side for n in self.part.sides)

    def _checked(self, returned: Any, counts: bool = False) -> np.ndarray:
        """What a function has returned, as an array of one of the shapes that it may have.

        Parameters
        ----------
        counts : whether it must be numbers of whole members
        """
        part, kind = self.part, self.observable.kind
        members = len(part.state)
        try:
            values = np.asarray(returned)
        except ValueError:
            values = np.empty(0, object)
        got = "None" if returned is None else f"{values.dtype}{values.shape}"
        if self.members == 1 and not self.sizes and values.shape == () and kind in ("auto", "sum"):
            values = values[None]  # of the only member
        numbers, sites = (members, *self.sizes), (members, *self.sizes, *self._sides())
        shapes = [numbers] if counts else [sites] if kind in ("mean", "field") else [sites, numbers]
        allowed = "numbers of shape " + " or ".join(
            f"{shape} ({'of whole members' if shape == numbers else 'of sites'})"
            for shape in shapes
        )
        if values.dtype.kind not in "biuf":
            raise self._error(got, allowed, f"Return real numbers, whole numbers or truth values. "
                              f"{_REMEDY}")  # fmt: skip
        if values.shape not in shapes:
            raise self._error(got, allowed, f"Members come first; say dims= for more. {_REMEDY}")
        if values.dtype.kind == "f":
            if values.shape == numbers and not counts and part.cut:
                raise self._error(
                    got, f"integers of shape {numbers}, or values of sites, {sites}",
                    "A sum of real numbers depends on how ranks cut the lattice: return values of "
                    "sites, which are added up exactly.",
                )  # fmt: skip
            if self.observable.pooled:
                raise self._error(got, "integers, with pooled=True", "Return counts.")
            self._require_finite(values)
        form = _Form(values.shape != numbers, self._dtype(values, values.shape != numbers))
        if self.form not in (None, form):
            raise self._error(form, f"{self.form}, as in the first frame", "Return the same kind.")
        return values

    def _dtype(self, values: np.ndarray, of_sites: bool) -> str:
        """Of the file."""
        kind = self.observable.kind
        if kind == "field":
            narrow = {"bool": "int8", "float16": "float32"}
            return narrow.get(str(values.dtype), str(values.dtype.newbyteorder("=")))
        mean = of_sites and kind in ("auto", "mean")
        return "float64" if mean or values.dtype.kind == "f" else "int64"

    def _require_finite(self, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            wrong = values[~np.isfinite(values)][0].item()
            remedy = "Return a number that stands for none, such as 0 or -1."
            raise self._error(wrong, "finite numbers", remedy)

    def _agree(self, values: np.ndarray | None, counts: bool = False) -> _Form:
        """Settle what the function returns, the same on all ranks."""
        if self.form is not None:
            return self.form
        mine = None
        if values is not None:
            of_sites = not counts and values.ndim > 1 + len(self.sizes)
            mine = _Form(of_sites, self._dtype(values, of_sites))
        forms = [form for form in self.part.comm.allgather(mine) if form is not None]
        if any(form != forms[0] for form in forms):
            allowed = "the same kind of numbers on all ranks"
            raise self._error(sorted(set(forms)), allowed, "Set the dtype of what you return.")
        self.form = forms[0]
        return self.form
