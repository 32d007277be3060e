"""The noise: known answers, the key and counter expressions, and independence."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from exact import P_FLOOR, Z_CEILING, chi_square, deviate, has_cuda
from exact import threefry as plain_threefry
from scipy.stats import kstest, norm

from mpiflow.core.device import Device, kernel
from mpiflow.core.device_noise import draw_normals
from mpiflow.core.errors import InputError
from mpiflow.core.noise import (
    MAX_MEMBER,
    STREAMS,
    normals,
    site_counter,
    stream_key,
    threefry,
    to_unit,
    uniforms,
    word_normals,
    words,
)

# Random123's kat_vectors, threefry2x64 with 13 rounds: counter, key, answer.
ONES = "ffffffffffffffff"
KNOWN_ANSWERS = [
    ("0 0", "0 0", "f167b032c3b480bd e91f9fee4b7a6fb5"),
    (f"{ONES} {ONES}", f"{ONES} {ONES}", "ccdec5c917a874b1 4df53abca26ceb01"),
    (
        "243f6a8885a308d3 13198a2e03707344",
        "a4093822299f31d0 082efa98ec4e6c89",
        "c3aac71561042993 3fe7ae8801aff316",
    ),
]


def pair(text: str) -> tuple[int, int]:
    first, second = (int(word, 16) for word in text.split())
    return first, second


def compiled_threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    w0, w1 = threefry(*(np.uint64(word) for word in (*key, *counter)))
    return int(w0), int(w1)


@pytest.mark.kernel
@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    assert compiled_threefry(pair(key), pair(counter)) == pair(answer)
    assert plain_threefry(pair(key), pair(counter)) == pair(answer)


def test_the_plain_reference_also_knows_20_and_32_rounds() -> None:
    counter, key = pair(KNOWN_ANSWERS[2][0]), pair(KNOWN_ANSWERS[2][1])
    assert plain_threefry(key, counter, 20) == pair("263c7d30bb0f0af1 56be8361d3311526")
    assert plain_threefry(key, counter, 32) == pair("dad492f32efbd0c4 b6d7d0cd1f193e84")


@pytest.mark.kernel
def test_compiled_equals_plain_on_random_input() -> None:
    rng = np.random.default_rng(1)
    for k0, k1, c0, c1 in rng.integers(0, 2**64, (200, 4), dtype=np.uint64).tolist():
        assert compiled_threefry((k0, k1), (c0, c1)) == plain_threefry((k0, k1), (c0, c1))


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1])
@pytest.mark.parametrize("member", [0, 5, MAX_MEMBER - 1])
@pytest.mark.parametrize("step", [0, 3, 2**40])
def test_words_are_a_function_of_key_and_counter(seed: int, member: int, step: int) -> None:
    """(seed, stream 2^48 + member), (step, site): the equation in the module's docstring."""
    sites = np.array([[0, 1, 2], [2**32, 2**63, 2**64 - 1]], dtype=np.uint64)
    for stream, number in STREAMS.items():
        drawn = words(seed, stream, member, step, sites)
        assert drawn.shape == (2, 3, 2)
        for place, site in np.ndenumerate(sites):
            key, counter = (seed, number * 2**48 + member), (step, int(site))
            assert tuple(drawn[place].tolist()) == plain_threefry(key, counter)


def test_words_do_not_depend_on_what_else_is_asked() -> None:
    sites = np.arange(1000, dtype=np.uint64)
    together = words(3, "initial", 1, 2, sites)
    order = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(words(3, "initial", 1, 2, sites[order]), together[order])
    assert np.array_equal(words(3, "initial", 1, 2, sites[::-3]), together[::-3])
    assert np.array_equal(words(3, "initial", 1, 2, np.array(17)), together[17])


def test_streams_never_share_a_number() -> None:
    assert len(set(STREAMS.values())) == len(STREAMS)
    assert min(STREAMS.values()) >= 1
    assert max(STREAMS.values()) < 2**16, "16 bits of the key word are left for the stream"
    keys = np.array([stream_key(0, stream)[1] for stream in STREAMS])
    assert (np.diff(np.sort(keys)) >= MAX_MEMBER).all(), "members of two streams overlap"


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seeds_out_of_range(seed: int) -> None:
    with pytest.raises(InputError, match=r"^seed=.*0 to 2\*\*63 - 1"):
        stream_key(seed, "initial")


