"""How every figure looks: colours that all readers can tell apart, dashes beside colours, sizes.

The colours are those of Okabe and Ito (Color Universal Design, 2008) but for yellow, which is too
pale on white. Lines differ in their dashes too, so that a print without colours can be read.
Needs matplotlib, which is imported where a figure is made.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Blue, vermillion, green, purple, orange, sky blue, black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
#: Of values with a sign, of values without one, and of groups in an order.
SIGNED, PLAIN, ORDERED = "RdBu_r", "viridis", "viridis"


def line(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line of a panel; 28 are different."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


def settings() -> Any:
    """The same for lines that are drawn without these, and sizes: ``matplotlib.rc_context``."""
    from cycler import cycler

    lines = [line(i) for i in range(len(COLOURS) * len(DASHES))]
    return {
        "axes.prop_cycle": cycler(
            color=[one["color"] for one in lines], linestyle=[one["linestyle"] for one in lines]
        ),
        "figure.titlesize": 11,
        "axes.titlesize": 10,
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.framealpha": 0.6,
        "lines.linewidth": 1.4,
    }


def figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches that needs no screen; save it with ``savefig(path)``."""
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    look = settings()

    class Panel(Axes):
        """Has the style, whatever the caller has set for figures of his own."""

        def __init__(self, *given: Any, **options: Any) -> None:
            with rc_context(look):
                super().__init__(*given, **options)

        def legend(self, *given: Any, **options: Any) -> Any:
            with rc_context(look):
                return super().legend(*given, **options)

        def set_title(self, *given: Any, **options: Any) -> Any:
            with rc_context(look):
                return super().set_title(*given, **options)

    class Page(Figure):
        """Of panels."""

        def add_subplot(self, *given: Any, **options: Any) -> Any:
            return super().add_subplot(*given, axes_class=Panel, **options)

        def legend(self, *given: Any, **options: Any) -> Any:
            with rc_context(look):
                return super().legend(*given, **options)

        def suptitle(self, *given: Any, **options: Any) -> Any:
            with rc_context(look):
                return super().suptitle(*given, **options)

        def savefig(self, *given: Any, **options: Any) -> None:
            for panel in self.axes:
                for axis in (panel.xaxis, panel.yaxis):
                    if axis.get_scale() == "log":
                        _ticks(axis)
            super().savefig(*given, **options)

    page = Page(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(page)
    return page


def _ticks(axis: Any) -> None:
    """Plain numbers along a logarithmic axis that has fewer than two powers of ten."""
    from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter, ScalarFormatter

    axis.set_minor_formatter(NullFormatter())
    low, high = sorted(axis.get_view_interval())
    if math.floor(math.log10(high)) > math.ceil(math.log10(low)):
        return
    axis.set_major_locator(AutoLocator() if high < 3 * low else LogLocator(subs=(1, 2, 4, 7)))
    axis.set_major_formatter(ScalarFormatter())
