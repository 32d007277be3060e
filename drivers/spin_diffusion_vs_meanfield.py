r"""The spin-diffusion process against its mean-field models: where does which of them hold?

Farmer, Luskin, Plechac and Simpson compared the deterministic models of a binary chain with each
other and left open how they compare with the ensemble averages of the stochastic process. Here
replicas start from alternating spins and follow the process, positions 1 / epsilon faster than
spins, or its averaged limit (epsilon to 0). Against them stand the six models, at the same times:

- **spins**: <s_i> of each site; the root mean square over sites of what the model is off,
- **A-B bonds**, as a share of all bonds. Of mean spins they are those of independent neighbours,
- **strain**, relative to each one's own start,
- **nucleation**: when fewer than 2/5 of all bonds are A-B. Independent spins have 1/2.

Models with tanh rates (mean-field, point) and the free-energy ones, whose clocks are set by the
feature of the mean-field model (see dmd_mobility.py), stand against the process with tanh rates;
arrhenius and master against that with Arrhenius rates. A model that is refused, as where Gaussian
atoms are no picture of a hot chain any more, leaves its cells empty, with the reason.
Differences are the root mean square over times from 1 on, without what noise of the replicas makes
of it, with standard errors by the scatter of replicas.

Writes into --out: results.json, table.md, spin_diffusion_N.png (a map for each difference and
model, over beta and epsilon), parts/ (a stopped driver goes on).

    mpirun -n 2 .venv/bin/python drivers/spin_diffusion_vs_meanfield.py --out results/spin_diffusion
"""

from __future__ import annotations

import argparse
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow import metrics
from mpiflow.core import parallel
from mpiflow.core.errors import InputError
from mpiflow.experiments.chains import (
    START,
    effective_mobility,
    ensemble,
    feature_time,
    frame_times,
    means,
    passage,
    rms_difference,
    spin_error,
)
from mpiflow.experiments.options import at_least, driver_parser, list_of
from mpiflow.experiments.results import FinishedParts, Report, farm, results_directory
from mpiflow.experiments.style import figure
from mpiflow.solvers.binary_chain.averaged import AveragedSpins
from mpiflow.solvers.binary_chain.langevin import SpinChains, SpinDiffusion
from mpiflow.solvers.binary_chain.mean_field import MOBILITIES, MeanFieldChains
from mpiflow.systems.binary_chain import BinaryChain

#: The rates of the process that a model stands against.
MODELS = {
    "mean-field": "tanh",
    "point": "tanh",
    "free-energy": "tanh",
    "free-energy-limited": "tanh",
    "arrhenius": "arrhenius",
    "master": "arrhenius",
}
#: The epsilon of the averaged process.
LIMIT = 0.0
#: Steps of positions, dt / epsilon, at most, and per beta, so that in hot chains, too, the noise of
#: a step is a small part of a bond; UNIT is a whole number of dt, and so are all times of frames.
STEP, HOT, UNIT = 0.5, 0.01, 0.1
#: Share of A-B bonds at which phases have nucleated.
NUCLEATED = 0.4
#: Differences are those from this time on; values are said at some times.
SINCE, SAID = 1.0, (2.0, 20.0, 200.0)
OBSERVABLES = ("spins", "A-B bonds", "strain")
#: Replicas of long chains at least, and sites of replicas that are followed together.
FEWEST, TOGETHER = 16, 2048
#: A process: rates, beta, N, epsilon. A model: its name, beta, N. A task has one of them, and
#: of a process the number of a batch.
Key = tuple[Any, ...]
Part = dict[str, np.ndarray]
Parts = dict[Key, Part]


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        at_least(options, replicas=2)
        for beta, size, epsilon in product(options.betas, options.sizes, options.epsilons):
            langevin(BinaryChain(size, beta=beta), epsilon, options)  # which looks at them
        if not SAID[0] <= options.time < math.inf:
            raise InputError("time", options.time, f"{SAID[0]:g} or more", "Try 200.")
    out = results_directory(options.out, comm, options.device)
    facts = {name: getattr(options, name) for name in ("time", "seed", "atoms")}
    kept = FinishedParts(out / "parts", facts)
    times = frame_times(options.time)
    where = list(product(options.betas, sorted(options.sizes, reverse=True)))
    models = [(model, *one) for one in where for model in MODELS]
    parts: Parts = farm(
        models, lambda task: model_part(task, times), comm, kept, "mean-field models"
    )
    epsilons = [LIMIT, *options.epsilons]
    processes = [
        (rates, *one, epsilon)
        for one, epsilon, rates in product(where, epsilons, sorted(set(MODELS.values())))
    ]
    tasks = [
        (*process, first, count)
        for process in processes
        for first, count in batches(process[2], options.replicas)
    ]
    # The long ones first, so that ranks end together.
    tasks.sort(key=lambda task: -task[2] * task[5] / (task[3] or UNIT))
    found = farm(tasks, lambda task: process_part(task, times, options), comm, kept, "replicas")
    if comm.rank == 0:
        for process in processes:
            some = [part for task, part in found.items() if task[:4] == process]
            parts[process] = joined(some)
        write(out, parts, times, options)