def test_site_counters_are_unique() -> None:
    corners = [(y, x) for y in (0, 1, 2**31 - 1) for x in (0, 1, 2**31 - 1)]
    counters = [int(site_counter(y, x)) for y, x in corners]
    assert counters == [y * 2**32 + x for y, x in corners]


# -- independence --------------------------------------------------------------------------

SIDE = 256


def grid(
    *, seed: int = 11, stream: str = "sublattice", member: int = 0, step: int = 0, word: int = 0
) -> np.ndarray:
    """One word at each site of a 256 x 256 grid."""
    y, x = np.arange(SIDE, dtype=np.uint64)[:, None], np.arange(SIDE, dtype=np.uint64)
    return words(seed, stream, member, step, (y << np.uint64(32)) | x)[..., word]


def neighbour_pairs(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Disjoint pairs of words whose key or counter differ by the least possible."""
    other = list(STREAMS)[list(STREAMS).index("sublattice") + 1]
    return {
        "word": lambda: (grid(), grid(word=1)),
        "x": lambda: (grid()[:, 0::2], grid()[:, 1::2]),
        "y": lambda: (grid()[0::2], grid()[1::2]),
        "x, y swapped": lambda: (
            grid()[np.triu_indices(SIDE, 1)],
            grid().T[np.triu_indices(SIDE, 1)],
        ),
        "step": lambda: (grid(), grid(step=1)),
        "member": lambda: (grid(), grid(member=1)),
        "stream": lambda: (grid(), grid(stream=other)),
        "seed": lambda: (grid(), grid(seed=12)),
        "seed and member": lambda: (grid(seed=12), grid(member=1)),
        "step and member": lambda: (grid(step=1), grid(member=1)),
    }[kind]()


KINDS = [
    "word", "x", "y", "x, y swapped", "step", "member", "stream", "seed",
    "seed and member", "step and member",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_in_any_index_are_independent(kind: str) -> None:
    a, b = (part.reshape(-1) for part in neighbour_pairs(kind))
    u, v = ((part >> np.uint64(11)) * 2.0**-53 - 0.5 for part in (a, b))
    correlation = 12.0 * (u * v).sum() / np.sqrt(len(u))
    assert abs(correlation) < Z_CEILING
    for shift in (60, 30, 0):  # four bits from the top, the middle and the bottom
        cells = (a >> np.uint64(shift) & np.uint64(15)) * np.uint64(16)
        cells += b >> np.uint64(shift) & np.uint64(15)
        counts = np.bincount(cells.astype(np.int64), minlength=256)
        assert chi_square(counts, np.full(256, len(a) / 256)) > P_FLOOR
    # Words with one changed bit in the input differ in half of their bits.
    changed = np.bitwise_count(a ^ b).astype(float)
    assert abs(deviate(changed, 32.0)) < Z_CEILING
    assert abs(deviate((changed - 32.0) ** 2, 16.0)) < Z_CEILING


def test_every_bit_is_fair() -> None:
    for word in (0, 1):
        bits = (grid(word=word).reshape(-1, 1) >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
        z = (bits.sum(0) - SIDE**2 / 2) / (SIDE / 2)
        assert np.abs(z).max() < 5.0  # 64 of them
        assert chi_square(bits.sum(0), np.full(64, SIDE**2 / 2), 0) > P_FLOOR / 10


#: Words whose uniforms are the least and the greatest that there are.
ENDS = np.array([0, 2**32 - 1, 2**64 - 2**32, 2**64 - 1], np.uint64)

# -- uniforms and normals --------------------------------------------------------------------


@pytest.mark.kernel
def test_units_lie_strictly_inside() -> None:
    low, high = to_unit(np.uint64(0)), to_unit(np.uint64(2**64 - 1))
    assert (low, high) == (2.0**-53, 1.0 - 2.0**-53)
    assert to_unit(np.uint64(2**63)) == 0.5 + 2.0**-53


def test_uniforms_are_uniform_and_agree_with_the_rule() -> None:
    sites = np.arange(20000, dtype=np.uint64)
    u = uniforms(5, "patch", 0, 0, sites)
    assert u.shape == (20000, 2)
    assert min(kstest(u[:, i], "uniform").pvalue for i in (0, 1)) > P_FLOOR
    drawn = words(5, "patch", 0, 0, sites[:50])
    assert [to_unit(word) for word in drawn.reshape(-1)] == u[:50].reshape(-1).tolist()


def test_normals_have_normal_moments() -> None:
    x = normals(3, "sde", np.arange(50000), step=4, components=3)
    assert x.shape == (50000, 3)
    for column in x.T:
        for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
            assert abs(deviate(column**power, moment)) < Z_CEILING
        assert kstest(column, "norm").pvalue > P_FLOOR
    # Pearson correlations of components, of neighbouring members and of steps.
    later = normals(3, "sde", np.arange(50000), step=5, components=3)
    others = [(x[:, 0], x[:, 1]), (x[:, 1], x[:, 2]), (x[1:, 0], x[:-1, 0]), (x[:, 0], later[:, 0])]
    for a, b in others:
        assert abs(deviate(a * b, 0.0)) < Z_CEILING
    # The two of one Box-Muller pair share a radius: check that squares are independent too.
    assert abs(deviate((x[:, 0] ** 2 - 1) * (x[:, 1] ** 2 - 1), 0.0)) < Z_CEILING


def test_normals_do_not_depend_on_the_batch() -> None:
    every = normals(1, "sde", np.arange(100), step=2, components=5)
    some = normals(1, "sde", np.array([7, 99, 3]), step=2, components=5)
    assert np.array_equal(some, every[[7, 99, 3]])
    assert np.array_equal(normals(1, "sde", np.arange(100), 2, 4), every[:, :4])
    assert np.array_equal(normals(1, "sde", np.arange(100), 2, 1), every[:, :1])
    u = uniforms(1, "sde", 3, 2, np.array([0], np.uint64))[0]
    expected = np.sqrt(-2 * np.log(u[0])) * np.array(
        [np.cos(2 * np.pi * u[1]), np.sin(2 * np.pi * u[1])]
    )
    assert np.allclose(every[3, :2], expected, rtol=1e-13, atol=0)


@kernel
def pairs_of_normals(drawn: np.ndarray, out: np.ndarray) -> None:
    for i in range(drawn.size):
        out[i, 0], out[i, 1] = word_normals(drawn[i])


def test_normals_of_a_word_are_those_of_its_halves() -> None:
    """Radius and angle are Box and Muller's, and the two are independent standard normals."""
    drawn = np.concatenate([words(9, "sde", 0, 0, np.arange(50000)).reshape(-1), ENDS])
    x = np.empty((len(drawn), 2))
    pairs_of_normals(drawn, x)
    u = ((drawn >> np.uint64(32)) + 0.5) * 2.0**-32 + 2.0**-53
    assert np.allclose((x**2).sum(1), -2.0 * np.log(u), rtol=1e-13, atol=1e-15)
    # Bits 31 and 30: a half and a quarter turn; the rest from -1/8 of a turn to 1/8.
    half, quarter = (drawn >> np.uint64(shift) & np.uint64(1) for shift in (31, 30))
    angle = ((drawn & np.uint64(2**30 - 1)) + 0.5) * 2.0**-30 - 0.5 + 2.0 * half + quarter
    turned = np.exp(-0.5j * np.pi * angle) * (x[:, 0] + 1j * x[:, 1])
    assert np.allclose(turned.imag / turned.real, 0.0, atol=2e-15)
    assert (turned.real > 0).all()
    assert x.max() < 6.8
    for column in x.T:
        for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
            assert abs(deviate(column**power, moment)) < Z_CEILING
        assert kstest(column, "norm").pvalue > P_FLOOR
    assert abs(deviate((x[:, 0] ** 2 - 1) * (x[:, 1] ** 2 - 1), 0.0)) < Z_CEILING


def test_extreme_normals_are_finite() -> None:
    # The smallest uniform gives the largest radius: 8.57 standard deviations.
    assert np.sqrt(-2 * np.log(2.0**-53)) < 8.58 < -norm.ppf(1e-18)


def test_no_warnings_from_wrapping_arithmetic() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        words(2**63 - 1, "nfold", MAX_MEMBER - 1, 2**63, np.arange(4))


@pytest.mark.kernel
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
@pytest.mark.parametrize("components", [1, 4])
def test_normals_made_on_a_device(components: int) -> None:
    """The same words; another logarithm and other angles, to rounding."""
    members, device = np.array([0, 2**47, 5, 6], np.uint64), Device("cuda")
    out = device.put(np.zeros((4, components)))
    draw_normals(stream_key(7, "sde"), device.put(members), 2**40, out)
    expected = normals(7, "sde", members, 2**40, components)
    np.testing.assert_allclose(device.get(out), expected, rtol=0, atol=1e-14)
