"""Barriers: the published network, the laws of the simple models, and bits that never change."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exact import has_cuda

from mpiflow.core.device import CudaKernel, Device, cpu_has, to_bare
from mpiflow.core.errors import InputError
from mpiflow.solvers.vacancy import barrier_kernels, dense
from mpiflow.systems import barriers
from mpiflow.systems.alloy import DIRECTIONS, NOT_A_SITE, SURROUNDINGS, index_of, is_site
from mpiflow.systems.barriers import Barriers

Layers = list[tuple[np.ndarray, np.ndarray]]
ROOT = Path(__file__).resolve().parents[2]

#: Widths behind the inputs, parts of the first layer, channels; some fit no tile.
NETWORKS = [
    ((128, 128, 1), 1, 1),
    ((96, 64, 32, 1), 6, 2),
    ((21, 7, 5, 1), 3, 3),
    ((50, 33, 1), 2, 1),
    ((3, 1), 1, 1),
    ((1,), 1, 2),
]
on_networks = pytest.mark.parametrize(("widths", "pool", "channels"), NETWORKS)


def some_layers(widths: Sequence[int], pool: int, channels: int) -> tuple[Layers, np.ndarray]:
    """Layers and codes of a random network of three elements."""
    rng, layers, inputs = np.random.default_rng(1), [], barriers.SITES * channels
    for number, outputs in enumerate(widths):
        scale = inputs**-0.5
        layers.append((rng.normal(0, scale, (inputs, outputs)), rng.normal(0, 0.1, outputs)))
        inputs = outputs // pool if number == 0 else outputs
    return layers, rng.normal(size=(4, channels)).astype(np.float32)


def some_types(count: int, vacancies: float = 0.05) -> np.ndarray:
    shares = [vacancies, *[(1 - vacancies) / 3] * 3]
    return np.random.default_rng(2).choice(4, (count, barriers.SITES), p=shares).astype(np.uint8)


def evaluated(model: Barriers, types: np.ndarray) -> np.ndarray:
    out = np.full((len(types), 8), np.nan, np.float32)
    barrier_kernels.evaluate_many(model, types, out)
    return out


# -- the published network ---------------------------------------------------------------------


def published(weights: Path, axes: Sequence[int], epsilon: float) -> Barriers:
    """The published network; ``axes`` (1, 0, 2) reads its image as the NKK program does."""
    arrays = np.load(weights, allow_pickle=True)  # our own copy of a known file
    arrays = [np.asarray(array, float) for array in arrays]
    rows = (SURROUNDINGS[:, axes] + 4) @ [81, 9, 1]
    layers = []
    for number in range(4):
        w, b, gamma, beta, mean, variance = arrays[6 * number : 6 * number + 6]
        scale = gamma / np.sqrt(variance + epsilon)
        layers.append(((w * scale)[rows] if number == 0 else w * scale, (b - mean) * scale + beta))
    return barrier_kernels.network([*layers, (arrays[24], arrays[25])], np.arange(4)[:, None])


@pytest.mark.parametrize(
    ("name", "axes", "epsilon"),
    [
        ("barriers_paper_order_eV", (0, 1, 2), 1e-3),
        ("barriers_paper_order_bn1e5_eV", (0, 1, 2), 1e-5),
        ("barriers_nkk_order_eV", (1, 0, 2), 1e-3),
    ],
)
def test_the_published_network(
    shared_dir: Path, name: str, axes: Sequence[int], epsilon: float
) -> None:
    folder = shared_dir / "reference" / "nnk"
    if not (folder / "weights.npy").is_file():
        pytest.skip("no weights of the published network in shared/")
    check = np.load(folder / "barriers_check.npz")
    assert np.array_equal(check["directions"], DIRECTIONS)
    grids = check["grids_1024"][check["env_grid_index"]]
    types = [
        grid[tuple(((place + SURROUNDINGS) % grid.shape).T)]
        for grid, place in zip(grids, check["env_vacancy_ijk"], strict=True)
    ]
    got = evaluated(published(folder / "weights.npy", axes, epsilon), np.array(types, np.uint8))
    assert np.abs(got - check[name]).max() < 2e-6


# -- the same bits everywhere ------------------------------------------------------------------


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a b + c of float32, rounded once.

    The product is exact in float64. The sum is rounded there to odd, which leaves the second
    rounding what it would have been [Boldo and Melquiond, IEEE Trans. Comput. 57, 462 (2008)].
    """
    product, c = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + c
    part = total - product
    lost = (product - (total - part)) + (c - part)
    even = total.view(np.int64) % 2 == 0
    odd = np.where((lost != 0) & even, np.nextafter(total, np.copysign(np.inf, lost)), total)
    return odd.astype(np.float32)


