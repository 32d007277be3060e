"""``mpiflow report``: one page about a run, or about a folder of runs or of a driver's results."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mpiflow.commands.export import field_axes
from mpiflow.commands.plot import Field, fields_of, limits, lines_of, series_of, spaced, time_label
from mpiflow.commands.verify import verify
from mpiflow.core.errors import InputError
from mpiflow.experiments import pages, style
from mpiflow.experiments.pages import Part
from mpiflow.files.storage import whole_file
from mpiflow.files.trajectory import Trajectory

#: Most frames that a field is played with, its most cells a side, and most points of a line.
FRAMES, CELLS, POINTS = 60, 128, 2000
#: Most runs of a folder that are told one by one.
RUNS = 20
_MARKS = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}


def report(path: str | Path, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write the page; returns where it is.

    Parameters
    ----------
    path : a Trajectory file, or a folder: of runs, or of the results of a driver
    out : the page; unless given, FILE.html beside the file, or report.html in the folder

    Raises
    ------
    InputError : nothing to tell of, or the page cannot be written
    """
    path = Path(path)
    runs = [path]
    if path.is_dir():
        runs = [p for p in sorted(path.glob("*.h5")) if p.is_file()]
        results = pages.of_results(path)
        if not runs and not results:
            allowed = "a run, or a folder with runs or the results of a driver"
            raise InputError("report", str(path), allowed, "Give the file of a run.")
    out = Path(out) if out else (path / pages.PAGE if path.is_dir() else path.with_suffix(".html"))
    with whole_file(out, overwrite=overwrite, inputs=[p for p in runs if p.exists()]) as target:
        parts = list(results) if path.is_dir() else []
        for one in runs[:RUNS]:
            parts += _in_folder(one) if path.is_dir() else of_run(one)
        if len(runs) > RUNS:
            parts.append(Part("Other runs", [pages.facts({"not shown": len(runs) - RUNS})]))
        target.write_text(pages.page(str(path), parts), encoding="utf-8")
    return out


def _in_folder(path: Path) -> list[Part]:
    """Sections about one run of several: one that cannot be read does not hide the others."""
    try:
        return of_run(path, f"{path.name}: ")
    except InputError as error:
        return [Part(f"{path.name}: cannot be read", [pages.note(str(error), False)])]


def of_run(path: Path, prefix: str = "") -> list[Part]:
    """Sections about a run: what it is, whether it is right, its variables and fields."""
    with (
        warnings.catch_warnings(record=True, action="always") as caught,
        Trajectory(path) as run,
    ):
        known = run.facts()
        about = known["attributes"]
        what = {
            "system": known["system"],
            "state": "complete" if run.complete else "not complete",
            "frames": len(run),
            "time": " to ".join(f"{t:.6g}" for t in known["time"]),
            "size of the file": f"{known['bytes'] / 1e6:.3g} MB",
            "mpiflow": f"{about['mpiflow_version']} ({about['git_hash'][:12]})",
            "ranks": about["ranks"],
            "kernel": about.get("kernel"),
            "random numbers": f"seed {about['seed']}, {about['rng']}",
            "ended": about.get("stopped_early"),
        }
        left_out = ("quiet", "out", "overwrite", "writer", "checkpoints")
        options = {
            k: "x".join(map(str, v)) if isinstance(v, list) and k in ("size", "cells") else v
            for k, v in run.config.items()
            if not (v is None or v is False or v in ([], {}) or k in left_out)
        }
        drawn = _drawn(run) if len(run) else []
        figures = [pages.interactive(_series(run, v.name)) for v in drawn]
        fields = [pages.interactive(_played(field, times)) for field, times in _fields(run)]
    findings = list(verify([path]))
    notes = [pages.note(str(finding.text), finding.good) for finding in findings]
    notes += [pages.note(str(warning.message), False) for warning in caught]
    parts = [
        Part(f"{prefix}what was run", [pages.facts(what)]),
        Part(f"{prefix}is it right?", notes),
        Part(f"{prefix}options", [pages.facts(options)]),
    ]
    if figures:
        parts.append(Part(f"{prefix}in time", figures))
    if fields:
        parts.append(Part(f"{prefix}fields", fields))
    return parts


