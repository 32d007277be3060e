"""Boxes of spins that stay on a device, one a bit of words: what scale-up is made of there.

What :class:`~mpiflow.core.block.Block` does with bytes on the host is done here with the words of
:mod:`~mpiflow.solvers.spins.sliced`: lattices are doubled, windows and patches cut out and put
back, spins, bonds and rate classes counted, without a spin leaving the device. Sublattice passes
are those of the sliced kernel, so every bit is that of the CPU.

CUDA: simulated and assembled, not yet run on a GPU (docs/hpc.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mpiflow.core.block import Block, Boxes, HaloPolicy
from mpiflow.core.device import CudaKernel, Device, rule, split, unravel
from mpiflow.core.errors import InputError
from mpiflow.core.lattice import Lattice, Shape
from mpiflow.core.noise import MAX_MEMBER, Word
from mpiflow.solvers.spins.sliced import Lanes, all_lanes, wrap_sliced_cuda
from mpiflow.systems.ising import CLASSES, rate_class

#: Sites of a row that are counted together, six bits for each class.
_COUNTED = 63


class LaneBlock(Boxes):
    """Equal boxes with a halo of one site, of +1 and -1 spins, on a CUDA device.

    Attributes
    ----------
    lattice : the lattice that the boxes belong to
    field : (ny + 2, nx + 2, words) uint64 on the device
    lanes : which box is where in the words
    members : (B,) uint64 noise keys
    origins : (B, 2) int64, the first inner site of each box; all of one colour
    policy : ``wrap``, each closed on itself, or ``frozen``
    halo : 1

    Raises
    ------
    InputError : members that come twice or do not fit, or boxes of two colourings
    """

    halo = 1
    cart = None

    def __init__(
        self,
        lattice: Lattice,
        field: Any,
        members: np.ndarray,
        origins: np.ndarray,
        policy: HaloPolicy,
        device: Device,
        lanes: Lanes | None = None,
    ) -> None:
        self.lattice, self.policy, self.device = lattice, policy, device
        self.members, self.origins = _keys(members), origins
        self.lanes = all_lanes(self.members) if lanes is None else lanes
        if np.any((origins - origins[:1]).sum(axis=1) % 2):
            allowed = "first sites of one colour"
            raise InputError("origins", "both colours", allowed, "Use an even side.")
        self.field = field
        #: The lane of each box, on the device.
        self._lane = device.put(self.lanes.by_box())

    @classmethod
    def of(cls, block: Block, device: Device) -> LaneBlock:
        """A copy of boxes on the host, which have a halo of one site."""
        block.require_spins()
        boxes, lanes = block.array.reshape(block.batch, -1), all_lanes(block.members)
        words = lanes.pack(boxes).reshape(*block.array.shape[1:], -1)
        where = block.members, block.origins, block.policy
        return cls(block.lattice, device.put(words), *where, device, lanes)

    @classmethod
    def periodic(cls, states: np.ndarray, members: np.ndarray, device: Device) -> LaneBlock:
        """Whole periodic lattices, (B, ny, nx) int8 of +1 and -1 on the host."""
        return cls.of(Block.periodic(states, members), device)

    @property
    def batch(self) -> int:
        return len(self.members)

    @property
    def shape(self) -> Shape:
        return int(self.field.shape[0]) - 2, int(self.field.shape[1]) - 2

    def check_spins(self) -> None:
        """Bits are spins."""

    def host(self) -> np.ndarray:
        """A copy on the host, (B, ny + 2, nx + 2) int8."""
        out = np.empty((self.batch, *map(int, self.field.shape[:2])), np.int8)
        self.lanes.unpack(self.device.get(self.field), out.reshape(self.batch, -1))
        return out

    def spins(self) -> np.ndarray:
        """Inner sites on the host, (B, ny, nx) int8."""
        return np.ascontiguousarray(self.host()[:, 1:-1, 1:-1])

    def copy(self) -> LaneBlock:
        """The same boxes with a field of their own."""
        return self._like(self.lattice, self.device.duplicate(self.field), self.origins)

    def fill_halo(self) -> None:
        """Close each box on itself, or leave its surroundings as they are."""
        if self.policy == "wrap":
            wrap_sliced_cuda.launch(_size(self.field), self.field, 1)

    def take(self, other: LaneBlock, boxes: np.ndarray) -> None:
        """Overwrite some boxes, (n,) indices or (B,) bool, by those of a block of the same ones."""
        lanes = np.zeros(self.batch, bool)
        lanes[boxes] = True
        mask = np.zeros((1, len(self.lanes.groups)), np.uint64)
        spins = np.where(lanes, 1, -1).astype(np.int8)[:, None]
        mask[0] = self.lanes.pack(spins)[0]
        arguments = self.field, other.field, self.device.put(mask[0])
        _take.launch(_size(self.field), *arguments)

    # -- other boxes ---------------------------------------------------------------------

    def upsampled(self, factor: int = 2) -> LaneBlock:
        """Lattices in which each spin is a square of equal ones."""
        ny, nx = self.shape
        lattice = Lattice((factor * ny, factor * nx))
        field = self._window((0, 0), lattice.shape, factor)
        return self._like(lattice, field, self.origins)

    def window(self, origin: Shape, shape: Shape, policy: HaloPolicy = "frozen") -> LaneBlock:
        """The same window of every lattice, no larger than it, in its true surroundings or closed
        on itself."""
        origins = np.broadcast_to(np.array(origin, np.int64), (self.batch, 2))
        out = self._like(self.lattice, self._window(origin, shape), origins, policy)
        out.fill_halo()
        return out

    def put_back(self, window: LaneBlock) -> None:
        """Write the inner sites of a window of these lattices back; :meth:`fill_halo` is due."""
        (y, x), (ny, nx) = window.origins[0], window.shape
        threads = ny * nx * len(self.lanes.groups)
        _put_back.launch(threads, window.field, int(y), int(x), self.field)

    def cut(
        self,
        of: np.ndarray,
        origins: np.ndarray,
        shape: Shape,
        members: np.ndarray,
        policy: HaloPolicy = "frozen",
    ) -> LaneBlock:
        """Boxes from anywhere in these lattices, no larger, each with a noise key of its own.

        Parameters
        ----------
        of : (n,) which lattice each is cut from
        origins : (n, 2) first inner sites
        members : (n,) noise keys
        """
        put = self.device.put
        lanes = all_lanes(_keys(members))
        box = np.full(64 * len(lanes.groups), -1, np.int64)
        box[lanes.lane] = lanes.boxes
        field = self._empty(shape, len(lanes.groups))
        sides = np.array(self.lattice.shape)
        arguments = put(self.lanes.by_box()[of]), put(origins % sides), put(box), field
        _cut.launch(_size(field), self.field, *arguments)
        out = LaneBlock(self.lattice, field, members, origins, policy, self.device, lanes)
        out.fill_halo()
        return out

    def _like(
        self, lattice: Lattice, field: Any, origins: np.ndarray, policy: HaloPolicy | None = None
    ) -> LaneBlock:
        """The same members."""
        policy = policy or self.policy
        return LaneBlock(lattice, field, self.members, origins, policy, self.device, self.lanes)

    def _empty(self, shape: Shape, words: int) -> Any:
        return self.device.put(np.zeros((shape[0] + 2, shape[1] + 2, words), np.uint64))

    def _window(self, origin: Shape, shape: Shape, factor: int = 1) -> Any:
        field = self._empty(shape, len(self.lanes.groups))
        y, x = (int(at) % (factor * n) for at, n in zip(origin, self.lattice.shape, strict=True))
        _window.launch(_size(field), self.field, y, x, factor, field)
        return field

    # -- counts --------------------------------------------------------------------------

    def sums(
        self, buffer: int = 0, *, frame: LaneBlock | None = None, touching: bool = False
    ) -> np.ndarray:
        """Sums of spins and of s_i s_j over bonds, (B, 2) int64, as those of patches.

        Parameters
        ----------
        buffer : sites at the edges of the boxes that do not count
        frame : boxes that have what is around, if it is not in these
        touching : see :func:`mpiflow.observables.patch_sums`
        """
        ny, nx = (n - 2 * buffer for n in self.shape)
        out = self.device.put(np.zeros((self.batch, 2), np.int64))
        around = self.field if frame is None else frame.field
        _sums.launch(
            self.batch * ny, self.field, around, 1 + buffer, ny, nx, int(touching), self._lane, out
        )
        return self.device.get(out)

    def class_counts(self, patch: int, buffer: int = 0) -> np.ndarray:
        """Sites of each rate class inside each aligned patch, (B, K, 10) int32, as
        :func:`mpiflow.observables.class_counts`."""
        down, across = ((n - 2 * buffer) // patch for n in self.shape)
        out = self.device.put(np.zeros((self.batch, down * across, CLASSES), np.int32))
        threads = self.batch * down * across * max(0, patch - 2)
        _class_counts.launch(threads, self.field, 1 + buffer, patch, across, self._lane, out)
        return self.device.get(out)


def _keys(members: np.ndarray) -> np.ndarray:
    keys = np.asarray(members, np.uint64)
    if np.any(keys >= MAX_MEMBER):
        allowed = f"below {MAX_MEMBER}"
        raise InputError("members", int(keys.max()), allowed, "Number them from 0.")
    return keys


def _size(field: Any) -> int:
    height, width, words = field.shape
    return int(height * width * words)


# -- rules and kernels ---------------------------------------------------------------------------


@rule
def inside(place: int, side: int) -> int:
    """A place of a periodic lattice that is less than a lattice away from it."""
    if place < 0:
        return place + side
    return place - side if place >= side else place


@rule
def spin_of(word: Word, bit: Word) -> np.int64:
    """The spin of a lane in a word of a site."""
    return np.int64(word >> bit & np.uint64(1)) * 2 - 1


@CudaKernel
def _take(cuda: Any) -> Callable[..., None]:
    def take(target: Any, source: Any, mask: Any) -> None:
        """The lanes of a mask, of words of all sites."""
        i = cuda.grid(1)
        height, width, words = target.shape
        if i < height * width * words:
            y, x, w = unravel(i, width, words)
            m = mask[w]
            target[y, x, w] = (target[y, x, w] & ~m) | (source[y, x, w] & m)

    return take


@CudaKernel
def _window(cuda: Any) -> Callable[..., None]:
    def window(source: Any, top: int, left: int, factor: int, target: Any) -> None:
        """A window with what is around it, of lattices magnified by a factor."""
        i = cuda.grid(1)
        height, width, words = target.shape
        if i < height * width * words:
            y, x, w = unravel(i, width, words)
            ly, lx = source.shape[0] - 2, source.shape[1] - 2
            gy, _ = split(inside(top + y - 1, factor * ly), factor)
            gx, _ = split(inside(left + x - 1, factor * lx), factor)
            target[y, x, w] = source[gy + 1, gx + 1, w]

    return window


@CudaKernel
def _put_back(cuda: Any) -> Callable[..., None]:
    def put_back(window: Any, top: int, left: int, target: Any) -> None:
        """The inner sites of windows, into the lattices they are of."""
        i = cuda.grid(1)
        ny, nx, words = window.shape[0] - 2, window.shape[1] - 2, window.shape[2]
        if i < ny * nx * words:
            y, x, w = unravel(i, nx, words)
            gy = inside(top + y, target.shape[0] - 2)
            gx = inside(left + x, target.shape[1] - 2)
            target[gy + 1, gx + 1, w] = window[y + 1, x + 1, w]

    return put_back


@CudaKernel
def _cut(cuda: Any) -> Callable[..., None]:
    def cut(source: Any, lanes: Any, origins: Any, box: Any, target: Any) -> None:
        """A site of 64 boxes: bits from the lanes and the places that each is cut from."""
        i = cuda.grid(1)
        height, width, words = target.shape
        if i < height * width * words:
            y, x, w = unravel(i, width, words)
            ly, lx = source.shape[0] - 2, source.shape[1] - 2
            word = np.uint64(0)
            for bit in range(64):
                b = box[64 * w + bit]
                if b >= 0:
                    gy = inside(origins[b, 0] + y - 1, ly)
                    gx = inside(origins[b, 1] + x - 1, lx)
                    there = source[gy + 1, gx + 1, lanes[b] >> 6]
                    one = there >> np.uint64(lanes[b] & 63) & np.uint64(1)
                    word |= one << np.uint64(bit)
            target[y, x, w] = word

    return cut


@CudaKernel
def _sums(cuda: Any) -> Callable[..., None]:
    def sums(  # type: ignore[no-untyped-def]
        field, frame, first, ny, nx, touching, lane, out
    ):
        """A thread for each box and row, side by side over boxes: they share words."""
        i = cuda.grid(1)
        boxes = lane.size
        if i < boxes * ny:
            row, b = split(i, boxes)
            y, w, bit = first + row, lane[b] >> 6, np.uint64(lane[b] & 63)
            spins, bonds = 0, 0
            here = spin_of(field[y, first, w], bit)
            for k in range(nx):
                x = first + k
                if k + 1 < nx:
                    right = spin_of(field[y, x + 1, w], bit)
                else:
                    right = spin_of(frame[y, x + 1, w], bit)
                if row + 1 < ny:
                    near = right + spin_of(field[y + 1, x, w], bit)
                else:
                    near = right + spin_of(frame[y + 1, x, w], bit)
                if touching and row == 0:
                    near += spin_of(frame[y - 1, x, w], bit)
                if touching and k == 0:
                    near += spin_of(frame[y, x - 1, w], bit)
                spins += here
                bonds += here * near
                here = right
            cuda.atomic.add(out, (b, 0), spins)
            cuda.atomic.add(out, (b, 1), bonds)

    return sums


@CudaKernel
def _class_counts(cuda: Any) -> Callable[..., None]:
    def class_counts(  # type: ignore[no-untyped-def]
        field, first, patch, across, lane, out
    ):
        """A thread for each box, patch and inner row of it, side by side over boxes."""
        i = cuda.grid(1)
        boxes, patches = out.shape[0], out.shape[1]
        if i < boxes * patches * (patch - 2):
            row, p, b = unravel(i, patches, boxes)
            w, bit = lane[b] >> 6, np.uint64(lane[b] & 63)
            down, aside = split(p, across)
            y = first + down * patch + row + 1
            left = first + aside * patch + 1
            for start in range(0, patch - 2, _COUNTED):
                counts = np.uint64(0)
                for x in range(left + start, left + min(start + _COUNTED, patch - 2)):
                    k = spin_of(field[y - 1, x, w], bit) + spin_of(field[y + 1, x, w], bit)
                    k += spin_of(field[y, x - 1, w], bit) + spin_of(field[y, x + 1, w], bit)
                    c = rate_class(spin_of(field[y, x, w], bit), k)
                    counts += np.uint64(1) << np.uint64(6 * c)
                for c in range(CLASSES):
                    found = np.int32(counts >> np.uint64(6 * c) & np.uint64(63))
                    if found > 0:
                        cuda.atomic.add(out, (b, p, c), found)

    return class_counts
