"""Options are written once: words follow from types, and shared options are the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Literal

import pytest

from mpiflow import InputError
from mpiflow.simulation import catalogue
from mpiflow.simulation import common_options as common
from mpiflow.simulation.option_values import Sides
from mpiflow.simulation.options import Config, option


class Words(Config):
    truth: bool = option(False, "A truth value.")
    choice: Literal["one", "two", "three"] = option("two", "A choice.")
    some: Literal["one", "two"] | None = option(None, "A choice or none.")
    any_number: float = option(1.5, "Any number.")
    positive: float = option(0.25, "Above 0.", gt=0)
    other: float = option(3.0, "0 or more.", ge=0)
    part: float | None = option(None, "A part.", gt=0, le=1)
    between: int = option(3, "A few.", ge=2, le=127)
    count: int = option(4, "Some.", ge=1)
    said: int = option(4, "Some.", ge=1, allowed="as many as there are", remedy="Count them.")
    size: Sides = common.size(default=(2, 2), remedy="Try 512.")


@pytest.mark.parametrize(
    ("name", "bad", "allowed", "remedy"),
    [
        ("truth", 7, "true or false", "Try true."),
        ("choice", "four", "'one', 'two' or 'three'", "Use two."),
        ("some", "four", "'one' or 'two'", "Leave it out."),
        ("any_number", "x", "a finite number", "Try 1.5."),
        ("positive", 0, "a finite number above 0", "Try 0.25."),
        ("other", -1, "a finite number, 0 or more", "Try 3."),
        ("part", 2, "above 0, at most 1", "Leave it out."),
        ("between", 1, "2 to 127", "Try 3."),
        ("count", 0, "1 or more", "Try 4."),
        ("said", 0, "as many as there are", "Count them."),
        ("size", "a", "a number of sites a side, or LYxLX", "Try 512."),
    ],
)
def test_words_follow_from_type_limits_and_default(
    name: str, bad: object, allowed: str, remedy: str
):
    with pytest.raises(InputError) as caught:
        Words(**{name: bad})
    assert (caught.value.name, caught.value.allowed, caught.value.remedy) == (name, allowed, remedy)


@pytest.mark.parametrize("system", catalogue.systems())
def test_every_option_of_every_system_has_words(system: str):
    for name, field in catalogue.options(system).options().items():
        texts = field.json_schema_extra
        assert isinstance(texts, dict)
        assert field.description, name
        assert texts["allowed"], name
        assert texts["remedy"], name


def test_the_first_of_two_bad_values_is_named_whatever_the_order_of_a_set():
    code = (
        "from mpiflow.simulation.ising.options import IsingConfig\n"
        "try: IsingConfig(seed=True, members=True, quiet=3, size=True)\n"
        "except Exception as error: print(error.name)"
    )
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(names) == 1
