"""What ``mpiflow bench learning`` measures: training and rollouts of the SDE of two networks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mpi4py import MPI

Case = tuple[str, str, float, Callable[[int], int]]
#: Latents, pairs of training, and steps of a trajectory.
DIM, PAIRS, LENGTH = 4, 16_000, 200


def on(device: str, comm: MPI.Intracomm) -> AbstractContextManager[object]:
    """Where networks compute as long as this lasts. Collective."""
    from mpiflow.learn.devices import learning_on

    return learning_on(device, comm)


def cases(small: bool) -> Iterator[Case]:
    """Name, unit, scale and work of each case: of the first the time of a round, else a rate.

    The SDE of an Ising closure: networks of 3 x 64 units, batches of 512 states.
    """
    from mpiflow.learn.closure.model import fit_sde
    from mpiflow.learn.sde import MacroscopicSDE
    from mpiflow.learn.training import Schedule

    pairs, batch, length = (100, 20, 3) if small else (PAIRS, 512, LENGTH)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(pairs, DIM))
    increments = 0.1 * rng.normal(size=(pairs, 1, DIM)) - 0.25 * z[:, None]
    data = z, increments, np.full((pairs, 1), 0.25)
    steps = max(1, int(0.9 * pairs) // batch)
    found: list[MacroscopicSDE] = []

    def train(rounds: int) -> int:
        schedule = Schedule(epochs=rounds, batch=batch, patience=rounds)
        found[:] = [fit_sde(data, 16.0, seed=0, schedule=schedule)[0]]
        return rounds

    yield "training step", "ms/step", 1e3 / steps, train
    for trajectories in (2, 3) if small else (20, 1024):
        members = np.arange(trajectories)

        def roll(rounds: int, members: np.ndarray = members) -> int:
            count = length * rounds
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the model of a second may leave its data
                found[0].rollout(
                    z[members], members, dt=0.1, steps=count, save=np.array([count]), seed=1
                )  # fmt: skip
            return count * len(members)

        yield f"rollout of {trajectories}", "steps/s", 1.0, roll
