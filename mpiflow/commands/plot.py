"""``mpiflow plot``: a run as a picture (needs matplotlib) or as text in the terminal."""

from __future__ import annotations

import json
import os
import shutil
import sys
import textwrap
import time as clock
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from mpiflow.commands.export import components, field_axes, is_species
from mpiflow.commands.plot_atoms import draw_atoms
from mpiflow.commands.selected import attributes_of, check_member, chosen
from mpiflow.commands.terminal import FIELD_ROWS, braille, half_blocks, resampled, trace
from mpiflow.core.errors import InputError
from mpiflow.experiments import style
from mpiflow.files import segments
from mpiflow.files.schema import Variable
from mpiflow.files.storage import whole_file
from mpiflow.files.trajectory import Trajectory
from mpiflow.simulation.options import idle

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 80  # of text that goes to a file or a pipe
PAUSE = 2.0  # seconds between two looks at a growing file
PATIENCE = 5  # looks in a row that may fail, because a reader met a flush
SNAPSHOTS = 5
MOMENTS = 400  # most times, and most places, of what lies along a line

_ALONG = ("site", "position")  # dimensions along a line
_COMPONENTS = 9  # of a field
_LINES = 32  # most lines in a panel, and most unless asked for
_FEW_LINES = 9
_CHART_ROWS = 6


@dataclass(frozen=True)
class Series:
    """A variable against time.

    Parameters
    ----------
    about : what it is, and its units
    labels : names of its lines; one empty name for a plain number
    mean : (frames, lines), over the members of an ensemble
    spread : their standard deviation, (frames, lines); None without an ensemble
    """

    name: str
    about: str
    labels: tuple[str, ...]
    mean: np.ndarray
    spread: np.ndarray | None


@dataclass(frozen=True)
class Field:
    """A component of a field at some frames: values (ny, nx), the edges of the cells in sites, and
    what the axes are.

    Of what lies along a ``line``, the name of its dimension, there is one for all frames, its
    places upwards and time to the right, which may be ``logarithmic``.
    """

    name: str
    frames: tuple[int, ...]
    values: tuple[np.ndarray, ...]
    extent: tuple[float, float, float, float]
    axes: tuple[str, str] = ("x", "y")
    line: str = ""
    logarithmic: bool = False


def plot(
    path: str | os.PathLike[str],
    out: str | Path | None = None,
    *,
    variables: Sequence[str] | None = None,
    frame: int | None = None,
    member: int = 0,
    live: bool = False,
    overwrite: bool = False,
) -> None:
    """What ``mpiflow plot`` does: a PNG at ``out``, or without it text to standard output.

    Parameters
    ----------
    variables : names of variables against time and of fields; default is what fits a page
    frame : of the fields, negative from the end; default is the last one, or in a picture
        up to five
    member : of the fields of an ensemble
    live : redraw the text until the run is complete, or Ctrl-C

    Raises
    ------
    InputError : nothing to plot, no such variable, frame or member, bad output
    """
    if out is None:
        _check_encoding(sys.stdout)
        if live:
            watch(path, variables=variables, frame=frame, member=member)
            return
        with Trajectory(path) as run:
            width, _ = _terminal(sys.stdout)
            colour = _in_colour(sys.stdout)
            lines = page(run, variables, frame, member, width=width, colour=colour)
        print("\n".join(lines))
        return
    if live:
        raise idle("live", live, "with --out, a picture")
    with Trajectory(path) as run:
        picture(run, out, variables, frame, member, overwrite=overwrite)
        frames = len(run)
    print(f"{out}: {frames} frame{'s' * (frames != 1)}")


# -- what there is to plot -----------------------------------------------------------------


def lines_of(run: Trajectory, v: Variable) -> int:
    """In how many lines a variable is drawn against time; 0 for one that cannot be."""
    if not v.per_frame or field_axes(v) or _along_a_line(run, v):
        return 0
    count = 1
    for name in v.dims:
        count *= 1 if name == "member" else run.sizes[name]
    return count if count <= _LINES else 0