def step(epsilon: float, beta: float) -> float:
    """dt, a whole fraction of UNIT; a number that is none is left for others to refuse."""
    most = min(STEP, HOT * beta) * epsilon
    return UNIT / math.ceil(UNIT / most) if most > 0 else UNIT


def batches(size: int, replicas: int) -> list[tuple[int, int]]:
    """First member and number of members of each batch; fewer replicas of longer chains."""
    count = max(min(FEWEST, replicas), round(replicas * 32 / size)) if size > 32 else replicas
    together = max(1, TOGETHER // size)
    return [(first, min(together, count - first)) for first in range(0, count, together)]


def model_part(task: Key, times: np.ndarray) -> Part:
    """Mean spins, A-B bonds and strain of a model, and why it was refused, if it was."""
    model, beta, size = task
    system = BinaryChain(size, beta=beta)
    try:
        mobility = None
        if model in MOBILITIES:
            features = [feature_time(system, name) for name in (model, "mean-field")]
            mobility = effective_mobility(model, *features)
        chains = MeanFieldChains(system, model, mobility=mobility)
        chains.set(system.alternating(START))
    except InputError as error:
        spins, nothing = (np.full((len(times), columns), np.nan) for columns in (size, 1))
        why = np.array(str(error))
        return {"spins": spins, "bonds": nothing, "strain": nothing, "refused": why}
    return means(chains, times)


def process_part(task: Key, times: np.ndarray, options: argparse.Namespace) -> Part:
    """Sums of spins, and A-B bonds and strain of the replicas of a batch."""
    rates, beta, size, epsilon, first, count = task
    system, seed = BinaryChain(size, beta=beta), options.seed
    which: dict[str, Any] = {"rates": rates, "members": count, "first": first}
    chains: SpinChains
    if epsilon == LIMIT:
        chains = AveragedSpins(system, seed=seed, **which)
    else:
        chains = langevin(system, epsilon, options, **which)
    chains.set(system.alternating())
    return ensemble(chains, times)


def langevin(
    system: BinaryChain, epsilon: float, options: argparse.Namespace, **which: Any
) -> SpinDiffusion:
    return SpinDiffusion(
        system,
        epsilon=epsilon,
        dt=step(epsilon, system.beta),
        preconditioned=not options.atoms,
        seed=options.seed,
        **which,
    )


def joined(batches: list[Part]) -> Part:
    """All replicas: mean spins (T, N), A-B bonds and strain (T, B)."""
    count = sum(part["bonds"].shape[1] for part in batches)
    spins = np.sum([part["spins"] for part in batches], axis=0) / count
    bonds, strain = (
        np.concatenate([p[name] for p in batches], axis=1) for name in ("bonds", "strain")
    )
    return {"spins": spins, "bonds": bonds, "strain": strain}


# -- differences ---------------------------------------------------------------------------


def curve(part: Part, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Means of an observable, (T,) or (T, N), and their standard errors: 0 of one chain."""
    replicas = part["bonds"].shape[1]
    if name == "spins":
        m = part["spins"][:, 1:-1]
        return m, spin_error(m, replicas)
    values = part["bonds"] / (part["spins"].shape[1] - 1) if name == "A-B bonds" else part["strain"]
    if replicas == 1:
        return values[:, 0], np.zeros(len(values))
    return values.mean(axis=1), np.array([metrics.standard_error(row) for row in values])


def difference(one: Part, other: Part, name: str, times: np.ndarray) -> tuple[float, float]:
    """Root mean square over times, and sites, and its error; NaN where a model was refused."""
    (a, da), (b, db) = (curve(part, name) for part in (one, other))
    seen = times >= SINCE
    if not np.isfinite(a[seen]).all():
        return math.nan, math.nan
    return rms_difference(a[seen], b[seen], np.hypot(da, db)[seen])


def nucleation(part: Part, times: np.ndarray) -> tuple[float, float]:
    return passage(times, part["bonds"], NUCLEATED * (part["spins"].shape[1] - 1))


# -- what is left behind -------------------------------------------------------------------


def write(out: Path, parts: Parts, times: np.ndarray, options: argparse.Namespace) -> None:
    found = Report(out)
    cases = list(product(sorted(options.sizes), options.betas))
    for name, form in (("A-B bonds", ".4f"), ("strain", ".5f")):
        found.say(f"{name} of the process at epsilon = {options.epsilons[-1]:g}, and of models")
        say_values(found, parts, times, cases, name, form, options.epsilons[-1])
    say_differences(found, parts, times, cases, [LIMIT, *options.epsilons])
    say_nucleation(found, parts, times, cases, [LIMIT, *options.epsilons])
    refused = {str(parts[model, beta, size]["refused"]) for size, beta in cases for model in MODELS}
    for reason in sorted(refused - {""}):
        found.say(f"Left out: {reason}")
    found.write()
    for size in options.sizes:
        draw(out / f"spin_diffusion_{size}.png", parts, times, size, options)


Cases = list[tuple[int, float]]


def say_values(
    found: Report,
    parts: Parts,
    times: np.ndarray,
    cases: Cases,
    name: str,
    form: str,
    epsilon: float,
) -> None:
    """An observable at some times: the process, its limit, models; for either kind of rates."""
    tanh, arrhenius = ([m for m in MODELS if MODELS[m] == rates] for rates in ("tanh", "arrhenius"))
    found.table("N", "beta", "t", "process", "averaged", *tanh,
                "process, Arrhenius", "averaged, Arrhenius", *arrhenius)  # fmt: skip
    for (size, beta), time in product(cases, [t for t in SAID if t <= times[-1]]):
        k = int(np.argmin(abs(times - time)))
        cells = []
        for rates, models in (("tanh", tanh), ("arrhenius", arrhenius)):
            keys: list[Key] = [(rates, beta, size, e) for e in (epsilon, LIMIT)]
            for key in [*keys, *((model, beta, size) for model in models)]:
                value, error = (float(values[k]) for values in curve(parts[key], name))
                said = f"{name} at t = {time:g}, {title(key)}"
                found.add(said, value, error if error else None)
                cells.append(f"{value:{form}}" + (f" ± {error:{form}}" if error else ""))
        found.row(f"{size}", f"{beta:g}", f"{time:g}", *cells)


def title(key: Key) -> str:
    """What a process or model is called in results.json."""
    first, beta, size, *epsilon = key
    where = f"beta = {beta:g}, N = {size}"
    if not epsilon:
        return f"{first}, {where}"
    kind = "averaged" if epsilon[0] == LIMIT else "langevin"
    return f"{kind} {first}, {where}" + (f", epsilon = {epsilon[0]:g}" if epsilon[0] else "")


def say_differences(
    found: Report, parts: Parts, times: np.ndarray, cases: Cases, epsilons: list[float]
) -> None:
    """Of the process from its limit and from each model; epsilon 0 is the limit itself."""
    for name in OBSERVABLES:
        found.say(f"Differences in {name}, root mean square over times from {SINCE:g} on")
        found.table("N", "beta", "epsilon", "averaged", *MODELS)
        for (size, beta), epsilon in product(cases, epsilons):
            cells = []
            for model in ("averaged", *MODELS):
                against, process = pair(model, beta, size, epsilon)
                if against == process:
                    cells.append("")
                    continue
                value, error = difference(parts[against], parts[process], name, times)
                found.add(f"{name}, {model} from {title(process)}", value, error)
                cells.append("refused" if math.isnan(value) else f"{value:.4f} ± {error:.4f}")
            found.row(f"{size}", f"{beta:g}", f"{epsilon:g}", *cells)


def pair(model: str, beta: float, size: int, epsilon: float) -> tuple[Key, Key]:
    """Keys of a model, or of the averaged process, and of the process that it stands against."""
    rates = MODELS.get(model, "tanh")
    process = (rates, beta, size, epsilon)
    return ((*process[:3], LIMIT) if model == "averaged" else (model, beta, size)), process


def say_nucleation(
    found: Report, parts: Parts, times: np.ndarray, cases: Cases, epsilons: list[float]
) -> None:
    found.say(f"When fewer than {NUCLEATED:g} of all bonds are A-B (- is not by {times[-1]:g})")
    rates = sorted(set(MODELS.values()), reverse=True)
    columns = [f"{r}, epsilon = {e:g}" for r in rates for e in epsilons]
    found.table("N", "beta", *columns, *MODELS)
    for size, beta in cases:
        keys: list[Key] = [(r, beta, size, e) for r in rates for e in epsilons]
        cells = []
        for key in [*keys, *((model, beta, size) for model in MODELS)]:
            value, error = nucleation(parts[key], times)
            found.add(f"nucleation, {title(key)}", value, None if math.isnan(error) else error)
            unsure = "" if math.isnan(error) else f" ± {error:.2g}"
            cells.append("-" if math.isnan(value) else f"{value:.3g}{unsure}")
        found.row(f"{size}", f"{beta:g}", *cells)


def draw(
    path: Path, parts: Parts, times: np.ndarray, size: int, options: argparse.Namespace
) -> None:
    """A map over beta and epsilon for each difference and model; black dots: within its error."""
    from matplotlib.colors import LogNorm

    columns, epsilons = ("averaged", *MODELS), [*options.epsilons, LIMIT]
    scales = {"spins": (0.01, 1.0), "A-B bonds": (0.005, 0.2), "strain": (2e-4, 1e-2),
              "nucleation": (0.05, 3.0)}  # fmt: skip
    picture = figure(2.1 * len(columns) + 1, 9)
    panels = picture.subplots(len(scales), len(columns), sharex=True, sharey=True, squeeze=False)
    for row, (name, (low, high)) in zip(panels, scales.items(), strict=True):
        for panel, model in zip(row, columns, strict=True):
            values = np.full((len(epsilons), len(options.betas)), np.nan)
            for (j, epsilon), (i, beta) in product(enumerate(epsilons), enumerate(options.betas)):
                against, process = pair(model, beta, size, epsilon)
                if against == process:
                    continue
                if name == "nucleation":
                    value, error = lateness(parts[against], parts[process], times)
                else:
                    value, error = difference(parts[against], parts[process], name, times)
                values[j, i] = value
                if value < 2 * error:
                    panel.plot(i, j, "k.", ms=4)
            image = panel.imshow(np.maximum(values, low), norm=LogNorm(low, high), cmap="viridis_r",
                                 aspect="auto", origin="lower")  # fmt: skip
            panel.set_xticks(range(len(options.betas)), [f"{b:g}" for b in options.betas])
            panel.set_yticks(range(len(epsilons)), [f"{e:g}" for e in epsilons])
        row[0].set_ylabel(f"{name}\nepsilon")
        label = "|ln(t / t of process)|" if name == "nucleation" else "rms difference"
        picture.colorbar(image, ax=row, label=label, extend="both")
    for panel, model in zip(panels[0], columns, strict=True):
        panel.set_title(model)
    for panel in panels[-1]:
        panel.set_xlabel("beta")
    picture.suptitle(f"Differences from the process, N = {size}; dots: none beyond two errors")
    picture.savefig(path, dpi=110)


def lateness(one: Part, other: Part, times: np.ndarray) -> tuple[float, float]:
    """abs(ln) of the ratio of times of nucleation, and its error.

    NaN where neither has nucleated or a model was refused; where one of both has, by now, the least
    that it can be.
    """
    (a, da), (b, db) = (nucleation(part, times) for part in (one, other))
    if not np.isfinite(one["bonds"]).all() or (math.isnan(a) and math.isnan(b)):
        return math.nan, math.nan
    late = times[-1]
    both = [late if math.isnan(x) else x for x in (a, b)]
    errors = [0.0 if math.isnan(dx) else dx / x for x, dx in zip(both, (da, db), strict=True)]
    return abs(math.log(both[0] / both[1])), math.hypot(*errors)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/spin_diffusion")
    add = parser.add_argument
    add("--sizes", type=list_of(int), default=[32, 500], help="N, as in 32,500")
    add("--betas", type=list_of(float), default=[10.0, 20.0, 40.0, 80.0, 160.0])
    add("--epsilons", type=list_of(float), default=[0.3, 0.1, 0.03, 0.01, 0.003])
    add("--replicas", type=int, default=128, help=f"at N = 32; down to {FEWEST} of longer chains")
    add("--time", type=float, default=200.0, help="until when")
    add("--atoms", action="store_true", help="noise and friction of atoms, not of bond lengths")
    add("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.smoke:
        options.sizes, options.betas, options.epsilons = [16], [80.0], [0.3, 0.1]
        options.replicas, options.time = 8, 4.0
    options.epsilons = sorted(options.epsilons, reverse=True)
    return options


if __name__ == "__main__":
    main()
