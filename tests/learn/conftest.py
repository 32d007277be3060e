"""Tests of learners with networks on another device: MPIFLOW_TEST_DEVICE=far, that of far.py, or
cuda on a machine with a GPU. What asks for the bits of the CPU is left out there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

DEVICE = os.environ.get("MPIFLOW_TEST_DEVICE", "")


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
