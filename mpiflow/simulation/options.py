"""Options of a run: one schema behind Python, TOML files and the command line.

A field's type, limits, default and description are written once, here. The
command line is generated from them (:mod:`mpiflow.cli`), a TOML file holds the
same names as keys, and the Trajectory file stores the whole configuration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Literal,
    Self,
    Union,
    get_args,
    get_origin,
)

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError

from mpiflow.core import inputs
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.gpu import ON_GPUS, DeviceName
from mpiflow.core.schedule import (
    MOST_CHECKPOINTS,
    MOST_STEPS,
    Schedule,
    number_to_json,
    require_few,
    spacing,
)
from mpiflow.core.toml_files import read_toml
from mpiflow.simulation.option_values import Names, Seconds

if TYPE_CHECKING:  # it imports h5py: not for the sake of --help
    from mpiflow.files.moments import Moment

#: Frames saved by default.
FRAMES = 100
_NO_TABLES = "A file of options has no tables: leave this line out, and keep what is below it."


def option(
    default: Any,
    description: str,
    *,
    allowed: str = "",
    remedy: str = "",
    shown: str = "",
    metavar: str = "",
    **limits: Any,
) -> Any:
    """A field with what its error message and its help text say.

    Parameters
    ----------
    allowed : as in :class:`~mpiflow.core.errors.InputError`; what type and limits say unless given
    remedy : as there; to try the default, or to leave the option out, unless given
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


def device_option(what: str = "Where to compute.") -> Any:
    """``--device`` of runs and of learners."""
    return option("cpu", f"{what} {ON_GPUS}.")


def alternatives(annotation: Any) -> list[Any]:
    """The types that a field accepts, without None."""
    if get_origin(annotation) in (Union, UnionType):
        return [a for a in get_args(annotation) if a is not type(None)]
    return [annotation]


def _allowed(field: FieldInfo) -> str:
    """What the type and the limits of an option allow, in words."""
    kind = alternatives(field.annotation)[0]
    if get_origin(kind) is Literal:
        *names, last = map(repr, get_args(kind))
        return f"{', '.join(names)} or {last}"
    if kind is bool:
        return "true or false"
    limits: dict[str, Any] = {}
    for part in field.metadata:
        limits |= {n: getattr(part, n) for n in ("ge", "gt", "le") if hasattr(part, n)}
    least = f"above {limits['gt']:g}" if "gt" in limits else ""
    if "le" in limits:
        most = f"{limits['le']:g}"
        return f"{least}, at most {most}" if least else f"{limits['ge']:g} to {most}"
    if kind is int:
        return f"{limits['ge']} or more"
    if "ge" in limits:
        return f"a finite number, {limits['ge']:g} or more"
    return f"a finite number {least}".strip()


def _remedy(field: FieldInfo) -> str:
    default, kind = field.default, alternatives(field.annotation)[0]
    if default is None:
        return "Leave it out."
    if kind is bool:
        return "Try true."
    value = f"{default:g}" if kind is float else default
    return f"{'Use' if get_origin(kind) is Literal else 'Try'} {value}."


