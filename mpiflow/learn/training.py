"""One training loop for everything that is learned: on one rank, or with DDP over ranks."""

from __future__ import annotations

import copy
import math
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import nn

from mpiflow.core import gpu
from mpiflow.core.errors import InputError
from mpiflow.core.mpi import MPI
from mpiflow.learn import devices
from mpiflow.learn.optimizer import AdamW, Flat, flattened


class CompiledLoss(Protocol):
    """The loss of a module on its data by kernels; rows (n,) int64, the others flat float32."""

    def total(self, rows: np.ndarray, parameters: np.ndarray) -> float:
        """The sum of the losses of samples."""
        ...

    def gradient(
        self, rows: np.ndarray, parameters: np.ndarray, share: float, gradient: np.ndarray
    ) -> float:
        """The same; puts the gradient of ``share`` times it into its place."""
        ...


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

    A module may have ``compiled_loss(data)``, which gives a loss and its gradient by kernels
    (:class:`CompiledLoss`) or None; torch's graph does the rest. Where the program has chosen a GPU
    (:mod:`mpiflow.learn.devices`) it does all, there; the module comes back to the CPU.

    With ``comm`` of more than one rank, every rank calls this with the same module
    and data, takes its share of each batch, and gradients are averaged, by
    DistributedDataParallel where the graph is torch's: the same result as one rank up to rounding.
    That adds about 2 ms a step on gloo, so it pays for large networks only. GPUs take NCCL.

    Parameters
    ----------
    data : arrays with the same number of samples along axis 0
    seed : order of the batches
    progress : called with (epoch, training loss, validation loss)
    """
    schedule = schedule or Schedule()
    tensors = [torch.as_tensor(np.asarray(a), dtype=torch.float32) for a in data]
    samples = len(tensors[0])
    held_out = max(1, round(samples * schedule.validation))
    training = samples - held_out
    if training < 1:
        raise InputError("data", samples, "2 samples or more", "Generate more.")
    device = devices.here()
    with devices.placed(module, device), flattened(module.parameters()) as flats:
        compiled = None
        if device == devices.CPU:
            compiled = getattr(module, "compiled_loss", lambda _: None)(tensors)
        if compiled is None or len(flats) != 1:
            losses: _Losses = _Graph(module, flats, tensors, comm, device)
        else:
            losses = _Kernels(compiled, flats[0], comm)
        log = _train(module, losses, flats, training, samples, seed, schedule, progress)
    module.eval()
    return log


def _train(
    module: nn.Module,
    losses: _Losses,
    flats: list[Flat],
    training: int,
    samples: int,
    seed: int,
    schedule: Schedule,
    progress: Callable[[int, float, float], None] | None,
) -> TrainingLog:
    """The loop, with the first ``training`` samples."""
    batch = min(schedule.batch, training)
    steps = training // batch
    optimizer = AdamW(flats, schedule.clip)
    factor = _warm_cosine(steps, schedule.epochs * steps)
    order = torch.Generator().manual_seed(seed)
    log = TrainingLog()
    best = copy.deepcopy(module.state_dict())
    for epoch in range(schedule.epochs):
        permutation = torch.randperm(training, generator=order)
        total = 0.0
        module.train()
        for step in range(steps):
            some = permutation[step * batch : (step + 1) * batch]
            loss, gradients = losses.of_batch(some)
            rate = schedule.learning_rate * factor(epoch * steps + step)
            optimizer.step(gradients, rate)
            total += loss
        train_loss = losses.summed(total) / steps
        module.eval()
        validation = losses.mean(training, samples)
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
    return log


class _Losses:
    """The loss of samples, and its gradient by the parameters, over the ranks of ``comm``."""

    def __init__(self, comm: MPI.Intracomm | None) -> None:
        self.comm = comm
        self.ranks, self.rank = (comm.size, comm.rank) if comm is not None else (1, 0)

    def of_batch(self, batch: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        """This rank's part of the mean loss of samples, and the whole gradient of each flat."""
        raise NotImplementedError

    def mean(self, first: int, end: int) -> float:
        """Mean loss over the samples from ``first`` on, the same number on every rank."""
        raise NotImplementedError

    def summed(self, value: float) -> float:
        """Of all ranks."""
        return value if self.comm is None else float(self.comm.allreduce(value))

    def _same(self, value: float) -> float:
        """That of the first rank."""
        return value if self.comm is None else float(self.comm.bcast(value))


