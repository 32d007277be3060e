"""Fields of block means on a CUDA device: the bits of the CPU. ``make test-cudasim``, or a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from exact import has_cuda
from mpi4py import MPI
from test_stochastic_field import BOTH, bent

from mpiflow.core import gpu
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.solvers.field import transforms
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw, Structure

SHAPE = 5, 4
#: Of a coupling that reaches a few blocks.
WAVES = np.fft.fftfreq(SHAPE[0])[:, None] ** 2 + np.fft.rfftfreq(SHAPE[1]) ** 2
SYMBOL = 0.9 * np.exp(-9 * WAVES)

on_device: Any = pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")


def made(device: str, structure: Structure, comm: MPI.Intracomm, **options: Any) -> StochasticField:
    law = options.pop("law", ExactLaw(1.25, structure))
    given = {"block": 2, "field": 0.2, "dt": 0.1, "seed": 2**61 + 3, **options}
    out = StochasticField(law, SYMBOL, SHAPE, comm=comm, device=device, **given)
    out.set(0.4)
    return out


@pytest.fixture(autouse=True)
def _transforms_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU too, where the bits are to be the same."""
    monkeypatch.setenv(transforms.HOST, "1")


@pytest.mark.kernel
@pytest.mark.mpi
@on_device
@pytest.mark.filterwarnings("ignore:.*learned")
@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {},
        # One spin a block, which feels none of itself; binomials by rejection.
        {"block": 1, "members": 2},
        {"block": 64},
        {"law": bent, "dt": 0.02},
    ],
    ids=["small", "single", "large", "bent"],
)
def test_the_bits_of_the_cpu(
    comm: MPI.Intracomm, structure: Structure, options: dict[str, Any]
) -> None:
    """One field cut over all ranks, whole members; looked at, set and counted on the way."""
    given = {n: v(structure) if callable(v) else v for n, v in options.items()}
    there, here = (made(name, structure, comm, **given) for name in ("cuda", "cpu"))
    assert there.device.is_cuda
    assert not here.device.is_cuda
    for field in (there, here):
        field.advance_some(1)
        assert not field.local[1] or not field.m.size or field.m.std() > 0
        field.advance(1)
    assert np.array_equal(there.m, here.m)
    assert np.array_equal(there.state, here.state)
    for field in (there, here):
        field.state[:, -1:] = field.state[:, :1]  # as a checkpoint does
        field.advance(1)
    assert np.array_equal(there.state, here.state)
    assert there.outside == here.outside
    assert np.array_equal(there.free_energy(), here.free_energy())


@pytest.mark.kernel
@on_device
@BOTH
def test_states_that_cannot_be(structure: Structure) -> None:
    with gpu.computing_on("cuda", MPI.COMM_SELF):
        field = StochasticField(
            ExactLaw(1.25, structure), np.zeros((4, 3)), (4, 4), block=2, comm=MPI.COMM_SELF
        )
    assert field.device.is_cuda
    with pytest.raises(InputError, match=r"^initial state=None"):
        field.advance(1)
    field.set(0.1)
    field.advance(1)
    assert field._there is not None
    bad = field.state.copy()
    bad[0, 1, 2] = 7
    field._there = Device("cuda").put(bad)  # as a law that fails would leave it
    with pytest.raises(InputError, match=r"^state="):
        field.advance(1)
