r"""Training of :class:`~mpiflow.learn.generator.model.Generator`: loss (19), instruments, rollouts.

**Newton.** For a given law, rates are a function of linear combinations of known fields
:math:`\varphi_p * m`. All weights and constants solve the estimating equations

.. math:: \sum Z_p\,(r - F) = 0, \qquad Z_p = \frac{\partial F}{\partial \theta_p}(\zeta),
          \qquad r = \dot m_\mathrm{obs},

which for :math:`\zeta = m` are those of least squares, loss (19). With instruments, values of
the field with errors of their own, the attenuation of the slopes by errors of m drops out. The
sums over all fields cost two transforms a field; their Jacobian :math:`\sum Z_p F_q` is taken
from some of the fields, which does not move the solution.

**Increments** over an interval dt: r is compared with :math:`(\Phi_{dt}(m) - m) / dt`, with
:math:`\Phi` the flow of the model itself, not with F. This makes the conditional mean of
microscopic increments exact to the order of the fluctuations (:mod:`mpiflow.learn.generator.data`).

**Errors.** Runs are independent: :math:`\mathrm{cov} = H^{-1} (\sum_i s_i s_i^T) H^{-T}` with
the sums s_i over each run, the bootstrap over runs to first order. It does not hold the bias
that smoothing has, nor that of a kernel that is not among the phi_p.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from mpiflow.core import noise
from mpiflow.core.errors import InputError
from mpiflow.learn.generator.data import FieldData, Rates
from mpiflow.learn.generator.goodness import judge
from mpiflow.learn.generator.model import CONSTANTS, DOUBLE, Generator, in_gauge

#: Fields at a time; fields that the Jacobian is taken from.
CHUNK, JACOBIAN = 32, 96
#: Points it is taken from for a law of unknown form, which depends on few points with large values.
ALL = 20_000_000
#: Steps before the smoothing is chosen; weight of G^2, which only keeps matrices regular.
SETTLED, RIDGE = 5, 1e-9
#: A Jacobian serves for further steps once they are shorter than this.
REUSED = 0.02


@dataclass(frozen=True)
class Solution:
    """What :func:`solve` found.

    Attributes
    ----------
    covariance : (P + k, P + k), of weights and constants, by runs
    residual : root mean square of r - F
    steps : Newton steps taken
    """

    covariance: np.ndarray
    residual: float
    steps: int


def features(model: Generator, m: np.ndarray) -> np.ndarray:
    """The fields phi_p * m of fields (n, M, M): (n, P, M, M)."""
    hats = np.fft.rfft2(model.basis).real
    return np.fft.irfft2(np.fft.rfft2(m)[:, None] * hats, s=m.shape[-2:])


def conditions(rates: Rates, some: np.ndarray | slice) -> tuple[torch.Tensor, torch.Tensor]:
    """beta and h of some fields, (n, 1, 1)."""
    beta, h = (torch.as_tensor(v[some], dtype=DOUBLE) for v in (rates.beta, rates.field))
    return beta[:, None, None], h[:, None, None]


def _scores(model: Generator, rates: Rates) -> tuple[np.ndarray, float]:
    """Sums Z (r - F) of each field, (n, P + k), and the mean of (r - F)^2."""
    symbol = model.symbol().detach()
    transforms = np.fft.rfft2(model.basis).real
    # A sum over rfft2's half of the spectrum counts inner columns twice.
    twice = np.full(model.points // 2 + 1, 2.0)
    twice[0] = 1.0
    if model.points % 2 == 0:
        twice[-1] = 1.0
    half = torch.as_tensor((transforms * twice).reshape(len(transforms), -1)) / model.points**2
    out, total = [], 0.0
    with torch.no_grad():
        for start in range(0, len(rates.state), CHUNK):
            some = slice(start, start + CHUNK)
            m, r = torch.as_tensor(rates.state[some]), torch.as_tensor(rates.rate[some])
            beta, h = conditions(rates, some)
            value, slope, by_constants = model.slopes(model.drive(m, symbol), m, beta, h)
            if rates.interval > 0:
                value = (model.flow(m, beta, h, rates.interval, 1) - m) / rates.interval
            r = r - value
            z = m
            if rates.instrument is not rates.state:
                z = torch.as_tensor(rates.instrument[some])
                _, slope, by_constants = model.slopes(model.drive(z, symbol), z, beta, h)
            product = (torch.fft.rfft2(r * slope) * torch.fft.rfft2(z).conj()).real
            sums = np.zeros((len(z), len(half) + len(model.constants)))
            sums[:, : len(half)] = (product.reshape(len(z), -1) @ half.T).numpy()
            slots = len(half) + model.slots(beta, h)
            for i, c in enumerate(by_constants):
                sums[np.arange(len(z)), slots[:, i]] = torch.einsum("nij,nij->n", r, c).numpy()
            out.append(sums)
            total += float((r * r).sum())
    return np.concatenate(out), total / rates.state.size


def _jacobian(model: Generator, rates: Rates) -> np.ndarray:
    """The sum of Z_p F_q over all fields, estimated from some of them."""
    count = JACOBIAN if model.network is None else ALL // model.points**2
    chosen = np.unique(np.linspace(0, len(rates.state) - 1, count).astype(int))
    symbol = model.symbol().detach()

    def rows(field: np.ndarray, i: int) -> np.ndarray:
        beta, h = conditions(rates, slice(i, i + 1))
        m = torch.as_tensor(field[i : i + 1])
        _, slope, by_constants = model.slopes(model.drive(m, symbol), m, beta, h)
        parts = [(features(model, field[i : i + 1]) * slope.numpy()[:, None])[0]]
        parts += [c.numpy() for c in by_constants]
        return np.concatenate(parts).reshape(-1, field[i].size)

    p = len(model.weights)
    total = np.zeros((p + len(model.constants),) * 2)
    for i in chosen:
        own = rows(rates.state, i)
        same = rates.instrument is rates.state
        at = [*range(p), *(p + model.slots(*conditions(rates, slice(i, i + 1)))[0])]
        total[np.ix_(at, at)] += (own if same else rows(rates.instrument, i)) @ own.T
    return total * (len(rates.state) / len(chosen))


def _laplacian(kernels: np.ndarray) -> np.ndarray:
    """The lattice Laplacian of kernels (P, M, M)."""
    around = [np.roll(kernels, by, axis) for by in (1, -1) for axis in (-2, -1)]
    return np.asarray(sum(around)) - 4.0 * kernels


def solve(
    model: Generator,
    rates: Rates,
    *,
    smoothing: float | None = None,
    steps: int = 30,
    tolerance: float = 1e-7,
    judged: bool = True,
) -> Solution:
    r"""Set kernel and constants (of a network: the kernel only) by Newton steps.

    The model's card says how well it fits, with a warning if it does not
    (:mod:`mpiflow.learn.generator.goodness`).

    Parameters
    ----------
    smoothing : weight of :math:`\sum_x (\Delta G)^2` against the data, in units of that of the
        weight of delta: what the data do not show is as smooth as can be. By default it is what
        makes the data most likely [MacKay, Neural Computation 4, 415 (1992)]: none without noise
    tolerance : of the last step, relative to the weights
    judged : False where a law is still to come

    Raises
    ------
    InputError : the steps do not converge
    """
    p, k = len(model.weights), len(model.constants)
    if model.prior == "linear" and len(np.unique(rates.beta)) > 1:
        raise InputError(
            "temperature", "several", "one for the linear form", "Select runs, or use strong."
        )
    if model.network is not None:  # hold the gauge: it is bound to the law
        with torch.no_grad():
            model.weights.copy_(model.own_weights())
    flat = model.basis.reshape(p, -1)
    rough = _laplacian(model.basis).reshape(p, -1)
    gram, curvature = np.zeros((2, p + k, p + k))
    gram[:p, :p], curvature[:p, :p] = flat @ flat.T, rough @ rough.T
    free = np.eye(p + k)
    if model.network is not None:
        gauge = scipy.linalg.null_space(np.stack([model.sums, model.centres]))
        free = scipy.linalg.block_diag(gauge, np.eye(k))
    elif model.prior == "linear" and not rates.field.any():
        free = free[:, :-1]  # D is not known
    done, weight, size = 0, 0.0, 1.0
    for done in range(1, steps + 1):
        scores, square = _scores(model, rates)
        if size > REUSED:
            whole = _jacobian(model, rates)
            # Constants that the data do not show stay where they are.
            whole[p:, p:] += np.diag(RIDGE * np.diag(whole)[p:])
        jacobian = whole
        unit = float(model.delta @ jacobian[:p, :p] @ model.delta)
        theta = torch.cat([model.weights, model.constants]).detach().numpy()
        if smoothing is not None:
            weight = smoothing * unit
        elif done > SETTLED:
            inner = free.T @ (jacobian + RIDGE * unit * gram + weight * curvature) @ free
            used = np.trace(np.linalg.solve(inner, free.T @ (weight * curvature) @ free))
            known = max(1.0, free[:p].shape[1] - k - float(used))
            weight = square * known / float(theta @ curvature @ theta)
        penalty = RIDGE * unit * gram + weight * curvature
        jacobian = free.T @ (jacobian + penalty) @ free
        wanted = free.T @ (scores.sum(axis=0) - penalty @ theta)
        change = free @ np.linalg.solve(jacobian, wanted)
        # Far from the solution the tanh must not saturate.
        reach = abs(change[:p] @ flat).sum() / 2
        change /= max(1.0, reach)
        with torch.no_grad():
            model.weights.add_(torch.as_tensor(change[:p]))
            model.constants.add_(torch.as_tensor(change[p:]))
        size = float(np.linalg.norm(change[:p]) / np.linalg.norm((theta + change)[:p]))
        if size < tolerance and (smoothing is not None or done > SETTLED + 1):
            break
    if not np.isfinite(size) or size > 1e-2:
        raise InputError(
            "smoothing", smoothing, "one for which Newton converges", "Use more of it, or of data."
        )
    scores, residual = _scores(model, rates)
    runs = np.stack([scores[rates.run == i].sum(axis=0) for i in np.unique(rates.run)])
    runs = (runs - runs.mean(axis=0)) @ free
    inverse = free @ np.linalg.solve(jacobian, runs.T)
    factor = len(runs) / max(1, len(runs) - 1)
    if judged:
        model.card |= judge(model, rates)
    return Solution(factor * inverse @ inverse.T, float(np.sqrt(residual)), done)


def errors(model: Generator, solution: Solution, draws: int = 200, seed: int = 0) -> dict:
    """Standard errors of :meth:`Generator.report` and of G, from the covariance.

    Returns the constants' by name, and ``kernel``: the expected relative L2 error of G.
    """
    p = len(model.weights)
    values, vectors = np.linalg.eigh(solution.covariance)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    normal = noise.normals(seed, "sample", np.arange(draws), 0, p + len(model.constants))
    flat = model.basis.reshape(p, -1)
    own = model.own_weights().detach().numpy()
    samples = []
    for change in normal @ root.T:
        kernel = ((own + change[:p]) @ flat).reshape(model.points, -1)
        _, b, c = in_gauge(kernel)
        extra = (model.constants.detach().numpy() + change[p:]).tolist()
        centre = c if model.prior == "linear" else (c - 1) / b
        samples.append([*extra, b, b + c, centre])
    last = "C" if model.prior == "linear" else "J(0)"
    names = [*CONSTANTS[model.prior], "B", "mass", last]
    out = {}
    if model.network is None:
        out = dict(zip(names, np.std(samples, axis=0).tolist(), strict=True))
    gram = flat @ flat.T
    variance = float(np.trace(gram @ solution.covariance[:p, :p]))
    return out | {"kernel": float(np.sqrt(variance) / np.linalg.norm(own @ flat))}


def set_units(model: Generator, *points: np.ndarray) -> None:
    """Units of a network's inputs I, m, beta, h and of its output, the rate, all (n,)."""
    inputs, rate = np.stack(points[:4]), points[4]
    spread = inputs.std(axis=1)
    with torch.no_grad():
        model.shift.copy_(torch.as_tensor(inputs.mean(axis=1)))
        model.scale.copy_(torch.as_tensor(np.where(spread > 1e-9, spread, 1.0)))
        model.unit.fill_(max(float(np.std(rate)), 1e-12))


