"""Spins that were saved as bits (``--spin-bits``), unpacked for those who read them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from mpiflow.files.schema import STANDARD, Variable

#: The variable of bits, its axis, and how many spins of this axis a value has.
NAME, AXIS, SPINS = "spin_bits", "x_byte", 8


def unpacked(bits: np.ndarray) -> np.ndarray:
    """Spins -1 or 1, (..., Ly, Lx) int8, of bytes (..., Ly, Lx / 8) uint8."""
    spins = np.unpackbits(bits, axis=-1).view(np.int8)
    spins *= 2
    spins -= 1
    return spins


def as_spins(v: Variable) -> Variable:
    """``spin``, over the sites of a variable of bits."""
    *lead, last = v.dims
    along = lead[-1].removesuffix("y") + "x"  # y or site_y
    return replace(STANDARD["spin"], dims=(*lead, along if last == AXIS else last))


def unpack_dataset(data: Any, v: Variable) -> Any:
    """An ``xarray.Dataset`` with ``spin`` in place of its bits, read and unpacked when asked for.

    Parameters
    ----------
    data : of :func:`xarray.open_dataset`
    v : the variable of bits in it
    """
    import xarray
    from xarray.core import indexing

    class Spins(xarray.backends.BackendArray):
        """Sites of the lattice, whose bytes are read for them."""

        def __init__(self, bits: Any) -> None:
            self.bits, self.dtype = bits, np.dtype(np.int8)
            self.shape = (*bits.shape[:-1], SPINS * bits.shape[-1])

        def __getitem__(self, key: Any) -> Any:
            basic = indexing.IndexingSupport.BASIC
            return indexing.explicit_indexing_adapter(key, self.shape, basic, self._read)

        def _read(self, key: tuple[Any, ...]) -> np.ndarray:
            *lead, sites = key  # numbers and slices with steps forward
            chosen = range(self.shape[-1])[sites]
            whole = range(chosen, chosen + 1) if isinstance(chosen, int) else chosen
            first, end = (whole[0] // SPINS, whole[-1] // SPINS + 1) if whole else (0, 0)
            spins = unpacked(self.bits[(*lead, slice(first, end))].to_numpy())
            at = slice(whole.start - SPINS * first, whole.stop - SPINS * first, whole.step)
            return spins[..., at.start if isinstance(chosen, int) else at]

    bits, spin = data[NAME], as_spins(v)
    values = indexing.LazilyIndexedArray(Spins(bits.variable))
    attributes = {**bits.attrs, "long_name": spin.long_name}
    made = xarray.Variable(bits.dims[:-1] + spin.dims[-1:], values, attributes)
    sites = np.arange(made.shape[-1], dtype=np.float64)
    about = {"axis": "X", "units": "1", "long_name": "x in sites"}
    out = data.drop_vars([NAME, AXIS]).assign({spin.name: made})
    return out.assign_coords({spin.dims[-1]: (spin.dims[-1], sites, about)})
