"""What the file of an imported run holds: spins, states, a field of real numbers, or an alloy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from mpiflow.commands.importing.options import ImportConfig
from mpiflow.core.errors import InputError
from mpiflow.files.readers.frames import Frame
from mpiflow.files.schema import STANDARD, Variable, block_centres
from mpiflow.files.structure import Structure, species_of
from mpiflow.files.structure_files import Unfit
from mpiflow.simulation.options import idle
from mpiflow.systems import alloy

_INT8 = np.iinfo(np.int8)
#: Of a number of the file.
_LARGEST = float(np.finfo(np.float32).max)


class Content(Protocol):
    """What is stored of every frame.

    Attributes
    ----------
    shape : of the values of a frame
    dims, coordinates, variables : of the file
    config, attributes : what the file says of itself
    """

    shape: tuple[int, ...]
    dims: dict[str, int]
    coordinates: dict[str, np.ndarray]
    variables: list[Variable]
    config: dict[str, Any]
    attributes: dict[str, Any]

    def values(self, frame: Frame) -> dict[str, Any]:
        """Of each variable, or Unfit."""
        ...


def content_of(first: Frame, config: ImportConfig) -> Content:
    """The content that fits the first frame.

    Raises
    ------
    InputError : an option does not fit it
    Unfit : its values are none
    """
    if isinstance(first.values, Structure):
        _refuse(
            config,
            "of an alloy",
            "kind",
            "states",
            "offset",
            "scale",
            "spacing",
            "block",
            "coupling",
        )
        return AlloyContent(first.values, first.elements)
    _refuse(config, "of sites of a square lattice", "elements")
    values = numbers(first, config)
    if config.kind == "states":
        _refuse(config, "of states", "coupling", "spacing")
        return StateContent(values, config)
    spins = config.kind == "spins" or (config.kind == "auto" and is_spins(values))
    if not spins:
        _refuse(config, "of a field", "coupling")
        return FieldContent(values.shape, config)
    _refuse(config, "of spins", "spacing")
    return SpinContent(values.shape, config)


def _refuse(config: ImportConfig, why: str, *names: str) -> None:
    """Options that would do nothing."""
    for name in names:
        if (value := getattr(config, name)) != type(config).model_fields[name].default:
            raise idle(name, value, why)


def numbers(frame: Frame, config: ImportConfig) -> np.ndarray:
    """The values of a frame, finite, with offset and scale; or Unfit."""
    values = np.asarray(frame.values)
    if not (good := np.isfinite(values)).all():
        y, x = np.unravel_index(int(np.argmin(good)), good.shape)
        found = f"{frame.where}: at y = {y}, x = {x} it has {values[y, x]}."
        raise Unfit("finite numbers", f"{found} Fill it, or leave the frame out.")
    if config.offset or config.scale != 1:
        return (values.astype(np.float64) + config.offset) * config.scale
    return values


def is_spins(values: np.ndarray) -> bool:
    """Whether all values are 1 or -1."""
    return bool((np.abs(values) == 1).all())


def _sides(shape: Sequence[int], block: int, unit: int = 1) -> tuple[int, int]:
    """(ny, nx) blocks of a lattice of (y, x) values of ``unit`` sites a side."""
    ny, nx = (side * unit for side in shape)
    if ny % block or nx % block:
        allowed = f"a divisor of {ny} and of {nx}, the sides of the lattice"
        raise InputError("block", block, allowed, "Choose another, or leave it out.")
    return ny // block, nx // block


def _blocks(content: Content, block: int | None, name: str) -> tuple[str, ...]:
    """Add a field over blocks, where they are wanted; the names that are left for axes of sites."""
    if block is None:
        return ("y", "x")
    content.variables.append(STANDARD[name])
    for axis, count in zip("yx", _sides(content.shape, block), strict=True):
        content.dims[axis] = count
        content.coordinates[axis] = block_centres(count * block, block)
    return ("y", "x") if block == 1 else ("site_y", "site_x")


def _sites(content: Content, axes: Sequence[str]) -> None:
    """Add the axes of sites."""
    for axis, count in zip(axes, content.shape, strict=False):
        content.dims[axis] = count
        content.coordinates[axis] = block_centres(count, 1)


class SpinContent:
    """Spins as bits, or as bytes where 8 do not divide a row; means of blocks where wanted."""

    def __init__(self, shape: tuple[int, ...], config: ImportConfig) -> None:
        self.options, self.shape, self.block = config, shape, config.block
        names = ["magnetization", "domain_wall_density"]
        names += ["energy"] if config.coupling is not None else []
        self.variables = [STANDARD[name] for name in names]
        self.dims: dict[str, int] = {}
        self.coordinates: dict[str, np.ndarray] = {}
        axes = _blocks(self, config.block, "coarse_magnetization")
        self.bits = shape[1] % 8 == 0
        if self.bits:
            self.variables.append(STANDARD["spin_bits"].over(axes[0], "x_byte"))
            _sites(self, axes[:1])
            self.dims["x_byte"] = shape[1] // 8
            self.coordinates["x_byte"] = np.arange(0.0, shape[1], 8.0)
        else:
            self.variables.append(STANDARD["spin"].over(*axes))
            _sites(self, axes)
        self.config = {"kind": "spins", "size": list(shape), "coarse": self.block}
        self.attributes: dict[str, Any] = {}

    def values(self, frame: Frame) -> dict[str, Any]:
        given = numbers(frame, self.options)
        if not is_spins(given):
            y, x = np.unravel_index(int(np.argmax(np.abs(given) != 1)), given.shape)
            found = f"{frame.where}: at y = {y}, x = {x} it has {given[y, x]:g}."
            raise Unfit("spins 1 and -1", f"{found} Use --kind field, or --offset and --scale.")
        s, sites = given.astype(np.int8), given.size
        total = int(s.sum(dtype=np.int64))
        bonds = sum(int((s * np.roll(s, -1, axis)).sum(dtype=np.int64)) for axis in (0, 1))
        out: dict[str, Any] = {
            "magnetization": total / sites,
            "domain_wall_density": 0.5 * (1.0 - bonds / (2.0 * sites)),
        }
        if (coupling := self.options.coupling) is not None:
            from mpiflow.systems.ising import Ising  # it loads Numba

            law = Ising(self.options.temperature or 1.0, self.options.field or 0.0, coupling)
            out["energy"] = float(law.energy(np.array(bonds), np.array(total))) / sites
        if self.block is not None:
            out["coarse_magnetization"] = _means(s, self.block)
        if self.bits:
            out["spin_bits"] = np.packbits(s > 0, axis=-1)
        else:
            out["spin"] = s
        return out


class StateContent:
    """Sites in one of a few states, their fractions, and fractions of blocks where wanted."""

    def __init__(self, first: np.ndarray, config: ImportConfig) -> None:
        self.options, self.shape, self.block = config, first.shape, config.block
        low, high = config.states or (int(first.min()), int(first.max()))
        if not _INT8.min <= low <= high <= _INT8.max:
            found = f"It has {low} to {high}."
            raise Unfit(f"states from {_INT8.min} to {_INT8.max}", f"{found} Use --kind field.")
        self.low, self.number = low, high - low + 1
        fraction = Variable("fraction", ("state",), long_name="fraction of the sites in each state")
        self.variables = [fraction, STANDARD["domain_wall_density"]]
        self.dims: dict[str, int] = {"state": self.number}
        self.coordinates = {"state": np.arange(low, high + 1)}
        axes = _blocks(self, config.block, "coarse_fraction")
        self.variables.append(STANDARD["site_state"].over(*axes))
        _sites(self, axes)
        self.config = {"kind": "states", "size": list(self.shape), "coarse": self.block}
        self.attributes: dict[str, Any] = {}

    def values(self, frame: Frame) -> dict[str, Any]:
        given = numbers(frame, self.options)
        states = np.rint(given).astype(np.int64) - self.low
        wrong = (states + self.low != given) | (states < 0) | (states >= self.number)
        if wrong.any():
            y, x = np.unravel_index(int(np.argmax(wrong)), given.shape)
            found = f"{frame.where}: at y = {y}, x = {x} it has {given[y, x]:g}."
            allowed = f"whole numbers from {self.low} to {self.low + self.number - 1}"
            raise Unfit(allowed, f"{found} Give the range with --states LOW,HIGH.")
        unlike = sum(int((states != np.roll(states, -1, axis)).sum()) for axis in (0, 1))
        out: dict[str, Any] = {
            "fraction": np.bincount(states.ravel(), minlength=self.number) / states.size,
            "domain_wall_density": unlike / (2 * states.size),
            "site_state": (states + self.low).astype(np.int8),
        }
        if self.block is not None:
            each = [_means(states == number, self.block) for number in range(self.number)]
            out["coarse_fraction"] = np.stack(each)
        return out


class FieldContent:
    """Means over blocks of a field, and over all."""

    def __init__(self, shape: tuple[int, ...], config: ImportConfig) -> None:
        self.options, self.shape = config, shape
        unit = config.spacing or 1
        block = config.block or unit
        blocks = _sides(shape, block, unit)
        self.times = block // unit
        self.variables = [STANDARD["magnetization"], STANDARD["coarse_magnetization"]]
        self.dims = dict(zip("yx", blocks, strict=True))
        self.coordinates = {axis: block_centres(n * block, block) for axis, n in self.dims.items()}
        size = [side * unit for side in shape]
        self.config: dict[str, Any] = {"kind": "field", "size": size, "coarse": block}
        self.attributes: dict[str, Any] = {}

    def values(self, frame: Frame) -> dict[str, Any]:
        means = _means(numbers(frame, self.options), self.times)
        if not (abs(means) <= _LARGEST).all():
            found = f"{frame.where}: it has {abs(means).max():g}. Use --scale."
            raise Unfit(f"values up to {_LARGEST:g}", found)
        return {"magnetization": float(means.mean()), "coarse_magnetization": means}


def _means(values: np.ndarray, block: int) -> np.ndarray:
    """Means over blocks, (ny, nx) float64; of whole numbers they are exact."""
    ny, nx = (side // block for side in values.shape)
    cut = values.reshape(ny, block, nx, block)
    return cut.sum(axis=(1, 3), dtype=np.float64) / block**2


class AlloyContent:
    """Species of the sites of a bcc lattice, their bonds, and order parameters."""

    def __init__(self, first: Structure, elements: tuple[str, ...]) -> None:
        self.cells = tuple(side // 2 for side in first.grid.shape)
        self.shape, self.elements = first.grid.shape, elements
        names = np.array(("vacancy", *elements))
        self.coordinates: dict[str, np.ndarray] = {
            "pair": np.array(alloy.pair_names(elements)),
            "element": np.array(elements),
            "corner_species": names,
            "centre_species": names,
        }
        sites = 2 * int(np.prod(self.cells))
        self.dims = {name: len(v) for name, v in self.coordinates.items()} | {"site": sites}
        kept = ("sro", "warren_cowley", "long_range_order", "bonds", "species")
        self.variables = [STANDARD[name] for name in kept]
        self.config: dict[str, Any] = {
            "kind": "species",
            "cells": list(self.cells),
            "elements": list(elements),
        }
        self.attributes: dict[str, Any] = {"lattice_constant_angstrom": first.lattice_constant}

    def values(self, frame: Frame) -> dict[str, Any]:
        if frame.elements != self.elements:
            found = f"{frame.where}: it has {', '.join(frame.elements)}. Give all with --elements."
            raise Unfit(f"the elements of the first frame, {', '.join(self.elements)}", found)
        grid = frame.values.grid if isinstance(frame.values, Structure) else frame.values
        species = species_of(grid)
        bonds = alloy.bonds_of(species, self.cells, len(self.elements) + 1)
        return {
            "species": species,
            "bonds": bonds,
            "sro": alloy.short_range_order(bonds),
            "warren_cowley": alloy.warren_cowley(bonds),
            "long_range_order": alloy.long_range_order(bonds),
        }
