"""Compile every CUDA kernel for compute capability 9.0 without a GPU: ``make test-ptx``.

The simulator runs the kernels as Python, so it cannot see what the real compiler refuses.
Prints registers and spills of each; a spill, or a kernel that does not compile, is a failure.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from numba import cuda, types
from numba.core.types import Tuple, UniTuple
from numba.cuda import dispatcher
from rule_law import Voter

from mpiflow.core import device, packed
from mpiflow.solvers.kac import cuda as kac_cuda
from mpiflow.solvers.spins import heatbath, multispin, rule_compiled, rule_kernels, sliced
from mpiflow.solvers.spins.bitplanes import PLANES, Thresholds
from mpiflow.solvers.vacancy import barrier_kernels
from mpiflow.systems.ising import Ising
from mpiflow.systems.potts import Potts

TARGET = (9, 0)
# Rules are compiled for "the current device": the one kind of it that we mean.
dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=TARGET)

i8, i64, u64 = types.int8, types.int64, types.uint64
u8, u16, f32, f64 = types.uint8, types.uint16, types.float32, types.float64
i16, i32 = types.int16, types.int32
MASKS, NO_MASKS = UniTuple(UniTuple(u64, 10), PLANES), Tuple(())
THRESHOLDS = Thresholds.of((0.2 * Ising(2.269, 0.05).flip_rates_by_opposites()).tolist())


def array(of: Any, dims: int, layout: str = "C") -> types.Array:
    return types.Array(of, dims, layout)


SPINS, WORDS = array(i8, 3), array(u64, 3)
LIST, COUNTS = array(u64, 1), array(i64, 1)
PACKED = (*[WORDS] * 3, i64, UniTuple(i64, 3), UniTuple(i64, 2), i64, array(i64, 2), LIST, LIST)
SLICED = (WORDS, WORDS, i64, i64, i64, LIST, LIST)
PLAIN = (SPINS, SPINS, i64, array(i64, 2), LIST, i64, i64, LIST, u64, i64, UniTuple(u64, 10))
RULE = (SPINS, *PLAIN[2:9], i64, i64, i64, i64)
MODEL = (i64, array(f64, 1), array(f64, 2), array(f32, 2), array(u16, 2), array(i64, 2), i64, i64)
WALK = (UniTuple(i64, 4), array(i32, 1), array(i64, 1), array(i32, 1), i64, i64)
SUMS, FIELD = array(i32, 3), (i64, array(i32, 2), i64, i64)
TABLE = (array(i64, 1), array(i64, 2), i64, i64)
NOISE = (u64, u64, LIST, LIST, u64, i64)

#: What the solvers pass to each kernel.
KERNELS: dict[str, tuple[device.CudaKernel, tuple[Any, ...]]] = {
    "plain": (heatbath.update_cuda, (*PLAIN, COUNTS)),
    "rule": (
        rule_kernels.update_cuda,
        (*RULE, LIST, i64, i64, array(i64, 2)),
    ),
    "rule, weights compiled in": (
        rule_compiled.kernels(Potts(1.0, states=127)).cuda,
        (*RULE, UniTuple(f64, 6), f64, u64, array(i64, 2)),
    ),
    "rule, rates compiled in": (
        rule_compiled.kernels(Voter(states=20)).cuda,
        (*RULE, UniTuple(f64, 1), f64, u64, array(i64, 2)),
    ),
    "packed": (multispin.update_packed_cuda, (*PACKED, MASKS, LIST, u64, COUNTS)),
    "packed, compiled in": (
        multispin.packed_cuda_with(THRESHOLDS.masks),
        (*PACKED, NO_MASKS, LIST, u64, COUNTS),
    ),
    "sliced": (sliced.update_sliced_cuda, (*SLICED, MASKS, LIST, u64, COUNTS)),
    "sliced, compiled in": (
        sliced.sliced_cuda_with(THRESHOLDS.masks),
        (*SLICED, NO_MASKS, LIST, u64, COUNTS),
    ),
    "wrap sliced": (sliced.wrap_sliced_cuda, (WORDS, i64)),
    "close packed": (packed.close_cuda, (WORDS, i64, i64, i64)),
    "edges of packed": (packed.copy_edges_cuda, (WORDS, i64, i64, array(u64, 2), i64)),
    "copy box": (device._copy_box, (array(i8, 3, "A"), array(i8, 3, "A"))),
    "barriers": (
        barrier_kernels._evaluate_cuda,
        (*MODEL, array(f32, 1), array(u8, 2), array(f32, 2)),
    ),
    "Kac sums along y": (kac_cuda._walk, (array(i8, 1), *WALK, array(i16, 1))),
    "Kac sums along x": (kac_cuda._walk, (array(i16, 1), *WALK, array(i32, 1))),
    "nearest neighbours": (kac_cuda._nearest, (SPINS, SUMS)),
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
    "copy box of sums": (device._copy_box, (array(i16, 3, "A"), array(i16, 3, "A"))),
    "copy box of words": (device._copy_box, (array(u64, 3, "A"), WORDS)),
}


def main() -> int:
    wheel = distribution("nvidia-cuda-nvcc-cu12")
    assembler = next(p for p in wheel.files or [] if p.name == "ptxas").locate()
    failures = 0
    for name, (kernel, signature) in KERNELS.items():
        text, _ = cuda.compile_ptx(kernel.factory(cuda), signature, cc=TARGET)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "kernel.ptx"
            source.write_text(text)
            done = subprocess.run(
                [str(assembler), "-arch=sm_90", "-v", str(source), "-o", f"{folder}/kernel"],
                capture_output=True,
                text=True,
            )
        registers = re.search(r"Used (\d+) registers", done.stderr)
        spills = re.search(r"(\d+) bytes spill stores", done.stderr)
        fine = done.returncode == 0 and registers and spills and spills[1] == "0"
        failures += not fine
        print(f"{name:22} {registers[0] if registers else done.stderr} {'' if fine else 'FAILED'}")
    return failures


if __name__ == "__main__":
    sys.exit(main())
