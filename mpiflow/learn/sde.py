r"""The macroscopic SDE and its loss on partially evolved pairs.

.. math:: dz = \mu(z)\,dt + \Sigma^{1/2}(z)\,dB.

For a pair with increment :math:`\Delta` over :math:`\delta t`, of which only one of
K patches evolved (arXiv:2511.12842, equation (7)),

.. math:: L_p = r^T S^{-1} r + \log\det S, \qquad
          r = \Delta - \mu\,\delta t, \qquad S = \lambda\,\Sigma\,\delta t,

with :math:`\lambda = K` by theory and :math:`\lambda = 1` for the naive baseline. We
parametrise the Cholesky factor of Sigma with a diagonal bounded below by a small
floor. The floor is part of Sigma, so training and prediction use the same
covariance (the published code adds an unscaled eps to S in training and drops
it in prediction).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mpiflow.learn import devices
from mpiflow.learn.likelihood import FLOOR, SHIFT, PairLoss, Pairs, Scales
from mpiflow.learn.noise import Normals
from mpiflow.learn.paths import Law, Leaving, law_of, walk
from mpiflow.learn.training import all_learned, mlp, sizes_of

#: Trajectories that a network evaluates together. Fixed, so that a trajectory's
#: bits do not depend on how an ensemble is spread over ranks.
CHUNK = 1024
#: The same on a GPU, whose bits are not promised: as many as keep it busy.
FAR_CHUNK = 2**17
#: Excess of a variance that a step may make before a rollout warns, and states that tell it.
MOST_EXCESS, SLOPES = 0.05, 64


def _look(leaving: Leaving, step: int, start: int, moved: torch.Tensor, held: torch.Tensor) -> int:
    """Note who left; of states on a GPU only if any did, for these go to the CPU for it."""
    if not moved.is_cpu and bool((moved == held).all()):
        return 0
    return leaving.look(step, start, moved.cpu().numpy(), held.cpu().numpy())


class LearnedSDE(nn.Module):
    """Scales, loss and rollouts of an SDE; a subclass supplies drift and diffusion.

    It works on standardised latents x = (z - mean) / std. The networks may depend on a
    context c besides x, numbers that a trajectory keeps, such as its temperature.

    Parameters
    ----------
    dim : number of latent variables
    factor : lambda, the covariance factor of the loss
    """

    rows: torch.Tensor
    columns: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    noise: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    #: Trajectories that the networks evaluate together.
    chunk = CHUNK
    #: Of the latents, for what is said about them.
    names: tuple[str, ...] = ()

    def __init__(self, dim: int, factor: float = 1.0) -> None:
        super().__init__()
        self.dim, self.factor = dim, factor
        rows, columns = np.tril_indices(dim)
        self.register_buffer("rows", torch.as_tensor(rows), persistent=False)
        self.register_buffer("columns", torch.as_tensor(columns), persistent=False)
        for name in ("mean", "std", "noise", "low", "high"):
            self.register_buffer(name, torch.ones(dim))

    def _rate(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        """Drift of the standardised latents, dx/dt: (B, d), (B, c) to (B, d)."""
        raise NotImplementedError

    def _entries(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        """Lower triangle of the diffusion before scaling: (B, d), (B, c) to (B, d (d + 1) / 2)."""
        raise NotImplementedError

    def _noise(self, *context: torch.Tensor) -> torch.Tensor:
        """Unit of the noise of the standardised latents, (d,) or (B, d)."""
        return self.noise

    def set_scales(self, z: np.ndarray, increments: np.ndarray, dt: np.ndarray) -> None:
        """Standardise by the training pairs: (N, d), (N, P, d), (N, P), see :meth:`forward`."""
        std = np.maximum(z.std(axis=0), 1e-8)
        rate = increments / std / np.sqrt(self.factor * dt)[..., None]
        margin = 0.1 * (z.max(axis=0) - z.min(axis=0))
        for buffer, value in (
            (self.mean, z.mean(axis=0)),
            (self.std, std),
            (self.noise, np.maximum(rate.std(axis=(0, 1)), 1e-8)),
            (self.low, z.min(axis=0) - margin),
            (self.high, z.max(axis=0) + margin),
        ):
            buffer.copy_(torch.as_tensor(value))

    def validity(self) -> dict[str, list[float]]:
        """Range in which a rollout is held: that of the training data, widened by a tenth."""
        ends = zip(self.low.tolist(), self.high.tolist(), strict=True)
        return dict(zip(self._named(), map(list, ends), strict=True))

    def _named(self) -> tuple[str, ...]:
        return self.names or tuple(f"latent {i + 1}" for i in range(self.dim))

    def _standard(self, z: torch.Tensor) -> torch.Tensor:
        return (z - self.mean) / self.std

    def drift(self, z: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        """mu(z), latent units per unit time, (B, d)."""
        return self.std * self._rate(self._standard(z), *context)

    def _scaled_cholesky(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        """Cholesky factor of Sigma in units of std and noise, (B, d, d)."""
        entries = self._entries(x, *context)
        factor = entries.new_zeros(*entries.shape[:-1], self.dim, self.dim)
        factor[..., self.rows, self.columns] = entries
        diagonal = torch.diagonal(factor, dim1=-2, dim2=-1)
        positive = nn.functional.softplus(diagonal + SHIFT) + FLOOR
        return torch.tril(factor, -1) + torch.diag_embed(positive)

    def cholesky(self, z: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        """Lower triangular L with Sigma(z) = L L^T, latent units, (B, d, d)."""
        scale = self.std * self._noise(*context)
        return scale[..., None] * self._scaled_cholesky(self._standard(z), *context)

    def forward(
        self, z: torch.Tensor, increments: torch.Tensor, dt: torch.Tensor, *context: torch.Tensor
    ) -> torch.Tensor:
        """The loss of each state, without the constant terms, mean over its P pairs.

        Shapes (B, d), (B, P, d), (B, P), and (B, c) where there is a context, to (B,).
        Pairs that share a state share one evaluation of the networks.
        """
        x = self._standard(z)
        time = dt[..., None]
        residual = increments / self.std - self._rate(x, *context)[:, None] * time
        unit = self._noise(*context)
        scaled = residual / (self.factor * time).sqrt() / unit.reshape(-1, 1, self.dim)
        factor = self._scaled_cholesky(x, *context)
        white = torch.linalg.solve_triangular(factor, scaled.mT, upper=False)
        log_det = torch.diagonal(factor, dim1=-2, dim2=-1).log().sum(dim=-1)
        # The unit is not learned: leaving out its logarithm changes no gradient.
        return (white**2).sum(dim=1).mean(dim=1) + 2.0 * log_det

    @torch.no_grad()
    def white(
        self,
        z: np.ndarray,
        increments: np.ndarray,
        dt: np.ndarray,
        context: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Residuals and drifts of pairs in units of their noise, both (B, P, d) float64.

        :math:`(\lambda \delta t \Sigma)^{-1/2}` times :math:`\Delta - \mu\,\delta t` and
        :math:`\mu\,\delta t`, with the inverse of the Cholesky factor; shapes as of
        :meth:`forward`. :mod:`mpiflow.learn.pair_goodness` says what the residuals of a law that
        holds are like.
        """
        self.eval()
        at, step, time = (self.mean.new_tensor(a) for a in (z, increments, dt))
        given = () if context is None else (self.mean.new_tensor(context),)
        drift = self.drift(at, *given)[:, None] * time[..., None]
        factor = self.cholesky(at, *given)
        unit = (self.factor * time[..., None]).sqrt()
        rest, moved = (
            torch.linalg.solve_triangular(factor, (a / unit).mT, upper=False).mT.double().numpy()
            for a in (step - drift, drift)
        )
        return rest, moved

    @torch.no_grad()
    def relaxation(self, z: np.ndarray, context: np.ndarray | None = None) -> float:
        """The fastest rate at which latents return, from the slope of the drift; 0 or more.

        The mean over states (B, d) of the largest real part of minus its eigenvalues. Steps of
        Euler and Maruyama make the stationary variance of such a direction 1 / (1 - rate dt / 2)
        times as large, and are unstable from rate dt = 2 on.
        """
        self.eval()
        some = slice(0, SLOPES)
        at = self.mean.new_tensor(np.asarray(z)[some])
        given = () if context is None else (self.mean.new_tensor(np.asarray(context)[some]),)
        columns = []
        for i in range(self.dim):
            shift = torch.zeros_like(at)
            shift[:, i] = 0.02 * self.std[i]
            ends = [self.drift(at + side * shift, *given) for side in (1, -1)]
            columns.append((ends[0] - ends[1]) / (2 * shift[:, i : i + 1]))
        slopes = torch.stack(columns, dim=-1).double().numpy()
        rates = -np.linalg.eigvals(slopes).real.min(axis=-1)
        return max(0.0, float(rates.mean()))

    def _warn_of_step(self, z0: np.ndarray, dt: float, context: np.ndarray | None) -> None:
        if not len(z0):
            return
        excess = 0.5 * dt * self.relaxation(z0, context)
        if excess > MOST_EXCESS:
            much = f"{excess / (1 - excess):.0%} too large" if excess < 1 else "without bound"
            warnings.warn(
                f"dt={dt:g} is long for this model: its fastest latent returns at the rate "
                f"{2 * excess / dt:.3g}, so that steps of Euler and Maruyama make its variance "
                f"about {much}. Use dt of {2 * MOST_EXCESS * dt / (2 * excess):.2g} or less",
                UserWarning, stacklevel=3,
            )  # fmt: skip

    @torch.no_grad()
    def rollout(
        self,
        z0: np.ndarray,
        members: np.ndarray,
        *,
        dt: float,
        steps: int,
        save: np.ndarray,
        seed: int,
        context: np.ndarray | None = None,
        noise: float = 1.0,
        clock: np.ndarray | float = 1.0,
    ) -> tuple[np.ndarray, int]:
        """Euler-Maruyama trajectories, ``z <- z + mu dt + L sqrt(dt) xi``.

        Noise is keyed by (member, step, component). States are held inside the
        range of the training data (widened by a tenth); how often that was needed
        is returned, because it should be never, and a warning
        (:class:`~mpiflow.learn.paths.OutsideData`) says when it was first.
        Warns if dt is so long that variances are more than 5 % off, see :meth:`relaxation`.

        Parameters
        ----------
        z0 : (B, d) initial latents
        members : (B,) noise keys
        save : increasing step numbers to keep, 0 to ``steps``
        context : (B, c), for networks that have one
        noise : factor of L
        clock : what a unit of time is called in a warning, one number or (B,)

        Returns
        -------
        trajectories (len(save), B, d) float64, number of clipped states
        """
        self._warn_of_step(z0, dt, context)
        duration = dt * np.broadcast_to(clock, len(z0))
        self.eval()
        device = devices.here()
        law = self._law() if device == devices.CPU else None
        if law is not None:
            path, leaving, held = walk(
                law, z0, context, members, dt=dt, noise=noise, steps=steps, save=save, seed=seed
            )
            leaving.warn(self.validity(), duration)
            return path, held
        leaving = Leaving(len(z0))
        out = np.empty((len(save), *z0.shape))
        clipped = 0
        size = self.chunk if device == devices.CPU else min(len(z0), FAR_CHUNK)

        def put(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=self.mean.dtype).to(device)

        with devices.placed(self, device):
            for start in range(0, len(z0), max(1, size)):
                chunk = slice(start, min(start + size, len(z0)))
                count = chunk.stop - chunk.start
                z = put(np.resize(z0[chunk], (size, self.dim)))
                given: tuple[torch.Tensor, ...] = ()
                if context is not None:
                    given = (put(np.resize(context[chunk], (size, context.shape[1]))),)
                keys = np.resize(members[chunk], size)
                noises = Normals(seed, "sde", keys, self.dim, device, self.mean.dtype)
                kept = 0
                _look(leaving, 0, start, z[:count], self._held(z[:count]))
                for step in range(steps + 1):
                    if kept < len(save) and save[kept] == step:
                        out[kept, chunk] = z[:count].cpu().numpy()
                        kept += 1
                    if step == steps:
                        break
                    kick = self.cholesky(z, *given) @ noises.at(step)[..., None]
                    moved = z + self.drift(z, *given) * dt + kick[..., 0] * (noise * dt**0.5)
                    z = self._held(moved)
                    clipped += _look(leaving, step + 1, start, moved[:count], z[:count])
        leaving.warn(self.validity(), duration)
        return out, clipped

    def _law(self) -> Law | None:
        """This SDE for kernels, where they compute what it is; None where they do not."""
        return None

    def _held(self, z: torch.Tensor) -> torch.Tensor:
        """States inside the widened range of the training data."""
        return torch.minimum(torch.maximum(z, self.low), self.high)

    def rollout_at(
        self,
        z0: np.ndarray,
        members: np.ndarray,
        times: np.ndarray,
        *,
        dt: float,
        seed: int,
        context: np.ndarray | None = None,
        noise: float = 1.0,
        clock: np.ndarray | float = 1.0,
    ) -> tuple[np.ndarray, int]:
        """Trajectories of :meth:`rollout` at any times, interpolated between its steps.

        Parameters
        ----------
        times : (n,), or (n, B) for different times of each trajectory

        Returns
        -------
        trajectories (n, B, d) float64, number of clipped states
        """
        place = np.asarray(times) / dt
        # A time that is a step up to rounding is that step.
        place = np.where(np.abs(place - np.rint(place)) < 1e-6, np.rint(place), place)
        place = place[:, None] if place.ndim == 1 else place
        before, weight = np.floor(place).astype(int), (place % 1.0)[..., None]
        save = np.unique(np.concatenate([before, before + (weight[..., 0] > 0)]))
        path, clipped = self.rollout(
            z0,
            members,
            dt=dt,
            steps=int(save[-1]),
            save=save,
            seed=seed,
            context=context,
            noise=noise,
            clock=clock,
        )
        index = np.searchsorted(save, before)
        after = np.minimum(index + 1, len(save) - 1)
        each = np.arange(len(z0))
        left, right = path[index, each], path[after, each]
        return np.where(weight > 0, (1.0 - weight) * left + weight * right, left), clipped


