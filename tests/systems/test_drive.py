"""Parameters that change in time: how they are written, and what they are when."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiflow import Drive, InputError, Ising, Potts
from mpiflow.core.schedule import Clock
from mpiflow.files import drives
from mpiflow.systems.drive import piece, stretches


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("quench 3 1.5 at 2", {0: 3, 1.999: 3, 2: 1.5, 9: 1.5}),
        ("ramp 3 1 over 4", {0: 3, 1: 2.5, 2: 2, 4: 1, 9: 1}),
        ("ramp 3 1 over 4 from 10", {0: 3, 10: 3, 12: 2, 20: 1}),
        ("hysteresis 0.5 over 10", {0: 0, 2: 0.5, 4: 0, 6: -0.5, 8: 0, 10: 0.5, 11: 0.5}),
        ("ac 0.5 period 4 offset 1", {0: 1, 1: 1.5, 3: 0.5, 4: 1, 401: 1.5}),
        ("points 0 1 2 2 2 5 4, 6", {0: 1, 1: 1.5, 2: 5, 3: 5.5, 7: 6}),
    ],
)
def test_texts_say_values_and_their_own_text_says_the_same(
    text: str, values: dict[float, float]
) -> None:
    drive = Drive.read(f"field {text}")
    for time, value in values.items():
        assert drive.at(time)["field"] == pytest.approx(value, abs=1e-15)
    assert Drive.read(drive.text) == drive


def test_a_jump_has_two_values() -> None:
    drive = Drive(temperature="quench 3 1 at 2", field=lambda t: t)
    assert drive.before(2.0) == {"temperature": 3.0, "field": 2.0}
    assert drive.at(2.0) == {"temperature": 1.0, "field": 2.0}
    assert drive.jumps == [2.0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("field", "NAME KIND NUMBERS"),
        ("field rmp 1 2 over 3", "Did you mean ramp?"),
        ("field ramp 1 2", r"field ramp A B over T"),
        ("field ramp 1 2 over 3 from", r"field ramp A B over T"),
        ("field ramp 1 2 over 3 over 4", r"field ramp A B over T"),
        ("field ramp 1 2 over 0", "above 0"),
        ("field ramp 1 x over 3", r"field ramp A B over T"),
        ("field ac 1 period 0", "period above 0"),
        ("field points 0 1 2", r"points T V"),
        ("field points 0 1 2 3 1 2", "do not decrease"),
        ("field points 0 nan", "finite"),
        ("field ac 1 period 2; field ac 1 period 2", "field once"),
        ("fild ac 1 period 2", "temperature, field, coupling"),
        ("temperature ramp 3 -1 over 2", "above 0"),
    ],
)
def test_what_is_no_schedule_is_refused_with_how_to_write_it(given: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Drive.read(given).check(Ising(2.0))


def test_whole_numbers_of_a_system_do_not_change() -> None:
    with pytest.raises(InputError, match="temperature, coupling, field"):
        Drive(states="ramp 2 3 over 4").check(Potts(1.0))


def test_a_function_that_fails_is_named() -> None:
    def broken(time: float) -> float:
        return math.nan if time else 1 / 0

    drive = Drive(field=broken)
    with pytest.raises(InputError, match=r"broken\(0\).*ZeroDivisionError"):
        drive.check(Ising(2.0))
    with pytest.raises(InputError, match=r"broken\(1\)"):
        drive.at(1.0)


def test_steps_have_the_values_of_their_middle_and_equal_ones_go_together() -> None:
    clock = Clock(0.5)
    drive = Drive(field="points 0 0 2 2 3 2 3 7")
    found = [(law.field, first, n) for law, first, n in stretches(drive, Ising(2.0), clock, 0, 8)]
    assert found == [
        (0.25, 0, 1), (0.75, 1, 1), (1.25, 2, 1), (1.75, 3, 1), (2.0, 4, 2), (7.0, 6, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("interval", [0.1, 0.25, 3.0, 1 / 3])
def test_pieces_follow_each_other_and_end_at_jumps(interval: float) -> None:
    drive, time, ends = Drive(field="points 0 1 1.3 1 1.3 2 1.45 2 1.45 3"), 0.0, []
    while time < 7:
        now = piece(drive, interval, time)
        assert time < now.middle < now.end
        assert now == piece(drive, interval, 0.5 * (time + now.end))  # wherever in it one is
        time = now.end
        ends.append(time)
    assert {1.3, 1.45} <= set(ends)


@pytest.mark.parametrize("kind", ["csv", "npy", "named.npy", "toml", "words.toml"])
def test_files_have_the_same_as_texts(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"table.{kind}"
    rows: Any = [(0.0, 3.0, 0.0), (2.0, 2.0, 0.5), (2.0, 1.0, 0.5)]
    if kind == "csv":
        lines = ["time, temperature, field", *(", ".join(map(str, row)) for row in rows), ""]
        path.write_text("\n".join(lines))
    elif kind == "npy":
        np.save(path, np.array(rows))
    elif kind == "named.npy":
        np.save(path, np.array(rows, [("time", "f8"), ("temperature", "f4"), ("field", "f8")]))
    elif kind == "toml":
        path.write_text("time = [0, 2, 2]\ntemperature = [3, 2, 1]\nfield = [0, 0.5, 0.5]\n")
    else:
        path.write_text('temperature = "points 0 3 2 2 2 1"\nfield = "points 0 0 2 0.5 2 0.5"\n')
    wanted = Drive.read("temperature points 0 3 2 2 2 1; field points 0 0 2 0.5 2 0.5")
    assert drives.read(str(path)) == wanted


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "time,field\n0,1\n1,x\n", "Line 3"),
        ("a.csv", "time,field\n0,1\n1\n", "Line 3 has 1 numbers"),
        ("a.csv", "field\n0\n", "no time"),
        ("a.csv", "time\n0\n", "columns beside the time"),
        ("a.csv", "", "empty"),
        ("a.toml", "time = [0, 1]\nfield = 3\n", "field is no list"),
        ("a.toml", 'field = "ramp 1 2"\n', "ramp A B over T"),
        ("a.npy", "no array", "Reading said"),
        ("none.csv", None, "existing file"),
    ],
)
def test_files_that_are_no_tables_are_refused_with_the_line(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=words):
        drives.read(str(tmp_path / name))
