"""What the files of a run survive: kills at random times, changes of ranks, and what it costs.

    make test-reliability        # all of it, about half an hour
    .venv/bin/python tests/tools/reliability.py kills --count 20 --kind live --ranks 2

Every part ends the program with an error if a promise of docs/reliability.md is broken.
tests/run/test_reliability.py does a little of each part.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
MPI_ENVIRONMENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    # mpirun kills what is left a second after SIGTERM; a busy machine takes longer.
    "OMPI_MCA_odls_base_sigkill_timeout": "4",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMP_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
}
#: mpiflow, with each frame flushed at once, and a line for each flush and checkpoint.
CHILD = """
import sys
from mpiflow.files import checkpoint
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.cli import main
class Writer(TrajectoryWriter):
    def __init__(self, *a, **k):
        super().__init__(*a, flush_interval={interval}, **k)
        print("ready", file=sys.stderr, flush=True)
    def flush(self):
        super().flush()
        if self.comm.rank == 0:
            print("frames", self._frames, file=sys.stderr, flush=True)
from mpiflow.run import follow
follow.TrajectoryWriter = Writer
write = checkpoint.write
def told(out, sim, *rest):
    path = write(out, sim, *rest)
    if sim.comm.rank == 0:
        print("checkpoint", rest[-1]["frames"], file=sys.stderr, flush=True)
    return path