class _Graph(_Losses):
    """By torch's graph, and DistributedDataParallel where there are ranks."""

    def __init__(
        self,
        module: nn.Module,
        flats: list[Flat],
        tensors: list[torch.Tensor],
        comm: MPI.Intracomm | None,
        device: torch.device,
    ) -> None:
        super().__init__(comm)
        self._module, self._flats, self._device = module, flats, device
        self._tensors = devices.kept_near(tensors, device)
        self._wrapped = module
        if comm is not None and self.ranks > 1:
            _join_process_group(comm, devices.backend(device, gpu.chosen().shared))
            self._wrapped = nn.parallel.DistributedDataParallel(module)

    def of_batch(self, batch: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        mine = batch[self.rank :: self.ranks]
        some = (self._there(t, mine.to(t.device)) for t in self._tensors)
        # DDP averages over ranks; the factor makes that the mean over the batch
        # even when the shares differ by one sample.
        loss = self._wrapped(*some).sum() * (self.ranks / len(batch))
        self._module.zero_grad()
        loss.backward()
        return loss.item() / self.ranks, [flat.gradient() for flat in self._flats]

    def mean(self, first: int, end: int) -> float:
        total = 0.0
        with torch.no_grad():
            for start in range(first, end, 65536):
                rows = slice(start, min(start + 65536, end))
                some = (self._there(t, rows) for t in self._tensors)
                total += self._module(*some).sum().item()
        return self._same(total / (end - first))

    def _there(self, tensor: torch.Tensor, rows: torch.Tensor | slice) -> torch.Tensor:
        """Some rows, where the module computes."""
        return tensor[rows].to(self._device)


class _Kernels(_Losses):
    """By compiled kernels, whose gradients the ranks add up."""

    def __init__(self, compiled: CompiledLoss, flat: Flat, comm: MPI.Intracomm | None) -> None:
        super().__init__(comm)
        self._compiled, self._gradient = compiled, torch.empty_like(flat.values)
        self._parameters = flat.values.numpy()

    def of_batch(self, batch: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
        mine, gradient = batch[self.rank :: self.ranks].numpy(), self._gradient.numpy()
        loss = self._compiled.gradient(mine, self._parameters, 1.0 / len(batch), gradient)
        if self.comm is not None and self.ranks > 1:
            self.comm.Allreduce(MPI.IN_PLACE, gradient)
        return loss / len(batch), [self._gradient]

    def mean(self, first: int, end: int) -> float:
        total = self._compiled.total(np.arange(first, end), self._parameters)
        return self._same(total / (end - first))


def _warm_cosine(warmup: int, total: int) -> Callable[[int], float]:
    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def _join_process_group(comm: MPI.Intracomm, backend: str) -> None:
    """Start torch's process group over the ranks of ``comm``, once."""
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
        backend, init_method=f"tcp://{host}:{port}", rank=comm.rank, world_size=comm.size
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


def sizes_of(network: nn.Module) -> list[int] | None:
    """The sizes of a network of :func:`mlp`, in float32 on the CPU; None if it is anything else."""
    parts = list(network) if type(network) is nn.Sequential else []
    sizes: list[int] = []
    for i, part in enumerate(parts):
        if type(part) is not (nn.SiLU if i % 2 else nn.Linear) or _hooked(part):
            return None
        if type(part) is nn.Linear:
            if part.weight.dtype is not torch.float32 or not part.weight.is_cpu:
                return None
            if part.bias is None:
                return None
            sizes += [part.in_features] if i == 0 else []
            sizes.append(part.out_features)
    return sizes if len(parts) % 2 and not _hooked(network) else None


def all_learned(module: nn.Module, *networks: nn.Module) -> bool:
    """Whether the parameters of networks, in this order, are all that the module learns."""
    own, theirs = list(module.parameters()), [p for n in networks for p in n.parameters()]
    same = list(map(id, own)) == list(map(id, theirs)) and not _hooked(module)
    return same and all(p.requires_grad for p in own)


def _hooked(part: nn.Module) -> bool:
    """Whether more happens in it than its type says."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(part, name) for name in hooks) or "forward" in vars(part)
