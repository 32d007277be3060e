"""Saved models of all kinds."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from mpiflow.errors import InputError

#: What model.json calls a kind: where it is loaded.
KINDS = {
    "ising-closure": ("mpiflow.learn.model", "load_model"),
    "onsagerflow": ("mpiflow.learn.onsagerflow", "load_onsagerflow"),
    "curie-weiss": ("mpiflow.learn.curie_weiss", "load_magnetization"),
    "alloy-sro": ("mpiflow.learn.alloy", "load_alloy_model"),
    "field-generator": ("mpiflow.learn.generator", "load_generator"),
    "field-law": ("mpiflow.field_law", "load_law"),
}


def load_model(directory: str | Path) -> Any:
    """Load a model of any kind from the folder that its ``save`` wrote.

    Returns
    -------
    A :class:`~mpiflow.learn.model.MacroscopicModel`, :class:`~mpiflow.learn.alloy.AlloyModel`,
    :class:`~mpiflow.learn.generator.Generator`, :class:`~mpiflow.learn.onsagerflow.OnsagerFlow`,
    :class:`~mpiflow.learn.curie_weiss.MagnetizationModel` or :class:`~mpiflow.field_law.TableLaw`

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
