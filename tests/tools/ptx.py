"""Compile every CUDA kernel without a GPU, for compute capabilities 8.0, 9.0 and 10.0.

``make test-ptx``. The simulator runs the kernels as Python, so it cannot see what the real compiler
refuses. Of each kernel and capability a line says registers, bytes of the stack and of shared
memory, the share of a multiprocessor's warps that run at once, and instructions of the machine by
type, as they stand in the code: a loop counts once. A spill, a kernel that does not compile, or
arithmetic that rounds otherwise than that of CPUs is a failure.

    .venv-cuda/bin/python tests/tools/ptx.py [NAME...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import typing
from collections import Counter
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gpu_budget
import multispin_baseline
from gpu_budget import Budget
from numba import types
from numba.core.types import NamedTuple, Tuple, UniTuple
from numba.cuda import dispatcher
from rule_law import Voter

from mpiflow.core import device, device_noise, packed
from mpiflow.solvers.field import cuda as field_cuda
from mpiflow.solvers.kac import cuda as kac_cuda
from mpiflow.solvers.spins import (
    heatbath,
    lane_block,
    multispin_cuda,
    rule_compiled,
    rule_kernels,
    running_cuda,
    site_field,
    sliced,
    tiled_cuda,
)
from mpiflow.solvers.spins.bitplanes import PLANES, Thresholds
from mpiflow.solvers.vacancy import cuda_kernels as vacancy_cuda
from mpiflow.solvers.vacancy import events, lists, rates
from mpiflow.systems.barriers import Barriers
from mpiflow.systems.ising import Ising
from mpiflow.systems.potts import Potts

cuda = device.cuda()
CAPABILITIES = ((8, 0), (9, 0), (10, 0))
#: H100 and H200.
BUDGETED = (9, 0)
#: Rules are compiled for "the current device": the one kind of it that we mean.
TARGET = SimpleNamespace(compute_capability=CAPABILITIES[0])
dispatcher.get_current_device = lambda: TARGET

i8, i64, u64 = types.int8, types.int64, types.uint64
u8, u16, f32, f64 = types.uint8, types.uint16, types.float32, types.float64
i16, i32 = types.int16, types.int32
NO_MASKS, FIVE, TEN = Tuple(()), *(UniTuple(UniTuple(types.uint32, n), PLANES) for n in (5, 10))
THRESHOLDS = Thresholds.of((0.2 * Ising(2.269, 0.05).flip_rates_by_opposites()).tolist())

TO_SET = Thresholds.to_set(Ising(2.269, 0.05).up_probabilities().tolist())


def array(of: Any, dims: int, layout: str = "C") -> types.Array:
    return types.Array(of, dims, layout)


SPINS, WORDS = array(i8, 3), array(u64, 3)
LIST, COUNTS = array(u64, 1), array(i64, 1)
PACKED = (*[LIST] * 3, i64, i64, i64, UniTuple(i64, 3), UniTuple(i64, 2), i64, array(i64, 2), LIST,
          LIST)  # fmt: skip
SLICED = (LIST, LIST, *[i64] * 5, LIST, LIST)
PLAIN = (SPINS, SPINS, i64, array(i64, 2), LIST, i64, i64, LIST, u64, i64, UniTuple(u64, 10))
RULE, SPAN = (SPINS, *PLAIN[2:9], i64, i64, i64, i64), UniTuple(i64, 6)
MODEL = NamedTuple(
    (
        i64, array(f64, 1), array(f64, 2), array(f32, 2), array(u16, 2), array(i64, 2), i64, i64,
        array(f32, 1),
    ),
    Barriers,
)  # fmt: skip
TRIPLE, ROWS, NUMBERS = UniTuple(i64, 3), array(i64, 2), array(f64, 1)
LISTS = (ROWS, array(i64, 1), array(f64, 2), array(i64, 1), NUMBERS, array(i64, 1))
VACANCIES = (
    array(i8, 4), array(i8, 2), ROWS, LIST, NamedTuple((ROWS, TRIPLE, TRIPLE), lists.Tiles),
    NamedTuple((MODEL, f64, LIST, TRIPLE, i64), rates.Law), array(u64, 4), array(f64, 4),
    NamedTuple(LISTS, lists.Lists),
    NamedTuple((ROWS, NUMBERS, COUNTS, NUMBERS, COUNTS), vacancy_cuda.Progress),
    NamedTuple((ROWS, ROWS, NamedTuple((NUMBERS, ROWS), events.Events)), vacancy_cuda.Notes),
    UniTuple(u64, 3), f64, f64, i64, i64, types.boolean, types.boolean, i64,
    NamedTuple((*[i64] * 6, TRIPLE, i64, i64, i64), vacancy_cuda.Work),
)  # fmt: skip
WALK = (UniTuple(i64, 4), array(i32, 1), array(i64, 1), array(i32, 1), i64, i64)
SUMS, FIELD = array(i32, 3), (i64, array(i32, 2), i64, i64)
TABLE = (array(i64, 1), array(i64, 2), i64, i64)
NOISE = (u64, u64, LIST, LIST, u64, i64)
BLOCKS, CUBICS = array(f64, 3), array(f64, 2)
TURNS = (f64, i64, f64, u64, u64, LIST, i64, u64)

#: What the solvers pass to each kernel.
KERNELS: dict[str, tuple[device.CudaKernel, tuple[Any, ...]]] = {
    "plain": (heatbath.update_cuda, (*PLAIN, COUNTS, SPAN)),
    "rule": (
        rule_kernels.update_cuda,
        (*RULE, LIST, i64, i64, array(i64, 2), SPAN),
    ),
    "rule, weights compiled in": (
        rule_compiled.kernels(Potts(1.0, states=127)).cuda,
        (*RULE, UniTuple(f64, 6), f64, u64, array(i64, 2), SPAN),
    ),
    "rule, rates compiled in": (
        rule_compiled.kernels(Voter(states=20)).cuda,
        (*RULE, UniTuple(f64, 1), f64, u64, array(i64, 2), SPAN),
    ),
    "field of each site": (
        site_field.update_cuda,
        (*RULE, array(f64, 2), f64, array(f64, 2), array(f64, 1), array(i64, 2), SPAN),
    ),
    "packed": (multispin_cuda.update_packed_cuda, (*PACKED, FIVE, LIST, u64, COUNTS)),
    "packed, flips in a field": (
        multispin_cuda.update_packed_cuda,
        (*PACKED, TEN, LIST, u64, COUNTS),
    ),
    "packed, compiled in": (
        multispin_cuda.packed_cuda_with(TO_SET.masks),
        (*PACKED, NO_MASKS, LIST, u64, COUNTS),
    ),
    "packed, flips compiled in": (
        multispin_cuda.packed_cuda_with(THRESHOLDS.masks),
        (*PACKED, NO_MASKS, LIST, u64, COUNTS),
    ),
    "running": (
        running_cuda.update_running_cuda,
        (WORDS, WORDS, WORDS, i64, i64, i64, LIST, LIST, FIVE, LIST, u64, COUNTS),
    ),
    "sliced": (sliced.update_sliced_cuda, (*SLICED, FIVE, LIST, u64, COUNTS)),
    "sliced, compiled in": (
        sliced.sliced_cuda_with(THRESHOLDS.masks),
        (*SLICED, NO_MASKS, LIST, u64, COUNTS),
    ),
    "NVIDIA's way": (
        multispin_baseline.update_nibbles,
        (LIST, LIST, i64, i64, i64, i64, i64, i64),
    ),
    "wrap sliced": (sliced.wrap_sliced_cuda, (WORDS, i64)),
    "lanes that stop": (lane_block._take, (WORDS, WORDS, LIST)),
    "windows in lanes": (lane_block._window, (WORDS, i64, i64, i64, WORDS)),
    "windows put back": (lane_block._put_back, (WORDS, i64, i64, WORDS)),
    "patches in lanes": (lane_block._cut, (WORDS, COUNTS, array(i64, 2), COUNTS, WORDS)),
    "sums of lanes": (
        lane_block._sums,
        (WORDS, WORDS, i64, i64, i64, i64, COUNTS, array(i64, 2)),
    ),
    "classes in lanes": (
        lane_block._class_counts,
        (WORDS, i64, i64, i64, COUNTS, array(i32, 3)),
    ),
    "close packed": (packed.close_cuda, (WORDS, i64, i64, i64)),
    "edges of packed": (packed.copy_edges_cuda, (WORDS, i64, i64, array(u64, 2), i64)),
    "copy box": (device._copy_box, (array(i8, 3, "A"), array(i8, 3, "A"))),
    "n-fold way in tiles": (
        tiled_cuda._evolve,
        (
            SPINS,
            i64,
            i64,
            UniTuple(i64, 2),
            UniTuple(i64, 2),
            ROWS,
            UniTuple(i64, 2),
            LIST,
            u64,
            u64,
            u64,
            f64,
            NUMBERS,
            NUMBERS,
            array(i64, 1),
        ),
    ),
    "vacancies in tiles": (vacancy_cuda.evolve_tiles, VACANCIES),
    "sites of other ranks": (
        vacancy_cuda.set_sites_of_others,
        (SPINS, array(i64, 1), UniTuple(i64, 3), array(i64, 2)),
    ),
    "Kac sums along y": (kac_cuda._walk, (array(i8, 1), *WALK, array(i16, 1), i64, i64)),
    "Kac sums along x": (kac_cuda._walk, (array(i16, 1), *WALK, array(i32, 1), i64, i64)),
    "nearest neighbours": (kac_cuda._nearest, (SPINS, SUMS, i64, i64)),
    "Kac fastest spin": (kac_cuda._lowest, (SPINS, SUMS, *FIELD, array(i64, 2))),
    "Kac flips": (
        kac_cuda._flip,
        (
            SPINS,
            SUMS,
            SPINS,
            SUMS,
            types.boolean,
            *FIELD,
            *TABLE,
            *NOISE,
            SPINS,
            array(i64, 2),
            types.boolean,
        ),
    ),
    "Kac second half": (kac_cuda._adopt, (SPINS, SPINS, array(i64, 2))),
    "field: means": (field_cuda._means, (BLOCKS, CUBICS, BLOCKS)),
    "field: noise, rates": (field_cuda._depart, (BLOCKS, CUBICS, *TURNS, *[BLOCKS] * 4)),
    "field: middle": (field_cuda._half_way, (*[BLOCKS] * 2, CUBICS, f64, *[BLOCKS] * 3)),
    "field: end, noise": (field_cuda._arrive, (*[BLOCKS] * 4, f64, *TURNS, BLOCKS)),
    "field: means of counts": (field_cuda._counted_means, (array(i32, 3), f64, BLOCKS)),
    "field: flips": (
        field_cuda._flip,
        (
            array(i32, 3),
            BLOCKS,
            BLOCKS,
            CUBICS,
            array(f64, 1),
            f64,
            f64,
            f64,
            f64,
            i64,
            BLOCKS,
            BLOCKS,
            u64,
            u64,
            LIST,
            u64,
            i64,
        ),
    ),
    "field: check": (field_cuda._count_wrong, (BLOCKS, f64, f64, COUNTS)),
    "field: check of counts": (
        field_cuda._count_wrong,
        (array(i32, 3), i64, i64, COUNTS),
    ),
    "normals of rollouts": (device_noise._draw, (u64, u64, LIST, u64, array(f64, 2))),
    "copy box of sums": (device._copy_box, (array(i16, 3, "A"), array(i16, 3, "A"))),
    "copy box of words": (device._copy_box, (array(u64, 3, "A"), WORDS)),
}

#: Rounds of a warp's queue a row: in so many is a site of its 32 words undecided.
QUEUED = (0.4, ())
#: Of packed kernels: draws for rows of the box above, rows, the queue: a warp of four has it.
ROWS = [(0, ()), (0, ()), (8, (QUEUED, (0, ()))), (0.25, ())]
#: Of sliced ones: a row of 32 sites of a colour, its 64 counters and the queue of the block.
SITES = [(32, (QUEUED, (0, ()), (2, ()))), (0.5, ())]
#: What :mod:`gpu_budget` needs to know.
BUDGETS = {
    "packed": Budget(512, ROWS, 0.41),
    "packed, compiled in": Budget(512, ROWS, 0.41),
    "packed, flips in a field": Budget(512, ROWS, 0.41),
    "packed, flips compiled in": Budget(512, ROWS, 0.41),
    "sliced": Budget(2048, SITES, 0.41),
    "sliced, compiled in": Budget(2048, SITES, 0.41),
    "NVIDIA's way": Budget(128, [(8, ())], 1.6),
    "plain": Budget(1, [], 4.0),
    # Sites, numbers of a rollout's noise, and blocks of a field of means.
    "copy box": Budget(8, [(0, ()), (2, ())], 2.0),
    "nearest neighbours": Budget(1, [], 5.0),
    "Kac flips": Budget(4, [(4, ())], 6.0),
    "normals of rollouts": Budget(2, [], 8.0),
    "field: noise, rates": Budget(1, [(0, ())] * 2, 48.0),
    "field: middle": Budget(1, [], 48.0),
    "field: end, noise": Budget(1, [(0, ())] * 2, 48.0),
}

#: Threads of a block, as of ``CudaKernel.launch``; registers and warps of a multiprocessor.
BLOCK, REGISTERS, WARPS, WARP = 128, 65536, 64, 32
#: Types of instructions, by how their names begin; what fits none is "other".
TYPES = {
    "logic": ("LOP", "PLOP", "SHF", "PRMT", "POPC", "FLO", "BREV", "SGXT", "ULOP", "USHF", "UPRMT"),
    "multiply": ("IMAD", "UIMAD", "IMUL"),
    "integer": ("IADD", "UIADD", "ISETP", "UISETP", "LEA", "ULEA", "SEL", "USEL", "IMNMX",
                "VIMNMX", "VIADD", "IABS", "I2I", "ISCADD"),
    "float32": ("FADD", "FMUL", "FFMA", "FSETP", "FSEL", "FMNMX", "MUFU", "FCHK"),
    "float64": ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX"),
    "convert": ("I2F", "F2I", "F2F", "I2FP", "F2FP", "UI2F", "UF2I"),
    "global": ("LDG", "STG", "ATOMG", "RED", "ATOM", "LD.", "ST.", "LD ", "ST "),
    "shared": ("LDS", "STS", "ATOMS"),
    "local": ("LDL", "STL"),
    "control": ("BRA", "BRX", "EXIT", "CALL", "RET", "BSSY", "BSYNC", "BAR", "WARPSYNC", "BREAK"),
}  # fmt: skip
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)


class Assembled(typing.NamedTuple):
    """What the assembler says of a kernel, and how many instructions of each type it has."""

    registers: int
    stack: int
    spills: int
    shared: int
    instructions: dict[str, int]
    code: str = ""

    @property
    def occupancy(self) -> float:
        """The share of its warps that a multiprocessor runs at once."""
        # Registers are dealt to warps in parcels of 256.
        warp = -(-self.registers * WARP // 256) * 256
        blocks = min(WARPS * WARP // BLOCK, REGISTERS // (warp * BLOCK // WARP))
        if self.shared:
            blocks = min(blocks, 100_000 // self.shared)
        return blocks * BLOCK / (WARPS * WARP)


def tool(name: str, package: str) -> str:
    """A program of one of NVIDIA's wheels."""
    return str(next(p for p in distribution(package).files or [] if p.name == name).locate())


