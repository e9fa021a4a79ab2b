"""What a package registry shows: a description whose links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXT = "[a](docs/a.md#b), [c](https://d.org/e), ![f](docs/g.png)"


def description(readme: str, source: str | None) -> str:
    spec = importlib.util.spec_from_file_location("setup", ROOT / "setup.py")
    assert spec and spec.loader
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    return setup.description(readme, source)


def test_links_of_the_description_are_absolute() -> None:
    there = "https://host.org/we/fastmim"
    assert description(TEXT, there) == (
        f"[a]({there}/blob/main/docs/a.md#b), [c](https://d.org/e), ![f]({there}/raw/main/docs/g.png)"
    )
    assert description(TEXT, None) == "a, [c](https://d.org/e), "
    links = re.findall(r"\]\(([^)]+)\)", description((ROOT / "README.md").read_text(), PROJECT["urls"].get("Source")))
    assert links and all(link.startswith("https://") for link in links)


def test_project_names_no_relative_address() -> None:
    assert all(url.startswith("https://") for url in PROJECT["urls"].values())
    assert "readme" in PROJECT["dynamic"]
