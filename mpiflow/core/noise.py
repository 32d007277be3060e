r"""Counter-based noise: a pure function of (seed, stream, member, step, site).

One generator for everything, Threefry2x64 with 13 rounds [Salmon et al., SC11,
doi:10.1145/2063384.2063405; 13 rounds is its fewest that pass BigCrush]:

.. math:: (w_0, w_1) = \mathrm{Threefry}_{13}(\text{key}=(\text{seed},\,
          \text{stream} \cdot 2^{48} + \text{member}),\ \text{counter}=(\text{step}, \text{site})).

``member`` tells apart the replicas of an ensemble or the samples of a data set.
Because no state is carried along, the value at a site does not depend on which
rank, thread or device asks for it, nor on what was asked before.
"""

from __future__ import annotations

import numpy as np

from mpiflow.core.device import inlined, kernel, rule
from mpiflow.core.errors import InputError

Word = np.uint64

#: Name of the generator, for files.
RNG = "threefry2x64-13"
#: The same with the bit planes of :mod:`mpiflow.solvers.spins.bitplanes`.
BIT_RNG = "sfc64 seeded by threefry2x64-13"
#: Every use of random numbers in mpiflow. Numbers are part of the file format:
#: changing one changes every trajectory. Never reuse one.
STREAMS = {
    # Passes; step = pass, site = (y // 2, x // 2), two rows a call. In the bit kernels the top
    # bits of step say what is drawn (bitplanes.py): seeds of streams, bits of a single site.
    "sublattice": 1,
    "nfold": 2,  # waiting times and event choice; step = event, site = 0
    "initial": 3,  # initial spins; step = 0
    # White noise behind a Gaussian random field, Box-Muller; step 1: waves of a smooth profile,
    # site = (ky + 2^31) << 32 | kx + 2^31.
    "initial-radius": 4,
    "relax": 5,  # sublattice passes inside local_relax windows
    "partial": 6,  # sublattice passes inside partial_evolution patches
    "patch": 7,  # which patch partial_evolution evolves
    "source": 8,  # which small-system snapshot an upsampled state starts from
    "sample": 9,  # initial magnetisations and times of training data
    "sde": 10,  # Euler-Maruyama increments; step = time step, site = component
    "nfold-relax": 11,  # events inside local_relax windows
    "initial-angle": 13,
    "nfold-partial": 12,  # events inside partial_evolution patches
    "tiled-nfold": 14,  # step = pass, site = (global tile << 32) | event in that tile and pass
    "initial-alloy": 15,  # initial species; step = 0, site = x << 42 | y << 21 | z
    "vacancies": 20,  # which atoms are taken out of a state that lacks vacancies; as above
    "vacancy": 16,  # hops; step = 0, site = event
    "tiled-vacancy": 17,  # step = pass, site = (global tile << 32) | event in that tile and pass
    "vacancy-partial": 18,  # hops inside patches of partial evolution
    # Flips of a Kac model; step = half step, site = (y, x // 4), four sites a call. The rare second
    # word of a site: step + 2^63, site = (y, x).
    "kac": 21,
    # Waiting times and event choice; step = draws in vain since the last event, site = event. The
    # rare second word of a choice: step + 2^63.
    "kac-gillespie": 22,
    "vacancy-relax": 19,  # hops inside windows of local relaxation; step = window, site = event
    # Stays of vacancies in basins; step = vacancy, site = stay: a key, with counter = (number, 0)
    # or, for keys that tell where it is at a time, (which, 1).
    "absorbing": 45,
    # Noise of a field of block means; step = inner step << 48 | half step, site = (y, x), two words
    # a block; more of them: those of step + 2^63 are a key, counter = (trial, which number).
    "stochastic-field": 23,
    "mean-field": 24,  # events of whole Curie-Weiss systems; step = 0, site = event
    "mean-field-partial": 25,  # events of patches of partial evolution; as above
    "mean-field-relax": 26,  # attempts in windows; step = level << 32 | window, site = attempt
    # Noise of a linear chain; step = time step, site = site // 2, two normals a call.
    "linear-chain": 30,
    # The same inside its patches; step counts the steps of all patches of a chain. Site 2^63:
    # which patch.
    "linear-chain-partial": 31,
    # Noise of predators and prey; step = time step, site = cell or 2^62 + edge, two normals a call.
    "predator-prey": 32,
    # The same inside patches; step = draw. Site 2^63: which patch.
    "predator-prey-partial": 33,
    "predator-prey-start": 34,  # their initial states; step = 0, site = 0
    # Passes of spin rules; step = half pass, site = (y // 2, x // 2), two rows a call. Of rules
    # too large for a table: site = (y, x), step + 2^54 times the changes of the site in the pass.
    "rule-sublattice": 37,
    # Waiting times and event choice; step = event, site 0: time and place, 1: the new state.
    "rule-nfold": 38,
    # Exchanges of parallel tempering; step = exchange, site = the first of two copies. Seeds of
    # the copies: step = 2^63, site = copy.
    "tempering": 40,
    "site-field": 39,  # random fields of sites; step = 0, site = (y, x)
    "cluster": 36,  # Wolff's clusters; step = cluster, site 0: where it starts, else bonds
    # Chains of atoms; step = time step, site = p of the bonds p and p + N/2: two normals in the
    # first word, two coins of exchanges in the second. Step + 2^63, site = bond: does it happen.
    "spin-diffusion": 41,
    # Exchanges in their averaged limit; step = attempt, site 0: when and which bond, 1: whether it
    # happens. Positions: site = 2^32 times the trajectory, from 1 on, + p of two bonds.
    "spin-diffusion-averaged": 42,
    "spin-diffusion-start": 43,  # positions before the first step; step = trajectory, site = p
}

