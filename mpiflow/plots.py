"""Figures (needs matplotlib)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
