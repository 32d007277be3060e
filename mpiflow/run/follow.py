"""Follow a simulation into its Trajectory, with checkpoints, and stop and go on without a trace."""

from __future__ import annotations

import json
import os
import time as clock
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from mpiflow._version import __version__
from mpiflow.core import inputs
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.parallel import FAILED, agreed, say
from mpiflow.core.schedule import MOST_CHECKPOINTS, Number, Schedule, after, require_few
from mpiflow.files import checkpoint, segments
from mpiflow.files.checkpoint import Checkpoint
from mpiflow.files.sealing import Continuation
from mpiflow.files.segments import FREE
from mpiflow.files.trajectory import Trajectory
from mpiflow.files.writer import Backend, TrajectoryWriter
from mpiflow.run.callbacks import Callback, Calls, ends
from mpiflow.run.progress import Progress
from mpiflow.run.stopping import Keep, Stopped, Watch, begin
from mpiflow.simulation.base import Content, Motion, Simulated
from mpiflow.simulation.options import RunConfig, number_to_json


def _complete(out: Path, comm: MPI.Intracomm) -> bool:
    complete = False
    with agreed(comm):
        if comm.rank == 0 and out.exists():
            with Trajectory(out) as trajectory:
                complete = trajectory.complete
    return bool(comm.bcast(complete))


class Course(NamedTuple):
    """How a run goes on: its frames, the number of the next, and what became of those before.

    Attributes
    ----------
    apart : frames are counted from here, not from the beginning of the run
    odd : number of the last frame if it is that of an earlier end, between two that are due
    """

    schedule: Schedule
    number: int
    apart: bool = False
    odd: int | None = None


def continued(motion: Motion, point: Checkpoint | None, changed: Container[str] = ()) -> Course:
    """The frames that are still due.

    Where steps do not lead to those that are due, frames are counted from here, where the first is.
    """
    new, here = motion.schedule, motion.position()
    if point is None:
        return Course(new, 0)
    numbers = point.numbers
    if bool(numbers["by_hops"]) != (motion.unit == "hops"):
        unit = "hops" if numbers["by_hops"] else "time"
        raise InputError("time, hops", motion.unit, unit, f"The run counts {unit}: give --{unit}.")
    old = _schedule_of(numbers)
    # An end between two regular frames leaves a frame that a longer run does not count.
    number = min(int(numbers["next"]), old.regular + 1)
    # The time that is asked for counts from the beginning of the run, frames perhaps do not.
    origin = _origin(point)
    end = after(origin, 1, new.end - new.start)
    schedule, odd, apart = replace(new, start=old.start, end=end), None, False
    if (new.every, new.per_decade) != (old.every, old.per_decade):
        if new.every != old.every and "save_every" not in changed:
            remedy = "Leave it out, or say so: mpiflow resume FILE --save-every ..."
            raise InputError("save_every", new.every, f"{old.every:g}, as before", remedy)
        if new.per_decade != old.per_decade and "frames_per_decade" not in changed:
            remedy = "Leave it as it was, or say so: --override frames_per_decade=..."
            allowed = f"{old.per_decade}, as before"
            raise InputError("frames_per_decade", new.per_decade, allowed, remedy)
        schedule = replace(new, start=origin, end=end)
        number = schedule.next(here)
    elif end == old.end:
        number = int(numbers["next"])
    elif number < int(numbers["next"]):
        odd = int(numbers["frames"]) - 1
    if schedule.per_decade is not None and schedule.step != old.step:
        number = schedule.next(here)  # other steps are nearest to where frames are due
    if not motion.reaches(end):
        grain = motion.stop_interval or 0.0
        near = after(here, max(1, round((end - here) / grain)), grain)
        allowed = f"{here:g}, where it goes on, and whole steps of {grain:g} more"
        raise InputError("time", end, allowed, f"Use {near:.12g}, or another step.")
    if here < end and not motion.reaches(schedule.target(number)):
        schedule, number, apart, odd = replace(new, start=here, end=end), 0, True, None
    schedule.check()
    return Course(schedule, number, apart, odd)


def _schedule_of(numbers: Mapping[str, Number]) -> Schedule:
    """That of the frames of a run that stopped."""
    start, end, every = (float(numbers[name]) for name in ("start", "end", "every"))
    per_decade = int(numbers.get("per_decade", 0)) or None  # none where older versions knew none
    return Schedule(start, end, every, per_decade, float(numbers.get("frame_step", 0.0)))


def _origin(point: Checkpoint) -> float:
    """Where the run began, in its unit."""
    return float(point.numbers.get("origin", point.numbers["start"]))


