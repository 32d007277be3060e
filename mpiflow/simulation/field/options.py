"""Options of ``mpiflow predict``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import PrivateAttr, model_validator

from mpiflow.core import inputs
from mpiflow.core.errors import InputError
from mpiflow.core.gpu import DeviceName
from mpiflow.simulation import common_options as common
from mpiflow.simulation.option_values import Sides
from mpiflow.simulation.options import StartConfig, device_option, idle, option

KIND = "onsagerflow"
#: What a model consists of.
FILES = ("model.json", "model.safetensors")


class FieldConfig(StartConfig):
    """``mpiflow predict``: a learned stochastic field, what to run, and from where.

    Attributes
    ----------
    coarse : the block; what reads block means of ``mpiflow simulate`` looks for it here
    """

    _merge: int = PrivateAttr(1)
    system: Literal["onsagerflow"] = "onsagerflow"
    kinds: ClassVar[tuple[str, ...]] = ("uniform",)
    coarse: int | None = None

    model: Path = option(
        ...,
        "Folder of a model: of a field, or of a closure or an alloy, which have fewer options "
        "(docs/learning.md).",
        metavar="MODEL",
        allowed="a folder that mpiflow learn wrote",
        remedy="Learn one first.",
    )
    size: Sides = common.size(remedy="Try 512.")
    block: int | None = option(
        None,
        "Sites a side of a block.",
        shown="the learned block, times STRETCH",
        ge=1,
        allowed="a multiple of the learned block, times STRETCH; a divisor of every side",
    )
    stretch: int = option(
        1,
        "The coupling reaches so many times further in sites than where it was learned: 16 for "
        "a lattice 16 times larger at the same width of the box.",
        ge=1,
        remedy="Leave it out.",
    )
    temperature: float | None = common.temperature(
        default=None,
        description="Temperature.",
        shown="the learned one, if it is one",
        remedy="Try one of those that were learned.",
    )
    field: float = common.field()
    structure: Literal["cosh", "langevin"] | None = option(
        None,
        "Of the equation: cosh (spins of a block that flip) or langevin (Gaussian noise).",
        shown="as learned",
    )
    dt: float = option(
        0.1,
        "Time step in attempts per spin; made of inner steps where it is too long for the law.",
        gt=0,
        le=1,
    )
    device: DeviceName = device_option(
        "Where to compute. On cuda PyTorch's transforms, where it is there, change last bits."
    )
    time: float = common.time(description="Time to predict, in attempts per spin.")
    save_every: float = common.save_every()
    initial: str = common.initial(
        kinds,
        "uniform, or the path of a run (with block means or spins) or of a .npy of block means. "
        "A smaller lattice is repeated; the copies part ways by their noise.",
    )
    initial_magnetization: float = common.initial_magnetization(
        description="Mean spin of the uniform initial state."
    )
    frame: int | None = option(
        None,
        "The same as --initial-frame.",
        shown="none",
        allowed="a whole number",
        remedy="Leave it out for the last one.",
    )

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The model, and the initial state."""
        model = {"model": tuple(self.model / name for name in FILES)}
        return model | super().files()

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.__dict__["model"] = self.model.resolve()  # a run goes on from any folder
        if "model" in self.inputs and not self.model.is_dir():  # other words than for a new run
            raise inputs.missing("model", self.model, self.inputs["model"])
        about = describe(self.model)
        known = about["form"]["temperatures"]
        if self.temperature is None and len(known) > 1:
            allowed = f"given, as the model has {known}"
            raise InputError("temperature", None, allowed, f"Try {known[0]:g}.")
        self._fill("temperature", known[0])
        self._check_blocks(about)
        self._check_intervals(self.time, self.dt, "dt")
        if self.frame is not None:
            if self.initial_frame not in (None, self.frame):
                raise idle("frame", self.frame, "with initial_frame, which is the same")
            self.__dict__.update(initial_frame=self.frame, frame=None)
        if self.initial != "uniform" and self.initial_magnetization:
            raise idle("initial_magnetization", self.initial_magnetization, "with a file")
        self._check_file()
        return self

    def _check_blocks(self, about: dict[str, Any]) -> None:
        """Blocks are whole learned blocks, and divide the lattice."""
        spins = about["card"].get("spins", [])
        if len(spins) == 1:
            learned = math.isqrt(spins[0]) * self.stretch
            self._fill("block", learned)
        else:
            if self.block is None:
                allowed = f"given, as the model was learned from blocks of {spins} spins"
                raise InputError("block", None, allowed, "A block will be a learned one.")
            if self.stretch != 1:
                why = f"with a model of blocks of {spins} spins"
                raise idle("stretch", self.stretch, why)
            learned = self.block
        block = self.block or learned
        if block % learned:
            times = f" = {math.isqrt(spins[0])} x {self.stretch}" if self.stretch > 1 else ""
            allowed = f"a multiple of the learned block of {learned}{times} sites"
            raise InputError("block", block, allowed, f"Try {learned}.")
        self._merge = block // learned
        if any(side % block or side < 2 * block for side in self.size):
            allowed = f"a multiple of the block of {block} sites, two or more of them a side"
            up = tuple(max(2, -(-side // block)) * block for side in self.size)
            raise InputError(
                "size", self.size, allowed, f"Try {up[0]}x{up[1]}, or another --block."
            )
        if self.coarse not in (None, block):
            raise idle("coarse", self.coarse, "beside block, which it is")
        self.__dict__["coarse"] = block

    @property
    def merge(self) -> int:
        """Learned blocks along a side of a block."""
        return self._merge

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx) blocks."""
        block = self.block or 1
        return self.size[0] // block, self.size[1] // block


def describe(directory: Path) -> dict[str, Any]:
    """What ``model.json`` says about a model.

    Raises
    ------
    InputError : it is no folder of a model of this kind
    """
    allowed = "a folder that mpiflow learn wrote"
    try:
        about = json.loads((directory / "model.json").read_text(encoding="utf-8"))
        kind = about["kind"]
        if kind != KIND:
            remedy = f"It has kind '{kind}': mpiflow.load_model({str(directory)!r}).rollout(...)."
            raise InputError("model", str(directory), allowed, remedy)
        float(about["form"]["temperatures"][0]), list(about["card"].get("spins", []))
    except FileNotFoundError:
        raise InputError("model", str(directory), allowed, "It has no model.json.") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("model", str(directory), allowed, f"Reading said: {error!r}.") from error
    return dict(about)
