"""One self-contained HTML page about a run or about what a driver left behind.

Such a page needs no network and no program but a browser: pictures and the library that draws
interactive figures (plotly.js) are in it. Needs the extra ``report``: jinja2, markdown-it-py and
plotly.
"""

from __future__ import annotations

import base64
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpiflow._version import __version__
from mpiflow.core.errors import InputError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

#: What drivers leave beside their pictures.
TABLE, RESULTS, PAGE = "table.md", "results.json", "report.html"

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  :root { color-scheme: light; }
  body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff;
         max-width: 64rem; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
  h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
  h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
  .wide { overflow-x: auto; }
  table { border-collapse: collapse; font-size: 0.9rem; }
  th, td { text-align: left; padding: 0.25rem 0.7rem 0.25rem 0; vertical-align: top;
           border-bottom: 1px solid #eee; }
  td { overflow-wrap: anywhere; }
  img { max-width: 100%; height: auto; }
  .warning, .good { border-left: 4px solid; padding: 0.4rem 0.8rem; margin: 0.6rem 0; }
  .warning { border-color: #D55E00; background: #fdf1ea; }
  .good { border-color: #009E73; background: #eef8f4; }
  footer { margin-top: 3rem; font-size: 0.85rem; color: #555; }
</style>
{{ script | safe }}
</head>
<body>
<h1>{{ title }}</h1>
{% for part in parts %}
<section>
<h2>{{ part.heading }}</h2>
{% for piece in part.pieces %}{{ piece | safe }}
{% endfor %}
</section>
{% endfor %}
<footer>Written by mpiflow {{ version }}, Python {{ python }}.</footer>
</body>
</html>
"""


@dataclass(frozen=True)
class Part:
    """A section of a page: pieces of HTML, as the functions below make them, in order."""

    heading: str
    pieces: Sequence[str]


def page(title: str, parts: Iterable[Part]) -> str:
    """The page, with plotly.js once where a part has a figure of it.

    Raises
    ------
    InputError : a library that it is made with is missing
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise _missing(error) from error
    parts = list(parts)
    script = ""
    if any("plotly-graph-div" in item for part in parts for item in part.pieces):
        from plotly.offline import get_plotlyjs

        script = f"<script>{get_plotlyjs()}</script>"
    # What users wrote is escaped; in pieces it was, where they were made.
    template = Environment(autoescape=True).from_string(_TEMPLATE)
    return template.render(
        title=title,
        parts=parts,
        script=script,
        version=__version__,
        python=platform.python_version(),
    )


def _missing(error: ImportError) -> InputError:
    allowed = "a report only with jinja2, markdown-it-py and plotly"
    return InputError("report", error.name, allowed, "Install mpiflow[report].")


# -- pieces ----------------------------------------------------------------------------------------


def facts(values: Mapping[str, Any]) -> str:
    """A table of names and values; what is None is left out."""
    from markupsafe import escape

    rows = (
        f"<tr><th>{escape(name)}</th><td>{escape(_text(value))}</td></tr>"
        for name, value in values.items()
        if value is not None
    )
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def markdown(text: str) -> str:
    """Paragraphs and tables of Markdown; HTML in it is shown as text."""
    try:
        from markdown_it import MarkdownIt
    except ImportError as error:
        raise _missing(error) from error
    made = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return (
        str(made)
        .replace("<table>", '<div class="wide"><table>')
        .replace("</table>", "</table></div>")
    )


def note(text: str, good: bool) -> str:
    """A line that stands out: that all is well, or a warning."""
    from markupsafe import escape

    return f'<p class="{"good" if good else "warning"}">{escape(text)}</p>'


def picture(path: Path) -> str:
    """A PNG file, within the page."""
    from markupsafe import escape

    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{data}">'


def interactive(figure: Figure) -> str:
    """A figure of plotly; its library is put into the page once."""
    config = {"responsive": True, "displaylogo": False, "displayModeBar": False}
    made = figure.to_html(full_html=False, include_plotlyjs=False, config=config)
    return f'<div class="wide">{made}</div>'


# -- drivers ---------------------------------------------------------------------------------------


def of_results(folder: Path) -> list[Part]:
    """Sections about what a driver left: its tables and pictures, differences from exact values."""
    parts = []
    if (folder / TABLE).exists():
        parts.append(Part("Tables", [markdown((folder / TABLE).read_text())]))
    pictures = sorted(folder.glob("*.png"))
    if pictures:
        parts.append(Part("Figures", [picture(path) for path in pictures]))
    if (folder / RESULTS).exists():
        entries = json.loads((folder / RESULTS).read_text())
        parts.append(Part("Values", [_values(entries)]))
    return parts


def _values(entries: Sequence[Mapping[str, Any]]) -> str:
    """The entries of results.json; how far off exact ones are, in standard errors."""
    from markupsafe import escape

    rows = []
    for one in entries:
        ours, error = one["ours"], one["stderr"]
        off = ""
        if None not in (ours, error, one["exact"]) and error > 0:
            off = f"{(ours - one['exact']) / error:+.1f}"
        cells = [one["quantity"], *(one[n] for n in ("ours", "stderr", "published", "exact")), off]
        texts = ("" if cell is None else escape(_text(cell)) for cell in cells)
        rows.append("<tr>" + "".join(f"<td>{text}</td>" for text in texts) + "</tr>")
    titles = ("quantity", "ours", "standard error", "published", "exact", "off, errors")
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
