"""How every figure looks: colours that all readers can tell apart, dashes beside colours, sizes.

The colours are those of Okabe and Ito (Color Universal Design, 2008) but for yellow, which is too
pale on white. Lines differ in their dashes too, so that a print without colours can be read.
Needs matplotlib, which is imported where a figure is made.
"""

from __future__ import annotations

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    class Page(Figure):
        """Its panels have the style, whatever the caller has set for figures of his own."""

        def add_subplot(self, *given: Any, **options: Any) -> Any:
            with rc_context(settings()):
                return super().add_subplot(*given, **options)

    page = Page(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(page)
    return page
