"""Which observables a run measures besides: chosen by name, and the same where it goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.observables.observable import Observable
from mpiflow.observables.ready import READY, listed, ready

#: What ``observables`` may be: functions and observables by name, or names of ready ones.
Observables = Mapping[str, Observable | Callable[..., Any] | str] | Sequence[str]


_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def chosen(observables: Observables | None) -> dict[str, Observable]:
    """Observables by name.

    Raises
    ------
    InputError : one is no function, or has no name that a file can hold
    """
    if observables is None:
        return {}
    if isinstance(observables, str):
        observables = observables.split(",")
    if not isinstance(observables, Mapping):
        observables = listed(observables)
    out = {}
    for name, given in observables.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            allowed = "a letter, then letters, digits and _"
            raise InputError("observables", name, allowed, "Choose another name.")
        if isinstance(given, str):
            given = ready(given)
        if not isinstance(given, Observable):
            if not callable(given):
                allowed = f"a function, an Observable, or one of {', '.join(READY)}"
                remedy = did_you_mean(str(given), READY) or "See docs/observables.md."
                raise InputError(f"observable {name}", given, allowed, remedy)
            given = Observable(given)
        out[name] = given
    return out


def definitions(observables: Mapping[str, Observable]) -> dict[str, Any]:
    """What must be the same where a run goes on, as JSON knows it; empty without any."""
    return {name: one.definition() for name, one in observables.items()}


def unchanged(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> None:
    """Raise if a run is to go on with other observables than it has."""
    before = dict(old or {})
    if before == new:
        return
    wrong = [n for n in {**before, **new} if before.get(n) != new.get(n)]
    shown = {n: _in_words(new[n]) if n in new else "not given" for n in wrong}
    wanted = {n: _in_words(before[n]) if n in before else "not there" for n in wrong}
    remedy = "Give record() the observables that the run was started with, no more and no less."
    raise InputError("observables", shown, f"as the run has them: {wanted}", remedy)


def _in_words(definition: Mapping[str, Any]) -> str:
    usual = Observable(len).definition()
    rest = {n: v for n, v in definition.items() if n != "function" and v != usual.get(n)}
    return ", ".join([str(definition["function"]), *(f"{n}={v!r}" for n, v in rest.items())])
