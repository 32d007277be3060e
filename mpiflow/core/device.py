"""The only module that compiles: one rule, two targets (CPU and CUDA).

A *rule* is a plain function of numbers, the physics of one site. Numba
compiles it for the CPU, and compiles the same source again when a CUDA kernel
calls it. A *kernel* holds the loops, written once per target.

The CUDA simulator (``NUMBA_ENABLE_CUDASIM=1``) runs the CUDA kernels as plain
Python, which is how machines without a GPU test them.
"""

from __future__ import annotations

import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import llvmlite.ir  # type: ignore[import-untyped]
import numba
import numba.extending
import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.typing.typeof import typeof_impl
from numba.np import linalg, numpy_support

from mpiflow.core import kernel_cache, machine_code
from mpiflow.core.errors import InputError


def _load_arrays_of_numba() -> None:
    """Without the linear algebra of SciPy, on which every run would wait a tenth of a second.

    Numba loads it to see whether it is there, and again when a function multiplies matrices.
    """
    look, linalg.ensure_blas = linalg.ensure_blas, lambda: None
    try:
        import_module("numba.np.arraymath")
    finally:
        linalg.ensure_blas = look


_load_arrays_of_numba()
machine_code.use()


@typeof_impl.register(np.ndarray)
def _kind_of(
    array: np.ndarray, context: Any, others: Any = typeof_impl.dispatch(np.ndarray)
) -> Any:
    """Of an array given to a kernel. Numba imports numpy.ma to ask whether it is masked."""
    if type(array) is not np.ndarray:
        return others(array, context)
    layout = numpy_support.map_layout(array)
    dtype = numpy_support.from_dtype(array.dtype)
    return numba.types.Array(dtype, array.ndim, layout, readonly=not array.flags.writeable)


# IEEE arithmetic everywhere: results must not depend on the target.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": False,
    "no_cfunc_wrapper": True,  # for C, which calls none of ours
}


# What kernels call has no entry for Python: to compile that takes as long as a short rule itself.
_CALLED = {**_OPTIONS, "no_cpython_wrapper": True}


def rule(function: Callable[..., Any]) -> Any:
    """Compile the physics of one site. Callable from CPU and from CUDA kernels."""
    return _compiled(function, kernel_cache.attach)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a CPU kernel: the loops over sites."""
    return _compiled(function, kernel_cache.attach)


def inlined(function: Callable[..., Any]) -> Any:
    """A rule too long for the compiler to inline by itself: its caller's loop must vectorise."""
    return kernel_cache.attach(numba.njit(function, inline="always", **_OPTIONS))


def outside(function: Callable[..., Any]) -> Any:
    """A rule or a kernel made of a user's function: never kept on disk, where only the source of
    this package tells old from new."""
    return _compiled(getattr(function, "py_func", function), lambda made, kind="": made)


def _compiled(function: Callable[..., Any], keep: Callable[..., Any]) -> Any:
    """A function of Numba, and another one, made when it is needed, for kernels that call it."""
    made = keep(numba.njit(function, **_OPTIONS))
    if isinstance(made, Dispatcher):  # else NUMBA_DISABLE_JIT is set
        called = lru_cache(maxsize=1)(lambda: keep(numba.njit(function, **_CALLED), "called"))

        def template(given: Sequence[Any], named: Mapping[str, Any]) -> Any:
            # Not one for each plain number that is given: most of these would be the same code.
            places = tuple(map(numba.types.unliteral, given))
            kinds = {name: numba.types.unliteral(kind) for name, kind in named.items()}
            if places in made.overloads and not kinds:  # Python has called it: it is compiled
                return Dispatcher.get_call_template(made, places, kinds)
            return called().get_call_template(places, kinds)

        def overload(signature: Any) -> Any:
            try:
                return Dispatcher.get_overload(made, signature)
            except KeyError:
                return called().get_overload(signature)

        vars(made)["get_call_template"] = template
        vars(made)["get_overload"] = overload
    return made


@rule
def split(number: int, parts: int) -> tuple[Any, Any]:
    """Quotient and remainder of numbers below 2^32: GPUs have no instruction to divide, and 64 bits
    would take a hundred others."""
    divisor = max(np.uint32(parts), np.uint32(1))  # Numba need not ask whether it is 0
    quotient = np.uint32(number) // divisor
    return np.int64(quotient), np.int64(np.uint32(number) - quotient * divisor)


