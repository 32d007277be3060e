"""TOML files of options, as editors and shells of all systems write them."""

from __future__ import annotations

import codecs
import re
import tomllib
from pathlib import Path
from typing import Any

from mpiflow.core.errors import InputError

#: The longest first: UTF-32 begins like UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE = re.compile(r" \(at line (\d+), column \d+\)$")
#: A key whose value is a time that TOML does not know, as 24:00:00, 1:30 or 1-00:00:00.
_A_TIME = re.compile(r"([\w-]+)\s*=\s*([\d-]*\d:[\d:.]*)")


def read_toml(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML file in UTF-8, or in any Unicode encoding that a byte-order mark names.

    Raises
    ------
    InputError : with the line that cannot be read
    """
    try:
        text = _decoded(Path(path).read_bytes())
    except OSError as error:
        raise _refusal(path, f"Reading said: {error}.") from None
    except UnicodeDecodeError as error:
        where = f"Byte {error.start} is not {error.encoding}"
        raise _refusal(path, f"{where}: save the file as UTF-8.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _refusal(path, _explained(str(error), text)) from None


def _decoded(data: bytes) -> str:
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8")
    )
    if not mark and b"\0" in data:
        raise UnicodeDecodeError(encoding, data, data.index(b"\0"), data.index(b"\0") + 1, "zero")
    text = data[len(mark) :].decode(encoding)
    # The last line ends, too: else the reader does not say its number.
    return text.replace("\r\n", "\n").replace("\r", "\n") + "\n"


def _explained(problem: str, text: str) -> str:
    """What the reader said, the line that it means, and what is meant where that is known."""
    found = _LINE.search(problem)
    if not found:
        return f"Reading said: {problem}."
    # The place of a key that comes twice is the end of its line.
    line = text.split("\n")[int(found[1]) - 1].strip()
    if time := _A_TIME.match(line):
        return f'Line {found[1]}: write a time in quotes, {time[1]} = "{time[2]}".'
    if "overwrite a value" in problem:
        problem = f"the key {line.partition('=')[0].strip()} is there twice{found[0]}"
    return f"Reading said: {problem}: {line}"


def _refusal(path: str | Path, remedy: str) -> InputError:
    return InputError("config", str(path), "a readable TOML file", remedy)
