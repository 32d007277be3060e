"""Microscopic Kac runs beside the nonlocal equation, the eight cases of Table 1 and more.

Table 1 and Figures 1 to 8 of the seed "mesoscopic model": fields h = 0, 1, temperatures 1, 4 and
couplings of width 1/64, 1/32 of the box, L = 1024 in blocks of 8, to t = 5; and T = 0.5, h = 0,
below the critical temperature 1. Spins start from a smooth random field of means m_0, equations
from m_0 itself. Then the law of large numbers: the difference to the equation against L at a
fixed width of the box; and the local (Allen-Cahn) equation against the nonlocal one as the width
shrinks. With --solver gillespie the cases alone are run by exact events, in the law of the source's
Algorithm 1 (which adds up all rates for each flip, where ours changes what a flip changes). Writes
into --out: table.md, results.json, case_*.png, limits.png, and every run as a
Trajectory.

    mpirun -n 2 .venv/bin/python drivers/pde_comparison.py --out results/pde_comparison
    .venv/bin/python drivers/pde_comparison.py --solver gillespie --out results/pde_comparison_exact
"""

from __future__ import annotations

import argparse
import time as clock
from itertools import product
from pathlib import Path

import numpy as np
from mpi4py import MPI

from mpiflow import initial
from mpiflow.core import parallel
from mpiflow.experiments.figures import field_figure, limits_figure
from mpiflow.experiments.options import driver_parser, list_of
from mpiflow.experiments.results import Report, results_directory, trajectory
from mpiflow.experiments.runs import Spent, recorded
from mpiflow.files.schema import STANDARD, block_centres
from mpiflow.files.trajectory import Trajectory
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.solvers.field.mesoscopic import LocalEquation, NonlocalEquation
from mpiflow.systems.kac import Kac, kac_kernel

#: Blocks a side of what is compared, and points a side of the equation's grid.
BLOCKS, GRID = 128, 1024
TIME, EVERY = 5.0, 0.25
Series = dict[str, np.ndarray]


def main() -> None:
    options = parse()
    comm = parallel.start()
    out = results_directory(options.out, comm, options.device)
    study = Study(options, comm, out)
    widths = (1 / 64, 1 / 32)
    for field, temperature, width in product((0.0, 1.0), (1.0, 4.0), widths):
        study.case(temperature, field, width)
    for width in widths:
        study.case(0.5, 0.0, width)
    if options.solver == "midpoint":
        study.large_numbers()
        study.short_ranges()
    study.write()


