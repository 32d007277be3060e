"""The compiled training step: torch's losses and gradients, and what decides who computes."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from mpi4py import MPI
from torch import nn
from torch.optim.adam import adam

from mpiflow.learn.closure.closure import ClosureAutoencoder
from mpiflow.learn.layers import BLOCK, Passes
from mpiflow.learn.likelihood import LANES, PairLoss
from mpiflow.learn.optimizer import AdamW, flattened
from mpiflow.learn.sde import MacroscopicSDE
from mpiflow.learn.training import Schedule, fit, mlp

Data = tuple[np.ndarray, ...]


def pairs(count: int, dim: int, of_each: int, context: int) -> Data:
    rng = np.random.default_rng(dim)
    z = rng.normal(size=(count, dim)) * np.arange(1, dim + 1) + 5.0
    increments = rng.normal(size=(count, of_each, dim)) - 0.1 * z[:, None]
    given = (rng.normal(size=(count, context)) + 2.0,) if context else ()
    return z, increments, rng.uniform(0.1, 0.4, (count, of_each)), *given


def sde_of(data: Data, width: int = 20, factor: float = 4.0) -> MacroscopicSDE:
    torch.manual_seed(0)
    context = data[3].shape[1] if len(data) > 3 else 0
    sde = MacroscopicSDE(data[0].shape[1], width, factor, context)
    for p in sde.parameters():
        nn.init.normal_(p, std=0.3)
    sde.set_scales(*data[:3])
    if context:
        sde.set_context(data[3])
    return sde


def compiled(sde: MacroscopicSDE, data: Data) -> PairLoss | None:
    return sde.compiled_loss([torch.as_tensor(a, dtype=torch.float32) for a in data])


def flat(tensors: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


@pytest.mark.parametrize(
    ("count", "dim", "of_each", "context"),
    [(BLOCK + 3, 4, 1, 0), (2 * LANES + 5, 3, 5, 2), (1, 1, 2, 0), (70, 17, 1, 1)],
)
def test_losses_and_gradients_are_those_of_torch(
    count: int, dim: int, of_each: int, context: int
) -> None:
    """Of rows in any order; in float64, the error of torch's float32 tells what is close."""
    data = pairs(count + 9, dim, of_each, context)
    sde = sde_of(data)
    rows = np.random.default_rng(1).permutation(count + 9)[:count]
    ours = compiled(sde, data)
    assert ours is not None
    parameters, gradient = list(sde.parameters()), np.empty(0, np.float32)
    values = flat(parameters)
    gradient = np.empty_like(values)
    loss = ours.gradient(rows, values, 0.25, gradient)
    assert ours.total(rows, values) == pytest.approx(loss, rel=1e-6)
    found = []
    for kind in (torch.float32, torch.float64):
        sde.to(kind).zero_grad()
        exact = sde(*(torch.as_tensor(a[rows], dtype=torch.float32).to(kind) for a in data)).sum()
        (0.25 * exact).backward()
        found.append(flat([p.grad for p in parameters if p.grad is not None]))
    assert loss == pytest.approx(exact.item(), rel=1e-5)
    size = np.abs(found[1]).max()
    allowed = 3.0 * np.abs(found[0] - found[1]).max() + 1e-6 * size
    np.testing.assert_allclose(gradient, found[1], atol=allowed)


@pytest.mark.parametrize(("states", "patches"), [(37, 5), (1, 1)])
def test_the_autoencoder_has_losses_and_gradients_of_torch(states: int, patches: int) -> None:
    rng = np.random.default_rng(states)
    torch.manual_seed(0)
    model = ClosureAutoencoder(3, 12, statistics=7, observables=2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.4)
    data = rng.normal(size=(states + 9, patches, 7)) + 1.0, rng.normal(size=(states + 9, 2))
    model.set_scales(*data)
    tensors = [torch.as_tensor(a, dtype=torch.float32) for a in data]
    ours, rows = model.compiled_loss(tensors), rng.permutation(states + 9)[:states]
    assert ours is not None
    values = flat(list(model.parameters()))
    gradient = np.empty_like(values)
    loss = ours.gradient(rows, values, 0.5, gradient)
    assert ours.total(rows, values) == pytest.approx(loss, rel=1e-6)
    model.double()
    exact = model(*(t[rows].double() for t in tensors)).sum()
    (0.5 * exact).backward()
    right = flat([p.grad for p in model.parameters() if p.grad is not None])
    assert loss == pytest.approx(exact.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, right, atol=3e-6 * np.abs(right).max())
    assert model.compiled_loss(tensors) is None  # in float64