@rule
def unravel(number: int, n1: int, n2: int) -> tuple[Any, Any, Any]:
    """Indices of an element of an array (..., n1, n2), of its number below 2^32."""
    line, k = split(number, n2)
    i, j = split(line, n1)
    return i, j, k


@kernel
def copy_line(target: np.ndarray, source: np.ndarray) -> None:
    """target[:] = source of as many numbers or more, for kernels: where that is written, Numba
    compiles for two seconds what it would say of two lengths."""
    for i in range(target.size):
        target[i] = source[i]


def intrinsic(emit: Callable[..., None]) -> Any:
    """A part of CPU kernels written one instruction after the other, where a loop is too slow.

    ``emit(ir, builder, *arguments)`` gets llvmlite's types, the builder of the place that calls,
    the address of the first element of each array, each whole number as 64 bits, and each tuple as
    a list.
    """

    def typed(context: Any, *given: Any) -> Any:
        if any(isinstance(kind, numba.types.Array) and kind.layout != "C" for kind in given):
            return None  # an address says nothing about strides

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            def argument(kind: Any, value: Any) -> Any:
                if isinstance(kind, numba.types.Array):
                    return context.make_array(kind)(context, builder, value).data
                if isinstance(kind, numba.types.BaseTuple):
                    kinds: Any = kind
                    parts = numba.core.cgutils.unpack_tuple(builder, value)
                    return [argument(k, v) for k, v in zip(kinds, parts, strict=True)]
                return context.cast(builder, value, kind, numba.types.int64)

            arguments = map(argument, signature.args, values)
            emit(llvmlite.ir, builder, *arguments)
            return context.get_dummy_value()

        return numba.types.void(*given), generate

    # Numba matches arguments by name; the first one, its own, replaces the two of emit.
    names = list(inspect.signature(emit).parameters.values())[1:]
    typed.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    return numba.extending.intrinsic(typed)


def _prefetch(write: int) -> Any:
    def emit(ir: Any, builder: Any, array: Any, at: Any) -> None:
        whole, place = ir.IntType(32), builder.gep(array, [at])
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, whole, whole, whole])
        function = builder.module.declare_intrinsic("llvm.prefetch", (place.type,), kind)
        builder.call(function, [place, whole(write), whole(3), whole(1)])

    return intrinsic(emit)


#: ``prefetch_to_read(array, at)`` asks for the element ``at`` of a contiguous array, counted from
#: its first one, which is wanted soon: nobody waits for it. Any ``at`` is allowed.
prefetch_to_read, prefetch_to_write = _prefetch(0), _prefetch(1)


def cpu_has(feature: str) -> bool:
    """Whether kernels may use instructions of this CPU, such as ``avx512f``."""
    chosen = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    if chosen is not None:  # the environment compiles for another CPU
        return f"+{feature}" in chosen.split(",")
    try:
        return bool(llvmlite.binding.get_host_cpu_features().get(feature))
    except RuntimeError:  # no CPU that LLVM can ask
        return False


def cuda() -> ModuleType:
    """``numba.cuda``, imported only when a CUDA device is asked for."""
    try:
        from numba import cuda as module
    except Exception as error:  # numba-cuda without CUDA libraries raises one of its own
        raise InputError(
            "device",
            "cuda",
            "a machine with numba-cuda and the CUDA libraries",
            f"Install mpiflow[cuda], or use --device cpu. Importing said: {error}.",
        ) from error
    if not simulated():
        _round_each()
    return module


@lru_cache(maxsize=1)
def _round_each() -> None:
    """Round products before they are added, as CPUs do: unless told, NVVM makes one instruction of
    both, with other last bits. ``cuda.fma`` stays what it says."""
    from numba.cuda.cudadrv import nvvm

    compile_ir = nvvm.compile_ir
    nvvm.compile_ir = lambda code, **options: compile_ir(code, **{"fma": False, **options})


