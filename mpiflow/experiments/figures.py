"""Figures (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np

#: (mean, standard deviation), each (times, groups, variables).
Moments = tuple[np.ndarray, np.ndarray]


def latent_figure(
    path: str | Path,
    times: np.ndarray,
    truth: Moments,
    predictions: Mapping[str, Moments],
    *,
    groups: Sequence[float],
    variables: Sequence[str] = ("magnetization", "domain wall density"),
    title: str = "",
) -> None:
    """Mean and spread against time, truth shaded, prediction dashed; one row per prediction.

    Parameters
    ----------
    groups : what tells the groups apart, for the colour: initial magnetisations
    variables : names of the first variables, one column each
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    rows, columns = len(predictions), len(variables)
    figure = Figure(figsize=(5.2 * columns, 3.1 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, sharex=True, squeeze=False)
    colour = ScalarMappable(Normalize(min(groups), max(groups) + 1e-9), "coolwarm")
    for row, (name, prediction) in enumerate(predictions.items()):
        for column, variable in enumerate(variables):
            ax = axes[row][column]
            for g, value in enumerate(groups):
                shade = colour.to_rgba(np.array(value))
                mean, std = (m[:, g, column] for m in truth)
                ax.fill_between(times, mean - std, mean + std, color=shade, alpha=0.25, lw=0)
                ax.plot(times, mean, color=shade, lw=1.2)
                mean, std = (m[:, g, column] for m in prediction)
                ax.plot(times, mean, color="k", lw=1.0, ls="--")
                for sign in (-1, 1):
                    ax.plot(times, mean + sign * std, color="k", lw=0.5, ls=":")
            ax.set_ylabel(variable)
            ax.set_title(f"{name}: {variable}", fontsize=9)
            if row == rows - 1:
                ax.set_xlabel("time (attempts per spin)")
    figure.colorbar(colour, ax=axes, label="initial magnetization", shrink=0.8)
    figure.suptitle(f"{title}   shaded: truth, black: prediction (mean, one std)", fontsize=10)
    figure.savefig(path, dpi=130)


def power_law_figure(
    path: str | Path,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, str]],
) -> None:
    """Curves of several runs and a power law, on logarithmic axes; one panel for each law.

    Parameters
    ----------
    panels : (name of the quantity, times, values (runs, times), law (times), label of the law)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(panels), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, times, values, law, label) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for run in values:
            axes.loglog(times, run, "o", markersize=3, alpha=0.5)
        axes.loglog(times, law, "k--", label=label)
        axes.set(xlabel="sweeps", ylabel=name)
        axes.legend()
    figure.savefig(path, dpi=150)


# -- pictures of alloys ------------------------------------------------------------------------

#: Colours of species 1, 2, ...: told apart by the colour-blind, and in grey.
ELEMENT_COLOURS = ("#2b78c8", "#f2a52c", "#d3d8dd", "#57a773", "#9a5fb0", "#8a6a4c")
VACANCY_COLOUR = "#d7263d"
_RADIUS = 0.80  # of an atom, in half lattice constants; neighbours touch at 0.87
_SHELL = 4  # planes of sites below a visible face that may show
_DEEP = 1.0  # how far behind the faces it is dark, in half lattice constants
_LIGHT = np.array([-0.45, 0.62, 0.64])  # in the camera's axes: right, up, towards the viewer


class _Camera:
    """Perspective projection of a box of ``shape`` points, seen from its last corner.

    Coordinates of the picture are in half lattice constants at the centre of the box.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        towards = np.array([0.86, 0.60, 0.52])
        self.towards = towards / np.linalg.norm(towards)
        right = np.cross([0.0, 0.0, 1.0], self.towards)
        self.right = right / np.linalg.norm(right)
        self.up = np.cross(self.towards, self.right)
        self.centre = 0.5 * (np.array(shape) - 1.0)
        self.distance = 5.5 * float(np.linalg.norm(shape)) / np.sqrt(3.0)

    def see(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Right, up (n, 2), nearness (n,) and magnification (n,) of points (n, 3)."""
        offsets = points - self.centre
        near = offsets @ self.towards
        zoom = self.distance / (self.distance - near)
        flat = np.stack([offsets @ self.right, offsets @ self.up], axis=-1) * zoom[:, None]
        return flat, near, zoom


def _render(
    flat: np.ndarray, near: np.ndarray, zoom: np.ndarray, colours: np.ndarray, pixels: int
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """Shaded spheres with hidden parts removed: an RGBA picture (h, w, 4) and its extent."""
    fine = 3  # pixels of the picture are means over fine x fine, so that edges are smooth
    low, high = flat.min(axis=0) - 2 * _RADIUS, flat.max(axis=0) + 2 * _RADIUS
    step = float((high - low).max()) / (fine * pixels)
    width, height = (fine * np.ceil((high - low) / (fine * step))).astype(int)
    high = low + np.array([width, height]) * step
    image = np.zeros((height, width, 4), np.float32)
    depth = np.full((height, width), -np.inf, np.float32)
    light = _LIGHT / np.linalg.norm(_LIGHT)
    half = light + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    faint = np.clip((near.max() - near) / max(1e-9, np.ptp(near)), 0.0, 1.0)
    for (x, y), z, size, colour, far in zip(flat, near, zoom, colours, faint, strict=True):
        radius = _RADIUS * size
        box = [
            slice(int((c - radius - o) / step), int((c + radius - o) / step) + 2)
            for c, o in ((y, low[1]), (x, low[0]))
        ]
        up, right = np.ogrid[box[0], box[1]]
        right = ((right + 0.5) * step + low[0] - x) / radius
        up = ((up + 0.5) * step + low[1] - y) / radius
        bulge = 1.0 - right**2 - up**2
        front = np.sqrt(np.maximum(bulge, 0.0))
        shown = (bulge > 0) & (z + radius * front > depth[box[0], box[1]])
        matt = np.maximum(right * light[0] + up * light[1] + front * light[2], 0.0)
        gloss = np.maximum(right * half[0] + up * half[1] + front * half[2], 0.0) ** 40
        # The rims of atoms in a crystal see little of the sky.
        tone = (0.40 + 0.72 * matt) * (0.60 + 0.40 * front) * (1.0 - 0.30 * far)
        shade = np.empty((*bulge.shape, 4), np.float32)
        shade[..., :3] = np.clip(colour * tone[..., None] + 0.30 * gloss[..., None], 0.0, 1.0)
        shade[..., 3] = 1.0
        image[box[0], box[1]][shown] = shade[shown]
        depth[box[0], box[1]][shown] = (z + radius * front)[shown]
    mean = image.reshape(height // fine, fine, width // fine, fine, 4).mean(axis=(1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)  # colours of the covered part only
    return mean, (low[0], high[0], low[1], high[1])


def alloy_figure(
    grid: np.ndarray,
    path: str | Path,
    *,
    elements: Sequence[str] = ("Nb", "Mo", "Ta"),
    title: str = "",
    pixels: int = 1100,
) -> None:
    """A picture of an alloy: its three visible faces in perspective, and all its vacancies.

    Parameters
    ----------
    grid : (2 Lx, 2 Ly, 2 Lz) int8, see :mod:`mpiflow.systems.alloy`
    elements : names of species 1, 2, ...
    pixels : of the longer side of the picture of the atoms
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Circle, Polygon
    from scipy.spatial import ConvexHull

    camera = _Camera(grid.shape)
    palette = [ELEMENT_COLOURS[i % len(ELEMENT_COLOURS)] for i in range(len(elements))]
    atoms = np.argwhere(grid > 0)
    atoms = atoms[(np.array(grid.shape) - atoms).min(axis=1) <= _SHELL]
    rgb = np.array([(0.0, 0.0, 0.0), *(to_rgb(colour) for colour in palette)])
    image, extent = _render(*camera.see(atoms), rgb[grid[tuple(atoms.T)]], pixels)

    figure = Figure(figsize=(7.0, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(image, extent=extent, origin="lower", interpolation="lanczos")
    axes.set_axis_off()
    # What lies deeper than the atoms drawn is dark, not the white of the paper.
    ends = [(_DEEP, side - 1.0 - _DEEP) for side in grid.shape]
    corners, _, _ = camera.see(np.array(list(product(*ends))))
    axes.add_patch(Polygon(corners[ConvexHull(corners).vertices], color="0.13", lw=0, zorder=-1))
    vacancies = np.argwhere(grid == 0)
    thin = float(np.clip(np.sqrt(40 / max(1, len(vacancies))), 0.4, 1.0))  # many: smaller rings
    buried = (np.array(grid.shape) - vacancies).min(axis=1) > 2
    for (x, y), _, zoom, hidden in zip(*camera.see(vacancies), buried, strict=True):
        radius = max(1.15, 0.012 * thin * (extent[1] - extent[0])) * zoom
        for line, colour in ((4.5, "white"), (2.2, VACANCY_COLOUR)):
            ring = Circle((x, y), radius, fill=False, lw=line * thin, ec=colour)
            ring.set_alpha(0.45 if hidden else 1.0)
            axes.add_patch(ring)
    counts = [int((grid == kind).sum()) for kind in range(len(elements) + 1)]
    handles = [
        Line2D([], [], ls="", marker="o", ms=11, mfc=colour, mec="0.25", label=f"{name}  {n:,}")
        for colour, name, n in zip(palette, elements, counts[1:], strict=True)
    ]
    label = f"vacancy  {counts[0]:,}" + (" (pale: inside)" if buried.any() else "")
    handles.append(
        Line2D(
            [], [], ls="", marker="o", ms=11, mfc="none", mec=VACANCY_COLOUR, mew=2.2, label=label
        )
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    figure.suptitle(title)
    figure.savefig(path, dpi=160, facecolor="white")


def relaxation_figure(
    path: str | Path,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    names: Sequence[str],
    title: str = "",
    unit: float = 1e-6,
    label: str = "time (1e-6 s)",
) -> None:
    """Mean and spread against time, one panel for each variable, one colour for each curve.

    Parameters
    ----------
    curves : label: (times in s, means (times, variables), spreads (times, variables))
    unit, label : of the time axis
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for i, name in enumerate(names):
        axes = panels[i // columns][i % columns]
        for k, (name_of_curve, (times, mean, spread)) in enumerate(curves.items()):
            style = {"color": f"C{k % 10}", "lw": 1.2, "label": name_of_curve}
            line = axes.plot(times / unit, mean[:, i], **style)[0]
            low, high = mean[:, i] - spread[:, i], mean[:, i] + spread[:, i]
            axes.fill_between(times / unit, low, high, color=line.get_color(), alpha=0.2, lw=0)
        axes.set_title(name, fontsize=10)
        axes.axhline(0.0, color="k", lw=0.4)
    panels[0][0].legend(fontsize=7)
    for axes in panels[-1]:
        axes.set_xlabel(label)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)


def temperature_figure(
    path: str | Path,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
) -> None:
    """Variables against temperature, one panel for each series, one colour for each variable.

    Parameters
    ----------
    series : label: (temperatures in K, values (temperatures, variables))
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(series), 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axes, (label, (temperatures, values)) in zip(panels, series.items(), strict=True):
        for i, name in enumerate(names):
            axes.plot(temperatures, values[:, i], "o-", ms=3, lw=1, color=f"C{i}", label=name)
        axes.axhline(0.0, color="k", lw=0.4)
        axes.set(xlabel="temperature (K)", title=label)
    panels[0].set_ylabel("order parameter")
    panels[0].legend(fontsize=7)
    figure.savefig(path, dpi=130)


def field_figure(
    path: str | Path,
    times: np.ndarray,
    data: Mapping[str, np.ndarray],
    equation: Mapping[str, np.ndarray],
    *,
    title: str = "",
) -> None:
    """Two rows of four panels: fields of the spins and of an equation, and both in time.

    Above: the spins at the start and at the end, magnetisation, free energy. Below: the equation
    at the start and at the end, the absolute difference at the end, phase fraction.

    Parameters
    ----------
    data, equation : ``field`` (times, ny, nx), ``magnetization``, ``free energy`` and
        ``phase fraction`` (times,)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.0, 6.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    last = f"t = {times[-1]:g}"
    for row, (name, series) in enumerate((("spins", data), ("equation", equation))):
        for column, (frame, when) in enumerate(((0, "t = 0"), (-1, last))):
            ax = axes[row][column]
            both = abs(data["field"][frame]).max(), abs(equation["field"][frame]).max()
            limit = max(*both, 1e-9)
            image = ax.imshow(series["field"][frame], cmap="RdBu_r", vmin=-limit, vmax=limit)
            ax.set_title(f"{name}, {when}", fontsize=9)
            figure.colorbar(image, ax=ax, shrink=0.8)
    gap = abs(equation["field"][-1] - data["field"][-1])
    image = axes[1][2].imshow(gap, cmap="magma", vmin=0)
    axes[1][2].set_title(f"|equation - spins|, {last}", fontsize=9)
    figure.colorbar(image, ax=axes[1][2], shrink=0.8)
    for ax in (*axes[0][:2], *axes[1][:3]):
        ax.set_xticks([])
        ax.set_yticks([])
    panels = (axes[0][2], "magnetization"), (axes[0][3], "free energy")
    for ax, name in (*panels, (axes[1][3], "phase fraction")):
        ax.plot(times, data[name], "o", ms=3.5, label="spins")
        ax.plot(times, equation[name], "k-", lw=1.2, label="nonlocal equation")
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("time (attempts per spin)")
        ax.legend(fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=110)


def limits_figure(
    path: str | Path, limits: Mapping[str, tuple[np.ndarray, np.ndarray, float]], label: str
) -> None:
    """Differences against what they vanish with, a panel each: values, differences, power."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(limits), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, (name, (x, y, power)) in zip(
        figure.subplots(1, len(limits), squeeze=False)[0], limits.items(), strict=True
    ):
        ax.loglog(x, y, "o", label="measured")
        ax.loglog(x, y[-1] * (x / x[-1]) ** power, "k--", lw=1, label=f"power {power:g}")
        ax.set_xlabel(name)
        ax.set_ylabel(label)
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=120)
