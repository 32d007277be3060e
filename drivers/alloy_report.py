"""Learned short-range order of NbMoTa beside microscopic truth and the published models.

Needs the results of drivers/alloy_truth.py and drivers/alloy_learn.py. Rolls the learned SDE out
at every size of the truth, and at all temperatures: means, spreads, half-times and row sums of
all six order parameters; Fig. 7 (b) and (c) of arXiv:2511.12842 redone. Writes into --out:
results.json, table.md, sizes.png, temperatures.png, and each rollout as a Trajectory.

    mpirun -n 2 .venv/bin/python drivers/alloy_report.py --out results/alloy_report
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mpiflow import metrics
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.alloy import LARGE, PAIRS, published_order, published_temperatures
from mpiflow.experiments.figures import relaxation_figure, temperature_figure
from mpiflow.experiments.options import driver_parser
from mpiflow.experiments.results import Report, results_directory, trajectory
from mpiflow.files.schema import STANDARD
from mpiflow.files.trajectory import Trajectory
from mpiflow.learn.alloy.model import AlloyModel, load_alloy_model
from mpiflow.systems.alloy import row_sums

REFERENCE = Path(__file__).resolve().parent.parent.parent / "shared" / "reference"

#: Pairs in the table of temperatures, and what is known where there are no microscopic runs.
ENDS = ("MoMo", "TaTa")
UNKNOWN = ([np.nan] * len(PAIRS),) * 2


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        truth = sizes_of(Path(options.truth))
        model = load_alloy_model(Path(options.model) / "model")
    out = results_directory(options.out, comm, options.device)
    if comm.rank == 0:  # seconds of work
        Comparison(options, model, truth, out).write()


def sizes_of(folder: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Times and order parameters (runs, times, 6) of the microscopic runs, by number of sites."""
    series: dict[int, list[np.ndarray]] = {}
    times: dict[int, np.ndarray] = {}
    for path in sorted(folder.glob("truth_*_*.h5")):
        sites = int(path.stem.split("_")[1])
        with Trajectory(path) as file:
            sro = np.asarray(file["sro"])
            times[sites] = file.time
        runs = np.moveaxis(sro, 1, 0) if sro.ndim == 3 else sro[None]
        series.setdefault(sites, []).extend(runs)
    if not series:
        raise InputError(
            "truth", str(folder), "a folder of drivers/alloy_truth.py", "Run that driver first."
        )
    return {sites: (times[sites], np.array(series[sites])) for sites in sorted(series)}


