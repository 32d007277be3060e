"""The one run: a simulation from options, recorded in a Trajectory file."""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiflow.core import mpi
from mpiflow.core.compiling import CLOCK
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.mpi import ALONE, MPI
from mpiflow.core.parallel import agreed, say
from mpiflow.files import checkpoint
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.files.writer import Backend
from mpiflow.observables import choice
from mpiflow.observables.choice import Observables
from mpiflow.run import callbacks as calls
from mpiflow.run.callbacks import Callback
from mpiflow.run.follow import beginning, facts_of, follow, keep_of, refuse, unchanged
from mpiflow.run.plan import one_line, read, require_device
from mpiflow.run.stopping import Keep
from mpiflow.simulation import catalogue, measures
from mpiflow.simulation.base import Motion, Simulated
from mpiflow.simulation.options import RunConfig


def simulate(
    config: RunConfig | str | os.PathLike[str],
    comm: MPI.Intracomm | None = None,
    *,
    changed: Container[str] = (),
    observables: Observables | None = None,
    callbacks: Sequence[Callback | Callable[..., Any]] = (),
    **options: Any,
) -> Path:
    """Run what a configuration of any system says and write its file. Collective.

    >>> path = simulate("ising", size=64, temperature=2.5, time=10, save_every=1, out="run.h5")

    Parameters
    ----------
    config : all options, or the name of a system, or a TOML file
    comm : ranks that call this together, ``COMM_WORLD`` unless given
    changed : options that may differ from those of the run that ``config.resume`` goes on with
    observables, callbacks : as of :func:`record`. Names of ready observables are options, which the
        file has; functions have to be given again to what goes on with the run
    options : those of ``mpiflow simulate``, with _ for -; they replace those of the file

    Returns
    -------
    the file

    Raises
    ------
    InputError
        on all ranks, before the first step and before anything is written
    Stopped
        on all ranks, after a checkpoint: a signal, or the walltime
    """
    comm = MPI.COMM_WORLD if comm is None else comm
    _require_mpi(comm)
    with agreed(comm):
        if observables is not None and not isinstance(observables, Mapping):
            options["observables"] = observables
        config = configured(config, **options)
        own = choice.chosen(observables) if isinstance(observables, Mapping) else {}
        own = choice.chosen(config.observables) | own
    require_device(config, comm)
    start, out = clock.monotonic(), config.out
    point, overwrite = beginning(config, comm, changed)
    speaks = comm.rank == 0 and not config.quiet
    with CLOCK.said((lambda: say(comm, f"{out}: compiling, once")) if speaks else None):
        built = catalogue.build(config, comm, point)
        sim = built.sim
        remarks = sim.remarks() + built.remarks  # collective
        if speaks:
            for line in (sim.describe(), one_line(config, comm.size), *remarks):
                print(f"{out}: {line}")
        record(
            sim,
            out,
            **config.extent(),
            **config.saved(),
            observables=own,
            callbacks=callbacks,
            overwrite=overwrite,
            writer=config.writer,
            attributes={"config_json": config.model_dump_json(), **built.attributes},
            progress=not config.quiet,
            keep=keep_of(config),
            point=point,
            changed=changed,
        )
    closing = sim.closing()
    if speaks:
        spent = f"{clock.monotonic() - start:.1f} s"
        print(f"{out}: to time {sim.time:g}{sim.time_unit} in {spent}", *closing, sep="\n")
    return out


def _require_mpi(comm: MPI.Intracomm) -> None:
    """Refuse to run where there is no MPI, for every system alike: some would need none."""
    if comm is ALONE:
        mpi.require()


