r"""Magnetization and bonds of nearest-neighbour spins as two fields, learned from counts of sites.

A block of N spins has the magnetization m and the mean bond c (of :math:`s_i s_j`; the density of
domain walls is (1 - c) / 2). A spin with the neighbour sum S that flips changes them by
:math:`\mp 2 / N` and :math:`\mp S / N`, at Glauber's rate. So all that is missing are the shares of
sites by spin and S, and they are taken as those of the likeliest block with this m and c,

.. math:: n_{\pm, S} = \nu_S \frac{1 \pm \tanh(H + K S)}2, \qquad
          H = -\frac{\partial s}{\partial m}, \quad 2 K = -\frac{\partial s}{\partial c},

with an entropy s(m, c) per spin and :math:`\sum_S \nu_S = 1`. With :math:`b_S = (h + S) / T`

.. math:: \dot m = \sum_S \nu_S [\tanh b_S - \tanh(H + K S)], \qquad
          \dot c = \frac12 \sum_S S \nu_S [\tanh b_S - \tanh(H + K S)],

and flips up and down of a class have the ratio :math:`e^{2 (b_S - H - K S)} = e^{-N \Delta F}` of
detailed balance with :math:`F = -s - (h m + 2 c) / T`: noise and drift belong together.

s and :math:`\nu_S` are those of pairs [Bethe, Proc. R. Soc. A 150, 552 (1935)], which are exact for
independent spins, plus polynomials in m and 2 c - 1 that are fitted to counts. Nothing couples one
block with the next: blocks must be large beside domains and correlations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import least_squares
from scipy.special import comb, log_softmax, softmax

from mpiflow.core.errors import InputError
from mpiflow.systems.ising import CLASSES, NEIGHBOUR_SUMS

S = NEIGHBOUR_SUMS
#: Spin and neighbour sum of each class of :func:`~mpiflow.systems.ising.rate_class`.
SPIN, SUM = np.repeat([-1, 1], len(S)), np.tile(S, 2)
#: Pairs of a kind have at least this probability.
LEAST = 1e-9
#: Weights of a fit: error of a drift, relative and of one spin; error of a share.
RELATIVE, OF_A_SPIN, OF_A_SHARE, RIDGE = 0.02, 0.3, 0.1, 1e-4


def count_classes(spins: np.ndarray, block: int) -> np.ndarray:
    """Sites of each block by class, (ny, nx, 10) int64; of a periodic lattice (Ly, Lx)."""
    if spins.ndim != 2 or any(side % block for side in spins.shape):
        raise InputError("spins", spins.shape, f"sides that are multiples of {block}", "Cut it.")
    down, across = (side // block for side in spins.shape)
    out = np.empty((down, across, CLASSES), np.int64)
    place = CLASSES * (np.arange(spins.shape[1]) // block)
    for i in range(down):
        rows = spins.take(range(i * block - 1, (i + 1) * block + 1), axis=0, mode="wrap")
        here = rows[1:-1]
        sums = rows[:-2] + rows[2:] + np.roll(here, 1, axis=1) + np.roll(here, -1, axis=1)
        kind = place + ((sums + 4) // 2 + 5 * (here > 0))
        out[i] = np.bincount(kind.ravel(), minlength=across * CLASSES).reshape(across, CLASSES)
    return out


def fields_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m and c, (...), of counts (..., 10)."""
    sites = counts.sum(axis=-1)
    return counts @ SPIN / sites, counts @ (SPIN * SUM) / 4 / sites


