"""Options of ``mpiflow learn``: of closures, generators and alloys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from mpiflow.core.gpu import DeviceName
from mpiflow.simulation import common_options as common
from mpiflow.simulation.option_values import Names
from mpiflow.simulation.options import Config, device_option, idle, option


def _paths(value: Any) -> Any:
    return (value,) if isinstance(value, str | Path) else value


Files = Annotated[tuple[Path, ...], BeforeValidator(_paths)]


class LearnConfig(Config):
    """What every learner asks for."""

    data: Files = option(
        ...,
        "Files of data, folders or patterns of runs.",
        metavar="DATA...",
        min_length=1,
        allowed="one file or more",
        remedy="Name them.",
    )
    out: Path = option(
        ...,
        "Folder that the model is saved to.",
        allowed="a path in an existing folder",
        remedy="Try model.",
    )
    overwrite: bool = option(False, "Replace an existing model.")
    seed: int = option(
        0,
        "Of networks and batches: the same seed and data give the same model.",
        ge=0,
        lt=2**63,
        allowed="0 to 2**63 - 1",
        remedy="Choose another seed.",
    )
    device: DeviceName = device_option("Where networks are trained.")
    quiet: bool = option(False, "Show nothing.")


class ClosureConfig(LearnConfig):
    """Learn the stochastic equation of observables.

    It is dz = mu(z) dt + Sigma(z)^(1/2) dB.

    DATA are runs of mpiflow; tables (.npy, .csv) of the time and observables, one trajectory each;
    or .npz of time and observables, or of pairs z, dz and dt.
    """

    observables: Names = option(
        (),
        "Which: scalars of the runs, columns or arrays of the tables.",
        metavar="A,B,...",
        shown="magnetization of runs, all of tables",
        allowed="names with commas between, each once",
        remedy="Leave it out to be told the names.",
    )
    lag: int = option(1, "Frames from the start of a pair to its end.", ge=1)
    latents: int = option(
        0,
        "Closures that are learned besides, from coarse fields of runs or statistics of patches.",
        ge=0,
    )
    patch: int | None = option(
        None,
        "Blocks a side of the patches that closures are means over.",
        shown="the largest that fits, up to 8",
        ge=1,
        allowed="a divisor of the blocks a side",
    )
    parameters: Names = option(
        (),
        "Options of the runs that the law depends on.",
        metavar="A,B,...",
        shown="those of temperature and field that differ",
        allowed="names of options that are numbers",
    )
    factor: float | None = option(
        None,
        "Lambda: K where only one of K patches evolved in a pair.",
        shown="patches of the .npz, those of its statistics, or 1",
        gt=0,
    )
    width: int = option(64, "Units of a layer of the networks.", ge=1)
    epochs: int = option(60, "Most passes over the data.", ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("observables", "parameters"):
            names = getattr(self, name)
            if len(set(names)) < len(names):
                raise idle(name, ",".join(names), "twice")
        if self.patch is not None and not self.latents:
            raise idle("patch", self.patch, "without latents")
        return self


class GeneratorConfig(LearnConfig):
    """Learn the generator F(J * m, m) of a field. From block means of runs.

    DATA are runs saved with --coarse, all of one lattice, block and distance of frames.
    """

    prior: Literal["strong", "linear", "mlp"] = option(
        "strong",
        "Form of the law: strong knows temperature and field, linear is for one temperature, "
        "mlp is a network.",
    )
    kernel: Literal["radial", "free", "spectral"] = option("radial", "Form of J.")
    radius: float | None = option(
        None,
        "Reach of J in blocks.",
        shown="3.5 gamma, where it fits",
        gt=1,
        allowed="above 1, at most half of the blocks a side",
    )
    noise: Literal["dynamic", "measured", "none"] = option(
        "dynamic",
        "Where the noise of the fields is from: their own motion, errors of measurement, or there "
        "is none.",
    )
    window: int | None = option(
        None,
        "Frames that a rate is taken from where noise is measured.",
        shown="7",
        ge=3,
        allowed="an odd number, 5 or more",
        remedy="Try 7.",
    )
    mirror: bool = option(False, "The network turns its sign with m and h.")
    epochs: int | None = option(None, "Of the network.", shown="100", ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.prior != "mlp":
            if self.device != "cpu":
                raise idle("device", self.device, f"with prior {self.prior}: Newton uses the CPU")
            if self.epochs is not None:
                raise idle("epochs", self.epochs, f"with prior {self.prior}, which needs none")
            if self.mirror:
                raise idle("mirror", self.mirror, f"with prior {self.prior}, which is so anyway")
        if self.noise != "measured" and self.window is not None:
            raise idle("window", self.window, f"with noise {self.noise}")
        return self


class AlloyConfig(LearnConfig):
    """Learn the dynamics of an alloy's short-range order. At all temperatures together.

    DATA are runs of ternary alloys by time, or pairs.npz of drivers/alloy_learn.py.
    """

    lag: int = option(1, "Frames of runs from the start of a pair to its end.", ge=1)
    epochs: int = option(30, "Passes over the data.", ge=1)
    width: int = option(32, "Units of a layer of the networks.", ge=1)


class RolloutConfig(Config):
    """``mpiflow predict`` of a closure or of an alloy's order: trajectories of its latents."""

    model: Path = option(
        ...,
        "Folder of a model, of mpiflow learn closure or alloy.",
        metavar="MODEL",
        allowed="a folder of a model",
        remedy="Learn one first.",
    )
    out: Path = option(
        ...,
        "Trajectory file to write (HDF5, opens as netCDF4).",
        allowed="a path in an existing folder",
        remedy="Try run.h5.",
    )
    time: float = common.time(description="Time to predict, in that of the data.")
    save_every: float | None = common.save_every(shown="a 100th of the time")
    dt: float | None = option(None, "Time step.", shown="that of the pairs of the data", gt=0)
    members: int | None = option(
        None, "Trajectories.", shown="those of the initial file, or 1", ge=1
    )
    seed: int = option(
        0,
        "The trajectories are their seed.",
        ge=0,
        lt=2**63,
        allowed="0 to 2**63 - 1",
        remedy="Choose another seed.",
    )
    initial: str | None = option(
        None,
        "Values of the latents with commas between, or a run. Alloys may be left at random.",
        metavar="A,B,...|PATH",
        shown="of alloys a random mixture",
        allowed="numbers with commas between, or the path of a run",
        remedy="Try 0.1,0.2.",
    )
    initial_frame: int | None = option(
        None,
        "Frame of the run, from 0; negative from the end.",
        shown="-1",
        allowed="a whole number",
        remedy="Leave it out for the last one.",
    )
    temperature: float | None = common.temperature(
        default=None, description="Temperature.", shown="the learned one, if it is one"
    )
    field: float | None = common.field(
        default=None, description="External field h.", shown="the learned one, if it is one"
    )
    size: int | None = option(None, "Sites of an alloy.", shown="those of the data", ge=1)
    device: DeviceName = device_option("Where networks are run.")
    overwrite: bool = option(False, "Replace an existing file.")
    quiet: bool = option(False, "Show nothing.")
