"""Backbone weights as files that timm loads."""

from fastmim.weights.files import (
    FILE,
    FORMAT,
    build,
    check,
    load_backbone,
    load_into,
    made_for,
    read,
    save,
    share,
    source_of,
    write,
)

__all__ = [
    "FILE",
    "FORMAT",
    "build",
    "check",
    "load_backbone",
    "load_into",
    "made_for",
    "read",
    "save",
    "share",
    "source_of",
    "write",
]