class Comparison:
    """The table, figures and entries."""

    def __init__(
        self,
        options: argparse.Namespace,
        model: AlloyModel,
        truth: dict[int, tuple[np.ndarray, np.ndarray]],
        out: Path,
    ) -> None:
        self.options, self.model, self.truth, self.out = options, model, truth, out
        self.report = Report(out)

    def add(
        self,
        name: str,
        learned: float,
        exact: tuple[float, float] | None,
        published: float | None = None,
        unit: float = 1.0,
        absolute: bool = False,
    ) -> None:
        """A row of the table of sizes and an entry; ``off`` is relative, or absolute."""

        def text(value: float | None) -> str:
            return "" if value is None or np.isnan(value) else f"{value / unit:.4f}"

        value, error = exact or (np.nan, np.nan)
        off = ""
        if exact is not None:
            difference = learned - value
            off = f"{difference:+.4f}" if absolute else f"{100 * difference / abs(value):+.1f} %"
        sites, _, quantity = name.partition(" ")
        shown = text(value) + (f" ± {error / unit:.4f}" if np.isfinite(error) else "")
        self.report.row(sites, quantity, text(learned), shown, text(published), off)
        self.report.add(name, learned, error, published=published, exact=value)

    def write(self) -> None:
        self.temperatures()
        self.report.table(
            "sites", "quantity", "learned (ours)", "microscopic truth", "published model", "off"
        )
        held = self.sizes()
        self.report.say(
            f"At {self.options.temperature:g} K; stationary from {self.options.stationary:g} s; "
            f"{self.options.members} learned trajectories of each size. The error bars are those "
            f"of the truth. States that had to be held in the range of the data: {held}."
        )
        self.report.write()

    def sizes(self) -> int:
        """All sizes of the truth at one temperature; Fig. 7 (c)."""
        options, curves, clipped = self.options, {}, 0
        for sites, (times, runs) in self.truth.items():
            counts = None
            if sites == 1024:  # one atom is a large part there
                counts = (341.0, 341.0, 341.0)
            path, held = self.model.rollout(
                options.temperature,
                None,
                times,
                size=sites,
                seed=options.seed,
                members=options.members,
                counts=counts,
            )
            clipped += held
            self.save(path, times, sites, options.temperature)
            learned = metrics.relaxation(times, path.transpose(1, 0, 2), options.stationary)
            exact = metrics.relaxation(times, runs, options.stationary)
            other = published_sizes(sites)
            for kind, factor in (("mean", 1.0), ("spread", 1.0), ("half_time", 1e-7)):
                for i, pair in enumerate(PAIRS):
                    if kind == "half_time" and pair not in LARGE:
                        continue
                    title = f"{pair} half-time [1e-7 s]" if factor < 1 else f"{pair} {kind}"
                    self.add(
                        f"{sites} {title}",
                        learned[kind][i],
                        (exact[kind][i], exact[f"{kind}_error"][i]),
                        None if other is None else other[kind][i],
                        factor,
                        absolute=kind == "mean" and abs(exact[kind][i]) < 0.2,
                    )
            ours, theirs = row_sums(learned["mean"], 3), row_sums(exact["mean"], 3)
            wrong = None if other is None else row_sums(other["mean"], 3)
            for k, element in enumerate(("Nb", "Mo", "Ta")):
                published = None if wrong is None else float(wrong[k])
                title = f"{sites} {element} row sum"
                self.add(title, ours[k], (theirs[k], np.nan), published, absolute=True)
            if sites in (min(self.truth), max(self.truth)):  # curves of all cover each other
                curves[f"truth, {sites} sites"] = times, runs.mean(axis=0), runs.std(axis=0)
                curves[f"learned, {sites} sites"] = times, path.mean(axis=1), path.std(axis=1)
        relaxation_figure(self.out / "sizes.png", curves, PAIRS, "learned and microscopic SRO")
        return clipped

    def save(self, path: np.ndarray, times: np.ndarray, sites: int, temperature: float) -> None:
        """A rollout in the same kind of file as the truth."""
        with trajectory(
            self.out / f"rollout_{sites}_{temperature:g}.h5",
            "alloy (learned)",
            {"sites": sites, "temperature": temperature},
            self.options.seed,
            dims={"member": path.shape[1], "pair": len(PAIRS)},
            variables=[STANDARD["sro"].over("member", "pair")],
            coordinates={"pair": np.array(PAIRS)},
        ) as file:
            for time, values in zip(times, path, strict=True):
                file.append(time, {"sro": values})

    def temperatures(self) -> None:
        """Order against temperature, 8192 sites; Fig. 7 (b)."""
        low, high = self.model.temperatures
        other = published_temperatures(REFERENCE / "paper_alloy_sro_vs_T_8192.csv")
        grid = [t for t in other or np.linspace(low, high, 7) if low <= t <= high]
        # As long as the published runs: 5000 pairs of 124 hops a vacancy. The last fifth counts.
        members = np.repeat(np.array(grid), 20)
        ends = self.options.units * self.model.time_unit(members)
        times = np.linspace(0.0, 1.0, 51)[:, None] * ends
        path, _ = self.model.rollout(members, None, times, size=8192, seed=self.options.seed)
        means = path[40:].mean(axis=0).reshape(len(grid), 20, -1).mean(axis=1)
        counted = counted_runs(Path(self.options.hops or self.options.truth))
        titles = [f"{p} {what}" for p in ENDS for what in ("learned", "microscopic", "published")]
        self.report.table("T [K]", *titles)
        for temperature, mean in zip(grid, means, strict=True):
            cells = []
            for i, pair in enumerate(PAIRS):
                published = other[temperature][i] if other else None
                value, error = (np.array(x)[i] for x in counted.get(temperature, UNKNOWN))
                name = f"8192 {temperature:g} K {pair}"
                self.report.add(name, mean[i], error, published=published, exact=value)
                if pair in ENDS:
                    shown = f"{value:.4f} ± {error:.4f}" if np.isfinite(value) else ""
                    theirs = "" if published is None else f"{published:.4f}"
                    cells += [f"{mean[i]:.4f}", shown, theirs]
            self.report.row(f"{temperature:g}", *cells)
        series = {"learned, 8192": (np.array(grid), np.array(means))}
        if other:
            series["published, 8192"] = np.array(list(other)), np.array(list(other.values()))
        if counted:
            values = np.array([mean for mean, _ in counted.values()])
            series["microscopic, 1024, last half"] = np.array(list(counted)), values
        temperature_figure(self.out / "temperatures.png", series, PAIRS)
        curves = hop_curves(Path(self.options.hops or self.options.truth))
        if curves:
            title = "microscopic SRO of 1024 sites against hops of the vacancy"
            relaxation_figure(
                self.out / "hops.png", curves, PAIRS, title, 1e6, "hops per vacancy (millions)"
            )


