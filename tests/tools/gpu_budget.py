"""What a GPU could do at most: instructions that a thread executes, by the pipe that takes them.

``make test-ptx`` prints it. The assembler's code is read without a GPU: a branch backwards closes a
loop, and how often each loop runs is said in ``BUDGETS`` of ptx.py, the same for all
threads of a warp; all else counts once. What is called is not counted: divisions of numbers that
need more than 32 bits. Of an H200 is assumed (CUDA C++ Programming Guide, table
"Throughput of Native Arithmetic Instructions", compute capability 9.0; its data sheet): 132
multiprocessors at 1.755 GHz, of which each takes in a cycle four instructions of warps of 32, and
of whole numbers 64 lanes of logic, additions and shifts, as many of multiplications, half as
many of those with 64 bits of result, 64 of floats of 64 bits, 16 of counts of bits, conversions
and reciprocals, 32 addresses of memory of up to 4 bytes; 4.8 TB/s from its memory. Code that is
jumped over, such as the sine of a large number, counts as if it ran.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

MULTIPROCESSORS, GIGAHERTZ, BYTES_PER_NS = 132, 1.755, 4800.0
#: Lanes of each pipe in a cycle.
LANES = {"alu": 64, "multiply": 64, "float64": 64, "count": 16, "memory": 32, "issue": 128}
_PIPES = {
    "count": ("POPC", "FLO", "BREV", "I2F", "F2I", "MUFU", "F2F", "I2FP"),
    "multiply": ("IMAD", "IMUL", "FADD", "FMUL", "FFMA"),
    "float64": ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"),
    "memory": ("LD", "ST", "ATOM", "RED"),
    "alu": ("LOP", "PLOP", "SHF", "PRMT", "SGXT", "IADD", "ISETP", "LEA", "SEL", "IMNMX", "VIMNMX",
            "VIADD", "IABS", "ISCADD", "MOV", "FSETP", "FSEL", "FMNMX", "P2R", "R2P"),
}  # fmt: skip
_LINE = re.compile(
    r"^\s*/\*[0-9a-f]+\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<opcode>[A-Z][\w.]*)(?P<rest>[^;]*);|^\s*(?P<label>\.\w+):",
    re.MULTILINE,
)
#: How often a loop runs each time it is come to, and the loops in it, in the order of the code.
Trips = tuple[float, Sequence["Trips"]]


class Budget(NamedTuple):
    """Of one kernel: updates of a thread, loops in the order of the code, and bytes of memory that
    an update reads and writes."""

    updates: float
    loops: Sequence[Trips]
    traffic: float


@dataclass
class _Loop:
    first: int
    last: int
    inside: list[_Loop] = field(default_factory=list)


def executed(code: str, loops: Sequence[Trips]) -> Counter[str]:
    """How many instructions of each kind a thread executes.

    Raises
    ------
    ValueError : the code has other loops than were said
    """
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    end = 0
    for found in _LINE.finditer(code):
        if found["label"]:
            labels[found["label"]] = len(opcodes)
            continue
        if found["opcode"].startswith(("BRA", "BRX")) and (
            to := re.search(r"\.\w+", found["rest"])
        ):
            jumps.append((len(opcodes), to[0]))
        opcodes.append(found["opcode"])
        if found["opcode"] == "EXIT" and not found["guard"]:
            end = len(opcodes)  # what follows is padding
    tree = _nested(jumps, labels)
    weights = [1.0 if i < end else 0.0 for i in range(len(opcodes))]
    _weigh(weights, tree, loops)
    counts: Counter[str] = Counter()
    for opcode, weight in zip(opcodes, weights, strict=True):
        if opcode != "NOP":
            counts[opcode] += weight  # type: ignore[assignment]
    return counts


def _nested(jumps: Sequence[tuple[int, str]], labels: Mapping[str, int]) -> list[_Loop]:
    ends: dict[int, int] = {}
    for at, label in jumps:
        if labels[label] < at:  # one that jumps to itself is the end of a kernel
            ends[labels[label]] = max(at, ends.get(labels[label], 0))
    top: list[_Loop] = []
    for first, last in sorted(ends.items(), key=lambda loop: (loop[0], -loop[1])):
        into = top
        while into and into[-1].first <= first and last <= into[-1].last:
            into = into[-1].inside
        into.append(_Loop(first, last))
    return top


def _weigh(weights: list[float], tree: Sequence[_Loop], trips: Sequence[Trips]) -> None:
    if len(tree) != len(trips):
        raise ValueError(f"{len(tree)} loops where {len(trips)} were said")
    for loop, (times, inside) in zip(tree, trips, strict=True):
        for i in range(loop.first, loop.last + 1):
            weights[i] *= times
        _weigh(weights, loop.inside, inside)


def lanes(counts: Mapping[str, float]) -> dict[str, float]:
    """Of each pipe, how many lanes an executed thread takes."""
    out = dict.fromkeys(LANES, 0.0)
    for opcode, count in counts.items():
        out["issue"] += count
        for pipe, starts in _PIPES.items():
            if opcode.startswith(starts):
                twice = ".WIDE" in opcode or (pipe == "memory" and ".64" in opcode)
                out[pipe] += count * (1 + twice)
                break
    return out


def row(name: str, code: str, budget: Budget) -> dict[str, Any]:
    """The ceilings of a kernel, updates/ns."""
    taken = lanes(executed(code, budget.loops))
    per_ns = MULTIPROCESSORS * GIGAHERTZ * budget.updates
    ceilings = {pipe: per_ns * LANES[pipe] / n for pipe, n in taken.items() if n}
    ceilings["traffic"] = BYTES_PER_NS / budget.traffic
    bound = min(ceilings, key=ceilings.__getitem__)
    return {
        "kernel": name,
        "instructions": {pipe: n / budget.updates for pipe, n in taken.items()},
        "ceilings": ceilings, "bound": bound, "ceiling": ceilings[bound],
    }  # fmt: skip


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Instructions for 64 updates by pipe, and the ceiling, as Markdown."""
    pipes = list(LANES)
    lines = [
        f"| kernel | {' | '.join(pipes)} | bound by | updates/ns at most |",
        f"|{'---|' * (len(pipes) + 3)}",
    ]
    for one in rows:
        numbers = (f"{64 * one['instructions'][pipe]:.0f}" for pipe in pipes)
        lines.append(
            f"| {one['kernel']} | {' | '.join(numbers)} | {one['bound']} | {one['ceiling']:.0f} |"
        )
    return "\n".join(lines)
