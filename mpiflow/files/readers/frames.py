"""What every reader gives, and what users choose from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from mpiflow.files.structure import Structure
from mpiflow.files.structure_files import Unfit

AXES = "xyz"


@dataclass(frozen=True)
class Wanted:
    """What is chosen from files that hold more than one field.

    Attributes
    ----------
    variable : name of an array, a variable, or a column of atoms; None where there is one
    component : x, y, z, a label or a number from 0; None where there is one
    layer : number of a plane along z; None where there is one
    lattice : ``square`` or ``bcc`` of atoms; ``auto`` is square where all lie in a plane
    elements : names of species 1, 2, ...; those of the first frame unless given
    """

    variable: str | None = None
    component: str | None = None
    layer: int | None = None
    lattice: str = "auto"
    elements: Sequence[str] = ()


@dataclass(frozen=True)
class Frame:
    """A frame as it was read.

    Attributes
    ----------
    values : (ny, nx) numbers, or the species of a bcc lattice
    time : in the unit of the file; None where it says none
    where : in its file, for messages
    elements : of a bcc lattice
    """

    values: np.ndarray | Structure
    time: float | None
    where: str
    elements: tuple[str, ...] = ()


@dataclass(frozen=True)
class Axes:
    """What an array (components, layers, ny, nx) has to choose from."""

    components: int
    layers: int = 1
    labels: Sequence[str] = field(default=())

    def place(self, wanted: Wanted) -> tuple[int, int]:
        """Numbers of the component and of the layer that are wanted, or Unfit."""
        return self._component(wanted.component), self._layer(wanted.layer)

    def _component(self, word: str | None) -> int:
        count, labels = self.components, [label.lower() for label in self.labels]
        names = list(self.labels) or list(AXES[:count]) * (count <= len(AXES))
        if word is None:
            if count == 1:
                return 0
            known = " or ".join(names) or f"0 to {count - 1}"
            raise Unfit("one component a site", f"It has {count}: choose with --component {known}.")
        if word.lower() in labels:
            return labels.index(word.lower())
        number = int(word) if word.isdecimal() else -1
        if word.lower() in tuple(AXES) and count <= len(AXES):
            number = AXES.index(word.lower())
        if not 0 <= number < count:
            known = ", ".join(names) or f"0 to {count - 1}"
            raise Unfit(f"a component {word!r}", f"It has {known}.")
        return number

    def _layer(self, number: int | None) -> int:
        if number is None:
            if self.layers == 1:
                return 0
            found = f"It has {self.layers}: choose with --layer 0 to {self.layers - 1}."
            raise Unfit("one layer of sites", found)
        if not 0 <= number < self.layers:
            raise Unfit(f"a layer {number}", f"It has 0 to {self.layers - 1}.")
        return number


def one_of(names: Sequence[str], wanted: str | None, what: str) -> str:
    """The name that is wanted, or the only one there is; or Unfit."""
    if wanted is None:
        if len(names) == 1:
            return names[0]
        found = ", ".join(names) or "none"
        raise Unfit(f"one {what} of numbers", f"It has {found}: choose with --variable.")
    if wanted not in names:
        raise Unfit(f"a {what} {wanted!r}", f"It has {', '.join(names) or 'none'}.")
    return wanted