def counted_runs(folder: Path) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Mean order and its error over seeds of the runs counted in hops, by temperature."""
    found: dict[float, list[np.ndarray]] = {}
    for path in sorted(folder.glob("hops_*_*.h5")):
        temperature = float(path.stem.split("_")[1])
        with Trajectory(path) as file:
            if not file.complete:
                continue
            # Frames are hops apart, so each counts as long as it lasted.
            times, sro = file.time, np.asarray(file["sro"])
        half = len(times) // 2
        weights = np.diff(times[half:])
        mean = (sro[half:-1] * weights[:, None]).sum(axis=0) / weights.sum()
        found.setdefault(temperature, []).append(mean)
    return {
        t: (np.mean(v, axis=0), np.array([metrics.standard_error(x) for x in np.transpose(v)]))
        for t, v in sorted(found.items())
    }


def hop_curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Hops, mean order and spread over seeds of the runs counted in hops, by temperature."""
    found: dict[float, list[tuple[np.ndarray, np.ndarray]]] = {}
    for path in sorted(folder.glob("hops_*_*.h5")):
        with Trajectory(path) as file:
            if not file.complete:
                continue
            run = np.asarray(file["hops"]), np.asarray(file["sro"])
        found.setdefault(float(path.stem.split("_")[1]), []).append(run)
    curves = {}
    for temperature, runs in sorted(found.items()):
        # Means of ten frames: a lattice of 1024 sites fluctuates.
        values = np.array([blocks(sro) for _, sro in runs])
        hops = blocks(runs[0][0])
        curves[f"{temperature:g} K"] = hops, values.mean(axis=0), values.std(axis=0)
    return curves


def blocks(values: np.ndarray, frames: int = 10) -> np.ndarray:
    """Means of consecutive frames."""
    count = max(1, len(values) // frames)
    return np.array([part.mean(axis=0) for part in np.array_split(values, count)])


def published_sizes(sites: int) -> dict[str, np.ndarray] | None:
    """Means, spreads and half-times of the published model of a size."""
    found = published_order(REFERENCE / "paper_alloy_T2000_sizes.csv", sites, PAIRS)
    return None if found is None else dict(zip(("mean", "spread", "half_time"), found, strict=True))


def parse() -> argparse.Namespace:
    parser = driver_parser(
        __doc__, "results/alloy_report", "few trajectories, and the smoke runs' times"
    )
    add = parser.add_argument
    add("--truth", default="results/alloy_truth", help="results of drivers/alloy_truth.py")
    add("--hops", help="results of drivers/alloy_truth.py --temperatures, if elsewhere")
    add("--model", default="results/alloy_learn", help="results of drivers/alloy_learn.py")
    add("--temperature", type=float, default=2000.0, help="K, of the truth")
    add("--stationary", type=float, default=3e-6, help="means from this time on, s")
    add("--members", type=int, default=200, help="learned trajectories of each size")
    add(
        "--units", type=float, default=5000.0, help="length of the runs at all temperatures, in t_0"
    )
    add("--seed", type=int, default=0, help="of the rollouts")
    options = parser.parse_args()
    if options.smoke:
        options.stationary, options.members, options.units = 1e-8, 10, 20.0
    return options


if __name__ == "__main__":
    main()
