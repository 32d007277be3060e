r"""AdamW without decay, with amsgrad, on one flat array of all parameters [arXiv:1904.09237].

.. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
          v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
          \hat v \leftarrow \max(\hat v, v), \quad \theta \leftarrow \theta -
          \frac{\eta}{1 - \beta_1^t} \frac{m}{\sqrt{\hat v / (1 - \beta_2^t)} + \epsilon}.

The steps of ``torch.optim.AdamW``, which goes through the parameters tensor by tensor, and imports
torch's compiler, which takes longer than many a training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class Flat:
    """Parameters of one type and device, in one tensor.

    Attributes
    ----------
    parameters : in the order of the tensor
    values : (n,), all of their numbers; they are views of it
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.values = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        start = 0
        for p in self.parameters:
            p.data = self.values[start : start + p.numel()].view(p.shape)
            start += p.numel()

    def gradient(self) -> torch.Tensor:
        """Of the last backward pass, (n,); 0 where there is none."""
        return torch.cat([
            p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1)
            for p in self.parameters
        ])  # fmt: skip

    def part(self) -> None:
        """Give each parameter memory of its own again."""
        for p in self.parameters:
            p.data = p.data.clone()


@contextmanager
def flattened(parameters: Iterable[nn.Parameter]) -> Iterator[list[Flat]]:
    """Those that are learned, together by type and device as long as this lasts."""
    groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for p in parameters:
        if p.requires_grad:
            groups.setdefault((p.dtype, p.device), []).append(p)
    flats = [Flat(group) for group in groups.values()]
    try:
        yield flats
    finally:
        for flat in flats:
            flat.part()


class AdamW:
    """Steps of flat parameters, in place.

    Parameters
    ----------
    flats : their tensors
    clip : largest length of the gradient of all of them
    """

    def __init__(self, flats: Sequence[Flat], clip: float) -> None:
        self._values, self._clip = [flat.values for flat in flats], clip
        self._moments = [[torch.zeros_like(v) for _ in range(3)] for v in self._values]
        self._steps = 0

    def step(self, gradients: Sequence[torch.Tensor], learning_rate: float) -> None:
        """One step along gradients (n,), one of each; they are used up."""
        self._steps += 1
        length = sum(torch.linalg.vector_norm(g).item() ** 2 for g in gradients) ** 0.5
        share = self._clip / (length + 1e-6)
        rate = learning_rate / (1.0 - BETA_1**self._steps)
        root = (1.0 - BETA_2**self._steps) ** 0.5
        for values, g, (m, v, top) in zip(self._values, gradients, self._moments, strict=True):
            if share < 1.0:
                g.mul_(share)
            m.lerp_(g, 1.0 - BETA_1)
            v.mul_(BETA_2).addcmul_(g, g, value=1.0 - BETA_2)
            torch.maximum(top, v, out=top)
            values.addcdiv_(m, top.sqrt().div_(root).add_(EPSILON), value=-rate)
