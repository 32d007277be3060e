"""Options of a run: one schema behind Python, TOML files and the command line.

A field's type, limits, default and description are written once, here. The
command line is generated from them (:mod:`mpiflow.cli`), a TOML file holds the
same names as keys, and the Trajectory file stores the whole configuration.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable
from datetime import time as clock_time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError

from mpiflow.core import inputs
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.core.schedule import MOST_CHECKPOINTS, MOST_STEPS, Schedule, require_few, spacing
from mpiflow.core.toml_files import read_toml

if TYPE_CHECKING:  # it imports h5py: not for the sake of --help
    from mpiflow.files.moments import Moment

#: Frames saved by default.
FRAMES = 100
_NO_TABLES = "A file of options has no tables: leave this line out, and keep what is below it."


def option(
    default: Any,
    description: str,
    *,
    allowed: str,
    remedy: str,
    shown: str = "",
    metavar: str = "",
    **limits: Any,
) -> Any:
    """A field with what its error message and its help text say.

    Parameters
    ----------
    allowed, remedy : as in :class:`~mpiflow.core.errors.InputError`
    shown : the default in words, where it depends on other options
    metavar : what stands for the value in the help, where its type does not say it
    """
    texts: dict[str, Any] = {
        "allowed": allowed,
        "remedy": remedy,
        "shown": shown,
        "metavar": metavar,
    }
    return Field(default, description=description, json_schema_extra=texts, **limits)


def _pair(value: Any) -> Any:
    """'64x32' or '64,32' to (64, 32); 64 is left to the caller."""
    if isinstance(value, str) and ("x" in value or "," in value):
        return tuple(value.replace("x", ",").split(","))
    return value


def _sides(value: Any) -> Any:
    value = _pair(value)
    return value if isinstance(value, list | tuple) else (value, value)


def number_to_json(value: float | None) -> float | str | None:
    return "inf" if value is not None and math.isinf(value) else value  # JSON has no infinity


#: As Slurm writes times, days first: D-HH, D-HH:MM, D-HH:MM:SS; without days HH:MM:SS and MM:SS.
#: All but the first number are below 24 or 60. A plain number is left: that is seconds.
_DAYS = re.compile(r"(\d+)-([01]?\d|2[0-3])(?::([0-5]?\d))?(?::([0-5]?\d))?", re.ASCII)
_HOURS = re.compile(r"(?:(\d+):([0-5]?\d)|(\d+)):([0-5]?\d)", re.ASCII)


def _seconds(value: Any) -> Any:
    """'1:30:00' to 5400, '1-12' to 129600, also where TOML has made a time of day of it."""
    if isinstance(value, clock_time) and value.tzinfo is None:
        return value.hour * 3600 + value.minute * 60 + value.second + value.microsecond / 1e6
    text = value.strip() if isinstance(value, str) else ""
    if match := _DAYS.fullmatch(text):
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return float(((24 * days + hours) * 60 + minutes) * 60 + seconds)
    if match := _HOURS.fullmatch(text):
        hours, minutes, alone, seconds = (int(part or 0) for part in match.groups())
        return float((60 * hours + minutes + alone) * 60 + seconds)
    return value


Seconds = Annotated[float, BeforeValidator(_seconds)]
Sides = Annotated[tuple[int, int], BeforeValidator(_sides)]
Grid = Annotated[tuple[int, int], BeforeValidator(_pair)]
Step = Annotated[float, PlainSerializer(number_to_json, when_used="json")]


class Config(BaseModel):
    """Base of all configurations: any bad value raises :class:`InputError`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def __init__(self, **values: Any) -> None:
        for name in values.keys() & type(self).model_fields.keys():
            field = type(self).model_fields[name]
            if not _truth_fits(values[name], field.annotation is bool):
                texts: Any = field.json_schema_extra or {"allowed": "no truth value", "remedy": ""}
                raise InputError(name, values[name], texts["allowed"], texts["remedy"])
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _input_error(type(self), error, values) from None

    @classmethod
    def from_toml(cls, path: str | Path | None, **overrides: Any) -> Self:
        """Options from a TOML file, some of them overridden; without a path, from those only."""
        return cls(**(read_toml(path) if path is not None else {}) | overrides)

    def model_dump_json(self, **settings: Any) -> str:
        """The configuration as JSON, also where a path is no UTF-8: its bytes are escaped."""
        try:
            return super().model_dump_json(**settings)
        except PydanticSerializationError:
            values = {
                name: number_to_json(value) if isinstance(value, float) else value
                for name, value in self.model_dump().items()
            }
            return json.dumps(values, default=str, separators=(",", ":"))

    @classmethod
    def options(cls) -> dict[str, FieldInfo]:
        """The fields that are options of the command line, those of the system first."""
        own = [name for name in cls.model_fields if name not in RunConfig.model_fields]
        own.sort(key=lambda name: name in StartConfig.model_fields)
        names = [*own, *(name for name in cls.model_fields if name not in own)]
        return {name: f for name in names if (f := cls.model_fields[name]).json_schema_extra}

    def _fill(self, name: str, value: Any) -> None:
        """Put a default that depends on other options in place of None."""
        if getattr(self, name) is None:
            self.__dict__[name] = value  # the model is frozen for everyone else


