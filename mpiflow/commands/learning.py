"""``mpiflow learn``: a command for each learner.

What learns is imported inside the commands, so that ``mpiflow --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer

from mpiflow.commands.model_command import STYLE, command_of
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.core.gpu import METAVAR, ON_GPUS
from mpiflow.learn.options import AlloyConfig, ClosureConfig, GeneratorConfig, LearnConfig

learn_app = typer.Typer(help="Learn macroscopic dynamics from files of runs.", **STYLE)


@contextlib.contextmanager
def warnings_as_lines(comm: Any) -> Iterator[None]:
    """Each warning once, as a line; doubts about a law are in the table of what learns it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(one.message) for one in caught):
        if not text.startswith("the data do not obey"):
            parallel.say(comm, f"warning: {text}")


@learn_app.command("onsagerflow")
def learn_onsagerflow(
    runs: list[Path] = typer.Option(
        ..., "--runs", metavar="PATH...", help="Runs saved with --coarse: files, folders, patterns."
    ),
    more: list[Path] | None = typer.Argument(None, metavar="PATH...", help="More runs."),
    out: Path = typer.Option(..., "--out", metavar="FOLDER", help="Where the model is saved."),
    structure: str = typer.Option(
        "cosh", "--structure", metavar="cosh|langevin", help="Of the equation."
    ),
    kernel: str = typer.Option("free", "--kernel", metavar="free|radial", help="Form of J."),
    radius: int | None = typer.Option(
        None, "--radius", help="Reach of J in blocks.  [default: 8, or what fits the runs]"
    ),
    lags: str = typer.Option("1,2,3", "--lags", metavar="A,B,...", help="In frames, rising."),
    mobility_terms: int | None = typer.Option(
        None, "--mobility-terms", help="Polynomials in ln K.  [default: 4]"
    ),
    entropy_terms: int | None = typer.Option(
        None, "--entropy-terms", help="Polynomials in s'.  [default: 3]"
    ),
    temperature_degree: int | None = typer.Option(
        None, "--temperature-degree", help="In 1 / T.  [default: up to 2, as temperatures allow]"
    ),
    asymmetric: bool = typer.Option(
        False, "--asymmetric", help="K and s' that do not have the symmetry of m and -m."
    ),
    network: bool = typer.Option(False, "--network", help="K and s' as networks of m and T."),
    device: str = typer.Option(
        "cpu", "--device", metavar=METAVAR, help=f"Where networks are trained. {ON_GPUS}."
    ),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an existing model."),
) -> None:
    """Learn K, s' and J of a stochastic field. From files of block means."""
    from mpiflow.learn.onsagerflow import from_files

    parts = lags.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError("lags", lags, "whole numbers rising from 1 or more", "Try 1,2,3.")
    given = {
        "radius": radius,
        "mobility_terms": mobility_terms,
        "entropy_terms": entropy_terms,
        "temperature_degree": temperature_degree,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if network:
        idle = next((name for name in options if name != "radius"), None)
        if idle or kernel != "free":
            allowed = "no value with --network, which has no polynomials and a free J"
            raise InputError(idle or "kernel", options.get(idle or "", kernel), allowed,
                             "Leave it out.")  # fmt: skip
    else:
        options["kernel"] = kernel
    comm = parallel.start_reading()
    model = from_files.learn_from_files(
        [*runs, *(more or [])],
        out,
        overwrite=overwrite,
        lags=[int(part) for part in parts],
        comm=comm,
        network=network,
        device=device,
        structure=structure,
        symmetric=not asymmetric,
        **options,
    )
    if comm.rank == 0:
        print(from_files.table(model, out))


def _learn(config: LearnConfig, front: str, *data: Any) -> None:
    """Let the module ``front`` learn and say what came of it."""
    comm = parallel.start_reading()
    learner = import_module(front)
    with warnings_as_lines(comm):
        model = learner.learn(config, *data, comm=comm)
    if comm.rank == 0 and not config.quiet:
        print(learner.table(model, config.out))


def _learn_closure(config: ClosureConfig) -> None:
    _learn(config, "mpiflow.learn.closure.from_data", config.data)


def _learn_generator(config: GeneratorConfig) -> None:
    _learn(config, "mpiflow.learn.generator.from_files")


def _learn_alloy(config: AlloyConfig) -> None:
    _learn(config, "mpiflow.learn.alloy.from_files")


learn_app.command("closure", help=ClosureConfig.__doc__)(
    command_of(ClosureConfig, _learn_closure, "data")
)
learn_app.command("generator", help=GeneratorConfig.__doc__)(
    command_of(GeneratorConfig, _learn_generator, "data")
)
learn_app.command("alloy", help=AlloyConfig.__doc__)(command_of(AlloyConfig, _learn_alloy, "data"))
