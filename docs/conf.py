"""The documentation site: `make docs`."""

from __future__ import annotations

import importlib.metadata
import os
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sphinx.application import Sphinx
from sphinx.errors import SphinxError

project = "fastmim"
author = "The fastmim authors"
copyright = "The fastmim authors, Apache-2.0"
release = importlib.metadata.version("fastmim")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["reports"]
myst_heading_anchors = 3
nb_execution_mode = "force"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm's, which would name a folder of the builder's
nb_execution_raise_on_error = True
nb_execution_in_temp = True  # what notebooks write is no part of the site
nb_execution_timeout = 600  # seconds a cell; a notebook takes one to two minutes on an idle machine
nb_merge_streams = True
nb_render_markdown_format = "myst"  # with tables

default_role = "code"  # docstrings have single backticks
smartquotes = False  # -- stays what one types
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "fastmim"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False


def _name_files(app: Sphinx, name: str, source: list[str]) -> None:
    """Files outside docs/ are no pages of the site: their names take the place of the links to them."""

    def named(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(name), link[1]))
        return f"`{path.removeprefix('../')}`" if path.startswith("../") else link[0]

    source[0] = re.sub(r"(?<!!)\[[^\]\n]*\]\((\.\./[^)\n]+)\)", named, source[0])


def _move_links(app: Sphinx, path: Path, parent: str, source: list[str]) -> None:
    """What a page includes from the repository's root links into docs/, or to files that are no pages."""
    source[0] = re.sub(r"(?<!!)\[([^\]\n]*)\]\((?!docs/|[a-z]+:)[^)\n]+\)", r"\1", source[0])
    source[0] = source[0].replace("](docs/", "](")


class _Page(HTMLParser):
    """The places of a page that links lead to, and its links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.places: set[str] = {"", "top"}
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in {"id", "name"}:
                self.places.add(value or "")
            elif name in {"href", "src"} and value:
                self.links.append(value)


def _check_links(app: Sphinx, error: Exception | None) -> None:
    """Every link from page to page leads to a file and to a place in it; other hosts are not asked."""
    if error:
        return
    pages = {path.resolve(): _Page(path.read_text()) for path in Path(app.outdir).rglob("*.html")}
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists() or (target in pages and unquote(parts.fragment) not in pages[target].places):
                broken.append(f"{path.name}: {link}")
    if broken:
        raise SphinxError(f"{len(broken)} links lead nowhere: {', '.join(broken)}")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _name_files)
    app.connect("include-read", _move_links)
    app.connect("build-finished", _check_links)
