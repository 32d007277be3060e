"""Options of all systems of spins on a square lattice."""

from __future__ import annotations

from typing import ClassVar

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout
from mpiflow.simulation import common_options as common
from mpiflow.simulation.driven_options import DrivenConfig
from mpiflow.simulation.option_values import Sides
from mpiflow.simulation.options import idle, option


class SpinConfig(DrivenConfig):
    """Options of all systems of spins on a square lattice."""

    SAVED: ClassVar[tuple[str, ...]] = ("coarse", "spins", "spin_bits")

    kinds: ClassVar[tuple[str, ...]] = ("shuffled", "random", "up", "gaussian")

    size: Sides = common.size()
    temperature: float = common.temperature(description="Temperature.")
    field: float = common.field()
    time: float = common.time()
    save_every: float = common.save_every()
    coarse: int | None = common.coarse(
        description="Save means of blocks of this many sites a side too."
    )
    spins: bool = option(False, "Save all spins too, one byte each.")
    spin_bits: bool = option(
        False, "Save all spins too, one bit each; for sides of a multiple of 8."
    )
    initial: str = common.initial(
        kinds,
        "shuffled (exact magnetization), random, up, gaussian (smooth random field), or the "
        "path of a .npy file (spins, or their means) or of a run saved with --spins.",
    )
    initial_magnetization: float = common.initial_magnetization(
        description="Mean spin of the initial state: to the nearest spin of shuffled and gaussian, "
        "on average of random, whose spins are independent.",
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
        if self.initial != "gaussian":
            why = f"with initial {self.initial}; gaussian has one"
            self._refuse(why, "correlation_length")
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