def polish(
    model: Generator, loss: Callable[[], torch.Tensor], iterations: int = 200
) -> list[float]:
    """Minimise a loss by L-BFGS in double precision on all of it; the losses seen."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=iterations,
        max_eval=2 * iterations,
        history_size=30,
        tolerance_grad=1e-12,
        tolerance_change=1e-14,
        line_search_fn="strong_wolfe",
    )
    seen: list[float] = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        seen.append(value.item())
        return value

    optimizer.step(closure)
    return seen


def rollout_loss(
    model: Generator, data: FieldData, steps: int, starts: int, seed: int = 0
) -> Callable[[], torch.Tensor]:
    """Mean square error of ``steps`` frames from ``starts`` observed ones on, by RK4."""
    runs, frames = data.fields.shape[:2]
    if not 1 <= steps < frames:
        raise InputError("steps", steps, f"1 to {frames - 1}", "Use fewer.")
    places = runs * (frames - steps)
    draw = noise.uniforms(seed, "sample", 4, 0, np.arange(places))[:, 0]
    run, frame = np.divmod(np.argsort(draw), frames - steps)
    there = np.flatnonzero(frame + steps < data.counts[run])[:starts]  # runs may be shorter
    run, frame = run[there], frame[there]
    observed = torch.as_tensor(np.stack([data.fields[run, frame + i] for i in range(steps + 1)]))
    beta, h = (
        torch.as_tensor(v[run], dtype=DOUBLE)[:, None, None]
        for v in (1.0 / data.temperature, data.field)
    )
    each = int(np.ceil(data.interval / 0.1 - 1e-9))

    def loss() -> torch.Tensor:
        m, total = observed[0], torch.zeros((), dtype=DOUBLE)
        for i in range(1, steps + 1):
            m = model.flow(m, beta, h, data.interval, each)
            total = total + ((m - observed[i]) ** 2).mean()
        return total / steps

    return loss
