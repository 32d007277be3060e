"""Options of ``mpiflow simulate spin-diffusion``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

from pydantic import model_validator

from mpiflow.core.errors import InputError
from mpiflow.core.schedule import MOST_STEPS, require_few
from mpiflow.simulation import common_options as common
from mpiflow.simulation.ensemble.options import EnsembleConfig
from mpiflow.simulation.option_values import Step
from mpiflow.simulation.options import idle, option

if TYPE_CHECKING:  # it compiles: not for the sake of --help
    from mpiflow.systems.binary_chain import BinaryChain

Model = Literal[
    "langevin",
    "averaged",
    "mean-field",
    "point",
    "arrhenius",
    "free-energy",
    "free-energy-limited",
    "master",
]
#: The stochastic process and its averaged limit; the others are equations for mean spins.
STOCHASTIC = ("langevin", "averaged")
#: Models whose rate is a mobility, and what it is unless given: k_c, k_r and kappa exp(-beta Q).
MOBILITY = {"free-energy": 4.0, "free-energy-limited": 1.0, "master": 0.5}
#: Models with the logarithm of 1 + s and of 1 - s.
WITH_LOGARITHM = ("free-energy", "free-energy-limited")
#: Errors of a step of the integrators unless given.
TOLERANCE = {"rodas3": 1e-5, "bdf": 1e-3}
#: The step of Langevin's equation unless given, in units of epsilon: for frames in whole steps a
#: little less. Its error is of second order, some tenths of a percent in strains. The second is
#: that of atoms without preconditioning, which next neighbours pull from both sides.
STEP, STEP_OF_ATOMS = 0.25, 0.06

_MODELS = get_args(Model)
_EQUATIONS = tuple(name for name in _MODELS if name not in STOCHASTIC)
#: Options that only some models have, and what they are there unless given.
_OF_SOME: dict[str, tuple[tuple[str, ...], Any]] = {
    "epsilon": (("langevin",), 0.05),
    "rates": (STOCHASTIC, "tanh"),
    "tau": (tuple(name for name in _MODELS if name not in MOBILITY), 1.0),
    "integrator": (_EQUATIONS, "rodas3"),
    "tolerance": (_EQUATIONS, None),
}


def _depth(pair: str, default: float) -> Any:
    return option(default, f"Depth A of the potential of a pair {pair}.", gt=0)


def _length(pair: str, default: float) -> Any:
    return option(default, f"Length r_eq of a bond {pair} at rest.", gt=0)


class SpinDiffusionConfig(EnsembleConfig):
    """``mpiflow simulate spin-diffusion``: what to simulate, and what to save of it."""

    system: Literal["spin-diffusion"] = "spin-diffusion"
    states: ClassVar[tuple[str, ...]] = ("s",)
    kinds: ClassVar[tuple[str, ...]] = ("alternating", "random")
    axis: ClassVar[str] = "site"

    model: Model = option(
        ...,
        "The stochastic process: langevin (positions move, epsilon), averaged (its limit of small "
        "epsilon). Equations for mean spins: mean-field, point (couplings at mean positions), "
        "arrhenius, free-energy, free-energy-limited, master.",
        remedy="Try mean-field.",
    )
    size: int = option(
        ..., "Sites N of a chain.", ge=6, allowed="an even number, 6 or more", remedy="Try 32."
    )
    beta: float = option(80.0, "Inverse temperature 1 / (k_B T).", gt=0)
    tau: float | None = option(
        None, "Time scale of exchanges.", shown="1", gt=0, remedy="Leave it out for 1."
    )
    rates: Literal["tanh", "arrhenius"] | None = option(
        None, "Rates of exchanges of the stochastic process.", shown="tanh"
    )
    epsilon: float | None = option(
        None,
        "How much faster positions move than spins, of langevin.",
        shown="0.05",
        gt=0,
        remedy="Try 0.05.",
    )
    dt: float | None = option(
        None,
        "Time step of langevin.",
        shown=f"{STEP} epsilon ({STEP_OF_ATOMS} without precondition), or less for whole steps",
        gt=0,
        allowed="a number above 0 at which steps are stable",
    )
    precondition: bool = option(
        True,
        "Noise and friction of langevin for bond lengths: long waves relax as fast as short ones. "
        "Without: for positions, the same measure, slower as the square of the length.",
        remedy="Leave it out.",
    )
    mobility: float | None = option(
        None,
        "Rate of free-energy (k_c), free-energy-limited (k_r) or master (kappa exp(-beta Q)).",
        shown=", ".join(f"{value:g}" for value in MOBILITY.values()),
        gt=0,
    )
    tolerance: float | None = option(
        None,
        "Error of a step of the equations: of a mean spin, a bond length, a logarithm of alpha; of "
        "bdf relative.",
        shown="1e-5, of bdf 1e-3",
        ge=1e-12,
        le=0.1,
    )
    integrator: Literal["rodas3", "bdf"] | None = option(
        None, "Of the equations: Rosenbrock's of order 3, or scipy's BDF.", shown="rodas3"
    )
    depth_aa: float = _depth("AA", 0.2)
    depth_bb: float = _depth("BB", 0.2)
    depth_ab: float = _depth("AB", 0.18)
    length_aa: float = _length("AA", 2.6)
    length_bb: float = _length("BB", 2.6)
    length_ab: float = _length("AB", 2.55)
    softening: float = option(0.99, "Softening lambda of the core.", gt=0, le=1)
    cutoff: float = option(10.5, "Distance r_c at which potentials end.", gt=0)
    confinement: Step = option(
        3.825,
        "Distance r_f from which neighbours are held together; inf for never.",
        gt=0,
        allow_inf_nan=True,
        allowed="the longest bond or more, or inf",
    )
    initial: str = common.initial(
        kinds,
        "alternating (--initial-spin), random (as many of each species, shuffled; stochastic "
        "process), or the path of a .npy file of spins or of a run saved with --profile.",
    )
    initial_spin: float | None = option(
        None,
        "Mean spins of the alternating start of the equations are plus and minus this.",
        shown="0.9998",
        gt=0,
        le=1,
        remedy="Leave it out for 0.9998.",
    )
    perturb: float = option(
        0.0,
        "Amplitude of a random perturbation of the mean spins at time 0, another for each member. "
        "Without one, what nucleates in long chains is the rounding of the integrator.",
        ge=0,
        remedy="Try 1e-6.",
    )
    profile: bool = option(False, "Save all sites too: spins s, positions x and widths alpha.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        self.chain()
        for name, (models, default) in _OF_SOME.items():
            if self.model in models:
                self._fill(name, default)
            else:
                self._refuse(self._with_model(), name)
        self._check_dynamics()
        self._check_start()
        self._check_times(self._longest_step())
        if self.tau is not None:  # spins move about once in it
            require_few("tau", self.tau, self.time, MOST_STEPS, "steps of spins")
        return self

    def _check_dynamics(self) -> None:
        """Steps and switches of langevin, and the mobility."""
        if self.model == "langevin":
            assert self.epsilon is not None  # noqa: S101 - for the type checker
            between = self.save_every or self.time
            most = (STEP if self.precondition else STEP_OF_ATOMS) * self.epsilon
            self._fill("dt", between / math.ceil(between / most * (1 - 1e-9)))
        else:
            self._refuse(self._with_model(), "dt")
            if not self.precondition:
                raise idle("precondition", self.precondition, f"but true {self._with_model()}")
        if self.integrator is not None:
            self._fill("tolerance", TOLERANCE[self.integrator])
        if self.model in MOBILITY:
            self._fill("mobility", MOBILITY[self.model])
        else:
            self._refuse(self._with_model(), "mobility")

    def _longest_step(self) -> float:
        """Below it steps of langevin are stable."""
        if self.epsilon is None:
            return math.inf
        from mpiflow.solvers.binary_chain.langevin import longest_step

        return longest_step(self.chain(), self.epsilon, self.precondition)

    def _with_model(self) -> str:
        return f"with model {self.model}"

    def _check_start(self) -> None:
        """What the start of the model has, and members that would be the same."""
        super()._check_start()
        if self.stochastic or self.files() or self.initial == "random":
            self._refuse(
                self._with_model() if self.stochastic else f"with initial {self.initial}",
                "initial_spin",
            )
        else:
            self._fill("initial_spin", 0.9998)
        if self.stochastic:
            if self.perturb:
                raise idle("perturb", self.perturb, f"but 0 {self._with_model()}")
            return
        if self.initial == "random":
            allowed = "alternating, or a file, with equations for mean spins"
            raise InputError("initial", self.initial, allowed, "Spins of 1 and -1 are one state.")
        spin = self.initial_spin or 0.0
        if spin == 1 and self.model in WITH_LOGARITHM:
            allowed = f"below 1 {self._with_model()}, which has its logarithm"
            raise InputError("initial_spin", spin, allowed, "Try 0.9998.")
        if not self.files() and 2 * self.perturb > (1 - spin) * (1 + 1e-9):
            allowed = f"0 to {0.5 * (1 - spin):.6g}: mean spins stay between -1 and 1"
            raise InputError("perturb", self.perturb, allowed, "Or take a smaller --initial-spin.")
        if self.members > 1 and not self.perturb and not self.files():
            allowed = "1 where all members would be the same"
            raise InputError("members", self.members, allowed, "Give --perturb or --initial FILE.")

    @classmethod
    def short_time(cls, options: Mapping[str, Any]) -> float:
        usual = STEP if options.get("precondition", True) else STEP_OF_ATOMS
        step = options.get("dt") or usual * (options.get("epsilon") or _OF_SOME["epsilon"][1])
        return float(step) if options.get("model") == "langevin" else 1.0

    @property
    def stochastic(self) -> bool:
        """Whether it is a random process of spins 1 and -1."""
        return self.model in STOCHASTIC

    @property
    def scalars(self) -> tuple[str, ...]:  # type: ignore[override]  # models have their own
        """Variables of the file that are a number for each member."""
        last = "exchanges" if self.stochastic else "free_energy"
        return ("strain", "ab_bonds", "first_minimum", last)

    @property
    def profiles(self) -> tuple[str, ...]:  # type: ignore[override]
        """Variables over the sites, which ``profile`` saves."""
        return ("s", "x") if self.stochastic else ("s", "x", "alpha")

    @property
    def moves(self) -> str:  # type: ignore[override]
        """In words, how time advances."""
        if self.model == "langevin":
            how = "bond lengths" if self.precondition else "positions"
            return f"langevin of {how}, epsilon = {self.epsilon:g}, {self.rates} rates"
        if self.model == "averaged":
            return f"averaged {self.rates} rates, exact events"
        return f"{self.model} equations, {self.integrator}"

    @property
    def shape(self) -> tuple[int, ...]:
        """(sites,)."""
        return (self.size,)

    def chain(self) -> BinaryChain:
        """The system."""
        from mpiflow.systems.binary_chain import BinaryChain

        names = [name for name in BinaryChain.__dataclass_fields__ if name != "sites"]
        try:
            return BinaryChain(self.size, **{name: getattr(self, name) for name in names})
        except InputError as error:
            if error.name != "sites":
                raise
            raise InputError("size", error.value, error.allowed, error.remedy) from None