def _parts(motion: Motion, course: Course, config: str, point: Checkpoint | None) -> str:
    """``segments_json`` of a run that starts or goes on with a configuration."""
    every, per_decade = course.schedule.every, course.schedule.per_decade
    now = json.loads(config)
    if point is None:
        first = segments.entry(0, motion.sim.time, every, motion.unit, now, per_decade)
        return json.dumps([first])
    numbers, frames = point.numbers, int(point.numbers["frames"])
    known = point.config.get("inputs") or {}
    moved = {n for n, sha in (now.get("inputs") or {}).items() if known.get(n) == sha}
    now |= {name: point.config[name] for name in moved & point.config.keys()}  # the same files
    if point.segments:
        before = json.loads(point.segments)
    else:  # of an older mpiflow
        start = 0.0 if numbers["by_hops"] else _origin(point)
        old_every = float(numbers["every"])
        before = [segments.entry(0, start, old_every, motion.unit, point.config)]
    new = segments.entry(frames, float(numbers["time"]), every, motion.unit, now, per_decade)
    return json.dumps(segments.gone_on(before, new, apart=course.apart, odd=course.odd))


def follow(
    motion: Motion,
    content: Content,
    attributes: Mapping[str, Any],
    out: str | Path,
    *,
    facts: Mapping[str, Any],
    point: Checkpoint | None = None,
    keep: Keep | None = None,
    overwrite: bool = False,
    writer: Backend = "auto",
    progress: bool = True,
    changed: Container[str] = (),
    callbacks: Sequence[Callback] = (),
) -> None:
    """Run to the end of the schedule and write every frame that is due. Collective.

    Parameters
    ----------
    attributes : of the root of the file
    facts : what must be the same where the run goes on, for the checkpoints
    point : a checkpoint that has been loaded: go on from there
    keep : write checkpoints, also at the end, and stop with one on a signal or at a walltime
    changed : options that may be others than those of the checkpoint
    callbacks : what is called at frames or between; one may end the run, which is then complete

    Raises
    ------
    InputError : on all ranks; an observable or a callback failed, and the file has all frames so
        far
    Stopped : on all ranks; the file is that of the last frame, and the checkpoint can go on
    """
    sim, out = motion.sim, Path(os.path.realpath(out))
    comm = sim.comm
    with agreed(comm):
        if comm.rank == 0:
            checkpoint.probe(out, overwrite or point is not None, keep is not None)
    course = continued(motion, point, changed)
    schedule, number = course.schedule, course.number
    if keep is not None and keep.every is not None:
        length = schedule.end - schedule.start
        require_few("checkpoint_every", keep.every, length, MOST_CHECKPOINTS, "checkpoints")
    if number > schedule.last and _complete(out, comm):
        say(comm, f"{out.name} is complete: give a longer --{motion.unit} to go on")
        return
    start = origin = schedule.start
    resume = None
    if point is not None:
        resume = Continuation(int(point.numbers["frames"]), point.run)
        origin = _origin(point)
    facts_json = json.dumps(dict(facts))
    parts = _parts(motion, course, attributes["config_json"], point)
    if course.odd is not None and progress:
        say(comm, f"frame {course.odd} of {out.name}, that of an earlier end, lies between two "
            "that are due: it is kept, as an odd frame")  # fmt: skip
    with TrajectoryWriter(
        out,
        comm=comm,
        dims=content.dims,
        variables=content.variables,
        coordinates=content.coordinates,
        attributes={**attributes, "segments_json": parts},
        overwrite=overwrite,
        resume=resume,
        backend=writer,
        time=content.time,
    ) as trajectory:
        if point is None:
            for name, value in content.static.items():
                trajectory.write_static(name, value)
            with agreed(comm):
                if comm.rank == 0:
                    checkpoint.forget(out)

        def save() -> Path:
            began = clock.monotonic()
            trajectory.flush()  # a checkpoint must not be newer
            numbers: dict[str, Number] = {
                "frames": trajectory.frames,
                "next": number,
                "origin": origin,
                "start": start,
                "end": schedule.end,
                "every": schedule.every,
                "per_decade": schedule.per_decade or 0,
                "frame_step": schedule.step,
                "by_hops": int(motion.unit == "hops"),
            }
            texts = {
                "config_json": attributes["config_json"],
                "facts_json": facts_json,
                "segments_json": parts,
                "run": trajectory.run,
            }
            path = checkpoint.write(out, sim, texts, numbers)
            watch.saved(motion.position(), clock.monotonic() - began)
            return path

        begun, ended = motion.position(), ""
        first = 1.0 if motion.some else motion.stop_interval or schedule.every
        with (
            Progress(schedule.end - start, out.name, comm, show=progress) as bar,
            Watch(keep, comm, first, motion.position()) as watch,
        ):
            calls = Calls(callbacks, motion, origin, point is not None)
            while number <= schedule.last:
                target = schedule.target(number)
                events = _go(motion, target, calls.next(), watch) if number > 0 else None
                if number == 0 or motion.position() >= target:
                    with _frames_kept(trajectory):
                        sample = content.frame()
                    for text in sample.said if progress else ():
                        say(comm, text)
                    # A window may hold more hops than lie between frames.
                    if sample.time > trajectory.last_time:
                        trajectory.append(sample.time, sample.values)
                        with _frames_kept(trajectory):
                            ended = ends(calls.due(number), sim, sample)
                    bar.update(motion.position() - start, t=sample.time, **sample.shown)
                    number += 1
                elif between := calls.due(None):
                    with _frames_kept(trajectory):
                        sample = content.frame()
                        ended = ends(between, sim, sample)
                    if ended and sample.time > trajectory.last_time:
                        trajectory.append(sample.time, sample.values)
                    bar.update(motion.position() - start)
                else:
                    bar.update(motion.position() - start)
                if ended:
                    place = f"{ended} ended the run at {motion.unit} {motion.position():g}"
                    trajectory.note({"stopped_early": place})
                    if progress:
                        say(comm, place)
                    break
                verdict = watch.look(motion.position(), events)
                if number > schedule.last:
                    continue
                path = None
                if keep is not None and (verdict.checkpoint or verdict.reason):
                    path = save()
                if verdict.reason:
                    trajectory.close(complete=False)
                    _say_what_is_taken_back(sim, motion.position() > begun)
                    place = f"{verdict.reason}: stopped at {motion.unit} {motion.position():g}"
                    if path is None:
                        say(comm, f"{place}, without a checkpoint")
                        raise SystemExit(FAILED)
                    say(comm, f"{place}; checkpoint {path.parent.name}/{path.name}; "
                        f"mpiflow resume {out.name} goes on")  # fmt: skip
                    raise Stopped(verdict.reason)
            if keep is not None:
                save()


