"""Options of systems whose parameters may change in time, and their field from site to site."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from mpiflow.core import inputs
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.simulation.options import StartConfig, option

if TYPE_CHECKING:  # it imports NumPy: not for the sake of --help
    from mpiflow.core.mpi import MPI
    from mpiflow.systems.drive import Drive
    from mpiflow.systems.site_field import SiteField

#: Numbers of a run that are no parameters of its system.
_OTHERS = frozenset(["time", "save_every", "initial_magnetization"])


class DrivenConfig(StartConfig):
    """Options of systems whose parameters may change in time, and their field from site to site."""

    LATE: ClassVar[tuple[str, ...]] = (
        "schedule", "field_file", "field_variable", "random_field_std", "random_field_kind",
        "random_field_seed",
    )  # fmt: skip

    schedule: str | None = option(
        None,
        "Parameters that change in time: NAME KIND NUMBERS; ... as 'temperature ramp 3 1.5 over "
        "100; field ac 0.5 period 20' (quench A B at T, ramp A B over T [from T0], hysteresis H "
        "over T, ac A period P [offset C], points T V T V ...), or a table of time, temperature "
        "and field in a .csv, .npy or .toml file.",
        metavar="TEXT|PATH",
        shown="none",
        allowed="NAME KIND NUMBERS; ... or the path of a .csv, .npy or .toml file",
        remedy="Try 'temperature ramp 3 1.5 over 100'.",
    )

    field_file: Path | None = option(
        None,
        "Field of each site to add to the uniform one: a .npy of floats of the lattice's shape, or "
        "a variable of an HDF5 or netCDF4 file, as of a run with such fields.",
        shown="none",
        allowed="the path of a .npy, HDF5 or netCDF4 file of finite numbers, (LY, LX)",
        remedy="Leave it out for a uniform field.",
    )
    field_variable: str | None = option(
        None,
        "Name of the variable in the field file.",
        shown="site_field",
        allowed="the name of a variable",
    )
    random_field_std: float | None = option(
        None,
        "Standard deviation of random fields of the sites, the same for all members.",
        shown="none",
        gt=0,
        remedy="Try 0.5.",
    )
    random_field_kind: Literal["gaussian", "bimodal"] | None = option(
        None, "Their law: gaussian, or bimodal (plus or minus the deviation).", shown="gaussian"
    )
    random_field_seed: int | None = option(
        None,
        "Seed of the random fields.",
        shown="0",
        ge=0,
        lt=2**63,
        allowed="0 to 2**63 - 1",
    )

    @model_validator(mode="before")
    @classmethod
    def _begin_schedule(cls, values: Any) -> Any:
        """Parameters that a schedule changes have its values at time 0."""
        text = values.get("schedule") if isinstance(values, dict) else None
        if not isinstance(text, str):
            return values
        from mpiflow.files import drives

        if drives.is_file(text):
            text = inputs.absolute(text)
            known = (values.get("inputs") or {}).get("schedule")
            if known is not None and not Path(text).is_file():
                raise inputs.missing("schedule", Path(text), known)
        values, fields = {**values, "schedule": text}, cls.model_fields
        known = [n for n, f in fields.items() if f.annotation is float and n not in _OTHERS]
        for name, curve in drives.read(text).curves.items():
            if name not in known:
                allowed = f"parameters that are numbers: {', '.join(known)}"
                remedy = did_you_mean(name, known) or "Leave it out."
                raise InputError("schedule", name, allowed, remedy)
            start, given = curve.at(0.0), values.get(name)
            if given is not None and str(given) != str(start) and float(given) != start:
                allowed = f"{start:g}, which the schedule says at time 0"
                raise InputError(name, given, allowed, "Leave it out.")
            values[name] = start
        return values

    @classmethod
    def derived(cls, config: Mapping[str, Any]) -> set[str]:
        from mpiflow.files import drives

        text = config.get("schedule")
        if isinstance(text, str) and drives.is_file(text) and not Path(text).is_file():
            known = (config.get("inputs") or {}).get("schedule")
            raise inputs.missing("schedule", Path(text), known)
        return set(drives.read(text).curves) if isinstance(text, str) else set()

    @cached_property
    def drive(self) -> Drive | None:
        """What changes in time, if anything does."""
        if self.schedule is None:
            return None
        from mpiflow.files import drives

        return drives.read(self.schedule)

    def files(self) -> dict[str, tuple[Path, ...]]:
        """The initial state and the schedule."""
        from mpiflow.files import drives

        of_schedule = self.schedule is not None and drives.is_file(self.schedule)
        found = super().files()
        if of_schedule:
            found["schedule"] = (Path(self.schedule or ""),)
        if self.field_file is not None:
            found["field_file"] = (self.field_file,)
        return found

    @property
    def in_site_field(self) -> bool:
        """Whether sites have fields of their own."""
        return self.field_file is not None or self.random_field_std is not None

    @model_validator(mode="after")
    def _check_site_field(self) -> Self:
        if self.random_field_std is None:
            why = "without random_field_std"
            self._refuse(why, "random_field_kind", "random_field_seed")
        else:
            self._refuse("with a field_file", *["random_field_std"] * bool(self.field_file))
            self._fill("random_field_kind", "gaussian")
            self._fill("random_field_seed", 0)
        if self.field_file is None:
            self._refuse("without a field_file", "field_variable")
        else:
            self.__dict__["field_file"] = Path(inputs.absolute(self.field_file))
            if self.field_file.suffix == ".npy":
                self._refuse("with a .npy file, which has one array", "field_variable")
            else:
                self._fill("field_variable", "site_field")
        solver = getattr(self, "solver", None)
        if self.in_site_field and solver in ("nfold", "tiled-nfold"):
            allowed = "sublattice with fields of sites: of others all sites have one field"
            raise InputError("solver", solver, allowed, "Use sublattice.")
        return self

    def site_field(self, comm: MPI.Intracomm) -> SiteField | None:
        """The fields of sites, of a file not read yet: each rank reads its part. Collective."""
        from mpiflow.core.parallel import agreed
        from mpiflow.files import site_fields
        from mpiflow.systems.site_field import RandomField

        if self.random_field_std is not None:
            kind = self.random_field_kind or "gaussian"
            return RandomField(self.random_field_std, self.random_field_seed or 0, kind)
        if self.field_file is None:
            return None
        shape: tuple[int, int] = self.size  # type: ignore[attr-defined]
        with agreed(comm):
            field = site_fields.opened(self.field_file, self.field_variable, shape)
        return field