MAX_MEMBER = 2**48
_PARITY = np.uint64(0x1BD11BDAA9FC1A22)


def stream_key(seed: int, stream: str) -> np.ndarray:
    """The two key words ``(seed, stream << 48)``, shape (2,) uint64."""
    if not 0 <= seed < 2**63:
        raise InputError("seed", seed, "0 to 2**63 - 1", "Choose another seed.")
    return np.array([seed, STREAMS[stream] << 48], dtype=np.uint64)


@rule
def _mix(x0: Word, x1: Word, r: Word) -> tuple[Word, Word]:
    x0 = x0 + x1
    x1 = (x1 << r) | (x1 >> (np.uint64(64) - r))
    return x0, x1 ^ x0


@rule
def threefry(k0: Word, k1: Word, c0: Word, c1: Word) -> tuple[Word, Word]:
    """Threefry2x64-13 of key (k0, k1) and counter (c0, c1), all uint64; returns two uint64.

    Written without a loop over the rounds so that the compiler vectorises over sites. A round of
    its own type for each plain number would be compiled eight times.
    """
    k2 = _PARITY ^ k0 ^ k1
    x0 = c0 + k0
    x1 = c1 + k1
    x0, x1 = _mix(x0, x1, np.uint64(16))
    x0, x1 = _mix(x0, x1, np.uint64(42))
    x0, x1 = _mix(x0, x1, np.uint64(12))
    x0, x1 = _mix(x0, x1, np.uint64(31))
    x0 = x0 + k1
    x1 = x1 + k2 + np.uint64(1)
    x0, x1 = _mix(x0, x1, np.uint64(16))
    x0, x1 = _mix(x0, x1, np.uint64(32))
    x0, x1 = _mix(x0, x1, np.uint64(24))
    x0, x1 = _mix(x0, x1, np.uint64(21))
    x0 = x0 + k2
    x1 = x1 + k0 + np.uint64(2)
    x0, x1 = _mix(x0, x1, np.uint64(16))
    x0, x1 = _mix(x0, x1, np.uint64(42))
    x0, x1 = _mix(x0, x1, np.uint64(12))
    x0, x1 = _mix(x0, x1, np.uint64(31))
    x0 = x0 + k0
    x1 = x1 + k1 + np.uint64(3)
    x0, x1 = _mix(x0, x1, np.uint64(16))
    return x0, x1


@rule
def site_counter(y: int, x: int) -> Word:
    """The counter word of global site (y, x), independent of the lattice's size."""
    return (np.uint64(y) << np.uint64(32)) | np.uint64(x)


@rule
def to_unit(word: Word) -> float:
    """A float64 strictly inside (0, 1) from the top 52 bits of a word."""
    return (np.float64(word >> np.uint64(12)) + 0.5) * 2.0**-52


@rule
def to_half_open_unit(word: Word) -> float:
    """A float64 in [0, 1) from the top 53 bits of a word: none is below a share of 0."""
    return np.float64(word >> np.uint64(11)) * 2.0**-53


@rule
def uniform_below(word: Word, bound: int) -> np.int64:
    """A uniform number 0..bound - 1: the top bits times the bound; bias below bound / 2^32."""
    return np.int64((word >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32))


@rule
def upper_half(word: Word, total: Word) -> Word:
    """floor(word * total / 2^64): a number below any total, in proportion to the word."""
    half, low = np.uint64(32), np.uint64(2**32 - 1)
    a, b, c, d = word >> half, word & low, total >> half, total & low
    middle = a * d + (b * d >> half)
    return a * c + (middle >> half) + (((middle & low) + b * c) >> half)


@rule
def normal_radius(word: Word) -> float:
    """The length of a pair of standard normals, by Box and Muller."""
    return np.sqrt(-2.0 * np.log(to_unit(word)))


@rule
def uniform_angle(word: Word) -> float:
    """An angle in (0, 2 pi)."""
    return 2.0 * np.pi * to_unit(word)


@rule
def normal_pair(word: Word, other: Word) -> tuple[float, float]:
    """Two independent standard normals, by Box and Muller."""
    radius, angle = normal_radius(word), uniform_angle(other)
    return radius * np.cos(angle), radius * np.sin(angle)


