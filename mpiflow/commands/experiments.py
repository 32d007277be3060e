"""``mpiflow experiment NAME``: the drivers, which a wheel has inside of the package.

A driver is a program with options of its own. It is run as one, in this process, so that a launcher
starts it on any number of ranks as it starts every other command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import typer

from mpiflow.commands.model_command import STYLE


class _Whole(typer.core.TyperGroup):
    """A group whose list of commands has their whole lines, on two where a terminal is narrow."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Experiments"):
            formatter.write_dl([(name, one.help) for name, one in sorted(self.commands.items())])


experiment_app = typer.Typer(
    help="Make a published table or figure. Or that of a study beyond them.",
    cls=_Whole,
    invoke_without_command=True,
    subcommand_metavar="NAME [OPTIONS]",
    epilog="mpiflow experiment NAME --help says what one does and which options it has.",
    context_settings={"max_content_width": 160},
    **STYLE,
)


@experiment_app.callback()
def _list(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def folder() -> Path:
    """Where the drivers are: inside of an installed package, beside the package in its source."""
    package = Path(__file__).parents[1]
    inside = package / "drivers"
    return inside if inside.is_dir() else package.with_name("drivers")


def line_of(driver: Path) -> str:
    """The first line of a driver's docstring."""
    with driver.open() as file:
        return file.readline().strip().lstrip("r").strip('"')


def add_all() -> None:
    """A command for each driver."""
    known = {made.name for made in experiment_app.registered_commands}
    for path in sorted(folder().glob("*.py")):
        if path.stem not in known:
            add(experiment_app, path.stem, line_of(path))


def add(app: typer.Typer, name: str, text: str) -> None:
    """A command that runs a driver, which reads the options, ``--help`` among them, itself."""

    def command(context: typer.Context) -> None:
        run(name, context.args)

    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    app.command(name, help=text, context_settings=settings)(command)


def run(name: str, arguments: Sequence[str]) -> None:
    """Run a driver as the program that it is; who calls this has his own arguments back."""
    place = spec_from_file_location(f"mpiflow.drivers.{name}", folder() / f"{name}.py")
    if place is None or place.loader is None:
        raise FileNotFoundError(folder() / f"{name}.py")
    module = sys.modules[place.name] = module_from_spec(place)  # ranks exchange what it defines
    before = sys.argv
    sys.argv = [f"mpiflow experiment {name}", *arguments]
    try:
        place.loader.exec_module(module)
        module.main()
    finally:
        sys.argv = before
