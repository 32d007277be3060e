"""Tests of learners with networks on another device: MPIFLOW_TEST_DEVICE=far, that of far.py, or
cuda on a machine with a GPU. What asks for the bits of the CPU is left out there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

DEVICE = os.environ.get("MPIFLOW_TEST_DEVICE", "")
#: For tests of bits, which are promised of the CPU alone.
bits_of_the_cpu = pytest.mark.skipif(bool(DEVICE), reason="bits are promised of the CPU")


@pytest.fixture(autouse=bool(DEVICE))
def networks_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Training and rollouts go there."""
    import torch
    from far import FAR, far_device

    from mpiflow.learn import devices

    there = FAR if DEVICE == "far" else torch.device(DEVICE)
    with far_device() if there == FAR else nullcontext():
        monkeypatch.setattr(devices, "here", lambda: there)
        yield
