"""The command line. Options come from the models of :mod:`mpiflow.simulation.options`.

Modules that compile or start MPI are imported inside the commands, so that
``mpiflow --help`` answers at once.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from mpiflow._version import __version__
from mpiflow.commands import experiments
from mpiflow.commands.importing.options import ImportConfig
from mpiflow.commands.learning import learn_app, warnings_as_lines
from mpiflow.commands.model_command import STYLE, command_of, with_parents
from mpiflow.core import parallel, signals, streams
from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.gpu import METAVAR
from mpiflow.core.packages import explained
from mpiflow.learn.options import RolloutConfig
from mpiflow.simulation import catalogue
from mpiflow.simulation.options import RunConfig, idle

app = typer.Typer(
    help="Simulate stochastic lattice systems on MPI ranks, and learn their macroscopic dynamics.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    **STYLE | {"add_completion": True},
)
simulate_app = typer.Typer(help="Simulate a system and write a Trajectory file.", **STYLE)
app.add_typer(simulate_app, name="simulate")
app.add_typer(learn_app, name="learn")
app.add_typer(experiments.experiment_app, name="experiment")
experiments.add(app, "demo", "The whole method in a quarter of a minute. On 2 ranks.")

#: A run that is asked about: a file or a name, and options.
CONFIG: Any = typer.Argument(
    ..., metavar="CONFIG", help="TOML file as of --config, a Trajectory, or a system's name."
)
CHANGES: Any = typer.Argument(
    None, metavar="[NAME=VALUE]...", help="Options, which replace those of the file."
)


def main() -> None:
    """Entry point of ``mpiflow``: exit code 0, 2 for a bad input, else another."""
    parallel.leave_srun()
    streams.forgive()
    streams.plain_warnings()
    parallel.install_abort_hook()
    parallel.mute_other_ranks()
    # Paths need not be UTF-8: their bytes are shown as they are.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    word = sys.argv[1:2]
    if word in (["simulate"], ["sweep"], ["resume"], ["predict"]) and signals.listen():
        remark = "stopped before its first steps were over: start it again"
        signals.nothing_to_lose(parallel.ender(signals.STOPPED, remark))
    elif word in (["learn"], ["bench"]):
        parallel.end_on_signals(f"{word[0]} ended before it was done; nothing of it is kept")
    invoke(sys.argv[1:])


def invoke(arguments: Sequence[str]) -> None:
    """Run a command line in this process; a bad one raises :class:`InputError`."""
    # The same under any version of typer, whether or not it brings its own click.
    usage_error: Any = typer.BadParameter.__bases__[0]
    # A shell that asks what may come next says in the environment what was typed; bash does here.
    asked = "_MPIFLOW_COMPLETE" in os.environ
    words = os.environ.get("COMP_WORDS", "").split()[1:] if asked else arguments
    _add_systems(words)
    if "experiment" in words[:1]:
        experiments.add_all()
    command = typer.main.get_command(app)
    try:
        with explained():
            code = command.main(list(arguments), prog_name="mpiflow", standalone_mode=False)
    except usage_error as error:
        raise _usage(error, arguments) from None
    except typer.Abort:  # Ctrl-C, or for newer versions the code below
        raise KeyboardInterrupt from None
    if code == parallel.INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        sys.exit(code)


def _usage(error: Any, arguments: Sequence[str]) -> InputError:
    """A command line that does not parse, in the form of every other bad input."""
    context = error.ctx
    command = getattr(context, "command", None)
    help_hint = f"See {getattr(context, 'command_path', 'mpiflow')} --help."
    wrong = getattr(error, "option_name", None)
    if wrong is not None and type(error).__name__ == "NoSuchOption" and command is not None:
        known = [name for p in command.params for name in (*p.opts, *p.secondary_opts)]
        allowed = f"an option of {getattr(context, 'command_path', 'mpiflow')}"
        return InputError("option", wrong, allowed, did_you_mean(wrong, known) or help_hint)
    commands = getattr(command, "commands", None)
    if commands:
        groups = ("simulate", "learn", "experiment", "-h", "--help")
        word = next((a for a in arguments if a not in groups), "")
        meant, names = did_you_mean(word, commands), ", ".join(commands)
        allowed = f"one of {names}"
        if meant and len(names) > 400:  # the name that is meant would be lost
            allowed = f"what {getattr(context, 'command_path', 'mpiflow')} lists"
        return InputError("command", word, allowed, meant or help_hint)
    problem = error.format_message().rstrip(".")
    return InputError(
        "arguments", " ".join(arguments), "what --help says", f"{problem}. {help_hint}"
    )


# -- commands ------------------------------------------------------------------------------


def _simulate(config: RunConfig) -> None:
    from mpiflow.run.simulate import simulate

    simulate(config, parallel.start())


def _rollout(given: dict[str, Any]) -> bool:
    """Run a closure, or the order of an alloy; False if the model is none."""
    from mpiflow.learn import rollout

    if not rollout.runs_here(given.get("model")):
        return False
    config = RolloutConfig(**given)
    comm = parallel.start_reading()
    with warnings_as_lines(comm):
        written = rollout.predict(config, comm)
    if comm.rank == 0 and not config.quiet:
        print(f"wrote {written}")
    return True


def _json(facts: dict[str, Any]) -> str:
    """For other programs; numbers of NumPy as plain ones."""
    return json.dumps(facts, default=lambda value: value.item())


def _names(group: typer.Typer) -> set[str]:
    """Of its commands."""
    return {
        made.name or str(getattr(made.callback, "__name__", ""))
        for made in group.registered_commands
    }


def _add_systems(arguments: Sequence[str]) -> None:
    """A command for each system of the catalogue that a command line may mean: to make those of
    all takes longer than to load one run."""
    systems = catalogue.systems()
    word, name = (*arguments, "", "")[:2]
    if word in _names(app):  # has nothing to do with a system
        return
    if word == "simulate" and name in systems:
        systems = {name: systems[name]}
    made = {*_names(app), *_names(simulate_app)}
    for name, entry in systems.items():
        if (name if entry.command == "simulate" else entry.command) in made:
            continue
        model = catalogue.options(name)
        if entry.command == "simulate":
            made_of = with_parents(command_of(model, _simulate))
            simulate_app.command(name, help=entry.help)(made_of)
        else:  # its first argument is the model that it runs
            made_of = with_parents(command_of(model, _simulate, "model", _rollout))
            app.command(entry.command, help=entry.help)(made_of)


@app.command()
def sweep(
    path: Path = typer.Argument(..., metavar="CONFIG", help="TOML file with a table [sweep]."),
    options: list[str] | None = typer.Argument(
        None, metavar="[NAME=VALUE]...", help="Options of all runs that replace those of the file."
    ),
    out: Path = typer.Option(..., "--out", metavar="FOLDER", help="For runs, table and data set."),
    mode: str = typer.Option(
        "grid", "--mode", metavar="grid|list", help="All combinations, or values side by side."
    ),
    discard: float = typer.Option(
        0.0, "--discard", metavar="TIME", help="The table has means of frames after this time."
    ),
    exchange_every: float | None = typer.Option(
        None,
        "--exchange-every",
        metavar="TIME",
        help="Temperatures are copies that exchange states so often: parallel tempering.",
    ),
    resume: bool = typer.Option(
        False, "--resume", help="Finished points stay, and others go on from their checkpoints."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace runs that are there."),
) -> None:
    """Run a grid or a list of parameters, dealt to the ranks."""
    from mpiflow.run import sweep as sweeps
    from mpiflow.run.plan import named_values

    comm = parallel.start()
    with parallel.agreed(comm):
        of_all: dict[str, Any] = named_values(options or [])
        if resume:
            of_all["resume"] = True
        if overwrite:
            of_all["overwrite"] = True
    of_all |= {"mode": mode, "exchange_every": exchange_every}
    made = sweeps.sweep(path, out=out, discard=discard, comm=comm, **of_all)
    if comm.rank == 0:
        print(f"{made}: {sweeps.TABLE} and {sweeps.DATA}")


@app.command()
def resume(
    path: Path = typer.Argument(..., metavar="FILE", help="The Trajectory file of the run."),
    time: str = typer.Option(None, "--time", help="Run to this time since the start of the run."),
    hops: str = typer.Option(None, "--hops", help="Run to so many hops, of an alloy run."),
    walltime: str = typer.Option(None, "--walltime", help="As of simulate."),
    save_every: str = typer.Option(
        None, "--save-every", help="Another distance of frames from here on."
    ),
    checkpoint_every: str = typer.Option(None, "--checkpoint-every", help="As of simulate."),
    device: str = typer.Option(None, "--device", metavar=METAVAR, help="As of simulate."),
    ranks_grid: str = typer.Option(None, "--ranks-grid", metavar="NY,NX", help="As of simulate."),
    writer: str = typer.Option(None, "--writer", help="As of simulate."),
    reseed: str = typer.Option(None, "--reseed", metavar="SEED", help="Go on with another seed."),
    override: list[str] = typer.Option(
        [], "--override", metavar="NAME=VALUE", help="Change another option from here on."
    ),
    quiet: bool = typer.Option(None, "--quiet/--no-quiet", help="Show nothing."),
) -> None:
    """Go on with a run from its newest good checkpoint. On any number of ranks."""
    from mpiflow.run import resume as resuming

    changes = {
        "time": time,
        "hops": hops,
        "walltime": walltime,
        "save_every": save_every,
        "checkpoint_every": checkpoint_every,
        "device": device,
        "ranks_grid": ranks_grid,
        "writer": writer,
        "seed": reseed,
        "quiet": quiet,
    }
    for text in override:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError("override", text, "NAME=VALUE", "Try --override temperature=2.5.")
        changes[name.strip().replace("-", "_")] = value.strip()
    given = {name: value for name, value in changes.items() if value is not None}
    resuming.resume(path, parallel.start(), given)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Show the version and exit."),
) -> None:
    if version:
        print(f"mpiflow {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit


@app.command()
def info(
    path: Path = typer.Argument(..., metavar="FILE", help="A Trajectory file."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Say what a Trajectory file holds."""
    from mpiflow.files.trajectory import Trajectory

    comm = parallel.start_reading()
    with parallel.agreed(comm):
        if comm.rank == 0:
            with Trajectory(path) as trajectory:
                print(_json(trajectory.facts()) if as_json else trajectory.summary())