def documented(layers: Layers, codes: np.ndarray, pool: int, types: np.ndarray) -> np.ndarray:
    """Barriers (n, 8) by the arithmetic of the documentation."""
    x = codes[types[:, barrier_kernels.ORIENTATIONS]].reshape(len(types), 8, -1)
    for number, (w, b) in enumerate(layers[:-1]):
        w, sums = (
            w.astype(np.float32),
            np.broadcast_to(b.astype(np.float32), (*x.shape[:2], len(b))),
        )
        for k in range(len(w)):
            sums = fma(x[..., k, None], w[k], sums)
        x = np.maximum(sums, np.float32(0))
        if number == 0:
            parts = np.split(x, pool, axis=-1)
            x = parts[0]
            for part in parts[1:]:
                x = x + part
    w, b = (array.astype(np.float32) for array in layers[-1])
    lanes = np.zeros((*x.shape[:2], 16), np.float32)
    for k in range(len(w)):
        lanes[..., k % 16] = fma(x[..., k], w[k], lanes[..., k % 16])
    for half in (8, 4, 2, 1):
        lanes = lanes[..., :half] + lanes[..., half:]
    return np.where(types[:, :8] == 0, np.float32(np.inf), lanes[..., 0] + b)


def test_the_emulated_fma_rounds_once() -> None:
    """1 + 2^-24 + 2^-60 is above the middle between two floats; two roundings miss it."""
    one, tiny = np.float32([1]), np.float32([2**-24])
    assert fma(tiny, one + np.float32(2**-22), one) == np.float32(1 + 2**-23)
    assert fma(one, tiny, one) == 1.0
    below = np.float32([2**-30])
    assert fma(below, -below, one + 2 * tiny) == one + 2 * tiny


@on_networks
def test_the_documented_bits(widths: Sequence[int], pool: int, channels: int) -> None:
    layers, codes = some_layers(widths, pool, channels)
    types = some_types(6)
    got = evaluated(barrier_kernels.network(layers, codes, pool), types)
    assert np.array_equal(got, documented(layers, codes, pool, types))


@pytest.mark.parametrize("panels", [1, 2, 5])
@pytest.mark.parametrize("inputs", [4, 12, 128])
def test_both_shapes_of_tiles_give_the_same_bits(inputs: int, panels: int) -> None:
    rng = np.random.default_rng(3)
    w, b = rng.normal(size=(inputs, 16 * panels)), rng.normal(size=16 * panels)
    packed = dense.packed_hidden(w, b)
    work = rng.normal(size=16 * 128).astype(np.float32)
    results = []
    for hidden in (dense.hidden_wide, dense.hidden_narrow):
        copy = work.copy()
        hidden(copy, 0, 8 * 128, 128, packed, 0, inputs, panels)
        results.append(copy.reshape(2, 8, 128))
    assert np.array_equal(results[0], results[1])
    x, y = results[0]
    assert np.array_equal(x.ravel(), work[: 8 * 128])
    assert np.array_equal(y[:, 16 * panels :], work.reshape(2, 8, 128)[1, :, 16 * panels :])
    wanted = np.maximum(x[:, :inputs].astype(float) @ w + b, 0)
    np.testing.assert_allclose(y[:, : 16 * panels], wanted, atol=1e-4)


