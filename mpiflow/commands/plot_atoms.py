"""The atoms of an alloy as a picture: the three faces of the box that look at the reader."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpiflow.files.structure import cells_of, elements_of, grid_of
from mpiflow.files.trajectory import Trajectory
from mpiflow.systems.alloy import NOT_A_SITE, VACANCY

#: Of elements 1, 2, ...; of more they come again.
_COLOURS = ("#0072B2", "#E69F00", "#D9D9D9", "#009E73", "#CC79A7", "#56B4E9")
_DEEP = 4  # layers of sites of a face that are drawn: what lies deeper is hidden
#: To the reader's right, up, and towards the reader, in points of the grid.
_AXES = np.array([[0.82, 0.57, 0.0], [-0.28, 0.40, 0.87], [0.50, -0.71, 0.49]])


def draw_atoms(part: Any, run: Trajectory, frames: list[int], member: int) -> None:
    """Draw frames of ``species`` side by side, vacancies as rings, pale where they lie deeper."""
    names, cells = elements_of(run.config), cells_of(run.config)
    panels = part.subplots(1, len(frames), squeeze=False)[0]
    for axes, k in zip(panels, frames, strict=True):
        species = np.atleast_2d(run.read("species", k))[member]
        _draw(axes, grid_of(species, cells), names)
        axes.set_title(f"t = {run.time[k]:.6g} s")
    # All frames have the same atoms: one legend, below, where it narrows no panel.
    part.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _draw(axes: Any, grid: np.ndarray, names: tuple[str, ...]) -> None:
    places = np.argwhere(grid != NOT_A_SITE)
    kinds = grid[tuple(places.T)]
    towards = np.where(_AXES[2] > 0, np.array(grid.shape) - 1 - places, places)
    deep = towards.min(axis=1)  # below the nearest of the faces that are seen
    right, up, near = _AXES @ places.T
    order = np.argsort(near, kind="stable")
    order = order[deep[order] < _DEEP]
    axes.set_aspect("equal")
    axes.set_axis_off()
    axes.update_datalim(np.column_stack([right, up]))
    axes.autoscale_view()
    # An atom is as wide as the distance of neighbours, sqrt(3) points.
    wide = np.ptp(right) + 4.0
    box = axes.get_window_extent()
    size = (72.0 / axes.figure.dpi * min(box.width / wide, box.height / (np.ptp(up) + 4.0))) ** 2
    colours = np.array([_COLOURS[(kind - 1) % len(_COLOURS)] for kind in range(1, len(names) + 1)])
    shown = order[kinds[order] > VACANCY]
    axes.scatter(
        right[shown], up[shown], s=3.0 * size, c=colours[kinds[shown] - 1],
        edgecolors="0.25", linewidths=0.3,
    )  # fmt: skip
    holes = kinds == VACANCY
    for some, strength in ((holes & (deep < 2), 1.0), (holes & (deep >= 2), 0.5)):
        axes.scatter(
            right[some], up[some], s=6.0 * size, facecolors="none", edgecolors="#D55E00",
            linewidths=2.0, alpha=strength,
        )  # fmt: skip
    for kind, name in enumerate(names, 1):
        label = f"{name} {np.count_nonzero(kinds == kind):,}"
        axes.scatter([], [], c=colours[kind - 1], edgecolors="0.25", label=label)
    label = f"vacancy {np.count_nonzero(holes):,} (pale: inside)"
    axes.scatter([], [], facecolors="none", edgecolors="#D55E00", linewidths=2.0, label=label)