def test_a_row_has_the_same_bits_in_any_company() -> None:
    sizes, rng = np.array([3, 33, 20, 5]), np.random.default_rng(0)
    x = rng.normal(size=(2 * BLOCK + 5, 3)).astype(np.float32)
    one = Passes(sizes)
    parameters = rng.normal(size=one.parameters).astype(np.float32)
    whole = one.forward(parameters, x, keep=True)
    part = one.forward(parameters, x[BLOCK - 2 : BLOCK + 3], keep=False)
    assert np.array_equal(whole[BLOCK - 2 : BLOCK + 3], part)
    net = mlp([3, 33, 20, 5]).double()
    start = 0
    for p in net.parameters():
        p.data = torch.as_tensor(parameters[start : start + p.numel()]).view(p.shape).double()
        start += p.numel()
    with torch.no_grad():
        exact = net(torch.as_tensor(x).double()).numpy()
    np.testing.assert_allclose(whole, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_steps_are_those_of_torch() -> None:
    """Also of gradients that are shortened."""
    torch.manual_seed(0)
    one, other = (nn.Parameter(torch.randn(n)) for n in (30, 7))
    plain = torch.cat([one, other]).detach().clone()
    state, count = [torch.zeros(37) for _ in range(3)], torch.zeros(())
    with flattened([one, other]) as flats:
        ours = AdamW(flats, clip=5.0)
        for step in range(20):
            gradient = torch.randn(37) * 10.0 ** (1 - step / 4)
            rate = 1e-2 / (step + 1)
            ours.step([gradient.clone()], rate)
            shorter = gradient * min(1.0, 5.0 / (float(gradient.norm()) + 1e-6))
            adam(
                [plain], [shorter], *([s] for s in state), [count], foreach=False, amsgrad=True,
                beta1=0.9, beta2=0.999, lr=rate, weight_decay=0.0, eps=1e-8, maximize=False,
            )  # fmt: skip
    torch.testing.assert_close(torch.cat([one, other]).detach(), plain, rtol=1e-6, atol=1e-7)
    memory = {p.untyped_storage().data_ptr() for p in (one, other)}
    assert len(memory) == 2  # apart again, as files of tensors want it


SHORT = Schedule(epochs=4, batch=101, learning_rate=1e-2)


class Own(MacroscopicSDE):
    """The same equations under another name of a method: torch's graph."""

    def _rate(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        return super()._rate(x, *context)


def test_kernels_learn_what_the_graph_learns() -> None:
    data = pairs(1000, 2, 3, 1)
    logs, finals = [], []
    for kind in (MacroscopicSDE, Own, MacroscopicSDE):
        sde = sde_of(data)
        sde.__class__ = kind
        assert (compiled(sde, data) is None) == (kind is Own)
        logs.append(fit(sde, data, seed=0, schedule=SHORT))
        finals.append(flat(list(sde.parameters())))
    np.testing.assert_allclose(logs[0].train, logs[1].train, rtol=1e-4)
    np.testing.assert_allclose(logs[0].validation, logs[1].validation, rtol=1e-4)
    np.testing.assert_allclose(finals[0], finals[1], atol=1e-3)
    assert np.array_equal(finals[0], finals[2])
    assert logs[0] == logs[2]


def test_what_was_changed_is_left_to_torch() -> None:
    data = pairs(20, 2, 1, 0)
    frozen, other, wide, hooked = (sde_of(data) for _ in range(4))
    next(iter(frozen.parameters())).requires_grad_(False)
    other.drift_net[1] = nn.Tanh()
    wide.double()
    hooked.sigma_net[0].register_forward_hook(lambda *_: None)
    assert compiled(sde_of(data), data) is not None
    for sde in (frozen, other, wide, hooked):
        assert compiled(sde, data) is None
    other.extra = nn.Linear(2, 2)
    assert compiled(other, data) is None


def test_training_does_not_load_the_compiler_of_torch() -> None:
    """Which takes seconds, and was imported by the first optimizer of torch."""
    script = (
        "import sys, numpy as np, mpiflow\n"
        "from mpiflow.learn.closure.model import fit_sde\n"
        "from mpiflow.learn.training import Schedule, fit, mlp\n"
        "z = np.random.default_rng(0).normal(size=(64, 2))\n"
        "fit_sde((z, -0.1 * z[:, None], np.full((64, 1), 0.1)), 1.0, width=8, seed=0,\n"
        "        schedule=Schedule(epochs=1, batch=32))\n"
        "class Plain(mlp([2, 1]).__class__):\n"
        "    def forward(self, x): return super().forward(x)[:, 0] ** 2\n"
        "fit(Plain(*mlp([2, 1])), (z,), seed=0, schedule=Schedule(epochs=1, batch=32))\n"
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


@pytest.mark.mpi
def test_ranks_give_the_result_of_one(comm: MPI.Intracomm) -> None:
    """Batches of 101 samples do not divide by the ranks."""
    data = pairs(700, 2, 1, 0)
    alone, together = sde_of(data), sde_of(data)
    reference = fit(alone, data, seed=3, schedule=SHORT)
    log = fit(together, data, seed=3, schedule=SHORT, comm=comm)
    np.testing.assert_allclose(log.train, reference.train, rtol=1e-4)
    np.testing.assert_allclose(log.validation, reference.validation, rtol=1e-4)
    everywhere = comm.allgather(flat(list(together.parameters())))
    assert all(np.array_equal(w, everywhere[0]) for w in everywhere)
