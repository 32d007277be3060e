r"""Sublattice-parallel Glauber dynamics: Strang splitting of the generator.

With one sublattice frozen, the sites of the other are independent two-state
chains whose two rates add up to one, so the propagator is exact:

.. math:: e^{t L_c}: \text{ with probability } q = 1 - e^{-t}
          \text{ resample the site from the heat bath, else keep it.}

One step is :math:`e^{\frac{dt}{2} L_b} e^{dt L_w} e^{\frac{dt}{2} L_b}`: second
order in dt in law, and the Gibbs measure is exactly invariant for every dt
because each factor leaves it invariant (Strang, SIAM J. Numer. Anal. 5, 506
(1968)). Neighbouring black half steps merge. ``dt = inf`` is the checkerboard
sweep, black then white.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from mpiflow.block import Block
from mpiflow.errors import InputError
from mpiflow.lattice import Lattice
from mpiflow.noise import stream_key
from mpiflow.solvers import heatbath
from mpiflow.systems.ising import Ising

#: Passes reserved for each step: black half, white, black half.
PASSES = 3
BLACK, WHITE = 0, 1


Thresholds = tuple[tuple[np.uint64, ...], np.uint64]
Pass = tuple[int, int, Thresholds]


class Sublattice:
    """Fixed-step solver for :class:`~mpiflow.systems.ising.Ising`.

    The result is a pure function of (seed, stream, member, step, site): the same
    bits on any number of ranks and threads, on CPU and CUDA.

    Parameters
    ----------
    system : the model
    dt : time step in attempts per spin, above 0; ``math.inf`` for full sweeps
    """

    name = "sublattice"

    def __init__(self, system: Ising, dt: float) -> None:
        if not dt > 0:
            raise InputError("dt", dt, "a number above 0, or inf", "Try 0.25.")
        self.system, self.dt = system, float(dt)
        self._full = self.thresholds(dt)
        self._half = self.thresholds(dt / 2)

    @property
    def time_per_step(self) -> float:
        """``dt``, or 1 for full sweeps (one attempt per spin)."""
        return self.dt if math.isfinite(self.dt) else 1.0

    def thresholds(self, dt: float) -> Thresholds:
        """Integer thresholds of one pass: five ``q p(k) 2^63`` and ``q 2^63``, uint64.

        Computed once on the host and shared by all devices.
        """
        q = -math.expm1(-dt)
        attempt = _fixed_point(q)
        rates = self.system.flip_rates()
        # From the smaller of p and 1 - p, so that rare flips keep all their digits.
        up = (
            _fixed_point(q * p) if p < down else attempt - _fixed_point(q * down)
            for p, down in zip(rates[:5], rates[5:], strict=True)
        )
        return tuple(up), attempt

    def advance(
        self,
        block: Block,
        steps: int,
        *,
        seed: int,
        first_step: int = 0,
        stream: str = "sublattice",
    ) -> np.ndarray:
        """Advance every box by ``steps`` steps in place.

        The halo must be current and is current again afterwards. Collective for
        ``exchange`` blocks.

        Returns
        -------
        (B,) int64, the number of spins flipped in each box on this rank
        """
        _require_two_colours(block)
        flips = np.zeros(block.batch, np.int64)
        passes = list(self._passes(first_step, steps))
        key = stream_key(seed, stream)
        if block.device.is_cuda:
            self._advance_cuda(block, passes, key, flips)
        elif _fits_lanes(block):
            self._advance_lanes(block, passes, key, flips)
        else:
            for number, colour, (up, attempt) in passes:
                heatbath.update_rows(
                    block.array,
                    block.halo,
                    block.origins,
                    block.members,
                    *block.lattice.shape,
                    key,
                    np.uint64(number),
                    colour,
                    up,
                    attempt,
                    flips,
                )
                block.fill_halo()
        return flips

    def _advance_lanes(
        self, block: Block, passes: list[Pass], key: np.ndarray, flips: np.ndarray
    ) -> None:
        """Small boxes: a cache-sized group at a time, the box index last."""
        origins = np.ascontiguousarray(block.origins.T) % np.array([block.lattice.shape]).T
        for start in range(0, block.batch, heatbath.LANES):
            lanes = slice(start, start + heatbath.LANES)
            field = np.ascontiguousarray(np.moveaxis(block.array[lanes], 0, -1))
            for number, colour, (up, attempt) in passes:
                heatbath.update_lanes(
                    field,
                    block.halo,
                    np.ascontiguousarray(origins[:, lanes]),
                    key[1] + block.members[lanes],
                    *block.lattice.shape,
                    key[0],
                    np.uint64(number),
                    colour,
                    up,
                    attempt,
                    flips[lanes],
                )
                if block.policy == "wrap":
                    heatbath.wrap_lanes(field, block.halo)
            block.array[lanes] = np.moveaxis(field, -1, 0)

    def _advance_cuda(
        self, block: Block, passes: list[Pass], key: np.ndarray, flips: np.ndarray
    ) -> None:
        put = block.device.put
        ny, nx = block.shape
        origins, members, keys, counts = map(put, (block.origins, block.members, key, flips))
        for number, colour, (up, attempt) in passes:
            heatbath.update_cuda.launch(
                block.batch * ny * ((nx + 1) // 2),
                block.array,
                block.halo,
                origins,
                members,
                *block.lattice.shape,
                keys,
                np.uint64(number),
                colour,
                up,
                attempt,
                counts,
            )
            block.fill_halo()
        flips[...] = block.device.get(counts)

    def _passes(self, first: int, steps: int) -> Iterator[Pass]:
        """(number, colour, thresholds) of the passes of steps ``first`` to ``first + steps``.

        The number of a pass is its noise counter. Two black half steps that meet
        are one full step, numbered as the earlier one.
        """
        sweep = math.isinf(self.dt)
        for step in range(first, first + steps):
            number = PASSES * step
            if sweep or step == first:
                yield number, BLACK, self._full if sweep else self._half
            yield number + 1, WHITE, self._full
            if not sweep:
                last = step == first + steps - 1
                yield number + 2, BLACK, self._half if last else self._full


def _fixed_point(probability: float) -> np.uint64:
    """A probability in units of 2^-63."""
    return np.uint64(round(math.ldexp(probability, 63)))


def _require_two_colours(block: Block) -> None:
    """Raise if two neighbours that both evolve would have the same colour."""
    sides = np.array(block.lattice.shape)
    over_the_edge = np.any(block.origins % sides + block.shape > sides, axis=0)
    if block.policy != "frozen" or np.any(over_the_edge & (sides % 2 == 1)):
        block.lattice.require_bipartite()
    if block.policy == "wrap":
        Lattice(block.shape).require_bipartite()


def _fits_lanes(block: Block) -> bool:
    """Whether the boxes are many, small and aligned: then one box a lane is faster."""
    return (
        block.policy != "exchange"
        and block.batch >= 16
        # Lanes go round the periodic lattice once at most.
        and all(n <= side for n, side in zip(block.shape, block.lattice.shape, strict=True))
        and block.array.shape[1] * block.array.shape[2] <= heatbath.LANE_SITES
        and not np.any((block.origins - block.origins[0]) % 2)
    )
