"""Batch scripts: bash reads them, and what they start has options that mpiflow knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from mpiflow.simulation import catalogue

ROOT = Path(__file__).resolve().parent.parent
JOBS = ROOT / "jobs"
SCRIPTS = sorted(
    p.name for p in JOBS.iterdir() if p.suffix in (".sh", ".slurm", ".pbs", ".lsf", ".flux")
)
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


#: What each scheduler tells a job, and the commands of it that the scripts call: launchers print
#: what they would start and end with the code that is asked for.
LAUNCH = 'printf "%s\\n" "$@" >"$STARTED"; exit "${CODE:-0}"'
SCHEDULERS = {
    "pbs": (
        {"PBS_JOBID": "12.host", "PBS_O_WORKDIR": str(ROOT), "PBS_NODEFILE": "nodes"},
        {
            "mpiexec": LAUNCH,
            "qstat": 'printf "  Resource_List.walltime = 01:00:00\\n'
            '  resources_used.walltime = 00:10:00\\n"',
            "qrerun": 'echo "rerun $1" >"$AGAIN"',
        },
        "mpiexec -n 2",
        "rerun 12.host",
    ),
    "lsf": (
        {"LSB_JOBID": "12", "LS_SUBCWD": str(ROOT), "LSB_DJOB_NUMPROC": "2"},
        {"mpiexec": LAUNCH, "bjobs": 'echo "0:50 L"'},
        "mpiexec -n 2",
        "",
    ),
    "flux": (
        {"FLUX_JOB_ID": "f12"},
        {
            "flux": 'case "$1" in resource) echo 2;; job) echo 3000;; '
            f"run) {LAUNCH};; "
            '--parent) echo "$@" >"$AGAIN";; esac'
        },
        "run -n 2 -c 1",
        "--parent batch",
    ),
}


@pytest.mark.parametrize("code", [0, 75, 2])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_other_schedulers(scheduler: str, code: int, tmp_path: Path) -> None:
    """On all ranks, for the time that is left; into the queue again with 75 and only then."""
    variables, programs, launched, again = SCHEDULERS[scheduler]
    for name, text in {**programs, "sleep": "exit 0"}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "nodes").write_text("n1\nn2\n")
    started, second = tmp_path / "started", tmp_path / "again"
    known = ("SLURM_", "PBS_", "LSB_", "FLUX_", "MPIFLOW_")
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith(known)},
        **variables, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STARTED": str(started),
        "AGAIN": str(second), "CODE": str(code), "OUT": str(tmp_path / "run.h5"),
        "MPIFLOW_BIN": "/opt/bin",
    }  # fmt: skip
    if "PBS_NODEFILE" in env:
        env["PBS_NODEFILE"] = str(tmp_path / "nodes")
    command = ["bash", str(JOBS / f"ising.{scheduler}"), "--size", "64"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == (0 if scheduler == "flux" and code == 75 else code), done.stderr
    words = started.read_text().split()
    assert " ".join(words).startswith(launched.removeprefix("mpiexec "))
    assert "/opt/bin/mpiflow simulate ising" in " ".join(words)
    assert words[-2:] == ["--size", "64"]
    assert float(words[words.index("--walltime") + 1]) == 50 * 60 - 120
    assert second.exists() == (code == 75 and bool(again))
    if second.exists():
        assert again in second.read_text()
    if scheduler == "lsf":
        assert "#BSUB -Q 75" in (JOBS / "ising.lsf").read_text()


def test_what_a_site_sets(slurm: Path, tmp_path: Path) -> None:
    """The MPI type, the programs, an environment that is read first; none of them is fixed."""
    started = tmp_path / "started"
    (tmp_path / "env").write_text("export FROM_ENV=yes\n")
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("SLURM_")},
        "PATH": f"{slurm}:{os.environ['PATH']}", "STARTED": str(started),
        "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1",
        "MPIFLOW_BIN": "/opt/bin", "MPIFLOW_ENV": str(tmp_path / "env"),
    }  # fmt: skip
    for kind, option in (("pmi2", ["--mpi=pmi2"]), ("", [])):
        command = ["bash", str(JOBS / "ising.slurm")]
        subprocess.run(command, env=env | {"MPIFLOW_MPI": kind}, check=True, capture_output=True)
        words = started.read_text().split()
        assert [w for w in words if w.startswith("--mpi")] == option
        assert "/opt/bin/mpiflow" in words
    env["MPIFLOW_LAUNCH"] = "srun --launcher mine"
    subprocess.run(command, env=env, check=True, capture_output=True)
    assert started.read_text().split()[:3] == ["--launcher", "mine", "/opt/bin/mpiflow"]
    outside = {k: v for k, v in env.items() if k != "SLURM_JOB_ID"}
    done = subprocess.run(command, env=outside, capture_output=True, text=True)
    assert done.returncode == 2
    assert "submit this script" in done.stderr


def test_recipes_say_what_the_set_up_says() -> None:
    """Debian packages of the images, and lower bounds of Spack's package."""
    setup = (JOBS / "setup.sh").read_text()
    needed = set(re.findall(r"^debian=\((gcc .*)\)$", setup, re.MULTILINE)[0].split())
    for name in ("Dockerfile", "apptainer.def"):
        assert needed < set((JOBS / name).read_text().split()), name
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["learn"], *extras["plot"]]
    bounds = dict(text.lower().split(">=") for text in wanted)
    package = (JOBS / "spack" / "package.py").read_text()
    known = dict(re.findall(r'depends_on\("py-([\w-]+)@([\d.]+):', package))
    ours = {n: v for n, v in known.items() if not n.startswith("setuptools")}
    assert ours.keys() == bounds.keys()
    for name, bound in bounds.items():
        assert (bound + ".0").startswith(ours[name]), name
    assert f"python@{project['requires-python'].removeprefix('>=')}:" in package