def threads() -> int:
    """Threads for the work of one rank: NUMBA_NUM_THREADS, OMP_NUM_THREADS, or its cores."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        value = os.environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads(), thread_name_prefix="mpiflow")


def in_threads(work: Sequence[Callable[..., object]], *arguments: Any) -> None:
    """Call independent functions with the same arguments, in threads if there are several.

    Kernels release the interpreter, so that threads run side by side. They are Python's
    own: unlike OpenMP's, they do not stand in the way of a later fork.
    """
    others = [_pool().submit(function, *arguments) for function in work[1:]]
    for function in work[:1]:
        function(*arguments)
    for other in others:
        other.result()


def compiler() -> dict[str, Any]:
    """Numba's version, whether it uses Intel's vector mathematics (SVML), and its cache."""
    return {
        "version": numba.__version__,
        "svml": bool(numba.config.USING_SVML),  # type: ignore[attr-defined]
        "cache": str(kernel_cache.folder()),
    }


#: Of a launch: kernels number them in 32 bits, blocks of 128 included.
MOST_THREADS = 2**32 - 128


def called(module: ModuleType, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for the threads of a CUDA kernel, made in the factory of a kernel."""
    return function if simulated() else module.jit(device=True)(function)


def bare(argument: Any) -> Any:
    """An argument of a kernel in the simulator, as compiled rules take it: without its wrapping."""
    if isinstance(argument, tuple):
        parts = [bare(part) for part in argument]
        return type(argument)(*parts) if hasattr(argument, "_fields") else tuple(parts)
    while type(argument).__name__ in ("FakeWithinKernelCUDAArray", "FakeCUDAArray"):
        argument = vars(argument).get("_item", vars(argument).get("_ary"))
    return argument


def to_bare() -> Callable[[Any], Any]:
    """:func:`bare` in the simulator; on a GPU rules take arguments of kernels as they are."""
    return bare if simulated() else _as_it_is


@rule
def _as_it_is(argument: Any) -> Any:
    return argument


