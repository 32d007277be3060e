"""Sphinx configuration: ``make docs`` builds docs/_build/html.

Pages are Markdown that GitHub shows as well; tutorials are Markdown with cells that are executed.
Docstrings are read as they are written (docs/docstrings.py). Every cross-reference in them must
name something that exists: what has a page is linked, what is inside is shown as code.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import docstrings  # noqa: E402

from mpiflow import __version__  # noqa: E402

project = "mpiflow"
author = "mpiflow developers"
copyright = f"2026, {author}"
version = release = __version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",
]
exclude_patterns = ["_build"]
nitpicky = True

# -- pages -------------------------------------------------------------------------------
myst_enable_extensions = ["dollarmath", "colon_fence", "attrs_inline"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
# Prose says x.y for a thing of Python; only what is written as an address is one.
myst_linkify_fuzzy_links = False

# -- tutorials ---------------------------------------------------------------------------
# Cells run again only where their text changed; a cell that fails fails the build.
nb_execution_mode = "cache"
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

# -- docstrings --------------------------------------------------------------------------
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = True
maximum_signature_line_length = 80
add_module_names = False
toc_object_entries_show_parents = "hide"

# -- looks -------------------------------------------------------------------------------
html_theme = "furo"
# A clone without a tag has no number.
html_title = "mpiflow" if release.endswith("+source") else f"mpiflow {release}"
html_static_path = ["_static"]
templates_path = ["_templates"]
# Those of the theme, which has a list of versions for Read the Docs only, and ours of versions.py.
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "versions.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_css_files = ["mpiflow.css"]
html_copy_source = False
html_show_sourcelink = False
# Blue and sky blue of Okabe and Ito, as figures have them: 5.2:1 and 8.6:1 on their backgrounds.
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0072b2", "color-brand-content": "#0072b2"},
    "dark_css_variables": {"color-brand-primary": "#56b4e9", "color-brand-content": "#56b4e9"},
}
pygments_style = "tango"
pygments_dark_style = "monokai"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# -- links to elsewhere (make docs-links) -------------------------------------------------
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_anchors = False


def setup(app: object) -> None:
    docstrings.setup(app)
