"""The commands as functions of Python: ``mpiflow.plan``, ``mpiflow.plot`` and so on.

A run may be given as its path or as a :class:`~mpiflow.files.trajectory.Trajectory`. What reads
only is done by each process that calls it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mpiflow.core.guards import require_options
from mpiflow.core.packages import explained
from mpiflow.files.trajectory import Trajectory
from mpiflow.simulation.options import RunConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mpiflow.commands.certify import Certificate
    from mpiflow.commands.verify.files import Finding
    from mpiflow.core.mpi import MPI
    from mpiflow.simulation.sizes import Plan

#: A run, or where it is.
Run = Trajectory | str | os.PathLike[str]


def path_of(run: Run) -> Path:
    """Where a run is."""
    return run.path if isinstance(run, Trajectory) else Path(run)


def info(run: Run) -> str:
    """The page of ``mpiflow info`` about a run."""
    if isinstance(run, Trajectory):
        return run.summary()
    with Trajectory(run) as opened:
        return opened.summary()


def plan(what: RunConfig | str | os.PathLike[str], ranks: int = 1, **options: Any) -> Plan:
    """What a run will need, before it runs: ``plan("ising", size=16384, time=100).text()``.

    Parameters
    ----------
    what : the name of a system, a TOML file, a run, or options as of :func:`mpiflow.simulate`
    ranks : to plan for
    options : those of the run, ``out`` may be left out

    Raises
    ------
    InputError : an option makes no sense, or the run would be refused
    """
    from mpiflow.run import plan as plans
    from mpiflow.run.simulate import configured

    return plans.plan(configured(what, {"out": "run.h5"}, **options), ranks)


def certify(
    what: RunConfig | str | os.PathLike[str],
    *,
    error: float = 0.01,
    drift: Literal["generator", "increment"] = "generator",
    pairs: int = 320_000,
    repeats: int = 16,
    numbers: int = 10,
    patch: int | None = None,
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> Certificate:
    """How to make training pairs whose law is right to a stated error. Collective.

    ``print(certify("ising", size=64, temperature=2.5, time=20, save_every=2))``

    Parameters
    ----------
    what : as of :func:`plan`: runs whose states are those that a law is learned on
    error, drift, pairs, repeats, numbers : see :class:`mpiflow.learn.certificate.proposal.Aim`
    patch : only patches of this side
    comm : ranks that call this together, ``COMM_WORLD`` unless given
    options : those of the run, ``out`` may be left out

    Raises
    ------
    InputError : on all ranks: options that make no sense, or a system without partial evolution
    """
    from mpiflow.commands import certify as certificates
    from mpiflow.core.mpi import MPI as mpi
    from mpiflow.learn.certificate.proposal import Aim
    from mpiflow.run.simulate import configured

    config = configured(what, {"out": "run.h5"}, **options)
    aim = Aim(error, drift, pairs, repeats, numbers)
    return certificates.certify(config, aim, mpi.COMM_WORLD if comm is None else comm, patch)


def plot(
    run: Run,
    out: str | Path | None = None,
    *,
    variables: Iterable[str] | None = None,
    frame: int | None = None,
    member: int = 0,
    overwrite: bool = False,
) -> Figure:
    """A run as a picture: its variables in time, and its fields at some frames.

    Parameters
    ----------
    out : a PNG file to write
    variables : names; default is what fits a page
    frame : of the fields, negative from the end; default is up to five of them
    member : of the fields of an ensemble
    overwrite : replace an existing file

    Returns
    -------
    the figure, which a notebook shows

    Raises
    ------
    InputError : nothing to plot, no such variable, frame or member, bad output, no matplotlib
    """
    from mpiflow.commands import plot as pictures

    names = None if variables is None else list(variables)
    with Trajectory(path_of(run)) as opened:
        return pictures.picture(opened, out, names, frame, member, overwrite=overwrite)


def export(run: Run, to: str, out: str | Path | None = None, **options: Any) -> Path:
    """Write a run for other programs, and say where: as ``mpiflow export``, see there.

    Parameters
    ----------
    to : ``netcdf``, ``xdmf``, ``lammpsdump`` or ``extxyz``
    out : the file; default is that of the run with another suffix
    options : those of the command, see :func:`mpiflow.commands.export.export`

    Raises
    ------
    InputError : an option that the format does not have, nothing to write, bad output
    """
    from mpiflow.commands import export as exports

    require_options(options, exports.export)
    with Trajectory(path_of(run)) as opened:
        return exports.export(opened, to, out, **options)[0]


def verify(*runs: Run, quick: bool = False) -> list[Finding]:
    """Check that files are intact and obey the physics; a finding for each file.

    ``all(found.good for found in verify("runs"))`` says whether they do, ``print(*found)`` why
    not.

    Parameters
    ----------
    runs : Trajectory files, checkpoints, or folders of runs
    quick : only sha256 and structure; read no values
    """
    from mpiflow.commands.verify import verify as checks

    return list(checks([path_of(run) for run in runs], quick))


def predict(
    model: RunConfig | str | os.PathLike[str], comm: MPI.Intracomm | None = None, **options: Any
) -> Path:
    """Run a learned model, as ``mpiflow predict``. Collective; returns the file.

    Parameters
    ----------
    model : the folder of a stochastic field, a closure or an alloy's order; or all options
    comm : ranks that call this together, ``COMM_WORLD`` unless given
    options : of the run: ``size``, ``time``, ``out``, ... Of closures and alloys those of
        :class:`mpiflow.learn.options.RolloutConfig`

    Raises
    ------
    InputError : on all ranks, before the first step and before anything is written
    """
    from mpiflow.run.simulate import simulate

    if isinstance(model, RunConfig):
        return simulate(model, comm, **options)
    with explained():
        from mpiflow.learn import rollout

    if rollout.runs_here(model):
        from mpiflow.learn.options import RolloutConfig

        return rollout.predict(RolloutConfig(model=Path(model), **options), comm)
    return simulate("onsagerflow", comm, model=model, **options)


def learn_onsagerflow(runs: Any, out: str | Path, **options: Any) -> Any:
    """Learn K, s' and J of a stochastic field from runs, and save the model. Collective.

    Parameters
    ----------
    runs : files, folders or patterns of runs saved with ``coarse``
    out : folder of the model
    options : see :func:`mpiflow.learn.onsagerflow.from_files.learn_from_files`

    Returns
    -------
    the :class:`~mpiflow.learn.onsagerflow.model.OnsagerFlow`

    Raises
    ------
    InputError : on all ranks: there is a model already, or runs that cannot be learned from
    """
    with explained():
        from mpiflow.learn.onsagerflow.from_files import learn_from_files

    return learn_from_files(runs, out, **options)


def learn_closure(
    data: Any, out: str | Path, *, comm: MPI.Intracomm | None = None, **options: Any
) -> Any:
    """Learn dz = mu(z) dt + Sigma(z)^(1/2) dB of observables, and save the model. Collective.

    Parameters
    ----------
    data : runs; files of tables or pairs; arrays (frames, 1 + d) or (members, frames, 1 + d) whose
        first column is the time; mappings of arrays; or several of them. See
        :mod:`mpiflow.learn.closure.sources`
    out : folder of the model
    comm : ranks that call this together; rank 0 learns, so that the bits are those of one rank
    options : those of the command, :class:`mpiflow.learn.options.ClosureConfig`

    Returns
    -------
    the :class:`~mpiflow.learn.closure.observed.ObservedModel`

    Raises
    ------
    InputError : on all ranks: data or options do not fit, or there is a model already
    """
    from mpiflow.learn.options import ClosureConfig

    config = ClosureConfig(data=(Path("data"),), out=Path(out), **options)
    with explained():
        from mpiflow.learn.closure.from_data import learn
    return learn(config, data, comm)


def learn_generator(
    runs: Any, out: str | Path, *, comm: MPI.Intracomm | None = None, **options: Any
) -> Any:
    """Learn the generator F(J * m, m) of a field from block means, and save it. Collective.

    Parameters
    ----------
    runs : files, folders or patterns of runs saved with ``coarse``
    out : folder of the model
    comm : ranks that call this together; rank 0 learns
    options : those of the command, :class:`mpiflow.learn.options.GeneratorConfig`

    Returns
    -------
    the :class:`~mpiflow.learn.generator.model.Generator`

    Raises
    ------
    InputError : on all ranks: runs or options do not fit, or there is a model already
    """
    from mpiflow.learn.options import GeneratorConfig

    config = GeneratorConfig(data=_paths(runs), out=Path(out), **options)
    with explained():
        from mpiflow.learn.generator.from_files import learn
    return learn(config, comm)


def learn_alloy(
    data: Any, out: str | Path, *, comm: MPI.Intracomm | None = None, **options: Any
) -> Any:
    """Learn the dynamics of an alloy's short-range order, and save the model. Collective.

    Parameters
    ----------
    data : files, folders or patterns of runs by time, or ``pairs.npz`` of drivers/alloy_learn.py
    out : folder of the model
    comm : ranks that call this together; rank 0 learns
    options : those of the command, :class:`mpiflow.learn.options.AlloyConfig`

    Returns
    -------
    the :class:`~mpiflow.learn.alloy.model.AlloyModel`

    Raises
    ------
    InputError : on all ranks: data or options do not fit, or there is a model already
    """
    from mpiflow.learn.options import AlloyConfig

    config = AlloyConfig(data=_paths(data), out=Path(out), **options)
    with explained():
        from mpiflow.learn.alloy.from_files import learn
    return learn(config, comm)


def _paths(runs: Any) -> tuple[Path, ...]:
    """Paths of one run or several."""
    several = [runs] if isinstance(runs, Trajectory | str | os.PathLike) else runs
    return tuple(path_of(run) for run in several)
