"""Whether two sources hold the same images, wherever these lie: a fingerprint of their names."""

from __future__ import annotations

import hashlib
import os

from fastmim.data.sources.source import Source

_MOST = 50_000
"""Names that are looked at; spaced evenly where there are more, for a start must not wait for 10^9 of them."""


def fingerprint(source: Source) -> str:
    """Hash the number of images and their names within the folder that holds them all.

    Up to 50,000 images every name counts. Of more, as many spaced evenly count, so that an image more or fewer still
    changes nearly all of them.
    """
    count = len(source)
    chosen = range(count) if count <= _MOST else (number * count // _MOST for number in range(_MOST))
    names = [source.name(index).replace("\\", "/") for index in chosen]
    shared = os.path.commonprefix(names).rpartition("/")  # noqa: RUF071 - of text, then up to a folder
    start = len(shared[0]) + len(shared[1])
    digest = hashlib.blake2b(str(count).encode(), digest_size=16)
    for name in names:
        digest.update(b"\0" + name[start:].encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
