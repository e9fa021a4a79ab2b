"""The output of a notebook's cell: a line or a picture that changes in place. IPython is used where it runs, only."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Place:
    """A place in the output of the cell that runs; outside of a notebook nothing is shown."""

    def __init__(self) -> None:
        self._handle: Any = None

    def write(self, line: str) -> None:
        """Show a line here."""
        self._show({"text/plain": line})

    def draw(self, path: Path) -> None:
        """Show a PNG here."""
        if in_notebook():
            self._show({"image/png": base64.b64encode(path.read_bytes()).decode(), "text/plain": str(path)})

    def _show(self, content: dict[str, str]) -> None:
        if not in_notebook():
            return
        if self._handle is None:
            self._handle = sys.modules["IPython"].display.display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)