checkpoint.write = told
main()
"""


def mpiflow(ranks: int, *arguments: str, interval: float | None = None) -> list[str]:
    """A command line; with ``interval`` of a program that says what it has written."""
    program = [str(Path(sys.executable).parent / "mpiflow")]
    if interval is not None:
        program = [sys.executable, "-c", CHILD.format(interval=interval)]
    launcher = ["mpirun", "-n", str(ranks)] if ranks > 1 else []
    return [*launcher, *program, *arguments]


def environment() -> dict[str, str]:
    scripts = Path(sys.executable).parent
    path = f"{os.environ['PATH']}{os.pathsep}{scripts}"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PMIX_", "OMPI_COMM"))}
    return {**clean, **MPI_ENVIRONMENT, "PATH": path, "PYTHONPATH": str(ROOT)}


def run(ranks: int, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["timeout", "-k", "5", "240", *mpiflow(ranks, *arguments)],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check,
    )  # fmt: skip


def contents(path: Path) -> dict[str, np.ndarray]:
    from mpiflow.files.trajectory import Trajectory

    with Trajectory(path) as trajectory:
        names = [*trajectory, "time"]
        return {name: trajectory[name] for name in names}


def same(first: Path, second: Path) -> bool:
    a, b = contents(first), contents(second)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# -- kills ---------------------------------------------------------------------------------


@dataclass
class Kills:
    """What happened to a number of killed runs."""

    kind: str
    ranks: int
    killed: int = 0
    unborn: int = 0
    frames_lost: int = 0
    resumed: int = 0

    def line(self) -> str:
        return (
            f"| {self.kind} | {self.ranks} | {self.killed} | {self.killed} | "
            f"{self.frames_lost} | {self.resumed} of {self.resumed} |"
        )


def kills(kind: str, ranks: int, count: int, seed: int) -> Kills:
    """Kill runs with SIGKILL at random times, look at what is left, and go on.

    ``live``: a frame with a compressed field is flushed every few milliseconds.
    ``checkpoint``: a checkpoint as often.
    """
    rng, result = random.Random(seed), Kills(kind, ranks)  # noqa: S311 - times of kills
    size, steps = ("128", "0.25") if kind == "live" else ("256", "1")
    end = 1500 if kind == "live" else 600
    options = [
        "simulate", "ising", "--size", size, "--temperature", "2.3", "--dt", steps,
        "--time", str(end), "--save-every", "1", "--coarse", "2", "--seed", "2", "--quiet",
        "--initial-magnetization", "0.1",
    ]  # fmt: skip
    options += ["--checkpoint-every", "200" if kind == "live" else "3"]
    with tempfile.TemporaryDirectory(prefix="mpiflow-kills-") as name:
        folder = Path(name)
        run(1, *options, "--out", str(folder / "whole.h5"))
        whole = contents(folder / "whole.h5")
        while result.killed < count:
            out = folder / "part.h5"
            for left in folder.glob("part*"):
                left.unlink()
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            told = killed(mpiflow(ranks, *options, "--out", str(out), interval=0.0), rng, end / 700)
            if not out.exists():  # killed before there was anything
                result.unborn += 1
                continue
            result.killed += 1
            kept = contents(out)
            frames = len(kept["time"])
            for variable, values in kept.items():
                np.testing.assert_array_equal(values, whole[variable][:frames], err_msg=variable)
            promised = max([0, *(int(n) for what, n in told if what == "frames")])
            lost = max(0, promised - frames)
            result.frames_lost = max(result.frames_lost, lost)
            if lost:
                raise SystemExit(f"{promised} frames were flushed, {frames} are there")
            # Every fifth goes on: that costs more than the kill.
            if result.killed % 5 == 1:
                other = rng.choice([1, 2])
                run(other, "resume", str(out), "--quiet")
                if not same(out, folder / "whole.h5"):
                    raise SystemExit(f"kill {result.killed}: the resumed run differs")
                result.resumed += 1
            else:  # what is left can be gone on with
                from mpiflow.files import checkpoint

                for path in checkpoint.paths(out):
                    checkpoint.verify(path)
    return result


def killed(command: list[str], rng: random.Random, longest: float) -> list[tuple[str, str]]:
    """Start a program and kill it, with all of its ranks; what it said before."""
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    told: list[tuple[str, str]] = []
    for line in process.stderr:  # from its first sign of life on
        if line.startswith("ready"):
            break
    time.sleep(rng.random() * longest)
    os.killpg(process.pid, signal.SIGKILL)
    for line in process.stderr:
        words = line.split()
        if len(words) == 2 and line.endswith("\n") and words[0] in ("frames", "checkpoint"):
            told.append((words[0], words[1]))
    process.wait()
    # Ranks are in groups of their own, and end once they miss mpirun: they may still write.
    left = ["pgrep", "-f", "--", f"--out {command[command.index('--out') + 1]}"]
    while subprocess.run(left, stdout=subprocess.DEVNULL).returncode == 0:
        time.sleep(0.02)
    return told


# -- ranks ---------------------------------------------------------------------------------

SYSTEMS: dict[str, list[str]] = {
    "ising": "ising --size 64x256 --temperature 2.3 --dt 0.25 --coarse 8 --time 20".split(),
    "kac": "kac --size 96x64 --gamma 3 --temperature 0.8 --tau 0.25 --coarse 4 --time 20".split(),
    "alloy": (
        "alloy --cells 64x4x4 --temperature 2000 --solver tiled --vacancies 16 --tile 8x8x8 "
        "--window 1e-10 --species --time 2e-9"
    ).split(),
}


def pairs(counts: list[int], systems: list[str]) -> int:
    """Half of a run on some ranks, the rest on others; how many pairs were the same bits."""
    done = 0
    with tempfile.TemporaryDirectory(prefix="mpiflow-pairs-") as name:
        folder = Path(name)
        for system in systems:
            options = [*SYSTEMS[system], "--seed", "3", "--quiet"]
            end = options[options.index("--time") + 1]
            half = str(float(end) / 2)
            options += ["--save-every", str(float(end) / 10)]
            whole = folder / f"{system}.h5"
            run(1, "simulate", *options, "--out", str(whole))
            halves = [half if o == end and options[i - 1] == "--time" else o
                      for i, o in enumerate(options)]  # fmt: skip
            for first in counts:
                start = folder / f"{system}-{first}" / "run.h5"
                start.parent.mkdir()
                run(first, "simulate", *halves, "--out", str(start))
                for second in counts:
                    part = folder / f"{system}-{first}-{second}"
                    shutil.copytree(start.parent, part)
                    run(second, "resume", str(part / "run.h5"), "--time", end, "--quiet")
                    if not same(whole, part / "run.h5"):
                        raise SystemExit(f"{system}: {first} then {second} ranks differ")
                    done += 1
    return done


# -- costs ---------------------------------------------------------------------------------


def large_checkpoint(size: int) -> tuple[float, float, int]:
    """Seconds to write and to read a checkpoint of so many spins a side, and its bytes."""
    from mpi4py import MPI

    from mpiflow import Ising, Simulation, initial
    from mpiflow.files import checkpoint

    sim = Simulation(Ising(2.3), size, comm=MPI.COMM_WORLD, seed=1)
    sim.set_spins(initial.independent, magnetization=0.0)
    with tempfile.TemporaryDirectory() as name:
        out = Path(MPI.COMM_WORLD.bcast(name)) / "run.h5"
        texts: dict[str, Any] = {"config_json": "{}", "facts_json": "{}", "run": "0" * 16}
        path = checkpoint.write(out, sim, texts, {})
        start = time.perf_counter()
        path = checkpoint.write(out, sim, texts, {})
        written = time.perf_counter()
        point = checkpoint.newest(out, sim.comm)
        assert point is not None
        checkpoint.load(point, sim)
        loaded = time.perf_counter()
        size = path.stat().st_size
        sim.comm.Barrier()
    return written - start, loaded - written, size


def overhead(size: int, sweeps: int, frames: int) -> tuple[float, float]:
    """Seconds of a large run with its frames observed only, and with its file and a checkpoint."""
    from mpi4py import MPI

    from mpiflow import Ising, Simulation, initial, record
    from mpiflow.run.stopping import Keep

    comm, every = MPI.COMM_WORLD, sweeps / frames
    sim = Simulation(Ising(2.0), size, dt=np.inf, comm=comm, seed=1, granularity=128)
    sim.set_spins(initial.independent, magnetization=0.0)
    for _ in sim.frames(3, 1):  # compiles
        sim.coarse_sums(128)
    times = []
    with tempfile.TemporaryDirectory() as name:
        out = Path(comm.bcast(name)) / "run.h5"
        for write in (False, True):
            comm.Barrier()
            start = time.perf_counter()
            if write:
                record(sim, out, time=sweeps, save_every=every, coarse=128, keep=Keep(),
                       progress=False)  # fmt: skip
            else:
                for _ in sim.frames(sweeps, every):
                    sim.coarse_sums(128)
            comm.Barrier()
            times.append(time.perf_counter() - start)
    return times[0], times[1]


# -- stops ---------------------------------------------------------------------------------

#: Runs whose first frame after the beginning never comes.
ENDLESS = {
    "ising packed": "ising --size 1024 --temperature 2.3 --time 1e9 --save-every 1e9",
    "ising plain": "ising --size 1000 --temperature 2.3 --time 1e9 --save-every 1e9",
    "ising sliced": "ising --size 16 --members 64 --temperature 2.3 --time 1e9 --save-every 1e9",
    "ising n-fold": "ising --size 1024 --temperature 2.3 --time 1e9 --solver nfold",
    "ising tiled": "ising --size 512 --temperature 1 --time 1e9 --save-every 1e9 "
    "--solver tiled-nfold",
    "ising tiled, 10^10 events in a window": "ising --size 512 --temperature 1 --time 1e9 "
    "--save-every 1e9 --dt 1e6 --solver tiled-nfold",
    "potts": "potts --size 1024 --temperature 1 --time 1e9 --save-every 1e9",
    "potts n-fold": "potts --size 512 --temperature 1 --time 1e9 --solver nfold",
    "blume-capel": "blume-capel --size 1024 --temperature 1 --time 1e9 --save-every 1e9",
    "kac sublattice": "kac --size 256 --gamma 8 --temperature 0.8 --time 1e9 --save-every 1e9",
    "kac midpoint": "kac --size 256 --gamma 8 --temperature 0.8 --time 1e9 --save-every 1e9 "
    "--solver midpoint",
    "kac tau-leap": "kac --size 256 --gamma 8 --temperature 0.8 --time 1e9 --save-every 1e9 "
    "--solver tau-leap",
    "kac adaptive": "kac --size 256 --gamma 8 --temperature 0.8 --time 1e9 --save-every 1e9 "
    "--solver tau-leap --eps 0.03",
    "kac gillespie": "kac --size 256 --gamma 8 --temperature 0.8 --time 1e9 --solver gillespie",
    "curie-weiss": "curie-weiss --size 64 --temperature 1 --time 1e9",
    "alloy serial": "alloy --cells 8 --temperature 2000 --time 1",
    "alloy tiled": "alloy --cells 24 --vacancies 20 --temperature 2000 --time 1 --solver tiled",
    "alloy tiled, 10^7 hops in a window": "alloy --cells 12 --vacancies 8 --temperature 2000 "
    "--time 1 --solver tiled --window 1e-3",
    "alloy tiled, 10^9 windows to a hop": "alloy --cells 8 --temperature 2000 --hops 10 "
    "--solver tiled --window 1e-19",
    "field, 639 inner steps in a step": "predict MODEL --structure langevin --size 2048 --dt 1 "
    "--field 3 --time 1e9 --save-every 1e9",
    "predator-prey": "predator-prey --size 1000 --time 1e9 --save-every 1e9",
    "linear-chain": "linear-chain --size 1000 --time 1e9 --save-every 1e9",
    "spin-diffusion": "spin-diffusion --model langevin --size 1000 --time 1e9 --save-every 1e9",
    "spin-diffusion averaged": "spin-diffusion --model averaged --size 1000 --time 1e9",
    "spin-diffusion mean-field": "spin-diffusion --model mean-field --size 20000 --time 1e9",
}


def stops(names: list[str], delay: float = 10.0) -> None:
    """A table of how soon runs end after SIGTERM, and how far from their walltime."""
    from free_law import save_free_law

    print("| run | after SIGTERM, s | past the walltime, s | exit codes |\n|---|---|---|---|")
    for name in names:
        line = ENDLESS[name] if "predict" in ENDLESS[name] else f"simulate {ENDLESS[name]}"
        seconds, codes = [], []
        for walltime in (None, delay):
            with tempfile.TemporaryDirectory() as folder:
                if "MODEL" in line:
                    save_free_law(Path(folder) / "model", temperatures=(0.1,))
                options = line.replace("MODEL", f"{folder}/model").split()
                options += ["--quiet", "--out", f"{folder}/run.h5"]
                if walltime is not None:
                    options += ["--walltime", str(walltime)]
                began = time.monotonic()
                process = subprocess.Popen(
                    mpiflow(1, *options), env=environment(), stderr=subprocess.DEVNULL
                )
                if walltime is None:
                    time.sleep(delay)
                    process.send_signal(signal.SIGTERM)
                codes.append(process.wait(timeout=600))
                seconds.append(time.monotonic() - began - delay)
        print(
            f"| {name} | {seconds[0]:.1f} | {seconds[1]:.1f} | {codes[0]}, {codes[1]} |", flush=True
        )
        if codes != [75, 75] or max(seconds) > 2:
            raise SystemExit(f"{name} does not stop within two seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("part", choices=["kills", "pairs", "checkpoint", "overhead", "stops"])
    parser.add_argument("--count", type=int, default=200, help="runs to kill")
    parser.add_argument("--kind", choices=["live", "checkpoint"], default="live")
    parser.add_argument("--ranks", type=int, default=1, help="of the runs that are killed")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 3, 4, 8])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    parser.add_argument("--runs", nargs="+", default=list(ENDLESS), help="those to stop")
    parser.add_argument("--size", type=int, default=16384)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    start = time.monotonic()
    if options.part == "kills":
        result = kills(options.kind, options.ranks, options.count, options.seed)
        print("| path | ranks | killed | usable | flushed frames lost | resumed, the same bits |")
        print("|---|---|---|---|---|---|")
        print(result.line())
    elif options.part == "pairs":
        done = pairs(options.counts, options.systems)
        number = len(options.counts) ** 2 * len(options.systems)
        print(f"{done} of {number} pairs of {options.counts} ranks: same bits")
    elif options.part == "stops":
        stops(options.runs)
    elif options.part == "overhead":
        from mpi4py import MPI

        without, written = overhead(options.size, 1000, 20)
        if MPI.COMM_WORLD.rank == 0:
            print(f"1000 sweeps of {options.size}^2 spins, {MPI.COMM_WORLD.size} ranks: "
                  f"{without:.1f} s; with 21 frames of 128 x 128 blocks, a checkpoint and the "
                  f"seal {written:.1f} s, {100 * (written / without - 1):.1f} % more")  # fmt: skip
        return
    else:
        written, loaded, size = large_checkpoint(options.size)
        from mpi4py import MPI

        if MPI.COMM_WORLD.rank == 0:
            print(f"{options.size}^2 spins, {MPI.COMM_WORLD.size} ranks: {size / 2**20:.1f} MiB, "
                  f"written in {written:.2f} s, checked and loaded in {loaded:.2f} s")  # fmt: skip
        return
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
