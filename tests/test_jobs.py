"""Batch scripts: bash reads them, and what they start has options that mpiflow knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mpiflow.simulation import catalogue

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "jobs"
SCRIPTS = sorted(p.name for p in JOBS.iterdir() if p.suffix in (".sh", ".slurm"))
#: What a script is given, where it needs something.
GIVEN = {
    "driver.slurm": ["drivers/demo.py", "--smoke"],
    **{f"gpu{n}.slurm": ["simulate", "kac", "--size=64", "--gamma=2", "--temperature=1",
                         "--time=1", "--out=run.h5"] for n in (1, 4, 8)},
}  # fmt: skip


def test_bash_and_shellcheck_read_all_scripts() -> None:
    files = [str(JOBS / name) for name in SCRIPTS]
    for file in files:
        assert subprocess.run(["bash", "-n", file], capture_output=True).stderr == b"", file
    if checker := shutil.which("shellcheck"):
        done = subprocess.run([checker, "-S", "warning", *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands that stand for Slurm's: srun prints what it would start."""
    folder = tmp_path_factory.mktemp("slurm")
    programs = {
        "srun": 'env | grep "_BIND" >&2; printf "%s\\n" "$@" >"$STARTED"',
        "squeue": "echo 1:00:00",
        "scontrol": "exit 1",
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n.endswith(".slurm")])
def test_what_a_job_starts(name: str, slurm: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
        "PATH": f"{slurm}:{os.environ['PATH']}", "STARTED": str(started),
        "OUT": str(tmp_path / "out"),
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "2",
    }  # fmt: skip
    command = ["bash", str(JOBS / name), *GIVEN.get(name, [])]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = started.read_text().splitlines()
    text, gpus = (JOBS / name).read_text(), "gpu" in name
    assert (".venv-cuda/bin/python" in words) == ("cuda" in words) == gpus
    each = {
        o: re.search(rf"#SBATCH --{o}=(\d+)", text) for o in ("gpus-per-node", "ntasks-per-node")
    }
    assert len({found and found[1] for found in each.values()}) == 1, "a task for each GPU"
    if name.startswith("gpu"):
        assert each["gpus-per-node"]
        assert each["gpus-per-node"][1] == name[3]
        assert "SLURM_GPU_BIND=none" in done.stderr
    if "simulate" not in words:
        return
    start = words.index("simulate")
    options = " ".join(words[start + 2 :]).replace("=", " ").split("--")[1:]
    given = dict([*option.split(), "true"][:2] for option in options)
    assert float(given["walltime"]) == 3480  # two minutes before an hour
    known = catalogue.options(words[start + 1])
    config = known(**{key.replace("-", "_"): value for key, value in given.items()})
    assert config.device == ("cuda" if gpus else "cpu")