class RunConfig(Config):
    """Options that every ``mpiflow simulate`` has."""

    members: int = option(
        1,
        "Independent lattices: 1 is cut over the ranks, more are dealt to the ranks.",
        ge=1,
        allowed="1 or more",
        remedy="Leave it out for one lattice.",
    )
    seed: int = option(
        0,
        "The run is its seed, on any number of ranks and any device.",
        ge=0,
        lt=2**63,
        allowed="0 to 2**63 - 1",
        remedy="Choose another seed.",
    )
    device: Literal["cpu", "cuda"] = option(
        "cpu",
        "Where to compute. cuda: simulated and assembled, not yet run on a GPU.",
        allowed="'cpu' or 'cuda'",
        remedy="Use cpu.",
    )
    out: Path = option(
        ...,
        "Trajectory file to write (HDF5, opens as netCDF4).",
        allowed="a path in an existing folder",
        remedy="Try run.h5.",
    )
    overwrite: bool = option(
        False, "Replace an existing file.", allowed="true or false", remedy="Try true."
    )
    writer: Literal["auto", "parallel", "gather"] = option(
        "auto",
        "Write with parallel HDF5, through rank 0, or with the first that works here.",
        allowed="'auto', 'parallel' or 'gather'",
        remedy="Use auto.",
    )
    resume: bool = option(
        False,
        "Go on from the newest checkpoint of OUT if there is one, else start.",
        allowed="true or false",
        remedy="Leave it out to start a new run.",
    )
    checkpoints: bool = option(
        True,
        "Write checkpoints, beside OUT in checkpoints/, also at the end.",
        allowed="true or false",
        remedy="Leave it out.",
    )
    checkpoint_every: float | None = option(
        None,
        "Distance of checkpoints, in the run's unit: time, or hops.",
        shown="10 minutes of work",
        gt=0,
        allowed="a finite number above 0",
        remedy="Leave it out.",
    )
    walltime: Seconds | None = option(
        None,
        "Stop with a checkpoint and exit code 75 before the process is this old: seconds, "
        "MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.",
        shown="none",
        metavar="TIME",
        gt=0,
        allowed="seconds above 0, or MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS",
        remedy="Try 3600.",
    )
    quiet: bool = option(False, "Show nothing.", allowed="true or false", remedy="Try true.")
    #: SHA-256 of the input files, by option: found when the run starts, see mpiflow.core.inputs.
    inputs: dict[str, str] = {}

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The files that the run is made from, by the option that names them."""
        return {}

    def start(self) -> dict[str, Any]:
        """Options that choose from the initial file, in words that hold where the run goes on."""
        return {}

    @model_validator(mode="after")
    def _check_keeping(self) -> Self:
        for name in ("walltime", "checkpoint_every"):
            if not self.checkpoints and getattr(self, name) is not None:
                raise idle(name, getattr(self, name), "without checkpoints")
        return self

    def _check_intervals(
        self, end: float, every: float, step: str = "", unit: str = "time"
    ) -> None:
        """Neither endless nor absurd: frames, checkpoints, and steps of the option ``step``."""
        Schedule.of(0.0, end, every, unit)
        if every > end * (1 + 1e-9):  # in Python it may be meant, here mostly a unit is wrong
            allowed = f"at most the {unit} of the run, {end:g}"
            raise InputError("save_every", every, allowed, f"Use {end:g} for first and last.")
        if self.checkpoint_every is not None:
            require_few(
                "checkpoint_every", self.checkpoint_every, end, MOST_CHECKPOINTS, "checkpoints"
            )
        length = getattr(self, step) if step else None
        if length is not None and math.isfinite(length):
            require_few(step, length, end, MOST_STEPS, "steps")


class StartConfig(RunConfig):
    """Options of systems that may start from the file of another run.

    Attributes
    ----------
    kinds : values of :attr:`initial` that name no file
    """

    kinds: ClassVar[tuple[str, ...]] = ()

    if TYPE_CHECKING:  # each has its own
        initial: str
    initial_frame: int | None = option(
        None,
        "Frame of the initial file, from 0; negative from the end.",
        shown="-1",
        allowed="the number of a frame of the initial file",
        remedy="Leave it out for the last one.",
    )
    initial_time: float | None = option(
        None,
        "Time of that frame, instead of its number.",
        shown="none",
        allowed="the time of a frame of the initial file",
        remedy="Leave it out for the last one.",
    )
    initial_member: int | None = option(
        None,
        "Member of the initial file that all members start from; negative from the end.",
        shown="each its own",
        allowed="the number of a member of the initial file",
        remedy="Leave it out for each its own.",
    )

    @property
    def moment(self) -> Moment:
        """Which frame and member of the initial file."""
        from mpiflow.files.moments import Moment

        return Moment(self.initial_frame, self.initial_time, self.initial_member)

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The initial state."""
        return {} if self.initial in self.kinds else {"initial": (Path(self.initial),)}

    def start(self) -> dict[str, Any]:
        """:attr:`moment` in numbers from 0, for an initial file that has frames and members."""
        from mpiflow.files.moments import is_run

        if "initial" not in self.files() or not is_run(Path(self.initial)):
            return {}
        return {**self.moment.settled(Path(self.initial)), "initial_time": None}

    def _check_file(self, frames_too: bool = False) -> None:
        """An initial file is there, by its absolute path, and has what is chosen from it."""
        if "initial" in self.files():
            self.__dict__["initial"] = inputs.absolute(self.initial)
            # A run that goes on may not need it any more.
            if not self.resume and not Path(self.initial).is_file():
                raise InputError(
                    "initial",
                    self.initial,
                    f"{', '.join(self.kinds)}, or the path of an existing file",
                    did_you_mean(self.initial, self.kinds) or "Check the path.",
                )
        self._check_moment(frames_too)

    def _check_moment(self, frames_too: bool) -> None:
        """Only the file of a run has times and members; ``frames_too`` of another has frames."""
        from mpiflow.files.moments import is_run

        if "initial" not in self.files():
            why = f"with initial {self.initial}, which is no file"
        elif self.resume or is_run(Path(self.initial)):
            if self.initial_frame is not None and self.initial_time is not None:
                raise idle("initial_time", self.initial_time, "with initial_frame")
            return
        else:
            why = f"with {self.initial}, which is not the file of a run"
        names = ["initial_time", "initial_member"]
        if "initial" not in self.files() or not frames_too:
            names.append("initial_frame")
        for name in names:
            if getattr(self, name) is not None:
                raise idle(name, getattr(self, name), why)