PRINT_BITS = """
import sys
sys.path.insert(0, "tests/solvers")
from test_barriers import barrier_kernels, dense, digest
bits = digest()
compiled = sum(barrier_kernels._evaluate_rows.stats.cache_misses.values())
print(bits, dense.hidden.__name__, compiled)
"""


def digest() -> str:
    """Of barriers by networks of all shapes."""
    bits = hashlib.sha256()
    for widths, pool, channels in NETWORKS:
        layers, codes = some_layers(widths, pool, channels)
        model = barrier_kernels.network(layers, codes, pool)
        bits.update(evaluated(model, some_types(20)).tobytes())
    return bits.hexdigest()


def in_another_process(**environment: str) -> list[str]:
    """Digest of barriers, the shape of tiles, and how many kernels had to be compiled."""
    done = subprocess.run(
        [sys.executable, "-c", PRINT_BITS],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return done.stdout.split()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for other x86 CPUs")
@pytest.mark.parametrize(
    "cpu",
    [
        pytest.param(
            {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma"},
            marks=pytest.mark.skipif(not cpu_has("fma"), reason="no AVX2 here"),
        ),
        {"NUMBA_CPU_NAME": "generic"},  # SSE2, fused multiply-adds in the C library
    ],
    ids=["AVX2", "SSE2"],
)
def test_other_cpus_give_the_same_bits(cpu: dict[str, str]) -> None:
    there = in_another_process(**cpu)
    assert there[1] == "hidden_narrow"
    assert digest() == there[0]


def test_a_second_process_compiles_nothing() -> None:
    here = digest()
    there = in_another_process()
    assert (there[0], there[2]) == (here, "0")


@on_networks
def test_one_or_many(widths: Sequence[int], pool: int, channels: int) -> None:
    layers, codes = some_layers(widths, pool, channels)
    model, types = barrier_kernels.network(layers, codes, pool), some_types(5)
    work = np.full(barrier_kernels.work_size(model), np.nan, np.float32)  # as left by anything else
    for row, wanted in zip(types, evaluated(model, types), strict=True):
        out = np.empty(8, np.float32)
        barrier_kernels.evaluate(model, row, work, out)
        assert np.array_equal(out, wanted)


def test_turned_surroundings_have_turned_barriers() -> None:
    """Exactly, for the turns about z and the mirror of z that bring hops to (1, 1, 1)."""
    model = barrier_kernels.network(*some_layers((21, 1), 1, 1))
    types = some_types(4)
    for matrix in ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 0], [0, 0, -1]]):
        to = index_of(SURROUNDINGS @ np.array(matrix).T)
        turned = np.empty_like(types)
        turned[:, to] = types
        assert np.array_equal(evaluated(model, turned)[:, to[:8]], evaluated(model, types))


# -- the simple models -------------------------------------------------------------------------


def pair_model() -> Barriers:
    bonds = np.random.default_rng(4).normal(0, 0.1, (4, 4))
    return barriers.pairwise([1.0, 1.3, 1.7], bonds + bonds.T)


def test_constant() -> None:
    types = some_types(20)
    wanted = np.float32([np.inf, 1.0, 1.3, 1.7])[types[:, :8]]
    assert np.array_equal(evaluated(barriers.constant([1.0, 1.3, 1.7]), types), wanted)


def total_energy(grid: np.ndarray, bonds: np.ndarray) -> float:
    """Sum over all pairs of nearest neighbours, each once."""
    total, sites = 0.0, grid != NOT_A_SITE
    for direction in DIRECTIONS:
        there = np.roll(grid, -direction, axis=(0, 1, 2))
        total += 0.5 * bonds[grid[sites], there[sites]].sum()
    return total


