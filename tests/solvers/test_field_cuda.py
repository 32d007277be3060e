"""Fields of block means on a CUDA device: the bits of the CPU. ``make test-cudasim``, or a GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from exact import has_cuda
from mpi4py import MPI
from test_stochastic_field import BOTH, bent

from mpiflow.core import gpu
from mpiflow.core.device import Device
from mpiflow.core.errors import InputError
from mpiflow.solvers.field import transforms
from mpiflow.solvers.field.mesoscopic import Equation, LocalEquation, NonlocalEquation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw, Structure
from mpiflow.systems.kac import kac_kernel

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
@pytest.mark.parametrize(
    ("structure", "options"),
    [
        ("langevin", {"members": 2}),
        ("langevin", {"law": bent, "dt": 0.02}),
        ("cosh", {"law": bent, "dt": 0.02}),
        # One spin a block, which feels none of itself; binomials by rejection.
        ("cosh", {"block": 1, "members": 2}),
        ("cosh", {"block": 64}),
    ],
    ids=["members", "bent", "bent flips", "single", "large"],
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


@pytest.mark.parametrize("kind", [NonlocalEquation, LocalEquation])
def test_pytorch_solves_the_equations_within_rounding(kind: type[Equation]) -> None:
    """The same steps: as many evaluations of the right-hand side, in a field of the site."""
    rng = np.random.default_rng(4)
    field, m = rng.uniform(-0.3, 0.3, (14, 13)), rng.uniform(-0.5, 0.5, (14, 13))
    start, found = m.copy(), []
    for there in (None, torch.device("cpu")):
        equation = kind(kac_kernel(1.5), 0.8, m.shape, field=field, comm=MPI.COMM_SELF)
        equation._device = there
        found.append(([now for _, now in equation.evolve(m, [0.3, 2.0])], equation.evaluations))
    (here, steps), (other, others) = found
    assert steps == others
    np.testing.assert_allclose(other, here, rtol=0, atol=1e-12)
    assert np.array_equal(m, start)


@pytest.mark.kernel
@pytest.mark.mpi
@on_device
def test_where_equations_are_solved(comm: MPI.Intracomm) -> None:
    """As the program has chosen, of one rank; refused where it was asked for by name."""
    about = kac_kernel(1.5), 0.8, (14, 13)
    with gpu.computing_on("cuda", comm):
        assert NonlocalEquation(*about, comm=MPI.COMM_SELF)._device is not None
        assert (NonlocalEquation(*about, comm=comm)._device is None) == (comm.size > 1)
    assert NonlocalEquation(*about, comm=comm)._device is None
    if comm.size > 1:
        with pytest.raises(InputError, match=r"^device='cuda'.*one rank"):
            NonlocalEquation(*about, comm=comm, device="cuda")