class SpinConfig(StartConfig):
    """Options of all systems of spins on a square lattice."""

    kinds: ClassVar[tuple[str, ...]] = ("shuffled", "random", "up", "gaussian")

    size: Sides = option(
        ...,
        "Sites a side, or LYxLX.",
        metavar="SIZE",
        allowed="a number of sites a side, or LYxLX",
        remedy="Try 64, or 64x128.",
    )
    temperature: float = option(
        ...,
        "Temperature.",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 1.",
    )
    field: float = option(0.0, "External field h.", allowed="a finite number", remedy="Try 0.1.")
    time: float = option(
        ...,
        "Time to simulate, in attempts per spin.",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 10.",
    )
    save_every: float = option(
        None,
        "Time between saved frames.",
        shown=f"a {FRAMES}th of the time, in whole steps",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 1.",
    )
    coarse: int | None = option(
        None,
        "Save means of blocks of this many sites a side too.",
        shown="none",
        ge=1,
        allowed="a divisor of every side of the lattice",
        remedy="Try 8.",
    )
    spins: bool = option(
        False, "Save all spins too, one byte each.", allowed="true or false", remedy="Try true."
    )
    spin_bits: bool = option(
        False,
        "Save all spins too, one bit each; for sides of a multiple of 8.",
        allowed="true or false",
        remedy="Try true.",
    )
    initial: str = option(
        "shuffled",
        "shuffled (exact magnetization), random, up, gaussian (smooth random field), or the "
        "path of a .npy file (spins, or their means) or of a run saved with --spins.",
        metavar="KIND|PATH",
        allowed="shuffled, random, up, gaussian, or the path of a file",
        remedy="Try shuffled.",
    )
    initial_magnetization: float = option(
        0.0,
        "Mean spin of the initial state: to the nearest spin of shuffled and gaussian, on average "
        "of random, whose spins are independent.",
        ge=-1,
        le=1,
        allowed="-1 to 1",
        remedy="Try 0.5.",
    )
    correlation_length: float | None = option(
        None,
        "Correlation length of the gaussian initial state, in sites.",
        shown="8 for gaussian",
        gt=0,
        allowed="a number above 0",
        remedy="Try 8.",
    )

    def _check_initial(self) -> None:
        if self.initial in ("shuffled", "random", "gaussian"):
            if self.initial == "gaussian":
                self._fill("correlation_length", 8.0)
        elif self.initial_magnetization:
            raise idle(
                "initial_magnetization",
                self.initial_magnetization,
                f"with initial {self.initial}, which fixes every spin",
            )
        if self.initial != "gaussian" and self.correlation_length is not None:
            raise idle(
                "correlation_length",
                self.correlation_length,
                f"with initial {self.initial}; gaussian has one",
            )
        self._check_file()

    def _check_lattice(self) -> Lattice:
        """The lattice; coarse blocks divide its sides."""
        lattice = Lattice(self.size)
        Layout(lattice, (1, 1), self.coarse or 1)
        if self.spin_bits and any(side % 8 for side in self.size):
            raise InputError("spin_bits", self.size, "sides of a multiple of 8", "Use --spins.")
        if self.spin_bits and self.spins:
            raise idle("spin_bits", True, "with spins, which are the same")
        return lattice


