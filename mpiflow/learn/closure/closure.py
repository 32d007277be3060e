r"""Closure variables: what the observables leave out of the local statistics.

The generator of Glauber dynamics acts on a configuration only through the
densities of the ten rate classes (spin, neighbour sum),

.. math:: f_c(x_I) = \frac{1}{|I'|} \#\{ i \in I' : (s_i, k_i) \in c \},

with I' the sites of patch I whose neighbours lie in I: the drift of the
magnetisation and of the domain walls is linear in them. They are the part of
the configuration that the macroscopic dynamics needs, so the autoencoder
reconstructs them instead of the spins (of which four intensive numbers can
tell little more than the mean):

.. math:: \hat\varphi(x) = \frac1K \sum_I e_\theta(f(x_I)), \qquad
          L = E \, \| \psi_\theta(z^*, \hat\varphi(x)) - \bar f(x) \|_W^2,
          \qquad \bar f = \frac1K \sum_I f(x_I).

The encoder is translation invariant and sees one patch at a time, as equation
(1) of arXiv:2511.12842 asks; W weights each class by its inverse variance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from mpiflow.learn.closure.reconstruction import ReconstructionLoss
from mpiflow.learn.training import all_learned, mlp, sizes_of
from mpiflow.systems.ising import CLASSES

#: Magnetisation and domain-wall density.
OBSERVABLES = 2


class ClosureAutoencoder(nn.Module):
    """Patch encoder (mean over the patches) and decoder.

    Parameters
    ----------
    closures : number of closure variables
    width : units of the two hidden layers of either network
    statistics : numbers that say what a patch is like; by default the densities of the classes
    observables : how many there are
    """

    class_mean: torch.Tensor
    class_std: torch.Tensor
    patch_std: torch.Tensor
    observable_mean: torch.Tensor
    observable_std: torch.Tensor

    def __init__(
        self,
        closures: int = 2,
        width: int = 32,
        statistics: int = CLASSES,
        observables: int = OBSERVABLES,
    ) -> None:
        super().__init__()
        self.closures, self.width = closures, width
        self.encoder = mlp([statistics, width, width, closures])
        self.decoder = mlp([observables + closures, 2 * width, 2 * width, statistics])
        self.register_buffer("class_mean", torch.zeros(statistics))
        self.register_buffer("class_std", torch.ones(statistics))
        self.register_buffer("patch_std", torch.ones(statistics))
        self.register_buffer("observable_mean", torch.zeros(observables))
        self.register_buffer("observable_std", torch.ones(observables))

    def set_scales(self, densities: np.ndarray, observables: np.ndarray) -> None:
        """Standardise inputs and targets by the training set's mean and spread.

        Parameters
        ----------
        densities : (B, K, 10) class densities of the patches
        observables : (B, 2)
        """
        whole = densities.mean(axis=1)
        for buffer, value in (
            (self.class_mean, whole.mean(axis=0)),
            (self.class_std, np.maximum(whole.std(axis=0), 1e-6)),
            (self.patch_std, np.maximum(densities.std(axis=(0, 1)), 1e-6)),
            (self.observable_mean, observables.mean(axis=0)),
            (self.observable_std, np.maximum(observables.std(axis=0), 1e-6)),
        ):
            buffer.copy_(torch.as_tensor(value))

    def encode(self, densities: torch.Tensor) -> torch.Tensor:
        """Closures of single patches: (..., 10) class densities to (..., closures)."""
        out: torch.Tensor = self.encoder((densities - self.class_mean) / self.patch_std)
        return out

    def forward(self, densities: torch.Tensor, observables: torch.Tensor) -> torch.Tensor:
        """Reconstruction loss of each state: (B, K, 10), (B, 2) to (B,)."""
        closures = self.encode(densities).mean(dim=1)
        scaled = (observables - self.observable_mean) / self.observable_std
        decoded = self.decoder(torch.cat([scaled, closures], dim=1))
        target = (densities.mean(dim=1) - self.class_mean) / self.class_std
        return ((decoded - target) ** 2).mean(dim=1)

    def compiled_loss(self, data: Sequence[torch.Tensor]) -> ReconstructionLoss | None:
        """The loss of :meth:`forward` by kernels, see :meth:`mpiflow.learn.sde.MacroscopicSDE`."""
        own = type(self)
        if (own.forward, own.encode) != (ClosureAutoencoder.forward, ClosureAutoencoder.encode):
            return None
        encoder, decoder = sizes_of(self.encoder), sizes_of(self.decoder)
        if encoder is None or decoder is None or not all_learned(self, self.encoder, self.decoder):
            return None
        densities, observables = data
        with torch.no_grad():
            patches = (densities - self.class_mean) / self.patch_std
            target = (densities.mean(dim=1) - self.class_mean) / self.class_std
            scaled = (observables - self.observable_mean) / self.observable_std
        arrays = patches.numpy(), scaled.numpy(), target.numpy()
        return ReconstructionLoss(np.array(encoder), np.array(decoder), *arrays)
