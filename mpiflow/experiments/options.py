"""Options that drivers share. Needs no torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeVar

from mpiflow.core.errors import InputError, did_you_mean
from mpiflow.core.gpu import METAVAR, ON_GPUS

T = TypeVar("T")


class _Parser(argparse.ArgumentParser):
    """Says of an option that there is not which one may be meant."""

    def error(self, message: str) -> NoReturn:
        wrong = next((word for word in message.split() if word.startswith("--")), "")
        meant = did_you_mean(wrong.partition("=")[0], self._option_string_actions)
        known = message.startswith("unrecognized") and meant
        super().error(f"{message}. {meant}" if known else message)


def driver_parser(
    doc: str | None, out: str, smoke: str = "tiny sizes, to see that it runs"
) -> argparse.ArgumentParser:
    """A parser with the options of every driver: ``--out``, ``--device`` and ``--smoke``.

    Parameters
    ----------
    doc : of the driver's module; its first paragraph is above the options in ``--help``
    out : default of ``--out``
    smoke : what ``--smoke`` does
    """
    parser = _Parser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--out", default=out, help="directory for the results")
    parser.add_argument(
        "--device", default="cpu", metavar=METAVAR,
        help=f"of simulations and networks that have a path for GPUs. {ON_GPUS}",
    )  # fmt: skip
    parser.add_argument("--smoke", action="store_true", help=smoke)
    return parser


def at_least(options: argparse.Namespace, **least: int) -> None:
    """Raise :class:`InputError` where a numeric option is below its least value."""
    for name, bound in least.items():
        if getattr(options, name) < bound:
            raise InputError(name, getattr(options, name), f"{bound} or more", "Leave it out.")


def add_barriers(parser: argparse.ArgumentParser) -> None:
    """The barrier model of an alloy, as ``mpiflow simulate alloy`` takes it."""
    add = parser.add_argument
    add("--barriers", default="default", help="barrier model, as of mpiflow simulate alloy")
    add("--axis-order", default="paper", choices=["nkk", "paper"], help="of published weights")


def list_of(kind: Callable[[str], T], empty: bool = False) -> Callable[[str], list[T]]:
    """The type of an option such as ``8,16,32``; with ``empty`` it may be ``""``, for none."""

    def list_with_commas(text: str) -> list[T]:  # argparse says this name
        return [kind(word) for word in text.split(",")] if text or not empty else []

    return list_with_commas
