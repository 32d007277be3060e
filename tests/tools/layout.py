"""What is wrong with the layout of a figure of matplotlib, as a reader would see it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

#: Points of the smallest letters: figures are shown at half of their width.
SMALLEST = 8


def faults(figure: Any) -> list[str]:
    """Texts that overlap or are small, axes without labels, legends over data; nothing if fine."""
    figure.canvas.draw()
    return seen(figure)


def seen(figure: Any) -> list[str]:
    """:func:`faults` of a figure that has just been drawn."""
    renderer = figure.canvas.get_renderer()
    out = []
    found = {id(text): text for text in figure.findobj(Text)}
    hidden = _ticks_outside(figure)
    texts = [
        (text.get_text(), text.get_window_extent(renderer))
        for key, text in found.items()
        if text.get_text().strip() and _shown(text) and key not in hidden
    ]
    sizes = ((text.get_fontsize(), text.get_text()) for text in found.values() if text.get_text())
    out += [f"{words!r} in letters of {size:g} points" for size, words in sizes if size < SMALLEST]
    for (one, a), (other, b) in combinations(texts, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > 1.0 and high > 1.0:
            out.append(f"{one!r} and {other!r} overlap")
    for axes in (a for a in figure.findobj(lambda artist: hasattr(artist, "get_xlabel"))):
        if not axes.get_visible() or not axes.axison:
            continue
        for axis in (axes.xaxis, axes.yaxis):
            ticks = [t for t in axis.get_ticklabels() if t.get_visible() and t.get_text()]
            bar = hasattr(axes, "_colorbar") and axes.get_xlabel() + axes.get_ylabel()
            if ticks and not axis.get_label_text() and not bar and not _beside(axes, axis):
                out.append(f"{axes.get_title() or axes!r}: no label of {axis.axis_name}")
        legend = axes.get_legend()
        if legend is not None:
            box = legend.get_window_extent(renderer)
            for line in axes.get_lines():
                places = line.get_transform().transform(line.get_xydata())
                inside = (places > [box.x0, box.y0]) & (places < [box.x1, box.y1])
                if np.all(inside, axis=1).any():
                    out.append(f"legend over {line.get_label()!r}")
    return out


def _ticks_outside(figure: Any) -> set[int]:
    """Labels of ticks beyond the ends of their axis, which are not drawn."""
    out = set()
    for axes in figure.findobj(lambda artist: hasattr(artist, "get_xlabel")):
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for minor in (False, True):
                for tick in axis.get_minor_ticks() if minor else axis.get_major_ticks():
                    if not low <= tick.get_loc() <= high or not axes.axison:
                        out |= {id(tick.label1), id(tick.label2)}
    return out


def _beside(axes: Any, axis: Any) -> bool:
    """Whether a neighbour that shares this axis has the label."""
    name = axis.axis_name
    shared = getattr(axes, f"get_shared_{name}_axes")().get_siblings(axes)
    return any(getattr(one, f"get_{name}label")() for one in shared)


def _shown(artist: Any) -> bool:
    while artist is not None:
        if not artist.get_visible():
            return False
        if hasattr(artist, "axison") and not artist.axison:
            return True  # titles of such axes are seen
        artist = getattr(artist, "axes", None) if not hasattr(artist, "axison") else None
    return True


@contextmanager
def watched(say: Callable[[str], object]) -> Iterator[None]:
    """Whatever is drawn in the block is looked at, once it is; ``say`` is called for each fault."""
    draw = FigureCanvasAgg.draw

    def drawn(canvas: Any) -> None:
        draw(canvas)
        for fault in seen(canvas.figure):
            say(fault)

    FigureCanvasAgg.draw = drawn  # type: ignore[method-assign]
    try:
        yield
    finally:
        FigureCanvasAgg.draw = draw  # type: ignore[method-assign]
