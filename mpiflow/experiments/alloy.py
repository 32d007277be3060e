"""What drivers of alloys share: the pairs they look at, and published tables."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpiflow import metrics
from mpiflow.systems.alloy import pair_names

#: Pairs of elements, and those whose half-times are told: the others change too little.
PAIRS = pair_names(("Nb", "Mo", "Ta"))
LARGE = ("MoMo", "MoTa", "TaTa")


def published_order(
    path: Path, sites: int, pairs: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Final mean and spread (6,) and half-times (6,) in s of a published table of order in time.

    None without the table or a model of so many sites in it.
    """
    if not path.is_file():
        return None
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["n_atoms"]) == sites]
    if not rows:
        return None
    times = np.array([float(row["kmc_time_s"]) for row in rows])
    mean, std = (
        np.array([[float(row[f"{kind}_{pair}"]) for pair in pairs] for row in rows])
        for kind in ("mean", "std")
    )
    late = times >= 0.5 * times[-1]
    final = mean[late].mean(axis=0)
    return final, std[late].mean(axis=0), metrics.half_time(times, mean, final)
