"""Options of ``mpiflow simulate voter``, and the row of the catalogue."""

from __future__ import annotations

from typing import Literal

from mpiflow.simulation.catalogue import Entry
from mpiflow.simulation.options import option
from mpiflow.simulation.rules.options import RuleConfig
from voter.rule import Voter


class VoterConfig(RuleConfig):
    """What to simulate, and what to save of it."""

    system: Literal["voter"] = "voter"

    opinions: int = option(2, "Number of opinions.", ge=2, le=127)
    noise: float = option(
        0.0, "Rate at which an opinion comes from nowhere.", ge=0, remedy="Try 0.01."
    )

    def rule(self) -> Voter:
        return Voter(self.opinions, self.noise)


ENTRY = Entry(
    help="Voters who copy their neighbours, with noise.",
    options="voter.options:VoterConfig",
    build="mpiflow.simulation.rules.build:build",
    plan="mpiflow.simulation.rules.sizes:plan",
)
