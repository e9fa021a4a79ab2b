"""The commands in the guides: each is understood, and its Python runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fastmim.cli.commands import app

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [DOCS / "index.md", DOCS / "report.md", *sorted((DOCS / "guides").glob("*.md"))]
COMMANDS = [
    (page.name, line.split("#")[0].strip())
    for page in PAGES
    for line in page.read_text().splitlines()
    if line.startswith("    fastmim ")
]


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_commands_are_understood(page: str, command: str) -> None:
    """Words and flags are parsed, and the settings checked; nothing runs."""
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_there_are_guides_for_all_commands_of_training() -> None:
    named = {shlex.split(command)[1] for _, command in COMMANDS}
    assert named >= {
        "pretrain",
        "finetune",
        "predict",
        "probe",
        "embed",
        "export",
        "convert",
        "pack",
        "visualise",
        "report",
    }


def test_pages_are_in_the_table_of_contents() -> None:
    """Sphinx warns of the others only when the site is built."""
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(), flags=re.MULTILINE)
    pages = {
        path.relative_to(DOCS).with_suffix("").as_posix() for path in [*DOCS.glob("*.md"), *DOCS.glob("guides/*.md")]
    }
    assert pages - set(listed) == {"index"}


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(((?!https?:|\.\./\.\./)[^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)
