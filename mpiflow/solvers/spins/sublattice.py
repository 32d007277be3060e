r"""Sublattice-parallel Glauber dynamics: Strang splitting of the generator.

With one sublattice frozen, the sites of the other are independent two-state
chains whose two rates add up to one, so the propagator is exact:

.. math:: e^{t L_c}: \text{ with probability } q = 1 - e^{-t}
          \text{ resample the site from the heat bath, else keep it.}

A site with flip rate r thus flips with probability q r. One step is
:math:`e^{\frac{dt}{2} L_b} e^{dt L_w} e^{\frac{dt}{2} L_b}`: second order in dt in law,
and the Gibbs measure is exactly invariant for every dt because each factor leaves it
invariant (Strang, SIAM J. Numer. Anal. 5, 506 (1968)). ``dt = inf`` is the checkerboard
sweep, black then white.

Neighbouring black half steps merge into one *pass*: passes are black half, white, black,
white, black, ... The state between two steps lies in the middle of a black pass. It is drawn
from that pass's own uniform number u, so that looking at it changes nothing: with
:math:`q_h = 1 - e^{-dt/2}` and :math:`p = q_h r`, the site has flipped by the end of the pass
if u < q r, and half way through if

.. math:: p (1 - p) \le u < p (1 - p) + p .

The joint law is that of two half steps: both flips have probability
:math:`|[p (1 - p), q r)| = p - q_h^2 r (1 - r)`, which is :math:`q_h (1 - q_h) r` (only the
first half resamples) plus :math:`q_h^2 r^2` (both do, and both take the opposite spin).

Parameters that change in time (:mod:`mpiflow.systems.drive`) have in each pass the values of the
middle of its time: a black pass those of the time between the two steps it belongs to, a white
one those half a step later; both passes of a full sweep those of its middle. The order stays the
second, and a pass costs no more. Where a value jumps between two steps, the black pass there is
made in two: its first half with the old values, an opening one with the new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from mpiflow.core.block import Block
from mpiflow.core.device import in_threads, threads
from mpiflow.core.errors import InputError
from mpiflow.core.guards import require_rule
from mpiflow.core.lattice import Lattice
from mpiflow.core.noise import stream_key
from mpiflow.core.packed import PackedBlock
from mpiflow.core.schedule import Clock
from mpiflow.solvers.spins import (
    heatbath,
    multispin,
    multispin_cuda,
    multispin_whole,
    running_cuda,
    sliced,
)
from mpiflow.solvers.spins.bitplanes import Masks, Thresholds
from mpiflow.solvers.spins.half_lattice import launch_on
from mpiflow.solvers.spins.lane_block import LaneBlock
from mpiflow.systems.drive import Drive
from mpiflow.systems.ising import Ising

#: Passes of each step, black and white; the number of a pass is its noise counter.
PASSES = 2
#: Added to the number of an opening half pass: what goes before it may have used the number.
OPENING = 2**59
BLACK, WHITE = 0, 1
#: Largest padded box of a batch that is sliced, in sites.
SLICED_SITES = 100**2
#: Updates after which thresholds are compiled in: by then that would have saved, at 0.01 to 0.04 ns
#: an update, as much time as it takes, a few seconds.
COMPILE_IN_AFTER = 10**11
#: So many times as much a GPU does in the same time.
GPU_TIMES = 100
#: Thresholds that are kept: of all kinds of a few laws.
KEPT = 16
#: Sites that keep a thread busy for longer than it takes to start it.
SITES_PER_THREAD = 2**20

#: A longer finite step deserves a word: the law of the dynamics is off by a per cent or more.
LONG_STEP = 0.5
LONG_STEP_ERROR = (
    "equilibrium is right at any step, but relaxation is not: 20 after a quench from m = 0 to "
    "T = 1.2 there are 0.1 % too many domain walls at dt 0.25, 0.8 % at 0.5, 4 % at 1, 19 % at "
    "2.5 and 48 % at 5"
)

#: ``opening``: a black half step. ``full``: a whole pass. ``upper``, ``lower``: the bounds
#: between which a number flips a black site by the middle of the pass.
Kind = Literal["opening", "full", "upper", "lower"]
#: What passes go over: bytes, bits of one lattice, or one box a bit on a device.
SpinBlock = Block | PackedBlock | LaneBlock


class Run(NamedTuple):
    """Passes of one kind, numbered from ``first``, by one law; black where the number is even."""

    kind: Kind
    first: int
    system: Ising
    passes: int = 1

    @property
    def looks(self) -> bool:
        """Whether flips go to a copy of the black sites, to look at the middle of a pass."""
        return self.kind in ("upper", "lower")

    @property
    def sign(self) -> int:
        """Of its share of the flips: what lies below the lower bound lies below the upper too."""
        return -1 if self.kind == "lower" else 1


class Sublattice:
    """Fixed-step solver for :class:`~mpiflow.systems.ising.Ising`.

    The result is a pure function of (seed, stream, member, step, site) for each of the
    kernels: the same bits on any number of ranks and threads, on CPU and CUDA (CUDA: simulated
    and assembled, not yet run on a GPU). The kernel follows from the block: packed for a
    :class:`~mpiflow.core.packed.PackedBlock`, sliced for a batch of small boxes, else plain.

    Parameters
    ----------
    system : the model
    dt : time step in attempts per spin, above 0; ``math.inf`` for full sweeps
    plain : take the plain kernel for small boxes too
    compile_in : compile the thresholds into the bit kernels; left out, once they have done
        enough work for it to pay
    drive : parameters that change in time; those of ``system`` hold for the others

    Attributes
    ----------
    clock : the times of steps, which the drive goes by

    Raises
    ------
    InputError : the step is not above 0; by its methods: boxes or a system that it cannot honour
    """

    name = "sublattice"

    def __init__(
        self,
        system: Ising,
        dt: float,
        *,
        plain: bool = False,
        compile_in: bool | None = None,
        drive: Drive | None = None,
    ) -> None:
        if not dt > 0:
            raise InputError("dt", dt, "a number above 0, or inf", "Try 0.25.")
        require_rule(system, Ising)
        self.system, self.dt, self.plain = system, float(dt), plain
        self.compile_in, self.drive = compile_in, drive
        self.clock = Clock(self.time_per_step)
        self._updates = 0
        self._thresholds: dict[tuple[Kind, Ising], Thresholds] = {}

    @property
    def time_per_step(self) -> float:
        """``dt``, or 1 for full sweeps (one attempt per spin)."""
        return self.dt if math.isfinite(self.dt) else 1.0

    def probabilities(self, kind: Kind, system: Ising | None = None) -> np.ndarray:
        """The chance to flip in each of the ten classes, (10,) float64.

        With full sweeps the kernels of bits set spins instead, up with
        :meth:`~mpiflow.systems.ising.Ising.up_probabilities`: the same law, and half as many
        thresholds.
        """
        rates = (system or self.system).flip_rates_by_opposites()
        half = -math.expm1(-self.dt / 2) * rates
        return {
            "full": -math.expm1(-self.dt) * rates,
            "opening": half,
            "lower": half * (1 - half),
            "upper": half * (2 - half),
        }[kind]

    def kernel_for(self, block: SpinBlock) -> str:
        """Which kernel advances a block: ``packed``, ``sliced`` or ``plain``."""
        if isinstance(block, PackedBlock):
            return "packed"
        if isinstance(block, LaneBlock):
            return "sliced"
        return "sliced" if not self.plain and _fits_lanes(block) else "plain"

    # -- dynamics ------------------------------------------------------------------

    def advance(
        self,
        block: SpinBlock,
        steps: int,
        *,
        seed: int,
        first_step: int = 0,
        stream: str = "sublattice",
    ) -> np.ndarray:
        """Advance every box by ``steps`` whole steps in place.

        The halo must be current and is current again afterwards. The passes are numbered
        from ``2 first_step`` to ``2 (first_step + steps)``, so that the next call may go on
        from step ``first_step + steps``. Collective for ``exchange`` blocks.

        Returns
        -------
        (B,) int64, the number of spins flipped in each box on this rank
        """
        end = first_step + steps
        if steps and not self._jumps(first_step, end):
            runs = [*self._chain(first_step, steps, opening=True), *self._look(end)]
            return self._apply(block, runs, seed, stream)
        noise: Any = {"seed": seed, "stream": stream}
        flips = self.chain(block, steps, first_step=first_step, opening=True, **noise)
        return flips + self.look(block, end, **noise) if steps else flips

    def chain(
        self,
        block: SpinBlock,
        steps: int,
        *,
        seed: int,
        first_step: int = 0,
        opening: bool,
        stream: str = "sublattice",
    ) -> np.ndarray:
        """Advance in place, up to but without the black pass in the middle of which the step ends.

        ``opening`` says that the block holds a state, as at the start, and not what a chain
        left. :meth:`look` gives the state. Returns flips as :meth:`advance`.
        """
        if not steps:
            return self._apply(block, [], seed, stream)
        flips, end = np.zeros(block.batch, np.int64), first_step + steps
        cuts = self._jumps(first_step, end)
        for step, following in pairwise(sorted({first_step, *cuts, end})):
            if step in cuts and not (opening and step == first_step):
                flips += self.look(block, step, seed=seed, stream=stream)
                block.fill_halo()
                opening = True
            flips += self._apply(block, self._chain(step, following - step, opening), seed, stream)
            opening = False
        return flips

    def look(
        self, block: SpinBlock, step: int, *, seed: int, stream: str = "sublattice"
    ) -> np.ndarray:
        """Turn (a copy of) what :meth:`chain` left into the state at a step, in place.

        Returns the flips of that last half step.
        """
        return self._apply(block, self._look(step), seed, stream)

    def pending(self, step: int) -> Ising:
        """The law of the pass in the middle of which a step ends."""
        if self.drive is None or math.isinf(self.dt):
            return self.system
        return self.drive.system_before(self.system, self.clock.time(step))

    def _jumps(self, first: int, end: int) -> list[int]:
        """Steps before ``end``, from ``first`` on, that a black pass would have two laws at."""
        if self.drive is None or math.isinf(self.dt):
            return []
        steps = ((self.clock.step(time), time) for time in self.drive.jumps)
        return [n for n, time in steps if first <= n < end and self.clock.time(n) == time]

    def _look(self, step: int) -> list[Run]:
        if math.isinf(self.dt):
            return []
        both, law = PASSES * step, self.pending(step)
        return [Run("upper", both, law), Run("lower", both, law)]

    def _chain(self, first: int, steps: int, opening: bool) -> list[Run]:
        number, count = PASSES * first, PASSES * steps
        if opening and math.isfinite(self.dt):
            opened = Run("opening", OPENING + number, self._law_of(number))
            return [opened, *self._full(number + 1, count - 1)]
        return self._full(number, count)

    def _full(self, first: int, passes: int) -> list[Run]:
        """Whole passes, those of one law together."""
        if self.drive is None:
            return [Run("full", first, self.system, passes)]
        runs: list[Run] = []
        for number in range(first, first + passes):
            law = self._law_of(number)
            if runs and runs[-1].system == law:
                runs[-1] = runs[-1]._replace(passes=runs[-1].passes + 1)
            else:
                runs.append(Run("full", number, law))
        return runs

    def _law_of(self, number: int) -> Ising:
        """The model in the middle of the time of a pass."""
        if self.drive is None:
            return self.system
        step, white = divmod(number, PASSES)
        middle = white or math.isinf(self.dt)
        return self.drive.system(
            self.system, self.clock.middle(step) if middle else self.clock.time(step)
        )

    def _apply(self, block: SpinBlock, runs: Sequence[Run], seed: int, stream: str) -> np.ndarray:
        block.require_spins()
        key = stream_key(seed, stream)
        flips = np.zeros(block.batch, np.int64)
        kernel = self.kernel_for(block)
        if isinstance(block, PackedBlock):
            self._apply_packed(block, runs, key, flips)
        elif isinstance(block, LaneBlock):
            require_two_colours(block)
            total = self._pass_lanes(block, block.field, block.lanes, runs, key)
            flips[block.lanes.boxes] = total[block.lanes.lane]
        elif kernel == "sliced":
            self._apply_sliced(block, runs, key, flips)
        else:
            self._apply_plain(block, runs, key, flips)
        return flips

    # -- one byte a spin -----------------------------------------------------------

    def _apply_plain(
        self, block: Block, runs: Sequence[Run], key: np.ndarray, flips: np.ndarray
    ) -> None:
        require_two_colours(block)
        put, (ny, nx) = block.device.put, block.shape
        origins, members, key = put(block.origins), put(block.members), put(key)
        target = block.array
        for run in runs:
            if run.looks and target is block.array:
                target = block.device.duplicate(target)
            thresholds = fixed_point(self.probabilities(run.kind, run.system))
            counts = put(np.zeros_like(flips))
            for number in range(run.first, run.first + run.passes):
                arguments = (
                    target, block.array, block.halo, origins, members, *block.lattice.shape, key,
                    np.uint64(number), number % 2, thresholds, counts,
                )  # fmt: skip
                if not block.device.is_cuda:
                    heatbath.update_rows(*arguments)
                    if not run.looks:
                        block.fill_halo()
                    continue
                update = partial(launch_on, heatbath.update_cuda, block.batch, arguments)
                if run.looks:
                    update(slice(0, ny), slice(0, nx), 0)
                else:
                    block.update(update)
            flips += run.sign * block.device.get(counts)
        if target is not block.array:
            block.device.copy_box(block.array, target)
            block.fill_halo()

    # -- one bit a spin ------------------------------------------------------------

    def _compared_with(
        self, run: Run, updates: int, compile_in: Callable[[Masks], Any], general: Any, cuda: bool
    ) -> tuple[Any, Masks, Thresholds]:
        """(kernel, masks, thresholds) for a run; masks are compiled in once it pays."""
        law = run.kind, run.system
        if law not in self._thresholds:
            if len(self._thresholds) >= KEPT:  # a drive may have as many as there are passes
                self._thresholds.clear()
            self._thresholds[law] = (
                Thresholds.to_set(run.system.up_probabilities().tolist())
                if math.isinf(self.dt)
                else Thresholds.of(self.probabilities(*law).tolist())
            )
        thresholds = self._thresholds[law]
        if run.kind == "full" and self.drive is None:
            self._updates += updates
            enough = self._updates > COMPILE_IN_AFTER * (GPU_TIMES if cuda else 1)
            if enough if self.compile_in is None else self.compile_in:
                return compile_in(thresholds.masks), (), thresholds
        return general, thresholds.halves if cuda else thresholds.shortest, thresholds

    def _apply_sliced(
        self, block: Block, runs: Sequence[Run], key: np.ndarray, flips: np.ndarray
    ) -> None:
        """A group of words that fits the cache at a time: all its passes, then the next."""
        require_two_colours(block)
        host = block.host()
        boxes = host.reshape(block.batch, math.prod(host.shape[1:]))
        for lanes in sliced.lanes(block.members, boxes.shape[1]):
            field = lanes.pack(boxes).reshape(*host.shape[1:], -1)
            flips[lanes.boxes] = self._slice(block, field, lanes, runs, key)
            lanes.unpack(field, boxes)
        if block.device.is_cuda:
            block.array.copy_to_device(host)

    def _slice(
        self, block: Block, field: Any, lanes: sliced.Lanes, runs: Sequence[Run], key: np.ndarray
    ) -> np.ndarray:
        """Apply passes to packed lanes in place; returns the flips of each box."""
        there = block.device.put(field)
        total = self._pass_lanes(block, there, lanes, runs, key)
        if block.device.is_cuda:
            field[...] = block.device.get(there)
        return total[lanes.lane]

    def _pass_lanes(
        self,
        block: Block | LaneBlock,
        field: Any,
        lanes: sliced.Lanes,
        runs: Sequence[Run],
        key: np.ndarray,
    ) -> np.ndarray:
        """Apply passes to lanes on their device in place; returns the flips of every lane."""
        put, cuda, wrap = block.device.put, block.device.is_cuda, block.policy == "wrap"
        parity = int(block.origins[0].sum() % 2)
        groups, key = put(lanes.groups), put(key)
        total = np.zeros(64 * len(lanes.groups), np.int64)
        target, flat = field, field.reshape(-1)
        for run in runs:
            if run.looks and target is field:
                target = block.device.duplicate(field)
            counts = put(np.zeros_like(total))
            kernel, masks, thresholds = self._compared_with(
                run,
                run.passes * math.prod(block.shape) * len(lanes.boxes) // 2,
                sliced.sliced_cuda_with if cuda else sliced.sliced_with,
                sliced.update_sliced_cuda if cuda else sliced.update_sliced,
                cuda,
            )
            if cuda:
                residual, boxes = put(thresholds.residual), (target.reshape(-1), flat)
                for number in range(run.first, run.first + run.passes):
                    kernel.launch(
                        block.shape[0] * len(lanes.groups),
                        *boxes, *field.shape[:2], block.halo, parity, number, groups, key, masks,
                        residual, thresholds.setting, counts,
                    )  # fmt: skip
                    if wrap:
                        sliced.wrap_sliced_cuda.launch(math.prod(field.shape), target, block.halo)
            else:
                kernel(
                    target, field, block.halo, parity, wrap, run.first,
                    run.passes, groups, key, masks, thresholds.residual, thresholds.setting,
                    counts,
                )  # fmt: skip
            total += run.sign * block.device.get(counts)
        if target is not field:
            block.device.copy_box(field, target)
        return total

    def _apply_packed(
        self, block: PackedBlock, runs: Sequence[Run], key: np.ndarray, flips: np.ndarray
    ) -> None:
        cuda, sites = block.device.is_cuda, block.batch * math.prod(block.shape)
        workers = 1 if cuda else max(1, min(threads(), sites // SITES_PER_THREAD))
        inside, edges = multispin.inside_and_edges(block)
        alone = workers == 1 and not cuda
        # Threads share bands of rows, or whole boxes.
        whole = multispin_whole.fits(block) and (alone or block.runs_on or block.batch >= workers)
        cpu: Any = multispin_whole if whole else multispin
        compile_in, general = cpu.packed_with, cpu.update_packed
        if cuda:
            compile_in, general = multispin_cuda.packed_cuda_with, multispin_cuda.update_packed_cuda
        if cuda and whole:
            compile_in, general = running_cuda.running_cuda_with, running_cuda.update_running_cuda
        black = target = block.words[BLACK]
        for run in runs:
            if run.looks and target is black:
                target = block.device.duplicate(black)
            kernel, masks, thresholds = self._compared_with(
                run, run.passes * sites // 2, compile_in, general, cuda
            )
            if whole:
                passes = range(run.first, run.first + run.passes)
                flips += run.sign * multispin_whole.advance(
                    block, target, kernel, masks, thresholds, key, passes, run.looks, workers
                )
                continue
            work = multispin.Work(block, target, kernel, masks, thresholds, key)
            if alone and (run.looks or block.closed or block.lines is not None):
                work.all_of(multispin.in_turn(block), run.first, run.passes, run.looks)
            else:
                first = [work.on(share) for region in inside for share in region.shares(workers)]
                then = [work.on(region) for region in edges]
                for number in range(run.first, run.first + run.passes):
                    if block.streams:
                        block.streams.join()
                    # The other colour's edges are on their way while the inside is updated.
                    in_threads(first, number)
                    block.finish_exchange(1 - number % 2)
                    for update in then:
                        update(number)
                    if not run.looks:
                        block.start_exchange(number % 2, columns=cuda)
            flips += run.sign * work.flips()
        for colour in (BLACK, WHITE):
            block.finish_exchange(colour)
        if target is not black:
            block.device.copy_box(black, target)
            block.start_exchange(BLACK)
            block.finish_exchange(BLACK)


def fixed_point(probabilities: np.ndarray) -> tuple[np.uint64, ...]:
    """Probabilities in units of 2^-63."""
    return tuple(np.uint64(round(math.ldexp(p, 63))) for p in probabilities)


def require_two_colours(block: Block | LaneBlock) -> None:
    """Raise if two neighbours that both evolve would have the same colour."""
    sides = np.array(block.lattice.shape)
    over_the_edge = np.any(block.origins % sides + block.shape > sides, axis=0)
    if block.policy != "frozen" or np.any(over_the_edge & (sides % 2 == 1)):
        block.lattice.require_bipartite()
    if block.policy == "wrap":
        Lattice(block.shape).require_bipartite()


def _fits_lanes(block: Block) -> bool:
    """Whether boxes are small and of one colouring: then one box a bit is faster."""
    return (
        block.policy != "exchange"
        and block.array.shape[1] * block.array.shape[2] <= SLICED_SITES
        and not np.any((block.origins - block.origins[:1]).sum(axis=1) % 2)
    )