def _along_a_line(run: Trajectory, v: Variable) -> bool:
    """Whether it is drawn over time and place: along a line, or many numbers in a row."""
    axes = [name for name in v.dims if name != "member"]
    if not v.per_frame or len(axes) != 1 or v.dims[-1:] != (*axes,):
        return False
    if axes[0] in _ALONG and not is_species(v):
        return True
    own = v.name in json.loads(run.attributes.get("observables_json", "{}"))
    return own and run.sizes[axes[0]] > _FEW_LINES and run.read(axes[0]).dtype.kind in "fiu"


def _select(
    run: Trajectory, names: Sequence[str] | None, *, atoms: bool = False
) -> tuple[list[Variable], list[Variable]]:
    """The variables to draw against time, and the fields; atoms too where they are asked for."""
    lines = {v.name: n for v in run.variables.values() if (n := lines_of(run, v))}
    planes = [v for v in run.variables.values() if len(field_axes(v)) == 2 or _along_a_line(run, v)]
    fields = [v.name for v in planes]
    if atoms and names is not None:
        fields += [v.name for v in run.variables.values() if is_species(v)]
    if names is not None:
        wanted = chosen(run, names, [*lines, *fields])
    else:
        usual = [name for name, count in lines.items() if count <= _FEW_LINES] or list(lines)
        shown = [n for n in fields if n != "spin"] or fields  # spins where there are no blocks
        wanted = chosen(run, [*usual, *shown], [*lines, *fields])
    if not wanted:
        remedy = "Run it again with --coarse 8."
        raise InputError("file", str(run.path), "a run with something to plot", remedy)
    series = [v for v in wanted if v.name in lines]
    return series, [v for v in wanted if v.name in fields]


def series_of(run: Trajectory, v: Variable) -> Series:
    """Read a variable over all frames, and reduce its members."""
    values = np.asarray(run.read(v.name), np.float64)
    spread = None
    if "member" in v.dims:
        axis = 1 + v.dims.index("member")
        values, spread = values.mean(axis), values.std(axis).reshape(len(values), -1)
    labels = [""]
    for name in v.dims:
        if name != "member":
            words = [str(word) for word in run.read(name)]
            labels = [f"{label} {word}".strip() for label in labels for word in words]
    about = v.long_name or v.name
    about = about if v.units == "1" else f"{about} ({v.units})"
    return Series(v.name, about, tuple(labels), values.reshape(len(values), -1), spread)


def fields_of(
    run: Trajectory,
    kept: Sequence[Variable],
    frames: Sequence[int],
    member: int,
    most: int | None = None,
) -> Iterator[Field]:
    """Read fields at some frames, one frame at a time: the first components of each.

    Of planes with more than ``most`` cells a side there are means, so that many frames fit into
    memory.
    """
    for v in kept:
        if _along_a_line(run, v):
            yield profile_of(run, v, member)
            continue
        names = tuple(reversed(field_axes(v)))
        across, up = (_edges(run, name) for name in names)
        axes = f"{names[0]} (sites)", f"{names[1]} (sites)"
        for name, place in _first_components(run, v):
            at = {"member": member, **place}
            box = tuple(at.get(dim, slice(None)) for dim in v.dims)
            read = (np.asarray(run.read(v.name, k)[box], np.float32) for k in frames)
            values = tuple(values if most is None else _coarser(values, most) for values in read)
            yield Field(name, tuple(frames), values, (*across, *up), axes)


def _coarser(values: np.ndarray, most: int) -> np.ndarray:
    """Means over a plane, with at most so many cells a side."""
    for _ in range(2):
        if len(values) > most:
            values = resampled(values, most)
        values = values.T
    return values.astype(np.float32)


def _first_components(run: Trajectory, v: Variable) -> list[tuple[str, dict[str, int]]]:
    """Names and places of the components that there is room for; the last name tells of others."""
    every = list(components(run, v).items())
    few = every[:_COMPONENTS]
    if len(few) < len(every):
        few[-1] = (f"{few[-1][0]} (of {len(every)} components)", few[-1][1])
    return few