def _drawn(run: Trajectory) -> list[Any]:
    return [v for v in run.variables.values() if 0 < lines_of(run, v) <= 9]


def _series(run: Trajectory, name: str) -> Any:
    """A variable against time: zoom, hover, lines that can be switched off."""
    import plotly.graph_objects as go

    series = series_of(run, run.variables[name])
    at = np.array(spaced(len(run) - 1, POINTS))
    figure = go.Figure()
    for i, label in enumerate(series.labels):
        look = style.line(i)
        mean = series.mean[at, i]
        line = {"color": look["color"], "dash": _MARKS[look["linestyle"]], "width": 2}
        figure.add_scatter(x=run.time[at], y=mean, name=label or name, mode="lines", line=line)
        if series.spread is not None:
            for sign in (-1, 1):
                edge = mean + sign * series.spread[at, i]
                thin = {"color": look["color"], "width": 0.7, "dash": "dot"}
                figure.add_scatter(
                    x=run.time[at], y=edge, mode="lines", line=thin, showlegend=False,
                    name="standard deviation of members",
                )  # fmt: skip
    figure.update_layout(
        title=name, xaxis_title=time_label(run), yaxis_title=series.about, template="simple_white",
        height=360, margin={"l": 70, "r": 20, "t": 50, "b": 50},
        showlegend=len(series.labels) > 1,
    )  # fmt: skip
    return figure


def _fields(run: Trajectory) -> list[tuple[Field, np.ndarray]]:
    """Coarse fields over a plane at some frames, with the times."""
    planes = [v for v in run.variables.values() if len(field_axes(v)) == 2]
    coarse = [v for v in planes if v.name not in ("spin", "spin_bits")] or planes
    if not coarse or not len(run):
        return []
    at = spaced(len(run) - 1, FRAMES)
    return [(field, run.time[at]) for field in fields_of(run, coarse[:2], at, 0, CELLS)]


def _played(field: Field, times: np.ndarray) -> Any:
    """A field with a button and a slider for its frames."""
    import plotly.graph_objects as go

    low, high = limits(field.values)
    left, right, bottom, top = field.extent
    ny, nx = field.values[0].shape
    dx, dy = (right - left) / nx, (top - bottom) / ny
    place = {"x0": left + dx / 2, "dx": dx, "y0": bottom + dy / 2, "dy": dy}  # of cell centres
    scale = {"zmin": low, "zmax": high, "colorscale": "RdBu_r" if low == -high else "Viridis"}

    def drawn(k: int) -> Any:
        z = np.round(np.asarray(field.values[k], float), 4)
        return go.Heatmap(z=z, colorbar={"thickness": 14}, **place, **scale)

    names = [f"{time:.6g}" for time in times]
    now = {"mode": "immediate", "frame": {"duration": 80, "redraw": True}, "fromcurrent": True}
    steps = [
        {
            "label": name,
            "method": "animate",
            "args": [[name], now | {"transition": {"duration": 0}}],
        }
        for name in names
    ]
    figure = go.Figure(
        data=[drawn(0)],
        frames=[go.Frame(data=[drawn(k)], name=name) for k, name in enumerate(names)],
    )
    figure.update_layout(
        title=field.name, template="simple_white", height=560,
        xaxis_title=field.axes[0], yaxis_title=field.axes[1],
        xaxis={"constrain": "domain"}, yaxis={"scaleanchor": "x", "constrain": "domain"},
        margin={"l": 60, "r": 20, "t": 50, "b": 40},
        sliders=[
            {
                "active": 0, "steps": steps, "currentvalue": {"prefix": "t = "}, "pad": {"t": 50},
                "x": 0.28, "len": 0.72,
            }
        ],
        updatemenus=[
            {
                "type": "buttons", "direction": "left", "x": -0.05, "y": -0.2, "yanchor": "top",
                "xanchor": "left",
                "buttons": [
                    {"label": "play", "method": "animate", "args": [None, now]},
                    {
                        "label": "stop", "method": "animate",
                        "args": [[None], {"mode": "immediate", "frame": {"duration": 0}}],
                    },
                ],
            }
        ],
    )  # fmt: skip
    return figure
