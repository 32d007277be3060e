"""When frames are due."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from mpiflow.core.errors import InputError
from mpiflow.core.schedule import MOST_A_DECADE, Schedule


@pytest.mark.parametrize(
    ("start", "end", "every", "targets"),
    [
        (0, 3, 1, [0, 1, 2, 3]),
        (0, 3.5, 1, [0, 1, 2, 3, 3.5]),
        (2, 2.5, 1, [2, 2.5]),
        (0, 0.3, 0.1, [0, 0.1, 0.2, 3 * 0.1]),  # 3 * 0.1 is not 0.3: no frame twice
        (0, 1e-9, 1e-10, [i * 1e-10 for i in range(11)]),
        (100, 400, 100, [100, 200, 300, 400]),
    ],
)
def test_targets(start, end, every, targets):
    schedule = Schedule(start, end, every)
    assert schedule.last == len(targets) - 1
    assert [schedule.target(i) for i in range(schedule.last + 1)] == pytest.approx(
        targets, rel=1e-15
    )


@pytest.mark.parametrize(
    ("given", "targets"),
    [
        ((0, 100, 1, 1), [0, 1, 10, 100]),
        ((0, 50, 0.1, 2), [0, 0.1, 0.316228, 1, 3.16228, 10, 31.6228, 50]),
        ((2, 12, 0.1, 1), [2, 2.1, 3, 12]),
        ((0, 1, 3, 5), [0, 1]),
        # Whole steps, none of them twice: 1.58, 2.51, 3.98, ... steps of 0.1 are no places.
        ((0, 1, 0.1, 5, 0.1), [0, 0.1, 0.2, 0.3, 0.4, 0.6, 1]),
        ((0, 30, 0.5, 3, 0.5), [0, 0.5, 1, 2.5, 5, 11, 23, 30]),
    ],
)
def test_targets_whose_distances_grow(given, targets):
    schedule = Schedule(*given)
    assert [schedule.target(i) for i in range(schedule.last + 1)] == targets
    assert schedule.target(schedule.last + 7) == targets[-1]
    for here in targets[:-1]:
        assert schedule.next(here) == targets.index(here)
        assert schedule.next(here + 0.01) == targets.index(here) + 1


def test_whole_decades_are_exact_and_parts_of_them_are_short_numbers():
    schedule = Schedule.of(0, 1e5, 1e-7, per_decade=MOST_A_DECADE)
    places = [schedule.target(i) for i in range(1, schedule.last + 1)]
    assert len(places) == 12 * MOST_A_DECADE + 1
    assert places[::MOST_A_DECADE] == [float(f"1e{n}") for n in range(-7, 6)]
    assert all(b > a for a, b in pairwise(places))
    assert all(float(f"{place:.6g}") == place for place in places)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"per_decade": 0}, "^frames_per_decade=0: allowed is 1 to 1000"),
        ({"per_decade": 1001}, "^frames_per_decade=1001"),
        ({"per_decade": 5, "every": math.nan}, "^save_every=nan"),
        ({"per_decade": 5, "every": 1e-14}, "^save_every=1e-14: .*1e-12 or more"),
        ({"per_decade": 5, "every": 1e-30}, "^save_every=1e-30: .*at most 1e.15 frames"),
    ],
)
def test_schedules_that_make_no_sense(options, says):
    with pytest.raises(InputError, match=says):
        Schedule.of(0, 1, **{"every": 0.1} | options)
