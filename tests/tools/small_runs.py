"""Small runs of every system and of every solver, kernel and form that it offers.

The tests of the contract between systems and runs (tests/simulation/test_contract.py) go over
them: a system is held to all of it by a few lines here, and one without any fails there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin

import numpy as np
from free_law import save_free_law

from mpiflow.simulation import catalogue
from mpiflow.simulation.options import RunConfig


class Small(NamedTuple):
    """A run of milliseconds that has a few frames and saves all that can be saved.

    Attributes
    ----------
    options : strings may name ``{files}``, the folder that :func:`save_inputs` fills
    cut : whether several ranks share it, or the members of it
    across : whether it can be cut along the last axis too, into four
    """

    system: str
    options: dict[str, Any]
    cut: bool = True
    across: bool = False

    def config(self, out: Path, files: Path, **more: Any) -> RunConfig:
        given = {**self.options, **more, "out": out, "quiet": True}
        for name, value in given.items():
            if isinstance(value, str):
                given[name] = value.replace("{files}", str(files))
        return catalogue.options(self.system)(**given)


def save_inputs(files: Path) -> None:
    """Files that some of them start from: a law, means of blocks, a field over a lattice."""
    files.mkdir()
    save_free_law(files / "model")
    rng = np.random.default_rng(3)
    np.save(files / "start.npy", rng.uniform(-0.9, 0.9, (2, 6)))
    np.save(files / "spins.npy", rng.choice(np.array([-1, 1], np.int8), (26, 44)))
    wave = np.sin(2 * np.pi * np.arange(32) / 32)
    np.save(files / "h.npy", np.outer(wave, wave))


#: Endings of the names of the files that only the beginning of a run needs.
STARTS = ("start.npy", "spins.npy")

_ISING = {"temperature": 2.2, "field": 0.05, "time": 6, "save_every": 1.5, "seed": 5, "dt": 0.25}
_EVENTS = {**_ISING, "dt": None, "time": 3, "save_every": 0.7, "solver": "nfold", "spins": True}
_KAC = {"gamma": 2, "temperature": 0.8, "time": 3, "save_every": 0.75, "seed": 3, "size": "24x40"}
_LEAPS = {**_KAC, "solver": "tau-leap"}
_POTTS = {
    "states": 3, "temperature": 1.1, "field": 0.1, "size": "16x20", "time": 3, "save_every": 1,
    "coarse": 4, "spins": True, "seed": 5,
}  # fmt: skip
_SPIN_ONE = {
    "temperature": 0.7, "crystal_field": 1.2, "field": 0.05, "size": "16x20", "time": 2,
    "save_every": 0.5, "coarse": 4, "spins": True, "seed": 5,
}  # fmt: skip
_ALLOY = {"cells": 4, "temperature": 2000, "seed": 4, "vacancies": 2, "species": True}
_TILED = _ALLOY | {
    "cells": "16x4x4", "time": 2e-9, "save_every": 4e-10, "solver": "tiled", "vacancies": 6,
    "tile": "8x8x8", "window": 1e-10,
}  # fmt: skip
_FIELD = {
    "model": "{files}/model", "size": "32x48", "time": 3, "save_every": 0.5, "dt": 0.25, "seed": 5,
    "initial_magnetization": 0.3,
}  # fmt: skip
_FROM_MEANS = {"initial": "{files}/start.npy", "initial_magnetization": 0}
_CHAIN = {"size": 10, "dt": 0.05, "time": 3, "save_every": 0.5, "profile": True, "seed": 5}
_SPINS = {"size": "6x8", "temperature": 1.1, "field": 0.1, "time": 3, "seed": 5, "save_every": 0.4}
_LINE = {"size": 40, "time": 1, "save_every": 0.25, "profile": True, "seed": 5}
_ATOMS = {
    "size": 8, "time": 2, "save_every": 0.2, "frames_per_decade": 4, "profile": True, "seed": 5,
}  # fmt: skip
_JUMPS = {**_ATOMS, "model": "langevin", "epsilon": 0.3, "dt": 0.1}

RUNS: dict[str, Small] = {
    "ising plain": Small(
        "ising", {**_ISING, "size": "26x44", "coarse": 2, "spins": True}, across=True
    ),
    "ising from a file": Small(
        "ising", {**_ISING, "size": "26x44", "spins": True, "initial": "{files}/spins.npy"}
    ),
    "ising packed": Small("ising", {**_ISING, "size": "64x256", "coarse": 8, "spin_bits": True}),
    "ising sweeps": Small(
        "ising", {**_ISING, "size": "64x128", "dt": "inf", "save_every": 2, "time": 12}
    ),
    # Five blocks do not divide by two ranks.
    "ising plain sweeps": Small(
        "ising",
        {
            **_ISING,
            "size": "40x24",
            "dt": "inf",
            "save_every": 2,
            "time": 12,
            "coarse": 8,
            "kernel": "plain",
        },
    ),
    "ising from waves": Small(
        "ising",
        {**_ISING, "size": "34x18", "initial": "gaussian", "correlation_length": 2, "spins": True},
    ),
    "ising sliced": Small("ising", {**_ISING, "size": 16, "members": 70, "kernel": "sliced"}),
    "ising members": Small(
        "ising",
        {**_ISING, "size": "10x14", "members": 5, "kernel": "plain", "initial": "random"},
    ),
    "ising packed members": Small(
        "ising",
        {**_ISING, "size": "16x128", "members": 3, "kernel": "packed", "coarse": 8, "spins": True},
    ),
    "ising tiled": Small(
        "ising",
        {**_ISING, "size": 32, "solver": "tiled-nfold", "tile": 4, "time": 9},
    ),
    "ising nfold": Small("ising", {**_EVENTS, "size": "12x20"}, cut=False),
    "ising nfold members": Small("ising", {**_EVENTS, "size": "9x6", "members": 5, "coarse": 3}),
    "kac": Small("kac", {**_KAC, "tau": 0.25, "coarse": 4, "spins": True}),
    "kac midpoint": Small("kac", {**_KAC, "tau": 0.25, "solver": "midpoint"}),
    "kac leap": Small("kac", {**_LEAPS, "tau": 0.25}),
    "kac leaps": Small("kac", {**_LEAPS, "eps": 0.2, "spins": True, "time": 6}),
    "kac in a field": Small(
        "kac",
        {
            **_KAC,
            "size": 32,
            "field_file": "{files}/h.npy",
            "method": "fft",
            "tau": 0.25,
            "initial": "gaussian",
            "correlation_length": 3,
            "coarse": 4,
        },
    ),
    "kac members": Small("kac", {**_KAC, "tau": 0.25, "members": 3}),
    "kac gillespie": Small(
        "kac", {**_KAC, "solver": "gillespie", "gamma": 1, "size": "12x20"}, cut=False
    ),
    "kac gillespie members": Small(
        "kac", {**_KAC, "solver": "gillespie", "gamma": 1, "size": "12x20", "members": 3}
    ),
    "potts": Small("potts", _POTTS, across=True),
    "potts sweeps": Small(
        "potts",
        {**_POTTS, "states": 4, "dt": "inf", "coarse": None, "initial": "random", "time": 9},
        across=True,
    ),
    "potts of many states": Small("potts", {**_POTTS, "states": 20, "temperature": 0.5}),
    "potts members": Small(
        "potts",
        {**_POTTS, "members": 3, "initial": "random", "initial_fractions": "0.5,0.3,0.2"},
    ),
    "potts nfold": Small(
        "potts", {**_POTTS, "solver": "nfold", "members": 3, "size": "9x12", "coarse": 3}
    ),
    "blume-capel": Small(
        "blume-capel",
        {**_SPIN_ONE, "dt": 0.5, "initial_fractions": "0.2,0.5,0.3", "time": 6},
        across=True,
    ),
    "blume-capel nfold": Small("blume-capel", {**_SPIN_ONE, "solver": "nfold", "members": 2}),
    "blume-capel one by nfold": Small(
        "blume-capel", {**_SPIN_ONE, "solver": "nfold", "size": "7x9", "coarse": 1}, cut=False
    ),
    "alloy": Small(
        "alloy", {**_ALLOY, "time": 3e-9, "save_every": 7e-10, "vacancies": 3}, cut=False
    ),
    "alloy hops": Small("alloy", {**_ALLOY, "hops": 400, "save_every": 90}, cut=False),
    "alloy members": Small(
        "alloy", {**_ALLOY, "cells": "4x6x4", "time": 2e-9, "save_every": 5e-10, "members": 3}
    ),
    "alloy absorbing": Small(
        "alloy",
        {
            **_ALLOY,
            "solver": "absorbing",
            "cells": "12x4x4",
            "temperature": 600,
            "time": 2e-3,
            "save_every": 3e-4,
            "vacancies": 3,
        },
        cut=False,
    ),
    "alloy absorbing hops": Small(
        "alloy",
        {**_ALLOY, "solver": "absorbing", "temperature": 900, "hops": 900, "save_every": 200},
        cut=False,
    ),
    "alloy absorbing members": Small(
        "alloy",
        {
            **_ALLOY,
            "solver": "absorbing",
            "cells": "4x6x4",
            "time": 2e-9,
            "save_every": 5e-10,
            "members": 3,
        },
    ),
    "alloy tiled": Small("alloy", _TILED),
    "alloy tiled hops": Small("alloy", {**_TILED, "time": None, "hops": 300, "save_every": 70}),
    "alloy chosen window": Small("alloy", {**_TILED, "window": None}),
    "alloy tiled members": Small("alloy", {**_TILED, "members": 3}),
    "onsagerflow": Small("onsagerflow", _FIELD),
    "onsagerflow from means": Small(
        "onsagerflow", {**_FIELD, **_FROM_MEANS, "size": "8x24", "structure": "cosh"}
    ),
    "onsagerflow members": Small("onsagerflow", {**_FIELD, **_FROM_MEANS, "members": 3}),
    "onsagerflow langevin": Small(
        "onsagerflow", {**_FIELD, **_FROM_MEANS, "structure": "langevin", "dt": 0.1}
    ),
    "onsagerflow inner steps": Small(
        "onsagerflow", {**_FIELD, "structure": "langevin", "dt": 0.5, "time": 4}
    ),
    "linear-chain": Small("linear-chain", _CHAIN),
    "linear-chain members": Small(
        "linear-chain", {**_CHAIN, "members": 3, "save_every": 0.1, "frames_per_decade": 5}
    ),
    "curie-weiss": Small("curie-weiss", _SPINS),
    "curie-weiss members": Small(
        "curie-weiss",
        {**_SPINS, "members": 5, "initial_magnetization": 0.5, "frames_per_decade": 4},
    ),
    "predator-prey": Small("predator-prey", _LINE),
    "predator-prey members": Small(
        "predator-prey", {**_LINE, "members": 3, "form": "pde", "prey_diffusion": 0.01}
    ),
    "spin-diffusion": Small("spin-diffusion", _JUMPS),
    "spin-diffusion members": Small(
        "spin-diffusion",
        {**_JUMPS, "members": 3, "rates": "arrhenius", "initial": "random", "precondition": False},
    ),
    # Single chains are whole on every rank: those that go on alike need no test on several.
    "spin-diffusion averaged": Small(
        "spin-diffusion", {**_ATOMS, "model": "averaged", "frames_per_decade": 9}, cut=False
    ),
    "spin-diffusion averaged members": Small(
        "spin-diffusion", {**_ATOMS, "model": "averaged", "members": 3, "initial": "random"}
    ),
    "spin-diffusion mean-field": Small("spin-diffusion", {**_ATOMS, "model": "mean-field"}),
    "spin-diffusion point members": Small(
        "spin-diffusion", {**_ATOMS, "model": "point", "members": 3, "perturb": 1e-4}
    ),
    "spin-diffusion arrhenius": Small(
        "spin-diffusion", {**_ATOMS, "model": "arrhenius", "initial_spin": 0.9}, cut=False
    ),
    "spin-diffusion free-energy": Small(
        "spin-diffusion",
        {**_ATOMS, "model": "free-energy", "integrator": "bdf", "frames_per_decade": 9},
        cut=False,  # it stops at frames
    ),
    "spin-diffusion free-energy-limited": Small(
        "spin-diffusion", {**_ATOMS, "model": "free-energy-limited"}, cut=False
    ),
    "spin-diffusion master": Small("spin-diffusion", {**_ATOMS, "model": "master"}, cut=False),
}

#: Options whose values are ways to compute; each of them is in a run above.
WAYS = ("solver", "kernel", "method", "structure", "form", "model", "rates", "integrator")


def ways(system: str) -> dict[str, set[str]]:
    """The values of these options that a system offers, by option; defaults may stand for one."""
    found: dict[str, set[str]] = {}
    for name, field in catalogue.options(system).options().items():
        if name in WAYS:
            kinds = [field.annotation, *get_args(field.annotation)]
            found[name] = {
                value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)
            }
    return found
