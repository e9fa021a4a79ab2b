"""The package's description: README without links that lead nowhere outside the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\((?![a-z]+:)([^)\n]+)\)")


def description(readme: str, source: str | None) -> str:
    """Make the relative links of a Markdown text absolute.

    Args:
        readme: The text.
        source: Address of the repository. Without one, words take the place of links, and pictures are left out.
    """

    def absolute(link: re.Match[str]) -> str:
        picture, words, path = link.groups()
        if source is None:
            return "" if picture else words
        return f"{picture}[{words}]({source}/{'raw' if picture else 'blob'}/main/{path})"

    return LINK.sub(absolute, readme)


if __name__ == "__main__":
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        long_description=description(text, urls.get("Source")),
        long_description_content_type="text/markdown",
    )
