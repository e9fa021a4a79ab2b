"""Desktop wallpapers, for benchmarks that need more photographs than the built-in ones.

Debian has them in the packages plasma-workspace-wallpapers and gnome-backgrounds.
"""

from __future__ import annotations

from pathlib import Path

from fastmim.bench.corpus import built_in_photographs

FOLDERS = (Path("/usr/share/wallpapers"), Path("/usr/share/backgrounds"))


def photographs() -> list[Path]:
    """The built-in photographs, then the largest file of each wallpaper that this machine has."""
    largest: dict[Path, Path] = {}
    for path in (p for folder in FOLDERS for p in folder.rglob("*") if p.suffix in (".jpg", ".png")):
        kept = largest.get(path.parent)
        if kept is None or path.stat().st_size > kept.stat().st_size:
            largest[path.parent] = path
    return [*built_in_photographs(), *sorted(largest.values())]
