"""A saved model for tests that need one: free spins that feel a short J."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mpiflow.learn.onsagerflow.model import Form, OnsagerFlow

BLOCK = 4


def save_free_law(
    folder: Path,
    *,
    temperatures: tuple[float, ...] = (0.8,),
    spins: tuple[int, ...] = (BLOCK**2,),
    largest: float = 1.0,
    rate: float = 1.0,
) -> Path:
    """kappa = rate, s' = T artanh m, J falling within 2 blocks, as if learned from blocks of 4."""
    form = Form("cosh", temperatures, mobility_terms=1, entropy_terms=0, radius=2)
    m, s, j = form.sizes()
    kernel = np.linspace(3, 1, j)
    kernel /= kernel @ form.kernel_basis(5).sum(axis=(1, 2))
    coefficients = np.concatenate([np.full(m, np.log(rate)), np.eye(s)[0], kernel])
    card = {"spins": list(spins)}
    OnsagerFlow(form, coefficients, np.zeros((m + s + j,) * 2), largest, card).save(folder)
    return folder
