"""The benchmarks run, report in the agreed form, and compare what they claim to compare."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import alloy_budget
import bench_gpu
import multispin_baseline
import numpy as np
import pytest
from mpi4py import MPI

import mpiflow.core.device
from mpiflow.cli import invoke
from mpiflow.commands.bench import spins as bench
from mpiflow.commands.bench import start
from mpiflow.core.device import simulated
from mpiflow.core.errors import InputError
from mpiflow.core.noise import stream_key, words


@pytest.mark.mpi
@pytest.mark.parametrize("name", bench.BENCHES)
def test_every_benchmark_reports(comm: MPI.Intracomm, name: str):
    if name == "start" and comm.size > 1:
        pytest.skip("of one process")
    rows = bench.run(name, comm, small=True)
    assert rows
    for row in rows:
        assert list(row) == ["bench", "case", "value", "unit", "min", "max"]
        assert row["bench"] == name
        least = 0 if row["case"].startswith("model") else 1e-12  # a fit of tiny times may say 0
        assert least <= row["min"] <= row["value"] <= row["max"] < np.inf
        assert json.loads(json.dumps(row)) == row
    assert len({row["case"] for row in rows}) == len(rows)
    assert comm.bcast(rows, root=0) == rows, "ranks must agree"


@pytest.mark.kernel
@pytest.mark.skipif(not simulated(), reason="needs NUMBA_ENABLE_CUDASIM=1")
@pytest.mark.parametrize(
    "name",
    [
        "ising",
        "ising-exact",
        "partial-evolution",
        pytest.param("field", marks=pytest.mark.validate),  # 11 s in the simulator
    ],
)
def test_benchmarks_run_on_cuda(name: str):
    assert bench.run(name, MPI.COMM_SELF, device="cuda", small=True)


def test_benchmarks_of_gpus_go_to_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that fails or does not end leaves what others have measured."""
    row = {"bench": "kac", "case": "x", "value": 1.0, "unit": "ns", "min": 1.0, "max": 2.0}

    def run(command: list[str], **how: Any) -> Any:
        name = command[command.index("--one") + 1] if "--one" in command else ""
        if name == "ising":
            raise subprocess.TimeoutExpired(command, how["timeout"], json.dumps(row).encode())
        return SimpleNamespace(
            stdout=json.dumps(row) if name else "", returncode=int(name == "alloy")
        )

    monkeypatch.setattr(bench_gpu.subprocess, "run", run)
    monkeypatch.setattr(bench_gpu.gpu, "kernels", lambda: ["GPU-a"])
    monkeypatch.setattr(bench_gpu.device, "gpu_capabilities", lambda: ["9.0"])
    out = tmp_path / "results" / "bench-gpu.json"
    assert bench_gpu.measure(out) == 1
    found = json.loads(out.read_text())
    assert found["rows"] == [row] * len(bench_gpu.SHARES)
    assert found["unfinished"] == {"ising": "took longer than 150 s", "alloy": "ended with 1"}
    assert found["facts"]["capabilities"] == ["9.0"]
    assert sum(bench_gpu.SHARES.values()) < 480
    assert set(bench_gpu.SHARES) == {"baseline", *bench.ON_GPUS}


def test_work_is_laid_out_in_time(monkeypatch: pytest.MonkeyPatch):
    """A hop takes a cycle, a tile one more: two long tiles far apart, in passes 0 and 2."""
    only = {name: float(name in ("task", "hop")) for name in alloy_budget.CYCLES}
    monkeypatch.setattr(alloy_budget, "CYCLES", only)
    passes = [
        np.array([(0, 0, 100 * (number == at), number) for number in range(first, 8, 2)])
        for first, at in ((0, 0), (1, -1), (0, 4))
    ]
    work = alloy_budget.Counted(passes, 1, (8, 1, 1), (8, 8, 8))
    for members in (1, 2):
        cycles = (
            alloy_budget.seconds(work, members, neighbours=how) * alloy_budget.GIGAHERTZ * 1e9
            for how in (False, True)
        )
        assert tuple(cycles) == pytest.approx((101 + 1 + 101, 101 + 1 + 1))


