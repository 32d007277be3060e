"""A second device for PyTorch on a machine without one: tensors of the CPU that say otherwise.

Inside of :class:`far_device` a network can be sent to :data:`FAR`. What is computed there is what
the CPU computes; but as on a GPU, operands on two devices are refused, and NumPy sees none of it.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

#: For tests of bits, where tests/learn/conftest.py sends networks elsewhere.
bits_of_the_cpu = pytest.mark.skipif(
    bool(os.environ.get("MPIFLOW_TEST_DEVICE")), reason="these bits are promised of the CPU"
)
#: PyTorch knows this device everywhere, and no kernel of it has values.
FAR = torch.device("meta")
_MOVES = ("aten::_to_copy", "aten::copy_")


class Far(torch.Tensor):
    """A tensor there; ``near`` has its values."""

    near: torch.Tensor

    @staticmethod
    def __new__(cls, near: torch.Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(),
            dtype=near.dtype, device=FAR,
        )  # fmt: skip

    def __init__(self, near: torch.Tensor) -> None:
        self.near = near

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return Far(self.near.data)

    @data.setter
    def data(self, value: Far) -> None:
        self.near = value.near

    def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
        # Of a vector and a matrix PyTorch changes the shape of a tensor in place, unseen by us.
        if self.dim() == 1 and other.dim() == 2:
            return torch.mv(other.mT, self)
        return torch.matmul(self, other)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor of a GPU is no array")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        return _run(function, args, kwargs or {})


class far_device(TorchDispatchMode):
    """Where :data:`FAR` is a device like others."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        return _run(function, args, kwargs or {})


def _run(function: Any, args: Any, kwargs: Any) -> Any:
    name = function._schema.name
    tensors = [a for a in pytree.tree_leaves((args, kwargs)) if isinstance(a, torch.Tensor)]
    far = any(isinstance(t, Far) for t in tensors)
    if far and name not in _MOVES and any(t.dim() and not isinstance(t, Far) for t in tensors):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    to = kwargs.get("device")
    if to is not None:
        far, kwargs = torch.device(to) == FAR, kwargs | {"device": "cpu"}
    args_near, kwargs_near = pytree.tree_map(
        lambda a: a.near if isinstance(a, Far) else a, (args, kwargs)
    )
    out = function(*args_near, **kwargs_near)
    if function._schema.is_mutable and name.endswith("_"):
        return args[0]
    return pytree.tree_map(lambda a: Far(a) if far and isinstance(a, torch.Tensor) else a, out)
