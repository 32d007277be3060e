"""A field of a run in motion, as GIF, a page that plays it, or a film; needs matplotlib."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from mpiflow.commands.export import field_axes
from mpiflow.commands.plot import fields_of, limits, spaced
from mpiflow.commands.selected import check_member, chosen
from mpiflow.core.errors import InputError
from mpiflow.experiments import style
from mpiflow.files.storage import whole_file
from mpiflow.files.trajectory import Trajectory

#: Most frames: those of a longer run are taken at equal distances.
FRAMES = 200
#: Most cells a side; of finer fields there are means.
CELLS = 512
PER_SECOND = 12


def animate(
    path: str | Path,
    out: str | Path,
    *,
    variable: str | None = None,
    member: int = 0,
    overwrite: bool = False,
) -> int:
    """Write a field of a run as a film; returns the number of its frames.

    Parameters
    ----------
    out : ``.gif``; ``.html``, one page that needs no network, with buttons; or ``.mp4``, for which
        the program ffmpeg must be there
    variable : a field over a plane; unless given the first one of the file
    member : of an ensemble

    Raises
    ------
    InputError : no such field, member or format
    """
    try:
        from matplotlib import rc_context
        from matplotlib.animation import FFMpegWriter, HTMLWriter, PillowWriter
    except ImportError as error:
        allowed = "a film only with matplotlib"
        raise InputError("animate", str(out), allowed, "Install mpiflow[plot].") from error
    makers: dict[str, Any] = {".gif": PillowWriter, ".html": HTMLWriter, ".mp4": FFMpegWriter}
    kind = Path(out).suffix
    if kind not in makers:
        allowed = f"a name that ends with {', '.join(makers)}"
        raise InputError("animate", str(out), allowed, "Try run.html, which plays in any browser.")
    if kind == ".mp4" and not FFMpegWriter.isAvailable():
        allowed = "a .gif or .html where the program ffmpeg is missing"
        raise InputError("animate", str(out), allowed, "Install ffmpeg, or choose another format.")
    # What cannot be written is refused before anything is read.
    with whole_file(out, overwrite=overwrite, inputs=[path], name="animate") as target:
        film, frames = _film(path, variable, member)
        maker = makers[kind](fps=PER_SECOND, **{"embed_frames": True} if kind == ".html" else {})
        with (
            tempfile.TemporaryDirectory() as folder,
            rc_context({"animation.embed_limit": 200.0}),
        ):
            made = Path(folder) / f"film{kind}"  # writers know their format by the suffix
            film.save(str(made), writer=maker, dpi=90)
            shutil.copyfile(made, target)
    return frames


def _film(path: str | Path, variable: str | None, member: int) -> tuple[Any, int]:
    """The film as matplotlib has it, and the number of its frames."""
    from matplotlib.animation import FuncAnimation

    with Trajectory(path) as run:
        check_member(run, member)
        fields = [v.name for v in run.variables.values() if len(field_axes(v)) == 2]
        if not fields or not len(run):
            remedy = "Run it again with --coarse 8."
            raise InputError("file", str(path), "a run with a field over a plane", remedy)
        kept = chosen(run, [variable or fields[0]], fields)
        moments = spaced(len(run) - 1, FRAMES)
        field = next(fields_of(run, kept, moments, member, CELLS))
        times = run.time[moments]
    low, high = limits(field.values)
    page = style.figure(5.6, 5.0)
    axes = page.subplots()
    colours = style.SIGNED if low == -high else style.PLAIN
    image = axes.imshow(
        field.values[0], origin="lower", extent=field.extent, cmap=colours, vmin=low, vmax=high
    )
    axes.set(xlabel=field.axes[0], ylabel=field.axes[1])
    page.colorbar(image, ax=axes, label=field.name)
    title = axes.set_title("")

    def show(k: int) -> tuple[Any, ...]:
        image.set_data(field.values[k])
        title.set_text(f"t = {times[k]:.6g}")
        return image, title

    return FuncAnimation(page, show, frames=len(moments)), len(moments)