class MacroscopicSDE(LearnedSDE):
    """Drift and full diffusion networks on standardised latents.

    Parameters
    ----------
    dim : number of latent variables
    width : units of the three hidden layers of either network
    factor : lambda, the covariance factor of the loss
    context : how many numbers the networks depend on besides, such as a temperature
    """

    context_mean: torch.Tensor
    context_std: torch.Tensor

    def __init__(self, dim: int, width: int = 64, factor: float = 1.0, context: int = 0) -> None:
        super().__init__(dim, factor)
        self.width, self.context = width, context
        inputs = dim + context
        self.drift_net = mlp([inputs, width, width, width, dim], zero_last=True)
        self.sigma_net = mlp([inputs, width, width, width, dim * (dim + 1) // 2], zero_last=True)
        if context:
            self.register_buffer("context_mean", torch.zeros(context))
            self.register_buffer("context_std", torch.ones(context))

    def set_context(self, values: np.ndarray) -> None:
        """Standardise the context by that of the training pairs, (N, c)."""
        spread = values.std(axis=0)
        self.context_mean.copy_(torch.as_tensor(values.mean(axis=0)))
        self.context_std.copy_(torch.as_tensor(np.where(spread > 0, spread, 1.0)))

    def _inputs(self, x: torch.Tensor, context: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if not self.context:
            return x
        return torch.cat([x, (context[0] - self.context_mean) / self.context_std], dim=-1)

    def _rate(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.drift_net(self._inputs(x, context))
        return out

    def _entries(self, x: torch.Tensor, *context: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.sigma_net(self._inputs(x, context))
        return out

    def _networks(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Sizes of the two networks, if kernels compute what this model is; None if they do not."""
        if any(getattr(type(self), n) is not getattr(MacroscopicSDE, n) for n in _EQUATIONS):
            return None
        drift, sigma = sizes_of(self.drift_net), sizes_of(self.sigma_net)
        if drift is None or sigma is None or self._forward_hooks or self._forward_pre_hooks:
            return None
        return np.array(drift), np.array(sigma)

    def _scales(self) -> Scales:
        """Units for kernels."""
        means, stds = [self.mean], [self.std]
        if self.context:
            means, stds = [*means, self.context_mean], [*stds, self.context_std]
        mean, std, noise = (torch.cat(a).double().numpy() for a in (means, stds, [self.noise]))
        return Scales(mean, std, noise, float(self.factor))

    @torch.no_grad()
    def _law(self) -> Law | None:
        sizes = self._networks()
        if sizes is None:
            return None
        nets = (self.drift_net, self.sigma_net)
        drift, sigma = (torch.cat([p.reshape(-1) for p in n.parameters()]).numpy() for n in nets)
        low, high = self.low.numpy(), self.high.numpy()
        return law_of(sizes, (drift, sigma), self._scales(), low, high)

    def compiled_loss(self, data: Sequence[torch.Tensor]) -> PairLoss | None:
        """The loss of :meth:`forward` by kernels, for :func:`mpiflow.learn.training.fit`.

        None for a subclass with other equations, and for a model that was changed: networks that
        are not of :func:`~mpiflow.learn.training.mlp`, hooks, other types or devices, parameters
        besides or that are not learned.
        """
        sizes = self._networks()
        if sizes is None or not all_learned(self, self.drift_net, self.sigma_net):
            return None
        z, increments, dt, *context = (t.contiguous().numpy() for t in data)
        given = context[0] if context else np.empty((len(z), 0), np.float32)
        return PairLoss(*sizes, Pairs(z, increments, dt, given), self._scales())


#: What says how a model is computed: where a subclass has others, torch computes it.
_EQUATIONS = (
    "forward", "_rate", "_entries", "_inputs", "_noise", "_standard", "_scaled_cholesky", "drift",
    "cholesky",
)  # fmt: skip