@kernel
def exponential(word: Word) -> float:
    """-ln(u) of the uniform of a word, by arithmetic that vectorises and is IEEE everywhere.

    The fdlibm method: u = 2^k m with m near 1, and a polynomial in (m - 1) / (m + 1);
    the error is below one unit in the last place.
    """
    bits = np.float64(to_unit(word)).view(np.int64) + np.int64(
        0x3FF0000000000000 - 0x3FE6A09E00000000
    )
    k = np.float64((bits >> 52) - 0x3FF)
    m = np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) + np.int64(0x3FE6A09E00000000)).view(np.float64)
    f = m - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    odd = w * (
        3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01)
    )
    even = z * (
        6.666666666666735130e-01
        + w
        * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01))
    )
    half = 0.5 * f * f
    low = s * (half + odd + even) + k * 1.90821492927058770002e-10
    return -(low - half + f + k * 6.93147180369123816490e-01)


@rule
def wait_and_choice(keys: tuple[Word, Word, Word], counter: Word) -> tuple[float, float]:
    """Of an event: its wait in units of the mean one, and the uniform number that chooses it.

    ``keys`` are the two words of the key and the first one of the counter.
    """
    w0, w1 = threefry(keys[0], keys[1], keys[2], counter)
    return exponential(w0), to_unit(w1)


_inlined_exponential = inlined(exponential.py_func)


@inlined
def word_normals(word):  # type: ignore[no-untyped-def]
    """Two independent standard normals of one word, by arithmetic that vectorises.

    Box and Muller's, of 32 bits for the radius, at most 6.7, and 32 for the angle: its quarter and
    where in it, for which the sine and the cosine are fdlibm's polynomials.
    """
    upper = word & np.uint64(0xFFFFFFFF00000000)
    twice = 2.0 * _inlined_exponential(upper | np.uint64(0x80000000))
    radius = np.sqrt(twice)
    radius = -radius if (word & np.uint64(0x80000000)) != np.uint64(0) else radius
    place = np.float64(np.int64(word & np.uint64(0x3FFFFFFF)))
    angle = (place - (2.0**29 - 0.5)) * (0.5 * np.pi / 2.0**30)
    z = angle * angle
    p = -2.50507602534068634195e-08 + z * 1.58969099521155010221e-10
    p = -1.98412698298579493134e-04 + z * (2.75573137070700676789e-06 + z * p)
    p = -1.66666666666666324348e-01 + z * (8.33333333332248946124e-03 + z * p)
    sine = radius * (angle + angle * z * p)
    q = 2.08757232129817482790e-09 - z * 1.13596475577881948265e-11
    q = 2.48015872894767294178e-05 + z * (-2.75573143513906633035e-07 + z * q)
    q = 4.16666666666666019037e-02 + z * (-1.38888888888741095749e-03 + z * q)
    cosine = radius * (1.0 - 0.5 * z + z * z * q)
    quarter = (word & np.uint64(0x40000000)) != np.uint64(0)
    return (-sine, cosine) if quarter else (cosine, sine)


@kernel
def _fill_words(
    key: np.ndarray, member: Word, step: Word, sites: np.ndarray, out: np.ndarray
) -> None:
    for i in range(sites.size):
        w0, w1 = threefry(key[0], key[1] + member, step, sites[i])
        out[i, 0] = w0
        out[i, 1] = w1


def words(seed: int, stream: str, member: int, step: int, sites: np.ndarray) -> np.ndarray:
    """Two 64-bit words for each site: shape ``(*sites.shape, 2)`` uint64.

    Parameters
    ----------
    seed, stream, member, step : the key, see the module's equation
    sites : uint64 counter words (any integers; :func:`site_counter` for lattice sites)
    """
    sites = np.asarray(sites, dtype=np.uint64)
    out = np.empty((sites.size, 2), dtype=np.uint64)
    _fill_words(
        stream_key(seed, stream), np.uint64(member), np.uint64(step), sites.reshape(-1), out
    )
    return out.reshape(*sites.shape, 2)


def uniforms(seed: int, stream: str, member: int, step: int, sites: np.ndarray) -> np.ndarray:
    """Two float64 uniforms on (0, 1) for each site, shape ``(*sites.shape, 2)``."""
    return np.asarray(to_unit.py_func(words(seed, stream, member, step, sites)))


@kernel
def _fill_normals(key: np.ndarray, members: np.ndarray, step: Word, out: np.ndarray) -> None:
    for i in range(members.size):
        for pair in range((out.shape[1] + 1) // 2):
            w0, w1 = threefry(key[0], key[1] + members[i], step, np.uint64(pair))
            first, second = normal_pair(w0, w1)
            out[i, 2 * pair] = first
            if 2 * pair + 1 < out.shape[1]:
                out[i, 2 * pair + 1] = second


def normals(seed: int, stream: str, members: np.ndarray, step: int, components: int) -> np.ndarray:
    """Standard normals, shape ``(len(members), components)`` float64 (Box-Muller)."""
    out = np.empty((len(members), components))
    _fill_normals(
        stream_key(seed, stream), np.asarray(members, dtype=np.uint64), np.uint64(step), out
    )
    return out