def _grow(run: Trajectory) -> bool:
    """Whether distances of frames grow, from time 0 on: then the axis of time is logarithmic.

    It begins at the first frame after 0.
    """
    parts = [part for part in run.segments if len(part.frames)]
    return len(run) > 2 and not run.time[0] and all(part.frames_per_decade for part in parts)


def profile_of(run: Trajectory, v: Variable, member: int) -> Field:
    """Read what lies along a line, one frame at a time; of many times and places a part."""
    frames, grow = spaced(_frame(run, -1), MOMENTS), _grow(run)
    columns: list[np.ndarray] = []
    if grow:  # the state at equal distances of the logarithm
        times = np.geomspace(run.time[1], run.time[-1], MOMENTS)
        at = np.searchsorted(run.time, times * (1 + 1e-12), side="right") - 1
        frames = [int(k) for k in at]
    for i, k in enumerate(frames):
        if i and k == frames[i - 1]:
            columns.append(columns[-1])
            continue
        whole = np.asarray(run.read(v.name, k), np.float64)
        line = whole[member] if "member" in v.dims else whole
        columns.append(resampled(line[:, None], min(len(line), MOMENTS))[:, 0])
    first, last = float(run.time[int(grow)]), float(run.time[-1])
    edges = first, last, *_edges(run, v.dims[-1])
    axes = time_label(run), v.dims[-1]
    return Field(v.name, (), (np.stack(columns, axis=1),), edges, axes, v.dims[-1], grow)


def _edges(run: Trajectory, name: str) -> tuple[float, float]:
    """Outer edges of the cells along a dimension."""
    centres = run.read(name)
    half = float(centres[1] - centres[0]) / 2 if len(centres) > 1 else float(centres[0]) + 0.5
    return round(float(centres[0]) - half, 12), round(float(centres[-1]) + half, 12)


def _frame(run: Trajectory, frame: int) -> int:
    if not len(run):
        raise InputError("file", str(run.path), "a file with frames", "It has none yet.")
    if not -len(run) <= frame < len(run):
        allowed = f"{-len(run)} to {len(run) - 1}"
        raise InputError("frame", frame, allowed, f"{run.path} has {len(run)} frames.")
    return range(len(run))[frame]


def time_label(run: Trajectory) -> str:
    about = attributes_of(run.path)["time"]
    units = str(about.get("units", "1"))
    return str(about.get("long_name", "time")) + ("" if units == "1" else f" ({units})")


def _title(run: Trajectory, width: int = 200) -> str:
    """The file, its state, and as many facts of its configuration as there is room for."""
    state = "complete" if run.complete else "NOT complete"
    system = run.attributes["system"]
    facts = [f"{run.path.name}: {system}, {len(run)} frames, {state}"]
    varying = segments.changes(run.segments)
    known = ("model", "size", "cells", "members", "temperature", "field", "beta", "seed")
    for name in known:
        value = run.config.get(name)
        if name == "model" and value is not None:  # a name, or where it is
            value = Path(value).name
        if name in run.variables:
            facts.append(f"{name} changes")
        elif name in varying:  # in the parts of a run that was resumed with other options
            facts.append(f"{name} {', then '.join(map(str, varying[name]))}")
        elif value is not None and (name, value) != ("members", 1):
            sides = isinstance(value, list)
            facts.append(f"{name} {'x'.join(map(str, value)) if sides else value}")
    while len(facts) > 1 and len(", ".join(facts)) > width:
        facts.pop()
    return ", ".join(facts)[:width]


def limits(values: Sequence[np.ndarray]) -> tuple[float, float]:
    """Ends of the colour scale: symmetric for values of both signs."""
    finite = [part[np.isfinite(part)] for part in values]
    low = min((float(part.min()) for part in finite if part.size), default=0.0)
    high = max((float(part.max()) for part in finite if part.size), default=1.0)
    if low < 0 < high:
        high = max(-low, high)
        low = -high
    return (low, high) if high > low else (low - 0.5, high + 0.5)


# -- a picture -----------------------------------------------------------------------------


