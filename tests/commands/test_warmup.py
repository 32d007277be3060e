"""``mpiflow warmup`` runs what the catalogue says; the clock of compilations."""

from __future__ import annotations

import pytest

from mpiflow.cli import invoke
from mpiflow.commands import warmup
from mpiflow.core import compiling
from mpiflow.core.errors import InputError
from mpiflow.simulation import catalogue

SHORT = [(name, options) for name, entry in catalogue.systems().items() for options in entry.short]


@pytest.mark.parametrize(("name", "options"), SHORT)
def test_short_runs_are_runs(name: str, options: dict[str, object]) -> None:
    assert catalogue.options(name)(**options, out="run.h5").system == name


def test_what_was_compiled_is_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    invoke(["warmup", "curie-weiss"])
    invoke(["warmup", "curie-weiss"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("curie-weiss: ")
    assert second.startswith("curie-weiss: all compiled before, in ")


def test_learning_is_warmed_up_without_a_word(capsys: pytest.CaptureFixture[str]) -> None:
    """All that drivers/demo.py needs, of small data, whose model is bad and not warned of."""
    invoke(["warmup", "learning"])
    assert capsys.readouterr().out.startswith("learning: ")


def test_systems_that_cannot_be_warmed_up() -> None:
    with pytest.raises(InputError, match=r"systems='onsagerflow'.*ising.*by its first run"):
        list(warmup.warm_up(["ising", "onsagerflow"]))
    with pytest.raises(InputError, match="Did you mean ising"):
        list(warmup.warm_up(["isng"]))


def test_a_clock_counts_what_is_compiled_inside_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(compiling.time, "monotonic", lambda: now[0])
    clock, said = compiling.Clock(), []

    def compile_in(seconds: float, inside: float) -> None:
        clock.begin()
        clock.begin()
        now[0] += inside
        clock.end()
        now[0] += seconds - inside
        clock.end()
        now[0] += 100.0

    with clock.said(lambda: said.append(clock.seconds)):
        compile_in(0.75, 0.5)
        assert not said
        compile_in(0.75, 0.0)
        compile_in(2.0, 0.0)
    assert (clock.seconds, clock.functions, said) == (3.5, 6, [1.5])
    compile_in(2.0, 0.0)
    assert said == [1.5]  # nobody asks any more
