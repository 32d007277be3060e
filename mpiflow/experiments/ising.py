"""The whole method as functions of (plan, seeds): learn, simulate the truth, compare.

Work is dealt to ranks by index, so results do not depend on their number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpiflow import initial, metrics, observables
from mpiflow.core.block import gather_records
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.core.noise import RNG
from mpiflow.experiments.results import FinishedParts, Results, farm, once, reporter
from mpiflow.files.schema import STANDARD, Variable
from mpiflow.files.writer import TrajectoryWriter
from mpiflow.learn.closure.dataset import DataPlan, PairData, generate_pairs
from mpiflow.learn.closure.model import (
    MacroscopicModel,
    Method,
    built,
    latent_pairs,
    train_autoencoder,
    train_sde,
)
from mpiflow.learn.pair_goodness import judge
from mpiflow.learn.training import Schedule
from mpiflow.run.progress import Progress
from mpiflow.simulation.ising.simulation import Simulation
from mpiflow.systems.ising import Ising

#: A model to train: patch side, method, seed.
Task = tuple[int, Method, int]


def generate(
    system: Ising,
    plans: Mapping[tuple[int, int], DataPlan],
    comm: MPI.Intracomm,
    kept: FinishedParts | None = None,
) -> dict[tuple[int, int], PairData]:
    """The training set of each (patch side, seed), on every rank. Collective.

    Data sets that are ``kept`` are not made again.
    """
    data = {}
    total = sum(plan.states for plan in plans.values())
    with Progress(total, "training data", comm) as progress:
        before = 0
        for (patch, seed), plan in plans.items():
            report = reporter(progress, before, plan.states, patch=patch, seed=seed)

            def make(
                plan: DataPlan = plan, seed: int = seed, report: Callable[[float], None] = report
            ) -> dict[str, np.ndarray] | None:
                pairs = generate_pairs(system, plan, seed=seed, comm=comm, progress=report)
                if pairs is None:
                    return None
                return {name: value for name, value in vars(pairs).items() if name != "plan"}

            arrays = comm.bcast(once(f"pairs-{patch}-{seed}", make, comm, kept))
            data[patch, seed] = PairData(plan, **arrays)
            before += plan.states
    return data


def learn(
    system: Ising,
    data: Mapping[tuple[int, int], PairData],
    tasks: Sequence[Task],
    *,
    comm: MPI.Intracomm,
    closures: int = 2,
    factor: float | None = None,
    schedule: Schedule | None = None,
    kept: FinishedParts | None = None,
) -> Results[MacroscopicModel]:
    """Train a model for each task (patch side, method, seed); tasks run on different ranks.

    Both methods of one (patch, seed) share the autoencoder: it is trained once if the
    same rank runs both, and twice with the same result if not.

    Parameters
    ----------
    data : training set of each (patch side, seed), the same on every rank
    factor : lambda of the ``partial`` method, K unless given
    kept : models that are kept are not trained again
    """
    autoencoders: dict[tuple[int, int], Any] = {}
    label = f"train {len(tasks)} models"
    mine = max(1, len(tasks[comm.rank :: comm.size]))
    epochs = (schedule or Schedule()).epochs
    done = 0
    with Progress(mine * epochs, label, comm) as progress:

        def work(task: Task) -> dict[str, np.ndarray | float]:
            nonlocal done
            patch, method, seed = task
            pairs = data[patch, seed]
            if (patch, seed) not in autoencoders:
                autoencoders[patch, seed] = train_autoencoder(pairs, closures=closures, seed=seed)
            autoencoder, reconstruction = autoencoders[patch, seed]
            report = reporter(progress, done, epochs, patch=patch, method=method, seed=seed)
            sde, log = train_sde(
                pairs,
                autoencoder,
                method=method,
                factor=factor if method == "partial" else None,
                seed=seed,
                schedule=schedule,
                progress=lambda epoch, train, validation: report((epoch + 1) / epochs),
            )
            done += epochs
            seen = latent_pairs(pairs, autoencoder, method)
            card = {
                "system": {"temperature": system.temperature, "field": system.field},
                "method": method,
                "factor": sde.factor,
                "seed": seed,
                "reconstruction_loss": reconstruction.best_validation,
                "validation_loss": log.best_validation,
                "training_loss": log.train,
                "validation_losses": log.validation,
                "best_epoch": log.best_epoch,
                "stopped_early": log.stopped_early,
                "relaxation": sde.relaxation(seen[0]),
                **judge(sde, *seen),
            }
            model = MacroscopicModel(autoencoder, sde, pairs.plan, pairs.step, card)
            description, tensors = model.parts()
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            return {"description": np.array(json.dumps(description)), **arrays}

        return {task: _model(parts) for task, parts in farm(tasks, work, comm, kept).items()}


def _model(parts: Mapping[str, np.ndarray | float]) -> MacroscopicModel:
    """The model of its description and arrays."""
    tensors = {k: torch.as_tensor(v) for k, v in parts.items() if k != "description"}
    return built(json.loads(str(parts["description"])), tensors)


@dataclass(frozen=True)
class Truth:
    """Microscopic reference on rank 0; R trajectories for each initial magnetisation.

    Attributes
    ----------
    times : (T,) time
    magnetizations : (G,) initial magnetisations
    observed : (T, G * R, 2) magnetisation and domain-wall density
    energy, flips : (T, G * R)
    closures : for each encoder, (T, G * R, c)
    """

    times: np.ndarray
    magnetizations: np.ndarray
    observed: np.ndarray
    energy: np.ndarray
    flips: np.ndarray
    closures: dict[Any, np.ndarray]

    def latents(self, name: Any) -> np.ndarray:
        """Latents (T, G * R, 2 + c) as the named encoder sees them."""
        return np.concatenate([self.observed, self.closures[name]], axis=2)


def simulate_truth(
    system: Ising,
    size: int,
    magnetizations: Sequence[float],
    replicas: int,
    times: np.ndarray,
    encoders: Mapping[Any, MacroscopicModel],
    *,
    seed: int,
    dt: float = 0.25,
    comm: MPI.Intracomm,
    kept: FinishedParts | None = None,
) -> Truth | None:
    """Simulate the truth and encode every frame; on rank 0, None on the others. Collective.

    A truth that is ``kept`` is not simulated again.
    """
    if replicas < 2:
        raise InputError("replicas", replicas, "2 or more, for a spread", "Try 500.")
    if len(times) < 1 or np.any(np.diff(times) <= 0):
        raise InputError("times", list(times[:3]), "increasing times", "Ask for more steps.")
    groups = np.asarray(magnetizations, float)
    order = ("magnetization", "energy", "domain_wall_density", "flips")
    width = len(order) + sum(m.autoencoder.closures for m in encoders.values())

    def make() -> dict[str, np.ndarray] | None:
        sim = Simulation(system, size, dt=dt, seed=seed, members=len(groups) * replicas, comm=comm)
        start = np.repeat(groups, replicas)[sim.local_members]
        sim.set_spins(initial.shuffled, magnetization=start)
        values = np.empty((sim.block.batch, len(times), width))
        with Progress(float(times[-1]), "simulate truth", comm) as progress:
            for i, time in enumerate(times):
                if time > sim.time:
                    sim.advance(time - sim.time)
                frame = sim.measure()
                scalars = frame.scalars()
                columns = [scalars[name] for name in order] + _closures(sim.spins(), encoders)
                values[:, i] = np.column_stack(columns)
                progress.update(float(time), magnetization=float(frame.magnetization.mean()))
        gathered = gather_records(values.reshape(len(values), len(times) * width), comm)
        if gathered is None:
            return None
        return {"table": np.moveaxis(gathered.reshape(-1, len(times), width), 0, 1)}

    arrays = once("truth", make, comm, kept)
    if arrays is None:
        return None
    table = arrays["table"]
    column = {name: table[:, :, i] for i, name in enumerate(order)}
    closures, position = {}, len(order)
    for name, model in encoders.items():
        closures[name] = table[:, :, position : position + model.autoencoder.closures]
        position += model.autoencoder.closures
    return Truth(
        np.asarray(times),
        groups,
        np.stack([column["magnetization"], column["domain_wall_density"]], axis=2),
        column["energy"],
        column["flips"],
        closures,
    )


def _closures(states: np.ndarray, encoders: Mapping[Any, MacroscopicModel]) -> list[np.ndarray]:
    """Closures of every encoder; the class counts of a patch side are made once."""
    counts: dict[int, np.ndarray] = {}
    out = []
    for model in encoders.values():
        patch = model.plan.patch
        if patch not in counts:
            counts[patch] = observables.class_counts(states, patch)
        out.append(model.closures(counts[patch]))
    return out


@dataclass(frozen=True)
class Comparison:
    """One model against the truth, all latents scaled as in :func:`compare`.

    Attributes
    ----------
    error : published test error over all latents, mean over the groups
    observable_error : the same over magnetisation and domain-wall density alone
    spread_error : relative error of the standard deviations of the observables
    floor : what ``error`` would be for a perfect model, from sampling
    clipped : states held inside the training range during the rollout
    truth, prediction : (mean, std) of the unscaled latents, (T, G, d) each
    """

    error: float
    observable_error: float
    spread_error: float
    floor: float
    clipped: int
    truth: tuple[np.ndarray, np.ndarray]
    prediction: tuple[np.ndarray, np.ndarray]


def compare(latents: np.ndarray, predicted: np.ndarray, groups: int, clipped: int) -> Comparison:
    """Compare trajectories (T, G * R, d) of truth and model.

    As in the published evaluation every latent but the magnetisation is scaled to
    [0, 1] by the truth's smallest and largest value; the magnetisation is not.
    """
    low, high = latents.min(axis=(0, 1)), latents.max(axis=(0, 1))
    low[0], high[0] = 0.0, 1.0
    span = np.maximum(high - low, 1e-12)

    def moments(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        members = z.reshape(len(z), groups, -1, z.shape[-1])
        return members.mean(axis=2), members.std(axis=2, ddof=1)

    true, guess = moments((latents - low) / span), moments((predicted - low) / span)
    per_group = [
        (
            metrics.mean_error(guess[0][:, g], true[0][:, g]),
            metrics.mean_error(guess[0][:, g, :2], true[0][:, g, :2]),
            metrics.spread_error(guess[1][:, g, :2], true[1][:, g, :2]),
            metrics.noise_floor(true[1][:, g] ** 2, latents.shape[1] // groups, true[0][:, g]),
        )
        for g in range(groups)
    ]
    error, observable_error, spread, floor = np.mean(per_group, axis=0)
    return Comparison(
        float(error),
        float(observable_error),
        float(spread),
        float(floor),
        clipped,
        moments(latents),
        moments(predicted),
    )


def evaluate(
    models: Mapping[Task, MacroscopicModel],
    truth: Truth | None,
    *,
    seed: int,
    comm: MPI.Intracomm,
    keep: Sequence[Task] = (),
) -> tuple[Results[Comparison], dict[Task, np.ndarray]]:
    """Roll every model out from the truth's initial latents and compare. Collective.

    The truth must have been encoded under (patch side, seed). Models run on different
    ranks. Returns the comparisons and, for the models named in ``keep``, their
    trajectories (T, G * R, d), on every rank.
    """
    truth = comm.bcast(truth)
    assert truth is not None  # noqa: S101 - rank 0 has it

    tasks = list(models)
    mine = tasks[comm.rank :: comm.size]
    with Progress(len(mine), f"predict with {len(tasks)} models", comm) as progress:

        def work(task: Task) -> tuple[Comparison, np.ndarray | None]:
            patch, method, model_seed = task
            latents = truth.latents((patch, model_seed))
            predicted, clipped = models[task].rollout(latents[0], truth.times, seed=seed)
            result = compare(latents, predicted, len(truth.magnetizations), clipped)
            progress.update(mine.index(task) + 1, patch=patch, method=method, error=result.error)
            return result, predicted if task in keep else None

        results = farm(tasks, work, comm)
    kept = {task: z for task, (_, z) in results.items() if z is not None}
    return {task: comparison for task, (comparison, _) in results.items()}, kept


def write_truth(path: Path, truth: Truth, system: Ising, size: int, seed: int) -> None:
    """Write the microscopic reference as a Trajectory file with a ``member`` dimension."""
    columns = {
        "magnetization": truth.observed[..., 0],
        "energy": truth.energy,
        "domain_wall_density": truth.observed[..., 1],
        "flips": truth.flips.astype(np.int64),
    }
    config = {"size": size, "temperature": system.temperature, "field": system.field}
    _write(path, truth, columns, {"system": "ising", "config_json": config, "seed": seed})


def write_rollout(
    path: Path,
    truth: Truth,
    latents: np.ndarray,
    model: MacroscopicModel,
    system: Ising,
    seed: int,
) -> None:
    """Write a model's trajectories (T, G * R, d) in the same format as the truth."""
    columns = {
        "magnetization": latents[..., 0],
        "domain_wall_density": latents[..., 1],
        "closure": latents[..., 2:],
    }
    config = {
        "size": model.plan.large,
        "temperature": system.temperature,
        "field": system.field,
        "model": model.card,
    }
    attributes = {"system": "macroscopic ising", "config_json": config, "seed": seed}
    _write(path, truth, columns, attributes)


def _write(
    path: Path, truth: Truth, columns: Mapping[str, np.ndarray], attributes: dict[str, Any]
) -> None:
    members = truth.observed.shape[1]
    dims = {"member": members}
    variables = [STANDARD["initial_magnetization"]]
    for name, values in columns.items():
        if name == "closure":
            dims["closure_index"] = values.shape[2]
            variables.append(
                Variable(name, ("member", "closure_index"), long_name="closure variable")
            )
        else:
            variables.append(STANDARD[name].over("member"))
    attributes["config_json"] = json.dumps(attributes["config_json"])
    with TrajectoryWriter(
        path,
        dims=dims,
        variables=variables,
        attributes={**attributes, "rng": RNG, "decomposition_invariant": 1},
        overwrite=True,
    ) as writer:
        start = np.repeat(truth.magnetizations, members // len(truth.magnetizations))
        writer.write_static("initial_magnetization", start)
        for i, time in enumerate(truth.times):
            writer.append(float(time), {name: values[i] for name, values in columns.items()})