def picture(
    run: Trajectory,
    out: str | Path | None,
    variables: Sequence[str] | None = None,
    frame: int | None = None,
    member: int = 0,
    *,
    overwrite: bool = False,
) -> Figure:
    """Draw the run, into a PNG file if there is ``out``. See :func:`plot`."""
    if out is None:
        return _figure(run, variables, frame, member)
    with whole_file(out, overwrite=overwrite, inputs=[run.path]) as target:
        figure = _figure(run, variables, frame, member)
        figure.savefig(target, dpi=110, format="png")
    return figure


def _figure(
    run: Trajectory, variables: Sequence[str] | None, frame: int | None, member: int
) -> Figure:
    try:
        from matplotlib import rc_context
    except ImportError as error:
        remedy = "Install mpiflow[plot]; without --out the command shows text."
        raise InputError("plot", str(run.path), "no picture without matplotlib", remedy) from error
    with rc_context(style.settings()):
        return _drawn(run, variables, frame, member)


def _drawn(
    run: Trajectory, variables: Sequence[str] | None, frame: int | None, member: int
) -> Figure:
    last = _frame(run, -1)
    moments = [_frame(run, frame)] if frame is not None else spaced(last, SNAPSHOTS)
    check_member(run, member)
    drawn, kept = _select(run, variables, atoms=True)
    atoms = [v for v in kept if is_species(v)]
    kept = [v for v in kept if v not in atoms]
    columns = 2 if len(drawn) == 4 else min(3, max(1, len(drawn)))
    rows = -(-len(drawn) // columns)
    loop = [v for name in ("field", "magnetization") for v in drawn if v.name == name]
    panels_of = (1 if _along_a_line(run, v) else len(_first_components(run, v)) for v in kept)
    sizes = (
        [3.0 * rows] * bool(drawn)
        + [3.8] * (len(loop) == 2)
        + [3.2] * sum(panels_of)
        + [8.0 / len(moments) + 2.0] * len(atoms)
    )
    figure = style.figure(13.0, sum(sizes) + 0.5)
    parts = list(figure.subfigures(len(sizes), 1, height_ratios=sizes, squeeze=False)[:, 0])
    if drawn:
        panels = parts.pop(0).subplots(rows, columns, sharex=True, squeeze=False).ravel()
        for axes, v in zip(panels, drawn, strict=False):
            _draw_series(axes, run.time, series_of(run, v))
            if _grow(run):
                axes.set_xscale("log", nonpositive="mask")
                axes.set_xlim(run.time[1], run.time[-1])
            if frame is not None:
                axes.axvline(run.time[moments[0]], color="0.6", lw=0.8)
        for axes in panels[max(0, len(drawn) - columns) : len(drawn)]:
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(time_label(run))
        for axes in panels[len(drawn) :]:
            axes.remove()
    if len(loop) == 2:
        _draw_loop(parts.pop(0), *(series_of(run, v) for v in loop))
    if atoms:
        draw_atoms(parts.pop(), run, moments, member)
    for part, field in zip(parts, fields_of(run, kept, moments, member), strict=True):
        if field.line:
            _draw_profile(part, field)
        else:
            _draw_field(part, run.time, field)
    figure.suptitle(os.fsencode(_title(run, 140)).decode(errors="replace"), fontsize=11)
    return figure


def spaced(last: int, count: int) -> list[int]:
    """Up to ``count`` frames from 0 to ``last``, evenly."""
    return sorted({round(k * last / max(1, count - 1)) for k in range(count)})


def _draw_series(axes: Any, times: np.ndarray, series: Series) -> None:
    for i, label in enumerate(series.labels):
        mark = "o" if len(times) < 30 else None
        line = axes.plot(times, series.mean[:, i], marker=mark, ms=2.5, label=label)[0]
        if series.spread is not None:
            low, high = (series.mean[:, i] + sign * series.spread[:, i] for sign in (-1, 1))
            axes.fill_between(times, low, high, color=line.get_color(), alpha=0.25, lw=0)
    note = "" if series.spread is None else "  (mean and std of members)"
    axes.set_title(f"{series.name}{note}")
    axes.set_ylabel(textwrap.fill(series.about, 28), fontsize=9)
    if len(series.labels) > 1:  # beside the panel, where it covers nothing
        columns = 1 + len(series.labels) // 12
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False)