@pytest.mark.kernel
@pytest.mark.skipif(not simulated(), reason="needs NUMBA_ENABLE_CUDASIM=1")
def test_the_baseline_of_gpus_has_the_law_of_metropolis():
    """Known answers of its generator [Random123]; how often spins of each class flip."""
    assert multispin_baseline.philox(0, 0, 0, 0, 0, 0) == (
        0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8,
    )  # fmt: skip
    ones = (0xFFFFFFFF,) * 6
    assert multispin_baseline.philox(*ones) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    lattice, random = multispin_baseline.Nibbles(12, 64, 5.0), np.random.default_rng(5)
    chances = [math.exp(-8 / 5), math.exp(-4 / 5), 1, 1, 1]
    tried, flipped = np.zeros(5), np.zeros(5)
    for number in range(10):
        before = random.choice(np.array([-1, 1], np.int8), (12, 64))
        lattice.store(before)
        lattice.apply(number, 7)
        flips = lattice.spins() != before
        around = sum(np.roll(before, step, axis) for step in (1, -1) for axis in (0, 1))
        opposite, colour = (4 - before * around) // 2, np.add.outer(np.arange(12), np.arange(64))
        tries = (colour + number) % 2 == 0
        assert not flips[~tries].any()
        tried += np.bincount(opposite[tries], minlength=5)
        flipped += np.bincount(opposite[flips], minlength=5)
    spread = np.sqrt(tried * chances * np.subtract(1, chances))
    assert np.all(np.abs(flipped - tried * chances) <= 4 * spread + 1e-9)
    assert multispin_baseline.measured(small=True)[0]["value"] > 0


def test_without_a_gpu_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    none = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setattr(mpiflow.core.device, "cuda", lambda: none)
    with pytest.raises(InputError, match="^device='cuda'"):
        bench_gpu.measure(tmp_path / "results" / "bench-gpu.json")
    assert not list(tmp_path.iterdir())


def test_table_is_aligned():
    row = {"bench": "noise", "case": "x", "value": 1.23456, "unit": "words/ns", "min": 1, "max": 2}
    lines = bench.table([row, row | {"case": "a longer case"}]).splitlines()
    assert len(lines) == 3
    assert len({line.index("words/ns") for line in lines[1:]}) == 1
    assert "1.235" in lines[1]


def test_unknown_benchmark():
    with pytest.raises(InputError, match=r"bench='isin'.*partial-evolution"):
        bench.run("isin", MPI.COMM_SELF)
    with pytest.raises(InputError, match="device='cuda'"):
        bench.run("halo", MPI.COMM_SELF, device="cuda")


def test_json_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(bench, "REPEATS", 2)
    monkeypatch.setattr(bench, "LONG_ENOUGH", 1e-3)
    invoke(["bench", "noise", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["case"].split(",")[0] for line in lines] == ["threefry2x64-13", "philox4x32-10"]


ALL = 0xFFFFFFFF
# Known answers of philox4x32-10 from Random123's kat_vectors: counter, key, result.
PHILOX = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ALL, ALL, ALL, ALL), (ALL, ALL), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), PHILOX)
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], result: tuple[int, ...]
):
    out = np.zeros((2, 1), np.uint64)
    step, site = counter[0] | counter[1] << 32, counter[2] | counter[3] << 32
    bench.fill_philox(
        np.array(key, np.uint64), np.uint64(step), 1, np.array([site], np.uint64), out
    )
    got = [int(word) for word in out[:, 0]]
    assert got == [result[0] << 32 | result[1], result[2] << 32 | result[3]]


def test_threefry_benchmark_draws_the_noise_of_mpiflow():
    sites = np.arange(5, dtype=np.uint64)
    out = np.zeros((2, 5), np.uint64)
    bench.fill_threefry(stream_key(3, "sublattice"), np.uint64(7), 1, sites, out)
    np.testing.assert_array_equal(out.T, words(3, "sublattice", 0, 7, sites))


def test_memory_of_a_run_is_not_that_of_the_program_that_starts_it(tmp_path: Path) -> None:
    def memory() -> float:
        return start._run(
            tmp_path, "curie-weiss", {"size": 8, "temperature": 1.1, "time": 1}
        ).memory

    alone = memory()
    ballast = np.ones(int(2 * alone * 2**20 / 8))
    assert memory() < 1.5 * alone
    assert ballast.all()
