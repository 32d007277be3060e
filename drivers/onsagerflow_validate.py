"""A learned field equation against 16384^2 spins, and against the flips of a small box.

The law that drivers/onsagerflow_learn.py has learned from small lattices is used with the noise of
larger blocks, at the same width of the coupling in blocks: 128^2 blocks of 128^2 spins. Beside the
spins and both structures of the learned law stand the exact law with noise, and the deterministic
nonlocal and Allen-Cahn equations, all from the spins' first field: magnetization, free energy,
phase fraction, structure factor S(k, t), two-point correlation, distribution of block means. Then
metastability: times of the first passage to the other phase in a small box, of spins and of a law
learned from runs without flips. Writes into --out: spins_*.h5, box_runs/, table.md, results.json,
onsagerflow_validate.png.

    mpirun -n 2 .venv/bin/python drivers/onsagerflow_validate.py \\
        --model results/onsagerflow_learn/models/cosh-radial --out results/onsagerflow_validate
"""

from __future__ import annotations

import argparse
import sys
import time as clock
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from scipy.stats import ks_2samp

from mpiflow import initial, metrics
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments import style
from mpiflow.experiments.kac_boxes import law_of_boxes, phase, waves
from mpiflow.experiments.options import driver_parser, list_of
from mpiflow.experiments.passages import watched
from mpiflow.experiments.results import Report, farm, results_directory
from mpiflow.experiments.runs import recorded
from mpiflow.experiments.style import figure
from mpiflow.files.trajectory import Trajectory
from mpiflow.learn.onsagerflow.model import OnsagerFlow, load_onsagerflow
from mpiflow.simulation.kac.simulation import KacSimulation
from mpiflow.solvers.field.mesoscopic import LocalEquation, NonlocalEquation
from mpiflow.solvers.field.stochastic import StochasticField
from mpiflow.systems.field_law import ExactLaw
from mpiflow.systems.kac import Kac, kac_kernel

#: Time steps of spins (midpoint) and of stochastic fields, and time between frames.
TAU, DT, EVERY = 0.1, 0.1, 0.5
#: In the small box: steps of both, and how often they are looked at.
BOX_STEP, BOX_EVERY = 0.2, 1.0
#: name: T, h, magnetization of independent spins or None for waves. A quench from disorder,
#: which grows from noise; waves that become domains in a field.
CASES: dict[str, tuple[float, float, float | None]] = {
    "quench": (0.8, 0.0, 0.1),
    "waves": (0.8, 0.05, None),
}
LEARNED = ("langevin", "cosh")
DETERMINISTIC = ("nonlocal equation", "Allen-Cahn")
#: Edges of the rings of S(k), in waves a side.
RINGS = np.array([0.5, 2.5, 4.5, 7.5, 11.5, 16.5, 23.5, 33.5, 48.5, 64.5])
Series = dict[str, np.ndarray]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        check(options)
        model = load_onsagerflow(options.model)
    out = results_directory(options.out, comm, options.device)
    report = Report(out)
    pictures = {
        name: Validation(name, options, comm, out, model).compare(report) for name in options.cases
    }
    passages = metastability(options, comm, report)
    if comm.rank == 0:
        report.write()
        draw(out / "onsagerflow_validate.png", pictures, passages)


def check(options: argparse.Namespace) -> None:
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        raise InputError("cases", unknown[0], f"some of {', '.join(CASES)}", "Leave it out.")
    for whole, part in (("size", "blocks"), ("box", "box_block"), ("box_learn", "box_block")):
        value, unit = getattr(options, whole), getattr(options, part)
        if unit < 1 or value % unit:
            raise InputError(whole, value, f"a multiple of {part}={unit}", "Change one of them.")


# -- a large lattice -----------------------------------------------------------------------