def _draw_loop(part: Any, field: Series, m: Series) -> None:
    """The magnetization against a field that changes in time: a loop of hysteresis."""
    axes, other = part.subplots(1, 2)
    other.remove()
    axes.plot(field.mean[:, 0], m.mean[:, 0], lw=0.9)
    axes.set(xlabel=field.about, ylabel=m.about)


def _draw_field(part: Any, times: np.ndarray, field: Field) -> None:
    low, high = limits(field.values)
    colours = style.SIGNED if low == -high else style.PLAIN
    panels = part.subplots(1, len(field.frames), squeeze=False)[0]
    image = None
    for axes, k, values in zip(panels, field.frames, field.values, strict=True):
        image = axes.imshow(
            values, origin="lower", extent=field.extent, cmap=colours, vmin=low, vmax=high
        )
        axes.set_title(f"t = {times[k]:.6g}")
        axes.set_xlabel(field.axes[0])
        axes.locator_params(nbins=4)
        axes.label_outer()
    panels[0].set_ylabel(field.axes[1])
    part.colorbar(image, ax=list(panels), shrink=0.8, label=textwrap.fill(field.name, 30))


def _draw_profile(part: Any, field: Field) -> None:
    (values,), axes = field.values, part.subplots()
    low, high = limits(field.values)
    colours = {"cmap": style.SIGNED if low == -high else style.PLAIN, "vmin": low, "vmax": high}
    if field.logarithmic:
        first, last, bottom, top = field.extent
        rows, columns = values.shape
        edges = np.geomspace(first, last, columns + 1), np.linspace(bottom, top, rows + 1)
        image = axes.pcolormesh(*edges, values, **colours)
        axes.set_xscale("log")
    else:
        image = axes.imshow(values, origin="lower", extent=field.extent, aspect="auto", **colours)
    axes.set(xlabel=field.axes[0], ylabel=field.axes[1])
    part.colorbar(image, ax=axes, shrink=0.8, label=textwrap.fill(field.name, 30))


# -- text ----------------------------------------------------------------------------------


