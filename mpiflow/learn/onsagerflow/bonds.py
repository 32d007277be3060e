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
independent spins, plus polynomials in m and log(1 - c) that are fitted to counts: the logarithm,
since few walls are left when domains have grown.

The bonds over the borders couple blocks of the side L: F has the further term
:math:`\frac{\kappa}{2 L} \sum_{\langle a b \rangle} (m_a - m_b)^2` over neighbouring blocks,
so that :math:`b_S` gains :math:`\kappa / L` times the sum of the neighbours' m less one's own. Of
independent spins :math:`\kappa` is 1 / T at high T, one of four bonds at borders; of blocks at
rest above T_c it is what their covariances say, and it is learned. Blocks must be large beside
domains and correlations.
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
RELATIVE, OF_A_SPIN, OF_A_SHARE, RIDGE = 0.02, 0.15, 0.3, 1e-5


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
    coupling : kappa of neighbouring blocks, where the law was learned
    """

    entropy_degree: int
    share_degree: int
    coefficients: np.ndarray
    coupling: float = 0.0

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

    @cached_property
    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients by powers of m and of the bonds' variable: of s, and of the shares (3)."""
        of_s = np.zeros((self.entropy_degree + 1,) * 2)
        for (i, j), a in zip(self._even, self.coefficients, strict=False):
            of_s[i, j] = a
        of_shares = np.zeros((3, *(self.share_degree + 1,) * 2))
        i, j = np.array(self._all).T
        of_shares[:, i, j] = self.coefficients[len(self._even) :].reshape(3, -1)
        of_shares[2, 1::2] = 0.0
        return of_s, of_shares

    def entropy(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        """s(m, c) per spin, but for a constant: two pairs of each spin, of which it is in four."""
        less, unlike, more = _pairs(m, c)
        of_pairs = -sum(n * p * np.log(p) for n, p in ((1, less), (2, unlike), (1, more)))
        of_spins = -sum(p * np.log(p) for p in ((1 + m) / 2, (1 - m) / 2))
        of_s, _ = self._tables
        added = _value(of_s, _rising(m, len(of_s)), _rising(_of_bonds(c)[0], len(of_s)))
        return np.asarray(2 * of_pairs - 3 * of_spins - added)

    def forces(self, m: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H and K, each (...)."""
        less, unlike, more = _pairs(m, c)
        h = np.log(more / less) - 1.5 * np.log((1 + m) / (1 - m))
        k = 0.25 * np.log(more * less / unlike**2)
        of_s, _ = self._tables
        if len(of_s) == 1:
            return h, k
        x, slope = _of_bonds(c)
        by_m, by_x = _rising(m, len(of_s)), _rising(x, len(of_s))
        number = np.arange(1, len(of_s))
        h = h + _value(number[:, None] * of_s[1:], by_m[..., :-1], by_x)
        return h, k + 0.5 * slope * _value(of_s[:, 1:] * number, by_m, by_x[..., :-1])

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

        Coupled blocks are periodic along the last two axes. Without ``rng`` there is no noise.
        """

        def pulled(m: np.ndarray) -> np.ndarray | float:
            if not self.coupling:
                return field
            return field + temperature * self.coupling * differences(m) / np.sqrt(sites)

        dm, dc = self.drift(m, c, temperature, pulled(m))
        m_then, c_then = _inside(m + dt / 2 * dm, c + dt / 2 * dc)
        up, down = self.flips(m_then, c_then, temperature, pulled(m_then))
        net = dt * (up - down)
        if rng is not None:
            net += np.sqrt(dt / sites * (up + down)) * rng.standard_normal(net.shape)
        return _inside(m + 2 * net.sum(axis=-1), c + (S * net).sum(axis=-1))

    # -- fitting ------------------------------------------------------------------------------

    def _slopes(self, m: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """H and K of each term of s, with the sign of the entropy's turned, (..., n)."""
        (x, slope), none = _of_bonds(c), np.zeros((*np.shape(m), 0))
        if not self._even:
            return none, none
        of_h = [i * m ** max(i - 1, 0) * x**j for i, j in self._even]
        of_k = [0.5 * slope * j * m**i * x ** max(j - 1, 0) for i, j in self._even]
        return np.stack(of_h, axis=-1), np.stack(of_k, axis=-1)

    def _logits(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        less, unlike, more = _pairs(m, c)
        low, high = unlike / (unlike + less), more / (more + unlike)
        down, up = ((1 - m[..., None]) / 2, (1 + m[..., None]) / 2)
        number = np.arange(len(S))
        pairs = sum(
            one * comb(4, number) * _rising(p, 5) * _rising(1 - p, 5)[..., ::-1]
            for one, p in ((down, low), (up, high))
        )
        _, tables = self._tables
        by_m, by_x = _rising(m, tables.shape[1]), _rising(_of_bonds(c)[0], tables.shape[1])
        even, odd = ([_value(of[k::2], by_m[..., k::2], by_x) for of in tables] for k in (0, 1))
        signs = ((0, 1), (1, 1), (2, 1), (1, -1), (0, -1))
        added = np.stack([even[of] + sign * odd[of] for of, sign in signs], axis=-1)
        return np.asarray(log_softmax(np.log(pairs) + added, axis=-1))

    def _terms_of_shares(self, m: np.ndarray, c: np.ndarray) -> np.ndarray:
        """Derivatives of logits, (..., 5, 3 n): what m does to S, -m does to -S."""
        x, _ = _of_bonds(c)
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
    pull: np.ndarray | None = None,
    *,
    coupling: float | None = None,
    entropy_degree: int = 6,
    share_degree: int = 5,
    evaluations: int = 100,
) -> BondLaw:
    """The law whose shares and drifts are nearest to those counted.

    Parameters
    ----------
    counts : (n, 10) sites by class, of blocks or of sums over blocks that are alike
    temperature, field : of each, (n,), or of all
    pull : (n,) means of :func:`differences` over the side of a block; with them blocks are coupled
    coupling : kappa if it is known; else it is learned with the rest where there are pulls
    evaluations : of the least squares, at most
    """
    counts = np.asarray(counts, float)
    sites = counts.sum(axis=-1)
    m, c = fields_of(counts)
    shares = counts / sites[:, None]
    t, h = (np.broadcast_to(value, m.shape) for value in (temperature, field))
    found = np.einsum("nij,nj->ni", _drifts_of_shares(t, h), shares)
    # A drift that is small counts as much as a large one, as far as the spins say what it is.
    large = abs(found).max(axis=1, keepdims=True)
    scale = RELATIVE * np.maximum(abs(found), 0.1 * large) + OF_A_SPIN / np.sqrt(sites)[:, None]
    of_drift = 1.0 / (scale * np.sqrt(len(m)))
    of_share = 1.0 / (OF_A_SHARE * np.sqrt(len(m)))
    empty = BondLaw.of_pairs(entropy_degree, share_degree)
    size, free = len(empty.coefficients), pull is not None and coupling is None
    pull = 0.0 * m if pull is None else np.asarray(pull, float)

    def law(w: np.ndarray) -> BondLaw:
        kappa = float(w[size]) if free else coupling or 0.0
        return BondLaw(entropy_degree, share_degree, w[:size], kappa)

    def residuals(w: np.ndarray) -> np.ndarray:
        of_law = law(w)
        predicted = of_law.predicted(m, c)
        onto = _drifts_of_shares(t, h + of_law.coupling * t * pull)
        drifts = of_drift * (np.einsum("nij,nj->ni", onto, predicted) - found)
        return np.concatenate(
            [drifts.ravel(), of_share * (predicted - shares).ravel(), RIDGE * w[:size]]
        )

    def slopes(w: np.ndarray) -> np.ndarray:
        of_law = law(w)
        by = of_law._jacobian(m, c)
        onto = _drifts_of_shares(t, h + of_law.coupling * t * pull)
        drifts = of_drift[..., None] * np.einsum("nij,njk->nik", onto, by)
        local = (SUM + h[:, None]) / t[:, None] + of_law.coupling * pull[:, None]
        turned = pull[:, None] * (1 - np.tanh(local) ** 2) * of_law.predicted(m, c)
        by_coupling = of_drift * np.stack([turned.sum(axis=1), turned @ SUM / 2], axis=1)
        top = np.concatenate([drifts.reshape(-1, size), by_coupling.reshape(-1, 1)], axis=1)
        below = np.concatenate([of_share * by.reshape(-1, size), RIDGE * np.eye(size)])
        return np.concatenate([top, np.pad(below, ((0, 0), (0, 1)))])[:, : len(w)]

    start = np.zeros(size + free)
    return law(least_squares(residuals, start, slopes, max_nfev=evaluations).x)


def differences(m: np.ndarray) -> np.ndarray:
    """Sum over the four neighbours of their m less one's own, of periodic blocks (..., ny, nx)."""
    shifted = [np.roll(m, by, axis=axis) for by in (1, -1) for axis in (-1, -2)]
    return np.asarray(sum(shifted) - 4 * m)


def _rising(value: np.ndarray, number: int) -> np.ndarray:
    """Powers 0 to number - 1, (..., number)."""
    out = np.empty((*np.shape(value), number))
    out[..., 0] = 1.0
    for i in range(1, number):
        out[..., i] = out[..., i - 1] * value
    return out


def _value(table: np.ndarray, by_m: np.ndarray, by_x: np.ndarray) -> np.ndarray:
    """The polynomial with the coefficients (i, j), (...)."""
    return np.asarray(((by_m @ table) * by_x).sum(axis=-1))


def _of_bonds(c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The variable of polynomials, 1 without bonds and -1 at walls of 0.025, and its slope."""
    unlike = np.maximum(1 - np.asarray(c), 4 * LEAST)
    return 1 + np.log(unlike) / 1.5, -1 / (1.5 * unlike)


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
