"""Files that a run is made from: each is known again by its SHA-256, wherever it lies.

The configuration of a run holds the absolute path of such a file, and its SHA-256 in ``inputs``.
A run that goes on needs the same bytes; a file that it does not need any more may be gone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpiflow.core.errors import InputError

#: Of these a run that has a checkpoint needs nothing: its state is in there.
STARTS = frozenset(["initial", "initial_frame", "initial_time", "initial_member"])

_AS_BEFORE = "what the run was started with, of SHA-256 {}"
_MOVED = (
    "Bring it back, or say where it is now: mpiflow resume FILE --override {}=PATH "
    "(simulate and predict with --resume take the new path as it is)."
)


def sha256(*paths: Path) -> str:
    """In hexadecimal digits: of the bytes of a file, or of the names and digests of several.

    Raises
    ------
    OSError : one cannot be read
    """
    digests = []
    for path in paths:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    if len(paths) == 1:
        return digests[0]
    lines = (f"{path.name} {digest}\n" for path, digest in zip(paths, digests, strict=True))
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def digests(
    files: Mapping[str, Sequence[Path]], old: Mapping[str, str], kept: Container[str] = ()
) -> dict[str, str]:
    """The SHA-256 of input files by option, which are those of ``old`` where it has one.

    Parameters
    ----------
    kept : options whose files are not needed: they keep what ``old`` says

    Raises
    ------
    InputError : a file is missing, cannot be read, or is not the one of then
    """
    needed = {name: paths for name, paths in files.items() if name not in kept}
    found = {name: checked(name, paths, old.get(name)) for name, paths in needed.items()}
    return found | {name: old[name] for name in files if name in kept and name in old}


def checked(name: str, paths: Sequence[Path], expected: str | None) -> str:
    """The SHA-256 of the files of an option.

    Parameters
    ----------
    paths : a file, or several of one folder
    expected : what it has to be; None for a run that is new

    Raises
    ------
    InputError : they are missing, cannot be read, or are others
    """
    place = paths[0] if len(paths) == 1 else paths[0].parent
    if not all(path.is_file() for path in paths):
        raise missing(name, place, expected)
    try:
        found = sha256(*paths)
    except OSError as error:
        raise InputError(name, str(place), "a readable file", f"Reading said: {error}.") from error
    if expected not in (None, found):
        raise InputError(
            name,
            str(place),
            _AS_BEFORE.format(expected),
            f"It has changed: its SHA-256 is {found}. {_MOVED.format(name)} "
            "For a run from what it is now, start a new one.",
        )
    return found


def missing(name: str, place: Path, expected: str | None) -> InputError:
    """The error of a file or folder that is not there."""
    if expected is None:
        return InputError(name, str(place), "the path of an existing file", "Check the path.")
    remedy = f"It is not there. {_MOVED.format(name)}"
    return InputError(name, str(place), _AS_BEFORE.format(expected), remedy)


def origin(config: Mapping[str, Any]) -> str:
    """In words, which frame and member of which initial file a configuration names."""
    words = [str(config["initial"])]
    for name in ("frame", "time", "member"):
        if (value := config.get(f"initial_{name}")) is not None:
            words.append(f"{name} {value:.12g}")
    digest = (config.get("inputs") or {}).get("initial")
    return ", ".join(words) + (f" (SHA-256 {digest})" if digest else "")


def imported(config: Mapping[str, Any]) -> str:
    """In words, which files of another program a configuration names, and what read them."""
    where = f"from {config.get('format')}, by {config.get('reader')}"
    if "source" not in config:
        return where
    more = f" and {config['sources'] - 1} more" if config.get("sources", 1) > 1 else ""
    return f"{where}: {config['source']}{more} (SHA-256 {config['inputs']['files']})"


def absolute(value: str | Path) -> str:
    """The path of a file that exists made absolute, from the working folder; others unchanged."""
    path = Path(value)
    return str(path.resolve()) if path.exists() else str(value)