def assembled(name: str, capability: tuple[int, int]) -> Assembled:
    """A kernel for a compute capability. Raises RuntimeError if it cannot be made."""
    kernel, signature = KERNELS[name]
    TARGET.compute_capability = capability
    text, _ = cuda.compile_ptx(kernel.factory(cuda), signature, cc=capability)
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder) / "kernel.ptx", Path(folder) / "kernel.cubin"
        source.write_text(text)
        arch = "sm_{}{}".format(*capability)
        said = _run(
            tool("ptxas", "nvidia-cuda-nvcc-cu12"), f"-arch={arch}", "-v", source, "-o", binary
        )
        code = _run(tool("nvdisasm", "nvidia-cuda-nvdisasm"), "-c", binary)
    opcodes = [opcode for opcode in _OPCODE.findall(code) if opcode != "NOP"]
    counts = Counter(map(type_of, opcodes))
    return Assembled(
        *(_number(pattern, said) for pattern in (
            r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes spill stores",
            r"(\d+) bytes smem",
        )),
        {kind: counts[kind] for kind in (*TYPES, "other") if counts[kind]}, code,
    )  # fmt: skip


def fuses() -> bool:
    """Whether a product and the sum after it become one instruction, which rounds once: CPUs,
    whose bits are promised, round both."""

    def both(a: Any, b: Any, c: Any) -> None:
        c[0] = a[0] * b[0] + c[0]

    text, _ = cuda.compile_ptx(both, (array(f64, 1),) * 3, cc=TARGET.compute_capability)
    return "fma" in text


