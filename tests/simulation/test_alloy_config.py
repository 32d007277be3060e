"""The options of ``mpiflow simulate alloy``: what is accepted and filled in, how they say no."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mpiflow.cli import invoke
from mpiflow.core.errors import InputError
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.options import FRAMES

GOOD: dict[str, Any] = {"cells": 8, "temperature": 2000, "time": 5e-6, "out": "run.h5"}
#: The same, counted in hops.
HOPS: dict[str, Any] = {"cells": 8, "temperature": 2000, "hops": 1000, "out": "run.h5"}
TILED = {"solver": "tiled"}


def test_defaults_are_filled_in_and_survive_json() -> None:
    config = AlloyConfig(**GOOD)
    assert (config.cells, config.vacancies, config.elements) == ((8, 8, 8), 1, ("Nb", "Mo", "Ta"))
    assert config.save_every == pytest.approx(5e-8)
    assert (config.solver, config.barriers, config.initial) == ("serial", "default", "random")
    assert (config.window, config.tile, config.composition) == (None, None, None)
    assert AlloyConfig(**json.loads(config.model_dump_json())) == config


def test_every_option_survives_json() -> None:
    given: dict[str, Any] = {
        "cells": "8x8x16", "vacancies": 4, "composition": "1,2,1", "elements": "A,B,C",
        "window": 1e-9, "tile": "8,8,16", "species": True, "ranks_grid": "2,1,1", "seed": 3,
        "axis_order": "paper", "save_every": 1e-7,
    }  # fmt: skip
    config = AlloyConfig(**GOOD | TILED | given)
    assert AlloyConfig(**json.loads(config.model_dump_json())) == config
    assert (config.cells, config.tile, config.ranks_grid) == ((8, 8, 16), (8, 8, 16), (2, 1, 1))
    assert (config.composition, config.elements) == ((1.0, 2.0, 1.0), ("A", "B", "C"))


@pytest.mark.parametrize(
    ("given", "cells"),
    [
        (8, (8, 8, 8)),
        ("8", (8, 8, 8)),
        ("8x10x12", (8, 10, 12)),
        ("8,10,12", (8, 10, 12)),
        ([8, 10, 12], (8, 10, 12)),
    ],
)
def test_cells(given: Any, cells: tuple[int, int, int]) -> None:
    assert AlloyConfig(**GOOD | {"cells": given}).cells == cells


@pytest.mark.parametrize(("hops", "every"), [(1, 1), (99, 1), (250, 2), (100000, 1000)])
def test_hops_have_frames_of_whole_hops(hops: int, every: int) -> None:
    config = AlloyConfig(**HOPS | {"hops": hops})
    assert (config.save_every, config.time) == (every, None)


@pytest.mark.parametrize("time", [1e-9, 5e-9, 3.7e-7, 1.0])
def test_default_frames_are_whole_windows(time: float) -> None:
    config = AlloyConfig(**GOOD | TILED | {"time": time, "window": 1e-9})
    steps = config.save_every / 1e-9
    assert steps == pytest.approx(round(steps))
    assert 1 <= round(steps)
    assert time / config.save_every <= 2 * FRAMES
    free = AlloyConfig(**GOOD | TILED | {"time": time})
    assert (free.save_every, free.window) == (pytest.approx(time / FRAMES, rel=1e-15), None)


def test_a_file_brings_its_own_vacancies(tmp_path: Path) -> None:
    file = tmp_path / "start.dump"
    file.write_text("not read before the run")
    assert AlloyConfig(**GOOD, initial=str(file)).vacancies is None
    assert AlloyConfig(**GOOD, initial=str(file), vacancies=3).vacancies == 3


BAD: list[tuple[dict[str, Any], str, str]] = [
    # what is given, the name that is blamed, and something the message must say
    ({"cells": 3}, "cells", "4 or more"),
    ({"cells": "8x8x3"}, "cells", "4 or more"),
    ({"cells": -8}, "cells", "4 or more"),
    ({"cells": "8x8"}, "cells", "LXxLYxLZ"),
    ({"cells": "8.5"}, "cells", "number of cells"),
    ({"cells": "axbxc"}, "cells", "LXxLYxLZ"),
    ({"temperature": 0}, "temperature", "K above 0"),
    ({"temperature": -2000}, "temperature", "above 0"),
    ({"temperature": math.nan}, "temperature", "finite"),
    ({"temperature": "inf"}, "temperature", "finite"),
    ({"temperature": "warm"}, "temperature", "Try 2000"),
    ({"vacancies": 0}, "vacancies", "1 to half"),
    ({"vacancies": -1}, "vacancies", "1 to half"),
    ({"vacancies": 1.5}, "vacancies", "1 to half"),
    ({"hops": 100}, "hops, time", "one of the two"),
    ({"time": None}, "hops, time", "one of the two"),
    ({"time": 0}, "time", "above 0"),
    ({"time": -1e-6}, "time", "above 0"),
    ({"time": "inf"}, "time", "finite"),
    ({"time": None, "hops": 0}, "hops", "above 0"),
    ({"time": None, "hops": -5}, "hops", "above 0"),
    ({"time": None, "hops": 2.5}, "hops", "whole number"),
    ({"time": None, "hops": 100, "save_every": 2.5}, "save_every", "whole number of hops"),
    ({"time": None, "hops": 100, "save_every": 0.5}, "save_every", "whole number of hops"),
    ({"time": None, "hops": 100, "members": 2}, "hops", "clocks differ"),
    ({"save_every": 0}, "save_every", "above 0"),
    ({"save_every": "nan"}, "save_every", "above 0"),
    ({"composition": "1,two,1"}, "composition", "for each element"),
    ({"composition": "nan,1,1"}, "composition", "for each element"),
    ({"composition": "inf,1,1"}, "composition", "for each element"),
    ({"elements": "Nb,Nb,Ta"}, "elements", "different"),
    ({"axis_order": "xyz"}, "axis_order", "paper"),
    ({"solver": "tild"}, "solver", "'serial', 'absorbing' or 'tiled'"),
    ({"window": 1e-9}, "window", "serial"),
    ({"tile": 8}, "tile", "serial"),
    ({"device": "cuda"}, "device", "tiled"),
    ({"device": "tpu", **TILED}, "device", "cuda"),
    ({"window": 0, **TILED}, "window", "above 0"),
    ({"window": -1e-9, **TILED}, "window", "above 0"),
    ({"window": "inf", **TILED}, "window", "divides --save-every"),
    ({"tile": "8x8", **TILED}, "tile", "whole sides"),
    ({"tile": "half", **TILED}, "tile", "whole sides"),
    ({"ranks_grid": "2,1", **TILED}, "ranks_grid", "three positive"),
    ({"ranks_grid": "2,1,1", "members": 4}, "ranks_grid", "members"),
    ({"initial": "randm"}, "initial", "Did you mean random?"),
    ({"initial": "no/such/file.dump"}, "initial", "existing file"),
    ({"initial": "."}, "initial", "existing file"),
    ({"members": 0}, "members", "1 or more"),
    ({"seed": -1}, "seed", "2**63"),
    ({"writer": "fast"}, "writer", "gather"),
    ({"species": "maybe"}, "species", "true or false"),
    ({"system": "ising"}, "system", "alloy"),
    ({"cell": 8}, "cell", "Did you mean cells?"),
    ({"size": 8}, "size", "one of cells, temperature"),
    ({"save-every": 1e-7}, "save-every", "Did you mean save_every?"),
]


@pytest.mark.parametrize(("given", "name", "says"), BAD, ids=[str(g) for g, *_ in BAD])
def test_bad_values_name_themselves(given: dict[str, Any], name: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        AlloyConfig(**GOOD | given)
    assert caught.value.name == name
    assert str(caught.value).startswith(f"{name}=")
    assert says in str(caught.value)
    assert caught.value.allowed
    assert caught.value.remedy


def test_a_composition_beside_a_file_would_do_nothing(tmp_path: Path) -> None:
    file = tmp_path / "start.dump"
    file.write_text("")
    with pytest.raises(InputError, match=r"^composition=.*initial file"):
        AlloyConfig(**GOOD, initial=str(file), composition="1,1,1")


def test_missing_options_are_all_named() -> None:
    with pytest.raises(InputError, match=r"^cells=.*It must be given.*temperature, out"):
        AlloyConfig()
    with pytest.raises(InputError, match="Did you mean temperature"):
        AlloyConfig(tempreature=2000)


def test_every_option_has_its_error_message_and_its_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    invoke(["simulate", "alloy", "--help"])
    text = capsys.readouterr().out
    words = " ".join(text.split())
    for name, field in AlloyConfig.options().items():
        assert field.description, name
        assert field.json_schema_extra["allowed"], name  # type: ignore[index]
        assert field.json_schema_extra["remedy"], name  # type: ignore[index]
        assert f"--{name.replace('_', '-')} " in text, name
        assert " ".join(field.description.split()) in words, name
    assert set(AlloyConfig.model_fields) - set(AlloyConfig.options()) == {"system", "inputs"}
    assert "[default: each chosen during the run, for about 2 hops of a vacancy]" in words
    assert words.count("[required]") == 3


def test_toml_and_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[AlloyConfig] = []
    monkeypatch.setattr("mpiflow.run.simulate.simulate", lambda given, _: seen.append(given))
    file = tmp_path / "run.toml"
    file.write_text(
        'system = "alloy"\ncells = [8, 8, 12]\ntemperature = 1500\ntime = 1e-7\nout = "a.h5"\n'
        'composition = [0.2, 0.3, 0.5]\nelements = ["Nb", "Mo", "Ta"]\nspecies = true\n'
    )
    line = ["simulate", "alloy", "--config", str(file)]
    invoke(line)
    invoke([*line, *"--cells 4x6x8 --composition 1,1,2 --no-species --solver tiled".split()])
    assert (seen[0].cells, seen[0].composition) == ((8, 8, 12), (0.2, 0.3, 0.5))
    assert (seen[0].temperature, seen[0].species, seen[0].solver) == (1500.0, True, "serial")
    assert (seen[1].cells, seen[1].composition) == ((4, 6, 8), (1.0, 1.0, 2.0))
    assert (seen[1].species, seen[1].solver, seen[1].time) == (False, "tiled", 1e-7)
    file.write_text("[alloy]\ncells = 8")
    with pytest.raises(InputError, match="one of cells"):
        invoke(line)


def test_a_configuration_cannot_be_changed_after_its_checks() -> None:
    with pytest.raises(ValueError, match="frozen"):
        AlloyConfig(**GOOD).seed = 3