@app.command()
def verify(
    paths: list[Path] = typer.Argument(
        ..., metavar="PATH...", help="Trajectory files, checkpoints, or folders of runs."
    ),
    quick: bool = typer.Option(False, "--quick", help="Only sha256 and structure; read no values."),
    seal: bool = typer.Option(
        False,
        "--seal",
        help="Seal finished runs anew that another program changed, if all is right.",
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line, for each file."),
) -> None:
    """Check that files are intact and obey the physics. Exit code 1 if one does not."""
    from mpiflow.commands import reseal
    from mpiflow.commands import verify as checks

    comm = parallel.start_reading()
    if quick and seal:
        raise InputError("quick", quick, "no value with --seal, which checks all", "Leave it out.")
    if comm.rank > 0:
        return
    bad = 0
    for finding in reseal.seal(paths) if seal else checks.verify(paths, quick):
        facts = {"path": str(finding.path), "good": finding.good, "text": finding.text}
        print(_json(facts) if as_json else finding, flush=True)
        bad += not finding.good
    if bad:
        raise typer.Exit(1)


def _import(config: ImportConfig) -> None:
    from mpiflow.commands.importing import run

    comm = parallel.start_reading()
    written, frames = run.run(config, comm)
    if comm.rank == 0 and not config.quiet:
        print(f"{written}: {frames} frame{'s' * (frames != 1)}")


app.command("import", help=ImportConfig.__doc__)(
    with_parents(command_of(ImportConfig, _import, "files"))
)


@app.command("import-nnk")
@with_parents
def import_nnk(
    weights: Path = typer.Argument(
        ..., metavar="WEIGHTS.npy", help="The file of the published barrier network."
    ),
    out: Path = typer.Argument(..., metavar="OUT.safetensors", help="The file to write."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing file."),
) -> None:
    """Convert the published barrier network. The new file is safe to share."""
    from mpiflow.simulation.alloy import barrier_model as barrier_files

    comm = parallel.start_reading()
    with parallel.agreed(comm):
        if comm.rank == 0:
            model = barrier_files.import_nnk(weights, out, overwrite)
            print(f"wrote {out}\n{model.summary()}")


@app.command()
@with_parents
def export(
    path: Path = typer.Argument(..., metavar="FILE", help="A Trajectory file."),
    to: str = typer.Option(
        ..., "--to", metavar="netcdf|xdmf|lammpsdump|extxyz", help="Format to write."
    ),
    out: Path | None = typer.Option(
        None, "--out", metavar="PATH", help="File to write.  [default: FILE, another suffix]"
    ),
    variables: str | None = typer.Option(
        None, "--variables", metavar="A,B", help="netcdf, xdmf: only these.  [default: all]"
    ),
    frames: str | None = typer.Option(
        None, "--frames", metavar="START:STOP:STEP", help="netcdf, xdmf: as in Python."
    ),
    frame: str | None = typer.Option(
        None, "--frame", metavar="N|all", help="Of atoms: negative from the end.  [default: -1]"
    ),
    member: int | None = typer.Option(
        None, "--member", metavar="M", help="Of an ensemble; not for netcdf.  [default: 0]"
    ),
    vacancies: bool = typer.Option(
        False, "--vacancies", help="Of atoms: write vacancies too, as element X."
    ),
    netcdf_format: str | None = typer.Option(
        None,
        "--netcdf-format",
        metavar="netcdf4|netcdf4-classic|64bit|classic",
        help="netcdf: the last three are for readers of the classic model, as ParaView and ncview. "
        " [default: netcdf4]",
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing file."),
) -> None:
    """Write a run for other programs. netCDF, fields for ParaView, atoms for OVITO and ASE."""
    from mpiflow.commands import export as exports
    from mpiflow.files.trajectory import Trajectory

    comm = parallel.start_reading()
    with parallel.agreed(comm):
        if comm.rank == 0:
            with Trajectory(path) as trajectory:
                written, count = exports.export(
                    trajectory,
                    to,
                    out,
                    variables=variables,
                    frames=frames,
                    frame=frame,
                    member=member,
                    vacancies=vacancies,
                    netcdf_format=netcdf_format,
                    overwrite=overwrite,
                )
            print(f"{written}: {count} frame{'s' * (count != 1)}")


@app.command()
@with_parents
def plot(
    path: Path = typer.Argument(..., metavar="FILE", help="A Trajectory file."),
    out: Path | None = typer.Option(
        None, "--out", metavar="PNG", help="Picture to write.  [default: text, to the terminal]"
    ),
    variable: list[str] | None = typer.Option(
        None, "--variable", metavar="NAME", help="Only this; may be given several times."
    ),
    frame: int | None = typer.Option(
        None, "--frame", metavar="N", help="Of the fields; negative from the end."
    ),
    member: int = typer.Option(0, "--member", metavar="M", help="Of the fields of an ensemble."),
    live: bool = typer.Option(False, "--live", help="Redraw the text until the run is complete."),
    film: Path | None = typer.Option(
        None, "--animate", metavar="GIF|HTML|MP4", help="A field in motion, written to this file."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing picture."),
) -> None:
    """Show a run as a picture or in the terminal. Its variables in time, and its fields."""
    from mpiflow.commands import animate as films
    from mpiflow.commands import plot as plot_run

    comm = parallel.start_reading()
    with parallel.agreed(comm):
        if comm.rank == 0 and film is not None:
            for name, value in (("out", out), ("frame", frame), ("live", live or None)):
                if value is not None:
                    raise idle(name, value, "with --animate, which shows all frames")
            of_one = variable[0] if variable else None
            count = films.animate(path, film, variable=of_one, member=member, overwrite=overwrite)
            print(f"{film}: {count} frames")
        elif comm.rank == 0:
            plot_run.plot(
                path,
                out,
                variables=variable or None,
                frame=frame,
                member=member,
                live=live,
                overwrite=overwrite,
            )


@app.command()
@with_parents
def report(
    path: Path = typer.Argument(
        ..., metavar="FILE|FOLDER", help="A run, a folder of runs, or the results of a driver."
    ),
    out: Path | None = typer.Option(
        None, "--out", metavar="HTML", help="Page to write.  [default: beside it]"
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing page."),
) -> None:
    """Write one page to send to a colleague. Figures are in it, it needs no network."""
    from mpiflow.commands import report as reports

    comm = parallel.start_reading()
    with parallel.agreed(comm):
        if comm.rank == 0:
            print(f"wrote {reports.report(path, out, overwrite=overwrite)}")


@app.command()
def watch(
    path: Path = typer.Argument(..., metavar="FILE", help="The file of a run in progress."),
    variable: list[str] | None = typer.Option(
        None, "--variable", metavar="NAME", help="Only this; may be given several times."
    ),
) -> None:
    """Show a run in progress in the terminal. Redrawn until it is complete, or Ctrl-C."""
    from mpiflow.commands import plot as plot_run

    comm = parallel.start_reading()
    with parallel.agreed(comm):
        if comm.rank == 0:
            plot_run.plot(path, variables=variable or None, live=True)


@app.command()
def plan(
    path: str = CONFIG,
    options: list[str] | None = CHANGES,
    ranks: int | None = typer.Option(
        None, "--ranks", metavar="N", help="Ranks to plan for.  [default: those that run this]"
    ),
    system: str | None = typer.Option(
        None,
        "--system",
        metavar="ising|kac|alloy|...",
        help="Where the file does not say it.",
    ),
    measure: bool = typer.Option(
        False, "--measure", help="Build it here, time a few steps, and estimate the time."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Say what a run will need before it runs. Memory, bytes on disk, and time."""
    from mpiflow.run import plan as plans
    from mpiflow.run import plan_time

    comm = parallel.start_reading()
    with parallel.agreed(comm):
        config = plans.of_words(path, system, options or [])
        made = plans.plan(config, comm.size if ranks is None else ranks)
        if measure and made.ranks != comm.size:
            raise InputError("ranks", ranks, f"{comm.size} to measure here", "Leave one out.")
    if measure:
        made = plan_time.estimate(made, parallel.start())
    if comm.rank == 0:
        print(_json(made.facts()) if as_json else made.text())


@app.command()
def certify(
    path: str = CONFIG,
    options: list[str] | None = CHANGES,
    system: str | None = typer.Option(
        None, "--system", metavar="ising|potts|alloy|...", help="Where the file does not say it."
    ),
    error: float = typer.Option(0.01, "--error", help="Of the learned drift, as a share of it."),
    drift: str = typer.Option(
        "generator",
        "--drift",
        metavar="generator|increment",
        help="Of short times, or of increments for rollouts with steps as long.",
    ),
    pairs: int = typer.Option(320_000, "--pairs", help="Of the data set."),
    repeats: int = typer.Option(16, "--repeats", help="Pairs that start from one state."),
    numbers: int = typer.Option(
        10, "--numbers", help="Free numbers of the law of an observable's drift."
    ),
    patch: int | None = typer.Option(None, "--patch", help="Only patches of this side."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Say how to make training pairs. Times, patches and numbers for a stated error of the law."""
    from mpiflow.commands import certify as certificates
    from mpiflow.learn.certificate.proposal import Aim
    from mpiflow.run import plan as plans

    comm = parallel.start()
    with parallel.agreed(comm):
        config = plans.of_words(path, system, options or [])
        aim = Aim(error, drift, pairs, repeats, numbers)  # type: ignore[arg-type]
    made = certificates.certify(config, aim, comm, patch)
    if comm.rank == 0:
        print(_json(made.facts()) if as_json else made)


@app.command()
def doctor(
    folder: Path = typer.Option(
        Path(),
        "--folder",
        metavar="DIR",
        help="Where runs will write.  [default: here]",
        show_default=False,
    ),
    device: str = typer.Option("cpu", "--device", metavar=METAVAR, help="Where they compute."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object."),
) -> None:
    """Check this machine. MPI, parallel HDF5, GPUs, files, packages, on the ranks that run this."""
    from mpiflow.commands import doctor as checks

    # Not parallel.start(): what it would refuse is for a check to say.
    raise typer.Exit(checks.main(folder, device, as_json))


@app.command()
def warmup(
    systems: list[str] | None = typer.Argument(
        None,
        metavar="[SYSTEM]...",
        help="Whose kernels to compile, or those of learning.  [default: all]",
    ),
) -> None:
    """Compile the kernels of runs before the first one. On a login node, or at set-up."""
    from mpiflow.commands import warmup as compiling

    for line in compiling.warm_up(systems or []):
        print(line, flush=True)


@app.command()
def bench(
    name: str = typer.Argument(
        ...,
        metavar="NAME",
        help="ising, sides, ising-exact, halo, scaling, partial-evolution, kac, alloy, field, "
        "spin-diffusion, files, start, learning or noise.",
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object a line, not a table."),
    device: str = typer.Option("cpu", "--device", metavar=METAVAR, help="Where to compute."),
    barriers: str = typer.Option(
        None, "--barriers", metavar="default|PATH", help="Barrier model of the alloy benchmark."
    ),
) -> None:
    """Measure the speed of a part of mpiflow. On the ranks that run this."""
    from mpiflow.commands.bench import spins as benchmarks

    rows = benchmarks.run(name, parallel.start(), device=device, barriers=barriers)
    if as_json:
        for row in rows:
            print(json.dumps(row))
    else:
        print(benchmarks.table(rows))
