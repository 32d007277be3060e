"""``mpiflow learn generator``: from files of runs to a saved generator, and a table about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mpiflow.files.runs import find_runs
from mpiflow.files.trajectory import Trajectory
from mpiflow.learn.generator import fit
from mpiflow.learn.generator.data import from_files
from mpiflow.learn.generator.law import learn_weak
from mpiflow.learn.generator.model import Generator
from mpiflow.learn.options import GeneratorConfig
from mpiflow.learn.together import explained_drift, learned
from mpiflow.learn.training import Schedule

if TYPE_CHECKING:
    from mpi4py import MPI

#: Reach of kernels that are learned in gamma, and in points where gamma is not known.
REACH, RADIUS = 3.5, 8.0


def learn(config: GeneratorConfig, comm: MPI.Intracomm | None = None) -> Generator:
    """Learn from the files, and save the model. Collective, by rank 0.

    Raises
    ------
    InputError : on all ranks: runs or options do not fit, or there is a model already
    """
    return learned(lambda: _model(config), config.out, config.overwrite, comm, config.device)


def _model(config: GeneratorConfig) -> Generator:
    paths = find_runs(config.data)
    data = from_files(paths)
    with Trajectory(paths[0]) as file:
        gamma, block = file.config.get("gamma"), file.config.get("coarse")
    rates = data.rates_of(config.noise, config.window or 7)
    radius = config.radius
    if radius is None:
        radius = min(REACH * gamma / block if gamma and block else RADIUS, data.points // 2)
    torch.manual_seed(config.seed)
    model = Generator(
        config.prior, config.kernel, data.points, max(radius, 1.5), mirror=config.mirror
    )
    if config.prior == "mlp":
        schedule = Schedule(epochs=config.epochs or 100, batch=256, patience=40)
        solution = learn_weak(model, rates, schedule=schedule, seed=config.seed)
    else:
        solution = fit.solve(model, rates, tolerance=1e-5)
    low, high = float(np.nanmin(data.fields)), float(np.nanmax(data.fields))
    margin = 0.1 * (high - low)
    seen = {"temperature": np.asarray(data.temperature), "field": np.asarray(data.field)}
    model.card |= {
        "runs": len(data.fields),
        "seed": config.seed,
        "noise": config.noise,
        "gamma": gamma,
        "block": block,
        "errors": fit.errors(model, solution),
        "validity": {
            "latents": {"m": [low - margin, high + margin]},
            "parameters": {name: [float(v.min()), float(v.max())] for name, v in seen.items()},
        },
    }
    return model


def table(model: Generator, out: Any) -> str:
    """Lines about a learned generator: constants, kernel, fit, range, and where it is."""
    card = model.card
    errors, goodness = card["errors"], card["goodness"]
    lines = [
        f"F(J * m, m), prior {model.prior}, kernel {model.kernel} of reach {model.radius:.4g} "
        f"from {card['runs']} runs"
    ]
    if model.network is None:
        constants = (
            f"{name} = {value:.4f}" + (f" ({errors[name]:.4f})" if name in errors else "")
            for name, value in model.report().items()
        )
        lines.append(", ".join(constants))
    lines.append(f"expected error of the kernel {errors['kernel']:.2%}")
    lines.append(f"{explained_drift(goodness)}; residual over rates {goodness['residual']:.3g}")
    lines += [
        f"range: {name} {a:.6g} to {b:.6g}"
        for known in model.validity.values()
        for name, (a, b) in known.items()
    ]
    lines += [f"warning: the data do not obey such a law: {text}" for text in card["doubts"]]
    lines.append(f"saved to {out}")
    return "\n".join(lines)
