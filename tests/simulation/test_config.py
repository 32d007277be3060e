"""The schema: what it accepts, what it fills in, and how it says no."""

from __future__ import annotations

import codecs
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.simulation.alloy.options import AlloyConfig
from mpiflow.simulation.ensemble.options import ChainConfig
from mpiflow.simulation.field.options import FieldConfig
from mpiflow.simulation.ising.options import IsingConfig
from mpiflow.simulation.kac.options import KacConfig
from mpiflow.simulation.options import FRAMES, Config

GOOD: dict[str, Any] = {"size": 64, "temperature": 2.5, "time": 50, "out": "run.h5"}


def test_defaults_are_filled_in_and_survive_json():
    config = IsingConfig(**GOOD)
    assert (config.size, config.dt, config.save_every) == ((64, 64), 0.25, 0.5)
    assert IsingConfig(**json.loads(config.model_dump_json())) == config


def test_infinite_dt_survives_json():
    config = IsingConfig(**GOOD, dt="inf")
    assert math.isinf(config.dt)
    assert config.save_every == 1.0
    stored = config.model_dump_json()
    assert '"dt":"inf"' in stored
    assert IsingConfig(**json.loads(stored)) == config


@pytest.mark.parametrize(
    ("given", "sides"),
    [(8, (8, 8)), ("8", (8, 8)), ("8x16", (8, 16)), ([8, 16], (8, 16)), ("8,16", (8, 16))],
)
def test_sizes(given: Any, sides: tuple[int, int]):
    assert IsingConfig(**GOOD | {"size": given}).size == sides


@pytest.mark.parametrize("time", [0.25, 3, 7.75, 1000, 12345.25])
def test_default_frames_are_whole_steps(time: float):
    config = IsingConfig(**GOOD | {"time": time})
    steps = config.save_every / config.dt
    assert steps == round(steps) >= 1
    assert time / config.save_every <= 2 * FRAMES


def test_nfold_has_no_step():
    config = IsingConfig(**GOOD, solver="nfold", ranks_grid="1,1")
    assert config.dt is None
    assert config.save_every == 0.5
    assert IsingConfig(**GOOD | {"size": 63}, solver="nfold").size == (63, 63)


def test_a_configuration_cannot_be_changed_after_its_checks():
    with pytest.raises(ValueError, match="frozen"):
        IsingConfig(**GOOD).seed = 3


BAD: list[tuple[dict[str, Any], str, str]] = [
    # what is given, the name that is blamed, and something the message must say
    ({"size": 63}, "size", "64, 64"),
    ({"size": 1}, "size", "larger"),
    ({"size": -4}, "size", "larger"),
    ({"size": "axb"}, "size", "64x128"),
    ({"size": (4, 4, 4)}, "size", "LYxLX"),
    ({"size": None}, "size", "sites a side"),
    ({"temperature": -2.5}, "temperature", "above 0"),
    ({"temperature": 0}, "temperature", "above 0"),
    ({"temperature": math.nan}, "temperature", "finite"),
    ({"temperature": "warm"}, "temperature", "2.269"),
    ({"field": math.inf}, "field", "finite"),
    ({"coupling": "nan"}, "coupling", "finite"),
    ({"dt": 0}, "dt", "0.25"),
    ({"dt": -0.25}, "dt", "above 0, or inf"),
    ({"dt": "nan"}, "dt", "above 0"),
    ({"dt": 0.25, "solver": "nfold"}, "dt", "no step"),
    ({"time": 0}, "time", "above 0"),
    ({"time": "inf"}, "time", "finite"),
    ({"save_every": -1}, "save_every", "above 0"),
    ({"coarse": 5}, "coarse", "[1, 2, 4, 8, 16, 32, 64]"),
    ({"coarse": 0}, "coarse", "divisor"),
    ({"solver": "metropolis"}, "solver", "nfold"),
    ({"initial": "shufled"}, "initial", "Did you mean shuffled?"),
    ({"initial": "no/such/file.npy"}, "initial", "existing file"),
    ({"initial_magnetization": 1.5}, "initial_magnetization", "-1 to 1"),
    ({"initial_magnetization": 0.5, "initial": "up"}, "initial_magnetization", "Leave it out"),
    ({"correlation_length": 4}, "correlation_length", "gaussian"),
    ({"members": 0}, "members", "1 or more"),
    ({"seed": -1}, "seed", "2**63"),
    ({"seed": 2**63}, "seed", "2**63"),
    ({"device": "tpu"}, "device", "cuda"),
    ({"ranks_grid": "2"}, "ranks_grid", "NY,NX"),
    ({"ranks_grid": "2,1", "members": 4}, "ranks_grid", "members"),
    ({"writer": "fast"}, "writer", "gather"),
    ({"spins": "maybe"}, "spins", "true or false"),
    ({"system": "kac"}, "system", "ising"),
    ({"sizes": 4}, "sizes", "Did you mean size?"),
    ({"save-every": 1}, "save-every", "Did you mean save_every?"),
    ({"wall": 60}, "wall", "one of size, temperature"),
]


@pytest.mark.parametrize(("given", "name", "says"), BAD)
def test_bad_values_name_themselves(given: dict[str, Any], name: str, says: str):
    with pytest.raises(InputError) as caught:
        IsingConfig(**GOOD | given)
    assert caught.value.name == name
    assert str(caught.value).startswith(f"{name}=")
    assert says in str(caught.value)
    assert caught.value.allowed
    assert caught.value.remedy