def exact_drift(
    counts: np.ndarray, temperature: float | np.ndarray, field: float | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The mean dm/dt and dc/dt, (...), of blocks with these counts (..., 10).

    The drift of :meth:`mpiflow.systems.ising.Ising.short_time`, of blocks in different fields.
    """
    shares = counts / counts.sum(axis=-1, keepdims=True)
    drifts = np.einsum("...ij,...j->...i", _drifts_of_shares(temperature, field), shares)
    return drifts[..., 0], drifts[..., 1]


def _drifts_of_shares(temperature: float | np.ndarray, field: float | np.ndarray) -> np.ndarray:
    """What a share of sites of each class adds to dm/dt and to dc/dt, (..., 2, 10)."""
    local = SUM + np.asarray(field)[..., None]
    pull = np.tanh(local / np.asarray(temperature)[..., None]) - SPIN
    return np.stack([pull, 0.5 * pull * SUM], axis=-2)


@dataclass(frozen=True, eq=False)
class BondLaw:
    """The law of the module, of any temperature and field.

    Parameters
    ----------
    entropy_degree, share_degree : of the polynomials
    coefficients : (n,) float64, those of s, even in m, then three times those of the shares; zeros
        for the law of pairs
    """

    entropy_degree: int
    share_degree: int
    coefficients: np.ndarray

    @classmethod
    def of_pairs(cls, entropy_degree: int = 0, share_degree: int = 0) -> BondLaw:
        """With zeros."""
        law = cls(entropy_degree, share_degree, np.zeros(0))
        return cls(entropy_degree, share_degree, np.zeros(len(law._even) + 3 * len(law._all)))

    @cached_property
    def _even(self) -> list[tuple[int, int]]:
        return [(i, j) for i, j in _powers(self.entropy_degree) if i % 2 == 0 and i + j > 0]

    @cached_property
    def _all(self) -> list[tuple[int, int]]:
        return _powers(self.share_degree)

    def entropy(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        """s(m, c) per spin, but for a constant: two pairs of each spin, of which it is in four."""
        less, unlike, more = _pairs(m, c)
        of_pairs = -sum(n * p * np.log(p) for n, p in ((1, less), (2, unlike), (1, more)))
        of_spins = -sum(p * np.log(p) for p in ((1 + m) / 2, (1 - m) / 2))
        terms = [m**i * (2 * c - 1) ** j for i, j in self._even]
        added = sum((-a * t for a, t in zip(self.coefficients, terms, strict=False)), 0.0 * m)
        return np.asarray(2 * of_pairs - 3 * of_spins + added)

    def forces(self, m: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H and K, each (...)."""
        of_h, of_k = self._slopes(m, c)
        less, unlike, more = _pairs(m, c)
        a = self.coefficients[: len(self._even)]
        h = np.log(more / less) - 1.5 * np.log((1 + m) / (1 - m)) + of_h @ a
        return h, 0.25 * np.log(more * less / unlike**2) + of_k @ a

    def free_energy(
        self, m: np.ndarray, c: np.ndarray, temperature: float, field: float = 0.0
    ) -> np.ndarray:
        """F / T per spin, (...)."""
        return -self.entropy(m, c) - (field * m + 2 * c) / temperature

    def shares(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Of sites by neighbour sum, (..., 5)."""
        return np.asarray(softmax(self._logits(m, c), axis=-1))

    def flips(
        self, m: np.ndarray, c: np.ndarray, temperature: float | np.ndarray,
        field: float | np.ndarray = 0.0,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Rates of flips up and down by neighbour sum, per spin of the block, each (..., 5)."""
        h, k = self.forces(m, c)
        th = np.tanh(h[..., None] + k[..., None] * S)
        up = 0.5 + 0.5 * np.tanh(
            (S + np.asarray(field)[..., None]) / np.asarray(temperature)[..., None]
        )
        shares = self.shares(m, c) / 2
        return shares * (1 - th) * up, shares * (1 + th) * (1 - up)

    def drift(
        self, m: np.ndarray, c: np.ndarray, temperature: float | np.ndarray,
        field: float | np.ndarray = 0.0,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """dm/dt and dc/dt, each (...)."""
        up, down = self.flips(m, c, temperature, field)
        return 2 * (up - down).sum(axis=-1), (S * (up - down)).sum(axis=-1)

    def step(
        self, m: np.ndarray, c: np.ndarray, temperature: float, field: float, *, dt: float,
        sites: int, rng: np.random.Generator | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Blocks of ``sites`` spins a time dt on: midpoint rule, and Gaussian numbers of flips.

        Without ``rng`` there is no noise.
        """
        dm, dc = self.drift(m, c, temperature, field)
        up, down = self.flips(*_inside(m + dt / 2 * dm, c + dt / 2 * dc), temperature, field)
        net = dt * (up - down)
        if rng is not None:
            net += np.sqrt(dt / sites * (up + down)) * rng.standard_normal(net.shape)
        return _inside(m + 2 * net.sum(axis=-1), c + (S * net).sum(axis=-1))

    # -- fitting ------------------------------------------------------------------------------

    def _slopes(self, m: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H and K of each term of s, with the sign of the entropy's turned, (..., n)."""
        x, none = 2 * c - 1, np.zeros((*np.shape(m), 0))
        if not self._even:
            return none, none
        of_h = [i * m ** max(i - 1, 0) * x**j for i, j in self._even]
        of_k = [j * m**i * x ** max(j - 1, 0) for i, j in self._even]
        return np.stack(of_h, axis=-1), np.stack(of_k, axis=-1)

    def _logits(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        less, unlike, more = _pairs(m, c)
        low, high = unlike / (unlike + less), more / (more + unlike)
        number = np.arange(len(S))

        def given(p: np.ndarray) -> np.ndarray:
            up = p[..., None]
            return np.asarray(comb(4, number) * up**number * (1 - up) ** (4 - number))

        pairs = (1 - m[..., None]) / 2 * given(low) + (1 + m[..., None]) / 2 * given(high)
        of_terms = self._terms_of_shares(m, c)
        added = of_terms @ self.coefficients[len(self._even) :]
        return np.asarray(log_softmax(np.log(pairs) + added, axis=-1))

    def _terms_of_shares(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Derivatives of logits, (..., 5, 3 n): what m does to S, -m does to -S."""
        x = 2 * c - 1
        terms = np.stack([m**i * x**j for i, j in self._all], axis=-1)
        sign = np.array([(-1.0) ** i for i, _ in self._all])
        n = len(self._all)
        out = np.zeros((*np.shape(m), len(S), 3 * n))
        for k, of in enumerate((0, 1, 2, 1, 0)):
            turned = terms * sign if k > 2 else terms * (sign > 0) if k == 2 else terms
            out[..., k, of * n : (of + 1) * n] = turned
        return out

    def predicted(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Shares of sites by class, (..., 10)."""
        h, k = self.forces(m, c)
        th = np.tanh(h[..., None] + k[..., None] * S)
        nu = self.shares(m, c) / 2
        return np.concatenate([nu * (1 - th), nu * (1 + th)], axis=-1)

    def _jacobian(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Derivatives of :meth:`predicted` by coefficients, (..., 10, n)."""
        h, k = self.forces(m, c)
        th = np.tanh(h[..., None] + k[..., None] * S)
        nu = self.shares(m, c)
        of_h, of_k = self._slopes(m, c)
        turn = (nu * (1 - th**2) / 2)[..., None] * (
            of_h[..., None, :] + S[:, None] * of_k[..., None, :]
        )
        by_logits = self._terms_of_shares(m, c)
        moved = by_logits - (nu[..., None] * by_logits).sum(axis=-2, keepdims=True)
        here = [(nu * (1 + s * th) / 2)[..., None] * moved for s in (-1, 1)]
        return np.concatenate(
            [np.concatenate([s * turn, p], axis=-1) for s, p in zip((-1, 1), here, strict=True)],
            axis=-2,
        )


def learn_bonds(
    counts: np.ndarray,
    temperature: np.ndarray | float,
    field: np.ndarray | float,
    *,
    entropy_degree: int = 6,
    share_degree: int = 5,
    evaluations: int = 100,
) -> BondLaw:
    """The law whose shares and drifts are nearest to those counted.

    Parameters
    ----------
    counts : (n, 10) sites by class, of blocks or of sums over blocks that are alike
    temperature, field : of each, (n,), or of all
    evaluations : of the least squares, at most
    """
    counts = np.asarray(counts, float)
    sites = counts.sum(axis=-1)
    m, c = fields_of(counts)
    shares = counts / sites[:, None]
    t, h = (np.broadcast_to(value, m.shape) for value in (temperature, field))
    onto = _drifts_of_shares(t, h)
    found = np.einsum("nij,nj->ni", onto, shares)
    # A drift that is small counts as much as a large one, as far as the spins say what it is.
    large = abs(found).max(axis=1, keepdims=True)
    scale = RELATIVE * np.maximum(abs(found), 0.1 * large) + OF_A_SPIN / np.sqrt(sites)[:, None]
    of_drift = onto / (scale[..., None] * np.sqrt(len(m)))
    of_share = 1.0 / (OF_A_SHARE * np.sqrt(len(m)))
    empty = BondLaw.of_pairs(entropy_degree, share_degree)

    def law(w: np.ndarray) -> BondLaw:
        return BondLaw(entropy_degree, share_degree, w)

    def residuals(w: np.ndarray) -> np.ndarray:
        gap = law(w).predicted(m, c) - shares
        drifts = np.einsum("nij,nj->ni", of_drift, gap)
        return np.concatenate([drifts.ravel(), of_share * gap.ravel(), RIDGE * w])

    def slopes(w: np.ndarray) -> np.ndarray:
        by = law(w)._jacobian(m, c)
        drifts = np.einsum("nij,njk->nik", of_drift, by)
        n = len(w)
        return np.concatenate(
            [drifts.reshape(-1, n), of_share * by.reshape(-1, n), RIDGE * np.eye(n)]
        )

    start = empty.coefficients
    return law(least_squares(residuals, start, slopes, max_nfev=evaluations).x)


def _powers(degree: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]


def _pairs(m: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities of a pair: both down, the first alone up, both up."""
    least = [np.maximum(p, LEAST) for p in ((1 - 2 * m + c) / 4, (1 - c) / 4, (1 + 2 * m + c) / 4)]
    return least[0], least[1], least[2]


def _inside(m: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where all pairs have some probability."""
    m = np.clip(m, -1 + 4 * LEAST, 1 - 4 * LEAST)
    return m, np.clip(c, 2 * abs(m) - 1 + 4 * LEAST, 1 - 4 * LEAST)