class Validation:
    """Spins and equations from one state; rank 0 runs the equations, all the spins."""

    def __init__(
        self,
        name: str,
        options: argparse.Namespace,
        comm: MPI.Intracomm,
        out: Path,
        model: OnsagerFlow,
    ) -> None:
        self.name, self.options, self.comm, self.out, self.model = name, options, comm, out, model
        self.temperature, self.field, self.start = CASES[name]
        self.block = options.size // options.blocks
        self.shape = (options.blocks, options.blocks)
        self.kernel = kac_kernel(options.width * self.block)
        self.seconds: dict[str, float] = {}

    def spins(self) -> tuple[np.ndarray, np.ndarray]:
        """Times and block means (times, n, n) of the microscopic run; kept if it is there."""
        options, path = self.options, self.out / f"spins_{self.name}_{self.options.size}.h5"
        sim = KacSimulation(
            Kac(self.temperature, self.kernel.gamma, self.field), options.size,
            solver="midpoint", tau=TAU, seed=options.seed, comm=self.comm,
            granularity=self.block,
        )  # fmt: skip
        if self.start is not None:
            sim.set_spins(initial.independent, magnetization=self.start)
        else:
            waves = initial.smooth_profile(
                self.shape, options.seed, correlation_length=options.blocks / 16, amplitude=0.3
            )
            sim.set_spins(initial.profile, means=waves)
        spent = recorded(sim, path, time=options.time, save_every=EVERY, coarse=self.block)
        self.seconds["spins"] = spent.cores
        with Trajectory(path) as file:
            return np.asarray(file.time), np.asarray(file["coarse_magnetization"], float)

    def stochastic(self, law: str, start: np.ndarray, members: int) -> StochasticField:
        options: dict[str, Any] = {
            "field": self.field, "dt": DT, "seed": self.options.seed, "members": members,
            "comm": MPI.COMM_SELF,
        }  # fmt: skip
        if law == "exact law":
            field = StochasticField(
                ExactLaw(1 / self.temperature, "cosh"), self.kernel, self.shape,
                block=self.block, **options,
            )  # fmt: skip
        else:
            model = self.model.with_structure(law)  # type: ignore[arg-type]
            field = model.field(self.temperature, self.shape, block=self.block, **options)
        field.set(np.clip(start, -1, 1))
        return field

    def predicted(self, name: str, start: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Fields (times, members, n, n) of one equation, and its seconds for one member."""
        if name in DETERMINISTIC:
            kind = NonlocalEquation if name == DETERMINISTIC[0] else LocalEquation
            equation = kind(
                self.kernel, self.temperature, self.shape, field=self.field, block=self.block,
                comm=MPI.COMM_SELF,
            )  # fmt: skip
            begun = clock.process_time()
            out = np.array([m for _, m in equation.evolve(start, list(times))])[:, None]
            self.seconds[name] = clock.process_time() - begun
            return out
        one = self.stochastic(name, start, 1)
        one.advance(1)  # compiles
        one.set(np.clip(start, -1, 1))
        begun = clock.process_time()
        one.advance(round(times[-1] / DT))
        self.seconds[name] = clock.process_time() - begun
        return np.array(
            [m for _, m in self.stochastic(name, start, self.options.members).run(list(times))]
        )

    def observed(self, fields: np.ndarray) -> Series:
        """Observables of fields (times, members, n, n), each (times, members, ...)."""
        functional = NonlocalEquation(
            self.kernel, self.temperature, self.shape, field=self.field, block=self.block,
            comm=MPI.COMM_SELF,
        )  # fmt: skip
        rings = RINGS[RINGS <= self.options.blocks / 2 + 1]
        factor, modes = metrics.structure_factor(fields, rings)
        energies = [[functional.free_energy(np.clip(m, -1, 1)) for m in f] for f in fields]
        return {
            "magnetization": fields.mean(axis=(2, 3)),
            "free energy": np.array(energies),
            "phase fraction": (fields > 0).mean(axis=(2, 3)),
            "S": factor,
            "modes": modes,
            "correlation": metrics.two_point_correlation(fields),
            "last": fields[-1],
        }

    def compare(self, report: Report) -> dict[str, Any]:
        times, truth_fields = self.spins()
        if self.comm.rank > 0:
            self.comm.Barrier()
            return {}
        truth = self.observed(truth_fields[:, None])
        series = {"spins": truth}
        for name in (*LEARNED, "exact law", *DETERMINISTIC):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # m beyond what was learned
                series[name] = self.observed(self.predicted(name, truth_fields[0], times))
        self.rows(times, series, report)
        self.comm.Barrier()
        return {"times": times, "series": series, "block": self.block}

    def rows(self, times: np.ndarray, series: dict[str, Series], report: Report) -> None:
        """The table: largest differences over t > 0, of the mean over members."""
        truth = series["spins"]
        report.say(
            f"{self.name}: {self.options.size}^2 spins, T = {self.temperature:g}, h = "
            f"{self.field:g}, {self.options.blocks}^2 blocks, t = 0 to {times[-1]:g}; "
            f"m = {truth['magnetization'][0, 0]:.4f} to {truth['magnetization'][-1, 0]:.4f}; "
            f"spins: {self.seconds['spins']:.0f} core seconds"
        )
        report.table(
            *("equation", "magnetization, relative", "free energy, relative", "phase fraction"),
            *("S(k, t): largest, beyond 3 sigma", "correlation, relative L2 at the end"),
            *("KS of blocks", "MMD^2", "core seconds", "times faster"),
        )
        scale = abs(truth["free energy"] - truth["free energy"][0]).max()
        sample = np.random.default_rng(0).permutation(self.options.blocks**2)[:2000]
        for name, found in series.items():
            if name == "spins":
                continue
            gap = {
                key: (found[key].mean(axis=1) - truth[key][:, 0])[1:]
                for key in ("magnetization", "free energy", "phase fraction")
            }
            off = {
                "magnetization": abs(gap["magnetization"] / truth["magnetization"][1:, 0]).max(),
                "free energy": abs(gap["free energy"]).max() / scale,
                "phase fraction": abs(gap["phase fraction"]).max(),
            }
            # Spread of S of one realisation from this start: that of the exact law.
            members = series["exact law"]["S"].shape[1]
            error = series["exact law"]["S"].std(axis=1, ddof=1) * np.sqrt(1 + 1 / members)
            difference = abs(found["S"].mean(axis=1) - truth["S"][:, 0])
            off["S"] = (difference / truth["S"][:, 0])[1:].max()
            # Ninety numbers: with two sigmas the exact law itself would be off by 12 %.
            beyond = np.maximum(0, difference - 3 * error) / truth["S"][:, 0]
            off["S beyond statistics"] = beyond[1:].max()
            wanted, given = truth["correlation"][-1, 0], found["correlation"][-1].mean(axis=0)
            off["correlation"] = np.linalg.norm(given - wanted) / np.linalg.norm(wanted)
            a, b = found["last"][0].ravel(), truth["last"][0].ravel()
            off["KS"] = float(ks_2samp(a, b).statistic)
            unit = b.std()
            off["MMD^2"] = metrics.squared_mmd(a[sample] / unit, b[sample] / unit)
            faster = self.seconds["spins"] / self.seconds[name]
            report.row(
                name,
                f"{off['magnetization']:.2%}",
                f"{off['free energy']:.2%}",
                f"{off['phase fraction']:.4f}",
                f"{off['S']:.1%}, {off['S beyond statistics']:.1%}",
                f"{off['correlation']:.2%}",
                f"{off['KS']:.4f}",
                f"{off['MMD^2']:.1e}",
                f"{self.seconds[name]:.2f}",
                f"{faster:.0f}",
            )
            for key, value in off.items():
                report.add(f"{self.name}, {name}: {key}", value, exact=0.0)


# -- metastability -------------------------------------------------------------------------


def metastability(
    options: argparse.Namespace, comm: MPI.Intracomm, report: Report
) -> dict[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """First passages from m* to -m* / 2 in a box, of spins and of the law learned elsewhere."""
    begun = clock.monotonic()
    runs = [(t, i) for t in options.box_temperatures for i in range(options.box_runs)]
    of_waves: dict[str, Any] = {
        "size": options.box_learn, "block": options.box_block, "gamma": options.box_gamma,
        "frames": options.box_frames, "seed": options.seed,
    }  # fmt: skip
    seen = farm(runs, lambda run: waves(*run, **of_waves), comm)
    model = law_of_boxes(list(seen.values()), options.box_radius, comm)
    learned_in = clock.monotonic() - begun
    side, block = options.box, options.box_block
    shape, parts = (side // block, side // block), 4
    members = options.box_members // parts
    kinds = ("spins", *LEARNED)

    def run(task: tuple[float, str, int]) -> tuple[np.ndarray, np.ndarray]:
        waited, passed = passages(*task)
        mean, error = metrics.exponential_mean(waited, passed)
        print(f"{task}: {mean:.1f} ± {error:.1f}", file=sys.stderr, flush=True)
        return waited, passed

    def passages(t: float, kind: str, part: int) -> tuple[np.ndarray, np.ndarray]:
        m, seed = phase(t), options.seed + 100 * part + 7
        if kind == "spins":
            sim = KacSimulation(
                Kac(t, options.box_gamma, 0.0), side, solver="midpoint", tau=BOX_STEP,
                seed=seed, members=members, comm=MPI.COMM_SELF,
            )  # fmt: skip
            sim.set_spins(initial.independent, magnetization=m)
            return watched(
                lambda: sim.advance(BOX_EVERY),
                lambda: sim.coarse_sums(side).reshape(members) / side**2 <= -m / 2,
                members, BOX_EVERY, options.horizon,
            )  # fmt: skip
        given: dict[str, Any] = {
            "block": block, "dt": BOX_STEP, "seed": seed, "members": members,
            "comm": MPI.COMM_SELF,
        }  # fmt: skip
        field = model.with_structure(kind).field(t, shape, **given)  # type: ignore[arg-type]
        field.set(m)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # m beyond what was learned
            return watched(
                lambda: field.advance(round(BOX_EVERY / BOX_STEP)),
                lambda: field.m.mean(axis=(1, 2)) <= -m / 2,
                members, BOX_EVERY, options.horizon,
            )  # fmt: skip

    tasks = [(t, k, p) for t in options.box_temperatures for k in kinds for p in range(parts)]
    done = farm(tasks, run, comm)
    found: dict[float, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    report.say(
        f"First passage from m* to -m* / 2 in a box of {side}^2 spins, gamma = "
        f"{options.box_gamma:g}, blocks of {block}^2; law learned from {options.box_learn}^2 spins "
        f"at these temperatures in {learned_in:.0f} s; deterministic equations never pass"
    )
    titles = [title for k in kinds[1:] for title in (f"{k}: mean, ratio", "KS, 5 % limit")]
    report.table("T", "spins", *titles, "m / m* at t = 200: nonlocal, Allen-Cahn")
    for t in options.box_temperatures:
        found[t] = {
            k: tuple(np.concatenate([done[t, k, p][i] for p in range(parts)]) for i in (0, 1))  # type: ignore[misc]
            for k in kinds
        }
        truth, error = metrics.exponential_mean(*found[t]["spins"])
        cells = [f"{t:g}", f"{truth:.1f} ± {error:.1f}"]
        for k in kinds[1:]:
            mean, own = metrics.exponential_mean(*found[t][k])
            ratio = mean / truth
            spread = ratio * np.hypot(own / mean, error / truth)
            gap, limit = passage_distance(found[t]["spins"], found[t][k])
            cells += [f"{mean:.1f} ± {own:.1f}, {ratio:.2f} ± {spread:.2f}", f"{gap:.3f}, "
                      f"{limit:.3f}"]  # fmt: skip
            report.add(f"mean first passage, T={t:g}, {k}", mean, own, exact=truth)
        ends = []
        for kind in (NonlocalEquation, LocalEquation):
            equation = kind(
                kac_kernel(options.box_gamma), t, shape, block=block, comm=MPI.COMM_SELF
            )
            last = next(m for _, m in equation.evolve(np.full(shape, phase(t)), [200.0]))
            ends.append(f"{last.mean() / phase(t):.3f}")
        cells.append(", ".join(ends))
        report.row(*cells)
    return found


def passage_distance(
    a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]
) -> tuple[float, float]:
    """Distance of the distributions of two sets of times as far as both were watched, and what
    5 % of equal ones exceed [Kolmogorov and Smirnov]."""
    watched = min(times[~passed].min() if (~passed).any() else np.inf for times, passed in (a, b))
    at = np.unique(np.concatenate([times[passed] for times, passed in (a, b)]))
    at = at[at <= watched]
    share = [
        np.searchsorted(np.sort(times[passed]), at, side="right") / len(times)
        for times, passed in (a, b)
    ]
    limit = 1.36 * np.sqrt(1 / len(a[0]) + 1 / len(b[0]))
    return float(abs(share[0] - share[1]).max(initial=0.0)), float(limit)


# -- picture -------------------------------------------------------------------------------

LABELS = ("langevin", "cosh", "exact law", "Allen-Cahn", "nonlocal equation")
COLOURS = {"spins": "k", **dict(zip(LABELS, style.COLOURS, strict=False))}


def draw(
    path: Path,
    pictures: dict[str, dict[str, Any]],
    passages: dict[float, dict[str, tuple[np.ndarray, np.ndarray]]],
) -> None:
    page = figure(17.0, 4.0 * (len(pictures) + 1))
    rows = page.subplots(len(pictures) + 1, 5)
    for axes, (name, picture) in zip(rows, pictures.items(), strict=False):
        times, series = picture["times"], picture["series"]
        middle = np.sqrt(RINGS[1:] * RINGS[:-1])[: len(series["spins"]["modes"])]
        for label, found in series.items():
            look: dict[str, Any] = {"color": COLOURS[label], "label": label, "lw": 1.2}
            if label == "spins":
                look |= {"lw": 4, "alpha": 0.3}
            look["ls"] = "--" if label in DETERMINISTIC else "-"
            for ax, key in zip(axes, ("magnetization", "free energy"), strict=False):
                ax.plot(times, found[key].mean(axis=1), **look)
                ax.set(xlabel="time (attempts per spin)", ylabel=key, title=name)
            axes[2].loglog(middle, found["S"][-1].mean(axis=0), **look)
            axes[3].plot(found["correlation"][-1].mean(axis=0), **look)
            last = series["spins"]["last"]
            span = last.min() - 0.2 * np.ptp(last), last.max() + 0.2 * np.ptp(last)
            hist, edges = np.histogram(found["last"][0], 60, span, density=True)
            axes[4].step(edges[:-1], hist, where="post", **look)
        axes[2].set(xlabel="k (waves a side)", ylabel="S(k) at the end", ylim=(1e-10, None))
        axes[3].set(xlabel="distance (blocks)", ylabel="correlation at the end")
        axes[4].set(xlabel="m of a block", ylabel="density at the end", yscale="log")
        axes[0].legend()
    below = rows[-1]
    temperatures = sorted(passages)
    for k in ("spins", *LEARNED):
        means = [metrics.exponential_mean(*passages[t][k]) for t in temperatures]
        value, error = np.array(means).T
        below[0].errorbar(temperatures, value, error, fmt="o-" if k == "spins" else ".--",
                         color=COLOURS[k], label=k, lw=1)  # fmt: skip
    below[0].set(xlabel="T", ylabel="mean first passage", yscale="log")
    below[0].legend()
    for ax, t in zip(below[1:], temperatures, strict=False):
        for k in ("spins", *LEARNED):
            waited, passed = passages[t][k]
            order = np.sort(waited[passed])
            ax.step(order, 1 - np.arange(1, len(order) + 1) / len(waited), where="post",
                    color=COLOURS[k], lw=1)  # fmt: skip
        ax.set(xlabel="time", ylabel="not yet passed", yscale="log", title=f"T = {t:g}")
    for ax in below[1 + len(temperatures) :]:
        ax.remove()
    page.savefig(path, dpi=110)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/onsagerflow_validate")
    add, floats = parser.add_argument, list_of(float)
    add("--model", required=True, help="a law of drivers/onsagerflow_learn.py")
    add("--size", type=int, default=16384, help="spins a side")
    add("--blocks", type=int, default=128, help="blocks a side")
    add("--width", type=float, default=2.0, help="gamma in blocks: that of the learned law")
    add("--time", type=float, default=5.0, help="length of the large runs")
    add("--members", type=int, default=8, help="realisations of the stochastic fields")
    add("--cases", type=list_of(str), default=list(CASES), help="quench, waves")
    add("--seed", type=int, default=0, help="of all runs")
    add("--box", type=int, default=32, help="spins a side of the box that flips")
    add("--box-block", type=int, default=4, help="spins a side of its blocks")
    add("--box-gamma", type=float, default=4.0, help="width of its coupling in sites")
    add("--box-radius", type=int, default=4, help="reach of its learned J in blocks")
    add(
        "--box-temperatures",
        type=floats,
        default=[0.98, 0.95, 0.93, 0.91],
        help="its temperatures, below 1",
    )
    add("--box-members", type=int, default=200, help="boxes")
    add("--box-learn", type=int, default=512, help="spins a side of what its law is learned from")
    add("--box-runs", type=int, default=4, help="such runs at each temperature")
    add("--box-frames", type=int, default=200, help="frames of each, 0.1 apart")
    add("--horizon", type=float, default=40000.0, help="longest time to wait for a passage")
    options = parser.parse_args()
    if options.smoke:
        options.size, options.blocks, options.time, options.members = 256, 32, 1.0, 2
        options.box_temperatures, options.box_members, options.horizon = [0.98, 0.96], 8, 20.0
        options.box_learn, options.box_runs, options.box_frames = 64, 2, 30
    return options


if __name__ == "__main__":
    main()
