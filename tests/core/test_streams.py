"""A log that cannot be written does not end a program, and does not land in a run's file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (
    "import sys\n"
    "from mpiflow.core import streams\n"
    "from mpiflow.run.progress import Progress\n"
    "streams.forgive()\n"
    "with open(sys.argv[1], 'w') as file:\n"
    "    with Progress(10, 'run') as bar:\n"
    "        for i in range(2000):\n"
    "            print('a line', i)\n"
    "            print('a message', i, file=sys.stderr, flush=True)\n"
    "            bar._line()\n"
    "    file.write('the end')\n"
)


@pytest.mark.parametrize(
    "where", [">/dev/full", "2>/dev/full", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | head -1", "2>&1"]
)
def test_it_goes_mute_and_on(tmp_path: Path, where: str) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" "$2" {where}',
         sys.executable, PROGRAM, str(out)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert out.read_text() == "the end"
