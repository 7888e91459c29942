"""Configuration of the documentation site: `make docs` builds it into build/docs.

The pages are Markdown that reads the same on a code-hosting page: links between them are relative paths of files.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent / "site"))

from distsgd.core.version import __version__

project = "distsgd"
author = "The distsgd developers"
copyright = "The distsgd developers, Apache-2.0"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc", "public_names"]
exclude_patterns = ["site"]
root_doc = "index"
language = "en"
highlight_language = "text"  # of blocks that name no language: what commands print
smartquotes = False  # -- stays two dashes

myst_heading_anchors = 4  # links such as design.md#packages
myst_enable_extensions = ["deflist"]

# Docstrings
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False  # what a class only implements stands once, in its base
autodoc_type_aliases = {
    name: name
    for name in (
        "Array",
        "Backward",
        "ExampleFunction",
        "FitOptions",
        "LossFunction",
        "Mode",
        "OwnLossAndGrad",
        "Scalars",
        "Shape",
        "Slots",
    )
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
add_module_names = False
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# What these pages refer to must exist, but for names of other projects (nothing is fetched from their sites), names in
# modules that aren't public, and expressions in backquotes.
nitpick_ignore_regex = [
    ("py:.*", r"(?!distsgd\.).*"),
    ("py:.*", r"distsgd\.\w+\.\w+\..*"),
    ("py:obj", r".*[^\w.].*"),
]
suppress_warnings = ["ref.python"]  # a name such as Array is the same in distsgd and in distsgd.nn

# Appearance
html_theme = "pydata_sphinx_theme"
html_title = f"distsgd {version}"
html_static_path = ["site/static"]
html_css_files = ["distsgd.css"]
templates_path = ["site/templates"]
html_sidebars = {"**": ["pages"]}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "distsgd"},
    "navbar_center": [],
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
}

OUTSIDE = {"../launch/README.md": "batch-scripts.md", "../CHANGELOG.md": "changelog.md"}
"""Files beside docs/ that are pages of the site, and the page that includes each."""


def link_pages(text: str) -> str:
    """A page's text with links that a site can follow: to pages, in place of folders and files outside docs/."""
    text = text.replace("](decisions/)", "](decisions/README.md)")
    for path, page in OUTSIDE.items():
        text = re.sub(rf"\]\({re.escape(path)}(?=[)#])", f"]({page}", text)
    return text


TUTORIALS = """
```{toctree}
:hidden:
:glob:

[a-z]*
```
"""
"""Appended to the page of tutorials, which the site's sidebar lists below it."""


def _on_source(app: Sphinx, name: str, content: list[str]) -> None:
    content[0] = link_pages(content[0]) + (TUTORIALS if name == "tutorials/README" else "")


def _on_include(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    content[0] = link_pages(content[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _on_source)
    app.connect("include-read", _on_include)