@contextmanager
def _frames_kept(trajectory: TrajectoryWriter) -> Iterator[None]:
    """An InputError in the block, raised on all ranks alike, leaves a file with all frames."""
    try:
        yield
    except InputError:
        trajectory.close(complete=False)
        raise


def _say_what_is_taken_back(sim: Simulated, finished: bool) -> None:
    """At a stop in a window; whether this job has ``finished`` any before."""
    back = sim.taken_back
    if back is None or (finished and back == 0):
        return
    text = f"the window that was begun is taken back after {back} events, to be made anew"
    if not finished:
        shorter = f" or a shorter --override {sim.window_option}=..." if sim.window_option else ""
        text += f"; this job has finished none: if no job can, resume with more time{shorter}"
    say(sim.comm, text)


def _go(motion: Motion, target: float, call: float, watch: Watch) -> float | None:
    """A stretch of work on the way to ``target``, no further than a ``call`` before it.

    Returns how many events it had, if they count.
    """
    here = motion.position()
    if motion.some is None:
        place = motion.stop(target, min(watch.ahead(here), call - here))
        if here < place:
            motion.move(place)
        return None
    place = min(target, here + min(watch.to_checkpoint(here), call - here))
    most = watch.events
    if most is not None and here < place:
        return motion.some(place, most, target)
    if here < place:
        motion.move(place)
    return 0


# -- the same run as before --------------------------------------------------------------------


def keep_of(config: RunConfig) -> Keep | None:
    """What a configuration says about checkpoints."""
    if not config.checkpoints:
        return None
    return Keep(config.checkpoint_every, config.walltime)