def test_every_option_has_its_error_message_and_its_help():
    for name, field in IsingConfig.options().items():
        assert field.description, name
        assert field.json_schema_extra["allowed"], name  # type: ignore[index]
        assert field.json_schema_extra["remedy"], name  # type: ignore[index]
    assert set(IsingConfig.model_fields) - set(IsingConfig.options()) == {"system", "inputs"}


def test_missing_options_are_all_named():
    with pytest.raises(InputError, match=r"It must be given.*temperature, time, out"):
        IsingConfig()
    with pytest.raises(InputError, match="Did you mean temperature"):
        IsingConfig(tempreature=2.5)  # the typing error, not the missing name


def test_a_gaussian_start_has_a_correlation_length():
    assert IsingConfig(**GOOD, initial="gaussian").correlation_length == 8.0
    assert IsingConfig(**GOOD, initial="gaussian", correlation_length=4).correlation_length == 4.0


def test_toml_and_overrides(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text('system = "ising"\nsize = [32, 64]\ntemperature = 2.5\ndt = inf\ntime = 5\n')
    config = IsingConfig.from_toml(file, out="a.h5", temperature="3.5")
    assert (config.size, config.temperature, config.dt) == ((32, 64), 3.5, math.inf)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("size = ", "a readable TOML file"),
        ("tempreature = 2.5", "Did you mean temperature?"),
        ("[ising]\nsize = 4", "one of size"),
    ],
)
def test_bad_toml(tmp_path: Path, text: str, says: str):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(InputError, match="=") as caught:
        IsingConfig.from_toml(file)
    assert says in str(caught.value)


@pytest.mark.parametrize("system", [IsingConfig, KacConfig, AlloyConfig, ChainConfig, FieldConfig])
def test_truth_values_are_no_numbers_and_numbers_no_truth_values(system: type[Config]):
    """Fails where true is taken as 1: it is said before anything else about an option."""
    for name, field in system.options().items():
        truth = field.annotation is bool
        bad = [1, 0, 1.0, "1", "yes"] if truth else [True, False, np.True_, [True, 8]]
        for value in bad:
            with pytest.raises(InputError, match=f"^{name}=") as caught:
                system(**{name: value})
            assert caught.value.value is value


def test_truth_values_as_every_way_in_has_them():
    for value in (True, np.True_, "true", "True"):
        assert IsingConfig(**GOOD, spins=value).spins is True


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("01:00:00", 3600), ("00:01:30.5", 90.5), ('"01:00:00"', 3600), ("90", 90), ('"90"', 90)],
)
def test_walltimes_of_toml(tmp_path: Path, text: str, seconds: float):
    file = tmp_path / "run.toml"
    file.write_text(f"walltime = {text}\n")
    assert IsingConfig.from_toml(file, **GOOD).walltime == seconds


LINES = "size = 64\ntemperature = 2.5\ntime = 50\nout = 'm\u00fc.h5'\n"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", ("utf-16-be", codecs.BOM_UTF16_BE)]
)
def test_toml_of_other_editors_and_shells(tmp_path: Path, encoding: Any, ending: str):
    encoding, mark = (encoding, b"") if isinstance(encoding, str) else encoding
    file = tmp_path / "run.toml"
    file.write_bytes(mark + LINES.replace("\n", ending).encode(encoding))
    assert IsingConfig.from_toml(file) == IsingConfig(**GOOD | {"out": "m\u00fc.h5"})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LINES.encode("latin-1"), "Byte 46 is not utf-8: save the file as UTF-8."),
        (LINES.encode("utf-16-le"), "Byte 1 is not utf-8: save the file as UTF-8."),
        (b"\xff\xfea", "is not utf-16-le: save the file as UTF-8."),
        (b"seed = 1\ntime = 5\nseed = 2\n", "the key seed is there twice (at line 3, column"),
        (b"seed = 1\nseed = 2", "the key seed is there twice (at"),
        (b"walltime = 24:00:00", 'Line 1: write a time in quotes, walltime = "24:00:00".'),
        (b"seed = 1\nwalltime = 1:30\n", 'Line 2: write a time in quotes, walltime = "1:30".'),
        (b"walltime = 1-00:00:00\n", 'write a time in quotes, walltime = "1-00:00:00".'),
        (b"time = 5\ninitial = up\n", "Invalid value (at line 2, column 11): initial = up"),
        (b"Temperature = 2\n", "Did you mean temperature?"),
        (b"save-every = 2\n", "Did you mean save_every?"),
        (b"[run]\nsize = 4\n", "has no tables"),
        (b"save_every = 01:00:00\n", "save_every=datetime.time(1, 0): allowed is a finite number"),
        (b"walltime = 2026-01-01\n", "walltime=datetime.date(2026, 1, 1): allowed is seconds"),
    ],
)
def test_bad_toml_says_what_is_wrong(tmp_path: Path, text: bytes, says: str):
    file = tmp_path / "run.toml"
    file.write_bytes(text)
    with pytest.raises(InputError, match="=") as caught:
        IsingConfig.from_toml(file)
    assert says in str(caught.value)


def test_foreign_and_missing_config_files(tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_bytes(np.random.default_rng(1).bytes(100))
    for path in (file, tmp_path / "none.toml", tmp_path):
        with pytest.raises(InputError, match="a readable TOML file"):
            IsingConfig.from_toml(path)


def test_did_you_mean():
    assert did_you_mean("siz", ["size", "seed"]) == "Did you mean size?"
    assert did_you_mean("xyz", ["size", "seed"]) == ""
