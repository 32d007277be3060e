"""Saved models of all kinds: a folder with ``model.safetensors`` and ``model.json``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mpiflow._version import __version__
from mpiflow.core.errors import InputError
from mpiflow.core.packages import explained
from mpiflow.files import storage

if TYPE_CHECKING:
    import torch

M = TypeVar("M")
#: What model.json calls a kind: where it is loaded.
KINDS = {
    "closure": ("mpiflow.learn.closure.observed", "load_observed"),
    "ising-closure": ("mpiflow.learn.closure.model", "load_model"),
    "onsagerflow": ("mpiflow.learn.onsagerflow.model", "load_onsagerflow"),
    "curie-weiss": ("mpiflow.learn.closure.curie_weiss", "load_magnetization"),
    "predator-prey": ("mpiflow.learn.closure.predator_prey", "load_predator_prey"),
    "alloy-sro": ("mpiflow.learn.alloy.model", "load_alloy_model"),
    "field-generator": ("mpiflow.learn.generator.model", "load_generator"),
    "field-law": ("mpiflow.simulation.field.law_files", "load_law"),
}


def load_model(directory: str | Path) -> Any:
    """Load a model of any kind from the folder that its ``save`` wrote.

    Parameters
    ----------
    directory : the folder

    Returns
    -------
    A :class:`~mpiflow.learn.closure.model.MacroscopicModel`,
    :class:`~mpiflow.learn.closure.observed.ObservedModel`,
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
    with explained():
        return getattr(import_module(module), function)(directory)


def tensors_of(**networks: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of networks by ``network.tensor``, for :func:`write_model`."""
    return {
        f"{part}.{name}": value.contiguous()
        for part, network in networks.items()
        for name, value in network.state_dict().items()
    }


def restore(tensors: Mapping[str, torch.Tensor], **networks: torch.nn.Module) -> None:
    """Put the tensors of :func:`tensors_of` back into networks, which are then ready for use."""
    for part, network in networks.items():
        prefix = f"{part}."
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        )
        network.eval()


def write_model(
    directory: str | Path,
    kind: str,
    description: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Write ``model.safetensors`` and ``model.json`` of a model of a kind into a directory.

    Parameters
    ----------
    kind : its key in :data:`KINDS`
    description : what JSON can hold, for :func:`read_model`
    tensors : by name
    """
    from safetensors.torch import save

    whole = {"kind": kind, "mpiflow_version": __version__, **description}
    text = json.dumps(whole, indent=2) + "\n"
    storage.write_folder(directory, {"model.safetensors": save(dict(tensors)), "model.json": text})


def read_model(
    directory: str | Path,
    kind: str,
    build: Callable[[Mapping[str, Any], Mapping[str, torch.Tensor]], M],
) -> M:
    """Build a model from what :func:`write_model` wrote.

    Raises
    ------
    InputError : there is no model of this kind, or a damaged one
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    directory = Path(directory)
    if not (directory / "model.json").is_file():
        raise InputError(
            "model", str(directory), "a directory with model.json", "Train and save one first."
        )
    try:
        description = json.loads((directory / "model.json").read_text())
        if description.get("kind") != kind:
            raise InputError(
                "model", str(directory), f"kind '{kind}'", "Use the tool that made it."
            )
        return build(description, load_file(directory / "model.safetensors"))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            "model", str(directory), "an undamaged mpiflow model", f"Loading said: {error!r}."
        ) from error
