"""``make test-slurm``: jobs/array.slurm on the two-node Slurm of jobs/local-slurm.sh.

Four runs in an array, two tasks each over both nodes. A walltime and USR1 strike, Slurm requeues,
and at the end every file holds the bits of a run on one rank that nothing disturbed. Prints a line
for each run and a verdict; exit code 0 if all is well.

Not for pytest: it needs Slurm and a few minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import h5py

ROOT = Path(__file__).resolve().parent.parent.parent
LOCAL = ROOT / "jobs" / "local-slurm.sh"
MPIFLOW = ROOT / ".venv" / "bin" / "mpiflow"
LIMIT = 480.0  # s for everything

TEMPERATURES, SEEDS = ("2.0", "2.3"), ("1", "2")
PAIRS = [(t, s) for t in TEMPERATURES for s in SEEDS]
#: Some 10 s of work on a core, so that the walltime strikes before its end.
OPTIONS = "--size 512 --coarse 8 --time 40000 --save-every 400 --spins".split()


class Failed(Exception):
    """What is wrong, in a line."""


def call(*command: str | Path, **settings: object) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=LIMIT,
        check=False,
        **settings,  # type: ignore[call-overload]
    )
    if done.returncode:
        tail = (done.stderr or done.stdout).strip()[-2000:]
        raise Failed(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{tail}")
    return str(done.stdout)


def name_of(temperature: str, seed: str) -> str:
    return f"T{temperature}_seed{seed}.h5"


def undisturbed(folder: Path) -> float:
    """The same runs on one rank, by plain mpirun, two at a time. Seconds of the fastest."""
    folder.mkdir()
    # As jobs/array.slurm has them.
    common = "--dt 0.25 --initial-magnetization 0.5 --quiet".split()

    def run(pair: tuple[str, str]) -> float:
        began = time.monotonic()
        own = ["--temperature", pair[0], "--seed", pair[1], "--out", folder / name_of(*pair)]
        call("mpirun", "-n", "1", MPIFLOW, "simulate", "ising", *common, *OPTIONS, *own)
        return time.monotonic() - began

    with ThreadPoolExecutor(2) as two:
        return min(two.map(run, PAIRS))


def submit(out: Path, logs: Path, walltime: float) -> str:
    """Submit the array; its job number."""
    settings = {
        "TEMPERATURES": " ".join(TEMPERATURES),
        "SEEDS": " ".join(SEEDS),
        "OUT": str(out),
        "WALLTIME": f"{walltime:.0f}",
        "MAX_RESTARTS": "20",
    }
    options = ["--nodes=2", "--ntasks=2", "--time=10", f"--array=0-{len(PAIRS) - 1}"]
    return call(
        *("sbatch", "--parsable", *options, f"--output={logs}/%a.out", "jobs/array.slurm"),
        *OPTIONS,
        env=os.environ | settings,
    ).strip()


class Task(NamedTuple):
    """Of the array: state and number of restarts."""

    state: str
    restarts: int


def tasks_of(job: str) -> dict[int, Task]:
    """The tasks of the array that have started."""
    found = {}
    for record in call("scontrol", "--oneliner", "show", "job", job).splitlines():
        fields = dict(word.split("=", 1) for word in record.split() if "=" in word)
        if fields.get("ArrayTaskId", "").isdecimal():
            task = Task(fields["JobState"], int(fields["Restarts"]))
            found[int(fields["ArrayTaskId"])] = task
    return found


def wait(job: str, out: Path, logs: Path, deadline: float) -> None:
    """Until all tasks have ended; the first of them gets a USR1 once it is under way."""
    signalled = False
    over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")
    while True:
        tasks = tasks_of(job)
        if len(tasks) == len(PAIRS) and all(task.state in over for task in tasks.values()):
            break
        if time.monotonic() > deadline:
            raise Failed(f"not done after {LIMIT:.0f} s: {tasks}")
        if not signalled and frames(out / name_of(*PAIRS[0])) > 2:
            # As Slurm itself does for --signal=USR1@180: to the steps, not to the batch script.
            # Once, because a second one kills: scancel tries again after 5 s where Slurm was busy,
            # though the signal has arrived; and to a step of an array it sends two.
            subprocess.run(["timeout", "4", "scancel", "--signal=USR1", f"{job}_0"], check=False)
            signalled = True
        time.sleep(0.5)
    for number, (state, restarts) in sorted(tasks.items()):
        if state != "COMPLETED":
            raise Failed(f"task {number} ended as {state}\n{log(logs, number)[-2000:]}")
        if restarts < 1:
            raise Failed(f"task {number} was never requeued: too short for the walltime?")


def frames(path: Path) -> int:
    """Frames in a file that is being written; 0 before there are any."""
    try:
        with h5py.File(path, locking=False) as file:
            return len(file["time"])
    except (OSError, KeyError):
        return 0


def log(logs: Path, number: int) -> str:
    return (logs / f"{number}.out").read_text()


def difference(path: Path, other: Path) -> str:
    """The first variable in which two files differ, or nothing."""
    with h5py.File(path) as a, h5py.File(other) as b:
        for file in (a, b):
            if file.attrs["complete"] != 1:
                return f"{file.filename} is not complete"
        if set(a) != set(b):
            return f"variables {sorted(set(a) ^ set(b))}"
        for name in a:
            x, y = a[name], b[name]
            if (x.shape, x.dtype) != (y.shape, y.dtype) or x[()].tobytes() != y[()].tobytes():
                return f"{name} {x.shape} and {y.shape}"
    return ""


def compare(out: Path, reference: Path, logs: Path, job: str) -> None:
    """Bits of all files; a line for each."""
    tasks = tasks_of(job)
    stops: list[str] = []
    for number, pair in enumerate(PAIRS):
        path = out / name_of(*pair)
        if wrong := difference(path, reference / path.name):
            raise Failed(f"{path.name} differs from the undisturbed run: {wrong}")
        text = log(logs, number)
        starts = len(re.findall(r"^job \S+, start \d+ on n\[1-2\]:", text, re.MULTILINE))
        codes = len(re.findall(r"^job \S+: not done, requeued$", text, re.MULTILINE))
        if not starts == codes + 1 == tasks[number].restarts + 1:
            raise Failed(f"task {number}: {starts} starts, {codes} requeues\n{text[-2000:]}")
        reasons = re.findall(r"\b(walltime|SIGUSR1)\b(?=.*checkpoint)", text)
        stops += reasons
        print(f"{path.name}: started {starts} times ({', '.join(reasons)}), same bits", flush=True)
    if set(stops) != {"walltime", "SIGUSR1"}:
        raise Failed(f"stopped by {sorted(set(stops))}, not by both walltime and SIGUSR1")


def main() -> None:
    began = time.monotonic()
    own = subprocess.run([LOCAL, "status"], capture_output=True, check=False).returncode != 0
    started = call(LOCAL, "start")
    os.environ["SLURM_CONF"] = re.findall(r"^export SLURM_CONF=(.*)$", started, re.MULTILINE)[0]
    work = Path(tempfile.mkdtemp(prefix="mpiflow-test-slurm-"))
    out, logs = work / "runs", work / "logs"
    logs.mkdir()
    job = ""
    try:
        # Shorter than a run, longer than its start.
        walltime = max(8.0, 0.6 * undisturbed(work / "reference"))
        job = submit(out, logs, walltime)
        wait(job, out, logs, began + LIMIT)
        compare(out, work / "reference", logs, job)
        call(MPIFLOW, "verify", out)
    except (Failed, subprocess.TimeoutExpired, OSError) as error:
        if job:
            subprocess.run(["scancel", job], check=False)
        print(f"test-slurm: FAILED: {error}\nleft in {work}", flush=True)
        sys.exit(1)
    finally:
        if own:
            subprocess.run([LOCAL, "stop"], check=False)
    shutil.rmtree(work)
    seconds = time.monotonic() - began
    print(
        f"test-slurm: passed in {seconds:.0f} s: {len(PAIRS)} runs interrupted, requeued, same bits"
    )


if __name__ == "__main__":
    main()
