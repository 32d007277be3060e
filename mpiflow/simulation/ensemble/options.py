"""Options of ``mpiflow simulate linear-chain``, ``curie-weiss`` and ``predator-prey``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator
from pydantic.fields import FieldInfo

from mpiflow.core.errors import InputError
from mpiflow.core.schedule import MOST_A_DECADE
from mpiflow.simulation import common_options as common
from mpiflow.simulation.option_values import Sides
from mpiflow.simulation.options import FRAMES, StartConfig, idle, option

if TYPE_CHECKING:  # they compile: not for the sake of --help
    from mpiflow.systems.curie_weiss import CurieWeiss
    from mpiflow.systems.linear_chain import LinearChain
    from mpiflow.systems.predator_prey import PredatorPrey


#: The time step of systems on a line.
dt_option = partial(
    option, default=0.01, gt=0, allowed="a number above 0 at which steps are stable"
)


class EnsembleConfig(StartConfig):
    """Options of systems that are never cut: each is whole on a rank.

    Attributes
    ----------
    scalars : variables of the file that are a number for each member
    profiles : those over :attr:`axis` too, which ``profile`` saves
    states : variables of the file that make up a state
    moves : in words, how time advances
    """

    scalars: ClassVar[tuple[str, ...]] = ()
    profiles: ClassVar[tuple[str, ...]] = ()
    states: ClassVar[tuple[str, ...]] = ()
    axis: ClassVar[str] = ""
    moves: ClassVar[str] = ""

    system: str
    members: int = option(
        1,
        "Independent systems. They are dealt to the ranks; every rank computes a single one.",
        ge=1,
        remedy="Leave it out for one system.",
    )
    time: float = common.time(description="Time to simulate.")
    save_every: float = common.save_every()
    frames_per_decade: int | None = option(
        None,
        "Frames at growing distances: the first after --save-every, so many from there to ten "
        "times as far, and so on.",
        shown="none: all --save-every apart",
        ge=1,
        le=MOST_A_DECADE,
        remedy="Try 10.",
    )

    @classmethod
    def options(cls) -> dict[str, FieldInfo]:
        """The fields that are options of the command line, those of the system first."""
        known, shared = super().options(), EnsembleConfig.model_fields
        return {name: known[name] for name in sorted(known, key=lambda name: name in shared)}

    @property
    def shape(self) -> tuple[int, ...]:
        """Sides of a system, in sites."""
        raise NotImplementedError

    @property
    def part(self) -> tuple[int, ...]:
        """Sides of each of :attr:`states`."""
        return self.shape

    @property
    def step(self) -> float | None:
        """Length of a time step; None for exact events."""
        return getattr(self, "dt", None)

    @classmethod
    def short_time(cls, options: Mapping[str, Any]) -> float:
        """A time that a run with some options may take: a step, if there are steps."""
        default = cls.model_fields["dt"].default if "dt" in cls.model_fields else 1.0
        return float(options.get("dt", default))

    def saved(self) -> dict[str, Any]:
        return {"profile": self.saves_profiles}

    @property
    def saves_profiles(self) -> bool:
        """Whether the file holds what lies along the axis."""
        return bool(getattr(self, "profile", False))

    def _check_start(self) -> None:
        """An initial file fixes the state: the other options of the start would do nothing."""
        self._check_file()
        if not self.files():
            return
        for name in type(self).model_fields.keys() - StartConfig.model_fields.keys():
            value = getattr(self, name)
            if name.startswith("initial_") and value != type(self).model_fields[name].default:
                raise idle(name, value, f"with initial {self.initial}, which fixes the state")

    def _check_times(self, longest: float = math.inf) -> None:
        """Steps are shorter than the ``longest``, times are whole steps, the device is ours."""
        if self.device != "cpu":
            raise idle("device", self.device, "but cpu: these systems are computed there")
        dt = self.step
        if dt is None:
            self._check_intervals(self.time)
            return
        if dt >= longest:
            allowed = f"above 0 and below {longest:.4g}, where steps are stable"
            raise InputError("dt", dt, allowed, f"Try {longest / 100:.1g}.")
        self._check_intervals(self.time, dt, "dt")
        # A run that goes on with another dt has made its first steps with the old one.
        for name in ("save_every",) if self.resume else ("time", "save_every"):
            value = getattr(self, name)
            steps = round(value / dt)
            if steps < 1 or not math.isclose(steps * dt, value, rel_tol=1e-9):
                near = f"Use {max(1, steps) * dt:.12g}, or another dt."
                raise InputError(name, value, f"a multiple of the time step {dt:g}", near)


class ChainConfig(EnsembleConfig):
    """``mpiflow simulate linear-chain``: what to simulate, and what to save of it."""

    system: Literal["linear-chain"] = "linear-chain"
    scalars: ClassVar[tuple[str, ...]] = ("displacement",)
    profiles: ClassVar[tuple[str, ...]] = ("displacement_profile",)
    states: ClassVar[tuple[str, ...]] = profiles
    kinds: ClassVar[tuple[str, ...]] = ("rest",)
    axis: ClassVar[str] = "site"
    moves: ClassVar[str] = "Euler-Maruyama"

    size: int = option(
        ...,
        "Sites of a chain.",
        ge=2,
        le=2**31,
        allowed="2 to 2**31 sites",
        remedy="Try 10.",
    )
    force: float = option(15.0, "Force F on the first site.")
    friction: float = option(0.1, "Friction: the rate at which the mean displacement decays.", gt=0)
    coupling: float = option(1.0, "Stiffness of the springs between neighbours.", ge=0)
    noise: float = option(1.0, "Strength sigma of the white noise of a site.", ge=0)
    dt: float = dt_option(description="Time step; stable below 2 / (friction + 4 coupling).")
    initial: str = common.initial(
        kinds,
        "rest (the mean profile, or --initial-displacement), or the path of a .npy file of "
        "displacements or of a run saved with --profile.",
    )
    initial_displacement: float | None = option(
        None,
        "Displacement of all sites at time 0.",
        shown="the mean profile at rest",
        remedy="Leave it out to start at rest.",
    )
    profile: bool = option(False, "Save all sites too, 8 bytes each.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self._check_start()
        self._check_times(self.chain().longest_step)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """(sites,)."""
        return (self.size,)

    def chain(self) -> LinearChain:
        """The system."""
        from mpiflow.systems.linear_chain import LinearChain

        return LinearChain(self.size, self.force, self.friction, self.coupling, self.noise)


class CurieWeissConfig(EnsembleConfig):
    """``mpiflow simulate curie-weiss``: what to simulate, and what to save of it."""

    system: Literal["curie-weiss"] = "curie-weiss"
    scalars: ClassVar[tuple[str, ...]] = ("magnetization", "energy", "flips")
    states: ClassVar[tuple[str, ...]] = ("magnetization",)
    kinds: ClassVar[tuple[str, ...]] = ("uniform",)
    moves: ClassVar[str] = "exact events"

    size: Sides = common.size(
        description="Sites a side, or LYxLX. Only the number of spins, LY LX, matters.",
        allowed="a number of sites a side, 2 or more, or LYxLX",
        remedy="Try 64.",
    )
    temperature: float = common.temperature(remedy="Try 1.1 (critical: 1).")
    field: float = common.field()
    coupling: float = common.coupling(description="Coupling J of the mean field.")
    time: float = common.time()
    save_every: float = common.save_every(shown=f"a {FRAMES}th of the time")
    initial: str = common.initial(
        kinds,
        "uniform (--initial-magnetization), or the path of a .npy file of a magnetization or of "
        "a run of as many spins.",
    )
    initial_magnetization: float = common.initial_magnetization(
        description="Mean spin at time 0, to the nearest spin."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        from mpiflow.core.lattice import Lattice

        Lattice(self.size)
        self._check_start()
        self._check_times()
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """(LY, LX)."""
        return self.size

    @property
    def part(self) -> tuple[int, ...]:
        """A number."""
        return ()

    @property
    def sites(self) -> int:
        """Number of spins."""
        return math.prod(self.size)

    def model(self) -> CurieWeiss:
        """The system."""
        from mpiflow.systems.curie_weiss import CurieWeiss

        return CurieWeiss(self.temperature, self.field, self.coupling)


class PredatorPreyConfig(EnsembleConfig):
    """``mpiflow simulate predator-prey``: what to simulate, and what to save of it."""

    system: Literal["predator-prey"] = "predator-prey"
    scalars: ClassVar[tuple[str, ...]] = ("prey", "predator")
    profiles: ClassVar[tuple[str, ...]] = ("prey_profile", "predator_profile")
    states: ClassVar[tuple[str, ...]] = profiles
    kinds: ClassVar[tuple[str, ...]] = ("wave",)
    axis: ClassVar[str] = "position"
    moves: ClassVar[str] = "Euler-Maruyama"

    size: int = option(
        ...,
        "Cells of a line.",
        ge=2,
        le=2**31,
        allowed="2 to 2**31 cells",
        remedy="Try 200.",
    )
    form: Literal["published", "pde"] = option(
        "published",
        "published: the stencil of the published code, without dx. pde: the equation as printed, "
        "diffusion implicit; it needs a prey diffusion.",
    )
    growth: float = option(3.0, "Growth a of the predators.", ge=0)
    death: float = option(0.4, "Prey b on which predators just live.", ge=0)
    prey_diffusion: float = option(
        0.0, "Diffusion c of the prey; that of predators is 1.", ge=0, remedy="Try 0.01."
    )
    noise: float = option(0.02, "Strength sigma of the white noise.", ge=0)
    dt: float = dt_option(description="Time step.")
    initial: str = common.initial(
        kinds,
        "wave (--initial-prey, --initial-wave), or the path of a .npy file of prey and predators, "
        "(2, cells), or of a run saved with --profile.",
    )
    initial_prey: float = option(
        0.5, "Mean of the prey at time 0; the predators are what is left to 1.", ge=0, le=1
    )
    initial_wave: float = option(
        0.1,
        "Amplitude of a wave of five periods in the prey at time 0, and its opposite in the "
        "predators.",
        ge=0,
        allowed="0 or more, at most the means of prey and of predators",
    )
    profile: bool = option(False, "Save prey and predators of all cells too, 8 bytes each.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        most = min(self.initial_prey, 1.0 - self.initial_prey)
        if self.initial_wave > most:
            allowed = f"0 to {most:g}, the smaller of the means of prey and of predators"
            raise InputError("initial_wave", self.initial_wave, allowed, "Nobody is negative.")
        self._check_start()
        self._check_times(min(1.0, self.line().longest_step))
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """(cells,)."""
        return (self.size,)

    def line(self) -> PredatorPrey:
        """The system."""
        from mpiflow.systems.predator_prey import PredatorPrey

        return PredatorPrey(
            self.size, self.form, self.growth, self.death, self.prey_diffusion, self.noise
        )
