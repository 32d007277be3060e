"""Docstrings of the package as reStructuredText, for the reference of ``make docs``.

They have the sections of numpydoc, but where numpydoc puts a type after the colon ours have a
sentence; types are in the signature. Sections become fields, ``name : text`` their entries.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import import_module
from typing import Any

#: Sections, and whether their entries have names.
SECTIONS = {
    "Parameters": True,
    "Attributes": True,
    "Raises": True,
    "Returns": False,
    "Yields": False,
    "Examples": False,
}
ENTRY = re.compile(r"(?P<names>[\w*]+(?:, [\w*]+)*)(?: : (?P<text>.*))?$")
#: What is not prose: literals, roles, interpreted text and links.
MARKED = re.compile(r"(``.+?``|:[\w:]+:`[^`]+`|`[^`]+`_*|\\.)")
#: Lines that begin a block which is no prose, as far as it is indented.
VERBATIM = re.compile(r"\s*(>>>|\.\. (math|code)|[^.].*::$)")


def escaped(line: str) -> str:
    """Stars and bars of formulas are no markup: of prose, not of literals and lists."""
    bullet = re.match(r"\s*(\* )?", line)
    start = bullet.end() if bullet else 0
    parts = MARKED.split(line[start:])
    parts[::2] = [re.sub(r"(?<!\\)([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    return line[:start] + "".join(parts)


def prose(lines: Sequence[str]) -> Iterator[str]:
    """All lines, those of prose escaped."""
    block: int | None = None
    table = False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if re.match(r"\s*=+( +=+)+$", line):
            table = True
        elif not line.strip():
            table = False
        if block is not None and line.strip() and indent <= block and not VERBATIM.match(line):
            block = None
        if block is None and VERBATIM.match(line):
            # The text of a doctest stands as far out as its prompt.
            block = indent - 1 if line.lstrip().startswith(">>>") else indent
        border = table and re.match(r"\s*=", line)
        yield line if block is not None or border else escaped(line)
        if block is not None and not line.strip() and block == indent - 1:
            block = None


def sections(lines: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The text before the first section, under the name "", then each section."""
    found: list[tuple[str, list[str]]] = [("", [])]
    skip = False
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        if skip:
            skip = False
        elif line in SECTIONS and re.fullmatch(r"-{3,}", below):
            found.append((line, []))
            skip = True
        else:
            found[-1][1].append(line)
    return found


def entries(body: Sequence[str]) -> Iterator[str]:
    """Definitions of ``name : text``, whose text may go on below, indented."""
    for line in body:
        entry = ENTRY.match(line)
        if entry:
            names = ", ".join(f"**{name.lstrip('*')}**" for name in entry["names"].split(", "))
            yield ""
            yield f"    {names}"
            if entry["text"]:
                yield from prose([f"        {entry['text']}"])
        else:
            yield from prose([f"    {line}"])


def converted(lines: Sequence[str]) -> list[str]:
    """A docstring of the package in reStructuredText."""
    (_, text), *rest = sections(lines)
    out = list(prose(text))
    for name, body in rest:
        out += ["", f":{name}:"]
        if SECTIONS[name]:
            out += list(entries(body))
        else:
            out += ["", *(f"    {line}" if line else "" for line in prose(body))]
    return out


def process(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Sphinx hands the lines of a docstring over to be changed in place."""
    lines[:] = converted(lines)


def exists(target: str) -> bool:
    """Whether a dotted name is that of a module, or of something in one."""
    parts = target.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            thing: Any = import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            if not hasattr(thing, part):
                return inspect.isclass(thing) and any(sets(base, part) for base in thing.__mro__)
            thing = getattr(thing, part)
        return True
    return False


@cache
def sets(owner: type, name: str) -> bool:
    """Whether instances of a class have an attribute: a field, or one that a method sets."""
    if name in getattr(owner, "__annotations__", {}):
        return True
    ours = owner.__module__.startswith("mpiflow")
    return ours and bool(re.search(rf"\bself\.{name}\b.*=", inspect.getsource(owner)))


def homes() -> dict[str, str]:
    """Public name of everything, by the place where it lives."""
    import mpiflow

    found = {
        f"{module}.{name}": f"mpiflow.{public}"
        for public, (module, name) in mpiflow._PUBLIC.items()
        if public != "record_alloy"
    }
    return found | {module: f"mpiflow.{public}" for public, module in mpiflow._MODULES.items()}


def resolve(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """A reference without a page: to the public name, else shown as code if it exists.

    Types in signatures are names of their modules; they are shown as they are.
    """
    if node.get("refdomain") != "py":
        return None
    target, domain, known = node["reftarget"].lstrip("."), env.get_domain("py"), homes()
    parts = target.split(".")
    for length in range(len(parts), 0, -1):
        if public := known.get(".".join(parts[:length])):
            name = ".".join([public, *parts[length:]])
            args = (env, node["refdoc"], app.builder, "obj", name, node, contnode)
            return domain.resolve_xref(*args) or contnode
    # Names without a module are of the one that the docstring is in, or of its class.
    home = re.search(r"docstring of ([\w.]+)", node.source or "")
    around = home[1].split(".") if home else []
    places = ["", *(".".join(around[:length]) + "." for length in range(len(around), 0, -1))]
    if contnode.tagname != "literal" or any(exists(f"{place}{target}") for place in places):
        return contnode
    return None


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", process)
    app.connect("missing-reference", resolve)
