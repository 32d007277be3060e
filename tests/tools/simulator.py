"""Threads of Numba's CUDA simulator that wait for one another without asking all the time.

By itself the simulator makes a thread of the system for each one of each block, and asks them in
turn whether all have come to ``syncthreads``: most of the time of a kernel with many of these. It
also runs one block after the other, so that blocks that wait for others, or should, are never seen
to do so. :func:`wait_in_turn` mends the former for a whole process, :func:`blocks_at_once` the
latter for one test; :func:`hold_back_insides` does the like for streams.

Two things that a GPU does at once the simulator does in steps, between which other threads may
come: a thread that asks for a shared array looks whether there is one and makes it if not, so that
two threads of a block may have one each; and operations of different names on one number do not
exclude each other, so that an addition of 0 may undo a maximum. Both are rare, and are done under a
lock here.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mpiflow.core.device import CudaKernel, Device, Streams, simulated

#: Seconds that blocks that run at once may take together: those that wait for ever take longer.
PATIENCE = 60.0


class Meeting:
    """Where the threads of a block wait for those that have not ended."""

    def __init__(self, threads: int) -> None:
        self._all_here, self._expected, self._here, self._round = (
            threading.Condition(), threads, 0, 0,
        )  # fmt: skip
        self.error: BaseException | None = None

    def wait(self) -> None:
        with self._all_here:
            now = self._round
            self._here += 1
            self._go_on()
            while now == self._round and self.error is None:
                self._all_here.wait()
        if self.error is not None:
            raise RuntimeError("another thread of the block has failed")

    def leave(self, error: BaseException | None = None) -> None:
        with self._all_here:
            self._expected -= 1
            self.error = self.error or error
            self._go_on()

    def _go_on(self) -> None:
        if self._here == self._expected or self.error is not None:
            self._here, self._round = 0, self._round + 1
            self._all_here.notify_all()


#: Of whatever threads of the simulator must not do at once; operations do not call one another.
_alone = threading.Lock()


def _one_at_a_time(kind: type, *names: str) -> None:
    """Let methods of a class of the simulator wait for one another; twice does no harm."""

    def waiting(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def called(*given: Any) -> Any:
            with _alone:
                return method(*given)

        return called

    for name in names:
        method = getattr(kind, name)
        if not hasattr(method, "__wrapped__"):
            setattr(kind, name, waiting(method))


def _shared_array(shared: Any, shape: int | tuple[int, ...], kind: Any) -> np.ndarray:
    """The array of a block that belongs to the line of the call, as in the simulator."""
    caller = sys._getframe(1)
    place = caller.f_code.co_filename, caller.f_lineno
    with _alone:
        if place not in shared._allocations:
            shared._allocations[place] = np.empty(shape, kind)
        found: np.ndarray = shared._allocations[place]
    return found


def wait_in_turn() -> None:
    """Let all kernels of this process be run so. Does nothing where there is no simulator."""
    if simulated():
        from numba.cuda.simulator import kernel, kernelapi

        _one_at_a_time(kernelapi.FakeCUDAAtomic, "add", "max", "min", "xor")
        kernelapi.FakeCUDAShared.array = _shared_array
        kernel.BlockManager.run = lambda manager, place, *given: _finish(
            [_begin(manager, place, given)]
        )


def blocks_at_once(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Run all blocks of a launch at once; threads that touch what these share pause now and then.

    On a GPU it is so anyway.
    """
    if not simulated():
        return
    from numba.cuda.simulator import kernel, kernelapi

    begun: list[Any] = []
    lock, pauses = threading.Lock(), np.random.default_rng(seed)

    def run(manager: Any, place: tuple[int, ...], *given: Any) -> None:
        manager.shared = kernelapi.FakeCUDAShared(0)
        begun.append(_begin(manager, place, given))
        if place == tuple(n - 1 for n in manager._grid_dim):
            blocks = begun.copy()
            begun.clear()
            _finish(blocks)

    def pausing(method: Any) -> Any:
        def called(*given: Any) -> Any:
            with lock:
                pause = 0.002 * (pauses.random() < 0.25)
            time.sleep(pause)
            return method(*given)

        return called

    def shared(module: Any) -> Any:
        return threading.current_thread()._manager.shared  # type: ignore[attr-defined]

    monkeypatch.setattr(kernel.BlockManager, "run", run)
    monkeypatch.setattr(kernelapi.FakeCUDAModule, "shared", property(shared))
    for name in ("add", "max"):
        method = getattr(kernelapi.FakeCUDAAtomic, name)
        monkeypatch.setattr(kernelapi.FakeCUDAAtomic, name, pausing(method))


def hold_back_insides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is launched on the inside of boxes begin as late as it may on a GPU, for one test.

    The simulator does everything at once, so that work which does not wait as it should would not
    be seen.
    """
    insides: list[Any] = []
    waiting: list[Callable[[], None]] = []
    begin, launch, wait, get = Streams.__init__, CudaKernel.launch, Streams.wait, Device.get

    def go_on() -> None:
        now = waiting.copy()
        waiting.clear()
        for work in now:
            work()

    def begun(streams: Streams) -> None:
        begin(streams)
        insides.append(streams.inside)

    def launched(kernel: CudaKernel, threads: int, *given: Any, stream: Any = 0) -> None:
        if any(stream is inside for inside in insides):
            waiting.append(lambda: launch(kernel, threads, *given, stream=stream))
            return
        if stream == 0:
            go_on()
        launch(kernel, threads, *given, stream=stream)

    def waited(streams: Streams, one: Any, other: Any) -> None:
        if other is streams.inside:
            go_on()
        wait(streams, one, other)

    def got(device: Device, array: Any) -> np.ndarray:
        go_on()
        return get(device, array)

    monkeypatch.setattr(Streams, "__init__", begun)
    monkeypatch.setattr(Streams, "wait", waited)
    monkeypatch.setattr(CudaKernel, "launch", launched)
    monkeypatch.setattr(Device, "get", got)


def _begin(
    manager: Any, place: tuple[int, ...], given: Sequence[Any]
) -> tuple[Meeting, list[threading.Thread]]:
    """Start the threads of a block."""
    from numba.cuda.simulator import kernel

    meeting = Meeting(int(np.prod(manager._block_dim)))

    def work() -> None:
        try:
            manager._f(*given)
        except BaseException as error:  # of another thread: told in the one that waits
            meeting.leave(error)
        else:
            meeting.leave()

    threads = []
    for mine in np.ndindex(*manager._block_dim):
        thread = kernel.BlockThread(work, manager, place, mine, False)
        thread.syncthreads = meeting.wait
        thread.start()
        threads.append(thread)
    return meeting, threads


def _finish(blocks: Sequence[tuple[Meeting, list[threading.Thread]]]) -> None:
    """Wait for the threads of blocks."""
    end = time.monotonic() + PATIENCE
    for _, threads in blocks:
        for thread in threads:
            while thread.is_alive() and not any(other.error for other, _ in blocks):
                thread.join(PATIENCE if len(blocks) == 1 else 0.1)
                assert len(blocks) == 1 or time.monotonic() < end, "blocks wait for one another"
        for other, _ in blocks:
            if other.error is not None:
                raise other.error
