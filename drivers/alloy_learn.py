"""Learn the dynamics of NbMoTa's short-range order from small lattices.

At each temperature small lattices (1024 sites, or --cells) relax from random states. Each large
state, of 8192 sites (or --factor), repeats one snapshot of a small lattice, or joins different ones
(--no-repeated, which leaves faces without order between them). Most snapshots are of the second
half of the runs (--late). The states are relaxed in windows, and one vacancy of each hops for a
short time; one temperature dependent OnsagerNet SDE is trained on the pairs of all temperatures at
which vacancies get away from their place within a pair's time. Writes into --out: model/, table.md,
results.json (losses and cost), alloy_learn.png (the paths of the small lattices) and parts/ (a
stopped driver goes on).

    mpirun -n 2 .venv/bin/python drivers/alloy_learn.py --out results/alloy_learn
"""

from __future__ import annotations

import argparse
import math
import time as clock
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.figures import relaxation_figure
from mpiflow.experiments.options import add_barriers, at_least, driver_parser, list_of
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.learn import pair_goodness
from mpiflow.learn.alloy.data import AlloyPlan, joined, moving, pairs_at, save_pairs
from mpiflow.learn.alloy.model import default_schedule, train_alloy
from mpiflow.learn.training import Schedule
from mpiflow.simulation.alloy.barrier_model import load_barrier_model
from mpiflow.systems.alloy import Alloy, pair_names

#: The 18 temperatures of arXiv:2511.12842, in K.
TEMPERATURES = [*range(300, 1001, 100), *range(1200, 3001, 200)]


class Small(NamedTuple):
    """Small lattices of a temperature.

    Parameters
    ----------
    hops : of a vacancy of each
    lattices : how many
    longer : a pair lasts so many times as long as the default, where most hops lead to and fro
    """

    hops: int
    lattices: int
    longer: float = 1.0


#: Up to each temperature in K. They run several times as long as they need to come to rest, for
#: states that have the order of equilibrium but have not been in it for long go back, and pull the
#: end of the drift with them. At 800 K and below no affordable run comes to rest.
SMALL = {
    800: Small(20_000_000, 20),
    900: Small(100_000_000, 16, longer=2.0),
    1000: Small(40_000_000, 20),
    1200: Small(4_000_000, 40),
    1600: Small(400_000, 40),
    math.inf: Small(200_000, 40),
}


def small_at(temperature: float, budget: float, seeds: int) -> Small:
    """Lattices of a temperature: ``budget`` times the hops, and ``seeds``, or as many as there."""
    small = next(small for limit, small in SMALL.items() if temperature <= limit)
    hops = max(100, round(small.hops * budget))
    return small._replace(hops=hops, lattices=seeds or small.lattices)


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        if not options.budget > 0:
            raise InputError("budget", options.budget, "above 0", "Leave it out.")
        at_least(options, seeds=0)
        model = load_barrier_model(options.barriers, options.axis_order)
        plan = AlloyPlan(
            cells=options.cells,
            factor=options.factor,
            states=options.states,
            repeats=options.repeats,
            repeated=options.repeated,
            late=options.late,
        )
    out = results_directory(options.out, comm, options.device)
    start = clock.monotonic()

    def work(temperature: float) -> dict[str, np.ndarray]:
        small = small_at(temperature, options.budget, options.seeds)
        system = Alloy(temperature, model.species)
        its = replace(plan, seeds=small.lattices, pair=plan.pair * small.longer)
        part = pairs_at(system, model.parameters, its, small.hops, options.seed)
        print(f"{temperature:g} K after {clock.monotonic() - start:.0f} s", flush=True)
        return part

    facts = {"plan": repr(plan), "budget": options.budget, "seed": options.seed}
    facts |= {"seeds": options.seeds, "small": repr(SMALL)}
    facts |= {"barriers": model.sha256, "axes": model.axis_order}
    kept = FinishedParts(out / "parts", facts)
    # Cold runs take longest: begin with them, alternating over the ranks.
    data = farm(sorted(options.temperatures), work, comm, kept)
    made = clock.monotonic() - start
    used = moving(data)
    with parallel.agreed(comm):
        if not used:
            raise InputError("temperatures", min(data), "some at which vacancies move", "Raise.")
    pairs = joined(used, plan)
    schedule = default_schedule(len(pairs.z0))
    if options.epochs:
        schedule = Schedule(
            epochs=options.epochs, batch=schedule.batch, learning_rate=schedule.learning_rate
        )
    learned, log = train_alloy(pairs, seed=options.seed, schedule=schedule, comm=comm)
    trained = clock.monotonic() - start - made
    if comm.rank > 0:
        return
    learned.card |= {"barriers": model.name, "barriers_sha256": model.sha256}
    learned.save(out / "model")
    save_pairs(out / "pairs.npz", pairs)
    report = Report(out)
    report.table("quantity", "ours")
    for name, value in (
        ("pairs", pairs.dt.size),
        ("validation loss", log.best_validation),
        ("seconds of data", made),
        ("seconds of training", trained),
    ):
        report.add(name, value)
        report.row(name, f"{value:.6g}")
    still = ", ".join(f"{t:g}" for t in data if t not in used)
    if still:
        report.say(f"Left out, for vacancies hardly move in a pair's time: {still} K.")
    report.say(
        f"{len(data)} temperatures from {min(data):g} to {max(data):g} K, {plan.states} states "
        f"of {plan.sites} sites with {plan.repeats} pairs each, lambda = {plan.patches}, "
        f"barriers {model.name}, {comm.size} ranks."
    )
    report.say(pair_goodness.table({"alloy": [learned.card]}))
    report.write()
    curves = {
        f"{t:g} K": (part["times"] / part["times"][-1], part["path"], 0.0 * part["path"])
        for t, part in data.items()
    }
    names = pair_names(model.species)
    relaxation_figure(
        out / "alloy_learn.png", curves, names, "small lattices", 1.0, "time / length of the run"
    )


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/alloy_learn")
    add = parser.add_argument
    add("--temperatures", type=list_of(float), default=[float(t) for t in TEMPERATURES], help="K")
    add("--cells", type=int, default=8, help="cells a side of the small lattices")
    add("--factor", type=int, default=2, help="large lattice / small lattice, a side")
    add("--budget", type=float, default=1.0, help="hops of a vacancy of these, 1 for the default")
    add("--seeds", type=int, default=0, help="small lattices; 0 for the default, 16 to 40")
    add("--states", type=int, default=8000, help="large states at each temperature")
    add("--repeats", type=int, default=24, help="pairs of each state")
    add(
        "--repeated", action=argparse.BooleanOptionalAction, default=True,
        help="large states repeat one small lattice, seamless, or join different ones",
    )  # fmt: skip
    add("--late", type=float, default=0.7, help="share of large states of the later half of runs")
    add("--epochs", type=int, default=0, help="of training; 0 for the default")
    add_barriers(parser)
    add("--seed", type=int, default=0, help="of data and training")
    options = parser.parse_args()
    if options.smoke:
        options.temperatures, options.budget = [1800.0, 2000.0, 2200.0], 0.005
        options.seeds, options.states, options.epochs = 2, 60, 3
    return options


if __name__ == "__main__":
    main()
