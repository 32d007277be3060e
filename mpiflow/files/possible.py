"""What the numbers of a state must obey, whatever moved it there: for ``mpiflow verify``.

Functions get the series of a file, (T,) or (T, members), and yield where they are possible and
what is wrong elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import scipy

Laws = Iterator[tuple[np.ndarray, str]]

#: Flips that must be expected before none at all is a proof: the chance is below e^-1000.
CERTAIN = 1000.0
#: Energies of a Kac model have the field rounded to its integers.
_ROUNDED = 1e-6


def _of_sites(about: Mapping[str, Any]) -> bool:
    """Whether sites have fields of their own."""
    return any(about.get(name) for name in ("field_file", "random_field_std", "site_field"))


def of_spins(spins: np.ndarray, bonds: np.ndarray, sites: int) -> Laws:
    """Sums of s_i and of s_i s_j over the bonds of a periodic square lattice."""
    opposite, rarer = sites - bonds / 2, (sites - np.abs(spins)) / 2
    # Along each row and column spins turn over an even number of times.
    yield opposite % 2 == 0, "domain_wall_density is that of no periodic lattice"
    yield (
        (opposite <= 4 * rarer) & ((opposite > 0) | (rarer == 0)),
        "no spins have this magnetization and this domain_wall_density",
    )


def of_kac(energy: np.ndarray, m: np.ndarray, bonds: np.ndarray | None, about: Mapping[str, Any],
           sites: int, fields: np.ndarray | None = None) -> Laws:  # fmt: skip
    """The energy a site: all pairs together have the coupling 1.

    ``fields`` are those of the frames, (T,), where they change.
    """
    if _of_sites(about) or not isinstance(about.get("field"), int | float):
        return
    field = about["field"] if fields is None else fields.reshape(-1, *[1] * (m.ndim - 1))
    pairs, slack = energy + field * m, _ROUNDED * (1 + float(np.max(np.abs(field), initial=0.0)))
    yield abs(pairs) <= 0.5 + slack, "energy is out of range"
    if about.get("gamma") == 0 and bonds is not None:
        wanted = -bonds / (4 * sites)
        what = "energy does not follow from magnetization and domain_wall_density"
        yield abs(pairs - wanted) <= slack, what


def of_flips(
    flips: np.ndarray, times: np.ndarray, system: str, about: Mapping[str, Any], sites: int
) -> Laws:
    """Even the slowest spins flip: where none does there are none."""
    most = {"ising": 4.0 * abs(about.get("coupling", 1.0)), "kac": 1.0}.get(system)
    names = ("temperature", "field")
    known = all(isinstance(about.get(name), int | float) for name in names)
    changing = _of_sites(about) or about.get("schedule")
    if most is None or not known or changing or len(times) < 2:
        return
    slowest = scipy.special.expit(-2.0 * (most + abs(about["field"])) / about["temperature"])
    step = about.get("dt") if system == "ising" else about.get("tau")
    share = -math.expm1(-step) / step if isinstance(step, int | float) and step > 0 else 0.6
    expected = slowest * share * sites * (times[-1] - times[0])
    if expected > CERTAIN:
        what = f"nothing flips, where {expected:.0f} flips or more are expected: these are no spins"
        yield np.broadcast_to(flips[-1] > flips[0], flips.shape), what


def of_lines(means: np.ndarray) -> Laws:
    """Nobody starts with less than nothing; noise may bring extinct ones below 0 later."""
    good = np.ones(means.shape, bool)
    good[:1] = means[:1] >= 0
    yield good, "is negative at the start"
