"""Commands whose options are the fields of a model, such as those of a run."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mpiflow.core.toml_files import read_toml
from mpiflow.files import storage
from mpiflow.simulation.options import Config, alternatives

#: Of every group of commands.
STYLE: dict[str, Any] = {"rich_markup_mode": None, "add_completion": False}


def _metavar(annotation: Any) -> str:
    kind = alternatives(annotation)[0]
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    return {int: "INTEGER", Path: "PATH", str: "TEXT"}.get(kind, "NUMBER")


def _typer_option(name: str, field: FieldInfo, argument: bool = False) -> inspect.Parameter:
    """The option (or argument) of one field. Values stay text: the model parses and checks."""
    flag = f"--{name.replace('_', '-')}"
    texts: Any = field.json_schema_extra
    default = texts["shown"] or field.default
    note = "[required]" if default is PydanticUndefined else f"[default: {default}]"
    settings: dict[str, Any] = {"help": field.description, "show_default": False}
    kind: Any = str | None
    if field.annotation is bool:
        kind, flag = bool | None, f"{flag}/--no-{name.replace('_', '-')}"
    else:
        settings["help"] = f"{field.description}  {note}"
        settings["metavar"] = texts["metavar"] or _metavar(field.annotation)
    makes: Any = typer.Option(None, flag, **settings)
    if argument:
        makes = typer.Argument(None, metavar=texts["metavar"], help=field.description)
        if get_origin(field.annotation) is tuple:
            kind = list[str] | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=makes,
        annotation=kind,
    )


def with_parents(command: Callable[..., None]) -> Callable[..., None]:
    """The command with one more option, ``--parents``: the folder of the file it writes is made.

    Commands that write folders make them in any case.
    """

    @functools.wraps(command)
    def run(parents: bool, **given: Any) -> None:
        with storage.making_parents(parents):
            command(**given)

    text = "Make the folders that the output is to lie in, where they are missing."
    default = typer.Option(False, "--parents", help=text)
    named = inspect.Parameter.KEYWORD_ONLY
    signature = inspect.signature(command, eval_str=True)
    parameters = [
        *(p.replace(kind=named) for p in signature.parameters.values()),
        inspect.Parameter("parents", named, default=default, annotation=bool),
    ]
    # typer reads the signature and the annotations.
    vars(run)["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def command_of(
    model: type[Config],
    run: Callable[[Any], None],
    argument: str = "",
    instead: Callable[[dict[str, Any]], bool] | None = None,
) -> Callable[..., None]:
    """A function with one option for each field of the model, and ``--config``.

    One of the fields may be an ``argument``: it is given without its name, several times if it is a
    tuple. ``instead`` takes the options, and says whether it ran them as those of another model.
    """

    def command(config: Path | None, **given: Any) -> None:
        chosen = {name: value for name, value in given.items() if value not in (None, [])}
        if instead is None or not instead((read_toml(config) if config else {}) | chosen):
            run(model.from_toml(config, **chosen))

    file_option = inspect.Parameter(
        "config",
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(
            None,
            "--config",
            metavar="FILE",
            help="TOML file with any of these options (names with _); the command line wins.",
        ),
        annotation=Path | None,
    )
    fields = model.options().items()
    parameters = [file_option, *(_typer_option(n, f, n == argument) for n, f in fields)]
    # typer reads the signature and the annotations; both are those of the model.
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__doc__ = model.__doc__
    return command
