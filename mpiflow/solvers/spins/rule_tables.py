r"""Tables of a spin rule, made once on the host: what random words are compared with.

A kernel that finds a site in a state and a neighbourhood looks up one row of q integers in units
of 2^-63. With v the 63 top bits of a random word, the site keeps its state if v is not below the
last of them, else it takes the first state whose number is above v. So no device evaluates the
rule, and all of them decide alike. Each chance is rounded by itself before they are added up: a
rare one is right to 2^-64, also where those before it add up to nearly 1.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import product
from typing import NamedTuple, cast

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.systems.rule import MOST_STATES, SpinRule

Function = Callable[..., float]

#: Most numbers in a table of a rule: 12 states with weights, 8 with rates.
LARGEST_TABLE = 2**18
#: Largest weight or rate: sums of 127 of them and their squares are finite.
LARGEST_NUMBER = 1e150
#: Neighbourhoods at which a rule is looked at that is too large for a table.
_SAMPLES = 64
_ONE = 2.0**63


# -- what is refused ---------------------------------------------------------------------------


def check_rule(rule: SpinRule) -> None:
    """Raise unless a rule can be run.

    Raises
    ------
    InputError : states, parameters or a function that are none; a weight or a rate that is not a
        finite number, 0 or more; a neighbourhood in which all weights are 0
    """
    if not isinstance(rule, SpinRule):
        raise InputError("system", type(rule).__name__, "a SpinRule", "Inherit from SpinRule.")
    states = getattr(rule, "states", None)
    whole = isinstance(states, int | np.integer) and not isinstance(states, bool)
    if not (whole and 2 <= rule.states <= MOST_STATES):
        raise InputError("states", states, f"2 to {MOST_STATES}", "Try 3.")
    last = MOST_STATES + 1 - rule.states
    if not (isinstance(rule.lowest, int | np.integer) and -MOST_STATES <= rule.lowest <= last):
        allowed = f"a whole number from {-MOST_STATES} to {last}, so that a byte holds all states"
        raise InputError("lowest", rule.lowest, allowed, "Try 0.")
    parameters = rule.parameters
    if not isinstance(parameters, tuple):
        raise InputError("parameters", parameters, "a tuple of finite numbers", "Return a tuple.")
    for number in parameters:
        if not (isinstance(number, int | float | np.number) and math.isfinite(number)):
            raise InputError("parameters", number, "finite numbers", "Look at the parameters.")
    if tabled(rule):
        table(rule)
    else:
        _look_at(rule)


def function_of(rule: SpinRule) -> Function:
    """The weight or the rate of a rule, as a plain function."""
    given = [name for name in ("weight", "rate") if getattr(rule, name) is not None]
    if len(given) != 1:
        raise InputError(
            "system",
            type(rule).__name__,
            "a rule with one of the functions weight and rate",
            "Define one of them as a static method.",
        )
    function = getattr(rule, given[0])
    if inspect.ismethod(function) or not callable(function):
        raise InputError(
            given[0],
            function,
            "a static method or a plain function of numbers",
            "Write @staticmethod above it, and let it take what it needs from parameters.",
        )
    return cast(Function, function)


def numbers_of(rule: SpinRule) -> tuple[float, ...]:
    """The parameters of a rule as float."""
    return tuple(float(number) for number in rule.parameters)


# -- what a rule says ------------------------------------------------------------------------------


def tabled(rule: SpinRule) -> bool:
    """Whether all that the function can say fits a table, so that no kernel has to ask it."""
    return int(rule.states) ** (6 if rule.by_rate else 5) <= LARGEST_TABLE


def require_table(rule: SpinRule) -> None:
    """Raise unless the n-fold way can have a rule."""
    if not tabled(rule):
        raise InputError(
            "states",
            rule.states,
            f"at most {8 if rule.by_rate else 12} for the n-fold way, which needs all rates in a "
            "table",
            "Use --solver sublattice.",
        )


def table(rule: SpinRule) -> np.ndarray:
    """All weights (q^4, q), or all rates (q^4, q, q) from own to new, float64, not to be written.

    The first index is the neighbourhood, ``((north q + west) q + east) q + south`` of states
    counted from the lowest.
    """
    function = function_of(rule)
    return _table(function, rule.by_rate, int(rule.states), int(rule.lowest), numbers_of(rule))


@lru_cache(maxsize=8)
def _table(
    function: Function, by_rate: bool, states: int, lowest: int, parameters: tuple[float, ...]
) -> np.ndarray:
    values = range(lowest, lowest + states)
    around = product(values, repeat=4)
    if by_rate:
        pairs = list(product(values, repeat=2))
        asked: Iterable[tuple[int, ...]] = (
            (*pair, *near) for near in around for pair in pairs if pair[0] != pair[1]
        )
        out: np.ndarray = np.zeros((states**4, states, states))
        answers = _ask(function, asked, parameters)
        out[:, ~np.eye(states, dtype=bool)] = answers.reshape(states**4, -1)
    else:
        asked = ((state, *near) for near in around for state in values)
        out = _ask(function, asked, parameters).reshape(states**4, states)
        empty = np.flatnonzero(out.max(axis=1) <= 0)
        if empty.size:
            raise _no_weight([int(n) + lowest for n in np.unravel_index(empty[0], (states,) * 4)])
    out.flags.writeable = False
    return out


def _ask(
    function: Function, asked: Iterable[tuple[int, ...]], parameters: tuple[float, ...]
) -> np.ndarray:
    """What a function returns for each of some arguments, (n,) float64."""
    name, out = getattr(function, "__name__", "rule"), []
    for arguments in asked:
        shown = f"{name}{arguments}"
        try:
            number = float(function(*arguments, parameters))
        except Exception as error:
            raise InputError(
                name,
                shown,
                "a function of numbers that returns a number, 0 or more",
                f"It raised {type(error).__name__}: {error}.",
            ) from error
        if not 0 <= number <= LARGEST_NUMBER:
            allowed = f"a number from 0 to {LARGEST_NUMBER:g}"
            raise InputError(name, number, allowed, f"Look at what {shown} returns.")
        out.append(number)
    return np.array(out)


def _no_weight(near: Sequence[int]) -> InputError:
    return InputError(
        "weight",
        0.0,
        "above 0 for one state at least in every neighbourhood",
        f"With the neighbours {tuple(near)} all are 0: too low a temperature, perhaps.",
    )


def _look_at(rule: SpinRule) -> None:
    """Ask a function that is too large for a table at some neighbourhoods, the same ones always."""
    function, numbers = function_of(rule), numbers_of(rule)
    values = rule.values.astype(int).tolist()
    alike = [[value] * 4 for value in values]
    for row in alike + np.random.default_rng(0).choice(values, (_SAMPLES, 4)).tolist():
        if rule.by_rate:
            own = row[0]
            _ask(function, ((own, new, *row) for new in values if new != own), numbers)
        elif not _ask(function, ((state, *row) for state in values), numbers).any():
            raise _no_weight(row)


# -- what words are compared with -----------------------------------------------------------------


class Rows(NamedTuple):
    """Rows of a table, and which one is a site's.

    Attributes
    ----------
    values : (n, q), a row for each neighbourhood, or for each neighbourhood and state
    around, own : a site's row is ``around`` times the number of its neighbourhood plus ``own``
        times that of its state
    """

    values: np.ndarray
    around: int
    own: int


def thresholds(rule: SpinRule, time: float) -> Rows:
    """What a site does within a time of its neighbours standing still: exactly, (n, q) uint64.

    Of a rule given by weights it takes a new state with probability :math:`1 - e^{-t}`, which may
    be 1 (an infinite time); of one given by rates it is the propagator :math:`e^{t Q}`.
    """
    if rule.by_rate:
        chances = propagators(table(rule), time)
        return Rows(_cumulative(chances.reshape(-1, rule.states), 1.0), rule.states, 1)
    return Rows(_cumulative(shares(rule), -math.expm1(-time)), 1, 0)


def shares(rule: SpinRule) -> np.ndarray:
    """Heat-bath probabilities of the states in each neighbourhood, (q^4, q) float64."""
    weights = table(rule)
    weights = weights / weights.max(axis=1, keepdims=True)
    return np.asarray(weights / _sum(weights)[:, None])


def _sum(rows: np.ndarray) -> np.ndarray:
    """Of each row, over sorted numbers: states that change places give the same bits."""
    total = np.zeros(len(rows))
    for column in np.sort(rows, axis=1).T:
        total += column
    return total


def propagators(rates: np.ndarray, time: float) -> np.ndarray:
    r"""Transition probabilities :math:`e^{t Q}` of chains from their rates, (n, q, q) float64.

    By uniformisation, :math:`\sum_k e^{-m} \frac{m^k}{k!} P^k` with :math:`P = 1 + Q / \Lambda`
    and :math:`m = \Lambda t / 2^s` below 1, squared s times: sums and products of positive numbers
    alone, so that rare transitions keep their digits.
    """
    q = rates.shape[-1]
    leaving = rates.sum(axis=-1)
    largest = 2.0 * float(leaving.max())  # twice the largest: no digit of 1 - R / largest is lost
    each = np.broadcast_to(np.eye(q), rates.shape)
    if largest == 0.0:
        return each.copy()
    squarings = max(0, math.ceil(math.log2(largest) + math.log2(time)) + 1)
    mean = largest * math.ldexp(time, -squarings)
    step = rates / largest + each * (1.0 - leaving / largest)[..., None]
    power, weight = each, math.exp(-mean)
    total = weight * each
    for k in range(1, 20):  # 1 / 20! is below 2^-60
        power, weight = power @ step, weight * mean / k
        total = total + weight * power
    for _ in range(squarings):
        total = total @ total
        total = total / total.sum(axis=-1, keepdims=True)
    return np.asarray(total / total.sum(axis=-1, keepdims=True))


def _cumulative(chances: np.ndarray, part: float) -> np.ndarray:
    """Running sums of ``part`` times each row of chances, which add up to 1, in units of 2^-63."""
    each = np.rint(chances * part * _ONE).astype(np.uint64)
    whole = np.uint64(round(math.ldexp(part, 63)))
    likeliest = (np.arange(len(each)), chances.argmax(axis=1))
    each[likeliest] += whole - each.sum(axis=1)  # what is left of rounding; wraps round zero
    return np.cumsum(each, axis=1)


# -- the n-fold way ------------------------------------------------------------------------------


class Classes(NamedTuple):
    """Sites by the rate at which they change at all.

    Attributes
    ----------
    of : (q^5,) uint32, the class of a site; index: q times its neighbourhood's number plus its
        state's
    rates : (classes,) float64, increasing
    shares : rates of the new states, with a row for each neighbourhood (and state), as weighted
    """

    of: np.ndarray
    rates: np.ndarray
    shares: Rows


def classes(rule: SpinRule) -> Classes:
    """The classes of a rule: one for every different total rate.

    Rates below 2e-308 are 0: nothing can be told of what they are divided by.
    """
    q = rule.states
    if rule.by_rate:
        rows = Rows(table(rule).reshape(-1, q).copy(), q, 1)
        leaving = _sum(rows.values)
    else:
        rows = Rows(shares(rule), 1, 0)
        others = np.empty((len(rows.values), q))
        for own in range(q):
            others[:, own] = _sum(np.delete(rows.values, own, axis=1))
        leaving = others.reshape(-1)
    leaving = np.where(leaving < np.finfo(np.float64).tiny, 0.0, leaving)
    rates, of = np.unique(leaving, return_inverse=True)
    return Classes(of.reshape(-1).astype(np.uint32), rates, rows)