def configured(
    what: RunConfig | str | os.PathLike[str],
    defaults: Mapping[str, Any] | None = None,
    **options: Any,
) -> RunConfig:
    """The options of a run from the name of its system, or a file; see :func:`simulate`.

    Parameters
    ----------
    defaults : in place of options that neither the file nor ``options`` have

    Raises
    ------
    InputError : no such system or option, or a value that makes no sense
    """
    if isinstance(what, RunConfig):
        if not options:
            return what
        values = {name: getattr(what, name) for name in what.model_fields_set}
        return type(what)(**(values | options))
    if isinstance(what, str) and what in catalogue.systems():
        return catalogue.options(what)(**{**(defaults or {}), **options})
    if os.path.exists(what):
        return read(what, changes=options, defaults=defaults or {})
    known = catalogue.systems()
    remedy = did_you_mean(str(what), known) or f"Systems are {', '.join(known)}."
    raise InputError("config", str(what), "the name of a system, or an existing file", remedy)


def record(
    sim: Simulated,
    out: str | Path,
    *,
    time: float | None = None,
    hops: int | None = None,
    save_every: float | None = None,
    frames_per_decade: int | None = None,
    overwrite: bool = False,
    writer: Backend = "auto",
    attributes: Mapping[str, Any] | None = None,
    progress: bool = True,
    keep: Keep | None = None,
    point: Checkpoint | None = None,
    changed: Container[str] = (),
    observables: Observables | None = None,
    callbacks: Sequence[Callback | Callable[..., Any]] = (),
    **saved: Any,
) -> None:
    """Advance a simulation and write a frame now, every ``save_every``, and at the end.

    The values do not depend on the number of ranks or on the writer. Collective.

    Parameters
    ----------
    sim : the simulation, which is left at the end of the run
    out : the file to write
    time, hops : how far, in its time or, of an alloy, in hops; one of the two
    save_every : in the same unit; all of it if left out, for the first and the last frame
    frames_per_decade : the first frame after time 0 is then at ``save_every``, and so many follow
        from there to ten times as far, to a hundred times, and so on: for what is slower and slower
    overwrite : replace an existing file
    writer : ``auto``, ``parallel`` (MPI-IO) or ``gather`` (through rank 0)
    attributes : root attributes to add to the standard ones, or to replace them with
    progress : show progress on rank 0
    keep : write checkpoints, and stop on signals or at a walltime; none by default
    point : go on from this checkpoint of the run (:func:`mpiflow.checkpoint.newest`) with a
        simulation made like the first one; ``time`` still counts from the beginning of the run
    changed : what may be different from then
    observables : what is measured besides, by name: functions of this rank's state,
        :class:`mpiflow.Observable` for all that they can be, or names of ready ones of
        :mod:`mpiflow.observables`, which may be listed without others. A run goes on with those
        that it was started with
    callbacks : what looks at the frames, to steer the run and to end it early:
        :class:`mpiflow.Callback`, or functions of the simulation and the frame
    saved : what is saved besides, as of the simulation's ``content``: ``coarse``, ``spins`` and
        ``spin_bits`` of spins, ``species`` of an alloy
    """
    _require_mpi(sim.comm)
    # It checks the times, before a file is made.
    motion = Motion.of(
        sim,
        time=time,
        hops=hops,
        save_every=save_every,
        frames_per_decade=frames_per_decade,
        begun=point is not None,
    )
    facts = facts_of({**sim.facts(), "rng": sim.rng}, dict(attributes or {}))
    own = choice.chosen(observables)
    watchers = calls.chosen(callbacks)
    if definitions := choice.definitions(own):
        facts["observables"] = definitions
    if point is not None:
        choice.unchanged(point.facts.get("observables"), definitions)
        unchanged(point, facts, changed)
        refuse(sim.changes(point.numbers), changed)
        checkpoint.load(point, sim)
    content = sim.content(**saved)
    sim.require_state(anew=True)  # before a file is made
    with measures.observed(sim, content, own, saved.get("coarse")) as content:
        follow(
            motion,
            content,
            {**content.attributes, **(attributes or {})},
            out,
            facts=facts,
            point=point,
            keep=keep,
            overwrite=overwrite,
            writer=writer,
            progress=progress,
            changed=changed,
            callbacks=watchers,
        )
