"""Progress on rank 0: a bar on a terminal or in a notebook, a line now and then in a batch log."""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mpiflow.core.compiling import A_WAIT, CLOCK

if TYPE_CHECKING:
    from mpi4py import MPI
    from rich.progress import Progress as RichProgress

#: A line in a batch log after this many seconds, or this share of the work but not sooner than 1 s.
SECONDS, SHARE = 10.0, 0.1


class Progress:
    """Progress of a piece of work, shown by rank 0 on standard error.

    Parameters
    ----------
    total : the amount of work, in any unit (time to simulate, epochs, samples)
    label : what is being done
    comm : communicator, whose rank 0 shows; None for a single process
    show : False for silence

    Examples
    --------
    >>> with Progress(len(epochs), "train", comm) as progress:
    ...     for epoch in epochs:
    ...         progress.update(epoch + 1, loss=0.1)
    """

    def __init__(
        self, total: float, label: str, comm: MPI.Intracomm | None = None, *, show: bool = True
    ) -> None:
        self.total, self.label = total, label
        self.show = show and (comm is None or comm.rank == 0)
        self.share = 0.0
        self._facts = ""
        self._bar: RichProgress | None = None
        self._shown_share = 0.0

    def __enter__(self) -> Progress:
        self._start = self._shown = time.monotonic()
        self._compiled_before = self._compiled_seen = CLOCK.seconds
        notebook = self.show and in_notebook()
        width = terminal_width() if self.show and not notebook else None
        if notebook or width is not None:
            self._bar = _bar(width)
            self._bar.add_task(self.label, total=1.0, facts="")
            self._bar.start()
        return self

    def update(self, done: float, **facts: Any) -> None:
        """Report that ``done`` of ``total`` is finished, with a few facts to show beside it."""
        if not self.show:
            return
        self.share = min(1.0, done / self.total) if self.total > 0 else 1.0
        self._facts = "  ".join(f"{name} {_short(value)}" for name, value in facts.items())
        if self._bar is not None:
            task = self._bar.task_ids[0]
            if self._compiled_seen < CLOCK.seconds:  # the time left is that of what follows
                self._compiled_seen = CLOCK.seconds
                self._bar.reset(task)
            self._bar.update(task, completed=self.share, facts=self._facts)
        elif self._line_due():
            self._line()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.show and kind is None:
            self._line()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    def _line_due(self) -> bool:
        since = time.monotonic() - self._shown
        # The pause grows with the run: a ten-hour job should not fill its log.
        return since >= max(SECONDS, self.elapsed / 20) or (
            since >= 1.0 and self.share >= self._shown_share + SHARE
        )

    def _line(self) -> None:
        self._shown, self._shown_share = time.monotonic(), self.share
        line = f"{self.label} {100 * self.share:3.0f} %  {_duration(self.elapsed)}"
        compiled = CLOCK.seconds - self._compiled_before
        if 0.0 < self.share < 1.0:
            line += f", {_duration((self.elapsed - compiled) * (1 / self.share - 1))} left"
        if compiled > A_WAIT:
            line += f" ({_duration(compiled)} were to compile, once)"
        print(f"{line}  {self._facts}".rstrip(), file=sys.stderr, flush=True)


def terminal_width() -> int | None:
    """Columns of the terminal that shows standard error, None if there is none.

    Under mpirun standard error is a pipe to mpirun; then it is mpirun's own that
    counts, if mpirun runs on this machine and is therefore our parent.
    """
    try:
        if sys.stderr.isatty():
            return os.get_terminal_size(sys.stderr.fileno()).columns or 80
        launcher = f"/proc/{os.getppid()}/fd/2"
        if "OMPI_COMM_WORLD_SIZE" not in os.environ or not os.readlink(launcher).startswith("/dev"):
            return None
        descriptor = os.open(launcher, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return os.get_terminal_size(descriptor).columns or 80
    except OSError:  # /dev/null, for one
        return None
    finally:
        os.close(descriptor)


def in_notebook() -> bool:
    """Whether this runs in a notebook that can show a bar, which takes ipywidgets."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell" and find_spec("ipywidgets") is not None


def _bar(width: int | None) -> RichProgress:
    """A bar for a terminal of so many columns, or for a notebook."""
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[facts]}"),
        console=Console(force_jupyter=True)
        if width is None
        else Console(stderr=True, force_terminal=True, width=width),
        refresh_per_second=4,
    )


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