class Config(BaseModel):
    """Base of all configurations: any bad value raises :class:`InputError`."""

    # Deferred: a program has the options of all systems and checks those of one.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)
    #: Options of a base that come after those of the system.
    LATE: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **values: Any) -> None:
        for name, field in type(self).model_fields.items():
            if name in values and not _truth_fits(values[name], field.annotation is bool):
                texts: Any = field.json_schema_extra or {"allowed": "no truth value", "remedy": ""}
                raise InputError(name, values[name], texts["allowed"], texts["remedy"])
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _input_error(type(self), error, values) from None

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """Words that an option leaves out follow from its type, limits and default."""
        super().__pydantic_init_subclass__(**arguments)
        for field in cls.model_fields.values():
            texts: Any = field.json_schema_extra
            if texts:
                texts["allowed"] = texts["allowed"] or _allowed(field)
                texts["remedy"] = texts["remedy"] or _remedy(field)

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
        own.sort(key=lambda name: (name in StartConfig.model_fields, name in cls.LATE))
        names = [*own, *(name for name in cls.model_fields if name not in own)]
        return {name: f for name in names if (f := cls.model_fields[name]).json_schema_extra}

    def _refuse(self, why: str, *names: str) -> None:
        """Raise for the first of some options that has a value, though it would do nothing."""
        for name in names:
            if getattr(self, name) is not None:
                raise idle(name, getattr(self, name), why)

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
    device: DeviceName = device_option()
    out: Path = option(
        ...,
        "Trajectory file to write (HDF5, opens as netCDF4).",
        allowed="a path in an existing folder",
        remedy="Try run.h5.",
    )
    overwrite: bool = option(False, "Replace an existing file.")
    writer: Literal["auto", "parallel", "gather"] = option(
        "auto",
        "Write with parallel HDF5, through rank 0, or with the first that works here.",
    )
    resume: bool = option(
        False,
        "Go on from the newest checkpoint of OUT if there is one, else start.",
        remedy="Leave it out to start a new run.",
    )
    checkpoints: bool = option(
        True,
        "Write checkpoints, beside OUT in checkpoints/, also at the end.",
        remedy="Leave it out.",
    )
    checkpoint_every: float | None = option(
        None,
        "Distance of checkpoints, in the run's unit: time, or hops.",
        shown="10 minutes of work",
        gt=0,
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
    observables: Names = option(
        (),
        "What to measure besides, A,B,...: structure_factor, correlation, clusters, "
        "cluster_sizes, interface_length, magnetization_histogram; options of one behind colons, "
        "structure_factor:coarse=8.",
        shown="none",
        metavar="A,B,...",
        allowed="names with commas between, options of one behind colons",
        remedy="Try structure_factor,clusters.",
    )
    quiet: bool = option(False, "Show nothing.")
    #: SHA-256 of the input files, by option: found when the run starts, see mpiflow.core.inputs.
    inputs: dict[str, str] = {}

    #: Options that say what is saved besides the observables.
    SAVED: ClassVar[tuple[str, ...]] = ()
    if TYPE_CHECKING:  # each has its own
        system: str
        time: Any
        save_every: Any

    def extent(self) -> dict[str, Any]:
        """How far the run goes, and how often it saves: arguments of ``record``."""
        known = ("time", "hops", "save_every", "frames_per_decade")
        return {name: getattr(self, name) for name in known if name in type(self).model_fields}

    def frames_due(self) -> Schedule:
        """When frames are due, as far as options tell: windows may end later than hops.

        Raises
        ------
        InputError : they are too many
        """
        hops, growing = getattr(self, "hops", None), getattr(self, "frames_per_decade", None)
        end, unit = (self.time, "time") if hops is None else (hops, "hops")
        step = (growing and getattr(self, "step", None)) or 0.0
        return Schedule.of(0.0, float(end), self.save_every, unit, growing, step)

    def saved(self) -> dict[str, Any]:
        """What is saved besides: arguments of ``record``."""
        return {name: getattr(self, name) for name in self.SAVED}

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The files that the run is made from, by the option that names them."""
        return {}

    def start(self) -> dict[str, Any]:
        """Options that choose from the initial file, in words that hold where the run goes on."""
        return {}

    @classmethod
    def derived(cls, config: Mapping[str, Any]) -> set[str]:
        """Options of a configuration whose values another one of its options says."""
        return set()

    @model_validator(mode="after")
    def _check_run(self) -> Self:
        if not self.checkpoints:
            self._refuse("without checkpoints", "walltime", "checkpoint_every")
        if self.members > 1 and "ranks_grid" in type(self).model_fields:
            self._refuse("with several members, dealt to the ranks", "ranks_grid")
        if self.observables:
            from mpiflow.observables.ready import listed  # it imports what compiles

            listed(self.observables)
        return self

    def _check_intervals(
        self, end: float, whole: float | None = None, step: str = "", unit: str = "time"
    ) -> None:
        """Neither endless nor absurd: frames, checkpoints, and steps of the option ``step``.

        Frames are unless given a hundredth of the run apart, in ``whole`` steps if there are any.
        """
        self._fill("save_every", spacing(end, FRAMES, whole))
        every: float = self.save_every
        self.frames_due()
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
        self._refuse(why, *names)


def _truth_fits(value: Any, truth: bool) -> bool:
    """Whether a value is a truth value just where one is wanted: true is no 1, and 1 not true."""
    if isinstance(value, list | tuple):
        return not truth and all(_truth_fits(part, False) for part in value)
    if isinstance(value, str):
        return not truth or value.lower() in ("true", "false")
    return truth == (type(value).__name__ in ("bool", "bool_")) or value is None


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
