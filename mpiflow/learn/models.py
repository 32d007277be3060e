"""Saved models of all kinds."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from mpiflow.core.errors import InputError

#: What model.json calls a kind: where it is loaded.
KINDS = {
    "ising-closure": ("mpiflow.learn.closure.model", "load_model"),
    "onsagerflow": ("mpiflow.learn.onsagerflow.model", "load_onsagerflow"),
    "curie-weiss": ("mpiflow.learn.closure.curie_weiss", "load_magnetization"),
    "predator-prey": ("mpiflow.learn.closure.predator_prey", "load_predator_prey"),
    "alloy-sro": ("mpiflow.learn.alloy.model", "load_alloy_model"),
    "field-generator": ("mpiflow.learn.generator.model", "load_generator"),
    "field-law": ("mpiflow.systems.field_law", "load_law"),
}


def load_model(directory: str | Path) -> Any:
    """Load a model of any kind from the folder that its ``save`` wrote.

    Returns
    -------
    A :class:`~mpiflow.learn.closure.model.MacroscopicModel`,
    :class:`~mpiflow.learn.alloy.model.AlloyModel`,
    :class:`~mpiflow.learn.generator.model.Generator`,
    :class:`~mpiflow.learn.onsagerflow.model.OnsagerFlow`,
    :class:`~mpiflow.learn.closure.curie_weiss.MagnetizationModel`,
    :class:`~mpiflow.learn.closure.predator_prey.PredatorPreyModel` or
    :class:`~mpiflow.simulation.field.law_files.TableLaw`

    Raises
    ------
    InputError : the folder holds none of these, or a damaged one
    """
    known = f"a folder with a model of a kind of {', '.join(KINDS)}"
    try:
        kind = json.loads((Path(directory) / "model.json").read_text(encoding="utf-8"))["kind"]
        module, function = KINDS[kind]
    except FileNotFoundError:
        remedy = "It has no model.json: train and save one first."
        raise InputError("model", str(directory), known, remedy) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        remedy = f"Reading its kind said: {error!r}."
        raise InputError("model", str(directory), known, remedy) from error
    return getattr(import_module(module), function)(directory)
