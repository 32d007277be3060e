r"""Fit the built-in barrier model to the published network, and measure its error and bias.

    OMP_NUM_THREADS=1 .venv/bin/python drivers/alloy_barriers.py --teacher weights.npy

Environments come from vacancy KMC with the teacher at 800 to 3000 K: 60 % of the runs
equimolar, the others of random composition, some with several vacancies; a part is drawn
site by site instead. Training and test environments come from separate runs. Labels are the
teacher's barriers, averaged over the six images under which the hop along (1, 1, 1) stays.

The model has that symmetry: each of K filters of the 112 sites has a mirror plane through
(1, 1, 1), and its three images under the turns about this axis are added up after the ReLU.
Small dense layers follow. Adam, cosine decay, and a running average of the weights.

Then both models run the same vacancy KMC from random starts, and their short-range orders
are compared. Fitting is done on rank 0; runs are dealt to ranks. The result depends on the
seed but not on the number of ranks; the same command gives the same file on the same
machine (``--date`` is in it, today's unless given). Writes into --out:
barriers.safetensors, results.json, table.md.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mpi4py import MPI

from mpiflow import metrics
from mpiflow.core import parallel
from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.experiments.options import at_least, driver_parser
from mpiflow.experiments.results import Entry, Report, entry, farm, results_directory
from mpiflow.initial.alloy import counts_of, random_alloy
from mpiflow.learn import devices
from mpiflow.simulation.alloy.barrier_model import (
    BarrierModel,
    load_barrier_model,
    network_model,
    save_barrier_model,
)
from mpiflow.simulation.alloy.published_weights import LICENCE, REFERENCE
from mpiflow.simulation.alloy.simulation import AlloySimulation
from mpiflow.solvers.vacancy.barrier_kernels import evaluate_many
from mpiflow.systems import alloy
from mpiflow.systems.alloy import (
    DIRECTIONS,
    ELEMENTS,
    NEIGHBOURS,
    ORIENTATIONS,
    SURROUNDINGS,
    Alloy,
    index_of,
)
from mpiflow.systems.barriers import Barriers

TEACHER = Path(__file__).resolve().parent.parent.parent / "shared/reference/nnk/weights.npy"
#: Input channels of vacancy, Nb, Mo, Ta: corners of a triangle, so that they add up to zero.
HALF = np.sqrt(0.75)
CODES = np.array([[0, 0], [HALF, -0.5], [-HALF, -0.5], [0, 1]], np.float32)
#: Cells a side of the runs that environments come from, and of those that are compared.
CELLS, COMPARED_CELLS = 6, 8
#: Environments of a run, hops between them in short and long runs.
SAMPLES, SHORT, LONG = 400, 50, 1000
TEMPERATURES, COLD = (800.0, 3000.0), 1500.0
#: Temperatures that are compared, in K, and for how long, in s.
TIMES = {2000.0: 5e-6, 800.0: 0.5}
#: A swap of y and z, and the turns about (1, 1, 1); together they make the six images.
MIRROR = index_of(SURROUNDINGS[:, [0, 2, 1]])
TURNS = np.stack([index_of(SURROUNDINGS[:, p]) for p in ([0, 1, 2], [1, 2, 0], [2, 0, 1])])


class Data(NamedTuple):
    """Environments and the teacher's barriers of their eight hops.

    Attributes
    ----------
    types : (n, 112) uint8
    raw : (n, 8) float32, the teacher's barriers in eV, inf onto a vacancy
    target : (n, 8) float32, the same averaged over the six images
    """

    types: np.ndarray
    raw: np.ndarray
    target: np.ndarray


@dataclass(frozen=True)
class Course:
    """How the model is fitted.

    Parameters
    ----------
    filters, hidden : units of the network's layers
    steps, batch, rate : of Adam, the rate at its start
    average : of the running mean of the weights, a step
    """

    filters: int = 16
    hidden: tuple[int, ...] = (32, 32)
    steps: int = 150_000
    batch: int = 1024
    rate: float = 6e-3
    average: float = 0.999


def main() -> None:
    options = parse()
    comm = parallel.start()
    with parallel.agreed(comm):
        teacher = load_teacher(options)
        at_least(options, members=2 * comm.size)
    out = results_directory(options.out, comm, options.device)
    rules = teacher.parameters
    train = environments(rules, options.seed, 0, options.runs, options.random, comm)
    test = environments(rules, options.seed, 1, max(2, options.runs // 10), 5000, comm)
    model = None
    if comm.rank == 0:
        say(f"{len(train.types)} environments to train with, {len(test.types)} to test with")
        course = Course(steps=options.steps)
        model = fit(train, course, options.seed)
    model = comm.bcast(model)
    laws = {
        temperature: [
            run_kmc(rules, temperature, until, options.members, options.seed + 1, comm),
            run_kmc(model.parameters, temperature, until, options.members, options.seed + 2, comm),
        ]
        for temperature, until in options.times.items()
    }
    if comm.rank == 0:
        report = Report(out)
        report.entries += errors(model, train, test) + biases(laws)
        model = replace(model, card=card(options, teacher, report.entries))
        sha256 = save_barrier_model(model, out / "barriers.safetensors", overwrite=True)
        add_tables(report, laws, speeds({"teacher": rules, "compact": model.parameters}, test))
        report.write()
        say(f"\nbarriers.safetensors has the SHA-256 {sha256}")


def load_teacher(options: argparse.Namespace) -> BarrierModel:
    """The published network, or other weights of its kind; in a smoke test the built-in model."""
    if options.teacher is None and options.smoke:
        return load_barrier_model("default")
    path = TEACHER if options.teacher is None else Path(options.teacher)
    if not path.is_file():
        remedy = "Give the weights.npy of the published network, which does not come with mpiflow."
        raise InputError("teacher", options.teacher, "the path of a file", remedy)
    return load_barrier_model(path)


# -- environments --------------------------------------------------------------------------


def environments(
    teacher: Barriers, seed: int, use: int, runs: int, drawn: int, comm: MPI.Intracomm
) -> Data:
    """Environments of some KMC runs, and others drawn site by site. Collective."""
    numbers = list(range(runs))
    met = farm(numbers, lambda run: environments_of_run(teacher, (seed, use, run)), comm)
    types = np.concatenate([*met.values(), random_environments(drawn, (seed, use, runs))])
    return Data(types, *labels(teacher, types))


def environments_of_run(teacher: Barriers, key: tuple[int, ...]) -> np.ndarray:
    """Environments (n, 112) met by vacancies in one run; every seventh run is long and cold."""
    rng = np.random.default_rng(key)
    long = key[-1] % 7 == 6
    hottest = COLD if long else TEMPERATURES[1]
    temperature = 1 / rng.uniform(1 / hottest, 1 / TEMPERATURES[0])
    vacancies = 1 if rng.random() < 0.9 else int(rng.integers(2, 8))
    shares = np.full(3, 1 / 3) if rng.random() < 0.6 else rng.dirichlet(np.ones(3))
    counts = counts_of(2 * CELLS**3, vacancies, tuple(shares / shares.sum()))
    run_seed = int(rng.integers(2**31))
    sim = AlloySimulation(
        Alloy(temperature), teacher, cells=CELLS, seed=run_seed, comm=MPI.COMM_SELF
    )
    sim.set_species(random_alloy, counts=counts)
    found = []
    for _ in range(SAMPLES // vacancies):
        sim.solver.advance(sim.block, seed=run_seed, hops=LONG if long else SHORT)
        grid = sim.block.spins()[0]
        at = (np.argwhere(grid == alloy.VACANCY)[:, None] + SURROUNDINGS) % grid.shape
        found.append(grid[at[..., 0], at[..., 1], at[..., 2]].astype(np.uint8))
    return np.concatenate(found)


def random_environments(count: int, key: tuple[int, ...]) -> np.ndarray:
    """Environments (n, 112) drawn site by site, a fifth of them with 3 % vacancies."""
    rng = np.random.default_rng(key)
    equal = rng.random((count, 1)) < 0.6
    bounds = np.cumsum(np.where(equal, 1 / 3, rng.dirichlet(np.ones(3), count)), axis=1)
    draws = rng.random((count, len(SURROUNDINGS), 1))
    types = 1 + (draws > bounds[:, None, :2]).sum(axis=-1)
    share = np.where(rng.random((count, 1)) < 0.2, 0.03, 0.0)
    types[rng.random(types.shape) < share] = alloy.VACANCY
    return types.astype(np.uint8)


def labels(teacher: Barriers, types: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's barriers (n, 8), and their averages over the six images of each hop.

    Turning an environment by the six permutations of the axes shows each of its eight hops
    in all six images.
    """
    raw = np.empty((len(types), NEIGHBOURS), np.float32)
    out, total = np.empty_like(raw), np.zeros(raw.shape)
    for axes in permutations(range(3)):
        turned = np.ascontiguousarray(types[:, index_of(SURROUNDINGS[:, axes])])
        evaluate_many(teacher, turned, out)
        total[:, index_of(DIRECTIONS[:, axes])] += out
        if axes == (0, 1, 2):
            raw[:] = out
    return raw, (total / 6).astype(np.float32)


