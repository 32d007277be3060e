r"""Passes of a spin rule that is too large for a table: its function, compiled into a kernel.

A trial of a site asks the function for all states. Of weights the words of one Threefry call at
(half pass, site) decide whether the site takes a new state, and which: each weight is rounded to
2^-56 of the largest one, and a word picks among the sum of these integers, so that no order of
floating-point additions matters. Of rates it follows the site event by event to the end of the
pass, with exponential waiting times, a call for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mpiflow.core.device import CudaKernel, outside
from mpiflow.core.errors import InputError
from mpiflow.core.noise import site_counter, threefry, to_unit, upper_half
from mpiflow.solvers.spins.half_lattice import place_in, site_of
from mpiflow.solvers.spins.rule_tables import LARGEST_NUMBER, Function, function_of, numbers_of
from mpiflow.systems.rule import SpinRule

#: Changes of one site in a pass after which a rule given by rates needs a shorter step.
MOST_CHANGES = 512
_ONE_CHANGE = 54  # so many bits are left for the number of a half pass
_WEIGHT = 2.0**56  # 127 of these fit 63 bits


class Kernels(NamedTuple):
    """Of one function, as :mod:`~mpiflow.solvers.spins.rule_kernels` has them for tables."""

    rows: Any
    cuda: CudaKernel


def kernels(system: SpinRule) -> Kernels:
    """Kernels with the function of a rule compiled in.

    Raises
    ------
    InputError : Numba cannot compile the function
    """
    function = function_of(system)
    made, trial = _kernels(function, system.by_rate)
    try:
        near = (system.lowest,) * 5
        word = np.uint64(0)
        states = int(system.lowest), int(system.states)
        trial(word, word, word, 0, 0, word, 1.0, *near, *states, numbers_of(system))
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "nothing")
        raise InputError(
            getattr(function, "__name__", "rule"),
            type(system).__name__,
            "a function that Numba compiles, since so many states do not fit a table",
            f"{type(error).__name__} said: {reason}",
        ) from error
    return made


def threshold(time: float) -> np.uint64:
    """The chance to take a new state within a time, in units of 2^-63."""
    return np.uint64(round(math.ldexp(-math.expm1(-time), 63)))


def fault(system: SpinRule) -> InputError:
    """What to say of trials that could not be made."""
    name = "rate" if system.by_rate else "weight"
    also = f", and at most {MOST_CHANGES} changes of a site in a step" if system.by_rate else ""
    return InputError(
        name,
        type(system).__name__,
        f"numbers from 0 to {LARGEST_NUMBER:g}, not all weights 0, in every neighbourhood{also}",
        "The states are no use any more. Look at the function, or take a shorter step.",
    )


@lru_cache(maxsize=16)
def _kernels(function: Function, by_rate: bool) -> tuple[Kernels, Any]:
    trial = (_trial_of_rates if by_rate else _trial_of_weights)(outside(function))
    return Kernels(_rows_with(trial), _cuda_with(trial)), trial


# -- the trial of a site ---------------------------------------------------------------------------
# Arguments: key, half pass, global site, threshold and length of the pass, own state, north, west,
# east, south, lowest state, number of states, parameters. Returns the new state, or one below the
# lowest if the function returns what it must not.


def _trial_of_weights(weight: Any) -> Any:
    @outside
    def trial(  # type: ignore[no-untyped-def]
        k0, k1, number, gy, gx, bound, time, own, north, west, east, south, lowest, states, numbers
    ):
        decision, choice = threefry(k0, k1, number, site_counter(gy, gx))
        if np.uint64(decision) >> np.uint64(1) >= bound:
            return own
        largest, sound = 0.0, True
        for state in range(lowest, lowest + states):
            w = float(weight(state, north, west, east, south, numbers))
            sound = sound and 0.0 <= w <= LARGEST_NUMBER
            largest = max(largest, w)
        if not (sound and largest > 0.0):
            return lowest - 1
        total = np.uint64(0)
        for state in range(lowest, lowest + states):
            w = weight(state, north, west, east, south, numbers) / largest
            total += np.uint64(w * _WEIGHT + 0.5)
        left, new = upper_half(np.uint64(choice), total), lowest
        for state in range(lowest, lowest + states):
            w = weight(state, north, west, east, south, numbers) / largest
            share = np.uint64(w * _WEIGHT + 0.5)
            if left < share:
                new = state
                break
            left -= share
        return new

    return trial


def _trial_of_rates(rate: Any) -> Any:
    @outside
    def trial(  # type: ignore[no-untyped-def]
        k0, k1, number, gy, gx, bound, time, own, north, west, east, south, lowest, states, numbers
    ):
        left, now = time, own
        for change in range(MOST_CHANGES):
            total, sound = 0.0, True
            for new in range(lowest, lowest + states):
                if new != now:
                    r = float(rate(now, new, north, west, east, south, numbers))
                    sound = sound and 0.0 <= r <= LARGEST_NUMBER
                    total += r
            if not sound:
                return lowest - 1
            call = number + (np.uint64(change) << np.uint64(_ONE_CHANGE))
            wait, choice = threefry(k0, k1, call, site_counter(gy, gx))
            left += math.log(to_unit(np.uint64(wait))) / total if total > 0.0 else -math.inf
            if left <= 0.0:
                return now
            rest, before = to_unit(np.uint64(choice)) * total, now
            for new in range(lowest, lowest + states):
                r = 0.0
                if new != before:
                    r = float(rate(before, new, north, west, east, south, numbers))
                if r > 0.0:
                    now = new  # the last of these if rounding leaves more than there is
                    if rest < r:
                        break
                    rest -= r
        return lowest - 1

    return trial


# -- kernels ---------------------------------------------------------------------------------------


def _rows_with(trial: Any) -> Any:
    @outside
    def update(  # type: ignore[no-untyped-def]
        field, halo, origins, members, ly, lx, key, first, passes, colour, lowest, states, numbers,
        time, bound, boxes, rows, counts,
    ):  # fmt: skip
        nx = field.shape[2] - 2 * halo
        for b in range(boxes[0], boxes[1]):
            for iy in range(rows[0], rows[1]):
                gy, y = (origins[b, 0] + iy) % ly, iy + halo
                for ix in range(nx):
                    gx, x = (origins[b, 1] + ix) % lx, ix + halo
                    if (gy + gx) & 1 != colour:
                        continue
                    for k in range(passes):
                        own = np.int64(field[b, y, x])
                        new = trial(
                            key[0], key[1] + members[b], first + np.uint64(k), gy, gx, bound, time,
                            own, np.int64(field[b, y - 1, x]), np.int64(field[b, y, x - 1]),
                            np.int64(field[b, y, x + 1]), np.int64(field[b, y + 1, x]),
                            lowest, states, numbers,
                        )  # fmt: skip
                        if new < lowest:
                            counts[b, 1] += 1
                        elif new != own:
                            counts[b, 0] += 1
                            field[b, y, x] = new

    return update


def _cuda_with(trial: Any) -> CudaKernel:
    @CudaKernel
    def update_cuda(cuda: Any) -> Callable[..., None]:
        def update(  # type: ignore[no-untyped-def]
            field, halo, origins, members, ly, lx, key, first, passes, colour, lowest, states,
            numbers, time, bound, counts, span,
        ):  # fmt: skip
            """One thread for each site of the colour in a span; same bits as the CPU kernel."""
            b, iy, j = place_in(cuda.grid(1), span)
            if b < field.shape[0]:
                gy, gx, ix = site_of(iy, j, origins[b, 0], origins[b, 1], ly, lx, colour)
                if span[4] <= ix < span[5]:
                    y, x = iy + halo, ix + halo
                    for k in range(passes):
                        own = np.int64(field[b, y, x])
                        new = trial(
                            key[0], key[1] + members[b], first + np.uint64(k), gy, gx, bound, time,
                            own, np.int64(field[b, y - 1, x]), np.int64(field[b, y, x - 1]),
                            np.int64(field[b, y, x + 1]), np.int64(field[b, y + 1, x]),
                            lowest, states, numbers,
                        )  # fmt: skip
                        if new < lowest:
                            cuda.atomic.add(counts, (b, 1), 1)
                        elif new != own:
                            cuda.atomic.add(counts, (b, 0), 1)
                            field[b, y, x] = new

        return update

    return update_cuda
