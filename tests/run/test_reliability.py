"""A little of tests/tools/reliability.py, and how a job ends: signals, walltime, a killed rank."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import reliability

from mpiflow.cli import invoke
from mpiflow.core import signals
from mpiflow.files import checkpoint
from mpiflow.files.trajectory import Trajectory
from mpiflow.run import progress
from mpiflow.run.stopping import Stopped

MpiRun = Callable[..., subprocess.CompletedProcess[str]]
ENDLESS = (
    "simulate ising --size 128 --temperature 2.3 --dt 0.5 --time 1e7 --save-every 2500 --seed 2 "
    "--quiet --out"
).split()


@pytest.mark.validate  # make test-reliability has a hundred of each
@pytest.mark.parametrize(("kind", "ranks"), [("live", 2), ("checkpoint", 1)])
def test_killed_runs_leave_what_was_promised(kind, ranks):
    """Frames of both: those of two ranks by parallel HDF5, those of one without it."""
    result = reliability.kills(kind, ranks, 3, seed=ranks)
    assert (result.killed, result.resumed, result.frames_lost) == (3, 1, 0)


def test_some_ranks_then_others(tmp_path, mpirun: MpiRun):
    """Programs; tests/simulation/test_contract.py has all systems, within one process a rank."""
    line = ["simulate", *reliability.SYSTEMS["alloy"], *"--seed 3 --quiet --save-every".split()]
    whole, part = tmp_path / "whole.h5", tmp_path / "part.h5"
    invoke([*line, "4e-10", "--out", str(whole)])
    mpirun(3, "mpiflow", *line, "4e-10", "--time", "8e-10", "--out", part)
    invoke(["resume", str(part), "--time", "2e-9", "--quiet"])
    assert reliability.same(whole, part)


def start(ranks: int, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        reliability.mpiflow(ranks, *arguments, interval=0.0), env=reliability.environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("frames 3"):  # compiled, and on its way
            return process
    raise AssertionError(f"it ended: {process.wait()}")


def end(process: subprocess.Popen[str]) -> tuple[int, str, float]:
    """Exit code, what it said, and how long it took."""
    began = time.monotonic()
    try:
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said, time.monotonic() - began


def assert_stopped(out: Path, number: signal.Signals, said: str) -> None:
    """At a checkpoint that is the one named, with all frames before it."""
    found = re.search(rf"{number.name}: stopped at time (\S+); checkpoint checkpoints/run", said)
    assert found, said
    assert f"time {found[1]}" in checkpoint.verify(checkpoint.paths(out)[0])
    with Trajectory(out) as trajectory:
        assert len(trajectory) == int(float(found[1])) // 2500 + 1
        assert not trajectory.complete


@pytest.mark.parametrize(
    ("ranks", "number", "code"),
    [
        (1, signal.SIGTERM, 75),
        pytest.param(2, signal.SIGUSR1, 75, marks=pytest.mark.validate),
        (2, signal.SIGTERM, 1),  # mpirun's own, once the ranks are done
    ],
)
def test_a_signal_stops_it_with_a_checkpoint(tmp_path, ranks, number, code):
    out = tmp_path / "run.h5"
    process = start(ranks, *ENDLESS, str(out))
    process.send_signal(number)
    returned, said, seconds = end(process)
    assert returned == code, said
    assert seconds < 15
    assert_stopped(out, number, said)


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU]
)
def test_every_signal_that_asks_stops_it(tmp_path, capsys, number):
    """As in the program, whose first act is to listen, but in this process."""
    out = tmp_path / "run.h5"
    send = threading.Thread(target=lambda: (wait_for(out), os.kill(os.getpid(), number)))
    assert signals.listen()
    try:
        send.start()
        with pytest.raises(Stopped) as caught:
            invoke([*ENDLESS, str(out)])
        send.join()
    finally:
        signals.stop_listening()
    assert caught.value.code == 75
    assert_stopped(out, number, capsys.readouterr().err)


def wait_for(out: Path) -> None:
    """Until a run is on its way."""
    while not out.exists():
        time.sleep(0.01)
    time.sleep(0.2)


@pytest.mark.parametrize(
    ("second", "wait", "code"),
    [
        (signal.SIGTERM, 1.3, -signal.SIGTERM),
        (signal.SIGINT, 1.3, -signal.SIGINT),
        (signal.SIGTERM, 0.1, 75),  # launchers repeat theirs
        (signal.SIGUSR1, 1.3, 75),
    ],
)
def test_a_second_signal(tmp_path, second, wait, code):
    """While a checkpoint is being written, slowly; repeated is what comes within a second."""
    out = tmp_path / "run.h5"
    program = (
        "import sys, time\n"
        "from mpiflow.core import signals\n"
        "signals.REPEATED = 1.0\n"
        "signals.listen()\n"  # as main() does, long before MPI
        "print('listening', file=sys.stderr, flush=True)\n"
        "from mpiflow import checkpoint, cli\n"
        "write = checkpoint.write\n"
        "def slow(*a):\n"
        "    print('writing', file=sys.stderr, flush=True)\n"
        "    time.sleep(2)\n"
        "    return write(*a)\n"
        "checkpoint.write = slow\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *ENDLESS, str(out)], env=reliability.environment(),
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stderr.readline() == "listening\n"
    process.send_signal(signal.SIGUSR1)
    if wait > 1.0:
        assert process.stderr.readline() == "writing\n"
    time.sleep(wait)
    process.send_signal(second)
    returned, said, seconds = end(process)
    assert (returned, seconds < 15) == (code, True), said
    assert len(checkpoint.paths(out)) == (code == 75)


@pytest.mark.parametrize(
    ("first", "number", "code"),
    [("simulate", signal.SIGTERM, 75), ("simulate", 0, 75), ("learn", signal.SIGHUP, 129)],
)
def test_a_program_with_nothing_to_lose_does_not_wait(first, number, code):
    """Its main thread is in a kernel, or in the compiler: no handler of Python's runs."""
    program = (
        "import ctypes, sys, time\n"
        f"sys.argv[1:] = [{first!r}]\n"
        "from mpiflow import cli; from mpiflow.core import signals\n"
        "def busy(arguments):\n"
        f"    if {number} == 0:\n"
        "        signals.until(time.monotonic() + 0.5)\n"
        "    print('busy', flush=True)\n"
        "    ctypes.CDLL(None).sleep(60)\n"
        "    ctypes.CDLL(None).sleep(60)\n"  # a handler does not end the second
        "cli.invoke = busy\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=reliability.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    if number:
        process.send_signal(number)
    returned, said, seconds = end(process)
    assert (returned, seconds < 30) == (code, True), said
    assert f"mpiflow: {signals.name_of(number)}: " in said


def test_a_driver_ends_with_a_line_also_after_a_run_of_its_own(tmp_path):
    """Fails where the first recording is the end of the watch, or there is none."""
    program = (
        "import ctypes, sys\n"
        "from mpiflow import Ising, Simulation, initial, parallel, record\n"
        "from mpiflow.experiments.results import results_directory\n"
        "out = results_directory(sys.argv[1], parallel.start())\n"
        "sim = Simulation(Ising(2.3), 8)\n"
        "sim.set_spins(initial.shuffled)\n"
        "record(sim, out / 'a.h5', time=2, save_every=1, progress=False)\n"
        "print('busy', flush=True)\n"
        "ctypes.CDLL(None).sleep(60)\n"
        "ctypes.CDLL(None).sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "results")], env=reliability.environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    process.send_signal(signal.SIGTERM)
    returned, said, seconds = end(process)
    assert (returned, seconds < 30) == (128 + signal.SIGTERM, True), said
    ended = "ended before the results were complete; what is finished is in"
    assert said == f"mpiflow: SIGTERM: {ended} {tmp_path / 'results'}\n"


def test_nohup_stays():
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signals.listen()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.raise_signal(signal.SIGXCPU)
        signal.raise_signal(signal.SIGHUP)
        assert signals.received() == signal.SIGXCPU
    finally:
        signals.stop_listening()
        signal.signal(signal.SIGHUP, old)


@pytest.mark.validate  # make test-reliability has walltimes of every solver
def test_walltime_then_the_same_command_again(tmp_path, mpirun: MpiRun):
    options = (
        "simulate ising --size 128 --temperature 2.3 --dt 0.5 --time 400000 --save-every 2000 "
        "--seed 2 --resume --quiet --out"
    ).split()
    whole, out = tmp_path / "whole.h5", tmp_path / "run.h5"
    mpirun(1, "mpiflow", *options, tmp_path / "short.h5", "--time", "2000")  # compiles
    began = time.monotonic()
    mpirun(1, "mpiflow", *options, whole)
    walltime = 0.4 * (time.monotonic() - began)

    def again(ranks: int, walltime: float) -> subprocess.CompletedProcess[str]:
        limit = ("--walltime", str(walltime))
        return mpirun(ranks, "mpiflow", *options, out, *limit, check=False)

    while "stopped before its first steps" in (done := again(1, walltime)).stderr:
        walltime *= 1.3  # a slow or busy machine was still starting
    assert done.returncode == 75
    assert "walltime: stopped at time" in done.stderr
    assert again(2, 2 * walltime).returncode in (0, 75)
    assert again(1, 100).returncode == 0
    assert reliability.same(whole, out)


def test_a_killed_rank_ends_the_job_and_is_named(tmp_path):
    process = start(2, *ENDLESS, str(tmp_path / "run.h5"))
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    code, said, seconds = end(process)
    assert code != 0
    assert seconds < 15
    assert re.search(r"rank 1 .*signal 9", said.replace("\n", " ")), said
    with Trajectory(tmp_path / "run.h5") as trajectory:
        assert len(trajectory) >= 3


@pytest.mark.parametrize(
    ("where", "target"),
    [
        ("solvers.spins.sublattice", "Sublattice.chain"),
        pytest.param("core.packed", "PackedBlock.start_exchange", marks=pytest.mark.validate),
        pytest.param("files.writer", "TrajectoryWriter._store", marks=pytest.mark.validate),
        pytest.param("files.checkpoint", "write", marks=pytest.mark.validate),
    ],
)
def test_an_exception_on_one_rank_ends_the_job_and_is_named(tmp_path, where, target):
    program = (
        f"import mpiflow.{where} as module\n"
        f"function, count = module.{target}, [0]\n"
        "def broken(*a, **k):\n"
        "    from mpi4py import MPI\n"
        "    count[0] += 1\n"
        "    if MPI.COMM_WORLD.rank == 1 and count[0] > 3:\n"
        "        raise ZeroDivisionError('planted')\n"
        "    return function(*a, **k)\n"
        f"module.{target} = broken\n"
        "from mpiflow.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        ["timeout", "240", "mpirun", "-n", "2", sys.executable, "-c", program, *ENDLESS,
         str(tmp_path / "run.h5"), "--checkpoint-every", "2500"],
        env=reliability.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "rank 1 of 2 failed; ending all ranks" in done.stderr
    assert "ZeroDivisionError: planted" in done.stderr


def test_the_log_of_a_long_run_is_short(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress(1e6, "run.h5") as bar:  # a month, a look every 2.6 s
        for i in range(1, 10**6 + 1):
            now[0] += 2.6
            bar.update(i, t=0.1 * i, m=0.25)
    assert len(capsys.readouterr().err) < 100_000