# -- the model -----------------------------------------------------------------------------


class Network(torch.nn.Module):
    """The model while it is fitted; its output has mean 0 and variance 1."""

    images: torch.Tensor

    def __init__(self, course: Course, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, scale: float) -> torch.nn.Parameter:
            return torch.nn.Parameter(scale * torch.randn(*shape, generator=generator))

        inputs, channels = CODES.shape[1] * len(SURROUNDINGS), np.arange(CODES.shape[1])
        rows = np.concatenate([MIRROR[None], TURNS])[:, :, None] * len(channels) + channels
        self.register_buffer("images", torch.from_numpy(rows.reshape(4, -1)))
        self.filters = normal(inputs, course.filters, scale=inputs**-0.5)
        self.bias = normal(course.filters, scale=0.3)
        widths = [course.filters, *course.hidden, 1]
        self.weights, self.biases = torch.nn.ParameterList(), torch.nn.ParameterList()
        for number, (given, wanted) in enumerate(pairwise(widths)):
            last = number == len(course.hidden)
            scale = 0.3 if last else 2**0.5 / (3 if number == 0 else 1)
            self.weights.append(normal(given, wanted, scale=scale * given**-0.5))
            self.biases.append(torch.nn.Parameter(torch.zeros(wanted)))

    def first(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The first layer with the three images side by side."""
        mirror, *turns = self.images
        even = 0.5 * (self.filters + self.filters[mirror])
        return torch.cat([even[turn] for turn in turns], 1), self.bias.repeat(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w, b = self.first()
        h = torch.relu(torch.addmm(b, x, w)).view(len(x), 3, -1).sum(1)
        for number, (w, b) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.addmm(b, h, w)
            if number < len(self.weights) - 1:
                h = torch.relu(h)
        return h[:, 0]


def fit(data: Data, course: Course, seed: int) -> BarrierModel:
    """The model with the least mean square error of all barriers."""
    torch.set_num_threads(1)
    which, hop = np.nonzero(np.isfinite(data.target))
    wanted = data.target[which, hop]
    mean, scale = float(wanted.mean(dtype=np.float64)), float(wanted.std(dtype=np.float64))
    device = devices.here()
    wanted = torch.from_numpy((wanted - mean) / scale).to(device)
    net, rng = Network(course, seed).to(device), np.random.default_rng((seed, 2))
    adam = torch.optim.AdamW(net.parameters(), lr=course.rate, weight_decay=1e-5)
    averages = [p.detach().clone() for p in net.parameters()]
    order, at, recent = rng.permutation(len(which)), 0, 0.0
    batch, begun = min(course.batch, len(which)), time.monotonic()
    for step in range(course.steps):
        if at + batch > len(order):
            order, at = rng.permutation(len(which)), 0
        some, at = order[at : at + batch], at + batch
        types = data.types[which[some, None], ORIENTATIONS[hop[some]]]
        given = torch.from_numpy(CODES[types].reshape(batch, -1)).to(device)
        loss = (net(given) - wanted[torch.from_numpy(some).to(device)]).square()
        adam.zero_grad()
        loss.mean().backward()
        decay = 0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * step / course.steps))
        adam.param_groups[0]["lr"] = course.rate * decay * min(1.0, (step + 1) / 200)
        adam.step()
        with torch.no_grad():
            keep = min(course.average, (step + 1) / (step + 10))
            for average, p in zip(averages, net.parameters(), strict=True):
                average.lerp_(p, 1 - keep)
        recent += 0.01 * (float(loss.detach().mean()) - recent)
        if step % 5000 == 4999:
            rms = 1e3 * scale * recent**0.5
            say(f"step {step + 1}: {rms:.1f} meV, {time.monotonic() - begun:.0f} s")
    with torch.no_grad():
        for average, p in zip(averages, net.parameters(), strict=True):
            p.copy_(average)
        net.cpu()
        first = [a.numpy() for a in net.first()]
        rest = [[w.numpy(), b.numpy()] for w, b in zip(net.weights, net.biases, strict=True)]
    w, b = (a.astype(np.float64) * scale for a in rest[-1])
    layers = [tuple(a) for a in [first, *rest[:-1], [w, b + mean]]]
    return network_model(layers, CODES, pool=3, name="compact")


# -- errors, biases and speed --------------------------------------------------------------


def predictions(model: Barriers, types: np.ndarray) -> np.ndarray:
    out = np.empty((len(types), NEIGHBOURS), np.float32)
    evaluate_many(model, types, out)
    return out


def errors(model: BarrierModel, train: Data, test: Data) -> list[Entry]:
    """Errors of the barriers in meV, at all hops."""

    def add(name: str, value: np.ndarray) -> None:
        entries.append(entry(f"{name} [meV]", 1e3 * value, exact=0.0))

    entries: list[Entry] = []
    for name, data in {"training": train, "test": test}.items():
        guess = predictions(model.parameters, data.types)
        ok = np.isfinite(data.target)
        add(f"RMSE, {name}, teacher as it is", rms(guess[ok] - data.raw[ok]))
        add(f"RMSE, {name}, teacher symmetrised", rms(guess[ok] - data.target[ok]))
    error, atom = guess[ok] - data.target[ok], data.types[:, :NEIGHBOURS][ok]
    add("mean error, test", error.mean(dtype=np.float64))
    add("largest error, test", np.abs(error).max())
    for number, element in enumerate(ELEMENTS, 1):
        add(f"RMSE, test, {element} hops", rms(error[atom == number]))
        add(f"mean error, test, {element} hops", error[atom == number].mean(dtype=np.float64))
    add("RMSE of the symmetry, teacher, test", rms(data.raw[ok] - data.target[ok]))
    return entries


def rms(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.square(values, dtype=np.float64).mean())


class Law(NamedTuple):
    """What a model's KMC gives at one time.

    Attributes
    ----------
    time : s
    orders : (members, 6) short-range orders
    waits : (members,) time per hop in s
    speed : hops per second of CPU time of one rank
    """

    time: float
    orders: np.ndarray
    waits: np.ndarray
    speed: float


def run_kmc(
    model: Barriers, temperature: float, until: float, members: int, seed: int, comm: MPI.Intracomm
) -> Law | None:
    """Lattices of 1024 sites with one vacancy from random starts, on rank 0. Collective."""
    sim = AlloySimulation(
        Alloy(temperature), model, cells=COMPARED_CELLS, seed=seed, members=members, comm=comm
    )
    sim.set_species(random_alloy, counts=counts_of(sim.sites, 1))
    begun = time.process_time()
    sim.advance(until)
    took = time.process_time() - begun
    now = sim.measure().scalars()
    speed = np.full(len(now["hops"]), now["hops"].sum() / took)
    rows = np.column_stack([now["sro"], until / now["hops"], speed])
    everyone = gather_records(rows, comm)
    if everyone is None:
        return None
    return Law(until, everyone[:, :6], everyone[:, 6], float(everyone[:, 7].mean()))


def biases(laws: dict[float, list[Law]]) -> list[Entry]:
    """Short-range orders and time per hop: ``ours`` the model's, ``exact`` the teacher's."""
    entries = []
    for temperature, (teacher, compact) in laws.items():
        case = f"{temperature:g} K, {teacher.time:g} s"
        columns = {f"order {name}, {case}": i for i, name in enumerate(alloy.pair_names(ELEMENTS))}
        for name, i in columns.items():
            entries.append(compared(name, teacher.orders[:, i], compact.orders[:, i]))
        entries.append(compared(f"time per hop [s], {case}", teacher.waits, compact.waits))
    return entries


def compared(name: str, teacher: np.ndarray, compact: np.ndarray) -> Entry:
    stderr = np.hypot(metrics.standard_error(teacher), metrics.standard_error(compact))
    return entry(name, compact.mean(), stderr=stderr, exact=teacher.mean())


def speeds(models: dict[str, Barriers], data: Data) -> dict[str, float]:
    """Microseconds for the eight barriers of a vacancy, the best of several tries."""
    best = dict.fromkeys(models, np.inf)
    types = data.types[:1000]
    for _ in range(100):
        for name, model in models.items():
            begun = time.perf_counter()
            predictions(model, types)
            best[name] = min(best[name], 1e6 * (time.perf_counter() - begun) / len(types))
    return best


def add_tables(report: Report, laws: dict[float, list[Law]], cost: dict[str, float]) -> None:
    """Tables of the entries, which the report has, of both models' laws and of what they cost."""
    report.table("barriers", "ours")
    for e in report.entries:
        if "meV" in e["quantity"]:
            report.row(e["quantity"], f"{e['ours']:.2f}")
    report.table("T", "model", *alloy.pair_names(ELEMENTS), "time per hop [s]", "hops/s")
    for temperature, pair in laws.items():
        for name, law in zip(("teacher", "compact"), pair, strict=True):
            columns = [(c.mean(), metrics.standard_error(c)) for c in law.orders.T]
            cells = [f"{mean:+.4f} ± {error:.4f}" for mean, error in columns]
            wait = f"{law.waits.mean():.4g} ± {metrics.standard_error(law.waits):.2g}"
            report.row(f"{temperature:g}", name, *cells, wait, f"{law.speed:.3g}")
        mine = [e for e in report.entries if f"{temperature:g} K" in e["quantity"]]
        off = [f"{(e['ours'] - e['exact']) / e['stderr']:+.1f}" for e in mine]
        report.row(f"{temperature:g}", "bias in standard errors", *off, "")
    report.table("evaluation", "us")
    for name, value in cost.items():
        report.row(name, f"{value:.2f}")


def card(
    options: argparse.Namespace, teacher: BarrierModel, entries: list[Entry]
) -> dict[str, Any]:
    """Where the model comes from and how good it is."""
    given = f"--seed {options.seed} --runs {options.runs} --random {options.random}"
    given += f" --steps {options.steps} --members {options.members} --date {options.date}"
    return {
        "statement": "a compact model with the symmetry of the lattice, distilled by mpiflow from "
        f"the network with the SHA-256 {teacher.card.get('source_sha256', teacher.sha256)}",
        "distilled_from": {
            "sha256": teacher.card.get("source_sha256", teacher.sha256),
            "name": teacher.name,
            "licence": LICENCE,
        },
        "licence": f"MIT; derived from the NKK weights, {LICENCE}; Xing et al. 2024",
        "reference": REFERENCE,
        "command": f"python drivers/alloy_barriers.py {given}",
        "seed": options.seed,
        "date": options.date,
        "errors_and_biases": [
            {k: v for k, v in e.items() if k != "published" and v is not None} for e in entries
        ],
    }


def say(message: str) -> None:
    print(message, flush=True)


def parse() -> argparse.Namespace:
    parser = driver_parser(__doc__, "results/alloy_barriers")
    add = parser.add_argument
    add("--teacher", help="weights.npy of the published network")
    add("--seed", type=int, default=0, help="of all random numbers")
    add("--runs", type=int, default=700, help="KMC runs for training, a tenth more to test")
    add("--random", type=int, default=60_000, help="environments drawn site by site")
    add("--steps", type=int, default=150_000, help="of the fit")
    add("--members", type=int, default=400, help="lattices of each comparison")
    add("--date", default=datetime.now(UTC).date().isoformat(), help="for the file's card")
    options = parser.parse_args()
    options.times = dict(TIMES)
    if options.smoke:
        options.runs, options.random, options.steps, options.members = 3, 200, 50, 4
        options.times = {2000.0: 1e-8, 800.0: 1e-3}
    return options


if __name__ == "__main__":
    main()
