"""The documentation site: `make docs`."""

from __future__ import annotations

import importlib.metadata
import re

from sphinx.application import Sphinx

project = "fastmim"
author = "The fastmim authors"
copyright = "The fastmim authors, Apache-2.0"
release = importlib.metadata.version("fastmim")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["reports"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "fastmim"
html_show_sphinx = False
html_show_copyright = False


def _name_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Files outside docs/ are no pages of the site: their names take the place of the links to them."""
    source[0] = re.sub(r"(?<!!)\[[^\]\n]*\]\(\.\./([^)\n]+)\)", r"`\1`", source[0])
    if name == "changelog":
        source[0] = re.sub(r"\]\(docs/", "](", source[0])


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _name_files)
    app.connect("include-read", lambda app, path, _parent, source: _name_files(app, "changelog", source))
