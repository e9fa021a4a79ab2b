"""Where weights come from and under which licence: what a network started from or learned from, in its metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Origin = dict[str, Any]
"""A network's "name", the "tag" of its published weights and their "licence"; null where it has none, as a network of
one's own. In what a trained network learned from, also "as": "init" or "teacher"."""

FREE = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
"""Licences of published weights that ask for no more than naming the authors."""
UNKNOWN = "unknown"


def published(architecture: str, tag: str | None, licence: str | None) -> tuple[Origin, ...]:
    """The origin of published weights."""
    return ({"name": architecture, "tag": tag or None, "licence": licence or UNKNOWN},)


def used(role: str, origins: Sequence[Mapping[str, Any]]) -> list[Origin]:
    """Origins as what a network learned from: all that is behind its "init" or its "teacher"."""
    return [{"as": role} | {key: origin[key] for key in ("name", "tag", "licence")} for origin in origins]


def describe(learned_from: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each licence that restricts use, and for each network of unknown licence."""
    lines = []
    for origin in learned_from:
        name = ".".join(filter(None, (origin["name"], origin["tag"])))
        if origin["licence"] == UNKNOWN:
            lines.append(f"licence   {name} states none: ask its authors before you share what you train")
        elif origin["licence"] and origin["licence"] not in FREE:
            lines.append(
                f"licence   {name} is under {origin['licence']}, which restricts use: read it before you use or share "
                f"what you train"
            )
    return list(dict.fromkeys(lines))


def wrong(value: Any) -> bool:
    """Whether a weights file's metadata has something else in place of what its network learned from."""
    if not isinstance(value, list):
        return True
    return any(
        not isinstance(origin, dict)
        or origin.keys() != {"as", "name", "tag", "licence"}
        or not all(isinstance(origin[key], str) for key in ("as", "name"))
        or not all(isinstance(origin[key], str | None) for key in ("tag", "licence"))
        for origin in value
    )
