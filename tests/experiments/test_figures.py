"""Figures of drivers: labels on every axis, no text over another, no legend over data."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import layout
import numpy as np
import pytest

from mpiflow.experiments import figures, style

T = np.linspace(0.0, 10.0, 30)
RISE = 1.0 - np.exp(-T)


def _latent(path: Path) -> None:
    mean = np.stack([np.stack([RISE * m, 1 - RISE * abs(m)], -1) for m in (-0.6, 0.0, 0.6)], 1)
    moments = mean, 0.05 + 0 * mean
    predictions = {"ours": moments, "naive": moments}
    figures.latent_figure(path, T, moments, predictions, groups=(-0.6, 0.0, 0.6), title="Ising")


def _power_law(path: Path) -> None:
    t = np.arange(20, 101, 5.0)
    panels = [
        ("domain length", t, np.array([2 * t**0.5, 2.1 * t**0.5]), 2.05 * t**0.5, "2 t^0.5"),
        ("magnetization", t, np.array([t**-0.06] * 2), t**-0.06, "t^-0.06"),
    ]
    figures.power_law_figure(path, panels)


def _relaxation(path: Path) -> None:
    names = ["NbNb", "NbMo", "NbTa", "MoMo", "MoTa", "TaTa"]
    curve = T * 1e-6, np.outer(RISE, np.linspace(-1, 1, 6)), np.full((len(T), 6), 0.05)
    labels = [f"{what} {sites}" for sites in ("8192", "65,536") for what in ("learned", "truth")]
    figures.relaxation_figure(path, dict.fromkeys(labels, curve), names, "order in time")


def _temperature(path: Path) -> None:
    values = np.outer(1000.0 / np.linspace(800, 3000, 12), np.linspace(-1, 1, 6))
    names = ["NbNb", "NbMo", "NbTa", "MoMo", "MoTa", "TaTa"]
    series = {"learned": (np.linspace(800, 3000, 12), values)}
    figures.temperature_figure(path, series | {"published": series["learned"]}, names)


def _field(path: Path) -> None:
    data: dict[str, Any] = {"field": np.random.default_rng(1).normal(size=(len(T), 16, 16))}
    data |= {"magnetization": RISE, "free energy": -RISE, "phase fraction": RISE}
    figures.field_figure(path, T, data, data, title="T = 0.8")


def _limits(path: Path) -> None:
    x = np.array([16.0, 32.0, 64.0])
    limits = {"side": (x, 1 / x, -1.0), "gamma": (x, x**-2, -2.0)}
    figures.limits_figure(path, limits, "relative difference")


@pytest.mark.parametrize("draw", [_latent, _power_law, _relaxation, _temperature, _field, _limits])
def test_layout(draw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []

    def kept(width: float, height: float) -> Any:
        pages.append(style.figure(width, height))
        return pages[-1]

    monkeypatch.setattr(figures, "figure", kept)
    draw(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert layout.faults(pages[0]) == []


def test_layout_faults_are_seen() -> None:
    """An axis without a label, a text over another, a legend over a line."""
    page = style.figure(4, 3)
    axes = page.subplots()
    axes.plot([0, 1], [0, 1], label="line")
    axes.set_xlabel("time")
    axes.legend(loc="center")
    axes.text(0.0, 0.5, "one text")
    axes.text(0.0, 0.5, "another text")
    found = " ".join(layout.faults(page))
    assert "no label of y" in found
    assert "'one text' and 'another text' overlap" in found
    axes.lines[0].set_data(np.linspace(0, 1, 50), np.linspace(0, 1, 50))
    assert "legend over 'line'" in " ".join(layout.faults(page))


def test_lines_differ_without_colours() -> None:
    """Neighbours in dashes, all in one of both; yellow, too pale on white, is left out."""
    looks = [tuple(style.line(i).values()) for i in range(28)]
    assert len(set(looks)) == 28
    assert all(a[1] != b[1] for a, b in pairwise(looks))
    assert "#F0E442" not in style.COLOURS
    page = style.figure(3, 3)
    drawn = page.subplots().plot([0, 1], [0, 1], [0, 1], [1, 0])
    assert [(one.get_color(), one.get_linestyle()) for one in drawn] == looks[:2]