class Study:
    """All comparisons; rank 0 keeps what is written."""

    def __init__(self, options: argparse.Namespace, comm: MPI.Intracomm, out: Path) -> None:
        self.options, self.comm, self.out = options, comm, out
        self.blocks, self.grid = options.blocks, options.grid
        self.times = np.arange(0.0, options.time + 1e-9, EVERY)
        self.report = Report(out)
        self.limits: dict[str, tuple[np.ndarray, np.ndarray, float]] = {}
        self.took = Spent(0.0, 0.0)

    # -- runs ----------------------------------------------------------------------------

    def start(self, grid: int, amplitude: float = 0.5, part: int = 16) -> np.ndarray:
        """m_0 on a grid; correlated over a sixteenth of the box, the same on every grid."""
        return initial.smooth_profile(
            (grid, grid), self.options.seed, correlation_length=grid / part, amplitude=amplitude
        )

    def spins(self, system: Kac, size: int, seed: int) -> Series:
        """A microscopic run from m_0; its blocks in time, on all ranks."""
        name = f"T{system.temperature:g}_h{system.field:g}_gamma{system.gamma:g}_L{size}_{seed}"
        path = self.out / f"spins_{name}.h5"
        sim = KacSimulation(
            system,
            size,
            solver=self.options.solver,
            tau=self.options.tau if self.options.solver == "midpoint" else None,
            seed=seed,
            comm=self.comm,
            granularity=size // self.blocks,
        )
        grid, coarse = min(self.grid, size), size // self.blocks
        sim.set_spins(initial.profile, means=self.start(grid))
        self.took = recorded(
            sim, path, time=float(self.times[-1]), save_every=EVERY, coarse=coarse,
            attributes={"initial_grid": grid, "initial_seed": self.options.seed},
        )  # fmt: skip
        with Trajectory(path) as file:
            field = np.asarray(file["coarse_magnetization"], np.float64)
        return self.observed(system, size, field)

    def equation(self, system: Kac, size: int) -> Series:
        """The nonlocal equation from m_0 with the same kernel; its blocks, on all ranks."""
        grid = min(self.grid, size)
        equation = NonlocalEquation(
            system.kernel,
            system.temperature,
            (grid, grid),
            field=system.field,
            block=size // grid,
            comm=self.comm,
            smooth=True,
        )
        states = equation.evolve(self.start(grid)[equation.slabs.rows], self.times)
        field = np.array([self.blocks_of(equation, m) for _, m in states])
        out = self.observed(system, size, field)
        if self.comm.rank == 0:
            self.save(f"equation_T{system.temperature:g}_h{system.field:g}", system, out)
        return out

    def blocks_of(self, equation: NonlocalEquation | LocalEquation, m: np.ndarray) -> np.ndarray:
        """Means of blocks of a field of slabs, on all ranks; a block may lie on two of them."""
        rows, n = equation.slabs.rows, equation.slabs.shape[0] // self.blocks
        part = np.zeros((self.blocks, self.blocks))
        across = m.reshape(m.shape[0], self.blocks, n).mean(axis=2) / n
        np.add.at(part, np.arange(rows.start, rows.stop) // n, across)
        self.comm.Allreduce(MPI.IN_PLACE, part)
        return part

    def observed(self, system: Kac, size: int, field: np.ndarray) -> Series:
        """Magnetisation, free energy and phase fraction of fields of blocks (times, n, n)."""
        shape = (self.blocks, self.blocks)
        functional = NonlocalEquation(
            system.kernel,
            system.temperature,
            shape,
            field=system.field,
            block=size // self.blocks,
            comm=MPI.COMM_SELF,
        )
        return {
            "field": field,
            "magnetization": field.mean(axis=(1, 2)),
            "free energy": np.array([functional.free_energy(m) for m in field]),
            "phase fraction": (field > 0).mean(axis=(1, 2)),
        }

    def save(self, name: str, system: Kac, series: Series) -> None:
        size = self.options.size
        with trajectory(
            self.out / f"{name}_gamma{system.gamma:g}.h5",
            "nonlocal equation",
            {
                "temperature": system.temperature,
                "gamma": system.gamma,
                "field": system.field,
            },
            self.options.seed,
            rng="none",
            dims={"y": self.blocks, "x": self.blocks},
            variables=[STANDARD["magnetization"], STANDARD["coarse_magnetization"]],
            coordinates={a: block_centres(size, size // self.blocks) for a in ("y", "x")},
        ) as file:
            for t, m, field in zip(
                self.times, series["magnetization"], series["field"], strict=True
            ):
                file.append(float(t), {"magnetization": m, "coarse_magnetization": field})

    # -- comparisons ---------------------------------------------------------------------

    def case(self, temperature: float, field: float, width: float) -> None:
        """One row of the table and one figure."""
        size = self.options.size
        system = Kac(temperature, width * size, field)
        data = self.spins(system, size, self.options.seed)
        start = clock.monotonic()
        pde = self.equation(system, size)
        spent = self.took.wall, clock.monotonic() - start
        if self.comm.rank > 0:
            return
        last = data["field"][-1], pde["field"][-1]
        norm = np.sqrt((last[1] ** 2).mean())
        off = np.sqrt(((last[1] - last[0]) ** 2).mean())
        # A block is a mean of independent spins, next to the equation's prediction.
        sampling = np.sqrt((1 - last[1] ** 2).mean()) / (size // self.blocks)
        gaps = {
            name: float(abs(data[name] - pde[name]).max())
            for name in ("magnetization", "free energy", "phase fraction")
        }
        title = f"h={field:g}, T={temperature:g}, gamma=1/{1 / width:g}"
        if not self.report.lines:
            self.report.table(
                *("case", "rms of m at the end", "rms difference", "of it sampling"),
                *("relative L2", *gaps, "seconds spins, equation"),
            )
        numbers = (norm, off, sampling, off / norm, *gaps.values())
        seconds = f"{spent[0]:.1f}, {spent[1]:.1f}"
        self.report.row(title, *(f"{value:.4f}" for value in numbers), seconds)
        self.report.add(f"{title}: relative L2 at the end", off / norm, exact=sampling / norm)
        for name, gap in gaps.items():
            self.report.add(f"{title}: largest difference of {name}", gap, exact=0.0)
        name = f"case_h{field:g}_T{temperature:g}_gamma{1 / width:g}.png"
        if name in self.options.pictures or not self.options.pictures:
            field_figure(self.out / name, self.times, data, pde, title=title)

    def large_numbers(self) -> None:
        """The difference to the equation against L: theory says 1 / L, as 1 / sqrt(spins)."""
        sizes, found, errors, theory = self.options.sizes, [], [], []
        for size in sizes:
            system = Kac(4.0, size / 64, 1.0)
            pde = self.equation(system, size)["field"]
            runs = []
            for seed in range(self.options.runs if size < max(sizes) else 1):
                data = self.spins(system, size, self.options.seed + 1 + seed)["field"]
                runs.append(np.sqrt(((data - pde) ** 2).mean(axis=(1, 2)))[1:].mean())
            found.append(np.mean(runs))
            errors.append(np.std(runs, ddof=1) / np.sqrt(len(runs)) if len(runs) > 1 else np.nan)
            theory.append(np.sqrt((1 - pde[1:] ** 2).mean()) * self.blocks / size)
        power = float(np.polyfit(np.log(sizes), np.log(found), 1)[0])
        if self.comm.rank > 0:
            return
        self.report.table("L", "rms difference of blocks, T=4, h=1, gamma=1/64", "sampling")
        for size, value, error, exact in zip(sizes, found, errors, theory, strict=True):
            bar = f" ± {error:.1g}" if np.isfinite(error) else ""
            self.report.row(f"{size}", f"{value:.6f}{bar}", f"{exact:.6f}")
            self.report.add(f"rms difference, L={size}", value, error, exact=exact)
        self.report.say(f"Fitted power of L: {power:.3f}; theory -1.")
        self.report.add("power of L", power, exact=-1.0)
        self.limits["L"] = np.array(sizes, float), np.array(found), -1.0

    def short_ranges(self) -> None:
        """The local equation against the nonlocal one: gamma^4 apart for small m.

        From a start that is smoother than those above: gamma must be small against its waves.
        """
        grid, widths = self.options.local_grid, np.array([1 / 32, 1 / 64, 1 / 128, 1 / 256])
        rows: dict[float, list[float]] = {}
        for amplitude in (0.01, 0.5):
            rows[amplitude] = []
            for width in widths:
                kernel = kac_kernel(float(width * grid))
                ends = []
                for kind in (NonlocalEquation, LocalEquation):
                    equation = kind(kernel, 1.0, (grid, grid), comm=self.comm)
                    m = self.start(grid, amplitude, 8)[equation.slabs.rows]
                    for _, last in equation.evolve(m, [self.times[-1]], 1e-8 * amplitude):
                        ends.append(self.blocks_of(equation, last))
                norm = np.sqrt((ends[0] ** 2).mean())
                rows[amplitude].append(float(np.sqrt(((ends[0] - ends[1]) ** 2).mean()) / norm))
        if self.comm.rank > 0:
            return
        title = "local against nonlocal equation, m_0 of 0.01"
        self.report.table("gamma", title, "power", "of 0.5")
        powers = np.log2(np.divide(rows[0.01][:-1], rows[0.01][1:]))
        local = ["", *(f"{power:.2f}" for power in powers)]
        for width, small, power, large in zip(widths, rows[0.01], local, rows[0.5], strict=True):
            self.report.row(f"1/{1 / width:g}", f"{small:.2e}", power, f"{large:.1e}")
            name = f"local equation, gamma=1/{1 / width:g}"
            self.report.add(f"{name}, m_0 of 0.01", small, exact=0.0)
            self.report.add(f"{name}, m_0 of 0.5", large, exact=0.0)
        self.report.say("Power of gamma from one line to the next, for small m; theory 4.")
        self.report.add("power of gamma", powers[-1], exact=4.0)
        self.limits["gamma"] = widths, np.array(rows[0.01]), 4.0

    def write(self) -> None:
        if self.comm.rank > 0:
            return
        if self.limits:
            limits_figure(self.out / "limits.png", self.limits, "relative or rms difference")
        self.report.write()


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/pde_comparison")
    add = parser.add_argument
    add("--size", type=int, default=1024, help="L of the cases")
    add("--sizes", type=list_of(int), default=[1024, 4096])
    add("--runs", type=int, default=4, help="runs of each size but the largest, which has one")
    add("--solver", choices=("midpoint", "gillespie"), default="midpoint", help="of the spins")
    add("--tau", type=float, default=0.125, help="step of the spins (midpoint)")
    add("--seed", type=int, default=0, help="of initial fields and runs")
    options = parser.parse_args()
    options.blocks, options.grid, options.time = BLOCKS, GRID, TIME
    options.local_grid = 1024
    options.pictures = []  # of all cases
    if options.smoke:
        options.pictures = ["case_h1_T4_gamma32.png"]
        options.size, options.sizes, options.runs = 128, [128, 256], 2
        options.blocks, options.grid, options.time = 16, 64, 0.5
        options.local_grid = 256
    return options


if __name__ == "__main__":
    main()
