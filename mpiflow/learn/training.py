"""One training loop for everything that is learned: on one rank, or with DDP over ranks."""

from __future__ import annotations

import copy
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI


@dataclass(frozen=True)
class Schedule:
    """How to train.

    Parameters
    ----------
    epochs : most passes over the training set
    batch : samples a step
    learning_rate : peak; it warms up for one epoch and falls to 1 % along a cosine
    patience : epochs without a better validation loss before stopping
    validation : fraction of the samples held out, the last ones
    clip : largest gradient norm
    """

    epochs: int = 60
    batch: int = 512
    learning_rate: float = 2e-3
    patience: int = 15
    validation: float = 0.1
    clip: float = 5.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "learning_rate", "patience", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "above 0", "Leave it out.")
        if not 0 < self.validation < 1:
            raise InputError("validation", self.validation, "between 0 and 1", "Try 0.1.")


@dataclass
class TrainingLog:
    """What happened: losses of each epoch, which one was kept."""

    train: list[float] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    best_epoch: int = -1
    stopped_early: bool = False

    @property
    def best_validation(self) -> float:
        return self.validation[self.best_epoch]


def fit(
    module: nn.Module,
    data: Sequence[np.ndarray],
    *,
    seed: int,
    schedule: Schedule | None = None,
    comm: MPI.Intracomm | None = None,
    progress: Callable[[int, float, float], None] | None = None,
) -> TrainingLog:
    """Train ``module`` in place and keep the weights with the best validation loss.

    ``module(*batch)`` returns the loss of each sample. AdamW (amsgrad, no decay).

    With ``comm`` of more than one rank, every rank calls this with the same module
    and data, takes its share of each batch, and gradients are averaged by
    DistributedDataParallel: the same result as one rank up to rounding. It adds
    about 2 ms a step on gloo, so it pays for large networks only.

    Parameters
    ----------
    data : arrays with the same number of samples along axis 0
    seed : order of the batches
    progress : called with (epoch, training loss, validation loss)
    """
    schedule = schedule or Schedule()
    ranks, rank = (comm.size, comm.rank) if comm is not None else (1, 0)
    tensors = [torch.as_tensor(np.asarray(a), dtype=torch.float32) for a in data]
    samples = len(tensors[0])
    held_out = max(1, round(samples * schedule.validation))
    training = samples - held_out
    if training < 1:
        raise InputError("data", samples, "2 samples or more", "Generate more.")
    batch = min(schedule.batch, training)
    steps = training // batch
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=schedule.learning_rate, weight_decay=0.0, amsgrad=True
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, _warm_cosine(steps, schedule.epochs * steps)
    )
    wrapped: nn.Module = module
    if comm is not None and ranks > 1:
        _join_process_group(comm)
        wrapped = nn.parallel.DistributedDataParallel(module)
    order = torch.Generator().manual_seed(seed)
    log = TrainingLog()
    best = copy.deepcopy(module.state_dict())
    for epoch in range(schedule.epochs):
        permutation = torch.randperm(training, generator=order)
        total = 0.0
        module.train()
        for step in range(steps):
            mine = permutation[step * batch : (step + 1) * batch][rank::ranks]
            # DDP averages over ranks; the factor makes that the mean over the batch
            # even when the shares differ by one sample.
            loss = wrapped(*(t[mine] for t in tensors)).sum() * (ranks / batch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), schedule.clip)
            optimizer.step()
            scheduler.step()
            total += loss.item() / ranks
        train_loss = _sum(total, comm) / steps
        validation = _mean_loss(module, [t[training:] for t in tensors], comm)
        log.train.append(train_loss)
        log.validation.append(validation)
        if progress is not None:
            progress(epoch, train_loss, validation)
        if not math.isfinite(train_loss + validation):
            raise InputError(
                "learning_rate",
                schedule.learning_rate,
                f"one for which the loss stays finite (epoch {epoch} gave {train_loss})",
                "Use a smaller one.",
            )
        if log.best_epoch < 0 or validation < log.best_validation:
            log.best_epoch = epoch
            best = copy.deepcopy(module.state_dict())
        elif epoch - log.best_epoch >= schedule.patience:
            log.stopped_early = True
            break
    module.load_state_dict(best)
    module.eval()
    return log


def _warm_cosine(warmup: int, total: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def _mean_loss(module: nn.Module, tensors: list[torch.Tensor], comm: MPI.Intracomm | None) -> float:
    """Mean loss over the held-out samples, the same number on every rank."""
    module.eval()
    total, count = 0.0, len(tensors[0])
    with torch.no_grad():
        for start in range(0, count, 65536):
            total += module(*(t[start : start + 65536] for t in tensors)).sum().item()
    if comm is not None:
        total = comm.bcast(total)
    return total / count


def _sum(value: float, comm: MPI.Intracomm | None) -> float:
    return value if comm is None else float(comm.allreduce(value))


def _join_process_group(comm: MPI.Intracomm) -> None:
    """Start torch's gloo process group over the ranks of ``comm``, once."""
    if torch.distributed.is_initialized():
        if torch.distributed.get_world_size() != comm.size:
            raise InputError(
                "comm", comm.size, "the communicator of the first DDP training", "Reuse it."
            )
        return
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    one_machine = comm.allreduce(node.size, op=MPI.MIN) == comm.size
    node.Free()
    address = None
    if comm.rank == 0:
        host = "127.0.0.1" if one_machine else socket.gethostbyname(socket.gethostname())
        with socket.socket() as probe:
            probe.bind((host, 0))
            address = host, probe.getsockname()[1]
    host, port = comm.bcast(address)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://{host}:{port}", rank=comm.rank, world_size=comm.size
    )


def mlp(sizes: Sequence[int], *, zero_last: bool = False) -> nn.Sequential:
    """Linear layers of the given sizes with SiLU between them.

    ``zero_last`` starts the last layer at zero, so that the network starts as
    the constant that its caller adds.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        if i:
            layers.append(nn.SiLU())
        layers.append(nn.Linear(inputs, outputs))
    if zero_last:
        last = layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return nn.Sequential(*layers)