def type_of(opcode: str) -> str:
    """Of an instruction of the machine, such as LOP3.LUT."""
    word = f"{opcode} "
    return next((kind for kind, starts in TYPES.items() if word.startswith(starts)), "other")


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0


def _run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout + done.stderr


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of kernels; all unless given")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all of it there, too")
    options = parser.parse_args()
    if unknown := set(options.names) - set(KERNELS):
        parser.error(f"{', '.join(unknown)}: known are {', '.join(KERNELS)}")
    failures, rows, budget = int(fuses()), [], []
    if failures:
        print("FAILED: products and sums are fused")
    print(f"{'kernel':27}{'cc':>5}{'regs':>6}{'stack':>6}{'spill':>6}{'smem':>6}{'warps':>6}  code")
    for name in options.names or KERNELS:
        for capability in CAPABILITIES:
            cc = "{}.{}".format(*capability)
            try:
                made = assembled(name, capability)
            except Exception as error:  # of the compiler or the assembler
                failures += 1
                print(f"{name:27}{cc:>5} FAILED: {error}")
                continue
            failures += made.spills > 0
            verdict = " FAILED: spills" if made.spills else ""
            kinds = ", ".join(f"{kind} {count}" for kind, count in made.instructions.items())
            print(
                f"{name:27}{cc:>5}{made.registers:>6}{made.stack:>6}{made.spills:>6}"
                f"{made.shared:>6}{made.occupancy:>6.0%}  {kinds}{verdict}"
            )
            facts = made._asdict() | {"occupancy": made.occupancy}
            code = facts.pop("code")
            rows.append({"kernel": name, "capability": cc, **facts})
            if name in BUDGETS and capability == BUDGETED:
                try:
                    budget.append(gpu_budget.row(name, code, BUDGETS[name]))
                except ValueError as error:  # BUDGETS is of other code
                    failures += 1
                    print(f"{name:27}{cc:>5} FAILED: no budget: {error}")
    if budget:
        print(f"\n{gpu_budget.table(budget)}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        both = {"kernels": rows, "budget": budget}
        options.json.write_text(json.dumps(both, indent=1) + "\n")
    return failures


if __name__ == "__main__":
    sys.exit(min(main(), 1))
