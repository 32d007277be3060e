"""Figures (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mpiflow.experiments import style
from mpiflow.experiments.style import figure

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
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    rows, columns = len(predictions), len(variables)
    page = figure(5.2 * columns, 3.1 * rows + 0.4)
    axes = page.subplots(rows, columns, sharex=True, squeeze=False)
    # Not a map with white in its middle; its palest colours, at the end, are left out.
    low, high = min(groups), max(groups) + 1e-9
    colour = ScalarMappable(Normalize(low, high + 0.15 * (high - low)), style.ORDERED)
    for row, (name, prediction) in enumerate(predictions.items()):
        for column, variable in enumerate(variables):
            ax = axes[row][column]
            for g, value in enumerate(groups):
                shade = colour.to_rgba(np.array(value))
                mean, std = (m[:, g, column] for m in truth)
                ax.fill_between(times, mean - std, mean + std, color=shade, alpha=0.25, lw=0)
                ax.plot(times, mean, color=shade, lw=1.2, ls="-")
                mean, std = (m[:, g, column] for m in prediction)
                ax.plot(times, mean, color="k", lw=1.0, ls="--")
                for sign in (-1, 1):
                    ax.plot(times, mean + sign * std, color="k", lw=0.5, ls=":")
            ax.set_ylabel(variable)
            ax.set_title(name)
            if row == rows - 1:
                ax.set_xlabel("time (attempts per spin)")
    bar = page.colorbar(colour, ax=axes, label="initial magnetization", shrink=0.8)
    bar.ax.set_ylim(low, high)
    page.suptitle(f"{title}   shaded: truth, black: prediction (mean, one std)")
    page.savefig(path, dpi=130)


def power_law_figure(
    path: str | Path,
    panels: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray, str]],
) -> None:
    """Curves of several runs and a power law, on logarithmic axes; one panel for each law.

    Parameters
    ----------
    panels : (name of the quantity, times, values (runs, times), law (times), label of the law)
    """
    page = figure(5.2 * len(panels), 3.8)
    for axes, (name, times, values, law, label) in zip(
        page.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for i, run in enumerate(values):
            axes.loglog(times, run, "o", markersize=3, alpha=0.5, color=style.line(i)["color"])
        axes.loglog(times, law, "k--", label=label)
        axes.set(xlabel="time (sweeps)", ylabel=name)
        axes.legend()
    page.savefig(path, dpi=150)


def relaxation_figure(
    path: str | Path,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]],
    names: Sequence[str],
    title: str = "",
    unit: float = 1e-6,
    label: str = "time (1e-6 s)",
    quantity: str = "short-range order",
) -> None:
    """Mean and spread against time, one panel for each variable, one colour for each curve.

    Parameters
    ----------
    curves : label: (times in s, means (times, variables), spreads (times, variables))
    unit, label : of the time axis
    quantity : what the variables are, beside the panels
    """

    columns = 3
    rows = -(-len(names) // columns)
    page = figure(4.2 * columns, 2.9 * rows + 0.4)
    panels = page.subplots(rows, columns, sharex=True, squeeze=False)
    for i, name in enumerate(names):
        axes = panels[i // columns][i % columns]
        for k, (name_of_curve, (times, mean, spread)) in enumerate(curves.items()):
            look = style.line(k)
            axes.plot(times / unit, mean[:, i], label=name_of_curve, **look)
            low, high = mean[:, i] - spread[:, i], mean[:, i] + spread[:, i]
            axes.fill_between(times / unit, low, high, color=look["color"], alpha=0.2, lw=0)
        axes.set_title(name)
        axes.axhline(0.0, color="0.5", lw=0.5)
    for axes in panels.ravel()[len(names) :]:
        axes.remove()
    for i in range(len(names)):
        below = i + columns >= len(names)
        panels[i // columns][i % columns].tick_params(labelbottom=below)
        panels[i // columns][i % columns].set_ylabel(quantity)
        if below:
            panels[i // columns][i % columns].set_xlabel(label)
    # Outside of the panels, where it covers nothing.
    page.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    page.suptitle(title)
    page.savefig(path, dpi=130)


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

    page = figure(4.6 * len(series), 3.8)
    panels = page.subplots(1, len(series), sharey=True, squeeze=False)[0]
    for axes, (label, (temperatures, values)) in zip(panels, series.items(), strict=True):
        for i, name in enumerate(names):
            look = style.line(i)
            axes.plot(temperatures, values[:, i], marker="o", ms=3, label=name, **look)
        axes.axhline(0.0, color="0.5", lw=0.5)
        axes.set(xlabel="temperature (K)", title=label)
    panels[0].set_ylabel("short-range order")
    page.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    page.savefig(path, dpi=130)


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

    page = figure(15.0, 6.6)
    axes = page.subplots(2, 4)
    last = f"t = {times[-1]:g}"
    for row, (name, series) in enumerate((("spins", data), ("equation", equation))):
        for column, (frame, when) in enumerate(((0, "t = 0"), (-1, last))):
            ax = axes[row][column]
            both = abs(data["field"][frame]).max(), abs(equation["field"][frame]).max()
            limit = max(*both, 1e-9)
            image = ax.imshow(series["field"][frame], cmap=style.SIGNED, vmin=-limit, vmax=limit)
            ax.set_title(f"{name}, {when}")
            page.colorbar(image, ax=ax, shrink=0.8, label="magnetization")
    gap = abs(equation["field"][-1] - data["field"][-1])
    image = axes[1][2].imshow(gap, cmap="magma", vmin=0)
    axes[1][2].set_title(f"|equation - spins|, {last}")
    page.colorbar(image, ax=axes[1][2], shrink=0.8, label="magnetization")
    for ax in (*axes[0][:2], *axes[1][:3]):
        ax.set(xticks=[], yticks=[], xlabel="x", ylabel="y")
    panels = (axes[0][2], "magnetization"), (axes[0][3], "free energy")
    for ax, name in (*panels, (axes[1][3], "phase fraction")):
        ax.plot(times, data[name], "o", ms=3.5, label="spins")
        ax.plot(times, equation[name], "k-", lw=1.2, label="nonlocal equation")
        ax.set(xlabel="time (attempts per spin)", ylabel=name)
        ax.legend()
    page.suptitle(title)
    page.savefig(path, dpi=110)


def limits_figure(
    path: str | Path, limits: Mapping[str, tuple[np.ndarray, np.ndarray, float]], label: str
) -> None:
    """Differences against what they vanish with, a panel each: values, differences, power."""

    page = figure(4.6 * len(limits), 3.6)
    for ax, (name, (x, y, power)) in zip(
        page.subplots(1, len(limits), squeeze=False)[0], limits.items(), strict=True
    ):
        ax.loglog(x, y, "o", label="measured")
        ax.loglog(x, y[-1] * (x / x[-1]) ** power, "k--", lw=1, label=f"power {power:g}")
        ax.set_xlabel(name)
        ax.set_ylabel(label)
        ax.legend()
    page.savefig(path, dpi=120)
