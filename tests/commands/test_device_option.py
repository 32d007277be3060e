"""``--device`` on a machine without a GPU: one line says what to do, and nothing is written."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mpiflow.core.device
from mpiflow import InputError, Trajectory
from mpiflow.cli import invoke

ROOT = Path(__file__).resolve().parent.parent.parent
SPINS = ["--size=16", "--temperature=2.5", "--time=1", "--out=new/run.h5"]
#: Command lines, and what the error is about where it is not the device.
COMMANDS: dict[str, list[str]] = {
    "ising": ["simulate", "ising", *SPINS],
    "potts": ["simulate", "potts", *SPINS],
    "kac": ["simulate", "kac", "--gamma=2", *SPINS],
    "alloy": ["simulate", "alloy", "--cells=8", "--temperature=2000", "--time=1e-9",
              "--solver=tiled", "--out=new/run.h5"],
    "sweep": ["sweep", "sweep.toml", "--out=new/sweep"],
    "closure": ["learn", "closure", "no.csv", "--out=new/model"],
    "generator": ["learn", "generator", "no.h5", "--prior=mlp", "--out=new/model"],
    "alloy order": ["learn", "alloy", "no.h5", "--out=new/model"],
    "onsagerflow": ["learn", "onsagerflow", "--runs=no.h5", "--network", "--out=new/model"],
    "predict": ["predict", "model", "--time=1", "--out=new/run.h5"],
    "bench": ["bench", "ising"],
}  # fmt: skip


@pytest.fixture
def without_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "0")
    none = SimpleNamespace(is_available=lambda: False)
    monkeypatch.setattr(mpiflow.core.device, "cuda", lambda: none)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.json").write_text('{"kind": "closure"}')
    (tmp_path / "sweep.toml").write_text(
        'system = "ising"\nsize = 16\ntime = 1\ndevice = "cuda"\n[sweep]\ntemperature = [2, 3]\n'
    )
    return tmp_path / "new"


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_say_that_there_is_none(name: str, without_gpu: Path) -> None:
    words = COMMANDS[name]
    given = [] if name == "sweep" else ["--device=cuda"]
    with pytest.raises(InputError, match=r"^device='cuda': allowed is .*Use --device cpu"):
        invoke([*words, *given])
    assert not list(without_gpu.iterdir())


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_know_the_names(name: str, without_gpu: Path) -> None:
    if name != "sweep":
        with pytest.raises(InputError, match=r"^device='gpu': allowed is 'cpu' or 'cuda'"):
            invoke([*COMMANDS[name], "--device=gpu"])
    assert not list(without_gpu.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["learn", "generator", "no.h5", "--out=new/model"],
        ["learn", "onsagerflow", "--runs=no.h5", "--out=new/model"],
        ["simulate", "alloy", "--cells=4", "--temperature=900", "--time=1e-9", "--out=new/x.h5"],
    ],
)
def test_what_only_the_cpu_does_is_not_for_a_gpu(words: list[str], without_gpu: Path) -> None:
    with pytest.raises(InputError, match=r"^device='cuda'"):
        invoke([*words, "--device=cuda"])


def test_resume_says_that_there_is_none(without_gpu: Path) -> None:
    options = ["--size=8", "--temperature=2.5", "--time=1", "--dt=inf", "--out=run.h5", "--quiet"]
    invoke(["simulate", "ising", *options])
    with pytest.raises(InputError, match=r"^device='cuda': allowed is .*Use --device cpu"):
        invoke(["resume", "run.h5", "--time=2", "--device=cuda"])
    with Trajectory("run.h5") as run:
        assert run.time[-1] == 1


#: All but those that ask for a model or data first.
DRIVERS = sorted(
    path.stem
    for path in (ROOT / "drivers").glob("*.py")
    if path.stem not in ("alloy_report", "alloy_sizes", "onsagerflow_validate")
)


@pytest.mark.parametrize("name", DRIVERS)
def test_drivers_say_that_there_is_none(
    name: str, without_gpu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [f"{name}.py", "--smoke", "--device=cuda", f"--out={without_gpu / 'out'}"]
    monkeypatch.setattr(sys, "argv", line)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # drivers have their own
    with pytest.raises(InputError, match=r"^device='cuda': allowed is .*Use --device cpu"):
        runpy.run_path(str(ROOT / "drivers" / f"{name}.py"), run_name="__main__")
    assert not list(without_gpu.iterdir())


def test_all_ranks_of_a_driver_end_with_it(
    mpirun: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    driver, out = ROOT / "drivers" / "dmd_mobility.py", tmp_path / "out"
    done = mpirun(2, "python", driver, "--smoke", "--device=cuda", "--out", out, check=False)
    assert done.returncode == 2
    assert done.stderr.count("device='cuda'") == 1
    assert not out.exists()