class IsingConfig(SpinConfig):
    """``mpiflow simulate ising``: what to simulate, and what to save of it."""

    system: Literal["ising"] = "ising"

    temperature: float = option(
        ...,
        "Temperature in units of J / k_B.",
        gt=0,
        allowed="a finite number above 0",
        remedy="Try 2.269 (critical).",
    )
    coupling: float = option(
        1.0,
        "Coupling J: 1 is the ferromagnet, -1 the antiferromagnet.",
        allowed="a finite number",
        remedy="Try 1.",
    )
    solver: Literal["sublattice", "nfold", "tiled-nfold"] = option(
        "sublattice",
        "sublattice: fixed step, any number of ranks. nfold: exact, one rank for each lattice. "
        "tiled-nfold: events in tiles, any number of ranks, for low temperature.",
        allowed="'sublattice', 'nfold' or 'tiled-nfold'",
        remedy="Use sublattice.",
    )
    kernel: Literal["auto", "packed", "sliced", "plain"] = option(
        "auto",
        "Of the sublattice solver: packed (bits; a multiple of 8 rows and 128 columns), sliced "
        "(bits; many small lattices) or plain (bytes, any size). Same law, each its own bits.",
        allowed="'auto', 'packed', 'sliced' or 'plain'",
        remedy="Leave it out.",
    )
    tile: int | None = option(
        None,
        "Side of the tiles of tiled-nfold, in sites.",
        shown="64 for tiled-nfold",
        ge=2,
        allowed="2 to 255, an even number of times in every side",
        remedy="Try 64.",
    )
    dt: Step | None = option(
        None,
        "Time step of the sublattice solver in attempts per spin, inf for checkerboard sweeps; "
        "window of tiled-nfold.",
        shown="0.25, tiled-nfold 1",
        gt=0,
        allow_inf_nan=True,
        allowed="a number above 0, or inf",
        remedy="Try 0.25.",
    )
    ranks_grid: Grid | None = option(
        None,
        "Ranks along y and x.",
        metavar="NY,NX",
        shown="the shortest boundaries",
        allowed="two positive numbers NY,NX whose product is the number of ranks",
        remedy="Leave it out to let mpiflow choose.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        lattice = self._check_lattice()
        if self.solver == "sublattice":
            lattice.require_bipartite()
            self._fill("dt", 0.25)
        elif self.kernel != "auto":
            raise idle("kernel", self.kernel, f"with the {self.solver} solver, which has one")
        if self.solver == "tiled-nfold":
            self._fill("dt", 1.0)  # no bias seen at this window (docs/performance.md)
            self._fill("tile", 64)
        elif self.tile is not None:
            raise idle("tile", self.tile, f"with the {self.solver} solver, which has none")
        if self.solver == "nfold" and self.dt is not None:
            raise idle("dt", self.dt, "with the nfold solver, which has no step")
        step = self.dt if self.dt is not None and math.isfinite(self.dt) else 1.0
        if self.solver == "nfold":
            self._fill("save_every", spacing(self.time, FRAMES))
        self._fill("save_every", spacing(self.time, FRAMES, step))
        self._check_intervals(self.time, self.save_every, "dt")
        self._check_initial()
        if self.ranks_grid is not None and self.members > 1:
            raise idle("ranks_grid", self.ranks_grid, "with several members, dealt to the ranks")
        return self


def _truth_fits(value: Any, truth: bool) -> bool:
    """Whether a value is a truth value just where one is wanted: true is no 1, and 1 not true."""
    if isinstance(value, list | tuple):
        return not truth and all(_truth_fits(part, False) for part in value)
    if isinstance(value, str):
        return not truth or value.lower() in ("true", "false")
    return truth == (type(value).__name__ in ("bool", "bool_")) or value is None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'Did you mean ...?', or nothing when no known word is close."""
    names = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), names, n=1)
    match = [names[name] for name in found]
    return f"Did you mean {match[0]}?" if match else ""


def idle(name: str, value: object, why: str) -> InputError:
    """An option that would do nothing is refused: the user expects something of it."""
    return InputError(name, value, f"no value {why}", "Leave it out.")


def _input_error(model: type[Config], error: ValidationError, values: dict[str, Any]) -> InputError:
    """The first thing that is wrong, as one message."""

    def rank(entry: Any) -> int:
        # A mistyped key is often also a missing one: the typing error tells more.
        return {"extra_forbidden": 0, "missing": 2}.get(entry["type"], 1)

    first = min(error.errors(), key=rank)
    name = str(first["loc"][0]) if first["loc"] else ""
    if name not in model.model_fields:
        original = first.get("ctx", {}).get("error")
        if isinstance(original, InputError):  # from a check across fields
            return original
        known = list(model.options())
        return InputError(
            name,
            values.get(name),
            f"one of {', '.join(known)}",
            did_you_mean(name, known)
            or ("Leave it out." if not isinstance(values.get(name), dict) else _NO_TABLES),
        )
    texts: Any = model.model_fields[name].json_schema_extra or {
        "allowed": f"{model.model_fields[name].default!r}",
        "remedy": "Leave it out, or use the command of that system.",
    }
    if first["type"] == "missing":
        found = {str(entry["loc"][0]) for entry in error.errors()}
        missing = [option for option in model.options() if option in found]
        name, texts = missing[0], model.model_fields[missing[0]].json_schema_extra
        also = f" So must {', '.join(missing[1:])}." if missing[1:] else ""
        return InputError(
            name, None, texts["allowed"], f"It must be given. {texts['remedy']}{also}"
        )
    return InputError(name, values.get(name), texts["allowed"], texts["remedy"])
