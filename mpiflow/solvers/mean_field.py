r"""Exact events of a Curie-Weiss model, and heat baths in windows of a lattice of its spins.

Of n spins, N are up; a group of m of them moves, of which M are up, and the rest stands still.
All the group's spins of one sign have the same rate, so the next event of the group is

.. math:: M \to M + 1 \ \text{at rate}\ (m - M)\, r_\uparrow(N), \qquad
          M \to M - 1 \ \text{at rate}\ M\, r_\downarrow(N),

after a time :math:`-\ln(u) / R`, R the sum of both [Gillespie, J. Comput. Phys. 22, 403 (1976)]:
exact, and as cheap for any n. N moves with M: the group feels the mean field of the whole. With
m = n this is the model itself. Event e of a box uses the noise at (its member, step 0, site e).
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import kernel
from mpiflow.core.errors import InputError
from mpiflow.core.guards import is_spins, require_rule, spin_fault
from mpiflow.core.noise import exponential, stream_key, threefry, to_unit, uniform_below
from mpiflow.systems.curie_weiss import CurieWeiss


@kernel
def _events(
    members: np.ndarray,
    key: np.ndarray,
    until: np.ndarray,
    most: np.ndarray,
    rates: np.ndarray,
    group: int,
    clock: np.ndarray,
    events: np.ndarray,
    up: np.ndarray,
    group_up: np.ndarray,
) -> None:
    """Advance every box to its time ``until``, or to ``most`` events if that is first."""
    for b in range(members.size):
        whole, part = up[b], group_up[b]
        while events[b] < most[b]:
            rise = (group - part) * rates[0, whole] if part < group else 0.0
            fall = part * rates[1, whole - 1] if part > 0 else 0.0
            w0, w1 = threefry(key[0], key[1] + members[b], np.uint64(0), np.uint64(events[b]))
            wait = exponential(w0) / (rise + fall)
            if clock[b] + wait > until[b]:
                break  # drawn again, the same, in the next call
            clock[b] += wait
            events[b] += 1
            change = 1 if to_unit(w1) * (rise + fall) < rise else -1
            whole += change
            part += change
        up[b], group_up[b] = whole, part


class MeanField:
    """Exact solver of a batch of boxes, of whole systems or of groups in them.

    Parameters
    ----------
    system : the model
    sites : n, spins of the whole
    up : (B,) how many of them are up
    members : (B,) noise keys
    group : m, spins that move; all unless given
    group_up : (B,) how many of those are up

    Attributes
    ----------
    up, group_up : (B,) int64, current numbers; whoever sets one of them sets both
    clock : (B,) float64, the time of each box's last event
    events : (B,) int64, how many there were
    """

    def __init__(
        self,
        system: CurieWeiss,
        sites: int,
        up: np.ndarray,
        members: np.ndarray,
        *,
        group: int | None = None,
        group_up: np.ndarray | None = None,
    ) -> None:
        require_rule(system, CurieWeiss)
        self.sites, self.group = sites, sites if group is None else group
        self.rates = system.heat_bath(sites)
        self.members = np.asarray(members, np.uint64)
        self.up = _counts("up", up)
        self.group_up = self.up.copy() if group_up is None else _counts("group_up", group_up)
        if not 1 <= self.group <= sites or (group is None) != (group_up is None):
            raise InputError(
                "group", group, f"1 to {sites} spins, with group_up", "Leave both out for all."
            )
        if not (self.up.shape == self.group_up.shape == self.members.shape == (self.up.size,)):
            shapes = self.up.shape, self.group_up.shape, self.members.shape
            raise InputError("up, group_up, members", shapes, "(B,) each", "Make them alike.")
        self._check()
        self.clock = np.zeros(self.up.size)
        self.events = np.zeros(self.up.size, np.int64)

    def _check(self) -> None:
        """Raise unless the counts, which may be written to, are some."""
        group, sites = self.group, self.sites
        others = self.up - self.group_up
        if (
            np.any((self.group_up < 0) | (self.group_up > group))
            or np.any((others < 0) | (others > sites - group))
        ):  # fmt: skip
            raise InputError(
                "up, group_up",
                "counts",
                f"0 to {group} in the group, 0 to {sites - group} outside",
                "Count the spins that are up.",
            )

    @property
    def magnetization(self) -> np.ndarray:
        """Of the whole systems, (B,) float64."""
        return np.asarray((2 * self.up - self.sites) / self.sites)

    def advance(
        self,
        *,
        seed: int,
        until: float | np.ndarray = np.inf,
        flips: int | None = None,
        stream: str = "mean-field",
    ) -> np.ndarray:
        """Advance to the absolute time ``until``, a number or (B,), or by ``flips`` events.

        Returns
        -------
        (B,) int64, the number of flips of each box
        """
        if flips is None and not np.all(np.isfinite(until)):
            raise InputError("until", "inf", "a finite time, or flips", "Give one of the two.")
        self._check()
        before = self.events.copy()
        most = before + np.int64(2**62 if flips is None else flips)
        ends = np.ascontiguousarray(np.broadcast_to(np.asarray(until, float), self.up.shape))
        _events(
            self.members,
            stream_key(seed, stream),
            ends,
            most,
            self.rates,
            self.group,
            self.clock,
            self.events,
            self.up,
            self.group_up,
        )
        return self.events - before


def _counts(name: str, values: np.ndarray) -> np.ndarray:
    """Whole numbers, (B,) int64, in memory of their own."""
    given = np.asarray(values)
    with np.errstate(invalid="ignore"):
        counts = given.astype(np.int64)
    if not np.array_equal(counts, given):
        wrong = given[counts != given][0].item()
        raise InputError(name, wrong, "whole numbers of spins", "Count the spins that are up.")
    return counts


@kernel
def _windows(
    states: np.ndarray,
    members: np.ndarray,
    key: np.ndarray,
    first: np.uint64,
    corners: np.ndarray,
    window: int,
    attempts: int,
    limits: np.ndarray,
) -> None:
    """A spin is up if a word of 64 bits is below the limit for the others that are up."""
    ny, nx = states.shape[1:]
    sites = window * window
    for b in range(states.shape[0]):
        up = 0
        for y in range(ny):
            for x in range(nx):
                up += states[b, y, x] > 0
        for i in range(corners.shape[0]):
            for a in range(attempts):
                w0, w1 = threefry(key[0], key[1] + members[b], first + np.uint64(i), np.uint64(a))
                site = uniform_below(w0, sites)
                y = (corners[i, 0] + site // window) % ny
                x = (corners[i, 1] + site % window) % nx
                others = up - (states[b, y, x] > 0)
                states[b, y, x] = 1 if w1 < limits[others] else -1
                up = others + (states[b, y, x] > 0)


def relax_windows(
    states: np.ndarray,
    members: np.ndarray,
    system: CurieWeiss,
    corners: np.ndarray,
    *,
    seed: int,
    window: int,
    duration: float,
    level: int = 0,
    stream: str = "mean-field-relax",
) -> None:
    """Relax windows of whole lattices, one after the other, in the mean field of the whole.

    Attempts of Glauber dynamics at random sites of the window, each a heat bath, so that the
    Gibbs measure stays invariant.

    Parameters
    ----------
    states : (B, Ly, Lx) int8, changed in place
    members : (B,) noise keys
    corners : (windows, 2) int64, their upper left sites
    window : side
    duration : attempts per spin of a window, rounded to whole attempts
    level : number of this relaxation, so that repeated ones draw fresh noise
    """
    require_rule(system, CurieWeiss)
    if not is_spins(states):
        raise spin_fault(states)
    _windows(
        states,
        np.asarray(members, np.uint64),
        stream_key(seed, stream),
        np.uint64(level << 32),
        corners,
        window,
        round(duration * window**2),
        _in_64_bits(system.heat_bath(states.shape[1] * states.shape[2])[0]),
    )


def _in_64_bits(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities in units of 2^-64, uint64; the largest is 1 - 2^-53."""
    return (np.minimum(probabilities, 1.0 - 2.0**-53) * 2.0**64).astype(np.uint64)
