"""Options of ``mpiflow simulate kac``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from mpiflow.simulation import common_options as common
from mpiflow.simulation.options import idle, option
from mpiflow.simulation.spins.options import SpinConfig


class KacConfig(SpinConfig):
    """``mpiflow simulate kac``: what to simulate, and what to save of it."""

    system: Literal["kac"] = "kac"

    gamma: float = option(
        ...,
        "Standard deviation of the coupling in sites; 0 for the four nearest neighbours.",
        ge=0,
        allowed="0, or 0.25 and more",
        remedy="Try 8.",
    )
    temperature: float = common.temperature(
        description="Temperature in units of the sum of all couplings of a spin; 1 is critical in "
        "mean field.",
        remedy="Try 0.8.",
    )
    solver: Literal["sublattice", "midpoint", "tau-leap", "gillespie"] = option(
        "sublattice",
        "sublattice: fields frozen for a step, the spins' chains solved exactly; first order. "
        "midpoint: second order. tau-leap: Poisson numbers of flips. gillespie: exact, one rank "
        "for each lattice.",
    )
    tau: float | None = option(
        None,
        "Time step in attempts per spin.",
        shown="0.1; tau-leap eps / the largest rate",
        gt=0,
        allowed="above 0, at most 1; tau-leap: at most one expected flip of the fastest spin",
        remedy="Try 0.1.",
    )
    eps: float | None = option(
        None,
        "Of tau-leap without --tau: expected flips of the fastest spin in a step.",
        shown="0.01 for tau-leap",
        gt=0,
        le=1,
        remedy="Try 0.01.",
    )
    method: Literal["steps", "fft"] = option(
        "steps",
        "How fields are added up: steps (the steps of the kernel) or fft. The same bits.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        from mpiflow.systems.kac import Kac, kac_kernel  # compiles: not for the sake of --help

        lattice = self._check_lattice()
        kac_kernel(self.gamma).require_room(lattice.shape)
        if self.solver != "tau-leap":
            self._refuse(f"with the {self.solver} solver; tau-leap has one", "eps")
            if self.solver == "gillespie":
                if self.schedule is None:
                    self._refuse("with the gillespie solver, which has no step", "tau")
                self._fill("tau", None if self.schedule is None else 0.1)
                if self.method != "steps":
                    raise idle("method", self.method, "with the gillespie solver")
            else:
                self._fill("tau", 0.1)
        elif self.tau is None and self.schedule is None:
            self._fill("eps", 0.01)
        else:
            self._refuse("with a fixed tau or a schedule", "eps")
            self._fill("tau", 0.01)
        if self.drive is not None:
            self.drive.check(Kac(self.temperature, self.gamma, self.field))
        if self.device == "cuda" and (self.solver == "gillespie" or self.method == "fft"):
            raise idle(
                "device", "cuda", "with the gillespie solver or method fft: they use the CPU"
            )
        self._check_intervals(self.time, None if self.solver == "gillespie" else self.tau, "tau")
        self._check_initial()
        return self
