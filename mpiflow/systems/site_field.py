r"""External fields of each site's own: gradients, patterns, and random fields by seed.

A site field adds :math:`-\sum_i h_i \, c(s_i)` to the energy, beside the uniform field; c is the
spin of Ising, Kac and Blume-Capel models, 1 for the state 0 of a Potts model and else 0, and for a
rule of one's own its :meth:`~mpiflow.systems.rule.SpinRule.coupled`.

Anything that gives h at global sites will do: an array of the lattice's shape, perhaps mapped from
a file, or a function of the rows and columns of sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mpiflow.core import arrays
from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.noise import site_counter, threefry, uniforms

SiteField = np.ndarray | Callable[[np.ndarray, np.ndarray], np.ndarray]

KINDS = ("gaussian", "bimodal")


@dataclass(frozen=True)
class RandomField:
    r"""Independent fields of mean 0 at all sites, the same for each member of an ensemble.

    The field of a site is a function of the seed and the site alone, of any lattice on any ranks.

    Parameters
    ----------
    std : standard deviation, above 0
    seed : of the field, 0 to 2^63 - 1
    kind : ``gaussian`` (Box-Muller), or ``bimodal``: plus or minus ``std``

    Raises
    ------
    InputError : a parameter is not as said
    """

    std: float
    seed: int = 0
    kind: Literal["gaussian", "bimodal"] = "gaussian"

    def __post_init__(self) -> None:
        if not (self.std > 0 and math.isfinite(self.std)):
            raise InputError("random_field_std", self.std, "a finite number above 0", "Try 0.5.")
        if self.kind not in KINDS:
            raise InputError("random_field_kind", self.kind, f"one of {KINDS}", "Leave it out.")

    def __call__(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The fields of the sites (y, x), which broadcast, float64."""
        rows, columns = np.broadcast_arrays(y, x)
        sites = rows.astype(np.uint64) << np.uint64(32) | columns.astype(np.uint64)
        u = uniforms(self.seed, "site-field", 0, 0, sites)
        if self.kind == "bimodal":
            return np.where(u[..., 0] < 0.5, self.std, -self.std)
        radius = self.std * np.sqrt(-2.0 * np.log(u[..., 0]))
        return np.asarray(radius * np.cos(2.0 * np.pi * u[..., 1]))


def fields_in(
    field: SiteField, shape: tuple[int, ...], box: tuple[slice, ...], name: str = "site_field"
) -> np.ndarray:
    """h of the sites of a box of a lattice, float64, contiguous; only these are read.

    Raises
    ------
    InputError : the field is no array of real finite numbers of that shape, nor a function of sites
    """
    if callable(field):
        y, x = (np.arange(part.start, part.stop) for part in box)
        values = field(y[:, None], x[None, :])
        wanted = len(y), len(x)
    else:
        if np.shape(field) != shape:
            raise InputError(name, np.shape(field), f"{shape}, as the lattice", "Cut it.")
        values, wanted = field[box], tuple(part.stop - part.start for part in box)
    values = arrays.real(name, values)
    try:
        return np.ascontiguousarray(np.broadcast_to(values, wanted))
    except ValueError:
        allowed = f"{wanted}, a value for each of these sites"
        raise InputError(name, values.shape, allowed, "Look at the function.") from None


@kernel
def fingerprint(values: np.ndarray, top: int, left: int) -> tuple[np.uint64, np.uint64]:
    """Two words that tell a field from another, to be added up over the boxes it is cut into."""
    first, second = np.uint64(0), np.uint64(0)
    for y in range(values.shape[0]):
        bits = values[y].view(np.uint64)
        for x in range(values.shape[1]):
            a, b = threefry(bits[x], np.uint64(0), np.uint64(0), site_counter(top + y, left + x))
            first += a
            second += b
    return first, second


def fingerprint_text(words: np.ndarray) -> str:
    """The sum of fingerprints, (2,) uint64, as hexadecimal digits."""
    return "".join(f"{int(word):016x}" for word in words)


@kernel
def sums(
    states: np.ndarray, values: np.ndarray, unit: float, lowest: int, stride: int, out: np.ndarray
) -> None:
    """Add ``rint(unit values)`` of the sites in each state to ``out``, (B, q) int64."""
    for b in range(states.shape[0]):
        for y in range(values.shape[0]):
            for x in range(values.shape[1]):
                state = (np.int64(states[b, y, x]) - lowest) // stride
                out[b, state] += np.int64(np.rint(values[y, x] * unit))
