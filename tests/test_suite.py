"""The suite on several ranks: what pytest-mpi leaves out, and what its report may hold."""

from __future__ import annotations

import subprocess
from collections.abc import Callable


def test_ranks_run_what_is_marked_and_report_in_text(
    mpirun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    quiet = ("-q", "--color=no", "-p", "no:cacheprovider")
    done = mpirun(2, "python", "-m", "pytest", *quiet, "tests/core/test_schedule.py")
    assert "test does not use mpi" in done.stdout
    assert "passed" not in done.stdout
    assert "MPI library version: " in done.stdout
    assert "\0" not in done.stdout  # Open MPI ends its version with one, and grep stops there