def beginning(
    config: RunConfig, comm: MPI.Intracomm, changed: Container[str] = ()
) -> tuple[Checkpoint | None, bool]:
    """The checkpoint to start from, if any, and whether to replace the file. Collective.

    A run that was killed before its first checkpoint starts again: it is its seed. From here on
    the walltime ends the program, also before the first step.
    """
    begin(keep_of(config))
    with agreed(comm):
        if comm.rank == 0:
            replaces = config.overwrite or config.resume
            checkpoint.probe(Path(config.out), replaces, config.checkpoints)
    if not config.resume:
        _note_inputs(config, comm, {})
        return None, config.overwrite
    out = Path(config.out).resolve()
    point = checkpoint.newest(out, comm, lambda text: say(comm, text))
    old = None
    with agreed(comm):
        if point is not None:
            old = point.config
        elif out.exists():
            with Trajectory(out) as there:
                _require_its_seed(there)
                old = there.config
    kept: set[str] = set()
    if point is not None:  # its state is what the run was started from
        kept = {name for name in inputs.STARTS & point.config.keys() if name not in changed}
        config.__dict__.update({name: point.config[name] for name in kept})
    _note_inputs(config, comm, old or {}, kept)
    with agreed(comm):
        if old is not None:
            new = json.loads(config.model_dump_json())
            # Files are told by their contents, not by their places.
            same = _same_files(config, old) | {"inputs"}
            known = {name: value for name, value in old.items() if name in new.keys() - same}
            refuse(differences(known, {n: new[n] for n in known}), changed)
    if old is not None and point is None and not config.quiet:
        say(comm, f"no checkpoint {out.name}.* in {checkpoint.folder_of(out)}: {out.name} was not "
            "stopped after one, and starts again")  # fmt: skip
    if point is not None and not config.quiet:
        say(comm, f"going on from {point.describe()}")
        if point.version != __version__:
            say(comm, f"the checkpoint is of mpiflow {point.version}, this is {__version__}")
    return point, True


def _note_inputs(
    config: RunConfig, comm: MPI.Intracomm, old: Mapping[str, Any], kept: Container[str] = ()
) -> None:
    """Put the SHA-256 of input files into a configuration, and what is taken from the initial one.

    Collective; rank 0 reads them.
    """
    found: dict[str, Any] = {}
    with agreed(comm):
        if comm.rank == 0:
            found["inputs"] = inputs.digests(config.files(), old.get("inputs") or {}, kept)
            if "initial" not in kept:
                found |= config.start()
    config.__dict__.update(comm.bcast(found))


def _same_files(config: RunConfig, old: Mapping[str, Any]) -> set[str]:
    """Options that name the same file as in an old configuration, though maybe elsewhere.

    Those with a SHA-256 have been compared. Without one, as mpiflow 0.1 wrote them, the path has
    to be the same.
    """
    known = old.get("inputs") or {}
    new = {name: str(getattr(config, name)) for name in config.files()}
    return {n for n in new if n in known or inputs.absolute(str(old.get(n))) == new[n]}


def _require_its_seed(run: Trajectory) -> None:
    """Raise if a run without a checkpoint is more than what starting again would give."""
    every, seen = run.config.get("checkpoint_every"), run.time[-1:] - run.time[:1]
    if run.config.get("hops") is not None:
        every = None  # it is in hops
    had = len(run.segments) > 1 or (every is not None and bool((seen > 1.5 * every).any()))
    if run.complete or had:
        out = run.path.resolve()
        allowed = f"a run with checkpoints: {out.name}.000001 or so in {checkpoint.folder_of(out)}"
        none = f"It has none, nor has run {run.attributes.get('run', '')} under another name."
        remedy = "Bring them back, or choose another name to do it again."
        raise InputError("out", str(run.path), allowed, f"{none} {remedy}")


def facts_of(facts: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What makes a simulation the same as another one, for JSON."""
    names = ("kernel", "rng", "barriers_sha256", "field_sha256")
    known = {name: attributes[name] for name in names if name in attributes}
    return {
        name: number_to_json(value) if isinstance(value, float) else value
        for name, value in {**facts, **known}.items()
    }


def unchanged(point: Checkpoint, facts: Mapping[str, Any], changed: Container[str]) -> None:
    """Raise, with the difference, if a simulation is not the one of a checkpoint."""
    now = json.loads(json.dumps(dict(facts)))
    if "site_field" not in point.facts:  # of an older mpiflow, which told fields by their files
        now.pop("site_field", None)
    refuse(differences(point.facts, now), changed, point.config)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Names whose values differ, with both."""
    names = [*old, *(name for name in new if name not in old)]
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def refuse(
    changes: Mapping[str, tuple[Any, Any]],
    changed: Container[str],
    options: Container[str] | None = None,
) -> None:
    """Raise for changes that nobody has asked for; ``options`` if some are none."""
    wrong = {n: pair for n, pair in changes.items() if n not in changed and n not in FREE}
    if wrong:
        listed = "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in wrong.items())
        name = next(iter(wrong))
        remedy = f"Leave it as it was, or say so: mpiflow resume FILE --override {name}=..."
        if options is not None and name not in options:
            remedy = "It is no option: bring back the file or version of then, or start again."
        raise InputError(
            ", ".join(wrong), wrong[name][1], f"what the run was started with ({listed})", remedy
        )
