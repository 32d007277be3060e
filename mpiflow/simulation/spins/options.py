"""Options of all systems of spins on a square lattice."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Layout

if TYPE_CHECKING:  # it imports h5py: not for the sake of --help
    pass
from mpiflow.simulation.options import FRAMES, Sides, StartConfig, idle, option


class SpinConfig(StartConfig):
    """Options of all systems of spins on a square lattice."""

    SAVED: ClassVar[tuple[str, ...]] = ("coarse", "spins", "spin_bits")

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
