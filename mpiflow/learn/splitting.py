r"""Rare first passages by multilevel splitting: of spins, of learned fields, of any process.

A process waits near its start, where a reaction coordinate is at or below ``home``, and now and
then gets to ``goal``. Between them lie levels. Of all that leaves home over the first level, a
share p gets to the goal before it is home again. Then the mean first passage is that of a renewal
process,

.. math:: E\,T = \frac{t_{up}}p + \Big(\frac1p - 1\Big) t_{back} + t_{on},

with the mean times from home up to the first level, from there back home of what fails, and on to
the goal of what does not [Cerou, Guyader, Lelievre and Malrieu, ALEA 8, 221 (2011)]. It is exact
if passages begin as returns home do: always for a chain that moves by one, and for others once
:math:`p \ll 1`, as a passage then has many returns before it.

p is a product of shares, each from trials that start where others crossed the level before
[forward flux sampling: Allen, Frenkel and ten Wolde, J. Chem. Phys. 124, 024102 (2006)]: for
p = 10^-6 six levels with shares of a tenth take thousands of trials, not millions. Levels that
are not given are placed by trials of their own, of which a given share gets so far; fresh trials
count, so that the estimate of p has no bias. All is made ``repeats`` times, each with its own
levels, since trials of one chain of levels have ancestors in common: the error is that between
repeats.

A process shows its state at steps. A passage between two of them is not seen, so what is estimated
is the first *seen* passage, as a direct run that looks as often would have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mpiflow.core.errors import InputError
from mpiflow.simulation.base import Simulated

#: Copies (n, ...) one step on, and the time of it: a number, or one for each.
Step = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, "float | np.ndarray"]]
#: The reaction coordinate of copies (n, ...), (n,).
Coordinate = Callable[[np.ndarray], np.ndarray]
#: Trials that a placed level needs beyond it; and least copies that leave home or place a level,
#: for which a quarter of the trials is enough.
FEWEST, LEAST_FEW = 5, 50


@dataclass(frozen=True)
class Passage:
    """What :func:`first_passage` found, each value with its error between repeats.

    Attributes
    ----------
    mean, error : of the first passage
    chance, chance_error : p of the module, from the first level to the goal before home
    levels : of each repeat, the goal last
    shares : of each repeat, how many of the trials from a level got to the next
    times : t_up, t_back and t_on, means over repeats
    steps : steps of one copy, over all repeats
    """

    mean: float
    error: float
    chance: float
    chance_error: float
    levels: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    times: tuple[float, float, float]
    steps: int


def first_passage(
    step: Step,
    coordinate: Coordinate,
    start: np.ndarray,
    *,
    home: float,
    goal: float,
    levels: Sequence[float] | None = None,
    first: float | None = None,
    trials: int = 500,
    share: float = 0.2,
    repeats: int = 8,
    seed: int = 0,
    longest: int = 10**7,
) -> Passage:
    """The mean first passage from home to a goal; see the module.

    Parameters
    ----------
    step : of copies (n, ...) that know nothing of each other, with the generator to use; one with
        noise of its own, such as a simulation, must never give the same noise twice
    coordinate : a number of each copy; not below ``goal`` is there, not above ``home`` is home
    start : (...) the state to begin with, at home
    levels : rising from above ``home`` to below ``goal``; placed for None
    first : the first level if the others are placed; unless given an eighth of the way
    trials : from each level
    share : of trials from a level that get to the next, if levels are placed
    repeats : 2 or more, for errors
    seed : of the generators
    longest : steps of a trial, or of a wait for the first level, at most

    Raises
    ------
    InputError : levels, shares or numbers that cannot work; a start that is not home; no trial
        that gets from one level to the next, or none that ends
    """
    start = np.asarray(start)
    given = None if levels is None else [float(v) for v in levels]
    _check(coordinate, start, home, goal, given, first, trials, share, repeats)
    found = []
    for generator in np.random.default_rng(seed).spawn(repeats):
        ladder = _Ladder(step, coordinate, home, goal, trials, share, longest, generator)
        found.append(ladder.climb(start, given, first))
    chance, up, back, on = np.array([one[:4] for one in found]).T
    # The mean of p over repeats has no bias, that of 1 / p would have.
    p = chance.mean()
    times = float(up.mean()), float(back.mean()), _mean_known(on, chance)
    mean = times[0] / p + (1 / p - 1) * times[1] + times[2]
    left = [_without(i, chance, up, back, on) for i in range(repeats)]
    spread = float(np.sqrt((repeats - 1) * np.var(left)))
    return Passage(
        float(mean),
        spread,
        float(p),
        float(chance.std(ddof=1) / np.sqrt(repeats)),
        tuple(one[4] for one in found),
        tuple(one[5] for one in found),
        times,
        sum(one[6] for one in found),
    )


def _mean_known(on: np.ndarray, chance: np.ndarray) -> float:
    return float((on * chance).sum() / chance.sum())


def _without(i: int, chance: np.ndarray, up: np.ndarray, back: np.ndarray, on: np.ndarray) -> float:
    """The mean first passage without one repeat, for the jackknife."""
    chance, up, back, on = (np.delete(a, i) for a in (chance, up, back, on))
    p = chance.mean()
    return float(up.mean() / p + (1 / p - 1) * back.mean() + _mean_known(on, chance))


def step_of(simulation: Simulated, duration: float) -> Step:
    """Steps of the members of a simulation, of spins or of a learned field, on one rank.

    A state is that of :attr:`Simulated.state` without the axis of members. Members start where
    copies are and take their noise from the simulation's seed and step, which only rises: no noise
    comes twice. As many members as there are trials are best; what is left of them is wasted.

    Parameters
    ----------
    simulation : whose state is replaced
    duration : of a step, in its time; the state is looked at after each

    Returns
    -------
    what :func:`first_passage` takes as ``step``

    Raises
    ------
    InputError : members are dealt to several ranks
    """
    members = len(simulation.state)
    if members != simulation.members:
        allowed = "one rank that has all members"
        raise InputError("comm", simulation.comm.size, allowed, "Use comm=MPI.COMM_SELF.")

    def step(states: np.ndarray, _: np.random.Generator) -> tuple[np.ndarray, float]:
        out = np.empty_like(states)
        for first in range(0, len(states), members):
            some = states[first : first + members]
            simulation.set_state(some[np.arange(members) % len(some)])
            simulation.advance_to(simulation.time + duration)
            out[first : first + members] = simulation.state[: len(some)]
        return out, duration

    return step


class _Ladder:
    """One repeat: levels from home to the goal, and what crosses them."""

    def __init__(
        self,
        step: Step,
        coordinate: Coordinate,
        home: float,
        goal: float,
        trials: int,
        share: float,
        longest: int,
        generator: np.random.Generator,
    ) -> None:
        self.step, self.coordinate, self.home, self.goal = step, coordinate, home, goal
        self.trials, self.share, self.longest = trials, share, longest
        self.generator, self.steps = generator, 0

    def climb(
        self, start: np.ndarray, given: list[float] | None, first: float | None
    ) -> tuple[float, float, float, float, tuple[float, ...], tuple[float, ...], int]:
        """p, t_up, t_back, t_on, levels, shares and steps."""
        if given:
            lowest = given[0]
        else:
            lowest = self.home + (self.goal - self.home) / 8 if first is None else first
        states, up = self.leave(start, lowest)
        ages = np.zeros(len(states))
        levels, shares, chance, back = [lowest], [], 1.0, 0.0
        while levels[-1] < self.goal:
            place = len(levels)
            if given is None:
                top = self.next_level(states)
            else:
                top = given[place] if place < len(given) else self.goal
            reached, ages_there, returned, _ = self.launch(states, ages, top, self.trials)
            if not len(reached):
                raise InputError(
                    "levels", f"{levels[-1]:.6g}, {top:.6g}",
                    f"such that some of {self.trials} trials get from one to the next",
                    "Use more trials, or levels closer together.",
                )  # fmt: skip
            back += chance * returned.sum() / self.trials
            shares.append(len(reached) / self.trials)
            chance *= shares[-1]
            states, ages = reached, ages_there
            levels.append(top)
        back = back / (1 - chance) if chance < 1 else 0.0
        return (
            chance, up, back, float(ages.mean()), tuple(levels), tuple(shares), self.steps,
        )  # fmt: skip

    def leave(self, start: np.ndarray, lowest: float) -> tuple[np.ndarray, float]:
        """States that have come from home to the lowest level, and how long that took on average.

        A few copies go out and come home twice, uncounted, and out again.
        """
        copies = np.repeat(start[None], self._few(), axis=0)
        spent = np.zeros(0)
        for _ in range(2):
            out, spent = self._until(copies, lambda x: x >= lowest)
            copies, _ = self._until(out, lambda x: x <= self.home, again=(lowest, start))
        copies, spent = self._until(copies, lambda x: x >= lowest)
        return copies, float(spent.mean())

    def _until(
        self,
        states: np.ndarray,
        there: Callable[[np.ndarray], np.ndarray],
        again: tuple[float, np.ndarray] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """All copies where they first are ``there``, and how long it took each of them.

        With ``again`` what gets to the goal begins anew at the start.
        """
        states, spent = states.copy(), np.zeros(len(states))
        moving = np.flatnonzero(~there(self.coordinate(states)))
        for _ in range(self.longest):
            if not len(moving):
                return states, spent
            new, took = self._stepped(states[moving])
            x = self.coordinate(new)
            if again is not None:
                new[x >= self.goal] = again[1]
                x = np.where(x >= self.goal, self.home, x)
            states[moving] = new
            spent[moving] += took
            moving = moving[~there(x)]
        raise self._endless()

    def launch(
        self, states: np.ndarray, ages: np.ndarray, top: float, trials: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Trials from some of the states, until they are at the top or at home.

        Returns
        -------
        states at the top and times since the first level, these times of what came home, and the
        highest coordinate of all trials
        """
        chosen = self.generator.integers(len(states), size=trials)
        now, age = states[chosen], ages[chosen].copy()
        x = self.coordinate(now)
        highest, moving = x.copy(), np.flatnonzero(x < top)
        for _ in range(self.longest):
            if not len(moving):
                up = highest >= top
                return now[up], age[up], age[~up], highest
            new, took = self._stepped(now[moving])
            now[moving] = new
            age[moving] += took
            x = self.coordinate(new)
            highest[moving] = np.maximum(highest[moving], x)
            moving = moving[(x < top) & (x > self.home)]
        raise self._endless()

    def next_level(self, states: np.ndarray) -> float:
        """Where the share of trials gets to, or the goal."""
        *_, highest = self.launch(states, np.zeros(len(states)), self.goal, self._few())
        start = float(self.coordinate(states).min())
        level = float(np.quantile(highest, 1 - self.share))
        if level >= self.goal or np.mean(highest >= self.goal) >= self.share:
            return self.goal
        # Of a coordinate of few values many trials may end where they began: a value more.
        beyond = np.unique(highest[highest > start])
        enough = [v for v in beyond if np.count_nonzero(highest >= v) >= FEWEST]
        if level <= start and not enough:
            raise InputError(
                "trials", self.trials, f"so many that {FEWEST} get beyond {start:.6g}",
                "Use more trials, or a finer coordinate.",
            )  # fmt: skip
        return level if level > start else float(enough[0])

    def _few(self) -> int:
        return max(min(LEAST_FEW, self.trials), self.trials // 4)

    def _stepped(self, states: np.ndarray) -> tuple[np.ndarray, float | np.ndarray]:
        self.steps += len(states)
        return self.step(states, self.generator)

    def _endless(self) -> InputError:
        allowed = "enough for every trial to get up or home"
        return InputError("longest", self.longest, allowed, "Move home nearer, or take more steps.")


def _check(
    coordinate: Coordinate,
    start: np.ndarray,
    home: float,
    goal: float,
    levels: list[float] | None,
    first: float | None,
    trials: int,
    share: float,
    repeats: int,
) -> None:
    at = float(coordinate(start[None])[0])
    if not (np.isfinite(home) and np.isfinite(goal) and home < goal):
        raise InputError("goal", goal, f"above home={home:g}", "Turn the coordinate round.")
    if not at <= home:
        raise InputError("start", at, f"at home, at or below {home:g}", "Move home, or the start.")
    between = levels if levels is not None else [] if first is None else [first]
    if levels == [] or any(
        not a < b for a, b in zip([home, *between], [*between, goal], strict=True)
    ):
        allowed = f"rising, above home={home:g} and below goal={goal:g}"
        raise InputError("levels" if levels is not None else "first", between, allowed, "Sort.")
    for name, value, least in (("trials", trials, 2 * FEWEST), ("repeats", repeats, 2)):
        if value < least:
            raise InputError(name, value, f"{least} or more", "Use more.")
    if not 0 < share < 1:
        raise InputError("share", share, "between 0 and 1", "Try 0.2.")
