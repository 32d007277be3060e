"""When frames are due."""

from __future__ import annotations

import pytest

from mpiflow.core.schedule import Schedule


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