def page(
    run: Trajectory,
    variables: Sequence[str] | None = None,
    frame: int | None = None,
    member: int = 0,
    *,
    width: int = WIDTH,
    colour: bool = False,
) -> list[str]:
    """The lines of a page about the run: charts side by side, then fields. See :func:`plot`."""
    check_member(run, member)
    drawn, kept = _select(run, variables)
    shown = _frame(run, -1 if frame is None else frame)
    lines = [_title(run, width)]
    columns = max(1, min(width // 38, len(drawn)))
    each = (width - 2 * (columns - 1)) // columns
    for start in range(0, len(drawn), columns):
        several = [series_of(run, v) for v in drawn[start : start + columns]]
        charts = [_chart(run.time, series, each, _grow(run)) for series in several]
        height = max(map(len, charts))
        for row in range(height):
            words = [chart[row] if row < len(chart) else "" for chart in charts]
            lines.append("  ".join(f"{word:{each}}" for word in words).rstrip())
    if drawn:
        scale = ", logarithmic" * _grow(run)
        lines.append(f"against {time_label(run)}{scale}"[:width])
    for field in fields_of(run, kept, [shown], member):
        low, high = limits(field.values)
        left, right, bottom, top = (f"{edge:g}" for edge in field.extent)
        across, up = ("time", field.line) if field.line else ("x", "y")
        across = "logarithmic " * field.logarithmic + across
        about = f"{low:.3g} to {high:.3g}; {across} {left} to {right}, {up} {bottom} to {top}"
        when = "" if field.line else f"t = {run.time[shown]:.6g}, "
        lines.append(f"{field.name}, {when}{about} upwards"[:width])
        values = field.values[0]
        if field.line:  # it has no shape of its own
            values = resampled(resampled(values, 2 * FIELD_ROWS).T, width).T
        lines += half_blocks(values, (low, high), width, colour=colour)
    return lines


def _chart(times: np.ndarray, series: Series, width: int, grow: bool = False) -> list[str]:
    """A title, a braille chart with its limits, the ends of the time axis, names of lines."""
    edges: list[np.ndarray] = []
    if grow:
        spread = None if series.spread is None else series.spread[1:]
        times, series = times[1:], replace(series, mean=series.mean[1:], spread=spread)
    if series.spread is not None:
        edges = [series.mean - series.spread, series.mean + series.spread]
    finite = np.concatenate([part[np.isfinite(part)] for part in (series.mean, *edges)])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if high <= low:
        margin = 0.5 * abs(low) or 0.5
        low, high = low - margin, high + margin
    dots = np.zeros((4 * _CHART_ROWS, 2 * (width - 10)), bool)
    begin, end = float(times[0]), float(times[-1])
    if grow:
        across = np.log(times / begin) / np.log(end / begin)
    else:
        across = (times - begin) / ((end - begin) or 1.0)
    for lines, dotted in ((series.mean, False), *((edge, True) for edge in edges)):
        for line in lines.T:
            trace(dots, across, (high - line) / (high - low), dotted=dotted)
    rows = braille(dots)
    last = series.mean[-1]
    now = [f"{label} {value:.4g}".strip() for label, value in zip(series.labels, last, strict=True)]
    if series.spread is not None and len(now) == 1:
        now[0] += f" +- {series.spread[-1, 0]:.2g}"
    single = len(now) == 1
    title = f"{series.name}  {now[0]}" if single else series.name
    scale = [f"{high:>9.3g}", *[" " * 9] * (_CHART_ROWS - 2), f"{low:>9.3g}"]
    ends = f"{begin:g}", f"{end:g}"
    axis = f"{'':10}{ends[0]}{ends[1]:>{max(0, width - 10 - len(ends[0]))}}"
    chart = [title[:width], *(f"{s} {r}" for s, r in zip(scale, rows, strict=True)), axis[:width]]
    return chart if single else chart + list(_wrapped(now, width))


def _wrapped(words: Sequence[str], width: int) -> Iterator[str]:
    line = ""
    for word in words:
        if line and len(line) + 2 + len(word) > width:
            yield line
            line = ""
        line += ("  " if line else "") + word
    yield line[:width]


# -- the terminal --------------------------------------------------------------------------


def _terminal(stream: TextIO) -> tuple[int, int]:
    """Columns and rows; of a file or a pipe 80 columns, as many rows as there are."""
    if not stream.isatty():
        return WIDTH, 10**6
    size = shutil.get_terminal_size((WIDTH, 24))
    return max(20, size.columns), max(4, size.lines)


def _in_colour(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def _check_encoding(stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        "⣿▀".encode(encoding)
    except UnicodeError:
        remedy = "Set PYTHONUTF8=1, or write a picture with --out."
        raise InputError("out", encoding, "an output in UTF-8", remedy) from None


def watch(
    path: str | os.PathLike[str],
    *,
    variables: Sequence[str] | None = None,
    frame: int | None = None,
    member: int = 0,
    stream: TextIO | None = None,
    pause: Callable[[float], None] = clock.sleep,
) -> None:
    """Draw the page again every two seconds until the run is complete, or Ctrl-C.

    A look at a file that is just being flushed may fail; five in a row are an error. On a
    terminal a page replaces the one before; elsewhere each page that differs is added.

    Raises
    ------
    InputError : no such file or variable, or a file that stays unreadable
    """
    stream = sys.stdout if stream is None else stream
    before: list[str] = []
    failed = 0
    try:
        while True:
            width, height = _terminal(stream)
            done, lines = False, before
            try:
                with Trajectory(path) as run:
                    done = run.complete
                    lines = [_title(run, width)]
                    if len(run):
                        colour = _in_colour(stream)
                        lines = page(run, variables, frame, member, width=width, colour=colour)
                failed = 0
            except InputError as error:
                failed += 1
                if error.name != "file" or failed >= PATIENCE or not Path(path).is_file():
                    raise
            if lines != before:
                clear = "\x1b[2J\x1b[H" if stream.isatty() else ""
                print(clear + "\n".join(lines[: height - 1]), file=stream, flush=True)
                before = lines
            if done:
                return
            pause(PAUSE)
    except KeyboardInterrupt:
        print(file=stream)