class CudaKernel:
    """A CUDA kernel, made and compiled at its first launch.

    ``factory`` takes the module ``numba.cuda`` and returns the kernel. Making it
    late keeps ``import mpiflow`` free of CUDA on machines without it.
    """

    def __init__(self, factory: Callable[[ModuleType], Callable[..., None]]) -> None:
        self.factory = factory
        self._compiled: Any = None

    def launch(self, threads: int, *arguments: Any, stream: Any = 0) -> None:
        """Run on at least ``threads`` threads; the kernel checks its own bound.

        ``stream``: whose turn it is; by default after all that was begun before.

        Raises
        ------
        InputError : more threads than 32 bits can number
        """
        per_block = 8 if simulated() else 128
        self._launch(-(-threads // per_block), per_block, stream, arguments)

    def launch_blocks(self, blocks: int, *arguments: Any) -> None:
        """Run so many blocks of threads, each of which works on one thing together."""
        self._launch(blocks, 3 if simulated() else 128, 0, arguments)

    def _launch(self, blocks: int, per_block: int, stream: Any, arguments: tuple[Any, ...]) -> None:
        threads = blocks * per_block
        if blocks < 1:
            return
        if threads > MOST_THREADS:
            allowed = f"work for at most {MOST_THREADS} threads at once on a GPU"
            raise InputError("size", threads, allowed, "Use more ranks, each with a GPU.")
        if self._compiled is None:
            function = self._in_simulator() if simulated() else self.factory(cuda())
            self._compiled = cuda().jit(function)
        self._compiled[blocks, per_block, stream](*arguments)

    def _in_simulator(self) -> Callable[..., None]:
        """The kernel made anew in each thread: the simulator's ``cuda.grid`` exists only there."""
        global _numba_cuda
        _numba_cuda = cuda()
        # Its threads ask in turn whether the others are there: unless they give way soon, each of
        # these turns takes Python's 5 ms.
        sys.setswitchinterval(1e-4)
        return lambda *arguments: self.factory(_numba_cuda)(*arguments)


# The simulator finds the module by value among the globals of a running kernel and
# puts its own in its place; a factory's closure would escape it.
_numba_cuda: Any = None


def simulated() -> bool:
    """Whether CUDA kernels run in Numba's simulator."""
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0") not in ("", "0")


def gpus() -> list[str]:
    """Identities of the CUDA devices that this process may use, alike in all processes.

    Nothing is allocated on a device. Empty without one, and in the simulator, which has none to
    run short of. Raises :class:`InputError` where ``numba.cuda`` cannot be imported.
    """
    module = cuda()
    if simulated() or not module.is_available():
        return []
    # Parts of a divided GPU (MIG) have the identity of the whole; a process sees only one.
    part = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    part = part if "MIG" in part else ""
    return [f"{gpu.uuid}{part}" for gpu in module.gpus]


def gpu_capabilities() -> list[str]:
    """Compute capability of each device of :func:`gpus`, such as "9.0"."""
    return [".".join(map(str, gpu.compute_capability)) for gpu in cuda().gpus] if gpus() else []


class Streams:
    """Two queues of a GPU's work: on the inside of a box, and on its edges and what travels.

    What is begun without a stream waits for both, and both for it.
    """

    def __init__(self) -> None:
        self.inside, self.edges = cuda().stream(), cuda().stream()
        self._events = cuda().event(timing=False) if not simulated() else cuda().event()

    def wait(self, waiting: Any, other: Any) -> None:
        """Have one of the two wait for what the other has been given so far."""
        self._events.record(other)
        self._events.wait(waiting)

    def join(self) -> None:
        """Have each wait for what the other has been given so far."""
        self.wait(self.inside, self.edges)
        self.wait(self.edges, self.inside)


class Device:
    """Where a block's field lives: ``Device("cpu")`` or ``Device("cuda")``.

    ``gpu`` picks one of several GPUs, that of the rank as of :mod:`mpiflow.core.gpu`. Left out,
    none is touched yet, so that asking whether there is one costs no memory on it.
    """

    def __init__(self, name: str = "cpu", gpu: int | None = None) -> None:
        if name not in ("cpu", "cuda"):
            raise InputError("device", name, "'cpu' or 'cuda'", "Use --device cpu.")
        self.name = name
        if name == "cuda":
            module = cuda()
            if not module.is_available():
                raise InputError(
                    "device",
                    name,
                    "a CUDA device that Numba can see",
                    "Use --device cpu, or NUMBA_ENABLE_CUDASIM=1 to test without a GPU.",
                )
            if gpu is not None and not simulated():
                module.select_device(gpu % len(module.gpus))

    @property
    def is_cuda(self) -> bool:
        return self.name == "cuda"

    def put(self, array: np.ndarray) -> Any:
        """A copy of a host array on this device (the array itself on the CPU)."""
        return cuda().to_device(np.ascontiguousarray(array)) if self.is_cuda else array

    def get(self, array: Any) -> np.ndarray:
        """A host copy of a contiguous device array (the array itself on the CPU)."""
        return array.copy_to_host() if self.is_cuda else array

    def duplicate(self, array: Any) -> Any:
        """A copy of an array of this device, on this device."""
        if not self.is_cuda:
            return array.copy()
        out = cuda().device_array_like(array)
        out.copy_to_device(array)
        return out

    def empty(self, shape: Sequence[int], dtype: Any) -> Any:
        """A new array on this device."""
        return cuda().device_array(tuple(shape), dtype) if self.is_cuda else np.empty(shape, dtype)

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """A new host array that a GPU reads and writes while both go on."""
        return np.asarray(cuda().pinned_array(tuple(shape), dtype))

    def memory(self, array: Any) -> Any:
        """An array of this device as MPI takes it that knows GPUs; of the simulator the host's."""
        return array._ary if self.is_cuda and simulated() else array

    def copy_box(self, target: Any, source: Any, stream: Any = 0) -> None:
        """``target[...] = source`` for equal 3-dimensional boxes, strided or not."""
        if self.is_cuda:
            rows = max(1, MOST_THREADS // max(1, math.prod(target.shape[1:])))
            for first in range(0, target.shape[0], rows):
                few = slice(first, first + rows)
                whole = rows >= target.shape[0]
                box = (target, source) if whole else (target[few], source[few])
                n0, n1, n2 = box[0].shape
                _copy_box.launch(n0 * -(-n1 // ROWS_COPIED) * n2, *box, stream=stream)
        else:
            target[...] = source


#: Rows of a box that a thread copies: to find its place takes longer than to copy one.
ROWS_COPIED = 8


@CudaKernel
def _copy_box(cuda: Any) -> Callable[..., None]:
    def copy(target: Any, source: Any) -> None:
        n1 = target.shape[1]
        b, strip, x = unravel(cuda.grid(1), (n1 + ROWS_COPIED - 1) // ROWS_COPIED, target.shape[2])
        if b < target.shape[0]:
            # Unsigned: signed ones might count from the end.
            b, x = np.uint64(b), np.uint64(x)
            first = strip * ROWS_COPIED
            for y in range(first, min(first + ROWS_COPIED, n1)):
                target[b, np.uint64(y), x] = source[b, np.uint64(y), x]

    return copy