def test_pairwise_barriers_differ_by_the_change_of_energy() -> None:
    """Of a hop there and back, with other vacancies around: detailed balance."""
    model = pair_model()
    rng = np.random.default_rng(5)
    grid = np.where(is_site((10, 10, 12)), rng.choice(4, (10, 10, 12), p=[0.1, 0.3, 0.3, 0.3]), -1)

    def barriers_at(place: np.ndarray) -> np.ndarray:
        around = tuple(((place + SURROUNDINGS) % grid.shape).T)
        return evaluated(model, grid[around].astype(np.uint8)[None])[0]

    hops = 0
    for place in np.argwhere(grid == 0)[:8]:
        energy, forward = total_energy(grid, model.bonds), barriers_at(place)
        for d, direction in enumerate(DIRECTIONS):
            here, there = tuple(place), tuple((place + direction) % grid.shape)
            if grid[there] == 0:
                assert forward[d] == np.inf
                continue
            grid[here], grid[there] = grid[there], grid[here]
            backward = barriers_at(np.array(there))[7 - d]
            change = total_energy(grid, model.bonds) - energy
            grid[here], grid[there] = grid[there], grid[here]
            assert forward[d] - backward == pytest.approx(change, abs=2e-6)
            assert (forward[d] + backward) / 2 == pytest.approx(model.base[grid[there]], abs=1e-6)
            hops += 1
    assert hops > 40


# -- CUDA --------------------------------------------------------------------------------------


@pytest.mark.kernel
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
@pytest.mark.parametrize(
    "model",
    [
        barrier_kernels.network(*some_layers((21, 7, 5, 1), 3, 2), 3),
        barrier_kernels.network(*some_layers((3, 1), 1, 1)),
        barrier_kernels.network(*some_layers((1,), 1, 1)),
        barriers.constant([1.0, 1.3, 1.7]),
        pair_model(),
    ],
    ids=["pooled", "one hidden layer", "linear", "constant", "pairwise"],
)
def test_cuda_gives_the_same_bits(model: Barriers) -> None:
    device, types = Device("cuda"), some_types(3, vacancies=0.2)
    out = device.put(np.full((3, 8), np.nan, np.float32))
    _barriers_on_blocks.launch_blocks(
        3, barrier_kernels.on_device(model, device), device.put(types), out
    )
    assert np.array_equal(device.get(out), evaluated(model, types))


@CudaKernel
def _barriers_on_blocks(cuda: Any) -> Callable[..., None]:
    evaluate, bare = barrier_kernels.on_block(cuda), to_bare()

    def barriers_of(model: Any, types: Any, out: Any) -> None:
        model, types, out = bare(model), bare(types), bare(out)
        shared = cuda.shared.array(barrier_kernels.BLOCK_FLOATS, np.float32)
        b, me, threads = cuda.blockIdx.x, cuda.threadIdx.x, cuda.blockDim.x
        evaluate(model, types[b], shared, me, threads, out[b])

    return barriers_of


@pytest.mark.kernel
@pytest.mark.skipif(not has_cuda(), reason="no CUDA device and no simulator")
def test_cuda_refuses_wide_networks() -> None:
    model = barrier_kernels.network(*some_layers((600, 1), 1, 1))
    with pytest.raises(InputError, match="at most 512"):
        barrier_kernels.on_device(model, Device("cuda"))


# -- input -------------------------------------------------------------------------------------


def test_layers_that_do_not_fit_are_refused() -> None:
    layers, codes = some_layers((21, 7, 1), 3, 1)
    for wrong, pool in (
        (layers, 1),  # 21 outputs for 7 inputs
        (layers, 2),
        (layers[:-1], 3),  # seven outputs
        ([(layers[0][0][:-1], layers[0][1]), *layers[1:]], 3),
        ([(layers[0][0], layers[0][1][:-1]), *layers[1:]], 3),
    ):
        with pytest.raises(InputError, match="layers"):
            barrier_kernels.network(wrong, codes, pool)


def test_too_little_scratch_memory_is_refused() -> None:
    model = barrier_kernels.network(*some_layers((21, 1), 1, 1))
    work = np.empty(barrier_kernels.work_size(model) - 1, np.float32)
    with pytest.raises(ValueError, match="work_size"):
        barrier_kernels.evaluate(model, some_types(1)[0], work, np.empty(8, np.float32))
